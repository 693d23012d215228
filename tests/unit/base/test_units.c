/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "base/units.h"

static void bytes(void **unused)
{
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {{"0", 0},
                {"512", 512},
                {"8Gi", 8ull << 30},
                {"512Mi", 512ull << 20},
                {"1k", 1000},
                {"1.5Gi", 3ull << 29},
                {"2T", 2000000000000ull},
                {"1Pi", 1ull << 50},
                {"0.5Ki", 512},
                {"18446744073709551615", UINT64_MAX}};
    static const char *const bad[] = {"",   "Gi", "-1",  "1 Gi", "1gi", "1GiB",
                                      "1.", ".5", "1e3", "1Gi1", "0x10"};
    struct error err = ERROR_INIT;
    uint64_t value = 0;
    (void)unused;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        check_ok(units_parse_bytes(good[i].text, &value, &err));
        assert_true(value == good[i].value);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        value = 42;
        check_error(units_parse_bytes(bad[i], &value, &err), -EINVAL, "is not a size");
        assert_int_equal(value, 42);
    }
    check_error(units_parse_bytes("18446744073709551616", &value, &err), -ERANGE, "");
    check_error(units_parse_bytes("16384Pi", &value, &err), -ERANGE, "");
}

static void durations(void **unused)
{
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {{"90s", 90000000000ull},
                {"250ms", 250000000},
                {"1h30m", 5400000000000ull},
                {"2d", 172800000000000ull},
                {"1.5h", 5400000000000ull},
                {"0s", 0},
                {"7us", 7000},
                {"1w", 604800000000000ull}};
    static const char *const bad[] = {"", "90", "s", "-1s", "1 s", "1x", "1h30", "1.s"};
    struct error err = ERROR_INIT;
    uint64_t value = 0;
    (void)unused;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        check_ok(units_parse_duration(good[i].text, &value, &err));
        assert_true(value == good[i].value);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        value = 42;
        check_error(units_parse_duration(bad[i], &value, &err), -EINVAL, "is not a duration");
        assert_int_equal(value, 42);
    }
    check_error(units_parse_duration("99999999w", &value, &err), -ERANGE, "");
    check_error(units_parse_duration("30000w30000w", &value, &err), -ERANGE, "");
}

static void formats(void **unused)
{
    char text[UNITS_TEXT_BYTES];
    (void)unused;
    assert_string_equal(units_format_bytes(512, text), "512 B");
    assert_string_equal(units_format_bytes(8ull << 30, text), "8.0 GiB");
    assert_string_equal(units_format_bytes(UINT64_MAX, text), "16.0 EiB");
    assert_string_equal(units_format_duration(1500000000, text), "1.5 s");
    assert_string_equal(units_format_duration(250000000, text), "250 ms");
    assert_string_equal(units_format_duration(7380000000000ull, text), "2 h 3 min");
    assert_string_equal(units_format_duration(0, text), "0 us");
    assert_string_equal(units_format_exact_duration(30ull * 86400 * 1000000000u, text), "30d");
    assert_string_equal(units_format_exact_duration(36ull * 3600 * 1000000000u, text), "36h");
    assert_string_equal(units_format_exact_duration(1500000000, text), "1500ms");
    assert_string_equal(units_format_exact_duration(1, text), "1ns");
}

static void numbers(void **unused)
{
    struct error err = ERROR_INIT;
    uint64_t value = 0;
    (void)unused;
    check_ok(units_parse_u64("18446744073709551615", UINT64_MAX, &value, &err));
    assert_true(value == UINT64_MAX);
    check_error(units_parse_u64("18446744073709551616", UINT64_MAX, &value, &err), -ERANGE, "too large");
    check_error(units_parse_u64("11", 10, &value, &err), -ERANGE, "at most 10");
    check_error(units_parse_u64("1 ", 10, &value, &err), -EINVAL, "not a number");
    check_error(units_parse_u64("", 10, &value, &err), -EINVAL, "not a number");
    check_error(units_parse_u64("-1", 10, &value, &err), -EINVAL, "not a number");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes),
        cmocka_unit_test(durations),
        cmocka_unit_test(formats),
        cmocka_unit_test(numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
