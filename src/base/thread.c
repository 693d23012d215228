/* SPDX-License-Identifier: Apache-2.0 */
#include "base/thread.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BACKGROUND_NICE 10
#define IOPRIO_WHO_PROCESS 1      /* include/uapi/linux/ioprio.h, which libc has no header for */
#define IOPRIO_BEST_EFFORT_LAST (2 << 13 | 7)

int thread_start(pthread_t *ret_thread, const char *name, void *(*main)(void *), void *context, struct error *err)
{
    pthread_attr_t attributes;
    sigset_t all, old;
    pthread_attr_init(&attributes);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(TIDEMARK_SANITIZED)
    pthread_attr_setstacksize(&attributes, THREAD_STACK_BYTES);
#endif
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(ret_thread, &attributes, main, context);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
    if (r)
        return error_errno(err, -r, "cannot start thread %s", name);
    pthread_setname_np(*ret_thread, name);
    return 0;
}

void thread_background(void)
{
    /* For Linux a thread is a process of its own in both calls. Not the idle class: the writer waits for the janitor when
     * the quota is reached, and idle I/O may never come. */
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), BACKGROUND_NICE);
    syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_BEST_EFFORT_LAST);
}

void thread_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

void thread_cond_wait_ns(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t at = (uint64_t)until.tv_nsec + ns;
    until.tv_sec += (time_t)(at / 1000000000u);
    until.tv_nsec = (long)(at % 1000000000u);
    pthread_cond_timedwait(cond, mutex, &until);
}
