/* SPDX-License-Identifier: Apache-2.0 */
/* Which points of a segment thinning keeps. Of an interval only the last point counts, so of most frames
 * nothing has to be known but that the interval goes on after them, which the index's list of frames says.
 * The headers that are read:
 *  - of each frame in which an interval may end, of each with a record that forces a point, and of the
 * segment's last;
 *  - before such a frame, of those back to one with a point: if the frame has none itself, that is the last
 * of its interval. In a stretch of which a part is refused all are read. */
#include <errno.h>

#include "base/error.h"
#include "journal/frame.h"
#include "journal/thin_internal.h"

static bool is_before(uint8_t op) /* what lies before it is kept */
{
    return op == OP_REWIND || op == OP_GAP || op == OP_RESYNC_BEGIN;
}
static bool is_forced(uint8_t op)
{
    return is_before(op) || op == OP_RESYNC_END || op == OP_MARK;
}

static bool is_refused(const struct manifest *m, uint64_t lsn)
{
    for (size_t i = 0; i < m->refused_count; i++)
        if (lsn > m->refused[i].low.n && (m->refused[i].high.n == 0 || lsn < m->refused[i].high.n))
            return true;
    return false;
}

int thin_choose_frame(struct thin_chooser *c, const struct manifest *m, const struct frame_header *h,
                      bool *ret_any, struct error *err)
{
    int r = 0;
    *ret_any = false;
    for (uint32_t i = 0; i < le16_get(h->record_count) && r == 0; i++) {
        const struct frame_record *record = &frame_records(h)[i];
        uint64_t lsn = frame_record_lsn(h, i),
                 time = le64_get(h->realtime_ns) + le32_get(record->delta_us) * 1000ull;
        if (is_before(record->op)) /* what an undo leads back to, and the last that is known for sure */
            r = thin_choose_last(c, err);
        bool point = record->flags & RECORD_LAST && record->op != OP_VOID && record->op != OP_BASE;
        if (r < 0 || !point || is_refused(m, lsn))
            continue;
        r = thin_choose(c, (struct lsn){lsn}, time, is_forced(record->op), err);
        *ret_any = true;
    }
    return r;
}

static bool has_point(const struct frame_header *h)
{
    for (uint32_t i = 0; i < le16_get(h->record_count); i++) {
        const struct frame_record *record = &frame_records(h)[i];
        if (record->flags & RECORD_LAST && record->op != OP_VOID && record->op != OP_BASE)
            return true;
    }
    return false;
}

static bool touches_refused(const struct thin_points *p)
{
    for (size_t i = 0; i < p->m->refused_count; i++)
        if (p->m->refused[i].low.n < p->high.n &&
            (p->m->refused[i].high.n == 0 || p->m->refused[i].high.n > p->low.n))
            return true;
    return false;
}

/* Whether the header of frame `i` has to be read. *at: the first event that is not before the frame; moves
 * on. */
static bool matters(const struct thin_points *p, uint32_t i, uint64_t keep_ns, uint32_t *at)
{
    bool forced = false, last = i + 1 == p->frame_count;
    uint64_t end = last ? UINT64_MAX : le64_get(p->frames[i + 1].first_lsn);
    for (; *at < p->event_count && le64_get(p->events[*at].lsn) < end; ++*at)
        forced |= is_forced(p->events[*at].op);
    return forced || last ||
           le64_get(p->frames[i].realtime_ns) / keep_ns != le64_get(p->frames[i + 1].realtime_ns) / keep_ns;
}

static int visit(struct thin_chooser *c, const struct thin_points *p, uint32_t i, struct error *err)
{
    const struct frame_header *h;
    bool any;
    int r = p->header(p->context, i, &h, err);
    return r < 0 ? r : thin_choose_frame(c, p->m, h, &any, err);
}

/* Gives the last frame of [from, end) that has a point. */
static int visit_before(struct thin_chooser *c, const struct thin_points *p, uint32_t from, uint32_t end,
                        struct error *err)
{
    while (end-- > from) {
        const struct frame_header *h;
        bool any;
        int r = p->header(p->context, end, &h, err);
        if (r < 0)
            return r;
        if (has_point(h))
            return thin_choose_frame(c, p->m, h, &any, err);
    }
    return 0;
}

int thin_choose_points(struct thin_chooser *c, const struct thin_points *p, struct error *err)
{
    bool all = touches_refused(p);
    uint32_t event = 0, from = 0;
    int r = 0;
    for (uint32_t i = 0; i < p->frame_count && r == 0; i++) {
        if (!matters(p, i, c->keep_ns, &event) && !all)
            continue;
        r = visit_before(c, p, from, i, err);
        if (r == 0)
            r = visit(c, p, i, err);
        from = i + 1;
    }
    return r;
}
