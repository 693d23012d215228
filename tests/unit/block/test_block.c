/* SPDX-License-Identifier: Apache-2.0 */
/* Each implementation against a model in an array, by random operations from a printed seed; and the file's
 * edges. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "block/block.h"
#include "block/file_internal.h"

#define ROOM_BYTES (3u << 20)

static char *directory;
static char path[512];

static int setup(void **unused)
{
    (void)unused;
    directory = check_make_directory();
    snprintf(path, sizeof path, "%s/volume", directory);
    return 0;
}
static int teardown(void **unused)
{
    (void)unused;
    check_remove_directory(directory);
    return 0;
}

static void fill(unsigned char *data, size_t length, uint64_t *random)
{
    uint64_t x = check_random(random);
    for (size_t i = 0; i < length; i++)
        data[i] = (unsigned char)((x += 0x9e37) >> 7);
}

/* A range of sectors, from one to about 1.5 MiB, often small and often at a boundary. */
static void random_range(uint64_t size, uint64_t *random, uint64_t *ret_offset, uint64_t *ret_length)
{
    static const uint64_t grids[] = {512, 4096, 65536, 512};
    static const uint64_t most[] = {4096, 65536, 300000, 1600000};
    uint64_t grid = grids[check_random(random) % 4], limit = most[check_random(random) % 4];
    uint64_t offset = check_random(random) % size / grid * grid;
    uint64_t length = (check_random(random) % limit / grid + 1) * grid;
    if (check_random(random) % 20 == 0)
        length = size;
    if (length > size - offset)
        length = size - offset;
    *ret_offset = offset;
    *ret_length = length;
}

static void check_extents(struct block *b, const unsigned char *model, uint64_t offset, uint64_t length)
{
    struct error err = ERROR_INIT;
    struct block_extent extents[7];
    uint64_t at = offset;
    while (at < offset + length) {
        size_t count = 0;
        check_ok(block_extents(b, offset + length - at, at, extents, 7, &count, &err));
        assert_true(count > 0 && count <= 7);
        for (size_t i = 0; i < count; i++) {
            assert_true(extents[i].offset_bytes == at && extents[i].length_bytes > 0);
            assert_int_equal(extents[i].length_bytes % 512, 0);
            at += extents[i].length_bytes;
            assert_true(at <= offset + length);
            for (uint64_t j = extents[i].offset_bytes; extents[i].hole && j < at; j++)
                assert_int_equal(model[j], 0);
        }
    }
}

static void against_model(struct block *b, unsigned char *model, unsigned rounds)
{
    struct error err = ERROR_INIT;
    uint64_t random = check_seed(), size = b->size_bytes;
    _cleanup_free_ unsigned char *room = NULL;
    assert_int_equal(posix_memalign((void **)&room, 4096, ROOM_BYTES + 4096), 0);
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t offset, length;
        random_range(size, &random, &offset, &length);
        unsigned flags = check_random(&random) % 8 == 0 ? BLOCK_FUA : 0;
        /* mostly an aligned buffer, sometimes an odd address */
        unsigned char *data = room + (check_random(&random) % 3 ? 0 : check_random(&random) % 4096);
        switch (check_random(&random) % 8) {
        case 0:
            check_ok(block_discard(b, length, offset, flags, &err));
            memset(model + offset, 0, length);
            break;
        case 1:
            check_ok(block_zero(b, length, offset, flags, &err));
            memset(model + offset, 0, length);
            break;
        case 2:
            check_ok(block_flush(b, &err));
            check_extents(b, model, offset, length);
            break;
        case 3:
        case 4:
            memset(data, 0xee, length);
            check_ok(block_pread(b, data, length, offset, &err));
            if (memcmp(data, model + offset, length) != 0)
                fail_msg("round %u: read of %llu at %llu differs", i, (unsigned long long)length,
                         (unsigned long long)offset);
            break;
        default:
            fill(data, length, &random);
            check_ok(block_pwrite(b, data, length, offset, flags, &err));
            memcpy(model + offset, data, length);
        }
    }
    check_ok(block_pread(b, room, size, 0, &err));
    assert_memory_equal(room, model, size);
}

static void memory_model(void **unused)
{
    struct error err = ERROR_INIT;
    struct block *b = NULL;
    unsigned char *model = calloc(1, ROOM_BYTES);
    (void)unused;
    check_ok(block_memory_new(ROOM_BYTES, &b, &err));
    against_model(b, model, 1500);
    block_free(b);
    free(model);
}

