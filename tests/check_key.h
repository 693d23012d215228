/* SPDX-License-Identifier: Apache-2.0 */
/* The key file of a test's journals: with $TIDEMARK_ENCRYPTED set they are encrypted, so that each test can
 * run either way. */
#ifndef TIDEMARK_TESTS_CHECK_KEY_H
#define TIDEMARK_TESTS_CHECK_KEY_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "journal/seal.h"

static char check_key_path[64];

static inline void check_key_remove(void)
{
    unlink(check_key_path);
}

/* NULL: plain. Removed at the end of the program. */
static inline const char *check_key_file(void)
{
    struct seal_user_key key;
    struct error err = ERROR_INIT;
    if (!getenv("TIDEMARK_ENCRYPTED"))
        return NULL;
    if (check_key_path[0])
        return check_key_path;
    snprintf(check_key_path, sizeof check_key_path, "/dev/shm/tidemark-test-%d.key", getpid());
    unlink(check_key_path);
    if (seal_key_generate(check_key_path, &key, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
    atexit(check_key_remove);
    return check_key_path;
}

#endif
