/* SPDX-License-Identifier: Apache-2.0 */
/* rewind, undo, clone, restore, diff, cancel of `kubectl tidemark`: each a Recovery, or a word to one. */
#include <errno.h>
#include <string.h>

#include "cli/kubectl_internal.h"

static enum cli_exit no_memory(const struct kubectl *k, const char *what)
{
    return cli_output_fail(k->cli, CLI_EXIT_FAILED, NULL, "%s: out of memory", what);
}

/* ---- rewind, undo ---- */

static enum cli_exit rewind_to(struct kubectl *k, const char *verb, const struct kubectl_member *member,
                               const json_t *papp, const char *point)
{
    char what[3 * CLI_TEXT_BYTES], question[4 * CLI_TEXT_BYTES], success[3 * CLI_TEXT_BYTES],
        hint[3 * CLI_TEXT_BYTES];
    _cleanup_json_ json_t *spec =
        json_pack("{s:s, s:s, s:s}", "application", member->name, "mode", "rewind", "point", point);
    if (!spec)
        return no_memory(k, verb);
    if (cli_options_flag(k->cli, "force"))
        json_object_set_new(spec, "force", json_true());
    if (cli_options_flag(k->cli, "objects-only"))
        json_object_set_new(spec, "objectsOnly", json_true());
    snprintf(what, sizeof what, "%s %s/%s", verb, member->namespace, member->name);
    snprintf(question, sizeof question, "%s %s/%s now?",
             strcmp(verb, "undo") == 0 ? "Undo the last rewind of" : "Rewind", member->namespace,
             member->name);
    snprintf(success, sizeof success, "%s/%s is as it was", member->namespace, member->name);
    snprintf(hint, sizeof hint, "`kubectl tidemark undo %s/%s` brings the newer state back.",
             member->namespace, member->name);
    const struct kubectl_run run = {.what = what,
                                    .question = question,
                                    .prefix = verb,
                                    .namespace = member->namespace,
                                    .spec = spec,
                                    .papp = papp,
                                    .success = success,
                                    .hint = hint};
    return kubectl_recovery_run(k, &run);
}

static enum cli_exit run_rewind(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *papp = NULL;
    struct kubectl_member member;
    char what[3 * CLI_TEXT_BYTES];
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "rewind %s/%s", member.namespace, member.name);
    code = kubectl_find(&k, what, &member, &papp);
    return code == CLI_EXIT_OK ? rewind_to(&k, "rewind", &member, papp, cli_options_value(cli, "to", ""))
                               : code;
}

static enum cli_exit run_undo(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *papp = NULL, *recoveries = NULL;
    struct kubectl_member member;
    char what[3 * CLI_TEXT_BYTES];
    size_t i;
    json_t *recovery;
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "undo %s/%s", member.namespace, member.name);
    code = kubectl_find(&k, what, &member, &papp);
    if (code == CLI_EXIT_OK)
        code = kubectl_recoveries_of(&k, what, &member, true, &recoveries);
    if (code != CLI_EXIT_OK)
        return code;
    json_array_foreach(recoveries, i, recovery)
    {
        const char *before = cli_field_text(json_object_get(recovery, "status"), "before", NULL);
        if (strcmp(cli_field_text(json_object_get(recovery, "spec"), "mode", ""), "rewind") != 0)
            continue;
        if (!kubectl_recovery_has_ended(recovery))
            return cli_output_fail(cli, CLI_EXIT_REFUSED,
                                   "wait for its end, or `kubectl tidemark cancel` it first",
                                   "%s: the recovery %s is under way", what, kube_object_name(recovery));
        if (before)
            return rewind_to(&k, "undo", &member, papp, before);
    }
    return cli_output_fail(
        cli, CLI_EXIT_NOT_FOUND, "`kubectl tidemark points` lists the rewinds that are remembered",
        "%s: no rewind of it is remembered (its Recovery objects are gone, or there was none)", what);
}

/* ---- clone, restore ---- */

/* --image FROM=TO as {"image": {"from", "to"}}. */
static int add_pairs(const struct cli *cli, json_t *transforms, const char *option, const char *key)
{
    const char *pair;
    for (size_t i = 0; (pair = cli_options_nth(cli, option, i)); i++) {
        const char *equals = strchr(pair, '=');
        if (json_array_append_new(transforms, json_pack("{s:{s:s%, s:s}}", key, "from", pair,
                                                        (size_t)(equals - pair), "to", equals + 1)) < 0)
            return -ENOMEM;
    }
    return 0;
}

