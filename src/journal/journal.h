/* SPDX-License-Identifier: Apache-2.0 */
/* The journal of one stream: every record in one order (LSN), appended in frames (group commit) to preallocated
 * segments, with an index beside, history up to a quota, and points that can be pinned and read back.
 *
 * Invariants: J2 an LSN is given under one lock when a record is appended; J3 recovery keeps a prefix that holds all that
 * a completed journal_sync covered; J6 every byte is under a CRC32C; J7 memory is reserved when it is opened. LSNs
 * are never used twice.
 *
 * All functions are thread-safe unless said otherwise. Lock order: journal.mutex is taken last and never held over I/O. */
#ifndef TIDEMARK_JOURNAL_JOURNAL_H
#define TIDEMARK_JOURNAL_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "base/log.h"
#include "journal/journal_format.h"
#include "journal/manifest.h"
#include "journal/point.h"

#define JOURNAL_SEGMENT_BLOCKS 16384u /* 64 MiB */
#define JOURNAL_SEGMENT_RECORDS 32768u
#define JOURNAL_FANOUT 8u
#define JOURNAL_MIN_QUOTA_SEGMENTS 4u
#define JOURNAL_PAYLOAD_MAX_BYTES (1u << 20)

struct journal;

/* Makes steps fail, for tests: called before each, with its name ("write", "sync", "segment", "seal", "save", "drop"); a negative
 * errno fails it. In any thread. The volumes use it too ("intent"). */
typedef int (*journal_fault)(void *context, const char *step);
/* History older than `after_ns` keeps one point every `keep_s` seconds. */
#define JOURNAL_MAX_THINNING 8u
struct journal_thinning {
    uint64_t after_ns;
    uint32_t keep_s;
};

struct journal_options {
    const char *directory;
    const char *key_file;     /* NULL or "": a plain journal; else it is encrypted (journal/seal.h) */
    uint64_t quota_bytes;     /* of segments and indexes; history beyond it is dropped, oldest first. 0: no limit */
    uint64_t history_ns;      /* what is older is dropped. 0: no limit */
    struct journal_thinning thinning[JOURNAL_MAX_THINNING]; /* ascending */
    size_t thinning_count;
    bool compress;              /* sealed segments that old, and what thinning writes, are compressed */
    uint64_t compress_after_ns;
    unsigned spare_segments;  /* new ones are made ahead while hardly anything is journaled: at most so many, and 8 */
    uint32_t segment_blocks;  /* 0: JOURNAL_SEGMENT_BLOCKS */
    uint32_t segment_records; /* 0: JOURNAL_SEGMENT_RECORDS */
    uint32_t fanout;          /* 0: JOURNAL_FANOUT */
    const char *ring_path;    /* NULL: /dev/shm/tidemark-<journal id>-<device>-<inode of the directory>.ring */
    /* One of many journals of a process, most of them idle: instead of J7 its memory is taken as it is used,
     * and given back by journal_relax. The frame ring is the process's own (`ring_path` is not used), so that
     * a kill loses what no journal_sync has covered; nothing else makes it durable in time. Its threads wake
     * for work alone. */
    bool light;
    const char *owner;        /* named in the lock file; static */
    const struct log *log;
    const struct clock *clock; /* NULL: clock_system() */
    journal_fault fault;       /* NULL; else for tests */
    void *fault_context;
    /* For tests: asked before each step of thinning (1 to 6) and of compressing (7 to 9); true ends it there as a kill would, with all files left behind. */
    bool (*thin_fault)(void *context, unsigned step);
    void *thin_fault_context;
};

