/* SPDX-License-Identifier: Apache-2.0 */
/* The store: what is known of each application's objects, what waits to be written, and the thread that
 * writes it. */
#include "controller/object_store.h"

#include <errno.h>
#include <search.h>
#include <string.h>
#include <time.h>

#include "app/objects.h"
#include "base/cleanup.h"
#include "base/thread.h"
#include "controller/object_store_internal.h"
#include "lib/json.h"

#define RETRY_S 1

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct known_object *)a)->name, ((const struct known_object *)b)->name);
}

/* ---- known objects; the mutex is held ---- */
static struct known_object *find_known(struct stored_application *a, const char *name)
{
    char room[sizeof(struct known_object) + OBJECT_NAME_BYTES]
        __attribute__((aligned(_Alignof(struct known_object))));
    struct known_object *wanted = (struct known_object *)room;
    snprintf(wanted->name, OBJECT_NAME_BYTES, "%s", name);
    struct known_object **found = tfind(wanted, &a->by_name, compare);
    return found ? *found : NULL;
}

static struct known_object *add_known(struct stored_application *a, const char *name)
{
    size_t length = strlen(name) + 1;
    struct known_object *k = calloc(1, sizeof *k + length);
    if (!k)
        return NULL;
    memcpy(k->name, name, length);
    if (!tsearch(k, &a->by_name, compare)) {
        free(k);
        return NULL;
    }
    k->next = a->known;
    if (k->next)
        k->next->previous = k;
    a->known = k;
    return k;
}

static void forget_known(struct stored_application *a, struct known_object *k)
{
    tdelete(k, &a->by_name, compare);
    if (k->previous)
        k->previous->next = k->next;
    else
        a->known = k->next;
    if (k->next)
        k->next->previous = k->previous;
    free(k);
}

static struct stored_application *find_application(struct object_store *store, const char *namespace,
                                                   const char *name)
{
    for (struct stored_application *a = store->applications; a; a = a->next)
        if (strcmp(a->name, name) == 0 && strcmp(a->namespace, namespace) == 0)
            return a;
    return NULL;
}

static void free_application(struct stored_application *a)
{
    while (a->known)
        forget_known(a, a->known);
    for (struct pending_change *c = a->first, *next; c; c = next) {
        next = c->next;
        free(c->content);
        free(c);
    }
    free(a->gap);
    free(a->namespace);
    free(a->name);
    free(a);
}

/* ---- what waits; the mutex is held ---- */
static int enqueue(struct object_store *store, struct stored_application *a, const char *name, char *content)
{
    size_t length = strlen(name) + 1,
           bytes = sizeof(struct pending_change) + length + (content ? strlen(content) + 1 : 0);
    struct pending_change *c = calloc(1, sizeof *c + length);
    if (!c) {
        free(content);
        return -ENOMEM;
    }
    memcpy(c->name, name, length);
    c->content = content;
    c->bytes = bytes;
    if (!a->first)
        a->turn = ++store->turns;
    *a->last = c;
    a->last = &c->next;
    a->pending++;
    store->pending_bytes += bytes;
    pthread_cond_broadcast(&store->changed);
    return 0;
}

/* A gap is said before what follows it. */
static int enqueue_gap(struct object_store *store, struct stored_application *a)
{
    return a->gap ? enqueue(store, a, "", take_ptr(a->gap)) : 0;
}

/* The content as it is journaled: Secrets sealed. */
static int make_content(struct object_store *store, const char *name, const json_t *object, char **ret,
                        struct error *err)
{
    _cleanup_json_ json_t *sealed = NULL;
    int r = object_is_secret(object) ? sealing_seal(store->sealing, name, object, &sealed, err) : 0;
    if (r < 0)
        return r;
    *ret = object_canonical(sealed ? sealed : object);
    return *ret ? 0 : error_errno(err, -ENOMEM, "%s", name);
}

