/* SPDX-License-Identifier: Apache-2.0 */
/* Status: the first line says at once whether anything is wrong, and what. */
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/units.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

#define STATUS_WATCH_S 2

enum health { HEALTH_GOOD, HEALTH_UNDER_WAY, HEALTH_BAD };

static enum health health_of(const json_t *application)
{
    const char *state = cli_field_text(application, "state", "unknown");
    if (json_array_size(json_object_get(application, "alarms")) > 0)
        return HEALTH_BAD;
    if (strcmp(state, "protected") == 0)
        return HEALTH_GOOD;
    return strcmp(state, "resyncing") == 0 || strcmp(state, "seeding") == 0 || strcmp(state, "starting") == 0 ? HEALTH_UNDER_WAY : HEALTH_BAD;
}

static enum cli_colour colour_of(enum health health)
{
    return health == HEALTH_GOOD  ? CLI_COLOUR_GREEN
           : health == HEALTH_BAD ? CLI_COLOUR_RED
                                  : CLI_COLOUR_YELLOW;
}

/* "shop is suspended: journal full" of an application that is not well. */
static void describe(const json_t *application, char *text, size_t size)
{
    const json_t *resync = json_object_get(application, "resync"), *seeding = json_object_get(application, "seeding");
    if (!json_is_object(resync))
        resync = seeding;
    const char *alarm = json_string_value(json_array_get(json_object_get(application, "alarms"), 0));
    const char *why = cli_field_text(application, "message", alarm);
    size_t used = (size_t)snprintf(text, size, "%s is %s", cli_field_text(application, "name", "?"),
                                   cli_field_text(application, "state", "in an unknown state"));
    uint64_t total = cli_field_u64(resync, "total_bytes");
    if (used < size && total)
        used +=
            (size_t)snprintf(text + used, size - used, " (%u %%)",
                             (unsigned)(100.0 * (double)cli_field_u64(resync, "done_bytes") / (double)total));
    if (used < size && why)
        snprintf(text + used, size - used, ": %s", why);
}

/* Names are from elsewhere. */
static void put_clean(char *text)
{
    cli_output_clean(text);
    for (char *p = text; (p = strchr(p, '\n'));)
        *p = '?';
    fputs(text, stdout);
}

/* `left_out`: applications that are not among them because they could not be loaded. */
static void print_summary(const struct cli *cli, const json_t *applications, const json_t *left_out)
{
    size_t counts[3] = {0}, i, named = 0;
    json_t *application;
    char text[2 * ERROR_MESSAGE_BYTES];
    json_array_foreach(applications, i, application) counts[health_of(application)]++;
    counts[HEALTH_BAD] += json_array_size(left_out);
    size_t total = counts[HEALTH_GOOD] + counts[HEALTH_UNDER_WAY] + counts[HEALTH_BAD];
    enum health worst = counts[HEALTH_BAD]         ? HEALTH_BAD
                        : counts[HEALTH_UNDER_WAY] ? HEALTH_UNDER_WAY
                                                   : HEALTH_GOOD;
    fputs(cli_output_colour(cli->colour_out, colour_of(worst)), stdout);
    if (total == 0)
        printf("No application is protected: `tidemark apply -f FILE` adds one.");
    else if (worst == HEALTH_GOOD)
        printf(total == 1 ? "OK: 1 application, protected." : "OK: %zu applications, all protected.", total);
    else
        printf(worst == HEALTH_BAD ? "PROBLEM: " : "UNDER WAY: ");
    json_array_foreach(applications, i, application)
    {
        if (worst == HEALTH_GOOD || health_of(application) != worst)
            continue;
        describe(application, text, sizeof text);
        fputs(named++ ? "; " : "", stdout);
        put_clean(text);
    }
    json_array_foreach(left_out, i, application)
    {
        snprintf(text, sizeof text, "%s%s is left out and not protected: %s", named++ ? "; " : "",
                 cli_field_text(application, "name", "?"), cli_field_text(application, "message", "?"));
        put_clean(text);
    }
    if (worst != HEALTH_GOOD)
        printf(" (%zu of %zu applications)", counts[worst], total);
    printf("%s\n", cli_output_colour(cli->colour_out, CLI_COLOUR_NONE));
}

