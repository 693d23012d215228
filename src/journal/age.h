/* SPDX-License-Identifier: Apache-2.0 */
/* How old a segment is. The wall clock alone does not tell: set forward for a moment, by hand or by a broken time server, it would
 * make all history old at once, and what is dropped or thinned then is gone for good. */
#ifndef TIDEMARK_JOURNAL_AGE_H
#define TIDEMARK_JOURNAL_AGE_H

#include "base/clock.h"
#include "journal/manifest.h"

struct age_clock {
    struct uuid boot;
    uint64_t realtime_ns, boottime_ns; /* now */
    /* The first record of this boot that is still there; boottime UINT64_MAX: none. */
    uint64_t first_realtime_ns, first_boottime_ns;
};

/* Now, beside the segments of `m`, whose `boot` is the running one. */
void age_clock_read(const struct manifest *m, const struct clock *clock, struct age_clock *ret);
/* Since the segment's last record: of this boot what really went by; of an earlier one the least that the wall clock's readings, of now and
 * of the beginning of this boot, allow for. */
uint64_t age_of(const struct age_clock *c, const struct segment_info *s);

#endif
