/* SPDX-License-Identifier: Apache-2.0 */
#include "control/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define EXEC_TRIES 50

extern char **environ;

static int pidfd_of(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0); /* close-on-exec by itself */
}

/* environ with `more` in addition; the array is the caller's, the texts are borrowed. */
static char **environment_with(const char *const *more)
{
    size_t count = 0, extra = 0;
    while (environ[count])
        count++;
    while (more && more[extra])
        extra++;
    char **all = calloc(count + extra + 1, sizeof *all);
    if (!all)
        return NULL;
    size_t n = 0;
    for (size_t i = 0; i < extra; i++)
        all[n++] = (char *)(uintptr_t)more[i];
    memcpy(all + n, environ, count * sizeof *all);
    return all;
}

static int spawn_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    sigdelset(&all, SIGKILL);
    sigdelset(&all, SIGSTOP);
    int r = posix_spawnattr_setsigmask(attributes, &none);
    r = r ? r : posix_spawnattr_setsigdefault(attributes, &all);
    return r ? r
             : posix_spawnattr_setflags(attributes,
                                        POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
}

static int spawn_actions(const struct process_options *o, posix_spawn_file_actions_t *actions, int log_fd,
                         int inherit_fd)
{
    int r = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
    r = r ? r : posix_spawn_file_actions_adddup2(actions, o->output_fd > 0 ? o->output_fd : log_fd, 1);
    r = r ? r : posix_spawn_file_actions_adddup2(actions, log_fd, 2);
    if (!r && inherit_fd >= 0)
        r = posix_spawn_file_actions_adddup2(actions, inherit_fd, 3);
    r = r ? r : posix_spawn_file_actions_addclosefrom_np(actions, inherit_fd >= 0 ? 4 : 3);
    return r ? r : posix_spawn_file_actions_addchdir_np(actions, o->directory ? o->directory : "/");
}

/* Copies above the numbers that dup2 fills, so that none is overwritten before it is used. */
static int move_high(int fd)
{
    return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 10);
}

static int start_with(const struct process_options *o, int log_fd, struct process *ret, struct error *err)
{
    _cleanup_close_ int log_high = move_high(log_fd), inherit_high = move_high(o->inherit_fd);
    _cleanup_free_ char **environment = environment_with(o->environment);
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_t actions;
    pid_t pid = 0;
    if (log_high < 0 || (o->inherit_fd >= 0 && inherit_high < 0) || !environment)
        return error_set(err, -ENOMEM, "cannot start %s: out of memory or descriptors", o->argv[0]);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_init(&actions);
    int r = spawn_attributes(&attributes);
    r = r ? r : spawn_actions(o, &actions, log_high, inherit_high);
    r = r ? r
          : posix_spawnp(&pid, o->argv[0], &actions, &attributes, (char **)(uintptr_t)o->argv, environment);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (r)
        return error_errno(err, -r, "cannot start %s", o->argv[0]);
    *ret = (struct process){.pid = pid, .fd = pidfd_of(pid), .child = true};
    if (ret->fd < 0) {
        r = -errno;
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        *ret = PROCESS_NONE;
        return error_errno(err, r, "cannot watch the process %s", o->argv[0]);
    }
    return 0;
}

int process_start(const struct process_options *options, struct process *ret, struct error *err)
{
    const char *path = options->log_path ? options->log_path : "/dev/null";
    _cleanup_close_ int log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return error_errno(err, -errno, "cannot open the log %s", path);
    return start_with(options, log_fd, ret, err);
}

static bool command_line_holds(pid_t pid, const char *word)
{
    char path[64], text[8192];
    ssize_t n = 0;
    snprintf(path, sizeof path, "/proc/%d/cmdline", (int)pid);
    /* It is empty for a moment while a program is being executed. */
    for (int tries = 0; tries < EXEC_TRIES && n == 0; tries++) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (n == 0)
            poll(NULL, 0, 1);
    }
    return n > 0 && memmem(text, (size_t)n, word, strlen(word)) != NULL;
}

int process_adopt(const char *pid_path, const char *word, struct process *ret)
{
    _cleanup_close_ int fd = open(pid_path, O_RDONLY | O_CLOEXEC);
    char text[32] = "";
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return -ESRCH;
    long pid = strtol(text, NULL, 10);
    if (pid <= 1)
        return -ESRCH;
    int pidfd = pidfd_of((pid_t)pid);
    if (pidfd < 0)
        return -ESRCH;
    struct process process = {.pid = (pid_t)pid, .fd = pidfd};
    /* The command line is read after the pidfd was opened: it is of the process that the pidfd is for, if it
     * lives. */
    if (!command_line_holds(process.pid, word) || process_wait(&process, 0, NULL)) {
        if (process.fd >= 0)
            close(process.fd);
        return -ESRCH;
    }
    *ret = process;
    return 0;
}

