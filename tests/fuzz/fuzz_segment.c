/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever a segment holds: salvage finds frames in order and the gaps between them, all within what the manifest says of the
 * segment, and writes an index that is right. Each input is taken as it is, and again with the ids and checksums of everything
 * that begins like a frame made right. */
#include <assert.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "journal/index.h"
#include "journal/salvage.h"

#define BLOCKS_MAX 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char directory[] = "/dev/shm/tidemark-fuzz-XXXXXX";
static const struct uuid journal_id = {{7}};

static void remove_directory(void)
{
    struct error ignored = ERROR_INIT;
    if (io_remove_tree(directory, &ignored) < 0)
        puts(ignored.message);
}

static void check_index(const struct salvage_segment *found)
{
    char path[sizeof directory + 16];
    struct error err = ERROR_INIT;
    struct index *index = NULL;
    snprintf(path, sizeof path, "%s/index", directory);
    int r = salvage_write_index(found, &journal_id, path, &err);
    assert(r == 0);
    r = index_open(path, NULL, &index, &err);
    assert(r == 0);
    r = index_verify(index, NULL, NULL, &err);
    assert(r == 0 && index_info(index)->extents == found->tail.extent_count);
    index_free(index);
}

static void scan(const struct segment_info *info)
{
    struct salvage_segment found;
    struct error err = ERROR_INIT;
    int r = salvage_scan(directory, &journal_id, info, &found, &err);
    assert(r == 0);
    uint64_t last = info->first.n - 1;
    for (size_t i = 0; i < found.gap_count; i++) {
        assert(found.gaps[i].low.n >= last && found.gaps[i].low.n < found.gaps[i].high.n && found.gaps[i].high.n <= info->last.n);
        last = found.gaps[i].high.n;
    }
    for (uint32_t i = 0; i < found.tail.extent_count; i++) {
        const struct extent *e = &found.tail.extents[i];
        assert(e->lsn.n >= info->first.n && e->lsn.n <= info->last.n);
        assert(e->kind != EXTENT_DATA || (e->position + e->length + 7) / 8 <= info->used_blocks);
        for (size_t k = 0; k < found.gap_count; k++) /* what is known is in no gap */
            assert(e->lsn.n <= found.gaps[k].low.n || e->lsn.n > found.gaps[k].high.n);
    }
    uint64_t known = found.tail.frame_count ? found.tail.info.last.n : 0;
    assert((known > last ? known : last) == info->last.n); /* every LSN is known or in a gap */
    if (found.tail.frame_count)
        check_index(&found);
    else
        assert(found.gap_count == 1 && found.gaps[0].high.n == info->last.n); /* all of it */
    salvage_release(&found);
}

static void make_right(uint8_t *data, uint32_t blocks)
{
    for (uint32_t i = 0; i < blocks; i++) {
        struct frame_header *h = (struct frame_header *)(data + (size_t)i * JOURNAL_BLOCK_BYTES);
        if (le32_get(h->magic) != FRAME_MAGIC)
            continue;
        memcpy(h->journal_id, journal_id.bytes, sizeof h->journal_id);
        h->epoch = le32_of(1);
        h->header_crc = le32_of(0);
        h->header_crc = le32_of(crc32c(0, h, JOURNAL_BLOCK_BYTES));
    }
}

static void write_segment(const uint8_t *data, size_t size)
{
    char path[sizeof directory + JOURNAL_FILE_BYTES], name[JOURNAL_FILE_BYTES];
    snprintf(path, sizeof path, "%s/%s", directory, journal_segment_file(1, name));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert(fd >= 0);
    int r = io_pwrite_full(fd, data, size, 0);
    assert(r == 0);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t copy[BLOCKS_MAX * JOURNAL_BLOCK_BYTES] __attribute__((aligned(4096)));
    static bool made;
    if (!made) {
        made = mkdtemp(directory) != NULL;
        assert(made);
        atexit(remove_directory);
    }
    if (size > sizeof copy)
        size = sizeof copy;
    uint32_t blocks = (uint32_t)((size + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES);
    struct segment_info info = {.number = 1, .used_blocks = blocks < 2 ? 2 : blocks, .first = {1}, .last = {4096}, .records = 512,
                                .frames = 16, .epoch = 1, .first_frame = 1};
    memset(copy, 0, sizeof copy);
    memcpy(copy, data, size);
    write_segment(copy, size);
    scan(&info);
    make_right(copy, blocks);
    write_segment(copy, size);
    scan(&info);
    return 0;
}
