/* SPDX-License-Identifier: Apache-2.0 */
/* Flushes by the queue: what they cover, who shares an fdatasync, and that one that failed has failed for
 * good. */
#include "check.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "block/queue.h"
#include "journal/journal_internal.h"
#include "volume/group_internal.h"

#define SIZE_BYTES (1u << 20)
#define DEPTH 16u

static struct stand {
    char directory[64], ring[96];
    struct journal *journal;
    struct group *group;
    struct volume *volume;
    struct block_queue *queue;
    struct block_request requests[DEPTH];
    char *data;
    _Atomic(const char *) fault; /* the journal's step that fails */
    bool held;                   /* the queue's transfers are not submitted */
} x;
static struct error err;

static int inject(void *context, const char *step)
{
    const char *fault = x.fault;
    (void)context;
    return fault && strcmp(step, fault) == 0 ? -EIO : 0;
}

/* It stands still: the sealer makes nothing durable by itself. */
static uint64_t no_time(void *context)
{
    (void)context;
    return 1000000000;
}
static const struct clock still = {no_time, no_time, NULL};

int __real_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring)
{
    return x.held ? -EPERM : __real_io_uring_submit_and_get_events(ring);
}

static int set_up(void **state)
{
    enum group_ack ack = *state ? GROUP_ACK_FLUSH : GROUP_ACK_WRITE;
    x = (struct stand){.fault = NULL};
    snprintf(x.directory, sizeof x.directory, "/dev/shm/tidemark-flush-XXXXXX");
    assert_non_null(mkdtemp(x.directory));
    snprintf(x.ring, sizeof x.ring, "%s.ring", x.directory);
    struct journal_options o = {.directory = x.directory,
                                .segment_blocks = 96,
                                .segment_records = 24,
                                .fanout = 2,
                                .ring_path = x.ring,
                                .owner = "test_flush",
                                .clock = &still,
                                .fault = inject};
    char path[96];
    snprintf(path, sizeof path, "%s/v.img", x.directory);
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(group_new(x.journal, ack, NULL, &x.group, &err));
    check_ok(group_add_volume(x.group, "v", SIZE_BYTES, path, &err));
    check_ok(group_start(x.group, &err));
    x.volume = (struct volume *)group_volume_block(x.group, 0);
    check_ok(block_queue_new(&x.volume->block, DEPTH, &x.queue, &err));
    x.data = io_alloc_pages(4096);
    assert_non_null(x.data);
    check_ok(block_pwrite(&x.volume->block, x.data, 4096, 0, 0, &err)); /* the first touch of a region is not queued */
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    x.held = false; /* of a test that failed */
    while (block_queue_busy(x.queue))
        (void)block_queue_poll(x.queue);
    block_queue_free(x.queue);
    group_free(x.group);
    check_ok(journal_close(x.journal, &err));
    check_ok(io_remove_tree(x.directory, &err));
    io_free_pages(x.data, 4096);
    return 0;
}

/* 0, or -EAGAIN: it is to be done the blocking way. */
static int try_begin(unsigned i, enum block_op op, unsigned flags)
{
    struct block_request *r = &x.requests[i];
    *r = (struct block_request){.op = op, .flags = flags, .outcome = -1};
    if (op != BLOCK_OP_FLUSH) {
        r->data = x.data;
        r->length_bytes = 4096;
        r->offset_bytes = 4096 * i;
    }
    return block_queue_start(x.queue, r);
}

static void begin(unsigned i, enum block_op op, unsigned flags)
{
    assert_int_equal(try_begin(i, op, flags), 0);
}

/* Until all have ended; the first error of those that failed. */
static int end_all(void)
{
    int result = 0;
    while (block_queue_busy(x.queue)) {
        struct pollfd fds[BLOCK_QUEUE_MAX_FDS];
        unsigned count = block_queue_prepare_sleep(x.queue, fds);
        struct block_request *done = block_queue_poll(x.queue);
        if (!done)
            assert_true(poll(fds, count, 120000) > 0);
        for (; done; done = done->next) {
            int r = done->outcome == BLOCK_STEP_BLOCKS ? block_finish(&x.volume->block, done, &err)
                                                       : done->outcome;
            assert_int_not_equal(r, BLOCK_STEP_AGAIN);
            result = result ? result : r;
        }
    }
    return result;
}

static uint64_t durable(void)
{
    struct journal_status status;
    journal_status(x.journal, &status);
    return status.durable.n;
}

/* J3, in both modes: what was written before the flush is durable in the journal, and an fdatasync of the
 * backing began after. */
