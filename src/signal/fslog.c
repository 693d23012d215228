/* SPDX-License-Identifier: Apache-2.0 */
/* The layout is that of https://docs.kernel.org/filesystems/ext4/journal.html (big-endian), and of the journal's inode as it is kept in the
 * super block (s_jnl_blocks). */
#include "signal/fslog.h"

#include <endian.h>
#include <string.h>

#include "base/endian.h"

#define SUPER_OFFSET 1024u
#define COMPAT_HAS_JOURNAL 0x4u
#define EXTENT_MAGIC 0xf30au
#define JBD_MAGIC 0xc03b3998u
#define JBD_DESCRIPTOR 1u
#define JBD_COMMIT 2u
#define JBD_SUPER_V2 4u
#define JBD_REVOKE 5u
#define JBD_64BIT 0x2u
#define JBD_CSUM_V2 0x8u
#define JBD_CSUM_V3 0x10u
#define JBD_FAST_COMMIT 0x20u
#define TAG_SAME_UUID 0x2u
#define TAG_LAST 0x8u
#define HEADER_BYTES 12u
#define TAIL_BYTES 4u
#define UUID_BYTES 16u

static uint32_t get_be32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return be32toh(v);
}
static uint16_t get_be16(const unsigned char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return be16toh(v);
}
static uint32_t get_le32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return le32toh(v);
}
static uint16_t get_le16(const unsigned char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return le16toh(v);
}

/* The extents of the journal's inode, from its copy in the super block. */
static bool read_extents(struct fslog *l, const unsigned char *super)
{
    const unsigned char *root = super + 0x10c;
    unsigned count = get_le16(root + 2);
    if (!(get_le32(super + 0x5c) & COMPAT_HAS_JOURNAL) || super[0xfd] != 1 || get_le16(root) != EXTENT_MAGIC ||
        get_le16(root + 6) != 0 || count == 0 || count > FSLOG_EXTENTS_MAX)
        return false;
    for (unsigned i = 0; i < count; i++) {
        const unsigned char *e = root + 12 + 12 * i;
        l->extents[i].first = get_le32(e);
        l->extents[i].count = get_le16(e + 4);
        l->extents[i].block = get_le32(e + 8) | (uint64_t)get_le16(e + 6) << 32;
        if (l->extents[i].block >= l->fs.blocks || l->extents[i].count > l->fs.blocks - l->extents[i].block)
            return false;
    }
    l->extent_count = count;
    return true;
}

static int read_log(const struct fslog *l, uint32_t at, fsmap_read read, void *context, void *data, struct error *err)
{
    for (unsigned i = 0; i < l->extent_count; i++)
        if (at >= l->extents[i].first && at - l->extents[i].first < l->extents[i].count)
            return read(context, l->extents[i].block + (at - l->extents[i].first), data, err);
    memset(data, 0, FSMAP_BLOCK_BYTES); /* no such block: nothing that is believed */
    return 0;
}

int fslog_open(struct fslog *ret, const void *first_block, uint64_t volume_blocks, fsmap_read read, void *context, void *scratch,
               struct error *err)
{
    *ret = (struct fslog){0};
    if (!fsmap_open(first_block, volume_blocks, &ret->fs) || ret->fs.groups > FSLOG_GROUPS_MAX ||
        !read_extents(ret, (const unsigned char *)first_block + SUPER_OFFSET))
        return 0;
    uint32_t per_block = FSMAP_BLOCK_BYTES / ret->fs.descriptor_bytes;
    for (uint32_t group = 0; group < ret->fs.groups; group++) {
        int r = group % per_block == 0 && 1 + group / per_block < ret->fs.blocks ? read(context, 1 + group / per_block, scratch, err) : 0;
        if (r < 0)
            return r;
        const unsigned char *d = (const unsigned char *)scratch + (size_t)(group % per_block) * ret->fs.descriptor_bytes;
        ret->bitmaps[group] = get_le32(d) | (ret->fs.wide ? (uint64_t)get_le32(d + 0x20) << 32 : 0);
    }
    ret->usable = true;
    return 0;
}

