/* SPDX-License-Identifier: Apache-2.0 */
/* The newest-wins join against an array of sectors (TIDEMARK_SEED replays a run). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "journal/index.h"

static long calls_left = -1;
static size_t largest_room;

static bool fails(void)
{
    if (calls_left < 0 || --calls_left != 0)
        return false;
    calls_left = -1;
    errno = ENOMEM;
    return true;
}
void *__real_calloc(size_t n, size_t m);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_calloc(size_t n, size_t m)
{
    return fails() ? NULL : __real_calloc(n, m);
}
void *__real_reallocarray(void *p, size_t n, size_t m);
void *__wrap_reallocarray(void *p, size_t n, size_t m);
void *__wrap_reallocarray(void *p, size_t n, size_t m)
{
    largest_room = n > largest_room ? n : largest_room;
    return fails() ? NULL : __real_reallocarray(p, n, m);
}

static uint64_t seed, state;

static uint64_t rnd(uint64_t below)
{
    return check_random(&state) % below;
}

static int setup(void **unused)
{
    (void)unused;
    state = seed;
    largest_room = 0;
    return 0;
}

static int by_key(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->volume != y->volume)
        return x->volume < y->volume ? -1 : 1;
    if (x->lba != y->lba)
        return x->lba < y->lba ? -1 : 1;
    return x->lsn.n < y->lsn.n ? -1 : x->lsn.n > y->lsn.n;
}

static struct extent_stream *array_stream(const struct extent *extents, size_t count)
{
    struct error err = ERROR_INIT;
    struct extent_stream *stream = NULL;
    assert_int_equal(extent_stream_array(extents, count, LSN_NONE, LSN_MAX, &stream, &err), 0);
    return stream;
}

static struct extent_stream *must_sweep(struct extent_stream **streams, size_t count)
{
    struct error err = ERROR_INIT;
    struct extent_stream *sweep = NULL;
    assert_int_equal(extent_sweep(streams, count, &sweep, &err), 0);
    return sweep;
}

static uint32_t length_max(uint16_t kind)
{
    return kind == EXTENT_DATA ? EXTENT_DATA_MAX_SECTORS : EXTENT_ZERO_MAX_SECTORS;
}

static bool could_join(const struct extent *a, const struct extent *b)
{
    return a->volume == b->volume && a->lba + a->length == b->lba && a->lsn.n == b->lsn.n &&
           a->kind == b->kind && (a->flags | EXTENT_CHECKED) == (b->flags | EXTENT_CHECKED) && a->segment == b->segment &&
           (a->kind != EXTENT_DATA || a->position + a->length == b->position) &&
           a->length + b->length <= length_max(a->kind);
}

enum { SPACE = 3000, VOLUMES = 3, STREAMS_MAX = 9, PER_STREAM_MAX = 400 };

struct sector {
    uint64_t lsn; /* 0: never written */
    uint32_t segment, position;
    uint16_t kind, flags;
};
static struct sector model[VOLUMES][SPACE], got[VOLUMES][SPACE];
static struct extent inputs[STREAMS_MAX][PER_STREAM_MAX];
static size_t input_counts[STREAMS_MAX];

static void apply(struct sector sectors[SPACE], const struct extent *e)
{
    for (uint32_t i = 0; i < e->length; i++) {
        struct sector *s = &sectors[e->lba + i];
        if (e->lsn.n > s->lsn)
            *s = (struct sector){e->lsn.n, e->segment, e->kind == EXTENT_DATA ? e->position + i : 0, e->kind,
                                 e->flags & (uint16_t)~EXTENT_CHECKED};
    }
}

/* As if it were the checksum of the block that the extent begins in. */
static uint32_t crc_at(const struct extent *e)
{
    return (e->segment + 1) * 1000003u + e->position / JOURNAL_BLOCK_SECTORS;
}
static struct extent with_crc(struct extent e)
{
    if (e.kind == EXTENT_DATA && extent_is_in_one_block(&e)) {
        e.flags |= EXTENT_CHECKED;
        e.crc = crc_at(&e);
    }
    return e;
}

