/* SPDX-License-Identifier: Apache-2.0 */
/* A clone that is used before it is copied: how far its nodes are, in status.filling ({"totalBytes", "doneBytes", "leftBytes", "endTime"}; each
 * stream has one of its own) and the condition Filled. The Recovery ends when the clone can be used, whatever is left then; it is
 * followed until nothing is (recovery_follow). The nodes copy by themselves: nothing here is needed for it. */
#include "base/units.h"
#include "controller/recovery_internal.h"

#define FILLED "Filled"

const char *recovery_condition_text(const json_t *recovery, const char *type, const char *field)
{
    size_t i;
    json_t *condition;
    json_array_foreach(json_object_get(json_object_get(recovery, "status"), "conditions"), i, condition)
    {
        if (strcmp(json_text(condition, "type"), type) == 0)
            return json_text(condition, field);
    }
    return "";
}

static bool has_ended(const json_t *filling)
{
    return json_object_get(filling, "endTime") != NULL;
}

bool recovery_is_filling(const json_t *recovery)
{
    const json_t *filling = json_object_get(json_object_get(recovery, "status"), "filling");
    return filling && !has_ended(filling);
}

static void set_bytes(json_t *filling, json_int_t total, json_int_t done)
{
    done = done < total ? done : total;
    json_object_set_new(filling, "totalBytes", json_integer(total));
    json_object_set_new(filling, "doneBytes", json_integer(done));
    json_object_set_new(filling, "leftBytes", json_integer(total - done));
}

static void set_end(const struct recovery_run *run, json_t *filling)
{
    char now[CLOCK_TEXT_BYTES];
    recovery_now(run, now);
    json_object_set_new(filling, "endTime", json_string(now));
}

/* ---- at the beginning ---- */

static const char *first_reason(const struct recovery_run *run)
{
    size_t i;
    json_t *stream;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        const char *why = json_text(stream, "copiedFirst");
        if (*why)
            return why;
    }
    return "it was planned by a controller, or for definitions of the kinds (packaging/crds), of an older release";
}

/* status.filling: the sum of the streams'. NULL when none is filled behind; borrowed. */
static json_t *sum_up(struct recovery_run *run)
{
    json_int_t total = 0, done = 0;
    size_t i, streams = 0, ended = 0;
    json_t *stream, *status = recovery_status(run), *sum = json_object_get(status, "filling");
    json_array_foreach(recovery_streams(run), i, stream)
    {
        const json_t *one = json_object_get(stream, "filling");
        streams += one != NULL;
        ended += has_ended(one);
        total += json_integer_value(json_object_get(one, "totalBytes"));
        done += json_integer_value(json_object_get(one, "doneBytes"));
    }
    if (streams == 0)
        return NULL;
    if (!sum) {
        sum = json_object();
        json_object_set_new(status, "filling", sum);
    }
    set_bytes(sum, total, done);
    if (ended == streams)
        set_end(run, sum);
    return sum;
}

/* `trouble`: "" if there is none. */
static int say_how_far(struct recovery_run *run, const json_t *sum, const char *reason, const char *trouble)
{
    char message[1500], done[UNITS_TEXT_BYTES], total[UNITS_TEXT_BYTES];
    json_int_t left = json_integer_value(json_object_get(sum, "leftBytes"));
    units_format_bytes((uint64_t)json_integer_value(json_object_get(sum, "doneBytes")), done);
    units_format_bytes((uint64_t)json_integer_value(json_object_get(sum, "totalBytes")), total);
    if (has_ended(sum) && left)
        return recovery_condition(run, FILLED, false, "CloneDeleted", "the clone was deleted before it was copied");
    if (has_ended(sum))
        return recovery_condition(run, FILLED, true, FILLED, "the volumes have all of their data, and need nothing of the original");
    snprintf(message, sizeof message,
             "the volumes are used while they are copied: %s of %s are; the history of the original is kept until all is%s%.1000s", done, total,
             *trouble ? "; " : "", trouble);
    return recovery_condition(run, FILLED, false, reason, message);
}

