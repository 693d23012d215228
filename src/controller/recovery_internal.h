/* SPDX-License-Identifier: Apache-2.0 */
/* Between the parts of the recovery: recovery.c (states and steps), recovery_plan.c (what is to be done),
 * recovery_apply.c (doing it), recovery_status.c (writing it down). Invariants and states: recovery.h. */
#ifndef TIDEMARK_CONTROLLER_RECOVERY_INTERNAL_H
#define TIDEMARK_CONTROLLER_RECOVERY_INTERNAL_H

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "app/objects.h"
#include "app/restore.h"
#include "base/cleanup.h"
#include "controller/recovery.h"
#include "lib/json.h"

enum recovery_action {
    ACTION_CREATE,
    ACTION_CHANGE,
    ACTION_RECREATE,
    ACTION_DELETE,
    ACTION_SAME,
    ACTION_SKIP
};
#define RECOVERY_ACTIONS 6

/* What is to be done with one object. Its line in the plan is {"w": wave, "a": action, "o": name, "r":
 * reason, "by": reconciler, "v": verdict}. */
struct recovery_entry {
    enum recovery_action action;
    int wave; /* 0: deletions; from 1: of the order */
    char *name;
    char *reason; /* or NULL */
    char *uid;    /* of what is to be deleted, or made again while others belong to it; or NULL */
    char *by;     /* who reconciles it; or NULL */
    int verdict;  /* enum verdict; -1: none yet */
};

#define RECOVERY_POINT_BYTES 128

struct recovery_run {
    const struct recovery_context *c;
    const struct clock *clock;
    json_t *recovery;  /* as last read or written */
    json_t *last_step; /* status.step as it was then: another one is somebody else's */
    const char *namespace, *name;
    json_t *spec; /* it never changes: threads read it while the Recovery is replaced */
    enum restore_mode mode;
    char application[254], source_namespace[64],
        target_namespace[64]; /* copies: the Recovery is replaced at each write */
    json_t
        *wanted; /* set of the point, transformed, to be put into the target: outlines (recovery_objects.c) */
    struct object_shelf *wanted_whole, *live_whole;
    json_t *order;            /* objects_order(wanted) */
    bool target_missing;      /* the target namespace, when the plan was made */
    json_t *live; /* while it is planned: {journal name: outline of the raw object} of the target namespace */
    struct recovery_entry *entries;
    size_t entry_count;
    int waves;      /* highest wave */
    bool changes_limits; /* it changes or deletes LimitRanges or ResourceQuotas */
    uint64_t loaded_ms; /* what it took to go on with it */
    json_t *before; /* status.streams of the recovery that is taken back; or NULL */
};

/* ---- recovery_status.c ---- */
/* The status object, made when missing. Borrowed. */
json_t *recovery_status(struct recovery_run *run);
/* Takes note of what run->recovery now is: read or written. */
void recovery_remember(struct recovery_run *run);
void recovery_now(const struct recovery_run *run, char text[CLOCK_TEXT_BYTES]);
/* Sets a condition; lastTransitionTime changes with the status alone. */
int recovery_condition(struct recovery_run *run, const char *type, bool status, const char *reason,
                       const char *message);
/* Writes status. -ESTALE: somebody else changed it, and carries the recovery on. */
int recovery_write(struct recovery_run *run, struct error *err);
/* Writes the step down before it is taken (R1). */
int recovery_step(struct recovery_run *run, const char *step, int wave, struct error *err);
/* Ends it: phase, message, condition, and with `failure` its reason (a word). */
int recovery_end(struct recovery_run *run, const char *phase, const char *reason, const char *message,
                 struct error *err);
/* The end that has to wait is in status, so that whoever goes on does nothing but end it: reason and message of what it ends with. Not written yet.
 * The first one stays. */
int recovery_begin_ending(struct recovery_run *run, const char *reason, const char *why);
/* `field` (reason, message) of that; "": it is not being ended. Borrowed, until status is written. */
const char *recovery_ending(const struct recovery_run *run, const char *field);
/* It has waited for RECOVERY_END_MS. */
bool recovery_ends_late(const struct recovery_run *run);
/* Whether somebody asked for its end. Reads the Recovery again. */
int recovery_is_cancelled(struct recovery_run *run, bool *ret, struct error *err);
/* What somebody should know, once, into status.plan.notes; takes the text. */
void recovery_note(struct recovery_run *run, json_t *text);
/* Counts and first failures of the entries into status. */
int recovery_count(struct recovery_run *run, struct error *err);
/* The plan in its ConfigMaps: all parts, or those that the wave has entries in. In the status, when ConfigMaps are refused. */
int recovery_save_plan(struct recovery_run *run, int wave, struct error *err);
/* -ENOENT: there is none. */
int recovery_load_plan(struct recovery_run *run, struct error *err);

