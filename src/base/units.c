/* SPDX-License-Identifier: Apache-2.0 */
#include "base/units.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct unit {
    const char *suffix;
    uint64_t factor;
};

static const struct unit byte_units[] = {
    {"", 1},           {"k", 1000ull},       {"M", 1000000ull},         {"G", 1000000000ull},
    {"Ki", 1ull << 10}, {"Mi", 1ull << 20},   {"Gi", 1ull << 30},        {"Ti", 1ull << 40},
    {"Pi", 1ull << 50}, {"P", 1000000000000000ull}, {"T", 1000000000000ull},
};
static const struct unit time_units[] = {
    {"ns", 1},          {"us", 1000},          {"ms", 1000000},          {"s", 1000000000ull},
    {"m", 60000000000ull}, {"h", 3600000000000ull}, {"d", 86400000000000ull}, {"w", 604800000000000ull},
};

/* One number with its unit at *at; -EINVAL or -ERANGE. */
static int quantity(const char **at, const struct unit *units, size_t count, uint64_t *ret)
{
    if (!isdigit((unsigned char)**at))
        return -EINVAL;
    uint64_t whole = 0, fraction = 0, scale = 1;
    for (; isdigit((unsigned char)**at); (*at)++)
        if (__builtin_mul_overflow(whole, 10, &whole) || __builtin_add_overflow(whole, (uint64_t)(**at - '0'), &whole))
            return -ERANGE;
    if (**at == '.') {
        (*at)++;
        if (!isdigit((unsigned char)**at))
            return -EINVAL;
        for (; isdigit((unsigned char)**at); (*at)++)
            if (scale < 1000000000ull) {
                fraction = fraction * 10 + (uint64_t)(**at - '0');
                scale *= 10;
            }
    }
    size_t letters = strspn(*at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
    for (size_t i = 0; i < count; i++) {
        if (strlen(units[i].suffix) != letters || strncmp(units[i].suffix, *at, letters) != 0)
            continue;
        *at += letters;
        if (__builtin_mul_overflow(whole, units[i].factor, &whole))
            return -ERANGE;
        unsigned __int128 part = (unsigned __int128)fraction * units[i].factor / scale;
        return __builtin_add_overflow(whole, (uint64_t)part, ret) ? -ERANGE : 0;
    }
    return -EINVAL;
}

int units_parse_bytes(const char *text, uint64_t *ret_bytes, struct error *err)
{
    const char *at = text;
    uint64_t value;
    int r = quantity(&at, byte_units, sizeof byte_units / sizeof *byte_units, &value);
    if (r < 0 || *at)
        return error_set(err, r < 0 ? r : -EINVAL, "'%s' is not a size: expected a number of bytes such as 8Gi or 512Mi",
                         text);
    *ret_bytes = value;
    return 0;
}

int units_parse_duration(const char *text, uint64_t *ret_ns, struct error *err)
{
    const char *at = text;
    uint64_t total = 0;
    do {
        uint64_t part;
        int r = quantity(&at, time_units, sizeof time_units / sizeof *time_units, &part);
        if (r < 0 || __builtin_add_overflow(total, part, &total))
            return error_set(err, r < 0 ? r : -ERANGE,
                             "'%s' is not a duration: expected a number and a unit such as 90s, 250ms, 1h30m or 2d", text);
    } while (*at);
    *ret_ns = total;
    return 0;
}

const char *units_format_bytes(uint64_t bytes, char text[UNITS_TEXT_BYTES])
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    double value = (double)bytes;
    while (value >= 1024 && unit < 6) {
        value /= 1024;
        unit++;
    }
    snprintf(text, UNITS_TEXT_BYTES, unit ? "%.1f %s" : "%.0f %s", value, names[unit]);
    return text;
}

const char *units_format_duration(uint64_t ns, char text[UNITS_TEXT_BYTES])
{
    double s = (double)ns / 1e9;
    if (s < 0.001)
        snprintf(text, UNITS_TEXT_BYTES, "%.0f us", s * 1e6);
    else if (s < 1)
        snprintf(text, UNITS_TEXT_BYTES, "%.0f ms", s * 1e3);
    else if (s < 60)
        snprintf(text, UNITS_TEXT_BYTES, "%.1f s", s);
    else if (s < 3600)
        snprintf(text, UNITS_TEXT_BYTES, "%u min %u s", (unsigned)(s / 60), (unsigned)s % 60);
    else if (s < 86400)
        snprintf(text, UNITS_TEXT_BYTES, "%u h %u min", (unsigned)(s / 3600), (unsigned)(s / 60) % 60);
    else
        snprintf(text, UNITS_TEXT_BYTES, "%u d %u h", (unsigned)(s / 86400), (unsigned)(s / 3600) % 24);
    return text;
}

int units_parse_u64(const char *text, uint64_t max, uint64_t *ret, struct error *err)
{
    const char *at = text;
    uint64_t value = 0;
    if (!isdigit((unsigned char)*at))
        return error_set(err, -EINVAL, "'%s' is not a number", text);
    for (; isdigit((unsigned char)*at); at++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
            return error_set(err, -ERANGE, "'%s' is too large", text);
    if (*at)
        return error_set(err, -EINVAL, "'%s' is not a number", text);
    if (value > max)
        return error_set(err, -ERANGE, "'%s' is too large: at most %llu", text, (unsigned long long)max);
    *ret = value;
    return 0;
}

const char *units_format_exact_duration(uint64_t ns, char text[UNITS_TEXT_BYTES])
{
    static const struct {
        uint64_t ns;
        const char *name;
    } units[] = {{86400000000000u, "d"}, {3600000000000u, "h"}, {60000000000u, "m"}, {1000000000u, "s"},
                 {1000000u, "ms"},       {1000u, "us"},         {1u, "ns"}};
    size_t i = 0;
    while (ns % units[i].ns)
        i++;
    snprintf(text, UNITS_TEXT_BYTES, "%llu%s", (unsigned long long)(ns / units[i].ns), units[i].name);
    return text;
}
