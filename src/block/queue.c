/* SPDX-License-Identifier: Apache-2.0 */
/* Invariants:
 * Q1  A request is in one list at a time: the kernel has it, or it is `waiting`, or it was returned.
 * Q2  The kernel's queue has room for a transfer of each request, so that a start never has to submit.
 * Q3  A block's push comes after the starts that it is for and before the transfers are submitted, so that what is
 *     written twice (backing and journal) is written in parallel.
 * Q4  While anything is under way, going to sleep arms all that can wake it: a request moves on from one to the other. */
#include "block/queue.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/io.h"
#include "base/uring.h"

struct block_queue {
    struct block *block;
    struct io_uring ring;
    struct iovec known; /* of uring_register */
    unsigned depth, busy, in_kernel, unsubmitted;
    bool push; /* something was begun since the last poll */
    struct block_request *waiting;
};

int block_queue_new(struct block *b, unsigned depth, struct block_queue **ret, struct error *err)
{
    struct block_queue *q = calloc(1, sizeof *q);
    if (!q)
        return error_errno(err, -ENOMEM, "cannot make a queue of requests");
    q->block = b;
    q->depth = depth;
    /* Completions are taken when this thread enters the kernel, not by interrupting it (Linux 6.0). */
    int r = io_uring_queue_init(depth, &q->ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_R_DISABLED);
    if (r == -EINVAL)
        r = io_uring_queue_init(depth, &q->ring, IORING_SETUP_R_DISABLED);
    if (r < 0) {
        free(q);
        return io_no_uring(r, err);
    }
    if (b->ops->async->memory)
        q->known = uring_register(&q->ring, b->ops->async->memory(b));
    *ret = q;
    return 0;
}

void block_queue_free(struct block_queue *q)
{
    if (!q)
        return;
    io_uring_queue_exit(&q->ring);
    free(q);
}

bool block_can_queue(const struct block *b)
{
    return b->ops->async != NULL;
}

int block_queue_start(struct block_queue *q, struct block_request *r)
{
    if (q->busy == q->depth)
        return -EAGAIN;
    r->queue = q;
    r->next = NULL;
    int result = q->block->ops->async->start(q->block, r);
    if (result < 0)
        return result;
    q->busy++;
    q->push |= r->op != BLOCK_OP_READ;
    if (result == BLOCK_STEP_WAITS) {
        r->next = q->waiting;
        q->waiting = r;
    }
    return 0;
}

static void put(struct block_request *r, struct io_uring_sqe *sqe)
{
    io_uring_sqe_set_data(sqe, r);
    r->queue->unsubmitted++;
    r->queue->in_kernel++;
}

void block_queue_transfer(struct block_request *r, int fd, void *data)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->queue->ring);
    if (r->op == BLOCK_OP_WRITE)
        uring_prep_write(sqe, &r->queue->known, fd, data, (unsigned)r->length_bytes, r->offset_bytes);
    else
        io_uring_prep_read(sqe, fd, data, (unsigned)r->length_bytes, r->offset_bytes);
    put(r, sqe);
}

void block_queue_sync(struct block_request *r, int fd)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->queue->ring);
    io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    put(r, sqe);
}

/* Enables the ring in the thread that uses it: it is that thread's from then on. */
static void submit(struct block_queue *q)
{
    if (q->ring.flags & IORING_SETUP_R_DISABLED) {
        syscall(SYS_io_uring_register, q->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0); /* liburing 2.3 forgot to export it */
        q->ring.flags &= ~IORING_SETUP_R_DISABLED;
    }
    if (q->push && q->block->ops->async->push)
        q->block->ops->async->push(q->block);
    q->push = false;
    while (q->unsubmitted || q->in_kernel) {
        int r = io_uring_submit_and_get_events(&q->ring);
        if (r >= 0)
            q->unsubmitted -= (unsigned)r < q->unsubmitted ? (unsigned)r : q->unsubmitted;
        if (!q->unsubmitted || (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY))
            break;
    }
}

/* Where a request goes after its block's step: to the kernel, back to the caller, or to those that wait. */
static void place(struct block_queue *q, struct block_request *r, enum block_step step, struct block_request **done)
{
    if (step == BLOCK_STEP_TRANSFERS) {
        q->push = true;
        return;
    }
    struct block_request **list = step == BLOCK_STEP_WAITS ? &q->waiting : done;
    r->outcome = (int)step;
    r->next = *list;
    *list = r;
    if (step != BLOCK_STEP_WAITS)
        q->busy--;
}

struct block_request *block_queue_poll(struct block_queue *q)
{
    struct block_request *done = NULL, *waiting = q->waiting;
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    submit(q);
    if (q->busy && q->block->ops->async->poll)
        q->block->ops->async->poll(q->block);
    q->waiting = NULL;
    io_uring_for_each_cqe(&q->ring, head, cqe) {
        struct block_request *r = io_uring_cqe_get_data(cqe);
        r->transferred = cqe->res;
        q->in_kernel--;
        count++;
        place(q, r, q->block->ops->async->step(q->block, r), &done);
    }
    io_uring_cq_advance(&q->ring, count);
    while (waiting) { /* after the transfers: some wait for those of others */
        struct block_request *r = waiting;
        waiting = r->next;
        place(q, r, q->block->ops->async->step(q->block, r), &done);
    }
    if (q->unsubmitted)
        submit(q); /* before the caller may sleep */
    return done;
}

unsigned block_queue_busy(const struct block_queue *q)
{
    return q->busy;
}

unsigned block_queue_prepare_sleep(struct block_queue *q, struct pollfd fds[BLOCK_QUEUE_MAX_FDS])
{
    unsigned count = 0;
    if (!q->busy)
        return 0;
    fds[count++] = (struct pollfd){.fd = q->ring.ring_fd, .events = POLLIN};
    if (q->block->ops->async->prepare_sleep)
        count += q->block->ops->async->prepare_sleep(q->block, fds + count);
    return count;
}

int block_finish(struct block *b, struct block_request *r, struct error *err)
{
    return b->ops->async->finish(b, r, err);
}
