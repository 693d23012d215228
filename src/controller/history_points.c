/* SPDX-License-Identifier: Apache-2.0 */
/* Which points there are: of the objects' journal and of each stream, as one list. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/history_internal.h"
#include "lib/json.h"

#define CALL_TIMEOUT_MS 30000u

/* ---- streams ---- */

int history_streams(struct history_job *job, json_t **ret, struct error *err)
{
    struct controller *c = job->c;
    _cleanup_json_ json_t *papp = kube_informer_get(c->applications, job->namespace, job->application),
                          *handles = NULL;
    if (!c->data || !papp) {
        *ret = json_array();
        return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
    }
    int r = volumes_handles(c, job->namespace, application_group(papp), &handles, err);
    return r < 0 ? r : data_client_streams(c->data, handles, NULL, ret, err);
}

int history_call(struct history_job *job, const json_t *stream, const char *method, const char *before,
                 const char *after, const json_t *body, json_t **ret, struct error *err)
{
    char path[256];
    snprintf(path, sizeof path, "%s%s%s", before, json_text(stream, "stream"), after);
    return data_client_call(job->c->data, json_text(stream, "node"), method, path, body, CALL_TIMEOUT_MS, ret,
                            err);
}

/* ---- the objects' journal ---- */

struct collect {
    struct history_job *job;
    json_t *points;
    size_t limit;
    uint64_t since_ns;
    bool named; /* tags alone */
    bool damaged; /* something of the history cannot be read */
};

static json_t *event_json(const struct journal_event *event)
{
    char time[CLOCK_TEXT_BYTES];
    clock_format_rfc3339(event->realtime_ns, time);
    json_t *o =
        json_pack("{s:o, s:s, s:I, s:s}", "point", json_sprintf("lsn:%llu", (unsigned long long)event->lsn.n),
                  "time", time, "lsn", (json_int_t)event->lsn.n, "of", "objects");
    if (event->op == OP_OBJECT) {
        json_object_set_new(o, "kind", json_string("object"));
        json_object_set_new(o, "deleted", json_boolean(event->flags & RECORD_DELETED));
        json_object_set_new(o, "name", json_string(event->payload));
    } else if (event->op == OP_MARK) {
        json_object_set_new(o, "kind", json_string("tag"));
        json_object_set_new(o, "name", json_string(event->payload));
    } else {
        json_object_set_new(o, "kind", json_string("gap"));
        if (event->op == OP_GAP && event->payload_bytes)
            json_object_set_new(o, "name", json_string(event->payload));
    }
    return o;
}

