/* SPDX-License-Identifier: Apache-2.0 */
/* A Recovery from its making to its end: what rewind, undo, clone, restore and diff share. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/units.h"
#include "cli/kubectl_internal.h"

#define POLL_MS 250u
#define TAKEN_UP_S 30u /* a controller that lives takes a Recovery up within a second */
#define PLAN_PARTS_MAX 1000u

static const char *phase_of(const json_t *recovery)
{
    return cli_field_text(json_object_get(recovery, "status"), "phase", "");
}

bool kubectl_recovery_has_ended(const json_t *recovery)
{
    static const char *const ended[] = {"Planned", "Completed", "Failed", "Cancelled", NULL};
    for (const char *const *e = ended; *e; e++)
        if (strcmp(phase_of(recovery), *e) == 0)
            return true;
    return false;
}

static struct kube_target target_of(const json_t *recovery)
{
    return (struct kube_target){.resource = &kubectl_recoveries,
                                .namespace = kube_object_namespace(recovery),
                                .name = kube_object_name(recovery)};
}

enum cli_exit kubectl_recovery_create(struct kubectl *k, const char *what, const char *namespace,
                                      const char *prefix, const json_t *spec, json_t **ret)
{
    struct error err = ERROR_INIT;
    const struct kube_target target = {.resource = &kubectl_recoveries, .namespace = namespace};
    _cleanup_json_ json_t *recovery = json_pack(
        "{s:s, s:s, s:{s:o, s:s}, s:O}", "apiVersion", "tidemark.io/v1alpha1", "kind", "Recovery", "metadata",
        "generateName", json_sprintf("%.40s-", prefix), "namespace", namespace, "spec", spec);
    if (!recovery)
        return cli_output_fail(k->cli, CLI_EXIT_FAILED, NULL, "%s: out of memory", what);
    if (kube_create(k->client, &target, recovery, ret, &err) < 0)
        return kubectl_fail(k, what, &err);
    return CLI_EXIT_OK;
}

/* ---- waiting ---- */

/* Ctrl-C ends the waiting, not the recovery. */
static volatile sig_atomic_t interrupted;
static void on_interrupt(int signal_number)
{
    interrupted = signal_number;
}

static void show(struct cli_progress *progress, const json_t *recovery)
{
    const json_t *status = json_object_get(recovery, "status");
    const json_t *step = json_object_get(status, "step");
    uint64_t wave = cli_field_u64(step, "wave"),
             waves = cli_field_u64(json_object_get(status, "plan"), "waves");
    const char *message = cli_field_text(status, "message", NULL);
    const char *phase = phase_of(recovery);
    bool waits = message && (strcmp(phase, "Pending") == 0 || strncmp(message, "waiting", 7) == 0);
    cli_progress_set(progress,
                     !*phase ? "not taken up yet"
                     : waits ? message
                             : cli_field_text(step, "name", phase),
                     wave, wave ? waves : 0, "waves");
}

/* No controller took it up: it must not begin some time later, when nobody expects it any more. */
static enum cli_exit give_up(struct kubectl *k, const char *what, const json_t *recovery)
{
    struct error err = ERROR_INIT;
    const struct kube_target target = target_of(recovery);
    const struct kube_delete_options options = {.uid = kube_object_uid(recovery),
                                                .version = kube_object_version(recovery)};
    int r = kube_delete(k->client, &target, &options, &err);
    return cli_output_fail(k->cli, CLI_EXIT_UNREACHABLE,
                           "`kubectl tidemark status` says what is wrong with the installation; kubectl -n "
                           "" KUBECTL_SYSTEM_NAMESPACE " get lease,pods shows who leads",
                           "%s: no controller took up the recovery %s within %u s%s", what,
                           kube_object_name(recovery), TAKEN_UP_S,
                           r == 0 ? "; it was taken away again, nothing was changed" : "");
}

static enum cli_exit look_again(struct kubectl *k, const char *what, json_t **recovery)
{
    struct error err = ERROR_INIT;
    const struct kube_target target = target_of(*recovery);
    json_t *now = NULL;
    int r = kube_get(k->client, &target, &now, &err);
    if (r == -ENOENT)
        return cli_output_fail(k->cli, CLI_EXIT_FAILED, NULL, "%s: the recovery %s was deleted meanwhile",
                               what, kube_object_name(*recovery));
    if (r == -EACCES || r == -EPERM)
        return kubectl_fail(k, what, &err);
    if (r == 0) { /* whatever else it was: the server may be restarting */
        json_decref(*recovery);
        *recovery = now;
    }
    return CLI_EXIT_OK;
}

