/* SPDX-License-Identifier: Apache-2.0 */
/* Credentials that change while the process lives: a pod's token, which the kubelet replaces in its file, and
 * what an exec plugin (client.authentication.k8s.io/v1) prints. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "kube/kube_internal.h"
#include "lib/json.h"

#define TOKEN_FILE_SECONDS 60u
#define TOKEN_LIMIT_BYTES (64u << 10)
#define PLUGIN_TIMEOUT_MS 60000
#define PLUGIN_OUTPUT_LIMIT_BYTES (1u << 20)
#define PLUGIN_EARLY_NS (10 * NS_PER_SECOND) /* renewed so much before it expires */

extern char **environ;

static void clear_blob(struct kube_blob *blob)
{
    if (blob->data)
        explicit_bzero(blob->data, blob->length_bytes);
    free(blob->data);
    *blob = (struct kube_blob){0};
}

static void clear_text(char **text)
{
    if (*text)
        explicit_bzero(*text, strlen(*text));
    free(*text);
    *text = NULL;
}

void kube_secrets_release(struct kube_secrets_copy *s)
{
    clear_text(&s->token);
    clear_blob(&s->certificate);
    clear_blob(&s->key);
}

void kube_credentials_release(struct kube_credentials *c)
{
    clear_text(&c->token);
    clear_blob(&c->certificate);
    clear_blob(&c->key);
    pthread_mutex_destroy(&c->mutex);
}

static int text_blob(const char *text, struct kube_blob *ret)
{
    char *copy = strdup(text);
    if (!copy)
        return -ENOMEM;
    *ret = (struct kube_blob){copy, strlen(copy)};
    return 0;
}

int kube_credentials_parse(const char *command, const char *text, size_t length_bytes,
                           struct kube_secrets_copy *ret, uint64_t *ret_expiry_ns, struct error *err)
{
    _cleanup_json_ json_t *root = NULL;
    json_t *status = NULL;
    const char *token = NULL, *certificate = NULL, *key = NULL, *expiry = NULL;
    struct kube_secrets_copy copy = {0};
    uint64_t expiry_ns = UINT64_MAX;
    int r;
    if ((r = json_parse("its output", text, length_bytes, &root, err)) < 0 ||
        (r = json_get_object(root, "status", &status, err)) < 0 ||
        (r = json_get_optional_string(status, "token", &token, err)) < 0 ||
        (r = json_get_optional_string(status, "clientCertificateData", &certificate, err)) < 0 ||
        (r = json_get_optional_string(status, "clientKeyData", &key, err)) < 0 ||
        (r = json_get_optional_string(status, "expirationTimestamp", &expiry, err)) < 0 ||
        (expiry && (r = clock_parse_rfc3339(expiry, &expiry_ns, err)) < 0))
        return error_context(err, "exec plugin %s", command);
    if (!token && !(certificate && key))
        return error_set(err, -EINVAL, "exec plugin %s gave neither a token nor a certificate with its key",
                         command);
    if ((token && !(copy.token = strdup(token))) ||
        (certificate && text_blob(certificate, &copy.certificate) < 0) ||
        (key && text_blob(key, &copy.key) < 0)) {
        kube_secrets_release(&copy);
        return error_errno(err, -ENOMEM, "exec plugin %s", command);
    }
    *ret = copy;
    *ret_expiry_ns = expiry_ns;
    return 0;
}

/* {"kind":"ExecCredential",...} for $KUBERNETES_EXEC_INFO. */
static char *plugin_info(const struct kube_config *c)
{
    _cleanup_json_ json_t *spec = json_pack("{s:b}", "interactive", 0);
    if (c->plugin.wants_cluster && spec) {
        json_t *cluster =
            json_pack("{s:s, s:b}", "server", c->server, "insecure-skip-tls-verify", (int)c->insecure);
        if (c->tls_name)
            json_object_set_new(cluster, "tls-server-name", json_string(c->tls_name));
        json_object_set_new(spec, "cluster", cluster);
    }
    _cleanup_json_ json_t *info =
        json_pack("{s:s, s:s, s:O}", "apiVersion",
                  c->plugin.api_version ? c->plugin.api_version : "client.authentication.k8s.io/v1", "kind",
                  "ExecCredential", "spec", spec);
    return info ? json_to_text(info) : NULL;
}

