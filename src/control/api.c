/* SPDX-License-Identifier: Apache-2.0 */
/* The API: one table of routes, which api/openapi.yaml describes (a test compares them), and one function a
 * route. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "control/api_internal.h"
#include "control/work_internal.h"
#include "lib/http_client.h"

#define POINTS_LIMIT_MAX 100000u
#define PLAN_WAIT_MS 5000u

struct call {
    struct control *control;
    const struct http_request *request;
    char argument[128]; /* what stands for {} in the route */
    int status;
};

static int do_version(struct call *c, json_t **ret, struct error *err)
{
    char time[CLOCK_TEXT_BYTES];
    (void)err;
    *ret = json_pack("{s:s, s:s, s:i, s:s, s:s}", "version", TIDEMARK_VERSION, "api_version", "v1", "pid",
                     (int)getpid(), "state_directory", c->control->state_directory, "started_time",
                     clock_format_rfc3339(c->control->started_realtime_ns, time));
    return 0;
}

static int do_status(struct call *c, json_t **ret, struct error *err)
{
    return status_to_json(c->control, http_request_query(c->request, "app"), ret, err);
}

static int query_flag(const struct call *c, const char *name, bool *ret, struct error *err)
{
    const char *text = http_request_query(c->request, name);
    *ret = text && (strcmp(text, "true") == 0 || strcmp(text, "1") == 0);
    return !text || *ret || strcmp(text, "false") == 0 || strcmp(text, "0") == 0
               ? 0
               : error_set(err, -EINVAL, "%s: expected true or false, found '%.60s'", name, text);
}

static int do_apply(struct call *c, json_t **ret, struct error *err)
{
    const char *file = http_request_query(c->request, "file"),
               *directory = http_request_query(c->request, "directory");
    if (directory && directory[0] != '/')
        return error_set(err, -EINVAL, "directory: expected an absolute path");
    if (atomic_load(&c->control->stopping))
        return error_set(err, -EBUSY, "`tidemark up` is stopping");
    bool dry_run;
    int r = query_flag(c, "dry_run", &dry_run, err);
    return r < 0 ? r : apply_documents(c->control, c->request->body, c->request->body_length_bytes, file && file[0] ? file : "request",
                                       directory, dry_run, ret, err);
}

static int do_delete(struct call *c, json_t **ret, struct error *err)
{
    bool purge;
    int r = query_flag(c, "purge", &purge, err);
    return r < 0 ? r : apply_delete(c->control, c->argument, purge, ret, err);
}

static int do_detach(struct call *c, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = NULL;
    int r = http_request_json(c->request, &body, err);
    if (r == 0)
        r = json_reject_unknown(body, err, NULL);
    return r < 0 ? r : apply_detach(c->control, c->argument, ret, err);
}

static int do_store_open(struct call *c, json_t **ret, struct error *err)
{
    const char *device = NULL;
    bool again = false;
    _cleanup_json_ json_t *body = NULL;
    int r = http_request_json(c->request, &body, err);
    if (r == 0)
        r = json_reject_unknown(body, err, "device", "again", NULL);
    if (r == 0)
        r = json_get_string(body, "device", &device, err);
    if (r == 0 && json_object_get(body, "again"))
        r = json_get_bool(body, "again", &again, err);
    if (r == 0 && atomic_load(&c->control->stopping))
        r = error_set(err, -EBUSY, "`tidemark data` is stopping");
    return r < 0 ? r : store_open(c->control, c->argument, device, again, ret, err);
}

static int do_store_close(struct call *c, json_t **ret, struct error *err)
{
    return store_close(c->control, c->argument, ret, err);
}

