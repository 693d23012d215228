/* SPDX-License-Identifier: Apache-2.0 */
/* Recoveries in a cluster that exists in memory only, so that it can fail at every call. Invariants R1..R7:
 * controller/recovery.h. */
#include "../app/manifests.h"

#include <errno.h>
#include <pthread.h>

#include "app/restore.h"
#include "controller/recovery.h"
#include "controller/sealing.h"

/* ---- a cluster ---- */

struct cluster {
    pthread_mutex_t mutex;
    json_t *objects;  /* journal name -> raw object */
    json_t *recovery; /* the one Recovery */
    json_t *plans;    /* number -> text */
    json_t *point;    /* the set of the point */
    json_t *latest;
    json_t *unknown; /* kinds that are not known */
    json_t *data;    /* log of data calls */
    unsigned version, uids;
    long calls, kill_at; /* the call at which the controller dies; 0: none */
    bool lose_answer;    /* that call is still carried out */
    bool refuse_kind;    /* what is named "refused" cannot be replaced */
    bool immutable;      /* and that is why */
    int refuse_code;     /* or that; 0: -EACCES */
    bool policy;         /* or a policy is, whose words these are */
    bool refuse_old;     /* what has data.a: old cannot be made */
    bool refuse_plan;    /* no ConfigMap is taken, */
    unsigned plan_from;  /* from the so manyeth on */
    bool refuse_tried;   /* and that is told beforehand */
    unsigned plan_writes;
    unsigned leaving_looks; /* at what is being deleted: after three it is gone */
    const char *pods_end; /* theirs after they were deleted: a deletionTimestamp; NULL: they are gone at once */
    bool collects;       /* what belongs to what is deleted goes with it */
    char refusal[3000];  /* or this */
    bool cancel_at_apply;
    bool never_ready; /* workloads */
    bool rolling;     /* one pod of theirs has an earlier form */
    bool unobserved;  /* StatefulSets: their controller has not seen what they are now */
    const char *set_status; /* theirs, as JSON; or NULL */
    size_t created, asked;     /* calls: objects, and Deployments */
    size_t listed;             /* calls: the namespace */
    json_t *sequence;          /* names of what was made, in turn */
    const char *unanswered;    /* the name that get has no answer for; or NULL */
    size_t cancel_at, busy_at; /* at which of the objects that is so; 0: never */
    unsigned paused;
    unsigned rewind_looks, hold_looks, let_go_looks;
    uint64_t rewound_to;
    json_t *other;          /* a recovery that was before; or NULL */
    char objects_point[64]; /* that the objects were asked for first */
    char data_point[64];    /* that a stream was asked for */
    const char *unseen;     /* what whoever asked may not get, */
    int unseen_code;        /* and why; 0: -EACCES */
    bool at_once;           /* the node can do that */
    int filled;             /* bytes of 8192 that it has copied meanwhile; or an error */
    const char *alarm;      /* that it has then; or NULL */
    bool ports;             /* node ports are of the Services that have them; else somebody always has 30001 */
};

/* Whether the controller is dead; `ret_do` says whether the call is carried out. */
static bool dies(struct cluster *c, bool *ret_do)
{
    c->calls++;
    *ret_do = !c->kill_at || c->calls < c->kill_at || (c->calls == c->kill_at && c->lose_answer);
    return c->kill_at && c->calls >= c->kill_at;
}

#define CALL(c)                                                                                              \
    MUTEX_GUARD(guard, &(c)->mutex);                                                                         \
    bool carried_out, dead = dies((c), &carried_out);                                                        \
    if (!carried_out)                                                                                        \
        return error_set(err, -ECANCELED, "killed");
#define ANSWER(r) return dead ? error_set(err, -ECANCELED, "killed") : (r)

static int get(void *context, const char *name, json_t **ret, struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    if (c->unanswered && strcmp(name, c->unanswered) == 0)
        ANSWER(error_set(err, -EAGAIN, "too many requests"));
    json_t *object = json_object_get(c->objects, name);
    if (c->unseen && strcmp(name, c->unseen) == 0)
        ANSWER(error_set(err, c->unseen_code ? c->unseen_code : -EACCES, "%s is forbidden: User \"ann\" cannot get it", name));
    c->asked += strncmp(name, "apps/v1/Deployment/", 19) == 0;
    const json_t *metadata = json_object_get(object, "metadata");
    if (json_object_get(metadata, "namespace") && json_object_get(metadata, "deletionTimestamp") && ++c->leaving_looks == 3) {
        json_object_del(c->objects, name);
        object = NULL;
    }
    if (object) {
        *ret = json_deep_copy(object);
        if (strncmp(name, "apps/v1/", 8) == 0 && !c->never_ready) /* its controller has done its work */
            json_object_set_new(*ret, "status",
                                json_pack("{s:i, s:i, s:i, s:i}", "observedGeneration", 99, "replicas", c->rolling ? 10 : 9, "readyReplicas", 9,
                                          "updatedReplicas", 9));
        if (strncmp(name, "apps/v1/StatefulSet/", 20) == 0) {
            json_object_set_new(json_object_get(*ret, "metadata"), "generation", json_integer(99));
            json_object_set_new(*ret, "status", json_pack("{s:i, s:i, s:s, s:s}", "observedGeneration", c->unobserved ? 98 : 99, "readyReplicas", 9,
                                                          "currentRevision", "good", "updateRevision", c->unobserved ? "bad" : "good"));
            if (c->set_status)
                json_object_set_new(*ret, "status", manifests_one(c->set_status));
        }
    }
    if (dead && object) {
        json_decref(*ret);
        *ret = NULL;
    }
    ANSWER(object ? 0 : error_set(err, -ENOENT, "%s not found", name));
}

static void store(struct cluster *c, const char *name, const json_t *object, const char *uid)
{
    char text[32];
    json_t *copy = json_deep_copy(object), *metadata = json_object_get(copy, "metadata");
    snprintf(text, sizeof text, "%u", ++c->version);
    json_object_set_new(metadata, "resourceVersion", json_string(text));
    json_object_set_new(metadata, "uid", json_string(uid));
    json_object_set_new(c->objects, name, copy);
}

static json_int_t port_of(const json_t *object)
{
    const json_t *port = json_array_get(json_object_get(json_object_get(object, "spec"), "ports"), 0);
    return json_integer_value(json_object_get(port, "nodePort"));
}

static bool is_taken(const struct cluster *c, const char *name, const json_t *object)
{
    const char *other;
    json_t *there;
    if (!c->ports)
        return port_of(object) == 30001;
    json_object_foreach(c->objects, other, there)
    {
        if (port_of(object) && port_of(there) == port_of(object) && strcmp(other, name) != 0)
            return true;
    }
    return false;
}

static int create(void *context, const json_t *object, struct error *err)
{
    struct cluster *c = context;
    struct object_id id;
    char name[OBJECT_NAME_BYTES], uid[32];
    CALL(c);
    if (object_identify(object, &id, err) < 0 || object_journal_name(&id, name, err) < 0)
        return err->code;
    c->created++;
    if (c->refuse_old && strcmp(json_text(json_object_get(object, "data"), "a"), "old") == 0)
        ANSWER(error_set(err, -EACCES, "admission webhook \"policy\" denied the request: it is old"));
    if (c->busy_at && c->created >= c->busy_at)
        ANSWER(error_set(err, -EAGAIN, "too many requests"));
    if (c->created == c->cancel_at)
        json_object_set_new(json_object_get(c->recovery, "metadata"), "annotations",
                            json_pack("{s:s}", RECOVERY_CANCEL_ANNOTATION, "true"));
    if (json_object_get(c->objects, name))
        ANSWER(error_set(err, -EEXIST, "%s exists", name));
    if (is_taken(c, name, object))
        ANSWER(error_set(err, -EINVAL,
                         "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"));
    snprintf(uid, sizeof uid, "uid-%u", ++c->uids);
    store(c, name, object, uid);
    json_array_append_new(c->sequence, json_string(name));
    ANSWER(0);
}

static int try_create(void *context, const json_t *object, struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    if (c->refuse_tried && strcmp(json_text(json_object_get(object, "data"), "a"), "old") == 0)
        ANSWER(error_set(err, -EIO, "Internal error occurred: failed calling webhook"));
    ANSWER(error_set(err, -EEXIST, "it exists"));
}

static int replace(void *context, const json_t *object, struct error *err)
{
    struct cluster *c = context;
    struct object_id id;
    char name[OBJECT_NAME_BYTES];
    CALL(c);
    if (object_identify(object, &id, err) < 0 || object_journal_name(&id, name, err) < 0)
        return err->code;
    const json_t *live = json_object_get(c->objects, name), *metadata = json_object_get(live, "metadata");
    if (!live)
        ANSWER(error_set(err, -ENOENT, "%s not found", name));
    if (!json_equal(json_object_get(metadata, "resourceVersion"),
                    json_object_get(json_object_get(object, "metadata"), "resourceVersion")))
        ANSWER(error_set(err, -EBUSY, "the object has been modified"));
    if (c->refuse_kind && strcmp(id.name, "refused") == 0)
        ANSWER(c->immutable ? error_set(err, -EINVAL, "%s is invalid: spec.size: field is immutable", name)
               : c->policy  ? error_set(err, -EINVAL, "%s is forbidden: ValidatingAdmissionPolicy 'p' denied request: updates need an immutable digest", name)
                            : error_set(err, c->refuse_code ? c->refuse_code : -EACCES, "admission webhook \"policy\" denied the request: %s", c->refusal));
    if (is_taken(c, name, object))
        ANSWER(error_set(err, -EINVAL,
                         "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"));
    char uid[64];
    snprintf(uid, sizeof uid, "%s", object_uid(live));
    store(c, name, object, uid);
    ANSWER(0);
}

static void collect_garbage(struct cluster *c, const char *uid)
{
    const char *name;
    json_t *object, *owner;
    void *next;
    size_t i;
    json_object_foreach_safe(c->objects, next, name, object)
    {
        bool belongs = false;
        json_array_foreach(json_object_get(json_object_get(object, "metadata"), "ownerReferences"), i, owner)
            belongs |= strcmp(json_text(owner, "uid"), uid) == 0;
        if (belongs)
            json_object_del(c->objects, name);
    }
}

static int delete (void *context, const char *name, const char *uid, const char *propagation,
                   struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    (void)propagation;
    const json_t *live = json_object_get(c->objects, name);
    if (live && uid && strcmp(object_uid(live), uid) != 0)
        ANSWER(error_set(err, -EBUSY, "another one has its name"));
    if (live && c->collects && propagation && strcmp(propagation, "Background") == 0)
        collect_garbage(c, object_uid(live));
    if (live && c->pods_end && strncmp(name, "core/v1/Pod/", 12) == 0)
        json_object_set_new(json_object_get(live, "metadata"), "deletionTimestamp", json_string(c->pods_end));
    else
        json_object_del(c->objects, name);
    ANSWER(0);
}

static int list(void *context, const char *namespace, recovery_keep keep, void *keep_context, json_t *array,
                struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    const char *name;
    json_t *object;
    c->listed++;
    json_object_foreach(c->objects, name, object)
    {
        const json_t *metadata = json_object_get(object, "metadata");
        const char *its = json_string_value(json_object_get(metadata, "namespace"));
        json_t *copy = json_deep_copy(object), *kept = NULL;
        if (its && strcmp(its, namespace) == 0 && keep)
            assert_int_equal(keep(keep_context, copy, &kept, err), 0);
        if (its && strcmp(its, namespace) == 0)
            json_array_append_new(array, keep ? kept : json_incref(copy));
        json_decref(copy);
    }
    ANSWER(0);
}

static int knows(void *context, const char *group, const char *version, const char *kind, bool *ret,
                 struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    (void)group, (void)version;
    *ret = !json_object_get(c->unknown, kind);
    ANSWER(0);
}

static int read_recovery(void *context, const char *namespace, const char *name, json_t **ret,
                         struct error *err)
{
    struct cluster *c = context;
    (void)namespace;
    CALL(c);
    if (strcmp(name, "r") != 0) {
        if (c->other && !dead)
            *ret = json_deep_copy(c->other);
        ANSWER(c->other ? 0 : error_set(err, -ENOENT, "%s not found", name));
    }
    const char *step = json_string_value(
        json_object_get(json_object_get(json_object_get(c->recovery, "status"), "step"), "name"));
    if (c->cancel_at_apply && step && strcmp(step, "Apply") == 0)
        json_object_set_new(json_object_get(c->recovery, "metadata"), "annotations",
                            json_pack("{s:s}", RECOVERY_CANCEL_ANNOTATION, "true"));
    if (dead)
        return error_set(err, -ECANCELED, "killed");
    *ret = json_deep_copy(c->recovery);
    return 0;
}

static int write_status(void *context, const json_t *recovery, json_t **ret, struct error *err)
{
    struct cluster *c = context;
    char text[32];
    CALL(c);
    json_t *metadata = json_object_get(c->recovery, "metadata");
    if (!json_equal(json_object_get(metadata, "resourceVersion"),
                    json_object_get(json_object_get(recovery, "metadata"), "resourceVersion")))
        ANSWER(error_set(err, -EBUSY, "conflict"));
    snprintf(text, sizeof text, "%u", ++c->version);
    json_object_set_new(metadata, "resourceVersion", json_string(text));
    json_object_set_new(c->recovery, "status", json_deep_copy(json_object_get(recovery, "status")));
    if (!dead)
        *ret = json_deep_copy(c->recovery);
    ANSWER(0);
}

static int write_plan(void *context, const json_t *recovery, size_t number, const char *text,
                      struct error *err)
{
    struct cluster *c = context;
    char key[24];
    (void)recovery;
    CALL(c);
    if (c->refuse_plan && c->plan_writes++ >= c->plan_from)
        ANSWER(error_set(err, -EIO, "Internal error occurred: failed calling webhook \"policy\""));
    snprintf(key, sizeof key, "%zu", number);
    json_object_set_new(c->plans, key, json_string(text));
    ANSWER(0);
}

static int read_plan(void *context, const json_t *recovery, size_t number, char **ret, struct error *err)
{
    struct cluster *c = context;
    char key[24];
    (void)recovery;
    CALL(c);
    snprintf(key, sizeof key, "%zu", number);
    const char *text = json_string_value(json_object_get(c->plans, key));
    if (text && !dead)
        *ret = strdup(text);
    ANSWER(text ? 0 : error_set(err, -ENOENT, "no plan"));
}

static int objects_of(void *context, const char *namespace, const char *application, const char *point,
                      recovery_visit visit, void *visit_context, struct recovery_point *ret_point,
                      struct error *err)
{
    struct cluster *c = context;
    const char *name;
    json_t *object;
    (void)namespace, (void)application;
    CALL(c);
    if (dead)
        return error_set(err, -ECANCELED, "killed");
    if (!c->objects_point[0])
        snprintf(c->objects_point, sizeof c->objects_point, "%s", point);
    if (strcmp(point, "tag:none") == 0)
        return error_set(err, -ENOENT, "there is no tag 'none'");
    _cleanup_json_ json_t *set = json_deep_copy(strcmp(point, "latest") == 0 ? c->latest : c->point);
    json_object_foreach(set, name, object)
    {
        int r = visit ? visit(visit_context, name, object, err) : 0;
        if (r < 0)
            return r;
    }
    *ret_point = (struct recovery_point){.lsn = strcmp(point, "latest") == 0 ? 99 : 41,
                                         .realtime_ns = 1795260045000000000ull};
    return 0;
}

