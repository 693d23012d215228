/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/cron.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/units.h"

#define FIELDS 5
#define DAY_S 86400

static const char *const month_names[] = {"jan", "feb", "mar", "apr", "may", "jun",
                                          "jul", "aug", "sep", "oct", "nov", "dec"};
static const char *const day_names[] = {"sun", "mon", "tue", "wed", "thu", "fri", "sat"};

static const struct {
    const char *name;
    unsigned low, high;
    const char *const *names;
    unsigned name_count;
} fields[FIELDS] = {{"minute", 0, 59, NULL, 0},
                    {"hour", 0, 23, NULL, 0},
                    {"day of the month", 1, 31, NULL, 0},
                    {"month", 1, 12, month_names, 12},
                    {"day of the week", 0, 7, day_names, 7}};

static int parse_value(unsigned field, const char *text, unsigned *ret, struct error *err)
{
    struct error ignored = ERROR_INIT;
    uint64_t value;
    for (unsigned i = 0; i < fields[field].name_count; i++)
        if (strcasecmp(text, fields[field].names[i]) == 0) {
            *ret = i + fields[field].low;
            return 0;
        }
    if (units_parse_u64(text, fields[field].high, &value, &ignored) < 0 || value < fields[field].low)
        return error_set(err, -EINVAL, "the %s '%s': from %u to %u", fields[field].name, text,
                         fields[field].low, fields[field].high);
    *ret = (unsigned)value;
    return 0;
}

/* One of a list: "*", "5", "1-5", each with "/2". */
static int parse_item(unsigned field, char *text, uint64_t *set, struct error *err)
{
    unsigned low = fields[field].low, high = fields[field].high, step = 1;
    char *slash = strchr(text, '/'), *dash;
    struct error ignored = ERROR_INIT;
    uint64_t value;
    int r = 0;
    if (slash) {
        *slash = '\0';
        if (units_parse_u64(slash + 1, fields[field].high, &value, &ignored) < 0 || value == 0)
            return error_set(err, -EINVAL, "the %s's step '%s': from 1 to %u", fields[field].name, slash + 1,
                             fields[field].high);
        step = (unsigned)value;
    }
    if (strcmp(text, "*") == 0) {
        high -= field == 4; /* Sunday once */
    } else if ((dash = strchr(text, '-'))) {
        *dash = '\0';
        if ((r = parse_value(field, text, &low, err)) == 0)
            r = parse_value(field, dash + 1, &high, err);
        if (r == 0 && low > high)
            r = error_set(err, -EINVAL, "the %s from %s to %s: that is backwards", fields[field].name, text,
                          dash + 1);
    } else {
        r = parse_value(field, text, &low, err);
        high = slash ? high : low;
    }
    for (unsigned i = low; r == 0 && i <= high; i += step)
        *set |= 1ull << (field == 4 && i == 7 ? 0 : i);
    return r;
}

static int parse_field(unsigned field, char *text, uint64_t *ret, struct error *err)
{
    char *rest = NULL;
    uint64_t set = 0;
    size_t length = strlen(text);
    if (text[0] == ',' || text[length - 1] == ',' || strstr(text, ",,"))
        return error_set(err, -EINVAL, "the %s '%s' has an empty item", fields[field].name, text);
    for (char *item = strtok_r(text, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        int r = parse_item(field, item, &set, err);
        if (r < 0)
            return r;
    }
    *ret = set;
    return 0;
}

static const char *of_name(const char *text)
{
    static const char *const named[][2] = {{"@hourly", "0 * * * *"},   {"@daily", "0 0 * * *"},
                                           {"@midnight", "0 0 * * *"}, {"@weekly", "0 0 * * 0"},
                                           {"@monthly", "0 0 1 * *"},  {"@yearly", "0 0 1 1 *"},
                                           {"@annually", "0 0 1 1 *"}};
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if (strcasecmp(text, named[i][0]) == 0)
            return named[i][1];
    return text;
}

int cron_parse(const char *text, struct cron *ret, struct error *err)
{
    char copy[128], *rest = NULL;
    uint64_t sets[FIELDS];
    bool any[FIELDS];
    unsigned count = 0;
    if (strlen(text) >= sizeof copy)
        return error_set(err, -EINVAL, "the schedule is longer than %zu characters", sizeof copy - 1);
    snprintf(copy, sizeof copy, "%s", of_name(text));
    for (char *field = strtok_r(copy, " \t", &rest); field; field = strtok_r(NULL, " \t", &rest)) {
        if (count == FIELDS) {
            count++;
            break;
        }
        any[count] = field[0] == '*';
        int r = parse_field(count, field, &sets[count], err);
        if (r < 0)
            return error_context(err, "the schedule '%s'", text);
        count++;
    }
    if (count != FIELDS)
        return error_set(
            err, -EINVAL,
            "the schedule '%s' needs five fields, minute hour day-of-month month day-of-week, such as "
            "'*/15 * * * *'",
            text);
    *ret = (struct cron){.minutes = sets[0],
                         .hours = (uint32_t)sets[1],
                         .days = (uint32_t)sets[2],
                         .months = (uint32_t)sets[3],
                         .weekdays = (uint32_t)sets[4],
                         .any_hour = any[1],
                         .any_day = any[2],
                         .any_weekday = any[4]};
    return cron_next(ret, NULL, 0) ? 0 : error_set(err, -EINVAL, "the schedule '%s' never comes", text);
}

/* ---- the next time ---- */

static bool day_matches(const struct cron *c, const struct tm *t)
{
    bool day = c->days >> t->tm_mday & 1, weekday = c->weekdays >> t->tm_wday & 1;
    return c->any_day || c->any_weekday ? day && weekday : day || weekday;
}

/* The clock was set back, and said this time before. */
static bool said_before(const struct time_zone *zone, int64_t utc_s)
{
    int32_t now = time_zone_offset(zone, utc_s), before = time_zone_offset(zone, utc_s - DAY_S / 8);
    return before > now && time_zone_offset(zone, utc_s - (before - now)) == before;
}

/* Until the next half hour: clocks change by such. */
static int64_t half_hour(const struct tm *t)
{
    return 60 * (t->tm_min < 30 ? 30 - t->tm_min : 60 - t->tm_min);
}

int64_t cron_next(const struct cron *c, const struct time_zone *zone, int64_t after_s)
{
    int64_t at = after_s - after_s % 60 + 60, end = after_s + (int64_t)CRON_YEARS * 366 * DAY_S;
    while (at < end) {
        struct tm t;
        time_t local = (time_t)(at + time_zone_offset(zone, at));
        gmtime_r(&local, &t);
        if (!(c->months >> (t.tm_mon + 1) & 1) || !day_matches(c, &t)) {
            /* Towards the next day, whose beginning the clock may bring nearer on the way. */
            int64_t left = DAY_S - (t.tm_hour * 3600 + t.tm_min * 60 + t.tm_sec);
            at += left > 3 * 3600 ? left - 2 * 3600 : half_hour(&t);
        } else if (!(c->hours >> t.tm_hour & 1)) {
            at += half_hour(&t);
        } else if (!(c->minutes >> t.tm_min & 1) || (!c->any_hour && said_before(zone, at))) {
            at += 60;
        } else {
            return at;
        }
    }
    return 0;
}
