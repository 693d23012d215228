/* SPDX-License-Identifier: Apache-2.0 */
#include "export/runtime.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/* Nothing here may wait for memory that needs write-back to our own volumes to be freed. What exists now is
 * locked whole; later mappings (journal files) when they are touched, since locking them whole would read
 * them whole. */
static void lock_memory(const struct log *log)
{
    if (mlockall(MCL_CURRENT) < 0 || mlockall(MCL_FUTURE | MCL_ONFAULT) < 0)
        log_warning(log,
                    "cannot lock the memory of this process (%s): with little memory its volumes can hang. "
                    "Allow it: ulimit -l unlimited, or CAP_IPC_LOCK",
                    strerrordesc_np(errno));
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
        log_debug(log, "PR_SET_IO_FLUSHER: %s", strerrordesc_np(errno));
}

static int serve_until_signal(const struct runtime_ops *ops, struct runtime *runtime,
                              const struct exporter *exporter, const sigset_t *signals, const struct log *log)
{
    struct error err = ERROR_INIT;
    int number = 0, r = exporter->start(exporter->context, ops, runtime, log, &err);
    if (r == 0) {
        lock_memory(log);
        log_info(log, "serving %zu volumes", ops->volume_count(runtime));
        while (sigwait(signals, &number) != 0)
            ;
        log_info(log, "stopping: %s", strsignal(number));
        if (ops->stopping)
            ops->stopping(runtime);
    } else {
        log_error(log, "%s", err.message);
    }
    exporter->stop(exporter->context);
    if (r == 0)
        return EXIT_SUCCESS;
    return r == -EINVAL ? RUNTIME_EXIT_REFUSED : RUNTIME_EXIT_FAILED;
}

int runtime_main(const struct runtime_ops *ops, const char *config_path, const struct exporter *exporter,
                 const struct log *log)
{
    struct error err = ERROR_INIT;
    struct runtime *runtime = NULL;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (ops->start(config_path, &runtime, &err) < 0) {
        log_error(log, "%s", err.message);
        return !ops->refused || ops->refused(&err) ? RUNTIME_EXIT_REFUSED : RUNTIME_EXIT_FAILED;
    }
    int status = serve_until_signal(ops, runtime, exporter, &signals, log);
    ops->stop(runtime);
    return status;
}
