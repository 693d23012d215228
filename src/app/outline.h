/* SPDX-License-Identifier: Apache-2.0 */
/* What of an object is needed to plan with it, without its contents: thousands of objects are planned
 * together, and only one at a time is compared or made.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_OUTLINE_H
#define TIDEMARK_APP_OUTLINE_H

#include <jansson.h>

#include "base/error.h"

#define OUTLINE_TEXT_BYTES 1024u /* longer texts are left out: no name is as long */
#define OUTLINE_VALUES 1000u     /* of somebody else's kind: what comes after so many is left out */

/* Leaves out the data of ConfigMaps and Secrets, the schemas of definitions, long texts, what managers own of
 * fields, and of somebody else's kind what is too much. What it is called, metadata, references
 * (app/references.h) and what decides about its order, limits and reconcilers is there. *ret: a new
 * reference, to the object itself when there is nothing to leave out. -ENOMEM. */
int object_outline(json_t *object, json_t **ret, struct error *err) MUST_CHECK;

#endif
