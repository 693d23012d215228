/* SPDX-License-Identifier: Apache-2.0 */
/* adopt and release: claims get volumes of another driver, under the same names: as they are, where that can be (kubectl_carry.c), else by a copy.
 *
 * Invariants: V1 the volume that a claim had is kept (Retain) until a person deletes it; V2 no pod uses a
 * claim before the copy, nor after it before the claim is deleted, and a copy is used at once or made anew;
 * V3 what is left to do stands in the cluster before a claim is deleted, as annotations of the new volume:
 * the same command goes on where it was killed.
 *
 * Steps: what goes without a copy is prepared first, since only a try tells whether it can. New claims
 * NAME-tidemark-move of the other class; one pod that mounts all and copies, so that volumes of ours share a stream. Then, of
 * both ways: the volumes become Retain; the claims are deleted and made again with the new volumes. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/uuid.h"
#include "cli/kubectl_move_internal.h"

#define POLL_MS 300u

const char *move_text_at(const json_t *object, const char *a, const char *b)
{
    const char *text = json_string_value(kubectl_at(object, a, b));
    return text ? text : "";
}

static enum cli_exit fail(struct move *m, const struct error *err)
{
    cli_progress_free(take_ptr(m->progress));
    return kubectl_fail(m->k, m->what, err);
}

static enum cli_exit refuse(struct move *m, const char *remedy, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static enum cli_exit refuse(struct move *m, const char *remedy, const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    cli_progress_free(take_ptr(m->progress));
    return cli_output_fail(m->k->cli, CLI_EXIT_REFUSED, remedy, "%s: %s", m->what, text);
}

void move_pause(void)
{
    nanosleep(&(struct timespec){0, POLL_MS * 1000000l}, NULL);
}

struct kube_target move_target(const struct move *m, const struct kube_resource *resource, const char *namespace, const char *name)
{
    return (struct kube_target){
        .resource = resource, .namespace = !resource->namespaced ? NULL : namespace ? namespace : m->namespace, .name = name};
}

int move_get(struct move *m, const struct kube_resource *resource, const char *namespace, const char *name, json_t **ret, struct error *err)
{
    const struct kube_target target = move_target(m, resource, namespace, name);
    int r = kube_get(m->k->client, &target, ret, err);
    if (r != -ENOENT)
        return r;
    *err = ERROR_INIT;
    *ret = NULL;
    return 0;
}

int move_make(struct move *m, const struct kube_resource *resource, const char *namespace, json_t *object, struct error *err)
{
    const struct kube_target target = move_target(m, resource, namespace, NULL);
    const char *name = object ? kube_object_name(object) : NULL;
    int r = name ? kube_create(m->k->client, &target, object, NULL, err) : error_set(err, -ENOMEM, "out of memory");
    if (r == -EEXIST) {
        *err = ERROR_INIT;
        r = 0;
    }
    if (r < 0 && name)
        error_context(err, "%s %s", resource->kind, name);
    json_decref(object);
    return r;
}

int move_delete(struct move *m, const struct kube_resource *resource, const char *namespace, const char *name, const char *uid, struct error *err)
{
    const struct kube_target target = move_target(m, resource, namespace, name);
    const struct kube_delete_options options = {.uid = uid};
    uint64_t begin_ns = clock_boottime_ns(clock_system());
    int r = kube_delete(m->k->client, &target, &options, err);
    while (r == 0) {
        _cleanup_json_ json_t *there = NULL;
        if ((r = move_get(m, resource, namespace, name, &there, err)) < 0 || !there)
            return r;
        if (uid && strcmp(kube_object_uid(there), uid) != 0)
            return 0;
        if (clock_boottime_ns(clock_system()) - begin_ns > MOVE_GONE_S * NS_PER_SECOND)
            return error_set(
                err, -EBUSY,
                "the %s %s is being deleted, and is not gone after %u s: end what uses it, and run the same "
                "command again",
                resource->kind, name, MOVE_GONE_S);
        move_pause();
    }
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        r = 0;
    }
    return r;
}

/* ---- what is there ---- */

/* One that was begun: its volume says so. */
static int find_begun(struct move *m, struct move_part *p, struct error *err)
{
    _cleanup_json_ json_t *volumes = NULL;
    char key[2 * MOVE_NAME_BYTES];
    size_t i;
    json_t *volume;
    snprintf(key, sizeof key, "%s/%s", m->namespace, p->name);
    int r = kubectl_list(m->k, &kube_volumes, NULL, &volumes, err);
    json_array_foreach(volumes, i, volume)
    {
        const char *moving = kube_object_annotation(volume, MOVE_MOVING);
        if (moving && strcmp(moving, key) == 0 && !p->new_volume)
            p->new_volume = json_incref(volume);
    }
    return r;
}

static int look(struct move *m, struct move_part *p, struct error *err)
{
    int r = move_get(m, &kube_claims, NULL, p->name, &p->claim, err);
    if (r == 0 && p->claim && *move_text_at(p->claim, "spec", "volumeName"))
        r = move_get(m, &kube_volumes, NULL, move_text_at(p->claim, "spec", "volumeName"), &p->old_volume, err);
    return r < 0 ? r : find_begun(m, p, err);
}

