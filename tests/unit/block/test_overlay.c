/* SPDX-License-Identifier: Apache-2.0 */
/* The overlay under several threads (O1, O2, O4), and when its file or lower fails (O3). */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "block/block.h"

#define THREADS 4u
#define GRAINS 24u
#define GRAIN 65536u
#define SIZE ((uint64_t)GRAINS * GRAIN)
#define SECTORS_PER_GRAIN (GRAIN / 512u)

static char *directory;
static char path[512];
static struct block *lower, *overlay;

static int setup(void **unused)
{
    struct error err = ERROR_INIT;
    static unsigned char data[GRAIN];
    (void)unused;
    directory = check_make_directory();
    snprintf(path, sizeof path, "%s/overlay", directory);
    check_ok(block_memory_new(SIZE, &lower, &err));
    memset(data, 0xaa, sizeof data);
    for (unsigned g = 0; g < GRAINS; g++)
        check_ok(block_pwrite(lower, data, GRAIN, (uint64_t)g * GRAIN, 0, &err));
    check_ok(block_overlay_new(lower, path, &overlay, &err));
    return 0;
}
static int teardown(void **unused)
{
    (void)unused;
    block_free(overlay);
    block_free(lower);
    check_remove_directory(directory);
    return 0;
}

/* Thread n owns the sectors s with s % THREADS == n of each grain, so all threads bring up the same grains.
 */
static void *writer(void *context)
{
    unsigned number = (unsigned)(uintptr_t)context;
    struct error err = ERROR_INIT;
    unsigned char data[512];
    for (unsigned g = 0; g < GRAINS; g++)
        for (unsigned s = number; s < SECTORS_PER_GRAIN; s += THREADS * 4) {
            uint64_t at = (uint64_t)g * GRAIN + s * 512u;
            memset(data, (int)(number + 1), sizeof data);
            if (block_pwrite(overlay, data, sizeof data, at, 0, &err) < 0)
                return "write failed";
            memset(data, 0, sizeof data);
            if (block_pread(overlay, data, sizeof data, at, &err) < 0 || data[0] != number + 1 ||
                data[511] != number + 1)
                return "own write not read back";
        }
    return NULL;
}

static void run(void *(*body)(void *), unsigned count)
{
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, body, (void *)(uintptr_t)i), 0);
    for (unsigned i = 0; i < count; i++) {
        void *result;
        pthread_join(threads[i], &result);
        if (result)
            fail_msg("thread %u: %s", i, (const char *)result);
    }
}

static void concurrent_writers_of_a_grain(void **unused)
{
    struct error err = ERROR_INIT;
    static unsigned char data[GRAIN];
    (void)unused;
    run(writer, THREADS);
    for (unsigned g = 0; g < GRAINS; g++) {
        check_ok(block_pread(overlay, data, GRAIN, (uint64_t)g * GRAIN, &err));
        for (unsigned s = 0; s < SECTORS_PER_GRAIN; s++) {
            unsigned expected = s % (THREADS * 4) < THREADS ? s % THREADS + 1 : 0xaa;
            assert_int_equal(data[s * 512], expected);
            assert_int_equal(data[s * 512 + 511], expected);
        }
    }
}

/* One zeroes whole grains, one writes a sector in each: after both, every other sector is zero, never
 * lower's. */
static void *zeroer_or_writer(void *context)
{
    struct error err = ERROR_INIT;
    unsigned char data[512];
    memset(data, 0x55, sizeof data);
    for (unsigned g = 0; g < GRAINS; g++) {
        uint64_t at = (uint64_t)g * GRAIN;
        int r = context ? block_pwrite(overlay, data, sizeof data, at + 4096, 0, &err)
                        : block_zero(overlay, GRAIN, at, 0, &err);
        if (r < 0)
            return "failed";
    }
    return NULL;
}

static void zero_against_copy_up(void **unused)
{
    struct error err = ERROR_INIT;
    static unsigned char data[GRAIN];
    (void)unused;
    run(zeroer_or_writer, 2);
    for (unsigned g = 0; g < GRAINS; g++) {
        check_ok(block_pread(overlay, data, GRAIN, (uint64_t)g * GRAIN, &err));
        for (unsigned i = 0; i < GRAIN; i++)
            if (data[i] != 0 && !(i >= 4096 && i < 4096 + 512 && data[i] == 0x55))
                fail_msg("grain %u byte %u is %#x", g, i, data[i]);
    }
}

