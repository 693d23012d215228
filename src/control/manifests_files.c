/* SPDX-License-Identifier: Apache-2.0 */
/* A manifests directory on disk: reading it, and making it what it was. */
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

int manifests_read_one(const char *directory, const char *name, json_t **ret_content, char *problem,
                       size_t problem_size)
{
    char path[PATH_MAX];
    struct stat st;
    _cleanup_json_ json_t *utf8 = json_string(name);
    if (!utf8) {
        snprintf(problem, problem_size, "a file's name is not UTF-8, and it is not journaled: %.150s", name);
        for (char *at = problem; *at; at++)
            *at = (unsigned char)*at < 0x80 ? *at : '?';
        return -EINVAL;
    }
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        return -EINVAL;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
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
        return error_errno(err, -errno, "cannot read the manifests directory %s", directory);
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

static int write_one(const char *directory, const char *name, const json_t *content, struct error *err)
{
    char path[PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "cannot write the manifest %s: its path is too long", name);
    mode_t mode = lstat(path, &st) == 0 && S_ISREG(st.st_mode) ? st.st_mode & 07777 : 0644;
    char *slash = strrchr(path, '/');
    *slash = '\0';
    int r = io_mkdirs(path, 0755, err);
    *slash = '/';
    return r < 0 ? r
                 : io_replace_file(path, json_string_value(content), json_string_length(content), mode, err);
}

static int remove_others(const char *directory, json_t *files, json_t *wanted, bool dry_run, json_t *changes,
                         struct error *err)
{
    const char *name;
    json_t *content;
    json_object_foreach(files, name, content)
    {
        char path[PATH_MAX];
        if (json_object_get(wanted, name) ||
            snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
            continue;
        if (!dry_run && unlink(path) < 0 && errno != ENOENT)
            return error_errno(err, -errno, "cannot remove the manifest %s", path);
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
        if (!dry_run)
            r = write_one(directory, name, content, err);
        json_array_append_new(changes,
                              json_pack("{s:s, s:s}", "name", name, "change", now ? "write" : "create"));
    }
    if (r == 0)
        r = remove_others(directory, files, wanted, dry_run, changes, err);
    if (r == 0)
        *ret_changes = json_incref(changes);
    return r;
}
