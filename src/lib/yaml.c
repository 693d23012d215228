/* SPDX-License-Identifier: Apache-2.0 */
/* The tree is built from libyaml's events, so that limits act before memory is used (its own loader has
 * none).
 *
 * Y1. Nodes, texts and arrays lie in the stream's arena; freeing the stream frees them all.
 * Y2. `stack` holds the children of all open collections, one after the other; a collection takes its own off
 * the top when it ends. `open` holds the open collections with the index of their first child. Y3. Every
 * failure after yaml_parser_initialize passes through one place that frees parser, stack and arena. */
#include "lib/yaml.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/units.h"

#define ARENA_CHUNK_BYTES 16384u

struct arena_chunk {
    struct arena_chunk *next;
    size_t used_bytes;
    size_t size_bytes;
    _Alignas(16) char data[];
};

struct owned_stream {
    struct yaml_stream public; /* first: the handle that callers have */
    struct arena_chunk *chunks;
};

struct open_collection {
    struct yaml_node *node;
    size_t first_child;
};

struct builder {
    yaml_parser_t parser;
    struct owned_stream *stream;
    struct yaml_node **stack;
    size_t stack_count, stack_capacity;
    struct open_collection open[YAML_DEPTH_MAX];
    size_t open_count;
    size_t node_count;
    size_t document_capacity;
    size_t document_start_bytes;
    /* Where the last conversion of a position ended; see byte_offset(). */
    size_t cursor_characters, cursor_bytes;
};

static void *arena_alloc(struct owned_stream *s, size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    struct arena_chunk *chunk = s->chunks;
    if (!chunk || chunk->size_bytes - chunk->used_bytes < bytes) {
        size_t size = bytes > ARENA_CHUNK_BYTES ? bytes : ARENA_CHUNK_BYTES;
        chunk = malloc(sizeof *chunk + size);
        if (!chunk)
            return NULL;
        chunk->next = s->chunks;
        chunk->used_bytes = 0;
        chunk->size_bytes = size;
        s->chunks = chunk;
    }
    void *at = chunk->data + chunk->used_bytes;
    chunk->used_bytes += bytes;
    memset(at, 0, bytes);
    return at;
}

static char *arena_copy(struct owned_stream *s, const void *text, size_t length_bytes)
{
    char *copy = arena_alloc(s, length_bytes + 1);
    if (copy)
        memcpy(copy, text, length_bytes);
    return copy;
}

