/* SPDX-License-Identifier: Apache-2.0 */
/* Threads with small stacks: 36 default stacks under mlockall cost hundreds of MB, 128 KiB ones a few. */
#ifndef TIDEMARK_BASE_THREAD_H
#define TIDEMARK_BASE_THREAD_H

#include <pthread.h>

#include "base/error.h"

#define THREAD_STACK_BYTES (128 * 1024)

/* Starts main(context) on a 128 KiB stack, named for ps(1) (15 characters). All signals are blocked in it. */
int thread_start(pthread_t *ret_thread, const char *name, void *(*main)(void *), void *context,
                 struct error *err) MUST_CHECK;

/* Lowers the calling thread's CPU and I/O priority: for work that nobody waits for. Best effort. */
void thread_background(void);

#endif