enum cli_exit kubectl_recovery_wait(struct kubectl *k, const char *what, json_t **recovery)
{
    const struct sigaction action = {.sa_handler = on_interrupt};
    struct sigaction before;
    enum cli_exit code = CLI_EXIT_OK;
    uint64_t start_ns = clock_boottime_ns(clock_system());
    _cleanup_cli_progress_ struct cli_progress *progress = cli_progress_new(k->cli, what);
    sigaction(SIGINT, &action, &before);
    while (code == CLI_EXIT_OK && !kubectl_recovery_has_ended(*recovery)) {
        show(progress, *recovery);
        nanosleep(&(struct timespec){0, POLL_MS * 1000000l}, NULL);
        if (interrupted)
            break;
        code = look_again(k, what, recovery);
        if (code == CLI_EXIT_OK && !*phase_of(*recovery) &&
            clock_boottime_ns(clock_system()) - start_ns > TAKEN_UP_S * NS_PER_SECOND)
            code = give_up(k, what, *recovery);
    }
    sigaction(SIGINT, &before, NULL);
    if (interrupted) {
        cli_progress_free(take_ptr(progress));
        cli_output_note(
            k->cli,
            "no longer waiting; the recovery %s goes on in the cluster: `kubectl tidemark status` shows "
            "it, `kubectl tidemark cancel` ends it",
            kube_object_name(*recovery));
        return (enum cli_exit)(128 + interrupted);
    }
    return code;
}

/* ---- what came of it ---- */

static void add_lines(json_t *objects, const char *text)
{
    while (*text) {
        size_t length = strcspn(text, "\n");
        _cleanup_json_ json_t *line = NULL;
        struct error ignored = ERROR_INIT;
        if (length && json_parse("plan", text, length, &line, &ignored) == 0)
            json_array_append_new(objects,
                                  json_pack("{s:O?, s:O?, s:O*, s:O*, s:O*, s:O?}", "object",
                                            json_object_get(line, "o"), "action", json_object_get(line, "a"),
                                            "verdict", json_object_get(line, "v"), "reason",
                                            json_object_get(line, "r"), "reconciler", json_object_get(line, "by"), "wave", json_object_get(line, "w")));
        text += length + (text[length] == '\n');
    }
}

/* The plan stands in ConfigMaps beside the Recovery: NAME, NAME-1, ...; or, where those are refused, in its status. */
static int read_objects(struct kubectl *k, const json_t *recovery, json_t *objects, struct error *err)
{
    size_t i;
    json_t *line;
    json_array_foreach(json_object_get(kubectl_at(recovery, "status", "plan"), "objects"), i, line) add_lines(objects, json_string_value(line));
    const char *first = cli_field_text(kubectl_at(recovery, "status", "plan"), "configMap", NULL);
    for (unsigned part = 0; first && part < PLAN_PARTS_MAX; part++) {
        _cleanup_json_ json_t *map = NULL;
        char name[KUBECTL_NAME_BYTES];
        snprintf(name, sizeof name, part ? "%.240s-%u" : "%.240s", first, part);
        const struct kube_target target = {
            .resource = &kube_configmaps, .namespace = kube_object_namespace(recovery), .name = name};
        int r = kube_get(k->client, &target, &map, err);
        if (r < 0)
            return r == -ENOENT ? 0 : r;
        add_lines(objects, cli_field_text(json_object_get(map, "data"), "objects", ""));
    }
    return 0;
}

enum cli_exit kubectl_recovery_answer(struct kubectl *k, const char *what, const json_t *recovery,
                                      json_t **ret)
{
    static const char *const fields[] = {"phase",    "message",  "startTime",   "completionTime", "rtoMs",
                                         "point",    "before",   "plan",        "streams",        "timings",     "filling",
                                         "verdicts", "failures", "reconcilers", "conditions",     NULL};
    struct error err = ERROR_INIT;
    const json_t *status = json_object_get(recovery, "status");
    _cleanup_json_ json_t *objects = json_array(), *answer = json_object();
    json_object_set_new(answer, "recovery",
                        json_sprintf("%s/%s", kube_object_namespace(recovery), kube_object_name(recovery)));
    json_object_set(answer, "spec", json_object_get(recovery, "spec"));
    for (const char *const *field = fields; *field; field++)
        if (json_object_get(status, *field))
            json_object_set(answer, *field, json_object_get(status, *field));
    if (json_object_get(json_object_get(answer, "plan"), "objects")) { /* told below, as what stands in ConfigMaps */
        json_object_set_new(answer, "plan", json_copy(json_object_get(answer, "plan")));
        json_object_del(json_object_get(answer, "plan"), "objects");
    }
    int r = read_objects(k, recovery, objects, &err);
    if (r < 0)
        cli_output_note(k->cli, "%s: the list of objects cannot be read: %s", what, err.message);
    json_object_set(answer, "objects", objects);
    *ret = take_ptr(answer);
    return *ret ? CLI_EXIT_OK : cli_output_fail(k->cli, CLI_EXIT_FAILED, NULL, "%s: out of memory", what);
}

