/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "control/control_internal.h"
#include "control/manifests_internal.h"

static char directory[] = "/tmp/tidemark-manifests-XXXXXX";

static void put(const char *name, const char *content)
{
    struct error err = ERROR_INIT;
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    char *slash = strrchr(path, '/');
    *slash = '\0';
    check_ok(io_mkdirs(path, 0755, &err));
    *slash = '/';
    check_ok(io_replace_file(path, content, strlen(content), 0640, &err));
}

static json_t *read_all(void)
{
    struct error err = ERROR_INIT;
    char problem[256] = "";
    json_t *files = NULL;
    check_ok(manifests_read(directory, &files, problem, sizeof problem, &err));
    return files;
}

static void names(void **unused)
{
    static const char *const good[] = {"a.yaml", "a.yml", "a.json", "b/c/d.yaml", "a b.yaml"};
    static const char *const bad[] = {
        "",        "a",         "a.yaml~",     ".yaml",       ".a.yaml", "a/.yaml",    "../a.yaml",
        "/a.yaml", "a//b.yaml", "a/../b.yaml", "a/.g/b.yaml", "a.yaml/", "a.yaml.tmp", "yaml"};
    (void)unused;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(manifests_is_name(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (manifests_is_name(bad[i]))
            fail_msg("'%s' is taken", bad[i]);
}

static void reading(void **unused)
{
    char problem[256] = "", path[512];
    struct error err = ERROR_INIT;
    (void)unused;
    put("a.yaml", "a: 1\n");
    put("sub/b.json", "{}");
    put("note.txt", "no");
    put(".git/c.yaml", "no");
    put("bad.yaml", "\xff");
    _cleanup_free_ char *large = calloc(1, MANIFESTS_FILE_BYTES_MAX + 2);
    memset(large, 'x', MANIFESTS_FILE_BYTES_MAX + 1);
    put("large.yaml", large);
    large[MANIFESTS_FILE_BYTES_MAX] = '\0';
    put("fits.yaml", large);
    snprintf(path, sizeof path, "%s/link.yaml", directory);
    assert_int_equal(symlink("a.yaml", path), 0);
    snprintf(path, sizeof path, "%s/fifo.yaml", directory);
    assert_int_equal(mkfifo(path, 0600), 0);
    _cleanup_json_ json_t *files = read_all();
    assert_int_equal(json_object_size(files), 3);
    assert_string_equal(json_string_value(json_object_get(files, "a.yaml")), "a: 1\n");
    assert_string_equal(json_string_value(json_object_get(files, "sub/b.json")), "{}");
    assert_int_equal(json_string_length(json_object_get(files, "fits.yaml")), MANIFESTS_FILE_BYTES_MAX);
    json_t *one = NULL;
    assert_int_equal(manifests_read_one(directory, "bad.yaml", &one, problem, sizeof problem), -EINVAL);
    assert_non_null(strstr(problem, "bad.yaml is not UTF-8"));
    assert_int_equal(manifests_read_one(directory, "large.yaml", &one, problem, sizeof problem), -EINVAL);
    assert_non_null(strstr(problem, "larger than 1 MiB"));
    assert_int_equal(manifests_read_one(directory, "none.yaml", &one, problem, sizeof problem), -ENOENT);
    check_error(manifests_read("/tmp/none/such", &one, problem, sizeof problem, &err), -ENOENT,
                "/tmp/none/such");
}

static void restoring(void **unused)
{
    struct error err = ERROR_INIT;
    struct stat st;
    char path[512];
    json_t *changes = NULL;
    (void)unused;
    check_ok(io_remove_tree(directory, &err));
    put("same.yaml", "s");
    put("changed.yaml", "new");
    put("added.yaml", "x");
    put("note.txt", "stays");
    _cleanup_json_ json_t *objects =
        json_pack("[{s:s,s:s},{s:s,s:s},{s:s,s:s},{s:s,s:s}]", "name", "same.yaml", "content", "s", "name",
                  "changed.yaml", "content", "old", "name", "deep/gone.yaml", "content", "g", "name",
                  "../outside.yaml", "content", "!");
    check_ok(manifests_restore(directory, objects, true, &changes, &err));
    assert_int_equal(json_array_size(changes), 3);
    json_decref(changes);
    _cleanup_json_ json_t *before = read_all();
    assert_int_equal(json_object_size(before), 3);
    check_ok(manifests_restore(directory, objects, false, &changes, &err));
    _cleanup_json_ json_t *expected =
        json_pack("[{s:s,s:s},{s:s,s:s},{s:s,s:s}]", "name", "changed.yaml", "change", "write", "name",
                  "deep/gone.yaml", "change", "create", "name", "added.yaml", "change", "delete");
    assert_true(json_equal(changes, expected));
    json_decref(changes);
    _cleanup_json_ json_t *after = read_all(),
                          *wanted = json_pack("{s:s,s:s,s:s}", "same.yaml", "s", "changed.yaml", "old",
                                              "deep/gone.yaml", "g");
    assert_true(json_equal(after, wanted));
    snprintf(path, sizeof path, "%s/changed.yaml", directory);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    snprintf(path, sizeof path, "%s/../outside.yaml", directory);
    assert_int_equal(access(path, F_OK), -1);
    check_ok(manifests_restore(directory, objects, false, &changes, &err));
    assert_int_equal(json_array_size(changes), 0);
    json_decref(changes);
}

static int clean(void **unused)
{
    struct error err = ERROR_INIT;
    (void)unused;
    return io_remove_tree(directory, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names), cmocka_unit_test(reading),
                                       cmocka_unit_test(restoring)};
    if (!mkdtemp(directory))
        return 1;
    return cmocka_run_group_tests(tests, NULL, clean);
}
