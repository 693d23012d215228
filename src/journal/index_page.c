/* SPDX-License-Identifier: Apache-2.0 */
/* Sealing and checking single pages of an index file. */
#include <string.h>

#include "base/crc32c.h"
#include "journal/index_internal.h"

uint32_t index_header_crc(const struct index_header *header)
{
    const uint8_t *bytes = (const uint8_t *)header;
    const size_t after = offsetof(struct index_header, crc) + sizeof header->crc;
    return crc32c(crc32c(0, bytes, offsetof(struct index_header, crc)), bytes + after,
                  sizeof *header - after);
}

static uint32_t page_crc(const union index_page *page, uint32_t seed)
{
    return crc32c(seed, page->bytes + sizeof page->header.crc, sizeof page->bytes - sizeof page->header.crc);
}

void index_page_seal(union index_page *page, uint32_t seed, uint32_t number, enum index_page_type type,
                     uint8_t level, uint16_t count)
{
    size_t used_bytes = type == INDEX_PAGE_SECTION ? count : count * sizeof(struct index_entry);
    assert(count > 0 && used_bytes <= INDEX_PAYLOAD_BYTES);
    memset(page->payload + used_bytes, 0, INDEX_PAYLOAD_BYTES - used_bytes);
    memcpy(page->header.magic, INDEX_PAGE_MAGIC, sizeof page->header.magic);
    page->header.page = le32_of(number);
    page->header.count = le16_of(count);
    page->header.type = (uint8_t)type;
    page->header.level = level;
    page->header.crc = le32_of(page_crc(page, seed));
}

static const char *check_entries(const union index_page *page, uint32_t count, bool flat)
{
    struct index_key previous = {0};
    uint64_t previous_end = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct index_entry *e = &page->entries[i];
        struct index_key key = index_entry_key(e);
        uint32_t kind = le16_get(e->kind), length = le32_get(e->length), position = le32_get(e->position);
        uint64_t end;
        if (kind < EXTENT_DATA || kind > EXTENT_BASE)
            return "an extent is of an unknown kind";
        if (length == 0 || __builtin_add_overflow(key.lba, length, &end) ||
            (kind == EXTENT_DATA && position + length < position))
            return "an extent has an impossible length";
        if (i > 0 && index_key_compare(previous, key) >= 0)
            return "extents are out of order";
        if (flat && i > 0 && previous.volume == key.volume && previous_end > key.lba)
            return "extents overlap in a flat index";
        previous = key;
        previous_end = end;
    }
    return NULL;
}

static const char *check_fences(const union index_page *page, uint32_t count, uint32_t number)
{
    struct index_key previous = {0};
    for (uint32_t i = 0; i < count; i++) {
        const struct index_fence *f = &page->fences[i];
        struct index_key key = index_fence_key(f);
        uint32_t child = le32_get(f->page);
        if (child == 0 || child >= number)
            return "a fence points outside of the pages before it";
        if (le32_get(f->last_volume) < key.volume)
            return "a fence ends before it starts";
        if (i > 0 && (index_key_compare(previous, key) >= 0 || le32_get(f[-1].last_volume) > key.volume))
            return "fences are out of order";
        previous = key;
    }
    return NULL;
}

const char *index_page_check(const union index_page *page, uint32_t seed, uint32_t number, bool flat)
{
    const struct index_page_header *h = &page->header;
    uint32_t count = le16_get(h->count);
    if (memcmp(h->magic, INDEX_PAGE_MAGIC, sizeof h->magic) != 0)
        return "it is not an index page";
    if (le32_get(h->crc) != page_crc(page, seed))
        return "its checksum does not match";
    if (le32_get(h->page) != number)
        return "it belongs in another place";
    switch (h->type) {
    case INDEX_PAGE_LEAF:
        if (h->level != 0 || count == 0 || count > INDEX_FANOUT)
            return "its header is impossible";
        return check_entries(page, count, flat);
    case INDEX_PAGE_FENCE:
        if (h->level == 0 || h->level >= INDEX_HEIGHT_MAX || count == 0 || count > INDEX_FANOUT)
            return "its header is impossible";
        return check_fences(page, count, number);
    case INDEX_PAGE_SECTION:
        if (h->level >= INDEX_SECTIONS || count == 0 || count > INDEX_PAYLOAD_BYTES)
            return "its header is impossible";
        return NULL;
    default:
        return "it is of an unknown type";
    }
}
