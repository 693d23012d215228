/* SPDX-License-Identifier: Apache-2.0 */
/* J5, J6, CS1 to CS3: what is compressed stays what it was, a flipped bit is found, a kill leaves one of both files, and what
 * does not get smaller stays as it is. $TIDEMARK_SEED replays. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "check.h"
#include "check_key.h"
#include "journal/cold.h"
#include "journal/journal.h"
#include "journal/salvage.h"
#include "journal/verify.h"
#include "view/image.h"

#define BLOCK 4096u
#define BLOCKS 12 /* of the volume, that are written again and again */
#define WRITES 160
#define EACH 40 /* writes a segment */
#define START_NS (1700000000ull * NS_PER_SECOND)

static struct error err;
static char directory[64], ring[80];
static _Atomic uint64_t now_ns;
static _Atomic unsigned kill_at;
static _Atomic bool killed;
static struct journal *journal;
static uint32_t volume;
static uint64_t random_state;
static struct {
    uint64_t lsn, content[BLOCKS]; /* the seed of each block's content, 0: zeroes */
} points[WRITES];

static void fill_block(char *data, uint64_t seed, bool dense)
{
    memset(data, 0, BLOCK);
    for (size_t i = 0; seed && i < BLOCK; i += 8) {
        uint64_t word = dense || i % 256 == 0 ? check_random(&seed) : 0x2020202020202020ull;
        memcpy(data + i, &word, 8);
    }
}

/* ---- one file ---- */

static void write_file(const char *path, const char *blocks, uint32_t count)
{
    struct cold_writer *w;
    uint32_t kib;
    char header[BLOCK] = {0};
    struct stat st;
    struct segment_header *h = (struct segment_header *)header;
    *h = (struct segment_header){.magic = le64_of(SEGMENT_MAGIC), .version = le32_of(JOURNAL_VERSION), .number = le32_of(7)};
    check_ok(cold_writer_new(path, NULL, &w, &err));
    for (uint32_t done = 0, part; done < count; done += part) {
        part = 1 + (uint32_t)(check_random(&random_state) % 20);
        part = part < count - done ? part : count - done;
        check_ok(cold_writer_add(w, blocks + (size_t)done * BLOCK, part, &err));
    }
    check_ok(cold_writer_finish(w, header, &kib, &err));
    cold_writer_free(w, false);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal((uint64_t)st.st_size, kib * 1024ull); /* what the quota counts is what it takes */
}

/* Returns whether all blocks could be read; those that could are right, the others match no checksum that they had. */
static bool read_file(const char *path, const char *blocks, uint32_t count, bool *ret_worn)
{
    struct cold_reader *c;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool whole = true;
    assert_true(fd >= 0);
    *ret_worn = true;
    int r = cold_open(path, fd, &c, &err);
    if (r < 0) {
        assert_int_equal(r, -EBADMSG);
        close(fd);
        return false;
    }
    *ret_worn = cold_is_worn(c);
    char *data = malloc((size_t)count * BLOCK);
    for (uint32_t i = 0; i < count; i++) {
        r = cold_read(c, i + 1, 1, data);
        if (r == 0)
            assert_memory_equal(data, blocks + (size_t)i * BLOCK, BLOCK);
        else
            assert_true(r == -EBADMSG && memcmp(data, blocks + (size_t)i * BLOCK, BLOCK) != 0);
        whole &= r == 0;
    }
    for (int n = 0; whole && n < 20; n++) {
        uint32_t at = (uint32_t)(check_random(&random_state) % count), part = 1 + (uint32_t)(check_random(&random_state) % (count - at));
        check_ok(cold_read(c, at + 1, part, data));
        assert_memory_equal(data, blocks + (size_t)at * BLOCK, (size_t)part * BLOCK);
    }
    assert_int_equal(cold_read(c, 0, 1, data), -ENODATA);
    assert_int_equal(cold_read(c, count + 1, 1, data), -ENODATA);
    assert_int_equal(cold_read(c, count, 2, data), -ENODATA);
    cold_close(c);
    free(data);
    return whole;
}

static void flip(const char *path, uint64_t offset, unsigned char mask)
{
    unsigned char byte = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && io_pread_full(fd, &byte, 1, offset) == 0);
    byte ^= mask;
    assert_int_equal(io_pwrite_full(fd, &byte, 1, offset), 0);
    close(fd);
}

