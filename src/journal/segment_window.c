/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/segment_window.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/io.h"

#define BLOCK JOURNAL_BLOCK_BYTES
#define PAGES_BYTES ((size_t)SEGMENT_WINDOW_MAX_BLOCKS * BLOCK)

static void close_file(struct segment_window *w)
{
    if (w->is_open)
        segment_reader_close(&w->file);
    w->is_open = false;
    w->count = w->span = 0;
}

int segment_window_open(struct segment_window *w, const char *directory, uint32_t number, uint32_t generation, struct error *err)
{
    if (w->is_open && w->number == number && w->generation == generation)
        return 0;
    close_file(w);
    int r = segment_reader_open(directory, number, generation, true, &w->file, err);
    if (r < 0)
        return r;
    w->is_open = true;
    w->number = number;
    w->generation = generation;
    return 0;
}

void segment_window_release(struct segment_window *w)
{
    close_file(w);
    io_free_pages(w->pages, PAGES_BYTES);
    *w = (struct segment_window){0};
}

/* Twice as much as the last time where this one goes on before it, half as much where it jumps (to a frame's header, and back). Of a
 * compressed segment the reader keeps chunks by itself. */
static uint32_t span_of(const struct segment_window *w, uint32_t end, uint32_t count)
{
    bool goes_on = w->count && end <= w->first && w->first - end <= w->span;
    uint32_t span = w->file.cold ? count : goes_on ? w->span * 2 : w->span / 2;
    if (span < SEGMENT_WINDOW_MIN_BLOCKS && !w->file.cold)
        span = SEGMENT_WINDOW_MIN_BLOCKS;
    if (span < count)
        span = count;
    return span < SEGMENT_WINDOW_MAX_BLOCKS ? span : SEGMENT_WINDOW_MAX_BLOCKS;
}

static int fill(struct segment_window *w, uint32_t block, uint32_t count)
{
    uint32_t end = block + count, span = span_of(w, end, count);
    uint32_t first = end > span ? end - span : 1; /* block 0 is the segment's own, and no record's */
    if (first > block)
        first = block;
    int r = segment_reader_blocks(&w->file, first, end - first, w->pages);
    if (r < 0 && first < block) { /* W2 */
        first = block;
        r = segment_reader_blocks(&w->file, first, count, w->pages);
    }
    w->first = first;
    w->count = r < 0 ? 0 : end - first;
    w->span = r < 0 ? 0 : span;
    return r;
}

int segment_window_read(struct segment_window *w, uint32_t block, uint32_t count, void *data)
{
    assert(w->is_open);
    if (count > SEGMENT_WINDOW_MAX_BLOCKS || block > UINT32_MAX - count)
        return -EINVAL;
    if (!w->pages && !(w->pages = io_reserve_pages(PAGES_BYTES)))
        return -ENOMEM;
    if (block < w->first || block + count > w->first + w->count) {
        int r = fill(w, block, count);
        if (r < 0)
            return r;
    }
    memcpy(data, w->pages + (size_t)(block - w->first) * BLOCK, (size_t)count * BLOCK);
    return 0;
}
