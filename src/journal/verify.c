/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/verify.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/base_store.h"
#include "journal/drop_wait.h"
#include "journal/frame.h"
#include "journal/index.h"
#include "journal/losses.h"
#include "journal/manifest.h"
#include "journal/pin.h"
#include "journal/saved.h"
#include "journal/segment_reader.h"

#define CACHE_BYTES (2u << 20)
#define BASE_STEP_SECTORS 2048u
#define PENDING_LIMIT_BYTES (1u << 30)
#define RUN_ATTEMPTS 8u /* at a file that the manifest names, and that is not there */

struct verification {
    const char *directory;
    const struct verify_report *report;
    struct verify_summary *summary;
    struct manifest m;
    struct index_cache *cache;
    char *buffer;
    uint64_t total_bytes;
    struct drop_patience patience;
};

/* When the records around `lsn` were written: the beginning (or end) of the segment that holds it, or the nearest time known
 * on that side. */
static uint64_t time_of(const struct manifest *m, struct lsn lsn, bool end)
{
    uint64_t before = m->base_realtime_ns;
    if (lsn.n == 0)
        return 0;
    for (size_t i = 0; i < m->segment_count; i++) {
        const struct segment_info *s = &m->segments[i];
        if (lsn.n <= s->last.n && lsn.n >= s->first.n)
            return end ? s->last_realtime_ns : s->first_realtime_ns;
        if (lsn.n < s->first.n)
            return end ? s->first_realtime_ns : before;
        before = s->last_realtime_ns;
    }
    return before;
}

static void damaged(struct verification *v, struct verify_damage damage)
{
    for (size_t i = 0; damage.volume && i < v->m.volume_count; i++)
        if (v->m.volumes[i].id == damage.volume)
            damage.volume_name = v->m.volumes[i].name;
    if (!damage.low_realtime_ns)
        damage.low_realtime_ns = time_of(&v->m, damage.low, false);
    if (!damage.high_realtime_ns)
        damage.high_realtime_ns = time_of(&v->m, damage.high, true);
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
        uint64_t time = le64_get(h->realtime_ns) + le32_get(r->delta_us) * 1000ull;
        damaged(v, (struct verify_damage){.file = name, .what = what, .low = lsn, .high = lsn, .volume = le32_get(r->volume),
                                          .offset_bytes = le64_get(r->lba) * 512, .length_bytes = le32_get(r->length) * 512ull,
                                          .low_realtime_ns = time, .high_realtime_ns = time});
    }
}

/* Of a compressed segment header and table are there twice, and were checked when it was opened. */
static void check_header(struct verification *v, const struct segment_info *s, const char *name, const struct segment_reader *file)
{
    struct error err = ERROR_INIT;
    const void *block = file->cold ? cold_header_block(file->cold) : v->buffer;
    if ((!file->cold && io_pread_full(file->fd, v->buffer, JOURNAL_BLOCK_BYTES, 0) < 0) ||
        segment_check_header(&v->m.journal_id, s->number, block, &err) < 0)
        damaged(v, (struct verify_damage){.file = name, .what = "has no valid header", .low = s->first, .high = s->last});
    else if (file->cold && cold_is_worn(file->cold))
        damaged(v, (struct verify_damage){.file = name, .what = "a copy of its header or table is damaged; the other one is used"});
}

