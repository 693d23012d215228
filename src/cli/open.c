/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

/* What was found and what cannot be read. */
static enum cli_exit print_salvage(const struct cli *cli, const json_t *salvage)
{
    static const char *const columns[] = {"VOLUME", ">OFFSET", ">LENGTH", "REASON", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char size[UNITS_TEXT_BYTES];
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(salvage, "findings"), i, item)
        cli_output_say(cli, "found: %s", json_string_value(item) ? json_string_value(item) : "?");
    uint64_t damaged = cli_field_u64(salvage, "damaged_bytes");
    if (damaged == 0 && json_is_true(json_object_get(salvage, "complete"))) {
        cli_output_say(cli, "Everything of this point can be read.");
        return CLI_EXIT_OK;
    }
    cli_output_say(cli, "%s cannot be read (reading it is an I/O error), all else reads as it was written:",
                   units_format_bytes(damaged, size));
    json_array_foreach(json_object_get(salvage, "damage"), i, item)
    {
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, item, "volume");
        cli_table_field(table, item, "offset_bytes");
        cli_table_field(table, item, "length_bytes");
        cli_table_cell(table, CLI_COLOUR_RED, "%s", cli_field_text(item, "reason", "?"));
    }
    enum cli_exit code = cli_table_print(cli, table);
    if (json_is_true(json_object_get(salvage, "truncated")))
        cli_output_say(cli, "... and more ranges than are told here");
    return code;
}

static enum cli_exit print(const struct cli *cli, const json_t *view)
{
    static const char *const columns[] = {"VOLUME", ">SIZE", "DEVICE", "MOUNTED AT / NBD", "NOTE", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    size_t i;
    json_t *volume;
    const char *id = cli_field_text(view, "id", "?");
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, view);
    if (cli->quiet) {
        printf("%s\n", id);
        return CLI_EXIT_OK;
    }
    cli_output_say(cli, "%s: %s as of LSN %llu, %s; open in %lld ms", id,
                   cli_field_text(view, "application", "?"), (unsigned long long)cli_field_u64(view, "lsn"),
                   cli_field_text(view, "time", "-"),
                   (long long)json_number_value(json_object_get(view, "open_ms")));
    const json_t *salvage = json_object_get(view, "salvage");
    if (json_is_string(json_object_get(view, "note")))
        cli_output_say(cli, "note: %s", cli_field_text(view, "note", ""));
    json_array_foreach(json_object_get(view, "volumes"), i, volume)
    {
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, volume, "name");
        cli_table_bytes(table, volume, "size_bytes");
        cli_table_field(table, volume, "device");
        cli_table_field(table, volume,
                        json_is_string(json_object_get(volume, "mount")) ? "mount" : "nbd_uri");
        cli_table_cell(table, CLI_COLOUR_YELLOW, "%s", cli_field_text(volume, "note", ""));
    }
    enum cli_exit code = cli_table_print(cli, table);
    if (code == CLI_EXIT_OK && json_is_object(salvage))
        code = print_salvage(cli, salvage);
    cli_output_say(cli, "%s. Close it with\n  tidemark close %s",
                   json_is_object(salvage) ? "What is mounted is read-only; the devices can be written, for fsck"
                                           : "Write to it as you like: nothing of it reaches the application",
                   id);
    return code;
}

static int set_path(json_t *body, const char *key, const char *path, struct error *err)
{
    char absolute[CLI_PATH_BYTES];
    int r = path ? cli_options_absolute(path, absolute, err) : 0;
    if (r < 0 || !path)
        return r;
    if (json_object_set_new(body, key, json_string(absolute)) < 0)
        return error_set(err, -1, "the path '%.200s' is not UTF-8", path);
    return 0;
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *body = json_object();
    _cleanup_json_ json_t *result = NULL;
    struct error err = ERROR_INIT;
    char application[CLI_NAME_BYTES], point[CLI_POINT_BYTES], path[CLI_PATH_BYTES], what[2 * CLI_TEXT_BYTES];
    const char *mount = cli_options_value(cli, "mount", NULL), *nbd = cli_options_value(cli, "nbd", NULL);
    const char *volume = cli_options_value(cli, "volume", NULL);
    snprintf(what, sizeof what, "open %s", cli->operands[0]);
    if (mount && nbd)
        return cli_output_fail(cli, CLI_EXIT_USAGE, "`tidemark help open` shows its usage",
                               "open: --mount and --nbd exclude each other");
    if (cli_options_split_point(cli->operands[0], application, point, &err) < 0 ||
        set_path(body, "mount", mount, &err) < 0 || set_path(body, "nbd", nbd, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s: %s", what, err.message);
    if (json_object_set_new(body, "point", json_string(point)) < 0 ||
        (volume && json_object_set_new(body, "volume", json_string(volume)) < 0) ||
        (cli_options_flag(cli, "salvage") && json_object_set_new(body, "salvage", json_true()) < 0))
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s: out of memory", what);
    cli_api_application_path(application, "/open", path);
    enum cli_exit code = cli_api_operate(cli, what, "POST", path, body, &result);
    if (code != CLI_EXIT_OK)
        return code;
    const json_t *view = json_object_get(result, "view");
    return print(cli, view ? view : result);
}

const struct cli_command cli_open = {
    .name = "open",
    .summary = "open any moment as a writable view beside the application",
    .description = "Opens the volumes of an application as they were at a point, whatever their size,\n"
                   "while the application goes on. A view is writable: what is written to it goes to an\n"
                   "overlay and is gone with it. Several can be open at once. By default all volumes\n"
                   "are mounted below the state directory, and the places are told.\n"
                   "Where the journal is damaged, opening or reading fails. With --salvage what is left\n"
                   "is opened: indexes are made again from the records, reading what is damaged is an\n"
                   "I/O error, all else reads right. Where records are lost so that nobody knows which\n"
                   "blocks they changed, every block that no later intact record covers is damaged. All\n"
                   "of the point is read once for a map of what is damaged; volumes are mounted\n"
                   "read-only, as far as their file systems can be mounted.",
    .operands = (const struct cli_operand[]){{"APP@POINT", .kind = CLI_KIND_APPLICATION_AT_POINT}, {0}},
    .options =
        (const struct cli_option[]){
            {"volume", 0, CLI_KIND_VOLUME, "VOLUME", .help = "only this volume (default: all)"},
            {"mount", 0, CLI_KIND_DIRECTORY, "DIR",
             .help = "mount there: one volume at DIR, several at DIR/VOLUME"},
            {"nbd", 0, CLI_KIND_FILE, "SOCKET", .help = "serve by NBD on this Unix socket, do not mount"},
            {"salvage", 0, CLI_KIND_NONE, NULL, .help = "open what is left although the journal is damaged"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"tidemark open shop@-90s",
                                      "tidemark open shop@tag:before-migration --mount /mnt/then",
                                      "tidemark open shop@lsn:184467 --volume data --nbd /run/then.sock",
                                      "tidemark open shop@latest --salvage -o json",
                                      "tidemark open shop@2026-11-21T02:04:46.5Z -o json | jq -r .id", NULL},
    .run = run,
};
