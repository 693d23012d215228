/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's watch: once a second it lets the signal of each volume (signal/signal.h) judge what was written, looks which
 * blocks the file system has released, and keeps what was found in the journal's directory, in signal/. Beside the writes,
 * never on their way: it takes no lock that a write waits for. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "base/units.h"
#include "engine/watch_internal.h"

#define FS_GROUPS_A_TICK 64u /* 8 GiB of an ext4 */
#define READ_BYTES (256u << 10)
#define READ_A_TICK_BYTES (8u << 20)
#define SAVE_EVERY_TICKS 300u
#define READ_DONE UINT64_MAX

static void volume_path(const struct watch *w, size_t i, char path[PATH_MAX])
{
    struct group_volume_status s;
    group_volume_status(w->e->group, i, &s);
    snprintf(path, PATH_MAX, "%s/signal/volume-%u", journal_directory(w->e->journal), s.id);
}

static void stretches_path(const struct watch *w, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/signal/stretches", journal_directory(w->e->journal));
}

/* ---- what the file system has released ---- */

struct told {
    struct watch *w;
    size_t i;
};

static int read_block(void *context, uint64_t block, void *data, struct error *err)
{
    struct told *t = context;
    return group_volume_peek(t->w->e->group, t->i, data, FSMAP_BLOCK_BYTES, block * FSMAP_BLOCK_BYTES, err);
}

static void visit_range(void *context, uint64_t block, uint64_t count, bool is_free)
{
    struct told *t = context;
    if (t->w->volumes[t->i].in_place && is_free && t->w->volumes[t->i].log.usable)
        return; /* perhaps older than what the log has said already */
    signal_told(t->w->volumes[t->i].signal, block, count, is_free);
}

/* From the volume's first block in `scratch`; when it is another file system than before, its log is followed from anew. */
static bool find_file_system(struct watch_volume *v, struct told *told, uint64_t blocks, void *scratch)
{
    struct error err = ERROR_INIT;
    struct fsmap fs;
    if (!fsmap_open(scratch, blocks, &fs)) {
        v->fs.groups = 0;
        v->log.usable = v->log.following = false;
        return false;
    }
    const struct fsmap *old = &v->log.fs;
    if (v->log.usable && fs.blocks == old->blocks && fs.blocks_per_group == old->blocks_per_group &&
        fs.descriptor_bytes == old->descriptor_bytes && fs.wide == old->wide) {
        v->fs = fs;
        return true;
    }
    v->fs = fs;
    if (fslog_open(&v->log, scratch, blocks, read_block, told, (char *)scratch + FSMAP_BLOCK_BYTES, &err) < 0)
        v->log.usable = false;
    return true;
}

/* A few groups a tick; a pass begins when something was written since the last one began: bitmaps are written too. */
static void read_bitmaps(struct watch *w, size_t i, uint64_t written)
{
    struct watch_volume *v = &w->volumes[i];
    struct told told = {w, i};
    struct error err = ERROR_INIT;
    uint64_t blocks = group_volume_block(w->e->group, i)->size_bytes / FSMAP_BLOCK_BYTES;
    if (v->group >= v->fs.groups) {
        if (v->pass_written == written)
            return;
        bool first = v->fs.groups == 0 || v->pass_written == READ_DONE;
        v->pass_written = written;
        if (read_block(&told, 0, w->scratch, &err) < 0 || !find_file_system(v, &told, blocks, w->scratch))
            return;
        if (v->log.usable && fslog_step(&v->log, read_block, visit_range, &told, (char *)w->scratch + FSMAP_BLOCK_BYTES, &err) < 0)
            log_debug(w->e->log, "%s", err.message);
        if (v->log.following && !first)
            return;
        v->group = 0;
    }
    v->in_place = true;
    for (uint32_t n = 0; n < FS_GROUPS_A_TICK && v->group < v->fs.groups; n++, v->group++) {
        if (fsmap_group(&v->fs, v->group, read_block, visit_range, &told, w->scratch, &err) < 0) {
            v->group = v->fs.groups; /* the next pass tries again */
            break;
        }
    }
    v->in_place = false;
}

/* ---- what blocks hold that nobody was seen to write ---- */

