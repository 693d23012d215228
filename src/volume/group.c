/* SPDX-License-Identifier: Apache-2.0 */
#include "volume/group.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/thread.h"
#include "volume/group_internal.h"

int group_new(struct journal *journal, enum group_ack ack, const struct log *log, struct group **ret, struct error *err)
{
    pthread_rwlockattr_t attributes;
    struct group *g = calloc(1, sizeof *g);
    if (!g)
        return error_errno(err, -ENOMEM, "cannot make the consistency group");
    g->journal = journal;
    g->ack = ack;
    g->log = log;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&g->gate, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    pthread_mutex_init(&g->diff_mutex, NULL);
    pthread_mutex_init(&g->rewind_mutex, NULL);
    pthread_mutex_init(&g->worker_mutex, NULL);
    pthread_mutex_init(&g->intent_mutex, NULL);
    pthread_mutex_init(&g->pending_mutex, NULL);
    thread_cond_init(&g->worker_work);
    pthread_cond_init(&g->worker_idle, NULL);
    pthread_cond_init(&g->resumed, NULL);
    pthread_mutex_init(&g->seed_mutex, NULL);
    thread_cond_init(&g->seed_work);
    g->seed_bytes_per_second = GROUP_SEED_BYTES_PER_SECOND;
    pthread_rwlock_init(&g->source.lock, NULL);
    range_lock_init(&g->ranges);
    *ret = g;
    return 0;
}

#define FOREIGN_WAIT_MS 3000u
#define UNCLEAN_WAIT_MS 60000u /* a slow disk may still be writing what an engine that was killed has begun */

struct volume_options {
    const char *name;
    uint64_t size_bytes;
    const char *backing;
    bool adopt;
};

static bool is_known(struct group *g, const char *name)
{
    struct manifest m;
    struct error ignored = ERROR_INIT;
    bool known = false;
    if (journal_manifest(g->journal, &m, &ignored) < 0)
        return false;
    for (size_t i = 0; i < m.volume_count; i++)
        known |= m.volumes[i].deleted.n == 0 && strcmp(m.volumes[i].name, name) == 0;
    manifest_release(&m);
    return known;
}

/* A volume that the journal does not know, whose backing holds something all the same: its journal was lost or set aside. What it holds is
 * the beginning of its history then; taken for empty, each view would have zeroes in its place. */
static bool holds_more(const char *backing, uint64_t *ret_bytes)
{
    struct stat st;
    _cleanup_close_ int fd = open(backing, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || lseek(fd, 0, SEEK_DATA) < 0)
        return false;
    *ret_bytes = (uint64_t)st.st_size / BLOCK_PAGE_BYTES * BLOCK_PAGE_BYTES;
    return true;
}

/* What it lacks would read as zeroes. */
static int refuse_cut(const char *backing, uint64_t bytes, uint64_t expected_bytes, struct error *err)
{
    return error_set(err, -EINVAL, "its backing %s was cut: it has %llu bytes, not %llu. Put the whole file back. If it is lost, move this one away, "
                     "make an empty one (truncate -s %llu %s) and copy the newest point into the volume from a view of it",
                     backing, (unsigned long long)bytes, (unsigned long long)expected_bytes, (unsigned long long)expected_bytes, backing);
}

/* What is not possible now does not keep the volume away: it has the size that it had, and growing is asked for again (group_resize). */
static void grow_at_start(struct group *g, struct volume *v, const char *name, uint64_t size_bytes, struct volume_info *info)
{
    struct error why = ERROR_INIT;
    int r = info->seeding ? error_set(&why, -EBUSY, "not all that it held is copied to the history yet")
                          : group_grow_backing(g, v, info->id, info->size_bytes, size_bytes, &why);
    if (r == 0)
        info->size_bytes = size_bytes;
    else
        log_error(g->log, "volume %s keeps its %llu bytes, and cannot have %llu now: %s", name, (unsigned long long)info->size_bytes,
                  (unsigned long long)size_bytes, why.message);
}

