/* SPDX-License-Identifier: Apache-2.0 */
/* On-disk structs of the write-intent bitmap. See docs/formats/intent.md. */
#ifndef TIDEMARK_VOLUME_INTENT_FORMAT_H
#define TIDEMARK_VOLUME_INTENT_FORMAT_H

#include <assert.h>

#include "base/endian.h"

#define INTENT_MAGIC 0x3130544e494b4d54ull /* "TMKINT01" */
#define INTENT_VERSION 1u
#define INTENT_REGION_BYTES (4u << 20)
#define INTENT_SECTOR_BYTES 512u
#define INTENT_PAGE_BYTES                                                                                    \
    4096u /* the first one has the header; written at once, torn at sectors at the worst */
#define INTENT_PAGE_SECTORS (INTENT_PAGE_BYTES / INTENT_SECTOR_BYTES)

struct intent_header {
    struct le64 magic;
    struct le32 version;
    struct le32 crc; /* CRC32C of the first 512 bytes with this field zero */
    uint8_t journal_id[16];
    struct le32 volume;
    struct le32 region_bytes;
};
static_assert(sizeof(struct intent_header) == 40, "intent header");

struct intent_sector {
    struct le32 crc; /* CRC32C of the sector with this field zero */
    struct le32 index;
    struct le64 covered_lsn; /* all below it was durable in journal and backing when bits were cleared */
    uint8_t bits[496];
};
static_assert(sizeof(struct intent_sector) == INTENT_SECTOR_BYTES, "intent sector");
#define INTENT_SECTOR_REGIONS (496u * 8)
#define INTENT_PAGE_REGIONS (INTENT_SECTOR_REGIONS * INTENT_PAGE_SECTORS)
static_assert(INTENT_SECTOR_REGIONS % 64 == 0, "whole words a sector");

#endif
