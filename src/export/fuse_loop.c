/* SPDX-License-Identifier: Apache-2.0 */
/* Serves /dev/fuse by one thread that has many reads and writes under way (block/queue.h), and some that do what blocks:
 * flushes, discards, and what the queue refuses or hands back.
 *
 * Invariants: F1 and F2 of fuse_server.c, F3 by its caller, and
 * L1  A slot has one owner: the free list, the queue, a job, or whoever handles it right now.
 * L2  A request that the queue handed back may hold what jobs wait for (its range). One thread does nothing else than
 *     finish those, so that jobs which wait can never keep it from ending.
 * L3  The loop sleeps only after it found nothing while what wakes it was armed.
 * L4  It asks without sleeping for spin_ns after its last progress: a sleep and a wake-up cost more than a request. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/io.h"
#include "base/thread.h"
#include "export/fuse_internal.h"

#define SLOTS 48u
#define JOB_THREADS 8u
#define READS_AT_ONCE 16u /* requests taken before what was begun is submitted */

struct slot {
    struct slot *next;
    char *buffer; /* FUSE_BUFFER_BYTES */
    size_t length_bytes;
    struct block_request request;
};

struct slot_list {
    struct slot *first, **last;
};

struct fuse_loop {
    struct fuse_protocol *protocol;
    int fd, wake_fd;
    uint64_t spin_ns;
    struct block_queue *queue;
    struct slot slots[SLOTS];
    struct slot *free; /* the loop's own */
    bool gone;         /* nothing more can be read */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t job_there, finish_there;
    struct slot_list jobs, finishes;
    struct slot *returned; /* by the threads, to the loop */
    bool ending;
    atomic_bool stopping, starved; /* the loop sleeps without a free slot */

    pthread_t thread, finisher, threads[JOB_THREADS];
    bool thread_runs, finisher_runs;
    unsigned threads_run;
};

static uint64_t unique_of(const struct slot *s)
{
    return ((const struct fuse_in_header *)(const void *)(s->buffer + FUSE_REQUEST_OFFSET))->unique;
}

/* ---- lists ---- */

static void list_init(struct slot_list *l)
{
    l->first = NULL;
    l->last = &l->first;
}

static void list_add(struct slot_list *l, struct slot *s)
{
    s->next = NULL;
    *l->last = s;
    l->last = &s->next;
}

static struct slot *list_take(struct slot_list *l)
{
    struct slot *s = l->first;
    if (s && !(l->first = s->next))
        l->last = &l->first;
    return s;
}

/* A free slot for the loop, or NULL. */
static struct slot *take_slot(struct fuse_loop *l)
{
    if (!l->free) {
        pthread_mutex_lock(&l->mutex);
        l->free = l->returned;
        l->returned = NULL;
        pthread_mutex_unlock(&l->mutex);
    }
    struct slot *s = l->free;
    if (s)
        l->free = s->next;
    return s;
}

static void keep_slot(struct fuse_loop *l, struct slot *s)
{
    s->next = l->free;
    l->free = s;
}

static void wake(struct fuse_loop *l)
{
    if (eventfd_write(l->wake_fd, 1) < 0)
        log_error(l->protocol->log, "volume %s: cannot wake its thread: %s", l->protocol->name, strerrordesc_np(errno));
}

/* ---- the threads that may block ---- */

static void hand_over(struct fuse_loop *l, struct slot_list *list, pthread_cond_t *there, struct slot *s)
{
    pthread_mutex_lock(&l->mutex);
    list_add(list, s);
    pthread_cond_signal(there);
    pthread_mutex_unlock(&l->mutex);
}

static bool do_job(struct fuse_loop *l, struct slot *s)
{
    struct fuse_answer answer;
    fuse_protocol_handle(l->protocol, s->buffer, s->length_bytes, &answer);
    if (answer.wanted)
        fuse_send_answer(l->protocol, l->fd, unique_of(s), &answer);
    return true;
}

static bool do_finish(struct fuse_loop *l, struct slot *s)
{
    struct error err = ERROR_INIT;
    struct fuse_answer answer;
    int r = block_finish(l->protocol->block, &s->request, &err);
    if (r == BLOCK_STEP_AGAIN) {
        hand_over(l, &l->jobs, &l->job_there, s);
        return false;
    }
    fuse_protocol_transferred(l->protocol, &s->request, r, &err, &answer);
    fuse_send_answer(l->protocol, l->fd, unique_of(s), &answer);
    return true;
}

/* Works off a list until the loop ends. `act`: false when it has given the slot away. */
static void work(struct fuse_loop *l, struct slot_list *list, pthread_cond_t *there, bool (*act)(struct fuse_loop *, struct slot *))
{
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        struct slot *s = list_take(list);
        if (!s && l->ending)
            break;
        if (!s) {
            pthread_cond_wait(there, &l->mutex);
            continue;
        }
        pthread_mutex_unlock(&l->mutex);
        bool ours = act(l, s);
        pthread_mutex_lock(&l->mutex);
        if (!ours)
            continue;
        s->next = l->returned;
        l->returned = s;
        if (atomic_exchange(&l->starved, false))
            wake(l);
    }
    pthread_mutex_unlock(&l->mutex);
}

