/* SPDX-License-Identifier: Apache-2.0 */
/* ublk without a kernel: what a device is made of, and what its requests and commands mean. No I/O, no state.
 */
#ifndef TIDEMARK_EXPORT_UBLK_PROTOCOL_H
#define TIDEMARK_EXPORT_UBLK_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/queue.h"
#include "export/ublk_abi.h"

#define UBLK_QUEUES_MAX 4u
#define UBLK_QUEUE_DEPTH 32u
#define UBLK_SLOTS_MAX (UBLK_QUEUES_MAX * UBLK_QUEUE_DEPTH)
#define UBLK_IO_BYTES (128u << 10)                /* the largest read or write; the kernel splits others */
#define UBLK_DISCARD_SECTORS_MAX (4u << (30 - 9)) /* 4 GiB, of discard and write-zeroes */
#define UBLK_DEVICE_BYTES 32                      /* "/dev/ublkb1048575" and its NUL */

/* The command as this kernel wants it: `encoded` is UBLK_U_CMD_*, UBLK_U_IO_*. */
uint32_t ublk_op(uint32_t encoded, bool kernel_encodes);

/* What ADD_DEV is given. `identity` comes back by GET_DEV_INFO. */
void ublk_fill_info(struct ublksrv_ctrl_dev_info *info, unsigned queues, bool recoverable, uint64_t identity);
/* Whether the device outlives its server. The kernel answers ADD_DEV with the flags that it knows: Linux 6.0
 * has no recovery. */
bool ublk_can_recover(const struct ublksrv_ctrl_dev_info *info);
/* What SET_PARAMS is given. */
void ublk_fill_params(struct ublk_params *params, uint64_t size_bytes);
/* Whether a device that an earlier process made can be served by this program. */
int ublk_check_info(const struct ublksrv_ctrl_dev_info *info, struct error *err) MUST_CHECK;

/* Who made a device, from the path that names it: another's device never has the same. */
uint64_t ublk_identity(const char *link_path);
/* The number in "/dev/ublkb<number>". */
int ublk_parse_device(const char *device, uint32_t *ret_number) MUST_CHECK;

struct ublk_request {
    unsigned op;    /* UBLK_IO_OP_* */
    unsigned flags; /* BLOCK_FUA */
    bool may_unmap; /* WRITE_ZEROES */
    uint64_t offset_bytes;
    uint64_t length_bytes;
};

/* -EOPNOTSUPP for what was not offered, -EINVAL for a transfer that the buffer has no room for. The range may
 * lie outside of the block: block_check_range tells. */
int ublk_decode(const struct ublksrv_io_desc *descriptor, size_t buffer_bytes,
                struct ublk_request *ret) MUST_CHECK;
/* What a request is answered with, of 0 or a negative errno. */
int32_t ublk_result(const struct ublk_request *request, int r);
/* Carries a request out; blocks. */
int ublk_carry_out(struct block *b, const struct ublk_request *request, void *buffer,
                   struct error *err) MUST_CHECK;
/* Whether a block_queue takes it; then *ret is that request, for `buffer`. */
bool ublk_to_transfer(const struct ublk_request *request, void *buffer, struct block_request *ret);

#endif