int object_store_put(struct object_store *store, const char *namespace, const char *application,
                     const char *name, const json_t *object, uint64_t version, struct error *err)
{
    uint8_t hash[STORE_HASH_BYTES] = {0};
    _cleanup_free_ char *content = NULL;
    if (strlen(name) >= OBJECT_NAME_BYTES)
        return error_set(err, -ENAMETOOLONG, "%s", name);
    if (object && store_hash(object, hash) < 0)
        return error_errno(err, -ENOMEM, "%s", name);
    MUTEX_GUARD(guard, &store->mutex);
    while (store->pending_bytes > OBJECT_STORE_PENDING_BYTES && !store->interrupted) /* S4 */
        pthread_cond_wait(&store->changed, &store->mutex);
    if (store->interrupted)
        return error_set(err, -ECANCELED, "%s: interrupted", name);
    struct stored_application *a = find_application(store, namespace, application);
    if (!a || a->dropped)
        return error_set(err, -ENOENT, "the application %s/%s is not protected", namespace, application);
    struct known_object *k = find_known(a, name);
    if (a->ended && (!version || version > a->ended)) /* S7 */
        return 0;
    if (k && version && version < k->version) /* S3 */
        return 0;
    if (k)
        k->seen = true;
    bool same = k ? object ? !k->deleted && memcmp(k->hash, hash, sizeof hash) == 0 : k->deleted : !object;
    if (k && version)
        k->version = version;
    if (same) /* S1 */
        return 0;
    int r = object ? make_content(store, name, object, &content, err) : 0;
    if (r < 0)
        return r;
    if (!k && !(k = add_known(a, name)))
        return error_errno(err, -ENOMEM, "%s", name);
    if (enqueue_gap(store, a) < 0 || enqueue(store, a, name, take_ptr(content)) < 0)
        return error_errno(err, -ENOMEM, "%s", name);
    k->seen = true;
    k->deleted = !object;
    k->version = version;
    memcpy(k->hash, hash, sizeof hash);
    if (!object && !a->listing)
        forget_known(a, k);
    return 0;
}

void object_store_list(struct object_store *store, const char *namespace, const char *application,
                       bool begins)
{
    MUTEX_GUARD(guard, &store->mutex);
    struct stored_application *a = find_application(store, namespace, application);
    if (!a)
        return;
    a->listing = begins;
    for (struct known_object *k = a->known, *next; k; k = next) {
        next = k->next;
        k->seen = k->seen && !begins;
        if (k->deleted)
            forget_known(a, k);
    }
}

static bool is_of(const char *name, const char *group, const char *kind)
{
    struct object_id id;
    struct error ignored = ERROR_INIT;
    if (!kind)
        return true;
    return object_id_parse(name, &id, &ignored) == 0 && strcmp(id.group, group) == 0 &&
           strcmp(id.kind, kind) == 0;
}

/* The mutex is held. */
static int sweep(struct object_store *store, struct stored_application *a, const char *group, const char *kind,
                 uint64_t version, struct error *err)
{
    for (struct known_object *k = a->ended ? NULL : a->known, *next; k; k = next) {
        next = k->next;
        if (!is_of(k->name, group, kind) || k->deleted)
            continue;
        if (!k->seen && (!version || k->version <= version)) {
            if (enqueue_gap(store, a) < 0 || enqueue(store, a, k->name, NULL) < 0)
                return error_errno(err, -ENOMEM, "%s/%s", a->namespace, a->name);
            forget_known(a, k);
        }
    }
    return 0;
}

int object_store_sweep(struct object_store *store, const char *namespace, const char *application,
                       const char *group, const char *kind, uint64_t version, struct error *err)
{
    MUTEX_GUARD(guard, &store->mutex);
    struct stored_application *a = find_application(store, namespace, application);
    return a ? sweep(store, a, group, kind, version, err) : 0;
}

void object_store_list_kind(struct object_store *store, const char *group, const char *kind)
{
    MUTEX_GUARD(guard, &store->mutex);
    for (struct stored_application *a = store->applications; a; a = a->next)
        for (struct known_object *k = a->known; k && !a->listing; k = k->next)
            if (is_of(k->name, group, kind))
                k->seen = false;
}

int object_store_sweep_kind(struct object_store *store, const char *group, const char *kind, struct error *err)
{
    MUTEX_GUARD(guard, &store->mutex);
    for (struct stored_application *a = store->applications; a; a = a->next)
        if (!a->listing) {
            int r = sweep(store, a, group, kind, 0, err);
            if (r < 0)
                return r;
        }
    return 0;
}

static void gap_of(struct stored_application *a, const char *reason)
{
    if (!a->gap)
        a->gap = strdup(reason);
}

void object_store_gap(struct object_store *store, const char *namespace, const char *application,
                      const char *reason)
{
    MUTEX_GUARD(guard, &store->mutex);
    for (struct stored_application *a = store->applications; a; a = a->next)
        if (!namespace || (strcmp(a->namespace, namespace) == 0 && strcmp(a->name, application) == 0))
            gap_of(a, reason);
    pthread_cond_broadcast(&store->changed);
}

