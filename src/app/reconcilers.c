/* SPDX-License-Identifier: Apache-2.0 */
#include "app/reconcilers.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "app/objects_internal.h"
#include "base/crc32c.h"

#define ARGO_NAMESPACE "argocd"
#define KEDA_PAUSED "autoscaling.keda.sh/paused"

enum { ARGO, FLUX_KUSTOMIZATION, FLUX_HELM, FLEET, OLM, HELM_CHART, KEDA, AUTOSCALER, HELM };
static const struct reconciler_kind kinds[] = {
    [ARGO] = {"Argo CD",
              RECONCILER_ARGO,
              "argoproj.io",
              "Application",
              {"v1alpha1"},
              true,
              "revert the change in Git, or turn off automated sync of the Application"},
    [FLUX_KUSTOMIZATION] = {"Flux Kustomization",
                            RECONCILER_FLUX,
                            "kustomize.toolkit.fluxcd.io",
                            "Kustomization",
                            {"v1", "v1beta2", "v1beta1"},
                            true,
                            "revert the change in Git, or set spec.suspend of the Kustomization"},
    [FLUX_HELM] = {"Flux HelmRelease",
                   RECONCILER_FLUX,
                   "helm.toolkit.fluxcd.io",
                   "HelmRelease",
                   {"v2", "v2beta2", "v2beta1"},
                   true,
                   "revert the change in Git, or set spec.suspend of the HelmRelease"},
    [FLEET] = {"Fleet",
               RECONCILER_CANNOT,
               NULL,
               NULL,
               {NULL},
               true,
               "revert the change in Git, or pause the bundle"},
    [OLM] = {"Operator Lifecycle Manager",
             RECONCILER_CANNOT,
             NULL,
             NULL,
             {NULL},
             true,
             "pin the operator's version in its Subscription"},
    [HELM_CHART] =
        {"HelmChart",
         RECONCILER_CANNOT,
         NULL,
         NULL,
         {NULL},
         true,
         "put the HelmChart's values and version back first: its controller upgrades the release again"},
    [KEDA] = {"KEDA",
              RECONCILER_KEDA,
              "keda.sh",
              "ScaledObject",
              {"v1alpha1"},
              false,
              "it sets the number of replicas again by load: nothing to do"},
    [AUTOSCALER] = {"HorizontalPodAutoscaler",
                    RECONCILER_CANNOT,
                    NULL,
                    NULL,
                    {NULL},
                    false,
                    "it sets the number of replicas again by load: nothing to do"},
    [HELM] = {"Helm",
              RECONCILER_CANNOT,
              NULL,
              NULL,
              {NULL},
              false,
              "the next helm upgrade puts the newer values back: roll the release back as well"},
};

const struct reconciler_kind *reconciler_named(const char *reconciler)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].reconciler, reconciler) == 0)
            return &kinds[i];
    return NULL;
}

void reconciler_text(const struct reconciler *r, char text[RECONCILER_TEXT_BYTES])
{
    snprintf(text, RECONCILER_TEXT_BYTES, "%s%s%s%s%s", r->kind->reconciler, r->name[0] ? " " : "",
             r->namespace, r->namespace[0] ? "/" : "", r->name);
}

/* ---- who it is ---- */

/* Labels and annotations by which reconcilers mark what they made; the first that is there is the one that
 * rules: Flux and Argo CD leave Helm's annotations, too. */
static const struct {
    int kind;
    bool annotation;
    const char *name_key, *namespace_key; /* namespace_key NULL: not told */
} marks[] = {
    {ARGO, true, "argocd.argoproj.io/tracking-id", NULL},
    {ARGO, false, "argocd.argoproj.io/instance", NULL},
    {FLUX_KUSTOMIZATION, false, "kustomize.toolkit.fluxcd.io/name", "kustomize.toolkit.fluxcd.io/namespace"},
    {FLUX_HELM, false, "helm.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/namespace"},
    {FLEET, true, "objectset.rio.cattle.io/id", NULL},
    {OLM, false, "olm.owner", "olm.owner.namespace"},
};
static const struct {
    const char *group, *kind;
    int of;
} owners[] = {{"argoproj.io", "Application", ARGO},
              {"kustomize.toolkit.fluxcd.io", "Kustomization", FLUX_KUSTOMIZATION},
              {"helm.toolkit.fluxcd.io", "HelmRelease", FLUX_HELM},
              {"helm.cattle.io", "HelmChart", HELM_CHART}};
static const struct {
    const char *manager;
    int of;
} managers[] = {{"kustomize-controller", FLUX_KUSTOMIZATION},
                {"helm-controller", FLUX_HELM},
                {"argocd-controller", ARGO},
                {"argocd-application-controller", ARGO}};

