/* SPDX-License-Identifier: Apache-2.0 */
/* Views: the list, closing, and what a former `up` has left. Opening is in view_open.c.
 *
 * A view's directory holds view.json (the engine's), holder.json, control.json (its VIEW as the API tells it,
 * and the directories that were made for its mounts), view.sock, view.log, overlay/, fuse/ or ublk/, and mnt/. */
#include "control/views_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "control/mounts.h"
#include "export/fuse_mount.h"
#include "export/ublk.h"
#include "lib/http_client.h"

int views_path(const char *directory, const char *name, char ret[PATH_MAX], struct error *err)
{
    if (snprintf(ret, PATH_MAX, "%s/%s", directory, name) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "%s/%s: path too long", directory, name);
    return 0;
}

static int clear_volume(const char *fuse_directory, const char *volume, bool force, struct error *err)
{
    struct error ignored = ERROR_INIT;
    char path[PATH_MAX + NAME_MAX + 8], device[LOOP_DEVICE_BYTES], target[PATH_MAX];
    int r = 0;
    snprintf(path, sizeof path, "%s/%s/vol", fuse_directory, volume);
    if (loop_find(path, device, &ignored) == 0) {
        while (r == 0 && mounts_target(device, target, sizeof target) == 0)
            r = mounts_unmount(target, force, err);
        if (r == 0)
            r = loop_detach(device, force ? 1000 : LOOP_DETACH_TIMEOUT_MS, force, err);
    }
    return r < 0 && !force ? r : 0;
}

/* The device itself goes with the process that serves it, or by views_remove. */
static int clear_ublk_volume(const char *ublk_directory, const char *volume, bool force, struct error *err)
{
    char path[PATH_MAX + NAME_MAX + 8], device[UBLK_DEVICE_BYTES], target[PATH_MAX];
    int r = 0;
    snprintf(path, sizeof path, "%s/%s", ublk_directory, volume);
    while (r == 0 && ublk_find(path, device) == 0 && mounts_target(device, target, sizeof target) == 0)
        r = mounts_unmount(target, force, err);
    return force ? 0 : r;
}

int views_clear_mounts(const char *directory, bool force, struct error *err)
{
    char path[PATH_MAX];
    static const struct {
        const char *below;
        int (*clear)(const char *directory, const char *volume, bool force, struct error *err);
    } kinds[] = {{"fuse", clear_volume}, {"ublk", clear_ublk_volume}};
    int r = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && r == 0; i++) {
        r = views_path(directory, kinds[i].below, path, err);
        _cleanup_closedir_ DIR *dir = r == 0 ? opendir(path) : NULL;
        for (const struct dirent *entry; dir && r == 0 && (entry = readdir(dir));)
            if (entry->d_name[0] != '.')
                r = kinds[i].clear(path, entry->d_name, force, err);
    }
    return r;
}

static void remove_created(const json_t *state)
{
    const json_t *created = json_object_get(state, "created_directories");
    for (size_t n = json_array_size(created); n-- > 0;) {
        const char *path = json_string_value(json_array_get(created, n));
        if (path)
            rmdir(path); /* only if it is empty */
    }
}

void views_remove(const struct control *control, const char *directory, const json_t *state)
{
    struct error err = ERROR_INIT;
    char path[PATH_MAX], mount[PATH_MAX + NAME_MAX];
    if (views_path(directory, "fuse", path, &err) == 0) {
        _cleanup_closedir_ DIR *dir = opendir(path);
        for (const struct dirent *entry; dir && (entry = readdir(dir));) {
            snprintf(mount, sizeof mount, "%s/%s", path, entry->d_name);
            if (entry->d_name[0] != '.' && fuse_mount_remove(mount, &err) < 0)
                log_warning(control->log, "%s", err.message);
        }
    }
    if (views_path(directory, "ublk", path, &err) == 0) {
        _cleanup_closedir_ DIR *dir = opendir(path);
        for (const struct dirent *entry; dir && (entry = readdir(dir));) {
            snprintf(mount, sizeof mount, "%s/%s", path, entry->d_name);
            if (entry->d_name[0] != '.' && ublk_remove(mount, &err) < 0)
                log_warning(control->log, "%s", err.message);
        }
    }
    remove_created(state);
    const char *nbd = json_string_value(json_object_get(state, "nbd_socket"));
    if (nbd)
        unlink(nbd); /* a killed one leaves it */
    /* Nothing below may still be mounted when the tree is removed. */
    char source[256];
    for (size_t i = 0; i < json_array_size(json_object_get(state, "volumes")); i++) {
        const char *at =
            json_string_value(json_object_get(json_array_get(json_object_get(state, "volumes"), i), "mount"));
        if (at && mounts_source(at, source, sizeof source) == 0) {
            log_warning(control->log, "%s is still mounted: %s is kept", at, directory);
            return;
        }
    }
    if (io_remove_tree(directory, &err) < 0)
        log_warning(control->log, "%s", err.message);
}

