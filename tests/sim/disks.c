/* SPDX-License-Identifier: Apache-2.0 */
#include "disks.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FILES 4096
#define MAX_EVENTS 65536
#define MAX_RINGS 16
#define SECTOR 512u
#define NEVER UINT64_MAX
#define MUST(x)                                                                                              \
    do {                                                                                                     \
        if (!(x)) {                                                                                          \
            fprintf(stderr, "disks: %s: %s\n", #x, strerror(errno));                                         \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

enum kind { WRITE, ZERO, SIZE, CREATE, MKDIR, RENAME, REMOVE, SYNC, SYNC_DIRECTORY };

struct file {
    dev_t device;
    ino_t inode;
    char *path; /* at the beginning; NULL: made later */
    char *data; /* at the beginning */
    size_t size;
};
struct event {
    enum kind kind;
    int disk, file;
    uint64_t begun, ended, offset, length;
    char *data, *path, *to;
    void *ring; /* by io_uring: ended once so many completions were consumed */
    unsigned count;
};
struct ring {
    struct io_uring *ring;
    unsigned submitted;
};

static struct {
    pthread_mutex_t mutex;
    bool on;
    char root[2][PATH_MAX];
    char *directories[256];
    size_t directory_count;
    struct file files[MAX_FILES];
    int file_count;
    struct event events[MAX_EVENTS];
    size_t event_count;
    uint64_t now;
    struct ring rings[MAX_RINGS];
    void (*watch)(const char *call, const char *path, bool after);
} d = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- who watches; without the mutex ---- */

void disks_watch(void (*watch)(const char *call, const char *path, bool after))
{
    d.watch = watch;
}

static void tell(const char *call, const char *path, bool after)
{
    int saved = errno;
    if (d.watch)
        d.watch(call, path, after);
    errno = saved;
}

static void tell_of(const char *call, int fd, bool after)
{
    char link[64], path[PATH_MAX];
    if (!d.watch)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    tell(call, path, after);
}

/* ---- the log; all with the mutex ---- */

static int disk_of(const char *path)
{
    for (int i = 0; i < 2; i++) {
        size_t length = strlen(d.root[i]);
        if (d.on && strncmp(path, d.root[i], length) == 0 && (path[length] == '/' || !path[length]))
            return i;
    }
    return -1;
}

static int find_file(const struct stat *st)
{
    for (int i = d.file_count; i-- > 0;)
        if (d.files[i].inode == st->st_ino && d.files[i].device == st->st_dev)
            return i;
    return -1;
}

static int file_of(int fd)
{
    struct stat st;
    return d.on && fstat(fd, &st) == 0 ? find_file(&st) : -1;
}

static struct ring *ring_of(struct io_uring *ring)
{
    for (int i = 0; i < MAX_RINGS; i++)
        if (d.rings[i].ring == ring)
            return &d.rings[i];
    return NULL;
}

/* What io_uring did counts as ended once its completion was consumed. */
static void look_at_rings(void)
{
    for (size_t i = 0; i < d.event_count; i++) {
        struct event *e = &d.events[i];
        if (!e->ring || e->ended != NEVER)
            continue;
        struct ring *r = ring_of(e->ring);
        if (!r || (int)(__atomic_load_n(r->ring->cq.khead, __ATOMIC_ACQUIRE) - e->count) >= 0)
            e->ended = ++d.now;
    }
}

static struct event *add(enum kind kind, int disk, int file)
{
    MUST(d.event_count < MAX_EVENTS);
    look_at_rings();
    struct event *e = &d.events[d.event_count++];
    *e = (struct event){.kind = kind, .disk = disk, .file = file, .begun = ++d.now, .ended = NEVER};
    return e;
}

static int disk_of_file(int file)
{
    for (size_t i = d.event_count; !d.files[file].path && i-- > 0;)
        if (d.events[i].kind == CREATE && d.events[i].file == file)
            return d.events[i].disk;
    return d.files[file].path ? disk_of(d.files[file].path) : 0;
}

static ssize_t begin_write(int fd, const struct iovec *vector, int count, uint64_t offset)
{
    int file = file_of(fd);
    if (file < 0)
        return -1;
    struct event *e = add(WRITE, disk_of_file(file), file);
    e->offset = offset;
    for (int i = 0; i < count; i++)
        e->length += vector[i].iov_len;
    char *to = e->data = malloc(e->length + 1);
    for (int i = 0; i < count; to += vector[i++].iov_len)
        memcpy(to, vector[i].iov_base, vector[i].iov_len);
    return (ssize_t)(e - d.events);
}

static void end(ssize_t event, int64_t length)
{
    if (event < 0)
        return;
    pthread_mutex_lock(&d.mutex);
    if (length >= 0 && (uint64_t)length < d.events[event].length)
        d.events[event].length = (uint64_t)length;
    d.events[event].ended = ++d.now;
    pthread_mutex_unlock(&d.mutex);
}

/* ---- the calls ---- */

ssize_t __real_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags)
{
    assert(!(flags & (RWF_DSYNC | RWF_SYNC)));
    tell_of("write", fd, false);
    pthread_mutex_lock(&d.mutex);
    ssize_t e = begin_write(fd, v, count, (uint64_t)offset);
    pthread_mutex_unlock(&d.mutex);
    ssize_t n = __real_pwritev64v2(fd, v, count, offset, flags);
    end(e, n < 0 ? 0 : n);
    tell_of("write", fd, true);
    return n;
}
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset)
{
    return __wrap_pwritev64v2(fd, v, count, offset, 0);
}
ssize_t __wrap_pwrite64(int fd, const void *data, size_t length, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t length, off_t offset)
{
    struct iovec one = {(void *)(uintptr_t)data, length};
    return __wrap_pwritev64v2(fd, &one, 1, offset, 0);
}

int __real_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
{
    tell_of("fallocate", fd, false);
    pthread_mutex_lock(&d.mutex);
    int file = file_of(fd);
    ssize_t e = -1;
    if (file >= 0) {
        MUST(mode & FALLOC_FL_PUNCH_HOLE);
        struct event *zero = add(ZERO, disk_of_file(file), file);
        zero->offset = (uint64_t)offset;
        zero->length = (uint64_t)length;
        e = zero - d.events;
    }
    pthread_mutex_unlock(&d.mutex);
    int r = __real_fallocate64(fd, mode, offset, length);
    end(e, r < 0 ? 0 : length);
    tell_of("fallocate", fd, true);
    return r;
}

/* Changes of names and sizes: in one order, so under the mutex. */
static void note_size(int fd)
{
    struct stat st;
    int file = file_of(fd);
    if (file < 0 || fstat(fd, &st) < 0)
        return;
    struct event *e = add(SIZE, disk_of_file(file), file);
    e->length = (uint64_t)st.st_size;
    e->ended = e->begun;
}

int __real_ftruncate64(int fd, off_t length);
int __wrap_ftruncate64(int fd, off_t length);
int __wrap_ftruncate64(int fd, off_t length)
{
    tell_of("ftruncate", fd, false);
    pthread_mutex_lock(&d.mutex);
    int r = __real_ftruncate64(fd, length);
    if (r == 0)
        note_size(fd);
    pthread_mutex_unlock(&d.mutex);
    tell_of("ftruncate", fd, true);
    return r;
}

static int ftruncate_of(int fd, off_t length)
{
    return __real_ftruncate64(fd, length) < 0 ? errno : 0;
}

int __real_posix_fallocate64(int fd, off_t offset, off_t length);
int __wrap_posix_fallocate64(int fd, off_t offset, off_t length);
int __wrap_posix_fallocate64(int fd, off_t offset, off_t length)
{
    tell_of("allocate", fd, false);
    pthread_mutex_lock(&d.mutex);
    struct stat st;
    bool of_memory = file_of(fd) < 0 && fstat(fd, &st) == 0; /* there is enough: reserving it takes most of a start */
    int r = of_memory ? (st.st_size < offset + length ? ftruncate_of(fd, offset + length) : 0) : __real_posix_fallocate64(fd, offset, length);
    if (r == 0)
        note_size(fd);
    pthread_mutex_unlock(&d.mutex);
    tell_of("allocate", fd, true);
    return r;
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    va_list args;
    struct stat st;
    va_start(args, flags);
    int mode = flags & O_CREAT ? va_arg(args, int) : 0;
    va_end(args);
    if (!(flags & (O_CREAT | O_TRUNC)))
        return __real_open64(path, flags, mode);
    tell("create", path, false);
    pthread_mutex_lock(&d.mutex);
    int disk = disk_of(path);
    bool there = stat(path, &st) == 0;
    int fd = __real_open64(path, flags, mode);
    if (fd >= 0 && disk >= 0 && !there && fstat(fd, &st) == 0) {
        MUST(d.file_count < MAX_FILES);
        d.files[d.file_count] = (struct file){.device = st.st_dev, .inode = st.st_ino};
        struct event *e = add(CREATE, disk, d.file_count++);
        e->path = strdup(path);
        e->ended = e->begun;
    } else if (fd >= 0 && disk >= 0 && flags & O_TRUNC) {
        note_size(fd);
    }
    pthread_mutex_unlock(&d.mutex);
    tell("create", path, true);
    return fd;
}

static void note_name(enum kind kind, const char *path, const char *to)
{
    if (disk_of(path) < 0)
        return;
    struct event *e = add(kind, disk_of(path), -1);
    e->path = strdup(path);
    e->to = to ? strdup(to) : NULL;
    e->ended = e->begun;
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    tell("rename", from, false);
    pthread_mutex_lock(&d.mutex);
    int r = __real_rename(from, to);
    if (r == 0)
        note_name(RENAME, from, to);
    pthread_mutex_unlock(&d.mutex);
    tell("rename", from, true);
    return r;
}
int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
    tell("unlink", path, false);
    pthread_mutex_lock(&d.mutex);
    int r = __real_unlink(path);
    if (r == 0)
        note_name(REMOVE, path, NULL);
    pthread_mutex_unlock(&d.mutex);
    tell("unlink", path, true);
    return r;
}
int __real_remove(const char *path);
int __wrap_remove(const char *path);
int __wrap_remove(const char *path)
{
    tell("remove", path, false);
    pthread_mutex_lock(&d.mutex);
    int r = __real_remove(path);
    if (r == 0)
        note_name(REMOVE, path, NULL);
    pthread_mutex_unlock(&d.mutex);
    tell("remove", path, true);
    return r;
}
int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode)
{
    bool new = access(path, F_OK) < 0;
    if (new)
        tell("mkdir", path, false);
    pthread_mutex_lock(&d.mutex);
    int r = __real_mkdir(path, mode);
    if (r == 0)
        note_name(MKDIR, path, NULL);
    pthread_mutex_unlock(&d.mutex);
    if (new)
        tell("mkdir", path, true);
    return r;
}

