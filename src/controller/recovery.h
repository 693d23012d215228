/* SPDX-License-Identifier: Apache-2.0 */
/* Recoveries: the objects of an application put to a point, in place (rewind), beside (clone) or where it is
 * gone (restore), and its volumes with them.
 *
 * States: Pending -> Planned (dry run) | Running -> Completed | Failed | Cancelled. While it runs,
 * status.step says what is being done:
 *
 *   Plan        read the objects of the point, compare, check what the target lacks; nothing is changed
 *   Suspend     (rewind only) those who would put the newer state back (app/reconcilers.h) are suspended, and stay so; when
 *               it fails before anything was changed, they are let go again
 *   CloseGate   the volumes cannot be staged (rewind with volumes only, as the next two)
 *   StopPods    pods that use the claims are deleted; those that come back wait at the gate. Those without a controller do not come back: they are
 *               noted before (R7), and made again by Apply, or when it ends before
 *   RewindData  each stream goes to the point, once nothing of it is mounted
 *   CopyData    (clone only) each stream of the original at the point is copied to a new one; where that is possible (streams[].atOnce) the
 *               new one is only made, serves the point at once, and is copied behind (recovery_filling.c), whatever becomes of the Recovery
 *   BindVolumes the volumes of claims that are gone are there again, or the copies are, each for the claim of its name
 *   Delete      objects that came after the point go (rewind only)
 *   Apply       objects, wave by wave (app/order.h)
 *   RenewPods   pods that were made meanwhile from what the workloads were before are deleted once more, when the workloads' controller has seen
 *               what they are now; not if it has not in RECOVERY_READY_MS
 *   OpenGate    volumes can be staged again
 *   Await       the workloads are awaited
 *
 * The point of the streams (status.point.streams): a time is that time in each; "-90s" counts from the
 * Recovery's creationTimestamp; lsn:N is the moment of the objects' record N; tag:NAME is that tag in each
 * stream; before:NAME is the LSN of each that the Recovery NAME noted just before it changed the stream;
 * latest leaves volumes as they are. Each becomes an LSN when it is planned (status.streams), and that is
 * what is rewound to.
 *
 * Invariants:
 *   R1  a step is in status before it is begun, and so is the plan (in ConfigMaps, or in status where those are refused) before the first object is
 *       changed: whoever goes on after a kill does what the plan says, and doing any of it twice gives the same
 *       objects and the same verdicts.
 *   R2  the point is resolved once, to an LSN; what is read again later is read at that LSN.
 *   R3  nothing is changed before every check has passed; a failed check leaves the application as it was.
 *   R4  objects are read and changed with the rights of whoever asked, never with the controller's own.
 *   R5  a gate that was closed is opened again whatever happens: when a step fails, when it is cancelled or deleted.
 *   R6  claims, namespaces and definitions are never deleted, nor are cluster-scoped objects that are there
 *       changed.
 *   R7  what is deleted to be made again is in status, as it was (sealed), before it is deleted: whoever goes on after a kill, or
 *       ends it, makes that again when what it was to become is refused. What has a verdict is not made again; what cannot be is told.
 *   R8  what it suspended is let go of before it ends; where that is refused (or a 500 does not pass in RECOVERY_END_MS), it ends all the same and says
 *       so: nobody could end it else.
 *   R9  one whose end has to wait (for R5, R7, R8) does nothing but end any more, and as it was to: the condition Ending says with what.
 *
 * Threads: recovery_advance is called by one thread a Recovery; cluster ops are called by up to
 * RECOVERY_WORKERS at once. Everything blocks. */
#ifndef TIDEMARK_CONTROLLER_RECOVERY_H
#define TIDEMARK_CONTROLLER_RECOVERY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

