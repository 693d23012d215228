/* SPDX-License-Identifier: Apache-2.0 */
/* Which grains are stale: they hold what a rewind has not copied back yet, and are read through the journal's image. In two maps:
 *
 *   S1  In shared memory, exact, which survives a kill. A grain whose bit is cleared there is in the backing, whatever the journal has of it. It is not
 *       believed where the frame ring is gone or of a later use: journal and backing are older then, of a copy that was put back; nor where it is of an
 *       older rewind than the one on disk. It may be of a newer one, whose bits did not come to the disk: they are too many, as all that it has.
 *   S2  On disk (journal/rewind.pending), which survives a loss of power. A bit is cleared there only after the backing was flushed, so it may be
 *       set too long: then image(latest) is what the grain holds, as long as the journal has all that was acknowledged. Where it may not have
 *       (writes go on unjournaled, or a kill took the frame ring with it), S1 says so, and after a loss of power nothing but what was flushed counts;
 *       a flush that is answered while writes go on unjournaled, or until they are compared, saves the map before (stale_save_behind).
 *
 *   S3  Beside a backing (BACKING.rewinding), where a flush had to save S2 and the journal's disk failed: as S2, of the same rewind. What either
 *       calls copied is. It goes with S2.
 *
 * S1 and S2 are there from before a rewind's record until it is copied back. Who clears bits has the gate, and the range lock of whole grains. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/endian.h"
#include "base/io.h"
#include "journal/journal_format.h"
#include "journal/seal.h"
#include "volume/group_internal.h"

bool stale_any(const struct group *g)
{
    bool any = false;
    for (size_t i = 0; i < g->volume_count; i++)
        any |= atomic_load(&g->volumes[i].stale.set_count) > 0;
    return any;
}

void stale_clear(struct volume *v, uint64_t grain)
{
    if (!grain_map_test(&v->stale, grain))
        return;
    grain_map_clear(&v->stale, grain);
    if (v->stale_live.words)
        atomic_fetch_and(&v->stale_live.words[grain / 64], ~(1ull << grain % 64));
    atomic_store(&v->group->pending_behind, true);
}

/* ---- on disk ---- */

static void pending_path(const struct group *g, bool copy, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/rewind.pending%s", journal_directory(g->journal), copy ? ".copy" : "");
}

/* The copy first: it is never there alone unless the other one was lost. */
static int remove_pending(struct group *g, struct error *err)
{
    char path[PATH_MAX];
    for (int copy = 1; copy >= 0; copy--) {
        pending_path(g, copy, path);
        if (unlink(path) < 0 && errno != ENOENT)
            return error_errno(err, -errno, "cannot remove %s", path);
    }
    int r = io_sync_directory(journal_directory(g->journal), err);
    if (r == 0)
        stale_remove_beside(g);
    return r;
}

/* No room beside them, which may be why writes go unjournaled, and is no reason for their flush to fail. The copy first: one of the two is whole. */
static int overwrite_pending(struct group *g, const void *data, size_t length, struct error *err)
{
    char path[PATH_MAX];
    int r = 0;
    for (int copy = 1; copy >= 0 && r == 0; copy--) {
        pending_path(g, copy, path);
        r = sealed_overwrite_file(path, data, length, err);
    }
    return r;
}

/* Without it the backings would be taken for what the volumes hold: there are two. */
static int write_pending(struct group *g, const void *data, size_t length, struct error *err)
{
    char path[PATH_MAX];
    int r = journal_step(g->journal, "pending");
    if (r < 0)
        return error_errno(err, r, "cannot write rewind.pending");
    for (int copy = 0; copy < 2 && r == 0; copy++) {
        pending_path(g, copy, path);
        r = sealed_replace_file(path, data, length, 0600, err);
    }
    struct error ignored = ERROR_INIT;
    if (r < 0 && overwrite_pending(g, data, length, &ignored) == 0) {
        *err = ERROR_INIT;
        r = 0;
    }
    return r;
}

