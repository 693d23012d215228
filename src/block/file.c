/* SPDX-License-Identifier: Apache-2.0 */
/* A file or block device by O_DIRECT, so that what the engine writes does not fill the page cache a second
 * time and cannot wait for writeback that waits for the engine.
 *
 * F1. With `direct`, memory, offset and length of every transfer are multiples of `align_bytes` (512 where
 * the file system takes that, else 4096). Anything else goes by the thread's bounce buffer, 1 MiB at a time.
 * F2. A write that does not cover whole align units reads, modifies and writes them. `unit_lock` is held
 * exclusively for that and shared for all other changes, so that no neighbour's write is undone. With
 * align_bytes == 512 there are no such writes and the lock is not taken. F3. After a discard or zero returned
 * 0 the range reads as zeroes: holes where the file system makes them, else zeroes are written. F4. A
 * transfer is whole or an error: short ones are continued, the end of the file is -EIO (somebody shrank it).
 * F5. The file keeps its size: it is created with the size, and nothing here writes behind it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "block/block.h"
#include "block/bounce_internal.h"
#include "block/file_internal.h"
#include "block/queue.h"

#define ZEROES_BYTES (64u << 10)
#define EXCLUSIVE_PAUSE_MS 20u

struct block_file {
    struct block block;
    int fd;
    bool direct;
    bool device;
    bool read_only;
    unsigned align_bytes;
    pthread_rwlock_t unit_lock;
    char *path;
};

static const char zeroes[ZEROES_BYTES] __attribute__((aligned(BLOCK_PAGE_BYTES)));
static const struct block_ops file_ops;

static struct block_file *file_of(struct block *b)
{
    return (struct block_file *)b;
}

/* --- whole aligned transfers --- */

/* How much of a short transfer counts: O_DIRECT goes on at aligned offsets only. */
static size_t progress(const struct block_file *f, ssize_t n, size_t wanted_bytes)
{
    if (f->direct && (size_t)n < wanted_bytes)
        return (size_t)n - (size_t)n % f->align_bytes;
    return (size_t)n;
}

static int read_all(const struct block_file *f, char *data, size_t length_bytes, uint64_t offset_bytes)
{
    while (length_bytes) {
        ssize_t n = pread(f->fd, data, length_bytes, (off_t)offset_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        size_t done = progress(f, n, length_bytes);
        if (done == 0)
            return -EIO;
        data += done;
        offset_bytes += done;
        length_bytes -= done;
    }
    return 0;
}

static int write_all(const struct block_file *f, const char *data, size_t length_bytes, uint64_t offset_bytes,
                     unsigned flags)
{
    int rwf = flags & BLOCK_FUA ? RWF_DSYNC : 0;
    bool sync_after = false;
    while (length_bytes) {
        struct iovec one = {(void *)(uintptr_t)data, length_bytes};
        ssize_t n = pwritev2(f->fd, &one, 1, (off_t)offset_bytes, rwf);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && rwf && (errno == EOPNOTSUPP || errno == ENOSYS)) {
            rwf = 0;
            sync_after = true;
            continue;
        }
        if (n < 0)
            return -errno;
        size_t done = progress(f, n, length_bytes);
        if (done == 0)
            return -EIO;
        data += done;
        offset_bytes += done;
        length_bytes -= done;
    }
    return sync_after && fdatasync(f->fd) < 0 ? -errno : 0;
}

/* --- by the bounce buffer --- */

static bool is_aligned(const struct block_file *f, const void *data, uint64_t length_bytes,
                       uint64_t offset_bytes)
{
    return !f->direct || (((uintptr_t)data | length_bytes | offset_bytes) & (f->align_bytes - 1)) == 0;
}

