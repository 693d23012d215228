/* SPDX-License-Identifier: Apache-2.0 */
/* Listens, and greets clients until they have chosen a volume, whose loop has them then. One thread; a client
 * that dawdles keeps nobody waiting, and is sent away after NBD_HANDSHAKE_MS. While the gate is closed, those
 * that have chosen wait. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "export/nbd_internal.h"

#define GATE_POLL_NS 500000L
#define REST_MS 200 /* without descriptors or memory for another client */

struct greeting {
    struct greeting *next;
    int fd;
    uint64_t until_ns;
    struct nbd_handshake handshake;
};

struct nbd_server {
    const struct log *log;
    struct sockaddr_un address;
    int fd, stop_fd; /* an eventfd: look at `stopping` and the gate */
    atomic_bool stopping;
    bool bound;
    size_t count;
    struct nbd_export exports[NBD_MAX_EXPORTS];
    struct block *blocks[NBD_MAX_EXPORTS];
    struct nbd_loop *loops[NBD_MAX_EXPORTS];
    atomic_uint connections;
    pthread_mutex_t gate_mutex; /* guards `closed`, and that nobody is handed over to a loop meanwhile */
    bool closed;
    struct greeting *greetings; /* the thread's own */
    pthread_t thread;
    bool thread_runs;
    bool rested; /* it was said that clients wait; the thread's own */
    bool full;   /* it was said that they are sent away; likewise */
};

/* ---- greeting ---- */

/* Sends what the handshake has to say: little enough for the socket's buffer, unless the client takes
 * nothing. */
