/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/cold.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/sealed_segment.h"
#include "lib/zstd.h"

#define BLOCK JOURNAL_BLOCK_BYTES
#define LEVEL 1           /* the fast end: it shares the machine with the application */
#define OUT_BYTES (1u << 20) /* written at a time */

enum domain { DOMAIN_CHUNK = 3, DOMAIN_TABLE = 4 }; /* 0 to 2: sealed_segment.c */

static void make_nonce(uint32_t number, enum domain domain, uint8_t nonce[AEAD_NONCE_BYTES])
{
    struct le32 parts[3] = {le32_of(number), le32_of(domain), le32_of(0)};
    memcpy(nonce, parts, sizeof parts);
}

static struct cold_header get_cold_header(const void *block)
{
    struct cold_header h;
    memcpy(&h, (const char *)block + COLD_HEADER_OFFSET, sizeof h);
    return h;
}

/* ---- reading ---- */

struct cold_reader {
    int fd;
    struct aead *key;
    uint64_t id; /* of this reader, among all of the process */
    uint64_t file_bytes;
    uint32_t blocks, chunk_blocks, chunk_count;
    bool worn;
    struct cold_chunk *chunks;
    char header_block[BLOCK];
};

/* What a thread reads with. */
struct cold_scratch {
    struct zstd_coder *coder;
    char *stored, *plain; /* chunk_blocks + 2, and chunk_blocks blocks */
    uint32_t chunk_blocks;
    uint64_t reader; /* whose chunk is in `plain`; 0: none */
    uint32_t chunk;
};

static pthread_key_t scratch_key;

static void scratch_release(struct cold_scratch *s)
{
    io_free_pages(s->stored, (size_t)(s->chunk_blocks + 2) * BLOCK);
    io_free_pages(s->plain, (size_t)s->chunk_blocks * BLOCK);
    s->stored = s->plain = NULL;
    s->reader = 0;
}
static void scratch_free(void *scratch)
{
    struct cold_scratch *s = scratch;
    scratch_release(s);
    zstd_coder_free(s->coder);
    free(s);
}
static void scratch_make_key(void)
{
    pthread_key_create(&scratch_key, scratch_free);
}

static struct cold_scratch *scratch_get(uint32_t chunk_blocks)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct error ignored = ERROR_INIT;
    pthread_once(&once, scratch_make_key);
    struct cold_scratch *s = pthread_getspecific(scratch_key);
    if (!s) {
        s = calloc(1, sizeof *s);
        if (s && (zstd_coder_new(LEVEL, &s->coder, &ignored) < 0 || pthread_setspecific(scratch_key, s) != 0)) {
            scratch_free(s);
            s = NULL;
        }
        if (!s)
            return NULL;
    }
    if (s->plain && s->chunk_blocks == chunk_blocks)
        return s;
    scratch_release(s);
    s->chunk_blocks = chunk_blocks;
    s->stored = io_alloc_pages((size_t)(chunk_blocks + 2) * BLOCK);
    s->plain = io_alloc_pages((size_t)chunk_blocks * BLOCK);
    if (s->stored && s->plain)
        return s;
    scratch_release(s);
    return NULL;
}

static bool is_header(const void *block)
{
    char copy[BLOCK];
    memcpy(copy, block, sizeof copy);
    struct segment_header *h = (struct segment_header *)copy;
    struct cold_header cold = get_cold_header(block);
    uint32_t crc = le32_get(h->crc), blocks = le32_get(h->blocks), chunk = le32_get(cold.chunk_blocks);
    h->crc = le32_of(0);
    return le64_get(h->magic) == SEGMENT_MAGIC && crc32c(0, copy, sizeof copy) == crc &&
           le32_get(h->version) == JOURNAL_VERSION && le32_get(h->incompatible) & SEGMENT_COLD && blocks >= 1 &&
           chunk >= 1 && chunk <= COLD_CHUNK_BLOCKS_MAX &&
           le32_get(cold.chunk_count) == (blocks - 1) / chunk + ((blocks - 1) % chunk != 0);
}