static int read_bounced(const struct block_file *f, char *data, size_t length_bytes, uint64_t offset_bytes)
{
    char *bounce = block_bounce(BOUNCE_FILE);
    if (!bounce)
        return -ENOMEM;
    while (length_bytes) {
        size_t skip = offset_bytes % f->align_bytes;
        size_t part = length_bytes < BOUNCE_FILE_BYTES - skip ? length_bytes : BOUNCE_FILE_BYTES - skip;
        size_t whole = (skip + part + f->align_bytes - 1) / f->align_bytes * f->align_bytes;
        int r = read_all(f, bounce, whole, offset_bytes - skip);
        if (r < 0)
            return r;
        memcpy(data, bounce + skip, part);
        data += part;
        offset_bytes += part;
        length_bytes -= part;
    }
    return 0;
}

/* The caller holds unit_lock as F2 says. */
static int write_bounced(const struct block_file *f, const char *data, size_t length_bytes,
                         uint64_t offset_bytes, unsigned flags)
{
    char *bounce = block_bounce(BOUNCE_FILE);
    if (!bounce)
        return -ENOMEM;
    while (length_bytes) {
        size_t unit = f->align_bytes, skip = offset_bytes % unit;
        size_t part = length_bytes < BOUNCE_FILE_BYTES - skip ? length_bytes : BOUNCE_FILE_BYTES - skip;
        size_t whole = (skip + part + unit - 1) / unit * unit;
        int r = 0;
        if (skip)
            r = read_all(f, bounce, unit, offset_bytes - skip);
        if (r == 0 && (skip + part) % unit && (whole > unit || !skip))
            r = read_all(f, bounce + whole - unit, unit, offset_bytes - skip + whole - unit);
        if (r < 0)
            return r;
        memcpy(bounce + skip, data, part);
        r = write_all(f, bounce, whole, offset_bytes - skip, flags);
        if (r < 0)
            return r;
        data += part;
        offset_bytes += part;
        length_bytes -= part;
    }
    return 0;
}

/* Locks for a change of the range (F2); returns whether unlock is due. */
static bool lock_units(struct block_file *f, uint64_t length_bytes, uint64_t offset_bytes)
{
    if (!f->direct || f->align_bytes == BLOCK_SECTOR_BYTES)
        return false;
    if ((length_bytes | offset_bytes) % f->align_bytes)
        pthread_rwlock_wrlock(&f->unit_lock);
    else
        pthread_rwlock_rdlock(&f->unit_lock);
    return true;
}

static int write_range(struct block_file *f, const void *data, size_t length_bytes, uint64_t offset_bytes,
                       unsigned flags)
{
    bool locked = lock_units(f, length_bytes, offset_bytes);
    int r = is_aligned(f, data, length_bytes, offset_bytes)
                ? write_all(f, data, length_bytes, offset_bytes, flags)
                : write_bounced(f, data, length_bytes, offset_bytes, flags);
    if (locked)
        pthread_rwlock_unlock(&f->unit_lock);
    return r;
}

/* --- the ops --- */

static int failed(const struct block_file *f, int code, const char *what, uint64_t length_bytes,
                  uint64_t offset_bytes, struct error *err)
{
    return error_errno(err, code, "cannot %s %llu bytes at offset %llu of %s", what,
                       (unsigned long long)length_bytes, (unsigned long long)offset_bytes, f->path);
}

static int file_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes,
                      struct error *err)
{
    struct block_file *f = file_of(b);
    int r = is_aligned(f, data, length_bytes, offset_bytes)
                ? read_all(f, data, length_bytes, offset_bytes)
                : read_bounced(f, data, length_bytes, offset_bytes);
    return r < 0 ? failed(f, r, "read", length_bytes, offset_bytes, err) : 0;
}

static int file_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes,
                       unsigned flags, struct error *err)
{
    struct block_file *f = file_of(b);
    int r = f->read_only ? -EROFS : write_range(f, data, length_bytes, offset_bytes, flags);
    return r < 0 ? failed(f, r, "write", length_bytes, offset_bytes, err) : 0;
}

