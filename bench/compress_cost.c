/* SPDX-License-Identifier: Apache-2.0 */
/* What compressing sealed segments saves and costs, and what encryption does:
 *
 *   compress_cost --directory DIR [--content FILE] [--mib 512] [--reads 2000] [--key-file FILE]
 *
 * Writes so many MiB to a volume in requests of 8 KiB at random places: the pages of FILE, again from its
 * beginning where that is too short; random bytes without it. Reads random blocks of a view of the latest
 * point, compresses all that is sealed, and reads the same blocks again. The page cache is dropped before
 * each pass (root), and the journal is read by direct I/O. Prints one JSON object; CPU seconds are those of
 * this process. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/units.h"
#include "bench_group.h"
#include "view/image.h"

#define PAGE 8192u
#define STRIDE 1000003ull /* a prime: pages go to places that are far apart, each to one of its own */
#define PIN "engine-bench"

struct options {
    const char *directory, *content, *key_file;
    uint64_t mib, reads;
};
struct cost {
    double wall_s, cpu_s;
};
struct latency {
    double p50_us, p99_us;
};
struct run {
    const struct options *o;
    struct journal_options journal_options;
    struct journal *journal;
    struct group *group;
    uint64_t pages;
    struct cost fill, compress;
    struct latency before, after;
};

