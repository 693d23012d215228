/* SPDX-License-Identifier: Apache-2.0 */
/* A view's process: the image of a pin under one overlay a volume, and a small control socket. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "engine/view_salvage_internal.h"
#include "journal/pin.h"
#include "journal/seal.h"

struct view_volume {
    char name[JOURNAL_NAME_BYTES];
    uint32_t id;
    struct block *lower, *overlay;
};
struct engine_view {
    char id[64], journal[PATH_MAX], pin[64], overlay[PATH_MAX];
    char socket[108];
    struct lsn lsn;
    bool for_salvage;
    struct image *image;
    struct view_salvage *salvage; /* NULL unless for_salvage */
    size_t count;
    struct view_volume volumes[GROUP_MAX_VOLUMES];
    struct http_server *server;
    pthread_t watch;
    bool watches;
    pthread_mutex_t mutex; /* guards `stop` */
    pthread_cond_t stopping;
    bool stop;
    const struct log *log;
};

#define REVOKED_LOOK_NS (250 * NS_PER_MS)

static int handle(void *context, const struct http_request *request, struct http_response *response, struct error *err)
{
    struct engine_view *v = context;
    if (strcmp(request->path, "/v1/shutdown") == 0 && strcmp(request->method, "POST") != 0)
        return http_refuse_method(request, response, "POST", err);
    if (strcmp(request->path, "/v1/shutdown") == 0) {
        engine_request_stop();
        http_response_json(response, 200, json_object());
        return 0;
    }
    if (strcmp(request->path, "/v1/status") != 0)
        return error_set(err, -ENOENT, "a view has no %s %s", request->method, request->path);
    uint64_t used = 0;
    for (size_t i = 0; i < v->count; i++)
        used += block_overlay_used_bytes(v->volumes[i].overlay);
    http_response_json(response, 200,
                       json_pack("{s:s, s:i, s:I, s:I, s:s, s:o}", "id", v->id, "pid", getpid(), "lsn", (json_int_t)v->lsn.n,
                                 "overlay_bytes", (json_int_t)used, "state", "open", "salvage",
                                 v->salvage ? view_salvage_json(v->salvage) : json_null()));
    return 0;
}

static int add_volume(struct engine_view *v, json_t *object, struct error *err)
{
    const char *name;
    char path[PATH_MAX + JOURNAL_NAME_BYTES + 8];
    uint64_t id, size_bytes;
    struct view_volume *volume = &v->volumes[v->count];
    int r = json_get_string(object, "name", &name, err);
    if (r == 0)
        r = json_get_u64(object, "id", &id, err);
    if (r == 0)
        r = json_get_u64(object, "size_bytes", &size_bytes, err);
    if (r < 0)
        return r;
    snprintf(volume->name, sizeof volume->name, "%s", name);
    volume->id = (uint32_t)id;
    snprintf(path, sizeof path, "%s/%s.img", v->overlay, volume->name);
    r = image_block(v->image, (uint32_t)id, size_bytes, &volume->lower, err);
    if (r < 0)
        return r;
    v->count++;
    return block_overlay_new(volume->lower, path, &volume->overlay, err);
}

