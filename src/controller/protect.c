/* SPDX-License-Identifier: Apache-2.0 */
/* One line makes an application protected: from the annotations of a namespace, its workloads and claims to
 * ProtectedApplications. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/controller_internal.h"
#include "lib/json.h"

#define MAX_APPLICATIONS 200u /* of one namespace that are made; those that are there stay */
#define NAME_MAX_BYTES 253u
#define TOLD_MAX 1000u /* then all is told once more */

bool protect_is_name(const char *text)
{
    size_t length = strlen(text);
    if (!length || length > NAME_MAX_BYTES || strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-.") != length)
        return false;
    for (const char *c = text; *c; c++) { /* each part begins and ends with a letter or digit */
        bool first = c == text || c[-1] == '.', last = !c[1] || c[1] == '.';
        if ((first || last) && (*c == '-' || *c == '.'))
            return false;
    }
    return true;
}

/* An event about the object, once: what is wrong is looked at with each change of the namespace. */
static void tell(struct controller *c, const json_t *object, const char *reason, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void tell(struct controller *c, const json_t *object, const char *reason, const char *format, ...)
{
    char key[800], message[600];
    const char *kind = json_text(object, "kind"), *namespace = kube_object_namespace(object), *name = kube_object_name(object);
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    snprintf(key, sizeof key, "%s/%s/%s/%s", kind, namespace ? namespace : "", name, reason);
    {
        MUTEX_GUARD(guard, &c->told.mutex);
        if (!c->told.messages || json_object_size(c->told.messages) >= TOLD_MAX) {
            json_decref(c->told.messages);
            c->told.messages = json_object();
        }
        if (strcmp(json_text(c->told.messages, key), message) == 0)
            return;
        json_object_set_new(c->told.messages, key, json_string_lossy(message));
    }
    log_warning(c->log, "%s %s%s%s: %s", kind, namespace ? namespace : "", namespace ? "/" : "", name, message);
    event_record(c, object, "Warning", reason, message);
}

/* wanted: {NAME: {"policy": P, "group": G or null}} */
struct wishes {
    struct controller *c;
    json_t *wanted;
    json_t *misnamed; /* those objects: told when the informers' lock is not held */
};

static void want(struct wishes *w, json_t *object, const char *name, const char *policy, const char *group)
{
    if (!*name || !*policy || json_object_get(w->wanted, name))
        return;
    if (!protect_is_name(name))
        json_array_append(w->misnamed, object);
    else
        json_object_set_new(w->wanted, name, json_pack("{s:s, s:s?}", "policy", policy, "group", group));
}

/* The application that the object names, or its own. */
static const char *name_of(const json_t *object)
{
    const char *name = kube_object_annotation(object, ANNOTATION_APPLICATION);
    if (!name)
        name = kube_object_label(object, ANNOTATION_APPLICATION);
    return name ? name : kube_object_name(object);
}

/* An annotated workload or claim. */
static bool want_of(void *context, json_t *object)
{
    const char *policy = kube_object_annotation(object, ANNOTATION_POLICY), *group = name_of(object);
    if (policy)
        want(context, object, group, policy, group);
    return true;
}

static void tell_misnamed(const struct wishes *w)
{
    size_t i;
    json_t *object;
    json_array_foreach(w->misnamed, i, object)
        tell(w->c, object, "InvalidApplicationName",
             "it is not protected: " ANNOTATION_APPLICATION " says '%.260s', which is no name of an application; take lower-case "
             "letters, digits, '-' and '.', with a letter or digit at both ends",
             name_of(object));
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

/* Takes what is as wanted off the list; deletes what an annotation made that is gone. What people wrote is
 * left alone. */
static int review_application(struct wishes *w, json_t *papp, struct error *err)
{
    const char *name = kube_object_name(papp), *namespace = kube_object_namespace(papp);
    const char *created_by = kube_object_label(papp, LABEL_CREATED_BY);
    const json_t *wish = json_object_get(w->wanted, name);
    bool ours = created_by && strcmp(created_by, CREATED_BY_ANNOTATION) == 0;
    if (!ours) {
        json_object_del(w->wanted, name);
        return 0;
    }
    if (!wish) {
        const struct kube_target target = {
            .resource = &controller_applications, .namespace = namespace, .name = name};
        const struct kube_delete_options options = {.uid = kube_object_uid(papp)};
        int r = kube_delete(w->c->client, &target, &options, err);
        if (r == 0)
            log_info(w->c->log, "%s/%s is no longer protected: its annotation is gone; its history stays",
                     namespace, name);
        return r == -ENOENT || r == -EBUSY ? 0 : r;
    }
    const char *policy = json_string_value(
        json_object_get(json_object_get(json_object_get(papp, "spec"), "policyRef"), "name"));
    const char *group = application_group(papp),
               *wished_group = json_string_value(json_object_get(wish, "group"));
    bool same_group = group && wished_group ? strcmp(group, wished_group) == 0 : !group && !wished_group;
    if (policy && strcmp(policy, json_string_value(json_object_get(wish, "policy"))) == 0 && same_group)
        json_object_del(w->wanted, name);
    return 0;
}

json_t *protect_choose(const json_t *wanted, const json_t *papps, size_t most, size_t *ret_left_out)
{
    json_t *chosen = json_object(), *wish;
    _cleanup_json_ json_t *there = json_object();
    const char *name;
    size_t i, count = json_array_size(papps);
    json_array_foreach(papps, i, wish) json_object_set_new(there, kube_object_name(wish), json_true());
    *ret_left_out = 0;
    json_object_foreach((json_t *)(uintptr_t)wanted, name, wish)
    {
        bool made = !json_object_get(there, name);
        if (made && count >= most) {
            ++*ret_left_out;
            continue;
        }
        count += made;
        json_object_set(chosen, name, wish);
    }
    return chosen;
}

/* One that the API server refuses keeps none of the others from being protected. */
static int apply_wanted(struct wishes *w, const json_t *self, const json_t *papps, struct error *err)
{
    const char *namespace = kube_object_name(self), *name;
    size_t left_out = 0;
    _cleanup_json_ json_t *chosen = protect_choose(w->wanted, papps, MAX_APPLICATIONS, &left_out);
    json_t *wish;
    int r = chosen ? 0 : error_errno(err, -ENOMEM, "%s", namespace);
    json_object_foreach(chosen, name, wish)
    {
        struct error one = ERROR_INIT;
        int applied = apply_application(w->c, namespace, name, wish, &one);
        if (applied == -EINVAL) {
            tell(w->c, self, "ApplicationRefused", "the application %s cannot be protected: %.400s", name, one.message);
        } else if (applied < 0 && r == 0) {
            r = applied;
            *err = one;
        }
    }
    if (left_out)
        tell(w->c, self, "TooManyApplications",
             "%zu applications are not protected: a namespace has at most %u by annotations; annotate the namespace, or put objects "
             "together by the label " ANNOTATION_APPLICATION,
             left_out, MAX_APPLICATIONS);
    return r;
}

static bool collect(void *context, json_t *object)
{
    json_array_append(context, object);
    return true;
}

int protect_reconcile(struct controller *c, const char *namespace, struct error *err)
{
    _cleanup_json_ json_t *self = kube_informer_get(c->namespaces, NULL, namespace);
    _cleanup_json_ json_t *wanted = json_object(), *misnamed = json_array(), *papps = json_array();
    struct wishes w = {c, wanted, misnamed};
    json_t *papp;
    size_t i;
    int r = 0;
    if (!wanted || !misnamed || !papps)
        return error_errno(err, -ENOMEM, "%s", namespace);
    if (!self || strcmp(namespace, c->namespace) == 0 ||
        json_object_get(json_object_get(self, "metadata"), "deletionTimestamp"))
        return 0;
    const char *policy = kube_object_annotation(self, ANNOTATION_POLICY);
    const char *application = kube_object_annotation(self, ANNOTATION_APPLICATION);
    if (policy)
        want(&w, self, application ? application : namespace, policy, NULL);
    for (i = 0; i < 3; i++)
        kube_informer_each(c->workloads[i], namespace, want_of, &w);
    kube_informer_each(c->claims, namespace, want_of, &w);
    kube_informer_each(c->applications, namespace, collect, papps);
    tell_misnamed(&w);
    json_array_foreach(papps, i, papp)
    {
        struct error one = ERROR_INIT;
        int reviewed = review_application(&w, papp, &one);
        if (reviewed < 0 && r == 0) {
            r = reviewed;
            *err = one;
        }
    }
    struct error second = ERROR_INIT;
    int applied = apply_wanted(&w, self, papps, r < 0 ? &second : err);
    return r < 0 ? r : applied;
}
