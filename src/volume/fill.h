/* SPDX-License-Identifier: Apache-2.0 */
/* Making a volume that is filled behind: see group_set_source. */
#ifndef TIDEMARK_VOLUME_FILL_H
#define TIDEMARK_VOLUME_FILL_H

#include <stdint.h>

#include "base/error.h"

#define FILL_SUFFIX ".unfilled"

/* Makes the sparse backing (new) and, durable before that, the file that says which grains it lacks: bit i of `words` is grain i. Without any
 * it is whole. Both are durable; their names are once the caller has synchronized the directory. */
int fill_create(const char *backing, uint32_t source_volume, uint64_t size_bytes, const uint64_t *words, struct error *err) MUST_CHECK;

#endif
