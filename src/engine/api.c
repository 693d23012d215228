/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket: one function a call, as docs/internals.md has them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "engine/watch_internal.h"
#include "journal/pin.h"

#define POINTS_DEFAULT 50u
#define POINTS_MAX 100000u

struct call {
    struct engine *e;
    const struct http_request *request;
    json_t *body; /* object */
};

json_t *engine_json_time(uint64_t realtime_ns)
{
    char text[CLOCK_TEXT_BYTES];
    return realtime_ns ? json_string(clock_format_rfc3339(realtime_ns, text)) : json_null();
}

static json_t *lsn_json(struct lsn lsn)
{
    return json_u64(lsn.n);
}

static int resolve_text(struct engine *e, const char *text, struct journal_point *ret, struct error *err)
{
    struct point point;
    int r = point_parse(text, &point, err);
    return r < 0 ? r : journal_resolve(e->journal, &point, ret, err);
}

static int resolve_field(struct call *c, const char *field, struct journal_point *ret, struct error *err)
{
    const char *text;
    int r = json_get_string(c->body, field, &text, err);
    return r < 0 ? r : resolve_text(c->e, text, ret, err);
}

/* ---- status ---- */

static json_t *signal_json(const struct signal_status *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "seconds", (json_int_t)s->seconds, "high_entropy_bytes", (json_int_t)s->counts.high,
                     "high_entropy_rewrites_bytes", (json_int_t)s->counts.overwritten, "structured_freed_bytes",
                     (json_int_t)s->counts.freed, "structured_bytes", (json_int_t)s->low_bytes, "score_bytes",
                     (json_int_t)s->score, "limit_bytes", (json_int_t)s->limit, "suspicious", s->suspicious);
}

static json_t *volumes_json(struct engine *e)
{
    json_t *list = json_array();
    for (size_t i = 0; i < group_volume_count(e->group); i++) {
        struct group_volume_status s;
        group_volume_status(e->group, i, &s);
        struct signal_status signal;
        signal_status(e->watch->volumes[i].signal, &signal);
        json_t *volume = json_pack(
            "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "name", s.name, "id", (json_int_t)s.id, "size_bytes",
            (json_int_t)s.size_bytes, "written_bytes", (json_int_t)s.written_bytes, "read_bytes", (json_int_t)s.read_bytes,
            "writes", (json_int_t)s.writes, "reads", (json_int_t)s.reads, "flushes", (json_int_t)s.flushes, "discarded_bytes",
            (json_int_t)s.discarded_bytes, "stale_bytes", (json_int_t)s.stale_bytes, "failed", s.failed);
        json_object_set_new(volume, "seeding",
                            s.seeding ? json_pack("{s:I, s:I}", "done_bytes", (json_int_t)(s.size_bytes - s.unseeded_bytes),
                                                  "total_bytes", (json_int_t)s.size_bytes)
                                      : json_null());
        json_object_set_new(volume, "filling",
                            s.filling ? json_pack("{s:I, s:I}", "done_bytes", (json_int_t)(s.fill_total_bytes - s.unfilled_bytes), "total_bytes",
                                                  (json_int_t)s.fill_total_bytes)
                                      : json_null());
        json_object_set_new(volume, "signal", signal_json(&signal));
        json_array_append_new(list, volume);
    }
    return list;
}

static json_t *views_json(struct engine *e)
{
    struct journal_pin_info pins[64];
    size_t count = journal_pins(e->journal, pins, 64);
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_pack("{s:s, s:I}", "pin", pins[i].name, "lsn", (json_int_t)pins[i].lsn.n));
    return list;
}