/* ---- keeping ---- */
static int load_known(void *context, const char *name, json_t *object, struct error *err)
{
    struct known_object *k = add_known(context, name);
    return k && store_hash(object, k->hash) == 0 ? 0 : error_errno(err, -ENOMEM, "%s", name);
}

static int see_nothing(void *context, const char *name, const char *content, size_t bytes, struct lsn lsn, struct error *err)
{
    (void)context, (void)name, (void)content, (void)bytes, (void)lsn, (void)err;
    return 0;
}

/* `ret_anew`: the journal's own list is damaged (a wrong key is another matter): nothing is known, and all of it is journaled again. */
static int load_all(struct object_store *store, struct journal *journal, struct stored_application *a, bool *ret_anew, struct error *err)
{
    struct journal_status status;
    struct error why = ERROR_INIT;
    journal_status(journal, &status);
    int r = store_objects(store, journal, status.latest, load_known, a, err);
    *ret_anew = r == -EBADMSG && journal_objects(journal, status.latest, see_nothing, NULL, &why) == -EBADMSG;
    if (!*ret_anew)
        return r;
    log_error(store->log, "%s/%s: %s; all its objects are journaled again", a->namespace, a->name, why.message);
    while (a->known)
        forget_known(a, a->known);
    return 0;
}

int object_store_keep(struct object_store *store, const char *namespace, const char *application,
                      bool *ret_resumed, struct error *err)
{
    MUTEX_GUARD(keeping, &store->keeping); /* or two would keep it */
    {
        MUTEX_GUARD(guard, &store->mutex);
        struct stored_application *known = find_application(store, namespace, application);
        if (known) {
            if (known->dropped)
                known->ended = 0;
            known->dropped = false;
            *ret_resumed = true;
            return 0;
        }
    }
    struct stored_application *a = calloc(1, sizeof *a);
    struct open_journal *open = NULL;
    bool existed = false, anew = false;
    if (!a || !(a->namespace = strdup(namespace)) || !(a->name = strdup(application))) {
        if (a)
            free_application(a);
        return error_errno(err, -ENOMEM, "%s/%s", namespace, application);
    }
    a->last = &a->first;
    int r = store_acquire(store, namespace, application, true, &open, &existed, err);
    if (r == 0 && existed) {
        r = load_all(store, open->journal, a, &anew, err);
        gap_of(a, "the controller was not looking");
    }
    store_release(store, open);
    if (r < 0) {
        free_application(a);
        return r;
    }
    MUTEX_GUARD(guard, &store->mutex);
    a->next = store->applications;
    store->applications = a;
    if (anew && (r = enqueue_gap(store, a)) == 0)
        r = enqueue(store, a, JOURNAL_EVERY_OBJECT, NULL);
    if (r < 0) /* no memory: later points miss the list, and the next start begins again */
        log_error(store->log, "%s/%s: its objects cannot be journaled again: %s", namespace, application, strerror(-r));
    *ret_resumed = existed;
    pthread_cond_broadcast(&store->changed);
    return 0;
}

void object_store_drop(struct object_store *store, const char *namespace, const char *application)
{
    MUTEX_GUARD(guard, &store->mutex);
    struct stored_application *a = find_application(store, namespace, application);
    if (a)
        a->dropped = true;
    pthread_cond_broadcast(&store->changed);
}

int object_store_end(struct object_store *store, const char *namespace, uint64_t version, const char *reason, struct error *err)
{
    MUTEX_GUARD(guard, &store->mutex);
    for (struct stored_application *a = store->applications; a; a = a->next) {
        if (strcmp(a->namespace, namespace) != 0 || a->ended || a->dropped)
            continue;
        char *why = strdup(reason);
        if (!why || enqueue_gap(store, a) < 0) {
            free(why);
            return error_errno(err, -ENOMEM, "%s/%s", namespace, a->name);
        }
        if (enqueue(store, a, "", why) < 0)
            return error_errno(err, -ENOMEM, "%s/%s", namespace, a->name);
        a->ended = version;
    }
    return 0;
}

bool object_store_has_ended(struct object_store *store, const char *namespace, const char *application)
{
    MUTEX_GUARD(guard, &store->mutex);
    struct stored_application *a = find_application(store, namespace, application);
    return a && a->ended;
}