static double clock_s(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct cost cost_begin(void)
{
    return (struct cost){clock_s(CLOCK_MONOTONIC), clock_s(CLOCK_PROCESS_CPUTIME_ID)};
}
static struct cost cost_since(struct cost c)
{
    return (struct cost){clock_s(CLOCK_MONOTONIC) - c.wall_s, clock_s(CLOCK_PROCESS_CPUTIME_ID) - c.cpu_s};
}

static int open_all(struct run *r, struct error *err)
{
    static char journal[600], backing[600];
    snprintf(journal, sizeof journal, "%s/journal", r->o->directory);
    snprintf(backing, sizeof backing, "%s/v.img", r->o->directory);
    r->journal_options =
        (struct journal_options){.directory = journal, .key_file = r->o->key_file, .owner = "bench"};
    int result = journal_open(&r->journal_options, &r->journal, err);
    if (result == 0)
        result = group_new(r->journal, GROUP_ACK_FLUSH, NULL, &r->group, err);
    if (result == 0)
        result = group_add_volume(r->group, "v", r->pages * PAGE, backing, err);
    return result < 0 ? result : group_start(r->group, err);
}

/* The next page of the content, from its beginning after its end. */
static int next_page(int fd, uint64_t *random, uint64_t *at, void *page, struct error *err)
{
    uint64_t *words = page;
    for (unsigned i = 0; fd < 0 && i < PAGE / 8; i++)
        words[i] = bench_random(random);
    if (fd < 0)
        return 0;
    int r = io_pread_full(fd, page, PAGE, *at);
    if (r == -ENODATA && *at > 0) {
        *at = 0;
        r = io_pread_full(fd, page, PAGE, 0);
    }
    *at += PAGE;
    return r < 0 ? error_errno(err, r, "cannot read a page of the content") : 0;
}

static int fill(struct run *r, struct error *err)
{
    _cleanup_close_ int fd = r->o->content ? open(r->o->content, O_RDONLY | O_CLOEXEC) : -1;
    uint64_t random = bench_seed(1, 0), at = 0;
    void *page = io_alloc_pages(PAGE);
    int result = page ? 0 : error_errno(err, -ENOMEM, "no memory");
    if (r->o->content && fd < 0)
        result = error_errno(err, -errno, "cannot open %s", r->o->content);
    struct cost begin = cost_begin();
    for (uint64_t i = 0; i < r->pages && result == 0; i++) {
        result = next_page(fd, &random, &at, page, err);
        if (result == 0)
            result = block_pwrite(group_volume_block(r->group, 0), page, PAGE, i * STRIDE % r->pages * PAGE,
                                  0, err);
    }
    if (result == 0)
        result = block_flush(group_volume_block(r->group, 0), err);
    if (result == 0)
        result = journal_seal(r->journal, err);
    r->fill = cost_since(begin);
    io_free_pages(page, PAGE);
    return result;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int read_blocks(struct run *r, struct image *image, double *samples, struct error *err)
{
    uint64_t random = bench_seed(2, 0);
    void *data = io_alloc_pages(4096);
    int result = data ? 0 : error_errno(err, -ENOMEM, "no memory");
    for (uint64_t i = 0; i < r->o->reads && result == 0; i++) {
        uint64_t block = bench_random(&random) % (r->pages * PAGE / 4096);
        double start = clock_s(CLOCK_MONOTONIC);
        result = image_read(image, 1, block * 8, 8, data, err);
        samples[i] = (clock_s(CLOCK_MONOTONIC) - start) * 1e6;
    }
    io_free_pages(data, 4096);
    return result;
}

static int read_view(struct run *r, struct latency *ret, struct error *err)
{
    struct image *image = NULL;
    _cleanup_free_ double *samples = calloc(r->o->reads, sizeof *samples);
    if (!samples)
        return error_errno(err, -ENOMEM, "no memory");
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    bool dropped = fd >= 0 && write(fd, "1\n", 2) == 2;
    if (fd >= 0)
        close(fd);
    if (!dropped)
        return error_set(err, -EPERM, "cannot drop the page cache: not root");
    int result = image_open(journal_directory(r->journal), PIN, &image, err);
    if (result == 0)
        result = read_blocks(r, image, samples, err);
    image_free(image);
    qsort(samples, r->o->reads, sizeof *samples, by_value);
    *ret = (struct latency){samples[(r->o->reads - 1) / 2], samples[(r->o->reads * 99 - 1) / 100]};
    return result;
}

static int compress(struct run *r, struct error *err)
{
    struct cost begin = cost_begin();
    r->journal_options.compress = true;
    journal_configure(r->journal, &r->journal_options);
    int result = journal_maintain(r->journal, err);
    r->compress = cost_since(begin);
    return result;
}

static void print(const struct run *r, const struct journal_status *s)
{
    printf("{\"plain_bytes\": %" PRIu64 ", \"segments\": %" PRIu64 ", \"cold_segments\": %" PRIu64
           ", \"cold_plain_bytes\": %" PRIu64 ", \"cold_bytes\": %" PRIu64
           ", \"fill_s\": %.3f, \"fill_cpu_s\": %.3f, \"compress_s\": %.3f, \"compress_cpu_s\": %.3f, "
           "\"before\": {\"p50_us\": %.1f, \"p99_us\": %.1f}, \"after\": {\"p50_us\": %.1f, \"p99_us\": "
           "%.1f}}\n",
           r->pages * PAGE, s->segments, s->cold_segments, s->cold_plain_bytes, s->cold_bytes, r->fill.wall_s,
           r->fill.cpu_s, r->compress.wall_s, r->compress.cpu_s, r->before.p50_us, r->before.p99_us,
           r->after.p50_us, r->after.p99_us);
}

static int measure(struct run *r, struct error *err)
{
    struct journal_status s;
    int result = open_all(r, err);
    if (result == 0)
        result = fill(r, err);
    if (result < 0)
        return result;
    journal_status(r->journal, &s);
    result = journal_pin(r->journal, PIN, s.latest, true, err);
    if (result == 0)
        result = read_view(r, &r->before, err);
    if (result == 0)
        result = compress(r, err);
    if (result == 0)
        result = read_view(r, &r->after, err);
    journal_status(r->journal, &s);
    if (result == 0)
        print(r, &s);
    return result;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"directory", required_argument, NULL, 'd'}, {"content", required_argument, NULL, 'c'},
        {"mib", required_argument, NULL, 'm'},       {"reads", required_argument, NULL, 'r'},
        {"key-file", required_argument, NULL, 'k'},  {0}};
    struct error err = ERROR_INIT;
    struct options o = {.mib = 512, .reads = 2000};
    int option, r = 0;
    while (r == 0 && (option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option == 'd')
            o.directory = optarg;
        else if (option == 'c')
            o.content = optarg;
        else if (option == 'm')
            r = units_parse_u64(optarg, 1u << 20, &o.mib, &err);
        else if (option == 'r')
            r = units_parse_u64(optarg, 1000000, &o.reads, &err);
        else if (option == 'k')
            o.key_file = optarg;
        else
            return 2;
    }
    if (r == 0 && (!o.directory || o.mib < 64 || !o.reads || optind != argc))
        r = error_set(
            &err, -EINVAL,
            "usage: compress_cost --directory DIR [--content FILE] [--mib N] [--reads N] [--key-file FILE]");
    struct run run = {.o = &o, .pages = o.mib * (1048576 / PAGE)};
    if (r == 0)
        r = measure(&run, &err);
    if (r < 0)
        fprintf(stderr, "compress_cost: %s\n", err.message);
    struct error closing = ERROR_INIT;
    group_free(run.group);
    if (journal_close(run.journal, &closing) < 0 && r == 0) { /* also removes the ring in memory */
        fprintf(stderr, "compress_cost: %s\n", closing.message);
        r = -EIO;
    }
    return r < 0;
}