static json_t *spec_of(const struct cli *cli, const char *mode, const struct kubectl_member *member,
                       const char *where)
{
    const char *into = cli_options_value(cli, "into", NULL),
               *replicas = cli_options_value(cli, "replicas", NULL);
    json_t *transforms = json_array();
    json_t *spec = json_pack("{s:s, s:s, s:s, s:s*}", "application", member->name, "mode", mode, "point",
                             cli_options_value(cli, "to", "latest"), "targetNamespace", into);
    if (!spec || add_pairs(cli, transforms, "image", "image") < 0 ||
        add_pairs(cli, transforms, "host", "host") < 0 ||
        add_pairs(cli, transforms, "storage-class", "storageClass") < 0) {
        json_decref(transforms);
        json_decref(spec);
        return NULL;
    }
    if (replicas)
        json_array_append_new(transforms, json_pack("{s:i}", "replicas", (int)strtol(replicas, NULL, 10)));
    if (json_array_size(transforms))
        json_object_set(spec, "transforms", transforms);
    json_decref(transforms);
    if (cli_options_flag(cli, "isolated"))
        json_object_set_new(spec, "isolated", json_true());
    if (cli_options_flag(cli, "objects-only"))
        json_object_set_new(spec, "objectsOnly", json_true());
    if (strcmp(where, member->namespace) != 0)
        json_object_set_new(spec, "sourceNamespace", json_string(member->namespace));
    return spec;
}

static enum cli_exit run_beside(struct kubectl *k, const char *mode, const struct kubectl_member *member,
                                const char *where, const json_t *papp)
{
    char what[3 * CLI_TEXT_BYTES], question[4 * CLI_TEXT_BYTES], success[4 * CLI_TEXT_BYTES],
        hint[3 * CLI_TEXT_BYTES];
    const char *into = cli_options_value(k->cli, "into", member->namespace);
    const struct kube_target target = {.resource = &kube_namespaces, .name = into};
    bool clone = strcmp(mode, "clone") == 0;
    struct error unused = ERROR_INIT;
    _cleanup_json_ json_t *there = NULL;
    bool alone = !clone || kube_get(k->client, &target, &there, &unused) == -ENOENT;
    _cleanup_json_ json_t *spec = spec_of(k->cli, mode, member, where);
    if (!spec)
        return no_memory(k, mode);
    snprintf(what, sizeof what, "%s %s/%s", mode, member->namespace, member->name);
    snprintf(question, sizeof question, "%s %s/%s into namespace %s now?", clone ? "Clone" : "Restore",
             member->namespace, member->name, into);
    snprintf(success, sizeof success, "namespace %s has %s/%s as it was", into, member->namespace,
             member->name);
    snprintf(hint, sizeof hint, "`kubectl delete namespace %s` throws the clone away.", into);
    if (!alone)
        cli_output_note(k->cli,
                        "%s: namespace %s is there already: what has the same names in it is made as the "
                        "application has it",
                        what, into);
    const struct kubectl_run run = {.what = what,
                                    .question = question,
                                    .prefix = mode,
                                    .namespace = where,
                                    .spec = spec,
                                    .papp = papp,
                                    .success = success,
                                    .hint = clone && alone ? hint : NULL};
    return kubectl_recovery_run(k, &run);
}

static enum cli_exit run_clone(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *papp = NULL;
    struct kubectl_member member;
    char what[3 * CLI_TEXT_BYTES];
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "clone %s/%s", member.namespace, member.name);
    if (strcmp(cli_options_value(cli, "into", ""), member.namespace) == 0)
        return cli_output_fail(cli, CLI_EXIT_USAGE, "`kubectl tidemark rewind` puts it back in place",
                               "%s: a clone goes into another namespace than %s", what, member.namespace);
    code = kubectl_find(&k, what, &member, &papp);
    return code == CLI_EXIT_OK ? run_beside(&k, "clone", &member, member.namespace, papp) : code;
}

