/* SPDX-License-Identifier: Apache-2.0 */
#include "app/references.h"

#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"

#define RBAC "rbac.authorization.k8s.io"
#define STORAGE "storage.k8s.io"
#define POD "POD" /* in `where`: the pod's spec of any kind that has one */

enum rule_flags {
    OPTIONAL = 1, /* the object works without */
    DYNAMIC = 2,  /* the holder says the kind, and perhaps the group; the rule's are the default */
    CLUSTER = 4,  /* what is referred to has no namespace */
    OWNER = 8,
    NO_OTHER_KIND = 16 /* with DYNAMIC: other kinds than the rule's are no objects (users and groups) */
};

struct rule {
    const char *where; /* "group/Kind", POD, or "" for all */
    const char *path;  /* to the holder; "" the object (or the pod's spec) itself */
    const char *key;
    const char *group, *kind; /* of the target */
    unsigned flags;
    const char *namespace_key; /* in the holder; NULL: the object's own namespace */
};

static const struct rule rules[] = {
    {"", "metadata/ownerReferences[]", "name", "", "", DYNAMIC | OWNER, NULL},
    {POD, "", "serviceAccountName", "", "ServiceAccount", 0, NULL},
    {POD, "", "serviceAccount", "", "ServiceAccount", 0, NULL},
    {POD, "", "priorityClassName", "scheduling.k8s.io", "PriorityClass", CLUSTER, NULL},
    {POD, "", "runtimeClassName", "node.k8s.io", "RuntimeClass", CLUSTER, NULL},
    {POD, "imagePullSecrets[]", "name", "", "Secret", OPTIONAL, NULL},
    {POD, "volumes[]/configMap", "name", "", "ConfigMap", 0, NULL},
    {POD, "volumes[]/secret", "secretName", "", "Secret", 0, NULL},
    {POD, "volumes[]/persistentVolumeClaim", "claimName", "", "PersistentVolumeClaim", 0, NULL},
    {POD, "volumes[]/projected/sources[]/configMap", "name", "", "ConfigMap", 0, NULL},
    {POD, "volumes[]/projected/sources[]/secret", "name", "", "Secret", 0, NULL},
    {POD, "volumes[]/csi/nodePublishSecretRef", "name", "", "Secret", 0, NULL},
    {POD, "volumes[]/*/secretRef", "name", "", "Secret", 0, NULL},
    {POD, "volumes[]/ephemeral/volumeClaimTemplate/spec", "storageClassName", STORAGE, "StorageClass",
     CLUSTER, NULL},
    {POD, "resourceClaims[]", "resourceClaimName", "resource.k8s.io", "ResourceClaim", 0, NULL},
    {POD, "containers[]/env[]/valueFrom/configMapKeyRef", "name", "", "ConfigMap", 0, NULL},
    {POD, "containers[]/env[]/valueFrom/secretKeyRef", "name", "", "Secret", 0, NULL},
    {POD, "containers[]/envFrom[]/configMapRef", "name", "", "ConfigMap", 0, NULL},
    {POD, "containers[]/envFrom[]/secretRef", "name", "", "Secret", 0, NULL},
    {POD, "initContainers[]/env[]/valueFrom/configMapKeyRef", "name", "", "ConfigMap", 0, NULL},
    {POD, "initContainers[]/env[]/valueFrom/secretKeyRef", "name", "", "Secret", 0, NULL},
    {POD, "initContainers[]/envFrom[]/configMapRef", "name", "", "ConfigMap", 0, NULL},
    {POD, "initContainers[]/envFrom[]/secretRef", "name", "", "Secret", 0, NULL},
    {"apps/StatefulSet", "spec", "serviceName", "", "Service", OPTIONAL, NULL},
    {"apps/StatefulSet", "spec/volumeClaimTemplates[]/spec", "storageClassName", STORAGE, "StorageClass",
     CLUSTER, NULL},
    {"/PersistentVolumeClaim", "spec", "storageClassName", STORAGE, "StorageClass", CLUSTER, NULL},
    {"/PersistentVolumeClaim", "spec", "volumeAttributesClassName", STORAGE, "VolumeAttributesClass", CLUSTER,
     NULL},
    {"/PersistentVolumeClaim", "spec", "volumeName", "", "PersistentVolume", CLUSTER | OPTIONAL, NULL},
    {"/PersistentVolumeClaim", "spec/dataSourceRef", "name", "", "PersistentVolumeClaim", DYNAMIC | OPTIONAL,
     "namespace"},
    {"/PersistentVolume", "spec", "storageClassName", STORAGE, "StorageClass", CLUSTER | OPTIONAL, NULL},
    {"/PersistentVolume", "spec/claimRef", "name", "", "PersistentVolumeClaim", OPTIONAL, "namespace"},
    {"/PersistentVolume", "spec/csi/nodeStageSecretRef", "name", "", "Secret", 0, "namespace"},
    {"/PersistentVolume", "spec/csi/nodePublishSecretRef", "name", "", "Secret", 0, "namespace"},
    {"/PersistentVolume", "spec/csi/controllerPublishSecretRef", "name", "", "Secret", 0, "namespace"},
    {STORAGE "/StorageClass", "parameters", "csi.storage.k8s.io/provisioner-secret-name", "", "Secret", 0,
     "csi.storage.k8s.io/provisioner-secret-namespace"},
    {STORAGE "/StorageClass", "parameters", "csi.storage.k8s.io/node-stage-secret-name", "", "Secret", 0,
     "csi.storage.k8s.io/node-stage-secret-namespace"},
    {STORAGE "/StorageClass", "parameters", "backingClass", STORAGE, "StorageClass", CLUSTER, NULL},
    {"/ServiceAccount", "secrets[]", "name", "", "Secret", OPTIONAL, NULL},
    {"/ServiceAccount", "imagePullSecrets[]", "name", "", "Secret", OPTIONAL, NULL},
    {"/Secret", "metadata/annotations", "kubernetes.io/service-account.name", "", "ServiceAccount", 0, NULL},
    {RBAC "/RoleBinding", "roleRef", "name", RBAC, "Role", DYNAMIC, NULL},
    {RBAC "/RoleBinding", "subjects[]", "name", "", "ServiceAccount", DYNAMIC | NO_OTHER_KIND, "namespace"},
    {RBAC "/ClusterRoleBinding", "roleRef", "name", RBAC, "ClusterRole", DYNAMIC | CLUSTER, NULL},
    {RBAC "/ClusterRoleBinding", "subjects[]", "name", "", "ServiceAccount", DYNAMIC | NO_OTHER_KIND,
     "namespace"},
    {"networking.k8s.io/Ingress", "spec", "ingressClassName", "networking.k8s.io", "IngressClass", CLUSTER,
     NULL},
    {"networking.k8s.io/Ingress", "spec/defaultBackend/service", "name", "", "Service", 0, NULL},
    {"networking.k8s.io/Ingress", "spec/defaultBackend/resource", "name", "", "", DYNAMIC, NULL},
    {"networking.k8s.io/Ingress", "spec/rules[]/http/paths[]/backend/service", "name", "", "Service", 0,
     NULL},
    {"networking.k8s.io/Ingress", "spec/rules[]/http/paths[]/backend/resource", "name", "", "", DYNAMIC,
     NULL},
    {"networking.k8s.io/Ingress", "spec/tls[]", "secretName", "", "Secret", OPTIONAL, NULL},
    {"networking.k8s.io/Ingress", "metadata/annotations", "cert-manager.io/issuer", "cert-manager.io",
     "Issuer", 0, NULL},
    {"networking.k8s.io/Ingress", "metadata/annotations", "cert-manager.io/cluster-issuer", "cert-manager.io",
     "ClusterIssuer", CLUSTER, NULL},
    {"networking.k8s.io/IngressClass", "spec/parameters", "name", "", "", DYNAMIC | OPTIONAL, "namespace"},
    {"autoscaling/HorizontalPodAutoscaler", "spec/scaleTargetRef", "name", "apps", "Deployment", DYNAMIC,
     NULL},
    {"admissionregistration.k8s.io/ValidatingWebhookConfiguration", "webhooks[]/clientConfig/service", "name",
     "", "Service", 0, "namespace"},
    {"admissionregistration.k8s.io/MutatingWebhookConfiguration", "webhooks[]/clientConfig/service", "name",
     "", "Service", 0, "namespace"},
    {"admissionregistration.k8s.io/ValidatingAdmissionPolicyBinding", "spec", "policyName",
     "admissionregistration.k8s.io", "ValidatingAdmissionPolicy", CLUSTER, NULL},
    {"apiextensions.k8s.io/CustomResourceDefinition", "spec/conversion/webhook/clientConfig/service", "name",
     "", "Service", 0, "namespace"},
    {"apiregistration.k8s.io/APIService", "spec/service", "name", "", "Service", 0, "namespace"},
    {"cert-manager.io/Certificate", "spec/issuerRef", "name", "cert-manager.io", "Issuer", DYNAMIC, NULL},
    {"cert-manager.io/Certificate", "spec", "secretName", "", "Secret", OPTIONAL, NULL},
    {"cert-manager.io/Issuer", "spec/ca", "secretName", "", "Secret", 0, NULL},
    {"cert-manager.io/Issuer", "spec/acme/privateKeySecretRef", "name", "", "Secret", OPTIONAL, NULL},
    {"argoproj.io/Application", "spec", "project", "argoproj.io", "AppProject", 0, NULL},
    {"argoproj.io/Application", "spec/destination", "namespace", "", "Namespace", CLUSTER | OPTIONAL, NULL},
    {"keda.sh/ScaledObject", "spec/scaleTargetRef", "name", "apps", "Deployment", DYNAMIC, NULL},
    {"keda.sh/ScaledObject", "spec/triggers[]/authenticationRef", "name", "keda.sh", "TriggerAuthentication",
     DYNAMIC, NULL},
    {"keda.sh/TriggerAuthentication", "spec/secretTargetRef[]", "name", "", "Secret", 0, NULL},
    {"gateway.networking.k8s.io/Gateway", "spec", "gatewayClassName", "gateway.networking.k8s.io",
     "GatewayClass", CLUSTER, NULL},
    {"gateway.networking.k8s.io/Gateway", "spec/listeners[]/tls/certificateRefs[]", "name", "", "Secret",
     DYNAMIC, "namespace"},
    {"gateway.networking.k8s.io/HTTPRoute", "spec/parentRefs[]", "name", "gateway.networking.k8s.io",
     "Gateway", DYNAMIC, "namespace"},
    {"gateway.networking.k8s.io/HTTPRoute", "spec/rules[]/backendRefs[]", "name", "", "Service", DYNAMIC,
     "namespace"},
    {"kustomize.toolkit.fluxcd.io/Kustomization", "spec/sourceRef", "name", "source.toolkit.fluxcd.io", "",
     DYNAMIC, "namespace"},
    {"helm.toolkit.fluxcd.io/HelmRelease", "spec/chart/spec/sourceRef", "name", "source.toolkit.fluxcd.io",
     "", DYNAMIC, "namespace"},
    {"external-secrets.io/ExternalSecret", "spec/secretStoreRef", "name", "external-secrets.io",
     "SecretStore", DYNAMIC, NULL},
    {"external-secrets.io/ExternalSecret", "spec/target", "name", "", "Secret", OPTIONAL, NULL},
    {"snapshot.storage.k8s.io/VolumeSnapshot", "spec", "volumeSnapshotClassName", "snapshot.storage.k8s.io",
     "VolumeSnapshotClass", CLUSTER, NULL},
    {"snapshot.storage.k8s.io/VolumeSnapshot", "spec/source", "persistentVolumeClaimName", "",
     "PersistentVolumeClaim", OPTIONAL, NULL},
};

