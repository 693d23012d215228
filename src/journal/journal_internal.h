/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_JOURNAL_JOURNAL_INTERNAL_H
#define TIDEMARK_JOURNAL_JOURNAL_INTERNAL_H

#include <limits.h>
#include <liburing.h>
#include <pthread.h>

#include "journal/journal.h"
#include "journal/pace.h"
#include "journal/ring.h"
#include "journal/sealed_segment.h"
#include "journal/tail.h"

#define JOURNAL_LSN_RESERVE (1ull << 20) /* more than three segments' records */
#define JOURNAL_MAX_INFLIGHT 3u     /* frames that the kernel has at a time */
#define JOURNAL_INFLIGHT_RECORDS 6u /* a frame joins others in flight once it has so many */
#define JOURNAL_MAX_PINS 72u
#define JOURNAL_OWN_PINS 8u /* of those, for the engine alone: a start, a comparison, a rewind and a diff need some, however many views there are */
#define JOURNAL_CACHE_BYTES (4u << 20)
#define JOURNAL_LIGHT_CACHE_BYTES (256u << 10) /* of a light one, as what follows */
#define JOURNAL_LIGHT_WAKE_MS 60000u
#define JOURNAL_PATH_BYTES (PATH_MAX + JOURNAL_FILE_BYTES)

/* The process's side of a ring slot. */
struct frame {
    uint64_t number; /* 0: free */
    uint64_t realtime_ns, boottime_ns;
    struct lsn first;
    uint32_t count, filled;
    _Atomic uint32_t unbacked;
    _Atomic bool written; /* or given up */
    _Atomic uint32_t event; /* futex: changes when the frame is submitted and when it is written */
    _Atomic uint32_t waiters;
    uint32_t blocks;        /* with the header block */
    bool closed, ended; /* ended: the kernel is done with it, `result` says how */
    int result;
    uint64_t last_realtime_ns, last_boottime_ns;
    uint32_t crcs[FRAME_MAX_BLOCKS]; /* of its blocks; [0] unused until it is sealed */
    uint32_t sealed; /* 1 + which of the encrypted frames it is; 0: none */
};

struct internal_pin {
    char name[JOURNAL_NAME_BYTES];
    struct lsn lsn;
    uint64_t revoked_ns; /* boottime when its holder was told to end; 0: it was not */
};

struct journal {
    struct journal_options options;
    char directory[PATH_MAX];
    const struct clock *clock;
    const struct log *log;
    int lock_fd;
    struct journal_recovery recovery;

    pthread_mutex_t mutex; /* guards all below but what says otherwise */
    pthread_cond_t room;   /* a slot became free, or exclusivity ended */
    pthread_cond_t work;   /* for the sealer */
    pthread_cond_t sealed; /* a seal or a sync ended */
    struct manifest manifest;
    pthread_mutex_t save_mutex; /* one writer of the manifest file; taken before `mutex` */
    _Atomic bool unsaved;       /* the last saving failed: the manifest on disk may be another */
    bool publishing;            /* segments are being replaced: no pin may come meanwhile */
    pthread_cond_t published;   /* that ended */
    pthread_mutex_t tag_mutex;  /* one tag at a time; taken before `mutex` */

    struct ring ring;
    struct frame frames[RING_SLOTS];
    uint64_t open_number;     /* frame that takes records */
    uint64_t submit_number;   /* next to be written */
    uint64_t complete_number;         /* oldest frame that is not known to be written */
    _Atomic uint32_t inflight;        /* frames that the kernel has */
    _Atomic bool reaping;             /* somebody waits for a frame in flight */
    _Atomic uint32_t sleepers;        /* of wait_event and wait_room */
    struct journal_listener *listeners;
    uint32_t previous_crc;
    uint64_t demand_lsn; /* a frame with records up to it is written even when it has room */
    uint64_t next_lsn, last_lsn; /* next_lsn may lie further on than last_lsn + 1: after a loss, LSNs are left out */
    uint64_t durable_lsn, durable_realtime_ns;
    _Atomic uint64_t lost_low, lost_high; /* the last resume left out the LSNs (lost_low, lost_high]: they are in no segment */
    _Atomic uint64_t written_lsn;
    uint64_t written_realtime_ns, written_boottime_ns;
    uint64_t appended_blocks; /* of frames, since the opening */
    uint64_t unsynced_since_ns; /* boottime of the first record after the last sync; 0: none */
    bool exclusive;
    pthread_t exclusive_owner;
    unsigned room_waiters;

