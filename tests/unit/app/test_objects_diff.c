/* SPDX-License-Identifier: Apache-2.0 */
/* What differs between two sets, and that no secret is in the answer. */
#include "manifests.h"

#include <errno.h>

#include "app/objects_diff.h"
#include "app/objects_internal.h"

static char *text_of(const char *from, const char *to, json_t **ret)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *a = manifests_set_text(from), *b = manifests_set_text(to), *diff = NULL;
    check_ok(objects_diff(a, b, &diff, &err));
    if (ret)
        *ret = json_incref(diff);
    return objects_diff_text(diff);
}

#define DEPLOYMENT "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: n}\nspec: "

static void a_change_is_told_by_field(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *diff = NULL;
    _cleanup_free_ char *text = text_of(
        DEPLOYMENT
        "{replicas: 2, template: {spec: {containers: [{name: a, image: x:1}, {name: b, image: y:1}]}}}\n---\n"
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: gone, namespace: n}\n---\n"
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: stays, namespace: n}\n",
        DEPLOYMENT "{replicas: 3, paused: true, template: {spec: {containers: [{name: b, image: y:2}, {name: "
                   "a, image: x:1}]}}}\n---\n"
                   "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fresh, namespace: n}\n---\n"
                   "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: stays, namespace: n}\n",
        &diff);
    assert_string_equal(text, "~ apps/v1/Deployment/n/web\n"
                              "    spec.replicas: 2 -> 3\n"
                              "    spec.template.spec.containers[b].image: \"y:1\" -> \"y:2\"\n"
                              "    spec.paused: (none) -> true\n"
                              "+ core/v1/ConfigMap/n/fresh\n"
                              "- core/v1/ConfigMap/n/gone\n");
    assert_int_equal(json_integer_value(json_object_get(diff, "created")), 1);
    assert_int_equal(json_integer_value(json_object_get(diff, "changed")), 1);
    assert_int_equal(json_integer_value(json_object_get(diff, "deleted")), 1);
    assert_int_equal(json_integer_value(json_object_get(diff, "same")), 1);
}

static void values_of_secrets_are_never_in_it(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *diff = NULL;
    _cleanup_free_ char *text = text_of(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: n}\ndata: {a: b2xkLXNlY3JldA==, same: "
        "eA==}\n---\n" DEPLOYMENT "{template: {spec: {containers: [{name: a, env: [{name: DB_PASSWORD, "
                                  "value: old-secret}, {name: X, value: plain}]}]}}}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: n}\ndata: {a: bmV3LXNlY3JldA==, b: "
        "bmV3LXNlY3JldA==, same: eA==}\n---\n" DEPLOYMENT
        "{template: {spec: {containers: [{name: a, env: [{name: DB_PASSWORD, value: new-secret}, {name: X, "
        "value: plain2}, {name: NEW_TOKEN, value: new-secret}]}, "
        "{name: b, env: [{name: API_KEY, value: new-secret}]}]}}}\n",
        &diff);
    _cleanup_free_ char *json = json_to_text(diff);
    const char *const never[] = {"old-secret", "new-secret", "b2xk", "bmV3"};
    for (size_t i = 0; i < 4; i++) {
        if (strstr(text, never[i]) || strstr(json, never[i]))
            fail_msg("'%s' is shown:\n%s\n%s", never[i], text, json);
    }
    assert_non_null(strstr(text, "data.a: \"(hidden)\" -> \"(hidden)\""));
    assert_non_null(strstr(text, "data.b: (none) -> \"(hidden)\""));
    assert_non_null(strstr(text, "env[X].value: \"plain\" -> \"plain2\""));
}

static void a_secret_that_becomes_empty_is_hidden_too(void **unused)
{
    (void)unused;
    _cleanup_free_ char *text = text_of(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: n}\ndata: {a: b2xkLXNlY3JldA==}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: n}\n", NULL);
    assert_string_equal(text, "~ core/v1/Secret/n/s\n    data: \"(hidden)\" -> (none)\n");
}

static void fields_are_limited_and_counted(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *a =
        manifests_set_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: n}\ndata: {}\n");
    _cleanup_json_ json_t *b = json_deep_copy(a), *diff = NULL;
    json_t *data = json_object_get(json_object_get(b, "core/v1/ConfigMap/n/c"), "data");
    for (int i = 0; i < (int)OBJECTS_DIFF_FIELDS_MAX + 7; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i);
        json_object_set_new(data, key, json_string("v"));
    }
    check_ok(objects_diff(a, b, &diff, &err));
    const json_t *entry = json_array_get(json_object_get(diff, "objects"), 0);
    assert_int_equal(json_array_size(json_object_get(entry, "fields")), OBJECTS_DIFF_FIELDS_MAX);
    assert_int_equal(json_integer_value(json_object_get(entry, "moreFields")), 7);
    _cleanup_free_ char *text = objects_diff_text(diff);
    assert_non_null(strstr(text, "and 7 more fields"));
}

static void a_set_does_not_differ_from_itself(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *set = manifests_set("shop.yaml"), *diff = NULL;
    check_ok(objects_diff(set, set, &diff, &err));
    _cleanup_free_ char *text = objects_diff_text(diff);
    assert_string_equal(text, "");
    assert_int_equal(json_integer_value(json_object_get(diff, "same")), (json_int_t)json_object_size(set));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_change_is_told_by_field),
        cmocka_unit_test(values_of_secrets_are_never_in_it),
        cmocka_unit_test(a_secret_that_becomes_empty_is_hidden_too),
        cmocka_unit_test(fields_are_limited_and_counted),
        cmocka_unit_test(a_set_does_not_differ_from_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
