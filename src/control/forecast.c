/* SPDX-License-Identifier: Apache-2.0 */
/* `apply --dry-run` of a policy: what it would do to the history of each application that refers to it. */
#include <stdlib.h>
#include <string.h>

#include "control/apply_internal.h"

static json_t *limits_json(const struct app_policy *policy)
{
    json_t *steps = json_array();
    for (size_t i = 0; i < policy->thinning_count; i++)
        json_array_append_new(steps, json_pack("{s:I, s:I}", "after_ns", (json_int_t)policy->thinning[i].after_ns, "keep_s",
                                               (json_int_t)policy->thinning[i].keep_s));
    json_t *limits = json_pack("{s:I, s:o}", "history_ns", (json_int_t)policy->history_ns, "thinning", steps);
    if (policy->quota_bytes)
        json_object_set_new(limits, "quota_bytes", json_integer((json_int_t)policy->quota_bytes));
    return limits;
}

/* References to the applications of the policy; the caller frees array and references. */
static struct application **find_users(struct control *control, const char *policy, size_t *ret_count)
{
    size_t count = 0;
    struct application **list = calloc(CONTROL_APPLICATIONS_MAX, sizeof *list);
    MUTEX_GUARD(guard, &control->mutex);
    for (struct application *a = control->applications; list && a && count < CONTROL_APPLICATIONS_MAX; a = a->next) {
        MUTEX_GUARD(inner, &a->mutex);
        if (strcmp(a->spec->policy, policy) != 0)
            continue;
        a->refs++;
        list[count++] = a;
    }
    *ret_count = count;
    return list;
}

json_t *policy_forecast(struct control *control, const struct app_policy *policy)
{
    size_t count = 0;
    json_t *effects = json_array();
    _cleanup_json_ json_t *limits = limits_json(policy);
    _cleanup_free_ struct application **users = find_users(control, policy->name, &count);
    for (size_t i = 0; i < count; i++) {
        struct error err = ERROR_INIT;
        json_t *effect = NULL;
        if (application_call(users[i], "POST", "/v1/forecast", limits, CONTROL_CALL_TIMEOUT_MS, &effect, &err) < 0)
            effect = json_pack("{s:s}", "message", err.message);
        json_object_set_new(effect, "application", json_string(users[i]->name));
        json_array_append_new(effects, effect);
        application_unref(users[i]);
    }
    return effects;
}