/* Histories of many shapes: short and long, one stream newer than the next or all mixed, rewinds of one LSN.
 */
static size_t random_inputs(void)
{
    size_t streams = 1 + rnd(STREAMS_MAX);
    uint64_t lsn = 0, longest = rnd(2) ? 20 : 1 + rnd(SPACE / 2),
             space = 1 + longest + rnd(SPACE - longest - 1);
    memset(input_counts, 0, sizeof input_counts);
    memset(model, 0, sizeof model);
    bool mixed = rnd(2), sequential = rnd(4) == 0;
    size_t total = rnd(streams * PER_STREAM_MAX);
    for (size_t i = 0; i < total; i++) {
        size_t to = mixed ? rnd(streams) : i * streams / total;
        struct extent e = {.volume = (uint32_t)rnd(VOLUMES),
                           .length = (uint32_t)(1 + rnd(longest)),
                           .lsn = {lsn += 1 + rnd(3)},
                           .segment = (uint32_t)rnd(2),
                           .position = (uint32_t)rnd(SPACE),
                           .kind = (uint16_t)(1 + rnd(3)),
                           .flags = rnd(8) == 0 ? EXTENT_REFERENCE : 0};
        e.lba = rnd(space - e.length + 1);
        if (sequential)
            e.lba = i * 3 % (space - e.length + 1);
        if (e.kind != EXTENT_DATA)
            e.segment = e.position = 0;
        /* neighbours of one LSN, which may be joined again or not */
        unsigned pieces = rnd(4) ? 1 : 1 + (unsigned)rnd(5);
        for (unsigned p = 0; p < pieces && input_counts[to] < PER_STREAM_MAX && e.lba + e.length <= space;
             p++) {
            inputs[to][input_counts[to]++] = rnd(8) ? with_crc(e) : e;
            apply(model[e.volume], &e);
            e.lba += e.length;
            if (e.kind == EXTENT_DATA)
                e.position += e.length + (rnd(4) == 0);
        }
    }
    for (size_t i = 0; i < streams; i++)
        qsort(inputs[i], input_counts[i], sizeof inputs[i][0], by_key);
    return streams;
}

static struct extent_stream *sweep_inputs(size_t count)
{
    struct extent_stream *streams[STREAMS_MAX];
    for (size_t i = 0; i < count; i++)
        streams[i] = array_stream(inputs[i], input_counts[i]);
    return must_sweep(streams, count);
}

static void random_histories(void **unused)
{
    (void)unused;
    for (int round = 0; round < 400; round++) {
        struct error err = ERROR_INIT;
        struct extent_stream *sweep = sweep_inputs(random_inputs());
        struct extent e, last = {0};
        int r;
        memset(got, 0, sizeof got);
        while ((r = sweep->next(sweep, &e, &err)) > 0) {
            assert_true(e.length > 0 && e.length <= length_max(e.kind));
            if (e.flags & EXTENT_CHECKED) /* SW5 */
                assert_true(e.kind == EXTENT_DATA && extent_is_in_one_block(&e) && e.crc == crc_at(&e));
            if (last.length > 0) { /* SW4 */
                assert_true(last.volume < e.volume ||
                            (last.volume == e.volume && last.lba + last.length <= e.lba));
                assert_false(could_join(&last, &e));
            }
            apply(got[e.volume], &e);
            last = e;
        }
        assert_int_equal(r, 0);
        assert_int_equal(sweep->next(sweep, &e, &err), 0);
        assert_memory_equal(got, model, sizeof model);
        extent_stream_free(sweep);
    }
}

static void nothing(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct extent e;
    struct extent_stream *sweep = must_sweep(NULL, 0);
    assert_int_equal(sweep->next(sweep, &e, &err), 0);
    extent_stream_free(sweep);
    struct extent_stream *empty = array_stream(NULL, 0);
    sweep = must_sweep(&empty, 1);
    assert_int_equal(sweep->next(sweep, &e, &err), 0);
    extent_stream_free(sweep);
}

