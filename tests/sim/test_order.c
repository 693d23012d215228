/* SPDX-License-Identifier: Apache-2.0 */
/* Order and consistency under threads.
 *
 *   test_order counters|stress write|flush     (how long: $TIDEMARK_SECONDS, 6 by default)
 *
 * counters: J2. One thread writes k to volume A, another writes to B whatever k was acknowledged on A: no point, opened
 * while they run or afterwards, nor after a kill, may show B > A.
 * Both writers go by a queue (block/queue.h) half of the time.
 * stress: eight threads write, zero, discard and flush overlapping ranges of three volumes, two more have many writes and
 * flushes under way in a queue, while others seal, merge, drop
 * history, rewind and read pinned points. J4: whenever everybody stands still, live = image(latest). J5: a pinned point
 * reads the same as long as it is pinned. J8: a rewind makes live what the point was. Meant for TSan too. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "block/queue.h"
#include "check_key.h"
#include "journal/journal.h"
#include "view/image.h"
#include "volume/group.h"

#define MAX_VOLUMES 3
#define WRITERS 8
#define QUEUERS 2
#define DEPTH 12u /* of a queue */
#define COUNTERS 16 /* places of the counter in each volume, one after the other */

struct setup {
    char directory[64], ring[64];
    enum group_ack ack;
    struct journal *journal;
    struct group *group;
    int volumes;
    uint64_t sizes[MAX_VOLUMES];
    uint64_t seed;
    time_t end;
    atomic_bool stop;
    _Atomic uint64_t acknowledged, written; /* counters */
    pthread_rwlock_t quiet;                 /* a writer holds it shared for one operation */
    pthread_mutex_t reshape;                /* one rewind or comparison at a time */
    atomic_uint queues, operations, points, rewinds, drops, comparisons;
};

