/* SPDX-License-Identifier: Apache-2.0 */
/* Serves /dev/fuse by one thread that has many reads, writes and flushes under way (block/queue.h), and some (workers.h) that
 * do what blocks: discards, and what the queue refuses or hands back.
 *
 * Invariants: F1 and F2 of fuse_server.c, F3 by its caller, and
 * L1  A slot has one owner: the free list, the queue, the workers, or whoever handles it right now.
 * L2  The loop sleeps only after it found nothing while what wakes it was armed.
 * L3  It asks without sleeping for spin_ns after its last progress: a sleep and a wake-up cost more than a request.
 * L4  Answers that are there together go to the kernel by one call: each ends a request of the loop device, and what follows from that has the
 *     processor as soon as the call ends. */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/io.h"
#include "base/thread.h"
#include "export/fuse_internal.h"
#include "export/workers.h"

#define SLOTS 48u
#define JOB_THREADS 8u
/* Taken before what was begun is submitted: few, so that the disk has work while the next are read. */
#define READS_AT_ONCE 4u
#define READ_BYTES_AT_ONCE (64u << 10)

struct slot {
    struct work work; /* first; links the free list too */
    char *buffer;     /* FUSE_BUFFER_BYTES */
    size_t length_bytes;
    struct block_request request;
    struct fuse_answer answer; /* of a request that has ended, until the kernel has it */
    struct fuse_out_header header;
    struct iovec vector[2];
};

struct fuse_loop {
    struct fuse_protocol *protocol;
    int fd;
    uint64_t spin_ns;
    struct block_queue *queue;
    struct workers *workers;
    struct io_uring answers;
    bool has_answers; /* the ring is made */
    struct slot slots[SLOTS];
    struct work *free; /* the loop's own */
    bool gone;         /* nothing more can be read */
    atomic_bool stopping;
    pthread_t thread;
    bool thread_runs;
};

static uint64_t unique_of(const struct slot *s)
{
    return ((const struct fuse_in_header *)(const void *)(s->buffer + FUSE_REQUEST_OFFSET))->unique;
}

/* A free slot for the loop, or NULL. */
static struct slot *take_slot(struct fuse_loop *l)
{
    if (!l->free)
        l->free = workers_take_returned(l->workers);
    struct work *w = l->free;
    if (w)
        l->free = w->next;
    return (struct slot *)w;
}

static void keep_slot(struct fuse_loop *l, struct slot *s)
{
    s->work.next = l->free;
    l->free = &s->work;
}

/* ---- the threads that may block ---- */

static bool do_job(void *context, struct work *work)
{
    struct fuse_loop *l = context;
    struct slot *s = (struct slot *)work;
    struct fuse_answer answer;
    fuse_protocol_handle(l->protocol, s->buffer, s->length_bytes, &answer);
    if (answer.wanted)
        fuse_send_answer(l->protocol, l->fd, unique_of(s), &answer);
    return true;
}

static bool do_finish(void *context, struct work *work)
{
    struct fuse_loop *l = context;
    struct slot *s = (struct slot *)work;
    struct error err = ERROR_INIT;
    struct fuse_answer answer;
    int r = block_finish(l->protocol->block, &s->request, &err);
    if (r == BLOCK_STEP_AGAIN) {
        workers_job(l->workers, &s->work);
        return false;
    }
    fuse_protocol_transferred(l->protocol, &s->request, r, &err, &answer);
    fuse_send_answer(l->protocol, l->fd, unique_of(s), &answer);
    return true;
}

/* ---- the loop ---- */

/* Begins a request that was read, or hands it over, or answers it. */
static void begin(struct fuse_loop *l, struct slot *s)
{
    if (fuse_protocol_transfer(l->protocol, s->buffer, s->length_bytes, &s->request)) {
        s->request.context = s;
        if (block_queue_start(l->queue, &s->request) == 0)
            return;
    }
    if (fuse_protocol_blocks(s->buffer)) {
        workers_job(l->workers, &s->work);
        return;
    }
    do_job(l, &s->work);
    keep_slot(l, s);
}

/* Whether a request was taken. */
static bool take_requests(struct fuse_loop *l)
{
    bool any = false;
    size_t bytes = 0;
    for (unsigned i = 0; i < READS_AT_ONCE && bytes < READ_BYTES_AT_ONCE && !l->gone; i++) {
        struct slot *s = take_slot(l);
        if (!s)
            break;
        ssize_t n = read(l->fd, s->buffer + FUSE_REQUEST_OFFSET, FUSE_REQUEST_CAPACITY_BYTES);
        if (n >= (ssize_t)sizeof(struct fuse_in_header)) {
            s->length_bytes = (size_t)n;
            bytes += (size_t)n;
            begin(l, s);
            any = true;
            continue;
        }
        int code = errno;
        keep_slot(l, s);
        if (n < 0 && code == EAGAIN)
            break;
        if (n == 0 || (n < 0 && !fuse_receive_again(l->protocol, code, atomic_load(&l->stopping))))
            l->gone = true; /* 0: not a FUSE device, the other end of a test's socket was closed */
    }
    return any;
}

