/* SPDX-License-Identifier: Apache-2.0 */
/* Serves the NBD connections of one volume by one thread that has many requests under way (block/queue.h),
 * and some (workers.h) that do what blocks. A view, which has no queue, is served by those alone.
 *
 * Invariants:
 * N1  A slot has one owner: the free list, a connection that receives into it or sends from it, the queue,
 * the workers. N2  Only the loop touches sockets. An answer is sent whole before the next one of its
 * connection. N3  A connection never has more than CONNECTION_SLOTS slots, nor stays mid-message for longer
 * than NBD_STALL_MS, so that one that stops reading or writing leaves the others their part. N4  The loop
 * sleeps only after it found nothing while what wakes it was armed; it asks without sleeping for spin_ns
 *     after its last progress: a sleep and a wake-up cost more than a request.
 * N5  What a client asks for reaches the block only after nbd_request_check.
 * N6  Memory for data is of the loop's buffers alone, and a connection has half of them at most. A request of more than
 *     `part_bytes` is served in parts, each a request to the block as those that Linux splits are; a large read has its
 *     connection for itself, since a simple reply's data must not be interrupted. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"
#include "export/nbd_buffers.h"
#include "export/nbd_internal.h"
#include "export/workers.h"

#define SLOTS 128u
#define CONNECTION_SLOTS 64u
#define PART_BYTES (1u << 20) /* what a record of the journal holds */
#define JOB_THREADS 8u
#define INPUT_BYTES (64u << 10)
#define RECEIVES_AT_ONCE 4u /* of a connection, before what was begun is submitted */
#define ANSWERS_AT_ONCE 32u /* sent by one call */

struct connection;

struct slot {
    struct work work; /* first; links the free list and answers too */
    struct connection *connection;
    struct slot *whole; /* the large request that this is a part of */
    char *buffer;       /* NULL: it has no data, or none that are kept */
    size_t buffer_bytes;
    bool large; /* has parts: so many are in slots, so many bytes were begun */
    unsigned parts;
    uint32_t begun_bytes;
    struct nbd_request request;
    struct block_request transfer;
    uint32_t error;
    char head[NBD_REPLY_HEAD_BYTES];
    size_t head_bytes, data_bytes; /* of the answer */
};

struct connection {
    struct connection *next;
    int fd;
    bool structured, allocation;
    bool ending; /* nothing more is received */
    bool broken; /* nor sent */
    unsigned slots;
    size_t buffer_bytes; /* that these have */
    struct slot *whole;  /* a large read, or a large write that is being received */
    uint64_t progress_ns;

    struct work *answers, **last_answer;
    size_t sent_bytes; /* of the first answer */

    struct nbd_request request; /* that waits for a slot */
    bool has_request;
    struct slot *taking;  /* whose payload is being received, or skipped when it has an error */
    uint32_t taken_bytes; /* of it */
    size_t input_start, input_end;
    char input[INPUT_BYTES];
};

struct nbd_loop {
    struct nbd_loop_options o;
    struct block_queue *queue; /* NULL: the block has none */
    struct workers *workers;
    struct nbd_buffers *buffers;
    size_t part_bytes, share_bytes; /* share: of a connection */
    struct connection *hungry;      /* waits for memory; nobody else takes any before it */
    struct slot slots[SLOTS];
    struct work *free;
    unsigned under_way; /* begun and not answered */
    struct connection *connections;

