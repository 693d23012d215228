/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this module share. */
#ifndef TIDEMARK_CSI_CSI_INTERNAL_H
#define TIDEMARK_CSI_CSI_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include <csi.pb-c.h> /* generated from csi.proto */
#include "csi/csi.h"
#include "rpc/rpc.h"

#define CSI_METHODS_MAX 24

/* The value of a key in a map of a message (array of entries), NULL without one. */
#define CSI_MAP_GET(count, entries, name)                                                                    \
    ({                                                                                                       \
        const char *value_ = NULL;                                                                           \
        for (size_t i_ = 0; i_ < (count); i_++)                                                              \
            if (strcmp((entries)[i_]->key, (name)) == 0)                                                     \
                value_ = (entries)[i_]->value;                                                               \
        value_;                                                                                              \
    })

/* ---- values.c ---- */
/* How a volume is to be used. */
struct csi_use {
    bool block;
    bool single_writer;  /* SINGLE_NODE_SINGLE_WRITER: one target only */
    bool read_only;      /* SINGLE_NODE_READER_ONLY */
    const char *fs_type; /* "ext4" or "xfs"; "" for block; static */
};
/* -EINVAL for one that is missing, incomplete, or not served: several nodes, another file system. */
int csi_use_of(const Csi__V1__VolumeCapability *capability, struct csi_use *ret,
               struct error *err) MUST_CHECK;
/* The size for a range (may be NULL): at least what is required, rounded up. -ERANGE. */
int csi_size_of(const Csi__V1__CapacityRange *range, uint64_t default_bytes, uint64_t *ret,
                struct error *err) MUST_CHECK;
/* -EINVAL naming the field when it is empty. */
int csi_require(const char *value, const char *field, struct error *err) MUST_CHECK;
/* -EINVAL unless it is an absolute path without "..". */
int csi_require_path(const char *value, const char *field, struct error *err) MUST_CHECK;
/* "handle=bytes,..." of a publish_context: returns the number of members, -EINVAL. */
struct csi_member {
    char handle[CSI_HANDLE_BYTES];
    uint64_t size_bytes;
};
int csi_members_parse(const char *text, struct csi_member ret[CSI_MEMBERS_MAX], struct error *err) MUST_CHECK;

/* ---- identity.c ---- */
/* Writes the Identity service's methods, then `more` (ends with a NULL path), to `ret`. */
void csi_methods(const struct rpc_method *more, struct rpc_method ret[CSI_METHODS_MAX]);

#define CSI_STREAMS_BUSY_MAX 16u

/* ---- controller.c, controller_publish.c ---- */
struct csi_controller {
    struct csi_controller_options options;
    struct rpc_method methods[CSI_METHODS_MAX];
    struct rpc_server *server;
    pthread_mutex_t mutex; /* one change of records at a time; guards what follows */
    pthread_cond_t changed; /* busy */
    char busy[CSI_STREAMS_BUSY_MAX][CSI_HANDLE_BYTES]; /* streams that are attached or detached now; "": free */
    unsigned waiters;
};
/* Handlers of controller_publish.c. */
rpc_handler csi_controller_publish, csi_controller_unpublish, csi_controller_expand, csi_controller_list;
/* A record that is there; -ENOENT for deleted ones too. Mutex held. */
int csi_controller_load(struct csi_controller *controller, const char *handle, struct csi_volume *ret,
                        struct error *err) MUST_CHECK;

/* ---- controller_class.c: mutex not held ---- */
bool csi_is_class(const struct csi_volume *v);
/* Parameters of a StorageClass that go with one backing alone. */
int csi_class_check(const struct csi_controller *controller, const struct csi_volume *v, struct error *err) MUST_CHECK;
int csi_class_attach(struct csi_controller *controller, const struct csi_volume *volume, const struct rpc_call *call,
                     struct csi_attachment *ret, struct error *err) MUST_CHECK;
/* The volume is not published any more; with the last of its stream the stream is closed and taken off the node. */
int csi_class_detach(struct csi_controller *controller, const struct csi_volume *volume, const struct rpc_call *call,
                     struct error *err) MUST_CHECK;
int csi_class_expand(struct csi_controller *controller, const struct csi_volume *volume, uint64_t size_bytes, const struct rpc_call *call,
                     struct error *err) MUST_CHECK;

#endif
