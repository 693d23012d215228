/* SPDX-License-Identifier: Apache-2.0 */
/* Disk states from what the kernel's dm-log-writes has recorded (its format: drivers/md/dm-log-writes.c).
 *
 * - mark NAME OTHER FILE: marks moments of two such devices until the file is there, t<n> of OTHER between
 * t<n> and u<n> of NAME.
 * - list LOG-DEVICE: the marks, each with its index and how many writes are open at it.
 * - replay LOG-DEVICE TARGET MARK MORE: what the disk may hold if the power fails at the mark: what stands
 *   before it, and MORE of the open writes. The target holds zeroes before.
 *
 * dm-log-writes logs a write once a flush has covered it (or it had FUA): what stands before a mark is there
 * after it. The writes behind it up to the next flush or FUA may be, if they were complete at the mark: these
 * are open. */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dm-ioctl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/endian.h"

#define LOG_MAGIC 0x6a736677736872ull
#define LOG_VERSION 1u
#define LOG_FLUSH 1u
#define LOG_FUA 2u
#define LOG_DISCARD 4u
#define LOG_MARK 8u
#define SECTOR_BYTES_MAX 4096u
#define CHUNK_BYTES (1u << 20)
#define MARK_BYTES 32u
#define MARK_INTERVAL_NS 5000000

struct log_super {
    struct le64 magic, version, entries;
    struct le32 sector_bytes;
};
struct log_entry {
    struct le64 sector, sectors, flags, data_bytes; /* a mark's text follows */
};

struct log_reader {
    int fd;
    uint64_t sector_bytes, entries, index, next_at;
};
struct item {
    uint64_t flags, to_bytes, length_bytes, data_at;
    char mark[64];
};

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct log_reader open_log(const char *path)
{
    struct log_super super;
    struct log_reader log = {.fd = open(path, O_RDONLY)};
    if (log.fd < 0 || pread(log.fd, &super, sizeof super, 0) != sizeof super)
        die(path);
    log.sector_bytes = log.next_at = le32_get(super.sector_bytes);
    log.entries = le64_get(super.entries);
    if (le64_get(super.magic) != LOG_MAGIC || le64_get(super.version) != LOG_VERSION ||
        log.sector_bytes < 512 || log.sector_bytes > SECTOR_BYTES_MAX) {
        fprintf(stderr, "%s: not a log of dm-log-writes\n", path);
        exit(1);
    }
    return log;
}

static bool next(struct log_reader *log, struct item *ret)
{
    char head[SECTOR_BYTES_MAX];
    struct log_entry entry;
    if (log->index == log->entries)
        return false;
    if (pread(log->fd, head, log->sector_bytes, (off_t)log->next_at) != (ssize_t)log->sector_bytes)
        die("read the log");
    memcpy(&entry, head, sizeof entry);
    *ret = (struct item){.flags = le64_get(entry.flags),
                         .to_bytes = le64_get(entry.sector) * log->sector_bytes,
                         .length_bytes = le64_get(entry.sectors) * log->sector_bytes,
                         .data_at = log->next_at + log->sector_bytes};
    uint64_t text_bytes = le64_get(entry.data_bytes);
    if (ret->flags & LOG_MARK)
        memcpy(ret->mark, head + sizeof entry,
               text_bytes < sizeof ret->mark ? text_bytes : sizeof ret->mark - 1);
    log->index++;
    log->next_at = ret->data_at + (ret->flags & (LOG_DISCARD | LOG_MARK) ? 0 : ret->length_bytes);
    return true;
}

static uint64_t count_open(struct log_reader log)
{
    struct item item;
    uint64_t count = 0;
    while (next(&log, &item) && !(item.flags & (LOG_FLUSH | LOG_FUA)))
        count += !(item.flags & LOG_MARK);
    return count;
}

static void list(struct log_reader log)
{
    struct item item;
    while (next(&log, &item))
        if (item.flags & LOG_MARK)
            printf("%s %" PRIu64 " %" PRIu64 "\n", item.mark, log.index, count_open(log));
}

static void copy(const struct log_reader *log, const struct item *item, int target)
{
    static char chunk[CHUNK_BYTES];
    bool zero = item->flags & LOG_DISCARD;
    memset(chunk, 0, sizeof chunk);
    for (uint64_t done = 0, n; done < item->length_bytes; done += n) {
        n = item->length_bytes - done < sizeof chunk ? item->length_bytes - done : sizeof chunk;
        if (!zero && pread(log->fd, chunk, n, (off_t)(item->data_at + done)) != (ssize_t)n)
            die("read the log");
        if (pwrite(target, chunk, n, (off_t)(item->to_bytes + done)) != (ssize_t)n)
            die("write");
    }
}

static int replay(struct log_reader log, int target, const char *mark, uint64_t more)
{
    struct item item;
    uint64_t writes = 0;
    bool found = false;
    while (!found && next(&log, &item)) {
        found = item.flags & LOG_MARK && strcmp(item.mark, mark) == 0;
        if (!(item.flags & LOG_MARK))
            copy(&log, &item, target);
        writes += item.length_bytes > 0;
    }
    if (!found || more > count_open(log))
        return fprintf(stderr, found ? "fewer writes are open at mark %s\n" : "there is no mark %s\n", mark),
               1;
    for (uint64_t i = 0; i < more && next(&log, &item);) {
        if (item.flags & LOG_MARK)
            continue;
        copy(&log, &item, target);
        i++;
    }
    printf("%" PRIu64 " writes before %s and %" PRIu64 " of those behind it\n", writes, mark, more);
    return fsync(target) == 0 ? 0 : 1;
}

static void mark(int control, const char *name, char letter, unsigned n)
{
    union { /* the message is for the target of sector 0 */
        struct dm_ioctl head;
        char room[sizeof(struct dm_ioctl) + sizeof(struct dm_target_msg) + MARK_BYTES];
    } request = {.room = {0}};
    request.head.version[0] = DM_VERSION_MAJOR;
    request.head.data_size = sizeof request;
    request.head.data_start = sizeof request.head;
    snprintf(request.head.name, sizeof request.head.name, "%s", name);
    snprintf(request.room + sizeof request - MARK_BYTES, MARK_BYTES, "mark %c%u", letter, n);
    if (ioctl(control, DM_TARGET_MSG, &request) < 0)
        die(name);
}

static int mark_moments(const char *name, const char *other, const char *file)
{
    int control = open("/dev/" DM_DIR "/" DM_CONTROL_NODE, O_RDWR);
    if (control < 0)
        die("/dev/" DM_DIR "/" DM_CONTROL_NODE);
    for (unsigned n = 0; access(file, F_OK) < 0; n++) {
        mark(control, name, 't', n);
        mark(control, other, 't', n);
        mark(control, name, 'u', n);
        nanosleep(&(struct timespec){.tv_nsec = MARK_INTERVAL_NS}, NULL);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "mark") == 0)
        return mark_moments(argv[2], argv[3], argv[4]);
    if (argc == 3 && strcmp(argv[1], "list") == 0)
        return list(open_log(argv[2])), 0;
    if (argc != 6 || strcmp(argv[1], "replay") != 0)
        return fputs("usage: replay_log mark NAME OTHER FILE | list LOG | replay LOG TARGET MARK MORE\n",
                     stderr),
               2;
    int target = open(argv[3], O_RDWR);
    if (target < 0)
        die(argv[3]);
    return replay(open_log(argv[2]), target, argv[4], strtoull(argv[5], NULL, 10));
}