static json_t *alarms_json(const struct journal_status *s, const struct group_status *g, struct engine *e)
{
    json_t *list = json_array();
    if (s->suspended)
        json_array_append_new(list, json_sprintf_lossy("journaling is suspended: %s; %llu writes were not journaled", s->reason,
                                                 (unsigned long long)g->unjournaled_writes));
    const char *manifest = journal_recovery(e->journal)->manifest_damage;
    if (manifest[0])
        json_array_append_new(list, json_sprintf_lossy("the journal's %s; it was damaged when the engine started, and nothing is lost: verify the "
                                                 "journal, and look at the disk", manifest));
    if (e->set_aside && access(e->kept, F_OK) == 0)
        json_array_append_new(list, json_sprintf_lossy("earlier history could not be opened (%s): it is set aside in %s, and a new one began with what "
                                                 "the volumes held. Look at the disk; remove the directory when it is not needed any more",
                                                 e->kept_why, e->kept));
    if (g->seed_trouble[0])
        json_array_append_new(list, json_sprintf_lossy("%s does not go on: %s", g->filling ? "copying what the volumes began with" : "adopting", g->seed_trouble));
    if (g->pending_damaged)
        json_array_append_new(list, json_string("rewind.pending was damaged: which blocks a rewind had not copied back is not known, so every "
                                                "block is copied back from the journal; the volumes are right meanwhile. The file is kept as "
                                                "rewind.pending.damaged: verify the journal, and look at the disk"));
    if (g->copy_trouble[0])
        json_array_append_new(list, json_sprintf_lossy("a rewind is not copied back further (its volumes are what they should be, and the "
                                                 "journal keeps what they need of it): %s; it goes on by itself", g->copy_trouble));
    if (s->pace_persists)
        json_array_append_new(list, json_sprintf_lossy("each write waits %.1f ms: more is written than old history can be dropped for; a larger "
                                                 "quota, a faster disk for the journal, or fewer writes would end it", (double)s->pace_ns / 1e6));
    if (s->quota_blocked)
        json_array_append_new(list, json_sprintf_lossy("the journal is over its quota: an open view, a clone that is still being copied, or a rewind that waits for its workload, needs the oldest history. From %llu MiB "
                                                 "over the quota on views are closed, oldest first; at %llu MiB journaling is suspended",
                                                 (unsigned long long)(s->reserve_bytes / 2 >> 20), (unsigned long long)(s->reserve_bytes >> 20)));
    for (size_t i = 0; i < group_volume_count(e->group); i++) {
        struct group_volume_status v;
        group_volume_status(e->group, i, &v);
        if (v.failed)
            json_array_append_new(list, json_sprintf_lossy("volume %s: a flush of its backing failed", v.name));
        uint64_t asked_bytes = __atomic_load_n(&e->config->volumes[i].size_bytes, __ATOMIC_RELAXED);
        if (asked_bytes > v.size_bytes)
            json_array_append_new(list, json_sprintf_lossy("volume %s has %llu bytes, and could not be given the %llu that were asked for when the engine started (%s): apply the "
                                                     "application again %s", v.name, (unsigned long long)v.size_bytes, (unsigned long long)asked_bytes,
                                                     v.seeding ? "not all that it held is copied to the history yet" : "its log says why",
                                                     v.seeding ? "once it is seeded" : "when that has been put right"));
    }
    return list;
}

/* What history there is, and how much the quota allows; null where it is not known or not limited. */
static json_t *history_json(struct engine *e)
{
    struct journal_span spans[JOURNAL_MAX_SPANS];
    size_t count = journal_spans(e->journal, spans, JOURNAL_MAX_SPANS);
    uint64_t quota_ns = journal_quota_ns(e->journal), limit_ns = e->config->history_ns;
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_pack("{s:o, s:o, s:I}", "from", engine_json_time(spans[i].from_ns), "to",
                                              engine_json_time(spans[i].to_ns), "granularity_seconds",
                                              (json_int_t)spans[i].keep_s));
    return json_pack("{s:o, s:o, s:o}", "limit_seconds",
                     limit_ns ? json_integer((json_int_t)(limit_ns / NS_PER_SECOND)) : json_null(),
                     "quota_seconds", quota_ns ? json_integer((json_int_t)(quota_ns / NS_PER_SECOND)) : json_null(), "spans", list);
}

/* Since when something looks suspicious, or null; its alarms are appended. */
static json_t *suspicious_since_json(struct engine *e, json_t *alarms)
{
    struct error err = ERROR_INIT;
    uint64_t now = clock_realtime_ns(clock_system());
    _cleanup_free_ struct suspicion *s = malloc(sizeof *s);
    if (!s || suspicion_load(e, s, &err) < 0) {
        json_array_append_new(alarms, json_string("out of memory: whether anything looks suspicious is not known"));
        return json_null();
    }
    suspicion_alarms(e, s, now, alarms);
    return engine_json_time(suspicion_since_ns(s, now));
}

