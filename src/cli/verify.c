/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/units.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

static void print_summary(const struct cli *cli, const json_t *result)
{
    char bytes[UNITS_TEXT_BYTES];
    cli_output_say(cli, "  read: %s, all up to LSN %llu", units_format_bytes(cli_field_u64(result, "bytes"), bytes),
                   (unsigned long long)cli_field_u64(result, "pin_lsn"));
    cli_output_say(cli, "  of it: %llu segments with %llu frames and %llu records, %llu indexes, %llu pins",
                   (unsigned long long)cli_field_u64(result, "segments"), (unsigned long long)cli_field_u64(result, "frames"),
                   (unsigned long long)cli_field_u64(result, "records"), (unsigned long long)cli_field_u64(result, "indexes"),
                   (unsigned long long)cli_field_u64(result, "pins"));
    if (cli_field_u64(result, "damages"))
        cli_output_say(cli, "  damaged places: %llu", (unsigned long long)cli_field_u64(result, "damages"));
}

/* "1200" or "1200-1210"; "-" without. */
static const char *describe_points(const json_t *damage, char text[CLI_TEXT_BYTES])
{
    uint64_t low = cli_field_u64(damage, "low_lsn"), high = cli_field_u64(damage, "high_lsn");
    if (!high)
        snprintf(text, CLI_TEXT_BYTES, "-");
    else if (low == high)
        snprintf(text, CLI_TEXT_BYTES, "%llu", (unsigned long long)low);
    else
        snprintf(text, CLI_TEXT_BYTES, "%llu-%llu", (unsigned long long)low, (unsigned long long)high);
    return text;
}

static enum cli_exit print_damage(const struct cli *cli, const json_t *damages)
{
    static const char *const columns[] = {"POINTS (LSN)", "FROM",   "TO",   "VOLUME", ">OFFSET",
                                          ">LENGTH",      "FILE", "WHAT IS DAMAGED", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char text[CLI_TEXT_BYTES];
    size_t i;
    json_t *damage;
    json_array_foreach(damages, i, damage)
    {
        if (!table)
            break;
        cli_table_row(table);
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", describe_points(damage, text));
        cli_table_field(table, damage, "low_time");
        cli_table_field(table, damage, "high_time");
        cli_table_field(table, damage, "volume");
        cli_table_field(table, damage, "offset_bytes");
        cli_table_field(table, damage, "length_bytes");
        cli_table_field(table, damage, "file");
        cli_table_cell(table, CLI_COLOUR_RED, "%s", cli_field_text(damage, "what", "?"));
    }
    return cli_table_print(cli, table);
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *result = NULL;
    _cleanup_json_ json_t *body = json_object();
    char path[CLI_PATH_BYTES], what[CLI_TEXT_BYTES];
    const char *application = cli->operands[0];
    snprintf(what, sizeof what, "verify %s", application);
    cli_api_application_path(application, "/verify", path);
    enum cli_exit code = cli_api_operate(cli, what, "POST", path, body, &result);
    if (code != CLI_EXIT_OK)
        return code;
    bool ok = json_is_true(json_object_get(result, "ok"));
    if (cli->format != CLI_FORMAT_TABLE)
        code = cli_output_value(cli, result);
    else
        cli_output_say(cli,
                       ok ? "%s: every record, payload and index reads back as it was written"
                          : "%s: the journal is damaged",
                       application);
    if (cli->format == CLI_FORMAT_TABLE)
        print_summary(cli, result);
    if (cli->format == CLI_FORMAT_TABLE && json_array_size(json_object_get(result, "damage")))
        code = print_damage(cli, json_object_get(result, "damage"));
    if (code != CLI_EXIT_OK || ok)
        return code;
    return cli_output_fail(cli, CLI_EXIT_DAMAGED,
                           "what is damaged is never given out as data; check the disk. `tidemark open --salvage` "
                           "opens what is left of a point",
                           "%s: damage was found", what);
}

const struct cli_command cli_verify = {
    .name = "verify",
    .summary = "read the whole journal and check every checksum",
    .description = "Reads the application's journal in a process of its own while the application goes\n"
                   "on, and compares every checksum: records, payloads, indexes, the base and what\n"
                   "rewinds keep, pins of open views. All that was written up to the moment of the\n"
                   "command is covered. It names for each damage the points (LSNs) and times whose\n"
                   "records are concerned, and where they are known the volume and the bytes; history\n"
                   "that a recovery found lost is told too, as long as the history around it is kept.\n"
                   "Ends with exit code 6 when it found damage.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION}, {0}},
    .formats = true,
    .examples = (const char *const[]){"tidemark verify shop", "tidemark verify shop -o json", NULL},
    .run = run,
};
