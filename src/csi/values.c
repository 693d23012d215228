/* SPDX-License-Identifier: Apache-2.0 */
/* What requests say, checked. */
#include <errno.h>
#include <inttypes.h>

#include "app/spec.h"
#include "base/units.h"
#include "csi/csi_internal.h"

static int check_mode(const Csi__V1__VolumeCapability *capability, struct csi_use *use, struct error *err)
{
    if (!capability->access_mode)
        return error_set(err, -EINVAL, "volume_capability.access_mode is missing");
    switch (capability->access_mode->mode) {
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_WRITER:
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_MULTI_WRITER:
        return 0;
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_SINGLE_WRITER:
        use->single_writer = true;
        return 0;
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_READER_ONLY:
        use->read_only = true;
        return 0;
    default:
        return error_set(
            err, -EINVAL,
            "access mode %d is not served: a volume is used on one node at a time; ask for ReadWriteOnce or "
            "ReadWriteOncePod",
            (int)capability->access_mode->mode);
    }
}

int csi_use_of(const Csi__V1__VolumeCapability *capability, struct csi_use *ret, struct error *err)
{
    struct csi_use use = {.fs_type = ""};
    if (!capability)
        return error_set(err, -EINVAL, "volume_capability is missing");
    if (capability->access_type_case == CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_BLOCK)
        use.block = true;
    else if (capability->access_type_case == CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_MOUNT) {
        const char *type = capability->mount->fs_type;
        if (!*type || strcmp(type, "ext4") == 0)
            use.fs_type = "ext4";
        else if (strcmp(type, "xfs") == 0)
            use.fs_type = "xfs";
        else
            return error_set(
                err, -EINVAL,
                "file system '%.40s' is not served; set csi.storage.k8s.io/fstype to ext4 or xfs", type);
        if (*capability->mount->volume_mount_group)
            return error_set(err, -EINVAL, "volume_mount_group is not served");
    } else
        return error_set(err, -EINVAL, "volume_capability has neither block nor mount");
    int r = check_mode(capability, &use, err);
    if (r == 0)
        *ret = use;
    return r;
}

int csi_size_of(const Csi__V1__CapacityRange *range, uint64_t default_bytes, uint64_t *ret, struct error *err)
{
    char asked[UNITS_TEXT_BYTES], limit[UNITS_TEXT_BYTES];
    int64_t required = range ? range->required_bytes : 0, most = range ? range->limit_bytes : 0;
    if (required < 0 || most < 0 || (most && most < required))
        return error_set(err, -EINVAL, "capacity_range %" PRId64 " to %" PRId64 " is none", required, most);
    uint64_t size = required ? (uint64_t)required : default_bytes;
    if (!required && most && (uint64_t)most < size)
        size = (uint64_t)most / CSI_VOLUME_UNIT_BYTES * CSI_VOLUME_UNIT_BYTES;
    if (size < APP_VOLUME_SIZE_BYTES_MIN)
        size = APP_VOLUME_SIZE_BYTES_MIN;
    if (size > APP_VOLUME_SIZE_BYTES_MAX)
        return error_set(err, -ERANGE, "a volume of %s is too large: at most %s",
                         units_format_bytes(size, asked),
                         units_format_bytes(APP_VOLUME_SIZE_BYTES_MAX, limit));
    size = (size + CSI_VOLUME_UNIT_BYTES - 1) / CSI_VOLUME_UNIT_BYTES * CSI_VOLUME_UNIT_BYTES;
    if (most && size > (uint64_t)most)
        return error_set(
            err, -ERANGE,
            "no size fits capacity_range: sizes are multiples of 1 MiB from 16 MiB on, and the limit is %s",
            units_format_bytes((uint64_t)most, limit));
    *ret = size;
    return 0;
}

int csi_require(const char *value, const char *field, struct error *err)
{
    return *value ? 0 : error_set(err, -EINVAL, "%s is missing", field);
}

int csi_require_path(const char *value, const char *field, struct error *err)
{
    int r = csi_require(value, field, err);
    if (r < 0)
        return r;
    size_t length = strlen(value);
    bool climbs = strstr(value, "/../") || (length >= 3 && strcmp(value + length - 3, "/..") == 0);
    if (*value != '/' || climbs || length >= APP_PATH_LENGTH_MAX)
        return error_set(err, -EINVAL, "%s is no absolute path of at most %u bytes without '..': '%.100s'",
                         field, APP_PATH_LENGTH_MAX, value);
    return 0;
}

int csi_members_parse(const char *text, struct csi_member ret[CSI_MEMBERS_MAX], struct error *err)
{
    int count = 0;
    while (*text) {
        char number[24];
        size_t name = strcspn(text, "=,"), digits = text[name] == '=' ? strcspn(text + name + 1, ",") : 0;
        if (count == (int)CSI_MEMBERS_MAX || !name || name >= CSI_HANDLE_BYTES || !digits ||
            digits >= sizeof number)
            return error_set(err, -EINVAL, "publish_context.members is malformed at '%.60s'", text);
        snprintf(ret[count].handle, CSI_HANDLE_BYTES, "%.*s", (int)name, text);
        snprintf(number, sizeof number, "%.*s", (int)digits, text + name + 1);
        int r = units_parse_u64(number, APP_VOLUME_SIZE_BYTES_MAX, &ret[count].size_bytes, err);
        if (r == 0)
            r = app_check_name(ret[count].handle, err);
        if (r < 0)
            return error_context(err, "publish_context.members");
        count++;
        text += name + 1 + digits;
        text += *text == ',';
    }
    return count;
}
