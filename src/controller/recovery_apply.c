/* SPDX-License-Identifier: Apache-2.0 */
/* Putting objects where they belong (R1, R4, R6, R7): each by itself, several at once, a verdict each. */
#include <stdatomic.h>
#include <time.h>

#include "app/outline.h"
#include "base/thread.h"
#include "controller/recovery_internal.h"

enum { LOOK_MS = 100, LIMITS_MS = 2000 };

void recovery_pause(const struct recovery_run *run, unsigned ms)
{
    if (run->c->pause) {
        run->c->pause(run->c->pause_context, ms);
        return;
    }
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

/* One object in a thread of its own: nothing of it is shared but the objects of the point. */
struct job {
    struct recovery_run *run;
    pthread_mutex_t *mutex; /* over the objects of the point, and status */
    struct recovery_entry *entry;
    json_t *wanted; /* prepared for an object that is not there, and */
    json_t *there;  /* for one that is: NULL until it is found to be (prepare_there) */
    json_t *plain;  /* that, normalized: to compare */
    struct error unanswered; /* of a question for an owner: nobody knows whether it is there */
    const json_t *live;      /* while what is there is prepared for; or NULL */
    bool hidden;             /* whoever asked may not look at an owner */
    bool others_first; /* what another object of the wave may let go of is waited for: no verdict then */
    struct object_id id;
    char note[RESTORE_REASON_BYTES];
};

static void decide(struct job *job, enum verdict verdict, const char *reason)
{
    struct recovery_entry *e = job->entry;
    e->verdict = (int)verdict;
    if (reason && reason[0]) {
        char *copy = NULL;
        if (asprintf(&copy, "%.900s", reason) < 0)
            copy = NULL;
        free(e->reason);
        e->reason = copy;
    }
}

bool recovery_concerns_server(int code)
{
    return code == -ECONNREFUSED || code == -ECONNRESET || code == -EHOSTUNREACH || code == -ETIMEDOUT ||
           code == -ECANCELED || code == -EAGAIN || code == -ENOMEM;
}

/* The uid of the owner that the object has already: it needs no look at the owner. NULL: it has none such. */
static const char *uid_in_use(const json_t *live, const char *group, const char *kind, const char *name)
{
    size_t i;
    json_t *owner;
    json_array_foreach(json_object_get(json_object_get(live, "metadata"), "ownerReferences"), i, owner)
    {
        char of[256];
        if (strcmp(json_text(owner, "name"), name) == 0 && strcmp(json_text(owner, "kind"), kind) == 0 &&
            strcmp(object_group_of(json_text(owner, "apiVersion"), of, sizeof of), group) == 0)
            return json_text(owner, "uid");
    }
    return NULL;
}

/* The version does not matter much, but a path needs one: that of the reference. */
static void version_of_owner(struct job *job, const char *kind, const char *name, char version[64])
{
    size_t i;
    json_t *owner;
    MUTEX_GUARD(guard, job->mutex);
    const json_t *object = json_object_get(job->run->wanted, job->entry->name);
    snprintf(version, 64, "v1");
    json_array_foreach(json_object_get(json_object_get(object, "metadata"), "ownerReferences"), i, owner)
    {
        const char *api_version = json_text(owner, "apiVersion"), *slash = strchr(api_version, '/');
        if (strcmp(json_text(owner, "name"), name) == 0 && strcmp(json_text(owner, "kind"), kind) == 0)
            snprintf(version, 64, "%s", slash ? slash + 1 : api_version);
    }
}

static const char *uid_of(void *context, const char *group, const char *kind, const char *namespace,
                          const char *name)
{
    struct job *job = context;
    static _Thread_local char uid[64];
    const char *namespaces[2] = {namespace, ""};
    char version[64], journal_name[OBJECT_NAME_BYTES];
    version_of_owner(job, kind, name, version);
    for (int i = 0; i < 2; i++) {
        struct object_id id = {
            .group = group, .version = version, .kind = kind, .namespace = namespaces[i], .name = name};
        struct error err = ERROR_INIT;
        _cleanup_json_ json_t *live = NULL;
        int r = object_journal_name(&id, journal_name, &err);
        if (r == 0)
            r = job->run->c->cluster->get(job->run->c->cluster_context, journal_name, &live, &err);
        if (r == 0) {
            snprintf(uid, sizeof uid, "%s", object_uid(live));
            return uid;
        }
        if (recovery_concerns_server(r))
            job->unanswered = err;
        if (r == -EACCES) {
            const char *used = uid_in_use(job->live, group, kind, name);
            if (used)
                return used;
            job->hidden = true;
        }
    }
    return NULL;
}

/* "provided port is already allocated", "provided IP is already allocated" */
static bool is_taken(const struct error *err)
{
    return strstr(err->message, "already allocated") || strstr(err->message, "already in use");
}

/* A field that no table knows of as one that cannot be changed. What a policy of the cluster says of what it refuses is another matter,
 * whatever its words: it would refuse to have the object made, too. */
static bool is_of_immutable_field(const struct error *err)
{
    return err->code == -EINVAL && (strstr(err->message, "immutable") || strstr(err->message, "updates to")) &&
           !strstr(err->message, "denied the request") && !strstr(err->message, "denied request");
}

static const char not_made[] = "it had ended at the point, and is not run again";
static const char again[] = "it was made again";
static const char taken[] = "its address or node port is taken: it got another";

/* How long what it says may be wrong: a quota that was just made lets nothing in until it was counted what is there, and the API server goes by
 * limits and quotas that are some milliseconds old. */
static unsigned doubtful_ms(const struct recovery_run *run, int code, const struct error *err)
{
    if (code != -EACCES)
        return 0;
    if (strstr(err->message, "status unknown for quota"))
        return RECOVERY_GONE_MS;
    return run->changes_limits && (strstr(err->message, "exceeded quota") || strstr(err->message, " per ")) ? LIMITS_MS : 0;
}

static int create_once(const struct job *job, const json_t *object, struct error *err)
{
    for (unsigned waited = 0;; waited += LOOK_MS) {
        int r = job->run->c->cluster->create(job->run->c->cluster_context, object, err);
        if (waited >= doubtful_ms(job->run, r, err))
            return r;
        recovery_pause(job->run, LOOK_MS);
    }
}

static int create(struct job *job, enum verdict verdict, struct error *err)
{
    int r = create_once(job, job->wanted, err);
    if (r < 0 && r != -EEXIST && is_taken(err) && job->others_first)
        return 0;
    if (r < 0 && r != -EEXIST && is_taken(err) && restore_drop_allocated(job->wanted)) {
        snprintf(job->note, sizeof job->note, "%s", taken);
        r = create_once(job, job->wanted, err);
    }
    if (r == 0)
        decide(job, verdict, job->note);
    return r;
}

/* Waits until the name is free. -EBUSY: something keeps it. */
static int await_gone(struct job *job, const char *uid, struct error *err)
{
    for (unsigned waited = 0;; waited += LOOK_MS) {
        _cleanup_json_ json_t *live = NULL;
        int r = job->run->c->cluster->get(job->run->c->cluster_context, job->entry->name, &live, err);
        if (r == -ENOENT || (r == 0 && strcmp(object_uid(live), uid) != 0))
            return 0;
        if (r < 0)
            return r;
        if (waited >= RECOVERY_GONE_MS) {
            _cleanup_free_ char *finalizers =
                json_to_text(json_object_get(json_object_get(live, "metadata"), "finalizers"));
            return error_set(err, -EBUSY,
                             "it is being deleted and does not go (finalizers %.200s); remove what holds it, "
                             "and make the recovery again",
                             finalizers ? finalizers : "none");
        }
        recovery_pause(job->run, LOOK_MS);
    }
}

/* Takes the owner of that uid away from the object; false: it has none such. */
static bool disown(json_t *object, const char *uid)
{
    json_t *owners = json_object_get(json_object_get(object, "metadata"), "ownerReferences");
    bool had = false;
    for (size_t i = json_array_size(owners); i-- > 0;) {
        if (strcmp(json_text(json_array_get(owners, i), "uid"), uid) != 0)
            continue;
        json_array_remove(owners, i);
        had = true;
    }
    return had;
}

static int release_one(const struct job *job, json_t *object, const char *uid, struct error *err)
{
    const struct recovery_cluster_ops *ops = job->run->c->cluster;
    char name[OBJECT_NAME_BYTES];
    struct object_id id;
    _cleanup_json_ json_t *live = json_incref(object);
    int r = object_identify(object, &id, err);
    if (r == 0)
        r = object_journal_name(&id, name, err);
    for (unsigned tries = 0; r == 0 && tries < RECOVERY_CONFLICTS_MAX; tries++) {
        if (!disown(live, uid))
            return 0;
        r = ops->replace(job->run->c->cluster_context, live, err);
        if (r != -EBUSY)
            break;
        json_decref(take_ptr(live));
        r = ops->get(job->run->c->cluster_context, name, &live, err);
    }
    return r == -ENOENT ? 0 : r;
}

static bool belongs_to(const json_t *object, const char *uid)
{
    size_t i;
    json_t *owner;
    json_array_foreach(json_object_get(json_object_get(object, "metadata"), "ownerReferences"), i, owner)
    {
        if (strcmp(json_text(owner, "uid"), uid) == 0)
            return true;
    }
    return false;
}

/* Only what has the owner is going to be replaced, and needed whole. */
static int keep_owned(void *context, json_t *object, json_t **ret, struct error *err)
{
    if (!belongs_to(object, context))
        return object_outline(object, ret, err);
    *ret = json_incref(object);
    return 0;
}

/* What belongs to an object that is made again would go with it, claims and their data, too. It belongs to nobody until its own turn
 * comes, which is after its owner's. What controllers make (pods) goes, and comes again. */
static int release_dependents(const struct job *job, const char *uid, struct error *err)
{
    _cleanup_json_ json_t *all = json_array();
    size_t i;
    json_t *object;
    int r = job->run->c->cluster->list(job->run->c->cluster_context, job->id.namespace, keep_owned,
                                       (void *)(uintptr_t)uid, all, err);
    json_array_foreach(all, i, object)
    {
        if (r == 0 && !object_noise(object) && !json_object_get(json_object_get(object, "metadata"), "deletionTimestamp"))
            r = release_one(job, object, uid, err);
    }
    return r < 0 ? error_context(err, "what belongs to it would go with it, and cannot be kept") : 0;
}

/* What was there is there again, since what it was to become is refused. */
static int put_back(const struct job *job, const json_t *former, int code, struct error *err)
{
    struct error failure = ERROR_INIT;
    int r = create_once(job, former, &failure);
    if (recovery_concerns_server(r)) { /* it is tried again, and is known until then (R7) */
        *err = failure;
        return r;
    }
    struct error why = *err;
    return error_set(err, code, "%.1000s; %s%.500s", why.message,
                     r < 0 ? "and what was there could not be made again, and is gone: " : "what was there was made again as it was",
                     r < 0 ? failure.message : "");
}

/* A pod that nobody makes again but the recovery. */
static bool was_stopped(const struct job *job)
{
    return job->run->mode != RESTORE_CLONE && job->entry->action == ACTION_RECREATE && strcmp(job->id.kind, "Pod") == 0 && !job->id.group[0] &&
           recovery_uses_streams(job->run, json_object_get(job->run->wanted, job->entry->name));
}

/* The same, of what is not there since a controller died before it had made it again. What a pod was that was stopped would be on volumes that are
 * not its own any more. */
static int put_noted_back(const struct job *job, int code, struct error *err)
{
    _cleanup_json_ json_t *former = NULL;
    struct error failure = ERROR_INIT;
    bool stopped;
    int r;
    {
        MUTEX_GUARD(guard, job->mutex); /* others replace the run's Recovery */
        stopped = was_stopped(job);
        r = stopped ? -ENOENT : recovery_find_replaced(job->run, job->entry->name, &former, &failure);
    }
    if (r == 0)
        return put_back(job, former, code, err);
    if (r == -ENOENT)
        return stopped ? error_context(err, "it was stopped so that its volumes could be put back, and is not there now; see to what refuses it, and make the "
                                                     "recovery to this point again, which makes it")
                                : code;
    struct error why = *err;
    return error_set(err, code, "%.1000s; and what was there could not be made again, and is gone: %.500s", why.message, failure.message);
}

/* Nothing is deleted that would be refused then: the server is asked beforehand, with all that stands at its door. What the one that is there
 * takes (its name, its addresses, its part of a quota) is none of the reasons. */
static int ask_beforehand(const struct job *job, struct error *err)
{
    const struct recovery_cluster_ops *ops = job->run->c->cluster;
    struct error answer = ERROR_INIT;
    int r = ops->try_create ? ops->try_create(job->run->c->cluster_context, job->wanted, &answer) : 0;
    if (r >= 0 || r == -EEXIST || is_taken(&answer) || strstr(answer.message, "exceeded quota") || strstr(answer.message, "status unknown for quota") ||
        strstr(answer.message, "does not support dry run"))
        return 0;
    *err = answer;
    return recovery_concerns_server(r) ? r : error_context(err, "it would have to be made again, which is refused; it is left as it is");
}

static int recreate(struct job *job, const json_t *live, struct error *err)
{
    const char *propagation = restore_recreate_propagation(live);
    _cleanup_json_ json_t *former = NULL;
    char uid[64];
    int r = 0;
    if (!job->wanted) {
        decide(job, VERDICT_SKIPPED, not_made);
        return 0;
    }
    snprintf(uid, sizeof uid, "%s", object_uid(live));
    bool owns = job->entry->uid || job->entry->action != ACTION_RECREATE; /* unplanned: nobody has looked */
    r = ask_beforehand(job, err);
    if (r == 0)
        r = recovery_former_of(live, &former, err);
    if (r == 0) {
        MUTEX_GUARD(guard, job->mutex);
        r = recovery_note_replaced(job->run, job->entry->name, former, err);
    }
    if (r == 0 && owns && strcmp(propagation, "Orphan") != 0)
        r = release_dependents(job, uid, err);
    if (r == 0)
        r = job->run->c->cluster->remove(job->run->c->cluster_context, job->entry->name, uid, propagation, err);
    if (r == 0)
        r = await_gone(job, uid, err);
    if (r < 0)
        return r;
    if (!job->note[0])
        snprintf(job->note, sizeof job->note, "%s", again);
    r = create(job, VERDICT_CHANGED, err);
    return r < 0 && r != -EEXIST && !recovery_concerns_server(r) ? put_back(job, former, r, err) : r;
}

/* Whether its owners are those that are there now: one that was made again has another uid, and what has the old one goes. */
static bool has_owners(const json_t *live, const json_t *wanted)
{
    size_t i;
    json_t *owner;
    json_array_foreach(json_object_get(json_object_get(wanted, "metadata"), "ownerReferences"), i, owner)
    {
        char group[256];
        object_group_of(json_text(owner, "apiVersion"), group, sizeof group);
        const char *uid = uid_in_use(live, group, json_text(owner, "kind"), json_text(owner, "name"));
        if (!uid || strcmp(uid, json_text(owner, "uid")) != 0)
            return false;
    }
    return true;
}

/* The object is there. 1: look again. */
static int change(struct job *job, const json_t *live, struct error *err)
{
    _cleanup_json_ json_t *normal = NULL, *merged = NULL;
    char field[RESTORE_REASON_BYTES], reason[RESTORE_REASON_BYTES];
    const struct recovery_cluster_ops *ops = job->run->c->cluster;
    enum verdict done = job->entry->action == ACTION_CREATE ? VERDICT_CREATED
                        : job->entry->action == ACTION_SAME ? VERDICT_SAME
                                                            : VERDICT_CHANGED;
    if (json_object_get(json_object_get(live, "metadata"), "deletionTimestamp")) {
        int r = job->entry->action == ACTION_RECREATE && job->entry->uid ? release_dependents(job, object_uid(live), err) : 0;
        if (r == 0)
            r = await_gone(job, object_uid(live), err);
        return r < 0 ? r : 1;
    }
    if (!job->id.namespace[0]) {
        decide(job, job->entry->action == ACTION_CREATE ? VERDICT_CREATED : VERDICT_SKIPPED, NULL);
        return 0;
    }
    int r = object_normalize(live, &normal, err);
    if (r < 0)
        return r;
    restore_adopt_claim(job->plain, normal);
    restore_adopt_claim(job->there, normal);
    if (json_equal(normal, job->plain) && has_owners(live, job->there)) {
        decide(job, done, job->note);
        return 0;
    }
    if (recovery_runs_again(job->run, normal, job->plain))
        return recreate(job, live, err);
    switch (restore_way_of(normal, job->plain, field)) {
    case RESTORE_KEEP:
        snprintf(reason, sizeof reason, "%.100s cannot be changed, and it is not deleted since it has data",
                 field);
        return error_set(err, -EPERM, "%s", reason);
    case RESTORE_RECREATE:
        return recreate(job, live, err);
    case RESTORE_UPDATE:
        break;
    }
    r = restore_merge(live, job->there, &merged, err);
    if (r == 0)
        r = ops->replace(job->run->c->cluster_context, merged, err);
    if (r < 0 && is_of_immutable_field(err)) {
        /* What goes with an object of somebody else's kind nobody knows: its operator may delete the volumes, say (R6). */
        if (strcmp(job->id.kind, "PersistentVolumeClaim") == 0 || !object_group_is_builtin(job->id.group))
            return r;
        return recreate(job, live, err);
    }
    if (r < 0 && is_taken(err) && job->others_first)
        return 0;
    if (r < 0 && is_taken(err) && restore_drop_allocated(job->there) && restore_drop_allocated(job->plain)) {
        snprintf(job->note, sizeof job->note, "%s", taken);
        return 1; /* look again: without them it may be as it should be */
    }
    if (r == 0)
        decide(job, done == VERDICT_SAME ? VERDICT_CHANGED : done, job->note);
    return r == -EBUSY || r == -ENOENT ? 1 : r;
}

static int prepare(struct job *job, bool exists, json_t **ret, struct error *err)
{
    static const char lost[] = "its owner is not there: it has none now",
                      hidden[] = "whoever asked may not look at its owner: it has none now";
    char reason[RESTORE_REASON_BYTES];
    size_t dropped = 0;
    int r;
    job->hidden = false;
    {
        MUTEX_GUARD(guard, job->mutex);
        _cleanup_json_ json_t *wanted = NULL; /* shared with others: let go of before the mutex */
        r = recovery_get_wanted(job->run, job->entry->name, &wanted, err);
        if (r == 0)
            r = restore_prepare(wanted, job->run->mode, exists, ret, reason, err);
    }
    if (r == 0 && *ret)
        r = restore_owners(*ret, uid_of, job, &dropped, err);
    if (r == 0 && job->unanswered.code) {
        *err = job->unanswered;
        return err->code;
    }
    if (dropped || strcmp(job->note, lost) == 0 || strcmp(job->note, hidden) == 0)
        snprintf(job->note, sizeof job->note, "%s", !dropped ? "" : job->hidden ? hidden : lost);
    return r;
}

/* Most objects of a restore are not there, and need none of this. */
static int prepare_there(struct job *job, const json_t *live, struct error *err)
{
    if (job->plain)
        return 0;
    job->live = live;
    int r = prepare(job, true, &job->there, err);
    job->live = NULL;
    return r == 0 ? object_normalize(job->there, &job->plain, err) : r;
}

static int put(struct job *job, struct error *err)
{
    int r = prepare(job, false, &job->wanted, err); /* NULL: it is put back when it is there, but not made */
    if (r == 0 && job->wanted && job->entry->action == ACTION_CREATE) { /* most of a restore: one call each */
        struct error first = ERROR_INIT;
        int made = create(job, VERDICT_CREATED, &first);
        if (made == 0)
            return 0;
        if (recovery_concerns_server(made)) {
            *err = first;
            return made;
        }
    }
    for (unsigned tries = 0; r >= 0 && tries < RECOVERY_CONFLICTS_MAX; tries++) {
        _cleanup_json_ json_t *live = NULL;
        r = job->run->c->cluster->get(job->run->c->cluster_context, job->entry->name, &live, err);
        if (r == -ENOENT && !job->wanted) {
            decide(job, VERDICT_SKIPPED, not_made);
            return 0;
        }
        if (r == -ENOENT) {
            r = create(job, job->entry->action == ACTION_CREATE ? VERDICT_CREATED : VERDICT_CHANGED, err);
            if (r < 0 && r != -EEXIST && !recovery_concerns_server(r))
                r = put_noted_back(job, r, err);
            r = r == -EEXIST ? 1 : r;
        } else if (r == 0 && (r = prepare_there(job, live, err)) == 0) {
            r = change(job, live, err);
        }
        if (r <= 0)
            return r;
    }
    return r < 0 ? r : error_set(err, -EBUSY, "others change it all the time");
}

static int perform(struct job *job, struct error *err)
{
    struct recovery_entry *e = job->entry;
    int r;
    switch (e->action) {
    case ACTION_SKIP:
        decide(job, VERDICT_SKIPPED, NULL);
        return 0;
    case ACTION_DELETE:
        r = job->run->c->cluster->remove(job->run->c->cluster_context, e->name, e->uid, "Background", err);
        if (r == 0 || r == -EBUSY) /* another one has its name: not the one that came after the point */
            decide(job, r == 0 ? VERDICT_DELETED : VERDICT_SKIPPED,
                   r == 0 ? NULL : "it was made again meanwhile");
        return r == -EBUSY ? 0 : r;
    case ACTION_CREATE:
    case ACTION_CHANGE:
    case ACTION_RECREATE:
    case ACTION_SAME:
        break;
    }
    if (e->action == ACTION_SAME) {
        decide(job, VERDICT_SAME, NULL);
        return 0;
    }
    return put(job, err);
}

/* ---- several at once ---- */

struct work {
    struct recovery_run *run;
    struct recovery_entry **entries; /* of the wave, without a verdict */
    size_t count;
    atomic_size_t next;
    atomic_int failed; /* code of what concerns not one object, but the server or the plan; 0 */
    atomic_bool cancelled;
    bool others_first;
    pthread_mutex_t mutex; /* over what follows, and the objects of the point and the Recovery, which all share */
    struct error err;      /* of `failed` */
};

static int prepare_job(struct work *work, struct recovery_entry *e, struct job *job, struct error *err)
{
    *job =
        (struct job){.run = work->run, .mutex = &work->mutex, .entry = e, .others_first = work->others_first};
    int r = object_id_parse(e->name, &job->id, err);
    if (r < 0 || e->action == ACTION_DELETE || e->action == ACTION_SKIP || e->action == ACTION_SAME)
        return r;
    MUTEX_GUARD(guard, &work->mutex);
    return json_object_get(work->run->wanted, e->name)
               ? 0
               : error_set(err, -EINVAL, "the plan has %s, and the point has not", e->name);
}

static void release_job(struct work *work, struct job *job)
{
    MUTEX_GUARD(guard, &work->mutex);
    if (job->entry->verdict >= 0)
        recovery_forget_replaced(work->run, job->entry->name);
    if (job->entry->verdict >= 0 && job->entry->verdict != VERDICT_FAILED && job->note[0] && strcmp(job->note, again) != 0)
        recovery_note(work->run, json_sprintf("%s: %s", job->entry->name, job->note));
    json_decref(job->wanted);
    json_decref(job->there);
    json_decref(job->plain);
}

static void give_up(struct work *work, int code, const struct error *err)
{
    MUTEX_GUARD(guard, &work->mutex);
    work->err = *err;
    atomic_store(&work->failed, code);
}

/* A wave may have thousands of objects: its end is not waited for to see that nobody wants the rest. */
static void look_for_cancel(struct work *work)
{
    bool cancelled = false;
    struct error err = ERROR_INIT;
    int r = recovery_is_cancelled(work->run, &cancelled, &err);
    if (r < 0)
        give_up(work, r, &err);
    else if (cancelled)
        atomic_store(&work->cancelled, true);
}

static void *worker(void *context)
{
    struct work *work = context;
    for (;;) {
        size_t i = atomic_fetch_add(&work->next, 1);
        if (i < work->count && i % RECOVERY_LOOK_OBJECTS == RECOVERY_LOOK_OBJECTS - 1)
            look_for_cancel(work);
        if (i >= work->count || atomic_load(&work->failed) || atomic_load(&work->cancelled))
            return NULL;
        struct job job;
        struct error err = ERROR_INIT;
        int r = prepare_job(work, work->entries[i], &job, &err);
        if (r < 0) {
            give_up(work, r, &err);
        } else if ((r = perform(&job, &err)) < 0) {
            if (recovery_concerns_server(r))
                give_up(work, r, &err);
            else
                decide(&job, VERDICT_FAILED, err.message);
        }
        release_job(work, &job);
    }
}

static int run_work(struct work *work, struct error *err)
{
    pthread_t threads[RECOVERY_WORKERS];
    size_t started = 0;
    struct error unused = ERROR_INIT;
    while (started + 1 < RECOVERY_WORKERS && started + 1 < work->count &&
           thread_start(&threads[started], "recovery", worker, work, &unused) == 0)
        started++;
    (void)worker(work);
    for (size_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    int failed = atomic_load(&work->failed);
    if (failed)
        *err = work->err;
    return failed ? failed : atomic_load(&work->cancelled);
}

/* What of a wave has no verdict yet: limits and quotas, or the rest. */
static int apply_some(struct recovery_run *run, int wave, bool limits, bool others_first, struct error *err)
{
    _cleanup_free_ struct recovery_entry **entries = calloc(run->entry_count + 1, sizeof *entries);
    struct work work = {
        .run = run, .entries = entries, .others_first = others_first, .mutex = PTHREAD_MUTEX_INITIALIZER};
    if (!entries)
        return error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < run->entry_count; i++)
        if (run->entries[i].wave == wave && run->entries[i].verdict < 0 && recovery_is_limit(run->entries[i].name) == limits)
            entries[work.count++] = &run->entries[i];
    int r = work.count > 0 ? run_work(&work, err) : 0;
    if (r < 0 && r != -ECANCELED) { /* what has a verdict is not done once more by whoever goes on */
        struct error unused = ERROR_INIT;
        if (recovery_save_plan(run, wave, &unused) < 0)
            log_warning(run->c->log, "recovery %s/%s: %s", run->namespace, run->name, unused.message);
    }
    return r;
}

static bool changes_limit(const struct recovery_entry *e)
{
    return (e->action == ACTION_CHANGE || e->action == ACTION_RECREATE || e->action == ACTION_DELETE) && recovery_is_limit(e->name);
}

/* A quota that was changed counts once its controller has taken note of it. A timeout is no error. */
static int await_quota(struct recovery_run *run, const char *name, struct error *err)
{
    int r = 0;
    for (unsigned waited = 0; r == 0 && waited < RECOVERY_GONE_MS; waited += LOOK_MS) {
        _cleanup_json_ json_t *live = NULL;
        r = run->c->cluster->get(run->c->cluster_context, name, &live, err);
        const json_t *hard = json_object_get(json_object_get(live, "spec"), "hard");
        if (r == -ENOENT || r == -EACCES || (r == 0 && (!hard || json_equal(hard, json_object_get(json_object_get(live, "status"), "hard"))))) {
            *err = (struct error)ERROR_INIT;
            return 0;
        }
        if (r == 0)
            recovery_pause(run, LOOK_MS);
    }
    return r;
}

static size_t left_of(const struct recovery_run *run, int wave)
{
    size_t count = 0;
    for (size_t i = 0; i < run->entry_count; i++)
        count += run->entries[i].wave == wave && run->entries[i].verdict < 0;
    return count;
}

int recovery_apply_wave(struct recovery_run *run, int wave, struct error *err)
{
    for (size_t i = 0; i < run->entry_count; i++)
        run->changes_limits |= changes_limit(&run->entries[i]);
    int r = apply_some(run, wave, true, false, err);
    for (size_t i = 0; r == 0 && i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        if (e->wave == wave && changes_limit(e) && e->verdict == VERDICT_CHANGED && strstr(e->name, "/ResourceQuota/"))
            r = await_quota(run, e->name, err);
    }
    /* An address or a node port that a Service of the point had may be that of another one now, whose turn
     * comes beside its own, or after a third one's. */
    for (size_t before = SIZE_MAX, left = left_of(run, wave); r == 0 && left > 0 && left < before; left = left_of(run, wave)) {
        before = left;
        r = apply_some(run, wave, false, true, err);
    }
    return r == 0 ? apply_some(run, wave, false, false, err) : r;
}

/* ---- waiting ---- */

static bool is_established(const json_t *definition)
{
    const json_t *conditions = json_object_get(json_object_get(definition, "status"), "conditions");
    size_t i;
    json_t *condition;
    json_array_foreach(conditions, i, condition)
    {
        if (strcmp(json_text(condition, "type"), "Established") == 0)
            return strcmp(json_text(condition, "status"), "True") == 0;
    }
    return false;
}

/* The endpoints of a service are Endpoints of its name (still served beside EndpointSlices, and enough for a
 * yes or no). */
static bool has_endpoints(const json_t *endpoints)
{
    size_t i;
    json_t *subset;
    json_array_foreach(json_object_get(endpoints, "subsets"), i, subset)
    {
        if (json_array_size(json_object_get(subset, "addresses")) > 0)
            return true;
    }
    return false;
}

/* Objects of it can be made once discovery tells of it, too, which may come a little later. */
static int is_served(struct recovery_run *run, const json_t *definition, bool *ret, struct error *err)
{
    const json_t *spec = json_object_get(definition, "spec");
    *ret = is_established(definition);
    return *ret ? run->c->cluster->knows(run->c->cluster_context, json_text(spec, "group"), "v1",
                                         json_text(json_object_get(spec, "names"), "kind"), ret, err)
                : 0;
}

static int await_one(struct recovery_run *run, const json_t *await, struct error *err)
{
    struct object_id id;
    char name[OBJECT_NAME_BYTES];
    bool definition = strcmp(json_text(await, "condition"), "Established") == 0;
    int r = object_id_parse(json_text(await, "object"), &id, err);
    if (r < 0)
        return r;
    if (!definition)
        id.kind = "Endpoints";
    r = object_journal_name(&id, name, err);
    for (unsigned waited = 0; r == 0 && waited < RECOVERY_AWAIT_MS; waited += LOOK_MS) {
        _cleanup_json_ json_t *live = NULL;
        r = run->c->cluster->get(run->c->cluster_context, name, &live, err);
        bool there = r == 0 && !definition && has_endpoints(live);
        if (r == 0 && definition)
            r = is_served(run, live, &there, err);
        if (there)
            return 0;
        r = r == -ENOENT ? 0 : r;
        bool cancelled = false;
        if (r == 0 && waited % 2000 == 0)
            r = recovery_is_cancelled(run, &cancelled, err);
        if (cancelled)
            return 0;
        if (r == 0)
            recovery_pause(run, LOOK_MS);
    }
    return r;
}

int recovery_await_wave(struct recovery_run *run, int wave, struct error *err)
{
    const json_t *waves = json_object_get(run->order, "waves");
    const json_t *awaits = json_object_get(json_array_get(waves, (size_t)wave - 1), "awaits");
    size_t i;
    json_t *await;
    int r = 0;
    json_array_foreach(awaits, i, await)
    {
        if (r == 0)
            r = await_one(run, await, err);
    }
    return r;
}
