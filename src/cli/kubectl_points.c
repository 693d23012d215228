/* SPDX-License-Identifier: Apache-2.0 */
/* points and tag of `kubectl tidemark`. What happened comes from the history itself; tags are Checkpoints,
 * and the moments before rewinds are of Recoveries. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/units.h"
#include "cli/kubectl_internal.h"

#define LIMIT_MAX 5000u /* HISTORY_POINTS_MAX of the controller */
#define POLL_MS 250u
#define TAG_WAIT_S 60u

/* ---- points ---- */

static void add_checkpoints(const json_t *items, const struct kubectl_member *member, json_t *points)
{
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item)
    {
        const json_t *spec = json_object_get(item, "spec"), *status = json_object_get(item, "status");
        const json_t *ready = kubectl_condition(item, "Ready");
        if (strcmp(cli_field_text(spec, "application", ""), member->name) != 0)
            continue;
        json_array_append_new(points, json_pack("{s:s, s:o, s:s*, s:O*, s:O*, s:s*}", "kind", "tag", "point",
                                                json_sprintf("tag:%s", kube_object_name(item)), "time",
                                                cli_field_text(status, "time", NULL), "objectsLsn",
                                                json_object_get(status, "objectsLsn"), "labels",
                                                json_object_get(spec, "labels"), "message",
                                                !ready ? "not taken yet"
                                                : kubectl_is(ready, "True")
                                                    ? NULL
                                                    : cli_field_text(ready, "message", "not ready")));
    }
}

/* A rewind is two points: what was before it, and what it went to. */
static void add_recoveries(const json_t *items, json_t *points)
{
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item)
    {
        const json_t *spec = json_object_get(item, "spec"), *status = json_object_get(item, "status");
        const char *before = cli_field_text(status, "before", NULL);
        if (strcmp(cli_field_text(spec, "mode", ""), "rewind") != 0 || !before)
            continue;
        json_array_append_new(points,
                              json_pack("{s:s, s:s, s:s*, s:o}", "kind", "before rewind", "point", before,
                                        "time", cli_field_text(status, "startTime", NULL), "message",
                                        json_sprintf("%s, to %s: %s", kube_object_name(item),
                                                     cli_field_text(spec, "point", "?"),
                                                     cli_field_text(status, "phase", "?"))));
    }
}

/* A Checkpoint that was not taken is no point, and must not hide one of its name. */
static bool has_point(const json_t *points, const char *text)
{
    size_t i;
    json_t *point;
    json_array_foreach(points, i, point)
    {
        if (strcmp(cli_field_text(point, "point", ""), text) == 0 && json_object_get(point, "time"))
            return true;
    }
    return false;
}

/* What the history says, beside the names that are there. Its tags outlive their Checkpoints, which go with
 * the namespace. */
static void add_history(const json_t *answer, bool named, json_t *points)
{
    size_t i;
    json_t *point;
    json_array_foreach(json_object_get(answer, "points"), i, point)
    {
        char tag[CLI_TEXT_BYTES];
        if (strcmp(cli_field_text(point, "kind", ""), "tag") == 0) {
            snprintf(tag, sizeof tag, "tag:%s", cli_field_text(point, "name", ""));
            if (has_point(points, tag))
                continue;
            json_object_set_new(point, "point", json_string(tag));
        } else if (named) {
            continue;
        }
        json_array_append(points, point);
    }
}

static int newer(const void *a, const void *b)
{
    return strcmp(cli_field_text(*(json_t *const *)b, "time", "~"),
                  cli_field_text(*(json_t *const *)a, "time", "~"));
}

/* Newest first, at most `limit`. */
static json_t *sort(const json_t *points, size_t limit)
{
    size_t count = json_array_size(points);
    _cleanup_free_ json_t **sorted = calloc(count + 1, sizeof *sorted);
    json_t *result = json_array();
    for (size_t i = 0; sorted && i < count; i++)
        sorted[i] = json_array_get(points, i);
    if (sorted)
        qsort(sorted, count, sizeof *sorted, newer);
    for (size_t i = 0; sorted && i < count && i < limit; i++)
        json_array_append(result, sorted[i]);
    return result;
}

