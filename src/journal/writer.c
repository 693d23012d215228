/* SPDX-License-Identifier: Apache-2.0 */
/* Group commit. A record takes its LSN and its place in the open frame under the mutex (J2); copying and CRC happen
 * outside it; a frame is written when all its records are filled and no other is being written. There is no writer
 * thread on this path: whoever completes a frame starts the next one, and whoever waits reaps.
 *
 * States of a frame: free -> open (takes records) -> closed -> in flight -> written -> free once all are backed.
 * Frames are written strictly one after the other, in order of their numbers. */
#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "base/uring.h"
#include "journal/journal_internal.h"

#define CLOCK_ATTEMPTS 16
#define CLOCK_CLOSE_NS (20 * NS_PER_US)

static struct frame *frame_of(struct journal *j, uint64_t number)
{
    return &j->frames[number % RING_SLOTS];
}
static uint32_t slot_of(uint64_t number)
{
    return (uint32_t)(number % RING_SLOTS);
}

/* Sleeps until the event is no longer `seen`, unless a frame is in flight that nobody reaps: whoever gives up reaping
 * looks for sleepers after it. */
static void wait_event(struct journal *j, struct frame *f, uint32_t seen)
{
    atomic_fetch_add(&f->waiters, 1);
    atomic_fetch_add(&j->sleepers, 1);
    if (atomic_load(&j->reaping) || !atomic_load(&j->inflight))
        syscall(SYS_futex, &f->event, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&j->sleepers, 1);
    atomic_fetch_sub(&f->waiters, 1);
}
static void signal_event(struct frame *f, int waiters)
{
    atomic_fetch_add(&f->event, 1);
    if (atomic_load(&f->waiters))
        syscall(SYS_futex, &f->event, FUTEX_WAKE_PRIVATE, waiters, NULL, NULL, 0);
}

int writer_init(struct journal *j, struct error *err)
{
    int r = io_uring_queue_init(RING_SLOTS, &j->uring, 0);
    if (r < 0)
        return io_no_uring(r, err);
    r = io_uring_queue_init(4, &j->sync_uring, 0);
    if (r < 0) {
        io_uring_queue_exit(&j->uring);
        return io_no_uring(r, err);
    }
    j->known = uring_register(&j->uring, journal_payload_memory(j));
    return 0;
}

void writer_release(struct journal *j)
{
    io_uring_queue_exit(&j->uring);
    io_uring_queue_exit(&j->sync_uring);
}

/* ---- writing frames ---- */

static void release_sealed(struct journal *j, struct frame *f)
{
    if (f->sealed)
        j->sealed_used &= ~(1u << (f->sealed - 1));
    f->sealed = 0;
}

static void free_frame(struct journal *j, struct frame *f)
{
    atomic_store(&ring_slot(&j->ring, slot_of(f->number))->number, 0);
    f->number = 0;
    if (j->room_waiters)
        pthread_cond_broadcast(&j->room);
}

static void free_if_done(struct journal *j, struct frame *f)
{
    if (f->number && atomic_load(&f->written) && atomic_load(&f->unbacked) == 0)
        free_frame(j, f);
}

void writer_wake_listeners(struct journal *j)
{
    for (struct journal_listener *l = j->listeners; l; l = l->next)
        if (atomic_exchange(&l->asleep, false) && eventfd_write(l->fd, 1) < 0)
            log_error(j->log, "cannot wake a thread of the journal: %s", strerrordesc_np(errno));
}

void writer_suspend(struct journal *j, const char *reason)
{
    if (j->suspended)
        return;
    j->suspended = true;
    j->manifest.suspended = true; /* the sealer saves it, if it can */
    ring_suspend(&j->ring, RING_UNJOURNALED);
    snprintf(j->reason, sizeof j->reason, "%s", reason);
    log_error(j->log, "the journal is suspended: %s; writes go on unprotected", reason);
    for (uint32_t i = 0; i < RING_SLOTS; i++) {
        struct frame *f = &j->frames[i];
        if (f->number && !f->written) {
            atomic_store(&f->written, true);
            free_if_done(j, f);
        }
        signal_event(f, INT_MAX);
    }
    pthread_cond_broadcast(&j->room);
    pthread_cond_broadcast(&j->sealed);
    pthread_cond_signal(&j->work);
    writer_wake_listeners(j);
}

