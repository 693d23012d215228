/* SPDX-License-Identifier: Apache-2.0 */
/* Owned locals: cleanup attributes for what the C library gives. */
#ifndef TIDEMARK_BASE_CLEANUP_H
#define TIDEMARK_BASE_CLEANUP_H

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}
static inline void cleanup_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}
static inline void cleanup_fclose(FILE **f)
{
    if (*f)
        fclose(*f);
}
static inline void cleanup_closedir(DIR **d)
{
    if (*d)
        closedir(*d);
}
static inline void cleanup_unlock(pthread_mutex_t **m)
{
    if (*m)
        pthread_mutex_unlock(*m);
}

#define _cleanup_free_ __attribute__((cleanup(cleanup_free), unused))
#define _cleanup_close_ __attribute__((cleanup(cleanup_close), unused))
#define _cleanup_fclose_ __attribute__((cleanup(cleanup_fclose), unused))
#define _cleanup_closedir_ __attribute__((cleanup(cleanup_closedir), unused))

/* Hands an owned local over: returns its value and forgets it. */
#define take_ptr(p)                                                                                              \
    ({                                                                                                           \
        __typeof__(p) taken_ = (p);                                                                              \
        (p) = NULL;                                                                                              \
        taken_;                                                                                                  \
    })
#define take_fd(fd)                                                                                              \
    ({                                                                                                           \
        int taken_ = (fd);                                                                                       \
        (fd) = -1;                                                                                               \
        taken_;                                                                                                  \
    })
/* Holds a mutex until the end of the enclosing block. */
#define MUTEX_GUARD(name, mutex)                                                                                 \
    pthread_mutex_t *name __attribute__((cleanup(cleanup_unlock), unused)) = (pthread_mutex_lock(mutex), (mutex))

#endif
