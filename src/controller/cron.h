/* SPDX-License-Identifier: Apache-2.0 */
/* Times by cron's five fields: minute hour day-of-month month day-of-week, each `*`, a value, a range, a list
 * of them, with a step (`*` and a range); months and days by name, too; 7 is Sunday as 0 is; and @hourly
 * @daily @midnight @weekly @monthly
 * @yearly @annually. When both days are given either counts, as in cron.
 *
 * In a time zone: what the clock leaps over in spring is left out; what it says twice in autumn counts once,
 * unless the hour is any (`*`, or with a step).
 *
 * Threads: values. Nothing blocks. */
#ifndef TIDEMARK_CONTROLLER_CRON_H
#define TIDEMARK_CONTROLLER_CRON_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "controller/time_zone.h"

struct cron {
    uint64_t minutes;
    uint32_t hours, days, months, weekdays;
    bool any_hour, any_day, any_weekday;
};

/* -EINVAL says which field, and why. Such as never come (30 February) are refused. */
int cron_parse(const char *text, struct cron *ret, struct error *err) MUST_CHECK;
/* The first time after `after_s` (seconds since 1970 of UTC); 0: there is none in the next CRON_YEARS. `zone`
 * NULL: UTC. */
#define CRON_YEARS 9
int64_t cron_next(const struct cron *cron, const struct time_zone *zone, int64_t after_s);

#endif
