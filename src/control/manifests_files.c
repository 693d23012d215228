/* SPDX-License-Identifier: Apache-2.0 */
/* A manifests directory on disk: reading it, and making it what it was.
 *
 *   M4  nothing below the directory is reached through a link: it may be writable for somebody who is not root, and `up` is
 * M5  what is written belongs to whom it replaces, or else its directory, belongs */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "control/control_internal.h"
#include "control/manifests_internal.h"

bool manifests_is_name(const char *name)
{
    static const char *const endings[] = {".yaml", ".yml", ".json"};
    size_t length = strlen(name);
    if (!length || name[0] == '/' || name[length - 1] == '/')
        return false;
    for (const char *part = name; part; part = strchr(part, '/') ? strchr(part, '/') + 1 : NULL)
        if (part[0] == '.' || part[0] == '/') /* hidden, ".", "..", empty */
            return false;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t n = strlen(endings[i]);
        if (length > n && name[length - n - 1] != '/' && strcmp(name + length - n, endings[i]) == 0)
            return true;
    }
    return false;
}

/* M5. Not every file system has owners. */
static int give(int fd, const struct stat *to)
{
    return fchown(fd, to->st_uid, to->st_gid) < 0 && errno != EPERM && errno != EINVAL ? -errno : 0;
}

/* M4. Opens the directory below `directory` that `name` lies in; `make`: missing ones are made. A descriptor, and *ret_base is
 * the last part of the name; -ENOENT, or -ELOOP when a part is a link or no directory. */
static int open_parent(const char *directory, const char *name, bool make, const char **ret_base)
{
    _cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (const char *slash; fd >= 0 && (slash = strchr(name, '/')); name = slash + 1) {
        char part[NAME_MAX + 1];
        struct stat st;
        if ((size_t)(slash - name) >= sizeof part)
            return -ENAMETOOLONG;
        memcpy(part, name, (size_t)(slash - name));
        part[slash - name] = '\0';
        bool made = make && mkdirat(fd, part, 0755) == 0;
        if (make && !made && errno != EEXIST)
            return -errno;
        int below = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below < 0)
            return errno == ENOTDIR ? -ELOOP : -errno;
        int r = made && (fstat(fd, &st) < 0 || fsync(fd) < 0) ? -errno : made ? give(below, &st) : 0;
        close(fd);
        fd = below;
        if (r < 0)
            return r;
    }
    if (fd < 0)
        return -errno;
    *ret_base = name;
    return take_fd(fd);
}

static int path_failed(int code, const char *what, const char *directory, const char *name, struct error *err)
{
    if (code == -ELOOP)
        return error_set(err, code,
                         "cannot %s the manifest %s/%s: a part of its path is a symbolic link or no directory, and links are not "
                         "followed; move that away",
                         what, directory, name);
    return error_errno(err, code, "cannot %s the manifest %s/%s", what, directory, name);
}

int manifests_read_one(const char *directory, const char *name, json_t **ret_content, char *problem,
                       size_t problem_size)
{
    struct stat st;
    const char *base = name;
    _cleanup_json_ json_t *utf8 = json_string(name);
    if (!utf8) {
        snprintf(problem, problem_size, "a file's name is not UTF-8, and it is not journaled: %.150s", name);
        for (char *at = problem; *at; at++)
            *at = (unsigned char)*at < 0x80 ? *at : '?';
        return -EINVAL;
    }
    _cleanup_close_ int parent = open_parent(directory, name, false, &base);
    errno = parent < 0 ? -parent : 0;
    _cleanup_close_ int fd = parent < 0 ? -1 : openat(parent, base, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ELOOP || errno == ENOTDIR))
        return -ENOENT;
    if (fd < 0 || fstat(fd, &st) < 0) {
        snprintf(problem, problem_size, "cannot read %.100s: %s", name, strerror(errno));
        return -EINVAL;
    }
    if (!S_ISREG(st.st_mode))
        return -ENOENT;
    _cleanup_free_ char *data = malloc(MANIFESTS_FILE_BYTES_MAX + 1);
    size_t length = 0;
    for (ssize_t n = 1; data && n > 0 && length <= MANIFESTS_FILE_BYTES_MAX; length += n > 0 ? (size_t)n : 0)
        n = read(fd, data + length, MANIFESTS_FILE_BYTES_MAX + 1 - length);
    if (data && length > MANIFESTS_FILE_BYTES_MAX) {
        snprintf(problem, problem_size, "%.100s is larger than 1 MiB and is not journaled", name);
        return -EINVAL;
    }
    json_t *content = data ? json_stringn(data, length) : NULL;
    if (!content) {
        snprintf(problem, problem_size, "%.100s is not UTF-8 text and is not journaled", name);
        return -EINVAL;
    }
    *ret_content = content;
    return 0;
}

