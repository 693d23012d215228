/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "lib/json.h"

/* A file in the container says that something is held: whoever removes it thaws, and nobody else. */
#define DIRECTORIES "/tmp /dev/shm /run /var/tmp"

char *checkpoint_pre_script(const char *id, const char *mounts, const char *pre, const char *post,
                            unsigned seconds)
{
    char *ret = NULL;
    int n = asprintf(
        &ret,
        "for d in " DIRECTORIES "; do [ -d \"$d\" ] && [ -w \"$d\" ] && break; d=; done\n"
        "[ -n \"$d\" ] || exit %d\n"
        "TIDEMARK_HOLD=$d/.tidemark-hold-%s TIDEMARK_MOUNTS='%s'\n"
        "export TIDEMARK_HOLD TIDEMARK_MOUNTS\n"
        ": >\"$TIDEMARK_HOLD\" || exit %d\n"
        "(\n"
        "trap '' HUP\n"
        "n=%u\n"
        "while [ \"$n\" -gt 0 ] && [ -e \"$TIDEMARK_HOLD\" ]; do sleep 1; n=$((n - 1)); done\n"
        "rm \"$TIDEMARK_HOLD\" || exit 0\n"
        "%s\n"
        ") </dev/null >/dev/null 2>&1 &\n"
        "(\n%s\n)\n"
        "status=$?\n"
        /* It took so long that somebody gave up and thawed: what it held since then goes, too. */
        "[ -e \"$TIDEMARK_HOLD\" ] || { (\n%s\n); exit %d; }\n"
        "exit \"$status\"\n",
        CHECKPOINT_NO_ROOM, id, mounts, CHECKPOINT_NO_ROOM, seconds, post, pre, post, CHECKPOINT_NOT_HELD);
    return n < 0 ? NULL : ret;
}

/* When nobody holds, it is thawed once more all the same: a container that was started anew has lost file and
 * timer, but not a frozen file system. */
char *checkpoint_post_script(const char *id, const char *mounts, const char *post)
{
    char *ret = NULL;
    int n = asprintf(&ret,
                     "held=\n"
                     "for d in " DIRECTORIES "; do rm \"$d/.tidemark-hold-%s\" 2>/dev/null && held=1; done\n"
                     "TIDEMARK_MOUNTS='%s'; export TIDEMARK_MOUNTS\n"
                     "(\n%s\n)\n"
                     "status=$?\n"
                     "[ -n \"$held\" ] || exit %d\n"
                     "exit \"$status\"\n",
                     id, mounts, post, CHECKPOINT_NOT_HELD);
    return n < 0 ? NULL : ret;
}

/* ---- status ---- */

struct run {
    const struct checkpoint_ops *ops;
    void *context;
    const struct clock *clock;
    json_t *checkpoint, *status;
};

static const char *id_of(const struct run *run)
{
    return json_text(json_object_get(run->checkpoint, "metadata"), "uid");
}

static void now_text(const struct run *run, char text[CLOCK_TEXT_BYTES])
{
    clock_format_rfc3339(clock_realtime_ns(run->clock), text);
    memcpy(text + 19, "Z", 2); /* metav1.Time has whole seconds */
}

static void set_condition(struct run *run, const char *type, bool is, const char *reason, const char *message)
{
    json_t *conditions = json_object_get(run->status, "conditions"), *old;
    char now[CLOCK_TEXT_BYTES];
    size_t i;
    now_text(run, now);
    if (!conditions) {
        conditions = json_array();
        json_object_set_new(run->status, "conditions", conditions);
    }
    json_array_foreach(conditions, i, old)
    {
        if (strcmp(json_text(old, "type"), type) == 0) {
            json_array_remove(conditions, i);
            break;
        }
    }
    json_array_append_new(
        conditions,
        json_pack("{s:s, s:s, s:s, s:o, s:s, s:O?}", "type", type, "status", is ? "True" : "False", "reason",
                  reason, "message", json_string_lossy(message), "lastTransitionTime", now, "observedGeneration",
                  json_object_get(json_object_get(run->checkpoint, "metadata"), "generation")));
}

