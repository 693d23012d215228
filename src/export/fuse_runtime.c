/* SPDX-License-Identifier: Apache-2.0 */
#include "export/fuse_runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "export/fuse.h"

/* A descriptor number that is open. */
static int parse_descriptor(const char *text, int *ret_fd, struct error *err)
{
    uint64_t value = 0;
    int r = units_parse_u64(text, INT_MAX, &value, err);
    if (r < 0)
        return r;
    if (fcntl((int)value, F_GETFD) < 0)
        return error_set(err, -EBADF, "descriptor %s is not open", text);
    *ret_fd = (int)value;
    return 0;
}

static int parse_one(char *text, struct fuse_runtime_descriptor *ret, struct error *err)
{
    char *fd = strchr(text, ':');
    if (!fd || fd == text)
        return error_set(err, -EINVAL, "\"%s\" is not volume:descriptor:clone", text);
    *fd++ = '\0';
    ret->volume = text;
    ret->nonblock_fd = -1;
    char *clone = strchr(fd, ':');
    if (clone)
        *clone++ = '\0';
    int r = parse_descriptor(fd, &ret->fd, err);
    if (r == 0 && clone)
        r = parse_descriptor(clone, &ret->nonblock_fd, err);
    return r < 0 ? error_context(err, "volume %s", text) : 0;
}

int fuse_runtime_parse(char *text, struct fuse_runtime_descriptor *descriptors, size_t capacity,
                       size_t *ret_count, struct error *err)
{
    size_t count = 0;
    for (char *next = text, *one; next && (one = strsep(&next, ","));) {
        if (count == capacity)
            return error_set(err, -E2BIG, FUSE_RUNTIME_ENVIRONMENT " has more than %zu volumes", capacity);
        int r = parse_one(one, &descriptors[count], err);
        if (r < 0)
            return error_context(err, FUSE_RUNTIME_ENVIRONMENT);
        for (size_t i = 0; i < count; i++)
            if (strcmp(descriptors[i].volume, descriptors[count].volume) == 0)
                return error_set(err, -EINVAL, FUSE_RUNTIME_ENVIRONMENT " has volume %s twice", one);
        count++;
    }
    *ret_count = count;
    return 0;
}

static int start_exports(const struct runtime_ops *ops, struct runtime *runtime,
                         const struct fuse_runtime_descriptor *descriptors, size_t descriptor_count,
                         struct fuse_export **exports, const struct log *log, struct error *err)
{
    const char *resume = getenv(FUSE_RUNTIME_ENVIRONMENT_RESUME);
    size_t count = ops->volume_count(runtime);
    for (size_t i = 0; i < count; i++) {
        const char *name = ops->volume_name(runtime, i);
        size_t d = 0;
        while (d < descriptor_count && strcmp(descriptors[d].volume, name) != 0)
            d++;
        if (d == descriptor_count)
            return error_set(err, -EINVAL,
                             "volume %s has no descriptor in " FUSE_RUNTIME_ENVIRONMENT
                             ": add it to the mounts of the holder",
                             name);
        struct fuse_export_options options = {.block = ops->volume_block(runtime, i),
                                              .fd = descriptors[d].fd,
                                              .nonblock_fd = descriptors[d].nonblock_fd,
                                              .resume = resume && strcmp(resume, "1") == 0,
                                              .spin_us = FUSE_EXPORT_DEFAULT_SPIN_US,
                                              .log = log,
                                              .name = name};
        int r = fuse_export_start(&options, &exports[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}

struct fuse_exporter {
    struct fuse_runtime_descriptor descriptors[FUSE_RUNTIME_MAX_VOLUMES];
    size_t descriptor_count, count;
    struct fuse_export **exports;
};

static int start(void *context, const struct runtime_ops *ops, struct runtime *runtime, const struct log *log, struct error *err)
{
    struct fuse_exporter *x = context;
    x->count = ops->volume_count(runtime);
    x->exports = calloc(x->count + 1, sizeof(struct fuse_export *));
    if (!x->exports)
        return error_errno(err, -ENOMEM, "cannot export %zu volumes", x->count);
    return start_exports(ops, runtime, x->descriptors, x->descriptor_count, x->exports, log, err);
}

static void stop(void *context)
{
    struct fuse_exporter *x = context;
    for (size_t i = 0; x->exports && i < x->count; i++)
        fuse_export_free(x->exports[i]);
    free(x->exports);
}

int fuse_runtime_main(const struct runtime_ops *ops, const char *config_path, const struct log *log)
{
    struct error err = ERROR_INIT;
    struct fuse_exporter x = {0};
    const struct exporter exporter = {.start = start, .stop = stop, .context = &x};
    const char *environment = getenv(FUSE_RUNTIME_ENVIRONMENT);
    if (!environment) {
        log_error(log, FUSE_RUNTIME_ENVIRONMENT
                  " is not set: this program is started by tidemark-holder, which mounts "
                  "the volumes");
        return RUNTIME_EXIT_REFUSED;
    }
    _cleanup_free_ char *text = strdup(environment);
    if (!text)
        return RUNTIME_EXIT_FAILED;
    if (fuse_runtime_parse(text, x.descriptors, FUSE_RUNTIME_MAX_VOLUMES, &x.descriptor_count, &err) < 0) {
        log_error(log, "%s", err.message);
        return RUNTIME_EXIT_REFUSED;
    }
    return runtime_main(ops, config_path, &exporter, log);
}
