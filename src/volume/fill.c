/* SPDX-License-Identifier: Apache-2.0 */
/* A volume that is used before its backing is whole: what it begins with is another journal's volume at a pinned point (the source), read
 * from there until it is copied. A fill stands between the volume and its backing's file, as the backing: with it the backing holds
 * everything from the beginning, so that history, seeding and comparisons need not know.
 *
 *   F1  A grain whose bit is set is read from the source; a write to a part of it copies it first. It is cleared once the file has it.
 *   F2  On disk a bit is cleared once the grain is durable in the file, and before a flush that covers a write to it is answered: so the map
 *       is saved with each flush after which it would be behind, and whoever flushes a backing does so by volume_flush_backing.
 *   F3  What is read from the source counts only while its pin is there: a pin goes before what it kept does.
 *
 * The map in shared memory is exact and survives a kill, that on disk a loss of power, as in seed.c. A thread copies (that of seed.c, before
 * it seeds). Lock order: gate, range lock, save_mutex, mutex. Writes come with the range lock of the whole grains. */
#include "volume/fill.h"

#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "base/uuid.h"
#include "volume/fill_format.h"
#include "volume/group_internal.h"

#define SAVE_EVERY_GRAINS 1024u

static struct fill *fill_of(struct block *b)
{
    return (struct fill *)b;
}

/* ---- the map ---- */

static uint64_t words_of(uint64_t grains)
{
    return (grains + 63) / 64;
}

static int write_map(const char *path, struct fill_header h, const uint64_t *words, uint64_t count, struct error *err)
{
    size_t length = sizeof h + count * 8;
    _cleanup_free_ char *data = malloc(length);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot write %s", path);
    h.magic = le64_of(FILL_MAGIC);
    h.version = le32_of(FILL_VERSION);
    h.crc = le32_of(0);
    memcpy(data, &h, sizeof h);
    for (uint64_t w = 0; w < count; w++) {
        struct le64 word = le64_of(words[w]);
        memcpy(data + sizeof h + w * 8, &word, 8);
    }
    h.crc = le32_of(crc32c(0, data, length));
    memcpy(data, &h, sizeof h);
    return io_replace_file(path, data, length, 0600, err);
}

