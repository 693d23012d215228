/* SPDX-License-Identifier: Apache-2.0 */
/* Rewind and undo of an application: workload, volumes, manifests.
 *
 * The operation log is operation.json in the application's directory:
 * {"id","kind","to","step","target_lsn","before_lsn", "plan",...}. A step is written there before it is taken
 * (U2); each can be taken again. The engine's rewind is atomic, and a rewind record after before_lsn tells
 * that it was done.
 *
 * U5  While nobody knows whether the volumes were rewound (the engine was asked, and does not answer any
 * more), the log stays, the volumes are not mounted and manifests are not journaled: it is carried on when
 * the engine answers again, by this `up` or the next.
 * U6  What is rewound to is pinned while the workload is stopped for it, which may take long: until then the quota or thinning would
 * take it away. The pin ends with this process at the latest. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "base/units.h"
#include "control/control_internal.h"
#include "control/mounts.h"
#include "lib/http_client.h"

enum {
    STEP_RESOLVE,
    STEP_STOP,
    STEP_UNMOUNT,
    STEP_VOLUMES,
    STEP_MOUNT,
    STEP_MANIFESTS,
    STEP_START,
    STEP_PROBE,
    STEP_COUNT
};
const char *const rewind_steps[] = {"resolve the point",
                                    "stop the workload",
                                    "unmount",
                                    "rewind the volumes",
                                    "mount",
                                    "manifests",
                                    "start the workload",
                                    "probe",
                                    NULL};
/* In the operation log. */
static const char *const step_keys[STEP_COUNT] = {"resolve", "stop",      "unmount", "volumes",
                                                  "mount",   "manifests", "start",   "probe"};

struct rewinding {
    struct application *application;
    struct operation *operation;
    const char *to; /* NULL: undo */
    bool continued; /* from the operation log */
    bool unsettled; /* U5: the log is kept */
    json_t *log;
    json_t *changes; /* of manifests */
    uint64_t target_lsn;
    int pin_fd; /* the lock of the pin `pin` (U6); -1: there is none */
    char pin[CONTROL_ID_BYTES];
    double ms[STEP_COUNT];
    uint64_t started_ns;
};

static json_t *engine_body(const char *to, uint64_t lsn, bool dry_run)
{
    if (!to)
        return json_pack("{s:b}", "dry_run", dry_run);
    return lsn ? json_pack("{s:o, s:b}", "point", json_sprintf("lsn:%llu", (unsigned long long)lsn),
                           "dry_run", dry_run)
               : json_pack("{s:s, s:b}", "point", to, "dry_run", dry_run);
}

/* The same, to be carried out only if it was not yet: the engine answers with a rewind that it recorded after
 * `after`. */
static json_t *engine_body_once(const struct rewinding *w)
{
    json_t *body = engine_body(w->to, w->target_lsn, false), *after = json_object_get(w->log, "before_lsn");
    if (after)
        json_object_set(body, "after", after);
    return body;
}

static int load_objects(const struct application *application, uint64_t lsn, json_t **ret, struct error *err)
{
    char path[64];
    snprintf(path, sizeof path, "/v1/objects?point=lsn:%llu", (unsigned long long)lsn);
    return application_call(application, "GET", path, NULL, CONTROL_CALL_TIMEOUT_MS, ret, err);
}

static int restore_manifests(const struct application *application, uint64_t lsn, bool dry_run,
                             json_t **ret_changes, struct error *err)
{
    _cleanup_json_ json_t *answer = NULL;
    if (!application->spec->manifests) {
        *ret_changes = json_array();
        return 0;
    }
    int r = load_objects(application, lsn, &answer, err);
    if (r < 0)
        return r;
    return manifests_restore(application->spec->manifests, json_object_get(answer, "objects"), dry_run,
                             ret_changes, err);
}

