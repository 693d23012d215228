/* SPDX-License-Identifier: Apache-2.0 */
/* The janitor: merges sealed segments' indexes into runs (merge.c), thins old history (thin.c), compresses it (compress.c), and drops the
 * oldest when it is older than wanted or the quota is reached.
 *
 * Dropping history up to LSN b moves the base to b, in steps that can each be repeated after a crash (J5):
 *  1. manifest: base_target = b; points below are refused from now on, pins below b forbid it;
 *  2. what rewinds above b still need of the dropped segments, or of the base, is copied to their rescue stores;
 *  3. the newest version of everything in the dropped segments is written to the base, synced;
 *  4. manifest: base = b, without the segments, runs and rewinds that are covered; then their files go. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "journal/age.h"
#include "journal/drop_pace.h"
#include "journal/history.h"
#include "journal/index.h"
#include "journal/journal_internal.h"
#include "journal/payload.h"
#include "journal/thin_internal.h"

#define DROP_BATCH_EXTENTS 65536u /* 2.5 MiB */
#define READER_SEGMENTS 16u
#define LOSE_SECTORS (1u << 15) /* between two of them others may change the base */

uint64_t maintain_journal_bytes(const struct journal *j)
{
    const struct manifest *m = &j->manifest; /* the segment that is being sealed is in it shortly before it is let go */
    bool sealed = j->sealing && m->segment_count && m->segments[m->segment_count - 1].number == j->tails[!j->active].info.number;
    uint64_t full = journal_segment_bytes(j);
    uint64_t bytes = full * (1u + (j->sealing && !sealed) + (j->ready_fd >= 0));
    for (size_t i = 0; i < m->segment_count; i++)
        bytes += segment_info_bytes(&m->segments[i], full);
    for (size_t i = 0; i < m->run_count; i++)
        bytes += m->runs[i].index_kib * 1024ull;
    return bytes;
}

/* ---- dropping history ---- */

struct drop {
    struct journal *j;
    struct manifest m;
    struct lsn base; /* the new one */
    uint32_t first_segment, last_segment; /* that go */
    bool thinning; /* the base stays where it is */
    bool repair;        /* what was interrupted is done again: a block of the base or of a rescue store may be half changed */
    bool repair_rescue; /* of a rescue store alone */
    struct lsn lost;    /* up to it records cannot be known: of the new base that is right alone which is newer */
    size_t at_volume;   /* while it is made: how far that was told of the base (then all before is newer, or lost) */
    uint64_t at_lba;
    struct base_store *store;
    struct payload_reader *reader;
    char *buffer; /* 1 MiB */
    struct extent *batch; /* that go to the base together */
    size_t batch_count;
    struct payload_window window; /* of the segment that the batch is at */
    struct drop_pace pace;
};

/* History moves on over what is damaged: it stays unreadable, as it was, instead of blocking all that comes after it. */
static int lose(struct drop *d, struct base_store *store, uint32_t volume, uint64_t lba, uint32_t length, struct error *err)
{
    log_error(d->j->log, "%s: these blocks are lost", err->message);
    return base_store_lose(store, volume, lba, length, err);
}

/* Makes the files of the volumes that were there at `lsn` where they are missing or cut; what they held is lost. What was added to a volume
 * later they did not hold. */
static int repair_store(struct drop *d, struct base_store *store, struct lsn lsn, bool rewind, struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < d->m.volume_count && r == 0; i++) {
        const struct volume_info *v = &d->m.volumes[i];
        if (rewind && v->created.n > lsn.n)
            continue;
        r = base_store_check(store, v->id, err);
        if (r == -EBADMSG) {
            log_error(d->j->log, "%s: what it held of volume %s is lost", err->message, v->name);
            MUTEX_GUARD(guard, &d->j->base_mutex);
            r = base_store_renew(store, v->id, v->size_bytes, manifest_size_at(&d->m, v, lsn), err);
            base_store_free(take_ptr(d->j->seed_store)); /* it may have had the old files */
        }
    }
    return r;
}

static int lose_range(struct drop *d, struct base_store *store, uint32_t volume, uint64_t from, uint64_t to, struct error *err)
{
    int r = 0;
    for (uint64_t at = from; at < to && r == 0; at += LOSE_SECTORS) {
        MUTEX_GUARD(guard, &d->j->base_mutex);
        r = base_store_lose(store, volume, at, (uint32_t)(to - at < LOSE_SECTORS ? to - at : LOSE_SECTORS), err);
    }
    return r;
}

