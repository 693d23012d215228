/* SPDX-License-Identifier: Apache-2.0 */
/* Looking back: what happened between two points, newest first. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/book.h"
#include "journal/frame.h"
#include "journal/payload.h"

/* Of an encrypted segment: the payload at `block` of the frame that begins at `at`. What is not authentic has a wrong CRC. */
static int read_sealed_payload(const struct book *b, const struct segment_info *s, uint32_t at, uint32_t block, void *data, size_t bytes,
                               struct error *err)
{
    struct segment_reader file = {.fd = -1};
    seal_tag digest;
    char *frame = io_alloc_pages((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    int r = frame ? segment_reader_open(b->j->directory, s->number, s->generation, true, &file, err) : -ENOMEM;
    if (r == 0)
        r = segment_reader_header(&file, at, frame, digest);
    uint32_t blocks = r == 0 ? le32_get(((const struct frame_header *)frame)->blocks) : 0;
    if (r == 0 && (blocks > FRAME_MAX_BLOCKS || block < at || block - at + bytes / JOURNAL_BLOCK_BYTES > blocks))
        r = -EBADMSG;
    if (r == 0)
        r = segment_reader_payload(&file, at, frame, blocks, digest, NULL);
    if (r == 0)
        memcpy(data, frame + (size_t)(block - at) * JOURNAL_BLOCK_BYTES, bytes);
    segment_reader_close(&file);
    io_free_pages(frame, (size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    return r < 0 ? error_errno(err, r, "cannot read segment %u at block %u", s->number, block) : 0;
}

/* Whether the frame that holds the event says of the payload the CRC that it has. */
static bool payload_is_intact(const void *header, uint16_t records, uint64_t lsn, const char *payload, uint32_t blocks)
{
    uint32_t index = 0, crcs[FRAME_MAX_BLOCKS];
    while (index < records && frame_record_lsn(header, index) != lsn)
        index++;
    for (uint32_t i = 0; i < blocks; i++)
        crcs[i] = crc32c(0, payload + (size_t)i * JOURNAL_BLOCK_BYTES, JOURNAL_BLOCK_BYTES);
    uint32_t crc = blocks == 1 ? crcs[0] : crc32c(0, crcs, blocks * sizeof *crcs);
    return index < records && le32_get(frame_records(header)[index].payload_crc) == crc;
}

/* Reads an event's payload in a walk, checked against the segment's CRCs. NUL-terminated. */
static int read_payload(const struct book *b, const struct chapter *c, const struct tail_event *e, char **ret, struct error *err)
{
    uint32_t bytes = le32_get(e->payload_bytes), blocks = (bytes + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES;
    if (bytes > JOURNAL_PAYLOAD_MAX_BYTES)
        return error_set(err, -EBADMSG, "segment %u is damaged (event length)", c->info.number);
    size_t room = (size_t)blocks * JOURNAL_BLOCK_BYTES;
    _cleanup_free_ char *text = malloc(room + 1);
    const void *header = NULL;
    if (!text)
        return error_errno(err, -ENOMEM, "cannot read the history");
    uint32_t frame = c->frame_count;
    while (frame && le64_get(c->frames[frame - 1].first_lsn) > le64_get(e->lsn))
        frame--;
    int r = 0;
    if (bytes && frame == 0)
        return error_set(err, -EBADMSG, "segment %u is damaged (frame of an event)", c->info.number);
    if (bytes && b->j->seal)
        r = read_sealed_payload(b, &c->info, le32_get(c->frames[frame - 1].block), le32_get(e->payload_block), text, room, err);
    else if (bytes)
        r = book_read_blocks(b, &c->info, le32_get(e->payload_block), text, room, err);
    if (r == 0 && bytes)
        r = book_find_frame_header(b, c, frame - 1, &header, err);
    if (r < 0)
        return r;
    if (bytes && !payload_is_intact(header, le16_get(c->frames[frame - 1].records), le64_get(e->lsn), text, blocks))
        return error_set(err, -EBADMSG, "segment %u is damaged at block %u (wrong checksum)", c->info.number,
                         le32_get(e->payload_block));
    text[bytes] = '\0';
    *ret = take_ptr(text);
    return 0;
}

struct activity { /* of one second, collected from the newest frame on */
    bool pending;
    uint64_t second;
    struct journal_event event;
};

struct walk {
    const struct book *book;
    struct lsn low, high;
    bool activity;
    journal_event_visit visit;
    void *context;
    struct activity now;
};

static int flush_activity(struct walk *w, struct error *err)
{
    if (!w->now.pending)
        return 0;
    w->now.pending = false;
    return w->visit(w->context, &w->now.event, err);
}

/* The point that the activity of frame `frame` is told as, with its own time: the frame begins before it, in thinned history up to an hour.
 * .lsn.n 0: there is none. */
static int end_of_frame(const struct walk *w, const struct chapter *c, uint32_t frame, struct book_point *ret, struct error *err)
{
    const struct tail_frame *f = &c->frames[frame];
    struct error ignored = ERROR_INIT;
    int r = book_last_in_frame(w->book, c, frame, TIME_REAL, UINT64_MAX, LSN_MAX, ret, c->info.generation ? err : &ignored);
    if (c->info.generation || (r == 0 && ret->lsn.n)) /* there not every record is a point */
        return r;
    *ret = (struct book_point){{le64_get(f->first_lsn) + le16_get(f->records) - 1}, le64_get(f->realtime_ns)};
    return 0;
}

static int add_activity(struct walk *w, const struct chapter *c, uint32_t frame, struct error *err)
{
    const struct tail_frame *f = &c->frames[frame];
    struct book_point end = {{le64_get(f->first_lsn) + le16_get(f->records) - 1}, le64_get(f->realtime_ns)};
    bool same = w->now.pending && w->now.second == end.realtime_ns / NS_PER_SECOND;
    int r = le16_get(f->data_kib) && (!same || c->info.generation) ? end_of_frame(w, c, frame, &end, err) : 0;
    if (r < 0 || !le16_get(f->data_kib) || !end.lsn.n || end.lsn.n > w->high.n || end.lsn.n <= w->low.n)
        return r;
    const uint64_t second = end.realtime_ns / NS_PER_SECOND;
    if (w->now.pending && w->now.second != second) {
        r = flush_activity(w, err);
        if (r)
            return r;
    }
    if (!w->now.pending) {
        w->now.pending = true;
        w->now.second = second;
        w->now.event = (struct journal_event){.lsn = end.lsn, .realtime_ns = end.realtime_ns, .op = OP_WRITE, .payload = ""};
    }
    w->now.event.aux += le16_get(f->data_kib) * 1024ull;
    w->now.event.tag += le16_get(f->records);
    return 0;
}

static int visit_event(struct walk *w, const struct chapter *c, const struct tail_event *e, struct error *err)
{
    uint64_t lsn = le64_get(e->lsn);
    if (lsn > w->high.n || lsn <= w->low.n)
        return 0;
    _cleanup_free_ char *payload = NULL;
    int r = flush_activity(w, err);
    if (r == 0)
        r = read_payload(w->book, c, e, &payload, err);
    if (r < 0 && book_passes_over(w->book, r)) {
        *w->book->unreadable |= !w->book->wanted || w->book->wanted == e->op;
        return 0;
    }
    if (r)
        return r;
    struct journal_event event = {.lsn = {lsn},
                                  .realtime_ns = le64_get(e->realtime_ns),
                                  .op = e->op,
                                  .flags = e->flags,
                                  .volume = le32_get(e->volume),
                                  .aux = le64_get(e->aux),
                                  .tag = le64_get(e->tag),
                                  .payload = payload,
                                  .payload_bytes = le32_get(e->payload_bytes)};
    return w->visit(w->context, &event, err);
}

/* Whether the activity of frame `frame` is told with an LSN above `lsn`. */
static int ends_after(const struct walk *w, const struct chapter *c, uint32_t frame, uint64_t lsn, bool *ret, struct error *err)
{
    const struct tail_frame *f = &c->frames[frame];
    struct book_point end = {{le64_get(f->first_lsn) + le16_get(f->records) - 1}, 0};
    int r = le16_get(f->data_kib) && (c->info.generation || end.lsn.n > lsn) ? end_of_frame(w, c, frame, &end, err) : 0;
    *ret = r == 0 && end.lsn.n > lsn;
    return r;
}

/* Newest first through one segment; events and frames merged by LSN. */
static int walk_chapter(struct walk *w, const struct chapter *c, struct error *err)
{
    uint32_t event = c->event_count, frame = w->activity ? c->frame_count : 0;
    int r = 0;
    while (r == 0 && (event || frame)) {
        bool frame_first = frame && (!event || le64_get(c->frames[frame - 1].first_lsn) > le64_get(c->events[event - 1].lsn));
        if (frame && !frame_first) /* the event is in the frame, or after it */
            r = ends_after(w, c, frame - 1, le64_get(c->events[event - 1].lsn), &frame_first, err);
        if (r == 0)
            r = frame_first ? add_activity(w, c, --frame, err) : visit_event(w, c, &c->events[--event], err);
    }
    return r;
}

int book_events(const struct book *b, struct lsn low, struct lsn high, bool activity, journal_event_visit visit, void *context,
                     struct error *err)
{
    struct book_reading reading = {0};
    struct book read = *b;
    struct walk w = {&read, low, high, activity, visit, context, {0}};
    read.reading = &reading;
    int r = 0;
    for (size_t i = book_chapter_count(b); i-- > 0 && r == 0;) {
        const struct segment_info *info = book_chapter_info(b, i);
        if (info->first.n > high.n || (!activity && info->events == 0))
            continue;
        if (info->last.n <= low.n)
            break;
        struct chapter c;
        r = book_load_chapter(b, i, &c, err);
        if (r == 0) {
            r = walk_chapter(&w, &c, err);
            chapter_release(&c);
        }
    }
    if (r == 0)
        r = flush_activity(&w, err);
    segment_window_release(&reading.window);
    return r < 0 ? r : 0;
}

int journal_events(struct journal *j, struct lsn low, struct lsn high, bool activity, journal_event_visit visit,
                   void *context, bool *damaged, struct error *err)
{
    struct book book;
    int r = book_open(j, damaged, &book, err);
    if (r < 0)
        return r;
    r = book_events(&book, low, high, activity, visit, context, err);
    book_release(&book);
    return r;
}