enum cli_exit kubectl_recovery_objects(const struct cli *cli, const json_t *answer, bool planned)
{
    static const char *const columns[] = {"OBJECT", "WHAT", "WHY", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    size_t i, same = 0, shown = 0;
    json_t *object;
    json_array_foreach(json_object_get(answer, "objects"), i, object)
    {
        const char *verdict =
            cli_field_text(object, planned ? "action" : "verdict", cli_field_text(object, "action", "?"));
        if (!table)
            break;
        if (strcmp(verdict, "same") == 0) {
            same++;
            continue;
        }
        cli_table_row(table);
        cli_table_field(table, object, "object");
        cli_table_cell(table, strcmp(verdict, "failed") == 0 ? CLI_COLOUR_RED : CLI_COLOUR_NONE, "%s",
                       verdict);
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_text(object, "reason", ""));
        shown++;
    }
    if (shown) {
        enum cli_exit code = cli_table_print(cli, table);
        if (code != CLI_EXIT_OK)
            return code;
    }
    if (same || !shown)
        cli_output_say(cli, "%zu objects are the same", same);
    return CLI_EXIT_OK;
}

static void say_volumes(const struct cli *cli, const json_t *answer)
{
    char text[UNITS_TEXT_BYTES];
    size_t i;
    json_t *volume;
    bool clone = strcmp(cli_field_text(json_object_get(answer, "spec"), "mode", ""), "clone") == 0;
    json_array_foreach(kubectl_at(answer, "plan", "volumes"), i, volume) cli_output_say(
        cli, "volume %s: %s %s", cli_field_text(volume, "claim", "?"),
        units_format_bytes(cli_field_u64(volume, "changedBytes"), text), clone ? "to copy" : "differ");
}

static void say_notes(const struct cli *cli, const json_t *answer)
{
    size_t i;
    json_t *note;
    json_array_foreach(kubectl_at(answer, "plan", "notes"), i, note) cli_output_say(cli, "note: %s", json_string_value(note));
}

/* Of a clone: what is used before it is copied. */
static void say_filling(const struct cli *cli, const json_t *answer)
{
    char left[UNITS_TEXT_BYTES], total[UNITS_TEXT_BYTES];
    const json_t *filling = json_object_get(answer, "filling");
    const char *recovery = cli_field_text(answer, "recovery", "NAMESPACE/NAME"), *slash = strchr(recovery, '/');
    if (!filling || json_object_get(filling, "endTime") || !slash)
        return;
    cli_output_say(cli, "  copying   %s of %s are left, behind its use; until then the history of the original is kept", units_format_bytes(cli_field_u64(filling, "leftBytes"), left),
                   units_format_bytes(cli_field_u64(filling, "totalBytes"), total));
    cli_output_say(cli, "            kubectl -n %.*s wait --for=condition=Filled --timeout=1h recovery/%s", (int)(slash - recovery), recovery, slash + 1);
}

static void say_reconcilers(const struct cli *cli, const json_t *answer)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(answer, "reconcilers"), i, one)
    {
        const char *state = cli_field_text(one, "state", "");
        if (!json_is_true(json_object_get(one, "reverts")) || strcmp(state, "Ignored") == 0)
            continue;
        bool suspended = strcmp(state, "ToSuspend") == 0 || strcmp(state, "Suspended") == 0;
        cli_output_say(cli, "%s %s would put the newer state back: %s", cli_field_text(one, "reconciler", "?"),
                       cli_field_text(one, "name", "?"),
                       strcmp(state, "ToSuspend") == 0 ? "it is suspended first"
                       : suspended                     ? "it is suspended, until Git is reverted and `kubectl tidemark resume`"
                       : strcmp(state, "Stopped") == 0 ? "but somebody has suspended it"
                                                       : cli_field_text(one, "remedy", ""));
    }
}

