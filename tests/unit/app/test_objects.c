/* SPDX-License-Identifier: Apache-2.0 */
/* What is kept of objects (O1..O3), what they refer to, what of them lies outside. */
#include "manifests.h"

#include <errno.h>

#include "app/findings.h"
#include "app/objects_internal.h"
#include "app/references.h"

static json_t *find(const json_t *set, const char *name)
{
    json_t *object = json_object_get(set, name);
    if (!object)
        fail_msg("%s is not in the set", name);
    return object;
}

static void assert_absent(const json_t *object, const char *path)
{
    if (objects_at(object, path))
        fail_msg("%s is still there", path);
}

static void o2_normalizing_twice_is_normalizing_once(void **unused)
{
    (void)unused;
    const char *const files[] = {"shop.yaml", "operator.yaml"};
    for (size_t f = 0; f < 2; f++) {
        _cleanup_json_ json_t *set = manifests_set(files[f]);
        const char *name;
        json_t *object;
        json_object_foreach(set, name, object)
        {
            struct error err = ERROR_INIT;
            _cleanup_json_ json_t *again = NULL;
            check_ok(object_normalize(object, &again, &err));
            _cleanup_free_ char *first = object_canonical(object), *second = object_canonical(again);
            assert_string_equal(first, second);
        }
    }
}

static void o1_equal_objects_are_equal_bytes(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *a = manifests_one(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: n, uid: x, resourceVersion: '5', "
        "generation: 2, "
        "annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}'}}\ndata: {b: '1', a: '2'}\n");
    _cleanup_json_ json_t *b = manifests_one("kind: ConfigMap\ndata: {a: '2', b: '1'}\nmetadata: {namespace: "
                                             "n, name: a, uid: y, creationTimestamp: null, labels: {}}\n"
                                             "apiVersion: v1\nstatus: {seen: true}\n");
    _cleanup_json_ json_t *x = NULL, *y = NULL;
    check_ok(object_normalize(a, &x, &err));
    check_ok(object_normalize(b, &y, &err));
    _cleanup_free_ char *first = object_canonical(x), *second = object_canonical(y);
    assert_string_equal(first, second);
    assert_string_equal(first, "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"2\",\"b\":\"1\"},\"kind\":"
                               "\"ConfigMap\",\"metadata\":{\"name\":\"a\","
                               "\"namespace\":\"n\"}}");
    assert_string_equal(object_uid(a), "x");
}

static void what_was_allocated_or_generated_is_not_kept(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    const json_t *web = find(set, "core/v1/Service/shop/shop-web"),
                 *db = find(set, "core/v1/Service/shop/shop-db");
    assert_absent(web, "spec/clusterIP");
    assert_absent(web, "spec/clusterIPs");
    assert_string_equal(objects_text_at(db, "spec/clusterIP"), "None");
    const json_t *ports = objects_at(web, "spec/ports");
    assert_null(json_object_get(json_array_get(ports, 0), "nodePort"));
    /* that one was asked for */
    assert_int_equal(json_integer_value(json_object_get(json_array_get(ports, 1), "nodePort")), 30443);
    const json_t *job = find(set, "batch/v1/Job/shop/migrate-41");
    assert_absent(job, "spec/selector");
    assert_string_equal(objects_text_at(job, "spec/template/metadata/labels/step"), "schema");
    assert_null(json_object_get(objects_at(job, "spec/template/metadata/labels"),
                                "batch.kubernetes.io/controller-uid"));
    const json_t *claim = find(set, "core/v1/PersistentVolumeClaim/shop/data-shop-db-0");
    assert_absent(claim, "metadata/annotations");
    assert_absent(claim, "metadata/finalizers");
    assert_string_equal(objects_text_at(claim, "spec/volumeName"), "pvc-0b6d0004");
    const json_t *account = find(set, "core/v1/ServiceAccount/shop/shop-db");
    assert_int_equal(json_array_size(json_object_get(account, "secrets")), 1);
    assert_absent(find(set, "core/v1/Namespace/_/shop"), "spec");
    _cleanup_json_ json_t *operators = manifests_set("operator.yaml");
    assert_absent(
        find(operators, "apiextensions.k8s.io/v1/CustomResourceDefinition/_/certificates.certs.example.com"),
        "spec/conversion/webhook/clientConfig/caBundle");
    const json_t *hook =
        find(operators, "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration/_/certs-webhook");
    assert_null(json_object_get(
        json_object_get(json_array_get(json_object_get(hook, "webhooks"), 0), "clientConfig"), "caBundle"));
}

