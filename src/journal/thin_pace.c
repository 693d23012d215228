/* SPDX-License-Identifier: Apache-2.0 */
/* Thinning, merging and compressing work half of the time while the application writes: priorities alone do not keep its p99, since a block that is
 * read here is before the application's in the disk's queue. Idle or near the quota it works all the time. */
#include <errno.h>
#include <time.h>

#include "journal/journal_internal.h"
#include "journal/thin_internal.h"

#define REST_MOST_NS (20 * NS_PER_MS) /* a rewind waits for it */

static uint64_t monotonic_ns(void)
{
    struct timespec t; /* not the journal's clock, which a test sets */
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

uint64_t thin_rest(uint64_t worked_ns, bool appended, uint32_t haste_percent)
{
    if (!appended || haste_percent > 100)
        return 0;
    return worked_ns < REST_MOST_NS ? worked_ns : REST_MOST_NS;
}

uint64_t thin_pace(struct thin_pace *p, struct journal *j)
{
    uint64_t now = monotonic_ns(), lsn = atomic_load(&j->written_lsn);
    if (p->began_ns && now - p->began_ns < THIN_PACE_SLICE_NS)
        return 0;
    uint64_t rest = 0;
    if (p->began_ns) {
        pthread_mutex_lock(&j->mutex);
        uint32_t haste = thin_haste(maintain_journal_bytes(j), j->options.quota_bytes);
        pthread_mutex_unlock(&j->mutex);
        rest = atomic_load(&j->hold_wanted) ? 0 : thin_rest(now - p->began_ns, lsn != p->lsn, haste);
    }
    struct timespec left = {.tv_nsec = (long)rest};
    while (rest && nanosleep(&left, &left) < 0 && errno == EINTR)
        continue;
    *p = (struct thin_pace){monotonic_ns(), lsn};
    return rest;
}
