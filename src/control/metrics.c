/* SPDX-License-Identifier: Apache-2.0 */
/* Prometheus text (exposition format 0.0.4) from the status of all applications. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/control_internal.h"

struct metric {
    const char *name, *type, *help;
    const char *field; /* of an application, or of a volume or its signal when `volume` */
    bool volume;
    double scale;
};

static const struct metric metrics[] = {
    {"tidemark_journal_lsn", "gauge", "Log sequence number of the newest record.", "lsn", false, 1},
    {"tidemark_journal_durable_lsn", "gauge", "Newest log sequence number that is durable.", "durable_lsn",
     false, 1},
    {"tidemark_journal_oldest_lsn", "gauge", "Oldest log sequence number that can be opened.", "oldest_lsn",
     false, 1},
    {"tidemark_rpo_seconds", "gauge", "Time of writes that a power loss now would lose.", "rpo_ms", false,
     1e-3},
    {"tidemark_journal_bytes", "gauge", "Size of the journal on disk.", "journal_bytes", false, 1},
    {"tidemark_journal_quota_bytes", "gauge", "Largest size of the journal.", "quota_bytes", false, 1},
    {"tidemark_journal_compressed_bytes", "gauge", "Size of compressed segments, part of the journal's.", "compressed_bytes", false,
     1},
    {"tidemark_journal_compressed_plain_bytes", "gauge", "What they would take if they were not compressed.",
     "compressed_plain_bytes", false, 1},
    {"tidemark_base_bytes", "gauge", "Size of the base, older than the history.", "base_bytes", false, 1},
    {"tidemark_write_pace_seconds", "gauge", "What a write waits now because dropping history does not keep up.", "pace_ms", false,
     1e-3},
    {"tidemark_writes_paced_seconds_total", "counter", "What writes have waited so since the engine was started.",
     "paced_seconds", false, 1},
    {"tidemark_engine_restarts_total", "counter", "Times the engine's process has ended by itself and was started again.",
     "restarts", false, 1},
    {"tidemark_volume_size_bytes", "gauge", "Size of a volume.", "size_bytes", true, 1},
    {"tidemark_volume_written_bytes_total", "counter",
     "Bytes written to a volume since its engine was started.", "written_bytes", true, 1},
    {"tidemark_volume_seeded_bytes", "gauge", "Adopted volumes that are being seeded: bytes that the history has.",
     "done_bytes", true, 1},
    {"tidemark_volume_seed_bytes", "gauge", "Adopted volumes that are being seeded: bytes that it needs.", "total_bytes", true,
     1},
    {"tidemark_volume_high_entropy_bytes_total", "counter", "Bytes written that look encrypted or compressed.",
     "high_entropy_bytes", true, 1},
    {"tidemark_volume_high_entropy_rewrites_bytes_total", "counter",
     "Of these, bytes written over structured content.", "high_entropy_rewrites_bytes", true, 1},
    {"tidemark_volume_structured_freed_bytes_total", "counter",
     "Bytes of structured content that were discarded or freed.", "structured_freed_bytes", true, 1},
    {"tidemark_volume_suspicion_score_bytes", "gauge",
     "Structured content replaced by what looks encrypted, in 90 s.", "score_bytes", true, 1},
    {"tidemark_volume_suspicion_limit_bytes", "gauge", "Score from which on a volume is suspicious.",
     "limit_bytes", true, 1},
};

static void put_value(FILE *out, const struct metric *m, const char *application, const char *volume,
                      const json_t *value)
{
    if (!json_is_number(value))
        return;
    fprintf(out, "%s{application=\"%s\"", m->name, application);
    if (volume)
        fprintf(out, ",volume=\"%s\"", volume);
    if (json_is_integer(value) && m->scale == 1)
        fprintf(out, "} %lld\n", (long long)json_integer_value(value));
    else
        fprintf(out, "} %.9g\n", json_number_value(value) * m->scale);
}

static const json_t *volume_value(const json_t *volume, const char *field)
{
    const json_t *value = json_object_get(volume, field);
    if (!value)
        value = json_object_get(json_object_get(volume, "seeding"), field);
    return value ? value : json_object_get(json_object_get(volume, "signal"), field);
}

