/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *server = NULL;
    struct error ignored = ERROR_INIT;
    if (cli_api_try(cli, "/v1/version", &server, &ignored) < 0)
        server = NULL;
    if (cli->format != CLI_FORMAT_TABLE) {
        _cleanup_json_ json_t *both = json_pack("{s:s,s:o}", "version", TIDEMARK_VERSION, "server",
                                                server ? json_incref(server) : json_null());
        return both ? cli_output_value(cli, both) : CLI_EXIT_FAILED;
    }
    printf("tidemark %s\n", TIDEMARK_VERSION);
    if (server)
        cli_output_say(cli, "tidemark up %s, pid %llu, at %s", cli_field_text(server, "version", "?"),
                       (unsigned long long)cli_field_u64(server, "pid"), cli->socket_path);
    else
        cli_output_say(cli, "tidemark up does not answer at %s", cli->socket_path);
    return CLI_EXIT_OK;
}

const struct cli_command cli_version = {
    .name = "version",
    .summary = "the version of this program and of the running `tidemark up`",
    .description = "Tells the version of this program, and of the running `tidemark up` when it can be\n"
                   "reached.",
    .formats = true,
    .examples = (const char *const[]){"tidemark version", "tidemark version -o json", NULL},
    .run = run,
};