static int do_points(struct call *c, json_t **ret, struct error *err)
{
    const char *since = http_request_query(c->request, "since"),
               *limit = http_request_query(c->request, "limit");
    uint64_t count = 50;
    char path[512];
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    if (!a)
        return err->code;
    if (limit && *limit && units_parse_u64(limit, POINTS_LIMIT_MAX, &count, err) < 0) {
        error_context(err, "limit");
        return err->code = -EINVAL;
    }
    _cleanup_free_ char *encoded = http_client_encode(since ? since : "");
    if (!encoded)
        return error_set(err, -ENOMEM, "out of memory");
    if (snprintf(path, sizeof path, "/v1/points?limit=%llu%s%s", (unsigned long long)count,
                 *encoded ? "&since=" : "", encoded) >= (int)sizeof path)
        return error_set(err, -EINVAL, "since: too long for a point");
    int r = application_call(a, "GET", path, NULL, CONTROL_CALL_TIMEOUT_MS, ret, err);
    if (r == 0)
        json_object_set_new(*ret, "application", json_string(a->name));
    return r;
}

static int do_last_clean(struct call *c, json_t **ret, struct error *err)
{
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    if (!a)
        return err->code;
    int r = application_call(a, "GET", "/v1/last-clean", NULL, CONTROL_CALL_TIMEOUT_MS, ret, err);
    if (r == 0)
        json_object_set_new(*ret, "application", json_string(a->name));
    return r;
}

/* The tag of that name, if it was given at `since_ns` or later. */
static int find_new_tag(const struct application *a, const json_t *request, uint64_t since_ns, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = json_pack("{s:o}", "point", json_sprintf("tag:%s", json_string_value(json_object_get(request, "name"))));
    _cleanup_json_ json_t *answer = NULL;
    const char *time = NULL;
    uint64_t time_ns = 0;
    int r = application_call(a, "POST", "/v1/resolve", body, CONTROL_CALL_TIMEOUT_MS, &answer, err);
    if (r == 0)
        r = json_get_string(answer, "time", &time, err);
    if (r == 0)
        r = clock_parse_rfc3339(time, &time_ns, err);
    if (r == 0 && time_ns < since_ns)
        r = error_set(err, -EEXIST, "the tag is an older one");
    if (r == 0)
        *ret = take_ptr(answer);
    return r;
}

/* An engine that dies over it may have written the tag or not: the next one is asked again, and knows. */
static int give_tag(const struct application *a, const json_t *body, json_t **ret, struct error *err)
{
    uint64_t begin = clock_realtime_ns(clock_system()) / NS_PER_US * NS_PER_US; /* as answers tell times */
    int r = application_call(a, "POST", "/v1/tag", body, CONTROL_CALL_TIMEOUT_MS, ret, err);
    if (r != -ECONNRESET)
        return r;
    struct error ignored = ERROR_INIT;
    log_warning(a->control->log, "%s: %s; asking the next engine", a->name, err->message);
    *err = ERROR_INIT;
    r = application_call(a, "POST", "/v1/tag", body, CONTROL_CALL_TIMEOUT_MS, ret, err);
    return r < 0 && find_new_tag(a, body, begin, ret, &ignored) == 0 ? 0 : r;
}

/* After application_sync: whether the answer lacks something is part of it. */
static void note_unsynced(json_t *answer, bool synced)
{
    if (!synced && !json_is_string(json_object_get(answer, "note")))
        json_object_set_new(answer, "note",
                            json_string("not all that Linux held in memory could be written to the volumes before: what was written last and not "
                                        "flushed may be missing"));
}

static int do_tag(struct call *c, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = NULL;
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    if (!a)
        return err->code;
    bool synced = application_sync(a);
    int r = http_request_json(c->request, &body, err);
    if (r == 0)
        r = give_tag(a, body, ret, err);
    if (r == 0)
        json_object_set(*ret, "name", json_object_get(body, "name"));
    if (r == 0)
        note_unsynced(*ret, synced);
    return r;
}

static bool is_latest(const json_t *body, const char *field)
{
    const char *point = json_string_value(json_object_get(body, field));
    return point && strcmp(point, "latest") == 0;
}

