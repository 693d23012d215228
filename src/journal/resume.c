/* SPDX-License-Identifier: Apache-2.0 */
/* From suspended back to journaling, without a restart.
 *
 * What a failed disk leaves is treated like what a crash leaves: of the segments in use, the frames stay that are known to
 * be written (or, after a failed fdatasync, to be durable); the rest is cut off, the LSNs stay used. Journaling goes on in a
 * new segment and a new epoch, so that no frame of before can be taken for one of now (J3). What the volumes hold meanwhile
 * is not in the journal: the caller compares them, and until that is done the manifest says suspended, so that a crash
 * leads to a comparison too. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/journal_internal.h"

/* The header CRC of the last frame at or below `high`, from the segment's file; 0 without one. */
static int read_last_crc(const struct tail *t, const char *path, int fd, struct lsn high, uint32_t *ret_crc, struct error *err)
{
    uint32_t count = t->frame_count;
    *ret_crc = 0;
    while (count && le64_get(t->frames[count - 1].first_lsn) > high.n)
        count--;
    if (count == 0 || count == t->frame_count)
        return 0;
    char *block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    if (!block)
        return error_errno(err, -ENOMEM, "cannot look at segment %u", t->info.number);
    struct aead *key = NULL;
    int r = sealed_segment_open(path, fd, &key, err);
    if (r == 0)
        r = sealed_read_header(key, fd, le32_get(t->frames[count - 1].block), block, NULL);
    aead_free(key);
    *ret_crc = le32_get(((const struct frame_header *)block)->header_crc);
    io_free_pages(block, JOURNAL_BLOCK_BYTES);
    return r < 0 ? error_errno(err, r, "cannot read segment %u", t->info.number) : 0;
}

/* Cuts the segment that was switched away from, and seals it if something is left. */
static int close_switched(struct journal *j, struct lsn high, struct error *err)
{
    struct tail *t = &j->tails[!j->active];
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    uint32_t crc;
    journal_path(j, journal_segment_file(t->info.number, name), path);
    if (sealer_is_sealed(j, t))
        return sealer_seal_switched(j, err);
    int r = read_last_crc(t, path, j->sealing_fd, high, &crc, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&j->mutex);
    tail_cut(t, high, crc);
    bool left = t->frame_count > 0;
    if (!left) {
        close(j->sealing_fd);
        j->sealing_fd = -1;
        j->sealing = false;
    }
    pthread_mutex_unlock(&j->mutex);
    if (left)
        return sealer_seal_switched(j, err);
    unlink(path);
    return 0;
}

/* The last LSN that is known to be in the journal. */
static struct lsn find_end(struct journal *j)
{
    bool synced = !j->sync_failed && (j->active_fd < 0 || fdatasync(j->active_fd) == 0) &&
                  (j->sealing_fd < 0 || fdatasync(j->sealing_fd) == 0);
    MUTEX_GUARD(guard, &j->mutex);
    j->sync_failed |= !synced;
    if (synced)
        j->durable_lsn = j->written_lsn;
    return (struct lsn){j->durable_lsn};
}

/* Nobody uses the segments any more then: not the kernel, not whoever syncs, not the sealer. */
static void wait_for_others(struct journal *j)
{
    pthread_mutex_lock(&j->mutex);
    while (j->inflight)
        writer_wait_frame(j, j->complete_number);
    while (j->syncing || j->sealer_works)
        if (j->syncing)
            sync_await(j);
        else
            pthread_cond_wait(&j->sealed, &j->mutex);
    pthread_mutex_unlock(&j->mutex);
}

/* Closes the segments of before, each step once: called again after a failure it goes on with the next. */
static int close_old(struct journal *j, struct error *err)
{
    struct lsn end = find_end(j);
    int r = 0;
    if (j->sealing)
        r = close_switched(j, end, err);
    if (r == 0 && j->active_fd >= 0) {
        pthread_mutex_lock(&j->mutex);
        j->sealing = true;
        j->sealing_fd = j->active_fd;
        j->active = !j->active;
        j->active_fd = -1;
        tail_reset(&j->tails[j->active], j->tails[!j->active].info.number + 1, j->manifest.epoch, &j->manifest.boot);
        pthread_mutex_unlock(&j->mutex);
        r = close_switched(j, end, err);
    }
    return r;
}

