/* SPDX-License-Identifier: Apache-2.0 */
/* What an object refers to, and what an application therefore needs from outside its namespace.
 *
 * One table (references.c) says where in each kind names of other objects stand; it serves the closure, the
 * order of a restore, and the renaming of references by transforms. In kinds that the table does not know,
 * fields that are by custom the names of secrets and config maps (secretName, ...SecretRef, configMapRef ...)
 * are taken as optional references.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_REFERENCES_H
#define TIDEMARK_APP_REFERENCES_H

#include <jansson.h>
#include <stdbool.h>

#include "app/objects.h"
#include "base/error.h"

#define REFERENCES_MISSING_MAX 200u /* listed; all are counted */

struct reference {
    const char *group, *kind;
    const char *namespace; /* "" for cluster-scoped ones; either may be meant when `any_scope` */
    const char
        *name; /* "" with kind CustomResourceDefinition: the one that defines group and kind of the object */
    const char *path; /* dotted, of the field */
    bool optional;    /* the object works without it, or it is only a guess */
    bool owner;       /* an ownerReference */
    bool any_scope;
    /* Where it stands, so that it can be renamed. key NULL: it follows from the object's kind. */
    json_t *holder;
    const char *key;
    const char *namespace_key; /* of the same holder, or NULL */
};
/* What visit returns other than 0 ends the walk and is returned. It may set the texts at key and
 * namespace_key. */
typedef int (*reference_visit)(void *context, const struct reference *reference);
int references_visit(json_t *object, reference_visit visit, void *context);

/* An index of a set by group, kind, namespace and name (the version does not count). */
json_t *references_index(const json_t *set);
/* The journal name of what is referred to, or NULL. Borrowed from the index. */
const char *references_find(const json_t *index, const struct reference *reference);

/* What the application needs: `set` holds everything that was seen (its own objects and cluster-scoped ones),
 * `namespace` says which is its own ("": all namespaced ones). *ret is
 *   {"objects": [journal name ...],               # sorted: its own and all that they refer to, directly or
 * not "cluster": [journal name ...],               # those of them without a namespace or in another one
 *    "missing": [{"group","kind","namespace","name","optional","from","field"} ...],   # at most
 * REFERENCES_MISSING_MAX "missingCount": N} Cluster-scoped objects that point into the application (role
 * bindings, webhooks, API services) belong to it, too. What every cluster has of itself (system:...,
 * cluster-admin, system-node-critical) does not. */
int references_closure(const json_t *set, const char *namespace, json_t **ret, struct error *err) MUST_CHECK;

/* Whether the object is one that every cluster has of itself. */
bool object_is_bootstrap(const char *group, const char *kind, const char *name);

#endif
