/* SPDX-License-Identifier: Apache-2.0 */
/* The order in which objects are made. */
#include "manifests.h"

#include <errno.h>

#include "app/objects_internal.h"
#include "app/order.h"

static int wave_of(const json_t *order, const char *name)
{
    size_t i, k;
    json_t *wave, *object;
    json_array_foreach(json_object_get(order, "waves"), i, wave)
    {
        json_array_foreach(json_object_get(wave, "objects"), k, object)
        {
            if (strcmp(json_string_value(object), name) == 0)
                return (int)i;
        }
    }
    fail_msg("%s is in no wave", name);
    return -1;
}

static bool awaits(const json_t *order, int wave, const char *condition, const char *object)
{
    size_t i;
    json_t *one;
    json_array_foreach(
        json_object_get(json_array_get(json_object_get(order, "waves"), (size_t)wave), "awaits"), i, one)
    {
        if (strcmp(objects_text(one, "condition"), condition) == 0 &&
            strcmp(objects_text(one, "object"), object) == 0)
            return true;
    }
    return false;
}

static void assert_before(const json_t *order, const char *first, const char *second)
{
    if (wave_of(order, first) >= wave_of(order, second))
        fail_msg("%s is not before %s", first, second);
}

static json_t *order_of(const json_t *set)
{
    struct error err = ERROR_INIT;
    json_t *order = NULL;
    check_ok(objects_order(set, &order, &err));
    return order;
}

static void what_is_needed_stands_before_what_needs_it(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml"), *order = order_of(set);
    static const char *const chain[] = {
        "core/v1/Namespace/_/shop",
        "storage.k8s.io/v1/StorageClass/_/fast",
        "core/v1/ServiceAccount/shop/shop-db",
        "rbac.authorization.k8s.io/v1/RoleBinding/shop/leader",
        "core/v1/Secret/shop/shop-db-credentials",
        "core/v1/PersistentVolumeClaim/shop/data-shop-db-0",
        "core/v1/Service/shop/shop-db",
        "apps/v1/StatefulSet/shop/shop-db",
        "networking.k8s.io/v1/Ingress/shop/shop",
    };
    for (size_t i = 1; i < sizeof chain / sizeof *chain; i++)
        assert_before(order, chain[i - 1], chain[i]);
    assert_before(order, "apps/v1/Deployment/shop/shop-web",
                  "autoscaling/v2/HorizontalPodAutoscaler/shop/shop-web");
    assert_int_equal(json_array_size(json_object_get(order, "cycles")), 0);
    size_t count = 0, i;
    json_t *wave;
    json_array_foreach(json_object_get(order, "waves"), i, wave) count +=
        json_array_size(json_object_get(wave, "objects"));
    assert_int_equal(count, json_object_size(set));
}

static void what_a_webhook_guards_waits_for_its_server(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set("operator.yaml"), *order = order_of(set);
    const char *definition =
        "apiextensions.k8s.io/v1/CustomResourceDefinition/_/certificates.certs.example.com";
    const char *hook = "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration/_/certs-webhook";
    const char *instance = "certs.example.com/v1/Certificate/certs/a-site",
               *service = "core/v1/Service/certs/webhook";
    assert_before(order, definition, "apps/v1/Deployment/certs/webhook");
    assert_before(order, "apps/v1/Deployment/certs/webhook", hook);
    assert_before(order, hook, instance);
    assert_true(awaits(order, wave_of(order, hook), "Endpoints", service));
    assert_true(awaits(order, wave_of(order, instance), "Endpoints", service));
    assert_true(awaits(order, wave_of(order, instance), "Established", definition));
    /* whatever their kinds: the owner first */
    assert_before(order, instance, "core/v1/Secret/certs/a-site-tls");
}

static void the_servers_own_kind_does_not_wait_for_itself(void **unused)
{
    (void)unused;
    /* A webhook that guards pods and deployments of everybody, its own server among them. */
    _cleanup_json_ json_t *set = manifests_set_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: n}\nspec: {selector: {a: b}}\n---\n"
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: server, namespace: n}\nspec: {template: "
        "{metadata: {labels: {a: b}}, spec: {containers: []}}}\n---\n"
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: other, namespace: n}\nspec: {template: "
        "{metadata: {labels: {a: c}}, spec: {containers: []}}}\n---\n"
        "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: "
        "h}\n"
        "webhooks: [{clientConfig: {service: {name: s, namespace: n}}, rules: [{apiGroups: ['*'], resources: "
        "['*/*']}]}]\n");
    _cleanup_json_ json_t *order = order_of(set);
    const char *hook = "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration/_/h";
    assert_before(order, "apps/v1/Deployment/n/server", hook);
    assert_before(order, hook, "apps/v1/Deployment/n/other");
    assert_true(
        awaits(order, wave_of(order, "apps/v1/Deployment/n/other"), "Endpoints", "core/v1/Service/n/s"));
    assert_int_equal(json_array_size(json_object_get(order, "cycles")), 0);
}

