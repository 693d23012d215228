/* SPDX-License-Identifier: Apache-2.0 */
/* Attaching is two steps, asking for a free number and configuring it, between which another process may take
 * it: EBUSY begins again. LOOP_CONFIGURE (Linux 5.8) does the second atomically, so that the device never
 * shows up with the wrong block size or without direct I/O. */
#include "export/loop.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "export/device_node.h"

#define LOOP_CONTROL "/dev/loop-control"
#define LOOP_ATTEMPTS 64u /* others that take the free number before us */
#define LOOP_POLL_MS 5u
#define DELETED_SUFFIX " (deleted)"

static void sleep_ms(unsigned ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * (long)NS_PER_MS};
    nanosleep(&t, NULL);
}

static int make_node(int number, const char *device, struct error *err)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/block/loop%d/dev", number);
    return device_node_make(path, device, S_IFBLK, err);
}

static int open_control(int *ret_fd, struct error *err)
{
    *ret_fd = open(LOOP_CONTROL, O_RDWR | O_CLOEXEC);
    if (*ret_fd >= 0)
        return 0;
    if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
        return error_set(err, -ENODEV,
                         "cannot open " LOOP_CONTROL
                         ": the kernel has no loop devices here. Load them: modprobe loop (in "
                         "a container: pass the device in)");
    return error_errno(err, -errno, "cannot open " LOOP_CONTROL ". Run as root");
}

/* One try: -EBUSY when another process was faster. */
static int configure(int control, int file, const char *path, bool read_only, unsigned block_bytes,
                     char device[LOOP_DEVICE_BYTES], struct error *err)
{
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0)
        return error_errno(err, -errno, "cannot find a free loop device for %s", path);
    snprintf(device, LOOP_DEVICE_BYTES, "/dev/loop%d", number);
    int r = make_node(number, device, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = open(device, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (fd < 0) /* ENXIO: removed meanwhile */
        return error_errno(err, errno == ENXIO ? -EBUSY : -errno, "cannot open %s", device);
    struct loop_config config = {.fd = (__u32)file, .block_size = block_bytes};
    config.info.lo_flags = LO_FLAGS_DIRECT_IO | (read_only ? LO_FLAGS_READ_ONLY : 0);
    snprintf((char *)config.info.lo_file_name, LO_NAME_SIZE, "%s", path);
    if (ioctl(fd, LOOP_CONFIGURE, &config) < 0)
        return error_errno(err, -errno, "cannot attach %s to %s", path, device);
    struct loop_info64 info = {0};
    if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0 || !(info.lo_flags & LO_FLAGS_DIRECT_IO)) {
        ioctl(fd, LOOP_CLR_FD, 0);
        return error_set(err, -ENOTSUP, "cannot attach %s to %s: its file system has no direct I/O", path,
                         device);
    }
    return 0;
}

int loop_attach(const char *path, bool read_only, char ret_device[LOOP_DEVICE_BYTES], struct error *err)
{
    return loop_attach_blocks(path, read_only, LOOP_BLOCK_BYTES, ret_device, err);
}

int loop_attach_blocks(const char *path, bool read_only, unsigned block_bytes,
                       char ret_device[LOOP_DEVICE_BYTES], struct error *err)
{
    char device[LOOP_DEVICE_BYTES];
    _cleanup_close_ int file = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (file < 0)
        return error_errno(err, -errno, "cannot open %s for a loop device", path);
    _cleanup_close_ int control = -1;
    int r = open_control(&control, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < LOOP_ATTEMPTS; i++) {
        r = configure(control, file, path, read_only, block_bytes, device, err);
        if (r != -EBUSY)
            break;
        sleep_ms(1 + i);
    }
    if (r < 0)
        return r;
    memcpy(ret_device, device, sizeof device);
    return 0;
}

static bool read_backing(const char *name, char text[static LOOP_BACKING_BYTES])
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/sys/block/%s/loop/backing_file", name);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, LOOP_BACKING_BYTES - 1);
    if (n <= 0)
        return false;
    text[n] = '\0';
    if (text[n - 1] == '\n')
        text[n - 1] = '\0';
    return true;
}

static bool same_name(const char *backing, const char *path)
{
    size_t length = strlen(path);
    return strncmp(backing, path, length) == 0 &&
           (backing[length] == '\0' || strcmp(backing + length, DELETED_SUFFIX) == 0);
}

/* Asks only devices whose file has the same last name: the question goes to the file's server, and another's
 * may be dead or slow. */
static bool same_file(const char *device, const char *backing, const char *path, const struct stat *st)
{
    const char *a = strrchr(backing, '/'), *b = strrchr(path, '/');
    if (!a || !b || strcmp(a, b) != 0)
        return false;
    _cleanup_close_ int fd = open(device, O_RDONLY | O_CLOEXEC);
    struct loop_info64 info;
    return fd >= 0 && ioctl(fd, LOOP_GET_STATUS64, &info) == 0 && info.lo_inode == st->st_ino &&
           (dev_t)info.lo_device == st->st_dev;
}

