/* SPDX-License-Identifier: Apache-2.0 */
/* Sequential streams of extents: over an index file, and over an array.
 * IS1 A stream over an index yields every extent of it once and in order, or fails: leaves are checked
 * against each other and counted against the header. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/index_internal.h"

#define READ_PAGES 64u /* 256 KiB */

struct file_stream {
    struct extent_stream stream; /* first */
    struct index *index;
    uint64_t low, high;
    uint64_t extents; /* in the leaves so far */
    uint32_t next_page;
    uint32_t loaded, at_page;  /* pages in the buffer, and the current one */
    uint32_t count, at;        /* entries in the current page, and the next one */
    bool any;                  /* there was a leaf before */
    int failed;                /* what every later call returns */
    struct index_key last;     /* of the leaf before */
    struct index_summary page; /* end of the last extent of the leaf before, for flat ones */
    uint32_t room;             /* pages of the buffer: no more than a small index has */
    union index_page buffer[];
};

static int damaged(struct file_stream *s, uint32_t page, const char *what, struct error *err)
{
    return index_damaged(s->index, page, what, err);
}

/* Takes the page at `at_page`, if it is a leaf. */
static int enter_page(struct file_stream *s, uint32_t number, struct error *err)
{
    const union index_page *page = &s->buffer[s->at_page];
    const char *what = index_page_check(page, s->index->seed, number, s->index->info.flat);
    if (what)
        return damaged(s, number, what, err);
    s->at = 0;
    s->count = 0;
    if (page->header.type == INDEX_PAGE_SECTION)
        return damaged(s, number, "it does not belong into the tree", err);
    if (page->header.type != INDEX_PAGE_LEAF)
        return 0;
    s->count = le16_get(page->header.count);
    struct index_key first = index_entry_key(&page->entries[0]);
    if (s->any && (index_key_compare(s->last, first) >= 0 ||
                   (s->index->info.flat && s->page.last_volume == first.volume && s->page.end > first.lba)))
        return damaged(s, number, "its extents do not follow those of the leaf before", err);
    struct extent last = index_entry_decode(&page->entries[s->count - 1], s->index->has_crcs);
    s->any = true;
    s->last = index_key_of(&last);
    s->page = index_summary_of(&last);
    s->extents += s->count;
    return 0;
}

/* 1 when there is another leaf, 0 at the end. */
static int next_leaf(struct file_stream *s, struct error *err)
{
    do {
        uint32_t root = s->index->root;
        if (s->at_page + 1 < s->loaded) {
            s->at_page++;
        } else if (s->next_page > root) {
            if (s->extents != s->index->info.extents)
                return damaged(s, root, "the tree does not have as many extents as the header says", err);
            return 0;
        } else {
            uint32_t left = root - s->next_page + 1;
            s->loaded = 0;
            int r = index_read_pages(s->index, s->next_page, left < s->room ? left : s->room, s->buffer, err);
            if (r < 0)
                return r;
            s->loaded = left < s->room ? left : s->room;
            s->next_page += s->loaded;
            s->at_page = 0;
        }
        int r = enter_page(s, s->next_page - s->loaded + s->at_page, err);
        if (r < 0)
            return r;
    } while (s->count == 0);
    return 1;
}

static int file_next(struct extent_stream *stream, struct extent *ret, struct error *err)
{
    struct file_stream *s = (struct file_stream *)stream;
    if (s->failed)
        return error_errno(err, s->failed, "cannot read index %s: it failed before", s->index->path);
    for (;;) {
        while (s->at < s->count) {
            const struct index_entry *e = &s->buffer[s->at_page].entries[s->at++];
            uint64_t lsn = le64_get(e->lsn);
            if (lsn > s->low && lsn <= s->high) {
                *ret = index_entry_decode(e, s->index->has_crcs);
                return 1;
            }
        }
        int r = next_leaf(s, err);
        if (r <= 0) {
            s->failed = r;
            s->count = s->at = 0;
            return r;
        }
    }
}

static void plain_free(struct extent_stream *stream)
{
    free(stream);
}

int index_stream(struct index *index, struct lsn low, struct lsn high, struct extent_stream **ret,
                 struct error *err)
{
    uint32_t room = index->root < READ_PAGES ? index->root : READ_PAGES;
    struct file_stream *s = malloc(sizeof *s + room * sizeof s->buffer[0]);
    if (!s)
        return error_errno(err, -ENOMEM, "cannot read index %s", index->path);
    memset(s, 0, offsetof(struct file_stream, buffer));
    s->room = room;
    s->stream = (struct extent_stream){file_next, plain_free};
    s->index = index;
    s->low = low.n;
    s->high = high.n;
    s->next_page = 1;
    *ret = &s->stream;
    return 0;
}

struct array_stream {
    struct extent_stream stream; /* first */
    const struct extent *at, *end;
    uint64_t low, high;
};

static int array_next(struct extent_stream *stream, struct extent *ret, struct error *err)
{
    struct array_stream *s = (struct array_stream *)stream;
    (void)err;
    while (s->at < s->end) {
        const struct extent *e = s->at++;
        if (e->lsn.n > s->low && e->lsn.n <= s->high) {
            *ret = *e;
            return 1;
        }
    }
    return 0;
}

int extent_stream_array(const struct extent *extents, size_t count, struct lsn low, struct lsn high,
                        struct extent_stream **ret, struct error *err)
{
    struct array_stream *s = malloc(sizeof *s);
    if (!s)
        return error_errno(err, -ENOMEM, "cannot read extents");
    *s = (struct array_stream){
        {array_next, plain_free}, extents, count ? extents + count : extents, low.n, high.n};
    *ret = &s->stream;
    return 0;
}

void extent_stream_free(struct extent_stream *stream)
{
    if (stream)
        stream->free(stream);
}
