/* SPDX-License-Identifier: Apache-2.0 */
/* Runs `tidemark-engine verify`, whose output is one JSON object a line: progress, damage, summary. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/control_internal.h"

#define VERIFY_EXIT_DAMAGED 6
#define VERIFY_DAMAGES_TOLD 100u

enum { STEP_PIN, STEP_READ };

static void take_line(const char *line, struct operation *operation, json_t *damages, json_t **summary)
{
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *json = NULL;
    uint64_t done = 0, total = 0;
    if (json_parse("verify", line, strlen(line), &json, &ignored) < 0)
        return;
    const char *kind = json_string_value(json_object_get(json, "kind"));
    if (!kind)
        return;
    if (strcmp(kind, "progress") == 0 && json_get_u64(json, "done_bytes", &done, &ignored) == 0 &&
        json_get_u64(json, "total_bytes", &total, &ignored) == 0)
        operation_progress(operation, done, total, "bytes");
    else if (strcmp(kind, "damage") == 0 && json_array_size(damages) < VERIFY_DAMAGES_TOLD) {
        json_object_del(json, "kind");
        json_array_append(damages, json);
    } else if (strcmp(kind, "summary") == 0) {
        json_decref(*summary);
        *summary = json_incref(json);
    }
}

static int read_output(struct application *application, struct operation *operation, int lock_fd,
                       const char *id, json_t *damages, json_t **summary, int *ret_status, struct error *err)
{
    char config[PATH_MAX], log_path[PATH_MAX];
    int pipe_fds[2];
    int r = application_path(application, config, err, "engine.json");
    if (r == 0)
        r = application_path(application, log_path, err, "engine.log");
    if (r < 0)
        return r;
    if (pipe2(pipe_fds, O_CLOEXEC) < 0)
        return error_errno(err, -errno, "cannot make a pipe");
    const char *const argv[] = {
        application->control->programs.engine, "verify", "--config", config, "--pin", id, NULL};
    struct process_options options = {
        .argv = argv, .log_path = log_path, .inherit_fd = lock_fd, .output_fd = pipe_fds[1]};
    struct process process = PROCESS_NONE;
    r = process_start(&options, &process, err);
    close(pipe_fds[1]);
    _cleanup_fclose_ FILE *output = fdopen(pipe_fds[0], "r");
    _cleanup_free_ char *line = NULL;
    size_t capacity = 0;
    while (r == 0 && output && getline(&line, &capacity, output) >= 0) {
        take_line(line, operation, damages, summary);
        if (atomic_load(&application->control->stopping))
            process_kill(&process, SIGTERM);
    }
    if (r == 0)
        process_wait(&process, -1, ret_status);
    return r;
}

static int verify_pinned(struct application *application, struct operation *operation, int lock_fd,
                         const char *id, const json_t *pin, json_t **ret, struct error *err)
{
    int status = 0;
    _cleanup_json_ json_t *damages = json_array(), *summary = NULL;
    operation_step_begin(operation, STEP_READ);
    int r = read_output(application, operation, lock_fd, id, damages, &summary, &status, err);
    if (r < 0)
        return r;
    bool damaged = WIFEXITED(status) && WEXITSTATUS(status) == VERIFY_EXIT_DAMAGED;
    if (!summary || (!damaged && status != 0)) {
        char path[PATH_MAX], tail[PROCESS_TAIL_BYTES];
        struct error ignored = ERROR_INIT;
        tail[0] = '\0';
        if (application_path(application, path, &ignored, "engine.log") == 0)
            process_log_tail(path, 0, tail);
        return error_set(err, -EIO, "cannot verify %s: %s", application->name, tail);
    }
    json_object_del(summary, "kind");
    json_object_set_new(summary, "ok", json_boolean(!damaged && json_array_size(damages) == 0));
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
