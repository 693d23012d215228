/* SPDX-License-Identifier: Apache-2.0 */
/* The volumes of recoveries (struct data_ops) over the node agents. The context is struct controller. */
#include "controller/recovery_streams.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/controller_internal.h"
#include "lib/json.h"

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* Names of the claims in a set of objects. */
static json_t *claims_of_set(const json_t *set)
{
    json_t *names = json_object(), *object;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)set, key, object)
    {
        const char *name = kube_object_name(object);
        if (name && strncmp(key, "core/v1/PersistentVolumeClaim/", 30) == 0)
            json_object_set_new(names, name, json_true());
    }
    return names;
}

/* What came after the point has no state there: it is left alone. An application that is a group does not
 * journal all its claims, so that of such a one all count. */
static int streams(void *context, const char *namespace, const char *application, const json_t *wanted,
                   json_t **ret, struct error *err)
{
    struct controller *c = context;
    _cleanup_json_ json_t *papp = kube_informer_get(c->applications, namespace, application);
    _cleanup_json_ json_t *handles = NULL, *at_point = claims_of_set(wanted), *chosen = json_object();
    json_t *handle;
    const char *claim, *group = papp ? application_group(papp) : NULL;
    int r = volumes_handles(c, namespace, group, &handles, err);
    if (r < 0)
        return r;
    json_object_foreach(handles, claim, handle)
    {
        if (group || json_object_get(at_point, claim))
            json_object_set(chosen, claim, handle);
    }
    return data_client_streams(c->data, chosen, ret, err);
}

static int call(struct controller *c, const json_t *stream, const char *method, const char *format,
                const json_t *body, json_t **ret, struct error *err)
{
    char path[160];
    snprintf(path, sizeof path, format, text_of(stream, "stream"));
    return data_client_call(c->data, text_of(stream, "node"), method, path, body, DATA_TIMEOUT_MS, ret, err);
}

static int plan(void *context, const json_t *stream, const char *point, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = json_pack("{s:s, s:b}", "to", point, "dry_run", 1), *answer = NULL;
    int r = call(context, stream, "POST", "/v1/applications/%s/rewind", body, &answer, err);
    if (r < 0)
        return r;
    json_t *plan = json_object_get(answer, "plan");
    *ret = json_pack("{s:O, s:O, s:O, s:O}", "target_lsn", json_object_get(plan, "target_lsn"), "target_time",
                     json_object_get(plan, "target_time"), "changed_bytes",
                     json_object_get(plan, "changed_bytes"), "volumes", json_object_get(plan, "volumes"));
    return *ret ? 0
                : error_set(err, -EPROTO, "the plan of stream %s lacks fields", text_of(stream, "stream"));
}

static int gate(void *context, const json_t *stream, bool closed, struct error *err)
{
    _cleanup_json_ json_t *body = json_pack("{s:b}", "closed", (int)closed);
    return call(context, stream, "POST", "/v1/streams/%s/gate", body, NULL, err);
}

/* What became of the rewind: 0 done, -EAGAIN under way. */
static int judge(const json_t *stream, const json_t *rewind, json_t **ret, struct error *err)
{
    const char *state = text_of(rewind, "state");
    uint64_t lsn = 0;
    if (strcmp(state, "failed") == 0)
        return error_set(err, -EIO, "%s", text_of(rewind, "message"));
    if (strcmp(state, "succeeded") != 0)
        return error_set(err, -EAGAIN,
                         strcmp(state, "waiting") == 0
                             ? "stream %s: waiting until the pods that use its volumes have ended"
                             : "stream %s is being put back",
                         text_of(stream, "stream"));
    int r = json_get_u64(json_object_get(rewind, "result"), "lsn", &lsn, err);
    if (r < 0)
        return r;
    *ret =
        json_pack("{s:I, s:O*, s:O*}", "before_lsn", (json_int_t)(lsn ? lsn - 1 : 0), "waited_ms",
                  json_object_get(rewind, "waited_ms"), "rewound_ms", json_object_get(rewind, "rewound_ms"));
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int rewind_stream(void *context, const json_t *stream, uint64_t lsn, const char *id, json_t **ret,
                         struct error *err)
{
    _cleanup_json_ json_t *answer = NULL;
    json_t *to = json_sprintf("lsn:%llu", (unsigned long long)lsn);
    _cleanup_json_ json_t *body = json_pack("{s:o, s:s, s:b}", "to", to, "id", id, "keep_closed", 1);
    int r = call(context, stream, "POST", "/v1/streams/%s/rewind", body, &answer, err);
    if (r < 0)
        return r;
    const json_t *rewind = json_object_get(answer, "rewind");
    if (strcmp(text_of(rewind, "id"), id) != 0)
        return error_set(err, -EBUSY, "stream %s is being put back to %s by another recovery (%s)",
                         text_of(stream, "stream"), text_of(rewind, "to"), text_of(rewind, "id"));
    return judge(stream, rewind, ret, err);
}

const struct data_ops recovery_streams_ops = {streams, plan, gate, rewind_stream};
