/* SPDX-License-Identifier: Apache-2.0 */
/* Which volumes of an application are captured write by write, and which not and why. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/controller_internal.h"
#include "lib/json.h"

#define MAX_VOLUMES 100u /* told */
#define MAX_LOOKED_AT 2000u

struct look {
    struct controller *c;
    const char *group;
    json_t *volumes;
    json_t *mounted; /* {claim: true} of the group's pods */
    json_t *claims;
    size_t pods;
};

static const char *text_at(const json_t *object, const char *a, const char *b)
{
    return json_string_value(json_object_get(json_object_get(object, a), b));
}

bool volumes_pod_belongs(const json_t *pod, const char *group)
{
    size_t i, length = group ? strlen(group) : 0;
    json_t *owner;
    if (application_has(pod, group))
        return true;
    json_array_foreach(json_object_get(json_object_get(pod, "metadata"), "ownerReferences"), i, owner)
    {
        const char *name = json_string_value(json_object_get(owner, "name"));
        if (name && strncmp(name, group, length) == 0 && (!name[length] || name[length] == '-'))
            return true;
    }
    return false;
}

static void add(struct look *l, const char *claim, const char *class, bool captured, const char *reason,
                const char *format, ...) __attribute__((format(printf, 6, 7)));
static void add(struct look *l, const char *claim, const char *class, bool captured, const char *reason,
                const char *format, ...)
{
    char message[600];
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    if (json_array_size(l->volumes) < MAX_LOOKED_AT)
        json_array_append_new(l->volumes, json_pack("{s:s, s:b, s:s, s:s, s:s*}", "claim", claim, "captured",
                                                    (int)captured, "reason", reason, "message", message,
                                                    "storageClass", class));
}

/* Of the volume that was added last. */
static void add_place(struct look *l, const char *handle)
{
    _cleanup_json_ json_t *place = handle ? streams_placement(l->c, handle) : NULL;
    if (place)
        json_object_update(json_array_get(l->volumes, json_array_size(l->volumes) - 1), place);
}

/* hostPath volumes are state of the node that no claim names. */
static bool look_at_pod(void *context, json_t *pod)
{
    struct look *l = context;
    size_t i;
    json_t *volume;
    bool mounts = false;
    if (!volumes_pod_belongs(pod, l->group))
        return true;
    json_array_foreach(json_object_get(json_object_get(pod, "spec"), "volumes"), i, volume)
    {
        const char *claim = text_at(volume, "persistentVolumeClaim", "claimName"),
                   *path = text_at(volume, "hostPath", "path");
        char name[600];
        if (json_object_get(volume, "ephemeral")) {
            snprintf(name, sizeof name, "%s-%s", kube_object_name(pod),
                     json_string_value(json_object_get(volume, "name")));
            claim = name;
        }
        if (claim) {
            json_object_set_new(l->mounted, claim, json_true());
            mounts = true;
        } else if (path) {
            snprintf(name, sizeof name, "hostPath:%.240s", path);
            if (!json_object_get(l->mounted, name))
                add(l, name, NULL, false, "HostPath",
                    "the pod %s uses the directory %s of its node, which nothing protects: use a claim of a "
                    "tidemark class",
                    kube_object_name(pod), path);
            json_object_set_new(l->mounted, name, json_true());
        }
    }
    l->pods += mounts;
    return true;
}

static bool is_shared(const json_t *claim)
{
    size_t i;
    json_t *mode;
    json_array_foreach(json_object_get(json_object_get(claim, "spec"), "accessModes"), i,
                       mode) if (strcmp(json_string_value(mode), "ReadWriteMany") == 0) return true;
    return false;
}

static bool look_at_claim(void *context, json_t *claim)
{
    struct look *l = context;
    /* Judged later: the informers' lock is held here. */
    if (application_has(claim, l->group) || json_object_get(l->mounted, kube_object_name(claim)))
        json_array_append(l->claims, claim);
    return true;
}

bool volumes_is_bound(const json_t *volume, const json_t *claim)
{
    const json_t *of = json_object_get(json_object_get(volume, "spec"), "claimRef");
    const char *uid = json_text(of, "uid"), *of_claim = kube_object_uid(claim), *name = kube_object_name(claim),
               *namespace = kube_object_namespace(claim);
    return name && namespace && strcmp(json_text(of, "namespace"), namespace) == 0 &&
           strcmp(json_text(of, "name"), name) == 0 && (!*uid || !of_claim || strcmp(uid, of_claim) == 0);
}

