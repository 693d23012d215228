/* SPDX-License-Identifier: Apache-2.0 */
/* Questions about the history of an application, asked by a HistoryReview
 * (packaging/crds/historyreviews.yaml): which points there are, what differs between two, whether all of it
 * can be read.
 *
 * A HistoryReview is created with dryRun=All and never stored. The API server authenticates whoever asks,
 * RBAC says whether she may (`create historyreviews` in the application's namespace), and the admission
 * webhook writes the answer into its status: no list of points lies in etcd, and nobody but the API server
 * has to be reached. What takes longer than HISTORY_WAIT_MS goes on as a job, and is asked for by its id
 * again.
 *
 * Invariants: Q1 an answer is about the application of the namespace that the API server names, and nobody
 * but who asked gets it; Q2 values of Secrets are never in an answer, nor fields of objects whose kind the
 * asker may not get, nor their names; Q3 at most HISTORY_JOBS_MAX jobs, and an answer has at most
 * HISTORY_ANSWER_BYTES of fields; Q4 only the leader answers, which has the journals: others say so, and
 * whoever asked asks again.
 *
 * Threads: history_answer from any; one thread a job. history_begin and history_end: the leader's thread. */
#ifndef TIDEMARK_CONTROLLER_HISTORY_H
#define TIDEMARK_CONTROLLER_HISTORY_H

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"

#define HISTORY_KIND "HistoryReview"
#define HISTORY_JOBS_MAX 16u
#define HISTORY_WAIT_MS 400u
#define HISTORY_KEEP_S 60u /* an answer that nobody fetches */
#define HISTORY_POINTS_MAX 5000u
#define HISTORY_POINTS_DEFAULT 50u
#define HISTORY_ANSWER_BYTES (1u << 20)
#define HISTORY_OBJECTS_MAX 1000u /* told of a difference */

struct history;
struct controller;

int history_new(struct history **ret, struct error *err) MUST_CHECK;
/* After history_end. NULL allowed. */
void history_free(struct history *h);

/* A term as leader: between these questions are answered. history_end ends all jobs; what they wait for has
 * to be interrupted before. NULL allowed for `h`. */
void history_begin(struct history *h, struct controller *c);
void history_end(struct history *h);

/* The status of the review: {"phase": "Answered"|"Running"|"Failed"|"Elsewhere", ...}. `user`: the request's
 * userInfo. -EINVAL: the review makes no sense. */
int history_answer(struct history *h, const char *namespace, const json_t *review, const json_t *user,
                   json_t **ret_status, struct error *err) MUST_CHECK;

#endif
