/* SPDX-License-Identifier: Apache-2.0 */
/* The way to the cluster, and what its refusals mean to a person. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "cli/kubectl_internal.h"
#include "kube/discovery.h"

#define GROUP_PATH "/apis/tidemark.io/v1alpha1"
#define RELEASE_TIMEOUT_MS 3000u

const struct kube_resource kubectl_applications = {
    "tidemark.io", "v1alpha1", "protectedapplications", "ProtectedApplication", true, 0};
const struct kube_resource kubectl_recoveries = {"tidemark.io", "v1alpha1", "recoveries",
                                                 "Recovery",    true,       0};
const struct kube_resource kubectl_checkpoints = {"tidemark.io", "v1alpha1", "checkpoints",
                                                  "Checkpoint",  true,       0};
const struct kube_resource kubectl_policies = {"tidemark.io",      "v1alpha1", "protectionpolicies",
                                               "ProtectionPolicy", false,      0};

json_t *kubectl_at(const json_t *object, const char *first, const char *second)
{
    return json_object_get(json_object_get(object, first), second);
}

const json_t *kubectl_condition(const json_t *object, const char *type)
{
    size_t i;
    json_t *condition;
    json_array_foreach(kubectl_at(object, "status", "conditions"), i, condition)
    {
        if (strcmp(cli_field_text(condition, "type", ""), type) == 0)
            return condition;
    }
    return NULL;
}

bool kubectl_answers(struct kube_client *client, unsigned timeout_ms, struct error *err)
{
    const struct kube_request request = {
        .method = "GET", .path = "/version", .timeout_ms = timeout_ms, .once = true};
    int r = kube_call(client, &request, NULL, err);
    return r != -ECONNREFUSED && r != -EHOSTUNREACH && r != -ENETUNREACH;
}

enum cli_exit kubectl_open(struct kubectl *k, const struct cli *cli)
{
    struct error err = ERROR_INIT;
    *k = (struct kubectl){.cli = cli,
                          .log = {.fd = STDERR_FILENO, .level = LOG_LEVEL_ERROR, .name = "kubectl-tidemark"}};
    const struct kube_options options = {.kubeconfig = cli_options_value(cli, "kubeconfig", NULL),
                                         .context = cli_options_value(cli, "context", NULL),
                                         .log = &k->log};
    int r = kube_open(&options, &k->client, &err);
    if (r < 0)
        return cli_output_fail(
            cli, CLI_EXIT_UNREACHABLE,
            "the kubeconfig is that of kubectl: $KUBECONFIG, --kubeconfig, ~/.kube/config; "
            "`kubectl config get-contexts` lists what it has",
            "%s: %s", cli->command->name, err.message);
    k->namespace = cli_options_value(cli, "namespace", kube_namespace(k->client));
    if (!kubectl_answers(k->client, KUBECTL_FIRST_TIMEOUT_MS, &err))
        return kubectl_fail(k, cli->command->name, &err);
    return CLI_EXIT_OK;
}

void kubectl_close(struct kubectl *k)
{
    kube_close(k->client);
    k->client = NULL;
}

/* A 404 may be about the object, or about the kind. */
static bool has_kinds(struct kubectl *k)
{
    struct error ignored = ERROR_INIT;
    const struct kube_request request = {.method = "GET", .path = GROUP_PATH};
    return kube_call(k->client, &request, NULL, &ignored) != -ENOENT;
}

/* Whether it fails because the cluster is too old. */
static bool is_too_old(struct kubectl *k, struct error *ret)
{
    struct kube_release release;
    struct error unused = ERROR_INIT;
    return kube_get_release(k->client, RELEASE_TIMEOUT_MS, &release, &unused) == 0 &&
           kube_check_release(k->client, &release, ret) < 0;
}

/* The server answered, but not as it should. */
static bool was_answered(const struct error *err)
{
    static const int codes[] = {-ENOENT, -EINVAL, -EOPNOTSUPP, -EIO, -EPROTO};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (err->code == codes[i])
            return true;
    return false;
}

