/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_group.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/io.h"
#include "base/thread.h"

#define MAX_THREADS 128u
#define WRITE_BYTES 4096u
#define BATCH 256u /* writes a thread takes at a time */

uint64_t bench_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

uint64_t bench_seed(uint64_t seed, uint64_t stream)
{
    uint64_t state = (seed + 1) * 0x9e3779b97f4a7c15ull ^ (stream + 1) * 0xbf58476d1ce4e5b9ull;
    state = state ? state : 1;
    for (int i = 0; i < 8; i++)
        bench_random(&state);
    return state;
}

static int open_group(struct bench_group *b, struct error *err)
{
    const struct bench_group_options *o = &b->options;
    int r = group_new(b->journal, o->ack, NULL, &b->group, err);
    for (unsigned i = 0; r == 0 && i < o->volume_count; i++) {
        char name[16], path[512];
        snprintf(name, sizeof name, "v%u", i);
        snprintf(path, sizeof path, "%s/backing/%s.img", o->directory, name);
        r = group_add_volume(b->group, name, o->volume_bytes, path, err);
    }
    return r < 0 ? r : group_start(b->group, err);
}

int bench_group_open(const struct bench_group_options *options, struct bench_group *ret, struct error *err)
{
    char path[512];
    struct bench_group b = {.options = *options};
    snprintf(path, sizeof path, "%s/backing", options->directory);
    int r = io_mkdirs(path, 0700, err);
    if (r < 0)
        return r;
    snprintf(path, sizeof path, "%s/journal", options->directory);
    struct journal_options journal = {.directory = path, .owner = "bench"};
    r = journal_open(&journal, &b.journal, err);
    if (r < 0)
        return r;
    r = open_group(&b, err);
    if (r < 0) {
        struct error ignored = ERROR_INIT;
        group_free(b.group);
        if (journal_close(b.journal, &ignored) < 0)
            return r;
        return r;
    }
    *ret = b;
    return 0;
}

int bench_group_close(struct bench_group *b, struct error *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < group_volume_count(b->group); i++)
        r = block_flush(group_volume_block(b->group, i), err);
    group_free(b->group);
    struct error closing = ERROR_INIT;
    int closed = journal_close(b->journal, &closing);
    if (r == 0 && closed < 0) {
        *err = closing;
        r = closed;
    }
    return r;
}

struct load {
    struct bench_group *b;
    _Atomic uint64_t left;
    _Atomic int failed;
    struct writer {
        struct load *load;
        pthread_t thread;
        uint64_t random;
        char *data;
        struct error err;
    } writers[MAX_THREADS];
};

static uint64_t take(struct load *l)
{
    uint64_t left = atomic_load(&l->left), count;
    do
        count = left < BATCH ? left : BATCH;
    while (!atomic_compare_exchange_weak(&l->left, &left, left - count));
    return count;
}

static void *write_main(void *context)
{
    struct writer *w = context;
    struct load *l = w->load;
    const struct bench_group_options *o = &l->b->options;
    uint64_t blocks = o->volume_bytes / WRITE_BYTES, *words = (uint64_t *)w->data;
    for (uint64_t i = 0; i < WRITE_BYTES / 8; i++)
        words[i] = bench_random(&w->random);
    for (uint64_t count; !atomic_load(&l->failed) && (count = take(l)) > 0;) {
        for (; count > 0; count--) {
            uint64_t at = bench_random(&w->random) % (blocks * o->volume_count);
            words[at % (WRITE_BYTES / 8)] = w->random; /* no two payloads alike */
            int r = block_pwrite(group_volume_block(l->b->group, at / blocks), w->data, WRITE_BYTES, at % blocks * WRITE_BYTES,
                                 0, &w->err);
            if (r < 0) {
                atomic_store(&l->failed, r);
                return NULL;
            }
        }
    }
    return NULL;
}

int bench_group_write(struct bench_group *b, uint64_t count, unsigned thread_count, uint64_t seed, struct error *err)
{
    unsigned started = 0;
    int r = 0;
    if (thread_count == 0 || thread_count > MAX_THREADS)
        return error_set(err, -EINVAL, "%u threads: expected 1 to %u", thread_count, MAX_THREADS);
    struct load *l = calloc(1, sizeof *l);
    char *data = io_alloc_pages((size_t)thread_count * WRITE_BYTES);
    if (!l || !data)
        r = error_set(err, -ENOMEM, "no memory for %u writers", thread_count);
    for (; r == 0 && started < thread_count; started++) {
        struct writer *w = &l->writers[started];
        *w = (struct writer){.load = l, .random = bench_seed(seed, started), .data = data + started * WRITE_BYTES};
        if (started == 0) {
            l->b = b;
            atomic_store(&l->left, count);
        }
        r = thread_start(&w->thread, "bench-writer", write_main, w, err);
        if (r < 0)
            break;
    }
    if (r < 0 && l)
        atomic_store(&l->failed, r);
    for (unsigned i = 0; i < started; i++) {
        pthread_join(l->writers[i].thread, NULL);
        if (r == 0 && l->writers[i].err.code < 0) {
            *err = l->writers[i].err;
            r = err->code;
        }
    }
    if (data)
        io_free_pages(data, (size_t)thread_count * WRITE_BYTES);
    free(l);
    return r;
}
