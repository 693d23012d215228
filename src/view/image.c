/* SPDX-License-Identifier: Apache-2.0 */
#include "view/image.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "view/image_internal.h"

#define MAX_WINNERS (4 * IMAGE_REGION_SECTORS)

/* A resolved region; pieces are relative to nothing: plain clipped extents. */
struct region {
    struct region *next;           /* in its bucket */
    struct region *newer, *older;  /* LRU */
    uint32_t volume, users;
    uint64_t number;
    size_t count;
    bool listed;
    struct extent pieces[];
};

void image_close_sources(struct image *image)
{
    for (size_t i = 0; i < image->source_count; i++) {
        index_free(image->sources[i].index);
        free(image->sources[i].lost);
    }
    free(image->sources);
    image->sources = NULL;
    image->source_count = image->source_capacity = 0;
}

int image_add_source(struct image *image, struct source source, struct error *err)
{
    if (image->source_count == image->source_capacity) {
        size_t capacity = image->source_capacity ? 2 * image->source_capacity : 32;
        struct source *larger = reallocarray(image->sources, capacity, sizeof *larger);
        if (!larger) {
            index_free(source.index);
            free(source.lost);
            return error_errno(err, -ENOMEM, "cannot open the point");
        }
        image->sources = larger;
        image->source_capacity = capacity;
    }
    image->sources[image->source_count++] = source;
    return 0;
}

