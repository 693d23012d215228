/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/book.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/frame.h"
#include "journal/salvage.h"

void chapter_release(struct chapter *c)
{
    free(c->events);
    free(c->frames);
    *c = (struct chapter){0};
}

static void *copy_array(const void *from, size_t bytes)
{
    void *to = malloc(bytes ? bytes : 1);
    if (to)
        memcpy(to, from, bytes);
    return to;
}

void book_release(struct book *b)
{
    pthread_rwlock_unlock(&b->j->files_lock);
    for (size_t i = 0; i < b->tail_count; i++)
        chapter_release(&b->tails[i]);
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

int book_open(struct journal *j, bool *unreadable, struct book *ret, struct error *err)
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
        book_release(ret);
    return r;
}

size_t book_chapter_count(const struct book *b)
{
    return b->manifest.segment_count + b->tail_count;
}
const struct segment_info *book_chapter_info(const struct book *b, size_t i)
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
    int r = salvage_scan(b->j->directory, &b->manifest.journal_id, &ret->info, &found, &ignored);
    if (r == 0 && found.failed < 0 && !book_passes_over(b, found.failed)) {
        r = error_errno(&ignored, found.failed, "cannot read segment %u", ret->info.number);
        salvage_release(&found);
    }
    if (r < 0)
        return book_passes_over(b, r) ? 0 : error_set(err, r, "%s", ignored.message);
    ret->event_count = found.tail.event_count;
    ret->frame_count = found.tail.frame_count;
    ret->events = copy_array(found.tail.events, found.tail.event_count * sizeof *found.tail.events);
    ret->frames = copy_array(found.tail.frames, found.tail.frame_count * sizeof *found.tail.frames);
    salvage_release(&found);
    if (ret->events && ret->frames)
        return 0;
    chapter_release(ret);
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

int book_load_chapter(const struct book *b, size_t i, struct chapter *ret, struct error *err)
{
    *ret = (struct chapter){.info = *book_chapter_info(b, i)};
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
    chapter_release(ret);
    ret->info = *book_chapter_info(b, i);
    return book_passes_over(b, r) ? salvage_chapter(b, ret, err) : r;
}

int book_read_blocks(const struct book *b, const struct segment_info *s, uint32_t block, void *data, size_t bytes,
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

int book_read_frame_header(const struct book *b, const struct chapter *c, uint32_t frame, void *block, struct error *err)
{
    int r = book_read_blocks(b, &c->info, le32_get(c->frames[frame].block), block, JOURNAL_BLOCK_BYTES, err);
    return r < 0 ? r : check_frame_header(b, c, frame, block, err);
}

int book_find_frame_header(const struct book *b, const struct chapter *c, uint32_t frame, const void **ret_block, struct error *err)
{
    struct book_reading *reading = b->reading;
    const uint32_t at = le32_get(c->frames[frame].block);
    if (!reading->has_header || reading->number != c->info.number || reading->generation != c->info.generation || reading->at != at) {
        reading->has_header = false;
        int r = book_read_frame_header(b, c, frame, reading->header, err);
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

uint64_t book_frame_time(const struct tail_frame *f, enum book_time kind)
{
    return kind == TIME_BOOT ? le64_get(f->boottime_ns) : le64_get(f->realtime_ns);
}

int book_last_in_frame(const struct book *b, const struct chapter *c, uint32_t i, enum book_time kind, uint64_t time,
                         struct lsn lsn, struct book_point *ret, struct error *err)
{
    char *block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    if (!block)
        return error_errno(err, -ENOMEM, "cannot read the history");
    *ret = (struct book_point){0};
    int r = book_read_frame_header(b, c, i, block, err);
    if (r < 0 && b->unreadable) {
        *b->unreadable = true;
        io_free_pages(block, JOURNAL_BLOCK_BYTES);
        return 0;
    }
    uint64_t start = book_frame_time(&c->frames[i], kind);
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
