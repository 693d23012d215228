/* SPDX-License-Identifier: Apache-2.0 */
/* Fills a journal with random 4 KiB writes through the group, as an engine would, up to a given LSN:
 *
 *   journal_fill --directory DIR --until LSN [--volumes 4] [--volume-bytes N] [--threads 32] [--seed S]
 *
 * Goes on where an earlier run stopped. Prints one JSON object. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "base/units.h"
#include "bench_group.h"

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int fill(const struct bench_group_options *options, uint64_t until, unsigned threads, uint64_t seed, struct error *err)
{
    struct bench_group b;
    struct journal_status s;
    int r = bench_group_open(options, &b, err);
    if (r < 0)
        return r;
    journal_status(b.journal, &s);
    uint64_t count = until > s.latest.n ? until - s.latest.n : 0;
    double start = now_s();
    r = bench_group_write(&b, count, threads, seed + s.latest.n, err);
    double written = now_s();
    if (r == 0)
        r = journal_sync(b.journal, -1, NULL, err);
    journal_status(b.journal, &s);
    struct error closing = ERROR_INIT;
    int closed = bench_group_close(&b, &closing);
    if (r < 0)
        return r;
    if (closed < 0) {
        *err = closing;
        return closed;
    }
    printf("{\"writes\": %" PRIu64 ", \"lsn\": %" PRIu64 ", \"seconds\": %.3f, \"close_seconds\": %.3f, \"journal_bytes\": %" PRIu64
           ", \"segments\": %" PRIu64 ", \"runs\": %" PRIu64 "}\n",
           count, s.latest.n, written - start, now_s() - written, s.journal_bytes, s.segments, s.runs);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"directory", required_argument, NULL, 'd'},
                                            {"until", required_argument, NULL, 'u'},
                                            {"volumes", required_argument, NULL, 'v'},
                                            {"volume-bytes", required_argument, NULL, 'b'},
                                            {"threads", required_argument, NULL, 't'},
                                            {"seed", required_argument, NULL, 's'},
                                            {0}};
    struct error err = ERROR_INIT;
    struct bench_group_options o = {.volume_bytes = 1ull << 30, .volume_count = 4, .ack = GROUP_ACK_FLUSH};
    uint64_t until = 0, volumes = o.volume_count, threads = 32, seed = 1;
    int option, r = 0;
    while (r == 0 && (option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'd')
            o.directory = optarg;
        else if (option == 'u')
            r = units_parse_u64(optarg, UINT64_MAX, &until, &err);
        else if (option == 'v')
            r = units_parse_u64(optarg, GROUP_MAX_VOLUMES, &volumes, &err);
        else if (option == 'b')
            r = units_parse_u64(optarg, 1ull << 50, &o.volume_bytes, &err);
        else if (option == 't')
            r = units_parse_u64(optarg, 128, &threads, &err);
        else if (option == 's')
            r = units_parse_u64(optarg, UINT64_MAX, &seed, &err);
        else
            return 2;
    }
    if (r == 0 && (!o.directory || !until || !volumes || o.volume_bytes < 4096 || optind != argc))
        r = error_set(&err, -EINVAL, "usage: journal_fill --directory DIR --until LSN [--volumes N] [--volume-bytes N] "
                                     "[--threads N] [--seed N]");
    o.volume_count = (unsigned)volumes;
    if (r == 0)
        r = fill(&o, until, (unsigned)threads, seed, &err);
    if (r < 0)
        fprintf(stderr, "journal_fill: %s\n", err.message);
    return r < 0;
}
