/* SPDX-License-Identifier: Apache-2.0 */
/* Clones that are used before they are copied: their engine reads what it lacks from the source's journal, at a point that is pinned there
 * until it has copied all.
 *
 *   L1  The pin outlives everybody: it is there before the clone is (`filling.json`, durable before application.yaml), and goes once the clone's
 *       engine says that nothing is read any more, or with the clone.
 *   L2  A pin of a source that no filling.json names, here or of an application that could not be loaded, and that nobody is about to name, is a
 *       remainder and is removed: looked for at the start, and after a removal that failed.
 *   L3  While it is read the source is neither deleted nor detached, closed or given another key; nor is the clone divided: it goes as a whole
 *       or not at all. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/thread.h"
#include "control/control_internal.h"
#include "journal/pin.h"
#include "lib/http_client.h"

#define RECORD "filling.json"
#define LOOK_NS NS_PER_SECOND
#define SWEEP_NS (10 * NS_PER_SECOND)
#define TELL_NS (60 * NS_PER_SECOND)

/* ---- the record ---- */

static int parse(json_t *json, struct filling *ret, struct error *err)
{
    const char *source, *pin, *key_file = "";
    int r = json_get_string(json, "source", &source, err);
    if (r == 0)
        r = json_get_string(json, "pin", &pin, err);
    if (r == 0)
        r = json_get_optional_string(json, "key_file", &key_file, err);
    if (r < 0)
        return r;
    if (strlen(source) >= sizeof ret->source || strlen(pin) >= sizeof ret->pin || strlen(key_file) >= sizeof ret->key_file)
        return error_set(err, -EINVAL, "a name is too long");
    memcpy(ret->source, source, strlen(source) + 1);
    memcpy(ret->pin, pin, strlen(pin) + 1);
    memcpy(ret->key_file, key_file, strlen(key_file) + 1);
    return 0;
}

int filling_load(struct application *a, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *json = NULL;
    int r = application_path(a, path, err, RECORD);
    if (r < 0 || access(path, F_OK) < 0)
        return r;
    r = json_parse_file(path, &json, err);
    if (r == 0)
        r = parse(json, &a->filling, err);
    return r < 0 ? error_context(err, "%s", path) : 0;
}

int filling_save(const struct application *a, struct error *err)
{
    char path[PATH_MAX];
    const struct filling *f = &a->filling;
    _cleanup_json_ json_t *json = json_pack("{s:s, s:s, s:s}", "source", f->source, "pin", f->pin, "key_file", f->key_file);
    int r = application_path(a, path, err, RECORD);
    return r < 0 ? r : write_json_file(path, json, err);
}

bool filling_get(const struct application *a, struct filling *ret)
{
    MUTEX_GUARD(guard, &a->control->mutex);
    *ret = a->filling;
    return ret->source[0];
}

void filling_set(struct application *a, const struct filling *f)
{
    MUTEX_GUARD(guard, &a->control->mutex);
    a->filling = f ? *f : (struct filling){.source = ""};
}

json_t *filling_engine_source(const struct application *a)
{
    struct filling f;
    if (!filling_get(a, &f))
        return NULL;
    json_t *source = json_pack("{s:o, s:s}", "journal", json_sprintf("%s/apps/%s/journal", a->control->state_directory, f.source), "pin", f.pin);
    if (source && f.key_file[0])
        json_object_set_new(source, "key_file", json_string_nocheck(f.key_file));
    return source;
}

/* ---- what is refused meanwhile ---- */

int filling_refuse(const struct application *a, const char *what, struct error *err)
{
    struct filling f;
    return filling_get(a, &f) ? error_set(err, -EBUSY,
                                          "%s is a clone that is still being copied from %s: it cannot be %s before that has ended (tidemark "
                                          "status %s); it can be deleted with its data",
                                          a->name, f.source, what, a->name)
                              : 0;
}

