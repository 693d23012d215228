/* SPDX-License-Identifier: Apache-2.0 */
/* tidemark-holder: keeps the FUSE mounts of one engine, and with them the applications' I/O, alive while the
 * engine is restarted. It opens and mounts, starts the program with the descriptors inherited, waits, starts
 * it again. It reads no request and is small and locked in memory, so there is little that could make it
 * fail.
 *
 * Invariants:
 * H1  Every descriptor of a mount, clones too, is opened here: a clone of the program's own would take the
 * requests that were read from it along when the program dies. H2  A program is started only after the last
 * one was waited for: writes of a dying one could land after newer ones. H3  The mounts go only with the
 * program ended for good: status 0, status 78, or SIGTERM to the holder. One that is still used (a loop device is attached below) stays then, and answers
 * nobody: it is the only name of that device.
 *
 * If the holder is killed, the program goes on serving: it has the same descriptors. Only its next crash is
 * final then (EIO for all I/O). A new holder could adopt it: take the descriptors with pidfd_getfd(2) out of
 * the program, whose environment TIDEMARK_FUSE tells their numbers, and poll a pidfd in place of waitpid(2).
 * Not needed so far: `tidemark up` ends such a program and starts afresh. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "export/fuse_mount.h"
#include "export/fuse_runtime.h"
#include "export/holder_ends.h"
#include "lib/json.h"

#define HOLDER_MAX_MOUNTS FUSE_RUNTIME_MAX_VOLUMES
#define HOLDER_MAX_ARGUMENTS 64u
#define HOLDER_SETTLED_NS (5 * NS_PER_SECOND) /* a program that ran this long is started again at once */

static const uint64_t backoff_ns[] = {0, 10 * NS_PER_MS, 100 * NS_PER_MS, NS_PER_SECOND};

extern char **environ;

struct held_mount {
    const char *volume;
    const char *directory;
    int fd;
    int nonblock_fd;
};

struct holder {
    struct log log;
    json_t *config; /* owns all strings */
    const char *name;
    const char *pid_file; /* NULL: none */
    bool restart;
    int ends_fd; /* the file of holder_ends.h; -1: none */
    struct holder_ends ends;
    struct cgroup_memory memory; /* when the program was started */
    struct held_mount mounts[HOLDER_MAX_MOUNTS];
    size_t mount_count; /* those that are mounted, once that began */
    char *program[HOLDER_MAX_ARGUMENTS + 1];
    char **environment_first;  /* for the first start */
    char **environment_resume; /* for all others */
    sigset_t signals;          /* blocked, and taken by sigtimedwait */
};

static int read_mounts(struct holder *h, json_t *mounts, struct error *err)
{
    size_t i;
    json_t *one;
    if (json_array_size(mounts) > HOLDER_MAX_MOUNTS) /* none: the program serves in another way than by FUSE */
        return error_set(err, -EINVAL, "\"mounts\" must have at most %u entries", HOLDER_MAX_MOUNTS);
    json_array_foreach(mounts, i, one)
    {
        struct held_mount *m = &h->mounts[i];
        m->fd = m->nonblock_fd = -1;
        int r = json_get_string(one, "volume", &m->volume, err);
        if (r == 0)
            r = json_get_string(one, "directory", &m->directory, err);
        if (r == 0)
            r = json_reject_unknown(one, err, "volume", "directory", NULL);
        if (r < 0)
            return error_context(err, "mounts[%zu]", i);
        if (!m->volume[0] || strpbrk(m->volume, ":,"))
            return error_set(err, -EINVAL,
                             "mounts[%zu]: \"%s\" cannot be a volume's name (empty, or with : or ,)", i,
                             m->volume);
        for (size_t j = 0; j < i; j++)
            if (strcmp(h->mounts[j].volume, m->volume) == 0)
                return error_set(err, -EINVAL, "mounts[%zu]: volume %s is there twice", i, m->volume);
    }
    return 0;
}

static int read_program(struct holder *h, json_t *program, struct error *err)
{
    size_t i;
    json_t *one;
    if (json_array_size(program) == 0 || json_array_size(program) > HOLDER_MAX_ARGUMENTS)
        return error_set(err, -EINVAL, "\"program\" must have 1 to %u entries", HOLDER_MAX_ARGUMENTS);
    json_array_foreach(program, i, one)
    {
        if (!json_is_string(one))
            return error_set(err, -EINVAL, "program[%zu] is not a string", i);
        h->program[i] = (char *)(uintptr_t)json_string_value(one);
    }
    if (h->program[0][0] != '/')
        return error_set(err, -EINVAL, "program[0] must be an absolute path, not \"%s\"", h->program[0]);
    return 0;
}

