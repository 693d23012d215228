/* SPDX-License-Identifier: Apache-2.0 */
#include "base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

int io_pread_full(int fd, void *data, size_t length_bytes, uint64_t offset)
{
    char *p = data;
    while (length_bytes) {
        ssize_t n = pread(fd, p, length_bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENODATA;
        p += n;
        offset += (size_t)n;
        length_bytes -= (size_t)n;
    }
    return 0;
}

int io_pwrite_full(int fd, const void *data, size_t length_bytes, uint64_t offset)
{
    struct iovec one = {(void *)(uintptr_t)data, length_bytes};
    return io_pwritev_full(fd, &one, 1, offset);
}

int io_pwritev_full(int fd, struct iovec *vector, int count, uint64_t offset)
{
    while (count) {
        ssize_t n = pwritev(fd, vector, count, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        offset += (size_t)n;
        bool progress = n > 0;
        while (count && (size_t)n >= vector->iov_len) {
            n -= (ssize_t)vector->iov_len;
            vector++;
            count--;
            progress = true;
        }
        if (!progress)
            return -EIO;
        if (count) {
            vector->iov_base = (char *)vector->iov_base + n;
            vector->iov_len -= (size_t)n;
        }
    }
    return 0;
}

int io_mkdirs(const char *path, mode_t mode, struct error *err)
{
    char part[PATH_MAX];
    size_t length = strlen(path);
    if (length >= sizeof part)
        return error_errno(err, -ENAMETOOLONG, "cannot create directory %s", path);
    memcpy(part, path, length + 1);
    for (char *at = part + 1;; at++) {
        if (*at && *at != '/')
            continue;
        char saved = *at;
        *at = '\0';
        if (mkdir(part, mode) < 0 && errno != EEXIST)
            return error_errno(err, -errno, "cannot create directory %s", part);
        *at = saved;
        if (!saved)
            break;
    }
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return error_set(err, -ENOTDIR, "cannot create directory %s: something else has that name", path);
    return 0;
}

int io_sync_directory(const char *path, struct error *err)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open directory %s", path);
    if (fsync(fd) < 0)
        return error_errno(err, -errno, "cannot sync directory %s", path);
    return 0;
}

static int replace_file(const char *path, const void *data, size_t length_bytes, mode_t mode, bool durable, struct error *err)
{
    char temporary[PATH_MAX], directory[PATH_MAX];
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int)sizeof temporary)
        return error_errno(err, -ENAMETOOLONG, "cannot write %s", path);
    const char *slash = strrchr(path, '/');
    snprintf(directory, sizeof directory, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    if (slash == path)
        snprintf(directory, sizeof directory, "/");
    _cleanup_close_ int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0)
        return error_errno(err, -errno, "cannot create %s", temporary);
    int r = io_pwrite_full(fd, data, length_bytes, 0);
    if (r < 0 || (durable && fsync(fd) < 0)) {
        r = r < 0 ? r : -errno;
        unlink(temporary);
        return error_errno(err, r, "cannot write %s", temporary);
    }
    if (rename(temporary, path) < 0) {
        r = -errno;
        unlink(temporary);
        return error_errno(err, r, "cannot replace %s", path);
    }
    return durable ? io_sync_directory(directory, err) : 0;
}

int io_overwrite_file(const char *path, const void *data, size_t length_bytes, mode_t mode, struct error *err)
{
    struct stat st;
    (void)mode;
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot write %s", path);
    if ((uint64_t)st.st_size != length_bytes)
        return error_set(err, -ENOSPC, "cannot write over %s: it has %llu bytes, not %zu", path, (unsigned long long)st.st_size, length_bytes);
    int r = io_pwrite_full(fd, data, length_bytes, 0);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    return r < 0 ? error_errno(err, r, "cannot write %s", path) : 0;
}

bool io_is_temporary(const char *name)
{
    size_t length = strlen(name);
    return length > 4 && strcmp(name + length - 4, ".tmp") == 0;
}

int io_remove_temporaries(const char *directory, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_closedir_ DIR *d = opendir(directory);
    if (!d && errno != ENOENT)
        return error_errno(err, -errno, "cannot read %s", directory);
    for (const struct dirent *entry; d && (entry = readdir(d));)
        if (io_is_temporary(entry->d_name) && snprintf(path, sizeof path, "%s/%s", directory, entry->d_name) < (int)sizeof path &&
            unlink(path) < 0 && errno != ENOENT)
            return error_errno(err, -errno, "cannot remove %s", path);
    return 0;
}

int io_replace_file(const char *path, const void *data, size_t length_bytes, mode_t mode, struct error *err)
{
    return replace_file(path, data, length_bytes, mode, true, err);
}

int io_write_pid_file(const char *path, mode_t mode, struct error *err)
{
    struct error ignored = ERROR_INIT;
    char text[32];
    int n = snprintf(text, sizeof text, "%-10d\n", (int)getpid()); /* always as long: see io_overwrite_file */
    int r = io_replace_file(path, text, (size_t)n, mode, err);
    if (!io_is_no_room(r) || io_overwrite_file(path, text, (size_t)n, mode, &ignored) < 0)
        return r;
    *err = ERROR_INIT;
    return 0;
}

