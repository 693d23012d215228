/* SPDX-License-Identifier: Apache-2.0 */
/* What is made of a volume of another driver that is adopted without a copy. */
#include "check.h"

#include <errno.h>
#include <string.h>

#include "csi/adopted.h"
#include "lib/json.h"
#include "objects.h"

#define HANDLE "tm-1"

static const char former[] =
    "{\"metadata\": {\"name\": \"pvc-7\", \"uid\": \"u\", \"annotations\": {\"pv.kubernetes.io/provisioned-by\": \"other.io\"}}, \"spec\": {\"capacity\": "
    "{\"storage\": \"5Gi\"}, \"accessModes\": [\"ReadWriteOncePod\"], \"persistentVolumeReclaimPolicy\": \"Retain\", \"storageClassName\": \"fast\", "
    "\"volumeMode\": \"Filesystem\", \"mountOptions\": [\"noatime\"], \"nodeAffinity\": {\"required\": {\"nodeSelectorTerms\": []}}, \"claimRef\": {\"namespace\": "
    "\"shop\", \"name\": \"data\", \"uid\": \"c\"}, \"csi\": {\"driver\": \"other.io\", \"volumeHandle\": \"vol-9\", \"fsType\": \"xfs\", \"volumeAttributes\": "
    "{\"pool\": \"a\"}, \"nodeStageSecretRef\": {\"name\": \"s\", \"namespace\": \"n\"}, \"controllerPublishSecretRef\": {\"name\": \"t\", \"namespace\": \"n\"}}}}";

static void it_is_carried_by_the_same_volume_as_a_raw_device(void **unused)
{
    json_t *from = parse(former), *volume = adopted_backing_volume(from, HANDLE, "system"), *claim = adopted_backing_claim(from, HANDLE, "system");
    (void)unused;
    has(volume, "{\"kind\": \"PersistentVolume\", \"metadata\": {\"name\": \"tm-1-backing\"}, \"spec\": {\"volumeMode\": \"Block\", \"accessModes\": "
                "[\"ReadWriteOnce\"], \"persistentVolumeReclaimPolicy\": \"Retain\", \"storageClassName\": \"fast\", \"capacity\": {\"storage\": \"5Gi\"}, "
                "\"claimRef\": {\"namespace\": \"system\", \"name\": \"tm-1\"}, \"nodeAffinity\": {\"required\": {\"nodeSelectorTerms\": []}}, \"csi\": {\"driver\": "
                "\"other.io\", \"volumeHandle\": \"vol-9\", \"volumeAttributes\": {\"pool\": \"a\"}, \"nodeStageSecretRef\": {\"name\": \"s\", \"namespace\": \"n\"}, "
                "\"controllerPublishSecretRef\": {\"name\": \"t\", \"namespace\": \"n\"}}}}");
    const json_t *spec = json_object_get(volume, "spec");
    assert_null(json_object_get(json_object_get(spec, "csi"), "fsType"));
    assert_null(json_object_get(spec, "mountOptions"));
    assert_null(json_object_get(json_object_get(spec, "claimRef"), "uid"));
    /* Whoever provisioned the former volume is not to look after this one. */
    assert_null(json_object_get(json_object_get(json_object_get(volume, "metadata"), "annotations"), "pv.kubernetes.io/provisioned-by"));
    has(claim, "{\"metadata\": {\"name\": \"tm-1\", \"namespace\": \"system\", \"annotations\": {\"tidemark.io/claim\": \"shop/data\"}}, \"spec\": {\"volumeName\": "
               "\"tm-1-backing\", \"volumeMode\": \"Block\", \"storageClassName\": \"fast\", \"resources\": {\"requests\": {\"storage\": \"5Gi\"}}}}");
    json_object_del(json_object_get(from, "spec"), "storageClassName"); /* without one, and so it has to be said */
    json_t *bare = adopted_backing_claim(from, HANDLE, "system");
    has(bare, "{\"spec\": {\"storageClassName\": \"\"}}");
    json_decref(bare);
    json_decref(claim);
    json_decref(volume);
    json_decref(from);
}

