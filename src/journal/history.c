/* SPDX-License-Identifier: Apache-2.0 */
/* Looking back: which points there are, what time they have, what happened in between, which objects existed. Everything
 * is read from the segments' indexes, newest first; only the manifest's table of segments is searched in memory. */
#include "journal/history.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/frame.h"
#include "journal/journal_internal.h"
#include "journal/payload.h"
#include "journal/salvage.h"
#include "journal/saved.h"
#include "journal/segment_window.h"
#include "lib/json.h"
#include "lib/zstd.h"

/* One segment's sections in memory. */
struct chapter {
    struct segment_info info;
    struct tail_event *events;
    struct tail_frame *frames;
    uint32_t event_count, frame_count;
};

static void release_chapter(struct chapter *c)
{
    free(c->events);
    free(c->frames);
    *c = (struct chapter){0};
}

/* What a walk over many events keeps from one to the next. */
struct reading {
    struct segment_window window;
    bool has_header; /* the frame's that was read last: its records come one after the other */
    uint32_t number, generation, at;
    _Alignas(16) char header[JOURNAL_BLOCK_BYTES];
};

struct book { /* all segments, oldest first; the last ones may be tails */
    struct journal *j;
    struct manifest manifest;
    struct chapter tails[2]; /* oldest first */
    size_t tail_count;
    bool *unreadable; /* salvage: what cannot be read is passed over, and this is set. NULL: it is an error */
    struct reading *reading; /* NULL: single blocks are read */
};

static void *copy_array(const void *from, size_t bytes)
{
    void *to = malloc(bytes ? bytes : 1);
    if (to)
        memcpy(to, from, bytes);
    return to;
}

static void release_book(struct book *b)
{
    pthread_rwlock_unlock(&b->j->files_lock);
    for (size_t i = 0; i < b->tail_count; i++)
        release_chapter(&b->tails[i]);
    manifest_release(&b->manifest);
}

/* A tail has what is on its way to the disk too, and while the journal is suspended what never came there: neither is history. */
static void cut_unwritten(struct chapter *c, const struct tail *t, uint64_t written)
{
    while (c->frame_count && le64_get(t->frames[c->frame_count - 1].first_lsn) > written)
        c->frame_count--;
    while (c->event_count && le64_get(t->events[c->event_count - 1].lsn) > written)
        c->event_count--;
    if (c->info.last.n > written)
        c->info.last.n = written;
}

static int open_book(struct journal *j, bool *unreadable, struct book *ret, struct error *err)
{
    pthread_rwlock_rdlock(&j->files_lock); /* the files of this manifest stay until it is released */
    MUTEX_GUARD(guard, &j->mutex);
    *ret = (struct book){.j = j, .unreadable = unreadable};
    int r = manifest_copy(&j->manifest, &ret->manifest, err);
    const struct tail *order[2] = {j->sealing ? &j->tails[!j->active] : NULL, &j->tails[j->active]};
    for (int i = 0; i < 2 && r == 0; i++) {
        const struct tail *t = order[i];
        if (!t || t->frame_count == 0 || t->info.number < ret->manifest.next_segment)
            continue;
        struct chapter *c = &ret->tails[ret->tail_count++];
        c->info = t->info;
        c->event_count = t->event_count;
        c->frame_count = t->frame_count;
        cut_unwritten(c, t, j->written_lsn);
        c->events = copy_array(t->events, t->event_count * sizeof *t->events);
        c->frames = copy_array(t->frames, t->frame_count * sizeof *t->frames);
        if (!c->events || !c->frames)
            r = error_errno(err, -ENOMEM, "cannot read the history");
    }
    if (r < 0)
        release_book(ret);
    return r;
}

static size_t chapter_count(const struct book *b)
{
    return b->manifest.segment_count + b->tail_count;
}
static const struct segment_info *chapter_info(const struct book *b, size_t i)
{
    return i < b->manifest.segment_count ? &b->manifest.segments[i] : &b->tails[i - b->manifest.segment_count].info;
}

static int read_section(struct index *index, enum index_section section, size_t element_bytes, void **ret,
                        uint32_t *ret_count, struct error *err)
{
    uint64_t bytes = index_section_bytes(index, section);
    void *data = malloc(bytes ? bytes : 1);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot read the history");
    int r = bytes ? index_section_pread(index, section, data, bytes, 0, err) : 0;
    if (r < 0) {
        free(data);
        return r;
    }
    *ret = data;
    *ret_count = (uint32_t)(bytes / element_bytes);
    return 0;
}

