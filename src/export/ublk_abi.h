/* SPDX-License-Identifier: Apache-2.0 */
/* What Tidemark uses of the ublk protocol (linux/ublk_cmd.h) and Debian 12's header, of Linux 6.1, does not
 * have yet. Names and values are those of the kernel's include/uapi/linux/ublk_cmd.h. */
#ifndef TIDEMARK_EXPORT_UBLK_ABI_H
#define TIDEMARK_EXPORT_UBLK_ABI_H

#include <assert.h>
#include <linux/ioctl.h>
#include <linux/ublk_cmd.h>

/* Linux 6.4 encodes the commands as ioctl numbers are; the plain numbers are an option of its configuration
 * since. */
#ifndef UBLK_U_CMD_ADD_DEV
#define UBLK_U_CMD_GET_DEV_INFO _IOR('u', UBLK_CMD_GET_DEV_INFO, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_ADD_DEV _IOWR('u', UBLK_CMD_ADD_DEV, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_DEL_DEV _IOWR('u', UBLK_CMD_DEL_DEV, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_START_DEV _IOWR('u', UBLK_CMD_START_DEV, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_STOP_DEV _IOWR('u', UBLK_CMD_STOP_DEV, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_SET_PARAMS _IOWR('u', UBLK_CMD_SET_PARAMS, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_START_USER_RECOVERY _IOWR('u', UBLK_CMD_START_USER_RECOVERY, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_END_USER_RECOVERY _IOWR('u', UBLK_CMD_END_USER_RECOVERY, struct ublksrv_ctrl_cmd)
#define UBLK_U_IO_FETCH_REQ _IOWR('u', UBLK_IO_FETCH_REQ, struct ublksrv_io_cmd)
#define UBLK_U_IO_COMMIT_AND_FETCH_REQ _IOWR('u', UBLK_IO_COMMIT_AND_FETCH_REQ, struct ublksrv_io_cmd)
#endif
#ifndef UBLK_U_CMD_GET_FEATURES /* Linux 6.5; only with the new encoding */
#define UBLK_U_CMD_GET_FEATURES _IOR('u', 0x13, struct ublksrv_ctrl_cmd)
#define UBLK_FEATURES_LEN 8
#endif
#ifndef UBLK_U_CMD_DEL_DEV_ASYNC /* Linux 6.9; does not wait for who still uses the device */
#define UBLK_U_CMD_DEL_DEV_ASYNC _IOR('u', 0x14, struct ublksrv_ctrl_cmd)
#endif
#define UBLK_ABI_ENOTSUPP 524 /* the kernel's own, which it lets out */

static_assert(sizeof(struct ublksrv_ctrl_cmd) == 32,
              "a control command fills the second half of an SQE of 128 bytes");
static_assert(sizeof(struct ublksrv_io_cmd) == 16, "an I/O command fills the end of an SQE");
static_assert(sizeof(struct ublksrv_ctrl_dev_info) == 64 && sizeof(struct ublksrv_io_desc) == 24,
              "kernel layout");

#endif
