/* SPDX-License-Identifier: Apache-2.0 */
/* What is noted of a program's ends: how it ended, how often in a row, and whether memory was the reason. */
#include "check.h"

#include <string.h>

#include "base/clock.h"
#include "export/holder_ends.h"

#define KILLED 9              /* as waitpid tells of a signal */
#define STATUS(n) ((n) << 8)  /* and of a status */

static void ends_in_a_row_are_counted_until_it_stays(void **state)
{
    struct holder_ends e = {0};
    struct cgroup_memory none = {.limit_bytes = UINT64_MAX};
    (void)state;
    for (unsigned i = 1; i <= 5; i++) {
        holder_ends_note(&e, KILLED, NS_PER_SECOND, i, &none, &none);
        assert_int_equal(e.in_a_row, i);
        assert_int_equal(e.ends, i);
    }
    assert_int_equal(e.signal_number, KILLED);
    assert_false(e.oom_killed);
    assert_int_equal(e.limit_bytes, 0);
    holder_ends_note(&e, STATUS(3), HOLDER_ENDS_ROW_NS, 6, &none, &none); /* it had stayed */
    assert_int_equal(e.in_a_row, 1);
    assert_int_equal(e.ends, 6);
    assert_int_equal(e.signal_number, 0);
    assert_int_equal(e.status, 3);
}

static void memory_is_the_reason_when_the_group_killed_meanwhile(void **state)
{
    struct holder_ends e = {0};
    struct cgroup_memory before = {.known = true, .limit_bytes = 30 << 20, .oom_kills = 4}, after = before, unknown = {.oom_kills = 9};
    (void)state;
    holder_ends_note(&e, KILLED, 1, 1, &before, &after);
    assert_false(e.oom_killed);
    after.oom_kills++;
    holder_ends_note(&e, KILLED, 1, 1, &before, &after);
    assert_true(e.oom_killed);
    assert_int_equal(e.limit_bytes, 30 << 20);
    holder_ends_note(&e, KILLED, 1, 1, &before, &unknown);
    assert_false(e.oom_killed);
}

static void the_file_has_one_size(void **state)
{
    char text[HOLDER_ENDS_BYTES + 1];
    struct holder_ends e = {.ends = UINT32_MAX, .in_a_row = UINT32_MAX, .signal_number = 64, .status = 255, .realtime_ns = UINT64_MAX,
                            .ran_ms = UINT64_MAX, .oom_killed = true, .limit_bytes = UINT64_MAX};
    (void)state;
    holder_ends_format(&e, text);
    assert_int_equal(strlen(text), HOLDER_ENDS_BYTES);
    assert_non_null(strchr(text, '}'));
    memset(&e, 0, sizeof e);
    holder_ends_format(&e, text);
    assert_int_equal(strlen(text), HOLDER_ENDS_BYTES);
    assert_non_null(strstr(text, "\"in_a_row\": 0"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends_in_a_row_are_counted_until_it_stays),
        cmocka_unit_test(memory_is_the_reason_when_the_group_killed_meanwhile),
        cmocka_unit_test(the_file_has_one_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
