/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/thread.h"
#include "cli/cli_internal.h"
#include "controller/controller.h"
#include "controller/data_client.h"
#include "controller/webhook.h"
#include "csi/cluster.h"
#include "lib/http_server.h"
#include "lib/json.h"

#define NODES_MAX 16u
#define HEAP_ARENAS 4
#define HEAP_MMAP_BYTES (256 << 10)

/* The reconcilers, in a thread of their own. */
struct reconcilers {
    struct controller_options options; /* with a client of their own */
    atomic_bool stop;
    pthread_t thread;
    bool running;
    struct error err; /* why they ended */
};

struct service {
    struct cli *cli;
    struct log log;
    char state[CLI_PATH_BYTES], csi_socket[CLI_PATH_BYTES], records[CLI_PATH_BYTES + 16];
    const char *nodes[NODES_MAX + 1]; /* ends with NULL */
    struct csi_cluster cluster;
    struct data_client *agents; /* of CSI; NULL: without certificates */
    struct reconcilers reconcilers;
    struct controller_metrics *metrics;
    struct http_server *metrics_server;
    struct history *history;            /* between the webhook, which is asked, and the reconcilers, which know */
    struct kube_client *webhook_client; /* its own: the webhook ends before CSI does */
    struct webhook *webhook;
    struct csi_controller *csi;
};

static void *reconcile(void *context)
{
    struct reconcilers *r = context;
    if (controller_run(&r->options, &r->err) < 0)
        kill(getpid(), SIGTERM); /* the process ends, and tells why */
    return NULL;
}