/* Moves on to the segment that is ready. false: there is none yet. */
static bool switch_segment(struct journal *j)
{
    if (j->inflight || j->sealing || j->ready_fd < 0)
        return false;
    j->sealing = true;
    j->sealing_fd = j->active_fd;
    j->active = !j->active;
    j->active_fd = j->ready_fd;
    j->ready_fd = -1;
    aead_free(j->active_key); /* no frame is in flight */
    j->active_key = take_ptr(j->ready_key);
    tail_reset(&j->tails[j->active], j->ready_number, j->manifest.epoch, &j->manifest.boot);
    pthread_cond_signal(&j->work);
    return true;
}

/* Completes the header block of a frame that takes no more records. */
static void seal_frame(struct journal *j, struct frame *f, char *block)
{
    struct frame_header *h = (struct frame_header *)block;
    size_t used = sizeof *h + f->count * sizeof(struct frame_record);
    memset(block + used, 0, JOURNAL_BLOCK_BYTES - used);
    *h = (struct frame_header){
        .magic = le32_of(FRAME_MAGIC),
        .epoch = le32_of(j->manifest.epoch),
        .record_count = le16_of((uint16_t)f->count),
        .number = le64_of(f->number),
        .first_lsn = le64_of(f->first.n),
        .durable_lsn = le64_of(j->durable_lsn),
        .realtime_ns = le64_of(f->realtime_ns),
        .boottime_ns = le64_of(f->boottime_ns),
        .previous_crc = le32_of(j->previous_crc),
        .blocks = le32_of(f->blocks),
    };
    memcpy(h->journal_id, j->manifest.journal_id.bytes, 16);
    j->previous_crc = crc32c(0, block, JOURNAL_BLOCK_BYTES);
    h->header_crc = le32_of(j->previous_crc);
}

/* Encrypts a frame that was given its place, `at`, and counts as in flight, so that its segment stays. With the mutex, which is
 * dropped meanwhile. Returns what is written in its stead. */
static char *encrypt_frame(struct journal *j, struct frame *f, struct tail *t, uint32_t at, uint32_t blocks, const char *block)
{
    seal_tag tags[FRAME_MAX_BLOCKS];
    uint32_t which = (uint32_t)__builtin_ctz(~j->sealed_used);
    assert(which < JOURNAL_MAX_INFLIGHT);
    j->sealed_used |= 1u << which;
    f->sealed = which + 1;
    char *target = j->sealed_frames + (size_t)which * FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES;
    pthread_mutex_unlock(&j->mutex);
    int r = sealed_frame_write(j->active_key, at, block, target, blocks, tags);
    pthread_mutex_lock(&j->mutex);
    memcpy(t->tags[at], tags, blocks * sizeof *tags);
    return r < 0 ? NULL : target;
}

void writer_try_submit(struct journal *j)
{
    struct frame *f = frame_of(j, j->submit_number);
    if (j->suspended || j->inflight == JOURNAL_MAX_INFLIGHT)
        return;
    if (j->inflight && !f->closed && f->count < JOURNAL_INFLIGHT_RECORDS)
        return;
    if (f->number != j->submit_number || f->count == 0 || f->filled < f->count)
        return;
    if (!f->closed && f->first.n > j->demand_lsn)
        return; /* mode `flush`: more will come */
    struct tail *t = &j->tails[j->active];
    if (!tail_fits(t, f->count, f->blocks)) {
        if (!switch_segment(j)) {
            pthread_cond_signal(&j->work);
            return;
        }
        t = &j->tails[j->active];
    }
    if (!f->closed) {
        f->closed = true;
        j->open_number++;
    }
    char *block = ring_frame(&j->ring, slot_of(f->number));
    seal_frame(j, f, block);
    uint64_t offset = (uint64_t)t->info.used_blocks * JOURNAL_BLOCK_BYTES;
    tail_add_frame(t, block, f->crcs);
    f->last_realtime_ns = t->info.last_realtime_ns;
    f->last_boottime_ns = t->info.last_boottime_ns;
    j->appended_blocks += f->blocks;
    j->submit_number++;
    j->inflight++;
    int fd = j->active_fd;
    uint32_t bytes = f->blocks * JOURNAL_BLOCK_BYTES; /* the frame may be another's once it is submitted */
    if (j->active_key)
        block = encrypt_frame(j, f, t, (uint32_t)(offset / JOURNAL_BLOCK_BYTES), f->blocks, block);
    if (!block) {
        j->inflight--;
        release_sealed(j, f);
        writer_suspend(j, "encrypting a frame failed");
        return;
    }
    pthread_mutex_unlock(&j->mutex);
    pthread_mutex_lock(&j->submit_mutex);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&j->uring);
    uring_prep_write(sqe, &j->known, fd, block, bytes, offset);
    io_uring_sqe_set_data(sqe, f);
    int r;
    do /* an entry that stayed would be submitted with a later one, to another segment's descriptor */
        r = io_uring_submit(&j->uring);
    while (r == -EINTR || r == -EAGAIN || r == -EBUSY);
    pthread_mutex_unlock(&j->submit_mutex);
    pthread_mutex_lock(&j->mutex);
    if (r < 0) {
        j->inflight--;
        release_sealed(j, f);
        writer_suspend(j, "io_uring_submit failed");
    }
    if (!j->reaping) { /* somebody who waits for it, or for room, has to reap */
        signal_event(f, 1);
        if (j->room_waiters)
            pthread_cond_signal(&j->room);
    }
}

