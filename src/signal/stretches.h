/* SPDX-License-Identifier: Apache-2.0 */
/* The suspicious stretches of a stream, the oldest first, in a file that is replaced as a whole; each entry has its checksum.
 * At most SIGNAL_STRETCHES_MAX: the oldest gives way. Thread-safe. */
#ifndef TIDEMARK_SIGNAL_STRETCHES_H
#define TIDEMARK_SIGNAL_STRETCHES_H

#include <pthread.h>

#include "signal/signal.h"

#define SIGNAL_STRETCHES_MAX 256u

struct signal_stretches {
    pthread_mutex_t mutex;
    size_t count;
    struct signal_stretch list[SIGNAL_STRETCHES_MAX];
};

void signal_stretches_init(struct signal_stretches *s);
void signal_stretches_release(struct signal_stretches *s);
/* Entries that are damaged are left out, *ret_damaged says how many. A stretch that was going on ended at `latest_lsn` at
 * the latest. No file: none. */
int signal_stretches_load(struct signal_stretches *s, const char *path, uint64_t latest_lsn, size_t *ret_damaged,
                          struct error *err) MUST_CHECK;
int signal_stretches_save(struct signal_stretches *s, const char *path, struct error *err) MUST_CHECK;
/* Adds it, or replaces the one of the same volume with the same begin. */
void signal_stretches_put(struct signal_stretches *s, const struct signal_stretch *stretch);
/* Ends those that are going on. */
void signal_stretches_end(struct signal_stretches *s, uint64_t lsn, uint64_t realtime_ns);
/* Drops those that ended at or before `oldest_lsn`: their points are no longer in the history. Returns how many. */
size_t signal_stretches_drop(struct signal_stretches *s, uint64_t oldest_lsn);
/* Copies at most SIGNAL_STRETCHES_MAX to `list`; the number. */
size_t signal_stretches_copy(struct signal_stretches *s, struct signal_stretch *list);

/* Does the record `lsn` lie in the stretch? */
static inline bool signal_stretch_has(const struct signal_stretch *s, uint64_t lsn)
{
    return lsn > s->begin_lsn && (s->end_lsn == 0 || lsn <= s->end_lsn);
}

#endif
