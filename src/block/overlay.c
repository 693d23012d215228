/* SPDX-License-Identifier: Apache-2.0 */
/* Copy-on-write by grains of 64 KiB (the last may be shorter).
 *
 * O1. A grain with its bit in `present` is read from and written to `upper` only; one without is read from
 * `lower`. Bits are set, never cleared, and only after the grain's whole content stands in `upper` (release;
 * readers acquire). O2. A bit is set only under the grain's lock. So of several writers of an absent grain
 * one brings it up and the others, who find the bit set when they get the lock, write to `upper`. Reads and
 * writes of present grains take no lock. O3. What `upper` holds in an absent grain (left by a failed copy) is
 * never read: it is overwritten as a whole, or punched, before the call that sets the bit returns. O4.
 * Zeroing sets bits first and makes the hole after: from the bit on nobody can bring the old content up.
 *
 * Lock order: one grain lock at a time, then whatever `lower` and `upper` take. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/block.h"
#include "block/bounce_internal.h"

#define GRAIN_BYTES BOUNCE_OVERLAY_BYTES
#define LOCK_COUNT 64u

struct block_overlay {
    struct block block;
    struct block *lower; /* not owned */
    struct block *upper; /* owned */
    _Atomic uint64_t *present;
    pthread_mutex_t locks[LOCK_COUNT];
};

static struct block_overlay *overlay_of(struct block *b)
{
    return (struct block_overlay *)b;
}

static bool is_present(const struct block_overlay *o, uint64_t grain)
{
    return atomic_load_explicit(&o->present[grain / 64], memory_order_acquire) >> grain % 64 & 1;
}

static void set_present(struct block_overlay *o, uint64_t grain)
{
    atomic_fetch_or_explicit(&o->present[grain / 64], (uint64_t)1 << grain % 64, memory_order_release);
}

static pthread_mutex_t *lock_of(struct block_overlay *o, uint64_t grain)
{
    return &o->locks[grain % LOCK_COUNT];
}

/* The end of the run of grains in the same state as that at `at`, within `end`. */
static uint64_t run_end(const struct block_overlay *o, uint64_t at, uint64_t end, bool *ret_present)
{
    uint64_t grain = at / GRAIN_BYTES;
    bool present = is_present(o, grain);
    do
        grain++;
    while (grain * GRAIN_BYTES < end && is_present(o, grain) == present);
    *ret_present = present;
    return grain * GRAIN_BYTES < end ? grain * GRAIN_BYTES : end;
}

