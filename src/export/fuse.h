/* SPDX-License-Identifier: Apache-2.0 */
/* Serves a block device as the one file `vol` of a FUSE file system, straight over /dev/fuse: no libfuse, and
 * nothing that a restart could lose (node ids and file handles are fixed numbers).
 *
 * The descriptors belong to the caller, usually a holder process that outlives this one: a server that starts
 * with `resume` asks the kernel to send again what the last one had read and not answered. So each request
 * may be carried out twice; reads, writes, discards and flushes allow that.
 *
 * Threads: start, stop and free are called by one thread at a time; the export runs threads of its own, which
 * call the block concurrently. */
#ifndef TIDEMARK_EXPORT_FUSE_H
#define TIDEMARK_EXPORT_FUSE_H

#include <stdbool.h>

#include "base/error.h"
#include "base/log.h"
#include "block/block.h"

#define FUSE_EXPORT_FILE_NAME "vol" /* the file's name below the mount point */
#define FUSE_EXPORT_MAX_IO_BYTES                                                                             \
    (128 * 1024) /* largest READ and WRITE: keeps the buffers of many threads small */
#define FUSE_EXPORT_DEFAULT_THREADS 32u
#define FUSE_EXPORT_MAX_THREADS 64u
#define FUSE_EXPORT_DEFAULT_SPIN_US 100u /* about as long as a write of a virtual disk takes: one under way is waited for awake */

struct fuse_export;

struct fuse_export_options {
    struct block *block; /* not owned; must outlive the export */
    int fd;              /* /dev/fuse, mounted; not owned */
    int nonblock_fd;     /* non-blocking clone of it, for the thread that spins; -1: none spins. Not owned */
    bool resume;         /* another process has served this mount before */
    unsigned threads;    /* 0: FUSE_EXPORT_DEFAULT_THREADS */
    unsigned spin_us;    /* how long one thread asks for the next request before it sleeps; 0 with -1 above */
    const struct log *log; /* may be NULL; must outlive the export */
    const char *name;      /* the volume's, for messages; must outlive the export */
};

/* Allocates all buffers and starts the threads; requests are served when it returns. -EINVAL for options out
 * of range, -ENOMEM, or a thread's error; nothing has been read from the descriptor then. */
int fuse_export_start(const struct fuse_export_options *options, struct fuse_export **ret,
                      struct error *err) MUST_CHECK;

/* Ends the threads: each answers the request that it has, then reads no more. Requests that come later wait
 * in the kernel for the next server, or fail when the mount goes. Blocks for as long as the block's slowest
 * call. */
void fuse_export_stop(struct fuse_export *export);

/* Stops, if that was not done, and releases. NULL is allowed. */
void fuse_export_free(struct fuse_export *export);

/* Whether the kernel can send requests again (Linux 6.9): without it, I/O that a server had read when it was
 * killed hangs until the mount is aborted. Known once the kernel's INIT was served by this process; true
 * until then. */
bool fuse_export_kernel_has_resend(const struct fuse_export *export);

#endif
