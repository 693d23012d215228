/* SPDX-License-Identifier: Apache-2.0 */
/* Sectors of a backing that cannot be read, or not be written. The application sees the error of those, and nothing else of it: what is
 * live stays image(latest) (J4), also of grains that a rewind has not copied back (J8), and a comparison, a start and a copy-back go on
 * beside them. */
#include "check.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/io.h"
#include "volume/group_internal.h"

#define GRAIN GROUP_GRAIN_BYTES
#define SIZE_BYTES (64u * GRAIN)
#define ADOPTED_BYTES (40u << 20)
#define WAIT_MS 120000

static struct stand {
    char directory[64], ring[96], path[96];
    struct stat file;
    struct journal *journal;
    struct group *group;
    struct block *block;
    uint64_t quota_bytes; /* of the journal; 0: none */
    struct { /* of the backing */
        _Atomic bool reads, writes;
        uint64_t from, to;
    } bad;
} x;
static struct error err;

/* ---- the backing's calls ---- */

static bool is_bad(int fd, bool fails, uint64_t offset, size_t length)
{
    struct stat st;
    return fails && offset < x.bad.to && offset + length > x.bad.from && fstat(fd, &st) == 0 && st.st_ino == x.file.st_ino &&
           st.st_dev == x.file.st_dev;
}

ssize_t __real_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset)
{
    if (!is_bad(fd, x.bad.reads, (uint64_t)offset, length))
        return __real_pread64(fd, data, length, offset);
    errno = EIO;
    return -1;
}

ssize_t __real_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags)
{
    struct iovec half = *v;
    if (!is_bad(fd, x.bad.writes, (uint64_t)offset, v->iov_len))
        return __real_pwritev64v2(fd, v, count, offset, flags);
    half.iov_len = v->iov_len / 2 / 4096 * 4096; /* some of it is written all the same */
    if (half.iov_len)
        (void)!__real_pwritev64v2(fd, &half, 1, offset, flags);
    errno = EIO;
    return -1;
}

static void bad(bool reads, bool writes, uint64_t from, uint64_t to)
{
    x.bad.from = from;
    x.bad.to = to;
    x.bad.reads = reads;
    x.bad.writes = writes;
}

/* ---- the group ---- */

static void open_journal(void)
{
    struct journal_options o = {.directory = x.directory,
                                .segment_blocks = 1024,
                                .segment_records = 64,
                                .fanout = 2,
                                .ring_path = x.ring,
                                .owner = "test_bad_backing",
                                .quota_bytes = x.quota_bytes};
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
}

static void open_all(void)
{
    open_journal();
    check_ok(group_add_volume(x.group, "v", SIZE_BYTES, x.path, &err));
    x.block = group_volume_block(x.group, 0);
    assert_int_equal(stat(x.path, &x.file), 0);
    check_ok(group_start(x.group, &err));
}

static void kill_all(void)
{
    group_abandon(x.group);
    journal_abandon(x.journal);
}

static void make_place(void)
{
    memset(&x, 0, sizeof x);
    snprintf(x.directory, sizeof x.directory, "/dev/shm/tidemark-bad-XXXXXX");
    assert_non_null(mkdtemp(x.directory));
    snprintf(x.ring, sizeof x.ring, "%s.ring", x.directory);
    snprintf(x.path, sizeof x.path, "%s.img", x.directory);
}

static int set_up(void **state)
{
    (void)state;
    make_place();
    open_all();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    kill_all();
    char seed[112]; /* what is not copied yet of what an adopted volume held */
    check_ok(io_remove_tree(x.directory, &err));
    snprintf(seed, sizeof seed, "%s.seed-1", x.ring);
    unlink(seed);
    unlink(x.ring);
    unlink(x.path);
    return 0;
}

/* ---- content: bytes of one value ---- */

static char buffer[ADOPTED_BYTES] __attribute__((aligned(4096)));

static int try_put(uint64_t offset, size_t length, char value)
{
    memset(buffer, value, length);
    return block_pwrite(x.block, buffer, length, offset, 0, &err);
}

static void put(uint64_t offset, size_t length, char value)
{
    check_ok(try_put(offset, length, value));
}

static void change_backing(uint64_t offset, size_t length, char value)
{
    memset(buffer, value, length);
    check_ok(block_pwrite(x.group->volumes[0].backing, buffer, length, offset, 0, &err));
}