bool object_is_bootstrap(const char *group, const char *kind, const char *name)
{
    if (strcmp(group, RBAC) == 0) {
        static const char *const roles[] = {"cluster-admin", "admin", "edit", "view"};
        for (size_t i = 0; i < 4 && objects_has_prefix(kind, "Cluster"); i++) {
            if (strcmp(name, roles[i]) == 0)
                return true;
        }
        return objects_has_prefix(name, "system:");
    }
    if (strcmp(kind, "PriorityClass") == 0)
        return objects_has_prefix(name, "system-");
    if (strcmp(kind, "ServiceAccount") == 0)
        return strcmp(name, "default") == 0;
    if (strcmp(kind, "ConfigMap") == 0)
        return strcmp(name, "kube-root-ca.crt") == 0;
    if (strcmp(kind, "Namespace") == 0)
        return strcmp(name, "default") == 0 || objects_has_prefix(name, "kube-");
    return false;
}

struct visiting {
    const struct rule *rule;
    const struct object_id *id;
    const char *prefix; /* of the path: where the pod's spec stands */
    reference_visit visit;
    void *context;
};

static int visit_holder(void *context, json_t *holder, const char *path)
{
    const struct visiting *v = context;
    const struct rule *rule = v->rule;
    const char *name = objects_text(holder, rule->key), *own = v->id->namespace;
    char group[128], full[OBJECT_PATH_BYTES * 2 + 64];
    if (!name[0])
        return 0;
    struct reference r = {.group = rule->group,
                          .kind = rule->kind,
                          .name = name,
                          .optional = rule->flags & OPTIONAL,
                          .owner = rule->flags & OWNER,
                          .holder = holder,
                          .key = rule->key};
    if (rule->flags & DYNAMIC) {
        const char *kind = objects_text(holder, "kind"), *api_version = objects_text(holder, "apiVersion");
        if (kind[0] && strcmp(kind, rule->kind) != 0) {
            if (rule->flags & NO_OTHER_KIND)
                return 0;
            r.kind = kind;
            r.group = api_version[0] || rule->kind[0] ? rule->group : "";
        }
        if (api_version[0])
            r.group = object_group_of(api_version, group, sizeof group);
        else if (objects_text(holder, "apiGroup")[0])
            r.group = objects_text(holder, "apiGroup");
        else if (objects_text(holder, "group")[0])
            r.group = objects_text(holder, "group");
    }
    r.optional = r.optional || json_is_true(json_object_get(holder, "optional"));
    r.any_scope = r.owner;
    if (rule->namespace_key && objects_text(holder, rule->namespace_key)[0]) {
        r.namespace = objects_text(holder, rule->namespace_key);
        r.namespace_key = rule->namespace_key;
    } else {
        bool cluster = rule->flags & CLUSTER || object_kind_is_cluster_scoped(r.group, r.kind);
        r.namespace = cluster ? "" : own;
    }
    snprintf(full, sizeof full, "%s%s%s%s%s", v->prefix, v->prefix[0] && path[0] ? "." : "", path,
             v->prefix[0] || path[0] ? "." : "", rule->key);
    r.path = full;
    return v->visit(v->context, &r);
}

