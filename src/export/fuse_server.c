/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that read requests from /dev/fuse, carry them out and answer them: eight that block in read(2), one
 * of which, having just served, first asks a non-blocking clone again and again for a few microseconds. That
 * saves the wake-up of the next request, which costs more than a request of 4 KiB; and without I/O nothing
 * spins.
 *
 * Invariants:
 * F1  All memory of the I/O path is allocated and populated at start, and a WRITE's payload is page-aligned
 * in it: a fault under memory pressure could wait for write-back to the very volume that is served here. F2
 * An answer goes to the descriptor that its request was read from: the kernel looks for it only there. F3
 * NOTIFY_RESEND is written before the first read of a resumed server, so that nothing is lost or seen twice
 *     beyond what the last server had not answered.
 * F4  The spinner is one thread at a time, for spin_us at most after it has served.
 *
 * Stopping: a blocked read(2) costs nothing to wake if a signal does it. Each thread has FUSE_STOP_SIGNAL
 * unblocked; stop sends it until the thread has seen `stopping`, which also closes the gap between the check
 * and the read. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/thread.h"
#include "export/fuse_internal.h"

#define FUSE_STOP_SIGNAL (SIGRTMIN + 4)
#define FUSE_STOP_INTERVAL_NS 1000000

struct fuse_thread {
    struct fuse_export *export;
    pthread_t thread;
    char *buffer; /* FUSE_BUFFER_BYTES */
    bool started;
    atomic_bool reading; /* only then is it interrupted: the block's calls need not expect EINTR */
    atomic_bool ended;
};

struct fuse_export {
    struct fuse_protocol protocol;
    int fd;
    int nonblock_fd;
    uint64_t spin_ns;
    unsigned thread_count;
    struct fuse_thread *threads;
    atomic_bool stopping;
    struct fuse_loop *loop; /* instead of threads, where the block can queue */
    _Alignas(64) atomic_flag spinner; /* apart: it changes with every request */
};

static void on_stop_signal(int number)
{
    (void)number;
}

/* Asks the clone until a request comes or the time is over (F4). Returns what read(2) does. */
static ssize_t read_spinning(struct fuse_export *x, char *request)
{
    ssize_t n;
    uint64_t until = 0;
    while ((n = read(x->nonblock_fd, request, FUSE_REQUEST_CAPACITY_BYTES)) < 0 && errno == EAGAIN) {
        uint64_t now = fuse_monotonic_ns();
        if (!until)
            until = now + x->spin_ns;
        if (now >= until || atomic_load_explicit(&x->stopping, memory_order_relaxed)) {
            errno = EAGAIN;
            break;
        }
    }
    return n;
}

/* The next request, and the descriptor that it came from (F2). */
static ssize_t receive(struct fuse_export *x, char *request, bool may_spin, int *ret_fd)
{
    ssize_t n = -1;
    if (may_spin && x->spin_ns && !atomic_flag_test_and_set_explicit(&x->spinner, memory_order_acquire)) {
        n = read_spinning(x, request);
        int saved = errno;
        atomic_flag_clear_explicit(&x->spinner, memory_order_release);
        *ret_fd = x->nonblock_fd;
        if (n >= 0 || saved != EAGAIN) {
            errno = saved;
            return n;
        }
    }
    if (atomic_load_explicit(&x->stopping, memory_order_relaxed)) {
        errno = EINTR;
        return -1;
    }
    *ret_fd = x->fd;
    return read(x->fd, request, FUSE_REQUEST_CAPACITY_BYTES);
}

unsigned fuse_answer_vector(uint64_t unique, const struct fuse_answer *answer, struct fuse_out_header *header, struct iovec vector[2])
{
    *header = (struct fuse_out_header){.len = (uint32_t)(sizeof *header + answer->payload_bytes),
                                       .error = answer->code,
                                       .unique = unique}; /* with FUSE_ABI_UNIQUE_RESEND, if it was there */
    vector[0] = (struct iovec){header, sizeof *header};
    vector[1] = (struct iovec){(void *)(uintptr_t)answer->payload, answer->payload_bytes};
    return answer->payload_bytes ? 2 : 1;
}