/* Of a segment without a readable index: what its frames say, or nothing. */
static int salvage_chapter(const struct book *b, struct chapter *ret, struct error *err)
{
    struct salvage_segment found;
    struct error ignored = ERROR_INIT;
    *b->unreadable = true;
    if (salvage_scan(b->j->directory, &b->manifest.journal_id, &ret->info, &found, &ignored) < 0)
        return 0;
    ret->event_count = found.tail.event_count;
    ret->frame_count = found.tail.frame_count;
    ret->events = copy_array(found.tail.events, found.tail.event_count * sizeof *found.tail.events);
    ret->frames = copy_array(found.tail.frames, found.tail.frame_count * sizeof *found.tail.frames);
    salvage_release(&found);
    if (ret->events && ret->frames)
        return 0;
    release_chapter(ret);
    return error_errno(err, -ENOMEM, "cannot read the history");
}

static int load_sections(const struct book *b, struct chapter *ret, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct index *index = NULL;
    journal_path(b->j, journal_l0_file_of(ret->info.number, ret->info.generation, name), path);
    int r = index_open(path, b->j->cache, &index, err);
    if (r == -ENOENT) /* not the same as a point or tag that does not exist */
        return error_set(err, -EBADMSG, "index %s is missing: the history from LSN %llu to %llu cannot be read", path,
                         (unsigned long long)ret->info.first.n, (unsigned long long)ret->info.last.n);
    if (r == 0)
        r = read_section(index, INDEX_SECTION_EVENTS, sizeof *ret->events, (void **)&ret->events, &ret->event_count, err);
    if (r == 0)
        r = read_section(index, INDEX_SECTION_FRAMES, sizeof *ret->frames, (void **)&ret->frames, &ret->frame_count, err);
    index_free(index);
    return r;
}

/* Loads chapter `i` into *ret, to be released. */
static int load_chapter(const struct book *b, size_t i, struct chapter *ret, struct error *err)
{
    *ret = (struct chapter){.info = *chapter_info(b, i)};
    if (i >= b->manifest.segment_count) {
        const struct chapter *t = &b->tails[i - b->manifest.segment_count];
        ret->event_count = t->event_count;
        ret->frame_count = t->frame_count;
        ret->events = copy_array(t->events, t->event_count * sizeof *t->events);
        ret->frames = copy_array(t->frames, t->frame_count * sizeof *t->frames);
        return ret->events && ret->frames ? 0 : error_errno(err, -ENOMEM, "cannot read the history");
    }
    int r = load_sections(b, ret, err);
    if (r == 0)
        return 0;
    release_chapter(ret);
    ret->info = *chapter_info(b, i);
    return b->unreadable ? salvage_chapter(b, ret, err) : r;
}

/* Reads `bytes` from a block of a segment: a frame's header, or payload of a plain segment. CRCs are checked by the caller. `data` is
 * page-aligned, unless there is b->reading. */
static int read_blocks(const struct book *b, const struct segment_info *s, uint32_t block, void *data, size_t bytes,
                       struct error *err)
{
    struct segment_window once = {0}, *window = b->reading ? &b->reading->window : &once;
    const uint32_t count = (uint32_t)(bytes / JOURNAL_BLOCK_BYTES);
    char name[JOURNAL_FILE_BYTES];
    int r = segment_window_open(window, b->j->directory, s->number, s->generation, err);
    if (r == -EBADMSG)
        return r;
    if (r == 0) {
        r = b->reading ? segment_window_read(window, block, count, data) : segment_reader_blocks(&window->file, block, count, data);
        if (r == 0 && sealed_open_header(window->file.key, block, data, NULL) < 0)
            r = error_set(err, -EBADMSG, "segment %u is damaged at block %u (frame header)", s->number, block);
        else if (r == -EBADMSG)
            error_set(err, r, "segment %u is damaged at block %u (a compressed chunk)", s->number, block);
        segment_window_release(&once);
    }
    if (r == -ENOENT || r == -ENODATA || r == -EISDIR)
        return error_set(err, -EBADMSG, "segment %u is damaged: %s %s", s->number,
                         s->cold_kib ? journal_cold_file_of(s->number, s->generation, name) : journal_segment_file_of(s->number, s->generation, name),
                         r == -ENODATA ? "is cut off" : r == -ENOENT ? "is missing" : "is a directory");
    return r < 0 && r != -EBADMSG ? error_errno(err, r, "cannot read segment %u at block %u", s->number, block) : r;
}

static int check_frame_header(const struct book *b, const struct chapter *c, uint32_t frame, const void *block, struct error *err)
{
    const struct frame_header *h = block;
    if (!frame_is_intact(block, &b->manifest.journal_id, c->info.epoch) ||
        le64_get(h->first_lsn) != le64_get(c->frames[frame].first_lsn) ||
        le16_get(h->record_count) != le16_get(c->frames[frame].records))
        return error_set(err, -EBADMSG, "segment %u is damaged at block %u (frame header)", c->info.number,
                         le32_get(c->frames[frame].block));
    return 0;
}

static int read_frame_header(const struct book *b, const struct chapter *c, uint32_t frame, void *block, struct error *err)
{
    int r = read_blocks(b, &c->info, le32_get(c->frames[frame].block), block, JOURNAL_BLOCK_BYTES, err);
    return r < 0 ? r : check_frame_header(b, c, frame, block, err);
}

