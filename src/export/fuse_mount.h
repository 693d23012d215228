/* SPDX-License-Identifier: Apache-2.0 */
/* Mounts and unmounts the FUSE file system of one volume. Needs root (CAP_SYS_ADMIN). All calls may block. */
#ifndef TIDEMARK_EXPORT_FUSE_MOUNT_H
#define TIDEMARK_EXPORT_FUSE_MOUNT_H

#include "base/error.h"

#define FUSE_MOUNT_TYPE "fuse.tidemark" /* as it stands in /proc/mounts */

/* Mounts a FUSE file system on the empty directory `directory`, with `name` as its source in /proc/mounts.
 * Returns its descriptor and a non-blocking clone of it, both inherited over exec: whoever is to answer must
 * hold both as long as the mount shall survive a crash of the server. Dead FUSE mounts that are found there
 * are detached first. -EBUSY when something else is mounted there, -ENOTEMPTY, -ENODEV without FUSE, -EPERM.
 */
int fuse_mount(const char *directory, const char *name, int *ret_fd, int *ret_nonblock_fd,
               struct error *err) MUST_CHECK;

/* Unmounts `directory`; when it is still used, detaches it, so that it goes away with its last user. 0 when
 * nothing is mounted there. */
int fuse_mount_remove(const char *directory, struct error *err) MUST_CHECK;

/* The same, but one that is used stays, and answers ENOTCONN once its server is gone: a loop device is found by the path of its file below, and
 * whoever attached it detaches it and removes the mount then. Detached here, it would be the device of a file that nobody can name. */
int fuse_mount_remove_unused(const char *directory, struct error *err) MUST_CHECK;

#endif
