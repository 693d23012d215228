/* SPDX-License-Identifier: Apache-2.0 */
/* Trouble with the backing's disk, at every call once: EIO or ENOSPC for one call or for some, a short write,
 * a slow flush.
 *
 * The application sees the error of its write, as it would unprotected, and nothing else; a short write and a
 * slow flush it does not see. What the range holds then is what it held or what was to be written, sector by
 * sector, and the history says the same: the image of the latest point is the live volume (J4), every point
 * reads right (J1), also after a kill. A flush that failed stays so.
 *
 *   test_backing    $TIDEMARK_SEED; $TIDEMARK_FAULT=n: only the nth call; all: each call, else every eighth */
#include "check.h"

#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/io.h"
#include "block/queue.h"
#include "journal/journal.h"
#include "view/image.h"
#include "volume/group.h"

#define SIZE_BYTES (256u * 1024)
#define OPERATIONS 70
#define SLOW_US 20000

enum trouble { TROUBLE_EIO, TROUBLE_EIO_WHILE, TROUBLE_ENOSPC, TROUBLE_SHORT, TROUBLE_SLOW, TROUBLES };
static const char *const names[] = {"EIO", "EIO for 6 calls", "ENOSPC", "short", "slow flush"};

static struct {
    char base[64], directory[80], ring[80], backing[80];
    struct stat file;
    struct journal *journal;
    struct group *group;
    enum group_ack ack;
    char live[SIZE_BYTES];
    struct {
        uint64_t lsn;
        char *data;
    } points[2 * OPERATIONS];
    size_t point_count;
    uint64_t random;
    atomic_int calls, at; /* which call fails; 0: none */
    enum trouble trouble;
    bool flush_failed, met;
    char what[96];
} x;
static struct error err;
static uint64_t seed;

/* ---- the backing's calls ---- */

/* Whether this call of the backing is the one: 0, -EIO, -ENOSPC, or 1 for the other kinds. */
static int meet(int fd, bool flush)
{
    struct stat st;
    if (!x.at || fstat(fd, &st) < 0 || st.st_ino != x.file.st_ino || st.st_dev != x.file.st_dev)
        return 0;
    int call = atomic_fetch_add(&x.calls, 1) + 1;
    if (call < x.at || call >= x.at + (x.trouble == TROUBLE_EIO_WHILE ? 6 : 1))
        return 0;
    x.met = true;
    x.flush_failed |= flush && x.trouble <= TROUBLE_ENOSPC;
    return x.trouble <= TROUBLE_EIO_WHILE ? -EIO : x.trouble == TROUBLE_ENOSPC ? -ENOSPC : 1;
}

static int failed(int r)
{
    errno = -r;
    return -1;
}

ssize_t __real_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *v, int count, off_t offset, int flags)
{
    struct iovec part = *v;
    int r = meet(fd, false);
    if (r < 0) { /* some of it was written */
        part.iov_len = part.iov_len / 2 / 512 * 512;
        if (part.iov_len)
            (void)__real_pwritev64v2(fd, &part, 1, offset, flags);
        return failed(r);
    }
    if (r > 0 && x.trouble == TROUBLE_SHORT && part.iov_len > 512) {
        part.iov_len = part.iov_len / 2 / 512 * 512;
        return __real_pwritev64v2(fd, &part, 1, offset, flags);
    }
    return __real_pwritev64v2(fd, v, count, offset, flags);
}

int __real_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
{
    int r = meet(fd, false);
    return r < 0 ? failed(r) : __real_fallocate64(fd, mode, offset, length);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    int r = meet(fd, true);
    if (r > 0 && x.trouble == TROUBLE_SLOW)
        usleep(SLOW_US);
    return r < 0 ? failed(r) : __real_fdatasync(fd);
}

