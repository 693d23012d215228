/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of RFC 6455 from the client's side, without I/O. */
#ifndef TIDEMARK_KUBE_WEBSOCKET_H
#define TIDEMARK_KUBE_WEBSOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define WEBSOCKET_FRAME_LIMIT_BYTES (16u << 20)
#define WEBSOCKET_HEADER_BYTES 14u
#define WEBSOCKET_KEY_BYTES 25u    /* base64 of 16 bytes, with the NUL */
#define WEBSOCKET_ACCEPT_BYTES 29u /* base64 of 20 bytes, with the NUL */

enum websocket_op {
    WEBSOCKET_CONTINUATION = 0,
    WEBSOCKET_TEXT = 1,
    WEBSOCKET_BINARY = 2,
    WEBSOCKET_CLOSE = 8,
    WEBSOCKET_PING = 9,
    WEBSOCKET_PONG = 10,
};
struct websocket_frame {
    bool final;
    enum websocket_op op;
    const uint8_t *data; /* in the input */
    size_t length_bytes;
    size_t total_bytes; /* with the header */
};
/* 1: a frame stands at the beginning of the input; 0: more input is needed; -EPROTO. */
int websocket_parse(const void *input, size_t length_bytes, struct websocket_frame *ret,
                    struct error *err) MUST_CHECK;
/* Writes the header of a final, masked frame; returns its length. */
size_t websocket_header(enum websocket_op op, size_t length_bytes, const uint8_t mask[4],
                        uint8_t header[WEBSOCKET_HEADER_BYTES]);
void websocket_mask(uint8_t *data, size_t length_bytes, const uint8_t mask[4]);
/* A random key, and what the server has to answer to it. */
int websocket_key(char key[WEBSOCKET_KEY_BYTES], char accept[WEBSOCKET_ACCEPT_BYTES],
                  struct error *err) MUST_CHECK;
int websocket_accept(const char *key, char accept[WEBSOCKET_ACCEPT_BYTES], struct error *err) MUST_CHECK;
/* Judges the answer's headers (NUL-terminated, without the empty line): 101, Upgrade, the right key. The
 * subprotocol that the server chose is copied to `protocol`. -EPROTO. */
int websocket_check_upgrade(const char *headers, const char *accept, char *protocol, size_t capacity_bytes,
                            struct error *err) MUST_CHECK;

#endif
