/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "kube/websocket.h"

/* RFC 6455, 1.3. */
static void test_the_answer_to_a_key_is_that_of_the_specification(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    char accept[WEBSOCKET_ACCEPT_BYTES];
    check_ok(websocket_accept("dGhlIHNhbXBsZSBub25jZQ==", accept, &err));
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

static void test_an_upgrade_is_taken_only_with_key_and_subprotocol(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    char protocol[32];
    const char *accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    check_ok(websocket_check_upgrade(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: Upgrade\r\n"
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v5.channel.k8s.io",
        accept, protocol, sizeof protocol, &err));
    assert_string_equal(protocol, "v5.channel.k8s.io");
    check_error(
        websocket_check_upgrade("HTTP/1.1 403 Forbidden\r\n", accept, protocol, sizeof protocol, &err),
        -EPROTO, "403 Forbidden");
    check_error(websocket_check_upgrade("HTTP/1.1 101 S\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "
                                        "wrong\r\nSec-WebSocket-Protocol: v4.channel.k8s.io",
                                        accept, protocol, sizeof protocol, &err),
                -EPROTO, "wrong key");
    check_error(
        websocket_check_upgrade(
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            accept, protocol, sizeof protocol, &err),
        -EPROTO, "no subprotocol");
}

/* Channel 1 with "hi\n", channel 3 with a Status, and a close with code 1000, as a kubelet sends them. */
static const uint8_t recorded[] = "\x82\x04\x01hi\n"
                                  "\x82\x2c\x03{\"metadata\":{},\"status\":\"Success\",\"code\":0}"
                                  "\x88\x02\x03\xe8";

static void test_recorded_frames_come_apart_and_a_part_of_one_is_waited_for(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct websocket_frame f;
    size_t at = 0, total = sizeof recorded - 1;
    const size_t lengths[] = {4, 44, 2};
    const enum websocket_op ops[] = {WEBSOCKET_BINARY, WEBSOCKET_BINARY, WEBSOCKET_CLOSE};
    for (size_t i = 0; i < 3; i++) {
        for (size_t n = 0; n < lengths[i] + 2; n++)
            assert_int_equal(websocket_parse(recorded + at, n, &f, &err), 0);
        assert_int_equal(websocket_parse(recorded + at, total - at, &f, &err), 1);
        assert_int_equal(f.op, ops[i]);
        assert_int_equal(f.length_bytes, lengths[i]);
        assert_true(f.final);
        at += f.total_bytes;
    }
    assert_int_equal(at, total);
}

static void test_what_is_sent_is_masked_and_reads_back_at_each_length(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    const size_t lengths[] = {0, 1, 125, 126, 65535, 65536, 100000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t n = lengths[i];
        uint8_t *frame = malloc(n + WEBSOCKET_HEADER_BYTES);
        const uint8_t mask[4] = {1, 2, 3, 4};
        size_t header = websocket_header(WEBSOCKET_BINARY, n, mask, frame);
        for (size_t k = 0; k < n; k++)
            frame[header + k] = (uint8_t)k;
        websocket_mask(frame + header, n, mask);
        assert_true(frame[1] & 0x80);
        if (n > 1)
            assert_int_equal(frame[header + 1], 1 ^ 2);
        /* As the server's side sees it: without mask. */
        websocket_mask(frame + header, n, mask);
        memmove(frame + header - 4, frame + header, n);
        frame[1] &= 0x7f;
        struct websocket_frame f;
        assert_int_equal(websocket_parse(frame, header - 4 + n, &f, &err), 1);
        assert_int_equal(f.length_bytes, n);
        for (size_t k = 0; k < n; k++)
            assert_int_equal(f.data[k], (uint8_t)k);
        free(frame);
    }
}

static void test_what_the_specification_forbids_is_refused(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct websocket_frame f;
    check_error(websocket_parse("\x82\x81xxxxy", 7, &f, &err), -EPROTO, "masks");
    check_error(websocket_parse("\xc2\x01x", 3, &f, &err), -EPROTO, "extension");
    check_error(websocket_parse("\x83\x01x", 3, &f, &err), -EPROTO, "unknown kind");
    check_error(websocket_parse("\x08\x00", 2, &f, &err), -EPROTO, "in parts");
    check_error(websocket_parse("\x89\x7e\x01\x00", 4, &f, &err), -EPROTO, "long");
    check_error(websocket_parse("\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", 10, &f, &err), -EPROTO,
                "more than");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_answer_to_a_key_is_that_of_the_specification),
        cmocka_unit_test(test_an_upgrade_is_taken_only_with_key_and_subprotocol),
        cmocka_unit_test(test_recorded_frames_come_apart_and_a_part_of_one_is_waited_for),
        cmocka_unit_test(test_what_is_sent_is_masked_and_reads_back_at_each_length),
        cmocka_unit_test(test_what_the_specification_forbids_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