/* Where records are lost: what lies before `lba` of `volume`, and was not said to be newer, may be older than it should be. Volumes are in the
 * order of their numbers. */
static int lose_before(struct drop *d, uint32_t volume, uint64_t lba, struct error *err)
{
    int r = 0;
    for (; d->lost.n && r == 0 && d->at_volume < d->m.volume_count; d->at_volume++, d->at_lba = 0) {
        const struct volume_info *v = &d->m.volumes[d->at_volume];
        if (v->id > volume)
            return 0;
        uint64_t end = manifest_size_at(&d->m, v, d->lost) / 512;
        if (v->id == volume && lba < end)
            end = lba;
        if (v->created.n <= d->lost.n && d->at_lba < end)
            r = lose_range(d, d->store, v->id, d->at_lba, end, err);
        if (v->id == volume) {
            d->at_lba = lba;
            return r;
        }
    }
    return r;
}

/* base_store_extent, where damage further on does not matter: of what is damaged *ret_stretch is the rest of one block. */
static int find_stretch(struct base_store *store, uint32_t volume, uint64_t lba, uint64_t length, bool *ret_present, uint64_t *ret_stretch,
                        struct error *err)
{
    int r = base_store_extent(store, volume, lba, length, ret_present, ret_stretch, err);
    if (!journal_is_damage(r))
        return r;
    uint64_t rest = JOURNAL_BLOCK_SECTORS - lba % JOURNAL_BLOCK_SECTORS;
    *ret_stretch = rest < length ? rest : length;
    return base_store_extent(store, volume, lba, *ret_stretch, ret_present, ret_stretch, err);
}

/* Copies the stretches of a reference extent that its rescue store lacks and the drop takes away. */
static int rescue_extent(struct drop *d, struct base_store *rescue, const struct extent *e, struct error *err)
{
    bool gone = e->kind == EXTENT_DATA && e->segment >= d->first_segment && e->segment <= d->last_segment;
    bool needed = gone || (e->kind == EXTENT_BASE && !d->thinning);
    int r = 0;
    for (uint64_t at = e->lba, end = e->lba + e->length; needed && at < end && r == 0;) {
        bool present;
        uint64_t stretch;
        r = find_stretch(rescue, e->volume, at, end - at, &present, &stretch, err);
        if (journal_is_damage(r))
            r = lose(d, rescue, e->volume, at, (uint32_t)stretch, err);
        else if (r == 0 && !present) {
            struct extent part = extent_clip(*e, at, stretch < 2048 ? stretch : 2048);
            stretch = part.length;
            r = payload_read(d->reader, &part, d->buffer, err);
            if (journal_is_damage(r))
                r = lose(d, rescue, e->volume, at, part.length, err);
            else if (r == 0)
                r = base_store_write(rescue, e->volume, at, part.length, d->buffer, d->repair || d->repair_rescue, err);
        }
        at += stretch;
    }
    return r;
}

/* A rescue that has not come to its end may have left a block half changed, until it is done again, whenever that is: a file says so. */
static bool rescue_is_unfinished(const struct journal *j)
{
    char path[JOURNAL_PATH_BYTES];
    journal_path(j, JOURNAL_RESCUING_FILE, path);
    return access(path, F_OK) == 0;
}

/* What a rewind refers to is not known: of what its rescue store lacks, nothing may be looked up in what changes now. */
static int lose_rescue(struct drop *d, struct base_store *rescue, struct lsn rewind, struct error *err)
{
    int r = 0;
    log_error(d->j->log, "%s: of what the rewind of LSN %llu referred to, that is lost which was not copied yet", err->message, (unsigned long long)rewind.n);
    for (size_t i = 0; i < d->m.volume_count && r == 0; i++) {
        const struct volume_info *v = &d->m.volumes[i];
        for (uint64_t at = 0, stretch, end = manifest_size_at(&d->m, v, rewind) / 512; v->created.n <= rewind.n && at < end && r == 0; at += stretch) {
            bool present;
            r = find_stretch(rescue, v->id, at, end - at, &present, &stretch, err);
            if (journal_is_damage(r))
                r = 0, present = false;
            if (r == 0 && !present)
                r = lose_range(d, rescue, v->id, at, at + stretch, err);
        }
    }
    return r;
}

