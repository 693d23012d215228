/* SPDX-License-Identifier: Apache-2.0 */
/* Thinning takes segments whose blocks a rewind refers to: they are copied to the rewind's store before. A block of that, of which a part was
 * there, is half changed when the copying ends in the middle. It is whole once it was copied again, however many starts come in between; and
 * what is damaged otherwise stays damaged. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "journal/base_store.h"
#include "journal/journal_internal.h"
#include "journal/payload.h"
#include "volume/group.h"

#define SIZE_BYTES (256u * 1024)
#define HALF_BYTES 2048u

static struct fixture {
    char root[64], directory[96], ring[96], backing[96];
    struct journal *journal;
    struct group *group;
    bool fails;
    uint32_t first, second; /* segments: of each half of the first block */
    struct lsn rewind;
} x;
static struct error err;

/* An entry of the base: its block was written before. */
static _Atomic bool entries_fail;

ssize_t __real_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset)
{
    char link[64], path[128] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (entries_fail && readlink(link, path, sizeof path - 1) > 0 && strstr(path, "/base/1.crc")) {
        errno = ENOSPC;
        return -1;
    }
    return __real_pwritev64(fd, v, count, offset);
}

static int fault(void *context, const char *step)
{
    (void)context;
    return x.fails && strcmp(step, "rescue") == 0 ? -EIO : 0;
}

static void open_all(void)
{
    struct journal_options o = {.directory = x.directory, .segment_blocks = 128, .segment_records = 24, .fanout = 8, .ring_path = x.ring,
                                .owner = "test_rescue", .fault = fault};
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
    check_ok(group_add_volume(x.group, "v", SIZE_BYTES, x.backing, &err));
    check_ok(group_start(x.group, &err));
}

static void close_all(void)
{
    group_free(x.group);
    check_ok(journal_close(x.journal, &err));
}

static void write_half(char content, unsigned half)
{
    char data[HALF_BYTES];
    memset(data, content, sizeof data);
    check_ok(block_pwrite(group_volume_block(x.group, 0), data, sizeof data, half * HALF_BYTES, 0, &err));
}

/* The segment that had what was written last. */
static uint32_t seal(void)
{
    struct manifest m;
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_manifest(x.journal, &m, &err));
    uint32_t number = m.segments[m.segment_count - 1].number;
    manifest_release(&m);
    return number;
}

static void make_root(void)
{
    char template[] = "/dev/shm/tidemark-rescue-XXXXXX";
    assert_non_null(mkdtemp(template));
    snprintf(x.root, sizeof x.root, "%s", template);
    snprintf(x.directory, sizeof x.directory, "%s/journal", template);
    snprintf(x.ring, sizeof x.ring, "%s/ring", template);
    snprintf(x.backing, sizeof x.backing, "%s/v.img", template);
}

/* A rewind to when the halves were A and B; the store has the first. */
static void begin(void)
{
    struct journal_status s;
    struct group_change change;
    make_root();
    open_all();
    write_half('A', 0);
    x.first = seal();
    write_half('B', 1);
    x.second = seal();
    journal_status(x.journal, &s);
    write_half('x', 0);
    write_half('x', 1);
    check_ok(group_rewind(x.group, s.latest, false, &change, &err));
    x.rewind = change.lsn;
    free(change.volumes);
    group_settle(x.group);
    check_ok(maintain_rescue(x.journal, x.first, x.first, &err));
}

static void end(void)
{
    close_all();
    check_ok(io_remove_tree(x.root, &err));
}

static bool is_told(void)
{
    char path[JOURNAL_PATH_BYTES];
    journal_path(x.journal, JOURNAL_RESCUING_FILE, path);
    return access(path, F_OK) == 0;
}

/* The first write of a change of the block: its data, before its checksum. */
static void change_half(void)
{
    char directory[JOURNAL_PATH_BYTES], path[JOURNAL_PATH_BYTES + 16], data[HALF_BYTES];
    payload_rescue_directory(x.directory, x.rewind, directory, sizeof directory);
    snprintf(path, sizeof path, "%s/1.img", directory);
    memset(data, 'B', sizeof data);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0 && pwrite(fd, data, sizeof data, HALF_BYTES) == sizeof data);
    close(fd);
}

static int read_store(char data[2 * HALF_BYTES])
{
    char directory[JOURNAL_PATH_BYTES];
    struct base_store *store;
    payload_rescue_directory(x.directory, x.rewind, directory, sizeof directory);
    check_ok(base_store_open(directory, false, &store, &err));
    int r = base_store_read(store, 1, 0, 2 * HALF_BYTES / BLOCK_SECTOR_BYTES, data, &err);
    base_store_free(store);
    return r;
}

static void what_was_copied_in_part_is_copied_again_later(void **unused)
{
    char found[2 * HALF_BYTES], wanted[2 * HALF_BYTES];
    (void)unused;
    begin();
    assert_false(is_told());
    x.fails = true;
    assert_int_equal(maintain_rescue(x.journal, x.second, x.second, &err), -EIO);
    x.fails = false;
    change_half();
    close_all();
    open_all(); /* and is not done again by this start */
    close_all();
    open_all();
    assert_true(is_told());
    check_ok(maintain_rescue(x.journal, x.second, x.second, &err));
    assert_false(is_told());
    check_ok(read_store(found));
    memset(wanted, 'A', HALF_BYTES);
    memset(wanted + HALF_BYTES, 'B', HALF_BYTES);
    assert_memory_equal(found, wanted, sizeof found);
    end();
}