static void die(struct setup *s, const char *what, const char *message)
{
    fprintf(stderr, "FAILED (TIDEMARK_SEED=%llu): %s: %s\n", (unsigned long long)s->seed, what, message);
    _exit(1);
}
#define OK(s, call)                                                                                                    \
    do {                                                                                                               \
        if ((call) < 0)                                                                                                \
            die(s, #call, err.message);                                                                                \
    } while (0)

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull; /* splitmix64 */
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static bool running(struct setup *s)
{
    if (time(NULL) >= s->end)
        atomic_store(&s->stop, true);
    return !atomic_load(&s->stop);
}

static void open_all(struct setup *s)
{
    struct error err = ERROR_INIT;
    struct journal_options options = {.directory = s->directory, .key_file = check_key_file(),
                                      .segment_blocks = 1024,
                                      .segment_records = 256,
                                      .fanout = 3,
                                      .ring_path = s->ring,
                                      .owner = "test_order"};
    OK(s, journal_open(&options, &s->journal, &err));
    OK(s, group_new(s->journal, s->ack, NULL, &s->group, &err));
    for (int i = 0; i < s->volumes; i++) {
        char name[16], path[96];
        snprintf(name, sizeof name, "v%d", i);
        snprintf(path, sizeof path, "%s/v%d.img", s->directory, i);
        OK(s, group_add_volume(s->group, name, s->sizes[i], path, &err));
    }
    OK(s, group_start(s->group, &err));
}

static struct lsn latest(struct setup *s)
{
    struct journal_status status;
    journal_status(s->journal, &status);
    return status.latest;
}

/* A point of history, chosen at random; 0 if there is none yet. */
static struct lsn any_point(struct setup *s, uint64_t *random)
{
    struct journal_status status;
    journal_status(s->journal, &status);
    if (status.latest.n <= status.oldest.n)
        return status.latest;
    return (struct lsn){status.oldest.n + next_random(random) % (status.latest.n - status.oldest.n + 1)};
}

/* Pins `lsn` and opens its image; false if it was dropped meanwhile. */
static bool open_point(struct setup *s, const char *pin, struct lsn lsn, struct image **ret)
{
    struct error err = ERROR_INIT;
    int r = journal_pin(s->journal, pin, lsn, true, &err);
    if (r == -ERANGE)
        return false;
    OK(s, r);
    OK(s, image_open(s->directory, pin, ret, &err));
    return true;
}

static void close_point(struct setup *s, const char *pin, struct image *image)
{
    struct error err = ERROR_INIT;
    image_free(image);
    OK(s, journal_unpin(s->journal, pin, &err));
    atomic_fetch_add(&s->points, 1);
}

/* ---- queues ---- */

struct queued {
    struct setup *s;
    struct block *block;
    struct block_queue *queue;
};

static struct queued queue_new(struct setup *s, size_t volume)
{
    struct error err = ERROR_INIT;
    struct queued q = {.s = s, .block = group_volume_block(s->group, volume)};
    OK(s, block_queue_new(q.block, DEPTH, &q.queue, &err));
    return q;
}

static void check_durable(struct setup *s, uint64_t lsn)
{
    struct journal_status status;
    journal_status(s->journal, &status);
    if (status.durable.n < lsn)
        die(s, "J3", "a flush was answered before the journal had durable what came before it");
}

/* Looks for requests that have ended, asleep until there is one. */
static void queue_wait(struct queued *q)
{
    struct error err = ERROR_INIT;
    struct pollfd fds[BLOCK_QUEUE_MAX_FDS];
    unsigned count = block_queue_prepare_sleep(q->queue, fds);
    struct block_request *done = block_queue_poll(q->queue);
    if (!done && poll(fds, count, 120000) == 0)
        die(q->s, "queue", "nothing wakes it within two minutes");
    for (; done; done = done->next) {
        int r = done->outcome == BLOCK_STEP_BLOCKS ? block_finish(q->block, done, &err) : done->outcome;
        OK(q->s, r);
        if (r == BLOCK_STEP_AGAIN && done->op == BLOCK_OP_FLUSH)
            OK(q->s, block_flush(q->block, &err));
        else if (r == BLOCK_STEP_AGAIN)
            OK(q->s, block_pwrite(q->block, done->data, done->length_bytes, done->offset_bytes, done->flags, &err));
        if (r == BLOCK_STEP_DONE && (done->op == BLOCK_OP_FLUSH || done->flags & BLOCK_FUA))
            check_durable(q->s, (uint64_t)(uintptr_t)done->context);
    }
}

static void queue_drain(struct queued *q)
{
    while (block_queue_busy(q->queue))
        queue_wait(q);
}

/* Begins it, or does it the blocking way, which may wait for what this thread has under way. */
static void queue_write(struct queued *q, struct block_request *r, void *data, size_t bytes, uint64_t offset, unsigned flags)
{
    struct error err = ERROR_INIT;
    *r = (struct block_request){.op = BLOCK_OP_WRITE, .flags = flags, .data = data, .length_bytes = bytes, .offset_bytes = offset};
    if (block_queue_start(q->queue, r) == 0)
        return;
    queue_drain(q);
    OK(q->s, block_pwrite(q->block, data, bytes, offset, flags, &err));
}

/* What the journal has written by now, it is to have durable when the flush is answered (J3). */
static void queue_flush(struct queued *q, struct block_request *r)
{
    struct error err = ERROR_INIT;
    *r = (struct block_request){.op = BLOCK_OP_FLUSH, .context = (void *)(uintptr_t)latest(q->s).n};
    if (block_queue_start(q->queue, r) == 0)
        return;
    queue_drain(q);
    OK(q->s, block_flush(q->block, &err));
}

/* ---- counters (J2) ---- */

static void *count_on_a(void *context)
{
    struct setup *s = context;
    struct error err = ERROR_INIT;
    uint64_t block[512] __attribute__((aligned(4096))) = {0};
    struct queued q = queue_new(s, 0);
    struct block_request request;
    for (uint64_t k = 1; running(s); k++) {
        block[0] = k;
        if (k / 64 % 2)
            OK(s, block_pwrite(q.block, block, sizeof block, k % COUNTERS * 4096, 0, &err));
        else
            queue_write(&q, &request, block, sizeof block, k % COUNTERS * 4096, 0);
        queue_drain(&q);
        atomic_store(&s->acknowledged, k);
        atomic_fetch_add(&s->operations, 1);
    }
    block_queue_free(q.queue);
    return NULL;
}

static void *count_on_b(void *context)
{
    struct setup *s = context;
    struct error err = ERROR_INIT;
    unsigned number = atomic_fetch_add(&s->queues, 1); /* a volume has one queue: the first thread's */
    uint64_t block[512] __attribute__((aligned(4096))) = {0}, random = s->seed + 10 + number;
    struct queued q = number == 0 ? queue_new(s, 1) : (struct queued){.block = group_volume_block(s->group, 1)};
    struct block_request request;
    while (running(s)) {
        uint64_t k = atomic_load(&s->acknowledged);
        block[0] = k;
        if (q.queue && next_random(&random) % 2)
            queue_write(&q, &request, block, sizeof block, k % COUNTERS * 4096, next_random(&random) % 8 ? 0 : BLOCK_FUA);
        else
            OK(s, block_pwrite(q.block, block, sizeof block, k % COUNTERS * 4096, next_random(&random) % 8 ? 0 : BLOCK_FUA, &err));
        if (q.queue)
            queue_drain(&q);
    }
    block_queue_free(q.queue);
    return NULL;
}

static uint64_t greatest(const uint64_t *counters)
{
    uint64_t max = 0;
    for (int i = 0; i < COUNTERS; i++)
        if (counters[i * 512] > max)
            max = counters[i * 512];
    return max;
}

static void check_counters(struct setup *s, const char *pin, struct lsn lsn)
{
    struct error err = ERROR_INIT;
    struct image *image;
    if (!open_point(s, pin, lsn, &image))
        return;
    uint64_t *a = malloc(COUNTERS * 4096), *b = malloc(COUNTERS * 4096);
    OK(s, image_read(image, 1, 0, COUNTERS * 8, a, &err));
    OK(s, image_read(image, 2, 0, COUNTERS * 8, b, &err));
    close_point(s, pin, image);
    if (greatest(b) > greatest(a)) {
        char text[128];
        snprintf(text, sizeof text, "at LSN %llu volume A is at %llu and B at %llu", (unsigned long long)lsn.n,
                 (unsigned long long)greatest(a), (unsigned long long)greatest(b));
        die(s, "J2", text);
    }
    free(a);
    free(b);
}

static void *look_at_counters(void *context)
{
    struct setup *s = context;
    uint64_t random = s->seed + 2;
    while (running(s))
        check_counters(s, "engine-look", any_point(s, &random));
    return NULL;
}

static void run_counters(struct setup *s)
{
    static uint64_t a[COUNTERS * 512], b[COUNTERS * 512];
    struct error err = ERROR_INIT;
    pthread_t threads[4];
    uint64_t random = s->seed + 3;
    s->volumes = 2;
    s->sizes[0] = s->sizes[1] = COUNTERS * 4096;
    open_all(s);
    pthread_create(&threads[0], NULL, count_on_a, s);
    pthread_create(&threads[1], NULL, count_on_b, s);
    pthread_create(&threads[2], NULL, count_on_b, s);
    pthread_create(&threads[3], NULL, look_at_counters, s);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 50; i++)
        check_counters(s, "engine-after", any_point(s, &random));
    group_abandon(s->group); /* a kill: nothing that was acknowledged is lost */
    journal_abandon(s->journal);
    open_all(s);
    OK(s, journal_sync(s->journal, -1, NULL, &err));
    OK(s, block_pread(group_volume_block(s->group, 0), a, sizeof a, 0, &err));
    OK(s, block_pread(group_volume_block(s->group, 1), b, sizeof b, 0, &err));
    if (greatest(a) < atomic_load(&s->acknowledged))
        die(s, "J3", "an acknowledged write is lost by a kill");
    if (greatest(b) > greatest(a))
        die(s, "J2", "after a kill B is greater than A");
    for (int i = 0; i < 50; i++)
        check_counters(s, "engine-after", i ? any_point(s, &random) : latest(s));
}

