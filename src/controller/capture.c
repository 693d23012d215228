/* SPDX-License-Identifier: Apache-2.0 */
/* Capture: an informer for every namespaced kind that can be listed and watched, and for namespaces
 * themselves; each change of an object of a protected application goes to the store.
 *
 * Invariants: C1 an application's journal is complete once every kind was listed after it was added: by the
 * informers' first list for those that are added before capture begins, and for kinds that come later, else by
 * lists of its namespace; C2 a
 * kind that could not be listed is not swept: what is not seen is not taken for deleted; C3 with the deletion of its namespace an
 * application's journal ends: what the namespace's controller deletes then, one after the other, is no history of the application, and its
 * last point is as it was. */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <string.h>

#include "app/objects.h"
#include "base/cleanup.h"
#include "controller/controller_internal.h"
#include "kube/discovery.h"
#include "lib/json.h"

#define DISCOVERY_SETTLE_MS 500u
#define DISCOVERY_RETRY_MS 30000u
#define STATUS_SETTLE_MS 30000u       /* an application's findings follow its objects so much later */
#define LEFT_OUT_MAX 1000u
#define LEFT_OUT_TOLD 20u /* of an application */
#define LEAVES "tidemark.io/leaves"     /* in a namespace that is being deleted */
#define LEFT_OUT "tidemark.io/left-out" /* in what stands for an object that cannot be journaled: why */

struct captured_application {
    struct captured_application *next;
    char *namespace, *name, *group; /* group NULL: the whole namespace */
    size_t told;                    /* objects that its status tells of; SIZE_MAX: not known */
};

struct captured_kind {
    struct captured_kind *next;
    struct kube_informer *informer; /* NULL until added */
    struct kube_resource resource;  /* texts owned */
    struct capture *capture;
    bool synced, wanted;
    bool refused; /* the server does not let it be listed, or cannot */
};

/* An object that cannot be journaled: too large, or nested too deeply. */
struct left_out {
    struct left_out *next;
    char *home;   /* namespace */
    json_t *stub; /* see make_stub */
    char name[];  /* journal name */
};

struct capture {
    struct controller *c;
    pthread_mutex_t mutex;       /* over the lists; not held where a call may block */
    pthread_rwlock_t kinds_lock; /* for writing: changes of the kinds; before `mutex` */
    struct captured_application *applications;
    struct captured_kind *kinds;
    struct left_out *left_out;
    size_t left_out_count;
    struct kube_informer *crds, *services;
};

bool application_has(const json_t *object, const char *group)
{
    if (!group)
        return true;
    const char *annotation = kube_object_annotation(object, ANNOTATION_APPLICATION);
    const char *label = kube_object_label(object, ANNOTATION_APPLICATION), *name = kube_object_name(object);
    if ((annotation && strcmp(annotation, group) == 0) || (label && strcmp(label, group) == 0))
        return true;
    /* A workload or claim that is annotated by itself is an application of its name. */
    return !annotation && !label && name && strcmp(name, group) == 0 &&
           kube_object_annotation(object, ANNOTATION_POLICY);
}

const char *application_group(const json_t *papp)
{
    const json_t *selector = json_object_get(json_object_get(papp, "spec"), "selector");
    return json_string_value(
        json_object_get(json_object_get(selector, "matchLabels"), ANNOTATION_APPLICATION));
}

/* Of Endpoints and EndpointSlices most are the control plane's, and change with each pod: the API server keeps back what is marked as
 * such. Older ones do not mark all; what came all the same object_noise knows. NULL: all. */
static const char *selector_of(const struct kube_resource *r)
{
    if (strcmp(r->group, "discovery.k8s.io") == 0 && strcmp(r->kind, "EndpointSlice") == 0)
        return "endpointslice.kubernetes.io/managed-by notin (endpointslice-controller.k8s.io,endpointslicemirroring-controller.k8s.io)";
    if (!*r->group && strcmp(r->kind, "Endpoints") == 0)
        return "!endpoints.kubernetes.io/managed-by,!service.kubernetes.io/headless";
    return NULL;
}

