/* SPDX-License-Identifier: Apache-2.0 */
/* Completion of `kubectl tidemark`: kubectl runs kubectl_complete-tidemark with the words so far
 * (complete.c). */
#include <string.h>

#include "cli/kubectl_internal.h"

static void offer_objects(struct kubectl *k, struct cli_completion *completion,
                          const struct kube_resource *resource, const char *suffix)
{
    _cleanup_json_ json_t *items = NULL;
    struct error ignored = ERROR_INIT;
    size_t i;
    json_t *item;
    char name[3 * CLI_NAME_BYTES];
    if (kubectl_list(k, resource, NULL, &items, &ignored) < 0 &&
        kubectl_list(k, resource, k->namespace, &items, &ignored) < 0)
        return;
    json_array_foreach(items, i, item)
    {
        if (!resource->namespaced)
            snprintf(name, sizeof name, "%s", kube_object_name(item));
        else
            snprintf(name, sizeof name, "%s/%s%s", kube_object_namespace(item), kube_object_name(item),
                     suffix);
        cli_completion_offer(completion, name, NULL);
        if (resource->namespaced && strcmp(kube_object_namespace(item), k->namespace) == 0 &&
            *cli_completion_word(completion)) {
            snprintf(name, sizeof name, "%s%s", kube_object_name(item), suffix);
            cli_completion_offer(completion, name, NULL);
        }
    }
}

/* Each Checkpoint is tag:NAME for the application that it is of. */
static void offer_tags(struct kubectl *k, struct cli_completion *completion, const char *application)
{
    _cleanup_json_ json_t *items = NULL;
    struct error ignored = ERROR_INIT;
    struct kubectl_member member;
    char tag[2 * CLI_POINT_BYTES];
    size_t i;
    json_t *item;
    kubectl_member_of(k, application, &member);
    if (kubectl_list(k, &kubectl_checkpoints, member.namespace, &items, &ignored) < 0)
        return;
    json_array_foreach(items, i, item)
    {
        const char *of = cli_field_text(json_object_get(item, "spec"), "application", "");
        snprintf(tag, sizeof tag, "tag:%s", kube_object_name(item));
        if (strcmp(of, member.name) == 0)
            cli_completion_offer(completion, tag,
                                 cli_field_text(json_object_get(item, "status"), "time", NULL));
    }
}

static void ask(struct kubectl *k, struct cli_completion *completion, enum cli_kind kind,
                const char *application)
{
    if (application)
        offer_tags(k, completion, application);
    else if (kind == CLI_KIND_NAMESPACE)
        offer_objects(k, completion, &kube_namespaces, "");
    else if (kind == CLI_KIND_MEMBER || kind == CLI_KIND_MEMBER_AT_POINT)
        offer_objects(k, completion, &kubectl_applications, kind == CLI_KIND_MEMBER ? "" : "@");
}

void kubectl_completion_ask(struct cli_completion *completion, enum cli_kind kind)
{
    const struct cli *line = cli_completion_line(completion);
    struct kubectl k = {.cli = line, .log = {.fd = -1}};
    struct error ignored = ERROR_INIT;
    char application[2 * CLI_NAME_BYTES];
    bool is_point = cli_completion_point_of(completion, kind, application);
    const struct kube_options options = {.kubeconfig = cli_options_value(line, "kubeconfig", NULL),
                                         .context = cli_options_value(line, "context", NULL),
                                         .log = &k.log};
    if (is_point)
        cli_completion_points(completion);
    if (kube_open(&options, &k.client, &ignored) < 0)
        return;
    if (!kubectl_answers(k.client, KUBECTL_COMPLETION_TIMEOUT_MS, &ignored)) {
        kubectl_close(&k);
        return;
    }
    k.namespace = cli_options_value(line, "namespace", kube_namespace(k.client));
    ask(&k, completion, kind, is_point && *application ? application : NULL);
    kubectl_close(&k);
}

static enum cli_exit run(struct cli *cli)
{
    (void)cli;
    fputs("#!/bin/sh\n"
          "# Completion of `kubectl tidemark`: an executable kubectl_complete-tidemark on PATH. Written by\n"
          "# `kubectl tidemark completion`. Packages install a link to the program instead.\n"
          "exec kubectl-tidemark __complete \"$@\"\n",
          stdout);
    return CLI_EXIT_OK;
}

const struct cli_command kubectl_completion = {
    .name = "completion",
    .summary = "completion of this plugin by kubectl",
    .description = "Prints a script that kubectl finds as kubectl_complete-tidemark on PATH and asks for\n"
                   "completions. The packages install one; this is for a program that was built by hand.",
    .examples = (const char *const[]){"kubectl tidemark completion > ~/bin/kubectl_complete-tidemark", NULL},
    .run = run,
};
