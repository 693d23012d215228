/* SPDX-License-Identifier: Apache-2.0 */
/* What each implementation of csi_records_ops has to do; here the directory. */
#include "check.h"

#include <errno.h>
#include <string.h>

#include "csi/records.h"

static const struct csi_volume sample = {.handle = "tm-b",
                                         .name = "größe \"1\"",
                                         .size_bytes = 1ull << 40,
                                         .backing = "host",
                                         .ack_mode = "flush",
                                         .claim_namespace = "shop",
                                         .claim_name = "data",
                                         .node = "n1",
                                         .published_node = "n1",
                                         .stream = "tm-a",
                                         .deleted_ns = 7,
                                         .journal_bytes = 9};

static void what_is_saved_is_loaded(void **unused)
{
    char *directory = check_make_directory();
    struct error err = ERROR_INIT;
    struct csi_volume volume = {0}, *all = NULL;
    size_t count = 9;
    (void)unused;
    check_ok(csi_records_directory.list(directory, &all, &count, &err));
    assert_int_equal(count, 0);
    free(all);
    check_ok(csi_records_directory.save(directory, &sample, &err));
    struct csi_volume other = {.handle = "tm-a", .name = "x", .size_bytes = 1, .backing = "host"};
    check_ok(csi_records_directory.save(directory, &other, &err));
    check_ok(csi_records_directory.load(directory, "tm-b", &volume, &err));
    assert_string_equal(volume.name, sample.name);
    assert_true(volume.size_bytes == sample.size_bytes && volume.deleted_ns == 7 && volume.journal_bytes == 9);
    assert_string_equal(volume.stream, "tm-a");
    check_ok(csi_records_directory.list(directory, &all, &count, &err));
    assert_int_equal(count, 2);
    assert_string_equal(all[0].handle, "tm-a");
    assert_string_equal(all[1].handle, "tm-b");
    free(all);
    for (int i = 0; i < 2; i++)
        check_ok(csi_records_directory.remove(directory, "tm-b", &err));
    check_error(csi_records_directory.load(directory, "tm-b", &volume, &err), -ENOENT, "no volume tm-b");
    check_remove_directory(directory);
}

static void a_handle_does_not_leave_the_directory(void **unused)
{
    static const char *const handles[] = {"", ".", "..", "../x", "a/b", "/etc/passwd"};
    char *directory = check_make_directory();
    struct csi_volume volume;
    (void)unused;
    for (size_t i = 0; i < sizeof handles / sizeof *handles; i++) {
        struct error err = ERROR_INIT;
        check_error(csi_records_directory.load(directory, handles[i], &volume, &err), -ENOENT, "no volume");
    }
    check_remove_directory(directory);
}

static void a_damaged_record_is_told_and_not_taken_for_none(void **unused)
{
    char *directory = check_make_directory(), path[4096];
    struct error err = ERROR_INIT;
    struct csi_volume volume, *all = NULL;
    size_t count;
    (void)unused;
    snprintf(path, sizeof path, "%s/tm-x.json", directory);
    check_ok(io_replace_file(path, "{\"handle\": 1}", 13, 0600, &err));
    check_error(csi_records_directory.load(directory, "tm-x", &volume, &err), -EIO, "restore");
    err = ERROR_INIT;
    check_error(csi_records_directory.list(directory, &all, &count, &err), -EIO, "tm-x");
    check_remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_saved_is_loaded),
        cmocka_unit_test(a_handle_does_not_leave_the_directory),
        cmocka_unit_test(a_damaged_record_is_told_and_not_taken_for_none),
    };
    return cmocka_run_group_tests_name("csi-records", tests, NULL, NULL);
}