static ssize_t begin_sync(int fd)
{
    char link[64], path[PATH_MAX];
    struct stat st;
    int file = file_of(fd);
    if (file >= 0)
        return add(SYNC, disk_of_file(file), file) - d.events;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n =
        d.on && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode) ? readlink(link, path, sizeof path - 1) : -1;
    path[n > 0 ? n : 0] = '\0';
    return n > 0 && disk_of(path) >= 0 ? add(SYNC_DIRECTORY, disk_of(path), -1) - d.events : -1;
}

int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    tell_of("fsync", fd, false);
    pthread_mutex_lock(&d.mutex);
    ssize_t e = begin_sync(fd);
    pthread_mutex_unlock(&d.mutex);
    end(e, -1); /* the disk is memory: nothing to wait for */
    tell_of("fsync", fd, true);
    return 0;
}
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    return __wrap_fsync(fd);
}

int __real_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    int r = __real_io_uring_queue_init(entries, ring, flags);
    pthread_mutex_lock(&d.mutex);
    struct ring *slot = ring_of(ring);
    if (!slot)
        slot = ring_of(NULL);
    MUST(slot);
    *slot = (struct ring){.ring = ring};
    pthread_mutex_unlock(&d.mutex);
    return r;
}
void __real_io_uring_queue_exit(struct io_uring *ring);
void __wrap_io_uring_queue_exit(struct io_uring *ring);
void __wrap_io_uring_queue_exit(struct io_uring *ring)
{
    pthread_mutex_lock(&d.mutex);
    look_at_rings();
    struct ring *slot = ring_of(ring);
    if (slot)
        slot->ring = NULL;
    pthread_mutex_unlock(&d.mutex);
    __real_io_uring_queue_exit(ring);
}