static void zeroed_grain_reads_zero(void **unused)
{
    struct error err = ERROR_INIT;
    static unsigned char data[3 * GRAIN];
    struct block_extent extents[8];
    size_t count = 0;
    (void)unused;
    check_ok(block_zero(overlay, GRAIN, GRAIN, 0, &err));
    check_ok(block_pread(overlay, data, 3 * GRAIN, 0, &err));
    for (unsigned i = 0; i < 3 * GRAIN; i++)
        assert_int_equal(data[i], i / GRAIN == 1 ? 0 : 0xaa);
    assert_true(block_overlay_used_bytes(overlay) < GRAIN); /* as a hole */
    check_ok(block_extents(overlay, 3 * GRAIN, 0, extents, 8, &count, &err));
    assert_int_equal(count, 3);
    assert_true(extents[1].hole && extents[1].offset_bytes == GRAIN && extents[1].length_bytes == GRAIN);
}

/* The overlay's disk is full: the write fails, the content stays as it was, and later a zero is a zero (O3).
 */
static void failed_copy_leaves_no_trace(void **unused)
{
    struct error err = ERROR_INIT;
    static unsigned char data[GRAIN];
    struct rlimit old, small;
    (void)unused;
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    small = old;
    small.rlim_cur = 3 * GRAIN + 8192; /* grain 3 is written in part */
    setrlimit(RLIMIT_FSIZE, &small);
    memset(data, 0x11, 512);
    int r = block_pwrite(overlay, data, 512, 3 * GRAIN, 0, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(r, -EFBIG);
    check_ok(block_pread(overlay, data, GRAIN, 3 * GRAIN, &err));
    for (unsigned i = 0; i < GRAIN; i++)
        assert_int_equal(data[i], 0xaa);
    check_ok(block_zero(overlay, GRAIN, 3 * GRAIN, 0, &err));
    check_ok(block_pread(overlay, data, GRAIN, 3 * GRAIN, &err));
    for (unsigned i = 0; i < GRAIN; i++)
        assert_int_equal(data[i], 0);
}

/* A lower that fails to read: an error, nothing is brought up; what is whole does not need it. */
static int fail_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes,
                      struct error *err)
{
    (void)b;
    (void)data;
    return error_errno(err, -EIO, "cannot read %zu at %llu", length_bytes, (unsigned long long)offset_bytes);
}
static void free_nothing(struct block *b)
{
    (void)b;
}

static void failing_lower(void **unused)
{
    static const struct block_ops ops = {.pread = fail_pread, .free = free_nothing};
    struct block bad = {&ops, SIZE};
    struct error err = ERROR_INIT;
    struct block *o = NULL;
    static unsigned char data[GRAIN];
    char other[600];
    (void)unused;
    snprintf(other, sizeof other, "%s.2", path);
    check_ok(block_overlay_new(&bad, other, &o, &err));
    check_error(block_pread(o, data, 512, 0, &err), -EIO, "cannot read");
    check_error(block_pwrite(o, data, 512, 0, 0, &err), -EIO, "cannot read");
    check_error(block_pread(o, data, 512, 0, &err), -EIO, "cannot read");
    memset(data, 1, sizeof data);
    check_ok(block_pwrite(o, data, GRAIN, 0, 0, &err));
    check_ok(block_pread(o, data, GRAIN, 0, &err));
    check_ok(block_zero(o, GRAIN, GRAIN, 0, &err));
    check_ok(block_pread(o, data, GRAIN, GRAIN, &err));
    assert_int_equal(data[0], 0);
    block_free(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(concurrent_writers_of_a_grain, setup, teardown),
        cmocka_unit_test_setup_teardown(zero_against_copy_up, setup, teardown),
        cmocka_unit_test_setup_teardown(zeroed_grain_reads_zero, setup, teardown),
        cmocka_unit_test_setup_teardown(failed_copy_leaves_no_trace, setup, teardown),
        cmocka_unit_test_setup_teardown(failing_lower, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
