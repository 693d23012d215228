/* SPDX-License-Identifier: Apache-2.0 */
/* `rewind` and what `undo` shares with it: plan, question, result. */
#include "cli/rewind_internal.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "lib/json.h"

static void print_manifests(const struct cli *cli, const json_t *answer)
{
    size_t i;
    json_t *manifest;
    json_array_foreach(json_object_get(answer, "manifests"), i, manifest)
        cli_output_say(cli, "  manifest  %s: %s", cli_field_text(manifest, "name", "?"),
                       cli_field_text(manifest, "change", "?"));
}

static void print_lifecycle(const struct cli *cli, const json_t *plan, const char *step)
{
    size_t i, j;
    json_t *command, *word;
    json_array_foreach(json_object_get(json_object_get(plan, "lifecycle"), step), i, command)
    {
        char line[512] = "";
        size_t used = 0;
        if (json_is_string(command))
            used = (size_t)snprintf(line, sizeof line, " %s", json_string_value(command));
        json_array_foreach(command, j, word)
        {
            if (used < sizeof line)
                used += (size_t)snprintf(line + used, sizeof line - used, " %s",
                                         json_string_value(word) ? json_string_value(word) : "?");
        }
        cli_output_say(cli, "  %-8s %s", step, line);
    }
}

/* What it takes on the disks before it is copied back, and what there is. */
static void print_space(const struct cli *cli, const json_t *plan)
{
    size_t i;
    json_t *disk;
    json_array_foreach(json_object_get(plan, "space"), i, disk)
    {
        char needed[UNITS_TEXT_BYTES], there[UNITS_TEXT_BYTES];
        cli_output_say(cli, "  space     %s of %s on the disk of %s", units_format_bytes(cli_field_u64(disk, "needed_bytes"), needed),
                       units_format_bytes(cli_field_u64(disk, "free_bytes"), there), cli_field_text(disk, "disk_of", "?"));
    }
    const char *refusal = cli_field_text(plan, "refusal", NULL);
    if (refusal)
        cli_output_say(cli, "  refused   %s", refusal);
}

static void print_plan(const struct cli *cli, const char *application, const json_t *plan)
{
    char volumes[CLI_TEXT_BYTES];
    const char *note = cli_field_text(plan, "note", NULL);
    cli_output_say(cli, "Plan: %s goes from LSN %llu back to LSN %llu, %s", application,
                   (unsigned long long)cli_field_u64(plan, "lsn"),
                   (unsigned long long)cli_field_u64(plan, "target_lsn"),
                   cli_field_text(plan, "target_time", "-"));
    if (note)
        cli_output_say(cli, "  note      %s", note);
    print_lifecycle(cli, plan, "stop");
    cli_output_say(cli, "  volumes   %s change", cli_field_volumes(plan, "changed_bytes", volumes));
    print_space(cli, plan);
    print_manifests(cli, plan);
    print_lifecycle(cli, plan, "start");
    print_lifecycle(cli, plan, "probe");
}

static void print_result(const struct cli *cli, const char *application, const json_t *result)
{
    static const char *const steps[] = {"stop_ms",      "engine_ms", "mount_ms",
                                        "manifests_ms", "start_ms",  "probe_ms",
                                        "rewind_ms",    "total_ms",  NULL};
    char volumes[CLI_TEXT_BYTES], times[512] = "";
    size_t used = 0;
    cli_output_say(cli, "%s is as it was at LSN %llu, %s", application,
                   (unsigned long long)cli_field_u64(result, "target_lsn"),
                   cli_field_text(result, "target_time", "-"));
    cli_output_say(cli, "  changed   %s", cli_field_volumes(result, "changed_bytes", volumes));
    print_manifests(cli, result);
    for (const char *const *step = steps; *step; step++) {
        const json_t *time_ms = json_object_get(result, *step);
        if (json_is_number(time_ms) && used < sizeof times)
            used += (size_t)snprintf(times + used, sizeof times - used, "%s%.*s %.0f ms", used ? ", " : "",
                                     (int)(strlen(*step) - 3), *step, json_number_value(time_ms));
    }
    cli_output_say(cli, "  measured  %s", times);
    if (json_is_number(json_object_get(result, "rpo_ms")))
        cli_output_say(cli, "  RPO       %.0f ms between the point asked for and the last write before it",
                       json_number_value(json_object_get(result, "rpo_ms")));
    cli_output_say(cli, "`tidemark undo %s` brings the newer state back (it is LSN %llu).", application,
                   (unsigned long long)cli_field_u64(result, "lsn"));
}