static void a_flush_covers_what_was_written_before(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        begin(0, BLOCK_OP_WRITE, 0);
        assert_int_equal(end_all(), 0);
        uint64_t last = x.volume->sync.begun;
        begin(1, BLOCK_OP_FLUSH, 0);
        uint64_t written = x.journal ? journal_sync_begin(x.journal).n : 0;
        assert_int_equal(end_all(), 0);
        assert_true(durable() >= written);
        assert_true(x.volume->sync.ended > last);
    }
}

/* Where the backing is slower than the journal, its end is slept for: the frame that has ended is taken before. */
static void a_frame_that_has_ended_wakes_nobody_again(void **state)
{
    (void)state;
    if (x.group->ack != GROUP_ACK_WRITE)
        skip();
    begin(0, BLOCK_OP_WRITE, 0);
    x.volume->block.ops->async->push(&x.volume->block); /* its transfer is not submitted yet: it ends later */
    struct pollfd frame = {.fd = journal_poll_fd(x.journal), .events = POLLIN}, fds[BLOCK_QUEUE_MAX_FDS];
    assert_int_equal(poll(&frame, 1, 120000), 1);
    block_queue_prepare_sleep(x.queue, fds);
    assert_int_equal(poll(&frame, 1, 0), 0);
    assert_int_equal(end_all(), 0);
}

static void fua_covers_its_write(void **state)
{
    (void)state;
    for (unsigned i = 0; i < DEPTH; i++)
        begin(i, BLOCK_OP_WRITE, i % 2 ? BLOCK_FUA : 0);
    uint64_t written = journal_sync_begin(x.journal).n;
    assert_int_equal(end_all(), 0);
    assert_true(durable() >= written - 1); /* the last one has FUA; a rewind or seal adds none meanwhile */
    assert_true(x.volume->sync.ended >= 1);
}

/* Polls the queue, whose transfers are held, until `reached`. */
static void poll_until(bool (*reached)(uint64_t target), uint64_t target)
{
    for (unsigned waited_ms = 0; !reached(target); waited_ms++) {
        if (waited_ms == 5000)
            fail_msg("it did not come to that in 5 s");
        assert_null(block_queue_poll(x.queue)); /* the backing's fdatasync has not even begun */
        usleep(1000);
    }
}

static bool is_durable(uint64_t target)
{
    return durable() >= target;
}
static bool is_suspended(uint64_t unused)
{
    (void)unused;
    return journal_is_suspended(x.journal);
}

/* A write has ended, its frame is on its way, and the flush after it is under way; what that covers. In mode `flush`. */
static uint64_t begin_held_flush(const char *fault)
{
    check_ok(block_flush(&x.volume->block, &err));
    x.journal->reaping = true; /* nobody takes the frame */
    begin(0, BLOCK_OP_WRITE, 0);
    assert_int_equal(end_all(), 0);
    uint64_t target = x.journal->last_lsn;
    x.held = true;
    begin(1, BLOCK_OP_FLUSH, 0);
    assert_true(durable() < target);
    x.fault = fault;
    x.journal->reaping = false;
    return target;
}

/* The journal waits neither for the backing's fdatasync nor for anybody who asks for it. */
static void the_journal_is_synced_beside_the_backing(void **state)
{
    (void)state;
    uint64_t target = begin_held_flush(NULL), ended = x.volume->sync.ended;
    poll_until(is_durable, target);
    struct pollfd sync = {.fd = journal_sync_poll_fd(x.journal), .events = POLLIN};
    assert_int_equal(poll(&sync, 1, 0), 0); /* it was taken: who sleeps is not woken by it again */
    assert_int_equal(x.volume->sync.ended, ended);
    assert_int_equal(block_queue_busy(x.queue), 1); /* both are needed */
    x.held = false;
    assert_int_equal(end_all(), 0);
    assert_int_equal(x.volume->sync.ended, ended + 1);
}

/* Its fdatasync has failed while the backing's is under way: what the flush covers never counts as durable, and it is not answered by that. */
static void a_failed_sync_beside_the_backing_is_no_success(void **state)
{
    (void)state;
    uint64_t target = begin_held_flush("sync");
    poll_until(is_suspended, 0);
    assert_true(durable() < target);
    x.held = false;
    struct block_request *done;
    while (!(done = block_queue_poll(x.queue)))
        usleep(1000);
    assert_int_equal(done->outcome, BLOCK_STEP_AGAIN); /* the blocking way knows what to do */
    assert_true(durable() < target);
    x.fault = NULL;
    group_settle(x.group); /* journaling goes on: the journal can be closed */
}

