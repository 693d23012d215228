/* SPDX-License-Identifier: Apache-2.0 */
/* J7, J8: a rewind takes no more of the disks than its plan says, one that does not fit is refused, and one whose copying back meets
 * a full disk all the same goes on when there is room, also after a kill; what is live is image(latest) all the time. */
#include "check.h"

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "journal/journal_internal.h"
#include "volume/group_internal.h"

#define GRAINS 64u
#define GRAIN GROUP_GRAIN_BYTES
#define SIZE_BYTES (GRAINS * GRAIN)
#define LIMIT_BYTES (SIZE_BYTES / 2)

static struct stand {
    char directory[64], ring[96], path[96];
    struct journal *journal;
    struct group *group;
    struct block *block;
} x;
static struct error err;
static char model[SIZE_BYTES], then[SIZE_BYTES], data[SIZE_BYTES] __attribute__((aligned(4096)));

static void open_all(void)
{
    struct journal_options o = {.directory = x.directory,
                                .segment_blocks = 256, /* 1 MiB */
                                .segment_records = 64,
                                .fanout = 2,
                                .ring_path = x.ring,
                                .owner = "test_rewind_space"};
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
    check_ok(group_add_volume(x.group, "v", SIZE_BYTES, x.path, &err));
    x.block = group_volume_block(x.group, 0);
    check_ok(group_start(x.group, &err));
}

static void kill_all(void)
{
    group_abandon(x.group);
    journal_abandon(x.journal);
}

static int set_up(void **state)
{
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    memset(model, 0, sizeof model);
    snprintf(x.directory, sizeof x.directory, "/dev/shm/tidemark-space-XXXXXX");
    assert_non_null(mkdtemp(x.directory));
    snprintf(x.ring, sizeof x.ring, "%s.ring", x.directory);
    snprintf(x.path, sizeof x.path, "%s.img", x.directory);
    open_all();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    kill_all();
    check_ok(io_remove_tree(x.directory, &err));
    unlink(x.ring);
    unlink(x.path);
    return 0;
}

static void put(uint64_t offset, size_t length, char value)
{
    memset(data, value, length);
    memset(model + offset, value, length);
    if (value)
        check_ok(block_pwrite(x.block, data, length, offset, 0, &err));
    else
        check_ok(block_discard(x.block, length, offset, 0, &err));
}

static void check_live(const char *what, const char *expected)
{
    check_ok(block_pread(x.block, data, SIZE_BYTES, 0, &err));
    for (size_t i = 0; i < SIZE_BYTES; i++)
        if (data[i] != expected[i])
            fail_msg("%s: byte %zu is %d, not %d", what, i, data[i], expected[i]);
}

static struct lsn latest(void)
{
    struct journal_status s;
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    return s.latest;
}

