/* SPDX-License-Identifier: Apache-2.0 */
/* The export of an application: configurations, the holder or (NBD) the engine, and waiting until it serves. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/io.h"
#include "control/control_internal.h"
#include "export/fuse_mount.h"
#include "export/ublk.h"
#include "lib/http_client.h"

#define READY_POLL_FIRST_MS 1
#define READY_POLL_LAST_MS 20

#define JSON_FILE_MAX_BYTES (1u << 20)

int write_json_file(const char *path, const json_t *json, struct error *err)
{
    _cleanup_free_ char *text = json ? json_to_pretty_text(json) : NULL;
    if (!text)
        return error_set(err, -ENOMEM, "cannot write %s: out of memory", path);
    /* A disk that is full must not keep `up` from what goes on as it was. */
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *there = NULL;
    if (json_parse_file(path, &there, &ignored) == 0 && json_equal(there, json))
        return 0;
    return io_replace_file(path, text, strlen(text), 0600, err);
}

json_t *nbd_uri_json(const char *volume, const char *socket_path)
{
    _cleanup_free_ char *encoded = http_client_encode(socket_path);
    /* Slashes may stand in a query (RFC 3986), and people read it. */
    char path[3 * PATH_MAX];
    size_t n = 0;
    for (const char *at = encoded ? encoded : ""; *at && n + 1 < sizeof path; at++) {
        bool slash = strncmp(at, "%2F", 3) == 0;
        path[n++] = slash ? '/' : *at;
        at += slash ? 2 : 0;
    }
    path[n] = '\0';
    return json_sprintf("nbd+unix:///%s?socket=%s", volume, path);
}

/* The quota: the policy's; else what it was; else the default by the free space. */
static int choose_quota(const struct application *application, const struct app_policy *policy,
                        const char *config_path, uint64_t *ret, struct error *err)
{
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *old = NULL;
    struct statvfs fs;
    *ret = policy->quota_bytes;
    if (*ret)
        return 0;
    if (json_parse_file(config_path, &old, &ignored) == 0 &&
        json_get_u64(old, "quota_bytes", ret, &ignored) == 0 && *ret)
        return 0;
    int r = application_statvfs(application, &fs, err);
    if (r < 0)
        return r;
    uint64_t quarter = (uint64_t)fs.f_bavail * fs.f_frsize / 4 / (64u << 20) * (64u << 20);
    *ret = quarter < CONTROL_QUOTA_DEFAULT_BYTES ? quarter : CONTROL_QUOTA_DEFAULT_BYTES;
    if (*ret < APP_QUOTA_BYTES_MIN)
        *ret = APP_QUOTA_BYTES_MIN;
    return 0;
}

static json_t *engine_volumes(const struct application *application)
{
    json_t *list = json_array();
    for (size_t i = 0; i < application->spec->volume_count; i++) {
        const struct app_volume *v = &application->spec->volumes[i];
        json_t *backing = v->source ? json_string(v->source)
                                    : json_sprintf("%s/backing/%s.img", application->directory, v->name);
        json_array_append_new(list, json_pack("{s:s, s:I, s:o, s:b}", "name", v->name, "size_bytes",
                                              (json_int_t)v->size_bytes, "backing", backing, "adopt", app_volume_is_adopted(v)));
    }
    return list;
}

static json_t *engine_thinning(const struct app_policy *policy)
{
    json_t *list = json_array();
    for (size_t i = 0; i < policy->thinning_count; i++)
        json_array_append_new(list, json_pack("{s:I, s:I}", "after_ns", (json_int_t)policy->thinning[i].after_ns, "keep_s",
                                              (json_int_t)policy->thinning[i].keep_s));
    return list;
}

