/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_VOLUME_GROUP_INTERNAL_H
#define TIDEMARK_VOLUME_GROUP_INTERNAL_H

#include <limits.h>
#include <stdatomic.h>

#include "block/queue.h"
#include "view/image.h"
#include "volume/group.h"
#include "volume/intent.h"
#include "volume/live_words.h"
#include "volume/range_lock.h"

/* One bit a grain; set and tested atomically. */
struct grain_map {
    _Atomic uint64_t *words;
    uint64_t grains;
    _Atomic uint64_t set_count;
};
int grain_map_init(struct grain_map *m, uint64_t grains, struct error *err) MUST_CHECK;
void grain_map_release(struct grain_map *m);
bool grain_map_test(const struct grain_map *m, uint64_t grain);
void grain_map_set(struct grain_map *m, uint64_t grain);
/* Sets those of the 64 grains from `grain` (a multiple of 64) on that have a bit in `bits`; there may be fewer. */
void grain_map_set_word(struct grain_map *m, uint64_t grain, uint64_t bits);
void grain_map_clear(struct grain_map *m, uint64_t grain);
/* The first set grain at or after `from`, or m->grains. */
uint64_t grain_map_next(const struct grain_map *m, uint64_t from);

/* The fdatasyncs of a backing, by their numbers; flush.c. */
struct backing_sync {
    pthread_mutex_t mutex; /* taken last */
    pthread_cond_t ended_one;
    uint64_t begun, submitted, ended; /* begun: some request leads it; submitted: it covers no more than it does now */
};

/* What stands for a backing that is not whole yet; fill.c. */
struct fill {
    struct block block; /* first: the volume's backing */
    struct block *file;
    struct volume *volume;
    char path[PATH_MAX]; /* of the map on disk */
    uint32_t source_volume;
    uint64_t size_bytes, total_grains;
    uint8_t id[16];
    struct grain_map unfilled; /* read from the source; its words are: */
    struct live_words live;
    bool inexact;         /* what was cleared since the map was saved is not known: until all is compared */
    _Atomic bool wanted;  /* the map on disk is there */
    uint64_t cursor;      /* the thread's: where it goes on */
    pthread_mutex_t save_mutex; /* one writer of the map on disk */
    pthread_mutex_t mutex;      /* taken last; guards clearing with: */
    uint64_t changes, saved_changes;
};
/* Where the volumes that are not whole are read from. */
struct fill_source {
    char journal[PATH_MAX], pin[32]; /* "": none */
    pthread_rwlock_t lock;           /* held for reading while the image is used */
    struct image *image;             /* NULL: not needed */
};

struct pending_volume;

struct volume {
    struct block block; /* first: what exports see */
    struct group *group;
    uint32_t id;
    char name[JOURNAL_NAME_BYTES];
    struct block *backing; /* its content: the file, or a fill over it */
    struct block *file;    /* the backing's file or device */
    struct fill *fill;     /* NULL: the backing was whole when it was opened. Owned as backing */
    struct signal *signal; /* NULL: not watched */
    struct grain_map stale, unverified; /* sized for the volume; replaced with the gate held exclusively */
    struct live_words stale_live;       /* not open: nothing is stale, or it cannot be had; opened and closed likewise */
    struct grain_map unseeded;          /* adopted: the base lacks what they held; words NULL: none */
    struct {
        _Atomic bool wanted; /* something is left to be seeded, or to be told so to the journal */
        bool new;
        _Atomic bool inexact; /* a before-image was lost: points since the adoption are refused when it is compared */
        struct live_words live; /* has unseeded.words */
    } seed;
    struct intent *intent;
    char marker[PATH_MAX];    /* beside the backing, there while the intent could not be written; "": the backing is a device */
    char rewinding[PATH_MAX]; /* beside the backing: which grains are stale, where the journal's disk failed; "" likewise */
    _Atomic bool marker_made;
    struct backing_sync sync;
    _Atomic bool failed; /* an fdatasync of the backing did */
    struct journal_listener listener; /* of the thread that has the volume's queue */
    _Atomic uint64_t written_bytes, read_bytes, discarded_bytes, writes, reads, flushes;
};

struct group {
    struct journal *journal;
    enum group_ack ack;
    const struct log *log;
    struct volume volumes[GROUP_MAX_VOLUMES];
    size_t volume_count;
    pthread_rwlock_t gate; /* I/O: shared; rewind: exclusive */
    struct fill_source source;
    struct range_lock ranges;
    _Atomic uint64_t unjournaled;

