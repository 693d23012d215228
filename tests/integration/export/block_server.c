/* SPDX-License-Identifier: Apache-2.0 */
/* block_server serve CONFIG       the program of a holder: serves the volumes of file_runtime.c over FUSE
 * block_server attach PATH [ro]   attaches a loop device and prints it
 * block_server find PATH          prints the loop device of PATH
 * block_server detach DEVICE [MS] detaches it */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "export/fuse_runtime.h"
#include "export/loop.h"

int main(int argc, char **argv)
{
    struct error err = ERROR_INIT;
    struct log log = {.fd = STDERR_FILENO, .level = LOG_LEVEL_INFO, .name = "server"};
    char device[LOOP_DEVICE_BYTES] = "";
    int r;
    if (argc < 3)
        return 64;
    if (strcmp(argv[1], "serve") == 0)
        return fuse_runtime_main(runtime_serve_ops(), argv[2], &log);
    if (strcmp(argv[1], "attach") == 0)
        r = loop_attach(argv[2], argc > 3, device, &err);
    else if (strcmp(argv[1], "find") == 0)
        r = loop_find(argv[2], device, &err);
    else
        r = loop_detach(argv[2], argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : LOOP_DETACH_TIMEOUT_MS, false,
                        &err);
    if (r < 0) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    if (device[0])
        puts(device);
    return 0;
}
