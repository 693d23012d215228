/* SPDX-License-Identifier: Apache-2.0 */
/* States and steps of a recovery; the invariants R1..R9 stand in recovery.h. */
#include <malloc.h>

#include "controller/object_shelf.h"
#include "controller/recovery_internal.h"

#define TRIM_OBJECTS 500
#define MESSAGE_BYTES 2048 /* of status.message, as the definition says */

/* Reasons of the condition Ending that are no failure's. */
#define CANCELLED "Cancelled"
#define COMPLETED "Completed"

enum step {
    STEP_PLAN,
    STEP_SUSPEND,
    STEP_CLOSE_GATE,
    STEP_STOP_PODS,
    STEP_REWIND_DATA,
    STEP_COPY_DATA,
    STEP_BIND_VOLUMES,
    STEP_DELETE,
    STEP_APPLY,
    STEP_RENEW_PODS,
    STEP_OPEN_GATE,
    STEP_AWAIT,
    STEPS
};
static const char *const step_names[STEPS] = {"Plan",     "Suspend",   "CloseGate",   "StopPods", "RewindData",
                                              "CopyData", "BindVolumes", "Delete",   "Apply",
                                              "RenewPods", "OpenGate",   "Await"};

bool recovery_has_ended(const json_t *recovery)
{
    static const char *const ended[] = {"Planned", "Completed", "Failed", "Cancelled"};
    const char *phase = json_text(json_object_get(recovery, "status"), "phase");
    for (size_t i = 0; i < sizeof ended / sizeof *ended; i++) {
        if (strcmp(phase, ended[i]) == 0)
            return true;
    }
    return false;
}

bool recovery_is_about(const json_t *recovery, const char *own, const char *namespace, const char *application)
{
    const json_t *spec = json_object_get(recovery, "spec");
    const char *source = json_text(spec, "sourceNamespace");
    return strcmp(*source ? source : own, namespace) == 0 && strcmp(json_text(spec, "application"), application) == 0;
}

/* An error of the way to the server rather than of what was asked: tried again later. */
static bool passes(int code)
{
    return code == -ECONNREFUSED || code == -ECONNRESET || code == -EHOSTUNREACH || code == -ETIMEDOUT ||
           code == -ECANCELED || code == -EAGAIN || code == -ENOMEM || code == -ESTALE || code == -EBUSY;
}

bool recovery_is_refusal(int code)
{
    return code == -EACCES || code == -EPERM || code == -EINVAL || code == -EOPNOTSUPP;
}

/* What is waited for, while it is (the log has it too). */
static int say_pending(struct recovery_run *run, int code, struct error *err)
{
    struct error unused = ERROR_INIT;
    if (strcmp(json_text(recovery_status(run), "message"), err->message) == 0)
        return code;
    json_object_set_new(recovery_status(run), "message", json_string_lossy(err->message));
    if (recovery_write(run, &unused) < 0)
        log_warning(run->c->log, "recovery %s/%s: %s", run->namespace, run->name, unused.message);
    return code;
}

/* ---- ends ---- */

/* R5: whatever becomes of the recovery, the volumes can be used. */
static int open_gates(struct recovery_run *run, enum step reached, struct error *err)
{
    return reached >= STEP_CLOSE_GATE && run->mode != RESTORE_CLONE ? recovery_set_gates(run, false, err) : 0;
}

/* Whether what keeps it from its end is tried again: what is of the way to the server, and for a while what may be (500). */
static bool is_tried_again(const struct recovery_run *run, int code)
{
    return passes(code) || (code < 0 && !recovery_is_refusal(code) && !recovery_ends_late(run));
}

/* R9 */
static int end_later(struct recovery_run *run, const char *reason, const char *why, int code, struct error *err)
{
    if (!recovery_ending(run, "reason")[0])
        json_object_del(recovery_status(run), "message"); /* it is written in any case */
    return recovery_begin_ending(run, reason, why) < 0 ? error_set(err, -ENOMEM, "out of memory") : say_pending(run, code, err);
}

