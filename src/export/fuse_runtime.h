/* SPDX-License-Identifier: Apache-2.0 */
/* The body of a program that a holder starts: serves all volumes of a runtime over inherited FUSE
 * descriptors. */
#ifndef TIDEMARK_EXPORT_FUSE_RUNTIME_H
#define TIDEMARK_EXPORT_FUSE_RUNTIME_H

#include "base/log.h"
#include "export/runtime.h"

#define FUSE_RUNTIME_ENVIRONMENT "TIDEMARK_FUSE"          /* "data:5:6,wal:7:8": volume:descriptor:clone */
#define FUSE_RUNTIME_ENVIRONMENT_RESUME "TIDEMARK_RESUME" /* "1": another process has served them before */
#define FUSE_RUNTIME_MAX_VOLUMES 256u

/* Where one volume's requests come from. */
struct fuse_runtime_descriptor {
    const char *volume; /* points into the parsed text */
    int fd;
    int nonblock_fd; /* -1: none */
};

/* Splits the value of TIDEMARK_FUSE in place (the third field may be missing). -EINVAL with a message for
 * another form, a name twice or more than `capacity`. */
int fuse_runtime_parse(char *text, struct fuse_runtime_descriptor *descriptors, size_t capacity,
                       size_t *ret_count, struct error *err) MUST_CHECK;

/* runtime_main over them. A volume without a descriptor is refused, a descriptor without a volume is left alone (its
 * requests wait). */
int fuse_runtime_main(const struct runtime_ops *ops, const char *config_path, const struct log *log);

#endif
