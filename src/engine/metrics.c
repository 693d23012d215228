/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's figures in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/). */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "engine/watch_internal.h"

static void sample(FILE *f, const char *name, const char *type, const char *help, const char *application, double value)
{
    fprintf(f, "# HELP %s %s\n# TYPE %s %s\n%s{application=\"%s\"} %.17g\n", name, help, name, type, name, application, value);
}

static void volume_samples(FILE *f, struct engine *e)
{
    static const struct {
        const char *name, *help;
        size_t offset;
    } fields[] = {
        {"tidemark_volume_written_bytes_total", "Bytes that applications wrote.", offsetof(struct group_volume_status, written_bytes)},
        {"tidemark_volume_read_bytes_total", "Bytes that applications read.", offsetof(struct group_volume_status, read_bytes)},
        {"tidemark_volume_discarded_bytes_total", "Bytes that applications discarded.", offsetof(struct group_volume_status, discarded_bytes)},
        {"tidemark_volume_writes_total", "Write requests.", offsetof(struct group_volume_status, writes)},
        {"tidemark_volume_reads_total", "Read requests.", offsetof(struct group_volume_status, reads)},
        {"tidemark_volume_flushes_total", "Flush requests.", offsetof(struct group_volume_status, flushes)},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        fprintf(f, "# HELP %s %s\n# TYPE %s counter\n", fields[i].name, fields[i].help, fields[i].name);
        for (size_t k = 0; k < group_volume_count(e->group); k++) {
            struct group_volume_status s;
            group_volume_status(e->group, k, &s);
            fprintf(f, "%s{application=\"%s\",volume=\"%s\"} %llu\n", fields[i].name, e->config->application, s.name,
                    (unsigned long long)*(uint64_t *)((char *)&s + fields[i].offset));
        }
    }
}

static void signal_samples(FILE *f, struct engine *e)
{
    static const struct {
        const char *name, *type, *help;
        size_t offset;
    } fields[] = {
        {"tidemark_volume_high_entropy_bytes_total", "counter", "Bytes written that look encrypted or compressed.",
         offsetof(struct signal_status, counts.high)},
        {"tidemark_volume_high_entropy_rewrites_bytes_total", "counter", "Of these, bytes written over structured content.",
         offsetof(struct signal_status, counts.overwritten)},
        {"tidemark_volume_structured_freed_bytes_total", "counter", "Bytes of structured content that were discarded or freed.",
         offsetof(struct signal_status, counts.freed)},
        {"tidemark_volume_structured_bytes", "gauge", "Bytes of structured content that the volume is known to hold.",
         offsetof(struct signal_status, low_bytes)},
        {"tidemark_volume_suspicion_score_bytes", "gauge", "Structured content replaced by what looks encrypted, in 90 s.",
         offsetof(struct signal_status, score)},
        {"tidemark_volume_suspicion_limit_bytes", "gauge", "Score from which on a volume is suspicious.",
         offsetof(struct signal_status, limit)},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        fprintf(f, "# HELP %s %s\n# TYPE %s %s\n", fields[i].name, fields[i].help, fields[i].name, fields[i].type);
        for (size_t k = 0; k < e->watch->volume_count; k++) {
            struct signal_status s;
            signal_status(e->watch->volumes[k].signal, &s);
            fprintf(f, "%s{application=\"%s\",volume=\"%s\"} %llu\n", fields[i].name, e->config->application,
                    group_volume_name(e->group, k), (unsigned long long)*(uint64_t *)((char *)&s + fields[i].offset));
        }
    }
}

/* 1 while an alarm of the signal is told; without memory to find out, nothing is said. */
static void suspicious_sample(FILE *f, struct engine *e)
{
    struct error ignored = ERROR_INIT;
    struct suspicion *s = malloc(sizeof *s);
    if (s && suspicion_load(e, s, &ignored) == 0)
        sample(f, "tidemark_suspicious", "gauge", "1 when a volume is or was probably being encrypted, and not rewound since.",
               e->config->application, suspicion_since_ns(s, clock_realtime_ns(clock_system())) != 0);
    free(s);
}

char *engine_metrics(struct engine *e)
{
    char *text = NULL;
    size_t length;
    FILE *f = open_memstream(&text, &length);
    if (!f)
        return NULL;
    struct journal_status s;
    struct group_status g;
    journal_status(e->journal, &s);
    group_status(e->group, &g);
    const char *app = e->config->application;
    sample(f, "tidemark_journal_lsn", "gauge", "LSN of the last journaled record.", app, (double)s.latest.n);
    sample(f, "tidemark_journal_durable_lsn", "gauge", "LSN up to which the journal is durable.", app, (double)s.durable.n);
    sample(f, "tidemark_journal_oldest_lsn", "gauge", "Oldest LSN that can be opened.", app, (double)s.oldest.n);
    sample(f, "tidemark_journal_oldest_timestamp_seconds", "gauge", "Time of the oldest point.", app, (double)s.oldest_realtime_ns / 1e9);
    sample(f, "tidemark_journal_bytes", "gauge", "Disk space of segments and indexes.", app, (double)s.journal_bytes);
    sample(f, "tidemark_journal_quota_bytes", "gauge", "Limit of the journal's disk space, 0 without.", app, (double)s.quota_bytes);
    sample(f, "tidemark_journal_base_bytes", "gauge", "Disk space of the base that dropped history left.", app, (double)s.base_bytes);
    sample(f, "tidemark_journal_compressed_bytes", "gauge", "Disk space of compressed segments, part of the journal's.", app,
           (double)s.cold_bytes);
    sample(f, "tidemark_journal_compressed_plain_bytes", "gauge", "What they would take if they were not compressed.", app,
           (double)s.cold_plain_bytes);
    sample(f, "tidemark_write_pace_seconds", "gauge", "What a write waits now because dropping history does not keep up.", app,
           (double)s.pace_ns / 1e9);
    sample(f, "tidemark_writes_paced_seconds_total", "counter", "What writes have waited so, summed over them.", app,
           (double)s.paced_ns / 1e9);
    sample(f, "tidemark_journal_suspended", "gauge", "1 while writes go on unjournaled.", app, s.suspended);
    sample(f, "tidemark_rpo_seconds", "gauge", "Age of the oldest record that is not durable.", app, (double)s.not_durable_ns / 1e9);
    sample(f, "tidemark_unjournaled_writes_total", "counter", "Writes that went on without the journal.", app, (double)g.unjournaled_writes);
    sample(f, "tidemark_rewind_pending_bytes", "gauge", "Bytes of a rewind still to be copied back.", app, (double)g.stale_bytes);
    sample(f, "tidemark_resync_remaining_bytes", "gauge", "Bytes still to be compared.", app,
           g.resyncing ? (double)(g.resync_total_bytes - g.resync_done_bytes) : 0);
    volume_samples(f, e);
    signal_samples(f, e);
    suspicious_sample(f, e);
    fclose(f);
    return text;
}
