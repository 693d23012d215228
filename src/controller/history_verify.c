/* SPDX-License-Identifier: Apache-2.0 */
/* Reading everything: the objects' journal here, the streams on their nodes, one after the other. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/history_internal.h"
#include "lib/json.h"

#define DAMAGES_TOLD 100u /* of a journal */
#define LOOK_MS "1000"

/* ---- the objects ---- */

struct reading {
    struct history_job *job;
    json_t *damage;
};

static json_t *time_json(uint64_t ns)
{
    char text[CLOCK_TEXT_BYTES];
    return ns ? json_string(clock_format_rfc3339(ns, text)) : json_null();
}

static void on_damage(void *context, const struct verify_damage *d)
{
    struct reading *reading = context;
    if (json_array_size(reading->damage) < DAMAGES_TOLD)
        json_array_append_new(reading->damage,
                              json_pack("{s:s, s:s, s:I, s:I, s:o, s:o}", "file", d->file, "what", d->what,
                                        "low_lsn", (json_int_t)d->low.n, "high_lsn", (json_int_t)d->high.n,
                                        "low_time", time_json(d->low_realtime_ns), "high_time",
                                        time_json(d->high_realtime_ns)));
}

static void on_progress(void *context, uint64_t done, uint64_t total)
{
    struct error unused = ERROR_INIT;
    if (history_progress(((struct reading *)context)->job, "the objects' journal", done, total, &unused) < 0)
        return; /* it is short: it is read to its end */
}

static int verify_objects(struct history_job *job, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *damage = json_array();
    struct reading reading = {job, damage};
    const struct verify_report report = {on_damage, on_progress, &reading};
    struct verify_summary s = {0};
    int r = object_store_verify(job->c->store, job->namespace, job->application, &report, &s, err);
    if (r < 0 && r != -EBADMSG)
        return r;
    *ret = json_pack("{s:b, s:I, s:I, s:I, s:O}", "ok", (int)(r == 0), "records", (json_int_t)s.records,
                     "bytes", (json_int_t)s.bytes, "damages", (json_int_t)s.damages, "damage", damage);
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* ---- a stream ---- */

/* The volume of a damage by the claim that has it. */
static void name_claims(const json_t *stream, json_t *damage)
{
    size_t i;
    json_t *one, *handle;
    const char *claim;
    json_array_foreach(damage, i, one)
    {
        json_object_foreach(json_object_get(stream, "handles"), claim, handle)
        {
            if (strcmp(json_string_value(handle), json_text(one, "volume")) == 0)
                json_object_set_new(one, "claim", json_string(claim));
        }
    }
}

/* Until the node's operation has ended; *ret is what it found. */
static int await(struct history_job *job, const json_t *stream, const char *id, json_t **ret,
                 struct error *err)
{
    char path[160];
    snprintf(path, sizeof path, "/v1/operations/%.100s?wait_ms=" LOOK_MS, id);
    for (;;) {
        _cleanup_json_ json_t *answer = NULL;
        int r = data_client_call(job->c->data, json_text(stream, "node"), "GET", path, NULL,
                                 DATA_STATUS_TIMEOUT_MS, &answer, err);
        if (r < 0)
            return r;
        const json_t *operation = json_object_get(answer, "operation"),
                     *progress = json_object_get(operation, "progress");
        const char *state = json_text(operation, "state");
        if (strcmp(state, "succeeded") == 0) {
            *ret = json_incref(json_object_get(operation, "result"));
            return *ret ? 0
                        : error_set(err, -EPROTO, "the verification of stream %s has no result",
                                    json_text(stream, "stream"));
        }
        if (strcmp(state, "running") != 0)
            return error_set(err, -EIO, "%s", json_text(json_object_get(operation, "error"), "message"));
        r = history_progress(job, json_text(stream, "stream"),
                             (uint64_t)json_integer_value(json_object_get(progress, "done")),
                             (uint64_t)json_integer_value(json_object_get(progress, "total")), err);
        if (r < 0)
            return r;
    }
}

static int verify_stream(struct history_job *job, const json_t *stream, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *answer = NULL, *body = json_object(), *result = NULL;
    int r = history_call(job, stream, "POST", HISTORY_STREAM, "/verify", body, &answer, err);
    if (r == 0)
        r = await(job, stream, json_text(json_object_get(answer, "operation"), "id"), &result, err);
    if (r < 0)
        return r;
    name_claims(stream, json_object_get(result, "damage"));
    *ret = json_pack("{s:O, s:O, s:O, s:O*, s:O*, s:O*, s:O*, s:O*}", "stream",
                     json_object_get(stream, "stream"), "node", json_object_get(stream, "node"), "claims",
                     json_object_get(stream, "claims"), "ok", json_object_get(result, "ok"), "records",
                     json_object_get(result, "records"), "bytes", json_object_get(result, "bytes"), "damages",
                     json_object_get(result, "damages"), "damage", json_object_get(result, "damage"));
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* ---- all of it ---- */

int history_verify(struct history_job *job, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *objects = NULL, *streams = NULL, *read = json_array();
    bool complete = true;
    size_t i;
    json_t *stream;
    int r = verify_objects(job, &objects, err);
    if (r == 0)
        r = history_streams(job, &streams, err);
    if (r < 0)
        return r;
    bool ok = json_is_true(json_object_get(objects, "ok"));
    json_array_foreach(streams, i, stream)
    {
        struct error one = ERROR_INIT;
        json_t *result = NULL;
        if ((r = history_progress(job, json_text(stream, "stream"), 0, 0, err)) < 0)
            return r;
        if (verify_stream(job, stream, &result, &one) < 0) {
            if (one.code == -ECANCELED) {
                *err = one;
                return one.code;
            }
            complete = false;
            result = json_pack("{s:O, s:O, s:O, s:s}", "stream", json_object_get(stream, "stream"), "node",
                               json_object_get(stream, "node"), "claims", json_object_get(stream, "claims"),
                               "error", one.message);
        }
        ok = ok && !json_is_false(json_object_get(result, "ok"));
        if (json_array_append_new(read, result) < 0)
            return error_set(err, -ENOMEM, "out of memory");
    }
    *ret = json_pack("{s:s, s:b, s:b, s:O, s:O}", "application", job->application, "ok", (int)ok, "complete",
                     (int)complete, "objects", objects, "streams", read);
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}