static void the_claim_gets_a_volume_that_is_used_as_the_former_one_was(void **unused)
{
    json_t *from = parse(former), *volume = adopted_volume(from, HANDLE, "xfs", "flush");
    (void)unused;
    has(volume, "{\"metadata\": {\"name\": \"tm-1\", \"annotations\": {\"pv.kubernetes.io/provisioned-by\": \"csi.tidemark.io\"}}, \"spec\": {\"accessModes\": "
                "[\"ReadWriteOncePod\"], \"volumeMode\": \"Filesystem\", \"mountOptions\": [\"noatime\"], \"nodeAffinity\": {\"required\": {\"nodeSelectorTerms\": []}}, "
                "\"persistentVolumeReclaimPolicy\": \"Retain\", \"claimRef\": {\"namespace\": \"shop\", \"name\": \"data\"}, \"csi\": {\"driver\": \"csi.tidemark.io\", "
                "\"volumeHandle\": \"tm-1\", \"fsType\": \"xfs\", \"volumeAttributes\": {\"adopted\": \"true\", \"ackMode\": \"flush\"}}}}");
    assert_null(json_object_get(json_object_get(json_object_get(volume, "spec"), "claimRef"), "uid"));
    json_decref(volume);
    volume = adopted_volume(from, HANDLE, "", "");
    const json_t *csi = json_object_get(json_object_get(volume, "spec"), "csi");
    assert_null(json_object_get(csi, "fsType"));
    assert_null(json_object_get(json_object_get(csi, "volumeAttributes"), "ackMode"));
    json_decref(volume);
    json_decref(from);
}

static void its_record_is_one_of_backing_class(void **unused)
{
    json_t *from = parse(former), *parameters = parse("{\"backing\": \"class\", \"backingClass\": \"slow\", \"journalSize\": \"2Gi\"}");
    struct csi_volume v;
    struct error err = ERROR_INIT;
    (void)unused;
    assert_int_equal(adopted_record(parameters, from, HANDLE, 5u << 20, &v, &err), 0);
    assert_string_equal(v.handle, HANDLE);
    assert_string_equal(v.name, HANDLE); /* by which a restore finds it */
    assert_string_equal(v.backing, "class");
    assert_string_equal(v.backing_class, "slow");
    assert_string_equal(v.claim_namespace, "shop");
    assert_string_equal(v.claim_name, "data");
    assert_int_equal(v.journal_bytes, 2ull << 30);
    assert_int_equal(v.size_bytes, 5u << 20);
    assert_string_equal(v.stream, "");
    json_object_set_new(parameters, "journalSize", json_string("much"));
    assert_int_equal(adopted_record(parameters, from, HANDLE, 5u << 20, &v, &err), -EINVAL);
    assert_non_null(strstr(err.message, "journalSize"));
    json_decref(parameters);
    json_decref(from);
}

static void what_no_driver_of_csi_has_is_not_tried(void **unused)
{
    static const char *const refused[][2] = {{"{\"metadata\": {\"name\": \"a\"}, \"spec\": {\"capacity\": {\"storage\": \"1Gi\"}, \"hostPath\": {}}}", "CSI"},
                                             {"{\"metadata\": {\"name\": \"a\"}, \"spec\": {\"capacity\": {\"storage\": \"1Gi\"}, \"csi\": {\"readOnly\": true}}}", "read-only"},
                                             {"{\"metadata\": {\"name\": \"a\"}, \"spec\": {\"csi\": {}}}", "size"}};
    (void)unused;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct error err = ERROR_INIT;
        json_t *volume = parse(refused[i][0]);
        assert_int_equal(adopted_check(volume, &err), -EINVAL);
        assert_non_null(strstr(err.message, refused[i][1]));
        json_decref(volume);
    }
    struct error err = ERROR_INIT;
    json_t *good = parse(former);
    assert_int_equal(adopted_check(good, &err), 0);
    json_decref(good);
}

