/* SPDX-License-Identifier: Apache-2.0 */
/* JSON Patch (RFC 6902) over JSON Pointer (RFC 6901).
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_JSON_PATCH_H
#define TIDEMARK_APP_JSON_PATCH_H

#include <jansson.h>

#include "base/error.h"

#define JSON_PATCH_OPERATIONS_MAX 100u
#define JSON_PATCH_POINTER_BYTES 1024u
#define JSON_PATCH_GROWTH_BYTES (1u << 20) /* of the document's text, by copies */

/* Applies the array of operations to a copy of `document`, all or none. -EINVAL for what is no patch; -ENOENT
 * when a path (or `from`) is not there; -EBADMSG when a test fails; -EFBIG beyond the limits. The message
 * names the operation by number. */
int json_patch_apply(const json_t *document, const json_t *operations, json_t **ret,
                     struct error *err) MUST_CHECK;
/* Whether it has the form of a patch, without a document. */
int json_patch_check(const json_t *operations, struct error *err) MUST_CHECK;

#endif
