/* SPDX-License-Identifier: Apache-2.0 */
/* Which commands run where: `hooks` of a policy, the blueprints that they name, and the pods of an
 * application.
 *
 * A blueprint is a ConfigMap of the driver's namespace whose label HOOKS_BLUEPRINT_LABEL has its name:
 *   data:
 *     images: postgres postgresql    # last parts of the names of images that it knows
 *     pre: |                         # by /bin/sh in the container, before the moment is tagged
 *     post: |                        # afterwards; also when pre failed, and more than once
 * TIDEMARK_MOUNTS has the container's mount points of claims; TIDEMARK_HOLD is a file that is there as long
 * as the application is to be held.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_CONTROLLER_HOOKS_H
#define TIDEMARK_CONTROLLER_HOOKS_H

#include <jansson.h>

#include "base/error.h"

#define HOOKS_BLUEPRINT_LABEL "tidemark.io/blueprint"
#define HOOKS_TIMEOUT_MS 30000u
#define HOOKS_TIMEOUT_MAX_MS 600000u

/* Fills *ret as checkpoint_ops.targets has it, in the order of the hooks and of the pods. `policy` names it
 * in messages, `group` as in application_has. -EINVAL says what cannot be carried out. */
int hooks_targets(const char *policy, const json_t *hooks, const json_t *blueprints, const json_t *pods,
                  const char *group, json_t **ret, struct error *err) MUST_CHECK;

#endif
