/* SPDX-License-Identifier: Apache-2.0 */
/* The sealer thread keeps one segment ready, turns a full one's tail into its L0 index and the manifest's entry, and
 * bounds what a power loss can take by syncing once a second. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "journal/journal_internal.h"

#define SYNC_INTERVAL_NS NS_PER_SECOND

/* With the mutex. */
static int copy_to_save(struct journal *j, struct manifest *ret, struct error *err)
{
    uint64_t reserved = j->next_lsn + JOURNAL_LSN_RESERVE;
    if (!j->manifest.clean && reserved > j->manifest.lsn_reserved.n)
        j->manifest.lsn_reserved.n = reserved;
    return manifest_copy(&j->manifest, ret, err);
}

/* Whether there may be room now for what found none. */
static bool give_room(struct journal *j)
{
    return reserve_give(j) || segment_give_free(j);
}

/* With save_mutex, without the mutex. */
static int save_copy(struct journal *j, const struct manifest *copy, struct error *err)
{
    int fault = journal_fault_at(j, "save");
    int r;
    do
        r = fault < 0 ? error_errno(err, fault, "cannot save the manifest") : manifest_save(j->directory, copy, err);
    while (io_is_no_room(r) && give_room(j));
    j->unsaved = r < 0;
    return r;
}

int sealer_save(struct journal *j, struct error *err)
{
    struct manifest copy;
    MUTEX_GUARD(saving, &j->save_mutex);
    pthread_mutex_lock(&j->mutex);
    int r = copy_to_save(j, &copy, err);
    pthread_mutex_unlock(&j->mutex);
    if (r < 0)
        return r;
    r = save_copy(j, &copy, err);
    manifest_release(&copy);
    return r;
}

int sealer_change(struct journal *j, manifest_change change, void *context, struct error *err)
{
    struct manifest copy;
    MUTEX_GUARD(saving, &j->save_mutex);
    pthread_mutex_lock(&j->mutex);
    int r = copy_to_save(j, &copy, err);
    pthread_mutex_unlock(&j->mutex);
    if (r < 0)
        return r;
    r = change(context, &copy, err);
    if (r == 0)
        r = save_copy(j, &copy, err);
    manifest_release(&copy);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &j->mutex);
    r = change(context, &j->manifest, err);
    j->unsaved = r < 0;
    return r;
}

int sealer_catch_up(struct journal *j, struct error *err)
{
    return j->unsaved ? sealer_save(j, err) : 0;
}

/* Frees what a sealed segment did not use. */
static void trim(struct journal *j, const struct tail *t, int fd)
{
    uint64_t used = (uint64_t)t->info.used_blocks * JOURNAL_BLOCK_BYTES;
    if (t->info.used_blocks < j->options.segment_blocks / 2 && ftruncate(fd, (off_t)used) < 0)
        log_warning(j->log, "cannot trim segment %u: %m", t->info.number);
}

static int add_rewind(struct manifest *m, struct lsn lsn, struct lsn target, struct error *err)
{
    struct rewind_info rewind = {lsn, target};
    for (size_t i = 0; i < m->rewind_count; i++)
        if (m->rewinds[i].lsn.n == lsn.n)
            return 0;
    return manifest_add_rewind(m, &rewind, err);
}

int sealer_add_rewind(struct journal *j, struct lsn lsn, struct lsn target, struct error *err)
{
    return add_rewind(&j->manifest, lsn, target, err);
}

bool sealer_is_rewind(const struct journal *j, const struct manifest *m, struct lsn lsn)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    for (size_t i = m->rewind_count; i-- > 0 && m->rewinds[i].lsn.n >= lsn.n;)
        if (m->rewinds[i].lsn.n == lsn.n)
            return true;
    journal_path(j, journal_rewind_file(lsn, name), path);
    return access(path, F_OK) == 0;
}

void sealer_note_rewinds(const struct journal *j, struct manifest *m, const struct tail *t)
{
    struct error err = ERROR_INIT;
    for (uint32_t i = 0; i < t->event_count; i++) {
        const struct tail_event *e = &t->events[i];
        struct lsn lsn = {le64_get(e->lsn)};
        if (e->op == OP_REWIND && sealer_is_rewind(j, m, lsn) && add_rewind(m, lsn, (struct lsn){le64_get(e->aux)}, &err) < 0)
            log_error(j->log, "%s", err.message);
    }
}


bool sealer_is_sealed(struct journal *j, const struct tail *t)
{
    MUTEX_GUARD(guard, &j->mutex);
    const struct manifest *m = &j->manifest;
    return m->segment_count && m->segments[m->segment_count - 1].number == t->info.number;
}

int sealer_seal(struct journal *j, struct tail *t, int fd, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    if (sealer_is_sealed(j, t))
        return sealer_save(j, err);
    journal_path(j, journal_l0_file(t->info.number, name), path);
    int fault = journal_fault_at(j, "seal");
    if (fault < 0 || fdatasync(fd) < 0)
        return error_errno(err, fault ? fault : -errno, "cannot sync segment %u", t->info.number);
    trim(j, t, fd);
    uint32_t index_kib;
    int r;
    do
        r = tail_write_index(t, path, &j->manifest.journal_id, INDEX_L0, LSN_MAX, j->scratch, &index_kib, err);
    while (io_is_no_room(r) && give_room(j));
    if (r < 0)
        return r;
    pthread_mutex_lock(&j->mutex);
    t->info.index_kib = index_kib; /* a pin may be copying the tail */
    sealer_note_rewinds(j, &j->manifest, t); /* a kill before journal_rewound must not lose them */
    r = manifest_add_segment(&j->manifest, &t->info, err);
    if (r == 0) {
        j->manifest.next_segment = t->info.number + 1;
        if (t->info.frames) {
            j->manifest.next_frame = t->info.first_frame + t->info.frames;
            j->manifest.previous_crc = t->last_crc;
        }
    }
    pthread_mutex_unlock(&j->mutex);
    return r < 0 ? r : sealer_save(j, err);
}

