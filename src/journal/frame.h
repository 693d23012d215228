/* SPDX-License-Identifier: Apache-2.0 */
/* Checking frames that were read: everything from disk is doubted. Used by recovery, verify and the fuzzer. */
#ifndef TIDEMARK_JOURNAL_FRAME_H
#define TIDEMARK_JOURNAL_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#include "base/uuid.h"
#include "journal/journal_format.h"
#include "journal/lsn.h"

/* What the next frame has to be. */
struct frame_expectation {
    struct uuid journal_id;
    uint32_t epoch;
    uint64_t number;
    uint32_t previous_crc;
    struct lsn after;     /* its first LSN is above */
    uint32_t room_blocks; /* left in the segment */
};

/* Whether `block` is the header block of any intact frame of this journal and epoch: magic, CRC and bounds hold. */
bool frame_is_intact(const void *block, const struct uuid *journal, uint32_t epoch);
/* Whether it is the very frame that is expected; *ret_why says what is wrong (static text). */
bool frame_is_expected(const void *block, const struct frame_expectation *expectation, const char **ret_why);
/* CRCs of all blocks of `frame` (header included) into `crcs`; those of a record whose payload does not match its CRC
 * are inverted, so that reading them fails. Returns the number of such records. */
uint32_t frame_payload_crcs(const void *frame, uint32_t *crcs);

/* -EBADMSG or -EPROTONOSUPPORT unless `block` is the header block of segment `number` of this journal. */
int segment_check_header(const struct uuid *journal, uint32_t number, const void *block, struct error *err) MUST_CHECK;

static inline const struct frame_record *frame_records(const void *block)
{
    return (const struct frame_record *)((const struct frame_header *)block + 1);
}

/* The LSN of record `index` of the frame with this header block. */
static inline uint64_t frame_record_lsn(const void *block, uint32_t index)
{
    const struct frame_header *h = block;
    if (!(le16_get(h->flags) & FRAME_SPARSE))
        return le64_get(h->first_lsn) + index;
    return le64_get(((const struct le64 *)((const char *)block + FRAME_SPARSE_LSN_OFFSET))[index]);
}
static inline uint64_t frame_last_lsn(const void *block)
{
    return frame_record_lsn(block, le16_get(((const struct frame_header *)block)->record_count) - 1u);
}
/* Sets the header CRC of a header block that is complete but for it. */
void frame_seal(void *block);

#endif
