/* SPDX-License-Identifier: Apache-2.0 */
/* A fabricated journal (jbd2) of an ext4: transactions are read once, only when they are complete and still there; random bytes
 * in their place do no harm. */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "check.h"
#include "signal/fslog.h"

#define BLOCKS 70000u
#define LOG_AT 100u
#define LOG_BLOCKS 16u
#define KEPT_BLOCKS 128u /* the rest reads as zeroes */

static unsigned char image[KEPT_BLOCKS][FSMAP_BLOCK_BYTES];
static unsigned char scratch[2 * FSMAP_BLOCK_BYTES];
static uint64_t visited_free, visited_used, last_free;
static struct fslog l;
static struct error err;
static uint32_t at, sequence;

static int read_block(void *context, uint64_t block, void *data, struct error *e)
{
    (void)context, (void)e;
    assert_true(block < BLOCKS);
    if (block < KEPT_BLOCKS)
        memcpy(data, image[block], FSMAP_BLOCK_BYTES);
    else
        memset(data, 0, FSMAP_BLOCK_BYTES);
    return 0;
}

static void visit(void *context, uint64_t block, uint64_t count, bool is_free)
{
    (void)context;
    assert_true(count && block + count <= BLOCKS);
    *(is_free ? &visited_free : &visited_used) += count;
    if (is_free)
        last_free = block;
}

static void put_le32(unsigned char *p, uint32_t v)
{
    memcpy(p, &(uint32_t){htole32(v)}, 4);
}
static void put_be32(unsigned char *p, uint32_t v)
{
    memcpy(p, &(uint32_t){htobe32(v)}, 4);
}

static void make_super(uint32_t start, uint32_t first_sequence)
{
    unsigned char *log = image[LOG_AT];
    put_be32(log, 0xc03b3998);
    put_be32(log + 4, 4);
    put_be32(log + 12, 4096);
    put_be32(log + 16, LOG_BLOCKS);
    put_be32(log + 20, 1);
    put_be32(log + 24, first_sequence);
    put_be32(log + 28, start);
    put_be32(log + 40, 0x10 | 0x2 | 0x1); /* checksums of the third kind, 64 bits, revokes */
}

static void make(void)
{
    memset(image, 0, sizeof image);
    unsigned char *super = image[0] + 1024;
    put_le32(super + 0x4, BLOCKS);
    put_le32(super + 0x18, 2);
    put_le32(super + 0x20, 32768);
    super[0x38] = 0x53, super[0x39] = 0xef;
    super[0x5c] = 4;
    super[0xfd] = 1;
    put_le32(super + 0x10c, 0x0001f30a);
    put_le32(super + 0x10c + 12, 0);
    put_le32(super + 0x10c + 16, LOG_BLOCKS);
    put_le32(super + 0x10c + 20, LOG_AT);
    for (uint32_t group = 0; group < 3; group++)
        put_le32(image[1] + group * 32, 10 + group);
    make_super(0, 1);
    at = 1, sequence = 1;
    visited_free = visited_used = 0;
}

static unsigned char *next(void)
{
    unsigned char *block = image[LOG_AT + at];
    at = at + 1 < LOG_BLOCKS ? at + 1 : 1;
    memset(block, 0, FSMAP_BLOCK_BYTES);
    return block;
}

static void header(unsigned char *block, uint32_t type)
{
    put_be32(block, 0xc03b3998);
    put_be32(block + 4, type);
    put_be32(block + 8, sequence);
}

static void commit(void)
{
    header(next(), 2);
    sequence++;
}

/* A descriptor with another block and the bitmap of `group`, of which block `freed` is free and all else used; no commit yet. */
static void transaction(uint32_t group, uint32_t freed)
{
    unsigned char *descriptor = next();
    header(descriptor, 1);
    put_be32(descriptor + 12, 555);
    put_be32(descriptor + 12 + 16 + 16, 10 + group);
    put_be32(descriptor + 12 + 16 + 16 + 4, 0x2 | 0x8);
    next();
    unsigned char *bitmap = next();
    memset(bitmap, 0xff, FSMAP_BLOCK_BYTES);
    bitmap[freed / 8] &= (unsigned char)~(1u << freed % 8);
    header(next(), 5);
}

static void step(void)
{
    visited_free = visited_used = 0;
    check_ok(fslog_step(&l, read_block, visit, NULL, scratch, &err));
}

static void followed(void **unused)
{
    (void)unused;
    make();
    check_ok(fslog_open(&l, image[0], BLOCKS, read_block, NULL, scratch, &err));
    assert_true(l.usable);
    step();
    assert_false(l.following); /* nothing was written yet */
    make_super(1, 1);
    transaction(1, 77);
    step();
    assert_true(l.following && visited_free == 0 && visited_used == 0); /* not complete */
    commit();
    step();
    assert_true(visited_free == 1 && visited_used == 32767 && last_free == 32768 + 77);
    step();
    assert_int_equal(visited_free, 0); /* once */
    for (uint32_t i = 0; i < 20; i++) { /* around the ring; the kernel moves the tail along now and then */
        transaction(i % 2, 100 + i);
        commit();
        step();
        assert_true(visited_free == 1 && last_free == i % 2 * 32768 + 100 + i);
    }
    uint32_t start = at, first = sequence;
    transaction(0, 5);
    commit();
    make_super(start, first);
    step();
    assert_true(visited_free == 1 && last_free == 5);
}

static void overtaken(void **unused)
{
    (void)unused;
    make();
    check_ok(fslog_open(&l, image[0], BLOCKS, read_block, NULL, scratch, &err));
    make_super(1, 1);
    transaction(0, 1);
    commit();
    step();
    assert_int_equal(visited_free, 1);
    for (int i = 0; i < 10; i++) { /* unseen */
        transaction(0, 2);
        commit();
    }
    step();
    assert_int_equal(visited_free, 0); /* what it waits for is no more */
    uint32_t start = at, first = sequence;
    transaction(1, 3);
    commit();
    make_super(start, first);
    step();
    assert_true(visited_free == 1 && last_free == 32768 + 3);
    make_super(0, first + 1); /* unmounted */
    step();
    assert_false(l.following);
}

static void refused(void **unused)
{
    (void)unused;
    static const struct {
        unsigned offset;
        unsigned char value;
    } changes[] = {{0x5c, 0}, {0xfd, 0}, {0x10c, 0}, {0x10e, 0}, {0x10e, 5}, {0x112, 1}, {0x10c + 23, 9}, {0x38, 0}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        make();
        image[0][1024 + changes[i].offset] = changes[i].value;
        check_ok(fslog_open(&l, image[0], BLOCKS, read_block, NULL, scratch, &err));
        assert_false(l.usable);
    }
}

static void garbage(void **unused)
{
    (void)unused;
    uint64_t state = check_seed();
    for (int i = 0; i < 3000; i++) {
        make();
        make_super(1, 1);
        transaction(0, 9);
        commit();
        for (int k = 0; k < 6; k++) {
            image[0][1024 + 0x100 + check_random(&state) % 80] ^= (unsigned char)check_random(&state);
            image[LOG_AT][check_random(&state) % 64] ^= (unsigned char)(check_random(&state) & check_random(&state));
            image[LOG_AT + 1 + check_random(&state) % 5][check_random(&state) % 64] ^= (unsigned char)check_random(&state);
        }
        check_ok(fslog_open(&l, image[0], BLOCKS, read_block, NULL, scratch, &err));
        if (l.usable)
            step();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(followed), cmocka_unit_test(overtaken), cmocka_unit_test(refused),
                                       cmocka_unit_test(garbage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