static const char *driver_of(const json_t *volume)
{
    return move_text_at(json_object_get(volume, "spec"), "csi", "driver");
}

static bool is_swapped(const struct move_part *p)
{
    return p->claim && p->new_volume &&
           strcmp(move_text_at(p->claim, "spec", "volumeName"), kube_object_name(p->new_volume)) == 0;
}

bool move_is_to_do(const struct move_part *p)
{
    return p->claim && !is_swapped(p);
}

static bool is_to_copy(const struct move_part *p)
{
    return move_is_to_do(p) && !p->carry;
}

static bool is_raw(const struct move_part *p)
{
    return strcmp(move_text_at(p->claim, "spec", "volumeMode"), "Block") == 0;
}

static enum cli_exit check_part(struct move *m, const struct move_part *p)
{
    size_t i;
    json_t *mode;
    if (!p->claim && !p->new_volume)
        return cli_output_fail(m->k->cli, CLI_EXIT_NOT_FOUND, "`kubectl get pvc` lists the claims",
                               "%s: there is no claim %s in namespace %s", m->what, p->name, m->namespace);
    if (!move_is_to_do(p))
        return CLI_EXIT_OK;
    if (!p->old_volume || strcmp(move_text_at(p->claim, "status", "phase"), "Bound") != 0)
        return refuse(m, "`kubectl describe pvc` tells what it waits for",
                      "the claim %s is not bound to a volume", p->name);
    if (json_object_get(json_object_get(p->claim, "metadata"), "deletionTimestamp"))
        return refuse(m, NULL, "the claim %s is being deleted", p->name);
    json_array_foreach(kubectl_at(p->claim, "spec", "accessModes"), i, mode)
    {
        if (m->adopt && strcmp(json_string_value(mode), "ReadWriteMany") == 0)
            return refuse(m, NULL,
                          "the claim %s can be written by several nodes at a time, which cannot be captured "
                          "write by write",
                          p->name);
    }
    bool ours = strcmp(driver_of(p->old_volume), MOVE_DRIVER) == 0;
    if (ours == m->adopt)
        return refuse(m, NULL, "the volume of claim %s is %s already", p->name,
                      ours ? "one of Tidemark's" : "a plain one");
    return CLI_EXIT_OK;
}

/* What has to be copied, and cannot be or is not to be. */
static enum cli_exit check_way(struct move *m, const struct move_part *p)
{
    if (!is_to_copy(p))
        return CLI_EXIT_OK;
    if (is_raw(p))
        return refuse(m, "make a new claim, and copy with the application's own means", "the claim %s is a raw device, and only file systems are copied%s%s",
                      p->name, *p->why ? "; without a copy it cannot be: " : "", p->why);
    if (m->no_copy)
        return refuse(m, "without --no-copy it is copied", "the claim %s cannot be moved without a copy: %s", p->name,
                      *p->why ? p->why : m->adopt ? "a copy was begun" : "it was not adopted without one");
    return CLI_EXIT_OK;
}

/* The class of the new volumes. */
static enum cli_exit choose_class(struct move *m)
{
    _cleanup_json_ json_t *classes = NULL;
    struct error err = ERROR_INIT;
    size_t i;
    json_t *class;
    const char *wanted = cli_options_value(m->k->cli, "storage-class", NULL);
    static char chosen[MOVE_NAME_BYTES];
    const char *wrong = NULL; /* whose the wanted one is */
    if (!wanted && !m->adopt && m->parts[0].claim)
        wanted = move_text_at(m->parts[0].claim, "spec", "storageClassName");
    if (kubectl_list(m->k, &kube_storage_classes, NULL, &classes, &err) < 0)
        return fail(m, &err);
    json_array_foreach(classes, i, class)
    {
        const char *provisioner = json_string_value(json_object_get(class, "provisioner"));
        bool ours = provisioner && strcmp(provisioner, MOVE_DRIVER) == 0,
             named = wanted && strcmp(wanted, kube_object_name(class)) == 0;
        if (named && ours != m->adopt)
            wrong = provisioner ? provisioner : "?";
        if ((wanted && !named) || ours != m->adopt)
            continue;
        snprintf(chosen, sizeof chosen, "%s", kube_object_name(class));
        m->class = chosen;
        return CLI_EXIT_OK;
    }
    const char *remedy = m->adopt ? "--storage-class names one whose provisioner is " MOVE_DRIVER
                                  : "--storage-class names one of another driver than " MOVE_DRIVER;
    if (wrong)
        return refuse(m, remedy, "the volumes of the storage class %s are made by %s", wanted, wrong);
    if (wanted)
        return refuse(m, remedy, "there is no storage class %s", wanted);
    return refuse(m, remedy, "there is no storage class of %s",
                  m->adopt ? MOVE_DRIVER : "another driver than " MOVE_DRIVER);
}

