/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROLLER_HISTORY_INTERNAL_H
#define TIDEMARK_CONTROLLER_HISTORY_INTERNAL_H

#include <pthread.h>

#include "base/uuid.h"
#include "controller/controller_internal.h"
#include "controller/history.h"
#include "kube/discovery.h"

#define HISTORY_POINT_BYTES 300

enum history_state { HISTORY_RUNNING, HISTORY_ANSWERED, HISTORY_FAILED };

struct history_job {
    struct history_job *next;
    struct history *h;
    struct controller *c;
    /* The question; not changed after the beginning. */
    char id[UUID_TEXT_BYTES];
    json_t *user, *spec;
    char namespace[256], application[256];
    uint64_t asked_ns;
    /* The job's thread alone. */
    struct kube_kinds kinds;
    json_t *rights; /* {"GROUP/KIND": whether the user may get them} */
    /* Under the history's mutex. */
    enum history_state state;
    struct error err;
    json_t *answer;
    char step[80];
    uint64_t done, total, touched_ns;
    pthread_t thread;
};

/* Where to look at in the objects' journal, and in the streams. */
struct history_moment {
    char objects[HISTORY_POINT_BYTES], streams[HISTORY_POINT_BYTES];
    json_t *before; /* of before:NAME: the streams that this Recovery changed; else NULL */
};

/* ---- history.c ---- */
/* How far the job is. -ECANCELED when it is to end. */
int history_progress(struct history_job *job, const char *step, uint64_t done, uint64_t total,
                     struct error *err) MUST_CHECK;

/* ---- history_points.c ---- */
int history_points(struct history_job *job, json_t **ret, struct error *err) MUST_CHECK;
int history_last_clean(struct history_job *job, json_t **ret, struct error *err) MUST_CHECK;
/* The application's streams, as data_client_streams gives them; none without node agents. */
int history_streams(struct history_job *job, json_t **ret, struct error *err) MUST_CHECK;
/* A call of its node's data API at BEFORE stream AFTER. */
#define HISTORY_STREAM "/v1/applications/"
int history_call(struct history_job *job, const json_t *stream, const char *method, const char *before,
                 const char *after, const json_t *body, json_t **ret, struct error *err) MUST_CHECK;

/* ---- history_diff.c ---- */
int history_diff(struct history_job *job, json_t **ret, struct error *err) MUST_CHECK;
/* A point as written, at the time of the question. Release with history_moment_release. */
int history_moment(struct history_job *job, const char *text, struct history_moment *ret,
                   struct error *err) MUST_CHECK;
void history_moment_release(struct history_moment *m);
/* Whether whoever asks may get objects of the kind of this one (Q2). What cannot be found out is no. */
bool history_may_see(struct history_job *job, const char *journal_name);

/* ---- history_verify.c ---- */
int history_verify(struct history_job *job, json_t **ret, struct error *err) MUST_CHECK;

#endif