/* R8 */
static void add_held(char *message, size_t size, const struct error *held)
{
    size_t length = strlen(message);
    snprintf(message + length, size - length, "; and what was held for it stays so: %.600s", held->message);
}

/* R7: `what` is said of those that are lost, with what to do. */
static void add_lost(struct recovery_run *run, char *message, size_t size, const char *what, const struct error *lost)
{
    const char *before = json_text(recovery_status(run), "before");
    size_t length = strlen(message);
    if (lost->code)
        snprintf(message + length, size - length, "; %s: %.600s. See to what is in the way, and make it again from its manifest%s%.300s", what, lost->message,
                 *before ? ", or by a Recovery to " : "", before);
}

#define LOST "it deleted what it cannot make again"

/* All that is to be done before it fails. Where several are refused, the gates are what is told. */
static int wind_up(struct recovery_run *run, enum step reached, struct error *ret_lost, struct error *err)
{
    struct error gate = ERROR_INIT;
    int opened = open_gates(run, reached, &gate); /* first: pods that are still ending may take their time */
    int r = opened < 0 && is_tried_again(run, opened) ? opened : recovery_put_replaced_back(run, ret_lost, err);
    if (r == 0 && reached >= STEP_SUSPEND)
        r = recovery_let_go(run, reached <= STEP_STOP_PODS, err);
    if (opened < 0 && (r == 0 || r == opened || !is_tried_again(run, r))) {
        *err = gate;
        r = opened;
    }
    return r;
}

static int fail(struct recovery_run *run, enum step reached, const char *reason, struct error *err)
{
    struct error left = ERROR_INIT, lost = ERROR_INIT;
    char message[MESSAGE_BYTES];
    int r = wind_up(run, reached, &lost, &left);
    if (r < 0 && is_tried_again(run, r)) {
        const struct error why = *err;
        error_set(err, r, "%.600s; before it ends: %s", why.message, left.message);
        return end_later(run, reason, why.message, r, err);
    }
    snprintf(message, sizeof message, "%.*s", lost.code ? 400 : ERROR_MESSAGE_BYTES, err->message); /* an event has 1024 bytes */
    add_lost(run, message, sizeof message, LOST, &lost);
    if (r < 0)
        add_held(message, sizeof message, &left);
    *err = ERROR_INIT;
    json_object_del(recovery_status(run), "replacing");
    return recovery_end(run, "Failed", reason, message, err);
}

static void say_cancelled(struct recovery_run *run, enum step reached, char *message, size_t size)
{
    const char *before = json_text(recovery_status(run), "before");
    if (reached <= STEP_STOP_PODS)
        snprintf(message, size, "cancelled before anything was changed");
    else if (reached == STEP_COPY_DATA)
        snprintf(message, size, "cancelled in step %s: what was copied is removed", step_names[reached]);
    else
        snprintf(message, size, "cancelled in step %s: what was put back stays so%s%.300s", step_names[reached],
                 before[0] ? "; a Recovery to this point takes it back: " : "", before);
}

static int cancel(struct recovery_run *run, enum step reached, struct error *err)
{
    char message[MESSAGE_BYTES];
    struct error held = ERROR_INIT, lost = ERROR_INIT;
    int let_go = 0;
    int r = open_gates(run, reached, err);
    if (r == 0)
        r = recovery_put_replaced_back(run, &lost, err);
    if (r == 0 && reached >= STEP_SUSPEND)
        let_go = recovery_let_go(run, reached <= STEP_STOP_PODS, &held);
    if (let_go < 0 && is_tried_again(run, let_go)) {
        *err = held;
        r = let_go;
    }
    if (r < 0) {
        error_context(err, "it is cancelled; before it ends");
        return end_later(run, CANCELLED, "it is cancelled", r, err);
    }
    say_cancelled(run, reached, message, sizeof message);
    add_lost(run, message, sizeof message, reached <= STEP_STOP_PODS ? "but " LOST : LOST, &lost);
    if (let_go < 0)
        add_held(message, sizeof message, &held);
    json_object_del(recovery_status(run), "replacing");
    r = recovery_count(run, err);
    return r == 0 ? recovery_end(run, "Cancelled", CANCELLED, message, err) : r;
}

