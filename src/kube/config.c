/* SPDX-License-Identifier: Apache-2.0 */
/* Where the server is and who we are: kubeconfig (contexts; certificates inline or as files; tokens; exec
 * plugins), or a pod's service account. Secret values never appear in messages. */
#include <errno.h>
#include <limits.h>
#include <openssl/evp.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "kube/kube_internal.h"
#include "lib/yaml.h"

#define SERVICE_ACCOUNT "/var/run/secrets/kubernetes.io/serviceaccount"

static void release_blob(struct kube_blob *blob)
{
    if (blob->data)
        explicit_bzero(blob->data, blob->length_bytes);
    free(blob->data);
}

void kube_config_release(struct kube_config *c)
{
    char *texts[] = {c->server,           c->namespace,          c->tls_name,    c->proxy,      c->ca_file,
                     c->certificate_file, c->key_file,           c->token,       c->token_file, c->username,
                     c->password,         c->plugin.api_version, c->plugin.hint, c->as};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        free(texts[i]);
    release_blob(&c->ca);
    release_blob(&c->certificate);
    release_blob(&c->key);
    for (char **p = c->plugin.argv; *p; p++)
        free(*p);
    for (char **p = c->plugin.environment; *p; p++)
        free(*p);
    *c = (struct kube_config){0};
}

int kube_base64_decode(const char *name, const char *text, struct kube_blob *ret, struct error *err)
{
    size_t length = strlen(text);
    while (length && (text[length - 1] == '\n' || text[length - 1] == ' '))
        length--;
    if (length % 4 || length > INT_MAX)
        return error_set(err, -EINVAL, "%s is not base64: its length is not a multiple of 4", name);
    char *data = malloc(length / 4 * 3 + 1);
    if (!data)
        return error_errno(err, -ENOMEM, "%s", name);
    int decoded = EVP_DecodeBlock((unsigned char *)data, (const unsigned char *)text, (int)length);
    if (decoded < 0) {
        free(data);
        return error_set(err, -EINVAL, "%s is not base64", name);
    }
    for (size_t i = length; i > 0 && text[i - 1] == '='; i--)
        decoded--;
    if (decoded < 0)
        decoded = 0;
    data[decoded] = '\0';
    *ret = (struct kube_blob){data, (size_t)decoded};
    return 0;
}

static int copy_text(const char *text, char **ret, struct error *err)
{
    if (!text)
        return 0;
    char *copy = strdup(text);
    if (!copy)
        return error_errno(err, -ENOMEM, "kubeconfig");
    free(*ret);
    *ret = copy;
    return 0;
}

static int get_text(const struct yaml_node *node, const char *key, char **ret, struct error *err)
{
    const char *text = NULL;
    int r = yaml_get_optional_string(node, key, &text, err);
    return r < 0 || !text || !*text ? r : copy_text(text, ret, err);
}

/* Paths are relative to the kubeconfig's directory. */
static int get_path(const struct yaml_node *node, const char *key, const char *config_path, char **ret,
                    struct error *err)
{
    const char *text = NULL;
    int r = yaml_get_optional_string(node, key, &text, err);
    if (r < 0 || !text || !*text)
        return r;
    const char *slash = strrchr(config_path, '/');
    if (text[0] == '/' || !slash)
        return copy_text(text, ret, err);
    char *path = NULL;
    if (asprintf(&path, "%.*s/%s", (int)(slash - config_path), config_path, text) < 0)
        return error_errno(err, -ENOMEM, "kubeconfig");
    free(*ret);
    *ret = path;
    return 0;
}

static int get_data(const struct yaml_node *node, const char *key, struct kube_blob *ret, struct error *err)
{
    const char *text = NULL;
    int r = yaml_get_optional_string(node, key, &text, err);
    if (r < 0 || !text || !*text)
        return r;
    return kube_base64_decode(key, text, ret, err);
}

/* The entry `name` of the list `section`, and in it the mapping `key`. */
static int find_entry(const struct yaml_node *root, const char *section, const char *key, const char *name,
                      const struct yaml_node **ret, struct error *err)
{
    const struct yaml_node *list = NULL;
    int r = yaml_get_sequence(root, section, &list, err);
    for (size_t i = 0; r == 0 && i < list->count; i++) {
        const char *entry = yaml_text(yaml_lookup(list->items[i], "name"));
        if (entry && strcmp(entry, name) == 0)
            return yaml_get_mapping(list->items[i], key, ret, err);
    }
    if (r < 0)
        return r;
    return error_set(err, -ENOENT, "%s has no %s '%s' in its list '%s'", root->file, key, name, section);
}

