/* SPDX-License-Identifier: Apache-2.0 */
/* Trouble with the journal's disk, at every step once: EIO, ENOSPC or EDQUOT, for one call or for a while.
 *
 * Mode `availability`: no write of the application fails; journaling comes back without a restart when the disk is well
 * again; what is a point then reads right (J1), what was not journaled is refused, and the live volume is image(latest)
 * (J4), also after a kill at the end. Mode `protection`: writes wait, and none goes unjournaled.
 *
 *   test_fault [availability|protection]     $TIDEMARK_SEED; $TIDEMARK_FAULT=n: only the nth call; all: each call, else
 *                                            every third, or with a sanitizer every ninth */
#include "check.h"
#include "check_key.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "journal/journal.h"
#include "view/image.h"
#include "volume/group.h"

#define VOLUMES 2
#define SIZE_BYTES (192u * 1024)
#define OPERATIONS 90
#define HEAL_AFTER 12 /* operations */
#ifdef TIDEMARK_SANITIZED
#define STRIDE 9 /* of the calls that are made to fail */
#else
#define STRIDE 3
#endif

struct moment {
    uint64_t lsn;
    char *data;
};
static struct stand {
    char directory[64], ring[96];
    bool holds;
    struct journal *journal;
    struct group *group;
    char live[VOLUMES * SIZE_BYTES];
    struct moment points[OPERATIONS];
    size_t point_count;
    uint64_t random;
    atomic_int calls, fail_at, fail_calls; /* the first call that fails, and how many do */
    int code;
    _Atomic(const char *) step; /* that failed */
} x;
static struct error err;
static uint64_t seed;

static int inject(void *context, const char *step)
{
    (void)context;
    int call = atomic_fetch_add(&x.calls, 1) + 1;
    if (call < x.fail_at || call >= x.fail_at + x.fail_calls)
        return 0;
    x.step = step;
    return x.code;
}

static void open_all(void)
{
    struct journal_options o = {.directory = x.directory, .key_file = check_key_file(), .segment_blocks = 96, .segment_records = 24, .fanout = 2,
                                .ring_path = x.ring, .owner = "test_fault", .fault = inject};
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
    group_set_holds(x.group, x.holds);
    for (int i = 0; i < VOLUMES; i++) {
        char name[8], path[96];
        snprintf(name, sizeof name, "v%d", i);
        snprintf(path, sizeof path, "%s.v%d.img", x.directory, i);
        check_ok(group_add_volume(x.group, name, SIZE_BYTES, path, &err));
    }
    check_ok(group_start(x.group, &err));
}

static bool is_protected(void)
{
    struct group_status g;
    struct journal_status s;
    group_status(x.group, &g);
    journal_status(x.journal, &s);
    return !g.resyncing && !s.suspended;
}

static void remember(void)
{
    struct journal_status s;
    journal_status(x.journal, &s);
    if (!is_protected() || (x.point_count && x.points[x.point_count - 1].lsn >= s.latest.n))
        return;
    struct moment *p = &x.points[x.point_count++];
    p->lsn = s.latest.n;
    p->data = malloc(sizeof x.live);
    memcpy(p->data, x.live, sizeof x.live);
}

/* One write, zero, discard or flush, which never fails. */
static void operate(const char *what)
{
    size_t volume = check_random(&x.random) % VOLUMES;
    uint64_t sectors = SIZE_BYTES / 512, lba = check_random(&x.random) % sectors, length = 1 + check_random(&x.random) % 24;
    struct block *b = group_volume_block(x.group, volume);
    length = lba + length > sectors ? sectors - lba : length;
    char *model = x.live + volume * SIZE_BYTES + lba * 512;
    int r;
    switch (check_random(&x.random) % 10) {
    case 0:
        memset(model, 0, length * 512);
        r = block_discard(b, length * 512, lba * 512, 0, &err);
        break;
    case 1:
        memset(model, 0, length * 512);
        r = block_zero(b, length * 512, lba * 512, 0, &err);
        break;
    case 2:
        r = block_flush(b, &err);
        break;
    default:
        for (size_t i = 0; i < length * 512; i += 8) {
            uint64_t word = check_random(&x.random);
            memcpy(model + i, &word, 8);
        }
        r = block_pwrite(b, model, length * 512, lba * 512, 0, &err);
    }
    if (r < 0)
        fail_msg("%s: the application's write failed: %s", what, err.message);
}