static void note_submitted(struct io_uring *ring)
{
    pthread_mutex_lock(&d.mutex);
    struct ring *slot = ring_of(ring);
    for (unsigned at = ring->sq.sqe_head; slot && at != ring->sq.sqe_tail; at++) {
        const struct io_uring_sqe *sqe = &ring->sq.sqes[at & ring->sq.ring_mask];
        struct iovec one = {(void *)(uintptr_t)sqe->addr, sqe->len};
        ssize_t e = -1;
        slot->submitted++;
        if (sqe->opcode == IORING_OP_WRITE || sqe->opcode == IORING_OP_WRITE_FIXED)
            e = begin_write(sqe->fd, &one, 1, sqe->off);
        else if (sqe->opcode == IORING_OP_FSYNC)
            e = begin_sync(sqe->fd);
        if (e >= 0) {
            d.events[e].ring = ring;
            d.events[e].count = slot->submitted;
        }
    }
    pthread_mutex_unlock(&d.mutex);
}

/* Whether there is anything. */
static bool tell_submitted(const struct io_uring *ring)
{
    bool any = ring->sq.sqe_head != ring->sq.sqe_tail;
    if (any)
        tell("submit", "", false);
    return any;
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
    bool any = tell_submitted(ring);
    note_submitted(ring);
    int r = __real_io_uring_submit(ring);
    if (any)
        tell("submit", "", true);
    return r;
}
int __real_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring)
{
    bool any = tell_submitted(ring);
    note_submitted(ring);
    int r = __real_io_uring_submit_and_get_events(ring);
    if (any)
        tell("submit", "", true);
    return r;
}

