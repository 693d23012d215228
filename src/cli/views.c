/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

static enum cli_exit print(const struct cli *cli, const json_t *answer)
{
    static const char *const columns[] = {"VIEW",   "APPLICATION", ">LSN",    "AS OF", "STATE",
                                          "OPENED", ">WRITTEN",    "VOLUMES", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char age[CLI_TEXT_BYTES];
    size_t i, j;
    json_t *view, *volume;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    if (json_array_size(json_object_get(answer, "views")) == 0) {
        cli_output_say(cli, "No view is open.");
        return CLI_EXIT_OK;
    }
    json_array_foreach(json_object_get(answer, "views"), i, view)
    {
        const char *state = cli_field_text(view, "state", "unknown");
        char places[CLI_PATH_BYTES] = "";
        size_t used = 0;
        json_array_foreach(json_object_get(view, "volumes"), j, volume)
        {
            const char *place = cli_field_text(
                volume, "mount", cli_field_text(volume, "nbd_uri", cli_field_text(volume, "device", "-")));
            if (used < sizeof places)
                used += (size_t)snprintf(places + used, sizeof places - used, "%s%s: %s", j ? ", " : "",
                                         cli_field_text(volume, "name", "?"), place);
        }
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, view, "id");
        cli_table_field(table, view, "application");
        cli_table_field(table, view, "lsn");
        cli_table_field(table, view, "time");
        cli_table_cell(table, strcmp(state, "open") == 0 ? CLI_COLOUR_GREEN : CLI_COLOUR_RED, "%s", state);
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_age(view, "created_time", age));
        cli_table_bytes(table, view, "overlay_bytes");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", places);
    }
    return cli_table_print(cli, table);
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *answer = NULL;
    enum cli_exit code = cli_api_call(cli, "views", "GET", "/v1/views", NULL, &answer);
    return code == CLI_EXIT_OK ? print(cli, answer) : code;
}

const struct cli_command cli_views = {
    .name = "views",
    .summary = "list the open views",
    .description = "Lists the views that are open, with the moment that each shows, where its volumes\n"
                   "are, and how much was written to it.",
    .formats = true,
    .examples = (const char *const[]){"tidemark views", "tidemark views -o json", NULL},
    .run = run,
};
