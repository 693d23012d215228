/* SPDX-License-Identifier: Apache-2.0 */
/* A small, general client of the Kubernetes API: JSON over HTTPS by libcurl. Configuration and credentials,
 * calls with retries, the verbs, lists in chunks. Watching stands in kube/informer.h, exec in kube/exec.h,
 * leases in kube/lease.h, the kinds that a server has in kube/discovery.h, a work queue in kube/queue.h.
 *
 * Threads: a client is shared by all threads. A call blocks its thread until the answer, the timeout or
 * kube_interrupt; calls of different threads run side by side, each on a connection of its own that is kept
 * for the next call. A json_t belongs to the thread that got it.
 *
 * Errors: what the server's Status says (message, then "(reason)"), with a code from the HTTP status:
 *   400, 422 -EINVAL          401 -EPERM (credentials)      403 -EACCES (RBAC, or an admission rule)
 *   404 -ENOENT               409 -EEXIST (AlreadyExists), -EBUSY (Conflict: read again and repeat)
 *   410 -ESTALE (list again)  413 -EFBIG                    429 -EAGAIN (after the retries; of an eviction:
 * at once) 500 -EIO                  503, 504 -EAGAIN              other -EIO and -ECONNREFUSED, -ECONNRESET,
 * -EHOSTUNREACH, -ETIMEDOUT, -ECANCELED (kube_interrupt), -EPROTO (TLS, no JSON). */
#ifndef TIDEMARK_KUBE_KUBE_H
#define TIDEMARK_KUBE_KUBE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/log.h"

#define KUBE_BODY_LIMIT_BYTES (64u << 20)
#define KUBE_TIMEOUT_MS 30000u
#define KUBE_LIST_LIMIT 500u
#define KUBE_LIST_PAGE_BYTES                                                                                 \
    (8u << 20) /* a chunk of several objects that is larger is asked for in smaller ones */
#define KUBE_REASON_BYTES 64
#define KUBE_MAX_GROUPS 1000u /* directories put people into hundreds */
#define KUBE_MAX_EXTRA 64u

struct kube_client;

struct kube_options {
    const char
        *kubeconfig;     /* a file; NULL: $KUBECONFIG, else the pod's service account, else ~/.kube/config */
    const char *context; /* NULL: current-context */
    const char *user_agent; /* NULL: "tidemark/<version>" */
    /* Where a pod finds token, ca.crt and namespace; NULL: /var/run/secrets/kubernetes.io/serviceaccount */
    const char *service_account;
    const struct log *log;
};

/* Reads the configuration; connects at the first call. Copies the options (the log is borrowed). */
int kube_open(const struct kube_options *options, struct kube_client **ret, struct error *err) MUST_CHECK;
/* No call may be running. NULL allowed. */
void kube_close(struct kube_client *client);
/* Ends all running calls and waits with -ECANCELED, and all later ones until `interrupted` is false again.
 * Any thread. */
void kube_interrupt(struct kube_client *client, bool interrupted);
/* "https://10.0.0.1:6443", and the namespace of the context or the service account ("default" when there is
 * none). */
const char *kube_server(const struct kube_client *client);
const char *kube_namespace(const struct kube_client *client);

/* ---- who asks ---- */
/* Acts with the rights of another user (needs the verb impersonate). All borrowed. */
struct kube_user {
    const char *name;
    const char *uid; /* or NULL */
    const char *const *groups;
    size_t group_count; /* at most KUBE_MAX_GROUPS */
    struct kube_extra {
        const char *key, *value;
    } const *extra;
    size_t extra_count; /* at most KUBE_MAX_EXTRA */
};

/* ---- calls ---- */
/* What the server said about a call; `code` 0: it did not answer. */
struct kube_status {
    long code;                      /* HTTP */
    char reason[KUBE_REASON_BYTES]; /* "AlreadyExists", "" */
    unsigned retry_after_s;         /* 0: none given */
    json_t *details;                /* of the Status, or NULL; the caller releases it */
};

struct kube_request {
    const char *method;       /* GET POST PUT PATCH DELETE */
    const char *path;         /* "/api/v1/namespaces/shop/pods", as kube_path gives it */
    const char *query;        /* "limit=500&continue=..." encoded (kube_escape); NULL: none */
    const json_t *body;       /* borrowed; NULL: none */
    const char *content_type; /* NULL: application/json */
    const char *accept;       /* NULL: application/json */
    const struct kube_user *as;
    unsigned timeout_ms;        /* of all tries together; 0: KUBE_TIMEOUT_MS */
    bool once;                  /* no retries */
    size_t limit_bytes;         /* of the answer: -EFBIG beyond it; 0: KUBE_BODY_LIMIT_BYTES */
    bool cuts;                  /* what is nested too deeply is cut off (json_parse_foreign_cut): one object must not keep others out */
    struct kube_status *status; /* filled, or NULL */
};

/* Sends the request and gives the answer's JSON (`ret` may be NULL). Repeats, until the timeout, what the
 * server turned away (429, 503 with Retry-After), and reads that failed on the way. Credentials that the
 * server refuses are renewed once. */
int kube_call(struct kube_client *client, const struct kube_request *request, json_t **ret,
              struct error *err) MUST_CHECK;