/* A pod of this command's, of a run that was interrupted. */
static bool is_own(const struct move *m, const json_t *pod)
{
    const char *by = kube_object_label(pod, "app.kubernetes.io/managed-by");
    bool own = false;
    for (size_t i = 0; i < m->count; i++)
        own |= strcmp(kube_object_name(pod), m->parts[i].copy) == 0;
    return own && by && strcmp(by, "tidemark") == 0;
}

/* Who uses the claims; -EBUSY names them. */
static int check_unused(struct move *m, struct error *err)
{
    _cleanup_json_ json_t *pods = NULL;
    size_t i, k;
    json_t *pod, *volume;
    int r = kubectl_list(m->k, &kube_pods, m->namespace, &pods, err);
    json_array_foreach(pods, i, pod)
    {
        const char *phase = move_text_at(pod, "status", "phase");
        if (strcmp(phase, "Succeeded") == 0 || strcmp(phase, "Failed") == 0 || is_own(m, pod))
            continue;
        json_array_foreach(kubectl_at(pod, "spec", "volumes"), k, volume)
        {
            const char *claim = move_text_at(volume, "persistentVolumeClaim", "claimName");
            for (size_t n = 0; n < m->count; n++)
                if (move_is_to_do(&m->parts[n]) && strcmp(claim, m->parts[n].name) == 0)
                    return error_set(err, -EBUSY,
                                     "the pod %s uses the claim %s: stop it (kubectl -n %s scale "
                                     "--replicas=0 ...), and run the same command again",
                                     kube_object_name(pod), claim, m->namespace);
        }
    }
    return r;
}

/* ---- the copy ---- */

static int make_copy_claim(struct move *m, struct move_part *p, struct error *err)
{
    _cleanup_json_ json_t *there = NULL, *claim = NULL;
    const json_t *capacity = json_object_get(kubectl_at(p->claim, "status", "capacity"), "storage");
    if (!capacity)
        capacity = json_object_get(json_object_get(kubectl_at(p->claim, "spec", "resources"), "requests"),
                                   "storage");
    const char *uid = kube_object_uid(p->claim);
    int r = move_get(m, &kube_claims, NULL, p->copy, &there, err);
    if (r < 0)
        return r;
    if (there) {
        const char *of = kube_object_annotation(there, MOVE_MOVING);
        return of && strcmp(of, uid) == 0 && strcmp(move_text_at(there, "spec", "storageClassName"), m->class) == 0
                   ? 0
                   : error_set(err, -EEXIST,
                               "there is a claim %s that is not of this move: delete it, and run the same "
                               "command again",
                               p->copy);
    }
    claim = json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s}}, s:{s:[s], s:s, s:{s:{s:O}}}}", "apiVersion", "v1",
                      "kind", "PersistentVolumeClaim", "metadata", "name", p->copy, "namespace", m->namespace,
                      "annotations", MOVE_MOVING, uid, "spec", "accessModes", "ReadWriteOnce", "storageClassName",
                      m->class, "resources", "requests", "storage", capacity);
    const struct kube_target all = move_target(m, &kube_claims, NULL, NULL);
    return claim ? kube_create(m->k->client, &all, claim, NULL, err)
                 : error_set(err, -ENOMEM, "out of memory");
}

/* What is copied is exactly what is there: nothing of an earlier try is left. */
static json_t *copy_pod(struct move *m, const char *name, const char *image)
{
    char from[32], to[32], script[1024] = "set -e;";
    json_t *volumes = json_array(), *mounts = json_array();
    for (size_t i = 0; i < m->count; i++) {
        if (!is_to_copy(&m->parts[i]))
            continue;
        snprintf(from, sizeof from, "/from/%zu", i);
        snprintf(to, sizeof to, "/to/%zu", i);
        size_t used = strlen(script);
        snprintf(script + used, sizeof script - used,
                 " find %s -mindepth 1 -delete; cp -a %s/. %s/; sync -f %s;", to, from, to, to);
        json_array_append_new(volumes, json_pack("{s:s+, s:{s:s}}", "name", "from-", from + 6,
                                                 "persistentVolumeClaim", "claimName", m->parts[i].name));
        json_array_append_new(volumes, json_pack("{s:s+, s:{s:s}}", "name", "to-", to + 4,
                                                 "persistentVolumeClaim", "claimName", m->parts[i].copy));
        json_array_append_new(mounts, json_pack("{s:s+, s:s, s:b}", "name", "from-", from + 6, "mountPath",
                                                from, "readOnly", 1));
        json_array_append_new(mounts, json_pack("{s:s+, s:s}", "name", "to-", to + 4, "mountPath", to));
    }
    return json_pack(
        "{s:s, s:s, s:{s:s, s:s, s:{s:s}}, s:{s:s, s:b, s:o, s:[{s:s, s:s, s:[s,s,s], s:{s:i}, s:o}]}}",
        "apiVersion", "v1", "kind", "Pod", "metadata", "name", name, "namespace", m->namespace, "labels",
        "app.kubernetes.io/managed-by", "tidemark", "spec", "restartPolicy", "Never",
        "automountServiceAccountToken", 0, "volumes", volumes, "containers", "name", "copy", "image", image,
        "command", "/bin/sh", "-c", script, "securityContext", "runAsUser", 0, "volumeMounts", mounts);
}