static int overlay_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes,
                         struct error *err)
{
    struct block_overlay *o = overlay_of(b);
    uint64_t end = offset_bytes + length_bytes;
    for (uint64_t at = offset_bytes, next; at < end; at = next) {
        bool present;
        next = run_end(o, at, end, &present);
        int r = block_pread(present ? o->upper : o->lower, (char *)data + (at - offset_bytes), next - at, at,
                            err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Brings an absent grain up with [at, at+length) replaced by `data` (NULL: zeroes). The caller holds the
 * lock. */
static int copy_up(struct block_overlay *o, uint64_t grain, const void *data, size_t length_bytes,
                   uint64_t at, struct error *err)
{
    uint64_t start = grain * GRAIN_BYTES;
    uint64_t rest = o->block.size_bytes - start;
    size_t size = rest < GRAIN_BYTES ? (size_t)rest : GRAIN_BYTES;
    char *bounce = block_bounce(BOUNCE_OVERLAY);
    if (!bounce)
        return error_errno(err, -ENOMEM, "cannot copy %zu bytes at offset %llu to the overlay", size,
                           (unsigned long long)start);
    int r = 0;
    if (length_bytes < size)
        r = block_pread(o->lower, bounce, size, start, err);
    if (r < 0)
        return r;
    if (data)
        memcpy(bounce + (at - start), data, length_bytes);
    else
        memset(bounce + (at - start), 0, length_bytes);
    r = block_pwrite(o->upper, bounce, size, start, 0, err);
    if (r < 0)
        return r;
    set_present(o, grain);
    return 0;
}

/* A write (data NULL: of zeroes) within one grain. */
static int change_grain(struct block_overlay *o, const void *data, size_t length_bytes, uint64_t at,
                        struct error *err)
{
    uint64_t grain = at / GRAIN_BYTES;
    if (!is_present(o, grain)) {
        MUTEX_GUARD(guard, lock_of(o, grain));
        if (!is_present(o, grain))
            return copy_up(o, grain, data, length_bytes, at, err);
    }
    return data ? block_pwrite(o->upper, data, length_bytes, at, 0, err)
                : block_zero(o->upper, length_bytes, at, 0, err);
}

static int overlay_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes,
                          unsigned flags, struct error *err)
{
    struct block_overlay *o = overlay_of(b);
    uint64_t end = offset_bytes + length_bytes;
    (void)flags;
    for (uint64_t at = offset_bytes, next; at < end; at = next) {
        next = (at / GRAIN_BYTES + 1) * GRAIN_BYTES;
        if (next > end)
            next = end;
        int r = change_grain(o, (const char *)data + (at - offset_bytes), next - at, at, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int overlay_flush(struct block *b, struct error *err)
{
    (void)b;
    (void)err;
    return 0;
}

/* Whole grains [first, last): O4. */
static int zero_grains(struct block_overlay *o, uint64_t first, uint64_t last, uint64_t end,
                       struct error *err)
{
    for (uint64_t grain = first; grain < last; grain++) {
        if (is_present(o, grain))
            continue;
        MUTEX_GUARD(guard, lock_of(o, grain));
        set_present(o, grain);
    }
    uint64_t start = first * GRAIN_BYTES;
    uint64_t stop = last * GRAIN_BYTES < end ? last * GRAIN_BYTES : end;
    return block_zero(o->upper, stop - start, start, 0, err);
}

static int overlay_zero(struct block *b, uint64_t length_bytes, uint64_t offset_bytes, unsigned flags,
                        struct error *err)
{
    struct block_overlay *o = overlay_of(b);
    uint64_t end = offset_bytes + length_bytes;
    uint64_t first = (offset_bytes + GRAIN_BYTES - 1) / GRAIN_BYTES;
    /* The device's last grain may be short, and is whole nevertheless. */
    uint64_t last = end == b->size_bytes ? (end + GRAIN_BYTES - 1) / GRAIN_BYTES : end / GRAIN_BYTES;
    (void)flags;
    if (first >= last) {
        uint64_t middle = first * GRAIN_BYTES < end ? first * GRAIN_BYTES : end;
        int r = middle > offset_bytes ? change_grain(o, NULL, middle - offset_bytes, offset_bytes, err) : 0;
        return r < 0 || middle == end ? r : change_grain(o, NULL, end - middle, middle, err);
    }
    int r = 0;
    if (first * GRAIN_BYTES > offset_bytes)
        r = change_grain(o, NULL, first * GRAIN_BYTES - offset_bytes, offset_bytes, err);
    if (r == 0)
        r = zero_grains(o, first, last, end, err);
    if (r == 0 && last * GRAIN_BYTES < end)
        r = change_grain(o, NULL, end - last * GRAIN_BYTES, last * GRAIN_BYTES, err);
    return r;
}

static int overlay_extents(struct block *b, uint64_t length_bytes, uint64_t offset_bytes,
                           struct block_extent *extents, size_t capacity, size_t *ret_count,
                           struct error *err)
{
    struct block_overlay *o = overlay_of(b);
    uint64_t end = offset_bytes + length_bytes;
    size_t count = 0;
    for (uint64_t at = offset_bytes, next; at < end && count < capacity; at = next) {
        bool present;
        size_t added = 0;
        next = run_end(o, at, end, &present);
        int r = block_extents(present ? o->upper : o->lower, next - at, at, extents + count, capacity - count,
                              &added, err);
        if (r < 0)
            return r;
        if (added == 0)
            break;
        count += added;
        const struct block_extent *newest = &extents[count - 1];
        if (newest->offset_bytes + newest->length_bytes < next)
            break; /* stopped short */
    }
    *ret_count = count;
    return 0;
}

static void overlay_free(struct block *b)
{
    struct block_overlay *o = overlay_of(b);
    for (unsigned i = 0; i < LOCK_COUNT; i++)
        pthread_mutex_destroy(&o->locks[i]);
    block_free(o->upper);
    free(o->present);
    free(o);
}

static const struct block_ops overlay_ops = {
    .pread = overlay_pread,
    .pwrite = overlay_pwrite,
    .flush = overlay_flush,
    .discard = overlay_zero,
    .zero = overlay_zero,
    .extents = overlay_extents,
    .free = overlay_free,
};

int block_overlay_new(struct block *lower, const char *path, struct block **ret, struct error *err)
{
    uint64_t grains = (lower->size_bytes + GRAIN_BYTES - 1) / GRAIN_BYTES;
    struct block_overlay *o = calloc(1, sizeof *o);
    if (!o)
        return error_errno(err, -ENOMEM, "cannot make the overlay %s", path);
    o->block = (struct block){&overlay_ops, lower->size_bytes};
    o->lower = lower;
    for (unsigned i = 0; i < LOCK_COUNT; i++)
        pthread_mutex_init(&o->locks[i], NULL);
    o->present = calloc((grains + 63) / 64, sizeof *o->present);
    int r = o->present ? 0 : error_errno(err, -ENOMEM, "cannot make the overlay %s", path);
    /* An older overlay's content means nothing without its bitmap. */
    if (r == 0 && unlink(path) < 0 && errno != ENOENT)
        r = error_errno(err, -errno, "cannot remove the old overlay %s", path);
    if (r == 0)
        r = block_file_open(path, lower->size_bytes, false, &o->upper, err);
    if (r < 0) {
        overlay_free(&o->block);
        return r;
    }
    *ret = &o->block;
    return 0;
}

uint64_t block_overlay_used_bytes(const struct block *b)
{
    const struct block_overlay *o = (const struct block_overlay *)b;
    struct stat st;
    return fstat(block_file_fd(o->upper), &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}
