/* SPDX-License-Identifier: Apache-2.0 */
#include "signal/detector.h"

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static const struct signal_second *second_ago(const struct signal_detector *d, uint64_t age)
{
    return &d->ring[(d->count - 1 - age) % SIGNAL_RING_S];
}

static struct signal_second window_sum(const struct signal_detector *d)
{
    struct signal_second sum = {0};
    for (uint64_t age = 0; age < SIGNAL_WINDOW_S && age < d->count; age++) {
        const struct signal_second *s = second_ago(d, age);
        sum.written += s->written;
        sum.high += s->high;
        sum.uniform += s->uniform;
        sum.overwritten += s->overwritten;
        sum.freed += s->freed;
    }
    return sum;
}

static uint64_t floor_of(uint64_t content_bytes)
{
    uint64_t share = content_bytes / SIGNAL_FLOOR_SHARE;
    return share < SIGNAL_FLOOR_MIN_BYTES ? SIGNAL_FLOOR_MIN_BYTES : least(share, SIGNAL_FLOOR_MAX_BYTES);
}

static uint64_t limit_of(const struct signal_baseline *b, uint64_t content_bytes)
{
    double learned = b->mean + SIGNAL_BASELINE_DEVIATIONS * b->deviation;
    uint64_t floor = floor_of(content_bytes), ceiling = content_bytes / SIGNAL_BASELINE_SHARE;
    if (learned > (double)ceiling)
        learned = (double)ceiling;
    return floor + (uint64_t)learned;
}

/* The mean of the first windows, then an exponential one. */
static void learn(struct signal_baseline *b, double score)
{
    b->windows++;
    double weight = 1.0 / (double)least(b->windows, SIGNAL_BASELINE_WINDOWS);
    double difference = b->windows > 1 ? score - b->mean : 0; /* one window deviates from nothing */
    if (b->windows == 1)
        b->mean = score;
    b->mean += weight * difference;
    b->deviation += weight * ((difference < 0 ? -difference : difference) - b->deviation);
}

static void begin(struct signal_detector *d)
{
    uint64_t first = 0, end = least(d->count, SIGNAL_RING_S);
    for (uint64_t age = 0; age < end; age++) {
        const struct signal_second *s = second_ago(d, age);
        uint64_t from = s->uniform >= SIGNAL_TRACE_BYTES ? least(age + s->uniform_s, end - 1) : age;
        if ((s->uniform >= SIGNAL_TRACE_BYTES || s->overwritten >= SIGNAL_TRACE_BYTES) && from > first)
            first = from;
    }
    for (uint64_t age = first + 1; age < end && age - first < SIGNAL_GAP_S; age++)
        if (second_ago(d, age)->high >= SIGNAL_TRACE_BYTES)
            first = age;
    d->suspicious = true;
    d->begin_lsn = second_ago(d, first)->lsn;
    d->begin_ns = second_ago(d, first)->realtime_ns;
    d->stretch_bytes = 0;
}

enum signal_change signal_detector_add(struct signal_detector *d, const struct signal_second *second, uint64_t end_lsn,
                                       uint64_t end_ns, uint64_t low_bytes)
{
    d->ring[d->count++ % SIGNAL_RING_S] = *second;
    struct signal_second sum = window_sum(d);
    uint64_t lost = sum.overwritten + sum.freed;
    uint64_t share = lost / SIGNAL_LOST_SHARE;
    uint64_t even = sum.uniform >= share ? least(sum.uniform, lost) : 0;                                  /* D1 */
    uint64_t plain = sum.high >= share ? least(sum.high, sum.overwritten) / SIGNAL_PLAIN_FACTOR : 0; /* D2 */
    d->lost = lost;
    d->score = even > plain ? even : plain;
    d->limit = limit_of(&d->baseline, low_bytes + lost); /* as it was before the loss */
    bool sign = second->overwritten + second->freed >= SIGNAL_TRACE_BYTES || second->uniform >= SIGNAL_TRACE_BYTES;
    d->quiet_s = sign ? 0 : d->quiet_s + 1;
    if (sign || !d->suspicious) {
        d->end_lsn = end_lsn;
        d->end_ns = end_ns;
    }
    if (d->suspicious) {
        d->stretch_bytes = d->score > d->stretch_bytes ? d->score : d->stretch_bytes;
        if (d->quiet_s < SIGNAL_QUIET_S)
            return SIGNAL_SAME;
        d->suspicious = false;
        d->count = 0; /* what was found is not found again */
        return SIGNAL_ENDED;
    }
    if (d->score >= d->limit) {
        begin(d);
        d->stretch_bytes = d->score;
        return SIGNAL_BEGAN;
    }
    if (d->count % SIGNAL_WINDOW_S == 0 && sum.written)
        learn(&d->baseline, (double)d->score);
    return SIGNAL_SAME;
}
