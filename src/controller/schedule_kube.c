/* SPDX-License-Identifier: Apache-2.0 */
/* Schedules of Checkpoints in the controller (schedule.h). An application's is looked at when it, its policy
 * or one of its Checkpoints changes, and at the next time that counts: nothing is polled. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "controller/controller_internal.h"
#include "controller/schedule.h"
#include "controller/stream_policy.h"
#include "lib/json.h"

#define SCHEDULE_MANAGER "tidemark-schedule"
#define LONGEST_WAIT_S 3600 /* a clock that is set is noticed by then */
#define MESSAGE_BYTES 1000

struct look {
    struct controller *c;
    const char *namespace, *name;
    json_t *papp; /* as the server has it */
    json_t *checkpoints;
    json_t *status; /* status.checkpoints to be */
    char policy[256];
};

static bool enqueue_one(void *context, json_t *papp)
{
    schedule_enqueue(context, kube_object_namespace(papp), kube_object_name(papp), 0);
    return true;
}

void schedule_enqueue(struct controller *c, const char *namespace, const char *name, unsigned delay_ms)
{
    char key[KUBE_QUEUE_KEY_BYTES];
    if (!name) {
        kube_informer_each(c->applications, namespace, enqueue_one, c);
        return;
    }
    snprintf(key, sizeof key, "%s%s", SCHEDULE_KEY, namespace);
    controller_enqueue(c, key, name, delay_ms);
}

/* `checkpoints` of the policy, or of the nearest that it extends which has it. */
static json_t *find_spec(struct controller *c, const json_t *papp, char policy[256])
{
    const char *name = json_text(json_object_get(json_object_get(papp, "spec"), "policyRef"), "name");
    snprintf(policy, 256, "%s", *name ? name : "default");
    for (unsigned i = 0; i < STREAM_POLICY_CHAIN_MAX && *policy; i++) {
        _cleanup_json_ json_t *object = kube_informer_get(c->policies, NULL, policy);
        const json_t *spec = json_object_get(object, "spec");
        json_t *found = json_object_get(spec, "checkpoints");
        if (found)
            return json_incref(found);
        snprintf(policy, 256, "%s", json_text(spec, "extends"));
    }
    return NULL;
}

static const json_t *old_condition(const struct look *l)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(json_object_get(l->papp, "status"), "conditions"), i, one)
    {
        if (strcmp(json_text(one, "type"), SCHEDULE_CONDITION) == 0)
            return one;
    }
    return NULL;
}

/* The condition to be; what changed is an event. NULL: out of memory. */
static json_t *make_condition(struct look *l, bool good, const char *reason, const char *message)
{
    const json_t *old = old_condition(l);
    char now[32];
    const char *status = good ? "True" : "False";
    bool same = old && strcmp(json_text(old, "status"), status) == 0;
    schedule_time((int64_t)(clock_realtime_ns(clock_system()) / NS_PER_SECOND), now);
    if (!same || (!good && strcmp(json_text(old, "reason"), reason) != 0))
        event_record(l->c, l->papp, good ? "Normal" : "Warning", good ? "CheckpointsScheduled" : reason,
                     message);
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:O?}", "type", SCHEDULE_CONDITION, "status", status,
                     "reason", reason, "message", message, "lastTransitionTime",
                     same ? json_text(old, "lastTransitionTime") : now, "observedGeneration",
                     json_object_get(json_object_get(l->papp, "metadata"), "generation"));
}

/* `condition` NULL: nothing of a schedule is left in the status. Takes the reference. */
static int write_status(struct look *l, json_t *condition, struct error *err)
{
    _cleanup_json_ json_t *status = json_object();
    if (condition)
        json_object_set_new(status, "conditions", json_pack("[o]", condition));
    if (l->status)
        json_object_set(status, "checkpoints", l->status);
    int r = application_apply_status(l->c, l->namespace, l->name, SCHEDULE_MANAGER, status, err);
    return r == -ENOENT ? 0 : r; /* deleted meanwhile */
}

/* ---- a run ---- */

