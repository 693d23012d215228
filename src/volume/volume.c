/* SPDX-License-Identifier: Apache-2.0 */
/* The way of one request through a protected volume. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "signal/signal.h"
#include "volume/group_internal.h"

#define UNSEEDED_SECTORS 32768u /* of a discard or zeroing, at a time */

/* Takes the lock of a range: of its whole grains while some are not plain. */
static uint32_t lock_range(struct volume *v, uint64_t lba, uint64_t length)
{
    if (!volume_is_plain(v)) {
        uint64_t end = (lba + length + GROUP_GRAIN_SECTORS - 1) / GROUP_GRAIN_SECTORS * GROUP_GRAIN_SECTORS;
        lba = lba / GROUP_GRAIN_SECTORS * GROUP_GRAIN_SECTORS;
        length = end - lba;
    }
    return range_lock_take(&v->group->ranges, v->id, lba, length);
}

/* ---- reading ---- */

/* With the gate. What is not copied back yet is read through the journal's image. */
static int read_held(struct volume *v, char *data, size_t length_bytes, uint64_t offset_bytes, struct error *err)
{
    int r = 0;
    while (length_bytes && r == 0) {
        uint64_t grain = offset_bytes / GROUP_GRAIN_BYTES;
        size_t room = GROUP_GRAIN_BYTES - offset_bytes % GROUP_GRAIN_BYTES, part = length_bytes < room ? length_bytes : room;
        if (grain_map_test(&v->stale, grain))
            r = grains_read_stale(v, offset_bytes, (uint32_t)part, data, err);
        else
            r = block_pread(v->backing, data, part, offset_bytes, err);
        data += part;
        offset_bytes += part;
        length_bytes -= part;
    }
    return r;
}

static int volume_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes, struct error *err)
{
    struct volume *v = (struct volume *)b;
    atomic_fetch_add_explicit(&v->reads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&v->read_bytes, length_bytes, memory_order_relaxed);
    if (atomic_load_explicit(&v->stale.set_count, memory_order_acquire) == 0)
        return block_pread(v->backing, data, length_bytes, offset_bytes, err);
    pthread_rwlock_rdlock(&v->group->gate);
    int r = read_held(v, data, length_bytes, offset_bytes, err);
    pthread_rwlock_unlock(&v->group->gate);
    return r;
}

/* ---- writing ---- */

/* One record of what the volume holds. *ret_unread: it could not be read, and nothing was appended. */
static int resync_part(struct volume *v, uint64_t lba, uint32_t length, char *data, bool *ret_unread, struct error *err)
{
    struct journal_record record = {.op = OP_RESYNC, .flags = RECORD_LAST, .volume = v->id, .lba = lba, .length = length,
                                    .payload = data, .payload_bytes = length * BLOCK_SECTOR_BYTES};
    struct journal_ticket ticket;
    int r = read_held(v, data, record.payload_bytes, lba * BLOCK_SECTOR_BYTES, err); /* of a stale grain the backing says nothing */
    *ret_unread = r < 0;
    if (r == 0)
        r = journal_append(v->group->journal, &record, &ticket, err);
    if (r == 0) {
        journal_backed(v->group->journal, &ticket);
        r = journal_wait(v->group->journal, &ticket, err);
    }
    return r;
}

static int append_gap(struct volume *v, uint64_t lba, uint32_t length, struct error *err)
{
    struct journal_record gap = {.op = OP_GAP, .flags = RECORD_LAST, .volume = v->id, .lba = lba, .length = length};
    struct lsn lsn;
    log_error(v->group->log, "volume %s cannot be read at sector %llu: %s; what it should hold there is not known", v->name,
              (unsigned long long)lba, err->message);
    *err = ERROR_INIT;
    return journal_append_durable(v->group->journal, &gap, &lsn, err);
}

int volume_resync(struct volume *v, uint64_t lba, uint64_t length, struct error *err)
{
    char *data = io_alloc_pages(JOURNAL_PAYLOAD_MAX_BYTES);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot read volume %s again", v->name);
    uint64_t part, bad_end = 0; /* up to there block by block: one of them is bad */
    int r = 0;
    for (uint64_t at = lba, end = lba + length; at < end && r == 0; at += part) {
        uint64_t limit = at < bad_end ? JOURNAL_BLOCK_SECTORS : EXTENT_DATA_MAX_SECTORS, room = limit - at % limit;
        bool unread = false;
        part = room < end - at ? room : end - at;
        r = resync_part(v, at, (uint32_t)part, data, &unread, err);
        if (!unread)
            continue;
        if (at < bad_end) {
            r = append_gap(v, at, (uint32_t)part, err);
        } else {
            bad_end = at + part;
            part = 0;
            r = 0;
        }
    }
    io_free_pages(data, JOURNAL_PAYLOAD_MAX_BYTES);
    return r;
}