static int spawn_plugin(const struct kube_config *c, int *ret_fd, pid_t *ret_pid, struct error *err)
{
    _cleanup_free_ char *info = plugin_info(c), *variable = NULL;
    _cleanup_free_ char **environment = NULL;
    size_t count = 0, added = 0;
    int ends[2];
    if (!info || asprintf(&variable, "KUBERNETES_EXEC_INFO=%s", info) < 0)
        return error_errno(err, -ENOMEM, "exec plugin %s", c->plugin.argv[0]);
    while (environ[count])
        count++;
    environment = calloc(count + CONFIG_MAX_ARGUMENTS + 2, sizeof *environment);
    if (!environment)
        return error_errno(err, -ENOMEM, "exec plugin %s", c->plugin.argv[0]);
    for (char *const *p = c->plugin.environment; *p; p++) /* first: getenv takes the first of a name */
        environment[added++] = *p;
    environment[added++] = variable;
    memcpy(environment + added, environ, count * sizeof *environment);
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_errno(err, -errno, "exec plugin %s", c->plugin.argv[0]);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int r = -posix_spawnp(ret_pid, c->plugin.argv[0], &actions, &attributes, c->plugin.argv, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (r < 0) {
        close(ends[0]);
        return error_errno(err, r, "cannot run the exec plugin %s of the kubeconfig%s%s", c->plugin.argv[0],
                           c->plugin.hint ? "; " : "", c->plugin.hint ? c->plugin.hint : "");
    }
    *ret_fd = ends[0];
    return 0;
}

static int read_output(int fd, const char *command, struct kube_buffer *output, struct error *err)
{
    uint64_t deadline = clock_boottime_ns(clock_system()) + PLUGIN_TIMEOUT_MS * NS_PER_MS;
    for (;;) {
        char chunk[4096];
        uint64_t now = clock_boottime_ns(clock_system());
        struct pollfd p = {fd, POLLIN, 0};
        if (now >= deadline || poll(&p, 1, (int)((deadline - now) / NS_PER_MS) + 1) == 0)
            return error_set(err, -ETIMEDOUT, "exec plugin %s gave no answer within %d s", command,
                             PLUGIN_TIMEOUT_MS / 1000);
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n == 0)
            return 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(err, -errno, "exec plugin %s", command);
        if (output->length_bytes + (size_t)n > PLUGIN_OUTPUT_LIMIT_BYTES)
            return error_set(err, -EFBIG, "exec plugin %s printed more than %u bytes", command,
                             PLUGIN_OUTPUT_LIMIT_BYTES);
        if (kube_buffer_add(output, chunk, (size_t)n) < 0)
            return error_errno(err, -ENOMEM, "exec plugin %s", command);
    }
}

static int run_plugin(const struct kube_config *c, struct kube_secrets_copy *ret, uint64_t *ret_expiry_ns,
                      struct error *err)
{
    const char *command = c->plugin.argv[0];
    struct kube_buffer output = {0};
    _cleanup_close_ int fd = -1;
    pid_t pid;
    int status = 0, r = spawn_plugin(c, &fd, &pid, err);
    if (r < 0)
        return r;
    r = read_output(fd, command, &output, err);
    if (r < 0)
        kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (r == 0 && (!WIFEXITED(status) || WEXITSTATUS(status)))
        r = error_set(err, -EPERM, "exec plugin %s failed with %s %d: run it by hand to see why", command,
                      WIFEXITED(status) ? "status" : "signal",
                      WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    if (r == 0)
        r = kube_credentials_parse(command, output.data ? output.data : "", output.length_bytes, ret,
                                   ret_expiry_ns, err);
    if (output.data)
        explicit_bzero(output.data, output.length_bytes);
    kube_buffer_release(&output);
    return r;
}

static int renew(const struct kube_config *config, struct kube_credentials *c, struct error *err)
{
    uint64_t now = clock_boottime_ns(clock_system()), until = UINT64_MAX;
    struct kube_secrets_copy fresh = {0};
    int r = 0;
    if (config->token_file) {
        size_t length;
        r = io_read_file(config->token_file, TOKEN_LIMIT_BYTES, &fresh.token, &length, err);
        if (r == 0)
            fresh.token[strcspn(fresh.token, "\r\n")] = '\0';
        until = now + TOKEN_FILE_SECONDS * NS_PER_SECOND;
    } else if (config->plugin.argv[0]) {
        uint64_t expiry, wall;
        r = run_plugin(config, &fresh, &expiry, err);
        wall = clock_realtime_ns(clock_system());
        if (r == 0 && expiry != UINT64_MAX)
            until = expiry > wall + PLUGIN_EARLY_NS ? now + (expiry - wall - PLUGIN_EARLY_NS) : now;
    } else if (config->token && !(fresh.token = strdup(config->token))) {
        r = error_errno(err, -ENOMEM, "token");
    }
    if (r < 0)
        return r;
    clear_text(&c->token);
    clear_blob(&c->certificate);
    clear_blob(&c->key);
    c->token = fresh.token;
    c->certificate = fresh.certificate;
    c->key = fresh.key;
    c->valid_until_ns = until;
    c->generation++;
    return 0;
}

int kube_credentials_get(const struct kube_config *config, struct kube_credentials *c,
                         unsigned refused_generation, struct kube_secrets_copy *ret, struct error *err)
{
    MUTEX_GUARD(guard, &c->mutex);
    bool refused = refused_generation && refused_generation == c->generation;
    if (refused || clock_boottime_ns(clock_system()) >= c->valid_until_ns) {
        int r = renew(config, c, err);
        /* A token file that cannot be read for a moment: the old token may still do. */
        if (r < 0 && (refused || !c->token))
            return r;
    }
    struct kube_secrets_copy copy = {.generation = c->generation};
    if ((c->token && !(copy.token = strdup(c->token))) ||
        (c->certificate.data && text_blob(c->certificate.data, &copy.certificate) < 0) ||
        (c->key.data && text_blob(c->key.data, &copy.key) < 0)) {
        kube_secrets_release(&copy);
        return error_errno(err, -ENOMEM, "credentials");
    }
    *ret = copy;
    return 0;
}
