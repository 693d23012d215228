/* SPDX-License-Identifier: Apache-2.0 */
#include "export/fuse_probe.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "export/fuse_abi.h"
#include "export/fuse_mount.h"

#define PROBE_TIMEOUT_MS 1000
#define PROBE_BUFFER_BYTES (64u << 10)

int fuse_probe_parse(const void *request, size_t length_bytes, bool *ret, struct error *err)
{
    struct fuse_in_header header;
    struct fuse_init_in init = {0};
    if (length_bytes < sizeof header + 16)
        return error_set(err, -EPROTO, "the kernel's FUSE sent %zu bytes in place of an INIT", length_bytes);
    memcpy(&header, request, sizeof header);
    if (header.opcode != FUSE_INIT)
        return error_set(err, -EPROTO, "the kernel's FUSE began with request %u in place of INIT", header.opcode);
    size_t arguments = length_bytes - sizeof header;
    memcpy(&init, (const char *)request + sizeof header, arguments < sizeof init ? arguments : sizeof init);
    uint64_t offered = init.flags;
    if (init.flags & FUSE_INIT_EXT)
        offered |= (uint64_t)init.flags2 << 32;
    *ret = offered & FUSE_ABI_HAS_RESEND;
    return 0;
}

static int read_init(int fd, bool *ret, struct error *err)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char *buffer = io_alloc_pages(PROBE_BUFFER_BYTES);
    if (!buffer)
        return error_errno(err, -ENOMEM, "cannot ask the kernel's FUSE");
    int ready = poll(&p, 1, PROBE_TIMEOUT_MS);
    ssize_t n = ready > 0 ? read(fd, buffer, PROBE_BUFFER_BYTES) : -1;
    int r = ready == 0 ? error_set(err, -ETIMEDOUT, "the kernel's FUSE sent no INIT")
            : n < 0    ? error_errno(err, -errno, "cannot read the kernel's INIT")
                       : fuse_probe_parse(buffer, (size_t)n, ret, err);
    io_free_pages(buffer, PROBE_BUFFER_BYTES);
    return r;
}

int fuse_probe_resend(const char *directory, bool *ret, struct error *err)
{
    int fd, nonblock_fd;
    struct error ignored = ERROR_INIT;
    int r = io_mkdirs(directory, 0700, err);
    if (r == 0)
        r = fuse_mount(directory, "tidemark-probe", &fd, &nonblock_fd, err);
    if (r < 0)
        return r;
    r = read_init(fd, ret, err);
    close(nonblock_fd);
    close(fd); /* before the unmount, which would wait for an answer */
    if (fuse_mount_remove(directory, &ignored) == 0)
        rmdir(directory);
    return r;
}
