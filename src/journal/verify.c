/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/verify.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/base_store.h"
#include "journal/frame.h"
#include "journal/index.h"
#include "journal/manifest.h"

#define CACHE_BYTES (2u << 20)
#define BASE_STEP_SECTORS 2048u

struct verification {
    const char *directory;
    const struct verify_report *report;
    struct verify_summary *summary;
    struct manifest m;
    struct index_cache *cache;
    char *buffer;
    uint64_t total_bytes;
};

static void damaged(struct verification *v, struct verify_damage damage)
{
    v->summary->damages++;
    v->report->damage(v->report->context, &damage);
}

/* Whether the engine has dropped or thinned the segment since the manifest was read. */
static bool was_dropped(struct verification *v, uint32_t segment, uint32_t generation)
{
    struct manifest now;
    struct error ignored = ERROR_INIT;
    if (manifest_load(v->directory, &now, &ignored) < 0)
        return false;
    bool dropped = segment < now.next_segment;
    for (size_t i = 0; i < now.segment_count; i++)
        dropped &= now.segments[i].number != segment || now.segments[i].generation != generation;
    manifest_release(&now);
    return dropped;
}

static void check_payloads(struct verification *v, const char *name, uint32_t block)
{
    const struct frame_header *h = (const struct frame_header *)v->buffer;
    uint32_t crcs[FRAME_MAX_BLOCKS];
    v->summary->frames++;
    v->summary->records += le16_get(h->record_count);
    if (frame_payload_crcs(v->buffer, crcs) == 0)
        return;
    for (uint32_t i = 0; i < le16_get(h->record_count); i++) {
        const struct frame_record *r = &frame_records(v->buffer)[i];
        uint32_t first = le16_get(r->payload_block);
        uint32_t blocks = (le32_get(r->payload_bytes) + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES;
        uint32_t crc = 0;
        for (uint32_t b = 0; b < blocks; b++)
            crcs[first + b] = crc32c(0, v->buffer + (size_t)(first + b) * JOURNAL_BLOCK_BYTES, JOURNAL_BLOCK_BYTES);
        crc = blocks == 1 ? crcs[first] : crc32c(0, &crcs[first], blocks * sizeof *crcs);
        if (blocks == 0 || crc == le32_get(r->payload_crc))
            continue;
        char what[96];
        struct lsn lsn = {frame_record_lsn(h, i)};
        snprintf(what, sizeof what, "payload at block %u does not match its checksum", block + first);
        damaged(v, (struct verify_damage){name, what, lsn, lsn, le32_get(r->volume), le64_get(r->lba) * 512, le32_get(r->length) * 512ull});
    }
}

static void check_segment(struct verification *v, const struct segment_info *s)
{
    char name[JOURNAL_FILE_BYTES], path[PATH_MAX];
    struct error err = ERROR_INIT;
    snprintf(path, sizeof path, "%s/%s", v->directory, journal_segment_file_of(s->number, s->generation, name));
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (!was_dropped(v, s->number, s->generation))
            damaged(v, (struct verify_damage){name, "is missing", s->first, s->last, 0, 0, 0});
        return;
    }
    v->summary->segments++;
    if (io_pread_full(fd, v->buffer, JOURNAL_BLOCK_BYTES, 0) < 0 ||
        segment_check_header(&v->m.journal_id, s->number, v->buffer, &err) < 0)
        damaged(v, (struct verify_damage){name, "has no valid header", s->first, s->last, 0, 0, 0});
    struct frame_expectation expected = {.journal_id = v->m.journal_id, .epoch = s->epoch, .number = s->first_frame,
                                         .previous_crc = s->first_previous_crc, .after = {s->first.n - 1}};
    for (uint32_t block = 1; block < s->used_blocks;) {
        const char *why = "cannot be read";
        uint64_t offset = (uint64_t)block * JOURNAL_BLOCK_BYTES;
        expected.room_blocks = s->used_blocks - block;
        if (io_pread_full(fd, v->buffer, JOURNAL_BLOCK_BYTES, offset) < 0 || !frame_is_expected(v->buffer, &expected, &why)) {
            char what[128];
            if (was_dropped(v, s->number, s->generation))
                return;
            snprintf(what, sizeof what, "frame header at block %u: %s", block, why);
            damaged(v, (struct verify_damage){name, what, {expected.after.n + 1}, s->last, 0, 0, 0});
            return;
        }
        const struct frame_header *h = (const struct frame_header *)v->buffer;
        uint32_t blocks = le32_get(h->blocks);
        if (io_pread_full(fd, v->buffer, (size_t)blocks * JOURNAL_BLOCK_BYTES, offset) < 0) {
            damaged(v, (struct verify_damage){name, "cannot be read", {le64_get(h->first_lsn)}, s->last, 0, 0, 0});
            return;
        }
        check_payloads(v, name, block);
        expected.number++;
        expected.previous_crc = le32_get(h->header_crc);
        expected.after.n = frame_last_lsn(h);
        block += blocks;
    }
    v->summary->bytes += (uint64_t)s->used_blocks * JOURNAL_BLOCK_BYTES;
    v->report->progress(v->report->context, v->summary->bytes, v->total_bytes);
}

