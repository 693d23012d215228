/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing a journal, and its state. */
#include "journal/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "journal/base_store.h"
#include "journal/forecast.h"
#include "journal/index.h"
#include "journal/journal_internal.h"
#include "journal/pin.h"

#define SEALED_FRAMES_BYTES ((size_t)JOURNAL_MAX_INFLIGHT * FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES)

/* Takes the lock file; the holder's name is in it. */
static int take_lock(struct journal *j, struct error *err)
{
    char path[JOURNAL_PATH_BYTES], text[256] = "";
    journal_path(j, "lock", path);
    j->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (j->lock_fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    if (flock(j->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        ssize_t n = pread(j->lock_fd, text, sizeof text - 1, 0);
        text[n > 0 ? n : 0] = '\0';
        text[strcspn(text, "\n")] = '\0';
        return error_set(err, -EBUSY, "the journal %s is in use by %s: stop that one first", j->directory,
                         text[0] ? text : "another process");
    }
    int n = snprintf(text, sizeof text, "%s, pid %d\n", j->options.owner ? j->options.owner : "tidemark-engine", getpid());
    if (pwrite(j->lock_fd, text, (size_t)n, 0) != n || ftruncate(j->lock_fd, n) < 0) /* in the room that it has: the disk may be full */
        return error_errno(err, -errno, "cannot write %s", path);
    return 0;
}

/* Of a journal that is being made. */
static int make_key(struct journal *j, const struct uuid *id, struct error *err)
{
    const char *key_file = j->options.key_file;
    if (!key_file || !key_file[0])
        return 0;
    int r = seal_create(j->directory, id, key_file, err);
    return r < 0 ? r : seal_unlock(j->directory, key_file, err);
}

/* The room that encryption takes. */
static int reserve_sealed(struct journal *j, struct error *err)
{
    j->seal = seal_of(j->directory);
    if (!j->seal)
        return 0;
    j->sealed_frames = io_alloc_pages(SEALED_FRAMES_BYTES);
    int r = j->sealed_frames ? 0 : error_errno(err, -ENOMEM, "cannot open the journal %s", j->directory);
    for (int i = 0; i < 2 && r == 0; i++)
        r = tail_reserve_tags(&j->tails[i], err);
    return r;
}

#define REMEDY "put back a copy of that file; without one the history is lost: move %s away, and a new one begins with what the volumes hold"

/* Whether there is history already: the manifest is written before the first segment is made. */
static bool has_segments(const char *directory)
{
    _cleanup_closedir_ DIR *d = opendir(directory);
    for (const struct dirent *entry; d && (entry = readdir(d));)
        if (strncmp(entry->d_name, "segment-", 8) == 0 || strncmp(entry->d_name, "l0-", 3) == 0)
            return true;
    return false;
}

/* One of the two copies may have stood in for the other; the next save makes both. */
static void tell_damage(struct journal *j)
{
    bool no_copy;
    char *text = j->recovery.manifest_damage;
    if (!manifest_check_files(j->directory, &no_copy, text))
        return;
    if (no_copy) {
        log_info(j->log, "%s", text);
        text[0] = '\0';
        return;
    }
    log_error(j->log, "%s/%s", j->directory, text);
}

static int load_or_create(struct journal *j, struct error *err)
{
    int r = manifest_load(j->directory, &j->manifest, err);
    struct error cause = *err;
    if (r == -EBADMSG)
        return error_set(err, r, "%s; " REMEDY, cause.message, j->directory);
    if (r == 0)
        tell_damage(j);
    if (r != -ENOENT)
        return r;
    if (has_segments(j->directory)) /* a new journal would remove them */
        return error_set(err, -EBADMSG, "%s/manifest is missing, and there is history beside it; " REMEDY, j->directory, j->directory);
    *err = ERROR_INIT;
    struct manifest m = {.epoch = 0, .next_segment = 1, .next_volume = 1, .next_frame = 1, .clean = true};
    r = uuid_random(&m.journal_id, err);
    if (r < 0)
        return r;
    m.base_realtime_ns = clock_realtime_ns(j->clock);
    r = make_key(j, &m.journal_id, err);
    if (r < 0)
        return r;
    j->manifest = m;
    j->recovery.created = true;
    return 0;
}

int journal_mark(const struct journal *j, const char *file, struct error *err)
{
    char path[JOURNAL_PATH_BYTES];
    journal_path(j, file, path);
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || fsync(fd) < 0)
        return error_errno(err, -errno, "cannot make %s", path);
    return io_sync_directory(j->directory, err);
}

/* Of this directory: a copy of it is the same journal, and may be open beside it. */
static int open_ring(struct journal *j, struct error *err)
{
    char path[128], former[128], id[UUID_TEXT_BYTES];
    struct stat st;
    if (j->options.light)
        return ring_open_private(&j->ring, err);
    if (j->options.ring_path)
        return ring_open(&j->ring, j->options.ring_path, &j->manifest.journal_id, err);
    if (stat(j->directory, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", j->directory);
    uuid_format(&j->manifest.journal_id, id);
    snprintf(path, sizeof path, "/dev/shm/tidemark-%s-%llx-%llx.ring", id, (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
    /* An engine of before had it under the name of the journal alone: upgrade-engine goes on with that. */
    snprintf(former, sizeof former, "/dev/shm/tidemark-%s.ring", id);
    if (!j->manifest.clean && access(path, F_OK) < 0 && rename(former, path) < 0 && errno != ENOENT)
        log_warning(j->log, "cannot rename %s: %s; the volumes are compared with the journal instead", former, strerrordesc_np(errno));
    return ring_open(&j->ring, path, &j->manifest.journal_id, err);
}

static void free_journal(struct journal *j)
{
    if (!j)
        return;
    for (int i = 0; i < 2; i++)
        tail_release(&j->tails[i]);
    if (j->scratch)
        io_free_pages(j->scratch, j->options.segment_records * sizeof *j->scratch);
    manifest_release(&j->manifest);
    index_cache_free(j->cache);
    aead_free(j->active_key);
    aead_free(j->ready_key);
    aead_free(j->resume_key);
    io_free_pages(j->sealed_frames, SEALED_FRAMES_BYTES);
    int fds[] = {j->active_fd, j->sealing_fd, j->ready_fd, j->resume_fd, j->lock_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_mutex_destroy(&j->mutex);
    pthread_mutex_destroy(&j->submit_mutex);
    pthread_mutex_destroy(&j->save_mutex);
    pthread_mutex_destroy(&j->tag_mutex);
    pthread_mutex_destroy(&j->maintain_mutex);
    pthread_mutex_destroy(&j->base_mutex);
    base_store_free(j->seed_store);
    pthread_rwlock_destroy(&j->files_lock);
    free(j);
}

static int new_journal(const struct journal_options *options, struct journal **ret, struct error *err)
{
    struct journal *j = calloc(1, sizeof *j);
    if (!j)
        return error_errno(err, -ENOMEM, "cannot open the journal %s", options->directory);
    j->options = *options;
    j->clock = options->clock ? options->clock : clock_system();
    j->log = options->log;
    j->lock_fd = j->active_fd = j->sealing_fd = j->ready_fd = j->resume_fd = j->spare_fd = -1;
    if (!j->options.segment_blocks)
        j->options.segment_blocks = JOURNAL_SEGMENT_BLOCKS;
    if (!j->options.segment_records)
        j->options.segment_records = JOURNAL_SEGMENT_RECORDS;
    if (!j->options.fanout)
        j->options.fanout = JOURNAL_FANOUT;
    snprintf(j->directory, sizeof j->directory, "%s", options->directory);
    pthread_mutexattr_t attributes; /* short sections: spin a little before sleeping */
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&j->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    pthread_mutex_init(&j->submit_mutex, NULL);
    pthread_mutex_init(&j->save_mutex, NULL);
    pthread_mutex_init(&j->tag_mutex, NULL);
    pthread_mutex_init(&j->maintain_mutex, NULL);
    pthread_mutex_init(&j->base_mutex, NULL);
    pthread_rwlock_init(&j->files_lock, NULL);
    pthread_cond_init(&j->room, NULL);
    thread_cond_init(&j->work);
    pthread_cond_init(&j->sealed, NULL);
    pthread_cond_init(&j->published, NULL);
    thread_cond_init(&j->janitor_work);
    bool light = j->options.light;
    size_t scratch_bytes = j->options.segment_records * sizeof *j->scratch;
    j->scratch = light ? io_reserve_pages(scratch_bytes) : io_alloc_pages(scratch_bytes);
    int r = j->scratch ? 0 : error_errno(err, -ENOMEM, "cannot open the journal %s", options->directory);
    for (int i = 0; i < 2 && r == 0; i++)
        r = (light ? tail_init_lazy : tail_init)(&j->tails[i], j->options.segment_blocks,
                                                 j->options.segment_records, err);
    if (r == 0)
        r = light ? index_cache_new_lazy(JOURNAL_LIGHT_CACHE_BYTES, &j->cache, err)
                  : index_cache_new(JOURNAL_CACHE_BYTES, &j->cache, err);
    if (r < 0) {
        free_journal(j);
        return r;
    }
    *ret = j;
    return 0;
}

/* A full disk keeps no volume from being used: the journal is suspended from the start then, as it would be had it been open, and what is only
 * in the ring is found by comparing. */
static int begin_segment(struct journal *j, struct error *err)
{
    uint32_t number = j->manifest.next_segment;
    tail_reset(&j->tails[0], number, j->manifest.epoch, &j->manifest.boot);
    int r = segment_prepare(j, number, false, &j->active_fd, &j->active_key, err);
    if (io_is_no_room(r) && !j->recovery.created) {
        struct error why = *err;
        *err = ERROR_INIT;
        recovery_lose(j);
        MUTEX_GUARD(guard, &j->mutex);
        writer_suspend(j, why.message);
        return 0;
    }
    j->manifest.has_tail = r == 0; /* from here on its loss is one */
    return r;
}

/* Recovers, and begins a new segment in a new epoch. */
static int bring_up(struct journal *j, struct error *err)
{
    int r = recovery_run(j, err);
    if (r == 0)
        r = begin_segment(j, err);
    if (r < 0)
        return r;
    r = sealer_save(j, err);
    if (r == 0)
        r = writer_init(j, err);
    if (r < 0)
        return r;
    rewinds_mend(j);
    pin_reload(j);
    r = sealer_start(j, err);
    if (r == 0)
        r = recovery_replay(j, err);
    if (r == 0)
        r = janitor_start(j, err);
    if (r == 0) {
        volumes_count_base(j);
        return 0;
    }
    sealer_stop(j);
    writer_release(j);
    return r;
}

int journal_open(const struct journal_options *options, struct journal **ret, struct error *err)
{
    char pins[JOURNAL_PATH_BYTES];
    struct journal *j = NULL;
    int r = new_journal(options, &j, err);
    if (r < 0)
        return r;
    journal_path(j, "pins", pins);
    r = seal_unlock(j->directory, options->key_file, err); /* before anything is written */
    if (r == 0)
        r = io_mkdirs(j->directory, 0700, err);
    if (r == 0)
        r = take_lock(j, err);
    if (r == 0)
        seal_mend_files(j->directory, j->log);
    if (r == 0)
        r = io_mkdirs(pins, 0700, err);
    if (r == 0)
        r = load_or_create(j, err);
    if (r == 0)
        index_cache_set_journal(j->cache, &j->manifest.journal_id);
    if (r == 0)
        r = reserve_sealed(j, err);
    if (r == 0)
        r = open_ring(j, err);
    if (r == 0)
        r = bring_up(j, err);
    if (r < 0) {
        ring_release(&j->ring, false);
        free_journal(j);
        return r;
    }
    *ret = j;
    return 0;
}

const struct journal_recovery *journal_recovery(const struct journal *j)
{
    return &j->recovery;
}

void journal_recovered(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    j->recovered = j->opened = true;
    ring_recovered(&j->ring);
    pthread_cond_signal(&j->janitor_work); /* for the reserve */
}

const char *journal_directory(const struct journal *j)
{
    return j->directory;
}

int journal_close(struct journal *j, struct error *err)
{
    if (!j)
        return 0;
    int r = journal_sync(j, -1, NULL, err);
    if (r == 0)
        r = journal_seal(j, err);
    janitor_stop(j);
    sealer_stop(j);
    if (j->ready_fd >= 0)
        segment_recycle(j, j->ready_number, true);
    bool clean = r == 0 && j->recovered;
    if (clean) {
        j->manifest.clean = true;
        j->manifest.lsn_reserved.n = j->next_lsn;
        r = sealer_save(j, err);
        if (r == 0) /* before, its absence would be a loss */
            segment_recycle(j, j->tails[j->active].info.number, true);
    }
    writer_release(j);
    ring_release(&j->ring, clean && r == 0);
    free_journal(j);
    return r;
}

void journal_abandon(struct journal *j)
{
    pthread_mutex_lock(&j->mutex);
    while (j->inflight) /* a write that the kernel has cannot be taken back */
        writer_wait_frame(j, j->complete_number);
    j->suspended = true; /* no more I/O */
    pthread_mutex_unlock(&j->mutex);
    janitor_stop(j);
    sealer_stop(j);
    writer_release(j);
    ring_release(&j->ring, false);
    free_journal(j);
}

void journal_status(struct journal *j, struct journal_status *ret)
{
    MUTEX_GUARD(guard, &j->mutex);
    *ret = (struct journal_status){
        .latest = {j->written_lsn},
        .durable = {j->durable_lsn},
        .appended = {!j->suspended && j->last_lsn > j->written_lsn ? j->last_lsn : j->written_lsn},
        .oldest = j->manifest.base_target.n > j->manifest.base.n ? j->manifest.base_target : j->manifest.base,
        .latest_realtime_ns = j->written_realtime_ns,
        .oldest_realtime_ns = j->manifest.base_realtime_ns,
        .journal_bytes = maintain_journal_bytes(j),
        .quota_bytes = j->options.quota_bytes,
        .base_bytes = j->base_bytes,
        .segment_bytes = journal_segment_bytes(j),
        .segments = j->manifest.segment_count + 1,
        .runs = j->manifest.run_count,
        .suspended = j->suspended,
        .quota_blocked = j->quota_blocked,
        .paced_ns = atomic_load(&j->paced_ns),
        .reserve_bytes = pace_reserve(j->options.quota_bytes, journal_segment_bytes(j)),
    };
    pace_update(j);
    ret->pace_ns = atomic_load(&j->pace_ns);
    ret->pace_persists = j->pace_since_ns && clock_boottime_ns(j->clock) - j->pace_since_ns >= PACE_ALARM_NS;
    for (size_t i = 0; i < j->manifest.segment_count; i++) {
        const struct segment_info *s = &j->manifest.segments[i];
        if (!s->cold_kib)
            continue;
        ret->cold_segments++;
        ret->cold_bytes += s->cold_kib * 1024ull;
        ret->cold_plain_bytes += (uint64_t)s->used_blocks * JOURNAL_BLOCK_BYTES;
    }
    if (j->unsynced_since_ns)
        ret->not_durable_ns = clock_boottime_ns(j->clock) - j->unsynced_since_ns;
    snprintf(ret->reason, sizeof ret->reason, "%s", j->suspended ? j->reason : "");
}

size_t journal_spans(struct journal *j, struct journal_span *spans, size_t capacity)
{
    MUTEX_GUARD(guard, &j->mutex);
    const struct manifest *m = &j->manifest;
    uint64_t from = m->base_realtime_ns, latest = j->written_realtime_ns > from ? j->written_realtime_ns : from;
    size_t changes = 0, count = 0;
    for (size_t i = 0; i < m->segment_count; i++) /* and the tail, which has every write */
        changes += m->segments[i].keep_s != (i + 1 < m->segment_count ? m->segments[i + 1].keep_s : 0);
    for (size_t i = 0; i < m->segment_count; i++) {
        uint32_t next = i + 1 < m->segment_count ? m->segments[i + 1].keep_s : 0;
        if (m->segments[i].keep_s == next || changes-- > capacity - 1)
            continue;
        spans[count++] = (struct journal_span){from, m->segments[i].last_realtime_ns, m->segments[i].keep_s};
        from = m->segments[i].last_realtime_ns;
    }
    spans[count++] = (struct journal_span){from, latest, 0};
    return count;
}

#define RATE_WINDOW_NS (600 * NS_PER_SECOND)
#define RATE_LEAST_NS (10 * NS_PER_SECOND)

/* How much smaller history becomes when it is compressed, as far as it was. */
static double compressed_by(const struct manifest *m)
{
    uint64_t plain = 0, stored = 0;
    for (size_t i = 0; i < m->segment_count; i++) {
        const struct segment_info *s = &m->segments[i];
        if (!s->cold_kib && !s->dense)
            continue;
        plain += segment_info_bytes(&(struct segment_info){.used_blocks = s->used_blocks}, 0);
        stored += segment_info_bytes(&(struct segment_info){.used_blocks = s->used_blocks, .cold_kib = s->cold_kib}, 0);
    }
    return stored ? (double)plain / (double)stored : 1;
}

uint64_t journal_quota_ns(struct journal *j)
{
    uint64_t now = clock_realtime_ns(j->clock), since = now;
    MUTEX_GUARD(guard, &j->mutex);
    const struct tail *t = &j->tails[j->active];
    uint64_t blocks = t->info.used_blocks;
    if (t->frame_count)
        since = t->info.first_realtime_ns;
    for (size_t i = j->manifest.segment_count; i-- > 0;) {
        const struct segment_info *s = &j->manifest.segments[i];
        if (s->generation || s->last_realtime_ns + RATE_WINDOW_NS < now || s->first_realtime_ns > now)
            break;
        blocks += s->used_blocks;
        since = s->first_realtime_ns < since ? s->first_realtime_ns : since;
    }
    uint64_t elapsed = now - since;
    if (now < since || elapsed < RATE_LEAST_NS || blocks <= 1 || !j->options.quota_bytes)
        return 0;
    double rate = (double)blocks * JOURNAL_BLOCK_BYTES / (double)elapsed;
    double ns = (double)forecast_room_bytes(j->options.quota_bytes, journal_segment_bytes(j)) / rate * compressed_by(&j->manifest);
    return ns < 1e18 ? (uint64_t)ns : 1000000000000000000u;
}

struct uuid journal_id(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex); /* the manifest is replaced as a whole */
    return j->manifest.journal_id;
}

int journal_manifest(struct journal *j, struct manifest *ret, struct error *err)
{
    MUTEX_GUARD(guard, &j->mutex);
    return manifest_copy(&j->manifest, ret, err);
}

struct lsn journal_next_lsn(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    return (struct lsn){j->next_lsn};
}

int journal_rewound(struct journal *j, struct lsn lsn, struct lsn target, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    int r = sealer_add_rewind(j, lsn, target, err);
    pthread_mutex_unlock(&j->mutex);
    if (r == 0 && sealer_save(j, err) < 0) /* it has happened: until the manifest can be saved, the record tells */
        log_warning(j->log, "%s", err->message);
    return r;
}

int journal_refuse_begin(struct journal *j, struct lsn low, struct error *err)
{
    struct refused_info refused = {low, {0}};
    pthread_mutex_lock(&j->mutex);
    size_t count = j->manifest.refused_count;
    bool open = count && j->manifest.refused[count - 1].high.n == 0;
    if (!open && count == MANIFEST_MAX_REFUSED) { /* the last one goes on: too much is refused rather than that nothing can be compared */
        j->manifest.refused[count - 1].high = LSN_NONE;
        open = true;
    }
    int r = open ? 0 : manifest_add_refused(&j->manifest, &refused, err);
    if (open && low.n < j->manifest.refused[count - 1].low.n)
        j->manifest.refused[count - 1].low = low;
    pthread_mutex_unlock(&j->mutex);
    return r < 0 ? r : sealer_save(j, err);
}

int journal_refuse_end(struct journal *j, struct lsn high, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    size_t count = j->manifest.refused_count;
    if (count && j->manifest.refused[count - 1].high.n == 0)
        j->manifest.refused[count - 1].high = high;
    j->manifest.suspended = j->suspended;
    pthread_mutex_unlock(&j->mutex);
    return sealer_save(j, err);
}
