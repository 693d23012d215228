/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the journal: all segments' sections of events and frames, as one book of chapters. While one is open, the files that it names stay. */
#ifndef TIDEMARK_JOURNAL_BOOK_H
#define TIDEMARK_JOURNAL_BOOK_H

#include "journal/journal_internal.h"
#include "journal/segment_window.h"

/* One segment's sections in memory. */
struct chapter {
    struct segment_info info;
    struct tail_event *events;
    struct tail_frame *frames;
    uint32_t event_count, frame_count;
};

/* What a walk over many events keeps from one to the next. */
struct book_reading {
    struct segment_window window;
    bool has_header; /* the frame's that was read last: its records come one after the other */
    uint32_t number, generation, at;
    _Alignas(16) char header[JOURNAL_BLOCK_BYTES];
};

struct book { /* all segments, oldest first; the last ones may be tails */
    struct journal *j;
    struct manifest manifest;
    struct chapter tails[2]; /* oldest first */
    size_t tail_count;
    bool *unreadable; /* salvage: what cannot be read is passed over, and this is set. NULL: it is an error */
    uint8_t wanted; /* with `unreadable`: the op of the events that are looked for, others may be passed over; 0: all are */
    bool for_good; /* with `wanted`: what a disk does not give is passed over, too */
    struct book_reading *reading; /* NULL: single blocks are read */
};

enum book_time { TIME_REAL, TIME_BOOT };

struct book_point {
    struct lsn lsn; /* 0: none */
    uint64_t realtime_ns;
};

struct tag_search {
    const char *name;
    struct lsn found;
    uint64_t realtime_ns;
};

/* With the files' lock, until book_release. -ENOMEM leaves nothing open. */
int book_open(struct journal *j, bool *unreadable, struct book *ret, struct error *err) MUST_CHECK;
void book_release(struct book *b);
size_t book_chapter_count(const struct book *b);
const struct segment_info *book_chapter_info(const struct book *b, size_t i);
/* Loads chapter `i` into *ret, to be released. */
int book_load_chapter(const struct book *b, size_t i, struct chapter *ret, struct error *err) MUST_CHECK;
void chapter_release(struct chapter *c);

/* Reads `bytes` from a block of a segment: a frame's header, or payload of a plain segment. CRCs are checked by the caller. `data` is
 * page-aligned, unless there is b->reading. */
int book_read_blocks(const struct book *b, const struct segment_info *s, uint32_t block, void *data, size_t bytes, struct error *err) MUST_CHECK;
/* The header block of a frame of the chapter, checked; `block` as there. */
int book_read_frame_header(const struct book *b, const struct chapter *c, uint32_t frame, void *block, struct error *err) MUST_CHECK;
/* The same in a walk, which comes to a frame as many times as it has events. *ret_block belongs to b->reading. */
int book_find_frame_header(const struct book *b, const struct chapter *c, uint32_t frame, const void **ret_block, struct error *err) MUST_CHECK;
uint64_t book_frame_time(const struct tail_frame *f, enum book_time kind);
/* The last record of frame `i` that may be a point, has time <= `time` and LSN <= `lsn`; .lsn.n 0: none. */
int book_last_in_frame(const struct book *b, const struct chapter *c, uint32_t i, enum book_time kind, uint64_t time, struct lsn lsn,
                       struct book_point *ret, struct error *err) MUST_CHECK;

/* Whether what cannot be read because of `r` is passed over. What is said of one wanted op may be kept: trying again must not give something else. */
static inline bool book_passes_over(const struct book *b, int r)
{
    return b->unreadable && (b->wanted ? r == -EBADMSG || r == -ENOENT || (r == -EIO && b->for_good) : r != -ENOMEM);
}
/* history_events.c: what happened from `low` to `high`, newest first, until `visit` returns something else than 0. */
int book_events(const struct book *b, struct lsn low, struct lsn high, bool activity, journal_event_visit visit, void *context,
                struct error *err) MUST_CHECK;
/* history.c: the newest tag of that name; `unreadable` as in struct book. */
int history_find_tag(struct journal *j, const char *name, bool *unreadable, struct tag_search *ret, struct error *err) MUST_CHECK;

#endif
