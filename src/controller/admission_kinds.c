/* SPDX-License-Identifier: Apache-2.0 */
/* What is refused of applications, policies and checkpoints, and what only warned of: a policy that is not
 * there yet is no reason to refuse, since Git tools and Helm apply in an order of their own. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "controller/admission_internal.h"
#include "controller/schedule.h"
#include "journal/point.h"
#include "lib/json.h"

#define EXTENDS_MAX 16u /* policies in a chain */
#define NAMED_MAX 5u    /* objects that a message names */

static const char *policy_of(const json_t *papp)
{
    const char *name = admission_text(json_object_get(papp, "spec"), "policyRef", "name");
    return name ? name : "default";
}

/* ---- ProtectedApplications ---- */

/* A label that nobody looks at would protect the whole namespace, or seem to. */
static int check_selector(const struct admission_request *q, struct error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(
        json_object_get(json_object_get(json_object_get(q->object, "spec"), "selector"), "matchLabels"), key,
        value)
    {
        if (strcmp(key, ANNOTATION_APPLICATION) != 0)
            return error_set(
                err, -EINVAL,
                "spec.selector.matchLabels.%s: what belongs to an application is told by the label "
                "or annotation " ANNOTATION_APPLICATION
                " alone: put that on the objects and select by it, or leave the selector out for "
                "the whole namespace",
                key);
    }
    return 0;
}

static int get_policy(const struct admission_request *q, const char *name, json_t **ret, struct error *err)
{
    return q->a->ops->get(q->a->context, &controller_policies, NULL, name, ret, err);
}

/* The value of a field of the policy, or of the nearest one that it extends which has it. `first`: borrowed.
 */
static int inherited_duration(const struct admission_request *q, const json_t *first, const char *key,
                              uint64_t *ret_ns, char text[UNITS_TEXT_BYTES], struct error *err)
{
    _cleanup_json_ json_t *policy = json_incref((json_t *)first);
    *ret_ns = 0;
    for (unsigned i = 0; policy && i < EXTENDS_MAX; i++) {
        const json_t *spec = json_object_get(policy, "spec");
        const char *value = admission_text(spec, "overrides", key),
                   *parent = json_string_value(json_object_get(spec, "extends"));
        json_t *next = NULL;
        if (value) {
            snprintf(text, UNITS_TEXT_BYTES, "%s", value);
            return units_parse_duration(value, ret_ns, err);
        }
        int r = parent ? get_policy(q, parent, &next, err) : -ENOENT;
        if (r < 0 && r != -ENOENT)
            return r;
        json_decref(policy);
        policy = next;
    }
    return 0;
}

static int check_bounds(const struct admission_request *q, const json_t *policy, struct error *err)
{
    const char *wished = json_string_value(
        json_object_get(json_object_get(json_object_get(q->object, "spec"), "overrides"), "history"));
    char low_text[UNITS_TEXT_BYTES] = "", high_text[UNITS_TEXT_BYTES] = "";
    uint64_t history, low, high;
    int r;
    if (!wished)
        return 0;
    if ((r = units_parse_duration(wished, &history, err)) < 0)
        return error_context(err, "spec.overrides.history");
    if ((r = inherited_duration(q, policy, "minHistory", &low, low_text, err)) < 0 ||
        (r = inherited_duration(q, policy, "maxHistory", &high, high_text, err)) < 0)
        return r;
    if (!low && !high)
        return error_set(
            err, -EINVAL,
            "spec.overrides.history: the policy %s lets no application choose: ask whoever keeps it for "
            "spec.overrides.minHistory and maxHistory, or leave the field out",
            kube_object_name(policy));
    if (history < low || (high && history > high))
        return error_set(err, -EINVAL,
                         "spec.overrides.history: %s is not within what the policy %s allows: %s%s%s%s",
                         wished, kube_object_name(policy), low ? "at least " : "", low_text,
                         high ? (low ? ", at most " : "at most ") : "", high_text);
    return 0;
}

/* The policy does not exist: a namespace that demands protection takes no promise of one, others a warning.
 * `where`: the namespace; `object` NULL: looked up. */