/* ---- beginning and ending ---- */

static void forget(void)
{
    for (size_t i = 0; i < d.event_count; i++) {
        free(d.events[i].data);
        free(d.events[i].path);
        free(d.events[i].to);
    }
    for (int i = 0; i < d.file_count; i++) {
        free(d.files[i].path);
        free(d.files[i].data);
    }
    for (size_t i = 0; i < d.directory_count; i++)
        free(d.directories[i]);
    d.event_count = d.directory_count = 0;
    d.file_count = 0;
    d.now = 0;
}

static void take(const char *path)
{
    struct stat st;
    MUST(stat(path, &st) == 0);
    if (!S_ISDIR(st.st_mode)) {
        struct file *f = &d.files[d.file_count++];
        MUST(d.file_count < MAX_FILES);
        *f = (struct file){st.st_dev, st.st_ino, strdup(path), malloc((size_t)st.st_size + 1),
                           (size_t)st.st_size};
        int fd = __real_open64(path, O_RDONLY);
        MUST(fd >= 0 && read(fd, f->data, f->size) == (ssize_t)f->size);
        close(fd);
        return;
    }
    MUST(d.directory_count < sizeof d.directories / sizeof *d.directories);
    d.directories[d.directory_count++] = strdup(path);
    DIR *directory = opendir(path);
    struct dirent *entry;
    MUST(directory);
    while ((entry = readdir(directory))) {
        char below[PATH_MAX];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        MUST(snprintf(below, sizeof below, "%s/%s", path, entry->d_name) < (int)sizeof below);
        take(below);
    }
    closedir(directory);
}

void disks_begin(const char *root)
{
    pthread_mutex_lock(&d.mutex);
    forget();
    for (int i = 0; i < 2; i++) {
        snprintf(d.root[i], sizeof d.root[i], "%s/%s", root, i ? "journal" : "backing");
        take(d.root[i]);
    }
    d.on = true;
    pthread_mutex_unlock(&d.mutex);
}

uint64_t disks_now(void)
{
    pthread_mutex_lock(&d.mutex);
    look_at_rings();
    uint64_t now = ++d.now;
    pthread_mutex_unlock(&d.mutex);
    return now;
}

void disks_end(void)
{
    pthread_mutex_lock(&d.mutex);
    look_at_rings();
    d.on = false;
    pthread_mutex_unlock(&d.mutex);
}

/* ---- states ---- */

