/* SPDX-License-Identifier: Apache-2.0 */
/* A disk that others fill: what the journal itself can do without makes room for what it cannot, and once it
 * is full no more journaling goes on by itself. On a tmpfs of its own, which needs root. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "journal/journal_internal.h"
#include "journal/pin.h"

#define SEGMENT_BLOCKS 64u

static struct stand {
    char disk[64], directory[80], ring[80];
    struct journal *journal;
    uint32_t volume;
    int filler;
    const char *_Atomic no_room_at; /* a step; NULL: none */
} x;
static struct error err;

static int at_step(void *context, const char *step)
{
    const char *full = x.no_room_at;
    (void)context;
    return full && strcmp(step, full) == 0 ? -ENOSPC : 0;
}

static int set_up_with(uint32_t segment_blocks)
{
    char path[96];
    x = (struct stand){.filler = -1};
    snprintf(x.disk, sizeof x.disk, "/dev/shm/tidemark-full-XXXXXX");
    assert_non_null(mkdtemp(x.disk));
    snprintf(x.ring, sizeof x.ring, "%s.ring", x.disk);
    snprintf(x.directory, sizeof x.directory, "%s/journal", x.disk);
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return 0; /* needs root */
    assert_return_code(mount("none", x.disk, "tmpfs", 0, "size=16m"), errno);
    snprintf(path, sizeof path, "%s/filler", x.disk);
    x.filler = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    assert_true(x.filler >= 0);
    struct journal_options o = {.directory = x.directory,
                                .segment_blocks = segment_blocks,
                                .segment_records = 64,
                                .fanout = 2,
                                .ring_path = x.ring,
                                .owner = "test_full_disk",
                                .fault = at_step};
    struct volume_info volume;
    check_ok(journal_open(&o, &x.journal, &err));
    journal_recovered(x.journal); /* what is reserved is for an opening alone */
    check_ok(journal_volume(x.journal, "v", 1 << 20, false, &volume, &err));
    x.volume = volume.id;
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    return set_up_with(SEGMENT_BLOCKS);
}

/* Of such ones the half of what is reserved has room for a drop of what append_some writes. */
static int set_up_larger(void **state)
{
    (void)state;
    return set_up_with(4 * SEGMENT_BLOCKS);
}

static int tear_down(void **state)
{
    (void)state;
    if (x.filler >= 0) {
        journal_abandon(x.journal);
        close(x.filler);
        assert_return_code(umount(x.disk), errno);
    }
    unlink(x.ring);
    return rmdir(x.disk);
}

static void need_root(void)
{
    if (x.filler < 0)
        skip();
}

static void append_some(unsigned count)
{
    static const char data[4 * JOURNAL_BLOCK_BYTES];
    struct journal_record record = {.op = OP_WRITE,
                                    .flags = RECORD_LAST,
                                    .volume = x.volume,
                                    .length = sizeof data / 512,
                                    .payload = data,
                                    .payload_bytes = sizeof data};
    struct journal_ticket ticket;
    for (unsigned i = 0; i < count; i++) {
        check_ok(sync_append(x.journal, &record, APPEND_WRITTEN, &ticket, &err));
    }
}

static struct journal_status status(void)
{
    struct journal_status s;
    journal_status(x.journal, &s);
    return s;
}

/* Somebody else takes all that is left. */
static void fill_disk(void)
{
    static const char page[4096];
    while (write(x.filler, page, sizeof page) > 0)
        continue;
    assert_int_equal(errno, ENOSPC);
}

static unsigned for_free_files(int (*call)(const char *path))
{
    char path[128];
    unsigned count = 0;
    for (unsigned i = 0; i < 8; i++) {
        snprintf(path, sizeof path, "%s/free-%u.tmj", x.directory, i);
        count += call(path) == 0;
    }
    return count;
}

static int is_there(const char *path)
{
    return access(path, F_OK);
}

static unsigned free_files(void)
{
    return for_free_files(is_there);
}

/* Nor is there anything that the journal can do without. */
static void take_all(void)
{
    for_free_files(unlink);
    fill_disk();
}

/* Sealed segments, dropped ones that wait to be used again, and no room beside them. */
static void fill_beside_free_files(void)
{
    append_some(60);
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_drop(x.journal, status().latest, &err));
    append_some(8); /* more than half of a segment: it is not cut when it is sealed */
    fill_disk();
    assert_true(free_files() > 0);
}

static void resume(void)
{
    check_ok(journal_resume_prepare(x.journal, &err));
    check_ok(journal_resume(x.journal, &err));
}

