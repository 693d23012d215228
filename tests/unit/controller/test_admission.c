/* SPDX-License-Identifier: Apache-2.0 */
/* Reviews without an API server. Invariants A1..A3: controller/admission.h. */
#include "../../check.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "controller/admission.h"
#include "lib/json.h"

/* ---- what can be looked up ---- */

struct cluster {
    json_t *objects;    /* {"PLURAL/NAMESPACE/NAME": object} */
    const char *denied; /* a verb and a resource that the user may not */
    bool away;
};

static int get(void *context, const struct kube_resource *resource, const char *namespace, const char *name,
               json_t **ret, struct error *err)
{
    struct cluster *c = context;
    char key[200];
    snprintf(key, sizeof key, "%s/%s/%s", resource->plural, namespace ? namespace : "", name);
    if (c->away)
        return error_set(err, -ECONNREFUSED, "away");
    *ret = json_incref(json_object_get(c->objects, key));
    return *ret ? 0 : error_set(err, -ENOENT, "no %s", key);
}

static int list(void *context, const struct kube_resource *resource, const char *namespace, json_t **ret,
                struct error *err)
{
    struct cluster *c = context;
    const char *key;
    json_t *value;
    char prefix[200];
    if (c->away)
        return error_set(err, -ECONNREFUSED, "away");
    *ret = json_array();
    snprintf(prefix, sizeof prefix, "%s/%s", resource->plural, namespace ? namespace : "");
    json_object_foreach(c->objects, key, value) if (strncmp(key, prefix, strlen(prefix)) == 0)
        json_array_append(*ret, value);
    return 0;
}

static int may(void *context, const json_t *user, const struct admission_right *right, bool *ret,
               struct error *err)
{
    struct cluster *c = context;
    char text[100];
    (void)user;
    snprintf(text, sizeof text, "%s %s %s", right->verb, right->resource, right->namespace);
    *ret = !c->denied || strcmp(text, c->denied) != 0;
    return c->away ? error_set(err, -ECONNREFUSED, "away") : 0;
}

static const struct admission_ops ops = {get, list, may};

/* ---- asking ---- */

static json_t *parse(const char *text)
{
    json_t *ret = NULL;
    struct error err = ERROR_INIT;
    if (json_parse("test", text, strlen(text), &ret, &err) < 0)
        fail_msg("%s", err.message);
    return ret;
}

#define PAPP "{'metadata': {'name': 'shop', 'namespace': 'shop'}, 'spec': {'policyRef': {'name': 'gold'}}}"
#define RECOVERY(metadata, spec)                                                                             \
    "{'metadata': {'name': 'r', 'namespace': 'shop'" metadata "}, 'spec': {" spec "}}"
#define REWIND "'application': 'shop', 'mode': 'rewind', 'point': '-90s'"

