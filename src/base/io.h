/* SPDX-License-Identifier: Apache-2.0 */
/* Files: whole reads and writes, atomic replacement, directories. Paths appear in messages. All may block. */
#ifndef TIDEMARK_BASE_IO_H
#define TIDEMARK_BASE_IO_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/error.h"

/* Reads or writes everything or fails: EINTR and short transfers are continued; the end of the file in a read is
 * -ENODATA. Return 0 or a negative errno; no message, the caller knows the name. */
int io_pread_full(int fd, void *data, size_t length_bytes, uint64_t offset) MUST_CHECK;
int io_pwrite_full(int fd, const void *data, size_t length_bytes, uint64_t offset) MUST_CHECK;
/* As io_pwrite_full over a vector (may be modified). */
int io_pwritev_full(int fd, struct iovec *vector, int count, uint64_t offset) MUST_CHECK;

/* Whether an error says that there is no room for what was to be written: the disk is full, or a quota of its file system is used up. */
static inline bool io_is_no_room(int code)
{
    return code == -ENOSPC || code == -EDQUOT;
}

/* Says that io_uring cannot be set up, for `code`, and what may help; returns it. */
int io_no_uring(int code, struct error *err);

/* Whether all of at least one byte are 0. */
static inline bool io_is_zero(const void *data, size_t length_bytes)
{
    const char *bytes = data;
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length_bytes - 1) == 0;
}

/* Creates `path` and its missing parents with `mode`. 0 when it exists already. */
int io_mkdirs(const char *path, mode_t mode, struct error *err) MUST_CHECK;
/* fsync of the directory `path`. */
int io_sync_directory(const char *path, struct error *err) MUST_CHECK;
/* Replaces `path` by `data` so that after a crash either the old or the new content is there: temporary file in
 * the same directory, fsync, rename, fsync of the directory. */
int io_replace_file(const char *path, const void *data, size_t length_bytes, mode_t mode, struct error *err) MUST_CHECK;
/* The same for what is of no use after a loss of power: nothing is synced. */
int io_replace_volatile_file(const char *path, const void *data, size_t length_bytes, mode_t mode, struct error *err) MUST_CHECK;
/* Writes over what the file holds, durably; for where there is no room for another one beside it. It has to be there, with that length. A crash
 * leaves anything in it. `mode` is not used. */
int io_overwrite_file(const char *path, const void *data, size_t length_bytes, mode_t mode, struct error *err) MUST_CHECK;
/* A file with this process's id. Without room for another one, what another process has left there is written over. */
int io_write_pid_file(const char *path, mode_t mode, struct error *err) MUST_CHECK;
/* Whether a directory's entry is such a file, which was not finished: nobody will. */
bool io_is_temporary(const char *name);
/* Removes those of a directory; 0 also without it. */
int io_remove_temporaries(const char *directory, struct error *err) MUST_CHECK;
/* Reads a file of at most `limit_bytes` (-EFBIG above). The text is NUL-terminated; the caller frees it. */
int io_read_file(const char *path, size_t limit_bytes, char **ret_data, size_t *ret_length_bytes,
                 struct error *err) MUST_CHECK;
/* Opens, or makes, a regular file that only this user can write to or read, where others can make files too (/dev/shm); a link,
 * or what somebody else has made there, is refused (-ELOOP, -EPERM). Returns the descriptor. */
int io_open_private(const char *path, struct error *err) MUST_CHECK;
/* Removes `path` and all below it, not following links. 0 when it is not there. Nothing is removed when something is mounted on it or
 * below it (-EBUSY): that is somebody else's. */
int io_remove_tree(const char *path, struct error *err) MUST_CHECK;
/* The same of a directory whose file `mark` says that it is not whole: that goes last, so that what a crash leaves is marked still. */
int io_remove_marked_tree(const char *path, const char *mark, struct error *err) MUST_CHECK;
/* Whether io_remove_tree would refuse. */
int io_check_tree(const char *path, struct error *err) MUST_CHECK;
/* What is less than a page is mapped as one all the same; said so, the thread sanitizer forgets all of it when it goes. */
static inline size_t io_whole_pages(size_t length_bytes)
{
    return (length_bytes + 4095) & ~(size_t)4095;
}
/* Page-aligned zeroed memory from mmap, populated. NULL when out of memory. Free with io_free_pages. */
void *io_alloc_pages(size_t length_bytes);
/* The same, not populated: each page when it is touched. */
void *io_reserve_pages(size_t length_bytes);
/* Makes all of it be there; what it holds stays. Not while others write to it. */
void io_populate(void *pages, size_t length_bytes);
void io_free_pages(void *data, size_t length_bytes);
/* As many files may be open as the system lets this process have. */
void io_allow_files(void);

#endif