bool loop_backing(const char *device, char ret_path[LOOP_BACKING_BYTES])
{
    const char *name = strrchr(device, '/');
    return read_backing(name ? name + 1 : device, ret_path);
}

int loop_find(const char *path, char ret_device[LOOP_DEVICE_BYTES], struct error *err)
{
    char real[PATH_MAX], backing[LOOP_BACKING_BYTES], device[LOOP_DEVICE_BYTES];
    struct stat st;
    bool exists = stat(path, &st) == 0;
    if (!realpath(path, real))
        snprintf(real, sizeof real, "%s", path);
    _cleanup_closedir_ DIR *d = opendir("/sys/block");
    if (!d)
        return error_errno(err, -errno, "cannot look for the loop device of %s in /sys/block", path);
    const struct dirent *entry;
    while ((entry = readdir(d))) {
        if (strncmp(entry->d_name, "loop", 4) != 0 || !read_backing(entry->d_name, backing))
            continue;
        if (snprintf(device, sizeof device, "/dev/%s", entry->d_name) >= (int)sizeof device)
            continue;
        if (same_name(backing, real) || (exists && same_file(device, backing, real, &st))) {
            memcpy(ret_device, device, sizeof device);
            return 0;
        }
    }
    return error_set(err, -ENOENT, "no loop device is attached to %s", path);
}

int loop_grow(const char *device, const char *path, uint64_t size_bytes, bool *ret_grown, struct error *err)
{
    uint64_t now = 0;
    struct stat st;
    _cleanup_close_ int fd = open(device, O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &now) < 0)
        return error_errno(err, -errno, "cannot find the size of %s", device);
    *ret_grown = now < size_bytes;
    if (!*ret_grown)
        return 0;
    /* The kernel may remember the file's old size for a second; the device takes what it remembers. */
    for (unsigned waited = 0;; waited += LOOP_POLL_MS) {
        struct statx fresh;
        if (statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_SIZE, &fresh) < 0 || stat(path, &st) < 0)
            return error_errno(err, -errno, "cannot find the size of %s", path);
        if ((uint64_t)st.st_size >= size_bytes)
            break;
        if (waited >= LOOP_DETACH_TIMEOUT_MS)
            return error_set(err, -ETIMEDOUT, "%s has %llu bytes, not %llu", path,
                             (unsigned long long)st.st_size, (unsigned long long)size_bytes);
        sleep_ms(LOOP_POLL_MS);
    }
    if (ioctl(fd, LOOP_SET_CAPACITY, 0) < 0)
        return error_errno(err, -errno, "cannot make %s larger", device);
    if (ioctl(fd, BLKGETSIZE64, &now) < 0 || now < size_bytes)
        return error_set(err, -EIO, "%s has %llu bytes, not %llu", device, (unsigned long long)now,
                         (unsigned long long)size_bytes);
    return 0;
}

int loop_keep(const char *device, struct error *err)
{
    struct loop_info64 info;
    _cleanup_close_ int fd = open(device, O_RDONLY | O_CLOEXEC);
    int r = fd < 0 ? -1 : ioctl(fd, LOOP_GET_STATUS64, &info);
    if (r == 0 && info.lo_flags & LO_FLAGS_AUTOCLEAR) {
        info.lo_flags &= ~(__u32)LO_FLAGS_AUTOCLEAR;
        r = ioctl(fd, LOOP_SET_STATUS64, &info);
    }
    return r < 0 ? error_errno(err, -errno, "cannot keep %s attached", device) : 0;
}

int loop_detach(const char *device, unsigned timeout_ms, bool lazy, struct error *err)
{
    char backing[LOOP_BACKING_BYTES], now[LOOP_BACKING_BYTES];
    const char *name = strrchr(device, '/');
    name = name ? name + 1 : device;
    if (!read_backing(name, backing))
        return 0;
    {
        _cleanup_close_ int fd = open(device, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return error_errno(err, -errno, "cannot detach %s", device);
        if (ioctl(fd, LOOP_CLR_FD, 0) < 0 && errno != ENXIO)
            return error_errno(err, -errno, "cannot detach %s", device);
    }
    /* With other users left the kernel only marks it: it is gone when its file is not shown any more. */
    for (unsigned waited = 0;; waited += LOOP_POLL_MS) {
        if (!read_backing(name, now) || strcmp(now, backing) != 0)
            return 0;
        if (waited >= timeout_ms) {
            /* Else its number is given to somebody else's file one day, while it is told as this one's. */
            struct error ignored = ERROR_INIT;
            int kept = lazy ? -EBUSY : loop_keep(device, &ignored);
            if (kept == -ENXIO)
                return 0;
            return error_set(err, -EBUSY, "cannot detach %s (%s): it is still in use; end what uses it (findmnt %s, fuser %s)%s", device,
                             backing, device, device, kept == 0 ? "" : ". It goes away with its last user");
        }
        sleep_ms(LOOP_POLL_MS);
    }
}
