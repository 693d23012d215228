/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "cli/cli_internal.h"

const struct cli_program *cli_program_tidemark(void)
{
    static const struct cli_command *const commands[] = {
        &cli_up,     &cli_apply,   &cli_policy, &cli_key, &cli_delete, &cli_detach, &cli_status, &cli_points, &cli_tag,
        &cli_open,   &cli_views,   &cli_close,      &cli_diff,   &cli_rewind, &cli_undo,
        &cli_verify, &cli_upgrade_engine, &cli_data, &cli_node, &cli_controller, &cli_version, &cli_completion, &cli_help, NULL,
    };
    static const struct cli_option options[] = {
        {"state", 0, CLI_KIND_DIRECTORY, "DIR",
         .help = "state directory of `tidemark up` (default /var/lib/tidemark)"},
        {"socket", 0, CLI_KIND_FILE, "PATH",
         .help = "socket of the API (default tidemark.sock in the state directory)"},
        {"no-color", 0, CLI_KIND_NONE, NULL,
         .help = "no colours (also without a terminal, and when NO_COLOR is set)"},
        {"quiet", 'q', CLI_KIND_NONE, NULL, .help = "only results and errors: no progress, no notes"},
        {"help", 'h', CLI_KIND_NONE, NULL, .help = "show the help of this command"},
        {0},
    };
    static const struct cli_program program = {
        .name = "tidemark",
        .summary = "every write of an application is a point that it can go back to",
        .commands = commands,
        .options = options,
        .unreachable = "`tidemark up` cannot be reached",
        .more = "`tidemark help COMMAND` tells more about one; `man tidemark` has it all.",
        .complete = cli_completion_ask,
    };
    return &program;
}

const struct cli_command *cli_find_command(const struct cli_program *program, const char *name)
{
    for (const struct cli_command *const *c = program->commands; *c; c++)
        if (strcmp((*c)->name, name) == 0)
            return *c;
    return NULL;
}

const struct cli_option *cli_format_option(void)
{
    static const struct cli_option option = {"output", 'o', CLI_KIND_FORMAT, "FORMAT",
                                             .help = "table (for people, default), json or yaml"};
    return &option;
}
