/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROLLER_RECOVERY_STREAMS_H
#define TIDEMARK_CONTROLLER_RECOVERY_STREAMS_H

#include "controller/recovery.h"
#include "csi/records.h"

/* Volumes over the node agents. The context is struct controller, with `data` set. */
extern const struct data_ops recovery_streams_ops;

/* What became of a node's rewind of the stream ("rewind" of its endpoint, docs/csi.md): 0 done, *ret as data_ops.rewind gives it; -EAGAIN under way: what it waits for. */
int recovery_judge_rewind(const json_t *stream, const json_t *rewind, json_t **ret, struct error *err) MUST_CHECK;

/* ---- shared with recovery_copies.c, which has the clone's part of the ops ---- */
/* {name: claim} of the claims in a set of objects. */
json_t *recovery_claims_of_set(const json_t *set);
/* The persistent volume `name` of `v`, for the claim `claim_name` that is as `claim`; NULL when out of memory. `policy`:
 * the reclaim policy, NULL: the class's. */
json_t *recovery_volume_object(const char *name, const char *namespace, const char *claim_name, const json_t *claim,
                               const struct csi_volume *v, const json_t *class, const char *policy);
int recovery_originals(void *context, const char *owner, const char *namespace, const char *application, const json_t *wanted,
                       json_t **ret, struct error *err) MUST_CHECK;
int recovery_plan_copy(void *context, const json_t *stream, const char *point, json_t **ret, struct error *err) MUST_CHECK;
int recovery_copy(void *context, json_t *stream, const char *owner, json_t **ret, struct error *err) MUST_CHECK;
int recovery_filling(void *context, const json_t *stream, json_t **ret, struct error *err) MUST_CHECK;
int recovery_bind_copy(void *context, const json_t *stream, const json_t *volume, const char *source_namespace,
                       const char *namespace, const json_t *claim, struct error *err) MUST_CHECK;

#endif
