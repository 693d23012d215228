/* SPDX-License-Identifier: Apache-2.0 */
/* What the history of the objects is asked beside their contents. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/object_store_internal.h"

/* What was seen before the question is in the answer; what cannot be journaled is told elsewhere. The io
 * mutex is not held. */
static void settle(struct object_store *store, const char *namespace, const char *application)
{
    struct error unused = ERROR_INIT;
    if (object_store_flush(store, namespace, application, &unused) < 0)
        unused = ERROR_INIT;
}

int object_store_resolve(struct object_store *store, const char *namespace, const char *application,
                         const struct point *point, struct journal_point *ret, struct error *err)
{
    struct journal *journal;
    bool existed;
    settle(store, namespace, application);
    MUTEX_GUARD(io, &store->io);
    int r = store_journal(store, namespace, application, false, &journal, &existed, err);
    return r < 0 ? r : journal_resolve(journal, point, ret, err);
}

int object_store_oldest(struct object_store *store, const char *namespace, const char *application,
                        struct journal_point *ret, struct error *err)
{
    struct journal *journal;
    struct journal_status status;
    bool existed;
    MUTEX_GUARD(io, &store->io);
    int r = store_journal(store, namespace, application, false, &journal, &existed, err);
    if (r < 0)
        return r;
    journal_status(journal, &status);
    *ret = (struct journal_point){.lsn = status.oldest, .realtime_ns = status.oldest_realtime_ns};
    return 0;
}

int object_store_events(struct object_store *store, const char *namespace, const char *application,
                        journal_event_visit visit, void *context, struct error *err)
{
    struct journal *journal;
    bool existed;
    settle(store, namespace, application);
    MUTEX_GUARD(io, &store->io);
    int r = store_journal(store, namespace, application, false, &journal, &existed, err);
    return r < 0 ? r : journal_events(journal, LSN_NONE, LSN_MAX, false, visit, context, err);
}

/* The journal stays open and keeps its files until end_verifying; *ret is its place among the open ones. */
static int begin_verifying(struct object_store *store, const char *namespace, const char *application,
                           struct open_journal **ret, struct error *err)
{
    struct journal *journal;
    bool existed;
    settle(store, namespace, application);
    MUTEX_GUARD(io, &store->io);
    int r = store_journal(store, namespace, application, false, &journal, &existed, err);
    if (r < 0 || (r = journal_seal(journal, err)) < 0)
        return r;
    for (size_t i = 0; i < OBJECT_STORE_JOURNALS; i++)
        if (store->journals[i].journal == journal)
            *ret = &store->journals[i];
    (*ret)->busy = true;
    journal_hold(journal);
    return 0;
}

int object_store_verify(struct object_store *store, const char *namespace, const char *application,
                        const struct verify_report *report, struct verify_summary *ret, struct error *err)
{
    struct open_journal *open = NULL;
    MUTEX_GUARD(one, &store->verifying); /* so that another journal can be open meanwhile */
    int r = begin_verifying(store, namespace, application, &open, err);
    if (r < 0)
        return r;
    r = journal_verify(journal_directory(open->journal), report, ret, err);
    MUTEX_GUARD(io, &store->io);
    journal_unhold(open->journal);
    open->busy = false;
    return r;
}