void volume_after_backing_error(struct volume *v, uint64_t lba, uint64_t length, const struct error *cause)
{
    struct error err = ERROR_INIT;
    log_error(v->group->log, "volume %s: %s", v->name, cause->message);
    if (volume_resync(v, lba, length, &err) < 0 && err.code != -ESHUTDOWN) /* else all is compared once journaling goes on */
        log_error(v->group->log, "%s", err.message);
}

int volume_change_backing(struct volume *v, const struct change *c, const void *data, struct error *err)
{
    uint64_t offset = c->lba * BLOCK_SECTOR_BYTES, length = c->length * BLOCK_SECTOR_BYTES;
    switch (c->kind) {
    case CHANGE_WRITE:
        return block_pwrite(v->backing, data, length, offset, 0, err);
    case CHANGE_DISCARD:
        return block_discard(v->backing, length, offset, 0, err);
    default:
        return block_zero(v->backing, length, offset, 0, err);
    }
}

/* One part that fits a record. *ret_ticket.frame stays 0 when it went on without the journal. */
static int change_part(struct volume *v, const struct change *c, bool last, struct journal_ticket *ret_ticket,
                       struct error *err)
{
    static const enum journal_op ops[] = {OP_WRITE, OP_DISCARD, OP_ZERO};
    struct group *g = v->group;
    bool write = c->kind == CHANGE_WRITE;
    struct journal_record record = {
        .op = ops[c->kind],
        .flags = (uint8_t)((last ? RECORD_LAST : 0) | (c->flags & BLOCK_FUA ? RECORD_FUA : 0)),
        .volume = v->id,
        .lba = c->lba,
        .length = (uint32_t)c->length,
        .payload = c->data,
        .payload_bytes = write ? (uint32_t)c->length * BLOCK_SECTOR_BYTES : 0,
        .lazy = g->ack == GROUP_ACK_FLUSH,
    };
    struct journal_ticket ticket;
    int r = journal_append(g->journal, &record, &ticket, err);
    if (r == -ESHUTDOWN && !g->holds) { /* availability: the application's write goes on */
        atomic_fetch_add(&g->unjournaled, 1);
        return volume_change_backing(v, c, c->data, err);
    }
    if (r < 0)
        return r;
    r = volume_change_backing(v, c, write ? ticket.payload : NULL, err);
    journal_backed(g->journal, &ticket);
    if (r < 0)
        volume_after_backing_error(v, c->lba, c->length, err);
    *ret_ticket = ticket;
    return r;
}

/* All parts, with successive LSNs. */
static int change_parts(struct volume *v, const struct change *c, struct journal_ticket *ticket, struct error *err)
{
    uint64_t limit = c->kind == CHANGE_WRITE ? EXTENT_DATA_MAX_SECTORS : EXTENT_ZERO_MAX_SECTORS;
    if (c->length <= limit)
        return change_part(v, c, true, ticket, err);
    int r = 0;
    journal_exclusive_begin(v->group->journal);
    for (uint64_t done = 0; done < c->length && r == 0; done += limit) {
        struct change part = *c;
        part.lba += done;
        part.length = c->length - done < limit ? c->length - done : limit;
        part.data = c->data ? c->data + done * BLOCK_SECTOR_BYTES : NULL;
        r = change_part(v, &part, done + limit >= c->length, ticket, err);
    }
    journal_exclusive_end(v->group->journal);
    return r;
}