    pthread_mutex_t diff_mutex;   /* one diff at a time; taken first of all */
    pthread_mutex_t rewind_mutex; /* one rewind, resumption or growth at a time, and no image is opened beside them; taken next */
    struct image *stale_image;    /* what stale grains read; changed under the exclusive gate */
    char stale_pin[24];
    char copy_trouble[256];        /* why copying back does not go on; guarded by worker_mutex */
    pthread_mutex_t pending_mutex; /* one writer of rewind.pending */
    _Atomic bool pending_damaged;  /* it was, and all is copied back therefore */
    _Atomic bool pending_behind;   /* grains were made plain since it was written */
    _Atomic bool pending_owed;     /* some of them may hold what the journal lacks, until all is compared: a flush writes it before */
    uint64_t pin_counter;
    uint64_t renewed_ns; /* the worker's: boottime of when pins were last renewed for the quota */
    struct lsn rewind_lsn, rewind_target;

    struct image *compare_image; /* what unverified grains are compared with */
    char compare_pin[24];
    struct lsn compare_begin;
    bool compare_due; /* a comparison has to begin; changed under the exclusive gate */
    bool recovered;   /* what recovery asks for was done: the marks say no more than what has been written since */
    uint64_t resume_told_ns; /* when it was last said why journaling cannot go on */
    bool holds;              /* while the journal is suspended writes wait, instead of going on unjournaled */
    _Atomic uint64_t resync_done, resync_total;
    pthread_mutex_t intent_mutex; /* one round of clearing marks at a time */
    uint64_t intent_round_ns;     /* boottime of the last one */
    _Atomic bool gave_up;

    pthread_t worker;
    bool worker_runs;
    pthread_mutex_t worker_mutex;
    pthread_cond_t worker_work, worker_idle, resumed;
    _Atomic bool stop;
    bool idle, abandoned;

    pthread_t seeder; /* copies what adopted volumes held to the base */
    bool seeder_made;
    pthread_mutex_t seed_mutex; /* guards what follows */
    pthread_cond_t seed_work;
    bool seed_runs, seed_hurry;
    uint64_t seed_bytes_per_second; /* 0: no limit */
    uint64_t seed_due_ns, seed_told_ns;
    char seed_trouble[256]; /* why it does not go on; "" if it does */
};

enum change_kind { CHANGE_WRITE, CHANGE_DISCARD, CHANGE_ZERO };

struct change {
    enum change_kind kind;
    uint64_t lba, length; /* sectors */
    const char *data;
    unsigned flags;
};

/* ---- volume.c ---- */
extern const struct block_ops volume_ops;
/* Carries a change out on the backing, `data` the journal's copy; and what follows when that failed: the journal is told
 * what the backing really holds. Both block. */
int volume_change_backing(struct volume *v, const struct change *c, const void *data, struct error *err) MUST_CHECK;
void volume_after_backing_error(struct volume *v, uint64_t lba, uint64_t length, const struct error *cause);

/* ---- flush.c ---- */
int backing_sync_init(struct backing_sync *s, struct error *err) MUST_CHECK;
void backing_sync_release(struct backing_sync *s);
/* What volume has made durable when it returns: all that has ended before. Blocks. */
int volume_flush_both(struct volume *v, struct error *err) MUST_CHECK;
/* Makes the backing durable, with what says how much of it is filled. -EIO: it failed, now or before. */
int volume_flush_backing(struct volume *v, struct error *err) MUST_CHECK;
/* Only its file. */
int volume_flush_file(struct volume *v, struct error *err) MUST_CHECK;
/* -EIO once a flush has failed. */
int volume_flush_error(const struct volume *v, struct error *err) MUST_CHECK;
/* The same by a request of the volume's queue, which stands in `own` of it: `begin`, then `step` whenever the queue asks. */
struct flush {
    struct lsn lsn;  /* durable in the journal up to here */
    uint64_t number; /* of the backing's fdatasync */
    bool leads;      /* it is this request's */
};
void flush_begin(struct volume *v, struct flush *f);
enum block_step flush_step(struct volume *v, struct flush *f, struct block_request *r) MUST_CHECK;
/* What was begun in the queue is submitted now: later flushes need another one. */
void backing_sync_submitted(struct volume *v);

/* ---- group.c ---- */
/* The volume with that id, or NULL. */
struct volume *group_find_volume(struct group *g, uint32_t id);
/* Of the volume's map of that kind ("seed", "fill", "stale") in shared memory. */
void volume_memory_path(const struct volume *v, const char *kind, char path[PATH_MAX]);
/* After a crash or a gap: points are refused until all volumes were compared. With no I/O under way. */
int group_begin_compare(struct group *g, struct error *err) MUST_CHECK;
/* While the journal is suspended: tries to journal again. 0 also when it is not suspended. */
int group_resume(struct group *g, struct error *err) MUST_CHECK;
/* Waits until journaling goes on; false: the group is about to end, or does not wait. Without gate and range lock. */
bool group_await_journal(struct group *g);