enum cli_exit kubectl_fail(struct kubectl *k, const char *what, const struct error *err)
{
    struct error too_old = ERROR_INIT;
    if (was_answered(err) && is_too_old(k, &too_old))
        return cli_output_fail(k->cli, CLI_EXIT_REFUSED, NULL, "%s: %s", what, too_old.message);
    if (strstr(err->message, "failed calling webhook"))
        return cli_output_fail(k->cli, CLI_EXIT_UNREACHABLE,
                               "Tidemark's controller serves the webhook that vouches for who asks: kubectl "
                               "-n " KUBECTL_SYSTEM_NAMESPACE
                               " get pods, and the log of the controller's pod",
                               "%s: %s", what, err->message);
    switch (-err->code) {
    case ENOENT:
        if (!has_kinds(k))
            return cli_output_fail(
                k->cli, CLI_EXIT_NOT_FOUND,
                "install it: helm install tidemark packaging/helm/tidemark -n " KUBECTL_SYSTEM_NAMESPACE
                " --create-namespace; of an upgrade: kubectl apply --server-side -f packaging/crds",
                "%s: the cluster at %s does not know the kinds of tidemark.io: Tidemark is not installed in "
                "it",
                what, kube_server(k->client));
        return cli_output_fail(k->cli, CLI_EXIT_NOT_FOUND, "`kubectl tidemark status` lists what there is",
                               "%s: %s", what, err->message);
    case EACCES:
        return cli_output_fail(
            k->cli, CLI_EXIT_REFUSED,
            "whoever administers the cluster can bind you to the ClusterRole tidemark-viewer "
            "(to look) or tidemark-operator (to tag and recover)",
            "%s: %s", what, err->message);
    case EPERM:
        return cli_output_fail(k->cli, CLI_EXIT_REFUSED,
                               "`kubectl auth whoami` shows who you are to the cluster", "%s: %s", what,
                               err->message);
    case ECONNREFUSED:
    case ECONNRESET:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ETIMEDOUT:
    case EPROTO:
    case EAGAIN:
        return cli_output_fail(
            k->cli, CLI_EXIT_UNREACHABLE,
            "`kubectl cluster-info` asks the same server; --context and --kubeconfig name another", "%s: %s",
            what, err->message);
    case EEXIST:
    case EBUSY:
        return cli_output_fail(k->cli, CLI_EXIT_REFUSED, NULL, "%s: %s", what, err->message);
    default:
        return cli_output_fail(k->cli, CLI_EXIT_FAILED, NULL, "%s: %s", what, err->message);
    }
}

void kubectl_member_of(const struct kubectl *k, const char *text, struct kubectl_member *ret)
{
    const char *at = strchr(text, '@');
    const char *slash = strchr(text, '/');
    int length = at ? (int)(at - text) : (int)strlen(text);
    bool qualified = slash && (!at || slash < at);
    const char *name = qualified ? slash + 1 : text;
    if (qualified)
        snprintf(ret->namespace, sizeof ret->namespace, "%.*s", (int)(slash - text), text);
    else
        snprintf(ret->namespace, sizeof ret->namespace, "%s", k->namespace);
    snprintf(ret->name, sizeof ret->name, "%.*s", length - (int)(name - text), name);
    snprintf(ret->point, sizeof ret->point, "%s", at ? at + 1 : "");
}

int kubectl_list(struct kubectl *k, const struct kube_resource *resource, const char *namespace,
                 json_t **ret_items, struct error *err)
{
    const struct kube_target target = {.resource = resource, .namespace = namespace};
    return kube_list_all(k->client, &target, NULL, ret_items, err);
}

/* The nearest of the applications that can be seen; writes "" when there is none. */
static void suggest(struct kubectl *k, const struct kubectl_member *member, char *text, size_t size)
{
    _cleanup_json_ json_t *items = NULL, *names = json_array();
    struct error ignored = ERROR_INIT;
    const char *candidates[101], *near = NULL;
    char asked[2 * CLI_NAME_BYTES];
    size_t i, count = 0;
    json_t *item;
    text[0] = '\0';
    if (kubectl_list(k, &kubectl_applications, NULL, &items, &ignored) < 0 &&
        kubectl_list(k, &kubectl_applications, member->namespace, &items, &ignored) < 0)
        return;
    json_array_foreach(items, i, item)
    {
        /* The same name elsewhere is the likeliest. */
        if (!near && strcmp(kube_object_name(item), member->name) == 0) {
            snprintf(text, size, "%s/%s", kube_object_namespace(item), kube_object_name(item));
            return;
        }
        json_array_append_new(names,
                              json_sprintf("%s/%s", kube_object_namespace(item), kube_object_name(item)));
    }
    json_array_foreach(names, i, item)
    {
        if (count < 100)
            candidates[count++] = json_string_value(item);
    }
    candidates[count] = NULL;
    snprintf(asked, sizeof asked, "%s/%s", member->namespace, member->name);
    near = cli_suggest(asked, candidates);
    if (near)
        snprintf(text, size, "%s", near);
}

enum cli_exit kubectl_find(struct kubectl *k, const char *what, const struct kubectl_member *member,
                           json_t **ret)
{
    struct error err = ERROR_INIT;
    char near[2 * CLI_NAME_BYTES];
    const struct kube_target target = {
        .resource = &kubectl_applications, .namespace = member->namespace, .name = member->name};
    int r = kube_get(k->client, &target, ret, &err);
    if (r == 0)
        return CLI_EXIT_OK;
    if (r != -ENOENT || !has_kinds(k))
        return kubectl_fail(k, what, &err);
    suggest(k, member, near, sizeof near);
    return cli_output_fail(
        k->cli, CLI_EXIT_NOT_FOUND,
        "`kubectl tidemark status` lists the applications; `kubectl annotate namespace NAMESPACE "
        "tidemark.io/policy=POLICY` protects one",
        "%s: no application %s is protected in namespace %s%s%s%s", what, member->name, member->namespace,
        near[0] ? ": did you mean " : "", near, near[0] ? "?" : "");
}
