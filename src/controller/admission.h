/* SPDX-License-Identifier: Apache-2.0 */
/* What the API server asks before it takes an object (admission.k8s.io/v1): who made a Recovery is written
 * into it, a HistoryReview is answered (controller/history.h), and what cannot work is refused with a message that says what to do.
 *
 * Invariants:
 *   A1 the annotation RECOVERY_REQUESTER_ANNOTATION of a Recovery that was let in is what the API server said
 *      about whoever made it, and stays that.
 *   A2 what cannot be looked up refuses a Recovery, and nothing else: other objects pass with a warning.
 *   A3 nothing is changed in the cluster, and an answer depends on the request and what is looked up alone.
 *
 * Threads: values, no locks; the ops block. */
#ifndef TIDEMARK_CONTROLLER_ADMISSION_H
#define TIDEMARK_CONTROLLER_ADMISSION_H

#include <jansson.h>
#include <stdbool.h>

#include "controller/history.h"
#include "kube/kube.h"

#define ADMISSION_RIGHTS_MAX 2u

struct admission_right {
    const char *namespace, *group, *resource, *verb;
};

struct admission_ops {
    int (*get)(void *context, const struct kube_resource *resource, const char *namespace, const char *name,
               json_t **ret, struct error *err); /* -ENOENT */
    int (*list)(void *context, const struct kube_resource *resource, const char *namespace,
                json_t **ret_items, struct error *err);
    /* Whether the user ({"username", "uid", "groups", "extra"}) has the right. */
    int (*may)(void *context, const json_t *user, const struct admission_right *right, bool *ret,
               struct error *err);
};
struct admission {
    const struct admission_ops *ops;
    void *context;
    const char *home;        /* Tidemark's own namespace; NULL: it is not known */
    struct history *history; /* answers HistoryReviews; NULL: nobody does */
    bool untrusted;          /* the review may be anybody's: what it says of the user is not believed */
};

enum admission_phase { ADMISSION_MUTATE, ADMISSION_VALIDATE };

/* Answers an AdmissionReview by another, *ret. -EINVAL: it is none. */
int admission_review(const struct admission *a, enum admission_phase phase, const json_t *review,
                     json_t **ret, struct error *err) MUST_CHECK;

/* The rights that whoever asks for the Recovery needs besides those for the objects themselves, since the
 * history is read, and volumes are put back, with the controller's own: whoever takes objects to another
 * namespace must be allowed to read Secrets where they come from, a clone's target needs the right to make claims
 * there, which volumes are made for, and a rewind of another namespace than the
 * Recovery's needs the right to make Recoveries there. Fills `ret`, whose texts are the Recovery's; returns
 * how many. */
size_t admission_rights(const json_t *recovery, struct admission_right ret[ADMISSION_RIGHTS_MAX]);
/* -EACCES with the first right that is missing. */
int admission_check_rights(const struct admission *a, const json_t *recovery, const json_t *user,
                           struct error *err) MUST_CHECK;

/* The ops over a client (context: struct kube_client). */
extern const struct admission_ops admission_kube;

#endif
