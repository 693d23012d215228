/* SPDX-License-Identifier: Apache-2.0 */
/* JSON as YAML. A text stands plain only when no YAML 1.1 or 1.2 reader could take it for something else: it
 * begins with a letter, '_' or '/', holds nothing but letters, digits and "_./-", and is none of the words
 * for null and booleans. Everything else is quoted; so a time stays a text, and "no" is not false. */
#include <yaml.h>

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "cli/cli_internal.h"

#define YAML_OUTPUT_DEPTH_MAX 64

static bool stands_plain(const char *text, size_t length)
{
    static const char *const words[] = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", NULL};
    if (length == 0 || strlen(text) != length ||
        !(isalpha((unsigned char)*text) || *text == '_' || *text == '/'))
        return false;
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("_./-", text[i]))
            return false;
    for (const char *const *w = words; *w; w++)
        if (strcasecmp(*w, text) == 0)
            return false;
    return true;
}

static bool emit_scalar(yaml_emitter_t *emitter, const char *text, size_t length, bool quoted)
{
    yaml_event_t event;
    return yaml_scalar_event_initialize(&event, NULL, NULL, (const yaml_char_t *)text, (int)length, !quoted,
                                        quoted,
                                        quoted ? YAML_DOUBLE_QUOTED_SCALAR_STYLE : YAML_PLAIN_SCALAR_STYLE) &&
           yaml_emitter_emit(emitter, &event);
}

static bool emit_text(yaml_emitter_t *emitter, const char *text, size_t length)
{
    return emit_scalar(emitter, text, length, !stands_plain(text, length));
}

/* YAML 1.1 wants a point in a number with a fraction: 1e+20 is a text there, 1.0e+20 is not. */
static bool emit_real(yaml_emitter_t *emitter, double value)
{
    char digits[64], text[80];
    snprintf(digits, sizeof digits, "%.17g", value);
    size_t mantissa = strcspn(digits, "e");
    bool point = memchr(digits, '.', mantissa) != NULL;
    snprintf(text, sizeof text, "%.*s%s%s", (int)mantissa, digits, point ? "" : ".0", digits + mantissa);
    return emit_scalar(emitter, text, strlen(text), false);
}

static bool emit(yaml_emitter_t *emitter, const json_t *json, unsigned depth);

static bool emit_object(yaml_emitter_t *emitter, const json_t *object, unsigned depth)
{
    yaml_event_t event;
    const char *key;
    json_t *value;
    if (!yaml_mapping_start_event_initialize(&event, NULL, NULL, 1,
                                             json_object_size(object) ? YAML_BLOCK_MAPPING_STYLE
                                                                      : YAML_FLOW_MAPPING_STYLE) ||
        !yaml_emitter_emit(emitter, &event))
        return false;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        if (!emit_text(emitter, key, strlen(key)) || !emit(emitter, value, depth + 1))
            return false;
    }
    return yaml_mapping_end_event_initialize(&event) && yaml_emitter_emit(emitter, &event);
}

static bool emit_array(yaml_emitter_t *emitter, const json_t *array, unsigned depth)
{
    yaml_event_t event;
    size_t i;
    json_t *value;
    if (!yaml_sequence_start_event_initialize(&event, NULL, NULL, 1,
                                              json_array_size(array) ? YAML_BLOCK_SEQUENCE_STYLE
                                                                     : YAML_FLOW_SEQUENCE_STYLE) ||
        !yaml_emitter_emit(emitter, &event))
        return false;
    json_array_foreach(array, i, value)
    {
        if (!emit(emitter, value, depth + 1))
            return false;
    }
    return yaml_sequence_end_event_initialize(&event) && yaml_emitter_emit(emitter, &event);
}

static bool emit(yaml_emitter_t *emitter, const json_t *json, unsigned depth)
{
    char number[32];
    if (depth > YAML_OUTPUT_DEPTH_MAX)
        return false;
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return emit_object(emitter, json, depth);
    case JSON_ARRAY:
        return emit_array(emitter, json, depth);
    case JSON_STRING:
        return emit_text(emitter, json_string_value(json), json_string_length(json));
    case JSON_INTEGER:
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(json));
        return emit_scalar(emitter, number, strlen(number), false);
    case JSON_REAL:
        return emit_real(emitter, json_real_value(json));
    case JSON_TRUE:
        return emit_scalar(emitter, "true", 4, false);
    case JSON_FALSE:
        return emit_scalar(emitter, "false", 5, false);
    case JSON_NULL:
        return emit_scalar(emitter, "null", 4, false);
    }
    return false;
}

int cli_yaml_write(const json_t *json, FILE *out, struct error *err)
{
    yaml_emitter_t emitter;
    yaml_event_t event;
    if (!yaml_emitter_initialize(&emitter))
        return error_errno(err, -ENOMEM, "cannot write the answer as YAML");
    yaml_emitter_set_output_file(&emitter, out);
    yaml_emitter_set_unicode(&emitter, 1);
    yaml_emitter_set_width(&emitter, -1);
    bool ok = yaml_stream_start_event_initialize(&event, YAML_UTF8_ENCODING) &&
              yaml_emitter_emit(&emitter, &event) &&
              yaml_document_start_event_initialize(&event, NULL, NULL, NULL, 1) &&
              yaml_emitter_emit(&emitter, &event) && emit(&emitter, json, 0) &&
              yaml_document_end_event_initialize(&event, 1) && yaml_emitter_emit(&emitter, &event) &&
              yaml_stream_end_event_initialize(&event) && yaml_emitter_emit(&emitter, &event);
    if (!ok)
        error_set(err, -EIO, "cannot write the answer as YAML: %s",
                  emitter.problem ? emitter.problem : "out of memory, or nested too deeply");
    yaml_emitter_delete(&emitter);
    return ok ? 0 : -EIO;
}