/* Neither an index nor a manifest suspends the journal while it has files that it can do without. */
static void a_segment_is_sealed_in_the_room_of_free_files(void **unused)
{
    (void)unused;
    need_root();
    fill_beside_free_files();
    check_ok(journal_seal(x.journal, &err));
}

static void journaling_goes_on_in_the_room_of_free_files(void **unused)
{
    (void)unused;
    need_root();
    fill_beside_free_files();
    journal_suspend(x.journal, "a test", false);
    resume();
}

/* The segment that was ready goes before what needs room. */
static void journaling_goes_on_in_the_room_of_the_next_segment(void **unused)
{
    (void)unused;
    need_root();
    append_some(3);
    while (x.journal->ready_fd < 0)
        usleep(1000);
    assert_int_equal(free_files(), 0);
    fill_disk();
    journal_suspend(x.journal, "a test", false);
    resume();
}

/* Whatever it is that there is no room for while journaling is to go on. */
static void history_goes_where_a_segment_cannot_be_sealed(void **unused)
{
    (void)unused;
    need_root();
    append_some(60);
    check_ok(journal_seal(x.journal, &err));
    append_some(1);
    assert_int_equal(status().oldest.n, 0);
    x.no_room_at = "seal";
    assert_int_equal(journal_seal(x.journal, &err), -ESHUTDOWN);
    check_error(journal_resume_prepare(x.journal, &err), -ENOSPC, "cannot go on yet");
    check_ok(journal_maintain(x.journal, &err));
    assert_true(status().oldest.n > 0);
    x.no_room_at = NULL;
    resume();
    append_some(1);
}

static size_t segment_count(void)
{
    struct manifest m;
    check_ok(journal_manifest(x.journal, &m, &err));
    size_t count = m.segment_count;
    manifest_release(&m);
    return count;
}

/* Whether one segment less was enough is for whoever found no room to say: history is not dropped as long as that takes. */
static void no_more_history_goes_than_has_to(void **unused)
{
    (void)unused;
    need_root();
    append_some(100);
    check_ok(journal_seal(x.journal, &err));
    size_t before = segment_count();
    assert_true(before > 4);
    x.no_room_at = "segment";
    journal_suspend(x.journal, "a test", false);
    for (size_t gone = 1; gone <= 2; gone++) {
        check_error(journal_resume_prepare(x.journal, &err), -ENOSPC, "cannot go on yet");
        check_ok(journal_maintain(x.journal, &err));
        assert_int_equal(segment_count(), before - gone);
    }
    x.no_room_at = NULL;
    resume();
}

/* To drop history takes room itself, for a manifest and for what goes to the base, before it gives any. */
static void history_goes_where_there_is_no_room_for_that_either(void **unused)
{
    (void)unused;
    need_root();
    append_some(320);
    check_ok(journal_seal(x.journal, &err));
    size_t before = segment_count(), tries = 0;
    assert_true(before > 4);
    while (status().oldest.n == 0) { /* the first time a segment may have been ready */
        journal_suspend(x.journal, "a test", false);
        take_all();
        while (journal_resume_prepare(x.journal, &err) < 0) {
            assert_true(tries++ < before);
            take_all(); /* whatever becomes free on the disk is gone at once */
            check_ok(journal_maintain(x.journal, &err));
        }
        check_ok(journal_resume(x.journal, &err));
        append_some(1);
    }
}

/* Else the next full disk suspends journaling at once, where a segment would have been dropped. */
static void a_pin_that_ended_blocks_nothing(void **unused)
{
    (void)unused;
    need_root();
    append_some(60);
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_pin(x.journal, PIN_KEPT_PREFIX "1", (struct lsn){1}, false, &err));
    x.no_room_at = "segment";
    journal_suspend(x.journal, "a test", false);
    check_error(journal_resume_prepare(x.journal, &err), -ENOSPC, "cannot go on yet");
    check_ok(journal_maintain(x.journal, &err));
    assert_true(status().quota_blocked);
    x.no_room_at = NULL;
    resume();
    check_ok(journal_unpin(x.journal, PIN_KEPT_PREFIX "1", &err));
    check_ok(journal_maintain(x.journal, &err));
    assert_false(status().quota_blocked);
    assert_int_equal(status().oldest.n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_segment_is_sealed_in_the_room_of_free_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(journaling_goes_on_in_the_room_of_free_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(journaling_goes_on_in_the_room_of_the_next_segment, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(history_goes_where_a_segment_cannot_be_sealed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_more_history_goes_than_has_to, set_up, tear_down),
        cmocka_unit_test_setup_teardown(history_goes_where_there_is_no_room_for_that_either, set_up_larger, tear_down),
        cmocka_unit_test_setup_teardown(a_pin_that_ended_blocks_nothing, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