/* Fields of kinds that the table does not know. */
struct guessing {
    const struct object_id *id;
    reference_visit visit;
    void *context;
};

static int guess_leaf(void *context, const struct objects_leaf *leaf)
{
    static const struct {
        const char *key, *kind;
    } direct[] = {{"secretName", "Secret"},
                  {"existingSecret", "Secret"},
                  {"configMapName", "ConfigMap"},
                  {"serviceAccountName", "ServiceAccount"},
                  {"storageClassName", "StorageClass"},
                  {"storageClass", "StorageClass"},
                  {"priorityClassName", "PriorityClass"}};
    const struct guessing *g = context;
    struct reference r = {.group = "",
                          .name = leaf->text,
                          .path = leaf->path,
                          .optional = true,
                          .namespace = g->id->namespace,
                          .holder = leaf->holder,
                          .key = leaf->key};
    if (!leaf->key || !leaf->text[0] || !objects_has_prefix(leaf->path, "spec."))
        return 0;
    for (size_t i = 0; i < sizeof direct / sizeof *direct; i++) {
        if (strcmp(leaf->key, direct[i].key) == 0)
            r.kind = direct[i].kind;
    }
    if (strcmp(leaf->key, "name") == 0) { /* parent "...SecretRef.name" and the like */
        char parent[OBJECT_PATH_BYTES];
        snprintf(parent, sizeof parent, "%.*s", (int)(strlen(leaf->path) - strlen(".name")), leaf->path);
        const char *bracket = strrchr(parent, '[');
        if (bracket && objects_has_suffix(parent, "]"))
            parent[bracket - parent] = '\0';
        const char *dot = strrchr(parent, '.'), *last = dot ? dot + 1 : parent;
        if (strcasestr(last, "secretref") || strcasestr(last, "secretkeyref"))
            r.kind = "Secret";
        else if (strcasestr(last, "configmapref") || strcasestr(last, "configmapkeyref"))
            r.kind = "ConfigMap";
    }
    if (!r.kind)
        return 0;
    if (strcmp(r.kind, "StorageClass") == 0)
        r.group = STORAGE;
    if (strcmp(r.kind, "PriorityClass") == 0)
        r.group = "scheduling.k8s.io";
    if (r.group[0])
        r.namespace = "";
    return g->visit(g->context, &r);
}

