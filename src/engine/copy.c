/* SPDX-License-Identifier: Apache-2.0 */
/* The volumes of a pinned point are copied to new sparse files, or only counted; or made so that they can be used at once and are copied
 * behind by the engine that serves them ("behind": true). One JSON object a line is
 * printed, as by verify: {"kind": "progress", "done_bytes", "total_bytes"}, and at the end {"kind":
 * "summary", "bytes", "volumes":
 * [{"name", "bytes"}]}. Durable when that is printed. Where it fails: json_of_error, since the log may lie on the disk that is full. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "engine/engine_internal.h"
#include "journal/seal.h"
#include "view/image.h"
#include "volume/fill.h"

#define PROGRESS_INTERVAL_NS (250 * NS_PER_MS)
#define CHUNK_BYTES (1u << 20) /* a region of the image */
#define PIECE_BYTES (64u << 10)
#define EXTENTS 64u

struct copied {
    const char *name, *target; /* of the configuration; target NULL: only counted */
    struct block *from;
    uint32_t id;
    uint64_t bytes;
    uint64_t *grains; /* bits of those that hold something; behind */
};

struct copy {
    struct image *image;
    char *chunk;
    struct copied volumes[GROUP_MAX_VOLUMES];
    size_t count;
    bool behind;
    uint64_t done_bytes, total_bytes, told_ns;
};

/* Zeroes are what the new file has anyway. */
static int write_chunk(struct block *to, const char *data, size_t length_bytes, uint64_t offset,
                       struct error *err)
{
    int r = 0;
    for (size_t at = 0; at < length_bytes && r == 0; at += PIECE_BYTES) {
        size_t length = length_bytes - at < PIECE_BYTES ? length_bytes - at : PIECE_BYTES;
        if (!io_is_zero(data + at, length))
            r = block_pwrite(to, data + at, length, offset + at, 0, err);
    }
    return r;
}

static int copy_extent(struct copy *c, const struct copied *v, struct block *to, const struct block_extent *e,
                       struct error *err)
{
    int r = 0;
    for (uint64_t at = 0; at < e->length_bytes && r == 0;) {
        uint64_t offset = e->offset_bytes + at, room = CHUNK_BYTES - offset % CHUNK_BYTES,
                 left = e->length_bytes - at;
        size_t length = (size_t)(left < room ? left : room);
        r = block_pread(v->from, c->chunk, length, offset, err);
        if (r == 0)
            r = write_chunk(to, c->chunk, length, offset, err);
        at += length;
        c->done_bytes += length;
        engine_print_progress(&c->told_ns, PROGRESS_INTERVAL_NS, c->done_bytes, c->total_bytes);
    }
    return r;
}

static void note_grains(struct copied *v, const struct block_extent *e)
{
    uint64_t last = (e->offset_bytes + e->length_bytes - 1) / GROUP_GRAIN_BYTES;
    for (uint64_t grain = e->offset_bytes / GROUP_GRAIN_BYTES; v->grains && grain <= last; grain++)
        v->grains[grain / 64] |= 1ull << grain % 64;
}

/* Visits what is no hole: `to` NULL counts it, else copies it. */
static int walk(struct copy *c, struct copied *v, struct block *to, struct error *err)
{
    struct block_extent extents[EXTENTS];
    for (uint64_t at = 0; at < v->from->size_bytes;) {
        size_t count = 0;
        int r = block_extents(v->from, v->from->size_bytes - at, at, extents, EXTENTS, &count, err);
        if (r == 0 && !count)
            r = error_set(err, -EIO, "the image of volume %s ends at %llu", v->name, (unsigned long long)at);
        for (size_t i = 0; i < count && r == 0; i++) {
            at += extents[i].length_bytes;
            if (extents[i].hole)
                continue;
            if (to) {
                r = copy_extent(c, v, to, &extents[i], err);
                continue;
            }
            v->bytes += extents[i].length_bytes;
            note_grains(v, &extents[i]);
        }
        if (r < 0)
            return error_context(err, "volume %s", v->name);
    }
    return 0;
}

