/* SPDX-License-Identifier: Apache-2.0 */
/* The journals under the store. Many are open, most of them idle (`light`): to open one takes a dozen flushes
 * of the disk, to write to one that is open takes one.
 *
 * A place of the table is free (no name), or a journal is opened or closed there without the lock
 * (`changing`), or it is open, for `users`. Nobody uses two at a time, so that whoever waits for a place gets
 * one. */
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/resource.h>

#include "app/objects.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "controller/object_store_internal.h"
#include "lib/json.h"

#define MAX_PATH 4096
#define CLOSERS 8u              /* at once: each waits for the disk most of the time */
#define DESCRIPTORS_OTHERS 256u /* of files that stay for others */
#define DESCRIPTORS_EACH 8u

int store_new_places(struct object_store *store, unsigned journals)
{
    struct rlimit limit;
    store->place_count = journals ? journals : OBJECT_STORE_JOURNALS;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
        limit.rlim_cur < DESCRIPTORS_OTHERS + store->place_count * DESCRIPTORS_EACH)
        store->place_count = limit.rlim_cur > DESCRIPTORS_OTHERS
                                 ? (limit.rlim_cur - DESCRIPTORS_OTHERS) / DESCRIPTORS_EACH
                                 : 0;
    if (store->place_count < OBJECT_STORE_JOURNALS_MIN)
        store->place_count = OBJECT_STORE_JOURNALS_MIN;
    store->places = calloc(store->place_count, sizeof *store->places);
    return store->places ? 0 : -ENOMEM;
}

/* ---- places; the io mutex is held ---- */
static void free_place(struct object_store *store, struct open_journal *o)
{
    free(o->namespace);
    free(o->name);
    *o = (struct open_journal){0};
    pthread_cond_broadcast(&store->places_changed);
}

/* The mutex is dropped meanwhile. */
static void close_place(struct object_store *store, struct open_journal *o)
{
    struct error err = ERROR_INIT;
    o->changing = true;
    pthread_mutex_unlock(&store->io);
    if (journal_close(o->journal, &err) < 0)
        log_error(store->log, "closing the journal of the objects of %s/%s: %s", o->namespace, o->name,
                  err.message);
    pthread_mutex_lock(&store->io);
    free_place(store, o);
}

static struct open_journal *find_place(struct object_store *store, const char *namespace, const char *name)
{
    for (size_t i = 0; i < store->place_count; i++) {
        struct open_journal *o = &store->places[i];
        if (o->name && strcmp(o->namespace, namespace) == 0 && strcmp(o->name, name) == 0)
            return o;
    }
    return NULL;
}

static struct open_journal *find_free(struct object_store *store)
{
    for (size_t i = 0; i < store->place_count; i++)
        if (!store->places[i].name)
            return &store->places[i];
    return NULL;
}

/* The one that nobody uses and nobody used for longest. */
static struct open_journal *find_idle(struct object_store *store)
{
    struct open_journal *oldest = NULL;
    for (size_t i = 0; i < store->place_count; i++) {
        struct open_journal *o = &store->places[i];
        if (o->name && !o->changing && !o->users && (!oldest || o->used < oldest->used))
            oldest = o;
    }
    return oldest;
}

static int open_journal(struct object_store *store, const char *path, struct journal **ret, struct error *err)
{
    const struct journal_options options = {.directory = path,
                                            .segment_blocks = STORE_SEGMENT_BLOCKS,
                                            .segment_records = STORE_SEGMENT_RECORDS,
                                            .light = true,
                                            .owner = "controller",
                                            .log = store->log};
    int r = io_mkdirs(path, 0700, err);
    if (r == 0)
        r = journal_open(&options, ret, err);
    if (r == 0) {
        journal_recovered(*ret); /* there are no volumes that would have to be compared */
        journal_relax(*ret);
    }
    return r;
}

/* Opens it in a free place. The mutex is dropped meanwhile. */
static int open_place(struct object_store *store, struct open_journal *o, const char *path,
                      const char *namespace, const char *name, struct error *err)
{
    int r = 0;
    *o = (struct open_journal){.namespace = strdup(namespace), .name = strdup(name), .changing = true};
    if (!o->namespace || !o->name)
        r = error_errno(err, -ENOMEM, "out of memory");
    pthread_mutex_unlock(&store->io);
    if (r == 0)
        r = open_journal(store, path, &o->journal, err);
    pthread_mutex_lock(&store->io);
    if (r < 0) {
        free_place(store, o);
        return r;
    }
    o->changing = false;
    pthread_cond_broadcast(&store->places_changed);
    return 0;
}

static bool is_short_of(int code)
{
    return code == -ENOMEM || code == -EMFILE || code == -ENFILE;
}

static int take_place(struct object_store *store, const char *path, const char *namespace, const char *name,
                      struct open_journal **ret, bool *ret_existed, struct error *err)
{
    *ret_existed = true;
    for (;;) {
        struct open_journal *o = find_place(store, namespace, name), *idle;
        if (o && !o->changing) {
            o->users++;
            o->used = ++store->uses;
            *ret = o;
            return 0;
        }
        if (!o && (o = find_free(store))) {
            *ret_existed = access(path, F_OK) == 0;
            int r = open_place(store, o, path, namespace, name, err);
            if (is_short_of(r) && (idle = find_idle(store))) /* the machine gives less than was thought */
                close_place(store, idle);
            else if (r < 0)
                return error_context(err, "journal of the objects of %s/%s", namespace, name);
            if (r < 0)
                *err = ERROR_INIT;
        } else if (!o && (idle = find_idle(store))) {
            close_place(store, idle);
        } else {
            pthread_cond_wait(&store->places_changed, &store->io);
        }
    }
}

