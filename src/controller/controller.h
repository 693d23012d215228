/* SPDX-License-Identifier: Apache-2.0 */
/* The controller of a cluster: waits for the Lease, then finds what an annotation protects, keeps the
 * ProtectedApplications and their status, and journals the objects. */
#ifndef TIDEMARK_CONTROLLER_CONTROLLER_H
#define TIDEMARK_CONTROLLER_CONTROLLER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/log.h"
#include "controller/history.h"
#include "controller/controller_metrics.h"
#include "csi/csi.h"
#include "kube/kube.h"

#define CONTROLLER_NAMESPACE "tidemark-system"
#define CONTROLLER_LEASE "tidemark-controller"

struct controller_options {
    struct kube_client *client; /* one of its own: it is interrupted at the end of a term as leader */
    const char *state;          /* directory; journals lie in STATE/objects */
    const char *namespace;      /* of the driver; NULL: CONTROLLER_NAMESPACE */
    const char *identity;       /* in the Lease; NULL: host name and a random part */
    /* The volumes: their records, and the files of the certificate for the node agents. NULL: recoveries leave volumes
     * alone. */
    const struct csi_records_ops *records;
    void *records_context;
    const struct csi_class_ops *classes; /* what carries volumes of backing class; NULL: none are attached for recoveries */
    void *classes_context;
    const char *agent_certificate, *agent_key, *agent_ca;
    const struct log *log;
    struct controller_metrics *metrics; /* tells what it knows while it leads; NULL: nobody asks */
    struct history *history; /* answers questions about the history while it leads; NULL: nobody asks */
    /* Believes who a Recovery says that asked for it, without an admission webhook: for tests only. */
    bool trust_requester;
    const atomic_bool *stop; /* set, and kube_interrupt called or not: controller_run ends within a second */
};
/* Runs until `stop`: as leader again and again. Blocks. An error only when it cannot go on (the state
 * directory, credentials). */
int controller_run(const struct controller_options *options, struct error *err) MUST_CHECK;

#endif
