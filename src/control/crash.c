/* SPDX-License-Identifier: Apache-2.0 */
/* Engines that do not stay: what the holder has noted (export/holder_ends.h), or, of an engine without one, `up` itself. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "control/control_internal.h"

#define CRASH_ROW 3u                         /* so many ends in a row are a loop */
#define CRASH_TOLD_NS (3600 * NS_PER_SECOND)
#define CRASH_RECENT_NS (10 * NS_PER_SECOND) /* until it has stayed for so long */

static void load_noted(const struct application *application, struct holder_ends *ret)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *json = NULL;
    *ret = application->ends;
    if (application->spec->export == APP_EXPORT_NBD || application_path(application, path, &ignored, HOLDER_ENDS_FILE) < 0 ||
        access(path, F_OK) < 0 || json_parse_file(path, &json, &ignored) < 0)
        return;
    ret->ends = (unsigned)json_integer_value(json_object_get(json, "ends"));
    ret->in_a_row = (unsigned)json_integer_value(json_object_get(json, "in_a_row"));
    ret->signal_number = (int)json_integer_value(json_object_get(json, "signal"));
    ret->status = (int)json_integer_value(json_object_get(json, "status"));
    ret->realtime_ns = (uint64_t)json_integer_value(json_object_get(json, "realtime_ns"));
    ret->ran_ms = (uint64_t)json_integer_value(json_object_get(json, "ran_ms"));
    ret->oom_killed = json_is_true(json_object_get(json, "oom_killed"));
    ret->limit_bytes = (uint64_t)json_integer_value(json_object_get(json, "limit_bytes"));
}

void crash_load(const struct application *application, struct holder_ends *ret)
{
    load_noted(application, ret);
    unsigned row = ret->in_a_row;
    for (size_t i = 0; i < CONTROL_PLANNED_ENDS; i++) {
        unsigned number = atomic_load(&application->planned_ends[i]);
        if (number && number <= ret->ends && ret->ends - number < row)
            ret->in_a_row--;
    }
}

/* The numbers of an engine whose holder is started anew begin again: none of before is one of its own. */
void crash_plan(struct application *application)
{
    struct holder_ends noted;
    load_noted(application, &noted);
    unsigned number = noted.ends + 1;
    for (size_t i = 0; i < CONTROL_PLANNED_ENDS; i++)
        if (atomic_load(&application->planned_ends[i]) >= number)
            atomic_store(&application->planned_ends[i], 0);
    atomic_store(&application->planned_ends[number % CONTROL_PLANNED_ENDS], number);
}

bool crash_is_loop(const struct holder_ends *e, uint64_t now_ns)
{
    /* A clock that was set back makes it look newer than now: it is recent then. */
    return e->in_a_row >= CRASH_ROW && (now_ns < e->realtime_ns || now_ns - e->realtime_ns < CRASH_RECENT_NS);
}

unsigned crash_engine_memory_mib(size_t volume_count)
{
    unsigned further = volume_count > CONTROL_ENGINE_MEMORY_VOLUMES ? (unsigned)volume_count - CONTROL_ENGINE_MEMORY_VOLUMES : 0;
    return CONTROL_ENGINE_MEMORY_MIB + further * CONTROL_VOLUME_MEMORY_MIB;
}

bool crash_was_for_memory(const struct holder_ends *e, uint64_t now_ns)
{
    return e->oom_killed && e->signal_number == SIGKILL && (now_ns < e->realtime_ns || now_ns - e->realtime_ns < CRASH_TOLD_NS);
}

const char *crash_describe_memory(const struct holder_ends *e, unsigned memory_mib, char *text, size_t size)
{
    char limit[UNITS_TEXT_BYTES], time[CLOCK_TEXT_BYTES];
    snprintf(text, size, "its engine was killed by the kernel for memory at %s, and was started again: the limit of its control group%s%s was "
             "reached; give it more (this engine needs up to %u MiB)", clock_format_rfc3339(e->realtime_ns, time), e->limit_bytes ? ", " : "",
             e->limit_bytes ? units_format_bytes(e->limit_bytes, limit) : "", memory_mib);
    return text;
}

#define LOG_END_BYTES 4096u

/* The last error in the engine's log, without its time; NULL: none. */
static const char *last_error(const char *log_path, char text[LOG_END_BYTES + 1])
{
    static const char mark[] = " error engine: ";
    const char *last = NULL;
    _cleanup_close_ int fd = open(log_path, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    ssize_t n = end < 0 ? -1 : pread(fd, text, LOG_END_BYTES, end > (off_t)LOG_END_BYTES ? end - (off_t)LOG_END_BYTES : 0);
    if (n <= 0)
        return NULL;
    text[n] = '\0';
    for (const char *at = text; (at = strstr(at, mark)); )
        last = at += sizeof mark - 1;
    if (last)
        text[last - text + (ptrdiff_t)strcspn(last, "\n")] = '\0';
    return last;
}

const char *crash_describe(const struct holder_ends *e, unsigned memory_mib, const char *log_path, char *text, size_t size)
{
    char how[96], limit[UNITS_TEXT_BYTES], remedy[512], log[LOG_END_BYTES + 1];
    const char *why = e->signal_number ? NULL : last_error(log_path, log);
    if (e->signal_number)
        snprintf(how, sizeof how, "by signal %d (%s)", e->signal_number, strsignal(e->signal_number));
    else
        snprintf(how, sizeof how, "with status %d", e->status);
    if (e->oom_killed)
        snprintf(remedy, sizeof remedy,
                 "the memory limit of its control group%s%s was reached: give it more (this engine needs up to %u MiB)",
                 e->limit_bytes ? ", " : "", e->limit_bytes ? units_format_bytes(e->limit_bytes, limit) : "",
                 memory_mib);
    else if (why)
        snprintf(remedy, sizeof remedy, "%.300s (%.180s)", why, log_path);
    else
        snprintf(remedy, sizeof remedy, "the reason should be in %.180s", log_path);
    snprintf(text, size, "its engine has ended %u times in a row, the last time %s after %.1f s; it is started again and again, and what "
             "uses its volumes waits: %s", e->in_a_row, how, (double)e->ran_ms / 1e3, remedy);
    return text;
}

void crash_note(struct application *application, int wait_status)
{
    struct cgroup_memory now;
    uint64_t boottime = clock_boottime_ns(clock_system());
    uint64_t ran_ns = application->started_ns && application->started_ns < boottime ? boottime - application->started_ns : 0;
    cgroup_memory("", &now);
    holder_ends_note(&application->ends, wait_status, ran_ns, clock_realtime_ns(clock_system()), &application->memory, &now);
}
