/* SPDX-License-Identifier: Apache-2.0 */
/* Opens index files and looks extents up in them.
 *
 * Invariants:
 * IR1 A page is used only when its checksum, number and entries are right, its level is its parent's less
 * one, its first key is the one in its fence, and its last key lies below the next fence: a lookup sees each
 * extent once and ends, whatever the file holds. IR2 A lookup reads a child only if its fence allows an
 * overlapping extent below it: the child's first key lies before the end of the range, and the end of its
 * last volume's extents after the start. A child that spans several volumes is also read for those before the
 * last one; there is one such child a level and volume. IR3 No lock is held and no page is borrowed while
 * `visit` runs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "journal/index_internal.h"

int index_damaged(const struct index *index, uint32_t page, const char *what, struct error *err)
{
    return error_set(err, -EBADMSG, "index %s is damaged: page %u: %s", index->path, page, what);
}

static int header_damaged(const struct index *index, const char *what, struct error *err)
{
    return index_damaged(index, 0, what, err);
}

/* Tree and sections fill the file exactly. */
static int check_layout(const struct index *index, struct error *err)
{
    uint64_t expected = 1 + (uint64_t)index->root;
    for (unsigned i = 0; i < INDEX_SECTIONS; i++) {
        uint64_t first = index->sections[i].page,
                 count = index_section_pages(index->sections[i].length_bytes);
        if (count > index->pages ||
            (count > 0 ? first <= index->root || first + count > index->pages : first != 0))
            return header_damaged(index, "a section lies outside of the file", err);
        expected += count;
        for (unsigned j = 0; j < i; j++)
            if (count > 0 && index->sections[j].length_bytes > 0 && index->sections[j].page == first)
                return header_damaged(index, "two sections share pages", err);
    }
    if (expected != index->pages)
        return header_damaged(index, "tree and sections do not fill the file", err);
    return 0;
}

static int load_header(struct index *index, struct error *err)
{
    struct index_header h;
    struct stat st;
    if (fstat(index->fd, &st) < 0)
        return error_errno(err, -errno, "cannot read index %s", index->path);
    const struct seal *seal = seal_of(index->path);
    int r = seal ? sealed_pages_open(seal, index->fd, index->path, &index->sealed, err) : 0;
    if (r < 0)
        return r;
    if (st.st_size < (off_t)sizeof h)
        return header_damaged(index, "the file is shorter than its header", err);
    r = index->sealed ? sealed_pages_pread(index->sealed, index->fd, &h, 0, 1) : io_pread_full(index->fd, &h, sizeof h, 0);
    if (r == -ENODATA)
        return header_damaged(index, "the file is shorter than its header", err);
    if (r < 0)
        return error_errno(err, r, "cannot read index %s", index->path);
    if (memcmp(h.magic, INDEX_MAGIC, sizeof h.magic) != 0)
        return header_damaged(index, "it is not an index file", err);
    if (le32_get(h.crc) != index_header_crc(&h))
        return header_damaged(index, "its checksum does not match", err);
    if (le32_get(h.version) != INDEX_VERSION || le32_get(h.incompatible) != 0)
        return error_set(err, -ENOTSUP,
                         "cannot read index %s: it was written by a newer tidemark (version %u, flags 0x%x)",
                         index->path, le32_get(h.version), le32_get(h.incompatible));
    uint64_t pages = le64_get(h.pages), root = le64_get(h.root), extents = le64_get(h.extents);
    uint32_t height = le32_get(h.height), kind = le16_get(h.kind), flat = le16_get(h.flat);
    if (pages > UINT32_MAX || (uint64_t)st.st_size != (index->sealed ? sealed_pages_file_bytes(pages) : pages * INDEX_PAGE_BYTES))
        return header_damaged(index, "the file does not have the length that it was written with", err);
    if (kind < INDEX_L0 || kind > INDEX_TAIL || flat > 1 || height > INDEX_HEIGHT_MAX || root >= pages ||
        (extents == 0) != (root == 0) || (height == 0) != (root == 0) || root < height)
        return header_damaged(index, "its fields contradict each other", err);
    index->root = (uint32_t)root;
    index->pages = (uint32_t)pages;
    index->height = height;
    index->has_crcs = le32_get(h.compatible) & INDEX_HAS_CRCS;
    index->seed = crc32c(0, h.index_id, sizeof h.index_id);
    for (unsigned i = 0; i < INDEX_SECTIONS; i++) {
        uint64_t page = le64_get(h.sections[i].page);
        if (page >= pages)
            return header_damaged(index, "a section lies outside of the file", err);
        index->sections[i].page = (uint32_t)page;
        index->sections[i].length_bytes = le64_get(h.sections[i].length_bytes);
    }
    index->info = (struct index_info){.kind = (enum index_kind)kind,
                                      .flat = flat,
                                      .first_segment = le32_get(h.first_segment),
                                      .last_segment = le32_get(h.last_segment),
                                      .low = {le64_get(h.low)},
                                      .high = {le64_get(h.high)},
                                      .extents = extents,
                                      .file_bytes = pages * INDEX_PAGE_BYTES};
    memcpy(index->info.journal_id.bytes, h.journal_id, sizeof h.journal_id);
    return check_layout(index, err);
}

