/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cgroup.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

#define TEXT_BYTES 8192u

static bool read_text(const char *path, char text[TEXT_BYTES])
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, TEXT_BYTES - 1);
    text[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* "oom_kill 3" somewhere, at the beginning of a line. */
static bool find_number(const char *text, const char *key, uint64_t *ret)
{
    size_t length = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n'), line += line != NULL)
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            *ret = strtoull(line + length, NULL, 10);
            return true;
        }
    return false;
}

/* The path of this process's group: of version 1's memory controller if that is in use, else of version 2. */
static bool find_group(const char *root, char path[PATH_MAX], bool *ret_v1)
{
    char file[PATH_MAX], text[TEXT_BYTES], *rest = text;
    bool found = false;
    snprintf(file, sizeof file, "%.2000s/proc/self/cgroup", root);
    if (!read_text(file, text))
        return false;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        bool v1 = strcmp(controllers + 1, "memory") == 0;
        if (!v1 && (controllers[1] || found))
            continue;
        snprintf(path, PATH_MAX, "%.3000s", group);
        *ret_v1 = v1;
        found = true;
        if (v1)
            break;
    }
    return found;
}

void cgroup_memory(const char *root, struct cgroup_memory *ret)
{
    char group[PATH_MAX], file[2 * PATH_MAX], text[TEXT_BYTES];
    bool v1;
    *ret = (struct cgroup_memory){.limit_bytes = UINT64_MAX};
    if (!find_group(root, group, &v1))
        return;
    const char *top = v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
    snprintf(file, sizeof file, "%.2000s%s%s/%s", root, top, group, v1 ? "memory.oom_control" : "memory.events");
    if (!read_text(file, text)) { /* a namespace: its root is mounted there */
        snprintf(file, sizeof file, "%.2000s%s/%s", root, top, v1 ? "memory.oom_control" : "memory.events");
        if (read_text(file, text))
            group[0] = '\0';
    }
    ret->known = find_number(text, "oom_kill", &ret->oom_kills);
    for (char *end = group + strlen(group);; *end = '\0') { /* upwards */
        snprintf(file, sizeof file, "%.2000s%s%s/%s", root, top, group, v1 ? "memory.limit_in_bytes" : "memory.max");
        if (read_text(file, text) && text[0] >= '0' && text[0] <= '9') {
            uint64_t limit = strtoull(text, NULL, 10);
            if (limit < ret->limit_bytes && limit < (1ull << 62)) /* version 1 has a number for none */
                ret->limit_bytes = limit;
        }
        end = strrchr(group, '/');
        if (!end)
            return;
    }
}