static int read_header(struct cold_reader *c, const char *path, struct error *err)
{
    struct stat st;
    if (fstat(c->fd, &st) < 0)
        return error_errno(err, -errno, "cannot read the header of %s", path);
    c->file_bytes = (uint64_t)st.st_size;
    char *block = io_alloc_pages(BLOCK);
    int r = block ? io_pread_full(c->fd, block, BLOCK, 0) : -ENOMEM;
    if (r == 0 && !is_header(block)) {
        c->worn = true;
        r = c->file_bytes >= BLOCK ? io_pread_full(c->fd, block, BLOCK, c->file_bytes / BLOCK * BLOCK - BLOCK) : -ENODATA;
        if (r == 0 && !is_header(block))
            r = -ENODATA;
    }
    if (r == 0)
        memcpy(c->header_block, block, BLOCK);
    io_free_pages(block, BLOCK);
    if (r == -ENODATA)
        return error_set(err, -EBADMSG, "%s is damaged: it has no valid header", path);
    if (r < 0)
        return error_errno(err, r, "cannot read the header of %s", path);
    struct cold_header h = get_cold_header(c->header_block);
    c->blocks = le32_get(((struct segment_header *)c->header_block)->blocks);
    c->chunk_blocks = le32_get(h.chunk_blocks);
    c->chunk_count = le32_get(h.chunk_count);
    return 0;
}

static uint32_t plain_bytes(const struct cold_reader *c, uint32_t chunk)
{
    uint32_t left = c->blocks - 1 - chunk * c->chunk_blocks;
    return (left < c->chunk_blocks ? left : c->chunk_blocks) * BLOCK;
}

static bool is_sane(const struct cold_reader *c)
{
    for (uint32_t i = 0; i < c->chunk_count; i++) {
        uint64_t offset = le64_get(c->chunks[i].offset), bytes = le32_get(c->chunks[i].bytes);
        if (offset < BLOCK || offset > c->file_bytes || bytes == 0 || bytes > plain_bytes(c, i) ||
            bytes > c->file_bytes - offset)
            return false;
    }
    return true;
}

/* One of the two copies. -EBADMSG: damaged. */
static int read_table(struct cold_reader *c, unsigned copy)
{
    struct cold_header h = get_cold_header(c->header_block);
    uint64_t at = le64_get(h.table_at[copy]), bytes = (uint64_t)c->chunk_count * sizeof *c->chunks;
    uint64_t room = (bytes + BLOCK - 1) / BLOCK * BLOCK;
    uint8_t nonce[AEAD_NONCE_BYTES];
    if (at % BLOCK || at > c->file_bytes || room > c->file_bytes - at)
        return -EBADMSG;
    if (!bytes)
        return 0;
    char *pages = io_alloc_pages(room);
    int r = pages ? io_pread_full(c->fd, pages, room, at) : -ENOMEM;
    if (r == 0 && crc32c(0, pages, bytes) != le32_get(h.table_crc))
        r = -EBADMSG;
    struct aead_part part = {pages, pages, bytes};
    make_nonce(0, DOMAIN_TABLE, nonce);
    if (r == 0 && c->key)
        r = aead_open(c->key, nonce, &part, 1, h.table_tag);
    if (r == 0)
        memcpy(c->chunks, pages, bytes);
    if (r == 0 && !is_sane(c))
        r = -EBADMSG;
    io_free_pages(pages, room);
    return r == -ENODATA ? -EBADMSG : r;
}

static int open_table(struct cold_reader *c, const char *path, struct error *err)
{
    const struct seal *seal = seal_of(path);
    uint8_t salt[SEAL_SALT_BYTES];
    int r = 0;
    if (seal) {
        sealed_segment_get_salt(c->header_block, salt);
        r = sealed_segment_key(seal, salt, &c->key, err);
    }
    if (r < 0)
        return r;
    uint64_t bytes = (uint64_t)c->chunk_count * sizeof *c->chunks;
    if (bytes > c->file_bytes)
        return error_set(err, -EBADMSG, "%s is damaged: it is too short for its table", path);
    c->chunks = malloc(bytes ? bytes : 1);
    if (!c->chunks)
        return error_errno(err, -ENOMEM, "cannot open %s", path);
    r = read_table(c, 0);
    if (r == -EBADMSG) {
        c->worn = true;
        r = read_table(c, 1);
    }
    if (r == -EBADMSG)
        return error_set(err, r, "%s is damaged (its table of chunks)", path);
    return r < 0 ? error_errno(err, r, "cannot read %s", path) : 0;
}

