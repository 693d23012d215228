/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever a client says: the handshake ends in a choice that exists or in a farewell, what it answers fits,
 * and a request that passes the check lies inside its export. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "export/nbd_protocol.h"

static const struct nbd_export exports[] = {{"data", 1 << 20, true}, {"wal", 4096 + 512, false}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void requests(const struct nbd_handshake *h, const uint8_t *data, size_t size)
{
    const struct nbd_export *x = &exports[h->export];
    struct nbd_request_header header;
    char head[NBD_REPLY_HEAD_BYTES];
    while (size >= sizeof header) {
        struct nbd_request r;
        memcpy(&header, data, sizeof header);
        if (!nbd_request_parse(&header, &r))
            return;
        uint32_t error = nbd_request_check(&r, x, h->allocation), payload = nbd_request_payload_bytes(&r);
        if (!error) {
            assert(r.offset_bytes <= x->size_bytes && r.length_bytes <= x->size_bytes - r.offset_bytes);
            assert(r.command <= NBD_CMD_BLOCK_STATUS && r.command != NBD_CMD_DISC);
        }
        assert(nbd_reply_head(&r, h->structured, error, error ? 0 : r.length_bytes, head) <= sizeof head);
        data += sizeof header;
        size -= sizeof header;
        if (payload > size)
            return;
        data += payload;
        size -= payload;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nbd_handshake *h = malloc(sizeof *h);
    size_t count = size && data[0] & 1 ? 1 : 2;
    if (!h)
        return 0;
    nbd_handshake_init(h, exports, count);
    assert(h->out_bytes == sizeof(struct nbd_greeting));
    while (h->state != NBD_TRANSMISSION && h->state != NBD_CLOSED) {
        h->out_bytes = 0;
        assert(h->want_bytes > h->in_bytes && h->want_bytes <= sizeof h->in);
        size_t part = h->want_bytes - h->in_bytes;
        if (part > size)
            break;
        memcpy(h->in + h->in_bytes, data, part);
        h->in_bytes += part;
        data += part;
        size -= part;
        nbd_handshake_advance(h);
        assert(h->out_bytes <= sizeof h->out);
    }
    if (h->state == NBD_TRANSMISSION) {
        assert(h->export < count && (!h->allocation || (h->structured && exports[h->export].extents)));
        requests(h, data, size);
    }
    free(h);
    return 0;
}
