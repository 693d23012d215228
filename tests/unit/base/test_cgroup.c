/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <stdio.h>
#include <string.h>

#include "base/cgroup.h"
#include "base/io.h"

static char root[64];
static struct error err;

static void put(const char *path, const char *text)
{
    char full[256], *slash;
    snprintf(full, sizeof full, "%s%s", root, path);
    slash = strrchr(full, '/');
    *slash = '\0';
    check_ok(io_mkdirs(full, 0700, &err));
    *slash = '/';
    check_ok(io_replace_file(full, text, strlen(text), 0600, &err));
}

static int set_up(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/tidemark-cgroup-XXXXXX");
    assert_non_null(mkdtemp(root));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return io_remove_tree(root, &err);
}

static void the_smallest_limit_upwards_counts(void **state)
{
    struct cgroup_memory m;
    (void)state;
    put("/proc/self/cgroup", "0::/system.slice/tidemark.service\n");
    put("/sys/fs/cgroup/system.slice/tidemark.service/memory.events", "low 0\noom 5\noom_kill 3\noom_group_kill 0\n");
    put("/sys/fs/cgroup/system.slice/tidemark.service/memory.max", "max\n");
    put("/sys/fs/cgroup/system.slice/memory.max", "31457280\n");
    cgroup_memory(root, &m);
    assert_true(m.known);
    assert_int_equal(m.oom_kills, 3);
    assert_int_equal(m.limit_bytes, 30 << 20);
    put("/sys/fs/cgroup/system.slice/tidemark.service/memory.max", "1048576\n");
    cgroup_memory(root, &m);
    assert_int_equal(m.limit_bytes, 1 << 20);
}

static void version_1_has_its_own_files(void **state)
{
    struct cgroup_memory m;
    (void)state;
    put("/proc/self/cgroup", "9:name=systemd:/\n4:memory:/pod/c\n0::/other\n");
    put("/sys/fs/cgroup/memory/pod/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n");
    put("/sys/fs/cgroup/memory/pod/c/memory.limit_in_bytes", "9223372036854771712\n");
    cgroup_memory(root, &m);
    assert_true(m.known);
    assert_int_equal(m.oom_kills, 7);
    assert_true(m.limit_bytes == UINT64_MAX);
    put("/sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "67108864\n");
    cgroup_memory(root, &m);
    assert_int_equal(m.limit_bytes, 64 << 20);
}

/* In a container: the path is the host's or "/", the files are at the mount's root. */
static void a_namespace_has_them_at_its_root(void **state)
{
    struct cgroup_memory m;
    (void)state;
    put("/proc/self/cgroup", "0::/../../pod/x\n");
    put("/sys/fs/cgroup/memory.events", "oom_kill 1\n");
    put("/sys/fs/cgroup/memory.max", "4096\n");
    cgroup_memory(root, &m);
    assert_true(m.known);
    assert_int_equal(m.limit_bytes, 4096);
}

static void what_cannot_be_read_is_not_known(void **state)
{
    struct cgroup_memory m;
    (void)state;
    cgroup_memory(root, &m);
    assert_false(m.known);
    assert_true(m.limit_bytes == UINT64_MAX);
    put("/proc/self/cgroup", "nonsense\n::\n");
    cgroup_memory(root, &m);
    assert_false(m.known);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_smallest_limit_upwards_counts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(version_1_has_its_own_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_namespace_has_them_at_its_root, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_cannot_be_read_is_not_known, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
