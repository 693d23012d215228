/* SPDX-License-Identifier: Apache-2.0 */
/* What can be told without mounting: what is mounted, what a directory is good for, who uses a file system.
 */
#include "check.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "control/mounts.h"

static void sources(void **unused)
{
    char source[256];
    (void)unused;
    assert_int_equal(mounts_source("/proc", source, sizeof source), 0);
    assert_string_equal(source, "proc");
    assert_int_equal(mounts_source("/proc/1", source, sizeof source), -ENOENT);
    assert_int_equal(mounts_target("/dev/none-such", source, sizeof source), -ENOENT);
}

static void preparing(void **unused)
{
    struct error err = ERROR_INIT;
    char directory[] = "/tmp/tidemark-mounts-XXXXXX", path[512];
    bool created = false;
    (void)unused;
    assert_non_null(mkdtemp(directory));
    check_ok(mounts_prepare(directory, &created, &err));
    assert_false(created);
    snprintf(path, sizeof path, "%s/a/b", directory);
    check_ok(mounts_prepare(path, &created, &err));
    assert_true(created);
    check_error(mounts_prepare(directory, NULL, &err), -ENOTEMPTY, "it holds a");
    check_error(mounts_prepare("/proc", NULL, &err), -EBUSY, "proc is mounted there");
    check_error(mounts_prepare("/dev/null", NULL, &err), -ENOTDIR, "/dev/null");
    check_ok(mounts_unmount(path, false, &err)); /* nothing is mounted */
    check_ok(io_remove_tree(directory, &err));
}

static void users(void **unused)
{
    char text[MOUNTS_USERS_BYTES];
    (void)unused;
    assert_true(mounts_users("/", text) >= 1); /* this program's executable or libraries, at the least */
    assert_non_null(strstr(text, "pid "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sources), cmocka_unit_test(preparing),
                                       cmocka_unit_test(users)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
