/* SPDX-License-Identifier: Apache-2.0 */
/* What the controller makes of volumes of backing class, and how it reads what there is. */
#include "check.h"

#include <string.h>

#include "csi/class.h"
#include "lib/json.h"
#include "objects.h"

#define GIB (1ull << 30)

static const struct csi_volume volumes[] = {
    {.handle = "tm-a",
     .size_bytes = GIB / 4,
     .backing = "class",
     .backing_class = "fast",
     .claim_namespace = "shop",
     .claim_name = "data"},
    {.handle = "tm-b", .size_bytes = GIB / 2, .backing = "class", .backing_class = "fast"}};
static const struct class_stream stream = {
    .name = "tm-a", .namespace = "system", .image = "tidemark:1", .volumes = volumes, .count = 2};

static void a_journal_has_room_for_base_and_history(void **unused)
{
    struct csi_volume some[2] = {volumes[0], volumes[1]};
    struct class_stream s = {.name = "tm-a", .volumes = some, .count = 2};
    (void)unused;
    assert_int_equal(class_journal_bytes(&s), GIB / 4 * 3 + CLASS_JOURNAL_BYTES_MIN);
    some[1].size_bytes = 8 * GIB;
    assert_int_equal(class_journal_bytes(&s), 2 * (8 * GIB + GIB / 4));
    some[0].journal_bytes = 3 * GIB;
    assert_int_equal(class_journal_bytes(&s), 8 * GIB + GIB / 4 + 3 * GIB);
    some[1].journal_bytes = 5 * GIB + 1; /* whole MiB */
    assert_int_equal(class_journal_bytes(&s), 8 * GIB + GIB / 4 + 5 * GIB + (1 << 20));
}

static void claims_are_raw_blocks_of_the_class(void **unused)
{
    json_t *claim = class_volume_claim("system", &volumes[0]), *journal = class_journal_claim(&stream);
    (void)unused;
    has(claim,
        "{\"kind\": \"PersistentVolumeClaim\", \"metadata\": {\"name\": \"tm-a\", \"namespace\": \"system\", "
        "\"annotations\": {\"tidemark.io/claim\": \"shop/data\"}}, \"spec\": {\"storageClassName\": "
        "\"fast\", \"volumeMode\": \"Block\", "
        "\"accessModes\": [\"ReadWriteOnce\"], \"resources\": {\"requests\": {\"storage\": "
        "\"268435456\"}}}}");
    has(journal,
        "{\"metadata\": {\"name\": \"tm-a-journal\", \"labels\": {\"tidemark.io/stream\": \"tm-a\"}}, "
        "\"spec\": {\"volumeMode\": \"Block\", \"resources\": {\"requests\": {\"storage\": "
        "\"1879048192\"}}}}");
    assert_int_equal(class_claim_asked(journal), GIB / 4 * 7);
    assert_int_equal(class_claim_has(journal), 0);
    json_object_set_new(journal, "status", parse("{\"capacity\": {\"storage\": \"2Gi\"}}"));
    assert_int_equal(class_claim_has(journal), 2 * GIB);
    json_decref(claim);
    json_decref(journal);
}

static void the_pod_holds_the_journal_and_all_volumes_on_the_node(void **unused)
{
    json_t *pod = class_pod(&stream, "n1", "uid-1"), *spec = json_object_get(pod, "spec");
    (void)unused;
    has(pod, "{\"metadata\": {\"name\": \"tm-a-attachment\", \"labels\": {\"app.kubernetes.io/component\": "
             "\"attachment\"}, "
             "\"annotations\": {\"tidemark.io/node\": \"n1\"}, \"ownerReferences\": [{\"apiVersion\": "
             "\"v1\", \"kind\": \"Node\", \"name\": \"n1\", "
             "\"uid\": \"uid-1\", \"controller\": true}]}}");
    json_t *volumes_json =
        parse("[{\"name\": \"journal\", \"persistentVolumeClaim\": {\"claimName\": \"tm-a-journal\"}}, "
              "{\"name\": \"tm-a\", \"persistentVolumeClaim\": {\"claimName\": \"tm-a\"}}, "
              "{\"name\": \"tm-b\", \"persistentVolumeClaim\": {\"claimName\": \"tm-b\"}}]");
    assert_true(json_equal(json_object_get(spec, "volumes"), volumes_json));
    const json_t *container = json_array_get(json_object_get(spec, "containers"), 0);
    assert_int_equal(json_array_size(json_object_get(container, "volumeDevices")), 3);
    /* The scheduler places it: claims that wait for their first consumer are bound. */
    assert_null(json_object_get(spec, "nodeName"));
    has(spec, "{\"affinity\": {\"nodeAffinity\": {\"requiredDuringSchedulingIgnoredDuringExecution\": "
              "{\"nodeSelectorTerms\": "
              "[{\"matchFields\": [{\"key\": \"metadata.name\", \"operator\": \"In\", \"values\": "
              "[\"n1\"]}]}]}}}}");
    json_decref(volumes_json);
    json_decref(pod);
    pod = class_pod(&stream, "n1", NULL);
    assert_null(json_object_get(json_object_get(pod, "metadata"), "ownerReferences"));
    json_decref(pod);
}