/* What is named "others" is another application's. */
static int select_own(void *context, const char *namespace, const char *application, json_t *objects,
                      struct error *err)
{
    (void)context, (void)namespace, (void)application, (void)err;
    for (size_t i = json_array_size(objects); i-- > 0;) {
        const json_t *metadata = json_object_get(json_array_get(objects, i), "metadata");
        if (strcmp(json_string_value(json_object_get(metadata, "name")), "others") == 0)
            json_array_remove(objects, i);
    }
    return 0;
}

static int pods(void *context, const char *namespace, json_t **ret, struct error *err)
{
    struct cluster *c = context;
    const char *name;
    json_t *object;
    (void)namespace;
    CALL(c);
    json_t *list = json_array();
    json_object_foreach(c->objects, name, object)
    {
        if (strncmp(name, "core/v1/Pod/", 12) == 0)
            json_array_append(list, object);
    }
    if (dead)
        json_decref(list);
    else
        *ret = list;
    ANSWER(0);
}

static int log_data(struct cluster *c, const char *what)
{
    return json_array_append_new(c->data, json_string(what));
}
static int let_go(void *context, const json_t *stream, struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    assert_string_equal(json_string_value(json_object_get(stream, "stream")), "s1");
    if (!json_object_get(c->unknown, "nowhere"))
        ANSWER(0);
    if (c->let_go_looks < 2) {
        c->let_go_looks++;
        ANSWER(error_set(err, -EAGAIN, "stream s1: the pod is being deleted"));
    }
    log_data(c, "let go");
    ANSWER(0);
}
static int streams(void *context, const char *owner, const char *source, const char *namespace, const char *application,
                   const json_t *wanted, json_t **ret, struct error *err)
{
    struct cluster *c = context;
    (void)source, (void)namespace, (void)application;
    CALL(c);
    assert_string_equal(owner, "n/r");
    if (json_object_get(c->unknown, "nowhere") && c->hold_looks < 2) {
        c->hold_looks++;
        ANSWER(error_set(err, -EAGAIN, "stream s1 is attached nowhere, and is being attached for this"));
    }
    assert_non_null(json_object_get(wanted, "core/v1/PersistentVolumeClaim/n/data-db-0"));
    json_t *gone = json_array();
    if (json_object_get(c->unknown, "gone"))
        json_array_append_new(gone, json_string("data-db-0"));
    json_t *list = json_pack("[{s:s, s:s, s:[s], s:{s:s}, s:o}]", "stream", "s1", "node", "node1", "claims",
                             "data-db-0", "handles", "data-db-0", "tm-1", "gone", gone);
    if (dead)
        json_decref(list);
    else
        *ret = list;
    ANSWER(0);
}
static int plan_data(void *context, const json_t *stream, const char *point, json_t **ret, struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    assert_string_equal(json_string_value(json_object_get(stream, "stream")), "s1");
    snprintf(c->data_point, sizeof c->data_point, "%s", point);
    if (json_object_get(c->unknown, "plan-fails"))
        ANSWER(error_set(err, -ERANGE, "the history begins later"));
    if (!dead)
        *ret = json_pack("{s:i, s:s, s:i, s:[{s:s, s:i}]}", "target_lsn", 7, "target_time",
                         "2026-11-21T02:04:46.5Z", "changed_bytes", 4096, "volumes", "name", "tm-1",
                         "changed_bytes", 4096);
    ANSWER(0);
}
static int gate(void *context, const json_t *stream, bool closed, const char *id, json_t **ret_rewound, struct error *err)
{
    struct cluster *c = context;
    *ret_rewound = NULL;
    assert_string_equal(id, "u-r");
    CALL(c);
    if (!closed && strcmp(json_string_value(json_object_get(stream, "stream")), "s0") == 0) /* its node is away */
        ANSWER(error_set(err, -EAGAIN, "node0 has no running node agent"));
    if (!closed && json_object_get(c->unknown, "gate-stuck"))
        ANSWER(error_set(err, -EBUSY, "it opens when a rewind has ended"));
    log_data(c, closed ? "close" : "open");
    if (!closed && !dead && json_object_get(c->unknown, "rewound-unseen"))
        *ret_rewound = json_pack("{s:i}", "before_lsn", 41);
    ANSWER(0);
}
static int rewind_data(void *context, const json_t *stream, uint64_t lsn, const char *id, json_t **ret,
                       struct error *err)
{
    struct cluster *c = context;
    (void)stream;
    CALL(c);
    assert_string_equal(id, "u-r");
    if (json_object_get(c->unknown, "rewind-fails")) {
        log_data(c, "rewind");
        ANSWER(error_set(err, -EIO, "the journal is damaged"));
    }
    if (json_object_get(c->unknown, "rewind-waits"))
        ANSWER(error_set(err, -EAGAIN, "waiting"));
    if (c->rewind_looks < 3) { /* pods that use it have not ended */
        c->rewind_looks++;
        ANSWER(error_set(err, -EAGAIN, "waiting"));
    }
    c->rewound_to = lsn;
    log_data(c, "rewind");
    if (!dead)
        *ret = json_pack("{s:i, s:i, s:i}", "before_lsn", 41, "waited_ms", 5, "rewound_ms", 6);
    ANSWER(0);
}
static int bind_volume(void *context, const char *namespace, const json_t *claim, struct error *err)
{
    struct cluster *c = context;
    (void)namespace;
    CALL(c);
    assert_string_equal(json_string_value(json_object_get(json_object_get(claim, "spec"), "volumeName")),
                        "pv-1");
    log_data(c, "bind");
    ANSWER(0);
}
static int originals(void *context, const char *owner, const char *namespace, const char *application, const json_t *wanted, json_t **ret,
                     struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    assert_string_equal(owner, "n/r");
    assert_string_equal(namespace, "n");
    assert_string_equal(application, "shop");
    /* What the clone will be, with the volume that the original had. */
    const json_t *claim = json_object_get(wanted, "core/v1/PersistentVolumeClaim/test/data-db-0");
    assert_string_equal(json_string_value(json_object_get(json_object_get(claim, "spec"), "volumeName")), "pv-1");
    if (json_object_get(c->unknown, "purged"))
        ANSWER(error_set(err, -ENOENT, "nothing is known of the volume pv-1"));
    if (!dead)
        *ret = json_pack("[{s:s, s:s, s:[s], s:s, s:[{s:s, s:s, s:s}]}]", "stream", "s1", "node", "node1", "claims", "data-db-0",
                         "newStream", "tm-9", "volumes", "claim", "data-db-0", "from", "tm-1", "handle", "tm-9");
    ANSWER(0);
}
static int plan_copy(void *context, const json_t *stream, const char *point, json_t **ret, struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    assert_string_equal(json_string_value(json_object_get(stream, "stream")), "s1");
    snprintf(c->data_point, sizeof c->data_point, "%s", point);
    if (json_object_get(c->unknown, "full"))
        ANSWER(error_set(err, -ENOSPC, "a clone does not fit"));
    if (json_object_get(c->unknown, "plan-fails"))
        ANSWER(error_set(err, -ERANGE, "the history begins later"));
    if (!dead)
        *ret = json_pack("{s:i, s:s, s:i, s:[{s:s, s:i, s:i}], s:b, s:s*}", "target_lsn", 7, "target_time", "2026-11-21T02:04:46.5Z",
                         "changed_bytes", 8192, "volumes", "name", "tm-1", "changed_bytes", 8192, "size_bytes", 1 << 20, "at_once", (int)c->at_once,
                         "copied_first", c->at_once ? NULL : "the node is older");
    ANSWER(0);
}
static int copy(void *context, json_t *stream, const char *owner, json_t **ret, struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    assert_string_equal(owner, "n/r");
    assert_int_equal(json_integer_value(json_object_get(stream, "targetLsn")), 7);
    assert_string_equal(json_string_value(json_object_get(stream, "newStream")), "tm-9");
    const json_t *volume = json_array_get(json_object_get(stream, "volumes"), 0);
    assert_int_equal(json_integer_value(json_object_get(volume, "sizeBytes")), 1 << 20);
    if (json_object_get(c->unknown, "copy-fails"))
        ANSWER(error_set(err, -EIO, "the copy has failed: the original was deleted"));
    if (c->rewind_looks < 3) {
        c->rewind_looks++;
        json_object_set_new(stream, "operation", json_string("op-1"));
        ANSWER(error_set(err, -EAGAIN, "stream s1 is being copied: 30 %%"));
    }
    log_data(c, "copy");
    assert_int_equal(json_is_true(json_object_get(stream, "atOnce")), c->at_once);
    if (!dead)
        *ret = json_pack("{s:i, s:b}", "copied_ms", 12, "at_once", (int)c->at_once);
    ANSWER(0);
}
static int bind_copy(void *context, const json_t *stream, const json_t *volume, const char *source_namespace, const char *namespace,
                     const json_t *claim, struct error *err)
{
    struct cluster *c = context;
    (void)stream, (void)volume;
    CALL(c);
    assert_string_equal(source_namespace, "n");
    assert_string_equal(namespace, "test");
    assert_non_null(claim);
    assert_null(json_object_get(c->objects, "core/v1/PersistentVolumeClaim/test/data-db-0")); /* before it */
    log_data(c, "bind");
    ANSWER(0);
}
static int filling(void *context, const json_t *stream, json_t **ret, struct error *err)
{
    struct cluster *c = context;
    CALL(c);
    assert_string_equal(json_string_value(json_object_get(stream, "newStream")), "tm-9");
    if (c->filled < 0)
        ANSWER(error_set(err, c->filled, "the node does not answer"));
    if (!dead)
        *ret = json_pack("{s:b, s:i, s:i, s:s*}", "done", c->filled == 8192, "done_bytes", c->filled, "total_bytes", 8192, "alarm", c->alarm);
    ANSWER(0);
}
static void no_pause(void *context, unsigned ms)
{
    ((struct cluster *)context)->paused += ms;
}

static const struct recovery_cluster_ops cluster_ops = {.get = get,
                                                        .create = create,
                                                        .try_create = try_create,
                                                        .replace = replace,
                                                        .remove = delete,
                                                        .list = list,
                                                        .pods = pods,
                                                        .knows = knows};
static const struct recovery_store_ops store_ops = {read_recovery, write_status, write_plan, read_plan};
static const struct recovery_source_ops source_ops = {objects_of, select_own};
static const struct data_ops data_ops = {.streams = streams,
                                         .let_go = let_go,
                                         .plan = plan_data,
                                         .gate = gate,
                                         .rewind = rewind_data,
                                         .bind = bind_volume,
                                         .originals = originals,
                                         .plan_copy = plan_copy,
                                         .copy = copy,
                                         .bind_copy = bind_copy,
                                         .filling = filling};

static int run(struct cluster *c, bool data, struct error *err)
{
    static const uint8_t key[SEALING_KEY_BYTES] = {1, 2, 3};
    struct sealing sealing;
    if (sealing_init(&sealing, key, err) < 0)
        fail_msg("%s", err->message);
    struct recovery_context context = {.cluster = &cluster_ops,
                                       .cluster_context = c,
                                       .store = &store_ops,
                                       .store_context = c,
                                       .source = &source_ops,
                                       .source_context = c,
                                       .data = data ? &data_ops : NULL,
                                       .data_context = c,
                                       .sealing = &sealing,
                                       .pause = no_pause,
                                       .pause_context = c};
    return recovery_advance(&context, "n", "r", err);
}

/* Once more, of one that has ended: whether it is to be asked for again. */
static bool follow(struct cluster *c)
{
    struct error err = ERROR_INIT;
    bool goes_on = false;
    const struct recovery_context context = {.store = &store_ops, .store_context = c, .data = &data_ops, .data_context = c};
    check_ok(recovery_follow(&context, "n", "r", &goes_on, &err));
    return goes_on;
}

#define POINT                                                                                                \
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: n}\ndata: {release: "            \
    "good}\n---\n"                                                                                           \
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: same, namespace: n}\ndata: {a: b}\n---\n"             \
    "apiVersion: v1\nkind: Secret\nmetadata: {name: gone, namespace: n, ownerReferences: [{apiVersion: "     \
    "apps/v1, kind: Deployment, name: web}]}\ndata: {a: Yg==}\n---\n"                                        \
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: n}\nspec: {ports: [{port: 80, "         \
    "nodePort: 30001}]}\n---\n"                                                                              \
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: n}\nspec: {replicas: 2, "       \
    "selector: {matchLabels: {a: b}}, template: {spec: {containers: [{name: w, image: 'w:1'}]}}}\n---\n"     \
    "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data-db-0, namespace: n}\nspec: "         \
    "{storageClassName: fast, volumeName: pv-1}\n"
#define NOW                                                                                                  \
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n---\n"                                            \
    "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: fast}\n---\n"                       \
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: n, labels: {later: x}}\ndata: "  \
    "{release: bad, more: x}\n---\n"                                                                         \
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: same, namespace: n}\ndata: {a: b}\n---\n"             \
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: later, namespace: n}\n---\n"                          \
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: others, namespace: n}\n---\n"                         \
    "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: later, namespace: n}\n---\n"              \
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: n}\nspec: {replicas: 0, "       \
    "selector: {matchLabels: {a: c}}, template: {spec: {containers: [{name: w, image: 'w:2'}]}}}\n---\n"     \
    "apiVersion: v1\nkind: Pod\nmetadata: {name: db-0, namespace: n, ownerReferences: [{kind: StatefulSet, " \
    "name: db, controller: true}]}\nspec: {volumes: [{persistentVolumeClaim: {claimName: "                   \
    "data-db-0}}]}\n---\n"                                                                                   \
    "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data-db-0, namespace: n}\nspec: "         \
    "{storageClassName: fast, volumeName: pv-1}\n"

static void set_up(struct cluster *c, const char *now, const char *spec)
{
    *c = (struct cluster){.mutex = PTHREAD_MUTEX_INITIALIZER};
    c->objects = json_object();
    c->plans = json_object();
    c->unknown = json_object();
    c->data = json_array();
    c->sequence = json_array();
    c->point = manifests_set_text(POINT);
    c->latest = json_object();
    _cleanup_json_ json_t *objects = manifests_parse(now), *read = manifests_one(spec);
    json_t *object;
    size_t i;
    json_array_foreach(objects, i, object)
    {
        struct error err = ERROR_INIT;
        struct object_id id;
        char name[OBJECT_NAME_BYTES], uid[32];
        check_ok(object_identify(object, &id, &err));
        check_ok(object_journal_name(&id, name, &err));
        snprintf(uid, sizeof uid, "uid-%u", ++c->uids);
        store(c, name, object, uid);
    }
    c->recovery = json_pack("{s:s, s:s, s:{s:s, s:s, s:s, s:s, s:i}, s:O}", "apiVersion",
                            "tidemark.io/v1alpha1", "kind", "Recovery", "metadata", "name", "r", "namespace",
                            "n", "uid", "u-r", "resourceVersion", "1", "generation", 1, "spec", read);
}

static void tear_down(struct cluster *c)
{
    json_decref(c->objects);
    json_decref(c->recovery);
    json_decref(c->plans);
    json_decref(c->point);
    json_decref(c->latest);
    json_decref(c->unknown);
    json_decref(c->data);
    json_decref(c->sequence);
    json_decref(c->other);
}

#define REWIND "{application: shop, mode: rewind, point: '-90s'}"