/* What engine.json has of the policy. */
static int policy_to_engine(const struct application *application, const struct app_policy *policy, const char *config_path, json_t **ret,
                            struct error *err)
{
    uint64_t quota_bytes = 0;
    int r = choose_quota(application, policy, config_path, &quota_bytes, err);
    if (r < 0)
        return r;
    *ret = json_pack("{s:s, s:s, s:I, s:I, s:o}", "ack", app_ack_mode_name(policy->ack_mode), "failure_mode",
                     app_failure_mode_name(policy->failure_mode), "quota_bytes", (json_int_t)quota_bytes, "history_ns",
                     (json_int_t)policy->history_ns, "thinning", engine_thinning(policy));
    if (policy->compress_after_ns != APP_COMPRESS_NEVER)
        json_object_set_new(*ret, "compress_after_ns", json_integer((json_int_t)policy->compress_after_ns));
    if (policy->seed_bytes_per_second)
        json_object_set_new(*ret, "seed_bytes_per_second", json_integer((json_int_t)policy->seed_bytes_per_second));
    return 0;
}

/* What engine.json has of the policy that it was written with the last time; NULL when that is not there or not whole. */
static json_t *policy_of_last_time(const char *config_path)
{
    static const char *const fields[] = {"ack", "failure_mode", "quota_bytes", "history_ns", "thinning", "compress_after_ns", "seed_bytes_per_second"};
    const size_t needed = 5;
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *old = NULL, *last = json_object();
    if (json_parse_file(config_path, &old, &ignored) < 0)
        return NULL;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        json_t *value = json_object_get(old, fields[i]);
        if (value)
            json_object_set(last, fields[i], value);
        else if (i < needed)
            return NULL;
    }
    return take_ptr(last);
}

int export_find_policy(struct application *application, json_t **ret, struct error *err)
{
    char path[PATH_MAX];
    struct app_policy *policy = NULL;
    struct error why = ERROR_INIT;
    json_t *last = NULL;
    int r = application_path(application, path, err, "engine.json");
    if (r < 0)
        return r;
    r = policy_load(application->control, application->spec->policy, &policy, &why);
    if (r == 0) {
        r = policy_to_engine(application, policy, path, ret, err);
        if (r == 0)
            r = store_keep_policy(application, policy, err);
        app_policy_free(policy);
    } else if ((last = policy_of_last_time(path))) { /* a policy that is damaged or lost must not keep the application from its data */
        *ret = last;
        r = 0;
    } else
        *err = why;
    MUTEX_GUARD(guard, &application->mutex);
    if (last && strcmp(application->policy_lost, why.message) != 0)
        log_warning(application->control->log, "%s: its policy cannot be used, and it goes on with the settings that it had: %s", application->name,
                    why.message);
    snprintf(application->policy_lost, sizeof application->policy_lost, "%s", last ? why.message : "");
    return r;
}

int export_write_engine_config(struct application *application, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *config = NULL;
    int r = application_path(application, path, err, "engine.json");
    if (r == 0)
        r = export_find_policy(application, &config, err);
    if (r < 0)
        return r;
    json_object_set_new(config, "application", json_string(application->name));
    json_object_set_new(config, "journal", json_sprintf("%s/journal", application->directory));
    json_object_set_new(config, "socket", json_string(application->socket));
    json_object_set_new(config, "volumes", engine_volumes(application));
    if (application->spec->key_file)
        json_object_set_new(config, "key_file", json_string_nocheck(application->spec->key_file));
    json_t *source = filling_engine_source(application);
    if (source)
        json_object_set_new(config, "source", source);
    return write_json_file(path, config, err);
}