/* The backing with at least the volume's size, and the journal's knowledge of it, grown to what is asked for. */
static int open_backing(struct group *g, struct volume *v, const struct volume_options *options, struct volume_info *info,
                        struct error *err)
{
    uint64_t size_bytes = options->size_bytes;
    struct journal_status status;
    journal_status(g->journal, &status);
    bool known = is_known(g, options->name);
    if (known && access(options->backing, F_OK) < 0 && errno == ENOENT)
        /* An empty one in its place would be taken for what the volume holds, and a file system be made on it. */
        return error_set(err, -ENOENT, "its backing %s is gone, which held its newest content: put it back (is its file system mounted?). If "
                         "it is lost, make an empty one (truncate -s %llu %s) and copy the newest point into the volume from a view of it",
                         options->backing, (unsigned long long)size_bytes, options->backing);
    struct stat st;
    if (known && stat(options->backing, &st) == 0 && S_ISREG(st.st_mode) && st.st_size < (off_t)BLOCK_SECTOR_BYTES)
        return refuse_cut(options->backing, (uint64_t)st.st_size, size_bytes, err);
    uint64_t held_bytes = 0;
    bool take = !known && !options->adopt && holds_more(options->backing, &held_bytes);
    size_bytes = held_bytes > size_bytes ? held_bytes : size_bytes; /* it had grown */
    const struct journal_recovery *rec = journal_recovery(g->journal);
    unsigned wait_ms = known && !rec->clean ? UNCLEAN_WAIT_MS : FOREIGN_WAIT_MS;
    int r = block_file_open_exclusive(options->backing, known || options->adopt ? 0 : size_bytes, wait_ms, &v->file, err);
    v->backing = v->file;
    if (r == 0 && options->adopt && v->backing->size_bytes < size_bytes && !known)
        return error_set(err, -EINVAL, "%s has %llu bytes, not %llu", options->backing,
                         (unsigned long long)v->backing->size_bytes, (unsigned long long)size_bytes);
    if (take)
        log_warning(g->log, "volume %s: the journal does not know it, and its backing %s holds something: that is the beginning of its history",
                    options->name, options->backing);
    if (r == 0)
        r = take ? journal_take_volume(g->journal, options->name, size_bytes, info, err)
                 : journal_volume(g->journal, options->name, size_bytes, options->adopt, info, err);
    if (r == 0 && v->backing->size_bytes < info->size_bytes)
        r = refuse_cut(options->backing, v->backing->size_bytes, info->size_bytes, err);
    if (r == 0 && info->size_bytes < size_bytes)
        grow_at_start(g, v, options->name, size_bytes, info);
    if (r == 0 && info->size_bytes > size_bytes)
        log_warning(g->log, "volume %s has grown to %llu bytes, more than the %llu that are asked for: it keeps them", options->name,
                    (unsigned long long)info->size_bytes, (unsigned long long)size_bytes);
    v->seed.wanted = info->seeding;
    v->seed.new = info->seeding && info->created.n > status.latest.n;
    return r;
}

