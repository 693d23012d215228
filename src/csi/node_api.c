/* SPDX-License-Identifier: Apache-2.0 */
/* The HTTPS endpoint of a node, for the controller:
 *
 *   GET  /v1/streams                     {"node", "streams": [STREAM]}
 *   GET  /v1/streams/{stream}            STREAM: {"name", "closed", "rewind", "volumes": [{"handle",
 * "staging", "block", "published"}]} POST /v1/streams/{stream}/gate       {"closed": BOOL} -> STREAM POST
 * /v1/streams/{stream}/rewind     {"to": POINT, "id": TEXT, "keep_closed": BOOL} -> 202 STREAM; the same id
 * again is the same rewind POST /v1/streams/{stream}/undo       {"id": TEXT} -> 202 STREAM
 *   POST /v1/streams/{stream}/release    {} -> {"name", "released"}: of backing class; its journal is closed and unmounted
 *   POST /v1/streams/{stream}/open       {"attachment": UID, "devices": TEXT} as in publish_context -> {"name", "open"}: of backing
 * class; its journal is mounted, and what it holds is started
 *   POST /v1/streams/{stream}/policy     {"spec": {...}} -> STREAM: its ProtectionPolicy, as the data plane knows them; anything else below /v1/ the data
 * plane's API, handed on (api/openapi.yaml) */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "csi/node_internal.h"
#include "lib/http_client.h"

#define PREFIX "/v1/streams"
#define APPLICATIONS "/v1/applications"

/* `gate` may be NULL: looked up. */
static int stream_json(struct csi_node *node, const char *stream, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *gate = NULL, *list = json_array();
    struct node_volume *volumes = NULL;
    size_t count = 0;
    int r = node_volumes_list(node, stream, &volumes, &count, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:I}", "handle", volumes[i].handle, "staging",
                                              volumes[i].staging, "block", volumes[i].block, "published",
                                              (json_int_t)node_volume_published(&volumes[i])));
    node_volumes_free(volumes, count);
    {
        MUTEX_GUARD(guard, &node->mutex);
        r = node_gate_load(node, stream, &gate, err);
    }
    if (r < 0)
        return r;
    *ret = json_pack("{s:s, s:O, s:O, s:O}", "name", stream, "closed", json_object_get(gate, "closed"),
                     "rewind", json_object_get(gate, "rewind"), "volumes", list);
    return *ret ? 0 : error_set(err, -EIO, "the gate file of stream %s lacks fields", stream);
}

