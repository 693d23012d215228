/* SPDX-License-Identifier: Apache-2.0 */
/* Staging, publishing and taking back, on this node. Each can be repeated. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "control/mounts.h"
#include "control/process.h"
#include "csi/node_internal.h"

#define GROW_TIMEOUT_MS 600000
#define MOUNT_TIMEOUT_MS 300000
#define UNMOUNT_TRIES 64 /* of what lies on top of each other */

static int run(const char *const *argv, int timeout_ms, const char *what, const char *on, struct error *err)
{
    const struct process_options options = {.argv = argv, .inherit_fd = -1};
    struct process_result result;
    char text[PROCESS_TAIL_BYTES + 64];
    int r = process_run(&options, timeout_ms, &result, err);
    if (r < 0)
        return error_context(err, "cannot %s %s", what, on);
    if (result.exit_status != 0)
        return error_set(err, -EIO, "cannot %s %s: %s: %s", what, on, argv[0],
                         process_describe(&result, text, sizeof text));
    return 0;
}

/* N2 */
static int make_file_system(struct csi_node *node, const struct node_volume *v, const char *device,
                            bool created, struct error *err)
{
    char found[MOUNTS_TYPE_BYTES];
    int r = mounts_probe(device, found, err);
    if (r < 0 || strcmp(found, v->fs_type) == 0)
        return r;
    if (*found)
        return error_set(
            err, -EEXIST,
            "volume %s holds %s, but %s is asked for: nothing was changed; ask for what is there "
            "(csi.storage.k8s.io/fstype), or use another volume",
            v->handle, found, v->fs_type);
    if (v->adopted)
        return error_set(err, -ENODATA,
                         "volume %s was adopted with %s on it, and its device (%s) holds nothing that can be recognized: nothing was "
                         "changed, since what is adopted is never formatted",
                         v->handle, v->fs_type, device);
    log_info(node->options.log, "volume %s: making %s on %s", v->handle, v->fs_type, device);
    return mounts_make(device, v->fs_type, created, err);
}

/* A clone is mounted beside its original, whose UUID its xfs has. */
static int mount_device(const struct node_volume *v, const char *device, struct error *err)
{
    char flags[NODE_FLAGS_BYTES + 8];
    if (!*v->flags)
        return mounts_mount(device, v->staging, v->fs_type, true, err);
    snprintf(flags, sizeof flags, "%s%s", v->flags, strcmp(v->fs_type, "xfs") == 0 ? ",nouuid" : "");
    const char *const argv[] = {"mount", "-t", v->fs_type, "-o", flags, device, v->staging, NULL};
    return run(argv, MOUNT_TIMEOUT_MS, "mount volume", v->handle, err);
}

int node_mount_stage(struct csi_node *node, const struct node_volume *v, const char *device, bool created,
                     struct error *err)
{
    char source[256];
    int r = 0;
    if (v->block)
        return 0;
    while (r == 0 && mounts_source(v->staging, source, sizeof source) == 0) {
        if (strcmp(source, device) == 0)
            return 0;
        log_warning(node->options.log, "volume %s: %s was mounted on %s; unmounting it", v->handle, source,
                    v->staging);
        r = mounts_unmount(v->staging, true, err); /* of a device that is gone: the node was restarted, say */
    }
    if (r == 0)
        r = io_mkdirs(v->staging, 0750, err);
    if (r == 0)
        r = make_file_system(node, v, device, created, err);
    return r == 0 ? mount_device(v, device, err) : r;
}

int node_mount_unstage(const struct node_volume *v, struct error *err)
{
    char source[256];
    int r = 0;
    for (int i = 0; i < UNMOUNT_TRIES && r == 0 && mounts_source(v->staging, source, sizeof source) == 0; i++)
        r = mounts_unmount(v->staging, false, err);
    return r;
}

/* ---- publishing ---- */

