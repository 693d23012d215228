/* SPDX-License-Identifier: Apache-2.0 */
/* Grains that are not plain: stale ones of a rewind, unverified ones after a power loss or a gap, and the thread that
 * makes them plain again behind the running application. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "journal/pin.h"
#include "volume/group_internal.h"

#define SAVE_EVERY_GRAINS 1024u
#define RENEW_NS NS_PER_SECOND

/* ---- the map ---- */

int grain_map_init(struct grain_map *m, uint64_t grains, struct error *err)
{
    m->grains = grains;
    m->words = calloc((grains + 63) / 64 + 1, sizeof *m->words);
    return m->words ? 0 : error_errno(err, -ENOMEM, "cannot reserve a map of %llu grains", (unsigned long long)grains);
}
void grain_map_release(struct grain_map *m)
{
    free((void *)m->words);
    m->words = NULL;
}
bool grain_map_test(const struct grain_map *m, uint64_t grain)
{
    return atomic_load_explicit(&m->words[grain / 64], memory_order_acquire) >> grain % 64 & 1;
}
void grain_map_set(struct grain_map *m, uint64_t grain)
{
    uint64_t bit = 1ull << grain % 64;
    if (!(atomic_fetch_or(&m->words[grain / 64], bit) & bit))
        atomic_fetch_add(&m->set_count, 1);
}
void grain_map_set_word(struct grain_map *m, uint64_t grain, uint64_t bits)
{
    if (grain >= m->grains)
        return;
    if (m->grains - grain < 64)
        bits &= (1ull << (m->grains - grain)) - 1;
    uint64_t before = atomic_fetch_or(&m->words[grain / 64], bits);
    atomic_fetch_add(&m->set_count, (unsigned)__builtin_popcountll(bits & ~before));
}
void grain_map_clear(struct grain_map *m, uint64_t grain)
{
    uint64_t bit = 1ull << grain % 64;
    if (atomic_fetch_and(&m->words[grain / 64], ~bit) & bit)
        atomic_fetch_sub(&m->set_count, 1);
}
uint64_t grain_map_next(const struct grain_map *m, uint64_t from)
{
    while (from < m->grains) {
        uint64_t word = atomic_load(&m->words[from / 64]) >> from % 64;
        if (word) {
            from += (uint64_t)__builtin_ctzll(word);
            return from < m->grains ? from : m->grains;
        }
        from = (from / 64 + 1) * 64;
    }
    return m->grains;
}

/* ---- images of the journal ---- */

/* Where indexes are made again that the image of a pin needs; what is left of it goes with the next opening. */
static void scratch_path(const struct group *g, const char *pin, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%.4000s/%s.salvage.tmp", journal_directory(g->journal), pin);
}

/* Each block of it is right or an error, and the volumes can be used. */
static int open_damaged_image(struct group *g, const char *pin, struct image **ret, struct error *err)
{
    char scratch[PATH_MAX];
    struct error why = *err;
    scratch_path(g, pin, scratch);
    log_error(g->log, "%s: the journal is damaged, verify it; what is left of it is used", why.message);
    *err = ERROR_INIT;
    int r = image_open_salvage(journal_directory(g->journal), pin, scratch, ret, err);
    return r < 0 ? error_context(err, "%.300s", why.message) : r;
}

static int open_image(struct group *g, struct lsn lsn, bool salvage, char pin[24], struct image **ret, struct error *err)
{
    snprintf(pin, 24, PIN_INTERNAL_PREFIX "%llu", (unsigned long long)++g->pin_counter);
    int r = journal_pin(g->journal, pin, lsn, true, err);
    if (r < 0) {
        pin[0] = '\0';
        return r;
    }
    r = image_open(journal_directory(g->journal), pin, ret, err);
    if (salvage && (r == -EBADMSG || r == -ENOENT || r == -EIO))
        r = open_damaged_image(g, pin, ret, err);
    if (r < 0)
        grains_close_image(g, pin, NULL);
    else
        image_populate(*ret); /* the volumes' reads go through it */
    return r;
}

int grains_open_image(struct group *g, struct lsn lsn, char pin[24], struct image **ret, struct error *err)
{
    return open_image(g, lsn, false, pin, ret, err);
}

int grains_open_live_image(struct group *g, struct lsn lsn, char pin[24], struct image **ret, struct error *err)
{
    return open_image(g, lsn, true, pin, ret, err);
}