/* A directory of its own, and no way out of it. */
static bool is_name(const char *text)
{
    return *text && *text != '.' && !strchr(text, '/');
}

int store_acquire(struct object_store *store, const char *namespace, const char *name, bool create,
                  struct open_journal **ret, bool *ret_existed, struct error *err)
{
    char path[MAX_PATH];
    if (!is_name(namespace) || !is_name(name)) /* what is asked for may come from anybody */
        return error_set(err, -EINVAL, "there is no application %.60s/%.60s", namespace, name);
    if (snprintf(path, sizeof path, "%s/%s/%s", store->directory, namespace, name) >= (int)sizeof path)
        return error_errno(err, -ENAMETOOLONG, "%s/%s/%s", store->directory, namespace, name);
    if (!create && access(path, F_OK) < 0)
        return error_set(err, -ENOENT, "no objects were journaled of the application %s/%s", namespace, name);
    MUTEX_GUARD(io, &store->io);
    return take_place(store, path, namespace, name, ret, ret_existed, err);
}

void store_release(struct object_store *store, struct open_journal *o)
{
    if (!o)
        return;
    MUTEX_GUARD(io, &store->io);
    if (--o->users)
        return;
    if (journal_is_suspended(
            o->journal)) /* it takes nothing any more; what is durable the next opening finds */
        close_place(store, o);
    else
        pthread_cond_broadcast(&store->places_changed);
}

static void *close_idle(void *context)
{
    struct object_store *store = context;
    MUTEX_GUARD(io, &store->io);
    for (struct open_journal *o; (o = find_idle(store));)
        close_place(store, o);
    return NULL;
}

void store_close_journals(struct object_store *store)
{
    pthread_t threads[CLOSERS];
    size_t started = 0;
    struct error unused = ERROR_INIT;
    while (started + 1 < CLOSERS && started + 1 < store->place_count &&
           thread_start(&threads[started], "objects-closer", close_idle, store, &unused) == 0)
        started++;
    (void)close_idle(store);
    for (size_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    free(store->places);
}

static int append_gap(struct journal *journal, const char *reason, struct error *err)
{
    struct journal_status status;
    struct journal_ticket ticket;
    journal_status(journal, &status);
    const struct journal_record gap = {.op = OP_GAP,
                                       .flags = RECORD_LAST,
                                       .payload = reason,
                                       .payload_bytes = (uint32_t)strlen(reason) + 1,
                                       .aux = status.appended.n};
    int r = journal_append(journal, &gap, &ticket, err);
    if (r == 0)
        journal_backed(journal, &ticket);
    return r;
}

static void free_change(struct pending_change **first)
{
    struct pending_change *c = *first;
    *first = c->next;
    free(c->content);
    free(c);
}

/* Not durable yet. An object that no record can hold is left out, and a gap says so: it must not keep the
 * others out. */
static int append_change(struct object_store *store, struct journal *journal, const struct pending_change *c,
                         struct error *err)
{
    char reason[600];
    struct error why = ERROR_INIT;
    if (!*c->name)
        return append_gap(journal, c->content ? c->content : "", err);
    int r = journal_object(journal, c->name, c->content, c->content ? strlen(c->content) : 0, NULL, &why);
    if (r == -EFBIG) {
        log_error(store->log, "%s", why.message);
        snprintf(reason, sizeof reason, "%.500s", why.message);
        return append_gap(journal, reason, err);
    }
    if (r < 0)
        *err = why;
    return r;
}

int store_write(struct object_store *store, struct journal *journal, struct pending_change **changes,
                struct error *err)
{
    struct pending_change **end = changes;
    struct error failed = ERROR_INIT;
    int r = 0, also = 0;
    for (; *end && r == 0; end = r == 0 ? &(*end)->next : end)
        r = append_change(store, journal, *end, err);
    const struct pending_change *rest = *end; /* that were not appended */
    int synced = journal_sync(journal, -1, &also, r < 0 ? &failed : err);
    if (synced < 0) /* what is in it nobody knows: all of them once more */
        return r < 0 ? r : synced;
    while (*changes != rest)
        free_change(changes);
    journal_relax(journal);
    return r;
}

struct visit {
    struct object_store *store;
    object_visit visit;
    void *context;
};

static int open_object(void *context, const char *name, const char *content, size_t content_bytes,
                       struct lsn lsn, struct error *err)
{
    struct visit *v = context;
    _cleanup_json_ json_t *stored = NULL, *object = NULL;
    (void)lsn;
    int r = json_parse_foreign(name, content, content_bytes, &stored, err);
    if (r < 0 || (r = sealing_open(v->store->sealing, name, stored, &object, err)) < 0)
        return r;
    return v->visit(v->context, name, object, err);
}

int store_objects(struct object_store *store, struct journal *journal, struct lsn lsn, object_visit visit,
                  void *context, struct error *err)
{
    struct visit v = {store, visit, context};
    return journal_objects(journal, lsn, open_object, &v, err);
}

int store_hash(const json_t *object, uint8_t hash[STORE_HASH_BYTES])
{
    char *text = object_canonical(object);
    unsigned char digest[EVP_MAX_MD_SIZE];
    int r = text && EVP_Digest(text, strlen(text), digest, NULL, EVP_sha256(), NULL) ? 0 : -ENOMEM;
    if (r == 0)
        memcpy(hash, digest, STORE_HASH_BYTES);
    if (text)
        explicit_bzero(text, strlen(text)); /* it may be a Secret */
    free(text);
    return r;
}