static bool by_marks(const json_t *metadata, struct reconciler *ret)
{
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        const json_t *map = json_object_get(metadata, marks[i].annotation ? "annotations" : "labels");
        const char *name = objects_text(map, marks[i].name_key);
        if (!name[0])
            continue;
        ret->kind = &kinds[marks[i].kind];
        snprintf(ret->name, sizeof ret->name, "%s", name);
        ret->name[strcspn(ret->name, ":")] = '\0'; /* "app:group/kind:ns/name" */
        snprintf(ret->namespace, sizeof ret->namespace, "%s",
                 marks[i].namespace_key ? objects_text(map, marks[i].namespace_key) : "");
        /* An Application outside of Argo CD's own namespace is called NAMESPACE_NAME. */
        char *bar = marks[i].kind == ARGO ? strchr(ret->name, '_') : NULL;
        if (bar && (size_t)(bar - ret->name) < sizeof ret->namespace) {
            *bar = '\0';
            snprintf(ret->namespace, sizeof ret->namespace, "%.63s", ret->name);
            memmove(ret->name, bar + 1, strlen(bar + 1) + 1);
        }
        return true;
    }
    return false;
}

static bool by_owner(const json_t *metadata, const struct object_id *id, struct reconciler *ret)
{
    const json_t *list = json_object_get(metadata, "ownerReferences");
    size_t i;
    json_t *owner;
    json_array_foreach(list, i, owner)
    {
        const char *version = objects_text(owner, "apiVersion");
        for (size_t k = 0; k < sizeof owners / sizeof *owners; k++) {
            size_t length = strlen(owners[k].group);
            if (strncmp(version, owners[k].group, length) != 0 || version[length] != '/' ||
                strcmp(objects_text(owner, "kind"), owners[k].kind) != 0)
                continue;
            ret->kind = &kinds[owners[k].of];
            snprintf(ret->name, sizeof ret->name, "%s", objects_text(owner, "name"));
            snprintf(ret->namespace, sizeof ret->namespace, "%s", id->namespace);
            return true;
        }
    }
    return false;
}

static bool by_manager(const json_t *metadata, struct reconciler *ret)
{
    const json_t *list = json_object_get(metadata, "managedFields");
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry)
    {
        for (size_t k = 0; k < sizeof managers / sizeof *managers; k++)
            if (strcmp(objects_text(entry, "manager"), managers[k].manager) == 0) {
                ret->kind = &kinds[managers[k].of];
                return true;
            }
    }
    return false;
}

bool reconciler_of(const json_t *object, const struct object_id *id, struct reconciler *ret)
{
    const json_t *metadata = json_object_get(object, "metadata"),
                 *annotations = json_object_get(metadata, "annotations");
    *ret = (struct reconciler){0};
    if (by_marks(metadata, ret) || by_owner(metadata, id, ret) || by_manager(metadata, ret))
        return true;
    const char *release = objects_text(annotations, "meta.helm.sh/release-name");
    if (!release[0])
        return false;
    ret->kind = &kinds[HELM];
    snprintf(ret->name, sizeof ret->name, "%s", release);
    snprintf(ret->namespace, sizeof ret->namespace, "%s",
             objects_text(annotations, "meta.helm.sh/release-namespace"));
    return true;
}

bool reconciler_autoscaler(const struct object_id *id, struct reconciler *ret)
{
    bool keda = strcmp(id->group, "keda.sh") == 0 && strcmp(id->kind, "ScaledObject") == 0;
    bool horizontal =
        strcmp(id->group, "autoscaling") == 0 && strcmp(id->kind, "HorizontalPodAutoscaler") == 0;
    if (!keda && !horizontal)
        return false;
    *ret = (struct reconciler){.kind = &kinds[keda ? KEDA : AUTOSCALER]};
    snprintf(ret->name, sizeof ret->name, "%s", id->name);
    snprintf(ret->namespace, sizeof ret->namespace, "%s", id->namespace);
    return true;
}

/* ---- suspending ---- */

static json_t *member(json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    if (!json_is_object(value)) {
        value = json_object();
        if (json_object_set_new(object, key, value) < 0)
            return NULL;
    }
    return value;
}

static const json_t *annotations_of(const json_t *object)
{
    return json_object_get(json_object_get(object, "metadata"), "annotations");
}

/* The memory; NULL: no recovery suspended it. A new reference. */
static json_t *memory_of(const json_t *object)
{
    const char *text = objects_text(annotations_of(object), RECONCILER_ANNOTATION);
    json_t *memory = text[0] ? json_loads(text, 0, NULL) : NULL;
    return json_is_object(memory) ? memory : (json_decref(memory), NULL);
}