struct index_damage {
    struct verification *v;
    const char *name;
    struct lsn low, high;
};
static void report_index(void *context, const char *what)
{
    struct index_damage *d = context;
    damaged(d->v, (struct verify_damage){d->name, what, d->low, d->high, 0, 0, 0});
}

/* Whether a run is in the manifest no more. */
static bool run_is_gone(struct verification *v, const struct run_info *run)
{
    struct manifest now;
    struct error ignored = ERROR_INIT;
    if (manifest_load(v->directory, &now, &ignored) < 0)
        return false;
    bool gone = true;
    for (size_t i = 0; i < now.run_count; i++)
        gone &= now.runs[i].level != run->level || now.runs[i].first_segment != run->first_segment;
    manifest_release(&now);
    return gone;
}

/* `segment` or `run`: whose index it is, which may go meanwhile. */
static void check_index(struct verification *v, const char *name, struct lsn low, struct lsn high,
                        const struct segment_info *segment, const struct run_info *run)
{
    char path[PATH_MAX];
    struct index *index = NULL;
    struct error err = ERROR_INIT;
    struct index_damage d = {v, name, low, high};
    uint64_t before = v->summary->damages;
    snprintf(path, sizeof path, "%s/%s", v->directory, name);
    int r = index_open(path, v->cache, &index, &err);
    if (r == 0)
        r = index_verify(index, report_index, &d, &err);
    index_free(index);
    v->summary->indexes++;
    if (r < 0 && v->summary->damages == before && !(segment && was_dropped(v, segment->number, segment->generation)) &&
        !(run && run_is_gone(v, run)))
        damaged(v, (struct verify_damage){name, err.message, low, high, 0, 0, 0});
}

/* The base, or a rewind's rescue store: the directory `name`. */
static void check_store(struct verification *v, const char *name, struct lsn lsn)
{
    char path[PATH_MAX];
    struct base_store *base = NULL;
    struct error err = ERROR_INIT;
    snprintf(path, sizeof path, "%s/%s", v->directory, name);
    if (base_store_open(path, false, &base, &err) < 0)
        return;
    for (size_t i = 0; i < v->m.volume_count; i++) {
        uint64_t sectors = v->m.volumes[i].size_bytes / 512;
        for (uint64_t at = 0; at < sectors;) {
            bool present = false;
            uint64_t stretch = 0;
            int r = base_store_extent(base, v->m.volumes[i].id, at, sectors - at, &present, &stretch, &err);
            if (r == 0 && present) {
                stretch = stretch < BASE_STEP_SECTORS ? stretch : BASE_STEP_SECTORS;
                r = base_store_read(base, v->m.volumes[i].id, at, (uint32_t)stretch, v->buffer, &err);
                v->summary->bytes += stretch * 512;
            }
            if (r < 0)
                damaged(v, (struct verify_damage){name, err.message, lsn, lsn, v->m.volumes[i].id, at * 512, stretch * 512});
            if (r < 0 && !present)
                break;
            at += stretch;
        }
    }
    base_store_free(base);
}

static void check_all(struct verification *v)
{
    char name[JOURNAL_FILE_BYTES];
    for (size_t i = 0; i < v->m.segment_count; i++)
        v->total_bytes += (uint64_t)v->m.segments[i].used_blocks * JOURNAL_BLOCK_BYTES;
    for (size_t i = 0; i < v->m.segment_count; i++) {
        const struct segment_info *s = &v->m.segments[i];
        check_segment(v, s);
        check_index(v, journal_l0_file_of(s->number, s->generation, name), s->first, s->last, s, NULL);
    }
    for (size_t i = 0; i < v->m.run_count; i++) {
        const struct run_info *run = &v->m.runs[i];
        check_index(v, journal_run_file(run->level, run->first_segment, name), run->low, run->high, NULL, run);
    }
    for (size_t i = 0; i < v->m.rewind_count; i++)
        check_index(v, journal_rewind_file(v->m.rewinds[i].lsn, name), v->m.rewinds[i].lsn, v->m.rewinds[i].lsn, NULL, NULL);
    check_store(v, "base", v->m.base);
    for (size_t i = 0; i < v->m.rewind_count; i++) {
        snprintf(name, sizeof name, "rescue-%llu", (unsigned long long)v->m.rewinds[i].lsn.n);
        check_store(v, name, v->m.rewinds[i].lsn);
    }
}

int journal_verify(const char *directory, const struct verify_report *report, struct verify_summary *ret, struct error *err)
{
    struct verification v = {.directory = directory, .report = report, .summary = ret};
    *ret = (struct verify_summary){0};
    int r = manifest_load(directory, &v.m, err);
    if (r < 0)
        return r;
    v.buffer = io_alloc_pages((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    r = v.buffer ? index_cache_new(CACHE_BYTES, &v.cache, err) : error_errno(err, -ENOMEM, "cannot verify");
    if (r == 0)
        check_all(&v);
    index_cache_free(v.cache);
    io_free_pages(v.buffer, (size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    manifest_release(&v.m);
    if (r == 0 && ret->damages)
        r = error_set(err, -EBADMSG, "the journal is damaged in %llu places", (unsigned long long)ret->damages);
    return r;
}
