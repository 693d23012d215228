/* SPDX-License-Identifier: Apache-2.0 */
/* Between the control of devices (ublk_control.c), the thread that serves one (ublk_loop.c) and
 * ublk_export.c. */
#ifndef TIDEMARK_EXPORT_UBLK_INTERNAL_H
#define TIDEMARK_EXPORT_UBLK_INTERNAL_H

#include <liburing.h>

#include "export/ublk.h"

/* ---- ublk_control.c: one thread at a time; calls block ---- */
struct ublk_control {
    int fd;
    bool ring_runs;
    bool encodes; /* commands as ioctl numbers (Linux 6.4) */
    struct io_uring ring;
};
int ublk_control_open(struct ublk_control *ret, struct error *err) MUST_CHECK;
void ublk_control_close(struct ublk_control *c);
/* What the kernel answers: a negative errno without a message. `encoded`: UBLK_U_CMD_*. */
int ublk_control_call(struct ublk_control *c, uint32_t encoded, uint32_t device, void *data,
                      size_t data_bytes, uint64_t value) MUST_CHECK;
int ublk_control_info(struct ublk_control *c, uint32_t device, struct ublksrv_ctrl_dev_info *ret) MUST_CHECK;
/* Removes a device that was stopped: its number is free once nobody uses it any more, which is not waited for
 * (Linux 6.9). */
int ublk_control_delete(struct ublk_control *c, uint32_t device) MUST_CHECK;
/* Whether the link names a device that was made for it. */
bool ublk_control_find(struct ublk_control *c, const char *link_path, struct ublksrv_ctrl_dev_info *ret);

/* ---- ublk_loop.c ---- */
struct ublk_loop;

struct ublk_loop_options {
    struct block *block; /* all outlive the loop */
    const char *name;
    const struct log *log;
    int fd; /* of /dev/ublkc<number> */
    bool encodes;
    unsigned queues, depth, io_bytes;
    uint64_t spin_ns;
};

/* Starts the thread that serves all queues of a device, and waits until it has asked the kernel for requests.
 */
int ublk_loop_start(const struct ublk_loop_options *options, struct ublk_loop **ret,
                    struct error *err) MUST_CHECK;
/* Waits until what was begun is answered. Stop the device before: requests that come later wait for another
 * process. */
void ublk_loop_free(struct ublk_loop *l);

#endif
