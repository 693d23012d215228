/* SPDX-License-Identifier: Apache-2.0 */
/* The jobs: begun by a question, carried out by a thread each, given out once. */
#include "controller/history.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/thread.h"
#include "controller/history_internal.h"
#include "lib/json.h"

#define REPLACED "the controller was replaced meanwhile: ask again"

struct history {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct controller *c; /* NULL: another replica leads */
    bool ending;
    struct history_job *jobs;
    size_t count;
};

static uint64_t now_ns(void)
{
    return clock_boottime_ns(clock_system());
}

int history_new(struct history **ret, struct error *err)
{
    struct history *h = calloc(1, sizeof *h);
    if (!h)
        return error_set(err, -ENOMEM, "out of memory");
    pthread_mutex_init(&h->mutex, NULL);
    thread_cond_init(&h->changed);
    *ret = h;
    return 0;
}

void history_free(struct history *h)
{
    if (!h)
        return;
    history_end(h);
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->mutex);
    free(h);
}

/* ---- jobs ---- */

/* Its thread has ended, or never began. */
static void free_job(struct history_job *job)
{
    kube_kinds_release(&job->kinds);
    json_decref(job->rights);
    json_decref(job->answer);
    json_decref(job->spec);
    json_decref(job->user);
    free(job);
}

/* Takes it out of the list; the mutex is held. */
static void unlink_job(struct history *h, const struct history_job *job)
{
    for (struct history_job **link = &h->jobs; *link; link = &(*link)->next) {
        if (*link == job) {
            *link = job->next;
            h->count--;
            return;
        }
    }
}

int history_progress(struct history_job *job, const char *step, uint64_t done, uint64_t total,
                     struct error *err)
{
    MUTEX_GUARD(guard, &job->h->mutex);
    snprintf(job->step, sizeof job->step, "%s", step);
    job->done = done;
    job->total = total;
    return job->h->ending ? error_set(err, -ECANCELED, "the controller is stopping: ask again") : 0;
}

static void *job_main(void *context)
{
    struct history_job *job = context;
    struct error err = ERROR_INIT;
    json_t *answer = NULL;
    const char *query = json_text(job->spec, "query");
    int r = strcmp(query, "points") == 0      ? history_points(job, &answer, &err)
            : strcmp(query, "lastClean") == 0 ? history_last_clean(job, &answer, &err)
            : strcmp(query, "diff") == 0      ? history_diff(job, &answer, &err)
                                              : history_verify(job, &answer, &err);
    MUTEX_GUARD(guard, &job->h->mutex);
    job->state = r < 0 ? HISTORY_FAILED : HISTORY_ANSWERED;
    job->err = err;
    job->answer = answer;
    job->touched_ns = now_ns();
    pthread_cond_broadcast(&job->h->changed);
    return NULL;
}

/* Answers that nobody has fetched; the mutex is held. */
static void reap(struct history *h)
{
    for (struct history_job *job = h->jobs, *next; job; job = next) {
        next = job->next;
        if (job->state == HISTORY_RUNNING || now_ns() - job->touched_ns < HISTORY_KEEP_S * NS_PER_SECOND)
            continue;
        unlink_job(h, job);
        pthread_join(job->thread, NULL); /* it has nothing left to do but to return */
        free_job(job);
    }
}

void history_begin(struct history *h, struct controller *c)
{
    if (!h)
        return;
    MUTEX_GUARD(guard, &h->mutex);
    h->c = c;
    h->ending = false;
}

void history_end(struct history *h)
{
    if (!h)
        return;
    pthread_mutex_lock(&h->mutex);
    h->c = NULL;
    h->ending = true;
    for (struct history_job *job; (job = h->jobs);) {
        unlink_job(h, job);
        pthread_mutex_unlock(&h->mutex);
        pthread_join(job->thread, NULL);
        free_job(job);
        pthread_mutex_lock(&h->mutex);
    }
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->mutex);
}

/* ---- the question ---- */

