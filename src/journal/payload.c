/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/payload.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/drop_wait.h"
#include "journal/journal_format.h"
#include "journal/manifest.h"
#include "journal/segment_reader.h"

#define BOUNCE_BYTES ((1u << 20) + JOURNAL_BLOCK_BYTES)
#define WINDOW_BLOCKS (PAYLOAD_WINDOW_BYTES / JOURNAL_BLOCK_BYTES)

struct open_segment {
    uint32_t number, generation; /* number 0: unused */
    struct segment_reader file;
    struct index *index; /* NULL until somebody needs it */
    unsigned users;
    uint64_t used_at;
};
struct rescue {
    struct rescue *next;
    struct lsn lsn;
    struct base_store *store;
};
struct other_index { /* of a segment, in place of its L0 */
    uint32_t segment, generation;
    char *path;
};
struct payload_reader {
    char directory[PATH_MAX];
    struct index_cache *cache;
    pthread_mutex_t mutex; /* guards the tables */
    pthread_cond_t released; /* a segment is used no more */
    unsigned waiters;
    struct open_segment *segments;
    size_t segment_count;
    uint64_t tick;
    struct other_index *others; /* set up before reading begins */
    size_t other_count;
    struct rescue *rescues; /* one a rewind that was read: at most MANIFEST_MAX_REWINDS */
    struct base_store *base;
    struct drop_patience patience;
    _Atomic uint64_t base_lsn;
};

void payload_rescue_directory(const char *directory, struct lsn rewind, char *path, size_t path_bytes)
{
    snprintf(path, path_bytes, "%s/rescue-%llu", directory, (unsigned long long)rewind.n);
}

/* Without knowing how far the base goes. */
static int new_reader(const char *directory, struct index_cache *cache, size_t open_segments, struct payload_reader **ret, struct error *err)
{
    char base[PATH_MAX + 8];
    struct payload_reader *p = calloc(1, sizeof *p);
    if (p)
        p->segments = calloc(open_segments, sizeof *p->segments);
    if (!p || !p->segments) {
        free(p);
        return error_errno(err, -ENOMEM, "cannot read the journal %s", directory);
    }
    p->segment_count = open_segments;
    p->cache = cache;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->released, NULL);
    snprintf(p->directory, sizeof p->directory, "%s", directory);
    p->patience = (struct drop_patience){p->directory, DROP_WAIT_NS};
    snprintf(base, sizeof base, "%s/base", directory);
    int r = base_store_open(base, false, &p->base, err);
    if (r < 0) {
        payload_reader_free(p);
        return r;
    }
    base_store_expect_holes(p->base);
    *ret = p;
    return 0;
}

int payload_reader_new(const char *directory, struct index_cache *cache, size_t open_segments, struct payload_reader **ret,
                       struct error *err)
{
    struct payload_reader *p;
    int r = new_reader(directory, cache, open_segments, &p, err);
    if (r < 0)
        return r;
    r = payload_refresh(p, err);
    if (r < 0) {
        payload_reader_free(p);
        return r;
    }
    *ret = p;
    return 0;
}

int payload_reader_new_at(const char *directory, struct index_cache *cache, size_t open_segments, const struct uuid *journal_id,
                          struct lsn base, struct payload_reader **ret, struct error *err)
{
    int r = new_reader(directory, cache, open_segments, ret, err);
    if (r < 0)
        return r;
    payload_set_base_lsn(*ret, base);
    if (cache)
        index_cache_set_journal(cache, journal_id);
    return 0;
}

static void close_segment(struct open_segment *s)
{
    if (!s->number)
        return;
    segment_reader_close(&s->file);
    index_free(s->index);
    *s = (struct open_segment){0};
}

void payload_reader_free(struct payload_reader *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->segment_count; i++)
        close_segment(&p->segments[i]);
    while (p->rescues) {
        struct rescue *r = p->rescues;
        p->rescues = r->next;
        base_store_free(r->store);
        free(r);
    }
    for (size_t i = 0; i < p->other_count; i++)
        free(p->others[i].path);
    free(p->others);
    base_store_free(p->base);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->released);
    free(p->segments);
    free(p);
}

int payload_reader_index(struct payload_reader *p, uint32_t segment, uint32_t generation, const char *path, struct error *err)
{
    struct other_index *larger = reallocarray(p->others, p->other_count + 1, sizeof *larger);
    if (larger)
        p->others = larger;
    char *copy = larger ? strdup(path) : NULL;
    if (!copy)
        return error_errno(err, -ENOMEM, "cannot read the journal %s", p->directory);
    p->others[p->other_count++] = (struct other_index){segment, generation, copy};
    return 0;
}

