/* SPDX-License-Identifier: Apache-2.0 */
/* Completion for bash and zsh, written from the table of commands; names of applications and views are asked
 * for when they are needed, by `tidemark completion applications|views`. */
#include <ctype.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

/* The options that hold for a command: its own, -o, the common ones. Calls print for each. */
static void each_option(const struct cli_command *command,
                        void (*print)(const struct cli_command *command, const struct cli_option *option))
{
    for (const struct cli_option *o = command->options; o && o->name; o++)
        print(command, o);
    if (command->formats)
        print(command, cli_format_option());
    for (const struct cli_option *o = cli_program_tidemark()->options; o->name; o++)
        print(command, o);
}

/* The shell code that fills COMPREPLY for a value of this kind. */
static const char *bash_action(enum cli_kind kind)
{
    switch (kind) {
    case CLI_KIND_APPLICATION:
        return "_tidemark_words \"$(_tidemark_names applications)\"";
    case CLI_KIND_APPLICATION_AT_POINT:
        return "compopt -o nospace; _tidemark_words \"$(_tidemark_names applications | sed 's/$/@/')\"";
    case CLI_KIND_VIEW:
        return "_tidemark_words \"$(_tidemark_names views)\"";
    case CLI_KIND_POINT:
        return "_tidemark_words 'latest -1m -1h -1d lsn: tag:'";
    case CLI_KIND_FILE:
        return "_tidemark_files -f";
    case CLI_KIND_DIRECTORY:
        return "_tidemark_files -d";
    case CLI_KIND_FORMAT:
        return "_tidemark_words 'table json yaml'";
    case CLI_KIND_SHELL:
        return "_tidemark_words 'bash zsh'";
    case CLI_KIND_LEVEL:
        return "_tidemark_words 'error warning info debug'";
    case CLI_KIND_COMMAND:
        return "_tidemark_words \"$commands\"";
    case CLI_KIND_NONE:
    case CLI_KIND_TEXT:
    case CLI_KIND_TAG:
    case CLI_KIND_LABEL:
    case CLI_KIND_VOLUME:
    case CLI_KIND_NUMBER:
    case CLI_KIND_MEMBER:
    case CLI_KIND_MEMBER_AT_POINT:
    case CLI_KIND_NAMESPACE:
    case CLI_KIND_PAIR:
    case CLI_KIND_DURATION:
        break;
    }
    return "COMPREPLY=()";
}

static void print_bash_word(const struct cli_command *command, const struct cli_option *option)
{
    (void)command;
    printf(" --%s", option->name);
}

static void print_bash_value(const struct cli_command *command, const struct cli_option *option)
{
    if (!option->argument)
        return;
    printf("    %s:--%s", command->name, option->name);
    if (option->letter)
        printf("|%s:-%c", command->name, option->letter);
    printf(") %s; return ;;\n", bash_action(option->kind));
}

static void print_bash(void)
{
    fputs(
        "# bash completion of tidemark; written by `tidemark completion bash`\n"
        "_tidemark_words() { mapfile -t COMPREPLY < <(compgen -W \"$1\" -- \"$cur\"); }\n"
        "_tidemark_files() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen \"$1\" -- \"$cur\"); }\n"
        "_tidemark_names() { tidemark completion \"$1\" \"${places[@]}\" 2>/dev/null; }\n"
        "_tidemark() {\n"
        "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= options= i\n"
        "  local -a places=()\n"
        "  local commands='",
        stdout);
    for (const struct cli_command *const *c = cli_program_tidemark()->commands; *c; c++)
        printf("%s%s", c == cli_program_tidemark()->commands ? "" : " ", (*c)->name);
    fputs("'\n"
          "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
          "    case ${COMP_WORDS[i]} in\n"
          "    --state|--socket) places+=(\"${COMP_WORDS[i]}\" \"${COMP_WORDS[i+1]}\"); ((i++)) ;;\n"
          "    -*) ;;\n"
          "    *) [[ $command ]] || command=${COMP_WORDS[i]} ;;\n"
          "    esac\n"
          "  done\n"
          "  case $command:$prev in\n"
          "    *:--state) _tidemark_files -d; return ;;\n"
          "    *:--socket) _tidemark_files -f; return ;;\n",
          stdout);
    for (const struct cli_command *const *c = cli_program_tidemark()->commands; *c; c++)
        each_option(*c, print_bash_value);
    fputs("  esac\n"
          "  case $command in\n",
          stdout);
    for (const struct cli_command *const *c = cli_program_tidemark()->commands; *c; c++) {
        printf("    %s) options='", (*c)->name);
        each_option(*c, print_bash_word);
        fputs("' ;;\n", stdout);
    }
    fputs("    *) _tidemark_words \"$commands\"; return ;;\n"
          "  esac\n"
          "  if [[ $cur == -* ]]; then _tidemark_words \"$options\"; return; fi\n"
          "  case $command in\n",
          stdout);
    for (const struct cli_command *const *c = cli_program_tidemark()->commands; *c; c++)
        if ((*c)->operands)
            printf("    %s) %s ;;\n", (*c)->name, bash_action((*c)->operands[0].kind));
    fputs("    *) COMPREPLY=() ;;\n"
          "  esac\n"
          "}\n"
          "complete -F _tidemark tidemark\n",
          stdout);
}

