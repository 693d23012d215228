/* SPDX-License-Identifier: Apache-2.0 */
/* What other limits would do to the history that is there: for the dry run of a policy. No I/O; segments are looked at whole, so
 * what is told of times is exact to a segment, and what is told of points and bytes is an estimate. */
#ifndef TIDEMARK_JOURNAL_FORECAST_H
#define TIDEMARK_JOURNAL_FORECAST_H

#include "journal/age.h"
#include "journal/journal.h"

#define FORECAST_MAX_STEPS (JOURNAL_MAX_THINNING)

struct forecast_limits {
    uint64_t quota_bytes, history_ns; /* 0: none */
    uint64_t segment_bytes;           /* of a full one: the quota counts the one being written and the next one so; 0: sealed ones alone, as they are used */
    const struct journal_thinning *thinning; /* ascending */
    size_t thinning_count;
};
struct forecast_step { /* history that would be thinned to this distance */
    uint32_t keep_s;
    uint64_t from_ns, to_ns;
    uint64_t points, points_after; /* now, at most; then, at most */
    uint64_t bytes;                /* that would be rewritten: freed at most */
};
struct forecast {
    uint64_t oldest_ns, oldest_after_ns; /* realtime of the oldest point */
    struct lsn oldest, oldest_after;
    uint64_t dropped_bytes, dropped_points; /* points at most */
    struct forecast_step steps[FORECAST_MAX_STEPS];
    size_t step_count;
};
/* What of a quota is left for history that is sealed; at least a segment. */
uint64_t forecast_room_bytes(uint64_t quota_bytes, uint64_t segment_bytes);
/* `m` is the history as it is `now`. */
void forecast_make(const struct manifest *m, const struct forecast_limits *limits, const struct age_clock *now, struct forecast *ret);

#endif
