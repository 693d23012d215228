/* SPDX-License-Identifier: Apache-2.0 */
/* Sources: image files and block devices that are adopted as a volume's backing. What the engine would refuse
 * when it takes one for itself is found out here first, so that a message can say who uses it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/units.h"
#include "control/apply_internal.h"
#include "control/mounts.h"

/* Where the device, or one made from it, is mounted. */
static bool is_mounted(const char *device, char text[MOUNTS_USERS_BYTES])
{
    char target[256];
    if (mounts_target(device, target, sizeof target) < 0)
        return false;
    snprintf(text, MOUNTS_USERS_BYTES, "it is mounted on %s: unmount it first (umount %s)", target, target);
    return true;
}

static int check_device(const char *path, int fd, uint64_t *ret_bytes, struct error *err)
{
    char users[MOUNTS_USERS_BYTES];
    int read_only = 0;
    if (ioctl(fd, BLKGETSIZE64, ret_bytes) < 0 || ioctl(fd, BLKROGET, &read_only) < 0)
        return error_errno(err, -errno, "cannot find the size of %s", path);
    if (read_only) /* Linux opens it for writing all the same */
        return error_set(err, -EACCES, "cannot adopt %s: it is read-only (blockdev --setrw, or attach it anew)", path);
    if (is_mounted(path, users))
        return error_set(err, -EBUSY, "cannot adopt %s: %s", path, users);
    _cleanup_close_ int exclusive = open(path, O_RDWR | O_EXCL | O_CLOEXEC);
    if (exclusive < 0 && errno == EBUSY)
        return error_set(err, -EBUSY,
                         "cannot adopt %s: it is in use (a partition of it is mounted, or it belongs to LVM, "
                         "RAID, swap or "
                         "another application); `lsblk %s` tells by what: stop that first",
                         path, path);
    if (exclusive < 0)
        return error_errno(err, -errno, "cannot adopt %s: cannot open it for writing", path);
    return 0;
}

static int check_file(const char *path, int fd, const struct stat *st, uint64_t *ret_bytes, struct error *err)
{
    char device[LOOP_DEVICE_BYTES], users[MOUNTS_USERS_BYTES];
    struct error ignored = ERROR_INIT;
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    *ret_bytes = (uint64_t)st->st_size;
    if (loop_find(path, device, &ignored) == 0)
        return is_mounted(device, users)
                   ? error_set(err, -EBUSY, "cannot adopt %s: it is attached to %s, and %s", path, device,
                               users)
                   : error_set(err, -EBUSY,
                               "cannot adopt %s: it is attached to %s: detach it first (losetup -d %s)", path,
                               device, device);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || fcntl(fd, F_OFD_SETLK, &whole) < 0)
        return error_set(
            err, -EBUSY,
            "cannot adopt %s: another program has locked it (a virtual machine, or another engine of "
            "Tidemark); `lslocks` tells which one: stop it first",
            path);
    return 0; /* the locks go with the descriptor */
}

static int check_size(const char *path, bool device, uint64_t bytes, struct error *err)
{
    char text[UNITS_TEXT_BYTES];
    uint64_t whole =
        (bytes + APP_VOLUME_SIZE_UNIT_BYTES - 1) / APP_VOLUME_SIZE_UNIT_BYTES * APP_VOLUME_SIZE_UNIT_BYTES;
    if (bytes < APP_VOLUME_SIZE_BYTES_MIN)
        return error_set(err, -EINVAL, "cannot adopt %s: it has %s; a volume has at least %s", path,
                         units_format_bytes(bytes, text), "16 MiB");
    if (whole != bytes && device)
        return error_set(
            err, -EINVAL,
            "cannot adopt %s: its %llu bytes are not a multiple of 4096; give the partition or logical "
            "volume a size that is",
            path, (unsigned long long)bytes);
    if (whole != bytes)
        return error_set(
            err, -EINVAL,
            "cannot adopt %s: its %llu bytes are not a multiple of 4096; `truncate -s %llu %s` adds what "
            "is missing, and what is in it stays as it is",
            path, (unsigned long long)bytes, (unsigned long long)whole, path);
    return 0;
}

/* What was asked for is wrong, or has to be changed first: none of it is a failure of ours. */
static int cannot_open(const char *path, int code, struct error *err)
{
    switch (code) {
    case ENOENT:
        return error_set(err, -ENOENT,
                         "cannot adopt %s: there is no such file; leave `source` out for a new volume", path);
    case EISDIR:
        return error_set(
            err, -EISDIR,
            "cannot adopt %s: it is a directory; `source` is an image file or a block device (the device "
            "that is mounted there, after an unmount)",
            path);
    case EROFS:
        return error_set(err, -EACCES,
                         "cannot adopt %s: its file system is read-only; mount it for writing first (`findmnt -T %s` "
                         "tells which, `mount -o remount,rw` does it)",
                         path, path);
    case ETXTBSY:
        return error_set(err, -EBUSY, "cannot adopt %s: it is a program that runs", path);
    case ENXIO: /* a socket */
        return error_set(err, -EINVAL, "cannot adopt %s: it is neither a file nor a block device", path);
    default:
        return error_errno(err, -code, "cannot adopt %s: cannot open it for reading and writing", path);
    }
}

