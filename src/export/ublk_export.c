/* SPDX-License-Identifier: Apache-2.0 */
/* A device from its making to its removal.
 *
 * New: ADD_DEV, the link (from here on it can be found and removed), SET_PARAMS, the thread that serves it,
 * START_DEV. Taken over: the kernel has seen the end of the last process (QUIESCED), START_USER_RECOVERY, the
 * thread, END_USER_RECOVERY: it gives what was under way to the thread again. Requests may have been carried
 * out already: all of them can be repeated. Removed: STOP_DEV while it is still served, since the kernel
 * writes what it has cached; then DEL_DEV_ASYNC. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "export/device_node.h"
#include "export/fuse_runtime.h"
#include "export/ublk_internal.h"

#define POLL_MS 2u

struct ublk_export {
    struct ublk_export_options o;
    struct ublk_control control;
    struct ublksrv_ctrl_dev_info info;
    bool added;
    int fd;
    struct ublk_loop *loop;
};

static int set_link(const struct ublk_export *x, struct error *err)
{
    char device[UBLK_DEVICE_BYTES];
    snprintf(device, sizeof device, "/dev/ublkb%u", x->info.dev_id);
    if (symlink(device, x->o.link_path) == 0)
        return 0;
    return error_errno(err, -errno, "cannot make the link %s to %s", x->o.link_path, device);
}

static int add(struct ublk_export *x, struct error *err)
{
    int processors = get_nprocs();
    struct ublk_params params;
    ublk_fill_info(&x->info, processors > 0 ? (unsigned)processors : 1, x->o.recoverable,
                   ublk_identity(x->o.link_path));
    int r = ublk_control_call(&x->control, UBLK_U_CMD_ADD_DEV, UINT32_MAX, &x->info, sizeof x->info, 0);
    if (r < 0)
        return error_errno(err, r, "cannot add a ublk device");
    x->added = true;
    if (x->o.recoverable && !ublk_can_recover(&x->info))
        log_warning(
            x->o.log,
            "volume %s: this kernel's ublk has no recovery (Linux 6.1): if this process is killed, users "
            "of the volume get I/O errors; export: fuse waits instead",
            x->o.name);
    r = set_link(x, err);
    if (r < 0)
        return r;
    ublk_fill_params(&params, x->o.block->size_bytes);
    r = ublk_control_call(&x->control, UBLK_U_CMD_SET_PARAMS, x->info.dev_id, &params, sizeof params, 0);
    return r < 0 ? error_errno(err, r, "cannot set the parameters of /dev/ublkb%u", x->info.dev_id) : 0;
}

static bool is_alive(const struct ublksrv_ctrl_dev_info *info)
{
    return info->state == UBLK_S_DEV_LIVE && info->ublksrv_pid > 0 && kill(info->ublksrv_pid, 0) == 0 &&
           info->ublksrv_pid != getpid();
}

/* Waits until the kernel has seen that the last process ended. */
static int begin_take_over(struct ublk_export *x, struct error *err)
{
    uint64_t end_ns = clock_boottime_ns(clock_system()) + UBLK_TAKEOVER_TIMEOUT_MS * NS_PER_MS;
    const struct timespec interval = {.tv_nsec = POLL_MS * (long)NS_PER_MS};
    for (;;) {
        int r = ublk_control_info(&x->control, x->info.dev_id, &x->info);
        if (r == 0 && x->info.state == UBLK_S_DEV_QUIESCED) {
            r = ublk_control_call(&x->control, UBLK_U_CMD_START_USER_RECOVERY, x->info.dev_id, NULL, 0, 0);
            if (r == -EINVAL) /* begun by one that was killed before it ended */
                r = 0;
        } else if (r == 0) {
            r = -EBUSY;
        }
        if (r != -EBUSY)
            return r < 0 ? error_errno(err, r, "cannot take over /dev/ublkb%u", x->info.dev_id) : 0;
        if (clock_boottime_ns(clock_system()) > end_ns)
            return error_set(err, -EBUSY, "cannot take over /dev/ublkb%u: %s (pid %d)", x->info.dev_id,
                             is_alive(&x->info) ? "another process serves it"
                                                : "the kernel has not let go of its last server",
                             x->info.ublksrv_pid);
        nanosleep(&interval, NULL);
    }
}

