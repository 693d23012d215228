/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "lib/zstd.h"

static void round_trip(void **unused)
{
    struct error err = ERROR_INIT;
    uint64_t random = check_seed();
    (void)unused;
    for (int round = 0; round < 50; round++) {
        size_t length = round ? check_random(&random) % 100000 : 0, packed_bytes = 0, back_bytes = 0;
        unsigned char *data = malloc(length + 1);
        void *packed = NULL, *back = NULL;
        for (size_t i = 0; i < length; i++)
            data[i] = (unsigned char)(check_random(&random) % (round % 2 ? 256 : 3));
        check_ok(zstd_compress(data, length, ZSTD_LEVEL_DEFAULT, &packed, &packed_bytes, &err));
        check_ok(zstd_decompress(packed, packed_bytes, length, &back, &back_bytes, &err));
        assert_int_equal(back_bytes, length);
        assert_memory_equal(back, data, length);
        free(back);
        back = NULL;
        if (length)
            check_error(zstd_decompress(packed, packed_bytes, length - 1, &back, &back_bytes, &err), -EFBIG,
                        "limit");
        check_error(zstd_decompress(packed, packed_bytes - 1, length, &back, &back_bytes, &err), -EBADMSG,
                    "");
        /* The frame's checksum finds a changed byte of the content. */
        ((unsigned char *)packed)[packed_bytes - 1] ^= 1;
        check_error(zstd_decompress(packed, packed_bytes, length, &back, &back_bytes, &err), -EBADMSG, "");
        assert_null(back);
        free(packed);
        free(data);
    }
}

static void into(void **unused)
{
    struct error err = ERROR_INIT;
    char zeroes[1000] = {0}, target[64];
    size_t length = 0;
    (void)unused;
    check_ok(zstd_compress_into(zeroes, sizeof zeroes, 1, target, sizeof target, &length, &err));
    assert_true(length > 0 && length < sizeof target);
    check_error(zstd_compress_into(zeroes, sizeof zeroes, 1, target, 4, &length, &err), -ENOSPC, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip), cmocka_unit_test(into)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
