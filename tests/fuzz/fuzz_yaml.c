/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever the text: a tree whose positions lie inside it, or an error with a message. */
#include <assert.h>
#include <stdint.h>

#include "lib/yaml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void walk(const struct yaml_node *node, const struct yaml_stream *stream, unsigned depth)
{
    assert(depth <= YAML_DEPTH_MAX + 1); /* a scalar in the deepest collection */
    assert(node->line >= 1 && node->column >= 1);
    assert(node->start_bytes <= node->end_bytes && node->end_bytes <= stream->length_bytes);
    switch (node->kind) {
    case YAML_SCALAR:
        assert(node->scalar && strlen(yaml_text(node)) < YAML_TEXT_LIMIT_BYTES);
        break;
    case YAML_MAPPING:
        for (size_t i = 0; i < node->count; i++) {
            assert(node->pairs[i].key->kind == YAML_SCALAR);
            assert(yaml_lookup(node, node->pairs[i].key->scalar) ==
                   node->pairs[i].value); /* keys are unique */
            walk(node->pairs[i].value, stream, depth + 1);
        }
        break;
    case YAML_SEQUENCE:
        for (size_t i = 0; i < node->count; i++)
            walk(node->items[i], stream, depth + 1);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    _cleanup_yaml_stream_ struct yaml_stream *stream = NULL;
    if (yaml_parse("fuzz.yaml", (const char *)data, size, &stream, &err) < 0) {
        assert(err.code < 0 && err.message[0] && !stream);
        return 0;
    }
    for (size_t i = 0; i < stream->count; i++) {
        assert(stream->documents[i].start_bytes <= stream->documents[i].end_bytes);
        assert(stream->documents[i].end_bytes <= stream->length_bytes);
        walk(stream->documents[i].root, stream, 1);
    }
    return 0;
}