static int rescue_extents(struct drop *d, struct base_store *rescue, const struct rewind_info *rewind, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct index *index = NULL;
    struct extent_stream *stream = NULL;
    journal_path(d->j, journal_rewind_file(rewind->lsn, name), path);
    int r = index_open(path, d->j->cache, &index, err);
    if (r == 0)
        r = index_stream(index, LSN_NONE, LSN_MAX, &stream, err);
    while (r == 0) {
        struct extent e;
        int more = stream->next(stream, &e, err);
        if (more <= 0) {
            r = more;
            break;
        }
        r = rescue_extent(d, rescue, &e, err);
    }
    if (stream)
        extent_stream_free(stream);
    index_free(index);
    return r;
}

static int rescue_rewind(struct drop *d, const struct rewind_info *rewind, struct error *err)
{
    char path[JOURNAL_PATH_BYTES], directory[JOURNAL_PATH_BYTES - 16];
    struct base_store *rescue = NULL;
    payload_rescue_directory(d->j->directory, rewind->lsn, directory, sizeof directory);
    bool whole = true;
    int r = base_store_open(directory, true, &rescue, err);
    if (r == 0)
        r = repair_store(d, rescue, rewind->lsn, true, err);
    if (r == 0)
        r = mend_rewind(d->j, rewind->lsn, &whole, err);
    if (r == 0 && (whole || d->thinning)) /* history that is thinned can be left as it is */
        r = rescue_extents(d, rescue, rewind, err);
    else if (r == 0)
        r = lose_rescue(d, rescue, rewind->lsn, err);
    if (r == 0)
        r = base_store_sync(rescue, err);
    snprintf(path, sizeof path, "%s/objects.json", directory);
    if (r == 0 && !d->thinning && rewind->target.n < d->base.n && access(path, F_OK) < 0) /* else an earlier drop saved it, and it is lost */
        r = rewind->target.n >= d->m.base.n ? history_save_objects(d->j, rewind->target, path, err) : history_save_unknown(d->j, path, err);
    base_store_free(rescue);
    return r;
}

/* At most 1 MiB of data. */
static int apply_part(struct drop *d, const struct extent *e, struct error *err)
{
    int r = payload_read_along(d->reader, &d->window, e, d->buffer, err);
    MUTEX_GUARD(guard, &d->j->base_mutex); /* journal_seed writes to the same files */
    if (journal_is_damage(r))
        return lose(d, d->store, e->volume, e->lba, e->length, err);
    return r < 0 ? r : base_store_write(d->store, e->volume, e->lba, e->length, d->buffer, d->repair, err);
}

static int apply_extent(struct drop *d, const struct extent *e, struct error *err)
{
    int r = 0;
    if (e->lsn.n <= d->m.base.n || e->lsn.n <= d->lost.n)
        return 0; /* there already, or perhaps older than something that is lost */
    if (e->kind == EXTENT_ZERO) {
        MUTEX_GUARD(guard, &d->j->base_mutex);
        return base_store_clear(d->store, e->volume, e->lba, e->length, d->repair, err);
    }
    /* References of a rewind to the base are as long as what they refer to. */
    for (uint64_t at = e->lba, end = e->lba + e->length; at < end && r == 0; at += EXTENT_DATA_MAX_SECTORS) {
        struct extent part = extent_clip(*e, at, end - at < EXTENT_DATA_MAX_SECTORS ? end - at : EXTENT_DATA_MAX_SECTORS);
        r = apply_part(d, &part, err);
    }
    return r;
}

static int by_position(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->segment != y->segment)
        return x->segment < y->segment ? -1 : 1;
    return x->position < y->position ? -1 : x->position > y->position;
}

/* In the order of the files, so that these are read in long stretches, and each chunk of a compressed segment once. They do not overlap. */
static int apply_batch(struct drop *d, struct error *err)
{
    int r = 0;
    qsort(d->batch, d->batch_count, sizeof *d->batch, by_position);
    for (size_t i = 0; i < d->batch_count && r == 0; i++) {
        r = apply_extent(d, &d->batch[i], err);
        if (r < 0 || !drop_pace_add(&d->pace, (d->batch[i].length + JOURNAL_BLOCK_SECTORS - 1) / JOURNAL_BLOCK_SECTORS))
            continue;
        r = base_store_push(d->store, err);
        drop_rest(&d->pace, d->j);
    }
    d->batch_count = 0;
    return r;
}