static int save_pending(struct group *g, bool flushes, struct error *err)
{
    size_t length = sizeof(struct pending_header);
    for (size_t i = 0; i < g->volume_count; i++)
        length += sizeof(struct pending_volume) + (g->volumes[i].stale.grains + 63) / 64 * 8;
    if (!stale_any(g)) {
        int r = grains_flush(g, err);
        return r < 0 ? r : remove_pending(g, err);
    }
    _cleanup_free_ char *data = calloc(1, length + STALE_BESIDE_BYTES);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot write rewind.pending");
    struct pending_header *h = (struct pending_header *)data;
    *h = (struct pending_header){.magic = le64_of(PENDING_MAGIC),
                                 .volumes = le32_of((uint32_t)g->volume_count),
                                 .rewind_lsn = le64_of(g->rewind_lsn.n),
                                 .target_lsn = le64_of(g->rewind_target.n)};
    char *at = data + sizeof *h;
    for (size_t i = 0; i < g->volume_count; i++) {
        const struct grain_map *m = &g->volumes[i].stale;
        struct pending_volume pv = {.id = le32_of(g->volumes[i].id), .grains = le64_of(m->grains)};
        memcpy(at, &pv, sizeof pv);
        at += sizeof pv;
        for (uint64_t w = 0; w < (m->grains + 63) / 64; w++, at += 8) {
            struct le64 word = le64_of(atomic_load(&m->words[w]));
            memcpy(at, &word, sizeof word);
        }
    }
    h->crc = le32_of(crc32c(0, data, length));
    int r = grains_flush(g, err); /* after the bits were read: what they call copied is durable */
    if (r < 0)
        return r;
    r = write_pending(g, data, length, err);
    return r < 0 && flushes ? stale_write_beside(g, data, length, err) : r;
}

/* With pending_mutex. */
static int save(struct group *g, bool flushes, struct error *err)
{
    bool behind = atomic_exchange(&g->pending_behind, false);
    int r = save_pending(g, flushes, err);
    if (r < 0 && behind)
        atomic_store(&g->pending_behind, true);
    if (r == 0 && !stale_any(g)) /* there are none any more before all is compared */
        atomic_store(&g->pending_owed, false);
    return r;
}

int stale_save(struct group *g, struct error *err)
{
    MUTEX_GUARD(guard, &g->pending_mutex);
    return save(g, false, err);
}

int stale_save_behind(struct group *g, struct error *err)
{
    MUTEX_GUARD(guard, &g->pending_mutex);
    return atomic_load(&g->pending_behind) ? save(g, true, err) : 0;
}

void stale_owe(struct group *g)
{
    MUTEX_GUARD(guard, &g->pending_mutex); /* what is being written is not written */
    atomic_store(&g->pending_owed, stale_any(g) || atomic_load(&g->pending_behind));
}

static void load_volume_bits(struct group *g, const struct pending_volume *pv, const char *bits)
{
    struct volume *v = group_find_volume(g, le32_get(pv->id));
    for (uint64_t grain = 0; v && grain < v->stale.grains && grain < le64_get(pv->grains); grain++)
        if (stale_bit(bits, grain))
            grain_map_set(&v->stale, grain);
}

bool stale_bit(const char *bits, uint64_t grain)
{
    return bits[grain / 8] >> grain % 8 & 1;
}

void stale_each_volume(struct group *g, const char *data, size_t length, void (*take)(struct group *g, const struct pending_volume *pv, const char *bits))
{
    const struct pending_header *h = (const struct pending_header *)data;
    const char *at = data + sizeof *h, *end = data + length;
    for (uint32_t i = 0; i < le32_get(h->volumes); i++) {
        struct pending_volume pv;
        if ((size_t)(end - at) < sizeof pv)
            break;
        memcpy(&pv, at, sizeof pv);
        at += sizeof pv;
        uint64_t bytes = (le64_get(pv.grains) + 63) / 64 * 8;
        if ((uint64_t)(end - at) < bytes)
            break;
        take(g, &pv, at);
        at += bytes;
    }
}