int recovery_begin_filling(struct recovery_run *run, struct error *err)
{
    size_t i;
    json_t *stream;
    char message[1500];
    json_array_foreach(recovery_streams(run), i, stream)
    {
        if (!json_is_true(json_object_get(stream, "atOnce")) || json_object_get(stream, "filling"))
            continue;
        json_t *one = json_object();
        set_bytes(one, json_integer_value(json_object_get(stream, "changedBytes")), 0);
        json_object_set_new(stream, "filling", one);
    }
    const json_t *sum = sum_up(run);
    snprintf(message, sizeof message, "the volumes were copied before they were used: %.1000s", first_reason(run));
    int r = sum ? say_how_far(run, sum, "Filling", "") : recovery_condition(run, FILLED, true, "CopiedFirst", message);
    return r < 0 ? error_set(err, -ENOMEM, "out of memory") : 0;
}

/* ---- how far it is ---- */

/* What is in the way of the copy, and how bad that is. */
struct trouble {
    const char *reason;
    char text[1024];
};

static void add_trouble(struct trouble *t, const char *reason, const char *stream, const char *text)
{
    size_t used = strlen(t->text);
    t->reason = reason;
    snprintf(t->text + used, sizeof t->text - used, "%sstream %.63s: %.500s", used ? "; " : "", stream, text);
}

static void look_at_stream(struct recovery_run *run, json_t *stream, struct trouble *trouble)
{
    json_t *of = json_object_get(stream, "filling");
    _cleanup_json_ json_t *now = NULL;
    struct error err = ERROR_INIT;
    if (!of || has_ended(of))
        return;
    int r = run->c->data->filling(run->c->data_context, stream, &now, &err);
    if (r == -ENOENT) {
        set_end(run, of);
        return;
    }
    if (r < 0) {
        add_trouble(trouble, "NodeUnreachable", json_text(stream, "newStream"), err.message);
        return;
    }
    const char *alarm = json_text(now, "alarm");
    json_int_t total = json_integer_value(json_object_get(now, "total_bytes")), before = json_integer_value(json_object_get(of, "totalBytes"));
    if (json_is_true(json_object_get(now, "done"))) {
        set_bytes(of, before, before);
        set_end(run, of);
    } else if (total > 0) {
        set_bytes(of, total, json_integer_value(json_object_get(now, "done_bytes")));
    }
    if (*alarm)
        add_trouble(trouble, "FillingInTrouble", json_text(stream, "newStream"), alarm);
}

static int percent_of(const json_t *filling)
{
    json_int_t total = json_integer_value(json_object_get(filling, "totalBytes"));
    return total > 0 ? (int)(100 * json_integer_value(json_object_get(filling, "doneBytes")) / total) : 0;
}

int recovery_look_filling(struct recovery_run *run, bool *ret_changed, struct error *err)
{
    struct trouble trouble = {.reason = "Filling"};
    size_t i;
    json_t *stream, *status = recovery_status(run);
    *ret_changed = false;
    if (!run->c->data || !recovery_is_filling(run->recovery))
        return 0;
    int before = percent_of(json_object_get(status, "filling"));
    _cleanup_json_ json_t *old = json_deep_copy(run->recovery);
    json_array_foreach(recovery_streams(run), i, stream) look_at_stream(run, stream, &trouble);
    const json_t *sum = sum_up(run);
    if (!sum || say_how_far(run, sum, trouble.reason, trouble.text) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    const char *text = recovery_condition_text(run->recovery, FILLED, "message");
    *ret_changed = has_ended(sum) || percent_of(sum) != before || strcmp(recovery_condition_text(old, FILLED, "reason"), trouble.reason) != 0 ||
                   (trouble.text[0] && strcmp(recovery_condition_text(old, FILLED, "message"), text) != 0);
    return 0;
}

int recovery_follow(const struct recovery_context *context, const char *namespace, const char *name, bool *ret_goes_on, struct error *err)
{
    struct recovery_run run = {.c = context, .clock = context->clock ? context->clock : clock_system(), .namespace = namespace, .name = name};
    bool changed = false;
    *ret_goes_on = false;
    int r = context->store->read(context->store_context, namespace, name, &run.recovery, err);
    if (r == 0 && context->data && recovery_has_ended(run.recovery)) {
        recovery_remember(&run);
        r = recovery_look_filling(&run, &changed, err);
        if (r == 0 && changed)
            r = recovery_write(&run, err);
        *ret_goes_on = recovery_is_filling(run.recovery);
    }
    json_decref(run.recovery);
    json_decref(run.spec);
    json_decref(run.last_step);
    return r == -ENOENT ? 0 : r;
}