static int finish(struct recovery_run *run, struct error *err)
{
    char message[1400 + ERROR_MESSAGE_BYTES];
    struct error held = ERROR_INIT;
    size_t failed = 0;
    const char *first = NULL, *why = "", *not_ready = recovery_not_ready(run);
    for (size_t i = 0; i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        failed += e->verdict == VERDICT_FAILED;
        if (e->verdict == VERDICT_FAILED && !first) {
            first = e->name;
            why = e->reason ? e->reason : "";
        }
    }
    bool unused;
    json_object_del(recovery_status(run), "replacing"); /* all have their verdicts */
    const int let_go = recovery_let_go(run, false, &held);
    if (let_go < 0 && is_tried_again(run, let_go)) {
        *err = held;
        return end_later(run, COMPLETED, "all was done", let_go, err);
    }
    int r = recovery_count(run, err);
    if (r == 0)
        r = recovery_look_filling(run, &unused, err);
    if (r < 0)
        return r;
    if (failed)
        snprintf(message, sizeof message,
                 "%zu of %zu objects could not be put back; the first: %.300s: %.700s", failed,
                 run->entry_count, first, why);
    else
        snprintf(message, sizeof message, "%zu objects%s are as they were at the point%s%s%.800s",
                 run->entry_count, recovery_has_data(run) ? " and the volumes" : "",
                 recovery_is_filling(run->recovery) ? ", which are copied behind (condition Filled)" : "", not_ready[0] ? "; " : "",
                 not_ready);
    if (let_go < 0)
        add_held(message, sizeof message, &held);
    return recovery_end(run, failed || let_go < 0 ? "Failed" : "Completed",
                        failed       ? "ObjectsFailed"
                        : let_go < 0 ? "StaysHeld"
                                     : "Completed",
                        message, err);
}

/* ---- steps ---- */

/* R3: nothing is changed in here. 1: it has ended. */
static int plan(struct recovery_run *run, struct error *err)
{
    const char *reason = NULL;
    bool waited = strcmp(json_text(recovery_status(run), "phase"), "Pending") == 0;
    int r = waited ? 0 : recovery_step(run, step_names[STEP_PLAN], 0, err); /* what it waits for is told until it waits no more */
    if (r < 0)
        return r;
    r = recovery_read_wanted(run, &reason, err);
    if (r == 0)
        r = recovery_check_target(run, &reason, err);
    if (r == -EAGAIN && reason) { /* it passes by itself: say so, and come again */
        struct error failed = ERROR_INIT;
        if (waited && strcmp(json_text(recovery_status(run), "message"), err->message) == 0)
            return r;
        json_object_set_new(recovery_status(run), "phase", json_string("Pending"));
        json_object_set_new(recovery_status(run), "message", json_string_lossy(err->message));
        if (recovery_condition(run, "Ready", false, reason, err->message) == 0 &&
            recovery_write(run, &failed) < 0)
            *err = failed;
        return r;
    }
    if (r < 0 && passes(r))
        return r;
    if (r == -EACCES && !reason) /* of something that whoever asked may not even look at: it stays so */
        reason = "Forbidden";
    if (r < 0 && !reason)
        return say_pending(run, r, err);
    if (r < 0) {
        r = fail(run, STEP_PLAN, reason, err);
        return r < 0 ? r : 1;
    }
    if (waited && (r = recovery_step(run, step_names[STEP_PLAN], 0, err)) < 0)
        return r;
    json_object_del(recovery_status(run), "message");
    reason = "PlanFailed";
    r = recovery_make_plan(run, err);
    if (r == 0)
        r = recovery_plan_reconcilers(run, &reason, err);
    if (r == 0)
        r = recovery_check_quota(run, &reason, err);
    if (r == 0)
        r = recovery_plan_data(run, &reason, err);
    if (r == 0)
        r = recovery_plan_owned(run, err);
    recovery_forget_live(run);
    if (r == 0)
        r = recovery_save_plan(run, -1, err);
    if (r < 0 && !passes(r)) {
        r = fail(run, STEP_PLAN, reason, err);
        return r < 0 ? r : 1;
    }
    if (r < 0) /* a node that does not answer, a stream that is not ready to be copied */
        return say_pending(run, r, err);
    if (json_is_true(json_object_get(run->spec, "dryRun"))) {
        r = recovery_end(run, "Planned", "Planned", "nothing was changed: dryRun", err);
        return r < 0 ? r : 1;
    }
    return r;
}

