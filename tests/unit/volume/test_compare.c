/* SPDX-License-Identifier: Apache-2.0 */
/* The beginning of a comparison, for which the application's I/O waits: it takes what is marked and not stale, and no step for each of the
 * grains of a large volume. */
#include "check.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "volume/group_internal.h"

#define SIZE_BYTES ((1ull << 40) + 3 * GROUP_GRAIN_BYTES) /* sparse; the last region is not a whole one */
#define GRAINS (SIZE_BYTES / GROUP_GRAIN_BYTES)
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

static int set_up(void **unused)
{
    (void)unused;
    snprintf(directory, sizeof directory, "/dev/shm/tidemark-compare-XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(ring, sizeof ring, "%s.ring", directory);
    snprintf(backing, sizeof backing, "%s.img", directory);
    struct journal_options o = {.directory = directory, .segment_blocks = 256, .segment_records = 64, .ring_path = ring, .owner = "test_compare"};
    check_ok(journal_open(&o, &journal, &err));
    check_ok(group_new(journal, GROUP_ACK_WRITE, NULL, &group, &err));
    check_ok(group_add_volume(group, "v", SIZE_BYTES, backing, &err)); /* not started: nothing is compared here */
    volume = &group->volumes[0];
    return 0;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_large_volume_begins_at_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_marked_and_not_stale, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