/* ---- stress (J4, J5, J8) ---- */

static void *write_at_random(void *context)
{
    struct setup *s = context;
    struct error err = ERROR_INIT;
    uint64_t random = s->seed + 100 + atomic_fetch_add(&s->written, 1);
    uint64_t *data = io_alloc_pages(256 * 1024);
    while (data && running(s)) {
        uint64_t volume = next_random(&random) % 3, sectors = s->sizes[volume] / 512, lba, length;
        if (next_random(&random) % 16 == 0)
            length = 1 + next_random(&random) % 512;
        else
            length = 1 + next_random(&random) % 24;
        lba = next_random(&random) % (next_random(&random) % 2 ? 256 : sectors); /* half of it in one hot place */
        if (next_random(&random) % 4) {
            lba = lba / 8 * 8;
            length = (length + 7) / 8 * 8;
        }
        if (lba + length > sectors)
            length = sectors - lba;
        uint64_t offset = lba * 512, bytes = length * 512;
        unsigned flags = next_random(&random) % 16 ? 0 : BLOCK_FUA;
        struct block *b = group_volume_block(s->group, volume);
        pthread_rwlock_rdlock(&s->quiet);
        switch (next_random(&random) % 16) {
        case 0:
            OK(s, block_discard(b, bytes, offset, flags, &err));
            break;
        case 1:
            OK(s, block_zero(b, bytes, offset, flags, &err));
            break;
        case 2:
            OK(s, block_flush(b, &err));
            break;
        case 3:
            OK(s, block_pread(b, data, bytes, offset, &err));
            break;
        default:
            for (uint64_t i = 0, word = next_random(&random); i < bytes / 8; i++)
                data[i] = word + i;
            OK(s, block_pwrite(b, data, bytes, offset, flags, &err));
        }
        pthread_rwlock_unlock(&s->quiet);
        atomic_fetch_add(&s->operations, 1);
        if (next_random(&random) % 64 == 0)
            usleep(200); /* lets those who wait for quiet in */
    }
    io_free_pages(data, 256 * 1024);
    return NULL;
}