/* Which grains are not copied back is not known any more: all of them are read through the journal's image, which is what they hold
 * whether they were or not, and are copied back. The damaged file stays beside. Not when the backings may hold writes that the journal
 * lacks: there neither can be taken for the other. */
static int load_damaged(struct group *g, const char *path, struct error *err)
{
    char kept[PATH_MAX + 16];
    struct manifest m;
    snprintf(kept, sizeof kept, "%s.damaged", path);
    if (journal_recovery(g->journal)->compare)
        return error_context(err, "which blocks a rewind has not copied back is not known, and the volumes may hold writes that the journal "
                                  "lacks. Look at the newest points in views; then either move the file away (mv %s %s; rm -f %s.copy), which keeps "
                                  "what the backings hold and may take a part of that rewind back, or restore it", path, kept, path), -EBADMSG;
    log_error(g->log, "%s: every block is copied back from the journal instead", err->message);
    *err = ERROR_INIT;
    int r = journal_manifest(g->journal, &m, err);
    if (r < 0)
        return r;
    if (m.rewind_count) {
        g->rewind_lsn = m.rewinds[m.rewind_count - 1].lsn;
        g->rewind_target = m.rewinds[m.rewind_count - 1].target;
    }
    manifest_release(&m);
    for (size_t i = 0; i < g->volume_count; i++)
        for (uint64_t grain = 0; grain < g->volumes[i].stale.grains && !g->volumes[i].seed.wanted; grain++)
            grain_map_set(&g->volumes[i].stale, grain);
    if (link(path, kept) < 0 && errno != EEXIST)
        log_warning(g->log, "cannot keep %s: %m", path);
    g->pending_damaged = true;
    return stale_save(g, err); /* from here on it is known again, also after a kill */
}

int stale_read(const char *path, char **ret_data, size_t *ret_length, struct error *err)
{
    _cleanup_free_ char *data = NULL;
    size_t length;
    int r = sealed_read_file(path, 1u << 30, &data, &length, err);
    if (r < 0)
        return r;
    struct pending_header *h = (struct pending_header *)data;
    uint32_t crc = length >= sizeof *h ? le32_get(h->crc) : 0;
    if (length >= sizeof *h)
        h->crc = le32_of(0);
    if (length < sizeof *h || le64_get(h->magic) != PENDING_MAGIC || crc32c(0, data, length) != crc)
        return error_set(err, -EBADMSG, "%s is damaged: it says which blocks a rewind has not copied back yet", path);
    *ret_data = take_ptr(data);
    *ret_length = length;
    return 0;
}

static int read_pending(struct group *g, const char *path, struct error *err)
{
    _cleanup_free_ char *data = NULL;
    size_t length;
    int r = stale_read(path, &data, &length, err);
    if (r < 0)
        return r;
    const struct pending_header *h = (const struct pending_header *)data;
    g->rewind_lsn.n = le64_get(h->rewind_lsn);
    g->rewind_target.n = le64_get(h->target_lsn);
    stale_each_volume(g, data, length, load_volume_bits);
    return 0;
}

static int load_pending(struct group *g, struct error *err)
{
    char path[PATH_MAX], copy[PATH_MAX];
    struct error why = ERROR_INIT;
    pending_path(g, false, path);
    pending_path(g, true, copy);
    int r = read_pending(g, path, err);
    if (r == 0 || (r != -ENOENT && r != -EBADMSG && r != -EIO))
        return r;
    int other = read_pending(g, copy, &why);
    if (r == -ENOENT && other == -ENOENT) {
        *err = ERROR_INIT;
        return 0;
    }
    if (other == 0) {
        log_error(g->log, "%s; its copy stands in for it, and nothing is lost", err->message);
        *err = ERROR_INIT;
        return 0;
    }
    return r == -EIO ? r : load_damaged(g, path, err);
}

