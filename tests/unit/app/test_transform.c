/* SPDX-License-Identifier: Apache-2.0 */
/* Transforms, and JSON patches below them. */
#include "manifests.h"

#include <errno.h>

#include "app/json_patch.h"
#include "app/objects_internal.h"
#include "app/references.h"
#include "app/transform.h"
#include "transform_set.h"

static json_t *apply(const json_t *set, const char *transforms)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *list = manifests_one(transforms), *copy = json_deep_copy(set);
    json_t *out = NULL;
    check_ok(transform_set_apply(copy, list, &out, &err));
    return out;
}

static void refuse(const json_t *set, const char *transforms, int code, const char *message)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *list = manifests_one(transforms), *copy = json_deep_copy(set), *out = NULL;
    check_error(transform_set_apply(copy, list, &out, &err), code, message);
    assert_null(out);
}

static json_t *find(const json_t *set, const char *name)
{
    json_t *object = json_object_get(set, name);
    if (!object)
        fail_msg("%s is not in the set", name);
    return object;
}

static char *secret_text(const json_t *object, const char *key)
{
    size_t length;
    return objects_base64_decode(objects_text(json_object_get(object, "data"), key), &length);
}

/* Where programs are told a namespace: options, the environment, lists and selectors of namespaces; and not where the word is another. */
static void namespaces_are_found_where_programs_are_told_them(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec: {template: {spec: {containers: [{name: shop, args: [--namespace=shop, "
        "--leader-election-namespace, shop, shop, -n, shop, --name=shop], env: [{name: WATCH_NAMESPACE, value: shop}, {name: WORD, value: shop}]}]}}}\n---\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: m, namespace: shop}\nspec: {namespaceSelector: {matchNames: [shop, other]}, "
        "watchNamespaces: [shop], words: [shop]}\n---\n"
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {ingress: [{from: [{namespaceSelector: {matchExpressions: "
        "[{key: kubernetes.io/metadata.name, operator: In, values: [shop, edge]}, {key: team, operator: In, values: [shop]}]}}]}]}\n");
    _cleanup_json_ json_t *clone = apply(set, "[{namespace: {from: shop, to: try}}]");
    static const struct {
        const char *name, *path, *is;
    } cases[] = {
        {"apps/v1/Deployment/try/web", "spec/template/spec/containers",
         "[{\"args\":[\"--namespace=try\",\"--leader-election-namespace\",\"try\",\"shop\",\"-n\",\"try\",\"--name=shop\"],\"env\":[{\"name\":\"WATCH_NAMESPACE\","
         "\"value\":\"try\"},{\"name\":\"WORD\",\"value\":\"shop\"}],\"name\":\"shop\"}]"},
        {"monitoring.coreos.com/v1/ServiceMonitor/try/m", "spec",
         "{\"namespaceSelector\":{\"matchNames\":[\"try\",\"other\"]},\"watchNamespaces\":[\"try\"],\"words\":[\"shop\"]}"},
        {"networking.k8s.io/v1/NetworkPolicy/try/p", "spec/ingress",
         "[{\"from\":[{\"namespaceSelector\":{\"matchExpressions\":[{\"key\":\"kubernetes.io/metadata.name\",\"operator\":\"In\",\"values\":[\"try\",\"edge\"]},"
         "{\"key\":\"team\",\"operator\":\"In\",\"values\":[\"shop\"]}]}}]}]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        _cleanup_free_ char *text = json_dumps(objects_at(find(clone, cases[i].name), cases[i].path), JSON_SORT_KEYS | JSON_COMPACT);
        assert_string_equal(text, cases[i].is);
    }
}

/* What stands behind a NUL is part of the text. */
static void bytes_are_left_as_they_are(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\ndata: {plain: http://db.shop.svc/}\n");
    json_t *data = json_object_get(find(set, "core/v1/ConfigMap/shop/c"), "data");
    json_object_set_new(data, "bytes", json_stringn("db.shop.svc\0more", 16));
    _cleanup_json_ json_t *clone = apply(set, "[{namespace: {from: shop, to: try}}]");
    data = json_object_get(find(clone, "core/v1/ConfigMap/try/c"), "data");
    assert_string_equal(objects_text(data, "plain"), "http://db.try.svc/");
    assert_int_equal(json_string_length(json_object_get(data, "bytes")), 16);
}

static void a_clone_in_another_namespace_knows_nothing_of_the_first(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    _cleanup_json_ json_t *clone = apply(set, "[{namespace: {from: shop, to: shop-test}}]"), *closure = NULL,
                          *original = NULL;
    const char *name;
    json_t *object;
    json_object_foreach(clone, name, object) assert_null(strstr(name, "/shop/"));
    find(clone, "core/v1/Namespace/_/shop-test");
    const json_t *config = find(clone, "core/v1/ConfigMap/shop-test/shop-web");
    assert_string_equal(objects_text_at(config, "data/DB_HOST"), "shop-db.shop-test");
    assert_string_equal(objects_text_at(config, "data/BASE_URL"),
                        "https://shop.example.com/"); /* a host, not a namespace */
    assert_non_null(
        strstr(objects_text_at(config, "data/application.yaml"), "redis://cache.shop-test.svc:6379/0"));
    _cleanup_free_ char *url =
        secret_text(find(clone, "core/v1/Secret/shop-test/shop-db-credentials"), "url");
    assert_string_equal(url, "postgres://app:hunter2@shop-db.shop-test.svc.cluster.local:5432/orders");
    _cleanup_free_ char *web = json_to_text(find(clone, "apps/v1/Deployment/shop-test/shop-web"));
    assert_non_null(strstr(web, "--upstream=http://shop-db.shop-test.svc:5432"));
    assert_non_null(strstr(web, "\"shop-db.shop-test\"")); /* command of the init container */
    const json_t *subjects =
        json_object_get(find(clone, "rbac.authorization.k8s.io/v1/RoleBinding/shop-test/leader"), "subjects");
    assert_string_equal(objects_text(json_array_get(subjects, 0), "namespace"), "shop-test");
    _cleanup_free_ char *policy =
        json_to_text(find(clone, "networking.k8s.io/v1/NetworkPolicy/shop-test/only-shop"));
    assert_non_null(strstr(policy, "\"kubernetes.io/metadata.name\":\"shop-test\""));
    /* It lacks what the original lacks, and nothing else. */
    check_ok(references_closure(set, "shop", &original, &err));
    check_ok(references_closure(clone, "shop-test", &closure, &err));
    assert_int_equal(json_integer_value(json_object_get(closure, "missingCount")),
                     json_integer_value(json_object_get(original, "missingCount")));
    assert_int_equal(json_array_size(json_object_get(closure, "objects")),
                     json_array_size(json_object_get(original, "objects")));
}

static void webhooks_of_a_namespace_follow_it(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("operator.yaml"),
                          *clone = apply(set, "[{namespace: {from: certs, to: c2}}]");
    const json_t *hook =
        find(clone, "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration/_/certs-webhook");
    _cleanup_free_ char *text = json_to_text(hook);
    assert_non_null(strstr(text, "\"namespace\":\"c2\""));
    assert_non_null(strstr(text, "\"c2/webhook-ca\""));
    assert_string_equal(
        objects_text_at(
            find(clone, "apiextensions.k8s.io/v1/CustomResourceDefinition/_/certificates.certs.example.com"),
            "spec/conversion/webhook/clientConfig/service/namespace"),
        "c2");
}

static void a_renamed_object_is_found_by_those_that_refer_to_it(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    _cleanup_json_ json_t *out =
        apply(set, "[{target: {kind: StatefulSet}, rename: {from: shop-db, to: pg}}, "
                   "{target: {kind: Service}, rename: {from: shop-db, to: pg}}, "
                   "{target: {kind: Secret}, rename: {from: shop-db-credentials, to: keys}}]");
    const json_t *stateful = find(out, "apps/v1/StatefulSet/shop/pg");
    assert_string_equal(objects_text_at(stateful, "spec/serviceName"), "pg");
    find(out, "core/v1/PersistentVolumeClaim/shop/data-pg-0");
    find(out, "core/v1/Service/shop/pg");
    const json_t *secret = find(out, "core/v1/Secret/shop/keys");
    _cleanup_free_ char *url = secret_text(secret, "url");
    assert_string_equal(url, "postgres://app:hunter2@pg.shop.svc.cluster.local:5432/orders");
    assert_string_equal(objects_text_at(find(out, "core/v1/ConfigMap/shop/shop-web"), "data/DB_HOST"),
                        "pg.shop");
    _cleanup_free_ char *text = json_to_text(out);
    assert_null(strstr(text, "shop-db-credentials"));
    /* the service account has the same name, and keeps it */
    find(out, "core/v1/ServiceAccount/shop/shop-db");
    assert_string_equal(objects_text_at(stateful, "spec/template/spec/serviceAccountName"), "shop-db");
}

static void hosts_classes_images_replicas_and_labels(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    _cleanup_json_ json_t *out = apply(
        set, "[{host: {from: shop.example.com, to: t.example.org}}, {storageClass: {from: fast, to: slow}}, "
             "{image: {from: registry.example.com, to: mirror.local/x}}, {replicas: 1, target: {kind: "
             "Deployment}}, "
             "{labels: {set: {env: test}, remove: [app]}, target: {kind: PersistentVolumeClaim}}, "
             "{annotations: {set: {a: b}}, target: {kind: Ingress}}]");
    _cleanup_free_ char *ingress = json_to_text(find(out, "networking.k8s.io/v1/Ingress/shop/shop"));
    assert_non_null(strstr(ingress, "\"hosts\":[\"t.example.org\"]"));
    assert_non_null(strstr(ingress, "\"host\":\"api.shop.example.com\"")); /* another host */
    assert_non_null(strstr(ingress, "\"a\":\"b\""));
    assert_string_equal(objects_text_at(find(out, "core/v1/ConfigMap/shop/shop-web"), "data/BASE_URL"),
                        "https://t.example.org/");
    const json_t *claim = find(out, "core/v1/PersistentVolumeClaim/shop/data-shop-db-0");
    assert_string_equal(objects_text_at(claim, "spec/storageClassName"), "slow");
    assert_string_equal(objects_text_at(claim, "metadata/labels/env"), "test");
    assert_null(objects_at(claim, "metadata/labels/app"));
    find(out, "storage.k8s.io/v1/StorageClass/_/fast"); /* the class itself is not renamed */
    _cleanup_free_ char *text = json_to_text(out);
    assert_non_null(strstr(text, "mirror.local/x/db/postgres:16.4"));
    assert_non_null(
        strstr(text, "registry.example.com:5000/tools/wait:1") ? NULL : text); /* ':' ends a prefix, too */
    assert_int_equal(
        json_integer_value(objects_at(find(out, "apps/v1/Deployment/shop/shop-web"), "spec/replicas")), 1);
}

static void a_transform_that_matches_nothing_is_an_error(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    refuse(set, "[{image: {from: registry.example.co, to: x}}]", -ENOENT, "transform 0 matches nothing");
    refuse(set, "[{replicas: 1, target: {kind: Deployment}}, {host: {from: nowhere.example.com, to: x}}]",
           -ENOENT, "transform 1 matches nothing");
    refuse(set, "[{namespace: {from: stop, to: x}}]", -ENOENT, "matches nothing");
    refuse(set, "[{storageClass: {from: unknown, to: x}}]", -ENOENT, "matches nothing");
    refuse(set, "[{target: {kind: Service}, rename: {from: nothing, to: x}}]", -ENOENT, "matches nothing");
    refuse(set, "[{target: {kind: Service, name: none}, patch: [{op: remove, path: /spec/type}]}]", -ENOENT,
           "matches nothing");
    refuse(set, "[{labels: {remove: [nobody-has-it]}}]", -ENOENT, "matches nothing");
}

static void what_is_no_transform_is_refused(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    refuse(set, "[{replicas: 1, image: {from: a, to: b}}]", -EINVAL, "make two of it");
    refuse(set, "[{}]", -EINVAL, "says nothing to do");
    refuse(set, "[{unknown: 1}]", -EINVAL, "unknown field 'unknown'");
    refuse(set, "[{image: {from: a}}]", -EINVAL, "needs from and to");
    refuse(set, "[{namespace: {from: a, to: A/B}}]", -EINVAL, "no name of a namespace");
    refuse(set, "[{namespace: {from: a, to: a}}]", -EINVAL, "to itself");
    refuse(set, "[{replicas: -1}]", -EINVAL, "0 to 10000");
    refuse(set, "[{rename: {from: a, to: b}}]", -EINVAL, "needs target.kind");
    refuse(set, "[{patch: []}]", -EINVAL, "needs target.kind or target.name");
    refuse(set, "[{target: {kind: Service}, patch: [{op: jump, path: /a}]}]", -EINVAL, "op must be one of");
    refuse(
        set,
        "[{target: {kind: Service, name: shop-web}, patch: [{op: replace, path: /metadata/name, value: x}]}]",
        -EINVAL, "use rename or namespace");
    refuse(set, "[{target: {kind: Service}, rename: {from: shop-web, to: shop-db}}]", -EEXIST,
           "two objects are called");
    refuse(set, "[{target: {kind: Service, name: shop-web}, patch: [{op: remove, path: /spec/nothing}]}]",
           -ENOENT, "nothing at the path");
}

/* ---- RFC 6902 ---- */

static void patch(const char *document, const char *operations, const char *expected)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *d = NULL, *o = NULL, *out = NULL;
    check_ok(json_parse("document", document, strlen(document), &d, &err));
    check_ok(json_parse("patch", operations, strlen(operations), &o, &err));
    _cleanup_free_ char *before = json_to_text(d);
    int r = json_patch_apply(d, o, &out, &err);
    if (expected) {
        if (r < 0)
            fail_msg("%s: %s", operations, err.message);
        _cleanup_free_ char *text = json_to_text(out);
        assert_string_equal(text, expected);
    } else {
        assert_true(r < 0);
        assert_null(out);
        assert_true(err.code == r && err.message[0]);
    }
    _cleanup_free_ char *after = json_to_text(d);
    assert_string_equal(before, after); /* the document is never touched */
}

static void patches_do_as_the_rfc_says(void **unused)
{
    (void)unused;
    patch("{\"a\":1}", "[{\"op\":\"add\",\"path\":\"/b\",\"value\":null}]", "{\"a\":1,\"b\":null}");
    patch("{\"a\":[1,3]}", "[{\"op\":\"add\",\"path\":\"/a/1\",\"value\":2}]", "{\"a\":[1,2,3]}");
    patch("{\"a\":[1]}", "[{\"op\":\"add\",\"path\":\"/a/-\",\"value\":[2]}]", "{\"a\":[1,[2]]}");
    patch("{\"a\":[1]}", "[{\"op\":\"add\",\"path\":\"/a/2\",\"value\":2}]", NULL);
    patch("{\"a\":[1]}", "[{\"op\":\"add\",\"path\":\"/a/01\",\"value\":2}]", NULL);
    patch("{\"a\":1}", "[{\"op\":\"add\",\"path\":\"\",\"value\":[]}]", "[]");
    patch("{\"a\":1}", "[{\"op\":\"add\",\"path\":\"/b/c\",\"value\":1}]", NULL);
    patch("{\"a\":{\"b\":1,\"c\":2}}", "[{\"op\":\"remove\",\"path\":\"/a/b\"}]", "{\"a\":{\"c\":2}}");
    patch("{\"a\":[1,2]}", "[{\"op\":\"remove\",\"path\":\"/a/0\"}]", "{\"a\":[2]}");
    patch("{\"a\":[1,2]}", "[{\"op\":\"remove\",\"path\":\"/a/-\"}]", NULL);
    patch("{\"a\":1}", "[{\"op\":\"remove\",\"path\":\"/b\"}]", NULL);
    patch("{\"a\":1}", "[{\"op\":\"replace\",\"path\":\"/a\",\"value\":{\"x\":1}}]", "{\"a\":{\"x\":1}}");
    patch("{\"a\":1}", "[{\"op\":\"replace\",\"path\":\"/b\",\"value\":1}]", NULL);
    patch("{\"a\":{\"b\":1},\"c\":{}}", "[{\"op\":\"move\",\"from\":\"/a/b\",\"path\":\"/c/d\"}]",
          "{\"a\":{},\"c\":{\"d\":1}}");
    patch("{\"a\":[1,2,3]}", "[{\"op\":\"move\",\"from\":\"/a/0\",\"path\":\"/a/2\"}]", "{\"a\":[2,3,1]}");
    patch("{\"a\":{\"b\":1}}", "[{\"op\":\"move\",\"from\":\"/a\",\"path\":\"/a/b\"}]", NULL);
    patch("{\"a\":{\"b\":1}}", "[{\"op\":\"copy\",\"from\":\"/a\",\"path\":\"/a/c\"}]",
          "{\"a\":{\"b\":1,\"c\":{\"b\":1}}}");
    patch("{\"a/b\":1,\"m~n\":2}",
          "[{\"op\":\"test\",\"path\":\"/a~1b\",\"value\":1},{\"op\":\"remove\",\"path\":\"/m~0n\"}]",
          "{\"a/b\":1}");
    patch("{\"~1\":10}", "[{\"op\":\"test\",\"path\":\"/~01\",\"value\":10}]", "{\"~1\":10}");
    patch("{\"a\":1}", "[{\"op\":\"test\",\"path\":\"/a\",\"value\":1.0}]", "{\"a\":1}");
    patch("{\"a\":1}", "[{\"op\":\"test\",\"path\":\"/a\",\"value\":\"1\"}]", NULL);
    patch("{\"a\":1}", "[{\"op\":\"remove\",\"path\":\"/a\"},{\"op\":\"test\",\"path\":\"/a\",\"value\":1}]",
          NULL); /* all or none */
    patch("{\"a\":1}", "[{\"op\":\"remove\",\"path\":\"a\"}]", NULL);
    patch("{\"a\":1}", "[{\"op\":\"remove\",\"path\":\"/~2\"}]", NULL);
    patch("{\"a\":1}", "[{\"op\":\"add\",\"path\":\"/a\"}]", NULL);
    patch("{\"\":1}", "[{\"op\":\"replace\",\"path\":\"/\",\"value\":2}]", "{\"\":2}");
    patch("{\"a\":1}", "{}", NULL);
}

static void a_patch_cannot_grow_without_bound(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *document = json_pack("{s:[s]}", "a", "0123456789"), *operations = json_array(),
                          *out = NULL;
    for (unsigned i = 0; i < 60; i++)
        json_array_append_new(operations,
                              json_pack("{s:s, s:s, s:s}", "op", "copy", "from", "/a", "path", "/a/-"));
    check_error(json_patch_apply(document, operations, &out, &err), -EFBIG, "too large");
    for (unsigned i = 0; i < 60; i++)
        json_array_append_new(operations,
                              json_pack("{s:s, s:s, s:s}", "op", "copy", "from", "/a", "path", "/a/-"));
    check_error(json_patch_apply(document, operations, &out, &err), -EFBIG, "at most 100");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_clone_in_another_namespace_knows_nothing_of_the_first),
        cmocka_unit_test(namespaces_are_found_where_programs_are_told_them),
        cmocka_unit_test(bytes_are_left_as_they_are),
        cmocka_unit_test(webhooks_of_a_namespace_follow_it),
        cmocka_unit_test(a_renamed_object_is_found_by_those_that_refer_to_it),
        cmocka_unit_test(hosts_classes_images_replicas_and_labels),
        cmocka_unit_test(a_transform_that_matches_nothing_is_an_error),
        cmocka_unit_test(what_is_no_transform_is_refused),
        cmocka_unit_test(patches_do_as_the_rfc_says),
        cmocka_unit_test(a_patch_cannot_grow_without_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
