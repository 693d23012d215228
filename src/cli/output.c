/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

const char *cli_output_colour(bool enabled, enum cli_colour colour)
{
    static const char *const escapes[] = {"\033[0m", "\033[1m", "\033[32m", "\033[33m", "\033[31m"};
    return enabled ? escapes[colour] : "";
}

void cli_output_clean(char *text)
{
    char *to = text;
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)p[0], next = (unsigned char)p[1];
        bool two = c == 0xc2 && next >= 0x80 && next < 0xa0; /* C1: U+009B alone begins what ESC [ does */
        *to++ = (c < 0x20 && c != '\n') || c == 0x7f || two ? '?' : *p;
        p += two;
    }
    *to = '\0';
}

static void put_message(const struct cli *cli, enum cli_colour colour, const char *remedy, const char *format,
                        va_list args)
{
    char message[2 * ERROR_MESSAGE_BYTES];
    vsnprintf(message, sizeof message, format, args);
    fflush(stdout);
    fprintf(stderr, "%stidemark:%s ", cli_output_colour(cli->colour_err, colour),
            cli_output_colour(cli->colour_err, CLI_COLOUR_NONE));
    cli_output_clean(message);
    fputs(message, stderr);
    fputc('\n', stderr);
    if (remedy)
        fprintf(stderr, "  %s\n", remedy);
}

enum cli_exit cli_output_fail(const struct cli *cli, enum cli_exit code, const char *remedy,
                              const char *format, ...)
{
    va_list args;
    va_start(args, format);
    put_message(cli, CLI_COLOUR_RED, remedy, format, args);
    va_end(args);
    return code;
}

void cli_output_note(const struct cli *cli, const char *format, ...)
{
    if (cli->quiet)
        return;
    va_list args;
    va_start(args, format);
    put_message(cli, CLI_COLOUR_BOLD, NULL, format, args);
    va_end(args);
}

void cli_output_say(const struct cli *cli, const char *format, ...)
{
    _cleanup_free_ char *text = NULL;
    if (cli->quiet)
        return;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&text, format, args);
    va_end(args);
    if (n < 0) {
        text = NULL;
        return;
    }
    cli_output_clean(text);
    fputs(text, stdout);
    fputc('\n', stdout);
}

enum cli_exit cli_output_value(const struct cli *cli, const json_t *json)
{
    struct error err = ERROR_INIT;
    if (cli->format == CLI_FORMAT_YAML) {
        if (cli_yaml_write(json, stdout, &err) < 0)
            return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s", err.message);
        return CLI_EXIT_OK;
    }
    _cleanup_free_ char *text = json_to_pretty_text(json);
    if (!text)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "cannot write the answer as JSON: out of memory");
    fputs(text, stdout);
    return CLI_EXIT_OK;
}

bool cli_output_can_ask(const struct cli *cli)
{
    return cli->terminal_err && isatty(STDIN_FILENO);
}

bool cli_output_confirm(const char *question)
{
    char answer[16] = "";
    fflush(stdout);
    fprintf(stderr, "%s [y/N] ", question);
    fflush(stderr);
    if (!fgets(answer, sizeof answer, stdin))
        return false;
    answer[strcspn(answer, "\n")] = '\0';
    return strcasecmp(answer, "y") == 0 || strcasecmp(answer, "yes") == 0;
}