/* Frame `f`, the oldest in flight, has ended. */
static void complete_frame(struct journal *j, struct frame *f)
{
    if (f->result != (int)(f->blocks * JOURNAL_BLOCK_BYTES)) {
        char reason[160];
        snprintf(reason, sizeof reason, "writing segment %u failed: %s", j->tails[j->active].info.number,
                 f->result < 0 ? error_reason(f->result) : "short write");
        writer_suspend(j, reason);
        return;
    }
    j->complete_number++;
    j->written_lsn = f->first.n + f->count - 1;
    atomic_store(&f->written, true);
    j->written_realtime_ns = f->last_realtime_ns;
    j->written_boottime_ns = f->last_boottime_ns;
    if (!j->unsynced_since_ns)
        j->unsynced_since_ns = f->boottime_ns;
    atomic_store(&ring_slot(&j->ring, slot_of(f->number))->written, 1);
    signal_event(f, INT_MAX);
    free_if_done(j, f);
}

/* With the mutex: the kernel has ended a frame, which is no longer in flight. Frames count as written in their order. */
static void complete(struct journal *j, struct frame *f, int result)
{
    release_sealed(j, f);
    int fault = journal_fault_at(j, "write");
    f->ended = true;
    f->result = fault < 0 ? fault : result;
    for (;;) {
        struct frame *oldest = frame_of(j, j->complete_number);
        if (j->suspended || oldest->number != j->complete_number || !oldest->ended)
            break;
        complete_frame(j, oldest);
    }
    writer_try_submit(j);
    if (j->suspended) /* nothing counts as written any more: who waits until the kernel has no frame is not woken otherwise */
        signal_event(frame_of(j, j->complete_number), INT_MAX);
    else if (j->inflight) /* whoever waits for the next one has to reap it */
        signal_event(frame_of(j, j->complete_number), 1);
    if (j->room_waiters)
        pthread_cond_signal(&j->room);
    writer_wake_listeners(j);
}

/* Without the mutex: waits for the frame in flight and completes it, unless somebody else does. */
static bool reap(struct journal *j)
{
    bool idle = false;
    if (!j->inflight || !atomic_compare_exchange_strong(&j->reaping, &idle, true))
        return false;
    if (!j->inflight) { /* completed meanwhile */
        j->reaping = false;
        return true;
    }
    struct io_uring_cqe *cqe = NULL;
    int r;
    do
        r = io_uring_wait_cqe(&j->uring, &cqe);
    while (r == -EINTR || r == -EAGAIN);
    assert(r == 0);
    struct frame *f = io_uring_cqe_get_data(cqe);
    int result = cqe->res;
    io_uring_cqe_seen(&j->uring, cqe);
    pthread_mutex_lock(&j->mutex);
    j->inflight--; /* first: who finds nobody reaping must not wait for this frame */
    j->reaping = false;
    complete(j, f, result);
    pthread_mutex_unlock(&j->mutex);
    return true;
}

