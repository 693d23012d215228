/* SPDX-License-Identifier: Apache-2.0 */
/* GET /metrics of the controller: what nothing protects, applications, their streams and objects, recoveries,
 * schedules. From what informers and reconcilers know: a scrape asks nobody. Replicas that do not lead tell
 * that alone.
 *
 * Threads: controller_metrics_text from any. */
#ifndef TIDEMARK_CONTROLLER_CONTROLLER_METRICS_H
#define TIDEMARK_CONTROLLER_CONTROLLER_METRICS_H

#include "base/error.h"

struct controller_metrics;
struct controller;

int controller_metrics_new(struct controller_metrics **ret, struct error *err) MUST_CHECK;
/* After controller_metrics_end. NULL allowed. */
void controller_metrics_free(struct controller_metrics *metrics);
/* A term as leader. NULL allowed for `metrics`. */
void controller_metrics_begin(struct controller_metrics *metrics, struct controller *c);
void controller_metrics_end(struct controller_metrics *metrics);
/* Prometheus' text format 0.0.4. The caller frees it; NULL: out of memory. */
char *controller_metrics_text(struct controller_metrics *metrics);

#endif
