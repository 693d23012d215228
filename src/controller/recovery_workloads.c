/* SPDX-License-Identifier: Apache-2.0 */
/* The workloads after their objects were put back: pods that came between are renewed, and what becomes of
 * all is awaited. */
#include "controller/recovery_internal.h"

enum {
    LOOK_MS = 200,
    TURN_LOADS = 10,
    TURN_MOST_MS = 10000,
    BLOCKED_BYTES = 700,
    NAMED = 3
};

#define CONDITION "WorkloadsReady"

static json_int_t number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static bool has_prefix(const char *name, const char *kind)
{
    return strncmp(name, kind, strlen(kind)) == 0;
}

static bool is_observed(const json_t *live)
{
    return number(json_object_get(live, "status"), "observedGeneration") >=
           number(json_object_get(live, "metadata"), "generation");
}

static uint64_t since_step_ms(const struct recovery_run *run)
{
    const json_t *step = json_object_get(json_object_get(run->recovery, "status"), "step");
    uint64_t since_ns, now_ns = clock_realtime_ns(run->clock);
    struct error unused = ERROR_INIT;
    if (clock_parse_rfc3339(json_text(step, "time"), &since_ns, &unused) < 0 || since_ns > now_ns)
        return 0;
    return (now_ns - since_ns) / NS_PER_MS;
}

/* To go on in another turn takes reading the objects and the plan again: of a large application that is a
 * small part of the time. */
static unsigned turn_ms(const struct recovery_run *run)
{
    uint64_t ms = run->loaded_ms * TURN_LOADS;
    return ms < RECOVERY_TURN_MS ? RECOVERY_TURN_MS : ms > TURN_MOST_MS ? TURN_MOST_MS : (unsigned)ms;
}

/* ---- renewing ---- */

static bool is_ready_pod(const json_t *pod)
{
    size_t i;
    json_t *condition;
    json_array_foreach(json_object_get(json_object_get(pod, "status"), "conditions"), i, condition)
    {
        if (strcmp(json_text(condition, "type"), "Ready") == 0)
            return strcmp(json_text(condition, "status"), "True") == 0;
    }
    return false;
}

static bool is_of(const json_t *pod, const json_t *owner)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(json_object_get(pod, "metadata"), "ownerReferences"), i, one)
    {
        if (strcmp(json_text(one, "uid"), object_uid(owner)) == 0)
            return true;
    }
    return false;
}

static int renew_pods_of(struct recovery_run *run, const json_t *set, const json_t *pods, struct error *err)
{
    const char *revision = json_text(json_object_get(set, "status"), "updateRevision");
    size_t i;
    json_t *pod;
    int r = 0;
    json_array_foreach(pods, i, pod)
    {
        char name[OBJECT_NAME_BYTES];
        struct object_id id;
        const json_t *metadata = json_object_get(pod, "metadata");
        const char *its = json_text(json_object_get(metadata, "labels"), "controller-revision-hash");
        if (r < 0 || !is_of(pod, set) || is_ready_pod(pod) || strcmp(its, revision) == 0 ||
            json_object_get(metadata, "deletionTimestamp"))
            continue;
        if ((r = object_identify(pod, &id, err)) == 0 && (r = object_journal_name(&id, name, err)) == 0)
            r = run->c->cluster->remove(run->c->cluster_context, name, object_uid(pod), NULL, err);
        r = r == -EBUSY ? 0 : r;
    }
    return r;
}

/* The set as its controller has seen it: before that its updateRevision is that of the bad release, and a pod of that looks right. 1: nobody has seen it in all the
 * time that there is (no kube-controller-manager runs), and nothing can be said of its pods. `waited`: in this turn. */
static int await_observed(struct recovery_run *run, const char *name, unsigned *waited, json_t **ret, struct error *err)
{
    for (;; *waited += LOOK_MS) {
        _cleanup_json_ json_t *live = NULL;
        int r = run->c->cluster->get(run->c->cluster_context, name, &live, err);
        if (r < 0)
            return r;
        if (is_observed(live)) {
            *ret = take_ptr(live);
            return 0;
        }
        const char *own = json_text(json_object_get(live, "metadata"), "name");
        if (since_step_ms(run) >= RECOVERY_READY_MS) {
            log_warning(run->c->log, "recovery %s/%s: StatefulSet %s was not seen by kube-controller-manager in %u s: pods of the bad release are not renewed",
                        run->namespace, run->name, own, RECOVERY_READY_MS / 1000);
            return 1;
        }
        if (*waited >= turn_ms(run))
            return error_set(err, -EAGAIN, "waiting until kube-controller-manager has seen what StatefulSet %s was put back to", own);
        recovery_pause(run, LOOK_MS);
    }
}

