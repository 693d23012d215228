/* SPDX-License-Identifier: Apache-2.0 */
/* What differs between two points, as far as whoever asks may see it. */
#include <errno.h>
#include <string.h>

#include "app/objects_diff.h"
#include "base/cleanup.h"
#include "controller/admission.h"
#include "controller/history_internal.h"
#include "controller/recovery.h"
#include "lib/json.h"

/* ---- rights ---- */

/* The kind's plural, in the version that the server prefers. */
static const struct kube_resource *find_kind(struct history_job *job, const struct object_id *id)
{
    char api_version[300];
    struct error unused = ERROR_INIT;
    if (!job->kinds.count && kube_discover(job->c->client, &job->kinds, &unused) < 0)
        return NULL;
    snprintf(api_version, sizeof api_version, "%.250s%s%.40s", id->group, *id->group ? "/" : "", id->version);
    return kube_kinds_find(&job->kinds, api_version, id->kind);
}

bool history_may_see(struct history_job *job, const char *journal_name)
{
    char key[400];
    struct object_id id;
    struct error unused = ERROR_INIT;
    bool may = false;
    if (object_id_parse(journal_name, &id, &unused) < 0)
        return false;
    snprintf(key, sizeof key, "%.250s/%.100s", id.group, id.kind);
    const json_t *known = json_object_get(job->rights, key);
    if (known)
        return json_is_true(known);
    const struct kube_resource *kind = find_kind(job, &id);
    if (kind) {
        const struct admission_right right = {job->namespace, kind->group, kind->plural, "get"};
        if (admission_kube.may(job->c->client, job->user, &right, &may, &unused) < 0)
            may = false;
    }
    json_object_set_new(job->rights, key, json_boolean(may));
    return may;
}

/* ---- points ---- */

/* Just before that Recovery of the namespace changed anything. */
static int moment_before(struct history_job *job, const char *name, struct history_moment *ret,
                         struct error *err)
{
    const struct kube_target target = {
        .resource = &controller_recoveries, .namespace = job->namespace, .name = name};
    _cleanup_json_ json_t *recovery = NULL;
    int r = kube_get(job->c->client, &target, &recovery, err);
    if (r < 0)
        return error_context(err, "before:%s", name);
    const json_t *status = json_object_get(recovery, "status"), *lsn = json_object_get(status, "beforeLsn");
    if (!json_is_integer(lsn) || !recovery_is_about(recovery, job->namespace, job->namespace, job->application))
        return error_set(err, -ENOENT, "before:%s: that Recovery has changed nothing of %s", name,
                         job->application);
    snprintf(ret->objects, sizeof ret->objects, "lsn:%lld", (long long)json_integer_value(lsn));
    snprintf(ret->streams, sizeof ret->streams, "latest");
    ret->before =
        json_object_get(status, "streams") ? json_incref(json_object_get(status, "streams")) : json_array();
    return 0;
}

int history_moment(struct history_job *job, const char *text, struct history_moment *ret, struct error *err)
{
    char time[CLOCK_TEXT_BYTES];
    struct point point;
    struct journal_point found;
    *ret = (struct history_moment){0};
    if (strncmp(text, "before:", 7) == 0)
        return moment_before(job, text + 7, ret, err);
    int r = point_parse(text, &point, err);
    if (r < 0)
        return r;
    snprintf(ret->objects, sizeof ret->objects, "%.200s", text);
    snprintf(ret->streams, sizeof ret->streams, "%.200s", text);
    if (point.kind == POINT_AGO) { /* the same moment for all of them */
        clock_format_rfc3339(job->asked_ns > point.ago_ns ? job->asked_ns - point.ago_ns : 0, time);
        snprintf(ret->objects, sizeof ret->objects, "%s", time);
        snprintf(ret->streams, sizeof ret->streams, "%s", time);
    } else if (point.kind == POINT_LSN) { /* the objects' record is the moment */
        r = object_store_resolve(job->c->store, job->namespace, job->application, &point, &found, err);
        if (r == 0)
            snprintf(ret->streams, sizeof ret->streams, "%s", clock_format_rfc3339(found.realtime_ns, time));
    }
    return r;
}

void history_moment_release(struct history_moment *m)
{
    json_decref(m->before);
}

/* ---- objects ---- */

