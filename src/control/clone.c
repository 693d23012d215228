/* SPDX-License-Identifier: Apache-2.0 */
/* A new application whose volumes begin with what another's held at a point: the point is pinned,
 * `tidemark-engine copy` fills the new backings, and the new engine takes them as it takes adopted ones. With `at_once` it only makes them, and
 * the new engine copies behind (filling.c).
 *
 * - C1: the new application is whole or is not there: application.yaml, written once its backings are
 *   durable, is what makes it one. Until then its directory has the file `clone.json`, and who finds that
 *   without application.yaml removes the directory.
 * - C2: of the original nothing is changed, stopped or held but the pin. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "base/units.h"
#include "control/control_internal.h"
#include "lib/http_client.h"

#define MARKER "clone.json"

const char *const clone_steps[] = {"pin the point", "copy", "start", NULL};
enum { STEP_PIN, STEP_COPY, STEP_START };

struct copying {
    struct application *source;
    struct operation *operation; /* NULL: only counted */
    char id[CONTROL_ID_BYTES], config[PATH_MAX];
    int lock_fd;
    bool behind;     /* the pin stays, and the new engine copies */
    char first[256]; /* why that was asked for and cannot be; "" */
    json_t *pin;     /* the engine's answer */
    json_t *volumes; /* [{"name": in the new application, "from": name there, "id", "size_bytes"}] */
    json_t *summary;
};

/* ---- the request ---- */

/* Two volumes of one name would be copied into one file. */
static int check_names(json_t *volumes, struct error *err)
{
    const char *old;
    json_t *new;
    _cleanup_json_ json_t *seen = json_object();
    json_object_foreach(volumes, old, new)
    {
        const char *name = json_string_value(new), *first = json_string_value(json_object_get(seen, name));
        if (first)
            return error_set(err, -EINVAL, "volumes: %.63s and %.63s cannot both be named %s in the clone; choose different names",
                             first, old, name);
        json_object_set_new(seen, name, json_string(old));
    }
    return 0;
}

int clone_check_request(const json_t *request, struct error *err)
{
    const char *text, *old;
    json_t *volumes = NULL, *new;
    bool unused = false;
    int r = json_reject_unknown(request, err, "name", "point", "volumes", "at_once", "dry_run", NULL);
    if (r == 0)
        r = json_get_string(request, "name", &text, err);
    if (r == 0 && app_check_name(text, err) < 0)
        r = error_context(err, "name");
    if (r == 0)
        r = json_get_string(request, "point", &text, err);
    if (r == 0)
        r = json_get_optional_bool(request, "dry_run", &unused, err);
    if (r == 0)
        r = json_get_optional_bool(request, "at_once", &unused, err);
    if (r == 0)
        r = json_get_optional_object(request, "volumes", &volumes, err);
    json_object_foreach(volumes, old, new)
    {
        if (r == 0 && (!json_is_string(new) || app_check_name(json_string_value(new), err) < 0))
            r = error_set(err, -EINVAL, "volumes.%.63s: expected the new volume's name, a DNS label", old);
    }
    if (r == 0 && volumes && json_object_size(volumes) == 0)
        r = error_set(err, -EINVAL, "volumes: expected at least one");
    return r == 0 && volumes ? check_names(volumes, err) : r;
}

/* Which volumes of the pin are copied, under which names. */
static int choose_volumes(struct copying *c, const json_t *request, struct error *err)
{
    json_t *all, *volume, *wanted = json_object_get(request, "volumes"), *new;
    size_t i, found = 0;
    const char *old;
    int r = json_get_array(c->pin, "volumes", &all, err);
    if (r < 0)
        return r;
    c->volumes = json_array();
    json_array_foreach(all, i, volume)
    {
        const char *name = json_string_value(json_object_get(volume, "name"));
        const char *as = wanted && name ? json_string_value(json_object_get(wanted, name)) : name;
        if (!name || app_check_name(name, err) < 0)
            return error_set(err, -EPROTO, "the engine named a volume in an odd way");
        if (!as)
            continue;
        found++;
        json_array_append_new(c->volumes, json_pack("{s:s, s:s, s:O, s:O}", "name", as, "from", name, "id",
                                                    json_object_get(volume, "id"), "size_bytes",
                                                    json_object_get(volume, "size_bytes")));
    }
    if (found && (!wanted || found == json_object_size(wanted)))
        return 0;
    json_object_foreach(wanted, old, new)
    {
        bool there = false;
        json_array_foreach(all, i, volume) there |=
            strcmp(json_string_value(json_object_get(volume, "name")), old) == 0;
        if (!there)
            return error_set(err, -ENOENT, "%s had no volume '%.63s' at that point", c->source->name, old);
    }
    return error_set(err, -ENOENT, "%s had no volumes at that point", c->source->name);
}

