/* SPDX-License-Identifier: Apache-2.0 */
/* `kubectl tidemark`: the commands that ask a cluster's API server, with the rights of the kubeconfig.
 *
 * Threads: as cli_internal.h. Everything blocks. */
#ifndef TIDEMARK_CLI_KUBECTL_INTERNAL_H
#define TIDEMARK_CLI_KUBECTL_INTERNAL_H

#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "kube/kube.h"
#include "lib/json.h"

#define KUBECTL_FIRST_TIMEOUT_MS 10000
#define KUBECTL_COMPLETION_TIMEOUT_MS 2000
#define KUBECTL_NAME_BYTES 254 /* of an object's name with its NUL */
#define KUBECTL_SYSTEM_NAMESPACE "tidemark-system"

extern const struct kube_resource kubectl_applications, kubectl_recoveries, kubectl_checkpoints,
    kubectl_policies;

/* One invocation's connection. */
struct kubectl {
    const struct cli *cli;
    struct log log;
    struct kube_client *client;
    const char *namespace; /* of -n, else of the context */
    const char *history_from; /* where questions about a namespace that is gone are asked; NULL: in the application's own */
};
/* "shop/web": which application. */
struct kubectl_member {
    char namespace[CLI_NAME_BYTES];
    char name[CLI_NAME_BYTES];
    char point[CLI_POINT_BYTES]; /* "" when none was given */
};

/* ---- kubectl_cluster.c ---- */
/* Whether somebody listens at the API server, asked once: calls try again for half a minute, which is right
 * for a server that is away for a moment and wrong for a misspelt one. */
bool kubectl_answers(struct kube_client *client, unsigned timeout_ms, struct error *err);
/* Reads the kubeconfig and asks for the server. On failure the message has been printed. */
enum cli_exit kubectl_open(struct kubectl *k, const struct cli *cli);
void kubectl_close(struct kubectl *k);
static inline void cleanup_kubectl(struct kubectl *k)
{
    kubectl_close(k);
}
#define _cleanup_kubectl_ __attribute__((cleanup(cleanup_kubectl)))
/* The message of a call that failed with its remedy; `what` begins it ("rewind shop/shop"). */
enum cli_exit kubectl_fail(struct kubectl *k, const char *what, const struct error *err);
/* The text of an operand, which the parser has checked, in its parts. */
void kubectl_member_of(const struct kubectl *k, const char *text, struct kubectl_member *ret);
/* The ProtectedApplication; one that is not there is told with the nearest one that is. */
enum cli_exit kubectl_find(struct kubectl *k, const char *what, const struct kubectl_member *member,
                           json_t **ret);
/* All objects of a kind: of a namespace, or NULL for all. */
int kubectl_list(struct kubectl *k, const struct kube_resource *resource, const char *namespace,
                 json_t **ret_items, struct error *err) MUST_CHECK;
/* object.first.second; NULL when missing. Borrowed. */
json_t *kubectl_at(const json_t *object, const char *first, const char *second);
/* Its condition of this type, or NULL. Borrowed. */
const json_t *kubectl_condition(const json_t *object, const char *type);
static inline bool kubectl_is(const json_t *condition, const char *status)
{
    const char *text = json_string_value(json_object_get(condition, "status"));
    return text && strcmp(text, status) == 0;
}

/* ---- kubectl_recovery.c ---- */
/* Makes a Recovery with a name of its own (PREFIX-xxxxx), which *ret is then. */
enum cli_exit kubectl_recovery_create(struct kubectl *k, const char *what, const char *namespace,
                                      const char *prefix, const json_t *spec, json_t **ret);
/* Waits with progress until it has ended; *recovery becomes its last form. One that no controller takes up is
 * taken away again. */
enum cli_exit kubectl_recovery_wait(struct kubectl *k, const char *what, json_t **recovery);
/* What is told of one that has ended: {"recovery", "phase", "point", "before", "plan", "verdicts", "objects":
 * [{"object", "action", "verdict", "reason", "wave"}], ...}. */
enum cli_exit kubectl_recovery_answer(struct kubectl *k, const char *what, const json_t *recovery,
                                      json_t **ret_answer);
/* What it means to a script, and when it failed the message with its remedy. */
enum cli_exit kubectl_recovery_verdict(struct kubectl *k, const char *what, const json_t *recovery);
bool kubectl_recovery_has_ended(const json_t *recovery);
/* The objects of an answer but those that are the same; `planned`: what would be done, else what was. */
enum cli_exit kubectl_recovery_objects(const struct cli *cli, const json_t *answer, bool planned);
/* Plan, question, run, wait, result: of `spec`, with --dry-run, --yes, --no-wait. `question`: what is asked
 * on a terminal. `papp` may be NULL. */
struct kubectl_run {
    const char *what, *question, *prefix, *namespace;
    json_t *spec;
    const json_t *papp;
    const char *success; /* "shop/shop is as it was"; the time follows */
    const char *hint;    /* the line behind it; NULL: none */
};
enum cli_exit kubectl_recovery_run(struct kubectl *k, const struct kubectl_run *run);
/* Recoveries of an application, newest first; `ended`: those too that have ended, but dry runs. */
enum cli_exit kubectl_recoveries_of(struct kubectl *k, const char *what, const struct kubectl_member *member,
                                    bool ended, json_t **ret);

/* ---- kubectl_purge.c ---- */
/* Deleted volumes whose history is kept: [{"volume", "namespace", "claim", "node", "stream", "sizeBytes", "deletedTime",
 * "removedTime"}]. */
int kubectl_kept(struct kubectl *k, json_t **ret, struct error *err) MUST_CHECK;

/* ---- kubectl_history.c ---- */
/* Asks about the application's history; `question` is a HistoryReview's spec without its application. *ret_answer is what
 * status.answer says. No message is printed. */
int kubectl_history_try(struct kubectl *k, const char *what, const struct kubectl_member *member, const json_t *question,
                        json_t **ret_answer, struct error *err) MUST_CHECK;
/* As kubectl_find; also of an application that is gone, or not protected any more, while its history is kept: *ret stays
 * NULL then, and a note says so. */
enum cli_exit kubectl_history_find(struct kubectl *k, const char *what, const struct kubectl_member *member, json_t **ret);
/* The message of a question that has no answer. */
enum cli_exit kubectl_history_fail(struct kubectl *k, const char *what, const struct kubectl_member *member, const struct error *err);
/* diff of two points. */
enum cli_exit kubectl_history_diff(struct cli *cli);

/* kubectl_completion.c: of kubectl_complete-tidemark, which kubectl asks. */
void kubectl_completion_ask(struct cli_completion *completion, enum cli_kind kind);

extern const struct cli_command kubectl_status, kubectl_points, kubectl_tag, kubectl_diff, kubectl_rewind,
    kubectl_undo, kubectl_clone, kubectl_restore, kubectl_adopt, kubectl_release, kubectl_cancel, kubectl_resume, kubectl_uninstall_check, kubectl_purge, kubectl_verify,
    kubectl_version,
    kubectl_completion;

#endif