/* A range whose backing write may or may not have happened when the engine was killed. */
struct journal_in_flight {
    uint32_t volume;
    uint64_t lba;
    uint32_t length;
};
#define JOURNAL_MAX_IN_FLIGHT (8u * FRAME_MAX_RECORDS)
struct journal_recovery {
    bool created;      /* the journal is new */
    bool clean;        /* the last use ended in order */
    bool compare;      /* power was lost or writes went on unjournaled: compare the backing with image(latest) */
    bool compare_all;  /* as compare, and the write-intent bitmaps do not say where: everything */
    bool memory_kept;  /* the frame ring is that of this journal's last use: what else is in shared memory may be believed */
    struct lsn last;   /* found in the segments; what the ring gave comes after it */
    uint64_t replayed; /* records taken from the ring */
    uint64_t frames;   /* found after the last sealed segment */
    char manifest_damage[MANIFEST_DAMAGE_BYTES]; /* "": none; else which of its two copies was damaged; the other one stood in for it */
    size_t in_flight_count;
    struct journal_in_flight in_flight[JOURNAL_MAX_IN_FLIGHT];
};

/* Opens or creates it: takes the lock (-EBUSY names the holder), recovers, starts the threads. */
int journal_open(const struct journal_options *options, struct journal **ret, struct error *err) MUST_CHECK;
/* What the opening found; valid until close. */
const struct journal_recovery *journal_recovery(const struct journal *j);
/* What that asks for was done: the writes in flight were read back, a comparison has begun (journal_refuse_begin). An end before
 * leaves it to the next opening, which then compares. */
void journal_recovered(struct journal *j);
/* An empty file: the next opening compares everything. */
#define JOURNAL_COMPARE_FILE "compare"
/* Writes everything, seals, marks it clean (unless recovery asked for something that was not done). NULL allowed. No other call may
 * be running. */
int journal_close(struct journal *j, struct error *err) MUST_CHECK;
/* As a kill: drops everything without writing. For tests. */
void journal_abandon(struct journal *j);
const char *journal_directory(const struct journal *j);

/* ---- appending ---- */
struct journal_record {
    enum journal_op op;
    uint8_t flags;
    uint32_t volume;
    uint64_t lba;    /* sectors */
    uint32_t length; /* sectors */
    const void *payload;
    uint32_t payload_bytes; /* at most JOURNAL_PAYLOAD_MAX_BYTES */
    uint64_t tag, aux;
    bool lazy; /* nobody waits for it: its frame may wait for more records (at most some 250 ms) */
    uint64_t realtime_ns, boottime_ns; /* when it was made, of one that is replayed; 0: now */
};
struct journal_ticket {
    struct lsn lsn;
    uint64_t realtime_ns; /* the record's, as everybody will read it */
    uint64_t frame;       /* number */
    uint32_t slot, index;
    const void *payload;  /* the page-aligned copy in the ring; valid until journal_backed */
};
/* Gives the record the next LSN, copies its payload into the frame and starts the frame's write when none is under way.
 * Blocks only for room in the ring. -ESHUTDOWN while the journal is suspended. Call journal_backed afterwards. */
int journal_append(struct journal *j, const struct journal_record *record, struct journal_ticket *ret,
                   struct error *err) MUST_CHECK;
/* The record's backing write is done (or has none): the in-flight table forgets it. */
void journal_backed(struct journal *j, const struct journal_ticket *ticket);
/* Waits until the frame is written to the segment (not durable). -ESHUTDOWN if the journal was suspended instead. */
int journal_wait(struct journal *j, const struct journal_ticket *ticket, struct error *err) MUST_CHECK;

/* For a thread that must not block (block/queue.h): as journal_append, with -EAGAIN where that would wait for room. The
 * frame is not started before journal_push. */
int journal_try_append(struct journal *j, const struct journal_record *record, struct journal_ticket *ret,
                       struct error *err) MUST_CHECK;
/* Starts writing what was appended; does not wait. */
void journal_push(struct journal *j);
/* Takes note of frames that the kernel has ended, and starts the next; does not wait. */
void journal_poll(struct journal *j);
/* Whether the record is written. *ret_lost: it will never be, the journal is suspended. */
bool journal_is_written(struct journal *j, const struct journal_ticket *ticket, bool *ret_lost);
/* Wakes a thread that sleeps in poll(2) on `fd` (an eventfd, non-blocking) and journal_poll_fd: set `asleep`, poll the
 * journal once more, then sleep. */
