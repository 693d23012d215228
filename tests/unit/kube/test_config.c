/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "kube/kube_internal.h"

static const char text[] =
    "apiVersion: v1\n"
    "kind: Config\n"
    "current-context: one\n"
    "clusters:\n"
    "- name: a\n"
    "  cluster: {server: 'https://10.0.0.1:6443/', certificate-authority-data: Y2EtcGVt, tls-server-name: "
    "api.example.com}\n"
    "- name: b\n"
    "  cluster: {server: 'http://127.0.0.1:8080', certificate-authority: pki/ca.crt}\n"
    "contexts:\n"
    "- {name: one, context: {cluster: a, user: inline, namespace: shop}}\n"
    "- {name: two, context: {cluster: b, user: files}}\n"
    "- {name: three, context: {cluster: b, user: plugin}}\n"
    "- {name: lost, context: {cluster: c, user: files}}\n"
    "users:\n"
    "- name: inline\n"
    "  user: {client-certificate-data: Y2VydA==, client-key-data: a2V5}\n"
    "- name: files\n"
    "  user: {client-certificate: pki/c.crt, client-key: /abs/c.key, tokenFile: token}\n"
    "- name: plugin\n"
    "  user:\n"
    "    exec:\n"
    "      apiVersion: client.authentication.k8s.io/v1\n"
    "      command: ./login\n"
    "      args: [--for, cluster]\n"
    "      env: [{name: A, value: b}]\n"
    "      installHint: install it\n"
    "- name: broken\n"
    "  user: {client-key-data: '!!'}\n";

static int parse(const char *context, struct kube_config *c, struct error *err)
{
    return kube_config_parse("/etc/kube/config", text, strlen(text), context, c, err);
}

static void test_the_current_context_with_inline_certificates(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct kube_config c;
    check_ok(parse(NULL, &c, &err));
    assert_string_equal(c.server, "https://10.0.0.1:6443");
    assert_string_equal(c.namespace, "shop");
    assert_string_equal(c.tls_name, "api.example.com");
    assert_string_equal(c.ca.data, "ca-pem");
    assert_string_equal(c.certificate.data, "cert");
    assert_int_equal(c.certificate.length_bytes, 4);
    assert_string_equal(c.key.data, "key");
    kube_config_release(&c);
}

static void test_files_are_relative_to_the_kubeconfig(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct kube_config c;
    check_ok(parse("two", &c, &err));
    assert_string_equal(c.ca_file, "/etc/kube/pki/ca.crt");
    assert_string_equal(c.certificate_file, "/etc/kube/pki/c.crt");
    assert_string_equal(c.key_file, "/abs/c.key");
    assert_string_equal(c.token_file, "/etc/kube/token");
    assert_string_equal(c.namespace, "default");
    kube_config_release(&c);
}

static void test_an_exec_plugin(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct kube_config c;
    check_ok(parse("three", &c, &err));
    assert_string_equal(c.plugin.argv[0], "/etc/kube/./login");
    assert_string_equal(c.plugin.argv[1], "--for");
    assert_string_equal(c.plugin.argv[2], "cluster");
    assert_null(c.plugin.argv[3]);
    assert_string_equal(c.plugin.environment[0], "A=b");
    kube_config_release(&c);
}

static void test_what_is_missing_is_named(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct kube_config c;
    check_error(parse("nosuch", &c, &err), -ENOENT, "no context 'nosuch'");
    check_error(parse("lost", &c, &err), -ENOENT, "no cluster 'c'");
    check_error(kube_config_parse("f", "kind: Config\n", 13, NULL, &c, &err), -EINVAL, "current-context");
    check_error(kube_config_parse("f", "", 0, NULL, &c, &err), -EINVAL, "empty");
    struct kube_blob blob;
    check_error(kube_base64_decode("client-key-data", "!!!!", &blob, &err), -EINVAL,
                "client-key-data is not base64");
    check_error(kube_base64_decode("client-key-data", "abc", &blob, &err), -EINVAL, "multiple of 4");
}

static void test_what_a_plugin_prints(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct kube_secrets_copy s;
    uint64_t expiry;
    const char *good = "{\"apiVersion\":\"client.authentication.k8s.io/"
                       "v1\",\"kind\":\"ExecCredential\",\"status\":{\"token\":\"t\","
                       "\"expirationTimestamp\":\"2026-11-21T12:00:00Z\"}}";
    check_ok(kube_credentials_parse("login", good, strlen(good), &s, &expiry, &err));
    assert_string_equal(s.token, "t");
    assert_int_equal(expiry, 1795262400ull * 1000000000ull);
    kube_secrets_release(&s);
    const char *empty = "{\"status\":{}}", *none = "{}";
    check_error(kube_credentials_parse("login", empty, strlen(empty), &s, &expiry, &err), -EINVAL,
                "neither a token nor");
    check_error(kube_credentials_parse("login", none, strlen(none), &s, &expiry, &err), -EINVAL, "login");
}