/* Looks where the journal begins: at first, when it was made anew, and when its tail has overtaken us. */
static int look_at_super(struct fslog *l, fsmap_read read, void *context, unsigned char *block, struct error *err)
{
    int r = read_log(l, 0, read, context, block, err);
    if (r < 0)
        return r;
    uint32_t incompat = get_be32(block + 40), start = get_be32(block + 28), sequence = get_be32(block + 24);
    if (get_be32(block) != JBD_MAGIC || get_be32(block + 4) != JBD_SUPER_V2 || get_be32(block + 12) != FSMAP_BLOCK_BYTES ||
        incompat & JBD_FAST_COMMIT || start == 0 || start >= get_be32(block + 16)) {
        l->following = false; /* none, empty, or of a kind that is not known */
        return 0;
    }
    bool same = l->following && memcmp(l->uuid, block + 48, sizeof l->uuid) == 0;
    if (same && (int32_t)(sequence - l->sequence) <= 0)
        return 0;
    memcpy(l->uuid, block + 48, sizeof l->uuid);
    l->blocks = get_be32(block + 16);
    l->first_block = get_be32(block + 20);
    l->at = start;
    l->sequence = sequence;
    l->tag3 = incompat & JBD_CSUM_V3;
    l->wide = incompat & JBD_64BIT;
    l->tag_bytes = l->tag3 ? 16 : 8 + (incompat & JBD_CSUM_V2 ? 2 : 0) + (l->wide ? 4 : 0);
    uint64_t there = 0;
    for (unsigned i = 0; i < l->extent_count; i++)
        there += l->extents[i].count;
    l->following = l->first_block && l->first_block < l->blocks && l->blocks <= there;
    return 0;
}

static uint32_t next_block(const struct fslog *l, uint32_t at)
{
    return at + 1 < l->blocks ? at + 1 : l->first_block;
}

struct found {
    uint32_t group, at;
};

/* Adds the bitmaps that a descriptor block announces; *at is moved to the last of the blocks that follow it. */
static void read_tags(const struct fslog *l, const unsigned char *block, uint32_t *at, struct found *found, unsigned *count)
{
    for (size_t p = HEADER_BYTES; p + l->tag_bytes <= FSMAP_BLOCK_BYTES - TAIL_BYTES;) {
        const unsigned char *tag = block + p;
        uint32_t flags = l->tag3 ? get_be32(tag + 4) : get_be16(tag + 6);
        uint64_t target = get_be32(tag) | (l->wide ? (uint64_t)get_be32(tag + 8) << 32 : 0);
        *at = next_block(l, *at);
        for (uint32_t group = 0; group < l->fs.groups && *count < FSLOG_BITMAPS_MAX; group++)
            if (l->bitmaps[group] == target)
                found[(*count)++] = (struct found){group, *at};
        p += l->tag_bytes + (flags & TAG_SAME_UUID ? 0 : UUID_BYTES);
        if (flags & TAG_LAST)
            break;
    }
}

/* 1 with the bitmaps of the transaction at l->at, *ret_next behind its commit block; 0 while it is not complete. */
static int read_transaction(const struct fslog *l, fsmap_read read, void *context, unsigned char *block, struct found *found,
                            unsigned *ret_count, uint32_t *ret_next, struct error *err)
{
    uint32_t at = l->at;
    *ret_count = 0;
    for (uint32_t seen = 0; seen < FSLOG_DESCRIPTORS_MAX; seen++) {
        int r = read_log(l, at, read, context, block, err);
        if (r < 0)
            return r;
        uint32_t type = get_be32(block + 4);
        if (get_be32(block) != JBD_MAGIC || get_be32(block + 8) != l->sequence)
            return 0;
        if (type == JBD_DESCRIPTOR)
            read_tags(l, block, &at, found, ret_count);
        else if (type != JBD_COMMIT && type != JBD_REVOKE)
            return 0;
        at = next_block(l, at);
        if (type == JBD_COMMIT) {
            *ret_next = at;
            return 1;
        }
    }
    return 0;
}

/* Reads one bitmap and, since a journal is a ring, whether its transaction is still there: it is overwritten from its begin on. */
static int tell(const struct fslog *l, const struct found *f, fsmap_read read, fsmap_visit visit, void *context, unsigned char *bitmap,
                unsigned char *head, struct error *err)
{
    int r = read_log(l, f->at, read, context, bitmap, err);
    if (r == 0)
        r = read_log(l, l->at, read, context, head, err);
    if (r == 0 && get_be32(head) == JBD_MAGIC && get_be32(head + 8) == l->sequence)
        fsmap_bitmap(&l->fs, f->group, bitmap, visit, context);
    return r;
}

int fslog_step(struct fslog *l, fsmap_read read, fsmap_visit visit, void *context, void *scratch, struct error *err)
{
    unsigned char *block = scratch, *bitmap = block + FSMAP_BLOCK_BYTES;
    struct found found[FSLOG_BITMAPS_MAX];
    uint32_t next = 0, steps = 0;
    unsigned count = 0;
    int r = look_at_super(l, read, context, block, err);
    while (r == 0 && l->following && steps++ < FSLOG_TRANSACTIONS_MAX) {
        r = read_transaction(l, read, context, block, found, &count, &next, err);
        if (r <= 0)
            break;
        r = 0;
        for (unsigned i = 0; i < count && r == 0; i++)
            r = tell(l, &found[i], read, visit, context, bitmap, block, err);
        if (r == 0) {
            l->at = next;
            l->sequence++;
        }
    }
    return r;
}
