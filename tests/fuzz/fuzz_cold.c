/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever a compressed segment holds: it is refused, or each block is read or refused, within the memory of one chunk, and salvage
 * finds what it finds. Each input is taken as it is, and again with the checksums of header and table made right. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "journal/cold.h"
#include "journal/manifest.h"
#include "journal/salvage.h"

#define FILE_MAX_BYTES (64u * JOURNAL_BLOCK_BYTES)
#define READ_MAX_BLOCKS 300u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char directory[] = "/dev/shm/tidemark-fuzz-XXXXXX";
static const struct uuid journal_id = {{7}};

static void remove_directory(void)
{
    struct error ignored = ERROR_INIT;
    if (io_remove_tree(directory, &ignored) < 0)
        puts(ignored.message);
}

static void read_all(const char *path)
{
    static char block[3 * JOURNAL_BLOCK_BYTES];
    struct error err = ERROR_INIT;
    struct cold_reader *c;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert(fd >= 0);
    int r = cold_open(path, fd, &c, &err);
    if (r < 0) {
        assert(r == -EBADMSG);
        close(fd);
        return;
    }
    for (uint32_t i = 0; i < READ_MAX_BLOCKS; i++) {
        r = cold_read(c, i, 1 + i % 3, block);
        assert(r == 0 || r == -EBADMSG || r == -ENODATA);
    }
    r = cold_read(c, UINT32_MAX, 2, block);
    assert(r == -ENODATA);
    cold_close(c);
}

static void scan(void)
{
    struct salvage_segment found;
    struct error err = ERROR_INIT;
    struct segment_info info = {.number = 1, .used_blocks = 64, .first = {1}, .last = {4096}, .records = 512, .frames = 16, .epoch = 1,
                                .first_frame = 1};
    if (salvage_scan(directory, &journal_id, &info, &found, &err) == 0)
        salvage_release(&found);
}

/* Of header and table, where they are. */
static void make_right(uint8_t *data, size_t size)
{
    struct segment_header *h = (struct segment_header *)data;
    struct cold_header cold;
    if (size < JOURNAL_BLOCK_BYTES)
        return;
    h->magic = le64_of(SEGMENT_MAGIC);
    h->version = le32_of(JOURNAL_VERSION);
    h->incompatible = le32_of(le32_get(h->incompatible) | SEGMENT_COLD);
    memcpy(&cold, data + COLD_HEADER_OFFSET, sizeof cold);
    uint64_t at = le64_get(cold.table_at[0]), bytes = (uint64_t)le32_get(cold.chunk_count) * sizeof(struct cold_chunk);
    if (at <= size && bytes <= size - at)
        cold.table_crc = le32_of(crc32c(0, data + at, bytes));
    memcpy(data + COLD_HEADER_OFFSET, &cold, sizeof cold);
    h->crc = le32_of(0);
    h->crc = le32_of(crc32c(0, data, JOURNAL_BLOCK_BYTES));
}

static void write_file(const char *path, const uint8_t *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert(fd >= 0);
    int r = io_pwrite_full(fd, data, size, 0);
    assert(r == 0);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t copy[FILE_MAX_BYTES] __attribute__((aligned(4096)));
    static char path[sizeof directory + JOURNAL_FILE_BYTES];
    char name[JOURNAL_FILE_BYTES];
    if (!path[0]) {
        bool made = mkdtemp(directory) != NULL;
        assert(made);
        atexit(remove_directory);
        snprintf(path, sizeof path, "%s/%s", directory, journal_cold_file_of(1, 0, name));
    }
    size = size < sizeof copy ? size : sizeof copy;
    memset(copy, 0, sizeof copy);
    memcpy(copy, data, size);
    write_file(path, copy, size);
    read_all(path);
    scan();
    make_right(copy, size);
    write_file(path, copy, size);
    read_all(path);
    scan();
    return 0;
}
