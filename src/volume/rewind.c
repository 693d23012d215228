/* SPDX-License-Identifier: Apache-2.0 */
/* A rewind to s at LSN r is one record, not a flood of writes: the reference run rewind-<r>.idx says, for everything that
 * was written in (s, r), where its content as of s is; it is built from the indexes alone and fsynced before the REWIND
 * record commits it. Order: reference run, stale grains on disk, REWIND durable, manifest. A crash before REWIND leaves
 * nothing that counts (a stale bit too many reads what the backing holds anyway); after it, everything is there.
 *
 * An undo is a rewind to r-1. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/base_store.h"
#include "journal/payload.h"
#include "volume/group_internal.h"

#define COPY_SECTORS 2048u

/* ---- what changed ---- */

static struct group_volume_change *change_of(struct group_change *c, uint32_t volume)
{
    for (size_t i = 0; i < c->volume_count; i++)
        if (c->volumes[i].volume == volume)
            return &c->volumes[i];
    return NULL;
}

static void note_change(struct group_change *c, uint32_t volume, uint64_t lba, uint64_t length)
{
    struct group_volume_change *v = change_of(c, volume);
    uint64_t offset = lba * BLOCK_SECTOR_BYTES, bytes = length * BLOCK_SECTOR_BYTES;
    if (!v)
        return;
    v->changed_bytes += bytes;
    c->changed_bytes += bytes;
    size_t n = v->range_count;
    if (n && v->ranges[n - 1].offset_bytes + v->ranges[n - 1].length_bytes == offset) {
        v->ranges[n - 1].length_bytes += bytes;
        return;
    }
    v->extents++;
    if (n < GROUP_MAX_RANGES) {
        v->ranges[n].offset_bytes = offset;
        v->ranges[n].length_bytes = bytes;
        v->range_count++;
    }
}

static int start_change(struct group *g, struct group_change *ret, struct error *err)
{
    *ret = (struct group_change){.volume_count = g->volume_count};
    ret->volumes = calloc(g->volume_count ? g->volume_count : 1, sizeof *ret->volumes);
    if (!ret->volumes)
        return error_errno(err, -ENOMEM, "cannot list the changes");
    for (size_t i = 0; i < g->volume_count; i++) {
        ret->volumes[i].volume = g->volumes[i].id;
        memcpy(ret->volumes[i].name, g->volumes[i].name, sizeof ret->volumes[i].name);
    }
    return 0;
}

/* Calls `each` for every touched stretch between the points, ascending. */
typedef int (*stretch_visit)(void *context, const struct extent *stretch, struct error *err);
static int visit_changes(struct image *newer, struct lsn low, stretch_visit each, void *context, struct error *err)
{
    struct extent_stream *stream;
    int r = image_changes(newer, low, &stream, err);
    if (r < 0)
        return r;
    while (r == 0) {
        struct extent e;
        int more = stream->next(stream, &e, err);
        if (more <= 0) {
            r = more;
            break;
        }
        r = each(context, &e, err);
    }
    extent_stream_free(stream);
    return r;
}

static int count_stretch(void *context, const struct extent *stretch, struct error *err)
{
    (void)err;
    note_change(context, stretch->volume, stretch->lba, stretch->length);
    return 0;
}

int group_diff(struct group *g, struct lsn from, struct lsn to, struct group_change *ret, struct error *err)
{
    struct group_change change;
    struct image *newer = NULL;
    char pin[24] = "";
    if (from.n > to.n) {
        struct lsn swap = from;
        from = to;
        to = swap;
    }
    MUTEX_GUARD(guard, &g->diff_mutex);
    int r = start_change(g, &change, err);
    if (r == 0) { /* no longer: journaling could not go on meanwhile */
        MUTEX_GUARD(inner, &g->rewind_mutex);
        r = grains_open_image(g, to, pin, &newer, err);
    }
    if (r == 0)
        r = visit_changes(newer, from, count_stretch, &change, err);
    grains_close_image(g, pin, &newer);
    if (r < 0) {
        free(change.volumes);
        return r;
    }
    change.lsn = to;
    *ret = change;
    return 0;
}

/* ---- the reference run ---- */

struct builder {
    struct group *g;
    struct group_change *change;
    struct image *target;
    struct lsn lsn, base;
    struct index_writer *writer;
    struct base_store *rescue;
    char *buffer;
    struct rewind_space *space; /* not NULL: nothing is built, what it takes is counted */
};

