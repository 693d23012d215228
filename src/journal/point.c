/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/point.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/units.h"

static bool is_alphanumeric(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

int point_check_tag(const char *name, struct error *err)
{
    size_t length = strnlen(name, POINT_TAG_BYTES);
    bool good = length > 0 && length < POINT_TAG_BYTES && is_alphanumeric(name[0]);
    for (size_t i = 0; good && i < length; i++)
        good = is_alphanumeric(name[i]) || name[i] == '.' || name[i] == '_' || name[i] == '-';
    if (!good)
        return error_set(err, -EINVAL,
                         "'%.80s' cannot name a tag: expected 1 to %d letters, digits, '.', '_' or '-', "
                         "beginning with a letter or digit",
                         name, POINT_TAG_BYTES - 1);
    return 0;
}

/* What is a date to a person: a time without a zone would be another one in summer, and on another host. */
static bool looks_like_time(const char *text)
{
    static const char date[] = "dddd-dd-dd";
    for (size_t i = 0; date[i]; i++)
        if (date[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != date[i])
            return false;
    return true;
}

int point_parse(const char *text, struct point *ret, struct error *err)
{
    struct point point = {.kind = POINT_LATEST};
    struct error cause = ERROR_INIT; /* replaced by the whole grammar, or kept where the kind is plain */
    int r = 0;
    if (strcmp(text, "latest") == 0) {
        point.kind = POINT_LATEST;
    } else if (text[0] == '-') {
        point.kind = POINT_AGO;
        r = units_parse_duration(text + 1, &point.ago_ns, &cause);
    } else if (strncmp(text, "lsn:", 4) == 0) {
        point.kind = POINT_LSN;
        r = units_parse_u64(text + 4, UINT64_MAX, &point.lsn.n, &cause);
    } else if (strncmp(text, "tag:", 4) == 0) {
        point.kind = POINT_TAG;
        r = point_check_tag(text + 4, &cause);
        if (r == 0)
            memcpy(point.tag, text + 4, strlen(text + 4));
    } else {
        point.kind = POINT_TIME;
        r = clock_parse_rfc3339(text, &point.realtime_ns, &cause);
        if (r < 0 && looks_like_time(text))
            return error_set(err, -EINVAL,
                             "'%.80s' is not a point in time: a time has a date, seconds and a zone, such as "
                             "2026-11-21T02:04:46Z, "
                             "or 2026-11-21T03:04:46+01:00",
                             text);
        if (r < 0)
            return error_set(err, -EINVAL,
                             "'%.80s' is not a point in time: expected latest, -90s, a time such as "
                             "2026-11-21T02:04:46.5Z, lsn:NUMBER or tag:NAME",
                             text);
    }
    if (r < 0)
        return error_set(err, -EINVAL, "'%.80s' is not a point in time: %.400s", text, cause.message);
    *ret = point;
    return 0;
}
