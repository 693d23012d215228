/* SPDX-License-Identifier: Apache-2.0 */
#include "csi/adopted.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "app/spec.h"
#include "base/units.h"
#include "csi/csi.h"
#include "kube/kube.h"
#include "lib/json.h"

void adopted_backing_name(const char *handle, char ret[CLASS_NAME_BYTES])
{
    snprintf(ret, CLASS_NAME_BYTES, "%s-backing", handle);
}

void adopted_look_name(const char *handle, char ret[CLASS_NAME_BYTES])
{
    snprintf(ret, CLASS_NAME_BYTES, "%s-look", handle);
}

static json_t *spec_of(const json_t *volume, const char *key)
{
    return json_object_get(json_object_get(volume, "spec"), key);
}

static const json_t *capacity_of(const json_t *volume)
{
    return json_object_get(spec_of(volume, "capacity"), "storage");
}

int adopted_check(const json_t *former, struct error *err)
{
    const char *name = kube_object_name(former);
    if (!json_is_object(spec_of(former, "csi")))
        return error_set(err, -EINVAL, "the volume %s is not one of a CSI driver", name);
    if (json_is_true(json_object_get(spec_of(former, "csi"), "readOnly")))
        return error_set(err, -EINVAL, "the volume %s is read-only", name);
    return json_is_string(capacity_of(former)) ? 0 : error_set(err, -EINVAL, "the volume %s does not say its size", name);
}

/* ---- what carries it ---- */

json_t *adopted_backing_volume(const json_t *former, const char *handle, const char *namespace)
{
    char name[CLASS_NAME_BYTES];
    const char *class = json_text(json_object_get(former, "spec"), "storageClassName");
    json_t *csi = json_deep_copy(spec_of(former, "csi"));
    adopted_backing_name(handle, name);
    json_object_del(csi, "fsType");
    return json_pack("{s:s, s:s, s:{s:s, s:{s:s, s:s}, s:{s:s?}}, s:{s:{s:O}, s:[s], s:s, s:s, s:s, s:{s:s, s:s, s:s, s:s}, s:O*, s:o}}", "apiVersion", "v1",
                     "kind", "PersistentVolume", "metadata", "name", name, "labels", "app.kubernetes.io/name", "tidemark", "tidemark.io/volume", handle,
                     "annotations", "tidemark.io/former-volume", kube_object_name(former), "spec", "capacity", "storage", capacity_of(former), "accessModes",
                     "ReadWriteOnce", "volumeMode", "Block", "persistentVolumeReclaimPolicy", "Retain", "storageClassName", class, "claimRef", "apiVersion",
                     "v1", "kind", "PersistentVolumeClaim", "namespace", namespace, "name", handle, "nodeAffinity", spec_of(former, "nodeAffinity"), "csi", csi);
}

json_t *adopted_backing_claim(const json_t *former, const char *handle, const char *namespace)
{
    char volume[CLASS_NAME_BYTES];
    const json_t *of = spec_of(former, "claimRef");
    adopted_backing_name(handle, volume);
    return json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s, s:s}, s:{s:o}}, s:{s:s, s:s, s:s, s:[s], s:{s:{s:O}}}}", "apiVersion", "v1", "kind",
                     "PersistentVolumeClaim", "metadata", "name", handle, "namespace", namespace, "labels", "app.kubernetes.io/name", "tidemark",
                     "tidemark.io/volume", handle, "annotations", "tidemark.io/claim", json_sprintf("%s/%s", json_text(of, "namespace"), json_text(of, "name")),
                     "spec", "storageClassName", json_text(json_object_get(former, "spec"), "storageClassName"), "volumeName", volume, "volumeMode", "Block",
                     "accessModes", "ReadWriteOnce", "resources", "requests", "storage", capacity_of(former));
}

/* ---- what the claim gets ---- */

json_t *adopted_volume(const json_t *former, const char *handle, const char *fs_type, const char *ack_mode)
{
    const json_t *of = spec_of(former, "claimRef"), *spec = json_object_get(former, "spec");
    const char *mode = json_text(spec, "volumeMode");
    return json_pack("{s:s, s:s, s:{s:s, s:{s:s}, s:{s:s}}, s:{s:{s:O}, s:O, s:s, s:s, s:s, s:{s:s, s:s, s:O, s:O}, s:O*, s:O*, s:{s:s, s:s, s:s*, s:{s:s, s:s*}}}}",
                     "apiVersion", "v1", "kind", "PersistentVolume", "metadata", "name", handle, "labels", "app.kubernetes.io/name", "tidemark", "annotations",
                     "pv.kubernetes.io/provisioned-by", CSI_DRIVER_NAME, "spec", "capacity", "storage", capacity_of(former), "accessModes",
                     json_object_get(spec, "accessModes"), "volumeMode", *mode ? mode : "Filesystem", "persistentVolumeReclaimPolicy", "Retain",
                     "storageClassName", json_text(spec, "storageClassName"), "claimRef", "apiVersion", "v1", "kind", "PersistentVolumeClaim", "namespace",
                     json_object_get(of, "namespace"), "name", json_object_get(of, "name"), "mountOptions", json_object_get(spec, "mountOptions"),
                     "nodeAffinity", json_object_get(spec, "nodeAffinity"), "csi", "driver", CSI_DRIVER_NAME, "volumeHandle", handle, "fsType",
                     *fs_type ? fs_type : NULL, "volumeAttributes", ADOPTED_ATTRIBUTE, "true", "ackMode", *ack_mode ? ack_mode : NULL);
}

