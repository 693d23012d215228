/* SPDX-License-Identifier: Apache-2.0 */
/* Looking back: which points there are, and what time they have. Everything is read from the segments' indexes, newest first; only the manifest's
 * table of segments is searched in memory. */
#include "journal/history.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/book.h"
#include "journal/frame.h"

/* The last point at or before chapter `i`, frame `frame` (of it), with the limits. Goes back over frames without one. */
static int last_before(const struct book *b, size_t i, uint32_t frame, enum book_time kind, uint64_t time, struct lsn lsn,
                       struct book_point *ret, struct error *err)
{
    *ret = (struct book_point){.lsn = b->manifest.base, .realtime_ns = b->manifest.base_realtime_ns};
    for (bool first = true;; first = false) {
        struct chapter c;
        int r = book_load_chapter(b, i, &c, err);
        if (r < 0)
            return r;
        for (uint32_t k = first && frame < c.frame_count ? frame + 1 : c.frame_count; k-- > 0 && r == 0;) {
            if (le64_get(c.frames[k].first_lsn) > lsn.n || (time != UINT64_MAX && book_frame_time(&c.frames[k], kind) > time))
                continue;
            struct book_point found;
            r = book_last_in_frame(b, &c, k, kind, time, lsn, &found, err);
            if (r == 0 && found.lsn.n) {
                *ret = found;
                chapter_release(&c);
                return 0;
            }
        }
        chapter_release(&c);
        if (r < 0 || i-- == 0)
            return r;
    }
}

static int floor_point(const struct book *b, struct lsn lsn, struct book_point *ret, struct error *err)
{
    *ret = (struct book_point){.lsn = b->manifest.base, .realtime_ns = b->manifest.base_realtime_ns};
    for (size_t i = book_chapter_count(b); i-- > 0;)
        if (book_chapter_info(b, i)->first.n <= lsn.n)
            return last_before(b, i, UINT32_MAX, TIME_REAL, UINT64_MAX, lsn, ret, err);
    return 0;
}

static bool same_boot(const struct book *b, const struct segment_info *s)
{
    return memcmp(s->boot.bytes, b->manifest.boot.bytes, 16) == 0;
}

/* The earliest place behind which time goes beyond `time`. *ret_again: the clock came back to it later. */
static int find_time(const struct book *b, enum book_time kind, uint64_t time, struct book_point *ret, bool *ret_again,
                     struct error *err)
{
    size_t count = book_chapter_count(b), at = count;
    *ret_again = false;
    for (size_t i = 0; i < count; i++) {
        const struct segment_info *s = book_chapter_info(b, i);
        if (kind == TIME_BOOT && !same_boot(b, s))
            continue;
        uint64_t first = kind == TIME_BOOT ? s->first_boottime_ns : s->first_realtime_ns;
        uint64_t last = kind == TIME_BOOT ? s->last_boottime_ns : s->last_realtime_ns;
        if (at == count && (first > time || last > time))
            at = i;
        else if (at < count && first <= time)
            *ret_again = true;
    }
    if (at == count)
        return count ? last_before(b, count - 1, UINT32_MAX, kind, UINT64_MAX, LSN_MAX, ret, err)
                     : floor_point(b, LSN_MAX, ret, err);
    struct chapter c;
    int r = book_load_chapter(b, at, &c, err);
    if (r < 0)
        return r;
    uint32_t frame = 0;
    while (frame < c.frame_count && book_frame_time(&c.frames[frame], kind) <= time)
        frame++;
    chapter_release(&c);
    if (frame > 0)
        return last_before(b, at, frame - 1, kind, time, LSN_MAX, ret, err);
    if (at > 0)
        return last_before(b, at - 1, UINT32_MAX, TIME_REAL, UINT64_MAX, LSN_MAX, ret, err);
    *ret = (struct book_point){.lsn = b->manifest.base, .realtime_ns = b->manifest.base_realtime_ns};
    return 0;
}

static int outside(const struct book *b, const char *what, struct error *err)
{
    char from[CLOCK_TEXT_BYTES], to[CLOCK_TEXT_BYTES];
    return error_set(err, -ERANGE, "%s is outside of the history, which goes from LSN %llu (%s) to LSN %llu (%s)", what,
                     (unsigned long long)b->manifest.base_target.n, clock_format_rfc3339(b->manifest.base_realtime_ns, from),
                     (unsigned long long)b->j->written_lsn, clock_format_rfc3339(clock_realtime_ns(b->j->clock), to));
}