int cold_open(const char *path, int fd, struct cold_reader **ret, struct error *err)
{
    static _Atomic uint64_t ids;
    struct cold_reader *c = calloc(1, sizeof *c);
    if (!c)
        return error_errno(err, -ENOMEM, "cannot open %s", path);
    c->fd = fd;
    c->id = atomic_fetch_add(&ids, 1) + 1;
    int r = read_header(c, path, err);
    if (r == 0)
        r = open_table(c, path, err);
    if (r < 0) {
        c->fd = -1;
        cold_close(c);
        return r;
    }
    *ret = c;
    return 0;
}

void cold_close(struct cold_reader *c)
{
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd);
    aead_free(c->key);
    free(c->chunks);
    free(c);
}

const void *cold_header_block(const struct cold_reader *c)
{
    return c->header_block;
}

bool cold_is_worn(const struct cold_reader *c)
{
    return c->worn;
}

/* Puts the blocks of a chunk into s->plain. */
static int load_chunk(struct cold_reader *c, struct cold_scratch *s, uint32_t chunk)
{
    const struct cold_chunk *e = &c->chunks[chunk];
    uint64_t offset = le64_get(e->offset), begin = offset / BLOCK * BLOCK;
    uint32_t bytes = le32_get(e->bytes), whole = plain_bytes(c, chunk);
    uint64_t end = (offset + bytes + BLOCK - 1) / BLOCK * BLOCK;
    uint8_t nonce[AEAD_NONCE_BYTES];
    char *stored = s->stored + (offset - begin);
    if (s->reader == c->id && s->chunk == chunk)
        return 0;
    s->reader = 0;
    int r = io_pread_full(c->fd, s->stored, end - begin, begin);
    if (r < 0)
        return r == -ENODATA ? -EBADMSG : r;
    if (crc32c(0, stored, bytes) != le32_get(e->crc))
        return -EBADMSG;
    struct aead_part part = {stored, stored, bytes};
    make_nonce(chunk, DOMAIN_CHUNK, nonce);
    if (c->key)
        r = aead_open(c->key, nonce, &part, 1, e->tag);
    if (r == 0 && bytes == whole)
        memcpy(s->plain, stored, whole);
    else if (r == 0)
        r = zstd_coder_decompress(s->coder, stored, bytes, s->plain, whole);
    if (r < 0)
        return r;
    s->reader = c->id;
    s->chunk = chunk;
    return 0;
}

int cold_read(struct cold_reader *c, uint32_t block, uint32_t count, void *data)
{
    bool damaged = false;
    if (block == 0 || block > c->blocks || count > c->blocks - block)
        return -ENODATA;
    struct cold_scratch *s = scratch_get(c->chunk_blocks);
    if (!s)
        return -ENOMEM;
    for (uint32_t done = 0; done < count;) {
        uint32_t chunk = (block + done - 1) / c->chunk_blocks, skip = (block + done - 1) % c->chunk_blocks;
        uint32_t part = c->chunk_blocks - skip < count - done ? c->chunk_blocks - skip : count - done;
        char *to = (char *)data + (size_t)done * BLOCK;
        int r = load_chunk(c, s, chunk);
        if (r < 0 && r != -EBADMSG)
            return r;
        if (r == 0)
            memcpy(to, s->plain + (size_t)skip * BLOCK, (size_t)part * BLOCK);
        for (uint32_t i = 0; i < part && r < 0; i++) /* not all the same: a payload of such blocks has no such checksum */
            memset(to + (size_t)i * BLOCK, (skip + i) & 1 ? 0x5a : 0xa5, BLOCK);
        damaged |= r < 0;
        done += part;
    }
    return damaged ? -EBADMSG : 0;
}

/* ---- writing ---- */

struct cold_writer {
    int fd;
    struct aead *key;
    struct zstd_coder *coder;
    char path[PATH_MAX], temporary[PATH_MAX + 8];
    char *plain; /* the chunk that is being filled */
    uint32_t plain_blocks;
    char *out; /* what is not written yet, from out_at on */
    size_t out_bytes;
    uint64_t out_at;
    struct cold_chunk *chunks;
    uint32_t chunk_count, blocks; /* blocks: with block 0 */
    bool finished;
};

