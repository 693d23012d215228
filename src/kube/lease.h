/* SPDX-License-Identifier: Apache-2.0 */
/* Leader election by a Lease of coordination.k8s.io, with the rules of client-go: who holds it renews; the
 * others take it once they have seen no renewal for its duration by their own clock, so that clocks need not
 * agree.
 *
 * Invariant: L1 a holder that could not renew for `renew_deadline_ms` (< the duration) no longer counts
 * itself as holder before anybody else can take it. Threads: one thread a lease, which makes the callbacks;
 * kube_lease_held from any. */
#ifndef TIDEMARK_KUBE_LEASE_H
#define TIDEMARK_KUBE_LEASE_H

#include "kube/kube.h"

struct kube_lease;
struct kube_lease_options {
    const char *namespace, *name;
    const char *identity;       /* of this process, unique: pod name and a random part */
    unsigned duration_s;        /* 0: 15 */
    unsigned renew_deadline_ms; /* 0: 2/3 of the duration */
    unsigned retry_ms;          /* 0: 2000 */
    /* Called in the lease's thread. Both must return soon: the lease is not renewed meanwhile. */
    void (*acquired)(void *context);
    void (*lost)(void *context);
    void *context;
    const struct log *log;
};
/* Begins to try for it. Copies the options. */
int kube_lease_start(struct kube_client *client, const struct kube_lease_options *options,
                     struct kube_lease **ret, struct error *err) MUST_CHECK;
/* Gives it back (the next one need not wait) when it is held; `lost` is not called. NULL allowed. */
void kube_lease_stop(struct kube_lease *lease);
bool kube_lease_held(struct kube_lease *lease);

#endif