int rewind_plan(struct application *application, const char *to, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = NULL, *resolved = NULL, *answer = NULL;
    json_t *changes = NULL;
    uint64_t target = 0;
    int r = 0;
    if (to) {
        _cleanup_json_ json_t *point = json_pack("{s:s}", "point", to);
        r = application_call(application, "POST", "/v1/resolve", point, CONTROL_CALL_TIMEOUT_MS, &resolved,
                             err);
        if (r == 0)
            r = json_get_u64(resolved, "lsn", &target, err);
    }
    if (r < 0)
        return r;
    body = engine_body(to, target, true);
    r = application_call(application, "POST", to ? "/v1/rewind" : "/v1/undo", body, CONTROL_REWIND_TIMEOUT_MS,
                         &answer, err);
    if (r == 0)
        r = json_get_u64(answer, "target_lsn", &target, err);
    if (r == 0)
        r = restore_manifests(application, target, true, &changes, err);
    if (r < 0)
        return r;
    json_t *note = json_object_get(resolved, "note");
    MUTEX_GUARD(guard, &application->mutex);
    json_t *lifecycle = json_pack("{s:o, s:o, s:o}", "stop", app_commands_to_json(&application->spec->stop),
                                  "start", app_commands_to_json(&application->spec->start), "probe",
                                  app_commands_to_json(&application->spec->probe));
    *ret = json_pack("{s:s, s:O, s:O, s:O, s:o, s:O, s:O, s:O?, s:O?, s:o, s:o}", "to",
                     to ? to : "the state before the newest rewind", "lsn", json_object_get(answer, "lsn"),
                     "target_lsn", json_object_get(answer, "target_lsn"), "target_time",
                     json_object_get(answer, "target_time"), "note", note ? json_incref(note) : json_null(),
                     "changed_bytes", json_object_get(answer, "changed_bytes"), "volumes",
                     json_object_get(answer, "volumes"), "space", json_object_get(answer, "space"), "refusal",
                     json_object_get(answer, "refusal"), "manifests", changes, "lifecycle", lifecycle);
    return *ret ? 0 : error_set(err, -EPROTO, "the engine's answer to a rewind lacks fields");
}

/* ---- the operation log ---- */

static int log_path(const struct application *application, char path[PATH_MAX], struct error *err)
{
    return application_path(application, path, err, "operation.json");
}

/* Of the log without it: what is carried on from a damaged one would be another rewind. */
#define LOG_CHECKSUM "crc32c"
static uint32_t log_checksum(const json_t *log)
{
    _cleanup_json_ json_t *rest = json_copy((json_t *)(uintptr_t)log);
    json_object_del(rest, LOG_CHECKSUM);
    _cleanup_free_ char *text = json_dumps(rest, JSON_SORT_KEYS | JSON_COMPACT);
    return text ? crc32c(0, text, strlen(text)) : 0;
}

static int log_step(struct rewinding *w, int step, struct error *err)
{
    char path[PATH_MAX];
    json_object_set_new(w->log, "step", json_string(step_keys[step]));
    json_object_set_new(w->log, LOG_CHECKSUM, json_integer(log_checksum(w->log)));
    int r = log_path(w->application, path, err);
    return r < 0 ? r : write_json_file(path, w->log, err);
}

static void log_remove(const struct application *application)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    if (log_path(application, path, &ignored) == 0 && unlink(path) == 0 &&
        io_sync_directory(application->directory, &ignored) < 0)
        log_warning(application->control->log, "%s", ignored.message);
}

json_t *rewind_unfinished(const struct application *application)
{
    char path[PATH_MAX];
    struct error err = ERROR_INIT;
    json_t *log = NULL;
    if (log_path(application, path, &err) < 0 || access(path, F_OK) < 0)
        return NULL;
    const json_t *checksum = NULL;
    bool parsed = json_parse_file(path, &log, &err) == 0;
    if (parsed)
        checksum = json_object_get(log, LOG_CHECKSUM); /* none in one of an earlier release */
    if (parsed && json_string_value(json_object_get(log, "step")) &&
        (!checksum || json_integer_value(checksum) == (json_int_t)log_checksum(log)))
        return log;
    json_decref(log);
    bool unread = err.code && err.code != -EINVAL && err.code != -EFBIG; /* no descriptor, no memory: it may be readable later */
    log_error(application->control->log,
              "%s: a rewind was interrupted, and what was noted of it cannot be read: it is not carried "
              "on%s; look at the data (%s)",
              application->name, unread ? " yet" : "", err.code ? err.message : path);
    if (!unread)
        log_remove(application);
    return NULL;
}

