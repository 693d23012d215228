/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/segment_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/manifest.h"

#define BLOCK JOURNAL_BLOCK_BYTES

static void make_path(const char *directory, uint32_t number, uint32_t generation, bool cold, char *path, size_t path_bytes)
{
    char name[JOURNAL_FILE_BYTES];
    snprintf(path, path_bytes, "%s/%s", directory,
             cold ? journal_cold_file_of(number, generation, name) : journal_segment_file_of(number, generation, name));
}

/* Compressed, as it was written, and compressed again: it may just have become so. */
static const bool forms[] = {true, false, true};

bool segment_reader_find(const char *directory, uint32_t number, uint32_t generation, char *path, size_t path_bytes)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        make_path(directory, number, generation, forms[i], path, path_bytes);
        if (access(path, F_OK) == 0)
            return true;
    }
    make_path(directory, number, generation, false, path, path_bytes);
    return false;
}

static int open_file(const char *path, bool direct)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0 && errno == EINVAL && direct)
        fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int segment_reader_open(const char *directory, uint32_t number, uint32_t generation, bool direct, struct segment_reader *ret,
                        struct error *err)
{
    char path[PATH_MAX + JOURNAL_FILE_BYTES];
    int fd = -ENOENT;
    bool cold = false;
    for (size_t i = 0; i < sizeof forms / sizeof *forms && fd == -ENOENT; i++) {
        cold = forms[i];
        make_path(directory, number, generation, cold, path, sizeof path);
        fd = open_file(path, direct);
    }
    if (fd < 0) {
        make_path(directory, number, generation, false, path, sizeof path);
        return error_errno(err, fd, "cannot open %s", path);
    }
    *ret = (struct segment_reader){.fd = cold ? -1 : fd};
    int r = cold ? cold_open(path, fd, &ret->cold, err) : sealed_segment_open(path, fd, &ret->key, err);
    if (r < 0) {
        close(fd);
        *ret = (struct segment_reader){.fd = -1};
    }
    return r;
}

void segment_reader_close(struct segment_reader *r)
{
    if (r->fd >= 0)
        close(r->fd);
    aead_free(r->key);
    cold_close(r->cold);
    *r = (struct segment_reader){.fd = -1};
}

int segment_reader_blocks(const struct segment_reader *r, uint32_t block, uint32_t count, void *data)
{
    if (r->cold)
        return cold_read(r->cold, block, count, data);
    return io_pread_full(r->fd, data, (size_t)count * BLOCK, (uint64_t)block * BLOCK);
}

uint32_t segment_reader_stretch(const struct segment_reader *r, uint32_t block, uint32_t count, void *data)
{
    ssize_t n;
    if (r->cold)
        return 0;
    do
        n = pread(r->fd, data, (size_t)count * BLOCK, (off_t)block * BLOCK);
    while (n < 0 && errno == EINTR);
    return n < 0 ? 0 : (uint32_t)((size_t)n / BLOCK);
}

int segment_reader_header(const struct segment_reader *r, uint32_t at, void *block, seal_tag ret_digest)
{
    return r->cold ? cold_read(r->cold, at, 1, block) : sealed_read_header(r->key, r->fd, at, block, ret_digest);
}

int segment_reader_payload(const struct segment_reader *r, uint32_t at, void *frame, uint32_t blocks, const seal_tag digest,
                           seal_tag *tags)
{
    if (!r->cold)
        return sealed_read_payload(r->key, r->fd, at, frame, blocks, digest, tags);
    int result = cold_read(r->cold, at + 1, blocks - 1, (char *)frame + BLOCK);
    return result == -EBADMSG ? 0 : result; /* it shows in the CRCs of the records that it hit */
}
