/* SPDX-License-Identifier: Apache-2.0 */
/* A block device as seen from above: synchronous and thread-safe, so that concurrency comes from the callers'
 * threads and layers read from top to bottom.
 *
 * Offsets and lengths are bytes, multiples of 512, inside the device; callers (exports) check them with
 * block_check_range first. Discarded ranges read as zeroes. */
#ifndef TIDEMARK_BLOCK_BLOCK_H
#define TIDEMARK_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define BLOCK_SECTOR_BYTES 512u
#define BLOCK_PAGE_BYTES 4096u

enum block_flags {
    BLOCK_FUA = 1 << 0, /* durable before it returns */
};

struct block;
struct block_async_ops;
struct block_request;

/* A stretch for block_extents: `hole` when it is known to read as zeroes. */
struct block_extent {
    uint64_t offset_bytes;
    uint64_t length_bytes;
    bool hole;
};

struct block_ops {
    int (*pread)(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes, struct error *err);
    int (*pwrite)(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags,
                  struct error *err);
    int (*flush)(struct block *b, struct error *err);
    int (*discard)(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err);
    int (*zero)(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err);
    /* Describes [offset, offset+length) from its start by at most `capacity` extents; may stop short. NULL: all data. */
    int (*extents)(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, struct block_extent *extents,
                   size_t capacity, size_t *ret_count, struct error *err);
    void (*free)(struct block *b);
    const struct block_async_ops *async; /* block/queue.h; NULL: none */
};

/* Embedded as first member by each implementation. */
struct block {
    const struct block_ops *ops;
    uint64_t size_bytes;
};

/* -EINVAL or -ENXIO with a message unless the range is sector-aligned and inside the device. */
int block_check_range(const struct block *b, uint64_t length_bytes, uint64_t offset_bytes, struct error *err) MUST_CHECK;
int block_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes, struct error *err) MUST_CHECK;
int block_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags,
                 struct error *err) MUST_CHECK;
int block_flush(struct block *b, struct error *err) MUST_CHECK;
int block_discard(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags,
                  struct error *err) MUST_CHECK;
int block_zero(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err) MUST_CHECK;
int block_extents(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, struct block_extent *extents,
                  size_t capacity, size_t *ret_count, struct error *err) MUST_CHECK;
/* NULL is allowed. */
void block_free(struct block *b);

/* A sparse file or block device, opened with O_DIRECT where the file system can. `data` that is not 4 KiB-aligned,
 * and ranges that are not, go by a bounce buffer of the calling thread's. Discard and zero punch holes (or zero
 * the range where that fails), so that the range reads as zeroes. `create_bytes` > 0 creates it sparse with that
 * size when it is missing; an existing one keeps its size. */
int block_file_open(const char *path, uint64_t create_bytes, bool read_only, struct block **ret, struct error *err) MUST_CHECK;
/* The same to write, taken for itself: -EBUSY while a mount, a loop device's or virtual machine's lock or another engine has it, after
 * `wait_ms`. The writes that the kernel still has of an engine that was killed count as one: its process is gone before they are. */
int block_file_open_exclusive(const char *path, uint64_t create_bytes, unsigned wait_ms, struct block **ret, struct error *err) MUST_CHECK;
/* Gives the file at least that size, sparse and durable; a device must have it already (-ENOSPC). What is there stays. */
int block_file_grow(struct block *b, uint64_t size_bytes, struct error *err) MUST_CHECK;
/* The file's descriptor (owned by the block), for io_uring and fdatasync by the caller. */
int block_file_fd(const struct block *b);
/* Whether the range can be transferred from page-aligned memory without a bounce buffer, a lock or the page cache. */
bool block_file_is_direct(const struct block *b, uint64_t length_bytes, uint64_t offset_bytes);

/* Zeroed memory, for tests. */
int block_memory_new(uint64_t size_bytes, struct block **ret, struct error *err) MUST_CHECK;

/* Copy-on-write: reads come from `lower` until written; writes, discards and zeroes go to the sparse file `path`
 * in grains of 64 KiB, with a bitmap of grains in memory. `lower` is not owned. Nothing is durable: for views. */
int block_overlay_new(struct block *lower, const char *path, struct block **ret, struct error *err) MUST_CHECK;
/* Bytes of the overlay file in use. */
uint64_t block_overlay_used_bytes(const struct block *b);

#endif
