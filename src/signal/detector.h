/* SPDX-License-Identifier: Apache-2.0 */
/* Decides from one summary a second whether a volume's content is being encrypted. Pure: time and figures come from the
 * caller, so that a test replays any history.
 *
 * Within a window of SIGNAL_WINDOW_S seconds two things are compared: how much structured content was lost (overwritten by
 * content of high entropy, or freed), and how much content of high entropy was written. What both have in common is the
 * `score`. It must exceed a floor, which depends on how much structured content the volume is known to hold, and what the volume
 * does every day (the baseline: mean and mean deviation of the score of past windows, learned only while nothing is suspicious).
 * Two rules, either is enough:
 *   D1  min(uniform, overwritten + freed) >= limit, and uniform >= a seventh of what was lost: the new content is spread as evenly
 *       as ciphertext; merely compressed content is not (estimate.h), so that removing files while pictures arrive does not count
 *   D2  min(high, overwritten) >= SIGNAL_PLAIN_FACTOR * limit, and high >= a seventh of what was lost: whatever the spread, much
 *       structured content was overwritten
 * A stretch begins with the first sign in the ring (SIGNAL_TRACE_BYTES evenly spread or overwritten), and with all high entropy that
 * led up to it with less than SIGNAL_GAP_S seconds between: rather too early than after the first ciphertext. It ends after
 * SIGNAL_QUIET_S seconds without a sign. */
#ifndef TIDEMARK_SIGNAL_DETECTOR_H
#define TIDEMARK_SIGNAL_DETECTOR_H

#include <stdbool.h>
#include <stdint.h>

#define SIGNAL_WINDOW_S 90u
#define SIGNAL_RING_S 128u
#define SIGNAL_QUIET_S 60u
#define SIGNAL_GAP_S 6u
#define SIGNAL_TRACE_BYTES (64ull << 10)
#define SIGNAL_FLOOR_MIN_BYTES (512ull << 10)
#define SIGNAL_FLOOR_MAX_BYTES (16ull << 20)
#define SIGNAL_FLOOR_SHARE 50u /* a 50th of the known structured content, between the two */
#define SIGNAL_PLAIN_FACTOR 4u
#define SIGNAL_LOST_SHARE 7u /* at least a seventh of what was lost came back as high entropy: packed logs leave less */
#define SIGNAL_BASELINE_WINDOWS 32u
#define SIGNAL_BASELINE_DEVIATIONS 8u
#define SIGNAL_BASELINE_SHARE 4u /* the baseline never lifts the limit above a quarter of the known structured content */

/* What happened in one second. All figures are bytes. */
struct signal_second {
    uint64_t realtime_ns, lsn; /* at its begin: the last record before it */
    uint64_t written;
    uint64_t high;        /* of high entropy */
    uint64_t uniform;     /* found to be spread as evenly as ciphertext: written in this second and ... */
    uint64_t uniform_s;   /* ... this many before it */
    uint64_t overwritten; /* high over structured */
    uint64_t freed;       /* structured content discarded or released by the file system */
};

struct signal_baseline {
    uint64_t windows; /* learned from */
    double mean, deviation;
};

enum signal_change { SIGNAL_SAME, SIGNAL_BEGAN, SIGNAL_ENDED };

struct signal_detector {
    struct signal_second ring[SIGNAL_RING_S];
    uint64_t count; /* seconds seen */
    struct signal_baseline baseline;
    bool suspicious;
    uint64_t quiet_s;                /* since the last sign */
    uint64_t begin_lsn, begin_ns;    /* of the stretch: the last record before it */
    uint64_t end_lsn, end_ns;        /* so far: the last record of the last second with a sign */
    uint64_t score, limit, lost;     /* of the last window */
    uint64_t stretch_bytes;          /* the greatest score in the stretch */
};

/* `end_lsn`, `end_ns`: of the end of this second. `low_bytes`: structured content that the volume is known to hold. */
enum signal_change signal_detector_add(struct signal_detector *d, const struct signal_second *second, uint64_t end_lsn,
                                       uint64_t end_ns, uint64_t low_bytes);

#endif
