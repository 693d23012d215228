/* SPDX-License-Identifier: Apache-2.0 */
/* Adopted volumes: their backing held something before anything was journaled, and the history needs that in
 * its base.
 *
 * A thread copies grain after grain to the base, at a limited speed; a write to a grain that it has not come
 * to copies it first (its before-image). So the base has, for each grain with a journaled write, what was
 * there before the first one: once all grains are seeded every point since the adoption can be opened, and
 * until then none.
 *
 * Which grains are not seeded yet is in two maps: in shared memory, exact, which survives a kill; and on
 * disk, saved after the base was synced, which may be older. After a loss of power only the older one is
 * left: grains that it does not have are seeded with what the backing holds now, all volumes are compared,
 * and points from the adoption to the end of that are refused (group_begin_compare). The same after a
 * before-image that could not be kept while writes had to go on, and where others may have written to the backing meanwhile (it was deleted
 * and applied again, or its backing is another file): what it held at the adoption may be gone.
 *
 * Lock order: gate, range lock of the grain, the base's. */
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
#include "base/thread.h"
#include "journal/journal_format.h"
#include "volume/group_internal.h"

#define SAVE_EVERY_GRAINS 1024u
#define SPEED_SLICE_NS (50 * NS_PER_MS)

/* ---- the map in shared memory ---- */

/* *ret_valid: it was there, of this journal and volume. */
static int live_map(struct volume *v, bool *ret_valid, struct error *err)
{
    char path[PATH_MAX];
    struct uuid journal = journal_id(v->group->journal);
    volume_memory_path(v, "seed", path);
    int r = live_words_open(&v->seed.live, path, v->stale.grains, journal.bytes, ret_valid, err);
    if (r == 0)
        v->unseeded = (struct grain_map){.words = v->seed.live.words, .grains = v->stale.grains};
    return r;
}

static void live_unmap(struct volume *v, bool remove)
{
    char path[PATH_MAX];
    if (!v->seed.live.memory)
        return;
    volume_memory_path(v, "seed", path);
    atomic_store(&v->unseeded.set_count, 0);
    v->unseeded.words = NULL;
    live_words_close(&v->seed.live);
    if (remove)
        unlink(path);
}

/* ---- the map on disk ---- */

static void saved_path(const struct volume *v, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/base/%u.seed", journal_directory(v->group->journal), v->id);
}

/* What is not set here is durable in the base. `exact`: nothing else is seeded either, and nothing will be.
 */
static int save_map(struct volume *v, bool exact, struct error *err)
{
    char path[PATH_MAX];
    uint64_t words = (v->unseeded.grains + 63) / 64;
    size_t length = sizeof(struct seed_header) + words * 8;
    saved_path(v, path);
    _cleanup_free_ char *data = calloc(1, length);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot write %s", path);
    struct seed_header *h = (struct seed_header *)data;
    *h = (struct seed_header){.magic = le64_of(SEED_MAGIC),
                              .flags = le32_of(exact ? SEED_EXACT : 0),
                              .volume = le32_of(v->id),
                              .grains = le64_of(v->unseeded.grains)};
    for (uint64_t w = 0; w < words; w++) {
        struct le64 word = le64_of(atomic_load(&v->unseeded.words[w]));
        memcpy(data + sizeof *h + w * 8, &word, 8);
    }
    h->crc = le32_of(crc32c(0, data, length));
    int r = journal_seed_sync(v->group->journal, err); /* after the bits were read */
    return r < 0 ? r : io_replace_file(path, data, length, 0600, err);
}

