/* SPDX-License-Identifier: Apache-2.0 */
/* The kinds ProtectedApplication and ProtectionPolicy (apiVersion tidemark.io/v1alpha1): strict reading from
 * YAML, and the canonical form back to YAML and JSON. No I/O: text in, values out.
 *
 *   apiVersion: tidemark.io/v1alpha1
 *   kind: ProtectedApplication
 *   metadata: {name: shop}                # a DNS label
 *   spec:
 *     policyRef: {name: default}          # default: default
 *     journal: {encryption: {keyFile: /etc/tidemark/shop.key}}      # optional; chosen when it is made
 *     export: fuse                        # fuse (default) or nbd
 *     volumes:                            # 1..APP_VOLUMES_MAX; sizes: multiples of 4096 from 16Mi on
 *     - {name: data, size: 8Gi, mountPath: /srv/data, fsType: ext4}   # mountPath, fsType (ext4 by default):
 *     - {name: old, source: /srv/old.img}   # an image or device that is there already is adopted with what it holds; size and
 *                                           # fsType are its own
 *                                         # from: shop/data@lsn:123 is written by a clone, and cannot be asked for
 * fuse only manifests: ./manifests              # optional directory lifecycle: {stop: ..., start: ...,
 * probe: ...}                  # optional, each of three forms: [systemctl, stop, shop]           # one
 * command, as words: run without a shell
 *       [[a, b], [c]]                     # several, one after the other
 *       "cd /srv && ./stop"               # a text, run by /bin/sh -c
 *
 *   kind: ProtectionPolicy
 *   spec:
 *     journal:
 *       quota: 8Gi                        # largest size of the journal; default: by the disk
 *       seedRate: 64Mi                    # bytes a second at which what an adopted volume holds is copied to the history
 *       history: 30d                      # what is older is dropped; default: only the quota counts
 *       thinning:                         # history older than `after` keeps one point in each `keep` of the calendar;
 *       - {after: 2h, keep: 1s}           # these are the default, [] keeps every write
 *       - {after: 24h, keep: 1m}
 *       - {after: 7d, keep: 1h}
 *       compressAfter: 10m                # history that old is compressed (the default), or never
 *     ackMode: write                      # write (default) or flush
 *     failureMode: availability           # while the journal's disk fails writes go on unjournaled (default);
 *                                         # protection: they wait
 *
 * Relative paths (`manifests`, and a command whose first word begins with ./ or ../) start at the directory
 * of the file. What is wrong is told as "<file>:<line>:<column>: <field>: found ...; expected ...". Threads:
 * values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_SPEC_H
#define TIDEMARK_APP_SPEC_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define APP_API_VERSION "tidemark.io/v1alpha1"
#define APP_POLICY_DEFAULT "default"
#define APP_NAME_LENGTH_MAX 63u
#define APP_VOLUMES_MAX 32u
#define APP_VOLUME_SIZE_BYTES_MIN (16ull << 20)
#define APP_VOLUME_SIZE_BYTES_MAX (64ull << 40)
#define APP_VOLUME_SIZE_UNIT_BYTES 4096u
#define APP_QUOTA_BYTES_MIN (256ull << 20)
#define APP_THINNING_MAX 8u
#define APP_HISTORY_NS_MIN (60ull * 1000000000u)       /* also of `after` */
#define APP_HISTORY_NS_MAX (36500ull * 86400u * 1000000000u)
#define APP_COMPRESS_AFTER_NS (600ull * 1000000000u)
#define APP_COMPRESS_NEVER UINT64_MAX
#define APP_COMMANDS_MAX 32u
#define APP_COMMAND_WORDS_MAX 256u
#define APP_PATH_LENGTH_MAX 1024u
#define APP_FROM_LENGTH_MAX 255u
#define APP_DOCUMENTS_MAX 256u

enum app_kind { APP_KIND_APPLICATION, APP_KIND_POLICY };
enum app_export { APP_EXPORT_FUSE, APP_EXPORT_NBD, APP_EXPORT_UBLK };
enum app_fs_type { APP_FS_EXT4, APP_FS_XFS, APP_FS_BTRFS, APP_FS_FOUND /* what is there: volumes with a source */ };
enum app_ack_mode { APP_ACK_WRITE, APP_ACK_FLUSH };
enum app_failure_mode { APP_FAILURE_AVAILABILITY, APP_FAILURE_PROTECTION };

struct app_command {
    bool shell;  /* argv is /bin/sh -c TEXT */
    char **argv; /* NULL-terminated */
    size_t count;
};

struct app_commands {
    struct app_command *items;
    size_t count;
};