/* A StatefulSet that was put back does not replace a pod that never became ready (its rolling update waits
 * for it): one that was made from the bad release while the gate was closed has to go by hand. Deployments
 * and DaemonSets replace theirs. */
int recovery_renew_pods(struct recovery_run *run, struct error *err)
{
    unsigned waited = 0;
    for (size_t i = 0; i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        _cleanup_json_ json_t *pods = NULL, *live = NULL;
        if ((e->action != ACTION_CHANGE && e->action != ACTION_RECREATE) || !has_prefix(e->name, "apps/v1/StatefulSet/"))
            continue;
        int r = await_observed(run, e->name, &waited, &live, err);
        if (r == 0)
            r = run->c->cluster->pods(run->c->cluster_context, run->target_namespace, &pods, err);
        if (r == 0)
            r = renew_pods_of(run, live, pods, err);
        if (r < 0 && r != -ENOENT)
            return r;
        if (r < 0) /* it could not be put back: its verdict says so */
            *err = ERROR_INIT;
    }
    return 0;
}

/* ---- awaiting ---- */

/* Of a StatefulSet's pods none has an earlier form, but those that its partition keeps, or that it never replaces by itself. The API server
 * gives each RollingUpdate a partition (0). */
static bool is_rolled_out(const json_t *spec, const json_t *status, json_int_t wanted)
{
    const json_t *strategy = json_object_get(spec, "updateStrategy");
    const json_t *partition = json_object_get(json_object_get(strategy, "rollingUpdate"), "partition");
    if (strcmp(json_text(strategy, "type"), "OnDelete") == 0)
        return true;
    if (json_is_integer(partition))
        return number(status, "updatedReplicas") >= wanted - json_integer_value(partition);
    return strcmp(json_text(status, "currentRevision"), json_text(status, "updateRevision")) == 0;
}

/* Whether the workload has what it wants, of its newest form, as `kubectl rollout status` has it. */
static bool is_ready(const char *name, const json_t *live)
{
    const json_t *spec = json_object_get(live, "spec"), *status = json_object_get(live, "status");
    const json_t *replicas = json_object_get(spec, "replicas");
    json_int_t wanted = replicas ? json_integer_value(replicas) : 1;
    if (!is_observed(live))
        return false;
    if (has_prefix(name, "apps/v1/DaemonSet/"))
        return number(status, "numberReady") >= number(status, "desiredNumberScheduled") &&
               (strcmp(json_text(json_object_get(spec, "updateStrategy"), "type"), "OnDelete") == 0 ||
                number(status, "updatedNumberScheduled") >= number(status, "desiredNumberScheduled"));
    if (has_prefix(name, "apps/v1/Deployment/"))
        return number(status, "readyReplicas") >= wanted && number(status, "updatedReplicas") >= wanted &&
               number(status, "replicas") <= number(status, "updatedReplicas"); /* else one that is ready may be of an earlier form */
    return number(status, "readyReplicas") >= wanted && is_rolled_out(spec, status, wanted);
}