bool reconciler_is_suspended(const struct reconciler_kind *kind, const json_t *object, bool *ret_by_us)
{
    const json_t *spec = json_object_get(object, "spec");
    *ret_by_us = objects_text(annotations_of(object), RECONCILER_ANNOTATION)[0] != '\0';
    switch (kind->way) {
    case RECONCILER_FLUX:
        return json_is_true(json_object_get(spec, "suspend"));
    case RECONCILER_ARGO: {
        const json_t *automated = json_object_get(json_object_get(spec, "syncPolicy"), "automated");
        return !json_is_object(automated) || json_is_false(json_object_get(automated, "enabled")) ||
               strcmp(objects_text(annotations_of(object), "argocd.argoproj.io/skip-reconcile"), "true") == 0;
    }
    case RECONCILER_KEDA:
        return strcmp(objects_text(annotations_of(object), KEDA_PAUSED), "true") == 0;
    case RECONCILER_CANNOT:
        break;
    }
    return false;
}

int reconciler_suspend(const struct reconciler_kind *kind, json_t *object, const char *by)
{
    json_t *spec = member(object, "spec"), *annotations = member(member(object, "metadata"), "annotations"),
           *was = NULL;
    bool by_us;
    if (!spec || !annotations)
        return -ENOMEM;
    if (reconciler_is_suspended(kind, object, &by_us) && by_us) /* G2 */
        return 0;
    switch (kind->way) {
    case RECONCILER_FLUX:
        was = json_object_get(spec, "suspend");
        break;
    case RECONCILER_ARGO:
        was = json_object_get(json_object_get(spec, "syncPolicy"), "automated");
        break;
    case RECONCILER_KEDA:
        was = json_object_get(annotations, KEDA_PAUSED);
        break;
    case RECONCILER_CANNOT:
        return 0;
    }
    _cleanup_json_ json_t *memory = json_pack("{s:s, s:O*}", "by", by, "was", was);
    _cleanup_free_ char *text = memory ? json_dumps(memory, JSON_COMPACT) : NULL;
    int r = text ? json_object_set_new(annotations, RECONCILER_ANNOTATION, json_string(text)) : -1;
    if (r == 0 && kind->way == RECONCILER_FLUX)
        r = json_object_set_new(spec, "suspend", json_true());
    else if (r == 0 && kind->way == RECONCILER_KEDA)
        r = json_object_set_new(annotations, KEDA_PAUSED, json_string("true"));
    else if (r == 0)
        json_object_del(json_object_get(spec, "syncPolicy"), "automated");
    return r < 0 ? -ENOMEM : 0;
}

int reconciler_resume(const struct reconciler_kind *kind, json_t *object)
{
    _cleanup_json_ json_t *memory = memory_of(object);
    json_t *spec = member(object, "spec"), *annotations = member(member(object, "metadata"), "annotations"),
           *was = json_object_get(memory, "was"), *place = NULL;
    const char *key = NULL;
    if (!memory)
        return 1;
    if (!spec || !annotations)
        return -ENOMEM;
    json_object_del(annotations, RECONCILER_ANNOTATION);
    switch (kind->way) {
    case RECONCILER_FLUX:
        place = spec;
        key = "suspend";
        break;
    case RECONCILER_ARGO:
        if (json_object_get(json_object_get(spec, "syncPolicy"), "automated")) /* somebody was quicker */
            return 0;
        place = member(spec, "syncPolicy");
        key = "automated";
        break;
    case RECONCILER_KEDA:
        place = annotations;
        key = KEDA_PAUSED;
        break;
    case RECONCILER_CANNOT:
        return 1;
    }
    json_object_del(place, key); /* G1 */
    return was && json_object_set(place, key, was) < 0 ? -ENOMEM : 0;
}

/* ---- what it applies ---- */

const char *reconciler_revision(const struct reconciler_kind *kind, const json_t *object)
{
    const json_t *status = json_object_get(object, "status");
    if (kind->way == RECONCILER_ARGO)
        return objects_text(json_object_get(status, "sync"), "revision");
    const char *applied = objects_text(status, "lastAppliedRevision");
    return applied[0] ? applied
                      : objects_text(json_array_get(json_object_get(status, "history"), 0), "chartVersion");
}

void reconciler_spec_hash(const json_t *object, char text[9])
{
    _cleanup_json_ json_t *spec = json_deep_copy(json_object_get(object, "spec"));
    json_object_del(spec, "suspend");
    _cleanup_free_ char *canonical = spec ? object_canonical(spec) : NULL;
    snprintf(text, 9, "%08x", canonical ? crc32c(0, canonical, strlen(canonical)) : 0);
}

