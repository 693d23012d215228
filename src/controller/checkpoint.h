/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints: a moment of an application gets a name, and is consistent for the application, too, when its
 * policy has hooks: commands in its pods before (pre) and after (post), of blueprints
 * (controller/hooks.h).
 *
 * States: "" -> Freezing -> Thawing -> Ready | Failed. status.hooks has each command's target and how far it
 * is.
 *
 * Invariants:
 *   C1 before the first pre is run, status says which targets there are; so whoever goes on after a kill
 * thaws them all, and the checkpoint that was cut off is Failed, never Ready. C2 each pre starts a timer in
 * its own container that thaws at thawBy unless somebody thawed before: what is frozen thaws although no
 * controller is there. C3 a checkpoint says ApplicationConsistent only when every pre succeeded, the tag was
 * set after the last of them and before the first post, and no timer had thawed before it. C4 after the first
 * pre every target is thawed, whatever fails. C5 hooks of two checkpoints of one application never run at once
 * (checkpoint_kube.c): one would thaw what the other holds.
 *
 * Threads: values; the ops block. */
#ifndef TIDEMARK_CONTROLLER_CHECKPOINT_H
#define TIDEMARK_CONTROLLER_CHECKPOINT_H

#include <jansson.h>
#include <stdbool.h>

#include "base/clock.h"
#include "base/error.h"

#define CHECKPOINT_TARGETS_MAX 64u
#define CHECKPOINT_TAG_MS 20000u /* that the timers add to the pre commands' time, for tags */
#define CHECKPOINT_GIVE_UP_MS                                                                                \
    60000u /* after thawBy: a target that cannot be reached is left to its timer                             \
            */
#define CHECKPOINT_POST_MS 30000u
#define CHECKPOINT_MESSAGE_BYTES 400u

/* Exit statuses of the scripts below. */
#define CHECKPOINT_NOT_HELD 124 /* post: the timer was quicker, or nothing was held */
#define CHECKPOINT_NO_ROOM 125  /* pre: the container has no directory to write to */

struct checkpoint_ops {
    /* Replaces the status. -EBUSY: somebody else changed it. */
    int (*write_status)(void *context, const json_t *checkpoint, struct error *err);
    /* Where the hooks of its application's policy run now: [{"hook", "pod", "container", "pre", "post",
     * "mounts", "timeoutMs"}]. -EINVAL when a hook cannot be carried out. */
    int (*targets)(void *context, const json_t *checkpoint, json_t **ret, struct error *err);
    /* Runs `script` by /bin/sh. Free *ret_output, which is cut. */
    int (*run)(void *context, const json_t *checkpoint, const json_t *target, const char *script,
               unsigned timeout_ms, int *ret_status, char **ret_output, struct error *err);
    /* Names the present moment by the checkpoint's name. -EEXIST: another moment has it. *ret: {"time",
     * "objectsLsn", "streams": [{"stream", "lsn"}]}. */
    int (*tag)(void *context, const json_t *checkpoint, json_t **ret, struct error *err);
};

/* Carries it as far as it goes. 0: it has ended. -EAGAIN and other errors: call again later. */
int checkpoint_advance(const struct checkpoint_ops *ops, void *context, const struct clock *clock,
                       json_t *checkpoint, struct error *err) MUST_CHECK;
bool checkpoint_has_ended(const json_t *checkpoint);

/* The scripts that are run. `id` is the checkpoint's; the timer thaws after `seconds`. The caller frees them;
 * NULL: out of memory. */
char *checkpoint_pre_script(const char *id, const char *mounts, const char *pre, const char *post,
                            unsigned seconds);
char *checkpoint_post_script(const char *id, const char *mounts, const char *post);

#endif