int payload_reader_tail(struct payload_reader *p, uint32_t segment, const char *file, struct error *err)
{
    char path[PATH_MAX + JOURNAL_FILE_BYTES];
    snprintf(path, sizeof path, "%s/%s", p->directory, file);
    return payload_reader_index(p, segment, 0, path, err);
}

void payload_reader_in_drop(struct payload_reader *p)
{
    p->patience.directory = NULL;
}

struct base_store *payload_base(struct payload_reader *p)
{
    return p->base;
}
struct lsn payload_base_lsn(struct payload_reader *p)
{
    return (struct lsn){atomic_load(&p->base_lsn)};
}
void payload_set_base_lsn(struct payload_reader *p, struct lsn base)
{
    atomic_store(&p->base_lsn, base.n);
}

int payload_refresh(struct payload_reader *p, struct error *err)
{
    struct manifest m;
    int r = manifest_load(p->directory, &m, err);
    if (r < 0)
        return r;
    payload_set_base_lsn(p, m.base);
    if (p->cache)
        index_cache_set_journal(p->cache, &m.journal_id);
    manifest_release(&m);
    return 0;
}

/* ---- segments ---- */

/* The index of a segment in use: what it says of its blocks is not always asked for. */
static int open_index(struct payload_reader *p, struct open_segment *s, struct error *err)
{
    char path[PATH_MAX + JOURNAL_FILE_BYTES], name[JOURNAL_FILE_BYTES];
    MUTEX_GUARD(guard, &p->mutex);
    if (s->index)
        return 0;
    snprintf(path, sizeof path, "%s/%s", p->directory, journal_l0_file_of(s->number, s->generation, name));
    const char *index_path = path;
    for (size_t i = 0; i < p->other_count; i++)
        if (p->others[i].segment == s->number && p->others[i].generation == s->generation)
            index_path = p->others[i].path;
    return index_open(index_path, p->cache, &s->index, err);
}

/* With the mutex: the segment if it is open, else the one to be closed for it, unused longest; NULL: all are in use. */
static struct open_segment *find_segment(struct payload_reader *p, uint32_t number, uint32_t generation)
{
    struct open_segment *oldest = NULL;
    for (size_t i = 0; i < p->segment_count; i++) {
        struct open_segment *s = &p->segments[i];
        if (s->number == number && s->generation == generation)
            return s;
        if (s->users == 0 && (!oldest || s->used_at < oldest->used_at))
            oldest = s;
    }
    return oldest;
}

/* An open segment, to be given back by release_segment. A thread has one at a time, so whoever waits for one gets it. */
static int acquire_segment(struct payload_reader *p, uint32_t number, uint32_t generation, struct open_segment **ret,
                           struct error *err)
{
    MUTEX_GUARD(guard, &p->mutex);
    struct open_segment *s;
    while (!(s = find_segment(p, number, generation))) {
        p->waiters++;
        pthread_cond_wait(&p->released, &p->mutex);
        p->waiters--;
    }
    if (s->number != number || s->generation != generation) {
        struct segment_reader file;
        close_segment(s);
        int r = segment_reader_open(p->directory, number, generation, true, &file, err);
        if (p->waiters)
            pthread_cond_broadcast(&p->released);
        if (r < 0)
            return r;
        *s = (struct open_segment){.number = number, .generation = generation, .file = file};
    }
    s->users++;
    s->used_at = ++p->tick;
    *ret = s;
    return 0;
}

static void release_segment(struct payload_reader *p, struct open_segment *s)
{
    MUTEX_GUARD(guard, &p->mutex);
    s->users--;
    if (p->waiters)
        pthread_cond_broadcast(&p->released);
}

static int decrypt(struct open_segment *s, uint32_t block, uint32_t count, char *data, struct error *err)
{
    seal_tag tags[BOUNCE_BYTES / JOURNAL_BLOCK_BYTES];
    uint32_t bad = block;
    int r = index_section_pread(s->index, INDEX_SECTION_TAGS, tags, count * sizeof *tags, (uint64_t)block * sizeof *tags, err);
    if (r == 0 && sealed_open_blocks(s->file.key, block, data, count, (const seal_tag *)tags, &bad) < 0)
        r = error_set(err, -EBADMSG, "segment %u is damaged at block %u (not authentic)", s->number, bad);
    return r;
}

static bool window_has(const struct payload_window *w, const struct open_segment *s, uint32_t block, uint32_t count)
{
    return w->count && w->segment == s->number && w->generation == s->generation && block >= w->block &&
           block - w->block <= w->count && count <= w->count - (block - w->block);
}