/* Seals what was switched away from. */
int sealer_seal_switched(struct journal *j, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    struct tail *t = &j->tails[!j->active];
    int fd = j->sealing_fd;
    pthread_mutex_unlock(&j->mutex);
    int r = sealer_seal(j, t, fd, err);
    pthread_mutex_lock(&j->mutex);
    while (j->syncing)
        sync_await(j);
    if (r == 0) {
        j->sealing = false;
        j->sealing_fd = -1;
        close(fd);
        pthread_cond_broadcast(&j->sealed);
        pthread_cond_signal(&j->janitor_work);
        writer_try_submit(j);
    } else {
        writer_suspend(j, err->message);
    }
    pthread_mutex_unlock(&j->mutex);
    return r;
}

static void wait_for_work(struct journal *j, unsigned delay_ms)
{
    thread_cond_wait_ns(&j->work, &j->mutex, delay_ms * NS_PER_MS);
}

/* With the mutex: whether the janitor is so far behind that the next segment has to wait for it (J7). */
static bool must_wait(const struct journal *j)
{
    uint64_t full = journal_segment_bytes(j);
    if (j->quota_blocked && pin_may_end(j) && pace_is_exhausted(j))
        return true; /* for the janitor, which tells views to end, and for those: there will be history to drop */
    return j->options.quota_bytes && j->manifest.segment_count > 1 && !j->quota_blocked && !j->drop_failed && !j->held &&
           maintain_journal_bytes(j) > j->options.quota_bytes + PACE_STOP_SEGMENTS * full;
}

static int prepare_next(struct journal *j, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    if (must_wait(j)) {
        pthread_cond_signal(&j->janitor_work);
        wait_for_work(j, 10);
        pthread_mutex_unlock(&j->mutex);
        return 0;
    }
    if (pace_is_exhausted(j)) { /* J7: a quota never fills the disk */
        writer_suspend(j, "it has outgrown its quota by all that it may, and its oldest history cannot be dropped: close the views");
        pthread_mutex_unlock(&j->mutex);
        return 0;
    }
    uint32_t number = j->tails[j->active].info.number + 1;
    pthread_mutex_unlock(&j->mutex);
    struct aead *key = NULL;
    int fd, r = segment_prepare(j, number, true, &fd, &key, err);
    pthread_mutex_lock(&j->mutex);
    if (r == 0) {
        j->disk_full = false;
        j->ready_fd = fd;
        j->ready_key = key;
        j->ready_number = number;
        pthread_cond_broadcast(&j->sealed);
        writer_try_submit(j);
    } else if (!io_is_no_room(r) || j->manifest.segment_count <= 1 || j->quota_blocked || j->drop_failed || j->held) {
        writer_suspend(j, err->message);
    } else { /* the janitor drops the oldest history, then it is tried again */
        j->disk_full = true;
        pthread_cond_signal(&j->janitor_work);
    }
    pthread_mutex_unlock(&j->mutex);
    return r;
}

static void *sealer_main(void *context)
{
    struct journal *j = context;
    struct error err = ERROR_INIT;
    bool told = false;
    pthread_mutex_lock(&j->mutex);
    while (!j->stop) {
        bool near = pace_update(j);
        told &= j->suspended;
        if (j->suspended && !told) {
            pthread_mutex_unlock(&j->mutex);
            told = sealer_save(j, &err) == 0;
            pthread_mutex_lock(&j->mutex);
        }
        bool seal = j->sealing && !j->suspended, prepare = j->ready_fd < 0 && !j->suspended;
        uint64_t now = clock_boottime_ns(j->clock);
        bool sync = !j->suspended && j->unsynced_since_ns && now - j->unsynced_since_ns >= SYNC_INTERVAL_NS;
        bool unwritten = !j->suspended && j->written_lsn < j->last_lsn;
        if (!seal && !prepare) { /* never journal_sync here: it may wait for a segment, which is made here */
            if (sync || unwritten)
                writer_push(j, sync);
            if (!sync && !unwritten && !near)
                spare_work(j);
            if (!j->stop && (j->suspended || (j->ready_fd >= 0 && !j->sealing)))
                wait_for_work(j, near ? 10 : unwritten ? 50 : j->options.light ? JOURNAL_LIGHT_WAKE_MS : 250);
            continue;
        }
        j->sealer_works = true;
        pthread_mutex_unlock(&j->mutex);
        int r = seal ? sealer_seal_switched(j, &err) : prepare_next(j, &err);
        pthread_mutex_lock(&j->mutex);
        j->sealer_works = false;
        pthread_cond_broadcast(&j->sealed);
        if (r < 0) {
            log_warning(j->log, "%s", err.message);
            wait_for_work(j, 50);
        }
    }
    pthread_mutex_unlock(&j->mutex);
    return NULL;
}

int sealer_start(struct journal *j, struct error *err)
{
    int r = thread_start(&j->sealer, "journal-seal", sealer_main, j, err);
    j->sealer_runs = r == 0;
    return r;
}

void sealer_stop(struct journal *j)
{
    if (!j->sealer_runs)
        return;
    pthread_mutex_lock(&j->mutex);
    j->stop = true;
    pthread_cond_broadcast(&j->work);
    pthread_mutex_unlock(&j->mutex);
    pthread_join(j->sealer, NULL);
    j->sealer_runs = false;
    spare_drop(j);
}
