/* SPDX-License-Identifier: Apache-2.0 */
#include "control/mounts.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/btrfs.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/endian.h"
#include "base/io.h"
#include "control/process.h"

#define MAKE_TIMEOUT_MS 300000
#define PROBE_TIMEOUT_MS 60000
#define UNSEEN_WAIT_MS 3000u /* of what a process left that has ended: the kernel lets go of io_uring's files only afterwards */
#define UNSEEN_POLL_MS 20u

/* Of btrfs's superblock, on each of its devices (https://btrfs.readthedocs.io/en/latest/dev/On-disk-format.html). */
#define BTRFS_SUPER_OFFSET 65536u
#define BTRFS_SUPER_SEEDING (1ull << 32)
struct btrfs_super_head {
    uint8_t checksum[32], fsid[16];
    struct le64 offset, flags;
    uint8_t magic[8];
    struct le64 generation, root, chunk_root, log_root, log_root_transid, total_bytes, bytes_used, root_directory, num_devices;
};
static_assert(offsetof(struct btrfs_super_head, flags) == 56 && offsetof(struct btrfs_super_head, num_devices) == 136,
              "as the kernel has it");

/* mountinfo writes blanks and backslashes as \ooo. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from; to++) {
        unsigned value;
        if (from[0] == '\\' && sscanf(from + 1, "%3o", &value) == 1) {
            *to = (char)value;
            from += 4;
        } else
            *to = *from++;
    }
    *to = '\0';
}

/* The path as mountinfo has it, without symbolic links. */
static const char *without_links(const char *path, char room[PATH_MAX])
{
    return realpath(path, room) ? room : path;
}

/* The last line of mountinfo where target is `directory`, or the first where source is `device`, or where target lies below
 * `above`. */
static int find_mount(const char *directory, const char *device, const char *above, char *ret, size_t size)
{
    _cleanup_fclose_ FILE *file = fopen("/proc/self/mountinfo", "re");
    _cleanup_free_ char *line = NULL;
    size_t capacity = 0;
    int r = -ENOENT;
    while (file && getline(&line, &capacity, file) >= 0) {
        char *save = NULL, *fields[5] = {0}, *dash = strstr(line, " - ");
        if (!dash)
            continue;
        *dash = '\0';
        char *word = strtok_r(line, " ", &save);
        for (int i = 0; i < 5 && word; i++, word = strtok_r(NULL, " ", &save))
            fields[i] = word;
        char *type = strtok_r(dash + 3, " \n", &save), *source = type ? strtok_r(NULL, " \n", &save) : NULL;
        if (!fields[4] || !source)
            continue;
        unescape(fields[4]);
        unescape(source);
        if (directory && strcmp(fields[4], directory) == 0) {
            snprintf(ret, size, "%s", source);
            r = 0;
        }
        size_t length = above ? strlen(above) : 0;
        if ((device && strcmp(source, device) == 0) ||
            (above && strncmp(fields[4], above, length) == 0 && fields[4][length] == '/')) {
            snprintf(ret, size, "%s", fields[4]);
            return 0;
        }
    }
    return r;
}

int mounts_source(const char *directory, char *ret_source, size_t size)
{
    char real[PATH_MAX];
    return find_mount(without_links(directory, real), NULL, NULL, ret_source, size);
}

int mounts_target(const char *device, char *ret_directory, size_t size)
{
    return find_mount(NULL, device, NULL, ret_directory, size);
}

/* The value of KEY=value in blkid's "export" output. */
static bool blkid_value(const char *output, const char *key, char ret[MOUNTS_TYPE_BYTES])
{
    size_t length = strlen(key);
    for (const char *line = output; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (strncmp(line, key, length) == 0 && line[length] == '=') {
            snprintf(ret, MOUNTS_TYPE_BYTES, "%.*s", (int)strcspn(line + length + 1, "\n"),
                     line + length + 1);
            return true;
        }
    return false;
}

/* Whether the kernel gives a copy of a btrfs an identity of its own while it is mounted (temp_fsid), as Linux does from 6.7 on. Older
 * ones take copy and original for one another. */
static bool kernel_mounts_copies_of_btrfs(void)
{
    struct utsname system;
    unsigned major = 0, minor = 0;
    if (access("/sys/fs/btrfs/features", F_OK) == 0)
        return access("/sys/fs/btrfs/features/temp_fsid", F_OK) == 0;
    return uname(&system) == 0 && sscanf(system.release, "%u.%u", &major, &minor) == 2 && (major > 6 || (major == 6 && minor >= 7));
}

/* Of a copy of a btrfs: its type, or why it is not to be mounted. Devices of one file system find one another by its UUID, which the
 * original's have, too. */
static void probe_copy_of_btrfs(const char *device, char ret_type[MOUNTS_TYPE_BYTES])
{
    struct btrfs_super_head head;
    _cleanup_close_ int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || io_pread_full(fd, &head, sizeof head, BTRFS_SUPER_OFFSET) < 0 || le64_get(head.num_devices) != 1 ||
        le64_get(head.flags) & BTRFS_SUPER_SEEDING)
        snprintf(ret_type, MOUNTS_TYPE_BYTES, "btrfs of several devices");
    else if (!kernel_mounts_copies_of_btrfs())
        snprintf(ret_type, MOUNTS_TYPE_BYTES, "btrfs (before Linux 6.7)");
}

