/* SPDX-License-Identifier: Apache-2.0 */
/* adopt and release: claims get volumes of another driver, under the same names, by a copy.
 *
 * Invariants: V1 the volume that a claim had is kept (Retain) until a person deletes it; V2 no pod uses a
 * claim before the copy, nor after it before the claim is deleted, and a copy is used at once or made anew;
 * V3 what is left to do stands in the cluster before a claim is deleted, as annotations of the new volume:
 * the same command goes on where it was killed.
 *
 * Steps: new claims NAME-tidemark-move of the other class; one pod that mounts all and copies, so that
 * volumes of ours share a stream; the volumes become Retain; the claims are deleted and made again with the
 * new volumes. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "cli/kubectl_internal.h"

#define DRIVER "csi.tidemark.io"
#define MOVING "tidemark.io/moving"      /* of the new volume: "NAMESPACE/CLAIM" */
#define CLAIM "tidemark.io/move-claim"   /* the claim as it is to be made again */
#define POLICY "tidemark.io/move-policy" /* the new volume's reclaim policy once it is done */
#define FROM "tidemark.io/moved-from"    /* the volume that the claim had */
#define SUFFIX "-tidemark-move"
#define POLL_MS 300u
#define GONE_S 120u
#define NAME_BYTES 254

struct part {
    char name[NAME_BYTES], copy[NAME_BYTES + sizeof SUFFIX]; /* of the claim, and of the new one beside it */
    json_t *claim;                                           /* NULL: it is deleted already */
    json_t *old_volume;                                      /* with the claim */
    json_t *new_volume;                                      /* once there is one */
};

struct move {
    struct kubectl *k;
    const char *verb, *class;
    bool adopt;
    char what[2 * CLI_TEXT_BYTES], namespace[NAME_BYTES];
    struct part parts[CLI_OPERANDS_MAX];
    size_t count;
    struct cli_progress *progress;
};

static const char *text_at(const json_t *object, const char *a, const char *b)
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

static void pause_a_little(void)
{
    nanosleep(&(struct timespec){0, POLL_MS * 1000000l}, NULL);
}

static struct kube_target target_of(const struct move *m, const struct kube_resource *resource,
                                    const char *name)
{
    return (struct kube_target){
        .resource = resource, .namespace = resource->namespaced ? m->namespace : NULL, .name = name};
}

/* -ENOENT is none: *ret is NULL then. */
static int get(struct move *m, const struct kube_resource *resource, const char *name, json_t **ret,
               struct error *err)
{
    const struct kube_target target = target_of(m, resource, name);
    int r = kube_get(m->k->client, &target, ret, err);
    if (r != -ENOENT)
        return r;
    *err = ERROR_INIT;
    *ret = NULL;
    return 0;
}

static int delete (struct move *m, const struct kube_resource *resource, const char *name, const char *uid,
                   struct error *err)
{
    const struct kube_target target = target_of(m, resource, name);
    const struct kube_delete_options options = {.uid = uid};
    uint64_t begin_ns = clock_boottime_ns(clock_system());
    int r = kube_delete(m->k->client, &target, &options, err);
    while (r == 0) {
        _cleanup_json_ json_t *there = NULL;
        if ((r = get(m, resource, name, &there, err)) < 0 || !there)
            return r;
        if (uid && strcmp(kube_object_uid(there), uid) != 0)
            return 0;
        if (clock_boottime_ns(clock_system()) - begin_ns > GONE_S * NS_PER_SECOND)
            return error_set(
                err, -EBUSY,
                "the %s %s is being deleted, and is not gone after %u s: end what uses it, and run the same "
                "command again",
                resource->kind, name, GONE_S);
        pause_a_little();
    }
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        r = 0;
    }
    return r;
}

/* ---- what is there ---- */

