/* SPDX-License-Identifier: Apache-2.0 */
/* What the watch finds out of content that nobody was seen to write. */
#include "check.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/watch_internal.h"

#define SIZE_BYTES (16u << 20)
#define BAD_FROM (1u << 20)
#define BAD_TO (BAD_FROM + 4096)
#define WAIT_MS 120000

static struct stand {
    char directory[64], ring[96], path[96];
    struct stat file;
    struct engine engine;
    _Atomic bool bad;
} x;
static struct error err;

ssize_t __real_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset)
{
    struct stat st;
    if (!x.bad || offset >= BAD_TO || (uint64_t)offset + length <= BAD_FROM || fstat(fd, &st) < 0 || st.st_ino != x.file.st_ino ||
        st.st_dev != x.file.st_dev)
        return __real_pread64(fd, data, length, offset);
    errno = EIO;
    return -1;
}

static void open_all(void)
{
    struct journal_options o = {.directory = x.directory, .segment_blocks = 8192, .ring_path = x.ring, .owner = "test_watch"};
    check_ok(journal_open(&o, &x.engine.journal, &err));
    check_ok(group_new(x.engine.journal, GROUP_ACK_WRITE, NULL, &x.engine.group, &err));
    check_ok(group_add_volume(x.engine.group, "v", SIZE_BYTES, x.path, &err));
    check_ok(group_start(x.engine.group, &err));
    assert_int_equal(stat(x.path, &x.file), 0);
}

static void close_all(void)
{
    group_free(x.engine.group);
    check_ok(journal_close(x.engine.journal, &err));
}

static void write_all(bool text)
{
    static char data[SIZE_BYTES] __attribute__((aligned(4096)));
    uint64_t number = 1;
    for (size_t i = 0; i < sizeof data; i++) {
        number = number * 6364136223846793005u + 1442695040888963407u;
        data[i] = text ? "what somebody wrote "[i % 20] : (char)(number >> 56);
    }
    check_ok(block_pwrite(group_volume_block(x.engine.group, 0), data, sizeof data, 0, 0, &err));
}

static uint64_t saved_low_bytes(void)
{
    char path[128];
    struct signal *saved;
    struct signal_status s;
    uint64_t known;
    snprintf(path, sizeof path, "%s/signal/volume-1", x.directory);
    check_ok(signal_new(SIZE_BYTES, SIGNAL_TABLES_BYTES, &saved, &err));
    check_ok(signal_load(saved, path, &known, &err));
    assert_int_equal(access(path, F_OK), 0);
    signal_status(saved, &s);
    signal_free(saved);
    return s.low_bytes;
}

/* A sector that cannot be read leaves what lies beyond it to be known; and what was known before a rewind is not kept, however soon the
 * engine ends after it. */
static void content_beyond_a_bad_sector_is_known(void **state)
{
    struct watch *w;
    struct signal_status s;
    (void)state;
    snprintf(x.directory, sizeof x.directory, "/dev/shm/tidemark-watch-XXXXXX");
    assert_non_null(mkdtemp(x.directory));
    snprintf(x.ring, sizeof x.ring, "%s.ring", x.directory);
    snprintf(x.path, sizeof x.path, "%s.img", x.directory);
    open_all();
    write_all(true);
    close_all();
    x.bad = true;
    open_all();
    check_ok(watch_start(&x.engine, &w, &err));
    for (int ms = 0; ms < WAIT_MS; ms += 20) {
        signal_status(w->volumes[0].signal, &s);
        if (s.low_bytes > SIZE_BYTES / 2)
            break;
        usleep(20000);
    }
    assert_true(s.low_bytes > SIZE_BYTES / 2 && s.low_bytes < SIZE_BYTES);
    watch_stop(w);
    x.bad = false;
    assert_true(saved_low_bytes() > SIZE_BYTES / 4);
    write_all(false);
    check_ok(watch_start(&x.engine, &w, &err));
    watch_rewound(w, (struct lsn){1});
    watch_stop(w);
    assert_int_equal(saved_low_bytes(), 0);
    close_all();
    check_ok(io_remove_tree(x.directory, &err));
    unlink(x.ring);
    unlink(x.path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(content_beyond_a_bad_sector_is_known)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