static int add_volume(struct group *g, const struct volume_options *options, struct error *err)
{
    struct volume_info info = {.id = 0};
    const char *name = options->name;
    uint64_t size_bytes = options->size_bytes;
    if (g->volume_count == GROUP_MAX_VOLUMES)
        return error_set(err, -ENOSPC, "an application may have %u volumes at most", GROUP_MAX_VOLUMES);
    if (size_bytes == 0 || size_bytes % BLOCK_PAGE_BYTES)
        return error_set(err, -EINVAL, "volume %s: the size %llu is not a multiple of 4096 bytes", name,
                         (unsigned long long)size_bytes);
    struct volume *v = &g->volumes[g->volume_count];
    int r = open_backing(g, v, options, &info, err);
    if (r < 0) {
        block_free(v->backing);
        *v = (struct volume){0};
        return error_context(err, "volume %s", name);
    }
    size_bytes = info.size_bytes;
    v->block = (struct block){.ops = &volume_ops, .size_bytes = size_bytes};
    v->group = g;
    v->id = info.id;
    memcpy(v->name, info.name, sizeof v->name);
    uint64_t grains = (size_bytes + GROUP_GRAIN_BYTES - 1) / GROUP_GRAIN_BYTES;
    r = grain_map_init(&v->stale, grains, err);
    if (r == 0)
        r = grain_map_init(&v->unverified, grains, err);
    if (r == 0 && (v->listener.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0)
        r = error_errno(err, -errno, "volume %s: cannot make an eventfd", name);
    if (r == 0)
        r = intents_open(v, options->backing, err);
    if (r == 0 && (r = backing_sync_init(&v->sync, err)) < 0)
        intent_free(v->intent);
    if (r == 0 && (r = fill_open(v, options->backing, err)) < 0) {
        backing_sync_release(&v->sync);
        intent_free(v->intent);
    }
    if (r < 0) { /* not counted: group_free does not see it */
        if (v->listener.fd > 0)
            close(v->listener.fd);
        grain_map_release(&v->stale);
        grain_map_release(&v->unverified);
        block_free(v->backing);
        return r;
    }
    journal_listen(g->journal, &v->listener);
    g->volume_count++;
    return 0;
}

int group_add_volume(struct group *g, const char *name, uint64_t size_bytes, const char *backing, struct error *err)
{
    struct volume_options options = {name, size_bytes, backing, false};
    return add_volume(g, &options, err);
}

int group_adopt_volume(struct group *g, const char *name, uint64_t size_bytes, const char *backing, struct error *err)
{
    struct volume_options options = {name, size_bytes, backing, true};
    return add_volume(g, &options, err);
}

struct volume *group_find_volume(struct group *g, uint32_t id)
{
    for (size_t i = 0; i < g->volume_count; i++)
        if (g->volumes[i].id == id)
            return &g->volumes[i];
    return NULL;
}

void volume_memory_path(const struct volume *v, const char *kind, char path[PATH_MAX])
{
    char suffix[32];
    snprintf(suffix, sizeof suffix, "%s-%u", kind, v->id);
    journal_memory_path(v->group->journal, suffix, path, PATH_MAX);
}

/* After a kill: what was being written is read back and journaled as it is. Ranges that touch a stale grain are not: there
 * the journal's image is what the volume holds. */
static int resync_in_flight(struct group *g, struct error *err)
{
    const struct journal_recovery *rec = journal_recovery(g->journal);
    for (size_t i = 0; i < rec->in_flight_count; i++) {
        const struct journal_in_flight *f = &rec->in_flight[i];
        struct volume *v = group_find_volume(g, f->volume);
        uint64_t end = f->lba + f->length;
        if (!v || end > v->block.size_bytes / BLOCK_SECTOR_BYTES)
            continue;
        for (uint64_t at = f->lba; at < end;) {
            uint64_t grain = at / GROUP_GRAIN_SECTORS, grain_end = (grain + 1) * GROUP_GRAIN_SECTORS;
            uint32_t part = (uint32_t)((grain_end < end ? grain_end : end) - at);
            int r = grain_map_test(&v->stale, grain) ? 0 : volume_resync(v, at, part, err);
            if (r < 0)
                return error_context(err, "cannot journal again what volume %s was writing when the engine ended", v->name);
            at += part;
        }
    }
    return 0;
}

/* With the gate held exclusively, or before there is any I/O: by whole words, since a large volume has hundreds of millions of grains. */
static void mark_unverified(struct volume *v)
{
    static_assert(INTENT_REGION_BYTES == 64 * GROUP_GRAIN_BYTES, "a region is a word of a map of grains");
    for (uint64_t region = 0; region * 64 < v->unverified.grains; region += 64)
        for (uint64_t marked = intent_regions(v->intent, region); marked; marked &= marked - 1) {
            uint64_t word = region + (unsigned)__builtin_ctzll(marked);
            if (word * 64 < v->unverified.grains)
                grain_map_set_word(&v->unverified, word * 64, ~atomic_load(&v->stale.words[word]));
        }
}

/* The last LSN of which the journal has all that came before: what is not durable in a suspended one is cut off when it goes on. */
static struct lsn last_known(struct group *g)
{
    struct journal_status status;
    journal_status(g->journal, &status);
    return status.suspended ? status.durable : status.latest;
}

/* What comes after *low, which may be lowered, is refused until the volumes are compared; saved before it returns. */
static int refuse_after(struct group *g, struct lsn *low, struct error *err)
{
    int r = seed_exact_until(g, low, err);
    return r < 0 ? r : journal_refuse_begin(g->journal, *low, err);
}

/* After refuse_after. */
static int begin_compare(struct group *g, struct lsn low, struct error *err)
{
    struct journal_record begin = {.op = OP_RESYNC_BEGIN, .flags = RECORD_LAST, .aux = low.n};
    grains_close_image(g, g->compare_pin, &g->compare_image); /* of a comparison that was not finished */
    g->compare_due = true; /* until it has begun */
    stale_owe(g);
    seed_refused(g);
    fill_refused(g);
    int r = journal_append_durable(g->journal, &begin, &g->compare_begin, err);
    if (r == 0)
        r = grains_open_live_image(g, g->compare_begin, g->compare_pin, &g->compare_image, err);
    if (r < 0)
        return r;
    g->compare_due = false;
    uint64_t bytes = 0;
    for (size_t i = 0; i < g->volume_count; i++) {
        mark_unverified(&g->volumes[i]);
        bytes += atomic_load(&g->volumes[i].unverified.set_count) * GROUP_GRAIN_BYTES;
    }
    atomic_fetch_add(&g->resync_total, bytes);
    log_warning(g->log, "the journal may lack what the volumes hold (after a loss of power, or writes that went unjournaled): "
                        "comparing %llu MiB of them; points after LSN %llu are refused until that is done",
                (unsigned long long)bytes >> 20, (unsigned long long)low.n);
    return 0;
}

int group_begin_compare(struct group *g, struct error *err)
{
    struct lsn low = last_known(g);
    int r = refuse_after(g, &low, err);
    return r < 0 ? r : begin_compare(g, low, err);
}

void group_set_holds(struct group *g, bool holds)
{
    g->holds = holds;
}

#define RESUME_TELL_NS (60 * NS_PER_SECOND)

/* Says why not, but no flood of it. */
static int resume_failed(struct group *g, const struct error *err)
{
    uint64_t now = clock_boottime_ns(clock_system());
    if (!g->resume_told_ns || now - g->resume_told_ns >= RESUME_TELL_NS) {
        log_error(g->log, "%s; it is tried again and again", err->message);
        g->resume_told_ns = now;
    }
    return err->code;
}

int group_resume(struct group *g, struct error *err)
{
    if (!journal_is_suspended(g->journal) && !g->compare_due) /* only this thread changes that, once it runs */
        return 0;
    if (journal_resume_prepare(g->journal, err) < 0)
        return resume_failed(g, err);
    pthread_mutex_lock(&g->rewind_mutex);
    pthread_rwlock_wrlock(&g->gate); /* waits for the writes under way */
    int r = intents_save_lost(g, err);
    stale_owe(g); /* before a flush is answered by the journal again */
    struct lsn low = last_known(g);
    if (r == 0) /* before anything is journaled again: a kill would leave it as points that lack what was not */
        r = refuse_after(g, &low, err);
    if (r == 0)
        r = journal_resume(g->journal, err);
    if (r == 0)
        r = begin_compare(g, low, err);
    pthread_rwlock_unlock(&g->gate);
    pthread_mutex_unlock(&g->rewind_mutex);
    if (r < 0)
        return resume_failed(g, err);
    g->resume_told_ns = 0;
    pthread_mutex_lock(&g->worker_mutex);
    pthread_cond_broadcast(&g->resumed);
    pthread_mutex_unlock(&g->worker_mutex);
    return 0;
}

bool group_await_journal(struct group *g)
{
    MUTEX_GUARD(guard, &g->worker_mutex);
    if (!g->holds)
        return false;
    pthread_cond_signal(&g->worker_work); /* tries at once, then every second */
    while (!g->stop && g->holds && !g->gave_up && journal_is_suspended(g->journal))
        pthread_cond_wait(&g->resumed, &g->worker_mutex);
    return !g->stop && g->holds && !g->gave_up;
}

void group_give_up(struct group *g)
{
    MUTEX_GUARD(guard, &g->worker_mutex);
    g->gave_up = true;
    pthread_cond_broadcast(&g->resumed);
}

/* A journal may be suspended as soon as it is open: it has outgrown its quota, and something keeps its history. That must not keep the volumes
 * from being used. */
static bool is_suspended(int r, struct error *err)
{
    if (r == -ESHUTDOWN)
        *err = ERROR_INIT;
    return r == -ESHUTDOWN;
}

int group_start(struct group *g, struct error *err)
{
    struct manifest m;
    const struct journal_recovery *rec = journal_recovery(g->journal);
    int r = journal_manifest(g->journal, &m, err);
    if (r < 0)
        return r;
    bool open_refusal = m.refused_count && m.refused[m.refused_count - 1].high.n == 0;
    manifest_release(&m);
    char asked[PATH_MAX];
    bool inexact = false, unsaved = false;
    snprintf(asked, sizeof asked, "%s/" GROUP_COMPARE_FILE, journal_directory(g->journal));
    bool whole = access(asked, F_OK) == 0, replaced = false;
    for (size_t i = 0; i < g->volume_count; i++)
        replaced |= backing_was_replaced(&g->volumes[i]);
    r = fill_start(g, &unsaved, err);
    if (r == 0)
        r = stale_load(g, replaced, err);
    if (r == 0)
        r = seed_open(g, whole || replaced, &inexact, err);
    if (r == 0)
        r = resync_in_flight(g, err);
    bool compare = (rec->compare && !rec->created) || open_refusal;
    if (is_suspended(r, err)) { /* they are marked: the comparison finds them */
        r = 0;
        compare = true;
    }
    if (r == 0 && compare)
        r = intents_check(g, err);
    inexact |= unsaved;
    if (r == 0 && (whole || inexact || replaced))
        r = intents_mark_whole(g, err);
    bool owed = compare || whole || inexact || replaced || (rec->clean && intents_left(g));
    if (r == 0 && owed)
        r = group_begin_compare(g, err);
    else if (r == 0)
        intents_compared(g); /* a kill came when that was done */
    if (is_suspended(r, err)) /* its points are refused already; it begins once journaling goes on (compare_due) */
        r = 0;
    if (r == 0 && whole && unlink(asked) < 0) /* the refused interval is on disk now */
        log_warning(g->log, "cannot remove %s: %m", asked);
    for (size_t i = 0; i < g->volume_count && r == 0; i++)
        backing_remember(&g->volumes[i]);
    if (r == 0 && stale_any(g)) {
        struct journal_status status;
        r = journal_sync(g->journal, -1, NULL, err);
        if (is_suspended(r, err))
            r = 0; /* a suspended journal can still be read */
        journal_status(g->journal, &status);
        if (r == 0)
            r = grains_open_live_image(g, status.latest, g->stale_pin, &g->stale_image, err);
        if (r == 0)
            log_info(g->log, "the copy-back of the rewind to LSN %llu goes on", (unsigned long long)g->rewind_target.n);
    }
    if (r == 0) { /* a kill or an end in order from here on finds what is left to do in the manifest */
        journal_recovered(g->journal);
        g->recovered = true;
        r = grains_start(g, err);
    }
    return r < 0 ? r : seed_start(g, err);
}

void group_free(struct group *g)
{
    if (!g)
        return;
    grains_stop(g);
    seed_close(g, !g->abandoned);
    stale_close(g, !g->abandoned);
    if (!g->abandoned && g->recovered)
        intents_finish(g);
    fill_close(g, !g->abandoned);
    grains_close_image(g, g->stale_pin, &g->stale_image);
    grains_close_image(g, g->compare_pin, &g->compare_image);
    for (size_t i = 0; i < g->volume_count; i++) {
        journal_unlisten(g->journal, &g->volumes[i].listener);
        close(g->volumes[i].listener.fd);
        backing_sync_release(&g->volumes[i].sync);
        block_free(g->volumes[i].backing); /* with its fill */
        intent_free(g->volumes[i].intent);
        grain_map_release(&g->volumes[i].stale);
        grain_map_release(&g->volumes[i].unverified);
    }
    range_lock_release(&g->ranges);
    pthread_rwlock_destroy(&g->source.lock);
    pthread_rwlock_destroy(&g->gate);
    pthread_mutex_destroy(&g->diff_mutex);
    pthread_mutex_destroy(&g->rewind_mutex);
    pthread_mutex_destroy(&g->worker_mutex);
    pthread_mutex_destroy(&g->intent_mutex);
    pthread_mutex_destroy(&g->pending_mutex);
    pthread_mutex_destroy(&g->seed_mutex);
    free(g);
}

size_t group_volume_count(const struct group *g)
{
    return g->volume_count;
}
const char *group_volume_name(const struct group *g, size_t i)
{
    return g->volumes[i].name;
}
struct block *group_volume_block(struct group *g, size_t i)
{
    return &g->volumes[i].block;
}

void group_volume_watch(struct group *g, size_t i, struct signal *signal)
{
    g->volumes[i].signal = signal;
}

int group_volume_peek(struct group *g, size_t i, void *data, size_t length_bytes, uint64_t offset_bytes, struct error *err)
{
    struct volume *v = &g->volumes[i];
    if (!volume_is_current(v) || !volume_is_filled(v))
        return error_set(err, -EAGAIN, "volume %s: its backing is not its content now", v->name);
    return block_pread(v->backing, data, length_bytes, offset_bytes, err);
}

void group_volume_status(struct group *g, size_t i, struct group_volume_status *ret)
{
    struct volume *v = &g->volumes[i];
    *ret = (struct group_volume_status){
        .name = v->name,
        .id = v->id,
        .size_bytes = v->block.size_bytes,
        .written_bytes = atomic_load(&v->written_bytes),
        .read_bytes = atomic_load(&v->read_bytes),
        .discarded_bytes = atomic_load(&v->discarded_bytes),
        .writes = atomic_load(&v->writes),
        .reads = atomic_load(&v->reads),
        .flushes = atomic_load(&v->flushes),
        .stale_bytes = atomic_load(&v->stale.set_count) * GROUP_GRAIN_BYTES,
        .failed = atomic_load(&v->failed),
        .unseeded_bytes = atomic_load(&v->unseeded.set_count) * GROUP_GRAIN_BYTES,
        .seeding = v->seed.wanted,
    };
    if (ret->unseeded_bytes > ret->size_bytes)
        ret->unseeded_bytes = ret->size_bytes;
    if (!v->fill)
        return;
    ret->filling = atomic_load(&v->fill->wanted);
    ret->fill_total_bytes = v->fill->total_grains * GROUP_GRAIN_BYTES;
    ret->unfilled_bytes = atomic_load(&v->fill->unfilled.set_count) * GROUP_GRAIN_BYTES;
}

void group_status(struct group *g, struct group_status *ret)
{
    *ret = (struct group_status){.resync_done_bytes = atomic_load(&g->resync_done),
                                 .resync_total_bytes = atomic_load(&g->resync_total),
                                 .unjournaled_writes = atomic_load(&g->unjournaled)};
    pthread_rwlock_rdlock(&g->source.lock);
    ret->filling = g->source.image != NULL;
    pthread_rwlock_unlock(&g->source.lock);
    pthread_rwlock_rdlock(&g->gate);
    ret->rewinding = g->stale_image != NULL || stale_any(g); /* also where its image cannot be opened */
    ret->rewind_lsn = g->rewind_lsn;
    ret->rewind_target = g->rewind_target;
    ret->resyncing = g->compare_image != NULL || g->compare_due;
    pthread_rwlock_unlock(&g->gate);
    for (size_t i = 0; i < g->volume_count; i++) {
        struct group_volume_status v;
        group_volume_status(g, i, &v);
        ret->seeding |= v.seeding;
        ret->seed_total_bytes += v.seeding ? v.size_bytes : 0;
        ret->seed_done_bytes += v.seeding ? v.size_bytes - v.unseeded_bytes : 0;
        ret->filling |= v.filling;
        ret->fill_total_bytes += v.fill_total_bytes;
        ret->fill_done_bytes += v.fill_total_bytes - v.unfilled_bytes;
    }
    pthread_mutex_lock(&g->seed_mutex);
    memcpy(ret->seed_trouble, g->seed_trouble, sizeof ret->seed_trouble);
    pthread_mutex_unlock(&g->seed_mutex);
    pthread_mutex_lock(&g->worker_mutex);
    ret->pending_damaged = atomic_load(&g->pending_damaged);
    memcpy(ret->copy_trouble, g->copy_trouble, sizeof ret->copy_trouble);
    pthread_mutex_unlock(&g->worker_mutex);
    for (size_t i = 0; i < g->volume_count; i++)
        ret->stale_bytes += atomic_load(&g->volumes[i].stale.set_count) * GROUP_GRAIN_BYTES;
}

void group_settle(struct group *g)
{
    seed_settle(g);
    grains_wake(g);
    pthread_mutex_lock(&g->worker_mutex);
    while (!g->idle)
        pthread_cond_wait(&g->worker_idle, &g->worker_mutex);
    pthread_mutex_unlock(&g->worker_mutex);
}

void group_abandon(struct group *g)
{
    g->abandoned = true;
    grains_stop(g);
    image_free(g->stale_image);
    image_free(g->compare_image);
    g->stale_image = g->compare_image = NULL;
    g->stale_pin[0] = g->compare_pin[0] = '\0';
    group_free(g);
}
