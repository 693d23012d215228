/* SPDX-License-Identifier: Apache-2.0 */
/* Applying documents, deleting applications, and loading them at the start. One at a time
 * (control.apply_mutex). */
#include "control/apply_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/io.h"
#include "base/units.h"
#include "control/mounts.h"
#include "journal/seal.h"
#include "journal/set_aside.h"

#define APPLICATION_FILE_BYTES_MAX (4u << 20)
#define DELETIONS_NOTED "deletions-noted" /* in the state directory */

static const struct app_volume *find_volume(const struct app_spec *spec, const char *name)
{
    for (size_t i = 0; i < spec->volume_count; i++)
        if (strcmp(spec->volumes[i].name, name) == 0)
            return &spec->volumes[i];
    return NULL;
}

static bool same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static bool same_volumes(const struct app_spec *a, const struct app_spec *b)
{
    if (a->volume_count != b->volume_count)
        return false;
    for (size_t i = 0; i < a->volume_count; i++)
        if (strcmp(a->volumes[i].name, b->volumes[i].name) != 0 ||
            !same_text(a->volumes[i].mount_path, b->volumes[i].mount_path))
            return false;
    return true;
}

int change_classify(const struct app_spec *old, const struct app_spec *new, enum change_kind *ret,
                    struct error *err)
{
    char from[UNITS_TEXT_BYTES], to[UNITS_TEXT_BYTES];
    if (old->export != new->export)
        return error_set(err, -EINVAL,
                         "spec.export of %s cannot change from %s to %s while it is protected: `tidemark "
                         "delete %s` keeps data and "
                         "journal, then apply it anew",
                         new->name, app_export_name(old->export), app_export_name(new->export), new->name);
    for (size_t i = 0; i < old->volume_count; i++) {
        const struct app_volume *was = &old->volumes[i], *is = find_volume(new, was->name);
        if (!is)
            return error_set(err, -EINVAL,
                             "volume %s of %s is missing in spec.volumes: volumes cannot be removed or "
                             "renamed, because the "
                             "history of the others goes through it; keep it, or delete the application",
                             was->name, new->name);
        if (is->size_bytes && is->size_bytes < was->size_bytes)
            return error_set(err, -EINVAL,
                             "volume %s of %s cannot shrink from %s to %s: its file system and its history "
                             "need them; leave "
                             "the size as it is, or copy the data to a new volume of the size you need",
                             was->name, new->name, units_format_bytes(was->size_bytes, from),
                             units_format_bytes(is->size_bytes, to));
        if (!same_text(is->source, was->source))
            return error_set(err, -EINVAL,
                             "the source of volume %s of %s cannot change (it is %s): `tidemark detach %s` "
                             "gives the data back, "
                             "then apply it anew",
                             was->name, new->name, was->source ? was->source : "a new volume", new->name);
        if (is->mount_path && was->mount_path && is->fs_type != was->fs_type)
            return error_set(err, -EINVAL, "fsType of volume %s of %s cannot change: it holds %s", was->name,
                             new->name, app_fs_type_name(was->fs_type));
    }
    if (!same_text(old->key_file, new->key_file))
        return error_set(err, -EINVAL,
                         "spec.journal.encryption of %s cannot change by apply (its key file is %s, not %s): whether a journal is "
                         "encrypted is chosen when the application is made, and `tidemark key rotate %s FILE` takes another key file",
                         new->name, old->key_file ? old->key_file : "none", new->key_file ? new->key_file : "none", new->name);
    _cleanup_free_ char *old_text = app_spec_to_yaml(old), *new_text = app_spec_to_yaml(new);
    if (!old_text || !new_text)
        return error_set(err, -ENOMEM, "out of memory");
    /* One that grows and is mounted elsewhere at once grows at the start. */
    *ret = !same_volumes(old, new) ? CHANGE_REMOUNT : strcmp(old_text, new_text) ? CHANGE_LIGHT : CHANGE_NONE;
    return 0;
}

