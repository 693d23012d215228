/* SPDX-License-Identifier: Apache-2.0 */
/* Index files against an array: random histories (TIDEMARK_SEED replays one), damage, failures. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "check.h"
#include "journal/index_internal.h"

/* ---- failing each call in turn ---- */

static long calls_left = -1; /* the call that makes it 0 fails; negative: none does */
static int fail_code;
static long preads;

static bool fails(void)
{
    if (calls_left < 0 || --calls_left != 0)
        return false;
    calls_left = -1;
    errno = fail_code;
    return true;
}
#define WRAP(type, name, failure, parameters, ...)                                                           \
    type __real_##name parameters;                                                                           \
    type __wrap_##name parameters;                                                                           \
    type __wrap_##name parameters                                                                            \
    {                                                                                                        \
        return fails() ? (failure) : __real_##name(__VA_ARGS__);                                             \
    }
WRAP(void *, malloc, NULL, (size_t n), n)
WRAP(void *, calloc, NULL, (size_t n, size_t m), n, m)
WRAP(char *, strdup, NULL, (const char *s), s)
WRAP(int, fstat64, -1, (int fd, struct stat *st), fd, st)
WRAP(ssize_t, pwritev64, -1, (int fd, const struct iovec *v, int n, off_t at), fd, v, n, at)
WRAP(int, rename, -1, (const char *a, const char *b), a, b)
static long syncs;
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    syncs++;
    return fails() ? -1 : __real_fsync(fd);
}
ssize_t __real_pread64(int fd, void *p, size_t n, off_t at);
ssize_t __wrap_pread64(int fd, void *p, size_t n, off_t at);
ssize_t __wrap_pread64(int fd, void *p, size_t n, off_t at)
{
    __atomic_fetch_add(&preads, 1, __ATOMIC_RELAXED);
    return fails() ? -1 : __real_pread64(fd, p, n, at);
}
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, mode_t mode);
int __wrap_open64(const char *path, int flags, mode_t mode)
{
    return fails() ? -1 : __real_open64(path, flags, mode);
}
int __wrap_asprintf(char **ret, const char *format, ...);
int __wrap_asprintf(char **ret, const char *format, ...)
{
    if (fails())
        return -1;
    va_list ap;
    va_start(ap, format);
    int r = vasprintf(ret, format, ap);
    va_end(ap);
    return r;
}

/* ---- randomness and histories ---- */

static uint64_t seed, state;

static uint64_t rnd(uint64_t below)
{
    return check_random(&state) % below;
}

struct history {
    struct extent *e;
    size_t count;
};

static int by_key(const void *a, const void *b)
{
    return index_key_compare(index_key_of(a), index_key_of(b));
}

static const uint32_t volumes[] = {0, 1, 2, 7, UINT32_MAX};

static struct extent random_extent(uint64_t space, uint64_t lsn)
{
    struct extent e = {.volume = volumes[rnd(5)],
                       .lba = rnd(space),
                       .length = (uint32_t)(1 + rnd(rnd(4) ? 16 : 256)),
                       .lsn = {lsn},
                       .segment = (uint32_t)rnd(9),
                       .position = (uint32_t)rnd(1u << 17),
                       .kind = EXTENT_DATA};
    if (rnd(8) == 0) {
        e.kind = EXTENT_ZERO;
        e.length = (uint32_t)(1 + rnd(rnd(16) ? 4096 : EXTENT_ZERO_MAX_SECTORS));
    }
    if (e.kind != EXTENT_DATA)
        e.segment = e.position = 0;
    else if (extent_is_in_one_block(&e) && rnd(4))
        e.flags |= EXTENT_CHECKED, e.crc = (uint32_t)rnd(UINT32_MAX);
    if (rnd(64) == 0)
        e.lba = UINT64_MAX - e.length; /* up to the very end */
    return e;
}

/* Every version; one stretch of equal LSNs that do not overlap, as a rewind leaves them. */
static struct history random_l0(size_t count, uint64_t space)
{
    struct history h = {calloc(count + 1, sizeof *h.e), count};
    for (size_t i = 0; i < count; i++) {
        h.e[i] = random_extent(space, i + 1);
        if (i > count / 2 && i < count / 2 + count / 8) {
            h.e[i] = (struct extent){.volume = 2,
                                     .lba = i * 10,
                                     .length = 10,
                                     .lsn = {count / 2 + 2}, /* nobody else's: the first of the stretch had it */
                                     .kind = rnd(2) ? EXTENT_BASE : EXTENT_DATA,
                                     .flags = EXTENT_REFERENCE};
        }
    }
    qsort(h.e, count, sizeof *h.e, by_key);
    return h;
}