/* What is queued: a transfer of nothing, or of a part. */
int __real_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring)
{
    for (unsigned at = ring->sq.sqe_head; at != ring->sq.sqe_tail; at++) {
        struct io_uring_sqe *sqe = &ring->sq.sqes[at & ring->sq.ring_mask];
        int r = sqe->opcode == IORING_OP_WRITE ? meet(sqe->fd, false) : 0;
        if (r < 0)
            sqe->fd = -1;
        else if (r > 0 && x.trouble == TROUBLE_SHORT)
            sqe->len = sqe->len / 2;
    }
    return __real_io_uring_submit_and_get_events(ring);
}

/* ---- the group ---- */

static void open_all(void)
{
    struct journal_options o = {.directory = x.directory,
                                .segment_blocks = 96,
                                .segment_records = 24,
                                .fanout = 2,
                                .ring_path = x.ring,
                                .owner = "test_backing"};
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(group_new(x.journal, x.ack, NULL, &x.group, &err));
    check_ok(group_add_volume(x.group, "v", SIZE_BYTES, x.backing, &err));
    check_ok(group_start(x.group, &err));
    assert_int_equal(stat(x.backing, &x.file), 0);
}

static int write_queued(struct block *b, const char *data, size_t length, uint64_t offset)
{
    static char aligned[65536] __attribute__((aligned(4096)));
    struct block_queue *q;
    struct block_request request = {.op = BLOCK_OP_WRITE,
                                    .data = aligned,
                                    .length_bytes = length,
                                    .offset_bytes = offset},
                         *done = NULL;
    memcpy(aligned, data, length);
    check_ok(block_queue_new(b, 4, &q, &err));
    int r = block_queue_start(q, &request);
    while (r == 0 && !done)
        done = block_queue_poll(q);
    block_queue_free(q);
    int outcome = r < 0 ? BLOCK_STEP_AGAIN : request.outcome;
    if (outcome == BLOCK_STEP_BLOCKS)
        outcome = block_finish(b, &request, &err);
    return outcome == BLOCK_STEP_AGAIN ? block_pwrite(b, data, length, offset, 0, &err) : outcome;
}

/* What the range holds after an error: before or after, sector by sector. */
static void accept_either(uint64_t lba, uint64_t length, const char *intended)
{
    static char now[65536];
    check_ok(block_pread(group_volume_block(x.group, 0), now, length * 512, lba * 512, &err));
    for (uint64_t i = 0; i < length; i++) {
        const char *sector = now + i * 512;
        if (memcmp(sector, intended + i * 512, 512) != 0 &&
            memcmp(sector, x.live + (lba + i) * 512, 512) != 0)
            fail_msg("%s: sector %llu holds neither what it held nor what was written", x.what,
                     (unsigned long long)(lba + i));
    }
    memcpy(x.live + lba * 512, now, length * 512);
}

static void operate(void)
{
    static char data[65536];
    uint64_t sectors = SIZE_BYTES / 512, lba = check_random(&x.random) % sectors,
             length = 1 + check_random(&x.random) % 40;
    struct block *b = group_volume_block(x.group, 0);
    uint64_t how = check_random(&x.random) % 10;
    length = lba + length > sectors ? sectors - lba : length;
    for (size_t i = 0; i < length * 512; i += 8) {
        uint64_t word = how < 2 ? 0 : check_random(&x.random);
        memcpy(data + i, &word, 8);
    }
    int before = x.calls;
    int r = how == 0   ? block_discard(b, length * 512, lba * 512, 0, &err)
            : how == 1 ? block_zero(b, length * 512, lba * 512, 0, &err)
            : how == 2 ? block_flush(b, &err)
            : how < 6  ? write_queued(b, data, length * 512, lba * 512)
                       : block_pwrite(b, data, length * 512, lba * 512, how == 9 ? BLOCK_FUA : 0, &err);
    bool flushes = how == 2 || how == 9;
    if (r < 0 && !x.met)
        fail_msg("%s: failed without trouble: %s", x.what, err.message);
    if (flushes && x.flush_failed && r == 0)
        fail_msg("%s: a flush succeeded after one had failed", x.what);
    if (r < 0 && x.trouble >= TROUBLE_SHORT)
        fail_msg("%s: the application saw it: %s", x.what, err.message);
    if (r < 0 && !(flushes && x.flush_failed) && x.calls == before)
        fail_msg("%s: failed without a call: %s", x.what, err.message);
    if (how == 2)
        return;
    if (r < 0)
        accept_either(lba, length, data);
    else
        memcpy(x.live + lba * 512, data, length * 512);
}

