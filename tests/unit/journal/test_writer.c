/* SPDX-License-Identifier: Apache-2.0 */
/* What is around the journal's writer: clocks that are set back, a kernel that is short of memory, gaps without end. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "journal/history.h"
#include "journal/journal_internal.h"
#include "journal/losses.h"

static struct error err;
static char directory[64], ring[80];
static _Atomic bool clock_ahead; /* it will be set back by a day, as soon as it was looked at */
static _Atomic int refusals;
static _Atomic bool kept_back; /* what is submitted is never begun */

int __real_clock_gettime(clockid_t id, struct timespec *t);
int __wrap_clock_gettime(clockid_t id, struct timespec *t);
int __wrap_clock_gettime(clockid_t id, struct timespec *t)
{
    int r = __real_clock_gettime(id, t);
    if (id == CLOCK_REALTIME && clock_ahead)
        t->tv_sec += 86400;
    return r;
}

int __real_io_uring_submit(struct io_uring *r);
int __wrap_io_uring_submit(struct io_uring *r);
int __wrap_io_uring_submit(struct io_uring *r)
{
    if (kept_back)
        return 1;
    return atomic_fetch_sub(&refusals, 1) > 0 ? -EAGAIN : __real_io_uring_submit(r);
}

static struct journal *open_spare(unsigned spare_segments, uint64_t quota_bytes)
{
    struct journal_options options = {.directory = directory, .ring_path = ring, .owner = "test", .segment_blocks = 64, .segment_records = 16,
                                      .spare_segments = spare_segments, .quota_bytes = quota_bytes};
    struct journal *j;
    check_ok(journal_open(&options, &j, &err));
    return j;
}

static struct journal *open_journal(void)
{
    return open_spare(0, 0);
}

static const struct journal_record discard = {.op = OP_DISCARD, .flags = RECORD_LAST, .volume = 1, .length = 8};

/* Mode flush: what nobody waits for is written and synced all the same, whatever the wall clock does. */
static void a_clock_that_is_set_back_delays_nothing(void **unused)
{
    (void)unused;
    clock_ahead = true; /* the threads begin their waits by it */
    struct journal *j = open_journal();
    struct journal_record record = discard;
    struct journal_ticket ticket;
    struct journal_status s;
    record.lazy = true;
    usleep(300000); /* all of them wait */
    clock_ahead = false;
    check_ok(journal_append(j, &record, &ticket, &err));
    journal_backed(j, &ticket);
    unsigned waited_ms = 0;
    do {
        usleep(10000);
        journal_status(j, &s);
    } while (s.durable.n < ticket.lsn.n && (waited_ms += 10) < 120000);
    assert_true(s.durable.n >= ticket.lsn.n);
    check_ok(journal_close(j, &err));
}

static void a_submission_that_the_kernel_puts_off_is_repeated(void **unused)
{
    (void)unused;
    struct journal *j = open_journal();
    struct lsn lsn;
    check_ok(journal_append_durable(j, &discard, &lsn, &err));
    refusals = 3;
    check_ok(journal_append_durable(j, &discard, &lsn, &err));
    assert_false(journal_is_suspended(j));
    check_ok(journal_append_durable(j, &discard, &lsn, &err));
    check_ok(journal_close(j, &err));
}

/* More gaps than the manifest has room for: points are refused that need not be, but journaling goes on, and a start succeeds. */
static void gaps_without_end_are_joined(void **unused)
{
    (void)unused;
    struct journal *j = open_journal();
    struct manifest m;
    struct lsn lsn;
    for (unsigned i = 0; i < MANIFEST_MAX_REFUSED + 3; i++) {
        struct journal_status s;
        journal_status(j, &s);
        check_ok(journal_refuse_begin(j, s.latest, &err));
        check_ok(journal_append_durable(j, &discard, &lsn, &err));
        check_ok(journal_append_durable(j, &discard, &lsn, &err));
        check_ok(journal_refuse_end(j, lsn, &err));
    }
    check_ok(journal_manifest(j, &m, &err));
    assert_int_equal(m.refused_count, MANIFEST_MAX_REFUSED);
    assert_int_equal(m.refused[m.refused_count - 1].high.n, lsn.n);
    manifest_release(&m);
    struct journal_point found;
    check_error(journal_resolve(j, &(struct point){.kind = POINT_LSN, .lsn = {lsn.n - 1}}, &found, &err), -ERANGE, "inside a gap");
    check_ok(journal_resolve(j, &(struct point){.kind = POINT_LSN, .lsn = lsn}, &found, &err));
    check_ok(journal_close(j, &err));
}

