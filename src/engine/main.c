/* SPDX-License-Identifier: Apache-2.0 */
/* tidemark-engine: a dispatch to serve, view, verify or copy. */
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "engine/engine.h"
#include "export/fuse_runtime.h"
#include "export/nbd.h"
#include "export/ublk.h"

#define HEAP_ARENAS 2
#define HEAP_MMAP_BYTES (256 << 10)

static const char help[] =
    "usage: tidemark-engine serve|view --config FILE [--ublk DIRECTORY | --nbd SOCKET [--pid-file FILE]]\n"
    "       tidemark-engine verify --config FILE [--pin ID]\n"
    "       tidemark-engine copy --config FILE\n"
    "       tidemark-engine check --config FILE\n"
    "\n"
    "The data plane of one application. It is started by `tidemark up`, or by tidemark-holder, which that starts;\n"
    "there is no need to run it by hand.\n"
    "\n"
    "  serve   journals and serves the volumes of engine.json over the descriptors in $TIDEMARK_FUSE\n"
    "  view    serves the volumes of a pinned point (view.json) in the same way\n"
    "  verify  reads the whole journal and prints what is damaged, one JSON object a line\n"
    "  copy    copies the volumes of a pinned point to new files; prints one JSON object a line\n"
    "  check   whether this program could serve the configuration and its journal; changes nothing\n"
    "\n"
    "  --nbd SOCKET     serves the volumes by NBD at a Unix socket, one export name each, instead of FUSE\n"
    "  --pid-file FILE  is written once clients can connect\n"
    "  --ublk DIRECTORY serves them as ublk devices instead, named by a link each in the directory\n"
    "\n"
    "exit status: 0 ended in order, 1 failed, 2 usage, 6 damage was found, 78 configuration or journal refused\n";

static int usage(void)
{
    fputs(help, stderr);
    return 2;
}

/* The heap stays as large as what is in use: without these each thread would have an arena of its own, and a large block that was
 * freed once would raise the size up to which blocks stay in the heap. Nothing on the way of a request allocates. */
static void bound_heap(void)
{
    mallopt(M_ARENA_MAX, HEAP_ARENAS);
    mallopt(M_MMAP_THRESHOLD, HEAP_MMAP_BYTES);
    mallopt(M_TRIM_THRESHOLD, HEAP_MMAP_BYTES);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"pin", required_argument, NULL, 'p'},
                                            {"nbd", required_argument, NULL, 'n'},
                                            {"pid-file", required_argument, NULL, 'P'},
                                            {"ublk", required_argument, NULL, 'u'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"version", no_argument, NULL, 'V'},
                                            {0}};
    static const struct log log = {STDERR_FILENO, LOG_LEVEL_INFO, "engine"};
    const char *config = NULL, *pin = NULL, *nbd = NULL, *pid_file = NULL, *ublk = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'c')
            config = optarg;
        else if (option == 'p')
            pin = optarg;
        else if (option == 'n')
            nbd = optarg;
        else if (option == 'P')
            pid_file = optarg;
        else if (option == 'u')
            ublk = optarg;
        else if (option == 'h')
            return fputs(help, stdout) < 0;
        else if (option == 'V')
            return puts("tidemark-engine " TIDEMARK_VERSION) < 0;
        else
            return usage();
    }
    if (optind + 1 != argc || !config)
        return usage();
    const char *role = argv[optind];
    io_allow_files(); /* a point may need the indexes of many rewinds */
    bound_heap();
    bool serves = strcmp(role, "serve") == 0, views = strcmp(role, "view") == 0;
    if (((nbd || ublk) && !serves && !views) || (nbd && ublk) || (pid_file && !nbd))
        return usage();
    if (serves || views) {
        const struct runtime_ops *ops = serves ? runtime_serve_ops() : runtime_view_ops();
        if (ublk)
            return ublk_runtime_main(ops, config, ublk, serves, &log);
        return nbd ? nbd_runtime_main(ops, config, nbd, pid_file, &log) : fuse_runtime_main(ops, config, &log);
    }
    struct error err = ERROR_INIT;
    if (strcmp(role, "check") == 0) {
        if (engine_check(config, &err) == 0)
            return 0;
        log_error(&log, "%s", err.message);
        return RUNTIME_EXIT_REFUSED;
    }
    if (strcmp(role, "copy") == 0) {
        if (engine_copy(config, &err) == 0)
            return 0;
        log_error(&log, "%s", err.message);
        return 1;
    }
    if (strcmp(role, "verify") != 0)
        return usage();
    int r = engine_verify(config, pin, &err);
    if (r < 0)
        log_error(&log, "%s", err.message);
    return r == 0 ? 0 : r == -EBADMSG ? 6 : 1;
}
