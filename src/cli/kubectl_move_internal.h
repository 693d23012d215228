/* SPDX-License-Identifier: Apache-2.0 */
/* adopt and release: what their two ways, a copy (kubectl_move.c) and none (kubectl_carry.c), share. */
#ifndef TIDEMARK_CLI_KUBECTL_MOVE_INTERNAL_H
#define TIDEMARK_CLI_KUBECTL_MOVE_INTERNAL_H

#include "cli/kubectl_internal.h"
#include "csi/class.h"

#define MOVE_DRIVER "csi.tidemark.io"
/* Annotations of the volume that a claim is about to get: */
#define MOVE_MOVING "tidemark.io/moving"      /* "NAMESPACE/CLAIM" */
#define MOVE_CLAIM "tidemark.io/move-claim"   /* the claim as it is to be made again */
#define MOVE_POLICY "tidemark.io/move-policy" /* its reclaim policy once it is done */
#define MOVE_FROM "tidemark.io/moved-from"    /* the volume that the claim had */
/* Of the former volume of a claim that is adopted without a copy: the handle of the volume that is carried by it; with MOVE_POLICY */
#define MOVE_CARRIES "tidemark.io/carries"
#define MOVE_SUFFIX "-tidemark-move"
#define MOVE_NAME_BYTES 254
#define MOVE_GONE_S 120u
#define MOVE_WHY_BYTES 800

struct move_part {
    char name[MOVE_NAME_BYTES], copy[MOVE_NAME_BYTES + sizeof MOVE_SUFFIX]; /* of the claim, and of the new one beside it */
    json_t *claim;      /* NULL: it is deleted already */
    json_t *old_volume; /* with the claim */
    json_t *new_volume; /* once there is one */
    bool carry;         /* without a copy */
    char why[MOVE_WHY_BYTES]; /* why not without; "" : it is, or that was asked for */
};

struct move {
    struct kubectl *k;
    const char *verb, *class; /* of the copies */
    bool adopt, want_copy, no_copy;
    json_t *carrier; /* the StorageClass of backing class that says where journals go; NULL: none */
    char what[2 * CLI_TEXT_BYTES], namespace[MOVE_NAME_BYTES];
    struct move_part parts[CLI_OPERANDS_MAX];
    size_t count;
    struct cli_progress *progress;
};

/* ---- kubectl_move.c ---- */
/* object.a.b; "" when missing. */
const char *move_text_at(const json_t *object, const char *a, const char *b);
void move_pause(void);
struct kube_target move_target(const struct move *m, const struct kube_resource *resource, const char *namespace, const char *name);
/* `namespace` NULL: of the move. None there is no error: *ret is NULL then. */
int move_get(struct move *m, const struct kube_resource *resource, const char *namespace, const char *name, json_t **ret, struct error *err) MUST_CHECK;
/* Takes `object`. One that is there already is taken as it is. */
int move_make(struct move *m, const struct kube_resource *resource, const char *namespace, json_t *object, struct error *err) MUST_CHECK;
/* And waits until it is gone. 0 also when there was none; `uid` NULL: whichever. */
int move_delete(struct move *m, const struct kube_resource *resource, const char *namespace, const char *name, const char *uid, struct error *err) MUST_CHECK;
/* Takes `patch`. */
int move_patch_volume(struct move *m, const char *name, json_t *patch, json_t **ret, struct error *err) MUST_CHECK;
int move_image(struct move *m, char ret[512], struct error *err) MUST_CHECK;
const char *move_waits_for(const json_t *pod);
/* The claim as it is made again, bound to `volume`; `class` NULL: it keeps the one that it names. */
char *move_claim_text(const struct move_part *p, const char *volume, const char *class);
/* The claim is there, and does not have its new volume yet. */
bool move_is_to_do(const struct move_part *p);

/* ---- kubectl_carry.c: without a copy ----
 * Each step can be repeated, and is found again by what is in the cluster. */
/* Decides for each claim whether it is to be moved without a copy, as far as that is known before it is tried: carry, why, and the carrier. */
int carry_plan(struct move *m, struct error *err) MUST_CHECK;
/* Adopts up to the new volume, which is p->new_volume then. 0 with p->carry false and p->why: it cannot be, and everything is as it was. */
int carry_adopt(struct move *m, struct move_part *p, struct error *err) MUST_CHECK;
/* What carry_adopt has made is taken away again, and the former volume is as it was. */
int carry_undo(struct move *m, const struct move_part *p, struct error *err) MUST_CHECK;
/* Release: the data of all parts that are to be carried is on their former volumes, and nothing has these open any more. */
int carry_settle(struct move *m, struct error *err) MUST_CHECK;
/* The former volume becomes p->new_volume, with what is left to do written on it. */
int carry_return(struct move *m, struct move_part *p, struct error *err) MUST_CHECK;
/* What carried it, and its history, are removed; the claim has its former volume again. */
int carry_forget(struct move *m, const struct move_part *p, struct error *err) MUST_CHECK;

#endif