    pthread_mutex_t mutex; /* guards `arrived` */
    struct connection *arrived;
    atomic_bool stopping;
    atomic_bool closed, empty; /* nbd_loop_close */
    pthread_t thread;
    bool thread_runs;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* ---- slots ---- */

static void answer(struct nbd_loop *l, struct slot *s, uint32_t error);
static void part_gone(struct nbd_loop *l, struct slot *whole);

/* A slot with a buffer of `bytes` (0: none), or NULL: there will be one. */
static struct slot *take(struct nbd_loop *l, struct connection *c, size_t bytes)
{
    size_t cost = nbd_buffers_cost(bytes);
    char *buffer = NULL;
    if (c->slots == CONNECTION_SLOTS || !l->free)
        return NULL;
    if (bytes) {
        if (c->buffer_bytes + cost > l->share_bytes || (l->hungry && l->hungry != c))
            return NULL;
        buffer = nbd_buffers_take(l->buffers, bytes);
        l->hungry = buffer ? NULL : c;
        if (!buffer)
            return NULL;
    }
    struct slot *s = (struct slot *)l->free;
    l->free = s->work.next;
    s->connection = c;
    s->whole = NULL;
    s->buffer = buffer;
    s->buffer_bytes = bytes;
    s->large = false;
    s->parts = 0;
    s->begun_bytes = 0;
    s->data_bytes = 0;
    s->error = 0;
    c->slots++;
    c->buffer_bytes += cost;
    return s;
}

/* A slot for the connection's request, or NULL. What is refused needs no memory: its data are skipped. */
static struct slot *take_slot(struct nbd_loop *l, struct connection *c)
{
    const struct nbd_request *q = &c->request;
    bool reads = q->command == NBD_CMD_READ, transfers = reads || q->command == NBD_CMD_WRITE;
    uint32_t error = nbd_request_check(q, l->o.export, c->allocation);
    bool large = transfers && !error && q->length_bytes > l->part_bytes;
    size_t bytes = error || large ? 0
                   : transfers    ? q->length_bytes
                   : q->command == NBD_CMD_BLOCK_STATUS ? NBD_DESCRIPTORS_MAX * sizeof(struct nbd_block_descriptor)
                                                        : 0;
    if (large && reads && c->slots)
        return NULL; /* N6 */
    struct slot *s = take(l, c, bytes);
    if (!s)
        return NULL;
    s->request = *q;
    s->error = error;
    s->large = large;
    c->has_request = false;
    return s;
}

/* A slot for the next part of the connection's large request, or NULL. */
static struct slot *take_part(struct nbd_loop *l, struct connection *c)
{
    struct slot *w = c->whole;
    uint32_t left = w->request.length_bytes - w->begun_bytes, bytes = left < l->part_bytes ? left : (uint32_t)l->part_bytes;
    struct slot *s = take(l, c, bytes);
    if (!s)
        return NULL;
    s->whole = w;
    s->request = w->request;
    s->request.flags &= (uint16_t)~NBD_CMD_FLAG_FUA; /* flushed once, at the end */
    s->request.offset_bytes += w->begun_bytes;
    s->request.length_bytes = bytes;
    w->parts++;
    return s;
}

static void keep_slot(struct nbd_loop *l, struct slot *s)
{
    struct slot *whole = s->whole;
    s->connection->slots--;
    s->connection->buffer_bytes -= nbd_buffers_cost(s->buffer_bytes);
    if (s->buffer)
        nbd_buffers_give(l->buffers, s->buffer, s->buffer_bytes);
    s->connection = NULL;
    s->work.next = l->free;
    l->free = &s->work;
    if (whole)
        part_gone(l, whole);
}

/* A part of a large request has ended, and its answer was sent if it has one. */
static void part_gone(struct nbd_loop *l, struct slot *w)
{
    struct connection *c = w->connection;
    bool reads = w->request.command == NBD_CMD_READ, all = w->begun_bytes == w->request.length_bytes;
    if (--w->parts)
        return;
    if (c->broken || (reads && (all || w->error))) {
        if (c->whole == w)
            c->whole = NULL;
        keep_slot(l, w);
    } else if (!reads && all && !w->error && w->request.flags & NBD_CMD_FLAG_FUA) {
        l->under_way++;
        workers_job(l->workers, &w->work);
    } else if (!reads && all) {
        answer(l, w, w->error);
    }
}

/* ---- connections ---- */

static void drop_answers(struct nbd_loop *l, struct connection *c)
{
    while (c->answers) {
        struct work *w = c->answers;
        c->answers = w->next;
        keep_slot(l, (struct slot *)w);
    }
    c->last_answer = &c->answers;
    c->sent_bytes = 0;
}

/* Gives a connection up. It goes once its requests have ended. */
static void drop(struct nbd_loop *l, struct connection *c, const char *why)
{
    if (c->broken)
        return;
    if (why)
        log_warning(l->o.log, "volume %s: an NBD client is disconnected: %s", l->o.export->name, why);
    c->ending = c->broken = true;
    shutdown(c->fd, SHUT_RDWR);
    drop_answers(l, c);
    if (l->hungry == c)
        l->hungry = NULL;
    struct slot *taking = c->taking, *whole = c->whole;
    c->taking = c->whole = NULL;
    bool alone = whole && whole->parts == 0; /* else it goes with its last part */
    if (taking)
        keep_slot(l, taking);
    if (alone)
        keep_slot(l, whole);
}

/* Those that have ended. */
static void remove_connections(struct nbd_loop *l)
{
    for (struct connection **at = &l->connections; *at;) {
        struct connection *c = *at;
        if (!c->ending || c->slots) {
            at = &c->next;
            continue;
        }
        *at = c->next;
        close(c->fd);
        free(c);
        atomic_fetch_sub(l->o.connections, 1);
    }
}

static bool take_arrived(struct nbd_loop *l)
{
    pthread_mutex_lock(&l->mutex);
    struct connection *first = l->arrived;
    l->arrived = NULL;
    pthread_mutex_unlock(&l->mutex);
    for (struct connection *c = first, *next; c; c = next) {
        next = c->next;
        c->next = l->connections;
        c->last_answer = &c->answers;
        c->progress_ns = now_ns();
        l->connections = c;
    }
    return first != NULL;
}

/* ---- answers ---- */

static void queue_answer(struct connection *c, struct slot *s)
{
    if (!c->answers)
        c->progress_ns = now_ns();
    s->work.next = NULL;
    *c->last_answer = &s->work;
    c->last_answer = &s->work.next;
}

static void answer(struct nbd_loop *l, struct slot *s, uint32_t error)
{
    struct connection *c = s->connection;
    if (c->broken) {
        keep_slot(l, s);
        return;
    }
    if (error)
        s->data_bytes = 0;
    s->head_bytes = nbd_reply_head(&s->request, c->structured, error, (uint32_t)s->data_bytes, s->head);
    queue_answer(c, s);
}

/* The data of a part of a read. Once the head of a simple reply was sent, an error can only be told by hanging up. */
static void answer_part(struct nbd_loop *l, struct slot *s, uint32_t error)
{
    struct connection *c = s->connection;
    struct slot *w = s->whole;
    bool first = s->request.offset_bytes == w->request.offset_bytes, last = w->begun_bytes == w->request.length_bytes;
    if (error)
        w->error = error;
    if (error && !first && !c->structured)
        drop(l, c, "the rest of what it reads cannot be read");
    if (c->broken) {
        keep_slot(l, s);
        return;
    }
    if (error)
        s->data_bytes = 0;
    s->head_bytes = first || c->structured ? nbd_reply_head(&s->request, c->structured, error, (uint32_t)s->data_bytes, s->head) : 0;
    if (c->structured && !error && !last)
        nbd_reply_goes_on(s->head);
    queue_answer(c, s);
}

/* A request, or a part of one, has ended. */
static void ended(struct nbd_loop *l, struct slot *s, uint32_t error)
{
    l->under_way--;
    if (!s->whole) {
        answer(l, s, error);
    } else if (s->request.command == NBD_CMD_READ) {
        answer_part(l, s, error);
    } else {
        if (error)
            s->whole->error = error;
        keep_slot(l, s);
    }
}

/* Sends what there is; false: the client has to take some first. */
static bool send_once(struct nbd_loop *l, struct connection *c)
{
    struct iovec vector[2 * ANSWERS_AT_ONCE];
    struct msghdr message = {.msg_iov = vector};
    size_t skip = c->sent_bytes;
    for (struct work *w = c->answers; w && message.msg_iovlen + 2 <= 2 * ANSWERS_AT_ONCE; w = w->next) {
        struct slot *s = (struct slot *)w;
        size_t head_skip = skip < s->head_bytes ? skip : s->head_bytes, data_skip = skip - head_skip;
        vector[message.msg_iovlen++] = (struct iovec){s->head + head_skip, s->head_bytes - head_skip};
        if (s->data_bytes)
            vector[message.msg_iovlen++] = (struct iovec){s->buffer + data_skip, s->data_bytes - data_skip};
        skip = 0;
    }
    ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR)
        return true;
    if (n < 0 && errno != EAGAIN)
        drop(l, c, NULL);
    if (n < 0)
        return false;
    c->progress_ns = now_ns();
    for (c->sent_bytes += (size_t)n; c->answers;) {
        struct slot *s = (struct slot *)c->answers;
        if (c->sent_bytes < s->head_bytes + s->data_bytes)
            break;
        c->sent_bytes -= s->head_bytes + s->data_bytes;
        if (!(c->answers = s->work.next))
            c->last_answer = &c->answers;
        keep_slot(l, s);
    }
    return true;
}