static int read_config(struct engine_view *v, json_t *config, struct error *err)
{
    const char *id, *journal, *pin, *socket, *overlay, *key_file = "";
    int r = json_reject_unknown(config, err, "id", "journal", "pin", "lsn", "socket", "overlay", "salvage", "key_file", "volumes", NULL);
    if (r == 0)
        r = json_get_string(config, "id", &id, err);
    if (r == 0)
        r = json_get_string(config, "journal", &journal, err);
    if (r == 0)
        r = json_get_string(config, "pin", &pin, err);
    if (r == 0)
        r = json_get_string(config, "socket", &socket, err);
    if (r == 0)
        r = json_get_string(config, "overlay", &overlay, err);
    if (r == 0)
        r = json_get_u64(config, "lsn", &v->lsn.n, err);
    if (r == 0)
        r = json_get_optional_string(config, "key_file", &key_file, err);
    if (r == 0)
        r = json_get_optional_bool(config, "salvage", &v->for_salvage, err);
    if (r < 0)
        return r;
    if (strlen(socket) >= sizeof v->socket || strlen(id) >= sizeof v->id || strlen(pin) >= sizeof v->pin)
        return error_set(err, -ENAMETOOLONG, "a view's id, pin or socket is too long");
    snprintf(v->id, sizeof v->id, "%s", id);
    snprintf(v->journal, sizeof v->journal, "%s", journal);
    snprintf(v->pin, sizeof v->pin, "%s", pin);
    snprintf(v->socket, sizeof v->socket, "%s", socket);
    snprintf(v->overlay, sizeof v->overlay, "%s", overlay);
    char scratch[PATH_MAX + 16];
    snprintf(scratch, sizeof scratch, "%s/salvage", v->overlay);
    r = seal_unlock(v->journal, key_file, err);
    return r < 0 ? r : seal_unlock_also(v->journal, scratch, err);
}

static int check_files(const struct engine_view *v, const json_t *volumes, struct error *err)
{
    uint32_t ids[GROUP_MAX_VOLUMES];
    uint64_t id;
    json_t *volume;
    size_t i;
    json_array_foreach(volumes, i, volume)
    {
        int r = json_get_u64(volume, "id", &id, err);
        if (r < 0)
            return r;
        ids[i] = (uint32_t)id;
    }
    return image_check_files(v->journal, v->pin, ids, json_array_size(volumes), err);
}

static int open_image(struct engine_view *v, const json_t *volumes, struct error *err)
{
    char scratch[PATH_MAX + 16];
    snprintf(scratch, sizeof scratch, "%s/salvage", v->overlay); /* volumes' overlays end in .img */
    if (v->for_salvage)
        return image_open_salvage(v->journal, v->pin, scratch, &v->image, err);
    int r = image_open(v->journal, v->pin, &v->image, err);
    if (r == 0)
        r = check_files(v, volumes, err);
    if (r == -EBADMSG || r == -ENOENT) {
        error_context(err, "the journal is damaged (`tidemark open --salvage` opens what is left of the point)");
        err->code = r = -EBADMSG; /* a file that is missing is damage too */
    }
    return r;
}

static int start_salvage(struct engine_view *v, struct error *err)
{
    struct view_salvage_volume volumes[GROUP_MAX_VOLUMES];
    for (size_t i = 0; i < v->count; i++) {
        volumes[i] = (struct view_salvage_volume){.id = v->volumes[i].id, .size_bytes = v->volumes[i].lower->size_bytes};
        snprintf(volumes[i].name, sizeof volumes[i].name, "%s", v->volumes[i].name);
    }
    return view_salvage_start(v->image, volumes, v->count, &v->salvage, err);
}

static int start(struct engine_view *v, const char *config_path, const struct log *log, struct error *err)
{
    _cleanup_json_ json_t *config = NULL;
    json_t *volumes = NULL, *volume;
    size_t i;
    int r = json_parse_file(config_path, &config, err);
    if (r == 0)
        r = read_config(v, config, err);
    if (r == 0)
        r = json_get_array(config, "volumes", &volumes, err);
    if (r < 0)
        return error_context(err, "%s", config_path);
    if (json_array_size(volumes) > GROUP_MAX_VOLUMES)
        return error_set(err, -EINVAL, "%s: more than %u volumes", config_path, GROUP_MAX_VOLUMES);
    r = io_mkdirs(v->overlay, 0700, err);
    if (r == 0)
        r = open_image(v, volumes, err);
    json_array_foreach(volumes, i, volume)
        if (r == 0)
            r = add_volume(v, volume, err);
    if (r == 0 && v->for_salvage)
        r = start_salvage(v, err);
    if (r < 0)
        return r;
    struct http_server_options options = {.socket_path = v->socket, .threads = 1, .log = log, .handler = handle, .context = v};
    return http_server_start(&options, &v->server, err);
}

