/* SPDX-License-Identifier: Apache-2.0 */
/* What the history of the objects is asked beside their contents. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/object_store_internal.h"

/* What was seen before the question is in the answer; what cannot be journaled is told elsewhere. */
static void settle(struct object_store *store, const char *namespace, const char *application)
{
    struct error unused = ERROR_INIT;
    if (object_store_flush(store, namespace, application, &unused) < 0)
        unused = ERROR_INIT;
}

int object_store_resolve(struct object_store *store, const char *namespace, const char *application,
                         const struct point *point, struct journal_point *ret, struct error *err)
{
    struct open_journal *open = NULL;
    bool existed;
    settle(store, namespace, application);
    int r = store_acquire(store, namespace, application, false, &open, &existed, err);
    if (r == 0)
        r = journal_resolve(open->journal, point, ret, err);
    store_release(store, open);
    return r;
}

int object_store_oldest(struct object_store *store, const char *namespace, const char *application,
                        struct journal_point *ret, struct error *err)
{
    struct open_journal *open = NULL;
    struct journal_status status;
    bool existed;
    int r = store_acquire(store, namespace, application, false, &open, &existed, err);
    if (r < 0)
        return r;
    journal_status(open->journal, &status);
    store_release(store, open);
    *ret = (struct journal_point){.lsn = status.oldest, .realtime_ns = status.oldest_realtime_ns};
    return 0;
}

int object_store_events(struct object_store *store, const char *namespace, const char *application,
                        journal_event_visit visit, void *context, bool *damaged, struct error *err)
{
    struct open_journal *open = NULL;
    bool existed;
    settle(store, namespace, application);
    int r = store_acquire(store, namespace, application, false, &open, &existed, err);
    if (r == 0)
        r = journal_events(open->journal, LSN_NONE, LSN_MAX, false, visit, context, damaged, err);
    store_release(store, open);
    return r;
}

int object_store_verify(struct object_store *store, const char *namespace, const char *application,
                        const struct verify_report *report, struct verify_summary *ret, struct error *err)
{
    struct open_journal *open = NULL;
    bool existed;
    MUTEX_GUARD(one, &store->verifying); /* so that other journals can be open meanwhile */
    settle(store, namespace, application);
    int r = store_acquire(store, namespace, application, false, &open, &existed, err);
    if (r == 0 && (r = journal_seal(open->journal, err)) == 0) {
        journal_hold(open->journal); /* its files stay */
        r = journal_verify(journal_directory(open->journal), report, ret, err);
        journal_unhold(open->journal);
    }
    store_release(store, open);
    return r;
}
