/* SPDX-License-Identifier: Apache-2.0 */
/* The page cache of indexes: a fixed number of frames in up to 16 shards, each a hash table under its own
 * mutex and a CLOCK. Pages are copied in and out (about 0.1 us), so nothing is pinned, and no lock is held
 * during I/O or while a caller works; two threads that miss the same page both read it, which is harmless.
 * Lock order: a shard's mutex is a leaf. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/index_internal.h"

#define SHARDS_MAX 16u
#define SHARD_FRAMES_MIN 64u
#define FRAMES_MIN 16u
#define FRAMES_MAX (1u << 28)
#define NO_FRAME UINT32_MAX

struct frame {
    uint64_t instance; /* 0: free */
    uint32_t page;
    uint32_t next; /* in the bucket's chain */
    bool referenced;
};

struct shard {
    pthread_mutex_t mutex;
    uint32_t hand;
    uint32_t *buckets;    /* bucket_mask + 1 */
    struct frame *frames; /* shard_frames */
    union index_page *pages;
};

struct index_cache {
    _Atomic uint64_t last_instance;
    atomic_bool has_journal;
    struct uuid journal_id; /* written once, before has_journal */
    uint32_t shard_count; /* a power of 2 */
    uint32_t shard_frames;
    uint32_t bucket_mask;
    size_t pages_bytes;
    union index_page *pages;
    struct frame *frames;
    uint32_t *buckets;
    struct shard shards[SHARDS_MAX];
};

void index_cache_set_journal(struct index_cache *cache, const struct uuid *journal_id)
{
    if (atomic_load(&cache->has_journal))
        return;
    cache->journal_id = *journal_id;
    atomic_store(&cache->has_journal, true);
}

bool index_cache_takes(const struct index_cache *cache, const struct uuid *journal_id)
{
    return !atomic_load(&cache->has_journal) || memcmp(&cache->journal_id, journal_id, sizeof *journal_id) == 0;
}

static int new_cache(size_t bytes, void *(*allocate)(size_t), struct index_cache **ret, struct error *err)
{
    size_t frames = bytes / (sizeof(union index_page) + sizeof(struct frame) + 2 * sizeof(uint32_t));
    frames = frames < FRAMES_MIN ? FRAMES_MIN : frames > FRAMES_MAX ? FRAMES_MAX : frames;
    struct index_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return error_errno(err, -ENOMEM, "cannot reserve %zu bytes for cached index pages", bytes);
    cache->shard_count = 1;
    while (cache->shard_count < SHARDS_MAX && frames / (cache->shard_count * 2) >= SHARD_FRAMES_MIN)
        cache->shard_count *= 2;
    cache->shard_frames = (uint32_t)(frames / cache->shard_count);
    uint32_t buckets = 1;
    while (buckets < cache->shard_frames)
        buckets *= 2;
    cache->bucket_mask = buckets - 1;
    size_t total = (size_t)cache->shard_frames * cache->shard_count;
    cache->pages_bytes = total * sizeof *cache->pages;
    cache->frames = calloc(total, sizeof *cache->frames);
    cache->buckets = malloc((size_t)buckets * cache->shard_count * sizeof *cache->buckets);
    cache->pages = cache->frames && cache->buckets ? allocate(cache->pages_bytes) : NULL;
    if (!cache->pages) {
        free(cache->buckets);
        free(cache->frames);
        free(cache);
        return error_errno(err, -ENOMEM, "cannot reserve %zu bytes for cached index pages", bytes);
    }
    memset(cache->buckets, 0xff, (size_t)buckets * cache->shard_count * sizeof *cache->buckets);
    for (uint32_t i = 0; i < cache->shard_count; i++) {
        struct shard *shard = &cache->shards[i];
        pthread_mutex_init(&shard->mutex, NULL);
        shard->buckets = cache->buckets + (size_t)i * buckets;
        shard->frames = cache->frames + (size_t)i * cache->shard_frames;
        shard->pages = cache->pages + (size_t)i * cache->shard_frames;
    }
    *ret = cache;
    return 0;
}

