/* SPDX-License-Identifier: Apache-2.0 */
/* What the holder notes of its program's ends, for `tidemark up` to tell: one line of JSON in a file of fixed size, overwritten in
 * place, so that a holder that has no memory to spare can do it. */
#ifndef TIDEMARK_EXPORT_HOLDER_ENDS_H
#define TIDEMARK_EXPORT_HOLDER_ENDS_H

#include <stdint.h>

#include "base/cgroup.h"

#define HOLDER_ENDS_FILE "holder.ends" /* beside its pid file */
#define HOLDER_ENDS_BYTES 512
#define HOLDER_ENDS_ROW_NS (60 * NS_PER_SECOND) /* a program that ran so long before is no part of a row */

struct holder_ends {
    unsigned ends, in_a_row;
    int signal_number, status; /* of the last one; status when the signal is 0 */
    uint64_t realtime_ns;      /* of it */
    uint64_t ran_ms;           /* how long it had run */
    bool oom_killed;           /* the group's limit killed something meanwhile */
    uint64_t limit_bytes;      /* 0: none, or not known */
};

/* Takes note of an end by the status of waitpid; `before`: the group's memory when it was started. */
void holder_ends_note(struct holder_ends *e, int wait_status, uint64_t ran_ns, uint64_t realtime_ns, const struct cgroup_memory *before,
                      const struct cgroup_memory *after);
/* The file's content, HOLDER_ENDS_BYTES with the newline. */
void holder_ends_format(const struct holder_ends *e, char text[HOLDER_ENDS_BYTES + 1]);

#endif
