/* SPDX-License-Identifier: Apache-2.0 */
/* What admission looks up, over the client. A call ends soon after the API server has lost
 * patience. */
#include <errno.h>

#include "controller/admission.h"
#include "lib/json.h"

#define LOOKUP_TIMEOUT_MS 8000u

static const struct kube_resource access_reviews = {"authorization.k8s.io", "v1",  "subjectaccessreviews",
                                                    "SubjectAccessReview",  false, 0};

static int get(void *context, const struct kube_resource *resource, const char *namespace, const char *name,
               json_t **ret, struct error *err)
{
    const struct kube_target target = {
        .resource = resource, .namespace = namespace, .name = name, .timeout_ms = LOOKUP_TIMEOUT_MS};
    return kube_get(context, &target, ret, err);
}

static int list(void *context, const struct kube_resource *resource, const char *namespace,
                json_t **ret_items, struct error *err)
{
    const struct kube_target target = {.resource = resource, .namespace = namespace};
    const struct kube_list_options options = {.timeout_ms = LOOKUP_TIMEOUT_MS};
    return kube_list_all(context, &target, &options, ret_items, err);
}

static int may(void *context, const json_t *user, const struct admission_right *right, bool *ret,
               struct error *err)
{
    const struct kube_target target = {.resource = &access_reviews, .timeout_ms = LOOKUP_TIMEOUT_MS};
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_json_ json_t *review =
        json_pack("{s:s, s:s, s:{s:O?, s:O*, s:O*, s:O*, s:{s:s, s:s, s:s, s:s}}}", "apiVersion",
                  "authorization.k8s.io/v1", "kind", "SubjectAccessReview", "spec", "user",
                  json_object_get(user, "username"), "uid", json_object_get(user, "uid"), "groups",
                  json_object_get(user, "groups"), "extra", json_object_get(user, "extra"),
                  "resourceAttributes", "namespace", right->namespace, "group", right->group, "resource",
                  right->resource, "verb", right->verb);
    if (!review)
        return error_set(err, -ENOMEM, "out of memory");
    int r = kube_create(context, &target, review, &answer, err);
    if (r < 0) { /* a refusal of ours, not of the user's */
        err->code = r == -EACCES || r == -EINVAL || r == -ENOENT ? -EIO : r;
        return error_context(err, "whether %s may %s %s in %s",
                             json_string_value(json_object_get(user, "username")), right->verb,
                             right->resource, right->namespace);
    }
    *ret = json_is_true(json_object_get(json_object_get(answer, "status"), "allowed"));
    return 0;
}

const struct admission_ops admission_kube = {get, list, may};