/* Sets the bits of the file; all of them without a file that can be used. *ret_exact as saved. */
static void load_map(struct volume *v, bool *ret_exact)
{
    char path[PATH_MAX];
    struct error err = ERROR_INIT;
    _cleanup_free_ char *data = NULL;
    size_t length = 0;
    uint64_t words = (v->unseeded.grains + 63) / 64;
    saved_path(v, path);
    int r = io_read_file(path, 1u << 30, &data, &length, &err);
    struct seed_header h = {0};
    if (r == 0 && length == sizeof h + words * 8) {
        memcpy(&h, data, sizeof h);
        ((struct seed_header *)data)->crc = le32_of(0);
    }
    bool usable = le64_get(h.magic) == SEED_MAGIC && crc32c(0, data, length) == le32_get(h.crc) &&
                  le32_get(h.volume) == v->id && le64_get(h.grains) == v->unseeded.grains;
    if (r == 0 && !usable)
        log_error(v->group->log, "%s is damaged: volume %s is seeded from the beginning", path, v->name);
    *ret_exact = usable && le32_get(h.flags) & SEED_EXACT;
    for (uint64_t w = 0; w < words; w++)
        atomic_store(&v->unseeded.words[w], 0);
    v->unseeded.set_count = 0;
    for (uint64_t grain = 0; grain < v->unseeded.grains; grain++)
        if (!usable || data[sizeof h + grain / 8] >> grain % 8 & 1)
            grain_map_set(&v->unseeded, grain);
}

static void count_live(struct volume *v)
{
    v->unseeded.set_count = 0;
    for (uint64_t grain = grain_map_next(&v->unseeded, 0); grain < v->unseeded.grains;
         grain = grain_map_next(&v->unseeded, grain + 1))
        v->unseeded.set_count++;
}

/* ---- opening ---- */

static int open_volume(struct volume *v, bool new, bool foreign, struct error *err)
{
    bool valid = false, exact = false;
    const struct journal_recovery *rec = journal_recovery(v->group->journal);
    int r = live_map(v, &valid, err);
    if (r < 0)
        return r;
    if (valid && !rec->compare_all && !foreign) {
        count_live(v);
        exact = true;
    } else {
        live_words_trust(&v->seed.live, false); /* not to be believed while it is being filled */
        load_map(v, &exact);
        exact = exact && !rec->compare_all && !foreign;
    }
    v->seed.inexact = !exact && !new;
    r = save_map(v, false, err); /* from now on the live one counts */
    if (!v->seed.inexact) /* else once it is saved that points are refused: a kill before has to find it out again */
        live_words_trust(&v->seed.live, true);
    if (r == 0)
        log_info(v->group->log,
                 "volume %s: %llu MiB of %llu MiB of what it held are still to be copied to the base",
                 v->name, (unsigned long long)(v->unseeded.set_count * GROUP_GRAIN_BYTES >> 20),
                 (unsigned long long)(v->block.size_bytes >> 20));
    return r;
}

/* Both maps, which a kill may have left when the last grain had just been seeded. */
static void forget_maps(const struct volume *v)
{
    char path[PATH_MAX];
    volume_memory_path(v, "seed", path);
    unlink(path);
    saved_path(v, path);
    unlink(path);
}

int seed_open(struct group *g, bool foreign, bool *ret_inexact, struct error *err)
{
    int r = 0;
    *ret_inexact = false;
    for (size_t i = 0; i < g->volume_count && r == 0; i++) {
        struct volume *v = &g->volumes[i];
        if (!v->seed.wanted) {
            forget_maps(v);
            continue;
        }
        r = open_volume(v, v->seed.new, foreign, err);
        *ret_inexact |= v->seed.inexact;
    }
    return r;
}

void seed_close(struct group *g, bool clean)
{
    struct error err = ERROR_INIT;
    for (size_t i = 0; i < g->volume_count; i++) {
        struct volume *v = &g->volumes[i];
        if (!v->seed.live.memory)
            continue;
        bool exact = clean && !v->seed.inexact;
        if (exact && save_map(v, true, &err) < 0) {
            log_warning(g->log, "%s", err.message);
            exact = false; /* the live one stays */
        }
        live_unmap(v, exact);
    }
}

/* ---- one grain ---- */

