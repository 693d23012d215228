/* SPDX-License-Identifier: Apache-2.0 */
/* replay_log LOG-DEVICE TARGET MARK: puts what the kernel's dm-log-writes has recorded up to a mark onto another device. The
 * target holds zeroes before. dm-log-writes logs a write once a flush has covered it (or it had FUA), so this is what a
 * disk may hold at least if the power fails at the mark. Format: the kernel's drivers/md/dm-log-writes.c. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/endian.h"

#define LOG_MAGIC 0x6a736677736872ull
#define LOG_VERSION 1u
#define LOG_DISCARD 4u
#define LOG_MARK 8u
#define CHUNK_BYTES (1u << 20)

struct log_super {
    struct le64 magic, version, entries;
    struct le32 sector_bytes;
};
struct log_entry {
    struct le64 sector, sectors, flags, data_bytes; /* a mark's text follows */
};

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static void copy(int from, int to, uint64_t from_bytes, uint64_t to_bytes, uint64_t length_bytes, bool zero)
{
    static char chunk[CHUNK_BYTES];
    memset(chunk, 0, sizeof chunk);
    while (length_bytes) {
        size_t n = length_bytes < sizeof chunk ? (size_t)length_bytes : sizeof chunk;
        if (!zero && pread(from, chunk, n, (off_t)from_bytes) != (ssize_t)n)
            die("read the log");
        if (pwrite(to, chunk, n, (off_t)to_bytes) != (ssize_t)n)
            die("write");
        from_bytes += n;
        to_bytes += n;
        length_bytes -= n;
    }
}

int main(int argc, char **argv)
{
    struct log_super super;
    char head[4096];
    int log = argc == 4 ? open(argv[1], O_RDONLY) : -1, target = argc == 4 ? open(argv[2], O_RDWR) : -1;
    if (log < 0 || target < 0 || pread(log, &super, sizeof super, 0) != sizeof super)
        die("replay_log LOG-DEVICE TARGET MARK");
    uint64_t sector_bytes = le32_get(super.sector_bytes), at = sector_bytes, writes = 0;
    if (le64_get(super.magic) != LOG_MAGIC || le64_get(super.version) != LOG_VERSION || sector_bytes < 512 ||
        sector_bytes > sizeof head)
        return fputs("not a log of dm-log-writes\n", stderr), 1;
    for (uint64_t i = 0; i < le64_get(super.entries); i++) {
        struct log_entry entry;
        if (pread(log, head, sector_bytes, (off_t)at) != (ssize_t)sector_bytes)
            die("read the log");
        memcpy(&entry, head, sizeof entry);
        uint64_t flags = le64_get(entry.flags), length_bytes = le64_get(entry.sectors) * sector_bytes,
                 text_bytes = le64_get(entry.data_bytes);
        at += sector_bytes;
        if (flags & LOG_MARK && text_bytes == strlen(argv[3]) && text_bytes <= sector_bytes - sizeof entry &&
            memcmp(head + sizeof entry, argv[3], text_bytes) == 0) {
            printf("%" PRIu64 " writes before %s\n", writes, argv[3]);
            return fsync(target) == 0 ? 0 : 1;
        }
        if (flags & LOG_MARK)
            continue;
        copy(log, target, at, le64_get(entry.sector) * sector_bytes, length_bytes, flags & LOG_DISCARD);
        at += flags & LOG_DISCARD ? 0 : length_bytes;
        writes += length_bytes > 0;
    }
    return fprintf(stderr, "there is no mark %s\n", argv[3]), 1;
}
