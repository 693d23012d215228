/* SPDX-License-Identifier: Apache-2.0 */
/* nbdkit plugin: the volumes of a runtime as NBD exports, one export name each. Only a shim between two
 * callback tables; the engine layer links it with its runtimes into one module.
 *
 * The mutable globals are nbdkit's way: a plugin has one instance a process, and its callbacks get no
 * context. They are written before there are connections (P1), after that only read, until all connections
 * have ended. */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "export/runtime.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define NBD_MAX_REQUEST_BYTES (32u << 20)
#define NBD_EXTENTS_COUNT 64 /* described by one call to a block */

static char *config_path;
static const struct runtime_ops *runtime_ops; /* NULL: role=serve */
static struct runtime *runtime;

static int fail(const struct error *err)
{
    nbdkit_error("%s", err->message);
    bool known = err->code == -ENOSPC || err->code == -ENOMEM || err->code == -EINVAL || err->code == -EPERM || err->code == -ESHUTDOWN;
    nbdkit_set_error(known ? -err->code : EIO); /* what the NBD protocol has no code for would be EINVAL there */
    return -1;
}

static int tidemark_config(const char *key, const char *value)
{
    if (strcmp(key, "config") == 0) {
        free(config_path);
        config_path = nbdkit_absolute_path(value);
        return config_path ? 0 : -1;
    }
    if (strcmp(key, "role") == 0) {
        if (strcmp(value, "serve") == 0)
            runtime_ops = runtime_serve_ops();
        else if (strcmp(value, "view") == 0)
            runtime_ops = runtime_view_ops();
        else {
            nbdkit_error("role=%s: must be serve or view", value);
            return -1;
        }
        return 0;
    }
    nbdkit_error("unknown parameter %s=%s: there are config=FILE and role=serve|view", key, value);
    return -1;
}

static int tidemark_config_complete(void)
{
    if (!config_path) {
        nbdkit_error("the parameter config=FILE is missing");
        return -1;
    }
    if (!runtime_ops)
        runtime_ops = runtime_serve_ops();
    return 0;
}

/* Threads do not survive the fork into the background, so the runtime starts after it (P1). */
static int tidemark_after_fork(void)
{
    struct error err = ERROR_INIT;
    if (runtime_ops->start(config_path, &runtime, &err) < 0)
        return fail(&err);
    return 0;
}

/* All connections have ended. */
static void tidemark_cleanup(void)
{
    if (runtime)
        runtime_ops->stop(runtime);
    runtime = NULL;
}

static void tidemark_unload(void)
{
    tidemark_cleanup(); /* a start that failed half-way never comes to .cleanup */
    free(config_path);
}

static int tidemark_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    (void)readonly;
    (void)is_tls;
    size_t count = runtime_ops->volume_count(runtime);
    for (size_t i = 0; i < count; i++)
        if (nbdkit_add_export(exports, runtime_ops->volume_name(runtime, i), NULL) < 0)
            return -1;
    return 0;
}

/* With one volume the empty export name means it; with several a client has to choose. */
static const char *tidemark_default_export(int readonly, int is_tls)
{
    (void)readonly;
    (void)is_tls;
    return runtime_ops->volume_count(runtime) == 1 ? runtime_ops->volume_name(runtime, 0) : "";
}

static void *tidemark_open(int readonly)
{
    (void)readonly;
    const char *name = nbdkit_export_name();
    if (!name)
        return NULL;
    size_t count = runtime_ops->volume_count(runtime);
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, runtime_ops->volume_name(runtime, i)) == 0 || (!name[0] && count == 1))
            return runtime_ops->volume_block(runtime, i);
    nbdkit_error("there is no volume \"%s\"; nbdinfo --list shows those that there are", name);
    nbdkit_set_error(ENOENT);
    return NULL;
}

static int64_t tidemark_get_size(void *handle)
{
    const struct block *b = handle;
    return (int64_t)b->size_bytes;
}

static int always(void *handle)
{
    (void)handle;
    return 1;
}

static int never(void *handle)
{
    (void)handle;
    return 0;
}

static int tidemark_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int tidemark_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_NONE;
}

static int tidemark_can_extents(void *handle)
{
    const struct block *b = handle;
    return b->ops->extents != NULL;
}

static int tidemark_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    (void)handle;
    *minimum = BLOCK_SECTOR_BYTES;
    *preferred = BLOCK_PAGE_BYTES;
    *maximum = NBD_MAX_REQUEST_BYTES;
    return 0;
}

