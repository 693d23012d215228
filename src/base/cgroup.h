/* SPDX-License-Identifier: Apache-2.0 */
/* The memory limit of a process's control group, of version 2 and of version 1, and how often it was enforced. */
#ifndef TIDEMARK_BASE_CGROUP_H
#define TIDEMARK_BASE_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

struct cgroup_memory {
    bool known;
    uint64_t limit_bytes; /* the smallest of the group's and those it is in; UINT64_MAX: none */
    uint64_t oom_kills;   /* processes of it that were killed for memory, ever */
};

/* Of this process. `root`: "" ("/proc" and "/sys/fs/cgroup" are below it; tests have others). What cannot be read is not known. */
void cgroup_memory(const char *root, struct cgroup_memory *ret);

#endif
