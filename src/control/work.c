/* SPDX-License-Identifier: Apache-2.0 */
/* Long operations: a thread each, the application held busy meanwhile. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/thread.h"
#include "control/work_internal.h"
#include "lib/http_client.h"

#define CONTINUE_TIMEOUT_MS 500u /* the main thread asks */

struct work {
    enum work_kind kind;
    struct application *application;
    struct operation *operation;
    json_t *request;
    json_t *log; /* of an interrupted rewind */
};

static const char *const open_steps[] = {"pin the point", "start the view", "attach", "mount", NULL};
static const char *const salvage_steps[] = {"pin the point", "start the view", "attach",
                                            "mount",         "look for damage", NULL};
static const char *const upgrade_steps[] = {"ask the installed program", "replace the engine", NULL};
static const char *const verify_steps[] = {"pin the journal", "read everything", NULL};

static const char *kind_name(enum work_kind kind)
{
    static const char *const names[] = {"open", "rewind", "undo", "verify", "upgrade-engine", "clone"};
    return names[kind];
}

static int perform(struct work *w, json_t **ret, struct error *err)
{
    const char *to = json_string_value(json_object_get(w->request, "to"));
    switch (w->kind) {
    case WORK_OPEN:
        return view_open(w->application, w->operation, w->request, ret, err);
    case WORK_VERIFY:
        return verify_run(w->application, w->operation, ret, err);
    case WORK_UPGRADE:
        return upgrade_run(w->application, w->operation, w->request, ret, err);
    case WORK_CLONE:
        return clone_run(w->application, w->operation, w->request, ret, err);
    default:
        return rewind_run(w->application, w->operation, w->kind == WORK_REWIND ? to : NULL, w->log, ret, err);
    }
}

static void *work_main(void *context)
{
    struct work *w = context;
    struct control *control = w->application->control;
    struct error err = ERROR_INIT;
    json_t *result = NULL;
    int r = perform(w, &result, &err);
    if (r < 0)
        log_error(control->log, "%s of %s: %s", w->operation->kind, w->application->name, err.message);
    else
        log_info(control->log, "%s of %s is done", w->operation->kind, w->application->name);
    if (w->kind != WORK_VERIFY)
        application_end(w->application);
    operation_end(w->operation, r < 0 ? r : 0, result, &err);
    application_unref(w->application);
    json_decref(w->request);
    json_decref(w->log);
    free(w);
    control_work_ended(control);
    return NULL;
}

/* Takes nothing on failure; the application is busy already (not for verify). */
static int launch(struct application *application, enum work_kind kind, json_t *request, json_t *log,
                  char ret_id[CONTROL_ID_BYTES], struct error *err)
{
    bool salvage = json_is_true(json_object_get(request, "salvage"));
    const char *const *steps = kind == WORK_OPEN     ? (salvage ? salvage_steps : open_steps)
                               : kind == WORK_VERIFY  ? verify_steps
                               : kind == WORK_UPGRADE ? upgrade_steps
                               : kind == WORK_CLONE   ? clone_steps
                                                     : rewind_steps;
    struct work *w = calloc(1, sizeof *w);
    struct operation *operation =
        w ? operation_new(application->control, kind_name(kind), application->name, steps) : NULL;
    if (!operation) {
        free(w);
        return error_set(err, -ENOMEM, "out of memory");
    }
    /* Copies: a tree belongs to one thread. */
    *w = (struct work){kind, application, operation, json_deep_copy(request), json_deep_copy(log)};
    snprintf(ret_id, CONTROL_ID_BYTES, "%s", operation->id);
    application_ref(application);
    int r = control_work(application->control, work_main, w, err);
    if (r < 0) {
        operation_end(operation, r, NULL, err);
        application_unref(application);
        json_decref(w->request);
        json_decref(w->log);
        free(w);
    }
    return r;
}

int work_start(struct application *application, enum work_kind kind, json_t *request,
               char ret_id[CONTROL_ID_BYTES], struct error *err)
{
    bool exclusive = kind != WORK_VERIFY;
    if (atomic_load(&application->control->stopping))
        return error_set(err, -EBUSY, "`tidemark up` is stopping");
    int r = exclusive ? application_begin(application, kind_name(kind),
                                          kind == WORK_OPEN ? WORK_OPEN_WAIT_MS : 0, err)
                      : 0;
    if (r == 0 && (kind == WORK_REWIND || kind == WORK_UNDO) && rewind_is_unfinished(application)) {
        application_end(application);
        return error_set(err, -EBUSY,
                         "a rewind of %s has not ended: it is carried on when its engine answers again",
                         application->name);
    }
    if (r == 0) {
        r = launch(application, kind, request, NULL, ret_id, err);
        if (r < 0 && exclusive)
            application_end(application);
    }
    return r;
}

int work_start_busy(struct application *application, enum work_kind kind, json_t *request,
                    char ret_id[CONTROL_ID_BYTES], struct error *err)
{
    if (atomic_load(&application->control->stopping))
        return error_set(err, -EBUSY, "`tidemark up` is stopping");
    return launch(application, kind, request, NULL, ret_id, err);
}

/* Whether it is up to us: it runs, and nobody tried a moment ago. */
static bool may_continue(struct application *a)
{
    MUTEX_GUARD(guard, &a->mutex);
    return a->state == APPLICATION_RUNNING && !a->busy[0] &&
           a->rewind_retry_ns <= clock_boottime_ns(clock_system());
}

void rewind_continue(struct application *application)
{
    struct error err = ERROR_INIT;
    char id[CONTROL_ID_BYTES];
    if (!rewind_is_unfinished(application) || !may_continue(application) ||
        atomic_load(&application->control->stopping) ||
        http_client_call(application->socket, "GET", "/v1/status", NULL, CONTINUE_TIMEOUT_MS, NULL, &err) <
            0 ||
        application_begin(application, "rewind", 0, &err) < 0)
        return;
    _cleanup_json_ json_t *log = rewind_unfinished(application);
    const char *kind = json_string_value(json_object_get(log, "kind"));
    _cleanup_json_ json_t *request = json_pack("{s:O?}", "to", json_object_get(log, "to"));
    int r = log ? 0 : -ENOENT;
    if (r == 0) {
        log_info(application->control->log, "%s: carrying on with an interrupted %s", application->name,
                 kind ? kind : "rewind");
        r = launch(application, kind && strcmp(kind, "undo") == 0 ? WORK_UNDO : WORK_REWIND, request, log, id,
                   &err);
        if (r < 0)
            log_error(application->control->log, "%s: %s", application->name, err.message);
    }
    if (r < 0)
        application_end(application);
}