int fill_create(const char *backing, uint32_t source_volume, uint64_t size_bytes, const uint64_t *words, struct error *err)
{
    char path[PATH_MAX];
    struct uuid id;
    struct block *file;
    uint64_t grains = (size_bytes + GROUP_GRAIN_BYTES - 1) / GROUP_GRAIN_BYTES, total = 0;
    if (snprintf(path, sizeof path, "%s" FILL_SUFFIX, backing) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", backing);
    for (uint64_t w = 0; w < words_of(grains); w++)
        total += (uint64_t)__builtin_popcountll(words[w]);
    int r = uuid_random(&id, err);
    struct fill_header h = {.flags = le32_of(FILL_EXACT), .source_volume = le32_of(source_volume), .size_bytes = le64_of(size_bytes),
                            .total_grains = le64_of(total)};
    memcpy(h.id, id.bytes, sizeof h.id);
    if (r == 0 && total)
        r = write_map(path, h, words, words_of(grains), err);
    if (r == 0)
        r = block_file_open(backing, size_bytes, false, &file, err);
    if (r < 0)
        return r;
    r = file->size_bytes == size_bytes ? block_flush(file, err)
                                       : error_set(err, -EEXIST, "%s is there already, and has another size", backing);
    block_free(file);
    return r;
}

/* With save_mutex, or alone. What is clear in `words` is durable in the file. */
static int save_words(struct fill *f, bool exact, const uint64_t *words, struct error *err)
{
    struct fill_header h = {.flags = le32_of(exact ? FILL_EXACT : 0), .source_volume = le32_of(f->source_volume),
                            .size_bytes = le64_of(f->size_bytes), .total_grains = le64_of(f->total_grains)};
    memcpy(h.id, f->id, sizeof h.id);
    return write_map(f->path, h, words, words_of(f->unfilled.grains), err);
}

/* `always`: also when it is not behind. */
static int save(struct fill *f, bool exact, bool always, struct error *err)
{
    uint64_t count = words_of(f->unfilled.grains);
    MUTEX_GUARD(guard, &f->save_mutex);
    if (!atomic_load(&f->wanted))
        return 0;
    _cleanup_free_ uint64_t *words = malloc((count + 1) * sizeof *words);
    if (!words)
        return error_errno(err, -ENOMEM, "cannot write %s", f->path);
    pthread_mutex_lock(&f->mutex);
    uint64_t changes = f->changes;
    bool needed = always || changes != f->saved_changes;
    for (uint64_t w = 0; needed && w < count; w++)
        words[w] = atomic_load(&f->unfilled.words[w]);
    pthread_mutex_unlock(&f->mutex);
    if (!needed)
        return 0;
    int r = volume_flush_file(f->volume, err); /* after the bits were read */
    if (r == 0)
        r = save_words(f, exact, words, err);
    if (r == 0) {
        MUTEX_GUARD(inner, &f->mutex);
        f->saved_changes = changes;
    }
    return r;
}

int fill_save_behind(struct volume *v, struct error *err)
{
    return v->fill ? save(v->fill, false, false, err) : 0;
}

static bool is_set(const struct fill *f, uint64_t grain)
{
    return grain < f->unfilled.grains && grain_map_test(&f->unfilled, grain);
}

/* Together with the count: who sees the bit cleared and flushes then finds the map behind. */
static void clear(struct fill *f, uint64_t grain)
{
    if (!is_set(f, grain))
        return;
    MUTEX_GUARD(guard, &f->mutex);
    grain_map_clear(&f->unfilled, grain);
    f->changes++;
}

static uint64_t grain_bytes(const struct fill *f, uint64_t grain)
{
    uint64_t left = f->size_bytes - grain * GROUP_GRAIN_BYTES;
    return left < GROUP_GRAIN_BYTES ? left : GROUP_GRAIN_BYTES;
}

static bool is_filled(const struct fill *f)
{
    return atomic_load_explicit(&f->unfilled.set_count, memory_order_acquire) == 0;
}

/* ---- the source ---- */

static int open_source(struct group *g, const struct volume *v, struct error *err)
{
    struct fill_source *s = &g->source;
    if (!s->journal[0])
        return error_set(err, -EINVAL,
                         "volume %s is not whole: the rest of it is in the history of where it was copied from, which the configuration does not name",
                         v->name);
    int r = image_open(s->journal, s->pin, &s->image, err);
    if (r == 0)
        r = image_check_files(s->journal, s->pin, NULL, 0, err);
    if (r == 0) {
        image_populate(s->image);
        return 0;
    }
    image_free(s->image);
    s->image = NULL;
    return error_context(err, "volume %s is not whole, and the rest of it cannot be read from the history of where it was copied from", v->name);
}

/* F3. -EAGAIN: the source is not needed any more. */
static int read_source(struct fill *f, uint64_t offset_bytes, uint64_t length_bytes, void *data, struct error *err)
{
    struct fill_source *s = &f->volume->group->source;
    char pin[PATH_MAX + 64];
    pthread_rwlock_rdlock(&s->lock);
    int r = s->image ? image_read(s->image, f->source_volume, offset_bytes / BLOCK_SECTOR_BYTES,
                                  (uint32_t)(length_bytes / BLOCK_SECTOR_BYTES), data, err)
                     : -EAGAIN;
    pthread_rwlock_unlock(&s->lock);
    if (r == -EAGAIN)
        return r;
    snprintf(pin, sizeof pin, "%s/pins/%s", s->journal, s->pin);
    if (r == 0 && access(pin, F_OK) < 0)
        r = error_set(err, -EIO, "%s is gone: its history may be too", pin);
    if (r < 0) {
        err->code = -EIO;
        error_context(err, "volume %s: what it began with cannot be read from where it was copied from", f->volume->name);
    }
    return r < 0 ? -EIO : 0;
}

/* ---- one grain ---- */

/* F1: under its range lock. */
static int copy_grain(struct fill *f, uint64_t grain, struct error *err)
{
    if (!is_set(f, grain))
        return 0;
    uint64_t bytes = grain_bytes(f, grain), offset = grain * GROUP_GRAIN_BYTES;
    char *data = io_alloc_pages(GROUP_GRAIN_BYTES);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot copy");
    int r = read_source(f, offset, bytes, data, err);
    if (r == 0) /* an earlier try may have left something there */
        r = io_is_zero(data, bytes) ? block_discard(f->file, bytes, offset, 0, err) : block_pwrite(f->file, data, bytes, offset, 0, err);
    io_free_pages(data, GROUP_GRAIN_BYTES);
    if (r == 0)
        clear(f, grain);
    return r;
}

/* ---- as a block device ---- */

/* How far the grains from `grain` on are all set, or all clear. */
static uint64_t run_end(const struct fill *f, uint64_t grain, uint64_t end, bool set)
{
    while (grain < end && is_set(f, grain) == set)
        grain++;
    return grain;
}

static int fill_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes, struct error *err)
{
    struct fill *f = fill_of(b);
    char *to = data;
    if (is_filled(f))
        return block_pread(f->file, data, length_bytes, offset_bytes, err);
    uint64_t end = offset_bytes + length_bytes, end_grain = (end + GROUP_GRAIN_BYTES - 1) / GROUP_GRAIN_BYTES;
    for (uint64_t at = offset_bytes; at < end;) {
        uint64_t grain = at / GROUP_GRAIN_BYTES;
        bool set = is_set(f, grain);
        uint64_t until = run_end(f, grain, end_grain, set) * GROUP_GRAIN_BYTES;
        if (until <= at) /* it was copied just now */
            continue;
        size_t part = (size_t)((until < end ? until : end) - at);
        int r = set ? read_source(f, at, part, to, err) : block_pread(f->file, to, part, at, err);
        if (r == -EAGAIN && is_set(f, grain))
            r = error_set(err, -EIO, "volume %s: its source is closed", f->volume->name);
        if (r == -EAGAIN)
            continue;
        if (r < 0)
            return r;
        to += part;
        at += part;
    }
    return 0;
}

