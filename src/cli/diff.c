/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

static enum cli_exit print(const struct cli *cli, const json_t *answer)
{
    static const char *const volume_columns[] = {"VOLUME", ">CHANGED", ">EXTENTS", NULL};
    static const char *const object_columns[] = {"MANIFEST", "CHANGE", NULL};
    _cleanup_cli_table_ struct cli_table *volumes = cli_table_new(volume_columns);
    _cleanup_cli_table_ struct cli_table *objects = cli_table_new(object_columns);
    size_t i;
    json_t *item;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    cli_output_say(
        cli, "from LSN %llu, %s\nto   LSN %llu, %s\n", (unsigned long long)cli_field_u64(answer, "from_lsn"),
        cli_field_text(answer, "from_time", "-"), (unsigned long long)cli_field_u64(answer, "to_lsn"),
        cli_field_text(answer, "to_time", "-"));
    const char *note = cli_field_text(answer, "note", NULL);
    if (note)
        cli_output_say(cli, "%s\n", note);
    json_array_foreach(json_object_get(answer, "volumes"), i, item)
    {
        if (!volumes)
            break;
        cli_table_row(volumes);
        cli_table_field(volumes, item, "name");
        cli_table_bytes(volumes, item, "changed_bytes");
        cli_table_field(volumes, item, "extents");
    }
    enum cli_exit code = cli_table_print(cli, volumes);
    if (code != CLI_EXIT_OK || json_array_size(json_object_get(answer, "objects")) == 0)
        return code;
    json_array_foreach(json_object_get(answer, "objects"), i, item)
    {
        if (!objects)
            break;
        cli_table_row(objects);
        cli_table_field(objects, item, "name");
        cli_table_field(objects, item, "change");
    }
    fputc('\n', stdout);
    return cli_table_print(cli, objects);
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *answer = NULL;
    struct error err = ERROR_INIT;
    char from_application[CLI_NAME_BYTES], from[CLI_POINT_BYTES], to_application[CLI_NAME_BYTES],
        to[CLI_POINT_BYTES];
    char path[CLI_PATH_BYTES], what[CLI_TEXT_BYTES];
    if (cli_options_split_point(cli->operands[0], from_application, from, &err) < 0 ||
        cli_options_split_point(cli->operands[1], to_application, to, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_USAGE, NULL, "diff: %s", err.message);
    if (strcmp(from_application, to_application) != 0)
        return cli_output_fail(cli, CLI_EXIT_USAGE, "compare two points of the same application",
                               "diff: %s and %s are two applications", from_application, to_application);
    _cleanup_json_ json_t *body = json_pack("{s:s,s:s}", "from", from, "to", to);
    snprintf(what, sizeof what, "diff %s", from_application);
    cli_api_application_path(from_application, "/diff", path);
    enum cli_exit code = cli_api_call(cli, what, "POST", path, body, &answer);
    return code == CLI_EXIT_OK ? print(cli, answer) : code;
}

const struct cli_command cli_diff = {
    .name = "diff",
    .summary = "what changed between two points",
    .description = "Tells how many bytes of each volume differ between two points of an application,\n"
                   "and which manifests. JSON and YAML have the first changed ranges, too.",
    .operands = (const struct cli_operand[]){{"APP@POINT", .kind = CLI_KIND_APPLICATION_AT_POINT},
                                             {"APP@POINT", .kind = CLI_KIND_APPLICATION_AT_POINT},
                                             {0}},
    .formats = true,
    .examples = (const char *const[]){"tidemark diff shop@-1h shop@latest",
                                      "tidemark diff shop@tag:before shop@tag:after -o json", NULL},
    .run = run,
};
