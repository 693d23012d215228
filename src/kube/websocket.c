/* SPDX-License-Identifier: Apache-2.0 */
#include "kube/websocket.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#define ACCEPT_GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" /* RFC 6455, 1.3 */

int websocket_parse(const void *input, size_t length_bytes, struct websocket_frame *ret, struct error *err)
{
    const uint8_t *in = input;
    if (length_bytes < 2)
        return 0;
    if (in[0] & 0x70)
        return error_set(err, -EPROTO, "websocket: a frame uses an extension that was not agreed on");
    if (in[1] & 0x80)
        return error_set(err, -EPROTO, "websocket: the server masks its frames");
    enum websocket_op op = in[0] & 15;
    uint64_t length = in[1] & 127;
    size_t header = 2u + (length == 126 ? 2u : length == 127 ? 8u : 0u);
    if (op > WEBSOCKET_PONG || (op > WEBSOCKET_BINARY && op < WEBSOCKET_CLOSE))
        return error_set(err, -EPROTO, "websocket: unknown kind of frame %d", op);
    if (op >= WEBSOCKET_CLOSE && (length > 125 || !(in[0] & 0x80)))
        return error_set(err, -EPROTO, "websocket: a control frame that is long or in parts");
    if (length_bytes < header)
        return 0;
    if (header > 2) {
        length = 0;
        for (size_t i = 2; i < header; i++)
            length = length << 8 | in[i];
    }
    if (length > WEBSOCKET_FRAME_LIMIT_BYTES)
        return error_set(err, -EPROTO, "websocket: a frame of more than %u bytes",
                         WEBSOCKET_FRAME_LIMIT_BYTES);
    if (length_bytes - header < length)
        return 0;
    *ret = (struct websocket_frame){.final = in[0] & 0x80,
                                    .op = op,
                                    .data = in + header,
                                    .length_bytes = (size_t)length,
                                    .total_bytes = header + (size_t)length};
    return 1;
}

size_t websocket_header(enum websocket_op op, size_t length_bytes, const uint8_t mask[4],
                        uint8_t header[WEBSOCKET_HEADER_BYTES])
{
    size_t n = 2, bytes = length_bytes > 65535 ? 8 : length_bytes > 125 ? 2 : 0;
    header[0] = (uint8_t)(0x80 | op);
    header[1] = (uint8_t)(0x80 | (bytes == 8 ? 127 : bytes == 2 ? 126 : length_bytes));
    for (size_t i = bytes; i > 0; i--)
        header[n++] = (uint8_t)((uint64_t)length_bytes >> (8 * (i - 1)));
    memcpy(header + n, mask, 4);
    return n + 4;
}

void websocket_mask(uint8_t *data, size_t length_bytes, const uint8_t mask[4])
{
    for (size_t i = 0; i < length_bytes; i++)
        data[i] ^= mask[i % 4];
}

int websocket_accept(const char *key, char accept[WEBSOCKET_ACCEPT_BYTES], struct error *err)
{
    char text[128];
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    snprintf(text, sizeof text, "%s" ACCEPT_GUID, key);
    if (!EVP_Digest(text, strlen(text), digest, &length, EVP_sha1(), NULL) || length != 20)
        return error_set(err, -EIO, "websocket: SHA-1 is not available in libcrypto");
    EVP_EncodeBlock((unsigned char *)accept, digest, 20);
    return 0;
}

int websocket_key(char key[WEBSOCKET_KEY_BYTES], char accept[WEBSOCKET_ACCEPT_BYTES], struct error *err)
{
    unsigned char random[16];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return error_errno(err, -errno, "websocket: random key");
    EVP_EncodeBlock((unsigned char *)key, random, sizeof random);
    return websocket_accept(key, accept, err);
}

/* The value of a header line, trimmed at its beginning; its length. NULL when it is not there. */
static const char *header_value(const char *headers, const char *name, size_t *ret_length)
{
    size_t name_length = strlen(name);
    for (const char *line = strchr(headers, '\n'); line; line = strchr(line, '\n')) {
        line++;
        if (strncasecmp(line, name, name_length) == 0 && line[name_length] == ':') {
            const char *value = line + name_length + 1;
            value += strspn(value, " \t");
            *ret_length = strcspn(value, "\r\n");
            return value;
        }
    }
    return NULL;
}

int websocket_check_upgrade(const char *headers, const char *accept, char *protocol, size_t capacity_bytes,
                            struct error *err)
{
    size_t length;
    if (strncmp(headers, "HTTP/1.1 101", 12) != 0)
        return error_set(err, -EPROTO, "websocket: the server did not upgrade: %.*s",
                         (int)strcspn(headers, "\r\n"), headers);
    const char *value = header_value(headers, "Upgrade", &length);
    if (!value || length != 9 || strncasecmp(value, "websocket", 9) != 0)
        return error_set(err, -EPROTO, "websocket: the server upgraded to something else");
    value = header_value(headers, "Sec-WebSocket-Accept", &length);
    if (!value || length != strlen(accept) || strncmp(value, accept, length) != 0)
        return error_set(err, -EPROTO, "websocket: the server answered with the wrong key");
    value = header_value(headers, "Sec-WebSocket-Protocol", &length);
    if (!value || length >= capacity_bytes)
        return error_set(err, -EPROTO, "websocket: the server chose no subprotocol");
    memcpy(protocol, value, length);
    protocol[length] = '\0';
    return 0;
}