/* The image that the controller runs has what a copy needs. */
int move_image(struct move *m, char ret[512], struct error *err)
{
    _cleanup_json_ json_t *deployment = NULL;
    const char *wanted = cli_options_value(m->k->cli, "image", NULL);
    const struct kube_target target = {
        .resource = &kube_deployments, .namespace = KUBECTL_SYSTEM_NAMESPACE, .name = "tidemark-controller"};
    if (wanted) {
        snprintf(ret, 512, "%s", wanted);
        return 0;
    }
    int r = kube_get(m->k->client, &target, &deployment, err);
    if (r < 0)
        return error_context(err, "which image copies (--image names one)");
    const json_t *containers =
        json_object_get(json_object_get(kubectl_at(deployment, "spec", "template"), "spec"), "containers");
    snprintf(ret, 512, "%s", cli_field_text(json_array_get(containers, 0), "image", ""));
    return 0;
}

const char *move_waits_for(const json_t *pod)
{
    const json_t *status = json_array_get(kubectl_at(pod, "status", "containerStatuses"), 0);
    const char *reason = json_string_value(kubectl_at(json_object_get(status, "state"), "waiting", "reason"));
    return reason ? reason : move_text_at(pod, "status", "phase");
}

static int copy_once(struct move *m, const char *pod_name, struct error *err)
{
    char image[512], step[CLI_TEXT_BYTES];
    const struct kube_target all = move_target(m, &kube_pods, NULL, NULL);
    int r = move_image(m, image, err);
    if (r == 0)
        r = move_delete(m, &kube_pods, NULL, pod_name, NULL, err); /* of an earlier try */
    _cleanup_json_ json_t *wanted = copy_pod(m, pod_name, image);
    if (r == 0)
        r = wanted ? kube_create(m->k->client, &all, wanted, NULL, err)
                   : error_set(err, -ENOMEM, "out of memory");
    while (r == 0) {
        _cleanup_json_ json_t *pod = NULL;
        r = move_get(m, &kube_pods, NULL, pod_name, &pod, err);
        const char *phase = move_text_at(pod, "status", "phase");
        if (r == 0 && !pod)
            r = error_set(err, -EIO, "the pod %s that copies was deleted: run the same command again",
                          pod_name);
        if (r < 0 || strcmp(phase, "Succeeded") == 0)
            break;
        if (strcmp(phase, "Failed") == 0)
            return error_set(err, -EIO,
                             "the copy failed, and nothing was changed: kubectl -n %s logs %s tells why; run "
                             "the same command again",
                             m->namespace, pod_name);
        snprintf(step, sizeof step, "copying (%s)", move_waits_for(pod));
        cli_progress_set(m->progress, step, 0, 0, "");
        move_pause();
    }
    return r == 0 ? move_delete(m, &kube_pods, NULL, pod_name, NULL, err) : r;
}

/* ---- the exchange ---- */

/* What people said of it, nothing that controllers did. */
char *move_claim_text(const struct move_part *p, const char *volume, const char *class)
{
    _cleanup_json_ json_t *claim = json_deep_copy(p->claim);
    json_t *metadata = json_object_get(claim, "metadata"), *spec = json_object_get(claim, "spec"), *value;
    json_t *annotations = json_object_get(metadata, "annotations");
    static const char *const made[] = {"uid",           "resourceVersion", "creationTimestamp", "generation",
                                       "managedFields", "finalizers",      "selfLink"};
    const char *key;
    void *next;
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        json_object_del(metadata, made[i]);
    json_object_foreach_safe(annotations, next, key, value)
    {
        if (strncmp(key, "pv.kubernetes.io/", 17) == 0 || strncmp(key, "volume.", 7) == 0)
            json_object_del(annotations, key);
    }
    json_object_del(claim, "status");
    json_object_set_new(spec, "volumeName", json_string(volume));
    if (class)
        json_object_set_new(spec, "storageClassName", json_string(class));
    return json_dumps(claim, JSON_COMPACT);
}

int move_patch_volume(struct move *m, const char *name, json_t *patch, json_t **ret, struct error *err)
{
    const struct kube_target target = move_target(m, &kube_volumes, NULL, name);
    int r = patch ? kube_patch(m->k->client, &target, KUBE_PATCH_MERGE, patch, ret, err)
                  : error_set(err, -ENOMEM, "out of memory");
    json_decref(patch);
    return r;
}

