/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "export/nbd.h"

struct nbd_exporter {
    const char *socket_path, *pid_path;
    struct nbd_server *server;
    const struct runtime_ops *ops;
    struct runtime *runtime;
};

static int gate(void *context, bool closed, struct error *err)
{
    return nbd_server_gate(context, closed, err);
}

static int start(void *context, const struct runtime_ops *ops, struct runtime *runtime, const struct log *log,
                 struct error *err)
{
    struct nbd_exporter *x = context;
    struct block *blocks[NBD_MAX_EXPORTS];
    const char *names[NBD_MAX_EXPORTS];
    struct nbd_server_options options = {.socket_path = x->socket_path,
                                         .count = ops->volume_count(runtime),
                                         .blocks = blocks,
                                         .names = names,
                                         .log = log};
    if (options.count > NBD_MAX_EXPORTS)
        return error_set(err, -EINVAL, "cannot serve %zu volumes by NBD: %u at most", options.count,
                         NBD_MAX_EXPORTS);
    for (size_t i = 0; i < options.count; i++) {
        blocks[i] = ops->volume_block(runtime, i);
        names[i] = ops->volume_name(runtime, i);
    }
    int r = nbd_server_start(&options, &x->server, err);
    if (r == 0 && ops->set_gate) {
        x->ops = ops;
        x->runtime = runtime;
        ops->set_gate(runtime, gate, x->server);
    }
    return r < 0 || !x->pid_path ? r : io_write_pid_file(x->pid_path, 0600, err);
}

static void stop(void *context)
{
    struct nbd_exporter *x = context;
    if (x->ops)
        x->ops->set_gate(x->runtime, NULL, NULL);
    nbd_server_free(x->server);
    if (x->pid_path)
        unlink(x->pid_path);
}

int nbd_runtime_main(const struct runtime_ops *ops, const char *config_path, const char *socket_path,
                     const char *pid_path, const struct log *log)
{
    struct nbd_exporter x = {.socket_path = socket_path, .pid_path = pid_path};
    const struct exporter exporter = {.start = start, .stop = stop, .context = &x};
    return runtime_main(ops, config_path, &exporter, log);
}