static int file_flush(struct block *b, struct error *err)
{
    struct block_file *f = file_of(b);
    if (!f->read_only && fdatasync(f->fd) < 0)
        return error_errno(err, -errno, "cannot flush %s", f->path);
    return 0;
}

static int write_zeroes(struct block_file *f, uint64_t length_bytes, uint64_t offset_bytes)
{
    while (length_bytes) {
        size_t part = length_bytes < ZEROES_BYTES ? (size_t)length_bytes : ZEROES_BYTES;
        int r = write_range(f, zeroes, part, offset_bytes, 0);
        if (r < 0)
            return r;
        offset_bytes += part;
        length_bytes -= part;
    }
    return 0;
}

/* Whole pages: by a hole, by the device, or by writing. */
static int zero_pages(struct block_file *f, uint64_t length_bytes, uint64_t offset_bytes)
{
    bool locked = lock_units(f, length_bytes, offset_bytes);
    int r;
    do
        r = fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset_bytes,
                      (off_t)length_bytes) < 0
                ? -errno
                : 0;
    while (r == -EINTR);
    if (r < 0 && f->device) {
        uint64_t range[2] = {offset_bytes, length_bytes};
        r = ioctl(f->fd, BLKZEROOUT, range) < 0 ? -errno : 0;
    }
    if (locked)
        pthread_rwlock_unlock(&f->unit_lock);
    return r < 0 ? write_zeroes(f, length_bytes, offset_bytes) : 0;
}

static int zero_range(struct block_file *f, uint64_t length_bytes, uint64_t offset_bytes)
{
    uint64_t end = offset_bytes + length_bytes;
    uint64_t first_page = (offset_bytes + BLOCK_PAGE_BYTES - 1) / BLOCK_PAGE_BYTES * BLOCK_PAGE_BYTES;
    uint64_t last_page = end / BLOCK_PAGE_BYTES * BLOCK_PAGE_BYTES;
    if (first_page >= last_page)
        return write_zeroes(f, length_bytes, offset_bytes);
    int r = write_zeroes(f, first_page - offset_bytes, offset_bytes);
    if (r == 0)
        r = zero_pages(f, last_page - first_page, first_page);
    if (r == 0)
        r = write_zeroes(f, end - last_page, last_page);
    return r;
}

static int file_zero(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags,
                     struct error *err)
{
    struct block_file *f = file_of(b);
    int r = f->read_only ? -EROFS : zero_range(f, length_bytes, offset_bytes);
    if (r == 0 && flags & BLOCK_FUA && fdatasync(f->fd) < 0)
        r = -errno;
    return r < 0 ? failed(f, r, "zero", length_bytes, offset_bytes, err) : 0;
}

/* The end of the stretch at `at`, whose kind goes to *ret_hole; in sectors, where a hole is rounded inwards.
 */