/* The same in a walk, which comes to a frame as many times as it has events. *ret_block belongs to b->reading. */
static int find_frame_header(const struct book *b, const struct chapter *c, uint32_t frame, const void **ret_block, struct error *err)
{
    struct reading *reading = b->reading;
    const uint32_t at = le32_get(c->frames[frame].block);
    if (!reading->has_header || reading->number != c->info.number || reading->generation != c->info.generation || reading->at != at) {
        reading->has_header = false;
        int r = read_frame_header(b, c, frame, reading->header, err);
        if (r < 0)
            return r;
        reading->has_header = true;
        reading->number = c->info.number;
        reading->generation = c->info.generation;
        reading->at = at;
    }
    *ret_block = reading->header;
    return 0;
}

/* ---- points ---- */

enum time_kind { TIME_REAL, TIME_BOOT };

static uint64_t frame_time(const struct tail_frame *f, enum time_kind kind)
{
    return kind == TIME_BOOT ? le64_get(f->boottime_ns) : le64_get(f->realtime_ns);
}

struct candidate {
    struct lsn lsn;
    uint64_t realtime_ns;
};

/* The last record of frame `i` that may be a point, has time <= `time` and LSN <= `lsn`; .lsn.n 0: none. */
static int last_in_frame(const struct book *b, const struct chapter *c, uint32_t i, enum time_kind kind, uint64_t time,
                         struct lsn lsn, struct candidate *ret, struct error *err)
{
    char *block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    if (!block)
        return error_errno(err, -ENOMEM, "cannot read the history");
    *ret = (struct candidate){0};
    int r = read_frame_header(b, c, i, block, err);
    if (r < 0 && b->unreadable) {
        *b->unreadable = true;
        io_free_pages(block, JOURNAL_BLOCK_BYTES);
        return 0;
    }
    uint64_t start = frame_time(&c->frames[i], kind);
    for (uint32_t k = r < 0 ? 0 : le16_get(c->frames[i].records); k-- > 0;) {
        const struct frame_record *record = &frame_records(block)[k];
        uint64_t delta_ns = le32_get(record->delta_us) * 1000ull;
        bool in_time = time == UINT64_MAX || start + delta_ns <= time;
        uint64_t at = frame_record_lsn(block, k);
        if (!(record->flags & RECORD_LAST) || at > lsn.n || !in_time)
            continue;
        ret->lsn.n = at;
        ret->realtime_ns = le64_get(c->frames[i].realtime_ns) + delta_ns;
        break;
    }
    io_free_pages(block, JOURNAL_BLOCK_BYTES);
    return r;
}

/* The last point at or before chapter `i`, frame `frame` (of it), with the limits. Goes back over frames without one. */
static int last_before(const struct book *b, size_t i, uint32_t frame, enum time_kind kind, uint64_t time, struct lsn lsn,
                       struct candidate *ret, struct error *err)
{
    *ret = (struct candidate){.lsn = b->manifest.base, .realtime_ns = b->manifest.base_realtime_ns};
    for (bool first = true;; first = false) {
        struct chapter c;
        int r = load_chapter(b, i, &c, err);
        if (r < 0)
            return r;
        for (uint32_t k = first && frame < c.frame_count ? frame + 1 : c.frame_count; k-- > 0 && r == 0;) {
            if (le64_get(c.frames[k].first_lsn) > lsn.n || (time != UINT64_MAX && frame_time(&c.frames[k], kind) > time))
                continue;
            struct candidate found;
            r = last_in_frame(b, &c, k, kind, time, lsn, &found, err);
            if (r == 0 && found.lsn.n) {
                *ret = found;
                release_chapter(&c);
                return 0;
            }
        }
        release_chapter(&c);
        if (r < 0 || i-- == 0)
            return r;
    }
}

static int floor_point(const struct book *b, struct lsn lsn, struct candidate *ret, struct error *err)
{
    *ret = (struct candidate){.lsn = b->manifest.base, .realtime_ns = b->manifest.base_realtime_ns};
    for (size_t i = chapter_count(b); i-- > 0;)
        if (chapter_info(b, i)->first.n <= lsn.n)
            return last_before(b, i, UINT32_MAX, TIME_REAL, UINT64_MAX, lsn, ret, err);
    return 0;
}

static bool same_boot(const struct book *b, const struct segment_info *s)
{
    return memcmp(s->boot.bytes, b->manifest.boot.bytes, 16) == 0;
}