static struct history random_flat(size_t count)
{
    struct history h = {calloc(count + 1, sizeof *h.e), count};
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        struct extent e = random_extent(1, 1 + rnd(count));
        e.volume = volumes[i * 5 / count];
        at = i > 0 && h.e[i - 1].volume == e.volume ? at + (rnd(2) ? 0 : rnd(100)) : 0;
        e.lba = at;
        at += e.length;
        h.e[i] = e;
    }
    return h;
}

/* ---- files ---- */

static char directory[64], path[96];
static uint8_t sections[3][3 * INDEX_PAYLOAD_BYTES + 77];
static size_t section_bytes[3];

static int setup(void **unused)
{
    (void)unused;
    state = seed;
    snprintf(directory, sizeof directory, "%s/test_index.XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/index", directory);
    for (int i = 0; i < 3; i++)
        for (size_t j = 0; j < sizeof sections[i]; j++)
            sections[i][j] = (uint8_t)rnd(256);
    section_bytes[0] = 0;
    section_bytes[1] = INDEX_PAYLOAD_BYTES;
    section_bytes[2] = sizeof sections[2];
    return 0;
}
static int teardown(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    return io_remove_tree(directory, &err);
}

static int write_index(const char *to, struct history h, bool flat, uint32_t fanout, struct error *err)
{
    struct index_info info = {.kind = flat ? INDEX_RUN : INDEX_L0,
                              .flat = flat,
                              .first_segment = 3,
                              .last_segment = 5,
                              .low = {7},
                              .high = {1u << 20},
                              .journal_id = {{1, 2, 3}}};
    struct index_writer *w = NULL;
    int r = index_writer_new(to, &info, &w, err);
    if (r < 0)
        return r;
    index_writer_limit_fanout(w, fanout);
    for (size_t i = 0; r == 0 && i < h.count; i++)
        r = index_writer_add(w, &h.e[i], err);
    for (int i = 2; r == 0 && i >= 0; i--)
        r = index_writer_section(w, (enum index_section)i, sections[i], section_bytes[i], err);
    if (r == 0)
        r = index_writer_finish(w, err);
    else
        assert_true(index_writer_finish(w, err) < 0); /* a failure stays */
    index_writer_free(w);
    return r;
}

static void must_write(struct history h, bool flat, uint32_t fanout)
{
    struct error err = ERROR_INIT;
    if (write_index(path, h, flat, fanout, &err) < 0)
        fail_msg("%s", err.message);
}

static struct index *must_open(struct index_cache *cache)
{
    struct error err = ERROR_INIT;
    struct index *index = NULL;
    if (index_open(path, cache, &index, &err) < 0)
        fail_msg("%s", err.message);
    return index;
}

static struct index_cache *new_cache(size_t bytes)
{
    struct error err = ERROR_INIT;
    struct index_cache *cache = NULL;
    assert_int_equal(index_cache_new(bytes, &cache, &err), 0);
    return cache;
}

/* ---- comparing with the model ---- */

struct expectation {
    struct history h;
    size_t at;
    uint32_t volume;
    uint64_t lba, end, low, high;
    bool right;
};

static void skip_to_match(struct expectation *x)
{
    for (; x->at < x->h.count; x->at++) {
        const struct extent *e = &x->h.e[x->at];
        if (e->volume == x->volume && e->lba < x->end && e->lba + e->length > x->lba && e->lsn.n > x->low &&
            e->lsn.n <= x->high)
            return;
    }
}

static bool same(const struct extent *a, const struct extent *b)
{
    return a->volume == b->volume && a->length == b->length && a->lba == b->lba && a->lsn.n == b->lsn.n &&
           a->segment == b->segment && a->position == b->position && a->kind == b->kind &&
           a->flags == b->flags && a->crc == b->crc;
}

static int expect(void *context, const struct extent *extent, struct error *err)
{
    struct expectation *x = context;
    (void)err;
    skip_to_match(x);
    if (x->at == x->h.count || !same(extent, &x->h.e[x->at]))
        x->right = false;
    else
        x->at++;
    return 0;
}

