/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>

#include "kube/queue.h"

static uint64_t fake_now = 1000000000ull;
static uint64_t now(void *context)
{
    (void)context;
    return fake_now;
}
static const struct clock fake = {now, now, NULL};

static void test_a_key_is_there_once_and_again_when_added_while_worked_on(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct kube_queue *q;
    char key[KUBE_QUEUE_KEY_BYTES];
    check_ok(kube_queue_new(&fake, &q, &err));
    check_ok(kube_queue_add(q, "a", 0, &err));
    check_ok(kube_queue_add(q, "a", 0, &err));
    assert_int_equal(kube_queue_count(q), 1);
    assert_true(kube_queue_get(q, key));
    assert_string_equal(key, "a");
    check_ok(kube_queue_add(q, "a", 0, &err)); /* Q1 */
    fake_now += NS_PER_MS;                     /* a is due before b */
    check_ok(kube_queue_add(q, "b", 0, &err));
    assert_true(kube_queue_get(q, key));
    assert_string_equal(key, "b"); /* Q2: a is being worked on */
    kube_queue_done(q, "b", KUBE_QUEUE_OK);
    kube_queue_done(q, "a", KUBE_QUEUE_OK);
    assert_true(kube_queue_get(q, key));
    assert_string_equal(key, "a");
    kube_queue_done(q, "a", KUBE_QUEUE_OK);
    assert_int_equal(kube_queue_count(q), 0);
    kube_queue_close(q);
    assert_false(kube_queue_get(q, key));
    kube_queue_free(q);
}

static void test_failures_put_a_key_off_for_longer_each_time_and_not_the_others(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct kube_queue *q;
    char key[KUBE_QUEUE_KEY_BYTES];
    check_ok(kube_queue_new(&fake, &q, &err));
    check_ok(kube_queue_add(q, "bad", 0, &err));
    for (unsigned failures = 0; failures < 6; failures++) {
        assert_true(kube_queue_get(q, key));
        assert_string_equal(key, "bad");
        kube_queue_done(q, "bad", KUBE_QUEUE_RETRY);
        /* Not before half of the time, so another key comes first. */
        fake_now += ((KUBE_QUEUE_MIN_BACKOFF_MS << failures) / 2 - 1) * NS_PER_MS;
        check_ok(kube_queue_add(q, "good", 0, &err));
        assert_true(kube_queue_get(q, key));
        assert_string_equal(key, "good");
        kube_queue_done(q, "good", KUBE_QUEUE_OK);
        fake_now += (KUBE_QUEUE_MIN_BACKOFF_MS << failures) * NS_PER_MS;
    }
    check_ok(kube_queue_add(q, "late", 5000, &err));
    check_ok(kube_queue_add(q, "late", 10, &err)); /* an earlier time wins */
    assert_true(kube_queue_get(q, key));
    assert_string_equal(key, "bad");
    kube_queue_done(q, "bad", KUBE_QUEUE_OK);
    fake_now += 11 * NS_PER_MS;
    assert_true(kube_queue_get(q, key));
    assert_string_equal(key, "late");
    kube_queue_free(q);
}

struct shared {
    struct kube_queue *q;
    _Atomic int working[8], done;
};

static void *work(void *context)
{
    struct shared *s = context;
    char key[KUBE_QUEUE_KEY_BYTES];
    while (kube_queue_get(s->q, key)) {
        int n = key[0] - '0';
        assert_int_equal(atomic_fetch_add(&s->working[n], 1), 0); /* Q2 */
        sched_yield();
        atomic_fetch_sub(&s->working[n], 1);
        atomic_fetch_add(&s->done, 1);
        kube_queue_done(s->q, key, KUBE_QUEUE_OK);
    }
    return NULL;
}

static void test_no_key_is_worked_on_by_two_at_once(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct shared s = {.done = 0};
    pthread_t threads[4];
    uint64_t seed = check_seed();
    check_ok(kube_queue_new(NULL, &s.q, &err));
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, work, &s), 0);
    for (int i = 0; i < 20000; i++) {
        char key[2] = {(char)('0' + check_random(&seed) % 8), 0};
        check_ok(kube_queue_add(s.q, key, 0, &err));
    }
    while (kube_queue_count(s.q))
        sched_yield();
    kube_queue_close(s.q);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_true(s.done >= 8);
    kube_queue_free(s.q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_key_is_there_once_and_again_when_added_while_worked_on),
        cmocka_unit_test(test_failures_put_a_key_off_for_longer_each_time_and_not_the_others),
        cmocka_unit_test(test_no_key_is_worked_on_by_two_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
