/* SPDX-License-Identifier: Apache-2.0 */
/* Time zones by name, from the machine's files (TZif, RFC 8536): the C library has one zone a process, of its
 * environment.
 *
 * Threads: values. Only time_zone_load blocks. */
#ifndef TIDEMARK_CONTROLLER_TIME_ZONE_H
#define TIDEMARK_CONTROLLER_TIME_ZONE_H

#include <stdint.h>

#include "base/error.h"

#define TIME_ZONE_DIRECTORY "/usr/share/zoneinfo"

struct time_zone;
/* "Europe/Berlin". `directory` NULL: TIME_ZONE_DIRECTORY. -EINVAL: not a name; -ENOENT: no such zone here;
 * -EBADMSG: no such file. "UTC" is known without a file. */
int time_zone_load(const char *directory, const char *name, struct time_zone **ret,
                   struct error *err) MUST_CHECK;
void time_zone_free(struct time_zone *zone);
/* Seconds to add to a time of UTC. NULL: UTC. */
int32_t time_zone_offset(const struct time_zone *zone, int64_t utc_s);

#endif