/* ---- objects ---- */
/* Makes of the object what stands for it in the cache, so that its end is seen. */
static bool make_stub(json_t *object, const char *reason)
{
    const json_t *metadata = json_object_get(object, "metadata");
    _cleanup_json_ json_t *stub =
        json_pack("{s:O, s:O, s:{s:O, s:O*, s:O*, s:O*}, s:o}", "apiVersion", json_object_get(object, "apiVersion"), "kind",
                  json_object_get(object, "kind"), "metadata", "name", json_object_get(metadata, "name"), "namespace",
                  json_object_get(metadata, "namespace"), "labels", json_object_get(metadata, "labels"), "annotations",
                  json_object_get(metadata, "annotations"), LEFT_OUT, json_string_lossy(reason));
    return stub && json_object_clear(object) == 0 && json_object_update(object, stub) == 0;
}

static bool is_namespace(const struct kube_resource *r)
{
    return !r->namespaced;
}

static bool is_leaving(const json_t *object)
{
    return json_object_get(json_object_get(object, "metadata"), "deletionTimestamp");
}

static bool normalize(void *context, const struct kube_resource *resource, json_t *object)
{
    struct captured_kind *kind = context;
    _cleanup_json_ json_t *normalized = NULL;
    struct error err = ERROR_INIT;
    const char *type = json_string_value(json_object_get(object, "type"));
    if (object_noise(object) || (type && object_is_secret(object) && strcmp(type, CONTROLLER_KEY_TYPE) == 0))
        return false;
    if (object_normalize(object, &normalized, &err) < 0) {
        const char *namespace = kube_object_namespace(object);
        log_warning(kind->capture->c->log, "%s %s/%s is not journaled: %s", resource->kind, namespace ? namespace : "",
                    kube_object_name(object), err.message);
        return make_stub(object, err.message);
    }
    bool leaves = is_namespace(resource) && is_leaving(object);
    json_object_clear(object);
    return json_object_update(object, normalized) == 0 && (!leaves || json_object_set_new(object, LEAVES, json_true()) == 0);
}

static int journal_name(const struct kube_resource *r, const char *namespace, const char *name,
                        char text[OBJECT_NAME_BYTES], struct error *err)
{
    const struct object_id id = {.group = r->group,
                                 .version = r->version,
                                 .kind = r->kind,
                                 .namespace = namespace ? namespace : "",
                                 .name = name};
    return object_journal_name(&id, text, err);
}

/* ---- what is left out ---- */
static void free_left_out(struct left_out *l)
{
    free(l->home);
    json_decref(l->stub);
    free(l);
}

/* The mutex is held. `name`: of one; NULL: all whose names begin with `prefix`. */
static void forget_left_out(struct capture *capture, const char *name, const char *prefix)
{
    for (struct left_out **link = &capture->left_out; *link;) {
        struct left_out *l = *link;
        if (name ? strcmp(l->name, name) != 0 : strncmp(l->name, prefix, strlen(prefix)) != 0) {
            link = &l->next;
            continue;
        }
        *link = l->next;
        capture->left_out_count--;
        free_left_out(l);
    }
}

/* The mutex is held. */
static void add_left_out(struct capture *capture, const char *home, const char *name, const json_t *stub)
{
    struct left_out *l = capture->left_out_count < LEFT_OUT_MAX ? calloc(1, sizeof *l + strlen(name) + 1) : NULL;
    if (!l || !(l->home = strdup(home)) || !(l->stub = json_deep_copy(stub))) {
        if (l)
            free_left_out(l);
        return;
    }
    memcpy(l->name, name, strlen(name) + 1);
    l->next = capture->left_out;
    capture->left_out = l;
    capture->left_out_count++;
}

int capture_left_out(struct capture *capture, const char *namespace, const char *group, json_t *findings, size_t *ret_count,
                     struct error *err)
{
    size_t count = 0;
    MUTEX_GUARD(guard, &capture->mutex);
    for (const struct left_out *l = capture->left_out; l; l = l->next) {
        if (strcmp(l->home, namespace) != 0 || !application_has(l->stub, group) || ++count > LEFT_OUT_TOLD)
            continue;
        json_t *finding = json_pack("{s:s, s:s, s:o}", "type", "not journaled", "object", l->name, "message",
                                    json_sprintf("it is in no history, and no recovery puts it back: %.800s",
                                                 json_string_value(json_object_get(l->stub, LEFT_OUT))));
        if (json_array_insert_new(findings, 0, finding) < 0)
            return error_errno(err, -ENOMEM, "%s", namespace);
    }
    *ret_count = count;
    return 0;
}

/* ---- passing on ---- */
struct passed {
    char *name;
    bool has;
};