/* What follows from the object's kind alone: its namespace, its definition. */
static int visit_implied(const struct object_id *id, reference_visit visit, void *context)
{
    struct reference r = {.group = "",
                          .kind = "Namespace",
                          .namespace = "",
                          .name = id->namespace,
                          .path = "metadata.namespace"};
    int result = id->namespace[0] ? visit(context, &r) : 0;
    if (result || object_group_is_builtin(id->group))
        return result;
    struct reference definition = {.group = "apiextensions.k8s.io",
                                   .kind = "CustomResourceDefinition",
                                   .namespace = "",
                                   .name = "",
                                   .path = "apiVersion"};
    return visit(context, &definition);
}

int references_visit(json_t *object, reference_visit visit, void *context)
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    char where[OBJECT_PATH_BYTES], prefix[128] = "";
    if (object_identify(object, &id, &unused) < 0)
        return 0;
    snprintf(where, sizeof where, "%s/%s", id.group, id.kind);
    const char *pod_path = objects_pod_spec_path(id.group, id.kind);
    if (pod_path) {
        snprintf(prefix, sizeof prefix, "%s", pod_path);
        for (char *c = prefix; *c; c++)
            *c = *c == '/' ? '.' : *c;
    }
    int r = visit_implied(&id, visit, context);
    bool known = object_group_is_builtin(id.group);
    for (size_t i = 0; i < sizeof rules / sizeof *rules && r == 0; i++) {
        bool pod = strcmp(rules[i].where, POD) == 0;
        if (pod ? !pod_path : rules[i].where[0] && strcmp(rules[i].where, where) != 0)
            continue;
        known = known || rules[i].where[0];
        struct visiting v = {
            .rule = &rules[i], .id = &id, .prefix = pod ? prefix : "", .visit = visit, .context = context};
        r = objects_walk(pod ? objects_at(object, pod_path) : object, rules[i].path, visit_holder, &v);
    }
    struct guessing g = {&id, visit, context};
    return r == 0 && !known ? objects_leaves(object, guess_leaf, &g) : r;
}