    struct io_uring uring;        /* frames */
    struct iovec known;           /* of uring_register */
    pthread_mutex_t submit_mutex; /* guards its submission queue; taken last */
    struct io_uring sync_uring;
    bool syncing;             /* what follows is of the sync under way */
    bool sync_taken;          /* somebody is at sync_uring without the mutex */
    unsigned sync_left;       /* of its fdatasyncs, in the kernel */
    int sync_result;
    uint64_t sync_covered, sync_covered_realtime_ns;
    _Atomic uint64_t sync_wanted_lsn; /* journal_sync_poll begins the sync that covers it once it is written; 0: none is wanted */
    uint64_t sync_asked_lsn;          /* of the newest journal_sync_begin */

    struct tail tails[2];
    unsigned active;  /* tails[active] */
    bool sealing;     /* tails[!active] is being sealed */
    struct extent *scratch;      /* of the sealer */
    int active_fd, sealing_fd, ready_fd;
    struct seal *seal; /* NULL: the journal is plain; set before anything else runs */
    struct aead *active_key, *ready_key, *resume_key; /* of the segments in active_fd, ready_fd and resume_fd */
    char *sealed_frames; /* JOURNAL_MAX_INFLIGHT frames, encrypted */
    uint32_t sealed_used; /* a bit each */
    uint32_t ready_number;
    int spare_fd; /* the sealer's, as what follows; -1: no segment is being made ahead */
    uint64_t spare_done_bytes, spare_seen_lsn;
    bool spare_failed; /* not tried again */
    unsigned filled_segments; /* by the sealer: none was there to be used */
    _Atomic bool suspended;
    bool stop, quota_blocked;
    bool drop_failed; /* the last attempt to drop history */
    _Atomic unsigned hold_wanted; /* journal_hold waits for maintain_mutex */
    bool recovered;   /* what recovery asked for was done: an end in order is a clean one */
    bool opened;      /* journal_recovered was called */
    struct lsn thin_after; /* thinning failed up to there: what is damaged is left as it is */
    struct lsn compress_after; /* the same of compressing */
    struct lsn merge_after;    /* and of merging */
    unsigned mend_tries;       /* of reading an index that a disk does not give, since the last drop */
    bool held;        /* journal_hold: nothing is dropped meanwhile */
    bool disk_full; /* the next segment could not be made: history is dropped for it */
    _Atomic uint64_t pace_ns;  /* what each write waits first: pace.c */
    _Atomic uint64_t paced_ns; /* what writes have waited so */
    uint64_t pace_since_ns;    /* boottime since when they do; 0: they do not */
    bool sealer_works;   /* on a segment, without the mutex */
    bool sync_failed;    /* what was written and not durable then is not known to be there */
    int resume_fd;       /* -1, or the segment that journal_resume goes on with */
    char reason[256];

    pthread_mutex_t base_mutex;    /* each change of the base's files; taken last, with none of the others below it */
    struct base_store *seed_store; /* of journal_seed; NULL: not open */

    struct internal_pin pins[JOURNAL_MAX_PINS]; /* external ones too */
    size_t pin_count;
    uint64_t base_bytes;

    pthread_t sealer, janitor;
    bool sealer_runs, janitor_runs;
    pthread_cond_t janitor_work;
    pthread_mutex_t maintain_mutex; /* one maintenance at a time; taken first of all */
    pthread_rwlock_t files_lock; /* held for reading while a table of segments is used without a pin, for writing while files
                                  * that are in the manifest no more are removed; taken before `mutex` */
    struct index_cache *cache;
};

