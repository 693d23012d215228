/* SPDX-License-Identifier: Apache-2.0 */
/* What Tidemark uses of the FUSE protocol (linux/fuse.h) and Debian 12's header, 7.38, does not have yet.
 * Values and layouts are those of the kernel's include/uapi/linux/fuse.h. */
#ifndef TIDEMARK_EXPORT_FUSE_ABI_H
#define TIDEMARK_EXPORT_FUSE_ABI_H

#include <assert.h>
#include <linux/fuse.h>
#include <stdint.h>

#define FUSE_ABI_MINOR 40 /* the newest minor that is spoken: the one that brought the resend */

/* Flags of INIT from bit 32 on stand in flags2. */
#define FUSE_ABI_DIRECT_IO_ALLOW_MMAP (1ull << 36)
#define FUSE_ABI_HAS_RESEND (1ull << 39)

#define FUSE_ABI_OPEN_PARALLEL_DIRECT_WRITES (1u << 6)

#define FUSE_ABI_NOTIFY_RESEND 7            /* notification: send again what was read and not answered */
#define FUSE_ABI_UNIQUE_RESEND (1ull << 63) /* in `unique` of a request that was sent again; echoed */

#define FUSE_ABI_STATX 52

struct fuse_abi_statx_in {
    uint32_t getattr_flags;
    uint32_t reserved;
    uint64_t fh;
    uint32_t sx_flags;
    uint32_t sx_mask;
};

struct fuse_abi_sx_time {
    int64_t tv_sec;
    uint32_t tv_nsec;
    int32_t reserved;
};

struct fuse_abi_statx {
    uint32_t mask;
    uint32_t blksize;
    uint64_t attributes;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint16_t mode;
    uint16_t spare0[1];
    uint64_t ino;
    uint64_t size;
    uint64_t blocks;
    uint64_t attributes_mask;
    struct fuse_abi_sx_time atime;
    struct fuse_abi_sx_time btime;
    struct fuse_abi_sx_time ctime;
    struct fuse_abi_sx_time mtime;
    uint32_t rdev_major;
    uint32_t rdev_minor;
    uint32_t dev_major;
    uint32_t dev_minor;
    uint64_t spare2[14];
};

struct fuse_abi_statx_out {
    uint64_t attr_valid;
    uint32_t attr_valid_nsec;
    uint32_t flags;
    uint64_t spare[2];
    struct fuse_abi_statx stat;
};

static_assert(sizeof(struct fuse_in_header) == 40, "wire layout");
static_assert(sizeof(struct fuse_out_header) == 16, "wire layout");
static_assert(sizeof(struct fuse_write_in) == 40, "wire layout");
static_assert(sizeof(struct fuse_read_in) == 40, "wire layout");
static_assert(sizeof(struct fuse_init_out) == 64, "wire layout");
static_assert(sizeof(struct fuse_abi_sx_time) == 16, "wire layout");
static_assert(sizeof(struct fuse_abi_statx) == 256, "wire layout");
static_assert(sizeof(struct fuse_abi_statx_out) == 288, "wire layout");

#endif
