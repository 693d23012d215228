/* SPDX-License-Identifier: Apache-2.0 */
/* Between transform.c (what is meant, and where) and transform_names.c (names that others know an object by).
 */
#ifndef TIDEMARK_APP_TRANSFORM_INTERNAL_H
#define TIDEMARK_APP_TRANSFORM_INTERNAL_H

#include "app/objects_internal.h"

/* Each changes one object, and returns how many places were changed, or -errno. What it has to know of the
 * others is found in their outlines ({name: outline}) before. */

/* `services`: of transform_services. */
long transform_namespace(json_t *object, const char *from, const char *to, const json_t *services);
/* {name: true} of the Services in the namespace; the caller owns it. NULL: out of memory. */
json_t *transform_services(const json_t *outlines, const char *namespace);
/* `renames`: of transform_plan_rename. */
long transform_rename(json_t *object, const json_t *renames);
/* Adds to the list that the object of the outline gets the name, and what has to follow. */
int transform_plan_rename(const json_t *outlines, const json_t *outline, const char *to, json_t *renames);
long transform_host(json_t *object, const char *from, const char *to);

/* `text` with each `from` replaced that stands by itself: not behind a letter, digit, '-' or '.', nor before
 * one (with `tail` a '.' may follow). NULL in *ret when there is none. Returns the number, or -ENOMEM. */
long transform_replace_name(const char *text, const char *from, const char *to, bool tail, char **ret);

#endif
