/* SPDX-License-Identifier: Apache-2.0 */
/* Segments that are written with zeroes ahead, while hardly anything is journaled: a new segment has to be (segment.c), and done
 * beside a burst of writes that takes as much of the disk as the burst's frames. There are as many as bursts have needed since the
 * start, so that an application that writes little has none.
 *
 * Invariants:
 * S1  A file is among those that wait to be used again (free-N) only when all of it is written. Until then it is a .tmp, which
 * the next start removes. S2 Filling stops within one piece of SPARE_PIECE_BYTES once more than SPARE_FEW_RECORDS came, or the
 * sealer is wanted. S3 They take at most a sixteenth of the quota, and nothing of a disk that has little left. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/io.h"
#include "journal/journal_internal.h"

#define SPARE_PIECE_BYTES (256u << 10)
#define SPARE_FEW_RECORDS 16u
#define SPARE_QUOTA_PART 16u
#define SPARE_DISK_SEGMENTS 16u /* that stay free, and a twentieth of the disk */
#define SPARE_FILE "spare.tmp"

/* With the mutex: how many there shall be. The first that had to be made is the one that is always ready. */
static unsigned wanted(const struct journal *j)
{
    uint64_t by_quota = j->options.quota_bytes / SPARE_QUOTA_PART / journal_segment_bytes(j);
    unsigned count = j->filled_segments > 1 ? j->filled_segments - 1 : 0;
    if (count > j->options.spare_segments)
        count = j->options.spare_segments;
    return j->options.quota_bytes && by_quota < count ? (unsigned)by_quota : count;
}

static bool disk_has_plenty(const struct journal *j)
{
    struct statvfs st;
    if (statvfs(j->directory, &st) < 0)
        return false;
    uint64_t free_bytes = (uint64_t)st.f_bavail * st.f_frsize, all_bytes = (uint64_t)st.f_blocks * st.f_frsize;
    return free_bytes >= (SPARE_DISK_SEGMENTS + 1) * journal_segment_bytes(j) + all_bytes / 20;
}

void spare_drop(struct journal *j)
{
    char path[JOURNAL_PATH_BYTES];
    if (j->spare_fd < 0)
        return;
    close(j->spare_fd);
    j->spare_fd = -1;
    journal_path(j, SPARE_FILE, path);
    unlink(path);
}

static int begin(struct journal *j)
{
    char path[JOURNAL_PATH_BYTES];
    if (!disk_has_plenty(j))
        return -ENOSPC;
    journal_path(j, SPARE_FILE, path);
    j->spare_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600);
    if (j->spare_fd < 0) /* a file system without direct I/O is one in memory: nothing is gained there */
        return -errno;
    j->spare_done_bytes = 0;
    return -posix_fallocate(j->spare_fd, 0, (off_t)journal_segment_bytes(j));
}

/* S2. With the mutex. */
static bool may_go_on(const struct journal *j)
{
    return !j->stop && !j->suspended && !j->sealing && j->ready_fd >= 0 &&
           j->last_lsn - j->spare_seen_lsn <= SPARE_FEW_RECORDS;
}

/* Writes the next piece; the whole file is kept. */
static int fill_piece(struct journal *j, const void *zeroes)
{
    char from[JOURNAL_PATH_BYTES], to[JOURNAL_PATH_BYTES];
    uint64_t left = journal_segment_bytes(j) - j->spare_done_bytes, part = left < SPARE_PIECE_BYTES ? left : SPARE_PIECE_BYTES;
    int r = io_pwrite_full(j->spare_fd, zeroes, part, j->spare_done_bytes);
    if (r < 0)
        return r;
    j->spare_done_bytes += part;
    if (part < left)
        return 0;
    journal_path(j, SPARE_FILE, from);
    if (!segment_free_path(j, j->options.spare_segments, to) || rename(from, to) < 0)
        unlink(from); /* one was recycled meanwhile */
    close(j->spare_fd);
    j->spare_fd = -1;
    return 0;
}

/* Without the mutex: fills what is missing, until S2 says stop. An error: no more for now. */
static int fill_missing(struct journal *j, unsigned count)
{
    char path[JOURNAL_PATH_BYTES];
    if (j->spare_fd < 0 && !segment_free_path(j, count, path))
        return 0;
    void *zeroes = io_alloc_pages(SPARE_PIECE_BYTES);
    int r = zeroes ? 0 : -ENOMEM;
    for (bool go_on = true; r == 0 && go_on;) {
        if (j->spare_fd < 0 && !segment_free_path(j, count, path))
            break;
        r = j->spare_fd < 0 ? begin(j) : fill_piece(j, zeroes);
        pthread_mutex_lock(&j->mutex);
        go_on = may_go_on(j);
        pthread_mutex_unlock(&j->mutex);
    }
    io_free_pages(zeroes, SPARE_PIECE_BYTES);
    if (r < 0)
        spare_drop(j);
    return r;
}

void spare_work(struct journal *j)
{
    bool calm = j->last_lsn - j->spare_seen_lsn <= SPARE_FEW_RECORDS;
    unsigned count = wanted(j);
    j->spare_seen_lsn = j->last_lsn;
    if (!calm || !count || j->spare_failed || !may_go_on(j))
        return;
    j->sealer_works = true;
    pthread_mutex_unlock(&j->mutex);
    int r = fill_missing(j, count);
    pthread_mutex_lock(&j->mutex);
    j->spare_failed = r < 0 && !io_is_no_room(r);
    j->sealer_works = false;
    pthread_cond_broadcast(&j->sealed);
}