static bool await_file(const char *name, struct stat *ret)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    for (unsigned waited_ms = 0; waited_ms < 120000; waited_ms += 10) {
        if (stat(path, ret) == 0)
            return true;
        usleep(10000);
    }
    return false;
}

static void set_spare(struct journal *j, unsigned spare_segments)
{
    pthread_mutex_lock(&j->mutex);
    j->options.spare_segments = spare_segments;
    pthread_mutex_unlock(&j->mutex);
}

/* Segments are made ahead while nothing is written, whole, and used when they are needed. None is made during the bursts: on a busy machine
 * there is time for it in the midst of one. */
static void segments_are_made_ahead_and_used(void **unused)
{
    (void)unused;
    char path[128];
    struct stat ahead, segment;
    snprintf(path, sizeof path, "%s/direct", directory);
    int fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);
    if (fd < 0)
        skip(); /* no direct I/O in memory (Linux 6.5 and earlier) */
    close(fd);
    snprintf(path, sizeof path, "%s/spare.tmp", directory); /* of a process that was killed */
    struct journal *j = open_spare(0, 0);
    check_ok(journal_close(j, &err));
    fd = open(path, O_RDWR | O_CREAT, 0600);
    close(fd);
    j = open_journal();
    assert_int_not_equal(access(path, F_OK), 0);
    check_ok(journal_close(j, &err));
    struct lsn lsn;
    bool used = false;
    j = open_spare(0, 0);
    for (unsigned i = 0; i < 16 * 12; i++) /* a burst, 16 a segment: after it there are as many as it needed */
        check_ok(journal_append_durable(j, &discard, &lsn, &err));
    set_spare(j, 4);
    assert_true(await_file("free-3.tmj", &ahead));
    set_spare(j, 0);
    assert_int_equal(ahead.st_size, 64 * 4096);
    assert_int_equal(ahead.st_blocks, ahead.st_size / 512);
    for (unsigned i = 0; i < 16 * 8 && !used; i++) {
        check_ok(journal_append_durable(j, &discard, &lsn, &err));
        for (unsigned n = 1; n < 32 && !used; n++) {
            snprintf(path, sizeof path, "%s/segment-%010u.tmj", directory, n);
            used = stat(path, &segment) == 0 && segment.st_ino == ahead.st_ino;
        }
    }
    assert_true(used);
    check_ok(journal_close(j, &err));
}

static int fail_to_save(void *context, const char *step)
{
    (void)context;
    return strcmp(step, "save") == 0 ? -EIO : 0;
}

static void see_loss(void *context, const struct loss *loss)
{
    (void)loss;
    ++*(unsigned *)context;
}

/* Killed before it had journaled anything, and the next start ends before it could say that the segment is not used. */
static void a_start_that_ends_early_loses_nothing(void **unused)
{
    (void)unused;
    unsigned losses = 0;
    struct journal *j = open_journal();
    journal_abandon(j);
    struct journal_options options = {.directory = directory, .ring_path = ring, .owner = "test", .segment_blocks = 64, .segment_records = 16,
                                      .fault = fail_to_save};
    assert_int_equal(journal_open(&options, &j, &err), -EIO);
    check_ok(journal_close(open_journal(), &err));
    check_ok(losses_visit(directory, see_loss, &losses, &err));
    assert_int_equal(losses, 0);
}

/* A quota that has no room for them makes none; what is there says so at the end. */
static void a_small_quota_makes_none_ahead(void **unused)
{
    (void)unused;
    struct journal *j = open_spare(4, 15 * 64 * 4096);
    struct lsn lsn;
    struct stat st;
    for (unsigned i = 0; i < 16 * 6; i++)
        check_ok(journal_append_durable(j, &discard, &lsn, &err));
    for (unsigned i = 0; i < 4; i++) /* as many rounds of the sealer at least as would have made them */
        usleep(250000);
    char path[128];
    for (unsigned i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/free-%u.tmj", directory, i);
        assert_int_not_equal(stat(path, &st), 0);
    }
    check_ok(journal_close(j, &err));
}