void yaml_stream_free(struct yaml_stream *stream)
{
    if (!stream)
        return;
    struct owned_stream *s = (struct owned_stream *)stream;
    for (struct arena_chunk *next, *chunk = s->chunks; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    free(s->public.documents);
    free(s);
}

/* libyaml counts characters; the text is UTF-8. Positions come nearly in order, so walk from the last one. */
static size_t byte_offset(struct builder *b, size_t characters)
{
    const unsigned char *text = (const unsigned char *)b->stream->public.text;
    size_t length = b->stream->public.length_bytes;
    while (b->cursor_characters < characters && b->cursor_bytes < length) {
        do
            b->cursor_bytes++;
        while (b->cursor_bytes < length && (text[b->cursor_bytes] & 0xc0) == 0x80);
        b->cursor_characters++;
    }
    while (b->cursor_characters > characters && b->cursor_bytes > 0) {
        do
            b->cursor_bytes--;
        while (b->cursor_bytes > 0 && (text[b->cursor_bytes] & 0xc0) == 0x80);
        b->cursor_characters--;
    }
    return b->cursor_bytes;
}

static int out_of_memory(const struct builder *b, struct error *err)
{
    return error_errno(err, -ENOMEM, "cannot parse %s", b->stream->public.file);
}

static int error_at(const struct builder *b, yaml_mark_t mark, int code, struct error *err, const char *what)
{
    return error_set(err, code, "%s:%zu:%zu: %s", b->stream->public.file, mark.line + 1, mark.column + 1,
                     what);
}

static int parser_error(const struct builder *b, struct error *err)
{
    const yaml_parser_t *p = &b->parser;
    const char *problem = p->problem ? p->problem : "not valid YAML";
    if (p->error == YAML_MEMORY_ERROR)
        return out_of_memory(b, err);
    if (p->error == YAML_READER_ERROR) {
        size_t line = 1;
        for (size_t i = 0; i < p->problem_offset && i < b->stream->public.length_bytes; i++)
            line += b->stream->public.text[i] == '\n';
        return error_set(err, -EINVAL, "%s:%zu:1: %s (byte %zu)", b->stream->public.file, line, problem,
                         p->problem_offset);
    }
    if (p->problem_mark.index < b->stream->public.length_bytes &&
        b->stream->public.text[p->problem_mark.index] == '\t')
        return error_at(b, p->problem_mark, -EINVAL, err,
                        "found a tab where a value or a key begins: YAML is indented by spaces");
    return error_set(err, -EINVAL, "%s:%zu:%zu: %s%s%s", b->stream->public.file, p->problem_mark.line + 1,
                     p->problem_mark.column + 1, problem, p->context ? ", " : "",
                     p->context ? p->context : "");
}

static int push_child(struct builder *b, struct yaml_node *node, struct error *err)
{
    if (b->stack_count == b->stack_capacity) {
        size_t capacity = b->stack_capacity ? b->stack_capacity * 2 : 64;
        struct yaml_node **larger = realloc(b->stack, capacity * sizeof *larger);
        if (!larger)
            return out_of_memory(b, err);
        b->stack = larger;
        b->stack_capacity = capacity;
    }
    b->stack[b->stack_count++] = node;
    return 0;
}

/* A node for the event, pushed as a child of the innermost collection. */
static int add_node(struct builder *b, enum yaml_kind kind, const yaml_event_t *event,
                    const yaml_char_t *anchor, const yaml_char_t *tag, struct yaml_node **ret_node,
                    struct error *err)
{
    if (anchor)
        return error_at(b, event->start_mark, -EINVAL, err,
                        "anchors and aliases (& and *) are not supported: write the value out");
    if (++b->node_count > YAML_NODES_MAX)
        return error_at(b, event->start_mark, -EFBIG, err, "more than 100000 values in one file");
    if (b->open_count) {
        const struct open_collection *parent = &b->open[b->open_count - 1];
        bool is_key = parent->node->kind == YAML_MAPPING && (b->stack_count - parent->first_child) % 2 == 0;
        if (is_key && kind != YAML_SCALAR)
            return error_at(b, event->start_mark, -EINVAL, err, "a key must be a text");
    }
    struct yaml_node *node = arena_alloc(b->stream, sizeof *node);
    if (!node)
        return out_of_memory(b, err);
    node->kind = kind;
    node->line = (unsigned)event->start_mark.line + 1;
    node->column = (unsigned)event->start_mark.column + 1;
    node->file = b->stream->public.file;
    node->start_bytes = byte_offset(b, event->start_mark.index);
    node->end_bytes = byte_offset(b, event->end_mark.index);
    if (tag) {
        node->tag = arena_copy(b->stream, tag, strlen((const char *)tag));
        if (!node->tag)
            return out_of_memory(b, err);
    }
    *ret_node = node;
    return push_child(b, node, err);
}

static int add_scalar(struct builder *b, const yaml_event_t *event, struct error *err)
{
    struct yaml_node *node = NULL;
    if (memchr(event->data.scalar.value, '\0', event->data.scalar.length))
        return error_at(b, event->start_mark, -EINVAL, err, "a text must not contain NUL");
    int r = add_node(b, YAML_SCALAR, event, event->data.scalar.anchor, event->data.scalar.tag, &node, err);
    if (r < 0)
        return r;
    node->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && !node->tag;
    node->scalar = arena_copy(b->stream, event->data.scalar.value, event->data.scalar.length);
    return node->scalar ? 0 : out_of_memory(b, err);
}

static int open_collection(struct builder *b, enum yaml_kind kind, const yaml_event_t *event,
                           const yaml_char_t *anchor, const yaml_char_t *tag, struct error *err)
{
    struct yaml_node *node = NULL;
    if (b->open_count == YAML_DEPTH_MAX)
        return error_at(b, event->start_mark, -EFBIG, err, "nested more than 64 deep");
    int r = add_node(b, kind, event, anchor, tag, &node, err);
    if (r < 0)
        return r;
    b->open[b->open_count++] = (struct open_collection){node, b->stack_count};
    return 0;
}

static int compare_keys(const void *a, const void *b)
{
    const struct yaml_node *x = (*(struct yaml_pair *const *)a)->key,
                           *y = (*(struct yaml_pair *const *)b)->key;
    int order = strcmp(x->scalar, y->scalar);
    if (order)
        return order;
    return x->start_bytes < y->start_bytes ? -1 : x->start_bytes > y->start_bytes;
}

/* By sorting: a mapping of 50,000 keys must not take the square of that. */
static int refuse_duplicates(const struct builder *b, const struct yaml_node *mapping, struct error *err)
{
    if (mapping->count < 2)
        return 0;
    _cleanup_free_ struct yaml_pair **sorted = malloc(mapping->count * sizeof *sorted);
    if (!sorted)
        return out_of_memory(b, err);
    for (size_t i = 0; i < mapping->count; i++)
        sorted[i] = &mapping->pairs[i];
    qsort(sorted, mapping->count, sizeof *sorted, compare_keys);
    for (size_t i = 1; i < mapping->count; i++) {
        const struct yaml_node *first = sorted[i - 1]->key, *second = sorted[i]->key;
        if (strcmp(first->scalar, second->scalar) == 0)
            return yaml_error(err, second, -EINVAL,
                              "key '%.100s' is there twice: first on line %u, again on line %u",
                              second->scalar, first->line, second->line);
    }
    return 0;
}

static int close_collection(struct builder *b, const yaml_event_t *event, struct error *err)
{
    struct open_collection *closed = &b->open[--b->open_count];
    struct yaml_node *node = closed->node;
    /* Not NULL: the collection itself was pushed before its children. */
    struct yaml_node **children = b->stack + closed->first_child;
    size_t count = b->stack_count - closed->first_child;
    b->stack_count = closed->first_child;
    node->end_bytes = byte_offset(b, event->end_mark.index);
    if (node->kind == YAML_SEQUENCE) {
        node->count = count;
        node->items = arena_alloc(b->stream, (count + 1) * sizeof *node->items);
        if (!node->items)
            return out_of_memory(b, err);
        if (count)
            memcpy(node->items, children, count * sizeof *node->items);
        return 0;
    }
    node->count = count / 2;
    node->pairs = arena_alloc(b->stream, (node->count + 1) * sizeof *node->pairs);
    if (!node->pairs)
        return out_of_memory(b, err);
    for (size_t i = 0; i < node->count; i++)
        node->pairs[i] = (struct yaml_pair){children[2 * i], children[2 * i + 1]};
    return refuse_duplicates(b, node, err);
}

static void start_document(struct builder *b, const yaml_event_t *event)
{
    /* Without `---` the comments before the first value belong to the document as well. */
    b->document_start_bytes = event->data.document_start.implicit ? 0 : byte_offset(b, event->end_mark.index);
}

static int end_document(struct builder *b, const yaml_event_t *event, struct error *err)
{
    struct yaml_stream *stream = &b->stream->public;
    struct yaml_node *root = b->stack_count ? b->stack[0] : NULL;
    b->stack_count = 0;
    if (!root || (root->kind == YAML_SCALAR && root->plain && !root->scalar[0]))
        return 0;
    if (stream->count == b->document_capacity) {
        size_t capacity = b->document_capacity ? b->document_capacity * 2 : 8;
        struct yaml_document *larger = realloc(stream->documents, capacity * sizeof *larger);
        if (!larger)
            return out_of_memory(b, err);
        stream->documents = larger;
        b->document_capacity = capacity;
    }
    stream->documents[stream->count++] =
        (struct yaml_document){root, b->document_start_bytes, byte_offset(b, event->start_mark.index)};
    return 0;
}

static int handle_event(struct builder *b, const yaml_event_t *event, struct error *err)
{
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        start_document(b, event);
        return 0;
    case YAML_DOCUMENT_END_EVENT:
        return end_document(b, event, err);
    case YAML_ALIAS_EVENT:
        return error_at(b, event->start_mark, -EINVAL, err,
                        "anchors and aliases (& and *) are not supported: write the value out");
    case YAML_SCALAR_EVENT:
        return add_scalar(b, event, err);
    case YAML_SEQUENCE_START_EVENT:
        return open_collection(b, YAML_SEQUENCE, event, event->data.sequence_start.anchor,
                               event->data.sequence_start.tag, err);
    case YAML_MAPPING_START_EVENT:
        return open_collection(b, YAML_MAPPING, event, event->data.mapping_start.anchor,
                               event->data.mapping_start.tag, err);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        return close_collection(b, event, err);
    default:
        return 0;
    }
}

