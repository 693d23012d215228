/* SPDX-License-Identifier: Apache-2.0 */
/* The threads beside a loop that has many requests under way (block/queue.h): they do what blocks. Some do
 * jobs; one does nothing else than finish what the queue handed back, since that may hold what jobs wait for
 * (its range), and jobs that wait can never keep it from ending. */
#ifndef TIDEMARK_EXPORT_WORKERS_H
#define TIDEMARK_EXPORT_WORKERS_H

#include <stdbool.h>

#include "base/error.h"
#include "base/log.h"

struct workers;

/* Embedded in what the loop hands over. It has one owner: the loop, a list here, or the thread that works on
 * it. */
struct work {
    struct work *next;
};

struct workers_options {
    const char *name; /* of the threads, at most 8 characters; and in messages */
    unsigned threads;
    /* Both block. True: it has ended and is returned to the loop; false: it was given away (to workers_job).
     */
    bool (*job)(void *context, struct work *w);
    bool (*finish)(void *context, struct work *w);
    void *context;
    const struct log *log;
};

int workers_start(const struct workers_options *options, struct workers **ret, struct error *err) MUST_CHECK;
/* Works off what was handed over, and what becomes of that, ends the threads. NULL allowed. */
void workers_free(struct workers *w);
/* Any thread. */
void workers_job(struct workers *w, struct work *work);
void workers_finish(struct workers *w, struct work *work);
/* For the loop: a request that the queue gave back (block/queue.h) with `outcome`; what the queue could not do goes to a
 * thread. False: it has ended. */
bool workers_go_on(struct workers *w, int outcome, struct work *work);
/* For the loop: what has ended, linked by `next`, in no order. */
struct work *workers_take_returned(struct workers *w);

/* An eventfd of the loop to poll. Written by workers_wake, and once when something is returned after
 * workers_arm(true). */
int workers_fd(const struct workers *w);
void workers_arm(struct workers *w, bool armed);
void workers_wake(struct workers *w);
void workers_drain(struct workers *w);

#endif