struct app_volume {
    char *name;
    uint64_t size_bytes; /* 0 (only with a source): what the source has */
    char *source;        /* absolute path of the image or device that is adopted; NULL: a new volume */
    char *from;          /* "APPLICATION/VOLUME@lsn:N": what a clone filled it with; NULL: nothing */
    char *mount_path; /* normalized absolute path; NULL: not mounted */
    enum app_fs_type fs_type;
};

/* Whether its backing held something before anything was journaled. */
static inline bool app_volume_is_adopted(const struct app_volume *volume)
{
    return volume->source || volume->from;
}

/* Where a field stands in its text, for what is found out later; line 0: nowhere. */
struct app_place {
    unsigned line, column;
};

struct app_spec {
    char *name;
    char *policy;
    enum app_export export;
    struct app_volume *volumes;
    size_t volume_count;
    char *manifests; /* absolute; NULL: none */
    char *key_file;  /* absolute; NULL: the journal is not encrypted */
    struct app_commands stop, start, probe;
    struct app_place policy_at, manifests_at, key_file_at;
};

/* History older than after_ns keeps one point in each keep_s seconds of the calendar. */
struct app_thinning {
    uint64_t after_ns;
    uint32_t keep_s;
};

struct app_policy {
    char *name;
    uint64_t quota_bytes; /* 0: chosen by the disk */
    uint64_t history_ns;  /* 0: no limit but the quota */
    uint64_t seed_bytes_per_second; /* of adopted volumes; 0: the engine's default */
    struct app_thinning thinning[APP_THINNING_MAX]; /* ascending */
    size_t thinning_count;
    uint64_t compress_after_ns; /* APP_COMPRESS_NEVER: not at all */
    enum app_ack_mode ack_mode;
    enum app_failure_mode failure_mode;
};

struct app_document {
    enum app_kind kind;
    struct app_spec *spec;     /* APP_KIND_APPLICATION */
    struct app_policy *policy; /* APP_KIND_POLICY */
};

struct app_documents {
    struct app_document *items;
    size_t count;
};

struct app_parse_options {
    const char *file;      /* what messages call the text */
    const char *directory; /* absolute, where relative paths start; NULL: they are refused */
};

/* Reads all documents of the text. -EINVAL with place, field, what was found and expected; -EFBIG for limits;
 * -ENOMEM. The same kind and name twice is refused. Free with app_documents_free. */
int app_documents_parse(const struct app_parse_options *options, const char *text, size_t length_bytes,
                        struct app_documents **ret_documents, struct error *err) MUST_CHECK;
/* NULL is allowed in all of these. */
void app_documents_free(struct app_documents *documents);
void app_spec_free(struct app_spec *spec);
void app_policy_free(struct app_policy *policy);

/* The steps, and the age of compression, that apply where a policy says none. */
void app_policy_default_thinning(struct app_policy *policy);
/* The policy that applies where none was applied. NULL when out of memory. */
struct app_policy *app_policy_new_default(void);

/* The canonical YAML (parsing it gives the same value, and the same text again); the caller frees it. NULL
 * when out of memory. */
char *app_spec_to_yaml(const struct app_spec *spec);
char *app_policy_to_yaml(const struct app_policy *policy);
/* The text with its checksum in a comment before it, for files that nobody writes but us; the caller frees it. NULL when out of memory. */
char *app_text_with_checksum(const char *text);
/* -EBADMSG when the text has a checksum, and another one than it should: damaged, or changed by hand. */
int app_text_check(const char *file, const char *text, size_t length_bytes, struct error *err) MUST_CHECK;
/* The same fields as JSON. NULL when out of memory. */
json_t *app_spec_to_json(const struct app_spec *spec);
json_t *app_policy_to_json(const struct app_policy *policy);
/* [[word, ...], ...] */
json_t *app_commands_to_json(const struct app_commands *commands);

/* -EINVAL unless `name` is a DNS label (RFC 1123: a-z, 0-9 and -, at most 63, no - at the ends). */
int app_check_name(const char *name, struct error *err) MUST_CHECK;

const char *app_export_name(enum app_export export);
/* Whether volumes are block devices of this host, which can be mounted and have a cache; NBD's are its clients'. */
bool app_export_has_devices(enum app_export export);
const char *app_fs_type_name(enum app_fs_type fs_type);
const char *app_ack_mode_name(enum app_ack_mode mode);
const char *app_failure_mode_name(enum app_failure_mode mode);
const char *app_kind_name(enum app_kind kind);

static inline void cleanup_app_documents(struct app_documents **documents)
{
    app_documents_free(*documents);
}
#define _cleanup_app_documents_ __attribute__((cleanup(cleanup_app_documents)))

#endif