static int open_queues(struct ublk_export *x, struct error *err)
{
    char numbers[64], device[UBLK_DEVICE_BYTES];
    snprintf(numbers, sizeof numbers, "/sys/class/ublk-char/ublkc%u/dev", x->info.dev_id);
    snprintf(device, sizeof device, "/dev/ublkc%u", x->info.dev_id);
    int r = device_node_make(numbers, device, S_IFCHR, err);
    if (r < 0)
        return r;
    x->fd = open(device, O_RDWR | O_CLOEXEC);
    return x->fd < 0 ? error_errno(err, -errno, "cannot open %s", device) : 0;
}

static int serve(struct ublk_export *x, bool taken_over, struct error *err)
{
    char numbers[64], device[UBLK_DEVICE_BYTES];
    int r = ublk_check_info(&x->info, err);
    if (r == 0)
        r = open_queues(x, err);
    if (r < 0)
        return r;
    const struct ublk_loop_options options = {.block = x->o.block,
                                              .name = x->o.name,
                                              .log = x->o.log,
                                              .fd = x->fd,
                                              .encodes = x->control.encodes,
                                              .queues = x->info.nr_hw_queues,
                                              .depth = x->info.queue_depth,
                                              .io_bytes = x->info.max_io_buf_bytes,
                                              .spin_ns = UBLK_DEFAULT_SPIN_US * NS_PER_US};
    r = ublk_loop_start(&options, &x->loop, err);
    if (r < 0)
        return r;
    r = ublk_control_call(&x->control, taken_over ? UBLK_U_CMD_END_USER_RECOVERY : UBLK_U_CMD_START_DEV,
                          x->info.dev_id, NULL, 0, (uint64_t)getpid());
    if (r < 0)
        return error_errno(err, r, "cannot start /dev/ublkb%u", x->info.dev_id);
    snprintf(numbers, sizeof numbers, "/sys/block/ublkb%u/dev", x->info.dev_id);
    snprintf(device, sizeof device, "/dev/ublkb%u", x->info.dev_id);
    return device_node_make(numbers, device, S_IFBLK, err);
}

int ublk_export_start(const struct ublk_export_options *options, struct ublk_export **ret, struct error *err)
{
    struct ublk_export *x = calloc(1, sizeof *x);
    if (!x)
        return error_errno(err, -ENOMEM, "cannot export volume %s", options->name);
    x->o = *options;
    x->fd = -1;
    int r = ublk_control_open(&x->control, err);
    bool taken_over = r == 0 && options->take_over &&
                      ublk_control_find(&x->control, options->link_path, &x->info) &&
                      ublk_can_recover(&x->info);
    if (r == 0 && taken_over)
        r = begin_take_over(x, err);
    else if (r == 0 && (r = ublk_remove(options->link_path, err)) == 0)
        r = add(x, err);
    if (r == 0)
        r = serve(x, taken_over, err);
    if (r < 0) {
        if (taken_over) /* its I/O waits for the next try */
            log_warning(options->log, "volume %s: /dev/ublkb%u is not served", options->name, x->info.dev_id);
        ublk_export_free(x);
        return error_context(err, "cannot export volume %s by ublk", options->name), r;
    }
    x->added = true;
    log_info(options->log, "volume %s: /dev/ublkb%u, %u queues%s", options->name, x->info.dev_id,
             x->info.nr_hw_queues,
             taken_over ? ", taken over: the kernel gives what was not answered again" : "");
    *ret = x;
    return 0;
}