static char *make_blocks(uint32_t count)
{
    char *blocks = malloc((size_t)count * BLOCK);
    for (uint32_t i = 0; i < count; i++)
        fill_block(blocks + (size_t)i * BLOCK, check_random(&random_state) % 4 ? i + 1 : 0, i / COLD_CHUNK_BLOCKS % 3 == 2);
    return blocks;
}

static void cs1_reads_what_was_written(void **unused)
{
    (void)unused;
    char path[96];
    bool worn;
    snprintf(path, sizeof path, "%s/file.tmc", directory);
    for (uint32_t count = 1; count < 600; count += count < 20 ? 1 : 97) {
        char *blocks = make_blocks(count);
        write_file(path, blocks, count);
        assert_true(read_file(path, blocks, count, &worn));
        assert_false(worn);
        free(blocks);
    }
}

static void cs2_a_flipped_bit_costs_one_chunk_at_most(void **unused)
{
    (void)unused;
    enum { COUNT = 61 };
    char path[96], *blocks = make_blocks(COUNT);
    struct stat st;
    bool worn;
    snprintf(path, sizeof path, "%s/file.tmc", directory);
    write_file(path, blocks, COUNT);
    assert_int_equal(stat(path, &st), 0);
    uint64_t table = (uint64_t)st.st_size - 3 * BLOCK;
    for (uint64_t at = 0; at < (uint64_t)st.st_size; at += 1 + check_random(&random_state) % 61) {
        unsigned char mask = (unsigned char)(1u << check_random(&random_state) % 8);
        flip(path, at, mask);
        bool whole = read_file(path, blocks, COUNT, &worn);
        bool twice = at < BLOCK || at >= table;
        if (twice && !whole)
            fail_msg("header and table are there twice, but byte %llu makes the file unreadable", (unsigned long long)at);
        if (at < BLOCK && !worn)
            fail_msg("the damaged header is not noticed");
        flip(path, at, mask);
    }
    assert_true(read_file(path, blocks, COUNT, &worn) && !worn);
    flip(path, 0, 1);
    flip(path, table, 1);
    assert_true(read_file(path, blocks, COUNT, &worn) && worn); /* one copy of each */
    flip(path, table + BLOCK, 1);
    assert_false(read_file(path, blocks, COUNT, &worn));
    for (uint64_t left = 0; left < (uint64_t)st.st_size; left += 1 + check_random(&random_state) % 5000) {
        write_file(path, blocks, COUNT);
        assert_int_equal(truncate(path, (off_t)left), 0);
        read_file(path, blocks, COUNT, &worn);
    }
    free(blocks);
}

/* ---- a journal ---- */

static uint64_t time_now(void *context)
{
    (void)context;
    return now_ns;
}

static bool fault(void *context, unsigned step)
{
    (void)context;
    if (killed && step == 7) /* nobody goes on after it */
        return true;
    killed |= kill_at == step;
    return kill_at == step;
}

static struct journal_options make_options(bool compress, bool thin)
{
    static const struct clock clock = {time_now, time_now, NULL};
    struct journal_options options = {.directory = directory, .key_file = check_key_file(), .ring_path = ring, .owner = "test",
                                      .segment_blocks = 300, .segment_records = EACH, .fanout = 2, .clock = &clock, .thin_fault = fault,
                                      .compress = compress, .compress_after_ns = 60 * NS_PER_SECOND};
    if (thin) {
        options.thinning[0] = (struct journal_thinning){60 * NS_PER_SECOND, 5};
        options.thinning_count = 1;
    }
    return options;
}

static void open_journal(bool compress, bool thin)
{
    struct journal_options options = make_options(compress, thin);
    struct volume_info v;
    check_ok(journal_open(&options, &journal, &err));
    check_ok(journal_volume(journal, "v", BLOCKS * BLOCK, false, &v, &err));
    volume = v.id;
}