static void o3_status_does_not_count_but_that_a_job_has_ended(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    assert_absent(find(set, "apps/v1/Deployment/shop/shop-web"), "status");
    _cleanup_free_ char *status =
        json_to_text(json_object_get(find(set, "batch/v1/Job/shop/migrate-41"), "status"));
    assert_string_equal(status, "{\"conditions\":[{\"type\":\"Complete\",\"status\":\"True\"}]}");
}

/* A watch tells it, a get does not. */
static void an_external_name_has_no_traffic_policy(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *a = manifests_one("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: n}\n"
                                             "spec: {type: ExternalName, externalName: db.example.com, internalTrafficPolicy: Cluster}\n"),
                          *b = manifests_one("apiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: n}\n"
                                             "spec: {type: ClusterIP, internalTrafficPolicy: Local}\n");
    _cleanup_json_ json_t *x = NULL, *y = NULL;
    check_ok(object_normalize(a, &x, &err));
    check_ok(object_normalize(b, &y, &err));
    assert_absent(x, "spec/internalTrafficPolicy");
    assert_string_equal(objects_text_at(y, "spec/internalTrafficPolicy"), "Local");
}

static void secrets_leave_no_copy_in_annotations(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    assert_absent(find(set, "core/v1/Secret/shop/shop-db-credentials"), "metadata/annotations");
}