/* Those of the namespace; whether they have the object (NULL: none has). The mutex is held. -ENOMEM. */
static int applications_of(const struct capture *capture, const char *home, const json_t *object, struct passed **ret,
                           size_t *ret_count)
{
    size_t room = 0, count = 0;
    struct passed *found = NULL;
    for (const struct captured_application *a = capture->applications; a; a = a->next)
        room += strcmp(a->namespace, home) == 0;
    if (room && !(found = calloc(room, sizeof *found)))
        return -ENOMEM;
    for (const struct captured_application *a = capture->applications; a && count < room; a = a->next)
        if (strcmp(a->namespace, home) == 0 && (found[count].name = strdup(a->name)))
            found[count++].has = object && application_has(object, a->group);
    *ret = found;
    *ret_count = count;
    return count == room ? 0 : -ENOMEM;
}

/* One object to all applications of its namespace: to those that have it no longer, as deleted. */
static void pass_on(struct capture *capture, const struct kube_resource *resource, const char *namespace,
                    const char *name, uint64_t version, const json_t *object)
{
    char text[OBJECT_NAME_BYTES];
    struct error err = ERROR_INIT;
    const char *home = is_namespace(resource) ? name : namespace;
    const json_t *stub = json_object_get(object, LEFT_OUT) ? object : NULL;
    struct passed *found = NULL;
    size_t count = 0;
    int r = journal_name(resource, is_namespace(resource) ? NULL : namespace, name, text, &err);
    pthread_mutex_lock(&capture->mutex);
    int listed = applications_of(capture, home, stub ? NULL : object, &found, &count);
    if (r == 0 && capture->left_out)
        forget_left_out(capture, text, NULL);
    if (r == 0 && stub && count)
        add_left_out(capture, home, text, stub);
    pthread_mutex_unlock(&capture->mutex);
    if (listed < 0)
        log_error(capture->c->log, "%s %s/%s is not journaled: out of memory", resource->kind, home, name);
    for (size_t i = 0; i < count; i++) {
        if (r == 0) {
            int put = object_store_put(capture->c->store, home, found[i].name, text,
                                       found[i].has ? object : NULL, version, &err);
            if (put < 0 && put != -ENOENT && put != -ECANCELED)
                log_error(capture->c->log, "%s is not journaled: %s", text, err.message);
            controller_enqueue(capture->c, home, found[i].name, STATUS_SETTLE_MS);
        }
        free(found[i].name);
    }
    free(found);
}

/* C3. Another one of its name has histories that go on: it is reconciled anew. */
static void on_namespace(struct capture *capture, enum kube_event event, const char *name, uint64_t version, bool leaves)
{
    struct passed *found = NULL;
    struct error err = ERROR_INIT;
    size_t count = 0;
    if (leaves || event == KUBE_DELETED) {
        /* Of one that is gone before it was seen to go no deletion counts. */
        if (object_store_end(capture->c->store, name, leaves ? version : 1, "the namespace was deleted: the history of its objects ends with what was there", &err) < 0)
            log_error(capture->c->log, "%s", err.message);
        return;
    }
    pthread_mutex_lock(&capture->mutex);
    if (applications_of(capture, name, NULL, &found, &count) < 0)
        log_error(capture->c->log, "namespace %s: out of memory", name);
    pthread_mutex_unlock(&capture->mutex);
    for (size_t i = 0; i < count; i++) {
        if (object_store_has_ended(capture->c->store, name, found[i].name)) {
            capture_remove(capture, name, found[i].name);
            controller_enqueue(capture->c, name, found[i].name, 0);
        }
        free(found[i].name);
    }
    free(found);
}

static void on_event(void *context, const struct kube_resource *resource, enum kube_event event,
                     const char *namespace, const char *name, uint64_t version, json_t *object)
{
    struct capture *capture = ((struct captured_kind *)context)->capture;
    bool leaves = json_object_get(object, LEAVES);
    if (is_namespace(resource))
        on_namespace(capture, event, name, version, leaves);
    if (!leaves)
        pass_on(capture, resource, namespace, name, version, event == KUBE_DELETED ? NULL : object);
}

