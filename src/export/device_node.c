/* SPDX-License-Identifier: Apache-2.0 */
#include "export/device_node.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/cleanup.h"
#include "base/io.h"

#define NUMBERS_LIMIT 64u

int device_node_make(const char *numbers_path, const char *device, mode_t type, struct error *err)
{
    unsigned major_number, minor_number;
    struct stat st;
    if (stat(device, &st) == 0)
        return 0;
    _cleanup_free_ char *text = NULL;
    int r = io_read_file(numbers_path, NUMBERS_LIMIT, &text, NULL, err);
    if (r < 0)
        return r;
    if (sscanf(text, "%u:%u", &major_number, &minor_number) != 2)
        return error_set(err, -EINVAL, "cannot make %s: %s holds no device number", device, numbers_path);
    if (mknod(device, type | 0600, makedev(major_number, minor_number)) < 0 && errno != EEXIST)
        return error_errno(err, -errno, "cannot make the device node %s", device);
    return 0;
}