/* ---- the copy ---- */

/* `directory` NULL: only counted. */
static int write_config(struct copying *c, const char *directory, struct error *err)
{
    json_t *list = json_array(), *volume;
    size_t i;
    json_array_foreach(c->volumes, i, volume)
    {
        json_t *one =
            json_pack("{s:O, s:O, s:O}", "name", json_object_get(volume, "name"), "id",
                      json_object_get(volume, "id"), "size_bytes", json_object_get(volume, "size_bytes"));
        if (directory)
            json_object_set_new(one, "target",
                                json_sprintf("%s/backing/%s.img", directory,
                                             json_string_value(json_object_get(volume, "name"))));
        json_array_append_new(list, one);
    }
    _cleanup_json_ json_t *config =
        json_pack("{s:o, s:s, s:o}", "journal", json_sprintf("%s/journal", c->source->directory), "pin",
                  c->id, "volumes", list);
    if (config && c->source->spec->key_file)
        json_object_set_new(config, "key_file", json_string_nocheck(c->source->spec->key_file));
    if (config && c->behind)
        json_object_set_new(config, "behind", json_true());
    return write_json_file(c->config, config, err);
}

static int run_copy(struct copying *c, const char *log_path, struct error *err)
{
    const char *const argv[] = {c->source->control->programs.engine, "copy", "--config", c->config, NULL};
    const struct engine_job job = {.control = c->source->control, .what = "the copy", .argv = argv, .log_path = log_path,
                                   .lock_fd = c->lock_fd, .operation = c->operation};
    json_decref(c->summary);
    c->summary = NULL;
    return engine_job_run(&job, &c->summary, err);
}

static int begin(struct copying *c, const json_t *request, struct error *err)
{
    const char *point = json_string_value(json_object_get(request, "point"));
    int r = control_new_id(c->source->control, "clone-", c->id, err);
    if (r == 0)
        r = pin_take(c->source, c->id, point, NULL, &c->lock_fd, &c->pin, err);
    return r == 0 ? choose_volumes(c, request, err) : r;
}

/* Why a clone of it that is to be used at once is copied first: into c->first. What is not known now, making it shows. */
static void note_hindrance(struct copying *c, const json_t *request)
{
    const struct application *source = c->source;
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *status = NULL;
    const char *why = NULL;
    if (!json_is_true(json_object_get(request, "at_once")))
        return;
    if (store_is_open(source->control, source->name))
        why = "it lives on devices of its own (volumes of backing class), which may go to another machine, where the clone could not read them";
    else if (http_client_call(source->socket, "GET", "/v1/status", NULL, CONTROL_STATUS_TIMEOUT_MS, &status, &ignored) < 0)
        return;
    else if (!json_object_get(status, "filling"))
        why = "its engine is one from before such clones; `tidemark upgrade` replaces it";
    else if (strcmp(json_text(status, "state"), "suspended") == 0)
        why = "its journaling is suspended now; its alarms say why";
    if (why)
        snprintf(c->first, sizeof c->first, "%s", why);
}

/* For a clone that is used at once. -EINVAL: the source's engine is one from before there were pins that nobody holds; -ESHUTDOWN: its history is
 * not durable now. */
static int begin_behind(struct application *a, struct copying *c, const json_t *request, struct error *err)
{
    struct filling f = {.source = ""};
    const struct application *source = c->source;
    const char *key_file = source->spec->key_file ? source->spec->key_file : "";
    int r = filling_new_pin(a->control, c->id, err);
    if (r == 0 && strlen(key_file) >= sizeof f.key_file)
        r = error_set(err, -ENAMETOOLONG, "the key file's path is too long");
    if (r < 0)
        return r;
    memcpy(f.source, source->name, strlen(source->name) + 1);
    memcpy(f.pin, c->id, sizeof f.pin);
    memcpy(f.key_file, key_file, strlen(key_file) + 1);
    filling_set(a, &f); /* before the pin is there: else it would be taken for a remainder */
    r = filling_pin(c->source, c->id, json_string_value(json_object_get(request, "point")), &c->pin, err);
    if (r < 0) {
        filling_unpin(a->control, &f); /* it may have been pinned, and the answer be lost */
        filling_set(a, NULL);
        return r;
    }
    c->behind = true;
    return choose_volumes(c, request, err);
}

/* Of a clone that failed. */
static void end_behind(struct application *a, const struct copying *c)
{
    struct filling f;
    if (c->behind && filling_get(a, &f)) {
        filling_unpin(a->control, &f);
        filling_set(a, NULL);
    }
}