static void read_content(struct watch *w, size_t i)
{
    struct watch_volume *v = &w->volumes[i];
    struct block *b = group_volume_block(w->e->group, i);
    struct error err = ERROR_INIT;
    for (uint64_t budget = READ_A_TICK_BYTES; budget && v->read_at < b->size_bytes;) {
        uint64_t left = b->size_bytes - v->read_at, part = left < READ_BYTES ? left : READ_BYTES;
        struct block_extent extent;
        size_t count = 0;
        if (block_extents(b, left, v->read_at, &extent, 1, &count, &err) == 0 && count == 1 && extent.hole && extent.length_bytes) {
            v->read_at += extent.length_bytes;
            continue;
        }
        int r = group_volume_peek(w->e->group, i, w->scratch, part, v->read_at, &err);
        if (r == -EAGAIN)
            return; /* later */
        if (r == 0) /* else a bad sector: what lies beyond it is known all the same */
            signal_seen(v->signal, v->read_at, w->scratch, part);
        v->read_at += part;
        budget -= part < budget ? part : budget;
    }
    if (v->read_at >= b->size_bytes) {
        v->read_at = READ_DONE;
        v->pass_written = READ_DONE; /* a pass over the bitmaps, whatever was written */
    }
}

/* ---- judging and keeping ---- */

static void save_stretches(struct watch *w)
{
    char path[PATH_MAX];
    struct error err = ERROR_INIT;
    stretches_path(w, path);
    if (signal_stretches_save(&w->stretches, path, &err) < 0)
        log_error(w->e->log, "the suspicious stretch is not kept beyond the engine's end: %s", err.message);
}

static void save_volume(struct watch *w, size_t i)
{
    char path[PATH_MAX];
    struct error err = ERROR_INIT;
    volume_path(w, i, path);
    if (signal_save(w->volumes[i].signal, path, w->volumes[i].read_at, &err) < 0)
        log_error(w->e->log, "what is known of a volume's content is not kept beyond the engine's end: %s", err.message);
}

/* After a rewind. */
static void forget_volume(struct watch_volume *v)
{
    signal_forget(v->signal);
    v->read_at = 0;
    v->log.usable = false; /* the file system's log is an older one too: it is followed from anew */
    v->fs.groups = 0;
}

static void changed(struct watch *w, size_t i, enum signal_change change, struct signal_stretch *stretch)
{
    struct group_volume_status s;
    char bytes[UNITS_TEXT_BYTES];
    group_volume_status(w->e->group, i, &s);
    stretch->volume = s.id;
    signal_stretches_put(&w->stretches, stretch);
    save_stretches(w);
    if (change == SIGNAL_BEGAN)
        log_warning(w->e->log,
                    "volume %s is probably being encrypted since LSN %llu: %s of structured content were replaced by content that "
                    "looks like ciphertext",
                    s.name, (unsigned long long)stretch->begin_lsn, units_format_bytes(stretch->bytes, bytes));
    else
        log_warning(w->e->log, "volume %s: the suspicious stretch after LSN %llu ended at LSN %llu", s.name,
                    (unsigned long long)stretch->begin_lsn, (unsigned long long)stretch->end_lsn);
}

static void tick_volume(struct watch *w, size_t i)
{
    struct watch_volume *v = &w->volumes[i];
    struct journal_status journal;
    struct signal_stretch stretch;
    struct signal_status status;
    if (v->read_at != READ_DONE)
        read_content(w, i);
    signal_status(v->signal, &status);
    read_bitmaps(w, i, status.counts.written);
    journal_status(w->e->journal, &journal); /* before the counts: what they count comes after this LSN */
    enum signal_change change = signal_tick(v->signal, clock_realtime_ns(clock_system()), journal.latest.n, &stretch);
    if (change != SIGNAL_SAME)
        changed(w, i, change, &stretch);
    if (w->ticks % SAVE_EVERY_TICKS == SAVE_EVERY_TICKS - 1 && (v->saved_written != status.counts.written || v->read_at != READ_DONE)) {
        v->saved_written = status.counts.written;
        save_volume(w, i);
    }
}