bool reconciler_source(const struct reconciler_kind *kind, const json_t *object, struct object_id *ret,
                       const char *const **ret_versions)
{
    static const char *const versions[] = {"v1", "v1beta2", "v1beta1", NULL};
    const json_t *ref = json_object_get(json_object_get(object, "spec"), "sourceRef");
    if (kind->way != RECONCILER_FLUX || !objects_text(ref, "name")[0])
        return false;
    const char *namespace = objects_text(ref, "namespace");
    *ret = (struct object_id){
        .group = "source.toolkit.fluxcd.io",
        .version = versions[0],
        .kind = objects_text(ref, "kind"),
        .namespace =
            namespace[0] ? namespace : objects_text(json_object_get(object, "metadata"), "namespace"),
        .name = objects_text(ref, "name")};
    *ret_versions = versions;
    return true;
}

static bool argo_differs(const json_t *object, char why[RECONCILER_TEXT_BYTES])
{
    const json_t *status = json_object_get(object, "status"), *sync = json_object_get(status, "sync");
    const char *state = objects_text(sync, "status");
    char names[200] = "";
    size_t i, count = 0;
    json_t *resource;
    if (strcmp(state, "Synced") == 0)
        return false;
    json_array_foreach(json_object_get(status, "resources"), i, resource)
    {
        if (strcmp(objects_text(resource, "status"), "OutOfSync") == 0 && count++ < 3) {
            size_t length = strlen(names);
            snprintf(names + length, sizeof names - length, "%s%.30s %.40s", length ? ", " : ": ",
                     objects_text(resource, "kind"), objects_text(resource, "name"));
        }
    }
    snprintf(why, RECONCILER_TEXT_BYTES,
             "it is %.20s at the revision %.60s%s%s: revert that in Git, and refresh the Application",
             state[0] ? state : "of unknown state",
             objects_text(sync, "revision")[0] ? objects_text(sync, "revision") : "?", names,
             count > 3 ? " ..." : "");
    return true;
}

bool reconciler_differs(const struct reconciler_kind *kind, const json_t *object, const json_t *source,
                        const char *revision, const char *spec_hash, char why[RECONCILER_TEXT_BYTES])
{
    char hash[9];
    why[0] = '\0';
    if (kind->way == RECONCILER_KEDA || kind->way == RECONCILER_CANNOT)
        return false;
    if (kind->way == RECONCILER_ARGO)
        return argo_differs(object, why);
    reconciler_spec_hash(object, hash);
    if (strcmp(hash, spec_hash) != 0)
        return false;
    const char *now =
        objects_text(json_object_get(json_object_get(source, "status"), "artifact"), "revision");
    if (now[0] && revision[0] && strcmp(now, revision) != 0)
        return false;
    snprintf(why, RECONCILER_TEXT_BYTES, "%s still has %s%.100s, which it applied last: revert that in Git%s",
             source ? "its source" : "it", revision[0] ? "the revision " : "what was rewound away", revision,
             source ? ", and wait until the source has fetched it" : "");
    return true;
}

/* ---- of a set ---- */

static int count_object(json_t *found, const struct reconciler *r)
{
    char key[OBJECT_NAME_BYTES];
    snprintf(key, sizeof key, "%s|%s|%s", r->kind->reconciler, r->namespace, r->name);
    json_t *entry = json_object_get(found, key);
    if (!entry) {
        entry = json_pack("{s:s, s:s, s:s, s:i, s:b, s:s}", "reconciler", r->kind->reconciler, "name",
                          r->name, "namespace", r->namespace, "objects", 0, "reverts", (int)r->kind->reverts,
                          "remedy", r->kind->remedy);
        if (json_object_set_new(found, key, entry) < 0)
            return -ENOMEM;
    }
    json_int_t count = json_integer_value(json_object_get(entry, "objects"));
    return json_object_set_new(entry, "objects", json_integer(count + 1)) < 0 ? -ENOMEM : 0;
}

int reconcilers_of_set(const json_t *set, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *found = json_object(), *list = json_array(), *names = NULL;
    const char *name;
    json_t *object, *key;
    size_t i;
    int r = found && list ? 0 : -ENOMEM;
    json_object_foreach((json_t *)(uintptr_t)set, name, object)
    {
        struct object_id id;
        struct reconciler one;
        struct error unused = ERROR_INIT;
        if (r < 0 || object_id_parse(name, &id, &unused) < 0)
            continue;
        if (reconciler_of(object, &id, &one))
            r = count_object(found, &one);
        if (r == 0 && reconciler_autoscaler(&id, &one))
            r = count_object(found, &one);
    }
    names = r == 0 ? objects_sorted_names(found) : NULL;
    if (!names)
        return objects_no_memory(err);
    json_array_foreach(names, i, key)
    {
        if (json_array_append(list, json_object_get(found, json_string_value(key))) < 0)
            return objects_no_memory(err);
    }
    *ret = take_ptr(list);
    return 0;
}
