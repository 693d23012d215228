/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/base_store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/endian.h"
#include "base/io.h"

#define BLOCK_BYTES 4096u
#define BLOCK_SECTORS 8u
#define SECTOR_BYTES 512u
#define MAX_VOLUMES 256u
#define ENTRIES_AT_ONCE 512u
#define SETTLE_NS 1000000 /* between two looks at a block that does not match its checksum */
#define SETTLE_ATTEMPTS 5

struct entry { /* of the .crc file; all zero: the block is absent */
    struct le32 crc;     /* CRC32C of the block */
    struct le32 present; /* bits 0 to 7: sectors of the block; bits 8 to 31: check over crc, mask and block number */
};

struct store_volume {
    uint32_t id;
    int data_fd, crc_fd;
};
struct base_store {
    char directory[PATH_MAX];
    bool writable;
    pthread_mutex_t mutex; /* guards the table of volumes */
    struct store_volume volumes[MAX_VOLUMES];
    size_t count;
};

static struct entry entry_make(uint32_t crc, uint32_t mask, uint64_t block)
{
    struct {
        struct le32 crc, mask;
        struct le64 block;
    } covered = {le32_of(crc), le32_of(mask), le64_of(block)};
    uint32_t check = crc32c(0, &covered, sizeof covered) & 0xffffff00u;
    return mask ? (struct entry){le32_of(crc), le32_of(check | mask)} : (struct entry){0};
}

/* The mask of an entry; false: it is damaged. */
static bool entry_mask(const struct entry *e, uint64_t block, uint32_t *ret_mask)
{
    uint32_t mask = le32_get(e->present) & 0xff;
    struct entry expected = entry_make(le32_get(e->crc), mask, block);
    *ret_mask = mask;
    return memcmp(e, &expected, sizeof expected) == 0;
}

int base_store_open(const char *directory, bool writable, struct base_store **ret, struct error *err)
{
    if (writable && io_mkdirs(directory, 0700, err) < 0)
        return err->code;
    struct base_store *s = calloc(1, sizeof *s);
    if (!s)
        return error_errno(err, -ENOMEM, "cannot open %s", directory);
    snprintf(s->directory, sizeof s->directory, "%s", directory);
    s->writable = writable;
    pthread_mutex_init(&s->mutex, NULL);
    *ret = s;
    return 0;
}

void base_store_free(struct base_store *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->count; i++) {
        close(s->volumes[i].data_fd);
        close(s->volumes[i].crc_fd);
    }
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

static int open_file(const struct base_store *s, uint32_t volume, const char *suffix)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%u.%s", s->directory, volume, suffix);
    int fd = open(path, (s->writable ? O_RDWR | O_CREAT : O_RDONLY) | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
}

/* 1 and *ret, 0 if a reader finds none, or negative. */
static int find_volume(struct base_store *s, uint32_t volume, struct store_volume *ret, struct error *err)
{
    MUTEX_GUARD(guard, &s->mutex);
    for (size_t i = 0; i < s->count; i++)
        if (s->volumes[i].id == volume) {
            *ret = s->volumes[i];
            return 1;
        }
    if (s->count == MAX_VOLUMES)
        return error_set(err, -ENOSPC, "%s holds more than %u volumes", s->directory, MAX_VOLUMES);
    struct store_volume v = {.id = volume, .data_fd = open_file(s, volume, "img")};
    if (v.data_fd == -ENOENT && !s->writable)
        return 0;
    if (v.data_fd < 0)
        return error_errno(err, v.data_fd, "cannot open %s/%u.img", s->directory, volume);
    v.crc_fd = open_file(s, volume, "crc");
    if (v.crc_fd < 0) {
        close(v.data_fd);
        if (v.crc_fd == -ENOENT && !s->writable)
            return 0; /* just being made: nothing is in it yet */
        return error_errno(err, v.crc_fd, "cannot open %s/%u.crc", s->directory, volume);
    }
    s->volumes[s->count++] = v;
    *ret = v;
    return 1;
}

