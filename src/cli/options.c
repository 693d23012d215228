/* SPDX-License-Identifier: Apache-2.0 */
/* The parser: options of the table before and after the command, `--name=value`, `-nvalue`, `--` ends
 * options. Values are checked by their kind, so that wrong grammar fails before anything is asked. */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "app/spec.h"
#include "base/cleanup.h"
#include "base/units.h"
#include "cli/cli_internal.h"
#include "control/control.h"
#include "journal/point.h"

/* Names go into paths of the API: nothing that needs escaping, and no "..". */
static int check_name(const char *what, const char *text, size_t length, struct error *err)
{
    bool ok = length > 0 && length < CLI_NAME_BYTES && isalnum((unsigned char)text[0]);
    for (size_t i = 0; ok && i < length; i++)
        ok = isalnum((unsigned char)text[i]) || strchr("._-", text[i]);
    if (!ok)
        return error_set(err, -EINVAL,
                         "'%.*s' is not the name of %s: expected letters, digits, '-', '_' and '.'",
                         (int)(length > 200 ? 200 : length), text, what);
    return 0;
}

int cli_options_split_point(const char *text, char ret_application[CLI_NAME_BYTES],
                            char ret_point[CLI_POINT_BYTES], struct error *err)
{
    struct point point;
    const char *at = strchr(text, '@');
    if (!at)
        return error_set(err, -EINVAL,
                         "'%.200s' has no point: expected APP@POINT, such as %.100s@latest or %.100s@-90s",
                         text, text, text);
    int r = check_name("an application", text, (size_t)(at - text), err);
    if (r < 0)
        return r;
    r = point_parse(at + 1, &point, err);
    if (r < 0)
        return r;
    if (strlen(at + 1) >= CLI_POINT_BYTES)
        return error_set(err, -EINVAL, "the point '%.100s…' is too long", at + 1);
    snprintf(ret_application, CLI_NAME_BYTES, "%.*s", (int)(at - text), text);
    snprintf(ret_point, CLI_POINT_BYTES, "%s", at + 1);
    return 0;
}

static int check_point(const char *text, struct error *err)
{
    struct point point;
    if (strlen(text) >= CLI_POINT_BYTES)
        return error_set(err, -EINVAL, "the point '%.100s…' is too long", text);
    return point_parse(text, &point, err);
}

static int check_label(const char *text, struct error *err)
{
    const char *equals = strchr(text, '=');
    if (!equals || equals == text)
        return error_set(err, -EINVAL, "'%.200s' is not a label: expected KEY=VALUE, such as build=1234",
                         text);
    for (const char *p = text; p < equals; p++)
        if (!isalnum((unsigned char)*p) && !strchr("._-/", *p))
            return error_set(err, -EINVAL,
                             "'%.*s' is not the key of a label: expected letters, digits, '-', '_', '.', '/'",
                             (int)(equals - text > 200 ? 200 : equals - text), text);
    return 0;
}

/* "shop/web" or "web": names of Kubernetes go into paths of its API. */
static int check_member(const char *text, size_t length, struct error *err)
{
    const char *slash = memchr(text, '/', length);
    size_t first = slash ? (size_t)(slash - text) : 0;
    if (slash && (check_name("a namespace", text, first, err) < 0))
        return err->code;
    return check_name("an application", slash ? slash + 1 : text, slash ? length - first - 1 : length, err);
}

static int check_member_at_point(const char *text, struct error *err)
{
    const char *at = strchr(text, '@');
    if (!at)
        return error_set(err, -EINVAL,
                         "'%.200s' has no point: expected NAMESPACE/NAME@POINT, such as %.100s@-90s", text,
                         text);
    int r = check_member(text, (size_t)(at - text), err);
    return r < 0 ? r : check_point(at + 1, err);
}

static int check_pair(const char *text, struct error *err)
{
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || !equals[1])
        return error_set(err, -EINVAL, "'%.200s' is not of the form FROM=TO", text);
    return 0;
}

