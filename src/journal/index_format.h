/* SPDX-License-Identifier: Apache-2.0 */
/* The index file on disk; docs/formats/index.md has the tables. Blocks of 4 KiB: block 0 is the header,
 * blocks 1 to `root` are the tree (leaves and fence pages in the order in which they filled up, the root
 * last), then come the pages of the sections. */
#ifndef TIDEMARK_JOURNAL_INDEX_FORMAT_H
#define TIDEMARK_JOURNAL_INDEX_FORMAT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "base/endian.h"

#define INDEX_MAGIC "TMKINDX1"
#define INDEX_PAGE_MAGIC "TMKP"
#define INDEX_VERSION 1u
#define INDEX_PAGE_BYTES 4096u
#define INDEX_PAYLOAD_BYTES (INDEX_PAGE_BYTES - 16u)
#define INDEX_FANOUT (INDEX_PAYLOAD_BYTES / 40u) /* 102 entries or fences a page */
#define INDEX_HEIGHT_MAX 8u                      /* 2^32 pages need 6; small fan-outs in tests need more */
#define INDEX_SECTIONS 4u

/* Flags of the header's `compatible`. */
#define INDEX_HAS_CRCS 1u /* entries with EXTENT_CHECKED have the CRC of their block; without it that flag says nothing */

enum index_page_type { INDEX_PAGE_LEAF = 1, INDEX_PAGE_FENCE = 2, INDEX_PAGE_SECTION = 3 };

struct index_section_location {
    struct le64 page; /* first page; 0 when the section is empty */
    struct le64 length_bytes;
};

struct index_header {
    char magic[8];
    struct le32 crc; /* CRC32C of the block without this field */
    struct le32 version;
    struct le32 compatible;   /* unknown bits: may be read */
    struct le32 incompatible; /* unknown bits: must be refused */
    uint8_t journal_id[16];
    uint8_t index_id[16]; /* random; its CRC32C seeds every page's */
    struct le16 kind;
    struct le16 flat; /* 0 or 1 */
    struct le32 first_segment;
    struct le32 last_segment;
    struct le32 height; /* levels of the tree; 0 when there are no extents */
    struct le64 low;
    struct le64 high;
    struct le64 extents;
    struct le64 root;  /* page number, 0 when there are no extents */
    struct le64 pages; /* blocks in the file, this one included */
    struct index_section_location sections[INDEX_SECTIONS];
    uint8_t zero[INDEX_PAGE_BYTES - 176];
};
static_assert(sizeof(struct index_header) == INDEX_PAGE_BYTES, "one block");
static_assert(offsetof(struct index_header, crc) == 8, "format");
static_assert(offsetof(struct index_header, journal_id) == 24, "format");
static_assert(offsetof(struct index_header, kind) == 56, "format");
static_assert(offsetof(struct index_header, low) == 72, "format");
static_assert(offsetof(struct index_header, sections) == 112, "format");

struct index_page_header {
    struct le32 crc; /* CRC32C of the rest of the page, started from the CRC32C of index_id */
    char magic[4];
    struct le32 page;  /* its own number: a page in the wrong place is damage */
    struct le16 count; /* entries, fences, or bytes of a section */
    uint8_t type;
    uint8_t level; /* leaf 0, fence 1 and up; a section's number */
};
static_assert(sizeof(struct index_page_header) == 16, "format");

struct index_entry {
    struct le32 volume;
    struct le32 length;
    struct le64 lba;
    struct le64 lsn;
    struct le32 segment;
    struct le32 position;
    struct le16 kind;
    struct le16 flags;
    struct le32 crc; /* of the payload's block, with EXTENT_CHECKED; else 0 */
};
static_assert(sizeof(struct index_entry) == 40, "format");

/* What a fence page says of one child. */
struct index_fence {
    struct le32 volume; /* key of the first extent below the child */
    struct le32 last_volume;
    struct le64 lba;
    struct le64 lsn;
    struct le64 end; /* greatest end LBA of any extent of last_volume below the child */
    struct le32 page;
    struct le32 zero;
};
static_assert(sizeof(struct index_fence) == 40, "format");

union index_page {
    uint8_t bytes[INDEX_PAGE_BYTES];
    struct {
        struct index_page_header header;
        union {
            struct index_entry entries[INDEX_FANOUT];
            struct index_fence fences[INDEX_FANOUT];
            uint8_t payload[INDEX_PAYLOAD_BYTES];
        };
    };
} __attribute__((aligned(8)));
static_assert(sizeof(union index_page) == INDEX_PAGE_BYTES, "one block");

#endif