/* 0 and the right extents, or the error. */
static int lookup(struct index *index, struct history h, uint32_t volume, uint64_t lba, uint64_t length,
                  uint64_t low, uint64_t high, bool *ret_right)
{
    struct error err = ERROR_INIT;
    struct expectation x = {h,   0,    volume, lba, lba + length < lba ? UINT64_MAX : lba + length,
                            low, high, true};
    if (length == 0)
        x.end = 0;
    int r = index_lookup(index, volume, lba, length, (struct lsn){low}, (struct lsn){high}, expect, &x, &err);
    skip_to_match(&x);
    *ret_right = x.right && (r < 0 || x.at == h.count);
    if (r < 0)
        assert_non_null(strstr(err.message, path));
    return r;
}

static void check_lookups(struct index *index, struct history h, unsigned rounds)
{
    bool right;
    for (unsigned i = 0; i < rounds; i++) {
        const struct extent *near = h.count ? &h.e[rnd(h.count)] : &(struct extent){.length = 1};
        uint32_t volume = rnd(8) ? near->volume : (uint32_t)rnd(9);
        uint64_t lba = rnd(8) ? near->lba + rnd(near->length + 2) - (rnd(3) == 0) : rnd(1u << 22);
        uint64_t length = rnd(3) == 0 ? 1 : rnd(2) ? rnd(300) : rnd(UINT64_MAX);
        uint64_t low = rnd(2) ? 0 : rnd(h.count + 2), high = rnd(2) ? UINT64_MAX : rnd(h.count + 2);
        assert_int_equal(lookup(index, h, volume, lba, length, low, high, &right), 0);
        if (!right)
            fail_msg("wrong answer for volume %u lba %llu length %llu low %llu high %llu", volume,
                     (unsigned long long)lba, (unsigned long long)length, (unsigned long long)low,
                     (unsigned long long)high);
    }
}

/* 0 and exactly the model, or the error; what came before the error must be right as well. */
static int stream_all(struct index *index, struct history h, uint64_t low, uint64_t high, bool *ret_right)
{
    struct error err = ERROR_INIT;
    struct extent_stream *stream = NULL;
    struct extent e;
    size_t at = 0;
    *ret_right = true;
    int r = index_stream(index, (struct lsn){low}, (struct lsn){high}, &stream, &err);
    if (r < 0)
        return r;
    while ((r = stream->next(stream, &e, &err)) > 0) {
        while (at < h.count && (h.e[at].lsn.n <= low || h.e[at].lsn.n > high))
            at++;
        if (at == h.count || !same(&e, &h.e[at++]))
            *ret_right = false;
    }
    while (at < h.count && (h.e[at].lsn.n <= low || h.e[at].lsn.n > high))
        at++;
    if (r == 0 && at != h.count)
        *ret_right = false;
    assert_int_equal(stream->next(stream, &e, &err), r); /* the end and a failure stay */
    extent_stream_free(stream);
    return r;
}

static int read_section(struct index *index, unsigned section, size_t offset, size_t length, bool *ret_right)
{
    struct error err = ERROR_INIT;
    static uint8_t got[sizeof sections[0]];
    int r = index_section_pread(index, (enum index_section)section, got, length, offset, &err);
    *ret_right = r < 0 || memcmp(got, sections[section] + offset, length) == 0;
    return r;
}

static void check_whole(struct history h, bool flat, uint32_t fanout, struct index_cache *cache)
{
    struct error err = ERROR_INIT;
    must_write(h, flat, fanout);
    struct index *index = must_open(cache);
    const struct index_info *info = index_info(index);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(info->extents, h.count);
    assert_int_equal(info->file_bytes, st.st_size);
    assert_int_equal(info->flat, flat);
    assert_int_equal(info->low.n, 7);
    assert_int_equal(info->high.n, 1u << 20);
    assert_int_equal(info->first_segment, 3);
    assert_int_equal(info->last_segment, 5);
    assert_int_equal(info->journal_id.bytes[2], 3);
    assert_string_equal(index_path(index), path);
    if (index_verify(index, NULL, NULL, &err) < 0)
        fail_msg("%s", err.message);
    check_lookups(index, h, 400);
    bool right;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(
            stream_all(index, h, i ? rnd(h.count + 1) : 0, i < 2 ? UINT64_MAX : rnd(h.count + 1), &right), 0);
        assert_true(right);
    }
    index_free(index);
}

