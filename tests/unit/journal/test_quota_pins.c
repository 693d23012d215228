/* SPDX-License-Identifier: Apache-2.0 */
/* J7: views keep history, but no more than the reserve of the quota: the oldest is told to end first, and where that does not help
 * journaling is suspended; it goes on when there is room. docs/adr/0019-views-and-the-quota.md. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/io.h"
#include "journal/journal_internal.h"
#include "journal/pin.h"

#define SEGMENT_BLOCKS 64u
#define SEGMENT_BYTES ((uint64_t)SEGMENT_BLOCKS * JOURNAL_BLOCK_BYTES)
#define QUOTA_BYTES (8 * SEGMENT_BYTES)
#define WORK_BYTES (3 * SEGMENT_BYTES) /* the active segment, the next, and one that is being sealed */

static struct stand {
    char directory[64], ring[96];
    struct journal *journal;
    uint32_t volume;
} x;
static struct error err;

static int set_up(void **state)
{
    (void)state;
    x = (struct stand){.volume = 0};
    snprintf(x.directory, sizeof x.directory, "/dev/shm/tidemark-qpins-XXXXXX");
    assert_non_null(mkdtemp(x.directory));
    snprintf(x.ring, sizeof x.ring, "%s.ring", x.directory);
    struct journal_options o = {.directory = x.directory,
                                .segment_blocks = SEGMENT_BLOCKS,
                                .segment_records = 64,
                                .fanout = 2,
                                .quota_bytes = QUOTA_BYTES,
                                .ring_path = x.ring,
                                .owner = "test_quota_pins"};
    struct volume_info volume;
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(journal_volume(x.journal, "v", 1 << 20, false, &volume, &err));
    x.volume = volume.id;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    journal_abandon(x.journal);
    check_ok(io_remove_tree(x.directory, &err));
    unlink(x.ring);
    return 0;
}

static struct journal_status status(void)
{
    struct journal_status s;
    journal_status(x.journal, &s);
    assert_true(s.journal_bytes <= QUOTA_BYTES + s.reserve_bytes + WORK_BYTES); /* always */
    return s;
}

/* 0, or what the journal said. */
static int append_one(void)
{
    static const char data[4 * JOURNAL_BLOCK_BYTES];
    struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = x.volume, .length = sizeof data / 512,
                                    .payload = data, .payload_bytes = sizeof data};
    struct journal_ticket ticket;
    return sync_append(x.journal, &record, APPEND_WRITTEN, &ticket, &err);
}

static void append_some(unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        check_ok(append_one());
}

/* A pin of the newest point, with its lock. */
static int open_view(const char *name)
{
    char path[160];
    snprintf(path, sizeof path, "%s/pins/%s.lock", x.directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0);
    check_ok(journal_pin(x.journal, name, status().latest, false, &err));
    return fd;
}

static bool is_revoked(const char *name)
{
    char path[160];
    snprintf(path, sizeof path, "%s/pins/%s" PIN_REVOKED_SUFFIX, x.directory, name);
    return access(path, F_OK) == 0;
}

static void the_oldest_view_is_told_to_end_and_makes_room(void **state)
{
    (void)state;
    append_some(12);
    int old = open_view("v-old");
    append_some(12);
    int other = open_view("verify-1"), new = open_view("v-new");
    unsigned appended = 0;
    while (!is_revoked("v-old") && appended++ < 40 * SEGMENT_BLOCKS) {
        append_some(1);
        if (is_revoked("v-new"))
            assert_true(is_revoked("v-old"));
        check_ok(journal_maintain(x.journal, &err));
    }
    assert_true(is_revoked("v-old"));
    struct journal_status s = status();
    assert_true(s.quota_blocked && s.journal_bytes > QUOTA_BYTES + s.reserve_bytes / 2); /* not before it has to be */
    close(old);
    check_ok(journal_maintain(x.journal, &err));
    for (appended = 0; !is_revoked("v-new") && appended++ < 40 * SEGMENT_BLOCKS;) { /* the newer one keeps history in its turn */
        append_some(1);
        check_ok(journal_maintain(x.journal, &err));
    }
    assert_true(is_revoked("v-new"));
    assert_false(is_revoked("verify-1"));
    close(new);
    close(other);
    check_ok(journal_maintain(x.journal, &err));
    s = status();
    assert_false(s.quota_blocked || s.suspended);
    assert_true(s.journal_bytes <= QUOTA_BYTES + WORK_BYTES);
    append_some(12);
}

static void a_view_that_does_not_end_cannot_fill_the_disk(void **state)
{
    (void)state;
    append_some(12);
    int lock = open_view("v-deaf");
    int r = 0;
    unsigned appended = 0;
    for (; r == 0 && appended < 100 * SEGMENT_BLOCKS; appended++) {
        r = append_one();
        status();
    }
    assert_int_equal(r, -ESHUTDOWN);
    assert_true(is_revoked("v-deaf"));
    assert_non_null(strstr(status().reason, "outgrown its quota"));
    check_error(journal_resume_prepare(x.journal, &err), -EDQUOT, "over its quota");
    close(lock);
    check_ok(journal_maintain(x.journal, &err));
    assert_true(status().journal_bytes <= QUOTA_BYTES + WORK_BYTES);
    check_ok(journal_resume_prepare(x.journal, &err));
    check_ok(journal_resume(x.journal, &err));
    append_some(20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_oldest_view_is_told_to_end_and_makes_room, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_view_that_does_not_end_cannot_fill_the_disk, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
