/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/clock.h"
#include "base/units.h"
#include "cli/cli_internal.h"

uint64_t cli_field_u64(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));
    return value > 0 ? (uint64_t)value : 0;
}

const char *cli_field_text(const json_t *object, const char *key, const char *fallback)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text && *text ? text : fallback;
}

const char *cli_field_age(const json_t *object, const char *key, char text[CLI_TEXT_BYTES])
{
    char duration[UNITS_TEXT_BYTES];
    uint64_t then_ns, now_ns = clock_realtime_ns(clock_system());
    struct error ignored = ERROR_INIT;
    if (clock_parse_rfc3339(cli_field_text(object, key, ""), &then_ns, &ignored) < 0)
        snprintf(text, CLI_TEXT_BYTES, "-");
    else if (then_ns > now_ns + NS_PER_SECOND)
        snprintf(text, CLI_TEXT_BYTES, "in %s", units_format_duration(then_ns - now_ns, duration));
    else if (then_ns + NS_PER_SECOND > now_ns)
        snprintf(text, CLI_TEXT_BYTES, "now");
    else
        snprintf(text, CLI_TEXT_BYTES, "%s ago", units_format_duration(now_ns - then_ns, duration));
    return text;
}

const char *cli_field_volumes(const json_t *object, const char *size_key, char text[CLI_TEXT_BYTES])
{
    char size[UNITS_TEXT_BYTES];
    size_t used = 0, i;
    json_t *volume;
    text[0] = '\0';
    json_array_foreach(json_object_get(object, "volumes"), i, volume)
    {
        used += (size_t)snprintf(text + used, CLI_TEXT_BYTES - used, "%s%.40s %s", i ? ", " : "",
                                 cli_field_text(volume, "name", "?"),
                                 units_format_bytes(cli_field_u64(volume, size_key), size));
        if (used >= CLI_TEXT_BYTES - 1) {
            memcpy(text + CLI_TEXT_BYTES - 4, "...", 4);
            break;
        }
    }
    if (!*text)
        snprintf(text, CLI_TEXT_BYTES, "-");
    return text;
}
