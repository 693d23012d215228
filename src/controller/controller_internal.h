/* SPDX-License-Identifier: Apache-2.0 */
/* What the reconcilers share. One struct controller a term as leader.
 *
 * Threads: the lease's, the informers' and WORKERS workers, which take keys of the queue:
 *   "NAMESPACE"         what its annotations protect (protect.c)
 *   "NAMESPACE/NAME"    a ProtectedApplication (application.c)
 *   "#kinds"            which kinds the server has (capture.c)
 *   "@NAMESPACE/NAME"   a Recovery (recovery.c)
 *   "%NAMESPACE/NAME"   a Checkpoint (checkpoint.c)
 *   "+NAMESPACE/NAME"   the schedule of Checkpoints of a ProtectedApplication (schedule_kube.c)
 *   "#streams"          all streams of volumes (streams.c) */
#ifndef TIDEMARK_CONTROLLER_CONTROLLER_INTERNAL_H
#define TIDEMARK_CONTROLLER_CONTROLLER_INTERNAL_H

#include <pthread.h>

#include "controller/controller.h"
#include "controller/data_client.h"
#include "controller/object_store.h"
#include "kube/discovery.h"
#include "kube/informer.h"
#include "kube/queue.h"

#define API_VERSION "tidemark.io/v1alpha1"
#define ANNOTATION_POLICY "tidemark.io/policy"
#define ANNOTATION_APPLICATION "tidemark.io/application"
#define LABEL_CREATED_BY "tidemark.io/created-by"
#define CREATED_BY_ANNOTATION "annotation"
#define LABEL_REQUIRE_POLICY "tidemark.io/require-policy"
#define POLICY_IN_SERVER_MINOR 30u /* from 1.30 on the API server itself judges by that label, before it the webhook */
#define CSI_DRIVER "csi.tidemark.io"
#define FIELD_MANAGER "tidemark-controller"
#define CONTROLLER_KEY_TYPE "tidemark.io/object-key" /* of the Secret that seals Secrets: never captured */
#define KINDS_KEY "#kinds"

extern const struct kube_resource controller_applications, controller_policies, controller_recoveries,
    controller_checkpoints;

struct capture;
struct kube_lease;

/* Where volumes are, as streams.c saw them last: {handle: {"stream", "node"}}. */
struct placements {
    pthread_mutex_t mutex;
    json_t *volumes;
    json_t *told;     /* streams.c's own */
    json_t *policies; /* that too: {stream: what its node has taken} */
    json_t *suspended; /* {stream: why nothing of it is journaled now} */
};

struct controller {
    struct kube_client *client;
    struct kube_lease *lease; /* NULL: none is needed (tests) */
    const struct log *log;
    const char *namespace, *identity;
    bool trust_requester;
    struct kube_release release; /* of the API server, when the term began */
    struct sealing sealing;
    struct object_store *store;
    struct data_client *data; /* NULL: volumes are left alone */
    struct kube_queue *queue;
    struct kube_informers *informers;
    struct kube_informer *namespaces, *claims, *workloads[3], *pods, *volumes, *classes, *applications,
        *policies, *recoveries, *checkpoints;
    struct capture *capture;
    struct placements placements;
    struct {
        pthread_mutex_t mutex;
        json_t *applications; /* {"NAMESPACE/NAME": Checkpoint} whose hooks run now */
    } held;
    struct {
        pthread_mutex_t mutex;
        json_t *messages; /* protect.c's events: {"KIND/NAMESPACE/NAME/REASON": message} */
    } told;
};

/* Whether this process may still act as the leader: asked before anything is changed, since a process that was stopped for a while
 * goes on in the middle of a step. */
bool controller_leads(const struct controller *c);
int controller_check_leads(const struct controller *c, struct error *err) MUST_CHECK; /* -ECANCELED */

/* ---- the queue; failures are logged: out of memory only ---- */
void controller_enqueue(struct controller *c, const char *namespace, const char *name, unsigned delay_ms);

/* ---- watch.c: the informers that reconciling looks at ---- */
int watch_start(struct controller *c, struct error *err) MUST_CHECK;
bool watch_is_synced(struct controller *c);

/* ---- protect.c ---- */
/* Whether an application, a ProtectedApplication that is, can have the name: annotations and labels hold more than names. */
bool protect_is_name(const char *text);
/* Of {name: wish} those that are made, or changed: those that are there (`papps`) come first, then as many as make it `most` in all. A
 * new reference, NULL when out of memory. */
json_t *protect_choose(const json_t *wanted, const json_t *papps, size_t most, size_t *ret_left_out);
int protect_reconcile(struct controller *c, const char *namespace, struct error *err) MUST_CHECK;

/* ---- application.c, volumes.c ---- */
int application_reconcile(struct controller *c, const char *namespace, const char *name,
                          struct error *err) MUST_CHECK;