void views_list(struct control *control, struct view *view)
{
    MUTEX_GUARD(guard, &control->mutex);
    struct view **at = &control->views;
    while (*at)
        at = &(*at)->next;
    view->next = NULL;
    *at = view;
}

static void view_free(struct view *view)
{
    if (!view)
        return;
    process_forget(&view->process);
    json_decref(view->state);
    free(view);
}

/* Takes it out of the list for closing; -ENOENT, -EBUSY. */
static struct view *take(struct control *control, const char *id, struct error *err)
{
    MUTEX_GUARD(guard, &control->mutex);
    for (struct view *v = control->views; v; v = v->next) {
        if (strcmp(v->id, id) != 0)
            continue;
        if (v->closing) {
            error_set(err, -EBUSY, "the view %s is being closed already", id);
            return NULL;
        }
        v->closing = true;
        return v;
    }
    error_set(err, -ENOENT, "there is no open view '%.40s'", id);
    return NULL;
}

static void unlist(struct control *control, struct view *view)
{
    MUTEX_GUARD(guard, &control->mutex);
    struct view **at = &control->views;
    while (*at && *at != view)
        at = &(*at)->next;
    if (*at)
        *at = view->next;
}

int view_close(struct control *control, const char *id, bool force, struct error *err)
{
    struct error ignored = ERROR_INIT;
    struct view *view = take(control, id, err);
    if (!view)
        return err->code;
    int r = views_clear_mounts(view->directory, force, err);
    if (r < 0) {
        MUTEX_GUARD(guard, &control->mutex);
        view->closing = false;
        return error_context(err, "cannot close the view %s", id);
    }
    process_stop(&view->process, CONTROL_STOP_TIMEOUT_MS);
    _cleanup_application_ struct application *application =
        application_find(control, view->application, &ignored);
    if (application)
        pin_drop(application, id);
    views_remove(control, view->directory, view->state);
    unlist(control, view);
    view_free(view);
    return 0;
}

int views_close_all(struct control *control, const char *application, bool force, struct error *err)
{
    for (;;) {
        char id[CONTROL_ID_BYTES] = "";
        pthread_mutex_lock(&control->mutex);
        for (const struct view *v = control->views; v && !id[0]; v = v->next)
            if (!v->closing && (!application || strcmp(v->application, application) == 0))
                snprintf(id, sizeof id, "%s", v->id);
        pthread_mutex_unlock(&control->mutex);
        if (!id[0])
            return 0;
        int r = view_close(control, id, force, err);
        if (r < 0 && r != -ENOENT)
            return r;
    }
}

/* One directory of views/: running ones are listed, others cleaned up. */
static void adopt_one(struct application *application, const char *id)
{
    struct control *control = application->control;
    struct error err = ERROR_INIT;
    char directory[PATH_MAX], path[PATH_MAX], word[64];
    struct process process = PROCESS_NONE;
    json_t *state = NULL;
    if (application_path(application, directory, &err, "views/%s", id) < 0)
        return;
    snprintf(word, sizeof word, "views/%.30s/", id);
    bool runs =
        (views_path(directory, "holder.pid", path, &err) == 0 && process_adopt(path, word, &process) == 0) ||
        (views_path(directory, "nbd.pid", path, &err) == 0 && process_adopt(path, word, &process) == 0);
    if (views_path(directory, "control.json", path, &err) < 0 || json_parse_file(path, &state, &err) < 0)
        state = NULL;
    struct view *view = runs && state ? calloc(1, sizeof *view) : NULL;
    if (view) {
        snprintf(view->id, sizeof view->id, "%s", id);
        snprintf(view->application, sizeof view->application, "%s", application->name);
        snprintf(view->directory, sizeof view->directory, "%s", directory);
        view->state = state;
        view->process = process;
        views_list(control, view);
        log_info(control->log, "%s: taking over the view %s (pid %d)", application->name, id,
                 (int)view->process.pid);
        return;
    }
    log_info(control->log, "%s: cleaning up after the view %s", application->name, id);
    if (views_clear_mounts(directory, true, &err) < 0)
        log_warning(control->log, "%s", err.message);
    process_stop(&process, CONTROL_STOP_TIMEOUT_MS);
    pin_drop(application, id);
    views_remove(control, directory, state);
    json_decref(state);
}

