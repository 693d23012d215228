/* SPDX-License-Identifier: Apache-2.0 */
/* A consistency group: the volumes of one stream, written through one journal in one order.
 *
 * The way of a write: gate (shared), range lock, LSN and copy into the journal's frame, backing write from that copy
 * (while the frame is being written), acknowledgement. Invariants: J2 acknowledged before submitted => smaller LSN, over all
 * volumes; J4 after recovery the live volume equals image(latest); J8 a rewind to s makes it image(s), its undo what it was.
 *
 * Each grain (64 KiB) of a volume may be stale (a rewind's content is not copied back yet: read through the journal's
 * image) or unverified (after a power loss or a gap: compared with the image before anything is written over it).
 *
 * Thread-safe. Lock order: gate, range lock, journal. */
#ifndef TIDEMARK_VOLUME_GROUP_H
#define TIDEMARK_VOLUME_GROUP_H

#include "base/log.h"
#include "block/block.h"
#include "journal/journal.h"

#define GROUP_GRAIN_BYTES 65536u
#define GROUP_GRAIN_SECTORS 128u
#define GROUP_MAX_VOLUMES 64u
#define GROUP_COMPARE_FILE JOURNAL_COMPARE_FILE /* in the journal's directory: all is compared at the next start, backings may have changed */
#define GROUP_SEED_BYTES_PER_SECOND (64ull << 20)

struct group;
struct signal;

enum group_ack {
    GROUP_ACK_WRITE, /* after backing and journal */
    GROUP_ACK_FLUSH, /* after the backing; the frame follows from shared memory, FLUSH waits for both */
};

/* The journal is borrowed. */
int group_new(struct journal *journal, enum group_ack ack, const struct log *log, struct group **ret, struct error *err) MUST_CHECK;
/* Adds a volume with its backing file or device (created sparse when missing); one that was smaller grows. Before group_start. */
int group_add_volume(struct group *g, const char *name, uint64_t size_bytes, const char *backing, struct error *err) MUST_CHECK;
/* The same with a backing that is there and holds something: that is the beginning of its history. Taken for itself (-EBUSY). */
int group_adopt_volume(struct group *g, const char *name, uint64_t size_bytes, const char *backing, struct error *err) MUST_CHECK;
/* Where adopted volumes are read from whose backing is not whole: one with a map of what it lacks beside it (volume/fill.h). They can be used at
 * once; the rest is copied behind, at the speed of seeding and before that. The pin `pin` of that journal (which is unlocked, journal/seal.h) has to
 * stay until group_status shows that it is not filling any more. Before group_start. */
int group_set_source(struct group *g, const char *journal, const char *pin, struct error *err) MUST_CHECK;
/* `holds`: writes and flushes wait while the journal is suspended (mode `protection`), instead of going on unjournaled
 * (`availability`, the default). Before group_start. */
void group_set_holds(struct group *g, bool holds);
/* Does what recovery left to do, and starts the background threads. */
int group_start(struct group *g, struct error *err) MUST_CHECK;
/* Before an end: writes and flushes that wait for the journal return -ESHUTDOWN, and so do those that would have to. */
void group_give_up(struct group *g);
/* Stops the threads; no I/O may be running. The journal is not closed. NULL allowed. */
void group_free(struct group *g);
/* As a kill, before journal_abandon: nothing is saved. For tests. */
void group_abandon(struct group *g);

size_t group_volume_count(const struct group *g);
const char *group_volume_name(const struct group *g, size_t i);
/* The volume as a block device, for exports. Owned by the group. */
struct block *group_volume_block(struct group *g, size_t i);

/* From now on the volume's writes are noted in `signal` (borrowed). Before any I/O. */
void group_volume_watch(struct group *g, size_t i, struct signal *signal);
/* Reads what the backing holds, uncounted and without a lock, so perhaps half of a write. -EAGAIN while a rewind is being
 * copied back or a comparison runs: then the backing says nothing. */
int group_volume_peek(struct group *g, size_t i, void *data, size_t length_bytes, uint64_t offset_bytes,
                      struct error *err) MUST_CHECK;