/* "data, wal", "objects"; "" of what has none. */
static const char *describe_place(const json_t *point, char text[CLI_TEXT_BYTES])
{
    size_t i, used = 0;
    json_t *claim;
    snprintf(text, CLI_TEXT_BYTES, "%s",
             json_object_get(point, "claims") ? "" : cli_field_text(point, "of", ""));
    json_array_foreach(json_object_get(point, "claims"), i, claim)
    {
        if (used < CLI_TEXT_BYTES)
            used += (size_t)snprintf(text + used, CLI_TEXT_BYTES - used, "%s%s", i ? ", " : "",
                                     json_string_value(claim));
    }
    return text;
}

static void put_remarks(struct cli_table *table, const json_t *point)
{
    char text[CLI_TEXT_BYTES] = "", bytes[UNITS_TEXT_BYTES];
    size_t used = 0;
    const char *key;
    json_t *value;
    bool suspicious = json_is_true(json_object_get(point, "suspicious"));
    if (cli_field_u64(point, "writes"))
        used = (size_t)snprintf(text, sizeof text, "%llu writes, %s",
                                (unsigned long long)cli_field_u64(point, "writes"),
                                units_format_bytes(cli_field_u64(point, "bytes"), bytes));
    else if (strcmp(cli_field_text(point, "kind", ""), "tag") != 0)
        used =
            (size_t)snprintf(text, sizeof text, "%s%s%s", cli_field_text(point, "name", ""),
                             json_is_true(json_object_get(point, "deleted")) ? " deleted" : "",
                             json_is_true(json_object_get(point, "hidden")) ? "(you may not see what)" : "");
    if (suspicious && used < sizeof text)
        used += (size_t)snprintf(text + used, sizeof text - used, "%sSUSPICIOUS", used ? " " : "");
    json_object_foreach(json_object_get(point, "labels"), key, value)
    {
        if (used < sizeof text)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s=%s", used ? " " : "", key,
                                     json_string_value(value) ? json_string_value(value) : "");
    }
    const char *message = cli_field_text(point, "message", "");
    cli_table_cell(table, suspicious ? CLI_COLOUR_RED : CLI_COLOUR_NONE, "%s%s%s", message,
                   *text && *message ? " " : "", text);
}

static enum cli_exit print(const struct cli *cli, const json_t *answer)
{
    static const char *const columns[] = {"POINT", "TIME", "AGE", "KIND", "OF", "REMARKS", NULL};
    const json_t *points = json_object_get(answer, "points");
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char age[CLI_TEXT_BYTES], place[CLI_TEXT_BYTES];
    size_t i;
    json_t *point;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    if (json_object_get(answer, "oldestTime"))
        cli_output_say(
            cli, "Every write since %s (%s) is a point, by its time or as -90s; the newest that are listed:",
            cli_field_text(answer, "oldestTime", "?"), cli_field_age(answer, "oldestTime", age));
    else
        cli_output_say(cli,
                       "Every moment of the history is a point, by its time or as -90s; points with a name:");
    json_array_foreach(points, i, point)
    {
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, point, "point");
        cli_table_field(table, point, "time");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_age(point, "time", age));
        cli_table_field(table, point, "kind");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", describe_place(point, place));
        put_remarks(table, point);
    }
    return cli_table_print(cli, table);
}

