/* SPDX-License-Identifier: Apache-2.0 */
/* The layout is that of https://docs.kernel.org/filesystems/ext4/globals.html: "The Super Block", "Block Group Descriptors". */
#include "signal/fsmap.h"

#include <string.h>

#include "base/endian.h"

#define SUPER_OFFSET 1024u
#define SUPER_MAGIC 0xef53u
#define INCOMPAT_META_BG 0x10u
#define INCOMPAT_JOURNAL_DEV 0x8u
#define INCOMPAT_64BIT 0x80u
#define RO_COMPAT_BIGALLOC 0x200u
#define DESCRIPTOR_MIN 32u
#define DESCRIPTOR_WIDE 64u
#define GROUP_BLOCK_UNINIT 0x2u

static uint32_t get32(const unsigned char *p)
{
    struct le32 v;
    memcpy(&v, p, sizeof v);
    return le32_get(v);
}

static uint16_t get16(const unsigned char *p)
{
    struct le16 v;
    memcpy(&v, p, sizeof v);
    return le16_get(v);
}

bool fsmap_open(const void *first_block, uint64_t volume_blocks, struct fsmap *ret)
{
    const unsigned char *super = (const unsigned char *)first_block + SUPER_OFFSET;
    uint32_t incompat = get32(super + 0x60), ro_compat = get32(super + 0x64);
    if (get16(super + 0x38) != SUPER_MAGIC || get32(super + 0x18) != 2 /* 1024 << 2 */ || get32(super + 0x14) != 0)
        return false;
    if (incompat & (INCOMPAT_META_BG | INCOMPAT_JOURNAL_DEV) || ro_compat & RO_COMPAT_BIGALLOC)
        return false;
    *ret = (struct fsmap){.wide = incompat & INCOMPAT_64BIT,
                          .blocks = get32(super + 0x4),
                          .blocks_per_group = get32(super + 0x20),
                          .descriptor_bytes = DESCRIPTOR_MIN};
    if (ret->wide) {
        ret->blocks |= (uint64_t)get32(super + 0x150) << 32;
        ret->descriptor_bytes = get16(super + 0xfe);
        if (ret->descriptor_bytes != DESCRIPTOR_WIDE)
            return false;
    }
    if (ret->blocks == 0 || ret->blocks > volume_blocks || ret->blocks_per_group == 0 ||
        ret->blocks_per_group > FSMAP_BLOCK_BYTES * 8)
        return false;
    uint64_t groups = (ret->blocks + ret->blocks_per_group - 1) / ret->blocks_per_group;
    if (groups > UINT32_MAX)
        return false;
    ret->groups = (uint32_t)groups;
    return true;
}

/* Visits the runs of equal bits among the first `count`. */
static void visit_runs(const unsigned char *bitmap, uint64_t first, uint32_t count, fsmap_visit visit, void *context)
{
    for (uint32_t begin = 0, end; begin < count; begin = end) {
        unsigned bit = bitmap[begin / 8] >> begin % 8 & 1;
        for (end = begin + 1; end < count && (bitmap[end / 8] >> end % 8 & 1) == bit; end++)
            ;
        visit(context, first + begin, end - begin, !bit);
    }
}

void fsmap_bitmap(const struct fsmap *m, uint32_t group, const void *bitmap, fsmap_visit visit, void *context)
{
    uint64_t first = (uint64_t)group * m->blocks_per_group, left = m->blocks - first;
    visit_runs(bitmap, first, left < m->blocks_per_group ? (uint32_t)left : m->blocks_per_group, visit, context);
}

int fsmap_group(const struct fsmap *m, uint32_t group, fsmap_read read, fsmap_visit visit, void *context, void *scratch,
                struct error *err)
{
    unsigned char *descriptors = scratch, *bitmap = descriptors + FSMAP_BLOCK_BYTES;
    uint32_t per_block = FSMAP_BLOCK_BYTES / m->descriptor_bytes;
    if (1 + group / per_block >= m->blocks)
        return 0;
    int r = read(context, 1 + group / per_block, descriptors, err);
    if (r < 0)
        return r;
    const unsigned char *descriptor = descriptors + (size_t)(group % per_block) * m->descriptor_bytes;
    uint64_t at = get32(descriptor);
    if (m->wide)
        at |= (uint64_t)get32(descriptor + 0x20) << 32;
    if (get16(descriptor + 0x12) & GROUP_BLOCK_UNINIT || at == 0 || at >= m->blocks)
        return 0;
    r = read(context, at, bitmap, err);
    if (r == 0)
        fsmap_bitmap(m, group, bitmap, visit, context);
    return r;
}
