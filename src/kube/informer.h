/* SPDX-License-Identifier: Apache-2.0 */
/* Informers: list, then watch, for as long as wanted, and a callback for each change. One thread and few
 * connections (HTTP/2) serve any number of kinds.
 *
 * Invariants: I1 between two callbacks `synced` of an informer, the events make the cache what the server
 * listed; I2 an object whose kept form is the same as before gives no event; I3 what may have passed unseen
 * (a 410, a list after an error) is said by `gap` before the list's events; I4 no more than
 * KUBE_INFORMER_LISTS chunks are in memory at once, each of KUBE_INFORMER_PAGE_LIMIT_BYTES or of one object.
 *
 * Memory: of an object only its key and, as options say, the compact text or nothing but a hash of what
 * `reduce` left.
 *
 * Threads: kube_informers_* may be called from any thread but the callbacks; callbacks run in the set's
 * thread, one at a time, may block (all watches wait meanwhile; the kernel and the server buffer) and may
 * call kube_informer_get, not the rest. */
#ifndef TIDEMARK_KUBE_INFORMER_H
#define TIDEMARK_KUBE_INFORMER_H

#include "kube/kube.h"

#define KUBE_INFORMER_LISTS 4u
#define KUBE_INFORMER_CHUNK 200u
#define KUBE_INFORMER_PAGE_BYTES (2u << 20) /* of a chunk: large objects come in fewer at a time */
#define KUBE_INFORMER_PAGE_LIMIT_BYTES                                                                       \
    (8u << 20) /* beyond it a chunk of several objects is given up, and half as many asked for */
#define KUBE_WATCH_TIMEOUT_S 300u
#define KUBE_WATCH_IDLE_S 150u /* bookmarks come every minute */
#define KUBE_WATCH_LINE_LIMIT_BYTES (16u << 20)

struct kube_informers;
struct kube_informer;

enum kube_event { KUBE_ADDED, KUBE_CHANGED, KUBE_DELETED };
enum kube_keep { KUBE_KEEP_HASH, KUBE_KEEP_TEXT };

struct kube_informer_ops {
    /* Cuts `object` down to what counts, in place. false: it does not count; it is then as if it were not
     * there. NULL: all but metadata.managedFields counts (they are dropped after it). */
    bool (*reduce)(void *context, const struct kube_resource *resource, json_t *object);
    /* `object` is what reduce left (borrowed), `version` its resourceVersion (versions of a kind are numbers
     * that grow). When deleted: its last form, or NULL where only its name is known (it was gone in a list,
     * and texts are not kept). */
    void (*event)(void *context, const struct kube_resource *resource, enum kube_event event,
                  const char *namespace, const char *name, uint64_t version, json_t *object);
    /* The cache is what the server has. `count` objects. May be NULL. */
    void (*synced)(void *context, const struct kube_resource *resource, size_t count);
    /* Changes between the last event and now may have passed unseen; a list follows. May be NULL. */
    void (*gap)(void *context, const struct kube_resource *resource, const char *reason);
    /* List or watch failed and will be tried again. May be NULL. */
    void (*failed)(void *context, const struct kube_resource *resource, const struct error *error);
    void *context;
};
struct kube_informer_options {
    const struct kube_resource *resource; /* copied */
    const char *namespace;                /* NULL: all */
    const char *label_selector, *field_selector;
    enum kube_keep keep;
    unsigned chunk;           /* objects a list chunk at most; 0: KUBE_INFORMER_CHUNK */
    unsigned watch_timeout_s; /* after which the server ends a watch and it begins again; 0:
                                 KUBE_WATCH_TIMEOUT_S */
    unsigned idle_s;          /* without a byte: the watch is taken for dead, and goes on with another connection; 0: KUBE_WATCH_IDLE_S */
    struct kube_informer_ops ops;
};

int kube_informers_new(struct kube_client *client, const struct log *log, struct kube_informers **ret,
                       struct error *err) MUST_CHECK;
/* Ends the thread: no callback runs after it. NULL allowed. */
void kube_informers_free(struct kube_informers *set);
/* The informer belongs to the set; it begins at once. */
int kube_informers_add(struct kube_informers *set, const struct kube_informer_options *options,
                       struct kube_informer **ret, struct error *err) MUST_CHECK;
/* Forgets it with its cache, without events. Returns when no callback of it runs any more. */
void kube_informers_remove(struct kube_informers *set, struct kube_informer *informer);
/* Whether it has listed everything once. */
bool kube_informer_synced(struct kube_informer *informer);
/* A copy of the kept object, owned by the caller; NULL when it is not there or only hashes are kept. */
json_t *kube_informer_get(struct kube_informer *informer, const char *namespace, const char *name);
/* Calls visit for each kept object (KUBE_KEEP_TEXT; `object` is borrowed) until it returns false. */
void kube_informer_each(struct kube_informer *informer, const char *namespace,
                        bool (*visit)(void *context, json_t *object), void *context);

#endif
