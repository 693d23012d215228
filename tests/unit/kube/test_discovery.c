/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "kube/discovery.h"

static const char *find(const struct kube_kinds *kinds, const char *api_version, const char *kind)
{
    const struct kube_resource *found = kube_kinds_find(kinds, api_version, kind);
    return found ? found->version : "none";
}

static void a_kind_is_found_in_its_version_or_in_the_preferred_one(void **unused)
{
    struct kube_resource preferred[] = {{"", "v1", "services", "Service", true, 0},
                                        {"x.io", "v1", "things", "Thing", true, 0},
                                        {"serving.x.io", "v1", "services", "Service", true, 0}},
                         others[] = {{"x.io", "v1beta1", "things", "Thing", true, 0}};
    const struct kube_kinds kinds = {.resources = preferred, .count = 3, .others = others, .other_count = 1};
    (void)unused;
    assert_string_equal(find(&kinds, "x.io/v1", "Thing"), "v1");
    assert_string_equal(find(&kinds, "x.io/v1beta1", "Thing"), "v1beta1");
    assert_string_equal(find(&kinds, "x.io/v1alpha1", "Thing"), "v1");
    assert_string_equal(find(&kinds, "v1", "Service"), "v1");
    assert_string_equal(find(&kinds, "/v1", "Service"), "v1");
    assert_string_equal(find(&kinds, "y.io/v1", "Thing"), "none");
    assert_string_equal(kube_kinds_find(&kinds, "serving.x.io/v1", "Service")->group, "serving.x.io");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_kind_is_found_in_its_version_or_in_the_preferred_one)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
