/* SPDX-License-Identifier: Apache-2.0 */
/* The way of a request that must not block (block/queue.h): the same steps and the same order as in volume.c and flush.c. What would
 * have to wait there is refused here before anything was done, or handed back to be finished by a thread.
 *
 * A write holds the gate (shared) and its range from its start until its backing is written, the gate until the journal has
 * it too; so a rewind waits for it, and an overlapping write comes later in both. With FUA it goes on as a flush, without
 * gate and range, once its backing is written. */
#include <assert.h>
#include <errno.h>
#include <sys/eventfd.h>

#include "block/queue.h"
#include "signal/signal.h"
#include "volume/group_internal.h"

struct async {
    union {
        struct journal_ticket ticket;
        struct flush flush; /* once `flushes` */
    };
    uint32_t range;
    bool backed, flushes;
};
static_assert(sizeof(struct async) <= sizeof((struct block_request *)0)->own, "the request has room for it");

static struct async *async_of(struct block_request *r)
{
    return (struct async *)(void *)r->own;
}

static int start_read(struct volume *v, struct block_request *r)
{
    if (atomic_load_explicit(&v->stale.set_count, memory_order_acquire) || !volume_is_filled(v))
        return -EAGAIN;
    atomic_fetch_add_explicit(&v->reads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&v->read_bytes, r->length_bytes, memory_order_relaxed);
    block_queue_transfer(r, block_file_fd(v->file), r->data);
    return BLOCK_STEP_TRANSFERS;
}

/* With gate and range: gives the write its LSN. */
static int append(struct volume *v, struct block_request *r)
{
    struct error ignored = ERROR_INIT;
    uint64_t lba = r->offset_bytes / BLOCK_SECTOR_BYTES, sectors = r->length_bytes / BLOCK_SECTOR_BYTES;
    /* The range lock is held: what is seeded and filled now stays so. */
    if (!volume_is_current(v) || seed_touches(v, lba, sectors) || fill_touches(v, lba, sectors) || !intent_is_marked(v->intent, lba, sectors))
        return -EAGAIN;
    struct journal_record record = {
        .op = OP_WRITE,
        .flags = RECORD_LAST | (r->flags & BLOCK_FUA ? RECORD_FUA : 0),
        .volume = v->id,
        .lba = r->offset_bytes / BLOCK_SECTOR_BYTES,
        .length = (uint32_t)(r->length_bytes / BLOCK_SECTOR_BYTES),
        .payload = r->data,
        .payload_bytes = (uint32_t)r->length_bytes,
        .lazy = v->group->ack == GROUP_ACK_FLUSH,
    };
    signal_note(v->signal, r->offset_bytes, r->data, r->length_bytes); /* before it has an LSN */
    /* Also when the journal is suspended: the blocking way knows what to do. */
    return journal_try_append(v->group->journal, &record, &async_of(r)->ticket, &ignored) < 0 ? -EAGAIN : 0;
}

static int start_write(struct volume *v, struct block_request *r)
{
    struct group *g = v->group;
    struct async *a = async_of(r);
    *a = (struct async){0};
    if (r->length_bytes > JOURNAL_PAYLOAD_MAX_BYTES || journal_paces(g->journal) || pthread_rwlock_tryrdlock(&g->gate) != 0)
        return -EAGAIN;
    if (!range_lock_try(&g->ranges, v->id, r->offset_bytes / BLOCK_SECTOR_BYTES, r->length_bytes / BLOCK_SECTOR_BYTES, &a->range)) {
        pthread_rwlock_unlock(&g->gate);
        return -EAGAIN;
    }
    if (append(v, r) < 0) {
        range_lock_drop(&g->ranges, a->range);
        pthread_rwlock_unlock(&g->gate);
        return -EAGAIN;
    }
    atomic_fetch_add_explicit(&v->writes, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&v->written_bytes, r->length_bytes, memory_order_relaxed);
    block_queue_transfer(r, block_file_fd(v->file), (void *)(uintptr_t)a->ticket.payload);
    return BLOCK_STEP_TRANSFERS;
}

static int start_flush(struct volume *v, struct block_request *r)
{
    struct async *a = async_of(r);
    *a = (struct async){.flushes = true};
    atomic_fetch_add_explicit(&v->flushes, 1, memory_order_relaxed);
    flush_begin(v, &a->flush);
    enum block_step step = flush_step(v, &a->flush, r);
    /* Ended already, or has failed: rare enough for a thread. */
    return step == BLOCK_STEP_TRANSFERS || step == BLOCK_STEP_WAITS ? (int)step : -EAGAIN;
}

static int async_start(struct block *b, struct block_request *r)
{
    struct volume *v = (struct volume *)b;
    if ((r->op == BLOCK_OP_FLUSH || r->flags & BLOCK_FUA) && v->fill && atomic_load(&v->fill->wanted))
        return -EAGAIN; /* its map may have to be saved */
    if (r->op == BLOCK_OP_FLUSH)
        return start_flush(v, r);
    if (!block_file_is_direct(v->file, r->length_bytes, r->offset_bytes))
        return -EAGAIN;
    return r->op == BLOCK_OP_WRITE ? start_write(v, r) : start_read(v, r);
}

