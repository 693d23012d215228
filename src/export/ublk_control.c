/* SPDX-License-Identifier: Apache-2.0 */
/* Control commands go to /dev/ublk-control by io_uring, one at a time, each waited for. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "export/ublk_internal.h"

#define ENTRIES 4u

int ublk_probe(struct error *err)
{
    struct utsname kernel = {0};
    if (access(UBLK_CONTROL, R_OK | W_OK) == 0)
        return 0;
    int code = errno;
    uname(&kernel);
    if (code == EACCES || code == EPERM)
        return error_set(err, -EPERM,
                         "export ublk needs " UBLK_CONTROL ", which may not be opened: run as root");
    return error_set(err, -ENOSYS,
                     "export ublk needs " UBLK_CONTROL
                     ", which is not there: load the module (modprobe ublk_drv; Linux 6.0 or "
                     "later built with CONFIG_BLK_DEV_UBLK, here it is Linux %s), give the container /dev, "
                     "or use export: fuse",
                     kernel.release);
}

int ublk_control_open(struct ublk_control *ret, struct error *err)
{
    *ret = (struct ublk_control){.fd = -1};
    int r = ublk_probe(err);
    if (r < 0)
        return r;
    ret->fd = open(UBLK_CONTROL, O_RDWR | O_CLOEXEC);
    if (ret->fd < 0)
        return error_errno(err, -errno, "cannot open " UBLK_CONTROL);
    r = io_uring_queue_init(ENTRIES, &ret->ring, IORING_SETUP_SQE128);
    ret->ring_runs = r == 0;
    if (r < 0) {
        ublk_control_close(ret);
        return error_errno(
            err, r, "cannot set up io_uring, which ublk needs (is it disabled by kernel.io_uring_disabled?)");
    }
    uint64_t features = 0;
    ret->encodes = true;
    ret->encodes =
        ublk_control_call(ret, UBLK_U_CMD_GET_FEATURES, UINT32_MAX, &features, UBLK_FEATURES_LEN, 0) == 0;
    return 0;
}

void ublk_control_close(struct ublk_control *c)
{
    if (c->ring_runs)
        io_uring_queue_exit(&c->ring);
    if (c->fd >= 0)
        close(c->fd);
    *c = (struct ublk_control){.fd = -1};
}

int ublk_control_call(struct ublk_control *c, uint32_t encoded, uint32_t device, void *data,
                      size_t data_bytes, uint64_t value)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&c->ring);
    if (!sqe)
        return -EBUSY;
    memset(sqe, 0, 2 * sizeof *sqe);
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->fd = c->fd;
    sqe->cmd_op = ublk_op(encoded, c->encodes);
    struct ublksrv_ctrl_cmd command = {.dev_id = device,
                                       .queue_id = UINT16_MAX,
                                       .len = (uint16_t)data_bytes,
                                       .addr = (uint64_t)(uintptr_t)data,
                                       .data[0] = value};
    memcpy(sqe->cmd, &command, sizeof command);
    int r;
    do
        r = io_uring_submit(&c->ring);
    while (r == -EINTR || r == -EAGAIN);
    if (r < 0)
        return r;
    struct io_uring_cqe *cqe;
    do
        r = io_uring_wait_cqe(&c->ring, &cqe);
    while (r == -EINTR);
    if (r < 0)
        return r;
    r = cqe->res;
    io_uring_cqe_seen(&c->ring, cqe);
    return r;
}

int ublk_control_info(struct ublk_control *c, uint32_t device, struct ublksrv_ctrl_dev_info *ret)
{
    return ublk_control_call(c, UBLK_U_CMD_GET_DEV_INFO, device, ret, sizeof *ret, 0);
}

int ublk_control_delete(struct ublk_control *c, uint32_t device)
{
    int r = c->encodes ? ublk_control_call(c, UBLK_U_CMD_DEL_DEV_ASYNC, device, NULL, 0, 0) : -EOPNOTSUPP;
    return r == -EOPNOTSUPP || r == -UBLK_ABI_ENOTSUPP
               ? ublk_control_call(c, UBLK_U_CMD_DEL_DEV, device, NULL, 0, 0)
               : r;
}

static int read_link(const char *link_path, char ret_device[UBLK_DEVICE_BYTES], uint32_t *ret_number)
{
    ssize_t n = readlink(link_path, ret_device, UBLK_DEVICE_BYTES - 1);
    if (n < 0)
        return -errno;
    ret_device[n] = '\0';
    return ublk_parse_device(ret_device, ret_number) < 0 ? -ENOENT : 0;
}

int ublk_find(const char *link_path, char ret_device[UBLK_DEVICE_BYTES])
{
    char device[UBLK_DEVICE_BYTES];
    uint32_t number;
    struct stat st;
    if (read_link(link_path, device, &number) < 0 || stat(device, &st) < 0 || !S_ISBLK(st.st_mode))
        return -ENOENT;
    memcpy(ret_device, device, sizeof device);
    return 0;
}

bool ublk_control_find(struct ublk_control *c, const char *link_path, struct ublksrv_ctrl_dev_info *ret)
{
    char device[UBLK_DEVICE_BYTES];
    uint32_t number;
    return read_link(link_path, device, &number) == 0 && ublk_control_info(c, number, ret) == 0 &&
           ret->ublksrv_flags == ublk_identity(link_path);
}

static int end_device(const char *link_path, bool removes, struct error *err)
{
    struct error why = ERROR_INIT;
    struct stat st;
    struct ublk_control c;
    struct ublksrv_ctrl_dev_info info;
    if (lstat(link_path, &st) < 0)
        return errno == ENOENT || errno == ENOTDIR ? 0
                                                   : error_errno(err, -errno, "cannot look at %s", link_path);
    int r = ublk_control_open(&c, &why);
    if (r == 0 && ublk_control_find(&c, link_path, &info)) {
        r = ublk_control_call(&c, UBLK_U_CMD_STOP_DEV, info.dev_id, NULL, 0, 0);
        if (r == 0 && removes)
            r = ublk_control_delete(&c, info.dev_id);
        if (r < 0)
            error_errno(&why, r, "cannot remove /dev/ublkb%u", info.dev_id);
    }
    ublk_control_close(&c);
    if (r < 0 && r != -ENOSYS) { /* without ublk there is no device */
        *err = why;
        return r;
    }
    if (removes && unlink(link_path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s", link_path);
    return 0;
}

int ublk_stop(const char *link_path, struct error *err)
{
    return end_device(link_path, false, err);
}

int ublk_remove(const char *link_path, struct error *err)
{
    return end_device(link_path, true, err);
}
