/* SPDX-License-Identifier: Apache-2.0 */
/* An extent: what one record did to a stretch of one volume, and where the bytes are. Lengths, LBAs and positions
 * are in sectors of 512 bytes. */
#ifndef TIDEMARK_JOURNAL_EXTENT_H
#define TIDEMARK_JOURNAL_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "journal/journal_format.h"
#include "journal/lsn.h"

#define EXTENT_DATA_MAX_SECTORS 2048u    /* 1 MiB: longer writes are split */
#define EXTENT_ZERO_MAX_SECTORS 2097152u /* 1 GiB: longer discards are split */

enum extent_kind {
    EXTENT_DATA = 1, /* bytes at `position` of `segment` */
    EXTENT_ZERO = 2, /* reads as zeroes */
    EXTENT_BASE = 3, /* only in a rewind's reference run: what the base holds at this LBA */
    EXTENT_UNKNOWN = 4, /* only in memory: a record that is lost may have changed it */
};
enum extent_flags {
    EXTENT_REFERENCE = 1 << 0, /* from a rewind's reference run: `lsn` is the REWIND's, the payload is older */
    EXTENT_CHECKED = 1 << 1,   /* DATA whose payload lies in one block of its segment, of which `crc` is the checksum */
    EXTENT_GENERATION_SHIFT = 8,   /* from this bit on: the generation of `segment` (how often it was thinned) */
};

struct extent {
    uint32_t volume;
    uint32_t length; /* > 0 */
    uint64_t lba;
    struct lsn lsn;
    uint32_t segment;  /* EXTENT_DATA: number of the segment that holds the payload */
    uint32_t position; /* EXTENT_DATA: first sector of the payload, from the segment's start */
    uint16_t kind;
    uint16_t flags;
    uint32_t crc; /* EXTENT_CHECKED: CRC32C of the whole block */
};

static inline bool extent_is_in_one_block(const struct extent *e)
{
    return e->position % JOURNAL_BLOCK_SECTORS + (uint64_t)e->length <= JOURNAL_BLOCK_SECTORS;
}

static inline uint32_t extent_generation(const struct extent *e)
{
    return e->flags >> EXTENT_GENERATION_SHIFT;
}

/* The part of `e` in [lba, lba+length): moves the position along. The caller makes sure that they overlap. */
static inline struct extent extent_clip(struct extent e, uint64_t lba, uint64_t length)
{
    uint64_t end = e.lba + e.length, cut_end = lba + length;
    if (cut_end < end)
        end = cut_end;
    if (lba > e.lba) {
        if (e.kind == EXTENT_DATA)
            e.position += (uint32_t)(lba - e.lba);
        e.lba = lba;
    }
    e.length = (uint32_t)(end - e.lba);
    return e;
}

#endif