static int read_config(struct holder *h, const char *path, struct error *err)
{
    json_t *mounts = NULL, *program = NULL;
    h->restart = true;
    int r = json_parse_file(path, &h->config, err);
    if (r < 0)
        return r;
    r = json_get_string(h->config, "name", &h->name, err);
    if (r == 0)
        r = json_get_array(h->config, "mounts", &mounts, err);
    if (r == 0)
        r = json_get_array(h->config, "program", &program, err);
    if (r == 0)
        r = json_get_optional_bool(h->config, "restart", &h->restart, err);
    if (r == 0)
        r = json_get_optional_string(h->config, "pid_file", &h->pid_file, err);
    if (r == 0)
        r = json_reject_unknown(h->config, err, "name", "mounts", "program", "restart", "pid_file", NULL);
    if (r == 0)
        r = read_mounts(h, mounts, err);
    if (r == 0)
        r = read_program(h, program, err);
    return r < 0 ? error_context(err, "%s", path) : 0;
}

static int mount_all(struct holder *h, struct error *err)
{
    size_t count = json_array_size(json_object_get(h->config, "mounts"));
    for (size_t i = 0; i < count; i++) {
        struct held_mount *m = &h->mounts[i];
        struct error missing = ERROR_INIT;
        if (io_mkdirs(m->directory, 0700, &missing) < 0)
            log_debug(&h->log, "%s", missing.message); /* a dead mount looks so too: fuse_mount judges it */
        int r = fuse_mount(m->directory, h->name, &m->fd, &m->nonblock_fd, err);
        if (r < 0)
            return error_context(err, "volume %s", m->volume);
        h->mount_count = i + 1;
    }
    return 0;
}

static void unmount_all(struct holder *h)
{
    for (size_t i = 0; i < h->mount_count; i++) {
        struct error err = ERROR_INIT;
        struct held_mount *m = &h->mounts[i];
        if (fuse_mount_remove_unused(m->directory, &err) < 0)
            log_error(&h->log, "volume %s: %s", m->volume, err.message);
        close(m->fd);
        close(m->nonblock_fd);
    }
    h->mount_count = 0;
}

/* Our environment without our own variables, with TIDEMARK_FUSE and, of the second, TIDEMARK_RESUME=1. All of
 * it is made before the first start: later there may be no memory to be had. */
static int make_environments(struct holder *h, struct error *err)
{
    char *text = NULL;
    size_t text_bytes = 0, count = 0, kept = 0;
    FILE *f = open_memstream(&text, &text_bytes);
    if (!f)
        return error_errno(err, -ENOMEM, "cannot make the environment");
    fputs(FUSE_RUNTIME_ENVIRONMENT "=", f);
    for (size_t i = 0; i < h->mount_count; i++)
        fprintf(f, "%s%s:%d:%d", i ? "," : "", h->mounts[i].volume, h->mounts[i].fd,
                h->mounts[i].nonblock_fd);
    if (fclose(f) != 0) {
        free(text);
        return error_errno(err, -ENOMEM, "cannot make the environment");
    }
    while (environ[count])
        count++;
    h->environment_first = calloc(count + 2, sizeof(char *));
    h->environment_resume = calloc(count + 3, sizeof(char *));
    if (!h->environment_first || !h->environment_resume) {
        free(text);
        return error_errno(err, -ENOMEM, "cannot make the environment");
    }
    static char resume[] = FUSE_RUNTIME_ENVIRONMENT_RESUME "=1";
    h->environment_resume[kept] = resume;
    for (size_t i = 0; i < count; i++)
        if (strncmp(environ[i], FUSE_RUNTIME_ENVIRONMENT "=", sizeof FUSE_RUNTIME_ENVIRONMENT) != 0 &&
            strncmp(environ[i], FUSE_RUNTIME_ENVIRONMENT_RESUME "=",
                    sizeof FUSE_RUNTIME_ENVIRONMENT_RESUME) != 0) {
            h->environment_first[kept] = environ[i];
            h->environment_resume[++kept] = environ[i];
        }
    h->environment_first[kept] = text;
    h->environment_resume[kept + 1] = text;
    return 0;
}