/* One that was begun: its volume says so. */
static int find_begun(struct move *m, struct part *p, struct error *err)
{
    _cleanup_json_ json_t *volumes = NULL;
    char key[2 * NAME_BYTES];
    size_t i;
    json_t *volume;
    snprintf(key, sizeof key, "%s/%s", m->namespace, p->name);
    int r = kubectl_list(m->k, &kube_volumes, NULL, &volumes, err);
    json_array_foreach(volumes, i, volume)
    {
        const char *moving = kube_object_annotation(volume, MOVING);
        if (moving && strcmp(moving, key) == 0 && !p->new_volume)
            p->new_volume = json_incref(volume);
    }
    return r;
}

static int look(struct move *m, struct part *p, struct error *err)
{
    int r = get(m, &kube_claims, p->name, &p->claim, err);
    if (r == 0 && p->claim && *text_at(p->claim, "spec", "volumeName"))
        r = get(m, &kube_volumes, text_at(p->claim, "spec", "volumeName"), &p->old_volume, err);
    return r < 0 ? r : find_begun(m, p, err);
}

static const char *driver_of(const json_t *volume)
{
    return text_at(json_object_get(volume, "spec"), "csi", "driver");
}

static bool is_swapped(const struct part *p)
{
    return p->claim && p->new_volume &&
           strcmp(text_at(p->claim, "spec", "volumeName"), kube_object_name(p->new_volume)) == 0;
}

/* The claim is to be copied: it is there, and not yet made anew. */
static bool is_to_copy(const struct part *p)
{
    return p->claim && !is_swapped(p);
}

static enum cli_exit check_part(struct move *m, const struct part *p)
{
    size_t i;
    json_t *mode;
    if (!p->claim && !p->new_volume)
        return cli_output_fail(m->k->cli, CLI_EXIT_NOT_FOUND, "`kubectl get pvc` lists the claims",
                               "%s: there is no claim %s in namespace %s", m->what, p->name, m->namespace);
    if (!is_to_copy(p))
        return CLI_EXIT_OK;
    if (!p->old_volume || strcmp(text_at(p->claim, "status", "phase"), "Bound") != 0)
        return refuse(m, "`kubectl describe pvc` tells what it waits for",
                      "the claim %s is not bound to a volume", p->name);
    if (json_object_get(json_object_get(p->claim, "metadata"), "deletionTimestamp"))
        return refuse(m, NULL, "the claim %s is being deleted", p->name);
    if (strcmp(text_at(p->claim, "spec", "volumeMode"), "Block") == 0)
        return refuse(m, "make a new claim, and copy with the application's own means",
                      "the claim %s is a raw device, and only file systems are copied", p->name);
    json_array_foreach(kubectl_at(p->claim, "spec", "accessModes"), i, mode)
    {
        if (m->adopt && strcmp(json_string_value(mode), "ReadWriteMany") == 0)
            return refuse(m, NULL,
                          "the claim %s can be written by several nodes at a time, which cannot be captured "
                          "write by write",
                          p->name);
    }
    bool ours = strcmp(driver_of(p->old_volume), DRIVER) == 0;
    if (ours == m->adopt)
        return refuse(m, NULL, "the volume of claim %s is %s already", p->name,
                      ours ? "one of Tidemark's" : "a plain one");
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
    static char chosen[NAME_BYTES];
    if (!wanted && !m->adopt && m->parts[0].claim)
        wanted = text_at(m->parts[0].claim, "spec", "storageClassName");
    if (kubectl_list(m->k, &kube_storage_classes, NULL, &classes, &err) < 0)
        return fail(m, &err);
    json_array_foreach(classes, i, class)
    {
        const char *provisioner = json_string_value(json_object_get(class, "provisioner"));
        bool ours = provisioner && strcmp(provisioner, DRIVER) == 0;
        if ((wanted && strcmp(wanted, kube_object_name(class)) != 0) || ours != m->adopt)
            continue;
        snprintf(chosen, sizeof chosen, "%s", kube_object_name(class));
        m->class = chosen;
        return CLI_EXIT_OK;
    }
    return refuse(m,
                  m->adopt ? "--storage-class names one whose provisioner is " DRIVER
                           : "--storage-class names one of another driver",
                  wanted ? "the storage class %s does not exist, or is of the wrong driver"
                         : "there is no storage class of " DRIVER "%s",
                  wanted ? wanted : "");
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
        const char *phase = text_at(pod, "status", "phase");
        if (strcmp(phase, "Succeeded") == 0 || strcmp(phase, "Failed") == 0)
            continue;
        json_array_foreach(kubectl_at(pod, "spec", "volumes"), k, volume)
        {
            const char *claim = text_at(volume, "persistentVolumeClaim", "claimName");
            for (size_t n = 0; n < m->count; n++)
                if (is_to_copy(&m->parts[n]) && strcmp(claim, m->parts[n].name) == 0)
                    return error_set(err, -EBUSY,
                                     "the pod %s uses the claim %s: stop it (kubectl -n %s scale "
                                     "--replicas=0 ...), and run the same command again",
                                     kube_object_name(pod), claim, m->namespace);
        }
    }
    return r;
}