/* What is there now, as a point: the undo. Of the streams it is noted when they are changed. */
static int note_before(struct recovery_run *run, struct error *err)
{
    struct recovery_point now;
    json_t *status = recovery_status(run);
    if (run->mode != RESTORE_REWIND || json_object_get(status, "before"))
        return 0;
    int r = run->c->source->objects(run->c->source_context, run->source_namespace, run->application, "latest",
                                    NULL, NULL, &now, err);
    if (r < 0)
        return r;
    return json_object_set_new(status, "beforeLsn", json_integer((json_int_t)now.lsn)) < 0 ||
                   json_object_set_new(status, "before", json_sprintf("before:%s", run->name)) < 0
               ? error_set(err, -ENOMEM, "out of memory")
               : 0;
}

/* 1: it has ended. */
static int cancel_in(struct recovery_run *run, enum step step, struct error *err)
{
    int r = cancel(run, step, err);
    return r < 0 ? r : 1;
}

/* 1: it has ended. */
static int put_wave(struct recovery_run *run, enum step step, int wave, struct error *err)
{
    int r = recovery_apply_wave(run, wave, err);
    if (r < 0)
        return r;
    int saved = recovery_save_plan(run, wave, err);
    return saved < 0 ? saved : r > 0 ? cancel_in(run, step, err) : 0;
}

static int apply(struct recovery_run *run, int first_wave, struct error *err)
{
    int r = 0;
    for (int wave = first_wave; wave <= run->waves && r == 0; wave++) {
        bool cancelled;
        r = recovery_is_cancelled(run, &cancelled, err);
        if (r < 0)
            return r;
        if (cancelled)
            return cancel_in(run, STEP_APPLY, err);
        r = recovery_count(run, err);
        if (r == 0)
            r = recovery_step(run, step_names[STEP_APPLY], wave, err);
        if (r == 0)
            r = recovery_await_wave(run, wave, err);
        if (r == 0)
            r = put_wave(run, STEP_APPLY, wave, err);
    }
    return r;
}

static int take(struct recovery_run *run, enum step step, int wave, struct error *err)
{
    bool changed;
    int r;
    switch (step) {
    case STEP_SUSPEND:
        return recovery_suspend(run, err);
    case STEP_CLOSE_GATE:
        return recovery_set_gates(run, true, err);
    case STEP_STOP_PODS:
        return recovery_stop_pods(run, err);
    case STEP_REWIND_DATA:
        return recovery_rewind_data(run, err);
    case STEP_COPY_DATA:
        return recovery_copy_data(run, err);
    case STEP_BIND_VOLUMES:
        if (run->mode != RESTORE_CLONE)
            return recovery_bind_volumes(run, err);
        r = recovery_bind_copies(run, err);
        return r == 0 ? recovery_let_streams_go(run, err) : r;
    case STEP_DELETE:
        return put_wave(run, STEP_DELETE, 0, err);
    case STEP_APPLY:
        return apply(run, wave < 1 ? 1 : wave, err);
    case STEP_RENEW_PODS:
        return recovery_renew_pods(run, err);
    case STEP_OPEN_GATE:
        r = recovery_set_gates(run, false, err);
        return r == 0 ? recovery_let_streams_go(run, err) : r;
    case STEP_AWAIT:
        r = recovery_look_filling(run, &changed, err);
        if (r == 0 && changed)
            r = recovery_write(run, err);
        return r == 0 ? recovery_await_workloads(run, err) : r;
    case STEP_PLAN:
    case STEPS:
        break;
    }
    return 0;
}

