/* SPDX-License-Identifier: Apache-2.0 */
/* Which grains are stale, kept beside a backing (S3 of stale.c): while writes go on unjournaled, because the journal's disk fails, a flush over
 * what a rewind has not copied back has to be durable all the same, and must not fail with that disk. The backing is most likely on another one.
 *
 * The file is rewind.pending with the journal's id behind it. It counts for the rewind that it names, of that journal, as long as the backings are
 * the files that they were. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/journal_format.h"
#include "volume/group_internal.h"

static_assert(STALE_BESIDE_BYTES == sizeof(struct uuid), "what stands behind rewind.pending");

int stale_write_beside(struct group *g, char *data, size_t length, struct error *err)
{
    struct pending_header *h = (struct pending_header *)data;
    struct uuid id = journal_id(g->journal);
    struct error why = *err;
    size_t i = 0;
    while (i < g->volume_count && !g->volumes[i].rewinding[0])
        i++;
    if (i == g->volume_count) {
        log_error(g->log, "%s, and the volumes are devices: were the power lost now, what was written over blocks that a rewind has not copied back "
                          "could be lost", why.message);
        *err = ERROR_INIT;
        return 0;
    }
    memcpy(data + length, id.bytes, sizeof id.bytes);
    h->crc = le32_of(0);
    h->crc = le32_of(crc32c(0, data, length + STALE_BESIDE_BYTES));
    *err = ERROR_INIT;
    const char *path = g->volumes[i].rewinding;
    if (io_replace_file(path, data, length + STALE_BESIDE_BYTES, 0600, err) < 0)
        return error_context(err, "%s; nor beside the backing", why.message);
    log_warning(g->log, "%s: it is kept in %s meanwhile", why.message, path);
    return 0;
}

void stale_remove_beside(struct group *g)
{
    for (size_t i = 0; i < g->volume_count; i++) {
        const char *path = g->volumes[i].rewinding;
        if (path[0] && unlink(path) < 0 && errno != ENOENT)
            log_warning(g->log, "cannot remove %s: %m; it counts for nothing any more", path);
    }
}

/* What it does not call stale is not. */
static void take_away(struct group *g, const struct pending_volume *pv, const char *bits)
{
    struct volume *v = group_find_volume(g, le32_get(pv->id));
    for (uint64_t grain = 0; v && grain < v->stale.grains && grain < le64_get(pv->grains); grain++)
        if (grain_map_test(&v->stale, grain) && !stale_bit(bits, grain)) {
            grain_map_clear(&v->stale, grain);
            atomic_store(&g->pending_behind, true);
        }
}

static bool counts(struct group *g, const char *data, size_t length)
{
    const struct pending_header *h = (const struct pending_header *)data;
    struct uuid id = journal_id(g->journal);
    return length >= sizeof *h + STALE_BESIDE_BYTES && le64_get(h->rewind_lsn) == g->rewind_lsn.n &&
           memcmp(data + length - STALE_BESIDE_BYTES, id.bytes, STALE_BESIDE_BYTES) == 0;
}

static int load_beside(struct group *g, const char *path, struct error *err)
{
    _cleanup_free_ char *data = NULL;
    size_t length;
    int r = stale_read(path, &data, &length, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return 0;
    }
    if (r < 0)
        return error_context(err, "which blocks a rewind has not copied back was kept beside a backing, since the journal's disk failed, and is not known "
                                  "any more. Restore the file; or move the file away, which loses what was flushed over such blocks then");
    if (counts(g, data, length))
        stale_each_volume(g, data, length - STALE_BESIDE_BYTES, take_away);
    return 0;
}

int stale_load_beside(struct group *g, bool replaced, struct error *err)
{
    int r = 0;
    if (replaced || !stale_any(g)) {
        stale_remove_beside(g);
        return 0;
    }
    for (size_t i = 0; i < g->volume_count && r == 0; i++)
        if (g->volumes[i].rewinding[0])
            r = load_beside(g, g->volumes[i].rewinding, err);
    return r;
}