static int judge_missing(struct admission_request *q, const char *name, const char *where,
                         const json_t *object, struct error *err)
{
    _cleanup_json_ json_t *found = NULL;
    int r = object ? 0 : q->a->ops->get(q->a->context, &kube_namespaces, NULL, where, &found, err);
    if (r < 0 && r != -ENOENT)
        return r;
    const char *required = kube_object_label(object ? object : found, LABEL_REQUIRE_POLICY);
    if (required && strcmp(required, "true") == 0)
        return error_set(
            err, -ENOENT,
            "there is no ProtectionPolicy %s, and the namespace %s requires one (label " LABEL_REQUIRE_POLICY
            "): kubectl get protectionpolicies lists those there are",
            name, where);
    admission_warn(
        q,
        "there is no ProtectionPolicy %s: until there is, the application is not Ready; kubectl get "
        "protectionpolicies lists those there are",
        name);
    return 0;
}

/* Made by the controller from an annotation, which was judged: what is wrong is told in its status, where
 * whoever annotated looks. */
static bool is_of_annotation(const json_t *papp)
{
    const char *by = kube_object_label(papp, LABEL_CREATED_BY);
    return by && strcmp(by, CREATED_BY_ANNOTATION) == 0;
}

static int check_policy(struct admission_request *q, struct error *err)
{
    const char *name = policy_of(q->object);
    _cleanup_json_ json_t *policy = NULL;
    int r = get_policy(q, name, &policy, err);
    if (r == -ENOENT)
        return judge_missing(q, name, q->namespace, NULL, err);
    return r < 0 ? r : check_bounds(q, policy, err);
}

/* {claim: true} of the application `group` (NULL: all of the namespace). */
static json_t *claims_of(const json_t *claims, const json_t *pods, const char *group)
{
    json_t *ret = json_object(), *object, *volume;
    size_t i, k;
    json_array_foreach(claims, i, object)
    {
        if (application_has(object, group))
            json_object_set_new(ret, kube_object_name(object), json_true());
    }
    json_array_foreach(pods, i, object)
    {
        json_array_foreach(json_object_get(json_object_get(object, "spec"), "volumes"), k, volume)
        {
            const char *claim = admission_text(volume, "persistentVolumeClaim", "claimName");
            if (claim && volumes_pod_belongs(object, group))
                json_object_set_new(ret, claim, json_true());
        }
    }
    return ret;
}

static int check_volumes(const struct admission_request *q, struct error *err)
{
    _cleanup_json_ json_t *papps = NULL, *claims = NULL, *pods = NULL, *ours = NULL;
    const char *claim;
    json_t *other, *value;
    size_t i;
    int r;
    if ((r = q->a->ops->list(q->a->context, &controller_applications, q->namespace, &papps, err)) < 0 ||
        (r = q->a->ops->list(q->a->context, &kube_claims, q->namespace, &claims, err)) < 0 ||
        (r = q->a->ops->list(q->a->context, &kube_pods, q->namespace, &pods, err)) < 0)
        return r;
    ours = claims_of(claims, pods, application_group(q->object));
    json_array_foreach(papps, i, other)
    {
        if (q->name && strcmp(kube_object_name(other), q->name) == 0)
            continue;
        _cleanup_json_ json_t *theirs = claims_of(claims, pods, application_group(other));
        json_object_foreach(theirs, claim, value)
        {
            if (json_object_get(ours, claim))
                return error_set(
                    err, -EEXIST,
                    "the volume %s belongs to the ProtectedApplication %s already, and a volume has one "
                    "history: give it to one of them by the label or annotation " ANNOTATION_APPLICATION
                    ", or delete that application",
                    claim, kube_object_name(other));
        }
    }
    return 0;
}

static int validate_application(struct admission_request *q, struct error *err)
{
    int r;
    if (q->old && json_equal(json_object_get(q->old, "spec"), json_object_get(q->object, "spec")))
        return 0; /* labels, finalizers: what was let in stays as it is */
    if (is_of_annotation(q->object))
        return 0;
    if ((r = check_selector(q, err)) < 0 || (r = check_policy(q, err)) < 0)
        return r;
    return check_volumes(q, err);
}