/* Who waits for a sync through a suspension and the resume learns that it is lost: later LSNs are not its own (J3). */
static void a_sync_is_not_answered_by_what_came_after_a_gap(void **unused)
{
    (void)unused;
    struct journal *j = open_journal();
    struct journal_record record = discard;
    struct journal_ticket ticket;
    struct lsn before, after;
    bool lost = false;
    record.lazy = true;
    for (int attempt = 0; attempt < 100 && !lost; attempt++) { /* the sealer may write it at that very moment */
        check_ok(journal_append_durable(j, &discard, &before, &err));
        check_ok(journal_append(j, &record, &ticket, &err));
        journal_suspend(j, "a test", false);
        journal_backed(j, &ticket);
        check_ok(journal_resume_prepare(j, &err));
        check_ok(journal_resume(j, &err));
        struct journal_status s;
        journal_status(j, &s);
        lost = s.durable.n < ticket.lsn.n;
    }
    assert_true(lost);
    lost = false;
    assert_true(journal_sync_step(j, ticket.lsn, &lost));
    assert_true(lost);
    check_ok(journal_append_durable(j, &discard, &after, &err));
    assert_true(after.n > ticket.lsn.n);
    lost = false;
    assert_true(journal_sync_step(j, ticket.lsn, &lost));
    assert_true(lost);
    assert_true(journal_sync_step(j, before, &lost));
    assert_false(lost);
    assert_true(journal_sync_step(j, after, &lost));
    assert_false(lost);
    check_ok(journal_close(j, &err));
}

static _Atomic bool write_fails;
static struct journal *interrupted; /* once, between an append and the wait for it */

static int fail_to_write(void *context, const char *step)
{
    (void)context;
    return write_fails && strcmp(step, "write") == 0 ? -EIO : 0;
}

/* The frame is lost, and journaling goes on with other records before anybody looks. */
static void interrupt(struct journal *j, bool go_on)
{
    struct lsn lsn;
    while (!journal_is_suspended(j))
        journal_poll(j);
    write_fails = false;
    check_ok(journal_resume_prepare(j, &err));
    check_ok(journal_resume(j, &err));
    if (go_on)
        check_ok(journal_append_durable(j, &discard, &lsn, &err));
}

void __real_journal_backed(struct journal *j, const struct journal_ticket *ticket);
void __wrap_journal_backed(struct journal *j, const struct journal_ticket *ticket);
void __wrap_journal_backed(struct journal *j, const struct journal_ticket *ticket)
{
    __real_journal_backed(j, ticket);
    if (interrupted == j) {
        interrupted = NULL;
        interrupt(j, true);
    }
}

static struct journal *open_failing(void)
{
    struct journal_options options = {.directory = directory, .ring_path = ring, .owner = "test", .segment_blocks = 64, .segment_records = 16,
                                      .fault = fail_to_write};
    struct journal *j;
    check_ok(journal_open(&options, &j, &err));
    return j;
}

/* Nor is an object or a tag, though the journal has gone on before its thread has looked. */
static void what_a_gap_has_taken_is_not_acknowledged(void **unused)
{
    (void)unused;
    struct journal *j = open_failing();
    struct journal_point point;
    write_fails = true;
    interrupted = j;
    assert_int_equal(journal_object(j, "object", "{}", 2, &point, &err), -ESHUTDOWN);
    write_fails = true;
    interrupted = j;
    assert_int_equal(journal_tag(j, "then", NULL, &point, &err), -ESHUTDOWN);
    check_ok(journal_object(j, "object", "{}", 2, &point, &err));
    check_ok(journal_tag(j, "then", NULL, &point, &err)); /* there is none of that name */
    check_ok(journal_close(j, &err));
}