static void random_histories(void **unused)
{
    (void)unused;
    struct index_cache *small = new_cache(0), *large = new_cache(4 << 20);
    assert_int_equal(index_cache_frames(small), 16);
    static const size_t counts[] = {0, 1, 2, 3, 4, 5, 16, 63, 64, 65, 101, 102, 103, 204, 1000, 2000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        uint32_t fanout = rnd(2) ? INDEX_FANOUT : 3 + (uint32_t)rnd(8);
        struct history h = random_l0(counts[i], rnd(2) ? 100 + counts[i] : 1u << 22);
        check_whole(h, false, fanout, rnd(2) ? large : small);
        free(h.e);
        h = random_flat(counts[i]);
        check_whole(h, true, fanout, rnd(2) ? NULL : small);
        free(h.e);
    }
    index_cache_free(small);
    index_cache_free(large);
}

static void high_trees(void **unused)
{
    (void)unused;
    struct history h = random_flat(6000);
    must_write(h, true, 3);
    struct index *index = must_open(NULL);
    assert_int_equal(index->height, 8);
    index_free(index);
    free(h.e);
    h = random_l0(32768, 1u << 24);
    check_whole(h, false, INDEX_FANOUT, NULL);
    free(h.e);
    h = random_flat(120000);
    check_whole(h, true, INDEX_FANOUT, NULL);
    index = must_open(NULL);
    assert_int_equal(index->height, 3);
    index_free(index);
    free(h.e);
    /* more levels than the format has */
    struct error err = ERROR_INIT;
    h = random_flat(6600);
    assert_int_equal(write_index(path, h, true, 3, &err), -EFBIG);
    free(h.e);
}

/* A lookup of one sector in a flat index costs at most two pages a level. */
static void flat_lookups_are_cheap(void **unused)
{
    (void)unused;
    struct history h = random_flat(3000);
    must_write(h, true, 4);
    struct index *index = must_open(NULL);
    assert_true(index->height >= 5);
    bool right;
    for (int i = 0; i < 1000; i++) {
        const struct extent *e = &h.e[rnd(h.count)];
        long before = preads;
        assert_int_equal(lookup(index, h, e->volume, e->lba + rnd(e->length), 1, 0, UINT64_MAX, &right), 0);
        assert_true(right);
        assert_true(preads - before <= 2 * (long)index->height);
    }
    index_free(index);
    free(h.e);
}

/* Long extents do not make lookups elsewhere read the pages that they start in (IR2). */
static void long_extents_are_found(void **unused)
{
    (void)unused;
    struct history h = {calloc(10000, sizeof *h.e), 10000};
    for (size_t i = 0; i < h.count; i++)
        h.e[i] = (struct extent){.volume = 1, .lba = i * 8, .length = 8, .lsn = {i + 1}, .kind = EXTENT_DATA};
    h.e[5].kind = EXTENT_ZERO;
    h.e[5].length = 70000 - 40;
    must_write(h, false, 10);
    struct index *index = must_open(NULL);
    bool right;
    assert_int_equal(lookup(index, h, 1, 69999, 1, 0, UINT64_MAX, &right), 0);
    assert_true(right);
    long before = preads;
    assert_int_equal(lookup(index, h, 1, 75000, 1, 0, UINT64_MAX, &right), 0);
    assert_true(right);
    assert_true(preads - before <= 2 * (long)index->height);
    index_free(index);
    free(h.e);
}

static int stop(void *context, const struct extent *extent, struct error *err)
{
    (void)extent;
    return --*(int *)context ? 0 : error_set(err, -ECANCELED, "enough");
}

static void visit_ends_lookup(void **unused)
{
    (void)unused;
    struct history h = random_flat(500);
    must_write(h, true, 4);
    struct index *index = must_open(NULL);
    struct error err = ERROR_INIT;
    int left = 30;
    assert_int_equal(index_lookup(index, 0, 0, UINT64_MAX, LSN_NONE, LSN_MAX, stop, &left, &err), -ECANCELED);
    assert_int_equal(left, 0);
    index_free(index);
    free(h.e);
}

