/* SPDX-License-Identifier: Apache-2.0 */
/* What every test program needs: cmocka with its prerequisites, a random generator with a printed seed, a
 * directory. */
#ifndef TIDEMARK_TESTS_CHECK_H
#define TIDEMARK_TESTS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/io.h"

/* The call returns 0, or the test fails with its message. Needs `struct error err` in scope. */
#define check_ok(call)                                                                                       \
    do {                                                                                                     \
        if ((call) < 0)                                                                                      \
            fail_msg("%s: %s", #call, err.message);                                                          \
    } while (0)
/* The call fails with `code` (negative errno) and a message that has `text` in it. */
#define check_error(call, expected_code, text)                                                               \
    do {                                                                                                     \
        int check_r_ = (call);                                                                               \
        if (check_r_ != (expected_code) || err.code != check_r_ || !strstr(err.message, (text)))             \
            fail_msg("%s: returned %d, message '%s' (wanted %d, '%s')", #call, check_r_, err.message,        \
                     (int)(expected_code), (text));                                                          \
    } while (0)

/* splitmix64: the same sequence from the same seed, everywhere. */
static inline uint64_t check_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}
/* A seed from the clock, or from $TIDEMARK_SEED to replay; printed. */
static inline uint64_t check_seed(void)
{
    const char *text = getenv("TIDEMARK_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed =
        text ? strtoull(text, NULL, 0) : (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    printf("TIDEMARK_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    return seed;
}

/* A new directory under $TMPDIR, which a test removes with check_remove_directory. Free the path. */
static inline char *check_make_directory(void)
{
    const char *parent = getenv("TMPDIR");
    char *path = NULL;
    if (asprintf(&path, "%s/tidemark-test-XXXXXX", parent ? parent : "/tmp") < 0 || !mkdtemp(path))
        fail_msg("cannot make a directory");
    return path;
}
static inline void check_remove_directory(char *path)
{
    struct error err = ERROR_INIT;
    check_ok(io_remove_tree(path, &err));
    free(path);
}

#endif