/* V1, V3 */
static int write_down(struct move *m, struct move_part *p, struct error *err)
{
    _cleanup_json_ json_t *copy = NULL;
    char key[2 * MOVE_NAME_BYTES];
    snprintf(key, sizeof key, "%s/%s", m->namespace, p->name);
    int r = move_get(m, &kube_claims, NULL, p->copy, &copy, err);
    if (r == 0)
        r = move_get(m, &kube_volumes, NULL, move_text_at(copy, "spec", "volumeName"), &p->new_volume, err);
    if (r < 0)
        return r;
    if (!p->new_volume)
        return error_set(err, -EIO, "the claim %s has no volume: delete it, and run the same command again",
                         p->copy);
    /* An adopted one keeps the class that its manifest says. */
    _cleanup_free_ char *text = move_claim_text(p, kube_object_name(p->new_volume), m->adopt ? NULL : m->class);
    json_t *written = NULL;
    const char *before = kube_object_annotation(p->new_volume, MOVE_POLICY),
               *policy = before ? before : move_text_at(p->new_volume, "spec", "persistentVolumeReclaimPolicy");
    r = move_patch_volume(m, kube_object_name(p->new_volume),
                     json_pack("{s:{s:{s:s, s:s, s:s, s:s}}, s:{s:s}}", "metadata", "annotations", MOVE_MOVING,
                               key, MOVE_CLAIM, text, MOVE_POLICY, policy, MOVE_FROM, kube_object_name(p->old_volume),
                               "spec", "persistentVolumeReclaimPolicy", "Retain"),
                     &written, err);
    if (r < 0)
        return r;
    json_decref(p->new_volume);
    p->new_volume = written;
    return move_patch_volume(m, kube_object_name(p->old_volume),
                        json_pack("{s:{s:s}}", "spec", "persistentVolumeReclaimPolicy", "Retain"), NULL, err);
}

static int await_bound(struct move *m, const struct move_part *p, struct error *err)
{
    uint64_t begin_ns = clock_boottime_ns(clock_system());
    for (;;) {
        _cleanup_json_ json_t *claim = NULL;
        int r = move_get(m, &kube_claims, NULL, p->name, &claim, err);
        if (r < 0)
            return r;
        if (strcmp(move_text_at(claim, "spec", "volumeName"), kube_object_name(p->new_volume)) != 0)
            return error_set(err, -EEXIST,
                             "somebody else has made the claim %s meanwhile: stop what makes it (scale to "
                             "0), delete it, and run the same command again",
                             p->name);
        if (strcmp(move_text_at(claim, "status", "phase"), "Bound") == 0)
            return 0;
        if (clock_boottime_ns(clock_system()) - begin_ns > MOVE_GONE_S * NS_PER_SECOND)
            return error_set(err, -EAGAIN,
                             "the claim %s is not bound after %u s: kubectl -n %s describe pvc %s tells why",
                             p->name, MOVE_GONE_S, m->namespace, p->name);
        move_pause();
    }
}

/* From what the new volume says alone. */
static int exchange(struct move *m, struct move_part *p, struct error *err)
{
    const char *name = kube_object_name(p->new_volume), *text = kube_object_annotation(p->new_volume, MOVE_CLAIM),
               *policy = kube_object_annotation(p->new_volume, MOVE_POLICY);
    _cleanup_json_ json_t *claim = text ? json_loads(text, 0, NULL) : NULL;
    if (!claim || !policy)
        return error_set(err, -EIO, "the volume %s lacks the annotations of its move", name);
    int r = move_is_to_do(p) ? move_delete(m, &kube_claims, NULL, p->name, kube_object_uid(p->claim), err) : 0;
    if (r == 0 && !p->carry)
        r = move_delete(m, &kube_claims, NULL, p->copy, NULL, err);
    if (r == 0 && !is_swapped(p)) {
        r = move_patch_volume(m, name,
                         json_pack("{s:{s:{s:s, s:s, s:s, s:s, s:n, s:n}, s:O?}}", "spec", "claimRef",
                                   "apiVersion", "v1", "kind", "PersistentVolumeClaim", "namespace",
                                   m->namespace, "name", p->name, "uid", "resourceVersion",
                                   "storageClassName", kubectl_at(claim, "spec", "storageClassName")),
                         NULL, err);
        const struct kube_target all = move_target(m, &kube_claims, NULL, NULL);
        if (r == 0 && (r = kube_create(m->k->client, &all, claim, NULL, err)) == -EEXIST)
            r = 0; /* await_bound looks whose it is */
    }
    if (r == 0)
        r = await_bound(m, p, err);
    if (r == 0 && p->carry && !m->adopt)
        r = carry_forget(m, p, err);
    if (r < 0)
        return r;
    return move_patch_volume(m, name,
                        json_pack("{s:{s:{s:n, s:n, s:n, s:n}}, s:{s:s}}", "metadata", "annotations", MOVE_MOVING,
                                  MOVE_CLAIM, MOVE_POLICY, MOVE_CARRIES, "spec", "persistentVolumeReclaimPolicy", policy),
                        NULL, err);
}

/* ---- the command ---- */