/* Where the Recovery can lie: its namespace may be what is gone. */
static enum cli_exit place_of(struct kubectl *k, const char *what, const struct kubectl_member *member,
                              const char **ret)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *live = NULL;
    const char *given = cli_options_value(k->cli, "from-namespace", NULL);
    const struct kube_target target = {.resource = &kube_namespaces, .name = member->namespace};
    int r = given ? 0 : kube_get(k->client, &target, &live, &err);
    if (r < 0 && r != -ENOENT && r != -EACCES)
        return kubectl_fail(k, what, &err);
    bool gone = r < 0 || json_object_get(json_object_get(live, "metadata"), "deletionTimestamp");
    *ret = given                                          ? given
           : !gone                                        ? member->namespace
           : strcmp(k->namespace, member->namespace) != 0 ? k->namespace
                                                          : "default";
    if (!given && gone)
        cli_output_note(k->cli, "%s: namespace %s is gone or going; the Recovery is made in namespace %s",
                        what, member->namespace, *ret);
    return CLI_EXIT_OK;
}

static enum cli_exit run_restore(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    struct kubectl_member member;
    const char *where = "";
    char what[3 * CLI_TEXT_BYTES];
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "restore %s/%s", member.namespace, member.name);
    code = place_of(&k, what, &member, &where);
    return code == CLI_EXIT_OK ? run_beside(&k, "restore", &member, where, NULL) : code;
}

/* ---- diff ---- */

static enum cli_exit run_diff(struct cli *cli)
{
    if (cli->operand_count > 1)
        return kubectl_history_diff(cli);
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *papp = NULL, *spec = NULL, *recovery = NULL, *answer = NULL;
    struct kubectl_member member;
    struct error ignored = ERROR_INIT;
    char what[3 * CLI_TEXT_BYTES];
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "diff %s/%s", member.namespace, member.name);
    code = kubectl_find(&k, what, &member, &papp);
    if (code != CLI_EXIT_OK)
        return code;
    spec = json_pack("{s:s, s:s, s:s, s:b, s:b}", "application", member.name, "mode", "rewind", "point",
                     member.point, "dryRun", 1, "force", 1);
    code = spec ? kubectl_recovery_create(&k, what, member.namespace, "diff", spec, &recovery)
                : no_memory(&k, what);
    if (code == CLI_EXIT_OK)
        code = kubectl_recovery_wait(&k, what, &recovery);
    if (code == CLI_EXIT_OK)
        code = kubectl_recovery_answer(&k, what, recovery, &answer);
    if (code == CLI_EXIT_OK)
        code = kubectl_recovery_verdict(&k, what, recovery);
    if (kubectl_recovery_has_ended(recovery)) {
        const struct kube_target target = {.resource = &kubectl_recoveries,
                                           .namespace = member.namespace,
                                           .name = kube_object_name(recovery)};
        if (kube_delete(k.client, &target, NULL, &ignored) < 0)
            ignored = ERROR_INIT;
    }
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    cli_output_say(cli, "what a rewind to %s would do, objects as of %s:", member.point,
                   cli_field_text(json_object_get(answer, "point"), "time", "-"));
    return kubectl_recovery_objects(cli, answer, true);
}

/* ---- cancel ---- */

static enum cli_exit cancel_one(struct kubectl *k, const char *what, json_t *recovery, json_t *answers)
{
    struct error err = ERROR_INIT;
    const struct kube_target target = {.resource = &kubectl_recoveries,
                                       .namespace = kube_object_namespace(recovery),
                                       .name = kube_object_name(recovery)};
    _cleanup_json_ json_t *patch =
        json_pack("{s:{s:{s:s}}}", "metadata", "annotations", "tidemark.io/cancel", "true");
    _cleanup_json_ json_t *now = json_incref(recovery), *answer = NULL;
    if (!patch || kube_patch(k->client, &target, KUBE_PATCH_MERGE, patch, NULL, &err) < 0)
        return kubectl_fail(k, what, &err);
    if (cli_options_flag(k->cli, "no-wait"))
        return CLI_EXIT_OK;
    enum cli_exit code = kubectl_recovery_wait(k, what, &now);
    if (code == CLI_EXIT_OK)
        code = kubectl_recovery_answer(k, what, now, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    json_array_append(answers, answer);
    if (k->cli->format == CLI_FORMAT_TABLE)
        cli_output_say(k->cli, "%s/%s: %s: %s", target.namespace, target.name,
                       cli_field_text(answer, "phase", "?"), cli_field_text(answer, "message", "-"));
    return CLI_EXIT_OK;
}

static enum cli_exit run_cancel(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *recoveries = NULL, *answers = json_array();
    struct kubectl_member member;
    char what[3 * CLI_TEXT_BYTES];
    size_t i;
    json_t *recovery;
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "cancel %s/%s", member.namespace, member.name);
    code = kubectl_recoveries_of(&k, what, &member, false, &recoveries);
    if (code == CLI_EXIT_OK && json_array_size(recoveries) == 0)
        return cli_output_fail(cli, CLI_EXIT_NOT_FOUND,
                               "`kubectl tidemark status` lists the recoveries under way",
                               "%s: no recovery of it is under way", what);
    json_array_foreach(recoveries, i, recovery)
    {
        if (code == CLI_EXIT_OK)
            code = cancel_one(&k, what, recovery, answers);
    }
    return code == CLI_EXIT_OK && cli->format != CLI_FORMAT_TABLE ? cli_output_value(cli, answers) : code;
}