static void test_paths_and_their_refusals(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    char *path;
    check_ok(kube_path(&kube_deployments, "shop", "web", "scale", &path, &err));
    assert_string_equal(path, "/apis/apps/v1/namespaces/shop/deployments/web/scale");
    free(path);
    check_ok(kube_path(&kube_pods, NULL, NULL, NULL, &path, &err));
    assert_string_equal(path, "/api/v1/pods");
    free(path);
    check_ok(kube_path(&kube_nodes, "ignored", "n1", NULL, &path, &err));
    assert_string_equal(path, "/api/v1/nodes/n1");
    free(path);
    check_error(kube_path(&kube_pods, "shop", "../secrets", NULL, &path, &err), -EINVAL,
                "cannot be the name of a Pod");
    check_error(kube_path(&kube_pods, "..", "a", NULL, &path, &err), -EINVAL,
                "cannot be the name of a Namespace");
    check_error(kube_path(&kube_pods, "a", "b?c", NULL, &path, &err), -EINVAL, "cannot be");
    char *escaped = kube_escape("a=b&c d/\xc3\xa9");
    assert_string_equal(escaped, "a%3Db%26c%20d%2F%C3%A9");
    free(escaped);
}

static void test_headers_of_impersonation_and_what_would_smuggle_another(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct curl_slist *list = NULL;
    const char *groups[] = {"dev", "ops"};
    const struct kube_extra extra = {"example.com/team", "shop"};
    const struct kube_user user = {"jane", "u-1", groups, 2, &extra, 1};
    check_ok(kube_user_headers(&user, &list, &err));
    const char *wanted[] = {"Impersonate-User: jane", "Impersonate-Uid: u-1", "Impersonate-Group: dev",
                            "Impersonate-Group: ops", "Impersonate-Extra-example.com%2Fteam: shop"};
    struct curl_slist *l = list;
    for (size_t i = 0; i < 5; i++, l = l->next)
        assert_string_equal(l->data, wanted[i]);
    assert_null(l);
    const struct kube_user bad = {.name = "jane\r\nImpersonate-Group: system:masters"}, nobody = {.name = ""};
    check_error(kube_user_headers(&bad, &list, &err), -EINVAL, "control character");
    check_error(kube_user_headers(&nobody, &list, &err), -EINVAL, "without a name");
    curl_slist_free_all(list);
}

static void test_errors_carry_the_statuss_reason_and_message(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct kube_status status = {0};
    json_t *body = json_pack("{s:s, s:s, s:s, s:{s:i}, s:i}", "kind", "Status", "message",
                             "configmaps \"a\" already exists", "reason", "AlreadyExists", "details",
                             "retryAfterSeconds", 7, "code", 409);
    check_error(kube_status_error(409, body, "POST", "/api/v1/x", &status, &err), -EEXIST,
                "configmaps \"a\" already exists (POST /api/v1/x: 409 AlreadyExists)");
    assert_string_equal(status.reason, "AlreadyExists");
    assert_int_equal(status.retry_after_s, 7);
    json_decref(status.details);
    json_decref(body);
    assert_int_equal(kube_errno(409, "Conflict"), -EBUSY);
    assert_int_equal(kube_errno(410, "Expired"), -ESTALE);
    assert_int_equal(kube_errno(502, ""), -EAGAIN);
    check_error(kube_status_error(502, NULL, "GET", "/x", NULL, &err), -EAGAIN, "answered 502");
}

static void test_backoff_doubles_to_its_limit_and_never_falls_below_half(void **state)
{
    (void)state;
    for (unsigned failures = 0; failures < 40; failures++) {
        unsigned full = failures < 10 ? 100u << failures : 30000u;
        full = full > 30000 ? 30000 : full;
        for (int i = 0; i < 20; i++) {
            unsigned ms = kube_backoff_ms(failures, 100, 30000);
            assert_in_range(ms, full / 2, full);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_current_context_with_inline_certificates),
        cmocka_unit_test(test_files_are_relative_to_the_kubeconfig),
        cmocka_unit_test(test_an_exec_plugin),
        cmocka_unit_test(test_what_is_missing_is_named),
        cmocka_unit_test(test_what_a_plugin_prints),
        cmocka_unit_test(test_paths_and_their_refusals),
        cmocka_unit_test(test_headers_of_impersonation_and_what_would_smuggle_another),
        cmocka_unit_test(test_errors_carry_the_statuss_reason_and_message),
        cmocka_unit_test(test_backoff_doubles_to_its_limit_and_never_falls_below_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
