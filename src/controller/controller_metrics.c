/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/controller_metrics.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "controller/controller_internal.h"
#include "lib/json.h"

struct controller_metrics {
    pthread_mutex_t mutex;
    struct controller *c; /* NULL: another replica leads */
};

/* What a scrape looks at. */
struct scrape {
    struct controller *c;
    FILE *out;
    json_t *applications, *claims, *recoveries;
};

int controller_metrics_new(struct controller_metrics **ret, struct error *err)
{
    struct controller_metrics *m = calloc(1, sizeof *m);
    if (!m)
        return error_set(err, -ENOMEM, "out of memory");
    pthread_mutex_init(&m->mutex, NULL);
    *ret = m;
    return 0;
}

void controller_metrics_free(struct controller_metrics *m)
{
    if (!m)
        return;
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

void controller_metrics_begin(struct controller_metrics *m, struct controller *c)
{
    if (!m)
        return;
    MUTEX_GUARD(guard, &m->mutex);
    m->c = c;
}

void controller_metrics_end(struct controller_metrics *m)
{
    controller_metrics_begin(m, NULL);
}

/* ---- text ---- */

static void head(FILE *out, const char *name, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
}

/* A label's value: names of Kubernetes need nothing, other texts might. */
static void label(FILE *out, const char *separator, const char *name, const char *value)
{
    fprintf(out, "%s%s=\"", separator, name);
    for (const char *c = value; *c; c++) {
        if (*c == '\n')
            fputs("\\n", out);
        else if (*c == '"' || *c == '\\')
            fprintf(out, "\\%c", *c);
        else
            fputc(*c, out);
    }
    fputc('"', out);
}

static void of_application(FILE *out, const char *name, const json_t *papp)
{
    fputs(name, out);
    label(out, "{", "namespace", kube_object_namespace(papp));
    label(out, ",", "application", kube_object_name(papp));
}

/* ---- claims ---- */

/* What an application says of the claim: "" captured, else the reason; NULL: it is not its. */
static const char *said_of(const json_t *papp, const char *claim)
{
    const json_t *volumes = json_object_get(json_object_get(papp, "status"), "volumes");
    size_t i;
    json_t *volume;
    json_array_foreach(volumes, i, volume)
    {
        if (strcmp(json_text(volume, "claim"), claim) == 0)
            return json_is_true(json_object_get(volume, "captured")) ? "" : json_text(volume, "reason");
    }
    /* The status has no more than 100, those that are not captured first: the rest are. */
    return !application_group(papp) && json_array_size(volumes) >= 100 ? "" : NULL;
}

/* Why nothing protects it; NULL: something does, or nobody has looked yet. */
static const char *why_unprotected(const struct scrape *s, const json_t *claim)
{
    const char *why = "NoApplication";
    size_t i;
    json_t *papp;
    if (strcmp(kube_object_namespace(claim), s->c->namespace) == 0) /* the history itself */
        return NULL;
    json_array_foreach(s->applications, i, papp)
    {
        if (strcmp(kube_object_namespace(papp), kube_object_namespace(claim)) != 0)
            continue;
        if (!json_object_get(papp, "status"))
            return NULL;
        const char *said = said_of(papp, kube_object_name(claim));
        if (said && !*said)
            return NULL;
        if (said || strcmp(why, "NoApplication") == 0)
            why = said ? said : "NotOfItsApplications";
    }
    return why;
}

static void put_claims(struct scrape *s)
{
    size_t i;
    json_t *claim;
    head(s->out, "tidemark_unprotected_claim", "A claim that nothing protects, and why.");
    json_array_foreach(s->claims, i, claim)
    {
        const char *why = why_unprotected(s, claim);
        if (!why)
            continue;
        fputs("tidemark_unprotected_claim", s->out);
        label(s->out, "{", "namespace", kube_object_namespace(claim));
        label(s->out, ",", "claim", kube_object_name(claim));
        label(s->out, ",", "storageclass", json_text(json_object_get(claim, "spec"), "storageClassName"));
        label(s->out, ",", "reason", why);
        fputs("} 1\n", s->out);
    }
}

/* ---- applications ---- */

static void put_conditions(struct scrape *s)
{
    size_t i, k;
    json_t *papp, *condition;
    head(s->out, "tidemark_application_condition",
         "Whether a condition of the application holds (1) or not (0): alarms are those at 0.");
    json_array_foreach(s->applications, i, papp)
    {
        json_array_foreach(json_object_get(json_object_get(papp, "status"), "conditions"), k, condition)
        {
            of_application(s->out, "tidemark_application_condition", papp);
            label(s->out, ",", "condition", json_text(condition, "type"));
            label(s->out, ",", "reason", json_text(condition, "reason"));
            fprintf(s->out, "} %d\n", strcmp(json_text(condition, "status"), "True") == 0);
        }
    }
}

static void put_objects(struct scrape *s)
{
    static const char *const names[][2] = {
        {"tidemark_application_objects", "Objects of the application in the journal."},
        {"tidemark_capture_pending_changes", "Changes of its objects that are seen and not yet journaled."},
        {"tidemark_capture_failed", "Whether its objects cannot be journaled (1)."}};
    size_t i;
    json_t *papp;
    for (int n = 0; n < 3; n++) {
        head(s->out, names[n][0], names[n][1]);
        json_array_foreach(s->applications, i, papp)
        {
            struct object_store_status status;
            struct error ignored = ERROR_INIT;
            if (object_store_status(s->c->store, kube_object_namespace(papp), kube_object_name(papp), &status,
                                    &ignored) < 0)
                continue;
            of_application(s->out, names[n][0], papp);
            fprintf(s->out, "} %zu\n",
                    n == 0   ? status.objects
                    : n == 1 ? status.pending
                             : (size_t)(status.error[0] != '\0'));
        }
    }
}

/* How long ago that was, in seconds; negative: not known. */
static double seconds_since(const char *time)
{
    struct error ignored = ERROR_INIT;
    uint64_t ns, now_ns = clock_realtime_ns(clock_system());
    if (!*time || clock_parse_rfc3339(time, &ns, &ignored) < 0)
        return -1;
    return now_ns > ns ? (double)(now_ns - ns) / (double)NS_PER_SECOND : 0;
}

static void put_streams(struct scrape *s)
{
    static const char *const names[][2] = {
        {"tidemark_capture_lag_seconds",
         "The newest writes of its volumes that a loss of power could take from the history."},
        {"tidemark_history_seconds", "How far back all its volumes reach."}};
    const char *key;
    json_t *told, *stream, *papp;
    size_t i;
    MUTEX_GUARD(guard, &s->c->placements.mutex);
    for (int n = 0; n < 2; n++) {
        head(s->out, names[n][0], names[n][1]);
        json_array_foreach(s->applications, i, papp)
        {
            char name[400];
            snprintf(name, sizeof name, "%.63s/%.253s", kube_object_namespace(papp), kube_object_name(papp));
            told = json_object_get(s->c->placements.told, name);
            double value = n == 0 && json_object_get(told, "rpoMs")
                               ? (double)json_integer_value(json_object_get(told, "rpoMs")) / 1000
                           : n == 1 ? seconds_since(json_text(told, "oldestTime"))
                                    : -1;
            if (value < 0)
                continue;
            of_application(s->out, names[n][0], papp);
            fprintf(s->out, "} %.3f\n", value);
        }
    }
    head(s->out, "tidemark_stream_state",
         "The state of a stream of volumes: any but protected needs a look.");
    json_object_foreach(s->c->placements.told, key, told)
    {
        json_array_foreach(json_object_get(told, "streams"), i, stream)
        {
            const char *slash = strchr(key, '/');
            char namespace[64];
            snprintf(namespace, sizeof namespace, "%.*s", (int)(slash - key), key);
            fputs("tidemark_stream_state", s->out);
            label(s->out, "{", "namespace", namespace);
            label(s->out, ",", "application", slash + 1);
            label(s->out, ",", "stream", json_text(stream, "stream"));
            label(s->out, ",", "node", json_text(stream, "node"));
            label(s->out, ",", "state", json_text(stream, "state"));
            fputs("} 1\n", s->out);
        }
    }
}

/* ---- recoveries ---- */

static void put_recoveries(struct scrape *s)
{
    static const char *const phases[] = {"Pending", "Planned", "Running", "Completed", "Failed", "Cancelled"};
    size_t counts[6] = {0}, i;
    json_t *recovery;
    json_array_foreach(s->recoveries, i, recovery)
    {
        const char *phase = json_text(json_object_get(recovery, "status"), "phase");
        size_t p = 0;
        while (p + 1 < 6 && strcmp(phases[p], phase) != 0)
            p++;
        counts[*phase ? p : 0]++;
    }
    head(s->out, "tidemark_recoveries", "Recoveries that are there, by phase.");
    for (size_t p = 0; p < 6; p++)
        fprintf(s->out, "tidemark_recoveries{phase=\"%s\"} %zu\n", phases[p], counts[p]);
}

/* ---- all of it ---- */

static bool collect(void *context, json_t *object)
{
    json_array_append(context, object);
    return true;
}

static void put_all(struct scrape *s)
{
    kube_informer_each(s->c->applications, NULL, collect, s->applications);
    kube_informer_each(s->c->claims, NULL, collect, s->claims);
    kube_informer_each(s->c->recoveries, NULL, collect, s->recoveries);
    put_claims(s);
    put_conditions(s);
    put_objects(s);
    put_streams(s);
    put_recoveries(s);
    head(s->out, "tidemark_controller_queue_keys",
         "Keys that the reconcilers have before them, those of later times among them.");
    fprintf(s->out, "tidemark_controller_queue_keys %zu\n", kube_queue_count(s->c->queue));
}

char *controller_metrics_text(struct controller_metrics *m)
{
    _cleanup_json_ json_t *applications = json_array(), *claims = json_array(), *recoveries = json_array();
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return NULL;
    MUTEX_GUARD(guard, &m->mutex);
    struct scrape s = {m->c, out, applications, claims, recoveries};
    head(out, "tidemark_controller_leader", "Whether this replica leads (1); the others tell nothing else.");
    fprintf(out, "tidemark_controller_leader %d\n", m->c && watch_is_synced(m->c));
    if (m->c && watch_is_synced(m->c))
        put_all(&s);
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