static void put_metric(FILE *out, const struct metric *m, const json_t *applications)
{
    size_t i, j;
    json_t *application, *volume;
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", m->name, m->help, m->name, m->type);
    json_array_foreach(applications, i, application)
    {
        const char *name = json_string_value(json_object_get(application, "name"));
        if (!m->volume)
            put_value(out, m, name, NULL, json_object_get(application, m->field));
        else
            json_array_foreach(json_object_get(application, "volumes"), j, volume)
                put_value(out, m, name, json_string_value(json_object_get(volume, "name")),
                          volume_value(volume, m->field));
    }
}

static void put_states(FILE *out, const json_t *applications)
{
    static const char *const states[] = {"protected", "resyncing", "suspended",
                                         "starting",  "stopped",   "failed",
                                         "crash-looping"};
    size_t i;
    json_t *application;
    fputs("# HELP tidemark_application_state Whether an application is in this state (1) or not (0).\n"
          "# TYPE tidemark_application_state gauge\n",
          out);
    json_array_foreach(applications, i, application) for (size_t k = 0; k < sizeof states / sizeof *states;
                                                          k++)
        fprintf(out, "tidemark_application_state{application=\"%s\",state=\"%s\"} %d\n",
                json_string_value(json_object_get(application, "name")), states[k],
                strcmp(json_string_value(json_object_get(application, "state")), states[k]) == 0);
    fputs("# HELP tidemark_application_alarms Number of things that are wrong now.\n# TYPE "
          "tidemark_application_alarms gauge\n",
          out);
    json_array_foreach(applications, i, application)
        fprintf(out, "tidemark_application_alarms{application=\"%s\"} %zu\n",
                json_string_value(json_object_get(application, "name")),
                json_array_size(json_object_get(application, "alarms")));
    fputs("# HELP tidemark_engine_crash_looping 1 when the engine has ended several times in a row, and has not stayed for "
          "10 s since.\n# TYPE tidemark_engine_crash_looping gauge\n",
          out);
    json_array_foreach(applications, i, application)
        fprintf(out, "tidemark_engine_crash_looping{application=\"%s\"} %d\n",
                json_string_value(json_object_get(application, "name")),
                json_is_true(json_object_get(application, "crash_looping")));
    fputs("# HELP tidemark_suspicious 1 when a volume is or was probably being encrypted, and not rewound "
          "since.\n# TYPE tidemark_suspicious gauge\n",
          out);
    json_array_foreach(applications, i, application)
        fprintf(out, "tidemark_suspicious{application=\"%s\"} %d\n",
                json_string_value(json_object_get(application, "name")),
                json_is_string(json_object_get(application, "suspicious_since")));
    fputs("# HELP tidemark_open_views Number of open views.\n# TYPE tidemark_open_views gauge\n", out);
    json_array_foreach(applications, i, application)
        fprintf(out, "tidemark_open_views{application=\"%s\"} %zu\n",
                json_string_value(json_object_get(application, "name")),
                json_array_size(json_object_get(application, "views")));
}

char *metrics_text(struct control *control)
{
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *status = NULL;
    char *text = NULL;
    size_t length = 0;
    if (status_to_json(control, NULL, &status, &ignored) < 0)
        return NULL;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return NULL;
    fprintf(out,
            "# HELP tidemark_build_info The running version.\n# TYPE tidemark_build_info gauge\n"
            "tidemark_build_info{version=\"%s\"} 1\n"
            "# HELP tidemark_start_time_seconds When up was started, in seconds since 1970.\n"
            "# TYPE tidemark_start_time_seconds gauge\ntidemark_start_time_seconds %.3f\n",
            TIDEMARK_VERSION, (double)control->started_realtime_ns / 1e9);
    const json_t *applications = json_object_get(status, "applications");
    for (size_t i = 0; i < sizeof metrics / sizeof *metrics; i++)
        put_metric(out, &metrics[i], applications);
    put_states(out, applications);
    fclose(out);
    return text;
}
