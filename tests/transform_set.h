/* SPDX-License-Identifier: Apache-2.0 */
/* A set of whole objects for transforms_apply. It gives one at a time away, and dies when an earlier one is
 * still held. */
#ifndef TIDEMARK_TESTS_TRANSFORM_SET_H
#define TIDEMARK_TESTS_TRANSFORM_SET_H

#include <errno.h>
#include <stdlib.h>

#include "app/transform.h"
#include "base/cleanup.h"
#include "lib/json.h"

struct transform_set {
    json_t *objects;
    json_t *given;
};

static inline int transform_set_get(void *context, const char *name, json_t **ret, struct error *err)
{
    struct transform_set *set = context;
    (void)err;
    if (set->given && set->given->refcount != 1)
        abort();
    json_decref(set->given);
    set->given = json_deep_copy(json_object_get(set->objects, name));
    *ret = json_incref(set->given);
    return 0;
}

static inline int transform_set_put(void *context, const char *name, json_t *object, struct error *err)
{
    struct transform_set *set = context;
    _cleanup_json_ json_t *copy = json_deep_copy(object);
    return json_object_set(set->objects, name, copy) == 0 ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* The objects by their new names; the set itself is changed, as far as it gets. */
static inline int transform_set_apply(json_t *objects, const json_t *transforms, json_t **ret,
                                      struct error *err)
{
    struct transform_set set = {objects, NULL};
    const struct transform_objects of = {objects, &set, transform_set_get, transform_set_put};
    _cleanup_json_ json_t *names = NULL;
    int r = transforms_apply(&of, transforms, &names, err);
    json_t *name;
    const char *before;
    json_decref(set.given);
    if (r < 0)
        return r;
    *ret = json_object();
    json_object_foreach(names, before, name)
        json_object_set(*ret, json_string_value(name), json_object_get(objects, before));
    return 0;
}

#endif
