/* SPDX-License-Identifier: Apache-2.0 */
/* W1 to W3 of volume/intent.h, on files. That a bit is durable in time is for tests/sim/test_power.c. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "volume/intent.h"

#define REGION (INTENT_REGION_BYTES / 512ull) /* sectors */
#define REGIONS 10000ull                      /* three sectors of the bitmap, the last one in part */

static struct error err;
static char *directory;
static atomic_int fail_with, losses;

static void lost(void *context, const char *why)
{
    (void)context;
    assert_non_null(strstr(why, "intent-7"));
    losses++;
}
static int fault(void *context)
{
    (void)context;
    return fail_with;
}

static struct intent *open_intent(bool fresh)
{
    struct intent_options o = {.directory = directory,
                               .volume = 7,
                               .size_bytes = REGIONS * INTENT_REGION_BYTES - 4096,
                               .fresh = fresh,
                               .lost = lost,
                               .fault = fault};
    struct intent *in;
    memset(o.journal_id.bytes, 0x11, sizeof o.journal_id.bytes);
    check_ok(intent_open(&o, &in, &err));
    return in;
}

static bool covers(struct intent *in, uint64_t region)
{
    return intent_covers(in, region * INTENT_REGION_BYTES, INTENT_REGION_BYTES);
}

static void rounds(struct intent *in, unsigned count, uint64_t covered)
{
    while (count--)
        if (intent_collect(in))
            intent_clear(in, (struct lsn){covered});
}

/* What another process finds. */
static struct intent *reopen(struct intent *in)
{
    intent_free(in);
    return open_intent(false);
}

static int setup(void **state)
{
    (void)state;
    directory = check_make_directory();
    fail_with = losses = 0;
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    check_remove_directory(directory);
    return 0;
}

static void a_mark_is_found_again(void **state)
{
    (void)state;
    struct intent *in = open_intent(true);
    assert_false(intent_any(in));
    assert_false(intent_is_marked(in, 5 * REGION, 8));
    intent_mark(in, 5 * REGION, 8);
    intent_mark(in, 8000 * REGION - 1, 2); /* two regions, and two pairs with neighbours: a burst */
    intent_mark(in, (REGIONS - 1) * REGION, 8);
    assert_true(intent_is_marked(in, 5 * REGION + REGION - 1, 1));
    in = reopen(in);
    assert_true(covers(in, 5) && covers(in, 7999) && covers(in, 8000) && covers(in, REGIONS - 1));
    assert_true(!covers(in, 4) && !covers(in, 6) && !covers(in, 7997));
    assert_true(intent_marked_bytes(in) <= (1 + 4 + 4) * INTENT_REGION_BYTES);
    intent_free(in);
}

static void idle_marks_are_cleared_and_no_others(void **state)
{
    (void)state;
    struct intent *in = open_intent(true);
    intent_mark(in, 1 * REGION, 8);
    intent_mark(in, 2 * REGION, 8); /* with 3 */
    rounds(in, INTENT_IDLE_ROUNDS, 77);
    assert_true(covers(in, 1)); /* the round of its use is not idle */
    assert_true(intent_is_marked(in, 2 * REGION, 8));
    rounds(in, 1, 78);
    assert_true(!covers(in, 1) && covers(in, 2));
    in = reopen(in);
    assert_true(!covers(in, 1) && covers(in, 2));
    assert_int_equal(intent_covered(in).n, 78);
    for (unsigned i = 0; i < INTENT_IDLE_ROUNDS; i++)
        (void)intent_collect(in);
    assert_true(intent_collect(in));
    assert_true(intent_is_marked(in, 2 * REGION, 8)); /* between collecting and clearing */
    intent_clear(in, (struct lsn){79});
    assert_true(intent_is_marked(in, 2 * REGION, 8));
    in = reopen(in);
    assert_true(covers(in, 2));
    intent_clear_all(in, (struct lsn){80});
    in = reopen(in);
    assert_false(intent_any(in));
    intent_free(in);
}

