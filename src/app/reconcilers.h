/* SPDX-License-Identifier: Apache-2.0 */
/* Whoever would put a newer state back after a rewind (Argo CD, Flux, ...): which of them rules an object,
 * how it is suspended and let go again, and whether what it would apply is still what was rewound away.
 *
 * What suspending took away is remembered in the annotation RECONCILER_ANNOTATION of the reconciler's own
 * object.
 *
 * Invariants:
 *   G1 resuming gives back exactly what suspending took: one that was suspended before stays so.
 *   G2 suspending twice is suspending once: the memory is that of the first.
 *
 * Threads: values, no locks. Nothing blocks, no I/O. */
#ifndef TIDEMARK_APP_RECONCILERS_H
#define TIDEMARK_APP_RECONCILERS_H

#include <jansson.h>
#include <stdbool.h>

#include "app/objects.h"

#define RECONCILER_ANNOTATION "tidemark.io/suspended" /* {"by": "NAMESPACE/RECOVERY", "was": what it was} */
#define RECONCILER_NAME_BYTES 256
#define RECONCILER_NAMESPACE_BYTES 64
#define RECONCILER_TEXT_BYTES 400

enum reconciler_way {
    RECONCILER_CANNOT, /* nothing of it can be suspended by Tidemark */
    RECONCILER_FLUX,   /* spec.suspend */
    RECONCILER_ARGO,   /* spec.syncPolicy.automated, taken out */
    RECONCILER_KEDA,   /* an annotation; until the recovery has ended */
};

struct reconciler_kind {
    const char *reconciler; /* as it is called: "Flux Kustomization" */
    enum reconciler_way way;
    const char *group, *kind; /* of its own objects; NULL: has none that counts */
    const char *versions[4];  /* newest first */
    bool reverts;             /* it puts a newer state back by itself */
    const char *remedy;
};
struct reconciler {
    const struct reconciler_kind *kind;
    char name[RECONCILER_NAME_BYTES];           /* "": not told */
    char namespace[RECONCILER_NAMESPACE_BYTES]; /* "": not told */
};

/* Who rules the object, by labels, annotations, owners, and field managers (which only raw objects have): the
 * one that counts when several left their marks. False: nobody known. `id`: the object's. */
bool reconciler_of(const json_t *object, const struct object_id *id, struct reconciler *ret);
/* Whether the object is itself one that sets replicas, whatever is put there (HorizontalPodAutoscaler, KEDA).
 */
bool reconciler_autoscaler(const struct object_id *id, struct reconciler *ret);
/* By status.reconcilers' name; NULL: not known. */
const struct reconciler_kind *reconciler_named(const char *reconciler);
/* "Flux Kustomization flux-system/apps". */
void reconciler_text(const struct reconciler *reconciler, char text[RECONCILER_TEXT_BYTES]);

/* Whether the object of a reconciler is suspended; *ret_by_us: by a recovery. */
bool reconciler_is_suspended(const struct reconciler_kind *kind, const json_t *object, bool *ret_by_us);
/* Changes the object. 0; -ENOMEM. `by`: the recovery. */
int reconciler_suspend(const struct reconciler_kind *kind, json_t *object, const char *by);
/* Takes back what reconciler_suspend did; 1: there was nothing to take back. */
int reconciler_resume(const struct reconciler_kind *kind, json_t *object);
/* What it applied last, such as "main@sha1:4be0...", or "". Borrowed. */
const char *reconciler_revision(const struct reconciler_kind *kind, const json_t *object);
/* Eight digits that change when what the object asks for does. */
void reconciler_spec_hash(const json_t *object, char text[9]);
/* Where its object says it takes things from; false: nowhere that can be asked. The versions are to be tried.
 */
bool reconciler_source(const struct reconciler_kind *kind, const json_t *object, struct object_id *ret,
                       const char *const **ret_versions);
/* Whether what it would apply when it goes on is still what was rewound away. `object` as it is now;
 * `source`: that of reconciler_source, or NULL; `revision`, `spec_hash`: as noted by the recovery. `why` says
 * what is to be done. */
bool reconciler_differs(const struct reconciler_kind *kind, const json_t *object, const json_t *source,
                        const char *revision, const char *spec_hash, char why[RECONCILER_TEXT_BYTES]);

/* Of the objects of a set: sorted, one entry a reconciler, [{"reconciler", "name", "namespace", "objects": N,
 * "reverts", "remedy"}]. */
int reconcilers_of_set(const json_t *set, json_t **ret, struct error *err) MUST_CHECK;

#endif