static int change_once(struct volume *v, const struct change *c, struct error *err)
{
    struct group *g = v->group;
    struct journal_ticket ticket = {0};
    pthread_rwlock_rdlock(&g->gate);
    uint32_t slot = lock_range(v, c->lba, c->length);
    bool plain = volume_is_plain(v);
    intent_mark(v->intent, c->lba, c->length);
    signal_note(v->signal, c->lba * BLOCK_SECTOR_BYTES, c->data, c->length * BLOCK_SECTOR_BYTES);
    int r = plain ? 0 : grains_prepare(v, c->lba, c->length, err);
    bool prepared = r == 0;
    if (prepared)
        r = change_parts(v, c, &ticket, err);
    if (r == 0 && !plain)
        grains_overwritten(v, c->lba, c->length);
    else if (prepared && r != -ESHUTDOWN && !plain)
        grains_not_overwritten(v, c->lba, c->length);
    range_lock_drop(&g->ranges, slot);
    if (r == 0 && g->ack == GROUP_ACK_WRITE && !(c->flags & BLOCK_FUA) && ticket.frame) {
        r = journal_wait(g->journal, &ticket, err);
        if (r == -ESHUTDOWN && !g->holds) {
            atomic_fetch_add(&g->unjournaled, 1);
            r = 0;
        }
    }
    /* An unjournaled write over what a rewind has not copied back: after a kill the grain must not count as stale again, and nothing but the map on disk says so. */
    struct error ignored = ERROR_INIT;
    if (r == 0 && !plain && !v->stale_live.words && journal_is_suspended(g->journal) && stale_save_behind(g, &ignored) < 0)
        log_error(g->log, "%s", ignored.message);
    pthread_rwlock_unlock(&g->gate);
    return r;
}

/* Where writes wait for the journal, one that it has lost is done again whole: it was not acknowledged. A large discard is not one
 * change where all that it throws away has to be copied before: nobody else would get a word in. */
static int change_range(struct volume *v, const struct change *c, struct error *err)
{
    int r = 0;
    for (uint64_t done = 0, part; done < c->length && r == 0; done += part) {
        bool unseeded = atomic_load_explicit(&v->unseeded.set_count, memory_order_acquire) > 0;
        struct change piece = *c;
        part = unseeded && !c->data && c->length - done > UNSEEDED_SECTORS ? UNSEEDED_SECTORS : c->length - done;
        piece.lba += done;
        piece.length = part;
        if (journal_paces(v->group->journal))
            journal_pace(v->group->journal);
        r = change_once(v, &piece, err);
        while (r == -ESHUTDOWN && group_await_journal(v->group))
            r = change_once(v, &piece, err);
    }
    return r == 0 && c->flags & BLOCK_FUA ? volume_flush_both(v, err) : r;
}

static int volume_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags,
                         struct error *err)
{
    struct volume *v = (struct volume *)b;
    struct change c = {CHANGE_WRITE, offset_bytes / BLOCK_SECTOR_BYTES, length_bytes / BLOCK_SECTOR_BYTES, data, flags};
    if (c.length == 0)
        return 0;
    atomic_fetch_add_explicit(&v->writes, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&v->written_bytes, length_bytes, memory_order_relaxed);
    return change_range(v, &c, err);
}

static int volume_discard(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err)
{
    struct volume *v = (struct volume *)b;
    struct change c = {CHANGE_DISCARD, offset_bytes / BLOCK_SECTOR_BYTES, length_bytes / BLOCK_SECTOR_BYTES, NULL, flags};
    if (c.length == 0)
        return 0;
    atomic_fetch_add_explicit(&v->discarded_bytes, length_bytes, memory_order_relaxed);
    return change_range(v, &c, err);
}

static int volume_zero(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err)
{
    struct volume *v = (struct volume *)b;
    struct change c = {CHANGE_ZERO, offset_bytes / BLOCK_SECTOR_BYTES, length_bytes / BLOCK_SECTOR_BYTES, NULL, flags};
    if (c.length == 0)
        return 0;
    atomic_fetch_add_explicit(&v->writes, 1, memory_order_relaxed);
    return change_range(v, &c, err);
}

static int volume_flush(struct block *b, struct error *err)
{
    struct volume *v = (struct volume *)b;
    atomic_fetch_add_explicit(&v->flushes, 1, memory_order_relaxed);
    return volume_flush_both(v, err);
}

static int volume_extents(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, struct block_extent *extents,
                          size_t capacity, size_t *ret_count, struct error *err)
{
    struct volume *v = (struct volume *)b;
    if (atomic_load(&v->stale.set_count)) { /* the backing's holes say nothing now */
        extents[0] = (struct block_extent){offset_bytes, length_bytes, false};
        *ret_count = 1;
        return 0;
    }
    return block_extents(v->backing, length_bytes, offset_bytes, extents, capacity, ret_count, err);
}

const struct block_ops volume_ops = {
    .pread = volume_pread,
    .pwrite = volume_pwrite,
    .flush = volume_flush,
    .discard = volume_discard,
    .zero = volume_zero,
    .extents = volume_extents,
    .async = &volume_async_ops,
};
