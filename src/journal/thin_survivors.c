/* SPDX-License-Identifier: Apache-2.0 */
/* Which records survive: those that hold the newest version, as of some kept point, of at least one sector. The extents of
 * all indexes pass by in the order of their place; of those that overlap the place reached, the newest of each
 * interval between two kept points is marked. Memory: one bit an LSN, and the extents that overlap one place and are
 * not hidden wholly by a newer one of their interval. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/thin_internal.h"

#define MAX_ACTIVE (1u << 20)

struct active { /* sorted by interval, then LSN */
    size_t interval;
    struct lsn lsn;
    uint64_t end; /* LBA */
};

struct sweep {
    struct thin_survivors *result;
    const struct thin_chooser *chooser;
    struct active *active;
    size_t count, capacity;
    uint32_t volume;
    uint64_t at; /* LBA: what lies before it is settled */
};

int thin_survivors_init(struct thin_survivors *s, struct lsn low, struct lsn high, struct error *err)
{
    *s = (struct thin_survivors){.low = low, .high = high};
    s->bits = calloc((high.n - low.n) / 64 + 1, sizeof *s->bits);
    return s->bits ? 0 : error_errno(err, -ENOMEM, "cannot thin old history");
}

void thin_survivors_release(struct thin_survivors *s)
{
    free(s->bits);
    *s = (struct thin_survivors){0};
}

bool thin_survives(const struct thin_survivors *s, struct lsn lsn)
{
    if (lsn.n <= s->low.n || lsn.n > s->high.n)
        return false;
    uint64_t bit = lsn.n - s->low.n - 1;
    return s->bits[bit / 64] >> (bit % 64) & 1;
}

static void mark(struct thin_survivors *s, struct lsn lsn)
{
    uint64_t bit = lsn.n - s->low.n - 1;
    s->bits[bit / 64] |= 1ull << (bit % 64);
}

/* Settles all places of this volume before `lba`. */
static void advance(struct sweep *w, uint64_t lba)
{
    while (w->count && w->at < lba) {
        uint64_t end = lba;
        for (size_t i = 0; i < w->count; i++) {
            if (w->active[i].end < end)
                end = w->active[i].end;
            bool newest = i + 1 == w->count || w->active[i + 1].interval != w->active[i].interval;
            if (newest)
                mark(w->result, w->active[i].lsn);
        }
        size_t k = 0;
        for (size_t i = 0; i < w->count; i++)
            if (w->active[i].end > end)
                w->active[k++] = w->active[i];
        w->count = k;
        w->at = end;
    }
    w->at = lba;
}

static int insert(struct sweep *w, size_t at, struct active a, struct error *err)
{
    if (w->count == w->capacity) {
        size_t capacity = w->capacity ? w->capacity * 2 : 64;
        struct active *larger = capacity <= MAX_ACTIVE ? realloc(w->active, capacity * sizeof *larger) : NULL;
        if (!larger)
            return error_errno(err, -ENOMEM, "cannot thin old history");
        w->active = larger;
        w->capacity = capacity;
    }
    memmove(&w->active[at + 1], &w->active[at], (w->count - at) * sizeof *w->active);
    w->active[at] = a;
    w->count++;
    return 0;
}

/* Adds an extent that begins at w->at; what it hides in its interval goes. */
static int add(struct sweep *w, const struct extent *e, struct error *err)
{
    struct active a = {thin_interval(w->chooser, e->lsn), e->lsn, e->lba + e->length};
    size_t low = 0, high = w->count;
    while (low < high) { /* the first that is above it */
        size_t middle = low + (high - low) / 2;
        const struct active *m = &w->active[middle];
        if (m->interval < a.interval || (m->interval == a.interval && m->lsn.n < a.lsn.n))
            low = middle + 1;
        else
            high = middle;
    }
    for (size_t i = low; i < w->count && w->active[i].interval == a.interval; i++)
        if (w->active[i].end >= a.end)
            return 0; /* hidden by a newer one */
    size_t from = low;
    while (from > 0 && w->active[from - 1].interval == a.interval && w->active[from - 1].end <= a.end)
        from--; /* older ones next to it that end before it; others are settled by advance() */
    if (from < low) {
        memmove(&w->active[from], &w->active[low], (w->count - low) * sizeof *w->active);
        w->count -= low - from;
    }
    return insert(w, from, a, err);
}

struct input {
    struct extent_stream *stream;
    struct extent next;
    bool more;
};

static int pull(struct input *in, struct error *err)
{
    int r = in->stream->next(in->stream, &in->next, err);
    in->more = r > 0;
    return r < 0 ? r : 0;
}

static bool is_before(const struct extent *a, const struct extent *b)
{
    if (a->volume != b->volume)
        return a->volume < b->volume;
    if (a->lba != b->lba)
        return a->lba < b->lba;
    return a->lsn.n < b->lsn.n;
}

int thin_find_survivors(struct thin_survivors *s, const struct thin_chooser *chooser, struct extent_stream **streams, size_t count,
                        struct error *err)
{
    struct input *in = calloc(count ? count : 1, sizeof *in);
    struct sweep w = {.result = s, .chooser = chooser};
    int r = in ? 0 : error_errno(err, -ENOMEM, "cannot thin old history");
    for (size_t i = 0; i < count && r == 0; i++) {
        in[i].stream = streams[i];
        r = pull(&in[i], err);
    }
    for (uint64_t n = 1; r == 0; n++) {
        struct input *first = NULL;
        if (s->pace && n % THIN_PACE_EXTENTS == 0)
            s->pace(s->pace_context);
        for (size_t i = 0; i < count; i++)
            if (in[i].more && (!first || is_before(&in[i].next, &first->next)))
                first = &in[i];
        if (!first)
            break;
        const struct extent *e = &first->next;
        if (e->volume != w.volume) {
            advance(&w, UINT64_MAX);
            w.volume = e->volume;
            w.at = 0;
        }
        advance(&w, e->lba);
        if (e->lsn.n > s->low.n && e->lsn.n <= s->high.n)
            r = add(&w, e, err);
        if (r == 0)
            r = pull(first, err);
    }
    if (r == 0)
        advance(&w, UINT64_MAX);
    free(w.active);
    free(in);
    return r;
}
