/* SPDX-License-Identifier: Apache-2.0 */
/* What a change of a spec needs, and what is refused. */
#include "check.h"

#include <errno.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kinds), cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
