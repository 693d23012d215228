/* SPDX-License-Identifier: Apache-2.0 */
/* Who would put a newer state back after a rewind (restore.h). */
#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"
#include "app/restore.h"

/* Labels and annotations by which reconcilers mark what they made. */
static const struct {
    const char *reconciler;
    bool annotation;
    const char *name_key, *namespace_key; /* namespace_key NULL: not told */
    bool reverts;
    const char *remedy;
} marks[] = {
    {"Argo CD", true, "argocd.argoproj.io/tracking-id", NULL, true,
     "revert the change in Git, or turn off automated sync of the Application"},
    {"Argo CD", false, "argocd.argoproj.io/instance", NULL, true,
     "revert the change in Git, or turn off automated sync of the Application"},
    {"Flux Kustomization", false, "kustomize.toolkit.fluxcd.io/name", "kustomize.toolkit.fluxcd.io/namespace",
     true, "revert the change in Git, or set spec.suspend of the Kustomization"},
    {"Flux HelmRelease", false, "helm.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/namespace", true,
     "revert the change in Git, or set spec.suspend of the HelmRelease"},
    {"Fleet", true, "objectset.rio.cattle.io/id", NULL, true,
     "revert the change in Git, or pause the bundle"},
    {"Operator Lifecycle Manager", false, "olm.owner", "olm.owner.namespace", true,
     "pin the operator's version in its Subscription"},
    {"Helm", true, "meta.helm.sh/release-name", "meta.helm.sh/release-namespace", false,
     "the next helm upgrade puts the newer values back: roll the release back as well"},
};

static int count_object(json_t *found, const char *reconciler, const char *namespace, const char *name,
                        bool reverts, const char *remedy)
{
    char key[OBJECT_NAME_BYTES];
    snprintf(key, sizeof key, "%s|%s|%s", reconciler, namespace, name);
    json_t *entry = json_object_get(found, key);
    if (!entry) {
        entry = json_pack("{s:s, s:s, s:s, s:i, s:b, s:s}", "reconciler", reconciler, "name", name,
                          "namespace", namespace, "objects", 0, "reverts", (int)reverts, "remedy", remedy);
        if (json_object_set_new(found, key, entry) < 0)
            return -ENOMEM;
    }
    json_int_t count = json_integer_value(json_object_get(entry, "objects"));
    return json_object_set_new(entry, "objects", json_integer(count + 1));
}

static int look_at_marks(const json_t *object, json_t *found)
{
    const json_t *metadata = json_object_get(object, "metadata");
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        const json_t *map = json_object_get(metadata, marks[i].annotation ? "annotations" : "labels");
        char name[256];
        snprintf(name, sizeof name, "%s", objects_text(map, marks[i].name_key));
        if (!name[0])
            continue;
        name[strcspn(name, ":")] = '\0'; /* "app:group/kind:ns/name" */
        const char *namespace = marks[i].namespace_key ? objects_text(map, marks[i].namespace_key) : "";
        int r = count_object(found, marks[i].reconciler, namespace, name, marks[i].reverts, marks[i].remedy);
        if (r < 0)
            return -ENOMEM;
        break; /* the first is the one that rules: Flux and Argo CD leave Helm's annotations, too */
    }
    return 0;
}

/* Autoscalers set replicas, whatever is put there. */
static int look_at_scaler(const struct object_id *id, json_t *found)
{
    bool keda = strcmp(id->group, "keda.sh") == 0 && strcmp(id->kind, "ScaledObject") == 0;
    bool horizontal =
        strcmp(id->group, "autoscaling") == 0 && strcmp(id->kind, "HorizontalPodAutoscaler") == 0;
    if (!keda && !horizontal)
        return 0;
    return count_object(found, keda ? "KEDA" : "HorizontalPodAutoscaler", id->namespace, id->name, false,
                        "it sets the number of replicas again by load: nothing to do") < 0
               ? -ENOMEM
               : 0;
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
        struct error unused = ERROR_INIT;
        if (r == 0)
            r = look_at_marks(object, found);
        if (r == 0 && object_id_parse(name, &id, &unused) == 0)
            r = look_at_scaler(&id, found);
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