static void end(struct copying *c)
{
    if (c->lock_fd >= 0) {
        close(c->lock_fd);
        pin_drop(c->source, c->id);
    }
    if (c->config[0])
        unlink(c->config);
    json_decref(c->pin);
    json_decref(c->volumes);
    json_decref(c->summary);
}

/* The backing and, later, the history's copy of what it began with; and the history to come. */
static int check_space(const struct copying *c, struct error *err)
{
    struct statvfs fs;
    struct app_policy *policy = NULL;
    char needed_text[UNITS_TEXT_BYTES], free_text[UNITS_TEXT_BYTES];
    const struct control *control = c->source->control;
    uint64_t bytes = (uint64_t)json_integer_value(json_object_get(c->summary, "bytes"));
    int r = policy_load(control, c->source->spec->policy, &policy, err);
    if (r < 0 || !policy)
        return r;
    if (statvfs(control->state_directory, &fs) < 0)
        r = error_errno(err, -errno, "cannot see how much of %s is free", control->state_directory);
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize, quota = policy->quota_bytes;
    app_policy_free(policy);
    if (r == 0 && !quota)
        quota = free_bytes / 4 < CONTROL_QUOTA_DEFAULT_BYTES ? free_bytes / 4 : CONTROL_QUOTA_DEFAULT_BYTES;
    if (r == 0 && 2 * bytes + quota > free_bytes)
        r = error_set(err, -ENOSPC,
                      "a clone of %s does not fit on the disk of %s: needed %s (its data twice, and the "
                      "journal), free %s; remove "
                      "what is not needed there, or set a smaller spec.journal.quota in the policy",
                      c->source->name, control->state_directory,
                      units_format_bytes(2 * bytes + quota, needed_text),
                      units_format_bytes(free_bytes, free_text));
    return r;
}

/* Counts what would be copied. */
static int count(struct copying *c, struct error *err)
{
    char log_path[PATH_MAX];
    int r = application_path(c->source, log_path, err, "engine.log");
    if (r == 0)
        r = application_path(c->source, c->config, err, "%s.json", c->id);
    if (r == 0)
        r = write_config(c, NULL, err);
    if (r == 0)
        r = run_copy(c, log_path, err);
    return r == 0 ? check_space(c, err) : r;
}

static json_t *told_volumes(const struct copying *c)
{
    json_t *list = json_array(), *volume;
    size_t i;
    json_array_foreach(c->volumes, i, volume) json_array_append_new(
        list, json_pack("{s:O, s:O, s:O, s:O}", "name", json_object_get(volume, "name"), "from",
                        json_object_get(volume, "from"), "size_bytes", json_object_get(volume, "size_bytes"),
                        "bytes",
                        json_object_get(json_array_get(json_object_get(c->summary, "volumes"), i), "bytes")));
    return list;
}

int clone_plan(struct application *source, const json_t *request, json_t **ret, struct error *err)
{
    struct copying c = {.source = source, .lock_fd = -1};
    note_hindrance(&c, request);
    int r = begin(&c, request, err);
    if (r == 0)
        r = count(&c, err);
    if (r == 0) {
        bool at_once = json_is_true(json_object_get(request, "at_once")) && !c.first[0];
        *ret = json_pack("{s:{s:s, s:O, s:O, s:O, s:O, s:o, s:b, s:s*}}", "plan", "source", source->name, "lsn",
                         json_object_get(c.pin, "lsn"), "time", json_object_get(c.pin, "time"), "note",
                         json_object_get(c.pin, "note"), "bytes", json_object_get(c.summary, "bytes"),
                         "volumes", told_volumes(&c), "at_once", (int)at_once, "copied_first", c.first[0] ? c.first : NULL);
        r = *ret ? 0 : error_set(err, -EPROTO, "the engine's answer lacks fields");
    }
    end(&c);
    return r;
}

/* ---- the new application ---- */

static int make_directory(struct application *a, struct error *err)
{
    char path[PATH_MAX];
    struct stat st;
    int r = application_path(a, path, err, MARKER);
    if (r < 0)
        return r;
    if (access(path, F_OK) == 0 &&
        (r = io_remove_marked_tree(a->directory, MARKER, err)) < 0) /* a former one, that failed halfway */
        return r;
    if (stat(a->directory, &st) == 0)
        return error_set(err, -EEXIST,
                         "%s is there: data or history of a former application of that name; choose another "
                         "name, or remove it",
                         a->directory);
    r = io_mkdirs(a->directory, 0700, err);
    if (r == 0)
        r = io_replace_file(path, "{}\n", 3, 0600, err);
    if (r < 0) { /* without its mark it would be taken for somebody's data */
        unlink(path);
        rmdir(a->directory);
        return r;
    }
    r = application_path(a, path, err, "backing");
    return r == 0 ? io_mkdirs(path, 0700, err) : r;
}