static int emit(struct builder *b, struct extent piece, struct error *err)
{
    if (b->space)
        return rewind_space_piece(b->space, &piece, err);
    piece.lsn = b->lsn;
    piece.flags |= EXTENT_REFERENCE;
    return index_writer_add(b->writer, &piece, err);
}

/* Its bytes are not where a reference could point at: they are copied to the rewind's own store. */
static int emit_copy(struct builder *b, const struct extent *piece, struct error *err)
{
    int r = 0;
    if (b->space)
        b->space->copied_bytes += (uint64_t)piece->length * BLOCK_SECTOR_BYTES;
    for (uint32_t done = 0; !b->space && done < piece->length && r == 0; done += COPY_SECTORS) {
        uint32_t part = piece->length - done < COPY_SECTORS ? piece->length - done : COPY_SECTORS;
        r = image_read(b->target, piece->volume, piece->lba + done, part, b->buffer, err);
        if (r == 0)
            r = base_store_write(b->rescue, piece->volume, piece->lba + done, part, b->buffer, true, err);
    }
    struct extent copied = *piece;
    copied.kind = EXTENT_BASE;
    copied.flags = 0;
    return r < 0 ? r : emit(b, copied, err);
}

/* What the base holds: a reference to it where it holds something, else zeroes. */
static int emit_base(struct builder *b, const struct extent *piece, struct error *err)
{
    int r = 0;
    for (uint64_t at = piece->lba, end = piece->lba + piece->length; at < end && r == 0;) {
        bool present;
        uint64_t stretch;
        r = image_base_extent(b->target, piece->volume, at, end - at, &present, &stretch, err);
        if (r < 0)
            break;
        struct extent part = {.volume = piece->volume, .lba = at, .length = (uint32_t)stretch,
                              .kind = present ? EXTENT_BASE : EXTENT_ZERO};
        r = emit(b, part, err);
        at += stretch;
    }
    return r;
}

static int emit_piece(struct builder *b, const struct extent *piece, struct error *err)
{
    if (piece->kind == EXTENT_ZERO)
        return emit(b, *piece, err);
    bool reference = piece->flags & EXTENT_REFERENCE;
    if (piece->lsn.n <= b->base.n) /* also where nothing covers it: LSN 0 */
        return emit_base(b, piece, err);
    if (reference && (piece->kind == EXTENT_BASE ||
                      !journal_has_segment(b->g->journal, piece->segment, extent_generation(piece))))
        return emit_copy(b, piece, err);
    return emit(b, *piece, err);
}

static int build_stretch(void *context, const struct extent *stretch, struct error *err)
{
    struct builder *b = context;
    int r = 0;
    note_change(b->change, stretch->volume, stretch->lba, stretch->length);
    for (uint64_t at = stretch->lba, end = stretch->lba + stretch->length; at < end && r == 0;) {
        uint64_t room = IMAGE_REGION_SECTORS - at % IMAGE_REGION_SECTORS;
        uint32_t length = (uint32_t)(end - at < room ? end - at : room);
        struct extent *pieces;
        size_t count;
        r = image_resolve(b->target, stretch->volume, at, length, &pieces, &count, err);
        if (r < 0)
            break;
        for (size_t i = 0; i < count && r == 0; i++)
            r = emit_piece(b, &pieces[i], err);
        free(pieces);
        at += length;
    }
    return r;
}

/* The rewind's own store, which has each volume's files from the beginning, so that missing ones are known to be. */
static int make_rescue(struct builder *b, const struct manifest *m, struct error *err)
{
    char path[PATH_MAX];
    payload_rescue_directory(journal_directory(b->g->journal), b->lsn, path, sizeof path);
    int r = base_store_open(path, true, &b->rescue, err);
    for (size_t i = 0; i < m->volume_count && r == 0; i++)
        r = base_store_prepare(b->rescue, m->volumes[i].id, m->volumes[i].size_bytes, err);
    return r == 0 ? io_sync_directory(journal_directory(b->g->journal), err) : r;
}