static int read_cluster(const struct yaml_node *cluster, const char *path, struct kube_config *c,
                        struct error *err)
{
    const char *server = NULL;
    int r = yaml_get_string(cluster, "server", &server, err);
    if (r < 0 || (r = copy_text(server, &c->server, err)) < 0 ||
        (r = get_path(cluster, "certificate-authority", path, &c->ca_file, err)) < 0 ||
        (r = get_data(cluster, "certificate-authority-data", &c->ca, err)) < 0 ||
        (r = yaml_get_optional_bool(cluster, "insecure-skip-tls-verify", &c->insecure, err)) < 0 ||
        (r = get_text(cluster, "tls-server-name", &c->tls_name, err)) < 0 ||
        (r = get_text(cluster, "proxy-url", &c->proxy, err)) < 0)
        return r;
    size_t length = strlen(c->server);
    while (length && c->server[length - 1] == '/')
        c->server[--length] = '\0';
    if (strncmp(c->server, "https://", 8) != 0 && strncmp(c->server, "http://", 7) != 0)
        return error_set(err, -EINVAL, "%s: server '%s' must begin with https:// or http://", path,
                         c->server);
    return 0;
}

static int read_plugin(const struct yaml_node *exec, const char *path, struct kube_config *c,
                       struct error *err)
{
    const struct yaml_node *arguments = NULL, *environment = NULL;
    char *command = NULL;
    int r = get_text(exec, "command", &command, err);
    if (r < 0 || !command)
        return r < 0 ? r : yaml_error(err, exec, -EINVAL, "an exec plugin needs a command");
    c->plugin.argv[0] = command;
    /* As kubectl: a command with a slash is relative to the file, one without is looked for in $PATH. */
    if (strchr(command, '/') && (r = get_path(exec, "command", path, &c->plugin.argv[0], err)) < 0)
        return r;
    if ((r = get_text(exec, "apiVersion", &c->plugin.api_version, err)) < 0 ||
        (r = get_text(exec, "installHint", &c->plugin.hint, err)) < 0 ||
        (r = yaml_get_optional_bool(exec, "provideClusterInfo", &c->plugin.wants_cluster, err)) < 0 ||
        (r = yaml_get_optional_sequence(exec, "args", &arguments, err)) < 0 ||
        (r = yaml_get_optional_sequence(exec, "env", &environment, err)) < 0)
        return r;
    if ((arguments ? arguments->count : 0) > CONFIG_MAX_ARGUMENTS ||
        (environment ? environment->count : 0) > CONFIG_MAX_ARGUMENTS)
        return yaml_error(err, exec, -E2BIG, "an exec plugin has at most %u arguments and variables",
                          CONFIG_MAX_ARGUMENTS);
    for (size_t i = 0; arguments && i < arguments->count; i++) {
        const char *text = yaml_text(arguments->items[i]);
        if (!text || !(c->plugin.argv[i + 1] = strdup(text)))
            return yaml_error(err, arguments, -EINVAL, "an argument is not a text");
    }
    for (size_t i = 0; environment && i < environment->count; i++) {
        const char *name = NULL, *value = NULL;
        if ((r = yaml_get_string(environment->items[i], "name", &name, err)) < 0 ||
            (r = yaml_get_string(environment->items[i], "value", &value, err)) < 0)
            return r;
        if (asprintf(&c->plugin.environment[i], "%s=%s", name, value) < 0) {
            c->plugin.environment[i] = NULL;
            return error_errno(err, -ENOMEM, "%s", path);
        }
    }
    return 0;
}

static int read_user(const struct yaml_node *user, const char *path, struct kube_config *c, struct error *err)
{
    const struct yaml_node *exec = NULL;
    int r;
    if ((r = get_path(user, "client-certificate", path, &c->certificate_file, err)) < 0 ||
        (r = get_path(user, "client-key", path, &c->key_file, err)) < 0 ||
        (r = get_data(user, "client-certificate-data", &c->certificate, err)) < 0 ||
        (r = get_data(user, "client-key-data", &c->key, err)) < 0 ||
        (r = get_text(user, "token", &c->token, err)) < 0 ||
        (r = get_path(user, "tokenFile", path, &c->token_file, err)) < 0 ||
        (r = get_text(user, "username", &c->username, err)) < 0 ||
        (r = get_text(user, "password", &c->password, err)) < 0 ||
        (r = get_text(user, "as", &c->as, err)) < 0 ||
        (r = yaml_get_optional_mapping(user, "exec", &exec, err)) < 0)
        return r;
    if (yaml_lookup(user, "auth-provider"))
        return error_set(err, -EOPNOTSUPP,
                         "%s: auth-provider was removed from Kubernetes 1.26: use an exec plugin", path);
    return exec ? read_plugin(exec, path, c, err) : 0;
}