/* Nor does it wait for others to write. */
static void a_wait_ends_with_the_gap(void **unused)
{
    (void)unused;
    struct journal *j = open_failing();
    struct journal_ticket ticket;
    write_fails = true;
    check_ok(journal_append(j, &discard, &ticket, &err));
    journal_backed(j, &ticket);
    interrupt(j, false);
    check_error(journal_wait(j, &ticket, &err), -ESHUTDOWN, "it was, and goes on");
    check_ok(journal_close(j, &err));
}

/* `context`: 0, or why there is no room. */
static int no_room(void *context, const char *step)
{
    return strcmp(step, "segment") == 0 ? *(_Atomic int *)context : 0;
}

/* Killed on a full disk, again and again: the volumes can be used, what was in the ring alone is found by comparing, and no LSN is given twice. */
static void open_without_room(int why, const char *told)
{
    _Atomic int full = 0;
    struct journal_options options = {.directory = directory, .ring_path = ring, .owner = "test", .segment_blocks = 64, .segment_records = 16,
                                      .fault = no_room, .fault_context = (void *)&full};
    struct journal_record lazy = discard;
    struct journal_ticket ticket;
    struct journal *j;
    struct lsn last, next;
    lazy.lazy = true;
    check_ok(journal_open(&options, &j, &err));
    journal_recovered(j);
    check_ok(journal_append_durable(j, &discard, &last, &err));
    check_ok(journal_append(j, &lazy, &ticket, &err)); /* in the ring alone */
    journal_backed(j, &ticket);
    full = why;
    for (int i = 0; i < 3; i++) {
        journal_abandon(j);
        check_ok(journal_open(&options, &j, &err));
        assert_true(journal_is_suspended(j));
        assert_true(journal_recovery(j)->compare);
        struct journal_status s;
        journal_status(j, &s);
        assert_true(s.latest.n >= last.n);
        check_error(journal_append(j, &discard, &(struct journal_ticket){0}, &err), -ESHUTDOWN, told);
        check_error(journal_resume_prepare(j, &err), why, "cannot go on yet");
        journal_recovered(j);
    }
    full = 0;
    check_ok(journal_resume_prepare(j, &err));
    check_ok(journal_resume(j, &err));
    check_ok(journal_append_durable(j, &discard, &next, &err));
    assert_true(next.n > ticket.lsn.n);
    journal_abandon(j);
    check_ok(journal_open(&options, &j, &err));
    assert_false(journal_is_suspended(j));
    assert_true(journal_recovery(j)->compare); /* nobody has said that it was done */
    check_ok(journal_close(j, &err));
}

static void an_opening_without_room_for_a_segment_begins_suspended(void **unused)
{
    (void)unused;
    open_without_room(-ENOSPC, "No space left");
}

static void an_opening_on_a_disk_whose_quota_is_used_up_begins_suspended(void **unused)
{
    (void)unused;
    open_without_room(-EDQUOT, "Disk quota exceeded (of the file system");
}

/* As with a full disk, the oldest history goes before journaling is given up. */
static void a_quota_of_the_disk_that_is_used_up_drops_history(void **unused)
{
    (void)unused;
    _Atomic int full = 0;
    struct journal_options options = {.directory = directory, .ring_path = ring, .owner = "test", .segment_blocks = 64, .segment_records = 16,
                                      .fault = no_room, .fault_context = (void *)&full};
    struct journal_status s = {0};
    struct journal *j;
    struct lsn lsn;
    check_ok(journal_open(&options, &j, &err));
    journal_recovered(j);
    for (int i = 0; i < 100; i++)
        check_ok(journal_append_durable(j, &discard, &lsn, &err));
    check_ok(journal_seal(j, &err));
    journal_status(j, &s);
    assert_true(s.segments > 2);
    assert_int_equal(s.oldest.n, 0);
    full = -EDQUOT;
    check_ok(journal_append_durable(j, &discard, &lsn, &err));
    uint64_t limit_ns = clock_boottime_ns(clock_system()) + 20 * NS_PER_SECOND;
    while (s.oldest.n == 0 && !s.suspended && clock_boottime_ns(clock_system()) < limit_ns) {
        if (journal_append_durable(j, &discard, &lsn, &err) < 0)
            assert_int_equal(err.code, -ESHUTDOWN);
        journal_status(j, &s);
    }
    assert_true(s.oldest.n > 0);
    journal_abandon(j);
}