/* T1: one that is there already is this one. */
static int make_checkpoint(struct look *l, const struct schedule *s, int64_t due_s,
                           char name[SCHEDULE_NAME_BYTES], struct error *err)
{
    char at[32];
    schedule_name(l->name, due_s, name);
    schedule_time(due_s, at);
    _cleanup_json_ json_t *object = json_pack(
        "{s:s, s:s, s:{s:s, s:s, s:{s:s}, s:{s:s}}, s:{s:s, s:b}}", "apiVersion", API_VERSION, "kind",
        "Checkpoint", "metadata", "name", name, "namespace", l->namespace, "labels", SCHEDULE_LABEL, "true",
        "annotations", SCHEDULE_AT, at, "spec", "application", l->name, "consistent", (int)s->consistent);
    const struct kube_target target = {
        .resource = &controller_checkpoints, .namespace = l->namespace, .field_manager = SCHEDULE_MANAGER};
    int r = object ? kube_create(l->c->client, &target, object, NULL, err)
                   : error_set(err, -ENOMEM, "out of memory");
    return r == -EEXIST ? 0 : r;
}

static int remove_expired(struct look *l, const struct schedule *s, int64_t now_s, int64_t *ret_next_s,
                          struct error *err)
{
    _cleanup_json_ json_t *expired = NULL;
    size_t i;
    json_t *one;
    int r = schedule_expired(s, l->checkpoints, l->name, now_s, &expired, ret_next_s, err);
    json_array_foreach(expired, i, one)
    {
        const struct kube_target target = {
            .resource = &controller_checkpoints, .namespace = l->namespace, .name = kube_object_name(one)};
        const struct kube_delete_options options = {.uid = kube_object_uid(one)};
        if (r == 0)
            r = kube_delete(l->c->client, &target, &options, err);
        if (r == -ENOENT || r == -EBUSY)
            r = 0;
    }
    return r;
}

/* ---- what is told ---- */

static const json_t *ready_of(const json_t *checkpoint)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(json_object_get(checkpoint, "status"), "conditions"), i, one)
    {
        if (strcmp(json_text(one, "type"), "Ready") == 0)
            return one;
    }
    return NULL;
}

/* `running`: what the one that is due waits for, or NULL. */
static json_t *judge(struct look *l, const struct schedule *s, int64_t next_s, const json_t *running)
{
    char message[MESSAGE_BYTES], next[32] = "never";
    const json_t *latest = schedule_latest(l->checkpoints, l->name), *ready = ready_of(latest);
    const char *name = latest ? kube_object_name(latest) : "";
    if (next_s)
        schedule_time(next_s, next);
    if (latest && strcmp(json_text(json_object_get(latest, "status"), "phase"), "Ready") != 0) {
        snprintf(message, sizeof message, "the Checkpoint %s failed (%s): %.600s; the next one is due at %s",
                 name, json_text(ready, "reason"), json_text(ready, "message"), next);
        return make_condition(l, false, "CheckpointFailed", message);
    }
    if (latest)
        json_object_set_new(l->status, "lastSuccessTime",
                            json_string(json_text(json_object_get(latest, "status"), "time")));
    if (running) {
        snprintf(message, sizeof message, "the one that is due waits until the Checkpoint %s has ended",
                 kube_object_name(running));
        return make_condition(l, true, "Waiting", message);
    }
    snprintf(message, sizeof message, "%.200s by the policy %.100s; the next one is due at %s", s->text,
             l->policy, next);
    return make_condition(l, true, "Scheduled", message);
}

/* ---- all of it ---- */

static unsigned wait_ms(int64_t next_s, int64_t expiry_s, uint64_t now_ns)
{
    int64_t now_s = (int64_t)(now_ns / NS_PER_SECOND), at_s = now_s + LONGEST_WAIT_S;
    at_s = next_s && next_s < at_s ? next_s : at_s;
    at_s = expiry_s && expiry_s < at_s ? expiry_s : at_s;
    if (at_s <= now_s)
        return 1000;
    return (unsigned)(((uint64_t)at_s * NS_PER_SECOND - now_ns) / NS_PER_MS) + 1;
}