/* What comes first may be a drop of the same history. */
static void what_was_copied_in_part_is_copied_again_by_a_drop(void **unused)
{
    char found[2 * HALF_BYTES], wanted[2 * HALF_BYTES];
    struct manifest m;
    (void)unused;
    begin();
    x.fails = true;
    assert_int_equal(maintain_rescue(x.journal, x.second, x.second, &err), -EIO);
    x.fails = false;
    change_half();
    close_all();
    open_all();
    check_ok(journal_manifest(x.journal, &m, &err));
    struct lsn last = m.segments[manifest_find_segment(&m, x.second)].last;
    manifest_release(&m);
    check_ok(journal_drop(x.journal, last, &err));
    check_ok(read_store(found));
    memset(wanted, 'A', HALF_BYTES);
    memset(wanted + HALF_BYTES, 'B', HALF_BYTES);
    assert_memory_equal(found, wanted, sizeof found);
    end();
}

static void damage_is_no_copy_in_part(void **unused)
{
    char found[2 * HALF_BYTES];
    (void)unused;
    begin();
    change_half();
    check_ok(maintain_rescue(x.journal, x.second, x.second, &err));
    assert_int_equal(read_store(found), -EBADMSG);
    end();
}

static struct lsn seal_latest(void)
{
    struct journal_status s;
    seal();
    journal_status(x.journal, &s);
    return s.latest;
}

/* One half, in a segment of its own. */
static struct lsn begin_sealed(void)
{
    make_root();
    open_all();
    write_half('A', 0);
    return seal_latest();
}

/* Segments: both halves as they were; the first as it was written over; another. A rewind to the first; the base has come to the second. */
static struct lsn begin_behind_base(void)
{
    struct group_change change;
    struct manifest m;
    struct lsn first = begin_sealed();
    write_half('x', 0);
    check_ok(journal_drop(x.journal, first, &err));
    struct lsn second = seal_latest();
    write_half('y', 1);
    struct lsn last = seal_latest();
    check_ok(group_rewind(x.group, first, false, &change, &err));
    x.rewind = change.lsn;
    free(change.volumes);
    group_settle(x.group);
    check_ok(journal_drop(x.journal, second, &err));
    check_ok(journal_manifest(x.journal, &m, &err));
    assert_int_equal(m.base.n, second.n);
    manifest_release(&m);
    return last;
}

/* J6: nothing is copied to it again from where it came, which has something else now. */
static void a_damaged_store_is_lost_however_often_it_is_made_again(void **unused)
{
    char directory[JOURNAL_PATH_BYTES], path[JOURNAL_PATH_BYTES + 16], found[2 * HALF_BYTES];
    (void)unused;
    struct lsn last = begin_behind_base();
    check_ok(read_store(found));
    assert_int_equal(found[0], 'A');
    payload_rescue_directory(x.directory, x.rewind, directory, sizeof directory);
    snprintf(path, sizeof path, "%s/1.crc", directory);
    assert_int_equal(truncate(path, 4096), 0);
    entries_fail = true; /* it comes as far as that */
    assert_int_equal(journal_drop(x.journal, last, &err), -ENOSPC);
    entries_fail = false;
    check_ok(journal_drop(x.journal, last, &err));
    assert_int_equal(read_store(found), -EBADMSG);
    end();
}

static void check_block(char first, char second)
{
    char found[2 * HALF_BYTES], wanted[2 * HALF_BYTES];
    memset(wanted, first, HALF_BYTES);
    memset(wanted + HALF_BYTES, second, HALF_BYTES);
    check_ok(block_pread(group_volume_block(x.group, 0), found, sizeof found, 0, &err));
    assert_memory_equal(found, wanted, sizeof found);
}

/* A drop is interrupted in the middle of a block of the base, of which a rewind wants the part that is not changed: it repeats the drop before,
 * and where that cannot be it does not happen. */
static void a_rewind_waits_for_an_interrupted_drop(void **unused)
{
    struct group_change change;
    (void)unused;
    struct lsn first = begin_sealed();
    write_half('B', 1);
    check_ok(journal_drop(x.journal, first, &err));
    struct lsn second = seal_latest();
    write_half('x', 0);
    entries_fail = true;
    assert_int_equal(journal_drop(x.journal, second, &err), -ENOSPC);
    check_error(group_rewind(x.group, second, false, &change, &err), -ENOSPC, "interrupted");
    check_block('x', 'B');
    entries_fail = false;
    check_ok(group_rewind(x.group, second, false, &change, &err));
    free(change.volumes);
    check_ok(journal_drop(x.journal, second, &err));
    check_block('A', 'B');
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_copied_in_part_is_copied_again_later),
        cmocka_unit_test(what_was_copied_in_part_is_copied_again_by_a_drop),
        cmocka_unit_test(damage_is_no_copy_in_part),
        cmocka_unit_test(a_rewind_waits_for_an_interrupted_drop),
        cmocka_unit_test(a_damaged_store_is_lost_however_often_it_is_made_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
