/* SPDX-License-Identifier: Apache-2.0 */
/* Checks a whole index file in one sequential pass. Since the children of a fence page are consecutive at
 * their level and stand before it (IW1), each fence page must say exactly what was seen since the last one of
 * its level. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "journal/index_internal.h"

#define READ_PAGES 64u /* 256 KiB */

struct verification {
    const struct index *index;
    void (*damage)(void *context, const char *what);
    void *context;
    struct error *err; /* holds the first damage */
    uint64_t damaged;
    bool tree_damaged; /* what follows cannot be compared with it */
    uint64_t extents;
    struct extent last;
    struct {
        uint32_t count;
        struct index_summary children[INDEX_FANOUT];
    } open[INDEX_HEIGHT_MAX]; /* pages of each level that no fence page has named yet */
    union index_page pages[READ_PAGES];
};

static void report(struct verification *v, uint32_t page, const char *what)
{
    struct error e = ERROR_INIT;
    index_damaged(v->index, page, what, &e);
    if (v->damage)
        v->damage(v->context, e.message);
    if (v->damaged++ == 0)
        *v->err = e;
}

static const char *check_leaf(struct verification *v, const union index_page *page, struct index_summary *ret)
{
    uint32_t count = le16_get(page->header.count);
    for (uint32_t i = 0; i < count; i++) {
        struct extent e = index_entry_decode(&page->entries[i], v->index->has_crcs);
        if (i == 0 && v->last.length > 0) {
            if (index_key_compare(index_key_of(&v->last), index_key_of(&e)) >= 0)
                return "its extents do not follow those of the leaf before";
            if (v->index->info.flat && v->last.volume == e.volume && v->last.lba + v->last.length > e.lba)
                return "its first extent overlaps the leaf before in a flat index";
        }
        struct index_summary one = index_summary_of(&e);
        index_summary_add(ret, i, &one);
        v->last = e;
    }
    v->extents += count;
    return NULL;
}

static const char *check_fence(struct verification *v, const union index_page *page,
                               struct index_summary *ret)
{
    uint32_t count = le16_get(page->header.count), below = page->header.level - 1u;
    if (v->open[below].count != count)
        return "it does not have the pages before it as its children";
    for (uint32_t i = 0; i < count; i++) {
        struct index_summary said = index_summary_from_fence(&page->fences[i]);
        const struct index_summary *seen = &v->open[below].children[i];
        if (index_key_compare(said.first, seen->first) != 0 || said.last_volume != seen->last_volume ||
            said.end != seen->end || said.page != seen->page)
            return "a fence says something else than its child";
        index_summary_add(ret, i, &said);
    }
    v->open[below].count = 0;
    return NULL;
}

static const char *check_tree_page(struct verification *v, const union index_page *page, uint32_t number)
{
    uint32_t level = page->header.level;
    if (page->header.type == INDEX_PAGE_SECTION || level >= v->index->height)
        return "it does not belong into the tree";
    struct index_summary summary = {.page = number};
    const char *what = level ? check_fence(v, page, &summary) : check_leaf(v, page, &summary);
    if (what)
        return what;
    summary.page = number;
    if (v->open[level].count == INDEX_FANOUT)
        return "no fence page names the pages before it";
    v->open[level].children[v->open[level].count++] = summary;
    if (number != v->index->root)
        return NULL;
    for (uint32_t i = 0; i < v->index->height; i++)
        if (v->open[i].count != (i + 1 == v->index->height))
            return "it is the root, and leaves pages out";
    return v->extents == v->index->info.extents ? NULL
                                                : "the tree does not have as many extents as the header says";
}

static const char *check_section_page(const struct index *index, const union index_page *page,
                                      uint32_t number)
{
    uint32_t section = page->header.level;
    if (page->header.type != INDEX_PAGE_SECTION)
        return "it does not belong into a section";
    uint64_t total = index->sections[section].length_bytes, first = index->sections[section].page;
    if (total == 0 || number < first || number - first >= index_section_pages(total))
        return "it belongs into another section";
    uint64_t there = total - (number - first) * INDEX_PAYLOAD_BYTES;
    if (le16_get(page->header.count) != (there < INDEX_PAYLOAD_BYTES ? there : INDEX_PAYLOAD_BYTES))
        return "it does not hold as much of its section as it should";
    return NULL;
}

static void check_page(struct verification *v, const union index_page *page, uint32_t number)
{
    bool tree = number <= v->index->root;
    const char *what = index_page_check(page, v->index->seed, number, v->index->info.flat);
    if (!what && !tree)
        what = check_section_page(v->index, page, number);
    else if (!what && !v->tree_damaged)
        what = check_tree_page(v, page, number);
    if (!what)
        return;
    v->tree_damaged |= tree;
    report(v, number, what);
}

int index_verify(struct index *index, void (*damage)(void *context, const char *what), void *context,
                 struct error *err)
{
    _cleanup_free_ struct verification *v = calloc(1, sizeof *v);
    if (!v)
        return error_errno(err, -ENOMEM, "cannot verify index %s", index->path);
    v->index = index;
    v->damage = damage;
    v->context = context;
    v->err = err;
    int failed = 0;
    for (uint32_t at = 1, count; at < index->pages; at += count) {
        count = index->pages - at < READ_PAGES ? index->pages - at : READ_PAGES;
        struct error e = ERROR_INIT;
        int r = index_read_pages(index, at, count, v->pages, &e);
        if (r < 0) { /* page by page, to name the one */
            count = 1;
            r = index_read_pages(index, at, count, v->pages, &e);
        }
        if (r < 0) {
            v->tree_damaged |= at <= index->root;
            if (r != -EBADMSG && failed == 0)
                failed = r;
            report(v, at, r == -EBADMSG ? "the file ends before it" : "it cannot be read");
            continue;
        }
        for (uint32_t i = 0; i < count; i++)
            check_page(v, &v->pages[i], at + i);
    }
    if (failed)
        err->code = failed;
    return failed ? failed : v->damaged ? -EBADMSG : 0;
}