static void array_filters_lsn(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct extent all[5], e;
    for (uint64_t i = 0; i < 5; i++)
        all[i] = (struct extent){.volume = 1, .lba = i, .length = 1, .lsn = {i}, .kind = EXTENT_ZERO};
    struct extent_stream *stream = NULL;
    assert_int_equal(extent_stream_array(all, 5, (struct lsn){1}, (struct lsn){3}, &stream, &err), 0);
    assert_int_equal(stream->next(stream, &e, &err), 1);
    assert_int_equal(e.lba, 2);
    assert_int_equal(stream->next(stream, &e, &err), 1);
    assert_int_equal(e.lba, 3);
    assert_int_equal(stream->next(stream, &e, &err), 0);
    extent_stream_free(stream);
}

/* Pieces are joined up to the kind's limit, not beyond. */
static void joins_within_limits(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct extent in[6] = {
        {.volume = 1,
         .lba = 0,
         .length = 1024,
         .lsn = {5},
         .segment = 2,
         .position = 100,
         .kind = EXTENT_DATA},
        {.volume = 1,
         .lba = 1024,
         .length = 1024,
         .lsn = {5},
         .segment = 2,
         .position = 1124,
         .kind = EXTENT_DATA},
        {.volume = 1,
         .lba = 2048,
         .length = 1,
         .lsn = {5},
         .segment = 2,
         .position = 2148,
         .kind = EXTENT_DATA},
        {.volume = 2, .lba = 0, .length = EXTENT_ZERO_MAX_SECTORS - 1, .lsn = {5}, .kind = EXTENT_ZERO},
        {.volume = 2, .lba = EXTENT_ZERO_MAX_SECTORS - 1, .length = 1, .lsn = {5}, .kind = EXTENT_ZERO},
        {.volume = 2, .lba = EXTENT_ZERO_MAX_SECTORS, .length = 1, .lsn = {5}, .kind = EXTENT_ZERO},
    };
    static const uint32_t lengths[] = {2048, 1, EXTENT_ZERO_MAX_SECTORS, 1};
    struct extent_stream *stream = array_stream(in, 6);
    struct extent_stream *sweep = must_sweep(&stream, 1);
    struct extent e;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(sweep->next(sweep, &e, &err), 1);
        assert_int_equal(e.length, lengths[i]);
    }
    assert_int_equal(sweep->next(sweep, &e, &err), 0);
    extent_stream_free(sweep);
}

/* Up to the last LBA that there is. */
static void end_of_the_address_space(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct extent in[2] = {
        {.volume = 1, .lba = UINT64_MAX - 10, .length = 10, .lsn = {1}, .kind = EXTENT_ZERO},
        {.volume = 1, .lba = UINT64_MAX - 5, .length = 5, .lsn = {2}, .kind = EXTENT_ZERO},
    };
    struct extent_stream *stream = array_stream(in, 2);
    struct extent_stream *sweep = must_sweep(&stream, 1);
    struct extent e;
    assert_int_equal(sweep->next(sweep, &e, &err), 1);
    assert_true(e.lba == UINT64_MAX - 10 && e.length == 5 && e.lsn.n == 1);
    assert_int_equal(sweep->next(sweep, &e, &err), 1);
    assert_true(e.lba == UINT64_MAX - 5 && e.length == 5 && e.lsn.n == 2);
    assert_int_equal(sweep->next(sweep, &e, &err), 0);
    extent_stream_free(sweep);
}

/* SW3: a chain of ever newer extents, each over the end of the last, with older ones that reach a little
 * further: the older ones never surface, and must not pile up. */
