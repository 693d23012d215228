/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "base/uuid.h"

static void round_trip(void **unused)
{
    struct error err = ERROR_INIT;
    struct uuid a, b;
    char text[UUID_TEXT_BYTES];
    (void)unused;
    for (int i = 0; i < 100; i++) {
        check_ok(uuid_random(&a, &err));
        assert_int_equal(strlen(uuid_format(&a, text)), 36);
        assert_int_equal(text[14], '4');
        assert_non_null(strchr("89ab", text[19]));
        check_ok(uuid_parse(text, &b, &err));
        assert_memory_equal(&a, &b, sizeof a);
    }
    check_ok(uuid_boot(&a, &err));
    check_ok(uuid_boot(&b, &err));
    assert_memory_equal(&a, &b, sizeof a);
}

static void refuses(void **unused)
{
    static const char *const bad[] = {"",
                                      "0",
                                      "01234567-89ab-cdef-0123-456789abcde",
                                      "01234567-89ab-cdef-0123-456789abcdef0",
                                      "0123456789abcdef0123456789abcdef",
                                      "g1234567-89ab-cdef-0123-456789abcdef"};
    (void)unused;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = ERROR_INIT;
        struct uuid uuid;
        check_error(uuid_parse(bad[i], &uuid, &err), -EINVAL, "is not a UUID");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip), cmocka_unit_test(refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