/* ---- writer.c ---- */
int writer_init(struct journal *j, struct error *err) MUST_CHECK;
void writer_release(struct journal *j);
/* With the mutex held: starts the next frame if it can be. The mutex is dropped while the kernel takes it. */
void writer_try_submit(struct journal *j);
/* What is appended from now on goes into another frame. */
void writer_close_open(struct journal *j);
/* With the mutex held: stops journaling; see journal_resume. */
void writer_suspend(struct journal *j, const char *reason);
/* With the mutex held, never waiting for a segment (the sealer's call): starts writing what was appended; `sync`: makes
 * durable what is written. */
void writer_push(struct journal *j, bool sync);
/* With the mutex held: writes all that was appended and waits for it. Returns the last LSN that was appended. */
uint64_t writer_write_all(struct journal *j);
/* With the mutex held: waits for some progress of frame `number`, reaping when nobody else does. */
void writer_wait_frame(struct journal *j, uint64_t number);

/* With the mutex held: wakes those that sleep in poll(2). */
void writer_wake_listeners(struct journal *j);

/* Whether the last resume left it out, whatever has been written since. In this order: both are of one resume then. */
static inline bool writer_left_out(const struct journal *j, uint64_t lsn)
{
    uint64_t high = atomic_load(&j->lost_high);
    return lsn <= high && lsn > atomic_load(&j->lost_low);
}
/* With the mutex held: says that it will never be in the journal, and why. */
int writer_lost(const struct journal *j, struct error *err);

/* ---- sync.c ---- */
/* With the mutex held and no sync under way: begins to make durable what is written. The mutex is dropped meanwhile. */
void sync_begin(struct journal *j);
/* With the mutex held (dropped meanwhile) and a sync under way: waits until there is some progress of it. */
void sync_await(struct journal *j);
enum append_until { APPEND_QUEUED, APPEND_WRITTEN, APPEND_DURABLE };
/* Appends a record that has no backing write, and waits for as much. */
int sync_append(struct journal *j, const struct journal_record *record, enum append_until until, struct journal_ticket *ret, struct error *err) MUST_CHECK;

/* A test's fault at a step, or 0. */
static inline int journal_fault_at(struct journal *j, const char *step)
{
    return j->options.fault ? j->options.fault(j->options.fault_context, step) : 0;
}

/* Of a full one. */
static inline uint64_t journal_segment_bytes(const struct journal *j)
{
    return (uint64_t)j->options.segment_blocks * JOURNAL_BLOCK_BYTES;
}

/* ---- segment.c ---- */
/* Makes segment `number` ready to be written (recycled or new, written with zeroes, header durable). `keep_room`: -ENOSPC
 * already when the disk has no room left for dropping history. *ret_key: NULL in a plain journal. */
int segment_prepare(struct journal *j, uint32_t number, bool keep_room, int *ret_fd, struct aead **ret_key, struct error *err) MUST_CHECK;
/* Waits until the kernel has ended the writes to `fd`, a segment of before: the process that began them is gone before they are. */
int segment_await(const char *path, int fd, struct error *err) MUST_CHECK;
/* The header block of a segment: a new one, or one that thinning makes. */
void segment_make_header(const struct journal *j, uint32_t number, void *block);
void segment_make_thinned_header(const struct journal *j, const struct segment_info *s, const uint8_t *salt, void *block);
/* Gives a dropped segment's file back: kept for recycling, or removed. */
void segment_recycle(struct journal *j, uint32_t number, bool may_recycle);

/* The path of a file that could wait to be used again beside those that do, of `count` at most; false: there are as many. */
bool segment_free_path(const struct journal *j, unsigned count, char path[JOURNAL_PATH_BYTES]);
/* Removes one of them: the disk is full. false: there is none. */
bool segment_give_free(const struct journal *j) MUST_CHECK;