static int check_name(const char *what, const char *text, struct error *err)
{
    if (!*text || strlen(text) > 253 ||
        strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-.") != strlen(text) || *text == '.')
        return error_set(err, -EINVAL, "spec.%s: '%.60s' is no name of an application", what, text);
    return 0;
}

static int check_point(const json_t *spec, const char *key, struct error *err)
{
    const char *text = json_text(spec, key);
    struct point point;
    int r =
        strncmp(text, "before:", 7) == 0 ? check_name(key, text + 7, err) : point_parse(text, &point, err);
    return r < 0 ? error_context(err, "spec.%s", key) : 0;
}

static int check_spec(const json_t *spec, struct error *err)
{
    const char *query = json_text(spec, "query");
    uint64_t limit = HISTORY_POINTS_DEFAULT;
    int r = check_name("application", json_text(spec, "application"), err);
    if (r < 0 || *json_text(spec, "job"))
        return r;
    if (strcmp(query, "diff") == 0)
        return (r = check_point(spec, "from", err)) < 0 ? r : check_point(spec, "to", err);
    if (strcmp(query, "points") == 0) {
        r = json_get_optional_u64(spec, "limit", &limit, err);
        if (r == 0 && limit > HISTORY_POINTS_MAX)
            r = error_set(err, -EINVAL, "spec.limit: at most %u points at a time; `since` narrows them",
                          HISTORY_POINTS_MAX);
        return r == 0 && json_object_get(spec, "since") ? check_point(spec, "since", err) : r;
    }
    if (strcmp(query, "lastClean") != 0 && strcmp(query, "verify") != 0)
        return error_set(err, -EINVAL, "spec.query: '%.40s' is none of points, lastClean, diff and verify",
                         query);
    return 0;
}

/* Begins it; the mutex is held. */
static int begin_job(struct history *h, const char *namespace, const json_t *spec, const json_t *user,
                     struct history_job **ret, struct error *err)
{
    struct uuid uuid;
    reap(h);
    if (h->count >= HISTORY_JOBS_MAX)
        return error_set(err, -EBUSY, "the controller answers %u questions already: ask again in a moment",
                         HISTORY_JOBS_MAX);
    int r = uuid_random(&uuid, err);
    struct history_job *job = r == 0 ? calloc(1, sizeof *job) : NULL;
    if (!job)
        return r < 0 ? r : error_set(err, -ENOMEM, "out of memory");
    job->h = h;
    job->c = h->c;
    job->asked_ns = clock_realtime_ns(clock_system());
    job->user = json_deep_copy(user);
    job->spec = json_deep_copy(spec);
    job->rights = json_object();
    uuid_format(&uuid, job->id);
    snprintf(job->namespace, sizeof job->namespace, "%s", namespace);
    snprintf(job->application, sizeof job->application, "%s", json_text(spec, "application"));
    r = job->user && job->spec && job->rights ? thread_start(&job->thread, "history", job_main, job, err)
                                              : error_set(err, -ENOMEM, "out of memory");
    if (r < 0) {
        free_job(job);
        return r;
    }
    job->next = h->jobs;
    h->jobs = job;
    h->count++;
    *ret = job;
    return 0;
}

/* Q1. Groups and what the API server adds may differ with each of her tokens. */
static bool is_same_user(const json_t *a, const json_t *b)
{
    return strcmp(json_text(a, "username"), json_text(b, "username")) == 0 &&
           strcmp(json_text(a, "uid"), json_text(b, "uid")) == 0;
}

static struct history_job *find_job(struct history *h, const char *namespace, const json_t *spec,
                                    const json_t *user)
{
    for (struct history_job *job = h->jobs; job; job = job->next)
        if (strcmp(job->id, json_text(spec, "job")) == 0 && strcmp(job->namespace, namespace) == 0 &&
            strcmp(job->application, json_text(spec, "application")) == 0 && is_same_user(job->user, user))
            return job;
    return NULL;
}

static json_t *failure(const char *phase, const struct error *err)
{
    return json_pack("{s:s, s:{s:s, s:s}}", "phase", phase, "error", "code", json_errno_name(err->code),
                     "message", err->message);
}

/* Waits a little for the job; one that has ended is taken out of the list, *ret_ended. The mutex is held. */
static json_t *wait_job(struct history *h, const char *id, struct history_job **ret_ended)
{
    struct timespec until;
    struct history_job *job;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += HISTORY_WAIT_MS * 1000000l;
    until.tv_sec += until.tv_nsec / 1000000000l;
    until.tv_nsec %= 1000000000l;
    for (bool late = false;;) {
        for (job = h->jobs; job && strcmp(job->id, id) != 0;)
            job = job->next;
        if (!job || job->state != HISTORY_RUNNING || late)
            break;
        late = pthread_cond_timedwait(&h->changed, &h->mutex, &until) != 0;
    }
    if (!job)
        return failure("Elsewhere", &(const struct error){.code = -EAGAIN, .message = REPLACED});
    job->touched_ns = now_ns();
    if (job->state == HISTORY_RUNNING)
        return json_pack("{s:s, s:s, s:{s:s, s:I, s:I}}", "phase", "Running", "job", job->id, "progress",
                         "step", job->step, "done", (json_int_t)job->done, "total", (json_int_t)job->total);
    unlink_job(h, job);
    *ret_ended = job;
    return job->state == HISTORY_FAILED ? failure("Failed", &job->err)
                                        : json_pack("{s:s, s:O}", "phase", "Answered", "answer", job->answer);
}

int history_answer(struct history *h, const char *namespace, const json_t *review, const json_t *user,
                   json_t **ret_status, struct error *err)
{
    const json_t *spec = json_object_get(review, "spec");
    struct history_job *job = NULL, *ended = NULL;
    struct error why = ERROR_INIT;
    int r = check_spec(spec, err);
    if (r < 0)
        return r;
    if (!*json_text(user, "username"))
        return error_set(err, -EINVAL, "the API server does not say who asks");
    pthread_mutex_lock(&h->mutex);
    if (!h->c)
        r = error_set(&why, -EAGAIN, "this replica of the controller does not lead");
    else if (!watch_is_synced(h->c)) /* an application that it has not seen yet would have no volumes */
        r = error_set(&why, -EAGAIN, "the controller is starting");
    else if (*json_text(spec, "job"))
        r = (job = find_job(h, namespace, spec, user)) ? 0 : error_set(&why, -EAGAIN, REPLACED);
    else
        r = begin_job(h, namespace, spec, user, &job, &why);
    char id[UUID_TEXT_BYTES] = "";
    if (r == 0)
        snprintf(id, sizeof id, "%s", job->id);
    *ret_status = r < 0 ? failure(r == -EAGAIN ? "Elsewhere" : "Failed", &why) : wait_job(h, id, &ended);
    pthread_mutex_unlock(&h->mutex);
    if (ended) {
        pthread_join(ended->thread, NULL);
        free_job(ended);
    }
    return *ret_status ? 0 : error_set(err, -ENOMEM, "out of memory");
}
