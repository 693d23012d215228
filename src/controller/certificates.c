/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/certificates.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define DAY_S 86400
#define BACKDATE_S 300 /* clocks differ */
#define NAMES_BYTES 2048u

#define FREE_BY(type, name, function)                                                                        \
    static inline void name(type **p)                                                                        \
    {                                                                                                        \
        function(*p);                                                                                        \
    }
FREE_BY(X509, free_x509, X509_free)
FREE_BY(EVP_PKEY, free_key, EVP_PKEY_free)
FREE_BY(BIO, free_bio, BIO_free_all)
#define _cleanup_x509_ __attribute__((cleanup(free_x509)))
#define _cleanup_key_ __attribute__((cleanup(free_key)))
#define _cleanup_bio_ __attribute__((cleanup(free_bio)))

void certificates_release(struct certificates *c)
{
    if (c->ca_key)
        explicit_bzero(c->ca_key, strlen(c->ca_key));
    if (c->key)
        explicit_bzero(c->key, strlen(c->key));
    free(c->ca);
    free(c->ca_key);
    free(c->certificate);
    free(c->key);
    *c = (struct certificates){0};
}

/* ---- from and to PEM ---- */

static X509 *read_certificate(const char *pem)
{
    _cleanup_bio_ BIO *bio = pem ? BIO_new_mem_buf(pem, -1) : NULL;
    return bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
}

static int no_password(char *buffer, int size, int writing, void *context)
{
    (void)buffer, (void)size, (void)writing, (void)context;
    return -1;
}

static EVP_PKEY *read_key(const char *pem)
{
    _cleanup_bio_ BIO *bio = pem ? BIO_new_mem_buf(pem, -1) : NULL;
    return bio ? PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;
}

static char *text_of(BIO *bio)
{
    char *data = NULL;
    long length = BIO_get_mem_data(bio, &data);
    return length > 0 ? strndup(data, (size_t)length) : NULL;
}

static char *certificate_text(X509 *certificate)
{
    _cleanup_bio_ BIO *bio = BIO_new(BIO_s_mem());
    return bio && PEM_write_bio_X509(bio, certificate) ? text_of(bio) : NULL;
}

static char *key_text(EVP_PKEY *key)
{
    _cleanup_bio_ BIO *bio = BIO_new(BIO_s_mem());
    return bio && PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) ? text_of(bio) : NULL;
}

/* ---- whether they are good ---- */

static bool lasts(X509 *certificate, uint64_t realtime_ns, unsigned days)
{
    time_t now = (time_t)(realtime_ns / NS_PER_SECOND), then = now + (time_t)days * DAY_S;
    return X509_cmp_time(X509_get0_notAfter(certificate), &then) > 0 &&
           X509_cmp_time(X509_get0_notBefore(certificate), &now) < 0;
}

static bool has_name(X509 *certificate, const char *name)
{
    struct in6_addr address;
    if (inet_pton(AF_INET, name, &address) == 1 || inet_pton(AF_INET6, name, &address) == 1)
        return X509_check_ip_asc(certificate, name, 0) == 1;
    return X509_check_host(certificate, name, 0, 0, NULL) == 1;
}

static bool ca_is_good(X509 *ca, EVP_PKEY *key, uint64_t realtime_ns)
{
    return ca && key && X509_check_private_key(ca, key) == 1 && X509_check_ca(ca) == 1 &&
           lasts(ca, realtime_ns, CERTIFICATES_CA_RENEW_DAYS);
}

bool certificates_are_due(const struct certificates *c, const char *const *names, uint64_t realtime_ns)
{
    _cleanup_x509_ X509 *ca = read_certificate(c->ca), *certificate = read_certificate(c->certificate);
    _cleanup_key_ EVP_PKEY *ca_key = read_key(c->ca_key), *key = read_key(c->key);
    bool good = ca_is_good(ca, ca_key, realtime_ns) && certificate && key &&
                X509_check_private_key(certificate, key) == 1 && X509_verify(certificate, ca_key) == 1 &&
                lasts(certificate, realtime_ns, CERTIFICATES_RENEW_DAYS);
    for (; good && *names; names++)
        good = has_name(certificate, *names);
    return !good;
}

/* ---- making them ---- */

static bool add_extension(X509 *certificate, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, issuer, certificate, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    bool done = extension && X509_add_ext(certificate, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return done;
}

static bool set_serial(X509 *certificate)
{
    unsigned char bytes[16];
    if (RAND_bytes(bytes, sizeof bytes) != 1)
        return false;
    bytes[0] = (bytes[0] & 0x7f) | 0x40; /* positive, of 16 bytes */
    BIGNUM *number = BN_bin2bn(bytes, sizeof bytes, NULL);
    bool done = number && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate));
    BN_free(number);
    return done;
}

/* `issuer` NULL: signs itself. A new one must not have the old one's name, or a verifier might try the wrong
 * key. */
