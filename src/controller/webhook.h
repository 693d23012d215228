/* SPDX-License-Identifier: Apache-2.0 */
/* The admission webhook's server: HTTPS for the API server, with a certificate of its own making that it
 * renews, and its CA in the webhook configurations WEBHOOK_CONFIGURATION (which the chart makes).
 *
 *   POST /mutate, /validate   AdmissionReview -> AdmissionReview (controller/admission.h)
 *   POST /mutate/TOKEN        the same; only here HistoryReviews are answered
 *   GET  /healthz             200 once it can answer
 *
 * Invariants: W1 the configurations know a CA before the server shows what it signed; W2 all replicas serve
 * with what the Secret WEBHOOK_SECRET holds, and whoever is first makes it; W3 nothing is polled: the Secret
 * and the configurations are watched; W4 who asks for a history is believed only from whoever knows the token,
 * which stands in the webhook configuration alone and is a new one at each start.
 *
 * Threads: one of its own, the informers', the server's. start and stop: one thread. */
#ifndef TIDEMARK_CONTROLLER_WEBHOOK_H
#define TIDEMARK_CONTROLLER_WEBHOOK_H

#include "base/log.h"
#include "controller/history.h"
#include "kube/kube.h"

#define WEBHOOK_CONFIGURATION "tidemark"
#define WEBHOOK_SECRET "tidemark-webhook-tls"
#define WEBHOOK_SERVICE "tidemark-webhook"
#define WEBHOOK_MUTATE "/mutate"

extern const struct kube_resource webhook_mutating, webhook_validating;

struct webhook;
struct webhook_options {
    struct kube_client *client; /* one of its own: webhook_stop interrupts it */
    const char *listen;         /* "ADDRESS:PORT" */
    const char *namespace;      /* of the Secret and the Service */
    struct history *history;    /* answers HistoryReviews; NULL: nobody does */
    const struct log *log;
};
/* Copies the texts. Returns before it serves: the cluster may not answer yet. */
int webhook_start(const struct webhook_options *options, struct webhook **ret, struct error *err) MUST_CHECK;
void webhook_stop(struct webhook *webhook); /* NULL allowed */

/* Whether the annotation of the Recovery can be believed: the configuration was there before it, and lets
 * none by when the webhook does not answer. -EPERM says why not. */
int webhook_vouches(struct kube_client *client, const json_t *recovery, struct error *err) MUST_CHECK;

#endif
