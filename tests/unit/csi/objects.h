/* SPDX-License-Identifier: Apache-2.0 */
/* Kubernetes objects that are looked at. */
#ifndef TIDEMARK_TESTS_CSI_OBJECTS_H
#define TIDEMARK_TESTS_CSI_OBJECTS_H

#include <jansson.h>

#include "check.h"

static inline json_t *parse(const char *text)
{
    json_error_t error;
    json_t *json = json_loads(text, 0, &error);
    if (!json)
        fail_msg("%s: %s", error.text, text);
    return json;
}

/* What `text` says is in `whole`, whatever else is. */
static inline void has(const json_t *whole, const char *text)
{
    json_t *wanted = parse(text), *merged = json_deep_copy(whole);
    json_object_update_recursive(merged, wanted);
    if (!json_equal(merged, (json_t *)(uintptr_t)whole))
        fail_msg("%s lacks %s", json_dumps(whole, 0), text);
    json_decref(merged);
    json_decref(wanted);
}

#endif
