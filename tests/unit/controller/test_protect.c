/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <string.h>

#include "controller/controller_internal.h"
#include "lib/json.h"

static void names_are_those_that_objects_can_have(void **unused)
{
    (void)unused;
    static const char *const good[] = {"a", "shop", "shop.v2", "a-b.c-d", "0"}, *const bad[] = {"", "Shop", "my app", "a_b", "-a", "a-", "a..b", ".a", "a.", "a.-b", "../a", "é"};
    char longest[255];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(protect_is_name(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (protect_is_name(bad[i]))
            fail_msg("'%s' is taken", bad[i]);
    memset(longest, 'a', sizeof longest);
    longest[254] = '\0';
    assert_false(protect_is_name(longest));
    longest[253] = '\0';
    assert_true(protect_is_name(longest));
}

/* One that comes on top costs none that is there. */
static void what_is_protected_stays_so_when_there_are_too_many(void **unused)
{
    (void)unused;
    size_t left_out;
    _cleanup_json_ json_t *wanted = json_pack("{s:{}, s:{}, s:{}, s:{}}", "new", "a", "newer", "b"),
                          *there = json_pack("[{s:{s:s}}, {s:{s:s}}, {s:{s:s}}]", "metadata", "name", "b", "metadata", "name", "by-hand",
                                             "metadata", "name", "a"),
                          *full = protect_choose(wanted, there, 3, &left_out);
    assert_int_equal(left_out, 2);
    assert_int_equal(json_object_size(full), 2);
    assert_non_null(json_object_get(full, "a"));
    assert_non_null(json_object_get(full, "b"));
    _cleanup_json_ json_t *room = protect_choose(wanted, there, 4, &left_out);
    assert_int_equal(left_out, 1);
    assert_int_equal(json_object_size(room), 3);
    _cleanup_json_ json_t *all = protect_choose(wanted, there, 200, &left_out);
    assert_int_equal(left_out, 0);
    assert_true(json_equal(all, wanted));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_those_that_objects_can_have),
        cmocka_unit_test(what_is_protected_stays_so_when_there_are_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