static int copy_grain(struct volume *v, uint64_t offset, uint32_t bytes, struct error *err)
{
    char *data = io_alloc_pages(GROUP_GRAIN_BYTES);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot keep what volume %s held", v->name);
    uint64_t lba = offset / BLOCK_SECTOR_BYTES;
    uint32_t length = bytes / BLOCK_SECTOR_BYTES;
    int r = block_pread(v->backing, data, bytes, offset, err);
    if (r < 0) { /* a bad sector: it is lost to the history too, and writing it may repair it */
        log_error(v->group->log, "volume %s: %s; points before the next write there cannot be read there",
                  v->name, err->message);
        r = journal_seed(v->group->journal, v->id, lba, length, NULL, err);
    } else if (!io_is_zero(data, bytes)) { /* zeroes are what the base has anyway */
        r = journal_seed(v->group->journal, v->id, lba, length, data, err);
    }
    io_free_pages(data, GROUP_GRAIN_BYTES);
    return r;
}

int seed_grain(struct volume *v, uint64_t grain, struct error *err)
{
    if (!v->unseeded.words || !grain_map_test(&v->unseeded, grain))
        return 0;
    uint64_t offset = grain * GROUP_GRAIN_BYTES, left = v->block.size_bytes - offset;
    int r = copy_grain(v, offset, left < GROUP_GRAIN_BYTES ? (uint32_t)left : GROUP_GRAIN_BYTES, err);
    if (r == 0)
        grain_map_clear(&v->unseeded, grain);
    return r;
}

int seed_before_write(struct volume *v, uint64_t grain, struct error *err)
{
    char reason[ERROR_MESSAGE_BYTES + 64];
    int r = seed_grain(v, grain, err);
    if (r == 0)
        return 0;
    snprintf(reason, sizeof reason, "what volume %s held cannot be kept: %s", v->name, err->message);
    if (!v->group->holds) { /* else the write waits, and it is tried again */
        live_words_trust(&v->seed.live, false); /* a kill must not forget it */
        v->seed.inexact = true;
    }
    journal_suspend(v->group->journal, reason, false);
    return -ESHUTDOWN;
}

bool seed_touches(const struct volume *v, uint64_t lba, uint64_t length)
{
    if (atomic_load_explicit(&v->unseeded.set_count, memory_order_acquire) == 0)
        return false;
    uint64_t last = (lba + length - 1) / GROUP_GRAIN_SECTORS;
    for (uint64_t grain = lba / GROUP_GRAIN_SECTORS; grain <= last; grain++)
        if (grain_map_test(&v->unseeded, grain))
            return true;
    return false;
}

void seed_refused(struct group *g)
{
    for (size_t i = 0; i < g->volume_count; i++)
        if (g->volumes[i].seed.live.memory)
            live_words_trust(&g->volumes[i].seed.live, true);
}

int seed_exact_until(struct group *g, struct lsn *low, struct error *err)
{
    struct manifest m;
    int r = journal_manifest(g->journal, &m, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < g->volume_count; i++)
        for (size_t k = 0; k < m.volume_count && atomic_load(&g->volumes[i].seed.inexact); k++)
            if (m.volumes[k].id == g->volumes[i].id && m.volumes[k].created.n <= low->n)
                low->n = m.volumes[k].created.n - 1;
    manifest_release(&m);
    return 0;
}

/* ---- the thread ---- */

/* With seed_mutex: sleeps until `ns` have gone by, it is stopped or hurried. */
static void sleep_some(struct group *g, uint64_t ns)
{
    thread_cond_wait_ns(&g->seed_work, &g->seed_mutex, ns);
}

