/* SPDX-License-Identifier: Apache-2.0 */
/* What opening a point and the first read of it look at: nothing that is the longer the more history there is. Counted in files and
 * reads, which no load on the machine changes. */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/crc32c.h"
#include "journal/index_internal.h"
#include "journal/journal_internal.h"
#include "journal/pin.h"
#include "view/image.h"

#define BLOCKS 96u /* of the volume: three regions of an image */
#define WRITES 512u
#define PIN "engine-test"

static struct error err;
static char directory[64], ring[80];
static struct journal *journal;
static uint32_t volume;
static uint64_t state;
static struct {
    uint64_t lsn;
    unsigned char content[BLOCKS]; /* the byte that fills each block; 0: never written */
} points[2 * WRITES];
static size_t point_count;

/* ---- counting ---- */

/* Of the thread that looks: the janitor goes about its own work. */
static _Thread_local struct {
    unsigned opens, manifests, indexes; /* indexes: l0-... */
    unsigned reads, accesses;
} seen;

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    int fd = __real_open64(path, flags, mode);
    seen.opens += fd >= 0; /* a segment has one of two names */
    seen.manifests += strstr(path, "/manifest") != NULL;
    seen.indexes += strstr(path, "/l0-") != NULL;
    return fd;
}
ssize_t __real_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t length, off_t offset)
{
    seen.reads++;
    return __real_pread64(fd, data, length, offset);
}

/* ---- a history ---- */

static void open_journal(uint32_t fanout)
{
    struct journal_options options = {.directory = directory, .ring_path = ring, .owner = "test", .segment_blocks = 600, .segment_records = 8,
                                      .fanout = fanout};
    struct volume_info v;
    check_ok(journal_open(&options, &journal, &err));
    check_ok(journal_volume(journal, "v", BLOCKS * 4096, false, &v, &err));
    volume = v.id;
}

static void write_block(unsigned block, uint32_t count)
{
    static char data[8 * 4096];
    struct journal_ticket ticket;
    unsigned char byte = (unsigned char)(1 + point_count % 255);
    memset(data, byte, sizeof data);
    struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = volume, .lba = (uint64_t)block * 8, .length = 8 * count,
                                    .payload = data, .payload_bytes = 4096 * count};
    check_ok(sync_append(journal, &record, APPEND_WRITTEN, &ticket, &err));
    if (point_count)
        points[point_count] = points[point_count - 1];
    points[point_count].lsn = ticket.lsn.n;
    memset(&points[point_count].content[block], byte, count);
    point_count++;
}

/* Mostly one block each; in merged segments, and a tail. */
static void write_history(void)
{
    for (unsigned i = 0; i < WRITES - 3; i++) {
        unsigned count = check_random(&state) % 8 == 0 ? 1 + (unsigned)(check_random(&state) % 8) : 1;
        write_block((unsigned)(check_random(&state) % (BLOCKS - count + 1)), count);
    }
    check_ok(journal_seal(journal, &err));
    check_ok(journal_maintain(journal, &err));
    for (unsigned i = 0; i < 3; i++)
        write_block((unsigned)(check_random(&state) % BLOCKS), 1);
}

static void read_block(struct image *image, size_t point, unsigned block)
{
    static char data[4096] __attribute__((aligned(4096)));
    char expected[4096];
    memset(expected, points[point].content[block], sizeof expected);
    check_ok(image_read(image, volume, (uint64_t)block * 8, 8, data, &err));
    if (memcmp(data, expected, sizeof data) != 0)
        fail_msg("block %u of the image at point %zu (LSN %llu) is not what was written", block, point, (unsigned long long)points[point].lsn);
}

static void check_point(size_t point)
{
    struct image *image;
    unsigned first = (unsigned)(check_random(&state) % BLOCKS);
    check_ok(journal_pin(journal, PIN, (struct lsn){points[point].lsn}, true, &err));
    check_ok(image_open(directory, PIN, &image, &err));
    for (unsigned i = 0; i < BLOCKS; i++) /* each region's first read is of some place in it, and alone */
        read_block(image, point, (first + i * 37) % BLOCKS);
    image_free(image);
    check_ok(journal_unpin(journal, PIN, &err));
}
static void check_points(size_t from)
{
    for (size_t i = from; i < point_count; i++)
        check_point(i);
}

/* ---- what is looked at ---- */