/* By vfork: no page of ours is copied. The program begins with default signals and none blocked. */
static int spawn(struct holder *h, bool resume, pid_t *ret_pid, struct error *err)
{
    posix_spawnattr_t attributes;
    sigset_t none;
    posix_spawnattr_init(&attributes);
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &h->signals);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int r = posix_spawn(ret_pid, h->program[0], NULL, &attributes, h->program,
                        resume ? h->environment_resume : h->environment_first);
    posix_spawnattr_destroy(&attributes);
    return r ? error_errno(err, -r, "cannot start %s", h->program[0]) : 0;
}

/* Waits for the program to end. SIGTERM and SIGINT are passed on, and noted in *stopping. */
static int wait_for(struct holder *h, pid_t pid, bool *stopping)
{
    int status = 0;
    for (;;) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid)
            return status;
        int number = sigwaitinfo(&h->signals, NULL);
        if (number == SIGTERM || number == SIGINT) {
            *stopping = true;
            kill(pid, SIGTERM);
        }
    }
}

/* Waits before the next start. True if the holder is to end. */
static bool wait_backoff(struct holder *h, unsigned failures)
{
    size_t last = sizeof backoff_ns / sizeof backoff_ns[0] - 1;
    uint64_t until = clock_boottime_ns(clock_system()) + backoff_ns[failures < last ? failures : last];
    for (;;) {
        uint64_t now = clock_boottime_ns(clock_system());
        uint64_t left = now < until ? until - now : 0;
        struct timespec t = {.tv_sec = (time_t)(left / NS_PER_SECOND),
                             .tv_nsec = (long)(left % NS_PER_SECOND)};
        int number = sigtimedwait(&h->signals, NULL, &t);
        if (number == SIGTERM || number == SIGINT)
            return true;
        if (left == 0 && number < 0 && errno == EAGAIN)
            return false;
    }
}

static void log_end(const struct holder *h, pid_t pid, int status, bool again)
{
    const char *then = again ? "; starting it again" : "";
    if (WIFSIGNALED(status))
        log_warning(&h->log, "%s: %s (pid %d) was ended by signal %d (%s)%s", h->name, h->program[0],
                    (int)pid, WTERMSIG(status), strsignal(WTERMSIG(status)), then);
    else if (WEXITSTATUS(status))
        log_warning(&h->log, "%s: %s (pid %d) ended with status %d%s", h->name, h->program[0], (int)pid,
                    WEXITSTATUS(status), then);
    else
        log_info(&h->log, "%s: %s (pid %d) has ended", h->name, h->program[0], (int)pid);
}

/* For `up`: why it does not stay. The file is made before the first start; what fails here is told by the log alone. */
static void open_ends(struct holder *h)
{
    char path[PATH_MAX], text[HOLDER_ENDS_BYTES + 1];
    const char *slash = h->pid_file ? strrchr(h->pid_file, '/') : NULL;
    h->ends_fd = -1;
    if (!slash || !h->restart ||
        snprintf(path, sizeof path, "%.*s/" HOLDER_ENDS_FILE, (int)(slash - h->pid_file), h->pid_file) >= (int)sizeof path)
        return;
    h->ends_fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    holder_ends_format(&h->ends, text);
    if (h->ends_fd < 0 || pwrite(h->ends_fd, text, HOLDER_ENDS_BYTES, 0) != HOLDER_ENDS_BYTES)
        log_warning(&h->log, "cannot write %s: %m", path);
}

static void note_end(struct holder *h, int status, uint64_t ran_ns)
{
    struct cgroup_memory now;
    char text[HOLDER_ENDS_BYTES + 1];
    cgroup_memory("", &now);
    holder_ends_note(&h->ends, status, ran_ns, clock_realtime_ns(clock_system()), &h->memory, &now);
    holder_ends_format(&h->ends, text);
    if (h->ends_fd >= 0 && pwrite(h->ends_fd, text, HOLDER_ENDS_BYTES, 0) != HOLDER_ENDS_BYTES)
        log_warning(&h->log, "cannot note that the program has ended: %m");
    if (h->ends.oom_killed)
        log_warning(&h->log, "%s: the memory limit of its control group was reached meanwhile", h->name);
}

