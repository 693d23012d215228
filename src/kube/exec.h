/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a command in a container of a pod, over a WebSocket (v5.channel.k8s.io, or v4 on older servers).
 * Blocks its thread; thread-safe. */
#ifndef TIDEMARK_KUBE_EXEC_H
#define TIDEMARK_KUBE_EXEC_H

#include "kube/kube.h"

#define KUBE_EXEC_COLLECT_BYTES (64u << 10)

struct kube_exec {
    const char *namespace, *pod;
    const char *container;   /* NULL: the only one, or the pod's default */
    const char *const *argv; /* ends with NULL */
    const void
        *input; /* standard input, then its end; NULL: none. With v4 the command does not see the end. */
    size_t input_bytes;
    unsigned timeout_ms; /* 0: KUBE_TIMEOUT_MS. The command goes on in the container when it is over. */
    const struct kube_user *as;
    /* Called for output as it comes, `stream` 1 or 2; not 0: ends with that. NULL: thrown away. */
    int (*output)(void *context, int stream, const void *data, size_t length_bytes);
    void *context;
};
/* *ret_status: the command's exit status. An error when it could not be run; -ETIMEDOUT. */
int kube_exec(struct kube_client *client, const struct kube_exec *exec, int *ret_status,
              struct error *err) MUST_CHECK;
/* The same with the first KUBE_EXEC_COLLECT_BYTES of both streams as text (`exec.output` is ignored). Free
 * *ret_output. */
int kube_exec_collect(struct kube_client *client, const struct kube_exec *exec, int *ret_status,
                      char **ret_output, struct error *err) MUST_CHECK;

#endif
