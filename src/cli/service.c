/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands that run as services have in common. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/cli_internal.h"

/* sd_notify(3) without its library: one datagram to $NOTIFY_SOCKET. */
void cli_service_notify(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!path || (*path != '/' && *path != '@') || strlen(path) >= sizeof address.sun_path)
        return;
    memcpy(address.sun_path, path, strlen(path));
    if (*path == '@')
        address.sun_path[0] = '\0';
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address,
           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path)));
}

enum log_level cli_service_level(const struct cli *cli)
{
    const char *name = cli_options_value(cli, "log-level", "info");
    static const char *const names[] = {"error", "warning", "info", "debug"};
    for (size_t i = 0; i < 4; i++)
        if (strcmp(names[i], name) == 0)
            return (enum log_level)i;
    return LOG_LEVEL_INFO;
}

int cli_service_paths(const struct cli *cli, char ret_state[CLI_PATH_BYTES], char ret_socket[CLI_PATH_BYTES],
                      struct error *err)
{
    int r = cli_options_absolute(cli->state_directory, ret_state, err);
    return r < 0 ? r : cli_options_absolute(cli->socket_path, ret_socket, err);
}
