/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/tail.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "journal/frame.h"

static int init(struct tail *t, uint32_t segment_blocks, uint32_t max_records, void *(*allocate)(size_t),
                struct error *err)
{
    *t = (struct tail){.segment_blocks = segment_blocks, .max_records = max_records};
    t->extents = allocate(max_records * sizeof *t->extents);
    t->events = allocate(TAIL_MAX_EVENTS * sizeof *t->events);
    t->frames = allocate(segment_blocks * sizeof *t->frames);
    t->crcs = allocate(segment_blocks * sizeof *t->crcs);
    if (t->extents && t->events && t->frames && t->crcs)
        return 0;
    tail_release(t);
    return error_errno(err, -ENOMEM, "cannot reserve memory for the journal's index");
}

int tail_init(struct tail *t, uint32_t segment_blocks, uint32_t max_records, struct error *err)
{
    return init(t, segment_blocks, max_records, io_alloc_pages, err);
}
int tail_init_lazy(struct tail *t, uint32_t segment_blocks, uint32_t max_records, struct error *err)
{
    return init(t, segment_blocks, max_records, io_reserve_pages, err);
}

void tail_release(struct tail *t)
{
    io_free_pages(t->extents, t->max_records * sizeof *t->extents);
    io_free_pages(t->events, TAIL_MAX_EVENTS * sizeof *t->events);
    io_free_pages(t->frames, t->segment_blocks * sizeof *t->frames);
    io_free_pages(t->crcs, t->segment_blocks * sizeof *t->crcs);
    io_free_pages(t->tags, t->segment_blocks * sizeof *t->tags);
    *t = (struct tail){0};
}

int tail_reserve_tags(struct tail *t, struct error *err)
{
    t->tags = io_alloc_pages(t->segment_blocks * sizeof *t->tags);
    return t->tags ? 0 : error_errno(err, -ENOMEM, "cannot reserve memory for the journal's index");
}

void tail_add_tags(struct tail *t, const seal_tag *tags, uint32_t blocks)
{
    if (t->tags)
        memcpy(t->tags[t->info.used_blocks], tags, blocks * sizeof *tags);
}

void tail_reset(struct tail *t, uint32_t number, uint32_t epoch, const struct uuid *boot)
{
    t->info = (struct segment_info){.number = number, .used_blocks = 1, .epoch = epoch, .boot = *boot};
    t->extent_count = t->event_count = t->frame_count = 0;
}

bool tail_fits(const struct tail *t, uint32_t records, uint32_t blocks)
{
    return t->info.used_blocks + blocks <= t->segment_blocks && t->info.records + records <= t->max_records &&
           t->event_count + records <= TAIL_MAX_EVENTS && t->frame_count < t->segment_blocks;
}

static void add_event(struct tail *t, const struct frame_record *r, uint64_t lsn, uint64_t realtime_ns)
{
    uint32_t payload = le16_get(r->payload_block) ? t->info.used_blocks + le16_get(r->payload_block) : 0;
    t->events[t->event_count++] = (struct tail_event){
        .lsn = le64_of(lsn),
        .realtime_ns = le64_of(realtime_ns + le32_get(r->delta_us) * 1000ull),
        .aux = r->aux,
        .tag = r->tag,
        .payload_block = le32_of(payload),
        .payload_bytes = r->payload_bytes,
        .volume = r->volume,
        .op = r->op,
        .flags = r->flags,
    };
    t->info.events++;
}

static void add_record(struct tail *t, const struct frame_record *r, uint64_t lsn, uint64_t realtime_ns, const uint32_t *block_crcs,
                       uint32_t blocks)
{
    struct extent e = {
        .volume = le32_get(r->volume), .length = le32_get(r->length), .lba = le64_get(r->lba), .lsn = {lsn}};
    switch (r->op) {
    case OP_WRITE:
    case OP_RESYNC:
        e.flags = (uint16_t)(t->info.generation << EXTENT_GENERATION_SHIFT);
        e.kind = EXTENT_DATA;
        e.segment = t->info.number;
        e.position = (t->info.used_blocks + le16_get(r->payload_block)) * JOURNAL_BLOCK_SECTORS;
        if (extent_is_in_one_block(&e) && le16_get(r->payload_block) < blocks) {
            e.flags |= EXTENT_CHECKED;
            e.crc = block_crcs[le16_get(r->payload_block)];
        }
        t->extents[t->extent_count++] = e;
        break;
    case OP_ZERO:
    case OP_DISCARD:
        e.kind = EXTENT_ZERO;
        t->extents[t->extent_count++] = e;
        break;
    case OP_VOID:
    case OP_BASE:
        break;
    default:
        add_event(t, r, lsn, realtime_ns);
    }
}