/* ---- recovery_objects.c ---- */
/* Puts the object into run->wanted as an outline, the whole one away; in the place of one of the name. */
int recovery_put_wanted(struct recovery_run *run, const char *name, json_t *object, struct error *err);
/* The whole object; the caller owns it. -ENOENT. May be called by several threads, but that nobody changes
 * run->wanted. */
int recovery_get_wanted(const struct recovery_run *run, const char *name, json_t **ret, struct error *err);
/* {name before: name now} of all of them. */
int recovery_rename_wanted(struct recovery_run *run, const json_t *names, struct error *err);
/* Outlines of what is in the target namespace. */
int recovery_list_live(struct recovery_run *run, json_t *array, struct error *err);
/* The whole one, of a name in run->live; the caller owns it. */
int recovery_get_live(const struct recovery_run *run, const char *name, json_t **ret, struct error *err);
void recovery_forget_live(struct recovery_run *run);

/* ---- recovery_plan.c ---- */
/* Reads the objects of the point and puts them in order: run->wanted, run->order. *ret_reason (static): the
 * condition's reason when it fails. */
int recovery_read_wanted(struct recovery_run *run, const char **ret_reason, struct error *err);
/* What stands against it. *ret_reason as above; -EAGAIN: it may pass by itself. */
int recovery_check_target(struct recovery_run *run, const char **ret_reason, struct error *err);
/* Compares with what is there: run->entries, status.plan. */
int recovery_make_plan(struct recovery_run *run, struct error *err);
/* After all that changes the entries: what belongs to an object that is made again is given to the new one. Completes status.plan. */
int recovery_plan_owned(struct recovery_run *run, struct error *err);
/* A LimitRange or a ResourceQuota. */
bool recovery_is_limit(const char *name);
/* A Job or a pod that has ended since the point: its work is undone, unless volumes are left alone. Both normalized. */
bool recovery_runs_again(const struct recovery_run *run, const json_t *live, const json_t *wanted);
int recovery_add_entry(struct recovery_run *run, enum recovery_action action, int wave, const char *name,
                       const char *reason, const char *uid, struct error *err);
void recovery_free_entries(struct recovery_run *run);
const char *recovery_action_name(enum recovery_action action);

/* ---- recovery_gitops.c ---- */
/* After recovery_make_plan: who would put back what changes, into status.reconcilers and the entries; what cannot be
 * suspended is refused (-EPERM), unless it is forced. */
int recovery_plan_reconcilers(struct recovery_run *run, const char **ret_reason, struct error *err);
bool recovery_has_reconcilers(const struct recovery_run *run);
/* Those that the plan says. */
int recovery_suspend(struct recovery_run *run, struct error *err);
/* What is suspended and part of the application itself is put back suspended. */
int recovery_keep_suspended(struct recovery_run *run, struct error *err);
/* Lets those go on that this recovery suspended: all, or only those that have nothing to do with Git. */
/* Whether an error is an answer that stays the same until somebody changes something. */
bool recovery_is_refusal(int code);
/* All are tried; the error names those that stay suspended. It is a refusal only where nothing passes by itself. */
int recovery_let_go(struct recovery_run *run, bool all, struct error *err);

/* ---- recovery_quota.c ---- */
/* After recovery_make_plan: whether what it makes fits into the namespace's quotas and limits. -EDQUOT. */
int recovery_check_quota(struct recovery_run *run, const char **ret_reason, struct error *err);

/* ---- recovery_data.c ---- */
/* spec.point as a point of the objects' journal, and (status.point.streams) of the streams. *ret_reason as
 * above. */
int recovery_resolve_point(struct recovery_run *run, char text[RECOVERY_POINT_BYTES], const char **ret_reason,
                           struct error *err);
/* After the objects' point was found: completes status.point. */
int recovery_note_point(struct recovery_run *run, const struct recovery_point *found, struct error *err);
/* Which streams, to which LSN, how many bytes: status.streams, status.plan.volumes; pods without a controller
 * that use them are made again. */