static X509 *make(EVP_PKEY *key, const char *common_name, uint64_t realtime_ns, unsigned days, X509 *issuer)
{
    X509 *certificate = X509_new();
    time_t now = (time_t)(realtime_ns / NS_PER_SECOND);
    X509_NAME *subject = certificate ? X509_get_subject_name(certificate) : NULL;
    if (certificate && X509_set_version(certificate, X509_VERSION_3) && set_serial(certificate) &&
        X509_time_adj_ex(X509_getm_notBefore(certificate), 0, -BACKDATE_S, &now) &&
        X509_time_adj_ex(X509_getm_notAfter(certificate), (int)days, 0, &now) &&
        X509_set_pubkey(certificate, key) &&
        X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)common_name, -1, -1,
                                   0) &&
        X509_set_issuer_name(certificate, issuer ? X509_get_subject_name(issuer) : subject))
        return certificate;
    X509_free(certificate);
    return NULL;
}

static X509 *make_ca(EVP_PKEY *key, uint64_t realtime_ns)
{
    char name[64];
    snprintf(name, sizeof name, "tidemark-webhook-ca-%llu",
             (unsigned long long)(realtime_ns / NS_PER_SECOND));
    X509 *ca = make(key, name, realtime_ns, CERTIFICATES_CA_DAYS, NULL);
    if (ca && add_extension(ca, ca, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
        add_extension(ca, ca, NID_key_usage, "critical,keyCertSign") &&
        add_extension(ca, ca, NID_subject_key_identifier, "hash") && X509_sign(ca, key, EVP_sha256()))
        return ca;
    X509_free(ca);
    return NULL;
}

static X509 *make_certificate(EVP_PKEY *key, const char *const *names, uint64_t realtime_ns, X509 *ca,
                              EVP_PKEY *ca_key)
{
    char list[NAMES_BYTES] = "";
    size_t length = 0;
    for (size_t i = 0; names[i] && length < sizeof list; i++) {
        struct in6_addr address;
        bool ip = inet_pton(AF_INET, names[i], &address) == 1 || inet_pton(AF_INET6, names[i], &address) == 1;
        length += (size_t)snprintf(list + length, sizeof list - length, "%s%s:%s", i ? "," : "",
                                   ip ? "IP" : "DNS", names[i]);
    }
    X509 *certificate = make(key, "tidemark-webhook", realtime_ns, CERTIFICATES_DAYS, ca);
    if (certificate && length < sizeof list &&
        add_extension(certificate, ca, NID_basic_constraints, "critical,CA:FALSE") &&
        add_extension(certificate, ca, NID_key_usage, "critical,digitalSignature") &&
        add_extension(certificate, ca, NID_ext_key_usage, "serverAuth") &&
        add_extension(certificate, ca, NID_authority_key_identifier, "keyid") &&
        add_extension(certificate, ca, NID_subject_alt_name, list) &&
        X509_sign(certificate, ca_key, EVP_sha256()))
        return certificate;
    X509_free(certificate);
    return NULL;
}

/* The old one stays beside the new one: another replica may still show what it signed. */
static int take_ca(const struct certificates *old, uint64_t realtime_ns, X509 **ca, EVP_PKEY **ca_key,
                   struct certificates *ret)
{
    *ca = read_certificate(old->ca);
    *ca_key = read_key(old->ca_key);
    if (ca_is_good(*ca, *ca_key, realtime_ns)) {
        ret->ca = strdup(old->ca);
        return ret->ca ? 0 : -ENOMEM;
    }
    _cleanup_free_ char *before = *ca ? certificate_text(*ca) : NULL;
    X509_free(*ca);
    EVP_PKEY_free(*ca_key);
    *ca = NULL;
    *ca_key = EVP_EC_gen("P-256");
    if (*ca_key)
        *ca = make_ca(*ca_key, realtime_ns);
    _cleanup_free_ char *fresh = *ca ? certificate_text(*ca) : NULL;
    return fresh && asprintf(&ret->ca, "%s%s", fresh, before ? before : "") >= 0 ? 0 : -ENOMEM;
}

int certificates_renew(const struct certificates *old, const char *const *names, uint64_t realtime_ns,
                       struct certificates *ret, struct error *err)
{
    _cleanup_x509_ X509 *ca = NULL, *certificate = NULL;
    _cleanup_key_ EVP_PKEY *ca_key = NULL, *key = EVP_EC_gen("P-256");
    struct certificates made = {0};
    int r = key ? take_ca(old, realtime_ns, &ca, &ca_key, &made) : -ENOMEM;
    if (r == 0)
        certificate = make_certificate(key, names, realtime_ns, ca, ca_key);
    if (certificate) {
        made.certificate = certificate_text(certificate);
        made.key = key_text(key);
        made.ca_key = key_text(ca_key);
    }
    if (made.certificate && made.key && made.ca_key) {
        *ret = made;
        return 0;
    }
    certificates_release(&made);
    return error_set(
        err, -EIO,
        "the webhook's certificate could not be made for %s: is the name one that can be looked up?",
        names[0] ? names[0] : "nobody");
}
