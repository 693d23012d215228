/* SPDX-License-Identifier: Apache-2.0 */
#include "app/outline.h"

#include <errno.h>

#include "app/objects_internal.h"

struct outlining {
    bool config, definition; /* the object is one */
    bool bounded;            /* of somebody else's kind */
    bool cut;                /* something was left out */
    bool failed;             /* out of memory */
    size_t values;
};

static bool is_content(const struct outlining *o, const char *key, unsigned depth)
{
    if (o->config && depth == 0)
        return strcmp(key, "data") == 0 || strcmp(key, "binaryData") == 0 || strcmp(key, "stringData") == 0;
    return o->definition && strcmp(key, "schema") == 0;
}

/* Who the managers are tells who reconciles the object. */
static json_t *outline_managers(struct outlining *o, const json_t *managers)
{
    json_t *out = json_array(), *entry;
    size_t i;
    json_array_foreach(managers, i, entry)
    {
        json_t *one = json_pack("{s:s}", "manager", objects_text(entry, "manager"));
        o->failed |= !one || json_array_append_new(out, one) < 0;
    }
    o->cut = true;
    return out;
}

static json_t *outline(struct outlining *o, json_t *value, unsigned depth);

static json_t *outline_object(struct outlining *o, json_t *object, unsigned depth)
{
    json_t *out = json_object(), *value;
    const char *key;
    json_object_foreach(object, key, value)
    {
        bool managers = depth == 1 && strcmp(key, "managedFields") == 0;
        json_t *part = is_content(o, key, depth) ? NULL
                       : managers                ? outline_managers(o, value)
                                                 : outline(o, value, depth + 1);
        if (!part)
            o->cut = true;
        else
            o->failed |= json_object_set_new_nocheck(out, key, part) < 0;
    }
    o->failed |= !out;
    return out;
}

static json_t *outline_array(struct outlining *o, json_t *array, unsigned depth)
{
    json_t *out = json_array(), *value;
    size_t i;
    json_array_foreach(array, i, value)
    {
        json_t *part = outline(o, value, depth + 1);
        if (!part)
            o->cut = true;
        else
            o->failed |= json_array_append_new(out, part) < 0;
    }
    o->failed |= !out;
    return out;
}

/* NULL: it is left out. Scalars are copied: shared ones would keep the memory of the whole object in pieces.
 */
static json_t *outline(struct outlining *o, json_t *value, unsigned depth)
{
    if (o->values++ >= OUTLINE_VALUES && o->bounded)
        return NULL;
    if (json_is_object(value))
        return outline_object(o, value, depth);
    if (json_is_array(value))
        return outline_array(o, value, depth);
    bool is_long = json_is_string(value) && json_string_length(value) > OUTLINE_TEXT_BYTES;
    json_t *copy = is_long ? json_string("") : json_copy(value);
    o->cut |= is_long;
    o->failed |= !copy;
    return copy;
}

int object_outline(json_t *object, json_t **ret, struct error *err)
{
    char group[256];
    const char *api_version = objects_text(object, "apiVersion"), *kind = objects_text(object, "kind");
    object_group_of(api_version, group, sizeof group);
    struct outlining o = {.config = objects_is_config(object),
                          .definition = strcmp(kind, "CustomResourceDefinition") == 0 &&
                                        strcmp(group, "apiextensions.k8s.io") == 0};
    _cleanup_json_ json_t *out = json_object();
    const char *key;
    json_t *value;
    /* What it is called first, whatever stands before it. */
    static const char *const first[] = {"apiVersion", "kind", "metadata"};
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) {
        value = json_object_get(object, first[i]);
        json_t *part = value ? outline(&o, value, 1) : NULL;
        o.failed |= part && json_object_set_new_nocheck(out, first[i], part) < 0;
    }
    o.bounded = !object_group_is_builtin(group); /* metadata is whole: names, owners */
    o.values = 0;
    json_object_foreach(object, key, value)
    {
        json_t *part = json_object_get(out, key) || is_content(&o, key, 0) ? NULL : outline(&o, value, 1);
        o.failed |= part && json_object_set_new_nocheck(out, key, part) < 0;
        o.cut |= !json_object_get(out, key);
    }
    if (!out || o.failed)
        return objects_no_memory(err);
    *ret = o.cut ? take_ptr(out) : json_incref(object);
    return 0;
}
