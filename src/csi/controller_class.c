/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes of backing class in the Controller service.
 *
 * Invariants:
 *   K1  a stream is attached to one node at a time: it is attached to another only after the agent of the
 * last one has said that its journal is closed, or the cluster's administrator that the node is gone
 * (csi_class_ops.detach) K2  the record says that a volume is published before anything is made for it, and
 * that it is not any more only after everything is taken away: whatever is killed in between, the same call
 * again goes on K3  one attaching or detaching of a stream at a time; the mutex is not held meanwhile
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/units.h"
#include "csi/csi_internal.h"

#define WAIT_MS 10000u /* of a call, for pods and claims; the sidecars give it 15 s, and come again */
#define POLL_MS 200u
#define WAITERS_MAX 4u /* of the workers, so that other volumes' calls always find one */

bool csi_is_class(const struct csi_volume *v)
{
    return strcmp(v->backing, "class") == 0;
}

int csi_class_check(const struct csi_controller *controller, const struct csi_volume *v, struct error *err)
{
    if (!csi_is_class(v)) {
        if (*v->backing_class || v->journal_bytes)
            return error_set(err, -EINVAL,
                             "parameters backingClass and journalSize of the StorageClass go with backing "
                             "class; leave them out");
        return 0;
    }
    if (!controller->options.classes)
        return error_set(err, -EINVAL,
                         "parameter backing of the StorageClass is 'class', which needs a cluster");
    if (!*v->backing_class)
        return error_set(err, -EINVAL,
                         "parameter backingClass of the StorageClass is missing: the class of raw block "
                         "volumes that carries it");
    return 0;
}

/* ---- K3 ---- */

static char *slot_of(struct csi_controller *controller, const char *stream)
{
    for (size_t i = 0; i < CSI_STREAMS_BUSY_MAX; i++)
        if (strcmp(controller->busy[i], stream) == 0)
            return controller->busy[i];
    return NULL;
}

static int begin(struct csi_controller *controller, const char *stream, struct error *err)
{
    uint64_t limit_ns = clock_boottime_ns(clock_system()) + WAIT_MS * NS_PER_MS;
    MUTEX_GUARD(guard, &controller->mutex);
    while (slot_of(controller, stream) || !slot_of(controller, "")) {
        struct timespec until;
        if (clock_boottime_ns(clock_system()) >= limit_ns || controller->waiters >= WAITERS_MAX)
            return error_set(err, -EALREADY,
                             "another call about stream %s is under way; it is safe to try again", stream);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        controller->waiters++;
        pthread_cond_timedwait(&controller->changed, &controller->mutex, &until);
        controller->waiters--;
    }
    snprintf(slot_of(controller, ""), CSI_HANDLE_BYTES, "%s", stream);
    return 0;
}

static void end(struct csi_controller *controller, const char *stream)
{
    MUTEX_GUARD(guard, &controller->mutex);
    *slot_of(controller, stream) = '\0';
    pthread_cond_broadcast(&controller->changed);
}

/* Whether to look again after -EAGAIN; waits a moment then. */
static bool look_again(struct csi_controller *controller, const struct rpc_call *call, uint64_t limit_ns)
{
    uint64_t deadline_ns = rpc_call_deadline_ns(call), now_ns = clock_boottime_ns(clock_system());
    {
        MUTEX_GUARD(guard, &controller->mutex);
        if (now_ns + POLL_MS * NS_PER_MS >= limit_ns || now_ns + POLL_MS * NS_PER_MS >= deadline_ns ||
            rpc_call_cancelled(call) || controller->waiters >= WAITERS_MAX)
            return false;
        controller->waiters++;
    }
    nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000L}, NULL);
    MUTEX_GUARD(guard, &controller->mutex);
    controller->waiters--;
    return true;
}

/* ---- the volumes of a stream ---- */

struct members {
    struct csi_volume *volumes;
    size_t count;
    bool others_published; /* than that of the call, on its node */
};

static void cleanup_members(struct members *m)
{
    free(m->volumes);
}
#define _cleanup_members_ __attribute__((cleanup(cleanup_members)))