static int read_objects(struct history_job *job, const struct history_moment *m, const char *text,
                        json_t **ret_set, json_t **ret_point, struct error *err)
{
    char time[CLOCK_TEXT_BYTES];
    struct point point;
    struct journal_point found;
    int r = point_parse(m->objects, &point, err);
    if (r == 0)
        r = object_store_read(job->c->store, job->namespace, job->application, &point, ret_set, &found, err);
    if (r < 0)
        return error_context(err, "%s", text);
    *ret_point = json_pack("{s:s, s:s, s:I, s:s*}", "point", text, "time",
                           clock_format_rfc3339(found.realtime_ns, time), "objectsLsn",
                           (json_int_t)found.lsn.n, "note", found.note[0] ? found.note : NULL);
    return *ret_point ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* Q2, Q3: what may be told of the changes. */
static void cut(struct history_job *job, json_t *diff)
{
    json_t *objects = json_object_get(diff, "objects"), *object;
    size_t i, bytes = 0;
    size_t more =
        json_array_size(objects) > HISTORY_OBJECTS_MAX ? json_array_size(objects) - HISTORY_OBJECTS_MAX : 0;
    while (json_array_size(objects) > HISTORY_OBJECTS_MAX)
        json_array_remove(objects, json_array_size(objects) - 1);
    if (more)
        json_object_set_new(diff, "moreObjects", json_integer((json_int_t)more));
    json_array_foreach(objects, i, object)
    {
        const char *name = json_text(object, "object");
        bool may = history_may_see(job, name);
        _cleanup_free_ char *text = may ? json_to_text(json_object_get(object, "fields")) : NULL;
        bytes += text ? strlen(text) : 0;
        if (may && bytes <= HISTORY_ANSWER_BYTES)
            continue;
        json_object_del(object, "fields");
        json_object_set_new(object, may ? "fieldsLeftOut" : "hidden", json_true());
        struct object_id id;
        struct error unused = ERROR_INIT;
        if (!may) /* its kind is all that is told */
            json_object_set_new(
                object, "object",
                object_id_parse(name, &id, &unused) == 0
                    ? json_sprintf("%s/%s/%s", *id.group ? id.group : "core", id.version, id.kind)
                    : json_string("?"));
    }
}

/* ---- volumes ---- */

/* The stream's own form of the moment. */
static void stream_point(const struct history_moment *m, const json_t *stream, char ret[HISTORY_POINT_BYTES])
{
    size_t i;
    json_t *one;
    snprintf(ret, HISTORY_POINT_BYTES, "%s", m->streams);
    json_array_foreach(m->before, i, one)
    {
        const json_t *lsn = json_object_get(one, "beforeLsn");
        if (strcmp(json_text(one, "stream"), json_text(stream, "stream")) == 0 && json_is_integer(lsn))
            snprintf(ret, HISTORY_POINT_BYTES, "lsn:%lld", (long long)json_integer_value(lsn));
    }
}

static int diff_stream(struct history_job *job, const json_t *stream, const struct history_moment *from,
                       const struct history_moment *to, json_t *volumes, struct error *err)
{
    char a[HISTORY_POINT_BYTES], b[HISTORY_POINT_BYTES];
    _cleanup_json_ json_t *answer = NULL;
    const char *claim;
    json_t *handle, *volume;
    size_t i;
    stream_point(from, stream, a);
    stream_point(to, stream, b);
    _cleanup_json_ json_t *body = json_pack("{s:s, s:s}", "from", a, "to", b);
    struct error one = ERROR_INIT;
    int r = history_call(job, stream, "POST", HISTORY_STREAM, "/diff", body, &answer, &one);
    json_object_foreach(json_object_get(stream, "handles"), claim, handle)
    {
        json_t *entry = json_pack("{s:s, s:O, s:s*}", "claim", claim, "stream",
                                  json_object_get(stream, "stream"), "error", r < 0 ? one.message : NULL);
        json_array_foreach(json_object_get(answer, "volumes"), i, volume)
        {
            if (strcmp(json_text(volume, "name"), json_string_value(handle)) != 0)
                continue;
            json_object_set(entry, "changedBytes", json_object_get(volume, "changed_bytes"));
            json_object_set(entry, "extents", json_object_get(volume, "extents"));
        }
        if (json_array_append_new(volumes, entry) < 0)
            return error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

static int compare(struct history_job *job, const struct history_moment *from,
                   const struct history_moment *to, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *a = NULL, *b = NULL, *point_a = NULL, *point_b = NULL, *objects = NULL,
                          *streams = NULL, *volumes = json_array();
    size_t i;
    json_t *stream;
    int r = read_objects(job, from, json_text(job->spec, "from"), &a, &point_a, err);
    if (r < 0 || (r = read_objects(job, to, json_text(job->spec, "to"), &b, &point_b, err)) < 0 ||
        (r = objects_diff(a, b, &objects, err)) < 0 || (r = history_streams(job, &streams, err)) < 0)
        return r;
    cut(job, objects);
    json_array_foreach(streams, i, stream)
    {
        if ((r = history_progress(job, json_text(stream, "stream"), i, json_array_size(streams), err)) < 0 ||
            (r = diff_stream(job, stream, from, to, volumes, err)) < 0)
            return r;
    }
    *ret = json_pack("{s:s, s:O, s:O, s:O, s:O}", "application", job->application, "from", point_a, "to",
                     point_b, "objects", objects, "volumes", volumes);
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int history_diff(struct history_job *job, json_t **ret, struct error *err)
{
    struct history_moment from, to;
    int r = history_moment(job, json_text(job->spec, "from"), &from, err);
    if (r == 0 && (r = history_moment(job, json_text(job->spec, "to"), &to, err)) == 0)
        r = compare(job, &from, &to, ret, err);
    else
        to = (struct history_moment){0};
    history_moment_release(&from);
    history_moment_release(&to);
    return r;
}
