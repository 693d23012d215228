/* SPDX-License-Identifier: Apache-2.0 */
/* Bitmaps of a fabricated ext4, and of random bytes in its place: whoever writes the volume writes these. */
#include <errno.h>
#include <string.h>

#include "base/endian.h"
#include "check.h"
#include "signal/fsmap.h"

#define BLOCKS 70000u /* two groups and a part */
#define PER_GROUP 32768u

static unsigned char image[64][FSMAP_BLOCK_BYTES];
static unsigned char scratch[2 * FSMAP_BLOCK_BYTES];
static uint64_t free_blocks, used_blocks, highest;
static bool failing;
static struct error err;

static int read_block(void *context, uint64_t block, void *data, struct error *e)
{
    (void)context;
    assert_true(block < BLOCKS);
    if (failing)
        return error_set(e, -EAGAIN, "not now");
    memcpy(data, image[block % 64], FSMAP_BLOCK_BYTES);
    return 0;
}

static void visit(void *context, uint64_t block, uint64_t count, bool is_free)
{
    (void)context;
    *(is_free ? &free_blocks : &used_blocks) += count;
    highest = block + count > highest ? block + count : highest;
    assert_true(count && block + count <= BLOCKS);
}

static void put32(unsigned char *p, uint32_t v)
{
    memcpy(p, &(uint32_t){htole32(v)}, 4);
}

static void make(bool wide)
{
    memset(image, 0, sizeof image);
    unsigned char *super = image[0] + 1024;
    put32(super + 0x4, BLOCKS);
    put32(super + 0x18, 2);
    put32(super + 0x20, PER_GROUP);
    super[0x38] = 0x53, super[0x39] = 0xef;
    put32(super + 0x60, wide ? 0x80 : 0);
    super[0xfe] = wide ? 64 : 0;
    for (uint32_t group = 0; group < 3; group++)
        put32(image[1] + group * (wide ? 64 : 32), 10 + group);
    memset(image[10], 0xff, FSMAP_BLOCK_BYTES);
    image[10][5] = 0xf0; /* 4 free */
    image[12][0] = 0x01; /* 1 used */
}

static void bitmaps(void **unused)
{
    (void)unused;
    for (int wide = 0; wide < 2; wide++) {
        struct fsmap m;
        make(wide);
        assert_true(fsmap_open(image[0], BLOCKS, &m));
        assert_int_equal(m.groups, 3);
        assert_false(fsmap_open(image[0], BLOCKS - 1, &m) && m.blocks > BLOCKS - 1);
        assert_true(fsmap_open(image[0], BLOCKS, &m));
        free_blocks = used_blocks = highest = 0;
        for (uint32_t group = 0; group < m.groups; group++)
            check_ok(fsmap_group(&m, group, read_block, visit, NULL, scratch, &err));
        assert_int_equal(used_blocks, PER_GROUP - 4 + 1);
        assert_int_equal(free_blocks, 4 + PER_GROUP + BLOCKS - 2 * PER_GROUP - 1);
        assert_int_equal(highest, BLOCKS);
        image[1][2 * (wide ? 64 : 32) + 0x12] = 2; /* its bitmap is not made yet */
        free_blocks = 0;
        check_ok(fsmap_group(&m, 2, read_block, visit, NULL, scratch, &err));
        assert_int_equal(free_blocks, 0);
        failing = true;
        assert_int_equal(fsmap_group(&m, 0, read_block, visit, NULL, scratch, &err), -EAGAIN);
        failing = false;
    }
}

static void refused(void **unused)
{
    (void)unused;
    static const struct {
        unsigned offset;
        uint32_t value;
    } changes[] = {{0x38, 0}, {0x18, 0}, {0x14, 1}, {0x60, 0x10}, {0x60, 0x8}, {0x64, 0x200}, {0x20, 0}, {0x20, PER_GROUP + 1}, {0x4, 0}, {0x4, BLOCKS + 1}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct fsmap m;
        make(false);
        put32(image[0] + 1024 + changes[i].offset, changes[i].value);
        assert_false(fsmap_open(image[0], BLOCKS, &m));
    }
}

static void garbage(void **unused)
{
    (void)unused;
    uint64_t state = check_seed();
    for (int i = 0; i < 3000; i++) {
        struct fsmap m;
        make(i % 2);
        for (int k = 0; k < 8; k++) {
            image[0][1024 + check_random(&state) % 512] = (unsigned char)check_random(&state);
            image[1][check_random(&state) % 256] = (unsigned char)check_random(&state);
        }
        image[0][1024 + 0x38] = 0x53, image[0][1024 + 0x39] = 0xef;
        if (!fsmap_open(image[0], BLOCKS, &m))
            continue;
        for (uint32_t group = 0; group < m.groups && group < 40; group++)
            check_ok(fsmap_group(&m, group, read_block, visit, NULL, scratch, &err));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(bitmaps), cmocka_unit_test(refused), cmocka_unit_test(garbage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