bool rewind_holds_volumes(const struct application *application)
{
    _cleanup_json_ json_t *log = rewind_unfinished(application);
    const char *step = json_string_value(json_object_get(log, "step"));
    return step && strcmp(step, step_keys[STEP_VOLUMES]) == 0;
}

bool rewind_is_unfinished(const struct application *application)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    return log_path(application, path, &ignored) == 0 && access(path, F_OK) == 0;
}

/* ---- the pin ---- */

static void let_go(struct rewinding *w)
{
    if (w->pin_fd < 0)
        return;
    close(w->pin_fd);
    w->pin_fd = -1;
    pin_drop(w->application, w->pin);
}

/* A point that is gone already is told before anything is stopped; what else keeps it from being pinned (too many views, no room) keeps
 * no rewind from being tried. */
static int hold(struct rewinding *w, struct error *err)
{
    char point[32];
    _cleanup_json_ json_t *answer = NULL;
    snprintf(point, sizeof point, "lsn:%llu", (unsigned long long)w->target_lsn);
    int r = control_new_id(w->application->control, "rewind-", w->pin, err);
    if (r == 0)
        r = pin_take(w->application, w->pin, point, NULL, &w->pin_fd, &answer, err);
    if (r == 0 || (r == -ERANGE && !w->continued))
        return r;
    log_warning(w->application->control->log, "%s: LSN %llu is not kept while it is rewound to: %s", w->application->name,
                (unsigned long long)w->target_lsn, err->message);
    *err = ERROR_INIT;
    return 0;
}

/* ---- steps ---- */

static int resolve(struct rewinding *w, struct error *err)
{
    json_t *plan = NULL;
    int r = rewind_plan(w->application, w->to, &plan, err);
    if (r < 0)
        return r;
    w->log = json_pack("{s:s, s:s, s:o, s:o}", "id", w->operation->id, "kind", w->to ? "rewind" : "undo",
                       "to", w->to ? json_string(w->to) : json_null(), "plan", plan);
    const char *refusal = json_string_value(json_object_get(plan, "refusal"));
    if (refusal) /* before the workload is stopped for it */
        return error_set(err, -ENOSPC, "%s", refusal);
    r = json_get_u64(plan, "target_lsn", &w->target_lsn, err);
    return r < 0 ? r : hold(w, err);
}

static int stop_workload(struct rewinding *w, struct error *err)
{
    int r = w->continued ? hold(w, err) : 0;
    if (r == 0)
        r = lifecycle_run(w->application, "stop", &w->application->spec->stop, err);
    if (r < 0 && w->continued) {
        /* It may have been stopped already before `up` was restarted; if not, unmounting will tell. */
        log_warning(w->application->control->log, "%s", err->message);
        *err = ERROR_INIT;
        r = 0;
    }
    return r;
}

static int note_lsn(struct rewinding *w, struct error *err)
{
    _cleanup_json_ json_t *answer = NULL;
    if (json_object_get(w->log, "before_lsn"))
        return 0;
    int r =
        application_call(w->application, "POST", "/v1/sync", NULL, CONTROL_REWIND_TIMEOUT_MS, &answer, err);
    if (r == 0)
        json_object_set(w->log, "before_lsn", json_object_get(answer, "lsn"));
    return r;
}

/* 1: a rewind was recorded after before_lsn (*ret_lsn); 0: none; negative errno. */
static int was_done(struct rewinding *w, uint64_t *ret_lsn, struct error *err)
{
    char path[96];
    size_t i;
    json_t *point;
    _cleanup_json_ json_t *answer = NULL;
    json_int_t before = json_integer_value(json_object_get(w->log, "before_lsn"));
    snprintf(path, sizeof path, "/v1/points?since=lsn:%lld&limit=100000", (long long)before);
    int r = application_call(w->application, "GET", path, NULL, CONTROL_REWIND_TIMEOUT_MS, &answer, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(answer, "points"), i, point)
    {
        const char *kind = json_string_value(json_object_get(point, "kind"));
        json_int_t lsn = json_integer_value(json_object_get(point, "lsn"));
        if (kind && strcmp(kind, "rewind") == 0 && lsn > before) {
            *ret_lsn = (uint64_t)lsn;
            return 1;
        }
    }
    if (json_is_true(json_object_get(answer, "damaged")))
        return error_set(err, -EBADMSG, "whether the volumes were rewound is not known: the history from LSN %lld on is damaged", (long long)before);
    return 0;
}