/* ---- the table's entries ---- */

#define OPTION_DRY_RUN                                                                                       \
    {                                                                                                        \
        "dry-run", 0, CLI_KIND_NONE, NULL, .help = "show the plan object by object, change nothing"          \
    }
#define OPTION_YES                                                                                           \
    {                                                                                                        \
        "yes", 'y', CLI_KIND_NONE, NULL, .help = "do not ask"                                                \
    }
#define OPTION_NO_WAIT                                                                                       \
    {                                                                                                        \
        "no-wait", 0, CLI_KIND_NONE, NULL, .help = "do not wait for its end; print its name"                 \
    }
#define OPTION_OBJECTS_ONLY(what)                                                                            \
    {                                                                                                        \
        "objects-only", 0, CLI_KIND_NONE, NULL, .help = what                                                 \
    }
static const struct cli_operand application_operand[] = {{"NAMESPACE/NAME", .kind = CLI_KIND_MEMBER}, {0}};

const struct cli_command kubectl_rewind = {
    .name = "rewind",
    .summary = "put the whole application back to a point, in place",
    .description = "Makes a Recovery (kubectl explain recovery) and waits for its end: the objects of the\n"
                   "application are as they were at the point, those that came after it are gone, its\n"
                   "volumes have the data of the point. The newer state stays in the journal: undo brings\n"
                   "it back. On a terminal it shows the plan and asks first. Ctrl-C ends the waiting, not\n"
                   "the recovery. It acts with your rights, no more.",
    .operands = application_operand,
    .options =
        (const struct cli_option[]){
            {"to", 0, CLI_KIND_POINT, "POINT", .help = "where to go back to", .required = true},
            OPTION_DRY_RUN,
            OPTION_YES,
            OPTION_NO_WAIT,
            OPTION_OBJECTS_ONLY("leave the data of the volumes as it is"),
            {"force", 0, CLI_KIND_NONE, NULL,
             .help = "although a reconciler (Argo CD, Flux) would revert it"},
            {0},
        },
    .formats = true,
    .examples =
        (const char *const[]){
            "kubectl tidemark rewind shop/shop --to -90s --dry-run",
            "kubectl tidemark rewind shop/shop --to tag:before-migration",
            "kubectl tidemark rewind shop -n shop --to 2026-11-21T02:04:46.5Z --yes -o json", NULL},
    .run = run_rewind,
};