enum change_kind_of_fill { FILL_WRITE, FILL_DISCARD, FILL_ZERO };

static int change_file(struct fill *f, enum change_kind_of_fill kind, const void *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags,
                       struct error *err)
{
    switch (kind) {
    case FILL_WRITE:
        return block_pwrite(f->file, data, length_bytes, offset_bytes, flags, err);
    case FILL_DISCARD:
        return block_discard(f->file, length_bytes, offset_bytes, flags, err);
    default:
        return block_zero(f->file, length_bytes, offset_bytes, flags, err);
    }
}

/* F1 */
static int change(struct fill *f, enum change_kind_of_fill kind, const void *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags,
                  struct error *err)
{
    if (is_filled(f) || length_bytes == 0)
        return change_file(f, kind, data, length_bytes, offset_bytes, flags, err);
    uint64_t end = offset_bytes + length_bytes, first = offset_bytes / GROUP_GRAIN_BYTES, last = (end - 1) / GROUP_GRAIN_BYTES;
    bool whole_first = offset_bytes == first * GROUP_GRAIN_BYTES, whole_last = last >= f->unfilled.grains || end >= last * GROUP_GRAIN_BYTES + grain_bytes(f, last);
    int r = !whole_first || (first == last && !whole_last) ? copy_grain(f, first, err) : 0;
    if (r == 0 && last != first && !whole_last)
        r = copy_grain(f, last, err);
    if (r == 0)
        r = change_file(f, kind, data, length_bytes, offset_bytes, flags, err);
    for (uint64_t grain = first; grain <= last && r == 0; grain++) /* parts of the first and last are clear already */
        clear(f, grain);
    return r;
}

static int fill_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err)
{
    return change(fill_of(b), FILL_WRITE, data, length_bytes, offset_bytes, flags, err);
}

static int fill_discard(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err)
{
    return change(fill_of(b), FILL_DISCARD, NULL, length_bytes, offset_bytes, flags, err);
}

static int fill_zero(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err)
{
    return change(fill_of(b), FILL_ZERO, NULL, length_bytes, offset_bytes, flags, err);
}

static int fill_flush(struct block *b, struct error *err)
{
    return block_flush(fill_of(b)->file, err);
}

