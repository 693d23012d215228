/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include "controller/controller_internal.h"

static json_t *claim_of(const char *namespace, const char *name, const char *uid)
{
    return json_pack("{s:{s:s, s:s, s:s*}, s:{s:s}}", "metadata", "namespace", namespace, "name", name, "uid", uid, "spec",
                     "volumeName", "pv-1");
}

/* Whose a volume is, the volume says: a claim may name any. */
static void a_claim_has_the_volume_that_says_so(void **state)
{
    (void)state;
    const struct {
        const char *namespace, *name, *uid; /* of the claim */
        const char *of_namespace, *of_name, *of_uid;
        bool bound;
    } cases[] = {
        {"shop", "data", "1", "shop", "data", "1", true},   {"shop", "data", "1", "shop", "data", NULL, true},
        {"shop", "data", NULL, "shop", "data", "1", true},  {"shop", "data", "2", "shop", "data", "1", false},
        {"thief", "data", "1", "shop", "data", "1", false}, {"shop", "other", "1", "shop", "data", "1", false},
        {"shop", "data", "1", NULL, NULL, NULL, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *claim = claim_of(cases[i].namespace, cases[i].name, cases[i].uid),
               *volume = cases[i].of_name ? json_pack("{s:{s:{s:s, s:s, s:s*}}}", "spec", "claimRef", "namespace",
                                                      cases[i].of_namespace, "name", cases[i].of_name, "uid", cases[i].of_uid)
                                          : json_pack("{s:{}}", "spec");
        if (volumes_is_bound(volume, claim) != cases[i].bound)
            fail_msg("case %zu", i);
        json_decref(claim);
        json_decref(volume);
    }
    assert_false(volumes_is_bound(NULL, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_claim_has_the_volume_that_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