static int streams_json(struct csi_node *node, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *answer = NULL, *list = json_array();
    size_t i;
    json_t *application;
    int r = node_data_call(node, "GET", "/v1/status", NULL, &answer, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(answer, "applications"), i, application)
    {
        json_t *one = NULL;
        const char *name = json_string_value(json_object_get(application, "name"));
        r = name ? stream_json(node, name, &one, err) : 0;
        if (r < 0)
            return r;
        if (one)
            json_array_append_new(list, one);
    }
    *ret = json_pack("{s:s, s:O}", "node", node->options.node_name, "streams", list);
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int change_stream(struct csi_node *node, const char *stream, const char *verb,
                         const struct http_request *request, struct error *err)
{
    _cleanup_json_ json_t *body = NULL, *gate = NULL;
    const char *to = NULL, *id = "";
    bool closed = false, keep_closed = false;
    int r = http_request_json(request, &body, err);
    if (r < 0)
        return r;
    if (strcmp(verb, "gate") == 0) {
        r = json_reject_unknown(body, err, "closed", NULL);
        if (r == 0)
            r = json_get_bool(body, "closed", &closed, err);
        return r == 0 ? node_gate_set(node, stream, closed, &gate, err) : r;
    }
    if (strcmp(verb, "policy") == 0) {
        r = json_reject_unknown(body, err, "spec", NULL);
        if (r == 0 && !json_is_object(json_object_get(body, "spec")))
            r = error_set(err, -EINVAL, "spec: expected an object");
        return r == 0 ? node_stream_set_policy(node, stream, json_object_get(body, "spec"), err) : r;
    }
    bool undo = strcmp(verb, "undo") == 0;
    r = undo ? json_reject_unknown(body, err, "id", NULL) : json_reject_unknown(body, err, "to", "id", "keep_closed", NULL);
    if (r == 0 && !undo)
        r = json_get_string(body, "to", &to, err);
    if (r == 0)
        r = json_get_optional_string(body, "id", &id, err);
    if (r == 0)
        r = json_get_optional_bool(body, "keep_closed", &keep_closed, err);
    return r == 0 ? node_rewind_start(node, stream, id, to, keep_closed, &gate, err) : r;
}

/* "/v1/streams/<stream>[/<verb>]" in two. */
static int split(const char *path, char stream[CSI_HANDLE_BYTES], const char **ret_verb, struct error *err)
{
    const char *name = path + strlen(PREFIX "/"), *slash = strchr(name, '/');
    size_t length = slash ? (size_t)(slash - name) : strlen(name);
    if (length >= CSI_HANDLE_BYTES)
        return error_set(err, -ENOENT, "there is no stream '%.80s'", name);
    snprintf(stream, CSI_HANDLE_BYTES, "%.*s", (int)length, name);
    *ret_verb = slash ? slash + 1 : "";
    struct error reason = ERROR_INIT;
    return app_check_name(stream, &reason) < 0 ? error_set(err, -ENOENT, "there is no stream '%.80s'", stream)
                                               : 0;
}

/* A stream exists once the data plane has it. */
static int check_stream(struct csi_node *node, const char *stream, struct error *err)
{
    char path[64 + CSI_HANDLE_BYTES];
    _cleanup_json_ json_t *answer = NULL;
    snprintf(path, sizeof path, "/v1/status?app=%s", stream);
    return node_data_call(node, "GET", path, NULL, &answer, err);
}

/* A stream that is not here any more, of backing class, can have its gate opened all the same: whoever opened it and then let go of
 * the stream may not know that he did. */
static bool opens_gate(const struct http_request *request, const char *verb)
{
    _cleanup_json_ json_t *body = NULL;
    struct error ignored = ERROR_INIT;
    return strcmp(verb, "gate") == 0 && strcmp(request->method, "POST") == 0 &&
           http_request_json(request, &body, &ignored) == 0 && json_is_false(json_object_get(body, "closed"));
}

/* For a recovery of volumes that no pod uses. */
static int open_store(struct csi_node *node, const char *stream, const struct http_request *request, struct http_response *response,
                      struct error *err)
{
    _cleanup_json_ json_t *body = NULL;
    struct node_attachment a = {0};
    int r = strcmp(request->method, "POST") == 0 ? http_request_json(request, &body, err)
                                                 : http_refuse_method(request, response, "POST", err);
    if (r == 0)
        r = json_reject_unknown(body, err, "attachment", "devices", NULL);
    if (r == 0)
        r = json_get_string(body, "attachment", &a.pod, err);
    if (r == 0)
        r = json_get_string(body, "devices", &a.devices, err);
    if (r == 0)
        r = node_store_begin(node, stream, err);
    if (r < 0)
        return r;
    r = node_store_open(node, stream, &a, err);
    node_store_end(node, stream);
    if (r == 0)
        http_response_json(response, 200, json_pack("{s:s, s:b}", "name", stream, "open", 1));
    return r;
}

/* A stream that nobody has open is released. */
static int release(struct csi_node *node, const char *stream, const struct http_request *request, struct http_response *response,
                   struct error *err)
{
    _cleanup_json_ json_t *body = NULL;
    int r = strcmp(request->method, "POST") == 0 ? http_request_json(request, &body, err)
                                                 : http_refuse_method(request, response, "POST", err);
    if (r == 0)
        r = json_reject_unknown(body, err, NULL);
    if (r == 0)
        r = node_store_release(node, stream, err);
    if (r == 0)
        http_response_json(response, 200, json_pack("{s:s, s:b}", "name", stream, "released", 1));
    return r;
}

static int handle_stream(struct csi_node *node, const struct http_request *request,
                         struct http_response *response, struct error *err)
{
    char stream[CSI_HANDLE_BYTES];
    const char *verb = "";
    json_t *json = NULL;
    int status = 200;
    int r = split(request->path, stream, &verb, err);
    if (r == 0 && strcmp(verb, "open") == 0)
        return open_store(node, stream, request, response, err);
    if (r == 0 && strcmp(verb, "release") == 0)
        return release(node, stream, request, response, err);
    if (r == 0)
        r = check_stream(node, stream, err);
    if (r == -ENOENT && opens_gate(request, verb)) {
        *err = ERROR_INIT;
        r = 0;
    }
    bool starts = strcmp(verb, "rewind") == 0 || strcmp(verb, "undo") == 0;
    bool known = starts || strcmp(verb, "gate") == 0 || strcmp(verb, "policy") == 0;
    if (r == 0 && *verb && !known)
        r = error_set(err, -ENOENT, "there is no %s %s", request->method, request->path);
    if (r == 0 && strcmp(request->method, *verb ? "POST" : "GET") != 0)
        r = http_refuse_method(request, response, *verb ? "POST" : "GET", err);
    if (r == 0 && *verb) {
        r = change_stream(node, stream, verb, request, err);
        status = starts ? 202 : 200;
    }
    if (r == 0)
        r = stream_json(node, stream, &json, err);
    if (r == 0)
        http_response_json(response, status, json);
    return r;
}

/* The stream that a request would delete; NULL: none. */
static const char *stream_to_delete(const struct http_request *request)
{
    struct error ignored = ERROR_INIT;
    const char *stream = request->path + strlen(APPLICATIONS "/");
    bool deletes = strcmp(request->method, "DELETE") == 0 &&
                   strncmp(request->path, APPLICATIONS "/", strlen(APPLICATIONS "/")) == 0;
    return deletes && app_check_name(stream, &ignored) == 0 ? stream : NULL;
}

/* What is being put back is not to be destroyed. */
static int check_deletable(struct csi_node *node, const char *stream, struct error *err)
{
    _cleanup_json_ json_t *gate = NULL;
    MUTEX_GUARD(guard, &node->mutex);
    int r = node_gate_load(node, stream, &gate, err);
    if (r == 0 && json_is_true(json_object_get(gate, "closed")))
        r = error_set(err, -EBUSY, "the gate of stream %s is closed: a recovery is putting it back", stream);
    return r;
}

/* A stream that is destroyed leaves no gate. */
static void forget_gate(struct csi_node *node, const char *stream)
{
    struct error err = ERROR_INIT;
    MUTEX_GUARD(guard, &node->mutex);
    if (node_gate_remove(node, stream, &err) < 0)
        log_warning(node->options.log, "stream %s: %s", stream, err.message);
}

static int hand_on(struct csi_node *node, const struct http_request *request, struct http_response *response,
                   struct error *err)
{
    const struct http_client_options options = {
        .socket_path = node->options.data_socket,
        .unreachable_hint = "is the data plane, `tidemark data`, running on this node?"};
    _cleanup_free_ char *target = NULL;
    char *text = NULL;
    int status = 0;
    const char *stream = stream_to_delete(request);
    int r = stream ? check_deletable(node, stream, err) : 0;
    if (r == 0)
        r = http_request_target(request, &target, err);
    if (r == 0)
        r = http_client_exchange(&options, request->method, target,
                                 request->body_length_bytes ? request->body : NULL, NODE_DATA_TIMEOUT_MS,
                                 &status, &text, err);
    if (r == 0 && stream && status == 200)
        forget_gate(node, stream);
    if (r == 0)
        http_response_text(
            response, status,
            strcmp(request->path, "/metrics") == 0 ? "text/plain; version=0.0.4" : "application/json", text);
    return r;
}

int node_api_handle(void *context, const struct http_request *request, struct http_response *response,
                    struct error *err)
{
    struct csi_node *node = context;
    json_t *json = NULL;
    if (strncmp(request->path, PREFIX "/", strlen(PREFIX "/")) == 0)
        return handle_stream(node, request, response, err);
    if (strcmp(request->path, PREFIX) != 0)
        return hand_on(node, request, response, err);
    if (strcmp(request->method, "GET") != 0)
        return http_refuse_method(request, response, "GET", err);
    int r = streams_json(node, &json, err);
    if (r == 0)
        http_response_json(response, 200, json);
    return r;
}