/* ---- the copy ---- */

static int make_copy_claim(struct move *m, struct part *p, struct error *err)
{
    _cleanup_json_ json_t *there = NULL, *claim = NULL;
    const json_t *capacity = json_object_get(kubectl_at(p->claim, "status", "capacity"), "storage");
    if (!capacity)
        capacity = json_object_get(json_object_get(kubectl_at(p->claim, "spec", "resources"), "requests"),
                                   "storage");
    const char *uid = kube_object_uid(p->claim);
    int r = get(m, &kube_claims, p->copy, &there, err);
    if (r < 0)
        return r;
    if (there) {
        const char *of = kube_object_annotation(there, MOVING);
        return of && strcmp(of, uid) == 0 && strcmp(text_at(there, "spec", "storageClassName"), m->class) == 0
                   ? 0
                   : error_set(err, -EEXIST,
                               "there is a claim %s that is not of this move: delete it, and run the same "
                               "command again",
                               p->copy);
    }
    claim = json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s}}, s:{s:[s], s:s, s:{s:{s:O}}}}", "apiVersion", "v1",
                      "kind", "PersistentVolumeClaim", "metadata", "name", p->copy, "namespace", m->namespace,
                      "annotations", MOVING, uid, "spec", "accessModes", "ReadWriteOnce", "storageClassName",
                      m->class, "resources", "requests", "storage", capacity);
    const struct kube_target all = target_of(m, &kube_claims, NULL);
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
static int choose_image(struct move *m, char ret[512], struct error *err)
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

static const char *waits_for(const json_t *pod)
{
    const json_t *status = json_array_get(kubectl_at(pod, "status", "containerStatuses"), 0);
    const char *reason = json_string_value(kubectl_at(json_object_get(status, "state"), "waiting", "reason"));
    return reason ? reason : text_at(pod, "status", "phase");
}

static int copy_once(struct move *m, const char *pod_name, struct error *err)
{
    char image[512], step[CLI_TEXT_BYTES];
    const struct kube_target all = target_of(m, &kube_pods, NULL);
    int r = choose_image(m, image, err);
    if (r == 0)
        r = delete (m, &kube_pods, pod_name, NULL, err); /* of an earlier try */
    _cleanup_json_ json_t *wanted = copy_pod(m, pod_name, image);
    if (r == 0)
        r = wanted ? kube_create(m->k->client, &all, wanted, NULL, err)
                   : error_set(err, -ENOMEM, "out of memory");
    while (r == 0) {
        _cleanup_json_ json_t *pod = NULL;
        r = get(m, &kube_pods, pod_name, &pod, err);
        const char *phase = text_at(pod, "status", "phase");
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
        snprintf(step, sizeof step, "copying (%s)", waits_for(pod));
        cli_progress_set(m->progress, step, 0, 0, "");
        pause_a_little();
    }
    return r == 0 ? delete (m, &kube_pods, pod_name, NULL, err) : r;
}

/* ---- the exchange ---- */

