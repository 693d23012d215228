/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a backing is the file that it was: a new one in its place (made empty by hand, or copied back from elsewhere) need not hold what
 * the journal says, so the volumes are compared then. Inode number and time of birth are kept beside the journal, for each volume;
 * a device has no identity that would outlast a boot, and is not looked at. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "volume/group_internal.h"

#define IDENTITY_BYTES 80u

static void identity_path(const struct volume *v, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%.3900s/backing-%u.id", journal_directory(v->group->journal), v->id);
}

/* "" where there is none. */
static void find_identity(const struct volume *v, char text[IDENTITY_BYTES])
{
    struct statx sx;
    text[0] = '\0';
    if (statx(block_file_fd(v->file), "", AT_EMPTY_PATH, STATX_TYPE | STATX_INO | STATX_BTIME, &sx) < 0 || !S_ISREG(sx.stx_mode))
        return;
    bool born = sx.stx_mask & STATX_BTIME;
    snprintf(text, IDENTITY_BYTES, "%llu %lld.%09u\n", (unsigned long long)sx.stx_ino, born ? (long long)sx.stx_btime.tv_sec : 0,
             born ? sx.stx_btime.tv_nsec : 0);
}

enum identity { IDENTITY_NONE, IDENTITY_NEW, IDENTITY_SAME, IDENTITY_OTHER };

/* What the file is, compared with what was noted of it; `path` and `now` are filled unless it has none. */
static enum identity compare(const struct volume *v, char path[PATH_MAX], char now[IDENTITY_BYTES])
{
    struct error ignored = ERROR_INIT;
    _cleanup_free_ char *then = NULL;
    size_t length;
    find_identity(v, now);
    if (!now[0])
        return IDENTITY_NONE;
    identity_path(v, path);
    if (access(path, F_OK) < 0 || io_read_file(path, IDENTITY_BYTES, &then, &length, &ignored) < 0)
        return IDENTITY_NEW;
    return strcmp(now, then) == 0 ? IDENTITY_SAME : IDENTITY_OTHER;
}

bool backing_was_replaced(const struct volume *v)
{
    char now[IDENTITY_BYTES], path[PATH_MAX];
    if (compare(v, path, now) != IDENTITY_OTHER) /* a new one is not known yet: backing_remember */
        return false;
    log_warning(v->group->log, "volume %s: its backing is another file than it was: it is compared with the journal", v->name);
    return true;
}

void backing_remember(const struct volume *v)
{
    char now[IDENTITY_BYTES], path[PATH_MAX];
    struct error err = ERROR_INIT;
    enum identity is = compare(v, path, now);
    if (is == IDENTITY_NONE || is == IDENTITY_SAME)
        return;
    if (io_replace_file(path, now, strlen(now), 0600, &err) < 0)
        log_warning(v->group->log, "volume %s: which file its backing is cannot be noted: %s", v->name, err.message);
}