static void check_segment(struct verification *v, const struct segment_info *s)
{
    char name[JOURNAL_FILE_BYTES], path[PATH_MAX];
    struct error err = ERROR_INIT;
    segment_reader_find(v->directory, s->number, s->generation, path, sizeof path);
    snprintf(name, sizeof name, "%.63s", strrchr(path, '/') + 1);
    struct segment_reader file __attribute__((cleanup(segment_reader_close))) = {.fd = -1};
    int r = segment_reader_open(v->directory, s->number, s->generation, false, &file, &err);
    if (r < 0) {
        const char *what = r == -ENOENT ? "is missing" : r == -EBADMSG ? err.message : "cannot be decrypted";
        if (!was_dropped(v, s->number, s->generation))
            damaged(v, (struct verify_damage){.file = name, .what = what, .low = s->first, .high = s->last});
        return;
    }
    v->summary->segments++;
    check_header(v, s, name, &file);
    struct frame_expectation expected = {.journal_id = v->m.journal_id, .epoch = s->epoch, .number = s->first_frame,
                                         .previous_crc = s->first_previous_crc, .after = {s->first.n - 1}};
    for (uint32_t block = 1; block < s->used_blocks;) {
        const char *why = "cannot be read";
        seal_tag digest;
        expected.room_blocks = s->used_blocks - block;
        if (segment_reader_header(&file, block, v->buffer, digest) < 0 || !frame_is_expected(v->buffer, &expected, &why)) {
            char what[128];
            if (was_dropped(v, s->number, s->generation))
                return;
            snprintf(what, sizeof what, "frame header at block %u: %s", block, why);
            damaged(v, (struct verify_damage){.file = name, .what = what, .low = {expected.after.n + 1}, .high = s->last});
            return;
        }
        const struct frame_header *h = (const struct frame_header *)v->buffer;
        uint32_t blocks = le32_get(h->blocks);
        if (segment_reader_payload(&file, block, v->buffer, blocks, digest, NULL) < 0) {
            damaged(v, (struct verify_damage){.file = name, .what = "cannot be read", .low = {le64_get(h->first_lsn)}, .high = s->last});
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
    damaged(d->v, (struct verify_damage){.file = d->name, .what = what, .low = d->low, .high = d->high});
}

/* What may have taken the file away meanwhile, in good order: a drop, thinning or merge of the segment, run or rewind; the
 * end of the pin. */
struct owner {
    const struct segment_info *segment;
    const struct run_info *run;
    struct lsn rewind;
    const char *pin;
};

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

static bool is_gone(struct verification *v, const struct owner *o)
{
    char path[PATH_MAX];
    if (o->pin) {
        snprintf(path, sizeof path, "%s/pins/%s", v->directory, o->pin);
        return access(path, F_OK) < 0;
    }
    if (o->rewind.n)
        return manifest_rewind_was_dropped(v->directory, o->rewind);
    return o->run ? run_is_gone(v, o->run) : was_dropped(v, o->segment->number, o->segment->generation);
}

/* A run that thinning takes away is made anew under its name: the file of before is gone, and the manifest, read after that, names another one. */
static int open_index(struct verification *v, const char *path, const struct owner *owner, struct index **ret, struct error *err)
{
    for (unsigned attempt = 0;; attempt++) {
        int r = index_open(path, v->cache, ret, err);
        if (r != -ENOENT || !owner->run || attempt == RUN_ATTEMPTS || run_is_gone(v, owner->run))
            return r;
        *err = ERROR_INIT;
    }
}

static void check_index(struct verification *v, const char *name, struct lsn low, struct lsn high, struct owner owner)
{
    char path[PATH_MAX];
    struct index *index = NULL;
    struct error err = ERROR_INIT;
    struct index_damage d = {v, name, low, high};
    uint64_t before = v->summary->damages;
    snprintf(path, sizeof path, "%s/%s", v->directory, name);
    int r = open_index(v, path, &owner, &index, &err);
    if (r == 0)
        r = index_verify(index, report_index, &d, &err);
    index_free(index);
    v->summary->indexes++;
    if (r < 0 && v->summary->damages == before && !is_gone(v, &owner))
        damaged(v, (struct verify_damage){.file = name, .what = r == -ENOENT ? "is missing" : err.message, .low = low, .high = high});
}

static int read_store(struct verification *v, struct base_store *store, uint32_t volume, uint64_t lba, uint32_t length, struct error *err)
{
    struct drop_look look = {0};
    int r;
    do
        r = base_store_read(store, volume, lba, length, v->buffer, err);
    while (r == -EBADMSG && drop_wait_again(&v->patience, &look));
    return r;
}

/* The base, or (with `rewind`) a rewind's rescue store: the directory `name`. */
static void check_store(struct verification *v, const char *name, struct lsn lsn, bool rewind)
{
    char path[PATH_MAX];
    struct base_store *base = NULL;
    struct error err = ERROR_INIT;
    snprintf(path, sizeof path, "%s/%s", v->directory, name);
    if (base_store_open(path, false, &base, &err) < 0)
        return;
    if (!rewind)
        base_store_expect_holes(base);
    for (size_t i = 0; i < v->m.volume_count; i++) {
        uint64_t sectors = v->m.volumes[i].size_bytes / 512;
        if (rewind && v->m.volumes[i].created.n > lsn.n) /* it had no such volume */
            continue;
        for (uint64_t at = 0; at < sectors;) {
            bool present = false;
            uint64_t stretch = 0;
            int r = base_store_extent(base, v->m.volumes[i].id, at, sectors - at, &present, &stretch, &err);
            if (r == 0 && present) {
                stretch = stretch < BASE_STEP_SECTORS ? stretch : BASE_STEP_SECTORS;
                r = read_store(v, base, v->m.volumes[i].id, at, (uint32_t)stretch, &err);
                v->summary->bytes += stretch * 512;
            }
            if (r < 0 && rewind && manifest_rewind_was_dropped(v->directory, lsn))
                break;
            if (r < 0)
                damaged(v, (struct verify_damage){.file = name, .what = err.message, .low = lsn, .high = lsn,
                                                  .volume = v->m.volumes[i].id, .offset_bytes = at * 512,
                                                  .length_bytes = (stretch ? stretch : sectors - at) * 512});
            if (r < 0 && !present)
                break;
            at += stretch;
        }
    }
    base_store_free(base);
}

/* objects.json of such a directory. */
static void check_objects(struct verification *v, const char *store, struct lsn lsn, bool rewind)
{
    char name[JOURNAL_FILE_BYTES], path[PATH_MAX];
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *objects = NULL;
    snprintf(name, sizeof name, "%.40s/objects.json", store);
    snprintf(path, sizeof path, "%s/%s", v->directory, name);
    int r = saved_read(path, &objects, &err);
    if (r == 0 && json_array_size(objects) && json_is_true(json_object_get(json_array_get(objects, json_array_size(objects) - 1), "unknown")))
        r = error_set(&err, -EBADMSG, "which objects there were is not known: it was damaged when history was dropped");
    if (r < 0 && !(rewind && manifest_rewind_was_dropped(v->directory, lsn)))
        damaged(v, (struct verify_damage){.file = name, .what = err.message, .low = lsn, .high = lsn});
}

static void check_pin(struct verification *v, const char *pin_name)
{
    char name[JOURNAL_FILE_BYTES];
    struct pin pin = {0};
    struct error err = ERROR_INIT;
    snprintf(name, sizeof name, "pins/%.50s", pin_name);
    int r = pin_load(v->directory, pin_name, &pin, &err);
    if (r == -ENOENT)
        return; /* unpinned meanwhile */
    v->summary->pins++;
    if (r < 0)
        damaged(v, (struct verify_damage){.file = name, .what = err.message});
    for (size_t i = 0; i < pin.source_count; i++) /* the others are the journal's */
        if (strncmp(pin.sources[i].file, "pins/", 5) == 0)
            check_index(v, pin.sources[i].file, pin.lsn, pin.lsn, (struct owner){.pin = pin_name});
    pin_release(&pin);
}

static void check_pins(struct verification *v)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/pins", v->directory);
    _cleanup_closedir_ DIR *d = opendir(path);
    for (struct dirent *entry; d && (entry = readdir(d));)
        if (!strchr(entry->d_name, '.')) /* locks and indexes go with their pin */
            check_pin(v, entry->d_name);
}

static const char *pending_problem(char *data, size_t length)
{
    struct pending_header *h = (struct pending_header *)data;
    if (length < sizeof *h || le64_get(h->magic) != PENDING_MAGIC)
        return "is damaged (its header)";
    uint32_t crc = le32_get(h->crc);
    h->crc = le32_of(0);
    if (crc32c(0, data, length) != crc)
        return "is damaged (wrong checksum)";
    size_t at = sizeof *h;
    for (uint32_t i = 0; i < le32_get(h->volumes); i++) {
        struct pending_volume volume;
        if (length - at < sizeof volume)
            return "is damaged (wrong length)";
        memcpy(&volume, data + at, sizeof volume);
        at += sizeof volume;
        uint64_t words = le64_get(volume.grains) / 64 + (le64_get(volume.grains) % 64 != 0);
        if (words > (length - at) / 8)
            return "is damaged (wrong length)";
        at += words * 8;
    }
    return at == length ? NULL : "is damaged (wrong length)";
}

static int check_pending_file(struct verification *v, const char *name)
{
    char path[PATH_MAX];
    struct error err = ERROR_INIT;
    _cleanup_free_ char *data = NULL;
    size_t length = 0;
    snprintf(path, sizeof path, "%s/%s", v->directory, name);
    int r = sealed_read_file(path, PENDING_LIMIT_BYTES, &data, &length, &err);
    if (r == -ENOENT)
        return r;
    const char *problem = r < 0 ? err.message : pending_problem(data, length);
    struct lsn lsn = v->m.rewind_count ? v->m.rewinds[v->m.rewind_count - 1].lsn : LSN_NONE;
    if (problem)
        damaged(v, (struct verify_damage){.file = name, .what = problem, .low = lsn, .high = lsn});
    return 0;
}

/* Which blocks a rewind has not copied back yet. Without the files there are none. The copy comes after the other and goes
 * before it. */
static void check_pending(struct verification *v)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s/rewind.pending.copy", v->directory);
    bool is_there = check_pending_file(v, "rewind.pending.copy") == 0;
    if (check_pending_file(v, "rewind.pending") == -ENOENT && is_there && access(copy, F_OK) == 0)
        damaged(v, (struct verify_damage){.file = "rewind.pending", .what = "is missing: its copy says which blocks a rewind has not copied back"});
}