static unsigned block_flags(uint32_t flags)
{
    return flags & NBDKIT_FLAG_FUA ? BLOCK_FUA : 0;
}

static int tidemark_pread(void *handle, void *data, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct error err = ERROR_INIT;
    (void)flags;
    int r = block_check_range(handle, count, offset, &err);
    if (r == 0)
        r = block_pread(handle, data, count, offset, &err);
    return r < 0 ? fail(&err) : 0;
}

static int tidemark_pwrite(void *handle, const void *data, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct error err = ERROR_INIT;
    int r = block_check_range(handle, count, offset, &err);
    if (r == 0)
        r = block_pwrite(handle, data, count, offset, block_flags(flags), &err);
    return r < 0 ? fail(&err) : 0;
}

static int tidemark_flush(void *handle, uint32_t flags)
{
    struct error err = ERROR_INIT;
    (void)flags;
    return block_flush(handle, &err) < 0 ? fail(&err) : 0;
}

static int tidemark_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct error err = ERROR_INIT;
    int r = block_check_range(handle, count, offset, &err);
    if (r == 0)
        r = block_discard(handle, count, offset, block_flags(flags), &err);
    return r < 0 ? fail(&err) : 0;
}

/* A discarded range reads as zeroes (block.h), so a client that allows a hole gets one. Neither sends data,
 * so both count as fast. */
static int tidemark_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct error err = ERROR_INIT;
    int r = block_check_range(handle, count, offset, &err);
    if (r == 0 && flags & NBDKIT_FLAG_MAY_TRIM)
        r = block_discard(handle, count, offset, block_flags(flags), &err);
    else if (r == 0)
        r = block_zero(handle, count, offset, block_flags(flags), &err);
    return r < 0 ? fail(&err) : 0;
}

static int tidemark_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                            struct nbdkit_extents *extents)
{
    struct error err = ERROR_INIT;
    struct block_extent found[NBD_EXTENTS_COUNT];
    uint64_t end = offset + count, size = ((const struct block *)handle)->size_bytes;
    uint64_t at = offset - offset % BLOCK_SECTOR_BYTES; /* a client may ask for any range */
    end += (BLOCK_SECTOR_BYTES - end % BLOCK_SECTOR_BYTES) % BLOCK_SECTOR_BYTES;
    if (end > size)
        end = size;
    while (at < end) {
        size_t found_count = 0;
        int r = block_check_range(handle, end - at, at, &err);
        if (r == 0)
            r = block_extents(handle, end - at, at, found, NBD_EXTENTS_COUNT, &found_count, &err);
        if (r < 0)
            return fail(&err);
        for (size_t i = 0; i < found_count; i++) {
            if (nbdkit_add_extent(extents, found[i].offset_bytes, found[i].length_bytes,
                                  found[i].hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0) < 0)
                return -1;
            at = found[i].offset_bytes + found[i].length_bytes;
        }
        if (found_count == 0 || flags & NBDKIT_FLAG_REQ_ONE)
            break;
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "tidemark",
    .longname = "Tidemark volumes",
    .version = TIDEMARK_VERSION,
    .description = "serves the volumes of a Tidemark engine or view, one export a volume",
    .config_help = "config=FILE        (required) engine.json or view.json\n"
                   "role=serve|view    what FILE configures (default: serve)",
    .magic_config_key = "config",
    .unload = tidemark_unload,
    .config = tidemark_config,
    .config_complete = tidemark_config_complete,
    .after_fork = tidemark_after_fork,
    .cleanup = tidemark_cleanup,
    .list_exports = tidemark_list_exports,
    .default_export = tidemark_default_export,
    .open = tidemark_open,
    .get_size = tidemark_get_size,
    .block_size = tidemark_block_size,
    .can_write = always,
    .can_flush = always,
    .can_trim = always,
    .can_zero = always,
    .can_fast_zero = always,
    .can_multi_conn = always,
    .can_extents = tidemark_can_extents,
    .can_fua = tidemark_can_fua,
    .can_cache = tidemark_can_cache,
    .is_rotational = never,
    .pread = tidemark_pread,
    .pwrite = tidemark_pwrite,
    .flush = tidemark_flush,
    .trim = tidemark_trim,
    .zero = tidemark_zero,
    .extents = tidemark_extents,
};

struct nbdkit_plugin *plugin_init(void); /* the macro declares none */
NBDKIT_REGISTER_PLUGIN(plugin)