static void noise_is_what_controllers_make_again(void **unused)
{
    (void)unused;
    static const struct {
        bool noise;
        const char *text;
    } cases[] = {
        {true, "apiVersion: v1\nkind: Event\nmetadata: {name: a, namespace: n}\n"},
        {true, "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: a, namespace: n}\n"},
        {true, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-root-ca.crt, namespace: n}\n"},
        {false, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ca, namespace: n}\n"},
        {true, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: p, namespace: n, labels: {tidemark.io/recovery-plan: r}}\n"},
        {true, "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: n, ownerReferences: [{kind: "
               "ReplicaSet, name: r, controller: true}]}\n"},
        {false, "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: n, ownerReferences: [{kind: "
                "ReplicaSet, name: r}]}\n"},
        {false, "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: n}\n"},
        {true, "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: a, namespace: n, ownerReferences: "
               "[{kind: Deployment, name: r, controller: true}]}\n"},
        {false, "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a, namespace: n, ownerReferences: "
                "[{kind: Postgres, name: r, controller: true}]}\n"},
        {true, "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a, namespace: n, ownerReferences: [{kind: "
               "CronJob, name: r, controller: true}]}\n"},
        {true, "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: pod-scratch, namespace: n, ownerReferences: [{kind: "
               "Pod, name: pod, controller: true}]}\n"},
        {false, "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: pg-1, namespace: n, ownerReferences: [{kind: "
                "Cluster, name: pg, controller: true}]}\n"},
        {true, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, namespace: n, "
               "labels: {endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}}\n"},
        {false, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, namespace: n}\n"},
        {true, "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a, namespace: n, labels: "
               "{endpoints.kubernetes.io/managed-by: endpoint-controller}}\n"},
        {true, "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a, namespace: n}\n"},
        {false, "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a, namespace: n}\nsubsets: [{addresses: [{ip: 192.0.2.7}]}]\n"},
        {true, "apiVersion: v1\nkind: Endpoints\nmetadata: {name: pg, namespace: n, annotations: {leader: pg-0, renewTime: x}}\n"
               "subsets: [{addresses: [{ip: 192.0.2.7}]}]\n"},
        {true, "apiVersion: v1\nkind: Endpoints\nmetadata: {name: kubernetes, namespace: default}\n"
               "subsets: [{addresses: [{ip: 192.0.2.7}]}]\n"},
        {true, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: kubernetes, namespace: default}\n"},
        {true, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, namespace: n, ownerReferences: "
               "[{kind: Mesh, name: m, controller: true}]}\n"},
        {true, "apiVersion: tidemark.io/v1alpha1\nkind: Recovery\nmetadata: {name: a, namespace: n}\n"},
        {true, "apiVersion: metrics.k8s.io/v1beta1\nkind: PodMetrics\nmetadata: {name: a, namespace: n}\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        _cleanup_json_ json_t *object = manifests_one(cases[i].text);
        if ((object_noise(object) != NULL) != cases[i].noise)
            fail_msg("case %zu: %s", i, cases[i].text);
    }
}

static void names_go_there_and_back(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct object_id id;
    char name[OBJECT_NAME_BYTES];
    check_ok(object_id_parse("core/v1/Namespace/_/shop", &id, &err));
    assert_string_equal(id.group, "");
    assert_string_equal(id.namespace, "");
    check_ok(object_journal_name(&id, name, &err));
    assert_string_equal(name, "core/v1/Namespace/_/shop");
    check_error(object_id_parse("core/v1/Namespace/shop", &id, &err), -EINVAL, "is not GROUP/");
    check_error(object_id_parse("core//Namespace/_/shop", &id, &err), -EINVAL, "is not GROUP/");
    check_error(object_id_parse("a/b/c/d/e/f", &id, &err), -EINVAL, "is not GROUP/");
    _cleanup_json_ json_t *bad = manifests_one("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a/b}\n");
    check_error(object_identify(bad, &id, &err), -EINVAL, "not a name");
    _cleanup_json_ json_t *none = manifests_one("apiVersion: v1\nkind: ConfigMap\n");
    check_error(object_identify(none, &id, &err), -EINVAL, "without metadata.name");
}

static void budgets_are_kept(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *object = manifests_one("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"),
                          *out = NULL;
    _cleanup_free_ char *big = calloc(1, OBJECT_BYTES_MAX + 2);
    memset(big, 'x', OBJECT_BYTES_MAX + 1);
    json_object_set_new(object, "data", json_pack("{s:s}", "a", big));
    check_error(object_normalize(object, &out, &err), -EFBIG, "bytes, more than");
    json_t *deep = json_object();
    json_object_set_new(object, "data", deep);
    for (unsigned i = 0; i < OBJECT_DEPTH_MAX + 2; i++) {
        json_t *next = json_object();
        json_object_set_new(deep, "a", next);
        deep = next;
    }
    check_error(object_normalize(object, &out, &err), -EFBIG, "nested deeper");
}

static void base64_is_exact(void **unused)
{
    (void)unused;
    size_t length;
    for (size_t n = 0; n < 20; n++) {
        _cleanup_free_ char *text = objects_base64_encode("\xff\x00hello, world, 12345", n);
        _cleanup_free_ char *back = objects_base64_decode(text, &length);
        assert_int_equal(length, n);
        assert_memory_equal(back, "\xff\x00hello, world, 12345", n);
    }
    assert_null(objects_base64_decode("abc", &length));
    assert_null(objects_base64_decode("a===", &length));
    assert_null(objects_base64_decode("ab=c", &length));
    assert_null(objects_base64_decode("a\xc3\xa4=", &length));
}

/* ---- references ---- */

static bool has(const json_t *list, const char *text)
{
    size_t i;
    json_t *value;
    json_array_foreach(list, i, value)
    {
        const char *one = json_is_object(value) ? objects_text(value, "name") : json_string_value(value);
        if (strcmp(one, text) == 0)
            return true;
    }
    return false;
}

static void the_closure_has_what_the_application_needs_and_no_more(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml"), *closure = NULL;
    check_ok(references_closure(set, "shop", &closure, &err));
    const json_t *cluster = json_object_get(closure, "cluster"),
                 *missing = json_object_get(closure, "missing");
    assert_true(has(cluster, "storage.k8s.io/v1/StorageClass/_/fast"));
    assert_true(has(cluster, "scheduling.k8s.io/v1/PriorityClass/_/data"));
    assert_true(has(cluster, "core/v1/Namespace/_/shop"));
    /* a binding that points at one of its service accounts, and the role of the binding */
    assert_true(has(cluster, "rbac.authorization.k8s.io/v1/ClusterRoleBinding/_/shop-node-reader"));
    assert_true(has(cluster, "rbac.authorization.k8s.io/v1/ClusterRole/_/shop-node-reader"));
    assert_false(has(cluster, "rbac.authorization.k8s.io/v1/ClusterRoleBinding/_/of-others"));
    assert_false(has(cluster, "storage.k8s.io/v1/StorageClass/_/unrelated"));
    assert_int_equal(json_array_size(cluster), 5);
    assert_true(has(missing, "nginx"));       /* ingress class */
    assert_true(has(missing, "letsencrypt")); /* cluster issuer */
    assert_true(has(missing, "raw"));         /* the class below the class */
    assert_true(has(missing, "shop-tls"));
    assert_true(has(missing, "shop-feature-flags"));
    assert_false(has(missing, "ann")); /* a user is no object */
    assert_false(has(missing, "cluster-admin"));
    size_t i;
    json_t *one;
    json_array_foreach(missing, i, one)
    {
        const char *name = objects_text(one, "name");
        bool optional = json_is_true(json_object_get(one, "optional"));
        assert_int_equal(optional, strcmp(name, "shop-tls") == 0 || strcmp(name, "shop-feature-flags") == 0 ||
                                       strcmp(name, "shop-db-extra") == 0);
        if (strcmp(name, "shop-feature-flags") == 0)
            assert_string_equal(objects_text(one, "field"),
                                "spec.template.spec.containers[web].envFrom[1].secretRef.name");
    }
}

static void a_custom_resource_needs_its_definition_and_guessed_secrets(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *set = manifests_set("operator.yaml"), *closure = NULL, *without = NULL;
    check_ok(references_closure(set, "certs", &closure, &err));
    const json_t *cluster = json_object_get(closure, "cluster"),
                 *missing = json_object_get(closure, "missing");
    assert_true(
        has(cluster, "apiextensions.k8s.io/v1/CustomResourceDefinition/_/certificates.certs.example.com"));
    assert_true(
        has(cluster, "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration/_/certs-webhook"));
    assert_true(has(missing, "root-key")); /* spec.issuer.keySecretRef.name */
    assert_int_equal(json_array_size(missing), 1);
    json_object_del(set, "apiextensions.k8s.io/v1/CustomResourceDefinition/_/certificates.certs.example.com");
    check_ok(references_closure(set, "certs", &without, &err));
    assert_true(has(json_object_get(without, "missing"), "of Certificate.certs.example.com"));
}

/* ---- findings ---- */

static const json_t *finding(const json_t *result, const char *host)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(result, "findings"), i, one)
    {
        if (strcmp(objects_text(one, "host"), host) == 0)
            return one;
    }
    return NULL;
}