static uint64_t counted;
static int count_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)path, (void)ftw;
    counted += type == FTW_F ? (uint64_t)st->st_blocks * 512 : 0;
    return 0;
}
/* With the segment that is always ready, which is made in the background. */
static uint64_t journal_disk_bytes(void)
{
    pthread_mutex_lock(&x.journal->mutex);
    while (x.journal->ready_fd < 0 || x.journal->sealing)
        pthread_cond_wait(&x.journal->sealed, &x.journal->mutex);
    pthread_mutex_unlock(&x.journal->mutex);
    counted = 0;
    nftw(x.directory, count_file, 16, FTW_PHYS);
    return counted;
}
static uint64_t backing_disk_bytes(void)
{
    struct stat st;
    assert_int_equal(stat(x.path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static struct group_change plan(struct lsn target)
{
    struct group_change change;
    check_ok(group_rewind(x.group, target, true, &change, &err));
    return change;
}

static void random_changes(uint64_t *random, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        uint64_t at = check_random(random) % (SIZE_BYTES / 512), length = 1 + check_random(random) % (check_random(random) % 3 ? 16 : 600);
        if (at + length > SIZE_BYTES / 512)
            length = SIZE_BYTES / 512 - at;
        put(at * 512, length * 512, check_random(random) % 3 ? (char)(1 + check_random(random) % 100) : 0);
    }
}

static void a_rewind_takes_no_more_than_its_plan_says(void **state)
{
    (void)state;
    uint64_t random = check_seed();
    for (int round = 0; round < 12; round++) {
        random_changes(&random, 1 + (unsigned)(check_random(&random) % 60));
        memcpy(then, model, sizeof then);
        struct lsn target = latest();
        random_changes(&random, 1 + (unsigned)(check_random(&random) % 60));
        if (check_random(&random) % 3 == 0)
            put(0, SIZE_BYTES, 0); /* every byte has to be given back */
        check_ok(journal_seal(x.journal, &err));
        check_ok(journal_maintain(x.journal, &err));
        latest();
        uint64_t journal = journal_disk_bytes(), backing = backing_disk_bytes();
        struct group_change change = plan(target), done;
        check_ok(group_check_space(x.group, &change, &err));
        check_ok(group_rewind(x.group, target, false, &done, &err));
        assert_int_equal(done.changed_bytes, change.changed_bytes);
        uint64_t journal_after = journal_disk_bytes();
        group_settle(x.group);
        assert_true(journal_after <= journal + change.needed_bytes + (2u << 20)); /* and a segment, which it switched to */
        uint64_t backing_after = backing_disk_bytes();
        if (backing_after > backing + change.volumes[0].needed_bytes)
            fail_msg("the backing has %llu bytes more, %llu were planned", (unsigned long long)(backing_after - backing),
                     (unsigned long long)change.volumes[0].needed_bytes);
        free(change.volumes);
        free(done.volumes);
        memcpy(model, then, sizeof model);
        check_live("after a rewind", model);
    }
}

/* The plan tells of each byte that the backing lacks: none of it is free. */
static void a_plan_tells_what_the_backing_lacks(void **state)
{
    (void)state;
    put(0, 8 * GRAIN, 'a');
    struct lsn target = latest();
    put(0, 8 * GRAIN, 0);
    put(8 * GRAIN, 8 * GRAIN, 'b');
    struct group_change change = plan(target);
    assert_int_equal(change.volumes[0].needed_bytes, 8 * GRAIN);
    free(change.volumes);
    put(0, 2 * GRAIN, 'c'); /* these it has again */
    change = plan(target);
    assert_int_equal(change.volumes[0].needed_bytes, 6 * GRAIN);
    struct group_space disks[GROUP_MAX_DISKS];
    assert_int_equal(group_rewind_space(x.group, &change, disks), 1); /* both lie on one */
    assert_int_equal(disks[0].needed_bytes, change.needed_bytes + 6 * GRAIN);
    check_ok(group_check_space(x.group, &change, &err));
    change.volumes[0].needed_bytes = disks[0].free_bytes;
    check_error(group_check_space(x.group, &change, &err), -ENOSPC, "Nothing was changed");
    free(change.volumes);
}

static void limit_files(rlim_t bytes)
{
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void wait_for_trouble(void)
{
    for (int i = 0; i < 12000; i++) {
        struct group_status s;
        group_status(x.group, &s);
        if (s.copy_trouble[0]) {
            assert_true(s.stale_bytes > 0);
            return;
        }
        usleep(10000);
    }
    fail_msg("nothing tells that the copying back does not go on");
}

static void a_copy_back_that_is_cut_short_goes_on(void **state)
{
    (void)state;
    uint64_t random = check_seed();
    struct group_change done;
    struct group_status s;
    random_changes(&random, 100);
    put(SIZE_BYTES - GRAIN, GRAIN, 'z'); /* something that cannot be copied back */
    memcpy(then, model, sizeof then);
    struct lsn target = latest();
    put(0, SIZE_BYTES, 0);
    latest();
    struct volume *v = &x.group->volumes[0];
    uint32_t slot = range_lock_take(&x.group->ranges, v->id, 0, GROUP_GRAIN_SECTORS); /* it is not copied back before the limit is there */
    check_ok(group_rewind(x.group, target, false, &done, &err));
    free(done.volumes);
    limit_files(LIMIT_BYTES);
    range_lock_drop(&x.group->ranges, slot);
    memcpy(model, then, sizeof model);
    wait_for_trouble();
    check_live("while it cannot be copied back", model);
    put(GRAIN, 4096, 'w'); /* where there is room writes go on */
    kill_all();
    open_all();
    wait_for_trouble();
    check_live("after a kill", model);
    limit_files(RLIM_INFINITY);
    group_settle(x.group);
    for (int i = 0; i < 12000; i++) { /* it tries again once a second */
        group_status(x.group, &s);
        if (s.stale_bytes == 0 && !s.copy_trouble[0])
            break;
        usleep(10000);
    }
    assert_int_equal(s.stale_bytes, 0);
    assert_string_equal(s.copy_trouble, "");
    check_live("once it was copied back", model);
    check_ok(block_pread(x.group->volumes[0].backing, data, SIZE_BYTES, 0, &err));
    assert_memory_equal(data, model, SIZE_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_rewind_takes_no_more_than_its_plan_says, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_plan_tells_what_the_backing_lacks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_copy_back_that_is_cut_short_goes_on, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
