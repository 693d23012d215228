/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli_internal.h"
#include "control/control.h"

static void ready(void *context, const char *socket_path)
{
    const struct cli *cli = context;
    cli_service_notify("READY=1");
    cli_output_note(cli, "up: everything is attached, the API answers on %s", socket_path);
}

static enum cli_exit run(struct cli *cli)
{
    struct error err = ERROR_INIT;
    char state[CLI_PATH_BYTES], socket_path[CLI_PATH_BYTES];
    const struct log log = {
        .fd = STDERR_FILENO, .level = cli_service_level(cli), .name = "up"};
    if (cli_service_paths(cli, state, socket_path, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "up: %s", err.message);
    const struct control_options options = {
        .state_directory = state,
        .socket_path = socket_path,
        .metrics_address = cli_options_value(cli, "metrics", NULL),
        .log = &log,
        .ready = ready,
        .context = cli,
    };
    int r = control_up(&options, &err);
    if (r == -EPERM || r == -EACCES)
        return cli_output_fail(cli, CLI_EXIT_FAILED,
                               "volumes are attached and mounted by root: try it with sudo", "up: %s",
                               err.message);
    if (r == -EALREADY)
        return cli_output_fail(cli, CLI_EXIT_REFUSED,
                               "one `tidemark up` a state directory; another one takes --state DIR", "up: %s",
                               err.message);
    if (r == -EBUSY)
        return cli_output_fail(cli, CLI_EXIT_REFUSED,
                               "what could not be stopped goes on, and the next `tidemark up` takes it over", "up: %s",
                               err.message);
    if (r < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "up: %s", err.message);
    return CLI_EXIT_OK;
}

const struct cli_command cli_up = {
    .name = "up",
    .summary = "attach and protect the applications, serve the API",
    .description = "Runs in the foreground: starts an engine for each application that was applied,\n"
                   "attaches and mounts its volumes, journals its manifests and serves the API on a\n"
                   "Unix socket. What was there before a stop or a reboot comes back. Needs root.\n"
                   "SIGTERM or Ctrl-C stop it cleanly; a second one forces. Under systemd it reports\n"
                   "when it is ready (Type=notify).",
    .options =
        (const struct cli_option[]){
            {"metrics", 0, CLI_KIND_TEXT, "HOST:PORT",
             .help = "serve Prometheus metrics there by TCP as well"},
            {"log-level", 0, CLI_KIND_LEVEL, "LEVEL",
             .help = "error, warning, info (default) or debug, to stderr"},
            {0},
        },
    .examples = (const char *const[]){"tidemark up",
                                      "tidemark up --state /data/tidemark --metrics 127.0.0.1:9180", NULL},
    .run = run,
};