bool seed_pace(struct group *g, uint64_t bytes)
{
    MUTEX_GUARD(guard, &g->seed_mutex);
    uint64_t rate = g->seed_bytes_per_second;
    if (!rate || g->seed_hurry)
        return !g->stop;
    uint64_t now = clock_boottime_ns(clock_system());
    if (g->seed_due_ns < now)
        g->seed_due_ns = now;
    g->seed_due_ns += bytes * NS_PER_SECOND / rate;
    while (g->seed_due_ns > now + SPEED_SLICE_NS && !g->stop && !g->seed_hurry) {
        sleep_some(g, g->seed_due_ns - now);
        now = clock_boottime_ns(clock_system());
    }
    return !g->stop;
}

/* A hole in the backing needs no reading. */
static bool is_hole(struct volume *v, uint64_t grain)
{
    struct block_extent extent;
    struct error ignored = ERROR_INIT;
    uint64_t offset = grain * GROUP_GRAIN_BYTES, left = v->block.size_bytes - offset;
    uint64_t bytes = left < GROUP_GRAIN_BYTES ? left : GROUP_GRAIN_BYTES;
    size_t count = 0;
    return block_extents(v->backing, bytes, offset, &extent, 1, &count, &ignored) == 0 && count == 1 &&
           extent.hole && extent.length_bytes == bytes;
}

/* Seeds up to SAVE_EVERY_GRAINS grains. 1: some are left. */
static int seed_some(struct volume *v, struct error *err)
{
    struct group *g = v->group;
    uint64_t grain = 0;
    for (uint32_t copied = 0; copied < SAVE_EVERY_GRAINS;) {
        pthread_rwlock_rdlock(&g->gate);
        grain = grain_map_next(&v->unseeded, grain);
        bool end = grain == v->unseeded.grains, hole = false;
        int r = 0;
        if (!end) {
            uint32_t slot =
                range_lock_take(&g->ranges, v->id, grain * GROUP_GRAIN_SECTORS, GROUP_GRAIN_SECTORS);
            hole = is_hole(v, grain);
            if (hole)
                grain_map_clear(&v->unseeded, grain);
            else
                r = seed_grain(v, grain, err);
            range_lock_drop(&g->ranges, slot);
        }
        pthread_rwlock_unlock(&g->gate);
        if (r < 0 || end)
            return r;
        copied += !hole;
        if (!seed_pace(g, hole ? 0 : GROUP_GRAIN_BYTES))
            return 1;
    }
    return 1;
}

/* All grains are seeded: the volume's points can be opened, unless others refuse them. */
static int finish(struct volume *v, struct error *err)
{
    char path[PATH_MAX];
    struct group *g = v->group;
    int r = journal_seeded(g->journal, v->id, err);
    if (r < 0)
        return r;
    saved_path(v, path);
    if (unlink(path) < 0 && errno != ENOENT)
        log_warning(g->log, "cannot remove %s: %m", path);
    log_info(g->log, "volume %s is adopted: the base has all that it held", v->name);
    pthread_rwlock_wrlock(&g->gate); /* the map is used with it */
    live_unmap(v, true);
    v->seed.wanted = false;
    pthread_rwlock_unlock(&g->gate);
    return 0;
}

static int wait_a_moment(struct group *g)
{
    MUTEX_GUARD(guard, &g->seed_mutex);
    if (!g->stop)
        sleep_some(g, g->seed_hurry ? NS_PER_MS : 100 * NS_PER_MS);
    return 1;
}

/* 1: something is left to do. */
static int seed_all(struct group *g, struct error *err)
{
    int filled = fill_all(g, err); /* first: what is read from another history holds that */
    if (filled != 0)
        return filled;
    for (size_t i = 0; i < g->volume_count; i++) {
        struct volume *v = &g->volumes[i];
        if (!v->seed.wanted)
            continue;
        int r = seed_some(v, err);
        if (r > 0)
            r = save_map(v, false, err);
        else if (r == 0 && !atomic_load(&v->seed.inexact))
            r = finish(v, err);
        else if (r == 0) /* the comparison has to be through first, which refuses what is not known exactly */
            r = wait_a_moment(g);
        return r < 0 ? r : 1;
    }
    return 0;
}

