/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

static void sets(void **unused)
{
    struct error err = ERROR_INIT;
    (void)unused;
    assert_int_equal(error_set(&err, -ENOENT, "no %s", "thing"), -ENOENT);
    assert_int_equal(err.code, -ENOENT);
    assert_string_equal(err.message, "no thing");
    assert_non_null(strstr(err.file, "test_error.c"));
    assert_true(err.line > 0);
    assert_int_equal(error_errno(&err, -ENOSPC, "cannot write %s", "x"), -ENOSPC);
    assert_string_equal(err.message, "cannot write x: No space left on device");
    assert_int_equal(error_errno(&err, -99999, "odd"), -99999);
    assert_string_equal(err.message, "odd: unknown error");
}

static void evaluates_code_once(void **unused)
{
    struct error err = ERROR_INIT;
    int calls = 0;
    (void)unused;
    assert_int_equal(error_set(&err, -(++calls), "x"), -1);
    assert_int_equal(calls, 1);
}

static void context(void **unused)
{
    struct error err = ERROR_INIT;
    (void)unused;
    error_set(&err, -EIO, "inner");
    assert_int_equal(error_context(&err, "outer %d", 7), -EIO);
    assert_string_equal(err.message, "outer 7: inner");
}

/* Never overflows, always ends with NUL, and the newest context stays. */
static void truncation(void **unused)
{
    struct {
        struct error err;
        unsigned char guard[64];
    } room;
    char big[3 * ERROR_MESSAGE_BYTES];
    (void)unused;
    memset(&room, 0xa5, sizeof room);
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = '\0';
    error_set(&room.err, -EIO, "%s", big);
    assert_int_equal(strlen(room.err.message), ERROR_MESSAGE_BYTES - 1);
    error_context(&room.err, "%s", big);
    assert_true(strlen(room.err.message) < ERROR_MESSAGE_BYTES);
    for (int i = 0; i < 100; i++)
        error_context(&room.err, "context %d", i);
    assert_memory_equal(room.err.message, "context 99: context 98: ", 24);
    assert_true(strlen(room.err.message) < ERROR_MESSAGE_BYTES);
    error_errno(&room.err, -EIO, "%s", big);
    assert_int_equal(strlen(room.err.message), ERROR_MESSAGE_BYTES - 1);
    for (size_t i = 0; i < sizeof room.guard; i++)
        assert_int_equal(room.guard[i], 0xa5);
}

/* A message may be built from itself's parts that were copied; and set again. */
static void set_again(void **unused)
{
    struct error err = ERROR_INIT;
    (void)unused;
    error_set(&err, -EIO, "a long first message");
    error_set(&err, -EINVAL, "b");
    assert_string_equal(err.message, "b");
    assert_int_equal(err.code, -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sets),       cmocka_unit_test(evaluates_code_once), cmocka_unit_test(context),
        cmocka_unit_test(truncation), cmocka_unit_test(set_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
