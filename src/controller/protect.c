/* SPDX-License-Identifier: Apache-2.0 */
/* One line makes an application protected: from the annotations of a namespace, its workloads and claims to
 * ProtectedApplications. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/controller_internal.h"
#include "lib/json.h"

#define MAX_APPLICATIONS 200u /* of one namespace */

/* wanted: {NAME: {"policy": P, "group": G or null}} */
static void want(json_t *wanted, const char *name, const char *policy, const char *group)
{
    if (*name && *policy && !json_object_get(wanted, name) && json_object_size(wanted) < MAX_APPLICATIONS)
        json_object_set_new(wanted, name, json_pack("{s:s, s:s?}", "policy", policy, "group", group));
}

/* An annotated workload or claim: the application that it names, or one of its own. */
static bool want_of(void *context, json_t *object)
{
    const char *policy = kube_object_annotation(object, ANNOTATION_POLICY);
    const char *group = kube_object_annotation(object, ANNOTATION_APPLICATION);
    if (!group)
        group = kube_object_label(object, ANNOTATION_APPLICATION);
    if (!group)
        group = kube_object_name(object);
    if (policy)
        want(context, group, policy, group);
    return true;
}

static int apply_application(struct controller *c, const char *namespace, const char *name,
                             const json_t *wish, struct error *err)
{
    const char *group = json_string_value(json_object_get(wish, "group"));
    _cleanup_json_ json_t *papp =
        json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s, s:s}}, s:{s:{s:O}}}", "apiVersion", API_VERSION, "kind",
                  "ProtectedApplication", "metadata", "name", name, "namespace", namespace, "labels",
                  LABEL_CREATED_BY, CREATED_BY_ANNOTATION, "app.kubernetes.io/managed-by", "tidemark", "spec",
                  "policyRef", "name", json_object_get(wish, "policy"));
    if (!papp || (group && json_object_set_new(
                               json_object_get(papp, "spec"), "selector",
                               json_pack("{s:{s:s}}", "matchLabels", ANNOTATION_APPLICATION, group)) < 0))
        return error_errno(err, -ENOMEM, "%s/%s", namespace, name);
    const struct kube_target target = {.resource = &controller_applications,
                                       .namespace = namespace,
                                       .name = name,
                                       .field_manager = FIELD_MANAGER};
    return kube_apply(c->client, &target, papp, true, NULL, err);
}

struct review {
    struct controller *c;
    json_t *wanted;
    struct error *err;
    int r;
};

/* Takes what is as wanted off the list; deletes what an annotation made that is gone. What people wrote is
 * left alone. */
static int review_application(struct review *v, json_t *papp)
{
    const char *name = kube_object_name(papp), *namespace = kube_object_namespace(papp);
    const char *created_by = kube_object_label(papp, LABEL_CREATED_BY);
    const json_t *wish = json_object_get(v->wanted, name);
    bool ours = created_by && strcmp(created_by, CREATED_BY_ANNOTATION) == 0;
    if (!ours) {
        json_object_del(v->wanted, name);
        return 0;
    }
    if (!wish) {
        const struct kube_target target = {
            .resource = &controller_applications, .namespace = namespace, .name = name};
        const struct kube_delete_options options = {.uid = kube_object_uid(papp)};
        int r = kube_delete(v->c->client, &target, &options, v->err);
        if (r == 0)
            log_info(v->c->log, "%s/%s is no longer protected: its annotation is gone; its history stays",
                     namespace, name);
        return r == -ENOENT || r == -EBUSY ? 0 : r;
    }
    const char *policy = json_string_value(
        json_object_get(json_object_get(json_object_get(papp, "spec"), "policyRef"), "name"));
    const char *group = application_group(papp),
               *wished_group = json_string_value(json_object_get(wish, "group"));
    bool same_group = group && wished_group ? strcmp(group, wished_group) == 0 : !group && !wished_group;
    if (policy && strcmp(policy, json_string_value(json_object_get(wish, "policy"))) == 0 && same_group)
        json_object_del(v->wanted, name);
    return 0;
}

static bool collect(void *context, json_t *object)
{
    json_array_append(context, object);
    return true;
}

int protect_reconcile(struct controller *c, const char *namespace, struct error *err)
{
    _cleanup_json_ json_t *self = kube_informer_get(c->namespaces, NULL, namespace);
    _cleanup_json_ json_t *wanted = json_object(), *papps = json_array();
    const char *name;
    json_t *value;
    size_t i;
    int r = 0;
    if (!wanted || !papps)
        return error_errno(err, -ENOMEM, "%s", namespace);
    if (!self || strcmp(namespace, c->namespace) == 0 ||
        json_object_get(json_object_get(self, "metadata"), "deletionTimestamp"))
        return 0;
    const char *policy = kube_object_annotation(self, ANNOTATION_POLICY);
    const char *application = kube_object_annotation(self, ANNOTATION_APPLICATION);
    if (policy)
        want(wanted, application ? application : namespace, policy, NULL);
    for (i = 0; i < 3; i++)
        kube_informer_each(c->workloads[i], namespace, want_of, wanted);
    kube_informer_each(c->claims, namespace, want_of, wanted);
    kube_informer_each(c->applications, namespace, collect, papps);
    struct review v = {c, wanted, err, 0};
    json_array_foreach(papps, i, value) if ((r = review_application(&v, value)) < 0) return r;
    json_object_foreach(wanted, name,
                        value) if ((r = apply_application(c, namespace, name, value, err)) < 0) return r;
    return 0;
}