static void memory_is_bounded(void **unused)
{
    (void)unused;
    enum { LINKS = 200000 };
    struct extent *in = calloc(2 * LINKS, sizeof *in);
    for (uint64_t i = 0; i < LINKS; i++) {
        in[2 * i] = (struct extent){
            .volume = 1, .lba = i * 10, .length = 15, .lsn = {LINKS + i + 1}, .kind = EXTENT_ZERO};
        in[2 * i + 1] = (struct extent){
            .volume = 1, .lba = i * 10 + 6, .length = 12, .lsn = {i + 1}, .kind = EXTENT_ZERO};
    }
    struct error err = ERROR_INIT;
    struct extent_stream *stream = array_stream(in, 2 * LINKS);
    struct extent_stream *sweep = must_sweep(&stream, 1);
    struct extent e;
    size_t count = 0;
    int r;
    while ((r = sweep->next(sweep, &e, &err)) > 0)
        count++;
    assert_int_equal(r, 0);
    assert_int_equal(count, LINKS + 1); /* the last old one shows at the end */
    assert_true(largest_room <= 128);
    extent_stream_free(sweep);
    free(in);
}

struct failing {
    struct extent_stream stream;
    unsigned left;
};
static unsigned freed;
static int failing_next(struct extent_stream *stream, struct extent *ret, struct error *err)
{
    struct failing *f = (struct failing *)stream;
    if (f->left == 0)
        return error_set(err, -EBADMSG, "broken");
    *ret = (struct extent){
        .volume = 1, .lba = 100 - f->left, .length = 3, .lsn = {f->left}, .kind = EXTENT_ZERO};
    f->left--;
    return 1;
}
static void failing_free(struct extent_stream *stream)
{
    freed++;
    free(stream);
}

static void failing_inputs(void **unused)
{
    (void)unused;
    freed = 0;
    for (unsigned left = 0; left < 50; left++) {
        struct error err = ERROR_INIT;
        struct failing *f = malloc(sizeof *f);
        *f = (struct failing){{failing_next, failing_free}, left};
        struct extent other = {.volume = 2, .lba = 0, .length = 1, .lsn = {1}, .kind = EXTENT_ZERO};
        struct extent_stream *streams[2] = {array_stream(&other, 1), &f->stream};
        struct extent_stream *sweep = must_sweep(streams, 2);
        struct extent e;
        int r;
        while ((r = sweep->next(sweep, &e, &err)) > 0)
            assert_int_equal(e.volume, 1);
        assert_int_equal(r, -EBADMSG);
        assert_string_equal(err.message, "broken");
        assert_int_equal(sweep->next(sweep, &e, &err), -EBADMSG);
        extent_stream_free(sweep);
        assert_int_equal(freed, left + 1);
    }
}

static void every_allocation_fails(void **unused)
{
    (void)unused;
    struct extent *in = calloc(1000, sizeof *in);
    for (uint64_t i = 0; i < 1000; i++) /* all overlap, the older ones longer */
        in[i] = (struct extent){
            .volume = 1, .lba = i, .length = 10000 - (uint32_t)i * 2, .lsn = {i + 1}, .kind = EXTENT_ZERO};
    for (long n = 1;; n++) {
        struct error err = ERROR_INIT;
        struct extent_stream *stream = array_stream(in, 1000), *sweep = NULL;
        struct extent e;
        calls_left = n;
        int r = extent_sweep(&stream, 1, &sweep, &err);
        if (r < 0)
            extent_stream_free(stream); /* stays the caller's */
        else
            while ((r = sweep->next(sweep, &e, &err)) > 0)
                ;
        bool done = calls_left > 0;
        calls_left = -1;
        extent_stream_free(sweep);
        assert_int_equal(r, done ? 0 : -ENOMEM);
        if (done) {
            assert_true(n > 5);
            break;
        }
    }
    free(in);
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
    seed = check_seed();
    const struct CMUnitTest tests[] = {
        TEST(random_histories),         TEST(nothing),
        TEST(array_filters_lsn),        TEST(joins_within_limits),
        TEST(end_of_the_address_space), TEST(memory_is_bounded),
        TEST(failing_inputs),           TEST(every_allocation_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