int recovery_plan_data(struct recovery_run *run, const char **ret_reason, struct error *err);
bool recovery_has_data(const struct recovery_run *run);
/* Whether the pod uses a claim of the streams. */
bool recovery_uses_streams(const struct recovery_run *run, const json_t *pod);
#define RECOVERY_OWNER_BYTES 400
/* "NAMESPACE/NAME" of the Recovery. */
void recovery_owner(const struct recovery_run *run, char ret[RECOVERY_OWNER_BYTES]);
/* The streams are needed no more. -EAGAIN: some are still being detached. */
int recovery_let_streams_go(struct recovery_run *run, struct error *err);
int recovery_set_gates(struct recovery_run *run, bool closed, struct error *err);
int recovery_stop_pods(struct recovery_run *run, struct error *err);
/* -EAGAIN: it is under way. */
int recovery_rewind_data(struct recovery_run *run, struct error *err);
int recovery_bind_volumes(struct recovery_run *run, struct error *err);
/* ---- recovery_copy.c: the same for a clone ---- */
int recovery_plan_copies(struct recovery_run *run, const char **ret_reason, struct error *err);
int recovery_copy_data(struct recovery_run *run, struct error *err);
int recovery_bind_copies(struct recovery_run *run, struct error *err);

/* ---- recovery_filling.c ---- */
/* Once the copies can be used: status.filling, and the condition Filled. */
int recovery_begin_filling(struct recovery_run *run, struct error *err);
/* Asks the nodes, and brings both up to date; nodes that do not answer are no error. *ret_changed: worth being written. */
int recovery_look_filling(struct recovery_run *run, bool *ret_changed, struct error *err);

/* ---- recovery_data.c ---- */
/* The stream's point. 1: it stays as it is. */
int recovery_point_of(struct recovery_run *run, const json_t *stream, char text[RECOVERY_POINT_BYTES]);
/* Reads what "before:NAME" needs, if that is asked for. */
int recovery_read_before(struct recovery_run *run, struct error *err);
json_t *recovery_streams(const struct recovery_run *run);
/* Adds what a step took to status.timings. */
void recovery_note_ms(struct recovery_run *run, const char *key, uint64_t ms);
/* status.timings.<timing> is the longest of the streams' `field`: they are worked on side by side. */
void recovery_note_longest(struct recovery_run *run, const char *field, const char *timing);

/* ---- recovery_workloads.c ---- */
/* -EAGAIN: come again. */
int recovery_renew_pods(struct recovery_run *run, struct error *err);
/* -EAGAIN: come again. 0: they are ready, or the time is over (the condition WorkloadsReady says which). */
int recovery_await_workloads(struct recovery_run *run, struct error *err);
/* What that condition says is in the way; "". */
const char *recovery_not_ready(struct recovery_run *run);

/* ---- recovery_apply.c ---- */
/* Does what the entries of the wave say, and gives each its verdict. Errors that concern one object are
 * verdicts. 1: it was cancelled meanwhile. After other errors the plan has the verdicts that were given. */
int recovery_apply_wave(struct recovery_run *run, int wave, struct error *err);
/* Waits for what the wave needs. A timeout is no error: the objects' own refusals say more. */
int recovery_await_wave(struct recovery_run *run, int wave, struct error *err);
void recovery_pause(const struct recovery_run *run, unsigned ms);
/* An error that says nothing about the object, but about the way to the server: the wave is tried again. */
bool recovery_concerns_server(int code);

/* ---- recovery_replaced.c: R7; by one thread at a time, but for the first ---- */
/* The object as it is made again when what it was to become is refused. */
int recovery_former_of(const json_t *live, json_t **ret, struct error *err);
/* It is about to be deleted, to be made again. -ECANCELED: nothing more is to be done here. */
int recovery_note_replaced(struct recovery_run *run, const char *name, const json_t *former, struct error *err);
/* What that has noted. -ENOENT: nothing. */
int recovery_find_replaced(struct recovery_run *run, const char *name, json_t **ret, struct error *err);
/* The object has its verdict. */
void recovery_forget_replaced(struct recovery_run *run, const char *name);
/* The recovery ends: what is noted, has no verdict, and is not there is made again as it was. What cannot be has a verdict then, and is in *ret_lost
 * (code 0: there is none), in this call and in each that follows an error. -EAGAIN: what is still being deleted is awaited. */
int recovery_put_replaced_back(struct recovery_run *run, struct error *ret_lost, struct error *err);
/* Names what is noted: nobody can look any more what became of it. */
void recovery_name_replaced(struct recovery_run *run, struct error *ret_lost);

#endif
