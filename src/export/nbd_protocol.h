/* SPDX-License-Identifier: Apache-2.0 */
/* What NBD clients say, and the answers, without sockets: negotiation (fixed newstyle) and the headers of
 * requests. Nothing blocks, nothing is trusted. */
#ifndef TIDEMARK_EXPORT_NBD_PROTOCOL_H
#define TIDEMARK_EXPORT_NBD_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "export/nbd_format.h"

#define NBD_MAX_REQUEST_BYTES (32u << 20)
#define NBD_OPTION_MAX_BYTES 8192u /* of an option's data; a client that sends more is sent away */
#define NBD_NAME_MAX_BYTES 4096u
#define NBD_OPTIONS_MAX 1024u /* that a client may send */
#define NBD_HANDSHAKE_OUT_BYTES 32768u
#define NBD_CONTEXT_ALLOCATION 1u /* our id of base:allocation */
#define NBD_REPLY_HEAD_BYTES (sizeof(struct nbd_chunk_header) + 8)
#define NBD_UNFRAGMENTED_BYTES_MAX (64u << 10) /* of a read with DF: so much the protocol demands */
#define NBD_DESCRIPTORS_MAX 64u /* of one block status */

struct nbd_export {
    const char *name;
    _Atomic uint64_t size_bytes; /* may grow while clients are connected */
    bool extents;                /* knows its holes */
};

enum nbd_handshake_state {
    NBD_CLIENT_FLAGS, /* waits for these */
    NBD_OPTION_HEADER,
    NBD_OPTION_DATA,
    NBD_TRANSMISSION, /* requests follow; fields below are valid */
    NBD_CLOSED,       /* once `out` is sent */
};

struct nbd_handshake {
    const struct nbd_export *exports;
    size_t export_count;
    enum nbd_handshake_state state;
    unsigned option_count;
    uint32_t option;
    bool no_zeroes;

    size_t export; /* chosen */
    bool structured;
    bool allocation; /* block status of base:allocation, of the chosen export */
    size_t allocation_export;

    size_t in_bytes, want_bytes; /* the next message is whole once they are equal */
    size_t out_bytes;            /* to be sent; the caller sets it to 0 then */
    char in[NBD_OPTION_MAX_BYTES];
    char out[NBD_HANDSHAKE_OUT_BYTES];
};

/* `exports` outlives it. `out` holds the greeting afterwards. */
void nbd_handshake_init(struct nbd_handshake *h, const struct nbd_export *exports, size_t export_count);
/* Call it when in_bytes == want_bytes: takes the message, sets what is wanted next and adds to `out`. */
void nbd_handshake_advance(struct nbd_handshake *h);

struct nbd_request {
    uint16_t flags, command;
    uint64_t cookie, offset_bytes;
    uint32_t length_bytes;
};

/* False: not a request; nothing that follows can be understood. */
bool nbd_request_parse(const struct nbd_request_header *header, struct nbd_request *ret);
/* Data that follow the request. More than NBD_MAX_REQUEST_BYTES are not taken: the client is sent away. */
uint32_t nbd_request_payload_bytes(const struct nbd_request *r);
/* 0, or the enum nbd_error that it is answered with: everything but DISC. */
uint32_t nbd_request_check(const struct nbd_request *r, const struct nbd_export *export, bool allocation);
/* What an errno is on the wire. */
uint32_t nbd_error_of(int code);

/* The head of the answer; what follows it, `data_bytes`, is 0 after an error. Returns its length. */
size_t nbd_reply_head(const struct nbd_request *r, bool structured, uint32_t error, uint32_t data_bytes,
                      char head[NBD_REPLY_HEAD_BYTES]);
/* Says in the head of a structured reply that others of the same request follow. */
void nbd_reply_goes_on(char head[NBD_REPLY_HEAD_BYTES]);

#endif
