/* SPDX-License-Identifier: Apache-2.0 */
/* When certificates are made anew, and that what is made is one that a verifier takes. */
#include "../../check.h"

#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "base/clock.h"
#include "controller/certificates.h"

#define DAY_NS (86400 * NS_PER_SECOND)
static const uint64_t start = 1795000000 * NS_PER_SECOND;
static const char *const names[] = {"tidemark-webhook.tidemark-system.svc", "127.0.0.1", NULL};

static struct certificates renew(const struct certificates *old, uint64_t now)
{
    struct error err = ERROR_INIT;
    struct certificates c = {0};
    assert_int_equal(certificates_renew(old, names, now, &c, &err), 0);
    return c;
}

static X509 *parse(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *ret = PEM_read_bio_X509(bio, NULL, NULL, NULL);
    BIO_free(bio);
    assert_non_null(ret);
    return ret;
}

/* As a client does that trusts `ca` (all of its certificates). */
static bool verifies(const char *ca, const char *certificate, const char *name, uint64_t now)
{
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *context = X509_STORE_CTX_new();
    X509 *leaf = parse(certificate), *one;
    BIO *bio = BIO_new_mem_buf(ca, -1);
    while ((one = PEM_read_bio_X509(bio, NULL, NULL, NULL))) {
        X509_STORE_add_cert(store, one);
        X509_free(one);
    }
    BIO_free(bio);
    X509_STORE_CTX_init(context, store, leaf, NULL);
    X509_VERIFY_PARAM *parameters = X509_STORE_CTX_get0_param(context);
    X509_VERIFY_PARAM_set_time(parameters, (time_t)(now / NS_PER_SECOND));
    X509_VERIFY_PARAM_set_purpose(parameters, X509_PURPOSE_SSL_SERVER);
    X509_VERIFY_PARAM_set1_host(parameters, name, 0);
    bool good = X509_verify_cert(context) == 1;
    X509_free(leaf);
    X509_STORE_CTX_free(context);
    X509_STORE_free(store);
    return good;
}

static void what_is_made_is_taken_for_its_names_and_its_time(void **state)
{
    (void)state;
    struct certificates c = renew(&(struct certificates){0}, start);
    assert_false(certificates_are_due(&c, names, start));
    assert_true(verifies(c.ca, c.certificate, names[0], start));
    assert_true(verifies(c.ca, c.certificate, names[0], start - 200 * NS_PER_SECOND)); /* clocks differ */
    assert_false(verifies(c.ca, c.certificate, "elsewhere.tidemark-system.svc", start));
    assert_false(verifies(c.ca, c.certificate, names[0], start + (CERTIFICATES_DAYS + 1) * DAY_NS));
    struct certificates other = renew(&(struct certificates){0}, start);
    assert_false(verifies(other.ca, c.certificate, names[0], start));
    certificates_release(&other);
    certificates_release(&c);
}

static void it_is_renewed_in_time_by_the_same_ca(void **state)
{
    (void)state;
    struct certificates c = renew(&(struct certificates){0}, start);
    uint64_t last = start + (CERTIFICATES_DAYS - CERTIFICATES_RENEW_DAYS) * DAY_NS;
    assert_false(certificates_are_due(&c, names, last - DAY_NS));
    assert_true(certificates_are_due(&c, names, last + DAY_NS));
    struct certificates fresh = renew(&c, last + DAY_NS);
    assert_string_equal(fresh.ca, c.ca);
    assert_string_not_equal(fresh.certificate, c.certificate);
    assert_true(verifies(c.ca, fresh.certificate, names[0], last + CERTIFICATES_DAYS / 2 * DAY_NS));
    certificates_release(&fresh);
    certificates_release(&c);
}

static void a_new_ca_stands_before_the_old_one_so_that_both_are_known(void **state)
{
    (void)state;
    struct certificates c = renew(&(struct certificates){0}, start);
    uint64_t later = start + (CERTIFICATES_CA_DAYS - CERTIFICATES_CA_RENEW_DAYS + 1) * DAY_NS;
    struct certificates old = renew(&c, later - 60 * DAY_NS), fresh = renew(&old, later);
    assert_string_not_equal(fresh.ca, c.ca);
    assert_true(verifies(fresh.ca, fresh.certificate, names[0], later));
    assert_true(
        verifies(fresh.ca, old.certificate, names[0], later)); /* of a replica that has not seen it yet */
    assert_false(verifies(old.ca, fresh.certificate, names[0], later));
    assert_false(certificates_are_due(&fresh, names, later));
    certificates_release(&fresh);
    certificates_release(&old);
    certificates_release(&c);
}

static void what_is_broken_or_of_another_is_due(void **state)
{
    (void)state;
    struct certificates c = renew(&(struct certificates){0}, start),
                        other = renew(&(struct certificates){0}, start);
    struct certificates bad;
    assert_true(certificates_are_due(&(struct certificates){0}, names, start));
    bad = c, bad.key = other.key;
    assert_true(certificates_are_due(&bad, names, start));
    bad = c, bad.ca = other.ca, bad.ca_key = other.ca_key;
    assert_true(certificates_are_due(&bad, names, start));
    bad = c, bad.ca_key = other.ca_key;
    assert_true(certificates_are_due(&bad, names, start));
    bad = c, bad.certificate = (char *)"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_true(certificates_are_due(&bad, names, start));
    assert_true(
        certificates_are_due(&c, (const char *const[]){"tidemark-webhook.elsewhere.svc", NULL}, start));
    assert_true(certificates_are_due(&c, names, start - DAY_NS)); /* not yet good */
    certificates_release(&other);
    certificates_release(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_made_is_taken_for_its_names_and_its_time),
        cmocka_unit_test(it_is_renewed_in_time_by_the_same_ca),
        cmocka_unit_test(a_new_ca_stands_before_the_old_one_so_that_both_are_known),
        cmocka_unit_test(what_is_broken_or_of_another_is_due),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