static void state_outside_the_cluster_is_found(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml"), *result = NULL;
    static const struct {
        const char *host, *type;
        int port;
    } expected[] = {
        {"shop-wal.s3", "object storage", 0},         {"s3.eu-central-1.amazonaws.com", "object storage", 0},
        {"kafka-0.mq.example.net", "queue", 9092},    {"kafka-1.mq.example.net", "queue", 9092},
        {"reports.db.example.com", "database", 6432}, {"shop.example.com", "service", 0}};
    check_ok(findings_of_set(set, &result, &err));
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const json_t *one = finding(result, expected[i].host);
        if (!one)
            fail_msg("%s was not found", expected[i].host);
        assert_string_equal(objects_text(one, "type"), expected[i].type);
        assert_int_equal(json_integer_value(json_object_get(one, "port")), expected[i].port);
    }
    assert_int_equal(json_integer_value(json_object_get(result, "count")), 6);
}

static void a_finding_never_holds_a_secret(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml"), *result = NULL;
    check_ok(findings_of_set(set, &result, &err));
    _cleanup_free_ char *text = json_to_text(result);
    const char *const never[] = {"hunter2",    "aHVudGVy", "wo?rd",   "pa/ss",
                                 "t0p-s3cret", "report:",  "sslmode", "dwh"};
    for (size_t i = 0; i < sizeof never / sizeof *never; i++) {
        if (strstr(text, never[i]))
            fail_msg("'%s' is in %s", never[i], text);
    }
}

