/* SPDX-License-Identifier: Apache-2.0 */
/* The kinds that a server has: aggregated discovery, or group by group on servers before 1.26. */
#ifndef TIDEMARK_KUBE_DISCOVERY_H
#define TIDEMARK_KUBE_DISCOVERY_H

#include "kube/kube.h"

struct kube_kinds {
    struct kube_resource *resources; /* subresources left out; groups in the server's order, each kind in its
                                        preferred version */
    size_t count;
    struct kube_resource *others; /* the same kinds in the other versions that are served */
    size_t other_count;
    size_t failed_groups; /* whose server (an aggregated API) did not answer */
    json_t *owner;        /* holds the texts */
};
/* Blocks. Release with kube_kinds_release. */
int kube_discover(struct kube_client *client, struct kube_kinds *ret, struct error *err) MUST_CHECK;
void kube_kinds_release(struct kube_kinds *kinds);
/* By "apps/v1" and kind: in that version, or, when it is not served, in the preferred one; NULL when there is
 * none. */
const struct kube_resource *kube_kinds_find(const struct kube_kinds *kinds, const char *api_version,
                                            const char *kind);

/* ---- the server's release ---- */
#define KUBE_OLDEST_MINOR 28u /* 1.28: what packaging/helm/tidemark/Chart.yaml says too */

struct kube_release {
    unsigned major, minor;
    char text[64]; /* "v1.28.15" */
};
/* Asks for /version; `timeout_ms` 0: KUBE_TIMEOUT_MS. */
int kube_get_release(struct kube_client *client, unsigned timeout_ms, struct kube_release *ret,
                     struct error *err) MUST_CHECK;
/* -EPROTONOSUPPORT when it is older than KUBE_OLDEST_MINOR. */
int kube_check_release(const struct kube_client *client, const struct kube_release *release,
                       struct error *err) MUST_CHECK;

#endif