int disk_check(const struct application *application, const struct app_spec *old, uint64_t quota_bytes,
               struct error *err)
{
    struct statvfs fs;
    struct stat st;
    char path[PATH_MAX], free_text[UNITS_TEXT_BYTES], needed_text[UNITS_TEXT_BYTES],
        volumes_text[UNITS_TEXT_BYTES], quota_text[UNITS_TEXT_BYTES];
    const char *state = application->control->state_directory;
    uint64_t volumes_bytes = 0;
    int r = application_statvfs(application, &fs, err);
    if (r < 0)
        return r;
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    for (size_t i = 0; i < application->spec->volume_count; i++) {
        const struct app_volume *v = &application->spec->volumes[i], *was = old ? find_volume(old, v->name) : NULL;
        if (was) { /* what it grows by; a source grows where it is */
            volumes_bytes += !v->source && v->size_bytes > was->size_bytes ? v->size_bytes - was->size_bytes : 0;
            continue;
        }
        r = application_path(application, path, err, "backing/%s.img", v->name);
        if (r < 0)
            return r;
        uint64_t there = 0;
        if (v->source) {
            volumes_bytes += v->size_bytes; /* the base gets a copy of what it holds */
            continue;
        }
        if (stat(path, &st) == 0) { /* kept by a former delete */
            if ((uint64_t)st.st_size > v->size_bytes && st.st_size)
                return error_set(err, -EEXIST,
                                 "volume %s: its data was kept in %s, which has another size (%s): apply it "
                                 "with that size, or remove %s first",
                                 v->name, path, units_format_bytes((uint64_t)st.st_size, free_text),
                                 application->directory);
            there = (uint64_t)st.st_blocks * 512;
        }
        volumes_bytes += v->size_bytes > there ? v->size_bytes - there : 0;
    }
    if (!quota_bytes && !old)
        quota_bytes =
            free_bytes / 4 < CONTROL_QUOTA_DEFAULT_BYTES ? free_bytes / 4 : CONTROL_QUOTA_DEFAULT_BYTES;
    if (volumes_bytes + quota_bytes <= free_bytes)
        return 0;
    return error_set(
        err, -ENOSPC,
        "%s does not fit on the disk of %s: needed %s (volumes %s, journal %s), free %s; make the "
        "volumes smaller, set a smaller spec.journal.quota in the policy, or use another --state directory",
        application->name, state, units_format_bytes(volumes_bytes + quota_bytes, needed_text),
        units_format_bytes(volumes_bytes, volumes_text), units_format_bytes(quota_bytes, quota_text),
        units_format_bytes(free_bytes, free_text));
}

/* No mount point of another application, nor one inside its volumes or around them: neither could be unmounted without the
 * other. */
static int check_conflicts(struct control *control, const struct app_spec *spec, struct error *err)
{
    MUTEX_GUARD(guard, &control->mutex);
    for (struct application *a = control->applications; a; a = a->next) {
        if (strcmp(a->name, spec->name) == 0)
            continue;
        MUTEX_GUARD(inner, &a->mutex);
        for (size_t i = 0; i < spec->volume_count; i++)
            for (size_t j = 0; j < a->spec->volume_count; j++) {
                const char *path = spec->volumes[i].mount_path, *other = a->spec->volumes[j].mount_path;
                if (path && other && (mounts_is_within(path, other) || mounts_is_within(other, path)))
                    return error_set(err, -EBUSY,
                                     "volume %s of %s cannot be mounted on %s: volume %s of %s is mounted on %s; choose another "
                                     "mountPath",
                                     spec->volumes[i].name, spec->name, path, a->spec->volumes[j].name, a->name, other);
            }
    }
    return 0;
}

/* What no field's text alone shows, told with its place as the parser does; `file` as messages call the text.
 */
static int refuse_field(const char *file, struct app_place at, struct error *err)
{
    if (at.line)
        error_context(err, "%s:%u:%u", file, at.line, at.column);
    return err->code =
               err->code == -ENOENT ? -EINVAL : err->code; /* it is not the application that is not there */
}

/* The policy is there (or comes with the same text), the manifests directory exists, the export can work
 * here. */
static int check_spec(struct control *control, const struct app_documents *documents, const char *file,
                      const struct app_spec *spec, uint64_t *ret_quota, struct error *err)
{
    struct stat st;
    struct app_policy *policy = NULL;
    const struct app_policy *with_it = NULL;
    for (size_t i = 0; i < documents->count; i++)
        if (documents->items[i].kind == APP_KIND_POLICY &&
            strcmp(documents->items[i].policy->name, spec->policy) == 0)
            with_it = documents->items[i].policy;
    int r = with_it ? 0 : policy_load(control, spec->policy, &policy, err);
    if (r < 0)
        return refuse_field(file, spec->policy_at, err);
    *ret_quota = with_it ? with_it->quota_bytes : policy->quota_bytes;
    app_policy_free(policy);
    if (spec->manifests && (stat(spec->manifests, &st) < 0 || !S_ISDIR(st.st_mode))) {
        error_set(
            err, -ENOTDIR,
            "spec.manifests: there is no directory %s; create it (it may be empty), or leave the field out",
            spec->manifests);
        return refuse_field(file, spec->manifests_at, err);
    }
    struct seal_user_key key;
    if (spec->key_file && seal_key_load(spec->key_file, &key, err) < 0) {
        if (access(spec->key_file, F_OK) < 0 && errno == ENOENT)
            error_set(err, -EINVAL, "there is no key file %s; `tidemark key generate %s` makes one",
                      spec->key_file, spec->key_file);
        error_context(err, "spec.journal.encryption.keyFile");
        err->code = -EINVAL;
        return refuse_field(file, spec->key_file_at, err);
    }
    aead_wipe(&key, sizeof key);
    r = programs_check_export(&control->programs, spec->export, err);
    return r < 0 ? r : check_conflicts(control, spec, err);
}

