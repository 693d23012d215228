/* SPDX-License-Identifier: Apache-2.0 */
/* Thinning: which points old history keeps, and which segments are due. What is decided here needs no I/O; thin.c rewrites
 * the segments. docs/adr/0009-thinning.md has the design. */
#ifndef TIDEMARK_JOURNAL_THIN_H
#define TIDEMARK_JOURNAL_THIN_H

#include <stdbool.h>
#include <stddef.h>

#include "journal/age.h"
#include "journal/journal.h"

#define THIN_MAX_SEGMENTS 32u           /* rewritten at a time */
#define THIN_MAX_LSNS (1ull << 26)      /* of one stretch: 8 MiB of marks */
#define THIN_MAX_GENERATION 255u
#define THIN_READY_INTERVALS 16u        /* a stretch waits until it is so many intervals long, so that little is rewritten twice */
#define THIN_JOIN_SEGMENTS 4u           /* so many small thinned segments in a row become one */
#define THIN_EARLY_PERCENT 70u          /* of the quota: from there on history is thinned before it is old enough */
#define THIN_HASTE_MAX 8u               /* at most at an eighth of that age */

/* ---- the choice of points: they are given in ascending LSNs; `cuts` are those kept ---- */
struct thin_chooser {
    uint64_t keep_ns;
    struct lsn candidate; /* the last point that was given; .n 0: none */
    uint64_t interval;    /* of the calendar, that it is in */
    struct lsn *cuts;     /* ascending; to be freed by thin_chooser_release */
    size_t count, capacity;
};
void thin_chooser_init(struct thin_chooser *c, uint32_t keep_s);
void thin_chooser_release(struct thin_chooser *c);
/* The last point of each calendar interval is kept, and each `forced` one. */
int thin_choose(struct thin_chooser *c, struct lsn lsn, uint64_t realtime_ns, bool forced, struct error *err) MUST_CHECK;
/* Keeps the last point so far: before a rewind or a gap, and at the end. */
int thin_choose_last(struct thin_chooser *c, struct error *err) MUST_CHECK;
/* Index of the interval that `lsn` belongs to: the number of cuts below it. */
size_t thin_interval(const struct thin_chooser *c, struct lsn lsn);
bool thin_is_cut(const struct thin_chooser *c, struct lsn lsn);

/* ---- what is due ---- */
struct thin_stretch {
    size_t first, count; /* in the manifest's table of segments */
    uint32_t keep_s;
};
struct thin_policy {
    const struct journal_thinning *steps; /* ascending */
    size_t step_count;
    struct age_clock now;
    struct lsn above;   /* only segments that begin above it: something reads the others */
    uint64_t max_bytes; /* of a stretch with more than one segment; 0: no limit */
    uint32_t haste_percent; /* 0 or 100: as the steps say; else ages count as so much more */
    uint32_t segment_blocks, segment_records; /* of a full one: much smaller ones are joined; 0: they are not */
};
/* The oldest stretch that is ready to be thinned; without one, the oldest that is worth joining: segments which thinning left so
 * small that several fit into one (their keep_s stays as it is). Each time what is joined at least doubles, so that nothing is rewritten
 * again and again, and the number of small segments grows with the logarithm of their size only. */
bool thin_find(const struct manifest *m, const struct thin_policy *policy, struct thin_stretch *ret);
/* The distance at which the steps keep points of that age; 0: all. */
uint32_t thin_wanted(const struct journal_thinning *steps, size_t step_count, uint64_t age_ns);

/* How much sooner to thin when `bytes` of `quota_bytes` are used (haste_percent): 100 up to 70 %, rising to 800 at 95 %. History that
 * is coarse too early is better than history that is dropped. */
uint32_t thin_haste(uint64_t bytes, uint64_t quota_bytes);

/* ---- for the janitor, with maintain_mutex held ---- */
/* Thins one stretch; *ret_done false when there is none, or something more urgent came. */
int thin_step(struct journal *j, bool *ret_done, struct error *err) MUST_CHECK;

#endif
