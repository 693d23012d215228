/* SPDX-License-Identifier: Apache-2.0 */
/* The index of a segment that is not sealed yet, in fixed memory: extents in LSN order, events, frames, and one CRC
 * a payload block. tail_add_frame is called with a frame's header block when its place in the segment is known;
 * tail_write_index makes the L0 (or, cut at an LSN, a view's TAIL) of it. The owner guards it by its lock. */
#ifndef TIDEMARK_JOURNAL_TAIL_H
#define TIDEMARK_JOURNAL_TAIL_H

#include "journal/extent.h"
#include "journal/index.h"
#include "journal/journal_format.h"
#include "journal/manifest.h"
#include "journal/sealed_segment.h"

#define TAIL_MAX_EVENTS 4096u

/* Sections EVENTS and FRAMES of an L0 are arrays of these (little-endian hosts and disks alike: written field by field). */
struct tail_event {
    struct le64 lsn;
    struct le64 realtime_ns;
    struct le64 aux;
    struct le64 tag;
    struct le32 payload_block; /* in the segment */
    struct le32 payload_bytes;
    struct le32 volume;
    uint8_t op;
    uint8_t flags;
    struct le16 reserved;
};
static_assert(sizeof(struct tail_event) == 48, "event");
struct tail_frame {
    struct le64 first_lsn;
    struct le64 realtime_ns;
    struct le64 boottime_ns;
    struct le32 block; /* in the segment */
    struct le16 records;
    struct le16 data_kib; /* payload of writes, KiB */
};
static_assert(sizeof(struct tail_frame) == 32, "frame");

struct tail {
    struct segment_info info;
    uint32_t segment_blocks, max_records;
    struct extent *extents;
    struct tail_event *events;
    struct tail_frame *frames;
    uint32_t *crcs; /* by block of the segment */
    seal_tag *tags; /* the same; NULL: the journal is plain */
    uint32_t extent_count, event_count, frame_count;
    uint32_t last_crc; /* header CRC of the last frame */
};

/* Memory for segments of `segment_blocks` blocks and `max_records` records, populated. */
int tail_init(struct tail *t, uint32_t segment_blocks, uint32_t max_records, struct error *err) MUST_CHECK;
/* The same, with memory taken as it is used. */
int tail_init_lazy(struct tail *t, uint32_t segment_blocks, uint32_t max_records,
                   struct error *err) MUST_CHECK;
void tail_release(struct tail *t);
/* Room for the tags of an encrypted segment. */
int tail_reserve_tags(struct tail *t, struct error *err) MUST_CHECK;
/* The tags of the frame that is added next. */
void tail_add_tags(struct tail *t, const seal_tag *tags, uint32_t blocks);
/* Starts over for segment `number`. */
void tail_reset(struct tail *t, uint32_t number, uint32_t epoch, const struct uuid *boot);
/* Whether a frame of so many records and blocks at block `at` still fits. */
bool tail_fits(const struct tail *t, uint32_t records, uint32_t blocks);
/* `header_block`: the frame's sealed first block; block_crcs: CRC32C of each of its blocks (by block in the frame). */
void tail_add_frame(struct tail *t, const void *header_block, const uint32_t *block_crcs);
/* Forgets the frames that begin above `high`. `last_crc`: the header CRC of the last one that stays. */
void tail_cut(struct tail *t, struct lsn high, uint32_t last_crc);
/* Writes the index of what has LSN <= high to `path`. Not under the owner's lock: the caller has made `t` stable or a
 * copy. `scratch` has room for extent_count extents. */
int tail_write_index(const struct tail *t, const char *path, const struct uuid *journal, enum index_kind kind,
                     struct lsn high, struct extent *scratch, uint32_t *ret_kib, struct error *err) MUST_CHECK;

#endif