static const json_t *status_of(const struct cluster *c)
{
    return json_object_get(c->recovery, "status");
}
static void assert_phase(const struct cluster *c, const char *phase)
{
    const char *now = json_string_value(json_object_get(status_of(c), "phase"));
    if (!now || strcmp(now, phase) != 0) {
        _cleanup_free_ char *text = json_to_pretty_text(c->recovery);
        fail_msg("phase %s instead of %s: %s", now, phase, text);
    }
}
static long verdicts(const struct cluster *c, const char *verdict)
{
    return (long)json_integer_value(json_object_get(json_object_get(status_of(c), "verdicts"), verdict));
}

static bool has_note(const struct cluster *c, const char *words)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(json_object_get(status_of(c), "plan"), "notes"), i, one)
    {
        if (strstr(json_string_value(one), words))
            return true;
    }
    return false;
}

/* What is in the namespace is what the point says, and what must stay. */
static void assert_rewound(const struct cluster *c)
{
    const char *name;
    json_t *wanted;
    json_object_foreach(c->point, name, wanted)
    {
        struct error err = ERROR_INIT;
        _cleanup_json_ json_t *normal = NULL, *expected = json_deep_copy(wanted);
        if (!json_object_get(c->objects, name))
            fail_msg("%s is not there", name);
        check_ok(object_normalize(json_object_get(c->objects, name), &normal, &err));
        if (strstr(name, "/Service/")) /* its port is taken */
            json_object_del(json_array_get(json_object_get(json_object_get(expected, "spec"), "ports"), 0),
                            "nodePort");
        _cleanup_free_ char *a = object_canonical(normal), *b = object_canonical(expected);
        assert_string_equal(a, b);
    }
    assert_null(json_object_get(c->objects, "core/v1/ConfigMap/n/later"));
    assert_non_null(json_object_get(c->objects, "core/v1/ConfigMap/n/others"));
    assert_non_null(json_object_get(c->objects, "core/v1/PersistentVolumeClaim/n/later")); /* R6 */
    const json_t *owner = json_array_get(
        json_object_get(json_object_get(json_object_get(c->objects, "core/v1/Secret/n/gone"), "metadata"),
                        "ownerReferences"),
        0);
    assert_string_equal(json_string_value(json_object_get(owner, "uid")),
                        object_uid(json_object_get(c->objects, "apps/v1/Deployment/n/web")));
}

static void a_rewind_puts_objects_back(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_rewound(&c);
    assert_int_equal(verdicts(&c, "created"), 2); /* secret and service */
    assert_int_equal(verdicts(&c, "changed"), 2); /* config map; deployment, made again for its selector */
    assert_int_equal(verdicts(&c, "same"), 2);
    assert_int_equal(verdicts(&c, "deleted"), 1);
    assert_int_equal(verdicts(&c, "skipped"), 1);
    assert_string_equal(json_string_value(json_object_get(status_of(&c), "before")), "before:r");
    assert_int_equal(json_integer_value(json_object_get(status_of(&c), "beforeLsn")), 99);
    _cleanup_free_ char *data = json_to_text(c.data);
    assert_string_equal(data, "[\"close\",\"rewind\",\"open\"]");
    assert_null(json_object_get(c.objects, "core/v1/Pod/n/db-0"));
    const char *plan = json_string_value(json_object_get(c.plans, "0"));
    assert_non_null(strstr(plan, "\"r\":\"its address or node port is taken: it got another\""));
    assert_true(has_note(&c, "core/v1/Service/n/web: its address or node port is taken: it got another"));
    tear_down(&c);
}

/* Another Service of the application has it, and lets go of it in the same wave, after a third one; and an autoscaler that is
 * there does not set the replicas of the workload to what it was told after the point. */
static void a_node_port_goes_back_to_the_service_that_had_it(void **unused)
{
    (void)unused;
#define SERVICE(name, port)                                                                                  \
    "---\napiVersion: v1\nkind: Service\nmetadata: {name: " name ", namespace: n}\nspec: {ports: [{port: 80, nodePort: " port "}]}\n"
#define OTHERS(first, second, least)                                                                         \
    SERVICE("zy", first) SERVICE("zz", second) "---\n"                                                       \
    "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: web, namespace: n}\nspec: " \
    "{minReplicas: " least ", scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}\n"
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW OTHERS("30001", "30002", "4"), REWIND);
    json_decref(c.point);
    c.point = manifests_set_text(POINT OTHERS("30002", "30003", "2"));
    c.ports = true;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_int_equal(port_of(json_object_get(c.objects, "core/v1/Service/n/web")), 30001);
    assert_int_equal(port_of(json_object_get(c.objects, "core/v1/Service/n/zy")), 30002);
    assert_int_equal(port_of(json_object_get(c.objects, "core/v1/Service/n/zz")), 30003);
    assert_false(has_note(&c, "taken"));
    const char *plan = json_string_value(json_object_get(c.plans, "0"));
    assert_non_null(
        strstr(plan, "{\"w\":1,\"a\":\"change\",\"o\":\"autoscaling/v2/HorizontalPodAutoscaler/n/web\""));
    tear_down(&c);
}

/* Its volume was none of Tidemark's. */
static void a_claim_that_gets_an_empty_volume_is_told(void **unused)
{
    (void)unused;
    static const char claim[] =
        "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: theirs, namespace: n}\n"
        "spec: {storageClassName: fast, volumeName: pv-9}\n";
    struct cluster c;
    struct error err = ERROR_INIT;
    for (int there = 0; there < 2; there++) {
        _cleanup_free_ char *now = NULL, *point = NULL;
        assert_true(asprintf(&now, "%s%s", NOW, there ? claim : "") > 0 &&
                    asprintf(&point, "%s%s", POINT, claim) > 0);
        set_up(&c, now, REWIND);
        json_decref(c.point);
        c.point = manifests_set_text(point);
        check_ok(run(&c, true, &err));
        assert_phase(&c, "Completed");
        assert_int_equal(has_note(&c, "claim theirs gets an empty volume"), !there);
        assert_false(has_note(&c, "claim data-db-0"));
        tear_down(&c);
    }
}

static void a_dry_run_changes_nothing_and_says_everything(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, "{application: shop, mode: rewind, point: '-90s', dryRun: true}");
    _cleanup_json_ json_t *before = json_deep_copy(c.objects);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Planned");
    assert_true(json_equal(before, c.objects));
    assert_int_equal(json_array_size(c.data), 0);
    json_t *planned = json_object_get(status_of(&c), "plan");
    assert_int_equal(strlen(json_string_value(json_object_get(planned, "digest"))), 64);
    json_object_del(planned, "digest");
    _cleanup_free_ char *plan = json_dumps(planned, JSON_SORT_KEYS | JSON_COMPACT);
    assert_string_equal(
        plan, "{\"change\":1,\"configMap\":\"tidemark-recovery-r\",\"create\":2,\"delete\":1,"
              "\"recreate\":1,\"same\":2,\"skip\":1,"
              "\"volumes\":[{\"changedBytes\":4096,\"claim\":\"data-db-0\",\"stream\":\"s1\"}],\"waves\":5}");
    tear_down(&c);
}

/* R1, R5: the controller dies at each of its calls in turn, before it is carried out or before the answer;
 * the next one finishes. */
static void r1_a_killed_controller_is_taken_over_at_every_call(void **unused)
{
    (void)unused;
    struct cluster whole;
    struct error err = ERROR_INIT;
    set_up(&whole, NOW, REWIND);
    check_ok(run(&whole, true, &err));
    _cleanup_free_ char *expected =
        json_dumps(json_object_get(status_of(&whole), "verdicts"), JSON_SORT_KEYS | JSON_COMPACT);
    for (long at = 1; at <= whole.calls; at++) {
        for (int lost = 0; lost < 2; lost++) {
            struct cluster c;
            set_up(&c, NOW, REWIND);
            c.kill_at = at;
            c.lose_answer = lost;
            int r = run(&c, true, &err);
            /* Killed after its last word there is nothing left to do. */
            if (r == 0 && !recovery_has_ended(c.recovery))
                fail_msg("call %ld: ended without a phase", at);
            c.kill_at = 0;
            check_ok(run(&c, true, &err));
            assert_phase(&c, "Completed");
            assert_rewound(&c);
            _cleanup_free_ char *got =
                json_dumps(json_object_get(status_of(&c), "verdicts"), JSON_SORT_KEYS | JSON_COMPACT);
            if (strcmp(got, expected) != 0)
                fail_msg("killed at call %ld (answer %s): verdicts %s instead of %s", at,
                         lost ? "lost" : "never", got, expected);
            assert_string_equal(json_string_value(json_array_get(c.data, json_array_size(c.data) - 1)),
                                "open");
            tear_down(&c);
        }
    }
    tear_down(&whole);
}

/* A webhook for ConfigMaps that is down, from the beginning or from the first wave on. */
static void r1_a_plan_that_no_config_map_takes_is_in_the_status(void **unused)
{
    (void)unused;
    struct cluster whole;
    struct error err = ERROR_INIT;
    for (unsigned from = 0; from < 3; from++) {
        set_up(&whole, NOW, REWIND);
        whole.refuse_plan = true;
        whole.plan_from = from;
        check_ok(run(&whole, true, &err));
        assert_phase(&whole, "Completed");
        assert_rewound(&whole);
        const json_t *plan = json_object_get(status_of(&whole), "plan");
        assert_int_equal(json_array_size(json_object_get(plan, "objects")), 8);
        assert_null(json_object_get(plan, "configMap"));
        _cleanup_free_ char *lines = json_to_text(plan);
        assert_non_null(strstr(lines, "its address or node port is taken"));
        _cleanup_free_ char *expected = json_dumps(json_object_get(status_of(&whole), "verdicts"), JSON_SORT_KEYS | JSON_COMPACT);
        for (long at = 1; at <= whole.calls; at++) {
            struct cluster c;
            set_up(&c, NOW, REWIND);
            c.refuse_plan = true;
            c.plan_from = from;
            c.kill_at = at;
            c.lose_answer = at & 1;
            (void)run(&c, true, &err);
            err = (struct error)ERROR_INIT;
            c.kill_at = 0;
            check_ok(run(&c, true, &err));
            assert_phase(&c, "Completed");
            assert_rewound(&c);
            _cleanup_free_ char *got = json_dumps(json_object_get(status_of(&c), "verdicts"), JSON_SORT_KEYS | JSON_COMPACT);
            assert_string_equal(got, expected);
            tear_down(&c);
        }
        tear_down(&whole);
    }
}

static void r3_a_failed_check_leaves_everything_as_it_was(void **unused)
{
    (void)unused;
    static const struct {
        const char *spec, *unknown, *reason, *message;
        bool terminating, no_class;
    } cases[] = {
        {"{application: shop, mode: rewind, point: 'tag:none'}", NULL, "PointNotAvailable", "there is no tag",
         false, false},
        {REWIND, "Deployment", "DefinitionMissing", "install its CustomResourceDefinition", false, false},
        {REWIND, NULL, "StorageClassMissing", "needs the StorageClass 'fast'", false, true},
        {"{application: shop, mode: clone, targetNamespace: other, point: '-90s', transforms: [{image: "
         "{from: nothing/, to: x/}}]}",
         NULL, "TransformFailed", "matches nothing", false, false},
        {REWIND, NULL, "NamespaceTerminating", "is being deleted", true, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c, NOW, cases[i].spec);
        if (cases[i].unknown)
            json_object_set_new(c.unknown, cases[i].unknown, json_true());
        if (cases[i].no_class)
            json_object_del(c.objects, "storage.k8s.io/v1/StorageClass/_/fast");
        if (cases[i].terminating)
            json_object_set_new(
                json_object_get(json_object_get(c.objects, "core/v1/Namespace/_/n"), "metadata"),
                "deletionTimestamp", json_string("x"));
        _cleanup_json_ json_t *before = json_deep_copy(c.objects);
        int r = run(&c, true, &err);
        assert_int_equal(r, cases[i].terminating ? -EAGAIN : 0);
        assert_phase(&c, cases[i].terminating ? "Pending" : "Failed");
        const json_t *condition = json_array_get(json_object_get(status_of(&c), "conditions"), 0);
        assert_string_equal(json_string_value(json_object_get(condition, "reason")), cases[i].reason);
        assert_non_null(strstr(json_string_value(json_object_get(condition, "message")), cases[i].message));
        assert_true(json_equal(before, c.objects));
        assert_int_equal(json_array_size(c.data), 0);
        if (cases[i].terminating) { /* it passes */
            json_object_del(json_object_get(json_object_get(c.objects, "core/v1/Namespace/_/n"), "metadata"),
                            "deletionTimestamp");
            check_ok(run(&c, true, &err));
            assert_phase(&c, "Completed");
        }
        tear_down(&c);
    }
}

static void who_would_put_it_back_is_named_before_anything_is_changed(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    json_object_set_new(json_object_get(json_object_get(c.point, "apps/v1/Deployment/n/web"), "metadata"),
                        "labels", json_pack("{s:s}", "argocd.argoproj.io/instance", "shop"));
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Failed");
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")),
                           "Argo CD 'shop' would put the newer state back"));
    tear_down(&c);
    set_up(&c, NOW, "{application: shop, mode: rewind, point: '-90s', force: true}");
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Completed");
    tear_down(&c);
}

static void one_object_that_fails_does_not_stop_the_others_and_is_told(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c,
           NOW
           "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\ndata: {a: new}\n",
           REWIND);
    _cleanup_json_ json_t *refused = manifests_one(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\ndata: {a: old}\n");
    check_ok(objects_add(c.point, refused, NULL, &err));
    c.refuse_kind = true;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_int_equal(verdicts(&c, "failed"), 1);
    assert_int_equal(verdicts(&c, "changed"), 2);
    const json_t *failure = json_array_get(json_object_get(status_of(&c), "failures"), 0);
    assert_string_equal(json_string_value(json_object_get(failure, "object")), "core/v1/ConfigMap/n/refused");
    assert_non_null(strstr(json_string_value(json_object_get(failure, "reason")), "denied the request"));
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")),
                           "1 of 9 objects could not be put back"));
    tear_down(&c);
}

static void r5_the_gate_opens_when_a_step_fails_or_is_cancelled(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    json_object_set_new(c.unknown, "rewind-fails", json_true());
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    _cleanup_free_ char *data = json_to_text(c.data);
    assert_string_equal(data, "[\"close\",\"rewind\",\"open\"]");
    assert_non_null(json_object_get(c.objects, "core/v1/ConfigMap/n/later")); /* no object was touched */
    tear_down(&c);
    set_up(&c, NOW, REWIND);
    c.cancel_at_apply = true;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Cancelled");
    assert_non_null(
        strstr(json_string_value(json_object_get(status_of(&c), "message")), "takes it back: before:r"));
    _cleanup_free_ char *cancelled = json_to_text(c.data);
    assert_string_equal(cancelled, "[\"close\",\"rewind\",\"open\"]");
    tear_down(&c);
}

