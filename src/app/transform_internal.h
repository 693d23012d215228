/* SPDX-License-Identifier: Apache-2.0 */
/* Between transform.c (what is meant, and where) and transform_names.c (names that others know an object by).
 */
#ifndef TIDEMARK_APP_TRANSFORM_INTERNAL_H
#define TIDEMARK_APP_TRANSFORM_INTERNAL_H

#include "app/objects_internal.h"

/* The objects while they are transformed: {journal name before: object}. Each returns how many places were
 * changed, or -errno. */
long transform_namespace(json_t *objects, const char *from, const char *to);
/* `namespace` "": in every one. */
long transform_rename(json_t *objects, const char *group, const char *kind, const char *namespace,
                      const char *from, const char *to);
long transform_host(json_t *object, const char *from, const char *to);

/* `text` with each `from` replaced that stands by itself: not behind a letter, digit, '-' or '.', nor before
 * one (with `tail` a '.' may follow). NULL in *ret when there is none. Returns the number, or -ENOMEM. */
long transform_replace_name(const char *text, const char *from, const char *to, bool tail, char **ret);

#endif
