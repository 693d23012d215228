/* SPDX-License-Identifier: Apache-2.0 */
/* Where the kernel has no ublk, that is said with a remedy, and nothing is left behind; where it has, no
 * device is touched. */
#include "check.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "export/ublk.h"

static char directory[64];

static const char *in_directory(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static void without_ublk_the_remedy_is_told(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    if (access(UBLK_CONTROL, F_OK) == 0)
        skip(); /* this kernel has it */
    check_error(ublk_probe(&err), -ENOSYS, "modprobe ublk_drv");
    check_error(ublk_probe(&err), -ENOSYS, "Linux 6.0");
    check_error(ublk_probe(&err), -ENOSYS, "export: fuse");
}

static void an_export_that_cannot_start_leaves_nothing(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct block *b = NULL;
    struct ublk_export *x = NULL;
    if (access(UBLK_CONTROL, F_OK) == 0)
        skip();
    check_ok(block_memory_new(1 << 20, &b, &err));
    struct ublk_export_options options = {
        .block = b, .name = "data", .link_path = in_directory("data"), .recoverable = true};
    check_error(ublk_export_start(&options, &x, &err), -ENOSYS, "cannot export volume data by ublk");
    assert_null(x);
    assert_true(access(in_directory("data"), F_OK) < 0);
    block_free(b);
}

static void links_to_other_things_name_no_device(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    char device[UBLK_DEVICE_BYTES] = "?";
    assert_int_equal(ublk_find(in_directory("none"), device), -ENOENT);
    assert_int_equal(symlink("/dev/null", in_directory("null")), 0);
    assert_int_equal(ublk_find(in_directory("null"), device), -ENOENT);
    assert_int_equal(symlink("/dev/ublkb1048575", in_directory("gone")), 0);
    assert_int_equal(ublk_find(in_directory("gone"), device), -ENOENT);
    assert_string_equal(device, "?");
    check_ok(ublk_remove(in_directory("none"), &err));
    if (access(UBLK_CONTROL, F_OK) == 0)
        return;
    check_ok(ublk_remove(in_directory("gone"), &err)); /* without ublk there is no device: the link goes */
    assert_true(readlink(in_directory("gone"), device, sizeof device) < 0);
}

static int make_directory(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/test_ublk.XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
    (void)state;
    unlink(in_directory("null"));
    unlink(in_directory("gone"));
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(without_ublk_the_remedy_is_told),
                                       cmocka_unit_test(an_export_that_cannot_start_leaves_nothing),
                                       cmocka_unit_test(links_to_other_things_name_no_device)};
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
