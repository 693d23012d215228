/* SPDX-License-Identifier: Apache-2.0 */
/* Informers: the thread, its transfers and their states.
 *
 *   waiting -> listing -> (next chunk) ... -> waiting(now) -> watching -> (ended) waiting -> watching from
 * the last version
 *                                                                      -> (410) gap, waiting -> listing */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "kube/informer_internal.h"
#include "lib/json.h"

#define RETRY_MIN_MS 100u
#define RETRY_MAX_MS 30000u
#define SHORT_WATCH_NS NS_PER_SECOND /* a watch that ends sooner counts as a failure, or it would spin */
#define CHUNK_TIMEOUT_MS 60000L
#define POLL_MAX_MS 10000u
#define LOOK_MIN_MS 20u /* see time_to_wait */
#define LOOK_FACTOR 4u
#define FIRST_CHUNK 25u /* before it is known how large they are */

static uint64_t now_ns(void)
{
    return clock_boottime_ns(clock_system());
}

static unsigned most_of_chunk(const struct kube_informer *i)
{
    return i->options.chunk ? i->options.chunk : KUBE_INFORMER_CHUNK;
}

/* ---- transfers ---- */
static unsigned body_limit(const struct kube_informer *i)
{
    return i->chunk > 1 ? KUBE_INFORMER_PAGE_LIMIT_BYTES : KUBE_BODY_LIMIT_BYTES;
}

static size_t receive(char *data, size_t size, size_t count, void *context)
{
    struct kube_informer *i = context;
    size_t n = size * count;
    long code = 0;
    int r;
    i->heard_ns = i->set->heard_ns = now_ns();
    i->set->received = true;
    curl_easy_getinfo(i->curl, CURLINFO_RESPONSE_CODE, &code);
    if (i->state == INFORMER_WATCHING && code == 200) {
        r = lines_feed(&i->lines, data, n);
        if (r == -EFBIG)
            error_set(&i->trouble, r, "watch of %s: an object is larger than %u bytes", i->path,
                      KUBE_WATCH_LINE_LIMIT_BYTES);
    } else if (i->trouble.code == -EFBIG) {
        r = 0; /* the rest is let pass: a stream that is given up in the middle stalls the others of its
                  connection (curl 7.88) */
    } else if (n > body_limit(i) - i->body.length_bytes) {
        error_set(&i->trouble, -EFBIG, "list of %s: a chunk is larger than %u bytes", i->path, body_limit(i));
        kube_buffer_release(&i->body);
        r = 0;
    } else {
        r = kube_buffer_add(&i->body, data, n);
    }
    if (r < 0 && !i->trouble.code)
        error_errno(&i->trouble, r, "%s", i->path);
    return r == 0 ? n : 0;
}

static void end_transfer(struct kube_informer *i)
{
    if (i->curl) {
        curl_multi_remove_handle(i->set->multi, i->curl);
        curl_easy_cleanup(i->curl);
        i->curl = NULL;
    }
    curl_slist_free_all(take_ptr(i->headers));
    kube_secrets_release(&i->secrets);
    kube_buffer_release(&i->body);
    kube_buffer_release(&i->lines.rest);
}

static int make_query(struct kube_informer *i, char **ret, struct error *err)
{
    const struct kube_informer_options *o = &i->options;
    unsigned timeout_s = o->watch_timeout_s ? o->watch_timeout_s : KUBE_WATCH_TIMEOUT_S;
    _cleanup_free_ char *list = NULL, *version = NULL;
    int r = kube_list_query(i->label_selector, i->field_selector, i->chunk,
                            i->must_list ? i->next_chunk : NULL, &list, err);
    if (r < 0)
        return r;
    if (i->must_list) {
        *ret = take_ptr(list);
        return 0;
    }
    /* Not all watches at the same time. */
    timeout_s += kube_random(timeout_s / 5 + 1);
    const char *selectors = strchr(list, '&'); /* after limit=N */
    if (!(version = kube_escape(i->version)) ||
        asprintf(ret, "watch=1&allowWatchBookmarks=true&timeoutSeconds=%u&resourceVersion=%s%s", timeout_s,
                 version, selectors ? selectors : "") < 0)
        return error_errno(err, -ENOMEM, "watch of %s", i->path);
    return 0;
}

