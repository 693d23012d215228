/* SPDX-License-Identifier: Apache-2.0 */
/* What the data plane is told of a ProtectionPolicy of the cluster: spec.journal, ackMode and failureMode, each field of them from the
 * policy itself or from the nearest that it extends which says it, and the history that the application wants itself, within the bounds of
 * the policy's overrides. The data plane has the defaults. No I/O. */
#ifndef TIDEMARK_CONTROLLER_STREAM_POLICY_H
#define TIDEMARK_CONTROLLER_STREAM_POLICY_H

#include <jansson.h>

#define STREAM_POLICY_CHAIN_MAX 16u

/* Gives the policy of that name (the caller's reference), NULL: there is none. */
typedef json_t *stream_policy_get(void *context, const char *name);

/* `ack_mode` ("": none) is that of the volume's class, which goes before the policy's; `history` (NULL: none) the application's
 * spec.overrides.history. The spec of a ProtectionPolicy of api/openapi.yaml; the
 * caller's reference. NULL: there is no such policy, or no memory. */
json_t *stream_policy(stream_policy_get *get, void *context, const char *name, const char *ack_mode, const char *history);

#endif