json_t *engine_status_json(struct engine *e)
{
    struct journal_status s;
    struct group_status g;
    journal_status(e->journal, &s);
    group_status(e->group, &g);
    const char *state = s.suspended ? "suspended" : g.resyncing ? "resyncing" : g.seeding ? "seeding" : "protected";
    json_t *status = json_pack(
        "{s:s, s:i, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:f, s:I, s:I, s:I, s:I}", "application", e->config->application,
        "pid", getpid(), "state", state, "ack", e->config->ack == GROUP_ACK_FLUSH ? "flush" : "write", "lsn",
        (json_int_t)s.appended.n, "durable_lsn", (json_int_t)s.durable.n, "oldest_lsn", (json_int_t)s.oldest.n, "oldest_time",
        engine_json_time(s.oldest_realtime_ns), "latest_time", engine_json_time(s.latest_realtime_ns), "rpo_ms",
        (double)s.not_durable_ns / 1e6, "journal_bytes", (json_int_t)s.journal_bytes, "quota_bytes", (json_int_t)s.quota_bytes,
        "base_bytes", (json_int_t)s.base_bytes, "segments", (json_int_t)s.segments);
    json_object_set_new(status, "compressed_bytes", json_integer((json_int_t)s.cold_bytes));
    json_object_set_new(status, "compressed_plain_bytes", json_integer((json_int_t)s.cold_plain_bytes));
    json_object_set_new(status, "pace_ms", json_real((double)s.pace_ns / 1e6));
    json_object_set_new(status, "paced_seconds", json_real((double)s.paced_ns / 1e9));
    json_object_set_new(status, "version", json_string(TIDEMARK_VERSION));
    json_object_set_new(status, "rewind",
                        g.rewinding ? json_pack("{s:I, s:I, s:I}", "lsn", (json_int_t)g.rewind_lsn.n, "target_lsn",
                                                (json_int_t)g.rewind_target.n, "pending_bytes", (json_int_t)g.stale_bytes)
                                    : json_null());
    json_object_set_new(status, "resync",
                        g.resyncing ? json_pack("{s:I, s:I}", "done_bytes", (json_int_t)g.resync_done_bytes, "total_bytes",
                                                (json_int_t)g.resync_total_bytes)
                                    : json_null());
    json_object_set_new(status, "seeding",
                        g.seeding ? json_pack("{s:I, s:I}", "done_bytes", (json_int_t)g.seed_done_bytes, "total_bytes",
                                              (json_int_t)g.seed_total_bytes)
                                  : json_null());
    json_object_set_new(status, "filling",
                        g.filling ? json_pack("{s:I, s:I}", "done_bytes", (json_int_t)g.fill_done_bytes, "total_bytes",
                                              (json_int_t)g.fill_total_bytes)
                                  : json_null());
    json_object_set_new(status, "history", history_json(e));
    json_t *alarms = alarms_json(&s, &g, e);
    json_object_set_new(status, "suspicious_since", suspicious_since_json(e, alarms));
    json_object_set_new(status, "alarms", alarms);
    json_object_set_new(status, "volumes", volumes_json(e));
    json_object_set_new(status, "views", views_json(e));
    return status;
}

static int do_status(struct call *c, json_t **ret, struct error *err)
{
    (void)err;
    *ret = engine_status_json(c->e);
    return 0;
}

/* ---- points ---- */

static json_t *point_json(const struct journal_point *p)
{
    return json_pack("{s:o, s:o, s:s?}", "lsn", lsn_json(p->lsn), "time", engine_json_time(p->realtime_ns), "note",
                     p->note[0] ? p->note : NULL);
}

static int do_resolve(struct call *c, json_t **ret, struct error *err)
{
    struct journal_point point = {0};
    int r = resolve_field(c, "point", &point, err);
    if (r == 0)
        *ret = point_json(&point);
    return r;
}

static int do_sync(struct call *c, json_t **ret, struct error *err)
{
    struct journal_status s;
    int r = journal_sync(c->e->journal, -1, NULL, err);
    if (r < 0)
        return r;
    journal_status(c->e->journal, &s);
    *ret = json_pack("{s:o, s:o, s:o}", "lsn", lsn_json(s.latest), "durable_lsn", lsn_json(s.durable), "time",
                     engine_json_time(s.latest_realtime_ns));
    return 0;
}

/* Everything acknowledged so far goes into segments that are sealed: only those a verification reads. */
static int do_seal(struct call *c, json_t **ret, struct error *err)
{
    struct journal_status s;
    int r = journal_seal(c->e->journal, err);
    if (r < 0)
        return r;
    journal_status(c->e->journal, &s);
    *ret = json_pack("{s:o}", "lsn", lsn_json(s.latest));
    return 0;
}

/* Of what a suspended journal cannot take, the journal's error (409, as nothing is wrong with the engine): why, and what to do. */
static int refuse_suspended(struct call *c, struct error *err)
{
    struct journal_status s;
    struct error why = *err;
    const char *name = c->e->config->application;
    journal_status(c->e->journal, &s);
    return error_set(err, -EBUSY, "journaling of %s is suspended (%.300s): nothing of now is in its history. It goes on by itself once the reason is gone; try "
                     "again when `tidemark status %s` does not say suspended any more", name, s.suspended || !why.code ? s.reason : why.message, name);
}

