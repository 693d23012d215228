/* SPDX-License-Identifier: Apache-2.0 */
/* An application: its place in the list, who changes it, start and stop in order, and what to do when its
 * process ends. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "control/control_internal.h"
#include "lib/http_client.h"

#define BUSY_POLL_MS 20
#define RETRY_CONNECT_MS 10000 /* a killed engine is back in well under a second */
#define RETRY_POLL_MS 20

static void pause_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L}, NULL);
}

struct application *application_find(struct control *control, const char *name, struct error *err)
{
    char names[512] = "";
    size_t used = 0;
    MUTEX_GUARD(guard, &control->mutex);
    for (struct application *a = control->applications; a; a = a->next) {
        if (strcmp(a->name, name) == 0) {
            a->refs++;
            return a;
        }
        if (used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", a->name);
    }
    const char *why = json_string_value(json_object_get(control->left_out, name));
    if (why)
        error_set(err, -ENOENT,
                  "the application '%.80s' is left out and not protected: %s; apply its YAML again", name,
                  why);
    else
        error_set(err, -ENOENT, "there is no application '%.80s'; %s%s", name,
                  names[0] ? "there are: " : "none was applied yet", names);
    return NULL;
}

void application_ref(struct application *application)
{
    MUTEX_GUARD(guard, &application->control->mutex);
    application->refs++;
}

void application_unref(struct application *application)
{
    {
        MUTEX_GUARD(guard, &application->control->mutex);
        if (--application->refs)
            return;
    }
    manifests_stop(application->manifests);
    process_forget(&application->process);
    app_spec_free(application->spec);
    free(application->volumes);
    pthread_mutex_destroy(&application->mutex);
    free(application);
}

int application_begin(struct application *application, const char *what, unsigned wait_ms, struct error *err)
{
    for (unsigned waited_ms = 0;; waited_ms += BUSY_POLL_MS) {
        pthread_mutex_lock(&application->mutex);
        bool free_now = !application->busy[0], gone = free_now && application->removed;
        if (gone) /* by whom it was waited for */
            error_set(err, -ENOENT, "there is no application '%s' any more: it was deleted, detached or closed meanwhile",
                      application->name);
        else if (free_now)
            snprintf(application->busy, sizeof application->busy, "%s", what);
        else if (waited_ms >= wait_ms)
            error_set(err, -EBUSY,
                      "%s is busy: %s is under way; try again when that has ended (tidemark status %s)",
                      application->name, application->busy, application->name);
        pthread_mutex_unlock(&application->mutex);
        if (free_now)
            return gone ? -ENOENT : 0;
        if (waited_ms >= wait_ms)
            return err->code;
        pause_ms(BUSY_POLL_MS);
    }
}

void application_end(struct application *application)
{
    MUTEX_GUARD(guard, &application->mutex);
    application->busy[0] = '\0';
    control_wake(application->control);
}

void application_set_state(struct application *application, enum application_state state, const char *message)
{
    MUTEX_GUARD(guard, &application->mutex);
    application->state = state;
    snprintf(application->message, sizeof application->message, "%s", message ? message : "");
}

int application_path(const struct application *application, char ret[PATH_MAX], struct error *err,
                     const char *format, ...)
{
    va_list args;
    int n = snprintf(ret, PATH_MAX, "%s/", application->directory);
    va_start(args, format);
    int m = n < PATH_MAX ? vsnprintf(ret + n, (size_t)(PATH_MAX - n), format, args) : 0;
    va_end(args);
    if (n + m >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "a path below %s is too long", application->directory);
    return 0;
}

struct application *application_new(struct control *control, struct app_spec *spec, struct error *err)
{
    struct application *a = calloc(1, sizeof *a);
    if (a)
        a->volumes = calloc(APP_VOLUMES_MAX, sizeof *a->volumes);
    if (!a || !a->volumes) {
        free(a);
        app_spec_free(spec);
        error_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    a->control = control;
    a->refs = 1;
    a->process = PROCESS_NONE;
    a->spec = spec;
    a->state = APPLICATION_STOPPED;
    pthread_mutex_init(&a->mutex, NULL);
    snprintf(a->name, sizeof a->name, "%s", spec->name);
    int n = snprintf(a->directory, sizeof a->directory, "%s/apps/%s", control->state_directory, a->name);
    if (n < (int)sizeof a->directory)
        snprintf(a->socket, sizeof a->socket, "%s/engine.sock", a->directory);
    /* The longest socket below it is that of a view: views/v-123456/view.sock. */
    if (strlen(a->directory) + strlen("/views/v-123456/view.sock") > CONTROL_SOCKET_PATH_MAX) {
        error_set(err, -ENAMETOOLONG,
                  "the paths of sockets below %s would be longer than %u bytes: choose a shorter --state "
                  "directory or name",
                  a->directory, CONTROL_SOCKET_PATH_MAX);
        application_unref(a);
        return NULL;
    }
    return a;
}

void application_list(struct application *application)
{
    struct control *control = application->control;
    MUTEX_GUARD(guard, &control->mutex);
    struct application **at = &control->applications;
    while (*at && strcmp((*at)->name, application->name) < 0)
        at = &(*at)->next;
    application->refs++;
    application->next = *at;
    *at = application;
    json_object_del(control->left_out, application->name);
}

void application_unlist(struct application *application)
{
    struct control *control = application->control;
    {
        MUTEX_GUARD(guard, &control->mutex);
        struct application **at = &control->applications;
        while (*at && *at != application)
            at = &(*at)->next;
        if (!*at)
            return;
        *at = application->next;
        application->removed = true;
    }
    application_unref(application);
}

int application_statvfs(const struct application *application, struct statvfs *ret, struct error *err)
{
    const char *state = application->control->state_directory;
    if (statvfs(application->directory, ret) == 0 || (errno == ENOENT && statvfs(state, ret) == 0))
        return 0;
    return error_errno(err, -errno, "cannot see how much of %s is free", state);
}

int application_save(const struct application *application, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_free_ char *yaml = app_spec_to_yaml(application->spec), *text = yaml ? app_text_with_checksum(yaml) : NULL;
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    int r = application_path(application, path, err, "application.yaml");
    return r < 0 ? r : io_replace_file(path, text, strlen(text), 0600, err);
}

/* With the mutex; who waits for it is the main thread. */
static bool has_ended(const struct process *process)
{
    return poll(&(struct pollfd){.fd = process->fd, .events = POLLIN}, 1, 0) > 0;
}

/* Whether somebody will start its engine again soon: its holder; or (export nbd) we, at once after its first end, and not before what is under
 * way with the application has ended, which may be who asks. */
static bool comes_back(const struct application *application)
{
    struct application *a = (struct application *)(uintptr_t)application; /* only its mutex is changed */
    MUTEX_GUARD(guard, &a->mutex);
    bool restart = strcmp(a->busy, "restart") == 0;
    if (a->spec->export == APP_EXPORT_NBD && !a->failures && (restart || (a->retry_ns && !a->busy[0])))
        return true;
    if (a->spec->export == APP_EXPORT_NBD && a->busy[0] && !restart && has_ended(&a->process))
        return false;
    return a->state == APPLICATION_RUNNING && process_exists(&a->process) && !a->orphaned;
}

/* Whether it changes nothing, or the same thing, to ask twice. */
static bool may_be_asked_again(const char *method, const char *path, const json_t *body)
{
    static const char *const harmless[] = {"/v1/resolve", "/v1/sync", "/v1/seal", "/v1/diff", "/v1/forecast", "/v1/configure", "/v1/unpin", NULL};
    for (const char *const *one = harmless; *one; one++)
        if (strcmp(path, *one) == 0)
            return true;
    return strcmp(method, "GET") == 0 || json_is_true(json_object_get(body, "dry_run"));
}

int application_call(const struct application *application, const char *method, const char *path,
                     const json_t *body, unsigned timeout_ms, json_t **ret, struct error *err)
{
    unsigned limit_ms = timeout_ms < RETRY_CONNECT_MS ? timeout_ms : RETRY_CONNECT_MS;
    for (unsigned waited_ms = 0;; waited_ms += RETRY_POLL_MS) {
        *err = ERROR_INIT;
        int r = http_client_call(application->socket, method, path, body, timeout_ms, ret, err);
        /* Nothing was sent: its holder is starting it again. A question that a dying engine did not answer is asked again. */
        bool again = r == -ECONNREFUSED || (r == -ECONNRESET && may_be_asked_again(method, path, body));
        if (!again || waited_ms >= limit_ms || !comes_back(application))
            return r == -ECONNREFUSED
                       ? error_context(err, "the engine of %s does not answer", application->name)
                       : r;
        pause_ms(RETRY_POLL_MS);
    }
}

int application_start_manifests(struct application *application, struct error *err)
{
    if (!application->spec->manifests || application->manifests)
        return 0;
    struct manifests *manifests;
    int r = manifests_start(application->control, application->spec->manifests, application->socket,
                            &manifests, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &application->mutex);
    application->manifests = manifests;
    return 0;
}

static void stop_manifests(struct application *application)
{
    pthread_mutex_lock(&application->mutex);
    struct manifests *manifests = take_ptr(application->manifests);
    pthread_mutex_unlock(&application->mutex);
    manifests_stop(manifests);
}

/* An engine that was taken over may not know what was applied last, and a device may not have grown yet: a
 * former `up` may have ended in between. What is not possible now does not stop what runs. */
static int application_catch_up(struct application *application, struct error *err)
{
    struct error why = ERROR_INIT;
    int r = application_write_configs(application, err);
    if (r == 0 && (application_configure(application, &why) < 0 || application_grow(application, &why) < 0))
        log_error(application->control->log, "%s: %s", application->name, why.message);
    return r;
}

/* Whoever starts it: one that failed is tried again, and one that runs is not started once more by a try that was due. */
static void note_start(struct application *application, int r)
{
    MUTEX_GUARD(guard, &application->mutex);
    if (r == 0)
        application->retry_ns = application->failures = 0;
    else if (!application->retry_ns)
        application->retry_ns = clock_boottime_ns(clock_system()) + NS_PER_SECOND;
}

int application_start(struct application *application, struct error *err)
{
    _cleanup_json_ json_t *policy = NULL; /* before anything is started or taken over */
    application_set_state(application, APPLICATION_STARTING, NULL);
    int r = export_find_policy(application, &policy, err);
    if (r == 0)
        r = programs_check_export(&application->control->programs, application->spec->export, err);
    if (r == 0)
        r = application_export_start(application, err);
    if (r == 0) {
        r = (rewind_holds_volumes(application) ? application_attach : application_mount)(application, err);
        if (r == 0)
            r = application_catch_up(application, err);
        if (r == 0 && !rewind_is_unfinished(application))
            r = application_start_manifests(application, err);
        if (r < 0) {
            struct error ignored = ERROR_INIT;
            if (application_unmount(application, false, &ignored) < 0 ||
                application_detach(application, false, &ignored) < 0)
                log_error(application->control->log, "%s: %s", application->name, ignored.message);
            else
                application_export_stop(application);
        }
    }
    note_start(application, r);
    if (r < 0) {
        application_set_state(application, APPLICATION_FAILED, err->message);
        return error_context(err, "%s", application->name);
    }
    application_set_state(application, APPLICATION_RUNNING, NULL);
    return 0;
}

int application_stop(struct application *application, bool force, struct error *err)
{
    stop_manifests(application);
    int r = application_unmount(application, force, err);
    if (r == 0)
        r = application_detach(application, force, err);
    if (r < 0) {
        struct error second = ERROR_INIT;
        if (application_mount(application, &second) < 0 || application_start_manifests(application, &second) < 0)
            log_error(application->control->log, "%s: %s", application->name, second.message);
        return error_context(err, "%s", application->name);
    }
    application_export_stop(application);
    application_set_state(application, APPLICATION_STOPPED, NULL);
    return 0;
}

/* The next start: at once, then 1 s, 2 s ... 30 s. */
static uint64_t backoff_ns(unsigned failures)
{
    uint64_t seconds = failures == 0 ? 0 : failures > 5 ? 30 : 1ull << (failures - 1);
    return (seconds > 30 ? 30 : seconds) * NS_PER_SECOND;
}

static void restart(struct application *application)
{
    struct error err = ERROR_INIT;
    stop_manifests(application);
    application_clear_remains(application);
    int r = application_start(application, &err);
    pthread_mutex_lock(&application->mutex);
    application->failures = r < 0 ? application->failures + 1 : 0;
    application->retry_ns = r < 0 ? clock_boottime_ns(clock_system()) + backoff_ns(application->failures) : 0;
    pthread_mutex_unlock(&application->mutex);
    if (r < 0) {
        log_error(application->control->log, "%s", err.message);
        return;
    }
    log_info(application->control->log, "%s is back", application->name);
    lifecycle_start_marked(application);
}

static void *restart_main(void *context)
{
    struct application *application = context;
    struct control *control = application->control;
    if (!atomic_load(&control->stopping))
        restart(application);
    application_end(application);
    application_unref(application);
    control_work_ended(control);
    return NULL;
}

/* Its process has ended; mutex held, and nobody is at it. The holder gone and the engine alive: I/O goes on, so it is left alone
 * until it ends too. */
static void ended(struct application *application)
{
    char pid_path[PATH_MAX], config_path[PATH_MAX], tail[PROCESS_TAIL_BYTES], log_path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    if (application_path(application, pid_path, &ignored, "engine.sock.pid") < 0 ||
        application_path(application, config_path, &ignored, "engine.json") < 0 ||
        application_path(application, log_path, &ignored, "engine.log") < 0)
        return;
    process_log_tail(log_path, 0, tail);
    application->restarts++;
    application->retry_ns = clock_boottime_ns(clock_system()) + backoff_ns(application->failures);
    if (process_adopt(pid_path, config_path, &application->process) == 0) {
        application->orphaned = true;
        application->retry_ns = 0;
        log_error(application->control->log,
                  "%s: its holder was ended; its engine goes on (pid %d), but nothing starts it again until "
                  "it is stopped: "
                  "stop the workload and restart `tidemark up` at a good moment",
                  application->name, (int)application->process.pid);
        return;
    }
    application->orphaned = false;
    application->state = APPLICATION_FAILED;
    snprintf(application->message, sizeof application->message, "its engine has ended; starting it again: %s",
             tail);
    log_error(application->control->log, "%s: %s", application->name, application->message);
}

void application_look_after(struct application *application)
{
    struct error err = ERROR_INIT;
    pthread_mutex_lock(&application->mutex);
    bool watched = !application->busy[0];
    int status = 0;
    bool gone =
        watched && process_exists(&application->process) && process_wait(&application->process, 0, &status);
    if (gone) { /* at once: who begins something with it now would start another process */
        crash_note(application, status);
        ended(application);
    }
    bool due = application->retry_ns && application->retry_ns <= clock_boottime_ns(clock_system());
    pthread_mutex_unlock(&application->mutex);
    if (!due)
        rewind_continue(application);
    if (!due || application_begin(application, "restart", 0, &err) < 0)
        return;
    application_ref(application);
    if (control_work(application->control, restart_main, application, &err) < 0) {
        log_error(application->control->log, "%s: %s", application->name, err.message);
        application_end(application);
        application_unref(application);
    }
}
