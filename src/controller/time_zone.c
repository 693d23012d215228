/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/time_zone.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "controller/time_zone_format.h"

#define FILE_LIMIT_BYTES (256u << 10)
#define NAME_BYTES_MAX 64u
#define DAY_S 86400

/* "M3.5.0/2": the fifth (last) Sunday of March at two o'clock. */
struct change {
    enum { BY_WEEK, BY_JULIAN, BY_DAY } kind;
    int month, week, day; /* BY_JULIAN: 1..365 without 29 February; BY_DAY: 0..365 */
    int32_t time_s;
};

struct time_zone {
    size_t count;
    int64_t *times;
    int32_t *offsets;     /* from times[i] on */
    int32_t first_offset; /* before times[0] */
    bool has_rule, has_summer;
    int32_t standard, summer;
    struct change to_summer, to_standard;
};

static void cleanup_zone(struct time_zone **zone)
{
    time_zone_free(*zone);
}

void time_zone_free(struct time_zone *zone)
{
    if (!zone)
        return;
    free(zone->times);
    free(zone->offsets);
    free(zone);
}

/* ---- days ---- */

static bool is_leap(int64_t year)
{
    return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

/* Of 1 January, since 1970 (proleptic Gregorian). */
static int64_t days_to_year(int64_t year)
{
    int64_t y = year - 1;
    return y * 365 + y / 4 - y / 100 + y / 400 - 719162;
}

static int64_t year_of(int64_t utc_s)
{
    int64_t year = 1970 + utc_s / (365 * DAY_S + DAY_S / 4) - 1;
    while (days_to_year(year + 1) * DAY_S <= utc_s)
        year++;
    while (days_to_year(year) * DAY_S > utc_s)
        year--;
    return year;
}

/* When the clock changes in that year, as local time of before. */
static int64_t change_in(const struct change *c, int64_t year)
{
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int64_t day = days_to_year(year);
    if (c->kind == BY_DAY)
        return (day + c->day) * DAY_S + c->time_s;
    if (c->kind == BY_JULIAN)
        return (day + c->day - 1 + (is_leap(year) && c->day >= 60)) * DAY_S + c->time_s;
    for (int m = 1; m < c->month; m++)
        day += lengths[m - 1] + (m == 2 && is_leap(year));
    int64_t last = day + lengths[c->month - 1] - 1 + (c->month == 2 && is_leap(year));
    day += (c->day - (day + 4) % 7 + 7) % 7 + (c->week - 1) * 7; /* 1 January 1970 was a Thursday */
    while (day > last)
        day -= 7;
    return day * DAY_S + c->time_s;
}

static int32_t by_rule(const struct time_zone *z, int64_t utc_s)
{
    if (!z->has_summer)
        return z->standard;
    int64_t year = year_of(utc_s + z->standard), start = change_in(&z->to_summer, year) - z->standard,
            end = change_in(&z->to_standard, year) - z->summer;
    bool summer = start < end ? utc_s >= start && utc_s < end : utc_s >= start || utc_s < end;
    return summer ? z->summer : z->standard;
}

int32_t time_zone_offset(const struct time_zone *z, int64_t utc_s)
{
    if (!z)
        return 0;
    if (z->count == 0)
        return z->has_rule ? by_rule(z, utc_s) : z->first_offset;
    if (utc_s < z->times[0])
        return z->first_offset;
    if (z->has_rule && utc_s >= z->times[z->count - 1])
        return by_rule(z, utc_s);
    size_t low = 0, high = z->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (z->times[middle] <= utc_s)
            low = middle;
        else
            high = middle;
    }
    return z->offsets[low];
}

/* ---- the rule, as POSIX has it: "CET-1CEST,M3.5.0,M10.5.0/3" ---- */

static bool take_number(const char **at, int max, int *ret)
{
    int value = 0;
    if (**at < '0' || **at > '9')
        return false;
    for (; **at >= '0' && **at <= '9'; (*at)++) {
        value = value * 10 + (**at - '0');
        if (value > max)
            return false;
    }
    *ret = value;
    return true;
}

/* [+-]hh[:mm[:ss]], in seconds. */
static bool take_time(const char **at, int32_t *ret_s)
{
    int sign = **at == '-' ? -1 : 1, hours, minutes = 0, seconds = 0;
    if (**at == '-' || **at == '+')
        (*at)++;
    if (!take_number(at, 167, &hours))
        return false;
    if (**at == ':' && ((*at)++, !take_number(at, 59, &minutes)))
        return false;
    if (**at == ':' && ((*at)++, !take_number(at, 59, &seconds)))
        return false;
    *ret_s = sign * (hours * 3600 + minutes * 60 + seconds);
    return true;
}

static bool take_name(const char **at)
{
    const char *start = *at;
    bool quoted = **at == '<';
    if (quoted) {
        *at += strcspn(*at, ">");
        if (**at != '>')
            return false;
        (*at)++;
        return true;
    }
    while ((**at >= 'A' && **at <= 'Z') || (**at >= 'a' && **at <= 'z'))
        (*at)++;
    return *at - start >= 3;
}

static bool take_change(const char **at, struct change *c)
{
    *c = (struct change){.time_s = 7200};
    if (**at != ',')
        return false;
    (*at)++;
    if (**at == 'M') {
        (*at)++;
        if (!take_number(at, 12, &c->month) || c->month < 1 || *(*at)++ != '.' ||
            !take_number(at, 5, &c->week) || c->week < 1 || *(*at)++ != '.' || !take_number(at, 6, &c->day))
            return false;
    } else {
        c->kind = **at == 'J' ? BY_JULIAN : BY_DAY;
        *at += **at == 'J';
        if (!take_number(at, 365, &c->day) || (c->kind == BY_JULIAN && c->day < 1))
            return false;
    }
    return **at != '/' || ((*at)++, take_time(at, &c->time_s));
}