static void report_loss(void *context, const struct loss *loss)
{
    struct verification *v = context;
    char name[JOURNAL_FILE_BYTES], what[320], time[CLOCK_TEXT_BYTES];
    if (loss->high.n <= v->m.base.n)
        return;
    snprintf(what, sizeof what, "history was lost here; found when the journal was opened at %s (%.160s)",
             clock_format_rfc3339(loss->found_realtime_ns, time), loss->what);
    damaged(v, (struct verify_damage){.file = journal_segment_file(loss->segment, name), .what = what,
                                      .low = {loss->low.n + 1}, .high = loss->high});
}

/* One that is missing is made at the next start: it may just come. */
static void check_rewind_copy(struct verification *v, struct lsn rewind)
{
    char name[JOURNAL_FILE_BYTES], path[PATH_MAX];
    struct index *index = NULL;
    struct error err = ERROR_INIT;
    snprintf(path, sizeof path, "%s/%s", v->directory, journal_rewind_copy_file(rewind, name));
    int r = index_open(path, v->cache, &index, &err);
    if (r == 0)
        r = index_verify(index, NULL, NULL, &err);
    index_free(index);
    if (r < 0 && r != -ENOENT && !manifest_rewind_was_dropped(v->directory, rewind))
        damaged(v, (struct verify_damage){.file = name, .what = "is damaged: it is one of two copies, and is made anew when the journal is opened"});
}

