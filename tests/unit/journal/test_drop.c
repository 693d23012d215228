/* SPDX-License-Identifier: Apache-2.0 */
/* J5, J6, J7: what dropping old history does to the disk. Segments are read in long stretches, of which a bad sector costs only itself;
 * what goes to the base is written in slices; and it goes along with the application's writes, but never makes anybody wait. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/thread.h"
#include "journal/drop_pace.h"
#include "journal/drop_wait.h"
#include "journal/journal_internal.h"
#include "journal/pace.h"
#include "journal/payload.h"
#include "view/image.h"

#define SEGMENT_BLOCKS 512u
#define SEGMENT_BYTES ((uint64_t)SEGMENT_BLOCKS * JOURNAL_BLOCK_BYTES)
#define BLOCKS 200u /* that are written, each by a frame of two */

static struct error err;
static char directory[64], ring[80];
static struct journal *j;
static uint32_t volume;
static _Atomic unsigned long reads, bad_reads, pushes; /* what goes wrong here is tried again by the janitor */
static _Atomic bool push_fails;
static uint64_t bad_from, bad_to; /* bytes of the first segment that cannot be read */
static _Atomic uint64_t unpushed_bytes, most_unpushed_bytes; /* of the base's image */
static _Atomic bool entries_fail, header_fails; /* of the base's .crc: the second write of entries; the reads */
static _Atomic unsigned entries_written;

static bool is_file(int fd, const char *part)
{
    char link[64], path[128] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return readlink(link, path, sizeof path - 1) > 0 && strstr(path, part);
}

ssize_t __real_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset)
{
    if (is_file(fd, "/segment-") && offset > 0)
        reads++;
    if (is_file(fd, "/segment-") && (uint64_t)offset < bad_to && (uint64_t)offset + length > bad_from) {
        bad_reads++;
        errno = EIO;
        return -1;
    }
    if (header_fails && offset == 0 && is_file(fd, "/base/") && is_file(fd, ".crc")) {
        errno = EIO;
        return -1;
    }
    return __real_pread64(fd, data, length, offset);
}

ssize_t __real_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset)
{
    if (is_file(fd, "/base/") && is_file(fd, ".img")) {
        for (int i = 0; i < count; i++)
            unpushed_bytes += v[i].iov_len;
        if (unpushed_bytes > most_unpushed_bytes)
            most_unpushed_bytes = unpushed_bytes;
    }
    if (entries_fail && offset >= 4096 && is_file(fd, "/base/") && is_file(fd, ".crc") && entries_written++) {
        errno = ENOSPC;
        return -1;
    }
    return __real_pwritev64(fd, v, count, offset);
}

int __wrap_sync_file_range(int fd, off_t offset, off_t length, unsigned flags);
int __wrap_sync_file_range(int fd, off_t offset, off_t length, unsigned flags)
{
    assert_true(is_file(fd, "/base/") && offset == 0 && length == 0 && flags & SYNC_FILE_RANGE_WRITE);
    unpushed_bytes = 0;
    pushes++;
    if (push_fails) {
        errno = EIO;
        return -1;
    }
    return 0;
}

static void write_sectors(uint64_t lba, uint32_t count, char content)
{
    char data[JOURNAL_BLOCK_BYTES];
    memset(data, content, sizeof data);
    struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = volume, .lba = lba, .length = count,
                                    .payload = data, .payload_bytes = count * 512};
    struct journal_ticket ticket;
    check_ok(sync_append(j, &record, APPEND_WRITTEN, &ticket, &err));
}

static void write_block(uint32_t block, char content)
{
    write_sectors((uint64_t)block * 8, 8, content);
}

static char content_of(uint32_t block)
{
    return (char)(1 + block % 120);
}

/* A sealed segment with a write of each block, in an order of their own, and a second that begins with one more write. */
static struct lsn fill(void)
{
    struct journal_status s;
    for (uint32_t i = 0; i < BLOCKS; i++)
        write_block(i * 37 % BLOCKS, content_of(i * 37 % BLOCKS));
    check_ok(journal_seal(j, &err));
    journal_status(j, &s);
    write_block(BLOCKS, content_of(BLOCKS));
    reads = bad_reads = pushes = 0;
    unpushed_bytes = most_unpushed_bytes = 0;
    return s.latest;
}