#define REWIND_ATTEMPTS 6
#define REWIND_RETRY_NS (2 * NS_PER_SECOND)

static bool is_unheard(int r)
{
    return r == -ECONNREFUSED || r == -ECONNRESET || r == -EPIPE || r == -EPROTO || r == -EIO ||
           r == -ETIMEDOUT;
}

/* Whether its process has ended, and the engine with it: then nobody starts the engine again before this
 * rewind lets go of the application. */
static bool engine_is_gone(struct application *a)
{
    pthread_mutex_lock(&a->mutex);
    struct process process = a->process; /* looked at only: the main thread waits for it */
    pthread_mutex_unlock(&a->mutex);
    process.child = false;
    process.fd = process_exists(&process) ? dup(process.fd) : -1;
    bool ended = process.fd < 0 || process_wait(&process, 0, NULL);
    process_forget(&process);
    if (!ended)
        return false;
    struct error ignored = ERROR_INIT;
    return http_client_call(a->socket, "GET", "/v1/status", NULL, CONTROL_STATUS_TIMEOUT_MS, NULL, &ignored) <
           0;
}

/* Asks the engine until it has answered. Its answer may have been lost, so it is asked for the same rewind,
 * not for another. */
static int ask_for_rewind(struct rewinding *w, uint64_t *ret_lsn, struct error *err)
{
    int r = 0;
    for (int attempt = w->continued ? 1 : 0; attempt < REWIND_ATTEMPTS; attempt++) {
        _cleanup_json_ json_t *body =
                                  attempt ? engine_body_once(w) : engine_body(w->to, w->target_lsn, false),
                              *answer = NULL;
        *err = ERROR_INIT;
        r = application_call(w->application, "POST", w->to ? "/v1/rewind" : "/v1/undo", body,
                             CONTROL_REWIND_TIMEOUT_MS, &answer, err);
        if (r == 0)
            return json_get_u64(answer, "lsn", ret_lsn, err);
        if (!is_unheard(r))
            return r;
        log_warning(w->application->control->log, "%s: %s; looking whether it was done", w->application->name,
                    err->message);
        if (engine_is_gone(w->application))
            break;
    }
    /* What it answers now is the truth about what it was asked for. */
    struct error why = ERROR_INIT;
    int done = was_done(w, ret_lsn, &why);
    w->unsettled = done < 0;
    return done > 0 ? 0 : r;
}

static int rewind_volumes(struct rewinding *w, struct error *err)
{
    uint64_t lsn = 0;
    int r = ask_for_rewind(w, &lsn, err);
    if (r < 0)
        return r;
    json_object_set_new(w->log, "rewind_lsn", json_u64(lsn));
    for (size_t i = 0; i < w->application->spec->volume_count; i++)
        if (w->application->volumes[i].device[0] && !w->application->volumes[i].mounted &&
            mounts_drop_cache(w->application->volumes[i].device, err) < 0)
            return err->code;
    return 0;
}

static int unmount(struct rewinding *w, struct error *err)
{
    int r = application_unmount(w->application, false, err);
    return r == 0 ? application_check_unclaimed(w->application, err) : r;
}

static int manifests_step(struct rewinding *w, struct error *err)
{
    return restore_manifests(w->application, w->target_lsn, false, &w->changes, err);
}

static int run_step(struct rewinding *w, int step, struct error *err)
{
    switch (step) {
    case STEP_RESOLVE:
        return resolve(w, err);
    case STEP_STOP:
        return stop_workload(w, err);
    case STEP_UNMOUNT:
        return unmount(w, err);
    case STEP_VOLUMES:
        return rewind_volumes(w, err);
    case STEP_MOUNT:
        return application_mount(w->application, err);
    case STEP_MANIFESTS:
        return manifests_step(w, err);
    case STEP_START:
        return lifecycle_run(w->application, "start", &w->application->spec->start, err);
    default:
        return lifecycle_probe(w->application, &w->application->spec->probe, err);
    }
}

