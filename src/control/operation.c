/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "control/control_internal.h"

static uint64_t now_ns(void)
{
    return clock_boottime_ns(clock_system());
}

static void touch(struct operation *o)
{
    o->version++;
    pthread_cond_broadcast(&o->control->changed);
}

/* Mutex held. Keeps the newest CONTROL_OPERATIONS_KEPT. */
static void drop_old(struct control *control)
{
    unsigned count = 0;
    struct operation **at = &control->operations;
    while (*at) {
        struct operation *o = *at;
        if (++count <= CONTROL_OPERATIONS_KEPT || o->running) {
            at = &o->next;
            continue;
        }
        *at = o->next;
        json_decref(o->result);
        free(o);
    }
}

struct operation *operation_new(struct control *control, const char *kind, const char *application,
                                const char *const *steps)
{
    struct error ignored = ERROR_INIT;
    struct operation *o = calloc(1, sizeof *o);
    if (!o || control_new_id(control, "op-", o->id, &ignored) < 0) {
        free(o);
        return NULL;
    }
    o->control = control;
    o->kind = kind;
    o->running = true;
    o->version = 1;
    o->started_ns = now_ns();
    o->started_realtime_ns = clock_realtime_ns(clock_system());
    snprintf(o->application, sizeof o->application, "%s", application);
    for (; steps[o->step_count] && o->step_count < CONTROL_STEPS_MAX; o->step_count++)
        o->steps[o->step_count].name = steps[o->step_count];
    MUTEX_GUARD(guard, &control->mutex);
    o->next = control->operations;
    control->operations = o;
    drop_old(control);
    return o;
}

void operation_step_begin(struct operation *o, size_t step)
{
    MUTEX_GUARD(guard, &o->control->mutex);
    o->steps[step].state = STEP_RUNNING;
    o->steps[step].started_ns = now_ns();
    touch(o);
}

double operation_step_end(struct operation *o, size_t step, enum step_state state, const char *detail)
{
    MUTEX_GUARD(guard, &o->control->mutex);
    struct step *s = &o->steps[step];
    s->duration_ns = s->started_ns ? now_ns() - s->started_ns : 0;
    s->state = state;
    if (detail)
        snprintf(s->detail, sizeof s->detail, "%s", detail);
    touch(o);
    return (double)s->duration_ns / 1e6;
}

void operation_progress(struct operation *o, uint64_t done, uint64_t total, const char *unit)
{
    MUTEX_GUARD(guard, &o->control->mutex);
    o->progress_done = done;
    o->progress_total = total;
    o->progress_unit = unit;
    touch(o);
}

void operation_end(struct operation *o, int r, json_t *result, const struct error *err)
{
    MUTEX_GUARD(guard, &o->control->mutex);
    for (size_t i = 0; i < o->step_count; i++) {
        struct step *s = &o->steps[i];
        if (s->state == STEP_RUNNING) {
            s->state = r < 0 ? STEP_FAILED : STEP_DONE;
            s->duration_ns = now_ns() - s->started_ns;
        } else if (s->state == STEP_PENDING)
            s->state = STEP_SKIPPED;
    }
    o->running = false;
    o->duration_ns = now_ns() - o->started_ns;
    if (r < 0)
        o->error = *err;
    else
        o->result = result;
    touch(o);
}

static json_t *step_json(const struct step *s)
{
    static const char *const names[] = {"pending", "running", "done", "failed", "skipped"};
    uint64_t duration = s->state == STEP_RUNNING ? now_ns() - s->started_ns : s->duration_ns;
    return json_pack("{s:s, s:s, s:f, s:o}", "name", s->name, "state", names[s->state], "duration_ms",
                     (double)duration / 1e6, "detail", s->detail[0] ? json_string_lossy(s->detail) : json_null());
}

/* Mutex held. The result is copied: trees belong to one thread at a time. */
static json_t *to_json(const struct operation *o)
{
    char time[CLOCK_TEXT_BYTES];
    json_t *steps = json_array();
    for (size_t i = 0; i < o->step_count; i++)
        json_array_append_new(steps, step_json(&o->steps[i]));
    const char *state = o->running ? "running" : o->error.code < 0 ? "failed" : "succeeded";
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:f, s:o}", "id", o->id, "kind", o->kind, "application",
                  o->application, "state", state, "version", (json_int_t)o->version, "started_time",
                  clock_format_rfc3339(o->started_realtime_ns, time), "duration_ms",
                  (double)(o->running ? now_ns() - o->started_ns : o->duration_ns) / 1e6, "steps", steps);
    json_object_set_new(json, "progress",
                        o->progress_unit
                            ? json_pack("{s:I, s:I, s:s}", "done", (json_int_t)o->progress_done, "total",
                                        (json_int_t)o->progress_total, "unit", o->progress_unit)
                            : json_null());
    json_object_set_new(json, "result", o->result ? json_deep_copy(o->result) : json_null());
    json_object_set_new(json, "error",
                        o->error.code < 0 ? json_pack("{s:s, s:o}", "code", json_errno_name(o->error.code),
                                                      "message", json_string_lossy(o->error.message))
                                          : json_null());
    return json;
}

static struct operation *find(struct control *control, const char *id)
{
    for (struct operation *o = control->operations; o; o = o->next)
        if (strcmp(o->id, id) == 0)
            return o;
    return NULL;
}

json_t *operation_to_json(struct control *control, const char *id, uint64_t version, unsigned wait_ms,
                          struct error *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t at = (uint64_t)until.tv_nsec + (uint64_t)wait_ms * NS_PER_MS;
    until.tv_sec += (time_t)(at / NS_PER_SECOND);
    until.tv_nsec = (long)(at % NS_PER_SECOND);
    MUTEX_GUARD(guard, &control->mutex);
    for (int r = 0;;) {
        const struct operation *o = find(control, id);
        if (!o) {
            error_set(err, -ENOENT, "there is no operation %s (the last %u are kept, until `up` ends)", id,
                      CONTROL_OPERATIONS_KEPT);
            return NULL;
        }
        if (!o->running || o->version > version || r != 0 || wait_ms == 0 || atomic_load(&control->stopping))
            return to_json(o);
        r = pthread_cond_timedwait(&control->changed, &control->mutex, &until);
    }
}

json_t *operations_to_json(struct control *control)
{
    json_t *list = json_array();
    MUTEX_GUARD(guard, &control->mutex);
    for (const struct operation *o = control->operations; o; o = o->next)
        json_array_append_new(list, to_json(o));
    return json_pack("{s:o}", "operations", list);
}

void operation_running_id(struct control *control, const char *application, char ret_id[CONTROL_ID_BYTES])
{
    ret_id[0] = '\0';
    MUTEX_GUARD(guard, &control->mutex);
    for (const struct operation *o = control->operations; o; o = o->next)
        if (o->running && strcmp(o->application, application) == 0)
            snprintf(ret_id, CONTROL_ID_BYTES, "%s", o->id);
}

void operations_free(struct control *control)
{
    while (control->operations) {
        struct operation *o = control->operations;
        control->operations = o->next;
        json_decref(o->result);
        free(o);
    }
}