static int resolve_time(const struct book *b, const struct point *point, struct book_point *ret, char note[160],
                        struct error *err)
{
    char text[CLOCK_TEXT_BYTES], what[96];
    uint64_t now = clock_realtime_ns(b->j->clock), boot_now = clock_boottime_ns(b->j->clock);
    uint64_t time = point->kind == POINT_TIME ? point->realtime_ns : now > point->ago_ns ? now - point->ago_ns : 0;
    snprintf(what, sizeof what, "the time %s", clock_format_rfc3339(time, text));
    if (point->kind == POINT_AGO) {
        uint64_t since = boot_now > point->ago_ns ? boot_now - point->ago_ns : 0;
        for (size_t i = 0; i < book_chapter_count(b); i++) {
            const struct segment_info *s = book_chapter_info(b, i);
            if (!same_boot(b, s))
                continue;
            if (s->first_boottime_ns > since)
                break; /* before this boot's first record: by the wall clock */
            bool again;
            return find_time(b, TIME_BOOT, since, ret, &again, err);
        }
    }
    if (time < b->manifest.base_realtime_ns)
        return outside(b, what, err);
    if (point->kind == POINT_TIME && time > now)
        return outside(b, what, err);
    bool again;
    int r = find_time(b, TIME_REAL, time, ret, &again, err);
    if (r == 0 && again)
        snprintf(note, 160, "the clock was set back: this time occurs more than once, the earliest is taken");
    return r;
}

static int visit_tag(void *context, const struct journal_event *event, struct error *err)
{
    struct tag_search *s = context;
    (void)err;
    if (event->op != OP_MARK || strcmp(event->payload, s->name) != 0)
        return 0;
    s->found = event->lsn;
    s->realtime_ns = event->realtime_ns;
    return 1;
}

static int find_tag_in_book(const struct book *b, const char *name, struct tag_search *ret, struct error *err)
{
    *ret = (struct tag_search){.name = name};
    return book_events(b, b->manifest.base, LSN_MAX, false, visit_tag, ret, err);
}

int history_find_tag(struct journal *j, const char *name, bool *unreadable, struct tag_search *ret, struct error *err)
{
    struct book book;
    int r = book_open(j, unreadable, &book, err);
    if (r < 0)
        return r;
    book.wanted = OP_MARK;
    book.for_good = true;
    r = find_tag_in_book(&book, name, ret, err);
    book_release(&book);
    return r;
}

static bool is_inside(const struct refused_info *r, struct lsn lsn)
{
    return lsn.n > r->low.n && (r->high.n == 0 || lsn.n < r->high.n);
}

int history_check_refused(struct journal *j, struct lsn lsn, struct error *err)
{
    MUTEX_GUARD(guard, &j->mutex);
    for (size_t i = 0; i < j->manifest.refused_count; i++) {
        const struct refused_info *r = &j->manifest.refused[i];
        if (!is_inside(r, lsn))
            continue;
        return error_set(err, -ERANGE,
                         "LSN %llu is inside a gap (after LSN %llu, %s): what the volumes held there is not known exactly; "
                         "choose a point before or after it",
                         (unsigned long long)lsn.n, (unsigned long long)r->low.n,
                         r->high.n ? "closed by a resync" : "still being compared with the backing");
    }
    return 0;
}

/* The first point above `lsn`, from chapter `i` on; *ret 0: none. */
static int next_point(const struct book *b, size_t i, struct lsn lsn, struct lsn *ret, struct error *err)
{
    char *block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    int r = block ? 0 : error_errno(err, -ENOMEM, "cannot read the history");
    for (ret->n = 0; i < book_chapter_count(b) && r == 0 && !ret->n; i++) {
        struct chapter c;
        r = book_load_chapter(b, i, &c, err);
        for (uint32_t k = 0; r == 0 && k < c.frame_count && !ret->n; k++) {
            if (k + 1 < c.frame_count && le64_get(c.frames[k + 1].first_lsn) <= lsn.n)
                continue;
            r = book_read_frame_header(b, &c, k, block, err);
            for (uint32_t n = 0; r == 0 && n < le16_get(c.frames[k].records) && !ret->n; n++)
                if (frame_record_lsn(block, n) > lsn.n && frame_records(block)[n].flags & RECORD_LAST)
                    ret->n = frame_record_lsn(block, n);
        }
        chapter_release(&c);
    }
    io_free_pages(block, JOURNAL_BLOCK_BYTES);
    return r;
}

