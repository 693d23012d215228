/* SPDX-License-Identifier: Apache-2.0 */
/* The kinds that a server has: aggregated discovery, or group by group on servers before 1.26. */
#ifndef TIDEMARK_KUBE_DISCOVERY_H
#define TIDEMARK_KUBE_DISCOVERY_H

#include "kube/kube.h"

struct kube_kinds {
    struct kube_resource *resources; /* subresources left out; groups in the server's order, each kind in its
                                        preferred version */
    size_t count;
    size_t failed_groups; /* whose server (an aggregated API) did not answer */
    json_t *owner;        /* holds the texts */
};
/* Blocks. Release with kube_kinds_release. */
int kube_discover(struct kube_client *client, struct kube_kinds *ret, struct error *err) MUST_CHECK;
void kube_kinds_release(struct kube_kinds *kinds);
/* By "apps/v1" (or any other version of the group, when that is not served) and kind; NULL when there is
 * none. */
const struct kube_resource *kube_kinds_find(const struct kube_kinds *kinds, const char *api_version,
                                            const char *kind);

#endif