int io_replace_volatile_file(const char *path, const void *data, size_t length_bytes, mode_t mode, struct error *err)
{
    return replace_file(path, data, length_bytes, mode, false, err);
}

int io_read_file(const char *path, size_t limit_bytes, char **ret_data, size_t *ret_length_bytes, struct error *err)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    size_t capacity = 4096, length = 0;
    _cleanup_free_ char *data = malloc(capacity + 1);
    for (;;) {
        if (!data)
            return error_errno(err, -ENOMEM, "cannot read %s", path);
        ssize_t n = read(fd, data + length, capacity - length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(err, -errno, "cannot read %s", path);
        if (n == 0)
            break;
        length += (size_t)n;
        if (length > limit_bytes)
            return error_set(err, -EFBIG, "cannot read %s: it is larger than %zu bytes", path, limit_bytes);
        if (length == capacity) {
            capacity *= 2;
            char *larger = realloc(data, capacity + 1);
            if (!larger)
                return error_errno(err, -ENOMEM, "cannot read %s", path);
            data = larger;
        }
    }
    data[length] = '\0';
    *ret_data = take_ptr(data);
    if (ret_length_bytes)
        *ret_length_bytes = length;
    return 0;
}

int io_open_private(const char *path, struct error *err)
{
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return error_errno(err, -errno, "cannot create %s", path);
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot examine %s", path);
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 077 || st.st_nlink > 1)
        return error_set(err, -EPERM,
                         "%s is not this user's alone (user %u, mode %03o, %u links): somebody else made it; remove it and start again",
                         path, (unsigned)st.st_uid, (unsigned)st.st_mode & 0777, (unsigned)st.st_nlink);
    return take_fd(fd);
}

static bool is_mount_point(const char *path)
{
    struct statx st;
    return statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, STATX_TYPE, &st) < 0
               ? errno == ENOTCONN /* of a FUSE server that is gone */
               : st.stx_attributes & STATX_ATTR_MOUNT_ROOT;
}

static void close_tree(FTS **tree)
{
    if (*tree)
        fts_close(*tree);
}

static FTS *open_tree(const char *path)
{
    char *const paths[] = {(char *)(uintptr_t)path, NULL};
    return fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
}

int io_check_tree(const char *path, struct error *err)
{
    FTS *tree __attribute__((cleanup(close_tree))) = open_tree(path);
    for (const FTSENT *entry; tree && (entry = fts_read(tree));)
        if (entry->fts_info != FTS_DP && is_mount_point(entry->fts_path))
            return error_set(err, -EBUSY, "cannot remove %s: something is mounted on %s, and its content would go too; unmount it first",
                             path, entry->fts_path);
    return tree ? 0 : error_errno(err, -errno, "cannot look at %s", path);
}

static int remove_one(const char *path, struct error *err)
{
    return remove(path) < 0 && errno != ENOENT ? error_errno(err, -errno, "cannot remove %s", path) : 0;
}

int io_remove_marked_tree(const char *path, const char *mark, struct error *err)
{
    char file[PATH_MAX];
    int r = io_check_tree(path, err);
    FTS *tree __attribute__((cleanup(close_tree))) = r == 0 ? open_tree(path) : NULL;
    if (r == 0 && !tree)
        r = error_errno(err, -errno, "cannot remove %s", path);
    for (const FTSENT *entry; r == 0 && (entry = fts_read(tree));) {
        bool last = mark && (entry->fts_level == 0 || (entry->fts_level == 1 && strcmp(entry->fts_name, mark) == 0));
        if (entry->fts_info != FTS_D && !last)
            r = remove_one(entry->fts_path, err);
    }
    if (r == 0 && mark && snprintf(file, sizeof file, "%s/%s", path, mark) >= (int)sizeof file)
        r = error_errno(err, -ENAMETOOLONG, "cannot remove %s", path);
    if (r == 0 && mark)
        r = remove_one(file, err);
    return r == 0 && mark ? remove_one(path, err) : r;
}

int io_remove_tree(const char *path, struct error *err)
{
    return io_remove_marked_tree(path, NULL, err);
}

void *io_reserve_pages(size_t length_bytes)
{
    void *data = mmap(NULL, io_whole_pages(length_bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : data;
}

void io_populate(void *pages, size_t length_bytes)
{
    if (madvise(pages, length_bytes, MADV_POPULATE_WRITE) == 0)
        return;
    for (volatile char *at = pages, *end = at + length_bytes; at < end; at += 4096) /* before Linux 5.14 */
        *at = *at;
}

/* Not by MAP_POPULATE: after mlockall(MCL_FUTURE | MCL_ONFAULT) that leaves every page to its first touch. */
void *io_alloc_pages(size_t length_bytes)
{
    void *data = io_reserve_pages(length_bytes);
    if (data)
        io_populate(data, io_whole_pages(length_bytes));
    return data;
}

void io_free_pages(void *data, size_t length_bytes)
{
    if (data)
        munmap(data, io_whole_pages(length_bytes));
}

int io_no_uring(int code, struct error *err)
{
    return error_errno(err, code, "cannot set up io_uring (%s)",
                       code == -ENOMEM ? "may enough memory be locked? ulimit -l, LimitMEMLOCK=" : "is it disabled by kernel.io_uring_disabled?");
}

void io_allow_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}
