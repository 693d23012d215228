/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_ENGINE_ENGINE_INTERNAL_H
#define TIDEMARK_ENGINE_ENGINE_INTERNAL_H

#include <limits.h>
#include <stdatomic.h>

#include "engine/engine.h"
#include "lib/http_server.h"
#include "lib/json.h"
#include "volume/group.h"

struct engine_config {
    char application[64];
    char journal[PATH_MAX];
    char socket[108];
    char key_file[PATH_MAX]; /* "": the journal is not encrypted */
    enum group_ack ack;
    bool holds; /* failure mode `protection` */
    uint64_t quota_bytes, history_ns, seed_bytes_per_second;
    struct journal_thinning thinning[JOURNAL_MAX_THINNING];
    size_t thinning_count;
    uint64_t compress_after_ns; /* UINT64_MAX: never */
    struct {                /* where volumes that are not whole are read from; journal "": none */
        char journal[PATH_MAX], pin[32], key_file[PATH_MAX];
    } source;
    size_t volume_count;
    struct {
        char name[JOURNAL_NAME_BYTES];
        uint64_t size_bytes;
        char backing[PATH_MAX];
        bool adopt; /* the backing holds something, which is the beginning of its history */
    } volumes[GROUP_MAX_VOLUMES];
};
/* The steps of a list {after_ns, keep_s}. */
int engine_config_thinning(json_t *list, struct engine_config *c, struct error *err) MUST_CHECK;
/* What other limits would do to the history; body and answer as in docs/internals.md. */
struct engine;
int engine_forecast(struct engine *e, const json_t *body, json_t **ret, struct error *err) MUST_CHECK;
int engine_config_load(const char *path, struct engine_config *ret, struct error *err) MUST_CHECK;

struct watch;

struct engine {
    struct engine_config *config;
    char config_path[PATH_MAX];
    pthread_mutex_t config_mutex; /* one reconfiguration at a time, and what it changes of config */
    pthread_mutex_t rewind_mutex; /* one rewind at a time, with the question whether there was one; before all
                                     others. And: */
    engine_gate *gate;            /* closed during a rewind, when the export has one */
    void *gate_context;
    const struct log *log;
    struct journal *journal;
    struct group *group;
    struct watch *watch;
    struct http_server *server;
    uint64_t started_boottime_ns;
    bool set_aside;               /* an earlier journal could not be opened, and is kept in: */
    char kept[PATH_MAX], kept_why[512];
    bool told_pid; /* <socket>.pid is this one's */
};

/* The control socket's handler. */
int engine_api_handle(void *context, const struct http_request *request, struct http_response *response, struct error *err);
/* Prometheus text, from malloc. */
char *engine_metrics(struct engine *e);
json_t *engine_status_json(struct engine *e);
/* "2026-11-21T…Z", or null for 0. */
json_t *engine_json_time(uint64_t realtime_ns);
/* Reads the configuration again and does what can be done while it runs: policy, and larger volumes. */
int engine_configure(struct engine *e, struct error *err) MUST_CHECK;
/* Asks this process to end in order. */
void engine_request_stop(void);

/* ---- output.c: of `verify` and `copy` ---- */
/* Takes `line`, which may be NULL. */
void engine_print_line(json_t *line);
/* At most once in `interval_ns`; *told_ns is when it did so last, 0 at first. */
void engine_print_progress(uint64_t *told_ns, uint64_t interval_ns, uint64_t done_bytes, uint64_t total_bytes);

#endif
