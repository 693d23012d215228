/* SPDX-License-Identifier: Apache-2.0 */
/* The memory that the requests of one volume's NBD clients share, reserved at start and never more (J7). What a
 * request needs is taken in whole units, in a row. Not thread-safe: it is the loop's. */
#ifndef TIDEMARK_EXPORT_NBD_BUFFERS_H
#define TIDEMARK_EXPORT_NBD_BUFFERS_H

#include <stddef.h>

#include "base/error.h"

#define NBD_BUFFERS_UNIT_BYTES (16u << 10)
#define NBD_BUFFERS_MAX_UNITS 1024u

struct nbd_buffers;

/* Of `length_bytes`, populated; rounded down to units, of which there are NBD_BUFFERS_MAX_UNITS at most. */
int nbd_buffers_new(size_t length_bytes, struct nbd_buffers **ret, struct error *err) MUST_CHECK;
void nbd_buffers_free(struct nbd_buffers *b);
size_t nbd_buffers_size(const struct nbd_buffers *b);
/* Memory for `length_bytes` (not 0), page-aligned; NULL: not now. Given back with the same length. */
void *nbd_buffers_take(struct nbd_buffers *b, size_t length_bytes);
void nbd_buffers_give(struct nbd_buffers *b, void *data, size_t length_bytes);
/* What a length takes of nbd_buffers_size. */
size_t nbd_buffers_cost(size_t length_bytes);

#endif