/* What was refused before anything was changed is 4 to a script, as of one host. */
static bool was_refused(const char *reason)
{
    static const char *const reasons[] = {"PointNotAvailable",
                                          "TransformFailed",
                                          "NamespaceMissing",
                                          "NamespaceTerminating",
                                          "DefinitionMissing",
                                          "StorageClassMissing",
                                          "ClassMissing",
                                          "ReconcilerWouldRevert",
                                          "QuotaExceeded",
                                          "VersionNotServed",
                                          "VolumesNotAvailable",
                                          "VolumeInUse",
                                          "ClaimExists",
                                          "ClaimTerminating",
                                          "NoSpace",
                                          "RequesterUnknown",
                                          "Forbidden",
                                          NULL};
    for (const char *const *r = reasons; *r; r++)
        if (strcmp(*r, reason) == 0)
            return true;
    return false;
}

static const char *remedy_of(const char *reason, const json_t *recovery, char text[CLI_TEXT_BYTES])
{
    const json_t *spec = json_object_get(recovery, "spec");
    if (strcmp(reason, "RequesterUnknown") == 0)
        return "Tidemark's admission webhook records who asks: see that it is installed and answers (the "
               "operator's guide, \"Trouble\")";
    if (strcmp(reason, "PointNotAvailable") == 0)
        return snprintf(text, CLI_TEXT_BYTES,
                        "`kubectl tidemark points %s/%s` lists the points, and says how far the history goes",
                        cli_field_text(spec, "sourceNamespace", kube_object_namespace(recovery)),
                        cli_field_text(spec, "application", "NAME")) > 0
                   ? text
                   : NULL;
    if (strcmp(reason, "ReconcilerWouldRevert") == 0)
        return "revert in Git or suspend the reconciler; --force goes on nevertheless";
    return NULL;
}

enum cli_exit kubectl_recovery_verdict(struct kubectl *k, const char *what, const json_t *recovery)
{
    const char *phase = phase_of(recovery);
    const char *reason = cli_field_text(kubectl_condition(recovery, "Ready"), "reason", "");
    char text[CLI_TEXT_BYTES];
    if (strcmp(phase, "Completed") == 0 || strcmp(phase, "Planned") == 0)
        return CLI_EXIT_OK;
    return cli_output_fail(
        k->cli, was_refused(reason) ? CLI_EXIT_REFUSED : CLI_EXIT_FAILED, remedy_of(reason, recovery, text),
        "%s: %s%s%s: %s", what, strcmp(phase, "Cancelled") == 0 ? "cancelled" : "failed",
        *reason && strcmp(reason, phase) != 0 ? ", " : "", strcmp(reason, phase) != 0 ? reason : "",
        cli_field_text(json_object_get(recovery, "status"), "message", "it gives no reason"));
}

/* ---- the whole ---- */

/* Volumes that the recovery did not touch are told: it is not what somebody expects. */
static void note_volumes(const struct kubectl *k, const struct kubectl_run *run, const json_t *answer)
{
    uint64_t total = cli_field_u64(json_object_get(run->papp, "status"), "volumesTotal");
    if (!total || json_array_size(json_object_get(answer, "streams")) ||
        json_array_size(kubectl_at(answer, "plan", "volumes")))
        return;
    cli_output_note(k->cli, "%s: the data of its %llu volumes %s%s", run->what, (unsigned long long)total,
                    strcmp(cli_field_text(run->spec, "mode", ""), "clone") == 0
                        ? "is not in the clone, whose volumes are empty"
                        : "stays as it is",
                    json_is_true(json_object_get(run->spec, "objectsOnly"))
                        ? ", as --objects-only asked"
                        : ": this recovery is about objects only");
}

