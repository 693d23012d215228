/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/data_client.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/thread.h"
#include "lib/http_client.h"
#include "lib/json.h"

#define AGENT_SELECTOR "app.kubernetes.io/component=node"
#define AGENT_PORT "agent"
#define ADDRESS_BYTES 96

struct data_client {
    struct data_client_options options;
    pthread_mutex_t mutex;
    json_t *agents; /* {node: "address:port"}: as last seen; forgotten when nobody answers there */
};

int data_client_new(const struct data_client_options *options, struct data_client **ret, struct error *err)
{
    struct data_client *d = calloc(1, sizeof *d);
    if (!d || !(d->agents = json_object())) {
        free(d);
        return error_errno(err, -ENOMEM, "client of the node agents");
    }
    d->options = *options;
    pthread_mutex_init(&d->mutex, NULL);
    *ret = d;
    return 0;
}

void data_client_free(struct data_client *d)
{
    if (!d)
        return;
    pthread_mutex_destroy(&d->mutex);
    json_decref(d->agents);
    free(d);
}

const struct data_client_options *data_client_options(const struct data_client *d)
{
    return &d->options;
}

/* ---- where an agent is ---- */

/* The port named `agent` of the pod's containers; 0: none. */
static long port_of(const json_t *pod)
{
    size_t i, k;
    json_t *container, *port;
    json_array_foreach(json_object_get(json_object_get(pod, "spec"), "containers"), i, container)
    {
        json_array_foreach(json_object_get(container, "ports"), k, port)
        {
            if (strcmp(json_text(port, "name"), AGENT_PORT) == 0)
                return (long)json_integer_value(json_object_get(port, "containerPort"));
        }
    }
    return 0;
}

static int look_up(struct data_client *d, const char *node, char ret[ADDRESS_BYTES], struct error *err)
{
    char selector[CSI_LABEL_BYTES + 16];
    size_t i;
    json_t *pod;
    _cleanup_json_ json_t *pods = NULL;
    snprintf(selector, sizeof selector, "spec.nodeName=%s", node);
    const struct kube_target target = {.resource = &kube_pods, .namespace = d->options.namespace};
    const struct kube_list_options options = {.label_selector = AGENT_SELECTOR, .field_selector = selector};
    int r = kube_list_all(d->options.client, &target, &options, &pods, err);
    if (r < 0)
        return error_context(err, "looking for the node agent of %s", node);
    json_array_foreach(pods, i, pod)
    {
        const char *ip = json_text(json_object_get(pod, "status"), "podIP");
        long port = port_of(pod);
        if (!*ip || !port || json_object_get(json_object_get(pod, "metadata"), "deletionTimestamp"))
            continue;
        snprintf(ret, ADDRESS_BYTES, strchr(ip, ':') ? "[%.60s]:%ld" : "%.60s:%ld", ip, port);
        return 0;
    }
    return error_set(err, -EAGAIN,
                     "node %s has no running node agent: kubectl -n %s get pods -l " AGENT_SELECTOR
                     " -o wide tells why; it goes on when the agent is back",
                     node, d->options.namespace);
}

static int address_of(struct data_client *d, const char *node, char ret[ADDRESS_BYTES], struct error *err)
{
    {
        MUTEX_GUARD(guard, &d->mutex);
        const char *known = json_string_value(json_object_get(d->agents, node));
        if (known) {
            snprintf(ret, ADDRESS_BYTES, "%s", known);
            return 0;
        }
    }
    int r = look_up(d, node, ret, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &d->mutex);
    return json_object_set_new(d->agents, node, json_string(ret)) < 0
               ? error_errno(err, -ENOMEM, "the node agent of %s", node)
               : 0;
}

static bool is_away(int code)
{
    return code == -ECONNREFUSED || code == -ECONNRESET || code == -ETIMEDOUT || code == -EHOSTUNREACH ||
           code == -ENETUNREACH;
}

int data_client_call(struct data_client *d, const char *node, const char *method, const char *path,
                     const json_t *body, unsigned timeout_ms, json_t **ret, struct error *err)
{
    char address[ADDRESS_BYTES], server[64];
    int r = address_of(d, node, address, err);
    if (r < 0)
        return r;
    snprintf(server, sizeof server, DATA_AGENT_NAME ":%s", strrchr(address, ':') + 1);
    const struct http_client_options options = {.server = server,
                                                .connect_to = address,
                                                .certificate = d->options.certificate,
                                                .key = d->options.key,
                                                .ca = d->options.ca,
                                                .unreachable_hint = "the node agent"};
    r = http_client_call_with(&options, method, path, body, timeout_ms, ret, err);
    if (is_away(r)) { /* its pod may be another one now */
        MUTEX_GUARD(guard, &d->mutex);
        json_object_del(d->agents, node);
        err->code = r = -EAGAIN;
    }
    return r < 0 ? error_context(err, "node %s", node) : 0;
}

