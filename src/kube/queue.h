/* SPDX-License-Identifier: Apache-2.0 */
/* A work queue of keys: a key is in it once, is given to one worker at a time, and after a failure comes back
 * after a time that doubles with each (with jitter), per key.
 *
 * Invariants: Q1 a key that is added while it is worked on is worked on again afterwards; Q2 never by two at
 * once. Threads: all functions from any. */
#ifndef TIDEMARK_KUBE_QUEUE_H
#define TIDEMARK_KUBE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"

#define KUBE_QUEUE_KEY_BYTES 512u
#define KUBE_QUEUE_MIN_BACKOFF_MS 50u
#define KUBE_QUEUE_MAX_BACKOFF_MS 60000u

struct kube_queue;
/* `clock`: NULL for the machine's. */
int kube_queue_new(const struct clock *clock, struct kube_queue **ret, struct error *err) MUST_CHECK;
/* No worker may be in kube_queue_get. NULL allowed. */
void kube_queue_free(struct kube_queue *queue);
/* Adds the key now, or after `delay_ms` (an earlier time wins). -ENAMETOOLONG, -ENOMEM. */
int kube_queue_add(struct kube_queue *queue, const char *key, unsigned delay_ms,
                   struct error *err) MUST_CHECK;
/* Waits for a key. false: the queue was closed. Call kube_queue_done afterwards. */
bool kube_queue_get(struct kube_queue *queue, char key[KUBE_QUEUE_KEY_BYTES]);
enum kube_queue_result { KUBE_QUEUE_OK, KUBE_QUEUE_RETRY };
/* The work on `key` is over. OK: its failures are forgotten; RETRY: it comes back. */
void kube_queue_done(struct kube_queue *queue, const char *key, enum kube_queue_result result);
/* Wakes all workers; kube_queue_get returns false from now on. */
void kube_queue_close(struct kube_queue *queue);
/* Keys that wait or are worked on. */
size_t kube_queue_count(struct kube_queue *queue);

#endif
