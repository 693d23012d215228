/* SPDX-License-Identifier: Apache-2.0 */
/* The write-intent bitmaps of a group: when they are trusted, and when marks are cleared.
 *
 * A bitmap that cannot be written suspends the journal: from then on writes go on unjournaled and are marked
 * in memory only (mode `availability`), or wait. After a kill the frame ring tells that everything has to be
 * compared; after a loss of power a marker file beside the backing does, which is most likely on another
 * disk. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "volume/group_internal.h"

#define ROUND_NS (5 * NS_PER_SECOND)

static int make_marker(const char *path)
{
    char directory[PATH_MAX];
    struct error ignored = ERROR_INIT;
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || fsync(fd) < 0)
        return -errno;
    snprintf(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash)
        slash[slash == directory] = '\0';
    return io_sync_directory(slash ? directory : ".", &ignored);
}

static void bitmap_lost(void *context, const char *why)
{
    struct volume *v = context;
    journal_suspend(v->group->journal, why, true);
    int r = v->marker[0] ? make_marker(v->marker) : 0;
    atomic_store(&v->marker_made, v->marker[0] && r == 0);
    if (r < 0)
        log_error(v->group->log,
                  "volume %s: cannot make %s: %s; were the power lost now, it would not be known that all of "
                  "the volume "
                  "has to be compared",
                  v->name, v->marker, strerrordesc_np(-r));
}

static int bitmap_fault(void *context)
{
    return journal_step(((struct volume *)context)->group->journal, "intent");
}

int intents_open(struct volume *v, const char *backing, struct error *err)
{
    struct stat st;
    const struct journal_recovery *rec = journal_recovery(v->group->journal);
    struct intent_options options = {.directory = journal_directory(v->group->journal),
                                     .journal_id = journal_id(v->group->journal),
                                     .volume = v->id,
                                     .size_bytes = v->block.size_bytes,
                                     .fresh = rec->created || rec->clean,
                                     .lost = bitmap_lost,
                                     .context = v,
                                     .fault = bitmap_fault};
    if (stat(backing, &st) == 0 && S_ISREG(st.st_mode) &&
        (snprintf(v->marker, sizeof v->marker, "%s.unjournaled", backing) >= (int)sizeof v->marker ||
         snprintf(v->rewinding, sizeof v->rewinding, "%s.rewinding", backing) >= (int)sizeof v->rewinding))
        return error_errno(err, -ENAMETOOLONG, "cannot use %s", backing);
    int r = intent_open(&options, &v->intent, err);
    if (r < 0 || !v->marker[0] || access(v->marker, F_OK) < 0)
        return r;
    v->marker_made = true; /* the power was lost while the bitmap was */
    intent_mark_all(v->intent);
    return intent_save(v->intent, err);
}

int intents_mark_whole(struct group *g, struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < g->volume_count && r == 0; i++) {
        intent_mark_all(g->volumes[i].intent);
        r = intent_save(g->volumes[i].intent, err);
    }
    return r;
}

int intents_check(struct group *g, struct error *err)
{
    const struct journal_recovery *rec = journal_recovery(g->journal);
    bool all = rec->compare_all;
    for (size_t i = 0; i < g->volume_count; i++) {
        struct lsn covered = intent_covered(g->volumes[i].intent);
        if (covered.n <= rec->last.n)
            continue;
        log_error(g->log,
                  "the journal ends at LSN %llu, but was durable up to LSN %llu: everything is compared",
                  (unsigned long long)rec->last.n, (unsigned long long)covered.n);
        all = true;
    }
    return all ? intents_mark_whole(g, err) : 0;
}

bool intents_left(struct group *g)
{
    for (size_t i = 0; i < g->volume_count; i++)
        if (intent_any(g->volumes[i].intent))
            return true;
    return false;
}

int intents_save_lost(struct group *g, struct error *err)
{
    for (size_t i = 0; i < g->volume_count; i++)
        if (intent_is_lost(g->volumes[i].intent) && intent_save(g->volumes[i].intent, err) < 0)
            return error_context(err, "journaling cannot go on yet");
    return 0;
}

void intents_compared(struct group *g)
{
    for (size_t i = 0; i < g->volume_count; i++)
        if (atomic_exchange(&g->volumes[i].marker_made, false) && unlink(g->volumes[i].marker) < 0)
            log_warning(g->log, "cannot remove %s: %m; the volume is compared again at the next start",
                        g->volumes[i].marker);
}

/* The journal up to where it is durable now, or 0 where nothing may be cleared. */
static struct lsn sync_journal(struct group *g)
{
    struct error ignored = ERROR_INIT;
    struct journal_status status;
    if (journal_sync(g->journal, -1, NULL, &ignored) < 0)
        return LSN_NONE;
    journal_status(g->journal, &status);
    return status.suspended ? LSN_NONE : status.durable;
}

/* While a comparison runs the marks are what it has to go over again after another crash. */
static bool is_comparing(struct group *g)
{
    pthread_rwlock_rdlock(&g->gate);
    bool comparing = g->compare_image != NULL || g->compare_due;
    pthread_rwlock_unlock(&g->gate);
    return comparing || journal_is_suspended(g->journal);
}

void group_clear_intents(struct group *g)
{
    bool idle[GROUP_MAX_VOLUMES] = {false}, any = false;
    struct error ignored = ERROR_INIT;
    MUTEX_GUARD(guard, &g->intent_mutex);
    if (is_comparing(g))
        return;
    for (size_t i = 0; i < g->volume_count; i++)
        any |= idle[i] = intent_collect(g->volumes[i].intent);
    if (!any)
        return;
    pthread_rwlock_wrlock(
        &g->gate); /* the writes of before are done then; those that come after are seen as use */
    pthread_rwlock_unlock(&g->gate);
    struct lsn covered = sync_journal(g);
    if (!covered.n)
        return;
    for (size_t i = 0; i < g->volume_count; i++)
        if (idle[i] && volume_flush_backing(&g->volumes[i], &ignored) == 0)
            intent_clear(g->volumes[i].intent, covered);
}

void intents_tidy(struct group *g)
{
    uint64_t now = clock_boottime_ns(clock_system());
    if (now - g->intent_round_ns < ROUND_NS)
        return;
    g->intent_round_ns = now;
    group_clear_intents(g);
}

void intents_finish(struct group *g)
{
    struct error ignored = ERROR_INIT;
    struct lsn covered = g->compare_image || g->compare_due || journal_is_suspended(g->journal) ? LSN_NONE : sync_journal(g);
    for (size_t i = 0; covered.n && i < g->volume_count; i++)
        if (volume_flush_backing(&g->volumes[i], &ignored) == 0)
            intent_clear_all(g->volumes[i].intent, covered);
}
