/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "base/clock.h"

static uint64_t parse(const char *text)
{
    struct error err = ERROR_INIT;
    uint64_t ns = 0;
    check_ok(clock_parse_rfc3339(text, &ns, &err));
    return ns;
}

static void good_times(void **unused)
{
    (void)unused;
    assert_int_equal(parse("1970-01-01T00:00:00Z"), 0);
    assert_int_equal(parse("2026-11-21T02:04:46.5Z"), 1795226686500000000ull);
    assert_int_equal(parse("2026-11-21t02:04:46.500000001z"), 1795226686500000001ull);
    assert_int_equal(parse("2026-11-21 04:04:46.5+02:00"), 1795226686500000000ull);
    assert_int_equal(parse("2026-11-20T23:34:46.5-02:30"), 1795226686500000000ull);
    assert_int_equal(parse("2024-02-29T00:00:00Z"), 1709164800000000000ull);
    assert_int_equal(parse("2026-01-01T00:00:00.1234567899Z") % NS_PER_SECOND, 123456789);
}

static void bad_times(void **unused)
{
    static const char *const bad[] = {"",
                                      "now",
                                      "2026-11-21",
                                      "2026-11-21T02:04:46",
                                      "2026-11-21T02:04:46.Z",
                                      "2026-11-21T02:04Z",
                                      "2026-13-21T02:04:46Z",
                                      "2026-02-29T02:04:46Z",
                                      "2100-02-29T02:04:46Z",
                                      "2026-00-01T02:04:46Z",
                                      "2026-11-21T24:04:46Z",
                                      "2026-11-21T02:60:46Z",
                                      "2026-11-21T02:04:61Z",
                                      "2026-11-21T02:04:46Zx",
                                      "2026-11-21T02:04:46+0200",
                                      "1969-12-31T23:59:59Z",
                                      "1970-01-01T00:00:00+01:00",
                                      "99999-01-01T00:00:00Z"};
    (void)unused;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = ERROR_INIT;
        uint64_t ns = 42;
        check_error(clock_parse_rfc3339(bad[i], &ns, &err), -EINVAL, "is not a time");
        assert_int_equal(ns, 42);
    }
}

static void round_trip(void **unused)
{
    uint64_t random = check_seed();
    char text[CLOCK_TEXT_BYTES];
    (void)unused;
    assert_string_equal(clock_format_rfc3339(1795226686500000000ull, text), "2026-11-21T02:04:46.500000Z");
    for (int i = 0; i < 10000; i++) {
        uint64_t ns = check_random(&random) % (230ull * 365 * 86400 * 1000) * NS_PER_MS;
        if (ns / NS_PER_SECOND >= 7258118400ull) /* 2200 */
            continue;
        assert_int_equal(parse(clock_format_rfc3339(ns, text)), ns);
    }
}

static void system_clock_moves(void **unused)
{
    const struct clock *clock = clock_system();
    uint64_t boot = clock_boottime_ns(clock);
    (void)unused;
    assert_true(clock_realtime_ns(clock) > 1577836800 * NS_PER_SECOND);
    assert_true(clock_boottime_ns(clock) >= boot);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_times),
        cmocka_unit_test(bad_times),
        cmocka_unit_test(round_trip),
        cmocka_unit_test(system_clock_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
