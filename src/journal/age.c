/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/age.h"

#include <string.h>

static bool is_of_boot(const struct segment_info *s, const struct uuid *boot)
{
    return memcmp(s->boot.bytes, boot->bytes, sizeof boot->bytes) == 0;
}

static uint64_t since(uint64_t then, uint64_t now)
{
    return now > then ? now - then : 0;
}

void age_clock_read(const struct manifest *m, const struct clock *clock, struct age_clock *ret)
{
    *ret = (struct age_clock){.boot = m->boot,
                              .realtime_ns = clock_realtime_ns(clock),
                              .boottime_ns = clock_boottime_ns(clock),
                              .first_boottime_ns = UINT64_MAX};
    for (size_t i = 0; i < m->segment_count; i++)
        if (is_of_boot(&m->segments[i], &m->boot)) {
            ret->first_realtime_ns = m->segments[i].first_realtime_ns;
            ret->first_boottime_ns = m->segments[i].first_boottime_ns;
            return;
        }
}

uint64_t age_of(const struct age_clock *c, const struct segment_info *s)
{
    if (is_of_boot(s, &c->boot))
        return since(s->last_boottime_ns, c->boottime_ns);
    uint64_t age = since(s->last_realtime_ns, c->realtime_ns);
    if (c->first_boottime_ns == UINT64_MAX)
        return age;
    uint64_t before = since(s->last_realtime_ns, c->first_realtime_ns), after = since(c->first_boottime_ns, c->boottime_ns);
    return before + after < age ? before + after : age;
}
