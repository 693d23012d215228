/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "control/process.h"

static struct process_options shell(const char *argv[4], const char *text)
{
    argv[0] = "/bin/sh";
    argv[1] = "-c";
    argv[2] = text;
    argv[3] = NULL;
    return (struct process_options){.argv = argv, .inherit_fd = -1};
}

static void running(void **unused)
{
    struct error err = ERROR_INIT;
    const char *argv[4];
    char text[PROCESS_TAIL_BYTES + 64];
    struct process_result result;
    (void)unused;
    struct process_options o = shell(argv, "echo out; echo one >&2; echo two >&2; pwd; exit 3");
    check_ok(process_run(&o, 60000, &result, &err));
    assert_int_equal(result.exit_status, 3);
    assert_string_equal(result.output, "out\n/\n");
    assert_string_equal(process_describe(&result, text, sizeof text), "exit status 3: one; two");
    o = shell(argv, "kill -9 $$");
    check_ok(process_run(&o, 60000, &result, &err));
    assert_string_equal(process_describe(&result, text, sizeof text), "ended by signal 9");
    o = shell(argv, "sleep 1000 & sleep 1000");
    check_ok(process_run(&o, 50, &result, &err));
    assert_true(result.timed_out);
    const char *const environment[] = {"TIDEMARK_TEST=yes", NULL};
    o = shell(argv, "echo $TIDEMARK_TEST; cat; ls /proc/self/fd | wc -l");
    o.environment = environment;
    check_ok(process_run(&o, 60000, &result, &err));
    assert_string_equal(result.output, "yes\n4\n"); /* 0, 1, 2 and ls's own */
    const char *const missing[] = {"no-such-program", NULL};
    o = (struct process_options){.argv = missing, .inherit_fd = -1};
    check_error(process_run(&o, 60000, &result, &err), -ENOENT, "no-such-program");
}

static void starting(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct process process = PROCESS_NONE, other = PROCESS_NONE;
    const char *argv[4];
    char log_path[] = "/tmp/tidemark-process-XXXXXX", tail[PROCESS_TAIL_BYTES], pid_path[64];
    close(mkstemp(log_path));
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    struct process_options o =
        shell(argv, "readlink /proc/self/fd/3; echo ready; read x; exec sleep 1000");
    o.log_path = log_path;
    o.inherit_fd = fd;
    check_ok(process_start(&o, &process, &err));
    close(fd);
    for (int i = 0; i < 6000 && !strstr((process_log_tail(log_path, 0, tail), tail), "ready"); i++)
        usleep(10000);
    assert_string_equal(tail, "/dev/null; ready");
    assert_int_equal(getsid(process.pid), process.pid);
    snprintf(pid_path, sizeof pid_path, "%s.pid", log_path);
    char text[16];
    int n = snprintf(text, sizeof text, "%d\n", (int)process.pid);
    check_ok(io_replace_file(pid_path, text, (size_t)n, 0600, &err));
    assert_int_equal(process_adopt(pid_path, "another-word", &other), -ESRCH);
    assert_int_equal(process_wait(&process, 0, NULL), 0);
    assert_true(process_stop(&process, 60000));
    assert_false(process_exists(&process));
    assert_int_equal(process_adopt(pid_path, "sleep", &other), -ESRCH);
    unlink(pid_path);
    unlink(log_path);
}

static void adopting(void **unused)
{
    struct error err = ERROR_INIT;
    struct process process = PROCESS_NONE, other = PROCESS_NONE;
    const char *const argv[] = {"sleep", "12345", NULL};
    struct process_options o = {.argv = argv, .inherit_fd = -1};
    char path[] = "/tmp/tidemark-adopt-XXXXXX";
    (void)unused;
    check_ok(process_start(&o, &process, &err));
    int fd = mkstemp(path);
    dprintf(fd, "%d\n", (int)process.pid);
    close(fd);
    assert_int_equal(process_adopt(path, "12345", &other), 0);
    assert_int_equal(other.pid, process.pid);
    assert_int_equal(process_wait(&other, 0, NULL), 0);
    process_kill(&other, SIGKILL);
    int status = 0;
    assert_int_equal(process_wait(&process, 60000, &status), 1);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(process_wait(&other, 60000, NULL), 1);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(running), cmocka_unit_test(starting),
                                       cmocka_unit_test(adopting)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