static bool has_step(const struct recovery_run *run, enum step step)
{
    if (step == STEP_SUSPEND)
        return recovery_has_reconcilers(run);
    if (step == STEP_DELETE)
        return run->mode == RESTORE_REWIND;
    if (step == STEP_APPLY || step == STEP_AWAIT)
        return true;
    bool of_clone = step == STEP_COPY_DATA || step == STEP_BIND_VOLUMES;
    return recovery_has_data(run) && (run->mode == RESTORE_CLONE ? of_clone : step != STEP_COPY_DATA);
}

static void note_opened(struct recovery_run *run)
{
    uint64_t start_ns, now_ns = clock_realtime_ns(run->clock);
    struct error unused = ERROR_INIT;
    if (clock_parse_rfc3339(json_text(recovery_status(run), "startTime"), &start_ns, &unused) == 0 &&
        now_ns > start_ns)
        recovery_note_ms(run, "openedMs", (now_ns - start_ns) / NS_PER_MS);
}

static const char *failure_reason(enum step step)
{
    return step == STEP_COPY_DATA ? "CopyFailed" : step == STEP_SUSPEND ? "ReconcilerWouldRevert" : "StepFailed";
}

static int go(struct recovery_run *run, enum step from, int wave, bool resumed, struct error *err)
{
    for (enum step step = from; step < STEPS; step++) {
        bool cancelled = false;
        uint64_t start_ns = clock_boottime_ns(run->clock);
        if (!has_step(run, step))
            continue;
        int r = recovery_is_cancelled(run, &cancelled, err);
        if (r == 0 && cancelled && step < STEP_OPEN_GATE)
            return cancel(run, step, err);
        if (r == 0 && step != STEP_APPLY &&
            !(resumed && step == from)) /* apply writes each of its waves down */
            r = recovery_step(run, step_names[step], 0, err);
        if (r == 0)
            r = cancelled && step == STEP_AWAIT ? 0 : take(run, step, step == from ? wave : 0, err);
        if (r > 0)
            return 0;
        if (r < 0)
            return passes(r) ? say_pending(run, r, err)
                             : fail(run, step, failure_reason(step), err);
        if (step == STEP_OPEN_GATE || (step == STEP_APPLY && run->mode == RESTORE_CLONE && recovery_has_data(run)))
            note_opened(run);
        if (step == STEP_DELETE || step == STEP_APPLY)
            recovery_note_ms(run, "objectsMs", (clock_boottime_ns(run->clock) - start_ns) / NS_PER_MS);
    }
    return finish(run, err);
}

/* ---- beginning, and going on ---- */

static int open_run(struct recovery_run *run, struct error *err)
{
    int r = run->c->store->read(run->c->store_context, run->namespace, run->name, &run->recovery, err);
    if (r < 0)
        return r;
    recovery_remember(run);
    const char *source = json_text(run->spec, "sourceNamespace"),
               *target = json_text(run->spec, "targetNamespace");
    snprintf(run->application, sizeof run->application, "%s", json_text(run->spec, "application"));
    snprintf(run->source_namespace, sizeof run->source_namespace, "%s", source[0] ? source : run->namespace);
    snprintf(run->target_namespace, sizeof run->target_namespace, "%s",
             target[0] ? target : run->source_namespace);
    return restore_mode_parse(json_text(run->spec, "mode"), &run->mode, err);
}

