/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a sealed segment without its index: what its frames say, as far as they are intact, is enough to make the index
 * again. */
#ifndef TIDEMARK_JOURNAL_SALVAGE_H
#define TIDEMARK_JOURNAL_SALVAGE_H

#include "base/error.h"
#include "journal/manifest.h"
#include "journal/tail.h"

/* Records with LSN in (low, high] cannot be known: the headers of their frames are damaged. */
struct salvage_gap {
    struct lsn low, high;
};
struct salvage_segment {
    struct tail tail; /* of the frames that are intact; payloads that do not match their CRC have a wrong one in it */
    struct salvage_gap *gaps; /* ascending */
    size_t gap_count;
    int failed; /* 0, or why the first thing that was not damage could not be read: -EIO, -ENOMEM */
};

/* Follows the frames of segment `s`, on to the next intact one behind each damaged one. -ENOENT without the file. Reading
 * errors are as damage: `failed` tells of them. Release it. */
int salvage_scan(const char *directory, const struct uuid *journal, const struct segment_info *s, struct salvage_segment *ret,
                 struct error *err) MUST_CHECK;
/* Writes what was found as the segment's index. */
int salvage_write_index(const struct salvage_segment *found, const struct uuid *journal, const char *path, struct error *err) MUST_CHECK;
void salvage_release(struct salvage_segment *found);

#endif
