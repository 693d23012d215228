/* SPDX-License-Identifier: Apache-2.0 */
/* Many reads, writes and flushes at once by one thread: they are started, submitted to the kernel together, and come back when they
 * have ended. Where each request costs a thread's sleep and wake-up otherwise (some 10 us each in a virtual machine), this
 * is what carries a deep queue (docs/adr/0008).
 *
 * A request that cannot be done without blocking (a range that another one has, a grain that is not plain, memory that is
 * not aligned, a failed transfer) is refused or handed back, for a thread that may block. A queue belongs to one thread. */
#ifndef TIDEMARK_BLOCK_QUEUE_H
#define TIDEMARK_BLOCK_QUEUE_H

#include <poll.h>
#include <sys/uio.h>

#include "block/block.h"

#define BLOCK_QUEUE_MAX_FDS 4u /* of block_queue_prepare_sleep */

struct block_queue;

enum block_op {
    BLOCK_OP_READ,
    BLOCK_OP_WRITE,
    BLOCK_OP_FLUSH, /* of all that has ended before it is started; without data, range and flags */
};

struct block_request {
    /* By the caller: a range that block_check_range takes, not empty; page-aligned memory that stays until it has ended. */
    enum block_op op;
    unsigned flags; /* BLOCK_FUA, of a write */
    void *data;
    size_t length_bytes;
    uint64_t offset_bytes;
    void *context; /* the caller's */

    int outcome; /* any but WAITS and TRANSFERS; DONE: the request was carried out */

    /* Of the queue and the block. */
    struct block_queue *queue;
    struct block_request *next;
    int transferred; /* of the kernel: bytes or a negative errno */
    _Alignas(8) char own[64];
};

/* What a block says of a request whose transfer has ended. */
enum block_step {
    BLOCK_STEP_DONE,
    BLOCK_STEP_WAITS,     /* for something else: ask again */
    BLOCK_STEP_TRANSFERS, /* another transfer was put into the queue */
    BLOCK_STEP_BLOCKS,    /* block_finish, by a thread that may block */
    BLOCK_STEP_AGAIN,     /* nothing is held any more: block_pread, block_pwrite or block_flush is to do it again, whole */
};

/* Room for `depth` requests at a time, of a block that block_can_queue and that outlives the queue; one queue a block.
 * -ENOSYS or another error where io_uring is not to be had. */
int block_queue_new(struct block *b, unsigned depth, struct block_queue **ret, struct error *err) MUST_CHECK;
/* Nothing may be under way. NULL allowed. */
void block_queue_free(struct block_queue *q);

/* Whether the block has a way to do without blocking. */
bool block_can_queue(const struct block *b);
/* Begins a request. 0, or -EAGAIN: not this way, block_pread, block_pwrite and block_flush can do it. */
int block_queue_start(struct block_queue *q, struct block_request *r) MUST_CHECK;
/* Submits what was begun and returns those that have ended, linked by `next`; never blocks. */
struct block_request *block_queue_poll(struct block_queue *q);
/* Begun and not returned yet. */
unsigned block_queue_busy(const struct block_queue *q);
/* For a caller that is about to sleep in poll(2): descriptors that become readable when block_queue_poll may find
 * something; their number. Call block_queue_poll once more after it, and sleep only when that returns nothing: what was
 * there before is found so, what comes later wakes. */
unsigned block_queue_prepare_sleep(struct block_queue *q, struct pollfd fds[BLOCK_QUEUE_MAX_FDS]);
/* Ends a request whose outcome is BLOCK_STEP_BLOCKS, in any thread; blocks. 0, BLOCK_STEP_AGAIN, or an error. */
int block_finish(struct block *b, struct block_request *r, struct error *err) MUST_CHECK;

/* ---- for implementations: block_async_ops of struct block_ops ---- */
struct block_async_ops {
    /* As block_queue_start. BLOCK_STEP_TRANSFERS after block_queue_transfer or block_queue_sync, or BLOCK_STEP_WAITS. */
    int (*start)(struct block *b, struct block_request *r);
    /* After each transfer, and again while it says BLOCK_STEP_WAITS; never after another answer. */
    enum block_step (*step)(struct block *b, struct block_request *r);
    int (*finish)(struct block *b, struct block_request *r, struct error *err);
    /* NULL, or: what was started is submitted now; what else it waits for is to begin. */
    void (*push)(struct block *b);
    /* NULL, or: at each poll while anything is under way: what a request waits for beside its transfer may have ended. */
    void (*poll)(struct block *b);
    /* NULL, or: memory that many writes come from, and that stays while the queue is there; may be empty. */
    struct iovec (*memory)(struct block *b);
    /* NULL, or: puts into `fds` what wakes requests that wait, at most BLOCK_QUEUE_MAX_FDS - 1, armed; the number. */
    unsigned (*prepare_sleep)(struct block *b, struct pollfd *fds);
};
/* Puts the transfer of `data`, or an fdatasync, into the queue; there is always room for one a request. */
void block_queue_transfer(struct block_request *r, int fd, void *data);
void block_queue_sync(struct block_request *r, int fd);

#endif
