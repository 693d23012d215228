/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "cli/cli_internal.h"
#include "lib/http_client.h"
#include "lib/json.h"

#define POINTS_LIMIT_MAX 100000u /* as api/openapi.yaml has it */

enum cli_exit cli_points_limit(const struct cli *cli, uint64_t most, uint64_t *ret)
{
    struct error err = ERROR_INIT;
    const char *text = cli_options_value(cli, "limit", CLI_POINTS_LIMIT_DEFAULT);
    char remedy[CLI_TEXT_BYTES];
    int r = units_parse_u64(text, most, ret, &err);
    if (r == 0 && *ret == 0)
        r = error_set(&err, -EINVAL, "'%s' is too small: at least 1", text);
    if (r == 0)
        return CLI_EXIT_OK;
    snprintf(remedy, sizeof remedy, "`%s help points` shows its usage", cli->program->name);
    return cli_output_fail(cli, CLI_EXIT_USAGE, remedy, "points: --limit: %s", err.message);
}

static void put_remarks(FILE *out, const json_t *point)
{
    char bytes[UNITS_TEXT_BYTES];
    const char *separator = "";
    const char *key;
    json_t *value;
    if (cli_field_u64(point, "writes")) {
        fprintf(out, "%llu writes, %s", (unsigned long long)cli_field_u64(point, "writes"),
                units_format_bytes(cli_field_u64(point, "bytes"), bytes));
        separator = " ";
    }
    if (json_is_integer(json_object_get(point, "target_lsn"))) {
        fprintf(out, "%sto lsn:%llu", separator, (unsigned long long)cli_field_u64(point, "target_lsn"));
        separator = " ";
    }
    if (json_is_true(json_object_get(point, "suspicious"))) {
        fprintf(out, "%sSUSPICIOUS", separator);
        separator = " ";
    }
    json_object_foreach(json_object_get(point, "labels"), key, value)
    {
        fprintf(out, "%s%s=%s", separator, key, json_string_value(value) ? json_string_value(value) : "");
        separator = " ";
    }
}

static void add_remarks(struct cli_table *table, const json_t *point)
{
    _cleanup_free_ char *text = NULL;
    size_t length_bytes;
    FILE *out = open_memstream(&text, &length_bytes);
    if (out) {
        put_remarks(out, point);
        fclose(out);
    }
    cli_table_cell(table, json_is_true(json_object_get(point, "suspicious")) ? CLI_COLOUR_RED : CLI_COLOUR_NONE, "%s",
                   text ? text : "?");
}

static enum cli_exit print(const struct cli *cli, const json_t *answer)
{
    static const char *const columns[] = {">LSN", "TIME", "AGE", "KIND", "NAME", "REMARKS", NULL};
    const json_t *points = json_object_get(answer, "points");
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char age[CLI_TEXT_BYTES];
    size_t i;
    json_t *point;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    json_array_foreach(points, i, point)
    {
        const char *kind = cli_field_text(point, "kind", "-");
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, point, "lsn");
        cli_table_field(table, point, "time");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_age(point, "time", age));
        cli_table_cell(table,
                       strcmp(kind, "tag") == 0   ? CLI_COLOUR_GREEN
                       : strcmp(kind, "gap") == 0 ? CLI_COLOUR_RED
                                                  : CLI_COLOUR_NONE,
                       "%s", kind);
        cli_table_field(table, point, "name");
        add_remarks(table, point);
    }
    enum cli_exit code = cli_table_print(cli, table);
    if (json_is_true(json_object_get(answer, "damaged")))
        cli_output_note(cli, "points: part of the history is damaged, what was in it is not listed: `tidemark verify %s` tells what", cli->operands[0]);
    if (code == CLI_EXIT_OK &&
        json_array_size(points) == strtoul(cli_options_value(cli, "limit", CLI_POINTS_LIMIT_DEFAULT), NULL, 10))
        cli_output_note(cli, "points: there may be older ones; --limit N shows more");
    return code;
}

/* The point alone on stdout, so that it can be put into another command; the rest is for people. */
static enum cli_exit last_clean(const struct cli *cli)
{
    _cleanup_json_ json_t *answer = NULL;
    char path[CLI_PATH_BYTES], what[CLI_TEXT_BYTES], age[CLI_TEXT_BYTES];
    if (cli_options_flag(cli, "since") || cli_options_flag(cli, "limit"))
        return cli_output_fail(cli, CLI_EXIT_USAGE, "it is one point: leave them out",
                               "points: --last-clean goes without --since and --limit");
    snprintf(what, sizeof what, "last clean point of %s", cli->operands[0]);
    cli_api_application_path(cli->operands[0], "/last-clean", path);
    enum cli_exit code = cli_api_call(cli, what, "GET", path, NULL, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    printf("lsn:%llu\n", (unsigned long long)cli_field_u64(answer, "lsn"));
    cli_output_note(cli, "that was %s; suspicious since %s", cli_field_age(answer, "time", age),
                    cli_field_text(answer, "suspicious_since", "?"));
    return CLI_EXIT_OK;
}

static enum cli_exit run(struct cli *cli)
{
    if (cli_options_flag(cli, "last-clean"))
        return last_clean(cli);

    _cleanup_json_ json_t *answer = NULL;
    _cleanup_free_ char *since = http_client_encode(cli_options_value(cli, "since", ""));
    char path[CLI_PATH_BYTES], suffix[3 * CLI_POINT_BYTES + 64], what[CLI_TEXT_BYTES];
    if (!since)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "points: out of memory");
    uint64_t limit;
    enum cli_exit usage = cli_points_limit(cli, POINTS_LIMIT_MAX, &limit);
    if (usage != CLI_EXIT_OK)
        return usage;
    snprintf(suffix, sizeof suffix, "/points?limit=%llu%s%s", (unsigned long long)limit, *since ? "&since=" : "", since);
    snprintf(what, sizeof what, "points of %s", cli->operands[0]);
    cli_api_application_path(cli->operands[0], suffix, path);
    enum cli_exit code = cli_api_call(cli, what, "GET", path, NULL, &answer);
    return code == CLI_EXIT_OK ? print(cli, answer) : code;
}

const struct cli_command cli_points = {
    .name = "points",
    .summary = "what happened when: tags, changes, rewinds, activity",
    .description = "Lists the moments of an application's history that have a name or a meaning, the\n"
                   "newest first: tags, changed manifests, rewinds, gaps, and periods of activity. Any\n"
                   "other moment between them can be opened as well, by its time or LSN; in thinned\n"
                   "history a time means the last point that was kept before it. Moments of a time in\n"
                   "which a volume was probably being encrypted are marked SUSPICIOUS; --last-clean names\n"
                   "the last point before that, alone, so that another command can take it.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION}, {0}},
    .options =
        (const struct cli_option[]){
            {"since", 0, CLI_KIND_POINT, "POINT", .help = "only what came after this point"},
            {"limit", 'n', CLI_KIND_NUMBER, "N", .help = "at most N of them (default 50; 100000 at most)"},
            {"last-clean", 0, CLI_KIND_NONE, NULL,
             .help = "only the last point before the newest suspicious stretch"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"tidemark points shop", "tidemark points shop --since -2h --limit 10",
                                      "tidemark points shop --last-clean", NULL},
    .run = run,
};