struct group_volume_status {
    const char *name;
    uint32_t id;
    uint64_t size_bytes, written_bytes, read_bytes, discarded_bytes, writes, reads, flushes;
    uint64_t stale_bytes; /* still to be copied back */
    bool failed;          /* a flush failed: what was written may be lost */
    bool seeding;         /* adopted: what it held is being copied to the base */
    uint64_t unseeded_bytes; /* of that, still to be copied */
    bool filling;            /* part of it is still read from another journal */
    uint64_t fill_total_bytes, unfilled_bytes;
};
void group_volume_status(struct group *g, size_t i, struct group_volume_status *ret);

struct group_status {
    bool rewinding;
    struct lsn rewind_lsn, rewind_target;
    uint64_t stale_bytes;
    bool resyncing;
    uint64_t resync_done_bytes, resync_total_bytes;
    uint64_t unjournaled_writes; /* since the journal was suspended */
    bool seeding;                /* adopted volumes: points cannot be opened yet */
    uint64_t seed_done_bytes, seed_total_bytes;
    bool filling;                /* something may still be read from the source */
    uint64_t fill_done_bytes, fill_total_bytes;
    char seed_trouble[256]; /* why that (or filling) does not go on; "" if it does */
    char copy_trouble[256]; /* the same of copying a rewind back */
    bool pending_damaged;   /* what was left of it was not known any more: everything is copied back */
};
void group_status(struct group *g, struct group_status *ret);

/* ---- adopting and growing ---- */
/* How fast what adopted volumes held is copied; 0: without a limit. */
void group_set_seed_speed(struct group *g, uint64_t bytes_per_second);
/* -EBUSY with the reason while the point cannot be opened because an adopted volume is not seeded yet. */
int group_check_seeded(struct group *g, struct lsn lsn, struct error *err) MUST_CHECK;
/* Makes a volume larger while it is used: its backing, its history from the next LSN on, and what exports see. */
int group_resize(struct group *g, const char *name, uint64_t size_bytes, struct error *err) MUST_CHECK;
/* What may change while it is used: see group_new and group_set_holds. */
void group_configure(struct group *g, enum group_ack ack, bool holds);

/* ---- rewinding and comparing ---- */
#define GROUP_MAX_RANGES 64u
struct group_volume_change {
    uint32_t volume;
    char name[JOURNAL_NAME_BYTES];
    uint64_t changed_bytes, extents;
    uint64_t needed_bytes; /* of a dry run: on the disk of its backing */
    struct {
        uint64_t offset_bytes, length_bytes;
    } ranges[GROUP_MAX_RANGES]; /* the first ones, joined */
    size_t range_count;
};
struct group_change {
    struct lsn lsn; /* of the REWIND record; of the latest for a dry run */
    struct group_volume_change *volumes; /* one a volume of the group; free it */
    size_t volume_count;
    uint64_t changed_bytes;
    uint64_t needed_bytes; /* of a dry run: on the journal's disk */
};
/* Makes all volumes what they were at `target`, at once; the copy follows in the background. */
int group_rewind(struct group *g, struct lsn target, bool dry_run, struct group_change *ret, struct error *err) MUST_CHECK;
/* What a dry run found that a rewind needs, by disks. */
#define GROUP_MAX_DISKS (GROUP_MAX_VOLUMES + 1u)
struct group_space {
    const char *of; /* "the journal", or the volume whose backing it has */
    uint64_t device, needed_bytes, free_bytes;
};
size_t group_rewind_space(struct group *g, const struct group_change *change, struct group_space list[GROUP_MAX_DISKS]);
/* -ENOSPC, saying what is needed and what is there, if one of them has not enough. */
int group_check_space(struct group *g, const struct group_change *change, struct error *err) MUST_CHECK;
/* What differs between two points. */
int group_diff(struct group *g, struct lsn from, struct lsn to, struct group_change *ret, struct error *err) MUST_CHECK;
/* Ends a round of the write-intent bitmaps (volume/intent.h): marks that were idle for some are cleared, after flushes of
 * backing and journal. The group does so itself now and then; this is for tests. */
void group_clear_intents(struct group *g);
/* Waits until nothing is stale or unverified. For tests and for a clean hand-over. */
void group_settle(struct group *g);

#endif
