/* SPDX-License-Identifier: Apache-2.0 */
/* What is left of volumes that are gone: the history of deleted ones is kept for the policy's time
 * (onDelete.keep), that of clones not at all; and what a clone that did not come to its end has made.
 *
 *   G1  a stream is destroyed only when each of its volumes is deleted, and the time of each is over.
 *   G2  a stream is destroyed before the records of its volumes go: whoever dies in between does it again.
 *   G3  what belongs to a Recovery that goes on is left alone.
 *
 * Threads: one call at a time. It blocks. */
#ifndef TIDEMARK_CONTROLLER_PURGE_H
#define TIDEMARK_CONTROLLER_PURGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/log.h"
#include "csi/records.h"

#define PURGE_KEEP_DEFAULT_S (7u * 86400u)

struct purge_ops {
    /* Whether the Recovery "NAMESPACE/NAME" is there and has not ended. */
    int (*goes_on)(void *context, const char *recovery, bool *ret, struct error *err);
    /* Whether a clone's volume, whose Recovery has ended, is used by nobody: it has no persistent volume, or
     * one whose claim is not there. That is deleted. */
    int (*abandoned)(void *context, const struct csi_volume *volume, bool *ret, struct error *err);
    /* Destroys a stream and its history on the node; "": it is on none, and goes with its records, unless
     * somebody uses it (-EBUSY). 0 also when it is not there any more. */
    int (*destroy)(void *context, const char *node, const char *stream, struct error *err);
    int (*save)(void *context, const struct csi_volume *volume, struct error *err);
    int (*forget)(void *context, const char *handle, struct error *err);
    /* Tells whoever looks why the history of a deleted volume is still there although its time is over. NULL: nobody is told. */
    void (*kept)(void *context, const struct csi_volume *volume, const char *why);
};

/* How long the history of the volume is kept after its deletion. */
uint64_t purge_keep_s(const struct csi_volume *volume);
/* Does what is due at `now_ns` (realtime); the records (all there are) are changed along. *ret_next_ns: when
 * something is due again, 0: nothing is known to be. What fails is logged, and done by the next call. */
void purge_run(const struct purge_ops *ops, void *context, const struct log *log, struct csi_volume *all,
               size_t count, uint64_t now_ns, uint64_t *ret_next_ns);

#endif
