/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli_internal.h"

static void settle_colours(struct cli *cli)
{
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    bool wanted = !(no_color && *no_color) && !(term && strcmp(term, "dumb") == 0) &&
                  !cli_options_flag(cli, "no-color");
    cli->terminal_err = isatty(STDERR_FILENO);
    cli->colour_out = wanted && isatty(STDOUT_FILENO);
    cli->colour_err = wanted && cli->terminal_err;
}

static enum cli_exit usage_error(const struct cli *cli, const struct error *err)
{
    char remedy[128];
    if (cli->command)
        snprintf(remedy, sizeof remedy, "`tidemark help %s` shows its usage", cli->command->name);
    else
        snprintf(remedy, sizeof remedy, "`tidemark help` lists the commands");
    return cli_output_fail(cli, CLI_EXIT_USAGE, remedy, "%s%s%s", cli->command ? cli->command->name : "",
                           cli->command ? ": " : "", err->message);
}

/* A full disk or a closed pipe behind stdout must not pass for success. */
static enum cli_exit finish(const struct cli *cli, enum cli_exit code)
{
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == CLI_EXIT_OK)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "cannot write the output: %s", strerror(errno));
    return code;
}

int main(int argc, char **argv)
{
    struct cli cli;
    struct error err = ERROR_INIT;
    setlocale(LC_CTYPE, "");
    int r = cli_options_parse(&cli, argc, argv, &err);
    settle_colours(&cli);
    if (r < 0)
        return usage_error(&cli, &err);
    if (!cli.command) {
        if (cli.help)
            cli_help_all(stdout);
        else
            cli_help_short(stderr);
        return finish(&cli, cli.help ? CLI_EXIT_OK : CLI_EXIT_USAGE);
    }
    if (cli.help) {
        cli_help_command(cli.command, stdout);
        return finish(&cli, CLI_EXIT_OK);
    }
    return finish(&cli, cli.command->run(&cli));
}