/* R5: it is not known any more who asked, and so with whose rights to go on. */
static void r5_one_that_cannot_be_carried_on_opens_its_gates(void **unused)
{
    (void)unused;
    struct cluster whole;
    struct error err = ERROR_INIT;
    set_up(&whole, NOW, REWIND);
    check_ok(run(&whole, true, &err));
    const struct error why = {.code = -EPERM, .message = "nobody is recorded"};
    for (long at = 1; at <= whole.calls; at++) {
        struct cluster c;
        set_up(&c, NOW, REWIND);
        c.kill_at = at;
        (void)!run(&c, true, &err);
        bool ended = recovery_has_ended(c.recovery);
        c.kill_at = 0;
        size_t had = json_array_size(json_object_get(status_of(&c), "streams"));
        const struct recovery_context context = {.store = &store_ops, .store_context = &c, .data = &data_ops, .data_context = &c};
        check_ok(recovery_abandon(&context, "n", "r", "RequesterUnknown", &why, &err));
        assert_true(ended || strcmp(recovery_condition_text(c.recovery, "Ready", "reason"), "RequesterUnknown") == 0);
        assert_true(recovery_has_ended(c.recovery));
        assert_int_equal(json_array_size(json_object_get(status_of(&c), "streams")), had);
        size_t steps = json_array_size(c.data);
        assert_true(steps == 0 || strcmp(json_string_value(json_array_get(c.data, steps - 1)), "open") == 0);
        tear_down(&c);
    }
    tear_down(&whole);
}

static void a_clone_leaves_the_original_alone(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW,
           "{application: shop, mode: clone, targetNamespace: test, point: '-90s', isolated: true, "
           "transforms: [{replicas: 1, target: {kind: Deployment}}]}");
    _cleanup_json_ json_t *before = json_deep_copy(c.objects);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    const char *name;
    json_t *object;
    json_object_foreach(before, name, object)
        assert_true(json_equal(object, json_object_get(c.objects, name)));
    assert_non_null(json_object_get(c.objects, "core/v1/Namespace/_/test"));
    assert_non_null(json_object_get(c.objects, "networking.k8s.io/v1/NetworkPolicy/test/tidemark-isolated"));
    const json_t *web = json_object_get(c.objects, "apps/v1/Deployment/test/web");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(web, "spec"), "replicas")), 1);
    const json_t *claim = json_object_get(c.objects, "core/v1/PersistentVolumeClaim/test/data-db-0");
    assert_null(json_object_get(json_object_get(claim, "spec"), "volumeName"));
    /* Its volumes are copies, which are there before their claims; no gate is closed, no pod stopped. */
    _cleanup_free_ char *data = json_to_text(c.data);
    assert_string_equal(data, "[\"copy\",\"bind\"]");
    const json_t *stream = json_array_get(json_object_get(status_of(&c), "streams"), 0);
    assert_int_equal(json_integer_value(json_object_get(stream, "copiedMs")), 12);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(status_of(&c), "timings"), "dataMs")), 12);
    assert_non_null(json_object_get(json_object_get(status_of(&c), "timings"), "openedMs"));
    tear_down(&c);
}

#define CLONE "{application: shop, mode: clone, targetNamespace: test, point: '-90s'}"

static json_int_t filling_of(const struct cluster *c, const char *field)
{
    return json_integer_value(json_object_get(json_object_get(status_of(c), "filling"), field));
}

static void r1_a_clone_is_carried_on_at_every_call(void **unused)
{
    (void)unused;
    struct cluster whole;
    struct error err = ERROR_INIT;
    set_up(&whole, NOW, CLONE);
    whole.at_once = true;
    check_ok(run(&whole, true, &err));
    for (long at = 1; at <= whole.calls; at++) {
        for (int lost = 0; lost < 2; lost++) {
            struct cluster c;
            set_up(&c, NOW, CLONE);
            c.at_once = true;
            _cleanup_json_ json_t *before = json_deep_copy(c.objects);
            c.kill_at = at;
            c.lose_answer = lost;
            int r = run(&c, true, &err);
            if (r == 0 && !recovery_has_ended(c.recovery))
                fail_msg("call %ld: ended without a phase", at);
            c.kill_at = 0;
            check_ok(run(&c, true, &err));
            assert_phase(&c, "Completed");
            assert_int_equal(verdicts(&c, "created"), verdicts(&whole, "created"));
            assert_int_equal(verdicts(&c, "failed"), 0);
            assert_string_equal(json_string_value(json_array_get(c.data, json_array_size(c.data) - 1)), "bind");
            assert_true(recovery_is_filling(c.recovery));
            assert_int_equal(filling_of(&c, "leftBytes"), 8192);
            const char *name;
            json_t *object;
            json_object_foreach(before, name, object)
                assert_true(json_equal(object, json_object_get(c.objects, name)));
            tear_down(&c);
        }
    }
    tear_down(&whole);
}

static void assert_filled(const struct cluster *c, const char *status, const char *reason, const char *words)
{
    assert_string_equal(recovery_condition_text(c->recovery, "Filled", "status"), status);
    assert_string_equal(recovery_condition_text(c->recovery, "Filled", "reason"), reason);
    if (!strstr(recovery_condition_text(c->recovery, "Filled", "message"), words))
        fail_msg("'%s' is not in '%s'", words, recovery_condition_text(c->recovery, "Filled", "message"));
}

static void a_clone_is_used_before_it_is_copied(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, CLONE);
    c.at_once = true;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_true(recovery_is_filling(c.recovery));
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "copied behind"));
    assert_filled(&c, "False", "Filling", "0 B of 8.0 KiB");
    assert_int_equal(filling_of(&c, "leftBytes"), 8192);
    /* Its node copies on; nothing is written when nothing has changed. */
    unsigned version = c.version;
    assert_true(follow(&c));
    assert_int_equal(c.version, version);
    c.filled = 6144;
    assert_true(follow(&c));
    assert_int_equal(filling_of(&c, "leftBytes"), 2048);
    assert_phase(&c, "Completed");
    /* What is in its way is told, and so is that it is over. */
    c.alarm = "the original: journaling is suspended: the quota is used up";
    assert_true(follow(&c));
    assert_filled(&c, "False", "FillingInTrouble", "stream tm-9: the original: journaling is suspended");
    version = c.version;
    assert_true(follow(&c));
    assert_int_equal(c.version, version);
    c.filled = -EAGAIN;
    assert_true(follow(&c));
    assert_filled(&c, "False", "NodeUnreachable", "does not answer");
    c.filled = 6144;
    c.alarm = NULL;
    assert_true(follow(&c));
    assert_filled(&c, "False", "Filling", "6.0 KiB of 8.0 KiB");
    c.filled = 8192;
    assert_false(follow(&c));
    assert_filled(&c, "True", "Filled", "nothing of the original");
    assert_int_equal(filling_of(&c, "leftBytes"), 0);
    assert_false(recovery_is_filling(c.recovery));
    assert_false(follow(&c));
    assert_phase(&c, "Completed");
    tear_down(&c);
    /* The clone is thrown away in the middle. */
    set_up(&c, NOW, CLONE);
    c.at_once = true;
    check_ok(run(&c, true, &err));
    c.filled = -ENOENT;
    assert_false(follow(&c));
    assert_filled(&c, "False", "CloneDeleted", "before it was copied");
    tear_down(&c);
    /* It is whole before anybody has looked. */
    set_up(&c, NOW, CLONE);
    c.at_once = true;
    c.filled = 8192;
    check_ok(run(&c, true, &err));
    assert_filled(&c, "True", "Filled", "");
    assert_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "copied behind"));
    tear_down(&c);
}

static void what_a_clone_cannot_do_is_in_its_plan(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    const char *dry = "{application: shop, mode: clone, targetNamespace: test, point: '-90s', dryRun: true}";
    set_up(&c, NOW "---\napiVersion: v1\nkind: Node\nmetadata: {name: node1}\nspec: {unschedulable: true}\n", dry);
    json_decref(c.point);
    c.point = manifests_set_text(POINT "---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db, namespace: n}\nspec: {template: {spec: "
                                       "{nodeSelector: {kubernetes.io/hostname: node2}, volumes: [{name: x}]}}}\n");
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Planned");
    assert_true(has_note(&c, "is copied before the clone can be used: the node is older"));
    assert_true(has_note(&c, "kubectl uncordon node1"));
    assert_true(has_note(&c, "apps/v1/StatefulSet/test/db asks for the node node2"));
    assert_int_equal(json_array_size(c.data), 0);
    tear_down(&c);
    /* Nothing of that: no notes. And one that was copied first says why. */
    set_up(&c, NOW "---\napiVersion: v1\nkind: Node\nmetadata: {name: node1}\n", dry);
    c.at_once = true;
    check_ok(run(&c, true, &err));
    assert_null(json_object_get(json_object_get(status_of(&c), "plan"), "notes"));
    tear_down(&c);
    set_up(&c, NOW, CLONE);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_filled(&c, "True", "CopiedFirst", "the node is older");
    assert_false(recovery_is_filling(c.recovery));
    tear_down(&c);
}

static void a_clone_without_data_asks_for_it(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, "{application: shop, mode: clone, targetNamespace: test, point: '-90s', objectsOnly: true}");
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_int_equal(json_array_size(c.data), 0);
    assert_null(json_object_get(status_of(&c), "streams"));
    tear_down(&c);
    /* The plan of one with data: what it would copy. A point that leaves volumes alone in a rewind is one here. */
    set_up(&c, NOW, "{application: shop, mode: clone, targetNamespace: test, point: latest, dryRun: true}");
    json_object_update(c.latest, c.point);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Planned");
    assert_string_equal(c.data_point, "latest");
    const json_t *volume = json_array_get(json_object_get(json_object_get(status_of(&c), "plan"), "volumes"), 0);
    assert_string_equal(json_string_value(json_object_get(volume, "claim")), "data-db-0");
    assert_int_equal(json_integer_value(json_object_get(volume, "changedBytes")), 8192);
    assert_int_equal(json_array_size(c.data), 0);
    tear_down(&c);
}

/* R3: what speaks against the copy is found before anything is made; a copy that fails ends the clone with the reason. */
static void a_clone_whose_data_cannot_be_had_says_why(void **unused)
{
    (void)unused;
    static const struct {
        const char *trouble, *reason, *message;
    } cases[] = {{"purged", "VolumesNotAvailable", "nothing is known of the volume"},
                 {"full", "NoSpace", "does not fit"},
                 {"plan-fails", "PointNotAvailable", "the history begins later"},
                 {"claim", "ClaimExists", "has a claim data-db-0 with a volume of its own"},
                 {"copy-fails", "CopyFailed", "the original was deleted"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        bool claim = strcmp(cases[i].trouble, "claim") == 0;
        set_up(&c,
               claim ? NOW "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data-db-0, namespace: test}\nspec: "
                           "{storageClassName: fast, volumeName: pv-2}\n"
                     : NOW,
               CLONE);
        json_object_set_new(c.unknown, cases[i].trouble, json_true());
        _cleanup_json_ json_t *before = json_deep_copy(c.objects);
        check_ok(run(&c, true, &err));
        assert_phase(&c, "Failed");
        const json_t *condition = json_array_get(json_object_get(status_of(&c), "conditions"), 0);
        assert_string_equal(json_string_value(json_object_get(condition, "reason")), cases[i].reason);
        assert_non_null(strstr(json_string_value(json_object_get(condition, "message")), cases[i].message));
        assert_true(json_equal(before, c.objects));
        assert_int_equal(json_array_size(c.data), 0);
        tear_down(&c);
    }
}

static void a_namespace_that_is_gone_is_restored(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: fast}\n",
           "{application: shop, sourceNamespace: shop-was-here, mode: restore, point: '-90s', "
           "targetNamespace: n}");
    json_decref(c.point);
    c.point = manifests_set_text(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop-was-here}\n---\n"
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop-was-here}\n");
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Completed");
    assert_non_null(json_object_get(c.objects, "core/v1/ConfigMap/n/a"));
    assert_int_equal(verdicts(&c, "created"), 2);
    assert_int_equal(c.listed, 0); /* there is nothing in it: a request for each kind of the cluster would tell no more */
    tear_down(&c);
}

/* Each kind of point in the objects' journal and in the streams. */
static void the_point_of_the_streams_follows_its_kind(void **unused)
{
    (void)unused;
    static const struct {
        const char *asked, *of_objects, *of_streams;
    } points[] = {
        {"2026-11-21T02:04:46.500000Z", "2026-11-21T02:04:46.500000Z", "2026-11-21T02:04:46.500000Z"},
        {"-90s", "2026-11-21T11:58:30.000000Z", "2026-11-21T11:58:30.000000Z"},
        {"tag:good", "tag:good", "tag:good"},
        {"lsn:41", "lsn:41", "2026-11-21T11:20:45.000000Z"}};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        char spec[160];
        snprintf(spec, sizeof spec, "{application: shop, mode: rewind, point: '%s'}", points[i].asked);
        set_up(&c, NOW, spec);
        json_object_set_new(json_object_get(c.recovery, "metadata"), "creationTimestamp",
                            json_string("2026-11-21T12:00:00Z"));
        check_ok(run(&c, true, &err));
        assert_phase(&c, "Completed");
        assert_string_equal(c.objects_point, points[i].of_objects);
        assert_string_equal(c.data_point, points[i].of_streams);
        assert_int_equal(c.rewound_to, 7); /* what the plan said */
        tear_down(&c);
    }
}

static void the_latest_point_leaves_volumes_as_they_are(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, "{application: shop, mode: rewind, point: latest}");
    json_object_update(c.latest, c.point);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_int_equal(json_array_size(c.data), 0);
    tear_down(&c);
}

static void before_a_recovery_is_where_each_stream_was(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, "{application: shop, mode: rewind, point: 'before:first'}");
    c.other = json_pack("{s:{s:s}, s:{s:s, s:i, s:[{s:s, s:i}]}}", "spec", "application", "shop", "status",
                        "phase", "Completed", "beforeLsn", 40, "streams", "stream", "s1", "beforeLsn", 33);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_string_equal(c.objects_point, "lsn:40");
    assert_string_equal(c.data_point, "lsn:33");
    tear_down(&c);
    /* One that left the stream alone. */
    set_up(&c, NOW, "{application: shop, mode: rewind, point: 'before:first'}");
    c.other = json_pack("{s:{s:s}, s:{s:s, s:i}}", "spec", "application", "shop", "status", "phase", "Failed",
                        "beforeLsn", 40);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_int_equal(json_array_size(c.data), 0);
    tear_down(&c);
    /* One that is not there any more. */
    set_up(&c, NOW, "{application: shop, mode: rewind, point: 'before:first'}");
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_non_null(
        strstr(json_string_value(json_object_get(status_of(&c), "message")), "no Recovery first"));
    tear_down(&c);
}

/* An application of the same name in another namespace has a journal of its own. */
static void before_a_recovery_of_another_namespace_is_no_point(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, "{application: shop, mode: rewind, point: 'before:first'}");
    c.other = json_pack("{s:{s:s, s:s}, s:{s:s, s:i, s:[{s:s, s:i}]}}", "spec", "application", "shop", "sourceNamespace", "m", "status",
                        "phase", "Completed", "beforeLsn", 40, "streams", "stream", "s1", "beforeLsn", 33);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "about another application: m/shop"));
    assert_string_equal(c.objects_point, "");
    tear_down(&c);
    /* That says the same of its own. */
    set_up(&c, NOW, "{application: shop, mode: rewind, point: 'before:first', sourceNamespace: n}");
    c.other = json_pack("{s:{s:s}, s:{s:s, s:i}}", "spec", "application", "shop", "status", "phase", "Completed", "beforeLsn", 40);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    tear_down(&c);
}