/* 1 + the place of the thinned segment that `lsn` is in; 0: in none. */
static size_t thinned_around(const struct manifest *m, struct lsn lsn)
{
    size_t i = manifest_segments_until(m, lsn);
    return i == 0 || m->segments[i - 1].generation == 0 || lsn.n > m->segments[i - 1].last.n ? 0 : i;
}

static int check_kept(const struct book *b, struct lsn lsn, struct error *err)
{
    struct book_point before;
    struct lsn after;
    size_t i = thinned_around(&b->manifest, lsn);
    if (i == 0)
        return 0;
    int r = floor_point(b, lsn, &before, err);
    if (r < 0 || before.lsn.n == lsn.n || lsn.n == b->manifest.base.n)
        return r;
    r = next_point(b, i - 1, lsn, &after, err);
    if (r < 0)
        return r;
    char from[CLOCK_TEXT_BYTES];
    return error_set(err, -ERANGE,
                     "LSN %llu was thinned away: the points kept next to it are LSN %llu (%s) and LSN %llu; open one of them, or a "
                     "time, which takes the last point kept before it",
                     (unsigned long long)lsn.n, (unsigned long long)before.lsn.n, clock_format_rfc3339(before.realtime_ns, from),
                     (unsigned long long)after.n);
}

int history_check_kept(struct journal *j, struct lsn lsn, struct error *err)
{
    struct book book;
    pthread_mutex_lock(&j->mutex);
    bool thinned = thinned_around(&j->manifest, lsn) > 0;
    pthread_mutex_unlock(&j->mutex);
    if (!thinned) /* every point of it is kept; without a copy of the manifest, which is the longer the more history there is */
        return 0;
    int r = book_open(j, NULL, &book, err);
    if (r < 0)
        return r;
    r = check_kept(&book, lsn, err);
    book_release(&book);
    return r;
}

static int resolve_in_book(const struct book *b, const struct point *point, struct journal_point *ret, struct error *err)
{
    struct book_point found = {0};
    char what[96];
    int r = 0;
    switch (point->kind) {
    case POINT_LATEST:
        r = floor_point(b, LSN_MAX, &found, err);
        break;
    case POINT_LSN:
        snprintf(what, sizeof what, "LSN %llu", (unsigned long long)point->lsn.n);
        if (point->lsn.n < b->manifest.base_target.n || point->lsn.n > b->j->written_lsn)
            return outside(b, what, err);
        r = check_kept(b, point->lsn, err);
        if (r == 0)
            r = floor_point(b, point->lsn, &found, err);
        if (r == 0 && found.lsn.n != point->lsn.n)
            snprintf(ret->note, sizeof ret->note, "LSN %llu is not the end of a request: the last point before it is taken",
                     (unsigned long long)point->lsn.n);
        break;
    case POINT_AGO:
    case POINT_TIME:
        r = resolve_time(b, point, &found, ret->note, err);
        break;
    case POINT_TAG: {
        struct tag_search tag;
        r = find_tag_in_book(b, point->tag, &tag, err);
        if (r == 0 && !tag.found.n && b->unreadable && *b->unreadable)
            return error_set(err, -ENOENT, "there is no tag '%s' in the part of the history that can be read; a time or LSN may do",
                             point->tag);
        if (r == 0 && !tag.found.n)
            return error_set(err, -ENOENT, "there is no tag '%s' in the history; `points` lists them",
                             point->tag);
        found = (struct book_point){tag.found, tag.realtime_ns};
        break;
    }
    }
    if (r < 0)
        return r;
    if (found.lsn.n < b->manifest.base_target.n)
        return outside(b, "this point", err);
    ret->lsn = found.lsn;
    ret->realtime_ns = found.realtime_ns;
    return 0;
}

static bool is_asked_later(const struct journal *j, const struct point *point, const struct journal_point *found)
{
    uint64_t asked = point->kind == POINT_TIME ? point->realtime_ns : clock_realtime_ns(j->clock) - point->ago_ns;
    return (point->kind == POINT_TIME || point->kind == POINT_AGO) && asked > found->realtime_ns;
}

