/* SPDX-License-Identifier: Apache-2.0 */
/* What a rewind takes on the disks before it is copied back, so that one that would end in the middle is refused before
 * anything was changed. On the journal's: the reference run, what has to be copied out of history, and the bitmap of grains; near the
 * quota also what the next drops of history have to keep for it (maintain.c, step 2). On a backing's: the holes in the grains that
 * get content. It is more than is needed where a grain that reads as zeroes is punched instead; never less, as long as nobody else
 * fills the disk meanwhile. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "journal/index_format.h"
#include "volume/group_internal.h"

#define PIECE_BYTES (sizeof(struct index_entry) + 2) /* and its part of page headers and fences */
#define FILES_BYTES (1u << 20)                       /* headers, pins, the manifest, the REWIND record */
#define EXTENTS_AT_ONCE 16u

void rewind_space_init(struct rewind_space *s, struct group *g, struct group_change *change)
{
    *s = (struct rewind_space){.g = g, .change = change};
}

static struct volume *volume_of(struct group *g, uint32_t id, size_t *ret_index)
{
    for (*ret_index = 0; *ret_index < g->volume_count; ++*ret_index)
        if (g->volumes[*ret_index].id == id)
            return &g->volumes[*ret_index];
    return NULL;
}

/* The holes of a backing file in some grains. */
static int count_holes(struct volume *v, uint64_t from, uint64_t to, uint64_t *bytes, struct error *err)
{
    struct block_extent found[EXTENTS_AT_ONCE];
    struct stat st;
    if (fstat(block_file_fd(v->file), &st) < 0 || !S_ISREG(st.st_mode))
        return 0; /* a device has all its blocks */
    to = to < v->backing->size_bytes ? to : v->backing->size_bytes;
    while (from < to) {
        size_t count = 0;
        int r = block_extents(v->backing, to - from, from, found, EXTENTS_AT_ONCE, &count, err);
        if (r < 0 || count == 0)
            return r;
        for (size_t i = 0; i < count; i++)
            *bytes += found[i].hole ? found[i].length_bytes : 0;
        from = found[count - 1].offset_bytes + found[count - 1].length_bytes;
    }
    return 0;
}

/* Each grain once: pieces come in ascending order. */
static int count_grains(struct rewind_space *s, struct volume *v, size_t i, uint64_t first, uint64_t end, struct error *err)
{
    if (s->volume == v->id && first < s->counted_grains)
        first = s->counted_grains;
    if (first >= end)
        return 0;
    s->volume = v->id;
    s->counted_grains = end;
    return count_holes(v, first * GROUP_GRAIN_BYTES, end * GROUP_GRAIN_BYTES, &s->change->volumes[i].needed_bytes, err);
}

int rewind_space_piece(struct rewind_space *s, const struct extent *piece, struct error *err)
{
    size_t i;
    uint64_t first = piece->lba / GROUP_GRAIN_SECTORS, end = (piece->lba + piece->length - 1) / GROUP_GRAIN_SECTORS + 1;
    s->pieces++;
    struct volume *v = volume_of(s->g, piece->volume, &i);
    if (!v)
        return 0;
    if (piece->kind != EXTENT_ZERO) {
        s->referred_bytes += (uint64_t)piece->length * BLOCK_SECTOR_BYTES;
        return count_grains(s, v, i, first, end, err);
    }
    /* Zeroes are punched, unless they share a grain with something else. */
    int r = piece->lba % GROUP_GRAIN_SECTORS ? count_grains(s, v, i, first, first + 1, err) : 0;
    if (r == 0 && (piece->lba + piece->length) % GROUP_GRAIN_SECTORS)
        r = count_grains(s, v, i, end - 1, end, err);
    return r;
}

void rewind_space_end(struct rewind_space *s)
{
    struct journal_status status;
    uint64_t grains = 0;
    for (size_t i = 0; i < s->g->volume_count; i++)
        grains += s->g->volumes[i].stale.grains;
    journal_status(s->g->journal, &status);
    bool drops = status.quota_bytes && status.journal_bytes + status.segment_bytes > status.quota_bytes;
    s->change->needed_bytes = s->pieces * PIECE_BYTES + s->copied_bytes + 2 * (grains / 8) + FILES_BYTES +
                              (drops ? s->referred_bytes : 0);
}

static void add_disk(struct group_space *list, size_t *count, const char *path, const struct stat *st, const struct statvfs *vfs,
                     uint64_t needed_bytes)
{
    size_t i = 0;
    while (i < *count && list[i].device != (uint64_t)st->st_dev)
        i++;
    if (i == *count) {
        *count += 1;
        list[i] = (struct group_space){.of = path, .device = (uint64_t)st->st_dev, .free_bytes = (uint64_t)vfs->f_bavail * vfs->f_frsize};
    }
    list[i].needed_bytes += needed_bytes;
}

size_t group_rewind_space(struct group *g, const struct group_change *change, struct group_space list[GROUP_MAX_DISKS])
{
    size_t count = 0;
    struct stat st;
    struct statvfs vfs;
    const char *journal = journal_directory(g->journal);
    if (stat(journal, &st) == 0 && statvfs(journal, &vfs) == 0)
        add_disk(list, &count, "the journal", &st, &vfs, change->needed_bytes);
    for (size_t i = 0; i < change->volume_count; i++) {
        int fd = block_file_fd(g->volumes[i].file);
        if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && fstatvfs(fd, &vfs) == 0)
            add_disk(list, &count, g->volumes[i].name, &st, &vfs, change->volumes[i].needed_bytes);
    }
    return count;
}

int group_check_space(struct group *g, const struct group_change *change, struct error *err)
{
    struct group_space list[GROUP_MAX_DISKS];
    size_t count = group_rewind_space(g, change, list);
    for (size_t i = 0; i < count; i++)
        if (list[i].needed_bytes > list[i].free_bytes)
            return error_set(err, -ENOSPC, "it needs %llu KiB on the disk of %s, which has %llu KiB free: make room there (close "
                             "views, a smaller quota, a larger disk), or choose a newer point. Nothing was changed",
                             (unsigned long long)(list[i].needed_bytes >> 10), list[i].of, (unsigned long long)(list[i].free_bytes >> 10));
    return 0;
}
