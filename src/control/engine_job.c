/* SPDX-License-Identifier: Apache-2.0 */
/* A command of `tidemark-engine` that reads a journal beside the running engine: verify, copy. What it prints is a JSON object a line:
 * {"kind": "progress", "done_bytes", "total_bytes"}, its own kinds, at the end {"kind": "summary"}; and json_of_error, where it fails: not
 * by the log alone, which may lie on the disk that is full. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "control/control_internal.h"

struct output {
    const struct engine_job *job;
    json_t *summary;
    struct error failure;
};

static void take_line(struct output *o, const char *line)
{
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *json = NULL;
    uint64_t done, total;
    if (json_parse(o->job->what, line, strlen(line), &json, &ignored) < 0)
        return;
    const char *kind = json_text(json, "kind");
    if (strcmp(kind, "summary") == 0) {
        json_decref(o->summary);
        o->summary = json_incref(json);
        json_object_del(json, "kind");
    } else if (json_object_get(json, "error")) {
        int code = json_to_error(json, -EIO, "unknown error", &o->failure);
        o->failure.code = io_is_no_room(code) ? code : -EIO; /* any other is of that process, not of what was asked for */
    } else if (strcmp(kind, "progress") != 0) {
        if (o->job->take)
            o->job->take(o->job->context, json);
    } else if (o->job->operation && json_get_u64(json, "done_bytes", &done, &ignored) == 0 &&
               json_get_u64(json, "total_bytes", &total, &ignored) == 0)
        operation_progress(o->job->operation, done, total, "bytes");
}

static int run(struct output *o, int *ret_status, struct error *err)
{
    const struct engine_job *job = o->job;
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) < 0)
        return error_errno(err, -errno, "cannot make a pipe");
    struct process_options options = {.argv = job->argv, .log_path = job->log_path, .inherit_fd = job->lock_fd, .output_fd = pipe_fds[1]};
    struct process process = PROCESS_NONE;
    int r = process_start(&options, &process, err);
    close(pipe_fds[1]);
    _cleanup_fclose_ FILE *output = fdopen(pipe_fds[0], "r");
    if (!output)
        close(pipe_fds[0]);
    _cleanup_free_ char *line = NULL;
    size_t capacity = 0;
    while (r == 0 && output && getline(&line, &capacity, output) >= 0) {
        take_line(o, line);
        if (atomic_load(&job->control->stopping))
            process_kill(&process, SIGTERM);
    }
    if (r == 0)
        process_wait(&process, -1, ret_status);
    return r;
}

/* It ended with `status`, and not well. */
static int tell_failure(const struct output *o, int status, off_t log_from, struct error *err)
{
    char tail[PROCESS_TAIL_BYTES];
    if (atomic_load(&o->job->control->stopping))
        return error_set(err, -EBUSY, "`tidemark up` is stopping");
    if (o->failure.code)
        return error_set(err, o->failure.code, "%s has failed: %s", o->job->what, o->failure.message);
    process_log_tail(o->job->log_path, log_from, tail);
    if (WIFSIGNALED(status))
        return error_set(err, -EIO, "%s has failed: its process was killed by signal %d%s%s", o->job->what, WTERMSIG(status), *tail ? ": " : "", tail);
    return error_set(err, -EIO, "%s has failed: %s", o->job->what, *tail ? tail : "its process ended without saying why");
}

int engine_job_run(const struct engine_job *job, json_t **ret_summary, struct error *err)
{
    struct output o = {.job = job};
    int status = 0;
    off_t log_from = process_log_size(job->log_path);
    int r = run(&o, &status, err);
    if (r == 0 && (!o.summary || (status != 0 && !(WIFEXITED(status) && WEXITSTATUS(status) == job->good_status))))
        r = tell_failure(&o, status, log_from, err);
    if (r == 0)
        *ret_summary = o.summary;
    else
        json_decref(o.summary);
    return r;
}
