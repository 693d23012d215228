/* SPDX-License-Identifier: Apache-2.0 */
/* Pacing: near the point where writers would have to stop, because dropping old history does not keep up with them, each write waits a
 * little first, longer the nearer it is (docs/adr/0018-pacing-at-the-quota.md). */
#ifndef TIDEMARK_JOURNAL_PACE_H
#define TIDEMARK_JOURNAL_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

struct journal;

#define PACE_MOST_NS (50 * NS_PER_MS)
#define PACE_ALARM_NS (30 * NS_PER_SECOND)
#define PACE_FROM_SEGMENTS 1u /* over the quota: up to there the drop keeps up */
#define PACE_STOP_SEGMENTS 2u /* there no further segment is begun */

/* What a write waits while a journal with that quota takes `bytes`: nothing up to PACE_FROM_SEGMENTS over the quota, from there
 * evenly more, up to PACE_MOST_NS at PACE_STOP_SEGMENTS. */
uint64_t pace_of(uint64_t bytes, uint64_t quota_bytes, uint64_t segment_bytes);
/* How far over its quota a journal may get whose oldest history is needed by views, or cannot be dropped: an eighth, and four segments at
 * least. From half of it on views are told to end, the oldest first; at its end journaling is suspended (docs/adr/0019). */
uint64_t pace_reserve(uint64_t quota_bytes, uint64_t segment_bytes);
/* With the journal's mutex: whether that is used up. */
bool pace_is_exhausted(const struct journal *j);
/* With the journal's mutex: finds out anew what writes wait. True: it may change soon, look again in some milliseconds. */
bool pace_update(struct journal *j);

#endif