static void *job_main(void *context)
{
    struct fuse_loop *l = context;
    work(l, &l->jobs, &l->job_there, do_job);
    return NULL;
}

static void *finisher_main(void *context)
{
    struct fuse_loop *l = context;
    work(l, &l->finishes, &l->finish_there, do_finish);
    return NULL;
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
        hand_over(l, &l->jobs, &l->job_there, s);
        return;
    }
    do_job(l, s);
    keep_slot(l, s);
}

/* Whether a request was taken. */
static bool take_requests(struct fuse_loop *l)
{
    bool any = false;
    for (unsigned i = 0; i < READS_AT_ONCE && !l->gone; i++) {
        struct slot *s = take_slot(l);
        if (!s)
            break;
        ssize_t n = read(l->fd, s->buffer + FUSE_REQUEST_OFFSET, FUSE_REQUEST_CAPACITY_BYTES);
        if (n >= (ssize_t)sizeof(struct fuse_in_header)) {
            s->length_bytes = (size_t)n;
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

/* Whether a request has ended. */
static bool end_requests(struct fuse_loop *l)
{
    struct block_request *done = block_queue_poll(l->queue);
    bool any = done != NULL;
    while (done) {
        struct block_request *r = done;
        struct slot *s = r->context;
        struct fuse_answer answer;
        done = r->next;
        if (r->outcome == BLOCK_STEP_BLOCKS) {
            hand_over(l, &l->finishes, &l->finish_there, s);
            continue;
        }
        if (r->outcome == BLOCK_STEP_AGAIN) {
            hand_over(l, &l->jobs, &l->job_there, s);
            continue;
        }
        fuse_protocol_transferred(l->protocol, r, 0, NULL, &answer);
        fuse_send_answer(l->protocol, l->fd, unique_of(s), &answer);
        keep_slot(l, s);
    }
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
    eventfd_t ignored;
    unsigned count = block_queue_prepare_sleep(l->queue, fds);
    atomic_store(&l->starved, true); /* before the look for a free slot (L3) */
    bool reads = has_free_slot(l) && !l->gone && !atomic_load(&l->stopping);
    if (reads)
        atomic_store(&l->starved, false);
    if (end_requests(l))
        return;
    fds[count++] = (struct pollfd){.fd = l->wake_fd, .events = POLLIN};
    if (reads)
        fds[count++] = (struct pollfd){.fd = l->fd, .events = POLLIN};
    if (poll(fds, count, -1) > 0)
        while (eventfd_read(l->wake_fd, &ignored) == 0)
            ;
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

static int start_threads(struct fuse_loop *l, struct error *err)
{
    int r = 0;
    for (; l->threads_run < JOB_THREADS && r == 0; l->threads_run += r == 0)
        r = thread_start(&l->threads[l->threads_run], "fuse-job", job_main, l, err);
    if (r == 0)
        r = thread_start(&l->finisher, "fuse-finish", finisher_main, l, err);
    l->finisher_runs = r == 0;
    if (r == 0)
        r = thread_start(&l->thread, "fuse", loop_main, l, err);
    l->thread_runs = r == 0;
    return r;
}

int fuse_loop_start(struct fuse_protocol *protocol, int fd, uint64_t spin_ns, struct fuse_loop **ret, struct error *err)
{
    struct fuse_loop *l = calloc(1, sizeof *l);
    if (!l)
        return error_errno(err, -ENOMEM, "cannot serve volume %s", protocol->name);
    l->protocol = protocol;
    l->fd = fd;
    l->spin_ns = spin_ns;
    l->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->job_there, NULL);
    pthread_cond_init(&l->finish_there, NULL);
    list_init(&l->jobs);
    list_init(&l->finishes);
    int r = l->wake_fd < 0 ? error_errno(err, -errno, "cannot make an eventfd") : block_queue_new(protocol->block, SLOTS, &l->queue, err);
    for (unsigned i = 0; i < SLOTS && r == 0; i++) {
        l->slots[i].buffer = io_alloc_pages(FUSE_BUFFER_BYTES);
        if (!l->slots[i].buffer)
            r = error_errno(err, -ENOMEM, "cannot allocate the buffers of %u requests", SLOTS);
        keep_slot(l, &l->slots[i]);
    }
    if (r == 0)
        r = start_threads(l, err);
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
    wake(l);
    if (l->thread_runs)
        pthread_join(l->thread, NULL);
    pthread_mutex_lock(&l->mutex);
    l->ending = true;
    pthread_cond_broadcast(&l->job_there);
    pthread_cond_broadcast(&l->finish_there);
    pthread_mutex_unlock(&l->mutex);
    for (unsigned i = 0; i < l->threads_run; i++)
        pthread_join(l->threads[i], NULL);
    if (l->finisher_runs)
        pthread_join(l->finisher, NULL);
    block_queue_free(l->queue);
    for (unsigned i = 0; i < SLOTS; i++)
        io_free_pages(l->slots[i].buffer, FUSE_BUFFER_BYTES);
    pthread_cond_destroy(&l->job_there);
    pthread_cond_destroy(&l->finish_there);
    pthread_mutex_destroy(&l->mutex);
    close(l->wake_fd);
    free(l);
}
