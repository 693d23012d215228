/* SPDX-License-Identifier: Apache-2.0 */
/* What a change of a spec needs, and what is refused. */
#include "check.h"

#include <errno.h>
#include <pthread.h>

#include "control/apply_internal.h"

static struct app_documents *parse(const char *spec)
{
    struct error err = ERROR_INIT;
    struct app_parse_options options = {.file = "f.yaml"};
    struct app_documents *documents = NULL;
    char text[1024];
    snprintf(
        text, sizeof text,
        "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\nspec: {%s}\n",
        spec);
    check_ok(app_documents_parse(&options, text, strlen(text), &documents, &err));
    return documents;
}

static int classify(const char *old_text, const char *new_text, enum change_kind *ret, struct error *err)
{
    _cleanup_app_documents_ struct app_documents *old = parse(old_text), *new = parse(new_text);
    return change_classify(old->items[0].spec, new->items[0].spec, ret, err);
}

#define A "{name: a, size: 1Gi, mountPath: /m/a}"
#define B "{name: b, size: 1Gi, mountPath: /m/b}"

static void kinds(void **unused)
{
    static const struct {
        const char *old, *new;
        enum change_kind kind;
    } cases[] = {
        {"volumes: [" A "]", "volumes: [" A "]", CHANGE_NONE},
        {"volumes: [" A "]", "export: fuse, policyRef: {name: default}, volumes: [" A "]", CHANGE_NONE},
        {"volumes: [" A "]", "volumes: [" A "], lifecycle: {stop: x}", CHANGE_LIGHT},
        {"volumes: [" A "]", "volumes: [" A "], manifests: /x", CHANGE_LIGHT},
        {"volumes: [" A "]", "volumes: [" A "], policyRef: {name: gold}", CHANGE_LIGHT},
        {"volumes: [" A "]", "volumes: [{name: a, size: 2Gi, mountPath: /m/a}]", CHANGE_LIGHT},
        {"volumes: [{name: a, source: /d}]", "volumes: [{name: a, source: /d}]", CHANGE_NONE},
        {"volumes: [" A "]", "volumes: [" A ", " B "]", CHANGE_REMOUNT},
        {"volumes: [" A ", " B "]", "volumes: [" B ", " A "]", CHANGE_REMOUNT},
        {"volumes: [" A "]", "volumes: [{name: a, size: 1Gi, mountPath: /n}]", CHANGE_REMOUNT},
        {"volumes: [" A "]", "volumes: [{name: a, size: 1024Mi}]", CHANGE_REMOUNT},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        enum change_kind kind;
        check_ok(classify(cases[i].old, cases[i].new, &kind, &err));
        assert_int_equal(kind, cases[i].kind);
    }
}

static void refused(void **unused)
{
    struct error err = ERROR_INIT;
    enum change_kind kind;
    (void)unused;
    check_error(
        classify("volumes: [" A "]", "volumes: [{name: a, size: 512Mi, mountPath: /m/a}]", &kind, &err),
        -EINVAL, "volume a of shop cannot shrink from 1.0 GiB to 512.0 MiB");
    check_error(classify("volumes: [{name: a, source: /d}]", "volumes: [{name: a, source: /e}]", &kind, &err),
                -EINVAL, "source of volume a of shop cannot change (it is /d)");
    check_error(classify("volumes: [" A "]", "volumes: [{name: a, source: /e}]", &kind, &err), -EINVAL,
                "`tidemark detach shop`");
    check_error(classify("volumes: [" A ", " B "]", "volumes: [" B "]", &kind, &err), -EINVAL,
                "cannot be removed or renamed");
    check_error(classify("volumes: [" A "]", "volumes: [{name: a, size: 1Gi, mountPath: /m/a, fsType: xfs}]",
                         &kind, &err),
                -EINVAL, "fsType of volume a");
    check_error(classify("volumes: [{name: a, size: 1Gi}]", "export: nbd, volumes: [{name: a, size: 1Gi}]",
                         &kind, &err),
                -EINVAL, "`tidemark delete shop` keeps data and journal");
}

static void *wait_for_it(void *application)
{
    static struct error err = ERROR_INIT;
    return application_begin(application, "key rotate", 60000, &err) < 0 ? &err : NULL;
}

/* Else a key that is rotated then, say, would write the configuration of an application that was deleted, and it would be back. */
static void nobody_begins_anything_with_what_is_deleted(void **unused)
{
    static struct control control = {.state_directory = "/nowhere", .wake_fd = -1};
    struct error err = ERROR_INIT;
    pthread_t thread;
    void *result;
    (void)unused;
    pthread_mutex_init(&control.mutex, NULL);
    _cleanup_app_documents_ struct app_documents *documents = parse("volumes: [" A "]");
    struct application *a = application_new(&control, take_ptr(documents->items[0].spec), &err);
    assert_non_null(a);
    application_list(a);
    check_ok(application_begin(a, "delete", 0, &err));
    assert_int_equal(pthread_create(&thread, NULL, wait_for_it, a), 0);
    application_unlist(a);
    application_end(a);
    pthread_join(thread, &result);
    assert_non_null(result);
    assert_int_equal(((struct error *)result)->code, -ENOENT);
    assert_non_null(strstr(((struct error *)result)->message, "there is no application 'shop' any more"));
    application_unref(a);
}

static void a_clones_volumes_have_different_names(void **unused)
{
    struct error err = ERROR_INIT;
    (void)unused;
    _cleanup_json_ json_t *good = json_pack("{s:s, s:s, s:{s:s, s:s}}", "name", "new", "point", "latest", "volumes", "a", "b", "b", "a"),
                          *bad = json_pack("{s:s, s:s, s:{s:s, s:s}}", "name", "new", "point", "latest", "volumes", "a", "x", "b", "x");
    check_ok(clone_check_request(good, &err));
    check_error(clone_check_request(bad, &err), -EINVAL, "a and b cannot both be named x");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kinds), cmocka_unit_test(refused),
                                       cmocka_unit_test(nobody_begins_anything_with_what_is_deleted),
                                       cmocka_unit_test(a_clones_volumes_have_different_names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