/* The claim as it is made again: what people said of it, nothing that controllers did. */
static char *claim_text(const struct move *m, const struct part *p)
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
    json_object_set(spec, "volumeName", json_object_get(json_object_get(p->new_volume, "metadata"), "name"));
    if (!m->adopt) /* an adopted one keeps the class that its manifest says */
        json_object_set_new(spec, "storageClassName", json_string(m->class));
    return json_dumps(claim, JSON_COMPACT);
}

static int patch_volume(struct move *m, const char *name, json_t *patch, json_t **ret, struct error *err)
{
    const struct kube_target target = target_of(m, &kube_volumes, name);
    int r = patch ? kube_patch(m->k->client, &target, KUBE_PATCH_MERGE, patch, ret, err)
                  : error_set(err, -ENOMEM, "out of memory");
    json_decref(patch);
    return r;
}

/* V1, V3 */
static int write_down(struct move *m, struct part *p, struct error *err)
{
    _cleanup_json_ json_t *copy = NULL;
    char key[2 * NAME_BYTES];
    snprintf(key, sizeof key, "%s/%s", m->namespace, p->name);
    int r = get(m, &kube_claims, p->copy, &copy, err);
    if (r == 0)
        r = get(m, &kube_volumes, text_at(copy, "spec", "volumeName"), &p->new_volume, err);
    if (r < 0)
        return r;
    if (!p->new_volume)
        return error_set(err, -EIO, "the claim %s has no volume: delete it, and run the same command again",
                         p->copy);
    _cleanup_free_ char *text = claim_text(m, p);
    json_t *written = NULL;
    const char *before = kube_object_annotation(p->new_volume, POLICY),
               *policy = before ? before : text_at(p->new_volume, "spec", "persistentVolumeReclaimPolicy");
    r = patch_volume(m, kube_object_name(p->new_volume),
                     json_pack("{s:{s:{s:s, s:s, s:s, s:s}}, s:{s:s}}", "metadata", "annotations", MOVING,
                               key, CLAIM, text, POLICY, policy, FROM, kube_object_name(p->old_volume),
                               "spec", "persistentVolumeReclaimPolicy", "Retain"),
                     &written, err);
    if (r < 0)
        return r;
    json_decref(p->new_volume);
    p->new_volume = written;
    return patch_volume(m, kube_object_name(p->old_volume),
                        json_pack("{s:{s:s}}", "spec", "persistentVolumeReclaimPolicy", "Retain"), NULL, err);
}

static int await_bound(struct move *m, const struct part *p, struct error *err)
{
    uint64_t begin_ns = clock_boottime_ns(clock_system());
    for (;;) {
        _cleanup_json_ json_t *claim = NULL;
        int r = get(m, &kube_claims, p->name, &claim, err);
        if (r < 0)
            return r;
        if (strcmp(text_at(claim, "spec", "volumeName"), kube_object_name(p->new_volume)) != 0)
            return error_set(err, -EEXIST,
                             "somebody else has made the claim %s meanwhile: stop what makes it (scale to "
                             "0), delete it, and run the same command again",
                             p->name);
        if (strcmp(text_at(claim, "status", "phase"), "Bound") == 0)
            return 0;
        if (clock_boottime_ns(clock_system()) - begin_ns > GONE_S * NS_PER_SECOND)
            return error_set(err, -EAGAIN,
                             "the claim %s is not bound after %u s: kubectl -n %s describe pvc %s tells why",
                             p->name, GONE_S, m->namespace, p->name);
        pause_a_little();
    }
}

