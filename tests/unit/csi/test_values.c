/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <string.h>

#include "csi/csi_internal.h"

#define MIB (1ull << 20)

static void sizes(void **unused)
{
    static const struct {
        int64_t required, limit;
        int code;
        uint64_t size;
    } cases[] = {{0, 0, 0, CSI_VOLUME_BYTES_DEFAULT},
                 {1, 0, 0, 16 * MIB},
                 {16 * MIB + 1, 0, 0, 17 * MIB},
                 {0, 64 * MIB, 0, 64 * MIB},
                 {64 * MIB, 64 * MIB, 0, 64 * MIB},
                 {0, MIB, -ERANGE, 0},
                 {16 * MIB + 1, 16 * MIB + 2, -ERANGE, 0},
                 {-1, 0, -EINVAL, 0},
                 {2 * MIB, MIB, -EINVAL, 0},
                 {INT64_MAX, 0, -ERANGE, 0}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Csi__V1__CapacityRange range = CSI__V1__CAPACITY_RANGE__INIT;
        struct error err = ERROR_INIT;
        uint64_t size = 0;
        range.required_bytes = cases[i].required;
        range.limit_bytes = cases[i].limit;
        int r = csi_size_of(&range, CSI_VOLUME_BYTES_DEFAULT, &size, &err);
        if (r != cases[i].code || (r == 0 && size != cases[i].size))
            fail_msg("case %zu: %d, %llu: %s", i, r, (unsigned long long)size, err.message);
    }
}

static void uses(void **unused)
{
    Csi__V1__VolumeCapability capability = CSI__V1__VOLUME_CAPABILITY__INIT;
    Csi__V1__VolumeCapability__AccessMode mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__INIT;
    Csi__V1__VolumeCapability__MountVolume mount = CSI__V1__VOLUME_CAPABILITY__MOUNT_VOLUME__INIT;
    struct error err = ERROR_INIT;
    struct csi_use use;
    char xfs[] = "xfs", other[] = "vfat";
    (void)unused;
    check_error(csi_use_of(NULL, &use, &err), -EINVAL, "volume_capability is missing");
    check_error(csi_use_of(&capability, &use, &err), -EINVAL, "neither block nor mount");
    capability.access_type_case = CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_MOUNT;
    capability.mount = &mount;
    check_error(csi_use_of(&capability, &use, &err), -EINVAL, "access_mode is missing");
    capability.access_mode = &mode;
    for (int m = 0; m < 9; m++) {
        mode.mode = (Csi__V1__VolumeCapability__AccessMode__Mode)m;
        bool served = m == 1 || m == 2 || m == 6 || m == 7;
        assert_int_equal(csi_use_of(&capability, &use, &err), served ? 0 : -EINVAL);
        if (served) {
            assert_int_equal(use.read_only, m == 2);
            assert_int_equal(use.single_writer, m == 6);
            assert_string_equal(use.fs_type, "ext4");
        }
    }
    mode.mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_WRITER;
    mount.fs_type = xfs;
    check_ok(csi_use_of(&capability, &use, &err));
    assert_string_equal(use.fs_type, "xfs");
    mount.fs_type = other;
    check_error(csi_use_of(&capability, &use, &err), -EINVAL, "ext4 or xfs");
}

static void members(void **unused)
{
    static const char *const bad[] = {"a", "a=", "=1", "a=1,,b=2", "a=x", "A=1", "a=1;b=2", "../x=1"};
    struct csi_member list[CSI_MEMBERS_MAX];
    struct error err = ERROR_INIT;
    (void)unused;
    assert_int_equal(csi_members_parse("", list, &err), 0);
    assert_int_equal(csi_members_parse("tm-1=16777216,tm-2=4096", list, &err), 2);
    assert_string_equal(list[1].handle, "tm-2");
    assert_true(list[0].size_bytes == 16777216);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(csi_members_parse(bad[i], list, &err), -EINVAL);
    char many[64 * 8] = "";
    for (unsigned i = 0; i <= CSI_MEMBERS_MAX; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many), "%sa%u=1", i ? "," : "", i);
    assert_int_equal(csi_members_parse(many, list, &err), -EINVAL);
}

static void paths(void **unused)
{
    static const char *const bad[] = {"", "relative", "/a/../b", "/a/.."};
    struct error err = ERROR_INIT;
    (void)unused;
    check_ok(csi_require_path("/var/lib/kubelet/pods/x..y/mount", "target_path", &err));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_error(csi_require_path(bad[i], "target_path", &err), -EINVAL, "target_path");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(uses),
        cmocka_unit_test(members),
        cmocka_unit_test(paths),
    };
    return cmocka_run_group_tests_name("csi-values", tests, NULL, NULL);
}
