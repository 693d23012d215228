/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a segment in small pieces, the last ones first: the file stays open, and what lies before a piece is read with it, the more
 * the longer that was of use. A thousand events are so some dozen reads instead of thousands of openings.
 *
 * Invariants:
 *   W1  nothing behind what was asked for is read: of a segment that is being written, all before it is there for good, what follows is not.
 *   W2  a piece that can be read alone is read, whatever lies before it.
 *
 * Threads: one. The files that it reads must stay (the journal's files_lock). */
#ifndef TIDEMARK_JOURNAL_SEGMENT_WINDOW_H
#define TIDEMARK_JOURNAL_SEGMENT_WINDOW_H

#include "journal/journal_format.h"
#include "journal/segment_reader.h"

#define SEGMENT_WINDOW_MIN_BLOCKS 4u
#define SEGMENT_WINDOW_MAX_BLOCKS FRAME_MAX_BLOCKS

/* Zeroed at first; the caller's, to be released. */
struct segment_window {
    bool is_open;
    uint32_t number, generation; /* of the segment that is open */
    struct segment_reader file;
    char *pages;           /* SEGMENT_WINDOW_MAX_BLOCKS, of which */
    uint32_t first, count; /* these blocks are there */
    uint32_t span;         /* that the last read was to have */
};

/* Opens the segment, unless it is the one that is open. Errors as segment_reader_open. */
int segment_window_open(struct segment_window *w, const char *directory, uint32_t number, uint32_t generation,
                        struct error *err) MUST_CHECK;
/* `count` blocks (SEGMENT_WINDOW_MAX_BLOCKS at most) as they are in the file; `data` need not be aligned. Errors as
 * segment_reader_blocks; -ENOMEM. */
int segment_window_read(struct segment_window *w, uint32_t block, uint32_t count, void *data) MUST_CHECK;
void segment_window_release(struct segment_window *w);

#endif
