/* SPDX-License-Identifier: Apache-2.0 */
/* Threads with small stacks: 36 default stacks under mlockall cost hundreds of MB, 128 KiB ones a few. */
#ifndef TIDEMARK_BASE_THREAD_H
#define TIDEMARK_BASE_THREAD_H

#include <pthread.h>
#include <stdint.h>

#include "base/error.h"

#define THREAD_STACK_BYTES (128 * 1024)

/* Starts main(context) on a 128 KiB stack, named for ps(1) (15 characters). All signals are blocked in it. */
int thread_start(pthread_t *ret_thread, const char *name, void *(*main)(void *), void *context,
                 struct error *err) MUST_CHECK;

/* A condition whose timed waits go by the monotonic clock: the wall clock may be set back by hours. */
void thread_cond_init(pthread_cond_t *cond);
/* Waits for it at most `ns`. With the mutex. */
void thread_cond_wait_ns(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t ns);

/* Lowers the calling thread's CPU and I/O priority: for work that nobody waits for. Best effort. */
void thread_background(void);

#endif
