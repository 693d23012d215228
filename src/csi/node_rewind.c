/* SPDX-License-Identifier: Apache-2.0 */
/* Gates, and putting a stream back to a point under pods that come back by themselves.
 *
 * A rewind is {"id", "to", "state", "target_lsn", "message", "result"} in the stream's gate file; its state
 * is written before it is taken (N1):
 * - waiting: the gate is closed; waits until nothing is published and no call runs (N3)
 * - resolving: staging paths are unmounted; the point becomes an LSN, so that repeating means the same
 * - rewinding: the data plane goes to that LSN
 * - mounting: staging paths are mounted again
 * - succeeded, failed: the gate is open again
 *
 * A failure before `mounting` mounts what was there and opens the gate. With "keep_closed" a rewind that
 * succeeded leaves the gate closed: its caller has more to put back, and opens it. "message" is why it
 * failed, or what it waits for. "waited_ms" and "rewound_ms" are what the steps took: until nothing was
 * published, and from then on. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "csi/node_internal.h"
#include "lib/json.h"

#define LOOK_S 1 /* for what nobody tells: a target that was unmounted by others */
#define ABSENT_S 60u /* the data plane knows what it has before it answers */
#define DEVICES_ABSENT_S 600u /* a node that boots has its pods, and with them the devices of a store, again */
#define REWINDS_MAX 64u

struct rewind {
    struct csi_node *node;
    char stream[CSI_HANDLE_BYTES];
    json_t *gate;      /* owned by the thread */
    uint64_t since_ns; /* boottime: of the launch, then of the last step that is measured */
    uint64_t devices_since_ns; /* boottime: since when a store's devices are waited for; 0: they are not */
    struct node_volume *volumes; /* of take_volumes */
    size_t count;
};

static json_t *state_of(const json_t *gate)
{
    return json_object_get(gate, "rewind");
}

static bool is_running(const json_t *rewind)
{
    const char *state = json_text(rewind, "state");
    return *state && strcmp(state, "succeeded") != 0 && strcmp(state, "failed") != 0;
}

static int set_state(struct rewind *w, const char *state, bool closed, struct error *err)
{
    MUTEX_GUARD(guard, &w->node->mutex);
    json_object_set_new(state_of(w->gate), "state", json_string(state));
    json_object_set_new(w->gate, "closed", json_boolean(closed));
    int r = node_gate_save(w->node, w->stream, w->gate, err);
    pthread_cond_broadcast(&w->node->changed);
    return r;
}

/* What has passed since the launch or the last call. A rewind that is carried on counts from there. */
static void note_duration(struct rewind *w, const char *key)
{
    uint64_t now_ns = clock_boottime_ns(clock_system());
    json_object_set_new(state_of(w->gate), key,
                        json_integer((json_int_t)((now_ns - w->since_ns) / NS_PER_MS)));
    w->since_ns = now_ns;
}

/* ---- steps ---- */

static bool is_free(struct rewind *w, const struct node_volume *volumes, size_t count)
{
    size_t published = 0;
    for (size_t i = 0; i < count; i++)
        published += node_volume_published(&volumes[i]);
    MUTEX_GUARD(guard, &w->node->mutex);
    return !published && !node_stream_busy(w->node, w->stream);
}

/* Waits for N3 and begins each staged volume, so that nobody unstages it meanwhile. -ECANCELED when stopping.
 */
static int take_volumes(struct rewind *w, struct error *err)
{
    struct csi_node *node = w->node;
    while (!atomic_load(&node->stopping)) {
        struct node_volume *volumes = NULL;
        struct error second = ERROR_INIT;
        size_t count = 0, begun = 0;
        int r = node_volumes_list(node, w->stream, &volumes, &count, err);
        if (r < 0)
            return r;
        if (is_free(w, volumes, count)) {
            while (begun < count && node_begin(node, volumes[begun].handle, w->stream, &second) == 0)
                begun++;
            if (begun == count) {
                w->volumes = volumes;
                w->count = count;
                return 0;
            }
            while (begun-- > 0)
                node_end(node, volumes[begun].handle);
        }
        node_volumes_free(volumes, count);
        struct timespec until;
        MUTEX_GUARD(guard, &node->mutex);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += LOOK_S;
        pthread_cond_timedwait(&node->changed, &node->mutex, &until);
    }
    return error_set(err, -ECANCELED,
                     "the node agent is stopping; the rewind of %s goes on with its next start", w->stream);
}