/* One write a second, of a block or (`dense`) of all; then all is due to be compressed, which begins with `compress` or `thin`. */
static void write_history(bool dense, bool compress, bool thin)
{
    static char data[BLOCKS * BLOCK];
    struct journal_options options = make_options(compress, thin);
    for (int i = 0; i < WRITES; i++) {
        struct journal_ticket ticket;
        int block = dense ? 0 : i / 3 % BLOCKS, count = dense ? BLOCKS : 1;
        uint64_t seed = check_random(&random_state) | 1;
        for (int k = 0; k < count; k++)
            fill_block(data + k * BLOCK, seed + (uint64_t)k, dense);
        struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = volume, .lba = (uint64_t)block * 8,
                                        .length = (uint32_t)count * 8, .payload = data, .payload_bytes = (uint32_t)count * BLOCK};
        check_ok(journal_append(journal, &record, &ticket, &err));
        journal_backed(journal, &ticket);
        check_ok(journal_wait(journal, &ticket, &err));
        if (i)
            points[i] = points[i - 1];
        points[i].lsn = ticket.lsn.n;
        for (int k = 0; k < count; k++)
            points[i].content[block + k] = seed + (uint64_t)k;
        now_ns += NS_PER_SECOND;
        if (i % EACH == EACH - 1)
            check_ok(journal_seal(journal, &err));
    }
    now_ns += 120 * NS_PER_SECOND;
    journal_configure(journal, &options);
}

/* Returns how many blocks could be read. */
static size_t read_image(struct image *image, size_t point, bool dense)
{
    char data[BLOCK], expected[BLOCK];
    size_t right = 0;
    for (uint64_t block = 0; block < BLOCKS; block++) {
        int r = image_read(image, volume, block * 8, 8, data, &err);
        fill_block(expected, points[point].content[block], dense);
        if (r == 0 && memcmp(data, expected, sizeof data) != 0)
            fail_msg("J6: block %d of the image at point %zu is not what was written", (int)block, point);
        right += r == 0;
    }
    return right;
}

static size_t check_points(bool dense)
{
    size_t kept = 0;
    for (size_t i = 0; i < WRITES; i += 7) {
        struct image *image;
        int r = journal_pin(journal, "engine-test", (struct lsn){points[i].lsn}, true, &err);
        if (r == -ERANGE)
            continue;
        check_ok(r);
        check_ok(image_open(directory, "engine-test", &image, &err));
        assert_int_equal(read_image(image, i, dense), BLOCKS);
        image_free(image);
        check_ok(journal_unpin(journal, "engine-test", &err));
        kept++;
    }
    return kept;
}

static size_t count_files(const char *end)
{
    DIR *d = opendir(directory);
    size_t count = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        size_t length = strlen(e->d_name);
        count += strncmp(e->d_name, "segment-", 8) == 0 && length > strlen(end) && strcmp(e->d_name + length - strlen(end), end) == 0;
    }
    closedir(d);
    return count;
}

static uint64_t damages;
static void tell_damage(void *context, const struct verify_damage *d)
{
    (void)context, (void)d;
    damages++;
}
static void tell_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context, (void)done, (void)total;
}
static int verify(void)
{
    struct verify_report report = {tell_damage, tell_progress, NULL};
    struct verify_summary summary;
    damages = 0;
    return journal_verify(directory, &report, &summary, &err);
}

/* What the quota counts of the sealed segments. */
static uint64_t manifest_bytes(void)
{
    struct manifest m;
    uint64_t bytes = 0;
    check_ok(journal_manifest(journal, &m, &err));
    for (size_t i = 0; i < m.segment_count; i++)
        bytes += segment_info_bytes(&m.segments[i], 0);
    manifest_release(&m);
    return bytes;
}

/* The compressed segments are the history's whole ones, and journal_status tells the size of the files. */
static void check_counts(void)
{
    struct journal_status s;
    struct manifest m;
    uint64_t bytes = 0;
    size_t cold = 0;
    journal_status(journal, &s);
    check_ok(journal_manifest(journal, &m, &err));
    for (size_t i = 0; i < m.segment_count; i++) {
        char path[160], name[JOURNAL_FILE_BYTES];
        struct stat st;
        if (!m.segments[i].cold_kib)
            continue;
        snprintf(path, sizeof path, "%s/%s", directory, journal_cold_file_of(m.segments[i].number, m.segments[i].generation, name));
        assert_int_equal(stat(path, &st), 0);
        bytes += (uint64_t)st.st_size;
        cold++;
    }
    manifest_release(&m);
    assert_int_equal(cold, count_files(".tmc"));
    assert_int_equal(s.cold_segments, cold);
    assert_int_equal(s.cold_bytes, bytes);
    assert_true(!cold || s.cold_plain_bytes > 2 * bytes);
}