/* `window` may be NULL. */
static int read_blocks(struct open_segment *s, struct payload_window *window, uint32_t block, uint32_t count, char *data)
{
    if (!window || count > WINDOW_BLOCKS)
        return segment_reader_blocks(&s->file, block, count, data);
    bool same = window->segment == s->number && window->generation == s->generation;
    if (!window_has(window, s, block, count) && !(same && block < window->single_to)) {
        *window = (struct payload_window){window->data, s->number, s->generation, block, 0, 0};
        window->count = segment_reader_stretch(&s->file, block, WINDOW_BLOCKS, window->data);
        if (window->count < count) /* some of it cannot be read, or the segment is compressed */
            window->single_to = block + WINDOW_BLOCKS;
    }
    if (!window_has(window, s, block, count))
        return segment_reader_blocks(&s->file, block, count, data);
    memcpy(data, window->data + (size_t)(block - window->block) * JOURNAL_BLOCK_BYTES, (size_t)count * JOURNAL_BLOCK_BYTES);
    return 0;
}

/* What the blocks must have; `crc`: it is known already. An encrypted segment's tags are in its index, too. */
static int expect_crcs(struct payload_reader *p, struct open_segment *s, uint32_t block, uint32_t count, const uint32_t *crc, struct le32 *ret,
                       struct error *err)
{
    if (crc && !s->file.key) {
        assert(count == 1);
        ret[0] = le32_of(*crc);
        return 0;
    }
    int r = open_index(p, s, err);
    return r < 0 ? r : index_section_pread(s->index, INDEX_SECTION_CRCS, ret, count * sizeof *ret, (uint64_t)block * sizeof *ret, err);
}

/* Reads `count` blocks from `block` and checks them: by `crc`, that of the only one, or NULL: the index knows. `data` is page-aligned. */
static int read_checked(struct payload_reader *p, struct payload_window *window, uint32_t segment, uint32_t generation, uint32_t block,
                        uint32_t count, const uint32_t *crc, char *data, struct error *err)
{
    struct open_segment *s = NULL;
    int r = acquire_segment(p, segment, generation, &s, err);
    if (r < 0)
        return r;
    struct le32 crcs[BOUNCE_BYTES / JOURNAL_BLOCK_BYTES];
    r = expect_crcs(p, s, block, count, crc, crcs, err);
    if (r == 0) {
        r = read_blocks(s, window, block, count, data);
        if (r == -EBADMSG)
            r = error_set(err, -EBADMSG, "segment %u is damaged at block %u (a compressed chunk)", segment, block);
        else if (r == -ENODATA)
            r = error_set(err, -EBADMSG, "segment %u is damaged: the file ends before block %u", segment, block + count);
        else if (r < 0)
            error_errno(err, r, "cannot read segment %u at block %u", segment, block);
    }
    if (r == 0 && s->file.key)
        r = decrypt(s, block, count, data, err);
    for (uint32_t i = 0; i < count && r == 0; i++)
        if (crc32c(0, data + (size_t)i * JOURNAL_BLOCK_BYTES, JOURNAL_BLOCK_BYTES) != le32_get(crcs[i]))
            r = error_set(err, -EBADMSG, "segment %u is damaged at block %u (wrong checksum)", segment, block + i);
    if (r < 0 && window)
        window->count = 0;
    release_segment(p, s);
    return r;
}

static pthread_key_t bounce_key;

static void bounce_free(void *buffer)
{
    io_free_pages(buffer, BOUNCE_BYTES);
}
static void bounce_make_key(void)
{
    pthread_key_create(&bounce_key, bounce_free);
}
/* A page-aligned buffer for the calling thread's reads, kept for its life. NULL when out of memory. */
static char *bounce(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, bounce_make_key);
    char *buffer = pthread_getspecific(bounce_key);
    if (!buffer) {
        buffer = io_alloc_pages(BOUNCE_BYTES);
        pthread_setspecific(bounce_key, buffer);
    }
    return buffer;
}

static int read_segment(struct payload_reader *p, struct payload_window *window, const struct extent *e, void *data, struct error *err)
{
    uint32_t skip = e->position % JOURNAL_BLOCK_SECTORS, block = e->position / JOURNAL_BLOCK_SECTORS;
    uint32_t count = (skip + e->length + JOURNAL_BLOCK_SECTORS - 1) / JOURNAL_BLOCK_SECTORS;
    const uint32_t *crc = e->flags & EXTENT_CHECKED ? &e->crc : NULL;
    if (skip == 0 && e->length % JOURNAL_BLOCK_SECTORS == 0 && (uintptr_t)data % JOURNAL_BLOCK_BYTES == 0)
        return read_checked(p, window, e->segment, extent_generation(e), block, count, crc, data, err);
    char *buffer = bounce();
    if (!buffer)
        return error_errno(err, -ENOMEM, "cannot read segment %u", e->segment);
    int r = read_checked(p, window, e->segment, extent_generation(e), block, count, crc, buffer, err);
    if (r == 0)
        memcpy(data, buffer + (size_t)skip * 512, (size_t)e->length * 512);
    return r;
}