/* ---- names ---- */
/* A kind as the server knows it. */
struct kube_resource {
    const char *group; /* "" for the core */
    const char *version;
    const char *plural;
    const char *kind;
    bool namespaced;
    uint32_t verbs; /* enum kube_verb; of discovery */
};
enum kube_verb {
    KUBE_VERB_GET = 1 << 0,
    KUBE_VERB_LIST = 1 << 1,
    KUBE_VERB_WATCH = 1 << 2,
    KUBE_VERB_CREATE = 1 << 3,
    KUBE_VERB_UPDATE = 1 << 4,
    KUBE_VERB_PATCH = 1 << 5,
    KUBE_VERB_DELETE = 1 << 6,
};
extern const struct kube_resource kube_namespaces, kube_pods, kube_secrets, kube_configmaps, kube_events,
    kube_services;
extern const struct kube_resource kube_claims, kube_volumes, kube_nodes, kube_leases, kube_storage_classes,
    kube_attachments;
extern const struct kube_resource kube_deployments, kube_statefulsets, kube_daemonsets, kube_replicasets,
    kube_crds;

/* "/apis/apps/v1/namespaces/shop/deployments/web/scale". NULL for what is not wanted; a namespace is left out
 * for a kind that has none, and NULL means all. The caller frees it. -EINVAL when a part cannot stand in a
 * path. */
int kube_path(const struct kube_resource *resource, const char *namespace, const char *name,
              const char *subresource, char **ret, struct error *err) MUST_CHECK;
/* Percent-encoded for a query; the caller frees it, NULL when out of memory. */
char *kube_escape(const char *text);
/* metadata's fields of an object; NULL when missing. Borrowed. */
const char *kube_object_name(const json_t *object);
const char *kube_object_namespace(const json_t *object);
const char *kube_object_uid(const json_t *object);
const char *kube_object_version(const json_t *object); /* resourceVersion */
const char *kube_object_annotation(const json_t *object, const char *key);
const char *kube_object_label(const json_t *object, const char *key);

/* ---- verbs ---- */
/* Which object, with what options. A name of NULL only where the text says so. */
struct kube_target {
    const struct kube_resource *resource;
    const char *namespace; /* NULL: of a cluster-scoped kind, or all (lists) */
    const char *name;
    const char *subresource; /* "status", "scale"; NULL */
    const struct kube_user *as;
    const char *field_manager; /* NULL: "tidemark" */
    bool dry_run;
    unsigned timeout_ms;        /* of all tries together; 0: KUBE_TIMEOUT_MS */
    struct kube_status *status; /* as in kube_request */
};

int kube_get(struct kube_client *client, const struct kube_target *target, json_t **ret,
             struct error *err) MUST_CHECK;
/* `target.name` only with a subresource ("eviction", "token"). `ret` may be NULL in all of these. */
int kube_create(struct kube_client *client, const struct kube_target *target, const json_t *object,
                json_t **ret, struct error *err) MUST_CHECK;
/* Replaces it; with a resourceVersion in the object only that version (-EBUSY otherwise). */
int kube_update(struct kube_client *client, const struct kube_target *target, const json_t *object,
                json_t **ret, struct error *err) MUST_CHECK;
enum kube_patch_type { KUBE_PATCH_MERGE, KUBE_PATCH_JSON, KUBE_PATCH_STRATEGIC };
int kube_patch(struct kube_client *client, const struct kube_target *target, enum kube_patch_type type,
               const json_t *patch, json_t **ret, struct error *err) MUST_CHECK;
/* Server-side apply: the object needs apiVersion, kind and metadata.name. With `force` fields of other
 * managers are taken over; without, a conflict is -EBUSY with the fields named. */
int kube_apply(struct kube_client *client, const struct kube_target *target, const json_t *object, bool force,
               json_t **ret, struct error *err) MUST_CHECK;
struct kube_delete_options {
    const char *uid, *version; /* preconditions (-EBUSY otherwise); NULL: none */
    const char *propagation;   /* "Foreground", "Background", "Orphan"; NULL: the kind's default */
    bool with_grace_period;    /* else the object's own */
    unsigned grace_period_s;
};
/* 0 once the server has taken it; finalizers may keep the object. `options` may be NULL. */
int kube_delete(struct kube_client *client, const struct kube_target *target,
                const struct kube_delete_options *options, struct error *err) MUST_CHECK;

/* ---- lists ---- */
struct kube_list_options {
    const char *label_selector, *field_selector; /* not encoded; NULL */
    unsigned limit; /* objects a chunk, fewer when they are large; 0: KUBE_LIST_LIMIT */
    unsigned timeout_ms;                         /* of a chunk */
};
/* Called for each chunk with its items (borrowed; may be changed); their apiVersion and kind, which lists
 * leave out, are set. `first`: nothing was there before, or the list expired (410) in the middle and begins
 * again: forget what came. 0 to go on, else kube_list ends with that. */
typedef int (*kube_list_visit)(void *context, json_t *items, bool first, struct error *err);
/* Lists in chunks. *ret_version (may be NULL): the resourceVersion to watch from; the caller frees it. */
int kube_list(struct kube_client *client, const struct kube_target *target,
              const struct kube_list_options *options, kube_list_visit visit, void *context,
              char **ret_version, struct error *err) MUST_CHECK;
/* All in one array, for lists known to be short. The caller owns it. */
int kube_list_all(struct kube_client *client, const struct kube_target *target,
                  const struct kube_list_options *options, json_t **ret_items, struct error *err) MUST_CHECK;

#endif
