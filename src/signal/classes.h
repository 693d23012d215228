/* SPDX-License-Identifier: Apache-2.0 */
/* What was last seen of each block of a volume: two bits a grain of one or more blocks, in memory of a fixed size (J7). Grains
 * are single blocks where the budget allows; of a larger volume they are 2^k blocks, and then a grain changes between
 * low and high only with the write to its last block, so that a file written in order counts once.
 *
 * Thread-safe: the callers of one block hold its range lock, neighbours are changed atomically. */
#ifndef TIDEMARK_SIGNAL_CLASSES_H
#define TIDEMARK_SIGNAL_CLASSES_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/error.h"
#include "signal/estimate.h"

#define SIGNAL_CLASSES_PER_BYTE 4u
#define SIGNAL_CLASSES_MIN_BYTES 4096u

struct signal_classes {
    _Atomic uint8_t *bytes;
    size_t size_bytes; /* of `bytes` */
    uint64_t blocks;   /* of the volume */
    unsigned shift;    /* blocks per grain: 1 << shift */
    _Atomic int64_t low_grains;
};

/* At most `budget_bytes` (at least SIGNAL_CLASSES_MIN_BYTES) of memory, populated. */
int signal_classes_init(struct signal_classes *c, uint64_t volume_bytes, size_t budget_bytes, struct error *err) MUST_CHECK;
void signal_classes_release(struct signal_classes *c);

enum signal_class signal_classes_get(const struct signal_classes *c, uint64_t block);
/* Notes that `block` holds `class` now. Returns what it held. */
enum signal_class signal_classes_set(struct signal_classes *c, uint64_t block, enum signal_class class);
/* Forgets a whole range, as far as grains lie in it. Returns how many blocks of it were structured. */
uint64_t signal_classes_free_range(struct signal_classes *c, uint64_t block, uint64_t count);
/* What a bitmap of the file system says of a range. It is written back after what it describes, up to some 40 s later: a block
 * that it calls free may have been allocated and written since. Structured blocks that it calls used become kept, and only
 * kept ones that it calls free are forgotten. Returns how many blocks those were. */
uint64_t signal_classes_told(struct signal_classes *c, uint64_t block, uint64_t count, bool is_free);
/* Forgets everything. */
void signal_classes_clear(struct signal_classes *c);
/* Recounts low_grains after `bytes` were loaded. */
void signal_classes_recount(struct signal_classes *c);

static inline uint64_t signal_classes_low_bytes(const struct signal_classes *c)
{
    int64_t grains = atomic_load_explicit(&c->low_grains, memory_order_relaxed);
    return grains > 0 ? (uint64_t)grains << c->shift << 12 : 0;
}

#endif
