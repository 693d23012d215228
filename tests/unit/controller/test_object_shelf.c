/* SPDX-License-Identifier: Apache-2.0 */
/* The shelf: what is put away comes back, nothing of it can be read elsewhere, and a full disk does not keep
 * it from being taken. */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "controller/object_shelf.h"
#include "lib/json.h"

/* Twice what is held in memory. */
enum { OBJECTS = 512, TEXT_BYTES = 2 * SHELF_MEMORY_BYTES / OBJECTS };

static json_t *object_of(unsigned n)
{
    static char text[TEXT_BYTES] = "the-plain-text\0and more";
    return json_pack("{s:s, s:{s:i, s:f, s:s%}}", "kind", "Secret", "data", "n", (int)n, "real", 0.1, "text", text,
                     sizeof text);
}

static void put_and_get(struct object_shelf *shelf)
{
    struct error err = ERROR_INIT;
    char name[32];
    for (unsigned n = 0; n < OBJECTS; n++) {
        _cleanup_json_ json_t *object = object_of(n);
        snprintf(name, sizeof name, "o%u",
                 n % (OBJECTS / 2)); /* the second half in the places of the first */
        check_ok(object_shelf_put(shelf, name, object, &err));
    }
    for (unsigned n = OBJECTS / 2; n < OBJECTS; n++) {
        _cleanup_json_ json_t *object = object_of(n), *back = NULL;
        snprintf(name, sizeof name, "o%u", n - OBJECTS / 2);
        check_ok(object_shelf_get(shelf, name, &back, &err));
        assert_true(json_equal(object, back));
    }
    /* Two change their names, one its for that of the other. */
    _cleanup_json_ json_t *names = json_pack("{s:s, s:s}", "o2", "o3", "o3", "now");
    check_ok(object_shelf_rename(shelf, names));
    for (unsigned n = 2; n <= 3; n++) {
        _cleanup_json_ json_t *object = object_of(n + OBJECTS / 2), *back = NULL;
        check_ok(object_shelf_get(shelf, n == 2 ? "o3" : "now", &back, &err));
        assert_true(json_equal(object, back));
    }
    _cleanup_json_ json_t *none = NULL;
    assert_int_equal(object_shelf_get(shelf, "o2", &none, &err), -ENOENT);
    object_shelf_drop(shelf, "o1");
    assert_int_equal(object_shelf_get(shelf, "o1", &none, &err), -ENOENT);
    assert_int_equal(object_shelf_get(shelf, "never", &none, &err), -ENOENT);
}

#define LAST "o255"
_Static_assert(OBJECTS == 512, "LAST is its last");

static void make_directory(char directory[64])
{
    snprintf(directory, 64, "/tmp/tidemark-test-shelf-XXXXXX");
    assert_non_null(mkdtemp(directory));
}

/* The file of the shelf that this process has open, or -1. */
static int find_file(const char *directory)
{
    char link[64], path[512];
    for (int fd = 3; fd < 256; fd++) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof path - 1);
        if (n > 0 && (path[n] = '\0', strncmp(path, directory, strlen(directory)) == 0))
            return fd;
    }
    return -1;
}

static void test_file(void **state)
{
    struct object_shelf *shelf = NULL;
    struct error err = ERROR_INIT;
    char directory[64];
    (void)state;
    make_directory(directory);
    check_ok(object_shelf_new(directory, &shelf, &err));
    put_and_get(shelf);
    int fd = find_file(directory);
    assert_true(fd >= 0);
    off_t size = lseek(fd, 0, SEEK_END);
    assert_true(size >= OBJECTS / 2 * TEXT_BYTES);
    char *bytes = malloc((size_t)size);
    assert_int_equal(pread(fd, bytes, (size_t)size, 0), size);
    assert_null(memmem(bytes, (size_t)size, "the-plain-text", 14));
    assert_int_equal(rmdir(directory), 0); /* it has no name */
    /* What somebody has changed is not taken for the object. */
    _cleanup_json_ json_t *object = NULL;
    memset(bytes, 0, (size_t)size);
    assert_int_equal(pwrite(fd, bytes, (size_t)size, 0), size);
    check_error(object_shelf_get(shelf, LAST, &object, &err), -EBADMSG, LAST " cannot be read again");
    free(bytes);
    object_shelf_free(shelf);
    assert_int_equal(find_file(directory), -1);
}

static void test_no_room(void **state)
{
    static const char *const none[] = {NULL, "/proc/nowhere"};
    struct object_shelf *shelf = NULL;
    struct error err = ERROR_INIT;
    struct rlimit before, few;
    char directory[64];
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        check_ok(object_shelf_new(none[i], &shelf, &err));
        put_and_get(shelf);
        object_shelf_free(shelf);
    }
    make_directory(directory);
    check_ok(object_shelf_new(directory, &shelf, &err));
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    few = (struct rlimit){.rlim_cur = 4096, .rlim_max = before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &few), 0);
    put_and_get(shelf); /* some in the file, the others in memory */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    object_shelf_free(shelf);
    assert_int_equal(rmdir(directory), 0);
}

/* What the disk has left is the journals'. */
static void test_spared(void **state)
{
    struct object_shelf *shelf = NULL;
    struct error err = ERROR_INIT;
    char directory[64];
    (void)state;
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        skip(); /* needs root */
    make_directory(directory);
    assert_int_equal(mount("none", directory, "tmpfs", 0, "size=256m"), 0);
    check_ok(object_shelf_new(directory, &shelf, &err));
    put_and_get(shelf);
    int fd = find_file(directory);
    assert_true(fd >= 0);
    assert_int_equal(lseek(fd, 0, SEEK_END), 0);
    object_shelf_free(shelf);
    assert_int_equal(umount(directory), 0);
    assert_int_equal(rmdir(directory), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_file), cmocka_unit_test(test_no_room), cmocka_unit_test(test_spared)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