/* Compares the newest image; block `bad` (BLOCKS: none) is an error. */
static void check_image(uint32_t bad)
{
    static char read[JOURNAL_BLOCK_BYTES] __attribute__((aligned(4096)));
    struct journal_status s;
    struct image *image;
    journal_status(j, &s);
    check_ok(journal_sync(j, -1, NULL, &err));
    check_ok(journal_pin(j, "engine-look", s.latest, true, &err));
    check_ok(image_open(directory, "engine-look", &image, &err));
    for (uint32_t i = 0; i <= BLOCKS; i++) {
        int r = image_read(image, volume, (uint64_t)i * 8, 8, read, &err);
        assert_int_equal(r, i == bad && bad < BLOCKS ? -EBADMSG : 0);
        for (size_t k = 0; k < sizeof read && r == 0; k++)
            assert_int_equal(read[k], content_of(i));
    }
    image_free(image);
    check_ok(journal_unpin(j, "engine-look", &err));
}

static uint64_t base(void)
{
    struct manifest m;
    check_ok(journal_manifest(j, &m, &err));
    uint64_t base = m.base.n;
    manifest_release(&m);
    return base;
}

static void a_segment_is_read_in_long_stretches(void **unused)
{
    (void)unused;
    struct lsn last = fill();
    check_ok(journal_drop(j, last, &err));
    assert_int_equal(base(), last.n);
    unsigned long most = SEGMENT_BYTES / PAYLOAD_WINDOW_BYTES + 2;
    assert_in_range(reads, 1, most);
    check_image(BLOCKS);
}

/* What was read of one is nothing of another, though it stands at the same place. */
static void segments_that_go_together_are_not_mixed_up(void **unused)
{
    struct journal_status s;
    (void)unused;
    fill();
    for (uint32_t i = BLOCKS; i-- > 5;) /* what is left of the first is read with what stands where the second begins */
        write_block(i * 37 % BLOCKS, content_of(i * 37 % BLOCKS));
    write_block(BLOCKS, content_of(BLOCKS)); /* the second's first payload, before that, is of no use any more */
    check_ok(journal_seal(j, &err));
    journal_status(j, &s);
    write_block(BLOCKS, content_of(BLOCKS));
    check_ok(journal_drop(j, s.latest, &err));
    assert_int_equal(base(), s.latest.n);
    check_image(BLOCKS);
}

static void a_slice_is_written_before_the_next(void **unused)
{
    (void)unused;
    struct lsn last = fill();
    check_ok(journal_drop(j, last, &err));
    assert_true(pushes >= BLOCKS / DROP_SLICE_BLOCKS);
    assert_in_range(most_unpushed_bytes, JOURNAL_BLOCK_BYTES, DROP_SLICE_BLOCKS * JOURNAL_BLOCK_BYTES);
}

static void a_bad_sector_costs_only_itself(void **unused)
{
    (void)unused;
    struct lsn last = fill();
    uint32_t nth = 3 * BLOCKS / 5; /* written by the frame after the header's block, the volume's frame of two blocks, and so many others */
    bad_from = (1 + 2 + 2ull * nth + 1) * JOURNAL_BLOCK_BYTES;
    bad_to = bad_from + JOURNAL_BLOCK_BYTES;
    check_ok(journal_drop(j, last, &err));
    assert_int_equal(base(), last.n);
    assert_in_range(bad_reads, 2, 4); /* each may take a bad disk seconds: the stretch once, then the block alone, by as many attempts as any */
    bad_to = 0;
    check_image(nth * 37 % BLOCKS);
}

/* The kernel tells of it once: what was written before may be nowhere, so it is written again. */
static void a_slice_that_cannot_be_written_is_not_forgotten(void **unused)
{
    (void)unused;
    struct lsn last = fill();
    push_fails = true;
    assert_int_equal(journal_drop(j, last, &err), -EIO);
    assert_int_equal(base(), 0);
    pushes = 0;
    push_fails = false;
    check_ok(journal_drop(j, last, &err));
    assert_int_equal(base(), last.n);
    assert_true(pushes >= BLOCKS / DROP_SLICE_BLOCKS); /* all of them */
    check_image(BLOCKS);
}

/* J7: a drop that goes along with the writes ends before these are paced, wherever it begins, and it never takes much of the history. */
static void a_drop_begins_early_enough(void **unused)
{
    (void)unused;
    uint64_t segment = JOURNAL_SEGMENT_BLOCKS * JOURNAL_BLOCK_BYTES;
    for (size_t count = 2; count < 300; count++) {
        size_t batch = drop_batch(count);
        uint64_t quota = (count + 2) * segment; /* two more are there: the active one, and the one that is ready */
        assert_in_range(batch, 1, DROP_MOST_SEGMENTS);
        assert_true(batch == 1 || batch * 16 <= count);
        uint64_t used = quota - drop_early_bytes(batch, segment) - segment; /* at most, where it begins: a segment was just made ready */
        uint64_t appended = 0, done = 0, all = batch * JOURNAL_SEGMENT_BLOCKS;
        while (done < all) {
            done += !drop_is_ahead(done, appended) ? DROP_SLICE_BLOCKS : 0;
            appended += drop_is_ahead(done, appended);
        }
        assert_int_equal(pace_of(used + appended * JOURNAL_BLOCK_BYTES, quota, segment), 0);
    }
}