/* Reads `length_bytes`; what is beyond the end of the file is zeroes. */
static int read_padded(int fd, void *data, size_t length_bytes, uint64_t offset)
{
    char *p = data;
    while (length_bytes) {
        ssize_t n = pread(fd, p, length_bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) {
            memset(p, 0, length_bytes);
            return 0;
        }
        p += n;
        offset += (size_t)n;
        length_bytes -= (size_t)n;
    }
    return 0;
}

/* One block; absent sectors zeroed; checked unless `repair`. entry->present is the bare mask afterwards. */
static int read_block(const struct base_store *s, const struct store_volume *v, uint64_t block, char data[BLOCK_BYTES],
                      struct entry *entry, bool repair, struct error *err)
{
    uint32_t present = 0;
    int r = read_padded(v->crc_fd, entry, sizeof *entry, block * sizeof *entry);
    bool sound = r == 0 && (entry_mask(entry, block, &present) || repair);
    if (r == 0 && present)
        r = read_padded(v->data_fd, data, BLOCK_BYTES, block * BLOCK_BYTES);
    if (r < 0)
        return error_errno(err, r, "cannot read %s/%u.img at %llu", s->directory, v->id,
                           (unsigned long long)(block * BLOCK_BYTES));
    if (!sound || (present && !repair && crc32c(0, data, BLOCK_BYTES) != le32_get(entry->crc)))
        return error_set(err, -EBADMSG, "%s/%u.img is damaged at %llu (wrong checksum)", s->directory, v->id,
                         (unsigned long long)(block * BLOCK_BYTES));
    for (uint32_t i = 0; i < BLOCK_SECTORS; i++)
        if (!(present & 1u << i))
            memset(data + i * SECTOR_BYTES, 0, SECTOR_BYTES);
    *entry = (struct entry){entry->crc, le32_of(present)};
    return 0;
}

/* As read_block; a block that the engine is just changing (other sectors of it) is looked at again. */
static int read_settled_block(const struct base_store *s, const struct store_volume *v, uint64_t block, char data[BLOCK_BYTES],
                              struct error *err)
{
    struct timespec pause = {.tv_nsec = SETTLE_NS};
    struct entry entry;
    int r = read_block(s, v, block, data, &entry, false, err);
    for (int attempt = 0; r == -EBADMSG && attempt < SETTLE_ATTEMPTS; attempt++) {
        nanosleep(&pause, NULL);
        r = read_block(s, v, block, data, &entry, false, err);
    }
    return r;
}

/* Sectors that are present. 1 or negative. */
static int read_present(const struct base_store *s, const struct store_volume *v, uint64_t lba, uint32_t length, char *to,
                        struct error *err)
{
    char block[BLOCK_BYTES] __attribute__((aligned(64)));
    while (length) {
        uint32_t skip = lba % BLOCK_SECTORS, count = BLOCK_SECTORS - skip < length ? BLOCK_SECTORS - skip : length;
        int r = read_settled_block(s, v, lba / BLOCK_SECTORS, block, err);
        if (r < 0)
            return r;
        memcpy(to, block + skip * SECTOR_BYTES, (size_t)count * SECTOR_BYTES);
        to += (size_t)count * SECTOR_BYTES;
        lba += count;
        length -= count;
    }
    return 1;
}

int base_store_read(struct base_store *s, uint32_t volume, uint64_t lba, uint32_t length, void *data, struct error *err)
{
    struct store_volume v;
    int r = find_volume(s, volume, &v, err);
    if (r < 0)
        return r;
    if (r == 0) {
        memset(data, 0, (size_t)length * SECTOR_BYTES);
        return 0;
    }
    char *to = data;
    while (length && r > 0) {
        bool present;
        uint64_t stretch;
        if (base_store_extent(s, volume, lba, length, &present, &stretch, err) < 0)
            return err->code;
        if (present)
            r = read_present(s, &v, lba, (uint32_t)stretch, to, err);
        else
            memset(to, 0, (size_t)stretch * SECTOR_BYTES);
        to += (size_t)stretch * SECTOR_BYTES;
        lba += stretch;
        length -= (uint32_t)stretch;
    }
    return r < 0 ? r : 0;
}

