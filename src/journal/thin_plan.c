/* SPDX-License-Identifier: Apache-2.0 */
/* Which points are kept and which segments are due; no I/O. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/tail.h"
#include "journal/thin.h"

void thin_chooser_init(struct thin_chooser *c, uint32_t keep_s)
{
    *c = (struct thin_chooser){.keep_ns = keep_s * NS_PER_SECOND};
}

void thin_chooser_release(struct thin_chooser *c)
{
    free(c->cuts);
    *c = (struct thin_chooser){0};
}

int thin_choose_last(struct thin_chooser *c, struct error *err)
{
    if (!c->candidate.n || (c->count && c->cuts[c->count - 1].n == c->candidate.n))
        return 0;
    if (c->count == c->capacity) {
        size_t capacity = c->capacity ? c->capacity * 2 : 256;
        struct lsn *larger = realloc(c->cuts, capacity * sizeof *larger);
        if (!larger)
            return error_errno(err, -ENOMEM, "cannot choose the points to be kept");
        c->cuts = larger;
        c->capacity = capacity;
    }
    c->cuts[c->count++] = c->candidate;
    return 0;
}

int thin_choose(struct thin_chooser *c, struct lsn lsn, uint64_t realtime_ns, bool forced, struct error *err)
{
    uint64_t interval = realtime_ns / c->keep_ns;
    int r = interval != c->interval ? thin_choose_last(c, err) : 0; /* also when the clock was set back */
    c->candidate = lsn;
    c->interval = interval;
    return r == 0 && forced ? thin_choose_last(c, err) : r;
}

size_t thin_interval(const struct thin_chooser *c, struct lsn lsn)
{
    size_t low = 0, high = c->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c->cuts[middle].n < lsn.n)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool thin_is_cut(const struct thin_chooser *c, struct lsn lsn)
{
    size_t i = thin_interval(c, lsn);
    return i < c->count && c->cuts[i].n == lsn.n;
}

uint32_t thin_wanted(const struct journal_thinning *steps, size_t step_count, uint64_t age_ns)
{
    uint32_t keep_s = 0;
    for (size_t i = 0; i < step_count; i++)
        if (age_ns >= steps[i].after_ns)
            keep_s = steps[i].keep_s;
    return keep_s;
}

uint32_t thin_haste(uint64_t bytes, uint64_t quota_bytes)
{
    uint64_t percent = quota_bytes ? (uint64_t)((double)bytes * 100 / (double)quota_bytes) : 0;
    if (percent <= THIN_EARLY_PERCENT)
        return 100;
    uint64_t haste = 100 + (percent - THIN_EARLY_PERCENT) * (THIN_HASTE_MAX - 1) * 100 / 25;
    return (uint32_t)(haste < THIN_HASTE_MAX * 100 ? haste : THIN_HASTE_MAX * 100);
}

static uint32_t wanted_now(const struct thin_policy *p, const struct segment_info *s)
{
    uint64_t age_ns = age_of(&p->now, s);
    if (p->haste_percent > 100)
        age_ns = age_ns / 100 * p->haste_percent;
    return thin_wanted(p->steps, p->step_count, age_ns);
}

/* What segment `i` is to be thinned to; 0: nothing to do, or not possible. */
static uint32_t due(const struct manifest *m, const struct thin_policy *p, size_t i)
{
    const struct segment_info *s = &m->segments[i];
    uint32_t wanted = wanted_now(p, s);
    if (wanted <= s->keep_s || s->first.n <= p->above.n || s->generation >= THIN_MAX_GENERATION)
        return 0;
    for (size_t k = 0; k < m->refused_count; k++) /* being compared: nothing is known yet */
        if (m->refused[k].high.n == 0 && s->last.n > m->refused[k].low.n)
            return 0;
    return wanted;
}

static uint64_t segment_bytes(const struct segment_info *s)
{
    return (uint64_t)s->used_blocks * JOURNAL_BLOCK_BYTES;
}

/* Takes as many segments from `first` on as belong together. Returns whether the stretch can only become longer by
 * waiting. */