static void set_appended(uint64_t blocks)
{
    pthread_mutex_lock(&j->mutex);
    j->appended_blocks = blocks;
    pthread_mutex_unlock(&j->mutex);
}

static void a_drop_goes_along_with_the_writes(void **unused)
{
    struct drop_pace p;
    (void)unused;
    uint64_t random = check_seed();
    for (int round = 0; round < 1000; round++) {
        uint64_t k = check_random(&random) % 100000;
        assert_false(drop_is_ahead(3 * k, 2 * k));
        assert_true(drop_is_ahead(3 * k + 1, 2 * k));
    }
    set_appended(1000);
    drop_pace_begin(&p, j);
    assert_int_equal(drop_rest(&p, j), 0);
    unsigned slices = 0;
    for (unsigned i = 0; i < 10 * DROP_SLICE_BLOCKS; i++)
        slices += drop_pace_add(&p, 1);
    assert_int_equal(slices, 10);
    assert_int_equal(drop_rest(&p, j), 0); /* nobody writes */
    set_appended(1000 + 1);
    assert_in_range(drop_rest(&p, j), NS_PER_MS, 20 * NS_PER_MS); /* somebody does, less than is dropped: it rests, and not for long */
    set_appended(1000 + 10 * DROP_SLICE_BLOCKS);
    assert_int_equal(drop_rest(&p, j), 0);
}

static void set_quota(uint64_t bytes)
{
    pthread_mutex_lock(&j->mutex);
    j->options.quota_bytes = bytes;
    pthread_mutex_unlock(&j->mutex);
}

/* J7: whoever waits for it does not wait for its rests. */
static void a_drop_does_not_rest_while_somebody_waits(void **unused)
{
    struct drop_pace p;
    (void)unused;
    drop_pace_begin(&p, j);
    for (unsigned i = 0; i < 10; i++)
        drop_pace_add(&p, DROP_SLICE_BLOCKS);
    set_appended(p.from_blocks + 1);
    assert_true(drop_rest(&p, j) > 0);
    atomic_fetch_add(&j->hold_wanted, 1);
    assert_int_equal(drop_rest(&p, j), 0);
    atomic_fetch_sub(&j->hold_wanted, 1);
    pthread_mutex_lock(&j->mutex);
    j->disk_full = true;
    pthread_mutex_unlock(&j->mutex);
    assert_int_equal(drop_rest(&p, j), 0);
    pthread_mutex_lock(&j->mutex);
    j->disk_full = false;
    pthread_mutex_unlock(&j->mutex);
    assert_true(drop_rest(&p, j) > 0);
    fill();
    check_ok(journal_seal(j, &err));
    drop_pace_begin(&p, j);
    drop_pace_add(&p, 1000);
    set_appended(p.from_blocks + 1);
    pthread_mutex_lock(&j->maintain_mutex); /* the janitor drops nothing */
    set_quota(SEGMENT_BYTES / 4);
    assert_int_equal(drop_rest(&p, j), 0);
    set_quota(100 * SEGMENT_BYTES);
    assert_true(drop_rest(&p, j) > 0);
    pthread_mutex_unlock(&j->maintain_mutex);
}

static _Atomic bool drop_fails;

static int inject(void *context, const char *step)
{
    (void)context;
    return drop_fails && strcmp(step, "drop") == 0 ? -EIO : 0;
}

static void open_journal(void)
{
    struct journal_options options = {.directory = directory, .ring_path = ring, .owner = "test", .segment_blocks = SEGMENT_BLOCKS, .segment_records = 512,
                                      .fault = inject};
    check_ok(journal_open(&options, &j, &err));
}

/* A sector of the first block of the base that no record has. */
struct look {
    struct image *image;
    char data[512];
    struct error err;
    int r;
    _Atomic bool done;
};

static void *look_main(void *context)
{
    struct look *l = context;
    l->r = image_read(l->image, volume, 0, 1, l->data, &l->err);
    l->done = true;
    return NULL;
}

static void change_base(off_t offset, char content)
{
    char path[128], data[512];
    memset(data, content, sizeof data);
    snprintf(path, sizeof path, "%s/base/%u.img", directory, volume);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && pwrite(fd, data, sizeof data, offset) == sizeof data);
    close(fd);
}

