/* SPDX-License-Identifier: Apache-2.0 */
/* Tags, and the Kubernetes objects: journaled, and as they were at a point. */
#include "journal/history.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "journal/book.h"
#include "journal/payload.h"
#include "journal/saved.h"
#include "lib/json.h"
#include "lib/zstd.h"

static int append_event(struct journal *j, const struct journal_record *record, bool durable, struct journal_point *ret,
                        struct error *err)
{
    struct journal_ticket ticket;
    int r = sync_append(j, record, durable ? APPEND_DURABLE : ret ? APPEND_WRITTEN : APPEND_QUEUED, &ticket, err);
    if (r == 0 && ret)
        *ret = (struct journal_point){.lsn = ticket.lsn, .realtime_ns = ticket.realtime_ns};
    return r;
}

int journal_tag(struct journal *j, const char *name, const char *labels_json, struct journal_point *ret, struct error *err)
{
    int r = point_check_tag(name, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &j->tag_mutex);
    struct tag_search found;
    bool unreadable = false;
    r = history_find_tag(j, name, &unreadable, &found, err);
    if (r < 0)
        return r;
    if (unreadable && !found.found.n) /* a tag more is no harm: of two of a name the newer one counts */
        log_warning(j->log, "part of the history is damaged: whether it has a tag '%s', too, is not known", name);
    if (found.found.n)
        return error_set(err, -EEXIST, "the tag '%s' is there already, at LSN %llu: choose another name", name,
                         (unsigned long long)found.found.n);
    char payload[8192];
    int n = snprintf(payload, sizeof payload, "%s%c%s", name, '\0', labels_json ? labels_json : "{}");
    if (n >= (int)sizeof payload)
        return error_set(err, -EFBIG, "the labels of tag '%s' are too long: at most 8000 bytes", name);
    struct journal_record record = {.op = OP_MARK, .flags = RECORD_LAST, .payload = payload, .payload_bytes = (uint32_t)n};
    return append_event(j, &record, true, ret, err);
}

int journal_object(struct journal *j, const char *name, const void *content, size_t content_bytes,
                   struct journal_point *ret, struct error *err)
{
    size_t name_bytes = strlen(name) + 1, compressed_bytes = 0;
    if (name_bytes < 2 || name_bytes > 1024)
        return error_set(err, -EINVAL, "'%s' cannot name an object: expected 1 to 1023 bytes", name);
    if (content && strcmp(name, JOURNAL_EVERY_OBJECT) == 0)
        return error_set(err, -EINVAL, "'%s' cannot name an object: it stands for all of them", name);
    _cleanup_free_ void *compressed = NULL;
    int r = content ? zstd_compress(content, content_bytes, ZSTD_LEVEL_DEFAULT, &compressed, &compressed_bytes, err) : 0;
    if (r < 0)
        return r;
    size_t length = name_bytes + compressed_bytes;
    if (length > JOURNAL_PAYLOAD_MAX_BYTES)
        return error_set(err, -EFBIG, "the object %s is too large: at most 1 MiB compressed", name);
    _cleanup_free_ char *payload = malloc(length);
    if (!payload)
        return error_errno(err, -ENOMEM, "cannot journal the object %s", name);
    memcpy(payload, name, name_bytes);
    if (compressed_bytes)
        memcpy(payload + name_bytes, compressed, compressed_bytes);
    struct journal_record record = {.op = OP_OBJECT,
                                    .flags = RECORD_LAST | (content ? 0 : RECORD_DELETED),
                                    .payload = payload,
                                    .payload_bytes = (uint32_t)length};
    return append_event(j, &record, false, ret, err);
}

struct object_walk {
    const struct journal *journal;
    bool *unknown; /* set where objects are not known any more, which are left out then. NULL: that is an error */
    const struct manifest *manifest;
    json_t *seen; /* object: name -> true */
    struct lsn limit; /* events above it are skipped: a rewind led past them */
    struct lsn from_rescue; /* a rewind's target is below the base: its own saved objects count */
    struct lsn base;
    bool ended; /* what is older was deleted, all of it */
    journal_object_visit visit;
    void *context;
};

static int visit_object(void *context, const struct journal_event *e, struct error *err)
{
    struct object_walk *w = context;
    if (w->unknown && *w->unknown) /* newest first: something newer than this one could not be read, and may have been the same object */
        return 1;
    if (e->lsn.n > w->limit.n)
        return 0;
    if (e->op == OP_REWIND) {
        if (!sealer_is_rewind(w->journal, w->manifest, e->lsn))
            return 0;
        w->limit.n = e->aux;
        if (e->aux < w->base.n) {
            w->from_rescue = e->lsn;
            return 1;
        }
        return 0;
    }
    if (e->op != OP_OBJECT || json_object_get(w->seen, e->payload))
        return 0;
    if ((e->flags & RECORD_DELETED) && strcmp(e->payload, JOURNAL_EVERY_OBJECT) == 0) {
        w->ended = true;
        return 1;
    }
    if (json_object_set_new(w->seen, e->payload, json_true()) < 0)
        return error_set(err, -EBADMSG, "an object's name at LSN %llu is not UTF-8", (unsigned long long)e->lsn.n);
    if (e->flags & RECORD_DELETED)
        return 0;
    size_t name_bytes = strlen(e->payload) + 1, bytes;
    _cleanup_free_ void *content = NULL;
    if (name_bytes > e->payload_bytes)
        return error_set(err, -EBADMSG, "the object at LSN %llu is damaged", (unsigned long long)e->lsn.n);
    int r = zstd_decompress(e->payload + name_bytes, e->payload_bytes - name_bytes, 64u << 20, &content, &bytes, err);
    return r < 0 ? r : w->visit(w->context, e->payload, content, bytes, e->lsn, err);
}

