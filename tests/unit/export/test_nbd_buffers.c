/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of NBD requests against a model (N6): what is taken overlaps nothing, never exceeds what there is, and all of it
 * is there again once it was given back. */
#include "check.h"

#include <stdlib.h>
#include <string.h>

#include "export/nbd_buffers.h"

#define TAKEN 256u

static struct error err;

struct taken {
    char *data;
    size_t length_bytes;
    unsigned char mark;
};

static void what_is_taken_overlaps_nothing(void **state)
{
    (void)state;
    uint64_t random = check_seed();
    for (int round = 0; round < 20; round++) {
        struct nbd_buffers *b;
        struct taken taken[TAKEN];
        size_t count = 0, cost = 0, units = 2 + check_random(&random) % 200;
        check_ok(nbd_buffers_new(units * NBD_BUFFERS_UNIT_BYTES + 5, &b, &err));
        assert_int_equal(nbd_buffers_size(b), units * NBD_BUFFERS_UNIT_BYTES);
        for (int i = 0; i < 2000; i++) {
            size_t length = 1 + check_random(&random) % (check_random(&random) % 4 ? 4096 : 1 << 20);
            char *data = count < TAKEN && check_random(&random) % 2 ? nbd_buffers_take(b, length) : NULL;
            if (data) {
                cost += nbd_buffers_cost(length);
                assert_true(cost <= nbd_buffers_size(b) && (uintptr_t)data % 4096 == 0);
                taken[count] = (struct taken){data, length, (unsigned char)check_random(&random)};
                memset(data, taken[count++].mark, length);
                continue;
            }
            if (count == 0)
                continue;
            size_t which = check_random(&random) % count;
            struct taken *t = &taken[which];
            for (size_t k = 0; k < t->length_bytes; k += 511)
                assert_int_equal((unsigned char)t->data[k], t->mark);
            nbd_buffers_give(b, t->data, t->length_bytes);
            cost -= nbd_buffers_cost(t->length_bytes);
            *t = taken[--count];
        }
        while (count--)
            nbd_buffers_give(b, taken[count].data, taken[count].length_bytes);
        char *all = nbd_buffers_take(b, nbd_buffers_size(b));
        assert_non_null(all);
        assert_null(nbd_buffers_take(b, 1));
        nbd_buffers_give(b, all, nbd_buffers_size(b));
        nbd_buffers_free(b);
    }
}

/* Small ones do not cut up the room of large ones. */
static void small_ones_leave_room_for_large_ones(void **state)
{
    struct nbd_buffers *b;
    (void)state;
    check_ok(nbd_buffers_new(128 * NBD_BUFFERS_UNIT_BYTES, &b, &err));
    for (int i = 0; i < 64; i++)
        assert_non_null(nbd_buffers_take(b, 4096));
    assert_non_null(nbd_buffers_take(b, 64 * NBD_BUFFERS_UNIT_BYTES));
    assert_null(nbd_buffers_take(b, 1));
    nbd_buffers_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_taken_overlaps_nothing),
        cmocka_unit_test(small_ones_leave_room_for_large_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