static void file_model_of(uint64_t size, bool pages)
{
    struct error err = ERROR_INIT;
    struct block *b = NULL;
    unsigned char *model = calloc(1, size), *back = malloc(size);
    check_ok(block_file_open(path, size, false, &b, &err));
    assert_true(b->size_bytes == size);
    if (pages && !block_file_force_pages(b))
        print_message("no O_DIRECT here\n");
    against_model(b, model, 800);
    block_free(b);
    check_ok(block_file_open(path, 512, false, &b, &err)); /* keeps its size and content */
    assert_true(b->size_bytes == size);
    check_ok(block_pread(b, back, size, 0, &err));
    assert_memory_equal(back, model, size);
    block_free(b);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, size);
    unlink(path);
    free(model);
    free(back);
}

static void file_model(void **unused)
{
    (void)unused;
    file_model_of(ROOM_BYTES, false);
    file_model_of(ROOM_BYTES - 512, false); /* an end that is not on a page */
    file_model_of(512, false);
    file_model_of(ROOM_BYTES, true);
}

/* On tmpfs, which has no O_DIRECT before Linux 6.6: the fallback. */
static void file_model_on_tmpfs(void **unused)
{
    char old[512];
    (void)unused;
    if (access("/dev/shm", W_OK) < 0)
        skip();
    memcpy(old, path, sizeof old);
    snprintf(path, sizeof path, "/dev/shm/tidemark-test-%d", (int)getpid());
    file_model_of(ROOM_BYTES, false);
    memcpy(path, old, sizeof old);
}

static void overlay_model_of(uint64_t size)
{
    struct error err = ERROR_INIT;
    struct block *lower = NULL, *b = NULL;
    unsigned char *model = malloc(size), *original = malloc(size);
    uint64_t random = check_seed();
    check_ok(block_memory_new(size, &lower, &err));
    fill(model, size, &random);
    memset(model + size / 4 / 512 * 512, 0, size / 8 / 512 * 512);
    memcpy(original, model, size);
    check_ok(block_pwrite(lower, model, size, 0, 0, &err));
    check_ok(block_overlay_new(lower, path, &b, &err));
    assert_true(block_overlay_used_bytes(b) < 65536);
    against_model(b, model, 800);
    assert_true(size < 65536 || block_overlay_used_bytes(b) > 0);
    block_free(b);
    /* lower is as it was, and a new overlay begins anew */
    check_ok(block_pread(lower, model, size, 0, &err));
    assert_memory_equal(model, original, size);
    check_ok(block_overlay_new(lower, path, &b, &err));
    check_ok(block_pread(b, model, size, 0, &err));
    assert_memory_equal(model, original, size);
    block_free(b);
    block_free(lower);
    free(model);
    free(original);
}

static void overlay_model(void **unused)
{
    (void)unused;
    overlay_model_of(ROOM_BYTES);
    overlay_model_of(ROOM_BYTES - 512);
    overlay_model_of(65536 + 1024);
    overlay_model_of(1536);
}

static void ranges(void **unused)
{
    struct error err = ERROR_INIT;
    struct block *b = NULL;
    char data[1024];
    (void)unused;
    check_ok(block_memory_new(4096, &b, &err));
    check_ok(block_check_range(b, 4096, 0, &err));
    check_ok(block_check_range(b, 0, 4096, &err));
    check_error(block_check_range(b, 512, 4096, &err), -ENXIO, "outside");
    check_error(block_check_range(b, 8192, 0, &err), -ENXIO, "outside");
    check_error(block_check_range(b, UINT64_MAX - 511, 512, &err), -ENXIO, "outside");
    check_error(block_check_range(b, 100, 0, &err), -EINVAL, "multiple of 512");
    check_error(block_check_range(b, 512, 100, &err), -EINVAL, "multiple of 512");
    check_error(block_pread(b, data, 512, 4096, &err), -ENXIO, "outside");
    check_error(block_pwrite(b, data, 1024, 3584, 0, &err), -ENXIO, "outside");
    check_error(block_discard(b, 1, 0, 0, &err), -EINVAL, "multiple");
    check_ok(block_pread(b, data, 0, 4096, &err));
    block_free(b);
    block_free(NULL);
    check_error(block_memory_new(0, &b, &err), -EINVAL, "");
    check_error(block_memory_new(100, &b, &err), -EINVAL, "");
}