/* For `up`: the view was closed, and why. */
static void tell_closed(const struct engine_view *v, const char *why)
{
    char path[sizeof v->socket + 8];
    struct error err = ERROR_INIT;
    snprintf(path, sizeof path, "%s.closed", v->socket);
    if (io_replace_file(path, why, strlen(why), 0600, &err) < 0)
        log_warning(v->log, "%s", err.message);
}

/* The engine needs the room of what the view reads: it ends at once, and whoever uses it gets I/O errors. Only then, when its lock on the
 * pin is gone with it, the history goes: what a view reads is never something newer. */
static void *watch_main(void *context)
{
    struct engine_view *v = context;
    char path[PATH_MAX + 80], *why = NULL;
    struct error err = ERROR_INIT;
    size_t length;
    snprintf(path, sizeof path, "%s/pins/%s" PIN_REVOKED_SUFFIX, v->journal, v->pin);
    pthread_mutex_lock(&v->mutex);
    while (!v->stop) {
        if (access(path, F_OK) == 0) {
            if (io_read_file(path, 4096, &why, &length, &err) < 0)
                why = NULL;
            log_warning(v->log, "the view is closed: %s", why ? why : err.message);
            tell_closed(v, why ? why : "quota\n");
            _exit(EXIT_FAILURE);
        }
        thread_cond_wait_ns(&v->stopping, &v->mutex, REVOKED_LOOK_NS);
    }
    pthread_mutex_unlock(&v->mutex);
    return NULL;
}

static int start_watch(struct engine_view *v, const struct log *log, struct error *err)
{
    v->log = log;
    int r = thread_start(&v->watch, "view-watch", watch_main, v, err);
    v->watches = r == 0;
    return r;
}

static void stop_watch(struct engine_view *v)
{
    if (v->watches) {
        pthread_mutex_lock(&v->mutex);
        v->stop = true;
        pthread_cond_signal(&v->stopping);
        pthread_mutex_unlock(&v->mutex);
        pthread_join(v->watch, NULL);
    }
    pthread_mutex_destroy(&v->mutex);
    pthread_cond_destroy(&v->stopping);
}

/* For `up`, which sees only that the process ended: <socket>.error holds the error as the API tells errors. */
static void tell_error(const struct engine_view *v, const struct log *log, const struct error *why)
{
    char path[sizeof v->socket + 8];
    struct error err = ERROR_INIT;
    if (!v->socket[0])
        return;
    snprintf(path, sizeof path, "%s.error", v->socket);
    _cleanup_json_ json_t *json = json_of_error(why);
    _cleanup_free_ char *text = json ? json_to_text(json) : NULL;
    if (text && io_replace_file(path, text, strlen(text), 0600, &err) < 0)
        log_warning(log, "%s", err.message);
}

int engine_view_start(const char *config_path, const struct log *log, struct engine_view **ret, struct error *err)
{
    struct engine_view *v = calloc(1, sizeof *v);
    if (!v)
        return error_errno(err, -ENOMEM, "cannot start the view");
    pthread_mutex_init(&v->mutex, NULL);
    thread_cond_init(&v->stopping);
    int r = start(v, config_path, log, err);
    if (r == 0)
        r = start_watch(v, log, err);
    if (r < 0) {
        tell_error(v, log, err);
        engine_view_stop(v);
        return r;
    }
    *ret = v;
    return 0;
}

void engine_view_stop(struct engine_view *v)
{
    if (!v)
        return;
    stop_watch(v);
    http_server_stop(v->server);
    view_salvage_free(v->salvage);
    for (size_t i = 0; i < v->count; i++) {
        block_free(v->volumes[i].overlay);
        block_free(v->volumes[i].lower);
    }
    image_free(v->image);
    free(v);
}

size_t engine_view_volume_count(const struct engine_view *v)
{
    return v->count;
}
const char *engine_view_volume_name(const struct engine_view *v, size_t i)
{
    return v->volumes[i].name;
}
struct block *engine_view_volume_block(struct engine_view *v, size_t i)
{
    return v->volumes[i].overlay;
}