static int fill_extents(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, struct block_extent *extents, size_t capacity, size_t *ret_count,
                        struct error *err)
{
    struct fill *f = fill_of(b);
    if (is_filled(f))
        return block_extents(f->file, length_bytes, offset_bytes, extents, capacity, ret_count, err);
    uint64_t grain = offset_bytes / GROUP_GRAIN_BYTES, end = offset_bytes + length_bytes;
    bool set = is_set(f, grain);
    uint64_t until = set ? run_end(f, grain, (end + GROUP_GRAIN_BYTES - 1) / GROUP_GRAIN_BYTES, true) : grain_map_next(&f->unfilled, grain);
    until = set || until < f->unfilled.grains ? until * GROUP_GRAIN_BYTES : end;
    if (until <= offset_bytes) /* it has changed meanwhile */
        until = offset_bytes + GROUP_GRAIN_BYTES - offset_bytes % GROUP_GRAIN_BYTES;
    uint64_t length = (until < end ? until : end) - offset_bytes;
    if (!set)
        return block_extents(f->file, length, offset_bytes, extents, capacity, ret_count, err);
    extents[0] = (struct block_extent){.offset_bytes = offset_bytes, .length_bytes = length, .hole = false};
    *ret_count = 1;
    return 0;
}

static void fill_free(struct block *b)
{
    struct fill *f = fill_of(b);
    block_free(f->file);
    live_words_close(&f->live);
    pthread_mutex_destroy(&f->save_mutex);
    pthread_mutex_destroy(&f->mutex);
    free(f);
}

static const struct block_ops fill_ops = {
    .pread = fill_pread,
    .pwrite = fill_pwrite,
    .flush = fill_flush,
    .discard = fill_discard,
    .zero = fill_zero,
    .extents = fill_extents,
    .free = fill_free,
};

/* ---- opening and closing ---- */

static void count_live(struct grain_map *m)
{
    uint64_t count = 0;
    for (uint64_t grain = grain_map_next(m, 0); grain < m->grains; grain = grain_map_next(m, grain + 1))
        count++;
    atomic_store(&m->set_count, count);
}

static int check_map(const struct fill *f, const char *data, size_t length, struct fill_header *ret, struct error *err)
{
    struct fill_header h = {.version = le32_of(0)};
    if (length >= sizeof h)
        memcpy(&h, data, sizeof h);
    *ret = h;
    h.crc = le32_of(0);
    bool whole = length >= sizeof h && le64_get(h.magic) == FILL_MAGIC &&
                 crc32c(crc32c(0, &h, sizeof h), data + sizeof h, length - sizeof h) == le32_get(ret->crc);
    if (whole && le32_get(h.version) != FILL_VERSION)
        return error_set(err, -EPROTONOSUPPORT, "%s has version %u; use a newer tidemark", f->path, le32_get(h.version));
    uint64_t size_bytes = le64_get(h.size_bytes);
    whole = whole && size_bytes && size_bytes <= f->file->size_bytes &&
            length == sizeof h + words_of((size_bytes + GROUP_GRAIN_BYTES - 1) / GROUP_GRAIN_BYTES) * 8;
    return whole ? 0
                 : error_set(err, -EBADMSG,
                             "%s is damaged: it says what of the volume is still to be read from where it was copied from. Restore it, or delete "
                             "the clone and make it again", f->path);
}

/* Of this fill, and of this journal: that of another one may know nothing of a loss of power. */
static void live_id(const struct fill *f, uint8_t ret[16])
{
    struct uuid journal = journal_id(f->volume->group->journal);
    for (size_t i = 0; i < 16; i++)
        ret[i] = f->id[i] ^ journal.bytes[i];
}