/* Opens the indexes above the base: what is wholly below it is in the base, and its files go. */
static int open_sources(struct image *image, const char *directory, const struct pin *pin, struct lsn base, struct error *err)
{
    for (size_t i = 0; i < pin->source_count; i++) {
        const struct pin_source *from = &pin->sources[i];
        struct source s = {.low = {le64_get(from->low_lsn)}, .high = {le64_get(from->high_lsn)}, .group = le32_get(from->group)};
        char path[PATH_MAX];
        if (s.high.n <= base.n)
            continue;
        snprintf(path, sizeof path, "%s/%s", directory, from->file);
        int r = index_open(path, image->cache, &s.index, err);
        if (r < 0)
            return r;
        bool tail = index_info(s.index)->kind == INDEX_TAIL;
        r = image_add_source(image, s, err);
        if (r == 0 && tail)
            r = payload_reader_tail(image->reader, le32_get(from->segment), from->file, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* As of the pin, without the manifest, which is the longer the more history there is. A drop may move the base, and take files away,
 * between the pin and here, and again while they are opened. */
static int open_point(struct image *image, const char *directory, const struct pin *pin, struct error *err)
{
    struct lsn base = pin->base;
    int r = payload_reader_new_at(directory, image->cache, IMAGE_OPEN_SEGMENTS, &pin->journal_id, base, &image->reader, err);
    if (r == 0)
        r = open_sources(image, directory, pin, base, err);
    for (bool moved = true; r == -ENOENT && moved;) {
        image_close_sources(image);
        payload_reader_free(take_ptr(image->reader));
        r = payload_reader_new(directory, image->cache, IMAGE_OPEN_SEGMENTS, &image->reader, err);
        if (r < 0)
            return r;
        struct lsn now = payload_base_lsn(image->reader);
        moved = now.n != base.n;
        base = now;
        if (base.n > image->lsn.n) /* nothing keeps what the pin names */
            return error_set(err, -ERANGE, "the history of LSN %llu was dropped", (unsigned long long)image->lsn.n);
        r = open_sources(image, directory, pin, base, err);
    }
    return r;
}

int image_new(const char *directory, const char *pin_name, struct pin *ret_pin, struct image **ret, struct error *err)
{
    struct pin pin = {0};
    struct image *image = calloc(1, sizeof *image);
    if (!image)
        return error_errno(err, -ENOMEM, "cannot open the point");
    pthread_mutex_init(&image->mutex, NULL);
    int r = pin_load(directory, pin_name, &pin, err);
    image->lsn = pin.lsn;
    if (r == 0)
        r = index_cache_new_lazy(IMAGE_CACHE_BYTES, &image->cache, err);
    if (r < 0) {
        pin_release(&pin);
        image_free(image);
        return r;
    }
    *ret_pin = pin;
    *ret = image;
    return 0;
}

int image_open(const char *directory, const char *pin_name, struct image **ret, struct error *err)
{
    struct pin pin;
    struct image *image;
    int r = image_new(directory, pin_name, &pin, &image, err);
    if (r == 0) {
        r = open_point(image, directory, &pin, err);
        pin_release(&pin);
        if (r < 0)
            image_free(image);
    }
    if (r < 0)
        return error_context(err, "cannot read the pin %s", pin_name);
    *ret = image;
    return 0;
}

void image_free(struct image *image)
{
    if (!image)
        return;
    while (image->newest) {
        struct region *region = image->newest;
        image->newest = region->older;
        free(region);
    }
    payload_reader_free(image->reader);
    image_close_sources(image);
    for (size_t i = 0; i < image->finding_count; i++)
        free(image->findings[i]);
    free(image->findings);
    index_cache_free(image->cache);
    pthread_mutex_destroy(&image->mutex);
    free(image);
}

void image_populate(struct image *image)
{
    index_cache_populate(image->cache);
}

struct lsn image_lsn(const struct image *image)
{
    return image->lsn;
}

/* ---- resolving a region ---- */

struct resolution {
    uint32_t volume, length;                /* sectors: a region, or the part of one that is asked for */
    uint64_t lba;
    uint16_t winner[IMAGE_REGION_SECTORS];  /* 0: none yet, else 1 + index into extents */
    uint32_t open;                          /* sectors without a winner */
    struct extent *extents;
    uint32_t count;
};

/* Drops extents that no sector refers to any more. */
static void compact(struct resolution *r)
{
    uint16_t *map = calloc(r->count + 1, sizeof *map);
    uint32_t kept = 0;
    if (!map)
        return;
    for (uint32_t i = 0; i < r->length; i++)
        if (r->winner[i])
            map[r->winner[i]] = 1;
    for (uint32_t i = 1; i <= r->count; i++)
        if (map[i]) {
            r->extents[kept] = r->extents[i - 1];
            map[i] = (uint16_t)++kept;
        }
    for (uint32_t i = 0; i < r->length; i++)
        r->winner[i] = map[r->winner[i]];
    r->count = kept;
    free(map);
}

/* Records that are lost end with `lsn`; what has that very LSN is the reference of a rewind, which is newer than they are. */
static bool is_newer(const struct extent *extent, const struct extent *winner)
{
    return extent->lsn.n > winner->lsn.n || (extent->lsn.n == winner->lsn.n && winner->kind == EXTENT_UNKNOWN);
}

static int visit(void *context, const struct extent *extent, struct error *err)
{
    struct resolution *r = context;
    uint64_t from = extent->lba > r->lba ? extent->lba : r->lba;
    uint64_t end = extent->lba + extent->length, range_end = r->lba + r->length;
    bool used = false;
    if (end > range_end)
        end = range_end;
    if (r->count == MAX_WINNERS)
        compact(r);
    if (r->count == MAX_WINNERS)
        return error_set(err, -ENOMEM, "cannot resolve a region");
    for (uint64_t at = from; at < end; at++) {
        uint16_t *winner = &r->winner[at - r->lba];
        if (*winner && !is_newer(extent, &r->extents[*winner - 1]))
            continue;
        r->open -= *winner == 0;
        *winner = (uint16_t)(r->count + 1);
        used = true;
    }
    if (used)
        r->extents[r->count++] = *extent;
    return 0;
}

static int look_up(struct image *image, struct resolution *res, struct error *err)
{
    for (size_t i = 0; i < image->source_count; i++) {
        const struct source *s = &image->sources[i];
        if (res->open == 0 && (i == 0 || image->sources[i - 1].group != s->group))
            return 0;
        struct lsn high = s->high.n < image->lsn.n ? s->high : image->lsn;
        struct extent unknown = {.volume = res->volume, .lba = res->lba, .length = res->length, .lsn = high,
                                 .kind = EXTENT_UNKNOWN, .segment = (uint32_t)i};
        int r = s->index ? index_lookup(s->index, res->volume, res->lba, res->length, s->low, high, visit, res, err)
                         : visit(res, &unknown, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Turns winners into pieces; those that nothing covers become BASE. */
static struct region *make_region(const struct resolution *res)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < res->length; i++)
        count += i == 0 || res->winner[i] != res->winner[i - 1];
    struct region *region = malloc(sizeof *region + count * sizeof *region->pieces);
    if (!region)
        return NULL;
    *region = (struct region){.volume = res->volume, .number = res->lba / IMAGE_REGION_SECTORS};
    for (uint32_t i = 0; i < res->length;) {
        uint32_t end = i + 1;
        while (end < res->length && res->winner[end] == res->winner[i])
            end++;
        struct extent base = {.volume = res->volume, .lba = res->lba + i, .length = end - i, .kind = EXTENT_BASE};
        region->pieces[region->count++] =
            res->winner[i] ? extent_clip(res->extents[res->winner[i] - 1], res->lba + i, end - i) : base;
        i = end;
    }
    return region;
}

/* Of sectors that lie in one region. */
static int resolve(struct image *image, uint32_t volume, uint64_t lba, uint32_t length, struct region **ret, struct error *err)
{
    struct resolution *res = calloc(1, sizeof *res);
    _cleanup_free_ struct extent *extents = malloc(MAX_WINNERS * sizeof *extents);
    if (!res || !extents) {
        free(res);
        return error_errno(err, -ENOMEM, "cannot resolve a region");
    }
    res->volume = volume;
    res->lba = lba;
    res->length = res->open = length;
    res->extents = extents;
    int r = look_up(image, res, err);
    if (r == 0) {
        *ret = make_region(res);
        if (!*ret)
            r = error_errno(err, -ENOMEM, "cannot resolve a region");
    }
    free(res);
    return r;
}

/* ---- the LRU of regions ---- */

static uint64_t hash_of(uint32_t volume, uint64_t number)
{
    return number * 0x9e3779b97f4a7c15ull + volume;
}
static struct region **bucket(struct image *image, uint32_t volume, uint64_t number)
{
    return &image->buckets[hash_of(volume, number) >> 13 & (IMAGE_REGION_SLOTS - 1)];
}
static size_t region_bytes(const struct region *r)
{
    return sizeof *r + r->count * sizeof *r->pieces;
}

static void unlink_lru(struct image *image, struct region *r)
{
    *(r->newer ? &r->newer->older : &image->newest) = r->older;
    *(r->older ? &r->older->newer : &image->oldest) = r->newer;
}
static void push_lru(struct image *image, struct region *r)
{
    r->newer = NULL;
    r->older = image->newest;
    *(image->newest ? &image->newest->newer : &image->oldest) = r;
    image->newest = r;
}

static void evict(struct image *image)
{
    for (struct region *r = image->oldest; r && image->region_bytes > IMAGE_REGION_BYTES;) {
        struct region *newer = r->newer;
        if (r->users == 0) {
            struct region **at = bucket(image, r->volume, r->number);
            while (*at != r)
                at = &(*at)->next;
            *at = r->next;
            unlink_lru(image, r);
            image->region_bytes -= region_bytes(r);
            free(r);
        }
        r = newer;
    }
}

static struct region *find_region(struct image *image, uint32_t volume, uint64_t number)
{
    struct region *r = *bucket(image, volume, number);
    while (r && (r->volume != volume || r->number != number))
        r = r->next;
    if (!r)
        return NULL;
    r->users++;
    unlink_lru(image, r);
    push_lru(image, r);
    return r;
}

/* A region in use; give it back by put_region. */
static int get_region(struct image *image, uint32_t volume, uint64_t number, struct region **ret, struct error *err)
{
    pthread_mutex_lock(&image->mutex);
    struct region *r = find_region(image, volume, number);
    pthread_mutex_unlock(&image->mutex);
    if (!r) {
        struct region *made = NULL;
        int result = resolve(image, volume, number * IMAGE_REGION_SECTORS, IMAGE_REGION_SECTORS, &made, err);
        if (result < 0)
            return result;
        pthread_mutex_lock(&image->mutex);
        r = find_region(image, volume, number); /* somebody may have been quicker */
        if (r) {
            free(made);
        } else {
            r = made;
            r->users = 1;
            r->next = *bucket(image, volume, number);
            *bucket(image, volume, number) = r;
            push_lru(image, r);
            image->region_bytes += region_bytes(r);
            evict(image);
        }
        pthread_mutex_unlock(&image->mutex);
    }
    *ret = r;
    return 0;
}

static void put_region(struct image *image, struct region *r)
{
    pthread_mutex_lock(&image->mutex);
    r->users--;
    pthread_mutex_unlock(&image->mutex);
}

/* Whether a part of a region is to be looked for alone: of one that nobody has read from lately. Two of one hash only cost time. */
static bool is_first_touch(struct image *image, uint32_t volume, uint64_t number)
{
    MUTEX_GUARD(guard, &image->mutex);
    uint64_t hash = hash_of(volume, number);
    uint32_t *last = &image->touched[hash >> 13 & (IMAGE_TOUCH_SLOTS - 1)], rest = (uint32_t)(hash >> 32) | 1;
    for (const struct region *r = *bucket(image, volume, number); r; r = r->next)
        if (r->volume == volume && r->number == number)
            return false;
    if (*last == rest)
        return false;
    *last = rest;
    return true;
}

/* ---- reading ---- */

static int read_piece(struct image *image, const struct extent *piece, char *data, struct error *err)
{
    if (piece->kind == EXTENT_UNKNOWN)
        return error_set(err, -EBADMSG, "%s", image->sources[piece->segment].lost);
    if (piece->kind == EXTENT_BASE && !(piece->flags & EXTENT_REFERENCE))
        return payload_read_base(image->reader, piece->volume, piece->lba, piece->length, data, err);
    return payload_read(image->reader, piece, data, err);
}

static int read_pieces(struct image *image, const struct region *region, uint64_t lba, uint32_t count, char *to, struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < region->count && r == 0; i++) {
        const struct extent *piece = &region->pieces[i];
        if (piece->lba + piece->length <= lba || piece->lba >= lba + count)
            continue;
        struct extent part = extent_clip(*piece, lba, count);
        r = read_piece(image, &part, to + (part.lba - lba) * BLOCK_SECTOR_BYTES, err);
    }
    return r;
}

/* Sectors of one region. At its first touch only they are looked for, which ends with the newest index that has them: whoever reads
 * here and there does not pay for the whole region, and whoever goes on there gets it with the next read. */
static int read_in_region(struct image *image, uint32_t volume, uint64_t lba, uint32_t count, char *to, struct error *err)
{
    struct region *region;
    uint64_t number = lba / IMAGE_REGION_SECTORS;
    if (count < IMAGE_REGION_SECTORS && is_first_touch(image, volume, number)) {
        int r = resolve(image, volume, lba, count, &region, err);
        if (r == 0) {
            r = read_pieces(image, region, lba, count, to, err);
            free(region);
        }
        return r;
    }
    int r = get_region(image, volume, number, &region, err);
    if (r < 0)
        return r;
    r = read_pieces(image, region, lba, count, to, err);
    put_region(image, region);
    return r;
}

int image_read(struct image *image, uint32_t volume, uint64_t lba, uint32_t length, void *data, struct error *err)
{
    char *to = data;
    while (length) {
        uint32_t skip = (uint32_t)(lba % IMAGE_REGION_SECTORS);
        uint32_t count = IMAGE_REGION_SECTORS - skip < length ? IMAGE_REGION_SECTORS - skip : length;
        int r = read_in_region(image, volume, lba, count, to, err);
        if (r < 0)
            return r;
        to += (size_t)count * BLOCK_SECTOR_BYTES;
        lba += count;
        length -= count;
    }
    return 0;
}

int image_resolve(struct image *image, uint32_t volume, uint64_t lba, uint32_t length, struct extent **ret_pieces,
                  size_t *ret_count, struct error *err)
{
    struct region *region;
    int r = get_region(image, volume, lba / IMAGE_REGION_SECTORS, &region, err);
    if (r < 0)
        return r;
    struct extent *pieces = malloc(region->count * sizeof *pieces);
    size_t count = 0;
    for (size_t i = 0; pieces && i < region->count; i++) {
        const struct extent *piece = &region->pieces[i];
        if (piece->lba + piece->length > lba && piece->lba < lba + length)
            pieces[count++] = extent_clip(*piece, lba, length);
    }
    put_region(image, region);
    if (!pieces)
        return error_errno(err, -ENOMEM, "cannot resolve a region");
    *ret_pieces = pieces;
    *ret_count = count;
    return 0;
}

int image_changes(struct image *image, struct lsn low, struct extent_stream **ret, struct error *err)
{
    struct extent_stream **streams = calloc(image->source_count + 1, sizeof *streams);
    size_t count = 0;
    int r = streams ? 0 : error_errno(err, -ENOMEM, "cannot list the changes");
    for (size_t i = 0; i < image->source_count && r == 0; i++) {
        const struct source *s = &image->sources[i];
        struct lsn high = s->high.n < image->lsn.n ? s->high : image->lsn;
        struct lsn from = s->low.n > low.n ? s->low : low;
        if (!s->index)
            r = error_set(err, -EBADMSG, "%s", s->lost);
        if (r < 0 || index_info(s->index)->high.n <= low.n)
            continue;
        r = index_stream(s->index, from, high, &streams[count], err);
        count += r == 0;
    }
    if (r == 0)
        r = extent_sweep(streams, count, ret, err);
    if (r < 0)
        for (size_t i = 0; i < count; i++)
            extent_stream_free(streams[i]);
    free(streams);
    return r;
}

int image_base_extent(struct image *image, uint32_t volume, uint64_t lba, uint64_t length, bool *ret_present,
                      uint64_t *ret_length, struct error *err)
{
    return base_store_extent(payload_base(image->reader), volume, lba, length, ret_present, ret_length, err);
}

/* ---- as a block device ---- */

struct image_block {
    struct block block;
    struct image *image;
    uint32_t volume;
};

static int image_block_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes, struct error *err)
{
    struct image_block *ib = (struct image_block *)b;
    int r = image_read(ib->image, ib->volume, offset_bytes / BLOCK_SECTOR_BYTES,
                       (uint32_t)(length_bytes / BLOCK_SECTOR_BYTES), data, err);
    if (r == -EBADMSG || r == -ENOENT) /* what is damaged or missing is an I/O error for whoever reads a device */
        err->code = r = -EIO;
    return r;
}
static int refuse(struct error *err)
{
    return error_set(err, -EROFS, "a point in history cannot be written");
}
static int image_block_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags,
                              struct error *err)
{
    (void)b, (void)data, (void)length_bytes, (void)offset_bytes, (void)flags;
    return refuse(err);
}
static int image_block_flush(struct block *b, struct error *err)
{
    (void)b, (void)err;
    return 0;
}
static int image_block_discard(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags,
                               struct error *err)
{
    (void)b, (void)length_bytes, (void)offset_bytes, (void)flags;
    return refuse(err);
}

/* Holes are what no index covers and the base lacks, and zeroes: looked at region by region. */
static int image_block_extents(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, struct block_extent *extents,
                               size_t capacity, size_t *ret_count, struct error *err)
{
    struct image_block *ib = (struct image_block *)b;
    uint64_t lba = offset_bytes / BLOCK_SECTOR_BYTES, end = lba + length_bytes / BLOCK_SECTOR_BYTES;
    size_t count = 0;
    while (lba < end && count < capacity) {
        uint32_t room = IMAGE_REGION_SECTORS - (uint32_t)(lba % IMAGE_REGION_SECTORS);
        uint32_t length = end - lba < room ? (uint32_t)(end - lba) : room;
        _cleanup_free_ struct extent *pieces = NULL;
        size_t pieces_count;
        int r = image_resolve(ib->image, ib->volume, lba, length, &pieces, &pieces_count, err);
        if (r < 0)
            return r;
        for (size_t i = 0; i < pieces_count; i++) {
            struct extent *p = &pieces[i];
            bool present = p->kind == EXTENT_DATA || p->kind == EXTENT_UNKNOWN || (p->flags & EXTENT_REFERENCE && p->kind != EXTENT_ZERO);
            uint64_t stretch = p->length;
            if (p->kind == EXTENT_BASE && !present) {
                r = image_base_extent(ib->image, ib->volume, p->lba, p->length, &present, &stretch, err);
                if (r < 0)
                    return r;
            }
            bool joins = count && extents[count - 1].hole == !present;
            if (!joins && count == capacity)
                break;
            if (!joins)
                extents[count++] = (struct block_extent){.offset_bytes = p->lba * BLOCK_SECTOR_BYTES, .hole = !present};
            extents[count - 1].length_bytes += stretch * BLOCK_SECTOR_BYTES;
            lba = p->lba + stretch;
            if (stretch < p->length)
                break; /* the rest of the piece is looked at anew */
        }
    }
    *ret_count = count;
    return 0;
}

static void image_block_free(struct block *b)
{
    free(b);
}

int image_block(struct image *image, uint32_t volume, uint64_t size_bytes, struct block **ret, struct error *err)
{
    static const struct block_ops ops = {
        .pread = image_block_pread,
        .pwrite = image_block_pwrite,
        .flush = image_block_flush,
        .discard = image_block_discard,
        .zero = image_block_discard,
        .extents = image_block_extents,
        .free = image_block_free,
    };
    struct image_block *b = calloc(1, sizeof *b);
    if (!b)
        return error_errno(err, -ENOMEM, "cannot open the point");
    *b = (struct image_block){.block = {.ops = &ops, .size_bytes = size_bytes}, .image = image, .volume = volume};
    *ret = &b->block;
    return 0;
}