/* All that have the stream, deleted ones too: it still has their data. */
static int load_members(struct csi_controller *controller, const struct csi_volume *of, struct members *ret,
                        struct error *err)
{
    MUTEX_GUARD(guard, &controller->mutex);
    int r = controller->options.records->list(controller->options.records_context, &ret->volumes, &ret->count,
                                              err);
    size_t kept = 0;
    for (size_t i = 0; i < ret->count && r == 0; i++) {
        const struct csi_volume *v = &ret->volumes[i];
        if (strcmp(v->stream, of->stream) != 0)
            continue;
        /* One that is to be attached to another node already waits until this one is closed. */
        ret->others_published |= strcmp(v->handle, of->handle) != 0 && *v->published_node &&
                                 strcmp(v->published_node, of->published_node) == 0;
        ret->volumes[kept++] = *v;
    }
    ret->count = r == 0 ? kept : 0;
    if (ret->count > CSI_MEMBERS_MAX)
        r = error_set(err, -ENOSPC,
                      "stream %s has more than %u volumes, deleted ones that are kept among them", of->stream,
                      CSI_MEMBERS_MAX);
    return r;
}

/* ---- attach and detach ---- */

int csi_class_attach(struct csi_controller *controller, const struct csi_volume *volume,
                     const struct rpc_call *call, struct csi_attachment *ret, struct error *err)
{
    const struct csi_class_ops *ops = controller->options.classes;
    uint64_t limit_ns = clock_boottime_ns(clock_system()) + WAIT_MS * NS_PER_MS;
    _cleanup_members_ struct members m = {0};
    int r = begin(controller, volume->stream, err);
    if (r < 0)
        return r;
    r = load_members(controller, volume, &m, err);
    while (r == 0) {
        r = ops->attach(controller->options.classes_context, volume->stream, m.volumes, m.count,
                        volume->published_node, m.others_published, ret, err);
        if (r != -EAGAIN || !look_again(controller, call, limit_ns))
            break;
        *err = ERROR_INIT;
        r = 0;
    }
    end(controller, volume->stream);
    return r;
}

/* K2: nothing of the stream is anywhere any more. */
static int note_detached(struct csi_controller *controller, const struct csi_volume *volume,
                         const struct members *m, bool whole, struct error *err)
{
    const struct csi_controller_options *o = &controller->options;
    int r = 0;
    MUTEX_GUARD(guard, &controller->mutex);
    for (size_t i = 0; i < m->count && r == 0; i++) {
        struct csi_volume v;
        bool this = strcmp(m->volumes[i].handle, volume->handle) == 0;
        if ((!this && (!whole || !*m->volumes[i].node)) ||
            o->records->load(o->records_context, m->volumes[i].handle, &v, err) < 0)
            continue;
        if (!this && *v.published_node) /* it is to be attached to another node meanwhile */
            continue;
        if (this)
            v.published_node[0] = '\0';
        if (whole)
            v.node[0] = '\0';
        r = o->records->save(o->records_context, &v, err);
    }
    return r;
}

int csi_class_detach(struct csi_controller *controller, const struct csi_volume *volume,
                     const struct rpc_call *call, struct error *err)
{
    const struct csi_class_ops *ops = controller->options.classes;
    uint64_t limit_ns = clock_boottime_ns(clock_system()) + WAIT_MS * NS_PER_MS;
    _cleanup_members_ struct members m = {0};
    if (!ops)
        return error_set(err, -EINVAL, "volume %s has backing class, which needs a cluster", volume->handle);
    int r = begin(controller, volume->stream, err);
    if (r < 0)
        return r;
    r = load_members(controller, volume, &m, err);
    while (r == 0 && !m.others_published) {
        r = ops->detach(controller->options.classes_context, volume->stream, volume->published_node, err);
        if (r != -EAGAIN || !look_again(controller, call, limit_ns))
            break;
        *err = ERROR_INIT;
        r = 0;
    }
    if (r == 0)
        r = note_detached(controller, volume, &m, !m.others_published, err);
    if (r == 0)
        log_info(controller->options.log, "volume %s: detached from %s%s", volume->handle,
                 volume->published_node, m.others_published ? "" : ", its stream is closed there");
    end(controller, volume->stream);
    return r;
}

int csi_class_expand(struct csi_controller *controller, const struct csi_volume *volume, uint64_t size_bytes,
                     const struct rpc_call *call, struct error *err)
{
    const struct csi_class_ops *ops = controller->options.classes;
    uint64_t limit_ns = clock_boottime_ns(clock_system()) + WAIT_MS * NS_PER_MS;
    for (;;) {
        int r = ops ? ops->expand(controller->options.classes_context, volume, size_bytes, err)
                    : error_set(err, -EINVAL, "volume %s has backing class, which needs a cluster",
                                volume->handle);
        if (r != -EAGAIN || !look_again(controller, call, limit_ns))
            return r;
        *err = ERROR_INIT;
    }
}
