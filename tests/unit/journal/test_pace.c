/* SPDX-License-Identifier: Apache-2.0 */
/* J7: near the point where writers would have to stop, each write waits, evenly more and never for long; not while the dropping of
 * old history keeps up, nor where waiting would help nobody. Nothing here depends on how fast anything is. */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "block/queue.h"
#include "journal/journal_internal.h"
#include "volume/group.h"

#define SEGMENT_BLOCKS 64u
#define SEGMENT_BYTES ((uint64_t)SEGMENT_BLOCKS * JOURNAL_BLOCK_BYTES)
#define QUOTA_BYTES (6 * SEGMENT_BYTES)

static struct stand {
    char directory[64], ring[96];
    struct journal *journal;
    uint32_t volume;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool closed; /* drops wait */
    _Atomic int fault;
} x;
static struct error err;

/* Called by the janitor before each drop. */
static int before(void *context, const char *step)
{
    (void)context;
    if (strcmp(step, "drop") != 0)
        return 0;
    pthread_mutex_lock(&x.mutex);
    while (x.closed)
        pthread_cond_wait(&x.changed, &x.mutex);
    pthread_mutex_unlock(&x.mutex);
    return x.fault;
}

static void set_closed(bool closed)
{
    pthread_mutex_lock(&x.mutex);
    x.closed = closed;
    pthread_cond_broadcast(&x.changed);
    pthread_mutex_unlock(&x.mutex);
}

static int set_up(void **state)
{
    (void)state;
    x = (struct stand){.fault = 0};
    pthread_mutex_init(&x.mutex, NULL);
    pthread_cond_init(&x.changed, NULL);
    snprintf(x.directory, sizeof x.directory, "/dev/shm/tidemark-pace-XXXXXX");
    assert_non_null(mkdtemp(x.directory));
    snprintf(x.ring, sizeof x.ring, "%s.ring", x.directory);
    struct journal_options o = {.directory = x.directory,
                                .segment_blocks = SEGMENT_BLOCKS,
                                .segment_records = 64,
                                .fanout = 2,
                                .quota_bytes = QUOTA_BYTES,
                                .ring_path = x.ring,
                                .owner = "test_pace",
                                .fault = before};
    struct volume_info volume;
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(journal_volume(x.journal, "v", 1 << 20, false, &volume, &err));
    x.volume = volume.id;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    set_closed(false);
    check_ok(journal_close(x.journal, &err));
    check_ok(io_remove_tree(x.directory, &err));
    unlink(x.ring);
    return 0;
}

static void append_one(void)
{
    static const char data[4 * JOURNAL_BLOCK_BYTES];
    struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = x.volume, .length = sizeof data / 512, .payload = data,
                                    .payload_bytes = sizeof data};
    struct journal_ticket ticket;
    check_ok(sync_append(x.journal, &record, APPEND_WRITTEN, &ticket, &err));
}

static struct journal_status status(void)
{
    struct journal_status s;
    journal_status(x.journal, &s);
    assert_true(s.pace_ns <= PACE_MOST_NS);
    return s;
}

static void a_pace_rises_evenly_and_has_an_end(void **state)
{
    (void)state;
    uint64_t random = check_seed();
    for (int round = 0; round < 2000; round++) {
        uint64_t segment = 4096 * (2 + check_random(&random) % 20000), quota = segment * (4 + check_random(&random) % 1000);
        uint64_t from = quota + PACE_FROM_SEGMENTS * segment, stop = quota + PACE_STOP_SEGMENTS * segment;
        assert_int_equal(pace_of(check_random(&random) % (from + 1), quota, segment), 0);
        assert_int_equal(pace_of(UINT64_MAX, 0, segment), 0);
        assert_int_equal(pace_of(stop + check_random(&random) % (10 * segment), quota, segment), PACE_MOST_NS);
        uint64_t a = from + check_random(&random) % (stop - from), b = from + check_random(&random) % (stop - from);
        uint64_t low = a < b ? a : b, high = a < b ? b : a;
        assert_true(pace_of(low, quota, segment) <= pace_of(high, quota, segment));
        uint64_t middle = pace_of(from + segment / 2, quota, segment);
        assert_in_range(middle, PACE_MOST_NS / 2 - 1, PACE_MOST_NS / 2 + 1);
    }
}