static enum cli_exit print_applications(const struct cli *cli, const json_t *applications)
{
    static const char *const columns[] = {"APPLICATION", "STATE",  ">LSN",   ">RPO", "HISTORY SINCE",
                                          ">JOURNAL",    ">QUOTA", ">VIEWS", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char text[CLI_TEXT_BYTES], duration[UNITS_TEXT_BYTES];
    size_t i;
    json_t *application;
    json_array_foreach(applications, i, application)
    {
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, application, "name");
        cli_table_cell(table, colour_of(health_of(application)), "%s",
                       cli_field_text(application, "state", "unknown"));
        cli_table_field(table, application, "lsn");
        if (json_is_number(json_object_get(application, "rpo_ms")))
            cli_table_cell(
                table, CLI_COLOUR_NONE, "%s",
                units_format_duration(
                    (uint64_t)(json_number_value(json_object_get(application, "rpo_ms")) * 1e6), duration));
        else
            cli_table_cell(table, CLI_COLOUR_NONE, "-");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_age(application, "oldest_time", text));
        cli_table_bytes(table, application, "journal_bytes");
        cli_table_bytes(table, application, "quota_bytes");
        cli_table_cell(table, CLI_COLOUR_NONE, "%zu", json_array_size(json_object_get(application, "views")));
    }
    return cli_table_print(cli, table);
}

static enum cli_exit print_volumes(const struct cli *cli, const json_t *applications)
{
    static const char *const columns[] = {"APPLICATION", "VOLUME",           ">SIZE", ">WRITTEN",
                                          "DEVICE",      "MOUNTED AT / NBD", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    size_t i, j;
    json_t *application, *volume;
    json_array_foreach(applications, i, application)
    {
        json_array_foreach(json_object_get(application, "volumes"), j, volume)
        {
            if (!table)
                break;
            cli_table_row(table);
            cli_table_field(table, application, "name");
            cli_table_field(table, volume, "name");
            cli_table_bytes(table, volume, "size_bytes");
            cli_table_bytes(table, volume, "written_bytes");
            cli_table_field(table, volume, "device");
            cli_table_field(table, volume,
                            json_is_string(json_object_get(volume, "mount")) ? "mount" : "nbd_uri");
        }
    }
    return cli_table_print(cli, table);
}

static void print_history(const json_t *history)
{
    char text[UNITS_TEXT_BYTES], age[CLI_TEXT_BYTES];
    size_t i;
    json_t *span;
    if (!json_is_object(history))
        return;
    printf("history: ");
    json_array_foreach(json_object_get(history, "spans"), i, span)
    {
        uint64_t seconds = cli_field_u64(span, "granularity_seconds");
        printf("%s%s%s from %s on", i ? ", " : "", seconds ? "a point each " : "every write",
               seconds ? units_format_exact_duration(seconds * NS_PER_SECOND, text) : "", cli_field_age(span, "from", age));
    }
    if (json_is_integer(json_object_get(history, "limit_seconds")))
        printf("; at most %s", units_format_exact_duration(cli_field_u64(history, "limit_seconds") * NS_PER_SECOND, text));
    if (json_is_integer(json_object_get(history, "quota_seconds")))
        printf("; the quota holds %s of every write at the present rate",
               units_format_duration(cli_field_u64(history, "quota_seconds") * NS_PER_SECOND, text));
    putchar('\n');
}

static void print_compressed(const json_t *application)
{
    char plain[UNITS_TEXT_BYTES], stored[UNITS_TEXT_BYTES];
    uint64_t plain_bytes = cli_field_u64(application, "compressed_plain_bytes");
    if (plain_bytes)
        printf("compressed: %s of the history take %s\n", units_format_bytes(plain_bytes, plain),
               units_format_bytes(cli_field_u64(application, "compressed_bytes"), stored));
}

static void print_seeding(const json_t *application)
{
    char done[UNITS_TEXT_BYTES], total[UNITS_TEXT_BYTES];
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(application, "volumes"), i, volume)
    {
        const json_t *seeding = json_object_get(volume, "seeding");
        if (json_is_object(seeding))
            printf("adopting volume %s: %s of %s are in the history; its points can be opened when all are\n",
                   cli_field_text(volume, "name", "?"), units_format_bytes(cli_field_u64(seeding, "done_bytes"), done),
                   units_format_bytes(cli_field_u64(seeding, "total_bytes"), total));
    }
}

static void print_filling(const json_t *application)
{
    char done[UNITS_TEXT_BYTES], total[UNITS_TEXT_BYTES];
    const json_t *filling = json_object_get(application, "filling");
    if (json_is_object(filling))
        printf("a clone that is still being copied: %s of %s; its original is needed until all is\n",
               units_format_bytes(cli_field_u64(filling, "done_bytes"), done),
               units_format_bytes(cli_field_u64(filling, "total_bytes"), total));
}