/* Runs the program until it ends for good (H2, H3). Returns the holder's exit status. */
static int supervise(struct holder *h)
{
    bool stopping = false, resume = false;
    unsigned failures = 0;
    for (;;) {
        struct error err = ERROR_INIT;
        pid_t pid;
        uint64_t started = clock_boottime_ns(clock_system());
        cgroup_memory("", &h->memory);
        if (spawn(h, resume, &pid, &err) == 0) {
            int status = wait_for(h, pid, &stopping);
            bool clean = WIFEXITED(status) && WEXITSTATUS(status) == 0;
            bool refused = WIFEXITED(status) && WEXITSTATUS(status) == RUNTIME_EXIT_REFUSED;
            bool again = h->restart && !clean && !refused && !stopping;
            log_end(h, pid, status, again);
            if (again)
                note_end(h, status, clock_boottime_ns(clock_system()) - started);
            if (clean || (stopping && !refused))
                return EXIT_SUCCESS;
            if (refused)
                return RUNTIME_EXIT_REFUSED;
            if (!again)
                return EXIT_FAILURE;
            resume = true;
        } else {
            log_error(&h->log, "%s: %s", h->name, err.message);
            if (!resume) /* never ran: nobody waits for its I/O yet */
                return EXIT_FAILURE;
        }
        failures = clock_boottime_ns(clock_system()) - started >= HOLDER_SETTLED_NS ? 0 : failures + 1;
        if (wait_backoff(h, failures ? failures - 1 : 0))
            return EXIT_SUCCESS;
    }
}

/* Out of reach of what ends other processes: little memory, the terminal's or the parent's session. */
static void protect(const struct holder *h)
{
    setsid(); /* EPERM: leads a group already, its parent has seen to it */
    prctl(PR_SET_NAME, "tidemark-holder", 0, 0, 0);
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
        log_warning(&h->log, "cannot lock the holder's memory: %s", strerrordesc_np(errno));
    _cleanup_close_ int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "-1000", 5) != 5) /* the program inherits it */
        log_debug(&h->log, "cannot lower oom_score_adj: %s", strerrordesc_np(errno));
}

static int write_pid_file(const struct holder *h, struct error *err)
{
    return h->pid_file ? io_write_pid_file(h->pid_file, 0644, err) : 0;
}

static int run(const char *config_path)
{
    _cleanup_free_ struct holder *h = calloc(1, sizeof *h);
    struct error err = ERROR_INIT;
    if (!h)
        return EXIT_FAILURE;
    h->log = (struct log){.fd = STDERR_FILENO, .level = LOG_LEVEL_INFO, .name = "holder"};
    sigemptyset(&h->signals);
    sigaddset(&h->signals, SIGTERM);
    sigaddset(&h->signals, SIGINT);
    sigaddset(&h->signals, SIGHUP); /* a terminal that goes away is no reason to end */
    sigaddset(&h->signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &h->signals, NULL);
    int status = RUNTIME_EXIT_REFUSED;
    if (read_config(h, config_path, &err) == 0) {
        protect(h);
        status = EXIT_FAILURE;
        open_ends(h);
        if (mount_all(h, &err) == 0 && make_environments(h, &err) == 0 && write_pid_file(h, &err) == 0)
            status = supervise(h);
    }
    if (err.code)
        log_error(&h->log, "%s", err.message);
    unmount_all(h);
    if (h->pid_file && !err.code)
        unlink(h->pid_file);
    if (h->environment_resume && h->environment_first) {
        size_t last = 0;
        while (h->environment_first[last])
            last++;
        if (last)
            free(h->environment_first[last - 1]); /* TIDEMARK_FUSE: the only text of our own */
    }
    free(h->environment_first);
    free(h->environment_resume);
    json_decref(h->config);
    return status;
}

static void usage(FILE *to)
{
    fputs("usage: tidemark-holder --config FILE\n"
          "\n"
          "Mounts the FUSE file systems of one application's volumes, starts the program that serves them "
          "and keeps\n"
          "both alive: when the program dies it is started again and carries on with the I/O that was under "
          "way.\n"
          "Started by `tidemark up`; FILE is described in docs/internals.md.\n"
          "\n"
          "  --config FILE  mounts and program, JSON\n"
          "  --help         this text\n"
          "  --version      the version\n"
          "\n"
          "SIGTERM ends the program, then unmounts. Exit status: 0 after a clean end, 78 when the "
          "configuration was\n"
          "refused, 1 otherwise.\n",
          to);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"version", no_argument, NULL, 'v'},
                                            {NULL, 0, NULL, 0}};
    const char *config = NULL;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'c':
            config = optarg;
            break;
        case 'h':
            usage(stdout);
            return EXIT_SUCCESS;
        case 'v':
            puts("tidemark-holder " TIDEMARK_VERSION);
            return EXIT_SUCCESS;
        default:
            usage(stderr);
            return 64; /* EX_USAGE */
        }
    }
    if (!config || optind != argc) {
        usage(stderr);
        return 64;
    }
    return run(config);
}
