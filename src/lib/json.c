/* SPDX-License-Identifier: Apache-2.0 */
/* Strict JSON readers. Invariant L1: outputs are untouched unless 0 is returned. */
#include "lib/json.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"

static int check_length(const char *name, size_t length_bytes, struct error *err)
{
    return length_bytes > JSON_TEXT_LIMIT_BYTES
               ? error_set(err, -EINVAL, "%s: JSON text of %zu bytes is larger than %u bytes", name, length_bytes,
                           JSON_TEXT_LIMIT_BYTES)
               : 0;
}

static int parse_failed(const char *name, const json_error_t *at, struct error *err)
{
    if (json_error_code(at) == json_error_out_of_memory)
        return error_errno(err, -ENOMEM, "cannot parse %s", name);
    return error_set(err, -EINVAL, "%s:%d:%d: not valid JSON: %s", name, at->line < 1 ? 1 : at->line,
                     at->column < 1 ? 1 : at->column, at->text);
}

/* Before it is parsed. Brackets in texts do not count. */
static int check_depth(const char *name, const char *text, size_t length_bytes, struct error *err)
{
    unsigned depth = 0, line = 1;
    bool in_text = false;
    for (size_t i = 0; i < length_bytes; i++) {
        char c = text[i];
        if (in_text && c == '\\') {
            i++;
        } else if (c == '"') {
            in_text = !in_text;
        } else if (c == '\n') {
            line++;
        } else if (!in_text && (c == ']' || c == '}')) {
            depth -= depth > 0;
        } else if (!in_text && (c == '[' || c == '{') && ++depth > JSON_DEPTH_MAX) {
            return error_set(err, -EINVAL, "%s:%u:1: JSON nested more than %u deep is not taken", name, line, JSON_DEPTH_MAX);
        }
    }
    return 0;
}

static int check_text(const char *name, const char *text, size_t length_bytes, struct error *err)
{
    int r = check_length(name, length_bytes, err);
    return r < 0 ? r : check_depth(name, text, length_bytes, err);
}

int json_parse(const char *name, const char *text, size_t length_bytes, json_t **ret_json, struct error *err)
{
    json_error_t at;
    int r = check_text(name, text, length_bytes, err);
    if (r < 0)
        return r;
    json_t *json = json_loadb(text, length_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &at);
    if (!json)
        return parse_failed(name, &at, err);
    *ret_json = json;
    return 0;
}

#define INT64_DIGITS 19u /* of the largest */

/* Whether the digits are more than an int64_t holds. */
static bool overflows(const char *digits, size_t count, bool negative)
{
    static const char largest[] = "9223372036854775807", smallest[] = "9223372036854775808";
    return count > INT64_DIGITS ||
           (count == INT64_DIGITS && memcmp(digits, negative ? smallest : largest, INT64_DIGITS) > 0);
}

/* A copy of the text with ".0" after each integer that overflows. NULL: out of memory. */
static char *integers_as_reals(const char *text, size_t length, size_t *ret_length)
{
    /* Two bytes more for each of at least 19. */
    char *copy = malloc(length + length / INT64_DIGITS * 2 + 3), *to = copy;
    bool quoted = false;
    if (!copy)
        return NULL;
    for (size_t i = 0; i < length;) {
        size_t end = i + 1;
        bool number = !quoted && (text[i] == '-' || (text[i] >= '0' && text[i] <= '9')), whole = number;
        if (quoted && text[i] == '\\' && end < length)
            end++;
        else if (text[i] == '"')
            quoted = !quoted;
        for (; number && end < length && strchr("0123456789+-.eE", text[end]) && text[end]; end++)
            whole = whole && text[end] >= '0' && text[end] <= '9';
        memcpy(to, text + i, end - i);
        to += end - i;
        size_t digits = i + (text[i] == '-');
        if (whole && overflows(text + digits, end - digits, text[i] == '-')) {
            memcpy(to, ".0", 2);
            to += 2;
        }
        i = end;
    }
    *ret_length = (size_t)(to - copy);
    return copy;
}

static int parse_foreign(const char *name, const char *text, size_t length_bytes, json_t **ret_json, struct error *err)
{
    const size_t flags = JSON_DECODE_ANY | JSON_ALLOW_NUL;
    json_error_t at;
    json_t *json = json_loadb(text, length_bytes, flags, &at);
    if (!json && json_error_code(&at) == json_error_numeric_overflow) {
        size_t length;
        char *copy = integers_as_reals(text, length_bytes, &length);
        if (!copy)
            return error_errno(err, -ENOMEM, "cannot parse %s", name);
        json = json_loadb(copy, length, flags, &at);
        explicit_bzero(copy, length); /* it may be a Secret */
        free(copy);
    }
    if (!json)
        return parse_failed(name, &at, err);
    *ret_json = json;
    return 0;
}