/* What is known before the point is: its volumes come with clone_run. */
static struct app_spec *begin_spec(const struct application *source, const char *name)
{
    struct app_spec *spec = calloc(1, sizeof *spec);
    if (!spec)
        return NULL;
    spec->name = strdup(name);
    spec->policy = strdup(source->spec->policy);
    spec->key_file = source->spec->key_file ? strdup(source->spec->key_file) : NULL;
    spec->export = source->spec->export;
    if (spec->name && spec->policy && (spec->key_file || !source->spec->key_file))
        return spec;
    app_spec_free(spec);
    return NULL;
}

int clone_prepare(struct application *source, const json_t *request, struct application **ret,
                  struct error *err)
{
    struct control *control = source->control;
    struct error absent = ERROR_INIT;
    const char *name = json_string_value(json_object_get(request, "name"));
    MUTEX_GUARD(guard, &control->apply_mutex);
    _cleanup_application_ struct application *there = application_find(control, name, &absent);
    if (there) {
        MUTEX_GUARD(inner, &control->mutex);
        return there->copied_from[0]
                   ? error_set(err, -EBUSY, "%s is being made", name)
                   : error_set(err, -EEXIST, "there is an application %s already: choose another name", name);
    }
    struct app_spec *spec = begin_spec(source, name);
    struct application *a = spec ? application_new(control, spec, err) : NULL;
    if (!a)
        return spec ? err->code : error_set(err, -ENOMEM, "out of memory");
    snprintf(a->copied_from, sizeof a->copied_from, "%s", source->name);
    int r = make_directory(a, err);
    if (r == 0)
        r = application_begin(a, "clone", 0, err);
    if (r < 0) {
        application_unref(a);
        return r;
    }
    application_set_state(a, APPLICATION_STARTING, "its volumes are being copied");
    application_list(a);
    *ret = a;
    return 0;
}

void clone_abandon(struct application *a)
{
    struct error err = ERROR_INIT;
    application_unlist(a);
    if (io_remove_marked_tree(a->directory, MARKER, &err) < 0)
        log_warning(a->control->log, "%s", err.message);
    application_end(a);
}

int clone_check_unused(struct control *control, const char *name, struct error *err)
{
    MUTEX_GUARD(guard, &control->mutex);
    for (const struct application *a = control->applications; a; a = a->next) {
        if (strcmp(a->filling.source, name) == 0)
            return error_set(err, -EBUSY,
                             "%s is still being copied to its clone %s, which reads it until that has ended (tidemark status %s); try again "
                             "then, or delete the clone with its data first",
                             name, a->name, a->name);
        if (strcmp(a->copied_from, name) == 0)
            return error_set(err, -EBUSY,
                             "%s is being cloned: %s is made of it; try again when that has ended", name,
                             a->name);
    }
    return 0;
}

void clone_tidy(struct control *control, const char *name)
{
    char directory[PATH_MAX - 32], marker[PATH_MAX], yaml[PATH_MAX];
    struct error err = ERROR_INIT;
    if (snprintf(directory, sizeof directory, "%s/apps/%s", control->state_directory, name) >=
        (int)sizeof directory)
        return;
    snprintf(marker, sizeof marker, "%s/" MARKER, directory);
    snprintf(yaml, sizeof yaml, "%s/application.yaml", directory);
    if (access(marker, F_OK) < 0)
        return;
    if (access(yaml, F_OK) == 0) {
        unlink(marker);
        return;
    }
    log_info(control->log,
             "%s: was being made as a clone, which was interrupted; what there is of it is removed", name);
    if (io_remove_marked_tree(directory, MARKER, &err) < 0)
        log_error(control->log, "%s", err.message);
}

