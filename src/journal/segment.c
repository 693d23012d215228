/* SPDX-License-Identifier: Apache-2.0 */
/* Segment files: written with zeroes before their first use and recycled afterwards, so that an append changes no
 * file-system metadata. Stale content of a recycled one is told apart by frame number, epoch and previous CRC. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/frame.h"
#include "journal/journal_internal.h"

#define FILL_BYTES (1u << 20)
#define MAX_FREE_FILES 8u
#define AWAIT_PAUSE_MS 20u
#define AWAIT_MS 60000u

static void free_file(unsigned index, char text[JOURNAL_FILE_BYTES])
{
    snprintf(text, JOURNAL_FILE_BYTES, "free-%u.tmj", index);
}

void segment_make_header(const struct journal *j, uint32_t number, void *block)
{
    memset(block, 0, JOURNAL_BLOCK_BYTES);
    struct segment_header *h = block;
    *h = (struct segment_header){
        .magic = le64_of(SEGMENT_MAGIC),
        .version = le32_of(JOURNAL_VERSION),
        .number = le32_of(number),
        .epoch = le32_of(j->manifest.epoch),
        .blocks = le32_of(j->options.segment_blocks),
        .created_realtime_ns = le64_of(clock_realtime_ns(j->clock)),
    };
    memcpy(h->journal_id, j->manifest.journal_id.bytes, 16);
    memcpy(h->boot_id, j->manifest.boot.bytes, 16);
    h->crc = le32_of(crc32c(0, block, JOURNAL_BLOCK_BYTES));
}

void segment_make_thinned_header(const struct journal *j, const struct segment_info *s, const uint8_t *salt, void *block)
{
    segment_make_header(j, s->number, block);
    struct segment_header *h = block;
    h->incompatible = le32_of(SEGMENT_THINNED);
    h->epoch = le32_of(s->epoch);
    h->blocks = le32_of(s->used_blocks);
    h->generation = le32_of(s->generation);
    memcpy(h->boot_id, s->boot.bytes, 16);
    if (salt)
        sealed_segment_salt(block, salt);
    h->crc = le32_of(0);
    h->crc = le32_of(crc32c(0, block, JOURNAL_BLOCK_BYTES));
}

int segment_check_header(const struct uuid *journal, uint32_t number, const void *block, struct error *err)
{
    char copy[JOURNAL_BLOCK_BYTES];
    memcpy(copy, block, sizeof copy);
    struct segment_header *h = (struct segment_header *)copy;
    uint32_t crc = le32_get(h->crc);
    h->crc = le32_of(0);
    if (le64_get(h->magic) != SEGMENT_MAGIC || crc32c(0, copy, sizeof copy) != crc)
        return error_set(err, -EBADMSG, "segment %u has no valid header", number);
    if (le32_get(h->version) != JOURNAL_VERSION || le32_get(h->incompatible) & ~(uint32_t)(SEGMENT_THINNED | SEGMENT_SEALED | SEGMENT_COLD))
        return error_set(err, -EPROTONOSUPPORT, "segment %u has format version %u; use a newer tidemark", number,
                         le32_get(h->version));
    if (memcmp(h->journal_id, journal->bytes, 16) != 0 || le32_get(h->number) != number)
        return error_set(err, -EBADMSG, "segment %u holds another segment's header", number);
    return 0;
}

/* Writes zeroes over all blocks, so that they are allocated and initialised. */
static int fill(int fd, uint64_t length_bytes, struct error *err)
{
    void *zeroes = io_alloc_pages(FILL_BYTES);
    if (!zeroes)
        return error_errno(err, -ENOMEM, "cannot make a segment");
    int r = -posix_fallocate(fd, 0, (off_t)length_bytes);
    for (uint64_t at = 0; at < length_bytes && r == 0; at += FILL_BYTES)
        r = io_pwrite_full(fd, zeroes, length_bytes - at < FILL_BYTES ? length_bytes - at : FILL_BYTES, at);
    io_free_pages(zeroes, FILL_BYTES);
    if (r < 0)
        return error_errno(err, r, "cannot reserve %llu bytes for a segment", (unsigned long long)length_bytes);
    return 0;
}

/* Opens one that was recycled under its new name, or -ENOENT. */
static int take_free(struct journal *j, const char *path)
{
    char name[JOURNAL_FILE_BYTES], from[JOURNAL_PATH_BYTES];
    for (unsigned i = 0; i < MAX_FREE_FILES; i++) {
        struct stat st;
        free_file(i, name);
        journal_path(j, name, from);
        if (stat(from, &st) < 0)
            continue;
        if ((uint64_t)st.st_size != journal_segment_bytes(j)) {
            unlink(from);
            continue;
        }
        if (rename(from, path) < 0)
            continue;
        int fd = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
        return fd < 0 ? -errno : fd;
    }
    return -ENOENT;
}

/* Whether the disk has room for `bytes` beside what the dropping of a segment may add to the base before the segment
 * goes: were that used up, no history could be dropped any more. */
static bool has_room(const struct journal *j, uint64_t bytes)
{
    struct statvfs st;
    uint64_t full = journal_segment_bytes(j);
    return statvfs(j->directory, &st) < 0 || (uint64_t)st.f_bavail * st.f_frsize >= bytes + full + full / 16;
}