static bool is_data(const struct event *e)
{
    return e->kind == WRITE || e->kind == ZERO;
}
static bool is_change(const struct event *e)
{
    return e->kind >= SIZE && e->kind <= REMOVE;
}

size_t disks_moments(uint64_t *moments, size_t capacity)
{
    size_t count = 0;
    for (size_t i = 0; i < d.event_count; i++) {
        const struct event *e = &d.events[i];
        bool sync = e->kind == SYNC || e->kind == SYNC_DIRECTORY;
        if ((sync && e->ended == NEVER) || count == capacity)
            continue;
        moments[count++] = sync ? e->ended : e->begun;
    }
    for (size_t i = 1; i < count; i++) /* nearly sorted */
        for (size_t k = i; k > 0 && moments[k] < moments[k - 1]; k--) {
            uint64_t swap = moments[k];
            moments[k] = moments[k - 1];
            moments[k - 1] = swap;
        }
    return count;
}

/* Whether a flush that has ended by then covers the event. */
static bool is_durable(const struct event *e, uint64_t moment)
{
    for (size_t i = 0; i < d.event_count; i++) {
        const struct event *s = &d.events[i];
        if (s->ended > moment || s->begun < e->ended || s->disk != e->disk)
            continue;
        if (s->kind == SYNC && s->file == e->file && (is_data(e) || e->kind == SIZE))
            return true;
        if (s->kind == SYNC_DIRECTORY && is_change(e))
            return true;
    }
    return false;
}

/* The index behind the last change of a disk that is certain to be there. */
static size_t certain_changes(int disk, uint64_t moment)
{
    size_t certain = 0;
    for (size_t i = 0; i < d.event_count; i++)
        if (is_change(&d.events[i]) && d.events[i].disk == disk && d.events[i].begun <= moment &&
            is_durable(&d.events[i], moment))
            certain = i + 1;
    return certain;
}

void disks_open(uint64_t moment, struct disks_open *ret)
{
    *ret = (struct disks_open){0};
    size_t certain[2] = {certain_changes(0, moment), certain_changes(1, moment)};
    for (size_t i = 0; i < d.event_count && d.events[i].begun <= moment; i++) {
        const struct event *e = &d.events[i];
        if (is_data(e) && !is_durable(e, moment))
            ret->writes++;
        else if (is_change(e) && i >= certain[e->disk])
            ret->changes[e->disk]++;
    }
}

struct built {
    char *path; /* NULL: not there */
    char *data;
    size_t size;
};

