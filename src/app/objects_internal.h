/* SPDX-License-Identifier: Apache-2.0 */
/* Ways through the trees of objects, for this module. A path is "spec/template/containers[]/env[]": keys
 * between slashes, [] for every element, * for every value of an object. */
#ifndef TIDEMARK_APP_OBJECTS_INTERNAL_H
#define TIDEMARK_APP_OBJECTS_INTERNAL_H

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <string.h>

#include "app/objects.h"
#include "base/cleanup.h"
#include "lib/json.h"

/* The text at the key, or "". */
static inline const char *objects_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}
/* A ConfigMap or a Secret. */
static inline bool objects_is_config(const json_t *object)
{
    char group[256];
    const char *kind = objects_text(object, "kind");
    object_group_of(objects_text(object, "apiVersion"), group, sizeof group);
    return !group[0] && (strcmp(kind, "ConfigMap") == 0 || strcmp(kind, "Secret") == 0);
}
/* What stands at a path of plain keys, or NULL. Borrowed. */
json_t *objects_at(const json_t *root, const char *path);
/* The text at such a path, or "". */
const char *objects_text_at(const json_t *root, const char *path);
/* Deletes the last key of a path of plain keys. */
void objects_delete_at(json_t *root, const char *path);
bool objects_has_prefix(const char *text, const char *prefix);
bool objects_has_suffix(const char *text, const char *suffix);

/* Calls visit with each value that the path leads to and its dotted path ("spec.containers[app]" with the
 * element's name where it has one). What visit returns other than 0 ends the walk and is returned. The
 * visited value may be changed. */
typedef int (*objects_visit)(void *context, json_t *value, const char *path);
int objects_walk(json_t *root, const char *path, objects_visit visit, void *context);

/* Calls visit with each text of the tree, and what holds it: an object and the key, or an array and the
 * index. visit may replace the text. Depth is bounded by OBJECT_DEPTH_MAX. */
struct objects_leaf {
    json_t *holder;
    const char *key; /* NULL in an array */
    size_t index;
    const char *text;
    const char *path; /* dotted */
};
typedef int (*objects_leaf_visit)(void *context, const struct objects_leaf *leaf);
int objects_leaves(json_t *root, objects_leaf_visit visit, void *context);
/* Puts a text in the place of the leaf. -ENOMEM. */
int objects_leaf_set(const struct objects_leaf *leaf, const char *text);

/* The keys of an object, sorted, as an array of texts. NULL when out of memory. */
json_t *objects_sorted_names(const json_t *object);

/* Whether it is nested deeper than OBJECT_DEPTH_MAX; `depth` 0 at the top. */
bool objects_too_deep(const json_t *at, unsigned depth);

/* The path to the pod's spec in objects of this kind ("" for a Pod), or NULL when it has none. */
const char *objects_pod_spec_path(const char *group, const char *kind);
/* The pod's spec of the object, or NULL. Borrowed. */
json_t *objects_pod_spec(const json_t *object);

/* Whether a key sounds like something that must not be shown (password, token, secret ...). */
bool objects_key_is_sensitive(const char *key);

/* The key by which all elements of both lists can be told apart (name, key, port ...), or NULL. */
const char *objects_list_key(json_t *a, json_t *b);
/* The element whose `key` has the value, or NULL. Borrowed. */
json_t *objects_list_find(json_t *list, const char *key, const json_t *value);

/* Base64 of the standard alphabet. NULL when it isn't (or out of memory); NUL-terminated. The caller frees
 * it. */
char *objects_base64_decode(const char *text, size_t *ret_length);
char *objects_base64_encode(const char *data, size_t length);

static inline int objects_no_memory(struct error *err)
{
    return error_set(err, -ENOMEM, "out of memory");
}

#endif
