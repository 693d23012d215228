/* SPDX-License-Identifier: Apache-2.0 */
/* The ransomware signal of one volume: each write gets a cheap estimate of its content (estimate.h), the last class of each
 * block is remembered (classes.h), and once a second the sums go to the detector (detector.h).
 *
 * signal_note is called on the way of each write, by any thread, under the range lock of what it writes: it allocates nothing,
 * takes no lock and does no I/O. Everything else is called by one thread, the engine's watch.
 *
 * State is kept in a file (signal_save) so that a restart does not forget what blocks hold: docs/formats/signal.md,
 * docs/adr/0010-signal-state-beside-the-journal.md. */
#ifndef TIDEMARK_SIGNAL_SIGNAL_H
#define TIDEMARK_SIGNAL_SIGNAL_H

#include <stddef.h>

#include "signal/detector.h"
#include "signal/estimate.h"
#include "base/error.h"

#define SIGNAL_TABLES_BYTES (8u << 20) /* of the tables of all volumes of an engine: exact to 128 GiB in all */

struct signal;

int signal_new(uint64_t volume_bytes, size_t table_bytes, struct signal **ret, struct error *err) MUST_CHECK;
void signal_free(struct signal *s); /* NULL allowed */

/* A write of `bytes` at `offset_bytes`, both multiples of 512; data NULL: discarded or zeroed. `s` NULL: nothing. */
void signal_note(struct signal *s, uint64_t offset_bytes, const void *data, size_t bytes);

struct signal_counts { /* since the start, bytes */
    uint64_t written, high, overwritten, freed;
};
struct signal_status {
    struct signal_counts counts;
    uint64_t low_bytes;       /* structured content known now */
    bool suspicious;          /* a stretch is going on */
    uint64_t seconds;         /* judged so far */
    uint64_t score, limit;    /* of the last window; 0 before the first second */
    struct signal_baseline baseline;
};
/* Thread-safe. */
void signal_status(struct signal *s, struct signal_status *ret);

/* A stretch in which the content was probably being encrypted: the records after `begin_lsn` up to `end_lsn`. */
struct signal_stretch {
    uint32_t volume;
    uint64_t begin_lsn, end_lsn; /* end 0: it is going on */
    uint64_t begin_ns, end_ns;   /* realtime; the end is the newest sign while it is going on */
    uint64_t bytes;              /* structured content that was lost to content of high entropy, in a window */
};
/* Ends a second. `lsn`: the last record as of now. *ret is set unless SIGNAL_SAME. */
enum signal_change signal_tick(struct signal *s, uint64_t realtime_ns, uint64_t lsn, struct signal_stretch *ret);

/* What the file system's bitmap (fsmap.h) says of a range: signal_classes_told. */
void signal_told(struct signal *s, uint64_t block, uint64_t count, bool is_free);
/* The volume's content has become another by a rewind: what is known of its blocks does not hold, and a stretch is over. */
void signal_forget(struct signal *s);
/* Knows what a block holds that was found by reading it, unless it was written meanwhile. */
void signal_seen(struct signal *s, uint64_t offset_bytes, const void *data, size_t bytes);

/* The file is replaced as a whole. `known_bytes`: how far from the volume's beginning it is known what the blocks hold; at least its size: all of it. */
int signal_save(struct signal *s, const char *path, uint64_t known_bytes, struct error *err) MUST_CHECK;
/* *ret_known_bytes: how far from the volume's beginning it is known what the blocks hold; less than all of it when the volume has grown
 * since, 0 without a file or with one of other grains. On failure the state is as new. */
int signal_load(struct signal *s, const char *path, uint64_t *ret_known_bytes, struct error *err) MUST_CHECK;

#endif