void grains_close_image(struct group *g, char pin[24], struct image **image)
{
    struct error ignored = ERROR_INIT;
    if (image) {
        image_free(*image);
        *image = NULL;
    }
    char scratch[PATH_MAX];
    scratch_path(g, pin, scratch);
    if (pin[0] && access(scratch, F_OK) == 0 && io_remove_tree(scratch, &ignored) < 0)
        log_warning(g->log, "%s", ignored.message);
    if (pin[0] && journal_unpin(g->journal, pin, &ignored) < 0)
        log_warning(g->log, "%s", ignored.message);
    pin[0] = '\0';
}

void grains_swap_image(char pin[24], struct image **image, char other_pin[24], struct image **other)
{
    struct image *old = *image;
    char old_pin[24];
    memcpy(old_pin, pin, sizeof old_pin);
    *image = *other;
    memcpy(pin, other_pin, sizeof old_pin);
    *other = old;
    memcpy(other_pin, old_pin, sizeof old_pin);
}

/* ---- one grain ---- */

static uint32_t grain_bytes(const struct volume *v, uint64_t grain)
{
    uint64_t left = v->block.size_bytes - grain * GROUP_GRAIN_BYTES;
    return left < GROUP_GRAIN_BYTES ? (uint32_t)left : GROUP_GRAIN_BYTES;
}

int grains_read_stale(struct volume *v, uint64_t offset_bytes, uint32_t length_bytes, void *data, struct error *err)
{
    if (!v->group->stale_image)
        return error_set(err, -EIO, "what the rewind made of volume %s cannot be read yet", v->name);
    return image_read(v->group->stale_image, v->id, offset_bytes / BLOCK_SECTOR_BYTES, length_bytes / BLOCK_SECTOR_BYTES, data, err);
}

int grains_copy_back(struct volume *v, uint64_t grain, struct error *err)
{
    if (!grain_map_test(&v->stale, grain))
        return 0;
    uint32_t bytes = grain_bytes(v, grain);
    uint64_t offset = grain * GROUP_GRAIN_BYTES;
    char *data = io_alloc_pages(GROUP_GRAIN_BYTES);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot copy back");
    int r = grains_read_stale(v, offset, bytes, data, err);
    if (r == 0)
        r = io_is_zero(data, bytes) ? block_discard(v->backing, bytes, offset, 0, err)
                                 : block_pwrite(v->backing, data, bytes, offset, 0, err);
    io_free_pages(data, GROUP_GRAIN_BYTES);
    if (r == 0) {
        stale_clear(v, grain);
    }
    return r;
}

/* Appends RESYNC for each stretch of 4 KiB blocks in which the backing differs from the image. */
int grains_verify(struct volume *v, uint64_t grain, struct error *err)
{
    if (!grain_map_test(&v->unverified, grain))
        return 0;
    if (!v->group->compare_image) /* of a comparison that ended with the journal and could not begin again yet: it marks all that counts */
        return error_set(err, -ESHUTDOWN, "cannot compare volume %s yet", v->name);
    uint32_t bytes = grain_bytes(v, grain), at = 0;
    uint64_t offset = grain * GROUP_GRAIN_BYTES;
    char *live = io_alloc_pages(2 * GROUP_GRAIN_BYTES), *image = live ? live + GROUP_GRAIN_BYTES : NULL;
    if (!live)
        return error_errno(err, -ENOMEM, "cannot compare");
    struct error damage = ERROR_INIT;
    int r = seed_grain(v, grain, err); /* so that the image holds what nobody wrote */
    if (r == 0 && block_pread(v->backing, live, bytes, offset, err) < 0) { /* a bad sector: the rest of the grain counts all the same */
        r = volume_resync(v, offset / BLOCK_SECTOR_BYTES, bytes / BLOCK_SECTOR_BYTES, err);
        at = bytes;
    }
    bool unknown = r == 0 && at < bytes && image_read(v->group->compare_image, v->id, offset / BLOCK_SECTOR_BYTES,
                                        bytes / BLOCK_SECTOR_BYTES, image, &damage) < 0;
    while (r == 0 && at < bytes) {
        uint32_t end = at;
        while (end < bytes && (unknown || memcmp(live + end, image + end, BLOCK_PAGE_BYTES < bytes - end ? BLOCK_PAGE_BYTES : bytes - end) != 0))
            end += BLOCK_PAGE_BYTES;
        if (end > bytes)
            end = bytes;
        if (end > at)
            r = volume_resync(v, (offset + at) / BLOCK_SECTOR_BYTES, (end - at) / BLOCK_SECTOR_BYTES, err);
        at = end + BLOCK_PAGE_BYTES;
    }
    io_free_pages(live, 2 * GROUP_GRAIN_BYTES);
    if (r == 0)
        grain_map_clear(&v->unverified, grain);
    return r;
}