bool segment_free_path(const struct journal *j, unsigned count, char path[JOURNAL_PATH_BYTES])
{
    char name[JOURNAL_FILE_BYTES];
    for (unsigned i = 0; i < count && i < MAX_FREE_FILES; i++) {
        free_file(i, name);
        journal_path(j, name, path);
        if (access(path, F_OK) < 0)
            return true;
    }
    return false;
}

bool segment_give_free(const struct journal *j)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    for (unsigned i = 0; i < MAX_FREE_FILES; i++) {
        free_file(i, name);
        journal_path(j, name, path);
        if (unlink(path) == 0)
            return true;
    }
    return false;
}

/* So that the next opening can tell whether the kernel still writes what this process began: the lock is the open file's, and goes with
 * the last of its writes. */
static void mark_used(int fd)
{
    (void)!flock(fd, LOCK_EX | LOCK_NB); /* a file system without locks cannot tell */
}

int segment_await(const char *path, int fd, struct error *err)
{
    struct timespec pause = {.tv_nsec = AWAIT_PAUSE_MS * 1000000};
    int r = 0;
    for (unsigned waited_ms = 0; waited_ms < AWAIT_MS; waited_ms += AWAIT_PAUSE_MS) {
        r = flock(fd, LOCK_EX | LOCK_NB);
        if (r == 0 || errno != EWOULDBLOCK)
            return 0;
        nanosleep(&pause, NULL);
    }
    return error_set(err, -EBUSY, "%s is still being written for an engine that was killed: its disk does not answer", path);
}

/* The header block; of an encrypted journal with a new salt, and the key that belongs to it. */
static int make_header(const struct journal *j, uint32_t number, void *block, struct aead **ret_key, struct error *err)
{
    uint8_t salt[SEAL_SALT_BYTES];
    struct segment_header *h = block;
    segment_make_header(j, number, block);
    *ret_key = NULL;
    if (!j->seal)
        return 0;
    if (aead_random(salt, sizeof salt) < 0)
        return error_set(err, -EIO, "cannot make segment %u: no random bytes", number);
    sealed_segment_salt(block, salt);
    h->crc = le32_of(0);
    h->crc = le32_of(crc32c(0, block, JOURNAL_BLOCK_BYTES));
    return sealed_segment_key(j->seal, salt, ret_key, err);
}

int segment_prepare(struct journal *j, uint32_t number, bool keep_room, int *ret_fd, struct aead **ret_key, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    journal_path(j, journal_segment_file(number, name), path);
    int fault = journal_fault_at(j, "segment");
    if (fault < 0)
        return error_errno(err, fault, "cannot make segment %u", number);
    while (!has_room(j, 0) && segment_give_free(j))
        continue;
    _cleanup_close_ int fd = take_free(j, path);
    if (fd < 0) {
        if (keep_room && !has_room(j, journal_segment_bytes(j)))
            return error_errno(err, -ENOSPC, "cannot make segment %u", number);
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600);
        if (fd < 0 && errno == EINVAL) /* a file system without direct I/O (tmpfs) */
            fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0)
            return error_errno(err, -errno, "cannot create %s", path);
        int r = fill(fd, journal_segment_bytes(j), err);
        if (r < 0) {
            unlink(path);
            return error_context(err, "%s", path);
        }
        if (keep_room) /* the sealer's call, and so its field */
            j->filled_segments++;
    }
    void *block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    if (!block)
        return error_errno(err, -ENOMEM, "cannot make segment %u", number);
    struct aead *key = NULL;
    if (make_header(j, number, block, &key, err) < 0) {
        io_free_pages(block, JOURNAL_BLOCK_BYTES);
        unlink(path);
        return err->code;
    }
    int r = io_pwrite_full(fd, block, JOURNAL_BLOCK_BYTES, 0);
    /* The first frame's place must not look like a frame, whatever the file held before. */
    memset(block, 0, JOURNAL_BLOCK_BYTES);
    if (r == 0)
        r = io_pwrite_full(fd, block, JOURNAL_BLOCK_BYTES, JOURNAL_BLOCK_BYTES);
    io_free_pages(block, JOURNAL_BLOCK_BYTES);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (r < 0) {
        unlink(path);
        aead_free(key);
        return error_errno(err, r, "cannot write the header of %s", path);
    }
    r = io_sync_directory(j->directory, err);
    if (r < 0) {
        aead_free(key);
        return r;
    }
    mark_used(fd);
    *ret_fd = take_fd(fd);
    *ret_key = key;
    return 0;
}

void segment_recycle(struct journal *j, uint32_t number, bool may_recycle)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES], to[JOURNAL_PATH_BYTES];
    struct stat st;
    journal_path(j, journal_segment_file(number, name), path);
    uint64_t full = journal_segment_bytes(j);
    if (may_recycle && stat(path, &st) == 0 && (uint64_t)st.st_size == full && segment_free_path(j, MAX_FREE_FILES, to) &&
        rename(path, to) == 0)
        return;
    unlink(path);
}
