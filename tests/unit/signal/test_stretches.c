/* SPDX-License-Identifier: Apache-2.0 */
/* What was found survives; a flipped bit is never believed (J6); the list stays bounded (J7). */
#include <fcntl.h>
#include <string.h>

#include "check.h"
#include "signal/stretches.h"

static struct error err;
static struct signal_stretches s;
static struct signal_stretch list[SIGNAL_STRETCHES_MAX];

static void kept(void **state)
{
    const char *path = *state;
    size_t damaged;
    signal_stretches_init(&s);
    check_ok(signal_stretches_load(&s, path, 0, &damaged, &err)); /* no file */
    for (uint64_t i = 0; i < 3; i++)
        signal_stretches_put(&s, &(struct signal_stretch){.volume = 1, .begin_lsn = 100 * i, .end_lsn = i == 2 ? 0 : 100 * i + 50, .bytes = i});
    signal_stretches_put(&s, &(struct signal_stretch){.volume = 1, .begin_lsn = 100, .end_lsn = 160, .bytes = 7});
    check_ok(signal_stretches_save(&s, path, &err));
    signal_stretches_release(&s);
    signal_stretches_init(&s);
    check_ok(signal_stretches_load(&s, path, 290, &damaged, &err));
    assert_int_equal(signal_stretches_copy(&s, list), 3);
    assert_int_equal(damaged, 0);
    assert_int_equal(list[1].end_lsn, 160);
    assert_int_equal(list[1].bytes, 7);
    assert_int_equal(list[2].end_lsn, 290); /* was going on when the engine ended */
    assert_true(signal_stretch_has(&list[1], 101) && signal_stretch_has(&list[1], 160));
    assert_true(!signal_stretch_has(&list[1], 100) && !signal_stretch_has(&list[1], 161));
    assert_int_equal(signal_stretches_drop(&s, 160), 2);
    assert_int_equal(signal_stretches_copy(&s, list), 1);
    signal_stretches_release(&s);
}

static void damage(void **state)
{
    const char *path = *state;
    signal_stretches_init(&s);
    size_t bytes = 3 * 64, damaged;
    for (uint64_t i = 1; i <= 3; i++)
        signal_stretches_put(&s, &(struct signal_stretch){.volume = 1, .begin_lsn = 100 * i, .end_lsn = 100 * i + 50});
    for (size_t bit = 0; bit < bytes * 8; bit++) {
        unsigned char byte;
        check_ok(signal_stretches_save(&s, path, &err));
        int fd = open(path, O_RDWR);
        assert_int_equal(pread(fd, &byte, 1, (off_t)(bit / 8)), 1);
        byte ^= (unsigned char)(1u << bit % 8);
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)(bit / 8)), 1);
        close(fd);
        struct signal_stretches again;
        signal_stretches_init(&again);
        check_ok(signal_stretches_load(&again, path, 1000, &damaged, &err));
        assert_int_equal(damaged, 1);
        assert_int_equal(signal_stretches_copy(&again, list), 2);
        signal_stretches_release(&again);
        if (bit % 64 == 63)
            bit += 64 * 3; /* fewer files */
    }
    assert_int_equal(truncate(path, 100), 0);
    struct signal_stretches torn;
    signal_stretches_init(&torn);
    check_ok(signal_stretches_load(&torn, path, 1000, &damaged, &err));
    assert_true(signal_stretches_copy(&torn, list) == 1 && damaged == 1);
    signal_stretches_release(&torn);
    signal_stretches_release(&s);
}

static void bounded(void **state)
{
    (void)state;
    signal_stretches_init(&s);
    for (uint64_t i = 0; i < 3 * SIGNAL_STRETCHES_MAX; i++)
        signal_stretches_put(&s, &(struct signal_stretch){.volume = 1, .begin_lsn = i, .end_lsn = i + 1});
    assert_int_equal(signal_stretches_copy(&s, list), SIGNAL_STRETCHES_MAX);
    assert_int_equal(list[SIGNAL_STRETCHES_MAX - 1].begin_lsn, 3 * SIGNAL_STRETCHES_MAX - 1);
    signal_stretches_put(&s, &(struct signal_stretch){.volume = 2, .begin_lsn = 9999});
    signal_stretches_end(&s, 10500, 5);
    signal_stretches_copy(&s, list);
    assert_int_equal(list[SIGNAL_STRETCHES_MAX - 1].end_lsn, 10500);
    signal_stretches_release(&s);
}

int main(void)
{
    char *directory = check_make_directory(), path[4096];
    snprintf(path, sizeof path, "%s/stretches", directory);
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(kept, path), cmocka_unit_test_prestate(damage, path), cmocka_unit_test(bounded)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    check_remove_directory(directory);
    return failed;
}
