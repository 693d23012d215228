/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever a volume holds where an ext4 has its super block, bitmaps and journal: only blocks of the volume are read, only ranges of
 * it are told, and it ends. The input is the volume's first blocks. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "signal/fslog.h"

#define VOLUME_BLOCKS 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t size;
};

static int read_block(void *context, uint64_t block, void *data, struct error *err)
{
    const struct input *in = context;
    (void)err;
    assert(block < VOLUME_BLOCKS);
    memset(data, 0, FSMAP_BLOCK_BYTES);
    size_t at = (size_t)block * FSMAP_BLOCK_BYTES;
    if (at < in->size)
        memcpy(data, in->data + at, in->size - at < FSMAP_BLOCK_BYTES ? in->size - at : FSMAP_BLOCK_BYTES);
    return 0;
}

static void visit(void *context, uint64_t block, uint64_t count, bool is_free)
{
    (void)context, (void)is_free;
    assert(count && block < VOLUME_BLOCKS && count <= VOLUME_BLOCKS - block);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct error err = ERROR_INIT;
    struct fslog *log = malloc(sizeof *log);
    unsigned char *scratch = malloc(3 * FSMAP_BLOCK_BYTES), *first = scratch + 2 * FSMAP_BLOCK_BYTES;
    if (log && scratch && read_block(&in, 0, first, &err) == 0 &&
        fslog_open(log, first, VOLUME_BLOCKS, read_block, &in, scratch, &err) == 0 && log->usable) {
        for (uint32_t group = 0; group < log->fs.groups && group < 8; group++)
            assert(fsmap_group(&log->fs, group, read_block, visit, &in, scratch, &err) == 0);
        for (int step = 0; step < 2; step++)
            assert(fslog_step(log, read_block, visit, &in, scratch, &err) == 0);
    }
    free(scratch);
    free(log);
    return 0;
}