static int do_tag(struct call *c, json_t **ret, struct error *err)
{
    const char *name, *key;
    json_t *labels = NULL, *value;
    struct journal_point point = {0};
    int r = json_reject_unknown(c->body, err, "name", "labels", NULL);
    if (r == 0)
        r = json_get_string(c->body, "name", &name, err);
    if (r == 0)
        r = json_get_optional_object(c->body, "labels", &labels, err);
    if (r < 0)
        return r;
    json_object_foreach(labels, key, value)
        if (!json_is_string(value))
            return error_set(err, -EINVAL, "the label %s is not a string", key);
    _cleanup_free_ char *text = labels ? json_to_text(labels) : NULL;
    r = journal_tag(c->e->journal, name, text, &point, err);
    if (r == -ESHUTDOWN)
        r = refuse_suspended(c, err);
    if (r == 0)
        *ret = point_json(&point);
    return r;
}

struct points {
    json_t *list;
    uint64_t limit, since_ns;
    struct engine *e;
    size_t stretch_count;
    struct signal_stretch stretches[SIGNAL_STRETCHES_MAX];
};

static const char *volume_name(struct engine *e, uint32_t id)
{
    for (size_t i = 0; i < group_volume_count(e->group); i++) {
        struct group_volume_status s;
        group_volume_status(e->group, i, &s);
        if (s.id == id)
            return s.name;
    }
    return "";
}

static json_t *event_json(struct engine *e, const struct journal_event *event)
{
    json_t *o = json_pack("{s:o, s:o}", "lsn", lsn_json(event->lsn), "time", engine_json_time(event->realtime_ns));
    size_t name_bytes = strlen(event->payload) + 1;
    switch (event->op) {
    case OP_MARK: {
        json_t *labels = name_bytes < event->payload_bytes ? json_loads(event->payload + name_bytes, 0, NULL) : NULL;
        json_object_set_new(o, "kind", json_string("tag"));
        json_object_set_new(o, "name", json_string(event->payload));
        json_object_set_new(o, "labels", labels ? labels : json_object());
        break;
    }
    case OP_OBJECT:
        json_object_set_new(o, "kind", json_string("object"));
        json_object_set_new(o, "name", json_string(event->payload));
        json_object_set_new(o, "deleted", json_boolean(event->flags & RECORD_DELETED));
        break;
    case OP_REWIND:
        json_object_set_new(o, "kind", json_string("rewind"));
        json_object_set_new(o, "target_lsn", json_u64(event->aux));
        break;
    case OP_VOLUME:
        json_object_set_new(o, "kind", json_string("volume"));
        json_object_set_new(o, "name", json_string(volume_name(e, event->volume)));
        break;
    case OP_WRITE:
        json_object_set_new(o, "kind", json_string("activity"));
        json_object_set_new(o, "bytes", json_u64(event->aux));
        json_object_set_new(o, "writes", json_u64(event->tag));
        break;
    default:
        json_object_set_new(o, "kind", json_string("gap"));
        json_object_set_new(o, "name", json_string(event->op == OP_RESYNC_END ? "resync ended" : event->op == OP_GAP ? "gap" : "resync began"));
    }
    return o;
}

static int add_point(void *context, const struct journal_event *event, struct error *err)
{
    struct points *p = context;
    if (event->realtime_ns < p->since_ns)
        return 0; /* older; the clock may have been set back, so there may be more */
    if (event->op != OP_WRITE && !(event->flags & RECORD_LAST))
        return 0; /* in thinned history: it counts for what comes after it, but cannot be opened itself */
    if (event->op == OP_OBJECT && strcmp(event->payload, JOURNAL_EVERY_OBJECT) == 0)
        return 0;
    json_t *point = event_json(p->e, event);
    if (suspicion_has(p->stretches, p->stretch_count, event->lsn.n))
        json_object_set_new(point, "suspicious", json_true());
    if (json_array_append_new(p->list, point) < 0)
        return error_errno(err, -ENOMEM, "cannot list the points");
    return json_array_size(p->list) >= p->limit;
}

/* A list may begin before the history does, or at a moment that cannot be opened. */
static int points_since(struct engine *e, const char *text, struct points *p, struct lsn *ret_low,
                        struct error *err)
{
    struct point point;
    struct journal_point found = {0};
    struct journal_status status;
    uint64_t now_ns = clock_realtime_ns(clock_system());
    int r = point_parse(text, &point, err);
    if (r < 0)
        return r;
    journal_status(e->journal, &status);
    if (point.kind == POINT_LSN && point.lsn.n <= status.latest.n)
        found.lsn = point.lsn;
    else
        r = journal_resolve(e->journal, &point, &found, err);
    if (r == 0) {
        ret_low->n = found.lsn.n ? found.lsn.n - 1 : 0; /* that point included */
        return 0;
    }
    if (point.kind == POINT_AGO)
        p->since_ns = point.ago_ns < now_ns ? now_ns - point.ago_ns : 0;
    else if (point.kind == POINT_TIME && point.realtime_ns < now_ns)
        p->since_ns = point.realtime_ns;
    else
        return r;
    *ret_low = LSN_NONE;
    *err = ERROR_INIT;
    return 0;
}