static int stretch_end(const struct block_file *f, uint64_t at, uint64_t limit, bool *ret_hole,
                       uint64_t *ret_end)
{
    off_t data = lseek(f->fd, (off_t)at, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        data = (off_t)limit;
    if (data < 0)
        return -errno;
    uint64_t hole_end =
        (uint64_t)data < limit ? (uint64_t)data / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES : limit;
    if (hole_end > at) {
        *ret_hole = true;
        *ret_end = hole_end;
        return 0;
    }
    off_t hole = lseek(f->fd, (off_t)at, SEEK_HOLE);
    if (hole < 0)
        return -errno;
    uint64_t data_end = ((uint64_t)hole + BLOCK_SECTOR_BYTES - 1) / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES;
    *ret_hole = false;
    /* Somebody may have punched the hole between the two calls: a sector of "data" is always true. */
    *ret_end = data_end <= at ? at + BLOCK_SECTOR_BYTES : data_end < limit ? data_end : limit;
    return 0;
}

static int file_extents(struct block *b, uint64_t length_bytes, uint64_t offset_bytes,
                        struct block_extent *extents, size_t capacity, size_t *ret_count, struct error *err)
{
    struct block_file *f = file_of(b);
    uint64_t limit = offset_bytes + length_bytes;
    size_t count = 0;
    for (uint64_t at = offset_bytes, end = limit; at < limit; at = end) {
        bool hole = false;
        int r = stretch_end(f, at, limit, &hole, &end);
        if (r == -EINVAL || r == -EOPNOTSUPP) { /* cannot say: all data */
            hole = false;
            end = limit;
        } else if (r < 0) {
            return failed(f, r, "find the holes in", length_bytes, offset_bytes, err);
        }
        if (count && extents[count - 1].hole == hole)
            extents[count - 1].length_bytes += end - at;
        else if (count == capacity)
            break;
        else
            extents[count++] = (struct block_extent){at, end - at, hole};
    }
    *ret_count = count;
    return 0;
}

static void file_free(struct block *b)
{
    struct block_file *f = file_of(b);
    if (f->fd >= 0)
        close(f->fd);
    pthread_rwlock_destroy(&f->unit_lock);
    free(f->path);
    free(f);
}

/* --- without blocking (block/queue.h) --- */

static int file_start(struct block *b, struct block_request *r)
{
    const struct block_file *f = file_of(b);
    if (r->op == BLOCK_OP_FLUSH) {
        block_queue_sync(r, f->fd);
        return BLOCK_STEP_TRANSFERS;
    }
    bool write = r->op == BLOCK_OP_WRITE, locks = write && f->align_bytes != BLOCK_SECTOR_BYTES; /* F2 */
    if (locks || (f->read_only && write) || r->flags || !block_file_is_direct(b, r->length_bytes, r->offset_bytes))
        return -EAGAIN;
    block_queue_transfer(r, f->fd, r->data);
    return BLOCK_STEP_TRANSFERS;
}

static enum block_step file_step(struct block *b, struct block_request *r)
{
    (void)b;
    return r->transferred >= 0 && (size_t)r->transferred == r->length_bytes ? BLOCK_STEP_DONE : BLOCK_STEP_BLOCKS;
}

/* Repeats it whole, which says what is wrong, or was short only; but a flush that failed has failed for good. */
static int file_finish(struct block *b, struct block_request *r, struct error *err)
{
    if (r->op == BLOCK_OP_FLUSH)
        return error_errno(err, r->transferred, "cannot flush %s", file_of(b)->path);
    return r->op == BLOCK_OP_WRITE ? file_pwrite(b, r->data, r->length_bytes, r->offset_bytes, 0, err)
                                   : file_pread(b, r->data, r->length_bytes, r->offset_bytes, err);
}

static const struct block_async_ops file_async_ops = {.start = file_start, .step = file_step, .finish = file_finish};

static const struct block_ops file_ops = {
    .pread = file_pread,
    .pwrite = file_pwrite,
    .flush = file_flush,
    .discard = file_zero,
    .zero = file_zero,
    .extents = file_extents,
    .free = file_free,
    .async = &file_async_ops,
};

/* --- opening --- */

static int sync_parent(const char *path, struct error *err)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int length = !slash ? 1 : slash == path ? 1 : (int)(slash - path);
    if (snprintf(directory, sizeof directory, "%.*s", length, slash ? path : ".") >= (int)sizeof directory)
        return error_errno(err, -ENAMETOOLONG, "cannot sync the directory of %s", path);
    return io_sync_directory(directory, err);
}

/* Opens, O_DIRECT where that works. A device is taken for itself (O_EXCL) when it will be written: not one
 * that is mounted. */
static int open_descriptor(struct block_file *f, int flags, struct error *err)
{
    struct stat st;
    if (stat(f->path, &st) == 0 && S_ISBLK(st.st_mode) && !f->read_only)
        flags = (flags & ~O_CREAT) | O_EXCL;
    f->fd = open(f->path, flags | O_DIRECT, 0600);
    f->direct = f->fd >= 0;
    if (f->fd < 0 && errno == EINVAL)
        f->fd = open(f->path, flags, 0600);
    if (f->fd < 0 && errno == EBUSY)
        return error_set(err, -EBUSY, "cannot open %s: the device is in use (mounted?)", f->path);
    if (f->fd < 0)
        return error_errno(err, -errno, "cannot open %s", f->path);
    return 0;
}

