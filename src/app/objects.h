/* SPDX-License-Identifier: Apache-2.0 */
/* An application's objects: what they are called, what of them is kept, what is left out.
 *
 * Invariants:
 *   O1 equal objects are equal bytes: object_canonical of the normalized object has sorted keys and nothing
 * that the API server, a controller or the moment put in. O2 normalizing twice is normalizing once. O3 an
 * object that only its status distinguishes from another is equal to it.
 *
 * A *set* of objects is a JSON object from journal names to normalized objects. The journal name is
 * GROUP/VERSION/KIND/NAMESPACE/NAME, with `core` for the empty group and `_` for no namespace.
 *
 * Threads: values, no locks. Nothing blocks, no I/O. Trees that come back belong to the caller. */
#ifndef TIDEMARK_APP_OBJECTS_H
#define TIDEMARK_APP_OBJECTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define OBJECTS_MAX 20000u          /* objects of one set */
#define OBJECT_DEPTH_MAX 200u       /* levels of nesting */
#define OBJECT_BYTES_MAX (1u << 20) /* canonical text: what a record of the journal holds */
#define OBJECT_NAME_BYTES 1024u     /* journal name with its NUL */
#define OBJECT_PATH_BYTES 512u      /* a field's path in messages; longer ones are cut */

/* What identifies an object. The strings point into `text` or into the object that was identified. */
struct object_id {
    const char *group; /* "" for core */
    const char *version;
    const char *kind;
    const char *namespace; /* "" for cluster-scoped ones */
    const char *name;
    char text[OBJECT_NAME_BYTES];
};

/* Reads apiVersion, kind, metadata.namespace and metadata.name. -EINVAL says which is missing. */
int object_identify(const json_t *object, struct object_id *ret, struct error *err) MUST_CHECK;
/* Takes a journal name apart. -EINVAL. */
int object_id_parse(const char *journal_name, struct object_id *ret, struct error *err) MUST_CHECK;
/* Writes the journal name. -ENAMETOOLONG. */
int object_journal_name(const struct object_id *id, char name[OBJECT_NAME_BYTES],
                        struct error *err) MUST_CHECK;
/* Whether the group is one that an API server has without CustomResourceDefinitions. */
bool object_group_is_builtin(const char *group);
/* Whether objects of the kind have no namespace, as far as that is known without asking the cluster. */
bool object_kind_is_cluster_scoped(const char *group, const char *kind);

/* Why the object is not worth keeping (a static text), or NULL when it is: Events, Leases, what a controller
 * derives from other objects and makes again, and Tidemark's own kinds. */
const char *object_noise(const json_t *object);

/* The object as it is kept: without managedFields, resourceVersion, uid, generation, status, timestamps, and
 * without what was allocated or generated (addresses and ports that nobody asked for, selectors of Jobs,
 * binding annotations, injected CA bundles, the tokens of service accounts). -EINVAL for what is no object,
 * -EFBIG beyond the budgets. */
int object_normalize(const json_t *object, json_t **ret, struct error *err) MUST_CHECK;
/* metadata.uid, or "" (it is not in the normalized object; an owner is found by its name, and has a new uid
 * then). */
const char *object_uid(const json_t *object);
/* Sorted keys, compact; the caller frees it. NULL when out of memory. */
char *object_canonical(const json_t *normalized);
/* "apps/v1" -> "apps"; "v1" -> "". Cut to the buffer, which is returned. */
const char *object_group_of(const char *api_version, char *buffer, size_t size);
/* The number of a quantity ("1500m", "1Gi", "2e3", 2), exact up to 2^64; negative: it is none. */
long double object_quantity(const json_t *value);
/* Whether the object is a Secret, whose values are sealed in the journal and never shown. */
bool object_is_secret(const json_t *object);

/* Puts the normalized form of the object into the set, in the place of one of the same name. Noise is left
 * out, and *ret_kept (NULL allowed) says so. -E2BIG beyond OBJECTS_MAX. */
int objects_add(json_t *set, const json_t *object, bool *ret_kept, struct error *err) MUST_CHECK;

#endif
