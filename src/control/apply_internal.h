/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROL_APPLY_INTERNAL_H
#define TIDEMARK_CONTROL_APPLY_INTERNAL_H

#include "control/control_internal.h"

enum apply_result { APPLY_CREATED, APPLY_CONFIGURED, APPLY_UNCHANGED };

/* What a change of a spec needs. */
enum change_kind {
    CHANGE_NONE,
    CHANGE_LIGHT,  /* lifecycle, manifests, policy, larger volumes: while it runs */
    CHANGE_REMOUNT /* volumes or mount points: it is stopped and started */
};
/* Compares; -EINVAL with the reason for what cannot be changed (size, removed volumes, export, fsType). */
int change_classify(const struct app_spec *old, const struct app_spec *new, enum change_kind *ret,
                    struct error *err) MUST_CHECK;
/* Whether the file or device can be adopted, and its size: -EBUSY with whoever uses it, -EINVAL with what to
 * do. */
int source_check(const char *path, uint64_t *ret_bytes, struct error *err) MUST_CHECK;
/* All volumes with a source that `old` (may be NULL) does not have yet; sizes that were left out are filled
 * in. */
int sources_check(struct control *control, struct app_spec *spec, const struct app_spec *old,
                  struct error *err) MUST_CHECK;
/* What the user should know of them, static; NULL: nothing. */
const char *source_warning(const struct app_spec *spec);

/* `ret_message`: a static string or left alone. */
int policy_apply(struct control *control, const struct app_policy *policy, bool dry_run,
                 enum apply_result *ret, const char **ret_message, struct error *err) MUST_CHECK;
/* What the policy would do to the history of each application that refers to it: [{application, ...}], or with a message. */
json_t *policy_forecast(struct control *control, const struct app_policy *policy);
/* What the disk must still be able to hold: free and needed bytes. -ENOSPC with both. */
int disk_check(const struct application *application, const struct app_spec *old, uint64_t quota_bytes,
               struct error *err) MUST_CHECK;

#endif