static int check_word(const char *text, const char *what, const char *const *words, struct error *err)
{
    for (const char *const *w = words; *w; w++)
        if (strcmp(*w, text) == 0)
            return 0;
    char expected[128] = "";
    for (const char *const *w = words; *w; w++) {
        size_t used = strlen(expected);
        snprintf(expected + used, sizeof expected - used, "%s%s", *expected ? ", " : "", *w);
    }
    return error_set(err, -EINVAL, "'%.100s' is not %s: expected one of %s", text, what, expected);
}

static int check_value(enum cli_kind kind, const char *value, struct error *err)
{
    static const char *const formats[] = {"table", "json", "yaml", NULL};
    static const char *const shells[] = {"bash", "zsh", "fish", "applications", "views", NULL};
    static const char *const levels[] = {"error", "warning", "info", "debug", NULL};
    char application[CLI_NAME_BYTES], point[CLI_POINT_BYTES];
    uint64_t number;
    switch (kind) {
    case CLI_KIND_APPLICATION:
        return check_name("an application", value, strlen(value), err);
    case CLI_KIND_VIEW:
        return check_name("a view", value, strlen(value), err);
    case CLI_KIND_VOLUME:
        return check_name("a volume", value, strlen(value), err);
    case CLI_KIND_APPLICATION_AT_POINT:
        return cli_options_split_point(value, application, point, err);
    case CLI_KIND_POINT:
        return check_point(value, err);
    case CLI_KIND_TAG:
        return point_check_tag(value, err);
    case CLI_KIND_LABEL:
        return check_label(value, err);
    case CLI_KIND_NUMBER:
        return units_parse_u64(value, INT32_MAX, &number, err);
    case CLI_KIND_FORMAT:
        return check_word(value, "a format", formats, err);
    case CLI_KIND_SHELL:
        return check_word(value, "a shell", shells, err);
    case CLI_KIND_LEVEL:
        return check_word(value, "a log level", levels, err);
    case CLI_KIND_MEMBER:
        return check_member(value, strlen(value), err);
    case CLI_KIND_MEMBER_AT_POINT:
        return check_member_at_point(value, err);
    case CLI_KIND_NAMESPACE:
        return app_check_name(value, err);
    case CLI_KIND_PAIR:
        return check_pair(value, err);
    case CLI_KIND_DURATION:
        return units_parse_duration(value, &number, err);
    case CLI_KIND_NONE:
    case CLI_KIND_TEXT:
    case CLI_KIND_FILE:
    case CLI_KIND_DIRECTORY:
    case CLI_KIND_COMMAND:
        break;
    }
    return *value ? 0 : error_set(err, -EINVAL, "an empty value");
}

/* The option by name, or by letter when there is one. */
static const struct cli_option *find_option(const struct cli *cli, const char *name, size_t length,
                                            char letter)
{
    const struct cli_command *command = cli->command;
    const struct cli_option *lists[] = {command ? command->options : NULL, cli->program->options};
    for (size_t i = 0; i < 2; i++)
        for (const struct cli_option *o = lists[i]; o && o->name; o++)
            if (letter ? o->letter == letter
                       : strlen(o->name) == length && strncmp(o->name, name, length) == 0)
                return o;
    const struct cli_option *format = cli_format_option();
    if (command && command->formats &&
        (letter ? letter == format->letter
                : strlen(format->name) == length && strncmp(format->name, name, length) == 0))
        return format;
    return NULL;
}

static int unknown_option(const struct cli *cli, const char *text, struct error *err)
{
    const struct cli_command *command = cli->command;
    const char *names[64];
    size_t count = 0;
    const struct cli_option *lists[] = {command ? command->options : NULL, cli->program->options};
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(text, "="), text);
    for (size_t i = 0; i < 2; i++)
        for (const struct cli_option *o = lists[i]; o && o->name && count < 62; o++)
            names[count++] = o->name;
    if (command && command->formats)
        names[count++] = cli_format_option()->name;
    names[count] = NULL;
    const char *near = strncmp(word, "--", 2) == 0 ? cli_suggest(word + 2, names) : NULL;
    const char *of = command ? command->name : NULL;
    error_set(err, -EINVAL, "unknown option '%.100s'%s%s%s%s", text, of ? " of " : "",
              of ? cli->program->name : "", of ? " " : "", of ? of : "");
    if (near) {
        size_t used = strlen(err->message);
        snprintf(err->message + used, sizeof err->message - used, ": did you mean --%s?", near);
    }
    return -EINVAL;
}

