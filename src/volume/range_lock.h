/* SPDX-License-Identifier: Apache-2.0 */
/* Overlapping ranges of one volume are locked one after the other; the order in which they are granted is the order of
 * their LSNs. A fixed number of ranges at a time; a caller that finds none free waits. */
#ifndef TIDEMARK_VOLUME_RANGE_LOCK_H
#define TIDEMARK_VOLUME_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define RANGE_LOCK_MAX 256u

struct range {
    uint32_t volume;
    uint64_t lba, end; /* sectors */
};
struct range_lock {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t active, waiters;
    struct range ranges[RANGE_LOCK_MAX]; /* the first `active` slots by order[] */
    uint16_t order[RANGE_LOCK_MAX];      /* slots in use, then free ones */
};

void range_lock_init(struct range_lock *l);
void range_lock_release(struct range_lock *l);
/* Blocks until nothing that overlaps is locked. Returns the slot for range_lock_drop. */
uint32_t range_lock_take(struct range_lock *l, uint32_t volume, uint64_t lba, uint64_t length);
/* As take, but never waits: false when it would have to. */
bool range_lock_try(struct range_lock *l, uint32_t volume, uint64_t lba, uint64_t length, uint32_t *ret_slot);
void range_lock_drop(struct range_lock *l, uint32_t slot);

#endif