/* Whoever rules over a namespace alone may look at no class of the cluster. */
static void what_whoever_asked_may_not_look_at_ends_it_or_does_not_matter(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    c.unseen = "storage.k8s.io/v1/StorageClass/_/fast";
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    tear_down(&c);
    set_up(&c, NOW, REWIND);
    c.unseen = "core/v1/Namespace/_/n";
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    const json_t *condition = json_array_get(json_object_get(status_of(&c), "conditions"), 0);
    assert_string_equal(json_string_value(json_object_get(condition, "reason")), "Forbidden");
    assert_non_null(strstr(json_string_value(json_object_get(condition, "message")), "cannot get it"));
    assert_int_equal(json_array_size(c.data), 0);
    tear_down(&c);
    /* The server is ill: it is told what is waited for. */
    set_up(&c, NOW, REWIND);
    c.unseen = "core/v1/Namespace/_/n";
    c.unseen_code = -EIO;
    assert_int_equal(run(&c, true, &err), -EIO);
    assert_phase(&c, "Running");
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "Namespace/_/n"));
    c.unseen = NULL;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    tear_down(&c);
}

/* An object that has grown beyond what can be compared fails, and keeps no other from being put back. */
static void an_object_that_is_nested_too_deeply_now_fails_alone(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    json_t *deep = json_object();
    for (unsigned i = 0; i < OBJECT_DEPTH_MAX + 5; i++)
        deep = json_pack("{s:o}", "a", deep);
    json_object_set_new(json_object_get(c.objects, "core/v1/ConfigMap/n/settings"), "more", deep);
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_int_equal(verdicts(&c, "failed"), 1);
    assert_int_equal(verdicts(&c, "created"), 2);
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "nested deeper"));
    tear_down(&c);
}

/* Addresses of pods that are gone are not put into what the control plane makes from a Service that selects. */
static void endpoints_come_back_where_a_person_wrote_them_alone(void **unused)
{
    (void)unused;
    for (int selects = 0; selects < 2; selects++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c, NOW, REWIND);
        if (selects)
            json_object_set_new(json_object_get(json_object_get(c.point, "core/v1/Service/n/web"), "spec"), "selector",
                                json_pack("{s:s}", "app", "web"));
        json_object_set_new(c.point, "core/v1/Endpoints/n/web",
                            json_pack("{s:s, s:s, s:{s:s, s:s}, s:[{s:[{s:s}]}]}", "apiVersion", "v1", "kind", "Endpoints", "metadata", "name",
                                      "web", "namespace", "n", "subsets", "addresses", "ip", "192.0.2.7"));
        check_ok(run(&c, true, &err));
        assert_phase(&c, "Completed");
        assert_int_equal(json_object_get(c.objects, "core/v1/Endpoints/n/web") == NULL, selects);
        tear_down(&c);
    }
}

static void a_claim_that_is_gone_gets_its_volume_back(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    json_object_set_new(c.unknown, "gone", json_true());
    json_object_set_new(
        json_object_get(json_object_get(c.point, "core/v1/PersistentVolumeClaim/n/data-db-0"), "spec"),
        "volumeName", json_string("pv-1"));
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    _cleanup_free_ char *data = json_to_text(c.data);
    assert_string_equal(data, "[\"close\",\"rewind\",\"bind\",\"open\"]");
    tear_down(&c);
}

/* Volumes that another class carries, and that no pod uses: they come to a node for the recovery, and the pods get them afterwards. */
static void a_stream_that_is_nowhere_is_held_until_its_gate_is_open(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    json_object_set_new(c.unknown, "nowhere", json_true());
    for (int i = 0; i < 2; i++) {
        assert_int_equal(run(&c, true, &err), -EAGAIN);
        assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "attached nowhere"));
        assert_int_equal(json_array_size(c.data), 0);
        err = (struct error)ERROR_INIT;
    }
    for (int i = 0; i < 2; i++) { /* no pod is there before it is let go of */
        assert_int_equal(run(&c, true, &err), -EAGAIN);
        assert_phase(&c, "Running");
        err = (struct error)ERROR_INIT;
    }
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    _cleanup_free_ char *data = json_to_text(c.data);
    assert_string_equal(data, "[\"close\",\"rewind\",\"open\",\"open\",\"open\",\"let go\"]");
    tear_down(&c);
}

/* What is in the way of the workloads is told while it is waited for. */
static void await_workloads(struct cluster *c, bool *in_the_way)
{
    struct error err = ERROR_INIT;
    set_up(c, NOW, REWIND);
    *in_the_way = true;
    assert_int_equal(run(c, true, &err), -EAGAIN);
    assert_phase(c, "Running");
    assert_non_null(
        strstr(json_string_value(json_object_get(status_of(c), "message")), "Deployment web is not ready"));
    *in_the_way = false;
    err = ERROR_INIT;
    check_ok(run(c, true, &err));
    assert_phase(c, "Completed");
    tear_down(c);
}

static void workloads_are_awaited(void **unused)
{
    (void)unused;
    struct cluster c;
    await_workloads(&c, &c.never_ready);
}

/* A pod that is ready may be one of the bad release, which goes when the new one is ready. */
static void pods_of_an_earlier_form_make_nothing_ready(void **unused)
{
    (void)unused;
    struct cluster c;
    await_workloads(&c, &c.rolling);
}

#define SET(image)                                                                                           \
    "---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db, namespace: n}\nspec: {replicas: 1, serviceName: db, selector: " \
    "{matchLabels: {a: db}}, template: {spec: {containers: [{name: w, image: '" image "'}]}}}\n"

/* Has come as far as RenewPods, with a pod of the bad release that is stuck. */
static void come_to_renew_pods(struct cluster *c)
{
    struct error err = ERROR_INIT;
    set_up(c, NOW SET("db:2"), REWIND);
    json_decref(c->point);
    c->point = manifests_set_text(POINT SET("db:1"));
    c->unobserved = true;
    assert_int_equal(run(c, true, &err), -EAGAIN);
    assert_string_equal(json_string_value(json_object_get(status_of(c), "message")),
                        "waiting until kube-controller-manager has seen what StatefulSet db was put back to");
    _cleanup_json_ json_t *pod = manifests_one("{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: n, labels: {controller-revision-hash: bad}}}");
    json_object_set_new(json_object_get(pod, "metadata"), "ownerReferences",
                        json_pack("[{s:s, s:s, s:s, s:s}]", "apiVersion", "apps/v1", "kind", "StatefulSet", "name", "db", "uid",
                                  object_uid(json_object_get(c->objects, "apps/v1/StatefulSet/n/db"))));
    store(c, "core/v1/Pod/n/db-0", pod, "uid-pod");
}

static void pods_are_renewed_once_their_set_is_seen(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    come_to_renew_pods(&c);
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    assert_non_null(json_object_get(c.objects, "core/v1/Pod/n/db-0"));
    c.unobserved = false;
    err = ERROR_INIT;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_null(json_object_get(c.objects, "core/v1/Pod/n/db-0"));
    tear_down(&c);
}

/* Of three pods: those that the partition keeps may be of an earlier form, and no other one. */
static void a_set_is_ready_when_kubectl_rollout_status_says_so(void **unused)
{
    static const struct {
        const char *strategy, *status;
        bool ready;
    } cases[] = {
        {"{type: RollingUpdate, rollingUpdate: {partition: 2}}", "readyReplicas: 3, updatedReplicas: 0, currentRevision: a, updateRevision: b", false},
        {"{type: RollingUpdate, rollingUpdate: {partition: 2}}", "readyReplicas: 3, updatedReplicas: 1, currentRevision: a, updateRevision: b", true},
        {"{type: RollingUpdate, rollingUpdate: {partition: 5}}", "readyReplicas: 3, currentRevision: a, updateRevision: b", true},
        {"{type: RollingUpdate, rollingUpdate: {partition: 2}}", "readyReplicas: 2, updatedReplicas: 1, currentRevision: a, updateRevision: b", false},
        {"{type: RollingUpdate, rollingUpdate: {partition: 0}}", "readyReplicas: 3, updatedReplicas: 2, currentRevision: b, updateRevision: b", false},
        {"{type: RollingUpdate, rollingUpdate: {partition: 0}}", "readyReplicas: 3, updatedReplicas: 3, currentRevision: a, updateRevision: b", true},
        {"{type: RollingUpdate}", "readyReplicas: 3, updatedReplicas: 3, currentRevision: a, updateRevision: b", false},
        {"{type: RollingUpdate}", "readyReplicas: 3, currentRevision: b, updateRevision: b", true},
        {"{type: OnDelete}", "readyReplicas: 3, currentRevision: a, updateRevision: b", true},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        char set[512], status[512], point[4096];
        snprintf(set, sizeof set, "---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db, namespace: n}\nspec: {replicas: 3, updateStrategy: %s}\n",
                 cases[i].strategy);
        snprintf(point, sizeof point, "%s%s", POINT, set);
        snprintf(status, sizeof status, "{observedGeneration: 99, %s}", cases[i].status);
        set_up(&c, NOW, REWIND);
        json_decref(c.point);
        c.point = manifests_set_text(point);
        c.set_status = status;
        int r = run(&c, false, &err);
        if (r != (cases[i].ready ? 0 : -EAGAIN))
            fail_msg("%s %s: %d, %s", cases[i].strategy, cases[i].status, r, err.message);
        assert_phase(&c, cases[i].ready ? "Completed" : "Running");
        tear_down(&c);
    }
}

/* No controller manager runs: the volumes can be used all the same, and which pods are wrong nobody knows. */
static void pods_of_a_set_that_nobody_sees_are_left_alone(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    come_to_renew_pods(&c);
    json_object_set_new(json_object_get(json_object_get(c.recovery, "status"), "step"), "time", json_string("2026-01-01T00:00:00Z"));
    json_object_set_new(json_object_get(json_object_get(c.objects, "core/v1/Pod/n/db-0"), "metadata"), "labels",
                        json_pack("{s:s}", "controller-revision-hash", "good"));
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    assert_string_equal(json_string_value(json_object_get(json_object_get(status_of(&c), "step"), "name")), "Await");
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "StatefulSet db (not seen by kube-controller-manager yet) is not ready"));
    assert_non_null(json_object_get(c.objects, "core/v1/Pod/n/db-0"));
    _cleanup_free_ char *data = json_to_text(c.data);
    assert_string_equal(data, "[\"close\",\"rewind\",\"open\"]");
    tear_down(&c);
}

/* `count` more objects at the point: one wave. */
static void add_to_point(struct cluster *c, const char *api, const char *prefix, const char *kind,
                         unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char name[64], journal_name[OBJECT_NAME_BYTES];
        snprintf(name, sizeof name, "many%u", i);
        snprintf(journal_name, sizeof journal_name, "%s/%s/n/%s", prefix, kind, name);
        json_object_set_new(c->point, journal_name,
                            json_pack("{s:s, s:s, s:{s:s, s:s}}", "apiVersion", api, "kind", kind, "metadata",
                                      "name", name, "namespace", "n"));
    }
}

static json_int_t created_of(const struct cluster *c)
{
    return json_integer_value(json_object_get(json_object_get(status_of(c), "verdicts"), "created"));
}

static size_t made_of(const struct cluster *c)
{
    const char *name;
    json_t *object;
    size_t count = 0;
    json_object_foreach(c->objects, name, object) count += strstr(name, "/n/many") != NULL;
    return count;
}

static void a_large_wave_is_cancelled_in_its_middle_and_has_a_verdict_of_what_was_done(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    const size_t before = json_object_size(c.objects);
    add_to_point(&c, "v1", "core/v1", "ConfigMap", 1000);
    c.cancel_at = 150;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Cancelled");
    /* While one looks the others go on: until each of them looks. */
    assert_in_range(c.created, 150, RECOVERY_LOOK_OBJECTS * (RECOVERY_WORKERS + 1));
    assert_true(made_of(&c) > 0 && json_object_size(c.objects) > before);
    assert_true(created_of(&c) >= (json_int_t)made_of(&c));
    assert_string_equal(json_string_value(json_array_get(c.data, json_array_size(c.data) - 1)),
                        "open"); /* R5 */
    tear_down(&c);
}

static void what_was_done_of_a_wave_is_not_done_again_when_the_server_takes_no_more(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    add_to_point(&c, "v1", "core/v1", "ConfigMap", 1000);
    c.busy_at = 500;
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    const size_t done = made_of(&c), tried = c.created;
    assert_in_range(tried, 500, 500 + RECOVERY_WORKERS);
    assert_true(done > 400);
    c.busy_at = 0;
    err = ERROR_INIT;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_int_equal(made_of(&c), 1000);
    assert_in_range(c.created - tried, 1000 - done, 1000 - done + 10); /* and what is no ConfigMap */
    assert_true(created_of(&c) >= 1000);
    tear_down(&c);
}

static size_t wave_of(const char *name)
{
    static const char *const waves[] = {"/Namespace/", "/ServiceAccount/", "/ConfigMap/", "/Service/", "/Deployment/"};
    size_t i = 0;
    while (i < sizeof waves / sizeof *waves && !strstr(name, waves[i]))
        i++;
    return i;
}

#define RESTORE "{application: shop, mode: restore, point: '-90s', targetNamespace: n}"

/* A namespace that is gone, each wave several times as large as there are workers; each config map belongs to an account. */
static void set_up_large(struct cluster *c)
{
    set_up(c, "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: fast}\n", RESTORE);
    json_object_clear(c->point);
    add_to_point(c, "v1", "core/v1", "ServiceAccount", 60);
    add_to_point(c, "v1", "core/v1", "ConfigMap", 600);
    add_to_point(c, "v1", "core/v1", "Service", 60);
    add_to_point(c, "apps/v1", "apps/v1", "Deployment", 60);
    for (unsigned i = 0; i < 600; i++) {
        char name[64], owner[32];
        snprintf(name, sizeof name, "core/v1/ConfigMap/n/many%u", i);
        snprintf(owner, sizeof owner, "many%u", i % 60);
        json_object_set_new(json_object_get(json_object_get(c->point, name), "metadata"), "ownerReferences",
                            json_pack("[{s:s, s:s, s:s}]", "apiVersion", "v1", "kind", "ServiceAccount", "name", owner));
    }
}

static void assert_in_order(const struct cluster *c)
{
    size_t i, last = 0;
    json_t *name;
    json_array_foreach(c->sequence, i, name)
    {
        size_t wave = wave_of(json_string_value(name));
        if (wave < last)
            fail_msg("%s was made after a later wave had begun", json_string_value(name));
        last = wave;
    }
}

static void assert_owned(const struct cluster *c)
{
    for (unsigned i = 0; i < 600; i++) {
        char name[64], owner[64];
        snprintf(name, sizeof name, "core/v1/ConfigMap/n/many%u", i);
        snprintf(owner, sizeof owner, "core/v1/ServiceAccount/n/many%u", i % 60);
        const json_t *metadata = json_object_get(json_object_get(c->objects, name), "metadata");
        const json_t *reference = json_array_get(json_object_get(metadata, "ownerReferences"), 0);
        const char *uid = json_string_value(json_object_get(reference, "uid"));
        assert_non_null(uid);
        assert_string_equal(uid, object_uid(json_object_get(c->objects, owner)));
    }
}

static void waves_follow_each_other_whatever_is_made_at_once(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up_large(&c);
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Completed");
    assert_int_equal(c.created, 781); /* one request each, and the namespace */
    assert_int_equal(json_array_size(c.sequence), 781);
    assert_in_order(&c);
    assert_owned(&c);
    tear_down(&c);
}

