/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/schedule.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/units.h"
#include "controller/checkpoint.h"
#include "lib/json.h"

/* ---- what the policy says ---- */

static int parse_when(const json_t *spec, const char *zones, struct schedule *s, struct error *err)
{
    const char *cron = json_text(spec, "schedule"), *interval = json_text(spec, "interval"),
               *zone = json_text(spec, "timeZone");
    uint64_t ns = 0;
    int r;
    if (!*cron == !*interval)
        return error_set(err, -EINVAL, "one of schedule and interval is needed%s", *cron ? ", not both" : "");
    if (*interval) {
        if (*zone)
            return error_set(err, -EINVAL, "timeZone goes with schedule, not with interval");
        if ((r = units_parse_duration(interval, &ns, err)) < 0)
            return error_context(err, "interval");
        s->interval_s = (int64_t)(ns / NS_PER_SECOND);
        if (s->interval_s < SCHEDULE_INTERVAL_MIN_S)
            return error_set(err, -EINVAL, "interval %s: at least 1m", interval);
        snprintf(s->text, sizeof s->text, "every %.60s", interval);
        return 0;
    }
    if ((r = cron_parse(cron, &s->cron, err)) < 0)
        return r;
    if (*zone && (r = time_zone_load(zones, zone, &s->zone, err)) < 0) {
        err->code = r == -ENOENT || r == -EBADMSG ? -EINVAL : r;
        return error_context(err, "timeZone");
    }
    snprintf(s->text, sizeof s->text, "%.100s %.64s", cron, *zone ? zone : "UTC");
    return 0;
}

int schedule_parse(const json_t *spec, const char *zones, struct schedule *ret, struct error *err)
{
    struct schedule s = {.keep_count = SCHEDULE_KEEP_COUNT, .consistent = true};
    const json_t *keep = json_object_get(spec, "keep"), *count = json_object_get(keep, "count");
    const char *duration = json_text(keep, "duration");
    uint64_t ns;
    int r = parse_when(spec, zones, &s, err);
    if (json_is_boolean(json_object_get(spec, "consistent")))
        s.consistent = json_is_true(json_object_get(spec, "consistent"));
    if (*duration) {
        if (r == 0 && (r = units_parse_duration(duration, &ns, err)) < 0)
            r = error_context(err, "keep.duration");
        s.keep_count = 0;
        s.keep_for_s = r == 0 ? ns / NS_PER_SECOND : 0;
    }
    if (count)
        s.keep_count = (unsigned)json_integer_value(count);
    if (r < 0) {
        schedule_release(&s);
        return r;
    }
    *ret = s;
    return 0;
}

void schedule_release(struct schedule *s)
{
    time_zone_free(s->zone);
    s->zone = NULL;
}

/* ---- when ---- */

static int64_t next_after(const struct schedule *s, int64_t after_s)
{
    return s->interval_s ? after_s + s->interval_s : cron_next(&s->cron, s->zone, after_s);
}

static int64_t parse_time(const char *text)
{
    struct error ignored = ERROR_INIT;
    uint64_t ns;
    return *text && clock_parse_rfc3339(text, &ns, &ignored) == 0 ? (int64_t)(ns / NS_PER_SECOND) : 0;
}

/* The last time up to now, of such as were missed for longer than can be counted. */
static int64_t last_before(const struct schedule *s, int64_t now_s)
{
    static const int64_t windows_s[] = {3600, 86400, 32 * 86400ll, 400 * 86400ll, CRON_YEARS * 366 * 86400ll};
    for (size_t i = 0; i < sizeof windows_s / sizeof *windows_s; i++) {
        int64_t last_s = 0;
        for (int64_t t = cron_next(&s->cron, s->zone, now_s - windows_s[i]); t && t <= now_s;
             t = cron_next(&s->cron, s->zone, t))
            last_s = t;
        if (last_s)
            return last_s;
    }
    return now_s;
}