static int unknown_command(const struct cli_program *program, const char *text, struct error *err)
{
    const char *names[64];
    size_t count = 0;
    const char *elsewhere = program->elsewhere ? program->elsewhere(text) : NULL;
    if (elsewhere)
        return error_set(err, -EINVAL, "%.100s: %s", text, elsewhere);
    for (const struct cli_command *const *c = program->commands; *c && count < 63; c++)
        names[count++] = (*c)->name;
    names[count] = NULL;
    const char *near = cli_suggest(text, names);
    if (near)
        return error_set(err, -EINVAL, "unknown command '%.100s': did you mean '%s'?", text, near);
    return error_set(err, -EINVAL, "unknown command '%.100s'", text);
}

static int take_option(struct cli *cli, const struct cli_option *option, const char *value, struct error *err)
{
    if (cli->given_count == CLI_OPTIONS_MAX)
        return error_set(err, -EINVAL, "more than %d options", CLI_OPTIONS_MAX);
    for (size_t i = 0; i < cli->given_count; i++)
        if (cli->given[i].option == option && !option->repeat && value)
            return error_set(err, -EINVAL, "--%s is given twice", option->name);
    if (value && check_value(option->kind, value, err) < 0)
        return error_context(err, "--%s", option->name);
    cli->given[cli->given_count++] = (struct cli_given){option, value};
    return 0;
}

/* The option at argv[*at]; moves on over its value. */
static int parse_option(struct cli *cli, int argc, char **argv, int *at, struct error *err)
{
    const char *text = argv[*at], *value = NULL;
    const struct cli_option *option;
    if (text[1] == '-') {
        size_t length = strcspn(text + 2, "=");
        option = find_option(cli, text + 2, length, 0);
        if (text[2 + length] == '=')
            value = text + 2 + length + 1;
        if (option && !option->argument && value)
            return error_set(err, -EINVAL, "--%s takes no value", option->name);
    } else {
        option = find_option(cli, NULL, 0, text[1]);
        if (option && option->argument && text[2])
            value = text + 2;
        else if (option && text[2])
            return error_set(err, -EINVAL, "-%c takes no value: write '%.100s' apart", text[1], text + 2);
    }
    if (!option)
        return unknown_option(cli, text, err);
    if (option->argument && !value) {
        if (*at + 1 >= argc)
            return error_set(err, -EINVAL, "--%s needs a value: --%s %s", option->name, option->name,
                             option->argument);
        value = argv[++*at];
        if (value[0] == '-' && value[1] == '-' && find_option(cli, value + 2, strcspn(value + 2, "="), 0))
            return error_set(err, -EINVAL, "--%s needs a value before %.100s: --%s %s", option->name, value,
                             option->name, option->argument);
    }
    return take_option(cli, option, value, err);
}

static int take_operand(struct cli *cli, const char *text, struct error *err)
{
    const struct cli_operand *operand = cli->command->operands;
    size_t i = 0;
    for (; operand && operand->name && !operand->repeat && i < cli->operand_count; i++)
        operand++;
    if (!operand || !operand->name || cli->operand_count == CLI_OPERANDS_MAX) {
        const struct cli_option *o = cli->command->options;
        if (!cli->command->operands && o && o->required && o->kind == CLI_KIND_FILE)
            return error_set(err, -EINVAL, "unexpected '%.100s': did you mean -%c %.100s?", text, o->letter,
                             text);
        return error_set(err, -EINVAL, "unexpected '%.100s'", text);
    }
    if (check_value(operand->kind, text, err) < 0)
        return error_context(err, "%s", operand->name);
    cli->operands[cli->operand_count++] = text;
    return 0;
}