static int unmount_all(const struct rewind *w, struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < w->count && r == 0; i++)
        r = node_mount_unstage(&w->volumes[i], err);
    return r;
}

/* What is mounted already stays so. */
static int mount_all(struct rewind *w, struct error *err)
{
    char device[NODE_DEVICE_BYTES];
    int r = 0;
    for (size_t i = 0; i < w->count && r == 0; i++) {
        const struct node_volume *v = &w->volumes[i];
        if (v->block)
            continue;
        r = node_stream_device(w->node, w->stream, v->handle, device, err);
        if (r == 0)
            r = node_mount_stage(w->node, v, device, false, err);
    }
    return r;
}

/* Follows an operation of the data plane to its end. */
static int follow(struct rewind *w, const json_t *operation, json_t **ret_result, struct error *err)
{
    char path[128];
    _cleanup_json_ json_t *now = json_incref((json_t *)(uintptr_t)operation);
    while (strcmp(json_text(now, "state"), "running") == 0) {
        _cleanup_json_ json_t *answer = NULL;
        snprintf(path, sizeof path, "/v1/operations/%.60s?wait_ms=5000", json_text(now, "id"));
        int r = node_data_call(w->node, "GET", path, NULL, &answer, err);
        if (r < 0)
            return r;
        json_decref(now);
        now = json_incref(json_object_get(answer, "operation"));
    }
    if (strcmp(json_text(now, "state"), "succeeded") != 0)
        return error_set(err, -EIO, "%s", json_text(json_object_get(now, "error"), "message"));
    *ret_result = json_incref(json_object_get(now, "result"));
    return 0;
}

static int call_rewind(struct rewind *w, const char *to, bool dry_run, json_t **ret, struct error *err)
{
    char path[64 + CSI_HANDLE_BYTES];
    _cleanup_json_ json_t *body =
        to ? json_pack("{s:s, s:b}", "to", to, "dry_run", dry_run) : json_pack("{s:b}", "dry_run", dry_run);
    snprintf(path, sizeof path, "/v1/applications/%s/%s", w->stream, to ? "rewind" : "undo");
    return node_data_call(w->node, "POST", path, body, ret, err);
}

/* The point as an LSN, once. */
static int resolve(struct rewind *w, struct error *err)
{
    _cleanup_json_ json_t *answer = NULL;
    uint64_t lsn;
    json_t *state = state_of(w->gate);
    if (json_is_integer(json_object_get(state, "target_lsn")))
        return 0;
    int r = call_rewind(w, json_string_value(json_object_get(state, "to")), true, &answer, err);
    if (r == 0)
        r = json_get_u64(json_object_get(answer, "plan"), "target_lsn", &lsn, err);
    if (r == 0)
        json_object_set_new(state, "target_lsn", json_u64(lsn));
    return r;
}

static int go_back(struct rewind *w, struct error *err)
{
    char to[32];
    _cleanup_json_ json_t *answer = NULL, *result = NULL;
    json_t *state = state_of(w->gate);
    snprintf(to, sizeof to, "lsn:%lld", (long long)json_integer_value(json_object_get(state, "target_lsn")));
    int r = call_rewind(w, to, false, &answer, err);
    if (r == 0)
        r = follow(w, json_object_get(answer, "operation"), &result, err);
    if (r == 0)
        json_object_set(state, "result", result);
    return r;
}

/* What it waits for, for whoever asks (the controller tells it in the Recovery); NULL: nothing any more. */
static void tell(struct rewind *w, const char *why)
{
    struct error err = ERROR_INIT;
    json_t *state = state_of(w->gate);
    if (strcmp(json_text(state, "message"), why ? why : "") == 0)
        return;
    if (why)
        log_info(w->node->options.log, "stream %s: %s; trying again", w->stream, why);
    MUTEX_GUARD(guard, &w->node->mutex);
    json_object_set_new(state, "message", why ? json_string_lossy(why) : json_null());
    if (node_gate_save(w->node, w->stream, w->gate, &err) < 0)
        log_warning(w->node->options.log, "stream %s: %s", w->stream, err.message);
}

typedef int step_fn(struct rewind *w, struct error *err);

/* A stream of backing class is open no more after a reboot, and no pod that would open it is let in. -ENOMEDIUM: its devices are not there
 * (yet), as any mistake about them after a boot may mean. */