/* Many requests at a time, overlapping ones among them. */
static void *queue_at_random(void *context)
{
    struct setup *s = context;
    uint64_t volume = atomic_fetch_add(&s->queues, 1), random = s->seed + 700 + volume; /* a volume has one queue */
    struct queued q = queue_new(s, volume);
    struct block_request requests[DEPTH];
    char *data = io_alloc_pages(DEPTH * 65536);
    while (data && running(s)) {
        pthread_rwlock_rdlock(&s->quiet);
        for (unsigned i = 0; i < DEPTH; i++) {
            uint64_t pages = s->sizes[volume] / 4096, length = 1 + next_random(&random) % 8;
            uint64_t page = next_random(&random) % (next_random(&random) % 2 ? 32 : pages);
            if (page + length > pages)
                length = pages - page;
            for (uint64_t k = 0, word = next_random(&random); k < length * 512; k++)
                ((uint64_t *)(void *)(data + i * 65536))[k] = word + k;
            uint64_t kind = next_random(&random) % 16;
            if (kind < 2)
                queue_flush(&q, &requests[i]);
            else
                queue_write(&q, &requests[i], data + i * 65536, length * 4096, page * 4096, kind == 2 ? BLOCK_FUA : 0);
            atomic_fetch_add(&s->operations, 1);
        }
        queue_drain(&q);
        pthread_rwlock_unlock(&s->quiet);
    }
    block_queue_free(q.queue);
    io_free_pages(data, DEPTH * 65536);
    return NULL;
}

static void read_live(struct setup *s, int volume, char *data)
{
    struct error err = ERROR_INIT;
    OK(s, block_pread(group_volume_block(s->group, (size_t)volume), data, s->sizes[volume], 0, &err));
}