static void neither_the_manifest_nor_another_index(void **unused)
{
    (void)unused;
    open_journal(2);
    write_history();
    for (size_t i = 0; i < point_count; i += 7) {
        struct image *image;
        struct pin pin;
        unsigned block = (unsigned)(check_random(&state) % BLOCKS);
        while (!points[i].content[block])
            block = (block + 1) % BLOCKS;
        check_ok(journal_pin(journal, PIN, (struct lsn){points[i].lsn}, true, &err));
        check_ok(pin_load(directory, PIN, &pin, &err));
        memset(&seen, 0, sizeof seen);
        check_ok(image_open(directory, PIN, &image, &err));
        assert_int_equal(seen.manifests, 0);
        assert_true(seen.opens <= 2 + pin.source_count); /* the pin, each source, the base's directory */
        struct extent *pieces;
        size_t count;
        check_ok(image_resolve(image, volume, (uint64_t)block * 8, 8, &pieces, &count, &err));
        bool checked = pieces[0].flags & EXTENT_CHECKED;
        free(pieces);
        memset(&seen, 0, sizeof seen);
        read_block(image, i, block);
        if (checked && seen.opens != 1)
            fail_msg("%u files were opened for one block, %u of them indexes", seen.opens, seen.indexes);
        assert_int_equal(seen.manifests, 0);
        image_free(image);
        pin_release(&pin);
        check_ok(journal_unpin(journal, PIN, &err));
    }
    check_ok(journal_close(journal, &err));
}

/* The rest of its region stands in older indexes, or in none: the first read does not go there, the second has all of it. */
static void a_first_read_ends_where_its_blocks_are(void **unused)
{
    (void)unused;
    struct image *image;
    open_journal(8);
    for (unsigned i = 0; i < 6; i++) { /* too few to be merged (there is no segment 0): an index each */
        write_block(i, 1);
        check_ok(journal_seal(journal, &err));
    }
    size_t last = point_count - 1;
    check_ok(journal_pin(journal, PIN, (struct lsn){points[last].lsn}, true, &err));
    check_ok(image_open(directory, PIN, &image, &err));
    memset(&seen, 0, sizeof seen);
    read_block(image, last, 5);
    assert_int_equal(seen.reads, 2); /* the newest index's only page, and the block */
    memset(&seen, 0, sizeof seen);
    read_block(image, last, 4);
    assert_int_equal(seen.reads, 6); /* all indexes that were not asked before, and the block */
    memset(&seen, 0, sizeof seen);
    read_block(image, last, 3);
    assert_int_equal(seen.reads, 1);
    image_free(image);
    check_ok(journal_unpin(journal, PIN, &err));
    check_ok(journal_close(journal, &err));
}

int __real_access(const char *path, int mode);
int __wrap_access(const char *path, int mode);
int __wrap_access(const char *path, int mode)
{
    seen.accesses++;
    return __real_access(path, mode);
}

/* A file that is missing is found and named; those that are there are not looked at one by one. */
static void the_files_are_there(void **unused)
{
    (void)unused;
    struct manifest m;
    char path[160], aside[170], name[JOURNAL_FILE_BYTES];
    open_journal(2);
    write_history();
    size_t point = point_count - 100;
    check_ok(journal_pin(journal, PIN, (struct lsn){points[point].lsn}, true, &err));
    memset(&seen, 0, sizeof seen);
    check_ok(image_check_files(directory, PIN, NULL, 0, &err));
    assert_int_equal(seen.accesses, 0);
    check_ok(journal_manifest(journal, &m, &err));
    for (size_t i = 0; i < m.segment_count; i++)
        for (int index = 0; index < 2; index++) {
            snprintf(path, sizeof path, "%s/%s", directory,
                     index ? journal_l0_file(m.segments[i].number, name) : journal_segment_file(m.segments[i].number, name));
            snprintf(aside, sizeof aside, "%s.aside", path);
            assert_int_equal(rename(path, aside), 0);
            if (m.segments[i].first.n <= points[point].lsn)
                check_error(image_check_files(directory, PIN, NULL, 0, &err), -EBADMSG, name);
            else
                check_ok(image_check_files(directory, PIN, NULL, 0, &err));
            assert_int_equal(rename(aside, path), 0);
        }
    manifest_release(&m);
    check_ok(journal_unpin(journal, PIN, &err));
    check_ok(journal_close(journal, &err));
}

/* ---- the journal's mutex, which appends wait for ---- */

static _Thread_local struct {
    bool watching;
    unsigned tables, writes; /* writes: that come when the first table is taken */
} taken;

