/* SPDX-License-Identifier: Apache-2.0 */
/* The beginning of a comparison, for which the application's I/O waits: it takes what is marked and not stale, and no step for each of the
 * grains of a large volume. And its end, which comes although it journals more than the quota has room for. */
#include "check.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "volume/group_internal.h"

#define SIZE_BYTES ((1ull << 40) + 3 * GROUP_GRAIN_BYTES) /* sparse; the last region is not a whole one */
#define GRAINS (SIZE_BYTES / GROUP_GRAIN_BYTES)
#define SMALL_BYTES (32ull << 20)
#define QUOTA_BYTES (8ull << 20) /* segments of 1 MiB */
#define WAIT_MS 60000u
#define REGION_GRAINS (INTENT_REGION_BYTES / GROUP_GRAIN_BYTES)

static struct error err;
static char directory[64], ring[96], backing[96];
static struct journal *journal;
static struct group *group;
static struct volume *volume;
static _Thread_local uint64_t locks;

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    locks++;
    return __real_pthread_mutex_lock(mutex);
}

static int make(uint64_t size_bytes, uint64_t quota_bytes)
{
    snprintf(directory, sizeof directory, "/dev/shm/tidemark-compare-XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(ring, sizeof ring, "%s.ring", directory);
    snprintf(backing, sizeof backing, "%s.img", directory);
    struct journal_options o = {.directory = directory, .segment_blocks = 256, .segment_records = 64, .ring_path = ring, .owner = "test_compare", .quota_bytes = quota_bytes};
    check_ok(journal_open(&o, &journal, &err));
    check_ok(group_new(journal, GROUP_ACK_WRITE, NULL, &group, &err));
    check_ok(group_add_volume(group, "v", size_bytes, backing, &err)); /* not started: nothing is compared here */
    volume = &group->volumes[0];
    return 0;
}

static int set_up(void **unused)
{
    (void)unused;
    return make(SIZE_BYTES, 0);
}

static int set_up_small(void **unused)
{
    (void)unused;
    return make(SMALL_BYTES, QUOTA_BYTES);
}

static int tear_down(void **unused)
{
    (void)unused;
    group_abandon(group);
    journal_abandon(journal);
    unlink(ring);
    unlink(backing);
    return io_remove_tree(directory, &err);
}

static void a_large_volume_begins_at_once(void **unused)
{
    (void)unused;
    intent_mark_all(volume->intent);
    locks = 0;
    check_ok(group_begin_compare(group, &err));
    assert_true(locks < GRAINS / 1000);
    assert_int_equal(volume->unverified.set_count, GRAINS);
    assert_int_equal(grain_map_next(&volume->unverified, GRAINS - 1), GRAINS - 1);
}

static void what_is_marked_and_not_stale(void **unused)
{
    (void)unused;
    uint64_t random = check_seed(), count = 0;
    for (int i = 0; i < 2000; i++) {
        intent_mark(volume->intent, check_random(&random) % GRAINS * GROUP_GRAIN_SECTORS, 1);
        grain_map_set(&volume->stale, check_random(&random) % 256 * REGION_GRAINS + check_random(&random) % REGION_GRAINS);
        intent_mark(volume->intent, check_random(&random) % 256 * REGION_GRAINS * GROUP_GRAIN_SECTORS, 1);
    }
    intent_mark(volume->intent, (GRAINS - 1) * GROUP_GRAIN_SECTORS, 1);
    check_ok(group_begin_compare(group, &err));
    for (uint64_t grain = 0; grain < GRAINS; grain++) {
        bool wanted = !grain_map_test(&volume->stale, grain) && intent_covers(volume->intent, grain * GROUP_GRAIN_BYTES, GROUP_GRAIN_BYTES);
        if (grain_map_test(&volume->unverified, grain) != wanted)
            fail_msg("grain %llu", (unsigned long long)grain);
        count += wanted;
    }
    assert_int_equal(volume->unverified.set_count, count);
}

/* What it began with must not be kept until it ends: the journal would have no room for the rest. */
static void it_ends_although_it_journals_more_than_the_quota(void **unused)
{
    (void)unused;
    struct group_status s;
    struct journal_status j;
    struct image *image;
    static char live[GROUP_GRAIN_BYTES] __attribute__((aligned(4096))), read[GROUP_GRAIN_BYTES] __attribute__((aligned(4096)));
    memset(live, 'z', sizeof live);
    for (uint64_t at = 0; at < SMALL_BYTES; at += sizeof live) /* none of it is in the journal */
        check_ok(block_pwrite(volume->backing, live, sizeof live, at, 0, &err));
    intent_mark_all(volume->intent);
    check_ok(group_begin_compare(group, &err));
    check_ok(group_start(group, &err));
    unsigned waited_ms = 0;
    do {
        usleep(1000);
        group_status(group, &s);
    } while (s.resyncing && ++waited_ms < WAIT_MS);
    assert_false(s.resyncing);
    group_settle(group);
    journal_status(journal, &j);
    assert_false(j.suspended);
    assert_int_equal(volume->unverified.set_count, 0);
    check_ok(journal_pin(journal, "engine-look", j.latest, true, &err));
    check_ok(image_open(directory, "engine-look", &image, &err));
    for (uint64_t at = 0; at < SMALL_BYTES; at += sizeof live) {
        check_ok(image_read(image, volume->id, at / BLOCK_SECTOR_BYTES, sizeof read / BLOCK_SECTOR_BYTES, read, &err));
        assert_memory_equal(read, live, sizeof live);
    }
    image_free(image);
    check_ok(journal_unpin(journal, "engine-look", &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_large_volume_begins_at_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_marked_and_not_stale, set_up, tear_down),
        cmocka_unit_test_setup_teardown(it_ends_although_it_journals_more_than_the_quota, set_up_small, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