static int do_points(struct call *c, json_t **ret, struct error *err)
{
    const char *since = http_request_query(c->request, "since"), *limit = http_request_query(c->request, "limit");
    _cleanup_free_ struct points *p = calloc(1, sizeof *p);
    struct journal_point from = {0};
    bool damaged = false;
    if (!p)
        return error_errno(err, -ENOMEM, "cannot list the points");
    p->limit = POINTS_DEFAULT;
    p->e = c->e;
    int r = limit && *limit ? units_parse_u64(limit, POINTS_MAX, &p->limit, err) : 0;
    if (r < 0)
        return error_context(err, "limit");
    if (since && *since && (r = points_since(c->e, since, p, &from.lsn, err)) < 0)
        return r;
    p->stretch_count = signal_stretches_copy(&c->e->watch->stretches, p->stretches);
    p->list = json_array();
    if (p->limit)
        r = journal_events(c->e->journal, from.lsn, LSN_MAX, true, add_point, p, &damaged, err);
    *ret = json_pack("{s:o, s:b}", "points", p->list, "damaged", damaged);
    return r;
}

static int do_last_clean(struct call *c, json_t **ret, struct error *err)
{
    struct journal_point point = {0};
    struct signal_stretch stretch;
    int r = suspicion_last_clean(c->e, &stretch, &point, err);
    if (r < 0)
        return r;
    *ret = point_json(&point);
    json_object_set_new(*ret, "suspicious_since", engine_json_time(stretch.begin_ns));
    return 0;
}

/* ---- pins ---- */

static json_t *history_volumes_json(struct engine *e, struct lsn lsn)
{
    struct manifest m;
    struct error ignored = ERROR_INIT;
    json_t *list = json_array();
    if (journal_manifest(e->journal, &m, &ignored) < 0)
        return list;
    for (size_t i = 0; i < m.volume_count; i++)
        if (m.volumes[i].deleted.n == 0 || m.volumes[i].deleted.n > lsn.n)
            json_array_append_new(list, json_pack("{s:s, s:I, s:I}", "name", m.volumes[i].name, "id", (json_int_t)m.volumes[i].id,
                                                  "size_bytes", (json_int_t)manifest_size_at(&m, &m.volumes[i], lsn)));
    manifest_release(&m);
    return list;
}

static int do_pin(struct call *c, json_t **ret, struct error *err)
{
    const char *pin, *text;
    bool salvage = false, whole = false;
    struct journal_point found = {0};
    struct journal_status status;
    struct point point;
    int r = json_reject_unknown(c->body, err, "pin", "point", "salvage", "whole", NULL);
    if (r == 0)
        r = json_get_string(c->body, "pin", &pin, err);
    if (r == 0)
        r = json_get_string(c->body, "point", &text, err);
    if (r == 0)
        r = json_get_optional_bool(c->body, "salvage", &salvage, err);
    if (r == 0)
        r = json_get_optional_bool(c->body, "whole", &whole, err);
    if (r == 0)
        r = point_parse(text, &point, err);
    journal_status(c->e->journal, &status);
    if (r == 0 && whole)
        found = (struct journal_point){.lsn = status.latest, .realtime_ns = status.latest_realtime_ns};
    else if (r == 0)
        r = salvage ? journal_resolve_salvage(c->e->journal, &point, &found, err)
                    : journal_resolve(c->e->journal, &point, &found, err);
    if (r == 0 && strncmp(pin, PIN_INTERNAL_PREFIX, strlen(PIN_INTERNAL_PREFIX)) == 0)
        r = error_set(err, -EINVAL, "the pin's name must not begin with " PIN_INTERNAL_PREFIX);
    if (r == 0 && !whole)
        r = group_check_seeded(c->e->group, found.lsn, err);
    if (r == 0)
        r = journal_pin(c->e->journal, pin, found.lsn, false, err);
    if (r < 0)
        return r;
    *ret = point_json(&found);
    json_object_set_new(*ret, "volumes", history_volumes_json(c->e, found.lsn));
    return 0;
}

static int do_unpin(struct call *c, json_t **ret, struct error *err)
{
    const char *pin;
    int r = json_get_string(c->body, "pin", &pin, err);
    if (r == 0)
        r = journal_unpin(c->e->journal, pin, err);
    *ret = json_object();
    return r;
}

/* ---- objects ---- */