/* While drops are held up writes are paced before they would have to stop; once those go on there is no pace any more. */
static void writes_are_paced_while_drops_do_not_keep_up(void **state)
{
    (void)state;
    unsigned appended = 0, paced_at = 0;
    uint64_t last = 0;
    set_closed(true);
    for (; appended < 40 * SEGMENT_BLOCKS && last < PACE_MOST_NS / 2; appended++) {
        append_one();
        struct journal_status s = status();
        if (s.pace_ns && !paced_at)
            paced_at = appended;
        if (s.journal_bytes <= QUOTA_BYTES)
            assert_int_equal(s.pace_ns, 0);
        last = s.pace_ns;
    }
    assert_true(last >= PACE_MOST_NS / 2);
    assert_true(appended - paced_at >= 4); /* not at once */
    uint64_t before_ns = status().paced_ns;
    assert_int_equal(before_ns, 0); /* nobody has waited yet: journal_append does not */
    journal_pace(x.journal);
    assert_true(status().paced_ns > 0 && status().paced_ns <= PACE_MOST_NS); /* a seal may have made it a little less than `last` */
    set_closed(false);
    check_ok(journal_seal(x.journal, &err)); /* one that had to wait for the drop, if it did */
    check_ok(journal_maintain(x.journal, &err));
    assert_int_equal(status().pace_ns, 0);
    assert_true(status().journal_bytes <= QUOTA_BYTES + SEGMENT_BYTES);
    uint64_t paced_ns = status().paced_ns;
    journal_pace(x.journal);
    assert_int_equal(status().paced_ns, paced_ns);
}

/* J7: whatever the janitor does in between, there is no pace where dropping has kept up. */
static void nobody_waits_while_drops_keep_up(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 60 * SEGMENT_BLOCKS / 5; i++) {
        append_one();
        check_ok(journal_maintain(x.journal, &err));
        assert_int_equal(status().pace_ns, 0);
    }
    assert_true(status().oldest.n > 0);
}

/* A rewind holds history, an open view pins it: waiting would help nobody. */
static void nobody_waits_for_what_cannot_be_dropped(void **state)
{
    (void)state;
    set_closed(true);
    for (unsigned i = 0; i < 40 * SEGMENT_BLOCKS && status().pace_ns < PACE_MOST_NS / 4; i++)
        append_one();
    assert_true(status().pace_ns > 0);
    pthread_mutex_lock(&x.journal->mutex);
    x.journal->held = true;
    pthread_mutex_unlock(&x.journal->mutex);
    assert_int_equal(status().pace_ns, 0);
    pthread_mutex_lock(&x.journal->mutex);
    x.journal->held = false;
    x.journal->quota_blocked = true;
    pthread_mutex_unlock(&x.journal->mutex);
    assert_int_equal(status().pace_ns, 0);
    pthread_mutex_lock(&x.journal->mutex);
    x.journal->quota_blocked = false;
    pthread_mutex_unlock(&x.journal->mutex);
    assert_true(status().pace_ns > 0);
}

/* By both ways of a write: the blocking one waits, a queue gives it to a thread that may. A read does neither. */
static void a_volume_waits_and_its_queue_does_not(void **state)
{
    static char data[16 * 4096] __attribute__((aligned(4096)));
    char path[96];
    struct group *group;
    struct block_queue *queue;
    (void)state;
    snprintf(path, sizeof path, "%s.img", x.directory);
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &group, &err));
    check_ok(group_add_volume(group, "w", 1 << 20, path, &err));
    check_ok(group_start(group, &err));
    struct block *block = group_volume_block(group, 0);
    check_ok(block_queue_new(block, 4, &queue, &err));
    set_closed(true);
    for (unsigned i = 0; i < 40 * SEGMENT_BLOCKS && (status().paced_ns == 0 || status().pace_ns < PACE_MOST_NS / 4); i++)
        check_ok(block_pwrite(block, data, sizeof data, 0, 0, &err));
    assert_true(status().pace_ns > 0 && status().paced_ns > 0);
    struct block_request request = {.op = BLOCK_OP_WRITE, .data = data, .length_bytes = 4096};
    assert_int_equal(block_queue_start(queue, &request), -EAGAIN);
    struct block_request read = {.op = BLOCK_OP_READ, .data = data, .length_bytes = 4096};
    assert_int_equal(block_queue_start(queue, &read), 0);
    while (!block_queue_poll(queue))
        ;
    set_closed(false);
    while (status().pace_ns) /* the janitor is at it */
        check_ok(journal_maintain(x.journal, &err));
    int r = -EAGAIN; /* until the journal has room in memory again */
    for (unsigned i = 0; i < 10000 && (r = block_queue_start(queue, &request)) == -EAGAIN; i++)
        usleep(1000);
    assert_int_equal(r, 0);
    while (!block_queue_poll(queue))
        ;
    block_queue_free(queue);
    group_free(group);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pace_rises_evenly_and_has_an_end),
        cmocka_unit_test_setup_teardown(writes_are_paced_while_drops_do_not_keep_up, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nobody_waits_while_drops_keep_up, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_volume_waits_and_its_queue_does_not, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nobody_waits_for_what_cannot_be_dropped, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