int process_wait(struct process *process, int timeout_ms, int *ret_status)
{
    if (!process_exists(process))
        return 1;
    uint64_t end_ns =
        clock_boottime_ns(clock_system()) + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * NS_PER_MS;
    for (;;) {
        struct pollfd p = {.fd = process->fd, .events = POLLIN};
        uint64_t now = clock_boottime_ns(clock_system());
        int left = timeout_ms < 0 ? -1 : now >= end_ns ? 0 : (int)((end_ns - now) / NS_PER_MS) + 1;
        int n = poll(&p, 1, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return 0;
        break;
    }
    int status = 0;
    if (process->child)
        while (waitpid(process->pid, &status, 0) < 0 && errno == EINTR)
            ;
    if (ret_status)
        *ret_status = status;
    process_forget(process);
    return 1;
}

void process_kill(const struct process *process, int signal_number)
{
    if (process_exists(process))
        syscall(SYS_pidfd_send_signal, process->fd, signal_number, NULL, 0);
}

bool process_stop(struct process *process, int timeout_ms)
{
    if (!process_exists(process))
        return true;
    process_kill(process, SIGTERM);
    if (process_wait(process, timeout_ms, NULL))
        return true;
    process_kill(process, SIGKILL);
    if (!process_wait(process, 5000, NULL))
        process_forget(process); /* in an uninterruptible sleep: nothing more can be done */
    return false;
}

void process_forget(struct process *process)
{
    if (process->fd >= 0)
        close(process->fd);
    *process = PROCESS_NONE;
}

/* One line of printable text: line ends become "; ". */
static void flatten(const char *from, size_t length, char text[PROCESS_TAIL_BYTES])
{
    size_t n = 0;
    while (length && (from[length - 1] == '\n' || from[length - 1] == ' '))
        length--;
    if (length > PROCESS_TAIL_BYTES - 64) {
        from += length - (PROCESS_TAIL_BYTES - 64);
        length = PROCESS_TAIL_BYTES - 64;
    }
    for (size_t i = 0; i < length && n + 3 < PROCESS_TAIL_BYTES; i++) {
        if (from[i] == '\n') {
            text[n++] = ';';
            text[n++] = ' ';
        } else
            text[n++] = (unsigned char)from[i] < 0x20 || (unsigned char)from[i] >= 0x7f ? '?' : from[i];
    }
    text[n] = '\0';
}

static void fd_tail(int fd, off_t offset, char text[PROCESS_TAIL_BYTES])
{
    char data[PROCESS_TAIL_BYTES];
    struct stat st;
    text[0] = '\0';
    if (fstat(fd, &st) < 0 || st.st_size <= offset)
        return;
    off_t from = st.st_size - offset > (off_t)sizeof data ? st.st_size - (off_t)sizeof data : offset;
    ssize_t n = pread(fd, data, sizeof data, from);
    if (n > 0)
        flatten(data, (size_t)n, text);
}

void process_log_tail(const char *path, off_t offset, char text[PROCESS_TAIL_BYTES])
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    text[0] = '\0';
    if (fd >= 0)
        fd_tail(fd, offset, text);
}

off_t process_log_size(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? st.st_size : 0;
}

static void finish(struct process *process, int timeout_ms, struct process_result *ret)
{
    int status = 0;
    pid_t pid = process->pid;
    if (!process_wait(process, timeout_ms, &status)) {
        ret->timed_out = true;
        kill(-pid, SIGKILL); /* it leads a session and a group of its own */
        process_wait(process, -1, &status);
    }
    ret->exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int process_run(const struct process_options *options, int timeout_ms, struct process_result *ret,
                struct error *err)
{
    *ret = (struct process_result){0};
    struct process process = PROCESS_NONE;
    if (options->log_path) {
        off_t from = process_log_size(options->log_path);
        int r = process_start(options, &process, err);
        if (r < 0)
            return r;
        finish(&process, timeout_ms, ret);
        process_log_tail(options->log_path, from, ret->tail);
        return 0;
    }
    /* A memory file, not a pipe: it cannot fill up, and a process that stays behind cannot keep us waiting.
     */
    _cleanup_close_ int output = memfd_create("output", MFD_CLOEXEC),
                        errors = memfd_create("errors", MFD_CLOEXEC);
    if (output < 0 || errors < 0)
        return error_errno(err, -errno, "cannot run %s", options->argv[0]);
    struct process_options o = *options;
    o.output_fd = output;
    int r = start_with(&o, errors, &process, err);
    if (r < 0)
        return r;
    finish(&process, timeout_ms, ret);
    ssize_t n = pread(output, ret->output, sizeof ret->output - 1, 0);
    ret->output[n > 0 ? n : 0] = '\0';
    fd_tail(errors, 0, ret->tail);
    if (!ret->tail[0])
        fd_tail(output, 0, ret->tail);
    return 0;
}

const char *process_describe(const struct process_result *result, char *text, size_t size)
{
    const char *colon = result->tail[0] ? ": " : "";
    if (result->timed_out)
        snprintf(text, size, "it did not end in time and was killed%s%s", colon, result->tail);
    else if (result->exit_status > 128)
        snprintf(text, size, "ended by signal %d%s%s", result->exit_status - 128, colon, result->tail);
    else
        snprintf(text, size, "exit status %d%s%s", result->exit_status, colon, result->tail);
    return text;
}
