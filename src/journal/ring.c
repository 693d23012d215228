/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"

static size_t ring_bytes(void)
{
    return JOURNAL_BLOCK_BYTES + (size_t)RING_SLOTS * (FRAME_MAX_BLOCKS + 1) * JOURNAL_BLOCK_BYTES;
}

int ring_open(struct ring *ring, const char *path, const struct uuid *journal, struct error *err)
{
    *ring = (struct ring){.length_bytes = ring_bytes()};
    if (snprintf(ring->path, sizeof ring->path, "%s", path) >= (int)sizeof ring->path)
        return error_errno(err, -ENAMETOOLONG, "cannot use %s as frame ring", path);
    /* What others could write is not believed: it says which writes were in flight, and holds the newest of them. */
    _cleanup_close_ int fd = io_open_private(path, err);
    if (fd < 0)
        return error_context(err, "the frame ring");
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot examine the frame ring %s", path);
    bool sized = (uint64_t)st.st_size == ring->length_bytes;
    if (!sized) {
        int r = ftruncate(fd, 0) < 0 ? -errno : -posix_fallocate(fd, 0, (off_t)ring->length_bytes);
        if (r < 0) {
            unlink(path);
            return error_errno(err, r, "cannot reserve %zu bytes of shared memory for the frame ring %s",
                               ring->length_bytes, path);
        }
    }
    ring->memory =
        mmap(NULL, ring->length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (ring->memory == MAP_FAILED) {
        ring->memory = NULL;
        return error_errno(err, -errno, "cannot map the frame ring %s", path);
    }
    const struct ring_control *control = (const struct ring_control *)ring->memory;
    ring->fresh = !sized || control->magic != RING_MAGIC || memcmp(control->journal_id, journal->bytes, 16) != 0;
    return 0;
}

int ring_open_private(struct ring *ring, struct error *err)
{
    *ring = (struct ring){.length_bytes = ring_bytes(), .fresh = true};
    ring->memory = mmap(NULL, ring->length_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ring->memory != MAP_FAILED)
        return 0;
    int r = -errno;
    ring->memory = NULL;
    return error_errno(err, r, "cannot reserve %zu bytes for the frame ring", ring->length_bytes);
}

void ring_relax(struct ring *ring, uint32_t slot)
{
    /* What is read there again is zeroes: a free slot. */
    (void)!madvise(ring_slot(ring, slot), (size_t)(FRAME_MAX_BLOCKS + 1) * JOURNAL_BLOCK_BYTES,
                   MADV_DONTNEED);
}

void ring_clear(struct ring *ring, const struct uuid *journal, uint32_t epoch, bool recovering)
{
    struct ring_control *control = (struct ring_control *)ring->memory;
    control->magic = 0;
    for (uint32_t i = 0; i < RING_SLOTS; i++)
        memset(ring_slot(ring, i), 0, sizeof(struct ring_slot));
    memcpy(control->journal_id, journal->bytes, 16);
    control->epoch = epoch;
    control->suspended = recovering ? RING_RECOVERING : 0;
    atomic_thread_fence(memory_order_seq_cst);
    control->magic = RING_MAGIC;
    ring->fresh = false;
}

uint32_t ring_epoch(const struct ring *ring)
{
    return ((const struct ring_control *)ring->memory)->epoch;
}

void ring_suspend(struct ring *ring, enum ring_suspension how)
{
    atomic_fetch_or(&((struct ring_control *)ring->memory)->suspended, (uint64_t)how);
}
uint64_t ring_suspended(const struct ring *ring)
{
    return ((const struct ring_control *)ring->memory)->suspended;
}

void ring_recovered(struct ring *ring)
{
    atomic_fetch_and(&((struct ring_control *)ring->memory)->suspended, ~(uint64_t)RING_RECOVERING);
}

void ring_release(struct ring *ring, bool remove)
{
    if (ring->memory)
        munmap(ring->memory, ring->length_bytes);
    if (remove && ring->path[0])
        unlink(ring->path);
    *ring = (struct ring){0};
}
