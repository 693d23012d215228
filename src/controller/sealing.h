/* SPDX-License-Identifier: Apache-2.0 */
/* Secrets as they stand in the journal: AES-256-GCM by a key that lives in a Secret of the driver's
 * namespace, which is never captured. Whoever has the journal alone has no secret; whoever loses the key
 * loses the journaled Secrets. docs/formats/sealed-object.md.
 *
 * Threads: read-only once opened; any. */
#ifndef TIDEMARK_CONTROLLER_SEALING_H
#define TIDEMARK_CONTROLLER_SEALING_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define SEALING_KEY_BYTES 32u
#define SEALING_KEY_ID_BYTES 17u /* hexadecimal, with the NUL */

struct sealing {
    uint8_t key[SEALING_KEY_BYTES];
    char id[SEALING_KEY_ID_BYTES];
};
int sealing_init(struct sealing *sealing, const uint8_t key[SEALING_KEY_BYTES], struct error *err) MUST_CHECK;
void sealing_release(struct sealing *sealing);
/* {"apiVersion","kind","metadata":{"name","namespace"},"sealed":{"version","key","nonce","data"}}: the
 * object's canonical text sealed, bound to its journal name. */
int sealing_seal(const struct sealing *sealing, const char *journal_name, const json_t *object, json_t **ret,
                 struct error *err) MUST_CHECK;
/* Gives the object back; one that is not sealed as it is. -EKEYREJECTED: sealed by another key; -EBADMSG: not
 * authentic. */
int sealing_open(const struct sealing *sealing, const char *journal_name, const json_t *stored, json_t **ret,
                 struct error *err) MUST_CHECK;

#endif