int export_write_holder(const struct control *control, const char *directory, const char *name,
                        const char *role, const char *config_path, const json_t *volumes, enum app_export export,
                        bool restart, struct error *err)
{
    char path[PATH_MAX];
    bool ublk = export == APP_EXPORT_UBLK; /* the engine makes its devices itself */
    json_t *mounts = json_array();
    for (size_t i = 0; i < json_array_size(volumes) && !ublk; i++) {
        const char *volume = json_string_value(json_object_get(json_array_get(volumes, i), "name"));
        if (snprintf(path, sizeof path, "%s/fuse/%s", directory, volume) >= (int)sizeof path ||
            io_mkdirs(path, 0700, err) < 0) {
            json_decref(mounts);
            return err->code ? err->code
                             : error_set(err, -ENAMETOOLONG, "%s/fuse/%s: path too long", directory, volume);
        }
        json_array_append_new(mounts, json_pack("{s:s, s:s}", "volume", volume, "directory", path));
    }
    _cleanup_json_ json_t *config =
        json_pack("{s:s, s:o, s:[s, s, s, s], s:b, s:o}", "name", name, "mounts", mounts, "program",
                  control->programs.engine, role, "--config", config_path, "restart", restart, "pid_file",
                  json_sprintf("%s/holder.pid", directory));
    if (ublk) {
        json_t *program = json_object_get(config, "program");
        json_array_append_new(program, json_string("--ublk"));
        json_array_append_new(program, json_sprintf("%s/ublk", directory));
    }
    if (snprintf(path, sizeof path, "%s/holder.json", directory) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s/holder.json: path too long", directory);
    return write_json_file(path, config, err);
}

int application_write_configs(struct application *application, struct error *err)
{
    static const char *const below[] = {"backing", "journal/pins", "views"};
    char path[PATH_MAX];
    int r = 0;
    for (size_t i = 0; i < sizeof below / sizeof *below && r == 0; i++) {
        r = application_path(application, path, err, "%s", below[i]);
        if (r == 0)
            r = io_mkdirs(path, 0700, err);
    }
    if (r == 0)
        r = export_write_engine_config(application, err);
    if (r < 0 || application->spec->export == APP_EXPORT_NBD)
        return r;
    _cleanup_json_ json_t *volumes = engine_volumes(application);
    r = application_path(application, path, err, "engine.json");
    return r < 0 ? r
                 : export_write_holder(application->control, application->directory, application->name,
                                       "serve", path, volumes, application->spec->export, true, err);
}

void export_nbd_argv(const struct control *control, const char *role, const char *config_path, const char *socket_path,
                     const char *pid_path, const char *argv[EXPORT_NBD_ARGUMENTS])
{
    const char *const all[EXPORT_NBD_ARGUMENTS] = {control->programs.engine, role,         "--config", config_path, "--nbd",
                                                   socket_path,              "--pid-file", pid_path,   NULL};
    memcpy(argv, all, sizeof all);
}

static bool listens(const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof address.sun_path)
        return false;
    memcpy(address.sun_path, socket_path, strlen(socket_path));
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
}

/* A socket that somebody listens at, or a file. */
static bool is_there(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && (S_ISREG(st.st_mode) || listens(path));
}

int export_wait_ready(struct process *process, const char *socket_path, const char *also_path,
                      const char *log_path, off_t log_from, struct error *err)
{
    uint64_t end_ns = clock_boottime_ns(clock_system()) + CONTROL_START_TIMEOUT_MS * NS_PER_MS;
    int poll_ms = READY_POLL_FIRST_MS;
    for (;;) {
        struct error ignored = ERROR_INIT;
        char tail[PROCESS_TAIL_BYTES];
        if (listens(socket_path) && (!also_path || is_there(also_path)) &&
            http_client_call(socket_path, "GET", "/v1/status", NULL, CONTROL_STATUS_TIMEOUT_MS, NULL,
                             &ignored) == 0)
            return 0;
        int status = 0;
        if (process_wait(process, poll_ms, &status)) {
            process_log_tail(log_path, log_from, tail);
            return error_set(err, -EIO, "the engine ended while it was starting: %s (log: %s)",
                             tail[0] ? tail : "it said nothing", log_path);
        }
        if (clock_boottime_ns(clock_system()) > end_ns) {
            process_log_tail(log_path, log_from, tail);
            return error_set(err, -ETIMEDOUT, "the engine did not serve %s within %d s: %s (log: %s)",
                             socket_path, CONTROL_START_TIMEOUT_MS / 1000, tail, log_path);
        }
        poll_ms = poll_ms * 2 > READY_POLL_LAST_MS ? READY_POLL_LAST_MS : poll_ms * 2;
    }
}

