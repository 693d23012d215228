/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/frame.h"

#include <string.h>

#include "base/crc32c.h"
#include "journal/extent.h"

static uint32_t header_crc(const void *block)
{
    char copy[JOURNAL_BLOCK_BYTES];
    memcpy(copy, block, sizeof copy);
    ((struct frame_header *)copy)->header_crc = le32_of(0);
    return crc32c(0, copy, sizeof copy);
}

void frame_seal(void *block)
{
    ((struct frame_header *)block)->header_crc = le32_of(header_crc(block));
}

/* A sparse frame says each record's LSN: they must rise from the first. */
static bool lsns_are_sane(const void *block)
{
    const struct frame_header *h = block;
    uint32_t count = le16_get(h->record_count);
    if (!(le16_get(h->flags) & FRAME_SPARSE))
        return true;
    if (count > FRAME_SPARSE_RECORDS || frame_record_lsn(block, 0) != le64_get(h->first_lsn))
        return false;
    for (uint32_t i = 1; i < count; i++)
        if (frame_record_lsn(block, i) <= frame_record_lsn(block, i - 1))
            return false;
    return frame_last_lsn(block) < UINT64_MAX;
}

static uint32_t payload_blocks(const struct frame_record *r)
{
    return (uint32_t)(((uint64_t)le32_get(r->payload_bytes) + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES);
}

static bool record_is_sane(const struct frame_record *r, uint32_t blocks)
{
    uint32_t first = le16_get(r->payload_block), count = payload_blocks(r), length = le32_get(r->length);
    if (r->op > OP_REWIND || (first == 0) != (count == 0) || (uint64_t)first + count > blocks)
        return false;
    if (le64_get(r->lba) > (UINT64_MAX >> 9) - length)
        return false;
    switch (r->op) {
    case OP_WRITE:
    case OP_RESYNC:
        return length > 0 && length <= EXTENT_DATA_MAX_SECTORS && le32_get(r->payload_bytes) == length * 512u;
    case OP_ZERO:
    case OP_DISCARD:
        return length > 0 && length <= EXTENT_ZERO_MAX_SECTORS;
    default:
        return true;
    }
}

bool frame_is_intact(const void *block, const struct uuid *journal, uint32_t epoch)
{
    const struct frame_header *h = block;
    if (le32_get(h->magic) != FRAME_MAGIC || memcmp(h->journal_id, journal->bytes, 16) != 0 ||
        le32_get(h->epoch) != epoch)
        return false;
    uint32_t count = le16_get(h->record_count), blocks = le32_get(h->blocks);
    if (count == 0 || count > FRAME_MAX_RECORDS || blocks == 0 || blocks > FRAME_MAX_BLOCKS)
        return false;
    if (header_crc(block) != le32_get(h->header_crc))
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (!record_is_sane(&frame_records(block)[i], blocks))
            return false;
    if (!lsns_are_sane(block))
        return false;
    return le64_get(h->first_lsn) > 0 && le64_get(h->first_lsn) < UINT64_MAX - FRAME_MAX_RECORDS;
}

bool frame_is_expected(const void *block, const struct frame_expectation *e, const char **ret_why)
{
    const struct frame_header *h = block;
    *ret_why = "no intact frame header";
    if (!frame_is_intact(block, &e->journal_id, e->epoch))
        return false;
    *ret_why = "another frame number";
    if (le64_get(h->number) != e->number)
        return false;
    *ret_why = "the checksum of the frame before differs";
    if (le32_get(h->previous_crc) != e->previous_crc)
        return false;
    *ret_why = "an LSN that is too low";
    if (le64_get(h->first_lsn) <= e->after.n)
        return false;
    *ret_why = "a length beyond the segment";
    return le32_get(h->blocks) <= e->room_blocks;
}

uint32_t frame_payload_crcs(const void *frame, uint32_t *crcs)
{
    const struct frame_header *h = frame;
    uint32_t blocks = le32_get(h->blocks), damaged = 0;
    for (uint32_t i = 0; i < blocks; i++)
        crcs[i] = crc32c(0, (const char *)frame + (size_t)i * JOURNAL_BLOCK_BYTES, JOURNAL_BLOCK_BYTES);
    for (uint32_t i = 0; i < le16_get(h->record_count); i++) {
        const struct frame_record *r = &frame_records(frame)[i];
        uint32_t first = le16_get(r->payload_block), count = payload_blocks(r);
        if (count == 0)
            continue;
        uint32_t crc = count == 1 ? crcs[first] : crc32c(0, &crcs[first], count * sizeof *crcs);
        if (crc == le32_get(r->payload_crc))
            continue;
        damaged++;
        for (uint32_t b = 0; b < count; b++)
            crcs[first + b] = ~crcs[first + b];
    }
    return damaged;
}