/* ---- streams ---- */

static int by_stream(const void *a, const void *b)
{
    const json_t *const *x = a, *const *y = b;
    return strcmp(json_text(*x, "stream"), json_text(*y, "stream"));
}

static json_t *sorted(json_t *const *streams, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append(list, streams[i]);
    return list;
}

static int add_volume(json_t *streams, const struct csi_volume *v, const char *claim)
{
    json_t *stream = json_object_get(streams, v->stream);
    if (!stream) {
        stream =
            json_pack("{s:s, s:s, s:[], s:{}}", "stream", v->stream, "node", v->node, "claims", "handles");
        if (json_object_set_new(streams, v->stream, stream) < 0)
            return -ENOMEM;
    }
    if (json_object_set_new(json_object_get(stream, "handles"), claim, json_string(v->handle)) < 0)
        return -ENOMEM;
    return json_array_append_new(json_object_get(stream, "claims"), json_string(claim));
}

/* A stream of backing class that is attached nowhere comes to a node, and is opened there: into v->node. */
static int hold(struct data_client *d, struct csi_volume *v, const char *holder, struct error *err)
{
    const struct data_client_options *o = &d->options;
    char path[CSI_HANDLE_BYTES + 32];
    _cleanup_free_ struct csi_volume *all = NULL;
    _cleanup_free_ struct csi_attachment *attachment = calloc(1, sizeof *attachment);
    size_t count = 0, members = 0;
    if (!attachment)
        return error_errno(err, -ENOMEM, "streams");
    int r = o->records->list(o->records_context, &all, &count, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++)
        if (strcmp(all[i].stream, v->stream) == 0)
            all[members++] = all[i];
    r = o->classes->hold(o->classes_context, v->stream, all, members, holder, v->node, attachment, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *body = json_pack("{s:s, s:s}", "attachment", attachment->pod, "devices", attachment->devices);
    snprintf(path, sizeof path, "/v1/streams/%s/open", v->stream);
    return data_client_call(d, v->node, "POST", path, body, DATA_TIMEOUT_MS, NULL, err);
}

int data_client_let_go(struct data_client *d, const char *stream, struct error *err)
{
    const struct csi_class_ops *ops = d->options.classes;
    return ops ? ops->let_go(d->options.classes_context, stream, err) : 0;
}

int data_client_streams(struct data_client *d, const json_t *handles, const char *holder, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *streams = json_object();
    const char *claim;
    json_t *handle;
    size_t count = 0;
    json_object_foreach((json_t *)(uintptr_t)handles, claim, handle)
    {
        struct csi_volume volume;
        struct error one = ERROR_INIT;
        int r =
            d->options.records->load(d->options.records_context, json_string_value(handle), &volume, &one);
        if (r == -ENOENT)
            continue;
        if (r < 0) {
            *err = one;
            return error_context(err, "claim %s", claim);
        }
        bool nowhere = *volume.stream && !*volume.node && strcmp(volume.backing, "class") == 0;
        const json_t *known = nowhere ? json_object_get(streams, volume.stream) : NULL;
        if (known)
            snprintf(volume.node, sizeof volume.node, "%s", json_text(known, "node"));
        else if (nowhere && holder && d->options.classes && (r = hold(d, &volume, holder, err)) < 0)
            return error_context(err, "claim %s", claim);
        if (nowhere && !*volume.node)
            return error_set(err, -EBUSY,
                             "claim %s: its volume (backing class) is attached to no node, where its history could be read: run a pod "
                             "that uses it (kubectl scale), then try again",
                             claim);
        if (*volume.stream && *volume.node && add_volume(streams, &volume, claim) < 0)
            return error_errno(err, -ENOMEM, "streams");
    }
    _cleanup_free_ json_t **array = calloc(json_object_size(streams) + 1, sizeof(json_t *));
    json_t *stream;
    if (!array)
        return error_errno(err, -ENOMEM, "streams");
    json_object_foreach(streams, claim, stream) array[count++] = stream;
    qsort(array, count, sizeof *array, by_stream);
    *ret = sorted(array, count);
    return *ret ? 0 : error_errno(err, -ENOMEM, "streams");
}

int data_client_tag(struct data_client *d, const json_t *stream, const char *name, const json_t *labels,
                    json_t **ret, struct error *err)
{
    char path[CSI_HANDLE_BYTES + 32];
    _cleanup_json_ json_t *body =
        json_pack("{s:s, s:O*}", "name", name, "labels", (json_t *)(uintptr_t)labels);
    snprintf(path, sizeof path, "/v1/applications/%s/tag", json_text(stream, "stream"));
    return data_client_call(d, json_text(stream, "node"), "POST", path, body, DATA_TIMEOUT_MS, ret, err);
}
