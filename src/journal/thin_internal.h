/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_JOURNAL_THIN_INTERNAL_H
#define TIDEMARK_JOURNAL_THIN_INTERNAL_H

#include "journal/cold.h"
#include "journal/index.h"
#include "journal/tail.h"
#include "journal/thin.h"

/* ---- thin_points.c: which points of a segment are kept, by its index; few of its frames' headers are read ---- */
struct thin_points {
    const struct manifest *m; /* its refused intervals */
    struct lsn low, high;     /* of the segment's records */
    const struct tail_frame *frames;
    uint32_t frame_count;
    const struct tail_event *events;
    uint32_t event_count;
    /* The whole header block of frame `i`, valid until the next call. */
    int (*header)(void *context, uint32_t i, const struct frame_header **ret, struct error *err);
    void *context;
};
/* Gives `c` what matters of all the segment's points: afterwards it has the cuts, and the candidate, that it would have if each had been
 * given to it. (Were the clock set back within a frame, and over the end of an interval, one point fewer may be kept.) */
int thin_choose_points(struct thin_chooser *c, const struct thin_points *p, struct error *err) MUST_CHECK;
/* All points of one frame. *ret_any: it has some. */
int thin_choose_frame(struct thin_chooser *c, const struct manifest *m, const struct frame_header *h, bool *ret_any, struct error *err) MUST_CHECK;

/* ---- thin_survivors.c: which records are the newest of some sector as of some kept point ---- */
struct thin_survivors {
    struct lsn low, high; /* of LSNs in (low, high] */
    uint64_t *bits;
    void (*pace)(void *context); /* called now and then; NULL: none */
    void *pace_context;
};
#define THIN_PACE_EXTENTS 256u /* between two calls of pace: some 10 us of work */
int thin_survivors_init(struct thin_survivors *s, struct lsn low, struct lsn high, struct error *err) MUST_CHECK;
void thin_survivors_release(struct thin_survivors *s);
bool thin_survives(const struct thin_survivors *s, struct lsn lsn);
/* Marks them. The streams are borrowed, sorted by (volume, LBA, LSN). */
int thin_find_survivors(struct thin_survivors *s, const struct thin_chooser *chooser, struct extent_stream **streams, size_t count,
                        struct error *err) MUST_CHECK;

/* ---- thin_pace.c: leaving the machine to the application ---- */
#define THIN_PACE_SLICE_NS (4 * NS_PER_MS) /* worked at a time */
struct thin_pace {
    uint64_t began_ns, lsn; /* of the slice; began_ns 0: none has begun */
};
/* Called often. After a slice of work, while records are being appended and the quota is not near, rests for as long as it worked. Returns how
 * long, in ns. */
uint64_t thin_pace(struct thin_pace *p, struct journal *j);
/* How long to rest after `worked_ns`, when `appended` says that the application writes. */
uint64_t thin_rest(uint64_t worked_ns, bool appended, uint32_t haste_percent);

/* ---- thin_output.c: writing thinned segments ---- */
struct thin_output {
    struct journal *j;
    uint32_t number, last_number; /* numbers that may be used: from `number` on */
    uint32_t generation, keep_s, epoch;
    struct uuid boot;
    struct lsn first; /* where the next segment's coverage begins */
    struct tail tail;
    int fd; /* of the segment being written; -1: none, or: */
    struct cold_writer *cold; /* it is compressed; NULL: none */
    bool compress;
    char *frame;    /* being filled, FRAME_MAX_BLOCKS blocks */
    struct aead *key; /* of the segment being written; NULL: plain */
    uint8_t salt[SEAL_SALT_BYTES];
    char *sealed; /* the frame, encrypted */
    uint32_t count, blocks;
    uint64_t frame_number;
    uint32_t previous_crc;
    bool frame_cut, written_cut; /* the last record of the frame, and of the one written before it, is a kept point */
    struct extent *scratch;
    struct segment_info segments[THIN_MAX_SEGMENTS]; /* that are done */
    size_t segment_count;
};
struct thin_record {
    struct lsn lsn;
    uint64_t realtime_ns, boottime_ns;
    struct frame_record record; /* payload_block and delta_us are filled in */
    const char *payload;
    bool cut; /* a kept point */
};
int thin_output_init(struct thin_output *o, struct journal *j, struct error *err) MUST_CHECK;
/* Removes the segments unless they were published (segment_count set to 0). */
void thin_output_release(struct thin_output *o);
/* Forgets them without removing anything, as a kill would. */
void thin_output_leave(struct thin_output *o);
int thin_output_add(struct thin_output *o, const struct thin_record *r, struct error *err) MUST_CHECK;
/* The last segment covers everything up to `last`. */
int thin_output_finish(struct thin_output *o, const struct segment_info *last, struct error *err) MUST_CHECK;

#endif
