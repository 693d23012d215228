/* SPDX-License-Identifier: Apache-2.0 */
/* The journals of the objects of protected applications: DIRECTORY/NAMESPACE/APPLICATION is a journal each
 * (docs/formats/journal.md) whose objects have the names of app/objects.h. Secrets are sealed
 * (controller/sealing.h).
 *
 * Invariants: S1 an object is journaled when its normalized form differs from the journaled one, and only
 * then; S2 the records of an application stand in the order of the calls; S3 an older version of an object
 * never follows a newer one (lists and watches overlap); S4 at most OBJECT_STORE_JOURNALS journals are open
 * (each holds some 100 KiB when it is idle) and OBJECT_STORE_PENDING_BYTES wait to be written: beyond that
 * object_store_put blocks; S5 applications are written in turn: one that changes all the time does not keep
 * others waiting; S6 what waits of one application becomes durable together;
 * S7 of an application that was ended nothing is journaled that is newer than its end.
 *
 * Threads: all functions from any. OBJECT_STORE_WRITERS threads of the store write, an application at a time
 * each. Lock order: verifying or keeping, then io or mutex. */
#ifndef TIDEMARK_CONTROLLER_OBJECT_STORE_H
#define TIDEMARK_CONTROLLER_OBJECT_STORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "controller/sealing.h"
#include "journal/journal.h"
#include "journal/verify.h"

#define OBJECT_STORE_JOURNALS 128u
#define OBJECT_STORE_JOURNALS_MIN 2u
#define OBJECT_STORE_WRITERS 4u
#define OBJECT_STORE_PENDING_BYTES (8u << 20)

struct object_store;

/* Copies `directory`; the rest is borrowed. `journals`: how many are open at most; 0: OBJECT_STORE_JOURNALS,
 * or fewer where the process may not have as many files open. */
int object_store_new(const char *directory, const struct sealing *sealing, const struct log *log,
                     unsigned journals, struct object_store **ret, struct error *err) MUST_CHECK;
/* What waits in object_store_put and object_store_flush returns with -ECANCELED, and so do later calls: its threads can be
 * joined, whatever a full disk says. NULL allowed. */
void object_store_interrupt(struct object_store *store);
/* Writes what waits, closes all journals. NULL allowed. */
void object_store_free(struct object_store *store);

/* Begins to keep an application, from what its journal has. *ret_resumed: the journal was there already (a
 * gap is recorded: nobody looked meanwhile). 0 when it is kept already. */
int object_store_keep(struct object_store *store, const char *namespace, const char *application,
                      bool *ret_resumed, struct error *err) MUST_CHECK;
/* Ends that; the journal stays. */
void object_store_drop(struct object_store *store, const char *namespace, const char *application);
/* The namespace is being deleted, since `version`: what becomes of its objects from then on is no history of theirs, and the last record is
 * the last that is whole. A gap with the reason stands behind it. Once they are kept anew, after object_store_drop, that is over. */
int object_store_end(struct object_store *store, const char *namespace, uint64_t version, const char *reason, struct error *err) MUST_CHECK;
bool object_store_has_ended(struct object_store *store, const char *namespace, const char *application);
bool object_store_keeps(struct object_store *store, const char *namespace, const char *application);

/* The object (normalized; NULL: deleted) has this form at this resourceVersion (0: not known). -ENOENT: not
 * kept. Journaled soon. */
int object_store_put(struct object_store *store, const char *namespace, const char *application,
                     const char *journal_name, const json_t *object, uint64_t version,
                     struct error *err) MUST_CHECK;
/* A list beside the watch begins: what is put from now on is taken note of, and deletions with their versions
 * (S3), until it ends. Another list of the application must not be under way. */
void object_store_list(struct object_store *store, const char *namespace, const char *application,
                       bool begins);
/* Journals the deletion of the objects of GROUP and KIND that were not put since the application is kept or
 * its list began, unless their version is above `version` (0: any). To be called once a list of the kind is
 * complete. */
int object_store_sweep(struct object_store *store, const char *namespace, const char *application,
                       const char *group, const char *kind, uint64_t version, struct error *err) MUST_CHECK;
/* A list of all objects of GROUP and KIND begins, of a kind that is watched from now on, or again: in another version, say,
 * under whose name nothing is known yet. Applications that are listed by themselves meanwhile are left to that. */
void object_store_list_kind(struct object_store *store, const char *group, const char *kind);
/* It is complete: journals, in all applications, the deletion of the objects that were not put since, whatever the version in
 * their names. */
int object_store_sweep_kind(struct object_store *store, const char *group, const char *kind,
                            struct error *err) MUST_CHECK;
/* Changes may have passed unseen, in one application or (NULL) all. */
void object_store_gap(struct object_store *store, const char *namespace, const char *application,
                      const char *reason);

/* Waits until what was put of the application before the call is durable; 0 when it is not kept. -EIO with
 * the reason when it cannot be. */
int object_store_flush(struct object_store *store, const char *namespace, const char *application,
                       struct error *err) MUST_CHECK;
/* Where it is. */
const char *object_store_directory(const struct object_store *store);
/* Calls visit (NULL: not) with each object as of a point, Secrets opened, also of applications that are not
 * kept; `object` is borrowed. -ENOENT: there is no journal. Blocks. `ret_point` may be NULL. */
typedef int (*object_visit)(void *context, const char *name, json_t *object, struct error *err);
int object_store_visit(struct object_store *store, const char *namespace, const char *application,
                       const struct point *point, object_visit visit, void *context,
                       struct journal_point *ret_point, struct error *err) MUST_CHECK;
/* All of them: {journal name: normalized object}, Secrets opened; also of applications that are
 * not kept. -ENOENT: there is no journal. Blocks. `ret_point` may be NULL. */
int object_store_read(struct object_store *store, const char *namespace, const char *application,
                      const struct point *point, json_t **ret_set, struct journal_point *ret_point,
                      struct error *err) MUST_CHECK;

/* Names the present moment of an application that is kept, after all that was put. -EEXIST. Blocks. */
int object_store_tag(struct object_store *store, const char *namespace, const char *application,
                     const char *name, struct journal_point *ret, struct error *err) MUST_CHECK;

/* The point's record; the oldest point that there is. As object_store_read. */
int object_store_resolve(struct object_store *store, const char *namespace, const char *application,
                         const struct point *point, struct journal_point *ret, struct error *err) MUST_CHECK;
int object_store_oldest(struct object_store *store, const char *namespace, const char *application,
                        struct journal_point *ret, struct error *err) MUST_CHECK;
/* Calls visit for each event of the journal, newest first (journal_events); what was put before is among them. visit must not
 * call the store. */
int object_store_events(struct object_store *store, const char *namespace, const char *application,
                        journal_event_visit visit, void *context, bool *damaged, struct error *err) MUST_CHECK;
/* Reads all of the journal (journal/verify.h) while it is used on; one at a time. -EBADMSG: damaged. */
int object_store_verify(struct object_store *store, const char *namespace, const char *application,
                        const struct verify_report *report, struct verify_summary *ret, struct error *err) MUST_CHECK;

struct object_store_status {
    size_t objects;  /* as far as known */
    size_t pending;  /* not yet written */
    char error[256]; /* why it cannot be written; "" */
};
int object_store_status(struct object_store *store, const char *namespace, const char *application,
                        struct object_store_status *ret, struct error *err) MUST_CHECK;

#endif