/* A file that was put in the place of another is whole, and would answer with what another journal or segment holds. */
static int check_identity(const struct index *index, struct error *err)
{
    const char *slash = strrchr(index->path, '/'), *name = slash ? slash + 1 : index->path;
    unsigned number, level;
    if (index->cache && !index_cache_takes(index->cache, &index->info.journal_id))
        return header_damaged(index, "it belongs to another journal", err);
    bool named = sscanf(name, "l0-%u", &number) == 1 || sscanf(name, "run-%u-%u", &level, &number) == 2;
    if (named && number != index->info.first_segment)
        return header_damaged(index, "it belongs to another segment", err);
    return 0;
}

int index_open(const char *path, struct index_cache *cache, struct index **ret, struct error *err)
{
    struct index *index = calloc(1, sizeof *index);
    if (!index)
        return error_errno(err, -ENOMEM, "cannot open index %s", path);
    int r;
    index->fd = -1;
    index->cache = cache;
    index->path = strdup(path);
    if (!index->path) {
        r = error_errno(err, -ENOMEM, "cannot open index %s", path);
        goto fail;
    }
    index->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (index->fd < 0) {
        r = error_errno(err, -errno, "cannot open index %s", path);
        goto fail;
    }
    r = load_header(index, err);
    if (r == 0)
        r = check_identity(index, err);
    if (r < 0)
        goto fail;
    if (cache)
        index->instance = index_cache_new_instance(cache);
    *ret = index;
    return 0;
fail:
    index_free(index);
    return r;
}

void index_free(struct index *index)
{
    if (!index)
        return;
    if (index->fd >= 0)
        close(index->fd);
    sealed_pages_free(index->sealed);
    free(index->path);
    free(index);
}

const struct index_info *index_info(const struct index *index)
{
    return &index->info;
}

const char *index_path(const struct index *index)
{
    return index->path;
}

int index_read_pages(const struct index *index, uint32_t first, uint32_t count, void *data, struct error *err)
{
    int r = index->sealed ? sealed_pages_pread(index->sealed, index->fd, data, first, count)
                          : io_pread_full(index->fd, data, (size_t)count * INDEX_PAGE_BYTES, (uint64_t)first * INDEX_PAGE_BYTES);
    if (r == -ENODATA)
        return index_damaged(index, first, "the file ends before it", err);
    if (r < 0)
        return error_errno(err, r, "cannot read index %s, page %u", index->path, first);
    return 0;
}