/* That a claim is copied after all, and why: for who was not there. */
static void tell_why(struct move *m, const struct move_part *p)
{
    char name[MOVE_NAME_BYTES + UUID_TEXT_BYTES], text[UUID_TEXT_BYTES], when[40];
    struct uuid uuid;
    struct error ignored = ERROR_INIT;
    time_t now = time(NULL);
    struct tm tm;
    cli_output_note(m->k->cli, "%s/%s is copied: %s", m->namespace, p->name, p->why);
    if (uuid_random(&uuid, &ignored) < 0)
        return;
    snprintf(name, sizeof name, "%.200s.%.16s", p->name, uuid_format(&uuid, text));
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    json_t *event = json_pack("{s:s, s:s, s:{s:s, s:s}, s:{s:s, s:s, s:s, s:s, s:s}, s:s, s:s, s:o, s:s, s:s, s:i, s:{s:s}}", "apiVersion", "v1", "kind", "Event",
                              "metadata", "name", name, "namespace", m->namespace, "involvedObject", "apiVersion", "v1", "kind", "PersistentVolumeClaim",
                              "namespace", m->namespace, "name", p->name, "uid", kube_object_uid(p->claim), "type", "Warning", "reason", "AdoptedByCopy", "message",
                              json_string_lossy(p->why), "firstTimestamp", when, "lastTimestamp", when, "count", 1, "source", "component", "kubectl-tidemark");
    if (move_make(m, &kube_events, NULL, event, &ignored) < 0)
        cli_output_note(m->k->cli, "the event of it could not be written: %s", ignored.message);
}

static int undo_all(struct move *m, struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < m->count && r == 0; i++) {
        struct move_part *p = &m->parts[i];
        if (!move_is_to_do(p))
            continue;
        r = carry_undo(m, p, err);
        json_decref(p->new_volume);
        p->new_volume = NULL;
    }
    return r;
}

/* Up to their new volumes; the claims stay as they are. 0 with *ret_code: it is refused, and everything is as it was. */
static int carry_all(struct move *m, enum cli_exit *ret_code, struct error *err)
{
    bool carried = false;
    int r = m->adopt ? 0 : carry_settle(m, err);
    for (size_t i = 0; i < m->count && r == 0 && m->adopt; i++) {
        struct move_part *p = &m->parts[i];
        if (!move_is_to_do(p))
            continue;
        if (!p->carry) { /* of an earlier try, perhaps */
            bool begun = kube_object_annotation(p->old_volume, MOVE_CARRIES);
            r = begun ? carry_undo(m, p, err) : 0;
            if (*p->why)
                cli_output_note(m->k->cli, "%s/%s is copied: %s", m->namespace, p->name, p->why);
        } else if (!p->new_volume) {
            r = carry_adopt(m, p, err);
            if (r == 0 && !p->carry) {
                bool refused = is_raw(p) || m->no_copy;
                if (refused && (r = undo_all(m, err)) < 0)
                    return r;
                *ret_code = check_way(m, p);
                if (refused)
                    return 0;
                tell_why(m, p);
            }
        }
        carried |= p->carry;
    }
    if (carried && m->carrier) /* those that are copied share a stream with them */
        m->class = kube_object_name(m->carrier);
    return r;
}

static int carry_out(struct move *m, enum cli_exit *ret_code, struct error *err)
{
    char pod[MOVE_NAME_BYTES + sizeof MOVE_SUFFIX];
    bool copies = false;
    int r = carry_all(m, ret_code, err);
    if (r < 0 || *ret_code != CLI_EXIT_OK)
        return r;
    for (size_t i = 0; i < m->count && r == 0; i++) {
        copies |= is_to_copy(&m->parts[i]);
        r = is_to_copy(&m->parts[i]) ? make_copy_claim(m, &m->parts[i], err) : 0;
    }
    snprintf(pod, sizeof pod, "%s" MOVE_SUFFIX, m->parts[0].name);
    if (r == 0 && copies)
        r = copy_once(m, pod, err);
    cli_progress_set(m->progress, "exchanging", 0, 0, "");
    for (size_t i = 0; i < m->count && r == 0; i++) {
        struct move_part *p = &m->parts[i];
        if (move_is_to_do(p) && p->carry) {
            r = m->adopt ? 0 : carry_return(m, p, err);
            continue;
        }
        json_decref(p->new_volume);
        p->new_volume = NULL;
        r = is_to_copy(p) ? write_down(m, p, err) : find_begun(m, p, err);
    }
    if (r == 0) /* V2 */
        r = check_unused(m, err);
    for (size_t i = 0; i < m->count && r == 0; i++)
        r = exchange(m, &m->parts[i], err);
    return r;
}

