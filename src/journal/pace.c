/* SPDX-License-Identifier: Apache-2.0 */
/* The pace is one number that writers look at before they take any lock; who has to wait sleeps for it, once, and goes on. The sealer
 * keeps it up to date, and so does everybody who waits. Nothing depends on somebody else's progress here: a write is late by
 * PACE_MOST_NS at most, whatever the disk, memory or the janitor do. */
#include "journal/pace.h"

#include <errno.h>
#include <time.h>

#include "journal/journal_internal.h"

uint64_t pace_of(uint64_t bytes, uint64_t quota_bytes, uint64_t segment_bytes)
{
    uint64_t from = quota_bytes + PACE_FROM_SEGMENTS * segment_bytes, span = (PACE_STOP_SEGMENTS - PACE_FROM_SEGMENTS) * segment_bytes;
    if (quota_bytes == 0 || bytes <= from)
        return 0;
    uint64_t over = bytes - from < span ? bytes - from : span;
    return (uint64_t)((double)over / (double)span * (double)PACE_MOST_NS);
}

/* What the journal takes without what is only reserved: the rest of the active segment, and the next one. */
static uint64_t used_bytes(const struct journal *j)
{
    uint64_t full = journal_segment_bytes(j),
             used = (uint64_t)j->tails[j->active].info.used_blocks * JOURNAL_BLOCK_BYTES;
    return maintain_journal_bytes(j) - full - (j->ready_fd >= 0 ? full : 0) + used;
}

uint64_t pace_reserve(uint64_t quota_bytes, uint64_t segment_bytes)
{
    return quota_bytes / 8 > 4 * segment_bytes ? quota_bytes / 8 : 4 * segment_bytes;
}

bool pace_is_exhausted(const struct journal *j)
{
    uint64_t quota = j->options.quota_bytes, full = journal_segment_bytes(j);
    return quota && !j->held && j->manifest.segment_count > 1 && (j->quota_blocked || j->drop_failed) &&
           maintain_journal_bytes(j) + full > quota + pace_reserve(quota, full); /* with the segment that would be made */
}

bool pace_update(struct journal *j)
{
    uint64_t quota = j->options.quota_bytes, full = journal_segment_bytes(j);
    bool applies = quota && !j->suspended && !j->held && !j->quota_blocked && j->manifest.segment_count > 1;
    uint64_t bytes = applies ? used_bytes(j) : 0, pace = applies ? pace_of(bytes, quota, full) : 0;
    if (pace && !j->pace_since_ns)
        j->pace_since_ns = clock_boottime_ns(j->clock);
    else if (!pace)
        j->pace_since_ns = 0;
    atomic_store_explicit(&j->pace_ns, pace, memory_order_relaxed);
    return applies && bytes > quota;
}

bool journal_paces(const struct journal *j)
{
    return atomic_load_explicit(&j->pace_ns, memory_order_relaxed) != 0;
}

void journal_pace(struct journal *j)
{
    pthread_mutex_lock(&j->mutex);
    pace_update(j);
    pthread_cond_signal(&j->janitor_work);
    pthread_mutex_unlock(&j->mutex);
    uint64_t pace = atomic_load_explicit(&j->pace_ns, memory_order_relaxed);
    struct timespec left = {.tv_nsec = (long)pace};
    while (pace && nanosleep(&left, &left) < 0 && errno == EINTR)
        continue;
    atomic_fetch_add_explicit(&j->paced_ns, pace, memory_order_relaxed);
}