int filling_check_volumes(const struct application *a, const struct app_spec *spec, struct error *err)
{
    struct filling f;
    if (!filling_get(a, &f))
        return 0;
    for (size_t i = 0; i < a->spec->volume_count; i++) {
        bool there = false;
        for (size_t k = 0; k < spec->volume_count; k++)
            there |= strcmp(spec->volumes[k].name, a->spec->volumes[i].name) == 0;
        if (!there)
            return error_set(err, -EBUSY, "volume %s cannot be removed before %s is copied from %s (tidemark status %s); the whole clone can",
                             a->spec->volumes[i].name, a->name, f.source, a->name);
    }
    return 0;
}

/* ---- pins ---- */

int filling_pin(struct application *source, const char *pin, const char *point, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = json_pack("{s:s, s:s}", "pin", pin, "point", point);
    return application_call(source, "POST", "/v1/pin", body, CONTROL_CALL_TIMEOUT_MS, ret, err);
}

static int unpin(struct application *source, const char *pin, struct error *err)
{
    _cleanup_json_ json_t *body = json_pack("{s:s}", "pin", pin);
    return application_call(source, "POST", "/v1/unpin", body, CONTROL_CALL_TIMEOUT_MS, NULL, err);
}

void filling_unpin(struct control *control, const struct filling *f)
{
    struct error err = ERROR_INIT;
    _cleanup_application_ struct application *source = application_find(control, f->source, &err);
    if (source && unpin(source, f->pin, &err) == 0)
        return;
    log_warning(control->log, "%s: cannot drop the pin %s yet: %s", f->source, f->pin, err.message);
    atomic_store(&control->sweep_due, true);
}

/* ---- the thread: when a clone is copied ---- */

/* The clone's engine reads nothing from the source any more. */
static bool is_filled(const struct application *a)
{
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *status = NULL;
    return http_client_call(a->socket, "GET", "/v1/status", NULL, CONTROL_STATUS_TIMEOUT_MS, &status, &ignored) == 0 &&
           json_is_null(json_object_get(status, "filling"));
}

/* L1: the pin first; without the record nobody would know of it. Again is nothing. */
static int finish(struct application *a, const struct filling *f, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_application_ struct application *source = application_find(a->control, f->source, err);
    int r = source ? unpin(source, f->pin, err) : err->code;
    if (r == 0)
        r = application_path(a, path, err, RECORD);
    if (r == 0 && unlink(path) < 0 && errno != ENOENT)
        r = error_errno(err, -errno, "cannot remove %s", path);
    if (r == 0)
        r = io_sync_directory(a->directory, err);
    if (r < 0)
        return r;
    filling_set(a, NULL);
    log_info(a->control->log, "%s: copied from %s, which it does not need any more", a->name, f->source);
    return 0;
}

static bool is_listed(const struct application *a)
{
    MUTEX_GUARD(guard, &a->control->mutex);
    return !a->removed;
}

static void look(struct application *a)
{
    struct error err = ERROR_INIT;
    struct filling f;
    pthread_mutex_lock(&a->mutex);
    bool runs = a->state == APPLICATION_RUNNING;
    pthread_mutex_unlock(&a->mutex);
    if (!runs || !filling_get(a, &f) || !is_filled(a) || pthread_mutex_trylock(&a->control->apply_mutex) != 0)
        return; /* somebody may just delete it, and make another one: later */
    int r = is_listed(a) ? finish(a, &f, &err) : 0;
    pthread_mutex_unlock(&a->control->apply_mutex);
    uint64_t now = clock_boottime_ns(clock_system());
    if (r == 0 || (a->filling_told_ns && now - a->filling_told_ns < TELL_NS))
        return;
    a->filling_told_ns = now; /* the source's engine is away, most likely */
    log_info(a->control->log, "%s: is copied, but its pin in the history of %s cannot be removed yet: %s", a->name, f.source, err.message);
}

/* ---- the thread: remainders (L2) ---- */

static bool is_named_in_memory(struct control *control, const char *pin)
{
    MUTEX_GUARD(guard, &control->mutex);
    for (const struct application *a = control->applications; a; a = a->next)
        if (strcmp(a->filling.pin, pin) == 0)
            return true;
    return false;
}

