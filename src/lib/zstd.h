/* SPDX-License-Identifier: Apache-2.0 */
/* zstd over whole buffers. Thread-safe, nothing is kept between calls but in a coder. */
#ifndef TIDEMARK_LIB_ZSTD_H
#define TIDEMARK_LIB_ZSTD_H

#include <stddef.h>

#include "base/error.h"

#define ZSTD_LEVEL_DEFAULT 3

/* Compresses into one frame with its content size and checksum. The caller frees *ret_data. -ENOMEM. */
int zstd_compress(const void *data, size_t length_bytes, int level, void **ret_data, size_t *ret_length_bytes,
                  struct error *err) MUST_CHECK;
/* Decompresses exactly one frame whose content size is declared and at most `limit_bytes` (-EFBIG above,
 * before anything is allocated). -EBADMSG when it is damaged. The caller frees *ret_data. */
int zstd_decompress(const void *data, size_t length_bytes, size_t limit_bytes, void **ret_data,
                    size_t *ret_length_bytes, struct error *err) MUST_CHECK;
/* Without allocation of the result: -ENOSPC when it does not fit into `capacity_bytes`. */
int zstd_compress_into(const void *data, size_t length_bytes, int level, void *target, size_t capacity_bytes,
                       size_t *ret_length_bytes, struct error *err) MUST_CHECK;

/* What is used again and again: nothing is allocated after the first call of each kind. One thread at a time. */
struct zstd_coder;
int zstd_coder_new(int level, struct zstd_coder **ret, struct error *err) MUST_CHECK;
void zstd_coder_free(struct zstd_coder *c);
/* The size of the result, or 0 when it would have more than `capacity_bytes`. Neither content size nor checksum are part of it. */
size_t zstd_coder_compress(struct zstd_coder *c, const void *data, size_t length_bytes, void *target, size_t capacity_bytes);
/* -EBADMSG unless it gives exactly `length_bytes`. */
int zstd_coder_decompress(struct zstd_coder *c, const void *data, size_t data_bytes, void *target, size_t length_bytes) MUST_CHECK;

#endif