/* ---- finding them in a set ---- */

static void index_key(char *key, size_t size, const char *group, const char *kind, const char *namespace,
                      const char *name)
{
    snprintf(key, size, "%s|%s|%s|%s", group, kind, namespace, name);
}

json_t *references_index(const json_t *set)
{
    _cleanup_json_ json_t *index = json_object();
    const char *name;
    json_t *object;
    json_object_foreach((json_t *)(uintptr_t)set, name, object)
    {
        struct object_id id;
        struct error unused = ERROR_INIT;
        char key[OBJECT_NAME_BYTES];
        if (object_id_parse(name, &id, &unused) < 0)
            continue;
        index_key(key, sizeof key, id.group, id.kind, id.namespace, id.name);
        if (json_object_set_new(index, key, json_string(name)) < 0)
            return NULL;
        if (strcmp(id.kind, "CustomResourceDefinition") != 0)
            continue;
        /* By what it defines, for the instances. */
        index_key(key, sizeof key, objects_text_at(object, "spec/group"),
                  objects_text_at(object, "spec/names/kind"), "*", "*");
        if (json_object_set_new(index, key, json_string(name)) < 0)
            return NULL;
    }
    return take_ptr(index);
}

const char *references_find(const json_t *index, const struct reference *r)
{
    char key[OBJECT_NAME_BYTES];
    index_key(key, sizeof key, r->group, r->kind, r->namespace, r->name);
    const char *found = json_string_value(json_object_get(index, key));
    if (!found && r->any_scope) {
        index_key(key, sizeof key, r->group, r->kind, "", r->name);
        found = json_string_value(json_object_get(index, key));
    }
    return found;
}