static void tell_trouble(struct group *g, const struct error *err)
{
    uint64_t now = clock_boottime_ns(clock_system());
    if (!err)
        g->seed_trouble[0] = '\0';
    else
        snprintf(g->seed_trouble, sizeof g->seed_trouble, "%s", err->message);
    if (err && (!g->seed_told_ns || now - g->seed_told_ns > 60 * NS_PER_SECOND)) {
        log_error(g->log, "seeding: %s; it is tried again and again", err->message);
        g->seed_told_ns = now;
    }
}

static void *seed_main(void *context)
{
    struct group *g = context;
    thread_background();
    pthread_mutex_lock(&g->seed_mutex);
    while (!g->stop) {
        struct error err = ERROR_INIT;
        pthread_mutex_unlock(&g->seed_mutex);
        int r = seed_all(g, &err);
        pthread_mutex_lock(&g->seed_mutex);
        tell_trouble(g, r < 0 ? &err : NULL);
        if (r == 0)
            break;
        if (r < 0 && !g->stop)
            sleep_some(g, NS_PER_SECOND);
    }
    g->seed_runs = false;
    pthread_cond_broadcast(&g->seed_work);
    pthread_mutex_unlock(&g->seed_mutex);
    return NULL;
}

int seed_start(struct group *g, struct error *err)
{
    bool wanted = fill_is_wanted(g);
    for (size_t i = 0; i < g->volume_count; i++)
        wanted |= g->volumes[i].seed.wanted;
    if (!wanted)
        return 0;
    g->seed_runs = true;
    int r = thread_start(&g->seeder, "group-seeder", seed_main, g, err);
    g->seeder_made = r == 0;
    if (r < 0)
        g->seed_runs = false;
    return r;
}

void seed_stop(struct group *g)
{
    if (!g->seeder_made)
        return;
    pthread_mutex_lock(&g->seed_mutex);
    pthread_cond_broadcast(&g->seed_work); /* g->stop is set */
    pthread_mutex_unlock(&g->seed_mutex);
    pthread_join(g->seeder, NULL);
    g->seeder_made = false;
}

void seed_settle(struct group *g)
{
    MUTEX_GUARD(guard, &g->seed_mutex);
    g->seed_hurry = true;
    pthread_cond_broadcast(&g->seed_work);
    while (g->seed_runs)
        pthread_cond_wait(&g->seed_work, &g->seed_mutex);
    g->seed_hurry = false;
}

/* ---- for others ---- */

void group_set_seed_speed(struct group *g, uint64_t bytes_per_second)
{
    MUTEX_GUARD(guard, &g->seed_mutex);
    g->seed_bytes_per_second = bytes_per_second;
    pthread_cond_broadcast(&g->seed_work);
}

int group_check_seeded(struct group *g, struct lsn lsn, struct error *err)
{
    struct manifest m;
    struct group_status s;
    char what[48] = "no point can be rewound to yet";
    int r = journal_manifest(g->journal, &m, err);
    if (r < 0)
        return r;
    if (lsn.n != LSN_MAX.n)
        snprintf(what, sizeof what, "LSN %llu cannot be opened yet", (unsigned long long)lsn.n);
    for (size_t i = 0; r == 0 && i < m.volume_count; i++) {
        const struct volume_info *v = &m.volumes[i];
        if (!v->seeding || v->created.n > lsn.n)
            continue;
        group_status(g, &s);
        unsigned percent = s.seed_total_bytes ? (unsigned)(100 * s.seed_done_bytes / s.seed_total_bytes) : 0;
        r = error_set(err, -EBUSY,
                      "%s: what volume %s held when it was adopted is still being copied to the history (%u %%); every point since then can be "
                      "opened, and rewound to, once `tidemark status` shows that it is seeded",
                      what, v->name, percent);
    }
    manifest_release(&m);
    return r;
}
