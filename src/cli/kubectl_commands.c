/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of `kubectl tidemark`, and those that are about nothing but the program. */
#include <string.h>

#include "cli/kubectl_internal.h"

/* Verbs of one host that a cluster answers in another way. */
static const char *elsewhere(const char *command)
{
    static const char *const hints[][2] = {
        {"apply",
         "in a cluster `kubectl apply -f FILE` does it, or the annotation tidemark.io/policy of a namespace"},
        {"delete",
         "in a cluster take the annotation tidemark.io/policy away: `kubectl annotate namespace NAMESPACE "
         "tidemark.io/policy-`; the history stays"},
        {"policy", "in a cluster policies are objects: `kubectl get protectionpolicies`"},
        {"open", "there are no views in a cluster; `kubectl tidemark clone` makes the application as of a "
                 "point beside it"},
        {"views", "there are no views in a cluster; a clone is a namespace"},
        {"close", "there are no views in a cluster; a clone is thrown away by `kubectl delete namespace`"},
        {"detach", "it is for one host only"},
        {"up", "it is for one host: `tidemark up`"},
    };
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
        if (strcmp(hints[i][0], command) == 0)
            return hints[i][1];
    return NULL;
}

const struct cli_program *cli_program_kubectl(void)
{
    static const struct cli_command *const commands[] = {
        &kubectl_status,  &kubectl_points,
        &kubectl_tag,     &kubectl_diff,
        &kubectl_rewind,  &kubectl_undo,
        &kubectl_clone,   &kubectl_restore,
        &kubectl_cancel,  &kubectl_resume,
        &kubectl_purge,   &kubectl_verify,
        &kubectl_adopt,   &kubectl_release,
        &kubectl_uninstall_check, &kubectl_version,
        &kubectl_completion, &cli_help,
        NULL,
    };
    static const struct cli_option options[] = {
        {"namespace", 'n', CLI_KIND_NAMESPACE, "NAMESPACE",
         .help = "of what is given as NAME alone (default: the context's)"},
        {"context", 0, CLI_KIND_TEXT, "NAME", .help = "context of the kubeconfig (default: its current one)"},
        {"kubeconfig", 0, CLI_KIND_FILE, "FILE",
         .help = "as kubectl's (default $KUBECONFIG, else ~/.kube/config)"},
        {"no-color", 0, CLI_KIND_NONE, NULL,
         .help = "no colours (also without a terminal, and when NO_COLOR is set)"},
        {"quiet", 'q', CLI_KIND_NONE, NULL, .help = "only results and errors: no progress, no notes"},
        {"help", 'h', CLI_KIND_NONE, NULL, .help = "show the help of this command"},
        {0},
    };
    static const struct cli_program program = {
        .name = "kubectl tidemark",
        .summary = "protect, rewind, clone and restore the applications of a cluster",
        .commands = commands,
        .options = options,
        .unreachable = "the cluster, or Tidemark's controller in it, cannot be reached",
        .elsewhere = elsewhere,
        .more = "`kubectl tidemark help COMMAND` tells more about one; begin with `kubectl tidemark status`.",
        .complete = kubectl_completion_ask,
    };
    return &program;
}

/* ---- version ---- */

static enum cli_exit run_version(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k = {0};
    _cleanup_json_ json_t *server = NULL;
    struct error ignored = ERROR_INIT;
    const struct kube_options options = {.kubeconfig = cli_options_value(cli, "kubeconfig", NULL),
                                         .context = cli_options_value(cli, "context", NULL),
                                         .log = &(const struct log){.fd = -1}};
    const struct kube_request request = {
        .method = "GET", .path = "/version", .timeout_ms = 3000, .once = true};
    if (kube_open(&options, &k.client, &ignored) == 0 && kube_call(k.client, &request, &server, &ignored) < 0)
        server = NULL;
    if (cli->format != CLI_FORMAT_TABLE) {
        _cleanup_json_ json_t *both = json_pack("{s:s, s:o}", "version", TIDEMARK_VERSION, "kubernetes",
                                                server ? json_incref(server) : json_null());
        return both ? cli_output_value(cli, both) : CLI_EXIT_FAILED;
    }
    printf("tidemark %s\n", TIDEMARK_VERSION);
    if (server)
        cli_output_say(cli, "Kubernetes %s at %s", cli_field_text(server, "gitVersion", "?"),
                       kube_server(k.client));
    else
        cli_output_say(cli, "the API server does not answer: %s", ignored.message);
    return CLI_EXIT_OK;
}

const struct cli_command kubectl_version = {
    .name = "version",
    .summary = "the version of this program and of the cluster",
    .description = "Tells the version of this program, and of the API server when it can be reached.",
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark version", "kubectl tidemark version -o json", NULL},
    .run = run_version,
};
