/* SPDX-License-Identifier: Apache-2.0 */
/* State outside the cluster: object storage, databases, queues that an application's environment, config
 * maps, secrets and services point to. A rewind does not reach them.
 *
 * A finding names object, field, what it is, and a host with its port. It never holds user, password, path or
 * query of a URL; of Secrets only URLs and fields whose keys say that they are hosts are looked at, and only
 * the host is told.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_FINDINGS_H
#define TIDEMARK_APP_FINDINGS_H

#include <jansson.h>

#include "app/objects.h"

#define FINDINGS_MAX 100u

/* *ret: {"findings": [{"object": journal name, "field": "data.url", "type": "object
 * storage"|"database"|"cache"|"queue"|"search"| "file share"|"service", "host": "db.example.com", "port":
 * 5432 or missing}], "count": N}; sorted by object; at most FINDINGS_MAX are listed. Hosts inside the cluster
 * (services of the set, *.svc, cluster.local, localhost, loopback) are none. */
int findings_of_set(const json_t *set, json_t **ret, struct error *err) MUST_CHECK;
/* The same of objects that are not in memory together: `names` has their journal names as keys, and `load`
 * gives each when it is its turn; *ret is the callee's then. */
typedef int (*findings_load)(void *context, const char *name, json_t **ret, struct error *err);
int findings_of(const json_t *names, findings_load load, void *context, json_t **ret,
                struct error *err) MUST_CHECK;

#endif