static enum step step_of(const struct recovery_run *run, int *ret_wave)
{
    const json_t *step = json_object_get(json_object_get(run->recovery, "status"), "step");
    const char *name = json_text(step, "name");
    *ret_wave = (int)json_integer_value(json_object_get(step, "wave"));
    for (int s = STEP_SUSPEND; s < STEPS; s++) {
        if (strcmp(name, step_names[s]) == 0)
            return (enum step)s;
    }
    return STEP_PLAN;
}

/* R9 */
static int go_on(struct recovery_run *run, enum step step, int wave, struct error *err)
{
    char reason[64];
    snprintf(reason, sizeof reason, "%s", recovery_ending(run, "reason"));
    if (strcmp(reason, CANCELLED) == 0)
        return cancel(run, step, err);
    if (!*reason || strcmp(reason, COMPLETED) == 0)
        return go(run, step, wave, true, err);
    error_set(err, -EIO, "%s", recovery_ending(run, "message"));
    return fail(run, step, reason, err);
}

static int drive(struct recovery_run *run, struct error *err)
{
    int wave, r;
    const char *reason;
    enum step step = step_of(run, &wave);
    if (step > STEP_PLAN) { /* R1, R2: go on with what was planned */
        log_info(run->c->log, "recovery %s/%s: going on at step %s", run->namespace, run->name,
                 step_names[step]);
        const uint64_t start_ns = clock_boottime_ns(run->clock);
        r = recovery_read_wanted(run, &reason, err);
        if (r == 0)
            r = recovery_load_plan(run, err);
        if (r < 0)
            return passes(r) ? r : fail(run, step, "CannotGoOn", err);
        run->loaded_ms = (clock_boottime_ns(run->clock) - start_ns) / NS_PER_MS;
        return go_on(run, step, wave, err);
    }
    bool cancelled;
    r = recovery_is_cancelled(run, &cancelled, err);
    if (r == 0 && cancelled)
        return cancel(run, STEP_PLAN, err);
    if (r == 0)
        r = plan(run, err);
    if (r == 0)
        r = note_before(run, err);
    return r == 0 ? go(run, STEP_SUSPEND, 0, false, err) : r > 0 ? 0 : r;
}

static void release(struct recovery_run *run)
{
    recovery_free_entries(run);
    json_decref(run->recovery);
    json_decref(run->spec);
    json_decref(run->last_step);
    const bool large = json_object_size(run->wanted) + json_object_size(run->live) >= TRIM_OBJECTS;
    json_decref(run->wanted);
    object_shelf_free(run->wanted_whole);
    json_decref(run->order);
    recovery_forget_live(run);
    json_decref(run->before);
    if (large)
        malloc_trim(0); /* many small pieces, which would stay with the process */
}

int recovery_abandon(const struct recovery_context *context, const char *namespace, const char *name, const char *reason, const struct error *why,
                     struct error *err)
{
    struct recovery_run run = {.c = context, .clock = context->clock ? context->clock : clock_system(), .namespace = namespace, .name = name};
    struct error lost;
    char message[MESSAGE_BYTES];
    int unused, r = open_run(&run, err);
    if (r == 0 && !recovery_has_ended(run.recovery)) {
        r = open_gates(&run, step_of(&run, &unused), err);
        recovery_name_replaced(&run, &lost);
        snprintf(message, sizeof message, "%s", why->message);
        add_lost(&run, message, sizeof message, "what it deleted may not have been made again", &lost);
        if (r == 0 || !passes(r))
            r = recovery_end(&run, "Failed", reason, message, err);
    }
    release(&run);
    return r;
}

int recovery_advance(const struct recovery_context *context, const char *namespace, const char *name,
                     struct error *err)
{
    struct recovery_run run = {.c = context,
                               .clock = context->clock ? context->clock : clock_system(),
                               .namespace = namespace,
                               .name = name};
    int r = open_run(&run, err);
    if (r == 0 && !recovery_has_ended(run.recovery))
        r = drive(&run, err);
    release(&run);
    return r;
}