/* The objects that dropped history leaves behind. An entry without a name says that not all of them are known. */
static int visit_saved(struct object_walk *w, const char *path, struct error *err)
{
    if (w->ended || (w->base.n == 0 && w->from_rescue.n == 0))
        return 0;
    _cleanup_json_ json_t *saved = NULL;
    json_t *object;
    size_t i;
    int r = saved_read(path, &saved, err);
    if (r == -ENOENT) /* not the same as a point that does not exist */
        return error_set(err, -EBADMSG, "%s is missing: which objects there were is not known", path);
    json_array_foreach(saved, i, object) {
        const char *name, *content;
        uint64_t lsn;
        if (r == 0 && json_is_true(json_object_get(object, "unknown")))
            return error_set(err, -EBADMSG, "%s: which objects there were is not known: the history that had them was damaged when it was dropped", path);
        if (r < 0 || (r = json_get_string(object, "name", &name, err)) < 0 ||
            (r = json_get_string(object, "content", &content, err)) < 0 ||
            (r = json_get_u64(object, "lsn", &lsn, err)) < 0)
            break;
        if (!json_object_get(w->seen, name))
            r = w->visit(w->context, name, content, strlen(content), (struct lsn){lsn}, err);
    }
    return r;
}

static int visit_objects(struct journal *j, struct lsn lsn, bool *unknown, bool for_good, journal_object_visit visit, void *context, struct error *err)
{
    _cleanup_json_ json_t *seen = json_object();
    if (!seen)
        return error_errno(err, -ENOMEM, "cannot list the objects");
    struct book book;
    int r = book_open(j, unknown, &book, err);
    if (r < 0)
        return r;
    book.wanted = OP_OBJECT;
    book.for_good = for_good;
    struct object_walk w = {.journal = j, .unknown = unknown, .manifest = &book.manifest, .seen = seen, .limit = lsn, .base = book.manifest.base, .visit = visit, .context = context};
    r = book_events(&book, w.base, lsn, false, visit_object, &w, err);
    book_release(&book);
    if (r < 0 || (unknown && *unknown))
        return r;
    char path[JOURNAL_PATH_BYTES], directory[JOURNAL_PATH_BYTES - 16];
    journal_path(j, "base/objects.json", path);
    if (w.from_rescue.n) {
        payload_rescue_directory(j->directory, w.from_rescue, directory, sizeof directory);
        snprintf(path, sizeof path, "%s/objects.json", directory);
    }
    r = visit_saved(&w, path, err);
    if (!unknown || !(r == -EBADMSG || (r == -EIO && for_good)))
        return r;
    log_error(j->log, "%s", err->message);
    *unknown = true;
    return 0;
}

int journal_objects(struct journal *j, struct lsn lsn, journal_object_visit visit, void *context, struct error *err)
{
    return visit_objects(j, lsn, NULL, false, visit, context, err);
}

static int collect_object(void *context, const char *name, const char *content, size_t content_bytes, struct lsn lsn,
                          struct error *err)
{
    json_t *object = json_pack("{s:s, s:s%, s:I}", "name", name, "content", content, content_bytes, "lsn", (json_int_t)lsn.n);
    if (!object || json_array_append_new(context, object) < 0)
        return error_errno(err, -ENOMEM, "cannot save the object %s", name);
    return 0;
}

int history_save_unknown(struct journal *j, const char *path, struct error *err)
{
    _cleanup_json_ json_t *list = json_pack("[{s:b}]", "unknown", 1);
    log_error(j->log, "which objects there were is not known any more: what %s is of is damaged", path);
    return list ? saved_write(path, list, err) : error_errno(err, -ENOMEM, "cannot save the objects");
}

static int save_objects(struct journal *j, struct lsn lsn, bool for_good, const char *path, struct error *err)
{
    bool unknown = false;
    _cleanup_json_ json_t *list = json_array();
    if (!list)
        return error_errno(err, -ENOMEM, "cannot save the objects");
    int r = visit_objects(j, lsn, &unknown, for_good, collect_object, list, err);
    if (r == 0)
        r = unknown ? history_save_unknown(j, path, err) : saved_write(path, list, err);
    return r;
}

int history_save_objects(struct journal *j, struct lsn lsn, const char *path, struct error *err)
{
    int r = save_objects(j, lsn, false, path, err);
    return r == -EIO && !mend_may_come_back(j, r) ? save_objects(j, lsn, true, path, err) : r;
}
