/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/stream_policy.h"

#include <stdio.h>

#include "base/units.h"
#include "lib/json.h"

static void inherit(json_t *to, const json_t *from, const char *const *keys)
{
    for (; *keys; keys++) {
        json_t *value = json_object_get(from, *keys);
        if (value && !json_object_get(to, *keys))
            json_object_set(to, *keys, value);
    }
}

static uint64_t duration_of(const json_t *object, const char *key, uint64_t otherwise_ns)
{
    const char *text = json_string_value(json_object_get(object, key));
    struct error ignored = ERROR_INIT;
    uint64_t ns;
    return text && units_parse_duration(text, &ns, &ignored) == 0 ? ns : otherwise_ns;
}

/* As admission.c checks it; what came in while that was away is not taken. */
static void override(json_t *journal, const json_t *bounds, const char *history)
{
    struct error ignored = ERROR_INIT;
    uint64_t ns;
    if (history && json_object_size(bounds) > 0 && units_parse_duration(history, &ns, &ignored) == 0 &&
        ns >= duration_of(bounds, "minHistory", 0) && ns <= duration_of(bounds, "maxHistory", UINT64_MAX))
        json_object_set_new(journal, "history", json_string(history));
}

json_t *stream_policy(stream_policy_get *get, void *context, const char *name, const char *ack_mode, const char *history)
{
    static const char *const of_journal[] = {"quota", "history", "thinning", "compressAfter", "seedRate", NULL};
    static const char *const of_spec[] = {"ackMode", "failureMode", NULL}, *const of_bounds[] = {"minHistory", "maxHistory", NULL};
    _cleanup_json_ json_t *spec = json_object(), *journal = json_object(), *bounds = json_object();
    char next[256];
    unsigned found = 0;
    if (!spec || !journal || !bounds)
        return NULL;
    if (*ack_mode)
        json_object_set_new(spec, "ackMode", json_string(ack_mode));
    snprintf(next, sizeof next, "%s", name);
    for (; found < STREAM_POLICY_CHAIN_MAX && *next; found++) {
        _cleanup_json_ json_t *policy = get(context, next);
        if (!policy)
            break;
        const json_t *said = json_object_get(policy, "spec");
        const char *extends = json_string_value(json_object_get(said, "extends"));
        inherit(spec, said, of_spec);
        inherit(journal, json_object_get(said, "journal"), of_journal);
        inherit(bounds, json_object_get(said, "overrides"), of_bounds);
        snprintf(next, sizeof next, "%s", extends ? extends : "");
    }
    if (found == 0)
        return NULL;
    override(journal, bounds, history);
    if (json_object_size(journal) > 0)
        json_object_set(spec, "journal", journal);
    return json_incref(spec);
}
