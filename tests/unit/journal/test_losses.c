/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "journal/losses.h"

static struct error err;
static char *directory;

struct seen {
    size_t count;
    struct loss last;
    char what[200];
};

static void see(void *context, const struct loss *loss)
{
    struct seen *s = context;
    s->count++;
    s->last = *loss;
    snprintf(s->what, sizeof s->what, "%s", loss->what);
}

static struct seen all(void)
{
    struct seen s = {0};
    check_ok(losses_visit(directory, see, &s, &err));
    return s;
}

static void add(uint64_t low, uint64_t high, uint64_t base)
{
    struct loss loss = {{low}, {high}, (uint32_t)low / 10, 1000 + low, "frame header at block 7: no intact frame header"};
    check_ok(losses_add(directory, &loss, (struct lsn){base}, &err));
}

static void kept_and_forgotten(void **unused)
{
    (void)unused;
    assert_int_equal(all().count, 0);
    add(10, 20, 0);
    add(10, 30, 0); /* found again by an opening after one that was cut short */
    struct seen s = all();
    assert_int_equal(s.count, 1);
    assert_true(s.last.low.n == 10 && s.last.high.n == 20 && s.last.segment == 1 && s.last.found_realtime_ns == 1010);
    assert_string_equal(s.what, "frame header at block 7: no intact frame header");
    add(40, 50, 20); /* the first is dropped history by now */
    s = all();
    assert_true(s.count == 1 && s.last.low.n == 40);
    for (uint64_t i = 0; i < LOSSES_MAX + 5; i++)
        add(100 + 2 * i, 101 + 2 * i, 20);
    s = all();
    assert_true(s.count == LOSSES_MAX && s.last.low.n == 100 + 2 * (LOSSES_MAX + 4));
}

static void damaged(void **unused)
{
    char path[256];
    struct stat st;
    struct seen s = {0};
    (void)unused;
    snprintf(path, sizeof path, "%.200s/" LOSSES_FILE, directory);
    unlink(path);
    add(10, 20, 0);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    for (off_t at = 0; at < st.st_size; at++) {
        char byte;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        if (losses_visit(directory, see, &s, &err) != -EBADMSG || !strstr(err.message, LOSSES_FILE))
            fail_msg("a flipped bit at %lld is not found", (long long)at);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    assert_int_equal(s.count, 0);
    assert_int_equal(ftruncate(fd, st.st_size / 2), 0);
    close(fd);
    add(40, 50, 5); /* a new list, which says that there was another */
    s = all();
    assert_true(s.count == 2 && s.last.low.n == 40);
}

static int make(void **unused)
{
    (void)unused;
    directory = check_make_directory();
    return directory ? 0 : -1;
}
static int clean(void **unused)
{
    (void)unused;
    check_remove_directory(directory);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kept_and_forgotten), cmocka_unit_test(damaged)};
    return cmocka_run_group_tests(tests, make, clean);
}
