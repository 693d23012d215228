/* SPDX-License-Identifier: Apache-2.0 */
/* Time from asking for a random point of a filled journal to its first 4 KiB, of a random block that had been
 * written:
 *
 *   open_latency --directory DIR [--socket PATH] [--opens 200] [--tail 10000] [--cold]
 *                [--volumes 4] [--volume-bytes N] [--seed S] [--stretch FIRST,RECORDS,EVERY,SEGMENTS]
 *
 * Without --socket this process has the journal open (after --tail more writes, so that a part of it is not
 * sealed yet): journal_pin + image_open + image_read. With --socket another process has it: POST /v1/pin
 * there, the rest here.
 * --stretch: of journal_synth, whose journals have frames in every EVERY-th of SEGMENTS segments of RECORDS
 * records from LSN FIRST on.
 * --cold drops the machine's page cache before each open (root). Prints one JSON object, times in us. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/units.h"
#include "bench_group.h"
#include "lib/http_client.h"
#include "lib/json.h"
#include "view/image.h"

#define MAX_OPENS 100000u
#define PIN_INTERNAL "engine-bench"
#define PIN_SOCKET "v-bench"

enum { STEP_PIN, STEP_OPEN, STEP_READ, STEP_TOTAL, STEPS };
static const char *const step_names[STEPS] = {"pin", "open", "read", "total"};

struct options {
    struct bench_group_options group;
    const char *socket;
    uint64_t opens, tail, seed;
    bool cold;
    uint64_t first, records, every, segments; /* of --stretch; every 0: without */
};

struct run {
    const struct options *o;
    struct journal *journal; /* NULL: by the socket */
    char directory[512];
    char lock_path[600]; /* an unpin removes the lock's file, so each open makes a new one, as `open` does */
    struct lsn oldest, latest;
    uint64_t random;
    double *samples[STEPS];
};

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int drop_caches(struct error *err)
{
    _cleanup_close_ int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "3\n", 2) != 2)
        return error_errno(err, -errno, "dropping the page cache for --cold");
    return 0;
}

static int pin(struct run *r, uint64_t lsn, struct error *err)
{
    if (r->journal)
        return journal_pin(r->journal, PIN_INTERNAL, (struct lsn){lsn}, true, err);
    char point[32];
    snprintf(point, sizeof point, "lsn:%" PRIu64, lsn);
    _cleanup_json_ json_t *body = json_pack("{s:s, s:s}", "pin", PIN_SOCKET, "point", point);
    return http_client_call(r->o->socket, "POST", "/v1/pin", body, 60000, NULL, err);
}

static int unpin(struct run *r, struct error *err)
{
    if (r->journal)
        return journal_unpin(r->journal, PIN_INTERNAL, err);
    _cleanup_json_ json_t *body = json_pack("{s:s}", "pin", PIN_SOCKET);
    return http_client_call(r->o->socket, "POST", "/v1/unpin", body, 60000, NULL, err);
}

