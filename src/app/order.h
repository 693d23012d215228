/* SPDX-License-Identifier: Apache-2.0 */
/* In which order the objects of a set are made.
 *
 * Waves, each of which needs only what stands in earlier ones: by class of kind (namespaces, definitions,
 * classes, roles, config and secrets, claims, services, bare pods, limits and quotas, workloads, what uses them,
 * webhooks, what webhooks guard), and by the references between the objects where these say otherwise (an owner stands before what it
 * owns, whatever the kinds). A cycle is opened where it costs least: references that are no ownerships are
 * passed over first; each cycle is named.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_ORDER_H
#define TIDEMARK_APP_ORDER_H

#include <jansson.h>

#include "app/objects.h"

/* *ret: {"waves": [{"objects": [journal name ...], "awaits": [{"condition": "Established"|"Endpoints",
 * "object": journal name} ...]}], "cycles": [[journal name ...] ...]} What a wave awaits must hold before it
 * is applied: the definitions of its custom resources are established, and the services behind the webhooks
 * that it brings or is guarded by have endpoints. Names are sorted within a wave; the same set gives the same
 * order. */
int objects_order(const json_t *set, json_t **ret, struct error *err) MUST_CHECK;

#endif
