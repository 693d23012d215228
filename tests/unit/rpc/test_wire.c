/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <csi.pb-c.h>
#include <errno.h>
#include <string.h>

#include "rpc/rpc_internal.h"

#define CREATE (&csi__v1__create_volume_request__descriptor)

static int check(const ProtobufCMessageDescriptor *descriptor, const char *data, size_t length,
                 struct error *err)
{
    return wire_check(descriptor, (const uint8_t *)data, length, err);
}

static void text_of_requests(void **unused)
{
    static const struct {
        const char *data;
        size_t length;
        bool good;
    } cases[] = {
        {"\x0a\x03"
         "abc",
         5, true},
        {"\x0a\x04\xf0\x9f\x90\xb3", 6, true},
        {"\x0a\x00", 2, true},
        {"\x0a\x03"
         "a\0c",
         5, false},
        {"\x0a\x02\xc0\xaf", 4, false},
        {"\x0a\x03\xed\xa0\x80", 5, false},
        {"\x0a\x04\xf4\x90\x80\x80", 6, false},
        {"\x0a\x02\xc3(", 4, false},
        {"\x0a\x01\xc3", 3, false},
        {"\x0a\x03\xe0\x80\x80", 5, false},
        {"\x0a\x05"
         "abc",
         5, false},
        {"\x22\x04\x0a\x02"
         "a\0",
         6, false},
        {"\x22\x04\x0a\x02"
         "ab",
         6, true},
        {"\x0b", 1, false},
        {"\x00\x00", 2, false},
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11, false},
        {"\xfa\x01\x02\xc3(", 5, true}, /* unknown */
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        int r = check(CREATE, cases[i].data, cases[i].length, &err);
        if (r != (cases[i].good ? 0 : -EINVAL))
            fail_msg("case %zu: %d %s", i, r, err.message);
    }
}

/* Whatever the bytes: an answer, and what passes can be unpacked without a truncated string. */
static void random_requests(void **unused)
{
    uint64_t seed = check_seed();
    (void)unused;
    for (unsigned round = 0; round < 20000; round++) {
        static const uint8_t good[] = "\x0a\x03"
                                      "abc"
                                      "\x12\x04\x08\x80\x80\x04"
                                      "\x1a\x0c\x12\x06\x0a\x04"
                                      "ext4"
                                      "\x1a\x02\x08\x01"
                                      "\x22\x06\x0a\x01"
                                      "k"
                                      "\x12\x01"
                                      "v";
        uint8_t data[sizeof good - 1];
        struct error err = ERROR_INIT;
        memcpy(data, good, sizeof data);
        for (unsigned n = (unsigned)(check_random(&seed) % 4); n > 0; n--)
            data[check_random(&seed) % sizeof data] = (uint8_t)check_random(&seed);
        size_t length = check_random(&seed) % (sizeof data + 1);
        if (wire_check(CREATE, data, length, &err) < 0)
            continue;
        ProtobufCMessage *message = protobuf_c_message_unpack(CREATE, NULL, length, data);
        if (message)
            protobuf_c_message_free_unpacked(message, NULL);
    }
}

static void timeouts(void **unused)
{
    static const struct {
        const char *text;
        uint64_t ns; /* 0: malformed */
    } cases[] = {{"1S", 1000000000u},
                 {"250m", 250000000u},
                 {"7u", 7000},
                 {"99n", 99},
                 {"2M", 120000000000u},
                 {"99999999H", INT64_MAX / 2},
                 {"123456789S", 0},
                 {"S", 0},
                 {"1", 0},
                 {"", 0},
                 {"1s", 0},
                 {"-1S", 0},
                 {"1SS", 0}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t ns = 0;
        bool good = wire_parse_timeout(cases[i].text, strlen(cases[i].text), &ns);
        assert_int_equal(good, cases[i].ns != 0);
        if (good)
            assert_true(ns == cases[i].ns);
    }
}

static void messages_are_encoded(void **unused)
{
    char text[64];
    (void)unused;
    size_t n = wire_percent_encode("50 % of\n\xc3\xbc~", text, sizeof text);
    assert_int_equal(n, strlen("50 %25 of%0A%C3%BC~"));
    assert_memory_equal(text, "50 %25 of%0A%C3%BC~", n);
    assert_in_range(wire_percent_encode("\n\n\n\n\n\n", text, 10), 0, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_of_requests),
        cmocka_unit_test(random_requests),
        cmocka_unit_test(timeouts),
        cmocka_unit_test(messages_are_encoded),
    };
    return cmocka_run_group_tests_name("rpc-wire", tests, NULL, NULL);
}