static void tick(struct watch *w)
{
    struct journal_status journal;
    uint64_t rewound = atomic_exchange(&w->rewound, 0);
    if (rewound) {
        signal_stretches_end(&w->stretches, rewound, clock_realtime_ns(clock_system()));
        save_stretches(w);
    }
    for (size_t i = 0; i < w->volume_count && rewound; i++) {
        forget_volume(&w->volumes[i]);
        save_volume(w, i); /* what was known is of another time: the next start must not take it for this one */
    }
    for (size_t i = 0; i < w->volume_count; i++)
        tick_volume(w, i);
    if (w->ticks++ % SAVE_EVERY_TICKS == 0) {
        journal_status(w->e->journal, &journal);
        if (signal_stretches_drop(&w->stretches, journal.oldest.n))
            save_stretches(w);
    }
}

static void *watch_main(void *context)
{
    struct watch *w = context;
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    pthread_mutex_lock(&w->mutex);
    while (!w->stop) {
        at.tv_sec++;
        while (!w->stop && pthread_cond_timedwait(&w->wake, &w->mutex, &at) != ETIMEDOUT)
            ;
        if (w->stop)
            break;
        pthread_mutex_unlock(&w->mutex);
        tick(w);
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > at.tv_sec)
            at = now; /* a slow tick is not made up for */
        pthread_mutex_lock(&w->mutex);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

/* ---- beginning and end ---- */

static int open_volume(struct watch *w, size_t i, size_t table_bytes, struct error *err)
{
    struct watch_volume *v = &w->volumes[i];
    char path[PATH_MAX];
    uint64_t size_bytes = group_volume_block(w->e->group, i)->size_bytes;
    int r = signal_new(size_bytes, table_bytes, &v->signal, err);
    if (r < 0)
        return r;
    volume_path(w, i, path);
    struct error why = ERROR_INIT;
    if (signal_load(v->signal, path, &v->read_at, &why) < 0)
        log_warning(w->e->log, "%s", why.message);
    if (v->read_at >= size_bytes || journal_recovery(w->e->journal)->created)
        v->read_at = READ_DONE;
    group_volume_watch(w->e->group, i, v->signal);
    return 0;
}

static int load_stretches(struct watch *w, struct error *err)
{
    char path[PATH_MAX];
    size_t damaged;
    struct journal_status journal;
    snprintf(path, sizeof path, "%s/signal", journal_directory(w->e->journal));
    int r = io_mkdirs(path, 0700, err);
    if (r < 0)
        return r;
    journal_status(w->e->journal, &journal);
    stretches_path(w, path);
    struct error why = ERROR_INIT;
    if (signal_stretches_load(&w->stretches, path, journal.latest.n, &damaged, &why) < 0)
        log_warning(w->e->log, "earlier suspicious stretches are not known: %s", why.message);
    else if (damaged)
        log_warning(w->e->log, "%zu suspicious stretches in %s are damaged and left out", damaged, path);
    return 0;
}

int watch_start(struct engine *e, struct watch **ret, struct error *err)
{
    struct watch *w = calloc(1, sizeof *w);
    if (w)
        w->scratch = io_alloc_pages(READ_BYTES);
    if (!w || !w->scratch) {
        free(w);
        return error_errno(err, -ENOMEM, "cannot watch the volumes");
    }
    w->e = e;
    pthread_mutex_init(&w->mutex, NULL);
    thread_cond_init(&w->wake);
    signal_stretches_init(&w->stretches);
    *ret = w;
    int r = load_stretches(w, err);
    size_t volumes = group_volume_count(e->group);
    for (size_t i = 0; i < volumes && r == 0; i++) {
        r = open_volume(w, i, SIGNAL_TABLES_BYTES / volumes, err);
        w->volume_count += r == 0;
    }
    if (r == 0)
        r = thread_start(&w->thread, "watch", watch_main, w, err);
    w->runs = r == 0;
    return r;
}

void watch_stop(struct watch *w)
{
    if (!w)
        return;
    if (w->runs) {
        pthread_mutex_lock(&w->mutex);
        w->stop = true;
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&w->mutex);
        pthread_join(w->thread, NULL);
    }
    for (size_t i = 0; i < w->volume_count; i++) {
        if (w->runs && atomic_load(&w->rewound))
            forget_volume(&w->volumes[i]);
        if (w->runs)
            save_volume(w, i);
        group_volume_watch(w->e->group, i, NULL);
        signal_free(w->volumes[i].signal);
    }
    signal_stretches_release(&w->stretches);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->wake);
    io_free_pages(w->scratch, READ_BYTES);
    free(w);
}

void watch_rewound(struct watch *w, struct lsn lsn)
{
    atomic_store(&w->rewound, lsn.n);
}