/* Changes sectors [skip, skip+count) of one block: data NULL clears. */
static int change_block(struct base_store *s, const struct store_volume *v, uint64_t block_number, uint32_t skip,
                        uint32_t count, const char *data, bool repair, struct error *err)
{
    char block[BLOCK_BYTES] __attribute__((aligned(64)));
    struct entry entry = {0};
    uint32_t mask = (count == BLOCK_SECTORS ? 0xffu : ((1u << count) - 1) << skip);
    int r = 0;
    if (mask != 0xff) {
        r = read_block(s, v, block_number, block, &entry, repair, err);
        if (r < 0)
            return r;
    }
    if (data)
        memcpy(block + skip * SECTOR_BYTES, data, (size_t)count * SECTOR_BYTES);
    else
        memset(block + skip * SECTOR_BYTES, 0, (size_t)count * SECTOR_BYTES);
    uint32_t present = data ? le32_get(entry.present) | mask : le32_get(entry.present) & ~mask;
    entry = entry_make(present ? crc32c(0, block, BLOCK_BYTES) : 0, present & 0xff, block_number);
    if (present)
        r = io_pwrite_full(v->data_fd, block, BLOCK_BYTES, block_number * BLOCK_BYTES);
    else if (fallocate(v->data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(block_number * BLOCK_BYTES),
                       BLOCK_BYTES) < 0 && errno != EOPNOTSUPP && errno != ENODEV)
        r = -errno;
    if (r == 0)
        r = io_pwrite_full(v->crc_fd, &entry, sizeof entry, block_number * sizeof entry);
    if (r < 0)
        return error_errno(err, r, "cannot write %s/%u.img", s->directory, v->id);
    return 0;
}

int base_store_write(struct base_store *s, uint32_t volume, uint64_t lba, uint32_t length, const void *data, bool repair,
                     struct error *err)
{
    struct store_volume v;
    const char *from = data;
    int r = find_volume(s, volume, &v, err);
    while (r >= 0 && length) {
        uint32_t skip = lba % BLOCK_SECTORS, count = BLOCK_SECTORS - skip < length ? BLOCK_SECTORS - skip : length;
        r = change_block(s, &v, lba / BLOCK_SECTORS, skip, count, from, repair, err);
        from += (size_t)count * SECTOR_BYTES;
        lba += count;
        length -= count;
    }
    return r < 0 ? r : 0;
}

/* Clears whole blocks by holes in both files. */
static int punch(struct base_store *s, const struct store_volume *v, uint64_t block, uint64_t count, struct error *err)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (fallocate(v->crc_fd, mode, (off_t)(block * sizeof(struct entry)), (off_t)(count * sizeof(struct entry))) < 0 ||
        fallocate(v->data_fd, mode, (off_t)(block * BLOCK_BYTES), (off_t)(count * BLOCK_BYTES)) < 0)
        return error_errno(err, -errno, "cannot free space in %s/%u.img", s->directory, v->id);
    return 0;
}

int base_store_clear(struct base_store *s, uint32_t volume, uint64_t lba, uint64_t length, bool repair, struct error *err)
{
    struct store_volume v;
    int r = find_volume(s, volume, &v, err);
    while (r >= 0 && length) {
        uint32_t skip = lba % BLOCK_SECTORS;
        if (skip == 0 && length >= BLOCK_SECTORS) {
            uint64_t count = length / BLOCK_SECTORS;
            r = punch(s, &v, lba / BLOCK_SECTORS, count, err);
            lba += count * BLOCK_SECTORS;
            length -= count * BLOCK_SECTORS;
            continue;
        }
        uint32_t count = BLOCK_SECTORS - skip < length ? BLOCK_SECTORS - skip : (uint32_t)length;
        r = change_block(s, &v, lba / BLOCK_SECTORS, skip, count, NULL, repair, err);
        lba += count;
        length -= count;
    }
    return r < 0 ? r : 0;
}

