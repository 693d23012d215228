/* SPDX-License-Identifier: Apache-2.0 */
/* File systems on block devices: what is there, making, mounting, unmounting, and who holds one.
 *
 * Threads: thread-safe. All of it may block. */
#ifndef TIDEMARK_CONTROL_MOUNTS_H
#define TIDEMARK_CONTROL_MOUNTS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define MOUNTS_TYPE_BYTES 32
#define MOUNTS_USERS_BYTES 512

/* The source of what is mounted on top of `directory` ("/dev/loop3"), from /proc/self/mountinfo. -ENOENT (no
 * message) when it is no mount point. */
int mounts_source(const char *directory, char *ret_source, size_t size) MUST_CHECK;
/* The first place where `device` is mounted. -ENOENT (no message). */
int mounts_target(const char *device, char *ret_directory, size_t size) MUST_CHECK;

/* What blkid finds on the device: "ext4", "xfs", ...; "" when there is no signature at all. Anything else
 * that it finds (a partition table, several signatures) is told as its name. */
int mounts_probe(const char *device, char ret_type[MOUNTS_TYPE_BYTES], struct error *err) MUST_CHECK;
/* The same for a copy of a device, such as a view's: ext4 that names another device as its journal is not told as ext4, since
 * mounting the copy would play back and write the journal of the original; nor is btrfs as btrfs when the kernel would take copy and
 * original for one another. */
int mounts_probe_copy(const char *device, char ret_type[MOUNTS_TYPE_BYTES], struct error *err) MUST_CHECK;
/* Makes a file system. `zeroed`: nothing was ever written to the device. */
int mounts_make(const char *device, const char *type, bool zeroed, struct error *err) MUST_CHECK;

/* -EBUSY, -ENOTEMPTY, -ENOTDIR with a remedy unless the directory can take a mount: an empty directory, or
 * none yet (created with its parents; *ret_created, may be NULL, tells). */
int mounts_prepare(const char *directory, bool *ret_created, struct error *err) MUST_CHECK;
/* Mounts with noatime; `copy`: what it is a copy of may be mounted here, too (nouuid for xfs). */
int mounts_mount(const char *device, const char *directory, const char *type, bool copy,
                 struct error *err) MUST_CHECK;
/* Mounts read-only what may be damaged: if its log cannot be replayed, without it. */
int mounts_mount_salvaged(const char *device, const char *directory, const char *type, struct error *err) MUST_CHECK;
/* Writes everything out and unmounts. 0 when nothing is mounted there. -EBUSY with the processes that use it;
 * `force` detaches then. */
int mounts_unmount(const char *directory, bool force, struct error *err) MUST_CHECK;
/* Makes the mounted file system as large as its device: ext4, xfs and btrfs; others are left as they are. Nothing to do is no error.
 * `sure`: the device has grown; otherwise it is looked at first whether the file system fills it. */
int mounts_grow(const char *device, const char *directory, bool sure, struct error *err) MUST_CHECK;
/* Whether `path` is `other` or lies below it, by their names. */
bool mounts_is_within(const char *path, const char *other);
/* The processes that use the file system at `directory`, "postgres (812: cwd), ...". Returns their number. */
size_t mounts_users(const char *directory, char ret_text[MOUNTS_USERS_BYTES]);
/* Drops what the kernel has cached of the device. */
int mounts_drop_cache(const char *device, struct error *err) MUST_CHECK;

#endif
