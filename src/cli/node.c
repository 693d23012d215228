/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <unistd.h>

#include "cli/cli_internal.h"
#include "csi/csi.h"

static void ready(void *context)
{
    const struct cli *cli = context;
    cli_service_notify("READY=1");
    cli_output_note(cli, "node: CSI answers on %s", cli_options_value(cli, "csi-socket", ""));
}

static enum cli_exit run(struct cli *cli)
{
    struct error err = ERROR_INIT;
    char state[CLI_PATH_BYTES], csi_socket[CLI_PATH_BYTES], data_socket[CLI_PATH_BYTES];
    const struct log log = {.fd = STDERR_FILENO, .level = cli_service_level(cli), .name = "node"};
    if (cli_options_absolute(cli->state_directory, state, &err) < 0 ||
        cli_options_absolute(cli_options_value(cli, "csi-socket", ""), csi_socket, &err) < 0 ||
        cli_options_absolute(cli_options_value(cli, "data-socket", cli->socket_path), data_socket, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "node: %s", err.message);
    const struct csi_node_options options = {
        .socket_path = csi_socket,
        .data_socket = data_socket,
        .state_directory = state,
        .node_name = cli_options_value(cli, "node-name", ""),
        .kubelet_directory = cli_options_value(cli, "kubelet-directory", NULL),
        .listen_address = cli_options_value(cli, "listen", NULL),
        .tls_certificate = cli_options_value(cli, "tls-cert", NULL),
        .tls_key = cli_options_value(cli, "tls-key", NULL),
        .tls_ca = cli_options_value(cli, "tls-ca", NULL),
        .tls_client = cli_options_value(cli, "tls-client", NULL),
        .log = &log,
        .ready = ready,
        .context = cli,
    };
    int r = csi_node_run(&options, &err);
    if (r == -EINVAL)
        return cli_output_fail(cli, CLI_EXIT_USAGE, NULL, "node: %s", err.message);
    return r < 0 ? cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "node: %s", err.message) : CLI_EXIT_OK;
}

const struct cli_command cli_node = {
    .name = "node",
    .summary = "in a cluster: the CSI node service",
    .description = "Runs in the foreground as one of the processes of a Kubernetes node: stages and\n"
                   "publishes the volumes that `tidemark data` serves, for the kubelet (CSI driver\n"
                   "csi.tidemark.io, services Identity and Node). With --listen, the controller reaches\n"
                   "the node's data API by HTTPS, both sides with certificates, and rewinds streams\n"
                   "there. May be stopped, killed and upgraded at any time: I/O goes on, and what was\n"
                   "begun is carried on. Needs root.",
    .options =
        (const struct cli_option[]){
            {"csi-socket", 0, CLI_KIND_FILE, "PATH", .help = "socket for the kubelet", .required = true},
            {"node-name", 0, CLI_KIND_TEXT, "NAME", .help = "name of this node in the cluster",
             .required = true},
            {"data-socket", 0, CLI_KIND_FILE, "PATH",
             .help = "socket of `tidemark data` (default: as --socket)"},
            {"kubelet-directory", 0, CLI_KIND_FILE, "DIR",
             .help = "the kubelet's directory (default /var/lib/kubelet)"},
            {"listen", 0, CLI_KIND_TEXT, "HOST:PORT", .help = "serve the controller there by HTTPS"},
            {"tls-cert", 0, CLI_KIND_FILE, "FILE", .help = "with --listen: the certificate (PEM)"},
            {"tls-key", 0, CLI_KIND_FILE, "FILE", .help = "with --listen: its key (PEM)"},
            {"tls-ca", 0, CLI_KIND_FILE, "FILE",
             .help = "with --listen: whose client certificates are accepted"},
            {"tls-client", 0, CLI_KIND_TEXT, "NAME",
             .help = "with --listen: the name that they have to be for (default: any)"},
            {"log-level", 0, CLI_KIND_LEVEL, "LEVEL",
             .help = "error, warning, info (default) or debug, to stderr"},
            {0},
        },
    .examples =
        (const char *const[]){
            "tidemark node --csi-socket /csi/csi.sock --data-socket /run/data.sock "
            "--node-name worker-1",
            NULL},
    .run = run,
};