const struct cli_command kubectl_undo = {
    .name = "undo",
    .summary = "take the last rewind back",
    .description = "Goes back to the moment just before the newest rewind of the application changed\n"
                   "anything. It is a rewind itself: a second undo takes the first one back.",
    .operands = application_operand,
    .options =
        (const struct cli_option[]){
            OPTION_DRY_RUN,
            OPTION_YES,
            OPTION_NO_WAIT,
            OPTION_OBJECTS_ONLY("leave the data of the volumes as it is"),
            {"force", 0, CLI_KIND_NONE, NULL,
             .help = "although a reconciler (Argo CD, Flux) would revert it"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark undo shop/shop --dry-run",
                                      "kubectl tidemark undo shop/shop --yes", NULL},
    .run = run_undo,
};

#define OPTIONS_OF_A_COPY                                                                                    \
    {"isolated", 0, CLI_KIND_NONE, NULL, .help = "cut it off the network, but for itself and DNS"},          \
        {"replicas", 0, CLI_KIND_NUMBER, "N", .help = "replicas of its workloads"},                          \
        {"image",       0, CLI_KIND_PAIR, "FROM=TO", .help = "begin images that begin with FROM with TO",    \
         .repeat = true},                                                                                    \
        {"host", 0, CLI_KIND_PAIR, "FROM=TO", .help = "another host in its Ingresses", .repeat = true},      \
    {                                                                                                        \
        "storage-class", 0, CLI_KIND_PAIR, "FROM=TO", .help = "another StorageClass", .repeat = true         \
    }

const struct cli_command kubectl_clone = {
    .name = "clone",
    .summary = "the application as of a point, beside it in another namespace",
    .description = "Makes the objects of the point, and volumes with its data, in another namespace, which\n"
                   "is made when it is not there. Nothing of the original is touched. Needs the right to\n"
                   "get secrets of the application.",
    .operands = application_operand,
    .options =
        (const struct cli_option[]){
            {"into", 0, CLI_KIND_NAMESPACE, "NAMESPACE", .help = "where it goes", .required = true},
            {"to", 0, CLI_KIND_POINT, "POINT", .help = "the moment (default latest)"},
            OPTIONS_OF_A_COPY,
            OPTION_DRY_RUN,
            OPTION_YES,
            OPTION_NO_WAIT,
            OPTION_OBJECTS_ONLY("without the data: its volumes are empty"),
            {0},
        },
    .formats = true,
    .examples =
        (const char *const[]){"kubectl tidemark clone shop/shop --into shop-try --to -2h --isolated",
                              "kubectl tidemark clone shop/shop --into shop-try --replicas 1 --yes", NULL},
    .run = run_clone,
};

const struct cli_command kubectl_restore = {
    .name = "restore",
    .summary = "an application that is gone, from its history",
    .description = "Makes the objects of the point, and volumes with its data, where the application was\n"
                   "or in another namespace; what is there is put back. When its namespace is gone, the\n"
                   "Recovery is made in your own one (or `default`), or where --from-namespace says.",
    .operands = application_operand,
    .options =
        (const struct cli_option[]){
            {"to", 0, CLI_KIND_POINT, "POINT", .help = "the moment (default latest)"},
            {"into", 0, CLI_KIND_NAMESPACE, "NAMESPACE", .help = "another namespace than it was in"},
            {"from-namespace", 0, CLI_KIND_NAMESPACE, "NAMESPACE", .help = "where the Recovery is made"},
            {"replicas", 0, CLI_KIND_NUMBER, "N", .help = "replicas of its workloads"},
            {"image", 0, CLI_KIND_PAIR, "FROM=TO", .help = "begin images that begin with FROM with TO",
             .repeat = true},
            {"host", 0, CLI_KIND_PAIR, "FROM=TO", .help = "another host in its Ingresses", .repeat = true},
            {"storage-class", 0, CLI_KIND_PAIR, "FROM=TO", .help = "another StorageClass", .repeat = true},
            OPTION_DRY_RUN,
            OPTION_YES,
            OPTION_NO_WAIT,
            OPTION_OBJECTS_ONLY("without the data: volumes that are gone are made empty"),
            {0},
        },
    .formats = true,
    .examples =
        (const char *const[]){"kubectl tidemark restore shop/shop --to -10m",
                              "kubectl tidemark restore shop/shop --into shop-2 --storage-class fast=slow",
                              NULL},
    .run = run_restore,
};

const struct cli_command kubectl_diff = {
    .name = "diff",
    .summary = "what changed between two points, or since one",
    .description = "Of two points: the objects that changed, with their fields, and how many bytes of\n"
                   "each claim. Values of Secrets, and of fields that sound like credentials, are not\n"
                   "shown, nor are objects of kinds that you may not get. Of one point: the objects that\n"
                   "a rewind to it would create, change or delete now.",
    .operands = (const struct cli_operand[]){{"NAMESPACE/NAME@POINT", .kind = CLI_KIND_MEMBER_AT_POINT},
                                             {"NAMESPACE/NAME@POINT", .kind = CLI_KIND_MEMBER_AT_POINT, .optional = true},
                                             {0}},
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark diff shop/shop@-1h shop/shop@latest",
                                      "kubectl tidemark diff shop/shop@-1h",
                                      "kubectl tidemark diff shop/shop@tag:before -o json", NULL},
    .run = run_diff,
};

const struct cli_command kubectl_cancel = {
    .name = "cancel",
    .summary = "end the recoveries of an application that are under way",
    .description = "Asks each of them to end at its next step, and waits until it has. What was put back\n"
                   "stays so; `kubectl tidemark undo` takes a rewind back.",
    .operands = application_operand,
    .options = (const struct cli_option[]){OPTION_NO_WAIT, {0}},
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark cancel shop/shop", NULL},
    .run = run_cancel,
};