struct journal_listener {
    int fd;
    _Atomic bool asleep;
    struct journal_listener *next;
};
/* The listener stays until journal_unlisten, which is called before the journal is closed. */
void journal_listen(struct journal *j, struct journal_listener *l);
void journal_unlisten(struct journal *j, struct journal_listener *l);
/* Where the payloads of tickets lie while the journal is open; empty where memory that is not used is given back. */
struct iovec journal_payload_memory(const struct journal *j);
/* Readable when journal_poll will find something. */
int journal_poll_fd(const struct journal *j);

/* Whether writes have to wait a little before they are appended, because dropping old history does not keep up with them; one relaxed
 * load. If so, journal_pace sleeps for what is due: at most 50 ms, whatever happens. With no lock held. */
bool journal_paces(const struct journal *j);
void journal_pace(struct journal *j);

/* Between these, appends of other threads wait, so that the parts of one request get successive LSNs. */
void journal_exclusive_begin(struct journal *j);
void journal_exclusive_end(struct journal *j);
/* Makes all that was appended durable, with fdatasync of `also_fd` (-1: none) in parallel. An error of `also_fd` is
 * *ret_also (negative errno or 0). 0, or -ESHUTDOWN while suspended. */
int journal_sync(struct journal *j, int also_fd, int *ret_also, struct error *err) MUST_CHECK;
/* The same for a thread that must not block: begins it and returns what it is about; then, again and again (woken as by
 * journal_poll_fd, and by journal_sync_poll_fd), asks whether it is durable. *ret_lost: it will not be, the journal is
 * suspended. While it waits for something else first, journal_sync_poll in the same way keeps it going. */
struct lsn journal_sync_begin(struct journal *j);
bool journal_sync_step(struct journal *j, struct lsn target, bool *ret_lost);
void journal_sync_poll(struct journal *j);
int journal_sync_poll_fd(const struct journal *j);
/* Appends one record without backing and makes it durable. */
int journal_append_durable(struct journal *j, const struct journal_record *record, struct lsn *ret, struct error *err) MUST_CHECK;

/* ---- state ---- */
struct journal_status {
    struct lsn latest, durable, oldest;
    struct lsn appended; /* of the newest record; those after `latest` are not written yet */
    uint64_t latest_realtime_ns, oldest_realtime_ns;
    uint64_t not_durable_ns; /* age of the oldest record that is not durable; 0: none */
    uint64_t journal_bytes, quota_bytes, base_bytes;
    uint64_t segment_bytes; /* of a full one */
    uint64_t segments, runs;
    uint64_t cold_segments, cold_bytes, cold_plain_bytes; /* compressed ones, and what they would take without */
    bool suspended, quota_blocked;
    uint64_t pace_ns, paced_ns; /* what a write waits now, and what writes have waited since the opening: journal_pace */
    uint64_t reserve_bytes;     /* how far over the quota it may get while views keep the oldest history */
    bool pace_persists;         /* so for long: dropping history does not keep up */
    char reason[256]; /* of the suspension */
};
void journal_status(struct journal *j, struct journal_status *ret);
/* A part of the history in which points are kept at one distance. */
struct journal_span {
    uint64_t from_ns, to_ns; /* realtime */
    uint32_t keep_s;         /* 0: every write */
};
#define JOURNAL_MAX_SPANS 32u
/* The history's parts, oldest first; beyond the capacity the oldest are joined. Returns their number. */
size_t journal_spans(struct journal *j, struct journal_span *spans, size_t capacity);
/* How long a history of every write the quota would hold at the rate of the last minutes; 0: not known. */
uint64_t journal_quota_ns(struct journal *j);
/* It never changes. */
struct uuid journal_id(struct journal *j);
/* A copy of the manifest as of now; release it. */
int journal_manifest(struct journal *j, struct manifest *ret, struct error *err) MUST_CHECK;
/* Ends the active segment and waits until it is sealed and indexed. */
int journal_seal(struct journal *j, struct error *err) MUST_CHECK;
/* Runs merges and the quota until nothing is left to do. For tests and before measuring. */
int journal_maintain(struct journal *j, struct error *err) MUST_CHECK;
/* Drops history below `target` (a point that stays readable), as far as pins and sealed segments allow. */
int journal_drop(struct journal *j, struct lsn target, struct error *err) MUST_CHECK;
/* Between these no history is dropped and nothing merged, so that what an index points at stays where it is. */
void journal_hold(struct journal *j);
/* The same for who makes something that points at the base: a drop that was interrupted is repeated before, so that no block of that is half changed.
 * On failure nothing is held. */