static int with_store(struct rewind *w, step_fn *step, struct error *err)
{
    int r = step(w, err);
    if (r != -ENOENT || !node_store_known(w->node, w->stream))
        return r;
    *err = ERROR_INIT;
    r = node_store_reopen(w->node, w->stream, err);
    if (r == 0) {
        w->devices_since_ns = 0;
        return step(w, err);
    }
    if (!w->devices_since_ns)
        w->devices_since_ns = clock_boottime_ns(clock_system());
    err->code = -ENOMEDIUM;
    return err->code;
}

/* A step that may find the data plane away. What that cannot do now is tried again: it is restarted, or another operation of the stream ends. One that answers
 * and does not have the stream (after a restart: the operation) may have been about to get it: for `absent_s`, not longer. */
static int patiently(struct rewind *w, step_fn *step, unsigned absent_s, struct error *err)
{
    for (uint64_t absent_ns = 0 /* since when */;;) {
        int r = with_store(w, step, err);
        bool devices = r == -ENOMEDIUM;
        if (atomic_load(&w->node->stopping) && r < 0)
            return -ECANCELED;
        if (r == 0)
            tell(w, NULL);
        if (r != -EAGAIN && r != -EBUSY && !devices && (r != -ENOENT || !absent_s))
            return r;
        uint64_t now_ns = clock_boottime_ns(clock_system());
        absent_ns = r != -ENOENT ? 0 : absent_ns ? absent_ns : now_ns;
        uint64_t since_ns = devices ? w->devices_since_ns : absent_ns;
        unsigned limit_s = devices ? DEVICES_ABSENT_S : absent_s;
        if (since_ns && now_ns - since_ns >= limit_s * NS_PER_SECOND)
            return error_context(err, "the data plane of node %s has not had the stream for %u s", w->node->options.node_name, limit_s);
        tell(w, err->message);
        *err = ERROR_INIT;
        nanosleep(&(struct timespec){.tv_sec = LOOK_S}, NULL);
    }
}

/* From the closed gate on, up to `mounting`. */
static int put_back(struct rewind *w, struct error *err)
{
    int r = strcmp(json_text(state_of(w->gate), "state"), "rewinding") == 0 ? 0 : set_state(w, "resolving", true, err);
    if (r == 0)
        r = unmount_all(w, err);
    if (r == 0) /* what says that there is no such point is not asked twice */
        r = patiently(w, resolve, 0, err);
    if (r == 0)
        r = set_state(w, "rewinding", true, err);
    if (r == 0)
        r = patiently(w, go_back, ABSENT_S, err);
    return r == 0 ? set_state(w, "mounting", true, err) : r;
}

static int run_steps(struct rewind *w, struct error *err)
{
    struct error second = ERROR_INIT;
    int r = take_volumes(w, err);
    if (r < 0)
        return r;
    note_duration(w, "waited_ms");
    if (strcmp(json_text(state_of(w->gate), "state"), "mounting") != 0)
        r = put_back(w, err);
    if (r != -ECANCELED) {
        int mounted = patiently(w, mount_all, 0, r < 0 ? &second : err);
        if (mounted < 0 && mounted != -ECANCELED && r < 0)
            log_error(w->node->options.log, "stream %s: %s", w->stream, second.message);
        r = r < 0 && mounted != -ECANCELED ? r : mounted;
    }
    for (size_t i = 0; i < w->count; i++)
        node_end(w->node, w->volumes[i].handle);
    node_volumes_free(w->volumes, w->count);
    return r;
}

static void *rewind_main(void *context)
{
    struct rewind *w = context;
    struct csi_node *node = w->node;
    struct error err = ERROR_INIT, second = ERROR_INIT;
    int r = run_steps(w, &err);
    if (r == 0)
        log_info(node->options.log, "stream %s: rewound", w->stream);
    else if (r != -ECANCELED) {
        log_error(node->options.log, "stream %s: the rewind has failed: %s", w->stream, err.message);
        json_object_set_new(state_of(w->gate), "message", json_string(err.message));
    }
    bool keep_closed = r == 0 && json_is_true(json_object_get(state_of(w->gate), "keep_closed"));
    note_duration(w, "rewound_ms");
    if (r != -ECANCELED && set_state(w, r == 0 ? "succeeded" : "failed", keep_closed, &second) < 0)
        log_error(node->options.log, "stream %s: %s", w->stream, second.message);
    json_decref(w->gate);
    free(w);
    MUTEX_GUARD(guard, &node->mutex);
    node->rewinds--;
    pthread_cond_broadcast(&node->changed);
    return NULL;
}

