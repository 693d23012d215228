/* SPDX-License-Identifier: Apache-2.0 */
/* What recoveries found to be lost: records that were durable once and cannot be read after an opening, since a frame's
 * header in the segment that was not sealed yet was damaged; and what a drop of history did. It is kept in losses.json, so that a verification tells it as
 * long as the history around it is there. For use inside the journal. */
#ifndef TIDEMARK_JOURNAL_LOSSES_H
#define TIDEMARK_JOURNAL_LOSSES_H

#include <stdint.h>

#include "base/error.h"
#include "journal/lsn.h"

#define LOSSES_MAX 256u /* the oldest ones go */
#define LOSSES_FILE "losses.json"

struct loss {
    struct lsn low, high; /* records with LSN in (low, high] */
    uint32_t segment;
    uint64_t found_realtime_ns;
    const char *what;
};
/* Adds it, unless one above the same LSN is there already; those wholly below `base` are forgotten. */
int losses_add(const char *directory, const struct loss *loss, struct lsn base, struct error *err) MUST_CHECK;
/* Calls visit for each. 0 without the file; -EBADMSG when it is damaged. */
int losses_visit(const char *directory, void (*visit)(void *context, const struct loss *loss), void *context,
                 struct error *err) MUST_CHECK;

#endif
