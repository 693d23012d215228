/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates for the admission webhook: a CA of its own and what it signs, as PEM texts.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_CONTROLLER_CERTIFICATES_H
#define TIDEMARK_CONTROLLER_CERTIFICATES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define CERTIFICATES_CA_DAYS 3650u
#define CERTIFICATES_CA_RENEW_DAYS 365u
#define CERTIFICATES_DAYS 90u
#define CERTIFICATES_RENEW_DAYS 30u
#define CERTIFICATES_NAMES_MAX 8u

/* All from malloc. `ca` may hold several certificates: the newest, which signed `certificate`, first. */
struct certificates {
    char *ca, *ca_key;
    char *certificate, *key;
};
void certificates_release(struct certificates *c);

/* Whether `c` has to be renewed at this time, which is also so when a part is missing, does not parse, does
 * not belong to the others, or lacks one of `names` (DNS names and IP addresses; the list ends with NULL). */
bool certificates_are_due(const struct certificates *c, const char *const *names, uint64_t realtime_ns);
/* A new certificate and key for the names; a new CA, put before the old one, when that is due or not usable.
 */
int certificates_renew(const struct certificates *old, const char *const *names, uint64_t realtime_ns,
                       struct certificates *ret, struct error *err) MUST_CHECK;

#endif
