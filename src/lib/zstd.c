/* SPDX-License-Identifier: Apache-2.0 */
#include "lib/zstd.h"

#include <errno.h>
#include <stdlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "base/cleanup.h"

static void cleanup_cctx(ZSTD_CCtx **c)
{
    ZSTD_freeCCtx(*c);
}

int zstd_compress_into(const void *data, size_t length_bytes, int level, void *target, size_t capacity_bytes,
                       size_t *ret_length_bytes, struct error *err)
{
    ZSTD_CCtx *context __attribute__((cleanup(cleanup_cctx))) = ZSTD_createCCtx();
    if (!context || ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1)))
        return error_errno(err, -ENOMEM, "cannot compress %zu bytes", length_bytes);
    size_t n = ZSTD_compress2(context, target, capacity_bytes, data, length_bytes);
    if (ZSTD_isError(n)) {
        int code = ZSTD_getErrorCode(n) == ZSTD_error_dstSize_tooSmall ? -ENOSPC : -ENOMEM;
        return error_set(err, code, "cannot compress %zu bytes: %s", length_bytes, ZSTD_getErrorName(n));
    }
    *ret_length_bytes = n;
    return 0;
}

int zstd_compress(const void *data, size_t length_bytes, int level, void **ret_data, size_t *ret_length_bytes,
                  struct error *err)
{
    size_t bound = ZSTD_compressBound(length_bytes);
    if (ZSTD_isError(bound))
        return error_set(err, -EFBIG, "cannot compress %zu bytes: too many", length_bytes);
    _cleanup_free_ void *target = malloc(bound);
    if (!target)
        return error_errno(err, -ENOMEM, "cannot compress %zu bytes", length_bytes);
    int r = zstd_compress_into(data, length_bytes, level, target, bound, ret_length_bytes, err);
    if (r < 0)
        return r;
    *ret_data = take_ptr(target);
    return 0;
}

int zstd_decompress(const void *data, size_t length_bytes, size_t limit_bytes, void **ret_data,
                    size_t *ret_length_bytes, struct error *err)
{
    size_t frame = ZSTD_findFrameCompressedSize(data, length_bytes);
    if (ZSTD_isError(frame) || frame != length_bytes)
        return error_set(err, -EBADMSG, "cannot decompress %zu bytes: not one whole zstd frame",
                         length_bytes);
    unsigned long long size = ZSTD_getFrameContentSize(data, length_bytes);
    if (size == ZSTD_CONTENTSIZE_ERROR || size == ZSTD_CONTENTSIZE_UNKNOWN)
        return error_set(err, -EBADMSG, "cannot decompress %zu bytes: the frame does not say its size",
                         length_bytes);
    if (size > limit_bytes)
        return error_set(err, -EFBIG,
                         "cannot decompress %zu bytes: the content of %llu bytes is above the limit of %zu",
                         length_bytes, size, limit_bytes);
    _cleanup_free_ void *target = malloc(size ? (size_t)size : 1);
    if (!target)
        return error_errno(err, -ENOMEM, "cannot decompress to %llu bytes", size);
    size_t n = ZSTD_decompress(target, (size_t)size, data, length_bytes);
    if (ZSTD_isError(n) || n != size)
        return error_set(err, -EBADMSG, "cannot decompress %zu bytes: %s", length_bytes,
                         ZSTD_isError(n) ? ZSTD_getErrorName(n)
                                         : "the content has another size than declared");
    *ret_data = take_ptr(target);
    *ret_length_bytes = n;
    return 0;
}

struct zstd_coder {
    ZSTD_CCtx *compress;
    ZSTD_DCtx *decompress;
    int level;
};

int zstd_coder_new(int level, struct zstd_coder **ret, struct error *err)
{
    struct zstd_coder *c = calloc(1, sizeof *c);
    if (!c)
        return error_errno(err, -ENOMEM, "cannot compress");
    c->level = level;
    *ret = c;
    return 0;
}

void zstd_coder_free(struct zstd_coder *c)
{
    if (!c)
        return;
    ZSTD_freeCCtx(c->compress);
    ZSTD_freeDCtx(c->decompress);
    free(c);
}

static ZSTD_CCtx *make_compressor(int level)
{
    ZSTD_CCtx *c = ZSTD_createCCtx();
    if (!c)
        return NULL;
    if (!ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level)) &&
        !ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, 0)) &&
        !ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 0)))
        return c;
    ZSTD_freeCCtx(c);
    return NULL;
}

size_t zstd_coder_compress(struct zstd_coder *c, const void *data, size_t length_bytes, void *target,
                           size_t capacity_bytes)
{
    if (!c->compress)
        c->compress = make_compressor(c->level);
    size_t n = c->compress ? ZSTD_compress2(c->compress, target, capacity_bytes, data, length_bytes) : 0;
    return ZSTD_isError(n) ? 0 : n;
}

int zstd_coder_decompress(struct zstd_coder *c, const void *data, size_t data_bytes, void *target,
                          size_t length_bytes)
{
    if (!c->decompress)
        c->decompress = ZSTD_createDCtx();
    if (!c->decompress)
        return -ENOMEM;
    size_t n = ZSTD_decompressDCtx(c->decompress, target, length_bytes, data, data_bytes);
    return ZSTD_isError(n) || n != length_bytes ? -EBADMSG : 0;
}
