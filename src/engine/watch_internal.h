/* SPDX-License-Identifier: Apache-2.0 */
/* The watch of an engine's volumes (watch.c), and what it knows for status, points and metrics (suspicion.c). */
#ifndef TIDEMARK_ENGINE_WATCH_INTERNAL_H
#define TIDEMARK_ENGINE_WATCH_INTERNAL_H

#include "engine/engine_internal.h"
#include "signal/fslog.h"
#include "signal/stretches.h"

struct watch_volume {
    struct signal *signal;
    struct fsmap fs;
    struct fslog log; /* where it can be followed, bitmaps in place are read once only: they are older */
    bool in_place;    /* visiting bitmaps in place */
    uint32_t group;        /* the next one of the pass; fs.groups: the pass is over */
    uint64_t pass_written; /* what had been written when it began */
    uint64_t saved_written;
    uint64_t read_at; /* the content is being read from here; all known: UINT64_MAX */
};

struct watch {
    struct engine *e;
    struct watch_volume volumes[GROUP_MAX_VOLUMES]; /* by their index in the group */
    size_t volume_count;
    struct signal_stretches stretches;
    _Atomic uint64_t rewound; /* LSN of a rewind that was not heeded yet, or 0 */
    uint64_t ticks;
    void *scratch;

    pthread_t thread;
    bool runs, stop;
    pthread_mutex_t mutex; /* of stop */
    pthread_cond_t wake;
};

/* After the group was started, before any I/O. *ret is set on failure too: watch_stop releases it. */
int watch_start(struct engine *e, struct watch **ret, struct error *err) MUST_CHECK;
/* Before the group is freed, with no I/O running: what is known is kept. NULL allowed. */
void watch_stop(struct watch *w);
/* The volumes' content is another one since the record `lsn`. */
void watch_rewound(struct watch *w, struct lsn lsn);

/* ---- suspicion.c ---- */
/* The suspicious stretches of the history that is in effect (not rewound away), the oldest first. */
struct suspicion {
    size_t count;
    struct signal_stretch list[SIGNAL_STRETCHES_MAX];
};
int suspicion_load(struct engine *e, struct suspicion *ret, struct error *err) MUST_CHECK;
/* Is there one to tell: going on, or ended less than a day ago? Its begin (of the oldest of them), or 0. */
uint64_t suspicion_since_ns(const struct suspicion *s, uint64_t now_ns);
/* Appends a line for each of these to the array `alarms`. */
void suspicion_alarms(struct engine *e, const struct suspicion *s, uint64_t now_ns, json_t *alarms);
/* Does the record lie in any stretch, rewound away or not? */
bool suspicion_has(const struct signal_stretch *list, size_t count, uint64_t lsn);
/* The last point before the newest stretch in effect (with those that ended shortly before it). -ENOENT: there is none. */
int suspicion_last_clean(struct engine *e, struct signal_stretch *ret_stretch, struct journal_point *ret, struct error *err) MUST_CHECK;

#endif
