/* SPDX-License-Identifier: Apache-2.0 */
/* What is done to an object before it is put into a cluster, and to the one that is there. */
#include "manifests.h"

#include <errno.h>

#include "app/objects_internal.h"
#include "app/reconcilers.h"
#include "app/restore.h"

static json_t *prepare(const json_t *set, const char *name, enum restore_mode mode, bool exists,
                       char reason[RESTORE_REASON_BYTES])
{
    struct error err = ERROR_INIT;
    json_t *out = NULL;
    if (!json_object_get(set, name))
        fail_msg("%s is not in the set", name);
    check_ok(restore_prepare(json_object_get(set, name), mode, exists, &out, reason, &err));
    return out;
}

static void claims_are_made_unbound(void **unused)
{
    (void)unused;
    char reason[RESTORE_REASON_BYTES];
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    const char *name = "core/v1/PersistentVolumeClaim/shop/data-shop-db-0";
    _cleanup_json_ json_t *fresh = prepare(set, name, RESTORE_RESTORE, false, reason),
                          *there = prepare(set, name, RESTORE_REWIND, true, reason);
    assert_null(objects_at(fresh, "spec/volumeName"));
    assert_non_null(objects_at(there, "spec/volumeName"));
    assert_string_equal(objects_text_at(fresh, "spec/storageClassName"), "fast");
}

static void a_clone_takes_nothing_from_the_original(void **unused)
{
    (void)unused;
    char reason[RESTORE_REASON_BYTES];
    _cleanup_json_ json_t *set = manifests_set("shop.yaml"), *operators = manifests_set("operator.yaml");
    _cleanup_json_ json_t *clone =
        prepare(set, "core/v1/Service/shop/shop-web", RESTORE_CLONE, false, reason);
    _cleanup_json_ json_t *restored =
        prepare(set, "core/v1/Service/shop/shop-web", RESTORE_RESTORE, false, reason);
    _cleanup_json_ json_t *headless =
        prepare(set, "core/v1/Service/shop/shop-db", RESTORE_CLONE, false, reason);
    assert_null(json_object_get(json_array_get(objects_at(clone, "spec/ports"), 1), "nodePort"));
    assert_non_null(json_object_get(json_array_get(objects_at(restored, "spec/ports"), 1), "nodePort"));
    assert_string_equal(objects_text_at(headless, "spec/clusterIP"), "None");
    assert_null(prepare(operators,
                        "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration/_/certs-webhook",
                        RESTORE_CLONE, false, reason));
    assert_non_null(strstr(reason, "must not check the objects of others"));
}

static void a_claim_that_has_grown_stays_so(void **unused)
{
    (void)unused;
    static const struct {
        const char *live, *wanted, *is;
    } cases[] = {{"2Gi", "1Gi", "2Gi"}, {"1Gi", "2Gi", "2Gi"}, {"1Gi", "1024Mi", "1024Mi"}, {"1073741825", "1Gi", "1073741825"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *claims[2];
        for (int side = 0; side < 2; side++)
            claims[side] = json_pack("{s:s, s:s, s:{s:s}, s:{s:{s:{s:s}}}}", "apiVersion", "v1", "kind", "PersistentVolumeClaim", "metadata", "name", "a", "spec",
                                     "resources", "requests", "storage", side ? cases[i].wanted : cases[i].live);
        assert_int_equal(restore_adopt_claim(claims[1], claims[0]), strcmp(cases[i].is, cases[i].wanted) != 0);
        assert_string_equal(objects_text_at(claims[1], "spec/resources/requests/storage"), cases[i].is);
        json_decref(claims[0]);
        json_decref(claims[1]);
    }
}

static void a_service_gives_back_what_its_type_does_not_have(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    char field[RESTORE_REASON_BYTES];
    _cleanup_json_ json_t *live = manifests_one(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: n, managedFields: [{fieldsV1: {'f:spec': {'f:type': {}}}}]}\n"
        "spec: {type: LoadBalancer, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], externalTrafficPolicy: Local, healthCheckNodePort: 31000, "
        "ports: [{name: a, port: 80, nodePort: 31001}, {name: b, port: 81, nodePort: 31002}]}\n");
    _cleanup_json_ json_t *plain = manifests_one("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: n}\nspec: {type: ClusterIP, ports: [{name: a, port: 80}]}\n"),
                          *none = manifests_one("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: n}\nspec: {type: ExternalName, externalName: x}\n"),
                          *headless = manifests_one("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: n}\nspec: {type: ClusterIP, clusterIP: None, ports: []}\n");
    _cleanup_json_ json_t *merged = NULL, *nameless = NULL;
    check_ok(restore_merge(live, plain, &merged, &err));
    assert_string_equal(objects_text_at(merged, "spec/clusterIP"), "10.96.0.9");
    assert_null(objects_at(merged, "spec/healthCheckNodePort"));
    assert_null(json_object_get(json_array_get(objects_at(merged, "spec/ports"), 0), "nodePort"));
    check_ok(restore_merge(live, none, &nameless, &err));
    assert_null(objects_at(nameless, "spec/clusterIP"));
    assert_null(objects_at(nameless, "spec/clusterIPs"));
    /* A headless one stays so, as far as the API server is concerned. */
    assert_int_equal(restore_way_of(headless, plain, field), RESTORE_RECREATE);
    assert_int_equal(restore_way_of(headless, none, field), RESTORE_UPDATE);
}