bool object_store_keeps(struct object_store *store, const char *namespace, const char *application)
{
    MUTEX_GUARD(guard, &store->mutex);
    struct stored_application *a = find_application(store, namespace, application);
    return a && !a->dropped;
}

/* ---- the writers ---- */
/* The one that has waited longest with something to write (S5), and that nobody writes (S2). Frees dropped
 * ones. */
static struct stored_application *next_application(struct object_store *store)
{
    struct stored_application *best = NULL;
    for (struct stored_application **link = &store->applications; *link;) {
        struct stored_application *a = *link;
        if (a->writing) {
            link = &a->next;
            continue;
        }
        if (a->dropped && !a->first) {
            *link = a->next;
            free_application(a);
            continue;
        }
        if (a->gap && !a->first && enqueue_gap(store, a) < 0)
            log_error(store->log, "out of memory");
        if (a->first && (!best || a->turn < best->turn))
            best = a;
        link = &a->next;
    }
    return best;
}

static void write_application(struct object_store *store, struct stored_application *a,
                              struct pending_change *changes)
{
    struct open_journal *open = NULL;
    struct error err = ERROR_INIT;
    bool existed;
    size_t before = 0, after = 0, bytes = 0, left = 0;
    for (struct pending_change *c = changes; c; c = c->next, before++)
        bytes += c->bytes;
    int r = store_acquire(store, a->namespace, a->name, true, &open, &existed, &err);
    if (r == 0)
        r = store_write(store, open->journal, &changes, &err);
    store_release(store, open);
    MUTEX_GUARD(guard, &store->mutex);
    struct pending_change **end = &changes;
    for (; *end; end = &(*end)->next, after++)
        left += (*end)->bytes;
    if (after) { /* back to the front */
        *end = a->first;
        if (!a->first)
            a->last = end;
        a->first = changes;
    }
    a->pending -= before - after;
    a->written += before - after;
    store->pending_bytes -= bytes - left;
    snprintf(a->error, sizeof a->error, "%s", r < 0 ? err.message : "");
    if (r < 0) {
        struct timespec until;
        log_error(store->log, "the objects of %s/%s cannot be journaled: %s", a->namespace, a->name,
                  err.message);
        pthread_cond_broadcast(&store->changed); /* who flushes is told */
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += RETRY_S;
        pthread_cond_timedwait(&store->changed, &store->mutex, &until);
    }
    a->writing = false;
    pthread_cond_broadcast(&store->changed);
}

static void *writer_main(void *context)
{
    struct object_store *store = context;
    for (;;) {
        struct stored_application *a;
        struct pending_change *changes;
        {
            MUTEX_GUARD(guard, &store->mutex);
            while (!(a = next_application(store)) && !store->stopping)
                pthread_cond_wait(&store->changed, &store->mutex);
            if (!a ||
                (store->stopping && *a->error)) /* what cannot be written is found again at the next start */
                return NULL;
            a->writing = true;
            changes = take_ptr(a->first);
            a->last = &a->first;
        }
        write_application(store, a, changes);
    }
}

static void free_store(struct object_store *store)
{
    store_close_journals(store);
    for (struct stored_application *a = store->applications, *next; a; a = next) {
        next = a->next;
        free_application(a);
    }
    pthread_cond_destroy(&store->changed);
    pthread_cond_destroy(&store->places_changed);
    pthread_mutex_destroy(&store->mutex);
    pthread_mutex_destroy(&store->io);
    pthread_mutex_destroy(&store->keeping);
    pthread_mutex_destroy(&store->verifying);
    free(store->directory);
    free(store);
}

int object_store_new(const char *directory, const struct sealing *sealing, const struct log *log,
                     unsigned journals, struct object_store **ret, struct error *err)
{
    struct object_store *store = calloc(1, sizeof *store);
    int r = 0;
    if (!store || !(store->directory = strdup(directory)) || store_new_places(store, journals) < 0) {
        if (store)
            free(store->directory);
        free(store);
        return error_errno(err, -ENOMEM, "object store");
    }
    store->sealing = sealing;
    store->log = log;
    pthread_mutex_init(&store->verifying, NULL);
    pthread_mutex_init(&store->keeping, NULL);
    pthread_mutex_init(&store->io, NULL);
    pthread_mutex_init(&store->mutex, NULL);
    pthread_cond_init(&store->changed, NULL);
    pthread_cond_init(&store->places_changed, NULL);
    for (; store->writer_count < OBJECT_STORE_WRITERS && r == 0; store->writer_count += r == 0)
        r = thread_start(&store->writers[store->writer_count], "objects-writer", writer_main, store, err);
    if (r < 0) {
        object_store_free(store);
        return r;
    }
    *ret = store;
    return 0;
}

