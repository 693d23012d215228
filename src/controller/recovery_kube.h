/* SPDX-License-Identifier: Apache-2.0 */
/* The ops of recoveries over the Kubernetes client. */
#ifndef TIDEMARK_CONTROLLER_RECOVERY_KUBE_H
#define TIDEMARK_CONTROLLER_RECOVERY_KUBE_H

#include <pthread.h>

#include "controller/recovery.h"
#include "kube/discovery.h"
#include "kube/kube.h"

extern const struct kube_resource controller_recoveries;

/* What cluster and store ops get as context. Made for one run; release it. */
struct recovery_kube {
    struct kube_client *client;
    const struct log *log;
    bool (*leads)(void *context); /* whether this process may still change anything; NULL: it may */
    void *leads_context;
    json_t *requester; /* of the annotation; holds the texts of `user` */
    bool impersonates;
    struct kube_user user;
    const char *groups[KUBE_MAX_GROUPS];
    struct kube_extra extra[KUBE_MAX_EXTRA];
    pthread_mutex_t mutex;   /* of what follows: kinds may be asked for again while objects are put back */
    struct kube_kinds kinds; /* as asked for last */
    uint64_t kinds_ns;       /* boottime: when; 0: not yet */
    json_t *texts;           /* of resources that were given out: they stay */
};
extern const struct recovery_cluster_ops recovery_kube_cluster;
extern const struct recovery_store_ops recovery_kube_store;

/* `recovery` says who asked (RECOVERY_REQUESTER_ANNOTATION). -EPERM when nobody is recorded: the webhook was
 * not there, and a recovery must not act with the controller's rights. */
int recovery_kube_init(struct recovery_kube *k, struct kube_client *client, const json_t *recovery,
                       const struct log *log, struct error *err) MUST_CHECK;
void recovery_kube_release(struct recovery_kube *k);

#endif