/* Without the mutex: reaps, or sleeps until the frame's event is no longer `seen`. */
static void wait_progress(struct journal *j, struct frame *f, uint32_t seen)
{
    if (!reap(j))
        wait_event(j, f, seen);
}

void writer_wait_frame(struct journal *j, uint64_t number)
{
    struct frame *f = frame_of(j, number);
    uint32_t seen = atomic_load(&f->event);
    if (j->suspended && !j->inflight) /* the caller dropped the mutex after it had looked: nobody will signal any more */
        return;
    pthread_mutex_unlock(&j->mutex);
    wait_progress(j, f, seen);
    pthread_mutex_lock(&j->mutex);
}

/* With the mutex: waits for room, reaping when nobody else does. */
static void wait_room(struct journal *j)
{
    j->room_waiters++;
    atomic_fetch_add(&j->sleepers, 1);
    if (j->inflight && !j->reaping) {
        pthread_mutex_unlock(&j->mutex);
        reap(j);
        pthread_mutex_lock(&j->mutex);
    } else {
        pthread_cond_wait(&j->room, &j->mutex);
    }
    atomic_fetch_sub(&j->sleepers, 1);
    j->room_waiters--;
}

/* With the mutex: completes the frame in flight if it has ended already, so that the journal keeps moving when nobody
 * waits for it (mode `flush`). */
static void reap_if_ended(struct journal *j)
{
    struct io_uring_cqe *cqe;
    bool idle = false;
    if (!j->inflight || !atomic_compare_exchange_strong(&j->reaping, &idle, true))
        return;
    bool ended = j->inflight && io_uring_peek_cqe(&j->uring, &cqe) == 0;
    struct frame *f = ended ? io_uring_cqe_get_data(cqe) : NULL;
    int result = ended ? cqe->res : 0;
    if (ended)
        io_uring_cqe_seen(&j->uring, cqe);
    if (ended)
        j->inflight--;
    j->reaping = false;
    if (ended)
        complete(j, f, result);
    else if (j->inflight) /* who found it taken meanwhile goes to sleep: not for ever */
        signal_event(frame_of(j, j->complete_number), 1);
}

void journal_poll(struct journal *j)
{
    bool idle = false;
    while (atomic_load(&j->inflight) && atomic_compare_exchange_strong(&j->reaping, &idle, true)) {
        struct io_uring_cqe *cqe;
        bool ended = j->inflight && io_uring_peek_cqe(&j->uring, &cqe) == 0;
        if (ended) {
            struct frame *f = io_uring_cqe_get_data(cqe);
            int result = cqe->res;
            io_uring_cqe_seen(&j->uring, cqe);
            pthread_mutex_lock(&j->mutex);
            j->inflight--;
            j->reaping = false;
            complete(j, f, result);
            pthread_mutex_unlock(&j->mutex);
            continue;
        }
        j->reaping = false;
        if (j->sleepers && j->inflight) { /* who found it taken meanwhile goes to sleep: not for ever */
            pthread_mutex_lock(&j->mutex);
            signal_event(frame_of(j, j->complete_number), 1);
            if (j->room_waiters)
                pthread_cond_signal(&j->room);
            pthread_mutex_unlock(&j->mutex);
        }
        break;
    }
}

void journal_push(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    j->demand_lsn = j->last_lsn;
    writer_try_submit(j);
}

bool journal_is_suspended(struct journal *j)
{
    return j->suspended;
}

void journal_relax(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    if (!j->options.light ||
        j->suspended) /* the kernel may still have a frame of a slot that counts as free */
        return;
    for (uint32_t i = 0; i < RING_SLOTS; i++)
        if (!j->frames[i].number)
            ring_relax(&j->ring, i);
}

bool journal_is_written(struct journal *j, const struct journal_ticket *ticket, bool *ret_lost)
{
    bool suspended = j->suspended, written = atomic_load(&j->written_lsn) >= ticket->lsn.n;
    *ret_lost = !written && suspended;
    return written || suspended;
}

void journal_suspend(struct journal *j, const char *reason, bool unmarked)
{
    MUTEX_GUARD(guard, &j->mutex);
    writer_suspend(j, reason);
    if (unmarked)
        ring_suspend(&j->ring, RING_UNMARKED);
}