void ublk_export_abandon(struct ublk_export *x)
{
    x->added = false;
    ublk_export_free(x);
}

void ublk_export_free(struct ublk_export *x)
{
    if (!x)
        return;
    int r = x->added ? ublk_control_call(&x->control, UBLK_U_CMD_STOP_DEV, x->info.dev_id, NULL, 0, 0) : 0;
    if (r < 0)
        log_warning(x->o.log, "volume %s: cannot stop /dev/ublkb%u: %s", x->o.name, x->info.dev_id,
                    strerrordesc_np(-r));
    ublk_loop_free(x->loop);
    if (x->fd >= 0)
        close(x->fd);
    if (x->added) {
        r = ublk_control_delete(&x->control, x->info.dev_id);
        if (r < 0)
            log_warning(x->o.log, "volume %s: cannot remove /dev/ublkb%u: %s", x->o.name, x->info.dev_id,
                        strerrordesc_np(-r));
        else
            unlink(x->o.link_path);
    }
    ublk_control_close(&x->control);
    free(x);
}

/* ---- the body of a program ---- */

struct ublk_exporter {
    const char *directory;
    bool recoverable;
    bool taking_over; /* and not done with it: what was served before must not be lost with one that fails now
                       */
    size_t count;
    struct ublk_export *exports[UBLK_VOLUMES_MAX];
    char links[UBLK_VOLUMES_MAX][PATH_MAX];
    char served[PATH_MAX];
};

static int start(void *context, const struct runtime_ops *ops, struct runtime *runtime, const struct log *log,
                 struct error *err)
{
    struct ublk_exporter *x = context;
    const char *resume = getenv(FUSE_RUNTIME_ENVIRONMENT_RESUME);
    size_t count = ops->volume_count(runtime);
    x->taking_over = resume && strcmp(resume, "1") == 0;
    if (count > UBLK_VOLUMES_MAX)
        return error_set(err, -EINVAL, "cannot serve %zu volumes by ublk: %u at most", count,
                         UBLK_VOLUMES_MAX);
    if (snprintf(x->served, sizeof x->served, "%s/" UBLK_SERVED, x->directory) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", x->directory);
    int r = io_mkdirs(x->directory, 0700, err);
    if (r == 0 && !x->taking_over)
        unlink(x->served);
    for (size_t i = 0; i < count && r == 0; i++) {
        const struct ublk_export_options options = {.block = ops->volume_block(runtime, i),
                                                    .name = ops->volume_name(runtime, i),
                                                    .link_path = x->links[i],
                                                    .recoverable = x->recoverable,
                                                    .take_over = x->taking_over,
                                                    .log = log};
        if (snprintf(x->links[i], PATH_MAX, "%s/%s", x->directory, options.name) >= PATH_MAX)
            return error_set(err, -ENAMETOOLONG, "%s/%s: path too long", x->directory, options.name);
        r = ublk_export_start(&options, &x->exports[i], err);
        x->count += r == 0;
    }
    if (r == 0)
        r = io_replace_file(x->served, "", 0, 0600, err);
    x->taking_over &= r < 0;
    return r;
}

static void stop(void *context)
{
    struct ublk_exporter *x = context;
    for (size_t i = 0; i < x->count; i++)
        (x->taking_over ? ublk_export_abandon : ublk_export_free)(x->exports[i]);
    if (!x->taking_over)
        unlink(x->served);
}

int ublk_runtime_main(const struct runtime_ops *ops, const char *config_path, const char *directory,
                      bool recoverable, const struct log *log)
{
    _cleanup_free_ struct ublk_exporter *x = calloc(1, sizeof *x);
    if (!x)
        return RUNTIME_EXIT_FAILED;
    x->directory = directory;
    x->recoverable = recoverable;
    const struct exporter exporter = {.start = start, .stop = stop, .context = x};
    return runtime_main(ops, config_path, &exporter, log);
}