/* `doubt`: the answer where it cannot be told. */
static bool is_named_on_disk(const struct control *control, const char *pin, bool doubt)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%.4000s/apps", control->state_directory);
    _cleanup_closedir_ DIR *d = opendir(path);
    if (!d)
        return doubt;
    for (const struct dirent *entry; (entry = readdir(d));) {
        struct error ignored = ERROR_INIT;
        struct filling f;
        _cleanup_json_ json_t *json = NULL;
        snprintf(path, sizeof path, "%.3000s/apps/%s/" RECORD, control->state_directory, entry->d_name);
        if (entry->d_name[0] == '.' || (access(path, F_OK) < 0 && (errno == ENOENT || errno == ENOTDIR)))
            continue;
        bool known = json_parse_file(path, &json, &ignored) == 0 && parse(json, &f, &ignored) == 0;
        if (known ? strcmp(f.pin, pin) == 0 : doubt)
            return true;
    }
    return false;
}

int filling_new_pin(struct control *control, char ret[CONTROL_ID_BYTES], struct error *err)
{
    int r;
    do
        r = control_new_id(control, PIN_KEPT_PREFIX, ret, err);
    while (r == 0 && (is_named_in_memory(control, ret) || is_named_on_disk(control, ret, false)));
    return r;
}

/* -EAGAIN: its engine does not answer now. The pins are asked for before it is asked who names them: who takes one has named it before. */
static int sweep(struct application *a)
{
    struct error err = ERROR_INIT;
    size_t i;
    json_t *view;
    _cleanup_json_ json_t *status = NULL;
    if (http_client_call(a->socket, "GET", "/v1/status", NULL, CONTROL_STATUS_TIMEOUT_MS, &status, &err) < 0)
        return -EAGAIN;
    json_array_foreach(json_object_get(status, "views"), i, view)
    {
        const char *pin = json_string_value(json_object_get(view, "pin"));
        if (!pin || strncmp(pin, PIN_KEPT_PREFIX, strlen(PIN_KEPT_PREFIX)) != 0 || is_named_in_memory(a->control, pin) ||
            is_named_on_disk(a->control, pin, true))
            continue;
        log_info(a->control->log, "%s: the pin %s is left of a clone that is gone: it is removed", a->name, pin);
        if (unpin(a, pin, &err) < 0)
            return -EAGAIN;
    }
    return 0;
}

static struct application **all_applications(struct control *control, size_t *ret_count)
{
    struct application **list = calloc(CONTROL_APPLICATIONS_MAX, sizeof *list);
    *ret_count = 0;
    MUTEX_GUARD(guard, &control->mutex);
    for (struct application *a = control->applications; list && a && *ret_count < CONTROL_APPLICATIONS_MAX; a = a->next) {
        a->refs++;
        list[(*ret_count)++] = a;
    }
    return list;
}

static void round_of(struct control *control, bool sweeping)
{
    size_t count;
    bool swept = sweeping && atomic_exchange(&control->sweep_due, false);
    _cleanup_free_ struct application **list = all_applications(control, &count);
    for (size_t i = 0; i < count; i++) {
        look(list[i]);
        if (swept && sweep(list[i]) < 0)
            atomic_store(&control->sweep_due, true);
        application_unref(list[i]);
    }
}

static bool wait_a_moment(struct control *control, uint64_t ns)
{
    uint64_t end_ns = clock_boottime_ns(clock_system()) + ns;
    MUTEX_GUARD(guard, &control->mutex);
    for (uint64_t now = clock_boottime_ns(clock_system()); now < end_ns && !atomic_load(&control->stopping);
         now = clock_boottime_ns(clock_system()))
        thread_cond_wait_ns(&control->changed, &control->mutex, end_ns - now);
    return !atomic_load(&control->stopping);
}

static void *filling_main(void *context)
{
    struct control *control = context;
    uint64_t swept_ns = 0;
    while (wait_a_moment(control, LOOK_NS)) {
        uint64_t now = clock_boottime_ns(clock_system());
        bool sweeping = atomic_load(&control->sweep_due) && (!swept_ns || now - swept_ns > SWEEP_NS);
        swept_ns = sweeping ? now : swept_ns;
        round_of(control, sweeping);
    }
    control_work_ended(control);
    return NULL;
}

int filling_start(struct control *control, struct error *err)
{
    atomic_store(&control->sweep_due, true);
    return control_work(control, filling_main, control, err);
}