/* A checked page of the expected type and level. */
static int get_page(const struct index *index, uint32_t number, enum index_page_type type, uint32_t level,
                    union index_page *ret, struct error *err)
{
    if (!index->cache || !index_cache_get(index->cache, index->instance, number, ret)) {
        int r = index_read_pages(index, number, 1, ret, err);
        if (r < 0)
            return r;
        const char *what = index_page_check(ret, index->seed, number, index->info.flat);
        if (what)
            return index_damaged(index, number, what, err);
        if (index->cache)
            index_cache_put(index->cache, index->instance, number, ret);
    }
    if (ret->header.type != type || ret->header.level != level)
        return index_damaged(index, number, "it is not the page that was asked for", err);
    return 0;
}

/* ---- lookups ---- */

struct lookup {
    struct index *index;
    uint32_t volume;
    uint64_t lba, end;
    uint64_t low, high;
    index_visit visit;
    void *context;
};

/* A page on the way down. */
struct step {
    uint32_t page;
    uint32_t next; /* fence pages: the next child to read, or no_more */
    bool has_first;
    bool has_bound;
    struct index_key first; /* that its first entry must have */
    struct index_key bound; /* that all must stay below */
};
static const uint32_t no_more = UINT32_MAX;

static struct index_key key_at(const union index_page *page, uint32_t i)
{
    return page->header.type == INDEX_PAGE_LEAF ? index_entry_key(&page->entries[i])
                                                : index_fence_key(&page->fences[i]);
}

