/* SPDX-License-Identifier: Apache-2.0 */
/* The workload's own commands. They get TIDEMARK_APPLICATION in the environment, run in / in a session of
 * their own, and their output goes to lifecycle.log: a daemon that they leave behind may keep writing there.
 */
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "control/control_internal.h"

#define PROBE_INTERVAL_MS 200

static int run_one(const struct application *application, const char *which,
                   const struct app_command *command, int timeout_ms, struct error *err)
{
    char name[sizeof "TIDEMARK_APPLICATION=" + APP_NAME_LENGTH_MAX], log_path[PATH_MAX],
        text[PROCESS_TAIL_BYTES + 64];
    int r = application_path(application, log_path, err, "lifecycle.log");
    if (r < 0)
        return r;
    snprintf(name, sizeof name, "TIDEMARK_APPLICATION=%s", application->name);
    const char *const environment[] = {name, NULL};
    struct process_options options = {.argv = (const char *const *)command->argv,
                                      .log_path = log_path,
                                      .inherit_fd = -1,
                                      .environment = environment};
    struct process_result result;
    r = process_run(&options, timeout_ms, &result, err);
    if (r < 0)
        return error_context(err, "lifecycle.%s of %s", which, application->name);
    if (result.exit_status == 0 && !result.timed_out)
        return 0;
    const char *shown = command->argv[command->shell ? 2 : 0];
    return error_set(err, result.timed_out ? -ETIMEDOUT : -EIO,
                     "lifecycle.%s of %s: `%.200s%s` failed: %s (see %s)", which, application->name, shown,
                     !command->shell && command->count > 1 ? " ..." : "",
                     process_describe(&result, text, sizeof text), log_path);
}

int lifecycle_run(const struct application *application, const char *which,
                  const struct app_commands *commands, struct error *err)
{
    for (size_t i = 0; i < commands->count; i++) {
        int r = run_one(application, which, &commands->items[i], CONTROL_LIFECYCLE_TIMEOUT_MS, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int lifecycle_probe(const struct application *application, const struct app_commands *commands,
                    struct error *err)
{
    uint64_t end_ns = clock_boottime_ns(clock_system()) + CONTROL_PROBE_TIMEOUT_MS * NS_PER_MS;
    for (size_t i = 0; i < commands->count;) {
        uint64_t now_ns = clock_boottime_ns(clock_system());
        int left_ms = now_ns < end_ns ? (int)((end_ns - now_ns) / NS_PER_MS) + 1 : 1;
        int r = run_one(application, "probe", &commands->items[i], left_ms, err);
        if (r == 0) {
            i++;
            continue;
        }
        if (clock_boottime_ns(clock_system()) + PROBE_INTERVAL_MS * NS_PER_MS >= end_ns)
            return error_context(err, "still not well after %d s", CONTROL_PROBE_TIMEOUT_MS / 1000);
        /* The interval between two tries, not a wait for something to happen. */
        nanosleep(&(struct timespec){.tv_nsec = PROBE_INTERVAL_MS * 1000000L}, NULL);
        *err = ERROR_INIT;
    }
    return 0;
}

static int marker_path(const struct application *application, char path[PATH_MAX], struct error *err)
{
    return application_path(application, path, err, "workload-stopped");
}

void lifecycle_mark_stopped(struct application *application)
{
    struct error err = ERROR_INIT;
    char path[PATH_MAX];
    int r = marker_path(application, path, &err);
    if (r == 0)
        r = io_replace_file(path, "", 0, 0600, &err);
    if (r < 0)
        log_error(application->control->log, "%s: %s", application->name, err.message);
}

void lifecycle_start_marked(struct application *application)
{
    struct error err = ERROR_INIT;
    char path[PATH_MAX];
    if (marker_path(application, path, &err) < 0 || access(path, F_OK) < 0)
        return;
    if (lifecycle_run(application, "start", &application->spec->start, &err) < 0)
        log_error(application->control->log, "%s", err.message);
    unlink(path);
}
