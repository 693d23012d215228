/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *answer = NULL;
    char path[CLI_PATH_BYTES], what[CLI_TEXT_BYTES];
    snprintf(what, sizeof what, "close %s", cli->operands[0]);
    snprintf(path, sizeof path, "/v1/views/%s", cli->operands[0]);
    enum cli_exit code = cli_api_call(cli, what, "DELETE", path, NULL, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    cli_output_say(cli, "%s closed", cli->operands[0]);
    return CLI_EXIT_OK;
}

const struct cli_command cli_close = {
    .name = "close",
    .summary = "close a view and throw away what was written to it",
    .description = "Unmounts a view and throws away what was written to it. Refused while something\n"
                   "uses its mount.",
    .operands = (const struct cli_operand[]){{"VIEW", .kind = CLI_KIND_VIEW}, {0}},
    .formats = true,
    .examples = (const char *const[]){"tidemark close v-1a2b3c", NULL},
    .run = run,
};
