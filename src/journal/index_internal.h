/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the writer, reader, cache, streams and verification of index files. */
#ifndef TIDEMARK_JOURNAL_INDEX_INTERNAL_H
#define TIDEMARK_JOURNAL_INDEX_INTERNAL_H

#include "journal/index.h"
#include "journal/index_format.h"
#include "journal/seal.h"

/* ---- keys, and what a fence says of a child (see struct index_fence) ---- */
struct index_key {
    uint32_t volume;
    uint64_t lba, lsn;
};
static inline int index_key_compare(struct index_key a, struct index_key b)
{
    if (a.volume != b.volume)
        return a.volume < b.volume ? -1 : 1;
    if (a.lba != b.lba)
        return a.lba < b.lba ? -1 : 1;
    return a.lsn < b.lsn ? -1 : a.lsn > b.lsn;
}
static inline struct index_key index_key_of(const struct extent *e)
{
    return (struct index_key){e->volume, e->lba, e->lsn.n};
}
static inline struct index_key index_entry_key(const struct index_entry *e)
{
    return (struct index_key){le32_get(e->volume), le64_get(e->lba), le64_get(e->lsn)};
}
static inline struct index_key index_fence_key(const struct index_fence *f)
{
    return (struct index_key){le32_get(f->volume), le64_get(f->lba), le64_get(f->lsn)};
}

struct index_summary {
    struct index_key first;
    uint32_t last_volume;
    uint64_t end;
    uint32_t page;
};
/* Takes one more child (or extent, as a child of its own) into `s`, which has `count` already. */
static inline void index_summary_add(struct index_summary *s, uint32_t count,
                                     const struct index_summary *child)
{
    if (count == 0)
        s->first = child->first;
    if (count == 0 || s->last_volume != child->last_volume || s->end < child->end)
        s->end = child->end;
    s->last_volume = child->last_volume;
}
static inline struct index_summary index_summary_of(const struct extent *e)
{
    return (struct index_summary){index_key_of(e), e->volume, e->lba + e->length, 0};
}
static inline struct index_summary index_summary_from_fence(const struct index_fence *f)
{
    return (struct index_summary){index_fence_key(f), le32_get(f->last_volume), le64_get(f->end),
                                  le32_get(f->page)};
}

/* `has_crcs`: of the index. A program of before has merged the flag along, but not what it speaks of. */
static inline struct extent index_entry_decode(const struct index_entry *e, bool has_crcs)
{
    struct extent ret = {.volume = le32_get(e->volume),
                         .length = le32_get(e->length),
                         .lba = le64_get(e->lba),
                         .lsn = {le64_get(e->lsn)},
                         .segment = le32_get(e->segment),
                         .position = le32_get(e->position),
                         .kind = le16_get(e->kind),
                         .flags = le16_get(e->flags),
                         .crc = le32_get(e->crc)};
    if (!has_crcs || ret.kind != EXTENT_DATA || !extent_is_in_one_block(&ret))
        ret.flags &= (uint16_t)~EXTENT_CHECKED;
    return ret;
}

/* ---- pages ---- */
uint32_t index_header_crc(const struct index_header *header);
/* Fills the page's header and zeroes what lies after `used_bytes` of its payload. */
void index_page_seal(union index_page *page, uint32_t seed, uint32_t number, enum index_page_type type,
                     uint8_t level, uint16_t count);
/* NULL when the page is whole and may be used without further checks of its entries, else what is wrong with
 * it (static text). Does not know its neighbours. */
const char *index_page_check(const union index_page *page, uint32_t seed, uint32_t number, bool flat);

/* ---- the reader ---- */
struct index {
    int fd;
    struct sealed_pages *sealed; /* NULL: plain */
    char *path;
    struct index_info info;
    uint32_t seed; /* CRC32C of the index id */
    uint32_t root, pages;
    uint32_t height;
    bool has_crcs; /* INDEX_HAS_CRCS */
    struct {
        uint32_t page; /* first */
        uint64_t length_bytes;
    } sections[INDEX_SECTIONS];
    struct index_cache *cache; /* NULL: every page is read from the file */
    uint64_t instance;
};
static inline uint64_t index_section_pages(uint64_t length_bytes)
{
    return length_bytes / INDEX_PAYLOAD_BYTES + (length_bytes % INDEX_PAYLOAD_BYTES != 0);
}
int index_damaged(const struct index *index, uint32_t page, const char *what, struct error *err);
/* Reads `count` pages from the file, past the cache, unchecked. */
int index_read_pages(const struct index *index, uint32_t first, uint32_t count, void *data,
                     struct error *err) MUST_CHECK;

/* ---- the cache: copies in and out, so that no lock is held and no page pinned while a caller works ---- */
bool index_cache_takes(const struct index_cache *cache, const struct uuid *journal_id);
uint64_t index_cache_new_instance(struct index_cache *cache);
bool index_cache_get(struct index_cache *cache, uint64_t instance, uint32_t page, void *ret_page);
void index_cache_put(struct index_cache *cache, uint64_t instance, uint32_t page, const void *data);
size_t index_cache_frames(const struct index_cache *cache);

/* For tests: at most `count` (2 to INDEX_FANOUT) entries a page, to get high trees from few extents. */
void index_writer_limit_fanout(struct index_writer *w, uint32_t count);

#endif