/* From what the new volume says alone. */
static int exchange(struct move *m, struct part *p, struct error *err)
{
    const char *name = kube_object_name(p->new_volume), *text = kube_object_annotation(p->new_volume, CLAIM),
               *policy = kube_object_annotation(p->new_volume, POLICY);
    _cleanup_json_ json_t *claim = text ? json_loads(text, 0, NULL) : NULL;
    if (!claim || !policy)
        return error_set(err, -EIO, "the volume %s lacks the annotations of its move", name);
    int r = is_to_copy(p) ? delete (m, &kube_claims, p->name, kube_object_uid(p->claim), err) : 0;
    if (r == 0)
        r = delete (m, &kube_claims, p->copy, NULL, err);
    if (r == 0 && !is_swapped(p)) {
        r = patch_volume(m, name,
                         json_pack("{s:{s:{s:s, s:s, s:s, s:s, s:n, s:n}, s:O?}}", "spec", "claimRef",
                                   "apiVersion", "v1", "kind", "PersistentVolumeClaim", "namespace",
                                   m->namespace, "name", p->name, "uid", "resourceVersion",
                                   "storageClassName", kubectl_at(claim, "spec", "storageClassName")),
                         NULL, err);
        const struct kube_target all = target_of(m, &kube_claims, NULL);
        if (r == 0 && (r = kube_create(m->k->client, &all, claim, NULL, err)) == -EEXIST)
            r = 0; /* await_bound looks whose it is */
    }
    if (r == 0)
        r = await_bound(m, p, err);
    if (r < 0)
        return r;
    return patch_volume(m, name,
                        json_pack("{s:{s:{s:n, s:n, s:n}}, s:{s:s}}", "metadata", "annotations", MOVING,
                                  CLAIM, POLICY, "spec", "persistentVolumeReclaimPolicy", policy),
                        NULL, err);
}

/* ---- the command ---- */

static int carry_out(struct move *m, struct error *err)
{
    char pod[NAME_BYTES + sizeof SUFFIX];
    bool copies = false;
    int r = 0;
    for (size_t i = 0; i < m->count && r == 0; i++) {
        copies |= is_to_copy(&m->parts[i]);
        r = is_to_copy(&m->parts[i]) ? make_copy_claim(m, &m->parts[i], err) : 0;
    }
    snprintf(pod, sizeof pod, "%s" SUFFIX, m->parts[0].name);
    if (r == 0 && copies)
        r = copy_once(m, pod, err);
    cli_progress_set(m->progress, "exchanging", 0, 0, "");
    for (size_t i = 0; i < m->count && r == 0; i++) {
        json_decref(m->parts[i].new_volume);
        m->parts[i].new_volume = NULL;
        r = is_to_copy(&m->parts[i]) ? write_down(m, &m->parts[i], err) : find_begun(m, &m->parts[i], err);
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
        struct part *p = &m->parts[m->count++];
        kubectl_member_of(m->k, cli->operands[i], &member);
        if (i > 0 && strcmp(member.namespace, m->namespace) != 0)
            return refuse(m, "one command a namespace", "the claims lie in several namespaces");
        snprintf(m->namespace, sizeof m->namespace, "%s", member.namespace);
        snprintf(p->name, sizeof p->name, "%s", member.name);
        snprintf(p->copy, sizeof p->copy, "%s" SUFFIX, member.name);
        snprintf(m->what, sizeof m->what, "%s %s/%s", m->verb, member.namespace, member.name);
        if (look(m, p, &err) < 0)
            return fail(m, &err);
        enum cli_exit code = check_part(m, p);
        if (code != CLI_EXIT_OK)
            return code;
    }
    enum cli_exit code = choose_class(m);
    if (code == CLI_EXIT_OK && check_unused(m, &err) < 0)
        code = refuse(m, NULL, "%s", err.message);
    return code;
}