/* Whether something was sent: slots may be free that connections wait for. */
static bool send_answers(struct nbd_loop *l)
{
    bool any = false;
    for (struct connection *c = l->connections; c; c = c->next)
        while (c->answers && send_once(l, c))
            any = true;
    return any;
}

/* ---- requests ---- */

/* What holes there are, as the protocol tells it, into the slot's buffer. */
static int block_status(struct nbd_loop *l, struct slot *s, struct error *err)
{
    struct nbd_block_descriptor *descriptors = (struct nbd_block_descriptor *)(void *)s->buffer;
    struct block_extent found[NBD_DESCRIPTORS_MAX];
    const struct nbd_request *q = &s->request;
    uint64_t start = q->offset_bytes / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES,
             end = q->offset_bytes + q->length_bytes;
    uint64_t whole_end = (end + BLOCK_SECTOR_BYTES - 1) / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES;
    size_t count = 0, capacity = q->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_DESCRIPTORS_MAX;
    int r = block_extents(l->o.block, whole_end - start, start, found, capacity, &count, err);
    for (size_t i = 0; i < count && r == 0; i++) {
        uint64_t from = found[i].offset_bytes, to = from + found[i].length_bytes;
        from = from < q->offset_bytes ? q->offset_bytes : from; /* a client may ask for any range */
        to = to > end ? end : to;
        descriptors[i] = (struct nbd_block_descriptor){
            .length_bytes = be32_of((uint32_t)(to - from)),
            .flags = be32_of(found[i].hole ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0)};
    }
    s->data_bytes = count * sizeof *descriptors;
    return r == 0 && count == 0
               ? error_set(err, -EIO, "volume %s does not tell its extents", l->o.export->name)
               : r;
}

