/* SPDX-License-Identifier: Apache-2.0 */
/* Outlines: what is planned with is there, what only contents are is not. */
#include "manifests.h"

#include "app/objects_internal.h"
#include "app/outline.h"

static json_t *outline_of(json_t *object)
{
    struct error err = ERROR_INIT;
    json_t *out = NULL;
    check_ok(object_outline(object, &out, &err));
    return out;
}

/* The outline of `text` is `expected`; an object that nothing is left out of is its own. */
static void check_outline(const char *text, const char *expected)
{
    _cleanup_json_ json_t *object = manifests_one(text), *before = json_deep_copy(object),
                          *wanted = manifests_one(expected);
    _cleanup_json_ json_t *out = outline_of(object);
    assert_true(json_equal(out, wanted));
    assert_true(json_equal(object, before));
    assert_int_equal(out == object, json_equal(before, wanted));
}

static void test_contents(void **state)
{
    (void)state;
    check_outline("{apiVersion: v1, kind: ConfigMap, metadata: {name: a, labels: {b: c}}, data: {d: e}, "
                  "binaryData: {f: Zw==}}",
                  "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, labels: {b: c}}}");
    check_outline("{apiVersion: v1, kind: Secret, metadata: {name: a}, type: Opaque, stringData: {d: e}}",
                  "{apiVersion: v1, kind: Secret, metadata: {name: a}, type: Opaque}");
    /* Another's ConfigMap is none, and a Service has no contents. */
    check_outline("{apiVersion: x.org/v1, kind: ConfigMap, metadata: {name: a}, data: {d: e}}",
                  "{apiVersion: x.org/v1, kind: ConfigMap, metadata: {name: a}, data: {d: e}}");
    check_outline("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}",
                  "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}");
    check_outline("{apiVersion: v1, kind: Service, metadata: {name: a, managedFields: [{manager: helm, "
                  "operation: Update, fieldsV1: {'f:spec': {}}}]}}",
                  "{apiVersion: v1, kind: Service, metadata: {name: a, managedFields: [{manager: helm}]}}");
    check_outline("{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: "
                  "a}, spec: {group: x.org, versions: [{name: v1, schema: {a: b}}]}}",
                  "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: "
                  "a}, spec: {group: x.org, versions: [{name: v1}]}}");
}

static void test_long_texts(void **state)
{
    char text[OUTLINE_TEXT_BYTES + 2];
    (void)state;
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    _cleanup_json_ json_t *object =
        json_pack("{s:s, s:s, s:{s:s}, s:{s:s, s:s}}", "apiVersion", "apps/v1", "kind", "Deployment",
                  "metadata", "name", "a", "spec", "long", text, "short", "y");
    _cleanup_json_ json_t *out = outline_of(object);
    assert_string_equal(objects_text_at(out, "spec/long"), ""); /* that it is there may mean something */
    assert_string_equal(objects_text_at(out, "spec/short"), "y");
    text[OUTLINE_TEXT_BYTES] = '\0';
    json_object_set_new(json_object_get(object, "spec"), "long", json_string(text));
    _cleanup_json_ json_t *same = outline_of(object);
    assert_ptr_equal(same, object);
}

/* Of somebody else's kind there is a bound, whatever it is made of; not of Kubernetes' own. What it is called is there though it comes
 * last. */
static void test_bound(void **state)
{
    static const struct {
        const char *api_version, *kind;
        bool whole;
    } cases[] = {{"x.org/v1", "Board", false}, {"rbac.authorization.k8s.io/v1", "RoleBinding", true}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        _cleanup_json_ json_t *object = json_object();
        json_t *subjects = json_array();
        json_object_set_new(object, "subjects", subjects);
        for (size_t n = 0; n < 3 * OUTLINE_VALUES; n++)
            json_array_append_new(subjects, json_pack("{s:s}", "name", "x"));
        json_object_set_new(object, "apiVersion", json_string(cases[i].api_version));
        json_object_set_new(object, "kind", json_string(cases[i].kind));
        json_object_set_new(object, "metadata", json_pack("{s:s}", "name", "a"));
        _cleanup_json_ json_t *out = outline_of(object);
        assert_int_equal(out == object, cases[i].whole);
        assert_string_equal(objects_text(out, "kind"), cases[i].kind);
        assert_string_equal(objects_text_at(out, "metadata/name"), "a");
        assert_true(cases[i].whole || json_array_size(json_object_get(out, "subjects")) < OUTLINE_VALUES);
    }
}

/* What it is called and whom it belongs to counts whatever else its metadata have. */
static void test_metadata_are_whole(void **state)
{
    (void)state;
    char key[32];
    _cleanup_json_ json_t *annotations = json_object(), *owners = json_array();
    for (unsigned n = 0; n < OUTLINE_VALUES; n++) {
        snprintf(key, sizeof key, "a%u", n);
        json_object_set_new(annotations, key, json_string("x"));
        json_array_append_new(owners, json_pack("{s:s, s:s}", "name", key, "uid", key));
    }
    _cleanup_json_ json_t *object = json_pack("{s:s, s:s, s:{s:O, s:s, s:O, s:s}, s:[s]}", "apiVersion", "x.org/v1", "kind", "Board", "metadata",
                                              "annotations", annotations, "name", "a", "ownerReferences", owners, "uid", "u", "of", "it");
    _cleanup_json_ json_t *out = outline_of(object);
    assert_ptr_equal(out, object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_contents), cmocka_unit_test(test_long_texts),
                                       cmocka_unit_test(test_bound), cmocka_unit_test(test_metadata_are_whole)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