static void sections_at_odd_offsets(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct history h = random_l0(50, 1000);
    must_write(h, false, INDEX_FANOUT);
    struct index_cache *cache = new_cache(1 << 20);
    struct index *index = must_open(cache);
    bool right;
    for (unsigned s = 0; s < 3; s++) {
        assert_int_equal(index_section_bytes(index, (enum index_section)s), section_bytes[s]);
        for (int i = 0; i < 300; i++) {
            size_t offset = rnd(section_bytes[s] + 1), length = rnd(section_bytes[s] - offset + 1);
            assert_int_equal(read_section(index, s, offset, length, &right), 0);
            assert_true(right);
        }
        char byte;
        assert_int_equal(index_section_pread(index, (enum index_section)s, &byte, 1, section_bytes[s], &err),
                         -EINVAL);
        assert_int_equal(index_section_pread(index, (enum index_section)s, &byte, SIZE_MAX, 1, &err),
                         -EINVAL);
    }
    assert_int_equal(index_section_bytes(index, (enum index_section)3), 0);
    index_free(index);
    index_cache_free(cache);
    free(h.e);
}

/* ---- damage ---- */

static void count_damage(void *context, const char *what)
{
    assert_non_null(strstr(what, path));
    ++*(unsigned *)context;
}

/* Everything that can be read is right or -EBADMSG. Returns how many answers were errors. */
static unsigned read_damaged(struct history h, bool must_be_found)
{
    struct error err = ERROR_INIT;
    struct index *index = NULL;
    bool right;
    unsigned errors = 0, damages = 0;
    int r = index_open(path, NULL, &index, &err);
    if (r < 0) {
        assert_int_equal(r, -EBADMSG);
        assert_non_null(strstr(err.message, path));
        return 1;
    }
    for (size_t v = 0; v < sizeof volumes / sizeof *volumes; v++) {
        r = lookup(index, h, volumes[v], 0, UINT64_MAX, 0, UINT64_MAX, &right);
        assert_true(right && (r == 0 || r == -EBADMSG));
        errors += r < 0;
    }
    r = stream_all(index, h, 0, UINT64_MAX, &right);
    assert_true(right && (r == 0 || r == -EBADMSG));
    errors += r < 0;
    for (unsigned s = 0; s < 3; s++) {
        r = read_section(index, s, 0, section_bytes[s], &right);
        assert_true(right && (r == 0 || r == -EBADMSG));
        errors += r < 0;
    }
    r = index_verify(index, count_damage, &damages, &err);
    assert_int_equal(r, damages ? -EBADMSG : 0);
    assert_true(!errors || damages);
    if (must_be_found)
        assert_true(damages > 0);
    index_free(index);
    return errors + damages;
}

static void every_byte_flipped(void **unused)
{
    (void)unused;
    struct history h = random_l0(14, 300);
    section_bytes[2] = INDEX_PAYLOAD_BYTES + 77;
    must_write(h, false, 4);
    assert_int_equal(read_damaged(h, false), 0);
    struct error err = ERROR_INIT;
    char *content = NULL;
    size_t length;
    assert_int_equal(io_read_file(path, 1 << 20, &content, &length, &err), 0);
    assert_int_equal(length, (1 + 5 + 3) * INDEX_PAGE_BYTES);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    for (size_t i = 0; i < length; i++) {
        char flipped = content[i] ^ (char)(rnd(2) ? 1u << rnd(8) : 1 + rnd(255));
        assert_int_equal(io_pwrite_full(fd, &flipped, 1, i), 0);
        if (read_damaged(h, true) == 0)
            fail_msg("flipped byte %zu was not seen", i);
        assert_int_equal(io_pwrite_full(fd, &content[i], 1, i), 0);
    }
    assert_int_equal(read_damaged(h, false), 0);
    close(fd);
    free(content);
    free(h.e);
}