/* First entry whose (volume, LBA) is not before the given one. */
static uint32_t lower_bound(const union index_page *page, uint32_t volume, uint64_t lba)
{
    uint32_t low = 0, high = le16_get(page->header.count);
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        struct index_key key = key_at(page, middle);
        if (key.volume < volume || (key.volume == volume && key.lba < lba))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Where to start: in a flat index at most one entry before the range can reach into it. */
static uint32_t first_slot(const struct lookup *l, const union index_page *page)
{
    if (!l->index->info.flat)
        return 0;
    uint32_t slot = lower_bound(page, l->volume, l->lba);
    return slot > 0 ? slot - 1 : 0;
}

/* The first child from `slot` on that may hold an overlapping extent (IR2), or no_more. */
static uint32_t next_child(const struct lookup *l, const union index_page *page, uint32_t slot)
{
    uint32_t count = le16_get(page->header.count);
    for (; slot < count; slot++) {
        const struct index_fence *f = &page->fences[slot];
        uint32_t first = le32_get(f->volume), last = le32_get(f->last_volume);
        if (first > l->volume || (first == l->volume && le64_get(f->lba) >= l->end))
            break;
        if (last > l->volume || (last == l->volume && le64_get(f->end) > l->lba))
            return slot;
    }
    return no_more;
}

static int load_step(const struct lookup *l, const struct step *step, uint32_t level, union index_page *ret,
                     struct error *err)
{
    int r = get_page(l->index, step->page, level ? INDEX_PAGE_FENCE : INDEX_PAGE_LEAF, level, ret, err);
    if (r < 0)
        return r;
    if ((step->has_first && index_key_compare(key_at(ret, 0), step->first) != 0) ||
        (step->has_bound &&
         index_key_compare(key_at(ret, le16_get(ret->header.count) - 1u), step->bound) >= 0))
        return index_damaged(l->index, step->page, "it does not hold what its fence says", err);
    return 0;
}

static int visit_leaf(const struct lookup *l, const union index_page *page, struct error *err)
{
    uint32_t count = le16_get(page->header.count);
    for (uint32_t i = first_slot(l, page); i < count; i++) {
        const struct index_entry *e = &page->entries[i];
        uint32_t volume = le32_get(e->volume);
        uint64_t lba = le64_get(e->lba), lsn = le64_get(e->lsn);
        if (volume > l->volume || (volume == l->volume && lba >= l->end))
            break;
        if (volume < l->volume || lba + le32_get(e->length) <= l->lba || lsn <= l->low || lsn > l->high)
            continue;
        struct extent extent = index_entry_decode(e, l->index->has_crcs);
        int r = l->visit(l->context, &extent, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static struct step child_step(const struct step *parent, const union index_page *page, uint32_t slot)
{
    struct step child = {.page = le32_get(page->fences[slot].page),
                         .has_first = true,
                         .first = index_fence_key(&page->fences[slot]),
                         .has_bound = parent->has_bound,
                         .bound = parent->bound};
    if (slot + 1 < le16_get(page->header.count)) {
        child.has_bound = true;
        child.bound = index_fence_key(&page->fences[slot + 1]);
    }
    return child;
}

/* Depth first, with one page in memory: a parent is fetched again (from the cache) only if it has another
 * child to read, which is decided before going down. */
static int walk(const struct lookup *l, struct error *err)
{
    union index_page page;
    struct step steps[INDEX_HEIGHT_MAX];
    uint32_t top = l->index->height - 1, level = top;
    steps[top] = (struct step){.page = l->index->root};
    for (;;) {
        int r = load_step(l, &steps[level], level, &page, err);
        if (r < 0)
            return r;
        if (level == 0) {
            r = visit_leaf(l, &page, err);
            if (r < 0)
                return r;
        } else {
            steps[level].next = next_child(l, &page, first_slot(l, &page));
        }
        while (level <= top && (level == 0 || steps[level].next == no_more))
            level++;
        if (level > top)
            return 0;
        if (steps[level].page != le32_get(page.header.page)) {
            r = load_step(l, &steps[level], level, &page, err);
            if (r < 0)
                return r;
        }
        uint32_t slot = steps[level].next;
        steps[level].next = next_child(l, &page, slot + 1);
        steps[level - 1] = child_step(&steps[level], &page, slot);
        level--;
    }
}

int index_lookup(struct index *index, uint32_t volume, uint64_t lba, uint64_t length, struct lsn low,
                 struct lsn high, index_visit visit, void *context, struct error *err)
{
    struct lookup l = {index, volume, lba, 0, low.n, high.n, visit, context};
    if (__builtin_add_overflow(lba, length, &l.end))
        l.end = UINT64_MAX;
    if (index->height == 0 || length == 0 || low.n >= high.n)
        return 0;
    return walk(&l, err);
}

/* ---- sections ---- */

uint64_t index_section_bytes(const struct index *index, enum index_section section)
{
    assert((unsigned)section < INDEX_SECTIONS);
    return index->sections[section].length_bytes;
}

int index_section_pread(struct index *index, enum index_section section, void *data, size_t length_bytes,
                        uint64_t offset, struct error *err)
{
    assert((unsigned)section < INDEX_SECTIONS);
    uint64_t total = index->sections[section].length_bytes;
    if (offset > total || length_bytes > total - offset)
        return error_set(err, -EINVAL, "cannot read %zu bytes at %llu of section %u of index %s: it has %llu",
                         length_bytes, (unsigned long long)offset, section, index->path,
                         (unsigned long long)total);
    uint8_t *at = data;
    while (length_bytes > 0) {
        union index_page page;
        uint64_t number = offset / INDEX_PAYLOAD_BYTES, within = offset % INDEX_PAYLOAD_BYTES;
        uint64_t there = total - number * INDEX_PAYLOAD_BYTES;
        there = there < INDEX_PAYLOAD_BYTES ? there : INDEX_PAYLOAD_BYTES;
        uint32_t at_page = index->sections[section].page + (uint32_t)number;
        int r = get_page(index, at_page, INDEX_PAGE_SECTION, section, &page, err);
        if (r < 0)
            return r;
        if (le16_get(page.header.count) != there)
            return index_damaged(index, at_page, "it does not hold as much of its section as it should", err);
        size_t part = there - within < length_bytes ? (size_t)(there - within) : length_bytes;
        memcpy(at, page.payload + within, part);
        at += part;
        offset += part;
        length_bytes -= part;
    }
    return 0;
}
