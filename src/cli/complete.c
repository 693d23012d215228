/* SPDX-License-Identifier: Apache-2.0 */
/* What could stand where a command line ends: `PROGRAM __complete WORD...`, the last word being completed,
 * prints candidates one a line ("candidate\thelp"), each the whole word, and at the end a line ":N": what the
 * shell has to do beside, in cobra's bits, which kubectl reads. The shells' scripts (completion.c) ask it,
 * and so does kubectl. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli_internal.h"

#define NO_SPACE 2u
#define NO_FILES 4u
#define DIRECTORIES 16u

struct cli_completion {
    struct cli cli;
    char word[CLI_PATH_BYTES];   /* what is there of the value */
    char prefix[CLI_NAME_BYTES]; /* of the same word, before the value: "--to=", "shop@" */
    size_t offered, unfinished;
};

const struct cli *cli_completion_line(const struct cli_completion *c)
{
    return &c->cli;
}

const char *cli_completion_word(const struct cli_completion *c)
{
    return c->word;
}

void cli_completion_offer(struct cli_completion *c, const char *candidate, const char *help)
{
    size_t length = strlen(candidate);
    if (strncmp(candidate, c->word, strlen(c->word)) != 0 || strpbrk(candidate, "\t\n"))
        return;
    printf("%s%s%s%s\n", c->prefix, candidate, help ? "\t" : "", help ? help : "");
    c->offered++;
    c->unfinished += length && strchr("@:", candidate[length - 1]);
}

/* The first `length` bytes of the value are settled: candidates are for what follows. */
static void take_prefix(struct cli_completion *c, size_t length)
{
    size_t used = strlen(c->prefix);
    if (used + length >= sizeof c->prefix)
        return;
    memcpy(c->prefix + used, c->word, length);
    c->prefix[used + length] = '\0';
    memmove(c->word, c->word + length, strlen(c->word) - length + 1);
}

bool cli_completion_point_of(struct cli_completion *c, enum cli_kind kind,
                             char ret_application[2 * CLI_NAME_BYTES])
{
    const char *at = strchr(c->word, '@');
    bool joined = kind == CLI_KIND_APPLICATION_AT_POINT || kind == CLI_KIND_MEMBER_AT_POINT;
    if (!(joined && at) && kind != CLI_KIND_POINT)
        return false;
    const char *text = joined ? c->word : c->cli.operand_count ? c->cli.operands[0] : "";
    snprintf(ret_application, 2 * CLI_NAME_BYTES, "%.*s", (int)strcspn(text, "@"), text);
    if (joined)
        take_prefix(c, (size_t)(at - c->word) + 1);
    return true;
}

void cli_completion_points(struct cli_completion *c)
{
    static const char *const points[][2] = {
        {"latest", "the newest write"}, {"-1m", "a minute ago"},           {"-1h", "an hour ago"},
        {"-1d", "a day ago"},           {"lsn:", "a log sequence number"}, {"tag:", "a tag"}};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        cli_completion_offer(c, points[i][0], points[i][1]);
}

/* ---- the line so far ---- */

static const struct cli_option *find_in(const struct cli_option *list, const char *name, size_t length)
{
    for (const struct cli_option *o = list; o && o->name; o++)
        if ((length > 2 && name[0] == '-' && name[1] == '-' && strlen(o->name) == length - 2 &&
             strncmp(name + 2, o->name, length - 2) == 0) ||
            (length == 2 && name[0] == '-' && o->letter && name[1] == o->letter))
            return o;
    return NULL;
}

/* "--to", "-o"; `length` bytes of `name`. */
static const struct cli_option *find_option(const struct cli *cli, const char *name, size_t length)
{
    const struct cli_option *format = cli_format_option();
    const struct cli_option *found = cli->command ? find_in(cli->command->options, name, length) : NULL;
    if (!found)
        found = find_in(cli->program->options, name, length);
    if (!found && cli->command && cli->command->formats &&
        find_in((const struct cli_option[]){*format, {0}}, name, length))
        found = format;
    return found;
}

static void give(struct cli *cli, const struct cli_option *option, const char *value)
{
    if (cli->given_count < CLI_OPTIONS_MAX)
        cli->given[cli->given_count++] = (struct cli_given){option, value};
}

/* A word before the last one. Gives the option whose value comes next, or NULL. */
static const struct cli_option *take_word(struct cli *cli, const char *word)
{
    if (word[0] == '-' && word[1]) {
        size_t length = strcspn(word, "=");
        const struct cli_option *option = find_option(cli, word, length);
        bool waits = option && option->argument && word[length] != '=';
        if (option && !waits)
            give(cli, option, word[length] == '=' ? word + length + 1 : NULL);
        return waits ? option : NULL;
    }
    if (!cli->command)
        cli->command = cli_find_command(cli->program, word);
    else if (cli->operand_count < CLI_OPERANDS_MAX)
        cli->operands[cli->operand_count++] = word;
    return NULL;
}