/* What only the page of one application has room for. */
static void print_details(const json_t *application)
{
    char text[CLI_TEXT_BYTES];
    size_t i;
    json_t *alarm;
    const json_t *rewind = json_object_get(application, "rewind");
    printf("\nlatest write %s; durable up to LSN %llu; history from LSN %llu (%s)\n",
           cli_field_age(application, "latest_time", text),
           (unsigned long long)cli_field_u64(application, "durable_lsn"),
           (unsigned long long)cli_field_u64(application, "oldest_lsn"),
           cli_field_text(application, "oldest_time", "-"));
    print_history(json_object_get(application, "history"));
    print_compressed(application);
    printf("acknowledgement mode %s, export %s, policy %s\n", cli_field_text(application, "ack", "-"),
           cli_field_text(application, "export", "-"), cli_field_text(application, "policy", "-"));
    const json_t *encryption = json_object_get(application, "encryption");
    if (json_is_object(encryption))
        printf("journal encrypted with key %s (%s)\n", cli_field_text(encryption, "key_id", "?"),
               cli_field_text(encryption, "key_file", "?"));
    if (json_is_object(rewind))
        printf("rewound to LSN %llu; %s still to be copied back behind it\n",
               (unsigned long long)cli_field_u64(rewind, "target_lsn"),
               units_format_bytes(cli_field_u64(rewind, "pending_bytes"), text));
    print_filling(application);
    print_seeding(application);
    if (json_is_string(json_object_get(application, "suspicious_since")))
        printf("suspicious since %s\n", cli_field_text(application, "suspicious_since", "?"));
    if (json_is_string(json_object_get(application, "operation")))
        printf("operation %s is under way\n", cli_field_text(application, "operation", "?"));
    json_array_foreach(json_object_get(application, "alarms"), i, alarm)
        printf("alarm: %s\n", json_string_value(alarm) ? json_string_value(alarm) : "?");
}

static enum cli_exit print(const struct cli *cli, const json_t *answer)
{
    const json_t *applications = json_object_get(answer, "applications");
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    print_summary(cli, applications, cli->operand_count ? NULL : json_object_get(answer, "left_out"));
    size_t i;
    json_t *warning;
    json_array_foreach(json_object_get(answer, "warnings"), i, warning)
        printf("warning: %s\n", json_string_value(warning) ? json_string_value(warning) : "?");
    if (json_array_size(applications) == 0)
        return CLI_EXIT_OK;
    fputc('\n', stdout);
    enum cli_exit code = print_applications(cli, applications);
    fputc('\n', stdout);
    if (code == CLI_EXIT_OK)
        code = print_volumes(cli, applications);
    if (cli->operand_count && code == CLI_EXIT_OK)
        print_details(json_array_get(applications, 0));
    return code;
}

static enum cli_exit run(struct cli *cli)
{
    char path[CLI_PATH_BYTES];
    bool watch = cli_options_flag(cli, "watch");
    snprintf(path, sizeof path, "/v1/status%s%s", cli->operand_count ? "?app=" : "",
             cli->operand_count ? cli->operands[0] : "");
    for (;;) {
        _cleanup_json_ json_t *answer = NULL;
        enum cli_exit code = cli_api_call(cli, "status", "GET", path, NULL, &answer);
        if (code != CLI_EXIT_OK)
            return code;
        if (watch && cli->format == CLI_FORMAT_TABLE && isatty(STDOUT_FILENO))
            fputs("\033[H\033[2J", stdout);
        if (watch && cli->format == CLI_FORMAT_YAML)
            fputs("---\n", stdout);
        code = print(cli, answer);
        if (code != CLI_EXIT_OK || !watch)
            return code;
        if (cli->format == CLI_FORMAT_TABLE)
            fputc('\n', stdout);
        if (fflush(stdout) != 0)
            return CLI_EXIT_FAILED;
        sleep(STATUS_WATCH_S);
    }
}

const struct cli_command cli_status = {
    .name = "status",
    .summary = "how the applications are: state, history, volumes",
    .description = "Shows all applications, or one in more detail. The first line says at once whether\n"
                   "anything is wrong, and what. RPO is what a loss of power now would cost: the age of\n"
                   "the oldest write that is acknowledged and not yet durable in the journal.\n"
                   "States: protected, seeding (what an adopted volume held is being copied to the\n"
                   "history), resyncing (comparing after a crash), suspended (writes go on, unjournaled),\n"
                   "starting, stopped, failed.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION, .optional = true}, {0}},
    .options =
        (const struct cli_option[]){
            {"watch", 'w', CLI_KIND_NONE, NULL, .help = "show it again every 2 s until interrupted"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"tidemark status", "tidemark status shop -o yaml",
                                      "tidemark status -o json | jq '.applications[].rpo_ms'", NULL},
    .run = run,
};