/* The plan by a dry run, which is taken away again; *ret_point: what a relative point meant to it. */
static enum cli_exit plan(struct kubectl *k, const struct kubectl_run *run, json_t **ret_answer,
                          char ret_point[CLOCK_TEXT_BYTES])
{
    _cleanup_json_ json_t *recovery = NULL;
    _cleanup_json_ json_t *spec = json_copy(run->spec);
    struct error ignored = ERROR_INIT;
    uint64_t made_ns, ago_ns;
    const char *point = cli_field_text(spec, "point", "");
    json_object_set_new(spec, "dryRun", json_true());
    enum cli_exit code = kubectl_recovery_create(k, run->what, run->namespace, run->prefix, spec, &recovery);
    if (code != CLI_EXIT_OK)
        return code;
    code = kubectl_recovery_wait(k, run->what, &recovery);
    if (code == CLI_EXIT_OK)
        code = kubectl_recovery_answer(k, run->what, recovery, ret_answer);
    if (code == CLI_EXIT_OK)
        code = kubectl_recovery_verdict(k, run->what, recovery);
    ret_point[0] = '\0';
    if (*point == '-' && units_parse_duration(point + 1, &ago_ns, &ignored) == 0 &&
        clock_parse_rfc3339(cli_field_text(json_object_get(recovery, "metadata"), "creationTimestamp", ""),
                            &made_ns, &ignored) == 0)
        clock_format_rfc3339(made_ns - ago_ns, ret_point);
    if (kubectl_recovery_has_ended(recovery)) {
        const struct kube_target target = target_of(recovery);
        if (kube_delete(k->client, &target, NULL, &ignored) < 0)
            ignored = ERROR_INIT; /* what stays is a dry run in a list */
    }
    return code;
}

/* The moment that was asked for; the objects' own time is that of their last change before it. */
static const char *moment_of(const json_t *answer)
{
    const json_t *point = json_object_get(answer, "point");
    const char *streams = cli_field_text(point, "streams", "");
    return *streams >= '0' && *streams <= '9' ? streams : cli_field_text(point, "time", "the point");
}

static void print_plan(struct kubectl *k, const struct kubectl_run *run, const json_t *answer)
{
    const json_t *plan = json_object_get(answer, "plan");
    const char *note = cli_field_text(json_object_get(answer, "point"), "note", NULL);
    cli_output_say(k->cli, "Plan: %s to %s (objects: lsn:%llu)", run->what, moment_of(answer),
                   (unsigned long long)cli_field_u64(json_object_get(answer, "point"), "objectsLsn"));
    if (note)
        cli_output_say(k->cli, "note: %s", note);
    cli_output_say(
        k->cli,
        "%llu to create, %llu to change, %llu to recreate, %llu to delete, %llu the same, %llu left alone",
        (unsigned long long)cli_field_u64(plan, "create"), (unsigned long long)cli_field_u64(plan, "change"),
        (unsigned long long)cli_field_u64(plan, "recreate"),
        (unsigned long long)cli_field_u64(plan, "delete"), (unsigned long long)cli_field_u64(plan, "same"),
        (unsigned long long)cli_field_u64(plan, "skip"));
    say_volumes(k->cli, answer);
    say_notes(k->cli, answer);
    say_reconcilers(k->cli, answer);
    if (!k->cli->quiet)
        kubectl_recovery_objects(k->cli, answer, true);
    note_volumes(k, run, answer);
}

static void print_result(struct kubectl *k, const struct kubectl_run *run, const json_t *answer)
{
    static const char *const steps[] = {"stopMs", "dataMs", "objectsMs", "readyMs", NULL};
    const json_t *verdicts = json_object_get(answer, "verdicts"),
                 *timings = json_object_get(answer, "timings");
    char times[256] = "";
    size_t used = 0;
    cli_output_say(k->cli, "%s at %s", run->success, moment_of(answer));
    cli_output_say(
        k->cli,
        "  objects   %llu created, %llu changed, %llu deleted, %llu the same, %llu left alone, %llu failed",
        (unsigned long long)cli_field_u64(verdicts, "created"),
        (unsigned long long)cli_field_u64(verdicts, "changed"),
        (unsigned long long)cli_field_u64(verdicts, "deleted"),
        (unsigned long long)cli_field_u64(verdicts, "same"),
        (unsigned long long)cli_field_u64(verdicts, "skipped"),
        (unsigned long long)cli_field_u64(verdicts, "failed"));
    for (const char *const *step = steps; *step; step++)
        if (json_is_integer(json_object_get(timings, *step)) && used < sizeof times)
            used +=
                (size_t)snprintf(times + used, sizeof times - used, ", %.*s %llu ms", (int)strlen(*step) - 2,
                                 *step, (unsigned long long)cli_field_u64(timings, *step));
    cli_output_say(k->cli, "  RTO       %llu ms%s", (unsigned long long)cli_field_u64(answer, "rtoMs"),
                   times);
    say_notes(k->cli, answer);
    say_filling(k->cli, answer);
    if (run->hint)
        cli_output_say(k->cli, "%s", run->hint);
    note_volumes(k, run, answer);
}

