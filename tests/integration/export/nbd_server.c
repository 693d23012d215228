/* SPDX-License-Identifier: Apache-2.0 */
/* nbd_server CONFIGURATION SOCKET PID-FILE: the volumes of file_runtime.c by NBD. */
#include <unistd.h>

#include "export/nbd.h"

int main(int argc, char **argv)
{
    static const struct log log = {STDERR_FILENO, LOG_LEVEL_INFO, "nbd"};
    return argc == 4 ? nbd_runtime_main(runtime_serve_ops(), argv[1], argv[2], argv[3], &log) : 2;
}
