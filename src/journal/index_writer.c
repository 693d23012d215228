/* SPDX-License-Identifier: Apache-2.0 */
/* Writes an index file in one sequential pass. Leaves are written as they fill; each written page leaves a
 * fence in the page above it, which is written as soon as it is full, so that memory is one page a level and
 * the buffer.
 *
 * Invariants:
 * IW1 The children of a fence page are consecutive among the pages of their level and stand before it.
 * IW2 The root is the last page of the tree, and the only page of its level.
 * IW3 Nothing exists under `path` before everything is on disk: "<path>.tmp", fsync, rename, fsync of the
 * directory. (INDEX_TAIL is not synced: it goes with its pin, which no loss of power leaves.) */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "journal/index_internal.h"

#define BUFFER_PAGES 64u /* 256 KiB */

struct writer_level {
    union index_page page;
    uint32_t count;               /* entries in `page` */
    uint32_t pages;               /* already written at this level */
    uint32_t last_page;           /* the last of them */
    struct index_summary summary; /* of `page` */
};

struct index_writer {
    char *path;
    char *temporary;
    int fd; /* -1 after it was finished */
    struct sealed_pages *sealed; /* NULL: plain */
    int failed;
    bool tree_closed;
    unsigned sections_done;
    uint32_t fanout;
    uint32_t seed;
    uint64_t next_page;
    uint32_t buffered_pages;
    union index_page *buffer;
    struct extent last; /* length 0 before the first */
    struct index_info info;
    struct index_header header;
    struct writer_level levels[INDEX_HEIGHT_MAX];
};

int index_writer_new(const char *path, const struct index_info *info, struct index_writer **ret,
                     struct error *err)
{
    struct index_writer *w = calloc(1, sizeof *w);
    if (!w)
        return error_errno(err, -ENOMEM, "cannot write index %s", path);
    w->fd = -1;
    w->fanout = INDEX_FANOUT;
    w->next_page = 1;
    w->info = *info;
    w->info.extents = 0;
    struct uuid id;
    int r = uuid_random(&id, err);
    if (r < 0)
        goto fail;
    memcpy(w->header.index_id, id.bytes, sizeof id.bytes);
    w->seed = crc32c(0, id.bytes, sizeof id.bytes);
    w->path = strdup(path);
    w->buffer = malloc(BUFFER_PAGES * sizeof *w->buffer);
    if (!w->path || !w->buffer || asprintf(&w->temporary, "%s.tmp", path) < 0) {
        w->temporary = NULL;
        r = error_errno(err, -ENOMEM, "cannot write index %s", path);
        goto fail;
    }
    w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (w->fd < 0) {
        r = error_errno(err, -errno, "cannot create index %s", w->temporary);
        goto fail;
    }
    const struct seal *seal = seal_of(path);
    r = seal ? sealed_pages_create(seal, w->fd, &w->sealed, err) : 0;
    if (r < 0)
        goto fail;
    *ret = w;
    return 0;
fail:
    index_writer_free(w);
    return r;
}

void index_writer_free(struct index_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->temporary);
    }
    sealed_pages_free(w->sealed);
    free(w->buffer);
    free(w->temporary);
    free(w->path);
    free(w);
}

void index_writer_limit_fanout(struct index_writer *w, uint32_t count)
{
    assert(count >= 2 && count <= INDEX_FANOUT && w->last.length == 0);
    w->fanout = count;
}

static int failed_before(struct index_writer *w, struct error *err)
{
    return error_errno(err, w->failed, "cannot write index %s: it failed before", w->temporary);
}

static int flush(struct index_writer *w, struct error *err)
{
    uint64_t first = w->next_page - w->buffered_pages;
    int r = w->sealed ? sealed_pages_pwrite(w->sealed, w->fd, w->buffer, first, w->buffered_pages)
                      : io_pwrite_full(w->fd, w->buffer, w->buffered_pages * sizeof *w->buffer, first * INDEX_PAGE_BYTES);
    if (r < 0) {
        w->failed = r;
        return error_errno(err, r, "cannot write index %s", w->temporary);
    }
    w->buffered_pages = 0;
    return 0;
}

