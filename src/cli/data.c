/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <unistd.h>

#include "cli/cli_internal.h"
#include "control/control.h"

static void ready(void *context, const char *socket_path)
{
    const struct cli *cli = context;
    cli_service_notify("READY=1");
    cli_output_note(cli, "data: the API answers on %s", socket_path);
}

static enum cli_exit run(struct cli *cli)
{
    struct error err = ERROR_INIT;
    char state[CLI_PATH_BYTES], socket_path[CLI_PATH_BYTES];
    const struct log log = {.fd = STDERR_FILENO, .level = cli_service_level(cli), .name = "data"};
    if (cli_service_paths(cli, state, socket_path, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "data: %s", err.message);
    const struct control_options options = {
        .state_directory = state,
        .socket_path = socket_path,
        .metrics_address = cli_options_value(cli, "metrics", NULL),
        .wait_for_users = true,
        .log = &log,
        .ready = ready,
        .context = cli,
    };
    int r = control_up(&options, &err);
    if (r == -EALREADY)
        return cli_output_fail(cli, CLI_EXIT_REFUSED,
                               "one data plane a state directory; another one takes --state DIR", "data: %s",
                               err.message);
    return r < 0 ? cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "data: %s", err.message) : CLI_EXIT_OK;
}

const struct cli_command cli_data = {
    .name = "data",
    .summary = "in a cluster: the data plane of a node",
    .description = "Runs in the foreground as one of the processes of a Kubernetes node: as `tidemark\n"
                   "up`, it runs an engine for each stream and serves the API, but what it attaches is\n"
                   "mounted by others (`tidemark node`). Needs root. SIGTERM waits until nobody uses a\n"
                   "volume any more, then stops the engines; a second signal forces.",
    .options =
        (const struct cli_option[]){
            {"metrics", 0, CLI_KIND_TEXT, "HOST:PORT",
             .help = "serve Prometheus metrics there by TCP as well"},
            {"log-level", 0, CLI_KIND_LEVEL, "LEVEL",
             .help = "error, warning, info (default) or debug, to stderr"},
            {0},
        },
    .examples =
        (const char *const[]){"tidemark data --state /var/lib/tidemark --socket /run/tidemark/data.sock",
                              NULL},
    .run = run,
};