static int run(struct look *l, const struct schedule *s, struct error *err)
{
    struct schedule_decision decision;
    uint64_t now_ns = clock_realtime_ns(clock_system());
    int64_t now_s = (int64_t)(now_ns / NS_PER_SECOND), expiry_s = 0;
    json_t *old = json_object_get(json_object_get(l->papp, "status"), "checkpoints");
    char name[SCHEDULE_NAME_BYTES], text[32];
    const struct kube_target all = {.resource = &controller_checkpoints, .namespace = l->namespace};
    int r = kube_list_all(l->c->client, &all, NULL, &l->checkpoints, err);
    if (r < 0)
        return r;
    l->status = old ? json_deep_copy(old) : json_object();
    schedule_decide(s, old, now_s, &decision);
    const json_t *running = decision.due_s ? schedule_running(l->checkpoints, l->name) : NULL;
    bool waits = running != NULL;
    if (decision.due_s && !waits) {
        if ((r = make_checkpoint(l, s, decision.due_s, name, err)) < 0)
            return r;
        schedule_time(decision.due_s, text);
        json_object_set_new(l->status, "lastTime", json_string(text));
        json_object_set_new(l->status, "lastCheckpoint", json_string(name));
        json_object_set_new(l->status, "missed",
                            json_integer(json_integer_value(json_object_get(l->status, "missed")) +
                                         (json_int_t)decision.missed));
    }
    /* One that waits for another stays due: that one's end enqueues this again. */
    json_object_set_new(l->status, "schedule", json_string(s->text));
    if (!waits && decision.next_s) {
        schedule_time(decision.next_s, text);
        json_object_set_new(l->status, "nextTime", json_string(text));
    } else if (!waits) {
        json_object_del(l->status, "nextTime");
    }
    if ((r = write_status(l, judge(l, s, decision.next_s, running), err)) == 0)
        r = remove_expired(l, s, now_s, &expiry_s, err);
    if (r == 0)
        schedule_enqueue(l->c, l->namespace, l->name, wait_ms(decision.next_s, expiry_s, now_ns));
    return r;
}

int schedule_reconcile(struct controller *c, const char *namespace, const char *name, struct error *err)
{
    _cleanup_json_ json_t *known = kube_informer_get(c->applications, namespace, name), *spec = NULL;
    struct look l = {.c = c, .namespace = namespace, .name = name};
    struct schedule s;
    struct error why = ERROR_INIT;
    const struct kube_target target = {
        .resource = &controller_applications, .namespace = namespace, .name = name};
    if (!known || json_object_get(json_object_get(known, "metadata"), "deletionTimestamp"))
        return 0;
    spec = find_spec(c, known, l.policy);
    bool paused = json_is_true(json_object_get(json_object_get(known, "spec"), "paused")), parsed = false;
    if (!spec && !json_object_get(json_object_get(known, "status"), "checkpoints"))
        return 0;
    int r = kube_get(c->client, &target, &l.papp, err);
    if (r == 0 && !spec)
        r = write_status(&l, NULL, err);
    else if (r == 0) {
        int bad = schedule_parse(spec, NULL, &s, &why);
        parsed = bad == 0;
        if (parsed && !paused) {
            r = run(&l, &s, err);
        } else { /* nothing is due meanwhile, and what was does not pile up */
            char message[MESSAGE_BYTES];
            snprintf(message, sizeof message, "the policy %.100s, spec.checkpoints: %.700s", l.policy,
                     why.message);
            l.status = json_pack("{s:s}", "schedule", parsed ? "paused" : "invalid");
            r = write_status(
                &l,
                parsed ? make_condition(&l, false, "Paused",
                                        "spec.paused is true: no Checkpoints are made until it is false")
                       : make_condition(&l, false, "BadSchedule", message),
                err);
        }
    }
    if (parsed)
        schedule_release(&s);
    json_decref(l.papp);
    json_decref(l.checkpoints);
    json_decref(l.status);
    return r == -ENOENT ? 0 : r;
}