int index_cache_new(size_t bytes, struct index_cache **ret, struct error *err)
{
    return new_cache(bytes, io_alloc_pages, ret, err);
}
int index_cache_new_lazy(size_t bytes, struct index_cache **ret, struct error *err)
{
    return new_cache(bytes, io_reserve_pages, ret, err);
}

void index_cache_populate(struct index_cache *cache)
{
    io_populate(cache->pages, cache->pages_bytes);
}

void index_cache_free(struct index_cache *cache)
{
    if (!cache)
        return;
    for (uint32_t i = 0; i < cache->shard_count; i++)
        pthread_mutex_destroy(&cache->shards[i].mutex);
    io_free_pages(cache->pages, cache->pages_bytes);
    free(cache->buckets);
    free(cache->frames);
    free(cache);
}

uint64_t index_cache_new_instance(struct index_cache *cache)
{
    return atomic_fetch_add_explicit(&cache->last_instance, 1, memory_order_relaxed) + 1;
}

size_t index_cache_frames(const struct index_cache *cache)
{
    return (size_t)cache->shard_frames * cache->shard_count;
}

/* The finalizer of MurmurHash3 (public domain, Austin Appleby). */
static uint64_t mix(uint64_t instance, uint32_t page)
{
    uint64_t h = instance * 0x9e3779b97f4a7c15ull ^ page;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdull;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 33;
}

static struct shard *shard_of(struct index_cache *cache, uint64_t hash)
{
    return &cache->shards[hash >> 60 & (cache->shard_count - 1)];
}

static uint32_t find(const struct shard *shard, uint32_t bucket, uint64_t instance, uint32_t page)
{
    uint32_t at = shard->buckets[bucket];
    while (at != NO_FRAME && (shard->frames[at].page != page || shard->frames[at].instance != instance))
        at = shard->frames[at].next;
    return at;
}

bool index_cache_get(struct index_cache *cache, uint64_t instance, uint32_t page, void *ret_page)
{
    uint64_t hash = mix(instance, page);
    struct shard *shard = shard_of(cache, hash);
    MUTEX_GUARD(guard, &shard->mutex);
    uint32_t at = find(shard, (uint32_t)hash & cache->bucket_mask, instance, page);
    if (at == NO_FRAME)
        return false;
    shard->frames[at].referenced = true;
    memcpy(ret_page, &shard->pages[at], sizeof *shard->pages);
    return true;
}

static void unlink_frame(struct index_cache *cache, struct shard *shard, uint32_t victim)
{
    const struct frame *frame = &shard->frames[victim];
    uint32_t *link = &shard->buckets[(uint32_t)mix(frame->instance, frame->page) & cache->bucket_mask];
    while (*link != victim)
        link = &shard->frames[*link].next;
    *link = frame->next;
}

void index_cache_put(struct index_cache *cache, uint64_t instance, uint32_t page, const void *data)
{
    uint64_t hash = mix(instance, page);
    uint32_t bucket = (uint32_t)hash & cache->bucket_mask;
    struct shard *shard = shard_of(cache, hash);
    MUTEX_GUARD(guard, &shard->mutex);
    if (find(shard, bucket, instance, page) != NO_FRAME)
        return; /* another thread was faster; pages never change */
    while (shard->frames[shard->hand].referenced) {
        shard->frames[shard->hand].referenced = false;
        shard->hand = (shard->hand + 1) % cache->shard_frames;
    }
    uint32_t victim = shard->hand;
    shard->hand = (shard->hand + 1) % cache->shard_frames;
    struct frame *frame = &shard->frames[victim];
    if (frame->instance != 0)
        unlink_frame(cache, shard, victim);
    *frame = (struct frame){.instance = instance, .page = page, .next = shard->buckets[bucket]};
    shard->buckets[bucket] = victim;
    memcpy(&shard->pages[victim], data, sizeof *shard->pages);
}
