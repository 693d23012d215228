/* SPDX-License-Identifier: Apache-2.0 */
/* What has to be done to an object of a recovery point before it can be put into a cluster, and what can be
 * done with the one that is there.
 *
 * An object that exists is put back by replacing it with restore_merge's result, not by server-side apply:
 * apply leaves what others added after the point (docs/adr). restore_merge takes over what the API server and
 * controllers put in.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_RESTORE_H
#define TIDEMARK_APP_RESTORE_H

#include <jansson.h>
#include <stdbool.h>

#include "app/objects.h"

#define RESTORE_REASON_BYTES 256

enum restore_mode {
    RESTORE_REWIND,  /* in place */
    RESTORE_CLONE,   /* beside the original: nothing of the cluster may be taken from it */
    RESTORE_RESTORE, /* the original is gone, or in another cluster */
};
const char *restore_mode_name(enum restore_mode mode);
/* -EINVAL for another text. */
int restore_mode_parse(const char *text, enum restore_mode *ret, struct error *err) MUST_CHECK;

enum verdict {
    VERDICT_CREATED,
    VERDICT_CHANGED,
    VERDICT_SAME,
    VERDICT_DELETED,
    VERDICT_SKIPPED,
    VERDICT_FAILED
};
#define VERDICTS 6
const char *verdict_name(enum verdict verdict);

/* The object as it is to be created. NULL in *ret: it is not to be created, and `reason` says why. `exists`:
 * one of the same name is there (then less is taken away, since it is merged). */
int restore_prepare(const json_t *normalized, enum restore_mode mode, bool exists, json_t **ret,
                    char reason[RESTORE_REASON_BYTES], struct error *err) MUST_CHECK;

/* A claim that is there stays bound to what it is bound to: its volume may have been exchanged (adopted,
 * released) since the point; and as large as it is: a volume that has grown does not shrink, and true says so.
 * Of other kinds nothing. */
bool restore_adopt_claim(json_t *wanted, const json_t *live);

/* Of a Job or a bare pod: whether it has ended. */
bool restore_has_ended(const json_t *normalized);

/* `live` (as the API server has it) changed to what `wanted` (normalized, prepared) says: fields that
 * normalizing leaves out stay as they are. The resourceVersion stays, so that a change in between is a
 * conflict. */
int restore_merge(const json_t *live, const json_t *wanted, json_t **ret, struct error *err) MUST_CHECK;

enum restore_way {
    RESTORE_UPDATE,   /* can be changed in place */
    RESTORE_RECREATE, /* a field that cannot be changed differs: delete, and create */
    RESTORE_KEEP, /* the same, but it must not be deleted (a claim has the data, a namespace everything) */
};
/* How `live` becomes `wanted` (both normalized). `field` names the immutable field of the latter two. */
enum restore_way restore_way_of(const json_t *live, const json_t *wanted, char field[RESTORE_REASON_BYTES]);
/* The propagationPolicy for deleting it when it is recreated: pods of a StatefulSet are taken over by the new
 * one. */
const char *restore_recreate_propagation(const json_t *wanted);

/* Gives each ownerReference the uid of the owner that is there now: `uid_of` returns it, or NULL when there
 * is none (the reference is dropped then, since the garbage collector would delete the object at once;
 * *ret_dropped counts). */
typedef const char *(*restore_uid_of)(void *context, const char *group, const char *kind,
                                      const char *namespace, const char *name);
int restore_owners(json_t *object, restore_uid_of uid_of, void *context, size_t *ret_dropped,
                   struct error *err) MUST_CHECK;

/* Takes out what the API server says is taken: clusterIP and nodePorts of a Service. False when there was
 * nothing to take out. */
bool restore_drop_allocated(json_t *object);

#define RESTORE_ISOLATION_NAME "tidemark-isolated"
/* A NetworkPolicy that lets the pods of a namespace speak with each other and with DNS alone. NULL when out
 * of memory. */
json_t *restore_isolation_policy(const char *namespace);

#endif