static void check_rewinds(struct verification *v)
{
    char name[JOURNAL_FILE_BYTES];
    for (size_t i = 0; i < v->m.rewind_count; i++) {
        const struct rewind_info *rewind = &v->m.rewinds[i];
        check_index(v, journal_rewind_file(rewind->lsn, name), rewind->lsn, rewind->lsn, (struct owner){.rewind = rewind->lsn});
        check_rewind_copy(v, rewind->lsn);
        snprintf(name, sizeof name, "rescue-%llu", (unsigned long long)rewind->lsn.n);
        check_store(v, name, rewind->lsn, true);
        if (rewind->target.n < v->m.base.n)
            check_objects(v, name, rewind->lsn, true);
    }
}

static void check_all(struct verification *v)
{
    char name[JOURNAL_FILE_BYTES];
    struct error err = ERROR_INIT;
    for (size_t i = 0; i < v->m.segment_count; i++)
        v->total_bytes += (uint64_t)v->m.segments[i].used_blocks * JOURNAL_BLOCK_BYTES;
    for (size_t i = 0; i < v->m.segment_count; i++) {
        const struct segment_info *s = &v->m.segments[i];
        check_segment(v, s);
        check_index(v, journal_l0_file_of(s->number, s->generation, name), s->first, s->last, (struct owner){.segment = s});
    }
    for (size_t i = 0; i < v->m.run_count; i++) {
        const struct run_info *run = &v->m.runs[i];
        check_index(v, journal_run_file(run->level, run->first_segment, name), run->low, run->high, (struct owner){.run = run});
    }
    check_rewinds(v);
    check_store(v, "base", v->m.base, false);
    if (v->m.base.n)
        check_objects(v, "base", v->m.base, false);
    check_pins(v);
    check_pending(v);
    char text[MANIFEST_DAMAGE_BYTES];
    bool no_copy;
    const char *manifest = manifest_check_files(v->directory, &no_copy, text);
    if (manifest)
        damaged(v, (struct verify_damage){.file = manifest, .what = text});
    const char *key = seal_check_files(v->directory, text);
    if (key)
        damaged(v, (struct verify_damage){.file = "key", .what = key});
    if (losses_visit(v->directory, report_loss, v, &err) < 0)
        damaged(v, (struct verify_damage){.file = LOSSES_FILE, .what = err.message});
}

int journal_verify(const char *directory, const struct verify_report *report, struct verify_summary *ret, struct error *err)
{
    struct verification v = {.directory = directory, .report = report, .summary = ret, .patience = {directory, DROP_WAIT_NS}};
    *ret = (struct verify_summary){0};
    int r = manifest_load(directory, &v.m, err);
    if (r < 0)
        return r;
    v.buffer = io_alloc_pages((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    r = v.buffer ? index_cache_new(CACHE_BYTES, &v.cache, err) : error_errno(err, -ENOMEM, "cannot verify");
    if (r == 0) {
        index_cache_set_journal(v.cache, &v.m.journal_id);
        check_all(&v);
    }
    index_cache_free(v.cache);
    io_free_pages(v.buffer, (size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    manifest_release(&v.m);
    if (r == 0 && ret->damages)
        r = error_set(err, -EBADMSG, "the journal is damaged in %llu places", (unsigned long long)ret->damages);
    return r;
}