static void j5_a_compressed_history_is_what_it_was(void **unused)
{
    (void)unused;
    uint64_t before;
    open_journal(false, false);
    write_history(false, false, false);
    check_ok(journal_maintain(journal, &err));
    assert_int_equal(count_files(".tmc"), 0);
    before = manifest_bytes();
    struct journal_options options = make_options(true, false);
    journal_configure(journal, &options);
    check_ok(journal_maintain(journal, &err));
    assert_true(manifest_bytes() < before);
    assert_true(count_files(".tmc") >= WRITES / EACH);
    check_counts();
    assert_true(check_points(false) > 20);
    check_ok(verify());
    check_ok(journal_close(journal, &err));
    open_journal(false, false); /* switched off: what is compressed stays so */
    check_counts();
    assert_true(check_points(false) > 20);
    check_ok(journal_drop(journal, (struct lsn){points[WRITES / 2].lsn}, &err));
    assert_true(check_points(false) > 5);
    check_ok(verify());
    check_ok(journal_close(journal, &err));
}

static void j5_a_view_reads_on_while_its_segments_are_compressed(void **unused)
{
    (void)unused;
    struct image *image;
    open_journal(false, false);
    write_history(false, false, false);
    check_ok(journal_pin(journal, "engine-view", (struct lsn){points[WRITES - 50].lsn}, true, &err));
    check_ok(image_open(directory, "engine-view", &image, &err));
    assert_int_equal(read_image(image, WRITES - 50, false), BLOCKS); /* the files are open now */
    struct journal_options options = make_options(true, false);
    journal_configure(journal, &options);
    check_ok(journal_maintain(journal, &err));
    assert_true(count_files(".tmc") >= WRITES / EACH);
    assert_int_equal(read_image(image, WRITES - 50, false), BLOCKS);
    image_free(image);
    check_ok(image_open(directory, "engine-view", &image, &err));
    assert_int_equal(read_image(image, WRITES - 50, false), BLOCKS);
    image_free(image);
    check_ok(journal_close(journal, &err));
}

static void j5_a_kill_leaves_the_old_file_or_the_new_one(void **unused)
{
    (void)unused;
    struct journal_options options = make_options(true, false);
    open_journal(false, false);
    write_history(false, false, false);
    for (unsigned step = 7; step <= 9; step++) {
        struct manifest m;
        kill_at = step;
        journal_configure(journal, &options);
        check_ok(journal_maintain(journal, &err));
        journal_abandon(journal);
        assert_true(killed);
        kill_at = 0;
        killed = false;
        open_journal(false, false);
        check_ok(journal_manifest(journal, &m, &err));
        size_t sealed = m.segment_count;
        manifest_release(&m);
        assert_int_equal(count_files(".tmp"), 0);
        assert_int_equal(count_files(".tmc"), step == 9);
        assert_true(count_files(".tmj") >= sealed - (step == 9) && count_files(".tmj") <= sealed + 2); /* with the active one and the next */
        check_counts();
        assert_true(check_points(false) > 20);
        check_ok(verify());
    }
    check_ok(journal_close(journal, &err));
}

static void what_does_not_get_smaller_stays_as_it_is(void **unused)
{
    (void)unused;
    struct manifest m;
    open_journal(false, false);
    write_history(true, true, false);
    for (int i = 0; i < 2; i++) {
        check_ok(journal_maintain(journal, &err));
        assert_int_equal(count_files(".tmc"), 0);
        check_ok(journal_manifest(journal, &m, &err));
        size_t dense = 0;
        for (size_t k = 0; k < m.segment_count; k++)
            dense += m.segments[k].dense;
        assert_true(dense >= WRITES / EACH);
        manifest_release(&m);
        assert_true(check_points(true) > 20);
        check_ok(journal_close(journal, &err));
        open_journal(true, false); /* the note is kept */
    }
    check_ok(journal_close(journal, &err));
}

