/* SPDX-License-Identifier: Apache-2.0 */
/* Replacing the engine of a running application by the program that is installed now.
 *
 * FUSE, ublk: the engine is killed and its holder starts the program at the same path again, which takes the volumes over and has
 * the kernel send again what was not answered: applications see a pause. A SIGTERM would end the holder and the mounts.
 * NBD: the engine is stopped and started: clients are disconnected and must connect again.
 * Nothing is killed before the new program has said that it can read configuration and journal: one that refuses them would
 * end the mounts. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/control_internal.h"

#define CHECK_TIMEOUT_MS 30000
#define FIRST_READ_TIMEOUT_MS 60000 /* of the read that measures the pause */
#define READY_POLL_MS 10
#define RETRY_NS NS_PER_SECOND

enum { STEP_CHECK, STEP_REPLACE };

struct upgrade {
    struct application *application;
    struct operation *operation;
    char program[PATH_MAX];
    json_t *before; /* status of the engine that goes */
    json_t *next;   /* what the installed program says */
    double pause_ms;
    bool disconnected;
};

static const char *field(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "?";
}

/* The program that the holder starts is the one that runs: holder.json was written anew by an `up` that has taken over and may be
 * of another installation. */
static int choose_program(struct upgrade *u, struct error *err)
{
    char path[64];
    struct programs now;
    _cleanup_free_ char *held = NULL;
    size_t capacity = 0;
    programs_find(&now);
    if (!now.engine[0])
        return error_set(err, -ENOSYS, "no tidemark-engine is installed beside tidemark");
    snprintf(u->program, sizeof u->program, "%s", now.engine);
    if (u->application->spec->export == APP_EXPORT_NBD)
        return 0;
    snprintf(path, sizeof path, "/proc/%lld/cmdline", (long long)json_integer_value(json_object_get(u->before, "pid")));
    _cleanup_fclose_ FILE *words = fopen(path, "re");
    bool known = words && getdelim(&held, &capacity, '\0', words) > 0;
    if (!known || strcmp(held, u->program) != 0)
        return error_set(err, -EBUSY,
                         "the running holder starts %s, and the engine is installed as %s now: stop the workload and restart "
                         "`tidemark up` at a good moment",
                         known ? held : "nothing", u->program);
    return 0;
}

/* Asks the program whether it could take over. */
static int ask_program(struct upgrade *u, struct error *err)
{
    char config[PATH_MAX], text[PROCESS_TAIL_BYTES + 64];
    struct process_result result;
    struct error ignored = ERROR_INIT;
    int r = application_path(u->application, config, err, "engine.json");
    if (r < 0)
        return r;
    const char *const argv[] = {u->program, "check", "--config", config, NULL};
    const struct process_options options = {.argv = argv, .inherit_fd = -1};
    r = process_run(&options, CHECK_TIMEOUT_MS, &result, err);
    if (r < 0)
        return r;
    if (result.exit_status != 0 || json_parse("check", result.output, strlen(result.output), &u->next, &ignored) < 0)
        return error_set(err, -EINVAL, "the installed program %s cannot take over, nothing was changed: %s", u->program,
                         process_describe(&result, text, sizeof text));
    return 0;
}

static int check(struct upgrade *u, bool disconnect, struct error *err)
{
    struct application *a = u->application;
    operation_step_begin(u->operation, STEP_CHECK);
    pthread_mutex_lock(&a->mutex);
    bool orphaned = a->orphaned, running = process_exists(&a->process);
    pthread_mutex_unlock(&a->mutex);
    if (!running)
        return error_set(err, -EBUSY, "%s is not running: it will run the installed program once it is started", a->name);
    if (orphaned)
        return error_set(err, -EBUSY,
                         "the holder of %s was ended: nobody would start its engine again. Stop the workload and restart "
                         "`tidemark up` at a good moment", a->name);
    if (a->spec->export == APP_EXPORT_NBD && !disconnect)
        return error_set(err, -EBUSY,
                         "%s is exported by NBD: its clients would be disconnected and have to connect again; give --disconnect "
                         "if they can", a->name);
    if (a->spec->export == APP_EXPORT_FUSE && a->control->resend == CONTROL_RESEND_NO)
        return error_set(err, -EOPNOTSUPP,
                         "this kernel cannot send requests again (FUSE_NOTIFY_RESEND, Linux 6.9): I/O under way would hang. Stop the "
                         "workload and restart `tidemark up` at a good moment");
    int r = application_call(a, "GET", "/v1/status", NULL, CONTROL_CALL_TIMEOUT_MS, &u->before, err);
    if (r == 0)
        r = choose_program(u, err);
    if (r == 0)
        r = ask_program(u, err);
    /* What is sealed need not be recovered. A suspended journal has nothing to seal. */
    if (r == 0)
        r = application_call(a, "POST", "/v1/seal", NULL, CONTROL_CALL_TIMEOUT_MS, NULL, err);
    if (r == -ESHUTDOWN || r == -ENOENT) /* or the old engine does not know the call */
        r = 0;
    if (r == 0)
        operation_step_end(u->operation, STEP_CHECK, STEP_DONE, field(u->next, "version"));
    return r;
}

/* Reads a block of the first volume, with FUSE as the loop device does: it is answered by the new engine. */
static int read_first_block(struct upgrade *u, struct error *err)
{
    char input[PATH_MAX + 4] = "if=", text[PROCESS_TAIL_BYTES + 64];
    struct process_result result;
    const struct app_spec *spec = u->application->spec;
    int r = application_path(u->application, input + 3, err, spec->export == APP_EXPORT_UBLK ? "ublk/%s" : "fuse/%s/vol",
                             spec->volumes[0].name);
    if (r < 0)
        return r;
    const char *const argv[] = {"dd", input, "of=/dev/null", "bs=4096", "count=1", "iflag=direct", NULL};
    const struct process_options options = {.argv = argv, .inherit_fd = -1};
    r = process_run(&options, FIRST_READ_TIMEOUT_MS, &result, err);
    if (r == 0 && result.exit_status != 0)
        r = error_set(err, -EIO, "reading a volume while its engine was replaced failed: %s",
                      process_describe(&result, text, sizeof text));
    return r;
}