static int do_object(struct call *c, json_t **ret, struct error *err)
{
    const char *name, *content = NULL;
    struct journal_point point = {0};
    int r = json_reject_unknown(c->body, err, "name", "content", NULL);
    if (r == 0)
        r = json_get_string(c->body, "name", &name, err);
    if (r == 0)
        r = json_get_optional_string(c->body, "content", &content, err);
    if (r == 0)
        r = journal_object(c->e->journal, name, content, content ? strlen(content) : 0, &point, err);
    if (r == 0)
        *ret = point_json(&point);
    return r;
}

static int add_object(void *context, const char *name, const char *content, size_t content_bytes, struct lsn lsn,
                      struct error *err)
{
    json_t *o = json_pack("{s:s, s:s%, s:I}", "name", name, "content", content, content_bytes, "lsn", (json_int_t)lsn.n);
    return json_array_append_new(context, o) < 0 ? error_errno(err, -ENOMEM, "cannot list the objects") : 0;
}

static int list_objects(struct engine *e, struct lsn lsn, json_t **ret, struct error *err)
{
    json_t *list = json_array();
    int r = journal_objects(e->journal, lsn, add_object, list, err);
    if (r < 0) {
        json_decref(list);
        return r;
    }
    *ret = list;
    return 0;
}

static int do_objects(struct call *c, json_t **ret, struct error *err)
{
    const char *text = http_request_query(c->request, "point");
    struct journal_point point = {0};
    json_t *list;
    int r = resolve_text(c->e, text && *text ? text : "latest", &point, err);
    if (r == 0)
        r = list_objects(c->e, point.lsn, &list, err);
    if (r == 0)
        *ret = json_pack("{s:o, s:o}", "lsn", lsn_json(point.lsn), "objects", list);
    return r;
}

/* ---- diff, rewind ---- */