/* Texts in single quotes. `old` NULL: created. The response, owned by the caller. */
static json_t *ask(struct cluster *c, enum admission_phase phase, const char *kind, const char *object,
                   const char *old)
{
    char text[4000];
    const struct admission a = {.ops = &ops, .context = c, .home = "tidemark-system"};
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *review = NULL;
    json_t *answer = NULL, *response;
    snprintf(text, sizeof text,
             "{'request': {'uid': 'u1', 'kind': {'kind': '%s'}, 'namespace': 'shop', 'name': 'r', "
             "'userInfo': {'username': 'ann', "
             "'uid': '7', 'groups': ['a', 'b'], 'extra': {'k': ['v']}}, 'object': %s, 'oldObject': %s}}",
             kind, object ? object : "null", old ? old : "null");
    for (char *p = text; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    review = parse(text);
    if (!c->objects) {
        char papp[] = PAPP;
        for (char *p = papp; *p; p++)
            *p = *p == '\'' ? '"' : *p;
        c->objects = json_pack("{s:o, s:{}}", "protectedapplications/shop/shop", parse(papp),
                               "protectionpolicies//gold");
    }
    assert_int_equal(admission_review(&a, phase, review, &answer, &err), 0);
    response = json_incref(json_object_get(answer, "response"));
    json_decref(answer);
    assert_string_equal(json_string_value(json_object_get(response, "uid")), "u1");
    return response;
}

static void end(struct cluster *c)
{
    json_decref(c->objects);
}

/* What the annotation becomes by the patch; NULL: it is not touched; "": removed. */
static char *patched(const json_t *response, size_t *ret_count)
{
    const char *encoded = json_string_value(json_object_get(response, "patch"));
    unsigned char text[4000] = "";
    char *ret = NULL;
    size_t i;
    json_t *op;
    *ret_count = 0;
    if (!encoded)
        return NULL;
    assert_true(EVP_DecodeBlock(text, (const unsigned char *)encoded, (int)strlen(encoded)) > 0);
    _cleanup_json_ json_t *patch = parse((char *)text);
    *ret_count = json_array_size(patch);
    json_array_foreach(patch, i,
                       op) if (strstr(json_string_value(json_object_get(op, "path")), "requested-by"))
    {
        const char *value = json_string_value(json_object_get(op, "value"));
        free(ret);
        ret = strdup(value ? value : "");
    }
    return ret;
}

#define WHO "{\"username\":\"ann\",\"uid\":\"7\",\"groups\":[\"a\",\"b\"],\"extra\":{\"k\":[\"v\"]}}"
#define ANNOTATED(value) ", 'annotations': {'tidemark.io/requested-by': '" value "'}"

static void check_patch(const char *object, const char *old, const char *wanted, size_t wanted_count)
{
    struct cluster c = {0};
    size_t count;
    json_t *response = ask(&c, ADMISSION_MUTATE, "Recovery", object, old);
    char *text = patched(response, &count);
    assert_true(json_is_true(json_object_get(response, "allowed")));
    assert_int_equal(count, wanted_count);
    if (wanted)
        assert_string_equal(text, wanted);
    else
        assert_null(text);
    free(text);
    json_decref(response);
    end(&c);
}

static void a1_who_asked_is_written_and_stays(void **state)
{
    (void)state;
    check_patch(RECOVERY("", REWIND), NULL, WHO, 2);
    check_patch(RECOVERY(", 'annotations': {'x': 'y'}", REWIND), NULL, WHO, 1);
    check_patch(RECOVERY(ANNOTATED("forged"), REWIND), NULL, WHO, 1);
    check_patch(RECOVERY(ANNOTATED("forged"), REWIND), RECOVERY(ANNOTATED("first"), REWIND), "first", 1);
    check_patch(RECOVERY("", REWIND), RECOVERY(ANNOTATED("first"), REWIND), "first", 2);
    check_patch(RECOVERY(ANNOTATED("first"), REWIND), RECOVERY(ANNOTATED("first"), REWIND), NULL, 0);
    check_patch(RECOVERY(ANNOTATED("forged"), REWIND), RECOVERY("", REWIND), "", 1); /* nobody was recorded */
    check_patch(RECOVERY("", REWIND), RECOVERY("", REWIND), NULL, 0);
}

/* `because` NULL: it is let in. */
static void check(struct cluster *c, const char *kind, const char *object, const char *old,
                  const char *because)
{
    json_t *response = ask(c, ADMISSION_VALIDATE, kind, object, old);
    const char *message = json_string_value(json_object_get(json_object_get(response, "status"), "message"));
    if (because ? !message || !strstr(message, because) : message != NULL)
        fail_msg("%s: %s, not %s", object, message ? message : "let in", because ? because : "let in");
    assert_int_equal(json_is_true(json_object_get(response, "allowed")), !because);
    json_decref(response);
    end(c);
}

#define Q "\\\"" /* a quote within a text */
#define MADE                                                                                                 \
    "'annotations': {'tidemark.io/requested-by': '{" Q "username" Q ":" Q "ann" Q "," Q "uid" Q ":" Q "7" Q  \
    "," Q "groups" Q ":[" Q "a" Q "," Q "b" Q "]," Q "extra" Q ":{" Q "k" Q ":[" Q "v" Q "]}}'}"
#define MINE(spec) RECOVERY(", " MADE, spec)

static void a1_a_webhook_that_comes_later_cannot_change_it(void **state)
{
    (void)state;
    check(&(struct cluster){0}, "Recovery", MINE(REWIND), NULL, NULL);
    check(&(struct cluster){0}, "Recovery", RECOVERY(ANNOTATED("forged"), REWIND), NULL, "changed after it");
    check(&(struct cluster){0}, "Recovery", RECOVERY("", REWIND), NULL, "changed after it");
    check(&(struct cluster){0}, "Recovery", RECOVERY("", REWIND), RECOVERY(ANNOTATED("first"), REWIND),
          "changed after it");
    check(&(struct cluster){0}, "Recovery", RECOVERY(ANNOTATED("first"), REWIND),
          RECOVERY(ANNOTATED("first"), REWIND), NULL);
}

static void a2_what_cannot_be_looked_up_refuses_recoveries_alone(void **state)
{
    (void)state;
    check(&(struct cluster){.away = true}, "Recovery", MINE(REWIND), NULL, "away");
    struct cluster c = {.away = true};
    json_t *response = ask(&c, ADMISSION_VALIDATE, "ProtectedApplication", PAPP, NULL);
    assert_true(json_is_true(json_object_get(response, "allowed")));
    assert_int_equal(json_array_size(json_object_get(response, "warnings")), 1);
    json_decref(response);
    end(&c);
}

static void what_reads_or_changes_another_namespace_needs_rights_there(void **state)
{
    (void)state;
#define FROM(mode, more) MINE("'application': 'shop', 'point': 'latest', 'mode': '" mode "'" more)
    const struct {
        const char *object, *denied, *because;
    } cases[] = {
        {FROM("rewind", ""), "get secrets shop", NULL},
        {FROM("clone", ", 'targetNamespace': 'test'"), "get secrets shop",
         "ann may not get secrets in the namespace shop"},
        {FROM("clone", ", 'targetNamespace': 'test'"), "create recoveries test", NULL},
        {FROM("clone", ", 'targetNamespace': 'test'"), "create persistentvolumeclaims test",
         "ann may not create persistentvolumeclaims in the namespace test"},
        {FROM("clone", ", 'targetNamespace': 'test', 'objectsOnly': true"),
         "create persistentvolumeclaims test", NULL},
        {FROM("clone", ", 'sourceNamespace': 'other', 'targetNamespace': 'shop'"),
         "create persistentvolumeclaims shop", NULL},
        {FROM("clone", ", 'targetNamespace': 'kube-system'"), NULL, "kube-system is the cluster's own"},
        {FROM("restore", ", 'targetNamespace': 'kube-public'"), NULL, "is the cluster's own"},
        {FROM("clone", ", 'targetNamespace': 'tidemark-system'"), NULL, "tidemark-system is Tidemark's own"},
        {FROM("restore", ", 'sourceNamespace': 'tidemark-system', 'targetNamespace': 'tidemark-system'"), NULL, NULL},
        {FROM("restore", ", 'sourceNamespace': 'kube-system', 'targetNamespace': 'kube-system'"), NULL, NULL},
        {FROM("restore", ""), "get secrets shop", NULL},
        {FROM("restore", ", 'targetNamespace': 'test'"), "get secrets shop", "may not get secrets"},
        {FROM("restore", ", 'targetNamespace': 'test'"), "create recoveries test",
         "may not create recoveries in the namespace test"},
        {FROM("restore", ", 'sourceNamespace': 'other', 'targetNamespace': 'shop'"), "create recoveries shop",
         NULL},
        {FROM("restore", ", 'sourceNamespace': 'other'"), "get secrets other",
         "may not get secrets in the namespace other"},
        {FROM("restore", ", 'sourceNamespace': 'other'"), "create recoveries other",
         "may not create recoveries in the namespace other"},
        {FROM("clone", ", 'sourceNamespace': 'other', 'targetNamespace': 'shop'"), "get secrets other",
         "may not get secrets"},
        {FROM("clone", ", 'sourceNamespace': 'other', 'targetNamespace': 'shop'"), "create recoveries shop",
         NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(&(struct cluster){.denied = cases[i].denied}, "Recovery", cases[i].object, NULL,
              cases[i].because);
}

/* What the chart's ValidatingAdmissionPolicy says where there is one. */
/* What annotations and labels hold need be no name: nothing would be protected, and nobody told. */
static void a_name_that_no_application_can_have_is_warned_of(void **state)
{
    (void)state;
#define NAMED(where, name) "{'metadata': {'name': 'd', 'annotations': {'tidemark.io/policy': 'gold'" where "'tidemark.io/application': '" name "'}}}"
    const struct {
        const char *object;
        bool warns;
    } cases[] = {{NAMED(", ", "My App"), true},      {NAMED(", ", "Shop"), true},     {NAMED(", ", "a/../b"), true},
                 {NAMED("}, 'labels': {", "a_b"), true}, {NAMED(", ", "-a"), true},       {NAMED(", ", "a..b"), true},
                 {NAMED(", ", "shop.v2"), false},    {NAMED("}, 'labels': {", "a-b"), false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cluster c = {0};
        json_t *response = ask(&c, ADMISSION_VALIDATE, "Deployment", cases[i].object, NULL);
        assert_true(json_is_true(json_object_get(response, "allowed")));
        if ((json_array_size(json_object_get(response, "warnings")) == 1) != cases[i].warns)
            fail_msg("%s", cases[i].object);
        json_decref(response);
        end(&c);
    }
}

static void a_namespace_that_requires_a_policy_takes_no_state_without(void **state)
{
    static const struct {
        bool allowed;
        const char *kind, *object;
    } cases[] = {
        {false, "PersistentVolumeClaim", "{'metadata': {'name': 'd'}, 'spec': {}}"},
        {false, "StatefulSet", "{'metadata': {'name': 's'}, 'spec': {}}"},
        {false, "Pod", "{'metadata': {'name': 'p'}, 'spec': {'volumes': [{'emptyDir': {}}, {'hostPath': {'path': '/'}}]}}"},
        {false, "Deployment", "{'metadata': {'name': 'd'}, 'spec': {'template': {'spec': {'volumes': [{'ephemeral': {}}]}}}}"},
        {false, "DaemonSet", "{'spec': {'template': {'spec': {'volumes': [{'persistentVolumeClaim': {'claimName': 'c'}}]}}}}"},
        {true, "Deployment", "{'metadata': {'name': 'd'}, 'spec': {'template': {'spec': {'volumes': [{'configMap': {}}]}}}}"},
        {true, "Pod", "{'metadata': {'name': 'p'}, 'spec': {}}"},
        {true, "PersistentVolumeClaim", "{'metadata': {'name': 'd', 'annotations': {'tidemark.io/policy': 'gold'}}, 'spec': {}}"}};
    static const char *const namespaces[] = {"{'metadata': {'labels': {'tidemark.io/require-policy': 'true'}}}",
                                             "{'metadata': {'labels': {'tidemark.io/require-policy': 'no'}}}",
                                             ("{'metadata': {'labels': {'tidemark.io/require-policy': 'true'}, 'annotations': "
                                              "{'tidemark.io/policy': 'gold'}}}")};
    (void)state;
    for (size_t n = 0; n < 3; n++) {
        json_t *objects = json_object();
        char text[300];
        snprintf(text, sizeof text, "%s", namespaces[n]);
        for (char *p = text; *p; p++)
            *p = *p == '\'' ? '"' : *p;
        json_object_set_new(objects, "namespaces//shop", parse(text));
        json_object_set_new(objects, "protectionpolicies//gold", json_object());
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            bool allowed = n > 0 || cases[i].allowed;
            check(&(struct cluster){.objects = json_incref(objects)}, cases[i].kind, cases[i].object, NULL,
                  allowed ? NULL : "takes nothing with state that no policy covers");
        }
        check(&(struct cluster){.objects = json_incref(objects), .away = true}, "StatefulSet", cases[1].object, NULL, NULL); /* A2 */
        json_decref(objects);
    }
}

static void reviews_that_are_none_are_an_error(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}", "{\"request\": 1}", "{\"request\": {}}",
                                        "{\"request\": {\"uid\": 5}}"};
    struct cluster c = {0};
    const struct admission a = {.ops = &ops, .context = &c};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct error err = ERROR_INIT;
        json_t *answer = NULL;
        _cleanup_json_ json_t *review = parse(texts[i]);
        assert_int_equal(admission_review(&a, ADMISSION_VALIDATE, review, &answer, &err), -EINVAL);
        assert_null(answer);
    }
    /* and what is no object where one is expected refuses, or passes, but never fails */
    check(&(struct cluster){0}, "Recovery", "{'metadata': 3, 'spec': 'x'}", NULL, "changed after it");
    check(&(struct cluster){0}, "Checkpoint", "{'metadata': [], 'spec': {'application': 3}}", NULL, NULL);
    check(&(struct cluster){0}, "ProtectionPolicy", "{'spec': {'extends': {}}}", NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a1_who_asked_is_written_and_stays),
        cmocka_unit_test(a1_a_webhook_that_comes_later_cannot_change_it),
        cmocka_unit_test(a2_what_cannot_be_looked_up_refuses_recoveries_alone),
        cmocka_unit_test(what_reads_or_changes_another_namespace_needs_rights_there),
        cmocka_unit_test(a_name_that_no_application_can_have_is_warned_of),
        cmocka_unit_test(a_namespace_that_requires_a_policy_takes_no_state_without),
        cmocka_unit_test(reviews_that_are_none_are_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
