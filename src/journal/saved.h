/* SPDX-License-Identifier: Apache-2.0 */
/* Small JSON files of the journal with a CRC32C of their own, so that a flipped bit is found (J6): the text, a newline, the
 * CRC of the text as 8 hexadecimal digits, a newline. For use inside the journal. */
#ifndef TIDEMARK_JOURNAL_SAVED_H
#define TIDEMARK_JOURNAL_SAVED_H

#include "base/error.h"
#include "lib/json.h"

/* Replaces `path` (io_replace_file). */
int saved_write(const char *path, const json_t *json, struct error *err) MUST_CHECK;
/* -EBADMSG when it is damaged; -ENOENT. *ret is the caller's. */
int saved_read(const char *path, json_t **ret, struct error *err) MUST_CHECK;

#endif