static const char *zsh_action(enum cli_kind kind)
{
    switch (kind) {
    case CLI_KIND_APPLICATION:
        return "_tidemark_applications";
    case CLI_KIND_APPLICATION_AT_POINT:
        return "_tidemark_applications -S @";
    case CLI_KIND_VIEW:
        return "_tidemark_views";
    case CLI_KIND_POINT:
        return "(latest -1m -1h -1d)";
    case CLI_KIND_FILE:
        return "_files";
    case CLI_KIND_DIRECTORY:
        return "_files -/";
    case CLI_KIND_FORMAT:
        return "(table json yaml)";
    case CLI_KIND_SHELL:
        return "(bash zsh)";
    case CLI_KIND_LEVEL:
        return "(error warning info debug)";
    case CLI_KIND_COMMAND:
        return "_tidemark_commands";
    case CLI_KIND_NONE:
    case CLI_KIND_TEXT:
    case CLI_KIND_TAG:
    case CLI_KIND_LABEL:
    case CLI_KIND_VOLUME:
    case CLI_KIND_NUMBER:
    case CLI_KIND_MEMBER:
    case CLI_KIND_MEMBER_AT_POINT:
    case CLI_KIND_NAMESPACE:
    case CLI_KIND_PAIR:
    case CLI_KIND_DURATION:
        break;
    }
    return " ";
}

/* Inside single quotes and _arguments' brackets. */
static void put_zsh(const char *text)
{
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else if (strchr("[]:\\", *text))
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static void print_zsh_option(const struct cli_command *command, const struct cli_option *option)
{
    (void)command;
    const char *names[2] = {option->name, NULL};
    char letter[2] = {(char)option->letter, '\0'};
    if (option->letter)
        names[1] = letter;
    for (size_t i = 0; i < 2 && names[i]; i++) {
        printf("        '%s%s%s[", option->repeat ? "*" : "", i ? "-" : "--", names[i]);
        put_zsh(option->help);
        putchar(']');
        if (option->argument) {
            putchar(':');
            put_zsh(option->argument);
            printf(":%s", zsh_action(option->kind));
        }
        fputs("' \\\n", stdout);
    }
}

static void print_zsh_command(const struct cli_command *command)
{
    printf("      %s)\n        _arguments -s \\\n", command->name);
    each_option(command, print_zsh_option);
    for (const struct cli_operand *o = command->operands; o && o->name; o++) {
        fputs(o->optional ? "        '::" : "        ':", stdout);
        put_zsh(o->name);
        printf(":%s' \\\n", zsh_action(o->kind));
    }
    fputs("        && return 0 ;;\n", stdout);
}

static void print_zsh(void)
{
    fputs("#compdef tidemark\n"
          "# zsh completion of tidemark; written by `tidemark completion zsh`\n"
          "_tidemark_commands() {\n"
          "  local -a commands=(\n",
          stdout);
    for (const struct cli_command *const *c = cli_program_tidemark()->commands; *c; c++) {
        printf("    '%s:", (*c)->name);
        put_zsh((*c)->summary);
        fputs("'\n", stdout);
    }
    fputs("  )\n"
          "  _describe command commands\n"
          "}\n"
          "_tidemark_applications() {\n"
          "  local -a names=(${(f)\"$(tidemark completion applications 2>/dev/null)\"})\n"
          "  compadd \"$@\" -a names\n"
          "}\n"
          "_tidemark_views() {\n"
          "  local -a names=(${(f)\"$(tidemark completion views 2>/dev/null)\"})\n"
          "  compadd \"$@\" -a names\n"
          "}\n"
          "_tidemark() {\n"
          "  local context state state_descr line\n"
          "  typeset -A opt_args\n"
          "  _arguments -C \\\n",
          stdout);
    for (const struct cli_option *o = cli_program_tidemark()->options; o->name; o++)
        print_zsh_option(NULL, o);
    fputs("    '1:command:_tidemark_commands' '*::argument:->command' && return 0\n"
          "  case $state in\n"
          "  command)\n"
          "    case $words[1] in\n",
          stdout);
    for (const struct cli_command *const *c = cli_program_tidemark()->commands; *c; c++)
        print_zsh_command(*c);
    fputs("    esac ;;\n"
          "  esac\n"
          "  return 1\n"
          "}\n"
          "if [ \"$funcstack[1]\" = \"_tidemark\" ]; then _tidemark \"$@\"; else compdef _tidemark tidemark; "
          "fi\n",
          stdout);
}

/* One name a line; nothing when `up` is away: a completion stays silent. */
static void print_names(const struct cli *cli, const char *path, const char *list, const char *key)
{
    _cleanup_json_ json_t *answer = NULL;
    struct error ignored = ERROR_INIT;
    size_t i;
    json_t *item;
    if (cli_api_try(cli, path, &answer, &ignored) < 0)
        return;
    json_array_foreach(json_object_get(answer, list), i, item) printf("%s\n", cli_field_text(item, key, ""));
}

static enum cli_exit run(struct cli *cli)
{
    const char *what = cli->operands[0];
    if (strcmp(what, "bash") == 0)
        print_bash();
    else if (strcmp(what, "zsh") == 0)
        print_zsh();
    else if (strcmp(what, "applications") == 0)
        print_names(cli, "/v1/status", "applications", "name");
    else
        print_names(cli, "/v1/views", "views", "id");
    return CLI_EXIT_OK;
}

const struct cli_command cli_completion = {
    .name = "completion",
    .summary = "completion for bash or zsh",
    .description = "Prints the completion for a shell (bash or zsh). The packages install both; this is\n"
                   "for a program that was built by hand. `applications` and `views` print the present\n"
                   "names one a line, for scripts.",
    .operands = (const struct cli_operand[]){{"SHELL", .kind = CLI_KIND_SHELL}, {0}},
    .examples = (const char *const[]){"source <(tidemark completion bash)",
                                      "tidemark completion zsh > ~/.zfunc/_tidemark", NULL},
    .run = run,
};