/* The earliest place behind which time goes beyond `time`. *ret_again: the clock came back to it later. */
static int find_time(const struct book *b, enum time_kind kind, uint64_t time, struct candidate *ret, bool *ret_again,
                     struct error *err)
{
    size_t count = chapter_count(b), at = count;
    *ret_again = false;
    for (size_t i = 0; i < count; i++) {
        const struct segment_info *s = chapter_info(b, i);
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
    int r = load_chapter(b, at, &c, err);
    if (r < 0)
        return r;
    uint32_t frame = 0;
    while (frame < c.frame_count && frame_time(&c.frames[frame], kind) <= time)
        frame++;
    release_chapter(&c);
    if (frame > 0)
        return last_before(b, at, frame - 1, kind, time, LSN_MAX, ret, err);
    if (at > 0)
        return last_before(b, at - 1, UINT32_MAX, TIME_REAL, UINT64_MAX, LSN_MAX, ret, err);
    *ret = (struct candidate){.lsn = b->manifest.base, .realtime_ns = b->manifest.base_realtime_ns};
    return 0;
}

static int outside(const struct book *b, const char *what, struct error *err)
{
    char from[CLOCK_TEXT_BYTES], to[CLOCK_TEXT_BYTES];
    return error_set(err, -ERANGE, "%s is outside of the history, which goes from LSN %llu (%s) to LSN %llu (%s)", what,
                     (unsigned long long)b->manifest.base_target.n, clock_format_rfc3339(b->manifest.base_realtime_ns, from),
                     (unsigned long long)b->j->written_lsn, clock_format_rfc3339(clock_realtime_ns(b->j->clock), to));
}

static int resolve_time(const struct book *b, const struct point *point, struct candidate *ret, char note[160],
                        struct error *err)
{
    char text[CLOCK_TEXT_BYTES], what[96];
    uint64_t now = clock_realtime_ns(b->j->clock), boot_now = clock_boottime_ns(b->j->clock);
    uint64_t time = point->kind == POINT_TIME ? point->realtime_ns : now > point->ago_ns ? now - point->ago_ns : 0;
    snprintf(what, sizeof what, "the time %s", clock_format_rfc3339(time, text));
    if (point->kind == POINT_AGO) {
        uint64_t since = boot_now > point->ago_ns ? boot_now - point->ago_ns : 0;
        for (size_t i = 0; i < chapter_count(b); i++) {
            const struct segment_info *s = chapter_info(b, i);
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

struct tag_search {
    const char *name;
    struct lsn found;
    uint64_t realtime_ns;
};

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

static int events_of(const struct book *b, struct lsn low, struct lsn high, bool activity, journal_event_visit visit, void *context,
                     struct error *err);

static int find_tag_in_book(const struct book *b, const char *name, struct tag_search *ret, struct error *err)
{
    *ret = (struct tag_search){.name = name};
    return events_of(b, b->manifest.base, LSN_MAX, false, visit_tag, ret, err);
}

static int find_tag(struct journal *j, const char *name, struct tag_search *ret, struct error *err)
{
    struct book book;
    int r = open_book(j, NULL, &book, err);
    if (r < 0)
        return r;
    r = find_tag_in_book(&book, name, ret, err);
    release_book(&book);
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
    for (ret->n = 0; i < chapter_count(b) && r == 0 && !ret->n; i++) {
        struct chapter c;
        r = load_chapter(b, i, &c, err);
        for (uint32_t k = 0; r == 0 && k < c.frame_count && !ret->n; k++) {
            if (k + 1 < c.frame_count && le64_get(c.frames[k + 1].first_lsn) <= lsn.n)
                continue;
            r = read_frame_header(b, &c, k, block, err);
            for (uint32_t n = 0; r == 0 && n < le16_get(c.frames[k].records) && !ret->n; n++)
                if (frame_record_lsn(block, n) > lsn.n && frame_records(block)[n].flags & RECORD_LAST)
                    ret->n = frame_record_lsn(block, n);
        }
        release_chapter(&c);
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
    struct candidate before;
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
    int r = open_book(j, NULL, &book, err);
    if (r < 0)
        return r;
    r = check_kept(&book, lsn, err);
    release_book(&book);
    return r;
}

static int resolve_in_book(const struct book *b, const struct point *point, struct journal_point *ret, struct error *err)
{
    struct candidate found = {0};
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
            return error_set(err, -ENOENT, "there is no tag '%s' in the history; `tidemark points` lists them", point->tag);
        found = (struct candidate){tag.found, tag.realtime_ns};
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

/* A time after the last point before a gap: what was written in the gap may have come before it. */
static void note_gap(struct journal *j, const struct point *point, struct journal_point *found)
{
    uint64_t asked = point->kind == POINT_TIME ? point->realtime_ns : clock_realtime_ns(j->clock) - point->ago_ns;
    if ((point->kind != POINT_TIME && point->kind != POINT_AGO) || asked <= found->realtime_ns || found->note[0])
        return;
    MUTEX_GUARD(guard, &j->mutex);
    for (size_t i = 0; i < j->manifest.refused_count; i++)
        if (j->manifest.refused[i].low.n == found->lsn.n)
            snprintf(found->note, sizeof found->note,
                     "a gap follows this point: writes that were not journaled may have come before the time that was asked for");
}

/* What it tells is durable, as far as the journal goes on. */
static int open_synced_book(struct journal *j, bool *unreadable, struct book *ret, struct error *err)
{
    int r = journal_sync(j, -1, NULL, err);
    return r < 0 && r != -ESHUTDOWN ? r : open_book(j, unreadable, ret, err);
}

static int resolve(struct journal *j, const struct point *point, bool *unreadable, struct journal_point *ret, struct error *err)
{
    struct book book;
    struct journal_point found = {0};
    int r = open_synced_book(j, unreadable, &book, err);
    if (r < 0)
        return r;
    r = resolve_in_book(&book, point, &found, err);
    release_book(&book);
    if (r == 0 && unreadable && *unreadable && (point->kind != POINT_LSN || found.lsn.n != point->lsn.n))
        snprintf(found.note, sizeof found.note,
                 "part of the history there cannot be read: the last point before it that is known is taken");
    if (r == 0)
        r = history_check_refused(j, point->kind == POINT_LSN ? point->lsn : found.lsn, err);
    if (r < 0)
        return r;
    note_gap(j, point, &found);
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

static int last_point_until(const struct book *b, struct lsn lsn, struct candidate *ret, struct error *err)
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
    struct candidate found;
    int r = open_synced_book(j, NULL, &book, err);
    if (r < 0)
        return r;
    r = last_point_until(&book, lsn, &found, err);
    release_book(&book);
    if (r < 0)
        return r;
    *ret = (struct journal_point){.lsn = found.lsn, .realtime_ns = found.realtime_ns};
    if (found.lsn.n != lsn.n)
        snprintf(ret->note, sizeof ret->note, "the last point before LSN %llu that can be opened", (unsigned long long)lsn.n);
    return 0;
}

/* ---- events ---- */

/* Of an encrypted segment: the payload at `block` of the frame that begins at `at`. What is not authentic has a wrong CRC. */
static int read_sealed_payload(const struct book *b, const struct segment_info *s, uint32_t at, uint32_t block, void *data, size_t bytes,
                               struct error *err)
{
    struct segment_reader file = {.fd = -1};
    seal_tag digest;
    char *frame = io_alloc_pages((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    int r = frame ? segment_reader_open(b->j->directory, s->number, s->generation, true, &file, err) : -ENOMEM;
    if (r == 0)
        r = segment_reader_header(&file, at, frame, digest);
    uint32_t blocks = r == 0 ? le32_get(((const struct frame_header *)frame)->blocks) : 0;
    if (r == 0 && (blocks > FRAME_MAX_BLOCKS || block < at || block - at + bytes / JOURNAL_BLOCK_BYTES > blocks))
        r = -EBADMSG;
    if (r == 0)
        r = segment_reader_payload(&file, at, frame, blocks, digest, NULL);
    if (r == 0)
        memcpy(data, frame + (size_t)(block - at) * JOURNAL_BLOCK_BYTES, bytes);
    segment_reader_close(&file);
    io_free_pages(frame, (size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    return r < 0 ? error_errno(err, r, "cannot read segment %u at block %u", s->number, block) : 0;
}

/* Whether the frame that holds the event says of the payload the CRC that it has. */
static bool payload_is_intact(const void *header, uint16_t records, uint64_t lsn, const char *payload, uint32_t blocks)
{
    uint32_t index = 0, crcs[FRAME_MAX_BLOCKS];
    while (index < records && frame_record_lsn(header, index) != lsn)
        index++;
    for (uint32_t i = 0; i < blocks; i++)
        crcs[i] = crc32c(0, payload + (size_t)i * JOURNAL_BLOCK_BYTES, JOURNAL_BLOCK_BYTES);
    uint32_t crc = blocks == 1 ? crcs[0] : crc32c(0, crcs, blocks * sizeof *crcs);
    return index < records && le32_get(frame_records(header)[index].payload_crc) == crc;
}

/* Reads an event's payload in a walk, checked against the segment's CRCs. NUL-terminated. */
static int read_payload(const struct book *b, const struct chapter *c, const struct tail_event *e, char **ret, struct error *err)
{
    uint32_t bytes = le32_get(e->payload_bytes), blocks = (bytes + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES;
    if (bytes > JOURNAL_PAYLOAD_MAX_BYTES)
        return error_set(err, -EBADMSG, "segment %u is damaged (event length)", c->info.number);
    size_t room = (size_t)blocks * JOURNAL_BLOCK_BYTES;
    _cleanup_free_ char *text = malloc(room + 1);
    const void *header = NULL;
    if (!text)
        return error_errno(err, -ENOMEM, "cannot read the history");
    uint32_t frame = c->frame_count;
    while (frame && le64_get(c->frames[frame - 1].first_lsn) > le64_get(e->lsn))
        frame--;
    int r = 0;
    if (bytes && frame == 0)
        return error_set(err, -EBADMSG, "segment %u is damaged (frame of an event)", c->info.number);
    if (bytes && b->j->seal)
        r = read_sealed_payload(b, &c->info, le32_get(c->frames[frame - 1].block), le32_get(e->payload_block), text, room, err);
    else if (bytes)
        r = read_blocks(b, &c->info, le32_get(e->payload_block), text, room, err);
    if (r == 0 && bytes)
        r = find_frame_header(b, c, frame - 1, &header, err);
    if (r < 0)
        return r;
    if (bytes && !payload_is_intact(header, le16_get(c->frames[frame - 1].records), le64_get(e->lsn), text, blocks))
        return error_set(err, -EBADMSG, "segment %u is damaged at block %u (wrong checksum)", c->info.number,
                         le32_get(e->payload_block));
    text[bytes] = '\0';
    *ret = take_ptr(text);
    return 0;
}

struct activity { /* of one second, collected from the newest frame on */
    bool pending;
    uint64_t second;
    struct journal_event event;
};

struct walk {
    const struct book *book;
    struct lsn low, high;
    bool activity;
    journal_event_visit visit;
    void *context;
    struct activity now;
};

static int flush_activity(struct walk *w, struct error *err)
{
    if (!w->now.pending)
        return 0;
    w->now.pending = false;
    return w->visit(w->context, &w->now.event, err);
}

/* The point that the activity of frame `frame` is told as, with its own time: the frame begins before it, in thinned history up to an hour.
 * .lsn.n 0: there is none. */
static int end_of_frame(const struct walk *w, const struct chapter *c, uint32_t frame, struct candidate *ret, struct error *err)
{
    const struct tail_frame *f = &c->frames[frame];
    struct error ignored = ERROR_INIT;
    int r = last_in_frame(w->book, c, frame, TIME_REAL, UINT64_MAX, LSN_MAX, ret, c->info.generation ? err : &ignored);
    if (c->info.generation || (r == 0 && ret->lsn.n)) /* there not every record is a point */
        return r;
    *ret = (struct candidate){{le64_get(f->first_lsn) + le16_get(f->records) - 1}, le64_get(f->realtime_ns)};
    return 0;
}

static int add_activity(struct walk *w, const struct chapter *c, uint32_t frame, struct error *err)
{
    const struct tail_frame *f = &c->frames[frame];
    struct candidate end = {{le64_get(f->first_lsn) + le16_get(f->records) - 1}, le64_get(f->realtime_ns)};
    bool same = w->now.pending && w->now.second == end.realtime_ns / NS_PER_SECOND;
    int r = le16_get(f->data_kib) && (!same || c->info.generation) ? end_of_frame(w, c, frame, &end, err) : 0;
    if (r < 0 || !le16_get(f->data_kib) || !end.lsn.n || end.lsn.n > w->high.n || end.lsn.n <= w->low.n)
        return r;
    const uint64_t second = end.realtime_ns / NS_PER_SECOND;
    if (w->now.pending && w->now.second != second) {
        r = flush_activity(w, err);
        if (r)
            return r;
    }
    if (!w->now.pending) {
        w->now.pending = true;
        w->now.second = second;
        w->now.event = (struct journal_event){.lsn = end.lsn, .realtime_ns = end.realtime_ns, .op = OP_WRITE, .payload = ""};
    }
    w->now.event.aux += le16_get(f->data_kib) * 1024ull;
    w->now.event.tag += le16_get(f->records);
    return 0;
}

static int visit_event(struct walk *w, const struct chapter *c, const struct tail_event *e, struct error *err)
{
    uint64_t lsn = le64_get(e->lsn);
    if (lsn > w->high.n || lsn <= w->low.n)
        return 0;
    _cleanup_free_ char *payload = NULL;
    int r = flush_activity(w, err);
    if (r == 0)
        r = read_payload(w->book, c, e, &payload, err);
    if (r < 0 && w->book->unreadable) {
        *w->book->unreadable = true;
        return 0;
    }
    if (r)
        return r;
    struct journal_event event = {.lsn = {lsn},
                                  .realtime_ns = le64_get(e->realtime_ns),
                                  .op = e->op,
                                  .flags = e->flags,
                                  .volume = le32_get(e->volume),
                                  .aux = le64_get(e->aux),
                                  .tag = le64_get(e->tag),
                                  .payload = payload,
                                  .payload_bytes = le32_get(e->payload_bytes)};
    return w->visit(w->context, &event, err);
}

/* Whether the activity of frame `frame` is told with an LSN above `lsn`. */
static int ends_after(const struct walk *w, const struct chapter *c, uint32_t frame, uint64_t lsn, bool *ret, struct error *err)
{
    const struct tail_frame *f = &c->frames[frame];
    struct candidate end = {{le64_get(f->first_lsn) + le16_get(f->records) - 1}, 0};
    int r = le16_get(f->data_kib) && (c->info.generation || end.lsn.n > lsn) ? end_of_frame(w, c, frame, &end, err) : 0;
    *ret = r == 0 && end.lsn.n > lsn;
    return r;
}

/* Newest first through one segment; events and frames merged by LSN. */
static int walk_chapter(struct walk *w, const struct chapter *c, struct error *err)
{
    uint32_t event = c->event_count, frame = w->activity ? c->frame_count : 0;
    int r = 0;
    while (r == 0 && (event || frame)) {
        bool frame_first = frame && (!event || le64_get(c->frames[frame - 1].first_lsn) > le64_get(c->events[event - 1].lsn));
        if (frame && !frame_first) /* the event is in the frame, or after it */
            r = ends_after(w, c, frame - 1, le64_get(c->events[event - 1].lsn), &frame_first, err);
        if (r == 0)
            r = frame_first ? add_activity(w, c, --frame, err) : visit_event(w, c, &c->events[--event], err);
    }
    return r;
}

static int events_of(const struct book *b, struct lsn low, struct lsn high, bool activity, journal_event_visit visit, void *context,
                     struct error *err)
{
    struct reading reading = {0};
    struct book read = *b;
    struct walk w = {&read, low, high, activity, visit, context, {0}};
    read.reading = &reading;
    int r = 0;
    for (size_t i = chapter_count(b); i-- > 0 && r == 0;) {
        const struct segment_info *info = chapter_info(b, i);
        if (info->first.n > high.n || (!activity && info->events == 0))
            continue;
        if (info->last.n <= low.n)
            break;
        struct chapter c;
        r = load_chapter(b, i, &c, err);
        if (r == 0) {
            r = walk_chapter(&w, &c, err);
            release_chapter(&c);
        }
    }
    if (r == 0)
        r = flush_activity(&w, err);
    segment_window_release(&reading.window);
    return r < 0 ? r : 0;
}

int journal_events(struct journal *j, struct lsn low, struct lsn high, bool activity, journal_event_visit visit,
                   void *context, struct error *err)
{
    struct book book;
    int r = open_book(j, NULL, &book, err);
    if (r < 0)
        return r;
    r = events_of(&book, low, high, activity, visit, context, err);
    release_book(&book);
    return r;
}

/* ---- tags and objects ---- */

static int append_event(struct journal *j, const struct journal_record *record, bool durable, struct journal_point *ret,
                        struct error *err)
{
    struct journal_ticket ticket;
    int r = journal_append(j, record, &ticket, err);
    if (r < 0)
        return r;
    journal_backed(j, &ticket);
    r = durable ? journal_sync(j, -1, NULL, err) : ret ? journal_wait(j, &ticket, err) : 0;
    if (r == 0 && ret)
        *ret = (struct journal_point){.lsn = ticket.lsn, .realtime_ns = ticket.realtime_ns};
    return r;
}

int journal_tag(struct journal *j, const char *name, const char *labels_json, struct journal_point *ret, struct error *err)
{
    int r = point_check_tag(name, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &j->tag_mutex);
    struct tag_search found;
    r = find_tag(j, name, &found, err);
    if (r < 0)
        return r;
    if (found.found.n)
        return error_set(err, -EEXIST, "the tag '%s' is there already, at LSN %llu: choose another name", name,
                         (unsigned long long)found.found.n);
    char payload[8192];
    int n = snprintf(payload, sizeof payload, "%s%c%s", name, '\0', labels_json ? labels_json : "{}");
    if (n >= (int)sizeof payload)
        return error_set(err, -EFBIG, "the labels of tag '%s' are too long: at most 8000 bytes", name);
    struct journal_record record = {.op = OP_MARK, .flags = RECORD_LAST, .payload = payload, .payload_bytes = (uint32_t)n};
    return append_event(j, &record, true, ret, err);
}

int journal_object(struct journal *j, const char *name, const void *content, size_t content_bytes,
                   struct journal_point *ret, struct error *err)
{
    size_t name_bytes = strlen(name) + 1, compressed_bytes = 0;
    if (name_bytes < 2 || name_bytes > 1024)
        return error_set(err, -EINVAL, "'%s' cannot name an object: expected 1 to 1023 bytes", name);
    _cleanup_free_ void *compressed = NULL;
    int r = content ? zstd_compress(content, content_bytes, ZSTD_LEVEL_DEFAULT, &compressed, &compressed_bytes, err) : 0;
    if (r < 0)
        return r;
    size_t length = name_bytes + compressed_bytes;
    if (length > JOURNAL_PAYLOAD_MAX_BYTES)
        return error_set(err, -EFBIG, "the object %s is too large: at most 1 MiB compressed", name);
    _cleanup_free_ char *payload = malloc(length);
    if (!payload)
        return error_errno(err, -ENOMEM, "cannot journal the object %s", name);
    memcpy(payload, name, name_bytes);
    if (compressed_bytes)
        memcpy(payload + name_bytes, compressed, compressed_bytes);
    struct journal_record record = {.op = OP_OBJECT,
                                    .flags = RECORD_LAST | (content ? 0 : RECORD_DELETED),
                                    .payload = payload,
                                    .payload_bytes = (uint32_t)length};
    return append_event(j, &record, false, ret, err);
}

struct object_walk {
    const struct journal *journal;
    const struct manifest *manifest;
    json_t *seen; /* object: name -> true */
    struct lsn limit; /* events above it are skipped: a rewind led past them */
    struct lsn from_rescue; /* a rewind's target is below the base: its own saved objects count */
    struct lsn base;
    journal_object_visit visit;
    void *context;
};

static int visit_object(void *context, const struct journal_event *e, struct error *err)
{
    struct object_walk *w = context;
    if (e->lsn.n > w->limit.n)
        return 0;
    if (e->op == OP_REWIND) {
        if (!sealer_is_rewind(w->journal, w->manifest, e->lsn))
            return 0;
        w->limit.n = e->aux;
        if (e->aux < w->base.n) {
            w->from_rescue = e->lsn;
            return 1;
        }
        return 0;
    }
    if (e->op != OP_OBJECT || json_object_get(w->seen, e->payload))
        return 0;
    if (json_object_set_new(w->seen, e->payload, json_true()) < 0)
        return error_set(err, -EBADMSG, "an object's name at LSN %llu is not UTF-8", (unsigned long long)e->lsn.n);
    if (e->flags & RECORD_DELETED)
        return 0;
    size_t name_bytes = strlen(e->payload) + 1, bytes;
    _cleanup_free_ void *content = NULL;
    if (name_bytes > e->payload_bytes)
        return error_set(err, -EBADMSG, "the object at LSN %llu is damaged", (unsigned long long)e->lsn.n);
    int r = zstd_decompress(e->payload + name_bytes, e->payload_bytes - name_bytes, 64u << 20, &content, &bytes, err);
    return r < 0 ? r : w->visit(w->context, e->payload, content, bytes, e->lsn, err);
}

/* The objects that dropped history leaves behind. */
static int visit_saved(struct object_walk *w, const char *path, struct error *err)
{
    if (w->base.n == 0 && w->from_rescue.n == 0)
        return 0;
    _cleanup_json_ json_t *saved = NULL;
    json_t *object;
    size_t i;
    int r = saved_read(path, &saved, err);
    json_array_foreach(saved, i, object) {
        const char *name, *content;
        uint64_t lsn;
        if (r < 0 || (r = json_get_string(object, "name", &name, err)) < 0 ||
            (r = json_get_string(object, "content", &content, err)) < 0 ||
            (r = json_get_u64(object, "lsn", &lsn, err)) < 0)
            break;
        if (!json_object_get(w->seen, name))
            r = w->visit(w->context, name, content, strlen(content), (struct lsn){lsn}, err);
    }
    return r;
}

int journal_objects(struct journal *j, struct lsn lsn, journal_object_visit visit, void *context, struct error *err)
{
    _cleanup_json_ json_t *seen = json_object();
    if (!seen)
        return error_errno(err, -ENOMEM, "cannot list the objects");
    struct book book;
    int r = open_book(j, NULL, &book, err);
    if (r < 0)
        return r;
    struct object_walk w = {.journal = j, .manifest = &book.manifest, .seen = seen, .limit = lsn, .base = book.manifest.base, .visit = visit, .context = context};
    r = events_of(&book, w.base, lsn, false, visit_object, &w, err);
    release_book(&book);
    if (r < 0)
        return r;
    char path[JOURNAL_PATH_BYTES], directory[JOURNAL_PATH_BYTES - 16];
    journal_path(j, "base/objects.json", path);
    if (w.from_rescue.n) {
        payload_rescue_directory(j->directory, w.from_rescue, directory, sizeof directory);
        snprintf(path, sizeof path, "%s/objects.json", directory);
    }
    return visit_saved(&w, path, err);
}

static int collect_object(void *context, const char *name, const char *content, size_t content_bytes, struct lsn lsn,
                          struct error *err)
{
    json_t *object = json_pack("{s:s, s:s%, s:I}", "name", name, "content", content, content_bytes, "lsn", (json_int_t)lsn.n);
    if (!object || json_array_append_new(context, object) < 0)
        return error_errno(err, -ENOMEM, "cannot save the object %s", name);
    return 0;
}

int history_save_objects(struct journal *j, struct lsn lsn, const char *path, struct error *err)
{
    _cleanup_json_ json_t *list = json_array();
    if (!list)
        return error_errno(err, -ENOMEM, "cannot save the objects");
    int r = journal_objects(j, lsn, collect_object, list, err);
    return r < 0 ? r : saved_write(path, list, err);
}
