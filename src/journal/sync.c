/* SPDX-License-Identifier: Apache-2.0 */
/* Durability: fdatasync of the segments that are being written, by io_uring.
 *
 * One sync at a time, which answers all that was written before it began: whoever comes while one is under
 * way shares the next one. Who may block waits for its end in the kernel, or for whoever does; who may not
 * asks (journal_sync_step). So a sync that was begun by somebody who lost interest is ended by the next who
 * needs it to be over. Who may not wait and has something else to be done meanwhile, the fdatasync of a backing, has
 * it begun as soon as what it asked for is written (journal_sync_poll). */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "journal/journal_internal.h"

/* With the mutex: the sync under way has ended. */
static void end(struct journal *j)
{
    int fault = journal_fault_at(j, "sync");
    j->syncing = false;
    if (j->sync_result < 0 || fault < 0) {
        j->sync_failed = true;
        writer_suspend(j, "fdatasync of the journal failed");
    } else if (j->sync_covered > j->durable_lsn) {
        j->durable_lsn = j->sync_covered;
        j->durable_realtime_ns = j->sync_covered_realtime_ns;
    }
    pthread_cond_broadcast(&j->sealed);
    writer_wake_listeners(j);
}

/* With the mutex, and nobody else at the ring: takes what the kernel has ended. */
static void take_ended(struct journal *j)
{
    struct io_uring_cqe *cqe;
    while (j->sync_left && io_uring_peek_cqe(&j->sync_uring, &cqe) == 0) {
        if (cqe->res < 0)
            j->sync_result = cqe->res;
        io_uring_cqe_seen(&j->sync_uring, cqe);
        j->sync_left--;
    }
    if (!j->sync_left)
        end(j);
}

void sync_begin(struct journal *j)
{
    int fds[] = {j->active_fd, j->sealing ? j->sealing_fd : -1}, r = 0;
    unsigned wanted = 0, taken = 0;
    j->syncing = true;
    j->sync_taken = true;
    j->sync_result = 0;
    j->sync_covered = j->written_lsn;
    j->sync_covered_realtime_ns = j->written_realtime_ns;
    j->unsynced_since_ns = 0;
    pthread_mutex_unlock(&j->mutex);
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (fds[i] < 0)
            continue;
        struct io_uring_sqe *sqe = io_uring_get_sqe(&j->sync_uring);
        io_uring_prep_fsync(sqe, fds[i], IORING_FSYNC_DATASYNC);
        wanted++;
    }
    while (taken < wanted) {
        r = io_uring_submit(&j->sync_uring);
        if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
            break;
        taken += r > 0 ? (unsigned)r : 0;
    }
    pthread_mutex_lock(&j->mutex);
    j->sync_taken = false;
    j->sync_left = taken;
    if (taken < wanted)
        j->sync_result = r;
    take_ended(j);
    if (j->syncing) /* whoever found the ring taken meanwhile */
        pthread_cond_broadcast(&j->sealed);
}

void sync_await(struct journal *j)
{
    struct io_uring_cqe *cqe;
    if (j->sync_taken) {
        pthread_cond_wait(&j->sealed, &j->mutex);
        return;
    }
    j->sync_taken = true;
    pthread_mutex_unlock(&j->mutex);
    int r;
    do
        r = io_uring_wait_cqe(&j->sync_uring, &cqe);
    while (r == -EINTR || r == -EAGAIN);
    assert(r == 0);
    pthread_mutex_lock(&j->mutex);
    j->sync_taken = false;
    take_ended(j);
    if (j->syncing)
        pthread_cond_broadcast(&j->sealed);
}

/* ---- by threads that may block ---- */

/* With the mutex: whether it will never be in the journal. */
static bool is_lost(const struct journal *j, uint64_t lsn)
{
    return j->suspended || writer_left_out(j, lsn);
}

int journal_sync(struct journal *j, int also_fd, int *ret_also, struct error *err)
{
    int r = 0, also = 0;
    bool also_done = also_fd < 0;
    pthread_mutex_lock(&j->mutex);
    uint64_t target = writer_write_all(j);
    while (!is_lost(j, target) && j->durable_lsn < target) {
        if (!j->syncing)
            sync_begin(j);
        if (!also_done) { /* beside the journal's */
            pthread_mutex_unlock(&j->mutex);
            also = fdatasync(also_fd) < 0 ? -errno : 0;
            also_done = true;
            pthread_mutex_lock(&j->mutex);
        } else if (j->syncing) {
            sync_await(j);
        }
    }
    if (is_lost(j, target))
        r = writer_lost(j, err);
    pthread_mutex_unlock(&j->mutex);
    if (!also_done)
        also = fdatasync(also_fd) < 0 ? -errno : 0;
    if (ret_also)
        *ret_also = also;
    return r;
}

int sync_append(struct journal *j, const struct journal_record *record, enum append_until until, struct journal_ticket *ret, struct error *err)
{
    int r = journal_append(j, record, ret, err);
    if (r < 0)
        return r;
    journal_backed(j, ret);
    if (until == APPEND_DURABLE)
        r = journal_sync(j, -1, NULL, err);
    return r == 0 && until != APPEND_QUEUED ? journal_wait(j, ret, err) : r;
}

int journal_append_durable(struct journal *j, const struct journal_record *record, struct lsn *ret,
                           struct error *err)
{
    struct journal_ticket ticket;
    int r = sync_append(j, record, APPEND_DURABLE, &ticket, err);
    if (r == 0)
        *ret = ticket.lsn;
    return r;
}

/* ---- by threads that must not ---- */

struct lsn journal_sync_begin(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    j->demand_lsn = j->last_lsn;
    struct lsn target = {j->last_lsn};
    j->sync_asked_lsn = target.n;
    if (j->sync_wanted_lsn <= j->durable_lsn)
        j->sync_wanted_lsn = target.n;
    writer_try_submit(j);
    return target;
}

void journal_sync_poll(struct journal *j)
{
    if (!atomic_load(&j->sync_wanted_lsn))
        return;
    journal_poll(j);
    MUTEX_GUARD(guard, &j->mutex);
    if (j->syncing && !j->sync_taken)
        take_ended(j);
    if (j->durable_lsn >= j->sync_wanted_lsn)
        j->sync_wanted_lsn = j->sync_asked_lsn > j->durable_lsn ? j->sync_asked_lsn : 0;
    if (j->suspended) /* who asked finds it lost */
        j->sync_wanted_lsn = 0;
    if (j->sync_wanted_lsn && !j->syncing && j->written_lsn >= j->sync_wanted_lsn)
        sync_begin(j);
}

bool journal_sync_step(struct journal *j, struct lsn target, bool *ret_lost)
{
    if (atomic_load(&j->written_lsn) < target.n)
        journal_poll(j);
    MUTEX_GUARD(guard, &j->mutex);
    if (j->syncing && !j->sync_taken)
        take_ended(j);
    bool lost = is_lost(j, target.n), durable = !lost && j->durable_lsn >= target.n;
    if (!durable && !lost && !j->syncing && j->written_lsn >= target.n) {
        sync_begin(j);
        durable = j->durable_lsn >= target.n;
    }
    lost = !durable && is_lost(j, target.n);
    *ret_lost = lost;
    return durable || lost;
}

int journal_sync_poll_fd(const struct journal *j)
{
    return j->sync_uring.ring_fd;
}