static int apply_next(struct drop *d, const struct extent *e, struct error *err)
{
    int r = 0;
    if (d->lost.n && e->lsn.n > d->lost.n) {
        r = lose_before(d, e->volume, e->lba, err);
        d->at_lba = e->lba + e->length;
    }
    if (e->kind == EXTENT_DATA)
        d->batch[d->batch_count++] = *e;
    else if (r == 0)
        r = apply_extent(d, e, err);
    return r < 0 || d->batch_count < DROP_BATCH_EXTENTS ? r : apply_batch(d, err);
}

static int apply_segments(struct drop *d, struct error *err)
{
    struct index_inputs in = {0};
    struct extent_stream *sweep = NULL;
    int r = inputs_add_segments(d->j, &in, &d->m, 0, d->last_segment, d->lost, err);
    if (r == 0)
        r = extent_sweep(in.streams, in.count, &sweep, err);
    while (r == 0) {
        struct extent e;
        int more = sweep->next(sweep, &e, err);
        if (more <= 0) {
            r = more;
            break;
        }
        r = apply_next(d, &e, err);
    }
    if (r == 0)
        r = apply_batch(d, err);
    if (r == 0)
        r = lose_before(d, UINT32_MAX, 0, err);
    inputs_release(&in, !sweep);
    if (sweep)
        extent_stream_free(sweep);
    return r;
}

/* The indexes of what goes are whole after it, or it is known what is lost. */
static int mend_dropped(struct drop *d, struct error *err)
{
    char path[JOURNAL_PATH_BYTES];
    struct lsn lost;
    int r = 0;
    for (size_t i = 0; i < d->m.segment_count && d->m.segments[i].number <= d->last_segment && r == 0; i++) {
        const struct segment_info *s = &d->m.segments[i];
        r = mend_segment(d->j, s, &lost, err);
        mend_left_path(d->j, s, path);
        if (r == 0 && lost.n && access(path, F_OK) == 0)
            r = payload_reader_index(d->reader, s->number, s->generation, path, err);
        if (r == 0 && lost.n > d->lost.n)
            d->lost = lost;
    }
    for (size_t i = 0; i < d->m.rewind_count && d->m.rewinds[i].lsn.n <= d->base.n && r == 0; i++) {
        bool whole;
        lost = d->m.rewinds[i].lsn;
        r = mend_rewind(d->j, lost, &whole, err);
        if (r < 0 || whole)
            continue;
        mend_note_loss(d->j, 0, (struct lsn){lost.n - 1}, lost, err->message);
        if (lost.n > d->lost.n)
            d->lost = lost;
    }
    return r;
}

static void remove_left(const struct drop *d)
{
    char path[JOURNAL_PATH_BYTES];
    for (size_t i = 0; d->lost.n && i < d->m.segment_count; i++) {
        mend_left_path(d->j, &d->m.segments[i], path);
        unlink(path);
    }
}

/* Takes what the new base covers out of the manifest. In place: id, epoch and boot are read without the lock. */
static void forget(struct manifest *m, struct lsn base, uint32_t last_segment)
{
    size_t k = 0;
    for (size_t i = 0; i < m->segment_count; i++)
        if (m->segments[i].number > last_segment)
            m->segments[k++] = m->segments[i];
    m->segment_count = k;
    k = 0;
    for (size_t i = 0; i < m->run_count; i++)
        if (m->runs[i].last_segment > last_segment)
            m->runs[k++] = m->runs[i];
    m->run_count = k;
    k = 0;
    for (size_t i = 0; i < m->rewind_count; i++)
        if (m->rewinds[i].lsn.n > base.n)
            m->rewinds[k++] = m->rewinds[i];
    m->rewind_count = k;
    k = 0;
    for (size_t i = 0; i < m->refused_count; i++)
        if (m->refused[i].high.n == 0 || m->refused[i].high.n > base.n)
            m->refused[k++] = m->refused[i];
    m->refused_count = k;
    k = 0;
    for (size_t i = 0; i < m->resize_count; i++)
        if (m->resizes[i].lsn.n > base.n)
            m->resizes[k++] = m->resizes[i];
    m->resize_count = k;
    m->base = base;
}

static int forget_dropped(void *context, struct manifest *m, struct error *err)
{
    const struct drop *d = context;
    (void)err;
    forget(m, d->base, d->last_segment);
    return 0;
}

