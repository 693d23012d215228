/* SPDX-License-Identifier: Apache-2.0 */
/* OpenSSL's AES-256-GCM (NIST SP 800-38D), AES-256-XTS (IEEE 1619), HMAC-SHA256 and random bytes.
 * Thread-safe: an object serialises its callers. Nothing is allocated after the object is made. */
#ifndef TIDEMARK_LIB_AEAD_H
#define TIDEMARK_LIB_AEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define AEAD_KEY_BYTES 32u
#define AEAD_NONCE_BYTES 12u
#define AEAD_TAG_BYTES 16u
#define AEAD_MAC_BYTES 32u

struct aead;
/* Parts are taken one after the other; those without `out` are authenticated only and come first. in == out
 * is allowed. */
struct aead_part {
    const void *in;
    void *out;
    size_t length_bytes;
};

int aead_new(const uint8_t key[AEAD_KEY_BYTES], struct aead **ret, struct error *err) MUST_CHECK;
void aead_free(struct aead *a);
/* Encrypts. A nonce must never be used twice with a key. -EIO: the library failed. */
int aead_seal(struct aead *a, const uint8_t nonce[AEAD_NONCE_BYTES], const struct aead_part *parts,
              size_t count, uint8_t tag[AEAD_TAG_BYTES]) MUST_CHECK;
/* Decrypts and checks; -EBADMSG: not authentic, and what was decrypted must not be used. */
int aead_open(struct aead *a, const uint8_t nonce[AEAD_NONCE_BYTES], const struct aead_part *parts,
              size_t count, const uint8_t tag[AEAD_TAG_BYTES]) MUST_CHECK;
/* Decrypts at most AEAD_RETAG_BYTES in place and tells the tag that they have, for a caller that checks the
 * tags together. */
#define AEAD_RETAG_BYTES 4096u
int aead_retag(struct aead *a, const uint8_t nonce[AEAD_NONCE_BYTES], void *data, size_t length_bytes,
               uint8_t ret_tag[AEAD_TAG_BYTES]) MUST_CHECK;

struct aead_xts;
/* The two halves of the key must differ. */
int aead_xts_new(const uint8_t key[2 * AEAD_KEY_BYTES], struct aead_xts **ret, struct error *err) MUST_CHECK;
void aead_xts_free(struct aead_xts *x);
int aead_xts_crypt(struct aead_xts *x, bool encrypt, uint64_t unit, const void *in, void *out,
                   size_t length_bytes) MUST_CHECK;

int aead_mac(const uint8_t *key, size_t key_bytes, const void *data, size_t length_bytes,
             uint8_t ret[AEAD_MAC_BYTES]) MUST_CHECK;
int aead_random(void *data, size_t length_bytes) MUST_CHECK;
/* Whether both are the same, in a time that does not tell where they differ. */
bool aead_equal(const void *a, const void *b, size_t length_bytes);
/* Overwrites a secret, also where the compiler thinks that nobody reads it. */
void aead_wipe(void *data, size_t length_bytes);

#endif
