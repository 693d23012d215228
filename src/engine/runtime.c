/* SPDX-License-Identifier: Apache-2.0 */
/* The engine and the view as what an export serves. */
#include "export/runtime.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/engine.h"

static const struct log engine_log = {STDERR_FILENO, LOG_LEVEL_INFO, "engine"};
static const struct log view_log = {STDERR_FILENO, LOG_LEVEL_INFO, "view"};

static int serve_start(const char *config_path, struct runtime **ret, struct error *err)
{
    return engine_start(config_path, &engine_log, (struct engine **)ret, err);
}
static size_t serve_count(const struct runtime *r)
{
    return engine_volume_count((const struct engine *)r);
}
static const char *serve_name(const struct runtime *r, size_t i)
{
    return engine_volume_name((const struct engine *)r, i);
}
static struct block *serve_block(struct runtime *r, size_t i)
{
    return engine_volume_block((struct engine *)r, i);
}
static void serve_stop(struct runtime *r)
{
    struct error err = ERROR_INIT;
    if (engine_stop((struct engine *)r, &err) < 0)
        log_error(&engine_log, "%s", err.message);
}

static void serve_stopping(struct runtime *r)
{
    engine_stopping((struct engine *)r);
}

static void serve_set_gate(struct runtime *r, runtime_gate *gate, void *context)
{
    engine_set_gate((struct engine *)r, gate, context);
}

static int view_start(const char *config_path, struct runtime **ret, struct error *err)
{
    return engine_view_start(config_path, &view_log, (struct engine_view **)ret, err);
}
static size_t view_count(const struct runtime *r)
{
    return engine_view_volume_count((const struct engine_view *)r);
}
static const char *view_name(const struct runtime *r, size_t i)
{
    return engine_view_volume_name((const struct engine_view *)r, i);
}
static struct block *view_block(struct runtime *r, size_t i)
{
    return engine_view_volume_block((struct engine_view *)r, i);
}
static void view_stop(struct runtime *r)
{
    engine_view_stop((struct engine_view *)r);
}

/* What starting again cannot mend. */
static bool refused(const struct error *err)
{
    /* Nobody waits for its volumes yet: `up` tells the reason at once, and tries again. */
    if (!getenv("TIDEMARK_RESUME"))
        return true;
    /* The key file may come back, and a disk that still writes what the last engine began will end it; until then the volumes wait. */
    if (err->code == -ENOKEY || err->code == -EKEYREJECTED || err->code == -EBUSY)
        return false;
    return err->code == -EINVAL || err->code == -EBADMSG || err->code == -EPROTONOSUPPORT ||
           err->code == -ENAMETOOLONG || err->code == -ENOENT || err->code == -EACCES;
}

const struct runtime_ops *runtime_serve_ops(void)
{
    static const struct runtime_ops ops = {serve_start, serve_count, serve_name,     serve_block,
                                           serve_stop,  refused,     serve_stopping, serve_set_gate};
    return &ops;
}

const struct runtime_ops *runtime_view_ops(void)
{
    static const struct runtime_ops ops = {view_start, view_count, view_name, view_block,
                                           view_stop,  refused,    NULL,      NULL};
    return &ops;
}