static void remove_file(struct journal *j, const char *name)
{
    char path[JOURNAL_PATH_BYTES];
    journal_path(j, name, path);
    unlink(path);
}

void maintain_remove_segment(struct journal *j, const struct segment_info *s, bool may_recycle)
{
    char name[JOURNAL_FILE_BYTES];
    remove_file(j, journal_l0_file_of(s->number, s->generation, name));
    if (s->cold_kib)
        remove_file(j, journal_cold_file_of(s->number, s->generation, name));
    else if (s->generation)
        remove_file(j, journal_segment_file_of(s->number, s->generation, name));
    else
        segment_recycle(j, s->number, may_recycle);
}

void maintain_remove_run(struct journal *j, const struct run_info *run)
{
    char name[JOURNAL_FILE_BYTES];
    remove_file(j, journal_run_file(run->level, run->first_segment, name));
}

static void remove_dropped(struct drop *d)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct error ignored = ERROR_INIT;
    bool pinned = pin_floor(d->j).n != UINT64_MAX;
    for (size_t i = 0; i < d->m.segment_count; i++) {
        if (d->m.segments[i].number > d->last_segment)
            continue;
        maintain_remove_segment(d->j, &d->m.segments[i], !pinned);
    }
    for (size_t i = 0; i < d->m.run_count; i++)
        if (d->m.runs[i].last_segment <= d->last_segment)
            maintain_remove_run(d->j, &d->m.runs[i]);
    for (size_t i = 0; i < d->m.rewind_count; i++) {
        if (d->m.rewinds[i].lsn.n > d->base.n)
            continue;
        remove_file(d->j, journal_rewind_file(d->m.rewinds[i].lsn, name));
        remove_file(d->j, journal_rewind_copy_file(d->m.rewinds[i].lsn, name));
        payload_rescue_directory(d->j->directory, d->m.rewinds[i].lsn, path, sizeof path);
        if (io_remove_tree(path, &ignored) < 0)
            log_warning(d->j->log, "%s", ignored.message);
    }
}

/* Steps 2 to 4 for d->base. */
static int drop_steps(struct drop *d, struct error *err)
{
    char path[JOURNAL_PATH_BYTES];
    struct journal *j = d->j;
    int r = repair_store(d, d->store, d->m.base, false, err);
    if (r == 0)
        r = mend_dropped(d, err);
    for (size_t i = 0; i < d->m.rewind_count && r == 0; i++)
        if (d->m.rewinds[i].lsn.n > d->base.n)
            r = rescue_rewind(d, &d->m.rewinds[i], err);
    if (r == 0)
        r = apply_segments(d, err);
    if (r == 0)
        r = base_store_sync(d->store, err);
    journal_path(j, "base/objects.json", path);
    if (r == 0)
        r = history_save_objects(j, d->base, path, err);
    if (r == 0) /* while it cannot be saved the drop is not done: it is repeated, and nothing is left behind */
        r = sealer_change(j, forget_dropped, d, err);
    if (r < 0)
        return r;
    j->mend_tries = 0;
    uint64_t used = base_store_used_bytes(d->store);
    pthread_mutex_lock(&j->mutex);
    j->base_bytes = used;
    pthread_mutex_unlock(&j->mutex);
    pthread_rwlock_wrlock(&j->files_lock);
    remove_dropped(d);
    pthread_rwlock_unlock(&j->files_lock);
    MUTEX_GUARD(guard, &j->mutex);
    pace_update(j);
    return 0;
}

static int drop_to(struct journal *j, struct lsn base, uint32_t last_segment, bool repair, struct error *err)
{
    char path[JOURNAL_PATH_BYTES];
    struct drop d = {.j = j, .base = base, .last_segment = last_segment, .repair = repair, .repair_rescue = rescue_is_unfinished(j)};
    journal_path(j, "base", path);
    int r = journal_fault_at(j, "drop");
    r = r < 0 ? error_errno(err, r, "cannot drop old history") : journal_manifest(j, &d.m, err);
    if (r < 0)
        return r;
    drop_pace_begin(&d.pace, j);
    d.buffer = io_alloc_pages(JOURNAL_PAYLOAD_MAX_BYTES);
    d.window.data = io_alloc_pages(PAYLOAD_WINDOW_BYTES);
    d.batch = malloc(DROP_BATCH_EXTENTS * sizeof *d.batch);
    r = d.buffer && d.window.data && d.batch ? 0 : error_errno(err, -ENOMEM, "cannot drop old history");
    if (r == 0)
        r = base_store_open(path, true, &d.store, err);
    if (r == 0)
        r = payload_reader_new(j->directory, j->cache, READER_SEGMENTS, &d.reader, err);
    if (r == 0) {
        payload_reader_in_drop(d.reader);
        r = drop_steps(&d, err);
        remove_left(&d);
    }
    payload_reader_free(d.reader);
    base_store_free(d.store);
    io_free_pages(d.buffer, JOURNAL_PAYLOAD_MAX_BYTES);
    io_free_pages(d.window.data, PAYLOAD_WINDOW_BYTES);
    free(d.batch);
    manifest_release(&d.m);
    return r < 0 ? error_context(err, "cannot drop the history before LSN %llu", (unsigned long long)base.n) : 0;
}