/* Names alone are told when nobody can be asked, or nothing else was asked for. */
static enum cli_exit ask_history(struct kubectl *k, const char *what, const struct kubectl_member *member,
                                 uint64_t limit, json_t **ret)
{
    const struct cli *cli = k->cli;
    struct error err = ERROR_INIT;
    const char *since = cli_options_value(cli, "since", NULL);
    _cleanup_json_ json_t *question =
        json_pack("{s:s, s:I, s:s*, s:o*}", "query", "points", "limit",
                  (json_int_t)limit, "since", since, "named",
                  cli_options_flag(cli, "named") ? json_true() : NULL);
    int r = question ? kubectl_history_try(k, what, member, question, ret, &err)
                     : error_set(&err, -ENOMEM, "out of memory");
    if (r == 0)
        return CLI_EXIT_OK;
    if (since || r == -EINVAL || r == -ERANGE)
        return kubectl_history_fail(k, what, member, &err);
    cli_output_note(cli, "%s: only those with a name: %s", what, err.message);
    return CLI_EXIT_OK;
}

/* --since is of names, too. */
static void drop_older(json_t *points, const char *since)
{
    size_t i = json_array_size(points);
    while (i-- > 0)
        if (strcmp(cli_field_text(json_array_get(points, i), "time", "~"), since) < 0)
            json_array_remove(points, i);
}

/* The point alone on stdout, so that it can be put into another command. */
static enum cli_exit last_clean(struct kubectl *k)
{
    const struct cli *cli = k->cli;
    _cleanup_json_ json_t *papp = NULL, *answer = NULL, *question = json_pack("{s:s}", "query", "lastClean");
    struct kubectl_member member;
    struct error err = ERROR_INIT;
    char what[3 * CLI_TEXT_BYTES], age[CLI_TEXT_BYTES];
    if (cli_options_flag(cli, "since") || cli_options_flag(cli, "limit") || cli_options_flag(cli, "named"))
        return cli_output_fail(cli, CLI_EXIT_USAGE, "it is one point: leave them out",
                               "points: --last-clean goes without --since, --limit and --named");
    kubectl_member_of(k, cli->operands[0], &member);
    snprintf(what, sizeof what, "last clean point of %s/%s", member.namespace, member.name);
    enum cli_exit code = kubectl_history_find(k, what, &member, &papp);
    if (code == CLI_EXIT_OK && kubectl_history_try(k, what, &member, question, &answer, &err) < 0)
        code = kubectl_history_fail(k, what, &member, &err);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    printf("%s\n", cli_field_text(answer, "point", "?"));
    cli_output_note(cli, "that was %s; suspicious since %s", cli_field_age(answer, "time", age),
                    cli_field_text(answer, "suspiciousSince", "?"));
    return CLI_EXIT_OK;
}

static enum cli_exit run_points(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k = {0};
    _cleanup_json_ json_t *papp = NULL, *checkpoints = NULL, *recoveries = NULL, *points = json_array(),
                          *answer = NULL, *history = NULL;
    struct kubectl_member member;
    struct error err = ERROR_INIT;
    char what[3 * CLI_TEXT_BYTES];
    uint64_t limit;
    enum cli_exit code = cli_points_limit(cli, LIMIT_MAX, &limit);
    if (code == CLI_EXIT_OK)
        code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli_options_flag(cli, "last-clean"))
        return last_clean(&k);
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "points of %s/%s", member.namespace, member.name);
    code = kubectl_history_find(&k, what, &member, &papp);
    if (code == CLI_EXIT_OK &&
        kubectl_list(&k, &kubectl_checkpoints, member.namespace, &checkpoints, &err) < 0)
        code = kubectl_fail(&k, what, &err);
    if (code == CLI_EXIT_OK)
        code = kubectl_recoveries_of(&k, what, &member, true, &recoveries);
    if (code == CLI_EXIT_OK)
        code = ask_history(&k, what, &member, limit, &history);
    if (code != CLI_EXIT_OK)
        return code;
    add_checkpoints(checkpoints, &member, points);
    add_recoveries(recoveries, points);
    if (json_object_get(history, "sinceTime"))
        drop_older(points, cli_field_text(history, "sinceTime", ""));
    add_history(history, cli_options_flag(cli, "named"), points);
    const json_t *status = json_object_get(papp, "status");
    const char *oldest = cli_field_text(
        status, "oldestTime",
        cli_field_text(json_object_get(status, "objects"), "oldestTime",
                       papp ? NULL : cli_field_text(history, "oldestTime", NULL)));
    bool damaged = json_is_true(json_object_get(history, "damaged"));
    answer = json_pack(
        "{s:o, s:s*, s:O*, s:o, s:b}", "application", json_sprintf("%s/%s", member.namespace, member.name),
        "oldestTime", oldest, "streams", json_object_get(history, "streams"), "points",
        sort(points, (size_t)limit), "damaged", damaged);
    if (damaged)
        cli_output_note(cli, "%s: part of the history is damaged: what was in it is not listed", what);
    return answer ? print(cli, answer)
                  : cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s: out of memory", what);
}