/* The image's volume in pieces of different length. */
static void read_image(struct setup *s, struct image *image, int volume, char *data, uint64_t *random)
{
    struct error err = ERROR_INIT;
    for (uint64_t at = 0; at < s->sizes[volume];) {
        uint64_t part = 512 * (1 + next_random(random) % 700);
        if (part > s->sizes[volume] - at)
            part = s->sizes[volume] - at;
        OK(s, image_read(image, (uint32_t)volume + 1, at / 512, (uint32_t)(part / 512), data + at, &err));
        at += part;
    }
}

/* With everybody still: live = image(lsn). */
static void compare(struct setup *s, const char *name, struct lsn lsn, const char *pin, uint64_t *random)
{
    struct image *image;
    if (!open_point(s, pin, lsn, &image))
        return;
    for (int v = 0; v < s->volumes; v++) {
        char *a = malloc(s->sizes[v]), *b = malloc(s->sizes[v]);
        read_live(s, v, a);
        read_image(s, image, v, b, random);
        bool differ = memcmp(a, b, s->sizes[v]) != 0;
        for (uint64_t i = 0; differ && i < s->sizes[v]; i++)
            if (a[i] != b[i]) {
                char text[160];
                snprintf(text, sizeof text, "v%d differs from image(%llu) at byte %llu", v, (unsigned long long)lsn.n,
                         (unsigned long long)i);
                die(s, name, text);
            }
        free(a);
        free(b);
    }
    close_point(s, pin, image);
    atomic_fetch_add(&s->comparisons, 1);
}

static void *compare_at_times(void *context)
{
    struct setup *s = context;
    struct error err = ERROR_INIT;
    uint64_t random = s->seed + 200;
    while (running(s)) {
        usleep(50000 + (useconds_t)(next_random(&random) % 100000));
        pthread_mutex_lock(&s->reshape);
        pthread_rwlock_wrlock(&s->quiet);
        if (next_random(&random) % 2)
            OK(s, journal_seal(s->journal, &err));
        OK(s, journal_sync(s->journal, -1, NULL, &err));
        compare(s, "J4", latest(s), "engine-quiet", &random);
        pthread_rwlock_unlock(&s->quiet);
        pthread_mutex_unlock(&s->reshape);
    }
    return NULL;
}

static void *maintain(void *context)
{
    struct setup *s = context;
    struct error err = ERROR_INIT;
    uint64_t random = s->seed + 300;
    while (running(s)) {
        usleep(20000);
        switch (next_random(&random) % 4) {
        case 0:
            OK(s, journal_seal(s->journal, &err));
            break;
        case 1: {
            struct journal_status status;
            journal_status(s->journal, &status);
            OK(s, journal_drop(s->journal,
                               (struct lsn){status.oldest.n + (status.latest.n - status.oldest.n) / (2 + next_random(&random) % 8)},
                               &err));
            atomic_fetch_add(&s->drops, 1);
            break;
        }
        default:
            OK(s, journal_maintain(s->journal, &err));
        }
    }
    return NULL;
}

/* Rewinds while writers run, or (J8) with everybody still, and compares. */
static void *rewind_at_times(void *context)
{
    struct setup *s = context;
    struct error err = ERROR_INIT;
    uint64_t random = s->seed + 400;
    while (running(s)) {
        usleep(150000 + (useconds_t)(next_random(&random) % 150000));
        struct group_change change;
        struct lsn target = any_point(s, &random);
        bool quiet = next_random(&random) % 2;
        pthread_mutex_lock(&s->reshape);
        if (quiet)
            pthread_rwlock_wrlock(&s->quiet);
        int r = group_rewind(s->group, target, false, &change, &err);
        if (r == 0) {
            atomic_fetch_add(&s->rewinds, 1);
            free(change.volumes);
            if (quiet) {
                compare(s, "J8", target, "engine-target", &random);
                compare(s, "J8 (the rewind's own point)", change.lsn, "engine-rewound", &random);
            }
        } else if (r != -ERANGE) {
            OK(s, r);
        }
        if (quiet)
            pthread_rwlock_unlock(&s->quiet);
        pthread_mutex_unlock(&s->reshape);
        if (next_random(&random) % 2)
            group_settle(s->group);
    }
    return NULL;
}

