/* SPDX-License-Identifier: Apache-2.0 */
/* Runs `tidemark-engine verify`, which prints each damage. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "control/control_internal.h"

#define VERIFY_EXIT_DAMAGED 6
#define VERIFY_DAMAGES_TOLD 100u

enum { STEP_PIN, STEP_READ };

static void take_damage(void *context, json_t *line)
{
    json_t *damages = context;
    if (strcmp(json_text(line, "kind"), "damage") != 0 || json_array_size(damages) >= VERIFY_DAMAGES_TOLD)
        return;
    json_object_del(line, "kind");
    json_array_append(damages, line);
}

static int verify_pinned(struct application *application, struct operation *operation, int lock_fd,
                         const char *id, const json_t *pin, json_t **ret, struct error *err)
{
    char config[PATH_MAX], log_path[PATH_MAX];
    _cleanup_json_ json_t *damages = json_array(), *summary = NULL;
    int r = application_path(application, config, err, "engine.json");
    if (r == 0)
        r = application_path(application, log_path, err, "engine.log");
    if (r < 0)
        return r;
    const char *const argv[] = {application->control->programs.engine, "verify", "--config", config, "--pin", id, NULL};
    const struct engine_job job = {.control = application->control, .what = "the verification", .argv = argv, .log_path = log_path,
                                   .lock_fd = lock_fd, .good_status = VERIFY_EXIT_DAMAGED, .operation = operation,
                                   .take = take_damage, .context = damages};
    operation_step_begin(operation, STEP_READ);
    r = engine_job_run(&job, &summary, err);
    if (r < 0)
        return error_context(err, "cannot verify %s", application->name);
    uint64_t count = 0;
    r = json_get_u64(summary, "damages", &count, err);
    if (r < 0)
        return r;
    json_object_set_new(summary, "ok", json_boolean(count == 0));
    json_object_set(summary, "pin_lsn", json_object_get(pin, "lsn"));
    json_object_set(summary, "damage", damages);
    *ret = json_incref(summary);
    operation_step_end(operation, STEP_READ, STEP_DONE, NULL);
    return 0;
}

/* What is written until now is to be covered: only sealed segments are read. *ret_left: why something is left out, or NULL. */
static int seal(struct application *application, const char **ret_left, struct error *err)
{
    int r = application_call(application, "POST", "/v1/seal", NULL, CONTROL_CALL_TIMEOUT_MS, NULL, err);
    *ret_left = NULL;
    if (r == -ESHUTDOWN)
        *ret_left = "journaling is suspended: what was not sealed before is not read";
    else if (r == -ENOENT)
        *ret_left = "the running engine is from an older version: what it has not sealed yet is not read; see upgrade-engine";
    return *ret_left ? 0 : r;
}

int verify_run(struct application *application, struct operation *operation, json_t **ret, struct error *err)
{
    char id[CONTROL_ID_BYTES];
    int lock_fd = -1;
    const char *left = NULL;
    _cleanup_json_ json_t *pin = NULL;
    operation_step_begin(operation, STEP_PIN);
    int r = control_new_id(application->control, "verify-", id, err);
    if (r == 0)
        r = seal(application, &left, err);
    if (r == 0)
        r = pin_take(application, id, "latest", NULL, &lock_fd, &pin, err);
    if (r == -EBADMSG) { /* the newest history is damaged: that is for the verification to tell */
        *err = ERROR_INIT;
        r = pin_take(application, id, "latest", "salvage", &lock_fd, &pin, err);
    }
    if (r == -ERANGE || r == -EBUSY) { /* it cannot be opened yet: that says nothing of what is there */
        *err = ERROR_INIT;
        r = pin_take(application, id, "latest", "whole", &lock_fd, &pin, err);
    }
    if (r < 0)
        return r;
    operation_step_end(operation, STEP_PIN, STEP_DONE, left);
    if (left)
        log_warning(application->control->log, "verify of %s: %s", application->name, left);
    r = verify_pinned(application, operation, lock_fd, id, pin, ret, err);
    close(lock_fd);
    pin_drop(application, id);
    return r;
}