void views_adopt(struct application *application)
{
    struct error ignored = ERROR_INIT;
    char path[PATH_MAX];
    if (application_path(application, path, &ignored, "views") < 0)
        return;
    _cleanup_closedir_ DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));)
        if (strncmp(entry->d_name, "v-", 2) == 0 && strlen(entry->d_name) < CONTROL_ID_BYTES)
            adopt_one(application, entry->d_name);
}

json_t *views_public(const json_t *state)
{
    json_t *public = json_deep_copy(state);
    json_object_del(public, "created_directories");
    json_object_del(public, "nbd_socket");
    static const char *const later[] = {"note", "salvage"}; /* an `up` before these has left views without them */
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        if (!json_object_get(public, later[i]))
            json_object_set_new(public, later[i], json_null());
    return public;
}

/* Why its process has closed the view by itself, or NULL: it has not. The caller frees it. */
static char *closed_reason(const char *directory)
{
    struct error ignored = ERROR_INIT;
    char path[PATH_MAX], *text = NULL;
    size_t length = 0;
    if (views_path(directory, "view.sock.closed", path, &ignored) < 0 || io_read_file(path, 4096, &text, &length, &ignored) < 0)
        return NULL;
    if (length && text[length - 1] == '\n')
        text[length - 1] = '\0';
    return text;
}

/* Asks the view's process; without the mutex held. */
static void add_state(json_t *view, const char *directory, bool dead)
{
    struct error ignored = ERROR_INIT;
    char path[PATH_MAX];
    _cleanup_json_ json_t *status = NULL;
    const char *state = NULL;
    if (!dead && views_path(directory, "view.sock", path, &ignored) == 0 &&
        http_client_call(path, "GET", "/v1/status", NULL, CONTROL_STATUS_TIMEOUT_MS, &status, &ignored) == 0)
        state = json_string_value(json_object_get(status, "state"));
    json_t *overlay = json_object_get(status, "overlay_bytes");
    char *why = state ? NULL : closed_reason(directory);
    json_object_set_new(view, "state", json_string(state ? state : why ? "closed: quota" : "dead"));
    json_object_set_new(view, "reason", why ? json_string(why) : json_null());
    free(why);
    json_object_set_new(view, "overlay_bytes", overlay ? json_incref(overlay) : json_null());
}

json_t *views_to_json(struct control *control, const char *application)
{
    json_t *list = json_array();
    char(*directories)[PATH_MAX] = calloc(CONTROL_VIEWS_MAX, sizeof *directories);
    bool dead[CONTROL_VIEWS_MAX];
    size_t count = 0;
    pthread_mutex_lock(&control->mutex);
    for (const struct view *v = control->views; directories && v && count < CONTROL_VIEWS_MAX; v = v->next) {
        if (application && strcmp(v->application, application) != 0)
            continue;
        json_array_append_new(list, views_public(v->state));
        snprintf(directories[count], sizeof *directories, "%s", v->directory);
        dead[count++] = v->dead;
    }
    pthread_mutex_unlock(&control->mutex);
    for (size_t i = 0; i < count; i++)
        add_state(json_array_get(list, i), directories[i], dead[i]);
    free(directories);
    return list;
}

json_t *view_to_json(struct control *control, const char *id, struct error *err)
{
    _cleanup_json_ json_t *all = views_to_json(control, NULL);
    json_t *view;
    size_t i;
    json_array_foreach(all, i, view)
    {
        const char *text = json_string_value(json_object_get(view, "id"));
        if (text && strcmp(text, id) == 0)
            return json_incref(view);
    }
    error_set(err, -ENOENT, "there is no open view '%.40s'", id);
    return NULL;
}

json_t *views_ids_to_json(struct control *control, const char *application)
{
    json_t *list = json_array();
    MUTEX_GUARD(guard, &control->mutex);
    for (const struct view *v = control->views; v; v = v->next)
        if (strcmp(v->application, application) == 0)
            json_array_append_new(list, json_string(v->id));
    return list;
}

void views_free(struct control *control)
{
    while (control->views) {
        struct view *view = control->views;
        control->views = view->next;
        view_free(view);
    }
}
