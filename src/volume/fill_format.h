/* SPDX-License-Identifier: Apache-2.0 */
/* The file beside a backing that is not whole yet; docs/formats/fill.md. */
#ifndef TIDEMARK_VOLUME_FILL_FORMAT_H
#define TIDEMARK_VOLUME_FILL_FORMAT_H

#include <assert.h>

#include "base/endian.h"

#define FILL_MAGIC 0x314c4c4946544dull /* "MTFILL1" */
#define FILL_VERSION 1u

/* <backing>.unfilled: header, then a bitmap of grains in 8-byte words: set where the backing lacks what the source's volume held. */
struct fill_header {
    struct le64 magic;
    struct le32 version;
    struct le32 crc; /* CRC32C of the whole file with this field zero */
    struct le32 flags;
    struct le32 source_volume; /* its id in the source's journal */
    struct le64 size_bytes;    /* of the volume */
    struct le64 total_grains;  /* that were set at the beginning */
    uint8_t id[16];            /* of this fill */
    uint8_t reserved[8];
};
static_assert(sizeof(struct fill_header) == 64, "fill header");
enum fill_flags { FILL_EXACT = 1 << 0 }; /* saved at a clean end, or at the beginning: what is set was not written over since */

#endif
