/* SPDX-License-Identifier: Apache-2.0 */
/* Serves block devices as /dev/ublkb<number> (Linux 6.0, module ublk_drv; docs/adr/0017). Each is named by a
 * symbolic link,
 * "<directory>/<volume>" -> "/dev/ublkb3": who knows the link finds the device, whoever serves it. Needs
 * root.
 *
 * A device of a program that is started again (UBLK_F_USER_RECOVERY) outlives a crash of it: I/O waits
 * meanwhile, and what was under way is given to the next program again. Other devices fail then. Both are
 * there until they are removed. */
#ifndef TIDEMARK_EXPORT_UBLK_H
#define TIDEMARK_EXPORT_UBLK_H

#include "base/error.h"
#include "base/log.h"
#include "export/runtime.h"
#include "export/ublk_protocol.h"

#define UBLK_CONTROL "/dev/ublk-control"
#define UBLK_DEFAULT_SPIN_US 50u
#define UBLK_TAKEOVER_TIMEOUT_MS 30000u /* until the kernel has seen the end of the last process */
#define UBLK_VOLUMES_MAX 256u
#define UBLK_SERVED ".served" /* a file beside the links, once all volumes are served for the first time */

/* Whether this kernel has ublk: -ENOSYS with what to do. */
int ublk_probe(struct error *err) MUST_CHECK;
/* The device that the link names, if it serves; no I/O. -ENOENT (no message) otherwise. */
int ublk_find(const char *link_path, char ret_device[UBLK_DEVICE_BYTES]) MUST_CHECK;
/* Ends the device that was made for the link: I/O that waits for a server fails, and all that comes. The
 * process that served it must have ended. 0 when there is none. Blocks. */
int ublk_stop(const char *link_path, struct error *err) MUST_CHECK;
/* Removes the device, if it is the one that was made for the link, after stopping it, and the link. */
int ublk_remove(const char *link_path, struct error *err) MUST_CHECK;

struct ublk_export;

struct ublk_export_options {
    struct block *block;   /* not owned; outlives the export, as does the name */
    const char *name;      /* of the volume, in messages */
    const char *link_path; /* absolute, in a directory that is there */
    bool recoverable;      /* outlives a crash of this process */
    bool take_over;        /* the device that the link names, if there is one */
    const struct log *log;
};

/* The device is there when it returns. Blocks. */
int ublk_export_start(const struct ublk_export_options *options, struct ublk_export **ret,
                      struct error *err) MUST_CHECK;
/* Removes the device, after what it still has to write; whoever uses it gets errors then. NULL allowed. */
void ublk_export_free(struct ublk_export *x);
/* Leaves a recoverable device to the next process: its I/O waits. */
void ublk_export_abandon(struct ublk_export *x);

/* runtime_main over a link for each volume in `directory`, which is made. Started by a holder again and again
 * (FUSE_RUNTIME_ENVIRONMENT_RESUME), it takes over what the last one has served. */
int ublk_runtime_main(const struct runtime_ops *ops, const char *config_path, const char *directory,
                      bool recoverable, const struct log *log);

#endif
