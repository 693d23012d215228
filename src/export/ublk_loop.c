/* SPDX-License-Identifier: Apache-2.0 */
/* Serves the queues of one ublk device by one thread that has many requests under way (block/queue.h), and
 * some (workers.h) that do what blocks. A view, which has no queue, is served by those alone.
 *
 * The kernel takes the commands of a queue from one thread only. That thread has all queues of the device, in
 * one io_uring: the engine gives all writes one order anyway, and threads that spin would take the processor
 * from each other (docs/adr/0017).
 *
 * Invariants:
 * K1  A slot is a tag of a queue. It has one owner: the kernel, the queue of the block, the workers, or the
 * loop right now. K2  The kernel copies a write's data into the slot's buffer before the loop sees the
 * request, and a read's out of it when the answer is submitted. Buffers are populated at start: a fault under
 * memory pressure could wait for write-back to the very volume that is served here. K3  Only the loop touches
 * the ring. K4  The loop sleeps only after it found nothing while what wakes it was armed; it asks without
 * sleeping for spin_ns after its last progress: a sleep and a wake-up cost more than a request. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/thread.h"
#include "export/ublk_internal.h"
#include "export/workers.h"

#define JOB_THREADS 8u
#define COMPLETIONS_AT_ONCE 32u

struct slot {
    struct work work; /* first */
    uint16_t queue, tag;
    char *buffer;
    struct ublk_request request;
    struct block_request transfer;
    int result; /* 0 or a negative errno */
};

struct ublk_loop {
    struct ublk_loop_options o;
    struct block_queue *queue; /* NULL: the block has none */
    struct workers *workers;
    struct io_uring ring;
    bool ring_runs;
    const struct ublksrv_io_desc *descriptors[UBLK_QUEUES_MAX];
    size_t descriptors_bytes; /* of each queue */
    char *buffers;
    unsigned count;     /* of slots */
    unsigned gone;      /* that the kernel gives no requests any more */
    unsigned under_way; /* begun and not answered */
    unsigned unsubmitted;
    struct slot slots[UBLK_SLOTS_MAX];

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    bool asked; /* the kernel has all fetches, or has refused some */
    int refused;

    atomic_bool stopping;
    pthread_t thread;
    bool thread_runs;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* ---- the threads that may block ---- */

static void note_result(struct ublk_loop *l, struct slot *s, int r, const struct error *err)
{
    s->result = r;
    if (r < 0)
        log_error(l->o.log, "volume %s: %s", l->o.name, err->message);
}

static bool do_job(void *context, struct work *work)
{
    struct ublk_loop *l = context;
    struct slot *s = (struct slot *)work;
    struct error err = ERROR_INIT;
    int r = ublk_carry_out(l->o.block, &s->request, s->buffer, &err);
    note_result(l, s, r, &err);
    return true;
}

static bool do_finish(void *context, struct work *work)
{
    struct ublk_loop *l = context;
    struct slot *s = (struct slot *)work;
    struct error err = ERROR_INIT;
    int r = block_finish(l->o.block, &s->transfer, &err);
    if (r == BLOCK_STEP_AGAIN) {
        workers_job(l->workers, work);
        return false;
    }
    note_result(l, s, r, &err);
    return true;
}

/* ---- commands ---- */

/* Asks for the slot's next request, after the answer to its last one if there was one. */
static void put_command(struct ublk_loop *l, struct slot *s, uint32_t encoded, int32_t result)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);
    assert(sqe); /* there is one for each slot */
    struct ublksrv_io_cmd command = {
        .q_id = s->queue, .tag = s->tag, .result = result, .addr = (uint64_t)(uintptr_t)s->buffer};
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->fd = l->o.fd;
    sqe->cmd_op = ublk_op(encoded, l->o.encodes);
    sqe->user_data = (uint64_t)(s - l->slots);
    memcpy(sqe->cmd, &command, sizeof command);
    l->unsubmitted++;
}

static void answer(struct ublk_loop *l, struct slot *s, int r)
{
    put_command(l, s, UBLK_U_IO_COMMIT_AND_FETCH_REQ, ublk_result(&s->request, r));
}