void journal_doubt(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    ring_suspend(&j->ring, RING_UNJOURNALED);
}

int journal_step(struct journal *j, const char *step)
{
    return journal_fault_at(j, step);
}

void journal_listen(struct journal *j, struct journal_listener *l)
{
    MUTEX_GUARD(guard, &j->mutex);
    l->next = j->listeners;
    j->listeners = l;
}

void journal_unlisten(struct journal *j, struct journal_listener *l)
{
    MUTEX_GUARD(guard, &j->mutex);
    struct journal_listener **at = &j->listeners;
    while (*at && *at != l)
        at = &(*at)->next;
    if (*at)
        *at = l->next;
}

struct iovec journal_payload_memory(const struct journal *j)
{
    return j->options.light ? (struct iovec){0} : (struct iovec){j->ring.memory, j->ring.length_bytes};
}

int journal_poll_fd(const struct journal *j)
{
    return j->uring.ring_fd;
}

/* ---- appending ---- */

static uint32_t frame_record_limit(const struct journal *j)
{
    return j->options.segment_records < FRAME_MAX_RECORDS ? j->options.segment_records : FRAME_MAX_RECORDS;
}
static uint32_t frame_block_limit(const struct journal *j)
{
    return j->options.segment_blocks - 1 < FRAME_MAX_BLOCKS ? j->options.segment_blocks - 1 : FRAME_MAX_BLOCKS;
}

/* Both clocks at one moment: a thread that is preempted between the two would make its records look too old or too new. In
 * whole microseconds, as they are shown. */
static void read_clocks(struct journal *j, struct frame *f)
{
    for (int attempt = 0; attempt < CLOCK_ATTEMPTS; attempt++) {
        f->boottime_ns = clock_boottime_ns(j->clock);
        uint64_t realtime_ns = clock_realtime_ns(j->clock);
        f->realtime_ns = realtime_ns - realtime_ns % NS_PER_US;
        if (clock_boottime_ns(j->clock) - f->boottime_ns < CLOCK_CLOSE_NS)
            return;
    }
}

/* Makes the open frame one that has room; NULL when the journal is suspended, or where it would have to wait for a slot
 * and shall not. */
static struct frame *open_frame(struct journal *j, const struct journal_record *record, uint32_t payload_blocks, bool wait)
{
    for (;;) {
        if (j->suspended)
            return NULL;
        struct frame *f = frame_of(j, j->open_number);
        bool other = j->exclusive && !pthread_equal(j->exclusive_owner, pthread_self());
        if (!other && f->number == j->open_number) {
            if (f->count < frame_record_limit(j) && f->blocks + payload_blocks <= frame_block_limit(j))
                return f;
            f->closed = true;
            j->open_number++;
            writer_try_submit(j);
            continue;
        }
        if (!other && f->number == 0) {
            struct ring_slot *slot = ring_slot(&j->ring, slot_of(j->open_number));
            f->number = j->open_number;
            f->count = f->filled = 0;
            f->unbacked = 0;
            f->blocks = 1;
            f->closed = f->ended = false;
            f->written = false;
            f->first = (struct lsn){j->next_lsn};
            if (record->boottime_ns)
                f->realtime_ns = record->realtime_ns, f->boottime_ns = record->boottime_ns;
            else
                read_clocks(j, f);
            struct frame_header *h = (struct frame_header *)ring_frame(&j->ring, slot_of(j->open_number));
            h->realtime_ns = le64_of(f->realtime_ns); /* for who replays it */
            h->boottime_ns = le64_of(f->boottime_ns);
            atomic_store(&slot->count, 0);
            atomic_store(&slot->written, 0);
            atomic_store(&slot->number, f->number);
            continue;
        }
        if (!wait)
            return NULL;
        wait_room(j);
    }
}

static uint32_t delta_us(const struct journal *j, const struct frame *f, const struct journal_record *record)
{
    uint64_t now = record->boottime_ns ? record->boottime_ns : clock_boottime_ns(j->clock);
    uint64_t delta = now > f->boottime_ns ? (now - f->boottime_ns) / 1000 : 0;
    return delta > UINT32_MAX ? UINT32_MAX : (uint32_t)delta;
}

