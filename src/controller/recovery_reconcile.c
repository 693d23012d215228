/* SPDX-License-Identifier: Apache-2.0 */
/* Recoveries in the controller: their objects come from its journals. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/admission.h"
#include "controller/controller_internal.h"
#include "controller/recovery_kube.h"
#include "controller/webhook.h"
#include "controller/recovery_streams.h"
#include "lib/json.h"

#define AGAIN_MS 100u
#define FOLLOW_MS 5000u /* a clone that is still being copied is looked at */

static int objects(void *context, const char *namespace, const char *application, const char *text,
                   recovery_visit visit, void *visit_context, struct recovery_point *ret_point,
                   struct error *err)
{
    struct controller *c = context;
    struct point point;
    struct journal_point found;
    int r = point_parse(text, &point, err);
    if (r == 0) /* what was seen before it was asked for counts */
        r = object_store_visit(c->store, namespace, application, &point, visit, visit_context, &found, err);
    if (r < 0)
        return r;
    *ret_point = (struct recovery_point){.lsn = found.lsn.n, .realtime_ns = found.realtime_ns};
    snprintf(ret_point->note, sizeof ret_point->note, "%s", found.note);
    return 0;
}

static int select_own(void *context, const char *namespace, const char *application, json_t *all,
                      struct error *err)
{
    struct controller *c = context;
    const struct kube_target target = {
        .resource = &controller_applications, .namespace = namespace, .name = application};
    _cleanup_json_ json_t *papp = NULL;
    int r = kube_get(c->client, &target, &papp, err);
    if (r < 0)
        return r;
    const char *group = application_group(papp);
    for (size_t i = json_array_size(all); i-- > 0;) {
        /* The plans of recoveries are ours, and no part of the application. */
        const json_t *object = json_array_get(all, i);
        bool journaled = false;
        r = capture_journals(c->capture, object, &journaled, err);
        if (r < 0)
            return r;
        if (!journaled || !application_has(object, group) || kube_object_label(object, "tidemark.io/recovery-plan"))
            json_array_remove(all, i);
    }
    return 0;
}

static const struct recovery_source_ops source = {objects, select_own};

/* ---- while it runs it cannot go ---- */

static bool is_deleted(const json_t *recovery)
{
    return json_object_get(json_object_get(recovery, "metadata"), "deletionTimestamp");
}

/* Where RECOVERY_FINALIZER is among the finalizers; their count: nowhere. */
static size_t find_hold(const json_t *finalizers)
{
    size_t i = 0;
    while (i < json_array_size(finalizers) &&
           strcmp(json_string_value(json_array_get(finalizers, i)), RECOVERY_FINALIZER) != 0)
        i++;
    return i;
}

/* R5: with the Recovery, what is known of the gates that it has closed would be gone. */
static int hold(struct controller *c, const json_t *recovery, bool held, struct error *err)
{
    const json_t *metadata = json_object_get(recovery, "metadata");
    _cleanup_json_ json_t *finalizers = json_copy(json_object_get(metadata, "finalizers"));
    if (!finalizers)
        finalizers = json_array();
    size_t at = find_hold(finalizers);
    if ((at < json_array_size(finalizers)) == held)
        return 0;
    int failed = held ? json_array_append_new(finalizers, json_string(RECOVERY_FINALIZER))
                      : json_array_remove(finalizers, at);
    _cleanup_json_ json_t *patch =
        failed ? NULL
               : json_pack("{s:{s:s, s:O}}", "metadata", "resourceVersion", kube_object_version(recovery),
                           "finalizers", finalizers);
    const struct kube_target target = {.resource = &controller_recoveries,
                                       .namespace = kube_object_namespace(recovery),
                                       .name = kube_object_name(recovery),
                                       .field_manager = FIELD_MANAGER};
    int r = patch ? kube_patch(c->client, &target, KUBE_PATCH_MERGE, patch, NULL, err)
                  : error_set(err, -ENOMEM, "out of memory");
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return 0;
    }
    return r < 0 ? error_context(err, "finalizer " RECOVERY_FINALIZER) : 0;
}

/* Whether it is one that is to be carried on: not one that was deleted before it began. */
static bool is_wanted(const json_t *recovery)
{
    return !is_deleted(recovery) || json_object_get(json_object_get(recovery, "status"), "phase");
}

/* One that cannot even begin; or, when it runs, be carried on. */
static int refuse(const struct recovery_context *context, const json_t *recovery, const struct error *why, struct error *err)
{
    return recovery_abandon(context, kube_object_namespace(recovery), kube_object_name(recovery),
                            why->code == -EACCES ? "Forbidden" : "RequesterUnknown", why, err);
}

static bool leads(void *context)
{
    return controller_leads(context);
}

/* Who asked is known, vouched for, and may: -EPERM, -EACCES. Other errors: to be asked again. */
static int check_requester(struct controller *c, struct recovery_kube *k, const json_t *recovery,
                           struct error *err)
{
    const struct admission admission = {.ops = &admission_kube, .context = c->client};
    int r = recovery_kube_init(k, c->client, recovery, c->log, err);
    k->leads = leads;
    k->leads_context = c;
    if (r < 0)
        return r == -ENOMEM ? r : -EPERM;
    if (json_object_get(json_object_get(recovery, "status"), "phase")) /* was asked when it began */
        return 0;
    if (!c->trust_requester && (r = webhook_vouches(c->client, recovery, err)) < 0)
        return r;
    return admission_check_rights(&admission, recovery, k->requester, err);
}