void *__real_io_alloc_pages(size_t length_bytes);
void *__wrap_io_alloc_pages(size_t length_bytes);
void *__wrap_io_alloc_pages(size_t length_bytes)
{
    bool free = !taken.watching;
    for (unsigned i = 0; !free && i < 2000; i++) { /* others have it for a moment */
        free = pthread_mutex_trylock(&journal->mutex) == 0;
        if (free)
            pthread_mutex_unlock(&journal->mutex);
        else
            usleep(1000);
    }
    assert_true(free);
    taken.tables += taken.watching;
    for (; taken.watching && taken.writes; taken.writes--)
        write_block(taken.writes % BLOCKS, 1);
    return __real_io_alloc_pages(length_bytes);
}

/* Populating memory takes longer than all the rest. What is appended meanwhile, and outgrows it, changes nothing of the point. */
static void memory_is_taken_without_the_mutex(void **unused)
{
    (void)unused;
    open_journal(2);
    for (unsigned writes = 0; writes < 24; writes++) { /* of segments of 8 */
        write_block(writes, 1);
        size_t point = point_count - 1;
        taken.watching = true;
        taken.tables = 0;
        taken.writes = writes;
        check_ok(journal_pin(journal, PIN, (struct lsn){points[point].lsn}, true, &err));
        taken.watching = false;
        assert_true(taken.tables > 0);
        assert_int_equal(taken.writes, 0);
        check_ok(journal_unpin(journal, PIN, &err));
        check_point(point);
        taken.watching = true;
        taken.writes = writes;
        check_point(point);
        taken.watching = false;
    }
    check_ok(journal_close(journal, &err));
}

/* ---- checksums in the extents ---- */