static enum cli_exit prepare(struct move *m)
{
    struct error err = ERROR_INIT;
    const struct cli *cli = m->k->cli;
    for (size_t i = 0; i < cli->operand_count; i++) {
        struct kubectl_member member;
        struct move_part *p = &m->parts[m->count++];
        kubectl_member_of(m->k, cli->operands[i], &member);
        if (i > 0 && strcmp(member.namespace, m->namespace) != 0)
            return refuse(m, "one command a namespace", "the claims lie in several namespaces");
        snprintf(m->namespace, sizeof m->namespace, "%s", member.namespace);
        snprintf(p->name, sizeof p->name, "%s", member.name);
        snprintf(p->copy, sizeof p->copy, "%s" MOVE_SUFFIX, member.name);
        snprintf(m->what, sizeof m->what, "%s %s/%s", m->verb, member.namespace, member.name);
        if (look(m, p, &err) < 0)
            return fail(m, &err);
        enum cli_exit code = check_part(m, p);
        if (code != CLI_EXIT_OK)
            return code;
    }
    enum cli_exit code = CLI_EXIT_OK;
    bool copies = m->adopt;
    if (carry_plan(m, &err) < 0)
        return fail(m, &err);
    for (size_t i = 0; i < m->count && code == CLI_EXIT_OK; i++) {
        copies |= is_to_copy(&m->parts[i]);
        code = check_way(m, &m->parts[i]);
    }
    if (code == CLI_EXIT_OK && copies)
        code = choose_class(m);
    if (code == CLI_EXIT_OK && check_unused(m, &err) < 0)
        code = refuse(m, NULL, "%s", err.message);
    return code;
}

static void tell_part(struct move *m, const struct move_part *p, const json_t *one)
{
    const char *volume = cli_field_text(one, "volume", "?"), *former = cli_field_text(one, "formerVolume", "?");
    if (p->carry && m->adopt)
        cli_output_say(m->k->cli,
                       "%s/%s has the volume %s now, whose every write is journaled once an application covers it; nothing was copied: the data is where it was, "
                       "on the former volume %s, which has to stay (do not set its reclaim policy to Delete)",
                       m->namespace, p->name, volume, former);
    else if (p->carry)
        cli_output_say(m->k->cli, "%s/%s has its former volume %s again, with all that was written since; nothing was copied, and the history has ended",
                       m->namespace, p->name, volume);
    else
        cli_output_say(m->k->cli,
                       "%s/%s has the volume %s now, %s; the former one is kept: `kubectl delete pv %s` when "
                       "it is not needed any more",
                       m->namespace, p->name, volume, m->adopt ? "whose every write is journaled once an application covers it" : "a plain one", former);
}

static enum cli_exit tell(struct move *m)
{
    _cleanup_json_ json_t *answer = json_array();
    for (size_t i = 0; i < m->count; i++) {
        const struct move_part *p = &m->parts[i];
        const char *volume = p->new_volume ? kube_object_name(p->new_volume) : NULL;
        const char *former = p->carry && !m->adopt ? NULL : kube_object_annotation(p->new_volume, MOVE_FROM);
        const char *class = p->carry && !m->adopt ? move_text_at(p->new_volume, "spec", "storageClassName") : p->carry ? kube_object_name(m->carrier) : m->class;
        json_array_append_new(answer, json_pack("{s:s, s:s, s:s?, s:s?, s:s?, s:b, s:s*}", "namespace", m->namespace, "claim", p->name, "storageClass", class,
                                                "volume", volume, "formerVolume", former, "copied", (int)!p->carry, "reason", *p->why ? p->why : NULL));
    }
    if (m->k->cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(m->k->cli, answer);
    for (size_t i = 0; i < m->count; i++)
        tell_part(m, &m->parts[i], json_array_get(answer, i));
    cli_output_say(m->k->cli, "Start the workload again.");
    return CLI_EXIT_OK;
}

static enum cli_exit tell_plan(const struct move *m)
{
    const struct cli *cli = m->k->cli;
    for (size_t i = 0; i < m->count; i++) {
        const struct move_part *p = &m->parts[i];
        const char *old = p->old_volume ? kube_object_name(p->old_volume) : "of before";
        bool refuses = m->no_copy || is_raw(p);
        if (p->carry && m->adopt)
            cli_output_say(cli,
                           "%s/%s: without a copy, if its driver (%s) gives the volume %s as a block device, which is tried: that stays where the data is, "
                           "below a volume of Tidemark (journal: class %s); else it %s%s",
                           m->namespace, p->name, driver_of(p->old_volume), old, kube_object_name(m->carrier),
                           refuses ? "is refused" : "would be copied to a volume of class ", refuses ? "" : m->class);
        else if (p->carry)
            cli_output_say(cli, "%s/%s: without a copy: it would have its former volume %s again, and its history would end", m->namespace, p->name,
                           kube_object_annotation(p->old_volume, MOVE_FROM) ? kube_object_annotation(p->old_volume, MOVE_FROM) : "");
        else
            cli_output_say(cli,
                           "%s/%s: would be copied to a volume of class %s, and bound to it under the same "
                           "name; its volume %s would be kept%s%s",
                           m->namespace, p->name, m->class, old, *p->why ? "; not without a copy, because " : "", p->why);
    }
    return CLI_EXIT_OK;
}

static bool confirm(const struct move *m)
{
    char question[3 * CLI_TEXT_BYTES];
    size_t carried = 0;
    for (size_t i = 0; i < m->count; i++)
        carried += m->parts[i].carry;
    if (!carried)
        snprintf(question, sizeof question, "Copy %zu claim%s of %s to volumes of class %s and exchange them now?", m->count, m->count == 1 ? "" : "s",
                 m->namespace, m->class);
    else
        snprintf(question, sizeof question, "%s %zu claim%s of %s now, %zu of them without a copy%s?", m->adopt ? "Adopt" : "Release", m->count,
                 m->count == 1 ? "" : "s", m->namespace, carried, m->adopt ? " if their driver can" : ", which ends their history");
    return cli_output_confirm(question);
}

static enum cli_exit run(struct move *m)
{
    const struct cli *cli = m->k->cli;
    struct error err = ERROR_INIT;
    enum cli_exit code = prepare(m);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli_options_flag(cli, "dry-run"))
        return tell_plan(m);
    if (!cli_options_flag(cli, "yes") && cli_output_can_ask(cli) && !confirm(m))
        return refuse(m, NULL, "not confirmed: nothing was changed");
    m->progress = cli_progress_new(cli, m->what);
    if (carry_out(m, &code, &err) < 0)
        return fail(m, &err);
    cli_progress_free(take_ptr(m->progress));
    return code == CLI_EXIT_OK ? tell(m) : code;
}

