/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "control/control_internal.h"
#include "control/mounts.h"
#include "lib/http_client.h"

static const char *const engine_fields[] = {"lsn",         "durable_lsn", "oldest_lsn",    "oldest_time",
                                            "latest_time", "rpo_ms",      "journal_bytes", "quota_bytes",
                                            "base_bytes",  "ack",         "rewind",        "resync",
                                            "history",     "suspicious_since", "seeding", "filling",
                                            "compressed_bytes", "compressed_plain_bytes",
                                            "pace_ms", "paced_seconds"};

static const json_t *engine_volume(const json_t *engine, const char *name)
{
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(engine, "volumes"), i, volume)
    {
        const char *text = json_string_value(json_object_get(volume, "name"));
        if (text && strcmp(text, name) == 0)
            return volume;
    }
    return NULL;
}

/* Mutex of the application held. */
static json_t *volumes_json(const struct application *a, const json_t *engine)
{
    json_t *list = json_array();
    char socket[PATH_MAX];
    snprintf(socket, sizeof socket, "%.*s/nbd.sock", (int)sizeof socket - 10, a->directory);
    for (size_t i = 0; i < a->spec->volume_count; i++) {
        const struct app_volume *v = &a->spec->volumes[i];
        const struct attached *at = &a->volumes[i];
        json_t *written = json_object_get(engine_volume(engine, v->name), "written_bytes");
        bool nbd = a->spec->export == APP_EXPORT_NBD && a->state == APPLICATION_RUNNING;
        const char *fs_type = !v->mount_path       ? NULL
                              : at->fs_type[0]     ? at->fs_type
                              : v->fs_type == APP_FS_FOUND ? NULL
                                                   : app_fs_type_name(v->fs_type);
        json_t *seeding = json_object_get(engine_volume(engine, v->name), "seeding");
        json_t *signal = json_object_get(engine_volume(engine, v->name), "signal");
        json_array_append_new(
            list, json_pack("{s:s, s:I, s:s?, s:s?, s:o, s:O?, s:s?, s:O?, s:s?, s:O?, s:s?}", "name", v->name, "size_bytes",
                            (json_int_t)v->size_bytes, "device", at->device[0] ? at->device : NULL, "mount",
                            at->mounted ? v->mount_path : NULL, "nbd_uri",
                            nbd ? nbd_uri_json(v->name, socket) : json_null(), "written_bytes", written,
                            "fs_type", fs_type,
                            "signal", signal, "source", v->source, "seeding", seeding, "from", v->from));
    }
    return list;
}

/* Somebody else has unmounted it: what is written below its mount path now is neither on the volume nor journaled. */
static void add_unmounted(struct application *a, json_t *list)
{
    char source[256];
    MUTEX_GUARD(guard, &a->mutex);
    for (size_t i = 0; i < a->spec->volume_count && !a->busy[0] && a->state == APPLICATION_RUNNING; i++) {
        const struct app_volume *v = &a->spec->volumes[i];
        const struct attached *at = &a->volumes[i];
        if (at->mounted && (mounts_source(v->mount_path, source, sizeof source) < 0 || strcmp(source, at->device) != 0))
            json_array_append_new(list, json_sprintf_lossy("volume %s was unmounted from %s by somebody else: what is written there is not "
                                                     "protected; mount %s %s",
                                                     v->name, v->mount_path, at->device, v->mount_path));
    }
}

