/* SPDX-License-Identifier: Apache-2.0 */
/* How fast old history is dropped (docs/adr/0021-dropping-beside-the-writes.md). */
#ifndef TIDEMARK_JOURNAL_DROP_PACE_H
#define TIDEMARK_JOURNAL_DROP_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct journal;

#define DROP_MOST_SEGMENTS 4u /* at a time: what was overwritten within them goes nowhere */
#define DROP_SLICE_BLOCKS 64u /* dropped at a time: as much as one read of a segment gives */

struct drop_pace {
    uint64_t from_blocks; /* journal.appended_blocks when the drop began */
    uint64_t done_blocks; /* of what was appended to the segments that go */
    uint64_t slice_blocks; /* since the last look */
};

/* A drop begins. */
void drop_pace_begin(struct drop_pace *p, struct journal *j);
/* `blocks` more are done. True at the end of a slice: begin to write it, then call drop_rest. */
bool drop_pace_add(struct drop_pace *p, uint64_t blocks);
/* Rests while the drop is ahead of what the application writes meanwhile, a while at the most. Returns how long, in ns. Without the mutex. */
uint64_t drop_rest(const struct drop_pace *p, struct journal *j);
/* How many of `count` segments the quota drops at a time, and how far below it that begins, so that going along with the writes it ends before
 * they are paced. */
size_t drop_batch(size_t count);
uint64_t drop_early_bytes(size_t batch, uint64_t segment_bytes);
/* Whether a drop that has done `done` blocks is ahead, while `appended` were written since it began. */
bool drop_is_ahead(uint64_t done_blocks, uint64_t appended_blocks);

#endif
