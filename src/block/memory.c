/* SPDX-License-Identifier: Apache-2.0 */
/* A device in memory. M1: `data` is only touched under `lock`, shared to read. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/io.h"
#include "block/block.h"

struct block_memory {
    struct block block;
    pthread_rwlock_t lock;
    char *data;
};

static struct block_memory *memory_of(struct block *b)
{
    return (struct block_memory *)b;
}

static int memory_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes,
                        struct error *err)
{
    struct block_memory *m = memory_of(b);
    (void)err;
    pthread_rwlock_rdlock(&m->lock);
    memcpy(data, m->data + offset_bytes, length_bytes);
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int memory_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes,
                         unsigned flags, struct error *err)
{
    struct block_memory *m = memory_of(b);
    (void)flags;
    (void)err;
    pthread_rwlock_wrlock(&m->lock);
    memcpy(m->data + offset_bytes, data, length_bytes);
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int memory_flush(struct block *b, struct error *err)
{
    (void)b;
    (void)err;
    return 0;
}

static int memory_zero(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags,
                       struct error *err)
{
    struct block_memory *m = memory_of(b);
    (void)flags;
    (void)err;
    pthread_rwlock_wrlock(&m->lock);
    memset(m->data + offset_bytes, 0, length_bytes);
    pthread_rwlock_unlock(&m->lock);
    return 0;
}

static int memory_extents(struct block *b, uint64_t length_bytes, uint64_t offset_bytes,
                          struct block_extent *extents, size_t capacity, size_t *ret_count, struct error *err)
{
    struct block_memory *m = memory_of(b);
    uint64_t end = offset_bytes + length_bytes;
    size_t count = 0;
    (void)err;
    pthread_rwlock_rdlock(&m->lock);
    for (uint64_t at = offset_bytes, next; at < end; at = next) {
        next = (at / BLOCK_PAGE_BYTES + 1) * BLOCK_PAGE_BYTES;
        if (next > end)
            next = end;
        bool hole = io_is_zero(m->data + at, next - at);
        if (count && extents[count - 1].hole == hole)
            extents[count - 1].length_bytes += next - at;
        else if (count == capacity)
            break;
        else
            extents[count++] = (struct block_extent){at, next - at, hole};
    }
    pthread_rwlock_unlock(&m->lock);
    *ret_count = count;
    return 0;
}

static void memory_free(struct block *b)
{
    struct block_memory *m = memory_of(b);
    pthread_rwlock_destroy(&m->lock);
    munmap(m->data, io_whole_pages(b->size_bytes));
    free(m);
}

static const struct block_ops memory_ops = {
    .pread = memory_pread,
    .pwrite = memory_pwrite,
    .flush = memory_flush,
    .discard = memory_zero,
    .zero = memory_zero,
    .extents = memory_extents,
    .free = memory_free,
};

int block_memory_new(uint64_t size_bytes, struct block **ret, struct error *err)
{
    if (size_bytes == 0 || size_bytes % BLOCK_SECTOR_BYTES)
        return error_set(err, -EINVAL, "cannot make a device of %llu bytes: not a positive multiple of %u",
                         (unsigned long long)size_bytes, BLOCK_SECTOR_BYTES);
    struct block_memory *m = calloc(1, sizeof *m);
    void *data =
        m ? mmap(NULL, io_whole_pages(size_bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
          : MAP_FAILED;
    if (data == MAP_FAILED) {
        free(m);
        return error_errno(err, -ENOMEM, "cannot make a device of %llu bytes in memory",
                           (unsigned long long)size_bytes);
    }
    m->block = (struct block){&memory_ops, size_bytes};
    m->data = data;
    pthread_rwlock_init(&m->lock, NULL);
    *ret = &m->block;
    return 0;
}