/* ---- spare.c; for the sealer ---- */
/* With the mutex held, which is dropped meanwhile: makes segments ahead if hardly anything was journaled since the last call. */
void spare_work(struct journal *j);
/* Removes the one that is not ready. */
void spare_drop(struct journal *j);
/* reserve.c: room for an opening on a full disk. Gives up a piece of it; false: there is none, or nobody but an opening may have it. */
bool reserve_give(struct journal *j) MUST_CHECK;
/* Makes it as large as it should be, or as there is room for. */
void reserve_keep(struct journal *j);

/* ---- sealer.c ---- */
int sealer_start(struct journal *j, struct error *err) MUST_CHECK;
void sealer_stop(struct journal *j);
/* Seals `t` (segment file `fd`): index written, then in the manifest. Without the mutex. */
int sealer_seal(struct journal *j, struct tail *t, int fd, struct error *err) MUST_CHECK;
/* Whether it is in the manifest already, which only could not be saved: what it has is durable. Without the mutex. */
bool sealer_is_sealed(struct journal *j, const struct tail *t);
/* Seals what was switched away from. Without the mutex. */
int sealer_seal_switched(struct journal *j, struct error *err) MUST_CHECK;
/* Adds a rewind to the manifest if it is not there. With the mutex. */
int sealer_add_rewind(struct journal *j, struct lsn lsn, struct lsn target, struct error *err) MUST_CHECK;
/* Whether the REWIND record `lsn` counts: it is in the manifest, or not yet, but its reference run is there. A rewind that failed has
 * none, although its record may have come to the disk. */
bool sealer_is_rewind(const struct journal *j, const struct manifest *m, struct lsn lsn);
/* Adds the rewinds of a tail to `m`. With the mutex. */
void sealer_note_rewinds(const struct journal *j, struct manifest *m, const struct tail *t);
/* Saves the manifest. Without the mutex. */
int sealer_save(struct journal *j, struct error *err) MUST_CHECK;
/* Saves the manifest with a change before anything in this process sees that, so that nothing is named by a pin, a reference or
 * another file that a kill would undo. `change` is made to a copy, and to the manifest itself (with the mutex) once that is saved. When
 * it fails, which of both the disk has is not known. Without the mutex. */
typedef int (*manifest_change)(void *context, struct manifest *m, struct error *err);
int sealer_change(struct journal *j, manifest_change change, void *context, struct error *err) MUST_CHECK;
/* Saves the manifest if that failed the last time: no file that the one on disk may name is written or removed before. */
int sealer_catch_up(struct journal *j, struct error *err) MUST_CHECK;

/* ---- recovery.c ---- */
int recovery_run(struct journal *j, struct error *err) MUST_CHECK;
/* What the segments lack cannot be had from the ring: the volumes are compared. Before recovery_replay, which does nothing then. */
void recovery_lose(struct journal *j);
/* Adds what was in the ring to the new segment, after the writer runs. */
int recovery_replay(struct journal *j, struct error *err) MUST_CHECK;

/* ---- rewind_copy.c ---- */
/* At opening: of the two copies of a rewind's reference run one stands in for the other. */
void rewinds_mend(struct journal *j);

/* Puts the copy, which is whole, in place of the first one. */
int rewind_use_copy(struct journal *j, struct lsn lsn, struct error *err) MUST_CHECK;

/* ---- mend.c; with maintain_mutex, without the mutex ---- */
/* Whether a file is not what was written: trying again gives nothing else. */
static inline bool journal_is_damage(int r)
{
    return r == -EBADMSG || r == -EIO || r == -ENOENT;
}
/* Whether what gave `r` may be there again soon (a disk may, for a minute): what is taken for lost is lost for good. */
bool mend_may_come_back(struct journal *j, int r);
/* Makes the L0 of a sealed segment again if it is damaged or missing. Where frames are lost, too, it stays as it is: *ret_lost is the last LSN that
 * cannot be known (else LSN_NONE), and what is left of the segment, if anything, goes to an index at mend_left_path, the caller's to remove.
 * -EIO for the first tries of a loss to which a reading error leads. */