static void a_pod_for_a_recovery_goes_where_the_driver_is(void **unused)
{
    json_t *pod = class_pod_held(&stream, "shop/back"), *spec = json_object_get(pod, "spec");
    (void)unused;
    has(pod, "{\"metadata\": {\"name\": \"tm-a-attachment\", \"annotations\": {\"tidemark.io/held-for\": "
             "\"shop/back\"}}}");
    assert_null(json_object_get(json_object_get(pod, "metadata"), "ownerReferences"));
    assert_null(json_object_get(spec, "tolerations")); /* a node that is lost is none for it */
    has(spec, "{\"affinity\": {\"nodeAffinity\": {\"requiredDuringSchedulingIgnoredDuringExecution\": "
              "{\"nodeSelectorTerms\": "
              "[{\"matchExpressions\": [{\"key\": \"topology.csi.tidemark.io/node\", \"operator\": "
              "\"Exists\"}]}]}}}}");
    assert_int_equal(json_array_size(json_object_get(json_array_get(json_object_get(spec, "containers"), 0),
                                                     "volumeDevices")),
                     3);
    json_decref(pod);
}

#define RUNS "{\"phase\": \"Running\", \"containerStatuses\": [{\"ready\": true}]}"

static void a_pod_is_taken_for_what_it_is(void **unused)
{
    static const struct {
        const char *status, *node, *deleted;
        size_t held; /* of the stream's two volumes */
        enum class_pod_state state;
        const char *text;
    } cases[] = {
        {RUNS, "n1", NULL, 2, CLASS_POD_READY, ""},
        {RUNS, "n2", NULL, 2, CLASS_POD_ELSEWHERE, "n1"},
        {RUNS, "n2", "2026-01-01T00:00:00Z", 2, CLASS_POD_ELSEWHERE,
         "n1"}, /* it may still be written there */
        {RUNS, "n1", "2026-01-01T00:00:00Z", 2, CLASS_POD_ENDING, ""},
        {RUNS, "n1", NULL, 1, CLASS_POD_LACKS, "tm-b"},
        {"{\"phase\": \"Failed\"}", "n1", NULL, 2, CLASS_POD_ENDED, ""},
        {"{\"phase\": \"Running\", \"containerStatuses\": [{\"ready\": false}]}", "n1", NULL, 2,
         CLASS_POD_PENDING, "not mapped"},
        {"{\"phase\": \"Pending\"}", "n1", NULL, 2, CLASS_POD_PENDING, "not mapped"},
        {"{\"phase\": \"Pending\", \"conditions\": [{\"type\": \"PodScheduled\", \"status\": \"False\", "
         "\"message\": \"no room\"}]}",
         "n1", NULL, 2, CLASS_POD_PENDING, "no room"},
        {"{\"phase\": \"Pending\", \"containerStatuses\": [{\"ready\": false, \"state\": {\"waiting\": "
         "{\"reason\": \"ErrImagePull\", "
         "\"message\": \"gone\"}}}]}",
         "n1", NULL, 2, CLASS_POD_PENDING, "ErrImagePull: gone"},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct class_stream held = stream;
        char text[400] = "";
        held.count = cases[i].held;
        json_t *pod = class_pod(&held, "n1", NULL);
        json_object_set_new(pod, "status", parse(cases[i].status));
        if (cases[i].deleted)
            json_object_set_new(json_object_get(pod, "metadata"), "deletionTimestamp",
                                json_string(cases[i].deleted));
        enum class_pod_state state = class_look_at_pod(pod, &stream, cases[i].node, text, sizeof text);
        if (state != cases[i].state || !strstr(text, cases[i].text))
            fail_msg("case %zu: %d, %s", i, (int)state, text);
        json_decref(pod);
    }
    /* What a recovery lets go of is not taken by a pod any more. */
    json_t *leaving = class_pod(&stream, "n1", NULL);
    json_object_set_new(leaving, "status", parse(RUNS));
    char unused_text[64];
    assert_int_equal(class_look_at_pod(leaving, &stream, "n1", unused_text, sizeof unused_text),
                     CLASS_POD_READY);
    json_object_set_new(json_object_get(json_object_get(leaving, "metadata"), "annotations"),
                        "tidemark.io/letting-go", json_string("true"));
    assert_int_equal(class_look_at_pod(leaving, &stream, "n1", unused_text, sizeof unused_text),
                     CLASS_POD_ENDING);
    json_decref(leaving);
    json_t *alien =
        parse("{\"metadata\": {\"name\": \"tm-a-attachment\"}, \"status\": " RUNS "}"); /* somebody else's */
    char text[64];
    assert_int_equal(class_look_at_pod(alien, &stream, "n1", text, sizeof text), CLASS_POD_ELSEWHERE);
    json_decref(alien);
}

static void only_somebody_who_knows_gives_a_node_up(void **unused)
{
    static const struct {
        const char *ready, *taint;
        enum class_node_state state;
    } cases[] = {{"True", "any", CLASS_NODE_THERE},
                 {"Unknown", "node.kubernetes.io/unreachable", CLASS_NODE_THERE},
                 {"True", "node.kubernetes.io/out-of-service", CLASS_NODE_THERE},
                 {"Unknown", "node.kubernetes.io/out-of-service", CLASS_NODE_GIVEN_UP},
                 {"False", "node.kubernetes.io/out-of-service", CLASS_NODE_GIVEN_UP}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *node = json_pack("{s:{s:[{s:s, s:s}]}, s:{s:[{s:s}]}}", "status", "conditions", "type",
                                 "Ready", "status", cases[i].ready, "spec", "taints", "key", cases[i].taint);
        if (class_look_at_node(node) != cases[i].state)
            fail_msg("case %zu", i);
        json_decref(node);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_journal_has_room_for_base_and_history),
        cmocka_unit_test(claims_are_raw_blocks_of_the_class),
        cmocka_unit_test(the_pod_holds_the_journal_and_all_volumes_on_the_node),
        cmocka_unit_test(a_pod_for_a_recovery_goes_where_the_driver_is),
        cmocka_unit_test(a_pod_is_taken_for_what_it_is),
        cmocka_unit_test(only_somebody_who_knows_gives_a_node_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