/* Whether there is nothing to do in this step. */
static bool is_empty(const struct rewinding *w, int step)
{
    const struct app_spec *spec = w->application->spec;
    bool mounts = false;
    for (size_t i = 0; i < spec->volume_count; i++)
        mounts |= spec->volumes[i].mount_path != NULL;
    return (step == STEP_STOP && !spec->stop.count) || (step == STEP_START && !spec->start.count) ||
           (step == STEP_PROBE && !spec->probe.count) || (step == STEP_MANIFESTS && !spec->manifests) ||
           (step == STEP_UNMOUNT && !app_export_has_devices(spec->export)) || (step == STEP_MOUNT && !mounts);
}

static void fail_and_retry(struct application *a, const struct error *why)
{
    application_set_state(a, APPLICATION_FAILED, why->message);
    MUTEX_GUARD(guard, &a->mutex);
    a->retry_ns = clock_boottime_ns(clock_system()) + NS_PER_SECOND;
}

/* Nothing was rewound: mount and start again as it was. */
static void back_out(struct rewinding *w, int failed_step)
{
    struct error err = ERROR_INIT;
    struct application *a = w->application;
    bool stopped = failed_step >= STEP_STOP && a->spec->stop.count;
    int r = failed_step >= STEP_UNMOUNT ? application_mount(a, &err) : 0;
    if (r < 0)
        fail_and_retry(a, &err);
    if (r == 0 && stopped)
        r = lifecycle_run(a, "start", &a->spec->start, &err);
    else if (stopped)
        lifecycle_mark_stopped(a); /* it is started once the volumes can be mounted */
    if (r < 0)
        log_error(a->control->log, "%s: %s", a->name, err.message);
}

/* The volumes are at the point, the rest failed: kept as it is, mounted later if that is what failed. */
static void give_up(struct rewinding *w, int failed_step, struct error *err)
{
    struct application *a = w->application;
    if (failed_step == STEP_MOUNT)
        fail_and_retry(a, err);
    error_context(
        err,
        "the volumes of %s are at LSN %llu now (`tidemark undo %s` brings the newer state back), but then",
        a->name, (unsigned long long)w->target_lsn, a->name);
}

/* U5. Later steps need the volumes, too: without an engine they wait for it. */
static void leave_unsettled(struct rewinding *w, struct error *err)
{
    struct application *a = w->application;
    w->unsettled = true;
    error_context(err, "the %s of %s has not ended: it is carried on when its engine answers again",
                  w->to ? "rewind" : "undo", a->name);
    MUTEX_GUARD(guard, &a->mutex);
    a->rewind_retry_ns = clock_boottime_ns(clock_system()) + REWIND_RETRY_NS;
}

static void failed(struct rewinding *w, int step, struct error *err)
{
    if (step >= STEP_VOLUMES && (w->unsettled || (step > STEP_VOLUMES && engine_is_gone(w->application))))
        leave_unsettled(w, err);
    else if (step <= STEP_VOLUMES)
        back_out(w, step);
    else
        give_up(w, step, err);
}

static int run_steps(struct rewinding *w, int from, struct error *err)
{
    for (int step = from; step < STEP_COUNT; step++) {
        bool empty = is_empty(w, step);
        if (step == STEP_VOLUMES)
            manifests_pause(w->application->manifests);
        int r = step == STEP_VOLUMES ? note_lsn(w, err) : 0;
        if (r == 0 && step > STEP_RESOLVE)
            r = log_step(w, step, err);
        operation_step_begin(w->operation, (size_t)step);
        if (r == 0 && !empty)
            r = run_step(w, step, err);
        if (r < 0) {
            operation_step_end(w->operation, (size_t)step, STEP_FAILED, err->message);
            let_go(w);
            failed(w, step, err);
            return r;
        }
        if (step == STEP_MANIFESTS)
            let_go(w);
        w->ms[step] = operation_step_end(w->operation, (size_t)step, empty ? STEP_SKIPPED : STEP_DONE, NULL);
    }
    return 0;
}

