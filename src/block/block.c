/* SPDX-License-Identifier: Apache-2.0 */
/* Range checks and dispatch. B1: an implementation is only called with a range that is sector-aligned, inside
 * the device and not empty. */
#include "block/block.h"

#include <errno.h>

int block_check_range(const struct block *b, uint64_t length_bytes, uint64_t offset_bytes, struct error *err)
{
    if (length_bytes % BLOCK_SECTOR_BYTES || offset_bytes % BLOCK_SECTOR_BYTES)
        return error_set(err, -EINVAL, "range of %llu bytes at offset %llu is not a multiple of %u bytes",
                         (unsigned long long)length_bytes, (unsigned long long)offset_bytes,
                         BLOCK_SECTOR_BYTES);
    if (offset_bytes > b->size_bytes || length_bytes > b->size_bytes - offset_bytes)
        return error_set(err, -ENXIO,
                         "range of %llu bytes at offset %llu is outside the device of %llu bytes",
                         (unsigned long long)length_bytes, (unsigned long long)offset_bytes,
                         (unsigned long long)b->size_bytes);
    return 0;
}

int block_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes, struct error *err)
{
    int r = block_check_range(b, length_bytes, offset_bytes, err);
    if (r < 0 || length_bytes == 0)
        return r;
    return b->ops->pread(b, data, length_bytes, offset_bytes, err);
}

int block_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes,
                 unsigned flags, struct error *err)
{
    int r = block_check_range(b, length_bytes, offset_bytes, err);
    if (r < 0 || length_bytes == 0)
        return r;
    return b->ops->pwrite(b, data, length_bytes, offset_bytes, flags, err);
}

int block_flush(struct block *b, struct error *err)
{
    return b->ops->flush(b, err);
}

int block_discard(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags,
                  struct error *err)
{
    int r = block_check_range(b, length_bytes, offset_bytes, err);
    if (r < 0 || length_bytes == 0)
        return r;
    return b->ops->discard(b, length_bytes, offset_bytes, flags, err);
}

int block_zero(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags,
               struct error *err)
{
    int r = block_check_range(b, length_bytes, offset_bytes, err);
    if (r < 0 || length_bytes == 0)
        return r;
    return b->ops->zero(b, length_bytes, offset_bytes, flags, err);
}

int block_extents(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, struct block_extent *extents,
                  size_t capacity, size_t *ret_count, struct error *err)
{
    int r = block_check_range(b, length_bytes, offset_bytes, err);
    if (r < 0)
        return r;
    if (length_bytes == 0 || capacity == 0) {
        *ret_count = 0;
        return 0;
    }
    if (b->ops->extents)
        return b->ops->extents(b, length_bytes, offset_bytes, extents, capacity, ret_count, err);
    extents[0] = (struct block_extent){offset_bytes, length_bytes, false};
    *ret_count = 1;
    return 0;
}

void block_free(struct block *b)
{
    if (b)
        b->ops->free(b);
}
