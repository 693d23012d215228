/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/io.h"

static char *directory;

static int setup(void **unused)
{
    (void)unused;
    directory = check_make_directory();
    return 0;
}
static int teardown(void **unused)
{
    (void)unused;
    check_remove_directory(directory);
    return 0;
}
static const char *in_directory(const char *name, char path[512])
{
    snprintf(path, 512, "%s/%s", directory, name);
    return path;
}

static const char *marked; /* NULL, or a file: what is removed before it is counted */
static int removed;

int __real_remove(const char *path);
int __wrap_remove(const char *path);
int __wrap_remove(const char *path)
{
    if (marked && strcmp(path, marked) == 0)
        marked = NULL;
    removed += marked != NULL;
    return __real_remove(path);
}

static void replaces_and_reads(void **unused)
{
    struct error err = ERROR_INIT;
    char path[512];
    (void)unused;
    in_directory("file", path);
    for (int i = 0; i < 3; i++) {
        _cleanup_free_ char *text = NULL;
        size_t length = 0;
        char content[64];
        snprintf(content, sizeof content, "content %d", i);
        check_ok(io_replace_file(path, content, strlen(content), 0600, &err));
        check_ok(io_read_file(path, 1000, &text, &length, &err));
        assert_string_equal(text, content);
        assert_int_equal(length, strlen(content));
    }
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    snprintf(path, sizeof path, "%s/file.tmp", directory);
    assert_int_equal(access(path, F_OK), -1);
    check_error(io_replace_file("/nonexistent/x", "", 0, 0600, &err), -ENOENT, "/nonexistent/x");
}

static void read_limits(void **unused)
{
    struct error err = ERROR_INIT;
    char path[512], *big = calloc(1, 100001), *text = NULL;
    size_t length;
    (void)unused;
    memset(big, 'a', 100000);
    check_ok(io_replace_file(in_directory("big", path), big, 100000, 0600, &err));
    check_error(io_read_file(path, 99999, &text, &length, &err), -EFBIG, "larger than 99999");
    assert_null(text);
    check_ok(io_read_file(path, 100000, &text, &length, &err));
    assert_int_equal(length, 100000);
    assert_string_equal(text, big);
    free(text);
    free(big);
    check_error(io_read_file(in_directory("none", path), 10, &text, &length, &err), -ENOENT, path);
}