static enum cli_exit run_and_wait(struct kubectl *k, const struct kubectl_run *run)
{
    _cleanup_json_ json_t *recovery = NULL, *answer = NULL;
    enum cli_exit code =
        kubectl_recovery_create(k, run->what, run->namespace, run->prefix, run->spec, &recovery);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli_options_flag(k->cli, "no-wait")) {
        _cleanup_json_ json_t *name =
            json_pack("{s:o}", "recovery", json_sprintf("%s/%s", run->namespace, kube_object_name(recovery)));
        if (k->cli->format != CLI_FORMAT_TABLE)
            return cli_output_value(k->cli, name);
        printf("%s/%s\n", run->namespace, kube_object_name(recovery));
        return CLI_EXIT_OK;
    }
    code = kubectl_recovery_wait(k, run->what, &recovery);
    if (code == CLI_EXIT_OK)
        code = kubectl_recovery_answer(k, run->what, recovery, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    if (k->cli->format != CLI_FORMAT_TABLE) {
        code = cli_output_value(k->cli, answer);
        enum cli_exit verdict = kubectl_recovery_verdict(k, run->what, recovery);
        return code == CLI_EXIT_OK ? verdict : code;
    }
    code = kubectl_recovery_verdict(k, run->what, recovery);
    if (code == CLI_EXIT_OK)
        print_result(k, run, answer);
    else if (!k->cli->quiet && json_array_size(json_object_get(answer, "failures")))
        kubectl_recovery_objects(k->cli, answer, false);
    return code;
}

enum cli_exit kubectl_recovery_run(struct kubectl *k, const struct kubectl_run *run)
{
    const struct cli *cli = k->cli;
    bool dry_run = cli_options_flag(cli, "dry-run");
    bool ask = !dry_run && !cli_options_flag(cli, "yes") && cli_output_can_ask(cli);
    if (dry_run || ask) {
        _cleanup_json_ json_t *answer = NULL;
        char point[CLOCK_TEXT_BYTES];
        enum cli_exit code = plan(k, run, &answer, point);
        if (dry_run && answer && cli->format != CLI_FORMAT_TABLE) {
            enum cli_exit written = cli_output_value(cli, answer);
            return code == CLI_EXIT_OK ? written : code;
        }
        if (code != CLI_EXIT_OK)
            return code;
        print_plan(k, run, answer);
        if (dry_run)
            return CLI_EXIT_OK;
        if (!cli_output_confirm(run->question))
            return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s: not confirmed, nothing was changed",
                                   run->what);
        if (*point) /* what was agreed to, however long the answer took */
            json_object_set_new(run->spec, "point", json_string(point));
    }
    return run_and_wait(k, run);
}

/* ---- those that there are ---- */

static int newer(const void *a, const void *b)
{
    const char *first =
        cli_field_text(json_object_get(*(json_t *const *)a, "metadata"), "creationTimestamp", "");
    const char *second =
        cli_field_text(json_object_get(*(json_t *const *)b, "metadata"), "creationTimestamp", "");
    int order = strcmp(second, first);
    /* Within a second by what they wrote themselves. */
    return order ? order
                 : strcmp(cli_field_text(json_object_get(*(json_t *const *)b, "status"), "startTime", ""),
                          cli_field_text(json_object_get(*(json_t *const *)a, "status"), "startTime", ""));
}

enum cli_exit kubectl_recoveries_of(struct kubectl *k, const char *what, const struct kubectl_member *member,
                                    bool ended, json_t **ret)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *items = NULL, *found = json_array();
    size_t i, count = 0;
    json_t *item;
    if (kubectl_list(k, &kubectl_recoveries, member->namespace, &items, &err) < 0)
        return kubectl_fail(k, what, &err);
    _cleanup_free_ json_t **sorted = calloc(json_array_size(items) + 1, sizeof *sorted);
    if (!sorted || !found)
        return cli_output_fail(k->cli, CLI_EXIT_FAILED, NULL, "%s: out of memory", what);
    json_array_foreach(items, i, item)
    {
        const json_t *spec = json_object_get(item, "spec");
        const char *source = cli_field_text(spec, "sourceNamespace", member->namespace);
        bool dry = json_is_true(json_object_get(spec, "dryRun"));
        if (strcmp(cli_field_text(spec, "application", ""), member->name) == 0 &&
            strcmp(source, member->namespace) == 0 && (ended ? !dry : !kubectl_recovery_has_ended(item)))
            sorted[count++] = item;
    }
    qsort(sorted, count, sizeof(json_t *), newer);
    for (i = 0; i < count; i++)
        json_array_append(found, sorted[i]);
    *ret = take_ptr(found);
    return CLI_EXIT_OK;
}