void fuse_send_answer(const struct fuse_protocol *p, int fd, uint64_t unique, struct fuse_answer *answer)
{
    struct fuse_out_header header;
    struct iovec vector[2];
    unsigned parts = fuse_answer_vector(unique, answer, &header, vector);
    ssize_t n;
    do
        n = writev(fd, vector, (int)parts);
    while (n < 0 && errno == EINTR);
    /* ENOENT: the request was given up meanwhile; ENODEV, EPERM: so was the mount. */
    if (n < 0 && errno != ENOENT && errno != ENODEV && errno != EPERM)
        log_error(p->log, "volume %s: cannot answer a FUSE request: %s", p->name, strerrordesc_np(errno));
}

bool fuse_receive_again(struct fuse_protocol *p, int code, bool stopping)
{
    switch (code) {
    case EINTR:  /* a signal, mostly FUSE_STOP_SIGNAL */
    case ENOENT: /* the request was given up while it was read */
    case EAGAIN: /* there is none, and the descriptor does not block */
        return true;
    case ENODEV:
    case ECONNABORTED:
        if (!atomic_exchange(&p->gone, true) && !stopping)
            log_info(p->log, "volume %s: its FUSE file system was unmounted", p->name);
        return false;
    default:
        if (!atomic_exchange(&p->gone, true))
            log_error(p->log, "volume %s: cannot read from /dev/fuse, the volume is not served any more: %s", p->name,
                      strerrordesc_np(code));
        return false;
    }
}

static void *serve(void *context)
{
    struct fuse_thread *thread = context;
    struct fuse_export *x = thread->export;
    char *request = thread->buffer + FUSE_REQUEST_OFFSET;
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, FUSE_STOP_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &stop, NULL);
    bool served = false;
    while (!atomic_load_explicit(&x->stopping, memory_order_relaxed)) {
        int fd;
        atomic_store_explicit(&thread->reading, true, memory_order_release);
        ssize_t n = receive(x, request, served, &fd);
        atomic_store_explicit(&thread->reading, false, memory_order_release);
        served = n > 0;
        if (n == 0)
            break; /* not a FUSE device: the other end of a test's socket was closed */
        if (n < 0) {
            struct pollfd one = {.fd = x->fd, .events = POLLIN};
            int code = errno;
            if (!fuse_receive_again(&x->protocol, code, atomic_load(&x->stopping)))
                break;
            if (code == EAGAIN && !atomic_load(&x->stopping)) /* the caller gave a descriptor that does not block */
                poll(&one, 1, 100);
            continue;
        }
        if ((size_t)n < sizeof(struct fuse_in_header))
            continue;
        uint64_t unique = ((const struct fuse_in_header *)(const void *)request)->unique;
        struct fuse_answer answer;
        fuse_protocol_handle(&x->protocol, thread->buffer, (size_t)n, &answer);
        if (answer.wanted)
            fuse_send_answer(&x->protocol, fd, unique, &answer);
    }
    atomic_store(&thread->ended, true);
    return NULL;
}

/* F3. A kernel without the notification refuses it: what the last server had read is lost then. */
static void request_resend(const struct fuse_export *x)
{
    struct fuse_out_header notify = {.len = sizeof notify, .error = FUSE_ABI_NOTIFY_RESEND, .unique = 0};
    if (write(x->fd, &notify, sizeof notify) == sizeof notify)
        log_info(x->protocol.log, "volume %s: taken over, the kernel sends again what was not answered",
                 x->protocol.name);
    else
        log_error(
            x->protocol.log,
            "volume %s: the kernel does not send again what the last server had not answered (%s): such I/O "
            "hangs. Unmount the volume to end it, and use Linux 6.9 or later",
            x->protocol.name, strerrordesc_np(errno));
}