/* ---- ProtectionPolicies ---- */

static int check_extends(struct admission_request *q, struct error *err)
{
    const char *parent = json_string_value(json_object_get(json_object_get(q->object, "spec"), "extends"));
    _cleanup_json_ json_t *policy = NULL;
    char chain[600];
    int length = snprintf(chain, sizeof chain, "%s", q->name ? q->name : "");
    for (unsigned i = 0; parent; i++) {
        json_t *next = NULL;
        if (length < (int)sizeof chain)
            length += snprintf(chain + length, sizeof chain - (size_t)length, " extends %s", parent);
        if ((q->name && strcmp(parent, q->name) == 0) || i == EXTENDS_MAX)
            return error_set(
                err, -EINVAL,
                "spec.extends: the policies extend each other in a ring, or more than %u deep: %s",
                EXTENDS_MAX, chain);
        int r = get_policy(q, parent, &next, err);
        if (r == -ENOENT)
            admission_warn(
                q, "spec.extends: there is no ProtectionPolicy %s yet; its fields count as not set", parent);
        if (r < 0)
            return r == -ENOENT ? 0 : r;
        json_decref(policy);
        policy = next;
        parent = json_string_value(json_object_get(json_object_get(policy, "spec"), "extends"));
    }
    return 0;
}

static int check_policy_bounds(const struct admission_request *q, struct error *err)
{
    const json_t *spec = json_object_get(q->object, "spec");
    const char *low_text = admission_text(spec, "overrides", "minHistory"),
               *high_text = admission_text(spec, "overrides", "maxHistory");
    uint64_t low = 0, high = 0;
    int r = 0;
    if (low_text)
        r = units_parse_duration(low_text, &low, err);
    if (r == 0 && high_text)
        r = units_parse_duration(high_text, &high, err);
    if (r < 0)
        return error_context(err, "spec.overrides");
    return high && low > high
               ? error_set(err, -EINVAL, "spec.overrides: minHistory %s is more than maxHistory %s", low_text,
                           high_text)
               : 0;
}

/* A policy that goes takes the promise away from whoever relies on it. */
static int check_unused(const struct admission_request *q, struct error *err)
{
    _cleanup_json_ json_t *papps = NULL;
    char names[400] = "";
    size_t i, count = 0, length = 0;
    json_t *papp;
    int r = q->a->ops->list(q->a->context, &controller_applications, NULL, &papps, err);
    if (r < 0)
        return r;
    json_array_foreach(papps, i, papp)
    {
        if (!q->name || strcmp(policy_of(papp), q->name) != 0)
            continue;
        if (count++ < NAMED_MAX && length < sizeof names)
            length += (size_t)snprintf(names + length, sizeof names - length, "%s%s/%s", length ? ", " : "",
                                       kube_object_namespace(papp), kube_object_name(papp));
    }
    return count ? error_set(
                       err, -EBUSY,
                       "%zu application%s under the policy %s (%s%s): give them another one first, by the "
                       "annotation " ANNOTATION_POLICY " or spec.policyRef",
                       count, count == 1 ? " is" : "s are", q->name, names, count > NAMED_MAX ? " ..." : "")
                 : 0;
}

static int validate_policy(struct admission_request *q, struct error *err)
{
    const json_t *checkpoints = json_object_get(json_object_get(q->object, "spec"), "checkpoints");
    struct schedule schedule;
    if (!q->object)
        return check_unused(q, err);
    int r = checkpoints ? schedule_parse(checkpoints, NULL, &schedule, err) : 0;
    if (r < 0)
        return error_context(err, "spec.checkpoints");
    if (checkpoints)
        schedule_release(&schedule);
    r = check_policy_bounds(q, err);
    return r < 0 ? r : check_extends(q, err);
}

/* ---- Checkpoints, and what is annotated ---- */

