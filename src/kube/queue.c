/* SPDX-License-Identifier: Apache-2.0 */
/* The work queue: keys in a tree by name; which is due next is found by looking at all, since the keys are
 * the protected applications of a cluster (thousands at the most) and each one's work takes milliseconds. */
#include "kube/queue.h"

#include <errno.h>
#include <pthread.h>
#include <search.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/thread.h"
#include "kube/kube_internal.h"

struct queue_key {
    struct queue_key *next; /* of all */
    uint64_t due_ns;        /* boottime; UINT64_MAX: not waiting */
    unsigned failures;
    bool working;
    char name[];
};

struct kube_queue {
    const struct clock *clock;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    void *by_name; /* of struct queue_key */
    struct queue_key *keys;
    size_t count;
    bool closed;
};

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct queue_key *)a)->name, ((const struct queue_key *)b)->name);
}

int kube_queue_new(const struct clock *clock, struct kube_queue **ret, struct error *err)
{
    struct kube_queue *q = calloc(1, sizeof *q);
    if (!q)
        return error_errno(err, -ENOMEM, "work queue");
    thread_cond_init(&q->changed);
    pthread_mutex_init(&q->mutex, NULL);
    q->clock = clock ? clock : clock_system();
    *ret = q;
    return 0;
}

static void forget(struct kube_queue *q, struct queue_key *key)
{
    struct queue_key **link = &q->keys;
    while (*link != key)
        link = &(*link)->next;
    *link = key->next;
    tdelete(key, &q->by_name, compare);
    q->count--;
    free(key);
}

void kube_queue_free(struct kube_queue *q)
{
    if (!q)
        return;
    while (q->keys)
        forget(q, q->keys);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->mutex);
    free(q);
}

static struct queue_key *find(struct kube_queue *q, const char *name)
{
    char room[sizeof(struct queue_key) + KUBE_QUEUE_KEY_BYTES]
        __attribute__((aligned(_Alignof(struct queue_key))));
    struct queue_key *wanted = (struct queue_key *)room;
    memcpy(wanted->name, name, strlen(name) + 1);
    struct queue_key **found = tfind(wanted, &q->by_name, compare);
    return found ? *found : NULL;
}

int kube_queue_add(struct kube_queue *q, const char *name, unsigned delay_ms, struct error *err)
{
    size_t length = strlen(name) + 1;
    if (length > KUBE_QUEUE_KEY_BYTES)
        return error_set(err, -ENAMETOOLONG, "work queue: a key has at most %u bytes",
                         KUBE_QUEUE_KEY_BYTES - 1);
    MUTEX_GUARD(guard, &q->mutex);
    struct queue_key *key = find(q, name);
    if (!key) {
        key = calloc(1, sizeof *key + length);
        if (!key)
            return error_errno(err, -ENOMEM, "work queue");
        memcpy(key->name, name, length);
        key->due_ns = UINT64_MAX;
        if (!tsearch(key, &q->by_name, compare)) {
            free(key);
            return error_errno(err, -ENOMEM, "work queue");
        }
        key->next = q->keys;
        q->keys = key;
        q->count++;
    }
    uint64_t due = clock_boottime_ns(q->clock) + delay_ms * NS_PER_MS;
    if (due < key->due_ns)
        key->due_ns = due;
    pthread_cond_broadcast(&q->changed);
    return 0;
}

static void wait_ns(struct kube_queue *q, uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    ns += (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(ns / NS_PER_SECOND);
    until.tv_nsec = (long)(ns % NS_PER_SECOND);
    pthread_cond_timedwait(&q->changed, &q->mutex, &until);
}

bool kube_queue_get(struct kube_queue *q, char name[KUBE_QUEUE_KEY_BYTES])
{
    MUTEX_GUARD(guard, &q->mutex);
    while (!q->closed) {
        uint64_t now = clock_boottime_ns(q->clock);
        struct queue_key *next = NULL;
        for (struct queue_key *key = q->keys; key; key = key->next)
            if (!key->working && key->due_ns != UINT64_MAX && (!next || key->due_ns < next->due_ns))
                next = key;
        if (next && next->due_ns <= now) {
            next->working = true; /* Q2 */
            next->due_ns = UINT64_MAX;
            memcpy(name, next->name, strlen(next->name) + 1);
            return true;
        }
        if (next)
            wait_ns(q, next->due_ns - now);
        else
            pthread_cond_wait(&q->changed, &q->mutex);
    }
    return false;
}

void kube_queue_done(struct kube_queue *q, const char *name, enum kube_queue_result result)
{
    MUTEX_GUARD(guard, &q->mutex);
    struct queue_key *key = find(q, name);
    if (!key)
        return;
    key->working = false;
    if (result == KUBE_QUEUE_RETRY) {
        uint64_t due =
            clock_boottime_ns(q->clock) +
            kube_backoff_ms(key->failures, KUBE_QUEUE_MIN_BACKOFF_MS, KUBE_QUEUE_MAX_BACKOFF_MS) * NS_PER_MS;
        key->failures += key->failures < 1000;
        if (due < key->due_ns)
            key->due_ns = due;
    } else {
        key->failures = 0;
        if (key->due_ns == UINT64_MAX) /* Q1: not added meanwhile */
            forget(q, key);
    }
    pthread_cond_broadcast(&q->changed);
}

void kube_queue_close(struct kube_queue *q)
{
    MUTEX_GUARD(guard, &q->mutex);
    q->closed = true;
    pthread_cond_broadcast(&q->changed);
}

size_t kube_queue_count(struct kube_queue *q)
{
    MUTEX_GUARD(guard, &q->mutex);
    return q->count;
}
