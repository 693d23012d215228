/* SPDX-License-Identifier: Apache-2.0 */
#include "export/holder_ends.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"

void holder_ends_note(struct holder_ends *e, int wait_status, uint64_t ran_ns, uint64_t realtime_ns, const struct cgroup_memory *before,
                      const struct cgroup_memory *after)
{
    e->ends++;
    e->in_a_row = ran_ns < HOLDER_ENDS_ROW_NS ? e->in_a_row + 1 : 1;
    e->signal_number = WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0;
    e->status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 0;
    e->realtime_ns = realtime_ns;
    e->ran_ms = ran_ns / NS_PER_MS;
    e->oom_killed = before->known && after->known && after->oom_kills > before->oom_kills;
    e->limit_bytes = after->limit_bytes == UINT64_MAX ? 0 : after->limit_bytes;
}

void holder_ends_format(const struct holder_ends *e, char text[HOLDER_ENDS_BYTES + 1])
{
    int n = snprintf(text, HOLDER_ENDS_BYTES,
                     "{\"ends\": %u, \"in_a_row\": %u, \"signal\": %d, \"status\": %d, \"realtime_ns\": %llu, \"ran_ms\": %llu, "
                     "\"oom_killed\": %s, \"limit_bytes\": %llu}",
                     e->ends, e->in_a_row, e->signal_number, e->status, (unsigned long long)e->realtime_ns,
                     (unsigned long long)e->ran_ms, e->oom_killed ? "true" : "false", (unsigned long long)e->limit_bytes);
    memset(text + n, ' ', (size_t)(HOLDER_ENDS_BYTES - n));
    text[HOLDER_ENDS_BYTES - 1] = '\n';
    text[HOLDER_ENDS_BYTES] = '\0';
}