static void on_synced(void *context, const struct kube_resource *resource, size_t count)
{
    struct captured_kind *kind = context;
    struct capture *capture = kind->capture;
    struct error err = ERROR_INIT;
    (void)count;
    MUTEX_GUARD(guard, &capture->mutex);
    if (!kind->synced && object_store_sweep_kind(capture->c->store, resource->group, resource->kind, &err) < 0)
        log_error(capture->c->log, "%s", err.message);
    kind->synced = true;
    kind->refused = false;
    bool all = true;
    for (struct captured_kind *k = capture->kinds; k; k = k->next)
        all &= k->synced;
    if (all)
        malloc_trim(0); /* lists leave much behind */
}

static void on_gap(void *context, const struct kube_resource *resource, const char *reason)
{
    struct captured_kind *kind = context;
    char text[512];
    snprintf(text, sizeof text, "changes of %s may have passed unseen: %.300s", resource->plural, reason);
    log_warning(kind->capture->c->log, "%s", text);
    object_store_gap(kind->capture->c->store, NULL, NULL, text);
}

static void on_failed(void *context, const struct kube_resource *resource, const struct error *error)
{
    struct captured_kind *kind = context;
    pthread_mutex_lock(&kind->capture->mutex);
    kind->refused = error->code == -EACCES || error->code == -ENOENT || error->code == -EOPNOTSUPP || error->code == -EIO ||
                    error->code == -EINVAL || error->code == -EPROTO; /* the last ones: its conversion webhook is broken, say */
    pthread_mutex_unlock(&kind->capture->mutex);
    log_warning(((struct captured_kind *)context)->capture->c->log, "capture of %s: %s", resource->plural,
                error->message);
}

int capture_journals(struct capture *capture, const json_t *object, bool *ret, struct error *err)
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    *ret = false;
    if (object_identify(object, &id, &unused) < 0)
        return 0;
    char name[OBJECT_NAME_BYTES];
    if (object_journal_name(&id, name, &unused) < 0)
        return 0;
    MUTEX_GUARD(guard, &capture->mutex);
    for (const struct left_out *l = capture->left_out; l; l = l->next)
        if (strcmp(l->name, name) == 0)
            return 0;
    for (struct captured_kind *k = capture->kinds; k; k = k->next) {
        if (strcmp(k->resource.kind, id.kind) != 0 || strcmp(k->resource.group, id.group) != 0)
            continue;
        *ret = k->synced;
        if (!k->synced && !k->refused)
            return error_set(err, -EAGAIN, "waiting until all %s are known", k->resource.plural);
    }
    return 0;
}

/* ---- applications ---- */
static void free_application(struct captured_application *a)
{
    free(a->namespace);
    free(a->name);
    free(a->group);
    free(a);
}

struct namespace_list {
    struct captured_kind *kind;
    const char *namespace;
};

static int on_chunk(void *context, json_t *items, bool first, struct error *err)
{
    struct namespace_list *l = context;
    size_t i;
    json_t *item;
    (void)first, (void)err; /* again from the beginning: what came is the same or newer (S3) */
    json_array_foreach(items, i, item)
    {
        const char *version = kube_object_version(item);
        uint64_t number = version ? strtoull(version, NULL, 10) : 0;
        const char *name = kube_object_name(item);
        _cleanup_free_ char *copy = name ? strdup(name) : NULL; /* normalizing replaces the text */
        if (copy && normalize(l->kind, &l->kind->resource, item) && !json_object_get(item, LEAVES))
            pass_on(l->kind->capture, &l->kind->resource, l->namespace, copy, number, item);
    }
    return 0;
}

static int list_kind(struct capture *capture, const struct captured_application *a, struct captured_kind *k,
                     struct error *err)
{
    struct controller *c = capture->c;
    struct namespace_list l = {k, a->namespace};
    _cleanup_free_ char *version = NULL, *selector = NULL;
    struct error failure = ERROR_INIT;
    if (is_namespace(&k->resource) && asprintf(&selector, "metadata.name=%s", a->namespace) < 0)
        return error_errno(err, -ENOMEM, "%s", a->namespace);
    const struct kube_target target = {.resource = &k->resource, .namespace = a->namespace};
    const struct kube_list_options options = {.field_selector = selector, .label_selector = selector_of(&k->resource)};
    int r = kube_list(c->client, &target, &options, on_chunk, &l, &version, &failure);
    pthread_mutex_lock(&capture->mutex);
    bool synced = k->synced;
    pthread_mutex_unlock(&capture->mutex);
    /* What passes is tried again with all the rest: an object that the journal lacks would be one that came later. */
    if (r == -ECANCELED || (r < 0 && synced && r != -EACCES && r != -ENOENT && r != -EOPNOTSUPP))
        return error_set(err, r, "listing %s of %s: %s", k->resource.plural, a->namespace, failure.message);
    if (r < 0) { /* C2 */
        log_warning(c->log, "listing %s of %s: %s", k->resource.plural, a->namespace, failure.message);
        return 0;
    }
    return object_store_sweep(c->store, a->namespace, a->name, k->resource.group, k->resource.kind,
                              strtoull(version, NULL, 10), err);
}