/* For each mount path, how much of it exists: what is made below goes again if the apply fails. */
static void note_existing(const struct app_spec *spec, size_t existing[APP_VOLUMES_MAX])
{
    for (size_t i = 0; i < spec->volume_count; i++) {
        char path[APP_PATH_LENGTH_MAX + 1];
        struct stat st;
        snprintf(path, sizeof path, "%s", spec->volumes[i].mount_path ? spec->volumes[i].mount_path : "/");
        while (path[0] && lstat(path, &st) < 0)
            *strrchr(path, '/') = '\0';
        existing[i] = strlen(path);
    }
}

static void remove_made(const struct app_spec *spec, const size_t existing[APP_VOLUMES_MAX])
{
    for (size_t n = spec->volume_count; n-- > 0;) {
        char path[APP_PATH_LENGTH_MAX + 1];
        if (!spec->volumes[n].mount_path)
            continue;
        snprintf(path, sizeof path, "%s", spec->volumes[n].mount_path);
        while (strlen(path) > existing[n] && (rmdir(path) == 0 || errno == ENOENT))
            *strrchr(path, '/') = '\0';
    }
}

/* A backing of its own that was written to, or only mounted, since the application was deleted. */
static bool was_used_since(const struct application *a, size_t volume, const struct timespec *deleted)
{
    char path[PATH_MAX];
    struct stat st;
    struct error ignored = ERROR_INIT;
    if (application_path(a, path, &ignored, "backing/%s.img", a->spec->volumes[volume].name) < 0 || stat(path, &st) < 0)
        return false;
    return st.st_ctim.tv_sec != deleted->tv_sec ? st.st_ctim.tv_sec > deleted->tv_sec : st.st_ctim.tv_nsec > deleted->tv_nsec;
}

/* The journal of an application that was deleted is gone on with. Meanwhile anybody may have used its sources, and its backings, whose places were
 * told: what they hold now is compared with the journal (the engine looks for the file). */
static int ask_for_comparison(const struct application *a, struct error *err)
{
    char path[PATH_MAX], aside[PATH_MAX];
    struct stat st;
    bool used = false;
    int r = application_path(a, path, err, "journal/manifest");
    if (r == 0)
        r = application_path(a, aside, err, "application.yaml.deleted");
    if (r < 0 || access(path, F_OK) < 0)
        return r;
    bool dated = stat(aside, &st) == 0;
    for (size_t i = 0; i < a->spec->volume_count; i++)
        used |= a->spec->volumes[i].source || (dated && was_used_since(a, i, &st.st_ctim));
    if (!used)
        return 0;
    r = application_path(a, path, err, "journal/compare");
    return r < 0 ? r : io_replace_file(path, "", 0, 0600, err);
}