static bool covered(const struct volume *v, uint64_t grain, uint64_t lba, uint64_t length)
{
    uint64_t first = grain * GROUP_GRAIN_SECTORS, end = first + grain_bytes(v, grain) / BLOCK_SECTOR_BYTES;
    return lba <= first && lba + length >= end;
}

int grains_prepare(struct volume *v, uint64_t lba, uint64_t length, struct error *err)
{
    uint64_t last = (lba + length - 1) / GROUP_GRAIN_SECTORS;
    int r = 0;
    for (uint64_t grain = lba / GROUP_GRAIN_SECTORS; grain <= last && r == 0; grain++) {
        if (seed_before_write(v, grain, err) < 0 || covered(v, grain, lba, length))
            continue; /* not kept: journaling is suspended, and whether the write waits for it is decided there */
        r = grains_copy_back(v, grain, err);
        if (r == 0)
            r = grains_verify(v, grain, err);
        if (r == -ESHUTDOWN)
            r = 0; /* it stays unverified; all is compared once journaling goes on */
    }
    return r;
}

void grains_overwritten(struct volume *v, uint64_t lba, uint64_t length)
{
    uint64_t last = (lba + length - 1) / GROUP_GRAIN_SECTORS;
    for (uint64_t grain = lba / GROUP_GRAIN_SECTORS; grain <= last; grain++) {
        if (!covered(v, grain, lba, length))
            continue;
        stale_clear(v, grain);
        grain_map_clear(&v->unverified, grain);
    }
}

void grains_not_overwritten(struct volume *v, uint64_t lba, uint64_t length)
{
    struct error err = ERROR_INIT;
    uint64_t last = (lba + length - 1) / GROUP_GRAIN_SECTORS;
    int r = 0;
    for (uint64_t grain = lba / GROUP_GRAIN_SECTORS; grain <= last && r == 0; grain++)
        if (grain_map_test(&v->stale, grain))
            r = volume_resync(v, grain * GROUP_GRAIN_SECTORS, grain_bytes(v, grain) / BLOCK_SECTOR_BYTES, &err);
    if (r < 0 && r != -ESHUTDOWN)
        log_error(v->group->log, "%s", err.message);
}

/* ---- the worker ---- */

int grains_flush(struct group *g, struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < g->volume_count && r == 0; i++)
        r = volume_flush_backing(&g->volumes[i], err); /* a failure is the application's too */
    return r;
}

static bool stopping(struct group *g)
{
    return atomic_load(&g->stop);
}

/* Makes up to SAVE_EVERY_GRAINS grains of a map plain. 1: some are left. A grain that fails does not keep those after it waiting; the
 * first error is given back at the end. */
static int work_on(struct group *g, struct volume *v, struct grain_map *m, int (*work)(struct volume *, uint64_t, struct error *),
                   struct error *err)
{
    uint64_t grain = 0;
    int first = 0;
    for (uint32_t done = 0; done < SAVE_EVERY_GRAINS; done++) {
        struct error why = ERROR_INIT;
        pthread_rwlock_rdlock(&g->gate); /* the map may be replaced by a larger one otherwise */
        grain = grain_map_next(m, grain);
        if (grain == m->grains || stopping(g)) {
            bool left = grain != m->grains;
            pthread_rwlock_unlock(&g->gate);
            return first < 0 ? first : left;
        }
        uint32_t slot = range_lock_take(&g->ranges, v->id, grain * GROUP_GRAIN_SECTORS, GROUP_GRAIN_SECTORS);
        int r = work(v, grain, &why);
        range_lock_drop(&g->ranges, slot);
        pthread_rwlock_unlock(&g->gate);
        if (r < 0 && first == 0) {
            first = r;
            *err = why;
        }
        if (r == -ESHUTDOWN)
            break;
        grain += r < 0;
        if (r == 0 && m == &v->unverified)
            atomic_fetch_add(&g->resync_done, GROUP_GRAIN_BYTES);
    }
    return first < 0 ? first : 1;
}