static bool say(struct greeting *g)
{
    struct nbd_handshake *h = &g->handshake;
    ssize_t n = h->out_bytes ? send(g->fd, h->out, h->out_bytes, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    bool whole = n == (ssize_t)h->out_bytes;
    h->out_bytes = 0;
    return whole;
}

/* Goes on with the handshake as far as there is input; false: the client is lost, or was sent away. */
static bool listen_to(struct greeting *g)
{
    struct nbd_handshake *h = &g->handshake;
    while (h->state != NBD_TRANSMISSION) {
        if (h->state == NBD_CLOSED)
            return false;
        ssize_t n = recv(g->fd, h->in + h->in_bytes, h->want_bytes - h->in_bytes, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return true;
        if (n <= 0)
            return false;
        h->in_bytes += (size_t)n;
        if (h->in_bytes < h->want_bytes)
            continue;
        nbd_handshake_advance(h);
        if (!say(g))
            return false;
    }
    return true;
}

static void end_greeting(struct nbd_server *s, struct greeting *g)
{
    close(g->fd);
    atomic_fetch_sub(&s->connections, 1);
    free(g);
}

/* Moves all on; hands over those who have chosen. */
static void go_on(struct nbd_server *s)
{
    uint64_t now = clock_boottime_ns(clock_system());
    MUTEX_GUARD(guard, &s->gate_mutex);
    for (struct greeting **at = &s->greetings; *at;) {
        struct greeting *g = *at;
        const struct nbd_handshake *h = &g->handshake;
        bool alive = listen_to(g) && (h->state == NBD_TRANSMISSION || now < g->until_ns);
        if (alive && (s->closed || h->state != NBD_TRANSMISSION)) {
            at = &g->next;
            continue;
        }
        *at = g->next;
        if (alive) {
            nbd_loop_add(s->loops[h->export], g->fd, h->structured, h->allocation);
            free(g);
        } else {
            end_greeting(s, g);
        }
    }
}

/* Says so once, until there was room for a while: clients try again and again. */
static void send_away(struct nbd_server *s, int fd, unsigned others)
{
    if (others < NBD_CONNECTIONS_MAX)
        log_warning(s->log, "%s: an NBD client was sent away: out of memory", s->address.sun_path);
    else if (!s->full)
        log_warning(s->log,
                    "%s: NBD clients are sent away: there are %u connections, which is the most that there can be; close some, or have each client use "
                    "fewer (nbd-client -C). This is not said again before there are no more than %u",
                    s->address.sun_path, NBD_CONNECTIONS_MAX, NBD_CONNECTIONS_CALM);
    s->full |= others >= NBD_CONNECTIONS_MAX;
    close(fd);
    atomic_fetch_sub(&s->connections, 1);
}

/* False: no client can be taken now, and asking again at once would keep a processor busy. */
static bool greet(struct nbd_server *s)
{
    int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    bool rests = fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS);
    if (rests && !s->rested)
        log_warning(s->log,
                    "NBD clients have to wait: %s; `ulimit -n` tells how many descriptors a process may have",
                    strerrordesc_np(errno));
    s->rested = rests;
    if (fd < 0)
        return !rests;
    unsigned others = atomic_fetch_add(&s->connections, 1);
    struct greeting *g = others < NBD_CONNECTIONS_MAX ? malloc(sizeof *g) : NULL;
    if (others <= NBD_CONNECTIONS_CALM)
        s->full = false;
    if (!g) {
        send_away(s, fd, others);
        return true;
    }
    g->fd = fd;
    g->until_ns = clock_boottime_ns(clock_system()) + NBD_HANDSHAKE_MS * NS_PER_MS;
    for (size_t i = 0; i < s->count; i++) /* volumes grow */
        atomic_store(&s->exports[i].size_bytes, __atomic_load_n(&s->blocks[i]->size_bytes, __ATOMIC_ACQUIRE));
    nbd_handshake_init(&g->handshake, s->exports, s->count);
    if (!say(g)) {
        end_greeting(s, g);
        return true;
    }
    g->next = s->greetings;
    s->greetings = g;
    return true;
}

static void *server_main(void *context)
{
    struct nbd_server *s = context;
    uint64_t rest_until_ns = 0;
    for (;;) {
        bool rests = clock_boottime_ns(clock_system()) < rest_until_ns;
        struct pollfd fds[2 + NBD_CONNECTIONS_MAX] = {{.fd = s->stop_fd, .events = POLLIN},
                                                      {.fd = s->fd, .events = rests ? 0 : POLLIN}};
        nfds_t count = 2;
        for (struct greeting *g = s->greetings; g; g = g->next)
            if (g->handshake.state != NBD_TRANSMISSION) /* those wait for the gate */
                fds[count++] = (struct pollfd){.fd = g->fd, .events = POLLIN};
        poll(fds, count, rests ? REST_MS : s->greetings ? 1000 : -1);
        eventfd_t ignored;
        if (fds[0].revents)
            (void)eventfd_read(s->stop_fd, &ignored);
        if (atomic_load(&s->stopping))
            break;
        if (fds[1].revents && !greet(s))
            rest_until_ns = clock_boottime_ns(clock_system()) + REST_MS * NS_PER_MS;
        go_on(s);
    }
    while (s->greetings) {
        struct greeting *g = s->greetings;
        s->greetings = g->next;
        end_greeting(s, g);
    }
    return NULL;
}

/* ---- start and end ---- */

static bool is_served(const struct nbd_server *s)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool served = fd >= 0 && (connect(fd, (const struct sockaddr *)&s->address, sizeof s->address) == 0 ||
                              errno != ECONNREFUSED);
    if (fd >= 0)
        close(fd);
    return served;
}

static int listen_at(struct nbd_server *s, const char *path, struct error *err)
{
    if (strlen(path) >= sizeof s->address.sun_path)
        return error_set(err, -ENAMETOOLONG, "the path of the NBD socket %s is longer than %zu characters",
                         path, sizeof s->address.sun_path - 1);
    s->address.sun_family = AF_UNIX;
    memcpy(s->address.sun_path, path, strlen(path) + 1);
    const struct sockaddr *address = (const struct sockaddr *)&s->address;
    s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    /* The mode before bind is the file's: nobody else may read the volume, whatever the umask. */
    int r = s->fd < 0 || fchmod(s->fd, 0600) < 0 || bind(s->fd, address, sizeof s->address) < 0 ? -errno : 0;
    if (r == -EADDRINUSE && !is_served(s) && unlink(path) == 0) /* left by a server that was killed */
        r = bind(s->fd, address, sizeof s->address) < 0 ? -errno : 0;
    s->bound = r == 0;
    if (r == 0 && listen(s->fd, NBD_CONNECTIONS_MAX) < 0)
        r = -errno;
    return r < 0 ? error_errno(err, r, "cannot listen at the NBD socket %s", path) : 0;
}

