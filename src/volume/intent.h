/* SPDX-License-Identifier: Apache-2.0 */
/* The write-intent bitmap of a volume: which regions (4 MiB) of the backing may differ from what the journal
 * has durably. After a loss of power, and at the end of a gap, only those are compared.
 *
 * Invariants: W1 before the first touch of a region its bit is durable; a write to a region whose bit is set
 * pays two loads. W2 a bit is cleared only after a flush of both backing and journal that came after the last
 * write to its region. W3 what cannot be read back counts as set.
 *
 * The caller's part of W2: marks are set, and the writes done, under a lock (shared) that is taken
 * exclusively between intent_collect and intent_clear. All functions but intent_is_marked and intent_any may
 * block. Thread-safe. */
#ifndef TIDEMARK_VOLUME_INTENT_H
#define TIDEMARK_VOLUME_INTENT_H

#include <stdbool.h>

#include "base/error.h"
#include "base/uuid.h"
#include "journal/lsn.h"
#include "volume/intent_format.h"

struct intent;

struct intent_options {
    const char *directory; /* of the journal */
    struct uuid journal_id;
    uint32_t volume;
    uint64_t size_bytes;
    bool fresh; /* without a file nothing is marked, else everything */
    /* Called in the thread that could not write the bitmap, before any write goes on: from then on it is kept
     * in memory only, until intent_save. `why` is valid during the call. */
    void (*lost)(void *context, const char *why);
    void *context;
    int (*fault)(void *context); /* NULL; else for tests: asked before the file is written, a negative errno
                                    fails it */
};

/* Opens the volume's file, or makes it; what is damaged of it is marked. */
int intent_open(const struct intent_options *options, struct intent **ret, struct error *err) MUST_CHECK;
/* NULL allowed. Writes nothing. */
void intent_free(struct intent *in);

/* Whether the range (sectors, not empty) is marked; notes that it is in use. Never blocks. */
bool intent_is_marked(struct intent *in, uint64_t lba, uint64_t length);
/* Marks the range and waits until that is durable; many callers share one write. When it cannot be written,
 * `lost` was called and it is marked in memory. */
void intent_mark(struct intent *in, uint64_t lba, uint64_t length);
/* Marks everything; durable when intent_save follows. */
void intent_mark_all(struct intent *in);
/* Whether any byte of [offset, offset + length) is marked, without noting use. */
bool intent_covers(struct intent *in, uint64_t offset_bytes, uint64_t length_bytes);
/* Which of the 64 regions from `region` (a multiple of 64) on are marked, a bit each. */
uint64_t intent_regions(struct intent *in, uint64_t region);
bool intent_any(struct intent *in);
uint64_t intent_marked_bytes(struct intent *in);

/* Ends a round: the marks that were in use in none of the last rounds (INTENT_IDLE_ROUNDS) are candidates.
 * Whether there are any. */
#define INTENT_IDLE_ROUNDS 3u
bool intent_collect(struct intent *in);
/* After the flushes: clears the candidates that were not used since. `covered`: the journal is durable up to
 * there. */
void intent_clear(struct intent *in, struct lsn covered);
/* After the flushes, with no I/O any more: clears everything. */
void intent_clear_all(struct intent *in, struct lsn covered);
/* The highest `covered` that was ever given: the journal must have that. */
struct lsn intent_covered(const struct intent *in);

/* Writes the whole file anew, durably; after a success it is no longer lost. */
int intent_save(struct intent *in, struct error *err) MUST_CHECK;
bool intent_is_lost(struct intent *in);
/* With no I/O under way: the volume has another size. What comes new is not marked. */
int intent_resize(struct intent *in, uint64_t size_bytes, struct error *err) MUST_CHECK;

#endif