static void judge(struct look *l, const json_t *claim)
{
    const char *name = kube_object_name(claim), *namespace = kube_object_namespace(claim);
    const char *class = text_at(claim, "spec", "storageClassName"),
               *volume_name = text_at(claim, "spec", "volumeName");
    if (class && !*class) /* without one, on purpose */
        class = NULL;
    _cleanup_json_ json_t *named = volume_name ? kube_informer_get(l->c->volumes, NULL, volume_name) : NULL;
    const json_t *volume = named && volumes_is_bound(named, claim) ? named : NULL;
    _cleanup_json_ json_t *of_class = class ? kube_informer_get(l->c->classes, NULL, class) : NULL;
    const char *driver =
        json_string_value(json_object_get(json_object_get(json_object_get(volume, "spec"), "csi"), "driver"));
    const char *provisioner = json_string_value(json_object_get(of_class, "provisioner"));
    const char *by = driver ? driver : volume ? "no CSI driver" : provisioner ? provisioner : NULL;
    if (by && strcmp(by, CSI_DRIVER) == 0 && volume) {
        add(l, name, class, true, "Captured", "every write is journaled");
        add_place(l, text_at(json_object_get(volume, "spec"), "csi", "volumeHandle"));
    }
    else if (by && strcmp(by, CSI_DRIVER) == 0)
        add(l, name, class, false, "NotBound",
            "the claim has no volume yet: kubectl -n %s describe pvc %s tells why", namespace, name);
    else if (is_shared(claim))
        add(l, name, class, false, "ReadWriteMany",
            "a volume that several nodes write cannot be captured write by write; a vault can hold copies of "
            "it");
    else if (!by && class)
        add(l, name, class, false, "ClassNotFound", "the storage class %s does not exist", class);
    else if (!by)
        add(l, name, class, false, "NoClass", "the claim names no storage class and has no volume");
    else
        add(l, name, class, false, "OtherDriver",
            "its volume is served by %s%s%s: kubectl tidemark adopt %s/%s, or use a tidemark class", by,
            class ? ", class " : "", class ? class : "", namespace, name);
}

/* The claims of the application: those of its group, and what its pods mount. */
static void find_claims(struct look *l, const char *namespace)
{
    kube_informer_each(l->c->pods, namespace, look_at_pod, l);
    kube_informer_each(l->c->claims, namespace, look_at_claim, l);
}

int volumes_handles(struct controller *c, const char *namespace, const char *application, json_t **ret,
                    struct error *err)
{
    _cleanup_json_ json_t *volumes = json_array(), *mounted = json_object(), *claims = json_array(),
                          *handles = json_object();
    struct look l = {c, application, volumes, mounted, claims, 0};
    size_t i;
    json_t *claim;
    if (!volumes || !mounted || !claims || !handles)
        return error_errno(err, -ENOMEM, "volumes of %s", namespace);
    find_claims(&l, namespace);
    json_array_foreach(claims, i, claim)
    {
        const char *name = text_at(claim, "spec", "volumeName");
        _cleanup_json_ json_t *volume = name ? kube_informer_get(c->volumes, NULL, name) : NULL;
        const json_t *csi = json_object_get(json_object_get(volume, "spec"), "csi");
        const char *driver = json_string_value(json_object_get(csi, "driver"));
        json_t *handle = json_object_get(csi, "volumeHandle");
        if (driver && strcmp(driver, CSI_DRIVER) == 0 && json_is_string(handle) && volumes_is_bound(volume, claim))
            json_object_set(handles, kube_object_name(claim), handle);
    }
    *ret = take_ptr(handles);
    return 0;
}

int volumes_of(struct controller *c, const char *namespace, const char *application, json_t **ret,
               size_t *ret_pods, struct error *err)
{
    _cleanup_json_ json_t *volumes = json_array(), *mounted = json_object(), *claims = json_array();
    struct look l = {c, application, volumes, mounted, claims, 0};
    size_t i;
    json_t *claim;
    if (!volumes || !mounted || !claims)
        return error_errno(err, -ENOMEM, "volumes of %s", namespace);
    find_claims(&l, namespace);
    json_array_foreach(claims, i, claim) judge(&l, claim);
    /* Those that are not captured first: what is cut off is what needs nobody's attention. */
    _cleanup_json_ json_t *sorted = json_array();
    for (int captured = 0; captured < 2; captured++)
        for (i = 0; i < json_array_size(volumes); i++)
            if (json_is_true(json_object_get(json_array_get(volumes, i), "captured")) == captured &&
                json_array_size(sorted) < MAX_VOLUMES)
                json_array_append(sorted, json_array_get(volumes, i));
    if (!sorted)
        return error_errno(err, -ENOMEM, "volumes of %s", namespace);
    *ret = take_ptr(sorted);
    *ret_pods = l.pods;
    return 0;
}
