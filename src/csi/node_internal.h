/* SPDX-License-Identifier: Apache-2.0 */
/* The node agent.
 *
 * Invariants:
 *   N1  everything that matters is on disk before it is done, and is looked at again when asked: the process
 * may be killed anywhere, and a repeated call carries on N2  mkfs runs only on a device without any signature,
 * and never on what was adopted
 *   N3  while a stream's gate is closed nothing of it is staged or published; a rewind begins when nothing of
 * it is published and no call about it runs N4  one call at a time about a volume; another is turned away
 * (ABORTED) and comes back
 *
 * Files, below <state>/node: volumes/<handle>.json (what is staged and published), gates/<stream>.json
 * (closed gates and the last rewind), stores/<stream>.json (streams of backing class that are open here).
 *
 * Threads: workers of the RPC server, of the HTTPS server, one for each rewind under way. Lock:
 * csi_node.mutex, never held over a mount or a call to the data plane. */
#ifndef TIDEMARK_CSI_NODE_INTERNAL_H
#define TIDEMARK_CSI_NODE_INTERNAL_H

#include <stdatomic.h>

#include "app/spec.h"
#include "csi/csi_internal.h"
#include "lib/http_server.h"
#include "lib/json.h"

#define NODE_WORKERS 12u
#define NODE_GATE_WAITERS_MAX 6u     /* of the workers, so that unpublish always finds one */
#define NODE_GATE_WAIT_MS 20000u     /* then the kubelet asks again */
#define NODE_DEVICE_WAIT_MS 60000u   /* for a device to appear */
#define NODE_DATA_TIMEOUT_MS 120000u /* of one call to the data plane */
#define NODE_BUSY_MAX 64u
#define NODE_DEVICE_BYTES 64
#define NODE_DEVICE_DIRECTORY "/dev/tidemark" /* <stream>/journal, <stream>/<handle>: of backing class */
#define NODE_FLAGS_BYTES 4097 /* mount_flags have at most 4 KiB */

struct busy {
    char handle[CSI_HANDLE_BYTES + 8]; /* "": free; a volume's, or "store-<stream>" */
    char stream[CSI_HANDLE_BYTES];
};

struct csi_node {
    struct csi_node_options options;
    char directory[PATH_MAX]; /* <state>/node */
    struct rpc_method methods[CSI_METHODS_MAX];
    struct rpc_server *rpc;
    struct http_server *http;
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* busy, gates, targets, rewinds */
    struct busy busy[NODE_BUSY_MAX];
    unsigned gate_waiters;
    unsigned rewinds; /* threads */
    atomic_bool stopping;
};

/* ---- node_state.c ---- */
/* What is known of a volume that is staged. */
struct node_volume {
    char handle[CSI_HANDLE_BYTES], stream[CSI_HANDLE_BYTES];
    char staging[APP_PATH_LENGTH_MAX + 1];
    bool block;
    bool adopted; /* what is on it is somebody's: no file system is ever made there (csi/adopted.h) */
    char fs_type[8];
    char flags[NODE_FLAGS_BYTES]; /* mount options, "a,b" */
    json_t *targets;              /* {path: {"read_only": BOOL, "single": BOOL}} */
};
int node_state_init(struct csi_node *node, struct error *err) MUST_CHECK;
/* -ENOENT when it is not staged. Release it. */
int node_volume_load(struct csi_node *node, const char *handle, struct node_volume *ret,
                     struct error *err) MUST_CHECK;
int node_volume_save(struct csi_node *node, const struct node_volume *volume, struct error *err) MUST_CHECK;
int node_volume_remove(struct csi_node *node, const char *handle, struct error *err) MUST_CHECK;
void node_volume_release(struct node_volume *volume);
/* Those of a stream (NULL: all); the caller releases them and frees the array. */
int node_volumes_list(struct csi_node *node, const char *stream, struct node_volume **ret, size_t *ret_count,
                      struct error *err) MUST_CHECK;
void node_volumes_free(struct node_volume *volumes, size_t count);
/* Number of its targets where something is mounted now. */
size_t node_volume_published(const struct node_volume *volume);
/* Whether it is mounted on another path than `target`. */
bool node_volume_published_elsewhere(const struct node_volume *volume, const char *target);

/* N4: -EALREADY when a call about the volume runs. `stream` may be "". */
int node_begin(struct csi_node *node, const char *handle, const char *stream, struct error *err) MUST_CHECK;
void node_end(struct csi_node *node, const char *handle);
/* N3: waits while the stream's gate is closed, then node_begin. -EAGAIN when it stays closed, or at once unless it `may_wait`. */
int node_begin_open(struct csi_node *node, const char *handle, const char *stream, const struct rpc_call *call, bool may_wait,
                    struct error *err) MUST_CHECK;
/* node_begin that waits for the call before. -EALREADY when that does not end. */
int node_begin_wait(struct csi_node *node, const char *handle, const char *stream, struct error *err) MUST_CHECK;
/* node_begin_wait of what would end the stream: -EBUSY while its gate is closed. */
int node_begin_closing(struct csi_node *node, const char *handle, const char *stream, struct error *err) MUST_CHECK;
/* Whether a call about the stream runs. Mutex held. */
bool node_stream_busy(const struct csi_node *node, const char *stream);

/* {"closed": BOOL, "rewind": null or {...}}; never NULL on success. Mutex held, or the stream's rewind
 * thread. */