static int prepare_threads(struct fuse_export *x, struct error *err)
{
    struct sigaction action = {.sa_handler = on_stop_signal}; /* no SA_RESTART: read(2) shall end */
    sigemptyset(&action.sa_mask);
    if (sigaction(FUSE_STOP_SIGNAL, &action, NULL) < 0)
        return error_errno(err, -errno, "cannot set up the signal that stops the threads of an export");
    for (unsigned i = 0; i < x->thread_count; i++) {
        x->threads[i].export = x;
        x->threads[i].buffer = io_alloc_pages(FUSE_BUFFER_BYTES);
        if (!x->threads[i].buffer)
            return error_errno(err, -ENOMEM, "cannot allocate the buffers of %u threads", x->thread_count);
    }
    return 0;
}

static int run_threads(struct fuse_export *x, struct error *err)
{
    for (unsigned i = 0; i < x->thread_count; i++) {
        int r = thread_start(&x->threads[i].thread, "fuse", serve, &x->threads[i], err);
        if (r < 0)
            return r;
        x->threads[i].started = true;
    }
    return 0;
}

int fuse_export_start(const struct fuse_export_options *options, struct fuse_export **ret, struct error *err)
{
    unsigned threads = options->threads ? options->threads : FUSE_EXPORT_DEFAULT_THREADS;
    if (threads > FUSE_EXPORT_MAX_THREADS || options->fd < 0 || !options->block || !options->name)
        return error_set(err, -EINVAL, "cannot export a volume: %u threads (at most %u), descriptor %d",
                         threads, FUSE_EXPORT_MAX_THREADS, options->fd);
    struct fuse_export *x = aligned_alloc(_Alignof(struct fuse_export), sizeof *x);
    if (x)
        memset(x, 0, sizeof *x);
    if (!x || !(x->threads = calloc(threads, sizeof *x->threads))) {
        free(x);
        return error_errno(err, -ENOMEM, "cannot export volume %s", options->name);
    }
    x->protocol.block = options->block;
    x->protocol.log = options->log;
    x->protocol.name = options->name;
    x->fd = options->fd;
    x->nonblock_fd = options->nonblock_fd;
    x->spin_ns = options->nonblock_fd >= 0 ? options->spin_us * NS_PER_US : 0;
    bool queues = block_can_queue(options->block) && options->nonblock_fd >= 0;
    x->thread_count = queues ? 0 : threads;
    int r = prepare_threads(x, err);
    if (r == 0) {
        if (options->resume)
            request_resend(x);
        r = queues ? fuse_loop_start(&x->protocol, x->nonblock_fd, x->spin_ns, &x->loop, err) : run_threads(x, err);
    }
    if (r < 0) {
        fuse_export_free(x);
        return error_context(err, "cannot export volume %s", options->name), r;
    }
    *ret = x;
    return 0;
}

void fuse_export_stop(struct fuse_export *x)
{
    const struct timespec interval = {.tv_nsec = FUSE_STOP_INTERVAL_NS};
    atomic_store(&x->stopping, true);
    fuse_loop_free(x->loop);
    x->loop = NULL;
    for (unsigned i = 0; i < x->thread_count; i++) {
        struct fuse_thread *thread = &x->threads[i];
        if (!thread->started)
            continue;
        while (!atomic_load(&thread->ended)) {
            if (atomic_load(&thread->reading))
                pthread_kill(thread->thread, FUSE_STOP_SIGNAL);
            if (!atomic_load(&thread->ended))
                nanosleep(&interval, NULL);
        }
        pthread_join(thread->thread, NULL);
        thread->started = false;
    }
}

void fuse_export_free(struct fuse_export *x)
{
    if (!x)
        return;
    fuse_export_stop(x);
    for (unsigned i = 0; i < x->thread_count; i++)
        io_free_pages(x->threads[i].buffer, FUSE_BUFFER_BYTES);
    free(x->threads);
    free(x);
}

bool fuse_export_kernel_has_resend(const struct fuse_export *x)
{
    return !atomic_load(&x->protocol.no_resend);
}
