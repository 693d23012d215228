/* SPDX-License-Identifier: Apache-2.0 */
/* What an export serves, seen from here: a set of named volumes that the layer above (engine) starts and
 * stops. It stands here so that FUSE and NBD, the two ways out, need to know nothing of journals. */
#ifndef TIDEMARK_EXPORT_RUNTIME_H
#define TIDEMARK_EXPORT_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/log.h"
#include "block/block.h"

struct runtime;

typedef int runtime_gate(void *context, bool closed, struct error *err);

struct runtime_ops {
    /* Starts from the configuration file; called once the process has its final pid and signals SIGTERM and
     * SIGINT are blocked in it. A refused configuration or journal is -EINVAL or another -errno for which
     * `refused` (below) is true. */
    int (*start)(const char *config_path, struct runtime **ret, struct error *err);
    /* Fixed from start to stop. Names are distinct; names and blocks are valid until stop, and not owned. */
    size_t (*volume_count)(const struct runtime *runtime);
    const char *(*volume_name)(const struct runtime *runtime, size_t index);
    struct block *(*volume_block)(struct runtime *runtime, size_t index);
    /* The exports have ended before: no call to a block is under way. */
    void (*stop)(struct runtime *runtime);
    /* Whether the error of a failed start is one that a new try cannot mend (exit status 78): the
     * configuration or the journal is refused. NULL: every error is. */
    bool (*refused)(const struct error *err);
    /* The exports are about to end: calls to blocks that wait for something that may not come for long return an error now.
     * NULL: there are none. */
    void (*stopping)(struct runtime *runtime);
    /* Gives the runtime what it calls when the content of all volumes is about to be another below their
     * users (a rewind): `closed`: their requests have ended and they were sent away when it returns 0, and
     * nobody is let in until it is called with false. An export without it has to know that nobody uses the
     * volumes. NULL function: the export ends. NULL: not needed. */
    void (*set_gate)(struct runtime *runtime, runtime_gate *gate, void *context);
};

/* A way out: FUSE or NBD. */
struct exporter {
    int (*start)(void *context, const struct runtime_ops *ops, struct runtime *runtime, const struct log *log, struct error *err);
    void (*stop)(void *context); /* also after a start that failed */
    void *context;
};

#define RUNTIME_EXIT_FAILED 1
#define RUNTIME_EXIT_REFUSED 78 /* EX_CONFIG: starting again mends nothing */

/* The body of a program: starts the runtime and the export of its volumes, waits for SIGTERM or SIGINT, stops both and
 * returns the exit status of the process: 0 or the above; errors are logged. Call it from main before there are threads: it
 * blocks both signals. Whatever in the process wants it to end sends SIGTERM to getpid(). Locks the memory of the process. */
int runtime_main(const struct runtime_ops *ops, const char *config_path, const struct exporter *exporter, const struct log *log);

/* Defined in src/engine: the data plane over engine.json, and a view over view.json. Static storage. */
const struct runtime_ops *runtime_serve_ops(void);
const struct runtime_ops *runtime_view_ops(void);

#endif
