/* SPDX-License-Identifier: Apache-2.0 */
/* YAML 1.1 over libyaml: a stream of documents as trees of nodes that know their line and column, so that
 * whoever reads a field can say where it stands.
 *
 * Refused: anchors and aliases (a file of 1 KiB could unfold to GiBs), duplicate keys, keys that are not
 * scalars, depth above YAML_DEPTH_MAX, more than YAML_NODES_MAX nodes, text above YAML_TEXT_LIMIT_BYTES, NUL
 * in a scalar. A stream is read-only once parsed and may be used by several threads. Nodes live as long as
 * their stream. */
#ifndef TIDEMARK_LIB_YAML_H
#define TIDEMARK_LIB_YAML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define YAML_DEPTH_MAX 64u
#define YAML_NODES_MAX 100000u
#define YAML_TEXT_LIMIT_BYTES (4u << 20)

enum yaml_kind { YAML_SCALAR, YAML_MAPPING, YAML_SEQUENCE };

struct yaml_pair;

struct yaml_node {
    enum yaml_kind kind;
    bool plain;              /* scalar without quotes or block: may be null, a boolean or a number */
    unsigned line;           /* of its first character, from 1 */
    unsigned column;         /* in characters, from 1 */
    const char *file;        /* the stream's name */
    const char *tag;         /* explicit tag, NULL without one */
    const char *scalar;      /* NUL-terminated UTF-8; NULL unless kind is YAML_SCALAR */
    size_t count;            /* of pairs or items */
    struct yaml_pair *pairs; /* in the file's order */
    struct yaml_node **items;
    size_t start_bytes; /* the node's text in the stream's text: [start_bytes, end_bytes) */
    size_t end_bytes;
};

struct yaml_pair {
    struct yaml_node *key; /* always a scalar */
    struct yaml_node *value;
};

struct yaml_document {
    struct yaml_node *root; /* never NULL: empty documents are left out */
    size_t start_bytes;     /* the document's text, with its comments but without the `---` line */
    size_t end_bytes;
};

struct yaml_stream {
    const char *file;
    const char *text; /* the input, copied */
    size_t length_bytes;
    size_t count;
    struct yaml_document *documents;
};

/* Parses all documents of the text. `file` is what messages call it. Errors are "<file>:<line>:<column>: ..."
 * with -EINVAL (bad or refused text), -EFBIG (limits) or -ENOMEM. Free with yaml_stream_free. */
int yaml_parse(const char *file, const char *text, size_t length_bytes, struct yaml_stream **ret_stream,
               struct error *err) MUST_CHECK;
int yaml_parse_file(const char *path, struct yaml_stream **ret_stream, struct error *err) MUST_CHECK;
/* NULL is allowed. */
void yaml_stream_free(struct yaml_stream *stream);
static inline void cleanup_yaml_stream(struct yaml_stream **stream)
{
    yaml_stream_free(*stream);
}
#define _cleanup_yaml_stream_ __attribute__((cleanup(cleanup_yaml_stream)))

/* Sets err to "<file>:<line>:<column>: <message>" for the node; returns code. */
int yaml_error(struct error *err, const struct yaml_node *node, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The value of `key`, NULL when `node` is NULL, is not a mapping or has no such key. So lookups can be
 * chained. */
const struct yaml_node *yaml_lookup(const struct yaml_node *node, const char *key);
/* The same along "metadata.name" (keys with dots: use yaml_lookup). */
const struct yaml_node *yaml_lookup_path(const struct yaml_node *node, const char *path);
/* The scalar's text, NULL when node is NULL or not a scalar. */
const char *yaml_text(const struct yaml_node *node);
/* Plain scalar that is empty, ~ or null. */
bool yaml_is_null(const struct yaml_node *node);
/* "a mapping", "a list", "a text", "null" for messages. */
const char *yaml_kind_name(const struct yaml_node *node);

/* Required fields of a mapping: -EINVAL with the position of the mapping when missing or null, of the value
 * when it has the wrong form. The results are borrowed. */
int yaml_get_string(const struct yaml_node *mapping, const char *key, const char **ret_text,
                    struct error *err) MUST_CHECK;
int yaml_get_mapping(const struct yaml_node *mapping, const char *key, const struct yaml_node **ret_node,
                     struct error *err) MUST_CHECK;
int yaml_get_sequence(const struct yaml_node *mapping, const char *key, const struct yaml_node **ret_node,
                      struct error *err) MUST_CHECK;
/* Optional: *ret is left alone when the field is missing or null. */
int yaml_get_optional_string(const struct yaml_node *mapping, const char *key, const char **ret_text,
                             struct error *err) MUST_CHECK;
int yaml_get_optional_mapping(const struct yaml_node *mapping, const char *key,
                              const struct yaml_node **ret_node, struct error *err) MUST_CHECK;
int yaml_get_optional_sequence(const struct yaml_node *mapping, const char *key,
                               const struct yaml_node **ret_node, struct error *err) MUST_CHECK;
int yaml_get_optional_bool(const struct yaml_node *mapping, const char *key, bool *ret_value,
                           struct error *err) MUST_CHECK;
int yaml_get_optional_u64(const struct yaml_node *mapping, const char *key, uint64_t *ret_value,
                          struct error *err) MUST_CHECK;
/* -EINVAL at the first key of `mapping` that is not in the list, which ends with NULL; a likely meant one is
 * named. */
int yaml_reject_unknown(const struct yaml_node *mapping, struct error *err, ...) MUST_CHECK
    __attribute__((sentinel));

#endif