static int build(struct builder *b, struct error *err)
{
    const struct yaml_stream *stream = &b->stream->public;
    yaml_parser_set_encoding(&b->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&b->parser, (const unsigned char *)stream->text, stream->length_bytes);
    for (bool ended = false; !ended;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&b->parser, &event))
            return parser_error(b, err);
        int r = handle_event(b, &event, err);
        ended = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
        if (r < 0)
            return r;
    }
    return 0;
}

int yaml_parse(const char *file, const char *text, size_t length_bytes, struct yaml_stream **ret_stream,
               struct error *err)
{
    static const char mark[] = "\xef\xbb\xbf"; /* of the byte order, which some editors write */
    if (length_bytes >= 3 && memcmp(text, mark, 3) == 0) {
        text += 3;
        length_bytes -= 3;
    }
    if (length_bytes > YAML_TEXT_LIMIT_BYTES)
        return error_set(err, -EFBIG, "%s: %zu bytes are more than the %u that a YAML file may have", file,
                         length_bytes, YAML_TEXT_LIMIT_BYTES);
    _cleanup_free_ struct builder *b = calloc(1, sizeof *b);
    struct owned_stream *s = calloc(1, sizeof *s);
    if (!b || !s) {
        free(s);
        return error_errno(err, -ENOMEM, "cannot parse %s", file);
    }
    b->stream = s;
    s->public.file = arena_copy(s, file, strlen(file));
    s->public.text = arena_copy(s, text, length_bytes);
    s->public.length_bytes = length_bytes;
    int r;
    if (!s->public.file || !s->public.text || !yaml_parser_initialize(&b->parser)) {
        r = error_errno(err, -ENOMEM, "cannot parse %s", file);
    } else {
        r = build(b, err);
        yaml_parser_delete(&b->parser);
    }
    free(b->stack);
    if (r < 0) {
        yaml_stream_free(&s->public);
        return r;
    }
    *ret_stream = &s->public;
    return 0;
}