static void damage(uint32_t segment, uint64_t at)
{
    char path[160], name[JOURNAL_FILE_BYTES], byte;
    snprintf(path, sizeof path, "%s/%s", directory, journal_segment_file(segment, name));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

/* J6, without the segment's own index. */
static void a_flipped_bit_is_found_by_the_extent(void **unused)
{
    (void)unused;
    struct image *image;
    struct extent *pieces;
    struct journal_status s;
    static char data[4096] __attribute__((aligned(4096)));
    char path[160], name[JOURNAL_FILE_BYTES];
    size_t count;
    open_journal(2);
    for (unsigned i = 0; i < 8; i++) {
        write_block(i, 1);
        check_ok(journal_seal(journal, &err));
    }
    check_ok(journal_maintain(journal, &err));
    journal_status(journal, &s);
    size_t last = point_count - 1;
    check_ok(journal_pin(journal, PIN, (struct lsn){points[last].lsn}, true, &err));
    check_ok(image_open(directory, PIN, &image, &err));
    check_ok(image_resolve(image, volume, 0, 8, &pieces, &count, &err));
    assert_int_equal(count, 1);
    struct extent e = pieces[0];
    free(pieces);
    assert_true(e.kind == EXTENT_DATA && e.flags & EXTENT_CHECKED);
    snprintf(path, sizeof path, "%s/%s", directory, journal_l0_file(e.segment, name));
    assert_int_equal(unlink(path), 0);
    read_block(image, last, 0);
    damage(e.segment, (uint64_t)e.position * 512 + 1234);
    assert_int_equal(image_read(image, volume, 0, 8, data, &err), -EBADMSG);
    assert_int_equal(image_read(image, volume, 1, 1, data, &err), -EBADMSG); /* the block's, of which this is a part */
    damage(e.segment, (uint64_t)e.position * 512 + 1234);
    read_block(image, last, 0);
    image_free(image);
    check_ok(journal_unpin(journal, PIN, &err));
    check_ok(journal_close(journal, &err));
}

/* Makes an index what a program of before had written; `flags`: with what it takes over when it merges an index of now. */
static void make_older(const char *name, bool flags)
{
    char path[160];
    struct index_header header;
    union index_page page;
    snprintf(path, sizeof path, "%s/%.60s", directory, name);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(io_pread_full(fd, &header, sizeof header, 0), 0);
    uint32_t seed = crc32c(0, header.index_id, sizeof header.index_id);
    for (uint32_t n = 1; n <= le64_get(header.root); n++) {
        assert_int_equal(io_pread_full(fd, &page, sizeof page, (uint64_t)n * sizeof page), 0);
        if (page.header.type != INDEX_PAGE_LEAF)
            continue;
        for (uint32_t i = 0; i < le16_get(page.header.count); i++) {
            page.entries[i].crc = le32_of(0);
            if (!flags)
                page.entries[i].flags = le16_of((uint16_t)(le16_get(page.entries[i].flags) & ~EXTENT_CHECKED));
        }
        index_page_seal(&page, seed, n, INDEX_PAGE_LEAF, 0, le16_get(page.header.count));
        assert_int_equal(io_pwrite_full(fd, &page, sizeof page, (uint64_t)n * sizeof page), 0);
    }
    header.compatible = le32_of(0);
    header.crc = le32_of(index_header_crc(&header));
    assert_int_equal(io_pwrite_full(fd, &header, sizeof header, 0), 0);
    close(fd);
}

/* A journal of before: it opens, and is merged on with what comes now. */
static void indexes_without_checksums(void **unused)
{
    (void)unused;
    open_journal(4);
    write_history();
    check_ok(journal_close(journal, &err));
    DIR *d = opendir(directory);
    assert_non_null(d);
    unsigned made = 0;
    for (struct dirent *entry; (entry = readdir(d));)
        if (strstr(entry->d_name, ".idx"))
            make_older(entry->d_name, made++ % 2);
    closedir(d);
    assert_true(made > 60);
    open_journal(4);
    check_points(0);
    size_t before = point_count;
    write_history();
    check_points(before - 20);
    for (size_t i = 0; i < before; i += 11)
        check_point(i);
    check_ok(journal_close(journal, &err));
}

/* ---- finding a place in the manifest ---- */

static void segments_are_found_by_lsn_and_number(void **unused)
{
    (void)unused;
    for (int round = 0; round < 300; round++) {
        struct manifest m = {0};
        uint64_t lsn = 1;
        uint32_t number = 0;
        for (size_t i = check_random(&state) % 20; i > 0; i--) {
            struct segment_info s = {.number = number += 1 + (uint32_t)(check_random(&state) % 3)};
            if (check_random(&state) % 4) { /* else it is empty */
                s.first.n = lsn + check_random(&state) % 3;
                s.last.n = s.first.n + check_random(&state) % 4;
                lsn = s.last.n + 1;
            }
            check_ok(manifest_add_segment(&m, &s, &err));
        }
        for (uint64_t at = 0; at < lsn + 3; at++) {
            size_t expected = m.segment_count;
            while (expected > 0 && (m.segments[expected - 1].first.n == 0 || m.segments[expected - 1].first.n > at))
                expected--;
            assert_int_equal(manifest_segments_until(&m, (struct lsn){at}), expected);
        }
        for (uint32_t at = 0; at < number + 3; at++) {
            size_t expected = 0;
            while (expected < m.segment_count && m.segments[expected].number < at)
                expected++;
            assert_int_equal(manifest_find_segment(&m, at), expected);
        }
        manifest_release(&m);
    }
}

/* ---- a base that moves ---- */

/* The pin says where the base was: what is gone since then is in it. */
static void history_is_dropped_between_pin_and_open(void **unused)
{
    (void)unused;
    open_journal(2);
    write_history();
    for (size_t point = 100; point < point_count; point += 100) {
        struct image *image, *early;
        struct journal_status before, after;
        check_ok(journal_pin(journal, PIN, (struct lsn){points[point].lsn}, true, &err));
        check_ok(image_open(directory, PIN, &early, &err));
        journal_status(journal, &before);
        check_ok(journal_drop(journal, (struct lsn){points[point].lsn}, &err));
        journal_status(journal, &after);
        assert_true(after.oldest.n > before.oldest.n);
        check_ok(image_open(directory, PIN, &image, &err));
        for (unsigned i = 0; i < BLOCKS; i++) {
            read_block(image, point, i * 37 % BLOCKS);
            read_block(early, point, i * 37 % BLOCKS);
        }
        image_free(image);
        image_free(early);
        check_ok(journal_unpin(journal, PIN, &err));
    }
    check_ok(journal_close(journal, &err));
}

static int begin(void **unused)
{
    char template[] = "/dev/shm/tidemark-open-XXXXXX";
    (void)unused;
    point_count = 0;
    memset(points, 0, sizeof points);
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
int main(void)
{
    state = check_seed();
    const struct CMUnitTest tests[] = {
        TEST(neither_the_manifest_nor_another_index),  TEST(a_first_read_ends_where_its_blocks_are), TEST(the_files_are_there),
        TEST(a_flipped_bit_is_found_by_the_extent),    TEST(indexes_without_checksums),              TEST(segments_are_found_by_lsn_and_number),
        TEST(history_is_dropped_between_pin_and_open), TEST(memory_is_taken_without_the_mutex),
    };
    return cmocka_run_group_tests_name("journal-open", tests, NULL, NULL);
}
