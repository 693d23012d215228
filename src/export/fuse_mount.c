/* SPDX-License-Identifier: Apache-2.0 */
#include "export/fuse_mount.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "base/cleanup.h"

#define DEVICE_FUSE "/dev/fuse"
#define STALE_MOUNTS_LIMIT 16 /* dead mounts on top of each other */

/* Whether a file system is mounted at `directory`, without asking that file system. */
static int is_mount_point(const char *directory, bool *ret_mounted, struct error *err)
{
    struct statx st;
    if (statx(AT_FDCWD, directory, AT_STATX_DONT_SYNC | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE,
              &st) < 0) {
        if (errno == ENOTCONN) {
            *ret_mounted = true;
            return 0;
        }
        return error_errno(err, -errno, "cannot mount at %s", directory);
    }
    *ret_mounted = st.stx_attributes & STATX_ATTR_MOUNT_ROOT;
    if (!*ret_mounted && !S_ISDIR(st.stx_mode))
        return error_set(err, -ENOTDIR, "cannot mount at %s: it is not a directory", directory);
    return 0;
}

/* A server that died with its descriptors leaves a mount that answers everything with ENOTCONN. */
static int detach_stale(const char *directory, struct error *err)
{
    for (unsigned i = 0; i < STALE_MOUNTS_LIMIT; i++) {
        bool mounted = false;
        int r = is_mount_point(directory, &mounted, err);
        if (r < 0 || !mounted)
            return r;
        struct statfs st; /* unlike stat(2) never answered from the cache */
        if (statfs(directory, &st) == 0 || errno != ENOTCONN)
            break;
        if (umount2(directory, MNT_DETACH) < 0 && errno != EINVAL)
            return error_errno(err, -errno, "cannot detach the dead FUSE mount at %s", directory);
    }
    return error_set(
        err, -EBUSY,
        "cannot mount at %s: a file system is mounted there already. If it is a volume of a Tidemark that "
        "still runs, stop that first; or unmount it: umount %s",
        directory, directory);
}

static int check_empty(const char *directory, struct error *err)
{
    _cleanup_closedir_ DIR *d = opendir(directory);
    if (!d)
        return error_errno(err, -errno, "cannot mount at %s", directory);
    const struct dirent *entry;
    while ((entry = readdir(d)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            return error_set(
                err, -ENOTEMPTY,
                "cannot mount at %s: the directory is not empty (it holds %s). Give an empty directory, or "
                "move its content away",
                directory, entry->d_name);
    return 0;
}

static int open_device(int *ret_fd, struct error *err)
{
    int fd = open(DEVICE_FUSE, O_RDWR);
    if (fd >= 0) {
        *ret_fd = fd;
        return 0;
    }
    switch (errno) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
        return error_set(err, -ENODEV,
                         "cannot open " DEVICE_FUSE
                         ": the kernel has no FUSE here. Load it: modprobe fuse (in a "
                         "container: pass the device " DEVICE_FUSE " in)");
    case EACCES:
    case EPERM:
        return error_set(err, -errno,
                         "cannot open " DEVICE_FUSE
                         ": permission denied. Run as root; in a container, privileged or "
                         "with the device " DEVICE_FUSE);
    default:
        return error_errno(err, -errno, "cannot open " DEVICE_FUSE);
    }
}

static int clone_device(int fd, int *ret_clone, struct error *err)
{
    _cleanup_close_ int clone = open(DEVICE_FUSE, O_RDWR | O_NONBLOCK);
    uint32_t master = (uint32_t)fd;
    if (clone < 0 || ioctl(clone, FUSE_DEV_IOC_CLONE, &master) < 0)
        return error_errno(err, -errno, "cannot clone the descriptor of " DEVICE_FUSE);
    *ret_clone = take_fd(clone);
    return 0;
}

int fuse_mount(const char *directory, const char *name, int *ret_fd, int *ret_nonblock_fd, struct error *err)
{
    char data[128];
    int r = detach_stale(directory, err);
    if (r == 0)
        r = check_empty(directory, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = -1;
    _cleanup_close_ int clone = -1;
    r = open_device(&fd, err);
    if (r < 0)
        return r;
    snprintf(data, sizeof data, "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
    if (mount(name, directory, FUSE_MOUNT_TYPE, MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, data) < 0) {
        if (errno == EPERM)
            return error_set(
                err, -EPERM,
                "cannot mount at %s: not permitted. Run as root; in a container, with CAP_SYS_ADMIN",
                directory);
        if (errno == ENODEV)
            return error_set(err, -ENODEV,
                             "cannot mount at %s: the kernel has no FUSE here. Load it: modprobe fuse",
                             directory);
        return error_errno(err, -errno, "cannot mount a FUSE file system at %s", directory);
    }
    r = clone_device(fd, &clone, err);
    if (r < 0) {
        umount2(directory, MNT_DETACH);
        return r;
    }
    *ret_fd = take_fd(fd);
    *ret_nonblock_fd = take_fd(clone);
    return 0;
}

int fuse_mount_remove_unused(const char *directory, struct error *err)
{
    if (umount2(directory, UMOUNT_NOFOLLOW) == 0 || errno == EINVAL || errno == ENOENT || errno == EBUSY)
        return 0;
    return error_errno(err, -errno, "cannot unmount %s", directory);
}

int fuse_mount_remove(const char *directory, struct error *err)
{
    if (umount2(directory, UMOUNT_NOFOLLOW) == 0 || errno == EINVAL || errno == ENOENT)
        return 0;
    if (umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW) == 0 || errno == EINVAL)
        return 0;
    return error_errno(err, -errno, "cannot unmount %s", directory);
}