/* Sets the base's target to the end of the last of at most `batch` oldest segments with last LSN <= limit and floor, or
 * more when that lies between two points kept.
 * false: nothing can be dropped. */
static bool aim(struct journal *j, struct lsn limit, size_t batch, struct lsn *ret_base, uint32_t *ret_segment)
{
    struct lsn floor = pin_floor(j);
    MUTEX_GUARD(guard, &j->mutex);
    for (size_t i = 0; i < j->pin_count; i++) /* one may have come meanwhile */
        if (j->pins[i].lsn.n < floor.n)
            floor = j->pins[i].lsn;
    struct lsn base = j->manifest.base;
    uint64_t realtime_ns = 0;
    bool found = false;
    for (size_t i = 0; i < j->manifest.segment_count && (i < batch || !found); i++) {
        const struct segment_info *s = &j->manifest.segments[i];
        if (s->last.n > limit.n || s->last.n > floor.n)
            break;
        if (s->open_end)
            continue;
        found = true;
        base = s->last;
        *ret_segment = s->number;
        realtime_ns = s->last_realtime_ns;
    }
    if (base.n <= j->manifest.base.n)
        return false;
    j->manifest.base_realtime_ns = realtime_ns;
    if (base.n > j->manifest.base_target.n)
        j->manifest.base_target = base;
    *ret_base = base;
    return true;
}

static int drop_some(struct journal *j, struct lsn limit, size_t batch, bool *ret_dropped, struct error *err)
{
    struct lsn base;
    uint32_t last_segment = 0;
    *ret_dropped = aim(j, limit, batch, &base, &last_segment);
    if (!*ret_dropped)
        return 0;
    int r = sealer_save(j, err);
    return r < 0 ? r : drop_to(j, base, last_segment, false, err);
}

/* A drop that a crash interrupted is repeated first. */
static int finish_drop(struct journal *j, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    struct lsn target = j->manifest.base_target;
    bool open = target.n > j->manifest.base.n;
    uint32_t last_segment = 0;
    for (size_t i = 0; i < j->manifest.segment_count; i++)
        if (j->manifest.segments[i].last.n <= target.n)
            last_segment = j->manifest.segments[i].number;
    pthread_mutex_unlock(&j->mutex);
    return open ? drop_to(j, target, last_segment, true, err) : 0;
}

static int rescue_all(struct drop *d, struct error *err)
{
    struct journal *j = d->j;
    d->buffer = io_alloc_pages(JOURNAL_PAYLOAD_MAX_BYTES);
    int r = d->buffer ? 0 : error_errno(err, -ENOMEM, "cannot thin old history");
    if (r == 0)
        r = payload_reader_new(j->directory, j->cache, READER_SEGMENTS, &d->reader, err);
    if (r == 0)
        payload_reader_in_drop(d->reader);
    struct lsn first = d->m.segments[manifest_find_segment(&d->m, d->first_segment)].first;
    for (size_t i = 0; i < d->m.rewind_count && r == 0; i++) {
        if (d->m.rewinds[i].lsn.n < first.n) /* it refers to what is older */
            continue;
        int fault = journal_fault_at(j, "rescue");
        r = fault < 0 ? error_errno(err, fault, "cannot keep what rewinds need") : rescue_rewind(d, &d->m.rewinds[i], err);
    }
    payload_reader_free(d->reader);
    io_free_pages(d->buffer, JOURNAL_PAYLOAD_MAX_BYTES);
    return r;
}