/* ---- the closure ---- */

struct closure {
    const json_t *set;
    const char *namespace;
    json_t *index;
    json_t *reached; /* journal name -> true */
    json_t *queue;   /* journal names */
    json_t *missing;
    json_t *missing_seen;
    size_t missing_count;
    /* of the object whose references are followed */
    const char *from;
    struct object_id id;
    bool into_reached; /* answer of a look at cluster-scoped ones */
};

static int reach(struct closure *c, const char *name)
{
    if (json_object_get(c->reached, name))
        return 0;
    if (json_object_set_new(c->reached, name, json_true()) < 0 ||
        json_array_append_new(c->queue, json_string(name)) < 0)
        return -ENOMEM;
    return 0;
}

static const char *find_definition(const json_t *index, const struct object_id *id)
{
    char key[OBJECT_NAME_BYTES];
    index_key(key, sizeof key, id->group, id->kind, "*", "*");
    return json_string_value(json_object_get(index, key));
}

static int note_missing(struct closure *c, const struct reference *r)
{
    char key[OBJECT_NAME_BYTES * 2], definition[OBJECT_PATH_BYTES];
    const char *name = r->name;
    if (!name[0]) {
        snprintf(definition, sizeof definition, "of %s.%s", c->id.kind, c->id.group);
        name = definition;
    }
    snprintf(key, sizeof key, "%s|%s|%s|%s", r->group, r->kind, r->namespace, name);
    if (json_object_get(c->missing_seen, key))
        return 0;
    c->missing_count++;
    if (json_object_set_new(c->missing_seen, key, json_true()) < 0)
        return -ENOMEM;
    if (json_array_size(c->missing) >= REFERENCES_MISSING_MAX)
        return 0;
    json_t *entry = json_pack("{s:s, s:s, s:s, s:s, s:b, s:s, s:s}", "group", r->group, "kind", r->kind,
                              "namespace", r->namespace, "name", name, "optional", (int)r->optional, "from",
                              c->from, "field", r->path);
    return json_array_append_new(c->missing, entry) < 0 ? -ENOMEM : 0;
}

static int follow(void *context, const struct reference *r)
{
    struct closure *c = context;
    if (object_is_bootstrap(r->group, r->kind, r->name))
        return 0;
    const char *found = r->name[0] ? references_find(c->index, r) : find_definition(c->index, &c->id);
    if (found)
        return reach(c, found);
    /* Other namespaces are others' business, and a volume is not an object to restore. */
    if (strcmp(r->kind, "PersistentVolume") == 0)
        return 0;
    return note_missing(c, r);
}