/* The plan, of an answer to dry_run; on a failure its exit code has been told. */
static enum cli_exit get_plan(const struct cli *cli, const char *what, const char *path, json_t *body,
                              json_t **ret_plan)
{
    _cleanup_json_ json_t *answer = NULL;
    json_object_set_new(body, "dry_run", json_true());
    enum cli_exit code = cli_api_operate(cli, what, "POST", path, body, &answer);
    json_object_set_new(body, "dry_run", json_false());
    if (code != CLI_EXIT_OK)
        return code;
    json_t *plan = json_object_get(answer, "plan");
    *ret_plan = json_incref(plan ? plan : answer);
    return CLI_EXIT_OK;
}

enum cli_exit cli_rewind_perform(const struct cli *cli, const char *verb, json_t *body)
{
    _cleanup_json_ json_t *plan = NULL;
    _cleanup_json_ json_t *result = NULL;
    char path[CLI_PATH_BYTES], suffix[16], what[CLI_TEXT_BYTES], question[2 * CLI_TEXT_BYTES];
    const char *application = cli->operands[0];
    bool dry_run = cli_options_flag(cli, "dry-run");
    bool ask = !dry_run && !cli_options_flag(cli, "yes") && cli_output_can_ask(cli);
    snprintf(what, sizeof what, "%s %s", verb, application);
    snprintf(suffix, sizeof suffix, "/%s", verb);
    cli_api_application_path(application, suffix, path);
    if (dry_run || ask) {
        enum cli_exit code = get_plan(cli, what, path, body, &plan);
        if (code != CLI_EXIT_OK)
            return code;
        if (dry_run && cli->format != CLI_FORMAT_TABLE)
            return cli_output_value(cli, plan);
        if (dry_run || cli->format == CLI_FORMAT_TABLE)
            print_plan(cli, application, plan);
        if (dry_run)
            return CLI_EXIT_OK;
        snprintf(question, sizeof question, "%s %s now?",
                 strcmp(verb, "undo") == 0 ? "Undo the last rewind of" : "Rewind", application);
        if (!cli_output_confirm(question))
            return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s: not confirmed, nothing was changed",
                                   what);
    }
    enum cli_exit code = cli_api_operate(cli, what, "POST", path, body, &result);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, result);
    print_result(cli, application, result);
    return CLI_EXIT_OK;
}

static enum cli_exit run(struct cli *cli)
{
    const char *to = cli_options_value(cli, "to", "");
    _cleanup_json_ json_t *body = json_pack("{s:s,s:b}", "to", to, "dry_run", 0);
    if (!body)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "rewind: out of memory");
    return cli_rewind_perform(cli, "rewind", body);
}

const struct cli_command cli_rewind = {
    .name = "rewind",
    .summary = "put the whole application back to a point, in place",
    .description = "Stops the application by its lifecycle commands, puts its volumes and manifests to\n"
                   "the point, starts and probes it, and tells the measured times. The volumes serve\n"
                   "the old state at once; changed blocks are copied back behind it. The newer state\n"
                   "stays in the journal: undo brings it back, and so does another rewind. On a\n"
                   "terminal it shows the plan and asks first.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION}, {0}},
    .options =
        (const struct cli_option[]){
            {"to", 0, CLI_KIND_POINT, "POINT", .help = "where to go back to", .required = true},
            {"dry-run", 0, CLI_KIND_NONE, NULL, .help = "show the plan, change nothing"},
            {"yes", 'y', CLI_KIND_NONE, NULL, .help = "do not ask"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"tidemark rewind shop --to -90s --dry-run",
                                      "tidemark rewind shop --to tag:before-migration",
                                      "tidemark rewind shop --to 2026-11-21T02:04:46.5Z --yes -o json", NULL},
    .run = run,
};