/* Time between the last record at or before the point and the point asked for; null unless that is a time. */
static json_t *rpo_json(const struct rewinding *w)
{
    struct error ignored = ERROR_INIT;
    uint64_t asked_ns = 0, record_ns, ago_ns;
    const char *time = json_string_value(json_object_get(json_object_get(w->log, "plan"), "target_time"));
    uint64_t now_ns = clock_realtime_ns(clock_system()),
             spent_ns = clock_boottime_ns(clock_system()) - w->started_ns;
    if (!w->to || w->continued || !time || clock_parse_rfc3339(time, &record_ns, &ignored) < 0)
        return json_null();
    if (w->to[0] == '-' && units_parse_duration(w->to + 1, &ago_ns, &ignored) == 0 &&
        ago_ns + spent_ns < now_ns)
        asked_ns = now_ns - spent_ns - ago_ns;
    else if (clock_parse_rfc3339(w->to, &asked_ns, &ignored) < 0)
        return json_null();
    return json_real(asked_ns > record_ns ? (double)(asked_ns - record_ns) / 1e6 : 0.0);
}

static json_t *result_json(const struct rewinding *w)
{
    const json_t *plan = json_object_get(w->log, "plan");
    double total_ms = (double)(clock_boottime_ns(clock_system()) - w->started_ns) / 1e6;
    double own_ms = w->ms[STEP_STOP] + w->ms[STEP_START] + w->ms[STEP_PROBE];
    json_t *manifests = w->changes ? json_incref(w->changes) : json_array();
    return json_pack("{s:O, s:O, s:O, s:O, s:O, s:O, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o}",
                     "to", json_object_get(plan, "to"), "lsn", json_object_get(w->log, "rewind_lsn"),
                     "target_lsn", json_object_get(plan, "target_lsn"), "target_time",
                     json_object_get(plan, "target_time"), "changed_bytes",
                     json_object_get(plan, "changed_bytes"), "volumes", json_object_get(plan, "volumes"),
                     "manifests", manifests, "stop_ms", w->ms[STEP_STOP], "unmount_ms", w->ms[STEP_UNMOUNT],
                     "engine_ms", w->ms[STEP_VOLUMES], "mount_ms", w->ms[STEP_MOUNT], "manifests_ms",
                     w->ms[STEP_MANIFESTS], "start_ms", w->ms[STEP_START], "probe_ms", w->ms[STEP_PROBE],
                     "rewind_ms", total_ms - own_ms, "total_ms", total_ms, "rpo_ms", rpo_json(w));
}

static int first_step(struct rewinding *w, json_t *log, struct error *err)
{
    const char *step = json_string_value(json_object_get(log, "step"));
    int r = json_get_u64(json_object_get(log, "plan"), "target_lsn", &w->target_lsn, err);
    if (r < 0)
        return r;
    w->log = json_incref(log);
    w->continued = true;
    for (int i = 0; step && i < STEP_COUNT; i++)
        if (strcmp(step_keys[i], step) == 0)
            return i;
    return error_set(err, -EINVAL, "operation.json has no known step");
}

int rewind_run(struct application *application, struct operation *operation, const char *to, json_t *log,
               json_t **ret, struct error *err)
{
    struct rewinding w = {.application = application,
                          .operation = operation,
                          .to = to,
                          .pin_fd = -1,
                          .started_ns = clock_boottime_ns(clock_system())};
    int r = log ? first_step(&w, log, err) : 0;
    if (r >= 0)
        r = run_steps(&w, r, err);
    if (r >= 0)
        *ret = result_json(&w);
    if (!w.unsettled) {
        struct error why = ERROR_INIT;
        log_remove(application);
        manifests_resume(application->manifests);
        if (application_start_manifests(application, &why) < 0)
            log_error(application->control->log, "%s: %s", application->name, why.message);
    }
    json_decref(w.log);
    json_decref(w.changes);
    return r;
}
