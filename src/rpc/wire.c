/* SPDX-License-Identifier: Apache-2.0 */
/* protobuf-c checks neither UTF-8 nor NUL (which truncates its strings), so the encoded message is walked
 * first. https://protobuf.dev/programming-guides/encoding/,
 * https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md */
#include <errno.h>
#include <string.h>

#include "rpc/rpc_internal.h"

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct cursor {
    const uint8_t *at, *end;
};

static bool read_varint(struct cursor *c, uint64_t *ret)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && c->at < c->end; shift += 7) {
        uint8_t byte = *c->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *ret = value;
            return true;
        }
    }
    return false;
}

/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF; and no NUL here. */
static bool is_text(const uint8_t *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint8_t c = s[i];
        unsigned more = c < 0x80                ? 0
                        : c >= 0xc2 && c < 0xe0 ? 1
                        : c >= 0xe0 && c < 0xf0 ? 2
                        : c >= 0xf0 && c < 0xf5 ? 3
                                                : 4;
        if (c == 0 || more == 4 || n - i <= more)
            return false;
        for (unsigned k = 1; k <= more; k++)
            if ((s[i + k] & 0xc0) != 0x80)
                return false;
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) ||
            (c == 0xf0 && s[i + 1] < 0x90) || (c == 0xf4 && s[i + 1] > 0x8f))
            return false;
        i += more + 1;
    }
    return true;
}

static int check_message(const ProtobufCMessageDescriptor *descriptor, struct cursor c, unsigned depth,
                         struct error *err);

/* Length-delimited: a string, bytes, a message, or packed numbers (which protobuf-c checks). */
static int check_bytes(const ProtobufCMessageDescriptor *descriptor, const ProtobufCFieldDescriptor *field,
                       struct cursor inner, unsigned depth, struct error *err)
{
    if (field && field->type == PROTOBUF_C_TYPE_STRING && !is_text(inner.at, (size_t)(inner.end - inner.at)))
        return error_set(err, -EINVAL, "%s.%s is not UTF-8 text, or holds a NUL", descriptor->short_name,
                         field->name);
    if (field && field->type == PROTOBUF_C_TYPE_MESSAGE)
        return check_message(field->descriptor, inner, depth + 1, err);
    return 0;
}

static int check_message(const ProtobufCMessageDescriptor *descriptor, struct cursor c, unsigned depth,
                         struct error *err)
{
    if (depth > RPC_NESTING_MAX)
        return error_set(err, -EINVAL, "messages are nested deeper than %u", RPC_NESTING_MAX);
    while (c.at < c.end) {
        uint64_t tag = 0, value = 0;
        bool good = read_varint(&c, &tag) && tag >> 3 && tag >> 3 <= (1u << 29) - 1;
        const ProtobufCFieldDescriptor *field =
            good ? protobuf_c_message_descriptor_get_field(descriptor, (unsigned)(tag >> 3)) : NULL;
        unsigned type = tag & 7;
        size_t left = (size_t)(c.end - c.at);
        if (type == WIRE_VARINT)
            good = good && read_varint(&c, &value);
        else if (type == WIRE_64 || type == WIRE_32) {
            size_t width = type == WIRE_64 ? 8 : 4;
            good = good && left >= width;
            c.at += good ? width : 0;
        } else if (type == WIRE_BYTES) {
            good = good && read_varint(&c, &value) && value <= (uint64_t)(c.end - c.at);
        } else
            good = false; /* groups are of proto2 */
        if (!good)
            return error_set(err, -EINVAL, "the request is no %s: it is cut off or malformed",
                             descriptor->short_name);
        if (type == WIRE_BYTES) {
            struct cursor inner = {c.at, c.at + value};
            int r = check_bytes(descriptor, field, inner, depth, err);
            if (r < 0)
                return r;
            c.at = inner.end;
        }
    }
    return 0;
}

int wire_check(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t length_bytes,
               struct error *err)
{
    return length_bytes ? check_message(descriptor, (struct cursor){data, data + length_bytes}, 0, err) : 0;
}

bool wire_parse_timeout(const char *text, size_t length_bytes, uint64_t *ret_ns)
{
    static const struct {
        char name;
        uint64_t ns;
    } units[] = {{'H', 3600000000000u}, {'M', 60000000000u}, {'S', 1000000000u},
                 {'m', 1000000u},       {'u', 1000u},        {'n', 1u}};
    uint64_t value = 0;
    size_t i = 0;
    for (; i < length_bytes && i < 8 && text[i] >= '0' && text[i] <= '9'; i++)
        value = value * 10 + (uint64_t)(text[i] - '0');
    if (i == 0 || i + 1 != length_bytes)
        return false;
    for (size_t k = 0; k < sizeof units / sizeof *units; k++)
        if (units[k].name == text[i]) {
            if (__builtin_mul_overflow(value, units[k].ns, ret_ns) || *ret_ns > INT64_MAX / 2)
                *ret_ns = INT64_MAX / 2;
            return true;
        }
    return false;
}

size_t wire_percent_encode(const char *text, char *ret, size_t size)
{
    static const char hex[] = "0123456789ABCDEF";
    size_t n = 0;
    for (; *text && n + 3 <= size; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 0x20 && c < 0x7f && c != '%') {
            ret[n++] = (char)c;
            continue;
        }
        ret[n++] = '%';
        ret[n++] = hex[c >> 4];
        ret[n++] = hex[c & 15];
    }
    return n;
}
