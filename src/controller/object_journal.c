/* SPDX-License-Identifier: Apache-2.0 */
/* The journals under the store: opened when they are needed, a few at a time. */
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "app/objects.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "controller/object_store_internal.h"
#include "lib/json.h"

#define MAX_PATH 4096

static void close_one(struct object_store *store, struct open_journal *o)
{
    struct error err = ERROR_INIT;
    if (!o->journal)
        return;
    if (journal_close(o->journal, &err) < 0)
        log_error(store->log, "closing the journal of the objects of %s/%s: %s", o->namespace, o->name,
                  err.message);
    free(o->namespace);
    free(o->name);
    *o = (struct open_journal){0};
}

void store_close_journals(struct object_store *store)
{
    for (size_t i = 0; i < OBJECT_STORE_JOURNALS; i++)
        close_one(store, &store->journals[i]);
}

/* A directory of its own, and no way out of it. */
static bool is_name(const char *text)
{
    return *text && *text != '.' && !strchr(text, '/');
}

int store_journal(struct object_store *store, const char *namespace, const char *name, bool create,
                  struct journal **ret, bool *ret_existed, struct error *err)
{
    struct open_journal *oldest = NULL;
    char path[MAX_PATH];
    if (!is_name(namespace) || !is_name(name)) /* what is asked for may come from anybody */
        return error_set(err, -EINVAL, "there is no application %.60s/%.60s", namespace, name);
    for (size_t i = 0; i < OBJECT_STORE_JOURNALS; i++) {
        struct open_journal *o = &store->journals[i];
        if (o->journal && strcmp(o->namespace, namespace) == 0 && strcmp(o->name, name) == 0) {
            o->used = ++store->uses;
            *ret = o->journal;
            *ret_existed = true;
            return 0;
        }
        if (!o->busy && (!oldest || o->used < oldest->used))
            oldest = o;
    }
    if (snprintf(path, sizeof path, "%s/%s/%s", store->directory, namespace, name) >= (int)sizeof path)
        return error_errno(err, -ENAMETOOLONG, "%s/%s/%s", store->directory, namespace, name);
    *ret_existed = access(path, F_OK) == 0;
    if (!*ret_existed && !create)
        return error_set(err, -ENOENT, "no objects were journaled of the application %s/%s", namespace, name);
    close_one(store, oldest);
    int r = io_mkdirs(path, 0700, err);
    if (r < 0)
        return r;
    const struct journal_options options = {.directory = path,
                                            .segment_blocks = STORE_SEGMENT_BLOCKS,
                                            .segment_records = STORE_SEGMENT_RECORDS,
                                            .owner = "controller",
                                            .log = store->log};
    if ((r = journal_open(&options, &oldest->journal, err)) < 0)
        return error_context(err, "journal of the objects of %s/%s", namespace, name);
    oldest->namespace = strdup(namespace);
    oldest->name = strdup(name);
    if (!oldest->namespace || !oldest->name) {
        close_one(store, oldest);
        return error_errno(err, -ENOMEM, "journal of the objects of %s/%s", namespace, name);
    }
    oldest->used = ++store->uses;
    *ret = oldest->journal;
    return 0;
}

static int write_gap(struct journal *journal, const char *reason, struct error *err)
{
    struct journal_status status;
    struct lsn lsn;
    journal_status(journal, &status);
    const struct journal_record gap = {.op = OP_GAP,
                                       .flags = RECORD_LAST,
                                       .payload = reason,
                                       .payload_bytes = (uint32_t)strlen(reason) + 1,
                                       .aux = status.latest.n};
    return journal_append_durable(journal, &gap, &lsn, err);
}

int store_write(struct object_store *store, struct journal *journal, struct pending_change **changes,
                struct error *err)
{
    int r = 0, also = 0;
    (void)store;
    while (*changes) {
        struct pending_change *c = *changes;
        struct journal_point point;
        r = *c->name ? journal_object(journal, c->name, c->content, c->content ? strlen(c->content) : 0,
                                      &point, err)
                     : write_gap(journal, c->content ? c->content : "", err);
        if (r < 0)
            return r;
        *changes = c->next;
        free(c->content);
        free(c);
    }
    return journal_sync(journal, -1, &also, err);
}

struct visit {
    struct object_store *store;
    store_visit visit;
    void *context;
};

static int open_object(void *context, const char *name, const char *content, size_t content_bytes,
                       struct lsn lsn, struct error *err)
{
    struct visit *v = context;
    _cleanup_json_ json_t *stored = NULL, *object = NULL;
    (void)lsn;
    int r = json_parse(name, content, content_bytes, &stored, err);
    if (r < 0 || (r = sealing_open(v->store->sealing, name, stored, &object, err)) < 0)
        return r;
    return v->visit(v->context, name, object, err);
}

int store_objects(struct object_store *store, struct journal *journal, struct lsn lsn, store_visit visit,
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
