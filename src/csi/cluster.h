/* SPDX-License-Identifier: Apache-2.0 */
/* The controller's services over a Kubernetes API server: records in ConfigMaps, and which volumes a pod
 * mounts together.
 *
 * Threads: as csi/records.h; the client is shared. */
#ifndef TIDEMARK_CSI_CLUSTER_H
#define TIDEMARK_CSI_CLUSTER_H

#include "csi/csi.h"
#include "kube/kube.h"

/* The context of both. Borrowed. */
struct csi_cluster {
    struct kube_client *client;
    const char *namespace; /* of the driver */
};

extern const struct csi_records_ops csi_records_kube;
extern const struct csi_cluster_ops csi_cluster_kube;

#endif
