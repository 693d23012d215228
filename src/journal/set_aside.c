/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/set_aside.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/journal.h"

#define SHARED_MEMORY "/dev/shm"

static void name_of(const char *directory, unsigned number, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%.4000s.damaged-%u", directory, number);
}

/* 0: there is none. */
static unsigned newest(const char *directory, char path[PATH_MAX])
{
    unsigned number = SET_ASIDE_MAX;
    for (; number > 0; number--) {
        name_of(directory, number, path);
        if (access(path, F_OK) == 0)
            break;
    }
    return number;
}

bool journal_find_set_aside(const char *directory, char ret_kept[PATH_MAX], char ret_why[512])
{
    char path[PATH_MAX + 32];
    struct error ignored = ERROR_INIT;
    _cleanup_free_ char *text = NULL;
    if (newest(directory, ret_kept) == 0)
        return false;
    ret_why[0] = '\0';
    snprintf(path, sizeof path, "%s/" SET_ASIDE_REASON_FILE, ret_kept);
    if (io_read_file(path, 511, &text, NULL, &ignored) == 0)
        snprintf(ret_why, 512, "%s", text);
    ret_why[strcspn(ret_why, "\n")] = '\0';
    return true;
}

bool journal_find_pending(const char *directory, char ret_path[PATH_MAX])
{
    for (const char **name = (const char *[]){"rewind.pending", "rewind.pending.copy", NULL}; *name; name++)
        if (snprintf(ret_path, PATH_MAX, "%s/%s", directory, *name) < PATH_MAX && access(ret_path, F_OK) == 0)
            return true;
    return false;
}

/* What a rewind has not copied back is in the journal alone: the backings are not what the volumes hold. */
static int check_whole(const char *directory, struct error *err)
{
    char path[PATH_MAX];
    if (!journal_find_pending(directory, path))
        return 0;
    return error_set(err, -EBUSY,
                     "a rewind was being copied back, so that the backings alone are not what the "
                     "volumes held (%s). To go on with "
                     "what they hold, part of it from before that rewind: move %s away",
                     path, directory);
}

/* The frame rings of the journal, whose id is not known, and what lies beside them: they have the directory's inode in their names. */
static void remove_memory(const struct stat *st)
{
    char part[64];
    _cleanup_closedir_ DIR *d = opendir(SHARED_MEMORY);
    snprintf(part, sizeof part, "-%llx-%llx.ring", (unsigned long long)st->st_dev,
             (unsigned long long)st->st_ino);
    for (const struct dirent *entry; d && (entry = readdir(d));)
        if (strncmp(entry->d_name, "tidemark-", 9) == 0 && strstr(entry->d_name, part))
            unlinkat(dirfd(d), entry->d_name, 0);
}

void journal_forget_memory(const char *directory)
{
    struct stat st;
    if (stat(directory, &st) == 0)
        remove_memory(&st);
}

/* Whoever puts it back in its place has volumes that went on without it. */
static int leave_notes(const char *directory, const char *why, struct error *err)
{
    char path[PATH_MAX + 32], text[512];
    snprintf(path, sizeof path, "%s/" JOURNAL_COMPARE_FILE, directory);
    int r = io_replace_file(path, "", 0, 0600, err);
    int n = snprintf(text, sizeof text - 1, "%s", why);
    size_t length = n < 0 ? 0 : (size_t)n < sizeof text - 1 ? (size_t)n : sizeof text - 2;
    text[length] = '\n';
    snprintf(path, sizeof path, "%s/" SET_ASIDE_REASON_FILE, directory);
    return r < 0 ? r : io_replace_file(path, text, length + 1, 0600, err);
}

int journal_set_aside(const char *directory, const char *why, char ret_kept[PATH_MAX], struct error *err)
{
    char path[PATH_MAX + 32];
    struct stat st;
    unsigned number;
    snprintf(path, sizeof path, "%s/lock", directory);
    _cleanup_close_ int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0 || fstat(lock, &st) < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    if (flock(lock, LOCK_EX | LOCK_NB) < 0)
        return error_set(err, -EBUSY, "the journal %s is in use", directory);
    int r = check_whole(directory, err);
    if (r == 0 && stat(directory, &st) < 0)
        r = error_errno(err, -errno, "cannot look at %s", directory);
    if (r == 0)
        r = leave_notes(directory, why, err);
    if (r < 0)
        return r;
    number = newest(directory, ret_kept) + 1;
    name_of(directory, number, ret_kept);
    if (number > SET_ASIDE_MAX)
        return error_set(
            err, -ENOSPC,
            "%u journals were set aside already: remove those that are not needed (%s.damaged-*)",
            SET_ASIDE_MAX, directory);
    if (rename(directory, ret_kept) < 0)
        return error_errno(err, -errno, "cannot rename %s to %s", directory, ret_kept);
    remove_memory(&st);
    snprintf(path, sizeof path, "%.4000s/..", ret_kept);
    return io_sync_directory(path, err);
}
