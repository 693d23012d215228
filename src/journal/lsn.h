/* SPDX-License-Identifier: Apache-2.0 */
/* Log sequence number: the position of a record in a stream's one order. 0 is "before everything". */
#ifndef TIDEMARK_JOURNAL_LSN_H
#define TIDEMARK_JOURNAL_LSN_H

#include <stdint.h>

struct lsn {
    uint64_t n;
};

#define LSN_NONE ((struct lsn){0})
#define LSN_MAX ((struct lsn){UINT64_MAX})

#endif
