/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever the file: extents in order, or -EBADMSG, in bounded time. Each input is opened as it is, and again
 * with its length and checksums made right, so that what stands behind them is reached. */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "journal/index_internal.h"

#define INPUT_LIMIT_BYTES (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seen {
    uint64_t count;
    struct extent last;
    uint32_t volume;
    uint64_t lba, end;
    bool flat;
};

static void in_order(struct seen *seen, const struct extent *e)
{
    assert(e->length > 0 && e->lba + e->length > e->lba && e->kind >= EXTENT_DATA && e->kind <= EXTENT_BASE);
    if (seen->count++ > 0) {
        assert(index_key_compare(index_key_of(&seen->last), index_key_of(e)) < 0);
        assert(!seen->flat || seen->last.volume != e->volume || seen->last.lba + seen->last.length <= e->lba);
    }
    seen->last = *e;
}

static int visit(void *context, const struct extent *e, struct error *err)
{
    struct seen *seen = context;
    (void)err;
    assert(e->volume == seen->volume && e->lba < seen->end && e->lba + e->length > seen->lba);
    /* in a tree whose leaves overlap each other a lookup may meet this before verification would */
    bool flat = seen->flat;
    seen->flat = false;
    in_order(seen, e);
    seen->flat = flat;
    return 0;
}

static int stream(struct index *index, struct seen *ret_seen, uint32_t volumes[4])
{
    struct error err = ERROR_INIT;
    struct extent_stream *s = NULL;
    struct extent e;
    if (index_stream(index, LSN_NONE, LSN_MAX, &s, &err) < 0)
        return -ENOMEM;
    int r;
    while ((r = s->next(s, &e, &err)) > 0) {
        volumes[ret_seen->count & 3] = e.volume;
        in_order(ret_seen, &e);
    }
    assert(r == 0 || (r == -EBADMSG && err.code == r && err.message[0]));
    extent_stream_free(s);
    return r;
}

static void use(struct index *index)
{
    struct error err = ERROR_INIT;
    uint32_t volumes[4] = {0, 1, 2, UINT32_MAX};
    const struct index_info *info = index_info(index);
    struct seen all = {.flat = info->flat};
    int verified = index_verify(index, NULL, NULL, &err), streamed = stream(index, &all, volumes);
    assert(verified == 0 || verified == -EBADMSG);
    if (verified == 0)
        assert(streamed == 0 && (info->low.n > 0 || all.count <= info->extents));
    for (unsigned i = 0; i < 8; i++) {
        struct seen seen = {.volume = volumes[i & 3], .lba = i < 4 ? 0 : all.last.lba, .flat = info->flat};
        uint64_t length = i < 4 ? UINT64_MAX : 8;
        if (__builtin_add_overflow(seen.lba, length, &seen.end))
            seen.end = UINT64_MAX;
        int r = index_lookup(index, seen.volume, seen.lba, length, LSN_NONE, LSN_MAX, visit, &seen, &err);
        assert(r == 0 || r == -EBADMSG);
        assert(verified < 0 || r == 0);
        assert(verified < 0 || seen.count <= all.count);
    }
    static uint8_t part[64 << 10];
    for (unsigned s = 0; s < INDEX_SECTION_COUNT; s++) {
        uint64_t bytes = index_section_bytes(index, (enum index_section)s);
        int r = index_section_pread(index, (enum index_section)s, part,
                                    bytes < sizeof part ? bytes : sizeof part, 0, &err);
        assert(r == 0 || r == -EBADMSG);
        assert(verified < 0 || r == 0);
    }
}

static void open_and_use(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    struct index *index = NULL;
    char path[64];
    int fd = memfd_create("index", MFD_CLOEXEC);
    if (fd < 0)
        return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (io_pwrite_full(fd, data, size, 0) == 0) {
        int r = index_open(path, NULL, &index, &err);
        assert(r == 0 || ((r == -EBADMSG || r == -ENOTSUP) && !index && strstr(err.message, path)));
        if (r == 0)
            use(index);
    }
    index_free(index);
    close(fd);
}

static void repair(union index_page *pages, size_t count)
{
    struct index_header *h = (struct index_header *)pages;
    memcpy(h->magic, INDEX_MAGIC, sizeof h->magic);
    h->pages = le64_of(count);
    h->crc = le32_of(index_header_crc(h));
    uint32_t seed = crc32c(0, h->index_id, sizeof h->index_id);
    for (size_t i = 1; i < count; i++) {
        union index_page *p = &pages[i];
        memcpy(p->header.magic, INDEX_PAGE_MAGIC, sizeof p->header.magic);
        p->header.crc =
            le32_of(crc32c(seed, p->bytes + sizeof p->header.crc, INDEX_PAGE_BYTES - sizeof p->header.crc));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > INPUT_LIMIT_BYTES)
        return 0;
    open_and_use(data, size);
    size_t count =
        (size + INDEX_PAGE_BYTES / 2) / INDEX_PAGE_BYTES; /* a few bytes more or less shift the rest only */
    count = count ? count : 1;
    union index_page *pages = calloc(count, sizeof *pages);
    if (!pages)
        return 0;
    memcpy(pages, data, size < count * sizeof *pages ? size : count * sizeof *pages);
    repair(pages, count);
    open_and_use(pages->bytes, count * sizeof *pages);
    free(pages);
    return 0;
}