static int probe(const char *device, bool copy, char ret_type[MOUNTS_TYPE_BYTES], struct error *err)
{
    char journal[MOUNTS_TYPE_BYTES];
    const char *const argv[] = {"blkid", "-p", "-o", "export", device, NULL};
    struct process_options options = {.argv = argv, .inherit_fd = -1};
    struct process_result result;
    char text[PROCESS_TAIL_BYTES + 64];
    int r = process_run(&options, PROBE_TIMEOUT_MS, &result, err);
    if (r < 0)
        return error_context(err, "cannot look what is on %s", device);
    if (result.exit_status == 2 && !result.timed_out && !result.tail[0])
        ret_type[0] = '\0';
    else if (result.exit_status == 8)
        snprintf(ret_type, MOUNTS_TYPE_BYTES, "several signatures");
    else if (result.exit_status != 0)
        return error_set(err, -EIO, "cannot look what is on %s: blkid: %s", device,
                         process_describe(&result, text, sizeof text));
    else if (copy && blkid_value(result.output, "EXT_JOURNAL", journal))
        snprintf(ret_type, MOUNTS_TYPE_BYTES, "ext4 with a journal elsewhere");
    else if (!blkid_value(result.output, "TYPE", ret_type) && !blkid_value(result.output, "PTTYPE", ret_type))
        snprintf(ret_type, MOUNTS_TYPE_BYTES, "unknown data");
    else if (copy && strcmp(ret_type, "btrfs") == 0)
        probe_copy_of_btrfs(device, ret_type);
    return 0;
}

int mounts_probe(const char *device, char ret_type[MOUNTS_TYPE_BYTES], struct error *err)
{
    return probe(device, false, ret_type, err);
}

int mounts_probe_copy(const char *device, char ret_type[MOUNTS_TYPE_BYTES], struct error *err)
{
    return probe(device, true, ret_type, err);
}