static void check_live(const char *what)
{
    static char data[SIZE_BYTES];
    for (size_t i = 0; i < VOLUMES; i++) {
        check_ok(block_pread(group_volume_block(x.group, i), data, SIZE_BYTES, 0, &err));
        if (memcmp(data, x.live + i * SIZE_BYTES, SIZE_BYTES) != 0)
            fail_msg("%s: the live volume is not what was written", what);
    }
}

static bool image_is(uint64_t lsn, const char *model, const char *what)
{
    struct image *image;
    static char data[SIZE_BYTES] __attribute__((aligned(4096)));
    struct journal_point found;
    int r = journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = {lsn}}, &found, &err);
    if (r == -ERANGE)
        return false;
    if (r == 0)
        r = journal_pin(x.journal, "engine-look", (struct lsn){lsn}, true, &err);
    if (r == -ERANGE) /* dropped meanwhile: the disk is full, or so it was said */
        return false;
    if (r < 0)
        fail_msg("%s: LSN %llu: %s", what, (unsigned long long)lsn, err.message);
    check_ok(image_open(x.directory, "engine-look", &image, &err));
    for (uint32_t v = 0; v < VOLUMES; v++) {
        check_ok(image_read(image, v + 1, 0, SIZE_BYTES / 512, data, &err));
        if (memcmp(data, model + v * SIZE_BYTES, SIZE_BYTES) != 0)
            fail_msg("%s: image(%llu) of volume %u is wrong%s", what, (unsigned long long)lsn, v + 1,
                     model == x.live ? " (J4)" : "");
    }
    image_free(image);
    check_ok(journal_unpin(x.journal, "engine-look", &err));
    return true;
}

static void check_points(const char *what)
{
    struct journal_status s;
    check_live(what);
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    if (!image_is(s.latest.n, x.live, what))
        fail_msg("%s: J4: the latest point cannot be opened: %s", what, err.message);
    for (size_t i = 0; i < x.point_count; i++) {
        image_is(x.points[i].lsn, x.points[i].data, what);
    }
    struct group_status g;
    group_status(x.group, &g);
    if (x.holds && g.unjournaled_writes)
        fail_msg("%s: %llu writes went unjournaled", what, (unsigned long long)g.unjournaled_writes);
}

static void begin(int fail_at, int fail_calls, int code, bool holds)
{
    char template[] = "/dev/shm/tidemark-fault-XXXXXX";
    memset(&x, 0, sizeof x);
    x.random = seed + (uint64_t)fail_at;
    x.holds = holds;
    x.code = code;
    x.fail_calls = 0;
    assert_non_null(mkdtemp(template));
    snprintf(x.directory, sizeof x.directory, "%s", template);
    snprintf(x.ring, sizeof x.ring, "%s.ring", template);
    open_all();
    x.calls = 0;
    x.fail_at = fail_at;
    x.fail_calls = fail_calls;
}

static void end(void)
{
    group_abandon(x.group);
    journal_abandon(x.journal);
    check_ok(io_remove_tree(x.directory, &err));
    unlink(x.ring);
    for (int i = 0; i < VOLUMES; i++) {
        char path[96];
        snprintf(path, sizeof path, "%s.v%d.img", x.directory, i);
        unlink(path);
    }
    for (size_t i = 0; i < x.point_count; i++)
        free(x.points[i].data);
}

static void *heal(void *context)
{
    (void)context;
    while (!journal_is_suspended(x.journal) && atomic_load(&x.fail_calls))
        usleep(1000);
    usleep(2000);
    x.fail_calls = 0;
    return NULL;
}