static enum cli_exit tell(struct move *m)
{
    _cleanup_json_ json_t *answer = json_array();
    for (size_t i = 0; i < m->count; i++)
        json_array_append_new(
            answer,
            json_pack("{s:s, s:s, s:s, s:s?, s:s?}", "namespace", m->namespace, "claim", m->parts[i].name,
                      "storageClass", m->class, "volume",
                      m->parts[i].new_volume ? kube_object_name(m->parts[i].new_volume) : NULL,
                      "formerVolume",
                      m->parts[i].new_volume ? kube_object_annotation(m->parts[i].new_volume, FROM) : NULL));
    if (m->k->cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(m->k->cli, answer);
    for (size_t i = 0; i < m->count; i++) {
        const json_t *one = json_array_get(answer, i);
        cli_output_say(m->k->cli,
                       "%s/%s has the volume %s now, %s; the former one is kept: `kubectl delete pv %s` when "
                       "it is not needed any more",
                       m->namespace, m->parts[i].name, cli_field_text(one, "volume", "?"),
                       m->adopt ? "whose every write is journaled once an application covers it"
                                : "a plain one",
                       cli_field_text(one, "formerVolume", "?"));
    }
    cli_output_say(m->k->cli, "Start the workload again.");
    return CLI_EXIT_OK;
}

static enum cli_exit run(struct move *m)
{
    const struct cli *cli = m->k->cli;
    struct error err = ERROR_INIT;
    char question[3 * CLI_TEXT_BYTES];
    enum cli_exit code = prepare(m);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli_options_flag(cli, "dry-run")) {
        for (size_t i = 0; i < m->count; i++)
            cli_output_say(cli,
                           "%s/%s: would be copied to a volume of class %s, and bound to it under the same "
                           "name; its volume %s would be kept",
                           m->namespace, m->parts[i].name, m->class,
                           m->parts[i].old_volume ? kube_object_name(m->parts[i].old_volume) : "of before");
        return CLI_EXIT_OK;
    }
    snprintf(question, sizeof question,
             "Copy %zu claim%s of %s to volumes of class %s and exchange them now?", m->count,
             m->count == 1 ? "" : "s", m->namespace, m->class);
    if (!cli_options_flag(cli, "yes") && cli_output_can_ask(cli) && !cli_output_confirm(question))
        return refuse(m, NULL, "not confirmed: nothing was changed");
    m->progress = cli_progress_new(cli, m->what);
    if (carry_out(m, &err) < 0)
        return fail(m, &err);
    cli_progress_free(take_ptr(m->progress));
    return tell(m);
}

static enum cli_exit run_move(struct cli *cli, bool adopt)
{
    _cleanup_kubectl_ struct kubectl k;
    struct move m = {.k = &k, .verb = adopt ? "adopt" : "release", .adopt = adopt};
    snprintf(m.what, sizeof m.what, "%s", m.verb);
    enum cli_exit code = kubectl_open(&k, cli);
    if (code == CLI_EXIT_OK)
        code = run(&m);
    for (size_t i = 0; i < m.count; i++) {
        json_decref(m.parts[i].claim);
        json_decref(m.parts[i].old_volume);
        json_decref(m.parts[i].new_volume);
    }
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
    {"image", 0, CLI_KIND_TEXT, "IMAGE", .help = "of the pod that copies (default: Tidemark's own)"},
    {"dry-run", 0, CLI_KIND_NONE, NULL, .help = "tell what would be done, change nothing"},
    {"yes", 'y', CLI_KIND_NONE, NULL, .help = "do not ask"},
    {0},
};

const struct cli_command kubectl_adopt = {
    .name = "adopt",
    .summary = "existing claims of another class get captured volumes, with their data",
    .description = "Copies what the claims hold to volumes of a class of csi.tidemark.io, and makes the\n"
                   "claims again with these, under the same names and classes, so that no manifest\n"
                   "changes. No pod may use them meanwhile: scale the workload to 0 before. Give the\n"
                   "claims that one pod mounts together: their writes are in one order then. The former\n"
                   "volumes are kept. A command that was interrupted goes on when it is given again.",
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
    .description = "The reverse of adopt: copies what the claims hold to volumes of another driver's\n"
                   "class (by default the one that the claim names), and makes the claims again with\n"
                   "these. The application needs no Tidemark then. The former volumes, and with them\n"
                   "the history, are kept until they are deleted.",
    .operands = claims,
    .options = options,
    .formats = true,
    .examples =
        (const char *const[]){"kubectl tidemark release shop/data-db-0 shop/wal-db-0",
                              "kubectl tidemark release shop/data-db-0 --storage-class standard", NULL},
    .run = run_release,
};
