/* SPDX-License-Identifier: Apache-2.0 */
/* JSON over jansson: parsing with a position in the error, and strict readers for configuration and requests.
 *
 * jansson's own types and functions (json_t, json_pack, json_object_set_new ...) are used directly for
 * building. Integers are signed 64 bits there: LSNs, sizes and offsets are u64 here and fit up to 2^63-1 (no
 * stream and no volume gets there); json_u64() builds them and the readers refuse negative ones.
 *
 * Threads: a tree belongs to one thread at a time. Nothing blocks. */
#ifndef TIDEMARK_LIB_JSON_H
#define TIDEMARK_LIB_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define JSON_TEXT_LIMIT_BYTES (64u << 20) /* largest text that json_parse takes */
/* The deepest nesting. jansson parses, copies, writes and frees by recursion, about 300 bytes of stack a level, and takes 2048 itself:
 * more than a thread of the HTTP server has. */
#define JSON_DEPTH_MAX 256u

static inline void cleanup_json(json_t **j)
{
    json_decref(*j);
}
/* An owned local reference, released at the end of its block. */
#define _cleanup_json_ __attribute__((cleanup(cleanup_json), unused))

/* Parses one JSON value (any kind; duplicate keys, trailing text and what is nested deeper than JSON_DEPTH_MAX are refused).
 * `name` is what the message calls the text: "<name>:<line>:<column>: ...". -EINVAL. The caller owns *ret_json. */
int json_parse(const char *name, const char *text, size_t length_bytes, json_t **ret_json,
               struct error *err) MUST_CHECK;
/* The same for what other programs wrote, which cannot be told to write otherwise: NUL may be in strings (json_string_length
 * knows of it, C's functions see what is before it), of duplicate keys the last one counts, and integers that do not fit become
 * reals, as Go makes them. */
int json_parse_foreign(const char *name, const char *text, size_t length_bytes, json_t **ret_json,
                       struct error *err) MUST_CHECK;
/* The same for a text of which one part must not keep the others out: what is nested deeper than JSON_DEPTH_MAX is 0 in it. */
int json_parse_foreign_cut(const char *name, const char *text, size_t length_bytes, json_t **ret_json,
                           struct error *err) MUST_CHECK;
/* Reads and parses the file `path`. -errno of the read, -EINVAL. */
int json_parse_file(const char *path, json_t **ret_json, struct error *err) MUST_CHECK;

/* The field `key` of `object` with the named type. -EINVAL with a message that names the field when `object`
 * is not an object, the field is missing or null, or has another type. Strings, objects and arrays are
 * borrowed from `object`. */
int json_get_string(const json_t *object, const char *key, const char **ret_text,
                    struct error *err) MUST_CHECK;
int json_get_u64(const json_t *object, const char *key, uint64_t *ret_value, struct error *err) MUST_CHECK;
int json_get_bool(const json_t *object, const char *key, bool *ret_value, struct error *err) MUST_CHECK;
int json_get_object(const json_t *object, const char *key, json_t **ret_object, struct error *err) MUST_CHECK;
int json_get_array(const json_t *object, const char *key, json_t **ret_array, struct error *err) MUST_CHECK;

/* The same for optional fields: missing or null leaves *ret as the caller set it (the default). */
int json_get_optional_string(const json_t *object, const char *key, const char **ret_text,
                             struct error *err) MUST_CHECK;
int json_get_optional_u64(const json_t *object, const char *key, uint64_t *ret_value,
                          struct error *err) MUST_CHECK;
int json_get_optional_bool(const json_t *object, const char *key, bool *ret_value,
                           struct error *err) MUST_CHECK;
int json_get_optional_object(const json_t *object, const char *key, json_t **ret_object,
                             struct error *err) MUST_CHECK;
int json_get_optional_array(const json_t *object, const char *key, json_t **ret_array,
                            struct error *err) MUST_CHECK;

/* -EINVAL naming the first field of `object` that is not among the keys; the list ends with NULL. */
int json_reject_unknown(const json_t *object, struct error *err, ...) MUST_CHECK __attribute__((sentinel));

/* An integer; values above 2^63-1 (which do not occur) become 2^63-1. NULL when out of memory. */
json_t *json_u64(uint64_t value);
/* Compact text, keys in the order of insertion, NUL-terminated; the caller frees it. NULL when out of memory.
 */
char *json_to_text(const json_t *json);
/* The same with an indent of two and a newline at the end. */
char *json_to_pretty_text(const json_t *json);

/* The text of the field, borrowed from `object`; "" when it is missing or something else. */
const char *json_text(const json_t *object, const char *key);
/* A string of a text that may have been cut in the middle of a character, or have bytes that are no UTF-8 at all: what jansson
 * would refuse is left out, or replaced by '?'. NULL: out of memory, or no text. */
json_t *json_string_lossy(const char *text);
/* The same of a text that is put together. */
json_t *json_sprintf_lossy(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* {"error": {"code": "ENOENT", "message": "..."}} of docs/internals.md. NULL when out of memory. */
json_t *json_of_error(const struct error *error);
/* Rebuilds the error from such a body into *err; returns its code. A body of another form gives
 * `fallback_code` with `fallback_message`. */
int json_to_error(const json_t *body, int fallback_code, const char *fallback_message, struct error *err);
/* "ENOENT" for -ENOENT (or ENOENT), "EIO" for unknown ones; and back to -errno, 0 for an unknown name. */
const char *json_errno_name(int code);
int json_errno_of_name(const char *name);

#endif
