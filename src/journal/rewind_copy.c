/* SPDX-License-Identifier: Apache-2.0 */
/* The second copy of a rewind's reference run, "rewind-<LSN>.idx.copy". Without the run nobody knows which blocks the rewind changed: all points
 * from it on would be lost but for what was written later, until a merge has taken it up. Like the manifest's copy it is read only where the
 * first one is not whole, which an opening makes up for before anything is read. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/index.h"
#include "journal/journal_internal.h"

#define COPY_BYTES (1u << 20)    /* at a time */
#define LOOK_BYTES (64ull << 20) /* that an opening reads of each of the two, newest rewinds first; of the rest it looks at the headers */

static bool is_whole(const struct journal *j, const char *path, struct lsn lsn, bool all_of_it)
{
    struct index *index;
    struct error ignored = ERROR_INIT;
    if (index_open(path, NULL, &index, &ignored) < 0)
        return false;
    const struct index_info *info = index_info(index);
    bool whole = info->kind == INDEX_REWIND && info->high.n == lsn.n && memcmp(&info->journal_id, &j->manifest.journal_id, sizeof info->journal_id) == 0 &&
                 (!all_of_it || index_verify(index, NULL, NULL, &ignored) == 0);
    index_free(index);
    return whole;
}

static int copy_bytes(int from, int to, uint64_t length_bytes)
{
    char *buffer = io_alloc_pages(COPY_BYTES);
    int r = buffer ? 0 : -ENOMEM;
    for (uint64_t at = 0; at < length_bytes && r == 0; at += COPY_BYTES) {
        size_t part = length_bytes - at < COPY_BYTES ? length_bytes - at : COPY_BYTES;
        r = io_pread_full(from, buffer, part, at);
        if (r == 0)
            r = io_pwrite_full(to, buffer, part, at);
    }
    io_free_pages(buffer, COPY_BYTES);
    return r < 0 ? r : fsync(to) < 0 ? -errno : 0;
}

/* Durable, or `to` is what it was. */
static int copy_file(struct journal *j, const char *from, const char *to, struct error *err)
{
    char temporary[JOURNAL_PATH_BYTES + 8];
    struct stat st;
    snprintf(temporary, sizeof temporary, "%s.tmp", to);
    _cleanup_close_ int in = open(from, O_RDONLY | O_CLOEXEC);
    _cleanup_close_ int out = in < 0 ? -1 : open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int r = out < 0 || fstat(in, &st) < 0 ? -errno : copy_bytes(in, out, (uint64_t)st.st_size);
    if (r == 0 && rename(temporary, to) < 0)
        r = -errno;
    if (r == 0)
        return io_sync_directory(j->directory, err);
    if (out >= 0)
        unlink(temporary);
    return error_errno(err, r, "cannot copy %s", from);
}

static void make_paths(const struct journal *j, struct lsn lsn, char first[JOURNAL_PATH_BYTES], char copy[JOURNAL_PATH_BYTES])
{
    char name[JOURNAL_FILE_BYTES];
    journal_path(j, journal_rewind_file(lsn, name), first);
    journal_path(j, journal_rewind_copy_file(lsn, name), copy);
}

void journal_copy_rewind(struct journal *j, struct lsn lsn)
{
    char first[JOURNAL_PATH_BYTES], copy[JOURNAL_PATH_BYTES];
    struct error err = ERROR_INIT;
    make_paths(j, lsn, first, copy);
    int r = journal_fault_at(j, "copy rewind");
    r = r < 0 ? error_errno(&err, r, "cannot copy %s", first) : copy_file(j, first, copy, &err);
    if (r < 0)
        log_warning(j->log, "%s; the next start does", err.message);
}

/* One of the two is made of the other, which is read whole before. */
static void mend(struct journal *j, struct lsn lsn, const char *from, const char *to, bool is_first)
{
    struct error err = ERROR_INIT;
    bool missing = access(to, F_OK) < 0 && errno == ENOENT;
    if (!is_whole(j, from, lsn, true))
        return;
    int r = copy_file(j, from, to, &err);
    if (r < 0)
        log_error(j->log, "%s is %s: %s", to, missing ? "missing" : "damaged", err.message);
    else if (is_first || !missing)
        log_error(j->log, "%s was %s: it is made again from its copy, and nothing is lost", to, missing ? "missing" : "damaged");
    else /* a kill came before it, or a program of before made none */
        log_debug(j->log, "%s is made", to);
}

int rewind_use_copy(struct journal *j, struct lsn lsn, struct error *err)
{
    char first[JOURNAL_PATH_BYTES], copy[JOURNAL_PATH_BYTES];
    struct error why = ERROR_INIT;
    make_paths(j, lsn, first, copy);
    int r = journal_fault_at(j, "copy rewind");
    if ((r < 0 ? r : copy_file(j, copy, first, &why)) < 0) { /* no room: the next start makes the copy */
        if (rename(copy, first) < 0)
            return error_errno(err, -errno, "cannot rename %s to %s", copy, first);
        if ((r = io_sync_directory(j->directory, err)) < 0)
            return r;
    }
    log_error(j->log, "%s was damaged or missing: it is made again from its copy, and nothing is lost", first);
    return 0;
}

void rewinds_mend(struct journal *j)
{
    uint64_t left_bytes = LOOK_BYTES;
    for (size_t i = j->manifest.rewind_count; i-- > 0;) {
        char first[JOURNAL_PATH_BYTES], copy[JOURNAL_PATH_BYTES];
        struct stat st = {.st_size = 0};
        struct lsn lsn = j->manifest.rewinds[i].lsn;
        make_paths(j, lsn, first, copy);
        stat(first, &st);
        bool all_of_it = (uint64_t)st.st_size <= left_bytes;
        left_bytes -= all_of_it ? (uint64_t)st.st_size : 0;
        bool whole = is_whole(j, first, lsn, all_of_it), copy_whole = is_whole(j, copy, lsn, all_of_it);
        if (whole != copy_whole)
            mend(j, lsn, whole ? first : copy, whole ? copy : first, !whole);
    }
}
