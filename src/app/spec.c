/* SPDX-License-Identifier: Apache-2.0 */
#include "app/spec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void commands_release(struct app_commands *commands)
{
    for (size_t i = 0; i < commands->count; i++) {
        for (size_t j = 0; j < commands->items[i].count; j++)
            free(commands->items[i].argv[j]);
        free(commands->items[i].argv);
    }
    free(commands->items);
}

void app_spec_free(struct app_spec *spec)
{
    if (!spec)
        return;
    for (size_t i = 0; i < spec->volume_count; i++) {
        free(spec->volumes[i].name);
        free(spec->volumes[i].mount_path);
        free(spec->volumes[i].source);
        free(spec->volumes[i].from);
    }
    free(spec->volumes);
    free(spec->name);
    free(spec->policy);
    free(spec->manifests);
    free(spec->key_file);
    commands_release(&spec->stop);
    commands_release(&spec->start);
    commands_release(&spec->probe);
    free(spec);
}

void app_policy_free(struct app_policy *policy)
{
    if (!policy)
        return;
    free(policy->name);
    free(policy);
}

void app_documents_free(struct app_documents *documents)
{
    if (!documents)
        return;
    for (size_t i = 0; i < documents->count; i++) {
        app_spec_free(documents->items[i].spec);
        app_policy_free(documents->items[i].policy);
    }
    free(documents->items);
    free(documents);
}

void app_policy_default_thinning(struct app_policy *policy)
{
    enum { MINUTE = 60, HOUR = 3600 };
    static const struct app_thinning steps[] = {{2ull * HOUR * 1000000000u, 1},
                                                {24ull * HOUR * 1000000000u, MINUTE},
                                                {168ull * HOUR * 1000000000u, HOUR}};
    memcpy(policy->thinning, steps, sizeof steps);
    policy->thinning_count = sizeof steps / sizeof *steps;
    policy->compress_after_ns = APP_COMPRESS_AFTER_NS;
}

struct app_policy *app_policy_new_default(void)
{
    struct app_policy *policy = calloc(1, sizeof *policy);
    if (!policy)
        return NULL;
    policy->name = strdup(APP_POLICY_DEFAULT);
    if (!policy->name) {
        free(policy);
        return NULL;
    }
    app_policy_default_thinning(policy);
    return policy;
}

int app_check_name(const char *name, struct error *err)
{
    size_t length = strlen(name);
    size_t valid = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-");
    if (length == 0 || length > APP_NAME_LENGTH_MAX || valid != length || name[0] == '-' ||
        name[length - 1] == '-')
        return error_set(
            err, -EINVAL,
            "'%.80s' is not a name: expected a DNS label (1 to %u of a-z, 0-9 and '-', beginning and ending "
            "with a letter or digit)",
            name, APP_NAME_LENGTH_MAX);
    return 0;
}

const char *app_export_name(enum app_export export)
{
    return export == APP_EXPORT_NBD ? "nbd" : export == APP_EXPORT_UBLK ? "ublk" : "fuse";
}

bool app_export_has_devices(enum app_export export)
{
    return export != APP_EXPORT_NBD;
}

const char *app_fs_type_name(enum app_fs_type fs_type)
{
    static const char *const names[] = {[APP_FS_EXT4] = "ext4", [APP_FS_XFS] = "xfs", [APP_FS_BTRFS] = "btrfs", [APP_FS_FOUND] = "auto"};
    return names[fs_type];
}

const char *app_failure_mode_name(enum app_failure_mode mode)
{
    return mode == APP_FAILURE_PROTECTION ? "protection" : "availability";
}

const char *app_ack_mode_name(enum app_ack_mode mode)
{
    return mode == APP_ACK_FLUSH ? "flush" : "write";
}

const char *app_kind_name(enum app_kind kind)
{
    return kind == APP_KIND_POLICY ? "ProtectionPolicy" : "ProtectedApplication";
}