/* A time after the last point before a gap: what was written in the gap may have come before it. */
static void note_gap(struct journal *j, const struct point *point, struct journal_point *found)
{
    if (!is_asked_later(j, point, found) || found->note[0])
        return;
    MUTEX_GUARD(guard, &j->mutex);
    for (size_t i = 0; i < j->manifest.refused_count; i++)
        if (j->manifest.refused[i].low.n == found->lsn.n)
            snprintf(found->note, sizeof found->note,
                     "a gap follows this point: writes that were not journaled may have come before the time that was asked for");
}

/* A time between two points that thinning kept: what was written after the first of them may have come before it. */
static void note_thinned(const struct book *b, const struct point *point, struct journal_point *found)
{
    struct error ignored;
    struct lsn after, next = {found->lsn.n + 1};
    size_t i = thinned_around(&b->manifest, next);
    if (i == 0 || !is_asked_later(b->j, point, found) || found->note[0])
        return;
    if (next_point(b, i - 1, found->lsn, &after, &ignored) == 0 && after.n > next.n)
        snprintf(found->note, sizeof found->note,
                 "the history is thinned there: this is the last point kept before that time, the next one is LSN %llu",
                 (unsigned long long)after.n);
}

/* What it tells is durable, as far as the journal goes on. */
static int open_synced_book(struct journal *j, bool *unreadable, struct book *ret, struct error *err)
{
    int r = journal_sync(j, -1, NULL, err);
    return r < 0 && r != -ESHUTDOWN ? r : book_open(j, unreadable, ret, err);
}

static int resolve(struct journal *j, const struct point *point, bool *unreadable, struct journal_point *ret, struct error *err)
{
    struct book book;
    struct journal_point found = {0};
    int r = open_synced_book(j, unreadable, &book, err);
    if (r < 0)
        return r;
    r = resolve_in_book(&book, point, &found, err);
    if (r == 0 && unreadable && *unreadable && (point->kind != POINT_LSN || found.lsn.n != point->lsn.n))
        snprintf(found.note, sizeof found.note,
                 "part of the history there cannot be read: the last point before it that is known is taken");
    if (r == 0)
        r = history_check_refused(j, point->kind == POINT_LSN ? point->lsn : found.lsn, err);
    if (r == 0) {
        note_gap(j, point, &found);
        note_thinned(&book, point, &found);
    }
    book_release(&book);
    if (r < 0)
        return r;
    *ret = found;
    return r;
}

int journal_resolve(struct journal *j, const struct point *point, struct journal_point *ret, struct error *err)
{
    return resolve(j, point, NULL, ret, err);
}

int journal_resolve_salvage(struct journal *j, const struct point *point, struct journal_point *ret, struct error *err)
{
    bool unreadable = false;
    return resolve(j, point, &unreadable, ret, err);
}

/* The beginning of the refused interval that `lsn` is in, or `lsn`. */
static struct lsn before_refused(const struct book *b, struct lsn lsn)
{
    for (size_t i = 0; i < b->manifest.refused_count; i++) {
        const struct refused_info *r = &b->manifest.refused[i];
        if (is_inside(r, lsn))
            return r->low;
    }
    return lsn;
}

static int last_point_until(const struct book *b, struct lsn lsn, struct book_point *ret, struct error *err)
{
    char what[96];
    snprintf(what, sizeof what, "LSN %llu", (unsigned long long)lsn.n);
    for (struct lsn at = lsn;; at = before_refused(b, ret->lsn)) {
        if (at.n < b->manifest.base_target.n)
            return outside(b, what, err);
        int r = floor_point(b, at, ret, err);
        if (r < 0)
            return r;
        if (ret->lsn.n < b->manifest.base_target.n)
            return outside(b, what, err);
        if (before_refused(b, ret->lsn).n == ret->lsn.n)
            return 0;
    }
}

int journal_resolve_before(struct journal *j, struct lsn lsn, struct journal_point *ret, struct error *err)
{
    struct book book;
    struct book_point found;
    int r = open_synced_book(j, NULL, &book, err);
    if (r < 0)
        return r;
    r = last_point_until(&book, lsn, &found, err);
    book_release(&book);
    if (r < 0)
        return r;
    *ret = (struct journal_point){.lsn = found.lsn, .realtime_ns = found.realtime_ns};
    if (found.lsn.n != lsn.n)
        snprintf(ret->note, sizeof ret->note, "the last point before LSN %llu that can be opened", (unsigned long long)lsn.n);
    return 0;
}