/* ---- intent_group.c: which regions of the backings are marked ---- */
int intents_open(struct volume *v, const char *backing, struct error *err) MUST_CHECK;
/* After an unclean end: marks everything where the bitmaps cannot be trusted. */
int intents_check(struct group *g, struct error *err) MUST_CHECK;
/* Everything is to be compared. */
int intents_mark_whole(struct group *g, struct error *err) MUST_CHECK;
/* Whether an end that looked clean left marks: a backing could not be flushed. */
bool intents_left(struct group *g);
/* Before journaling goes on: the bitmaps are in their files again. */
int intents_save_lost(struct group *g, struct error *err) MUST_CHECK;
/* The comparison is done. */
void intents_compared(struct group *g);
/* The worker's: now and then, clears the marks of regions that both flushes have covered. */
void intents_tidy(struct group *g);
/* At the end, with no I/O any more. */
void intents_finish(struct group *g);

/* ---- volume_async.c ---- */
extern const struct block_async_ops volume_async_ops;
/* Appends what the volume holds in a range as RESYNC, and GAP for blocks that cannot be read. Under gate and range lock. */
int volume_resync(struct volume *v, uint64_t lba, uint64_t length, struct error *err) MUST_CHECK;

/* ---- grains.c ---- */
/* Under the range lock of whole grains: makes partly covered grains of [lba, lba+length) plain before a write. */
int grains_prepare(struct volume *v, uint64_t lba, uint64_t length, struct error *err) MUST_CHECK;
/* After a write: grains that were covered wholly are plain now. */
void grains_overwritten(struct volume *v, uint64_t lba, uint64_t length);
/* After one that failed, perhaps in a later part: those that are stale still are not what was journaled of them; they are journaled again. */
void grains_not_overwritten(struct volume *v, uint64_t lba, uint64_t length);
/* Reads within a stale grain. With the gate. */
int grains_read_stale(struct volume *v, uint64_t offset_bytes, uint32_t length_bytes, void *data, struct error *err) MUST_CHECK;
/* Copies a stale grain back, or compares an unverified one. Under the range lock. */
int grains_copy_back(struct volume *v, uint64_t grain, struct error *err) MUST_CHECK;
int grains_verify(struct volume *v, uint64_t grain, struct error *err) MUST_CHECK;
/* The worker thread: copy-back and comparison. */
int grains_start(struct group *g, struct error *err) MUST_CHECK;
void grains_stop(struct group *g);
void grains_wake(struct group *g);
/* fdatasync of all backings. */
int grains_flush(struct group *g, struct error *err) MUST_CHECK;
/* Opens an image of the stream at `lsn` under an internal pin whose name is put into `pin`. */
int grains_open_image(struct group *g, struct lsn lsn, char pin[24], struct image **ret, struct error *err) MUST_CHECK;
/* The same for what the volumes serve, or are compared with: of a damaged journal it has what is left, and the rest is errors. */
int grains_open_live_image(struct group *g, struct lsn lsn, char pin[24], struct image **ret, struct error *err) MUST_CHECK;
void grains_close_image(struct group *g, char pin[24], struct image **image);
void grains_swap_image(char pin[24], struct image **image, char other_pin[24], struct image **other);

/* ---- stale.c: which grains are stale, on disk and in shared memory ---- */
/* After a kill what the maps on disk and in memory say, else what those on disk do. `replaced`: a backing is another file than it was. Before there
 * is any I/O. */
int stale_load(struct group *g, bool replaced, struct error *err) MUST_CHECK;
/* Writes the map on disk, after the backings were flushed. */
int stale_save(struct group *g, struct error *err) MUST_CHECK;
/* The same, if a grain that it calls stale is not any more; not before one that is under way has ended. */
int stale_save_behind(struct group *g, struct error *err) MUST_CHECK;
/* Until all is compared, flushes save the map before they are answered, if it has to be. */
void stale_owe(struct group *g);
/* The map in shared memory, of g->rewind_lsn. Both with the gate held exclusively. */
void stale_publish(struct group *g);
void stale_forget(struct group *g);
/* The grain is in the backing. Under the range lock. */
void stale_clear(struct volume *v, uint64_t grain);
bool stale_any(const struct group *g);
/* At the end, with no I/O any more; not `clean`: as a kill, the map in shared memory stays. */
void stale_close(struct group *g, bool clean);

/* Reads a map that was saved, whole (-EBADMSG else); the caller frees it. */
int stale_read(const char *path, char **ret_data, size_t *ret_length, struct error *err) MUST_CHECK;
/* Each volume of what was read. */
void stale_each_volume(struct group *g, const char *data, size_t length, void (*take)(struct group *g, const struct pending_volume *pv, const char *bits));
bool stale_bit(const char *bits, uint64_t grain);

/* ---- stale_beside.c ---- */
#define STALE_BESIDE_BYTES 16u /* what comes behind the map */
/* Writes the map, with room for that many bytes behind it, beside a backing; `err` says why it could not be written where it belongs. 0 also where all
 * backings are devices: told by the log. */