int journal_hold_whole(struct journal *j, struct error *err) MUST_CHECK;
void journal_unhold(struct journal *j);
/* Whether the file that an extent points at is still there: it was neither dropped nor thinned meanwhile. */
bool journal_has_segment(struct journal *j, uint32_t number, uint32_t generation);
/* While suspended: seals what is whole of the old segment, and makes a new one. It may take as long as the disk likes; writes
 * go on unjournaled meanwhile. Called again after a failure. */
int journal_resume_prepare(struct journal *j, struct error *err) MUST_CHECK;
/* After that, with no append and no backing write under way: journals again. Quick. Points after the durable LSN are to be refused before
 * (journal_refuse_begin), and what the volumes hold to be compared then. -EAGAIN: not prepared, or something is under way. */
int journal_resume(struct journal *j, struct error *err) MUST_CHECK;
bool journal_is_suspended(struct journal *j);
/* Gives memory back that is not used now, of a `light` journal. */
void journal_relax(struct journal *j);
/* Suspends it: something that it cannot do without failed. `unmarked`: what is written from now on is in no write-intent bitmap
 * that would survive a kill. */
void journal_suspend(struct journal *j, const char *reason, bool unmarked);
/* The backings are not known to hold what the journal has (a flush failed): a kill from now on leads to a comparison. */
void journal_doubt(struct journal *j);
/* A test's fault at a step of the journal's user, or 0. */
int journal_step(struct journal *j, const char *step) MUST_CHECK;

/* ---- policy ---- */
/* What may change while it is open: quota, age, thinning and compression, from `options`. */
void journal_configure(struct journal *j, const struct journal_options *options);

/* ---- volumes ---- */
/* Finds the volume `name`, or journals its creation; `adopt`: with what its backing holds, which journal_seed gives to the
 * base. -EINVAL if it was not adopted though it should be, or the other way round. *ret has the size that it has: a smaller one has
 * to be grown by journal_resize, a larger one stays. */
int journal_volume(struct journal *j, const char *name, uint64_t size_bytes, bool adopt, struct volume_info *ret,
                   struct error *err) MUST_CHECK;
/* The same of one that is to be adopted although that was not asked for: the history that it had was lost. Later it is opened by
 * journal_volume, whatever it says of `adopt`. */
int journal_take_volume(struct journal *j, const char *name, uint64_t size_bytes, struct volume_info *ret, struct error *err) MUST_CHECK;
/* Journals that the volume is larger from now on; its backing is already. Repeated after a crash it does no harm. */
int journal_resize(struct journal *j, uint32_t volume, uint64_t size_bytes, struct error *err) MUST_CHECK;
/* What the backing of an adopted volume held before anything was written there (sectors; NULL: it cannot be read). Durable
 * after journal_seed_sync. */
int journal_seed(struct journal *j, uint32_t volume, uint64_t lba, uint32_t length, const void *data, struct error *err) MUST_CHECK;
int journal_seed_sync(struct journal *j, struct error *err) MUST_CHECK;
/* The base has all of it: points of the volume can be opened from now on. */
int journal_seeded(struct journal *j, uint32_t volume, struct error *err) MUST_CHECK;
/* A file beside the frame ring: in memory, it survives a kill and no loss of power. */
void journal_memory_path(const struct journal *j, const char *suffix, char *path, size_t size);

/* ---- refused intervals ---- */
/* Opens an interval above `low`, or closes the open one at `high`; saved before it returns. */
int journal_refuse_begin(struct journal *j, struct lsn low, struct error *err) MUST_CHECK;
int journal_refuse_end(struct journal *j, struct lsn high, struct error *err) MUST_CHECK;