/* A view's image of the newest point; the journal is killed in the middle of a drop, with one block half changed. */
static int kill_in_a_drop(struct image **ret)
{
    char lock[128];
    struct journal_status s;
    write_block(0, 'a');
    check_ok(journal_seal(j, &err));
    journal_status(j, &s);
    write_sectors(2, 1, 'b');
    check_ok(journal_drop(j, s.latest, &err));
    uint64_t before = base();
    assert_int_equal(before, s.latest.n);
    check_ok(journal_seal(j, &err));
    journal_status(j, &s);
    write_block(1, 'c');
    snprintf(lock, sizeof lock, "%s/pins/v-look.lock", directory);
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0);
    check_ok(journal_pin(j, "v-look", s.latest, false, &err));
    check_ok(image_open(directory, "v-look", ret, &err));
    drop_fails = true;
    assert_int_equal(journal_drop(j, s.latest, &err), -EIO);
    assert_int_equal(base(), before);
    journal_abandon(j);
    j = NULL;
    drop_fails = false;
    change_base(2 * 512, 'b');
    return fd;
}

/* What is half changed is no damage: the next engine repeats the drop, and who reads waits for it. */
static void an_interrupted_drop_is_waited_for(void **unused)
{
    struct look l = {.done = false};
    pthread_t thread;
    (void)unused;
    int lock = kill_in_a_drop(&l.image);
    assert_int_equal(pthread_create(&thread, NULL, look_main, &l), 0);
    usleep(300000);
    assert_false(l.done);
    open_journal();
    pthread_join(thread, NULL);
    if (l.r < 0)
        fail_msg("%s", l.err.message);
    assert_true(l.data[0] == 'a' && l.data[511] == 'a');
    check_ok(journal_maintain(j, &err));
    change_base(0, 'x'); /* and what is damage then is told at once */
    uint64_t since = clock_boottime_ns(clock_system());
    look_main(&l);
    assert_int_equal(l.r, -EBADMSG);
    assert_true(clock_boottime_ns(clock_system()) - since < DROP_WAIT_NS); /* it sleeps for so long otherwise */
    image_free(l.image);
    close(lock);
    check_ok(journal_unpin(j, "v-look", &err));
}

/* Who reads without an engine ends. */
static void nobody_waits_for_ever(void **unused)
{
    struct image *image;
    (void)unused;
    int lock = kill_in_a_drop(&image);
    struct drop_patience patience = {directory, 200 * NS_PER_MS};
    for (int read = 0; read < 2; read++) {
        struct drop_look look = {0};
        unsigned looks = 0;
        while (drop_wait_again(&patience, &look))
            assert_true(++looks < 100);
        assert_in_range(looks, 1, read ? 1 : 5); /* of 50 ms but the first; what it has waited for once it does not wait for again */
    }
    image_free(image);
    close(lock);
    open_journal();
}

static void crc_path(char path[128])
{
    snprintf(path, 128, "%s/base/%u.crc", directory, volume);
}

/* Reads a block of the newest image; 0: all of it is `content`. */
static int look_at(uint32_t block, char content)
{
    static char read[JOURNAL_BLOCK_BYTES] __attribute__((aligned(4096)));
    struct journal_status s;
    struct image *image;
    check_ok(journal_sync(j, -1, NULL, &err));
    journal_status(j, &s);
    check_ok(journal_pin(j, "engine-look", s.latest, true, &err));
    check_ok(image_open(directory, "engine-look", &image, &err));
    int r = image_read(image, volume, (uint64_t)block * 8, 8, read, &err);
    for (size_t k = 0; k < sizeof read && r == 0; k++)
        assert_int_equal(read[k], content);
    image_free(image);
    check_ok(journal_unpin(j, "engine-look", &err));
    return r;
}

/* Three blocks in the base, then one in a segment that can be dropped. */
static struct lsn fill_base(void)
{
    struct journal_status s;
    write_block(0, 'a');
    write_block(1, 'b');
    write_block(4, 'f');
    check_ok(journal_seal(j, &err));
    journal_status(j, &s);
    write_block(1, 'c');
    write_block(2, 'd');
    check_ok(journal_drop(j, s.latest, &err));
    check_ok(journal_seal(j, &err));
    journal_status(j, &s);
    write_block(3, 'e');
    return s.latest;
}