/* First of all: it holds nothing, and what comes next needs room. */
static void release_ready(struct journal *j)
{
    if (j->ready_fd < 0)
        return;
    segment_recycle(j, j->ready_number, false);
    MUTEX_GUARD(guard, &j->mutex);
    close(j->ready_fd);
    j->ready_fd = -1;
    aead_free(j->ready_key);
    j->ready_key = NULL;
}

/* Closes what was, and makes the segment of a new epoch. */
static int begin_anew(struct journal *j, struct error *err)
{
    release_ready(j);
    int r = sealer_save(j, err); /* suspended: before, the absence of a segment that is left with nothing would be a loss */
    if (r == 0)
        r = close_old(j, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&j->mutex);
    uint32_t number = j->manifest.next_segment;
    j->manifest.epoch++;
    tail_reset(&j->tails[j->active], number, j->manifest.epoch, &j->manifest.boot);
    pthread_mutex_unlock(&j->mutex);
    r = sealer_save(j, err);
    int fd = -1;
    struct aead *key = NULL;
    if (r == 0)
        r = segment_prepare(j, number, false, &fd, &key, err);
    MUTEX_GUARD(guard, &j->mutex);
    j->resume_fd = fd;
    j->resume_key = key;
    return r;
}

int journal_resume_prepare(struct journal *j, struct error *err)
{
    if (!j->suspended || j->resume_fd >= 0)
        return 0;
    MUTEX_GUARD(maintenance, &j->maintain_mutex);
    pthread_mutex_lock(&j->mutex);
    bool exhausted = pace_is_exhausted(j);
    pthread_cond_signal(&j->janitor_work);
    pthread_mutex_unlock(&j->mutex);
    if (exhausted)
        return error_set(err, -EDQUOT, "journaling cannot go on yet: the journal is over its quota by all that it may, and a view or what "
                                       "cannot be dropped keeps its oldest history");
    wait_for_others(j);
    int r = begin_anew(j, err);
    pthread_mutex_lock(&j->mutex);
    j->disk_full = io_is_no_room(r); /* the janitor drops the oldest history, then it is tried again */
    pthread_cond_signal(&j->janitor_work);
    pthread_mutex_unlock(&j->mutex);
    return r < 0 ? error_context(err, "journaling cannot go on yet") : 0;
}

int journal_resume(struct journal *j, struct error *err)
{
    MUTEX_GUARD(guard, &j->mutex);
    if (!j->suspended)
        return 0;
    bool idle = j->resume_fd >= 0;
    for (uint32_t i = 0; i < RING_SLOTS; i++)
        idle &= j->frames[i].number == 0;
    if (!idle)
        return error_set(err, -EAGAIN, "journaling cannot go on yet: writes are under way");
    j->active_fd = j->resume_fd;
    j->resume_fd = -1;
    aead_free(j->active_key);
    j->active_key = take_ptr(j->resume_key);
    j->lost_low = j->durable_lsn; /* who slept through all of this must not take a later LSN for its own */
    j->lost_high = j->next_lsn - 1;
    j->written_lsn = j->last_lsn = j->durable_lsn;
    j->demand_lsn = 0;
    j->sync_wanted_lsn = j->sync_asked_lsn = 0;
    j->unsynced_since_ns = 0;
    j->open_number = j->submit_number = j->complete_number = j->manifest.next_frame;
    j->previous_crc = j->manifest.previous_crc;
    ring_clear(&j->ring, &j->manifest.journal_id, j->manifest.epoch, false);
    j->sync_failed = false;
    j->reason[0] = '\0';
    j->suspended = false;
    log_info(j->log, "journaling goes on after LSN %llu, in segment %u", (unsigned long long)j->last_lsn,
             j->tails[j->active].info.number);
    pthread_cond_signal(&j->work);
    pthread_cond_broadcast(&j->room);
    return 0;
}