/* Seals `page`, which becomes the file's next one. */
static int append_page(struct index_writer *w, union index_page *page, enum index_page_type type,
                       uint32_t level, uint32_t count, struct error *err)
{
    if (w->next_page > UINT32_MAX - 1) {
        w->failed = -EFBIG;
        return error_errno(err, -EFBIG, "cannot write index %s", w->temporary);
    }
    index_page_seal(page, w->seed, (uint32_t)w->next_page, type, (uint8_t)level, (uint16_t)count);
    w->buffer[w->buffered_pages++] = *page;
    w->next_page++;
    return w->buffered_pages == BUFFER_PAGES ? flush(w, err) : 0;
}

/* Writes the page of `level`, and of those above that it fills. */
static int complete_level(struct index_writer *w, uint32_t level, struct error *err)
{
    for (;; level++) {
        struct writer_level *l = &w->levels[level];
        l->summary.page = (uint32_t)w->next_page;
        int r = append_page(w, &l->page, level ? INDEX_PAGE_FENCE : INDEX_PAGE_LEAF, level, l->count, err);
        if (r < 0)
            return r;
        l->last_page = l->summary.page;
        l->pages++;
        l->count = 0;
        if (level + 1 == INDEX_HEIGHT_MAX) {
            if (l->pages == 1)
                return 0; /* the root, if nothing follows */
            w->failed = -EFBIG;
            return error_errno(err, -EFBIG, "cannot write index %s", w->temporary);
        }
        struct writer_level *up = l + 1;
        up->page.fences[up->count] = (struct index_fence){
            .volume = le32_of(l->summary.first.volume),
            .last_volume = le32_of(l->summary.last_volume),
            .lba = le64_of(l->summary.first.lba),
            .lsn = le64_of(l->summary.first.lsn),
            .end = le64_of(l->summary.end),
            .page = le32_of(l->summary.page),
        };
        index_summary_add(&up->summary, up->count, &l->summary);
        if (++up->count < w->fanout)
            return 0;
    }
}

int index_writer_add(struct index_writer *w, const struct extent *extent, struct error *err)
{
    assert(!w->tree_closed);
    assert(extent->length > 0 && extent->lba + extent->length > extent->lba);
    assert(extent->kind >= EXTENT_DATA && extent->kind <= EXTENT_BASE);
    assert(!(extent->flags & EXTENT_CHECKED) || (extent->kind == EXTENT_DATA && extent_is_in_one_block(extent)));
    if (w->last.length > 0) {
        assert(index_key_compare(index_key_of(&w->last), index_key_of(extent)) < 0);
        assert(!w->info.flat || w->last.volume != extent->volume ||
               w->last.lba + w->last.length <= extent->lba);
    }
    if (w->failed)
        return failed_before(w, err);
    struct writer_level *leaf = &w->levels[0];
    leaf->page.entries[leaf->count] = (struct index_entry){
        .volume = le32_of(extent->volume),
        .length = le32_of(extent->length),
        .lba = le64_of(extent->lba),
        .lsn = le64_of(extent->lsn.n),
        .segment = le32_of(extent->segment),
        .position = le32_of(extent->position),
        .kind = le16_of(extent->kind),
        .flags = le16_of(extent->flags),
        .crc = le32_of(extent->flags & EXTENT_CHECKED ? extent->crc : 0),
    };
    struct index_summary one = index_summary_of(extent);
    index_summary_add(&leaf->summary, leaf->count, &one);
    w->last = *extent;
    w->info.extents++;
    return ++leaf->count < w->fanout ? 0 : complete_level(w, 0, err);
}

/* Writes what is left of each level. The lowest level that has but one page is the root's (IW2); the fence
 * that it left above is not used. */
