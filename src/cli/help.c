/* SPDX-License-Identifier: Apache-2.0 */
/* Help from the table of commands, and the command that shows it. */
#include <string.h>

#include "cli/cli_internal.h"

#define HELP_OPTION_COLUMN 26

static void print_option(const struct cli_option *option, FILE *out)
{
    char left[80];
    char letter[8] = "";
    if (option->letter)
        snprintf(letter, sizeof letter, "-%c, ", option->letter);
    snprintf(left, sizeof left, "  %s--%s%s%s", letter, option->name, option->argument ? " " : "",
             option->argument ? option->argument : "");
    fprintf(out, "%-*s%s%s%s%s\n", HELP_OPTION_COLUMN, left, strlen(left) >= HELP_OPTION_COLUMN ? " " : "",
            option->help, option->required ? " (required)" : "", option->repeat ? " (may be repeated)" : "");
}

static void print_usage(const struct cli_program *program, const struct cli_command *command, FILE *out)
{
    fprintf(out, "%s %s", program->name, command->name);
    for (const struct cli_operand *o = command->operands; o && o->name; o++)
        fprintf(out, o->optional ? " [%s]" : o->repeat ? " %s..." : " %s", o->name);
    for (const struct cli_option *o = command->options; o && o->name; o++)
        if (o->required && o->letter)
            fprintf(out, " -%c %s", o->letter, o->argument);
        else if (o->required)
            fprintf(out, " --%s %s", o->name, o->argument);
    fputs(" [OPTIONS]\n", out);
}

void cli_help_command(const struct cli_program *program, const struct cli_command *command, FILE *out)
{
    fputs("Usage: ", out);
    print_usage(program, command, out);
    fprintf(out, "\n%s\n", command->description);
    if (command->options || command->formats)
        fputs("\nOptions:\n", out);
    for (const struct cli_option *o = command->options; o && o->name; o++)
        print_option(o, out);
    if (command->formats)
        print_option(cli_format_option(), out);
    fputs("\nOptions of every command:\n", out);
    for (const struct cli_option *o = program->options; o->name; o++)
        print_option(o, out);
    fputs("\nExamples:\n", out);
    for (const char *const *example = command->examples; *example; example++)
        fprintf(out, "  %s\n", *example);
}

static void print_commands(const struct cli_program *program, FILE *out)
{
    fputs("Commands:\n", out);
    for (const struct cli_command *const *c = program->commands; *c; c++)
        fprintf(out, "  %-16s%s\n", (*c)->name, (*c)->summary);
}

void cli_help_short(const struct cli_program *program, FILE *out)
{
    fprintf(out, "%s: %s\n\nUsage: %s COMMAND [OPTIONS]\n\n", program->name, program->summary, program->name);
    print_commands(program, out);
    fprintf(out, "\n%s\n", program->more);
}

void cli_help_all(const struct cli_program *program, FILE *out)
{
    cli_help_short(program, out);
    fputs("\nPoints in time:\n"
          "  latest                    the newest write\n"
          "  -90s  -2h  -1h30m         so long ago\n"
          "  2026-11-21T02:04:46.5Z    RFC 3339: the last write acknowledged at or before it\n"
          "  lsn:184467                a log sequence number\n"
          "  tag:before-migration      a tag\n"
          "\nOptions of every command:\n",
          out);
    for (const struct cli_option *o = program->options; o->name; o++)
        print_option(o, out);
    fprintf(out,
            "\nExit codes:\n"
            "  0  done\n"
            "  1  failed\n"
            "  2  wrong usage\n"
            "  3  no such application, point or view\n"
            "  4  refused by the present state: busy, exists already, outside the history\n"
            "  5  %s\n"
            "  6  damage was found: by verify, or by an open without --salvage\n",
            program->unreachable);
}

static enum cli_exit run(struct cli *cli)
{
    const struct cli_program *program = cli->program;
    if (cli->operand_count == 0) {
        cli_help_all(program, stdout);
        return CLI_EXIT_OK;
    }
    const struct cli_command *command = cli_find_command(program, cli->operands[0]);
    if (!command) {
        const char *names[64];
        size_t count = 0;
        for (const struct cli_command *const *c = program->commands; *c && count < 63; c++)
            names[count++] = (*c)->name;
        names[count] = NULL;
        const char *near = cli_suggest(cli->operands[0], names);
        char remedy[64];
        snprintf(remedy, sizeof remedy, "`%s help` lists the commands", program->name);
        return cli_output_fail(cli, CLI_EXIT_USAGE, remedy, "help: unknown command '%.100s'%s%s%s",
                               cli->operands[0], near ? ": did you mean '" : "", near ? near : "",
                               near ? "'?" : "");
    }
    cli_help_command(program, command, stdout);
    return CLI_EXIT_OK;
}

const struct cli_command cli_help = {
    .name = "help",
    .summary = "explain a command, or list them all",
    .description = "Explains one command, or lists all of them with the grammar of points and the\n"
                   "exit codes.",
    .operands = (const struct cli_operand[]){{"COMMAND", .kind = CLI_KIND_COMMAND, .optional = true}, {0}},
    .examples = (const char *const[]){"tidemark help", "tidemark help rewind", NULL},
    .run = run,
};