static void add(char text[BLOCKED_BYTES], const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(char text[BLOCKED_BYTES], const char *format, ...)
{
    size_t length = strlen(text);
    va_list list;
    va_start(list, format);
    vsnprintf(text + length, BLOCKED_BYTES - length, format, list);
    va_end(list);
}

static void explain_container(const char *pod, const json_t *container, char text[BLOCKED_BYTES])
{
    const json_t *waiting = json_object_get(json_object_get(container, "state"), "waiting");
    const char *reason = json_text(waiting, "reason");
    if (*reason && strcmp(reason, "ContainerCreating") != 0 && strcmp(reason, "PodInitializing") != 0)
        add(text, "; pod %s: %s: %.200s", pod, reason, json_text(waiting, "message"));
}

static void explain_pod(const json_t *pod, char text[BLOCKED_BYTES])
{
    const json_t *status = json_object_get(pod, "status");
    const char *name = json_text(json_object_get(pod, "metadata"), "name");
    static const char *const keys[] = {"initContainerStatuses", "containerStatuses"};
    size_t i, before = strlen(text);
    json_t *one;
    for (int k = 0; k < 2; k++) {
        json_array_foreach(json_object_get(status, keys[k]), i, one) explain_container(name, one, text);
    }
    json_array_foreach(json_object_get(status, "conditions"), i, one)
    {
        if (strcmp(json_text(one, "reason"), "Unschedulable") == 0)
            add(text, "; pod %s: unschedulable: %.200s", name, json_text(one, "message"));
    }
    if (strlen(text) == before)
        add(text, "; pod %s: %s", name, json_text(status, "phase"));
}

/* What is in the way; "" when all is ready. `ready`: those that were found to be, which are not asked for
 * again; nor is more asked than is told. */
static int find_blocked(struct recovery_run *run, json_t *ready, char text[BLOCKED_BYTES], struct error *err)
{
    _cleanup_json_ json_t *pods = NULL;
    const char *name;
    json_t *object, *pod;
    size_t i, count = 0;
    text[0] = '\0';
    json_object_foreach(run->wanted, name, object)
    {
        _cleanup_json_ json_t *live = NULL;
        if ((!has_prefix(name, "apps/v1/Deployment/") && !has_prefix(name, "apps/v1/StatefulSet/") &&
             !has_prefix(name, "apps/v1/DaemonSet/")) ||
            json_object_get(ready, name))
            continue;
        if (count > NAMED)
            break;
        int r = run->c->cluster->get(run->c->cluster_context, name, &live, err);
        if (r < 0 && r != -ENOENT)
            return r;
        if (r == 0 && is_ready(name, live)) {
            json_object_set_new(ready, name, json_true());
            continue;
        }
        if (count++ < NAMED)
            add(text, "%s%s %s%s", count > 1 ? ", " : "", json_text(object, "kind"), json_text(json_object_get(object, "metadata"), "name"),
                r == 0 && !is_observed(live) ? " (not seen by kube-controller-manager yet)" : "");
    }
    if (count == 0)
        return 0;
    if (count > NAMED)
        add(text, " and more");
    add(text, count == 1 ? " is not ready" : " are not ready");
    int r = run->c->cluster->pods(run->c->cluster_context, run->target_namespace, &pods, err);
    json_array_foreach(pods, i, pod)
    {
        const char *phase = json_text(json_object_get(pod, "status"), "phase");
        if (!is_ready_pod(pod) && strcmp(phase, "Succeeded") != 0)
            explain_pod(pod, text);
    }
    return r;
}

const char *recovery_not_ready(struct recovery_run *run)
{
    bool is_false = strcmp(recovery_condition_text(run->recovery, CONDITION, "status"), "False") == 0;
    return is_false ? recovery_condition_text(run->recovery, CONDITION, "message") : "";
}

int recovery_await_workloads(struct recovery_run *run, struct error *err)
{
    char text[BLOCKED_BYTES], message[BLOCKED_BYTES + 64];
    _cleanup_json_ json_t *ready = json_object();
    for (unsigned waited = 0;; waited += LOOK_MS) {
        int r = find_blocked(run, ready, text, err);
        if (r < 0)
            return r;
        uint64_t ms = since_step_ms(run);
        if (!text[0]) {
            recovery_note_ms(run, "readyMs", ms);
            return recovery_condition(run, CONDITION, true, "WorkloadsReady", "all workloads are ready") < 0
                       ? error_set(err, -ENOMEM, "out of memory")
                       : 0;
        }
        if (ms + waited >= RECOVERY_READY_MS) {
            snprintf(message, sizeof message, "after %u s %s", RECOVERY_READY_MS / 1000, text);
            return recovery_condition(run, CONDITION, false, "WorkloadsNotReady", message) < 0
                       ? error_set(err, -ENOMEM, "out of memory")
                       : 0;
        }
        if (waited >= turn_ms(run))
            return error_set(err, -EAGAIN, "waiting for the workloads: %s", text);
        recovery_pause(run, LOOK_MS);
    }
}