static int close_tree(struct index_writer *w, struct error *err)
{
    w->tree_closed = true;
    if (w->info.extents == 0)
        return 0;
    for (uint32_t level = 0; level < INDEX_HEIGHT_MAX; level++) {
        struct writer_level *l = &w->levels[level];
        if (l->count > 0) {
            int r = complete_level(w, level, err);
            if (r < 0)
                return r;
        }
        if (l->pages == 1) {
            assert(l->last_page == w->next_page - 1);
            w->header.height = le32_of(level + 1);
            w->header.root = le64_of(l->last_page);
            return 0;
        }
    }
    assert(!"a tree has a root");
    return -EFBIG;
}

int index_writer_section(struct index_writer *w, enum index_section section, const void *data,
                         size_t length_bytes, struct error *err)
{
    assert((unsigned)section < INDEX_SECTIONS && !(w->sections_done & 1u << section));
    static_assert((int)INDEX_SECTIONS == (int)INDEX_SECTION_COUNT, "format");
    if (w->failed)
        return failed_before(w, err);
    if (!w->tree_closed) {
        int r = close_tree(w, err);
        if (r < 0)
            return r;
    }
    w->sections_done |= 1u << section;
    if (length_bytes == 0)
        return 0;
    w->header.sections[section].page = le64_of(w->next_page);
    w->header.sections[section].length_bytes = le64_of(length_bytes);
    const uint8_t *at = data;
    while (length_bytes > 0) {
        size_t part = length_bytes < INDEX_PAYLOAD_BYTES ? length_bytes : INDEX_PAYLOAD_BYTES;
        union index_page *page = &w->levels[0].page; /* free since the tree is closed */
        memcpy(page->payload, at, part);
        int r = append_page(w, page, INDEX_PAGE_SECTION, section, (uint32_t)part, err);
        if (r < 0)
            return r;
        at += part;
        length_bytes -= part;
    }
    return 0;
}

static void fill_header(struct index_writer *w)
{
    struct index_header *h = &w->header;
    memcpy(h->magic, INDEX_MAGIC, sizeof h->magic);
    h->version = le32_of(INDEX_VERSION);
    h->compatible = le32_of(INDEX_HAS_CRCS);
    memcpy(h->journal_id, w->info.journal_id.bytes, sizeof h->journal_id);
    h->kind = le16_of((uint16_t)w->info.kind);
    h->flat = le16_of(w->info.flat);
    h->first_segment = le32_of(w->info.first_segment);
    h->last_segment = le32_of(w->info.last_segment);
    h->low = le64_of(w->info.low.n);
    h->high = le64_of(w->info.high.n);
    h->extents = le64_of(w->info.extents);
    h->pages = le64_of(w->next_page);
    h->crc = le32_of(index_header_crc(h));
}

static int sync_parent(const char *path, struct error *err)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int length = !slash ? 1 : slash == path ? 1 : (int)(slash - path);
    if (snprintf(directory, sizeof directory, "%.*s", length, slash ? path : ".") >= (int)sizeof directory)
        return error_errno(err, -ENAMETOOLONG, "cannot sync the directory of %s", path);
    return io_sync_directory(directory, err);
}

int index_writer_finish(struct index_writer *w, struct error *err)
{
    if (w->failed)
        return failed_before(w, err);
    assert(w->fd >= 0);
    int r = w->tree_closed ? 0 : close_tree(w, err);
    if (r == 0 && w->buffered_pages > 0)
        r = flush(w, err);
    if (r < 0)
        return r;
    fill_header(w);
    r = w->sealed ? sealed_pages_pwrite(w->sealed, w->fd, &w->header, 0, 1) : io_pwrite_full(w->fd, &w->header, sizeof w->header, 0);
    bool durable = w->info.kind != INDEX_TAIL;
    if (r == 0 && durable && fsync(w->fd) < 0)
        r = -errno;
    if (r == 0 && rename(w->temporary, w->path) < 0)
        r = -errno;
    if (r < 0) {
        w->failed = r;
        return error_errno(err, r, "cannot write index %s", w->temporary);
    }
    close(w->fd); /* synced: an error here says nothing */
    w->fd = -1;
    r = durable ? sync_parent(w->path, err) : 0;
    if (r < 0)
        w->failed = r;
    return r;
}
