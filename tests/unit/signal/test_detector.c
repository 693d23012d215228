/* SPDX-License-Identifier: Apache-2.0 */
/* Histories second by second: what must be noticed, when, from where on, and what must not. */
#include <string.h>

#include "check.h"
#include "signal/detector.h"

#define MIB (1ull << 20)
#define CONTENT (100 * MIB)

static struct signal_detector d;
static uint64_t second, lsn;

static void reset(void)
{
    memset(&d, 0, sizeof d);
    second = 1000;
    lsn = 5000;
}

static enum signal_change feed(struct signal_second s)
{
    s.realtime_ns = second++ * 1000000000;
    s.lsn = lsn;
    lsn += 10;
    return signal_detector_add(&d, &s, lsn, second * 1000000000, CONTENT);
}

/* Feeds the same second `count` times; how many passed until the first change (0: none). */
static unsigned repeat(unsigned count, struct signal_second s, enum signal_change expected)
{
    for (unsigned i = 1; i <= count; i++) {
        enum signal_change change = feed(s);
        if (change == SIGNAL_SAME)
            continue;
        assert_int_equal(change, expected);
        return i;
    }
    return 0;
}

static const struct signal_second idle = {0}, text = {.written = 5 * MIB},
                                  in_place = {.written = MIB, .high = MIB, .uniform = MIB, .overwritten = MIB},
                                  photos = {.written = 8 * MIB, .high = 8 * MIB};

static void in_place_is_noticed(void **unused)
{
    (void)unused;
    reset();
    assert_int_equal(repeat(500, text, SIGNAL_BEGAN), 0);
    uint64_t before = lsn;
    unsigned after = repeat(60, in_place, SIGNAL_BEGAN);
    assert_true(after > 0 && after <= 5);
    assert_int_equal(d.begin_lsn, before);
    assert_true(d.end_lsn == lsn && d.stretch_bytes >= MIB);
    assert_int_equal(repeat(20, in_place, SIGNAL_ENDED), 0); /* it goes on */
    uint64_t end = lsn;
    assert_int_equal(repeat(200, idle, SIGNAL_ENDED), SIGNAL_QUIET_S);
    assert_int_equal(d.end_lsn, end);
    assert_int_equal(repeat(500, idle, SIGNAL_BEGAN), 0);
    after = repeat(60, in_place, SIGNAL_BEGAN); /* another one */
    assert_true(after > 0 && after <= 5);
}

/* New files are written; the old ones are found to be free half a minute later. */
static void written_then_freed(void **unused)
{
    (void)unused;
    const struct signal_second fresh = {.written = 2 * MIB, .high = 2 * MIB, .uniform = 2 * MIB}, freed = {.freed = 20 * MIB};
    reset();
    repeat(100, text, SIGNAL_BEGAN);
    uint64_t before = lsn;
    assert_int_equal(repeat(10, fresh, SIGNAL_BEGAN), 0);
    assert_int_equal(repeat(30, idle, SIGNAL_BEGAN), 0);
    assert_int_equal(repeat(1, freed, SIGNAL_BEGAN), 1);
    assert_int_equal(d.begin_lsn, before);
}

static void harmless(void **unused)
{
    (void)unused;
    /* Logs packed and removed: little that is new for much that is lost. */
    const struct signal_second packed = {.written = MIB, .high = MIB, .uniform = MIB, .freed = 12 * MIB};
    /* Documents removed, photos arrive. */
    const struct signal_second swapped = {.written = 8 * MIB, .high = 8 * MIB, .freed = 8 * MIB};
    const struct signal_second packed_kept = {.written = MIB, .high = MIB, .uniform = MIB};
    const struct signal_second all[] = {idle, text, photos, packed, swapped, packed_kept};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        reset();
        assert_int_equal(repeat(1000, all[i], SIGNAL_BEGAN), 0);
    }
}

/* Unevenly spread, but over much structured content: the second rule. */
static void plain_overwriting(void **unused)
{
    (void)unused;
    const struct signal_second over = {.written = MIB, .high = MIB, .overwritten = MIB};
    reset();
    unsigned after = repeat(60, over, SIGNAL_BEGAN);
    assert_true(after >= SIGNAL_PLAIN_FACTOR && after <= 12);
}

/* Other new content shortly before does not belong to it; the verdict on evenness comes late, and counts from where it waited. */
static void begins(void **unused)
{
    (void)unused;
    const struct signal_second some = {.written = MIB, .high = MIB}, late = {.written = MIB, .high = MIB, .uniform = 5 * MIB, .uniform_s = 4};
    reset();
    repeat(10, photos, SIGNAL_BEGAN);
    repeat(SIGNAL_GAP_S, idle, SIGNAL_BEGAN);
    uint64_t before = lsn;
    assert_int_equal(repeat(2, some, SIGNAL_BEGAN), 0); /* leads up to it */
    assert_int_equal(repeat(SIGNAL_GAP_S - 2, idle, SIGNAL_BEGAN), 0);
    assert_int_equal(repeat(4, some, SIGNAL_BEGAN), 0);
    assert_int_equal(repeat(1, late, SIGNAL_BEGAN), 0);
    assert_int_equal(repeat(1, (struct signal_second){.freed = 8 * MIB}, SIGNAL_BEGAN), 1);
    assert_int_equal(d.begin_lsn, before);
}

/* What an application does every day lifts the limit; far more than that is noticed still. */
static void baseline(void **unused)
{
    (void)unused;
    const struct signal_second usual = {.written = 64 << 10, .high = 20 << 10, .uniform = 20 << 10, .overwritten = 20 << 10};
    reset();
    assert_int_equal(repeat(5000, usual, SIGNAL_BEGAN), 0);
    assert_true(d.baseline.windows > 50 && d.baseline.mean > MIB);
    unsigned after = repeat(60, in_place, SIGNAL_BEGAN);
    assert_true(after > 1 && after < 40);
    struct signal_baseline learned = d.baseline;
    repeat(50, in_place, SIGNAL_ENDED); /* an attack teaches nothing */
    assert_memory_equal(&learned, &d.baseline, sizeof learned);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(in_place_is_noticed), cmocka_unit_test(written_then_freed),
                                       cmocka_unit_test(harmless), cmocka_unit_test(plain_overwriting), cmocka_unit_test(begins), cmocka_unit_test(baseline)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