static void a_clone_answers_at_none_of_the_originals_addresses(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    char reason[RESTORE_REASON_BYTES];
    _cleanup_json_ json_t *service = manifests_one("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: n, annotations: {external-dns.alpha.kubernetes.io/hostname: "
                                                   "shop.example.com, metallb.io/loadBalancerIPs: 192.0.2.1}}\n"
                                                   "spec: {type: ClusterIP, externalTrafficPolicy: Cluster, externalIPs: [192.0.2.7], ports: [{port: 80}]}\n"),
                          *clone = NULL, *restored = NULL;
    check_ok(restore_prepare(service, RESTORE_CLONE, false, &clone, reason, &err));
    check_ok(restore_prepare(service, RESTORE_RESTORE, false, &restored, reason, &err));
    assert_null(objects_at(clone, "spec/externalIPs"));
    assert_null(objects_at(clone, "spec/externalTrafficPolicy"));
    assert_null(objects_at(clone, "metadata/annotations"));
    assert_true(json_equal(restored, service));
}

static void what_had_ended_does_not_run_again(void **unused)
{
    (void)unused;
    char reason[RESTORE_REASON_BYTES];
    _cleanup_json_ json_t *set = manifests_set("shop.yaml");
    assert_null(prepare(set, "batch/v1/Job/shop/migrate-41", RESTORE_REWIND, false, reason));
    assert_non_null(strstr(reason, "not run again"));
}

static void merging_keeps_what_nobody_asked_for_and_drops_what_came_later(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml"), *merged = NULL, *normal = NULL;
    const json_t *wanted = json_object_get(set, "core/v1/Service/shop/shop-web");
    _cleanup_json_ json_t *live =
        manifests_one("apiVersion: v1\nkind: Service\n"
                      "metadata: {name: shop-web, namespace: shop, uid: u1, resourceVersion: '900', "
                      "annotations: {added: later, pv.kubernetes.io/x: y}, labels: {new: label}, "
                      "finalizers: [service.kubernetes.io/load-balancer-cleanup, late.example.com/hook], "
                      "managedFields: [{manager: kubectl, fieldsV1: {'f:spec': {'f:ports': "
                      "{'k:{\"port\":443,\"protocol\":\"TCP\"}': {'f:nodePort': {}}}}}}]}\n"
                      "spec: {type: NodePort, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], selector: {app: "
                      "broken, tier: x}, "
                      "ports: [{name: debug, port: 9999, protocol: TCP, nodePort: 32000}, {name: http, port: "
                      "80, protocol: TCP, targetPort: http, nodePort: 31999}]}\n"
                      "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n");
    check_ok(restore_merge(live, wanted, &merged, &err));
    check_ok(object_normalize(merged, &normal, &err));
    _cleanup_free_ char *a = object_canonical(normal), *b = object_canonical(wanted);
    assert_string_equal(a, b); /* exactly as it was: nothing that came later is left */
    assert_string_equal(objects_text_at(merged, "spec/clusterIP"), "10.96.0.9");
    assert_string_equal(objects_text_at(merged, "metadata/resourceVersion"), "900");
    assert_string_equal(objects_text_at(merged, "metadata/uid"), "u1");
    assert_int_equal(
        json_integer_value(json_object_get(json_array_get(objects_at(merged, "spec/ports"), 0), "nodePort")),
        31999);
    assert_int_equal(json_array_size(objects_at(merged, "metadata/finalizers")), 1);
    assert_non_null(objects_at(merged, "metadata/annotations"));
    assert_non_null(objects_at(merged, "status/loadBalancer"));
}