int cli_options_settle_socket(struct cli *cli, struct error *err)
{
    const char *state = cli_options_value(cli, "state", CONTROL_STATE_DIRECTORY_DEFAULT);
    const char *socket = cli_options_value(cli, "socket", NULL);
    cli->state_directory = state;
    int n = socket ? snprintf(cli->socket_path, sizeof cli->socket_path, "%s", socket)
                   : snprintf(cli->socket_path, sizeof cli->socket_path, "%s/%s", state, CONTROL_SOCKET_NAME);
    if (n >= (int)sizeof cli->socket_path)
        return error_set(err, -EINVAL, "the path of the socket is too long");
    return 0;
}

static int settle(struct cli *cli, struct error *err)
{
    const char *format = cli_options_value(cli, "output", "table");
    cli->format = strcmp(format, "json") == 0   ? CLI_FORMAT_JSON
                  : strcmp(format, "yaml") == 0 ? CLI_FORMAT_YAML
                                                : CLI_FORMAT_TABLE;
    cli->quiet = cli_options_flag(cli, "quiet");
    cli->help = cli_options_flag(cli, "help");
    int r = cli_options_settle_socket(cli, err);
    if (r < 0 || cli->help || !cli->command)
        return r;
    size_t i = 0;
    for (const struct cli_operand *o = cli->command->operands; o && o->name; o++, i++)
        if (!o->optional && i >= cli->operand_count)
            return error_set(err, -EINVAL, "%s is missing", o->name);
    for (const struct cli_option *o = cli->command->options; o && o->name; o++)
        if (o->required && !cli_options_flag(cli, o->name))
            return error_set(err, -EINVAL, "--%s %s is missing", o->name, o->argument);
    return 0;
}

int cli_options_parse(struct cli *ret, const struct cli_program *program, int argc, char **argv,
                      struct error *err)
{
    bool options_end = false;
    *ret = (struct cli){.program = program};
    for (int at = 1; at < argc; at++) {
        const char *text = argv[at];
        int r = 0;
        if (!options_end && strcmp(text, "--") == 0) {
            options_end = true;
        } else if (!options_end && text[0] == '-' && text[1]) {
            if (!ret->command && strcmp(text, "--version") == 0)
                ret->command = cli_find_command(program, "version");
            else
                r = parse_option(ret, argc, argv, &at, err);
        } else if (!ret->command) {
            ret->command = cli_find_command(program, text);
            if (!ret->command)
                r = unknown_command(program, text, err);
        } else {
            r = take_operand(ret, text, err);
        }
        if (r < 0)
            return r;
    }
    return settle(ret, err);
}

const char *cli_options_nth(const struct cli *cli, const char *name, size_t nth)
{
    for (size_t i = 0; i < cli->given_count; i++)
        if (strcmp(cli->given[i].option->name, name) == 0 && nth-- == 0)
            return cli->given[i].value ? cli->given[i].value : "";
    return NULL;
}

bool cli_options_flag(const struct cli *cli, const char *name)
{
    return cli_options_nth(cli, name, 0) != NULL;
}

const char *cli_options_value(const struct cli *cli, const char *name, const char *fallback)
{
    const char *value = cli_options_nth(cli, name, 0);
    return value ? value : fallback;
}

int cli_options_absolute(const char *path, char ret_path[CLI_PATH_BYTES], struct error *err)
{
    _cleanup_free_ char *here = NULL;
    int n;
    if (*path == '/') {
        n = snprintf(ret_path, CLI_PATH_BYTES, "%s", path);
    } else {
        here = get_current_dir_name();
        if (!here)
            return error_errno(err, -errno, "cannot tell the current directory");
        n = snprintf(ret_path, CLI_PATH_BYTES, "%s/%s", here, path);
    }
    if (n >= CLI_PATH_BYTES)
        return error_set(err, -ENAMETOOLONG, "the path '%.100s…' is too long", path);
    return 0;
}