const struct cli_command kubectl_points = {
    .name = "points",
    .summary = "what happened when, and how far back it goes",
    .description = "Tells how far the history goes back, and lists its moments, the newest first: tags,\n"
                   "the moments before rewinds, changed objects, the seconds in which claims were written\n"
                   "to, and gaps. Any moment between them is a point as well, by its time or as -90s.\n"
                   "Seconds in which a volume was probably being encrypted are marked SUSPICIOUS;\n"
                   "--last-clean prints the last point before that, alone, so that another command can\n"
                   "take it. The list comes from the history itself, and is not stored in the cluster.",
    .operands = (const struct cli_operand[]){{"NAMESPACE/NAME", .kind = CLI_KIND_MEMBER}, {0}},
    .options =
        (const struct cli_option[]){
            {"limit", 0, CLI_KIND_NUMBER, "N", .help = "at most N of them (default 50; 5000 at most)"},
            {"since", 0, CLI_KIND_POINT, "POINT", .help = "only what came after this point"},
            {"named", 0, CLI_KIND_NONE, NULL, .help = "only tags and the moments before rewinds"},
            {"last-clean", 0, CLI_KIND_NONE, NULL,
             .help = "only the last point before the newest suspicious stretch"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark points shop/shop --since -10m",
                                      "kubectl tidemark points shop/shop --limit 5 -o json", NULL},
    .run = run_points,
};

/* ---- tag ---- */

static json_t *labels_of(const struct cli *cli)
{
    json_t *labels = json_object();
    const char *label;
    for (size_t i = 0; (label = cli_options_nth(cli, "label", i)); i++) {
        char key[CLI_NAME_BYTES];
        const char *equals = strchr(label, '=');
        snprintf(key, sizeof key, "%.*s", (int)(equals - label), label);
        if (json_object_set_new(labels, key, json_string(equals + 1)) < 0) {
            json_decref(labels);
            return NULL;
        }
    }
    return labels;
}

/* Until the controller has said what it became. */
static enum cli_exit wait_for_tag(struct kubectl *k, const char *what, const struct kube_target *target,
                                  json_t **checkpoint)
{
    struct error err = ERROR_INIT;
    uint64_t start_ns = clock_boottime_ns(clock_system());
    _cleanup_cli_progress_ struct cli_progress *progress = cli_progress_new(k->cli, what);
    for (;;) {
        const json_t *ready = kubectl_condition(*checkpoint, "Ready");
        json_t *now = NULL;
        if (kubectl_is(ready, "True"))
            return CLI_EXIT_OK;
        /* -EAGAIN of the journal passes by itself; the rest does not. */
        if (kubectl_is(ready, "False") && strcmp(cli_field_text(ready, "reason", ""), "Pending") != 0) {
            char remedy[2 * CLI_TEXT_BYTES];
            cli_progress_free(take_ptr(progress));
            snprintf(remedy, sizeof remedy, "`kubectl delete checkpoint -n %s %s` takes it away, and the name can be given again",
                     target->namespace, target->name);
            return cli_output_fail(k->cli, CLI_EXIT_FAILED, remedy, "%s: %s: %s", what, cli_field_text(ready, "reason", "?"),
                                   cli_field_text(ready, "message", "no reason"));
        }
        if (clock_boottime_ns(clock_system()) - start_ns > TAG_WAIT_S * NS_PER_SECOND) {
            cli_progress_free(take_ptr(progress));
            return cli_output_fail(
                k->cli, CLI_EXIT_UNREACHABLE,
                "`kubectl tidemark status` says what is wrong with the installation",
                "%s: no controller has taken the Checkpoint up within %u s; it may do so later", what,
                TAG_WAIT_S);
        }
        cli_progress_set(progress, "waiting for the controller", 0, 0, "");
        nanosleep(&(struct timespec){0, POLL_MS * 1000000l}, NULL);
        int r = kube_get(k->client, target, &now, &err);
        if (r == -ENOENT || r == -EACCES) {
            cli_progress_free(take_ptr(progress));
            return kubectl_fail(k, what, &err);
        }
        if (r == 0) {
            json_decref(*checkpoint);
            *checkpoint = now;
        }
    }
}

static enum cli_exit run_tag(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *papp = NULL, *checkpoint = NULL, *made = NULL, *labels = labels_of(cli);
    struct kubectl_member member;
    struct error err = ERROR_INIT;
    const char *name = cli->operands[1];
    char what[3 * CLI_TEXT_BYTES];
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "tag %s/%s %s", member.namespace, member.name, name);
    code = kubectl_find(&k, what, &member, &papp);
    if (code != CLI_EXIT_OK)
        return code;
    checkpoint =
        labels ? json_pack("{s:s, s:s, s:{s:s, s:s}, s:{s:s, s:O}}", "apiVersion", "tidemark.io/v1alpha1",
                           "kind", "Checkpoint", "metadata", "name", name, "namespace", member.namespace,
                           "spec", "application", member.name, "labels", labels)
               : NULL;
    if (!checkpoint)
        return cli_output_fail(cli, CLI_EXIT_FAILED, "labels are UTF-8", "%s: cannot build the request",
                               what);
    if (cli_options_flag(cli, "consistent"))
        json_object_set_new(json_object_get(checkpoint, "spec"), "consistent", json_true());
    const struct kube_target all = {.resource = &kubectl_checkpoints, .namespace = member.namespace};
    const struct kube_target target = {
        .resource = &kubectl_checkpoints, .namespace = member.namespace, .name = name};
    int r = kube_create(k.client, &all, checkpoint, &made, &err);
    if (r == -EEXIST)
        return cli_output_fail(cli, CLI_EXIT_REFUSED,
                               "`kubectl tidemark points` lists the tags; a name can be given once",
                               "%s: there is a tag of this name", what);
    if (r < 0)
        return kubectl_fail(&k, what, &err);
    code = wait_for_tag(&k, what, &target, &made);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, made);
    cli_output_say(cli, "%s/%s: tag:%s is %s", member.namespace, member.name, name,
                   cli_field_text(json_object_get(made, "status"), "time", "-"));
    return CLI_EXIT_OK;
}

const struct cli_command kubectl_tag = {
    .name = "tag",
    .summary = "give this moment a name",
    .description = "Makes a Checkpoint, so that tag:NAME is a point, and waits until the controller has\n"
                   "taken it. NAME is that of an object: small letters, digits, '-' and '.'. It can be\n"
                   "given once in a namespace.",
    .operands = (const struct cli_operand[]){{"NAMESPACE/NAME", .kind = CLI_KIND_MEMBER},
                                             {"NAME", .kind = CLI_KIND_TAG},
                                             {0}},
    .options =
        (const struct cli_option[]){
            {"label", 'l', CLI_KIND_LABEL, "KEY=VALUE", .help = "a label that is shown with it",
             .repeat = true},
            {"consistent", 0, CLI_KIND_NONE, NULL, .help = "run the policy's hooks first"},
            {0},
        },
    .formats = true,
    .examples =
        (const char *const[]){"kubectl tidemark tag shop/shop before-migration",
                              "kubectl tidemark tag shop/shop release-42 --label commit=1a2b3c", NULL},
    .run = run_tag,
};