static uint64_t draw(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static void resize(struct built *b, size_t size)
{
    if (size > b->size) {
        b->data = realloc(b->data, size);
        memset(b->data + b->size, 0, size - b->size);
    }
    b->size = size;
}

/* `torn`: each sector by itself. */
static void apply_data(struct built *b, const struct event *e, bool torn, uint64_t *random)
{
    if (e->length == 0)
        return;
    if (e->kind == WRITE && e->offset + e->length > b->size)
        resize(b, e->offset + e->length);
    for (uint64_t at = e->offset, end = e->offset + e->length, next; at < end; at = next) {
        next = (at / SECTOR + 1) * SECTOR;
        next = next < end ? next : end;
        if (at >= b->size || (torn && draw(random) & 1))
            continue;
        size_t length = (next < b->size ? next : b->size) - at;
        if (e->kind == ZERO)
            memset(b->data + at, 0, length);
        else
            memcpy(b->data + at, e->data + (at - e->offset), length);
    }
}

static struct built *find_built(struct built *built, const char *path)
{
    for (int i = 0; i < d.file_count; i++)
        if (built[i].path && strcmp(built[i].path, path) == 0)
            return &built[i];
    return NULL;
}

static void forget_name(struct built *b)
{
    if (!b)
        return;
    free(b->path);
    b->path = NULL;
}

static void apply_change(struct built *built, char **directories, const struct event *e)
{
    struct built *b = e->path ? find_built(built, e->path) : NULL;
    switch (e->kind) {
    case SIZE:
        resize(&built[e->file], e->length);
        break;
    case CREATE:
        built[e->file].path = strdup(e->path);
        break;
    case MKDIR:
        for (size_t i = 0;; i++)
            if (!directories[i]) {
                directories[i] = strdup(e->path);
                break;
            }
        break;
    case RENAME:
        forget_name(find_built(built, e->to));
        forget_name(b);
        if (b)
            b->path = strdup(e->to);
        break;
    default:
        for (size_t i = 0; !b && directories[i]; i++)
            if (strcmp(directories[i], e->path) == 0)
                directories[i][0] = '\0';
        forget_name(b);
    }
}

/* The same name below `to`. */
static void move(const char *path, const char *to, char moved[PATH_MAX])
{
    int disk = strncmp(path, d.root[0], strlen(d.root[0])) == 0 ? 0 : 1;
    MUST(snprintf(moved, PATH_MAX, "%s/%s%s", to, disk ? "journal" : "backing", path + strlen(d.root[disk])) <
         PATH_MAX);
}

/* The pages that are not zero. */
static void write_pages(int fd, const struct built *b)
{
    static const char zeroes[4096];
    for (size_t at = 0; at < b->size; at += sizeof zeroes) {
        size_t length = b->size - at < sizeof zeroes ? b->size - at : sizeof zeroes;
        if (memcmp(b->data + at, zeroes, length) != 0)
            MUST(pwrite(fd, b->data + at, length, (off_t)at) == (ssize_t)length);
    }
}

static void store(struct built *built, char **directories, const char *to)
{
    char path[PATH_MAX];
    mkdir(to, 0700);
    for (size_t i = 0; directories[i]; i++) {
        if (directories[i][0]) {
            move(directories[i], to, path);
            MUST(__real_mkdir(path, 0700) == 0);
        }
        free(directories[i]);
    }
    for (int i = 0; i < d.file_count; i++) {
        if (built[i].path) {
            move(built[i].path, to, path);
            int fd = __real_open64(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
            MUST(fd >= 0 && __real_ftruncate64(fd, (off_t)built[i].size) == 0);
            write_pages(fd, &built[i]);
            close(fd);
        }
        free(built[i].path);
        free(built[i].data);
    }
}

void disks_build(uint64_t moment, const struct disks_choice *choice, const char *to)
{
    struct disks_open open;
    struct disks_choice c = *choice;
    uint64_t random = c.random;
    disks_open(moment, &open);
    size_t limit[2] = {SIZE_MAX, SIZE_MAX}, seen[2] = {0, 0}, writes = 0;
    unsigned style = c.random ? (unsigned)(draw(&random) % 4) : 0;
    for (int i = 0; i < 2 && c.random; i++) {
        c.changes[i] = draw(&random) % (open.changes[i] + 1);
        limit[i] =
            style == 0 ? draw(&random) % (open.writes + 1) : SIZE_MAX; /* of this disk's writes, a prefix */
    }
    struct built *built = calloc((size_t)d.file_count + 1, sizeof *built);
    char **directories = calloc(512, sizeof *directories);
    for (size_t i = 0; i < d.directory_count; i++)
        directories[i] = strdup(d.directories[i]);
    for (int i = 0; i < d.file_count; i++)
        if (d.files[i].path) {
            built[i] = (struct built){strdup(d.files[i].path), malloc(d.files[i].size + 1), d.files[i].size};
            memcpy(built[i].data, d.files[i].data, d.files[i].size);
        }
    size_t certain[2] = {certain_changes(0, moment), certain_changes(1, moment)};
    for (size_t i = 0; i < d.event_count && d.events[i].begun <= moment; i++) {
        const struct event *e = &d.events[i];
        if (is_change(e) && (i < certain[e->disk] || c.changes[e->disk]-- > 0)) {
            apply_change(built, directories, e);
        } else if (is_change(e)) {
            c.changes[e->disk] = 0;
        } else if (is_data(e) && is_durable(e, moment)) {
            apply_data(&built[e->file], e, false, NULL);
        } else if (is_data(e)) {
            bool there =
                c.random ? style == 3 || (style == 0 ? seen[e->disk]++ < limit[e->disk] : draw(&random) & 1)
                         : writes >= 64 || c.writes >> writes & 1;
            writes++;
            if (there)
                apply_data(&built[e->file], e, c.torn || (c.random && style == 2), &random);
        }
    }
    store(built, directories, to);
    free(built);
    free(directories);
}