static void check_image(uint64_t lsn, const char *model)
{
    static char data[SIZE_BYTES] __attribute__((aligned(4096)));
    struct image *image;
    check_ok(journal_pin(x.journal, "engine-look", (struct lsn){lsn}, true, &err));
    check_ok(image_open(x.directory, "engine-look", &image, &err));
    check_ok(image_read(image, 1, 0, SIZE_BYTES / 512, data, &err));
    if (memcmp(data, model, SIZE_BYTES) != 0)
        fail_msg("%s: image(%llu) is wrong%s", x.what, (unsigned long long)lsn,
                 model == x.live ? " (J4)" : "");
    image_free(image);
    check_ok(journal_unpin(x.journal, "engine-look", &err));
}

static void check_all(void)
{
    static char data[SIZE_BYTES];
    struct journal_status s;
    check_ok(block_pread(group_volume_block(x.group, 0), data, SIZE_BYTES, 0, &err));
    if (memcmp(data, x.live, SIZE_BYTES) != 0)
        fail_msg("%s: the live volume is not what was written", x.what);
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    check_image(s.latest.n, x.live);
    for (size_t i = 0; i < x.point_count; i += 5)
        check_image(x.points[i].lsn, x.points[i].data);
}

static int run_case(int at, enum trouble trouble)
{
    char template[] = "/dev/shm/tidemark-backing-XXXXXX";
    memset(&x, 0, sizeof x);
    x.random = seed + (uint64_t)at;
    x.ack = at & 1 ? GROUP_ACK_WRITE : GROUP_ACK_FLUSH;
    x.trouble = trouble;
    snprintf(x.what, sizeof x.what, "TIDEMARK_FAULT=%d (%s)", at, names[trouble]);
    assert_non_null(mkdtemp(template));
    snprintf(x.base, sizeof x.base, "%s", template);
    snprintf(x.directory, sizeof x.directory, "%s/journal", template);
    snprintf(x.ring, sizeof x.ring, "%s/ring", template);
    snprintf(x.backing, sizeof x.backing, "%s/v.img", template);
    open_all();
    x.at = at;
    for (int i = 0; i < OPERATIONS; i++) {
        operate();
        x.points[x.point_count].lsn = journal_next_lsn(x.journal).n - 1;
        x.points[x.point_count].data = malloc(SIZE_BYTES);
        memcpy(x.points[x.point_count++].data, x.live, SIZE_BYTES);
    }
    int calls = x.calls;
    x.at = 0;
    check_all();
    group_abandon(x.group);
    journal_abandon(x.journal);
    open_all();
    group_settle(x.group);
    strncat(x.what, ", after a kill", sizeof x.what - strlen(x.what) - 1);
    x.flush_failed = false;
    check_all();
    check_ok(block_flush(group_volume_block(x.group, 0), &err));
    group_abandon(x.group);
    journal_abandon(x.journal);
    check_ok(io_remove_tree(x.base, &err));
    for (size_t i = 0; i < x.point_count; i++)
        free(x.points[i].data);
    return calls;
}

static void every_call_of_the_backing(void **state)
{
    (void)state;
    const char *only = getenv("TIDEMARK_FAULT");
    seed = check_seed();
    int calls = run_case(INT32_MAX, TROUBLE_EIO);
    assert_true(calls > 40);
    bool all = only && strcmp(only, "all") == 0, one = only && !all;
    int first = one ? (int)strtol(only, NULL, 10) : all ? 1 : 1 + (int)(seed % 8), last = one ? first : calls;
    for (int n = first; n <= last; n += all ? 1 : 8)
        for (int k = 0; k < TROUBLES; k++)
            run_case(n, (enum trouble)k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_call_of_the_backing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
