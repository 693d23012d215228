/* SPDX-License-Identifier: Apache-2.0 */
/* The node agent's process: start, wait for a signal, end. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "csi/node_internal.h"

#define HTTP_THREADS 4u

static int check_options(const struct csi_node_options *o, struct error *err)
{
    if (geteuid() != 0)
        return error_set(err, -EPERM,
                         "the node agent must be run as root: it mounts volumes (you are uid %d)",
                         (int)geteuid());
    if (!*o->node_name || strlen(o->node_name) >= CSI_LABEL_BYTES)
        return error_set(err, -EINVAL, "the node's name '%.100s' is empty or too long", o->node_name);
    if (o->listen_address && (!o->tls_certificate || !o->tls_key || !o->tls_ca))
        return error_set(
            err, -EINVAL,
            "--listen needs --tls-cert, --tls-key and --tls-ca: whoever reaches that address could "
            "rewind every volume of the node");
    return 0;
}

static int start(struct csi_node *node, struct error *err)
{
    const struct rpc_server_options rpc = {.socket_path = node->options.socket_path,
                                           .methods = node->methods,
                                           .context = node,
                                           .workers = NODE_WORKERS,
                                           .log = node->options.log};
    const struct http_server_options http = {.tls_address = node->options.listen_address,
                                             .tls_certificate = node->options.tls_certificate,
                                             .tls_key = node->options.tls_key,
                                             .tls_ca = node->options.tls_ca,
                                             .tls_client = node->options.tls_client,
                                             .threads = HTTP_THREADS,
                                             .log = node->options.log,
                                             .handler = node_api_handle,
                                             .context = node};
    int r = node_rewinds_continue(node, err);
    if (r == 0)
        r = rpc_server_start(&rpc, &node->rpc, err);
    if (r == 0 && node->options.listen_address)
        r = http_server_start(&http, &node->http, err);
    return r;
}

int csi_node_run(const struct csi_node_options *options, struct error *err)
{
    sigset_t stop;
    int number;
    int r = check_options(options, err);
    if (r < 0)
        return r;
    struct csi_node *node = calloc(1, sizeof *node);
    if (!node)
        return error_set(err, -ENOMEM, "out of memory");
    node->options = *options;
    if (!node->options.kubelet_directory)
        node->options.kubelet_directory = CSI_KUBELET_DIRECTORY;
    csi_methods(csi_node_methods, node->methods);
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    r = node_state_init(node, err);
    if (r == 0)
        r = start(node, err);
    if (r == 0) {
        if (options->ready)
            options->ready(options->context);
        sigwait(&stop, &number);
        log_info(options->log, "%s: stopping", strsignal(number));
    }
    atomic_store(&node->stopping, true);
    http_server_stop(node->http);
    node_rewinds_stop(node);
    /* A mount that hangs in the kernel cannot be waited for: what it was about is on disk (N1). */
    if (!rpc_server_stop(node->rpc))
        _exit(r < 0 ? 1 : 0);
    pthread_cond_destroy(&node->changed);
    pthread_mutex_destroy(&node->mutex);
    free(node);
    return r;
}