static int begin_transfer(struct kube_informer *i, struct error *err)
{
    struct kube_client *client = i->set->client;
    _cleanup_free_ char *query = NULL;
    int r = make_query(i, &query, err);
    if (r < 0 || (r = kube_credentials_get(&client->config, &client->credentials, i->refused_generation,
                                           &i->secrets, err)) < 0)
        return r;
    i->generation = i->secrets.generation;
    i->refused_generation = 0;
    i->curl = curl_easy_init();
    if (!i->curl)
        return error_errno(err, -ENOMEM, "%s", i->path);
    if ((r = kube_transfer_setup(client, i->curl, i->path, query, NULL, &i->secrets, &i->headers, err)) < 0)
        return r;
    struct curl_slist *longer = curl_slist_append(i->headers, "Accept: application/json");
    if (!longer)
        return error_errno(err, -ENOMEM, "%s", i->path);
    i->headers = longer;
    i->detail[0] = '\0';
    i->trouble = ERROR_INIT;
    i->expired = false;
    i->state = i->must_list ? INFORMER_LISTING : INFORMER_WATCHING;
    i->begun_ns = i->heard_ns = now_ns();
    curl_easy_setopt(i->curl, CURLOPT_HTTPHEADER, i->headers);
    curl_easy_setopt(i->curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    /* One connection for all watches; or one of its own, which nobody has after it. */
    curl_easy_setopt(i->curl, i->alone ? CURLOPT_FRESH_CONNECT : CURLOPT_PIPEWAIT, 1L);
    curl_easy_setopt(i->curl, CURLOPT_FORBID_REUSE, (long)i->alone);
    curl_easy_setopt(i->curl, CURLOPT_ERRORBUFFER, i->detail);
    curl_easy_setopt(i->curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(i->curl, CURLOPT_WRITEDATA, i);
    curl_easy_setopt(i->curl, CURLOPT_PRIVATE, i);
    if (i->must_list)
        curl_easy_setopt(i->curl, CURLOPT_TIMEOUT_MS, CHUNK_TIMEOUT_MS);
    if (curl_multi_add_handle(i->set->multi, i->curl) != CURLM_OK)
        return error_errno(err, -ENOMEM, "%s", i->path);
    return 0;
}

/* ---- states ---- */
static void give_slot(struct kube_informer *i)
{
    i->set->listing -= i->slot;
    i->slot = false;
}

static void wait_for(struct kube_informer *i, unsigned ms)
{
    end_transfer(i);
    i->state = INFORMER_WAITING;
    i->due_ns = now_ns() + ms * NS_PER_MS;
}

static void fail(struct kube_informer *i, const struct error *error, unsigned retry_after_s)
{
    unsigned ms = kube_backoff_ms(i->failures, RETRY_MIN_MS, RETRY_MAX_MS) + retry_after_s * 1000;
    if (error->code == -EFBIG && i->must_list && i->chunk > 1) { /* large objects: Secrets of releases, say */
        i->chunk /= 2;
        wait_for(i, 0); /* the same one, in a part */
        return;
    }
    i->failures += i->failures < 1000;
    if (error->code != -ECANCELED && i->options.ops.failed)
        i->options.ops.failed(i->options.ops.context, &i->resource, error);
    give_slot(i);
    wait_for(i, ms);
}

/* Nothing is heard on any watch: their connection is in the way (what comes on it may have nowhere to go, since the window of HTTP/2 is used up: curl 7.88 does not
 * give back that of streams that were given up), and curl would give it to each next one as long as another is on it. All begin anew, from where they were. */
static void renew_connections(struct kube_informers *set, struct kube_informer *first)
{
    CURLM *fresh = curl_multi_init(), *old = set->multi;
    if (!fresh)
        return;
    for (struct kube_informer *i = first; i; i = i->next) {
        i->alone = false;
        if (i->state != INFORMER_WAITING)
            wait_for(i, 0);
    }
    pthread_mutex_lock(&set->mutex); /* others wake it */
    set->multi = fresh;
    pthread_mutex_unlock(&set->mutex);
    curl_multi_cleanup(old);
    set->heard_ns = now_ns();
}

/* Its watch was silent for that long: the next one is not to have the same connection. */
static void leave_connection(struct kube_informer *i, struct kube_informer *first, unsigned idle_s)
{
    uint64_t quiet_ns = idle_s * NS_PER_SECOND * 3 / 5; /* longer than from one bookmark to the next: some watch of a connection that works had one */
    if (now_ns() >= i->set->heard_ns + quiet_ns)
        renew_connections(i->set, first);
    else /* the others are well: it may be a server that sends no bookmarks */
        i->alone = true;
}

static void relist(struct kube_informer *i, const char *reason)
{
    if (i->synced && i->options.ops.gap) /* I3 */
        i->options.ops.gap(i->options.ops.context, &i->resource, reason);
    i->must_list = true;
    free(take_ptr(i->next_chunk));
}

/* I4: objects as large as those that came are asked for in chunks of KUBE_INFORMER_PAGE_BYTES, and never of
 * twice as many as before. */
static void adapt_chunk(struct kube_informer *i, size_t bytes, size_t count)
{
    size_t most = i->chunk < most_of_chunk(i) / 2 ? i->chunk * 2 : most_of_chunk(i);
    size_t fit = count ? KUBE_INFORMER_PAGE_BYTES / (bytes / count + 1) : i->chunk;
    i->chunk = fit < 1 ? 1 : (unsigned)(fit > most ? most : fit);
}

static int take_chunk(struct kube_informer *i, struct error *err)
{
    _cleanup_json_ json_t *page = NULL;
    json_t *items, *item;
    const char *next, *version;
    size_t n, bytes = i->body.length_bytes;
    int r = json_parse_foreign_cut("list", i->body.data ? i->body.data : "", i->body.length_bytes, &page, err);
    kube_buffer_release(&i->body); /* before its objects are handled: large */
    if (r < 0 || (r = kube_list_page(page, &i->resource, &items, &next, &version, err)) < 0)
        return r;
    adapt_chunk(i, bytes, json_array_size(items));
    if (!i->next_chunk)
        i->cache.generation++;
    json_array_foreach(items, n, item) if ((r = informer_object(i, item, err)) < 0) return r;
    free(take_ptr(i->next_chunk));
    if (next)
        return (i->next_chunk = strdup(next)) ? 0 : error_errno(err, -ENOMEM, "list of %s", i->path);
    informer_sweep(i, version);
    i->must_list = false;
    return informer_set_version(i, version, err);
}

static void listed(struct kube_informer *i, long code)
{
    struct error err = ERROR_INIT;
    if (code == 410 && i->next_chunk) { /* forgotten in the middle: begin again */
        free(take_ptr(i->next_chunk));
        fail(i, &(struct error){.code = -ECANCELED}, 0);
        return;
    }
    int r = take_chunk(i, &err);
    if (r < 0) {
        free(take_ptr(i->next_chunk));
        fail(i, &err, 0);
        return;
    }
    wait_for(i, 0);
    if (i->must_list)
        return; /* the next chunk */
    give_slot(i);
    i->failures = 0;
    pthread_mutex_lock(&i->set->mutex);
    i->synced = true;
    size_t count = i->cache.count;
    pthread_mutex_unlock(&i->set->mutex);
    if (i->options.ops.synced)
        i->options.ops.synced(i->options.ops.context, &i->resource, count);
}

/* What a transfer's refusal (HTTP status of 400 and more) means. */
static void refused(struct kube_informer *i, long code)
{
    _cleanup_json_ json_t *body = NULL;
    struct error err = ERROR_INIT;
    struct kube_status status = {0};
    curl_off_t after = 0;
    if (i->body.data && json_parse("status", i->body.data, i->body.length_bytes, &body, &err) < 0)
        body = NULL;
    curl_easy_getinfo(i->curl, CURLINFO_RETRY_AFTER, &after);
    int r = kube_status_error(code, body, i->must_list ? "list of" : "watch of", i->path, &status, &err);
    json_decref(status.details);
    if (code == 401)
        i->refused_generation = i->generation;
    if (code == 410 && !i->must_list)
        relist(i, err.message);
    /* A watch that is refused for another reason than load: the kind or the right may be gone; only a list
     * tells. */
    else if (!i->must_list && r != -EAGAIN && r != -EIO && r != -EPERM)
        relist(i, err.message);
    fail(i, &err,
         after > 0 && after < 60     ? (unsigned)after
         : status.retry_after_s < 60 ? status.retry_after_s
                                     : 60);
}

static void finished(struct kube_informer *i, CURLcode result)
{
    struct error err = ERROR_INIT;
    long code = 0;
    curl_easy_getinfo(i->curl, CURLINFO_RESPONSE_CODE, &code);
    bool watching = i->state == INFORMER_WATCHING;
    if (i->trouble.code) { /* of a callback of ours */
        err = i->trouble;
        if (i->expired) {
            relist(i, err.message);
            wait_for(i, 0);
            return;
        }
        if (watching && err.code != -ENOMEM && code == 200)
            relist(i, err.message); /* a line that cannot be read would come again */
        fail(i, &err, 0);
    } else if (result != CURLE_OK) {
        int r = kube_transfer_error(i->set->client, result, i->curl, watching ? "watch of" : "list of",
                                    i->path, CHUNK_TIMEOUT_MS, i->detail, &err);
        (void)r;
        fail(i, &err, 0);
    } else if (code != 200) {
        refused(i, code);
    } else if (!watching) {
        listed(i, code);
    } else if (now_ns() - i->begun_ns < SHORT_WATCH_NS) {
        fail(i, &(struct error){.code = -ECANCELED}, 0);
    } else {
        wait_for(i, 0); /* the server's timeout: goes on from the last version */
    }
}

/* Begins what is due; returns the time of the next. */
static uint64_t begin_due(struct kube_informers *set, struct kube_informer *first)
{
    uint64_t next = UINT64_MAX;
    for (struct kube_informer *i = first; i; i = i->next) {
        uint64_t now = now_ns();
        unsigned idle_s = i->options.idle_s ? i->options.idle_s : KUBE_WATCH_IDLE_S;
        if (i->state == INFORMER_WATCHING) {
            uint64_t dead = i->heard_ns + idle_s * NS_PER_SECOND;
            if (now >= dead) {
                struct error err = ERROR_INIT;
                error_set(&err, -ETIMEDOUT, "watch of %s: nothing was heard for %u s", i->path, idle_s);
                fail(i, &err, 0);
                leave_connection(i, first, idle_s);
                next = now; /* others may be due, too */
            } else if (dead < next) {
                next = dead;
            }
        }
        if (i->state != INFORMER_WAITING || i->removing)
            continue;
        if (i->due_ns > now) {
            next = i->due_ns < next ? i->due_ns : next;
            continue;
        }
        if (i->must_list && !i->slot) {
            if (set->listing >= KUBE_INFORMER_LISTS)
                continue; /* I4: one that ends wakes the loop */
            i->slot = true;
            set->listing++;
        }
        struct error err = ERROR_INIT;
        if (begin_transfer(i, &err) < 0)
            fail(i, &err, 0);
        if (i->state == INFORMER_WAITING && i->due_ns < next)
            next = i->due_ns;
    }
    return next;
}

static void informer_free(struct kube_informer *i)
{
    end_transfer(i);
    cache_release(&i->cache);
    char *texts[] = {i->namespace,
                     i->label_selector,
                     i->field_selector,
                     i->path,
                     i->next_chunk,
                     i->version,
                     (char *)i->resource.group,
                     (char *)i->resource.version,
                     (char *)i->resource.plural,
                     (char *)i->resource.kind};
    for (size_t n = 0; n < sizeof texts / sizeof *texts; n++)
        free(texts[n]);
    free(i);
}

/* Frees those that are being removed; false: the set is stopping. */
static bool housekeep(struct kube_informers *set, struct kube_informer **ret_first)
{
    MUTEX_GUARD(guard, &set->mutex);
    for (struct kube_informer **link = &set->informers; *link;) {
        struct kube_informer *i = *link;
        if (i->removing) {
            *link = i->next;
            give_slot(i);
            informer_free(i);
            pthread_cond_broadcast(&set->changed);
        } else {
            link = &i->next;
        }
    }
    *ret_first = set->informers; /* new ones come before it; only this thread takes any out */
    return !set->stopping;
}

/* What comes for a transfer that had its turn in this round already, curl (7.88, HTTP/2) may take from the socket with the turn of
 * another one; it keeps it, and does not say so to its own curl_multi_poll, which would sleep beside it until something else comes. So
 * after anything was received there is another round at once, and after the last one of those, in which something can have come, too,
 * one that does not wait for the socket: soon, and then, as long as nothing comes, ever later. */
static unsigned time_to_wait(const struct kube_informers *set, bool ended, uint64_t next)
{
    uint64_t now = now_ns();
    if (ended || set->received || next <= now)
        return 0;
    uint64_t ms = (next - now) / NS_PER_MS + 1;
    return ms < set->look_ms ? (unsigned)ms : set->look_ms;
}

static void wait_for_more(struct kube_informers *set, unsigned ms)
{
    int ready = 0;
    curl_multi_poll(set->multi, NULL, 0, (int)ms, &ready);
    unsigned later = set->look_ms < POLL_MAX_MS / LOOK_FACTOR ? set->look_ms * LOOK_FACTOR : POLL_MAX_MS;
    set->look_ms = ready > 0 ? LOOK_MIN_MS : later;
}

static void *informers_main(void *context)
{
    struct kube_informers *set = context;
    struct kube_informer *first;
    set->look_ms = LOOK_MIN_MS;
    while (housekeep(set, &first)) {
        int running = 0, left = 0;
        uint64_t next = begin_due(set, first);
        set->received = false;
        curl_multi_perform(set->multi, &running);
        bool ended = false;
        for (CURLMsg *m; (m = curl_multi_info_read(set->multi, &left));) {
            struct kube_informer *i = NULL;
            CURLcode result = m->data.result;
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &i);
            finished(i, result);
            ended = true;
        }
        if (set->received || ended)
            set->look_ms = LOOK_MIN_MS;
        unsigned wait_ms = time_to_wait(set, ended, next);
        if (wait_ms)
            wait_for_more(set, wait_ms);
    }
    return NULL;
}

/* ---- from other threads ---- */
int kube_informers_new(struct kube_client *client, const struct log *log, struct kube_informers **ret,
                       struct error *err)
{
    struct kube_informers *set = calloc(1, sizeof *set);
    CURLM *multi = curl_multi_init();
    if (!set || !multi) {
        free(set);
        curl_multi_cleanup(multi);
        return error_errno(err, -ENOMEM, "informers");
    }
    set->client = client;
    set->log = log;
    set->multi = multi;
    pthread_mutex_init(&set->mutex, NULL);
    pthread_cond_init(&set->changed, NULL);
    int r = thread_start(&set->thread, "kube-informers", informers_main, set, err);
    if (r < 0) {
        curl_multi_cleanup(multi);
        free(set);
        return r;
    }
    *ret = set;
    return 0;
}

void kube_informers_free(struct kube_informers *set)
{
    if (!set)
        return;
    pthread_mutex_lock(&set->mutex);
    set->stopping = true;
    curl_multi_wakeup(set->multi);
    pthread_mutex_unlock(&set->mutex);
    pthread_join(set->thread, NULL);
    for (struct kube_informer *i = set->informers, *next; i; i = next) {
        next = i->next;
        informer_free(i);
    }
    curl_multi_cleanup(set->multi);
    pthread_cond_destroy(&set->changed);
    pthread_mutex_destroy(&set->mutex);
    free(set);
}

static char *copy_or_null(const char *text, bool *failed)
{
    char *copy = text ? strdup(text) : NULL;
    *failed |= text && !copy;
    return copy;
}

int kube_informers_add(struct kube_informers *set, const struct kube_informer_options *o,
                       struct kube_informer **ret, struct error *err)
{
    struct kube_informer *i = calloc(1, sizeof *i);
    bool failed = false;
    if (!i)
        return error_errno(err, -ENOMEM, "informer");
    i->set = set;
    i->options = *o;
    i->resource = (struct kube_resource){copy_or_null(o->resource->group, &failed),
                                         copy_or_null(o->resource->version, &failed),
                                         copy_or_null(o->resource->plural, &failed),
                                         copy_or_null(o->resource->kind, &failed),
                                         o->resource->namespaced,
                                         o->resource->verbs};
    i->namespace = copy_or_null(o->namespace, &failed);
    i->label_selector = copy_or_null(o->label_selector, &failed);
    i->field_selector = copy_or_null(o->field_selector, &failed);
    i->cache.keeps_text = o->keep == KUBE_KEEP_TEXT;
    i->must_list = true;
    i->chunk = most_of_chunk(i) < FIRST_CHUNK ? most_of_chunk(i) : FIRST_CHUNK;
    i->lines =
        (struct lines){.limit_bytes = KUBE_WATCH_LINE_LIMIT_BYTES, .line = informer_line, .context = i};
    int r = failed ? error_errno(err, -ENOMEM, "informer")
                   : kube_path(&i->resource, i->namespace, NULL, NULL, &i->path, err);
    if (r < 0) {
        informer_free(i);
        return r;
    }
    pthread_mutex_lock(&set->mutex);
    i->next = set->informers;
    set->informers = i;
    curl_multi_wakeup(set->multi);
    pthread_mutex_unlock(&set->mutex);
    *ret = i;
    return 0;
}

void kube_informers_remove(struct kube_informers *set, struct kube_informer *informer)
{
    MUTEX_GUARD(guard, &set->mutex);
    informer->removing = true;
    curl_multi_wakeup(set->multi);
    for (bool there = true; there;) {
        there = false;
        for (struct kube_informer *i = set->informers; i; i = i->next)
            there |= i == informer;
        if (there)
            pthread_cond_wait(&set->changed, &set->mutex);
    }
}

bool kube_informer_synced(struct kube_informer *i)
{
    MUTEX_GUARD(guard, &i->set->mutex);
    return i->synced;
}

json_t *kube_informer_get(struct kube_informer *i, const char *namespace, const char *name)
{
    char key[1024];
    snprintf(key, sizeof key, "%s/%s", namespace ? namespace : "", name);
    MUTEX_GUARD(guard, &i->set->mutex);
    struct cache_entry *e = cache_find(&i->cache, key);
    return e && e->text ? json_loads(e->text, JSON_ALLOW_NUL, NULL) : NULL;
}

void kube_informer_each(struct kube_informer *i, const char *namespace,
                        bool (*visit)(void *context, json_t *object), void *context)
{
    size_t length = namespace ? strlen(namespace) : 0;
    MUTEX_GUARD(guard, &i->set->mutex);
    for (struct cache_entry *e = i->cache.entries; e; e = e->next) {
        if (!e->text || (namespace && (strncmp(e->key, namespace, length) != 0 || e->key[length] != '/')))
            continue;
        _cleanup_json_ json_t *object = json_loads(e->text, JSON_ALLOW_NUL, NULL);
        if (object && !visit(context, object))
            return;
    }
}