/* True: all that was put has been taken. What has not is tried again in the next round. */
static bool submit(struct ublk_loop *l)
{
    while (l->unsubmitted) {
        int n = io_uring_submit(&l->ring);
        if (n <= 0)
            return false;
        l->unsubmitted -= (unsigned)n;
    }
    return true;
}

/* ---- requests ---- */

static void begin(struct ublk_loop *l, struct slot *s)
{
    struct error err = ERROR_INIT;
    int r = ublk_decode(&l->descriptors[s->queue][s->tag], l->o.io_bytes, &s->request);
    if (r == 0 && s->request.op != UBLK_IO_OP_FLUSH)
        r = block_check_range(l->o.block, s->request.length_bytes, s->request.offset_bytes, &err);
    if (r < 0) {
        s->request.length_bytes = 0;
        answer(l, s, r);
        return;
    }
    l->under_way++;
    if (l->queue && ublk_to_transfer(&s->request, s->buffer, &s->transfer)) {
        s->transfer.context = s;
        if (block_queue_start(l->queue, &s->transfer) == 0)
            return;
    }
    workers_job(l->workers, &s->work);
}

/* Takes what the kernel has completed: requests, and the end of fetches. */
static bool take_requests(struct ublk_loop *l)
{
    struct io_uring_cqe *completions[COMPLETIONS_AT_ONCE];
    unsigned n = io_uring_peek_batch_cqe(&l->ring, completions, COMPLETIONS_AT_ONCE);
    for (unsigned i = 0; i < n; i++) {
        struct slot *s = &l->slots[completions[i]->user_data];
        int r = completions[i]->res;
        if (r == UBLK_IO_RES_OK) {
            begin(l, s);
            continue;
        }
        l->gone++;
        if (r != UBLK_IO_RES_ABORT)
            log_error(l->o.log, "volume %s: the kernel refuses to go on with request %u of queue %u: %s",
                      l->o.name, s->tag, s->queue, strerrordesc_np(-r));
    }
    io_uring_cq_advance(&l->ring, n);
    return n > 0;
}

/* Whether a request has ended. */
static bool end_requests(struct ublk_loop *l)
{
    struct block_request *done = l->queue ? block_queue_poll(l->queue) : NULL;
    struct work *returned = workers_take_returned(l->workers);
    bool any = done || returned;
    while (done) {
        struct slot *s = done->context;
        int outcome = done->outcome;
        done = done->next;
        if (workers_go_on(l->workers, outcome, &s->work))
            continue;
        l->under_way--;
        answer(l, s, 0);
    }
    while (returned) {
        struct slot *s = (struct slot *)returned;
        returned = returned->next;
        l->under_way--;
        answer(l, s, s->result);
    }
    return any;
}

/* ---- the loop ---- */

static void sleep_until_work(struct ublk_loop *l)
{
    struct pollfd fds[BLOCK_QUEUE_MAX_FDS + 2];
    unsigned count = l->queue ? block_queue_prepare_sleep(l->queue, fds) : 0;
    workers_arm(l->workers, true);
    if (end_requests(l))
        return;
    fds[count++] = (struct pollfd){.fd = workers_fd(l->workers), .events = POLLIN};
    fds[count++] = (struct pollfd){.fd = l->ring.ring_fd, .events = POLLIN};
    poll(fds, count, -1);
    workers_drain(l->workers);
}

/* Asks for the first request of each slot. A fetch that is refused completes at once, others once there is a
 * request, and that is after the device was started. */
static void ask(struct ublk_loop *l)
{
    int refused = 0;
    for (unsigned i = 0; i < l->count; i++)
        put_command(l, &l->slots[i], UBLK_U_IO_FETCH_REQ, 0);
    submit(l);
    struct io_uring_cqe *cqe;
    if (io_uring_peek_cqe(&l->ring, &cqe) == 0)
        refused = cqe->res;
    pthread_mutex_lock(&l->mutex);
    l->refused = l->unsubmitted && !refused ? -EAGAIN : refused;
    l->asked = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->mutex);
}

