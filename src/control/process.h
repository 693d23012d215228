/* SPDX-License-Identifier: Apache-2.0 */
/* Processes: started in a session of their own (so that neither a kill of `up` nor Ctrl-C reaches them),
 * waited for by pidfd, and commands that are run to their end.
 *
 * Threads: all thread-safe; process_run and process_wait block. */
#ifndef TIDEMARK_CONTROL_PROCESS_H
#define TIDEMARK_CONTROL_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

#define PROCESS_TAIL_BYTES 512

struct process {
    pid_t pid; /* 0: none */
    int fd;    /* pidfd, -1: none */
    bool child;
};

#define PROCESS_NONE ((struct process){.fd = -1})

struct process_options {
    const char *const *argv;        /* NULL-terminated; argv[0] is looked up in PATH unless it has a slash */
    const char *log_path;           /* stdout and stderr are appended to it; NULL: /dev/null */
    int inherit_fd;                 /* becomes descriptor 3 of the process; -1: none */
    const char *const *environment; /* "K=V", NULL-terminated, in addition; NULL: none */
    const char *directory;          /* to run in; NULL: / */
    int output_fd;                  /* stdout goes there; 0: to log_path */
};

/* Starts a process; stdin is /dev/null, no other descriptors, no blocked signals. -ENOENT when the program is
 * missing. */
int process_start(const struct process_options *options, struct process *ret, struct error *err) MUST_CHECK;
/* Takes over a running process that is no child: the pid in `pid_path`, if its command line holds `word`
 * (pids are used again). -ESRCH when there is none; no message. */
int process_adopt(const char *pid_path, const char *word, struct process *ret) MUST_CHECK;
/* Waits until it has ended, at most `timeout_ms` (0: only looks, -1: for ever). 1: ended, and *ret_status
 * (may be NULL) is that of waitpid for a child, else 0; 0: still runs. */
int process_wait(struct process *process, int timeout_ms, int *ret_status);
/* SIGTERM, and SIGKILL after `timeout_ms`; waits and forgets it. Returns false when SIGKILL was needed. */
bool process_stop(struct process *process, int timeout_ms);
void process_kill(const struct process *process, int signal_number);
/* Closes the descriptor; the process goes on. */
void process_forget(struct process *process);
static inline bool process_exists(const struct process *process)
{
    return process->pid > 0;
}

struct process_result {
    int exit_status;               /* 0..255; 128 + signal */
    bool timed_out;                /* it was killed */
    char tail[PROCESS_TAIL_BYTES]; /* the end of its output, one line, for messages */
    char output[4096];             /* the beginning of its stdout, when log_path is NULL */
};

/* Runs a command to its end, at most `timeout_ms`; then it is killed with its session. 0 whatever its exit
 * status; negative errno when it could not be started. */
int process_run(const struct process_options *options, int timeout_ms, struct process_result *ret,
                struct error *err) MUST_CHECK;
/* "exit status 1: <tail>", "killed by signal 9", "no end after 60 s". */
const char *process_describe(const struct process_result *result, char *text, size_t size);
/* The end of a log file from `offset` on as one line; "" when there is nothing. */
void process_log_tail(const char *path, off_t offset, char text[PROCESS_TAIL_BYTES]);
off_t process_log_size(const char *path);

#endif
