/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "export/fuse_runtime.h"

static int parse(const char *text, struct fuse_runtime_descriptor *descriptors, size_t *ret_count,
                 struct error *err)
{
    static char copy[256];
    snprintf(copy, sizeof copy, "%s", text);
    return fuse_runtime_parse(copy, descriptors, 4, ret_count, err);
}

static void descriptors_are_parsed(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct fuse_runtime_descriptor d[4];
    size_t count = 0;
    char text[64];
    int a = open("/dev/null", O_RDWR), b = open("/dev/null", O_RDWR);
    snprintf(text, sizeof text, "data:%d:%d,wal:%d", a, b, b);
    check_ok(parse(text, d, &count, &err));
    assert_int_equal(count, 2);
    assert_string_equal(d[0].volume, "data");
    assert_int_equal(d[0].fd, a);
    assert_int_equal(d[0].nonblock_fd, b);
    assert_string_equal(d[1].volume, "wal");
    assert_int_equal(d[1].nonblock_fd, -1);
    close(a);
    close(b);
}

static void other_forms_are_refused(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct fuse_runtime_descriptor d[4];
    size_t count = 7;
    check_error(parse("", d, &count, &err), -EINVAL, "TIDEMARK_FUSE");
    check_error(parse("data", d, &count, &err), -EINVAL, "data");
    check_error(parse(":0:1", d, &count, &err), -EINVAL, ":0:1");
    check_error(parse("data:0,", d, &count, &err), -EINVAL, "TIDEMARK_FUSE");
    check_error(parse("data:0,data:1", d, &count, &err), -EINVAL, "twice");
    check_error(parse("data:999", d, &count, &err), -EBADF, "not open");
    check_error(parse("a:0,b:0,c:0,d:0,e:0", d, &count, &err), -E2BIG, "4");
    assert_true(parse("data:x:1", d, &count, &err) < 0);
    assert_true(parse("data:-1", d, &count, &err) < 0);
    assert_true(parse("data:0:1:2", d, &count, &err) < 0);
    assert_true(parse("data:4294967296", d, &count, &err) < 0);
    assert_int_equal(count, 7);
}

static int refuse_start(const char *config_path, struct runtime **ret, struct error *err)
{
    (void)ret;
    return error_set(err, config_path[0] == 'x' ? -ENOMEM : -EINVAL, "refused");
}
static bool is_refusal(const struct error *err)
{
    return err->code == -EINVAL;
}

static void exit_statuses(void **state)
{
    (void)state;
    struct runtime_ops ops = {.start = refuse_start};
    unsetenv(FUSE_RUNTIME_ENVIRONMENT);
    assert_int_equal(fuse_runtime_main(&ops, "config", NULL), 78);
    setenv(FUSE_RUNTIME_ENVIRONMENT, "nonsense", 1);
    assert_int_equal(fuse_runtime_main(&ops, "config", NULL), 78);
    setenv(FUSE_RUNTIME_ENVIRONMENT, "data:0", 1);
    assert_int_equal(fuse_runtime_main(&ops, "config", NULL), 78);
    assert_int_equal(fuse_runtime_main(&ops, "x", NULL), 78);
    ops.refused = is_refusal;
    assert_int_equal(fuse_runtime_main(&ops, "config", NULL), 78);
    assert_int_equal(fuse_runtime_main(&ops, "x", NULL), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(descriptors_are_parsed),
        cmocka_unit_test(other_forms_are_refused),
        cmocka_unit_test(exit_statuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