int json_parse_foreign(const char *name, const char *text, size_t length_bytes, json_t **ret_json,
                       struct error *err)
{
    int r = check_text(name, text, length_bytes, err);
    return r < 0 ? r : parse_foreign(name, text, length_bytes, ret_json, err);
}

/* A copy of the text with 0 for each array and object below JSON_DEPTH_MAX of them. NULL: out of memory. */
static char *cut_deep(const char *text, size_t length, size_t *ret_length)
{
    char *copy = malloc(length + 1), *to = copy;
    unsigned depth = 0;
    bool quoted = false;
    if (!copy)
        return NULL;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        bool opens = !quoted && (c == '[' || c == '{'), closes = !quoted && (c == ']' || c == '}'), kept = depth <= JSON_DEPTH_MAX;
        if (c == '"')
            quoted = !quoted;
        if (opens && ++depth == JSON_DEPTH_MAX + 1)
            *to++ = '0'; /* no longer than what it stands for */
        if (kept && depth <= JSON_DEPTH_MAX)
            *to++ = c;
        depth -= closes && depth > 0;
        if (quoted && c == '\\' && i + 1 < length) {
            i++;
            if (depth <= JSON_DEPTH_MAX)
                *to++ = text[i];
        }
    }
    *ret_length = (size_t)(to - copy);
    return copy;
}

int json_parse_foreign_cut(const char *name, const char *text, size_t length_bytes, json_t **ret_json,
                           struct error *err)
{
    struct error deep = ERROR_INIT;
    size_t length;
    int r = check_length(name, length_bytes, err);
    if (r < 0 || check_depth(name, text, length_bytes, &deep) == 0)
        return r < 0 ? r : parse_foreign(name, text, length_bytes, ret_json, err);
    char *copy = cut_deep(text, length_bytes, &length);
    if (!copy)
        return error_errno(err, -ENOMEM, "cannot parse %s", name);
    r = parse_foreign(name, copy, length, ret_json, err);
    explicit_bzero(copy, length); /* it may be a Secret */
    free(copy);
    return r;
}

int json_parse_file(const char *path, json_t **ret_json, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length_bytes;
    int r = io_read_file(path, JSON_TEXT_LIMIT_BYTES, &text, &length_bytes, err);
    if (r < 0)
        return r;
    return json_parse(path, text, length_bytes, ret_json, err);
}

static const char *type_name(const json_t *json)
{
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

/* The field, NULL in *ret_field when it is missing or null and `required` is not set. */
static int find(const json_t *object, const char *key, bool required, json_t **ret_field, struct error *err)
{
    if (!json_is_object(object))
        return error_set(err, -EINVAL, "field '%s': expected an object around it, found %s", key,
                         object ? type_name(object) : "nothing");
    json_t *field = json_object_get(object, key);
    if (json_is_null(field))
        field = NULL;
    if (!field && required)
        return error_set(err, -EINVAL, "field '%s' is missing", key);
    *ret_field = field;
    return 0;
}

static int wrong_type(const char *key, const char *expected, const json_t *field, struct error *err)
{
    return error_set(err, -EINVAL, "field '%s': expected %s, found %s", key, expected, type_name(field));
}

static int get_string(const json_t *object, const char *key, bool required, const char **ret_text,
                      struct error *err)
{
    json_t *field;
    int r = find(object, key, required, &field, err);
    if (r < 0 || !field)
        return r;
    if (!json_is_string(field))
        return wrong_type(key, "a string", field, err);
    *ret_text = json_string_value(field);
    return 0;
}

static int get_u64(const json_t *object, const char *key, bool required, uint64_t *ret_value,
                   struct error *err)
{
    json_t *field;
    int r = find(object, key, required, &field, err);
    if (r < 0 || !field)
        return r;
    if (!json_is_integer(field))
        return wrong_type(key, "a non-negative integer", field, err);
    json_int_t value = json_integer_value(field);
    if (value < 0)
        return error_set(err, -EINVAL, "field '%s': expected a non-negative integer, found %lld", key,
                         (long long)value);
    *ret_value = (uint64_t)value;
    return 0;
}

static int get_bool(const json_t *object, const char *key, bool required, bool *ret_value, struct error *err)
{
    json_t *field;
    int r = find(object, key, required, &field, err);
    if (r < 0 || !field)
        return r;
    if (!json_is_boolean(field))
        return wrong_type(key, "true or false", field, err);
    *ret_value = json_is_true(field);
    return 0;
}

static int get_container(const json_t *object, const char *key, bool required, json_type type,
                         json_t **ret_json, struct error *err)
{
    json_t *field;
    int r = find(object, key, required, &field, err);
    if (r < 0 || !field)
        return r;
    if (json_typeof(field) != type)
        return wrong_type(key, type == JSON_OBJECT ? "an object" : "an array", field, err);
    *ret_json = field;
    return 0;
}

int json_get_string(const json_t *object, const char *key, const char **ret_text, struct error *err)
{
    return get_string(object, key, true, ret_text, err);
}
int json_get_u64(const json_t *object, const char *key, uint64_t *ret_value, struct error *err)
{
    return get_u64(object, key, true, ret_value, err);
}
int json_get_bool(const json_t *object, const char *key, bool *ret_value, struct error *err)
{
    return get_bool(object, key, true, ret_value, err);
}
int json_get_object(const json_t *object, const char *key, json_t **ret_object, struct error *err)
{
    return get_container(object, key, true, JSON_OBJECT, ret_object, err);
}
int json_get_array(const json_t *object, const char *key, json_t **ret_array, struct error *err)
{
    return get_container(object, key, true, JSON_ARRAY, ret_array, err);
}
int json_get_optional_string(const json_t *object, const char *key, const char **ret_text, struct error *err)
{
    return get_string(object, key, false, ret_text, err);
}
int json_get_optional_u64(const json_t *object, const char *key, uint64_t *ret_value, struct error *err)
{
    return get_u64(object, key, false, ret_value, err);
}
int json_get_optional_bool(const json_t *object, const char *key, bool *ret_value, struct error *err)
{
    return get_bool(object, key, false, ret_value, err);
}
int json_get_optional_object(const json_t *object, const char *key, json_t **ret_object, struct error *err)
{
    return get_container(object, key, false, JSON_OBJECT, ret_object, err);
}
int json_get_optional_array(const json_t *object, const char *key, json_t **ret_array, struct error *err)
{
    return get_container(object, key, false, JSON_ARRAY, ret_array, err);
}

static bool is_known(const char *key, va_list keys)
{
    for (;;) {
        const char *known = va_arg(keys, const char *);
        if (!known)
            return false;
        if (strcmp(known, key) == 0)
            return true;
    }
}

int json_reject_unknown(const json_t *object, struct error *err, ...)
{
    const char *key;
    json_t *value;
    if (!json_is_object(object))
        return error_set(err, -EINVAL, "expected an object, found %s",
                         object ? type_name(object) : "nothing");
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        va_list keys;
        va_start(keys, err);
        bool known = is_known(key, keys);
        va_end(keys);
        if (!known)
            return error_set(err, -EINVAL, "unknown field '%.100s'", key);
    }
    return 0;
}

