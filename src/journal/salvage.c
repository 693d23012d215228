/* SPDX-License-Identifier: Apache-2.0 */
/* Frames are recognised by journal id, epoch, CRC, number and place. Behind a damaged one each block may be the header of the
 * next, or payload: a payload may hold a copy of older frames of this very journal, but never of a newer one than its own
 * frame, so a number above the damaged one's is enough. */
#include "journal/salvage.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/frame.h"
#include "journal/segment_reader.h"

struct scan {
    struct segment_reader file;
    seal_tag digest; /* of the frame whose header is in the buffer */
    seal_tag tags[FRAME_MAX_BLOCKS];
    const struct uuid *journal;
    const struct segment_info *info;
    struct salvage_segment *found;
    uint64_t number;  /* that the next frame has */
    struct lsn after; /* LSNs up to it are known, or in a gap */
    char *buffer;     /* FRAME_MAX_BLOCKS blocks */
    uint32_t crcs[FRAME_MAX_BLOCKS];
};

/* Whether it was read; damage is no failure. */
static bool took(const struct scan *s, int r)
{
    if (r < 0 && r != -EBADMSG && r != -ENODATA && s->found->failed == 0)
        s->found->failed = r;
    return r == 0;
}

static bool read_block(const struct scan *s, uint32_t block, char *data)
{
    return took(s, segment_reader_blocks(&s->file, block, 1, data));
}

/* Whether the block in the buffer, from `at`, is the header of a frame of this segment with at least the number `least`. */
static bool is_frame(const struct scan *s, uint32_t at, uint64_t least)
{
    const struct frame_header *h = (const struct frame_header *)s->buffer;
    if (!frame_is_intact(s->buffer, s->journal, s->info->epoch))
        return false;
    uint64_t number = le64_get(h->number), first = le64_get(h->first_lsn);
    return number >= least && number < s->info->first_frame + s->info->frames && first > s->after.n &&
           frame_last_lsn(s->buffer) <= s->info->last.n && le32_get(h->blocks) <= s->info->used_blocks - at &&
           tail_fits(&s->found->tail, le16_get(h->record_count), le32_get(h->blocks));
}

/* Block of the next frame from `from` on, its header in the buffer; used_blocks when there is none. */
static uint32_t find_frame(struct scan *s, uint32_t from)
{
    for (uint32_t at = from; at < s->info->used_blocks; at++)
        if (took(s, segment_reader_header(&s->file, at, s->buffer, s->digest)) && is_frame(s, at, s->number + (at != from)))
            return at;
    return s->info->used_blocks;
}

/* Blocks that belong to no frame that is known: whatever an index says of them, reading them fails. */
static void distrust(const struct scan *s, uint32_t from, uint32_t to)
{
    char block[JOURNAL_BLOCK_BYTES] __attribute__((aligned(64)));
    for (uint32_t at = from; at < to; at++)
        s->found->tail.crcs[at] = read_block(s, at, block) ? ~crc32c(0, block, sizeof block) : 0;
}

static int add_gap(struct scan *s, struct lsn high, struct error *err)
{
    struct salvage_segment *f = s->found;
    if (high.n <= s->after.n)
        return 0;
    struct salvage_gap *larger = reallocarray(f->gaps, f->gap_count + 1, sizeof *larger);
    if (!larger)
        return error_errno(err, -ENOMEM, "cannot salvage segment %u", s->info->number);
    f->gaps = larger;
    f->gaps[f->gap_count++] = (struct salvage_gap){s->after, high};
    s->after = high;
    return 0;
}

/* Takes the frame at `at`, whose header is in the buffer. A block of it that cannot be read does not match its CRC then. */
static void take_frame(struct scan *s, uint32_t at)
{
    const struct frame_header *h = (const struct frame_header *)s->buffer;
    uint32_t blocks = le32_get(h->blocks);
    for (uint32_t i = 1; i < blocks; i++)
        if (!read_block(s, at + i, s->buffer + (size_t)i * JOURNAL_BLOCK_BYTES))
            memset(s->buffer + (size_t)i * JOURNAL_BLOCK_BYTES, 0, JOURNAL_BLOCK_BYTES);
    if (sealed_open_payload(s->file.key, at, s->buffer, blocks, s->digest, s->tags) < 0)
        memset(s->tags, 0, sizeof s->tags);
    frame_payload_crcs(s->buffer, s->crcs); /* inverted for a payload that does not match */
    s->found->tail.info.used_blocks = at;
    tail_add_tags(&s->found->tail, s->tags, blocks);
    tail_add_frame(&s->found->tail, s->buffer, s->crcs);
    s->number = le64_get(h->number) + 1;
    s->after = s->found->tail.info.last;
}

static int follow(struct scan *s, struct error *err)
{
    struct tail *t = &s->found->tail;
    int r = 0;
    for (uint32_t at = 1; r == 0 && at < s->info->used_blocks; at = t->info.used_blocks) {
        uint32_t next = find_frame(s, at);
        bool end = next == s->info->used_blocks;
        const struct frame_header *h = (const struct frame_header *)s->buffer;
        distrust(s, at, next);
        if (end || le64_get(h->number) != s->number) /* else an LSN that was left out is none that was used */
            r = add_gap(s, end ? s->info->last : (struct lsn){le64_get(h->first_lsn) - 1}, err);
        if (r == 0 && !end)
            take_frame(s, next);
        else
            t->info.used_blocks = next;
    }
    return r < 0 ? r : add_gap(s, s->info->last, err); /* no frame is where the last ones should be */
}

int salvage_scan(const char *directory, const struct uuid *journal, const struct segment_info *info, struct salvage_segment *ret,
                 struct error *err)
{
    *ret = (struct salvage_segment){0};
    struct scan s = {.file.fd = -1, .journal = journal, .info = info, .found = ret, .number = info->first_frame,
                     .after = {info->first.n ? info->first.n - 1 : 0}};
    int r = segment_reader_open(directory, info->number, info->generation, false, &s.file, err);
    if (r < 0)
        return r;
    r = tail_init(&ret->tail, info->used_blocks, info->records ? info->records : 1, err);
    if (r < 0) {
        segment_reader_close(&s.file);
        return r;
    }
    tail_reset(&ret->tail, info->number, info->epoch, &info->boot);
    ret->tail.info.generation = info->generation;
    r = s.file.key ? tail_reserve_tags(&ret->tail, err) : 0;
    s.buffer = io_alloc_pages((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    if (r == 0)
        r = s.buffer ? follow(&s, err) : error_errno(err, -ENOMEM, "cannot salvage segment %u", info->number);
    io_free_pages(s.buffer, (size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    segment_reader_close(&s.file);
    if (r < 0)
        salvage_release(ret);
    return r;
}

int salvage_write_index(const struct salvage_segment *found, const struct uuid *journal, const char *path, struct error *err)
{
    size_t bytes = (found->tail.extent_count + 1) * sizeof(struct extent);
    struct extent *scratch = io_alloc_pages(bytes);
    if (!scratch)
        return error_errno(err, -ENOMEM, "cannot write %s", path);
    int r = tail_write_index(&found->tail, path, journal, INDEX_L0, LSN_MAX, scratch, NULL, err);
    io_free_pages(scratch, bytes);
    return r;
}

void salvage_release(struct salvage_segment *found)
{
    if (found->tail.extents)
        tail_release(&found->tail);
    free(found->gaps);
    *found = (struct salvage_segment){0};
}
