/* SPDX-License-Identifier: Apache-2.0 */
#include "app/json_patch.h"

#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"

enum kind { OP_ADD, OP_REMOVE, OP_REPLACE, OP_MOVE, OP_COPY, OP_TEST };

struct operation {
    enum kind kind;
    const char *path, *from;
    json_t *value;
    size_t number; /* for messages */
};

static int refuse(struct error *err, int code, const struct operation *op, const char *reason)
{
    return error_set(err, code, "patch operation %zu (path '%.200s'): %s", op->number,
                     op->path ? op->path : "", reason);
}

static int check_pointer(const struct operation *op, const char *pointer, struct error *err)
{
    if (strlen(pointer) >= JSON_PATCH_POINTER_BYTES)
        return refuse(err, -EFBIG, op, "the path is too long");
    if (pointer[0] && pointer[0] != '/')
        return refuse(err, -EINVAL, op, "a path is empty or begins with '/'");
    for (const char *c = strchr(pointer, '~'); c; c = strchr(c + 1, '~')) {
        if (c[1] != '0' && c[1] != '1')
            return refuse(err, -EINVAL, op, "after '~' only 0 and 1 may stand");
    }
    return 0;
}

static int read_operation(const json_t *json, size_t number, struct operation *ret, struct error *err)
{
    static const char *const names[] = {"add", "remove", "replace", "move", "copy", "test"};
    const char *name = objects_text(json, "op");
    struct operation op = {.number = number,
                           .path = json_string_value(json_object_get(json, "path")),
                           .from = json_string_value(json_object_get(json, "from")),
                           .value = json_object_get(json, "value")};
    size_t kind = 0;
    while (kind < 6 && strcmp(name, names[kind]) != 0)
        kind++;
    if (kind == 6)
        return refuse(err, -EINVAL, &op, "op must be one of add, remove, replace, move, copy, test");
    op.kind = (enum kind)kind;
    if (!op.path)
        return refuse(err, -EINVAL, &op, "path is missing");
    if ((op.kind == OP_ADD || op.kind == OP_REPLACE || op.kind == OP_TEST) && !op.value)
        return refuse(err, -EINVAL, &op, "value is missing");
    if ((op.kind == OP_MOVE || op.kind == OP_COPY) && !op.from)
        return refuse(err, -EINVAL, &op, "from is missing");
    int r = check_pointer(&op, op.path, err);
    if (r == 0 && (op.kind == OP_MOVE || op.kind == OP_COPY))
        r = check_pointer(&op, op.from, err);
    *ret = op;
    return r;
}

/* The next token, unescaped. The pointer stands at its '/'. */
static void next_token(const char **pointer, char token[JSON_PATCH_POINTER_BYTES])
{
    size_t n = 0;
    for ((*pointer)++; **pointer && **pointer != '/'; (*pointer)++) {
        char c = **pointer;
        if (c == '~') {
            (*pointer)++;
            c = **pointer == '0' ? '~' : '/';
        }
        token[n++] = c;
    }
    token[n] = '\0';
}

/* An index without sign and leading zeros, or -1. */
static long index_of(const char *token)
{
    size_t digits = strspn(token, "0123456789");
    long value = 0;
    if (digits == 0 || token[digits] || digits > 9 || (digits > 1 && token[0] == '0'))
        return -1;
    for (; *token; token++)
        value = value * 10 + (*token - '0');
    return value;
}

static json_t *child(json_t *at, const char *token)
{
    long index;
    if (json_is_object(at))
        return json_object_get(at, token);
    index = index_of(token);
    return json_is_array(at) && index >= 0 ? json_array_get(at, (size_t)index) : NULL;
}

/* What stands at the pointer (NULL when nothing does), what holds it, and the last token. */
static json_t *find(json_t *root, const char *pointer, json_t **ret_parent,
                    char last[JSON_PATCH_POINTER_BYTES])
{
    json_t *at = root;
    *ret_parent = NULL;
    last[0] = '\0';
    while (*pointer) {
        if (!at) {
            *ret_parent = NULL;
            return NULL;
        }
        *ret_parent = at;
        next_token(&pointer, last);
        at = child(at, last);
    }
    return at;
}

/* `value` is borrowed. */
static int put(json_t **root, const struct operation *op, json_t *value, bool replace, struct error *err)
{
    char last[JSON_PATCH_POINTER_BYTES];
    json_t *parent, *there = find(*root, op->path, &parent, last);
    if (!op->path[0]) {
        json_incref(value);
        json_decref(*root);
        *root = value;
        return 0;
    }
    if (!parent)
        return refuse(err, -ENOENT, op, "what should hold it is not there");
    if (replace && !there)
        return refuse(err, -ENOENT, op, "there is nothing to replace");
    int r;
    if (json_is_object(parent)) {
        r = json_object_set(parent, last, value);
    } else if (json_is_array(parent)) {
        size_t size = json_array_size(parent);
        long index = strcmp(last, "-") == 0 && !replace ? (long)size : index_of(last);
        if (index < 0 || (size_t)index > size)
            return refuse(err, -ENOENT, op, "the list has no such place");
        r = replace ? json_array_set(parent, (size_t)index, value)
                    : json_array_insert(parent, (size_t)index, value);
    } else {
        return refuse(err, -ENOENT, op, "what should hold it is neither an object nor a list");
    }
    return r < 0 ? objects_no_memory(err) : 0;
}