/* R1: in the middle of a wave several requests are under way, whose verdicts nobody has written down. */
static void r1_a_controller_killed_in_the_middle_of_a_large_wave_is_taken_over(void **unused)
{
    (void)unused;
    struct cluster whole;
    struct error err = ERROR_INIT;
    set_up_large(&whole);
    check_ok(run(&whole, false, &err));
    for (long at = 40; at < whole.calls; at += whole.calls / 23) {
        struct cluster c;
        set_up_large(&c);
        c.kill_at = at;
        c.lose_answer = at % 2;
        err = (struct error)ERROR_INIT;
        assert_true(run(&c, false, &err) < 0);
        c.kill_at = 0;
        err = (struct error)ERROR_INIT;
        check_ok(run(&c, false, &err));
        assert_phase(&c, "Completed");
        assert_int_equal(verdicts(&c, "created"), 781);
        assert_int_equal(json_array_size(c.sequence), 781); /* nothing twice */
        assert_in_order(&c);
        assert_owned(&c);
        tear_down(&c);
    }
    tear_down(&whole);
}

/* An owner that nobody answers for is not one that is gone: the object would be made without it. */
static void an_owner_that_is_not_told_of_is_asked_for_again(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up_large(&c);
    c.unanswered = "core/v1/ServiceAccount/n/many7";
    assert_int_equal(run(&c, false, &err), -EAGAIN);
    assert_null(json_object_get(c.objects, "core/v1/ConfigMap/n/many7"));
    c.unanswered = NULL;
    err = (struct error)ERROR_INIT;
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Completed");
    assert_owned(&c);
    tear_down(&c);
}

/* Others make objects of the same names meanwhile: what is there is put back, too. */
static void what_is_there_already_when_it_is_made_is_put_back(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: fast}\n---\n"
               "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: n}\ndata: {release: bad, more: x}\n---\n"
               "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: same, namespace: n}\ndata: {a: b}\n",
           RESTORE);
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Completed");
    assert_int_equal(verdicts(&c, "created"), 7); /* as planned: the namespace was not there */
    const json_t *data = json_object_get(json_object_get(c.objects, "core/v1/ConfigMap/n/settings"), "data");
    assert_string_equal(json_string_value(json_object_get(data, "release")), "good");
    assert_null(json_object_get(data, "more"));
    tear_down(&c);
}

static void workloads_that_wait_are_not_asked_for_all_the_time(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    add_to_point(&c, "apps/v1", "apps/v1", "Deployment", 100);
    c.never_ready = true;
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    assert_non_null(
        strstr(json_string_value(json_object_get(status_of(&c), "message")), "and more are not ready"));
    assert_true(c.asked < 100);
    c.never_ready = false;
    err = ERROR_INIT;
    c.asked = 0;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_in_range(c.asked, 100, 120);
    tear_down(&c);
}

/* Puts the recovery where a run has come to step `name`, which is then to be done. */
static void come_to(struct cluster *c, const char *name)
{
    struct error err = ERROR_INIT;
    c->never_ready = true;
    assert_int_equal(run(c, true, &err), -EAGAIN);
    json_object_set_new(json_object_get(json_object_get(c->recovery, "status"), "step"), "name", json_string(name));
    c->never_ready = false;
    json_array_clear(c->data);
}

static void forget_rewind(json_t *stream)
{
    json_object_del(stream, "beforeLsn");
    json_object_del(stream, "rewoundMs");
}

/* R5: what its end waits for is told, too. */
static void an_end_says_what_it_waits_for(void **unused)
{
    (void)unused;
    static const char *const messages[] = {"stream s1: the journal is damaged; before it ends: stream s1: it opens when a rewind has ended",
                                           "it is cancelled; before it ends: stream s1: it opens when a rewind has ended"};
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c, NOW, REWIND);
        come_to(&c, "RewindData");
        json_object_set_new(c.unknown, "gate-stuck", json_true());
        json_object_set_new(c.unknown, "rewind-fails", json_true());
        json_object_set_new(c.unknown, "rewound-unseen", json_true());
        for (size_t i = 0; i < json_array_size(json_object_get(status_of(&c), "streams")); i++)
            forget_rewind(json_array_get(json_object_get(status_of(&c), "streams"), i));
        if (cancelled)
            json_object_set_new(json_object_get(c.recovery, "metadata"), "annotations", json_pack("{s:s}", RECOVERY_CANCEL_ANNOTATION, "true"));
        assert_int_equal(run(&c, true, &err), -EBUSY);
        assert_phase(&c, "Running");
        assert_string_equal(json_string_value(json_object_get(status_of(&c), "message")), messages[cancelled]);
        json_object_del(c.unknown, "gate-stuck");
        err = ERROR_INIT;
        check_ok(run(&c, true, &err));
        assert_phase(&c, cancelled ? "Cancelled" : "Failed");
        const json_t *stream = json_array_get(json_object_get(status_of(&c), "streams"), 0); /* what the node did meanwhile can be undone */
        assert_int_equal(json_integer_value(json_object_get(stream, "beforeLsn")), 41);
        tear_down(&c);
    }
}

static void r5_to_delete_it_is_to_cancel_it(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    come_to(&c, "Delete");
    json_object_set_new(json_object_get(c.recovery, "metadata"), "deletionTimestamp", json_string("2026-11-21T02:04:46Z"));
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Cancelled");
    _cleanup_free_ char *data = json_to_text(c.data);
    assert_string_equal(data, "[\"open\"]");
    tear_down(&c);
}

static void r5_a_gate_that_cannot_be_opened_keeps_no_other_closed(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    come_to(&c, "OpenGate");
    json_t *streams = json_object_get(json_object_get(c.recovery, "status"), "streams"),
           *away = json_deep_copy(json_array_get(streams, 0));
    json_object_set_new(away, "stream", json_string("s0"));
    json_array_insert_new(streams, 0, away);
    check_error(run(&c, true, &err), -EAGAIN, "node0 has no running node agent");
    assert_int_equal(json_array_size(c.data), 1);
    assert_string_equal(json_string_value(json_array_get(c.data, 0)), "open");
    tear_down(&c);
}

/* The plan lies in the application's namespace: whoever may write there must not have done by the recovery what she may not. */
static void a_plan_that_somebody_changed_is_not_carried_out(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW, REWIND);
    come_to(&c, "Delete");
    char text[8192];
    snprintf(text, sizeof text, "%s{\"w\":0,\"a\":\"delete\",\"o\":\"core/v1/Namespace/_/n\"}\n",
             json_string_value(json_object_get(c.plans, "0")));
    json_object_set_new(c.plans, "0", json_string(text));
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "was changed by somebody"));
    assert_non_null(json_object_get(c.objects, "core/v1/Namespace/_/n"));
    assert_string_equal(json_string_value(json_array_get(c.data, 0)), "open");
    tear_down(&c);
}

/* A reason that is cut in the middle of a character is no reason to go on for ever. */
static void what_is_refused_in_any_language_is_told(void **unused)
{
    (void)unused;
    for (size_t shift = 0; shift < 3; shift++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c,
               NOW
               "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\ndata: {a: new}\n",
               REWIND);
        _cleanup_json_ json_t *refused = manifests_one(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\ndata: {a: old}\n");
        check_ok(objects_add(c.point, refused, NULL, &err));
        c.refuse_kind = true;
        for (size_t i = 0; i < shift; i++)
            c.refusal[i] = 'x';
        for (size_t i = shift; i + 3 < sizeof c.refusal; i += 3)
            memcpy(c.refusal + i, "\xe4\xbd\xa0", 3);
        check_ok(run(&c, true, &err));
        assert_phase(&c, "Failed");
        const json_t *failure = json_array_get(json_object_get(status_of(&c), "failures"), 0);
        assert_non_null(strstr(json_string_value(json_object_get(failure, "reason")), "\xe4\xbd\xa0"));
        tear_down(&c);
    }
}

/* R6: not by what hangs on something else, either. */
static void r6_claims_and_snapshots_do_not_go_with_what_came_later(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c,
           NOW "---\napiVersion: example.com/v1\nkind: Database\nmetadata: {name: db, namespace: n}\n---\n"
               "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db2, namespace: n, ownerReferences: [{apiVersion: "
               "example.com/v1, kind: Database, name: db, uid: uid-11}]}\n---\n"
               "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data-db2-0, namespace: n, ownerReferences: "
               "[{apiVersion: apps/v1, kind: StatefulSet, name: db2, uid: uid-12}]}\n---\n"
               "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: before, namespace: n}\n",
           REWIND);
    assert_string_equal(object_uid(json_object_get(c.objects, "example.com/v1/Database/n/db")), "uid-11");
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_non_null(json_object_get(c.objects, "example.com/v1/Database/n/db"));
    assert_non_null(json_object_get(c.objects, "apps/v1/StatefulSet/n/db2"));
    assert_non_null(json_object_get(c.objects, "snapshot.storage.k8s.io/v1/VolumeSnapshot/n/before"));
    assert_null(json_object_get(c.objects, "core/v1/ConfigMap/n/later"));
    assert_non_null(strstr(json_string_value(json_object_get(c.plans, "0")), "the claim data-db2-0 would go with it"));
    tear_down(&c);
}

/* An object that was there long before the point did not come after it, whatever the journal lacks. */
static void what_was_there_before_the_point_stays(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c,
           NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: older, namespace: n, creationTimestamp: '2026-11-21T10:18:00Z'}\n---\n"
               "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: newer, namespace: n, creationTimestamp: '2026-11-21T11:21:00Z'}\n",
           "{application: shop, mode: rewind, point: '2026-11-21T11:20:45Z'}");
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_non_null(json_object_get(c.objects, "core/v1/ConfigMap/n/older"));
    assert_null(json_object_get(c.objects, "core/v1/ConfigMap/n/newer"));
    tear_down(&c);
}

/* What goes with an object of somebody else's kind nobody knows. */
static void a_custom_object_that_cannot_be_changed_is_not_made_again(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW "---\napiVersion: example.com/v1\nkind: Database\nmetadata: {name: refused, namespace: n}\nspec: {size: 2}\n", REWIND);
    _cleanup_json_ json_t *database = manifests_one(
        "apiVersion: example.com/v1\nkind: Database\nmetadata: {name: refused, namespace: n}\nspec: {size: 1}\n");
    check_ok(objects_add(c.point, database, NULL, &err));
    c.refuse_kind = c.immutable = true;
    _cleanup_free_ char *before = strdup(object_uid(json_object_get(c.objects, "example.com/v1/Database/n/refused")));
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_string_equal(object_uid(json_object_get(c.objects, "example.com/v1/Database/n/refused")), before);
    tear_down(&c);
}

static void point_has(struct cluster *c, const char *text)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *object = manifests_one(text);
    check_ok(objects_add(c->point, object, NULL, &err));
}
static const char *uid_now(const struct cluster *c, const char *name)
{
    return object_uid(json_object_get(c->objects, name));
}

/* The Deployment is made again for its selector; what belongs to it, does not go with it, and belongs to the new one. */
static void what_belongs_to_what_is_made_again_stays(void **unused)
{
    (void)unused;
    static const char *const names[] = {"core/v1/ConfigMap/n/owned", "core/v1/PersistentVolumeClaim/n/cache", "core/v1/PersistentVolumeClaim/n/younger"};
    struct error err = ERROR_INIT;
    for (long at = 0, calls = 1; at <= calls; at++) {
        struct cluster c;
        set_up(&c,
               NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: n, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, "
                   "name: web, uid: uid-8}]}\n---\n"
                   "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: cache, namespace: n, ownerReferences: [{apiVersion: apps/v1, kind: "
                   "Deployment, name: web, uid: uid-8}]}\n---\n"
                   "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: younger, namespace: n, ownerReferences: [{apiVersion: apps/v1, kind: "
                   "Deployment, name: web, uid: uid-8}]}\n",
               REWIND);
        assert_string_equal(uid_now(&c, "apps/v1/Deployment/n/web"), "uid-8");
        point_has(&c, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: n, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, "
                         "name: web}]}\n");
        point_has(&c, "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: cache, namespace: n, ownerReferences: [{apiVersion: apps/v1, kind: "
                         "Deployment, name: web}]}\n");
        c.collects = true;
        char before[3][32];
        for (size_t i = 0; i < 3; i++)
            snprintf(before[i], sizeof before[i], "%s", uid_now(&c, names[i]));
        c.kill_at = at;
        c.lose_answer = at % 2;
        (void)run(&c, false, &err);
        c.kill_at = 0;
        check_ok(run(&c, false, &err));
        assert_phase(&c, "Completed");
        assert_string_not_equal(uid_now(&c, "apps/v1/Deployment/n/web"), "uid-8");
        for (size_t i = 0; i < 3; i++) {
            const json_t *object = json_object_get(c.objects, names[i]);
            if (!object)
                fail_msg("%s has gone with its owner (call %ld)", names[i], at);
            assert_string_equal(object_uid(object), before[i]);
            const json_t *owner = json_array_get(json_object_get(json_object_get(object, "metadata"), "ownerReferences"), 0);
            if (i < 2)
                assert_string_equal(json_text(owner, "uid"), uid_now(&c, "apps/v1/Deployment/n/web"));
        }
        calls = at ? calls : c.calls;
        tear_down(&c);
    }
}

/* The garbage collector has not seen yet that the owner is another one: what belongs to it gets it in time. */
static void what_belongs_to_what_was_made_again_is_given_to_it(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c,
           NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: n, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: same, uid: "
               "uid-former}]}\n",
           REWIND);
    point_has(&c, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: n, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: same}]}\n");
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Completed");
    const json_t *owners = json_object_get(json_object_get(json_object_get(c.objects, "core/v1/ConfigMap/n/owned"), "metadata"), "ownerReferences");
    assert_string_equal(json_text(json_array_get(owners, 0), "uid"), uid_now(&c, "core/v1/ConfigMap/n/same"));
    tear_down(&c);
}