static json_t *alarms_json(struct application *a, const json_t *engine, bool operation)
{
    char text[512];
    json_t *list = json_deep_copy(json_object_get(engine, "alarms"));
    if (!list)
        list = json_array();
    if (!operation && rewind_is_unfinished(a))
        json_array_append_new(
            list,
            json_string(
                "a rewind was interrupted: it is carried on when the engine answers; until then volumes "
                "that may have been rewound are not mounted"));
    if (!operation)
        add_unmounted(a, list);
    MUTEX_GUARD(guard, &a->mutex);
    manifests_alarm(a->manifests, text, sizeof text);
    if (text[0])
        json_array_append_new(list, json_string_lossy(text));
    if (a->policy_lost[0] && a->state == APPLICATION_RUNNING)
        json_array_append_new(list, json_sprintf_lossy("its policy cannot be used, and it goes on with the settings that it had: %s", a->policy_lost));
    if (a->orphaned)
        json_array_append_new(
            list,
            json_string("its holder was ended: nothing starts the engine again if that ends too; stop the "
                        "workload and restart `tidemark up` at a good moment"));
    return list;
}

/* Its engine does not stay: `text` says why. Or it was killed for want of memory: that is an alarm for an hour. */
static bool is_crash_looping(const struct application *a, unsigned *ret_ends, json_t *alarms, char *text, size_t size)
{
    char log_path[PATH_MAX] = "its log";
    struct error ignored = ERROR_INIT;
    struct holder_ends ends;
    (void)!application_path(a, log_path, &ignored, "engine.log");
    crash_load(a, &ends);
    *ret_ends = ends.ends;
    unsigned memory_mib = crash_engine_memory_mib(a->spec->volume_count);
    uint64_t now = clock_realtime_ns(clock_system());
    if (!crash_is_loop(&ends, now)) {
        if (crash_was_for_memory(&ends, now))
            json_array_append_new(alarms, json_string_lossy(crash_describe_memory(&ends, memory_mib, text, size)));
        return false;
    }
    crash_describe(&ends, memory_mib, log_path, text, size);
    return true;
}

static json_t *application_json(struct application *a)
{
    static const char *const states[] = {"starting", "protected", "stopped", "failed"};
    struct error err = ERROR_INIT;
    char operation[CONTROL_ID_BYTES];
    _cleanup_json_ json_t *engine = NULL;
    int r = http_client_call(a->socket, "GET", "/v1/status", NULL, CONTROL_STATUS_TIMEOUT_MS, &engine, &err);
    operation_running_id(a->control, a->name, operation);
    json_t *alarms = alarms_json(a, engine, operation[0]), *views = views_ids_to_json(a->control, a->name);
    char crashes[512];
    unsigned ends;
    struct filling filling;
    bool fills = filling_get(a, &filling);
    MUTEX_GUARD(guard, &a->mutex);
    bool looping = is_crash_looping(a, &ends, alarms, crashes, sizeof crashes);
    if (looping)
        json_array_append_new(alarms, json_string_lossy(crashes));
    const char *state = states[a->state], *message = a->message[0] ? a->message : NULL;
    const char *told = json_string_value(json_object_get(engine, "state"));
    if (a->state == APPLICATION_RUNNING && r == 0 && told)
        state = told;
    else if (a->state == APPLICATION_RUNNING) {
        state = "starting"; /* its holder is starting it again */
        message = err.message;
    }
    if (looping && r < 0 && a->state != APPLICATION_STOPPED) {
        state = "crash-looping";
        message = crashes;
    }
    json_t *json = json_pack("{s:s, s:s, s:o}", "name", a->name, "state", state, "message", message ? json_string_lossy(message) : json_null());
    for (size_t i = 0; i < sizeof engine_fields / sizeof *engine_fields; i++) {
        json_t *value = json_object_get(engine, engine_fields[i]);
        json_object_set_new(json, engine_fields[i], value ? json_incref(value) : json_null());
    }
    json_t *pid = json_object_get(engine, "pid");
    json_object_set_new(json, "export", json_string(app_export_name(a->spec->export)));
    json_object_set_new(json, "policy", json_string(a->spec->policy));
    json_object_set_new(json, "manifests",
                        a->spec->manifests ? json_string(a->spec->manifests) : json_null());
    json_object_set_new(json, "encryption", key_to_json(a));
    json_object_set_new(json, "engine_pid", pid ? json_incref(pid) : json_null());
    json_object_set_new(json, "restarts", json_integer((json_int_t)a->restarts + (a->spec->export == APP_EXPORT_NBD ? 0 : ends)));
    json_object_set_new(json, "crash_looping", json_boolean(looping));
    json_object_set_new(json, "alarms", alarms);
    json_object_set_new(json, "copied_from", fills ? json_string(filling.source) : json_null());
    json_object_set_new(json, "operation", operation[0] ? json_string(operation) : json_null());
    json_object_set_new(json, "views", views);
    json_object_set_new(json, "volumes", volumes_json(a, engine));
    return json;
}

