/* SPDX-License-Identifier: Apache-2.0 */
/* Dropping takes as much of the disk as the application's writes do, so it goes along with them in slices, half as fast again as they
 * come, instead of doing a whole segment as fast as the disk allows and then nothing. It never rests when somebody waits for it: when the
 * journal is over its quota by what it holds (a segment before writes are paced), the disk is full, a rewind wants to begin, the journal is
 * suspended or ends; nor when nothing was written since it began. */
#include "journal/drop_pace.h"

#include <errno.h>
#include <time.h>

#include "base/cleanup.h"
#include "journal/journal_internal.h"

#define STEP_NS (2 * NS_PER_MS)
#define REST_MOST_NS (20 * NS_PER_MS) /* a slice: nothing else of the janitor's has its turn before the drop has ended */

size_t drop_batch(size_t count)
{
    size_t batch = count / 16;
    return batch < 1 ? 1 : batch > DROP_MOST_SEGMENTS ? DROP_MOST_SEGMENTS : batch;
}

uint64_t drop_early_bytes(size_t batch, uint64_t segment_bytes)
{
    return (batch - 1) * segment_bytes / 2;
}

bool drop_is_ahead(uint64_t done_blocks, uint64_t appended_blocks)
{
    return done_blocks > appended_blocks + appended_blocks / 2;
}

void drop_pace_begin(struct drop_pace *p, struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    *p = (struct drop_pace){.from_blocks = j->appended_blocks};
}

bool drop_pace_add(struct drop_pace *p, uint64_t blocks)
{
    p->done_blocks += blocks;
    p->slice_blocks += blocks;
    bool whole = p->slice_blocks >= DROP_SLICE_BLOCKS;
    if (whole)
        p->slice_blocks = 0;
    return whole;
}

static bool may_rest(const struct drop_pace *p, struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    uint64_t appended = j->appended_blocks - p->from_blocks;
    bool wanted = j->stop || j->suspended || j->disk_full || atomic_load(&j->hold_wanted) || pace_update(j);
    return appended && !wanted && drop_is_ahead(p->done_blocks, appended);
}

uint64_t drop_rest(const struct drop_pace *p, struct journal *j)
{
    uint64_t rested = 0;
    while (rested < REST_MOST_NS && may_rest(p, j)) {
        struct timespec left = {.tv_nsec = STEP_NS};
        while (nanosleep(&left, &left) < 0 && errno == EINTR)
            continue;
        rested += STEP_NS;
    }
    return rested;
}