/* Waits until another process than `old_pid` answers at the engine's socket. */
static int wait_for_next(struct upgrade *u, json_int_t old_pid, json_t **ret, struct error *err)
{
    struct application *a = u->application;
    uint64_t end_ns = clock_boottime_ns(clock_system()) + CONTROL_START_TIMEOUT_MS * NS_PER_MS;
    for (;;) {
        _cleanup_json_ json_t *status = NULL;
        struct error why = ERROR_INIT;
        int r = application_call(a, "GET", "/v1/status", NULL, CONTROL_CALL_TIMEOUT_MS, &status, &why);
        if (r == 0 && json_integer_value(json_object_get(status, "pid")) != old_pid) {
            *ret = json_incref(status);
            return 0;
        }
        if (clock_boottime_ns(clock_system()) > end_ns)
            return error_set(err, -ETIMEDOUT, "the new engine of %s does not answer (see its engine.log): %s", a->name, why.message);
        pthread_mutex_lock(&a->mutex);
        struct process holder = a->process; /* looked at only: the main thread waits for it once this has ended */
        pthread_mutex_unlock(&a->mutex);
        holder.child = false;
        holder.fd = dup(holder.fd);
        bool ended = holder.fd >= 0 && process_wait(&holder, READY_POLL_MS, NULL);
        if (!ended)
            process_forget(&holder);
        if (ended)
            return error_set(err, -EIO, "the new engine of %s refused to start (see its engine.log); it is started again", a->name);
    }
}

static int replace_engine(struct upgrade *u, json_t **ret_status, struct error *err)
{
    char pid_path[PATH_MAX], config[PATH_MAX];
    struct process engine = PROCESS_NONE;
    json_int_t old_pid = json_integer_value(json_object_get(u->before, "pid"));
    int r = application_path(u->application, pid_path, err, "engine.sock.pid");
    if (r == 0)
        r = application_path(u->application, config, err, "engine.json");
    if (r < 0)
        return r;
    if (process_adopt(pid_path, config, &engine) < 0 || engine.pid != old_pid) {
        process_forget(&engine);
        return error_set(err, -EBUSY, "the engine of %s is being started again right now: try again", u->application->name);
    }
    uint64_t start_ns = clock_boottime_ns(clock_system());
    crash_plan(u->application);
    process_kill(&engine, SIGKILL);
    process_forget(&engine);
    r = read_first_block(u, err);
    u->pause_ms = (double)(clock_boottime_ns(clock_system()) - start_ns) / 1e6;
    return r < 0 ? r : wait_for_next(u, old_pid, ret_status, err);
}

static int restart_engine(struct upgrade *u, json_t **ret_status, struct error *err)
{
    struct application *a = u->application;
    uint64_t start_ns = clock_boottime_ns(clock_system());
    u->disconnected = true;
    application_export_stop(a);
    int r = application_export_start(a, err);
    u->pause_ms = (double)(clock_boottime_ns(clock_system()) - start_ns) / 1e6;
    if (r == 0)
        return application_call(a, "GET", "/v1/status", NULL, CONTROL_CALL_TIMEOUT_MS, ret_status, err);
    application_set_state(a, APPLICATION_FAILED, err->message);
    MUTEX_GUARD(guard, &a->mutex);
    a->retry_ns = clock_boottime_ns(clock_system()) + RETRY_NS;
    return r;
}

static int replace(struct upgrade *u, json_t **ret, struct error *err)
{
    struct application *a = u->application;
    char detail[64];
    _cleanup_json_ json_t *status = NULL;
    operation_step_begin(u->operation, STEP_REPLACE);
    manifests_pause(a->manifests);
    int r = a->spec->export == APP_EXPORT_NBD ? restart_engine(u, &status, err) : replace_engine(u, &status, err);
    manifests_resume(a->manifests);
    if (r < 0)
        return r;
    snprintf(detail, sizeof detail, "%.1f ms without answers", u->pause_ms);
    operation_step_end(u->operation, STEP_REPLACE, STEP_DONE, detail);
    log_info(a->control->log, "%s: engine %s (pid %lld) replaced by %s (pid %lld), %s", a->name, field(u->before, "version"),
             json_integer_value(json_object_get(u->before, "pid")), field(status, "version"),
             json_integer_value(json_object_get(status, "pid")), detail);
    *ret = json_pack("{s:s, s:O?, s:O?, s:O, s:O, s:f, s:b}", "application", a->name, "from_version",
                     json_object_get(u->before, "version"), "to_version", json_object_get(status, "version"), "from_pid",
                     json_object_get(u->before, "pid"), "to_pid", json_object_get(status, "pid"), "pause_ms", u->pause_ms,
                     "disconnected", u->disconnected);
    return *ret ? 0 : error_set(err, -EPROTO, "the engine's status has no pid");
}

int upgrade_run(struct application *application, struct operation *operation, const json_t *request, json_t **ret,
                struct error *err)
{
    struct upgrade u = {.application = application, .operation = operation};
    int r = check(&u, json_is_true(json_object_get(request, "disconnect")), err);
    if (r == 0)
        r = replace(&u, ret, err);
    json_decref(u.before);
    json_decref(u.next);
    return r < 0 ? error_context(err, "cannot replace the engine of %s", application->name) : 0;
}
