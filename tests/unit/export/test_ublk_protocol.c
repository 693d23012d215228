/* SPDX-License-Identifier: Apache-2.0 */
/* ublk without a kernel; with one: tests/vm/guest_ublk.sh. */
#include "check.h"

#include <errno.h>
#include <string.h>

#include "export/ublk_protocol.h"

#define BUFFER_BYTES (128u << 10)

static void commands_are_numbers_of_both_kinds(void **state)
{
    (void)state;
    /* The numbers of the kernel's header, as strace shows them. */
    assert_int_equal(ublk_op(UBLK_U_CMD_ADD_DEV, true), 0xc0207504);
    assert_int_equal(ublk_op(UBLK_U_CMD_GET_DEV_INFO, true), 0x80207502);
    assert_int_equal(ublk_op(UBLK_U_IO_FETCH_REQ, true), 0xc0107520);
    assert_int_equal(ublk_op(UBLK_U_IO_COMMIT_AND_FETCH_REQ, true), 0xc0107521);
    assert_int_equal(ublk_op(UBLK_U_CMD_ADD_DEV, false), UBLK_CMD_ADD_DEV);
    assert_int_equal(ublk_op(UBLK_U_CMD_END_USER_RECOVERY, false), 0x11);
    assert_int_equal(ublk_op(UBLK_U_IO_FETCH_REQ, false), UBLK_IO_FETCH_REQ);
}

static void a_device_is_what_the_volume_is(void **state)
{
    (void)state;
    struct ublk_params p;
    ublk_fill_params(&p, (1ull << 40) + 512);
    assert_int_equal(p.len, sizeof p);
    assert_int_equal(p.types, UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD);
    assert_int_equal(p.basic.dev_sectors, (1ull << 31) + 1);
    assert_int_equal(p.basic.attrs, UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA); /* else no flush ever comes */
    assert_int_equal(p.basic.logical_bs_shift, 9);
    assert_int_equal(p.basic.physical_bs_shift, 12);
    assert_int_equal((uint64_t)p.basic.max_sectors * 512, UBLK_IO_BYTES);
    assert_int_equal(p.discard.max_discard_segments, 1); /* the kernel refuses others, and no granularity */
    assert_int_equal(p.discard.discard_granularity, 4096);
    assert_int_equal((uint64_t)p.discard.max_discard_sectors * 512, 4ull << 30);
    assert_int_equal((uint64_t)p.discard.max_write_zeroes_sectors * 512, 4ull << 30);
}

static void only_what_is_started_again_is_recoverable(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct ublksrv_ctrl_dev_info info;
    ublk_fill_info(&info, 2, true, 77);
    assert_int_equal(info.flags, UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE);
    assert_true(ublk_can_recover(&info));
    info.flags = UBLK_F_USER_RECOVERY; /* what an older kernel leaves of the flags */
    assert_false(ublk_can_recover(&info));
    assert_int_equal(info.nr_hw_queues, 2);
    assert_int_equal(info.ublksrv_flags, 77);
    check_ok(ublk_check_info(&info, &err));
    ublk_fill_info(&info, 1000, false, 77);
    assert_int_equal(info.flags, 0);
    assert_false(ublk_can_recover(&info));
    assert_int_equal(info.nr_hw_queues, UBLK_QUEUES_MAX);
    check_ok(ublk_check_info(&info, &err));
    ublk_fill_info(&info, 0, false, 77);
    assert_int_equal(info.nr_hw_queues, 1);
}

static void a_larger_device_is_not_taken_over(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct ublksrv_ctrl_dev_info info, ok;
    ublk_fill_info(&ok, 4, true, 1);
    info = ok;
    info.nr_hw_queues = UBLK_QUEUES_MAX + 1;
    check_error(ublk_check_info(&info, &err), -EINVAL, "5 queues");
    info = ok;
    info.queue_depth = UBLK_QUEUE_DEPTH + 1;
    check_error(ublk_check_info(&info, &err), -EINVAL, "33 requests");
    info = ok;
    info.max_io_buf_bytes = UBLK_IO_BYTES + 1;
    check_error(ublk_check_info(&info, &err), -EINVAL, "131073 bytes");
    info = ok;
    info.queue_depth = 0;
    check_error(ublk_check_info(&info, &err), -EINVAL, "0 requests");
}

