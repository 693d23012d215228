/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli_internal.h"
#include "csi/csi.h"

#define NODES_MAX 16u

static int wait_for_signal(void)
{
    sigset_t stop;
    int number = 0;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigwait(&stop, &number);
    return number;
}

static void block_signals(void)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static enum cli_exit run(struct cli *cli)
{
    struct error err = ERROR_INIT;
    char state[CLI_PATH_BYTES], records[CLI_PATH_BYTES + 16], csi_socket[CLI_PATH_BYTES];
    const char *nodes[NODES_MAX + 1] = {NULL};
    const struct log log = {.fd = STDERR_FILENO, .level = cli_service_level(cli), .name = "controller"};
    if (cli_options_absolute(cli->state_directory, state, &err) < 0 ||
        cli_options_absolute(cli_options_value(cli, "csi-socket", ""), csi_socket, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "controller: %s", err.message);
    snprintf(records, sizeof records, "%s/volumes", state);
    for (size_t i = 0; i < NODES_MAX; i++)
        nodes[i] = cli_options_nth(cli, "node", i);
    const struct csi_controller_options options = {
        .socket_path = csi_socket,
        .records = &csi_records_directory,
        .records_context = records,
        .nodes = nodes[0] ? nodes : NULL,
        .log = &log,
    };
    struct csi_controller *controller;
    block_signals();
    if (csi_controller_start(&options, &controller, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "controller: %s", err.message);
    cli_service_notify("READY=1");
    cli_output_note(cli, "controller: CSI answers on %s", csi_socket);
    log_info(&log, "%s: stopping", strsignal(wait_for_signal()));
    if (!csi_controller_stop(controller))
        _exit(CLI_EXIT_FAILED); /* a call is stuck: nothing can be freed under it */
    return CLI_EXIT_OK;
}

const struct cli_command cli_controller = {
    .name = "controller",
    .summary = "in a cluster: the CSI controller service",
    .description = "Runs in the foreground: creates, attaches, grows and deletes volumes (CSI driver\n"
                   "csi.tidemark.io, services Identity and Controller) for the sidecars\n"
                   "external-provisioner, external-attacher and external-resizer. What it knows of the\n"
                   "volumes is kept in volumes/ below the state directory. SIGTERM ends it.",
    .options =
        (const struct cli_option[]){
            {"csi-socket", 0, CLI_KIND_FILE, "PATH", .help = "socket for the sidecars", .required = true},
            {"node", 0, CLI_KIND_TEXT, "NAME", .help = "a node there is (default: any name is taken)",
             .repeat = true},
            {"log-level", 0, CLI_KIND_LEVEL, "LEVEL",
             .help = "error, warning, info (default) or debug, to stderr"},
            {0},
        },
    .examples =
        (const char *const[]){
            "tidemark controller --csi-socket /csi/csi.sock --state /var/lib/tidemark-controller", NULL},
    .run = run,
};
