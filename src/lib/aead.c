/* SPDX-License-Identifier: Apache-2.0 */
#include "lib/aead.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

struct aead {
    pthread_mutex_t mutex;
    EVP_CIPHER_CTX *encrypt, *decrypt; /* the key is set */
};

struct aead_xts {
    pthread_mutex_t mutex;
    EVP_CIPHER_CTX *encrypt, *decrypt;
};

int aead_new(const uint8_t key[AEAD_KEY_BYTES], struct aead **ret, struct error *err)
{
    struct aead *a = calloc(1, sizeof *a);
    if (!a)
        return error_errno(err, -ENOMEM, "cannot set up AES-256-GCM");
    pthread_mutex_init(&a->mutex, NULL);
    a->encrypt = EVP_CIPHER_CTX_new();
    a->decrypt = EVP_CIPHER_CTX_new();
    if (!a->encrypt || !a->decrypt ||
        EVP_EncryptInit_ex(a->encrypt, EVP_aes_256_gcm(), NULL, key, NULL) != 1 ||
        EVP_DecryptInit_ex(a->decrypt, EVP_aes_256_gcm(), NULL, key, NULL) != 1) {
        aead_free(a);
        return error_set(err, -EIO, "cannot set up AES-256-GCM");
    }
    *ret = a;
    return 0;
}

void aead_free(struct aead *a)
{
    if (!a)
        return;
    EVP_CIPHER_CTX_free(a->encrypt);
    EVP_CIPHER_CTX_free(a->decrypt);
    pthread_mutex_destroy(&a->mutex);
    free(a);
}

int aead_seal(struct aead *a, const uint8_t nonce[AEAD_NONCE_BYTES], const struct aead_part *parts,
              size_t count, uint8_t tag[AEAD_TAG_BYTES])
{
    MUTEX_GUARD(guard, &a->mutex);
    int n;
    bool good = EVP_EncryptInit_ex(a->encrypt, NULL, NULL, NULL, nonce) == 1;
    for (size_t i = 0; i < count && good; i++)
        good = EVP_EncryptUpdate(a->encrypt, parts[i].out, &n, parts[i].in, (int)parts[i].length_bytes) == 1;
    uint8_t none[AEAD_TAG_BYTES];
    good = good && EVP_EncryptFinal_ex(a->encrypt, none, &n) == 1 &&
           EVP_CIPHER_CTX_ctrl(a->encrypt, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG_BYTES, tag) == 1;
    return good ? 0 : -EIO;
}

int aead_open(struct aead *a, const uint8_t nonce[AEAD_NONCE_BYTES], const struct aead_part *parts,
              size_t count, const uint8_t tag[AEAD_TAG_BYTES])
{
    MUTEX_GUARD(guard, &a->mutex);
    int n;
    uint8_t none[AEAD_TAG_BYTES], expected[AEAD_TAG_BYTES];
    memcpy(expected, tag, sizeof expected);
    bool good = EVP_DecryptInit_ex(a->decrypt, NULL, NULL, NULL, nonce) == 1;
    for (size_t i = 0; i < count && good; i++)
        good = EVP_DecryptUpdate(a->decrypt, parts[i].out, &n, parts[i].in, (int)parts[i].length_bytes) == 1;
    if (!good || EVP_CIPHER_CTX_ctrl(a->decrypt, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG_BYTES, expected) != 1)
        return -EIO;
    return EVP_DecryptFinal_ex(a->decrypt, none, &n) == 1 ? 0 : -EBADMSG;
}

int aead_retag(struct aead *a, const uint8_t nonce[AEAD_NONCE_BYTES], void *data, size_t length_bytes,
               uint8_t ret_tag[AEAD_TAG_BYTES])
{
    uint8_t again[AEAD_RETAG_BYTES];
    int n;
    if (length_bytes > sizeof again)
        return -EINVAL;
    pthread_mutex_lock(&a->mutex);
    bool good = EVP_DecryptInit_ex(a->decrypt, NULL, NULL, NULL, nonce) == 1 &&
                EVP_DecryptUpdate(a->decrypt, data, &n, data, (int)length_bytes) == 1;
    pthread_mutex_unlock(&a->mutex);
    struct aead_part part = {data, again, length_bytes};
    return good ? aead_seal(a, nonce, &part, 1, ret_tag) : -EIO;
}

int aead_xts_new(const uint8_t key[2 * AEAD_KEY_BYTES], struct aead_xts **ret, struct error *err)
{
    struct aead_xts *x = calloc(1, sizeof *x);
    if (!x)
        return error_errno(err, -ENOMEM, "cannot set up AES-256-XTS");
    pthread_mutex_init(&x->mutex, NULL);
    x->encrypt = EVP_CIPHER_CTX_new();
    x->decrypt = EVP_CIPHER_CTX_new();
    if (!x->encrypt || !x->decrypt ||
        EVP_EncryptInit_ex(x->encrypt, EVP_aes_256_xts(), NULL, key, NULL) != 1 ||
        EVP_DecryptInit_ex(x->decrypt, EVP_aes_256_xts(), NULL, key, NULL) != 1) {
        aead_xts_free(x);
        return error_set(err, -EIO, "cannot set up AES-256-XTS");
    }
    *ret = x;
    return 0;
}

void aead_xts_free(struct aead_xts *x)
{
    if (!x)
        return;
    EVP_CIPHER_CTX_free(x->encrypt);
    EVP_CIPHER_CTX_free(x->decrypt);
    pthread_mutex_destroy(&x->mutex);
    free(x);
}

int aead_xts_crypt(struct aead_xts *x, bool encrypt, uint64_t unit, const void *in, void *out,
                   size_t length_bytes)
{
    MUTEX_GUARD(guard, &x->mutex);
    uint8_t tweak[16] = {0};
    int n;
    for (int i = 0; i < 8; i++)
        tweak[i] = (uint8_t)(unit >> 8 * i);
    EVP_CIPHER_CTX *c = encrypt ? x->encrypt : x->decrypt;
    bool good = EVP_CipherInit_ex(c, NULL, NULL, NULL, tweak, -1) == 1 &&
                EVP_CipherUpdate(c, out, &n, in, (int)length_bytes) == 1;
    return good ? 0 : -EIO;
}

int aead_mac(const uint8_t *key, size_t key_bytes, const void *data, size_t length_bytes,
             uint8_t ret[AEAD_MAC_BYTES])
{
    return HMAC(EVP_sha256(), key, (int)key_bytes, data, length_bytes, ret, NULL) ? 0 : -EIO;
}

int aead_random(void *data, size_t length_bytes)
{
    return RAND_bytes(data, (int)length_bytes) == 1 ? 0 : -EIO;
}

bool aead_equal(const void *a, const void *b, size_t length_bytes)
{
    return CRYPTO_memcmp(a, b, length_bytes) == 0;
}

void aead_wipe(void *data, size_t length_bytes)
{
    OPENSSL_cleanse(data, length_bytes);
}