static int store(struct run *run, const char *phase, struct error *err)
{
    if (json_object_set_new(run->status, "phase", json_string(phase)) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    return run->ops->write_status(run->context, run->checkpoint, err);
}

static int fail(struct run *run, const char *reason, const char *message, struct error *err)
{
    set_condition(run, "Ready", false, reason, message);
    if (json_is_true(json_object_get(json_object_get(run->checkpoint, "spec"), "consistent")))
        set_condition(run, "ApplicationConsistent", false, reason, message);
    return store(run, "Failed", err);
}

bool checkpoint_has_ended(const json_t *checkpoint)
{
    const char *phase = json_text(json_object_get(checkpoint, "status"), "phase");
    return strcmp(phase, "Ready") == 0 || strcmp(phase, "Failed") == 0;
}

/* An error of the way to the server rather than of what was asked. */
static bool passes(int code)
{
    return code == -ECONNREFUSED || code == -ECONNRESET || code == -EHOSTUNREACH || code == -ETIMEDOUT ||
           code == -ECANCELED || code == -EAGAIN || code == -ENOMEM || code == -EBUSY;
}

/* ---- freezing ---- */

static void set_state(json_t *hook, const char *state, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void set_state(json_t *hook, const char *state, const char *format, ...)
{
    char message[CHECKPOINT_MESSAGE_BYTES];
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    json_object_set_new(hook, "state", json_string(state));
    /* What a command prints may be cut in the middle of a character. */
    json_t *text = json_string_lossy(message);
    json_object_set_new(hook, "message", text ? text : json_string("its output is no text"));
}

/* C1: the targets, in status, before anything is run. */
static int note_targets(struct run *run, const json_t *targets, struct error *err)
{
    json_t *hooks = json_array(), *target;
    char thaw_by[CLOCK_TEXT_BYTES];
    uint64_t longest_ms = 0;
    size_t i;
    json_array_foreach(targets, i, target)
    {
        uint64_t ms = (uint64_t)json_integer_value(json_object_get(target, "timeoutMs"));
        longest_ms += ms; /* one after the other */
        json_array_append_new(hooks, json_pack("{s:s, s:s, s:s, s:s}", "hook", json_text(target, "hook"), "pod",
                                               json_text(target, "pod"), "container",
                                               json_text(target, "container"), "state", "Pending"));
    }
    clock_format_rfc3339(clock_realtime_ns(run->clock) + (longest_ms + CHECKPOINT_TAG_MS) * NS_PER_MS,
                         thaw_by);
    memcpy(thaw_by + 19, "Z", 2);
    if (json_object_set_new(run->status, "hooks", hooks) < 0 ||
        json_object_set_new(run->status, "thawBy", json_string(thaw_by)) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    return store(run, "Freezing", err);
}

static unsigned seconds_to_thaw(const struct run *run)
{
    struct error unused = ERROR_INIT;
    uint64_t by = 0, now = clock_realtime_ns(run->clock);
    if (clock_parse_rfc3339(json_text(run->status, "thawBy"), &by, &unused) < 0 || by <= now)
        return 1;
    return (unsigned)((by - now) / NS_PER_SECOND) + 1;
}

/* False: this target refused; the message stands in its state. */
static bool freeze(struct run *run, const json_t *target, json_t *hook)
{
    struct error err = ERROR_INIT;
    _cleanup_free_ char *output = NULL;
    int status = 0;
    _cleanup_free_ char *script =
        checkpoint_pre_script(id_of(run), json_text(target, "mounts"), json_text(target, "pre"),
                              json_text(target, "post"), seconds_to_thaw(run));
    unsigned timeout_ms = (unsigned)json_integer_value(json_object_get(target, "timeoutMs"));
    int r = script ? run->ops->run(run->context, run->checkpoint, target, script, timeout_ms, &status,
                                   &output, &err)
                   : error_set(&err, -ENOMEM, "out of memory");
    if (r < 0)
        set_state(hook, "PreFailed", "the command before the checkpoint could not be run: %s", err.message);
    else if (status == CHECKPOINT_NO_ROOM)
        set_state(hook, "PreFailed",
                  "the container can write to none of " DIRECTORIES ": mount an emptyDir at /tmp");
    else if (status != 0)
        set_state(hook, "PreFailed", "the command before the checkpoint ended with %d: %s", status,
                  output ? output : "");
    else
        set_state(hook, "Held", "%s", "");
    return r == 0 && status == 0;
}

/* ---- thawing ---- */

static const json_t *find_target(const json_t *targets, const json_t *hook)
{
    size_t i;
    json_t *target;
    json_array_foreach(targets, i, target)
    {
        if (json_equal(json_object_get(target, "hook"), json_object_get(hook, "hook")) &&
            json_equal(json_object_get(target, "pod"), json_object_get(hook, "pod")) &&
            json_equal(json_object_get(target, "container"), json_object_get(hook, "container")))
            return target;
    }
    return NULL;
}

static bool is_over(const struct run *run)
{
    struct error unused = ERROR_INIT;
    uint64_t by = 0;
    return clock_parse_rfc3339(json_text(run->status, "thawBy"), &by, &unused) < 0 ||
           clock_realtime_ns(run->clock) > by + CHECKPOINT_GIVE_UP_MS * NS_PER_MS;
}

/* One target. -EAGAIN: it could not be reached, to be tried again. */
static int thaw(struct run *run, const json_t *target, json_t *hook, struct error *err)
{
    _cleanup_free_ char *output = NULL, *script = NULL;
    bool was_held = strcmp(json_text(hook, "state"), "Held") == 0;
    int status = 0;
    if (!target) {
        set_state(hook, "Gone", "the pod runs no more");
        return 0;
    }
    script = checkpoint_post_script(id_of(run), json_text(target, "mounts"), json_text(target, "post"));
    int r = script ? run->ops->run(run->context, run->checkpoint, target, script, CHECKPOINT_POST_MS, &status,
                                   &output, err)
                   : error_set(err, -ENOMEM, "out of memory");
    if (r < 0 && !is_over(run))
        return passes(r) ? r
                         : error_set(err, -EAGAIN, "%s", "a command after the checkpoint could not be run");
    if (r < 0)
        set_state(hook, "ThawFailed",
                  "the command after the checkpoint could not be run; its timer thaws it: %s", err->message);
    else if (status == CHECKPOINT_NOT_HELD && was_held)
        set_state(hook, "ThawedEarly", "its timer had thawed it before: give the hook a longer timeout");
    else if (status != 0 && status != CHECKPOINT_NOT_HELD)
        set_state(hook, "ThawFailed", "the command after the checkpoint ended with %d: %s", status,
                  output ? output : "");
    else if (status == 0 && strcmp(json_text(hook, "state"), "PreFailed") != 0)
        set_state(hook, "Thawed", "%s", "");
    return 0;
}

static bool is_thawed(const json_t *hook)
{
    static const char *const ends[] = {"Thawed", "ThawedEarly", "ThawFailed", "Gone", "NotRun"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (strcmp(json_text(hook, "state"), ends[i]) == 0)
            return true;
    return false;
}

/* C4: all of them, in reverse order. */
static int thaw_all(struct run *run, struct error *err)
{
    json_t *hooks = json_object_get(run->status, "hooks");
    _cleanup_json_ json_t *targets = NULL;
    int r = 0, first = 0;
    struct error one = ERROR_INIT;
    if (json_array_size(hooks) == 0)
        return 0;
    r = run->ops->targets(run->context, run->checkpoint, &targets, err);
    if (r < 0 && passes(r))
        return r;
    for (size_t i = json_array_size(hooks); i-- > 0;) {
        json_t *hook = json_array_get(hooks, i);
        if (is_thawed(hook))
            continue;
        r = thaw(run, find_target(targets, hook), hook, &one);
        if (r < 0 && first == 0) {
            first = r;
            *err = one;
        }
    }
    return first;
}

/* The first hook that is not as it should be, NULL: all are. */
static const json_t *first_failure(const struct run *run)
{
    size_t i;
    json_t *hook;
    json_array_foreach(json_object_get(run->status, "hooks"), i, hook)
    {
        if (strcmp(json_text(hook, "state"), "Thawed") != 0)
            return hook;
    }
    return NULL;
}

/* What became of it, once everything is thawed. */
static int finish(struct run *run, const char *untagged, struct error *err)
{
    char message[CHECKPOINT_MESSAGE_BYTES + 300];
    const json_t *bad = first_failure(run);
    bool consistent = json_is_true(json_object_get(json_object_get(run->checkpoint, "spec"), "consistent"));
    bool tagged = json_object_get(run->status, "time") != NULL;
    if (consistent && bad) {
        const char *state = json_text(bad, "state");
        snprintf(message, sizeof message, "hook %s in %s/%s: %s%s", json_text(bad, "hook"), json_text(bad, "pod"),
                 json_text(bad, "container"), json_text(bad, "message"),
                 tagged ? "; the moment is tagged, but consistent only as after a power failure" : "");
        return fail(run, strcmp(state, "PreFailed") == 0 ? "HookFailed" : state, message, err);
    }
    if (!tagged)
        return fail(run, "TagFailed", untagged, err);
    if (consistent)
        set_condition(run, "ApplicationConsistent", true, "HooksDone",
                      "the policy's hooks held the application meanwhile");
    set_condition(run, "Ready", true, "Tagged",
                  consistent ? "an application-consistent point" : "consistent as after a power failure");
    return store(run, "Ready", err);
}

/* ---- all of it ---- */

static int set_tag(struct run *run, struct error *err)
{
    _cleanup_json_ json_t *point = NULL;
    int r = run->ops->tag(run->context, run->checkpoint, &point, err);
    return r < 0                                        ? r
           : json_object_update(run->status, point) < 0 ? error_set(err, -ENOMEM, "out of memory")
                                                        : 0;
}

static int begin(struct run *run, struct error *err)
{
    _cleanup_json_ json_t *targets = NULL;
    const char *point = json_text(json_object_get(run->checkpoint, "spec"), "point");
    bool consistent = json_is_true(json_object_get(json_object_get(run->checkpoint, "spec"), "consistent"));
    struct error why = ERROR_INIT;
    bool good = true;
    size_t i;
    json_t *target;
    if (*point && strcmp(point, "latest") != 0)
        return fail(run, "PointNotAvailable",
                    "only the present moment can be tagged: leave spec.point out, or say latest", err);
    int r = consistent ? run->ops->targets(run->context, run->checkpoint, &targets, &why) : 0;
    if (r < 0 && passes(r)) {
        *err = why;
        return r;
    }
    if (r < 0)
        return fail(run, "HookFailed", why.message, err);
    if (consistent && json_array_size(targets) == 0)
        return fail(run, "NoHooks",
                    "the application's policy has no hooks, or none that knows one of its running pods: add "
                    "spec.hooks to "
                    "the policy, or leave spec.consistent out",
                    err);
    if (consistent && (r = note_targets(run, targets, err)) < 0)
        return r;
    json_array_foreach(targets, i, target)
    {
        json_t *hook = json_array_get(json_object_get(run->status, "hooks"), i);
        if (good)
            good = freeze(run, target, hook);
        else
            set_state(hook, "NotRun", "%s", "a hook before it failed");
    }
    r = good ? set_tag(run, &why) : 0; /* C3 */
    const char *untagged = r < 0 ? why.message : "the moment was not tagged";
    r = thaw_all(run, err);
    return r < 0 ? r : finish(run, untagged, err);
}

/* Somebody began and did not end it. What it held is not known: everything is thawed. */
static int resume(struct run *run, struct error *err)
{
    int r = thaw_all(run, err);
    return r < 0 ? r
                 : fail(run, "Interrupted",
                        "the controller ended while the application was held; it was thawed: make another "
                        "checkpoint",
                        err);
}

int checkpoint_advance(const struct checkpoint_ops *ops, void *context, const struct clock *clock,
                       json_t *checkpoint, struct error *err)
{
    struct run run = {ops, context, clock, checkpoint, json_object_get(checkpoint, "status")};
    if (checkpoint_has_ended(checkpoint))
        return 0;
    if (!json_is_object(run.status)) {
        run.status = json_object();
        if (json_object_set_new(checkpoint, "status", run.status) < 0)
            return error_set(err, -ENOMEM, "out of memory");
    }
    return *json_text(run.status, "phase") ? resume(&run, err) : begin(&run, err);
}