static int begin(void **unused)
{
    char template[] = "/dev/shm/tidemark-writer-XXXXXX";
    (void)unused;
    if (!mkdtemp(template))
        return -1;
    memcpy(directory, template, sizeof template);
    snprintf(ring, sizeof ring, "%s.ring", directory);
    refusals = 0;
    clock_ahead = write_fails = false;
    interrupted = NULL;
    return 0;
}

static int end(void **unused)
{
    (void)unused;
    unlink(ring);
    return io_remove_tree(directory, &err);
}

/* Mode flush: a write that was acknowledged, and was still in the ring when the process was killed, is at the moment at which it was. */
static void what_is_replayed_keeps_its_time(void **unused)
{
    enum { RECORDS = 5 };
    (void)unused;
    int told[2];
    uint64_t acknowledged_ns[RECORDS];
    assert_return_code(pipe(told), errno);
    pid_t child = fork();
    if (child == 0) {
        struct journal *j = open_journal();
        struct journal_record record = discard;
        struct journal_ticket ticket;
        record.lazy = true;
        kept_back = true; /* however long it takes, none of it comes to the disk */
        for (int i = 0; i < RECORDS; i++) {
            usleep(2000);
            if (journal_append(j, &record, &ticket, &err) < 0)
                _exit(1);
            journal_backed(j, &ticket);
            usleep(2000);
            acknowledged_ns[i] = clock_realtime_ns(clock_system());
        }
        _exit(write(told[1], acknowledged_ns, sizeof acknowledged_ns) == (ssize_t)sizeof acknowledged_ns ? 0 : 1);
    }
    int status;
    assert_return_code(waitpid(child, &status, 0), errno);
    assert_int_equal(status, 0);
    assert_int_equal(read(told[0], acknowledged_ns, sizeof acknowledged_ns), sizeof acknowledged_ns);
    close(told[0]);
    close(told[1]);
    usleep(20000);
    struct journal *j = open_journal();
    struct journal_point found;
    struct lsn lsn;
    assert_true(journal_recovery(j)->replayed > 0);
    check_ok(journal_append_durable(j, &discard, &lsn, &err)); /* and what comes after has its own */
    check_ok(journal_resolve(j, &(struct point){.kind = POINT_LSN, .lsn = lsn}, &found, &err));
    assert_true(found.realtime_ns > acknowledged_ns[RECORDS - 1] + 15000000u);
    for (uint64_t i = 0; i < RECORDS; i++) {
        check_ok(journal_resolve(j, &(struct point){.kind = POINT_TIME, .realtime_ns = acknowledged_ns[i]}, &found, &err));
        assert_int_equal(found.lsn.n, lsn.n - RECORDS + i);
    }
    check_ok(journal_close(j, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_replayed_keeps_its_time, begin, end),
        cmocka_unit_test_setup_teardown(a_clock_that_is_set_back_delays_nothing, begin, end),
        cmocka_unit_test_setup_teardown(a_submission_that_the_kernel_puts_off_is_repeated, begin, end),
        cmocka_unit_test_setup_teardown(gaps_without_end_are_joined, begin, end),
        cmocka_unit_test_setup_teardown(segments_are_made_ahead_and_used, begin, end),
        cmocka_unit_test_setup_teardown(a_small_quota_makes_none_ahead, begin, end),
        cmocka_unit_test_setup_teardown(a_start_that_ends_early_loses_nothing, begin, end),
        cmocka_unit_test_setup_teardown(an_opening_without_room_for_a_segment_begins_suspended, begin, end),
        cmocka_unit_test_setup_teardown(an_opening_on_a_disk_whose_quota_is_used_up_begins_suspended, begin, end),
        cmocka_unit_test_setup_teardown(a_quota_of_the_disk_that_is_used_up_drops_history, begin, end),
        cmocka_unit_test_setup_teardown(a_sync_is_not_answered_by_what_came_after_a_gap, begin, end),
        cmocka_unit_test_setup_teardown(what_a_gap_has_taken_is_not_acknowledged, begin, end),
        cmocka_unit_test_setup_teardown(a_wait_ends_with_the_gap, begin, end),
    };
    return cmocka_run_group_tests_name("journal-writer", tests, NULL, NULL);
}
