/* SPDX-License-Identifier: Apache-2.0 */
/* The shells' side of completion: each script asks `tidemark __complete` (complete.c) with the words of the
 * line, and shows what it answers. */
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

#define POINTS_ASKED "/points?limit=5000" /* tags stand between changed manifests and activity */

/* readline splits words at characters such as @ : = as well, and replaces only what follows the last of them.
 */
static const char BASH[] =
    "# bash completion of tidemark; written by `tidemark completion bash`\n"
    "_tidemark() {\n"
    "  local rest=${COMP_LINE:0:COMP_POINT} word line cut breaks directive i\n"
    "  local -a words=() lines=()\n"
    "  for ((i = 0; i <= COMP_CWORD; i++)); do\n"
    "    word=${COMP_WORDS[i]}\n"
    "    if ((i)) && [[ $rest != [[:space:]]* ]]; then\n"
    "      words[${#words[@]}-1]+=$word\n"
    "    else\n"
    "      rest=${rest#\"${rest%%[![:space:]]*}\"}\n"
    "      words+=(\"$word\")\n"
    "    fi\n"
    "    rest=${rest#\"$word\"}\n"
    "  done\n"
    "  COMPREPLY=()\n"
    "  mapfile -t lines < <(\"${words[0]/#\\~/$HOME}\" __complete \"${words[@]:1}\" 2>/dev/null)\n"
    "  ((${#lines[@]})) || return\n"
    "  directive=${lines[-1]#:}\n"
    "  unset 'lines[-1]'\n"
    "  word=${words[-1]}\n"
    "  breaks=${COMP_WORDBREAKS//[^@:=]/}\n"
    "  [[ $breaks ]] && cut=${word%\"${word##*[$breaks]}\"}\n"
    "  if ((!(directive & 4))); then\n"
    "    compopt -o filenames\n"
    "    if ((directive & 16)); then i=-d; else i=-f; fi\n"
    "    [[ $word == --*=* ]] && word=${word#*=}\n"
    "    mapfile -t COMPREPLY < <(compgen \"$i\" -- \"$word\")\n"
    "    return\n"
    "  fi\n"
    "  ((directive & 2)) && compopt -o nospace\n"
    "  for line in \"${lines[@]}\"; do\n"
    "    line=${line%%$'\\t'*}\n"
    "    COMPREPLY+=(\"${line#\"$cut\"}\")\n"
    "  done\n"
    "}\n"
    "complete -F _tidemark tidemark\n";

static const char ZSH[] =
    "#compdef tidemark\n"
    "# zsh completion of tidemark; written by `tidemark completion zsh`\n"
    "_tidemark() {\n"
    "  local -a lines entries\n"
    "  local line name directive\n"
    "  lines=(\"${(@f)$(${~words[1]} __complete \"${(@Q)words[2,CURRENT]}\" 2>/dev/null)}\")\n"
    "  directive=${lines[-1]#:}\n"
    "  [[ $directive == <-> ]] || return 1\n"
    "  if ((!(directive & 4))); then\n"
    "    compset -P '--*='\n"
    "    if ((directive & 16)); then _files -/; else _files; fi\n"
    "    return\n"
    "  fi\n"
    "  for line in \"${(@)lines[1,-2]}\"; do\n"
    "    name=${${line%%$'\\t'*}//:/\\\\:}\n"
    "    if [[ $line == *$'\\t'* ]]; then entries+=(\"$name:${line#*$'\\t'}\"); else entries+=(\"$name\"); "
    "fi\n"
    "  done\n"
    "  ((${#entries})) || return 1\n"
    "  if ((directive & 2)); then _describe -V value entries -S ''; else _describe -V value entries; fi\n"
    "}\n"
    "if [ \"$funcstack[1]\" = \"_tidemark\" ]; then _tidemark \"$@\"; else compdef _tidemark tidemark; fi\n";

static const char FISH[] = "# fish completion of tidemark; written by `tidemark completion fish`\n"
                           "function __tidemark_complete\n"
                           "    set -l words (commandline -opc)\n"
                           "    set -l word (commandline -ct)\n"
                           "    set -l lines ($words[1] __complete $words[2..-1] \"$word\" 2>/dev/null)\n"
                           "    set -l directive (string replace -r '^:' '' -- $lines[-1])\n"
                           "    string match -qr '^[0-9]+$' -- \"$directive\"; or return\n"
                           "    if test (math \"floor($directive / 4) % 2\") -eq 0\n"
                           "        set -l path (string replace -r '^--[^=]*=' '' -- \"$word\")\n"
                           "        set -l before (string sub -l (math (string length -- \"$word\") - "
                           "(string length -- \"$path\")) -- \"$word\")\n"
                           "        if test (math \"floor($directive / 16) % 2\") -eq 1\n"
                           "            printf \"$before%s\\n\" (__fish_complete_directories \"$path\")\n"
                           "        else\n"
                           "            printf \"$before%s\\n\" (__fish_complete_path \"$path\")\n"
                           "        end\n"
                           "        return\n"
                           "    end\n"
                           "    test (count $lines) -gt 1; and printf '%s\\n' $lines[1..-2]\n"
                           "end\n"
                           "complete -c tidemark -f -a '(__tidemark_complete)'\n";