static bool parse_rule(struct time_zone *z, const char *text)
{
    const char *at = text;
    int32_t west;
    if (!take_name(&at) || !take_time(&at, &west))
        return false;
    z->standard = -west;
    z->summer = z->standard + 3600;
    z->has_rule = true;
    if (!*at)
        return true;
    if (!take_name(&at))
        return false;
    if (*at && *at != ',') {
        if (!take_time(&at, &west))
            return false;
        z->summer = -west;
    }
    z->has_summer = take_change(&at, &z->to_summer) && take_change(&at, &z->to_standard);
    return z->has_summer && !*at;
}

/* ---- the file ---- */

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static int64_t be64(const uint8_t *p)
{
    return (int64_t)((uint64_t)be32(p) << 32 | be32(p + 4));
}

/* What follows a head whose times have `width` bytes. */
static size_t block_bytes(const struct tzif_header *h, size_t width)
{
    return be32(h->timecnt) * (width + 1) + be32(h->typecnt) * sizeof(struct tzif_type) + be32(h->charcnt) +
           be32(h->leapcnt) * (width + 4) + be32(h->isstdcnt) + be32(h->isutcnt);
}

static bool sane(const struct tzif_header *h, size_t left)
{
    const uint8_t *counts[] = {h->isutcnt, h->isstdcnt, h->leapcnt, h->timecnt, h->typecnt, h->charcnt};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (be32(counts[i]) > FILE_LIMIT_BYTES)
            return false;
    return memcmp(h->magic, TZIF_MAGIC, 4) == 0 && left >= sizeof *h && be32(h->typecnt) > 0;
}

static bool parse_block(struct time_zone *z, const struct tzif_header *h, const uint8_t *data)
{
    size_t count = be32(h->timecnt), types = be32(h->typecnt);
    const uint8_t *indexes = data + count * 8;
    const struct tzif_type *type = (const struct tzif_type *)(indexes + count);
    z->times = calloc(count + 1, sizeof *z->times);
    z->offsets = calloc(count + 1, sizeof *z->offsets);
    if (!z->times || !z->offsets)
        return false;
    z->first_offset = (int32_t)be32(type[0].utoff);
    for (size_t i = 0; i < count; i++) {
        z->times[i] = be64(data + i * 8);
        if (indexes[i] >= types || (i > 0 && z->times[i] <= z->times[i - 1]))
            return false;
        z->offsets[i] = (int32_t)be32(type[indexes[i]].utoff);
    }
    z->count = count;
    return true;
}

static bool parse(struct time_zone *z, const uint8_t *data, size_t size)
{
    const struct tzif_header *h = (const struct tzif_header *)data;
    char rule[128];
    if (size < sizeof *h || !sane(h, size) || h->version < '2')
        return false;
    size_t skip = sizeof *h + block_bytes(h, 4);
    if (size < skip + sizeof *h)
        return false;
    h = (const struct tzif_header *)(data + skip);
    if (!sane(h, size - skip) || size - skip < sizeof *h + block_bytes(h, 8) ||
        !parse_block(z, h, data + skip + sizeof *h))
        return false;
    const char *at = (const char *)(h + 1) + block_bytes(h, 8);
    size_t left = size - (size_t)((const uint8_t *)at - data);
    const char *end = left > 1 && at[0] == '\n' ? memchr(at + 1, '\n', left - 1) : NULL;
    if (!end || (size_t)(end - at) > sizeof rule)
        return false;
    snprintf(rule, sizeof rule, "%.*s", (int)(end - at - 1), at + 1);
    return !rule[0] || parse_rule(z, rule);
}

static bool is_name(const char *name)
{
    bool good = *name && *name != '/' && strlen(name) <= NAME_BYTES_MAX && !strstr(name, "..");
    for (const char *c = name; *c; c++)
        good = good && ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
                        strchr("/_+-", *c));
    return good;
}

int time_zone_load(const char *directory, const char *name, struct time_zone **ret, struct error *err)
{
    __attribute__((cleanup(cleanup_zone))) struct time_zone *zone = calloc(1, sizeof *zone);
    _cleanup_free_ char *data = NULL;
    char path[512];
    size_t size = 0;
    if (!is_name(name))
        return error_set(err, -EINVAL, "'%s' is no time zone: one is called such as Europe/Berlin or UTC",
                         name);
    if (!zone)
        return error_set(err, -ENOMEM, "out of memory");
    if (strcmp(name, "UTC") == 0 || strcmp(name, "Etc/UTC") == 0) {
        *ret = take_ptr(zone);
        return 0;
    }
    snprintf(path, sizeof path, "%s/%s", directory ? directory : TIME_ZONE_DIRECTORY, name);
    int r = io_read_file(path, FILE_LIMIT_BYTES, &data, &size, err);
    if (r == -ENOENT || r == -EISDIR || r == -ENOTDIR)
        return error_set(err, -ENOENT, "there is no time zone '%s' (%s): look for typing errors, or use UTC",
                         name, path);
    if (r < 0)
        return r;
    if (!parse(zone, (const uint8_t *)data, size))
        return error_set(err, -EBADMSG, "%s is no file of a time zone", path);
    *ret = take_ptr(zone);
    return 0;
}
