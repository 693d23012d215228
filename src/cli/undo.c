/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli_internal.h"
#include "cli/rewind_internal.h"
#include "lib/json.h"

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *body = json_pack("{s:b}", "dry_run", 0);
    if (!body)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "undo: out of memory");
    return cli_rewind_perform(cli, "undo", body);
}

const struct cli_command cli_undo = {
    .name = "undo",
    .summary = "take the last rewind back",
    .description = "Brings back the state from before the newest rewind, in the same steps. It is a\n"
                   "rewind itself: a second undo takes the first one back.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION}, {0}},
    .options =
        (const struct cli_option[]){
            {"dry-run", 0, CLI_KIND_NONE, NULL, .help = "show the plan, change nothing"},
            {"yes", 'y', CLI_KIND_NONE, NULL, .help = "do not ask"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"tidemark undo shop --dry-run", "tidemark undo shop --yes", NULL},
    .run = run,
};