/* ---- in shared memory ---- */

/* Of this journal; its number is the LSN of the rewind. */
static int live_open(struct volume *v, bool *ret_valid, struct error *err)
{
    char path[PATH_MAX];
    struct uuid id = journal_id(v->group->journal);
    volume_memory_path(v, "stale", path);
    int r = live_words_open(&v->stale_live, path, v->stale.grains, id.bytes, ret_valid, err);
    *ret_valid = r == 0 && *ret_valid && live_words_number(&v->stale_live) >= v->group->rewind_lsn.n;
    return r;
}

/* It says what the map does from now on. */
static void live_fill(struct volume *v)
{
    live_words_trust(&v->stale_live, false); /* not to be believed meanwhile */
    for (uint64_t w = 0; w < (v->stale.grains + 63) / 64; w++)
        atomic_store(&v->stale_live.words[w], atomic_load(&v->stale.words[w]));
    live_words_set_number(&v->stale_live, v->group->rewind_lsn.n);
    live_words_trust(&v->stale_live, true);
}

/* Both maps say what both said. */
static void live_keep(struct volume *v)
{
    uint64_t count = 0;
    for (uint64_t w = 0; w < (v->stale.grains + 63) / 64; w++) {
        uint64_t saved = atomic_load(&v->stale.words[w]), both = saved & atomic_load(&v->stale_live.words[w]);
        if (both != saved)
            atomic_store(&v->group->pending_behind, true);
        atomic_store(&v->stale_live.words[w], both);
        atomic_store(&v->stale.words[w], both);
        count += (uint64_t)__builtin_popcountll(both);
    }
    atomic_store(&v->stale.set_count, count);
}

/* Without one a loss of the ring loses what only the backing had: told, and no reason not to go on. */
static void cannot_publish(struct group *g, const struct error *why)
{
    log_warning(g->log, "%s: until the rewind is copied back, a kill may lose writes that were acknowledged and not flushed", why->message);
}

void stale_publish(struct group *g)
{
    struct error err = ERROR_INIT;
    bool ignored;
    for (size_t i = 0; i < g->volume_count; i++) {
        live_words_close(&g->volumes[i].stale_live);
        if (live_open(&g->volumes[i], &ignored, &err) < 0)
            cannot_publish(g, &err);
        else
            live_fill(&g->volumes[i]);
    }
}

void stale_forget(struct group *g)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < g->volume_count; i++) {
        live_words_close(&g->volumes[i].stale_live);
        volume_memory_path(&g->volumes[i], "stale", path);
        unlink(path);
    }
}

int stale_load(struct group *g, bool replaced, struct error *err)
{
    struct error why = ERROR_INIT;
    bool kept = journal_recovery(g->journal)->memory_kept;
    int r = load_pending(g, err);
    if (r == 0)
        r = stale_load_beside(g, replaced, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < g->volume_count && stale_any(g); i++) {
        struct volume *v = &g->volumes[i];
        bool valid = false;
        if (live_open(v, &valid, &why) < 0)
            cannot_publish(g, &why);
        else if (valid && kept)
            live_keep(v);
        else
            live_fill(v);
    }
    if (stale_save_behind(g, &why) < 0) /* it is still too much, as it was */
        log_warning(g->log, "%s", why.message);
    else if (!stale_any(g))
        stale_forget(g);
    return 0;
}

void stale_close(struct group *g, bool clean)
{
    struct error err = ERROR_INIT;
    int r = !clean ? 0 : g->stale_image ? stale_save(g, &err) : stale_save_behind(g, &err);
    if (r < 0)
        log_warning(g->log, "%s", err.message);
    else if (clean)
        stale_forget(g);
    for (size_t i = 0; i < g->volume_count; i++)
        live_words_close(&g->volumes[i].stale_live);
}