static enum cli_exit run_move(struct cli *cli, bool adopt)
{
    _cleanup_kubectl_ struct kubectl k;
    struct move m = {.k = &k, .verb = adopt ? "adopt" : "release", .adopt = adopt};
    snprintf(m.what, sizeof m.what, "%s", m.verb);
    m.want_copy = cli_options_flag(cli, "copy");
    m.no_copy = cli_options_flag(cli, "no-copy");
    if (m.want_copy && m.no_copy)
        return cli_output_fail(cli, CLI_EXIT_USAGE, NULL, "%s: --copy and --no-copy exclude each other", m.verb);
    enum cli_exit code = kubectl_open(&k, cli);
    if (code == CLI_EXIT_OK)
        code = run(&m);
    for (size_t i = 0; i < m.count; i++) {
        json_decref(m.parts[i].claim);
        json_decref(m.parts[i].old_volume);
        json_decref(m.parts[i].new_volume);
    }
    json_decref(m.carrier);
    return code;
}

static enum cli_exit run_adopt(struct cli *cli)
{
    return run_move(cli, true);
}

static enum cli_exit run_release(struct cli *cli)
{
    return run_move(cli, false);
}

static const struct cli_operand claims[] = {{"NAMESPACE/CLAIM", .kind = CLI_KIND_TEXT, .repeat = true}, {0}};
static const struct cli_option options[] = {
    {"storage-class", 0, CLI_KIND_TEXT, "CLASS", .help = "of the new volumes"},
    {"copy", 0, CLI_KIND_NONE, NULL, .help = "copy, though it may be possible without"},
    {"no-copy", 0, CLI_KIND_NONE, NULL, .help = "refuse what is not possible without a copy"},
    {"image", 0, CLI_KIND_TEXT, "IMAGE", .help = "of the pods that copy or look (default: Tidemark's own)"},
    {"dry-run", 0, CLI_KIND_NONE, NULL, .help = "tell what would be done, change nothing"},
    {"yes", 'y', CLI_KIND_NONE, NULL, .help = "do not ask"},
    {0},
};

const struct cli_command kubectl_adopt = {
    .name = "adopt",
    .summary = "existing claims of another class get captured volumes, with their data",
    .description = "Makes the claims again, under the same names and classes, so that no manifest changes,\n"
                   "with volumes whose writes are journaled. Where the claim's driver gives its volume as a\n"
                   "block device too, which is tried, nothing is copied: that volume carries the new one\n"
                   "(this needs a storage class with backing class, for the journal). Else the data is\n"
                   "copied to a volume of a class of csi.tidemark.io, and the reason is told. No pod may use\n"
                   "the claims meanwhile: scale the workload to 0 before. Give the claims that one pod\n"
                   "mounts together: their writes are in one order then. The former volumes are kept. A\n"
                   "command that was interrupted goes on when it is given again.",
    .operands = claims,
    .options = options,
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark adopt shop/data-db-0 shop/wal-db-0",
                                      "kubectl tidemark adopt shop/data-db-0 --dry-run", NULL},
    .run = run_adopt,
};

const struct cli_command kubectl_release = {
    .name = "release",
    .summary = "captured claims get plain volumes of another class, with their data",
    .description = "The reverse of adopt. A claim that was adopted without a copy has its former volume\n"
                   "again, with all that was written since, and its history ends; claims that share a stream\n"
                   "go together. Others are copied to volumes of another driver's class (by default the one\n"
                   "that the claim names), and their former volumes, and with them the history, are kept\n"
                   "until they are deleted. The application needs no Tidemark then.",
    .operands = claims,
    .options = options,
    .formats = true,
    .examples =
        (const char *const[]){"kubectl tidemark release shop/data-db-0 shop/wal-db-0",
                              "kubectl tidemark release shop/data-db-0 --storage-class standard", NULL},
    .run = run_release,
};
