/* SPDX-License-Identifier: Apache-2.0 */
#include "export/ublk_protocol.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "base/units.h"

#define DEVICE_PREFIX "/dev/ublkb"
#define IDENTITY_MAGIC 0x544d4152ull /* "TMAR" */
#define NUMBER_MAX 1048575u          /* of the kernel's minors */
#define RECOVERY ((uint64_t)(UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE))

uint32_t ublk_op(uint32_t encoded, bool kernel_encodes)
{
    return kernel_encodes ? encoded : _IOC_NR(encoded);
}

void ublk_fill_info(struct ublksrv_ctrl_dev_info *info, unsigned queues, bool recoverable, uint64_t identity)
{
    *info =
        (struct ublksrv_ctrl_dev_info){.nr_hw_queues = (uint16_t)(queues < 1                 ? 1
                                                                  : queues > UBLK_QUEUES_MAX ? UBLK_QUEUES_MAX
                                                                                             : queues),
                                       .queue_depth = UBLK_QUEUE_DEPTH,
                                       .max_io_buf_bytes = UBLK_IO_BYTES,
                                       .dev_id = UINT32_MAX, /* any that is free */
                                       .flags = recoverable ? RECOVERY : 0,
                                       .ublksrv_flags = identity};
}

bool ublk_can_recover(const struct ublksrv_ctrl_dev_info *info)
{
    return (info->flags & RECOVERY) == RECOVERY;
}

/* Blocks of 512 bytes for what was made on such a device; 4 KiB are what should be written at least. */
void ublk_fill_params(struct ublk_params *params, uint64_t size_bytes)
{
    *params = (struct ublk_params){.len = sizeof *params,
                                   .types = UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD,
                                   .basic = {.attrs = UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA,
                                             .logical_bs_shift = 9,
                                             .physical_bs_shift = 12,
                                             .io_opt_shift = 12,
                                             .io_min_shift = 12,
                                             .max_sectors = UBLK_IO_BYTES / BLOCK_SECTOR_BYTES,
                                             .dev_sectors = size_bytes / BLOCK_SECTOR_BYTES},
                                   .discard = {.discard_granularity = BLOCK_PAGE_BYTES,
                                               .max_discard_sectors = UBLK_DISCARD_SECTORS_MAX,
                                               .max_write_zeroes_sectors = UBLK_DISCARD_SECTORS_MAX,
                                               .max_discard_segments = 1}};
}

int ublk_check_info(const struct ublksrv_ctrl_dev_info *info, struct error *err)
{
    if (info->nr_hw_queues < 1 || info->nr_hw_queues > UBLK_QUEUES_MAX || info->queue_depth < 1 ||
        info->queue_depth > UBLK_QUEUE_DEPTH || info->max_io_buf_bytes < BLOCK_PAGE_BYTES ||
        info->max_io_buf_bytes > UBLK_IO_BYTES)
        return error_set(err, -EINVAL,
                         "cannot take over ublk device %u: it has %u queues of %u requests of %u bytes, this "
                         "program serves "
                         "at most %u of %u of %u",
                         info->dev_id, info->nr_hw_queues, info->queue_depth, info->max_io_buf_bytes,
                         UBLK_QUEUES_MAX, UBLK_QUEUE_DEPTH, UBLK_IO_BYTES);
    return 0;
}

uint64_t ublk_identity(const char *link_path)
{
    return IDENTITY_MAGIC << 32 | crc32c(0, link_path, strlen(link_path));
}

int ublk_parse_device(const char *device, uint32_t *ret_number)
{
    struct error ignored = ERROR_INIT;
    uint64_t number;
    if (strncmp(device, DEVICE_PREFIX, strlen(DEVICE_PREFIX)) != 0 ||
        units_parse_u64(device + strlen(DEVICE_PREFIX), NUMBER_MAX, &number, &ignored) < 0)
        return -EINVAL;
    *ret_number = (uint32_t)number;
    return 0;
}

int ublk_decode(const struct ublksrv_io_desc *descriptor, size_t buffer_bytes, struct ublk_request *ret)
{
    unsigned op = ublksrv_get_op(descriptor);
    struct ublk_request q = {.op = op,
                             .flags = descriptor->op_flags & UBLK_IO_F_FUA ? BLOCK_FUA : 0,
                             .may_unmap = !(descriptor->op_flags & UBLK_IO_F_NOUNMAP),
                             .length_bytes = (uint64_t)descriptor->nr_sectors * BLOCK_SECTOR_BYTES};
    if (op == UBLK_IO_OP_FLUSH) { /* its sector means nothing */
        q.length_bytes = 0;
        *ret = q;
        return 0;
    }
    if (descriptor->start_sector > UINT64_MAX / BLOCK_SECTOR_BYTES)
        return -EINVAL;
    q.offset_bytes = descriptor->start_sector * BLOCK_SECTOR_BYTES;
    switch (op) {
    case UBLK_IO_OP_READ:
    case UBLK_IO_OP_WRITE:
        if (q.length_bytes == 0 || q.length_bytes > buffer_bytes)
            return -EINVAL;
        break;
    case UBLK_IO_OP_DISCARD:
    case UBLK_IO_OP_WRITE_ZEROES:
        break;
    default:
        return -EOPNOTSUPP;
    }
    *ret = q;
    return 0;
}

int32_t ublk_result(const struct ublk_request *request, int r)
{
    bool transfers = request->op == UBLK_IO_OP_READ || request->op == UBLK_IO_OP_WRITE;
    if (r < 0) /* ABORT means something else to the kernel, and EDQUOT nothing */
        return r == UBLK_IO_RES_ABORT ? -EIO : io_is_no_room(r) ? -ENOSPC : r;
    return transfers ? (int32_t)request->length_bytes : 0;
}

int ublk_carry_out(struct block *b, const struct ublk_request *q, void *buffer, struct error *err)
{
    int r = q->op == UBLK_IO_OP_FLUSH ? 0 : block_check_range(b, q->length_bytes, q->offset_bytes, err);
    if (r < 0)
        return r;
    switch (q->op) {
    case UBLK_IO_OP_READ:
        return block_pread(b, buffer, q->length_bytes, q->offset_bytes, err);
    case UBLK_IO_OP_WRITE:
        return block_pwrite(b, buffer, q->length_bytes, q->offset_bytes, q->flags, err);
    case UBLK_IO_OP_FLUSH:
        return block_flush(b, err);
    case UBLK_IO_OP_WRITE_ZEROES:
        if (!q->may_unmap)
            return block_zero(b, q->length_bytes, q->offset_bytes, q->flags, err);
        return block_discard(b, q->length_bytes, q->offset_bytes, q->flags,
                             err); /* reads as zeroes (block.h) */
    default:
        return block_discard(b, q->length_bytes, q->offset_bytes, q->flags, err);
    }
}

bool ublk_to_transfer(const struct ublk_request *q, void *buffer, struct block_request *ret)
{
    static const enum block_op ops[] = {[UBLK_IO_OP_READ] = BLOCK_OP_READ,
                                        [UBLK_IO_OP_WRITE] = BLOCK_OP_WRITE,
                                        [UBLK_IO_OP_FLUSH] = BLOCK_OP_FLUSH};
    if (q->op > UBLK_IO_OP_FLUSH)
        return false;
    *ret = (struct block_request){.op = ops[q->op],
                                  .flags = q->op == UBLK_IO_OP_WRITE ? q->flags : 0,
                                  .data = q->op == UBLK_IO_OP_FLUSH ? NULL : buffer,
                                  .length_bytes = q->length_bytes,
                                  .offset_bytes = q->offset_bytes};
    return true;
}
