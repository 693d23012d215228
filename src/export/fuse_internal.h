/* SPDX-License-Identifier: Apache-2.0 */
/* Between the threads that read /dev/fuse (fuse_server.c) and what the requests mean (fuse_protocol.c). */
#ifndef TIDEMARK_EXPORT_FUSE_INTERNAL_H
#define TIDEMARK_EXPORT_FUSE_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>
#include <time.h>

#include "base/clock.h"
#include "block/queue.h"
#include "export/fuse.h"
#include "export/fuse_abi.h"

#define FUSE_NODE_ROOT 1u /* FUSE_ROOT_ID */
#define FUSE_NODE_FILE 2u
#define FUSE_FILE_HANDLE 1u
#define FUSE_CACHE_SECONDS 86400u /* names and attributes never change */
#define FUSE_MAX_BACKGROUND 256
#define FUSE_ERROR_LOG_INTERVAL_NS 1000000000ull /* one line a second at the most */

/* Buffer of a thread: [page: ... request header and arguments][payload]. The kernel is given the address
 * FUSE_REQUEST_OFFSET, so that a WRITE's payload begins at the second page (F1 of fuse_server.c). */
#define FUSE_WRITE_HEAD_BYTES (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define FUSE_REQUEST_OFFSET (BLOCK_PAGE_BYTES - FUSE_WRITE_HEAD_BYTES)
#define FUSE_BUFFER_BYTES (BLOCK_PAGE_BYTES + FUSE_EXPORT_MAX_IO_BYTES + BLOCK_PAGE_BYTES)
#define FUSE_REQUEST_CAPACITY_BYTES (FUSE_BUFFER_BYTES - FUSE_REQUEST_OFFSET)

struct fuse_protocol {
    struct block *block;
    const struct log *log;
    const char *name;
    atomic_bool no_resend; /* INIT came, without HAS_RESEND */
    _Atomic uint64_t last_error_ns;
    _Atomic uint64_t unlogged_errors;
    atomic_bool gone; /* the mount went away: said once */
};

#define FUSE_DIRENT_BYTES 96 /* ".", ".." and "vol": three times 24 + 8 */

struct fuse_answer {
    bool wanted; /* false: the request has no answer */
    int code;    /* 0 or a negative errno, without payload then */
    const void *payload;
    size_t payload_bytes;
    union {
        struct fuse_init_out init;
        struct fuse_entry_out entry;
        struct fuse_attr_out attr;
        struct fuse_abi_statx_out statx;
        struct fuse_open_out open;
        struct fuse_statfs_out statfs;
        struct fuse_write_out write;
        char directory[FUSE_DIRENT_BYTES];
    } body; /* where the payload stands, except of a READ */
};

/* --- fuse_server.c, for the loop too --- */

static inline uint64_t fuse_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* The answer to request `unique` as writev(2) takes it, in 1 or 2 parts (their number), which point to `header` and to what `answer` points to. */
unsigned fuse_answer_vector(uint64_t unique, const struct fuse_answer *answer, struct fuse_out_header *header, struct iovec vector[2]);
/* Sends the answer to request `unique` to the descriptor that it was read from. */
void fuse_send_answer(const struct fuse_protocol *p, int fd, uint64_t unique, struct fuse_answer *answer);
/* Whether to go on after a failed read of errno `code`; says once why not. */
bool fuse_receive_again(struct fuse_protocol *p, int code, bool stopping);

/* --- fuse_loop.c: one thread that has many requests under way, for blocks that can queue --- */

struct fuse_loop;
/* `fd` is non-blocking. `protocol` outlives the loop. */
int fuse_loop_start(struct fuse_protocol *protocol, int fd, uint64_t spin_ns, struct fuse_loop **ret, struct error *err) MUST_CHECK;
/* Answers what was read, ends the threads, releases. NULL allowed. */
void fuse_loop_free(struct fuse_loop *l);

/* Carries out the request of `length_bytes` at buffer + FUSE_REQUEST_OFFSET. The answer's payload points into
 * `answer` or `buffer`. A request that is too short for its opcode is answered -EINVAL. */
void fuse_protocol_handle(struct fuse_protocol *protocol, char *buffer, size_t length_bytes,
                          struct fuse_answer *answer);
/* Whether it is a READ, WRITE or FSYNC that block_queue_start can be asked to carry out, which `r` then describes. */
bool fuse_protocol_transfer(const struct fuse_protocol *protocol, char *buffer, size_t length_bytes, struct block_request *r);
/* The answer to that; `err` with its code, or 0. */
void fuse_protocol_transferred(struct fuse_protocol *protocol, const struct block_request *r, int code, const struct error *err,
                               struct fuse_answer *answer);
/* Whether carrying it out may block for long: for a thread that may. */
bool fuse_protocol_blocks(const char *buffer);

#endif
