/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests for the tests of objects: from files of tests/unit/app/manifests, and from texts. */
#ifndef TIDEMARK_TESTS_MANIFESTS_H
#define TIDEMARK_TESTS_MANIFESTS_H

#include "check.h"

#include <string.h>

#include "app/objects.h"
#include "base/cleanup.h"
#include "lib/json.h"
#include "lib/yaml.h"

static inline json_t *manifests_scalar(const struct yaml_node *node)
{
    char *end;
    if (!node->plain)
        return json_string(node->scalar);
    if (strcmp(node->scalar, "true") == 0 || strcmp(node->scalar, "false") == 0)
        return json_boolean(node->scalar[0] == 't');
    if (strcmp(node->scalar, "null") == 0 || !node->scalar[0])
        return json_null();
    long long number = strtoll(node->scalar, &end, 10);
    return *end ? json_string(node->scalar) : json_integer(number);
}

static inline json_t *manifests_json(const struct yaml_node *node)
{
    if (node->kind == YAML_SCALAR)
        return manifests_scalar(node);
    json_t *out = node->kind == YAML_MAPPING ? json_object() : json_array();
    for (size_t i = 0; i < node->count; i++) {
        if (node->kind == YAML_MAPPING)
            json_object_set_new(out, node->pairs[i].key->scalar, manifests_json(node->pairs[i].value));
        else
            json_array_append_new(out, manifests_json(node->items[i]));
    }
    return out;
}

/* All documents of a YAML text, as they stand there. */
static inline json_t *manifests_parse(const char *text)
{
    struct error err = ERROR_INIT;
    _cleanup_yaml_stream_ struct yaml_stream *stream = NULL;
    check_ok(yaml_parse("manifest", text, strlen(text), &stream, &err));
    json_t *all = json_array();
    for (size_t i = 0; i < stream->count; i++)
        json_array_append_new(all, manifests_json(stream->documents[i].root));
    return all;
}

static inline json_t *manifests_one(const char *text)
{
    _cleanup_json_ json_t *all = manifests_parse(text);
    assert_int_equal(json_array_size(all), 1);
    return json_incref(json_array_get(all, 0));
}

static inline json_t *manifests_file(const char *name)
{
    struct error err = ERROR_INIT;
    char path[4096];
    _cleanup_yaml_stream_ struct yaml_stream *stream = NULL;
    snprintf(path, sizeof path, "%s/%s", MANIFESTS, name);
    check_ok(yaml_parse_file(path, &stream, &err));
    json_t *all = json_array();
    for (size_t i = 0; i < stream->count; i++)
        json_array_append_new(all, manifests_json(stream->documents[i].root));
    return all;
}

/* The set of what is worth keeping. */
static inline json_t *manifests_set_of(const json_t *objects)
{
    struct error err = ERROR_INIT;
    json_t *set = json_object(), *object;
    size_t i;
    json_array_foreach(objects, i, object) check_ok(objects_add(set, object, NULL, &err));
    return set;
}

static inline json_t *manifests_set(const char *file)
{
    _cleanup_json_ json_t *all = manifests_file(file);
    return manifests_set_of(all);
}

static inline json_t *manifests_set_text(const char *text)
{
    _cleanup_json_ json_t *all = manifests_parse(text);
    return manifests_set_of(all);
}

#endif
