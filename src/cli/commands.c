/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "cli/cli_internal.h"

const struct cli_command *const *cli_commands(void)
{
    static const struct cli_command *const commands[] = {
        &cli_up,     &cli_apply,   &cli_policy, &cli_key, &cli_delete, &cli_detach, &cli_status, &cli_points, &cli_tag,
        &cli_open,   &cli_views,   &cli_close,      &cli_diff,   &cli_rewind, &cli_undo,
        &cli_verify, &cli_upgrade_engine, &cli_data, &cli_node, &cli_controller, &cli_version, &cli_completion, &cli_help, NULL,
    };
    return commands;
}

const struct cli_command *cli_find_command(const char *name)
{
    for (const struct cli_command *const *c = cli_commands(); *c; c++)
        if (strcmp((*c)->name, name) == 0)
            return *c;
    return NULL;
}

const struct cli_option *cli_common_options(void)
{
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
    return options;
}

const struct cli_option *cli_format_option(void)
{
    static const struct cli_option option = {"output", 'o', CLI_KIND_FORMAT, "FORMAT",
                                             .help = "table (for people, default), json or yaml"};
    return &option;
}