static int take_out(json_t *root, const struct operation *op, const char *pointer, struct error *err)
{
    char last[JSON_PATCH_POINTER_BYTES];
    json_t *parent, *there = find(root, pointer, &parent, last);
    if (!pointer[0])
        return refuse(err, -EINVAL, op, "the whole document cannot be taken out");
    if (!there)
        return refuse(err, -ENOENT, op, "there is nothing at the path");
    int r = json_is_object(parent) ? json_object_del(parent, last)
                                   : json_array_remove(parent, (size_t)index_of(last));
    return r < 0 ? refuse(err, -ENOENT, op, "there is nothing at the path") : 0;
}

static int move_or_copy(json_t **root, const struct operation *op, struct error *err)
{
    char last[JSON_PATCH_POINTER_BYTES];
    json_t *parent, *there = find(*root, op->from, &parent, last);
    size_t length = strlen(op->from);
    if (!there)
        return refuse(err, -ENOENT, op, "there is nothing at 'from'");
    if (op->kind == OP_MOVE && strncmp(op->path, op->from, length) == 0 && op->path[length] == '/')
        return refuse(err, -EINVAL, op, "a value cannot be moved into itself");
    if (op->kind == OP_MOVE && strcmp(op->path, op->from) == 0)
        return 0;
    _cleanup_json_ json_t *value = op->kind == OP_MOVE ? json_incref(there) : json_deep_copy(there);
    if (!value)
        return objects_no_memory(err);
    int r = op->kind == OP_MOVE && op->from[0] ? take_out(*root, op, op->from, err) : 0;
    return r == 0 ? put(root, op, value, false, err) : r;
}

/* 1 and 1.0 are the same number. */
static bool equal(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b) && json_typeof(a) != json_typeof(b))
        return json_number_value(a) == json_number_value(b);
    if (json_is_array(a) && json_is_array(b)) {
        bool same = json_array_size(a) == json_array_size(b);
        for (size_t i = 0; same && i < json_array_size(a); i++)
            same = equal(json_array_get(a, i), json_array_get(b, i));
        return same;
    }
    if (json_is_object(a) && json_is_object(b)) {
        bool same = json_object_size(a) == json_object_size(b);
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)(uintptr_t)a, key, value)
        {
            const json_t *other = json_object_get(b, key);
            same = same && other && equal(value, other);
        }
        return same;
    }
    return json_equal(a, b);
}

static int perform(json_t **root, const struct operation *op, struct error *err)
{
    char last[JSON_PATCH_POINTER_BYTES];
    json_t *parent;
    const json_t *there;
    _cleanup_json_ json_t *value = NULL;
    switch (op->kind) {
    case OP_ADD:
    case OP_REPLACE:
        value = json_deep_copy(op->value); /* later operations must not change the patch */
        return value ? put(root, op, value, op->kind == OP_REPLACE, err) : objects_no_memory(err);
    case OP_REMOVE:
        return take_out(*root, op, op->path, err);
    case OP_MOVE:
    case OP_COPY:
        return move_or_copy(root, op, err);
    case OP_TEST:
        there = find(*root, op->path, &parent, last);
        if (!there)
            return refuse(err, -ENOENT, op, "there is nothing to test");
        return equal(there, op->value) ? 0
                                       : refuse(err, -EBADMSG, op, "the test failed: there is another value");
    }
    return refuse(err, -EINVAL, op, "unknown operation");
}

int json_patch_check(const json_t *operations, struct error *err)
{
    size_t i;
    json_t *json;
    if (!json_is_array(operations))
        return error_set(err, -EINVAL, "a patch is a list of operations");
    if (json_array_size(operations) > JSON_PATCH_OPERATIONS_MAX)
        return error_set(err, -EFBIG, "a patch has at most %u operations", JSON_PATCH_OPERATIONS_MAX);
    json_array_foreach(operations, i, json)
    {
        struct operation op;
        int r = read_operation(json, i, &op, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int json_patch_apply(const json_t *document, const json_t *operations, json_t **ret, struct error *err)
{
    int r = json_patch_check(operations, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *root = json_deep_copy(document);
    size_t i, limit = json_dumpb(document, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY) + JSON_PATCH_GROWTH_BYTES;
    json_t *json;
    if (!root)
        return objects_no_memory(err);
    json_array_foreach(operations, i, json)
    {
        struct operation op;
        r = read_operation(json, i, &op, err);
        if (r == 0)
            r = perform(&root, &op, err);
        /* What is nested too deeply cannot be walked; copies of copies double. */
        if (r == 0 && objects_too_deep(root, 0))
            r = refuse(err, -EFBIG, &op, "the document is nested too deeply");
        if (r == 0 && op.kind == OP_COPY && json_dumpb(root, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY) > limit)
            r = refuse(err, -EFBIG, &op, "the document grows too large");
        if (r < 0)
            return r;
    }
    *ret = take_ptr(root);
    return 0;
}