/* ---- rewinds ---- */
/* With nothing being appended: the LSN that the next record gets. */
struct lsn journal_next_lsn(struct journal *j);
/* After the REWIND record is durable: remembers it. */
int journal_rewound(struct journal *j, struct lsn lsn, struct lsn target, struct error *err) MUST_CHECK;
/* After that, before journal_unhold: makes the second copy of its reference run. What it cannot do the next opening does. Blocks. */
void journal_copy_rewind(struct journal *j, struct lsn lsn);

/* ---- history ---- */
struct journal_point {
    struct lsn lsn;
    uint64_t realtime_ns;
    char note[160]; /* "" or what the user should know */
};
/* Finds the LSN of a point. -ERANGE outside of history, saying what history there is; -ENOENT for an unknown tag. */
int journal_resolve(struct journal *j, const struct point *point, struct journal_point *ret, struct error *err) MUST_CHECK;
/* The same although parts of the history cannot be read: passes over them to the last point before, and says so in the note. */
int journal_resolve_salvage(struct journal *j, const struct point *point, struct journal_point *ret, struct error *err) MUST_CHECK;

/* The last point at or before `lsn`, which may have been thinned away, or be in a gap; the note says when it is an earlier one. -ERANGE when it is
 * older than the history. */
int journal_resolve_before(struct journal *j, struct lsn lsn, struct journal_point *ret, struct error *err) MUST_CHECK;

struct journal_event {
    struct lsn lsn;
    uint64_t realtime_ns;
    enum journal_op op; /* OP_WRITE: activity of one second: `lsn` its last, `aux` bytes, `tag` writes */
    uint8_t flags;
    uint32_t volume;
    uint64_t aux, tag;
    const char *payload; /* NUL-terminated after payload_bytes; valid during the call */
    uint32_t payload_bytes;
};
/* Calls visit for the events with LSN in (low, high], newest first; visit returns 0 to go on, 1 to stop, or -errno.
 * `activity`: one OP_WRITE event a second with writes in addition. `damaged`: what cannot be read is passed over, and this is set; with NULL
 * it is an error. */
typedef int (*journal_event_visit)(void *context, const struct journal_event *event, struct error *err);
int journal_events(struct journal *j, struct lsn low, struct lsn high, bool activity, journal_event_visit visit,
                   void *context, bool *damaged, struct error *err) MUST_CHECK;
/* Appends a tag (MARK) or -EEXIST; durable. labels: JSON object text or NULL. */
int journal_tag(struct journal *j, const char *name, const char *labels_json, struct journal_point *ret, struct error *err) MUST_CHECK;
/* Appends an object's change (content NULL: deleted); not waited for beyond journal_wait, and with `ret` NULL
 * not at all. The name JOURNAL_EVERY_OBJECT, which is only deleted, means all of them: whoever finds that the objects of LATEST are not known
 * any more (-EBADMSG of journal_objects) journals that, then all that are there. */
#define JOURNAL_EVERY_OBJECT "*"
int journal_object(struct journal *j, const char *name, const void *content, size_t content_bytes,
                   struct journal_point *ret, struct error *err) MUST_CHECK;
/* Calls visit for each object that exists at `lsn`, in no order. Rewinds are followed. */
typedef int (*journal_object_visit)(void *context, const char *name, const char *content, size_t content_bytes,
                                    struct lsn lsn, struct error *err);
int journal_objects(struct journal *j, struct lsn lsn, journal_object_visit visit, void *context, struct error *err) MUST_CHECK;

/* ---- pins ---- */
/* Makes the point readable from files alone, by this or another process: writes pins/<name>, and the indexes of segments
 * that are not sealed yet. While the flock on pins/<name>.lock is held by anybody (or the pin is internal), nothing
 * that it needs is dropped. The LSN is made durable. */
int journal_pin(struct journal *j, const char *name, struct lsn lsn, bool internal, struct error *err) MUST_CHECK;
int journal_unpin(struct journal *j, const char *name, struct error *err) MUST_CHECK;

#endif
