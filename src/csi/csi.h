/* SPDX-License-Identifier: Apache-2.0 */
/* The CSI driver csi.tidemark.io (Container Storage Interface v1): Identity and Controller in one process,
 * Identity and Node in another, both unary gRPC on a Unix socket (rpc/rpc.h).
 *
 * A volume's handle is tm-<uuid>. Volumes that are mounted together share a stream: an application of the
 * data API
 * (`tidemark data`, api/openapi.yaml) whose volumes' names are the handles, exported by FUSE without mount
 * paths, so that each has a loop device. Which stream a volume belongs to is decided at its first
 * ControllerPublish and kept in its record. publish_context: stream, size (bytes), members
 * ("handle=bytes,..." of the stream); of backing class also attachment (UID of its pod) and devices
 * ("journal=PV,handle=PV,...": the persistent volumes that the pod holds).
 *
 * Errors are gRPC codes of an errno (rpc_code_of_errno) with a message that names the thing, the reason and
 * the remedy.
 *
 * Threads: each function says its own. */
#ifndef TIDEMARK_CSI_CSI_H
#define TIDEMARK_CSI_CSI_H

#include "base/error.h"
#include "base/log.h"
#include "csi/class.h"
#include "csi/records.h"

#define CSI_DRIVER_NAME "csi.tidemark.io"
#define CSI_TOPOLOGY_KEY "topology.csi.tidemark.io/node"
#define CSI_VOLUME_BYTES_DEFAULT (1ull << 30)
#define CSI_VOLUME_UNIT_BYTES (1ull << 20)
#define CSI_KUBELET_DIRECTORY "/var/lib/kubelet"
#define CSI_MEMBERS_MAX 32u /* volumes of one stream */

/* ---- controller ---- */

/* What only a cluster knows. NULL members: standalone. */
struct csi_cluster_ops {
    /* 0 when there is such a node, -ENOENT with a message. */
    int (*check_node)(void *context, const char *node, struct error *err);
    /* The handles of the volumes that the pod which mounts `volume` on `node` mounts, this one among them, at
     * most CSI_MEMBERS_MAX. */
    int (*together)(void *context, const struct csi_volume *volume, const char *node,
                    char (*ret_handles)[CSI_HANDLE_BYTES], size_t *ret_count, struct error *err);
};

/* Where a stream of backing class was attached. */
struct csi_attachment {
    char pod[CLASS_UID_BYTES];         /* UID of the attachment pod */
    char devices[CLASS_DEVICES_BYTES]; /* "journal=VOLUME,HANDLE=VOLUME,...": persistent volumes */
};

/* What carries volumes of backing class. All of them can be repeated; -EAGAIN says what they wait for. */
struct csi_class_ops {
    /* Makes the volume's claim. -EINVAL: there is no such class. */
    int (*provision)(void *context, const struct csi_volume *volume, struct error *err);
    /* Makes it larger: 0 once it is. */
    int (*expand)(void *context, const struct csi_volume *volume, uint64_t size_bytes, struct error *err);
    /* The stream's volumes and its journal come to the node. `in_use`: some of its volumes are published there. */
    int (*attach)(void *context, const char *stream, const struct csi_volume *members, size_t count, const char *node, bool in_use,
                  struct csi_attachment *ret, struct error *err);
    /* 0: the stream is closed on the node and nothing of it is attached there. */
    int (*detach)(void *context, const char *stream, const char *node, struct error *err);
    /* For the Recovery `holder` ("NAMESPACE/NAME"): a stream that is attached nowhere comes to a node, any that will do. */
    int (*hold)(void *context, const char *stream, const struct csi_volume *members, size_t count, const char *holder,
                char ret_node[CSI_LABEL_BYTES], struct csi_attachment *ret, struct error *err);
    /* What was held is attached nowhere again, unless a pod's volumes have come to that node meanwhile. 0 also when nothing is held. */
    int (*let_go)(void *context, const char *stream, struct error *err);
};

struct csi_controller_options {
    const char *socket_path;
    const struct csi_records_ops *records; /* borrowed, with its context */
    void *records_context;
    const struct csi_cluster_ops *cluster; /* NULL: standalone */
    void *cluster_context;
    const struct csi_class_ops *classes; /* NULL: backing class is refused */
    void *classes_context;
    const char *const *nodes; /* standalone: the nodes there are, NULL-terminated; NULL: any name */
    const struct log *log;
};

struct csi_controller;
/* Serves Identity and Controller until csi_controller_stop. Strings are borrowed. */
int csi_controller_start(const struct csi_controller_options *options, struct csi_controller **ret,
                         struct error *err) MUST_CHECK;
/* False: a call is stuck, the process should end (rpc_server_stop). NULL is allowed. */
bool csi_controller_stop(struct csi_controller *controller);

/* ---- node ---- */

struct csi_node_options {
    const char *socket_path;
    const char *data_socket; /* of `tidemark data` */
    const char
        *state_directory; /* absolute; what is staged and published, and closed gates: node/ below it */
    const char *node_name;
    const char *kubelet_directory; /* where pods' block devices are mapped; NULL: CSI_KUBELET_DIRECTORY */
    const char *listen_address;                     /* "host:port" of the HTTPS endpoint; NULL: none */
    const char *tls_certificate, *tls_key, *tls_ca; /* files; with listen_address */
    const char *tls_client; /* the name that the controller's certificate is for; NULL: any of the CA's will do */
    const struct log *log;
    void (*ready)(void *context); /* may be NULL */
    void *context;
};

/* Serves Identity, Node and the endpoint until SIGTERM or SIGINT, which it takes over. What is staged and
 * published stays; a rewind that is interrupted goes on with the next start. Blocks; one call a process. */
int csi_node_run(const struct csi_node_options *options, struct error *err) MUST_CHECK;

#endif
