/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "kube/lines.h"

/* As a server sent it: two events and a bookmark. */
static const char recorded[] =
    "{\"type\":\"ADDED\",\"object\":{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":"
    "\"a\",\"resourceVersion\":\"612\"}}}\n"
    "{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":"
    "\"a\",\"resourceVersion\":\"613\"},\"data\":{\"t\":\"x\\ny\"}}}\n"
    "{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{"
    "\"resourceVersion\":\"640\",\"creationTimestamp\":null}}}\n";

struct seen {
    char text[2048];
    size_t length, count;
};

static int take(void *context, const char *text, size_t length_bytes)
{
    struct seen *s = context;
    assert_true(s->length + length_bytes + 1 < sizeof s->text);
    memcpy(s->text + s->length, text, length_bytes);
    s->length += length_bytes;
    s->text[s->length++] = '\n';
    s->count++;
    return 0;
}

static void test_lines_are_the_same_however_the_bytes_come(void **state)
{
    (void)state;
    uint64_t seed = check_seed();
    for (int round = 0; round < 300; round++) {
        struct seen s = {.count = 0};
        struct lines l = {.limit_bytes = 4096, .line = take, .context = &s};
        size_t left = strlen(recorded);
        const char *at = recorded;
        while (left) {
            size_t n = round == 0 ? 1 : 1 + check_random(&seed) % 200;
            n = n > left ? left : n;
            assert_int_equal(lines_feed(&l, at, n), 0);
            at += n;
            left -= n;
        }
        assert_int_equal(s.count, 3);
        assert_memory_equal(s.text, recorded, strlen(recorded));
        assert_int_equal(l.rest.length_bytes, 0);
        kube_buffer_release(&l.rest);
    }
}

static void test_a_line_that_is_not_ended_is_kept_and_empty_ones_are_not_told(void **state)
{
    (void)state;
    struct seen s = {.count = 0};
    struct lines l = {.limit_bytes = 4096, .line = take, .context = &s};
    assert_int_equal(lines_feed(&l, "\n\nab", 4), 0);
    assert_int_equal(s.count, 0);
    assert_int_equal(lines_feed(&l, "c\n", 2), 0);
    assert_int_equal(s.count, 1);
    assert_memory_equal(s.text, "abc\n", 4);
    kube_buffer_release(&l.rest);
}

static void test_a_line_beyond_the_limit_is_refused_before_it_is_kept(void **state)
{
    (void)state;
    struct seen s = {.count = 0};
    struct lines l = {.limit_bytes = 8, .line = take, .context = &s};
    assert_int_equal(lines_feed(&l, "12345678\n", 9), 0);
    assert_int_equal(lines_feed(&l, "12345", 5), 0);
    assert_int_equal(lines_feed(&l, "6789", 4), -EFBIG);
    assert_int_equal(l.rest.length_bytes, 5);
    kube_buffer_release(&l.rest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_are_the_same_however_the_bytes_come),
        cmocka_unit_test(test_a_line_that_is_not_ended_is_kept_and_empty_ones_are_not_told),
        cmocka_unit_test(test_a_line_beyond_the_limit_is_refused_before_it_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
