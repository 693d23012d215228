/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for a drop of history that was interrupted. A killed engine, or a loss of power, leaves blocks of the base and of rescue stores
 * half changed; they look damaged (S3 of base_store.c). The manifest says base target > base until the drop has been repeated, which
 * mends them: only what does not match after that is damaged. */
#ifndef TIDEMARK_JOURNAL_DROP_WAIT_H
#define TIDEMARK_JOURNAL_DROP_WAIT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define DROP_WAIT_NS 10000000000u /* perhaps there is no engine that would repeat it, or it fails again and again */

/* Of a reader; thread-safe. */
struct drop_patience {
    const char *directory;    /* of the journal, borrowed; NULL: it never waits */
    _Atomic uint64_t left_ns; /* for the drop that is open; DROP_WAIT_NS at first, and again when none is */
};
struct drop_look { /* of one read; all zero at first */
    bool done, open;
};

/* After a read of such a store ended with -EBADMSG: whether to read once more; blocks meanwhile. False when a look at the manifest before
 * that read found no drop open, or patience is over. */
bool drop_wait_again(struct drop_patience *patience, struct drop_look *look);

#endif