int maintain_rescue(struct journal *j, uint32_t first_segment, uint32_t last_segment, struct error *err)
{
    char path[JOURNAL_PATH_BYTES];
    struct drop d = {.j = j, .first_segment = first_segment, .last_segment = last_segment, .thinning = true};
    journal_path(j, JOURNAL_RESCUING_FILE, path);
    int r = journal_manifest(j, &d.m, err);
    if (r < 0)
        return r;
    d.repair_rescue = rescue_is_unfinished(j);
    if (d.m.rewind_count && !d.repair_rescue)
        r = journal_mark(j, JOURNAL_RESCUING_FILE, err);
    if (r == 0 && d.m.rewind_count)
        r = rescue_all(&d, err);
    if (r == 0 && unlink(path) < 0 && errno != ENOENT)
        log_warning(j->log, "cannot remove %s: %m", path);
    manifest_release(&d.m);
    return r;
}

/* ---- the janitor ---- */

/* Drops what is older than wanted. */
static int age_step(struct journal *j, bool *ret_done, struct error *err)
{
    struct lsn limit = LSN_NONE;
    struct age_clock now;
    pthread_mutex_lock(&j->mutex);
    age_clock_read(&j->manifest, j->clock, &now);
    uint64_t wanted_ns = j->options.history_ns;
    for (size_t i = 0; wanted_ns && i < j->manifest.segment_count; i++) {
        const struct segment_info *s = &j->manifest.segments[i];
        if (age_of(&now, s) <= wanted_ns)
            break;
        limit = s->last;
    }
    pthread_mutex_unlock(&j->mutex);
    *ret_done = false;
    return limit.n ? drop_some(j, limit, DROP_MOST_SEGMENTS, ret_done, err) : 0;
}

static int quota_step(struct journal *j, bool *ret_done, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    uint64_t bytes = maintain_journal_bytes(j), quota = j->options.quota_bytes, full = journal_segment_bytes(j);
    size_t count = j->manifest.segment_count, batch = j->disk_full ? 1 : drop_batch(count);
    bool over = (quota && bytes > quota) || j->disk_full, near = over || (quota && bytes + drop_early_bytes(batch, full) > quota);
    j->quota_blocked &= near;
    pthread_mutex_unlock(&j->mutex);
    *ret_done = false;
    if (!near || count <= 1)
        return 0;
    int r;
    do
        r = drop_some(j, LSN_MAX, batch, ret_done, err);
    while (io_is_no_room(r) && reserve_give(j));
    if (!over && !*ret_done)
        return r;
    pthread_mutex_lock(&j->mutex);
    if (r == 0 && *ret_done && j->disk_full) { /* whoever found no room says whether that was enough: no more is dropped than has to be */
        j->disk_full = false;
        pthread_cond_signal(&j->work);
    }
    if (r == 0 && j->quota_blocked == *ret_done) {
        j->quota_blocked = !*ret_done;
        if (j->quota_blocked)
            log_warning(j->log, "the journal is over its quota, but an open view, a clone that is still being copied, or a rewind that waits for its workload, needs the oldest history");
    }
    bool revoke = quota && j->quota_blocked && maintain_journal_bytes(j) > quota + pace_reserve(quota, full) / 2;
    pthread_mutex_unlock(&j->mutex);
    if (revoke)
        pin_revoke_oldest(j);
    return r;
}

int maintain_quota(struct journal *j, struct error *err)
{
    bool done;
    int r = quota_step(j, &done, err);
    pthread_mutex_lock(&j->mutex);
    j->drop_failed = r < 0;
    pthread_mutex_unlock(&j->mutex);
    return r;
}

/* Neither waits for the other until it has nothing to do: compressing what comes in takes a turn after each. */
static int tidy_step(struct journal *j, bool *ret_done, struct error *err)
{
    struct manifest m;
    bool compressed = false;
    int r = thin_step(j, ret_done, err);
    if (r == 0 && *ret_done) /* there are others to be merged now */
        j->merge_after = LSN_NONE;
    if (r == 0 && !*ret_done) {
        r = journal_manifest(j, &m, err);
        if (r < 0)
            return r;
        r = merge_step(j, &m, ret_done, err);
        manifest_release(&m);
    }
    if (r == 0)
        r = compress_step(j, &compressed, err);
    *ret_done |= compressed;
    return r;
}

