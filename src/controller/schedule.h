/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints on a schedule (`checkpoints` of a policy): when the next one is due, and which ones have been
 * kept long enough. Deciding alone; schedule_kube.c makes and deletes them.
 *
 * What is remembered stands in the application's status.checkpoints: {"schedule", "nextTime", "lastTime",
 * "lastCheckpoint", "lastSuccessTime", "missed"}. A run's name is made from the time it was due.
 *
 * Invariants:
 *   T1 a time that was due gives one Checkpoint, whoever asks and however often: its name is the time's.
 *   T2 times that passed while nobody looked give one Checkpoint; the rest are counted in `missed`.
 *   T3 a schedule that is new or was changed begins with its next time, never with one that has passed.
 *   T4 only Checkpoints of this application that a schedule made, and that have ended, are removed.
 *
 * Threads: values. Nothing blocks but schedule_parse (the file of a time zone). */
#ifndef TIDEMARK_CONTROLLER_SCHEDULE_H
#define TIDEMARK_CONTROLLER_SCHEDULE_H

#include <jansson.h>
#include <stdbool.h>

#include "controller/cron.h"

#define SCHEDULE_LABEL "tidemark.io/scheduled" /* "true" */
#define SCHEDULE_AT "tidemark.io/scheduled-at" /* annotation: when it was due */
#define SCHEDULE_TEXT_BYTES 200
#define SCHEDULE_NAME_BYTES 254
#define SCHEDULE_KEEP_COUNT 24u /* when the policy does not say what is kept */
#define SCHEDULE_KEEP_FAILED 3u /* as with CronJobs: to be looked at */
#define SCHEDULE_INTERVAL_MIN_S 60u
#define SCHEDULE_STEPS_MAX 10000u /* missed times that are counted */

struct schedule {
    char text[SCHEDULE_TEXT_BYTES]; /* of when: a change of it begins anew */
    struct cron cron;
    struct time_zone *zone;
    int64_t interval_s; /* 0: by cron */
    bool consistent;
    unsigned keep_count; /* 0: as many as there are */
    uint64_t keep_for_s; /* 0: for ever */
};

/* `spec`: checkpoints of a policy. `zones`: as time_zone_load's directory. -EINVAL says what is wrong.
 * Release it. */
int schedule_parse(const json_t *spec, const char *zones, struct schedule *ret, struct error *err) MUST_CHECK;
void schedule_release(struct schedule *schedule);

struct schedule_decision {
    int64_t due_s;   /* 0: nothing is due */
    int64_t next_s;  /* 0: never */
    uint64_t missed; /* times before due_s that nobody made */
};
/* `status`: status.checkpoints, or NULL. */
void schedule_decide(const struct schedule *schedule, const json_t *status, int64_t now_s,
                     struct schedule_decision *ret);
/* The Checkpoint of a time. */
void schedule_name(const char *application, int64_t due_s, char name[SCHEDULE_NAME_BYTES]);
/* "2026-11-21T15:00:00Z". */
void schedule_time(int64_t s, char text[32]);

/* `checkpoints`: all of the namespace. *ret: those to be removed (borrowed objects in a new array);
 * *ret_next_s: when one more will be, 0: not by time alone. */
int schedule_expired(const struct schedule *schedule, const json_t *checkpoints, const char *application,
                     int64_t now_s, json_t **ret, int64_t *ret_next_s, struct error *err) MUST_CHECK;
/* One of the application's Checkpoints that has not ended; NULL: none. Borrowed. */
const json_t *schedule_running(const json_t *checkpoints, const char *application);
/* The newest of those the schedule made that have ended; NULL: none. Borrowed. */
const json_t *schedule_latest(const json_t *checkpoints, const char *application);

#endif
