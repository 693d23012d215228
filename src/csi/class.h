/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes of backing class: what the controller makes of them in the cluster. Each volume has a claim of its
 * class for a raw block volume (named as its handle), each stream one for its journal (<stream>-journal), and
 * while the stream is attached a pod on that node
 * (<stream>-attachment) that holds all of them, so that the kubelet maps their devices there. All of it is in
 * the driver's namespace, so that deleting an application's namespace deletes no history.
 *
 * The functions here only compute; csi/class_kube.c does it.
 *
 * Threads: thread-safe. */
#ifndef TIDEMARK_CSI_CLASS_H
#define TIDEMARK_CSI_CLASS_H

#include <jansson.h>

#include "csi/records.h"

#define CLASS_JOURNAL_BYTES_MIN (1ull << 30)
#define CLASS_NAME_BYTES (CSI_HANDLE_BYTES + 16)
#define CLASS_UID_BYTES 64
#define CLASS_DEVICES_BYTES                                                                                  \
    (33u * (CSI_HANDLE_BYTES + CSI_LABEL_BYTES)) /* of CSI_MEMBERS_MAX and the journal */
#define CLASS_STREAM_LABEL "tidemark.io/stream"
#define CLASS_NODE_ANNOTATION "tidemark.io/node"
/* Of a pod that was made for a recovery, not for a pod that mounts: "NAMESPACE/NAME" of the Recovery; and,
 * once that lets go of it, "true". */
#define CLASS_HOLDER_ANNOTATION "tidemark.io/held-for"
#define CLASS_LEAVING_ANNOTATION "tidemark.io/letting-go"

/* The volumes of one stream, ordered by handle; deleted ones too, whose data the stream still has. */
struct class_stream {
    const char *name, *namespace, *image;
    const struct csi_volume *volumes;
    size_t count;
};

void class_journal_name(const char *stream, char ret[CLASS_NAME_BYTES]);
void class_pod_name(const char *stream, char ret[CLASS_NAME_BYTES]);
/* Of the journal's claim: room for the base, which may come to hold as much as the volumes do, and for the
 * journal itself: the largest journalSize of a volume's class; without one as much again, at least
 * CLASS_JOURNAL_BYTES_MIN. */
uint64_t class_journal_bytes(const struct class_stream *stream);

/* Objects to be made. NULL when out of memory. */
json_t *class_volume_claim(const char *namespace, const struct csi_volume *volume);
json_t *class_journal_claim(const struct class_stream *stream);
/* `node_uid`: of the Node, which becomes its owner: what has none is not drained; NULL: none. */
json_t *class_pod(const struct class_stream *stream, const char *node, const char *node_uid);
/* The same for a recovery: on any node that the driver is on. */
json_t *class_pod_owners(const char *node, const char *node_uid);
json_t *class_pod_held(const struct class_stream *stream, const char *holder);

/* What there is of the pod. */
enum class_pod_state {
    CLASS_POD_READY,
    CLASS_POD_PENDING,   /* text: what it waits for */
    CLASS_POD_ENDING,    /* is being deleted, or will be */
    CLASS_POD_ENDED,     /* its containers have ended for good: it has to be made again */
    CLASS_POD_ELSEWHERE, /* is on another node; text: that node */
    CLASS_POD_LACKS,     /* a volume that joined later; text: its handle */
};
enum class_pod_state class_look_at_pod(const json_t *pod, const struct class_stream *stream, const char *node,
                                       char *text, size_t size);
/* What a pod that does not run yet waits for. */
void class_waits_for(const json_t *pod, char *text, size_t size);

/* How a node is, for what was attached there: */
enum class_node_state {
    CLASS_NODE_THERE,
    CLASS_NODE_GIVEN_UP, /* not ready, and somebody who knows has tainted it out-of-service */
};
enum class_node_state class_look_at_node(const json_t *node);

/* The bytes of a claim: asked for, and (0: not bound) what there is. */
uint64_t class_claim_asked(const json_t *claim);
uint64_t class_claim_has(const json_t *claim);

#endif
