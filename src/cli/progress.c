/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "base/units.h"
#include "cli/cli_internal.h"

#define PROGRESS_SILENT_NS NS_PER_SECOND       /* what ends sooner shows nothing */
#define PROGRESS_TERMINAL_NS (200 * NS_PER_MS) /* between updates of the line */
#define PROGRESS_COLUMNS 79u                   /* of a terminal that does not say */
#define PROGRESS_LINE_NS (5 * NS_PER_SECOND)   /* between lines elsewhere */

struct cli_progress {
    pthread_mutex_t mutex; /* guards what follows up to `thread` */
    pthread_cond_t wake;
    char what[CLI_TEXT_BYTES];
    char step[CLI_TEXT_BYTES];
    char unit[32];
    uint64_t done;
    uint64_t total;
    bool end;
    bool shown;
    pthread_t thread;
    uint64_t started_ns;
    bool terminal;
    unsigned columns; /* at most so many are used of a terminal's line */
};

static void describe(const struct cli_progress *p, char *text, size_t size)
{
    char done[UNITS_TEXT_BYTES], total[UNITS_TEXT_BYTES];
    size_t used = (size_t)snprintf(text, size, "%s%s%s", p->what, *p->step ? ": " : "", p->step);
    if (used < size && (p->done || p->total)) {
        bool bytes = strcmp(p->unit, "bytes") == 0;
        if (bytes) {
            units_format_bytes(p->done, done);
            units_format_bytes(p->total, total);
        } else {
            snprintf(done, sizeof done, "%llu", (unsigned long long)p->done);
            snprintf(total, sizeof total, "%llu", (unsigned long long)p->total);
        }
        used += (size_t)snprintf(text + used, size - used, ", %s%s%s%s%s", done, p->total ? " of " : "",
                                 p->total ? total : "", bytes ? "" : " ", bytes ? "" : p->unit);
        if (p->total && used < size)
            used += (size_t)snprintf(text + used, size - used, " (%u %%)",
                                     (unsigned)(100.0 * (double)p->done / (double)p->total));
    }
    if (used < size)
        snprintf(text + used, size - used, ", %llu s",
                 (unsigned long long)((clock_boottime_ns(clock_system()) - p->started_ns) / NS_PER_SECOND));
}

/* A line that wraps could not be cleared. Each character of UTF-8 is taken as one column wide. */
static int fitting_bytes(const char *text, unsigned columns)
{
    int length = 0;
    for (; text[length]; length++)
        if (((unsigned char)text[length] & 0xc0) != 0x80 && columns-- == 0)
            break;
    return length;
}

static void *tick(void *context)
{
    struct cli_progress *p = context;
    uint64_t pause_ns = PROGRESS_SILENT_NS;
    char text[512];
    MUTEX_GUARD(guard, &p->mutex);
    while (!p->end) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        uint64_t at_ns = (uint64_t)until.tv_sec * NS_PER_SECOND + (uint64_t)until.tv_nsec + pause_ns;
        until = (struct timespec){(time_t)(at_ns / NS_PER_SECOND), (long)(at_ns % NS_PER_SECOND)};
        int r = 0;
        while (!p->end && r == 0)
            r = pthread_cond_timedwait(&p->wake, &p->mutex, &until);
        if (p->end)
            break;
        describe(p, text, sizeof text);
        if (p->terminal)
            fprintf(stderr, "\r\033[K%.*s", fitting_bytes(text, p->columns), text);
        else
            fprintf(stderr, "tidemark: %s\n", text);
        fflush(stderr);
        p->shown = true;
        pause_ns = p->terminal ? PROGRESS_TERMINAL_NS : PROGRESS_LINE_NS;
    }
    return NULL;
}

struct cli_progress *cli_progress_new(const struct cli *cli, const char *what)
{
    struct error ignored = ERROR_INIT;
    struct cli_progress *p = cli->quiet ? NULL : calloc(1, sizeof *p);
    if (!p)
        return NULL;
    pthread_mutex_init(&p->mutex, NULL);
    thread_cond_init(&p->wake);
    snprintf(p->what, sizeof p->what, "%s", what);
    p->started_ns = clock_boottime_ns(clock_system());
    p->terminal = cli->terminal_err;
    p->columns = (cli->columns_err > 1 ? cli->columns_err : PROGRESS_COLUMNS) - 1;
    if (thread_start(&p->thread, "progress", tick, p, &ignored) < 0) {
        free(p); /* no progress is no reason to fail */
        return NULL;
    }
    return p;
}

void cli_progress_set(struct cli_progress *progress, const char *step, uint64_t done, uint64_t total,
                      const char *unit)
{
    if (!progress)
        return;
    MUTEX_GUARD(guard, &progress->mutex);
    snprintf(progress->step, sizeof progress->step, "%s", step ? step : "");
    snprintf(progress->unit, sizeof progress->unit, "%s", unit ? unit : "");
    progress->done = done;
    progress->total = total;
}

void cli_progress_free(struct cli_progress *progress)
{
    if (!progress)
        return;
    pthread_mutex_lock(&progress->mutex);
    progress->end = true;
    pthread_cond_signal(&progress->wake);
    pthread_mutex_unlock(&progress->mutex);
    pthread_join(progress->thread, NULL);
    if (progress->shown && progress->terminal) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
    pthread_cond_destroy(&progress->wake);
    pthread_mutex_destroy(&progress->mutex);
    free(progress);
}
