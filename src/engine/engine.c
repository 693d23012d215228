/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/engine.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "engine/watch_internal.h"
#include "journal/seal.h"
#include "journal/set_aside.h"

#define API_THREADS 3u

void engine_request_stop(void)
{
    kill(getpid(), SIGTERM);
}

static int write_pid(struct engine *e, struct error *err)
{
    char path[128];
    snprintf(path, sizeof path, "%s.pid", e->config->socket);
    int r = io_write_pid_file(path, 0600, err);
    e->told_pid = r == 0;
    return r;
}

static int open_source(struct engine *e, struct error *err)
{
    const char *journal = e->config->source.journal;
    int r = group_set_source(e->group, journal, e->config->source.pin, err);
    return r < 0 || !seal_exists(journal) ? r : seal_unlock(journal, e->config->source.key_file, err);
}

static int open_group(struct engine *e, struct error *err)
{
    int r = group_new(e->journal, e->config->ack, e->log, &e->group, err);
    if (r < 0)
        return r;
    group_set_holds(e->group, e->config->holds);
    group_set_seed_speed(e->group, e->config->seed_bytes_per_second);
    if (e->config->source.journal[0])
        r = open_source(e, err);
    for (size_t i = 0; i < e->config->volume_count && r == 0; i++)
        r = (e->config->volumes[i].adopt ? group_adopt_volume : group_add_volume)(
            e->group, e->config->volumes[i].name, e->config->volumes[i].size_bytes, e->config->volumes[i].backing, err);
    return r < 0 ? r : group_start(e->group, err);
}

static struct journal_options journal_options_of(const struct engine *e, const struct engine_config *c)
{
    struct journal_options options = {.directory = c->journal,
                                      .key_file = c->key_file,
                                      .quota_bytes = c->quota_bytes,
                                      .history_ns = c->history_ns,
                                      .thinning_count = c->thinning_count,
                                      .compress = c->compress_after_ns != UINT64_MAX,
                                      .compress_after_ns = c->compress_after_ns,
                                      .spare_segments = 8,
                                      .owner = "tidemark-engine",
                                      .log = e->log};
    memcpy(options.thinning, c->thinning, sizeof options.thinning);
    return options;
}

static int check_same(const struct engine_config *old, const struct engine_config *new, struct error *err)
{
    bool same = strcmp(old->application, new->application) == 0 && strcmp(old->journal, new->journal) == 0 &&
                strcmp(old->socket, new->socket) == 0 && old->volume_count == new->volume_count;
    for (size_t i = 0; same && i < old->volume_count; i++)
        same = strcmp(old->volumes[i].name, new->volumes[i].name) == 0 && old->volumes[i].adopt == new->volumes[i].adopt &&
               strcmp(old->volumes[i].backing, new->volumes[i].backing) == 0;
    return same ? 0 : error_set(err, -EINVAL, "only policy and sizes can change while the engine runs: the rest needs a restart");
}

int engine_configure(struct engine *e, struct error *err)
{
    _cleanup_free_ struct engine_config *new = calloc(1, sizeof *new);
    if (!new)
        return error_errno(err, -ENOMEM, "cannot read %s", e->config_path);
    MUTEX_GUARD(guard, &e->config_mutex);
    int r = engine_config_load(e->config_path, new, err);
    if (r == 0)
        r = check_same(e->config, new, err);
    if (r < 0)
        return r;
    struct journal_options options = journal_options_of(e, new);
    journal_configure(e->journal, &options);
    group_configure(e->group, new->ack, new->holds);
    group_set_seed_speed(e->group, new->seed_bytes_per_second);
    e->config->ack = new->ack;
    e->config->holds = new->holds;
    e->config->quota_bytes = new->quota_bytes;
    e->config->history_ns = new->history_ns;
    for (size_t i = 0; i < new->volume_count && r == 0; i++) {
        r = group_resize(e->group, new->volumes[i].name, new->volumes[i].size_bytes, err);
        if (r == 0)
            __atomic_store_n(&e->config->volumes[i].size_bytes, new->volumes[i].size_bytes, __ATOMIC_RELAXED);
    }
    return r;
}

/* The application goes on without its history rather than not at all, unless its policy says otherwise. */
static int open_anew(struct engine *e, const struct journal_options *options, struct error *err)
{
    struct error lost = *err, why = ERROR_INIT;
    char kept[PATH_MAX];
    log_error(e->log, "%s", lost.message);
    if (journal_set_aside(e->config->journal, lost.message, kept, &why) < 0)
        return error_set(err, lost.code, "%.300s. The volumes cannot be used without it: %.400s", lost.message, why.message);
    log_error(e->log, "the history is set aside in %s; the volumes go on with what their backings hold, and a new history begins", kept);
    *err = ERROR_INIT;
    return journal_open(options, &e->journal, err);
}