/* Lists what the application's namespace has, kind by kind. */
static int list_namespace(struct capture *capture, const struct captured_application *a, struct error *err)
{
    int r = 0;
    object_store_list(capture->c->store, a->namespace, a->name, true);
    pthread_rwlock_rdlock(&capture->kinds_lock); /* the kinds do not change meanwhile */
    for (struct captured_kind *k = capture->kinds; k && r == 0; k = k->next)
        r = list_kind(capture, a, k, err);
    pthread_rwlock_unlock(&capture->kinds_lock);
    object_store_list(capture->c->store, a->namespace, a->name, false);
    return r;
}

static struct captured_application *find_application(struct capture *capture, const char *namespace,
                                                     const char *name)
{
    for (struct captured_application *a = capture->applications; a; a = a->next)
        if (strcmp(a->namespace, namespace) == 0 && strcmp(a->name, name) == 0)
            return a;
    return NULL;
}

static int add_application(struct capture *capture, const char *namespace, const char *name,
                           const char *group, struct error *err)
{
    struct captured_application *a = calloc(1, sizeof *a);
    bool resumed;
    if (!a || !(a->namespace = strdup(namespace)) || !(a->name = strdup(name)) ||
        (group && !(a->group = strdup(group)))) {
        if (a)
            free_application(a);
        return error_errno(err, -ENOMEM, "%s/%s", namespace, name);
    }
    a->told = SIZE_MAX;
    int r = object_store_keep(capture->c->store, namespace, name, &resumed, err);
    if (r < 0) {
        free_application(a);
        return r;
    }
    pthread_mutex_lock(&capture->mutex);
    a->next = capture->applications;
    capture->applications = a;
    pthread_mutex_unlock(&capture->mutex);
    log_info(capture->c->log, "%s/%s: its objects are journaled%s", namespace, name, resumed ? " again" : "");
    return 0;
}

bool capture_has_told(struct capture *capture, const char *namespace, const char *name, size_t objects)
{
    MUTEX_GUARD(guard, &capture->mutex);
    const struct captured_application *a = find_application(capture, namespace, name);
    return !a || a->told == objects;
}

void capture_tell(struct capture *capture, const char *namespace, const char *name, size_t objects)
{
    MUTEX_GUARD(guard, &capture->mutex);
    struct captured_application *a = find_application(capture, namespace, name);
    if (a)
        a->told = objects;
}

int capture_add(struct capture *capture, const char *namespace, const char *name, const char *group,
                struct error *err)
{
    pthread_mutex_lock(&capture->mutex);
    struct captured_application *there = find_application(capture, namespace, name);
    bool same = there && (there->group && group ? strcmp(there->group, group) == 0 : !there->group && !group);
    pthread_mutex_unlock(&capture->mutex);
    if (same)
        return 0;
    if (there) /* it selects something else now */
        capture_remove(capture, namespace, name);
    int r = add_application(capture, namespace, name, group, err);
    if (r < 0)
        return r;
    const struct captured_application a = {.namespace = (char *)namespace, .name = (char *)name};
    r = list_namespace(capture, &a, err);
    if (r < 0)
        capture_remove(capture, namespace, name);
    return r;
}

void capture_remove(struct capture *capture, const char *namespace, const char *name)
{
    pthread_mutex_lock(&capture->mutex);
    for (struct captured_application **link = &capture->applications; *link; link = &(*link)->next) {
        struct captured_application *a = *link;
        if (strcmp(a->namespace, namespace) == 0 && strcmp(a->name, name) == 0) {
            *link = a->next;
            free_application(a);
            break;
        }
    }
    pthread_mutex_unlock(&capture->mutex);
    object_store_drop(capture->c->store, namespace, name);
}

/* ---- kinds ---- */
/* Namespaced, or Namespace itself; and not what is only noise, of which watching all would be the most of all
 * work. */
