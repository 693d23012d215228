/* SPDX-License-Identifier: Apache-2.0 */
/* The library of policies: policies/<name>.yaml in the state directory; `default` is there without one. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "control/apply_internal.h"

#define POLICY_FILE_BYTES_MAX (64u << 10)
#define TELL_WAIT_MS 5000u /* while something else is done with an application */

static int policy_path(const struct control *control, const char *name, char path[PATH_MAX],
                       struct error *err)
{
    if (snprintf(path, PATH_MAX, "%s/policies/%s.yaml", control->state_directory, name) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "%s/policies: path too long", control->state_directory);
    return 0;
}

static int refuse_unknown(const struct control *control, const char *name, struct error *err)
{
    char path[PATH_MAX], names[256] = APP_POLICY_DEFAULT;
    snprintf(path, sizeof path, "%.*s/policies", PATH_MAX - 16, control->state_directory);
    _cleanup_closedir_ DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        size_t used = strlen(names), length = strlen(entry->d_name);
        if (length <= 5 || strcmp(entry->d_name + length - 5, ".yaml") != 0 ||
            strcmp(entry->d_name, APP_POLICY_DEFAULT ".yaml") == 0)
            continue;
        snprintf(names + used, sizeof names - used, ", %.*s", (int)length - 5, entry->d_name);
    }
    return error_set(
        err, -ENOENT,
        "spec.policyRef.name: there is no ProtectionPolicy '%s'; apply one of that name, or use another "
        "(there are: %s)",
        name, names);
}

int policy_load(const struct control *control, const char *name, struct app_policy **ret, struct error *err)
{
    char path[PATH_MAX];
    size_t length = 0;
    _cleanup_free_ char *text = NULL;
    _cleanup_app_documents_ struct app_documents *documents = NULL;
    int r = policy_path(control, name, path, err);
    if (r < 0)
        return r;
    if (access(path, F_OK) < 0 && errno == ENOENT) {
        if (strcmp(name, APP_POLICY_DEFAULT) != 0)
            return refuse_unknown(control, name, err);
        *ret = app_policy_new_default();
        return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
    }
    r = io_read_file(path, POLICY_FILE_BYTES_MAX, &text, &length, err);
    struct app_parse_options options = {.file = path};
    if (r == 0)
        r = app_documents_parse(&options, text, length, &documents, err);
    if (r == 0)
        r = app_text_check(path, text, length, err);
    if (r < 0 || !documents)
        return r < 0 ? error_context(err, "the ProtectionPolicy %s has to be applied again", name) : r;
    if (documents->count != 1 || documents->items[0].kind != APP_KIND_POLICY)
        return error_set(err, -EINVAL, "%s does not hold one ProtectionPolicy", path);
    *ret = take_ptr(documents->items[0].policy);
    return 0;
}

/* Those that use the policy, with references; the caller frees them. */
static size_t users_of(struct control *control, const char *name,
                       struct application *users[CONTROL_APPLICATIONS_MAX])
{
    size_t count = 0;
    MUTEX_GUARD(guard, &control->mutex);
    for (struct application *a = control->applications; a && count < CONTROL_APPLICATIONS_MAX; a = a->next) {
        MUTEX_GUARD(inner, &a->mutex);
        if (strcmp(a->spec->policy, name) != 0)
            continue;
        a->refs++;
        users[count++] = a;
    }
    return count;
}

/* The running engines take it at once; one that cannot takes it when it starts the next time. */
static bool tell_users(struct control *control, const char *name)
{
    struct application **users = calloc(CONTROL_APPLICATIONS_MAX, sizeof *users);
    bool all = users != NULL;
    size_t count = users ? users_of(control, name, users) : 0;
    for (size_t i = 0; i < count; i++) {
        struct error err = ERROR_INIT;
        int r = application_begin(users[i], "policy", TELL_WAIT_MS, &err);
        if (r == 0) {
            if (users[i]->state == APPLICATION_RUNNING)
                r = application_write_configs(users[i], &err);
            if (r == 0 && users[i]->state == APPLICATION_RUNNING)
                r = application_configure(users[i], &err);
            application_end(users[i]);
        }
        if (r < 0)
            log_warning(control->log, "%s has not taken the policy %s yet: %s", users[i]->name, name,
                        err.message);
        all &= r == 0;
        application_unref(users[i]);
    }
    free(users);
    return all;
}

int policy_apply(struct control *control, const struct app_policy *policy, bool dry_run,
                 enum apply_result *ret, const char **ret_message, struct error *err)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    _cleanup_free_ char *yaml = app_policy_to_yaml(policy), *text = yaml ? app_text_with_checksum(yaml) : NULL, *old = NULL;
    int r = policy_path(control, policy->name, path, err);
    if (r < 0 || !text)
        return r < 0 ? r : error_set(err, -ENOMEM, "out of memory");
    bool exists = io_read_file(path, POLICY_FILE_BYTES_MAX, &old, NULL, &ignored) == 0;
    if (exists && strcmp(old, text) == 0) {
        *ret = APPLY_UNCHANGED;
        return 0;
    }
    *ret = exists ? APPLY_CONFIGURED : APPLY_CREATED;
    if (dry_run)
        return 0;
    r = io_replace_file(path, text, strlen(text), 0600, err);
    if (r == 0 && !tell_users(control, policy->name))
        *ret_message = "an application that uses it has not taken it yet (see the log of up): it does when "
                       "its engine starts the "
                       "next time";
    return r;
}