static void what_thinning_writes_is_compressed(void **unused)
{
    (void)unused;
    struct manifest m;
    size_t thinned = 0;
    open_journal(false, false);
    write_history(false, true, true);
    check_ok(journal_maintain(journal, &err));
    check_ok(journal_manifest(journal, &m, &err));
    for (size_t i = 0; i < m.segment_count; i++) {
        thinned += m.segments[i].generation > 0;
        assert_true(m.segments[i].cold_kib || !m.segments[i].generation);
    }
    assert_true(thinned > 0);
    manifest_release(&m);
    check_counts();
    size_t kept = 0;
    for (size_t i = 0; i < WRITES; i++)
        kept += journal_pin(journal, "engine-test", (struct lsn){points[i].lsn}, true, &err) == 0 &&
                journal_unpin(journal, "engine-test", &err) == 0;
    assert_true(kept > WRITES / 12 && kept < WRITES / 2);
    check_points(false);
    check_ok(verify());
    check_ok(journal_close(journal, &err));
}

/* The name of the first compressed segment's file. */
static void find_cold(char path[160], struct segment_info *ret)
{
    struct manifest m;
    char name[JOURNAL_FILE_BYTES];
    check_ok(journal_manifest(journal, &m, &err));
    size_t i = 0;
    while (i < m.segment_count && (!m.segments[i].cold_kib || m.segments[i].records < EACH))
        i++;
    assert_true(i < m.segment_count);
    *ret = m.segments[i];
    manifest_release(&m);
    snprintf(path, 160, "%s/%s", directory, journal_cold_file_of(ret->number, ret->generation, name));
}

static void j6_damage_of_a_compressed_segment_is_found(void **unused)
{
    (void)unused;
    char path[160];
    struct segment_info info;
    struct stat st;
    struct manifest m;
    size_t refused = 0, reported = 0, tried = 0;
    open_journal(false, false);
    write_history(false, true, false);
    check_ok(journal_maintain(journal, &err));
    check_ok(journal_manifest(journal, &m, &err));
    find_cold(path, &info);
    assert_int_equal(stat(path, &st), 0);
    check_ok(journal_pin(journal, "engine-test", info.last, true, &err));
    size_t point = 0;
    while (points[point].lsn < info.last.n)
        point++;
    for (uint64_t at = BLOCK; at < (uint64_t)st.st_size - 3 * BLOCK; at += 1 + check_random(&random_state) % 200, tried++) {
        struct image *image;
        struct salvage_segment found;
        flip(path, at, 4);
        check_ok(image_open(directory, "engine-test", &image, &err));
        refused += read_image(image, point, false) < BLOCKS; /* never wrong */
        image_free(image);
        if (verify() == -EBADMSG) {
            reported++;
            assert_true(damages > 0);
        }
        check_ok(salvage_scan(directory, &m.journal_id, &info, &found, &err));
        for (size_t i = 0; i < found.gap_count; i++)
            assert_true(found.gaps[i].low.n >= info.first.n - 1 && found.gaps[i].high.n <= info.last.n);
        salvage_release(&found);
        flip(path, at, 4);
    }
    assert_true(tried > 10 && refused > 0 && reported > tried / 2);
    check_ok(verify());
    manifest_release(&m);
    check_ok(journal_unpin(journal, "engine-test", &err));
    check_ok(journal_close(journal, &err));
}

static int set_up(void **unused)
{
    (void)unused;
    snprintf(directory, sizeof directory, "/dev/shm/tidemark-cold-XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    snprintf(ring, sizeof ring, "%s.ring", directory);
    now_ns = START_NS;
    kill_at = 0;
    killed = false;
    memset(points, 0, sizeof points);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    unlink(ring);
    return io_remove_tree(directory, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(cs1_reads_what_was_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(cs2_a_flipped_bit_costs_one_chunk_at_most, set_up, tear_down),
        cmocka_unit_test_setup_teardown(j5_a_compressed_history_is_what_it_was, set_up, tear_down),
        cmocka_unit_test_setup_teardown(j5_a_view_reads_on_while_its_segments_are_compressed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(j5_a_kill_leaves_the_old_file_or_the_new_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_does_not_get_smaller_stays_as_it_is, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_thinning_writes_is_compressed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(j6_damage_of_a_compressed_segment_is_found, set_up, tear_down),
    };
    random_state = check_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