/* Compared with what is there now, what Linux has in memory is part of that. */
static int do_diff(struct call *c, json_t **ret, struct error *err)
{
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    _cleanup_json_ json_t *body = NULL;
    if (!a)
        return err->code;
    int r = http_request_json(c->request, &body, err);
    if (r < 0)
        return r;
    bool synced = (!is_latest(body, "from") && !is_latest(body, "to")) || application_sync(a);
    r = application_call(a, "POST", "/v1/diff", body, CONTROL_REWIND_TIMEOUT_MS, ret, err);
    if (r == 0)
        note_unsynced(*ret, synced);
    return r;
}

static int start_work(struct call *c, struct application *a, enum work_kind kind, json_t *body, json_t **ret,
                      struct error *err)
{
    char id[CONTROL_ID_BYTES];
    int r = work_start(a, kind, body, id, err);
    if (r < 0)
        return r;
    json_t *operation = operation_to_json(c->control, id, 0, 0, err);
    if (!operation)
        return err->code;
    c->status = 202;
    *ret = json_pack("{s:o}", "operation", operation);
    return 0;
}

static int do_open(struct call *c, json_t **ret, struct error *err)
{
    const char *point;
    _cleanup_json_ json_t *body = NULL;
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    int r = a ? http_request_json(c->request, &body, err) : err->code;
    if (r == 0)
        r = json_reject_unknown(body, err, "point", "volume", "mount", "nbd", "salvage", NULL);
    if (r == 0)
        r = json_get_string(body, "point", &point, err);
    return r < 0 ? r : start_work(c, a, WORK_OPEN, body, ret, err);
}

static int plan(struct application *a, const char *to, json_t **ret, struct error *err)
{
    json_t *answer = NULL;
    int r = application_begin(a, "plan", PLAN_WAIT_MS, err);
    if (r < 0)
        return r;
    bool synced = application_sync(a); /* a rewind unmounts, which is more */
    r = rewind_plan(a, to, &answer, err);
    application_end(a);
    if (r == 0)
        note_unsynced(answer, synced);
    if (r == 0)
        *ret = json_pack("{s:o}", "plan", answer);
    return r;
}

static int rewind_or_undo(struct call *c, bool undo, json_t **ret, struct error *err)
{
    bool dry_run = false;
    const char *to = NULL;
    _cleanup_json_ json_t *body = NULL;
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    int r = a ? http_request_json(c->request, &body, err) : err->code;
    if (r == 0)
        r = json_reject_unknown(body, err, "dry_run", undo ? NULL : "to", NULL);
    if (r == 0 && !undo)
        r = json_get_string(body, "to", &to, err);
    if (r == 0)
        r = json_get_optional_bool(body, "dry_run", &dry_run, err);
    if (r < 0)
        return r;
    return dry_run ? plan(a, to, ret, err) : start_work(c, a, undo ? WORK_UNDO : WORK_REWIND, body, ret, err);
}

static int do_rewind(struct call *c, json_t **ret, struct error *err)
{
    return rewind_or_undo(c, false, ret, err);
}

static int do_undo(struct call *c, json_t **ret, struct error *err)
{
    return rewind_or_undo(c, true, ret, err);
}