/* Its words are its own: nothing is deleted for them. */
static void what_a_policy_refuses_is_left_as_it_was(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\ndata: {a: new}\n", REWIND);
    point_has(&c, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\ndata: {a: old}\n");
    _cleanup_free_ char *before = strdup(uid_now(&c, "core/v1/ConfigMap/n/refused"));
    c.refuse_kind = c.policy = true;
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Failed");
    assert_string_equal(uid_now(&c, "core/v1/ConfigMap/n/refused"), before);
    tear_down(&c);
    /* One that has to be made again, and may not: what was there is there again. */
    set_up(&c, NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n, labels: {x: y}}\nimmutable: true\ndata: {a: new}\n", REWIND);
    point_has(&c, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\nimmutable: true\ndata: {a: old}\n");
    c.refuse_old = true;
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Failed");
    const json_t *now = json_object_get(c.objects, "core/v1/ConfigMap/n/refused");
    assert_string_equal(json_text(json_object_get(now, "data"), "a"), "new");
    const char *reason = json_text(json_array_get(json_object_get(status_of(&c), "failures"), 0), "reason");
    assert_non_null(strstr(reason, "it is old"));
    assert_non_null(strstr(reason, "made again as it was"));
    tear_down(&c);
    /* And when that is told beforehand, as it mostly is, nothing is deleted. */
    set_up(&c, NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n, labels: {x: y}}\nimmutable: true\ndata: {a: new}\n", REWIND);
    point_has(&c, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\nimmutable: true\ndata: {a: old}\n");
    _cleanup_free_ char *kept = strdup(uid_now(&c, "core/v1/ConfigMap/n/refused"));
    c.refuse_tried = true;
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Failed");
    assert_string_equal(uid_now(&c, "core/v1/ConfigMap/n/refused"), kept);
    assert_non_null(strstr(json_text(json_array_get(json_object_get(status_of(&c), "failures"), 0), "reason"), "it is left as it is"));
    tear_down(&c);
}

/* It was deleted for its volumes' sake, and no controller makes another: the one who asked has to know which, why, and what to do. */
static void a_pod_that_was_stopped_and_is_refused_is_told(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    static const char pod[] = "apiVersion: v1\nkind: Pod\nmetadata: {name: shell, namespace: n}\ndata: {a: old}\nspec: {volumes: [{name: d, persistentVolumeClaim: {claimName: data-db-0}}]}\n";
    char now[4096];
    snprintf(now, sizeof now, "%s---\n%s", NOW, pod);
    set_up(&c, now, REWIND);
    point_has(&c, pod);
    c.refuse_old = true;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_null(json_object_get(c.objects, "core/v1/Pod/n/shell"));
    const json_t *failure = json_array_get(json_object_get(status_of(&c), "failures"), 0);
    assert_string_equal(json_text(failure, "object"), "core/v1/Pod/n/shell");
    assert_non_null(strstr(json_text(failure, "reason"), "it was stopped so that its volumes could be put back"));
    assert_non_null(strstr(json_text(failure, "reason"), "make the recovery to this point again"));
    assert_non_null(strstr(json_text(failure, "reason"), "it is old"));
    /* As it says. */
    c.refuse_old = false;
    json_object_del(c.recovery, "status");
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Completed");
    assert_non_null(json_object_get(c.objects, "core/v1/Pod/n/shell"));
    tear_down(&c);
}

/* A controller that dies while one is made again, which is refused once it is taken over: whatever was done by then, and lost of it, one of
 * the two is there, and what became of it is told. */
static void r7_what_is_made_again_is_never_lost(void **unused)
{
    static const char refused[] = "core/v1/ConfigMap/n/refused";
    static const char *const now = NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n, finalizers: [a/b]}\nimmutable: true\n"
                                       "data: {a: new, secret: hush}\n";
    static const char then[] = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: refused, namespace: n}\nimmutable: true\ndata: {a: old}\n";
    (void)unused;
    struct cluster whole;
    struct error err = ERROR_INIT;
    unsigned put_back = 0, noted = 0, cancelled = 0;
    set_up(&whole, now, REWIND);
    point_has(&whole, then);
    check_ok(run(&whole, false, &err));
    assert_phase(&whole, "Completed");
    assert_null(json_object_get(status_of(&whole), "replacing"));
    for (long at = 1; at <= whole.calls; at++) {
        for (int how = 0; how < 4; how++) { /* its last call is carried out; it is cancelled meanwhile */
            struct cluster c;
            set_up(&c, now, REWIND);
            point_has(&c, then);
            c.kill_at = at;
            c.lose_answer = how & 1;
            (void)run(&c, false, &err);
            err = (struct error)ERROR_INIT;
            const bool gone = !json_object_get(c.objects, refused), was_new = !gone && !strcmp(json_text(json_object_get(json_object_get(c.objects, refused), "data"), "a"), "new");
            _cleanup_free_ char *text = json_to_text(c.recovery);
            assert_null(strstr(text, "hush"));
            noted += json_object_get(status_of(&c), "replacing") != NULL;
            c.kill_at = 0;
            c.refuse_old = true;
            if (how & 2)
                json_object_set_new(json_object_get(c.recovery, "metadata"), "annotations", json_pack("{s:s}", RECOVERY_CANCEL_ANNOTATION, "true"));
            check_ok(run(&c, false, &err));
            const json_t *is = json_object_get(c.objects, refused);
            if (!is)
                fail_msg("killed at call %ld (%d): it is lost: %s", at, how, text);
            if (gone || was_new) {
                assert_string_equal(json_text(json_object_get(is, "data"), "a"), "new");
                assert_int_equal(json_array_size(json_object_get(json_object_get(is, "metadata"), "finalizers")), 1);
            }
            if (gone && !(how & 2)) {
                const char *reason = json_text(json_array_get(json_object_get(status_of(&c), "failures"), 0), "reason");
                assert_phase(&c, "Failed");
                assert_non_null(strstr(reason, "it is old"));
                assert_non_null(strstr(reason, "made again as it was"));
                put_back++;
            }
            cancelled += gone && (how & 2);
            assert_null(json_object_get(status_of(&c), "replacing"));
            tear_down(&c);
        }
    }
    assert_true(put_back > 0 && noted > 0 && cancelled > 0);
    tear_down(&whole);
}

#define SHELL                                                                                                                                      \
    "---\napiVersion: v1\nkind: Pod\nmetadata: {name: shell, namespace: n, labels: {a: b}}\ndata: {a: old}\nspec: {nodeName: node1, volumes: [{name: d, " \
    "persistentVolumeClaim: {claimName: data-db-0}}], ephemeralContainers: [{name: debug}]}\nstatus: {phase: Running}\n"
#define SHELL_POD "core/v1/Pod/n/shell"

static const char *message_of(const struct cluster *c)
{
    return json_text(status_of(c), "message");
}

static void ask_to_cancel(struct cluster *c)
{
    json_object_set_new(json_object_get(c->recovery, "metadata"), "annotations", json_pack("{s:s}", RECOVERY_CANCEL_ANNOTATION, "true"));
}

/* R7: nobody makes a pod again that has no controller. Wherever a controller dies, and whether the rewind fails or is cancelled then. */
static void r7_a_pod_without_a_controller_is_there_again_when_it_ends_before_apply(void **unused)
{
    (void)unused;
    struct cluster whole;
    struct error err = ERROR_INIT;
    unsigned stopped = 0;
    set_up(&whole, NOW SHELL, REWIND);
    json_object_set_new(whole.unknown, "rewind-fails", json_true());
    check_ok(run(&whole, true, &err));
    assert_phase(&whole, "Failed");
    for (long at = 1; at <= whole.calls; at++) {
        for (int how = 0; how < 4; how++) { /* its last call is carried out; it is cancelled */
            struct cluster c;
            set_up(&c, NOW SHELL, REWIND);
            char before[32];
            snprintf(before, sizeof before, "%s", object_uid(json_object_get(c.objects, SHELL_POD)));
            json_object_set_new(c.unknown, how & 2 ? "rewind-waits" : "rewind-fails", json_true());
            c.kill_at = at;
            c.lose_answer = how & 1;
            (void)run(&c, true, &err);
            stopped += !json_object_get(c.objects, SHELL_POD);
            c.kill_at = 0;
            err = (struct error)ERROR_INIT;
            if (how & 2)
                ask_to_cancel(&c);
            if (!recovery_has_ended(c.recovery))
                check_ok(run(&c, true, &err));
            assert_phase(&c, how & 2 ? "Cancelled" : "Failed");
            const json_t *is = json_object_get(c.objects, SHELL_POD), *spec = json_object_get(is, "spec");
            if (!is)
                fail_msg("killed at call %ld (%d): the pod is lost", at, how);
            assert_string_equal(json_text(json_object_get(json_object_get(is, "metadata"), "labels"), "a"), "b");
            assert_int_equal(json_array_size(json_object_get(spec, "volumes")), 1);
            if (strcmp(object_uid(is), before) != 0)
                assert_true(!json_object_get(spec, "nodeName") && !json_object_get(is, "status") && !json_object_get(spec, "ephemeralContainers"));
            assert_null(json_object_get(status_of(&c), "replacing"));
            assert_null(strstr(message_of(&c), "shell"));
            tear_down(&c);
        }
    }
    assert_true(stopped > 0);
    tear_down(&whole);
}

/* One that came after the point is gone after a rewind, and one that had ended is not run twice. */
static void a_pod_that_came_later_or_had_ended_is_not_made_again(void **unused)
{
    static const char ended[] = NOW "---\napiVersion: v1\nkind: Pod\nmetadata: {name: shell, namespace: n}\nspec: {volumes: [{name: d, persistentVolumeClaim: "
                                    "{claimName: data-db-0}}]}\nstatus: {phase: Succeeded}\n";
    (void)unused;
    for (int fails = 0; fails < 2; fails++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c, fails ? ended : NOW SHELL, REWIND);
        if (fails)
            json_object_set_new(c.unknown, "rewind-fails", json_true());
        check_ok(run(&c, true, &err));
        assert_phase(&c, fails ? "Failed" : "Completed");
        assert_null(json_object_get(c.objects, SHELL_POD));
        assert_null(json_object_get(status_of(&c), "replacing"));
        tear_down(&c);
    }
    /* That was so before it was cancelled, too. */
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW SHELL, REWIND);
    c.cancel_at_apply = true;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Cancelled");
    assert_null(json_object_get(c.objects, SHELL_POD));
    tear_down(&c);
}

static void r7_a_pod_that_cannot_be_made_again_is_told(void **unused)
{
    (void)unused;
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c, NOW SHELL, REWIND);
        point_has(&c, SHELL);
        c.refuse_old = true;
        json_object_set_new(c.unknown, cancelled ? "rewind-waits" : "rewind-fails", json_true());
        if (cancelled) {
            assert_int_equal(run(&c, true, &err), -EAGAIN);
            ask_to_cancel(&c);
        }
        err = (struct error)ERROR_INIT;
        check_ok(run(&c, true, &err));
        assert_phase(&c, cancelled ? "Cancelled" : "Failed");
        assert_null(json_object_get(c.objects, SHELL_POD));
        assert_non_null(strstr(message_of(&c), "it deleted what it cannot make again: Pod shell (admission webhook \"policy\" denied the request: it is old)"));
        assert_non_null(strstr(message_of(&c), "make it again from its manifest, or by a Recovery to before:r"));
        assert_string_equal(json_text(json_array_get(json_object_get(status_of(&c), "failures"), 0), "object"), SHELL_POD);
        assert_null(json_object_get(status_of(&c), "replacing"));
        tear_down(&c);
    }
    /* Nor is it forgotten by whoever may do nothing for it. */
    struct cluster c;
    struct error err = ERROR_INIT;
    const struct error why = {.code = -EPERM, .message = "nobody is recorded"};
    set_up(&c, NOW SHELL, REWIND);
    json_object_set_new(c.unknown, "rewind-waits", json_true());
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    const struct recovery_context context = {.store = &store_ops, .store_context = &c, .data = &data_ops, .data_context = &c};
    check_ok(recovery_abandon(&context, "n", "r", "RequesterUnknown", &why, &err));
    assert_non_null(strstr(message_of(&c), "nobody is recorded; what it deleted may not have been made again: Pod shell. See"));
    tear_down(&c);
}

/* R9: it takes its time to go. The volumes can be used meanwhile, and the rewind does not go on, though it could now. */
static void r9_a_pod_that_is_still_ending_is_awaited(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW SHELL, REWIND);
    json_object_set_new(c.unknown, "rewind-fails", json_true());
    c.pods_end = "2190-01-01T00:00:00Z";
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    assert_phase(&c, "Running");
    assert_string_equal(message_of(&c), "stream s1: the journal is damaged; before it ends: waiting until core/v1/Pod/n/shell is gone, to make it again");
    _cleanup_free_ char *data = json_to_text(c.data);
    assert_string_equal(data, "[\"close\",\"rewind\",\"open\"]");
    json_object_del(c.unknown, "rewind-fails");
    err = (struct error)ERROR_INIT;
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    err = (struct error)ERROR_INIT;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_string_equal(message_of(&c), "stream s1: the journal is damaged");
    assert_string_equal(recovery_condition_text(c.recovery, "Ready", "reason"), "StepFailed");
    assert_string_equal(recovery_condition_text(c.recovery, "Ending", "reason"), "");
    assert_null(json_object_get(json_object_get(json_object_get(c.objects, SHELL_POD), "metadata"), "deletionTimestamp"));
    assert_non_null(json_object_get(c.objects, SHELL_POD));
    tear_down(&c);
    /* One that should have gone long ago is not waited for. */
    set_up(&c, NOW SHELL, REWIND);
    json_object_set_new(c.unknown, "rewind-fails", json_true());
    c.pods_end = "2020-01-01T00:00:00Z";
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_non_null(strstr(message_of(&c), "Pod shell (it is being deleted and does not go)"));
    tear_down(&c);
}

/* The definition takes 64 of them. */
static void a_pod_that_there_is_no_room_to_note_is_told_beforehand(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW SHELL, REWIND);
    for (int i = 0; i < 64; i++) {
        char name[64];
        snprintf(name, sizeof name, "shell%d", i);
        _cleanup_json_ json_t *pod = json_deep_copy(json_object_get(c.objects, SHELL_POD));
        json_object_set_new(json_object_get(pod, "metadata"), "name", json_string(name));
        snprintf(name, sizeof name, "core/v1/Pod/n/shell%d", i);
        store(&c, name, pod, name);
    }
    json_object_set_new(c.unknown, "rewind-waits", json_true());
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    assert_int_equal(json_array_size(json_object_get(status_of(&c), "replacing")), 64);
    assert_true(has_note(&c, "there was no room to note what it was"));
    tear_down(&c);
}

static void what_is_being_deleted_is_made_again(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: leaving, namespace: n, deletionTimestamp: x, finalizers: [a/b]}\ndata: {a: b}\n", REWIND);
    point_has(&c, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: leaving, namespace: n, finalizers: [a/b]}\ndata: {a: b}\n");
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Completed");
    const json_t *now = json_object_get(c.objects, "core/v1/ConfigMap/n/leaving");
    assert_non_null(now);
    assert_null(json_object_get(json_object_get(now, "metadata"), "deletionTimestamp"));
    tear_down(&c);
    /* A claim would go with its volume once the pods are stopped. */
    set_up(&c, NOW, REWIND);
    json_object_set_new(json_object_get(json_object_get(c.objects, "core/v1/PersistentVolumeClaim/n/data-db-0"), "metadata"), "deletionTimestamp",
                        json_string("x"));
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_string_equal(json_text(json_array_get(json_object_get(status_of(&c), "conditions"), 0), "reason"), "ClaimTerminating");
    assert_int_equal(json_array_size(c.data), 0);
    tear_down(&c);
}

#define JOB(name, image, status)                                                                                                                     \
    "apiVersion: batch/v1\nkind: Job\nmetadata: {name: " name ", namespace: n}\nspec: {template: {spec: {containers: [{name: c, image: '" image "'}]}}}\n" status
#define COMPLETE "status: {conditions: [{type: Complete, status: 'True'}]}\n"

static void what_had_ended_does_not_run_again_and_what_ran_does(void **unused)
{
    (void)unused;
    for (int only = 0; only < 2; only++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c, NOW "---\n" JOB("later", "m:2", "") "---\n" JOB("same", "m:1", COMPLETE) "---\n" JOB("running", "m:1", COMPLETE),
               only ? "{application: shop, mode: rewind, point: '-90s', objectsOnly: true}" : REWIND);
        point_has(&c, JOB("later", "m:1", COMPLETE));
        point_has(&c, JOB("same", "m:1", COMPLETE));
        point_has(&c, JOB("running", "m:1", ""));
        _cleanup_free_ char *same = strdup(uid_now(&c, "batch/v1/Job/n/same")), *running = strdup(uid_now(&c, "batch/v1/Job/n/running"));
        check_ok(run(&c, false, &err));
        assert_phase(&c, "Completed");
        assert_null(json_object_get(c.objects, "batch/v1/Job/n/later"));
        assert_string_equal(uid_now(&c, "batch/v1/Job/n/same"), same);
        assert_non_null(json_object_get(c.objects, "batch/v1/Job/n/running"));
        assert_int_equal(strcmp(uid_now(&c, "batch/v1/Job/n/running"), running) == 0, only);
        tear_down(&c);
    }
}