static void file_refusals(void **unused)
{
    struct error err = ERROR_INIT;
    struct block *b = NULL;
    char data[4096] = {0};
    (void)unused;
    check_error(block_file_open(path, 0, false, &b, &err), -ENOENT, path);
    check_error(block_file_open(path, 4096, true, &b, &err), -ENOENT, path);
    check_error(block_file_open(path, 100, false, &b, &err), -EINVAL, "multiple of 512");
    check_error(block_file_open(directory, 0, true, &b, &err), -EINVAL, "not a file");
    check_error(block_file_open("/dev/null", 0, false, &b, &err), -EINVAL, "not a file");
    check_ok(block_file_open(path, 8192, false, &b, &err));
    assert_true(block_file_fd(b) >= 0);
    block_free(b);
    check_ok(block_file_open(path, 0, true, &b, &err));
    check_error(block_pwrite(b, data, 4096, 0, 0, &err), -EROFS, path);
    check_error(block_discard(b, 4096, 0, 0, &err), -EROFS, path);
    check_ok(block_flush(b, &err));
    check_ok(block_pread(b, data, 4096, 0, &err));
    /* F4: somebody shrank it */
    assert_int_equal(truncate(path, 4096), 0);
    check_error(block_pread(b, data, 4096, 4096, &err), -EIO, "cannot read 4096 bytes at offset 4096");
    block_free(b);
    /* F5: a file that a crash left empty gets its size */
    assert_int_equal(truncate(path, 0), 0);
    check_error(block_file_open(path, 0, false, &b, &err), -EINVAL, "smaller");
    check_ok(block_file_open(path, 4096, false, &b, &err));
    assert_int_equal(b->size_bytes, 4096);
    block_free(b);
}

/* A write beyond RLIMIT_FSIZE stands for a full disk: the error names the file and nothing is lost before it.
 */
static void file_write_fails(void **unused)
{
    struct error err = ERROR_INIT;
    struct block *b = NULL;
    struct rlimit old, small;
    static _Alignas(4096) char data[65536];
    (void)unused;
    check_ok(block_file_open(path, 1 << 20, false, &b, &err));
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    small = old;
    small.rlim_cur = 65536;
    setrlimit(RLIMIT_FSIZE, &small);
    memset(data, 7, sizeof data);
    check_ok(block_pwrite(b, data, sizeof data, 0, 0, &err));
    check_error(block_pwrite(b, data, sizeof data, 65536, 0, &err), -EFBIG, path);
    check_error(block_pwrite(b, data, sizeof data, 32768, BLOCK_FUA, &err), -EFBIG,
                path); /* short, then an error */
    setrlimit(RLIMIT_FSIZE, &old);
    memset(data, 0, sizeof data);
    check_ok(block_pread(b, data, sizeof data, 0, &err));
    for (size_t i = 0; i < sizeof data; i++)
        assert_int_equal(data[i], 7);
    block_free(b);
}

#define WRITERS 4
#define SECTORS 64u

struct writer {
    struct block *b;
    unsigned number;
};

/* Each writer owns every fourth sector, so that all of them share every page. */
static void *write_own_sectors(void *context)
{
    struct writer *w = context;
    struct error err = ERROR_INIT;
    unsigned char data[512];
    for (unsigned round = 1; round <= 30; round++)
        for (unsigned s = w->number; s < SECTORS; s += WRITERS) {
            memset(data, (int)(round + w->number), sizeof data);
            if (block_pwrite(w->b, data, sizeof data, s * 512ull, 0, &err) < 0 ||
                block_pread(w->b, data, sizeof data, s * 512ull, &err) < 0 || data[511] != round + w->number)
                return w;
        }
    return NULL;
}

/* F2 */
static void neighbours_in_one_page(void **unused)
{
    struct error err = ERROR_INIT;
    struct block *b = NULL;
    pthread_t threads[WRITERS];
    struct writer writers[WRITERS];
    unsigned char data[512];
    (void)unused;
    check_ok(block_file_open(path, SECTORS * 512, false, &b, &err));
    if (!block_file_force_pages(b))
        print_message("no O_DIRECT here\n");
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){b, i};
        assert_int_equal(pthread_create(&threads[i], NULL, write_own_sectors, &writers[i]), 0);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    for (unsigned s = 0; s < SECTORS; s++) {
        check_ok(block_pread(b, data, sizeof data, s * 512ull, &err));
        assert_int_equal(data[0], 30 + s % WRITERS);
        assert_int_equal(data[511], 30 + s % WRITERS);
    }
    block_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges),
        cmocka_unit_test(memory_model),
        cmocka_unit_test_setup_teardown(file_model, setup, teardown),
        cmocka_unit_test_setup_teardown(file_model_on_tmpfs, setup, teardown),
        cmocka_unit_test_setup_teardown(overlay_model, setup, teardown),
        cmocka_unit_test_setup_teardown(file_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(file_write_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(neighbours_in_one_page, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
