/* SPDX-License-Identifier: Apache-2.0 */
/* The node agents as seen from the controller: which streams an application has and on which node, and calls to
 * a node's HTTPS endpoint (docs/csi.md), with certificates on both sides.
 *
 * An agent is the pod of the driver's namespace with the label app.kubernetes.io/component=node on the node; its
 * port is the one named `agent`. Its certificate is for DATA_AGENT_NAME, whatever its address.
 *
 * Threads: all functions from any; they block. */
#ifndef TIDEMARK_CONTROLLER_DATA_CLIENT_H
#define TIDEMARK_CONTROLLER_DATA_CLIENT_H

#include <jansson.h>

#include "base/error.h"
#include "base/log.h"
#include "csi/csi.h"
#include "kube/kube.h"

#define DATA_AGENT_NAME "tidemark-node"
#define DATA_TIMEOUT_MS 60000u        /* of a call: a plan reads the journal's index */
#define DATA_STATUS_TIMEOUT_MS 5000u

struct data_client;

struct data_client_options {
    struct kube_client *client;
    const char *namespace; /* of the driver */
    const struct csi_records_ops *records;
    void *records_context;
    const struct csi_class_ops *classes; /* NULL: streams of backing class are used where pods have them */
    void *classes_context;
    const char *certificate, *key, *ca; /* files */
    const struct log *log;
};

/* Borrows the options' strings. */
int data_client_new(const struct data_client_options *options, struct data_client **ret,
                    struct error *err) MUST_CHECK;
/* NULL allowed. */
void data_client_free(struct data_client *d);

const struct data_client_options *data_client_options(const struct data_client *d);

/* `method` and `path` ("/v1/...", encoded) at the agent of the node; `body` (NULL: none) is borrowed, `ret` may be
 * NULL. Its errors as http_client_call_with; nobody there is -EAGAIN. */
int data_client_call(struct data_client *d, const char *node, const char *method, const char *path,
                     const json_t *body, unsigned timeout_ms, json_t **ret, struct error *err) MUST_CHECK;

/* Groups volumes by stream. `handles`: {claim: volume handle}. *ret: [{"stream", "node", "claims": [name],
 * "handles": {claim: handle}}], ordered by stream. Volumes that were never attached have no stream and are left
 * out, as are those without a record. -EBUSY: one of backing class is attached nowhere; a Recovery (`holder`, "NAMESPACE/NAME"; NULL:
 * it is none) has it attached and opened instead: -EAGAIN until it is, and then `data_client_let_go` is to be called some time. */
int data_client_streams(struct data_client *d, const json_t *handles, const char *holder, json_t **ret, struct error *err) MUST_CHECK;
/* The stream is closed and detached if it is held, and if no pod has come to use it there. 0 also when it is not; -EAGAIN. */
int data_client_let_go(struct data_client *d, const char *stream, struct error *err) MUST_CHECK;

/* Sets a tag in the stream: POST /v1/applications/{stream}/tag. -EEXIST. *ret (may be NULL): {"lsn", "time"}. */
int data_client_tag(struct data_client *d, const json_t *stream, const char *name, const json_t *labels,
                    json_t **ret, struct error *err) MUST_CHECK;

#endif