int adopted_record(const json_t *parameters, const json_t *former, const char *handle, uint64_t size_bytes, struct csi_volume *ret, struct error *err)
{
    const json_t *of = spec_of(former, "claimRef");
    const char *journal = json_text(parameters, "journalSize");
    struct csi_volume v = {.size_bytes = size_bytes, .backing = "class"};
    const struct {
        const char *what, *text;
        char *to;
        size_t size;
    } texts[] = {{"the handle", handle, v.handle, sizeof v.handle},
                 {"backingClass", json_text(parameters, "backingClass"), v.backing_class, sizeof v.backing_class},
                 {"ackMode", json_text(parameters, "ackMode"), v.ack_mode, sizeof v.ack_mode},
                 {"the namespace", json_text(of, "namespace"), v.claim_namespace, sizeof v.claim_namespace},
                 {"the claim", json_text(of, "name"), v.claim_name, sizeof v.claim_name}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if ((size_t)snprintf(texts[i].to, texts[i].size, "%s", texts[i].text) >= texts[i].size)
            return error_set(err, -EINVAL, "%s is too long: '%.60s'", texts[i].what, texts[i].text);
    snprintf(v.name, sizeof v.name, "%s", v.handle); /* that of its PersistentVolume, by which a restore finds it */
    int r = *journal ? units_parse_bytes(journal, &v.journal_bytes, err) : 0;
    if (r < 0)
        return error_context(err, "parameter journalSize of the StorageClass");
    *ret = v;
    return 0;
}

/* ---- looking at it ---- */

json_t *adopted_look_pod(const char *handle, const char *namespace, const char *image)
{
    char name[CLASS_NAME_BYTES];
    static const char script[] = "set -e; d=" ADOPTED_DEVICE "; s=$(blockdev --getsize64 $d); "
                                 "t=$(blkid -p -o value -s TYPE $d) || true; echo \"$s $t\" >/dev/termination-log";
    adopted_look_name(handle, name);
    return json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s, s:s}}, s:{s:s, s:b, s:i, s:[{s:s, s:{s:s}}], s:[{s:s, s:s, s:s, s:[s,s,s], s:s, s:[{s:s, s:s}], "
                     "s:{s:i, s:b, s:{s:s}}}]}}",
                     "apiVersion", "v1", "kind", "Pod", "metadata", "name", name, "namespace", namespace, "labels", "app.kubernetes.io/name", "tidemark",
                     "app.kubernetes.io/managed-by", "tidemark", "spec", "restartPolicy", "Never", "automountServiceAccountToken", 0,
                     "terminationGracePeriodSeconds", 1, "volumes", "name", "volume", "persistentVolumeClaim", "claimName", handle, "containers", "name", "look",
                     "image", image, "imagePullPolicy", "IfNotPresent", "command", "/bin/sh", "-c", script, "terminationMessagePolicy", "FallbackToLogsOnError",
                     "volumeDevices", "name", "volume", "devicePath", ADOPTED_DEVICE, "securityContext", "runAsUser", 0, "allowPrivilegeEscalation", 0,
                     "seccompProfile", "type", "RuntimeDefault");
}

int adopted_read_look(const char *text, bool block, uint64_t *ret_bytes, char ret_type[ADOPTED_TYPE_BYTES], struct error *err)
{
    char size[24], type[ADOPTED_TYPE_BYTES] = "", has[UNITS_TEXT_BYTES];
    uint64_t bytes = 0;
    if (sscanf(text, "%23s %31s", size, type) < 1 || units_parse_u64(size, UINT64_MAX, &bytes, err) < 0) {
        *err = ERROR_INIT;
        return error_set(err, -EINVAL, "nothing can be told of its device ('%.200s')", text);
    }
    if (bytes < APP_VOLUME_SIZE_BYTES_MIN)
        return error_set(err, -EINVAL, "its device has %s, and a volume at least 16 MiB", units_format_bytes(bytes, has));
    if (bytes % APP_VOLUME_SIZE_UNIT_BYTES)
        return error_set(err, -EINVAL, "its device has %" PRIu64 " bytes, which is no multiple of 4096", bytes);
    if (!block && strcmp(type, "ext4") != 0 && strcmp(type, "xfs") != 0)
        return error_set(err, -EINVAL, "its device holds %s, and only ext4 and xfs are mounted", *type ? type : "nothing that can be recognized");
    *ret_bytes = bytes;
    snprintf(ret_type, ADOPTED_TYPE_BYTES, "%s", block ? "" : type);
    return 0;
}

/* An engine that does not answer has no LSN. */
bool adopted_is_whole(const json_t *status)
{
    return json_is_integer(json_object_get(status, "lsn")) && !json_is_object(json_object_get(status, "rewind")) &&
           !json_is_object(json_object_get(status, "filling")) && !json_is_string(json_object_get(status, "operation"));
}

bool adopted_is_refusal(const char *message)
{
    return strstr(message, "code = InvalidArgument") || strstr(message, "code = Unimplemented");
}
