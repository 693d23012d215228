/* SPDX-License-Identifier: Apache-2.0 */
/* A write by block/queue.h, from the thread that waits for it. */
#ifndef TIDEMARK_TESTS_SIM_QUEUED_H
#define TIDEMARK_TESTS_SIM_QUEUED_H

#include <string.h>

#include "block/queue.h"

#define QUEUED_BYTES (512u << 10) /* at most */

/* 1: written; 0: that cannot be done here, nothing was. */
static inline int queued_write(struct block *b, const char *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags, struct error *err)
{
    static char aligned[QUEUED_BYTES] __attribute__((aligned(4096)));
    struct block_queue *q;
    struct block_request r = {.op = BLOCK_OP_WRITE, .data = aligned, .length_bytes = length_bytes, .offset_bytes = offset_bytes, .flags = flags},
                         *done = NULL;
    memcpy(aligned, data, length_bytes);
    int started = block_queue_new(b, 4, &q, err);
    if (started < 0)
        return started;
    started = block_queue_start(q, &r);
    while (started == 0 && !done)
        done = block_queue_poll(q);
    block_queue_free(q);
    if (started == 0 && r.outcome == BLOCK_STEP_BLOCKS)
        started = block_finish(b, &r, err);
    return started == 0 && r.outcome != BLOCK_STEP_AGAIN;
}

#endif