/* With the mutex: the record's place. */
static void reserve(struct journal *j, struct frame *f, const struct journal_record *record, uint32_t payload_blocks,
                    struct journal_ticket *ticket)
{
    char *block = ring_frame(&j->ring, slot_of(f->number));
    struct frame_record *r = (struct frame_record *)(block + sizeof(struct frame_header)) + f->count;
    uint32_t delta = delta_us(j, f, record);
    *r = (struct frame_record){
        .volume = le32_of(record->volume),
        .op = (uint8_t)record->op,
        .flags = record->flags,
        .payload_block = le16_of(payload_blocks ? (uint16_t)f->blocks : 0),
        .lba = le64_of(record->lba),
        .length = le32_of(record->length),
        .delta_us = le32_of(delta),
        .payload_bytes = le32_of(record->payload_bytes),
        .tag = le64_of(record->tag),
        .aux = le64_of(record->aux),
    };
    *ticket = (struct journal_ticket){
        .lsn = {j->last_lsn = j->next_lsn++},
        .realtime_ns = f->realtime_ns + delta * NS_PER_US,
        .frame = f->number,
        .slot = slot_of(f->number),
        .index = f->count,
        .payload = payload_blocks ? block + (size_t)f->blocks * JOURNAL_BLOCK_BYTES : NULL,
    };
    struct ring_slot *slot = ring_slot(&j->ring, ticket->slot);
    atomic_store_explicit(&slot->state[f->count], 0, memory_order_relaxed);
    f->count++;
    f->unbacked++;
    f->blocks += payload_blocks;
    atomic_store_explicit(&slot->count, f->count, memory_order_release);
}

