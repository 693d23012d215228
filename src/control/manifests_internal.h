/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROL_MANIFESTS_INTERNAL_H
#define TIDEMARK_CONTROL_MANIFESTS_INTERNAL_H

#include <dirent.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define MANIFESTS_FILE_BYTES_MAX (1u << 20)
#define MANIFESTS_DEPTH_MAX 16u

/* The content of one file as a JSON string. -ENOENT when it is not there (any more) or no regular file;
 * -EINVAL when it cannot be journaled (`problem` says why). */
int manifests_read_one(const char *directory, const char *name, json_t **ret_content, char *problem,
                       size_t problem_size) MUST_CHECK;
/* An entry that readdir(3) has just given. */
bool manifests_is_directory(DIR *dir, const struct dirent *entry);

#endif
