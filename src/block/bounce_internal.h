/* SPDX-License-Identifier: Apache-2.0 */
/* Bounce buffers: page-aligned, one of each kind a thread, made at its first use and freed when the thread
 * ends, so that no I/O allocates twice. */
#ifndef TIDEMARK_BLOCK_BOUNCE_INTERNAL_H
#define TIDEMARK_BLOCK_BOUNCE_INTERNAL_H

#include <stddef.h>

enum bounce_kind {
    BOUNCE_FILE,    /* file.c: data or ranges that O_DIRECT cannot take */
    BOUNCE_OVERLAY, /* overlay.c: a grain on its way up. Another one, because it is in use across calls to
                       file.c */
    BOUNCE_COUNT,
};

#define BOUNCE_FILE_BYTES (1u << 20)
#define BOUNCE_OVERLAY_BYTES (64u << 10)

/* This thread's buffer of that kind, of the size above. NULL when out of memory. */
void *block_bounce(enum bounce_kind kind);

#endif