/* J6: what a damaged base held is lost, also if the drop that finds it ends soon after it has made the base anew. */
static void what_a_damaged_base_held_is_no_zeroes(void **unused)
{
    char path[128];
    (void)unused;
    struct lsn last = fill_base();
    check_ok(journal_resize(j, volume, (BLOCKS + 20) * JOURNAL_BLOCK_BYTES, &err));
    crc_path(path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && pwrite(fd, "X", 1, 3) == 1);
    close(fd);
    entries_written = 0;
    entries_fail = true;
    assert_int_equal(journal_drop(j, last, &err), -ENOSPC);
    assert_true(entries_written > 1);
    journal_abandon(j);
    entries_fail = false;
    open_journal();
    check_ok(journal_drop(j, last, &err));
    assert_int_equal(base(), last.n);
    check_error(look_at(0, 'a'), -EBADMSG, "is damaged at 0");
    check_ok(look_at(1, 'c'));
    check_ok(look_at(2, 'd'));
    check_ok(look_at(3, 'e'));
    check_error(look_at(4, 'f'), -EBADMSG, "is damaged at 16384");
    check_ok(look_at(BLOCKS + 10, 0)); /* the base was smaller */
}

/* Nor where the volume grows before a drop finds it. */
static void a_damaged_base_is_none_after_growing(void **unused)
{
    char path[128];
    (void)unused;
    struct lsn last = fill_base();
    crc_path(path);
    assert_int_equal(unlink(path), 0);
    memcpy(path + strlen(path) - 3, "img", 3);
    assert_int_equal(unlink(path), 0);
    check_ok(journal_resize(j, volume, (BLOCKS + 20) * JOURNAL_BLOCK_BYTES, &err));
    check_error(look_at(0, 'a'), -EBADMSG, "1.img is missing");
    check_ok(journal_drop(j, last, &err));
    check_error(look_at(4, 'f'), -EBADMSG, "is damaged at 16384");
    check_ok(look_at(3, 'e'));
    check_ok(look_at(BLOCKS + 10, 0));
}

/* A disk that does not give it now is no damage. */
static void a_base_that_cannot_be_read_stays(void **unused)
{
    char path[128];
    struct stat before, after;
    (void)unused;
    struct lsn last = fill_base();
    crc_path(path);
    assert_int_equal(stat(path, &before), 0);
    header_fails = true;
    int r = journal_drop(j, last, &err);
    header_fails = false;
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(after.st_ino, before.st_ino);
    assert_int_equal(r, -EIO);
    check_ok(journal_drop(j, last, &err));
    assert_int_equal(base(), last.n);
    check_ok(look_at(0, 'a'));
    check_ok(look_at(1, 'c'));
    check_ok(look_at(4, 'f'));
    check_ok(look_at(5, 0));
}

static int begin(void **unused)
{
    char template[] = "/dev/shm/tidemark-drop-XXXXXX";
    (void)unused;
    bad_from = bad_to = 0;
    push_fails = entries_fail = header_fails = false;
    if (!mkdtemp(template))
        return -1;
    memcpy(directory, template, sizeof template);
    snprintf(ring, sizeof ring, "%s.ring", directory);
    struct volume_info v;
    open_journal();
    check_ok(journal_volume(j, "v", (BLOCKS + 1) * JOURNAL_BLOCK_BYTES, false, &v, &err));
    volume = v.id;
    return 0;
}

static int end(void **unused)
{
    (void)unused;
    check_ok(journal_close(j, &err));
    unlink(ring);
    return io_remove_tree(directory, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_segment_is_read_in_long_stretches, begin, end),
        cmocka_unit_test_setup_teardown(segments_that_go_together_are_not_mixed_up, begin, end),
        cmocka_unit_test_setup_teardown(a_slice_is_written_before_the_next, begin, end),
        cmocka_unit_test_setup_teardown(an_interrupted_drop_is_waited_for, begin, end),
        cmocka_unit_test_setup_teardown(nobody_waits_for_ever, begin, end),
        cmocka_unit_test_setup_teardown(a_bad_sector_costs_only_itself, begin, end),
        cmocka_unit_test_setup_teardown(a_slice_that_cannot_be_written_is_not_forgotten, begin, end),
        cmocka_unit_test_setup_teardown(what_a_damaged_base_held_is_no_zeroes, begin, end),
        cmocka_unit_test_setup_teardown(a_damaged_base_is_none_after_growing, begin, end),
        cmocka_unit_test_setup_teardown(a_base_that_cannot_be_read_stays, begin, end),
        cmocka_unit_test(a_drop_begins_early_enough),
        cmocka_unit_test_setup_teardown(a_drop_goes_along_with_the_writes, begin, end),
        cmocka_unit_test_setup_teardown(a_drop_does_not_rest_while_somebody_waits, begin, end),
    };
    return cmocka_run_group_tests_name("journal-drop", tests, NULL, NULL);
}