/* From the file's map, or the exact one. */
static int load_map(struct fill *f, const struct fill_header *h, const char *bits, struct error *err)
{
    char path[PATH_MAX];
    bool valid = false;
    struct volume *v = f->volume;
    uint64_t grains = (f->size_bytes + GROUP_GRAIN_BYTES - 1) / GROUP_GRAIN_BYTES, count = words_of(grains);
    const struct journal_recovery *rec = journal_recovery(v->group->journal);
    volume_memory_path(v, "fill", path);
    uint8_t id[sizeof f->id];
    live_id(f, id);
    int r = live_words_open(&f->live, path, grains, id, &valid, err);
    if (r < 0)
        return r;
    f->unfilled = (struct grain_map){.words = f->live.words, .grains = grains};
    _cleanup_free_ uint64_t *words = malloc((count + 1) * sizeof *words);
    if (!words)
        return error_errno(err, -ENOMEM, "cannot read %s", f->path);
    bool live = valid && !rec->compare_all;
    if (!live)
        live_words_trust(&f->live, false); /* not to be believed while it is being filled */
    for (uint64_t w = 0; w < count; w++) {
        struct le64 word;
        memcpy(&word, bits + w * 8, 8);
        words[w] = le64_get(word);
        if (!live)
            atomic_store(&f->unfilled.words[w], words[w]);
        f->changes += words[w] != atomic_load(&f->unfilled.words[w]); /* the next flush saves it */
    }
    count_live(&f->unfilled);
    f->inexact = !live && !(le32_get(h->flags) & FILL_EXACT);
    r = save_words(f, false, words, err); /* from now on the live one counts */
    if (r == 0 && !f->inexact) /* else once it is saved that points are refused */
        live_words_trust(&f->live, true);
    return r;
}

int fill_open(struct volume *v, const char *backing, struct error *err)
{
    char live[PATH_MAX];
    struct fill *f = calloc(1, sizeof *f);
    if (!f)
        return error_errno(err, -ENOMEM, "volume %s", v->name);
    f->block = (struct block){.ops = &fill_ops, .size_bytes = v->file->size_bytes};
    f->volume = v;
    f->file = v->file;
    pthread_mutex_init(&f->save_mutex, NULL);
    pthread_mutex_init(&f->mutex, NULL);
    int n = snprintf(f->path, sizeof f->path, "%s" FILL_SUFFIX, backing), m = snprintf(live, sizeof live, "%s" FILL_SUFFIX ".tmp", backing);
    if (m < (int)sizeof live)
        unlink(live); /* of a save that a kill ended */
    bool there = n < (int)sizeof f->path && access(f->path, F_OK) == 0;
    struct fill_header h;
    _cleanup_free_ char *data = NULL;
    size_t length = 0;
    int r = 0;
    if (!there && n < (int)sizeof f->path && errno != ENOENT && errno != ENOTDIR)
        r = error_errno(err, -errno, "cannot look for %s", f->path);
    if (there)
        r = io_read_file(f->path, 1u << 30, &data, &length, err);
    if (r == 0 && there)
        r = check_map(f, data, length, &h, err);
    if (r == 0 && there) {
        f->size_bytes = le64_get(h.size_bytes);
        f->total_grains = le64_get(h.total_grains);
        f->source_volume = le32_get(h.source_volume);
        memcpy(f->id, h.id, sizeof f->id);
        f->wanted = true;
        r = load_map(f, &h, data + sizeof h, err);
    }
    if (r < 0 || !there) { /* the file stays the volume's */
        f->file = NULL;
        fill_free(&f->block);
        volume_memory_path(v, "fill", live);
        if (r == 0)
            unlink(live);
        return r;
    }
    v->fill = f;
    v->backing = &f->block;
    log_info(v->group->log, "volume %s: %llu MiB of what it began with are still to be copied", v->name,
             (unsigned long long)(f->unfilled.set_count * GROUP_GRAIN_BYTES >> 20));
    return 0;
}

int fill_start(struct group *g, bool *ret_inexact, struct error *err)
{
    int r = 0;
    *ret_inexact = false;
    for (size_t i = 0; i < g->volume_count && r == 0; i++) {
        const struct volume *v = &g->volumes[i];
        *ret_inexact |= v->fill && v->fill->inexact;
        if (v->fill && !is_filled(v->fill) && !g->source.image)
            r = open_source(g, v, err);
    }
    return r;
}

void fill_refused(struct group *g)
{
    for (size_t i = 0; i < g->volume_count; i++) {
        struct fill *f = g->volumes[i].fill;
        if (!f || !f->inexact)
            continue;
        f->inexact = false;
        live_words_trust(&f->live, true);
    }
}

void fill_close(struct group *g, bool clean)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < g->volume_count; i++) {
        struct fill *f = g->volumes[i].fill;
        struct error err = ERROR_INIT;
        if (!f || !clean || f->inexact || !atomic_load(&f->wanted))
            continue;
        volume_memory_path(f->volume, "fill", path);
        if (save(f, true, true, &err) < 0)
            log_warning(g->log, "%s", err.message); /* the live one stays */
        else
            unlink(path);
    }
    image_free(g->source.image);
    g->source.image = NULL;
}