static int build_run(struct builder *b, struct image *latest, struct lsn target, const char *path, struct error *err)
{
    struct manifest m;
    int r = journal_manifest(b->g->journal, &m, err);
    if (r < 0)
        return r;
    struct index_info info = {.journal_id = m.journal_id, .kind = INDEX_REWIND, .flat = true, .low = {b->lsn.n - 1}, .high = b->lsn};
    b->base = m.base;
    r = make_rescue(b, &m, err);
    manifest_release(&m);
    b->buffer = r == 0 ? io_alloc_pages(COPY_SECTORS * BLOCK_SECTOR_BYTES) : NULL;
    if (r == 0 && !b->buffer)
        r = error_errno(err, -ENOMEM, "cannot rewind");
    if (r == 0)
        r = index_writer_new(path, &info, &b->writer, err);
    if (r == 0)
        r = visit_changes(latest, target, build_stretch, b, err);
    if (r == 0)
        r = base_store_sync(b->rescue, err);
    if (r == 0)
        r = index_writer_finish(b->writer, err);
    index_writer_free(b->writer);
    base_store_free(b->rescue);
    io_free_pages(b->buffer, COPY_SECTORS * BLOCK_SECTOR_BYTES);
    return r;
}

/* ---- what it would take ---- */

/* As build_run, with nothing written and nobody kept waiting. */
static int count_space(struct group *g, struct lsn latest, struct lsn target, struct group_change *change, struct error *err)
{
    char target_pin[24] = "", latest_pin[24] = "";
    struct image *newer = NULL;
    struct manifest m;
    struct rewind_space space;
    struct builder b = {.g = g, .change = change, .space = &space};
    int r = journal_manifest(g->journal, &m, err);
    if (r < 0)
        return r;
    b.base = m.base;
    manifest_release(&m);
    rewind_space_init(&space, g, change);
    r = grains_open_image(g, target, target_pin, &b.target, err);
    if (r == 0)
        r = grains_open_image(g, latest, latest_pin, &newer, err);
    if (r == 0)
        r = visit_changes(newer, target, build_stretch, &b, err);
    grains_close_image(g, target_pin, &b.target);
    grains_close_image(g, latest_pin, &newer);
    rewind_space_end(&space);
    return r;
}

static int plan_rewind(struct group *g, struct lsn target, struct group_change *ret, struct error *err)
{
    struct group_change change;
    struct journal_status status;
    int r = journal_sync(g->journal, -1, NULL, err);
    journal_status(g->journal, &status);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &g->rewind_mutex);
    r = start_change(g, &change, err);
    if (r < 0)
        return r;
    change.lsn = status.latest;
    r = count_space(g, status.latest, target, &change, err);
    if (r < 0) {
        free(change.volumes);
        return r;
    }
    *ret = change;
    return 0;
}

/* ---- rewinding ---- */

static int mark_stretch(void *context, const struct extent *stretch, struct error *err)
{
    struct group *g = context;
    (void)err;
    struct volume *v = group_find_volume(g, stretch->volume);
    uint64_t last = (stretch->lba + stretch->length - 1) / GROUP_GRAIN_SECTORS;
    for (uint64_t grain = stretch->lba / GROUP_GRAIN_SECTORS; v && grain <= last && grain < v->stale.grains; grain++)
        grain_map_set(&v->stale, grain);
    return 0;
}

/* A crash before here left nothing; after the REWIND record the rewind has happened. */
static int commit(struct group *g, struct lsn target, struct lsn expected, struct error *err)
{
    struct journal_record record = {.op = OP_REWIND, .flags = RECORD_LAST, .aux = target.n};
    struct lsn lsn;
    int r = journal_append_durable(g->journal, &record, &lsn, err);
    if (r < 0)
        return r;
    if (lsn.n != expected.n)
        return error_set(err, -EPROTO, "the rewind got LSN %llu instead of %llu", (unsigned long long)lsn.n,
                         (unsigned long long)expected.n);
    return journal_rewound(g->journal, lsn, target, err);
}

struct rewind {
    struct image *target, *latest, *result;
    char target_pin[24], latest_pin[24], result_pin[24];
    char run_path[PATH_MAX], rescue_path[PATH_MAX];
    struct lsn lsn_before, target_before; /* of the one that was copied back until now */
};