/* Not every file system tells it with the name. */
bool manifests_is_directory(DIR *dir, const struct dirent *entry)
{
    struct stat st;
    return entry->d_type != DT_UNKNOWN ? entry->d_type == DT_DIR
                                       : fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

static void read_below(const char *directory, const char *relative, unsigned depth, json_t *files,
                       char *problem, size_t problem_size)
{
    char path[PATH_MAX], name[PATH_MAX];
    if (snprintf(path, sizeof path, "%s%s%s", directory, relative[0] ? "/" : "", relative) >=
        (int)sizeof path)
        return;
    _cleanup_closedir_ DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        if (entry->d_name[0] == '.' || snprintf(name, sizeof name, "%s%s%s", relative, relative[0] ? "/" : "",
                                                entry->d_name) >= (int)sizeof name)
            continue;
        json_t *content = NULL;
        if (manifests_is_directory(dir, entry)) {
            if (depth < MANIFESTS_DEPTH_MAX)
                read_below(directory, name, depth + 1, files, problem, problem_size);
        } else if (manifests_is_name(name) &&
                   manifests_read_one(directory, name, &content, problem, problem_size) == 0)
            json_object_set_new(files, name, content);
    }
}

int manifests_read(const char *directory, json_t **ret_files, char *problem, size_t problem_size,
                   struct error *err)
{
    struct stat st;
    if (stat(directory, &st) < 0)
        return errno == ENOENT
                   ? error_set(err, -ENOENT,
                               "the manifests directory %s is gone; make it again, or apply the application "
                               "without it",
                               directory)
                   : error_errno(err, -errno, "cannot read the manifests directory %s", directory);
    if (!S_ISDIR(st.st_mode))
        return error_set(err, -ENOTDIR, "cannot read the manifests directory %s: it is no directory",
                         directory);
    json_t *files = json_object();
    if (!files)
        return error_set(err, -ENOMEM, "out of memory");
    read_below(directory, "", 0, files, problem, problem_size);
    *ret_files = files;
    return 0;
}

/* The whole file, durably, under a name that is no manifest's. */
static int fill(int parent, const char *temporary, const char *base, const json_t *content)
{
    struct stat before, directory;
    bool there = fstatat(parent, base, &before, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(before.st_mode);
    if (fstat(parent, &directory) < 0 || (unlinkat(parent, temporary, 0) < 0 && errno != ENOENT))
        return -errno;
    _cleanup_close_ int fd = openat(parent, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int r = io_pwrite_full(fd, json_string_value(content), json_string_length(content), 0);
    if (r == 0)
        r = give(fd, there ? &before : &directory);
    if (r == 0 && fchmod(fd, there ? before.st_mode & 0777 : 0644) < 0 && errno != EPERM)
        r = -errno;
    return r == 0 && fsync(fd) < 0 ? -errno : r;
}

/* `dry_run`: whether it could be. */
static int write_one(const char *directory, const char *name, const json_t *content, bool dry_run, struct error *err)
{
    const char *base = name;
    char temporary[NAME_MAX + 1];
    int r = dry_run ? 0 : io_mkdirs(directory, 0755, err);
    if (r < 0)
        return r;
    _cleanup_close_ int parent = open_parent(directory, name, !dry_run, &base);
    if (parent < 0)
        return dry_run && parent == -ENOENT ? 0 : path_failed(parent, "write", directory, name, err);
    if (dry_run)
        return 0;
    snprintf(temporary, sizeof temporary, ".%.240s.tmp", base);
    r = fill(parent, temporary, base, content);
    if (r == 0 && (renameat(parent, temporary, parent, base) < 0 || fsync(parent) < 0))
        r = -errno;
    if (r < 0)
        unlinkat(parent, temporary, 0);
    return r < 0 ? path_failed(r, "write", directory, name, err) : 0;
}

static int remove_one(const char *directory, const char *name, struct error *err)
{
    const char *base = name;
    _cleanup_close_ int parent = open_parent(directory, name, false, &base);
    int r = parent;
    if (r >= 0 && (unlinkat(parent, base, 0) < 0 || fsync(parent) < 0))
        r = -errno;
    return r < 0 && r != -ENOENT ? path_failed(r, "remove", directory, name, err) : 0;
}

static int remove_others(const char *directory, json_t *files, json_t *wanted, bool dry_run, json_t *changes,
                         struct error *err)
{
    const char *name;
    json_t *content;
    json_object_foreach(files, name, content)
    {
        if (json_object_get(wanted, name))
            continue;
        int r = dry_run ? 0 : remove_one(directory, name, err);
        if (r < 0)
            return r;
        json_array_append_new(changes, json_pack("{s:s, s:s}", "name", name, "change", "delete"));
    }
    return 0;
}

int manifests_restore(const char *directory, const json_t *objects, bool dry_run, json_t **ret_changes,
                      struct error *err)
{
    char problem[256];
    _cleanup_json_ json_t *files = NULL, *wanted = json_object(), *changes = json_array();
    int r = manifests_read(directory, &files, problem, sizeof problem, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        files = json_object();
        r = 0;
    }
    size_t i;
    json_t *object;
    json_array_foreach(objects, i, object)
    {
        const char *name = json_string_value(json_object_get(object, "name"));
        json_t *content = json_object_get(object, "content");
        /* Names come from the journal: none may lead out of the directory. */
        if (r < 0 || !name || !manifests_is_name(name) || !json_is_string(content))
            continue;
        json_object_set(wanted, name, content);
        json_t *now = json_object_get(files, name);
        if (now && json_equal(now, content))
            continue;
        r = write_one(directory, name, content, dry_run, err);
        json_array_append_new(changes,
                              json_pack("{s:s, s:s}", "name", name, "change", now ? "write" : "create"));
    }
    if (r == 0)
        r = remove_others(directory, files, wanted, dry_run, changes, err);
    if (r == 0)
        *ret_changes = json_incref(changes);
    return r;
}