/* W3: every bit flipped, every cut: what was marked still is. */
static void damage_marks_more_and_never_less(void **state)
{
    (void)state;
    char path[256], *good;
    size_t length;
    struct intent *in = open_intent(true);
    intent_mark(in, 5 * REGION, 8);
    intent_mark(in, 9000 * REGION, 8);
    intent_free(in);
    snprintf(path, sizeof path, "%s/intent-7", directory);
    check_ok(io_read_file(path, 1 << 20, &good, &length, &err));
    assert_int_equal(length, 2 * INTENT_PAGE_BYTES);
    for (size_t at = 0; at < length; at += at < 64 || (at >= 4096 && at < 4096 + 600) ? 1 : 37) {
        good[at] ^= 4;
        check_ok(io_replace_file(path, good, length, 0600, &err));
        good[at] ^= 4;
        in = open_intent(false);
        assert_true(covers(in, 5) && covers(in, 9000));
        intent_free(in);
    }
    for (size_t cut = 0; cut < length; cut += 509) {
        check_ok(io_replace_file(path, good, cut, 0600, &err));
        in = open_intent(false);
        assert_true(covers(in, 5) && covers(in, 9000));
        assert_true(cut >= 4096 + 3 * 512 || covers(in, REGIONS - 1));
        intent_free(in);
    }
    unlink(path);
    in = open_intent(false);
    assert_int_equal(intent_marked_bytes(in), REGIONS * INTENT_REGION_BYTES);
    intent_free(in);
    free(good);
}

static void one_that_cannot_be_written_is_lost_until_it_is_saved(void **state)
{
    (void)state;
    struct intent *in = open_intent(true);
    fail_with = -EIO;
    intent_mark(in, 3 * REGION, 8);
    intent_mark(in, 4 * REGION, 8);
    assert_int_equal(losses, 1); /* told once */
    assert_true(intent_is_lost(in) && intent_is_marked(in, 3 * REGION, 8) &&
                intent_is_marked(in, 4 * REGION, 8));
    assert_false(intent_collect(in));
    assert_int_equal(intent_save(in, &err), -EIO);
    fail_with = 0;
    check_ok(intent_save(in, &err));
    assert_false(intent_is_lost(in));
    in = reopen(in);
    assert_true(covers(in, 3) && covers(in, 4));
    intent_free(in);
}

static void another_size(void **state)
{
    (void)state;
    struct intent *in = open_intent(true);
    intent_mark(in, 9999 * REGION, 8);
    check_ok(intent_resize(in, 70000 * (uint64_t)INTENT_REGION_BYTES, &err)); /* more pages */
    assert_true(covers(in, 9999) && !covers(in, 69999));
    intent_mark(in, 69999 * REGION, 8);
    assert_true(intent_is_marked(in, 69999 * REGION, 8) && intent_is_marked(in, 9999 * REGION, 8));
    in = reopen(in); /* as if the new size was never known */
    assert_true(covers(in, 9999));
    intent_free(in);
}

static struct intent *shared;
static atomic_bool ended;
static atomic_uint rounds_begun;
static void *mark_many(void *context)
{
    uint64_t random = (uint64_t)(uintptr_t)context;
    for (int i = 0; i < 20000; i++) {
        uint64_t region = check_random(&random) % 3000;
        unsigned before = rounds_begun;
        intent_mark(shared, region * REGION, 8);
        bool marked = intent_is_marked(shared, region * REGION, 8);
        /* One may have been under way before; where more came since, this thread had no processor for so long. */
        if (!marked && rounds_begun - before < INTENT_IDLE_ROUNDS - 1)
            return shared;
    }
    return NULL;
}
static void *clear_many(void *context)
{
    (void)context;
    while (!atomic_load(&ended)) {
        usleep(30000);
        rounds_begun++;
        rounds(shared, 1, 1);
    }
    return NULL;
}

static void threads_mark_while_another_clears(void **state)
{
    (void)state;
    pthread_t threads[5];
    void *result;
    shared = open_intent(true);
    ended = false;
    rounds_begun = 0;
    assert_int_equal(pthread_create(&threads[4], NULL, clear_many, NULL), 0);
    for (uintptr_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, mark_many, (void *)(i + 1)), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    ended = true;
    pthread_join(threads[4], NULL);
    intent_free(shared);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_mark_is_found_again),
        TEST(idle_marks_are_cleared_and_no_others),
        TEST(damage_marks_more_and_never_less),
        TEST(one_that_cannot_be_written_is_lost_until_it_is_saved),
        TEST(another_size),
        TEST(threads_mark_while_another_clears),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
