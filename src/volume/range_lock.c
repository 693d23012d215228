/* SPDX-License-Identifier: Apache-2.0 */
#include "volume/range_lock.h"

void range_lock_init(struct range_lock *l)
{
    pthread_mutexattr_t attributes; /* short sections: spin a little before sleeping */
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&l->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    pthread_cond_init(&l->changed, NULL);
    l->active = l->waiters = 0;
    for (uint32_t i = 0; i < RANGE_LOCK_MAX; i++)
        l->order[i] = (uint16_t)i;
}

void range_lock_release(struct range_lock *l)
{
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->changed);
}

static bool is_free(const struct range_lock *l, const struct range *want)
{
    if (l->active == RANGE_LOCK_MAX)
        return false;
    for (uint32_t i = 0; i < l->active; i++) {
        const struct range *r = &l->ranges[l->order[i]];
        if (r->volume == want->volume && r->lba < want->end && want->lba < r->end)
            return false;
    }
    return true;
}

static uint32_t enter(struct range_lock *l, const struct range *want)
{
    uint32_t slot = l->order[l->active++];
    l->ranges[slot] = *want;
    return slot;
}

bool range_lock_try(struct range_lock *l, uint32_t volume, uint64_t lba, uint64_t length, uint32_t *ret_slot)
{
    struct range want = {volume, lba, lba + length};
    pthread_mutex_lock(&l->mutex);
    bool free = is_free(l, &want) && l->waiters == 0;
    if (free)
        *ret_slot = enter(l, &want);
    pthread_mutex_unlock(&l->mutex);
    return free;
}

uint32_t range_lock_take(struct range_lock *l, uint32_t volume, uint64_t lba, uint64_t length)
{
    struct range want = {volume, lba, lba + length};
    pthread_mutex_lock(&l->mutex);
    while (!is_free(l, &want)) {
        l->waiters++;
        pthread_cond_wait(&l->changed, &l->mutex);
        l->waiters--;
    }
    uint32_t slot = enter(l, &want);
    pthread_mutex_unlock(&l->mutex);
    return slot;
}

void range_lock_drop(struct range_lock *l, uint32_t slot)
{
    pthread_mutex_lock(&l->mutex);
    uint32_t i = 0;
    while (l->order[i] != slot)
        i++;
    l->active--;
    l->order[i] = l->order[l->active];
    l->order[l->active] = (uint16_t)slot;
    if (l->waiters)
        pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
}
