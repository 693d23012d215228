/* SPDX-License-Identifier: Apache-2.0 */
/* Block bitmaps out of ext4's own journal. In place a bitmap is written back some 40 s after a change, and not at all while the same
 * group keeps changing; in the journal (jbd2) it is there with each commit, every 5 s. Each transaction is read once, after its
 * commit block is there; what was overwritten while it was read is not used.
 *
 * Only journals inside of the file system, with at most FSLOG_EXTENTS_MAX extents, and file systems of at most FSLOG_GROUPS_MAX
 * groups (128 GiB); for others fslog_follow says so. Everything read is checked: it comes from whoever writes the volume. */
#ifndef TIDEMARK_SIGNAL_FSLOG_H
#define TIDEMARK_SIGNAL_FSLOG_H

#include "signal/fsmap.h"

#define FSLOG_EXTENTS_MAX 4u
#define FSLOG_GROUPS_MAX 1024u
#define FSLOG_BITMAPS_MAX 64u       /* of one transaction; more are left out */
#define FSLOG_TRANSACTIONS_MAX 256u /* read in one step */
#define FSLOG_DESCRIPTORS_MAX 1024u /* of one transaction; it is not read when it has more */

struct fslog {
    bool usable, following; /* the file system has one that can be read; its transactions are being followed */
    struct fsmap fs;
    uint64_t bitmaps[FSLOG_GROUPS_MAX]; /* where each group's bitmap is */
    struct {
        uint32_t first, count; /* of the journal's blocks */
        uint64_t block;
    } extents[FSLOG_EXTENTS_MAX];
    unsigned extent_count;
    unsigned char uuid[16];
    uint32_t blocks, first_block; /* of the journal; where its ring begins */
    uint32_t at, sequence;        /* of the next transaction */
    uint32_t tag_bytes;
    bool tag3, wide;
};

/* From the volume's first block: finds the journal and the bitmaps. Sets ret->usable. Reads FSLOG_GROUPS_MAX / 64 blocks at most. */
int fslog_open(struct fslog *ret, const void *first_block, uint64_t volume_blocks, fsmap_read read, void *context, void *scratch,
               struct error *err) MUST_CHECK;
/* `scratch`, of both: two blocks. Visits what the bitmaps of the transactions committed since the last step say. */
int fslog_step(struct fslog *l, fsmap_read read, fsmap_visit visit, void *context, void *scratch, struct error *err) MUST_CHECK;

#endif
