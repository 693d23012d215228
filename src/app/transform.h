/* SPDX-License-Identifier: Apache-2.0 */
/* Changes on the way from a recovery point to where its objects are put: `transforms` of a Recovery.
 *
 *   - {namespace: {from: shop, to: shop-test}}          # of the whole set, with all that refers to it
 *   - {rename: {from: web, to: web2}, target: {kind: Service}}
 *   - {host: {from: shop.example.com, to: test.example.com}}
 *   - {storageClass: {from: fast, to: standard}}
 *   - {image: {from: registry.old/, to: registry.new/}} # a prefix that ends at / : @ or the end
 *   - {replicas: 1, target: {kind: Deployment, name: web}}
 *   - {labels: {set: {env: test}, remove: [team]}, target: {...}}      # and annotations
 *   - {patch: [{op: replace, path: /spec/type, value: ClusterIP}], target: {kind: Service}}
 * `target` has any of group, kind, name, namespace, labels (a map); without it all objects are meant (rename
 * needs a kind; patch a kind or a name).
 *
 * Names are followed: references by the table of app/references.h, names of claims that a StatefulSet
 * expects, DNS names of services (NAME.NS, NAME.NS.svc...) in any text, in Secrets too; a namespace's also
 * where programs are told one (--namespace=NS, WATCH_NAMESPACE, matchNames, selectors by its name). A transform that
 * matches nothing is an error: it was meant to do something.
 *
 * Threads: values, no locks. Nothing blocks. */
#ifndef TIDEMARK_APP_TRANSFORM_H
#define TIDEMARK_APP_TRANSFORM_H

#include <jansson.h>

#include "app/objects.h"

#define TRANSFORMS_MAX 64u

/* Whether the list has the form above. -EINVAL names the transform by its place and says what is wrong. */
int transforms_check(const json_t *transforms, struct error *err) MUST_CHECK;
/* The objects, of which one at a time is held whole: what an application has is bounded by nothing but the
 * cluster. */
struct transform_objects {
    json_t *outlines; /* {journal name: outline (app/outline.h), or the object itself} */
    void *context;
    /* The caller owns *ret. */
    int (*get)(void *context, const char *name, json_t **ret, struct error *err);
    /* Under the name that it had before, whatever it is called now; `outlines` has its new outline then. */
    int (*put)(void *context, const char *name, json_t *object, struct error *err);
};
/* Applies them, in order; the objects are changed, also when it fails. *ret_names: {journal name before:
 * journal name after} of all objects, whose owner puts them under their names. -ENOENT when one matches
 * nothing; -EEXIST when two objects would have one name; -EINVAL when a result is no object, or a patch fails
 * (it names transform and object). */
int transforms_apply(const struct transform_objects *objects, const json_t *transforms, json_t **ret_names,
                     struct error *err) MUST_CHECK;

#endif