/* With the gate closed and all other appends waiting. */
static int rewind_locked(struct group *g, struct rewind *w, struct lsn target, struct group_change *change, struct error *err)
{
    char name[JOURNAL_FILE_BYTES];
    struct lsn lsn = journal_next_lsn(g->journal), latest = {lsn.n - 1};
    struct builder b = {.g = g, .change = change, .lsn = lsn};
    snprintf(w->run_path, sizeof w->run_path, "%s/%s", journal_directory(g->journal), journal_rewind_file(lsn, name));
    payload_rescue_directory(journal_directory(g->journal), lsn, w->rescue_path, sizeof w->rescue_path);
    int r = grains_open_image(g, target, w->target_pin, &w->target, err);
    if (r == 0)
        r = grains_open_image(g, latest, w->latest_pin, &w->latest, err);
    b.target = w->target;
    if (r == 0)
        r = build_run(&b, w->latest, target, w->run_path, err);
    if (r == 0)
        r = visit_changes(w->latest, target, mark_stretch, g, err);
    if (r == 0) {
        g->rewind_lsn = lsn;
        g->rewind_target = target;
        stale_publish(g);
        r = stale_save(g, err);
    }
    if (r == 0)
        r = commit(g, target, lsn, err);
    if (r < 0)
        return r;
    change->lsn = lsn;
    struct error unopened = ERROR_INIT; /* it has happened all the same; the worker tries again */
    if (grains_open_live_image(g, lsn, w->result_pin, &w->result, &unopened) < 0)
        log_error(g->log, "the rewind to LSN %llu has happened, and cannot be read yet: %s", (unsigned long long)target.n, unopened.message);
    return 0;
}

/* What stale grains read from now on; the image of before is given back. */
static void use_image(struct group *g, struct image **image, char pin[24])
{
    grains_swap_image(g->stale_pin, &g->stale_image, pin, image);
}

/* The grains that were marked for a rewind that did not happen read through the image of what is there; also while an older rewind
 * is being copied back, whose image lacks what was written since. Without the reference run its record does not count, if it has come
 * to the disk. */
static void abandon(struct group *g, struct rewind *w)
{
    struct error ignored = ERROR_INIT;
    g->rewind_lsn = w->lsn_before;
    g->rewind_target = w->target_before;
    if (w->run_path[0]) {
        if (unlink(w->run_path) == 0 && io_sync_directory(journal_directory(g->journal), &ignored) < 0)
            log_warning(g->log, "%s", ignored.message);
        if (io_remove_tree(w->rescue_path, &ignored) < 0)
            log_warning(g->log, "%s", ignored.message);
    }
    if (w->latest)
        use_image(g, &w->latest, w->latest_pin);
}

int group_rewind(struct group *g, struct lsn target, bool dry_run, struct group_change *ret, struct error *err)
{
    struct group_change change;
    struct rewind w = {0};
    if (dry_run)
        return plan_rewind(g, target, ret, err);
    MUTEX_GUARD(guard, &g->rewind_mutex);
    int r = group_check_seeded(g, LSN_MAX, err);
    if (r == 0)
        r = start_change(g, &change, err);
    if (r < 0)
        return r;
    r = journal_hold_whole(g->journal, err);
    if (r < 0) {
        free(change.volumes);
        return error_context(err, "cannot rewind to LSN %llu", (unsigned long long)target.n);
    }
    pthread_rwlock_wrlock(&g->gate);
    w.lsn_before = g->rewind_lsn;
    w.target_before = g->rewind_target;
    if (g->compare_image || g->compare_due) {
        r = error_set(err, -EBUSY, "the volumes are still being compared after an unclean end: try again when `tidemark status` "
                                   "says protected");
    } else {
        journal_exclusive_begin(g->journal);
        r = journal_sync(g->journal, -1, NULL, err);
        if (r == 0)
            r = rewind_locked(g, &w, target, &change, err);
        journal_exclusive_end(g->journal);
        if (r == 0)
            use_image(g, &w.result, w.result_pin);
        else
            abandon(g, &w);
    }
    pthread_rwlock_unlock(&g->gate);
    if (r == 0) /* nobody waits for it but who has asked for the rewind */
        journal_copy_rewind(g->journal, change.lsn);
    journal_unhold(g->journal);
    grains_close_image(g, w.result_pin, &w.result); /* the one of before */
    grains_close_image(g, w.target_pin, &w.target);
    grains_close_image(g, w.latest_pin, &w.latest);
    grains_wake(g);
    if (r < 0) {
        free(change.volumes);
        return error_context(err, "cannot rewind to LSN %llu", (unsigned long long)target.n);
    }
    *ret = change;
    return 0;
}