static int make_target(const char *target, bool block, struct error *err)
{
    char parent[PATH_MAX];
    struct stat st;
    snprintf(parent, sizeof parent, "%s", target);
    *strrchr(parent, '/') = '\0';
    int r = *parent ? io_mkdirs(parent, 0750, err) : 0;
    if (r < 0)
        return r;
    if (lstat(target, &st) == 0)
        return S_ISDIR(st.st_mode) == !block && !S_ISLNK(st.st_mode)
                   ? 0
                   : error_set(err, -EINVAL, "target_path %s is there and is no %s", target,
                               block ? "file" : "directory");
    if (!block)
        return mkdir(target, 0750) < 0 ? error_errno(err, -errno, "cannot make target_path %s", target) : 0;
    _cleanup_close_ int fd = open(target, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0660);
    return fd < 0 ? error_errno(err, -errno, "cannot make target_path %s", target) : 0;
}

/* 1: what shall be at the target is there; 0: nothing is mounted there; -EEXIST: something else. */
static int look_at_target(const struct node_volume *v, const char *device, const char *target, bool read_only,
                          struct error *err)
{
    char source[256];
    struct stat st, of_device;
    struct statvfs fs;
    if (mounts_source(target, source, sizeof source) < 0)
        return 0;
    if (v->block) {
        if (stat(target, &st) == 0 && stat(device, &of_device) == 0 && S_ISBLK(st.st_mode) &&
            st.st_rdev == of_device.st_rdev)
            return 1;
    } else if (strcmp(source, device) == 0 && statvfs(target, &fs) == 0) {
        if (!!(fs.f_flag & ST_RDONLY) == read_only)
            return 1;
        return error_set(err, -EEXIST, "volume %s is mounted on %s %s: unpublish it first", v->handle, target,
                         read_only ? "writable, not read-only" : "read-only, not writable");
    }
    return error_set(err, -EEXIST, "cannot mount volume %s on %s: %s is mounted there; unmount that first",
                     v->handle, target, source);
}

int node_mount_publish(const struct node_volume *v, const char *device, const char *target, bool read_only,
                       struct error *err)
{
    int r = look_at_target(v, device, target, read_only, err);
    if (r != 0)
        return r > 0 ? 0 : r;
    r = make_target(target, v->block, err);
    if (r < 0)
        return r;
    const char *from = v->block ? device : v->staging;
    if (mount(from, target, NULL, MS_BIND, NULL) < 0)
        return error_errno(err, -errno, "cannot bind volume %s (%s) to %s", v->handle, from, target);
    if (read_only && mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0) {
        r = -errno;
        umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW);
        return error_errno(err, r, "cannot make %s read-only", target);
    }
    return 0;
}

int node_mount_unpublish(const char *target, struct error *err)
{
    char source[256];
    struct stat st;
    for (int i = 0; i < UNMOUNT_TRIES && mounts_source(target, source, sizeof source) == 0; i++)
        if (umount2(target, UMOUNT_NOFOLLOW) < 0) {
            int r = -errno;
            if (r == -EBUSY)
                return mounts_unmount(target, false, err); /* tells who uses it */
            return error_errno(err, r, "cannot unmount %s", target);
        }
    if (lstat(target, &st) < 0)
        return errno == ENOENT ? 0 : error_errno(err, -errno, "cannot look at %s", target);
    if ((S_ISDIR(st.st_mode) ? rmdir(target) : unlink(target)) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove target_path %s", target);
    return 0;
}

/* ---- size ---- */

int node_device_size(const char *device, uint64_t *ret_bytes, struct error *err)
{
    _cleanup_close_ int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, ret_bytes) < 0)
        return error_errno(err, -errno, "cannot tell the size of %s", device);
    return 0;
}

int node_mount_grow(const struct node_volume *v, const char *device, struct error *err)
{
    const char *const ext4[] = {"resize2fs", device, NULL};
    const char *const xfs[] = {"xfs_growfs", "-d", v->staging, NULL};
    if (v->block)
        return 0;
    return run(strcmp(v->fs_type, "xfs") == 0 ? xfs : ext4, GROW_TIMEOUT_MS, "grow the file system of volume",
               v->handle, err);
}
