/* SPDX-License-Identifier: Apache-2.0 */
/* What the controller remembers of a volume, and where: a directory of JSON files, or ConfigMaps of the
 * cluster.
 *
 * Threads: ops are called with the controller's lock held; they may block. */
#ifndef TIDEMARK_CSI_RECORDS_H
#define TIDEMARK_CSI_RECORDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define CSI_HANDLE_BYTES 64
#define CSI_NAME_BYTES 512 /* CreateVolume's name: 128 characters */
#define CSI_LABEL_BYTES 256
#define CSI_RECOVERY_BYTES 320 /* "NAMESPACE/NAME" */
#define CSI_KEPT_BYTES 600
#define CSI_VERSION_BYTES 32

struct csi_volume {
    char handle[CSI_HANDLE_BYTES]; /* "tm-<uuid>": a DNS label */
    char name[CSI_NAME_BYTES];     /* of CreateVolume: the same name is the same volume */
    uint64_t size_bytes;
    char backing[16];                    /* "host" or "class" */
    char backing_class[CSI_LABEL_BYTES]; /* of backing class */
    uint64_t journal_bytes;              /* of backing class: journalSize; 0: by the volumes' sizes */
    char ack_mode[16];                   /* "write", "flush"; "": as the policy says */
    char claim_namespace[CSI_LABEL_BYTES], claim_name[CSI_LABEL_BYTES]; /* "" when not told */
    char node[CSI_LABEL_BYTES];           /* where the stream is; "": not decided yet, or of backing class and attached nowhere */
    char published_node[CSI_LABEL_BYTES]; /* "": none */
    char stream[CSI_HANDLE_BYTES];        /* "": not decided yet */
    uint64_t deleted_ns;                  /* realtime; 0: it is there */
    char recovery[CSI_RECOVERY_BYTES];    /* the Recovery that made it, as a clone's; "": none */
    bool keep_known;                      /* how long its history is kept once it is deleted; set by `keep` alone */
    uint64_t keep_s;
    char version[CSI_VERSION_BYTES];      /* of what was loaded; "": it is new, or there are no versions */
    char kept[CSI_KEPT_BYTES];            /* why it is still there although that is over; "": not known to be. Set by `note_kept` alone */
};

struct csi_records_ops {
    /* -ENOENT (with a message) when there is none. Deleted ones are given as well. */
    int (*load)(void *context, const char *handle, struct csi_volume *ret, struct error *err);
    /* Durable when it returns. -EAGAIN: somebody else, of another process or thread, has saved it since it was loaded: load it again. So
     * what was loaded once is saved once. */
    int (*save)(void *context, const struct csi_volume *volume, struct error *err);
    /* All, ordered by handle, deleted ones too. The caller frees *ret. */
    int (*list)(void *context, struct csi_volume **ret, size_t *ret_count, struct error *err);
    /* Forgets it for good. 0 when there is none. */
    int (*remove)(void *context, const char *handle, struct error *err);
    /* Sets keep_s alone, whatever else is saved at the same time. NULL: not served. */
    int (*keep)(void *context, const char *handle, uint64_t keep_s, struct error *err);
    /* Sets kept alone; *ret (NULL: not wanted): the object that is the record, for events about it. NULL: not served. */
    int (*note_kept)(void *context, const char *handle, const char *why, json_t **ret, struct error *err);
};

/* <handle>.json in a directory. The context is the directory's path (a string). */
extern const struct csi_records_ops csi_records_directory;

/* A record as JSON and back. NULL when out of memory; -EINVAL naming the field. */
json_t *csi_volume_to_json(const struct csi_volume *volume);
int csi_volume_of_json(const json_t *json, struct csi_volume *ret, struct error *err) MUST_CHECK;

#endif