/* References to all applications, in the order of their names; the caller frees array and references. */
static struct application **all_applications(struct control *control, size_t *ret_count)
{
    size_t count = 0;
    struct application **list = calloc(CONTROL_APPLICATIONS_MAX, sizeof *list);
    MUTEX_GUARD(guard, &control->mutex);
    for (struct application *a = control->applications; list && a && count < CONTROL_APPLICATIONS_MAX;
         a = a->next) {
        a->refs++;
        list[count++] = a;
    }
    *ret_count = count;
    return list;
}

/* Applications that are on disk and not here, until they are applied again. */
static void add_left_out(struct control *control, json_t *list, json_t *warnings)
{
    const char *name;
    json_t *why;
    MUTEX_GUARD(guard, &control->mutex);
    json_object_foreach(control->left_out, name, why)
    {
        json_array_append_new(list, json_pack("{s:s, s:O}", "name", name, "message", why));
        json_array_append_new(
            warnings,
            json_sprintf_lossy("the application %s is left out and not protected: %s; apply its YAML again", name,
                         json_string_value(why)));
    }
}

/* Engines run in the control group of this process, unless somebody moved them. */
static void add_memory_limit(struct control *control, json_t *warnings)
{
    struct cgroup_memory memory;
    char limit[UNITS_TEXT_BYTES];
    size_t count = 0;
    uint64_t needed_mib = 0;
    cgroup_memory("", &memory);
    _cleanup_free_ struct application **all = all_applications(control, &count);
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&all[i]->mutex);
        needed_mib += crash_engine_memory_mib(all[i]->spec->volume_count);
        pthread_mutex_unlock(&all[i]->mutex);
        application_unref(all[i]);
    }
    if (!count)
        needed_mib = crash_engine_memory_mib(1);
    if (memory.limit_bytes < needed_mib << 20)
        json_array_append_new(warnings, json_sprintf("the memory limit of this control group, %s, is too small: the engines (%zu) need up to "
                                                     "%llu MiB, and are killed again and again without; raise the limit (MemoryMax= of the "
                                                     "service, resources.limits.memory of the pod)",
                                                     units_format_bytes(memory.limit_bytes, limit), count ? count : 1,
                                                     (unsigned long long)needed_mib));
}

int status_to_json(struct control *control, const char *application, json_t **ret, struct error *err)
{
    size_t count = 0;
    json_t *list = json_array();
    if (application) {
        _cleanup_application_ struct application *a = application_find(control, application, err);
        if (!a) {
            json_decref(list);
            return err->code;
        }
        json_array_append_new(list, application_json(a));
    } else {
        _cleanup_free_ struct application **all = all_applications(control, &count);
        for (size_t i = 0; i < count; i++) {
            json_array_append_new(list, application_json(all[i]));
            application_unref(all[i]);
        }
    }
    json_t *warnings = json_array();
    if (control->resend == CONTROL_RESEND_NO)
        json_array_append_new(warnings, json_string(CONTROL_WARNING_RESEND));
    json_t *left_out = json_array();
    add_left_out(control, left_out, warnings);
    add_memory_limit(control, warnings);
    *ret = json_pack("{s:s, s:i, s:s, s:o, s:o, s:o}", "version", TIDEMARK_VERSION, "pid", (int)getpid(),
                     "state_directory", control->state_directory, "warnings", warnings, "left_out", left_out,
                     "applications", list);
    return 0;
}
