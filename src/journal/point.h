/* SPDX-License-Identifier: Apache-2.0 */
/* The grammar of points in time: latest | -90s | RFC 3339 | lsn:N | tag:NAME. Parsing only; the engine resolves.
 * A type of its own, since an application with several streams will have cuts as points. */
#ifndef TIDEMARK_JOURNAL_POINT_H
#define TIDEMARK_JOURNAL_POINT_H

#include <stdint.h>

#include "base/error.h"
#include "journal/lsn.h"

#define POINT_TAG_BYTES 64 /* with the NUL: names are [A-Za-z0-9._-]{1,63}, starting with a letter or digit */

enum point_kind { POINT_LATEST, POINT_AGO, POINT_TIME, POINT_LSN, POINT_TAG };

struct point {
    enum point_kind kind;
    uint64_t ago_ns;          /* POINT_AGO */
    uint64_t realtime_ns;     /* POINT_TIME */
    struct lsn lsn;           /* POINT_LSN */
    char tag[POINT_TAG_BYTES]; /* POINT_TAG */
};

/* -EINVAL with what was expected. */
int point_parse(const char *text, struct point *ret, struct error *err) MUST_CHECK;
/* -EINVAL unless `name` may name a tag. */
int point_check_tag(const char *name, struct error *err) MUST_CHECK;

#endif
