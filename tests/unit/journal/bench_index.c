/* SPDX-License-Identifier: Apache-2.0 */
/* Costs of joining and looking up: bench_index [DIRECTORY]. Prints one line a figure. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "journal/index.h"

enum { RUNS = 8, PER_RUN = 1000000, LARGE = 10000000, LOOKUPS = 200000 };

static uint64_t state = 1;
static uint64_t rnd(void)
{
    state += 0x9e3779b97f4a7c15ull; /* splitmix64 */
    uint64_t z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static struct error err;

static void check(int r)
{
    if (r >= 0)
        return;
    fprintf(stderr, "%s\n", err.message);
    exit(1);
}

static double now(void)
{
    return (double)clock_boottime_ns(clock_system()) * 1e-9;
}

/* `count` extents of 4 KiB at ascending places, a random step of `step_max` blocks apart. */
static void write_run(const char *path, size_t count, unsigned step_max, uint64_t lsn)
{
    struct index_info info = {.kind = INDEX_RUN, .flat = true};
    struct index_writer *w;
    check(index_writer_new(path, &info, &w, &err));
    uint64_t block = 0;
    for (size_t i = 0; i < count; i++) {
        block += 1 + rnd() % step_max;
        struct extent e = {.volume = 1,
                           .lba = block * 8,
                           .length = 8,
                           .lsn = {lsn + rnd() % PER_RUN},
                           .kind = EXTENT_DATA,
                           .segment = (uint32_t)rnd(),
                           .position = (uint32_t)(rnd() >> 40)};
        check(index_writer_add(w, &e, &err));
    }
    check(index_writer_finish(w, &err));
    index_writer_free(w);
}

static void bench_sweep(const char *directory)
{
    struct extent_stream *streams[RUNS], *sweep;
    struct index *runs[RUNS];
    struct index_writer *w;
    struct extent e;
    char path[4200];
    for (unsigned i = 0; i < RUNS; i++) {
        snprintf(path, sizeof path, "%s/run%u", directory, i);
        write_run(path, PER_RUN, 16, 1 + (uint64_t)i * PER_RUN);
        check(index_open(path, NULL, &runs[i], &err));
        check(index_stream(runs[i], LSN_NONE, LSN_MAX, &streams[i], &err));
    }
    double from = now();
    check(extent_sweep(streams, RUNS, &sweep, &err));
    size_t out = 0;
    int r;
    while ((r = sweep->next(sweep, &e, &err)) > 0)
        out++;
    check(r);
    printf("read and sweep of %u x %u entries: %.1f ns an entry read\n", RUNS, PER_RUN,
           (now() - from) * 1e9 / RUNS / PER_RUN);
    extent_stream_free(sweep);

    for (unsigned i = 0; i < RUNS; i++)
        check(index_stream(runs[i], LSN_NONE, LSN_MAX, &streams[i], &err));
    struct index_info info = {.kind = INDEX_RUN, .flat = true};
    snprintf(path, sizeof path, "%s/merged", directory);
    check(index_writer_new(path, &info, &w, &err));
    from = now();
    check(extent_sweep(streams, RUNS, &sweep, &err));
    out = 0;
    while ((r = sweep->next(sweep, &e, &err)) > 0) {
        check(index_writer_add(w, &e, &err));
        out++;
    }
    check(r);
    double swept = now() - from;
    check(index_writer_finish(w, &err));
    double synced = now() - from;
    printf("sweep and write of %u x %u entries: %zu out, %.1f ns an entry read, %.1f with the final sync\n",
           RUNS, PER_RUN, out, swept * 1e9 / RUNS / PER_RUN, synced * 1e9 / RUNS / PER_RUN);
    index_writer_free(w);
    extent_stream_free(sweep);
    for (unsigned i = 0; i < RUNS; i++) {
        index_free(runs[i]);
        snprintf(path, sizeof path, "%s/run%u", directory, i);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/merged", directory);
    unlink(path);
}

static int visit(void *context, const struct extent *extent, struct error *unused)
{
    (void)extent;
    (void)unused;
    ++*(size_t *)context;
    return 0;
}

static void bench_lookup(const char *directory)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/large", directory);
    double from = now();
    write_run(path, LARGE, 2, 1);
    printf("write of %u entries: %.1f ns an entry with the final sync\n", LARGE,
           (now() - from) * 1e9 / LARGE);
    static const size_t caches[] = {1 << 20, 16 << 20, 512 << 20};
    for (size_t i = 0; i < 3; i++) {
        struct index_cache *cache;
        struct index *index;
        size_t found = 0;
        check(index_cache_new(caches[i], &cache, &err));
        check(index_open(path, cache, &index, &err));
        for (int round = 0; round < 2; round++) { /* the first fills the cache */
            from = now();
            for (unsigned n = 0; n < LOOKUPS; n++)
                check(index_lookup(index, 1, rnd() % (LARGE * 12ull), 8, LSN_NONE, LSN_MAX, visit, &found,
                                   &err));
        }
        printf("lookup of 4 KiB in %u entries, cache of %zu MiB: %.2f us (%.2f found)\n", LARGE,
               caches[i] >> 20, (now() - from) * 1e6 / LOOKUPS, (double)found / (2.0 * LOOKUPS));
        index_free(index);
        index_cache_free(cache);
    }
    struct index *index;
    check(index_open(path, NULL, &index, &err));
    from = now();
    check(index_verify(index, NULL, NULL, &err));
    printf("verify: %.1f ns an entry\n", (now() - from) * 1e9 / LARGE);
    index_free(index);
    unlink(path);
}

int main(int argc, char **argv)
{
    char directory[] = "/tmp/bench_index.XXXXXX";
    const char *in = argc > 1 ? argv[1] : mkdtemp(directory);
    if (!in)
        return 1;
    bench_sweep(in);
    bench_lookup(in);
    if (argc < 2)
        rmdir(directory);
    return 0;
}
