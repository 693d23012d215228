/* SPDX-License-Identifier: Apache-2.0 */
/* Room for an opening on a full disk, and for dropping history there: without any, an engine that ended while its disk was full could not start,
 * and its volumes would wait; and history that could go would stay, since to drop it takes a manifest and blocks of the base first.
 *
 * Invariants:
 * K1  The file holds nothing: whoever finds it damaged, short or gone has lost room, no data.
 * K2  Only an opening uses it (until journal_recovered), for manifests and the indexes of the segments that were in use, and of its first half a
 * drop while the disk is full: a piece at a time as each of them finds no room, so a process that takes all that becomes free on the disk gets
 * little of it. An index stays; a manifest takes the place of one of its size. So the room of one piece goes round, and the next opening finds as
 * much; what a drop took comes back from what it dropped.
 * K3  It is made as large as there is room, up to wanted_bytes, at the end of an opening and whenever the janitor finds it smaller, but not
 * before journaling has found its room. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "journal/journal_internal.h"

#define RESERVE_FILE "reserve"
#define RESERVE_PART 8u /* of a segment: two indexes of JOURNAL_SEGMENT_RECORDS are less than half of that */
#define RESERVE_PIECES 32u

static uint64_t wanted_bytes(const struct journal *j)
{
    return j->options.light ? 0 : journal_segment_bytes(j) / RESERVE_PART;
}

bool reserve_give(struct journal *j)
{
    char path[JOURNAL_PATH_BYTES];
    struct stat st;
    journal_path(j, RESERVE_FILE, path);
    pthread_mutex_lock(&j->mutex);
    bool opening = !j->opened, dropping = j->disk_full;
    pthread_mutex_unlock(&j->mutex);
    if ((!opening && !dropping) || stat(path, &st) < 0)
        return false;
    uint64_t piece = wanted_bytes(j) / RESERVE_PIECES, have = (uint64_t)st.st_size, stays = opening ? 0 : wanted_bytes(j) / 2;
    return piece && have > stays && truncate(path, have > stays + piece ? (off_t)(have - piece) : (off_t)stays) == 0;
}

void reserve_keep(struct journal *j)
{
    char path[JOURNAL_PATH_BYTES];
    struct stat st;
    journal_path(j, RESERVE_FILE, path);
    uint64_t bytes = wanted_bytes(j), have = stat(path, &st) == 0 ? (uint64_t)st.st_size : 0, piece = bytes / RESERVE_PIECES;
    if (have >= bytes)
        return;
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    while (bytes > have && posix_fallocate(fd, 0, (off_t)bytes) != 0)
        bytes -= piece && bytes > piece ? piece : bytes;
    if (bytes < have)
        bytes = have;
    if (ftruncate(fd, (off_t)bytes) < 0 || !bytes) /* what a try that failed has left */
        unlink(path);
}
