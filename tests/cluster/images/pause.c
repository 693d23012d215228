// SPDX-License-Identifier: Apache-2.0
// The first process of a pod and of a test node: it holds the namespaces, reaps what is left to it, and ends when asked to.
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

int
main(void)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    for (;;) {
        if (sigwaitinfo(&signals, NULL) != SIGCHLD)
            return 0;
        while (waitpid(-1, NULL, WNOHANG) > 0)
            continue;
    }
}
