/* SPDX-License-Identifier: Apache-2.0 */
/* FLUSH and FUA: fdatasync of the backing and of the journal, side by side.
 *
 * One fdatasync of a backing at a time, which answers all flushes that came before it was submitted; the
 * journal does the same (journal/sync.c). Whoever needs one and finds none under way leads it: a thread that
 * may block, or a request of the volume's queue.
 *
 * An fdatasync that failed has lost something, and the kernel tells it once: the volume counts as failed from
 * then on, and no flush succeeds. Since there is one at a time, nobody can miss it. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "volume/group_internal.h"

int backing_sync_init(struct backing_sync *s, struct error *err)
{
    int r = pthread_mutex_init(&s->mutex, NULL);
    if (r == 0 && (r = pthread_cond_init(&s->ended_one, NULL)) != 0)
        pthread_mutex_destroy(&s->mutex);
    return r ? error_errno(err, -r, "cannot make a mutex") : 0;
}

void backing_sync_release(struct backing_sync *s)
{
    pthread_cond_destroy(&s->ended_one);
    pthread_mutex_destroy(&s->mutex);
}

/* With the mutex: the number of the fdatasync that answers who comes now. */
static uint64_t needed(const struct backing_sync *s)
{
    return s->submitted < s->begun ? s->begun : s->begun + 1;
}

static uint64_t backing_sync_need(struct volume *v)
{
    MUTEX_GUARD(guard, &v->sync.mutex);
    return needed(&v->sync);
}

/* Whether that fdatasync has ended; else *ret_leads: the caller is to carry it out. */
static bool backing_sync_lead(struct volume *v, uint64_t number, bool *ret_leads)
{
    struct backing_sync *s = &v->sync;
    MUTEX_GUARD(guard, &s->mutex);
    *ret_leads = s->ended < number && s->begun == s->ended;
    s->begun += *ret_leads;
    return s->ended >= number;
}

void backing_sync_submitted(struct volume *v)
{
    MUTEX_GUARD(guard, &v->sync.mutex);
    v->sync.submitted = v->sync.begun;
}

static void backing_sync_end(struct volume *v, int result)
{
    struct backing_sync *s = &v->sync;
    if (result < 0)
        journal_doubt(v->group->journal);
    if (result < 0 && !atomic_exchange(&v->failed, true)) /* before it counts as ended */
        log_error(v->group->log, "volume %s: fdatasync of the backing failed: %s", v->name,
                  strerrordesc_np(-result));
    pthread_mutex_lock(&s->mutex);
    s->submitted = s->ended = s->begun;
    pthread_cond_broadcast(&s->ended_one);
    pthread_mutex_unlock(&s->mutex);
    if (atomic_exchange(&v->listener.asleep, false) && eventfd_write(v->listener.fd, 1) < 0)
        log_error(v->group->log, "volume %s: cannot wake its thread: %s", v->name, strerrordesc_np(errno));
}

/* What was begun was not carried out. */
static void backing_sync_take_back(struct volume *v)
{
    struct backing_sync *s = &v->sync;
    MUTEX_GUARD(guard, &s->mutex);
    s->submitted = s->begun = s->ended;
    pthread_cond_broadcast(&s->ended_one);
}

/* ---- by a thread that may block ---- */

/* Until that fdatasync has ended, carrying it out where nobody does. */
static void backing_sync_wait(struct volume *v, uint64_t number)
{
    struct backing_sync *s = &v->sync;
    pthread_mutex_lock(&s->mutex);
    while (s->ended < number) {
        if (s->begun > s->ended) {
            pthread_cond_wait(&s->ended_one, &s->mutex);
            continue;
        }
        s->submitted = ++s->begun;
        pthread_mutex_unlock(&s->mutex);
        backing_sync_end(v, fdatasync(block_file_fd(v->file)) < 0 ? -errno : 0);
        pthread_mutex_lock(&s->mutex);
    }
    pthread_mutex_unlock(&s->mutex);
}

int volume_flush_file(struct volume *v, struct error *err)
{
    backing_sync_wait(v, backing_sync_need(v));
    return volume_flush_error(v, err);
}

int volume_flush_backing(struct volume *v, struct error *err)
{
    int r = volume_flush_file(v, err);
    return r < 0 ? r : fill_save_behind(v, err);
}

/* Makes both durable; the result of the journal's. */
static int sync_both(struct volume *v, struct error *err)
{
    struct backing_sync *s = &v->sync;
    int also = 0, fd = -1, r;
    pthread_mutex_lock(&s->mutex);
    uint64_t number = needed(s);
    if (s->begun == s->ended) {
        s->submitted = ++s->begun;
        fd = block_file_fd(v->file);
    }
    pthread_mutex_unlock(&s->mutex);
    r = journal_sync(v->group->journal, fd, &also, err);
    if (fd >= 0) {
        backing_sync_end(v, also);
        return r;
    }
    backing_sync_wait(v, number);
    return r;
}

int volume_flush_error(const struct volume *v, struct error *err)
{
    if (!atomic_load(&v->failed))
        return 0;
    return error_set(err, -EIO, "volume %s: an earlier flush failed; what was written since may be lost",
                     v->name);
}

int volume_flush_both(struct volume *v, struct error *err)
{
    int r = sync_both(v, err);
    while (r == -ESHUTDOWN && group_await_journal(v->group))
        r = journal_sync(v->group->journal, -1, NULL, err);
    if ((r == -ESHUTDOWN && !v->group->holds) || (r == 0 && atomic_load(&v->group->pending_owed))) /* availability: the backing is what counts now */
        r = stale_save_behind(v->group, err);
    if (r == 0)
        r = fill_save_behind(v, err);
    return atomic_load(&v->failed) ? volume_flush_error(v, err) : r;
}

/* ---- by a request of the queue ---- */

void flush_begin(struct volume *v, struct flush *f)
{
    *f = (struct flush){.lsn = journal_sync_begin(v->group->journal), .number = backing_sync_need(v)};
}

/* A flush whose fdatasync was not carried out has not failed. */
static bool not_carried_out(int result)
{
    return result == -ECANCELED || result == -EINTR || result == -EAGAIN;
}

enum block_step flush_step(struct volume *v, struct flush *f, struct block_request *r)
{
    bool lost = false, leads = false;
    if (f->leads && not_carried_out(r->transferred)) {
        backing_sync_take_back(v);
        return BLOCK_STEP_AGAIN;
    }
    if (f->leads)
        backing_sync_end(v, r->transferred);
    f->leads = false;
    bool journaled = journal_sync_step(v->group->journal, f->lsn, &lost);
    if (!backing_sync_lead(v, f->number, &leads)) {
        f->leads = leads;
        if (leads)
            block_queue_sync(r, block_file_fd(v->file));
        return leads ? BLOCK_STEP_TRANSFERS : BLOCK_STEP_WAITS;
    }
    if (atomic_load(&v->failed))
        return BLOCK_STEP_BLOCKS; /* to tell the error */
    if (!journaled)
        return BLOCK_STEP_WAITS;
    if (!lost && !atomic_load(&v->group->pending_owed))
        return BLOCK_STEP_DONE;
    return BLOCK_STEP_AGAIN; /* the journal is to be waited for, or the grains to be saved */
}