static void *loop_main(void *context)
{
    struct ublk_loop *l = context;
    uint64_t last = now_ns();
    ask(l);
    for (;;) {
        bool stopping = atomic_load(&l->stopping);
        bool progress = take_requests(l);
        progress |= end_requests(l);
        bool submitted = submit(l);
        if ((stopping || l->gone == l->count) && l->under_way == 0 && submitted)
            return NULL;
        uint64_t now = now_ns();
        if (progress || !submitted)
            last = now;
        else if (now - last >= l->o.spin_ns)
            sleep_until_work(l);
    }
}

/* ---- start and end ---- */

static int make_slots(struct ublk_loop *l, struct error *err)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    l->count = l->o.queues * l->o.depth;
    l->descriptors_bytes = (l->o.depth * sizeof(struct ublksrv_io_desc) + page - 1) / page * page;
    for (unsigned q = 0; q < l->o.queues; q++) {
        off_t offset =
            (off_t)(UBLKSRV_CMD_BUF_OFFSET + q * UBLK_MAX_QUEUE_DEPTH * sizeof(struct ublksrv_io_desc));
        void *at = mmap(NULL, l->descriptors_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, l->o.fd, offset);
        if (at == MAP_FAILED)
            return error_errno(err, -errno, "cannot map the requests of queue %u", q);
        l->descriptors[q] = at;
    }
    l->buffers = io_alloc_pages((size_t)l->count * l->o.io_bytes);
    if (!l->buffers)
        return error_errno(err, -ENOMEM, "cannot allocate the buffers of %u requests", l->count);
    for (unsigned i = 0; i < l->count; i++) {
        l->slots[i].queue = (uint16_t)(i / l->o.depth);
        l->slots[i].tag = (uint16_t)(i % l->o.depth);
        l->slots[i].buffer = l->buffers + (size_t)i * l->o.io_bytes;
    }
    int r = io_uring_queue_init(l->count, &l->ring, 0);
    l->ring_runs = r == 0;
    return r < 0 ? io_no_uring(r, err) : 0;
}

static int wait_asked(struct ublk_loop *l, struct error *err)
{
    pthread_mutex_lock(&l->mutex);
    while (!l->asked)
        pthread_cond_wait(&l->changed, &l->mutex);
    int r = l->refused;
    pthread_mutex_unlock(&l->mutex);
    return r ? error_errno(err, r < 0 ? r : -EIO, "the kernel does not let this process serve the device")
             : 0;
}

int ublk_loop_start(const struct ublk_loop_options *options, struct ublk_loop **ret, struct error *err)
{
    struct ublk_loop *l = calloc(1, sizeof *l);
    if (!l)
        return error_errno(err, -ENOMEM, "cannot serve volume %s", options->name);
    struct workers_options workers = {.name = "ublk",
                                      .threads = JOB_THREADS,
                                      .job = do_job,
                                      .finish = do_finish,
                                      .context = l,
                                      .log = options->log};
    l->o = *options;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->changed, NULL);
    int r = make_slots(l, err);
    if (r == 0 && block_can_queue(options->block))
        r = block_queue_new(options->block, l->count, &l->queue, err);
    if (!l->queue)
        l->o.spin_ns = 0; /* the threads need the processor */
    if (r == 0)
        r = workers_start(&workers, &l->workers, err);
    if (r == 0)
        r = thread_start(&l->thread, "ublk", loop_main, l, err);
    l->thread_runs = r == 0;
    if (r == 0)
        r = wait_asked(l, err);
    if (r < 0) {
        ublk_loop_free(l);
        return r;
    }
    *ret = l;
    return 0;
}

void ublk_loop_free(struct ublk_loop *l)
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
    if (l->ring_runs)
        io_uring_queue_exit(&l->ring);
    for (unsigned q = 0; q < UBLK_QUEUES_MAX; q++)
        if (l->descriptors[q])
            munmap((void *)(uintptr_t)l->descriptors[q], l->descriptors_bytes);
    io_free_pages(l->buffers, (size_t)l->count * l->o.io_bytes);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->mutex);
    free(l);
}