static int points_into(void *context, const struct reference *r)
{
    struct closure *c = context;
    const char *found = r->namespace[0] && r->name[0] && !r->owner ? references_find(c->index, r) : NULL;
    if (found && json_object_get(c->reached, found))
        c->into_reached = true;
    return 0;
}

/* Cluster-scoped objects that point at what was reached: adds them to the queue. */
static int reach_backwards(struct closure *c)
{
    const char *name;
    json_t *object;
    int r = 0;
    json_object_foreach((json_t *)(uintptr_t)c->set, name, object)
    {
        struct object_id id;
        struct error unused = ERROR_INIT;
        if (r < 0 || json_object_get(c->reached, name) || object_id_parse(name, &id, &unused) < 0 ||
            id.namespace[0])
            continue;
        bool can = strcmp(id.kind, "ClusterRoleBinding") == 0 ||
                   strcmp(id.group, "admissionregistration.k8s.io") == 0 ||
                   strcmp(id.kind, "APIService") == 0;
        if (!can || object_is_bootstrap(id.group, id.kind, id.name))
            continue;
        c->into_reached = false;
        (void)references_visit(object, points_into, c);
        if (c->into_reached)
            r = reach(c, name);
    }
    return r;
}

static int empty_queue(struct closure *c)
{
    int r = 0;
    for (size_t i = 0; i < json_array_size(c->queue) && r == 0; i++) {
        struct error unused = ERROR_INIT;
        c->from = json_string_value(json_array_get(c->queue, i));
        r = object_id_parse(c->from, &c->id, &unused);
        if (r == 0)
            r = references_visit(json_object_get(c->set, c->from), follow, c);
    }
    json_array_clear(c->queue);
    return r;
}

static int closure_result(struct closure *c, json_t **ret)
{
    _cleanup_json_ json_t *objects = objects_sorted_names(c->reached), *cluster = json_array();
    size_t i;
    json_t *name;
    json_array_foreach(objects, i, name)
    {
        struct object_id id;
        struct error unused = ERROR_INIT;
        if (object_id_parse(json_string_value(name), &id, &unused) < 0)
            continue;
        bool own = id.namespace[0] && (!c->namespace[0] || strcmp(id.namespace, c->namespace) == 0);
        if (!own && json_array_append(cluster, name) < 0)
            return -ENOMEM;
    }
    *ret = json_pack("{s:O, s:O, s:O, s:I}", "objects", objects, "cluster", cluster, "missing", c->missing,
                     "missingCount", (json_int_t)c->missing_count);
    return *ret ? 0 : -ENOMEM;
}

int references_closure(const json_t *set, const char *namespace, json_t **ret, struct error *err)
{
    struct closure c = {.set = set, .namespace = namespace};
    _cleanup_json_ json_t *index = references_index(set), *reached = json_object(), *queue = json_array();
    _cleanup_json_ json_t *missing = json_array(), *seen = json_object();
    const char *name;
    json_t *object;
    int r = index && reached && queue && missing && seen ? 0 : -ENOMEM;
    c.index = index, c.reached = reached, c.queue = queue, c.missing = missing, c.missing_seen = seen;
    json_object_foreach((json_t *)(uintptr_t)set, name, object)
    {
        struct object_id id;
        struct error unused = ERROR_INIT;
        if (r == 0 && object_id_parse(name, &id, &unused) == 0 && id.namespace[0] &&
            (!namespace[0] || strcmp(id.namespace, namespace) == 0))
            r = reach(&c, name);
    }
    while (r == 0 && json_array_size(queue) > 0) {
        r = empty_queue(&c);
        if (r == 0)
            r = reach_backwards(&c);
    }
    if (r == 0)
        r = closure_result(&c, ret);
    return r < 0 ? error_set(err, r, "cannot find what the objects refer to: %s", strerror(-r)) : 0;
}
