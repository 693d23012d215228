/* SPDX-License-Identifier: Apache-2.0 */
/* What comes from lists and watches into the cache, and to the callbacks. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "kube/informer_internal.h"
#include "lib/json.h"

#define KEY_BYTES 640u

static int make_key(const json_t *object, char key[KEY_BYTES], struct error *err)
{
    const char *namespace = kube_object_namespace(object), *name = kube_object_name(object);
    if (!name || snprintf(key, KEY_BYTES, "%s/%s", namespace ? namespace : "", name) >= (int)KEY_BYTES)
        return error_set(err, -EPROTO, "an object without a name, or with one that is too long");
    return 0;
}

/* What some other server than Kubernetes' own lists may have no name: nobody can ask for it, and it keeps no other out. */
static bool is_nameless(const json_t *object)
{
    const char *name = kube_object_name(object);
    return !name || !*name || strlen(name) >= KEY_BYTES / 2;
}

static uint64_t version_of(const char *text)
{
    return text ? strtoull(text, NULL, 10) : 0;
}

static void tell(struct kube_informer *i, enum kube_event event, const char *key, uint64_t version,
                 json_t *object)
{
    char namespace[KEY_BYTES];
    const char *slash = strchr(key, '/');
    snprintf(namespace, sizeof namespace, "%.*s", (int)(slash - key), key);
    i->options.ops.event(i->options.ops.context, &i->resource, event, namespace, slash + 1, version, object);
}

static bool reduce(struct kube_informer *i, json_t *object)
{
    bool counts = !i->options.ops.reduce || i->options.ops.reduce(i->options.ops.context, &i->resource, object);
    /* Only now: they say who asked for a field, which reduce may want to know. */
    json_object_del(json_object_get(object, "metadata"), "managedFields");
    return counts;
}

int informer_object(struct kube_informer *i, json_t *object, struct error *err)
{
    char key[KEY_BYTES];
    enum cache_change change;
    uint64_t version = version_of(kube_object_version(object));
    if (is_nameless(object))
        return 0;
    int r = make_key(object, key, err);
    if (r < 0)
        return r;
    if (!reduce(i, object)) {
        pthread_mutex_lock(&i->set->mutex);
        bool known = cache_find(&i->cache, key) != NULL;
        pthread_mutex_unlock(&i->set->mutex);
        return known ? informer_deleted(i, object, version, err) : 0;
    }
    pthread_mutex_lock(&i->set->mutex);
    r = cache_put(&i->cache, key, object, &change, err);
    pthread_mutex_unlock(&i->set->mutex);
    if (r == 0 && change != CACHE_SAME) /* I2 */
        tell(i, change == CACHE_ADDED ? KUBE_ADDED : KUBE_CHANGED, key, version, object);
    return r;
}

static void drop(struct kube_informer *i, struct cache_entry *entry, uint64_t version, json_t *object)
{
    _cleanup_json_ json_t *kept = NULL;
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%s", entry->key);
    if (entry->text)
        kept = json_loads(entry->text, JSON_ALLOW_NUL, NULL);
    pthread_mutex_lock(&i->set->mutex);
    cache_remove(&i->cache, entry);
    pthread_mutex_unlock(&i->set->mutex);
    tell(i, KUBE_DELETED, key, version, kept ? kept : object);
}

int informer_deleted(struct kube_informer *i, json_t *object, uint64_t version, struct error *err)
{
    char key[KEY_BYTES];
    if (is_nameless(object))
        return 0;
    int r = make_key(object, key, err);
    if (r < 0)
        return r;
    struct cache_entry *entry = cache_find(&i->cache, key); /* only this thread changes it */
    if (entry)
        drop(i, entry, version, object);
    return 0;
}

void informer_sweep(struct kube_informer *i, const char *version)
{
    for (struct cache_entry *e = i->cache.entries, *next; e; e = next) {
        next = e->next;
        if (e->generation != i->cache.generation)
            drop(i, e, version_of(version), NULL);
    }
}

int informer_set_version(struct kube_informer *i, const char *version, struct error *err)
{
    if (i->version && strcmp(i->version, version) == 0)
        return 0;
    char *copy = strdup(version);
    if (!copy)
        return error_errno(err, -ENOMEM, "watch");
    free(i->version);
    i->version = copy;
    return 0;
}

/* An ERROR event carries a Status; 410 means that the version is too old to watch from. */
static int watch_error(struct kube_informer *i, const json_t *status)
{
    json_int_t code = json_integer_value(json_object_get(status, "code"));
    i->expired = code == 410;
    return kube_status_error((long)code, status, "watch of", i->path, NULL, &i->trouble);
}

int informer_line(void *context, const char *text, size_t length_bytes)
{
    struct kube_informer *i = context;
    _cleanup_json_ json_t *event = NULL;
    json_t *object = NULL;
    const char *type = NULL;
    int r = json_parse_foreign_cut("event", text, length_bytes, &event, &i->trouble);
    if (r < 0 || (r = json_get_string(event, "type", &type, &i->trouble)) < 0 ||
        (r = json_get_object(event, "object", &object, &i->trouble)) < 0)
        return r;
    if (strcmp(type, "ERROR") == 0)
        return watch_error(i, object);
    const char *version = kube_object_version(object);
    _cleanup_free_ char *kept = version ? strdup(version) : NULL; /* reduce may drop it */
    if (strcmp(type, "ADDED") == 0 || strcmp(type, "MODIFIED") == 0)
        r = informer_object(i, object, &i->trouble);
    else if (strcmp(type, "DELETED") == 0) {
        bool counts = reduce(i, object);
        (void)counts; /* what is in the cache goes, whatever is said of its last form */
        r = informer_deleted(i, object, version_of(kept), &i->trouble);
    }
    i->failures = 0;
    /* Only after the event was passed on: what a watch goes on from has been seen. */
    return r < 0 || !kept ? r : informer_set_version(i, kept, &i->trouble);
}