int cold_writer_new(const char *path, struct aead *key, struct cold_writer **ret, struct error *err)
{
    struct cold_writer *w = calloc(1, sizeof *w);
    if (!w)
        return error_errno(err, -ENOMEM, "cannot write %s", path);
    *w = (struct cold_writer){.fd = -1, .key = key, .blocks = 1, .out_at = BLOCK};
    snprintf(w->path, sizeof w->path, "%s", path);
    snprintf(w->temporary, sizeof w->temporary, "%s.tmp", path);
    w->plain = io_alloc_pages((size_t)COLD_CHUNK_BLOCKS * BLOCK);
    w->out = io_alloc_pages(OUT_BYTES + (size_t)COLD_CHUNK_BLOCKS * BLOCK);
    int r = w->plain && w->out ? zstd_coder_new(LEVEL, &w->coder, err) : error_errno(err, -ENOMEM, "cannot write %s", path);
    if (r == 0) {
        w->fd = open(w->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600);
        if (w->fd < 0 && errno == EINVAL) /* a file system without direct I/O */
            w->fd = open(w->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        r = w->fd < 0 ? error_errno(err, -errno, "cannot create %s", w->temporary) : 0;
    }
    if (r < 0) {
        cold_writer_free(w, false);
        return r;
    }
    *ret = w;
    return 0;
}

void cold_writer_free(struct cold_writer *w, bool leave)
{
    if (!w)
        return;
    if (w->fd >= 0) {
        close(w->fd);
        if (!w->finished && !leave)
            unlink(w->temporary);
    }
    zstd_coder_free(w->coder);
    io_free_pages(w->plain, (size_t)COLD_CHUNK_BLOCKS * BLOCK);
    io_free_pages(w->out, OUT_BYTES + (size_t)COLD_CHUNK_BLOCKS * BLOCK);
    free(w->chunks);
    free(w);
}

uint64_t cold_writer_plain_bytes(const struct cold_writer *w)
{
    return (uint64_t)w->blocks * BLOCK;
}
uint64_t cold_writer_stored_bytes(const struct cold_writer *w)
{
    return w->out_at + w->out_bytes + (uint64_t)w->plain_blocks * BLOCK;
}

/* Writes the whole blocks of what is in `out`; with `all` the last one is filled up with zeroes. */
static int flush(struct cold_writer *w, bool all, struct error *err)
{
    size_t whole = w->out_bytes / BLOCK * BLOCK;
    if (all && whole < w->out_bytes) {
        memset(w->out + w->out_bytes, 0, whole + BLOCK - w->out_bytes);
        w->out_bytes = whole = whole + BLOCK;
    }
    int r = whole ? io_pwrite_full(w->fd, w->out, whole, w->out_at) : 0;
    if (r < 0)
        return error_errno(err, r, "cannot write %s", w->temporary);
    memmove(w->out, w->out + whole, w->out_bytes - whole);
    w->out_at += whole;
    w->out_bytes -= whole;
    return 0;
}

static int add_entry(struct cold_writer *w, const struct cold_chunk *entry, struct error *err)
{
    if ((w->chunk_count & (w->chunk_count - 1)) == 0) {
        struct cold_chunk *larger = reallocarray(w->chunks, w->chunk_count ? w->chunk_count * 2 : 1, sizeof *larger);
        if (!larger)
            return error_errno(err, -ENOMEM, "cannot write %s", w->path);
        w->chunks = larger;
    }
    w->chunks[w->chunk_count++] = *entry;
    return 0;
}

static int end_chunk(struct cold_writer *w, struct error *err)
{
    size_t whole = (size_t)w->plain_blocks * BLOCK;
    uint8_t nonce[AEAD_NONCE_BYTES];
    char *to = w->out + w->out_bytes;
    if (!whole)
        return 0;
    size_t bytes = zstd_coder_compress(w->coder, w->plain, whole, to, whole - whole / 16);
    if (!bytes) {
        memcpy(to, w->plain, whole);
        bytes = whole;
    }
    struct cold_chunk entry = {.offset = le64_of(w->out_at + w->out_bytes), .bytes = le32_of((uint32_t)bytes)};
    struct aead_part part = {to, to, bytes};
    make_nonce(w->chunk_count, DOMAIN_CHUNK, nonce);
    if (w->key && aead_seal(w->key, nonce, &part, 1, entry.tag) < 0)
        return error_set(err, -EIO, "cannot encrypt %s", w->path);
    entry.crc = le32_of(crc32c(0, to, bytes));
    w->out_bytes += bytes;
    w->plain_blocks = 0;
    int r = add_entry(w, &entry, err);
    return r == 0 && w->out_bytes >= OUT_BYTES ? flush(w, false, err) : r;
}

int cold_writer_add(struct cold_writer *w, const void *blocks, uint32_t count, struct error *err)
{
    int r = 0;
    for (uint32_t done = 0; done < count && r == 0;) {
        uint32_t room = COLD_CHUNK_BLOCKS - w->plain_blocks, part = count - done < room ? count - done : room;
        memcpy(w->plain + (size_t)w->plain_blocks * BLOCK, (const char *)blocks + (size_t)done * BLOCK, (size_t)part * BLOCK);
        w->plain_blocks += part;
        w->blocks += part;
        done += part;
        if (w->plain_blocks == COLD_CHUNK_BLOCKS)
            r = end_chunk(w, err);
    }
    return r;
}

/* Both copies of the table, each from a block's start on. */
static int write_tables(struct cold_writer *w, struct cold_header *h, struct error *err)
{
    size_t bytes = w->chunk_count * sizeof *w->chunks;
    uint8_t nonce[AEAD_NONCE_BYTES];
    struct aead_part part = {w->chunks, w->chunks, bytes};
    make_nonce(0, DOMAIN_TABLE, nonce);
    int r = flush(w, true, err);
    if (r == 0 && w->key && bytes && aead_seal(w->key, nonce, &part, 1, h->table_tag) < 0)
        return error_set(err, -EIO, "cannot encrypt %s", w->path);
    h->table_crc = le32_of(crc32c(0, w->chunks, bytes));
    for (unsigned copy = 0; copy < 2 && r == 0; copy++) {
        h->table_at[copy] = le64_of(w->out_at);
        for (size_t done = 0; done < bytes && r == 0;) {
            size_t step = bytes - done < OUT_BYTES ? bytes - done : OUT_BYTES;
            memcpy(w->out, (const char *)w->chunks + done, step);
            w->out_bytes = step;
            done += step;
            r = flush(w, true, err);
        }
    }
    return r;
}

int cold_writer_finish(struct cold_writer *w, void *header_block, uint32_t *ret_kib, struct error *err)
{
    struct cold_header cold = {.chunk_blocks = le32_of(COLD_CHUNK_BLOCKS)};
    struct segment_header *h = (struct segment_header *)w->out;
    int r = end_chunk(w, err);
    cold.chunk_count = le32_of(w->chunk_count);
    if (r == 0)
        r = write_tables(w, &cold, err);
    if (r < 0)
        return r;
    memcpy(w->out, header_block, BLOCK);
    memcpy(w->out + COLD_HEADER_OFFSET, &cold, sizeof cold);
    h->incompatible = le32_of(le32_get(h->incompatible) | SEGMENT_COLD);
    h->blocks = le32_of(w->blocks);
    h->crc = le32_of(0);
    h->crc = le32_of(crc32c(0, w->out, BLOCK));
    r = io_pwrite_full(w->fd, w->out, BLOCK, w->out_at);
    if (r == 0)
        r = io_pwrite_full(w->fd, w->out, BLOCK, 0);
    if (r == 0 && fsync(w->fd) < 0)
        r = -errno;
    if (r == 0 && rename(w->temporary, w->path) < 0)
        r = -errno;
    if (r < 0)
        return error_errno(err, r, "cannot write %s", w->path);
    w->finished = true;
    *ret_kib = (uint32_t)((w->out_at + BLOCK) / 1024);
    char directory[PATH_MAX];
    snprintf(directory, sizeof directory, "%s", w->path);
    char *slash = strrchr(directory, '/');
    if (slash)
        *slash = '\0';
    return io_sync_directory(slash ? directory : ".", err);
}