/* Of a request that has ended. */
static void queue_answer(struct fuse_loop *l, struct slot *s)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&l->answers);
    io_uring_prep_writev(sqe, l->fd, s->vector, fuse_answer_vector(unique_of(s), &s->answer, &s->header, s->vector), 0);
    io_uring_sqe_set_data(sqe, s);
}

/* L4 */
static void send_answers(struct fuse_loop *l)
{
    for (unsigned left = io_uring_sq_ready(&l->answers); left;) {
        struct io_uring_cqe *cqe;
        (void)io_uring_submit_and_wait(&l->answers, 1); /* what it could not submit is submitted next time */
        while (io_uring_peek_cqe(&l->answers, &cqe) == 0) {
            struct slot *s = io_uring_cqe_get_data(cqe);
            if (cqe->res < 0) /* again, and says why not */
                fuse_send_answer(l->protocol, l->fd, unique_of(s), &s->answer);
            keep_slot(l, s);
            io_uring_cqe_seen(&l->answers, cqe);
            left--;
        }
    }
}

/* Whether a request has ended. */
static bool end_requests(struct fuse_loop *l)
{
    struct block_request *done = block_queue_poll(l->queue);
    bool any = done != NULL;
    while (done) {
        struct block_request *r = done;
        struct slot *s = r->context;
        done = r->next;
        if (workers_go_on(l->workers, r->outcome, &s->work))
            continue;
        fuse_protocol_transferred(l->protocol, r, 0, NULL, &s->answer);
        queue_answer(l, s);
    }
    send_answers(l);
    return any;
}

/* Whether a request could be taken now. */
static bool has_free_slot(struct fuse_loop *l)
{
    struct slot *s = take_slot(l);
    if (s)
        keep_slot(l, s);
    return s != NULL;
}

static void sleep_until_work(struct fuse_loop *l)
{
    struct pollfd fds[BLOCK_QUEUE_MAX_FDS + 2];
    unsigned count = block_queue_prepare_sleep(l->queue, fds);
    workers_arm(l->workers, true); /* before the look for a free slot (L2) */
    bool reads = has_free_slot(l) && !l->gone && !atomic_load(&l->stopping);
    if (reads)
        workers_arm(l->workers, false);
    if (end_requests(l))
        return;
    fds[count++] = (struct pollfd){.fd = workers_fd(l->workers), .events = POLLIN};
    if (reads)
        fds[count++] = (struct pollfd){.fd = l->fd, .events = POLLIN};
    if (poll(fds, count, -1) > 0)
        workers_drain(l->workers);
}

static void *loop_main(void *context)
{
    struct fuse_loop *l = context;
    uint64_t last = fuse_monotonic_ns();
    for (;;) {
        bool stopping = atomic_load(&l->stopping);
        bool progress = !stopping && take_requests(l);
        progress |= end_requests(l);
        if (stopping && block_queue_busy(l->queue) == 0)
            return NULL;
        uint64_t now = fuse_monotonic_ns();
        if (progress)
            last = now;
        else if (now - last >= l->spin_ns)
            sleep_until_work(l);
    }
}

/* ---- start and end ---- */

int fuse_loop_start(struct fuse_protocol *protocol, int fd, uint64_t spin_ns, struct fuse_loop **ret, struct error *err)
{
    struct fuse_loop *l = calloc(1, sizeof *l);
    if (!l)
        return error_errno(err, -ENOMEM, "cannot serve volume %s", protocol->name);
    l->protocol = protocol;
    l->fd = fd;
    l->spin_ns = spin_ns;
    struct workers_options workers = {
        .name = "fuse", .threads = JOB_THREADS, .job = do_job, .finish = do_finish, .context = l, .log = protocol->log};
    int r = block_queue_new(protocol->block, SLOTS, &l->queue, err);
    if (r == 0) {
        r = io_uring_queue_init(SLOTS, &l->answers, 0);
        l->has_answers = r == 0;
        if (r < 0)
            io_no_uring(r, err);
    }
    for (unsigned i = 0; i < SLOTS && r == 0; i++) {
        l->slots[i].buffer = io_alloc_pages(FUSE_BUFFER_BYTES);
        if (!l->slots[i].buffer)
            r = error_errno(err, -ENOMEM, "cannot allocate the buffers of %u requests", SLOTS);
        keep_slot(l, &l->slots[i]);
    }
    if (r == 0)
        r = workers_start(&workers, &l->workers, err);
    if (r == 0)
        r = thread_start(&l->thread, "fuse", loop_main, l, err);
    l->thread_runs = r == 0;
    if (r < 0) {
        fuse_loop_free(l);
        return r;
    }
    *ret = l;
    return 0;
}

void fuse_loop_free(struct fuse_loop *l)
{
    if (!l)
        return;
    atomic_store(&l->stopping, true);
    if (l->workers)
        workers_wake(l->workers);
    if (l->thread_runs)
        pthread_join(l->thread, NULL);
    workers_free(l->workers);
    block_queue_free(l->queue);
    if (l->has_answers)
        io_uring_queue_exit(&l->answers);
    for (unsigned i = 0; i < SLOTS; i++)
        io_free_pages(l->slots[i].buffer, FUSE_BUFFER_BYTES);
    free(l);
}
