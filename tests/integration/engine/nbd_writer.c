/* SPDX-License-Identifier: Apache-2.0 */
/* Writes over NBD from several connections through kills of the server, and remembers what was acknowledged.
 *
 *   nbd_writer URI RECONNECTS [SEED]
 *
 * Each thread owns a quarter of the export and has at most one request under way. When the connection breaks it connects
 * again (30 s at the most) and reads its part back: each 4 KiB block must hold what was last acknowledged, or, where the
 * request was under way, either that or the new content, whole sectors of 4 KiB. A line "reconnected" is printed when all
 * threads have done so; after RECONNECTS of them and some more writes it flushes and ends. Status 1: something is lost. */
#include <libnbd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4
#define BLOCK 4096u
#define MAX_BLOCKS 16u
#define WRITES_AT_END 500
#define RECONNECT_TRIES 3000 /* of 10 ms */

struct thread {
    pthread_t id;
    const char *uri;
    uint64_t random, first, blocks; /* blocks of the export */
    uint64_t *content;              /* acknowledged, a block: what fills it; 0: zeroes */
    uint64_t pending, pending_at, pending_count;
    char buffer[MAX_BLOCKS * BLOCK];
};
static int rounds;
static pthread_barrier_t all;

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull; /* splitmix64 */
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static struct nbd_handle *connect_to(const char *uri)
{
    for (int i = 0; i < RECONNECT_TRIES; i++) {
        struct nbd_handle *nbd = nbd_create();
        if (nbd && nbd_connect_uri(nbd, uri) == 0)
            return nbd;
        nbd_close(nbd);
        usleep(10000);
    }
    fprintf(stderr, "cannot connect: %s\n", nbd_get_error());
    exit(1);
}

static uint64_t word(uint64_t value, uint64_t block, uint64_t i)
{
    return value ? value * 0x9e3779b97f4a7c15ull + block * 512 + i : 0;
}

static int holds(const char *data, uint64_t value, uint64_t block)
{
    for (uint64_t i = 0; i < BLOCK / 8; i++) {
        uint64_t found;
        memcpy(&found, data + i * 8, 8);
        if (found != word(value, block, i))
            return 0;
    }
    return 1;
}

static void verify(struct thread *t, struct nbd_handle *nbd)
{
    for (uint64_t b = 0; b < t->blocks; b++) {
        uint64_t block = t->first + b;
        if (nbd_pread(nbd, t->buffer, BLOCK, block * BLOCK, 0) < 0) {
            fprintf(stderr, "cannot read back: %s\n", nbd_get_error());
            exit(1);
        }
        int pending = b >= t->pending_at && b < t->pending_at + t->pending_count;
        if (pending && holds(t->buffer, t->pending, block))
            t->content[b] = t->pending;
        else if (!holds(t->buffer, t->content[b], block)) {
            fprintf(stderr, "block %llu does not hold what was acknowledged (%llu)%s\n", (unsigned long long)block,
                    (unsigned long long)t->content[b], pending ? "; it was being written" : "");
            exit(1);
        }
    }
    t->pending_count = 0;
}

static int change(struct thread *t, struct nbd_handle *nbd)
{
    uint64_t count = 1 + next_random(&t->random) % MAX_BLOCKS, at = next_random(&t->random) % (t->blocks - count);
    uint64_t dice = next_random(&t->random), offset = (t->first + at) * BLOCK;
    uint32_t flags = dice % 16 == 0 ? LIBNBD_CMD_FLAG_FUA : 0;
    if (dice / 16 % 16 == 0)
        return nbd_flush(nbd, 0);
    t->pending = dice / 256 % 8 ? next_random(&t->random) | 1 : 0;
    for (uint64_t b = 0; b < count; b++)
        for (uint64_t i = 0; i < BLOCK / 8; i++) {
            uint64_t w = word(t->pending, t->first + at + b, i);
            memcpy(t->buffer + b * BLOCK + i * 8, &w, 8);
        }
    t->pending_at = at;
    t->pending_count = count;
    int r = t->pending            ? nbd_pwrite(nbd, t->buffer, count * BLOCK, offset, flags)
            : dice / 2048 % 2     ? nbd_zero(nbd, count * BLOCK, offset, flags)
                                  : nbd_trim(nbd, count * BLOCK, offset, flags);
    if (r < 0)
        return r;
    for (uint64_t b = 0; b < count; b++)
        t->content[at + b] = t->pending;
    t->pending_count = 0;
    return 0;
}

static void *run(void *context)
{
    struct thread *t = context;
    struct nbd_handle *nbd = connect_to(t->uri);
    for (int round = 0; round < rounds; round++) {
        while (change(t, nbd) == 0)
            ;
        nbd_close(nbd);
        nbd = connect_to(t->uri);
        verify(t, nbd);
        if (pthread_barrier_wait(&all) == PTHREAD_BARRIER_SERIAL_THREAD) {
            puts("reconnected");
            fflush(stdout);
        }
    }
    for (int i = 0; i < WRITES_AT_END; i++)
        if (change(t, nbd) < 0) {
            fprintf(stderr, "%s\n", nbd_get_error());
            exit(1);
        }
    verify(t, nbd);
    if (nbd_flush(nbd, 0) < 0)
        exit(1);
    nbd_shutdown(nbd, 0);
    nbd_close(nbd);
    return NULL;
}

int main(int argc, char **argv)
{
    static struct thread threads[THREADS];
    struct timespec now;
    if (argc < 3)
        return 2;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 0) : (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    rounds = (int)strtol(argv[2], NULL, 10);
    pthread_barrier_init(&all, NULL, THREADS);
    struct nbd_handle *nbd = connect_to(argv[1]);
    uint64_t blocks = (uint64_t)nbd_get_size(nbd) / BLOCK / THREADS;
    nbd_close(nbd);
    for (int i = 0; i < THREADS; i++) {
        threads[i] = (struct thread){.uri = argv[1], .random = seed + (uint64_t)i, .first = blocks * (uint64_t)i, .blocks = blocks,
                                     .content = calloc(blocks, sizeof(uint64_t))};
        pthread_create(&threads[i].id, NULL, run, &threads[i]);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i].id, NULL);
    puts("all is there");
    return 0;
}
