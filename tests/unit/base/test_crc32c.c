/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include "base/crc32c.h"

/* RFC 3720, B.4. */
static void rfc_vectors(void **unused)
{
    unsigned char data[32];
    (void)unused;
    memset(data, 0, sizeof data);
    assert_int_equal(crc32c(0, data, sizeof data), 0x8a9136aau);
    memset(data, 0xff, sizeof data);
    assert_int_equal(crc32c(0, data, sizeof data), 0x62a8ab43u);
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)i;
    assert_int_equal(crc32c(0, data, sizeof data), 0x46dd794eu);
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(31 - i);
    assert_int_equal(crc32c(0, data, sizeof data), 0x113fdb5cu);
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c_portable(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c(0, "", 0), 0);
}

static void same_as_portable(void **unused)
{
    uint64_t random = check_seed();
    unsigned char *data = malloc(20000);
    (void)unused;
    for (size_t i = 0; i < 20000; i++)
        data[i] = (unsigned char)check_random(&random);
    for (int round = 0; round < 3000; round++) {
        size_t at = check_random(&random) % 64, length = check_random(&random) % 19000;
        uint32_t start = (uint32_t)check_random(&random);
        assert_int_equal(crc32c(start, data + at, length), crc32c_portable(start, data + at, length));
    }
    /* the stream's boundaries */
    for (size_t length = 3060; length < 3090; length++)
        assert_int_equal(crc32c(0, data, length), crc32c_portable(0, data, length));
    free(data);
}

static void continues(void **unused)
{
    unsigned char data[8192];
    (void)unused;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 7);
    for (size_t cut = 0; cut <= sizeof data; cut += 61)
        assert_int_equal(crc32c(crc32c(0, data, cut), data + cut, sizeof data - cut),
                         crc32c(0, data, sizeof data));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rfc_vectors),
        cmocka_unit_test(same_as_portable),
        cmocka_unit_test(continues),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