static void note_result(struct nbd_loop *l, struct slot *s, int r, const struct error *err)
{
    s->error = nbd_error_of(r);
    if (r < 0)
        log_error(l->o.log, "volume %s: %s", l->o.export->name, err->message);
}

static bool do_job(void *context, struct work *work)
{
    struct nbd_loop *l = context;
    struct slot *s = (struct slot *)work;
    const struct nbd_request *q = &s->request;
    struct block *b = l->o.block;
    struct error err = ERROR_INIT;
    unsigned flags = q->flags & NBD_CMD_FLAG_FUA ? BLOCK_FUA : 0;
    int r;
    switch (q->command) {
    case NBD_CMD_READ:
        r = block_pread(b, s->buffer, q->length_bytes, q->offset_bytes, &err);
        break;
    case NBD_CMD_WRITE: /* of a large one with FUA only the end is left */
        r = s->large ? block_flush(b, &err) : block_pwrite(b, s->buffer, q->length_bytes, q->offset_bytes, flags, &err);
        break;
    case NBD_CMD_FLUSH:
        r = block_flush(b, &err);
        break;
    case NBD_CMD_TRIM:
        r = block_discard(b, q->length_bytes, q->offset_bytes, flags, &err);
        break;
    case NBD_CMD_WRITE_ZEROES: /* a discarded range reads as zeroes (block.h), so a client that allows a hole
                                  gets one */
        r = q->flags & NBD_CMD_FLAG_NO_HOLE ? block_zero(b, q->length_bytes, q->offset_bytes, flags, &err)
                                            : block_discard(b, q->length_bytes, q->offset_bytes, flags, &err);
        break;
    default:
        r = block_status(l, s, &err);
    }
    note_result(l, s, r, &err);
    return true;
}