static struct ublksrv_io_desc descriptor(unsigned op, unsigned flags, uint64_t sector, uint32_t sectors)
{
    return (struct ublksrv_io_desc){.op_flags = op | flags, .start_sector = sector, .nr_sectors = sectors};
}

static void requests_are_decoded(void **state)
{
    (void)state;
    struct ublk_request q = {0};
    struct ublksrv_io_desc d = descriptor(UBLK_IO_OP_WRITE, UBLK_IO_F_FUA | UBLK_IO_F_META, 9, 256);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), 0);
    assert_int_equal(q.op, UBLK_IO_OP_WRITE);
    assert_int_equal(q.flags, BLOCK_FUA);
    assert_int_equal(q.offset_bytes, 9 * 512);
    assert_int_equal(q.length_bytes, BUFFER_BYTES);
    d = descriptor(UBLK_IO_OP_READ, 0, 1ull << 40, 1);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), 0);
    assert_int_equal(q.flags, 0);
    assert_int_equal(q.offset_bytes, 1ull << 49);
    d = descriptor(UBLK_IO_OP_WRITE_ZEROES, UBLK_IO_F_NOUNMAP, 8, 1u << 23);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), 0);
    assert_false(q.may_unmap);
    assert_int_equal(q.length_bytes, 4ull << 30);
    d = descriptor(UBLK_IO_OP_WRITE_ZEROES, 0, 8, 8);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), 0);
    assert_true(q.may_unmap);
    d = descriptor(UBLK_IO_OP_DISCARD, 0, 8, 1u << 23);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), 0);
}

/* The kernel's flush request has all ones in place of a sector. */
static void a_flush_has_no_range(void **state)
{
    (void)state;
    struct ublk_request q = {0};
    struct block_request transfer;
    struct ublksrv_io_desc d = descriptor(UBLK_IO_OP_FLUSH, 0, UINT64_MAX, 0);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), 0);
    assert_int_equal(q.offset_bytes, 0);
    assert_int_equal(q.length_bytes, 0);
    assert_true(ublk_to_transfer(&q, NULL, &transfer));
    assert_int_equal(transfer.op, BLOCK_OP_FLUSH);
}

static void what_has_no_room_or_was_not_offered_is_refused(void **state)
{
    (void)state;
    struct ublk_request q = {.op = 99};
    struct ublksrv_io_desc d = descriptor(UBLK_IO_OP_WRITE, 0, 0, 257);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), -EINVAL);
    d = descriptor(UBLK_IO_OP_READ, 0, 0, UINT32_MAX);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), -EINVAL);
    d = descriptor(UBLK_IO_OP_READ, 0, 0, 0);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), -EINVAL);
    d = descriptor(UBLK_IO_OP_READ, 0, UINT64_MAX / 512 + 1, 1);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), -EINVAL);
    d = descriptor(UBLK_IO_OP_WRITE_SAME, 0, 0, 8);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), -EOPNOTSUPP);
    d = descriptor(200, 0, 0, 8);
    assert_int_equal(ublk_decode(&d, BUFFER_BYTES, &q), -EOPNOTSUPP);
    assert_int_equal(q.op, 99);
}

static void answers_are_bytes_or_errors(void **state)
{
    (void)state;
    struct ublk_request q = {.op = UBLK_IO_OP_READ, .length_bytes = 8192};
    assert_int_equal(ublk_result(&q, 0), 8192); /* less makes the kernel ask for the rest */
    assert_int_equal(ublk_result(&q, -ENOSPC), -ENOSPC);
    assert_int_equal(ublk_result(&q, -EDQUOT), -ENOSPC); /* the kernel would make an I/O error of it */
    assert_int_equal(ublk_result(&q, -ENODEV), -EIO); /* to the kernel it would mean that the queue ends */
    q.op = UBLK_IO_OP_DISCARD;
    q.length_bytes = 4ull << 30;
    assert_int_equal(ublk_result(&q, 0), 0);
}