static bool extend(const struct manifest *m, const struct thin_policy *p, struct thin_stretch *s)
{
    const struct segment_info *first = &m->segments[s->first];
    uint64_t bytes = segment_bytes(first);
    for (s->count = 1; s->count < THIN_MAX_SEGMENTS; s->count++) {
        size_t i = s->first + s->count;
        if (i == m->segment_count)
            return true;
        const struct segment_info *next = &m->segments[i];
        bytes += segment_bytes(next);
        if (memcmp(next->boot.bytes, first->boot.bytes, sizeof next->boot.bytes) != 0 ||
            next->last.n - first->first.n >= THIN_MAX_LSNS || (p->max_bytes && bytes > p->max_bytes))
            return false;
        if (due(m, p, i) != s->keep_s) /* too young, or thinned already */
            return next->keep_s < s->keep_s && next->first.n > p->above.n;
    }
    return false;
}

static bool find_due(const struct manifest *m, const struct thin_policy *policy, struct thin_stretch *ret)
{
    for (size_t i = 0; i < m->segment_count;) {
        struct thin_stretch s = {.first = i, .keep_s = due(m, policy, i)};
        if (!s.keep_s) {
            i++;
            continue;
        }
        bool may_grow = extend(m, policy, &s);
        const struct segment_info *first = &m->segments[i], *last = &m->segments[i + s.count - 1];
        uint64_t span = last->last_realtime_ns - first->first_realtime_ns;
        if (last->last_realtime_ns < first->first_realtime_ns || span / NS_PER_SECOND >= (uint64_t)THIN_READY_INTERVALS * s.keep_s)
            may_grow = false;
        if (!may_grow) {
            *ret = s;
            return true;
        }
        i += s.count;
    }
    return false;
}

/* ---- small segments ---- */

static bool is_small(const struct manifest *m, const struct thin_policy *p, size_t i)
{
    const struct segment_info *s = &m->segments[i];
    return s->keep_s && s->used_blocks < p->segment_blocks / 4 && s->records < p->segment_records / 4 && s->first.n > p->above.n &&
           s->generation < THIN_MAX_GENERATION && !due(m, p, i);
}

/* How many segments from `first` on are small and fit into one. *ret_even: the largest is no more than half of them, and it is worth it. */
static size_t count_small(const struct manifest *m, const struct thin_policy *p, size_t first, bool *ret_even)
{
    const struct segment_info *s = &m->segments[first];
    uint64_t blocks = 0, records = 0, events = 0, largest = 0, fits = p->max_bytes ? p->max_bytes / JOURNAL_BLOCK_BYTES : UINT64_MAX;
    size_t i = first;
    for (; i < m->segment_count && i - first < THIN_MAX_SEGMENTS && is_small(m, p, i); i++) {
        const struct segment_info *next = &m->segments[i];
        blocks += next->used_blocks;
        records += next->records;
        events += next->events;
        if (next->keep_s != s->keep_s || memcmp(next->boot.bytes, s->boot.bytes, sizeof s->boot.bytes) != 0 ||
            next->last.n - s->first.n >= THIN_MAX_LSNS || blocks > p->segment_blocks || blocks > fits || records > p->segment_records ||
            events > TAIL_MAX_EVENTS / 2) {
            blocks -= next->used_blocks;
            break;
        }
        largest = next->used_blocks > largest ? next->used_blocks : largest;
    }
    *ret_even = blocks >= 2 * largest;
    return i - first;
}

static bool find_small(const struct manifest *m, const struct thin_policy *p, struct thin_stretch *ret)
{
    for (size_t i = 0; p->segment_blocks && i + THIN_JOIN_SEGMENTS <= m->segment_count; i++) {
        bool even = false;
        size_t count = is_small(m, p, i) ? count_small(m, p, i, &even) : 0;
        if (count >= THIN_JOIN_SEGMENTS && even) {
            *ret = (struct thin_stretch){i, count, m->segments[i].keep_s};
            return true;
        }
    }
    return false;
}

bool thin_find(const struct manifest *m, const struct thin_policy *policy, struct thin_stretch *ret)
{
    return find_due(m, policy, ret) || find_small(m, policy, ret);
}