/* ---- candidates ---- */

static void offer_list(struct cli_completion *c, const struct cli_option *list)
{
    char name[64];
    for (const struct cli_option *o = list; o && o->name; o++) {
        if (!o->repeat && cli_options_flag(&c->cli, o->name))
            continue;
        snprintf(name, sizeof name, "--%s", o->name);
        cli_completion_offer(c, name, o->help);
    }
}

static void offer_options(struct cli_completion *c)
{
    const struct cli_command *command = c->cli.command;
    if (command)
        offer_list(c, command->options);
    if (command && command->formats)
        offer_list(c, (const struct cli_option[]){*cli_format_option(), {0}});
    offer_list(c, c->cli.program->options);
}

static void offer_words(struct cli_completion *c, const char *const *words)
{
    for (; *words; words++)
        cli_completion_offer(c, *words, NULL);
}

/* An operand that help shows as "generate|show|rotate" is one of these words. */
static void offer_literals(struct cli_completion *c, const char *name)
{
    char word[CLI_NAME_BYTES];
    while (islower((unsigned char)*name)) {
        size_t length = strcspn(name, "|");
        snprintf(word, sizeof word, "%.*s", (int)length, name);
        cli_completion_offer(c, word, NULL);
        name += length + (name[length] == '|');
    }
}

static unsigned offer_value(struct cli_completion *c, enum cli_kind kind)
{
    static const char *const formats[] = {"table", "json", "yaml", NULL};
    static const char *const levels[] = {"error", "warning", "info", "debug", NULL};
    static const char *const shells[] = {"bash", "zsh", "fish", NULL};
    switch (kind) {
    case CLI_KIND_FILE:
        return 0;
    case CLI_KIND_DIRECTORY:
        return DIRECTORIES;
    case CLI_KIND_FORMAT:
        offer_words(c, formats);
        break;
    case CLI_KIND_LEVEL:
        offer_words(c, levels);
        break;
    case CLI_KIND_SHELL:
        offer_words(c, shells);
        break;
    case CLI_KIND_COMMAND:
        for (const struct cli_command *const *o = c->cli.program->commands; *o; o++)
            cli_completion_offer(c, (*o)->name, (*o)->summary);
        break;
    case CLI_KIND_NONE:
    case CLI_KIND_TEXT:
    case CLI_KIND_TAG:
    case CLI_KIND_LABEL:
    case CLI_KIND_NUMBER:
    case CLI_KIND_PAIR:
    case CLI_KIND_DURATION:
        break;
    case CLI_KIND_APPLICATION:
    case CLI_KIND_APPLICATION_AT_POINT:
    case CLI_KIND_POINT:
    case CLI_KIND_VIEW:
    case CLI_KIND_VOLUME:
    case CLI_KIND_MEMBER:
    case CLI_KIND_MEMBER_AT_POINT:
    case CLI_KIND_NAMESPACE:
        c->cli.program->complete(c, kind);
    }
    return NO_FILES;
}

static unsigned offer_operand(struct cli_completion *c)
{
    const struct cli_operand *o = c->cli.command->operands;
    for (size_t i = 0; o && o->name && !o->repeat && i < c->cli.operand_count; i++)
        o++;
    if (!o || !o->name)
        return NO_FILES;
    if (o->kind == CLI_KIND_TEXT)
        offer_literals(c, o->name);
    return offer_value(c, c->cli.command->next_operand ? c->cli.command->next_operand(&c->cli) : o->kind);
}

int cli_complete(const struct cli_program *program, int argc, char **argv)
{
    struct cli_completion c = {.cli = {.program = program}};
    const struct cli_option *waits = NULL;
    struct error ignored = ERROR_INIT;
    unsigned directive = NO_FILES;
    snprintf(c.word, sizeof c.word, "%s", argc > 1 ? argv[argc - 1] : "");
    for (int i = 1; i < argc - 1; i++) {
        if (waits)
            give(&c.cli, waits, argv[i]);
        waits = waits ? NULL : take_word(&c.cli, argv[i]);
    }
    size_t equals = strcspn(c.word, "=");
    if (!waits && c.word[0] == '-' && c.word[1] == '-' && c.word[equals]) {
        waits = find_option(&c.cli, c.word, equals);
        take_prefix(&c, equals + 1);
    }
    if (cli_options_settle_socket(&c.cli, &ignored) < 0)
        c.cli.socket_path[0] = '\0';
    if (waits)
        directive = offer_value(&c, waits->kind);
    else if (c.word[0] == '-')
        offer_options(&c);
    else if (!c.cli.command)
        offer_value(&c, CLI_KIND_COMMAND);
    else
        directive = offer_operand(&c);
    if (c.offered && c.unfinished == c.offered)
        directive |= NO_SPACE;
    printf(":%u\n", directive);
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