#define RECOVERY_WORKERS 8u
#define RECOVERY_LOOK_OBJECTS 100u /* after so many of a wave it is looked whether somebody cancelled it */
#define RECOVERY_PLAN_CHUNK 400u  /* objects of a plan in one ConfigMap: 1 MiB, with long names and reasons */
#define RECOVERY_FAILURES_MAX 20u /* in status */
#define RECOVERY_CONFLICTS_MAX 8u /* changes by others that an object's replacement is repeated after */
#define RECOVERY_GONE_MS 30000u   /* what is deleted to be made again is awaited so long */
#define RECOVERY_AWAIT_MS 120000u /* so are definitions and webhooks' endpoints */
#define RECOVERY_READY_MS 300000u /* and workloads, and before that their controller */
#define RECOVERY_END_MS 300000u   /* while it is being ended an answer 500 passes for so long; then it stands */
#define RECOVERY_TURN_MS 2000u    /* of waiting in one call: -EAGAIN then, and others have the worker */
#define RECOVERY_STREAMS_MAX 100u
#define RECOVERY_OLDER_NS (60 * NS_PER_SECOND) /* what was made so long before the point did not come after it */
#define RECOVERY_CANCEL_ANNOTATION "tidemark.io/cancel"
#define RECOVERY_RESUMED_ANNOTATION "tidemark.io/resumed" /* when: what it suspended goes on */
#define RECOVERY_FINALIZER "tidemark.io/recovery" /* while it runs: to delete it then is to cancel it */
#define RECOVERY_REQUESTER_ANNOTATION                                                                        \
    "tidemark.io/requested-by" /* {"username", "uid", "groups": [], "extra": {}} */

struct sealing;

/* What is to be held of an object while others are read: a new reference. */
typedef int (*recovery_keep)(void *context, json_t *object, json_t **ret, struct error *err);

/* Objects in the cluster, with the rights of whoever asked. Names are journal names; objects as the API
 * server has them. */
struct recovery_cluster_ops {
    /* -ENOENT: no such object, or no such kind. */
    int (*get)(void *context, const char *name, json_t **ret, struct error *err);
    int (*create)(void *context, const json_t *object, struct error *err); /* -EEXIST */
    /* Whether it would be taken: 0, and as create; nothing is made. NULL: nobody knows. */
    int (*try_create)(void *context, const json_t *object, struct error *err);
    int (*replace)(void *context, const json_t *object,
                   struct error *err); /* -EBUSY: it changed since it was read */
    /* propagation NULL: the kind's own. 0 also when it is not there any more; -EBUSY: another one has its
     * name. */
    int (*remove)(void *context, const char *name, const char *uid, const char *propagation,
                  struct error *err);
    /* Adds what `keep` (NULL: all of it) keeps of each object of the namespace to the array, noise and all.
     * What was kept may be so once more. */
    int (*list)(void *context, const char *namespace, recovery_keep keep, void *keep_context, json_t *array,
                struct error *err);
    /* The namespace's pods, noise and all. */
    int (*pods)(void *context, const char *namespace, json_t **ret, struct error *err);
    /* Whether the cluster knows the kind (asks again when it seems not to). */
    int (*knows)(void *context, const char *group, const char *version, const char *kind, bool *ret,
                 struct error *err);
    /* The version in which an object of that version can be put back, *ret: its own, or, when that is not served any more, the
     * one that the cluster makes of it by another apiVersion alone. -ENOENT: it does not know the kind; -EOPNOTSUPP: it serves
     * it in versions of another form. NULL: any version is its own. */
    int (*serves)(void *context, const char *group, const char *version, const char *kind, char **ret,
                  struct error *err);
    /* As get, of a class of the cluster (StorageClass, PriorityClass), with the controller's own rights: whether it is there is no
     * secret, and whoever rules over a namespace alone may not ask. NULL: get. */
    int (*get_class)(void *context, const char *name, json_t **ret, struct error *err);
    /* Whether whoever asked may do that (delete, update) to objects of the kind in the namespace of that one. NULL: yes. */
    int (*may)(void *context, const char *verb, const char *name, bool *ret, struct error *err);
};