int source_check(const char *path, uint64_t *ret_bytes, struct error *err)
{
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return cannot_open(path, errno, err);
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot adopt %s", path);
    bool device = S_ISBLK(st.st_mode);
    if (!device && !S_ISREG(st.st_mode))
        return error_set(err, -EINVAL, "cannot adopt %s: it is neither a file nor a block device", path);
    uint64_t bytes = 0;
    int r = device ? check_device(path, fd, &bytes, err) : check_file(path, fd, &st, &bytes, err);
    if (r == 0)
        r = check_size(path, device, bytes, err);
    if (r == 0)
        *ret_bytes = bytes;
    return r;
}

/* What is there has to fit what is asked for: nothing is ever made on it. */
static int check_content(const struct app_volume *v, struct error *err)
{
    char found[MOUNTS_TYPE_BYTES];
    if (!v->mount_path)
        return 0;
    int r = mounts_probe(v->source, found, err);
    if (r < 0)
        return r;
    const char *wanted = v->fs_type == APP_FS_FOUND ? "a file system" : app_fs_type_name(v->fs_type);
    if (!found[0])
        return error_set(
            err, -EINVAL,
            "volume %s cannot be mounted: %s holds no file system that can be recognized, and what is "
            "adopted is never formatted; leave out mountPath, or make %s on it first",
            v->name, v->source, wanted);
    if (strcmp(found, "gpt") == 0 || strcmp(found, "dos") == 0)
        return error_set(
            err, -EINVAL,
            "volume %s cannot be mounted: %s holds a partition table (%s); adopt the partition that is "
            "wanted, or leave out mountPath to protect the whole disk",
            v->name, v->source, found);
    if (v->fs_type != APP_FS_FOUND && strcmp(found, wanted) != 0)
        return error_set(err, -EINVAL, "volume %s: %s holds %s, but fsType is %s; leave fsType out", v->name,
                         v->source, found, wanted);
    return 0;
}

/* Beside what `detach` has left there. */
static bool is_own(const struct control *control, const char *path)
{
    size_t state_bytes = strlen(control->state_directory);
    return strncmp(path, control->state_directory, state_bytes) == 0 && path[state_bytes] == '/' &&
           strncmp(path + state_bytes, "/detached/", 10) != 0;
}

static int check_one(struct control *control, struct app_spec *spec, size_t i, struct error *err)
{
    struct app_volume *v = &spec->volumes[i];
    char real[PATH_MAX], backing[LOOP_BACKING_BYTES], text[UNITS_TEXT_BYTES], other[UNITS_TEXT_BYTES];
    uint64_t bytes;
    int r = source_check(v->source, &bytes, err);
    if (r < 0)
        return r;
    if (!realpath(v->source, real))
        return error_errno(err, -errno, "cannot adopt %s", v->source);
    if (is_own(control, real))
        return error_set(err, -EINVAL, "cannot adopt %s: it belongs to Tidemark itself", v->source);
    if (loop_backing(real, backing) && is_own(control, backing)) /* its name is another one's after the next start */
        return error_set(err, -EINVAL, "cannot adopt %s: it is the device of a volume or view of Tidemark (%s)", v->source, backing);
    for (size_t k = 0; k < spec->volume_count; k++) {
        size_t length = spec->volumes[k].mount_path ? strlen(spec->volumes[k].mount_path) : 0;
        if (k != i && spec->volumes[k].source && strcmp(spec->volumes[k].source, v->source) == 0)
            return error_set(err, -EINVAL, "volumes %s and %s have the same source %s", spec->volumes[k].name,
                             v->name, v->source);
        if (length && strncmp(real, spec->volumes[k].mount_path, length) == 0 && real[length] == '/')
            return error_set(
                err, -EINVAL,
                "cannot adopt %s: it lies below %s, where a volume of the application is mounted", v->source,
                spec->volumes[k].mount_path);
    }
    if (v->size_bytes == 0)
        v->size_bytes = bytes;
    if (v->size_bytes != bytes)
        return error_set(
            err, -EINVAL,
            "volume %s: size is %s, but %s has %s; leave size out (it can be made larger once it is adopted)",
            v->name, units_format_bytes(v->size_bytes, text), v->source, units_format_bytes(bytes, other));
    return check_content(v, err);
}

int sources_check(struct control *control, struct app_spec *spec, const struct app_spec *old,
                  struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < spec->volume_count && r == 0; i++) {
        struct app_volume *v = &spec->volumes[i];
        const struct app_volume *was = NULL;
        for (size_t k = 0; old && k < old->volume_count; k++)
            if (strcmp(old->volumes[k].name, v->name) == 0)
                was = &old->volumes[k];
        if (was && v->size_bytes == 0)
            v->size_bytes = was->size_bytes;
        if (v->source && !was) /* else it is in use: by ourselves */
            r = check_one(control, spec, i, err);
    }
    return r;
}

const char *source_warning(const struct app_spec *spec)
{
    struct error ignored = ERROR_INIT;
    char found[MOUNTS_TYPE_BYTES];
    for (size_t i = 0; i < spec->volume_count; i++)
        if (spec->volumes[i].source && mounts_probe(spec->volumes[i].source, found, &ignored) == 0 &&
            (strcmp(found, "gpt") == 0 || strcmp(found, "dos") == 0))
            return "a source holds a partition table: the whole disk is protected, and its partitions are "
                   "found on the volume's "
                   "device (partprobe)";
    return NULL;
}