/* A history with one fault; the number of calls that a test could make fail in it. */
static int run_case(int fail_at, int fail_calls, int code, bool holds)
{
    char what[96];
    pthread_t healer;
    begin(fail_at, fail_calls, code, holds);
    snprintf(what, sizeof what, "TIDEMARK_FAULT=%d (%d calls, %s)", fail_at, fail_calls, strerrorname_np(-code));
    if (holds) /* writes wait: somebody else has to make the disk well */
        assert_int_equal(pthread_create(&healer, NULL, heal, NULL), 0);
    for (int i = 0; i < OPERATIONS; i++) {
        operate(what);
        if (!holds && x.step && i > OPERATIONS / 2 + HEAL_AFTER)
            x.fail_calls = 0;
        if (i % 8 == 7 && x.step && x.calls >= x.fail_at + x.fail_calls)
            group_settle(x.group); /* well again: back to protection */
        remember();
    }
    int calls = x.calls;
    x.fail_calls = 0;
    if (holds)
        pthread_join(healer, NULL);
    group_settle(x.group);
    assert_true(is_protected());
    for (int i = 0; i < 10; i++) {
        operate(what);
        if (x.point_count < OPERATIONS)
            remember();
    }
    snprintf(what + strlen(what), sizeof what - strlen(what), " at %s", x.step ? x.step : "none");
    check_points(what);
    group_abandon(x.group);
    journal_abandon(x.journal);
    open_all();
    group_settle(x.group);
    strncat(what, ", after a kill", sizeof what - strlen(what) - 1);
    check_points(what);
    end();
    return calls;
}

static void run_all(bool holds)
{
    static const int codes[] = {-EIO, -ENOSPC, -EDQUOT};
    const char *only = getenv("TIDEMARK_FAULT");
    seed = check_seed();
    int calls = run_case(INT32_MAX, 0, -EIO, holds);
    assert_true(calls > 40);
    bool all = only && strcmp(only, "all") == 0, one = only && !all;
    int first = one ? (int)strtol(only, NULL, 10) : 1, last = one ? first : calls;
    for (int n = all || one ? first : 1 + (int)(seed % STRIDE); n <= last; n += all ? 1 : STRIDE)
        for (int k = 0; k < 2; k++)
            run_case(n, k ? 1000000 : 1, codes[(n + k) % 3], holds);
}

static void writes_go_on(void **state)
{
    (void)state;
    run_all(false);
}
static void writes_wait(void **state)
{
    (void)state;
    run_all(true);
}

/* An end in the middle of it: who waits gets an error, nobody an acknowledgement, and what is there then is the history's. */
static void *write_and_flush(void *context)
{
    int *results = context;
    static char data[4096];
    struct error mine = ERROR_INIT;
    memset(data, 0x5a, sizeof data);
    results[0] = block_pwrite(group_volume_block(x.group, 0), data, sizeof data, 8192, 0, &mine);
    results[1] = block_flush(group_volume_block(x.group, 0), &mine);
    return NULL;
}

static void waiting_writes_end_with_an_error(void **state)
{
    (void)state;
    pthread_t thread;
    int results[2] = {1, 1};
    struct group_status g;
    begin(1, 1000000, -EIO, true);
    x.calls = x.fail_at; /* from now on */
    assert_int_equal(pthread_create(&thread, NULL, write_and_flush, results), 0);
    while (!journal_is_suspended(x.journal))
        usleep(1000);
    group_give_up(x.group);
    pthread_join(thread, NULL);
    assert_int_equal(results[0], -ESHUTDOWN);
    assert_int_equal(results[1], -ESHUTDOWN);
    group_status(x.group, &g);
    assert_int_equal(g.unjournaled_writes, 0);
    group_free(x.group);
    x.fail_calls = 0;
    assert_true(journal_close(x.journal, &err) < 0); /* not in order: the next opening compares */
    open_all();
    group_settle(x.group);
    check_ok(block_pread(group_volume_block(x.group, 0), x.live, SIZE_BYTES, 0, &err)); /* it was not answered: either is right */
    check_points("after an end while writes waited");
    end();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest availability[] = {cmocka_unit_test(writes_go_on)}, protection[] = {cmocka_unit_test(waiting_writes_end_with_an_error), cmocka_unit_test(writes_wait)};
    bool both = argc < 2;
    int failed = 0;
    if (both || strcmp(argv[1], "availability") == 0)
        failed += cmocka_run_group_tests_name("availability", availability, NULL, NULL);
    if (both || strcmp(argv[1], "protection") == 0)
        failed += cmocka_run_group_tests_name("protection", protection, NULL, NULL);
    return failed;
}
