/* SPDX-License-Identifier: Apache-2.0 */
/* Encrypted files: those that are replaced as a whole, and those of pages. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/seal.h"

#define PAGE_BYTES 4096u
#define STRIDE_BYTES (PAGE_BYTES + AEAD_TAG_BYTES)
#define HEAD_BYTES ((uint64_t)sizeof(struct sealed_pages_header))

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int sealed_wrap(const struct seal *s, const char *name, const void *data, size_t length_bytes, void **ret,
                size_t *ret_length_bytes, struct error *err)
{
    struct aead *a = NULL;
    char *file = malloc(sizeof(struct sealed_file_header) + length_bytes);
    if (!file)
        return error_errno(err, -ENOMEM, "cannot encrypt %s", name);
    struct sealed_file_header h = {.magic = le64_of(SEAL_FILE_MAGIC),
                                   .version = le32_of(SEAL_VERSION),
                                   .length_bytes = le64_of(length_bytes)};
    struct aead_part parts[] = {{name, NULL, strlen(name)}, {data, file + sizeof h, length_bytes}};
    int r = aead_random(h.nonce, sizeof h.nonce);
    if (r == 0)
        r = seal_aead(s, "file", NULL, 0, &a, err);
    if (r == 0)
        r = aead_seal(a, h.nonce, parts, length_bytes ? 2 : 1, h.tag);
    aead_free(a);
    if (r < 0) {
        free(file);
        return error_set(err, r, "cannot encrypt %s", name);
    }
    memcpy(file, &h, sizeof h);
    h.crc = le32_of(crc32c(0, file, sizeof h + length_bytes));
    memcpy(file, &h, sizeof h);
    *ret = file;
    *ret_length_bytes = sizeof h + length_bytes;
    return 0;
}

int sealed_unwrap(const struct seal *s, const char *name, const void *data, size_t length_bytes, char **ret,
                  size_t *ret_length_bytes, struct error *err)
{
    struct sealed_file_header h;
    struct aead *a = NULL;
    const char *content = (const char *)data + sizeof h;
    if (length_bytes < sizeof h)
        return error_set(err, -EBADMSG, "%s is damaged (too short)", name);
    memcpy(&h, data, sizeof h);
    if (le64_get(h.magic) != SEAL_FILE_MAGIC)
        return error_set(err, -EBADMSG, "%s is damaged (it is not encrypted)", name);
    uint32_t crc = le32_get(h.crc);
    h.crc = le32_of(0);
    if (crc32c(crc32c(0, &h, sizeof h), content, length_bytes - sizeof h) != crc ||
        le64_get(h.length_bytes) != length_bytes - sizeof h)
        return error_set(err, -EBADMSG, "%s is damaged (wrong checksum)", name);
    if (le32_get(h.version) != SEAL_VERSION)
        return error_set(err, -EPROTONOSUPPORT, "%s has version %u; use a newer tidemark", name,
                         le32_get(h.version));
    size_t length = length_bytes - sizeof h;
    char *plain = malloc(length + 1);
    struct aead_part parts[] = {{name, NULL, strlen(name)}, {content, plain, length}};
    int r =
        plain ? seal_aead(s, "file", NULL, 0, &a, err) : error_errno(err, -ENOMEM, "cannot read %s", name);
    if (r == 0 && aead_open(a, h.nonce, parts, length ? 2 : 1, h.tag) < 0)
        r = error_set(err, -EBADMSG, "%s is not authentic: it is damaged, or was encrypted with another key",
                      name);
    aead_free(a);
    if (r < 0) {
        free(plain);
        return r;
    }
    plain[length] = '\0';
    *ret = plain;
    *ret_length_bytes = length;
    return 0;
}

typedef int (*replace_file)(const char *path, const void *data, size_t length_bytes, mode_t mode, struct error *err);

static int replace_sealed(replace_file replace, const char *path, const void *data, size_t length_bytes, mode_t mode, struct error *err)
{
    const struct seal *s = seal_of(path);
    if (!s)
        return replace(path, data, length_bytes, mode, err);
    _cleanup_free_ void *file = NULL;
    size_t length = 0;
    int r = sealed_wrap(s, base_name(path), data, length_bytes, &file, &length, err);
    return r < 0 ? r : replace(path, file, length, mode, err);
}

int sealed_replace_file(const char *path, const void *data, size_t length_bytes, mode_t mode,
                        struct error *err)
{
    return replace_sealed(io_replace_file, path, data, length_bytes, mode, err);
}
int sealed_replace_volatile_file(const char *path, const void *data, size_t length_bytes, mode_t mode,
                                 struct error *err)
{
    return replace_sealed(io_replace_volatile_file, path, data, length_bytes, mode, err);
}

int sealed_overwrite_file(const char *path, const void *data, size_t length_bytes, struct error *err)
{
    return replace_sealed(io_overwrite_file, path, data, length_bytes, 0, err);
}

int sealed_read_file(const char *path, size_t limit_bytes, char **ret_data, size_t *ret_length_bytes,
                     struct error *err)
{
    const struct seal *s = seal_of(path);
    if (!s)
        return io_read_file(path, limit_bytes, ret_data, ret_length_bytes, err);
    _cleanup_free_ char *file = NULL;
    size_t length = 0, plain_length = 0;
    int r = io_read_file(path, limit_bytes + sizeof(struct sealed_file_header), &file, &length, err);
    if (r == 0)
        r = sealed_unwrap(s, base_name(path), file, length, ret_data, &plain_length, err);
    if (r == 0 && ret_length_bytes)
        *ret_length_bytes = plain_length;
    return r;
}

/* ---- pages ---- */

