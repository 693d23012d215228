/* SPDX-License-Identifier: Apache-2.0 */
/* Cuts a stream of bytes that comes in any pieces into lines, for watches. Not thread-safe. */
#ifndef TIDEMARK_KUBE_LINES_H
#define TIDEMARK_KUBE_LINES_H

#include "kube/kube_internal.h"

struct lines {
    struct kube_buffer rest; /* the beginning of a line */
    size_t limit_bytes;
    /* Called for each line that is not empty, without its newline. Not 0: lines_feed ends with that. */
    int (*line)(void *context, const char *text, size_t length_bytes);
    void *context;
};
/* -EFBIG: a line is longer than the limit; -ENOMEM. */
int lines_feed(struct lines *lines, const char *data, size_t length_bytes);

#endif