/* One unit of work; *ret_done false when there is none. */
static int maintain_step(struct journal *j, bool *ret_done, struct error *err)
{
    MUTEX_GUARD(guard, &j->maintain_mutex);
    *ret_done = false;
    int r = sealer_catch_up(j, err);
    if (r == 0)
        r = finish_drop(j, err);
    if (r == 0)
        r = quota_step(j, ret_done, err);
    if (r == 0 && !*ret_done)
        r = age_step(j, ret_done, err);
    pthread_mutex_lock(&j->mutex);
    j->drop_failed = r < 0;
    pthread_mutex_unlock(&j->mutex);
    if (r == 0 && !*ret_done)
        r = tidy_step(j, ret_done, err);
    return r;
}

int journal_maintain(struct journal *j, struct error *err)
{
    bool more = true;
    int r = 0;
    while (more && r == 0)
        r = maintain_step(j, &more, err);
    return r;
}

int journal_drop(struct journal *j, struct lsn target, struct error *err)
{
    bool dropped;
    MUTEX_GUARD(guard, &j->maintain_mutex);
    int r = sealer_catch_up(j, err);
    if (r == 0)
        r = finish_drop(j, err);
    return r < 0 ? r : drop_some(j, target, SIZE_MAX, &dropped, err);
}

static void begin_hold(struct journal *j)
{
    atomic_fetch_add(&j->hold_wanted, 1); /* thinning gives up for it, and begins again later */
    pthread_mutex_lock(&j->maintain_mutex);
}
static void hold(struct journal *j)
{
    pthread_mutex_lock(&j->mutex);
    j->held = true;
    pthread_mutex_unlock(&j->mutex);
    atomic_fetch_sub(&j->hold_wanted, 1);
}
void journal_hold(struct journal *j)
{
    begin_hold(j);
    hold(j);
}
int journal_hold_whole(struct journal *j, struct error *err)
{
    begin_hold(j);
    int r = sealer_catch_up(j, err);
    if (r == 0 && finish_drop(j, err) < 0)
        r = error_context(err, "a drop of old history was interrupted, and has to end first");
    hold(j);
    if (r < 0)
        journal_unhold(j);
    return r;
}
void journal_unhold(struct journal *j)
{
    pthread_mutex_lock(&j->mutex);
    j->held = false;
    pthread_mutex_unlock(&j->mutex);
    pthread_mutex_unlock(&j->maintain_mutex);
}

bool journal_has_segment(struct journal *j, uint32_t number, uint32_t generation)
{
    MUTEX_GUARD(guard, &j->mutex);
    const struct manifest *m = &j->manifest;
    size_t i = manifest_find_segment(m, number);
    if (i < m->segment_count && m->segments[i].number == number)
        return m->segments[i].generation == generation;
    return number >= m->next_segment; /* not sealed yet */
}

static void *janitor_main(void *context)
{
    struct journal *j = context;
    struct error err = ERROR_INIT;
    const uint64_t calm_ns = j->options.light ? JOURNAL_LIGHT_WAKE_MS * NS_PER_MS : 5 * NS_PER_SECOND;
    thread_background();
    pthread_mutex_lock(&j->mutex);
    while (!j->stop) {
        bool more = false, room = j->opened && !j->disk_full && !j->suspended;
        pthread_mutex_unlock(&j->mutex);
        if (room)
            reserve_keep(j);
        int r = maintain_step(j, &more, &err);
        if (r < 0)
            log_warning(j->log, "%s; will try again", err.message);
        pthread_mutex_lock(&j->mutex);
        if (more && r == 0)
            continue;
        if (!j->stop) /* a view that was told to end may have, which nobody says */
            thread_cond_wait_ns(&j->janitor_work, &j->mutex,
                                pin_is_ending(j) ? 100 * NS_PER_MS
                                : r < 0          ? NS_PER_SECOND
                                                 : calm_ns);
    }
    pthread_mutex_unlock(&j->mutex);
    return NULL;
}

int janitor_start(struct journal *j, struct error *err)
{
    int r = thread_start(&j->janitor, "journal-janitor", janitor_main, j, err);
    j->janitor_runs = r == 0;
    return r;
}

void janitor_stop(struct journal *j)
{
    if (!j->janitor_runs)
        return;
    pthread_mutex_lock(&j->mutex);
    j->stop = true;
    pthread_cond_broadcast(&j->janitor_work);
    pthread_mutex_unlock(&j->mutex);
    pthread_join(j->janitor, NULL);
    j->janitor_runs = false;
}
