/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel's FUSE can do, asked by a mount that is never served. Needs root. */
#ifndef TIDEMARK_EXPORT_FUSE_PROBE_H
#define TIDEMARK_EXPORT_FUSE_PROBE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* Whether the kernel sends again what a server that was killed had not answered (FUSE_HAS_RESEND, Linux 6.9). Mounts on the
 * directory `directory` (created, and removed again) and reads the kernel's INIT. Blocks for at most a second. */
int fuse_probe_resend(const char *directory, bool *ret, struct error *err) MUST_CHECK;
/* The same of an INIT request that was read. -EPROTO when it is none. */
int fuse_probe_parse(const void *request, size_t length_bytes, bool *ret, struct error *err) MUST_CHECK;

#endif