/* A rewind has happened whose image could not be opened: the newest one has what stale grains hold. */
static int open_stale_image(struct group *g, struct error *err)
{
    struct journal_status status;
    MUTEX_GUARD(guard, &g->rewind_mutex);
    pthread_rwlock_wrlock(&g->gate);
    bool missing = !g->stale_image;
    int r = missing ? journal_sync(g->journal, -1, NULL, err) : 0;
    journal_status(g->journal, &status);
    if (missing && (r == 0 || r == -ESHUTDOWN))
        r = grains_open_live_image(g, status.latest, g->stale_pin, &g->stale_image, err);
    pthread_rwlock_unlock(&g->gate);
    return r;
}

static int copy_back_some(struct group *g, bool *ret_worked, struct error *err)
{
    int r = 0;
    bool any = false;
    pthread_rwlock_rdlock(&g->gate);
    bool missing = !g->stale_image;
    pthread_rwlock_unlock(&g->gate);
    any = stale_any(g);
    if (any && missing)
        r = open_stale_image(g, err);
    bool readable = r == 0;
    for (size_t i = 0; i < g->volume_count && readable && r <= 0; i++) {
        struct volume *v = &g->volumes[i];
        struct error why = ERROR_INIT;
        any |= atomic_load(&v->stale.set_count) > 0;
        int worked = work_on(g, v, &v->stale, grains_copy_back, &why);
        if (worked < 0 && r == 0)
            *err = why;
        if (r == 0)
            r = worked;
    }
    *ret_worked = any;
    pthread_rwlock_rdlock(&g->gate); /* a rewind saves its own bits: an older state must not come after it */
    bool needed = r == 0 && (any || g->stale_image);
    if (needed)
        r = stale_save(g, err);
    pthread_rwlock_unlock(&g->gate);
    if (r < 0 || !needed)
        return r;
    pthread_rwlock_wrlock(&g->gate);
    bool done = !stale_any(g);
    char pin[24];
    struct image *image = done ? g->stale_image : NULL;
    struct lsn target = g->rewind_target;
    memcpy(pin, g->stale_pin, sizeof pin);
    if (done) {
        g->stale_image = NULL;
        g->stale_pin[0] = '\0';
        stale_forget(g);
    }
    pthread_rwlock_unlock(&g->gate);
    if (image) {
        g->pending_damaged = false;
        grains_close_image(g, pin, &image);
        log_info(g->log, "the rewind to LSN %llu is copied back", (unsigned long long)target.n);
    }
    return 0;
}

/* Ends the interval of refused points. */
static int end_resync(struct group *g, struct error *err)
{
    struct journal_record end = {.op = OP_RESYNC_END, .flags = RECORD_LAST, .aux = g->compare_begin.n};
    struct lsn lsn;
    int r = grains_flush(g, err);
    if (r == 0)
        r = journal_append_durable(g->journal, &end, &lsn, err);
    if (r == 0)
        r = journal_refuse_end(g->journal, lsn, err);
    if (r < 0)
        return r;
    pthread_rwlock_wrlock(&g->gate);
    struct image *image = g->compare_image;
    g->compare_image = NULL;
    for (size_t i = 0; i < g->volume_count && !journal_is_suspended(g->journal); i++)
        atomic_store(&g->volumes[i].seed.inexact, false); /* what was is refused now */
    atomic_store(&g->pending_owed, false);
    pthread_rwlock_unlock(&g->gate);
    grains_close_image(g, g->compare_pin, &image);
    intents_compared(g);
    log_info(g->log, "the volumes are compared; points from LSN %llu on can be opened", (unsigned long long)lsn.n);
    return 0;
}

static int verify_some(struct group *g, bool *ret_worked, struct error *err)
{
    *ret_worked = false;
    if (!g->compare_image || journal_is_suspended(g->journal))
        return 0;
    *ret_worked = true;
    int left = 0, first = 0;
    for (size_t i = 0; i < g->volume_count; i++) { /* one that fails does not keep the others waiting */
        struct error why = ERROR_INIT;
        int r = work_on(g, &g->volumes[i], &g->volumes[i].unverified, grains_verify, &why);
        if (r < 0 && first == 0) {
            first = r;
            *err = why;
        }
        left |= r != 0;
    }
    if (first < 0)
        return first;
    return left || stopping(g) ? 0 : end_resync(g, err);
}