static void full_transfers(void **unused)
{
    char path[512], back[12] = {0};
    char parts[3][4] = {"abcd", "", "efgh"};
    struct iovec vector[] = {{parts[0], 4}, {parts[1], 0}, {parts[2], 4}};
    (void)unused;
    _cleanup_close_ int fd = open(in_directory("v", path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(io_pwritev_full(fd, vector, 3, 2), 0);
    assert_int_equal(io_pread_full(fd, back, 8, 2), 0);
    assert_memory_equal(back, "abcdefgh", 8);
    assert_int_equal(io_pread_full(fd, back, 9, 2), -ENODATA);
    assert_int_equal(io_pwrite_full(fd, "", 0, 0), 0);
    _cleanup_close_ int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    if (full >= 0)
        assert_int_equal(io_pwrite_full(full, "x", 1, 0), -ENOSPC);
}

static void directories(void **unused)
{
    struct error err = ERROR_INIT;
    char path[512], file[512];
    (void)unused;
    check_ok(io_mkdirs(in_directory("a/b/c", path), 0700, &err));
    check_ok(io_mkdirs(path, 0700, &err));
    check_ok(io_sync_directory(path, &err));
    snprintf(file, sizeof file, "%.400s/f", path);
    check_ok(io_replace_file(file, "x", 1, 0600, &err));
    check_error(io_mkdirs(file, 0700, &err), -ENOTDIR, "something else");
    /* a link is removed, not what it points at */
    char link[512], kept[512];
    check_ok(io_replace_file(in_directory("kept", kept), "x", 1, 0600, &err));
    snprintf(link, sizeof link, "%.400s/link", path);
    assert_int_equal(symlink(kept, link), 0);
    check_ok(io_remove_tree(in_directory("a", path), &err));
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(kept, F_OK), 0);
    check_ok(io_remove_tree(path, &err));
}

/* What a crash leaves of a directory that is not whole says so still. */
static void the_mark_of_a_tree_goes_last(void **unused)
{
    struct error err = ERROR_INIT;
    char path[512], mark[560], other[560], below[600];
    (void)unused;
    in_directory("marked", path);
    snprintf(mark, sizeof mark, "%s/mark", path);
    for (int i = 0; i < 40; i++) { /* in whatever order the directory has them */
        snprintf(other, sizeof other, "%s/%d", path, i);
        check_ok(io_mkdirs(other, 0700, &err));
        snprintf(below, sizeof below, "%s/mark", other);
        check_ok(io_replace_file(below, "x", 1, 0600, &err));
        if (i == 20)
            check_ok(io_replace_file(mark, "x", 1, 0600, &err));
    }
    removed = 0;
    marked = mark;
    check_ok(io_remove_marked_tree(path, "mark", &err));
    marked = NULL;
    assert_int_equal(removed, 80); /* before it */
    assert_int_equal(access(path, F_OK), -1);
    check_ok(io_remove_marked_tree(path, "mark", &err));
}

/* Where others can make files too, what they made is not taken for ours. */
static void what_somebody_else_made_is_not_opened(void **unused)
{
    struct error err = ERROR_INIT;
    char path[512], victim[512], link[512];
    (void)unused;
    check_ok(io_replace_file(in_directory("victim", victim), "x", 1, 0600, &err));
    assert_int_equal(symlink(victim, in_directory("link", link)), 0);
    check_error(io_open_private(link, &err), -ELOOP, "link");
    err = ERROR_INIT;
    for (int again = 0; again < 2; again++) {
        _cleanup_close_ int fd = io_open_private(in_directory("private", path), &err);
        assert_true(fd >= 0);
    }
    assert_int_equal(chmod(path, 0620), 0);
    check_error(io_open_private(path, &err), -EPERM, "mode 620");
    err = ERROR_INIT;
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(unlink(link), 0);
    assert_int_equal(linkat(AT_FDCWD, path, AT_FDCWD, link, 0), 0);
    check_error(io_open_private(path, &err), -EPERM, "2 links");
    err = ERROR_INIT;
    assert_int_equal(unlink(link), 0);
    assert_int_equal(mkfifo(link, 0600), 0);
    check_error(io_open_private(link, &err), -EPERM, "link");
}

static void pages(void **unused)
{
    (void)unused;
    unsigned char *p = io_alloc_pages(100000);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 4096, 0);
    for (size_t i = 0; i < 100000; i++)
        assert_int_equal(p[i], 0);
    io_free_pages(p, 100000);
    io_free_pages(NULL, 1);
}

/* MAP_POPULATE does nothing where pages are locked when they are touched: an engine that was killed while the kernel
 * copied a request to such a page failed that request. */
static void pages_are_there_where_they_are_locked_on_fault(void **unused)
{
    enum { LENGTH = 64 << 10 };
    unsigned char there[LENGTH / 4096];
    (void)unused;
    if (mlockall(MCL_FUTURE | MCL_ONFAULT) < 0)
        skip();
    unsigned char *p = io_alloc_pages(LENGTH);
    assert_int_equal(munlockall(), 0);
    assert_non_null(p);
    assert_int_equal(mincore(p, LENGTH, there), 0);
    for (size_t i = 0; i < sizeof there; i++)
        assert_true(there[i] & 1);
    io_free_pages(p, LENGTH);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(replaces_and_reads, setup, teardown),
        cmocka_unit_test_setup_teardown(read_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(full_transfers, setup, teardown),
        cmocka_unit_test_setup_teardown(directories, setup, teardown),
        cmocka_unit_test_setup_teardown(the_mark_of_a_tree_goes_last, setup, teardown),
        cmocka_unit_test_setup_teardown(what_somebody_else_made_is_not_opened, setup, teardown),
        cmocka_unit_test(pages),
        cmocka_unit_test(pages_are_there_where_they_are_locked_on_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
