/* SPDX-License-Identifier: Apache-2.0 */
/* J3, J6: a sector of the tail that cannot be read, when a later frame says that it was durable, costs what stands in it and no more:
 * what comes after it is there, and reading it is an error. */
#include "check.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

#include "journal/journal.h"
#include "journal/journal_format.h"
#include "view/image.h"

#define RECORDS 3u

static struct error err;
static char directory[64], ring[80];
static uint64_t bad_from, bad_to; /* bytes of the segment that cannot be read */

ssize_t __real_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset)
{
    char link[64], path[128] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, "/segment-") && (uint64_t)offset < bad_to &&
        (uint64_t)offset + length > bad_from) {
        errno = EIO;
        return -1;
    }
    return __real_pread64(fd, data, length, offset);
}

static void open_journal(struct journal **ret)
{
    struct journal_options options = {.directory = directory, .ring_path = ring, .owner = "test", .segment_blocks = 64, .segment_records = 16};
    check_ok(journal_open(&options, ret, &err));
}

static void what_follows_an_unreadable_payload_is_kept(void **unused)
{
    (void)unused;
    struct journal *j;
    struct volume_info v;
    struct journal_status s;
    struct image *image;
    uint64_t lsns[RECORDS];
    static char data[4096], read[4096] __attribute__((aligned(4096)));
    open_journal(&j);
    check_ok(journal_volume(j, "v", 65536, false, &v, &err));
    for (uint32_t i = 0; i < RECORDS; i++) { /* a frame each: one block after the segment's header, and VOLUME's two */
        memset(data, 'a' + (int)i, sizeof data);
        struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = v.id, .lba = (uint64_t)i * 8, .length = 8,
                                        .payload = data, .payload_bytes = sizeof data};
        struct lsn lsn;
        check_ok(journal_append_durable(j, &record, &lsn, &err));
        lsns[i] = lsn.n;
    }
    journal_abandon(j);
    bad_from = (1 + 2 + 2 + 1) * 4096; /* the payload of the second */
    bad_to = bad_from + 4096;
    open_journal(&j);
    journal_status(j, &s);
    assert_int_equal(s.latest.n, lsns[RECORDS - 1]);
    check_ok(journal_pin(j, "engine-look", s.latest, true, &err));
    check_ok(image_open(directory, "engine-look", &image, &err));
    for (uint32_t i = 0; i < RECORDS; i++) {
        int r = image_read(image, v.id, (uint64_t)i * 8, 8, read, &err);
        assert_int_equal(r < 0, i == 1);
        for (size_t k = 0; k < sizeof read && r == 0; k++)
            assert_int_equal(read[k], 'a' + (int)i);
    }
    bad_to = 0; /* also when the disk can read it again: its checksum is not known any more */
    assert_int_equal(image_read(image, v.id, 8, 8, read, &err), -EBADMSG);
    image_free(image);
    check_ok(journal_unpin(j, "engine-look", &err));
    check_ok(journal_close(j, &err));
}

/* Not when nothing says that it was durable: then it is a torn end. */
static void an_unreadable_end_is_torn(void **unused)
{
    (void)unused;
    struct journal *j;
    struct volume_info v;
    struct journal_status s;
    static char data[4096];
    struct lsn first;
    open_journal(&j);
    check_ok(journal_volume(j, "v", 65536, false, &v, &err));
    struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = v.id, .length = 8, .payload = data, .payload_bytes = sizeof data};
    struct journal_ticket ticket;
    check_ok(journal_append_durable(j, &record, &first, &err));
    check_ok(journal_append(j, &record, &ticket, &err));
    journal_backed(j, &ticket);
    check_ok(journal_wait(j, &ticket, &err));
    journal_abandon(j);
    unlink(ring);
    bad_from = (1 + 2 + 2 + 1) * 4096;
    bad_to = bad_from + 4096;
    open_journal(&j);
    journal_status(j, &s);
    assert_int_equal(s.latest.n, first.n);
    check_ok(journal_close(j, &err));
}

static int begin(void **unused)
{
    char template[] = "/dev/shm/tidemark-unreadable-XXXXXX";
    (void)unused;
    bad_from = bad_to = 0;
    if (!mkdtemp(template))
        return -1;
    memcpy(directory, template, sizeof template);
    snprintf(ring, sizeof ring, "%s.ring", directory);
    return 0;
}

static int end(void **unused)
{
    (void)unused;
    unlink(ring);
    return io_remove_tree(directory, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_follows_an_unreadable_payload_is_kept, begin, end),
        cmocka_unit_test_setup_teardown(an_unreadable_end_is_torn, begin, end),
    };
    return cmocka_run_group_tests_name("journal-unreadable", tests, NULL, NULL);
}