static void what_was_found_on_the_device_decides(void **unused)
{
    static const struct {
        const char *text, *type, *said; /* said: why not */
        bool block;
        uint64_t bytes;
    } cases[] = {{"268435456 ext4\n", "ext4", NULL, false, 256u << 20}, {"314572800 xfs", "xfs", NULL, false, 300u << 20}, {"268435456 btrfs\n", NULL, "btrfs", false, 0},
                 {"268435456 \n", NULL, "nothing that can be recognized", false, 0}, {"268435456 \n", "", NULL, true, 256u << 20},
                 {"268435456 LVM2_member\n", "", NULL, true, 256u << 20}, {"1048576 ext4\n", NULL, "16 MiB", false, 0}, {"1048576\n", NULL, "16 MiB", true, 0},
                 {"268435968 ext4\n", NULL, "4096", false, 0}, {"sh: blockdev: not found\n", NULL, "nothing can be told", false, 0}, {"", NULL, "nothing can be told", true, 0}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        uint64_t bytes = 0;
        char type[ADOPTED_TYPE_BYTES] = "untouched";
        int r = adopted_read_look(cases[i].text, cases[i].block, &bytes, type, &err);
        assert_int_equal(r, cases[i].said ? -EINVAL : 0);
        assert_int_equal(bytes, cases[i].bytes);
        assert_string_equal(type, cases[i].said ? "untouched" : cases[i].type);
        if (cases[i].said && !strstr(err.message, cases[i].said))
            fail_msg("'%s' lacks '%s'", err.message, cases[i].said);
    }
}

static void a_driver_that_refuses_is_not_waited_for(void **unused)
{
    (void)unused;
    assert_true(adopted_is_refusal("MapVolume.SetUpDevice failed for volume \"x\" : rpc error: code = InvalidArgument desc = volume x is a directory"));
    assert_true(adopted_is_refusal("rpc error: code = Unimplemented desc = "));
    assert_false(adopted_is_refusal("Multi-Attach error for volume \"x\" Volume is already exclusively attached to one node"));
    assert_false(adopted_is_refusal("rpc error: code = Internal desc = busy"));
}

static void the_pod_that_looks_has_the_device_alone(void **unused)
{
    json_t *pod = adopted_look_pod(HANDLE, "system", "tidemark:1");
    (void)unused;
    has(pod, "{\"metadata\": {\"name\": \"tm-1-look\", \"namespace\": \"system\"}, \"spec\": {\"restartPolicy\": \"Never\", \"volumes\": [{\"name\": \"volume\", "
             "\"persistentVolumeClaim\": {\"claimName\": \"tm-1\"}}]}}");
    const json_t *container = json_array_get(json_object_get(json_object_get(pod, "spec"), "containers"), 0);
    has(container, "{\"image\": \"tidemark:1\", \"volumeDevices\": [{\"name\": \"volume\", \"devicePath\": \"/dev/tidemark/volume\"}]}");
    assert_null(json_object_get(json_object_get(container, "securityContext"), "privileged"));
    json_decref(pod);
}

static void a_device_is_whole_when_nothing_is_read_from_the_journal(void **unused)
{
    static const struct {
        const char *status;
        bool whole;
    } cases[] = {{"{\"lsn\": 7, \"rewind\": null, \"filling\": null, \"operation\": null, \"seeding\": {}}", true},
                 {"{\"lsn\": 7, \"rewind\": {\"pending_bytes\": 65536}, \"filling\": null, \"operation\": null}", false},
                 {"{\"lsn\": 7, \"rewind\": null, \"filling\": {}, \"operation\": null}", false},
                 {"{\"lsn\": 7, \"rewind\": null, \"filling\": null, \"operation\": \"o-1\"}", false},
                 {"{\"lsn\": null, \"rewind\": null, \"filling\": null, \"operation\": null}", false},
                 {"{}", false}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *status = parse(cases[i].status);
        assert_int_equal(adopted_is_whole(status), cases[i].whole);
        json_decref(status);
    }
    assert_false(adopted_is_whole(NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_carried_by_the_same_volume_as_a_raw_device),
        cmocka_unit_test(the_claim_gets_a_volume_that_is_used_as_the_former_one_was),
        cmocka_unit_test(its_record_is_one_of_backing_class),
        cmocka_unit_test(what_no_driver_of_csi_has_is_not_tried),
        cmocka_unit_test(what_was_found_on_the_device_decides),
        cmocka_unit_test(a_driver_that_refuses_is_not_waited_for),
        cmocka_unit_test(the_pod_that_looks_has_the_device_alone),
        cmocka_unit_test(a_device_is_whole_when_nothing_is_read_from_the_journal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