static int validate_checkpoint(struct admission_request *q, struct error *err)
{
    const char *text = admission_text(q->object, "spec", "point"),
               *application = admission_text(q->object, "spec", "application");
    _cleanup_json_ json_t *papp = NULL;
    struct point point;
    int r;
    if (q->old || !application)
        return 0;
    if (q->name && *q->name && (r = point_check_tag(q->name, err)) < 0)
        return error_context(err, "the checkpoint's name is the tag");
    if (text && (r = point_parse(text, &point, err)) < 0)
        return error_context(err, "spec.point");
    if (text && point.kind != POINT_LATEST)
        return error_set(err, -EINVAL,
                         "spec.point: only the present moment can be tagged: leave it out, or say latest");
    r = q->a->ops->get(q->a->context, &controller_applications, q->namespace, application, &papp, err);
    return r == -ENOENT
               ? error_set(err, r,
                           "there is no ProtectedApplication %s in the namespace %s: kubectl -n %s get papp "
                           "lists those there are",
                           application, q->namespace, q->namespace)
               : r;
}

/* Namespaces, workloads and claims with the annotation. */
static int validate_annotated(struct admission_request *q, struct error *err)
{
    const char *name = kube_object_annotation(q->object, ANNOTATION_POLICY);
    _cleanup_json_ json_t *policy = NULL;
    int r = name ? get_policy(q, name, &policy, err) : 0;
    bool is_namespace = strcmp(q->kind, "Namespace") == 0;
    const char *application = kube_object_annotation(q->object, ANNOTATION_APPLICATION);
    if (!application && !is_namespace)
        application = kube_object_label(q->object, ANNOTATION_APPLICATION);
    if (name && application && !protect_is_name(application))
        admission_warn(q,
                       "it is not protected: " ANNOTATION_APPLICATION " says '%.80s', which is no name of an application: take "
                       "lower-case letters, digits, '-' and '.'",
                       application);
    return r == -ENOENT ? judge_missing(q, name, is_namespace ? kube_object_name(q->object) : q->namespace,
                                        is_namespace ? q->object : NULL, err)
                        : r;
}

/* The same as the ValidatingAdmissionPolicy of the chart, for API servers that have none. */
static bool has_state(const struct admission_request *q)
{
    static const char *const sources[] = {"persistentVolumeClaim", "ephemeral", "hostPath"};
    const json_t *spec = json_object_get(q->object, "spec");
    size_t i;
    json_t *volume;
    if (strcmp(q->kind, "PersistentVolumeClaim") == 0 || strcmp(q->kind, "StatefulSet") == 0)
        return true;
    if (strcmp(q->kind, "Pod") != 0)
        spec = json_object_get(json_object_get(spec, "template"), "spec");
    json_array_foreach(json_object_get(spec, "volumes"), i, volume)
    {
        for (size_t k = 0; k < sizeof sources / sizeof *sources; k++)
            if (json_object_get(volume, sources[k]))
                return true;
    }
    return false;
}

/* In a namespace that requires a policy nothing with state goes without. */
static int check_covered(struct admission_request *q, struct error *err)
{
    _cleanup_json_ json_t *namespace = NULL;
    if (strcmp(q->kind, "Namespace") == 0 || kube_object_annotation(q->object, ANNOTATION_POLICY) || !has_state(q))
        return 0;
    int r = q->a->ops->get(q->a->context, &kube_namespaces, NULL, q->namespace, &namespace, err);
    if (r < 0)
        return r;
    const char *required = kube_object_label(namespace, LABEL_REQUIRE_POLICY);
    if (!required || strcmp(required, "true") != 0 || kube_object_annotation(namespace, ANNOTATION_POLICY))
        return 0;
    return error_set(err, -EACCES,
                     "the namespace %s takes nothing with state that no policy covers: annotate it, or this %s, with " ANNOTATION_POLICY
                     "=NAME; kubectl get protectionpolicies lists those there are",
                     q->namespace, q->kind);
}

int admission_validate_kind(struct admission_request *q, struct error *err)
{
    if (strcmp(q->kind, "ProtectionPolicy") == 0)
        return validate_policy(q, err);
    if (!q->object)
        return 0;
    if (strcmp(q->kind, "ProtectedApplication") == 0)
        return validate_application(q, err);
    if (strcmp(q->kind, "Checkpoint") == 0)
        return validate_checkpoint(q, err);
    int r = check_covered(q, err);
    return r < 0 ? r : validate_annotated(q, err);
}
