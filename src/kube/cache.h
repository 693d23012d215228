/* SPDX-License-Identifier: Apache-2.0 */
/* What an informer knows of its objects: by "namespace/name" a hash of the kept form, and its text if wanted.
 * Not thread-safe. */
#ifndef TIDEMARK_KUBE_CACHE_H
#define TIDEMARK_KUBE_CACHE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define CACHE_HASH_BYTES 16u

struct cache_entry {
    struct cache_entry *previous, *next; /* of all, in no order */
    uint8_t hash[CACHE_HASH_BYTES];
    uint32_t generation; /* of the list that had it last */
    char *text;          /* NULL: only the hash is kept */
    char key[];
};
struct cache {
    bool keeps_text;
    uint32_t generation;
    void *by_key;
    struct cache_entry *entries;
    size_t count;
};

enum cache_change { CACHE_SAME, CACHE_ADDED, CACHE_CHANGED };
/* Takes note of the object's form (keys in any order). */
int cache_put(struct cache *cache, const char *key, const json_t *object, enum cache_change *ret,
              struct error *err) MUST_CHECK;
struct cache_entry *cache_find(const struct cache *cache, const char *key);
void cache_remove(struct cache *cache, struct cache_entry *entry);
void cache_release(struct cache *cache);

#endif
