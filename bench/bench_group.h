/* SPDX-License-Identifier: Apache-2.0 */
/* What the benchmark programs share: a journal with a group of equal volumes v0, v1 ..., and random 4 KiB writes to it. */
#ifndef TIDEMARK_BENCH_BENCH_GROUP_H
#define TIDEMARK_BENCH_BENCH_GROUP_H

#include "journal/journal.h"
#include "volume/group.h"

struct bench_group_options {
    const char *directory; /* holds journal/ and backing/vN.img */
    uint64_t volume_bytes;
    unsigned volume_count;
    enum group_ack ack;
};
struct bench_group {
    struct bench_group_options options;
    struct journal *journal;
    struct group *group;
};

/* Opens or creates everything. */
int bench_group_open(const struct bench_group_options *options, struct bench_group *ret, struct error *err) MUST_CHECK;
/* Flushes, and closes as a clean stop of the engine does. */
int bench_group_close(struct bench_group *b, struct error *err) MUST_CHECK;
/* Makes `count` random 4 KiB writes from `thread_count` threads at a time. */
int bench_group_write(struct bench_group *b, uint64_t count, unsigned thread_count, uint64_t seed, struct error *err) MUST_CHECK;

/* xorshift64; *state is not 0. */
uint64_t bench_random(uint64_t *state);
/* The state of generator number `stream` of `seed`. */
uint64_t bench_seed(uint64_t seed, uint64_t stream);

#endif