static enum block_step async_step(struct block *b, struct block_request *r)
{
    struct volume *v = (struct volume *)b;
    struct group *g = v->group;
    struct async *a = async_of(r);
    bool lost = false;
    if (a->flushes && r->op != BLOCK_OP_READ)
        return flush_step(v, &a->flush, r);
    if (r->transferred < 0 || (size_t)r->transferred != r->length_bytes)
        return BLOCK_STEP_BLOCKS;
    if (r->op == BLOCK_OP_READ)
        return BLOCK_STEP_DONE;
    if (!a->backed) {
        a->backed = true;
        journal_backed(g->journal, &a->ticket);
        range_lock_drop(&g->ranges, a->range);
    }
    if (r->flags & BLOCK_FUA) {
        pthread_rwlock_unlock(&g->gate);
        a->flushes = true;
        flush_begin(v, &a->flush);
        return flush_step(v, &a->flush, r);
    }
    if (g->ack == GROUP_ACK_WRITE && !journal_is_written(g->journal, &a->ticket, &lost)) {
        journal_poll(g->journal);
        if (!journal_is_written(g->journal, &a->ticket, &lost))
            return BLOCK_STEP_WAITS;
    }
    pthread_rwlock_unlock(&g->gate);
    if (lost && g->holds)
        return BLOCK_STEP_AGAIN;
    if (lost) /* availability: the application's write goes on */
        atomic_fetch_add(&g->unjournaled, 1);
    return BLOCK_STEP_DONE;
}

static int finish_write(struct volume *v, struct block_request *r, struct error *err)
{
    struct group *g = v->group;
    struct async *a = async_of(r);
    struct error ignored = ERROR_INIT;
    struct change c = {.kind = CHANGE_WRITE, .lba = r->offset_bytes / BLOCK_SECTOR_BYTES,
                       .length = r->length_bytes / BLOCK_SECTOR_BYTES};
    int result = volume_change_backing(v, &c, a->ticket.payload, err);
    journal_backed(g->journal, &a->ticket);
    range_lock_drop(&g->ranges, a->range);
    if (result < 0) {
        /* Once more by a thread of those that write: it journals what the backing holds, and may wait for room in the journal for that.
         * Here it would wait for frames that are kept by the requests behind this one. */
        pthread_rwlock_unlock(&g->gate);
        return BLOCK_STEP_AGAIN;
    }
    bool fua = r->flags & BLOCK_FUA;
    bool lost = g->ack == GROUP_ACK_WRITE && !fua && journal_wait(g->journal, &a->ticket, &ignored) == -ESHUTDOWN;
    bool holds = g->holds; /* it is changed with the gate */
    pthread_rwlock_unlock(&g->gate);
    if (lost && !holds)
        atomic_fetch_add(&g->unjournaled, 1);
    /* A flush may wait for a suspended journal, which goes on once the requests behind this one have let go of the gate. */
    return holds && (lost || fua) ? BLOCK_STEP_AGAIN : fua ? volume_flush_both(v, err) : 0;
}

/* A transfer that failed or was short is repeated whole; a flush that failed has failed for good. */
static int async_finish(struct block *b, struct block_request *r, struct error *err)
{
    struct volume *v = (struct volume *)b;
    if (r->op != BLOCK_OP_READ && async_of(r)->flushes)
        return volume_flush_error(v, err);
    return r->op == BLOCK_OP_WRITE ? finish_write(v, r, err) : block_pread(v->backing, r->data, r->length_bytes, r->offset_bytes, err);
}

static void async_push(struct block *b)
{
    struct volume *v = (struct volume *)b;
    struct group *g = v->group;
    backing_sync_submitted(v);
    if (g->ack == GROUP_ACK_WRITE)
        journal_push(g->journal);
}

/* A flush whose fdatasync of the backing is under way is asked only when that has ended: the journal's goes on beside it. */
static void async_poll(struct block *b)
{
    journal_sync_poll(((struct volume *)b)->group->journal);
}

static unsigned async_prepare_sleep(struct block *b, struct pollfd *fds)
{
    struct volume *v = (struct volume *)b;
    eventfd_t ignored;
    while (eventfd_read(v->listener.fd, &ignored) == 0)
        ;
    journal_poll(v->group->journal); /* a frame that ended before its backing would wake it again and again: nobody else takes it */
    atomic_store(&v->listener.asleep, true);
    fds[0] = (struct pollfd){.fd = v->listener.fd, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = journal_poll_fd(v->group->journal), .events = POLLIN};
    fds[2] = (struct pollfd){.fd = journal_sync_poll_fd(v->group->journal), .events = POLLIN};
    return 3;
}

static struct iovec async_memory(struct block *b)
{
    return journal_payload_memory(((struct volume *)b)->group->journal);
}

const struct block_async_ops volume_async_ops = {
    .start = async_start,
    .step = async_step,
    .finish = async_finish,
    .push = async_push,
    .poll = async_poll,
    .memory = async_memory,
    .prepare_sleep = async_prepare_sleep,
};