/* What may stand in a password as it is, or is not escaped although it ought to be. */
static void no_part_of_a_password_is_taken_for_a_host(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    static const char *const urls[] = {"mongodb://shop:1,se.cret@db.example.com:27017/x", "amqp://shop.user:5;se.cret@db.example.com:27017",
                                       "redis://:1,se.cret,x@db.example.com:27017,other.example.com", "mysql://se.cret:2/?,x@db.example.com:27017"};
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        _cleanup_json_ json_t *set = manifests_set_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: n}\n"), *result = NULL;
        json_object_set_new(json_object_get(set, "core/v1/ConfigMap/n/c"), "data", json_pack("{s:s}", "URL", urls[i]));
        check_ok(findings_of_set(set, &result, &err));
        _cleanup_free_ char *text = json_to_text(result);
        if (strstr(text, "cret") || strstr(text, "user"))
            fail_msg("%s: %s", urls[i], text);
        const json_t *one = finding(result, "db.example.com");
        assert_non_null(one);
        assert_int_equal(json_integer_value(json_object_get(one, "port")), 27017);
    }
    _cleanup_json_ json_t *several = manifests_set_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: n}\n"
                                                        "data: {URLS: 'http://a.example.com,http://u:p@b.example.com'}\n"),
                          *both = NULL;
    check_ok(findings_of_set(several, &both, &err));
    assert_non_null(finding(both, "a.example.com"));
    assert_non_null(finding(both, "b.example.com"));
}

static void services_without_selectors_point_outside(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *result = NULL,
                          *set = manifests_set_text(
                              "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: n}\nspec: "
                              "{type: ExternalName, externalName: db.example.org}\n"
                              "---\napiVersion: v1\nkind: Endpoints\nmetadata: {name: old, namespace: "
                              "n}\nsubsets: [{addresses: [{ip: 192.0.2.7}], ports: [{port: 5432}]}]\n"
                              "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: "
                              "n}\ndata: {A: 'redis://localhost:6379', B: 'http://db.n/', "
                              "C: 'http://db.n.svc.cluster.local/x', D: 'https://pg-0.db.n:1', SMTP_HOST: "
                              "mail, 'PASSWORD_HOST': 'a.b.c'}\n");
    check_ok(findings_of_set(set, &result, &err));
    assert_non_null(finding(result, "db.example.org"));
    assert_non_null(finding(result, "192.0.2.7"));
    assert_int_equal(json_integer_value(json_object_get(result, "count")), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(o1_equal_objects_are_equal_bytes),
        cmocka_unit_test(o2_normalizing_twice_is_normalizing_once),
        cmocka_unit_test(o3_status_does_not_count_but_that_a_job_has_ended),
        cmocka_unit_test(what_was_allocated_or_generated_is_not_kept),
        cmocka_unit_test(an_external_name_has_no_traffic_policy),
        cmocka_unit_test(secrets_leave_no_copy_in_annotations),
        cmocka_unit_test(noise_is_what_controllers_make_again),
        cmocka_unit_test(names_go_there_and_back),
        cmocka_unit_test(budgets_are_kept),
        cmocka_unit_test(base64_is_exact),
        cmocka_unit_test(the_closure_has_what_the_application_needs_and_no_more),
        cmocka_unit_test(a_custom_resource_needs_its_definition_and_guessed_secrets),
        cmocka_unit_test(state_outside_the_cluster_is_found),
        cmocka_unit_test(a_finding_never_holds_a_secret),
        cmocka_unit_test(no_part_of_a_password_is_taken_for_a_host),
        cmocka_unit_test(services_without_selectors_point_outside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