json_t *json_u64(uint64_t value)
{
    return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

char *json_to_text(const json_t *json)
{
    return json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY);
}

char *json_to_pretty_text(const json_t *json)
{
    _cleanup_free_ char *text = json_dumps(json, JSON_INDENT(2) | JSON_ENCODE_ANY);
    char *with_newline;
    if (!text || asprintf(&with_newline, "%s\n", text) < 0)
        return NULL;
    return with_newline;
}

const char *json_errno_name(int code)
{
    const char *name = strerrorname_np(code < 0 ? -code : code);
    return name && code ? name : "EIO";
}

int json_errno_of_name(const char *name)
{
    for (int code = 1; code < 134; code++) {
        const char *known = strerrorname_np(code);
        if (known && strcmp(known, name) == 0)
            return -code;
    }
    return 0;
}

const char *json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

json_t *json_string_lossy(const char *text)
{
    json_t *string = json_string(text);
    size_t length = text ? strlen(text) : 0;
    if (string || !length)
        return string;
    _cleanup_free_ char *copy = strdup(text);
    if (!copy)
        return NULL;
    /* Mostly a character that was cut in the middle. */
    while (length > 1 && ((unsigned char)copy[length - 1] & 0xc0) == 0x80)
        length--;
    copy[length - 1] = '\0';
    if ((string = json_string(copy)))
        return string;
    memcpy(copy, text, strlen(text) + 1);
    for (char *c = copy; *c; c++)
        *c = (unsigned char)*c < 0x80 ? *c : '?';
    return json_string(copy);
}

json_t *json_sprintf_lossy(const char *format, ...)
{
    _cleanup_free_ char *text = NULL;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&text, format, args);
    va_end(args);
    if (n < 0)
        text = NULL;
    return json_string_lossy(text);
}

json_t *json_of_error(const struct error *error)
{
    /* A message may hold bytes of a file name that are not UTF-8. */
    _cleanup_json_ json_t *message = json_string_lossy(error->message);
    if (!message)
        return NULL;
    return json_pack("{s:{s:s, s:O}}", "error", "code", json_errno_name(error->code), "message", message);
}

int json_to_error(const json_t *body, int fallback_code, const char *fallback_message, struct error *err)
{
    const json_t *error = json_object_get(body, "error");
    const char *code_name = json_string_value(json_object_get(error, "code"));
    const char *message = json_string_value(json_object_get(error, "message"));
    int code = code_name ? json_errno_of_name(code_name) : 0;
    return error_set(err, code ? code : fallback_code, "%s", message ? message : fallback_message);
}