static void limits_come_after_what_may_be_older_and_before_what_makes_pods(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *set = manifests_set_text(
        "apiVersion: v1\nkind: LimitRange\nmetadata: {name: l, namespace: n}\n---\n"
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: q, namespace: n}\n---\n"
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: n}\n---\n"
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: d, namespace: n}\n---\n"
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: n}\nspec: {selector: {a: b}}\n---\n"
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n, labels: {a: c}}\nspec: {containers: []}\n---\n"
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w, namespace: n}\nspec: {template: {metadata: {labels: {a: b}}, spec: {containers: []}}}\n---\n"
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: h}\n"
        "webhooks: [{clientConfig: {service: {name: s, namespace: n}}, rules: [{apiGroups: [''], resources: ['limitranges', 'resourcequotas']}]}]\n");
    _cleanup_json_ json_t *order = order_of(set);
    static const char *const before[] = {"core/v1/ConfigMap/n/c", "core/v1/PersistentVolumeClaim/n/d", "core/v1/Service/n/s", "core/v1/Pod/n/p"},
                            *const limits[] = {"core/v1/LimitRange/n/l", "core/v1/ResourceQuota/n/q"};
    for (size_t l = 0; l < 2; l++) {
        for (size_t i = 0; i < sizeof before / sizeof *before; i++)
            assert_before(order, before[i], limits[l]);
        assert_before(order, limits[l], "apps/v1/Deployment/n/w");
    }
}

static void a_cycle_is_opened_where_no_owner_is_lost(void **unused)
{
    (void)unused;
    /* The deployment mounts a secret that it owns. */
    _cleanup_json_ json_t *set = manifests_set_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: n}\nspec: {template: {spec: "
        "{containers: [], volumes: [{name: v, secret: {secretName: s}}]}}}\n---\n"
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: n, ownerReferences: [{apiVersion: "
        "apps/v1, kind: Deployment, name: d}]}\n");
    _cleanup_json_ json_t *order = order_of(set);
    assert_before(order, "apps/v1/Deployment/n/d", "core/v1/Secret/n/s");
    assert_int_equal(json_array_size(json_object_get(order, "cycles")), 1);
    /* Owners in a ring: impossible, and yet in some order. */
    _cleanup_json_ json_t *ring =
        manifests_set_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: n, "
                           "ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: b}]}\n---\n"
                           "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: n, "
                           "ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: a}]}\n---\n"
                           "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: n, "
                           "ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: a}]}\n");
    _cleanup_json_ json_t *second = order_of(ring);
    assert_before(second, "core/v1/ConfigMap/n/a", "core/v1/ConfigMap/n/b");
    assert_before(second, "core/v1/ConfigMap/n/a", "core/v1/ConfigMap/n/c");
    assert_int_equal(json_array_size(json_object_get(second, "cycles")), 1);
}

/* Random owners and mounts: every owner is before what it owns, unless a cycle says otherwise; the order is
 * the same however the set was put together. */
static void random_graphs_are_ordered_the_same_each_time(void **unused)
{
    (void)unused;
    uint64_t seed = check_seed();
    for (int round = 0; round < 60; round++) {
        json_t *forward = json_object(), *backward = json_object();
        int count = 2 + (int)(check_random(&seed) % 40);
        json_t *objects = json_array();
        for (int i = 0; i < count; i++) {
            json_t *object = json_pack("{s:s, s:s, s:{s:s}}", "apiVersion", "v1", "kind",
                                       i % 3 ? "ConfigMap" : "Service", "metadata", "namespace", "n");
            char name[16];
            snprintf(name, sizeof name, "o%d", i);
            json_object_set_new(json_object_get(object, "metadata"), "name", json_string(name));
            if (check_random(&seed) % 2 && i > 0) {
                int to = (int)(check_random(&seed) % (uint64_t)i);
                snprintf(name, sizeof name, "o%d", to);
                json_object_set_new(json_object_get(object, "metadata"), "ownerReferences",
                                    json_pack("[{s:s, s:s, s:s}]", "apiVersion", "v1", "kind",
                                              to % 3 ? "ConfigMap" : "Service", "name", name));
            }
            json_array_append_new(objects, object);
        }
        struct error err = ERROR_INIT;
        for (int i = 0; i < count; i++) {
            check_ok(objects_add(forward, json_array_get(objects, (size_t)i), NULL, &err));
            check_ok(objects_add(backward, json_array_get(objects, (size_t)(count - 1 - i)), NULL, &err));
        }
        _cleanup_json_ json_t *a = order_of(forward), *b = order_of(backward);
        assert_true(json_equal(a, b));
        assert_int_equal(json_array_size(json_object_get(a, "cycles")), 0);
        for (int i = 0; i < count; i++) {
            const json_t *object = json_array_get(objects, (size_t)i);
            const json_t *owner = json_array_get(objects_at(object, "metadata/ownerReferences"), 0);
            char mine[64], its[64];
            if (!owner)
                continue;
            snprintf(mine, sizeof mine, "core/v1/%s/n/%s", objects_text(object, "kind"),
                     objects_text_at(object, "metadata/name"));
            snprintf(its, sizeof its, "core/v1/%s/n/%s", objects_text(owner, "kind"),
                     objects_text(owner, "name"));
            assert_before(a, its, mine);
        }
        json_decref(forward);
        json_decref(backward);
        json_decref(objects);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_needed_stands_before_what_needs_it),
        cmocka_unit_test(what_a_webhook_guards_waits_for_its_server),
        cmocka_unit_test(the_servers_own_kind_does_not_wait_for_itself),
        cmocka_unit_test(limits_come_after_what_may_be_older_and_before_what_makes_pods),
        cmocka_unit_test(a_cycle_is_opened_where_no_owner_is_lost),
        cmocka_unit_test(random_graphs_are_ordered_the_same_each_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
