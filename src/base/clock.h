/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks through ops, so that a test can replay a history. All times are ns; realtime since 1970-01-01 UTC. */
#ifndef TIDEMARK_BASE_CLOCK_H
#define TIDEMARK_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define NS_PER_SECOND 1000000000ull
#define NS_PER_MS 1000000ull
#define NS_PER_US 1000ull
#define CLOCK_TEXT_BYTES 40

struct clock {
    uint64_t (*realtime_ns)(void *context);
    uint64_t (*boottime_ns)(void *context);
    void *context;
};

/* The machine's clocks. Static storage. */
const struct clock *clock_system(void);

static inline uint64_t clock_realtime_ns(const struct clock *clock)
{
    return clock->realtime_ns(clock->context);
}
static inline uint64_t clock_boottime_ns(const struct clock *clock)
{
    return clock->boottime_ns(clock->context);
}

/* RFC 3339 in UTC with microseconds: "2026-11-21T02:04:46.500000Z". Returns `text`. */
const char *clock_format_rfc3339(uint64_t realtime_ns, char text[CLOCK_TEXT_BYTES]);
/* Parses RFC 3339: offset `Z` or +hh:mm required, fraction optional up to ns. -EINVAL with a message. */
int clock_parse_rfc3339(const char *text, uint64_t *ret_realtime_ns, struct error *err) MUST_CHECK;

#endif