/* `from` is written by a clone (clone.c); who applies the application again may leave it out. */
static int inherit_from(const struct app_spec *old, struct app_spec *new, struct error *err)
{
    for (size_t i = 0; i < new->volume_count; i++) {
        struct app_volume *v = &new->volumes[i];
        const struct app_volume *was = find_volume(old, v->name);
        if (v->from && (!was || !same_text(v->from, was->from)))
            return error_set(err, -EINVAL,
                             "volume %s of %s: found `from`, which only a clone writes; leave it out", v->name, new->name);
        if (!v->from && was && was->from && !(v->from = strdup(was->from)))
            return error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

/* What application_save() has written. */
static int read_description(const char *path, const char *name, struct app_spec **ret, struct error *err)
{
    size_t length = 0;
    _cleanup_free_ char *text = NULL;
    _cleanup_app_documents_ struct app_documents *documents = NULL;
    struct app_parse_options options = {.file = path};
    int r = io_read_file(path, APPLICATION_FILE_BYTES_MAX, &text, &length, err);
    if (r == 0)
        r = app_documents_parse(&options, text, length, &documents, err);
    if (r == 0)
        r = app_text_check(path, text, length, err);
    if (r < 0)
        return r;
    if (documents->count != 1 || documents->items[0].kind != APP_KIND_APPLICATION || strcmp(documents->items[0].spec->name, name) != 0)
        return error_set(err, -EINVAL, "%s does not hold the ProtectedApplication %s", path, name);
    *ret = take_ptr(documents->items[0].spec);
    return 0;
}

/* One that was deleted, and whose journal was kept, is what it was: also where its description, which is applied again, does not say that a clone
 * filled its volumes. */
static void inherit_from_deleted(struct application *a)
{
    char path[PATH_MAX], aside[PATH_MAX];
    struct stat st;
    struct error why = ERROR_INIT;
    struct app_spec *old = NULL;
    if (application_path(a, path, &why, "journal/manifest") < 0 || application_path(a, aside, &why, "application.yaml.deleted") < 0 ||
        access(path, F_OK) < 0 || stat(aside, &st) < 0 || st.st_size == 0)
        return;
    int r = read_description(aside, a->name, &old, &why);
    for (size_t i = 0; i < a->spec->volume_count && r == 0; i++) {
        struct app_volume *v = &a->spec->volumes[i];
        const struct app_volume *was = find_volume(old, v->name);
        if (!v->from && !v->source && was && was->from && !(v->from = strdup(was->from)))
            r = error_set(&why, -ENOMEM, "out of memory");
    }
    app_spec_free(old);
    if (r < 0)
        log_warning(a->control->log, "%s: what it was before it was deleted is not known: %s", a->name, why.message);
}

/* One that was deleted, and whose journal was kept, is told what it was. */
static int check_new_from(const struct application *a, struct error *err)
{
    char path[PATH_MAX];
    int r = application_path(a, path, err, "journal/manifest");
    for (size_t i = 0; r == 0 && i < a->spec->volume_count; i++)
        if (a->spec->volumes[i].from && access(path, F_OK) < 0)
            return error_set(err, -EINVAL,
                             "volume %s of %s: found `from`, which only a clone writes; leave it out",
                             a->spec->volumes[i].name, a->name);
    return r;
}

static void forget_deletion(const struct application *a)
{
    char aside[PATH_MAX];
    struct error ignored = ERROR_INIT;
    if (application_path(a, aside, &ignored, "application.yaml.deleted") == 0)
        unlink(aside);
}

/* U3: without a trace if it fails. */
static int create(struct control *control, struct app_spec *spec, uint64_t quota_bytes, bool dry_run,
                  struct error *err)
{
    struct stat st;
    struct error ignored = ERROR_INIT;
    char yaml_path[PATH_MAX];
    size_t existing[APP_VOLUMES_MAX];
    _cleanup_application_ struct application *a = application_new(control, spec, err);
    if (!a)
        return err->code;
    inherit_from_deleted(a);
    int r = check_new_from(a, err);
    if (r == 0)
        r = disk_check(a, NULL, quota_bytes, err);
    if (r == 0)
        r = application_path(a, yaml_path, err, "application.yaml");
    if (r < 0 || dry_run)
        return r;
    bool kept = stat(a->directory, &st) == 0;
    note_existing(a->spec, existing);
    r = io_mkdirs(a->directory, 0700, err);
    if (r == 0)
        r = ask_for_comparison(a, err);
    if (r == 0)
        r = application_begin(a, "apply", 0, err);
    if (r == 0)
        r = application_save(a, err);
    if (r == 0) {
        application_list(a);
        r = application_start(a, err);
    }
    if (r < 0)
        application_unlist(a); /* before anybody else may begin anything with it */
    application_end(a);
    if (r == 0)
        forget_deletion(a);
    if (r == 0)
        return 0;
    unlink(yaml_path);
    remove_made(a->spec, existing);
    if (!kept && io_remove_tree(a->directory, &ignored) < 0)
        log_warning(control->log, "%s", ignored.message);
    return r;
}

static void swap_spec(struct application *a, struct app_spec **spec)
{
    MUTEX_GUARD(guard, &a->mutex);
    struct app_spec *old = a->spec;
    a->spec = *spec;
    *spec = old;
}

static int remount(struct application *a, struct app_spec **spec, struct error *err)
{
    size_t existing[APP_VOLUMES_MAX];
    note_existing(*spec, existing);
    int r = application_stop(a, false, err);
    if (r < 0)
        return r;
    swap_spec(a, spec);
    r = application_save(a, err);
    if (r == 0)
        r = application_start(a, err);
    if (r == 0)
        return 0;
    struct error second = ERROR_INIT;
    swap_spec(a, spec);
    remove_made(*spec, existing);
    int back = application_save(a, &second);
    if (back == 0)
        back = application_start(a, &second);
    if (back < 0)
        log_error(a->control->log, "%s: cannot go back to what it was: %s", a->name, second.message);
    return r;
}

/* Tells the engine what its configuration says now: policy and larger volumes. */
static int reconfigure(struct application *a, struct error *err)
{
    int r = application_write_configs(a, err);
    if (r == 0 && a->state == APPLICATION_RUNNING)
        r = application_configure(a, err);
    return r;
}

static int change_light(struct application *a, struct app_spec **spec, struct error *err)
{
    bool other_manifests = !same_text(a->spec->manifests, (*spec)->manifests);
    struct manifests *started = NULL;
    int r = 0;
    if (other_manifests && (*spec)->manifests && a->state == APPLICATION_RUNNING)
        r = manifests_start(a->control, (*spec)->manifests, a->socket, &started, err);
    if (r < 0)
        return r;
    swap_spec(a, spec);
    r = application_save(a, err);
    if (r == 0)
        r = reconfigure(a, err);
    if (r < 0) {
        struct error second = ERROR_INIT;
        swap_spec(a, spec);
        if (application_save(a, &second) < 0 || application_write_configs(a, &second) < 0)
            log_error(a->control->log, "%s: cannot go back to what it was: %s", a->name, second.message);
    }
    if (r == 0 && other_manifests) {
        pthread_mutex_lock(&a->mutex);
        struct manifests *old = a->manifests;
        a->manifests = started;
        started = old;
        pthread_mutex_unlock(&a->mutex);
    }
    manifests_stop(started);
    return r;
}

/* What the engine would refuse (volume/resize.c), for a dry run. One that is started anew for the change keeps the volume's size and raises an alarm. */
static int check_growth(const struct application *a, const struct app_spec *new, struct error *err)
{
    _cleanup_json_ json_t *status = NULL;
    size_t i;
    const json_t *volume;
    int r = application_call(a, "GET", "/v1/status", NULL, CONTROL_STATUS_TIMEOUT_MS, &status, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(status, "volumes"), i, volume)
    {
        const char *name = json_text(volume, "name");
        const struct app_volume *is = find_volume(new, name), *was = find_volume(a->spec, name);
        if (is && was && is->size_bytes > was->size_bytes && json_is_object(json_object_get(volume, "seeding")))
            return error_set(err, -EBUSY,
                             "volume %s cannot grow before all that it held is copied to the history: try again when "
                             "`tidemark status` shows that it is seeded",
                             name);
    }
    return 0;
}

/* Takes *spec on success (what is left in it is freed by the caller). */
static int update(struct application *a, struct app_spec **spec, uint64_t quota_bytes, bool dry_run,
                  enum apply_result *ret, const char **ret_message, struct error *err)
{
    enum change_kind kind = CHANGE_NONE;
    struct error grown = ERROR_INIT;
    int r = application_begin(a, "apply", 0, err);
    if (r < 0)
        return r;
    r = inherit_from(a->spec, *spec, err);
    if (r == 0)
        r = filling_check_volumes(a, *spec, err);
    if (r == 0)
        r = sources_check(a->control, *spec, a->spec, err);
    if (r == 0)
        r = change_classify(a->spec, *spec, &kind, err);
    if (r == 0 && kind != CHANGE_NONE) {
        struct app_spec *old = a->spec;
        struct app_spec *new = *spec;
        swap_spec(a, &new);
        r = disk_check(a, old, 0, err);
        swap_spec(a, &old);
    }
    if (r == 0 && kind == CHANGE_LIGHT && dry_run && a->state == APPLICATION_RUNNING)
        r = check_growth(a, *spec, err);
    (void)quota_bytes;
    *ret = kind == CHANGE_NONE ? APPLY_UNCHANGED : APPLY_CONFIGURED;
    if (r == 0 && kind == CHANGE_NONE && a->state == APPLICATION_FAILED && !dry_run)
        r = application_start(a, err); /* applying again is a way to say: try again */
    else if (r == 0 && kind == CHANGE_REMOUNT && !dry_run)
        r = remount(a, spec, err);
    else if (r == 0 && kind == CHANGE_LIGHT && !dry_run)
        r = change_light(a, spec, err);
    /* What has grown stays so: devices and file systems follow now, or at the next try. What could not grow when the engine started is tried, too. */
    bool runs = r == 0 && !dry_run && a->state == APPLICATION_RUNNING;
    if (runs && kind != CHANGE_LIGHT && application_configure(a, &grown) < 0) {
        log_error(a->control->log, "%s: %s", a->name, grown.message);
        *ret_message = "its engine has not taken all of it, a volume that is to be larger for one: the log of `tidemark up` says why; applying again tries it again";
    } else if (runs && application_grow(a, &grown) < 0) {
        log_error(a->control->log, "%s: %s", a->name, grown.message);
        *ret_message = "a volume has grown, but its device or file system could not follow: the log of "
                       "`tidemark up` says why; "
                       "applying again tries it again";
    }
    if (r == 0 && kind != CHANGE_NONE && !*ret_message)
        *ret_message = source_warning(*spec);
    application_end(a);
    return r;
}

static int apply_application(struct control *control, const struct app_documents *documents, const char *file,
                             struct app_document *document, bool dry_run, enum apply_result *ret,
                             const char **ret_message, struct error *err)
{
    struct error ignored = ERROR_INIT;
    uint64_t quota_bytes = 0;
    int r = check_spec(control, documents, file, document->spec, &quota_bytes, err);
    if (r < 0)
        return r;
    _cleanup_application_ struct application *a = application_find(control, document->spec->name, &ignored);
    if (a)
        return update(a, &document->spec, quota_bytes, dry_run, ret, ret_message, err);
    *ret = APPLY_CREATED;
    r = sources_check(control, document->spec, NULL, err);
    if (r < 0) /* a source that is not there is a mistake in the YAML, too */
        return err->code = r == -ENOENT ? -EINVAL : r;
    *ret_message = source_warning(document->spec);
    return create(control, take_ptr(document->spec), quota_bytes, dry_run, err);
}

static int apply_one(struct control *control, const struct app_documents *documents, const char *file,
                     struct app_document *document, bool dry_run, json_t *results, struct error *err)
{
    static const char *const names[] = {"created", "configured", "unchanged"};
    char name[APP_NAME_LENGTH_MAX + 1];
    enum apply_result result = APPLY_UNCHANGED;
    const char *message = NULL;
    bool is_policy = document->kind == APP_KIND_POLICY;
    snprintf(name, sizeof name, "%s", is_policy ? document->policy->name : document->spec->name);
    int r = is_policy
                ? policy_apply(control, document->policy, dry_run, &result, &message, err)
                : apply_application(control, documents, file, document, dry_run, &result, &message, err);
    if (r < 0)
        return r;
    if (!dry_run && result != APPLY_UNCHANGED)
        log_info(control->log, "%s %s: %s", app_kind_name(document->kind), name, names[result]);
    json_t *told = json_pack("{s:s, s:s, s:s, s:s?}", "kind", app_kind_name(document->kind), "name", name, "result",
                             names[result], "message", message);
    if (told && is_policy && dry_run && result != APPLY_UNCHANGED)
        json_object_set_new(told, "effects", policy_forecast(control, document->policy));
    json_array_append_new(results, told);
    return 0;
}

int apply_documents(struct control *control, const char *text, size_t length_bytes, const char *file,
                    const char *directory, bool dry_run, json_t **ret, struct error *err)
{
    struct app_parse_options options = {.file = file, .directory = directory};
    _cleanup_app_documents_ struct app_documents *documents = NULL;
    _cleanup_json_ json_t *results = json_array();
    int r = app_documents_parse(&options, text, length_bytes, &documents, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &control->apply_mutex);
    /* Policies first: an application may refer to one that comes after it. */
    for (int kind = APP_KIND_POLICY; kind >= APP_KIND_APPLICATION; kind--)
        for (size_t i = 0; i < documents->count && r == 0; i++)
            if (documents->items[i].kind == (enum app_kind)kind)
                r = apply_one(control, documents, file, &documents->items[i], dry_run, results, err);
    if (r == -ENOENT) /* it is not the application that is not there */
        err->code = r = -EINVAL;
    if (r < 0) {
        size_t done = json_array_size(results);
        return done ? error_context(err, "%s (%zu of %zu documents %s before)", file, done,
                                    documents->count, dry_run ? "could be applied" : "were applied")
                    : r;
    }
    *ret = json_pack("{s:O}", "results", results);
    return 0;
}

static json_t *deleted_json(const struct application *a, bool purge)
{
    json_t *volumes = json_array();
    for (size_t i = 0; i < a->spec->volume_count; i++) {
        char path[PATH_MAX];
        struct error ignored = ERROR_INIT;
        const struct app_volume *v = &a->spec->volumes[i];
        bool kept = (!purge || v->source) &&
                    application_backing(a, i, path, &ignored) == 0; /* a source is never destroyed */
        json_array_append_new(volumes,
                              json_pack("{s:s, s:s?}", "name", v->name, "backing", kept ? path : NULL));
    }
    return json_pack("{s:s, s:b, s:o, s:o}", "name", a->name, "purged", purge, "journal",
                     purge ? json_null() : json_sprintf("%s/journal", a->directory), "volumes", volumes);
}

/* It is stopped: what is still mounted below its directory is not ours. Then it goes on as it was. */
static int check_removal(struct application *a, struct error *err)
{
    struct error second = ERROR_INIT;
    int r = io_check_tree(a->directory, err);
    if (r < 0 && application_start(a, &second) < 0)
        log_error(a->control->log, "%s", second.message);
    return r;
}

/* Its description is put aside, not removed: what the directory holds is then known to have been left on purpose (check_lost). */
static int put_aside(const struct application *a, struct error *err)
{
    char path[PATH_MAX], aside[PATH_MAX];
    int r = application_path(a, path, err, "application.yaml");
    if (r == 0)
        r = application_path(a, aside, err, "application.yaml.deleted");
    return r == 0 && rename(path, aside) < 0 && errno != ENOENT ? error_errno(err, -errno, "cannot put %s aside", path) : r;
}

/* All that is left of it, also in shared memory: its engine may have been killed. */
static int remove_directory(const struct application *a, struct error *err)
{
    char journal[PATH_MAX];
    if (application_path(a, journal, err, "journal") == 0)
        journal_forget_memory(journal);
    *err = ERROR_INIT;
    return io_remove_tree(a->directory, err);
}

/* What is kept is told to be the data, and may be used by anybody: not before a rewind is copied back. Known without the engine, too. */
static int check_kept_is_whole(const struct application *a, bool purge, struct error *err)
{
    bool kept = !purge;
    char journal[PATH_MAX], path[PATH_MAX];
    for (size_t i = 0; i < a->spec->volume_count; i++)
        kept |= a->spec->volumes[i].source != NULL;
    int r = kept ? application_path(a, journal, err, "journal") : 0;
    if (r == 0 && kept && journal_find_pending(journal, path))
        r = error_set(err, -EBUSY, "a rewind of %s is still being copied back: its data is not whole before. Try again when `tidemark status %s` shows no rewind "
                      "(it has to run); to keep what the backings hold, with a part from before that rewind, move %s away", a->name, a->name, path);
    return r;
}

int apply_delete(struct control *control, const char *name, bool purge, json_t **ret, struct error *err)
{
    MUTEX_GUARD(guard, &control->apply_mutex);
    _cleanup_application_ struct application *a = application_find(control, name, err);
    if (!a)
        return err->code;
    int r = store_refuse(control, name, "deleted here", err);
    if (r == 0)
        r = clone_check_unused(control, name, err);
    if (r == 0)
        r = application_begin(a, "delete", 0, err);
    if (r < 0)
        return r;
    if (!purge)
        r = filling_refuse(a, "deleted without its data", err);
    if (r == 0)
        r = check_kept_is_whole(a, purge, err);
    if (r < 0) {
        application_end(a);
        return r;
    }
    r = views_close_all(control, name, false, err);
    if (r == 0)
        r = application_stop(a, false, err);
    if (r == 0 && purge)
        r = check_removal(a, err);
    if (r == 0)
        r = put_aside(a, err);
    if (r == 0) {
        application_unlist(a);
        *ret = deleted_json(a, purge);
        log_info(control->log, "%s: deleted%s", name,
                 purge ? " with its data and history" : "; data and journal are kept");
    }
    struct filling filling;
    if (r == 0 && purge)
        r = remove_directory(a, err);
    if (r == 0 && filling_get(a, &filling)) /* nobody reads it any more */
        filling_unpin(control, &filling);
    application_end(a);
    return r;
}

/* ---- giving the data back ---- */

/* Everything that makes an image whole has to be through: the copy-back of a rewind. */
static int check_complete(struct application *a, struct error *err)
{
    char text[UNITS_TEXT_BYTES];
    _cleanup_json_ json_t *status = NULL;
    if (a->state != APPLICATION_RUNNING)
        return error_set(
            err, -EBUSY,
            "%s does not run: its images may lack what a rewind has not copied back; start it (`tidemark "
            "apply`) and detach it then",
            a->name);
    if (rewind_is_unfinished(a))
        return error_set(
            err, -EBUSY,
            "a rewind of %s was interrupted and has not ended: try again when it has (tidemark status %s)",
            a->name, a->name);
    int r = filling_refuse(a, "detached", err);
    if (r == 0)
        r = application_call(a, "GET", "/v1/status", NULL, CONTROL_CALL_TIMEOUT_MS, &status, err);
    if (r < 0)
        return r;
    const json_t *rewind = json_object_get(status, "rewind");
    if (json_is_object(rewind))
        return error_set(
            err, -EBUSY,
            "a rewind of %s is still being copied back (%s are left): the image is not whole before; try "
            "again when `tidemark status %s` shows no rewind",
            a->name,
            units_format_bytes((uint64_t)json_integer_value(json_object_get(rewind, "pending_bytes")), text),
            a->name);
    return 0;
}

/* An image of the application's own moves out of its directory:
 * <state>/detached/<application>[.n]/<volume>.img */
static int keep_images(struct application *a, json_t *volumes, struct error *err)
{
    char directory[PATH_MAX], from[PATH_MAX], to[PATH_MAX];
    int r = 0, n = 1;
    snprintf(directory, sizeof directory, "%.2048s/detached/%s", a->control->state_directory, a->name);
    for (; access(directory, F_OK) == 0; n++)
        snprintf(directory, sizeof directory, "%.2048s/detached/%s.%d", a->control->state_directory, a->name,
                 n);
    for (size_t i = 0; i < a->spec->volume_count && r == 0; i++) {
        const struct app_volume *v = &a->spec->volumes[i];
        const char *path = v->source;
        if (!path) {
            r = io_mkdirs(directory, 0700, err);
            if (r == 0)
                r = application_path(a, from, err, "backing/%s.img", v->name);
            if (r == 0 && snprintf(to, sizeof to, "%s/%s.img", directory, v->name) >= (int)sizeof to)
                r = error_set(err, -ENAMETOOLONG, "%s: path too long", directory);
            if (r == 0 && rename(from, to) < 0)
                r = error_errno(err, -errno, "cannot move %s to %s", from, to);
            path = to;
        }
        if (r == 0)
            json_array_append_new(volumes, json_pack("{s:s, s:s}", "name", v->name, "image", path));
    }
    return r;
}

int apply_detach(struct control *control, const char *name, json_t **ret, struct error *err)
{
    MUTEX_GUARD(guard, &control->apply_mutex);
    _cleanup_json_ json_t *volumes = json_array();
    _cleanup_application_ struct application *a = application_find(control, name, err);
    if (!a)
        return err->code;
    int r = store_refuse(control, name, "given back as images", err);
    if (r == 0)
        r = clone_check_unused(control, name, err);
    if (r == 0)
        r = application_begin(a, "detach", 0, err);
    if (r < 0)
        return r;
    r = check_complete(a, err);
    if (r == 0)
        r = views_close_all(control, name, false, err);
    if (r == 0)
        r = application_stop(a, false, err);
    if (r == 0)
        r = check_removal(a, err);
    if (r == 0)
        r = put_aside(a, err);
    if (r == 0) {
        application_unlist(a);
        r = keep_images(a, volumes, err);
        if (r == 0)
            r = remove_directory(a, err);
        *ret = json_pack("{s:s, s:O}", "name", a->name, "volumes", volumes);
        if (r == 0)
            log_info(control->log, "%s: detached; its images are complete without Tidemark", name);
        else
            error_context(err, "%s is protected no more and its images are complete, but what is in %s could not be put away", name,
                          a->directory);
    }
    application_end(a);
    return r;
}

int application_load(struct control *control, const char *name, struct error *err)
{
    char path[PATH_MAX];
    struct app_spec *spec = NULL;
    if (snprintf(path, sizeof path, "%s/apps/%s/application.yaml", control->state_directory, name) >=
        (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", control->state_directory);
    clone_tidy(control, name);
    if (access(path, F_OK) < 0)
        return 0; /* deleted, its data was kept */
    int r = read_description(path, name, &spec, err);
    if (r < 0)
        return r;
    struct application *a = application_new(control, spec, err);
    if (!a)
        return err->code;
    r = filling_load(a, err);
    if (r == 0)
        application_list(a);
    application_unref(a);
    return r;
}

/* An application without its description: one that was deleted and whose data was kept, or one whose file was lost. */
static int check_lost(const struct control *control, const char *name, struct error *err)
{
    char yaml[PATH_MAX], aside[PATH_MAX + 16], journal[PATH_MAX];
    if (snprintf(yaml, sizeof yaml, "%s/apps/%s/application.yaml", control->state_directory, name) >= (int)sizeof yaml ||
        snprintf(journal, sizeof journal, "%s/apps/%s/journal", control->state_directory, name) >= (int)sizeof journal)
        return 0;
    snprintf(aside, sizeof aside, "%s.deleted", yaml);
    if (access(yaml, F_OK) == 0 || access(aside, F_OK) == 0 || access(journal, F_OK) < 0)
        return 0;
    return error_set(err, -ENOENT, "%s is gone, and a journal lies beside it (if it was deleted on purpose, `touch %s` says so)", yaml, aside);
}

/* Releases before this one left nothing of a description when its application was deleted. What has none when the first of this one starts is taken for that,
 * once: a file says that it was done. */
static int note_deletions(const struct control *control, const char *apps, struct error *err)
{
    char done[PATH_MAX], aside[PATH_MAX];
    snprintf(done, sizeof done, "%.4000s/" DELETIONS_NOTED, control->state_directory);
    if (access(done, F_OK) == 0)
        return 0;
    _cleanup_closedir_ DIR *dir = opendir(apps);
    int r = dir ? 0 : error_errno(err, -errno, "cannot read %s", apps);
    for (const struct dirent *entry; r == 0 && (entry = readdir(dir));) {
        struct error lost = ERROR_INIT;
        if (entry->d_name[0] == '.' || check_lost(control, entry->d_name, &lost) == 0)
            continue;
        snprintf(aside, sizeof aside, "%.3000s/%.255s/application.yaml.deleted", apps, entry->d_name);
        r = io_replace_file(aside, "", 0, 0600, err);
    }
    return r == 0 ? io_replace_file(done, "", 0, 0600, err) : r;
}

int applications_load(struct control *control, struct error *err)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/apps", control->state_directory) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", control->state_directory);
    _cleanup_closedir_ DIR *dir = opendir(path);
    if (!dir)
        return error_errno(err, -errno, "cannot read %s", path);
    struct error unnoted = ERROR_INIT;
    if (note_deletions(control, path, &unnoted) < 0)
        log_warning(control->log, "%s", unnoted.message);
    for (const struct dirent *entry; (entry = readdir(dir));) {
        struct error one = ERROR_INIT;
        if (entry->d_name[0] == '.' || (application_load(control, entry->d_name, &one) == 0 && check_lost(control, entry->d_name, &one) == 0))
            continue;
        log_error(control->log, "an application is left out: %s", one.message);
        MUTEX_GUARD(guard, &control->mutex);
        if (!control->left_out)
            control->left_out = json_object();
        json_object_set_new(control->left_out, entry->d_name, json_string_lossy(one.message));
    }
    return 0;
}