int node_gate_load(struct csi_node *node, const char *stream, json_t **ret, struct error *err) MUST_CHECK;
int node_gate_save(struct csi_node *node, const char *stream, const json_t *gate,
                   struct error *err) MUST_CHECK;
int node_gate_remove(struct csi_node *node, const char *stream, struct error *err) MUST_CHECK;

/* ---- node_stream.c ---- */
/* Makes sure that the stream has the volume and gives its device. `members` of the stream are made with it
 * when the stream does not exist. *ret_created: its volumes were made just now. */
struct node_wanted {
    const char *stream, *handle, *ack_mode;
    const json_t *policy; /* spec of a ProtectionPolicy that gets the stream's name; NULL: as it is */
    uint64_t size_bytes;
    const struct csi_member *members;
    size_t member_count;
    bool on_devices; /* backing class: its volumes are devices in NODE_DEVICE_DIRECTORY */
};
int node_stream_ensure(struct csi_node *node, const struct node_wanted *wanted, const struct rpc_call *call,
                       char ret_device[NODE_DEVICE_BYTES], bool *ret_created, struct error *err) MUST_CHECK;
/* Gives the stream a policy of its own: `spec` as in a ProtectionPolicy of the data plane. Again with the same is nothing. -ENOENT. */
int node_stream_set_policy(struct csi_node *node, const char *stream, const json_t *spec, struct error *err) MUST_CHECK;
/* The device of a volume that the stream has. -ENOENT. */
int node_stream_device(struct csi_node *node, const char *stream, const char *handle,
                       char ret_device[NODE_DEVICE_BYTES], struct error *err) MUST_CHECK;
/* Grows the volume and waits until its device has the size. */
int node_stream_grow(struct csi_node *node, const char *stream, const char *handle, uint64_t size_bytes,
                     struct error *err) MUST_CHECK;
/* A call to the data plane; nobody there is -EAGAIN. */
int node_data_call(struct csi_node *node, const char *method, const char *path, const json_t *body,
                   json_t **ret, struct error *err) MUST_CHECK;

/* ---- node_store.c: backing class ---- */
struct node_attachment {
    const char *pod;     /* UID of the attachment pod on this node */
    const char *devices; /* "journal=VOLUME,HANDLE=VOLUME,...": names of the persistent volumes that it holds */
};
/* Between these nobody else opens or closes the stream's store. */
int node_store_begin(struct csi_node *node, const char *stream, struct error *err) MUST_CHECK;
void node_store_end(struct csi_node *node, const char *stream);
/* Makes the device nodes and has the data plane open the store. Again is nothing. -EAGAIN while the devices are not there or another
 * node has the journal. */
int node_store_open(struct csi_node *node, const char *stream, const struct node_attachment *a, struct error *err) MUST_CHECK;
bool node_store_known(const struct csi_node *node, const char *stream);
/* Opens what node_store_open opened, as its record says: after a reboot. Errors as there; -EEXIST, -ENODATA: the device that is mapped is
 * not (yet) the journal's; -EALREADY: another call about it does not end. */
int node_store_reopen(struct csi_node *node, const char *stream, struct error *err) MUST_CHECK;
/* Has it closed, if it is open: 0 means that the journal is closed and unmounted. -EBUSY while a volume is staged or the gate is closed. */
int node_store_release(struct csi_node *node, const char *stream, struct error *err) MUST_CHECK;
/* After a volume was unstaged: a stream without staged volumes is closed. What fails is left to node_store_release. */
void node_store_unstaged(struct csi_node *node, const char *stream);

/* ---- node_mount.c ---- */
/* `created`: nothing was ever written to the device. Nothing to do when it is mounted there already. */
int node_mount_stage(struct csi_node *node, const struct node_volume *volume, const char *device,
                     bool created, struct error *err) MUST_CHECK;
int node_mount_unstage(const struct node_volume *volume, struct error *err) MUST_CHECK;
int node_mount_publish(const struct node_volume *volume, const char *device, const char *target,
                       bool read_only, struct error *err) MUST_CHECK;
/* Unmounts whatever is there and removes the target. 0 when there is nothing. */
int node_mount_unpublish(const char *target, struct error *err) MUST_CHECK;
/* The file system is made as large as its device. */
int node_mount_grow(const struct node_volume *volume, const char *device, struct error *err) MUST_CHECK;
int node_device_size(const char *device, uint64_t *ret_bytes, struct error *err) MUST_CHECK;

/* ---- node.c ---- */
extern const struct rpc_method csi_node_methods[];

/* ---- node_rewind.c ---- */
/* Begins a rewind of the stream (`to` NULL: undo of the newest). The same `id` again gives what has become of
 * it. `keep_closed`: once it has succeeded the gate stays closed. */
int node_rewind_start(struct csi_node *node, const char *stream, const char *id, const char *to,
                      bool keep_closed, json_t **ret, struct error *err) MUST_CHECK;
/* Carries on those that were interrupted. */
int node_rewinds_continue(struct csi_node *node, struct error *err) MUST_CHECK;
/* Waits until their threads have ended (they stop between two steps). */
void node_rewinds_stop(struct csi_node *node);
int node_gate_set(struct csi_node *node, const char *stream, bool closed, json_t **ret,
                  struct error *err) MUST_CHECK;

/* ---- node_api.c ---- */
int node_api_handle(void *context, const struct http_request *request, struct http_response *response,
                    struct error *err);

#endif