/* Outside the mutex: copies the payload and computes its CRCs. */
static void fill(struct journal *j, struct frame *f, const struct journal_record *record,
                 const struct journal_ticket *ticket)
{
    char *block = ring_frame(&j->ring, ticket->slot);
    struct frame_record *r = (struct frame_record *)(block + sizeof(struct frame_header)) + ticket->index;
    if (ticket->payload) {
        char *to = block + ((const char *)ticket->payload - block);
        uint32_t first = le16_get(r->payload_block);
        uint32_t count = (record->payload_bytes + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES;
        memcpy(to, record->payload, record->payload_bytes);
        memset(to + record->payload_bytes, 0, (size_t)count * JOURNAL_BLOCK_BYTES - record->payload_bytes);
        for (uint32_t i = 0; i < count; i++)
            f->crcs[first + i] = crc32c(0, to + (size_t)i * JOURNAL_BLOCK_BYTES, JOURNAL_BLOCK_BYTES);
        r->payload_crc = le32_of(count == 1 ? f->crcs[first] : crc32c(0, &f->crcs[first], count * sizeof *f->crcs));
    }
    atomic_store_explicit(&ring_slot(&j->ring, ticket->slot)->state[ticket->index], RING_FILLED,
                          memory_order_release);
}

static int append(struct journal *j, const struct journal_record *record, bool wait, struct journal_ticket *ret, struct error *err)
{
    assert(record->payload_bytes <= JOURNAL_PAYLOAD_MAX_BYTES);
    uint32_t payload_blocks = (record->payload_bytes + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES;
    if (payload_blocks + 1 > frame_block_limit(j))
        return error_set(err, -EFBIG, "a record of %u bytes does not fit the journal's segments", record->payload_bytes);
    struct journal_ticket ticket;
    pthread_mutex_lock(&j->mutex);
    struct frame *f = open_frame(j, record, payload_blocks, wait);
    if (!f) {
        bool suspended = j->suspended;
        pthread_mutex_unlock(&j->mutex);
        if (!suspended)
            return -EAGAIN;
        return error_set(err, -ESHUTDOWN, "the journal is suspended: %s", j->reason);
    }
    reserve(j, f, record, payload_blocks, &ticket);
    if (!record->lazy)
        j->demand_lsn = ticket.lsn.n;
    pthread_mutex_unlock(&j->mutex);
    fill(j, f, record, &ticket);
    pthread_mutex_lock(&j->mutex);
    if (f->number == ticket.frame) { /* else it was suspended meanwhile */
        f->filled++;
        if (wait || record->lazy) { /* else journal_push follows */
            reap_if_ended(j);
            writer_try_submit(j);
        }
    }
    pthread_mutex_unlock(&j->mutex);
    *ret = ticket;
    return 0;
}

void writer_close_open(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    struct frame *f = frame_of(j, j->open_number);
    if (j->suspended || f->number != j->open_number || !f->count)
        return;
    f->closed = true;
    j->open_number++;
    writer_try_submit(j);
}

int journal_append(struct journal *j, const struct journal_record *record, struct journal_ticket *ret, struct error *err)
{
    return append(j, record, true, ret, err);
}

int journal_try_append(struct journal *j, const struct journal_record *record, struct journal_ticket *ret, struct error *err)
{
    return append(j, record, false, ret, err);
}

void journal_backed(struct journal *j, const struct journal_ticket *ticket)
{
    atomic_store_explicit(&ring_slot(&j->ring, ticket->slot)->state[ticket->index], RING_FILLED | RING_BACKED,
                          memory_order_release);
    struct frame *f = &j->frames[ticket->slot];
    if (atomic_fetch_sub(&f->unbacked, 1) != 1 || !atomic_load(&f->written))
        return; /* whoever completes the frame frees it */
    pthread_mutex_lock(&j->mutex);
    free_if_done(j, f);
    pthread_mutex_unlock(&j->mutex);
}

int writer_lost(const struct journal *j, struct error *err)
{
    return error_set(err, -ESHUTDOWN, "the journal is suspended: %s", j->suspended ? j->reason : "it was, and goes on");
}

/* Whether there is nothing to wait for any more. */
static bool is_decided(const struct journal *j, uint64_t lsn)
{
    return atomic_load(&j->written_lsn) >= lsn || j->suspended || writer_left_out(j, lsn);
}

int journal_wait(struct journal *j, const struct journal_ticket *ticket, struct error *err)
{
    struct frame *f = &j->frames[ticket->slot];
    while (!is_decided(j, ticket->lsn.n)) {
        uint32_t seen = atomic_load(&f->event);
        if (!is_decided(j, ticket->lsn.n))
            wait_progress(j, f, seen);
    }
    if (atomic_load(&j->written_lsn) >= ticket->lsn.n && !writer_left_out(j, ticket->lsn.n))
        return 0;
    MUTEX_GUARD(guard, &j->mutex);
    return writer_lost(j, err);
}

void journal_exclusive_begin(struct journal *j)
{
    pthread_mutex_lock(&j->mutex);
    while (j->exclusive)
        wait_room(j);
    j->exclusive = true;
    j->exclusive_owner = pthread_self();
    pthread_mutex_unlock(&j->mutex);
}

void journal_exclusive_end(struct journal *j)
{
    pthread_mutex_lock(&j->mutex);
    j->exclusive = false;
    pthread_cond_broadcast(&j->room);
    pthread_mutex_unlock(&j->mutex);
}

/* ---- durability ---- */

uint64_t writer_write_all(struct journal *j)
{
    uint64_t target = j->last_lsn;
    j->demand_lsn = target;
    while (!j->suspended && j->written_lsn < target) {
        writer_try_submit(j);
        if (j->written_lsn < target)
            writer_wait_frame(j, j->complete_number);
    }
    return target;
}

void writer_push(struct journal *j, bool sync)
{
    j->demand_lsn = j->last_lsn;
    reap_if_ended(j);
    writer_try_submit(j);
    if (!sync || j->suspended)
        return;
    if (!j->syncing)
        sync_begin(j);
    while (j->syncing)
        sync_await(j);
}

int journal_seal(struct journal *j, struct error *err)
{
    int r = 0;
    pthread_mutex_lock(&j->mutex);
    uint32_t number = j->tails[j->active].info.number;
    writer_write_all(j);
    while (!j->suspended && (j->tails[j->active].info.number == number ? j->tails[j->active].frame_count > 0 : j->sealing)) {
        bool here = j->tails[j->active].info.number == number;
        if (here && switch_segment(j))
            continue;
        if (here && j->inflight) {
            writer_wait_frame(j, j->complete_number);
            continue;
        }
        pthread_cond_signal(&j->work);
        pthread_cond_wait(&j->sealed, &j->mutex);
    }
    if (j->suspended)
        r = error_set(err, -ESHUTDOWN, "the journal is suspended: %s", j->reason);
    pthread_mutex_unlock(&j->mutex);
    return r;
}