static bool do_finish(void *context, struct work *work)
{
    struct nbd_loop *l = context;
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

/* Begins a request that is whole. */
static void begin(struct nbd_loop *l, struct slot *s)
{
    static const enum block_op ops[] = {
        [NBD_CMD_READ] = BLOCK_OP_READ, [NBD_CMD_WRITE] = BLOCK_OP_WRITE, [NBD_CMD_FLUSH] = BLOCK_OP_FLUSH};
    const struct nbd_request *q = &s->request;
    bool queues = q->command == NBD_CMD_READ || q->command == NBD_CMD_WRITE || q->command == NBD_CMD_FLUSH;
    s->data_bytes = q->command == NBD_CMD_READ ? q->length_bytes : 0;
    if (s->error || q->command == NBD_CMD_CACHE || (q->length_bytes == 0 && q->command != NBD_CMD_FLUSH)) {
        answer(l, s, s->error); /* nothing is cached here: a block is read where it lies */
        return;
    }
    l->under_way++;
    if (s->whole)
        s->whole->begun_bytes += q->length_bytes;
    if (l->queue && queues) {
        s->transfer = (struct block_request){
            .op = ops[q->command],
            .flags = q->command == NBD_CMD_WRITE && q->flags & NBD_CMD_FLAG_FUA ? BLOCK_FUA : 0,
            .data = s->buffer,
            .length_bytes = q->length_bytes,
            .offset_bytes = q->offset_bytes,
            .context = s};
        if (block_queue_start(l->queue, &s->transfer) == 0)
            return;
    }
    workers_job(l->workers, &s->work);
}

/* Whether a request has ended. */
static bool end_requests(struct nbd_loop *l)
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
        ended(l, s, 0);
    }
    while (returned) {
        struct slot *s = (struct slot *)returned;
        returned = returned->next;
        ended(l, s, s->error);
    }
    if (any)
        send_answers(l);
    return any;
}

/* ---- receiving ---- */

/* Takes the header of a request from the input. False: there is none yet, or none to come. */
static bool take_header(struct nbd_loop *l, struct connection *c)
{
    struct nbd_request_header header;
    if (c->input_end - c->input_start < sizeof header)
        return false;
    memcpy(&header, c->input + c->input_start, sizeof header);
    c->input_start += sizeof header;
    c->has_request = nbd_request_parse(&header, &c->request);
    if (!c->has_request)
        drop(l, c, "what it sent is not a request");
    else if (c->request.command == NBD_CMD_DISC)
        c->ending = true;
    else if (nbd_request_payload_bytes(&c->request) > NBD_MAX_REQUEST_BYTES)
        drop(l, c, "a write of more than 32 MiB");
    return !c->ending;
}

/* `bytes` more of a request's payload are there. */
static void taken(struct nbd_loop *l, struct connection *c, uint32_t bytes)
{
    struct slot *s = c->taking;
    c->taken_bytes += bytes;
    if (c->taken_bytes < nbd_request_payload_bytes(&s->request))
        return;
    c->taking = NULL;
    begin(l, s);
    if (s->whole && c->whole && c->whole->begun_bytes == c->whole->request.length_bytes)
        c->whole = NULL; /* all of it was received */
}

/* Works through the input; true while more is wanted, false when it waits for a slot or has ended. */
static bool take_input(struct nbd_loop *l, struct connection *c)
{
    while (!c->ending) {
        size_t there = c->input_end - c->input_start;
        if (c->taking) {
            size_t left = nbd_request_payload_bytes(&c->taking->request) - c->taken_bytes,
                   part = there < left ? there : left;
            if (part == 0)
                return true;
            if (!c->taking->error)
                memcpy(c->taking->buffer + c->taken_bytes, c->input + c->input_start, part);
            c->input_start += part;
            taken(l, c, (uint32_t)part);
            continue;
        }
        c->taken_bytes = 0;
        if (c->whole) { /* its next part, before anything else of this connection */
            c->taking = c->whole->request.command == NBD_CMD_WRITE ? take_part(l, c) : NULL;
            if (!c->taking)
                return false;
            continue;
        }
        if (!c->has_request && !take_header(l, c))
            return !c->ending;
        struct slot *s = take_slot(l, c);
        if (!s)
            return false;
        if (s->large)
            c->whole = s;
        else if (nbd_request_payload_bytes(&s->request))
            c->taking = s;
        else
            begin(l, s);
    }
    return false;
}