static void flushes_that_wait_together_share_one_fdatasync(void **state)
{
    (void)state;
    uint64_t before = x.volume->sync.begun;
    for (unsigned i = 0; i < DEPTH; i++)
        begin(i, BLOCK_OP_FLUSH, 0);
    assert_int_equal(end_all(), 0);
    assert_int_equal(x.volume->sync.begun, before + 1);
}

static void a_flush_is_not_answered_by_one_submitted_before(void **state)
{
    (void)state;
    uint64_t before = x.volume->sync.begun;
    begin(0, BLOCK_OP_FLUSH, 0);
    struct block_request *done = block_queue_poll(x.queue); /* submits it */
    begin(1, BLOCK_OP_FLUSH, 0);
    assert_int_equal(end_all(), 0);
    assert_true(!done || !done->next);
    assert_int_equal(x.volume->sync.ended, before + 2);
}

static void *flush_blocking(void *context)
{
    struct error e = ERROR_INIT;
    int *result = context;
    *result = block_flush(&x.volume->block, &e);
    return NULL;
}

static void blocking_flushes_share_too(void **state)
{
    (void)state;
    pthread_t threads[8];
    int results[8];
    for (int i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, flush_blocking, &results[i]), 0);
    for (unsigned i = 0; i < DEPTH; i++)
        if (try_begin(i, BLOCK_OP_FLUSH, 0) < 0) /* one of the threads' was all that it needed, and has ended just now */
            check_ok(block_flush(&x.volume->block, &err));
    assert_int_equal(end_all(), 0);
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(results[i], 0);
    }
    assert_int_equal(x.volume->sync.begun, x.volume->sync.ended);
}

/* An fdatasync that fails, and then one that would not: no flush may succeed any more. */
static void a_failed_flush_has_failed_for_good(void **state)
{
    int fd = block_file_fd(x.volume->backing), kept = dup(fd), pipe_fds[2];
    (void)state;
    assert_int_equal(pipe(pipe_fds), 0);
    assert_int_equal(dup2(pipe_fds[0], fd), fd); /* cannot be synced: EINVAL */
    for (unsigned i = 0; i < 4; i++)
        begin(i, BLOCK_OP_FLUSH, 0);
    assert_int_equal(end_all(), -EIO);
    assert_int_equal(dup2(kept, fd), fd);
    begin(0, BLOCK_OP_FLUSH, 0);
    assert_int_equal(end_all(), -EIO);
    begin(0, BLOCK_OP_WRITE, BLOCK_FUA);
    assert_int_equal(end_all(), -EIO);
    check_error(block_flush(&x.volume->block, &err), -EIO, "an earlier flush failed");
    close(kept);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

/* The worker's flushes, of a copy-back or a comparison, are of the same backing: what they lose no later one finds again. */
static void a_failed_flush_of_the_worker_has_failed_for_the_application(void **state)
{
    int fd = block_file_fd(x.volume->backing), kept = dup(fd), pipe_fds[2];
    (void)state;
    assert_int_equal(pipe(pipe_fds), 0);
    assert_int_equal(dup2(pipe_fds[0], fd), fd);
    assert_int_equal(grains_flush(x.group, &err), -EIO);
    assert_int_equal(dup2(kept, fd), fd);
    check_error(block_flush(&x.volume->block, &err), -EIO, "an earlier flush failed");
    close(kept);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

int main(void)
{
    static int flush_mode;
#define FLUSH(test) cmocka_unit_test_prestate_setup_teardown(test, set_up, tear_down, &flush_mode)
#define BOTH(test)                                                                                           \
    cmocka_unit_test_prestate_setup_teardown(test, set_up, tear_down, NULL),                                 \
        FLUSH(test)
    const struct CMUnitTest tests[] = {
        BOTH(a_flush_covers_what_was_written_before),
        BOTH(a_frame_that_has_ended_wakes_nobody_again),
        FLUSH(the_journal_is_synced_beside_the_backing),
        FLUSH(a_failed_sync_beside_the_backing_is_no_success),
        BOTH(fua_covers_its_write),
        BOTH(flushes_that_wait_together_share_one_fdatasync),
        BOTH(a_flush_is_not_answered_by_one_submitted_before),
        BOTH(blocking_flushes_share_too),
        BOTH(a_failed_flush_has_failed_for_good),
        BOTH(a_failed_flush_of_the_worker_has_failed_for_the_application),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
