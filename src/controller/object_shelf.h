/* SPDX-License-Identifier: Apache-2.0 */
/* Whole objects that wait until it is their turn: the first SHELF_MEMORY_BYTES in memory, more in a file that
 * has no name any more, each sealed by a key that is in memory alone (they may be Secrets); in memory when the
 * disk has no more than SHELF_SPARED_BYTES left, since it is then that somebody recovers something.
 *
 * Threads: object_shelf_get by several at once, while nobody changes the shelf. All block. */
#ifndef TIDEMARK_CONTROLLER_OBJECT_SHELF_H
#define TIDEMARK_CONTROLLER_OBJECT_SHELF_H

#include <jansson.h>

#include "base/error.h"

#define SHELF_MEMORY_BYTES (2u << 20)
#define SHELF_SPARED_BYTES (256u << 20)

struct object_shelf;

/* `directory`: where the file is; NULL, or one that cannot be written to: there is none. */
int object_shelf_new(const char *directory, struct object_shelf **ret, struct error *err) MUST_CHECK;
void object_shelf_free(struct object_shelf *shelf);
/* In the place of what has the name. -ENOMEM. */
int object_shelf_put(struct object_shelf *shelf, const char *name, const json_t *object,
                     struct error *err) MUST_CHECK;
void object_shelf_drop(struct object_shelf *shelf, const char *name);
/* {name before: name now}; what is not among them keeps its name. -ENOMEM: nothing was changed. */
int object_shelf_rename(struct object_shelf *shelf, const json_t *names) MUST_CHECK;
/* The caller owns *ret. -ENOENT: nothing has the name. -EIO, -EBADMSG. */
int object_shelf_get(struct object_shelf *shelf, const char *name, json_t **ret,
                     struct error *err) MUST_CHECK;

#endif