static const char *filled_reason(const json_t *recovery)
{
    return recovery_condition_text(recovery, "Filled", "reason");
}

static void come_again(struct controller *c, const char *namespace, const char *name, unsigned ms)
{
    char key[KUBE_QUEUE_KEY_BYTES];
    snprintf(key, sizeof key, "%s%s", RECOVERY_KEY, namespace);
    controller_enqueue(c, key, name, ms);
}

/* It has ended, and its volumes are still being copied. */
static int follow(struct controller *c, const struct recovery_context *context, const json_t *recovery, struct error *err)
{
    const char *namespace = kube_object_namespace(recovery), *name = kube_object_name(recovery);
    bool goes_on = false;
    _cleanup_json_ json_t *now = NULL;
    int r = recovery_follow(context, namespace, name, &goes_on, err);
    if (r < 0)
        return r;
    if (goes_on)
        come_again(c, namespace, name, FOLLOW_MS);
    if (context->store->read(context->store_context, namespace, name, &now, err) < 0) {
        *err = ERROR_INIT;
        return 0;
    }
    const char *before = filled_reason(recovery), *reason = filled_reason(now);
    if (strcmp(before, reason) != 0 && strcmp(reason, "Filling") != 0)
        event_record(c, now, strcmp(reason, "Filled") == 0 ? "Normal" : "Warning", reason,
                     recovery_condition_text(now, "Filled", "message"));
    return 0;
}

int recovery_reconcile(struct controller *c, const char *namespace, const char *name, struct error *err)
{
    struct recovery_kube k = {.client = c->client};
    _cleanup_json_ json_t *recovery = NULL;
    struct error why = ERROR_INIT;
    int r = recovery_kube_store.read(&k, namespace, name, &recovery, err);
    if (r == -ENOENT || (r == 0 && recovery_has_ended(recovery))) {
        if (r == 0 && c->data) /* a clone may have ended before its end */
            controller_enqueue(c, STREAMS_KEY, NULL, STREAMS_SOON_MS);
        if (r == 0 && recovery_note_resumed(recovery, clock_system())) {
            _cleanup_json_ json_t *written = NULL;
            r = recovery_kube_store.write_status(&k, recovery, &written, err);
            return r == -ENOENT ? 0 : r;
        }
        if (r == 0)
            r = hold(c, recovery, false, err);
        if (r == 0 && c->data && recovery_is_filling(recovery)) {
            const struct recovery_context context = {.store = &recovery_kube_store, .store_context = &k, .data = &recovery_streams_ops,
                                                     .data_context = c, .log = c->log};
            k.leads = leads;
            k.leads_context = c;
            r = follow(c, &context, recovery, err);
        }
        return r == -ENOENT ? 0 : r;
    }
    if (r < 0 || !is_wanted(recovery))
        return r;
    r = check_requester(c, &k, recovery, &why);
    if (r == 0 && !is_deleted(recovery) &&
        !json_is_true(json_object_get(json_object_get(recovery, "spec"), "dryRun")))
        r = hold(c, recovery, true, &why);
    const struct recovery_context context = {.cluster = &recovery_kube_cluster,
                                             .cluster_context = &k,
                                             .store = &recovery_kube_store,
                                             .store_context = &k,
                                             .source = &source,
                                             .source_context = c,
                                             .data = c->data ? &recovery_streams_ops : NULL,
                                             .data_context = c,
                                             .directory = object_store_directory(c->store),
                                             .sealing = &c->sealing,
                                             .log = c->log};
    if (r == -EPERM || r == -EACCES) {
        r = refuse(&context, recovery, &why, err);
        if (r == -EAGAIN) { /* a gate whose node does not answer */
            come_again(c, namespace, name, AGAIN_MS);
            r = 0;
        }
    } else if (r < 0) {
        *err = why;
    } else {
        r = recovery_advance(&context, namespace, name, err);
        if (r == -EAGAIN) { /* what it waits for is in its status; it is no failure */
            come_again(c, namespace, name, AGAIN_MS);
            recovery_kube_release(&k);
            return 0;
        }
        _cleanup_json_ json_t *after = NULL;
        struct error unused = ERROR_INIT;
        if (r == 0 && recovery_kube_store.read(&k, namespace, name, &after, &unused) == 0) {
            const char *phase = json_string_value(json_object_get(json_object_get(after, "status"), "phase"));
            const char *message =
                json_string_value(json_object_get(json_object_get(after, "status"), "message"));
            event_record(c, after, phase && strcmp(phase, "Failed") == 0 ? "Warning" : "Normal",
                         phase ? phase : "Ended", message ? message : "");
            if (recovery_has_ended(after))
                r = hold(c, after, false, err);
            if (recovery_is_filling(after))
                come_again(c, namespace, name, FOLLOW_MS);
        }
    }
    recovery_kube_release(&k);
    return r;
}