static int start(struct engine *e, struct error *err)
{
    struct journal_options options = journal_options_of(e, e->config);
    int r = journal_open(&options, &e->journal, err);
    if (r == -EBADMSG && !e->config->holds)
        r = open_anew(e, &options, err);
    if (r < 0)
        return r;
    e->set_aside = journal_find_set_aside(e->config->journal, e->kept, e->kept_why);
    const struct journal_recovery *rec = journal_recovery(e->journal);
    log_info(e->log, "journal open: %llu frames and %llu records recovered, %zu writes were in flight",
             (unsigned long long)rec->frames, (unsigned long long)rec->replayed, rec->in_flight_count);
    r = open_group(e, err);
    if (r == 0)
        r = watch_start(e, &e->watch, err);
    if (r < 0)
        return r;
    struct http_server_options server = {.socket_path = e->config->socket,
                                         .threads = API_THREADS,
                                         .log = e->log,
                                         .handler = engine_api_handle,
                                         .context = e};
    r = http_server_start(&server, &e->server, err);
    return r < 0 ? r : write_pid(e, err);
}

int engine_start(const char *config_path, const struct log *log, struct engine **ret, struct error *err)
{
    struct engine *e = calloc(1, sizeof *e);
    if (e)
        e->config = calloc(1, sizeof *e->config);
    if (!e || !e->config) {
        free(e);
        return error_errno(err, -ENOMEM, "cannot start the engine");
    }
    e->log = log;
    pthread_mutex_init(&e->config_mutex, NULL);
    pthread_mutex_init(&e->rewind_mutex, NULL);
    snprintf(e->config_path, sizeof e->config_path, "%s", config_path);
    e->started_boottime_ns = clock_boottime_ns(clock_system());
    int r = engine_config_load(config_path, e->config, err);
    if (r == 0)
        r = start(e, err);
    if (r < 0) {
        struct error ignored = ERROR_INIT;
        if (engine_stop(e, &ignored) < 0)
            log_error(log, "%s", ignored.message);
        return r;
    }
    /* Under memory pressure a page fault here could wait for write-back to the volumes served (docs/architecture.md). */
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
        log_warning(log, "cannot lock memory: %m; under memory pressure the volumes may stall (needs CAP_IPC_LOCK)");
    *ret = e;
    return 0;
}

int engine_stop(struct engine *e, struct error *err)
{
    char path[128];
    if (!e)
        return 0;
    http_server_stop(e->server);
    watch_stop(e->watch);
    group_free(e->group);
    int r = journal_close(e->journal, err);
    snprintf(path, sizeof path, "%s.pid", e->config->socket);
    if (e->told_pid) /* else it is that of an engine that runs, and has kept this one from starting */
        unlink(path);
    free(e->config);
    free(e);
    return r;
}

int engine_check(const char *config_path, struct error *err)
{
    struct manifest m = {0};
    _cleanup_free_ struct engine_config *config = calloc(1, sizeof *config);
    if (!config)
        return error_errno(err, -ENOMEM, "cannot check the configuration");
    int r = engine_config_load(config_path, config, err);
    if (r == 0)
        r = seal_unlock(config->journal, config->key_file, err);
    if (r == 0 && manifest_exists(config->journal))
        r = manifest_load(config->journal, &m, err);
    manifest_release(&m);
    if (r == 0 && puts("{\"version\": \"" TIDEMARK_VERSION "\"}") < 0)
        r = error_errno(err, -EIO, "cannot tell the version");
    return r;
}

void engine_stopping(struct engine *e)
{
    if (e->config->holds && journal_is_suspended(e->journal))
        log_warning(e->log, "writes wait for the journal, which is suspended: they end with an error now");
    group_give_up(e->group);
}

void engine_set_gate(struct engine *e, engine_gate *gate, void *context)
{
    MUTEX_GUARD(guard, &e->rewind_mutex);
    e->gate = gate;
    e->gate_context = context;
}

size_t engine_volume_count(const struct engine *e)
{
    return group_volume_count(e->group);
}
const char *engine_volume_name(const struct engine *e, size_t i)
{
    return group_volume_name(e->group, i);
}
struct block *engine_volume_block(struct engine *e, size_t i)
{
    return group_volume_block(e->group, i);
}