static int copy_volume(struct copy *c, struct copied *v, struct error *err)
{
    struct block *to;
    if (!v->target)
        return 0;
    if (c->behind)
        return fill_create(v->target, v->id, v->from->size_bytes, v->grains, err);
    int r = block_file_open(v->target, v->from->size_bytes, false, &to, err);
    if (r < 0)
        return r;
    r = to->size_bytes == v->from->size_bytes
            ? walk(c, v, to, err)
            : error_set(err, -EEXIST, "%s is there already, and has another size", v->target);
    if (r == 0)
        r = block_flush(to, err);
    block_free(to);
    return r;
}

static int add_volume(struct copy *c, json_t *object, struct error *err)
{
    struct copied *v = &c->volumes[c->count];
    uint64_t id = 0, size_bytes = 0;
    int r = json_reject_unknown(object, err, "name", "id", "size_bytes", "target", NULL);
    if (r == 0)
        r = json_get_string(object, "name", &v->name, err);
    if (r == 0)
        r = json_get_u64(object, "id", &id, err);
    if (r == 0)
        r = json_get_u64(object, "size_bytes", &size_bytes, err);
    if (r == 0)
        r = json_get_optional_string(object, "target", &v->target, err);
    if (r == 0)
        r = image_block(c->image, (uint32_t)id, size_bytes, &v->from, err);
    v->id = (uint32_t)id;
    uint64_t grains = size_bytes / GROUP_GRAIN_BYTES + 1;
    if (r == 0 && c->behind && !(v->grains = calloc(grains / 64 + 1, sizeof *v->grains)))
        r = error_errno(err, -ENOMEM, "cannot copy volume %s", v->name);
    c->count += r == 0;
    return r;
}

static int open_image(struct copy *c, json_t *config, struct error *err)
{
    const char *journal, *pin, *key_file = "";
    json_t *volumes = NULL, *volume;
    size_t i;
    int r = json_reject_unknown(config, err, "journal", "pin", "key_file", "behind", "volumes", NULL);
    if (r == 0)
        r = json_get_optional_bool(config, "behind", &c->behind, err);
    if (r == 0)
        r = json_get_string(config, "journal", &journal, err);
    if (r == 0)
        r = json_get_string(config, "pin", &pin, err);
    if (r == 0)
        r = json_get_optional_string(config, "key_file", &key_file, err);
    if (r == 0)
        r = json_get_array(config, "volumes", &volumes, err);
    if (r == 0 && json_array_size(volumes) > GROUP_MAX_VOLUMES)
        r = error_set(err, -EINVAL, "more than %u volumes", GROUP_MAX_VOLUMES);
    if (r == 0)
        r = seal_unlock(journal, key_file, err);
    if (r == 0)
        r = image_open(journal, pin, &c->image, err);
    if (r == 0)
        r = image_check_files(journal, pin, NULL, 0, err);
    json_array_foreach(volumes, i, volume) if (r == 0) r = add_volume(c, volume, err);
    return r;
}

static int copy_all(struct copy *c, struct error *err)
{
    _cleanup_json_ json_t *list = json_array();
    int r = 0;
    for (size_t i = 0; i < c->count && r == 0; i++) {
        r = walk(c, &c->volumes[i], NULL, err);
        c->total_bytes += c->volumes[i].bytes;
    }
    for (size_t i = 0; i < c->count && r == 0; i++) {
        r = copy_volume(c, &c->volumes[i], err);
        json_array_append_new(list, json_pack("{s:s, s:I}", "name", c->volumes[i].name, "bytes",
                                              (json_int_t)c->volumes[i].bytes));
    }
    if (r == 0)
        engine_print_line(json_pack("{s:s, s:I, s:O}", "kind", "summary", "bytes", (json_int_t)c->total_bytes, "volumes",
                                    list));
    return r;
}

int engine_copy(const char *config_path, struct error *err)
{
    _cleanup_json_ json_t *config = NULL;
    _cleanup_free_ struct copy *c = calloc(1, sizeof *c);
    if (!c || !(c->chunk = io_alloc_pages(CHUNK_BYTES)))
        return error_errno(err, -ENOMEM, "cannot copy");
    int r = json_parse_file(config_path, &config, err);
    if (r == 0)
        r = open_image(c, config, err);
    if (r == 0)
        r = copy_all(c, err);
    if (r < 0)
        engine_print_line(json_of_error(err));
    for (size_t i = 0; i < GROUP_MAX_VOLUMES; i++) {
        block_free(c->volumes[i].from);
        free(c->volumes[i].grains);
    }
    image_free(c->image);
    io_free_pages(c->chunk, CHUNK_BYTES);
    return r;
}