/* A whole page, checksummed, but of another place or file. */
static void misplaced_pages(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct history h = random_l0(14, 300);
    char *a = NULL, *b = NULL;
    size_t length, other_length;
    must_write(h, false, 4);
    assert_int_equal(io_read_file(path, 1 << 20, &a, &length, &err), 0);
    must_write(h, false, 4);
    assert_int_equal(io_read_file(path, 1 << 20, &b, &other_length, &err), 0);
    assert_int_equal(length, other_length);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    for (size_t at = INDEX_PAGE_BYTES; at < length; at += INDEX_PAGE_BYTES) {
        assert_int_equal(io_pwrite_full(fd, a + at, INDEX_PAGE_BYTES, at),
                         0); /* the same page of the other file */
        assert_true(read_damaged(h, true) > 0);
        for (size_t from = INDEX_PAGE_BYTES; from < length; from += INDEX_PAGE_BYTES) {
            assert_int_equal(io_pwrite_full(fd, b + from, INDEX_PAGE_BYTES, at), 0);
            assert_true((read_damaged(h, from != at) == 0) == (from == at));
        }
        assert_int_equal(io_pwrite_full(fd, b + at, INDEX_PAGE_BYTES, at), 0);
    }
    /* a header of the other file */
    assert_int_equal(io_pwrite_full(fd, a, INDEX_PAGE_BYTES, 0), 0);
    assert_true(read_damaged(h, true) > 0);
    close(fd);
    free(a);
    free(b);
    free(h.e);
}

static void wrong_lengths(void **unused)
{
    (void)unused;
    struct history h = random_l0(14, 300);
    must_write(h, false, 4);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size + 1), 0);
    assert_true(read_damaged(h, true) > 0);
    for (off_t length = st.st_size - 1; length >= 0;
         length -= length % 4096 ? length % 4096 : 1 + (off_t)rnd(4095)) {
        assert_int_equal(truncate(path, length), 0);
        assert_true(read_damaged(h, true) > 0);
        if (length == 0)
            break;
    }
    /* cut while it is open */
    must_write(h, false, 4);
    struct index *index = must_open(NULL);
    assert_int_equal(truncate(path, 3 * INDEX_PAGE_BYTES), 0);
    bool right;
    unsigned damages = 0;
    struct error err = ERROR_INIT;
    assert_int_equal(lookup(index, h, 1, 0, UINT64_MAX, 0, UINT64_MAX, &right), -EBADMSG);
    assert_true(right);
    assert_int_equal(stream_all(index, h, 0, UINT64_MAX, &right), -EBADMSG);
    assert_int_equal(index_verify(index, count_damage, &damages, &err), -EBADMSG);
    assert_int_equal(damages, index->pages - 3);
    index_free(index);
    free(h.e);
}

static void newer_versions_are_refused(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct history h = random_l0(3, 300);
    struct index_header header;
    struct index *index = NULL;
    for (int i = 0; i < 3; i++) {
        must_write(h, false, 4);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_int_equal(io_pread_full(fd, &header, sizeof header, 0), 0);
        header.version = le32_of(i == 0 ? 2 : 1);
        header.incompatible = le32_of(i == 1);
        header.compatible = le32_of(i == 2 ? 1u << 31 : 0);
        header.crc = le32_of(index_header_crc(&header));
        assert_int_equal(io_pwrite_full(fd, &header, sizeof header, 0), 0);
        close(fd);
        assert_int_equal(index_open(path, NULL, &index, &err), i == 2 ? 0 : -ENOTSUP);
    }
    index_free(index);
    free(h.e);
}

static int count_checked(void *context, const struct extent *extent, struct error *err)
{
    (void)err;
    *(unsigned *)context += extent->flags & EXTENT_CHECKED ? 1 : 0;
    return 0;
}

/* A program of before carries the flag along when it merges, and leaves the checksum behind: it does not say that the file has any. */
static void checksums_count_where_the_header_says_so(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct extent one = {.volume = 1, .lba = 8, .length = 8, .lsn = {1}, .position = 16, .kind = EXTENT_DATA, .flags = EXTENT_CHECKED, .crc = 7};
    struct history h = {&one, 1};
    for (uint32_t has = 0; has < 2; has++) {
        struct index_header header;
        struct extent_stream *stream;
        struct extent e;
        unsigned checked = 0;
        must_write(h, true, 4);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_int_equal(io_pread_full(fd, &header, sizeof header, 0), 0);
        assert_int_equal(le32_get(header.compatible), INDEX_HAS_CRCS);
        header.compatible = le32_of(has ? INDEX_HAS_CRCS : 0);
        header.crc = le32_of(index_header_crc(&header));
        assert_int_equal(io_pwrite_full(fd, &header, sizeof header, 0), 0);
        close(fd);
        struct index *index = must_open(NULL);
        assert_int_equal(index_lookup(index, 1, 0, 100, LSN_NONE, LSN_MAX, count_checked, &checked, &err), 0);
        assert_int_equal(checked, has);
        assert_int_equal(index_stream(index, LSN_NONE, LSN_MAX, &stream, &err), 0);
        assert_int_equal(stream->next(stream, &e, &err), 1);
        assert_int_equal(e.flags, has ? EXTENT_CHECKED : 0);
        extent_stream_free(stream);
        index_free(index);
    }
}

