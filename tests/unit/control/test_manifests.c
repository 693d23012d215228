/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "control/control_internal.h"
#include "control/manifests_internal.h"
#include "lib/http_server.h"

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

/* M4: who may write to the directory, and makes a link of a part of it, leads `up` nowhere. */
static void links_are_not_followed(void **unused)
{
    struct error err = ERROR_INIT;
    char outside[] = "/tmp/tidemark-outside-XXXXXX", path[512], problem[256] = "";
    json_t *changes = NULL, *one = NULL;
    (void)unused;
    check_ok(io_remove_tree(directory, &err));
    put("a.yaml", "new");
    assert_non_null(mkdtemp(outside));
    snprintf(path, sizeof path, "%s/victim.yaml", outside);
    check_ok(io_replace_file(path, "mine", 4, 0600, &err));
    snprintf(path, sizeof path, "%s/sub", directory);
    assert_int_equal(symlink(outside, path), 0);
    assert_int_equal(manifests_read_one(directory, "sub/victim.yaml", &one, problem, sizeof problem), -ENOENT);
    _cleanup_json_ json_t *objects = json_pack("[{s:s,s:s}]", "name", "sub/victim.yaml", "content", "theirs");
    for (int dry_run = 1; dry_run >= 0; dry_run--) { /* a rewind is refused before anything is stopped for it */
        check_error(manifests_restore(directory, objects, dry_run, &changes, &err), -ELOOP, "sub/victim.yaml");
        err = ERROR_INIT;
    }
    /* Nor are those that stand where a file is made. */
    static const char *const names[] = {"a.yaml", "a.yaml.tmp", ".a.yaml.tmp"};
    char victim[512];
    snprintf(victim, sizeof victim, "%s/victim.yaml", outside);
    _cleanup_json_ json_t *file = json_pack("[{s:s,s:s}]", "name", "a.yaml", "content", "old");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        assert_true(unlink(path) == 0 || errno == ENOENT);
        assert_int_equal(symlink(victim, path), 0);
        check_ok(manifests_restore(directory, file, false, &changes, &err));
        json_decref(changes);
        assert_true(unlink(path) == 0 || errno == ENOENT);
        put("a.yaml", "new");
    }
    _cleanup_free_ char *text = NULL;
    check_ok(io_read_file(victim, 100, &text, NULL, &err));
    assert_string_equal(text, "mine");
    check_ok(io_remove_tree(outside, &err));
}

/* M5 */
static void what_is_written_keeps_its_owner(void **unused)
{
    struct error err = ERROR_INIT;
    struct stat st;
    char path[512];
    json_t *changes = NULL;
    static const char *const names[] = {"a.yaml", "new.yaml", "deep/er/new.yaml", "deep/er", "deep"};
    (void)unused;
    if (geteuid() != 0)
        skip();
    check_ok(io_remove_tree(directory, &err));
    put("a.yaml", "new");
    snprintf(path, sizeof path, "%s/a.yaml", directory);
    assert_int_equal(chown(path, 4321, 4322), 0);
    assert_int_equal(chown(directory, 4321, 4322), 0);
    _cleanup_json_ json_t *objects = json_pack("[{s:s,s:s},{s:s,s:s},{s:s,s:s}]", "name", "a.yaml", "content", "old", "name",
                                               "new.yaml", "content", "n", "name", "deep/er/new.yaml", "content", "d");
    check_ok(manifests_restore(directory, objects, false, &changes, &err));
    json_decref(changes);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_uid, 4321);
        assert_int_equal(st.st_gid, 4322);
    }
    snprintf(path, sizeof path, "%s/a.yaml", directory);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
}

/* ---- journaling ---- */

static struct journaled {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    json_t *objects; /* name -> content */
} journaled = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL};

/* An engine, as far as manifests ask it. */
static int answer(void *context, const struct http_request *request, struct http_response *response, struct error *err)
{
    _cleanup_json_ json_t *body = NULL;
    (void)context;
    int r = http_request_json(request, &body, err);
    if (r == 0 && strcmp(request->method, "POST") == 0) {
        MUTEX_GUARD(guard, &journaled.mutex);
        json_object_set(journaled.objects, json_string_value(json_object_get(body, "name")), json_object_get(body, "content"));
        pthread_cond_broadcast(&journaled.changed);
    }
    if (r == 0)
        http_response_json(response, 200, json_pack("{s:[]}", "objects"));
    return r;
}

static void await_content(const char *name, const char *content)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 120;
    MUTEX_GUARD(guard, &journaled.mutex);
    for (;;) {
        const char *found = json_string_value(json_object_get(journaled.objects, name)); /* until the mutex is dropped */
        if (found && strcmp(found, content) == 0)
            return;
        if (pthread_cond_timedwait(&journaled.changed, &journaled.mutex, &until) != 0)
            fail_msg("%s was not journaled as %s in time", name, content);
    }
}

/* M1: a manifest that comes by link(2), complete at once, is never closed by a writer. */
static void what_is_linked_is_journaled(void **unused)
{
    struct error err = ERROR_INIT;
    char socket_path[128], from[512], to[512];
    struct log log = {.fd = -1, .level = LOG_LEVEL_ERROR, .name = "test"};
    struct control *control = calloc(1, sizeof *control);
    struct http_server *server = NULL;
    struct manifests *manifests = NULL;
    (void)unused;
    assert_non_null(control);
    control->log = &log;
    journaled.objects = json_object();
    check_ok(io_remove_tree(directory, &err));
    put("first.yaml", "1");
    put("note.txt", "2");
    snprintf(socket_path, sizeof socket_path, "%s.sock", directory);
    const struct http_server_options options = {.socket_path = socket_path, .threads = 2, .log = &log, .handler = answer};
    check_ok(http_server_start(&options, &server, &err));
    check_ok(manifests_start(control, directory, socket_path, &manifests, &err));
    await_content("first.yaml", "1"); /* all is watched from here on */
    snprintf(to, sizeof to, "%s/slow.yaml", directory);
    int slow = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(slow, "ha", 2), 2);
    int probe = open(to, O_RDONLY | O_CLOEXEC);
    bool leases = fcntl(probe, F_SETLEASE, F_RDLCK) < 0 && errno == EAGAIN; /* not every file system has them */
    close(probe);
    snprintf(from, sizeof from, "%s/note.txt", directory);
    snprintf(to, sizeof to, "%s/linked.yaml", directory);
    assert_int_equal(link(from, to), 0);
    await_content("linked.yaml", "2");
    pthread_mutex_lock(&journaled.mutex);
    assert_true(!leases || !json_object_get(journaled.objects, "slow.yaml")); /* half of it is nothing */
    pthread_mutex_unlock(&journaled.mutex);
    assert_int_equal(write(slow, "lf", 2), 2);
    close(slow);
    await_content("slow.yaml", "half");
    put("first.yaml", "3"); /* written, renamed */
    await_content("first.yaml", "3");
    manifests_stop(manifests);
    http_server_stop(server);
    json_decref(journaled.objects);
    free(control);
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
                                       cmocka_unit_test(restoring), cmocka_unit_test(links_are_not_followed),
                                       cmocka_unit_test(what_is_written_keeps_its_owner),
                                       cmocka_unit_test(what_is_linked_is_journaled)};
    if (!mkdtemp(directory))
        return 1;
    return cmocka_run_group_tests(tests, NULL, clean);
}