/* Whatever was changed in an object after the point, merging the point's form into it gives the point's form.
 */
static void merging_gives_what_was_wanted_whatever_is_there(void **unused)
{
    (void)unused;
    const char *const files[] = {"shop.yaml", "operator.yaml"};
    uint64_t seed = check_seed();
    for (size_t f = 0; f < 2; f++) {
        _cleanup_json_ json_t *set = manifests_set(files[f]), *raw = manifests_file(files[f]);
        json_t *object;
        size_t i;
        json_array_foreach(raw, i, object)
        {
            struct error err = ERROR_INIT;
            struct object_id id;
            char name[OBJECT_NAME_BYTES];
            check_ok(object_identify(object, &id, &err));
            check_ok(object_journal_name(&id, name, &err));
            const json_t *wanted = json_object_get(set, name);
            _cleanup_json_ json_t *live = json_deep_copy(object);
            const char *key;
            json_t *value;
            void *next;
            json_object_foreach_safe(live, next, key, value)
            {
                if (strcmp(key, "metadata") == 0 || strcmp(key, "kind") == 0 ||
                    strcmp(key, "apiVersion") == 0 || strcmp(key, "status") == 0 ||
                    strcmp(id.kind, "Namespace") == 0)
                    continue;
                if (check_random(&seed) % 3 == 0)
                    json_object_del(live, key);
                else if (json_is_object(value))
                    json_object_set_new(value, "later", json_pack("{s:[i,i]}", "x", 1, 2));
            }
            json_object_set_new(json_object_get(live, "metadata"), "annotations",
                                json_pack("{s:s}", "later", "x"));
            _cleanup_json_ json_t *merged = NULL, *normal = NULL;
            check_ok(restore_merge(live, wanted, &merged, &err));
            check_ok(object_normalize(merged, &normal, &err));
            _cleanup_free_ char *a = object_canonical(normal), *b = object_canonical(wanted);
            assert_string_equal(a, b);
        }
    }
}

static void immutable_fields_mean_recreate_but_never_for_data(void **unused)
{
    (void)unused;
    static const struct {
        const char *live, *wanted, *field;
        enum restore_way way;
    } cases[] = {
        {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 1, selector: "
         "{matchLabels: {a: b}}}\n",
         "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 2, selector: "
         "{matchLabels: {a: b}}}\n",
         "", RESTORE_UPDATE},
        {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: "
         "b}}}\n",
         "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: "
         "c}}}\n",
         "spec.selector", RESTORE_RECREATE},
        {"apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\nspec: {replicas: 1, serviceName: a}\n",
         "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\nspec: {replicas: 3, serviceName: a}\n",
         "", RESTORE_UPDATE},
        {"apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\nspec: {serviceName: a}\n",
         "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\nspec: {serviceName: b}\n",
         "spec.serviceName", RESTORE_RECREATE},
        {"apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: a}\nspec: {storageClassName: a}\n",
         "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: a}\nspec: {storageClassName: b}\n",
         "spec.storageClassName", RESTORE_KEEP},
        {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nimmutable: true\ndata: {a: b}\n",
         "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nimmutable: true\ndata: {a: c}\n", "immutable",
         RESTORE_RECREATE},
        {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: x}]}\n",
         "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: y}]}\n", "",
         RESTORE_UPDATE},
        {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: x}]}\n",
         "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: x, args: "
         "[y]}]}\n",
         "spec", RESTORE_RECREATE},
        {"apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: a}\nroleRef: {name: "
         "a}\n",
         "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: a}\nroleRef: {name: "
         "b}\n",
         "roleRef", RESTORE_RECREATE},
        {"apiVersion: batch/v1\nkind: Job\nmetadata: {name: a}\nspec: {template: {a: b}, suspend: true}\n",
         "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a}\nspec: {template: {a: c}, suspend: false}\n",
         "spec.template", RESTORE_RECREATE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char field[RESTORE_REASON_BYTES];
        _cleanup_json_ json_t *live = manifests_one(cases[i].live), *wanted = manifests_one(cases[i].wanted);
        enum restore_way way = restore_way_of(live, wanted, field);
        if (way != cases[i].way || strcmp(field, cases[i].field) != 0)
            fail_msg("case %zu: way %d, field '%s'", i, (int)way, field);
    }
}