/* ---- the base and rewinds ---- */

/* From the base or a rescue store. */
static int read_store(struct payload_reader *p, struct base_store *store, const struct extent *e, void *data, struct error *err)
{
    struct drop_look look = {0};
    int r;
    do
        r = base_store_read(store, e->volume, e->lba, e->length, data, err);
    while (r == -EBADMSG && drop_wait_again(&p->patience, &look));
    return r;
}

static int rescue_store(struct payload_reader *p, struct lsn rewind, struct base_store **ret, struct error *err)
{
    MUTEX_GUARD(guard, &p->mutex);
    for (struct rescue *r = p->rescues; r; r = r->next)
        if (r->lsn.n == rewind.n) {
            *ret = r->store;
            return 0;
        }
    char path[PATH_MAX + 32];
    payload_rescue_directory(p->directory, rewind, path, sizeof path);
    struct rescue *added = calloc(1, sizeof *added);
    if (!added)
        return error_errno(err, -ENOMEM, "cannot open %s", path);
    int r = base_store_open(path, false, &added->store, err);
    if (r < 0) {
        free(added);
        return r;
    }
    added->lsn = rewind;
    added->next = p->rescues;
    p->rescues = added;
    *ret = added->store;
    return 0;
}

static int read_reference(struct payload_reader *p, const struct extent *e, char *data, struct error *err)
{
    struct base_store *rescue = NULL;
    int r = rescue_store(p, e->lsn, &rescue, err);
    for (struct extent left = *e; r == 0 && left.length;) {
        bool present;
        uint64_t stretch;
        r = base_store_extent(rescue, left.volume, left.lba, left.length, &present, &stretch, err);
        if (r < 0)
            break;
        struct extent part = extent_clip(left, left.lba, stretch);
        if (present)
            r = read_store(p, rescue, &part, data, err);
        else if (part.kind == EXTENT_BASE)
            r = base_store_read(p->base, part.volume, part.lba, part.length, data, err);
        else
            r = read_segment(p, NULL, &part, data, err);
        if (r == 0 && !present && part.kind == EXTENT_BASE) {
            bool rescued;
            uint64_t same;
            r = base_store_extent(rescue, part.volume, part.lba, part.length, &rescued, &same, err);
            if (r == 0 && (rescued || same < part.length))
                continue; /* a drop has come between: the base may have been newer already */
        }
        data += (size_t)part.length * 512;
        uint64_t end = e->lba + e->length;
        if (left.lba + stretch >= end)
            break;
        left = extent_clip(left, left.lba + stretch, end - left.lba - stretch);
    }
    return r;
}

static int read_once(struct payload_reader *p, struct payload_window *window, const struct extent *e, void *data, struct error *err)
{
    if (e->lsn.n <= payload_base_lsn(p).n)
        return read_store(p, p->base, e, data, err);
    if (e->flags & EXTENT_REFERENCE)
        return read_reference(p, e, data, err);
    return read_segment(p, window, e, data, err);
}

int payload_read_along(struct payload_reader *p, struct payload_window *window, const struct extent *e, void *data, struct error *err)
{
    if (e->kind == EXTENT_ZERO) {
        memset(data, 0, (size_t)e->length * 512);
        return 0;
    }
    for (int attempt = 0;; attempt++) {
        struct lsn before = payload_base_lsn(p);
        int r = read_once(p, window, e, data, err);
        if (r == 0 || attempt == 2)
            return r;
        struct error ignored = ERROR_INIT; /* has it moved into the base, or a rescue store, meanwhile? */
        if (payload_refresh(p, &ignored) < 0 || (payload_base_lsn(p).n == before.n && attempt))
            return r;
    }
}

int payload_read(struct payload_reader *p, const struct extent *e, void *data, struct error *err)
{
    return payload_read_along(p, NULL, e, data, err);
}

int payload_read_blocks(struct payload_reader *p, uint32_t segment, uint32_t generation, uint32_t block, void *data,
                        uint32_t length_bytes, struct error *err)
{
    char *buffer = bounce();
    if (!buffer || length_bytes > BOUNCE_BYTES)
        return error_errno(err, -ENOMEM, "cannot read segment %u", segment);
    uint32_t count = (length_bytes + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES;
    int r = read_checked(p, NULL, segment, generation, block, count, NULL, buffer, err);
    if (r == 0)
        memcpy(data, buffer, length_bytes);
    return r;
}

int payload_read_base(struct payload_reader *p, uint32_t volume, uint64_t lba, uint32_t length, void *data, struct error *err)
{
    return read_store(p, p->base, &(struct extent){.volume = volume, .lba = lba, .length = length}, data, err);
}
