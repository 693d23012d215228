/* SPDX-License-Identifier: Apache-2.0 */
/* What of a cluster's policy the data plane is told. */
#include "check.h"

#include "controller/stream_policy.h"
#include "lib/json.h"

static json_t *get(void *context, const char *name)
{
    return json_incref(json_object_get(context, name));
}

static const char *wanted_history;

static void expect(const char *policies, const char *name, const char *ack_mode, const char *expected)
{
    _cleanup_json_ json_t *all = json_loads(policies, 0, NULL), *want = json_loads(expected, JSON_DECODE_ANY, NULL);
    assert_non_null(all);
    _cleanup_json_ json_t *is = stream_policy(get, all, name, ack_mode, wanted_history);
    if (json_is_null(want))
        assert_null(is);
    else
        assert_true(json_equal(is, want));
}

static void the_journal_and_the_modes_are_told(void **unused)
{
    (void)unused;
    expect("{\"gold\": {\"spec\": {\"journal\": {\"quota\": \"8Gi\", \"history\": \"30d\", \"thinning\": [], \"seedRate\": \"1Mi\"}, \"failureMode\": "
           "\"protection\", \"objectives\": {\"rpo\": \"5s\"}, \"hooks\": []}}}",
           "gold", "", "{\"journal\": {\"quota\": \"8Gi\", \"history\": \"30d\", \"thinning\": [], \"seedRate\": \"1Mi\"}, \"failureMode\": \"protection\"}");
    expect("{\"gold\": {\"spec\": {}}}", "gold", "", "{}");
}

static void what_a_policy_leaves_out_comes_from_what_it_extends(void **unused)
{
    (void)unused;
    const char *policies = "{\"a\": {\"spec\": {\"extends\": \"b\", \"journal\": {\"quota\": \"1Gi\"}}}, \"b\": {\"spec\": {\"extends\": "
                           "\"c\", \"journal\": {\"quota\": \"2Gi\", \"history\": \"2d\"}}}, \"c\": {\"spec\": {\"ackMode\": \"flush\", "
                           "\"journal\": {\"history\": \"9d\", \"compressAfter\": \"never\"}}}}";
    expect(policies, "a", "", "{\"journal\": {\"quota\": \"1Gi\", \"history\": \"2d\", \"compressAfter\": \"never\"}, \"ackMode\": \"flush\"}");
}

static void the_class_says_how_writes_are_acknowledged(void **unused)
{
    (void)unused;
    expect("{\"a\": {\"spec\": {\"ackMode\": \"write\"}}}", "a", "flush", "{\"ackMode\": \"flush\"}");
}

static void a_policy_that_is_not_there_changes_nothing(void **unused)
{
    (void)unused;
    expect("{}", "a", "flush", "null");
}

static void policies_that_extend_each_other_end(void **unused)
{
    (void)unused;
    expect("{\"a\": {\"spec\": {\"extends\": \"b\"}}, \"b\": {\"spec\": {\"extends\": \"a\", \"ackMode\": \"flush\"}}}", "a", "",
           "{\"ackMode\": \"flush\"}");
}

static void an_application_chooses_its_history_within_the_bounds(void **unused)
{
    (void)unused;
    const char *policies = "{\"a\": {\"spec\": {\"extends\": \"b\", \"journal\": {\"history\": \"7d\"}}}, \"b\": {\"spec\": {\"overrides\": "
                           "{\"minHistory\": \"1d\", \"maxHistory\": \"30d\"}}}, \"c\": {\"spec\": {}}}";
    wanted_history = "14d";
    expect(policies, "a", "", "{\"journal\": {\"history\": \"14d\"}}");
    expect(policies, "c", "", "{}");
    wanted_history = "60d";
    expect(policies, "a", "", "{\"journal\": {\"history\": \"7d\"}}");
    wanted_history = "1h";
    expect(policies, "a", "", "{\"journal\": {\"history\": \"7d\"}}");
    wanted_history = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_journal_and_the_modes_are_told),
        cmocka_unit_test(what_a_policy_leaves_out_comes_from_what_it_extends),
        cmocka_unit_test(the_class_says_how_writes_are_acknowledged),
        cmocka_unit_test(a_policy_that_is_not_there_changes_nothing),
        cmocka_unit_test(an_application_chooses_its_history_within_the_bounds),
        cmocka_unit_test(policies_that_extend_each_other_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
