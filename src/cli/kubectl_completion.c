/* SPDX-License-Identifier: Apache-2.0 */
/* Completion of `kubectl tidemark`: kubectl runs kubectl_complete-tidemark with the words so far, the last
 * one being completed; it prints candidates one a line, and ":4" (no file names). */
#include <stdlib.h>
#include <string.h>

#include "cli/kubectl_internal.h"

/* kubectl's directives: a line of its own at the end. */
#define NO_FILES ":4"
#define FILES ":0"

static void offer(const char *candidate, const char *help, const char *word)
{
    if (strncmp(candidate, word, strlen(word)) == 0)
        printf("%s%s%s\n", candidate, help ? "\t" : "", help ? help : "");
}

static void offer_objects(struct kubectl *k, const struct kube_resource *resource, const char *word,
                          const char *suffix)
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
        if (resource->namespaced)
            snprintf(name, sizeof name, "%s/%s%s", kube_object_namespace(item), kube_object_name(item),
                     suffix);
        else
            snprintf(name, sizeof name, "%s", kube_object_name(item));
        offer(name, NULL, word);
    }
}

static void offer_value(struct cli *cli, enum cli_kind kind, const char *word)
{
    static const char *const points[] = {"latest", "-1m", "-1h", "-1d", "tag:", "lsn:", NULL};
    static const char *const formats[] = {"table", "json", "yaml", NULL};
    const char *const *words = kind == CLI_KIND_POINT ? points : kind == CLI_KIND_FORMAT ? formats : NULL;
    for (; words && *words; words++)
        offer(*words, NULL, word);
    for (const struct cli_command *const *c = cli->program->commands; kind == CLI_KIND_COMMAND && *c; c++)
        offer((*c)->name, (*c)->summary, word);
    if (kind != CLI_KIND_MEMBER && kind != CLI_KIND_MEMBER_AT_POINT && kind != CLI_KIND_NAMESPACE)
        return;
    struct kubectl k = {.cli = cli, .log = {.fd = -1}};
    struct error ignored = ERROR_INIT;
    const struct kube_options options = {.log = &k.log};
    if (kube_open(&options, &k.client, &ignored) < 0)
        return;
    k.namespace = kube_namespace(k.client);
    offer_objects(&k, kind == CLI_KIND_NAMESPACE ? &kube_namespaces : &kubectl_applications, word,
                  kind == CLI_KIND_MEMBER_AT_POINT ? "@" : "");
    kubectl_close(&k);
}

static const struct cli_option *find_option(const struct cli *cli, const struct cli_command *command,
                                            const char *text)
{
    const struct cli_option *lists[] = {command ? command->options : NULL, cli->program->options};
    for (size_t i = 0; i < 2; i++)
        for (const struct cli_option *o = lists[i]; o && o->name; o++)
            if ((strncmp(text, "--", 2) == 0 && strcmp(text + 2, o->name) == 0) ||
                (text[0] == '-' && o->letter && text[1] == o->letter && !text[2]))
                return o;
    const struct cli_option *format = cli_format_option();
    return strcmp(text, "-o") == 0 || strcmp(text, "--output") == 0 ? format : NULL;
}

static void offer_options(const struct cli *cli, const struct cli_command *command, const char *word)
{
    const struct cli_option *lists[] = {command ? command->options : NULL, cli->program->options};
    char name[64];
    for (size_t i = 0; i < 2; i++)
        for (const struct cli_option *o = lists[i]; o && o->name; o++) {
            snprintf(name, sizeof name, "--%s", o->name);
            offer(name, o->help, word);
        }
    if (command && command->formats)
        offer("--output", cli_format_option()->help, word);
}

int kubectl_complete(int argc, char **argv)
{
    struct cli cli = {.program = cli_program_kubectl()};
    const struct cli_command *command = NULL;
    const struct cli_option *waiting = NULL;
    size_t operands = 0;
    const char *word = argc > 1 ? argv[argc - 1] : "";
    for (int i = 1; i < argc - 1; i++) {
        const struct cli_option *option =
            argv[i][0] == '-' && !waiting ? find_option(&cli, command, argv[i]) : NULL;
        if (waiting)
            waiting = NULL;
        else if (option)
            waiting = option->argument ? option : NULL;
        else if (argv[i][0] == '-')
            continue;
        else if (!command)
            command = cli_find_command(cli.program, argv[i]);
        else
            operands++;
    }
    enum cli_kind kind = CLI_KIND_NONE;
    if (waiting)
        kind = waiting->kind;
    else if (word[0] == '-')
        offer_options(&cli, command, word);
    else if (!command)
        kind = CLI_KIND_COMMAND;
    else
        for (const struct cli_operand *o = command->operands; o && o->name; o++)
            if (operands-- == 0)
                kind = o->kind;
    offer_value(&cli, kind, word);
    puts(kind == CLI_KIND_FILE ? FILES : NO_FILES);
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
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