/* Takes over what a former `up` has left running: holder, or an engine without one. */
static bool adopt(struct application *application, const char *pid_path, const char *word,
                  struct process *ret, bool *ret_orphaned)
{
    char engine_pid[PATH_MAX], config[PATH_MAX];
    struct error ignored = ERROR_INIT;
    *ret_orphaned = false;
    if (process_adopt(pid_path, word, ret) == 0)
        return true;
    if (application->spec->export == APP_EXPORT_NBD ||
        application_path(application, config, &ignored, "engine.json") < 0 ||
        application_path(application, engine_pid, &ignored, "engine.sock.pid") < 0)
        return false;
    *ret_orphaned = process_adopt(engine_pid, config, ret) == 0;
    return *ret_orphaned;
}

static int start_process(struct application *application, const char *pid_path, struct process *ret,
                         struct error *err)
{
    const struct control *control = application->control;
    char config[PATH_MAX], nbd[PATH_MAX], log_path[PATH_MAX];
    bool is_nbd = application->spec->export == APP_EXPORT_NBD;
    const char *argv[EXPORT_NBD_ARGUMENTS] = {control->programs.holder, "--config", config, NULL};
    int r = application_path(application, log_path, err, "engine.log");
    if (r == 0)
        r = application_path(application, nbd, err, "nbd.sock");
    if (r == 0)
        r = application_path(application, config, err, is_nbd ? "engine.json" : "holder.json");
    if (r == 0)
        r = application_write_configs(application, err);
    if (r < 0)
        return r;
    if (is_nbd)
        export_nbd_argv(control, "serve", config, nbd, pid_path, argv);
    struct process_options options = {.argv = argv, .log_path = log_path, .inherit_fd = -1};
    return process_start(&options, ret, err);
}

int application_export_start(struct application *application, struct error *err)
{
    char pid_path[PATH_MAX], word[PATH_MAX], also[PATH_MAX], log_path[PATH_MAX];
    enum app_export export = application->spec->export;
    bool is_nbd = export == APP_EXPORT_NBD, orphaned;
    struct process process = PROCESS_NONE;
    int r = application_path(application, pid_path, err, is_nbd ? "nbd.pid" : "holder.pid");
    if (r == 0)
        r = application_path(application, word, err, is_nbd ? "engine.json" : "holder.json");
    if (r == 0)
        r = application_path(application, also, err, is_nbd ? "nbd.sock" : "ublk/" UBLK_SERVED);
    if (r == 0)
        r = application_path(application, log_path, err, "engine.log");
    if (r < 0)
        return r;
    off_t log_from = process_log_size(log_path);
    if (adopt(application, pid_path, word, &process, &orphaned))
        log_info(application->control->log, "%s: taking over its running engine (pid %d)", application->name,
                 (int)process.pid);
    else {
        application_clear_remains(application);
        r = start_process(application, pid_path, &process, err);
    }
    if (r == 0)
        r = export_wait_ready(&process, application->socket, export == APP_EXPORT_FUSE ? NULL : also, log_path, log_from, err);
    if (r < 0) {
        process_stop(&process, CONTROL_STOP_TIMEOUT_MS);
        application_clear_remains(application);
        return r;
    }
    MUTEX_GUARD(guard, &application->mutex);
    application->process = process;
    application->orphaned = orphaned;
    application->started_ns = clock_boottime_ns(clock_system());
    cgroup_memory("", &application->memory);
    return 0;
}

void application_export_stop(struct application *application)
{
    pthread_mutex_lock(&application->mutex);
    struct process process = application->process;
    application->process = PROCESS_NONE; /* the main thread must not take its end for a crash */
    application->retry_ns = 0;
    pthread_mutex_unlock(&application->mutex);
    if (!process_stop(&process, CONTROL_STOP_TIMEOUT_MS))
        log_warning(application->control->log,
                    "%s: its engine did not end within %d s and was killed; it recovers at the next start",
                    application->name, CONTROL_STOP_TIMEOUT_MS / 1000);
    application_clear_remains(application);
}