static void block_signals(sigset_t *ret)
{
    sigemptyset(ret);
    sigaddset(ret, SIGTERM);
    sigaddset(ret, SIGINT);
    sigprocmask(SIG_BLOCK, ret, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int open_client(const struct service *s, struct kube_client **ret, struct error *err)
{
    const struct kube_options options = {.kubeconfig = cli_options_value(s->cli, "kubeconfig", NULL),
                                         .log = &s->log};
    return kube_open(&options, ret, err);
}

/* csi_cluster.release. */
static int release_stream(void *context, const char *node, const char *stream, struct error *err)
{
    char path[CSI_HANDLE_BYTES + 32];
    struct service *s = context;
    _cleanup_json_ json_t *body = json_object();
    snprintf(path, sizeof path, "/v1/streams/%s/release", stream);
    return data_client_call(s->agents, node, "POST", path, body, DATA_TIMEOUT_MS, NULL, err);
}

static int connect_agents(struct service *s, struct error *err)
{
    const struct data_client_options options = {.client = s->cluster.client,
                                                .namespace = s->cluster.namespace,
                                                .records = &csi_records_kube,
                                                .records_context = &s->cluster,
                                                .certificate = cli_options_value(s->cli, "agent-cert", NULL),
                                                .key = cli_options_value(s->cli, "agent-key", NULL),
                                                .ca = cli_options_value(s->cli, "agent-ca", NULL),
                                                .log = &s->log};
    if (!options.certificate || !options.key || !options.ca)
        return 0;
    int r = data_client_new(&options, &s->agents, err);
    if (r < 0)
        return r;
    s->cluster.release = release_stream;
    s->cluster.release_context = s;
    return 0;
}

/* With a cluster: --kubeconfig, or in a pod. */
static int connect_cluster(struct service *s, struct error *err)
{
    if (!cli_options_value(s->cli, "kubeconfig", NULL) && !getenv("KUBERNETES_SERVICE_HOST"))
        return 0;
    s->cluster.namespace = cli_options_value(s->cli, "namespace", CONTROLLER_NAMESPACE);
    s->cluster.attachment_image = cli_options_value(s->cli, "attachment-image", "localhost/tidemark:" TIDEMARK_VERSION);
    s->cluster.log = &s->log;
    int r = open_client(s, &s->cluster.client, err);
    return r == 0 ? connect_agents(s, err) : r;
}

static int start_csi(struct service *s, struct error *err)
{
    bool cluster = s->cluster.client != NULL;
    for (size_t i = 0; i < NODES_MAX; i++)
        s->nodes[i] = cli_options_nth(s->cli, "node", i);
    snprintf(s->records, sizeof s->records, "%s/volumes", s->state);
    const struct csi_controller_options options = {
        .socket_path = s->csi_socket,
        .records = cluster ? &csi_records_kube : &csi_records_directory,
        .records_context = cluster ? (void *)&s->cluster : s->records,
        .cluster = cluster ? &csi_cluster_kube : NULL,
        .cluster_context = &s->cluster,
        .classes = cluster ? &csi_class_kube : NULL,
        .classes_context = &s->cluster,
        .nodes = s->nodes[0] ? s->nodes : NULL,
        .log = &s->log,
    };
    return csi_controller_start(&options, &s->csi, err);
}

static int start_reconcilers(struct service *s, struct error *err)
{
    struct reconcilers *r = &s->reconcilers;
    if (!s->cluster.client)
        return 0;
    r->options = (struct controller_options){
        .state = s->state,
        .namespace = s->cluster.namespace,
        .records = &csi_records_kube,
        .records_context = &s->cluster,
        .classes = s->cluster.release ? &csi_class_kube : NULL,
        .classes_context = &s->cluster,
        .agent_certificate = cli_options_value(s->cli, "agent-cert", NULL),
        .agent_key = cli_options_value(s->cli, "agent-key", NULL),
        .agent_ca = cli_options_value(s->cli, "agent-ca", NULL),
        .log = &s->log,
        .history = s->history,
        .metrics = s->metrics,
        .trust_requester = cli_options_flag(s->cli, "trust-requester"),
        .stop = &r->stop};
    const struct controller_options *o = &r->options;
    if (!o->agent_certificate != !o->agent_key || !o->agent_key != !o->agent_ca)
        return error_set(err, -EINVAL, "--agent-cert, --agent-key and --agent-ca go together: give all of them or none");
    /* Theirs is interrupted when they cease to be the leader: calls of CSI go on then. */
    int result = open_client(s, &r->options.client, err);
    if (result < 0)
        return result;
    result = thread_start(&r->thread, "controller", reconcile, r, err);
    r->running = result == 0;
    return result;
}

static void stop_reconcilers(struct service *s)
{
    struct reconcilers *r = &s->reconcilers;
    atomic_store(&r->stop, true);
    if (s->cluster.client)
        kube_interrupt(s->cluster.client, true);
    if (r->options.client)
        kube_interrupt(r->options.client, true);
    if (r->running)
        pthread_join(r->thread, NULL);
    kube_close(r->options.client);
}

static int start_webhook(struct service *s, struct error *err)
{
    const char *listen = cli_options_value(s->cli, "webhook-listen", NULL);
    if (!listen || !s->cluster.client)
        return 0;
    int r = open_client(s, &s->webhook_client, err);
    if (r < 0)
        return r;
    const struct webhook_options options = {.client = s->webhook_client,
                                            .listen = listen,
                                            .namespace = s->cluster.namespace,
                                            .history = s->history,
                                            .log = &s->log};
    return webhook_start(&options, &s->webhook, err);
}

static void stop_webhook(struct service *s)
{
    webhook_stop(s->webhook);
    kube_close(s->webhook_client);
}

/* Its text alone is served by TCP. */
static int handle_metrics(void *context, const struct http_request *request, struct http_response *response, struct error *err)
{
    (void)request;
    char *text = controller_metrics_text(context);
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    http_response_text(response, 200, "text/plain; version=0.0.4; charset=utf-8", text);
    return 0;
}

static int start_metrics(struct service *s, struct error *err)
{
    const struct http_server_options options = {.tcp_address = cli_options_value(s->cli, "metrics", NULL),
                                                .threads = 1,
                                                .log = &s->log,
                                                .handler = handle_metrics,
                                                .context = s->metrics};
    return options.tcp_address ? http_server_start(&options, &s->metrics_server, err) : 0;
}

static int serve(struct service *s, const sigset_t *stop, struct error *err)
{
    int number = 0;
    int r = connect_cluster(s, err);
    if (r == 0)
        r = history_new(&s->history, err);
    if (r == 0)
        r = controller_metrics_new(&s->metrics, err);
    if (r == 0)
        r = start_metrics(s, err);
    if (r == 0)
        r = start_csi(s, err);
    if (r == 0)
        r = start_webhook(s, err);
    if (r == 0)
        r = start_reconcilers(s, err);
    if (r == 0) {
        cli_service_notify("READY=1");
        cli_output_note(s->cli, "controller: CSI answers on %s", s->csi_socket);
        sigwait(stop, &number);
        log_info(&s->log, "%s: stopping", strsignal(number));
    }
    stop_reconcilers(s);
    stop_webhook(s);
    http_server_stop(s->metrics_server);
    controller_metrics_free(s->metrics);
    history_free(s->history);
    if (!csi_controller_stop(s->csi))
        _exit(CLI_EXIT_FAILED); /* a call is stuck: nothing can be freed under it */
    data_client_free(s->agents);
    kube_close(s->cluster.client);
    if (r == 0 && s->reconcilers.err.code) {
        *err = s->reconcilers.err;
        r = err->code;
    }
    return r;
}

/* What a list leaves behind goes back to the system: without these each thread would have an arena of its
 * own, and one large block that was freed would raise the size up to which blocks stay. */
static void bound_heap(void)
{
    mallopt(M_ARENA_MAX, HEAP_ARENAS);
    mallopt(M_MMAP_THRESHOLD, HEAP_MMAP_BYTES);
    mallopt(M_TRIM_THRESHOLD, HEAP_MMAP_BYTES);
}

static enum cli_exit run(struct cli *cli)
{
    struct error err = ERROR_INIT;
    sigset_t stop;
    struct service service = {
        .cli = cli, .log = {.fd = STDERR_FILENO, .level = cli_service_level(cli), .name = "controller"}};
    bound_heap();
    io_allow_files(); /* many journals are open */
    block_signals(&stop);
    int r = cli_options_absolute(cli->state_directory, service.state, &err);
    if (r == 0)
        r = cli_options_absolute(cli_options_value(cli, "csi-socket", ""), service.csi_socket, &err);
    if (r == 0)
        r = serve(&service, &stop, &err);
    return r < 0 ? cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "controller: %s", err.message) : CLI_EXIT_OK;
}

const struct cli_command cli_controller = {
    .name = "controller",
    .summary = "in a cluster: the CSI controller service and the reconcilers",
    .description = "Runs in the foreground: creates, attaches, grows and deletes volumes (CSI driver\n"
                   "csi.tidemark.io, services Identity and Controller) for the sidecars\n"
                   "external-provisioner, external-attacher and external-resizer; and, as the leader\n"
                   "by Lease, reconciles what is protected and journals its objects below the state\n"
                   "directory. In a pod, or with --kubeconfig, the records of volumes are ConfigMaps of\n"
                   "its namespace; without a cluster they are files in volumes/ below the state\n"
                   "directory, and there are no reconcilers. With --webhook-listen it answers the API\n"
                   "server's admission reviews over HTTPS, on every replica. SIGTERM ends it.",
    .options =
        (const struct cli_option[]){
            {"csi-socket", 0, CLI_KIND_FILE, "PATH", .help = "socket for the sidecars", .required = true},
            {"kubeconfig", 0, CLI_KIND_FILE, "FILE",
             .help = "how to reach the cluster (default: as a pod in it)"},
            {"namespace", 0, CLI_KIND_TEXT, "NAME",
             .help = "the driver's namespace (default tidemark-system)"},
            {"agent-cert", 0, CLI_KIND_FILE, "FILE",
             .help = "certificate for the node agents (PEM); without it volumes are not put back"},
            {"agent-key", 0, CLI_KIND_FILE, "FILE", .help = "with --agent-cert: its key"},
            {"agent-ca", 0, CLI_KIND_FILE, "FILE",
             .help = "with --agent-cert: CA of the agents (they are tidemark-node)"},
            {"attachment-image", 0, CLI_KIND_TEXT, "IMAGE",
             .help = "image of the pods that bring volumes of backing class to a node"},
            {"node", 0, CLI_KIND_TEXT, "NAME", .help = "without a cluster: a node there is (default: any)",
             .repeat = true},
            {"webhook-listen", 0, CLI_KIND_TEXT, "ADDRESS:PORT",
             .help = "serve the admission webhook there; without it no Recovery runs"},
            {"metrics", 0, CLI_KIND_TEXT, "HOST:PORT", .help = "serve Prometheus metrics there (GET /metrics)"},
            {"trust-requester", 0, CLI_KIND_NONE, NULL,
             .help = "for tests: believe what a Recovery says of who asked, without webhook"},
            {"log-level", 0, CLI_KIND_LEVEL, "LEVEL",
             .help = "error, warning, info (default) or debug, to stderr"},
            {0},
        },
    .examples =
        (const char *const[]){
            "tidemark controller --csi-socket /csi/csi.sock --state /var/lib/tidemark-controller", NULL},
    .run = run,
};