void schedule_decide(const struct schedule *s, const json_t *status, int64_t now_s,
                     struct schedule_decision *ret)
{
    int64_t next_s = parse_time(json_text(status, "nextTime")), coming_s = next_after(s, now_s);
    *ret = (struct schedule_decision){.next_s = coming_s};
    if (!next_s || strcmp(json_text(status, "schedule"), s->text) != 0) /* T3 */
        return;
    if (next_s > now_s) { /* a clock that was put back makes it no later than it is for a new schedule */
        ret->next_s = coming_s && coming_s < next_s ? coming_s : next_s;
        return;
    }
    if (s->interval_s) {
        ret->missed = (uint64_t)((now_s - next_s) / s->interval_s);
        next_s += (int64_t)ret->missed * s->interval_s;
        ret->next_s = next_s + s->interval_s;
    } else {
        for (int64_t t; ret->missed < SCHEDULE_STEPS_MAX && (t = next_after(s, next_s)) && t <= now_s;
             next_s = t)
            ret->missed++;
        if (ret->missed == SCHEDULE_STEPS_MAX)
            next_s = last_before(s, now_s);
    }
    ret->due_s = next_s;
}

void schedule_time(int64_t s, char text[32])
{
    char whole[CLOCK_TEXT_BYTES];
    clock_format_rfc3339((uint64_t)s * NS_PER_SECOND, whole);
    snprintf(text, 32, "%.19sZ", whole);
}

void schedule_name(const char *application, int64_t due_s, char name[SCHEDULE_NAME_BYTES])
{
    struct tm t;
    time_t time = (time_t)due_s;
    gmtime_r(&time, &t);
    snprintf(name, SCHEDULE_NAME_BYTES, "%.60s-%04d%02d%02d-%02d%02d%02d", application, t.tm_year + 1900,
             t.tm_mon + 1, t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec);
}

/* ---- those that are there ---- */

static bool is_of(const json_t *checkpoint, const char *application)
{
    return strcmp(json_text(json_object_get(checkpoint, "spec"), "application"), application) == 0;
}

static bool is_scheduled(const json_t *checkpoint)
{
    const json_t *labels = json_object_get(json_object_get(checkpoint, "metadata"), "labels");
    return strcmp(json_text(labels, SCHEDULE_LABEL), "true") == 0;
}

static const char *created(const json_t *checkpoint)
{
    return json_text(json_object_get(checkpoint, "metadata"), "creationTimestamp");
}

const json_t *schedule_running(const json_t *checkpoints, const char *application)
{
    size_t i;
    json_t *one;
    json_array_foreach(checkpoints, i, one)
    {
        if (is_of(one, application) && !checkpoint_has_ended(one))
            return one;
    }
    return NULL;
}

/* Newest first; by name in the same second. */
static int compare(const void *a, const void *b)
{
    const json_t *x = *(const json_t *const *)a, *y = *(const json_t *const *)b;
    int order = strcmp(created(y), created(x));
    return order ? order
                 : strcmp(json_text(json_object_get(y, "metadata"), "name"),
                          json_text(json_object_get(x, "metadata"), "name"));
}

const json_t *schedule_latest(const json_t *checkpoints, const char *application)
{
    const json_t *best = NULL;
    size_t i;
    json_t *one;
    json_array_foreach(checkpoints, i, one)
    {
        const json_t *it = one;
        if (is_of(one, application) && is_scheduled(one) && checkpoint_has_ended(one) &&
            (!best || compare(&it, &best) < 0))
            best = one;
    }
    return best;
}

int schedule_expired(const struct schedule *s, const json_t *checkpoints, const char *application,
                     int64_t now_s, json_t **ret, int64_t *ret_next_s, struct error *err)
{
    size_t count = 0, i, good = 0, failed = 0;
    json_t **sorted = calloc(json_array_size(checkpoints) + 1, sizeof *sorted), *one, *out = json_array();
    *ret_next_s = 0;
    json_array_foreach(checkpoints, i, one)
    {
        if (sorted && is_of(one, application) && is_scheduled(one) && checkpoint_has_ended(one)) /* T4 */
            sorted[count++] = one;
    }
    if (count)
        qsort(sorted, count, sizeof *sorted, compare);
    for (i = 0; i < count; i++) {
        bool ready = strcmp(json_text(json_object_get(sorted[i], "status"), "phase"), "Ready") == 0;
        int64_t until = parse_time(created(sorted[i])) + (int64_t)s->keep_for_s;
        bool many = ready ? s->keep_count && ++good > s->keep_count : ++failed > SCHEDULE_KEEP_FAILED;
        bool old = s->keep_for_s && until <= now_s;
        if (many || old)
            json_array_append(out, sorted[i]);
        else if (s->keep_for_s && (!*ret_next_s || until < *ret_next_s))
            *ret_next_s = until;
    }
    bool memory = sorted && out;
    free(sorted);
    if (!memory) {
        json_decref(out);
        return error_set(err, -ENOMEM, "out of memory");
    }
    *ret = out;
    return 0;
}