static bool is_captured(const struct kube_resource *r)
{
    static const char *const noise[] = {
        "Event", "Lease", "ControllerRevision", "CSIStorageCapacity", "PodMetrics"};
    const uint32_t needed = KUBE_VERB_LIST | KUBE_VERB_WATCH;
    if (!*r->group && strcmp(r->kind, "Namespace") == 0)
        return true;
    for (size_t i = 0; i < sizeof noise / sizeof *noise; i++)
        if (strcmp(r->kind, noise[i]) == 0 && object_group_is_builtin(r->group))
            return false;
    return r->namespaced && (r->verbs & needed) == needed && strcmp(r->group, "tidemark.io") != 0;
}

static void free_kind(struct captured_kind *k)
{
    free((char *)k->resource.group);
    free((char *)k->resource.version);
    free((char *)k->resource.plural);
    free((char *)k->resource.kind);
    free(k);
}

static int add_kind(struct capture *capture, const struct kube_resource *r, struct error *err)
{
    struct captured_kind *k = calloc(1, sizeof *k);
    if (!k)
        return error_errno(err, -ENOMEM, "%s", r->plural);
    k->capture = capture;
    k->wanted = true;
    k->resource = (struct kube_resource){strdup(r->group), strdup(r->version), strdup(r->plural),
                                         strdup(r->kind),  r->namespaced,      r->verbs};
    if (!k->resource.group || !k->resource.version || !k->resource.plural || !k->resource.kind) {
        free_kind(k);
        return error_errno(err, -ENOMEM, "%s", r->plural);
    }
    pthread_mutex_lock(&capture->mutex);
    k->next = capture->kinds;
    capture->kinds = k;
    pthread_mutex_unlock(&capture->mutex);
    object_store_list_kind(capture->c->store, r->group, r->kind); /* before the first of its events */
    const struct kube_informer_options options = {
        .resource = &k->resource, .label_selector = selector_of(r), .ops = {normalize, on_event, on_synced, on_gap, on_failed, k}};
    return kube_informers_add(capture->c->informers, &options, &k->informer, err);
}

static void remove_unwanted(struct capture *capture)
{
    for (struct captured_kind **link = &capture->kinds; *link;) {
        struct captured_kind *k = *link;
        if (k->wanted) {
            link = &k->next;
            continue;
        }
        log_info(capture->c->log, "%s.%s is no longer there", k->resource.plural, k->resource.group);
        if (k->informer)
            kube_informers_remove(capture->c->informers, k->informer);
        char prefix[OBJECT_NAME_BYTES];
        snprintf(prefix, sizeof prefix, "%.253s/%.63s/%.63s/", *k->resource.group ? k->resource.group : "core", k->resource.version,
                 k->resource.kind);
        pthread_mutex_lock(&capture->mutex);
        *link = k->next;
        forget_left_out(capture, NULL, prefix);
        pthread_mutex_unlock(&capture->mutex);
        free_kind(k);
    }
}

static struct captured_kind *find_captured(struct capture *capture, const struct kube_resource *r)
{
    struct captured_kind *k = capture->kinds;
    while (k && (strcmp(k->resource.plural, r->plural) != 0 || strcmp(k->resource.group, r->group) != 0 ||
                 strcmp(k->resource.version, r->version) != 0))
        k = k->next;
    return k;
}

/* In whatever version. */
static bool is_found(const struct kube_kinds *found, const struct kube_resource *r)
{
    for (size_t i = 0; i < found->count; i++)
        if (strcmp(found->resources[i].plural, r->plural) == 0 && strcmp(found->resources[i].group, r->group) == 0)
            return true;
    return false;
}

int capture_update_kinds(struct capture *capture, struct error *err)
{
    struct kube_kinds found = {0};
    int r = kube_discover(capture->c->client, &found, err);
    if (r < 0)
        return r;
    pthread_rwlock_wrlock(&capture->kinds_lock);
    /* A group whose server is away keeps its informers; a kind that is there in another version does not. */
    for (struct captured_kind *k = capture->kinds; k; k = k->next)
        k->wanted = found.failed_groups > 0 && !is_found(&found, &k->resource);
    for (size_t i = 0; i < found.count; i++) {
        struct captured_kind *k = find_captured(capture, &found.resources[i]);
        if (k)
            k->wanted = true;
    }
    /* Before the new ones: of a kind that has got another version no event of the old one may come after what the new one lists, which
     * is what sweeps the names of the old one out of the journals. */
    remove_unwanted(capture);
    for (size_t i = 0; r == 0 && i < found.count; i++)
        if (is_captured(&found.resources[i]) && !find_captured(capture, &found.resources[i]))
            r = add_kind(capture, &found.resources[i], err);
    pthread_rwlock_unlock(&capture->kinds_lock);
    if (found.failed_groups)
        controller_enqueue(capture->c, KINDS_KEY, NULL, DISCOVERY_RETRY_MS);
    kube_kinds_release(&found);
    return r;
}