/* ---- failures ---- */

static void writing_fails_at_every_call(void **unused)
{
    (void)unused;
    struct history h = random_l0(700, 3000);
    char temporary[128];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    static const int codes[] = {ENOSPC, ENOMEM};
    long n = 1;
    for (;; n++) {
        struct error err = ERROR_INIT;
        unlink(path);
        fail_code = codes[n & 1];
        calls_left = n;
        int r = write_index(path, h, false, 6, &err);
        bool done = calls_left > 0;
        calls_left = -1;
        assert_int_equal(access(temporary, F_OK), -1);
        if (done) {
            assert_int_equal(r, 0);
            break;
        }
        assert_true(r == -fail_code || r == -ENOMEM); /* allocations say ENOMEM whatever errno is */
        assert_int_equal(r, err.code);
        if (access(path, F_OK) ==
            0) /* only the sync of the directory failed: nothing but the whole may be there */
            assert_int_equal(read_damaged(h, false), 0);
    }
    assert_true(n >= 10);
    assert_int_equal(read_damaged(h, false), 0);
    free(h.e);
}

static void reading_fails_at_every_call(void **unused)
{
    (void)unused;
    struct history h = random_l0(60, 3000);
    must_write(h, false, 6);
    fail_code = EIO;
    for (long n = 1;; n++) {
        struct error err = ERROR_INIT;
        struct index_cache *cache = NULL;
        struct index *index = NULL;
        bool right = true;
        calls_left = n;
        int r = index_cache_new(1 << 20, &cache, &err);
        if (r == 0)
            r = index_open(path, cache, &index, &err);
        for (size_t v = 0; r == 0 && v < 5; v++)
            r = lookup(index, h, volumes[v], 0, UINT64_MAX, 0, UINT64_MAX, &right);
        assert_true(right);
        if (r == 0)
            r = stream_all(index, h, 0, UINT64_MAX, &right);
        assert_true(right);
        for (unsigned s = 0; r == 0 && s < 3; s++)
            r = read_section(index, s, 0, section_bytes[s], &right);
        assert_true(right);
        bool before = r < 0;
        if (r == 0)
            r = index_verify(index, NULL, NULL, &err);
        bool done = calls_left > 0;
        calls_left = -1;
        if (before)
            assert_true(r == -EIO || r == -ENOMEM);
        index_free(index);
        index_cache_free(cache);
        if (done) {
            assert_int_equal(r, 0);
            break;
        }
    }
    free(h.e);
}

static void missing_files(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct index *index = NULL;
    assert_int_equal(index_open("/nonexistent/x", NULL, &index, &err), -ENOENT);
    struct index_writer *w = NULL;
    struct index_info info = {.kind = INDEX_L0};
    assert_int_equal(index_writer_new("/nonexistent/x", &info, &w, &err), -ENOENT);
    assert_null(w);
    index_writer_free(NULL);
    index_free(NULL);
    index_cache_free(NULL);
    extent_stream_free(NULL);
}

/* A pin's index goes with the pin, which no loss of power leaves; all others are durable. */
static void only_what_stays_is_synced(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    for (enum index_kind kind = INDEX_L0; kind <= INDEX_TAIL; kind++) {
        struct index_info info = {.kind = kind, .high = {1}};
        struct index_writer *w = NULL;
        struct index *index = NULL;
        syncs = 0;
        assert_int_equal(index_writer_new(path, &info, &w, &err), 0);
        assert_int_equal(index_writer_finish(w, &err), 0);
        index_writer_free(w);
        assert_int_equal(syncs > 0, kind != INDEX_TAIL);
        assert_int_equal(index_open(path, NULL, &index, &err), 0);
        assert_int_equal(index_info(index)->kind, kind);
        index_free(index);
    }
}