static int start_clone(struct call *c, struct application *source, json_t *body, json_t **ret, struct error *err)
{
    char id[CONTROL_ID_BYTES];
    struct error again = ERROR_INIT;
    _cleanup_application_ struct application *made = NULL;
    _cleanup_json_ json_t *request = json_deep_copy(body);
    if (!request || json_object_set_new(request, "source", json_string(source->name)) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    int r = clone_prepare(source, body, &made, err);
    if (r == 0) {
        r = work_start_busy(made, WORK_CLONE, request, id, err);
        if (r < 0)
            clone_abandon(made);
    } else if (r == -EBUSY) { /* asked again: that which is under way */
        operation_running_id(c->control, json_string_value(json_object_get(body, "name")), id);
        r = id[0] ? 0 : r;
    }
    json_t *operation = r == 0 ? operation_to_json(c->control, id, 0, 0, &again) : NULL;
    if (r == 0 && !operation)
        return error_set(err, again.code, "%s", again.message);
    if (r < 0)
        return r;
    c->status = 202;
    *ret = json_pack("{s:o}", "operation", operation);
    return 0;
}

static int do_clone(struct call *c, json_t **ret, struct error *err)
{
    bool dry_run = false;
    _cleanup_json_ json_t *body = NULL;
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    int r = a ? http_request_json(c->request, &body, err) : err->code;
    if (r == 0)
        r = clone_check_request(body, err);
    if (r == 0)
        r = json_get_optional_bool(body, "dry_run", &dry_run, err);
    if (r < 0)
        return r;
    return dry_run ? clone_plan(a, body, ret, err) : start_clone(c, a, body, ret, err);
}

static int do_verify(struct call *c, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = NULL;
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    int r = a ? http_request_json(c->request, &body, err) : err->code;
    if (r == 0)
        r = json_reject_unknown(body, err, NULL);
    return r < 0 ? r : start_work(c, a, WORK_VERIFY, body, ret, err);
}

static int do_upgrade(struct call *c, json_t **ret, struct error *err)
{
    bool disconnect = false;
    _cleanup_json_ json_t *body = NULL;
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    int r = a ? http_request_json(c->request, &body, err) : err->code;
    if (r == 0)
        r = json_reject_unknown(body, err, "disconnect", NULL);
    if (r == 0)
        r = json_get_optional_bool(body, "disconnect", &disconnect, err);
    return r < 0 ? r : start_work(c, a, WORK_UPGRADE, body, ret, err);
}

static int do_key(struct call *c, json_t **ret, struct error *err)
{
    const char *key_file;
    _cleanup_json_ json_t *body = NULL;
    _cleanup_application_ struct application *a = application_find(c->control, c->argument, err);
    int r = a ? http_request_json(c->request, &body, err) : err->code;
    if (r == 0)
        r = json_reject_unknown(body, err, "key_file", NULL);
    if (r == 0)
        r = json_get_string(body, "key_file", &key_file, err);
    return r < 0 ? r : key_rotate(a, key_file, ret, err);
}

static int do_views(struct call *c, json_t **ret, struct error *err)
{
    (void)err;
    *ret = json_pack("{s:o}", "views", views_to_json(c->control, NULL));
    return 0;
}

static int do_view(struct call *c, json_t **ret, struct error *err)
{
    json_t *view = view_to_json(c->control, c->argument, err);
    if (!view)
        return err->code;
    *ret = json_pack("{s:o}", "view", view);
    return 0;
}

static int do_close(struct call *c, json_t **ret, struct error *err)
{
    int r = view_close(c->control, c->argument, false, err);
    if (r == 0)
        *ret = json_pack("{s:s}", "id", c->argument);
    return r;
}

static int do_operations(struct call *c, json_t **ret, struct error *err)
{
    (void)err;
    *ret = operations_to_json(c->control);
    return 0;
}

static int do_operation(struct call *c, json_t **ret, struct error *err)
{
    const char *wait = http_request_query(c->request, "wait_ms"),
               *version = http_request_query(c->request, "version");
    uint64_t wait_ms = 0, above = UINT64_MAX;
    if (wait && *wait && units_parse_u64(wait, CONTROL_OPERATION_WAIT_MS_MAX, &wait_ms, err) < 0)
        return error_context(err, "wait_ms");
    if (version && *version && units_parse_u64(version, UINT64_MAX, &above, err) < 0)
        return error_context(err, "version");
    json_t *operation = operation_to_json(c->control, c->argument, above, (unsigned)wait_ms, err);
    if (!operation)
        return err->code;
    *ret = json_pack("{s:o}", "operation", operation);
    return 0;
}

static const struct {
    struct api_route route;
    int (*handle)(struct call *c, json_t **ret, struct error *err);
    const char *query; /* what a call that is no GET may have there, with spaces between them; NULL: nothing */
} routes[] = {
    {{"GET", "/v1/version"}, do_version, NULL},
    {{"GET", "/v1/status"}, do_status, NULL},
    {{"POST", "/v1/apply"}, do_apply, "directory file dry_run"},
    {{"DELETE", "/v1/applications/{app}"}, do_delete, "purge"},
    {{"POST", "/v1/applications/{app}/detach"}, do_detach, NULL},
    {{"POST", "/v1/applications/{app}/store"}, do_store_open, NULL},
    {{"DELETE", "/v1/applications/{app}/store"}, do_store_close, NULL},
    {{"GET", "/v1/applications/{app}/points"}, do_points, NULL},
    {{"GET", "/v1/applications/{app}/last-clean"}, do_last_clean, NULL},
    {{"POST", "/v1/applications/{app}/tag"}, do_tag, NULL},
    {{"POST", "/v1/applications/{app}/diff"}, do_diff, NULL},
    {{"POST", "/v1/applications/{app}/open"}, do_open, NULL},
    {{"POST", "/v1/applications/{app}/rewind"}, do_rewind, NULL},
    {{"POST", "/v1/applications/{app}/undo"}, do_undo, NULL},
    {{"POST", "/v1/applications/{app}/clone"}, do_clone, NULL},
    {{"POST", "/v1/applications/{app}/verify"}, do_verify, NULL},
    {{"POST", "/v1/applications/{app}/upgrade-engine"}, do_upgrade, NULL},
    {{"POST", "/v1/applications/{app}/key"}, do_key, NULL},
    {{"GET", "/v1/views"}, do_views, NULL},
    {{"GET", "/v1/views/{id}"}, do_view, NULL},
    {{"DELETE", "/v1/views/{id}"}, do_close, NULL},
    {{"GET", "/v1/operations"}, do_operations, NULL},
    {{"GET", "/v1/operations/{id}"}, do_operation, NULL},
    {{"GET", "/metrics"}, NULL, NULL},
};

size_t api_route_count(void)
{
    return sizeof routes / sizeof *routes;
}

const struct api_route *api_route(size_t i)
{
    return &routes[i].route;
}

bool api_match(const char *pattern, const char *path, char *argument, size_t size)
{
    argument[0] = '\0';
    while (*pattern) {
        if (*pattern == '{') {
            size_t length = strcspn(path, "/");
            if (!length || length >= size)
                return false;
            memcpy(argument, path, length);
            argument[length] = '\0';
            path += length;
            pattern = strchr(pattern, '}') + 1;
        } else if (*pattern++ != *path++)
            return false;
    }
    return !*path;
}

static int answer_metrics(struct control *control, struct http_response *response, struct error *err)
{
    char *text = metrics_text(control);
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    http_response_text(response, 200, "text/plain; version=0.0.4; charset=utf-8", text);
    return 0;
}

int api_handle(void *context, const struct http_request *request, struct http_response *response,
               struct error *err)
{
    struct call c = {.control = context, .request = request, .status = 200};
    char allowed[HTTP_SERVER_ALLOW_BYTES] = "";
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        json_t *answer = NULL;
        if (!api_match(routes[i].route.path, request->path, c.argument, sizeof c.argument))
            continue;
        http_allow_method(allowed, routes[i].route.method);
        if (strcmp(request->method, routes[i].route.method) != 0)
            continue;
        if (!routes[i].handle)
            return answer_metrics(c.control, response, err);
        /* What changes something does not guess: a flag that is not known may have been meant to keep it from that. */
        int r = strcmp(request->method, "GET") == 0 ? 0 : http_request_check_query(request, routes[i].query ? routes[i].query : "", err);
        if (r == 0)
            r = routes[i].handle(&c, &answer, err);
        if (r < 0) {
            json_decref(answer);
            return r;
        }
        http_response_json(response, c.status, answer);
        return 0;
    }
    return *allowed ? http_refuse_method(request, response, allowed, err)
                    : error_set(err, -ENOENT, "the API has no %s %.200s", request->method, request->path);
}
