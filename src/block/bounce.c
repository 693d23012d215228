/* SPDX-License-Identifier: Apache-2.0 */
#include "block/bounce_internal.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/io.h"

struct buffers {
    void *data[BOUNCE_COUNT];
};

static const size_t sizes_bytes[BOUNCE_COUNT] = {BOUNCE_FILE_BYTES, BOUNCE_OVERLAY_BYTES};
static pthread_key_t buffers_key;
static int key_error;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;

static void free_buffers(void *context)
{
    struct buffers *b = context;
    for (int i = 0; i < BOUNCE_COUNT; i++)
        io_free_pages(b->data[i], sizes_bytes[i]);
    free(b);
}

static void make_key(void)
{
    key_error = pthread_key_create(&buffers_key, free_buffers);
}

void *block_bounce(enum bounce_kind kind)
{
    pthread_once(&key_once, make_key);
    if (key_error)
        return NULL;
    struct buffers *b = pthread_getspecific(buffers_key);
    if (!b) {
        b = calloc(1, sizeof *b);
        if (!b || pthread_setspecific(buffers_key, b) != 0) {
            free(b);
            return NULL;
        }
    }
    if (!b->data[kind])
        b->data[kind] = io_alloc_pages(sizes_bytes[kind]);
    return b->data[kind];
}