/* The Recovery itself, with the controller's own rights. */
struct recovery_store_ops {
    int (*read)(void *context, const char *namespace, const char *name, json_t **ret, struct error *err);
    /* -EBUSY when it changed since `recovery` was read. */
    int (*write_status)(void *context, const json_t *recovery, json_t **ret, struct error *err);
    /* Parts of the plan, by number; owned by the Recovery. */
    int (*write_plan)(void *context, const json_t *recovery, size_t number, const char *text,
                      struct error *err);
    int (*read_plan)(void *context, const json_t *recovery, size_t number, char **ret_text,
                     struct error *err); /* -ENOENT */
};

struct recovery_point {
    uint64_t lsn, realtime_ns;
    char note[256];
};
/* `object` is borrowed. */
typedef int (*recovery_visit)(void *context, const char *name, json_t *object, struct error *err);
/* The objects as of a point, each visited (NULL: the point alone is asked for); and which of those that are
 * there now (raw, in an array) belong to the application: others are taken out. */
struct recovery_source_ops {
    int (*objects)(void *context, const char *namespace, const char *application, const char *point,
                   recovery_visit visit, void *visit_context, struct recovery_point *ret_point,
                   struct error *err);
    int (*select)(void *context, const char *namespace, const char *application, json_t *objects,
                  struct error *err);
};

/* The application's streams on their nodes. NULL: there are none. Each may be asked again after a kill. A
 * stream is what `streams` gave for it. */
struct data_ops {
    /* Those of the claims of the namespace that were there at the point (`wanted`: its objects; their history is that of the
     * namespace `source`), or of the application's that is a group: [{"stream": id, "node": name, "claims": [name], "handles": {claim: volume}, "gone": [name]}].
     * `gone`: claims that are not there any more, while their volumes' history is. A stream that is nowhere is brought to a node for
     * the Recovery `owner` ("NAMESPACE/NAME"): -EAGAIN until it is there. */
    int (*streams)(void *context, const char *owner, const char *source, const char *namespace, const char *application,
                   const json_t *wanted, json_t **ret, struct error *err);
    /* The recovery needs the stream no more: one that was brought to a node can go where pods use it. -EAGAIN until it can. What is not
     * let go of by a recovery that ends, is found later by itself. */
    int (*let_go)(void *context, const json_t *stream, struct error *err);
    /* {"target_lsn", "target_time", "changed_bytes", "volumes": [{"name": volume, "changed_bytes"}]} */
    int (*plan)(void *context, const json_t *stream, const char *point, json_t **ret, struct error *err);
    /* When it is open: *ret_rewound {"before_lsn"}, where the stream's last rewind is that of `id` and has put its volumes back (it may have been
     * seen by nobody, or have failed afterwards), else NULL. */
    int (*gate)(void *context, const json_t *stream, bool closed, const char *id, json_t **ret_rewound, struct error *err);
    /* Begins it, or looks how far it is: -EAGAIN until it is done, then {"before_lsn", "waited_ms",
     * "rewound_ms"}; the gate stays closed. `id` is the same each time this recovery asks: what was done is
     * not done again. */
    int (*rewind)(void *context, const json_t *stream, uint64_t lsn, const char *id, json_t **ret,
                  struct error *err);
    /* The volume of a claim that is gone (`claim`: as it was) waits for a claim of that name in the namespace. -EAGAIN: what
     * was there before is still going. */
    int (*bind)(void *context, const char *namespace, const json_t *claim, struct error *err);