int mounts_make(const char *device, const char *type, bool zeroed, struct error *err)
{
    /* No discard first: the volume is empty, and the journal would hold it. */
    const char *const ext4_zeroed[] = {"mkfs.ext4", "-q", "-F", "-E", "nodiscard,assume_storage_prezeroed=1",
                                       device,      NULL};
    const char *const ext4[] = {
        "mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device, NULL};
    const char *const xfs[] = {"mkfs.xfs", "-q", "-K", device, NULL}, *const btrfs[] = {"mkfs.btrfs", "-q", "-K", device, NULL};
    bool is_xfs = strcmp(type, "xfs") == 0, is_btrfs = strcmp(type, "btrfs") == 0;
    struct process_options options = {.argv = is_xfs ? xfs : is_btrfs ? btrfs : zeroed ? ext4_zeroed : ext4, .inherit_fd = -1};
    struct process_result result;
    char text[PROCESS_TAIL_BYTES + 64];
    int r = process_run(&options, MAKE_TIMEOUT_MS, &result, err);
    if (r == -ENOENT)
        return error_set(err, -ENOENT,
                         "cannot make a file system on %s: %s is not installed (apt-get install %s)", device,
                         options.argv[0], is_xfs ? "xfsprogs" : is_btrfs ? "btrfs-progs" : "e2fsprogs");
    if (r < 0)
        return error_context(err, "cannot make a file system on %s", device);
    if (result.exit_status != 0)
        return error_set(err, -EIO, "cannot make a file system on %s: %s: %s", device, options.argv[0],
                         process_describe(&result, text, sizeof text));
    return 0;
}

int mounts_prepare(const char *directory, bool *ret_created, struct error *err)
{
    char source[256];
    struct stat st;
    if (mounts_source(directory, source, sizeof source) == 0)
        return error_set(err, -EBUSY,
                         "cannot mount on %s: %s%s is mounted there; unmount it or choose another directory",
                         directory, source[0] == '/' ? "" : "a file system of source ", source);
    if (lstat(directory, &st) < 0 && errno == ENOENT) {
        int r = io_mkdirs(directory, 0755, err);
        if (r >= 0 && ret_created)
            *ret_created = true;
        return r;
    }
    _cleanup_closedir_ DIR *dir = opendir(directory);
    if (!dir && errno == ENOENT)
        return error_set(err, -EINVAL, "cannot mount on %s: it is a symbolic link that leads to nothing", directory);
    if (!dir)
        return error_errno(err, -errno, "cannot mount on %s", directory);
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            return error_set(err, -ENOTEMPTY,
                             "cannot mount on %s: it is not empty (it holds %s), and a mount would hide "
                             "that; move it away "
                             "or choose another directory",
                             directory, entry->d_name);
    return 0;
}

int mounts_mount(const char *device, const char *directory, const char *type, bool copy, struct error *err)
{
    const char *data = copy && strcmp(type, "xfs") == 0 ? "nouuid" : NULL;
    if (mount(device, directory, type, MS_NOATIME, data) == 0)
        return 0;
    int r = -errno;
    if (r == -EUCLEAN || r == -EINVAL || r == -EIO)
        return error_errno(
            err, r, "cannot mount %s (%s) on %s; the kernel's log (dmesg) tells more, `fsck -n %s` checks it",
            device, type, directory, device);
    if (r == -ENODEV)
        return error_set(err, r, "cannot mount %s on %s: the kernel does not know %s (modprobe %s)", device,
                         directory, type, type);
    return error_errno(err, r, "cannot mount %s (%s) on %s", device, type, directory);
}

int mounts_mount_salvaged(const char *device, const char *directory, const char *type, struct error *err)
{
    bool xfs = strcmp(type, "xfs") == 0;
    const char *without_log = xfs ? "nouuid,norecovery" : strcmp(type, "btrfs") == 0 ? "rescue=usebackuproot:nologreplay" : "noload";
    if (mount(device, directory, type, MS_NOATIME | MS_RDONLY, xfs ? "nouuid" : NULL) == 0 ||
        mount(device, directory, type, MS_NOATIME | MS_RDONLY, without_log) == 0)
        return 0;
    return error_errno(err, -errno, "cannot mount %s (%s) on %s; `fsck` may repair it (what it writes stays in the view)",
                       device, type, directory);
}

static int in_use(const char *directory, struct error *err)
{
    char users[MOUNTS_USERS_BYTES], below[PATH_MAX];
    size_t count = mounts_users(directory, users);
    if (!count && find_mount(NULL, NULL, directory, below, sizeof below) == 0)
        return error_set(err, -EBUSY, "cannot unmount %s: %s is mounted below it; unmount that first", directory, below);
    return error_set(
        err, -EBUSY,
        "cannot unmount %s: it is used by %s; stop %s (of a volume spec.lifecycle.stop can do it)", directory,
        count ? users
              : "somebody who cannot be seen from here (another mount namespace, a swap "
                "file or loop device on it)",
        count == 1 ? "it" : "them");
}

static int unmount(const char *directory)
{
    return umount2(directory, UMOUNT_NOFOLLOW) == 0 ? 0 : -errno;
}

static bool is_seen_in_use(const char *directory)
{
    char users[MOUNTS_USERS_BYTES], below[PATH_MAX];
    return mounts_users(directory, users) > 0 || find_mount(NULL, NULL, directory, below, sizeof below) == 0;
}

int mounts_unmount(const char *path, bool force, struct error *err)
{
    char source[256], real[PATH_MAX];
    const char *directory = without_links(path, real);
    if (mounts_source(directory, source, sizeof source) < 0)
        return 0;
    int r = unmount(directory);
    bool wait = r == -EBUSY && !force && !is_seen_in_use(directory);
    for (unsigned waited_ms = 0; wait && r == -EBUSY && waited_ms < UNSEEN_WAIT_MS; waited_ms += UNSEEN_POLL_MS) {
        nanosleep(&(struct timespec){.tv_nsec = UNSEEN_POLL_MS * 1000000L}, NULL);
        r = unmount(directory);
    }
    if (r == 0)
        return 0;
    if (!force && r == -EBUSY)
        return in_use(directory, err);
    if (force) {
        _cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0)
            syncfs(fd);
        if (umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
            return 0;
        r = -errno;
    }
    return error_errno(err, r, "cannot unmount %s", directory);
}

/* ext4 keeps some of its blocks for itself, never a sixteenth. */
static bool fills_device(const char *device, const char *directory)
{
    struct statvfs fs;
    uint64_t bytes = 0;
    _cleanup_close_ int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) < 0 || statvfs(directory, &fs) < 0)
        return false;
    return (uint64_t)fs.f_blocks * fs.f_frsize >= bytes - bytes / 16;
}

