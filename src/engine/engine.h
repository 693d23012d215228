/* SPDX-License-Identifier: Apache-2.0 */
/* The engine of one stream: journal, volumes and control socket, wired from a configuration file (docs/internals.md).
 * Exports serve its volumes; it does not know how. */
#ifndef TIDEMARK_ENGINE_ENGINE_H
#define TIDEMARK_ENGINE_ENGINE_H

#include <stdbool.h>

#include "base/error.h"
#include "base/log.h"
#include "block/block.h"

struct engine;

/* Reads the configuration, recovers the journal, opens the volumes, serves the control socket. Blocks while it does.
 * `log` is borrowed. -EINVAL, -EBUSY, -EBADMSG, -EPROTONOSUPPORT: starting it again will not help. */
int engine_start(const char *config_path, const struct log *log, struct engine **ret, struct error *err) MUST_CHECK;
/* With no I/O running: a clean end. NULL allowed. */
int engine_stop(struct engine *e, struct error *err) MUST_CHECK;
/* Before the exports end: writes that wait for a journal that is suspended (failure mode `protection`) return an error. */
void engine_stopping(struct engine *e);
size_t engine_volume_count(const struct engine *e);
const char *engine_volume_name(const struct engine *e, size_t i);
struct block *engine_volume_block(struct engine *e, size_t i);

/* What the export has called when the volumes' content is about to change below their users:
 * export/runtime.h, set_gate. NULL: nothing. */
typedef int engine_gate(void *context, bool closed, struct error *err);
void engine_set_gate(struct engine *e, engine_gate *gate, void *context);

/* A view: volumes of a pin with an overlay each, and its control socket. */
struct engine_view;
int engine_view_start(const char *config_path, const struct log *log, struct engine_view **ret, struct error *err) MUST_CHECK;
void engine_view_stop(struct engine_view *v);
size_t engine_view_volume_count(const struct engine_view *v);
const char *engine_view_volume_name(const struct engine_view *v, size_t i);
struct block *engine_view_volume_block(struct engine_view *v, size_t i);

/* Whether this program could serve the configuration and its journal: reads both, changes nothing, prints
 * {"version": "..."} to stdout. */
int engine_check(const char *config_path, struct error *err) MUST_CHECK;

/* Copies the volumes of a pinned point to new files, or counts what would be copied, and prints one JSON object a line to
 * stdout: progress, and a summary. The configuration: docs/internals.md. */
int engine_copy(const char *config_path, struct error *err) MUST_CHECK;

/* Reads everything in the journal and prints one JSON object a line to stdout: damage, progress, and a summary. 0, or
 * -EBADMSG when there is damage. */
int engine_verify(const char *config_path, const char *pin, struct error *err) MUST_CHECK;

#endif