/* ---- what has to be asked for ---- */

typedef void (*name_fn)(void *context, const char *name, const char *help);

static void each_name(const struct cli *cli, const char *path, const char *list, const char *key,
                      const char *help, name_fn name, void *context)
{
    _cleanup_json_ json_t *answer = NULL;
    struct error ignored = ERROR_INIT;
    size_t i;
    json_t *item;
    if (cli_api_try(cli, path, &answer, &ignored) < 0)
        return; /* `up` is away: a completion stays silent */
    json_array_foreach(json_object_get(answer, list), i, item)
        name(context, cli_field_text(item, key, ""), help ? cli_field_text(item, help, NULL) : NULL);
}

static void offer_name(void *completion, const char *name, const char *help)
{
    cli_completion_offer(completion, name, help);
}

static void offer_at(void *completion, const char *name, const char *help)
{
    char text[CLI_NAME_BYTES + 1];
    snprintf(text, sizeof text, "%s@", name);
    cli_completion_offer(completion, text, help);
}

static void offer_tags(struct cli_completion *completion, const char *application)
{
    _cleanup_json_ json_t *answer = NULL;
    struct error ignored = ERROR_INIT;
    char path[CLI_PATH_BYTES], tag[CLI_POINT_BYTES + 4];
    size_t i;
    json_t *point;
    if (strchr(application, '/') ||
        cli_api_try(cli_completion_line(completion),
                    cli_api_application_path(application, POINTS_ASKED, path), &answer, &ignored) < 0)
        return;
    json_array_foreach(json_object_get(answer, "points"), i, point)
    {
        if (strcmp(cli_field_text(point, "kind", ""), "tag") != 0)
            continue;
        snprintf(tag, sizeof tag, "tag:%s", cli_field_text(point, "name", ""));
        cli_completion_offer(completion, tag, cli_field_text(point, "time", NULL));
    }
}

/* The volumes of the application that the line begins with. */
static void offer_volumes(struct cli_completion *completion)
{
    const struct cli *line = cli_completion_line(completion);
    _cleanup_json_ json_t *answer = NULL;
    struct error ignored = ERROR_INIT;
    char path[CLI_PATH_BYTES];
    size_t i;
    json_t *volume;
    const char *text = line->operand_count ? line->operands[0] : "";
    snprintf(path, sizeof path, "/v1/status?app=%.*s", (int)strcspn(text, "@"), text);
    if (cli_api_try(line, path, &answer, &ignored) < 0)
        return;
    const json_t *application = json_array_get(json_object_get(answer, "applications"), 0);
    json_array_foreach(json_object_get(application, "volumes"), i, volume)
        cli_completion_offer(completion, cli_field_text(volume, "name", ""), NULL);
}

void cli_completion_ask(struct cli_completion *completion, enum cli_kind kind)
{
    const struct cli *line = cli_completion_line(completion);
    char application[2 * CLI_NAME_BYTES];
    if (cli_completion_point_of(completion, kind, application)) {
        cli_completion_points(completion);
        if (*application)
            offer_tags(completion, application);
    } else if (kind == CLI_KIND_APPLICATION) {
        each_name(line, "/v1/status", "applications", "name", "state", offer_name, completion);
    } else if (kind == CLI_KIND_APPLICATION_AT_POINT) {
        each_name(line, "/v1/status", "applications", "name", "state", offer_at, completion);
    } else if (kind == CLI_KIND_VIEW) {
        each_name(line, "/v1/views", "views", "id", "application", offer_name, completion);
    } else if (kind == CLI_KIND_VOLUME) {
        offer_volumes(completion);
    }
}

/* ---- the command ---- */

static void print_name(void *context, const char *name, const char *help)
{
    (void)context;
    (void)help;
    printf("%s\n", name);
}

static enum cli_exit run(struct cli *cli)
{
    static const char *const scripts[][2] = {{"bash", BASH}, {"zsh", ZSH}, {"fish", FISH}};
    const char *what = cli->operands[0];
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++)
        if (strcmp(what, scripts[i][0]) == 0)
            fputs(scripts[i][1], stdout);
    if (strcmp(what, "applications") == 0)
        each_name(cli, "/v1/status", "applications", "name", NULL, print_name, NULL);
    else if (strcmp(what, "views") == 0)
        each_name(cli, "/v1/views", "views", "id", NULL, print_name, NULL);
    return CLI_EXIT_OK;
}

const struct cli_command cli_completion = {
    .name = "completion",
    .summary = "completion for bash, zsh or fish",
    .description = "Prints the completion for a shell (bash, zsh or fish): of commands, options, and the\n"
                   "present names of applications, tags, views and volumes. `make install` installs all\n"
                   "three; this is for a program that is used without. `applications` and `views` print\n"
                   "the present names one a line, for scripts.",
    .operands = (const struct cli_operand[]){{"SHELL", .kind = CLI_KIND_SHELL}, {0}},
    .examples = (const char *const[]){"source <(tidemark completion bash)",
                                      "tidemark completion zsh > ~/.zfunc/_tidemark",
                                      "tidemark completion fish | source", NULL},
    .run = run,
};