/* Whoever asked may not look at the owner, which the object has all the time. */
static void an_owner_that_may_not_be_looked_at_stays(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c,
           NOW "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: n, ownerReferences: [{apiVersion: example.com/v1, kind: Shop, "
               "name: main, uid: uid-shop}]}\ndata: {a: new}\n",
           REWIND);
    point_has(&c, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: n, ownerReferences: [{apiVersion: example.com/v1, kind: Shop, name: "
                     "main}]}\ndata: {a: old}\n");
    c.unseen = "example.com/v1/Shop/n/main";
    check_ok(run(&c, false, &err));
    assert_phase(&c, "Completed");
    const json_t *now = json_object_get(c.objects, "core/v1/ConfigMap/n/owned");
    assert_string_equal(json_text(json_object_get(now, "data"), "a"), "old");
    const json_t *owner = json_array_get(json_object_get(json_object_get(now, "metadata"), "ownerReferences"), 0);
    assert_string_equal(json_text(owner, "uid"), "uid-shop");
    tear_down(&c);
}

/* ---- who would put it back ---- */

#define BY_FLUX(name)                                                                                        \
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " name ", namespace: n, labels: {"                   \
    "kustomize.toolkit.fluxcd.io/name: " name ", kustomize.toolkit.fluxcd.io/namespace: flux}}\ndata: {a: b}\n---\n" \
    "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: " name ", namespace: flux}\nspec: {path: x}\n---\n"

static bool is_suspended(const struct cluster *c, const char *name)
{
    char key[128];
    snprintf(key, sizeof key, "kustomize.toolkit.fluxcd.io/v1/Kustomization/flux/%s", name);
    const json_t *object = json_object_get(c->objects, key);
    assert_non_null(object);
    return json_is_true(json_object_get(json_object_get(object, "spec"), "suspend"));
}

static const char *diverged(const struct cluster *c)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(status_of(c), "conditions"), i, one)
    {
        if (strcmp(json_string_value(json_object_get(one, "type")), "GitDiverged") == 0)
            return json_string_value(json_object_get(one, "status"));
    }
    return "";
}

/* The first is suspended, the second refuses: the first goes on, and nothing is changed. */
static void what_cannot_be_suspended_leaves_everything_as_it_was(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW "---\n" BY_FLUX("first") BY_FLUX("refused"), REWIND);
    c.refuse_kind = true;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_false(is_suspended(&c, "first"));
    assert_string_equal(diverged(&c), "False");
    assert_non_null(json_object_get(c.objects, "core/v1/ConfigMap/n/later"));
    assert_int_equal(json_array_size(c.data), 0);
    tear_down(&c);
}

#define SCALED(name)                                                                                         \
    "---\napiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: " name ", namespace: n}\n"       \
    "spec: {scaleTargetRef: {name: web}, maxReplicaCount: 3}\n"

/* Its volumes were put back and could not be mounted: that is what the next turn ends with, too. */
static void a_rewind_that_failed_has_failed_in_the_next_turn(void **unused)
{
    (void)unused;
    struct cluster c;
    struct error err = ERROR_INIT;
    set_up(&c, NOW SCALED("refused"), REWIND);
    point_has(&c, SCALED("refused"));
    come_to(&c, "RewindData");
    json_object_set_new(c.unknown, "rewind-fails", json_true());
    json_object_set_new(c.unknown, "rewound-unseen", json_true());
    forget_rewind(json_array_get(json_object_get(status_of(&c), "streams"), 0));
    c.unanswered = "keda.sh/v1alpha1/ScaledObject/n/refused";
    assert_int_equal(run(&c, true, &err), -EAGAIN);
    assert_phase(&c, "Running");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(status_of(&c), "streams"), 0), "beforeLsn")), 41);
    c.unanswered = NULL;
    err = ERROR_INIT;
    check_ok(run(&c, true, &err));
    assert_phase(&c, "Failed");
    assert_non_null(strstr(json_string_value(json_object_get(status_of(&c), "message")), "the journal is damaged"));
    tear_down(&c);
}

static bool is_paused(const struct cluster *c, const char *name)
{
    char key[128];
    snprintf(key, sizeof key, "keda.sh/v1alpha1/ScaledObject/n/%s", name);
    const json_t *object = json_object_get(c->objects, key);
    assert_non_null(object);
    return json_object_get(json_object_get(json_object_get(object, "metadata"), "annotations"), "autoscaling.keda.sh/paused");
}

static void r8_what_cannot_be_let_go_of_keeps_no_recovery_from_its_end(void **unused)
{
    (void)unused;
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c, NOW SCALED("refused") SCALED("taken"), REWIND);
        point_has(&c, SCALED("refused"));
        point_has(&c, SCALED("taken"));
        come_to(&c, cancelled ? "Delete" : "Await");
        if (cancelled)
            json_object_set_new(json_object_get(c.recovery, "metadata"), "annotations", json_pack("{s:s}", RECOVERY_CANCEL_ANNOTATION, "true"));
        assert_true(is_paused(&c, "refused") && is_paused(&c, "taken"));
        c.refuse_kind = true;
        snprintf(c.refusal, sizeof c.refusal, "no rights any more");
        check_ok(run(&c, true, &err));
        assert_phase(&c, cancelled ? "Cancelled" : "Failed");
        const char *message = json_string_value(json_object_get(status_of(&c), "message"));
        assert_non_null(strstr(message, "what was held for it stays so: KEDA 'refused' stays suspended: "));
        assert_non_null(strstr(message, "no rights any more"));
        assert_true(is_paused(&c, "refused"));
        assert_false(is_paused(&c, "taken"));
        tear_down(&c);
    }
}

/* Where it has come to when it is to be let go of, by failing, being cancelled, or being done. */
static void come_to_let_go(struct cluster *c, int how)
{
    static const char *const steps[] = {"RewindData", "Delete", "Await"};
    set_up(c, NOW SCALED("refused"), REWIND);
    point_has(c, SCALED("refused"));
    come_to(c, steps[how]);
    if (how == 0) {
        json_object_set_new(c->unknown, "rewind-fails", json_true());
        forget_rewind(json_array_get(json_object_get(status_of(c), "streams"), 0));
    } else if (how == 1) {
        ask_to_cancel(c);
    }
    c->refuse_kind = true;
    c->refuse_code = -EIO;
    snprintf(c->refusal, sizeof c->refusal, "no leader");
}

static void set_ending_time(const struct cluster *c, const char *time)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(status_of(c), "conditions"), i, one)
    {
        if (strcmp(json_text(one, "type"), "Ending") == 0)
            json_object_set_new(one, "lastTransitionTime", json_string(time));
    }
}

/* R8: one answer 500 passes; one that does not pass keeps no recovery from its end for ever. */
static void r8_a_500_while_it_is_let_go_of_is_tried_again_for_a_while(void **unused)
{
    static const char *const phases[] = {"Failed", "Cancelled", "Completed"};
    (void)unused;
    for (int how = 0; how < 3; how++) {
        for (int passes = 0; passes < 2; passes++) {
            struct cluster c;
            struct error err = ERROR_INIT;
            come_to_let_go(&c, how);
            assert_int_equal(run(&c, true, &err), -EIO);
            assert_phase(&c, "Running");
            assert_true(is_paused(&c, "refused"));
            assert_non_null(strstr(message_of(&c), "KEDA 'refused' stays suspended: "));
            json_object_del(c.unknown, "rewind-fails"); /* R9 */
            c.refuse_kind = !passes;
            if (!passes)
                set_ending_time(&c, "2026-01-01T00:00:00Z");
            err = (struct error)ERROR_INIT;
            check_ok(run(&c, true, &err));
            assert_phase(&c, how == 2 && !passes ? "Failed" : phases[how]);
            assert_int_equal(is_paused(&c, "refused"), !passes);
            assert_int_equal(strstr(message_of(&c), "what was held for it stays so: KEDA 'refused' stays suspended: ") != NULL, !passes);
            if (how == 0)
                assert_non_null(strstr(message_of(&c), "the journal is damaged"));
            if (how == 2 && !passes)
                assert_string_equal(recovery_condition_text(c.recovery, "Ready", "reason"), "StaysHeld");
            assert_string_equal(recovery_condition_text(c.recovery, "Ending", "reason"), "");
            tear_down(&c);
        }
    }
}

/* R1: wherever the controller dies, what is suspended is known at the end, and stays so. */
static void a_controller_that_dies_leaves_it_suspended_once(void **unused)
{
    (void)unused;
    for (long at = 1;; at++) {
        struct cluster c;
        struct error err = ERROR_INIT;
        set_up(&c, NOW "---\n" BY_FLUX("first"), REWIND);
        c.kill_at = at;
        c.lose_answer = at % 2;
        int r = run(&c, false, &err);
        bool died = c.calls >= at;
        c.kill_at = 0;
        if (died && recovery_has_ended(c.recovery)) /* its last word was written, and the answer lost */
            r = 0;
        if (died && !recovery_has_ended(c.recovery)) {
            err = ERROR_INIT;
            r = run(&c, false, &err);
        }
        if (died)
            check_ok(r);
        assert_phase(&c, "Completed");
        assert_true(is_suspended(&c, "first"));
        assert_string_equal(diverged(&c), "True");
        assert_null(json_object_get(c.objects, "core/v1/ConfigMap/n/first"));
        tear_down(&c);
        if (!died)
            break;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(r5_to_delete_it_is_to_cancel_it),
        cmocka_unit_test(r5_a_gate_that_cannot_be_opened_keeps_no_other_closed),
        cmocka_unit_test(a_plan_that_somebody_changed_is_not_carried_out),
        cmocka_unit_test(what_is_refused_in_any_language_is_told),
        cmocka_unit_test(r6_claims_and_snapshots_do_not_go_with_what_came_later),
        cmocka_unit_test(a_custom_object_that_cannot_be_changed_is_not_made_again),
        cmocka_unit_test(what_was_there_before_the_point_stays),
        cmocka_unit_test(what_belongs_to_what_is_made_again_stays),
        cmocka_unit_test(what_belongs_to_what_was_made_again_is_given_to_it),
        cmocka_unit_test(what_a_policy_refuses_is_left_as_it_was),
        cmocka_unit_test(a_pod_that_was_stopped_and_is_refused_is_told),
        cmocka_unit_test(r7_what_is_made_again_is_never_lost),
        cmocka_unit_test(r7_a_pod_without_a_controller_is_there_again_when_it_ends_before_apply),
        cmocka_unit_test(a_pod_that_came_later_or_had_ended_is_not_made_again),
        cmocka_unit_test(r7_a_pod_that_cannot_be_made_again_is_told),
        cmocka_unit_test(r9_a_pod_that_is_still_ending_is_awaited),
        cmocka_unit_test(a_pod_that_there_is_no_room_to_note_is_told_beforehand),
        cmocka_unit_test(what_is_being_deleted_is_made_again),
        cmocka_unit_test(what_had_ended_does_not_run_again_and_what_ran_does),
        cmocka_unit_test(an_owner_that_may_not_be_looked_at_stays),
        cmocka_unit_test(r1_a_clone_is_carried_on_at_every_call),
        cmocka_unit_test(r5_one_that_cannot_be_carried_on_opens_its_gates),
        cmocka_unit_test(a_clone_is_used_before_it_is_copied),
        cmocka_unit_test(what_a_clone_cannot_do_is_in_its_plan),
        cmocka_unit_test(a_clone_without_data_asks_for_it),
        cmocka_unit_test(a_clone_whose_data_cannot_be_had_says_why),
        cmocka_unit_test(a_rewind_puts_objects_back),
        cmocka_unit_test(a_node_port_goes_back_to_the_service_that_had_it),
        cmocka_unit_test(a_claim_that_gets_an_empty_volume_is_told),
        cmocka_unit_test(a_dry_run_changes_nothing_and_says_everything),
        cmocka_unit_test(r1_a_killed_controller_is_taken_over_at_every_call),
        cmocka_unit_test(r1_a_plan_that_no_config_map_takes_is_in_the_status),
        cmocka_unit_test(r3_a_failed_check_leaves_everything_as_it_was),
        cmocka_unit_test(who_would_put_it_back_is_named_before_anything_is_changed),
        cmocka_unit_test(one_object_that_fails_does_not_stop_the_others_and_is_told),
        cmocka_unit_test(r5_the_gate_opens_when_a_step_fails_or_is_cancelled),
        cmocka_unit_test(a_clone_leaves_the_original_alone),
        cmocka_unit_test(a_namespace_that_is_gone_is_restored),
        cmocka_unit_test(the_point_of_the_streams_follows_its_kind),
        cmocka_unit_test(the_latest_point_leaves_volumes_as_they_are),
        cmocka_unit_test(before_a_recovery_is_where_each_stream_was),
        cmocka_unit_test(before_a_recovery_of_another_namespace_is_no_point),
        cmocka_unit_test(what_whoever_asked_may_not_look_at_ends_it_or_does_not_matter),
        cmocka_unit_test(an_object_that_is_nested_too_deeply_now_fails_alone),
        cmocka_unit_test(endpoints_come_back_where_a_person_wrote_them_alone),
        cmocka_unit_test(a_claim_that_is_gone_gets_its_volume_back),
        cmocka_unit_test(a_stream_that_is_nowhere_is_held_until_its_gate_is_open),
        cmocka_unit_test(workloads_are_awaited),
        cmocka_unit_test(an_end_says_what_it_waits_for),
        cmocka_unit_test(pods_are_renewed_once_their_set_is_seen),
        cmocka_unit_test(pods_of_a_set_that_nobody_sees_are_left_alone),
        cmocka_unit_test(a_set_is_ready_when_kubectl_rollout_status_says_so),
        cmocka_unit_test(a_large_wave_is_cancelled_in_its_middle_and_has_a_verdict_of_what_was_done),
        cmocka_unit_test(what_was_done_of_a_wave_is_not_done_again_when_the_server_takes_no_more),
        cmocka_unit_test(waves_follow_each_other_whatever_is_made_at_once),
        cmocka_unit_test(r1_a_controller_killed_in_the_middle_of_a_large_wave_is_taken_over),
        cmocka_unit_test(an_owner_that_is_not_told_of_is_asked_for_again),
        cmocka_unit_test(what_is_there_already_when_it_is_made_is_put_back),
        cmocka_unit_test(pods_of_an_earlier_form_make_nothing_ready),
        cmocka_unit_test(a_rewind_that_failed_has_failed_in_the_next_turn),
        cmocka_unit_test(r8_what_cannot_be_let_go_of_keeps_no_recovery_from_its_end),
        cmocka_unit_test(r8_a_500_while_it_is_let_go_of_is_tried_again_for_a_while),
        cmocka_unit_test(workloads_that_wait_are_not_asked_for_all_the_time),
        cmocka_unit_test(what_cannot_be_suspended_leaves_everything_as_it_was),
        cmocka_unit_test(a_controller_that_dies_leaves_it_suspended_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