static int take_lock(struct run *r, int *ret_fd, struct error *err)
{
    *ret_fd = open(r->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (*ret_fd < 0 || flock(*ret_fd, LOCK_EX) < 0)
        return error_errno(err, -errno, "locking %s", r->lock_path);
    return 0;
}

struct moment {
    uint64_t lsn;
    uint32_t volume;
    uint64_t lba;
};

/* Whether the moment's block was written before it; another image is asked, so that what is measured starts
 * anew. */
static int is_written(struct run *r, const struct moment *m, bool *ret, struct error *err)
{
    _cleanup_close_ int lock = -1;
    _cleanup_free_ struct extent *pieces = NULL;
    struct image *image = NULL;
    size_t count = 0;
    int result = r->journal ? 0 : take_lock(r, &lock, err);
    if (result == 0)
        result = pin(r, m->lsn, err);
    if (result < 0)
        return result;
    result = image_open(r->directory, r->journal ? PIN_INTERNAL : PIN_SOCKET, &image, err);
    if (result == 0)
        result = image_resolve(image, m->volume, m->lba, 8, &pieces, &count, err);
    image_free(image);
    if (result < 0)
        return result;
    *ret = count > 0 && pieces[0].kind == EXTENT_DATA;
    return unpin(r, err);
}

static uint64_t choose_lsn(struct run *r)
{
    const struct options *o = r->o;
    uint64_t oldest = r->oldest.n, latest = r->latest.n;
    if (!o->every)
        return oldest + bench_random(&r->random) % (latest - oldest + 1);
    uint64_t places = (o->segments + o->every - 1) / o->every;
    return o->first + bench_random(&r->random) % places * o->every * o->records +
           bench_random(&r->random) % o->records;
}

/* A random LSN, and a block that was written before it: a read of what was never written has nothing to find.
 */
static int choose(struct run *r, struct moment *ret, struct error *err)
{
    const struct bench_group_options *g = &r->o->group;
    bool written = false;
    int result = 0;
    while (result == 0 && !written) {
        uint64_t lsn = choose_lsn(r);
        *ret = (struct moment){.lsn = lsn < g->volume_count ? g->volume_count
                                                            : lsn, /* before all volumes were there */
                               .volume = 1 + (uint32_t)(bench_random(&r->random) % g->volume_count),
                               .lba = bench_random(&r->random) % (g->volume_bytes / 4096) * 8};
        result = is_written(r, ret, &written, err);
    }
    if (result == 0 && r->o->cold)
        result = drop_caches(err);
    return result;
}

static int open_once(struct run *r, uint64_t i, void *data, struct error *err)
{
    _cleanup_close_ int lock = -1;
    struct image *image = NULL;
    struct moment m;
    int result = choose(r, &m, err);
    if (result < 0)
        return error_context(err, "choosing a block");
    double start = now_us();
    if (!r->journal)
        result = take_lock(r, &lock, err);
    if (result == 0)
        result = pin(r, m.lsn, err);
    double pinned = now_us(), opened = pinned, done = pinned;
    if (result == 0) {
        result = image_open(r->directory, r->journal ? PIN_INTERNAL : PIN_SOCKET, &image, err);
        opened = now_us();
    }
    if (result == 0) {
        result = image_read(image, m.volume, m.lba, 8, data, err);
        done = now_us();
    }
    image_free(image);
    if (result < 0)
        return error_context(err, "LSN %" PRIu64, m.lsn);
    const double times[STEPS] = {pinned - start, opened - pinned, done - opened, done - start};
    for (int s = 0; s < STEPS; s++)
        r->samples[s][i] = times[s];
    return unpin(r, err);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print(struct run *r, const struct journal_status *s)
{
    uint64_t n = r->o->opens;
    printf("{\"opens\": %" PRIu64 ", \"lsn\": %" PRIu64 ", \"oldest_lsn\": %" PRIu64, n, r->latest.n,
           r->oldest.n);
    if (s)
        printf(", \"journal_bytes\": %" PRIu64 ", \"segments\": %" PRIu64 ", \"runs\": %" PRIu64,
               s->journal_bytes, s->segments, s->runs);
    for (int i = 0; i < STEPS; i++) {
        double *x = r->samples[i];
        qsort(x, n, sizeof *x, compare);
        printf(", \"%s_us\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}", step_names[i],
               x[(n + 1) / 2 - 1], x[(n * 99 + 99) / 100 - 1], x[n - 1]); /* nearest rank */
    }
    printf("}\n");
}

static int measure(struct run *r, struct error *err)
{
    int result = 0;
    void *data = io_alloc_pages(4096);
    r->random = bench_seed(r->o->seed, 0);
    if (!data)
        return error_set(err, -ENOMEM, "no memory");
    for (int s = 0; s < STEPS; s++)
        if (!(r->samples[s] = calloc(r->o->opens, sizeof(double))))
            result = error_set(err, -ENOMEM, "no memory for %" PRIu64 " samples", r->o->opens);
    for (uint64_t i = 0; result == 0 && i < r->o->opens; i++)
        result = open_once(r, i, data, err);
    io_free_pages(data, 4096);
    return result;
}

/* This process has the journal. */
static int run_inside(struct run *r, struct error *err)
{
    struct bench_group b;
    struct journal_status s;
    int result = bench_group_open(&r->o->group, &b, err);
    if (result < 0)
        return result;
    if (r->o->tail)
        result = bench_group_write(&b, r->o->tail, 32, r->o->seed + 77, err);
    if (result == 0)
        result = journal_sync(b.journal, -1, NULL, err);
    journal_status(b.journal, &s);
    r->journal = b.journal;
    r->oldest = s.oldest;
    r->latest = s.latest;
    if (result == 0)
        result = measure(r, err);
    if (result == 0)
        print(r, &s);
    struct error closing = ERROR_INIT;
    int closed = bench_group_close(&b, &closing);
    if (result == 0 && closed < 0)
        *err = closing;
    return result < 0 ? result : closed;
}

/* The process behind the socket has it. */
static int run_outside(struct run *r, struct error *err)
{
    _cleanup_json_ json_t *status = NULL;
    char path[600];
    snprintf(path, sizeof path, "%s/pins", r->directory);
    int result = io_mkdirs(path, 0700, err);
    snprintf(r->lock_path, sizeof r->lock_path, "%s/pins/" PIN_SOCKET ".lock", r->directory);
    if (result == 0)
        result = http_client_call(r->o->socket, "GET", "/v1/status", NULL, 10000, &status, err);
    if (result == 0)
        result = json_get_u64(status, "lsn", &r->latest.n, err);
    if (result == 0)
        result = json_get_u64(status, "oldest_lsn", &r->oldest.n, err);
    if (result == 0)
        result = measure(r, err);
    if (result == 0)
        print(r, NULL);
    return result;
}

static int parse_stretch(const char *text, struct options *ret, struct error *err)
{
    char end;
    if (sscanf(text, "%" SCNu64 ",%" SCNu64 ",%" SCNu64 ",%" SCNu64 "%c", &ret->first, &ret->records,
               &ret->every, &ret->segments, &end) != 4 ||
        !ret->first || !ret->records || !ret->every || !ret->segments)
        return error_set(err, -EINVAL,
                         "--stretch %s: expected FIRST,RECORDS,EVERY,SEGMENTS, as journal_synth prints it",
                         text);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {{"directory", required_argument, NULL, 'd'},
                                                 {"socket", required_argument, NULL, 'k'},
                                                 {"opens", required_argument, NULL, 'n'},
                                                 {"tail", required_argument, NULL, 't'},
                                                 {"volumes", required_argument, NULL, 'v'},
                                                 {"volume-bytes", required_argument, NULL, 'b'},
                                                 {"seed", required_argument, NULL, 's'},
                                                 {"stretch", required_argument, NULL, 'e'},
                                                 {"cold", no_argument, NULL, 'c'},
                                                 {0}};
    struct error err = ERROR_INIT;
    struct options o = {.group = {.volume_bytes = 1ull << 30, .volume_count = 4, .ack = GROUP_ACK_FLUSH},
                        .opens = 200,
                        .seed = 1};
    uint64_t volumes = 4;
    int option, r = 0;
    while (r == 0 && (option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option == 'd')
            o.group.directory = optarg;
        else if (option == 'k')
            o.socket = optarg;
        else if (option == 'n')
            r = units_parse_u64(optarg, MAX_OPENS, &o.opens, &err);
        else if (option == 't')
            r = units_parse_u64(optarg, UINT64_MAX, &o.tail, &err);
        else if (option == 'v')
            r = units_parse_u64(optarg, GROUP_MAX_VOLUMES, &volumes, &err);
        else if (option == 'b')
            r = units_parse_u64(optarg, 1ull << 50, &o.group.volume_bytes, &err);
        else if (option == 's')
            r = units_parse_u64(optarg, UINT64_MAX, &o.seed, &err);
        else if (option == 'e')
            r = parse_stretch(optarg, &o, &err);
        else if (option == 'c')
            o.cold = true;
        else
            return 2;
    }
    if (r == 0 &&
        (!o.group.directory || !o.opens || !volumes || o.group.volume_bytes < 4096 || optind != argc))
        r = error_set(&err, -EINVAL,
                      "usage: open_latency --directory DIR [--socket PATH] [--opens N] [--tail N] [--cold] "
                      "[--volumes N] [--volume-bytes N] [--seed N]");
    o.group.volume_count = (unsigned)volumes;
    struct run run = {.o = &o};
    if (r == 0) {
        snprintf(run.directory, sizeof run.directory, "%s/journal", o.group.directory);
        r = o.socket ? run_outside(&run, &err) : run_inside(&run, &err);
    }
    for (int s = 0; s < STEPS; s++)
        free(run.samples[s]);
    if (r < 0)
        fprintf(stderr, "open_latency: %s\n", err.message);
    return r < 0;
}