void tail_add_frame(struct tail *t, const void *header_block, const uint32_t *block_crcs)
{
    const struct frame_header *h = header_block;
    const struct frame_record *records = (const struct frame_record *)(h + 1);
    uint32_t count = le16_get(h->record_count), blocks = le32_get(h->blocks);
    uint64_t first = le64_get(h->first_lsn), realtime = le64_get(h->realtime_ns);
    assert(tail_fits(t, count, blocks));
    if (t->frame_count == 0) {
        t->info.first = (struct lsn){first};
        t->info.first_frame = le64_get(h->number);
        t->info.first_previous_crc = le32_get(h->previous_crc);
        t->info.first_realtime_ns = realtime;
        t->info.first_boottime_ns = le64_get(h->boottime_ns);
    }
    uint64_t data_bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        add_record(t, &records[i], frame_record_lsn(header_block, i), realtime, block_crcs, blocks);
        data_bytes += records[i].op == OP_WRITE ? le32_get(records[i].payload_bytes) : 0;
    }
    uint64_t last_delta_ns = count ? le32_get(records[count - 1].delta_us) * 1000ull : 0;
    memcpy(&t->crcs[t->info.used_blocks], block_crcs, blocks * sizeof *block_crcs);
    t->frames[t->frame_count++] = (struct tail_frame){
        .first_lsn = h->first_lsn,
        .realtime_ns = h->realtime_ns,
        .boottime_ns = h->boottime_ns,
        .block = le32_of(t->info.used_blocks),
        .records = h->record_count,
        .data_kib = le16_of((uint16_t)(data_bytes / 1024)),
    };
    t->info.frames++;
    t->last_crc = le32_get(h->header_crc);
    t->info.records += count;
    t->info.used_blocks += blocks;
    t->info.last = (struct lsn){frame_last_lsn(header_block)};
    t->info.last_realtime_ns = realtime + last_delta_ns;
    t->info.last_boottime_ns = le64_get(h->boottime_ns) + last_delta_ns;
}

void tail_cut(struct tail *t, struct lsn high, uint32_t last_crc)
{
    bool cut = false;
    while (t->frame_count && le64_get(t->frames[t->frame_count - 1].first_lsn) > high.n) {
        const struct tail_frame *f = &t->frames[--t->frame_count];
        t->info.frames--;
        t->info.records -= le16_get(f->records);
        t->info.used_blocks = le32_get(f->block);
        cut = true;
    }
    if (!cut)
        return;
    const struct tail_frame *last = t->frame_count ? &t->frames[t->frame_count - 1] : NULL;
    t->info.last = (struct lsn){last ? le64_get(last->first_lsn) + le16_get(last->records) - 1 : 0};
    t->info.last_realtime_ns = last ? le64_get(last->realtime_ns) : 0;
    t->info.last_boottime_ns = last ? le64_get(last->boottime_ns) : 0;
    t->last_crc = last_crc;
    while (t->extent_count && t->extents[t->extent_count - 1].lsn.n > t->info.last.n)
        t->extent_count--;
    while (t->event_count && le64_get(t->events[t->event_count - 1].lsn) > t->info.last.n) {
        t->event_count--;
        t->info.events--;
    }
}

static int by_place(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->volume != y->volume)
        return x->volume < y->volume ? -1 : 1;
    if (x->lba != y->lba)
        return x->lba < y->lba ? -1 : 1;
    return x->lsn.n < y->lsn.n ? -1 : x->lsn.n > y->lsn.n;
}

/* Writes the sections: events and frames up to `high`, and all CRCs. */
static int write_sections(const struct tail *t, struct index_writer *w, struct lsn high, struct error *err)
{
    uint32_t events = t->event_count, frames = t->frame_count;
    while (events && le64_get(t->events[events - 1].lsn) > high.n)
        events--;
    while (frames && le64_get(t->frames[frames - 1].first_lsn) > high.n)
        frames--;
    int r = index_writer_section(w, INDEX_SECTION_EVENTS, t->events, events * sizeof *t->events, err);
    if (r == 0)
        r = index_writer_section(w, INDEX_SECTION_FRAMES, t->frames, frames * sizeof *t->frames, err);
    if (r == 0)
        r = index_writer_section(w, INDEX_SECTION_CRCS, t->crcs, t->info.used_blocks * sizeof *t->crcs, err);
    if (r == 0 && t->tags)
        r = index_writer_section(w, INDEX_SECTION_TAGS, t->tags, t->info.used_blocks * sizeof *t->tags, err);
    return r;
}

int tail_write_index(const struct tail *t, const char *path, const struct uuid *journal, enum index_kind kind,
                     struct lsn high, struct extent *scratch, uint32_t *ret_kib, struct error *err)
{
    uint32_t count = t->extent_count;
    while (count && t->extents[count - 1].lsn.n > high.n)
        count--;
    memcpy(scratch, t->extents, count * sizeof *scratch);
    qsort(scratch, count, sizeof *scratch, by_place);
    struct index_info info = {
        .journal_id = *journal,
        .kind = kind,
        .first_segment = t->info.number,
        .last_segment = t->info.number,
        .low = {t->info.first.n ? t->info.first.n - 1 : 0},
        .high = {t->info.last.n < high.n ? t->info.last.n : high.n},
    };
    struct index_writer *w = NULL;
    int r = index_writer_new(path, &info, &w, err);
    for (uint32_t i = 0; i < count && r == 0; i++)
        r = index_writer_add(w, &scratch[i], err);
    if (r == 0)
        r = write_sections(t, w, high, err);
    if (r == 0)
        r = index_writer_finish(w, err);
    if (r == 0 && ret_kib)
        *ret_kib = (count * 40u + t->info.used_blocks * (t->tags ? 20u : 4u)) / 1024u + 12u;
    index_writer_free(w);
    return r;
}