struct sealed_pages {
    struct aead *aead;
};

static void page_nonce(uint64_t page, uint8_t nonce[AEAD_NONCE_BYTES])
{
    struct le64 n = le64_of(page);
    memset(nonce, 0, AEAD_NONCE_BYTES);
    memcpy(nonce, &n, sizeof n);
}

static int new_pages(const struct seal *s, const uint8_t salt[SEAL_SALT_BYTES], struct sealed_pages **ret,
                     struct error *err)
{
    struct sealed_pages *p = calloc(1, sizeof *p);
    int r = p ? seal_aead(s, "index", salt, SEAL_SALT_BYTES, &p->aead, err)
              : error_errno(err, -ENOMEM, "cannot open an index");
    if (r < 0) {
        free(p);
        return r;
    }
    *ret = p;
    return 0;
}

static uint32_t head_crc(struct sealed_pages_header h)
{
    h.crc = le32_of(0);
    return crc32c(0, &h, sizeof h);
}

int sealed_pages_create(const struct seal *s, int fd, struct sealed_pages **ret, struct error *err)
{
    struct sealed_pages_header h = {.magic = le64_of(SEAL_PAGES_MAGIC), .version = le32_of(SEAL_VERSION)};
    int r = aead_random(h.salt, sizeof h.salt);
    h.crc = le32_of(head_crc(h));
    if (r == 0)
        r = io_pwrite_full(fd, &h, sizeof h, 0);
    if (r < 0)
        return error_errno(err, r, "cannot write an encrypted index");
    return new_pages(s, h.salt, ret, err);
}

int sealed_pages_open(const struct seal *s, int fd, const char *path, struct sealed_pages **ret,
                      struct error *err)
{
    struct sealed_pages_header h;
    if (io_pread_full(fd, &h, sizeof h, 0) < 0 || le64_get(h.magic) != SEAL_PAGES_MAGIC ||
        head_crc(h) != le32_get(h.crc))
        return error_set(err, -EBADMSG, "%s is damaged (the header of its encryption)", path);
    if (le32_get(h.version) != SEAL_VERSION)
        return error_set(err, -ENOTSUP, "%s was written by a newer tidemark", path);
    return new_pages(s, h.salt, ret, err);
}

void sealed_pages_free(struct sealed_pages *p)
{
    if (p)
        aead_free(p->aead);
    free(p);
}

uint64_t sealed_pages_file_bytes(uint64_t pages)
{
    return HEAD_BYTES + pages * STRIDE_BYTES;
}

int sealed_pages_pwrite(struct sealed_pages *p, int fd, const void *data, uint64_t first, uint32_t count)
{
    _cleanup_free_ char *buffer = malloc((size_t)count * STRIDE_BYTES);
    uint8_t nonce[AEAD_NONCE_BYTES];
    int r = buffer ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < count && r == 0; i++) {
        char *to = buffer + (size_t)i * STRIDE_BYTES;
        struct aead_part part = {(const char *)data + (size_t)i * PAGE_BYTES, to, PAGE_BYTES};
        page_nonce(first + i, nonce);
        r = aead_seal(p->aead, nonce, &part, 1, (uint8_t *)to + PAGE_BYTES);
    }
    return r < 0
               ? r
               : io_pwrite_full(fd, buffer, (size_t)count * STRIDE_BYTES, HEAD_BYTES + first * STRIDE_BYTES);
}

int sealed_pages_pread(struct sealed_pages *p, int fd, void *data, uint64_t first, uint32_t count)
{
    _cleanup_free_ char *buffer = malloc((size_t)count * STRIDE_BYTES);
    uint8_t nonce[AEAD_NONCE_BYTES];
    int r = buffer
                ? io_pread_full(fd, buffer, (size_t)count * STRIDE_BYTES, HEAD_BYTES + first * STRIDE_BYTES)
                : -ENOMEM;
    for (uint32_t i = 0; i < count && r == 0; i++) {
        const char *from = buffer + (size_t)i * STRIDE_BYTES;
        char *to = (char *)data + (size_t)i * PAGE_BYTES;
        struct aead_part part = {from, to, PAGE_BYTES};
        page_nonce(first + i, nonce);
        r = aead_open(p->aead, nonce, &part, 1, (const uint8_t *)from + PAGE_BYTES);
        if (r == -EBADMSG) {
            memset(to, 0, PAGE_BYTES); /* no page is all zero: its checksum tells */
            r = 0;
        }
    }
    return r;
}
