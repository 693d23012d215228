/* SPDX-License-Identifier: Apache-2.0 */
#include "kube/cache.h"

#include <errno.h>
#include <openssl/evp.h>
#include <search.h>
#include <string.h>

#include "base/cleanup.h"

#define KEY_BYTES 640u /* namespace 63, name 253; twice that for safety */

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct cache_entry *)a)->key, ((const struct cache_entry *)b)->key);
}

struct cache_entry *cache_find(const struct cache *cache, const char *key)
{
    char room[sizeof(struct cache_entry) + KEY_BYTES] __attribute__((aligned(_Alignof(struct cache_entry))));
    struct cache_entry *wanted = (struct cache_entry *)room;
    size_t length = strlen(key) + 1;
    if (length > KEY_BYTES)
        return NULL;
    memcpy(wanted->key, key, length);
    struct cache_entry **found = tfind(wanted, &cache->by_key, compare);
    return found ? *found : NULL;
}

static struct cache_entry *insert(struct cache *cache, const char *key)
{
    size_t length = strlen(key) + 1;
    struct cache_entry *e = calloc(1, sizeof *e + length);
    if (!e)
        return NULL;
    memcpy(e->key, key, length);
    if (!tsearch(e, &cache->by_key, compare)) {
        free(e);
        return NULL;
    }
    e->next = cache->entries;
    if (e->next)
        e->next->previous = e;
    cache->entries = e;
    cache->count++;
    return e;
}

int cache_put(struct cache *cache, const char *key, const json_t *object, enum cache_change *ret,
              struct error *err)
{
    _cleanup_free_ char *text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);
    unsigned char digest[EVP_MAX_MD_SIZE];
    if (strlen(key) >= KEY_BYTES)
        return error_set(err, -ENAMETOOLONG, "an object's name is too long: %s", key);
    if (!text || !EVP_Digest(text, strlen(text), digest, NULL, EVP_sha256(), NULL))
        return error_errno(err, -ENOMEM, "object %s", key);
    struct cache_entry *e = cache_find(cache, key);
    *ret = e ? CACHE_CHANGED : CACHE_ADDED;
    if (e && memcmp(e->hash, digest, sizeof e->hash) == 0) {
        e->generation = cache->generation;
        *ret = CACHE_SAME;
        return 0;
    }
    if (!e && !(e = insert(cache, key)))
        return error_errno(err, -ENOMEM, "object %s", key);
    memcpy(e->hash, digest, sizeof e->hash);
    e->generation = cache->generation;
    if (cache->keeps_text) {
        free(e->text);
        e->text = take_ptr(text);
    }
    return 0;
}

void cache_remove(struct cache *cache, struct cache_entry *e)
{
    tdelete(e, &cache->by_key, compare);
    if (e->previous)
        e->previous->next = e->next;
    else
        cache->entries = e->next;
    if (e->next)
        e->next->previous = e->previous;
    cache->count--;
    free(e->text);
    free(e);
}

void cache_release(struct cache *cache)
{
    while (cache->entries)
        cache_remove(cache, cache->entries);
}