static int find_size(struct block_file *f, uint64_t create_bytes, uint64_t *ret_file_bytes, struct error *err)
{
    struct stat st;
    if (fstat(f->fd, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", f->path);
    uint64_t size = (uint64_t)st.st_size;
    f->device = S_ISBLK(st.st_mode);
    if (f->device && ioctl(f->fd, BLKGETSIZE64, &size) < 0)
        return error_errno(err, -errno, "cannot find the size of %s", f->path);
    if (!f->device && !S_ISREG(st.st_mode))
        return error_set(err, -EINVAL, "cannot use %s as a volume: not a file or block device", f->path);
    /* Empty: new, or a crash came between its creation and its size. */
    if (!f->device && size == 0 && create_bytes > 0) {
        if (ftruncate(f->fd, (off_t)create_bytes) < 0 || fsync(f->fd) < 0)
            return error_errno(err, -errno, "cannot give %s its size of %llu bytes", f->path,
                               (unsigned long long)create_bytes);
        int r = sync_parent(f->path, err);
        if (r < 0)
            return r;
        size = create_bytes;
    }
    *ret_file_bytes = size;
    f->block.size_bytes = size / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES;
    if (f->block.size_bytes == 0)
        return error_set(err, -EINVAL, "cannot use %s as a volume: it is smaller than %u bytes", f->path,
                         BLOCK_SECTOR_BYTES);
    return 0;
}

/* Tries out the alignment that O_DIRECT asks for: file systems and kernels differ, and old ones do not say.
 */
static int find_alignment(struct block_file *f, uint64_t file_bytes, struct error *err)
{
    f->align_bytes = BLOCK_SECTOR_BYTES;
    if (!f->direct)
        return 0;
    char *bounce = block_bounce(BOUNCE_FILE);
    if (!bounce)
        return error_errno(err, -ENOMEM, "cannot open %s", f->path);
    uint64_t offset = f->block.size_bytes > BLOCK_SECTOR_BYTES ? BLOCK_SECTOR_BYTES : 0;
    if (pread(f->fd, bounce + BLOCK_SECTOR_BYTES, BLOCK_SECTOR_BYTES, (off_t)offset) >= 0)
        return 0;
    f->align_bytes = BLOCK_PAGE_BYTES;
    if (file_bytes % BLOCK_PAGE_BYTES == 0 && pread(f->fd, bounce, BLOCK_PAGE_BYTES, 0) >= 0)
        return 0;
    int flags = fcntl(f->fd, F_GETFL);
    if (flags < 0 || fcntl(f->fd, F_SETFL, flags & ~O_DIRECT) < 0)
        return error_errno(err, -errno, "cannot open %s", f->path);
    f->direct = false;
    f->align_bytes = BLOCK_SECTOR_BYTES;
    return 0;
}

/* Against other engines (flock), and against virtual machines, which lock bytes of their images. Both locks are the open file's: the
 * writes that the kernel still has of an engine that was killed hold them too. A file system without locks has none. */
static int lock_file(const struct block_file *f, struct error *err)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if ((flock(f->fd, LOCK_EX | LOCK_NB) < 0 || fcntl(f->fd, F_OFD_SETLK, &whole) < 0) && errno != EOPNOTSUPP && errno != ENOLCK && errno != ENOSYS)
        return error_set(err, errno == EAGAIN || errno == EACCES ? -EBUSY : -errno,
                         "cannot use %s: another program has locked it (`lslocks` and `fuser -v %s` tell which one)", f->path,
                         f->path);
    return 0;
}

static int open_file(const char *path, uint64_t create_bytes, bool read_only, bool exclusive, struct block **ret,
                     struct error *err)
{
    uint64_t file_bytes = 0;
    if (create_bytes % BLOCK_SECTOR_BYTES || create_bytes > INT64_MAX)
        return error_set(err, -EINVAL, "cannot create %s with %llu bytes: not a multiple of %u", path,
                         (unsigned long long)create_bytes, BLOCK_SECTOR_BYTES);
    struct block_file *f = calloc(1, sizeof *f);
    if (!f)
        return error_errno(err, -ENOMEM, "cannot open %s", path);
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&f->unit_lock, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    f->block.ops = &file_ops;
    f->fd = -1;
    f->read_only = read_only;
    f->path = strdup(path);
    int r = f->path ? 0 : error_errno(err, -ENOMEM, "cannot open %s", path);
    if (r == 0)
        r = open_descriptor(
            f, O_CLOEXEC | (read_only ? O_RDONLY : O_RDWR) | (create_bytes && !read_only ? O_CREAT : 0), err);
    if (r == 0 && exclusive)
        r = lock_file(f, err);
    if (r == 0)
        r = find_size(f, read_only ? 0 : create_bytes, &file_bytes, err);
    if (r == 0)
        r = find_alignment(f, file_bytes, err);
    if (r < 0) {
        file_free(&f->block);
        return r;
    }
    *ret = &f->block;
    return 0;
}

int block_file_open(const char *path, uint64_t create_bytes, bool read_only, struct block **ret,
                    struct error *err)
{
    return open_file(path, create_bytes, read_only, false, ret, err);
}

int block_file_open_exclusive(const char *path, uint64_t create_bytes, unsigned wait_ms, struct block **ret, struct error *err)
{
    struct timespec pause = {.tv_nsec = EXCLUSIVE_PAUSE_MS * 1000000};
    int r = open_file(path, create_bytes, false, true, ret, err);
    for (unsigned waited_ms = 0; r == -EBUSY && waited_ms < wait_ms; waited_ms += EXCLUSIVE_PAUSE_MS) {
        nanosleep(&pause, NULL);
        r = open_file(path, create_bytes, false, true, ret, err);
    }
    return r;
}

int block_file_grow(struct block *b, uint64_t size_bytes, struct error *err)
{
    struct block_file *f = file_of(b);
    struct stat st;
    uint64_t now = 0;
    if (fstat(f->fd, &st) < 0 || (f->device && ioctl(f->fd, BLKGETSIZE64, &now) < 0))
        return error_errno(err, -errno, "cannot find the size of %s", f->path);
    if (!f->device)
        now = (uint64_t)st.st_size;
    if (f->device && now < size_bytes)
        return error_set(err, -ENOSPC, "%s has only %llu bytes, not %llu: make the device larger first", f->path,
                         (unsigned long long)now, (unsigned long long)size_bytes);
    if (now < size_bytes && (ftruncate(f->fd, (off_t)size_bytes) < 0 || fsync(f->fd) < 0))
        return error_errno(err, -errno, "cannot give %s its size of %llu bytes", f->path, (unsigned long long)size_bytes);
    if (b->size_bytes < size_bytes)
        __atomic_store_n(&b->size_bytes, size_bytes, __ATOMIC_RELEASE);
    return 0;
}

int block_file_fd(const struct block *b)
{
    return ((const struct block_file *)b)->fd;
}

bool block_file_is_direct(const struct block *b, uint64_t length_bytes, uint64_t offset_bytes)
{
    const struct block_file *f = (const struct block_file *)b;
    return f->direct && ((length_bytes | offset_bytes) & (f->align_bytes - 1)) == 0;
}

bool block_file_force_pages(struct block *b)
{
    struct block_file *f = file_of(b);
    if (!f->direct || b->size_bytes % BLOCK_PAGE_BYTES)
        return false;
    f->align_bytes = BLOCK_PAGE_BYTES;
    return true;
}