int stale_write_beside(struct group *g, char *data, size_t length, struct error *err) MUST_CHECK;
void stale_remove_beside(struct group *g);
/* Takes away what a map beside a backing does not call stale. */
int stale_load_beside(struct group *g, bool replaced, struct error *err) MUST_CHECK;

/* ---- backing_identity.c ---- */
/* Whether it is another file than the one that was remembered. */
bool backing_was_replaced(const struct volume *v);
/* Once it is compared, or need not be. What cannot be written is told by the log. */
void backing_remember(const struct volume *v);

/* ---- rewind_space.c ---- */
struct rewind_space {
    struct group *g;
    struct group_change *change;
    uint64_t pieces, copied_bytes, referred_bytes;
    uint32_t volume; /* whose grains were counted below counted_grains */
    uint64_t counted_grains;
};
void rewind_space_init(struct rewind_space *s, struct group *g, struct group_change *change);
/* A piece of the reference run; they come in the order of volumes and sectors. */
int rewind_space_piece(struct rewind_space *s, const struct extent *piece, struct error *err) MUST_CHECK;
/* Sums up in `change`. */
void rewind_space_end(struct rewind_space *s);

/* ---- resize.c ---- */
/* The backing gets the new size, zero beyond the old one, then the journal. */
int group_grow_backing(struct group *g, struct volume *v, uint32_t id, uint64_t old_bytes, uint64_t size_bytes,
                       struct error *err) MUST_CHECK;

/* ---- seed.c ---- */
/* Finds out what is left to be seeded. `foreign`: others may have written to the backings meanwhile. *ret_inexact: before-images may be missing, the volumes have to be compared. */
int seed_open(struct group *g, bool foreign, bool *ret_inexact, struct error *err) MUST_CHECK;
/* `clean`: nothing was lost and nothing is written any more. */
void seed_close(struct group *g, bool clean);
int seed_start(struct group *g, struct error *err) MUST_CHECK;
void seed_stop(struct group *g); /* g->stop is set */
void seed_settle(struct group *g);
/* Under the range lock of whole grains: gives the grain to the base, if that lacks it. */
int seed_grain(struct volume *v, uint64_t grain, struct error *err) MUST_CHECK;
/* The same before a write; when that fails journaling is suspended, and -ESHUTDOWN. */
int seed_before_write(struct volume *v, uint64_t grain, struct error *err) MUST_CHECK;
/* Lowers *low to before the adoption of volumes with missing before-images: what comes after it is to be refused. */
int seed_exact_until(struct group *g, struct lsn *low, struct error *err) MUST_CHECK;
/* That is saved: what is in the maps in memory may be believed from now on. */
void seed_refused(struct group *g);
/* Keeps to the speed wanted for what is copied behind. false: stop. */
bool seed_pace(struct group *g, uint64_t bytes) MUST_CHECK;
/* Whether a write would have to wait for that. */
bool seed_touches(const struct volume *v, uint64_t lba, uint64_t length);

/* ---- fill.c ---- */
/* Puts a fill over a backing that is not whole: when there is a map beside it. v->file and v->id are set. */
int fill_open(struct volume *v, const char *backing, struct error *err) MUST_CHECK;
/* Opens the source if it is needed; before anything is read. *ret_inexact: the volumes have to be compared. */
int fill_start(struct group *g, bool *ret_inexact, struct error *err) MUST_CHECK;
/* Points are refused until that is done. */
void fill_refused(struct group *g);
/* As seed_close, and closes the source. */
void fill_close(struct group *g, bool clean);
/* Saves the map if it calls grains unfilled that are not any more: before a flush is answered. */
int fill_save_behind(struct volume *v, struct error *err) MUST_CHECK;
/* The thread's: copies some. 1: something is left. */
int fill_all(struct group *g, struct error *err) MUST_CHECK;
bool fill_is_wanted(const struct group *g);
/* Whether a write has to go through the fill. */
bool fill_touches(const struct volume *v, uint64_t lba, uint64_t length);

/* Nothing is read from the source. */
static inline bool volume_is_filled(const struct volume *v)
{
    return !v->fill || atomic_load_explicit(&v->fill->unfilled.set_count, memory_order_acquire) == 0;
}

/* The backing is what the volume holds. */
static inline bool volume_is_current(const struct volume *v)
{
    return atomic_load_explicit(&v->stale.set_count, memory_order_acquire) == 0 &&
           atomic_load_explicit(&v->unverified.set_count, memory_order_acquire) == 0;
}

/* And nothing has to be done before a write. */
static inline bool volume_is_plain(const struct volume *v)
{
    return volume_is_current(v) && atomic_load_explicit(&v->unseeded.set_count, memory_order_acquire) == 0 && volume_is_filled(v);
}

#endif
