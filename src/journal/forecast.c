/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/forecast.h"

#include "journal/thin.h"

static uint64_t bytes_of(const struct segment_info *s)
{
    return segment_info_bytes(s, 0);
}

static uint64_t span_points(const struct segment_info *s, uint32_t keep_s)
{
    uint64_t span = s->last_realtime_ns > s->first_realtime_ns ? s->last_realtime_ns - s->first_realtime_ns : 0;
    return span / (keep_s * NS_PER_SECOND) + 1;
}

/* At most: parts of a request are no points, and tags stay. */
static uint64_t points_of(const struct segment_info *s, uint32_t keep_s)
{
    uint64_t all = s->records, kept = keep_s ? span_points(s, keep_s) : all;
    return kept < all ? kept : all;
}

#define UNSEALED_SEGMENTS 2u /* the one being written, and the next one */

uint64_t forecast_room_bytes(uint64_t quota_bytes, uint64_t segment_bytes)
{
    uint64_t unsealed = UNSEALED_SEGMENTS * segment_bytes;
    return quota_bytes > unsealed + segment_bytes ? quota_bytes - unsealed : segment_bytes;
}

/* How many of the oldest segments would go; the last one stays. */
static size_t count_dropped(const struct manifest *m, const struct forecast_limits *limits, const struct age_clock *now)
{
    uint64_t total = 0, full = limits->segment_bytes, room = forecast_room_bytes(limits->quota_bytes, full);
    size_t dropped = 0;
    for (size_t i = 0; i < m->segment_count; i++)
        total += segment_info_bytes(&m->segments[i], full);
    for (size_t i = 0; i < m->run_count && full; i++)
        total += m->runs[i].index_kib * 1024ull;
    while (dropped + 1 < m->segment_count) {
        const struct segment_info *s = &m->segments[dropped];
        bool old = limits->history_ns && age_of(now, s) > limits->history_ns, over = limits->quota_bytes && total > room;
        if (!old && !over)
            break;
        total -= segment_info_bytes(s, full);
        for (size_t i = 0; i < m->run_count && full; i++)
            total -= m->runs[i].last_segment == s->number ? m->runs[i].index_kib * 1024ull : 0;
        dropped++;
    }
    return dropped;
}

static void add_thinned(struct forecast *f, const struct segment_info *s, uint32_t keep_s)
{
    struct forecast_step *step = NULL;
    for (size_t i = 0; i < f->step_count; i++)
        if (f->steps[i].keep_s == keep_s)
            step = &f->steps[i];
    if (!step) {
        step = &f->steps[f->step_count++];
        *step = (struct forecast_step){.keep_s = keep_s, .from_ns = s->first_realtime_ns};
    }
    step->to_ns = s->last_realtime_ns;
    step->points += points_of(s, s->keep_s);
    step->points_after += points_of(s, keep_s);
    step->bytes += bytes_of(s);
}

void forecast_make(const struct manifest *m, const struct forecast_limits *limits, const struct age_clock *now, struct forecast *ret)
{
    size_t dropped = count_dropped(m, limits, now);
    *ret = (struct forecast){.oldest_ns = m->base_realtime_ns, .oldest = m->base, .oldest_after_ns = m->base_realtime_ns, .oldest_after = m->base};
    for (size_t i = 0; i < m->segment_count; i++) {
        const struct segment_info *s = &m->segments[i];
        if (i < dropped) {
            ret->oldest_after_ns = s->last_realtime_ns;
            ret->oldest_after = s->last;
            ret->dropped_bytes += bytes_of(s);
            ret->dropped_points += points_of(s, s->keep_s);
            continue;
        }
        uint32_t wanted = thin_wanted(limits->thinning, limits->thinning_count, age_of(now, s));
        if (wanted > s->keep_s)
            add_thinned(ret, s, wanted);
    }
}