int mend_segment(struct journal *j, const struct segment_info *s, struct lsn *ret_lost, struct error *err) MUST_CHECK;
void mend_left_path(const struct journal *j, const struct segment_info *s, char path[JOURNAL_PATH_BYTES]);
/* The same of a rewind's reference run, of its copy; *ret_whole false: both are damaged. */
int mend_rewind(struct journal *j, struct lsn lsn, bool *ret_whole, struct error *err) MUST_CHECK;
/* Tells, and keeps in losses.json, that records with LSN in (low, high] cannot be known. */
void mend_note_loss(struct journal *j, uint32_t segment, struct lsn low, struct lsn high, const char *what);

/* ---- merge.c; with maintain_mutex, without the mutex ---- */
/* Makes one run if there is one to be made. */
int merge_step(struct journal *j, const struct manifest *m, bool *ret_done, struct error *err) MUST_CHECK;
struct index_inputs {
    struct index **indexes;
    struct extent_stream **streams;
    size_t count, capacity;
};
/* Adds the indexes of segments [first, last] and of the rewinds in them; `lost`: of segments up to there what is left of them. */
int inputs_add_segments(struct journal *j, struct index_inputs *in, const struct manifest *m, uint32_t first, uint32_t last, struct lsn lost,
                        struct error *err) MUST_CHECK;
/* `streams`: those, too; else somebody has taken them. */
void inputs_release(struct index_inputs *in, bool streams);

/* ---- maintain.c ---- */
int janitor_start(struct journal *j, struct error *err) MUST_CHECK;
void janitor_stop(struct journal *j);
uint64_t maintain_journal_bytes(const struct journal *j); /* with the mutex */
/* Drops some of the oldest history if the quota is reached. With maintain_mutex, without the mutex. */
int maintain_quota(struct journal *j, struct error *err) MUST_CHECK;
/* Copies what the rewinds refer to in segments [first, last] to their rescue stores: the segments are about to go. */
int maintain_rescue(struct journal *j, uint32_t first_segment, uint32_t last_segment, struct error *err) MUST_CHECK;
/* Remove the files of what is in the manifest no more. With files_lock held for writing. */
void maintain_remove_segment(struct journal *j, const struct segment_info *s, bool may_recycle);
void maintain_remove_run(struct journal *j, const struct run_info *run);

/* ---- compress.c ---- */
/* Compresses the oldest segments that are old enough, at most COMPRESS_BATCH of them; *ret_done false when there is none, or
 * something more urgent came. With maintain_mutex, without the mutex. */
#define COMPRESS_BATCH 32u
int compress_step(struct journal *j, bool *ret_done, struct error *err) MUST_CHECK;

/* ---- volumes.c ---- */
/* Finds out how large the base is. */
void volumes_count_base(struct journal *j);

/* ---- pin.c ---- */
/* The lowest LSN that a pin needs; LSN_MAX without pins. Removes pins whose holder is gone. */
struct lsn pin_floor(struct journal *j);
/* Tells the holder of the oldest external pin to end, unless it was told already. With maintain_mutex, without the mutex. */
void pin_revoke_oldest(struct journal *j);
/* With the mutex: whether some holder was told lately, and may be about to end. */
bool pin_is_ending(const struct journal *j);
/* With the mutex: whether some holder is, or can still be told to. */
bool pin_may_end(const struct journal *j);
/* The highest LSN that is pinned; LSN_NONE without pins. What lies behind it may be rewritten. */
struct lsn pin_ceiling(const struct journal *j); /* with the mutex */

/* A rescue by thinning is under way, or has not come to its end (maintain.c). */
#define JOURNAL_RESCUING_FILE "rescuing"
/* Makes an empty file in the journal's directory, durable. */
int journal_mark(const struct journal *j, const char *file, struct error *err) MUST_CHECK;

static inline void journal_path(const struct journal *j, const char *file, char path[JOURNAL_PATH_BYTES])
{
    snprintf(path, JOURNAL_PATH_BYTES, "%s/%s", j->directory, file);
}

#endif