/* Takes the gate. Mutex held. */
static int launch(struct csi_node *node, const char *stream, json_t *gate, struct error *err)
{
    pthread_t thread;
    struct rewind *w = node->rewinds < REWINDS_MAX ? calloc(1, sizeof *w) : NULL;
    if (!w)
        return error_set(err, -EAGAIN, "too many rewinds at once; try again later");
    w->node = node;
    snprintf(w->stream, sizeof w->stream, "%s", stream);
    w->gate = json_deep_copy(gate);
    w->since_ns = clock_boottime_ns(clock_system());
    int r = w->gate ? thread_start(&thread, "rewind", rewind_main, w, err)
                    : error_set(err, -ENOMEM, "out of memory");
    if (r < 0) {
        json_decref(w->gate);
        free(w);
        return r;
    }
    node->rewinds++;
    pthread_detach(thread);
    return 0;
}

int node_rewind_start(struct csi_node *node, const char *stream, const char *id, const char *to,
                      bool keep_closed, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *gate = NULL;
    MUTEX_GUARD(guard, &node->mutex);
    int r = node_gate_load(node, stream, &gate, err);
    if (r < 0)
        return r;
    const json_t *there = state_of(gate);
    if (*id && strcmp(json_text(there, "id"), id) == 0) {
        *ret = json_incref(gate);
        return 0;
    }
    if (is_running(there))
        return error_set(err, -EBUSY,
                         "stream %s is being put back to %s already (%s); wait until that has ended", stream,
                         json_text(there, "to"), json_text(there, "id"));
    json_object_set_new(gate, "closed", json_true());
    json_object_set_new(gate, "rewind",
                        json_pack("{s:s, s:s?, s:s, s:b, s:n, s:n, s:n}", "id", id, "to", to, "state",
                                  "waiting", "keep_closed", (int)keep_closed, "target_lsn", "message",
                                  "result"));
    r = node_gate_save(node, stream, gate, err);
    if (r == 0)
        r = launch(node, stream, gate, err);
    if (r == 0)
        *ret = json_incref(gate);
    return r;
}

int node_gate_set(struct csi_node *node, const char *stream, bool closed, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *gate = NULL;
    MUTEX_GUARD(guard, &node->mutex);
    int r = node_gate_load(node, stream, &gate, err);
    if (r == 0 && is_running(state_of(gate)))
        r = error_set(err, -EBUSY,
                      "the gate of stream %s is closed by a rewind (%s); it opens when that has ended",
                      stream, json_text(state_of(gate), "id"));
    if (r == 0 && json_is_true(json_object_get(gate, "closed")) != closed) {
        json_object_set_new(gate, "closed", json_boolean(closed));
        r = node_gate_save(node, stream, gate, err);
    }
    if (r == 0)
        *ret = json_incref(gate);
    pthread_cond_broadcast(&node->changed);
    return r;
}

int node_rewinds_continue(struct csi_node *node, struct error *err)
{
    char path[PATH_MAX], stream[CSI_HANDLE_BYTES];
    snprintf(path, sizeof path, "%.*s/gates", PATH_MAX - 128, node->directory);
    _cleanup_closedir_ DIR *dir = opendir(path);
    if (!dir)
        return error_errno(err, -errno, "cannot read %s", path);
    for (const struct dirent *entry; (entry = readdir(dir));) {
        _cleanup_json_ json_t *gate = NULL;
        struct error one = ERROR_INIT;
        const char *dot = strrchr(entry->d_name, '.');
        if (entry->d_name[0] == '.' || !dot || strcmp(dot, ".json") != 0 ||
            dot - entry->d_name >= CSI_HANDLE_BYTES)
            continue;
        snprintf(stream, sizeof stream, "%.*s", (int)(dot - entry->d_name), entry->d_name);
        MUTEX_GUARD(guard, &node->mutex);
        int r = node_gate_load(node, stream, &gate, &one);
        if (r == 0 && is_running(state_of(gate)))
            r = launch(node, stream, gate, &one);
        if (r < 0)
            log_error(node->options.log, "stream %s: an interrupted rewind cannot go on: %s", stream,
                      one.message);
    }
    return 0;
}

void node_rewinds_stop(struct csi_node *node)
{
    MUTEX_GUARD(guard, &node->mutex);
    atomic_store(&node->stopping, true);
    pthread_cond_broadcast(&node->changed);
    while (node->rewinds)
        pthread_cond_wait(&node->changed, &node->mutex);
}