    /* A clone's. Which streams, of the source namespace, have the volumes that the claims in `wanted` (the clone's) had at the
     * point, deleted ones too: [{"stream", "node", "claims": [name], "newStream": id, "volumes": [{"claim", "from": volume,
     * "handle": the copy's}]}]. -EOPNOTSUPP: a claim that cannot take a copy. */
    int (*originals)(void *context, const char *owner, const char *namespace, const char *application, const json_t *wanted,
                     json_t **ret, struct error *err);
    /* What would be copied: {"target_lsn", "target_time", "changed_bytes", "volumes": [{"name": volume, "changed_bytes",
     * "size_bytes"}], "at_once": whether it can be used before it is copied, "copied_first": why not}. -ENOSPC. */
    int (*plan_copy)(void *context, const json_t *stream, const char *point, json_t **ret, struct error *err);
    /* Begins the copy, or looks how far it is: -EAGAIN until it can be used, then {"copied_ms", "at_once": whether it is still being
     * copied then, "copied_first"}. `stream` as in status; with "atOnce" the copy is not waited for, where that is possible; its
     * "operation" is set and removed here. `owner`: "NAMESPACE/NAME" of the Recovery. */
    int (*copy)(void *context, json_t *stream, const char *owner, json_t **ret, struct error *err);
    /* The copy's volume waits for the claim. `claim`: as it will be, NULL: as it is in the source namespace. */
    int (*bind_copy)(void *context, const json_t *stream, const json_t *volume, const char *source_namespace,
                     const char *namespace, const json_t *claim, struct error *err);
    /* Of a copy that is used before it is copied: {"done", "done_bytes", "total_bytes", "alarm"}; without the bytes when they are not
     * known now, "alarm" when something is in its way. -ENOENT: it is not there any more. */
    int (*filling)(void *context, const json_t *stream, json_t **ret, struct error *err);
};

struct recovery_context {
    const struct recovery_cluster_ops *cluster;
    void *cluster_context;
    const struct recovery_store_ops *store;
    void *store_context;
    const struct recovery_source_ops *source;
    void *source_context;
    const struct data_ops *data; /* or NULL */
    void *data_context;
    const char *directory; /* for objects that are not looked at just now (object_shelf.h); NULL: they are in
                              memory */
    const struct sealing *sealing; /* of what is noted of objects; NULL only for recovery_abandon and recovery_follow */
    const struct log *log;
    const struct clock *clock; /* NULL: clock_system() */
    void (*pause)(void *context,
                  unsigned ms); /* between two looks at something awaited; NULL: sleeps. For tests */
    void *pause_context;
};

/* Carries the Recovery as far as it goes. 0: it has ended (its phase says how); -EAGAIN: call again later
 * (status says what it waits for); other codes: the API server cannot be reached, or somebody else carries it
 * on (-ESTALE): call again later. */
int recovery_advance(const struct recovery_context *context, const char *namespace, const char *name,
                     struct error *err) MUST_CHECK;
/* Ends one that cannot be carried on, since it is not known any more with whose rights: Failed, with that reason and message. What it did is
 * as it is, its gates are open (R5), what it suspended stays so; nothing of the cluster is called. Codes as recovery_advance. */
int recovery_abandon(const struct recovery_context *context, const char *namespace, const char *name, const char *reason, const struct error *why,
                     struct error *err) MUST_CHECK;
/* Whether the phase is one that does not change any more. */
bool recovery_has_ended(const json_t *recovery);
/* Whether it is a clone that is still being copied behind its use. */
bool recovery_is_filling(const json_t *recovery);
/* `field` (reason, message ...) of its condition; "" without. Borrowed. */
const char *recovery_condition_text(const json_t *recovery, const char *type, const char *field);
/* Of one that has ended: brings status.filling and the condition Filled up to date. *ret_goes_on: call again some time. It asks nodes, once. */
int recovery_follow(const struct recovery_context *context, const char *namespace, const char *name, bool *ret_goes_on, struct error *err) MUST_CHECK;
/* Whether it is about that application of that namespace: another's LSNs are of another journal. `own`: the namespace it lies in. */
bool recovery_is_about(const json_t *recovery, const char *own, const char *namespace, const char *application);
/* Of one that has ended, and whose reconcilers were resumed: changes its status, true when it did. */
bool recovery_note_resumed(json_t *recovery, const struct clock *clock);

#endif