static int grow_btrfs(const char *device, const char *directory, struct error *err)
{
    struct btrfs_ioctl_vol_args arguments = {.name = "max"};
    _cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BTRFS_IOC_RESIZE, &arguments) < 0)
        return error_errno(err, -errno, "the device %s has grown, but not its file system (`btrfs filesystem resize max %s` does it)", device,
                           directory);
    return 0;
}

int mounts_grow(const char *device, const char *directory, bool sure, struct error *err)
{
    char type[MOUNTS_TYPE_BYTES], text[PROCESS_TAIL_BYTES + 64];
    const char *const ext4[] = {"resize2fs", device, NULL}, *const xfs[] = {"xfs_growfs", "-d", directory, NULL};
    struct process_result result;
    if (!sure && fills_device(device, directory))
        return 0;
    int r = mounts_probe(device, type, err);
    bool is_xfs = r == 0 && strcmp(type, "xfs") == 0;
    if (r == 0 && strcmp(type, "btrfs") == 0)
        return grow_btrfs(device, directory, err);
    if (r < 0 || (!is_xfs && strcmp(type, "ext4") != 0 && strcmp(type, "ext3") != 0))
        return r;
    struct process_options options = {.argv = is_xfs ? xfs : ext4, .inherit_fd = -1};
    r = process_run(&options, MAKE_TIMEOUT_MS, &result, err);
    if (r < 0)
        return error_context(err, "the device %s has grown, but not its file system: %s", device, options.argv[0]);
    if (result.exit_status != 0)
        return error_set(err, -EIO, "the device %s has grown, but not its file system: %s: %s", device, options.argv[0],
                         process_describe(&result, text, sizeof text));
    return 0;
}

/* How process `pid` uses device `dev`: "cwd", "root", "exe", "an open file", "a mapped file"; NULL: it does
 * not. */
static const char *use_of(const char *pid, dev_t dev)
{
    static const char *const links[] = {"cwd", "root", "exe"};
    char path[320];
    struct stat st;
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, links[i]);
        if (stat(path, &st) == 0 && st.st_dev == dev)
            return links[i];
    }
    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    _cleanup_closedir_ DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));)
        if (entry->d_name[0] != '.' && fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && st.st_dev == dev)
            return "an open file";
    snprintf(path, sizeof path, "/proc/%s/maps", pid);
    _cleanup_fclose_ FILE *maps = fopen(path, "re");
    _cleanup_free_ char *line = NULL;
    size_t capacity = 0;
    unsigned dev_major, dev_minor;
    while (maps && getline(&line, &capacity, maps) >= 0)
        if (sscanf(line, "%*s %*s %*s %x:%x", &dev_major, &dev_minor) == 2 &&
            makedev(dev_major, dev_minor) == dev)
            return "a mapped file";
    return NULL;
}

bool mounts_is_within(const char *path, const char *other)
{
    size_t length = strlen(other);
    return strncmp(path, other, length) == 0 && (path[length] == '\0' || path[length] == '/');
}

size_t mounts_users(const char *directory, char ret_text[MOUNTS_USERS_BYTES])
{
    enum { SHOWN = 5 };
    struct stat st;
    size_t count = 0, used = 0;
    ret_text[0] = '\0';
    _cleanup_closedir_ DIR *proc = opendir("/proc");
    if (!proc || stat(directory, &st) < 0)
        return 0;
    for (const struct dirent *entry; (entry = readdir(proc));) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        const char *use = use_of(entry->d_name, st.st_dev);
        if (!use || ++count > SHOWN)
            continue;
        char path[300], name[64] = "?";
        snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : read(fd, name, sizeof name - 1);
        if (n > 0)
            name[n - 1] = '\0';
        used += (size_t)snprintf(ret_text + used, MOUNTS_USERS_BYTES - used, "%s%.32s (pid %.10s: %s)",
                                 used ? ", " : "", name, entry->d_name, use);
    }
    if (count > SHOWN)
        snprintf(ret_text + used, MOUNTS_USERS_BYTES - used, " and %zu more", count - SHOWN);
    return count;
}

int mounts_drop_cache(const char *device, struct error *err)
{
    _cleanup_close_ int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BLKFLSBUF, 0) < 0)
        return error_errno(err, -errno, "cannot drop the cache of %s", device);
    return 0;
}