static void check_live(const char *what, uint64_t offset, size_t length, char value)
{
    check_ok(block_pread(x.block, buffer, length, offset, &err));
    for (size_t i = 0; i < length; i++)
        if (buffer[i] != value)
            fail_msg("%s: byte %zu is '%c', not '%c'", what, i, buffer[i], value);
}

static struct lsn latest(void)
{
    struct journal_status s;
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    return s.latest;
}

/* J4, and the newest point is not refused. */
static void check_latest(const char *what)
{
    static char data[SIZE_BYTES] __attribute__((aligned(4096)));
    struct image *image;
    struct lsn lsn = latest();
    struct journal_point found;
    check_ok(journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = lsn}, &found, &err));
    check_ok(journal_pin(x.journal, "engine-look", lsn, true, &err));
    check_ok(image_open(x.directory, "engine-look", &image, &err));
    check_ok(image_read(image, x.group->volumes[0].id, 0, SIZE_BYTES / 512, data, &err));
    image_free(image);
    check_ok(journal_unpin(x.journal, "engine-look", &err));
    check_ok(block_pread(x.block, buffer, SIZE_BYTES, 0, &err));
    for (size_t i = 0; i < SIZE_BYTES; i++)
        if (buffer[i] != data[i])
            fail_msg("%s: J4: byte %zu is '%c', in image(latest) '%c'", what, i, buffer[i], data[i]);
}

static struct group_status status(void)
{
    struct group_status s;
    group_status(x.group, &s);
    return s;
}

/* ---- reading ---- */

static void a_bad_sector_does_not_keep_a_comparison_from_ending(void **state)
{
    (void)state;
    put(0, 2 * GRAIN, 'a');
    check_ok(block_flush(x.block, &err));
    change_backing(0, 4096, 'z'); /* what a loss of power may leave */
    change_backing(8192, 4096, 'z');
    change_backing(GRAIN, 4096, 'z');
    kill_all();
    unlink(x.ring);
    bad(true, false, 4096, 8192);
    open_all();
    put(12288, 4096, 'c'); /* beside the bad one, while it is compared perhaps */
    for (int ms = 0; ms < WAIT_MS && status().resyncing; ms += 10)
        usleep(10000);
    assert_false(status().resyncing);
    assert_int_equal(block_pread(x.block, buffer, 4096, 4096, &err), -EIO);
    bad(false, false, 0, 0);
    check_live("before the bad one", 0, 4096, 'z');
    check_live("behind it", 8192, 4096, 'z');
    check_live("written meanwhile", 12288, 4096, 'c');
    check_live("the next grain", GRAIN, 4096, 'z');
    check_latest("compared");
}

static void a_bad_sector_that_was_being_written_does_not_keep_a_start_from_ending(void **state)
{
    (void)state;
    struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = x.group->volumes[0].id, .length = 16};
    struct journal_ticket ticket;
    put(0, GRAIN, 'a');
    memset(buffer, 'b', 8192);
    record.payload = buffer;
    record.payload_bytes = 8192;
    check_ok(journal_append(x.journal, &record, &ticket, &err));
    check_ok(journal_wait(x.journal, &ticket, &err)); /* and the backing has still what was there before */
    kill_all();
    bad(true, false, 0, 4096);
    open_all();
    check_live("the good one of the two", 4096, 4096, 'a');
    bad(false, false, 0, 0);
    put(0, 4096, 'c'); /* which repairs it */
    check_latest("started");
}

/* ---- writing ---- */

static void begin_rewind(size_t length)
{
    struct group_change change;
    put(0, length, 'a');
    struct lsn before = latest();
    put(0, length, 'b');
    grains_stop(x.group); /* nothing is copied back */
    check_ok(group_rewind(x.group, before, false, &change, &err));
    free(change.volumes);
}

static void check_rewound(const char *what, size_t length)
{
    check_live(what, 0, length, 'a');
    check_latest(what);
    kill_all();
    open_all();
    group_settle(x.group);
    check_live("after a kill", 0, length, 'a');
    check_latest("after a kill");
}

/* The backing has half of it, and below that what was there before the rewind: neither is what the volume holds. */
static void a_write_that_fails_over_what_is_not_copied_back_changes_nothing(void **state)
{
    (void)state;
    begin_rewind(8 * GRAIN);
    bad(false, true, 2 * GRAIN, 3 * GRAIN);
    assert_int_equal(try_put(2 * GRAIN, GRAIN, 'c'), -EIO);
    bad(false, false, 0, 0);
    check_rewound("a write that failed", 8 * GRAIN);
}

