/* SPDX-License-Identifier: Apache-2.0 */
#include "export/fuse_runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "export/fuse.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

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

/* Nothing here may wait for memory that needs write-back to our own volumes to be freed. What exists now is
 * locked whole; later mappings (journal files) when they are touched, since locking them whole would read
 * them whole. */
static void lock_memory(const struct log *log)
{
    if (mlockall(MCL_CURRENT) < 0 || mlockall(MCL_FUTURE | MCL_ONFAULT) < 0)
        log_warning(log,
                    "cannot lock the memory of this process (%s): with little memory its volumes can hang. "
                    "Allow it: ulimit -l unlimited, or CAP_IPC_LOCK",
                    strerrordesc_np(errno));
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
        log_debug(log, "PR_SET_IO_FLUSHER: %s", strerrordesc_np(errno));
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

static int serve_until_signal(const struct runtime_ops *ops, struct runtime *runtime,
                              const struct fuse_runtime_descriptor *descriptors, size_t descriptor_count,
                              const sigset_t *signals, const struct log *log)
{
    struct error err = ERROR_INIT;
    size_t count = ops->volume_count(runtime);
    int number = 0;
    _cleanup_free_ struct fuse_export **exports = calloc(count + 1, sizeof(struct fuse_export *));
    int r = exports ? start_exports(ops, runtime, descriptors, descriptor_count, exports, log, &err)
                    : error_errno(&err, -ENOMEM, "cannot export %zu volumes", count);
    if (r == 0) {
        lock_memory(log);
        log_info(log, "serving %zu volumes", count);
        while (sigwait(signals, &number) != 0)
            ;
        log_info(log, "stopping: %s", strsignal(number));
        if (ops->stopping)
            ops->stopping(runtime);
    } else {
        log_error(log, "%s", err.message);
    }
    for (size_t i = 0; exports && i < count; i++)
        fuse_export_free(exports[i]);
    if (r == 0)
        return EXIT_SUCCESS;
    return r == -EINVAL ? FUSE_RUNTIME_EXIT_REFUSED : FUSE_RUNTIME_EXIT_FAILED;
}

int fuse_runtime_main(const struct runtime_ops *ops, const char *config_path, const struct log *log)
{
    struct error err = ERROR_INIT;
    struct fuse_runtime_descriptor descriptors[FUSE_RUNTIME_MAX_VOLUMES];
    size_t descriptor_count = 0;
    const char *environment = getenv(FUSE_RUNTIME_ENVIRONMENT);
    if (!environment) {
        log_error(log, FUSE_RUNTIME_ENVIRONMENT
                  " is not set: this program is started by tidemark-holder, which mounts "
                  "the volumes");
        return FUSE_RUNTIME_EXIT_REFUSED;
    }
    _cleanup_free_ char *text = strdup(environment);
    if (!text)
        return FUSE_RUNTIME_EXIT_FAILED;
    if (fuse_runtime_parse(text, descriptors, FUSE_RUNTIME_MAX_VOLUMES, &descriptor_count, &err) < 0) {
        log_error(log, "%s", err.message);
        return FUSE_RUNTIME_EXIT_REFUSED;
    }
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct runtime *runtime = NULL;
    if (ops->start(config_path, &runtime, &err) < 0) {
        log_error(log, "%s", err.message);
        return !ops->refused || ops->refused(&err) ? FUSE_RUNTIME_EXIT_REFUSED : FUSE_RUNTIME_EXIT_FAILED;
    }
    int status = serve_until_signal(ops, runtime, descriptors, descriptor_count, &signals, log);
    ops->stop(runtime);
    return status;
}
