/* SPDX-License-Identifier: Apache-2.0 */
#include "signal/classes.h"

#include <errno.h>
#include <string.h>

#include "base/io.h"

#define MASK 3u

int signal_classes_init(struct signal_classes *c, uint64_t volume_bytes, size_t budget_bytes, struct error *err)
{
    *c = (struct signal_classes){.blocks = (volume_bytes + SIGNAL_BLOCK_BYTES - 1) / SIGNAL_BLOCK_BYTES};
    if (budget_bytes < SIGNAL_CLASSES_MIN_BYTES)
        budget_bytes = SIGNAL_CLASSES_MIN_BYTES;
    while (c->blocks >> c->shift > budget_bytes * SIGNAL_CLASSES_PER_BYTE - 1)
        c->shift++;
    c->size_bytes = (c->blocks >> c->shift) / SIGNAL_CLASSES_PER_BYTE + 1;
    c->bytes = io_alloc_pages(c->size_bytes); /* populated: it is used on the way of each write */
    return c->bytes ? 0 : error_errno(err, -ENOMEM, "cannot keep the classes of %llu blocks", (unsigned long long)c->blocks);
}

void signal_classes_release(struct signal_classes *c)
{
    if (c->bytes)
        io_free_pages((void *)c->bytes, c->size_bytes);
    c->bytes = NULL;
}

static enum signal_class grain_get(const struct signal_classes *c, uint64_t grain)
{
    unsigned at = grain % SIGNAL_CLASSES_PER_BYTE * 2;
    if (grain / SIGNAL_CLASSES_PER_BYTE >= c->size_bytes)
        return SIGNAL_CLASS_FREE; /* the volume has grown since */
    return atomic_load_explicit(&c->bytes[grain / SIGNAL_CLASSES_PER_BYTE], memory_order_relaxed) >> at & MASK;
}

static void grain_set(struct signal_classes *c, uint64_t grain, enum signal_class old, enum signal_class class)
{
    unsigned at = grain % SIGNAL_CLASSES_PER_BYTE * 2;
    if (grain / SIGNAL_CLASSES_PER_BYTE >= c->size_bytes)
        return;
    _Atomic uint8_t *byte = &c->bytes[grain / SIGNAL_CLASSES_PER_BYTE];
    uint8_t was = atomic_load_explicit(byte, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(byte, &was, (uint8_t)((was & ~(MASK << at)) | (unsigned)class << at),
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
    int change = signal_class_is_low(class) - signal_class_is_low(old);
    if (change)
        atomic_fetch_add_explicit(&c->low_grains, change, memory_order_relaxed);
}

enum signal_class signal_classes_get(const struct signal_classes *c, uint64_t block)
{
    return grain_get(c, block >> c->shift);
}

enum signal_class signal_classes_set(struct signal_classes *c, uint64_t block, enum signal_class class)
{
    uint64_t grain = block >> c->shift, in_grain = ((uint64_t)1 << c->shift) - 1;
    enum signal_class old = grain_get(c, grain);
    bool last = (block & in_grain) == in_grain;
    if (old != class && (last || (old == SIGNAL_CLASS_FREE && class != SIGNAL_CLASS_FREE)))
        grain_set(c, grain, old, class);
    return old;
}

uint64_t signal_classes_free_range(struct signal_classes *c, uint64_t block, uint64_t count)
{
    uint64_t first = (block + ((uint64_t)1 << c->shift) - 1) >> c->shift, end = (block + count) >> c->shift, low = 0;
    for (uint64_t grain = first; grain < end; grain++) {
        enum signal_class old = grain_get(c, grain);
        low += signal_class_is_low(old);
        if (old != SIGNAL_CLASS_FREE)
            grain_set(c, grain, old, SIGNAL_CLASS_FREE);
    }
    return low << c->shift;
}

uint64_t signal_classes_told(struct signal_classes *c, uint64_t block, uint64_t count, bool is_free)
{
    uint64_t first = (block + ((uint64_t)1 << c->shift) - 1) >> c->shift, end = (block + count) >> c->shift, freed = 0;
    for (uint64_t grain = first; grain < end && grain / SIGNAL_CLASSES_PER_BYTE < c->size_bytes; grain++) {
        if (grain % SIGNAL_CLASSES_PER_BYTE == 0 && !atomic_load_explicit(&c->bytes[grain / SIGNAL_CLASSES_PER_BYTE], memory_order_relaxed)) {
            grain += SIGNAL_CLASSES_PER_BYTE - 1; /* nothing in these */
            continue;
        }
        enum signal_class old = grain_get(c, grain);
        if (is_free && old == SIGNAL_CLASS_KEPT) {
            grain_set(c, grain, old, SIGNAL_CLASS_FREE);
            freed++;
        } else if (!is_free && old == SIGNAL_CLASS_LOW)
            grain_set(c, grain, old, SIGNAL_CLASS_KEPT);
    }
    return freed << c->shift;
}

void signal_classes_clear(struct signal_classes *c)
{
    for (size_t i = 0; i < c->size_bytes; i++)
        atomic_store_explicit(&c->bytes[i], 0, memory_order_relaxed);
    atomic_store(&c->low_grains, 0);
}

void signal_classes_recount(struct signal_classes *c)
{
    int64_t low = 0;
    for (uint64_t grain = 0; grain <= c->blocks >> c->shift && grain / SIGNAL_CLASSES_PER_BYTE < c->size_bytes; grain++)
        low += signal_class_is_low(grain_get(c, grain));
    atomic_store(&c->low_grains, low);
}
