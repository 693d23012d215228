/* SPDX-License-Identifier: Apache-2.0 */
/* What differs between two sets of normalized objects. Values of Secrets, and fields that sound like
 * credentials, are never in the result: a change of theirs is told without values.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_OBJECTS_DIFF_H
#define TIDEMARK_APP_OBJECTS_DIFF_H

#include <jansson.h>

#include "app/objects.h"

#define OBJECTS_DIFF_FIELDS_MAX 100u  /* of one object; more are counted */
#define OBJECTS_DIFF_VALUE_BYTES 200u /* of a value in the text form */

/* *ret: {"created": N, "changed": N, "deleted": N, "same": N, "objects":
 *   [{"object": journal name, "change": "created"|"changed"|"deleted",
 *     "fields": [{"path": "spec.replicas", "from": value or missing, "to": value or missing, "hidden": true
 * or missing}], "moreFields": N (or missing)} ...]}    sorted by name; fields of changed ones only. Elements
 * of lists are matched by name, key, or port where all have one, else by place. */
int objects_diff(const json_t *from, const json_t *to, json_t **ret, struct error *err) MUST_CHECK;
/* The same for people, a line an object and a line a field; "" when nothing differs. The caller frees it;
 * NULL when out of memory. */
char *objects_diff_text(const json_t *diff);

#endif
