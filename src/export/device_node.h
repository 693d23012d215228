/* SPDX-License-Identifier: Apache-2.0 */
/* Device nodes: devtmpfs makes them on the host; in a container's /dev nobody does. */
#ifndef TIDEMARK_EXPORT_DEVICE_NODE_H
#define TIDEMARK_EXPORT_DEVICE_NODE_H

#include <sys/types.h>

#include "base/error.h"

/* Makes `device` by the numbers in the sysfs file `numbers_path`, unless it is there. `type`: S_IFBLK or
 * S_IFCHR. */
int device_node_make(const char *numbers_path, const char *device, mode_t type, struct error *err) MUST_CHECK;

#endif