static int fill_spec(struct application *a, const struct copying *c, struct error *err)
{
    size_t i, n = json_array_size(c->volumes);
    json_t *volume;
    struct app_volume *volumes = calloc(n, sizeof *volumes);
    if (!volumes)
        return error_set(err, -ENOMEM, "out of memory");
    MUTEX_GUARD(guard, &a->mutex);
    a->spec->volumes = volumes;
    a->spec->volume_count = n;
    json_array_foreach(c->volumes, i, volume)
    {
        volumes[i].name = strdup(json_string_value(json_object_get(volume, "name")));
        volumes[i].size_bytes = (uint64_t)json_integer_value(json_object_get(volume, "size_bytes"));
        volumes[i].fs_type = APP_FS_EXT4;
        if (asprintf(&volumes[i].from, "%s/%s@lsn:%lld", c->source->name,
                     json_string_value(json_object_get(volume, "from")),
                     (long long)json_integer_value(json_object_get(c->pin, "lsn"))) < 0)
            volumes[i].from = NULL;
        if (!volumes[i].name || !volumes[i].from)
            return error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

/* Pins; and counts, unless the copying process is to do that at once. A source that may move to another machine is copied first. */
static int prepare(struct application *a, struct copying *c, const json_t *request, struct error *err)
{
    int r = -EINVAL;
    note_hindrance(c, request);
    if (json_is_true(json_object_get(request, "at_once")) && !c->first[0]) {
        r = begin_behind(a, c, request, err);
        if (r != -EINVAL && r != -ESHUTDOWN)
            return r;
        snprintf(c->first, sizeof c->first, "%.*s", (int)sizeof c->first - 1, err->message);
        *err = ERROR_INIT;
    }
    if (c->first[0])
        log_info(a->control->log, "%s: cannot be used before it is copied: %s", a->name, c->first);
    r = begin(c, request, err);
    return r == 0 ? count(c, err) : r;
}

static int fill(struct application *a, struct copying *c, const json_t *request, struct error *err)
{
    char log_path[PATH_MAX], backing[PATH_MAX];
    operation_step_begin(c->operation, STEP_PIN);
    int r = prepare(a, c, request, err);
    if (r < 0)
        return r;
    operation_step_end(c->operation, STEP_PIN, STEP_DONE, NULL);
    operation_step_begin(c->operation, STEP_COPY);
    if (c->config[0])
        unlink(c->config);
    r = application_path(a, log_path, err, "copy.log");
    if (r == 0)
        r = application_path(a, c->config, err, "copy.json");
    if (r == 0)
        r = application_path(a, backing, err, "backing");
    if (r == 0)
        r = write_config(c, a->directory, err);
    if (r == 0)
        r = run_copy(c, log_path, err);
    if (r == 0)
        r = io_sync_directory(backing, err);
    if (r == 0 && c->behind)
        r = check_space(c, err);
    if (r == 0 && c->behind)
        r = filling_save(a, err);
    if (r == 0)
        r = fill_spec(a, c, err);
    if (r == 0)
        operation_step_end(c->operation, STEP_COPY, STEP_DONE, NULL);
    return r;
}

/* C1 */
static int commit(struct application *a, struct operation *operation, struct error *err)
{
    char marker[PATH_MAX], yaml[PATH_MAX];
    operation_step_begin(operation, STEP_START);
    int r = application_path(a, marker, err, MARKER);
    if (r == 0)
        r = application_path(a, yaml, err, "application.yaml");
    if (r == 0)
        r = application_save(a, err);
    if (r < 0)
        return r;
    r = application_start(a, err);
    if (r < 0)
        unlink(yaml);
    else {
        unlink(marker);
        operation_step_end(operation, STEP_START, STEP_DONE, NULL);
    }
    return r;
}

int clone_run(struct application *a, struct operation *operation, const json_t *request, json_t **ret,
              struct error *err)
{
    struct copying c = {.operation = operation, .lock_fd = -1};
    const char *name = json_string_value(json_object_get(request, "source"));
    uint64_t started_ns = clock_boottime_ns(clock_system());
    _cleanup_application_ struct application *source = application_find(a->control, name, err);
    c.source = source;
    int r = source ? fill(a, &c, request, err) : err->code;
    if (r == 0)
        r = commit(a, operation, err);
    if (r == 0) {
        double ms = (double)(clock_boottime_ns(clock_system()) - started_ns) / 1e6;
        *ret = json_pack("{s:s, s:s, s:O, s:O, s:O, s:o, s:f, s:b, s:s*}", "application", a->name, "source", name, "lsn",
                         json_object_get(c.pin, "lsn"), "time", json_object_get(c.pin, "time"), "bytes",
                         json_object_get(c.summary, "bytes"), "volumes", told_volumes(&c), "clone_ms", ms, "at_once", (int)c.behind,
                         "copied_first", c.first[0] ? c.first : NULL);
    }
    if (source)
        end(&c);
    {
        MUTEX_GUARD(guard, &a->control->mutex);
        a->copied_from[0] = '\0';
    }
    if (r < 0) {
        end_behind(a, &c);
        clone_abandon(a);
    }
    return r < 0 ? error_context(err, "cannot clone %s as %s", name, a->name) : 0;
}