static void on_kinds(void *context, const struct kube_resource *resource, enum kube_event event,
                     const char *namespace, const char *name, uint64_t version, json_t *object)
{
    (void)resource, (void)event, (void)namespace, (void)name, (void)version, (void)object;
    controller_enqueue(((struct capture *)context)->c, KINDS_KEY, NULL, DISCOVERY_SETTLE_MS);
}

static int note_leaving(void *context, json_t *items, bool first, struct error *err)
{
    size_t i;
    json_t *namespace;
    (void)first; /* one that is noted twice is noted */
    json_array_foreach(items, i, namespace)
    {
        if (is_leaving(namespace) && json_object_set_new(context, kube_object_name(namespace), json_true()) < 0)
            return error_errno(err, -ENOMEM, "namespaces");
    }
    return 0;
}

/* What was protected when the controller last looked: kept before the informers begin. */
static int add_known(struct capture *capture, struct error *err)
{
    _cleanup_json_ json_t *papps = NULL, *leaving = json_object();
    const struct kube_target namespaces = {.resource = &kube_namespaces};
    const struct kube_target target = {.resource = &controller_applications};
    size_t i;
    json_t *papp;
    int r = kube_list(capture->c->client, &namespaces, NULL, note_leaving, leaving, NULL, err);
    if (r < 0)
        return r;
    r = kube_list_all(capture->c->client, &target, NULL, &papps, err);
    if (r < 0)
        return r == -ENOENT
                   ? error_set(
                         err, r,
                         "the cluster has no kind ProtectedApplication: install the CRDs (packaging/crds)")
                   : r;
    json_array_foreach(papps, i, papp)
    {
        struct error failure = ERROR_INIT;
        if (is_leaving(papp) || json_object_get(leaving, kube_object_namespace(papp))) /* C3 */
            continue;
        if (add_application(capture, kube_object_namespace(papp), kube_object_name(papp),
                            application_group(papp), &failure) < 0)
            log_error(capture->c->log, "%s", failure.message); /* reconciling tries again, and tells */
        const json_t *objects = json_object_get(json_object_get(papp, "status"), "objects");
        if (json_object_get(objects, "count"))
            capture_tell(capture, kube_object_namespace(papp), kube_object_name(papp),
                         (size_t)json_integer_value(json_object_get(objects, "count")));
    }
    return 0;
}

int capture_start(struct controller *c, struct capture **ret, struct error *err)
{
    static const struct kube_resource services = {
        "apiregistration.k8s.io", "v1", "apiservices", "APIService", false, 0};
    struct capture *capture = calloc(1, sizeof *capture);
    if (!capture)
        return error_errno(err, -ENOMEM, "capture");
    capture->c = c;
    pthread_mutex_init(&capture->mutex, NULL);
    pthread_rwlock_init(&capture->kinds_lock, NULL);
    *ret = capture; /* capture_free after the informers, also when it fails */
    int r = add_known(capture, err);
    if (r == 0)
        r = capture_update_kinds(capture, err);
    const struct kube_informer_options of_crds = {.resource = &kube_crds,
                                                  .ops = {.event = on_kinds, .context = capture}};
    const struct kube_informer_options of_services = {.resource = &services,
                                                      .ops = {.event = on_kinds, .context = capture}};
    if (r == 0 && (r = kube_informers_add(c->informers, &of_crds, &capture->crds, err)) == 0)
        r = kube_informers_add(c->informers, &of_services, &capture->services, err);
    return r;
}

void capture_free(struct capture *capture)
{
    if (!capture)
        return;
    for (struct captured_kind *k = capture->kinds, *next; k; k = next) {
        next = k->next;
        free_kind(k);
    }
    for (struct captured_application *a = capture->applications, *next; a; a = next) {
        next = a->next;
        free_application(a);
    }
    forget_left_out(capture, NULL, "");
    pthread_mutex_destroy(&capture->mutex);
    pthread_rwlock_destroy(&capture->kinds_lock);
    free(capture);
}