void object_store_interrupt(struct object_store *store)
{
    if (!store)
        return;
    MUTEX_GUARD(guard, &store->mutex);
    store->interrupted = true;
    pthread_cond_broadcast(&store->changed);
}

void object_store_free(struct object_store *store)
{
    if (!store)
        return;
    pthread_mutex_lock(&store->mutex);
    store->stopping = true;
    pthread_cond_broadcast(&store->changed);
    pthread_mutex_unlock(&store->mutex);
    for (unsigned i = 0; i < store->writer_count; i++)
        pthread_join(store->writers[i], NULL);
    free_store(store);
}

/* ---- questions ---- */
int object_store_flush(struct object_store *store, const char *namespace, const char *application,
                       struct error *err)
{
    MUTEX_GUARD(guard, &store->mutex);
    struct stored_application *a = find_application(store, namespace, application);
    if (a && enqueue_gap(store, a) < 0)
        return error_errno(err, -ENOMEM, "%s/%s", namespace, application);
    const uint64_t queued = a ? a->written + a->pending : 0;
    for (; a && a->pending && a->written < queued; a = find_application(store, namespace, application)) {
        if (*a->error)
            return error_set(err, -EIO, "the objects of %s/%s cannot be journaled: %s", namespace,
                             application, a->error);
        if (store->interrupted)
            return error_set(err, -ECANCELED, "the objects of %s/%s: interrupted", namespace, application);
        pthread_cond_wait(&store->changed, &store->mutex);
    }
    return 0;
}

static int collect(void *context, const char *name, json_t *object, struct error *err)
{
    return json_object_set(context, name, object) < 0 ? error_errno(err, -ENOMEM, "%s", name) : 0;
}

const char *object_store_directory(const struct object_store *store)
{
    return store->directory;
}

int object_store_visit(struct object_store *store, const char *namespace, const char *application,
                       const struct point *point, object_visit visit, void *context,
                       struct journal_point *ret_point, struct error *err)
{
    struct open_journal *open = NULL;
    struct journal_point found;
    bool existed;
    int r = object_store_flush(store, namespace, application, err);
    if (r < 0)
        return r;
    r = store_acquire(store, namespace, application, false, &open, &existed, err);
    if (r == 0)
        r = journal_resolve(open->journal, point, &found, err);
    if (r == 0 && visit)
        r = store_objects(store, open->journal, found.lsn, visit, context, err);
    store_release(store, open);
    if (r == 0 && ret_point)
        *ret_point = found;
    return r;
}

int object_store_read(struct object_store *store, const char *namespace, const char *application,
                      const struct point *point, json_t **ret_set, struct journal_point *ret_point,
                      struct error *err)
{
    _cleanup_json_ json_t *set = json_object();
    int r = set ? object_store_visit(store, namespace, application, point, collect, set, ret_point, err)
                : error_errno(err, -ENOMEM, "%s/%s", namespace, application);
    if (r == 0)
        *ret_set = take_ptr(set);
    return r;
}

int object_store_tag(struct object_store *store, const char *namespace, const char *application,
                     const char *name, struct journal_point *ret, struct error *err)
{
    struct open_journal *open = NULL;
    bool existed;
    if (!object_store_keeps(store, namespace, application))
        return error_set(err, -ENOENT, "the application %s/%s is not protected", namespace, application);
    int r = object_store_flush(store, namespace, application, err);
    if (r < 0)
        return r;
    r = store_acquire(store, namespace, application, false, &open, &existed, err);
    if (r == 0)
        r = journal_tag(open->journal, name, NULL, ret, err);
    store_release(store, open);
    return r;
}

int object_store_status(struct object_store *store, const char *namespace, const char *application,
                        struct object_store_status *ret, struct error *err)
{
    MUTEX_GUARD(guard, &store->mutex);
    struct stored_application *a = find_application(store, namespace, application);
    if (!a)
        return error_set(err, -ENOENT, "the application %s/%s is not protected", namespace, application);
    *ret = (struct object_store_status){.pending = a->pending};
    for (struct known_object *k = a->known; k; k = k->next)
        ret->objects += !k->deleted;
    snprintf(ret->error, sizeof ret->error, "%s", a->error);
    return 0;
}
