/* SPDX-License-Identifier: Apache-2.0 */
/* The frame ring in shared memory (a tmpfs file): frames are assembled there, so that a kill of the process loses
 * nothing that was acknowledged, and each record says whether its backing write was done: the in-flight table.
 *
 * A slot is a control page and FRAME_MAX_BLOCKS blocks. Stores to a mapped page survive a kill, in program order; a
 * record counts once `count` covers it, its payload once FILLED is set, its backing write once BACKED is set. A
 * slot is free once its frame is written and every record BACKED. */
#ifndef TIDEMARK_JOURNAL_RING_H
#define TIDEMARK_JOURNAL_RING_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/uuid.h"
#include "journal/journal_format.h"

#define RING_SLOTS 8u
#define RING_MAGIC 0x31474e52u

enum ring_record_state { RING_FILLED = 1 << 0, RING_BACKED = 1 << 1 };

struct ring_slot { /* the control page */
    _Atomic uint64_t number; /* of the frame; 0: free */
    _Atomic uint32_t count;
    _Atomic uint32_t written;
    _Atomic uint8_t state[FRAME_MAX_RECORDS];
};
static_assert(sizeof(struct ring_slot) <= JOURNAL_BLOCK_BYTES, "slot control");

struct ring_control { /* the first page of the file */
    uint32_t magic;
    uint32_t epoch;
    uint8_t journal_id[16];
    _Atomic uint64_t suspended; /* writes went on unjournaled: enum ring_suspension */
};

struct ring {
    char *memory;
    size_t length_bytes;
    char path[128];
    bool fresh; /* was not there, or belonged to another journal or epoch */
};

/* Opens or makes the ring of a journal. An existing one of the same journal keeps its content (`fresh` false). */
int ring_open(struct ring *ring, const char *path, const struct uuid *journal, struct error *err) MUST_CHECK;
/* One of this process alone, with memory taken as it is used: a kill loses what it holds. */
int ring_open_private(struct ring *ring, struct error *err) MUST_CHECK;
/* Gives the memory of a slot that is free back; only of a private one. */
void ring_relax(struct ring *ring, uint32_t slot);
/* Empties all slots and marks it with the epoch; `recovering`: until ring_recovered, what it held is owed. */
void ring_clear(struct ring *ring, const struct uuid *journal, uint32_t epoch, bool recovering);
uint32_t ring_epoch(const struct ring *ring);
/* Remembers that writes go on unjournaled, where it survives a kill; and whether the write-intent bitmaps do not say where. */
enum ring_suspension {
    RING_UNJOURNALED = 1 << 0,
    RING_UNMARKED = 1 << 1,
    RING_RECOVERING = 1 << 2, /* the opening has not done yet what recovery asks for */
};
void ring_suspend(struct ring *ring, enum ring_suspension how);
uint64_t ring_suspended(const struct ring *ring);
void ring_recovered(struct ring *ring);
/* Unmaps; `remove` deletes the file too (after a clean end). */
void ring_release(struct ring *ring, bool remove);

static inline struct ring_slot *ring_slot(const struct ring *ring, uint32_t slot)
{
    return (struct ring_slot *)(ring->memory + JOURNAL_BLOCK_BYTES +
                                (size_t)slot * (FRAME_MAX_BLOCKS + 1) * JOURNAL_BLOCK_BYTES);
}
/* The frame's blocks: header block first. */
static inline char *ring_frame(const struct ring *ring, uint32_t slot)
{
    return (char *)ring_slot(ring, slot) + JOURNAL_BLOCK_BYTES;
}

#endif