static int add_event(void *context, const struct journal_event *event, struct error *err)
{
    struct collect *c = context;
    if (event->realtime_ns < c->since_ns)
        return 1;
    if (event->op == OP_VOLUME || event->op == OP_REWIND || (c->named && event->op != OP_MARK) ||
        (event->op != OP_WRITE && !(event->flags & RECORD_LAST)) ||
        (event->op == OP_OBJECT && strcmp(event->payload, JOURNAL_EVERY_OBJECT) == 0))
        return 0;
    if (json_array_append_new(c->points, event_json(event)) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    int r = history_progress(c->job, "the objects' journal", json_array_size(c->points), 0, err);
    return r < 0 ? r : json_array_size(c->points) >= c->limit;
}

/* Q2. Not while the journal is read: the API server is asked. */
static void hide_names(struct history_job *job, json_t *points)
{
    size_t i;
    json_t *point;
    json_array_foreach(points, i, point)
    {
        if (strcmp(json_text(point, "kind"), "object") != 0 || history_may_see(job, json_text(point, "name")))
            continue;
        json_object_del(point, "name");
        json_object_set_new(point, "hidden", json_true());
    }
}

/* ---- the streams' journals ---- */

/* The time as text has no more than microseconds: the next one has the write behind it. */
static json_t *point_of(const json_t *point)
{
    char text[CLOCK_TEXT_BYTES];
    uint64_t ns = 0;
    struct error unused = ERROR_INIT;
    if (clock_parse_rfc3339(json_text(point, "time"), &ns, &unused) < 0)
        return json_null();
    return json_string(clock_format_rfc3339(ns + NS_PER_US, text));
}

/* Tags are those of the objects' journal too, where they have been told. */
static int add_of_stream(struct collect *c, const json_t *stream, struct error *err)
{
    char query[64], time[CLOCK_TEXT_BYTES];
    _cleanup_json_ json_t *answer = NULL;
    size_t i;
    json_t *point;
    clock_format_rfc3339(c->since_ns, time);
    snprintf(query, sizeof query, "/points?limit=%zu", c->limit);
    int r = history_call(c->job, stream, "GET", HISTORY_STREAM, query, NULL, &answer, err);
    json_array_foreach(json_object_get(answer, "points"), i, point)
    {
        const char *kind = json_text(point, "kind");
        if (strcmp(kind, "tag") == 0 || strcmp(kind, "volume") == 0 ||
            strcmp(json_text(point, "time"), time) < 0)
            continue;
        json_t *copy = json_copy(point);
        json_object_set_new(copy, "point", point_of(point));
        json_object_set_new(copy, "of", json_string("volumes"));
        json_object_set(copy, "stream", json_object_get(stream, "stream"));
        json_object_set(copy, "claims", json_object_get(stream, "claims"));
        if (json_array_append_new(c->points, copy) < 0)
            return error_set(err, -ENOMEM, "out of memory");
    }
    c->damaged |= json_is_true(json_object_get(answer, "damaged"));
    return r;
}

/* How far it goes back, or why that is not known. */
static json_t *describe(struct history_job *job, const json_t *stream, const struct error *failed)
{
    _cleanup_json_ json_t *answer = NULL;
    struct error unused = ERROR_INIT;
    if (failed->code == 0 &&
        history_call(job, stream, "GET", "/v1/status?app=", "", NULL, &answer, &unused) < 0)
        answer = NULL;
    const json_t *status = json_array_get(json_object_get(answer, "applications"), 0);
    return json_pack("{s:O, s:O, s:O, s:O*, s:O*, s:O*, s:s*}", "stream", json_object_get(stream, "stream"),
                     "node", json_object_get(stream, "node"), "claims", json_object_get(stream, "claims"),
                     "oldestTime", json_object_get(status, "oldest_time"), "latestTime",
                     json_object_get(status, "latest_time"), "history", json_object_get(status, "history"),
                     "error", failed->code ? failed->message : NULL);
}

static int newer_first(const void *a, const void *b)
{
    const json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
    int by_time = strcmp(json_text(y, "time"), json_text(x, "time"));
    json_int_t lx = json_integer_value(json_object_get(x, "lsn")),
               ly = json_integer_value(json_object_get(y, "lsn"));
    return by_time ? by_time : (lx < ly) - (lx > ly);
}

static json_t *newest(const json_t *points, size_t limit)
{
    size_t count = json_array_size(points);
    _cleanup_free_ json_t **sorted = calloc(count + 1, sizeof *sorted);
    json_t *list = sorted ? json_array() : NULL;
    for (size_t i = 0; list && i < count; i++)
        sorted[i] = json_array_get(points, i);
    if (list)
        qsort(sorted, count, sizeof *sorted, newer_first);
    for (size_t i = 0; list && i < count && i < limit; i++)
        json_array_append(list, sorted[i]);
    return list;
}

/* The time of the point; of a tag it is that of the objects. */
static int since_of(struct history_job *job, uint64_t *ret_ns, struct error *err)
{
    struct history_moment m;
    struct journal_point found;
    struct point point;
    if (!json_object_get(job->spec, "since"))
        return 0;
    int r = history_moment(job, json_text(job->spec, "since"), &m, err);
    if (r < 0)
        return r;
    if (clock_parse_rfc3339(m.objects, ret_ns, err) < 0) {
        *err = ERROR_INIT;
        r = point_parse(m.objects, &point, err);
        if (r == 0)
            r = object_store_resolve(job->c->store, job->namespace, job->application, &point, &found, err);
        *ret_ns = r == 0 ? found.realtime_ns : 0;
    }
    history_moment_release(&m);
    return r;
}

int history_points(struct history_job *job, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *points = json_array(), *streams = NULL, *described = json_array();
    uint64_t limit = HISTORY_POINTS_DEFAULT;
    struct collect c = {.job = job, .points = points, .named = json_is_true(json_object_get(job->spec, "named"))};
    struct journal_point oldest;
    char time[CLOCK_TEXT_BYTES];
    size_t i;
    json_t *stream;
    int r = json_get_optional_u64(job->spec, "limit", &limit, err);
    c.limit = (size_t)limit;
    if (!points || !described)
        return error_set(err, -ENOMEM, "out of memory");
    if (r < 0 || (r = since_of(job, &c.since_ns, err)) < 0 ||
        (r = object_store_oldest(job->c->store, job->namespace, job->application, &oldest, err)) < 0)
        return r;
    if (limit > 0 &&
        (r = object_store_events(job->c->store, job->namespace, job->application, add_event, &c, &c.damaged, err)) < 0)
        return r;
    hide_names(job, points);
    r = history_streams(job, &streams, err);
    json_array_foreach(streams, i, stream)
    {
        struct error one = ERROR_INIT;
        if (r == 0)
            r = history_progress(job, json_text(stream, "stream"), i, json_array_size(streams), err);
        if (r < 0)
            return r;
        if (limit > 0 && !c.named && add_of_stream(&c, stream, &one) < 0 && one.code == 0)
            one.code = -EIO;
        json_array_append_new(described, describe(job, stream, &one));
    }
    json_t *list = r == 0 ? newest(points, c.limit) : NULL;
    if (r < 0)
        return r;
    clock_format_rfc3339(oldest.realtime_ns, time);
    *ret = json_pack("{s:s, s:s, s:O, s:o, s:b}", "application", job->application, "oldestTime", time, "streams",
                     described, "points", list, "damaged", c.damaged);
    if (*ret && c.since_ns)
        json_object_set_new(*ret, "sinceTime", json_string(clock_format_rfc3339(c.since_ns, time)));
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* ---- before encryption ---- */

/* The earliest of the streams' last clean points: before it nothing of the application was being encrypted.
 */
int history_last_clean(struct history_job *job, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *streams = NULL, *found = json_array();
    const json_t *first = NULL, *since = NULL;
    size_t i;
    json_t *stream;
    int r = history_streams(job, &streams, err);
    json_array_foreach(streams, i, stream)
    {
        _cleanup_json_ json_t *answer = NULL;
        if (r == 0)
            r = history_progress(job, json_text(stream, "stream"), i, json_array_size(streams), err);
        if (r == 0)
            r = history_call(job, stream, "GET", HISTORY_STREAM, "/last-clean", NULL, &answer, err);
        if (r == -ENOENT) { /* nothing suspicious in this one */
            *err = ERROR_INIT;
            r = 0;
            continue;
        }
        if (r < 0)
            return error_context(err, "stream %s", json_text(stream, "stream"));
        json_object_set(answer, "stream", json_object_get(stream, "stream"));
        json_object_set(answer, "claims", json_object_get(stream, "claims"));
        json_array_append(found, answer);
        if (!first || strcmp(json_text(answer, "time"), json_text(first, "time")) < 0)
            first = answer;
        if (!since || strcmp(json_text(answer, "suspicious_since"), json_text(since, "suspicious_since")) < 0)
            since = answer;
    }
    if (r < 0)
        return r;
    if (json_array_size(streams) == 0)
        return error_set(err, -ENOENT,
                         "%s/%s has no volume that is captured, and only volumes are watched for encryption",
                         job->namespace, job->application);
    if (!first)
        return error_set(err, -ENOENT,
                         "nothing in the history of %s/%s looks like encryption: every point is clean",
                         job->namespace, job->application);
    *ret = json_pack("{s:s, s:O, s:O, s:O, s:O}", "application", job->application, "point",
                     json_object_get(first, "time"), "time", json_object_get(first, "time"),
                     "suspiciousSince", json_object_get(since, "suspicious_since"), "streams", found);
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}
