/* SPDX-License-Identifier: Apache-2.0 */
/* A bit a unit. Single units, which most requests are, come from the beginning, where their memory stays warm;
 * rows of several from the end, so that small ones do not cut up the room of large ones. */
#include "export/nbd_buffers.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/io.h"

#define WORD_BITS 64u

struct nbd_buffers {
    char *memory;
    size_t length_bytes, units;
    uint64_t used[NBD_BUFFERS_MAX_UNITS / WORD_BITS]; /* units that are not there count as used */
};

static size_t units_of(size_t length_bytes)
{
    return (length_bytes + NBD_BUFFERS_UNIT_BYTES - 1) / NBD_BUFFERS_UNIT_BYTES;
}

size_t nbd_buffers_cost(size_t length_bytes)
{
    return units_of(length_bytes) * NBD_BUFFERS_UNIT_BYTES;
}

static bool is_used(const struct nbd_buffers *b, size_t unit)
{
    return b->used[unit / WORD_BITS] >> unit % WORD_BITS & 1;
}

int nbd_buffers_new(size_t length_bytes, struct nbd_buffers **ret, struct error *err)
{
    struct nbd_buffers *b = calloc(1, sizeof *b);
    size_t units = length_bytes / NBD_BUFFERS_UNIT_BYTES;
    if (!b)
        return error_errno(err, -ENOMEM, "cannot reserve memory for requests");
    b->units = units < NBD_BUFFERS_MAX_UNITS ? units : NBD_BUFFERS_MAX_UNITS;
    b->length_bytes = b->units * NBD_BUFFERS_UNIT_BYTES;
    for (size_t i = b->units; i < NBD_BUFFERS_MAX_UNITS; i++)
        b->used[i / WORD_BITS] |= 1ull << i % WORD_BITS;
    b->memory = b->units ? io_alloc_pages(b->length_bytes) : NULL;
    if (!b->memory) {
        free(b);
        return error_errno(err, -ENOMEM, "cannot reserve %zu bytes for requests", length_bytes);
    }
    *ret = b;
    return 0;
}

void nbd_buffers_free(struct nbd_buffers *b)
{
    if (!b)
        return;
    io_free_pages(b->memory, b->length_bytes);
    free(b);
}

size_t nbd_buffers_size(const struct nbd_buffers *b)
{
    return b->length_bytes;
}

static void *take_one(struct nbd_buffers *b)
{
    for (size_t i = 0; i < NBD_BUFFERS_MAX_UNITS / WORD_BITS; i++) {
        if (b->used[i] == UINT64_MAX)
            continue;
        unsigned bit = (unsigned)__builtin_ctzll(~b->used[i]);
        b->used[i] |= 1ull << bit;
        return b->memory + (i * WORD_BITS + bit) * NBD_BUFFERS_UNIT_BYTES;
    }
    return NULL;
}

void *nbd_buffers_take(struct nbd_buffers *b, size_t length_bytes)
{
    size_t wanted = units_of(length_bytes), found = 0;
    assert(wanted > 0);
    if (wanted == 1)
        return take_one(b);
    for (size_t i = b->units; i-- > 0;) {
        found = is_used(b, i) ? 0 : found + 1;
        if (found < wanted)
            continue;
        for (size_t k = i; k < i + wanted; k++)
            b->used[k / WORD_BITS] |= 1ull << k % WORD_BITS;
        return b->memory + i * NBD_BUFFERS_UNIT_BYTES;
    }
    return NULL;
}

void nbd_buffers_give(struct nbd_buffers *b, void *data, size_t length_bytes)
{
    size_t first = (size_t)((char *)data - b->memory) / NBD_BUFFERS_UNIT_BYTES;
    for (size_t i = first; i < first + units_of(length_bytes); i++) {
        assert(i < b->units && is_used(b, i));
        b->used[i / WORD_BITS] &= ~(1ull << i % WORD_BITS);
    }
}
