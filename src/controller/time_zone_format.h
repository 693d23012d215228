/* SPDX-License-Identifier: Apache-2.0 */
/* The head of a TZif file (RFC 8536, 3.1): big-endian. A second one with times of eight bytes follows the
 * first block of a file of version 2 and later, and behind its block, between newlines, the rule for all
 * times after it. */
#ifndef TIDEMARK_CONTROLLER_TIME_ZONE_FORMAT_H
#define TIDEMARK_CONTROLLER_TIME_ZONE_FORMAT_H

#include <stdint.h>

#define TZIF_MAGIC "TZif"

struct tzif_header {
    char magic[4];
    char version; /* 0, '2', '3', '4' */
    char reserved[15];
    uint8_t isutcnt[4], isstdcnt[4], leapcnt[4], timecnt[4], typecnt[4], charcnt[4];
};
_Static_assert(sizeof(struct tzif_header) == 44, "RFC 8536");

struct tzif_type {
    uint8_t utoff[4];
    uint8_t isdst, idx;
};
_Static_assert(sizeof(struct tzif_type) == 6, "RFC 8536");

#endif
