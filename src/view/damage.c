/* SPDX-License-Identifier: Apache-2.0 */
/* Which ranges of an image cannot be read: by reading all of it. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/payload.h"
#include "view/image_internal.h"

#define UNIT_SECTORS 8u /* as the files' checksums, and the smallest reads of a file system */
#define REGION_BYTES ((size_t)IMAGE_REGION_SECTORS * BLOCK_SECTOR_BYTES)

struct mapping {
    struct image *image;
    uint32_t volume;
    uint64_t sectors;
    char *data;
    image_damage_visit visit;
    void *context;
};

static int tell(const struct mapping *m, uint64_t lba, uint64_t length, const char *reason, struct error *err)
{
    return m->visit(m->context, lba * BLOCK_SECTOR_BYTES, length * BLOCK_SECTOR_BYTES, reason, err);
}

/* Reads [lba, lba + length); what fails is halved until it is one unit. */
static int read_range(const struct mapping *m, uint64_t lba, uint32_t length, struct error *err)
{
    struct error failure = ERROR_INIT;
    int r = image_read(m->image, m->volume, lba, length, m->data, &failure);
    if (r == 0)
        return 0;
    if (length <= UNIT_SECTORS || r == -ENOENT) /* a missing file: the halves will not be better */
        return tell(m, lba, length, failure.message, err);
    uint32_t half = (length / 2 + UNIT_SECTORS - 1) / UNIT_SECTORS * UNIT_SECTORS;
    r = read_range(m, lba, half, err);
    return r < 0 ? r : read_range(m, lba + half, length - half, err);
}

/* Whether nothing was ever written to the stretch at `lba`; *ret_length is how long it is. Damage is left to the reading. */
static bool is_hole(const struct mapping *m, const struct extent *piece, uint64_t lba, uint64_t length, uint64_t *ret_length)
{
    struct error ignored = ERROR_INIT;
    bool present = true;
    *ret_length = length;
    if (piece->kind == EXTENT_ZERO)
        return true;
    if (piece->kind != EXTENT_BASE || piece->flags & EXTENT_REFERENCE)
        return false;
    return image_base_extent(m->image, m->volume, lba, length, &present, ret_length, &ignored) == 0 && !present;
}

/* One region. Pieces of whole units are read one by one, so that one that is missing does not cost the halving of others. */
static int map_region(const struct mapping *m, uint64_t lba, uint32_t length, struct error *err)
{
    _cleanup_free_ struct extent *pieces = NULL;
    struct error failure = ERROR_INIT;
    size_t count;
    uint64_t end = lba + length;
    if (image_resolve(m->image, m->volume, lba, length, &pieces, &count, &failure) < 0)
        return tell(m, lba, length, failure.message, err);
    int r = 0;
    for (uint64_t at = lba; r == 0 && at < end;) {
        const struct extent *piece = pieces;
        while (piece->lba + piece->length <= at)
            piece++;
        uint64_t stretch = piece->lba + piece->length - at;
        bool hole = is_hole(m, piece, at, stretch, &stretch);
        uint64_t stop = at + stretch < end ? (at + stretch) / UNIT_SECTORS * UNIT_SECTORS : end;
        if (stop <= at) { /* a unit of several pieces */
            stop = at + UNIT_SECTORS < end ? at + UNIT_SECTORS : end;
            hole = false;
        }
        if (!hole)
            r = read_range(m, at, (uint32_t)(stop - at), err);
        at = stop;
    }
    return r;
}

int image_map_damage(struct image *image, uint32_t volume, uint64_t size_bytes, image_damage_visit visit, void *context,
                     _Atomic uint64_t *done_bytes, const _Atomic bool *stop, struct error *err)
{
    struct mapping m = {image, volume, size_bytes / BLOCK_SECTOR_BYTES, io_alloc_pages(REGION_BYTES), visit, context};
    int r = m.data ? 0 : error_errno(err, -ENOMEM, "cannot look for damage");
    for (uint64_t lba = 0; r == 0 && lba < m.sectors; lba += IMAGE_REGION_SECTORS) {
        uint64_t left = m.sectors - lba;
        uint32_t length = left < IMAGE_REGION_SECTORS ? (uint32_t)left : IMAGE_REGION_SECTORS;
        r = atomic_load(stop) ? error_set(err, -ECANCELED, "stopped") : map_region(&m, lba, length, err);
        atomic_fetch_add(done_bytes, (uint64_t)length * BLOCK_SECTOR_BYTES);
    }
    io_free_pages(m.data, REGION_BYTES);
    return r;
}