int nbd_server_start(const struct nbd_server_options *options, struct nbd_server **ret, struct error *err)
{
    struct nbd_server *s = calloc(1, sizeof *s);
    if (!s)
        return error_errno(err, -ENOMEM, "cannot serve NBD");
    s->log = options->log;
    s->fd = s->stop_fd = -1;
    pthread_mutex_init(&s->gate_mutex, NULL);
    int r = options->count > NBD_MAX_EXPORTS
                ? error_set(err, -E2BIG, "cannot serve more than %u volumes by NBD", NBD_MAX_EXPORTS)
                : 0;
    size_t share = NBD_BUFFERS_BYTES / (options->count ? options->count : 1),
           buffer_bytes = share > NBD_BUFFERS_LEAST_BYTES ? share : NBD_BUFFERS_LEAST_BYTES;
    for (size_t i = 0; i < options->count && r == 0; i++) {
        struct block *b = s->blocks[i] = options->blocks[i];
        s->exports[i] = (struct nbd_export){
            .name = options->names[i], .size_bytes = b->size_bytes, .extents = b->ops->extents != NULL};
        struct nbd_loop_options loop = {.block = b,
                                        .export = &s->exports[i],
                                        .buffer_bytes = buffer_bytes,
                                        .spin_ns = NBD_DEFAULT_SPIN_US * NS_PER_US,
                                        .connections = &s->connections,
                                        .log = s->log};
        r = nbd_loop_start(&loop, &s->loops[i], err);
        s->count += r == 0;
    }
    if (r == 0 && (s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        r = error_errno(err, -errno, "cannot make an eventfd");
    if (r == 0)
        r = listen_at(s, options->socket_path, err);
    if (r == 0)
        r = thread_start(&s->thread, "nbd-greet", server_main, s, err);
    s->thread_runs = r == 0;
    if (r < 0) {
        nbd_server_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

static void open_or_close(struct nbd_server *s, bool closed)
{
    MUTEX_GUARD(guard, &s->gate_mutex);
    s->closed = closed;
    for (size_t i = 0; i < s->count; i++)
        nbd_loop_close(s->loops[i], closed);
}

int nbd_server_gate(struct nbd_server *s, bool closed, struct error *err)
{
    uint64_t end_ns = clock_boottime_ns(clock_system()) + NBD_GATE_MS * NS_PER_MS;
    open_or_close(s, closed);
    for (size_t i = 0; i < s->count && closed;) {
        if (nbd_loop_is_empty(s->loops[i])) {
            i++;
            continue;
        }
        if (clock_boottime_ns(clock_system()) > end_ns) {
            open_or_close(s, false);
            return error_set(err, -EBUSY, "requests of NBD clients of volume %s have not ended within %d s",
                             s->exports[i].name, NBD_GATE_MS / 1000);
        }
        nanosleep(&(struct timespec){.tv_nsec = GATE_POLL_NS}, NULL);
    }
    if (!closed &&
        eventfd_write(s->stop_fd, 1) < 0) /* those that wait are handed over now, not within a second */
        log_error(s->log, "cannot wake the thread that greets NBD clients: %s", strerrordesc_np(errno));
    return 0;
}

void nbd_server_free(struct nbd_server *s)
{
    if (!s)
        return;
    if (s->bound)
        unlink(s->address.sun_path);
    atomic_store(&s->stopping, true);
    if (s->thread_runs && eventfd_write(s->stop_fd, 1) == 0)
        pthread_join(s->thread, NULL);
    for (size_t i = 0; i < s->count; i++)
        nbd_loop_free(s->loops[i]);
    if (s->fd >= 0)
        close(s->fd);
    if (s->stop_fd >= 0)
        close(s->stop_fd);
    pthread_mutex_destroy(&s->gate_mutex);
    free(s);
}
