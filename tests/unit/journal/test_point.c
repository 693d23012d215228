/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "check.h"
#include "journal/point.h"

static struct point parse(const char *text)
{
    struct error err = ERROR_INIT;
    struct point point;
    memset(&point, 0xee, sizeof point);
    if (point_parse(text, &point, &err) < 0)
        fail_msg("%s", err.message);
    return point;
}

static void good_points(void **unused)
{
    (void)unused;
    assert_int_equal(parse("latest").kind, POINT_LATEST);
    assert_int_equal(parse("-90s").kind, POINT_AGO);
    assert_int_equal(parse("-90s").ago_ns, 90 * NS_PER_SECOND);
    assert_int_equal(parse("-1h30m").ago_ns, 5400 * NS_PER_SECOND);
    assert_int_equal(parse("-0s").ago_ns, 0);
    assert_int_equal(parse("-250ms").ago_ns, 250 * NS_PER_MS);
    assert_int_equal(parse("2026-11-21T02:04:46.5Z").kind, POINT_TIME);
    assert_int_equal(parse("2026-11-21T02:04:46.5Z").realtime_ns, 1795226686500000000ull);
    assert_int_equal(parse("2026-11-21T03:04:46.5+01:00").realtime_ns, 1795226686500000000ull);
    assert_int_equal(parse("lsn:184467").kind, POINT_LSN);
    assert_int_equal(parse("lsn:184467").lsn.n, 184467);
    assert_int_equal(parse("lsn:0").lsn.n, 0);
    assert_true(parse("lsn:18446744073709551615").lsn.n == UINT64_MAX);
    assert_int_equal(parse("tag:before-migration").kind, POINT_TAG);
    assert_string_equal(parse("tag:before-migration").tag, "before-migration");
    assert_string_equal(parse("tag:latest").tag, "latest");
    assert_string_equal(parse("tag:0._-").tag, "0._-");
    /* the longest name there is */
    assert_string_equal(parse("tag:a23456789012345678901234567890123456789012345678901234567890123").tag,
                        "a23456789012345678901234567890123456789012345678901234567890123");
}

static void bad_points(void **unused)
{
    (void)unused;
    static const char *const bad[] = {
        "",
        " ",
        "latest ",
        "Latest",
        "late",
        "-",
        "--",
        "-90",
        "-s",
        "-90x",
        "--90s",
        "-90s ",
        "90s",
        "+90s",
        "-99999999999999999999s",
        "-9999999999999w",
        "lsn:",
        "lsn:x",
        "lsn:-1",
        "lsn:+1",
        "lsn: 1",
        "lsn:1 ",
        "lsn:0x1",
        "lsn:18446744073709551616",
        "LSN:1",
        "tag:",
        "tag:-a",
        "tag:.a",
        "tag:_a",
        "tag:a b",
        "tag:a/b",
        "tag:a\n",
        "tag:\xc3\xa4",
        "tag:a2345678901234567890123456789012345678901234567890123456789012345",
        "tag:a234567890123456789012345678901234567890123456789012345678901234",
        "2026-11-21",
        "2026-11-21T02:04:46",
        "2026-13-21T02:04:46Z",
        "2026-02-29T02:04:46Z",
        "2026-11-21T02:04:46Zx",
        "02:04:46",
        "184467",
        "yesterday",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = ERROR_INIT;
        struct point point, before;
        memset(&point, 0xee, sizeof point);
        before = point;
        if (point_parse(bad[i], &point, &err) != -EINVAL)
            fail_msg("'%s' was taken", bad[i]);
        assert_int_equal(err.code, -EINVAL);
        assert_non_null(strstr(err.message, "is not a point in time"));
        assert_memory_equal(&point, &before, sizeof point); /* untouched */
    }
}

static void messages_help(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct point point;
    assert_int_equal(point_parse("2026-11-21T12:00", &point, &err), -EINVAL);
    assert_non_null(strstr(err.message, "a time has a date, seconds and a zone"));
    assert_int_equal(point_parse("yesterday", &point, &err), -EINVAL);
    assert_non_null(strstr(err.message, "lsn:NUMBER or tag:NAME"));
    assert_int_equal(point_parse("-90", &point, &err), -EINVAL);
    assert_non_null(strstr(err.message, "such as 90s"));
    static char endless[100000];
    memset(endless, 'x', sizeof endless - 1);
    assert_int_equal(point_parse(endless, &point, &err), -EINVAL);
    assert_non_null(strstr(err.message, "expected latest"));
}

static void tags(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    assert_int_equal(point_check_tag("v1.2", &err), 0);
    assert_int_equal(point_check_tag("", &err), -EINVAL);
    assert_int_equal(point_check_tag("..", &err), -EINVAL);
    assert_non_null(strstr(err.message, "1 to 63 letters"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_points),
        cmocka_unit_test(bad_points),
        cmocka_unit_test(messages_help),
        cmocka_unit_test(tags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
