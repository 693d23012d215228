/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "control/mounts.h"
#include "control/views_internal.h"
#include "export/ublk.h"
#include "lib/http_client.h"

enum { STEP_PIN, STEP_START, STEP_ATTACH, STEP_MOUNT, STEP_DAMAGE };

#define DAMAGE_POLL_MS 50

struct opening {
    struct application *application;
    struct operation *operation;
    char id[CONTROL_ID_BYTES];
    char directory[PATH_MAX];
    char nbd_socket[PATH_MAX];
    const char *point, *volume, *mount, *nbd;
    enum app_export export;
    bool salvage;
    bool pinned;
    int lock_fd;
    json_t *pin;     /* the engine's answer */
    json_t *volumes; /* those of the pin that are opened */
    json_t *state;
    struct process process;
    uint64_t started_ns;
};

static bool lies_in(const char *path, dev_t device, const struct app_volume *spec, const char *volume_device)
{
    struct stat st;
    bool within = spec->mount_path && spec->mount_path[0] && mounts_is_within(path, spec->mount_path);
    return within || (volume_device[0] && stat(volume_device, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == device);
}

/* Directories would be made in the volume, and it could not be unmounted as long as the view is open: not for a rewind either. */
static int check_place(const struct opening *o, struct error *err)
{
    char there[PATH_MAX]; /* what there is of the path */
    struct stat st;
    if (snprintf(there, sizeof there, "%s", o->mount) >= (int)sizeof there)
        return error_set(err, -ENAMETOOLONG, "mount: the path is too long");
    while (stat(there, &st) < 0) {
        char *slash = strrchr(there, '/');
        if (!slash || slash == there)
            return 0;
        *slash = '\0';
    }
    MUTEX_GUARD(guard, &o->application->control->mutex);
    for (struct application *a = o->application->control->applications; a; a = a->next) {
        MUTEX_GUARD(inner, &a->mutex);
        for (size_t i = 0; i < a->spec->volume_count; i++)
            if (lies_in(o->mount, st.st_dev, &a->spec->volumes[i], a->volumes[i].device))
                return error_set(err, -EBUSY,
                                 "cannot mount on %s: it lies in volume %s of %s, which could not be unmounted or rewound as long as the view is "
                                 "open; choose another directory",
                                 o->mount, a->spec->volumes[i].name, a->name);
    }
    return 0;
}

static int read_request(struct opening *o, const json_t *request, struct error *err)
{
    int r = json_reject_unknown(request, err, "point", "volume", "mount", "nbd", "salvage", NULL);
    if (r == 0)
        r = json_get_string(request, "point", &o->point, err);
    if (r == 0)
        r = json_get_optional_string(request, "volume", &o->volume, err);
    if (r == 0)
        r = json_get_optional_string(request, "mount", &o->mount, err);
    if (r == 0)
        r = json_get_optional_string(request, "nbd", &o->nbd, err);
    if (r == 0)
        r = json_get_optional_bool(request, "salvage", &o->salvage, err);
    if (r < 0)
        return r;
    if (o->mount && o->nbd)
        return error_set(err, -EINVAL, "mount and nbd exclude each other");
    if ((o->mount && o->mount[0] != '/') || (o->nbd && o->nbd[0] != '/'))
        return error_set(err, -EINVAL, "%s must be an absolute path", o->mount ? "mount" : "nbd");
    if (o->mount && (r = check_place(o, err)) < 0)
        return r;
    o->export = o->nbd ? APP_EXPORT_NBD : o->application->spec->export;
    if (o->export == APP_EXPORT_NBD && o->mount)
        o->export = APP_EXPORT_FUSE; /* what can be mounted everywhere */
    if (o->nbd && strlen(o->nbd) > CONTROL_SOCKET_PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "nbd: the path of a socket has at most %u bytes",
                         CONTROL_SOCKET_PATH_MAX);
    struct stat st;
    char directory[PATH_MAX];
    snprintf(directory, sizeof directory, "%.*s", o->nbd ? (int)(strrchr(o->nbd, '/') - o->nbd) + 1 : 0,
             o->nbd ? o->nbd : "");
    if (o->nbd && (stat(directory, &st) < 0 || !S_ISDIR(st.st_mode)))
        return error_set(err, -ENOTDIR,
                         "cannot serve NBD on %s: there is no directory %s; make it, or choose another path",
                         o->nbd, directory);
    if (o->nbd && lstat(o->nbd, &st) == 0)
        return error_set(err, -EEXIST,
                         "cannot serve NBD on %s: that exists already; remove it or choose another path",
                         o->nbd);
    return programs_check_export(&o->application->control->programs, o->export, err);
}

/* The volumes of the pin that were asked for. */
static int choose_volumes(struct opening *o, struct error *err)
{
    char names[512] = "";
    size_t i, used = 0;
    json_t *all, *volume;
    int r = json_get_array(o->pin, "volumes", &all, err);
    if (r < 0)
        return r;
    o->volumes = json_array();
    json_array_foreach(all, i, volume)
    {
        const char *name = json_string_value(json_object_get(volume, "name"));
        if (!name || app_check_name(name, err) < 0)
            return error_set(err, -EPROTO, "the engine named a volume in an odd way");
        if (!o->volume || strcmp(o->volume, name) == 0)
            json_array_append(o->volumes, volume);
        if (used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", name);
    }
    if (json_array_size(o->volumes))
        return 0;
    if (o->volume)
        return error_set(err, -ENOENT, "%s had no volume '%.63s' at that point; it had: %s",
                         o->application->name, o->volume, names);
    return error_set(err, -ENOENT, "%s had no volumes at that point", o->application->name);
}

static int take_pin(struct opening *o, struct error *err)
{
    operation_step_begin(o->operation, STEP_PIN);
    int r = pin_take(o->application, o->id, o->point, o->salvage ? "salvage" : NULL, &o->lock_fd, &o->pin, err);
    if (r < 0)
        return r;
    o->pinned = true;
    r = choose_volumes(o, err);
    if (r == 0)
        operation_step_end(o->operation, STEP_PIN, STEP_DONE, NULL);
    return r;
}

static int write_configs(struct opening *o, const char *config, struct error *err)
{
    json_t *volumes = json_array(), *volume, *lsn = json_object_get(o->pin, "lsn");
    size_t i;
    json_array_foreach(o->volumes, i, volume)
        json_array_append_new(volumes, json_pack("{s:O, s:O, s:O}", "name", json_object_get(volume, "name"),
                                                 "id", json_object_get(volume, "id"), "size_bytes",
                                                 json_object_get(volume, "size_bytes")));
    _cleanup_json_ json_t *view =
        json_pack("{s:s, s:o, s:s, s:O, s:o, s:o, s:b, s:o}", "id", o->id, "journal",
                  json_sprintf("%s/journal", o->application->directory), "pin", o->id, "lsn", lsn, "socket",
                  json_sprintf("%s/view.sock", o->directory), "overlay",
                  json_sprintf("%s/overlay", o->directory), "salvage", o->salvage, "volumes", volumes);
    if (view && o->application->spec->key_file)
        json_object_set_new(view, "key_file", json_string_nocheck(o->application->spec->key_file));
    int r = write_json_file(config, view, err);
    if (r < 0 || o->export == APP_EXPORT_NBD)
        return r;
    return export_write_holder(o->application->control, o->directory, o->id, "view", config, o->volumes,
                               o->export, false, err);
}

/* What the view's process has said of its end, in place of "it ended". */
static int take_error(const struct opening *o, struct error *err)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *told = NULL;
    if (views_path(o->directory, "view.sock.error", path, &ignored) < 0 || json_parse_file(path, &told, &ignored) < 0)
        return err->code;
    struct error why = ERROR_INIT;
    int r = json_to_error(told, err->code, err->message, &why);
    *err = why;
    return r;
}

static int start_process(struct opening *o, struct error *err)
{
    const struct control *control = o->application->control;
    char config[PATH_MAX], holder[PATH_MAX], pid_path[PATH_MAX], log_path[PATH_MAX], socket[PATH_MAX],
        served[PATH_MAX];
    operation_step_begin(o->operation, STEP_START);
    int r = views_path(o->directory, "view.json", config, err);
    if (r == 0)
        r = views_path(o->directory, "holder.json", holder, err);
    if (r == 0)
        r = views_path(o->directory, "nbd.pid", pid_path, err);
    if (r == 0)
        r = views_path(o->directory, "view.log", log_path, err);
    if (r == 0)
        r = views_path(o->directory, "view.sock", socket, err);
    if (r == 0)
        r = views_path(o->directory, "ublk/" UBLK_SERVED, served, err);
    if (r == 0)
        r = write_configs(o, config, err);
    if (r < 0)
        return r;
    const char *argv[EXPORT_NBD_ARGUMENTS] = {control->programs.holder, "--config", holder, NULL};
    if (o->export == APP_EXPORT_NBD)
        export_nbd_argv(control, "view", config, o->nbd_socket, pid_path, argv);
    struct process_options options = {
        .argv = argv, .log_path = log_path, .inherit_fd = o->lock_fd};
    r = process_start(&options, &o->process, err);
    if (r < 0)
        return r;
    close(take_fd(o->lock_fd)); /* the process holds the lock now */
    const char *const also[] = {[APP_EXPORT_NBD] = o->nbd_socket, [APP_EXPORT_UBLK] = served, [APP_EXPORT_FUSE] = NULL};
    r = export_wait_ready(&o->process, socket, also[o->export], log_path, 0, err);
    if (r < 0)
        r = take_error(o, err);
    if (r == 0)
        operation_step_end(o->operation, STEP_START, STEP_DONE, NULL);
    return r;
}

/* Where a volume is mounted; the directories made for it are noted. */
static int prepare_mount(struct opening *o, const char *volume, char ret[PATH_MAX], struct error *err)
{
    json_t *created_list = json_object_get(o->state, "created_directories");
    bool created = false;
    int n;
    if (!o->mount)
        n = snprintf(ret, PATH_MAX, "%s/mnt/%s", o->directory, volume);
    else if (json_array_size(o->volumes) == 1)
        n = snprintf(ret, PATH_MAX, "%s", o->mount);
    else
        n = snprintf(ret, PATH_MAX, "%s/%s", o->mount, volume);
    if (n >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the mount point of %s is too long", volume);
    struct stat st;
    if (o->mount && json_array_size(o->volumes) > 1 && stat(o->mount, &st) < 0 && errno == ENOENT)
        json_array_append_new(created_list, json_string(o->mount));
    int r = mounts_prepare(ret, &created, err);
    if (r == -ENOENT) /* of a directory that cannot be made: it is not the point that is not there */
        r = err->code = -EINVAL;
    if (created)
        json_array_append_new(created_list, json_string(ret));
    return r;
}

/* The kernel's file system for what was found on a copy, or NULL: it is not mounted. */
static const char *mountable(const char *type)
{
    bool ext = strcmp(type, "ext2") == 0 || strcmp(type, "ext3") == 0 || strcmp(type, "ext4") == 0;
    return ext ? "ext4" : strcmp(type, "xfs") == 0 ? "xfs" : strcmp(type, "btrfs") == 0 ? "btrfs" : NULL;
}

/* Whatever a damaged file system cannot do is told, and the device is there to look at. */
static int mount_salvaged(struct opening *o, json_t *volume, struct error *err)
{
    char path[PATH_MAX], type[MOUNTS_TYPE_BYTES] = "";
    const char *name = json_string_value(json_object_get(volume, "name"));
    const char *device = json_string_value(json_object_get(volume, "device"));
    struct error why = ERROR_INIT;
    int r = mounts_probe_copy(device, type, &why);
    if (r == 0 && !mountable(type)) {
        json_object_set_new(volume, "note", json_sprintf("shows %s at this point, not mounted", type[0] ? type : "no file system"));
        return 0;
    }
    if (r == 0) {
        r = prepare_mount(o, name, path, err);
        if (r < 0)
            return r;
        r = mounts_mount_salvaged(device, path, mountable(type), &why);
    }
    if (r < 0)
        json_object_set_new(volume, "note", json_sprintf_lossy("not mounted: %s", why.message));
    else
        json_object_set_new(volume, "mount", json_string(path));
    return 0;
}

/* Whether the volume is one that is mounted for the application now. */
static bool has_mount_path(const struct opening *o, const char *name)
{
    const struct app_spec *spec = o->application->spec;
    for (size_t i = 0; i < spec->volume_count; i++)
        if (strcmp(spec->volumes[i].name, name) == 0)
            return spec->volumes[i].mount_path != NULL;
    return false;
}

/* A volume that its user mounts may need what is not known here, such as the device of its log: it is left to him. */
static int mount_volume(struct opening *o, json_t *volume, struct error *err)
{
    char path[PATH_MAX], type[MOUNTS_TYPE_BYTES];
    const char *name = json_string_value(json_object_get(volume, "name"));
    const char *device = json_string_value(json_object_get(volume, "device"));
    int r = mounts_probe_copy(device, type, err);
    if (r < 0)
        return r;
    if (!mountable(type)) {
        const char *what = type[0] ? type : "no file system";
        if (o->mount)
            return error_set(err, -ENODATA, "cannot mount volume %s: it held %s at that point (LSN %lld)",
                             name, what, (long long)json_integer_value(json_object_get(o->pin, "lsn")));
        json_object_set_new(volume, "note", json_sprintf("holds %s at this point, not mounted", what));
        return 0;
    }
    r = prepare_mount(o, name, path, err);
    if (r < 0)
        return r;
    r = mounts_mount(device, path, mountable(type), true, err);
    if (r == 0) {
        json_object_set_new(volume, "mount", json_string(path));
    } else if (!o->mount && !has_mount_path(o, name)) {
        json_object_set_new(volume, "note", json_sprintf_lossy("not mounted: %s", err->message));
        *err = (struct error)ERROR_INIT;
        r = 0;
    }
    return r;
}

static int attach_volume(struct opening *o, const json_t *source, struct error *err)
{
    char path[PATH_MAX], device[LOOP_DEVICE_BYTES];
    const char *name = json_string_value(json_object_get(source, "name"));
    json_t *volume = json_pack("{s:s, s:O, s:n, s:n, s:n, s:n}", "name", name, "size_bytes",
                               json_object_get(source, "size_bytes"), "device", "mount", "nbd_uri", "note");
    json_array_append_new(json_object_get(o->state, "volumes"), volume);
    if (o->export == APP_EXPORT_NBD) {
        json_object_set_new(volume, "nbd_uri", nbd_uri_json(name, o->nbd_socket));
        return 0;
    }
    bool ublk = o->export == APP_EXPORT_UBLK;
    if (snprintf(path, sizeof path, ublk ? "%s/ublk/%s" : "%s/fuse/%s/vol", o->directory, name) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", o->directory);
    if (ublk) {
        int r = ublk_find(path, device);
        if (r == 0)
            json_object_set_new(volume, "device", json_string(device));
        return r < 0 ? error_set(err, r, "volume %s has no ublk device (%s)", name, path) : 0;
    }
    bool adopted = false;
    for (size_t i = 0; i < o->application->spec->volume_count; i++)
        adopted |= app_volume_is_adopted(&o->application->spec->volumes[i]) && strcmp(o->application->spec->volumes[i].name, name) == 0;
    int r = loop_attach_blocks(path, false, adopted ? LOOP_BLOCK_BYTES_ADOPTED : LOOP_BLOCK_BYTES, device, err);
    if (r == 0)
        json_object_set_new(volume, "device", json_string(device));
    return r;
}

static int attach_and_mount(struct opening *o, struct error *err)
{
    size_t i;
    json_t *volume;
    int r = 0;
    operation_step_begin(o->operation, STEP_ATTACH);
    json_array_foreach(o->volumes, i, volume) if (r == 0) r = attach_volume(o, volume, err);
    if (r < 0)
        return r;
    operation_step_end(o->operation, STEP_ATTACH, STEP_DONE, NULL);
    if (o->export == APP_EXPORT_NBD) {
        operation_step_end(o->operation, STEP_MOUNT, STEP_SKIPPED, NULL);
        return 0;
    }
    operation_step_begin(o->operation, STEP_MOUNT);
    json_array_foreach(json_object_get(o->state, "volumes"), i, volume) if (r == 0) r =
        o->salvage ? mount_salvaged(o, volume, err) : mount_volume(o, volume, err);
    if (r == 0)
        operation_step_end(o->operation, STEP_MOUNT, STEP_DONE, NULL);
    return r;
}

/* Waits until the view has read all of its volumes, and takes its map of what cannot be read. */
static int take_damage(struct opening *o, struct error *err)
{
    char path[PATH_MAX];
    int r = views_path(o->directory, "view.sock", path, err);
    operation_step_begin(o->operation, STEP_DAMAGE);
    while (r == 0) {
        _cleanup_json_ json_t *status = NULL;
        json_t *map;
        uint64_t done, total;
        r = http_client_call(path, "GET", "/v1/status", NULL, CONTROL_CALL_TIMEOUT_MS, &status, err);
        if (r == 0)
            r = json_get_object(status, "salvage", &map, err);
        if (r == 0)
            r = json_get_u64(map, "done_bytes", &done, err);
        if (r == 0)
            r = json_get_u64(map, "total_bytes", &total, err);
        if (r < 0)
            break;
        operation_progress(o->operation, done, total, "bytes");
        if (done == total) {
            json_object_del(map, "done_bytes");
            json_object_del(map, "total_bytes");
            json_object_set(o->state, "salvage", map);
            break;
        }
        if (atomic_load(&o->application->control->stopping))
            return error_set(err, -EBUSY, "`tidemark up` is stopping");
        if (process_wait(&o->process, DAMAGE_POLL_MS, NULL))
            return error_set(err, -EIO, "the view's process ended while it looked for damage");
    }
    if (r == 0)
        operation_step_end(o->operation, STEP_DAMAGE, STEP_DONE, NULL);
    return r;
}

static int publish(struct opening *o, json_t **ret_view, struct error *err)
{
    char path[PATH_MAX];
    struct view *view = calloc(1, sizeof *view);
    int r =
        view ? views_path(o->directory, "control.json", path, err) : error_set(err, -ENOMEM, "out of memory");
    json_object_set_new(o->state, "open_ms",
                        json_real((double)(clock_boottime_ns(clock_system()) - o->started_ns) / 1e6));
    if (r == 0)
        r = write_json_file(path, o->state, err);
    if (r < 0) {
        free(view);
        return r;
    }
    snprintf(view->id, sizeof view->id, "%s", o->id);
    snprintf(view->application, sizeof view->application, "%s", o->application->name);
    snprintf(view->directory, sizeof view->directory, "%s", o->directory);
    view->state = json_deep_copy(o->state);
    view->process = o->process;
    o->process = PROCESS_NONE;
    json_t *public = views_public(o->state);
    json_object_set_new(public, "state", json_string("open"));
    json_object_set_new(public, "reason", json_null());
    json_object_set_new(public, "overlay_bytes", json_integer(0));
    *ret_view = json_pack("{s:o}", "view", public);
    views_list(o->application->control, view);
    control_wake(o->application->control);
    return 0;
}

/* An id, and a directory that is this opening's alone from here on: what fails later removes it. */
static int take_id(struct opening *o, struct error *err)
{
    char directory[PATH_MAX];
    bool there = true;
    int r = application_path(o->application, directory, err, "views");
    if (r == 0)
        r = io_mkdirs(directory, 0700, err);
    while (r == 0 && there) {
        r = control_new_id(o->application->control, "v-", o->id, err);
        if (r == 0)
            r = application_path(o->application, directory, err, "views/%s", o->id);
        there = r == 0 && mkdir(directory, 0700) < 0;
        if (there && errno != EEXIST)
            r = error_errno(err, -errno, "cannot make %s", directory);
    }
    if (r == 0)
        memcpy(o->directory, directory, sizeof directory);
    return r;
}

static int open_steps(struct opening *o, const json_t *request, json_t **ret_view, struct error *err)
{
    char time[CLOCK_TEXT_BYTES];
    int r = read_request(o, request, err);
    if (r == 0)
        r = take_id(o, err);
    if (r == 0 && o->nbd)
        snprintf(o->nbd_socket, sizeof o->nbd_socket, "%s", o->nbd);
    else if (r == 0)
        r = views_path(o->directory, "nbd.sock", o->nbd_socket, err);
    if (r == 0)
        r = take_pin(o, err);
    if (r < 0)
        return r;
    o->state = json_pack(
        "{s:s, s:s, s:O, s:O, s:O, s:s, s:n, s:[], s:[], s:s?}", "id", o->id, "application", o->application->name, "lsn",
        json_object_get(o->pin, "lsn"), "time", json_object_get(o->pin, "time"), "note",
        json_object_get(o->pin, "note"), "created_time",
        clock_format_rfc3339(clock_realtime_ns(clock_system()), time), "salvage", "volumes",
        "created_directories", "nbd_socket", o->nbd);
    if (!o->state)
        return error_set(err, -EPROTO, "the engine's answer to a pin has no lsn, time or note");
    r = start_process(o, err);
    if (r == 0)
        r = attach_and_mount(o, err);
    if (r == 0 && o->salvage)
        r = take_damage(o, err);
    return r < 0 ? r : publish(o, ret_view, err);
}

/* U3: takes back whatever was done. */
static void undo(struct opening *o)
{
    struct error err = ERROR_INIT;
    if (o->directory[0] && views_clear_mounts(o->directory, true, &err) < 0)
        log_warning(o->application->control->log, "%s", err.message);
    process_stop(&o->process, CONTROL_STOP_TIMEOUT_MS);
    if (o->lock_fd >= 0)
        close(take_fd(o->lock_fd));
    if (o->pinned)
        pin_drop(o->application, o->id);
    if (o->nbd && o->pinned)
        unlink(o->nbd);
    if (o->directory[0])
        views_remove(o->application->control, o->directory, o->state);
}

int view_open(struct application *application, struct operation *operation, const json_t *request,
              json_t **ret_view, struct error *err)
{
    struct control *control = application->control;
    size_t count = 0;
    pthread_mutex_lock(&control->mutex);
    for (const struct view *v = control->views; v; v = v->next)
        count++;
    pthread_mutex_unlock(&control->mutex);
    if (count >= CONTROL_VIEWS_MAX)
        return error_set(err, -EBUSY, "%u views are open, which is the most there can be: `tidemark views` lists them, `tidemark close ID` "
                         "closes one",
                         CONTROL_VIEWS_MAX);
    struct opening *o = calloc(1, sizeof *o);
    if (!o)
        return error_set(err, -ENOMEM, "out of memory");
    o->application = application;
    o->operation = operation;
    o->lock_fd = -1;
    o->process = PROCESS_NONE;
    o->started_ns = clock_boottime_ns(clock_system());
    int r = open_steps(o, request, ret_view, err);
    if (r < 0) {
        undo(o);
        if (r == -EBADMSG && !o->salvage && !strstr(err->message, "--salvage"))
            error_context(
                err, "the journal is damaged (`tidemark open --salvage` opens what is left of the point)");
        error_context(err, "cannot open %s@%s", application->name, o->point ? o->point : "");
    }
    json_decref(o->pin);
    json_decref(o->volumes);
    json_decref(o->state);
    free(o);
    return r;
}