/* Gives the ProtectedApplication what `manager` has to say of it in its status: fields that it said before and says no more go. The
 * status is borrowed. -ENOENT: there is no such application any more. */
int application_apply_status(struct controller *c, const char *namespace, const char *name, const char *manager, json_t *status,
                             struct error *err) MUST_CHECK;
/* *ret: [{"claim","captured","reason","message","storageClass"}]; *ret_pods: pods that mount captured claims.
 * `application`: as in capture_add. */
int volumes_of(struct controller *c, const char *namespace, const char *application, json_t **ret,
               size_t *ret_pods, struct error *err) MUST_CHECK;
/* A pod belongs to a group by itself, or by its controller: a StatefulSet of the group's name, a ReplicaSet of
 * such a Deployment. */
bool volumes_pod_belongs(const json_t *pod, const char *group);
/* Whether the persistent volume is bound to the claim. What a claim says of itself is its owner's word: anybody can
 * write the name of somebody else's volume into a claim of her own. */
bool volumes_is_bound(const json_t *volume, const json_t *claim);
/* {claim: volume handle} of its claims that are bound to volumes of ours. */
int volumes_handles(struct controller *c, const char *namespace, const char *application, json_t **ret,
                    struct error *err) MUST_CHECK;
/* Whether the object belongs to the group `application` of its namespace (NULL: all do). */
bool application_has(const json_t *object, const char *application);
/* The group that a ProtectedApplication selects; NULL: its whole namespace. Borrowed. */
const char *application_group(const json_t *papp);

/* ---- capture.c ---- */
int capture_start(struct controller *c, struct capture **ret, struct error *err) MUST_CHECK;
void capture_free(struct capture *capture);
/* Journals the application's objects from now on. `application`: NULL for the whole namespace, else the value
 * of tidemark.io/application. Blocks while the objects that are there are listed; 0 when it is captured
 * already. */
int capture_add(struct capture *capture, const char *namespace, const char *name, const char *application,
                struct error *err) MUST_CHECK;
void capture_remove(struct capture *capture, const char *namespace, const char *name);
/* How many objects the application's status tells of, which its watch leaves out: noted once it is written. One that is not captured
 * has nothing to tell. */
bool capture_has_told(struct capture *capture, const char *namespace, const char *name, size_t objects);
void capture_tell(struct capture *capture, const char *namespace, const char *name, size_t objects);
/* Whether objects of this one's kind are journaled, and it is none of those that cannot be: what is not, cannot be told from what
 * came later, and would be gone for good. -EAGAIN: they are being listed. */
int capture_journals(struct capture *capture, const json_t *object, bool *ret, struct error *err) MUST_CHECK;
int capture_update_kinds(struct capture *capture, struct error *err) MUST_CHECK;
/* Puts before the findings those objects of the application that cannot be journaled, *ret_count of them: too large, or nested too
 * deeply. `group` as in capture_add. */
int capture_left_out(struct capture *capture, const char *namespace, const char *group, json_t *findings, size_t *ret_count,
                     struct error *err) MUST_CHECK;

/* ---- recovery_reconcile.c ---- */
/* Carries a Recovery as far as it goes; its key is RECOVERY_KEY "NAMESPACE/NAME". */
#define RECOVERY_KEY "@"
int recovery_reconcile(struct controller *c, const char *namespace, const char *name, struct error *err) MUST_CHECK;

/* ---- streams.c ---- */
#define STREAMS_KEY "#streams"
#define STREAMS_SOON_MS 1000u
/* What the nodes say of all streams goes into the status of their applications; what is left of deleted volumes is removed
 * when its time is over. Enqueues itself. */
int streams_reconcile(struct controller *c, struct error *err) MUST_CHECK;
/* What is known of the volume with that handle: {"stream", "node"}; NULL: nothing. A new reference. */
json_t *streams_placement(struct controller *c, const char *handle);
/* Why nothing of the stream is journaled, as its node said last: a new reference, NULL: it is, or that is not known. */
json_t *streams_suspended(struct controller *c, const char *stream);

/* ---- checkpoint_kube.c ---- */
#define CHECKPOINT_KEY "%"
int checkpoint_reconcile(struct controller *c, const char *namespace, const char *name, struct error *err) MUST_CHECK;

/* ---- schedule_kube.c ---- */
#define SCHEDULE_KEY "+"
#define SCHEDULE_CONDITION "Checkpoints"
/* What is due is made, what was kept long enough is deleted. Enqueues itself for the next time that counts. */
int schedule_reconcile(struct controller *c, const char *namespace, const char *name, struct error *err) MUST_CHECK;
/* `name` NULL: those of all applications of the namespace. */
void schedule_enqueue(struct controller *c, const char *namespace, const char *name, unsigned delay_ms);

/* ---- events.c ---- */
/* An Event about the object; failures are logged. `type`: "Normal" or "Warning". */
void event_record(struct controller *c, const json_t *object, const char *type, const char *reason,
                  const char *message);

#endif