static json_t *change_volumes_json(const struct group_change *change, bool ranges)
{
    json_t *list = json_array();
    for (size_t i = 0; i < change->volume_count; i++) {
        const struct group_volume_change *v = &change->volumes[i];
        json_t *o = json_pack("{s:s, s:I}", "name", v->name, "changed_bytes", (json_int_t)v->changed_bytes);
        if (ranges) {
            json_t *r = json_array();
            for (size_t k = 0; k < v->range_count; k++)
                json_array_append_new(r, json_pack("[I, I]", (json_int_t)v->ranges[k].offset_bytes, (json_int_t)v->ranges[k].length_bytes));
            json_object_set_new(o, "extents", json_u64(v->extents));
            json_object_set_new(o, "ranges", r);
        }
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *find_object(json_t *list, const char *name)
{
    size_t i;
    json_t *o;
    json_array_foreach(list, i, o)
        if (strcmp(json_string_value(json_object_get(o, "name")), name) == 0)
            return o;
    return NULL;
}

static void compare_objects(json_t *from, json_t *to, json_t *ret)
{
    size_t i;
    json_t *o;
    json_array_foreach(to, i, o) {
        const char *name = json_string_value(json_object_get(o, "name"));
        json_t *old = find_object(from, name);
        if (!old || !json_equal(json_object_get(old, "content"), json_object_get(o, "content")))
            json_array_append_new(ret, json_pack("{s:s, s:s}", "name", name, "change", old ? "changed" : "added"));
    }
    json_array_foreach(from, i, o) {
        const char *name = json_string_value(json_object_get(o, "name"));
        if (!find_object(to, name))
            json_array_append_new(ret, json_pack("{s:s, s:s}", "name", name, "change", "removed"));
    }
}

static int diff_objects(struct engine *e, struct lsn from, struct lsn to, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *old = NULL, *new = NULL;
    int r = list_objects(e, from, &old, err);
    if (r == 0)
        r = list_objects(e, to, &new, err);
    *ret = json_array();
    if (r == 0)
        compare_objects(old, new, *ret);
    return r;
}

static int do_diff(struct call *c, json_t **ret, struct error *err)
{
    struct journal_point from = {0}, to = {0};
    struct group_change change;
    json_t *objects = NULL;
    int r = resolve_field(c, "from", &from, err);
    if (r == 0)
        r = resolve_field(c, "to", &to, err);
    if (r == 0)
        r = group_check_seeded(c->e->group, from.lsn.n > to.lsn.n ? from.lsn : to.lsn, err);
    if (r == 0)
        r = group_diff(c->e->group, from.lsn, to.lsn, &change, err);
    if (r < 0)
        return r;
    r = diff_objects(c->e, from.lsn, to.lsn, &objects, err);
    *ret = json_pack("{s:o, s:o, s:o, s:o, s:I, s:o, s:o}", "from_lsn", lsn_json(from.lsn), "from_time",
                     engine_json_time(from.realtime_ns), "to_lsn", lsn_json(to.lsn), "to_time", engine_json_time(to.realtime_ns),
                     "changed_bytes", (json_int_t)change.changed_bytes, "volumes", change_volumes_json(&change, true), "objects",
                     objects);
    free(change.volumes);
    return r;
}

/* An NBD client does not learn that its volume holds something else now: it is disconnected before, and
 * connects again. */
static int rewind_behind_gate(struct engine *e, struct lsn target, struct group_change *change,
                              struct error *err)
{
    struct error ignored = ERROR_INIT;
    int r = e->gate ? e->gate(e->gate_context, true, err) : 0;
    if (r < 0)
        return error_context(err, "cannot rewind to LSN %llu", (unsigned long long)target.n);
    r = group_rewind(e->group, target, false, change, err);
    if (e->gate && e->gate(e->gate_context, false, &ignored) < 0)
        log_error(e->log, "%s", ignored.message);
    return r;
}

/* By disks, what is needed and what is there. */
static json_t *space_json(struct engine *e, const struct group_change *plan)
{
    struct group_space list[GROUP_MAX_DISKS];
    size_t count = group_rewind_space(e->group, plan, list);
    json_t *json = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(json, json_pack("{s:s, s:I, s:I}", "disk_of", list[i].of, "needed_bytes",
                                              (json_int_t)list[i].needed_bytes, "free_bytes", (json_int_t)list[i].free_bytes));
    return json;
}

static json_t *rewind_json(const struct group_change *change, const struct journal_point *target, uint64_t start)
{
    uint64_t duration_us = (clock_boottime_ns(clock_system()) - start) / NS_PER_US;
    return json_pack("{s:o, s:o, s:o, s:I, s:o, s:I}", "lsn", lsn_json(change->lsn), "target_lsn", lsn_json(target->lsn),
                     "target_time", engine_json_time(target->realtime_ns), "changed_bytes", (json_int_t)change->changed_bytes,
                     "volumes", change_volumes_json(change, false), "duration_us", (json_int_t)duration_us);
}

/* A rewind that would not fit the disks, or could not be journaled, is refused before anything is stopped or changed. rewind_mutex held. */
static int rewind_to(struct call *c, const struct journal_point *target, json_t **ret, struct error *err)
{
    struct group_change plan, change;
    struct error refusal = ERROR_INIT;
    bool dry_run = false;
    int r = json_get_optional_bool(c->body, "dry_run", &dry_run, err);
    uint64_t start = clock_boottime_ns(clock_system());
    if (r == 0 && journal_is_suspended(c->e->journal))
        r = refuse_suspended(c, err);
    if (r == 0)
        r = group_check_seeded(c->e->group, LSN_MAX, err);
    if (r == 0)
        r = group_rewind(c->e->group, target->lsn, true, &plan, err);
    if (r < 0)
        return r;
    bool fits = group_check_space(c->e->group, &plan, &refusal) == 0;
    if (dry_run) {
        *ret = rewind_json(&plan, target, start);
        json_object_set_new(*ret, "space", space_json(c->e, &plan));
        json_object_set_new(*ret, "refusal", fits ? json_null() : json_string(refusal.message));
    }
    free(plan.volumes);
    if (dry_run)
        return 0;
    if (!fits)
        return error_set(err, -ENOSPC, "cannot rewind to LSN %llu: %s", (unsigned long long)target->lsn.n, refusal.message);
    r = rewind_behind_gate(c->e, target->lsn, &change, err);
    if (r < 0)
        return r == -ESHUTDOWN ? refuse_suspended(c, err) : r;
    *ret = rewind_json(&change, target, start);
    free(change.volumes);
    watch_rewound(c->e->watch, change.lsn);
    return 0;
}

static int newest_rewind(struct engine *e, struct lsn *ret, struct lsn *ret_target, struct error *err)
{
    struct manifest m;
    int r = journal_manifest(e->journal, &m, err);
    if (r < 0)
        return r;
    *ret = m.rewind_count ? m.rewinds[m.rewind_count - 1].lsn : LSN_NONE;
    *ret_target = m.rewind_count ? m.rewinds[m.rewind_count - 1].target : LSN_NONE;
    manifest_release(&m);
    return 0;
}

/* Who asks again since no answer came gives the LSN of before: a rewind after it is the one asked for. 1:
 * *ret is its answer. */
static int answer_again(struct call *c, json_t **ret, struct error *err)
{
    struct lsn newest, target;
    struct journal_point point = {0};
    uint64_t after = 0;
    json_t *given = json_object_get(c->body, "after");
    int r = given ? json_get_u64(c->body, "after", &after, err) : 0;
    if (r == 0)
        r = newest_rewind(c->e, &newest, &target, err);
    if (r < 0 || !given || newest.n <= after)
        return r;
    struct error ignored = ERROR_INIT;
    const struct point at = {.kind = POINT_LSN, .lsn = target};
    if (journal_resolve(c->e->journal, &at, &point, &ignored) < 0)
        point.realtime_ns = 0;
    *ret = json_pack("{s:o, s:o, s:o, s:i, s:[], s:i}", "lsn", lsn_json(newest), "target_lsn",
                     lsn_json(target), "target_time", engine_json_time(point.realtime_ns), "changed_bytes", 0,
                     "volumes", "duration_us", 0);
    return 1;
}

static int do_rewind(struct call *c, json_t **ret, struct error *err)
{
    struct journal_point target = {0};
    MUTEX_GUARD(guard, &c->e->rewind_mutex);
    int r = json_reject_unknown(c->body, err, "point", "dry_run", "after", NULL);
    if (r == 0)
        r = answer_again(c, ret, err);
    if (r != 0)
        return r < 0 ? r : 0;
    r = resolve_field(c, "point", &target, err);
    return r < 0 ? r : rewind_to(c, &target, ret, err);
}

static int do_undo(struct call *c, json_t **ret, struct error *err)
{
    struct lsn newest, before;
    MUTEX_GUARD(guard, &c->e->rewind_mutex);
    int r = json_reject_unknown(c->body, err, "dry_run", "after", NULL);
    if (r == 0)
        r = answer_again(c, ret, err);
    if (r != 0)
        return r < 0 ? r : 0;
    r = newest_rewind(c->e, &newest, &before, err);
    if (r < 0)
        return r;
    if (newest.n == 0)
        return error_set(err, -EBUSY,
                         "there is no rewind in the history that could be undone; `tidemark points` lists "
                         "those there are");
    struct point point = {.kind = POINT_LSN, .lsn = {newest.n - 1}};
    struct journal_point target = {0};
    r = journal_resolve(c->e->journal, &point, &target, err);
    return r < 0 ? r : rewind_to(c, &target, ret, err);
}

static int do_configure(struct call *c, json_t **ret, struct error *err)
{
    int r = json_reject_unknown(c->body, err, NULL);
    if (r == 0)
        r = engine_configure(c->e, err);
    *ret = json_object();
    return r;
}

static int do_forecast(struct call *c, json_t **ret, struct error *err)
{
    return engine_forecast(c->e, c->body, ret, err);
}

static int do_shutdown(struct call *c, json_t **ret, struct error *err)
{
    (void)c, (void)err;
    *ret = json_object();
    engine_request_stop();
    return 0;
}

int engine_api_handle(void *context, const struct http_request *request, struct http_response *response, struct error *err)
{
    static const struct {
        const char *method, *path;
        int (*handle)(struct call *c, json_t **ret, struct error *err);
    } calls[] = {
        {"GET", "/v1/status", do_status},   {"POST", "/v1/resolve", do_resolve}, {"POST", "/v1/sync", do_sync},
        {"POST", "/v1/tag", do_tag},        {"GET", "/v1/points", do_points},    {"POST", "/v1/pin", do_pin},
        {"POST", "/v1/unpin", do_unpin},    {"POST", "/v1/object", do_object},   {"GET", "/v1/objects", do_objects},
        {"POST", "/v1/diff", do_diff},      {"POST", "/v1/rewind", do_rewind},   {"POST", "/v1/undo", do_undo},
        {"POST", "/v1/forecast", do_forecast},
        {"GET", "/v1/last-clean", do_last_clean}, {"POST", "/v1/seal", do_seal}, {"POST", "/v1/shutdown", do_shutdown},
        {"POST", "/v1/configure", do_configure},
    };
    if (strcmp(request->path, "/metrics") == 0) {
        http_response_text(response, 200, "text/plain; version=0.0.4; charset=utf-8", engine_metrics(context));
        return 0;
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (strcmp(request->path, calls[i].path) != 0)
            continue;
        if (strcmp(request->method, calls[i].method) != 0)
            return http_refuse_method(request, response, calls[i].method, err);
        _cleanup_json_ json_t *body = NULL;
        json_t *answer = NULL;
        int r = http_request_json(request, &body, err);
        struct call c = {.e = context, .request = request, .body = body};
        if (r == 0)
            r = calls[i].handle(&c, &answer, err);
        if (r < 0) {
            json_decref(answer);
            return r;
        }
        http_response_json(response, 200, answer);
        return 0;
    }
    return error_set(err, -ENOENT, "the engine has no %s %s", request->method, request->path);
}
