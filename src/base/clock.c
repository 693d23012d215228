/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <time.h>

static uint64_t read_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * NS_PER_SECOND + (uint64_t)t.tv_nsec;
}
static uint64_t system_realtime(void *context)
{
    (void)context;
    return read_clock(CLOCK_REALTIME);
}
static uint64_t system_boottime(void *context)
{
    (void)context;
    return read_clock(CLOCK_BOOTTIME);
}

const struct clock *clock_system(void)
{
    static const struct clock system_clock = {system_realtime, system_boottime, NULL};
    return &system_clock;
}

const char *clock_format_rfc3339(uint64_t realtime_ns, char text[CLOCK_TEXT_BYTES])
{
    time_t seconds = (time_t)(realtime_ns / NS_PER_SECOND);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    snprintf(text, CLOCK_TEXT_BYTES, "%04d-%02d-%02dT%02d:%02d:%02d.%06uZ", tm.tm_year + 1900, tm.tm_mon + 1,
             tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
             (unsigned)(realtime_ns % NS_PER_SECOND / NS_PER_US));
    return text;
}

/* Exactly `count` digits at *at within [low, high]; advances. */
static int digits(const char **at, int count, int low, int high, int *ret)
{
    int value = 0;
    for (int i = 0; i < count; i++) {
        if (!isdigit((unsigned char)**at))
            return -EINVAL;
        value = value * 10 + (*(*at)++ - '0');
    }
    if (value < low || value > high)
        return -EINVAL;
    *ret = value;
    return 0;
}

static int literal(const char **at, char expected)
{
    return *(*at)++ == expected ? 0 : -EINVAL;
}

static int parse(const char *at, uint64_t *ret_ns)
{
    static const unsigned char month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    struct tm tm = {0};
    if (digits(&at, 4, 1970, 2199, &tm.tm_year) || literal(&at, '-') || digits(&at, 2, 1, 12, &tm.tm_mon) ||
        literal(&at, '-') || digits(&at, 2, 1, 31, &tm.tm_mday))
        return -EINVAL;
    int leap = tm.tm_year % 4 == 0 && (tm.tm_year % 100 != 0 || tm.tm_year % 400 == 0);
    if (tm.tm_mday > month_days[tm.tm_mon - 1] + (leap && tm.tm_mon == 2))
        return -EINVAL;
    if (*at != 'T' && *at != 't' && *at != ' ')
        return -EINVAL;
    at++;
    if (digits(&at, 2, 0, 23, &tm.tm_hour) || literal(&at, ':') || digits(&at, 2, 0, 59, &tm.tm_min) ||
        literal(&at, ':') || digits(&at, 2, 0, 60, &tm.tm_sec))
        return -EINVAL;
    uint64_t fraction_ns = 0;
    if (*at == '.') {
        at++;
        uint64_t unit = NS_PER_SECOND / 10;
        if (!isdigit((unsigned char)*at))
            return -EINVAL;
        for (; isdigit((unsigned char)*at); at++, unit /= 10)
            fraction_ns += (uint64_t)(*at - '0') * unit;
    }
    long offset_s = 0;
    if (*at == 'Z' || *at == 'z') {
        at++;
    } else if (*at == '+' || *at == '-') {
        int sign = *at++ == '-' ? -1 : 1, hours, minutes;
        if (digits(&at, 2, 0, 23, &hours) || literal(&at, ':') || digits(&at, 2, 0, 59, &minutes))
            return -EINVAL;
        offset_s = sign * (hours * 3600L + minutes * 60L);
    } else {
        return -EINVAL;
    }
    if (*at)
        return -EINVAL;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    time_t seconds = timegm(&tm) - offset_s;
    if (seconds < 0)
        return -EINVAL;
    *ret_ns = (uint64_t)seconds * NS_PER_SECOND + fraction_ns;
    return 0;
}

int clock_parse_rfc3339(const char *text, uint64_t *ret_realtime_ns, struct error *err)
{
    if (parse(text, ret_realtime_ns) < 0)
        return error_set(err, -EINVAL,
                         "'%s' is not a time: expected RFC 3339 with an offset, such as 2026-11-21T02:04:46.5Z", text);
    return 0;
}
