/* SPDX-License-Identifier: Apache-2.0 */
/* The controller's services over a Kubernetes API server: records in ConfigMaps, and which volumes a pod
 * mounts together.
 *
 * Threads: as csi/records.h; the client is shared. */
#ifndef TIDEMARK_CSI_CLUSTER_H
#define TIDEMARK_CSI_CLUSTER_H

#include "csi/class.h"
#include "csi/csi.h"
#include "kube/kube.h"

/* The context of both. Borrowed. */
struct csi_cluster {
    struct kube_client *client;
    const char *namespace; /* of the driver */
    /* For backing class: what the attachment pods run, and how a node is asked to let go of a stream (0: it has closed the
     * journal; -EAGAIN: nobody answers there). */
    const char *attachment_image;
    int (*release)(void *context, const char *node, const char *stream, struct error *err);
    void *release_context;
    const struct log *log;
};

extern const struct csi_records_ops csi_records_kube;
extern const struct csi_cluster_ops csi_cluster_kube;
extern const struct csi_class_ops csi_class_kube;

/* Removes the claims of a volume that is removed for good, if it has any. */
int csi_class_forget(struct csi_cluster *cluster, const char *handle, struct error *err) MUST_CHECK;

#endif