/* ---- the cache ---- */

struct reader {
    struct index *index[2];
    struct history h[2];
    uint64_t seed;
    bool right;
};

static void *read_much(void *context)
{
    struct reader *r = context;
    uint64_t z = r->seed;
    for (int i = 0; i < 2000 && r->right; i++) {
        z = z * 6364136223846793005ull + 1442695040888963407ull;
        int which = z >> 40 & 1;
        const struct extent *e = &r->h[which].e[(z >> 20) % r->h[which].count];
        bool right;
        int code = lookup(r->index[which], r->h[which], e->volume, e->lba, e->length, 0, UINT64_MAX, &right);
        r->right = code == 0 && right;
    }
    return NULL;
}

static void threads_share_a_cache(void **unused)
{
    (void)unused;
    for (int round = 0; round < 2; round++) {
        struct index_cache *cache = new_cache(round ? 1 << 20 : 0);
        struct reader readers[4] = {0};
        struct history h[2] = {random_l0(400, 3000), random_flat(400)};
        struct index *index[2];
        for (int i = 0; i < 2; i++) {
            must_write(h[i], i, 4);
            index[i] = must_open(cache); /* stays open while the next takes its name */
        }
        pthread_t threads[4];
        for (int i = 0; i < 4; i++) {
            readers[i] = (struct reader){{index[0], index[1]}, {h[0], h[1]}, rnd(UINT64_MAX), true};
            assert_int_equal(pthread_create(&threads[i], NULL, read_much, &readers[i]), 0);
        }
        for (int i = 0; i < 4; i++) {
            pthread_join(threads[i], NULL);
            assert_true(readers[i].right);
        }
        if (round == 1) { /* all of it fits: nothing is read twice */
            long before = preads;
            bool right;
            for (int i = 0; i < 2; i++) {
                assert_int_equal(lookup(index[i], h[i], 2, 0, UINT64_MAX, 0, UINT64_MAX, &right), 0);
                assert_int_equal(lookup(index[i], h[i], 2, 0, UINT64_MAX, 0, UINT64_MAX, &right), 0);
            }
            assert_true(preads - before < 2 * 180);
            before = preads;
            assert_int_equal(lookup(index[1], h[1], 2, 0, UINT64_MAX, 0, UINT64_MAX, &right), 0);
            assert_int_equal(preads, before);
        }
        for (int i = 0; i < 2; i++) {
            index_free(index[i]);
            free(h[i].e);
        }
        index_cache_free(cache);
    }
}

static void cache_against_model(void **unused)
{
    (void)unused;
    struct index_cache *cache = new_cache(300 * 4096);
    uint64_t instances[3];
    for (int i = 0; i < 3; i++)
        instances[i] = index_cache_new_instance(cache);
    static union index_page page, got;
    unsigned hits = 0;
    for (int i = 0; i < 50000; i++) {
        uint64_t instance = instances[rnd(3)];
        uint32_t number = (uint32_t)(rnd(2) ? rnd(20) : rnd(1000));
        if (index_cache_get(cache, instance, number, &got)) {
            hits++;
            assert_int_equal(got.fences[0].lba.raw, instance);
            assert_int_equal(got.fences[101].page.raw, number);
        } else {
            page.fences[0].lba.raw = instance;
            page.fences[101].page.raw = number;
            index_cache_put(cache, instance, number, &page);
            index_cache_put(cache, instance, number, &page);
            assert_true(index_cache_get(cache, instance, number, &got));
        }
    }
    assert_true(hits > 50000 / 2); /* the 60 popular pages stay */
    index_cache_free(cache);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    seed = check_seed();
    const struct CMUnitTest tests[] = {
        TEST(random_histories),
        TEST(high_trees),
        TEST(flat_lookups_are_cheap),
        TEST(long_extents_are_found),
        TEST(visit_ends_lookup),
        TEST(sections_at_odd_offsets),
        TEST(every_byte_flipped),
        TEST(misplaced_pages),
        TEST(wrong_lengths),
        TEST(newer_versions_are_refused),
        TEST(checksums_count_where_the_header_says_so),
        TEST(writing_fails_at_every_call),
        TEST(reading_fails_at_every_call),
        TEST(missing_files),
        TEST(only_what_stays_is_synced),
        TEST(threads_share_a_cache),
        TEST(cache_against_model),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