/* Reads once; false: nothing there. The rest of a large payload goes where it belongs without a copy. */
static bool receive_once(struct nbd_loop *l, struct connection *c)
{
    struct slot *s = c->taking;
    bool direct = s && !s->error; /* the input is empty then */
    size_t kept = c->input_end - c->input_start,
           left = direct ? nbd_request_payload_bytes(&s->request) - c->taken_bytes : 0;
    memmove(c->input, c->input + c->input_start, kept);
    c->input_start = 0;
    c->input_end = kept;
    struct iovec vector[2] = {{c->input + kept, sizeof c->input - kept}, {0}};
    if (direct) {
        vector[1] = vector[0];
        vector[0] = (struct iovec){s->buffer + c->taken_bytes, left};
    }
    struct msghdr message = {.msg_iov = vector, .msg_iovlen = direct ? 2 : 1};
    ssize_t n = recvmsg(c->fd, &message, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n <= 0) { /* it went without a farewell */
        drop(l, c, NULL);
        return false;
    }
    c->progress_ns = now_ns();
    size_t into = direct ? ((size_t)n < left ? (size_t)n : left) : 0;
    c->input_end += (size_t)n - into;
    if (into)
        taken(l, c, (uint32_t)into);
    return true;
}

static bool receive(struct nbd_loop *l)
{
    bool any = false;
    for (struct connection *c = l->connections; c; c = c->next) {
        bool more = take_input(l, c);
        for (unsigned i = 0; i < RECEIVES_AT_ONCE && more && receive_once(l, c); i++) {
            any = true;
            size_t room = sizeof c->input - c->input_end;
            more = take_input(l, c) && room == 0; /* else it was all there was: the next round asks again */
        }
    }
    return any;
}

/* Goes on with large reads, a part at a time: the next once the last one was sent. */
static bool continue_reads(struct nbd_loop *l)
{
    bool any = false;
    for (struct connection *c = l->connections; c; c = c->next) {
        struct slot *w = c->whole, *s;
        if (!w || w->request.command != NBD_CMD_READ || w->parts || !(s = take_part(l, c)))
            continue;
        begin(l, s);
        any = true;
    }
    return any;
}

/* ---- the loop ---- */

/* For a slot, or for memory, or for its own large read. */
static bool waits(const struct connection *c)
{
    return c->has_request || (c->whole && !c->taking);
}

static bool mid_message(const struct connection *c)
{
    return c->answers || c->taking || c->input_start < c->input_end;
}

/* Poll's entries for the connections, and how long to wait for them at most. */
static nfds_t connection_fds(struct nbd_loop *l, struct pollfd *fds, bool receives, int *ret_timeout_ms)
{
    nfds_t count = 0;
    *ret_timeout_ms = -1;
    for (struct connection *c = l->connections; c; c = c->next) {
        bool waits_for_slot = waits(c), in = receives && !c->ending && !waits_for_slot;
        short events = (short)((in ? POLLIN : 0) | (c->answers ? POLLOUT : 0));
        if (mid_message(c) && !waits_for_slot)
            *ret_timeout_ms = 1000; /* looks for those that stall */
        if (events)
            fds[count++] = (struct pollfd){.fd = c->fd, .events = events};
    }
    return count;
}

static void drop_stalled(struct nbd_loop *l)
{
    uint64_t now = now_ns();
    for (struct connection *c = l->connections; c; c = c->next)
        if (mid_message(c) && (!waits(c) || c->answers) &&
            now > c->progress_ns + NBD_STALL_MS * NS_PER_MS)
            drop(l, c, "it neither sent the rest of a request nor took an answer for a minute");
}

static void sleep_until_work(struct nbd_loop *l)
{
    struct pollfd fds[BLOCK_QUEUE_MAX_FDS + 1 + NBD_CONNECTIONS_MAX];
    int timeout_ms;
    unsigned count = l->queue ? block_queue_prepare_sleep(l->queue, fds) : 0;
    workers_arm(l->workers, true);
    if (end_requests(l) || take_arrived(l))
        return;
    remove_connections(l);
    fds[count++] = (struct pollfd){.fd = workers_fd(l->workers), .events = POLLIN};
    bool receives = !atomic_load(&l->stopping) && !atomic_load(&l->closed);
    nfds_t all = count + connection_fds(l, fds + count, receives, &timeout_ms);
    poll(fds, all, timeout_ms);
    workers_drain(l->workers);
    drop_stalled(l);
}