static void requests_are_carried_out(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct block *b = NULL;
    static char buffer[8192], back[8192], zeroes[8192];
    check_ok(block_memory_new(1 << 20, &b, &err));
    memset(buffer, 'x', sizeof buffer);
    struct ublk_request q = {.op = UBLK_IO_OP_WRITE, .offset_bytes = 4096, .length_bytes = 8192};
    check_ok(ublk_carry_out(b, &q, buffer, &err));
    q.op = UBLK_IO_OP_READ;
    check_ok(ublk_carry_out(b, &q, back, &err));
    assert_memory_equal(back, buffer, sizeof back);
    struct ublk_request ends[] = {{.op = UBLK_IO_OP_DISCARD},
                                  {.op = UBLK_IO_OP_WRITE_ZEROES, .may_unmap = true},
                                  {.op = UBLK_IO_OP_WRITE_ZEROES}};
    for (size_t i = 0; i < 3; i++) {
        q.op = UBLK_IO_OP_WRITE;
        check_ok(ublk_carry_out(b, &q, buffer, &err));
        ends[i].offset_bytes = 4096;
        ends[i].length_bytes = 4096;
        check_ok(ublk_carry_out(b, &ends[i], NULL, &err));
        q.op = UBLK_IO_OP_READ;
        check_ok(ublk_carry_out(b, &q, back, &err));
        assert_memory_equal(back, zeroes, 4096);
        assert_memory_equal(back + 4096, buffer, 4096);
    }
    q = (struct ublk_request){.op = UBLK_IO_OP_FLUSH};
    check_ok(ublk_carry_out(b, &q, NULL, &err));
    q = (struct ublk_request){.op = UBLK_IO_OP_READ, .offset_bytes = (1 << 20) - 512, .length_bytes = 1024};
    assert_true(ublk_carry_out(b, &q, back, &err) < 0); /* beyond the end */
    block_free(b);
}

static void transfers_go_to_the_queue_as_they_are(void **state)
{
    (void)state;
    char buffer[512];
    struct block_request r;
    struct ublk_request q = {
        .op = UBLK_IO_OP_WRITE, .flags = BLOCK_FUA, .offset_bytes = 512, .length_bytes = 512};
    assert_true(ublk_to_transfer(&q, buffer, &r));
    assert_int_equal(r.op, BLOCK_OP_WRITE);
    assert_int_equal(r.flags, BLOCK_FUA);
    assert_ptr_equal(r.data, buffer);
    assert_int_equal(r.offset_bytes, 512);
    assert_int_equal(r.length_bytes, 512);
    q.op = UBLK_IO_OP_READ;
    assert_true(ublk_to_transfer(&q, buffer, &r));
    assert_int_equal(r.op, BLOCK_OP_READ);
    assert_int_equal(r.flags, 0);
    q.op = UBLK_IO_OP_DISCARD;
    assert_false(ublk_to_transfer(&q, buffer, &r));
    q.op = UBLK_IO_OP_WRITE_ZEROES;
    assert_false(ublk_to_transfer(&q, buffer, &r));
}

static void devices_are_told_apart(void **state)
{
    (void)state;
    uint32_t number = 7;
    assert_true(ublk_identity("/a/ublk/data") != ublk_identity("/b/ublk/data"));
    assert_true(ublk_identity("/a/ublk/data") != 0);
    assert_int_equal(ublk_parse_device("/dev/ublkb12", &number), 0);
    assert_int_equal(number, 12);
    static const char *const others[] = {"/dev/ublkb", "/dev/ublkc1",  "/dev/ublkb1p1",        "/dev/loop1",
                                         "",           "/dev/ublkb-1", "/dev/ublkb99999999999"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_int_equal(ublk_parse_device(others[i], &number), -EINVAL);
    assert_int_equal(number, 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(commands_are_numbers_of_both_kinds),
                                       cmocka_unit_test(a_device_is_what_the_volume_is),
                                       cmocka_unit_test(only_what_is_started_again_is_recoverable),
                                       cmocka_unit_test(a_larger_device_is_not_taken_over),
                                       cmocka_unit_test(requests_are_decoded),
                                       cmocka_unit_test(a_flush_has_no_range),
                                       cmocka_unit_test(what_has_no_room_or_was_not_offered_is_refused),
                                       cmocka_unit_test(answers_are_bytes_or_errors),
                                       cmocka_unit_test(requests_are_carried_out),
                                       cmocka_unit_test(transfers_go_to_the_queue_as_they_are),
                                       cmocka_unit_test(devices_are_told_apart)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
