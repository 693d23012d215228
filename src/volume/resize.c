/* SPDX-License-Identifier: Apache-2.0 */
/* A volume grows while it is used. A crash in any step leaves the old size, and the step is repeated: the
 * backing first (larger than the volume does no harm), then the journal, whose manifest says what counts,
 * then what exports see. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "volume/group_internal.h"

#define ZERO_BYTES (1ull << 30) /* at a time */

int group_grow_backing(struct group *g, struct volume *v, uint32_t id, uint64_t old_bytes,
                       uint64_t size_bytes, struct error *err)
{
    int r = block_file_grow(v->file, size_bytes, err);
    v->backing->size_bytes = v->file->size_bytes; /* also of a fill */
    for (uint64_t at = old_bytes; at < size_bytes && r == 0; at += ZERO_BYTES) {
        uint64_t left = size_bytes - at; /* a device may hold anything there */
        r = block_zero(v->backing, left < ZERO_BYTES ? left : ZERO_BYTES, at, 0, err);
    }
    if (r == 0)
        r = block_flush(v->backing, err);
    return r < 0 ? r : journal_resize(g->journal, id, size_bytes, err);
}

/* A copy of the map with more room. */
static int grow_map(const struct grain_map *from, uint64_t grains, struct grain_map *ret, struct error *err)
{
    *ret = (struct grain_map){0};
    int r = grain_map_init(ret, grains, err);
    for (uint64_t w = 0; r == 0 && w < (from->grains + 63) / 64; w++)
        atomic_store(&ret->words[w], atomic_load(&from->words[w]));
    if (r == 0)
        atomic_store(&ret->set_count, atomic_load(&from->set_count));
    return r;
}

static void swap_map(struct grain_map *m, struct grain_map *other)
{
    _Atomic uint64_t *words = m->words;
    m->words = other->words;
    m->grains = other->grains; /* as many are set in both */
    other->words = words;
}

/* With the gate closed: nobody uses the maps. */
static int publish(struct volume *v, uint64_t size_bytes, struct error *err)
{
    struct grain_map stale, unverified = {0};
    uint64_t grains = (size_bytes + GROUP_GRAIN_BYTES - 1) / GROUP_GRAIN_BYTES;
    int r = grow_map(&v->stale, grains, &stale, err);
    if (r == 0)
        r = grow_map(&v->unverified, grains, &unverified, err);
    if (r == 0)
        r = intent_resize(v->intent, size_bytes, err);
    if (r == 0) {
        swap_map(&v->stale, &stale);
        swap_map(&v->unverified, &unverified);
        __atomic_store_n(&v->block.size_bytes, size_bytes, __ATOMIC_RELEASE);
        if (v->stale_live.words)
            stale_publish(v->group);
    }
    grain_map_release(&stale);
    grain_map_release(&unverified);
    return r;
}

static int check_growth(struct group *g, const struct volume *v, uint64_t size_bytes, struct error *err)
{
    struct journal_status status;
    uint64_t now = v->block.size_bytes;
    journal_status(g->journal, &status);
    if (size_bytes % BLOCK_PAGE_BYTES)
        return error_set(err, -EINVAL, "volume %s: the size %llu is not a multiple of 4096 bytes", v->name,
                         (unsigned long long)size_bytes);
    if (size_bytes < now)
        return error_set(
            err, -EINVAL,
            "volume %s has %llu bytes: a volume can be made larger, but not smaller (its file system "
            "and its history need them)",
            v->name, (unsigned long long)now);
    if (size_bytes > now && atomic_load(&v->seed.wanted))
        return error_set(
            err, -EBUSY,
            "volume %s cannot grow before all that it held is copied to the history: try again when "
            "`tidemark status` shows that it is seeded",
            v->name);
    if (size_bytes > now && status.suspended)
        return error_set(err, -ESHUTDOWN, "volume %s cannot grow while journaling is suspended: %s", v->name,
                         status.reason);
    return 0;
}

int group_resize(struct group *g, const char *name, uint64_t size_bytes, struct error *err)
{
    struct volume *v = NULL;
    pthread_mutex_lock(&g->rewind_mutex); /* no rewind meanwhile, nor another growth */
    for (size_t i = 0; i < g->volume_count; i++)
        if (strcmp(g->volumes[i].name, name) == 0)
            v = &g->volumes[i];
    int r = v ? check_growth(g, v, size_bytes, err) : error_set(err, -ENOENT, "there is no volume %s", name);
    if (r == 0 && size_bytes > v->block.size_bytes) {
        uint64_t old_bytes = v->block.size_bytes;
        r = group_grow_backing(g, v, v->id, old_bytes, size_bytes, err);
        pthread_rwlock_wrlock(&g->gate);
        if (r == 0)
            r = publish(v, size_bytes, err);
        pthread_rwlock_unlock(&g->gate);
        if (r == 0)
            log_info(g->log, "volume %s has grown from %llu to %llu bytes", name,
                     (unsigned long long)old_bytes, (unsigned long long)size_bytes);
    }
    pthread_mutex_unlock(&g->rewind_mutex);
    return r < 0 ? error_context(err, "cannot make volume %s larger", name) : 0;
}

void group_configure(struct group *g, enum group_ack ack, bool holds)
{
    pthread_rwlock_wrlock(&g->gate); /* no write is half done */
    g->ack = ack;
    g->holds = holds;
    pthread_rwlock_unlock(&g->gate);
    pthread_mutex_lock(&g->worker_mutex);
    pthread_cond_broadcast(&g->resumed); /* who waits looks again whether it still has to */
    pthread_mutex_unlock(&g->worker_mutex);
}