static void close_all(struct nbd_loop *l)
{
    for (struct connection *c = l->connections; c; c = c->next)
        drop(l, c, NULL);
    remove_connections(l);
}

static void *loop_main(void *context)
{
    struct nbd_loop *l = context;
    uint64_t last = now_ns();
    for (;;) {
        bool stopping = atomic_load(&l->stopping), closed = stopping || atomic_load(&l->closed);
        bool progress = take_arrived(l);
        progress |= !closed && receive(l);
        progress |= !closed && continue_reads(l);
        progress |= end_requests(l);
        progress |= send_answers(l);
        remove_connections(l);
        if (closed && l->under_way == 0) {
            close_all(l);
            atomic_store(&l->empty, true);
        }
        if (stopping && l->under_way == 0)
            return NULL;
        uint64_t now = now_ns();
        if (progress)
            last = now;
        else if (now - last >= l->o.spin_ns)
            sleep_until_work(l);
    }
}

void nbd_loop_add(struct nbd_loop *l, int fd, bool structured, bool allocation)
{
    struct connection *c = malloc(sizeof *c);
    if (!c) {
        log_error(l->o.log, "volume %s: no memory for another NBD client", l->o.export->name);
        close(fd);
        atomic_fetch_sub(l->o.connections, 1);
        return;
    }
    memset(c, 0, offsetof(struct connection, input));
    c->fd = fd;
    c->structured = structured;
    c->allocation = allocation;
    pthread_mutex_lock(&l->mutex);
    c->next = l->arrived;
    l->arrived = c;
    pthread_mutex_unlock(&l->mutex);
    workers_wake(l->workers);
}

void nbd_loop_close(struct nbd_loop *l, bool closed)
{
    if (closed)
        atomic_store(&l->empty, false); /* before: the loop says anew that it is */
    atomic_store(&l->closed, closed);
    workers_wake(l->workers);
}

bool nbd_loop_is_empty(struct nbd_loop *l)
{
    return atomic_load(&l->empty);
}

int nbd_loop_start(const struct nbd_loop_options *options, struct nbd_loop **ret, struct error *err)
{
    struct nbd_loop *l = calloc(1, sizeof *l);
    if (!l)
        return error_errno(err, -ENOMEM, "cannot serve volume %s", options->export->name);
    struct workers_options workers = {.name = "nbd",
                                      .threads = JOB_THREADS,
                                      .job = do_job,
                                      .finish = do_finish,
                                      .context = l,
                                      .log = options->log};
    l->o = *options;
    pthread_mutex_init(&l->mutex, NULL);
    int r = nbd_buffers_new(options->buffer_bytes, &l->buffers, err);
    for (unsigned i = 0; i < SLOTS; i++) {
        l->slots[i].work.next = l->free;
        l->free = &l->slots[i].work;
    }
    if (r == 0) {
        l->share_bytes = nbd_buffers_size(l->buffers) / 2 / NBD_BUFFERS_UNIT_BYTES * NBD_BUFFERS_UNIT_BYTES;
        l->part_bytes = l->share_bytes < PART_BYTES ? l->share_bytes : PART_BYTES;
    }
    if (r == 0 && block_can_queue(options->block))
        r = block_queue_new(options->block, SLOTS, &l->queue, err);
    if (!l->queue)
        l->o.spin_ns = 0; /* the threads need the processor */
    if (r == 0)
        r = workers_start(&workers, &l->workers, err);
    if (r == 0)
        r = thread_start(&l->thread, "nbd", loop_main, l, err);
    l->thread_runs = r == 0;
    if (r < 0) {
        nbd_loop_free(l);
        return error_context(err, "cannot serve volume %s", options->export->name), r;
    }
    *ret = l;
    return 0;
}

void nbd_loop_free(struct nbd_loop *l)
{
    if (!l)
        return;
    atomic_store(&l->stopping, true);
    if (l->workers)
        workers_wake(l->workers);
    if (l->thread_runs)
        pthread_join(l->thread, NULL);
    take_arrived(l); /* that came at the last moment */
    close_all(l);
    workers_free(l->workers);
    block_queue_free(l->queue);
    nbd_buffers_free(l->buffers);
    pthread_mutex_destroy(&l->mutex);
    free(l);
}