static int read_config(const char *path, const struct yaml_node *root, const char *context,
                       struct kube_config *c, struct error *err)
{
    const struct yaml_node *entry = NULL, *cluster = NULL, *user = NULL;
    const char *cluster_name = NULL, *user_name = NULL;
    int r;
    if (!context && (r = yaml_get_optional_string(root, "current-context", &context, err)) < 0)
        return r;
    if (!context || !*context)
        return error_set(err, -EINVAL, "%s has no current-context: name one of its contexts", path);
    if ((r = find_entry(root, "contexts", "context", context, &entry, err)) < 0 ||
        (r = yaml_get_string(entry, "cluster", &cluster_name, err)) < 0 ||
        (r = yaml_get_optional_string(entry, "user", &user_name, err)) < 0 ||
        (r = get_text(entry, "namespace", &c->namespace, err)) < 0 ||
        (r = find_entry(root, "clusters", "cluster", cluster_name, &cluster, err)) < 0 ||
        (r = read_cluster(cluster, path, c, err)) < 0)
        return r;
    if (user_name && *user_name &&
        ((r = find_entry(root, "users", "user", user_name, &user, err)) < 0 ||
         (r = read_user(user, path, c, err)) < 0))
        return r;
    return c->namespace ? 0 : copy_text("default", &c->namespace, err);
}

int kube_config_parse(const char *path, const char *text, size_t length_bytes, const char *context,
                      struct kube_config *ret, struct error *err)
{
    struct yaml_stream *stream _cleanup_yaml_stream_ = NULL;
    struct kube_config config = {0};
    int r = yaml_parse(path, text, length_bytes, &stream, err);
    if (r < 0)
        return r;
    if (stream->count == 0)
        return error_set(err, -EINVAL, "%s is empty", path);
    if ((r = read_config(path, stream->documents[0].root, context, &config, err)) < 0) {
        kube_config_release(&config);
        return r;
    }
    *ret = config;
    return 0;
}

static int load_file(const char *path, const char *context, struct kube_config *ret, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length;
    int r = io_read_file(path, CONFIG_FILE_LIMIT_BYTES, &text, &length, err);
    if (r < 0)
        return error_context(err, "kubeconfig");
    r = kube_config_parse(path, text, length, context, ret, err);
    explicit_bzero(text, length);
    return r;
}

static int load_pod(const char *directory, const char *host, const char *port, struct kube_config *ret,
                    struct error *err)
{
    struct kube_config c = {0};
    struct error ignored = ERROR_INIT;
    _cleanup_free_ char *namespace_file = NULL;
    size_t length;
    bool six = strchr(host, ':') != NULL;
    if (asprintf(&c.server, "https://%s%s%s:%s", six ? "[" : "", host, six ? "]" : "", port) < 0 ||
        asprintf(&c.token_file, "%s/token", directory) < 0 ||
        asprintf(&c.ca_file, "%s/ca.crt", directory) < 0 ||
        asprintf(&namespace_file, "%s/namespace", directory) < 0) {
        kube_config_release(&c);
        return error_errno(err, -ENOMEM, "service account");
    }
    if (access(c.token_file, R_OK) < 0) {
        int r = error_errno(err, -errno,
                            "cannot read the service account's token %s (automountServiceAccountToken?)",
                            c.token_file);
        kube_config_release(&c);
        return r;
    }
    if (io_read_file(namespace_file, 256, &c.namespace, &length, &ignored) < 0 &&
        !(c.namespace = strdup("default"))) {
        kube_config_release(&c);
        return error_errno(err, -ENOMEM, "service account");
    }
    c.namespace[strcspn(c.namespace, "\n ")] = '\0';
    *ret = c;
    return 0;
}

int kube_config_load(const struct kube_options *o, struct kube_config *ret, struct error *err)
{
    const char *variable = getenv("KUBECONFIG"), *home = getenv("HOME");
    const char *host = getenv("KUBERNETES_SERVICE_HOST"), *port = getenv("KUBERNETES_SERVICE_PORT");
    _cleanup_free_ char *path = NULL;
    if (o->kubeconfig)
        return load_file(o->kubeconfig, o->context, ret, err);
    if (variable && *variable && strchr(variable, ':'))
        return error_set(
            err, -EOPNOTSUPP,
            "$KUBECONFIG names several files, which is not supported: name one with --kubeconfig");
    if (variable && *variable)
        return load_file(variable, o->context, ret, err);
    if (host && *host)
        return load_pod(o->service_account ? o->service_account : SERVICE_ACCOUNT, host,
                        port && *port ? port : "443", ret, err);
    if (!home || asprintf(&path, "%s/.kube/config", home) < 0)
        return error_set(err, -ENOENT, "no kubeconfig: set $KUBECONFIG or give --kubeconfig");
    return load_file(path, o->context, ret, err);
}