/* ---- the thread's ---- */

/* The backing is whole, and durably so. */
static int finish(struct fill *f, struct error *err)
{
    char path[PATH_MAX], directory[PATH_MAX];
    MUTEX_GUARD(guard, &f->save_mutex);
    int r = volume_flush_file(f->volume, err);
    if (r < 0)
        return r;
    if (unlink(f->path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s", f->path);
    snprintf(directory, sizeof directory, "%s", f->path);
    r = io_sync_directory(dirname(directory), err);
    if (r < 0)
        return r;
    volume_memory_path(f->volume, "fill", path);
    unlink(path);
    atomic_store(&f->wanted, false);
    log_info(f->volume->group->log, "volume %s has all that it began with", f->volume->name);
    return 0;
}

/* Copies up to SAVE_EVERY_GRAINS grains from *at on. A grain that cannot be read does not keep the others from being copied. 1: some are left. */
static int copy_some(struct fill *f, uint64_t *at, struct error *err)
{
    struct volume *v = f->volume;
    struct group *g = v->group;
    int failed = 0;
    for (uint32_t copied = 0; copied < SAVE_EVERY_GRAINS; copied++) {
        struct error one = ERROR_INIT;
        pthread_rwlock_rdlock(&g->gate);
        uint64_t grain = *at = grain_map_next(&f->unfilled, *at);
        int r = 0;
        if (grain < f->unfilled.grains) {
            uint32_t slot = range_lock_take(&g->ranges, v->id, grain * GROUP_GRAIN_SECTORS, GROUP_GRAIN_SECTORS);
            r = copy_grain(f, grain, &one);
            range_lock_drop(&g->ranges, slot);
        }
        pthread_rwlock_unlock(&g->gate);
        if (grain == f->unfilled.grains)
            return failed;
        if (r < 0 && !failed) {
            *err = one;
            failed = r;
        }
        ++*at;
        if (!seed_pace(g, GROUP_GRAIN_BYTES))
            return failed ? failed : 1;
    }
    return failed ? failed : 1;
}

static int work_on(struct fill *f, struct error *err)
{
    int r = copy_some(f, &f->cursor, err);
    if (f->cursor >= f->unfilled.grains)
        f->cursor = 0;
    if (r < 0 || atomic_load(&f->volume->group->stop)) /* whoever closes it saves the map; a kill does not */
        return r;
    if (is_filled(f))
        return finish(f, err);
    r = save(f, false, false, err);
    return r < 0 ? r : 1;
}

int fill_all(struct group *g, struct error *err)
{
    for (size_t i = 0; i < g->volume_count; i++) {
        struct fill *f = g->volumes[i].fill;
        int r = f && atomic_load(&f->wanted) ? work_on(f, err) : 0;
        if (r != 0)
            return r;
    }
    pthread_rwlock_wrlock(&g->source.lock);
    struct image *image = g->source.image;
    g->source.image = NULL;
    pthread_rwlock_unlock(&g->source.lock);
    image_free(image);
    return 0;
}

/* ---- for others ---- */

bool fill_is_wanted(const struct group *g)
{
    for (size_t i = 0; i < g->volume_count; i++)
        if (g->volumes[i].fill && atomic_load(&g->volumes[i].fill->wanted))
            return true;
    return false;
}

bool fill_touches(const struct volume *v, uint64_t lba, uint64_t length)
{
    if (volume_is_filled(v))
        return false;
    uint64_t last = (lba + length - 1) / GROUP_GRAIN_SECTORS;
    for (uint64_t grain = lba / GROUP_GRAIN_SECTORS; grain <= last; grain++)
        if (is_set(v->fill, grain))
            return true;
    return false;
}

int group_set_source(struct group *g, const char *journal, const char *pin, struct error *err)
{
    if (strlen(journal) >= sizeof g->source.journal || strlen(pin) >= sizeof g->source.pin)
        return error_set(err, -ENAMETOOLONG, "the source's journal or pin has too long a name");
    memcpy(g->source.journal, journal, strlen(journal) + 1);
    memcpy(g->source.pin, pin, strlen(pin) + 1);
    return 0;
}
