/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes without an engine, for the tests of the exports: the configuration has a line for each volume,
 * "NAME BYTES PATH", where PATH is a file (created sparse) or "memory". A line "refuse" makes the start fail.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "export/runtime.h"

#define VOLUMES_LIMIT 8

struct runtime {
    size_t count;
    char names[VOLUMES_LIMIT][64];
    struct block *blocks[VOLUMES_LIMIT];
};

static void file_stop(struct runtime *r)
{
    for (size_t i = 0; i < r->count; i++)
        block_free(r->blocks[i]);
    free(r);
}

static int add_volume(struct runtime *r, const char *line, struct error *err)
{
    char path[512];
    uint64_t bytes;
    if (r->count == VOLUMES_LIMIT ||
        sscanf(line, "%63s %" SCNu64 " %511s", r->names[r->count], &bytes, path) != 3)
        return error_set(err, -EINVAL, "bad line in the test's configuration: %s", line);
    int result = strcmp(path, "memory") == 0 ? block_memory_new(bytes, &r->blocks[r->count], err)
                                             : block_file_open(path, bytes, false, &r->blocks[r->count], err);
    if (result == 0)
        r->count++;
    return result;
}

static int file_start(const char *config_path, struct runtime **ret, struct error *err)
{
    char line[1024];
    _cleanup_fclose_ FILE *f = fopen(config_path, "re");
    if (!f)
        return error_errno(err, -errno, "cannot open %s", config_path);
    struct runtime *r = calloc(1, sizeof *r);
    if (!r)
        return error_errno(err, -ENOMEM, "cannot start");
    int result = 0;
    while (result == 0 && fgets(line, sizeof line, f))
        result = add_volume(r, line, err);
    if (result < 0) {
        file_stop(r);
        return result;
    }
    *ret = r;
    return 0;
}

static size_t file_count(const struct runtime *r)
{
    return r->count;
}
static const char *file_name(const struct runtime *r, size_t i)
{
    return r->names[i];
}
static struct block *file_block(struct runtime *r, size_t i)
{
    return r->blocks[i];
}

static const struct runtime_ops ops = {.start = file_start,
                                       .volume_count = file_count,
                                       .volume_name = file_name,
                                       .volume_block = file_block,
                                       .stop = file_stop};

const struct runtime_ops *runtime_serve_ops(void)
{
    return &ops;
}
const struct runtime_ops *runtime_view_ops(void)
{
    return &ops;
}