/* Reads one entry again, in case it was just being written. */
static bool settled_mask(const struct store_volume *v, uint64_t block, uint32_t *ret_mask)
{
    struct timespec pause = {.tv_nsec = SETTLE_NS};
    for (int attempt = 0; attempt < SETTLE_ATTEMPTS; attempt++) {
        struct entry entry;
        nanosleep(&pause, NULL);
        if (read_padded(v->crc_fd, &entry, sizeof entry, block * sizeof entry) == 0 && entry_mask(&entry, block, ret_mask))
            return true;
    }
    return false;
}

int base_store_extent(struct base_store *s, uint32_t volume, uint64_t lba, uint64_t length, bool *ret_present,
                      uint64_t *ret_length, struct error *err)
{
    struct store_volume v;
    int r = find_volume(s, volume, &v, err);
    if (r < 0)
        return r;
    *ret_present = false;
    *ret_length = length;
    if (r == 0)
        return 0;
    struct entry entries[ENTRIES_AT_ONCE];
    uint64_t at = lba, end = lba + length;
    while (at < end) {
        uint64_t block = at / BLOCK_SECTORS;
        off_t next = lseek(v.crc_fd, (off_t)(block * sizeof *entries), SEEK_DATA);
        uint64_t hole_to = next < 0 ? end : (uint64_t)next / sizeof *entries * BLOCK_SECTORS;
        if (hole_to > at) { /* absent up to there */
            if (at > lba && *ret_present)
                break;
            at = hole_to < end ? hole_to : end;
            continue;
        }
        r = read_padded(v.crc_fd, entries, sizeof entries, block * sizeof *entries);
        if (r < 0)
            return error_errno(err, r, "cannot read %s/%u.crc", s->directory, volume);
        for (uint64_t stop = (block + ENTRIES_AT_ONCE) * BLOCK_SECTORS; at < stop && at < end; at++) {
            uint32_t mask;
            if (!entry_mask(&entries[at / BLOCK_SECTORS - block], at / BLOCK_SECTORS, &mask) &&
                !settled_mask(&v, at / BLOCK_SECTORS, &mask))
                return error_set(err, -EBADMSG, "%s/%u.crc is damaged at %llu", s->directory, volume,
                                 (unsigned long long)(at / BLOCK_SECTORS * sizeof *entries));
            bool present = mask >> at % BLOCK_SECTORS & 1;
            if (at == lba)
                *ret_present = present;
            else if (present != *ret_present)
                goto done;
        }
    }
done:
    *ret_length = at - lba;
    return 0;
}

int base_store_sync(struct base_store *s, struct error *err)
{
    MUTEX_GUARD(guard, &s->mutex);
    for (size_t i = 0; i < s->count; i++)
        if (fdatasync(s->volumes[i].data_fd) < 0 || fdatasync(s->volumes[i].crc_fd) < 0)
            return error_errno(err, -errno, "cannot sync %s/%u.img", s->directory, s->volumes[i].id);
    return s->count ? io_sync_directory(s->directory, err) : 0;
}

uint64_t base_store_used_bytes(struct base_store *s)
{
    MUTEX_GUARD(guard, &s->mutex);
    uint64_t used = 0;
    for (size_t i = 0; i < s->count; i++) {
        struct stat st;
        if (fstat(s->volumes[i].data_fd, &st) == 0)
            used += (uint64_t)st.st_blocks * SECTOR_BYTES;
        if (fstat(s->volumes[i].crc_fd, &st) == 0)
            used += (uint64_t)st.st_blocks * SECTOR_BYTES;
    }
    return used;
}
