/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/sealing.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "lib/json.h"

#define NONCE_BYTES 12
#define TAG_BYTES 16
#define VERSION 1

static void cleanup_cipher(EVP_CIPHER_CTX **c)
{
    EVP_CIPHER_CTX_free(*c);
}

int sealing_init(struct sealing *s, const uint8_t key[SEALING_KEY_BYTES], struct error *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    memcpy(s->key, key, SEALING_KEY_BYTES);
    /* The id says which key is needed, and nothing about it. */
    if (!EVP_Digest(key, SEALING_KEY_BYTES, digest, NULL, EVP_sha256(), NULL))
        return error_set(err, -EIO, "SHA-256 is not available in libcrypto");
    for (size_t i = 0; i < 8; i++)
        snprintf(s->id + 2 * i, 3, "%02x", digest[i]);
    return 0;
}

void sealing_release(struct sealing *s)
{
    explicit_bzero(s, sizeof *s);
}

/* `data` is changed in place; `tag` is made or checked. */
static int crypt_text(const struct sealing *s, bool seal, const char *name, const uint8_t nonce[NONCE_BYTES],
                      uint8_t *data, size_t length, uint8_t tag[TAG_BYTES])
{
    EVP_CIPHER_CTX *c __attribute__((cleanup(cleanup_cipher))) = EVP_CIPHER_CTX_new();
    int n;
    if (!c || !EVP_CipherInit_ex(c, EVP_aes_256_gcm(), NULL, s->key, nonce, seal) ||
        !EVP_CipherUpdate(c, NULL, &n, (const uint8_t *)name, (int)strlen(name)) ||
        !EVP_CipherUpdate(c, data, &n, data, (int)length))
        return -EIO;
    if (!seal && !EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, TAG_BYTES, tag))
        return -EIO;
    if (EVP_CipherFinal_ex(c, data + n, &n) != 1)
        return seal ? -EIO : -EBADMSG;
    return seal && !EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, tag) ? -EIO : 0;
}

static char *encode(const uint8_t *data, size_t length)
{
    char *text = malloc(length / 3 * 4 + 5);
    if (text)
        EVP_EncodeBlock((unsigned char *)text, data, (int)length);
    return text;
}

/* Free *ret. */
static int decode(const char *text, uint8_t **ret, size_t *ret_length, struct error *err)
{
    size_t length = strlen(text);
    uint8_t *data = malloc(length + 1);
    int n = data && length % 4 == 0 ? EVP_DecodeBlock(data, (const unsigned char *)text, (int)length) : -1;
    for (size_t i = length; n >= 0 && i > 0 && text[i - 1] == '='; i--)
        n--;
    if (n < 0) {
        free(data);
        return error_set(err, -EBADMSG, "a sealed object holds what is not base64");
    }
    *ret = data;
    *ret_length = (size_t)n;
    return 0;
}

int sealing_seal(const struct sealing *s, const char *journal_name, const json_t *object, json_t **ret,
                 struct error *err)
{
    _cleanup_free_ char *plain = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);
    uint8_t nonce[NONCE_BYTES];
    size_t length = plain ? strlen(plain) : 0;
    _cleanup_free_ uint8_t *sealed = malloc(length + TAG_BYTES);
    if (!plain || !sealed)
        return error_errno(err, -ENOMEM, "sealing %s", journal_name);
    if (getrandom(nonce, sizeof nonce, 0) != (ssize_t)sizeof nonce)
        return error_errno(err, -EIO, "sealing %s: no random bytes", journal_name);
    memcpy(sealed, plain, length);
    explicit_bzero(plain, length);
    int r = crypt_text(s, true, journal_name, nonce, sealed, length, sealed + length);
    if (r < 0)
        return error_errno(err, r, "sealing %s", journal_name);
    _cleanup_free_ char *nonce_text = encode(nonce, sizeof nonce),
                        *data_text = encode(sealed, length + TAG_BYTES);
    json_t *metadata = json_object_get(object, "metadata");
    json_t *stored =
        !nonce_text || !data_text
            ? NULL
            : json_pack("{s:O?, s:O?, s:{s:O?, s:O?}, s:{s:i, s:s, s:s, s:s}}", "apiVersion",
                        json_object_get(object, "apiVersion"), "kind", json_object_get(object, "kind"),
                        "metadata", "name", json_object_get(metadata, "name"), "namespace",
                        json_object_get(metadata, "namespace"), "sealed", "version", VERSION, "key", s->id,
                        "nonce", nonce_text, "data", data_text);
    if (!stored)
        return error_errno(err, -ENOMEM, "sealing %s", journal_name);
    *ret = stored;
    return 0;
}

int sealing_open(const struct sealing *s, const char *journal_name, const json_t *stored, json_t **ret,
                 struct error *err)
{
    const json_t *box = json_object_get(stored, "sealed");
    const char *key, *nonce_text, *data_text;
    _cleanup_free_ uint8_t *nonce = NULL, *data = NULL;
    size_t nonce_length, length;
    uint64_t version;
    int r;
    if (!box) {
        *ret = json_deep_copy(stored);
        return *ret ? 0 : error_errno(err, -ENOMEM, "%s", journal_name);
    }
    if ((r = json_get_u64(box, "version", &version, err)) < 0 ||
        (r = json_get_string(box, "key", &key, err)) < 0 ||
        (r = json_get_string(box, "nonce", &nonce_text, err)) < 0 ||
        (r = json_get_string(box, "data", &data_text, err)) < 0)
        return error_context(err, "sealed object %s", journal_name);
    if (version != VERSION)
        return error_set(err, -EOPNOTSUPP, "%s was sealed by a newer Tidemark", journal_name);
    if (strcmp(key, s->id) != 0)
        return error_set(
            err, -EKEYREJECTED,
            "%s was sealed by the key %s, and the cluster has the key %s: restore the Secret that held it",
            journal_name, key, s->id);
    if ((r = decode(nonce_text, &nonce, &nonce_length, err)) < 0 ||
        (r = decode(data_text, &data, &length, err)) < 0)
        return error_context(err, "%s", journal_name);
    if (nonce_length != NONCE_BYTES || length < TAG_BYTES)
        return error_set(err, -EBADMSG, "sealed object %s is too short", journal_name);
    length -= TAG_BYTES;
    uint8_t tag[TAG_BYTES];
    memcpy(tag, data + length, TAG_BYTES);
    if ((r = crypt_text(s, false, journal_name, nonce, data, length, tag)) < 0)
        return error_set(err, r, "sealed object %s is damaged or was moved from another name", journal_name);
    r = json_parse_foreign(journal_name, (const char *)data, length, ret, err);
    explicit_bzero(data, length);
    return r;
}
