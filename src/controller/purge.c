/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/purge.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"

struct purge {
    const struct purge_ops *ops;
    void *context;
    const struct log *log;
    struct csi_volume *all;
    size_t count;
    uint64_t now_ns, next_ns;
};

uint64_t purge_keep_s(const struct csi_volume *v)
{
    if (v->keep_known)
        return v->keep_s;
    return *v->recovery ? 0 : PURGE_KEEP_DEFAULT_S;
}

static void tell(const struct purge *p, const char *what, const char *which, int code,
                 const struct error *err)
{
    if (code == -EBUSY || code == -EAGAIN) /* it passes */
        log_info(p->log, "%s %s: %s", what, which, err->message);
    else
        log_warning(p->log, "%s %s: %s", what, which, err->message);
}

/* Whether its Recovery, if it is a clone's, still works on it. True when that cannot be known now. */
static bool is_worked_on(const struct purge *p, const struct csi_volume *v)
{
    bool goes_on = false;
    struct error err = ERROR_INIT;
    if (!*v->recovery)
        return false;
    int r = p->ops->goes_on(p->context, v->recovery, &goes_on, &err);
    if (r < 0)
        tell(p, "clone's volume", v->handle, r, &err);
    return r < 0 || goes_on;
}

/* A clone that ended before its claims were made. */
static void look_at_clone(const struct purge *p, struct csi_volume *v)
{
    bool abandoned = false;
    struct error err = ERROR_INIT;
    if (!*v->recovery || v->deleted_ns || *v->published_node || is_worked_on(p, v))
        return;
    int r = p->ops->abandoned(p->context, v, &abandoned, &err);
    if (r == 0 && abandoned) {
        struct csi_volume changed = *v;
        changed.deleted_ns = p->now_ns;
        r = p->ops->save(p->context, &changed, &err);
        if (r == 0)
            *v = changed;
    }
    if (r < 0)
        tell(p, "clone's volume", v->handle, r, &err);
}

static void forget(const struct purge *p, const struct csi_volume *v)
{
    struct error err = ERROR_INIT;
    int r = p->ops->forget(p->context, v->handle, &err);
    if (r < 0)
        tell(p, "record of volume", v->handle, r, &err);
    else
        log_info(p->log, "volume %s (claim %s/%s): deleted for good", v->handle, v->claim_namespace,
                 v->claim_name);
}

static void note_due(struct purge *p, uint64_t due_ns)
{
    if (!p->next_ns || due_ns < p->next_ns)
        p->next_ns = due_ns;
}

static bool same_stream(const struct csi_volume *a, const struct csi_volume *b)
{
    return a == b || (*a->stream && strcmp(a->stream, b->stream) == 0);
}

/* The stream of `first`, which no earlier volume has. */
static void look_at_stream(struct purge *p, const struct csi_volume *first)
{
    uint64_t due_ns = 0;
    struct error err = ERROR_INIT;
    for (size_t i = 0; i < p->count; i++) {
        const struct csi_volume *v = &p->all[i];
        if (!same_stream(first, v))
            continue;
        if (!v->deleted_ns || *v->published_node) /* G1 */
            return;
        uint64_t one_ns = v->deleted_ns + purge_keep_s(v) * NS_PER_SECOND;
        due_ns = one_ns > due_ns ? one_ns : due_ns;
        if (is_worked_on(p, v)) /* G3 */
            return;
    }
    if (due_ns > p->now_ns) {
        note_due(p, due_ns);
        return;
    }
    int r = *first->stream ? p->ops->destroy(p->context, first->node, first->stream, &err) : 0;
    if (r < 0) {
        tell(p, "history of stream", first->stream, r, &err);
        for (size_t i = 0; i < p->count && p->ops->kept && r != -ECANCELED /* that says nothing about it */; i++)
            if (same_stream(first, &p->all[i]))
                p->ops->kept(p->context, &p->all[i], err.message);
        note_due(p, p->now_ns);
        return;
    }
    if (*first->stream)
        log_info(p->log, "stream %s%s%s: its volumes are deleted, its history is removed", first->stream,
                 *first->node ? " on node " : "", first->node);
    for (size_t i = 0; i < p->count; i++)
        if (same_stream(first, &p->all[i]))
            forget(p, &p->all[i]);
}

void purge_run(const struct purge_ops *ops, void *context, const struct log *log, struct csi_volume *all,
               size_t count, uint64_t now_ns, uint64_t *ret_next_ns)
{
    struct purge p = {ops, context, log, all, count, now_ns, 0};
    for (size_t i = 0; i < count; i++)
        look_at_clone(&p, &all[i]);
    for (size_t i = 0; i < count; i++) {
        bool seen = false;
        for (size_t k = 0; k < i; k++)
            seen |= same_stream(&all[k], &all[i]);
        if (!seen)
            look_at_stream(&p, &all[i]);
    }
    *ret_next_ns = p.next_ns;
}