int yaml_parse_file(const char *path, struct yaml_stream **ret_stream, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length_bytes;
    int r = io_read_file(path, YAML_TEXT_LIMIT_BYTES, &text, &length_bytes, err);
    if (r < 0)
        return r;
    return yaml_parse(path, text, length_bytes, ret_stream, err);
}

int yaml_error(struct error *err, const struct yaml_node *node, int code, const char *format, ...)
{
    char message[ERROR_MESSAGE_BYTES / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return error_set(err, code, "%s:%u:%u: %s", node->file, node->line, node->column, message);
}

const struct yaml_node *yaml_lookup(const struct yaml_node *node, const char *key)
{
    if (!node || node->kind != YAML_MAPPING)
        return NULL;
    for (size_t i = 0; i < node->count; i++)
        if (strcmp(node->pairs[i].key->scalar, key) == 0)
            return node->pairs[i].value;
    return NULL;
}

const struct yaml_node *yaml_lookup_path(const struct yaml_node *node, const char *path)
{
    while (node) {
        size_t length = strcspn(path, ".");
        const struct yaml_node *found = NULL;
        if (node->kind != YAML_MAPPING)
            return NULL;
        for (size_t i = 0; i < node->count && !found; i++)
            if (strlen(node->pairs[i].key->scalar) == length &&
                memcmp(node->pairs[i].key->scalar, path, length) == 0)
                found = node->pairs[i].value;
        node = found;
        if (!path[length])
            return node;
        path += length + 1;
    }
    return NULL;
}

const char *yaml_text(const struct yaml_node *node)
{
    return node && node->kind == YAML_SCALAR ? node->scalar : NULL;
}

bool yaml_is_null(const struct yaml_node *node)
{
    return node && node->kind == YAML_SCALAR && node->plain &&
           (!node->scalar[0] || strcmp(node->scalar, "~") == 0 || strcmp(node->scalar, "null") == 0 ||
            strcmp(node->scalar, "Null") == 0 || strcmp(node->scalar, "NULL") == 0);
}

const char *yaml_kind_name(const struct yaml_node *node)
{
    if (!node)
        return "nothing";
    if (node->kind == YAML_MAPPING)
        return "a mapping";
    if (node->kind == YAML_SEQUENCE)
        return "a list";
    return yaml_is_null(node) ? "null" : "a text";
}

/* The field's value, NULL when missing or null and not required. */
static int find(const struct yaml_node *mapping, const char *key, bool required,
                const struct yaml_node **ret_value, struct error *err)
{
    if (mapping->kind != YAML_MAPPING)
        return yaml_error(err, mapping, -EINVAL, "expected a mapping with '%s', found %s", key,
                          yaml_kind_name(mapping));
    const struct yaml_node *value = yaml_lookup(mapping, key);
    if (value && yaml_is_null(value)) {
        if (required)
            return yaml_error(err, value, -EINVAL, "'%s' has no value", key);
        value = NULL;
    }
    if (!value && required)
        return yaml_error(err, mapping, -EINVAL, "'%s' is missing", key);
    *ret_value = value;
    return 0;
}

static int get_kind(const struct yaml_node *mapping, const char *key, bool required, enum yaml_kind kind,
                    const struct yaml_node **ret_node, struct error *err)
{
    static const char *const expected[] = {"a text", "a mapping", "a list"};
    const struct yaml_node *value = NULL;
    int r = find(mapping, key, required, &value, err);
    if (r < 0 || !value)
        return r;
    if (value->kind != kind)
        return yaml_error(err, value, -EINVAL, "'%s': expected %s, found %s", key, expected[kind],
                          yaml_kind_name(value));
    *ret_node = value;
    return 0;
}

static int get_string(const struct yaml_node *mapping, const char *key, bool required, const char **ret_text,
                      struct error *err)
{
    const struct yaml_node *value = NULL;
    int r = get_kind(mapping, key, required, YAML_SCALAR, &value, err);
    if (r < 0 || !value)
        return r;
    *ret_text = value->scalar;
    return 0;
}

int yaml_get_string(const struct yaml_node *mapping, const char *key, const char **ret_text,
                    struct error *err)
{
    return get_string(mapping, key, true, ret_text, err);
}
int yaml_get_optional_string(const struct yaml_node *mapping, const char *key, const char **ret_text,
                             struct error *err)
{
    return get_string(mapping, key, false, ret_text, err);
}
int yaml_get_mapping(const struct yaml_node *mapping, const char *key, const struct yaml_node **ret_node,
                     struct error *err)
{
    return get_kind(mapping, key, true, YAML_MAPPING, ret_node, err);
}
int yaml_get_optional_mapping(const struct yaml_node *mapping, const char *key,
                              const struct yaml_node **ret_node, struct error *err)
{
    return get_kind(mapping, key, false, YAML_MAPPING, ret_node, err);
}
int yaml_get_sequence(const struct yaml_node *mapping, const char *key, const struct yaml_node **ret_node,
                      struct error *err)
{
    return get_kind(mapping, key, true, YAML_SEQUENCE, ret_node, err);
}
int yaml_get_optional_sequence(const struct yaml_node *mapping, const char *key,
                               const struct yaml_node **ret_node, struct error *err)
{
    return get_kind(mapping, key, false, YAML_SEQUENCE, ret_node, err);
}

int yaml_get_optional_bool(const struct yaml_node *mapping, const char *key, bool *ret_value,
                           struct error *err)
{
    const struct yaml_node *value = NULL;
    int r = get_kind(mapping, key, false, YAML_SCALAR, &value, err);
    if (r < 0 || !value)
        return r;
    bool is_true = strcmp(value->scalar, "true") == 0;
    if (!value->plain || (!is_true && strcmp(value->scalar, "false") != 0))
        return yaml_error(err, value, -EINVAL, "'%s': expected true or false, found '%.100s'", key,
                          value->scalar);
    *ret_value = is_true;
    return 0;
}

int yaml_get_optional_u64(const struct yaml_node *mapping, const char *key, uint64_t *ret_value,
                          struct error *err)
{
    const struct yaml_node *value = NULL;
    int r = get_kind(mapping, key, false, YAML_SCALAR, &value, err);
    if (r < 0 || !value)
        return r;
    if (!value->plain)
        return yaml_error(err, value, -EINVAL, "'%s': expected a number, found a quoted text", key);
    r = units_parse_u64(value->scalar, UINT64_MAX, ret_value, err);
    if (r < 0)
        return error_context(err, "%s:%u:%u: '%s'", value->file, value->line, value->column, key);
    return 0;
}

/* Levenshtein distance, of texts of at most 32 bytes; more is "far". */
static unsigned distance(const char *a, const char *b)
{
    size_t m = strlen(a), n = strlen(b);
    unsigned row[33];
    if (m > 32 || n > 32)
        return 99;
    for (size_t j = 0; j <= n; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= m; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= n; j++) {
            unsigned replace = diagonal + (a[i - 1] != b[j - 1]);
            unsigned other = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = replace < other ? replace : other;
        }
    }
    return row[n];
}

/* Whether `key` is in the list; otherwise the nearest known key within two edits in *ret_near. */
static bool is_known(const char *key, va_list keys, const char **ret_near)
{
    unsigned best = 3;
    *ret_near = NULL;
    for (;;) {
        const char *known = va_arg(keys, const char *);
        if (!known)
            return false;
        if (strcmp(known, key) == 0)
            return true;
        unsigned d = distance(known, key);
        if (d < best) {
            best = d;
            *ret_near = known;
        }
    }
}

int yaml_reject_unknown(const struct yaml_node *mapping, struct error *err, ...)
{
    if (mapping->kind != YAML_MAPPING)
        return yaml_error(err, mapping, -EINVAL, "expected a mapping, found %s", yaml_kind_name(mapping));
    for (size_t i = 0; i < mapping->count; i++) {
        const struct yaml_node *key = mapping->pairs[i].key;
        const char *near;
        va_list keys;
        va_start(keys, err);
        bool known = is_known(key->scalar, keys, &near);
        va_end(keys);
        if (!known)
            return yaml_error(err, key, -EINVAL, "unknown field '%.100s'%s%s%s", key->scalar,
                              near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    return 0;
}