/* J5: what is pinned stays what it is. */
static void *read_pinned(void *context)
{
    struct setup *s = context;
    uint64_t random = s->seed + 500 + atomic_fetch_add(&s->acknowledged, 1);
    char pin[24];
    snprintf(pin, sizeof pin, "engine-pin-%llu", (unsigned long long)(random % 100));
    while (running(s)) {
        struct image *image;
        uint32_t first[MAX_VOLUMES] = {0};
        if (!open_point(s, pin, any_point(s, &random), &image))
            continue;
        for (int round = 0; round < 3; round++)
            for (int v = 0; v < s->volumes; v++) {
                char *data = malloc(s->sizes[v]);
                read_image(s, image, v, data, &random);
                uint32_t crc = crc32c(0, data, s->sizes[v]);
                if (round && crc != first[v])
                    die(s, "J5", "a pinned point does not read the same twice");
                first[v] = crc;
                free(data);
            }
        close_point(s, pin, image);
    }
    return NULL;
}

static void run_stress(struct setup *s)
{
    struct error err = ERROR_INIT;
    pthread_t threads[WRITERS + QUEUERS + 5];
    void *(*others[])(void *) = {compare_at_times, maintain, rewind_at_times, read_pinned, read_pinned, queue_at_random, queue_at_random};
    uint64_t random = s->seed + 600;
    s->volumes = 3;
    s->sizes[0] = 2 << 20;
    s->sizes[1] = (1 << 20) + 4096;
    s->sizes[2] = 256 << 10;
    open_all(s);
    for (int i = 0; i < WRITERS + QUEUERS + 5; i++)
        pthread_create(&threads[i], NULL, i < WRITERS ? write_at_random : others[i - WRITERS], s);
    for (int i = 0; i < WRITERS + QUEUERS + 5; i++)
        pthread_join(threads[i], NULL);
    OK(s, journal_sync(s->journal, -1, NULL, &err));
    compare(s, "J4 at the end", latest(s), "engine-end", &random);
    group_abandon(s->group);
    journal_abandon(s->journal);
    open_all(s);
    group_settle(s->group);
    OK(s, journal_sync(s->journal, -1, NULL, &err));
    compare(s, "J4 after a kill", latest(s), "engine-end", &random);
    OK(s, journal_maintain(s->journal, &err));
    compare(s, "J5 after merging", latest(s), "engine-end", &random);
}

int main(int argc, char **argv)
{
    struct setup s = {.quiet = PTHREAD_RWLOCK_INITIALIZER, .reshape = PTHREAD_MUTEX_INITIALIZER};
    struct error err = ERROR_INIT;
    struct timespec now;
    char template[] = "/dev/shm/tidemark-order-XXXXXX";
    const char *seed = getenv("TIDEMARK_SEED"), *seconds = getenv("TIDEMARK_SECONDS");
    if (argc != 3) {
        fprintf(stderr, "usage: test_order counters|stress write|flush\n");
        return 2;
    }
    pthread_rwlockattr_t fair; /* whoever waits for quiet gets it */
    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&s.quiet, &fair);
    clock_gettime(CLOCK_REALTIME, &now);
    s.seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec;
    printf("TIDEMARK_SEED=%llu\n", (unsigned long long)s.seed);
    fflush(stdout);
    s.ack = strcmp(argv[2], "flush") == 0 ? GROUP_ACK_FLUSH : GROUP_ACK_WRITE;
    s.end = now.tv_sec + (seconds ? strtol(seconds, NULL, 10) : 6);
    snprintf(s.directory, sizeof s.directory, "%s", mkdtemp(template));
    snprintf(s.ring, sizeof s.ring, "%s.ring", s.directory);
    if (strcmp(argv[1], "counters") == 0)
        run_counters(&s);
    else
        run_stress(&s);
    group_free(s.group);
    OK(&s, journal_close(s.journal, &err));
    OK(&s, io_remove_tree(s.directory, &err));
    printf("%u operations, %u points read, %u comparisons, %u rewinds, %u drops\n", s.operations, s.points, s.comparisons,
           s.rewinds, s.drops);
    return 0;
}
