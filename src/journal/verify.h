/* SPDX-License-Identifier: Apache-2.0 */
/* Reading everything in a journal and checking it (J6), from the files alone. */
#ifndef TIDEMARK_JOURNAL_VERIFY_H
#define TIDEMARK_JOURNAL_VERIFY_H

#include <stdint.h>

#include "base/error.h"
#include "journal/lsn.h"

struct verify_damage {
    const char *file, *what;
    struct lsn low, high; /* LSNs of the records that are concerned, 0 when unknown */
    uint32_t volume;      /* 0: unknown */
    uint64_t offset_bytes, length_bytes; /* of the volume; length 0: unknown */
    /* Filled in for the report: */
    const char *volume_name;                          /* NULL: unknown */
    uint64_t low_realtime_ns, high_realtime_ns; /* times of `low` and `high`, to within a segment; 0: unknown */
};
struct verify_report {
    void (*damage)(void *context, const struct verify_damage *damage);
    void (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    void *context;
};
struct verify_summary {
    uint64_t segments, frames, records, indexes, pins, bytes, damages;
};

/* Checks all files of the journal in `directory`, which may be in use: sealed segments, indexes, base, rescue stores and the
 * objects in them, pins, rewind.pending, both copies of what is there twice, and what former openings have found to be lost. What
 * is not sealed is not read: the caller has the engine seal it before (journal_seal). 0, or -EBADMSG when anything is damaged. */
int journal_verify(const char *directory, const struct verify_report *report, struct verify_summary *ret, struct error *err) MUST_CHECK;

#endif
