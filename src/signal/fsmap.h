/* SPDX-License-Identifier: Apache-2.0 */
/* What an ext4 file system says to be free. Without the mount option `discard` a volume does not hear that a file was
 * removed: only the bitmaps of its file system say so, once they are written back (some 40 s later at worst). They are read a
 * few at a time, beside the writes, never on their way.
 *
 * Only ext2, ext3 and ext4 with blocks of 4 KiB; anything else is told by fsmap_open and left alone. Everything that is read is
 * checked against the volume's size: the content comes from whoever writes the volume. */
#ifndef TIDEMARK_SIGNAL_FSMAP_H
#define TIDEMARK_SIGNAL_FSMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define FSMAP_BLOCK_BYTES 4096u

/* Reads one block of 4 KiB. */
typedef int (*fsmap_read)(void *context, uint64_t block, void *data, struct error *err);
/* A range of blocks that are all free or all used. */
typedef void (*fsmap_visit)(void *context, uint64_t block, uint64_t count, bool is_free);

struct fsmap {
    uint64_t blocks;      /* of the file system */
    uint32_t groups, blocks_per_group, descriptor_bytes;
    bool wide;            /* 64-bit block numbers */
};

/* From the volume's first block. false: there is no file system of which the bitmaps can be read. */
bool fsmap_open(const void *first_block, uint64_t volume_blocks, struct fsmap *ret);
/* Visits the ranges of group `group`; a group whose bitmap is not made yet, or is not where it can be, has nothing. `scratch`: two
 * blocks. */
int fsmap_group(const struct fsmap *m, uint32_t group, fsmap_read read, fsmap_visit visit, void *context, void *scratch,
                struct error *err) MUST_CHECK;

/* Visits what a bitmap of group `group` (one block) says. */
void fsmap_bitmap(const struct fsmap *m, uint32_t group, const void *bitmap, fsmap_visit visit, void *context);

#endif