static const char *uid_of(void *context, const char *group, const char *kind, const char *namespace,
                          const char *name)
{
    (void)context;
    return strcmp(group, "apps") == 0 && strcmp(kind, "Deployment") == 0 && strcmp(namespace, "n") == 0 &&
                   strcmp(name, "here") == 0
               ? "new-uid"
               : NULL;
}

static void owners_get_the_new_uid_and_lost_ones_are_dropped(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    size_t dropped;
    _cleanup_json_ json_t *object =
        manifests_one("apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: n, ownerReferences: "
                      "[{apiVersion: apps/v1, kind: Deployment, name: gone}, "
                      "{apiVersion: apps/v1, kind: Deployment, name: here, uid: old}]}\n");
    check_ok(restore_owners(object, uid_of, NULL, &dropped, &err));
    assert_int_equal(dropped, 1);
    const json_t *owners = objects_at(object, "metadata/ownerReferences");
    assert_int_equal(json_array_size(owners), 1);
    assert_string_equal(objects_text(json_array_get(owners, 0), "uid"), "new-uid");
}

static void reconcilers_are_named(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml"), *list = NULL;
    check_ok(reconcilers_of_set(set, &list, &err));
    assert_int_equal(json_array_size(list), 3);
    const json_t *argo = json_array_get(list, 0);
    assert_string_equal(objects_text(argo, "reconciler"), "Argo CD");
    assert_string_equal(objects_text(argo, "name"), "shop");
    assert_true(json_is_true(json_object_get(argo, "reverts")));
    assert_string_equal(objects_text(json_array_get(list, 1), "reconciler"), "Helm");
    assert_string_equal(objects_text(json_array_get(list, 2), "reconciler"), "HorizontalPodAutoscaler");
}

static void isolation_lets_nothing_out_but_names(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *policy = restore_isolation_policy("test");
    assert_non_null(policy);
    _cleanup_free_ char *text = json_to_text(json_object_get(policy, "spec"));
    assert_string_equal(text, "{\"podSelector\":{},\"policyTypes\":[\"Ingress\",\"Egress\"],\"ingress\":[{"
                              "\"from\":[{\"podSelector\":{}}]}],"
                              "\"egress\":[{\"to\":[{\"podSelector\":{}}]},{\"ports\":[{\"protocol\":\"UDP\","
                              "\"port\":53},{\"protocol\":\"TCP\",\"port\":53}]}]}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(claims_are_made_unbound),
        cmocka_unit_test(a_clone_takes_nothing_from_the_original),
        cmocka_unit_test(what_had_ended_does_not_run_again),
        cmocka_unit_test(a_claim_that_has_grown_stays_so),
        cmocka_unit_test(a_service_gives_back_what_its_type_does_not_have),
        cmocka_unit_test(a_clone_answers_at_none_of_the_originals_addresses),
        cmocka_unit_test(merging_keeps_what_nobody_asked_for_and_drops_what_came_later),
        cmocka_unit_test(merging_gives_what_was_wanted_whatever_is_there),
        cmocka_unit_test(immutable_fields_mean_recreate_but_never_for_data),
        cmocka_unit_test(owners_get_the_new_uid_and_lost_ones_are_dropped),
        cmocka_unit_test(reconcilers_are_named),
        cmocka_unit_test(isolation_lets_nothing_out_but_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
