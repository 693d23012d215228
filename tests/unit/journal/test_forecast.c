/* SPDX-License-Identifier: Apache-2.0 */
/* What a policy change would do to the history that is there. */
#include "check.h"

#include <string.h>

#include "base/clock.h"
#include "journal/forecast.h"

#define HOUR (3600ull * NS_PER_SECOND)
#define SEGMENT_BYTES (100ull * JOURNAL_BLOCK_BYTES + 4096)

/* By the wall clock alone, as after a boot. */
static struct age_clock at(uint64_t realtime_ns)
{
    return (struct age_clock){.boot = {{9}}, .realtime_ns = realtime_ns, .first_boottime_ns = UINT64_MAX};
}

/* Ten segments of an hour and 7,200 records each; the oldest is ten hours old, the newest ends now. */
static struct segment_info segments[10];
static struct manifest make(uint64_t now_ns)
{
    struct manifest m = {.segments = segments, .segment_count = 10, .base = {5}, .base_realtime_ns = now_ns - 10 * HOUR};
    for (uint32_t i = 0; i < 10; i++)
        segments[i] = (struct segment_info){.number = i + 1, .used_blocks = 100, .index_kib = 4, .records = 7200,
                                            .first = {1 + 7200ull * i}, .last = {7200ull * (i + 1)},
                                            .first_realtime_ns = now_ns - (10 - i) * HOUR, .last_realtime_ns = now_ns - (9 - i) * HOUR};
    return m;
}

static void test_nothing(void **state)
{
    (void)state;
    struct forecast f;
    struct manifest m = make(1000 * HOUR);
    struct age_clock now = at(1000 * HOUR);
    forecast_make(&m, &(struct forecast_limits){.quota_bytes = 10 * SEGMENT_BYTES, .history_ns = 11 * HOUR}, &now, &f);
    assert_int_equal(f.step_count, 0);
    assert_int_equal(f.dropped_bytes, 0);
    assert_true(f.oldest.n == 5 && f.oldest_after.n == 5 && f.oldest_after_ns == f.oldest_ns);
}

static void test_drop(void **state)
{
    (void)state;
    struct forecast f;
    struct manifest m = make(1000 * HOUR);
    struct age_clock now = at(1000 * HOUR);
    forecast_make(&m, &(struct forecast_limits){.history_ns = 7 * HOUR - 1}, &now, &f);
    assert_int_equal(f.dropped_bytes, 3 * SEGMENT_BYTES); /* those that end more than 7 h ago */
    assert_int_equal(f.dropped_points, 3 * 7200);
    assert_true(f.oldest_after.n == 3 * 7200 && f.oldest_after_ns == 993 * HOUR);
    forecast_make(&m, &(struct forecast_limits){.quota_bytes = 4 * SEGMENT_BYTES}, &now, &f);
    assert_int_equal(f.dropped_bytes, 6 * SEGMENT_BYTES);
    forecast_make(&m, &(struct forecast_limits){.quota_bytes = 1}, &now, &f);
    assert_int_equal(f.dropped_bytes, 9 * SEGMENT_BYTES); /* the last one stays */
}

/* The quota counts two segments that are not sealed, and those that are not trimmed as they are allocated. */
static void test_unsealed(void **state)
{
    (void)state;
    struct forecast f;
    struct manifest m = make(1000 * HOUR);
    struct age_clock now = at(1000 * HOUR);
    const uint64_t full = 150 * JOURNAL_BLOCK_BYTES, allocated = full + 4096;
    forecast_make(&m, &(struct forecast_limits){.quota_bytes = 10 * allocated + 2 * full, .segment_bytes = full}, &now, &f);
    assert_int_equal(f.dropped_bytes, 0);
    forecast_make(&m, &(struct forecast_limits){.quota_bytes = 10 * allocated + 2 * full - 1, .segment_bytes = full}, &now, &f);
    assert_int_equal(f.dropped_bytes, SEGMENT_BYTES);
    struct run_info runs[2] = {{.first_segment = 1, .last_segment = 4, .index_kib = 8}, {.first_segment = 5, .last_segment = 8, .index_kib = 8}};
    m.runs = runs;
    m.run_count = 2;
    forecast_make(&m, &(struct forecast_limits){.quota_bytes = 6 * allocated + 8192 + 2 * full, .segment_bytes = full}, &now, &f);
    assert_int_equal(f.dropped_bytes, 4 * SEGMENT_BYTES);
    assert_int_equal(forecast_room_bytes(10 * full, full), 8 * full);
    assert_int_equal(forecast_room_bytes(full, full), full); /* the last sealed one stays */
}

static void test_thin(void **state)
{
    (void)state;
    struct forecast f;
    struct manifest m = make(1000 * HOUR);
    struct age_clock now = at(1000 * HOUR);
    const struct journal_thinning steps[] = {{2 * HOUR, 1}, {6 * HOUR, 60}};
    segments[0].keep_s = 60; /* done already */
    forecast_make(&m, &(struct forecast_limits){.thinning = steps, .thinning_count = 2}, &now, &f);
    assert_int_equal(f.step_count, 2);
    assert_int_equal(f.steps[0].keep_s, 60);
    assert_int_equal(f.steps[0].bytes, 3 * SEGMENT_BYTES);
    assert_int_equal(f.steps[0].points, 3 * 7200);
    assert_int_equal(f.steps[0].points_after, 3 * 61);
    assert_true(f.steps[0].from_ns == 991 * HOUR && f.steps[0].to_ns == 994 * HOUR);
    assert_int_equal(f.steps[1].keep_s, 1);
    assert_int_equal(f.steps[1].bytes, 4 * SEGMENT_BYTES);
    assert_int_equal(f.steps[1].points_after, 4 * 3601);
    assert_int_equal(f.dropped_bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_nothing), cmocka_unit_test(test_drop), cmocka_unit_test(test_unsealed), cmocka_unit_test(test_thin)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
