/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/kubectl_internal.h"

static unsigned columns_of(int fd)
{
    struct winsize size;
    return ioctl(fd, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

static void settle_terminal(struct cli *cli)
{
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    bool wanted = !(no_color && *no_color) && !(term && strcmp(term, "dumb") == 0) &&
                  !cli_options_flag(cli, "no-color");
    cli->terminal_err = isatty(STDERR_FILENO);
    cli->colour_out = wanted && isatty(STDOUT_FILENO);
    cli->colour_err = wanted && cli->terminal_err;
    cli->columns_out = columns_of(STDOUT_FILENO);
    cli->columns_err = columns_of(STDERR_FILENO);
}

static enum cli_exit usage_error(const struct cli *cli, const struct error *err)
{
    char remedy[128];
    if (cli->command)
        snprintf(remedy, sizeof remedy, "`%s help %s` shows its usage", cli->program->name,
                 cli->command->name);
    else
        snprintf(remedy, sizeof remedy, "`%s help` lists the commands", cli->program->name);
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

/* The name that the binary was started by: packages install links. */
static const char *name_of(const char *argv0)
{
    const char *slash = strrchr(argv0 ? argv0 : "", '/');
    return slash ? slash + 1 : argv0 ? argv0 : "";
}

int main(int argc, char **argv)
{
    struct cli cli;
    const char *name = name_of(argc > 0 ? argv[0] : NULL);
    bool plugin = strcmp(name, "kubectl-tidemark") == 0;
    const struct cli_program *program = plugin ? cli_program_kubectl() : cli_program_tidemark();
    if (strcmp(name, "kubectl_complete-tidemark") == 0)
        return cli_complete(cli_program_kubectl(), argc, argv);
    if (argc > 1 && strcmp(argv[1], "__complete") == 0)
        return cli_complete(program, argc - 1, argv + 1);
    struct error err = ERROR_INIT;
    setlocale(LC_CTYPE, "");
    int r = cli_options_parse(&cli, program, argc, argv, &err);
    settle_terminal(&cli);
    if (r < 0)
        return usage_error(&cli, &err);
    if (!cli.command) {
        if (cli.help)
            cli_help_all(program, stdout);
        else
            cli_help_short(program, stderr);
        return finish(&cli, cli.help ? CLI_EXIT_OK : CLI_EXIT_USAGE);
    }
    if (cli.help) {
        cli_help_command(program, cli.command, stdout);
        return finish(&cli, CLI_EXIT_OK);
    }
    return finish(&cli, cli.command->run(&cli));
}