/* With the gate held exclusively. A grain that is stale or unverified is the same in the newest image: what was journaled of it since is what it holds. */
static int renew_image(struct group *g, char pin[24], struct image **image, struct error *err)
{
    struct journal_status status;
    struct image *newer = NULL;
    char newer_pin[24] = "";
    int r = journal_sync(g->journal, -1, NULL, err);
    journal_status(g->journal, &status);
    if (r == 0 || r == -ESHUTDOWN)
        r = grains_open_live_image(g, status.latest, newer_pin, &newer, err);
    if (r < 0)
        return error_context(err, "cannot let go of history beyond the quota");
    grains_swap_image(pin, image, newer_pin, &newer);
    grains_close_image(g, newer_pin, &newer);
    return 0;
}

/* Copying back and comparing take as long as they take, and their pins, which nobody can revoke, would keep all that is journaled meanwhile: in the end
 * the journal would be suspended for good. One that is suspended is compared anew. */
static void renew_images(struct group *g)
{
    struct journal_status status;
    struct error err = ERROR_INIT;
    uint64_t now = clock_boottime_ns(clock_system());
    journal_status(g->journal, &status);
    if (!status.quota_blocked || (g->renewed_ns && now - g->renewed_ns < RENEW_NS))
        return;
    g->renewed_ns = now;
    pthread_mutex_lock(&g->rewind_mutex);
    pthread_rwlock_wrlock(&g->gate);
    int r = g->stale_image ? renew_image(g, g->stale_pin, &g->stale_image, &err) : 0;
    if (g->compare_image && status.suspended) {
        grains_close_image(g, g->compare_pin, &g->compare_image);
        g->compare_due = true;
    } else if (g->compare_image && r == 0) {
        r = renew_image(g, g->compare_pin, &g->compare_image, &err);
    }
    pthread_rwlock_unlock(&g->gate);
    pthread_mutex_unlock(&g->rewind_mutex);
    if (r < 0)
        log_warning(g->log, "%s", err.message);
}

/* With the worker's mutex. Nobody wakes the worker when the journal fails: it looks once a second. */
static void wait_for_work(struct group *g)
{
    thread_cond_wait_ns(&g->worker_work, &g->worker_mutex, NS_PER_SECOND);
}

/* Copies back and compares some: what cannot be copied back does not keep points refused. Gives back the first error, unless there is more to do
 * at once. */
static int work_once(struct group *g, bool *ret_worked, struct error *err)
{
    struct error why = ERROR_INIT;
    bool copied = false, verified = false;
    int r = copy_back_some(g, &copied, err);
    pthread_mutex_lock(&g->worker_mutex);
    snprintf(g->copy_trouble, sizeof g->copy_trouble, "%s", r < 0 ? err->message : "");
    pthread_mutex_unlock(&g->worker_mutex);
    int verify_r = verify_some(g, &verified, &why);
    *ret_worked = copied || verified;
    if (verify_r >= 0)
        return verified ? 0 : r;
    if (r >= 0)
        *err = why;
    return r < 0 ? r : verify_r;
}

static void *worker_main(void *context)
{
    struct group *g = context;
    struct error err = ERROR_INIT;
    pthread_mutex_lock(&g->worker_mutex);
    while (!g->stop) {
        bool worked = false;
        pthread_mutex_unlock(&g->worker_mutex);
        renew_images(g);
        bool suspended = group_resume(g, &err) < 0;
        int r = work_once(g, &worked, &err);
        intents_tidy(g);
        pthread_mutex_lock(&g->worker_mutex);
        if (r < 0) {
            log_error(g->log, "background copy: %s; will try again", err.message);
            if (!g->stop)
                wait_for_work(g);
        } else if (!worked && !g->stop) {
            g->idle = !suspended;
            if (!suspended)
                pthread_cond_broadcast(&g->worker_idle);
            wait_for_work(g);
        }
    }
    g->idle = true;
    pthread_cond_broadcast(&g->worker_idle);
    pthread_mutex_unlock(&g->worker_mutex);
    return NULL;
}

void grains_wake(struct group *g)
{
    MUTEX_GUARD(guard, &g->worker_mutex);
    g->idle = false;
    pthread_cond_signal(&g->worker_work);
}

int grains_start(struct group *g, struct error *err)
{
    int r = thread_start(&g->worker, "group-worker", worker_main, g, err);
    g->worker_runs = r == 0;
    return r;
}

void grains_stop(struct group *g)
{
    if (!g->worker_runs)
        return;
    pthread_mutex_lock(&g->worker_mutex);
    g->stop = true;
    pthread_cond_broadcast(&g->worker_work);
    pthread_cond_broadcast(&g->resumed);
    pthread_mutex_unlock(&g->worker_mutex);
    pthread_join(g->worker, NULL);
    g->worker_runs = false;
    seed_stop(g);
}