static void a_write_that_fails_in_its_second_part_changes_nothing(void **state)
{
    (void)state;
    begin_rewind(40 * GRAIN);
    bad(false, true, 20 * GRAIN, 21 * GRAIN);
    assert_int_equal(try_put(0, 32 * GRAIN, 'c'), -EIO); /* two records */
    bad(false, false, 0, 0);
    check_rewound("a write that failed in part", 40 * GRAIN);
}

static void a_bad_grain_does_not_keep_the_others_from_being_copied_back(void **state)
{
    (void)state;
    put(0, 8 * GRAIN, 'a');
    struct group_change change;
    struct lsn before = latest();
    put(0, 8 * GRAIN, 'b');
    bad(false, true, GRAIN, 2 * GRAIN);
    check_ok(group_rewind(x.group, before, false, &change, &err));
    free(change.volumes);
    for (int ms = 0; ms < WAIT_MS && (status().stale_bytes != GRAIN || !status().copy_trouble[0]); ms += 10)
        usleep(10000);
    assert_int_equal(status().stale_bytes, GRAIN);
    assert_non_null(strstr(status().copy_trouble, "Input/output error"));
    check_live("with a bad grain", 0, 8 * GRAIN, 'a');
    bad(false, false, 0, 0);
    group_settle(x.group);
    assert_int_equal(status().stale_bytes, 0);
    check_latest("copied back");
}

static bool is_blocked(void)
{
    struct journal_status s;
    journal_status(x.journal, &s);
    return s.quota_blocked;
}

/* Nor does it keep what is written from then on, for which the quota would have no room. */
static void a_bad_grain_does_not_keep_history_beyond_the_quota(void **state)
{
    (void)state;
    kill_all();
    x.quota_bytes = 32u << 20; /* 8 segments, and 4 of reserve */
    open_all();
    begin_rewind(8 * GRAIN);
    kill_all();
    bad(false, true, GRAIN, 2 * GRAIN);
    open_all();
    for (unsigned i = 0; i < 80; i++) {
        put(16 * GRAIN, 16 * GRAIN, (char)('c' + i % 8));
        for (int ms = 0; ms < 20000 && is_blocked(); ms += 10) {
            grains_wake(x.group);
            usleep(10000);
        }
        assert_false(is_blocked());
    }
    assert_int_equal(status().unjournaled_writes, 0);
    assert_int_equal(status().stale_bytes, GRAIN);
    check_live("with a bad grain", 0, 8 * GRAIN, 'a');
    check_latest("with a bad grain");
    bad(false, false, 0, 0);
    group_settle(x.group);
    check_rewound("copied back", 8 * GRAIN);
}

/* ---- discarding what is not seeded ---- */

static void a_large_discard_of_an_adopted_volume_lets_others_in_between(void **state)
{
    (void)state;
    make_place();
    FILE *f = fopen(x.path, "we");
    memset(buffer, 'k', sizeof buffer);
    assert_true(f && fwrite(buffer, sizeof buffer, 1, f) == 1 && fclose(f) == 0);
    open_journal();
    group_set_seed_speed(x.group, 1);
    check_ok(group_adopt_volume(x.group, "v", sizeof buffer, x.path, &err));
    x.block = group_volume_block(x.group, 0);
    check_ok(group_start(x.group, &err));
    struct lsn before = journal_next_lsn(x.journal);
    check_ok(block_discard(x.block, 36u << 20, 0, 0, &err));
    assert_int_equal(journal_next_lsn(x.journal).n - before.n, 3); /* of at most 16 MiB */
    check_live("discarded", 0, 36u << 20, '\0');
    check_live("the rest", 36u << 20, 4u << 20, 'k');
}

int main(void)
{
#define SCENE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        SCENE(a_bad_sector_does_not_keep_a_comparison_from_ending),
        SCENE(a_bad_sector_that_was_being_written_does_not_keep_a_start_from_ending),
        SCENE(a_write_that_fails_over_what_is_not_copied_back_changes_nothing),
        SCENE(a_write_that_fails_in_its_second_part_changes_nothing),
        SCENE(a_bad_grain_does_not_keep_the_others_from_being_copied_back),
        SCENE(a_bad_grain_does_not_keep_history_beyond_the_quota),
        cmocka_unit_test_teardown(a_large_discard_of_an_adopted_volume_lets_others_in_between, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
