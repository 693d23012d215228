/* SPDX-License-Identifier: Apache-2.0 */
/* Loop devices over the file of a FUSE export: what turns it into a block device. Always with direct I/O, so
 * that nothing is cached twice and a flush means what it says. Needs root. All calls may block. */
#ifndef TIDEMARK_EXPORT_LOOP_H
#define TIDEMARK_EXPORT_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define LOOP_DEVICE_BYTES 32          /* "/dev/loop1048575" and its NUL */
#define LOOP_BACKING_BYTES 8192       /* what sysfs says at the most */
#define LOOP_BLOCK_BYTES 4096         /* logical block size of the device */
#define LOOP_BLOCK_BYTES_ADOPTED 512  /* of one that holds what was made elsewhere */
#define LOOP_DETACH_TIMEOUT_MS 10000u /* enough for the last user to let go after an unmount */

/* Attaches `path` to a free loop device and returns the device's path ("/dev/loop3"). The device node is made
 * where devtmpfs does not (containers). Reads the first blocks of the file, so its server must be serving. */
int loop_attach(const char *path, bool read_only, char ret_device[LOOP_DEVICE_BYTES],
                struct error *err) MUST_CHECK;

/* The same with another logical block size: a file system that was made on a device with 512 bytes cannot be
 * mounted on one with more. */
int loop_attach_blocks(const char *path, bool read_only, unsigned block_bytes,
                       char ret_device[LOOP_DEVICE_BYTES], struct error *err) MUST_CHECK;

/* The loop device whose backing file is `path` (which may be gone by now), by name, or by device and inode
 * where it was attached under another name. -ENOENT when there is none. */
int loop_find(const char *path, char ret_device[LOOP_DEVICE_BYTES], struct error *err) MUST_CHECK;

/* The path of the file that `device` ("/dev/loop3") is attached to, as it was then; false where it is no loop device, or attached to nothing. */
bool loop_backing(const char *device, char ret_path[LOOP_BACKING_BYTES]) MUST_CHECK;

/* Gives `device` the size that its backing file `path` has now, which is waited for until it is `size_bytes`.
 * *ret_grown: it had another one. */
int loop_grow(const char *device, const char *path, uint64_t size_bytes, bool *ret_grown,
              struct error *err) MUST_CHECK;

/* Detaches `device` and waits until the kernel has let go of the file. 0 when it is not attached. -EBUSY when
 * the device is still used after `timeout_ms`: it stays then, or with `lazy` goes away by itself with its last user. */
int loop_detach(const char *device, unsigned timeout_ms, bool lazy, struct error *err) MUST_CHECK;

/* Takes back that `device` shall go away with its last user: a detachment that was refused or cut off has left that. -ENXIO when it has gone. */
int loop_keep(const char *device, struct error *err) MUST_CHECK;

#endif
