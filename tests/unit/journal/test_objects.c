/* SPDX-License-Identifier: Apache-2.0 */
/* Objects in a journal: what is read back is what was written last; and to read thousands is not to open and read a file for each
 * (invariants W1, W2: journal/segment_window.h). */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "journal/journal.h"
#include "journal/segment_window.h"
#include "lib/json.h"

#include "../spoil.h"

#define OBJECTS 3000u
#define LARGE_BYTES (300u << 10)

static atomic_size_t reads;
static atomic_bool only_small; /* reads of more than a block fail, as over a bad sector */

ssize_t __real_pread64(int fd, void *data, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int fd, void *data, size_t bytes, off_t offset)
{
    atomic_fetch_add(&reads, 1);
    if (atomic_load(&only_small) && bytes > JOURNAL_BLOCK_BYTES) {
        errno = EIO;
        return -1;
    }
    return __real_pread64(fd, data, bytes, offset);
}

static struct error err;

static struct journal *open_journal(const char *directory)
{
    const struct journal_options options = {
        .directory = directory, .segment_blocks = 1024, .segment_records = 2048, .light = true, .owner = "test"};
    struct journal *journal;
    check_ok(journal_open(&options, &journal, &err));
    journal_recovered(journal);
    journal_relax(journal);
    return journal;
}

/* As the store of objects writes: many, then they are made durable, or each by itself. */
static void write_objects(struct journal *journal, json_t *model, uint64_t *seed, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char name[64];
        snprintf(name, sizeof name, "core/v1/ConfigMap/n/o%u", (unsigned)(check_random(seed) % OBJECTS));
        bool deleted = check_random(seed) % 5 == 0, large = check_random(seed) % 500 == 0;
        size_t bytes = large ? LARGE_BYTES : 16 + check_random(seed) % 3000;
        _cleanup_free_ char *text = malloc(bytes + 1);
        assert_non_null(text);
        for (size_t k = 0; k < bytes; k++)
            text[k] = (char)('a' + check_random(seed) % 26);
        text[bytes] = '\0';
        check_ok(journal_object(journal, name, deleted ? NULL : text, deleted ? 0 : bytes, NULL, &err));
        if (deleted)
            json_object_del(model, name);
        else
            json_object_set_new(model, name, json_string(text));
        if (check_random(seed) % (i < count / 2 ? 3 : 200) == 0)
            check_ok(journal_sync(journal, -1, NULL, &err));
    }
    check_ok(journal_sync(journal, -1, NULL, &err));
}

static int collect(void *context, const char *name, const char *content, size_t content_bytes, struct lsn lsn, struct error *unused)
{
    (void)lsn, (void)unused;
    return json_object_set_new(context, name, json_stringn(content, content_bytes)) < 0 ? -ENOMEM : 0;
}

static void check_objects(struct journal *journal, const json_t *model)
{
    _cleanup_json_ json_t *read = json_object();
    check_ok(journal_objects(journal, LSN_MAX, collect, read, &err));
    assert_int_equal(json_object_size(read), json_object_size(model));
    assert_true(json_equal(read, model));
}

static void thousands_are_read_in_few_reads_and_are_what_was_written(void **unused)
{
    (void)unused;
    uint64_t seed = check_seed();
    _cleanup_json_ json_t *model = json_object();
    char *directory = check_make_directory();
    struct journal *journal = open_journal(directory);
    write_objects(journal, model, &seed, 2 * OBJECTS);
    atomic_store(&reads, 0);
    check_objects(journal, model);
    size_t took = atomic_load(&reads);
    printf("%u records, %zu objects: %zu reads\n", 2 * OBJECTS, json_object_size(model), took);
    assert_in_range(took, 1, 2 * OBJECTS / 10);
    check_ok(journal_close(journal, &err));
    journal = open_journal(directory); /* all of it sealed now */
    check_objects(journal, model);
    check_ok(journal_close(journal, &err));
    check_remove_directory(directory);
}

static void what_is_journaled_after_a_deletion_of_all_is_known_whatever_is_damaged_before_it(void **unused)
{
    (void)unused;
    char *directory = check_make_directory();
    struct journal *journal = open_journal(directory);
    struct journal_point before;
    _cleanup_json_ json_t *model = json_pack("{s:s}", "b", "2"), *read = json_object();
    check_ok(journal_object(journal, "spoiled-one", "1", 1, NULL, &err));
    check_ok(journal_object(journal, "b", "2", 1, &before, &err));
    check_ok(journal_close(journal, &err));
    check_ok(journal_close(open_journal(directory), &err)); /* sealed */
    spoil(directory, "spoiled-one");
    journal = open_journal(directory);
    check_error(journal_objects(journal, LSN_MAX, collect, read, &err), -EBADMSG, "");
    check_error(journal_object(journal, JOURNAL_EVERY_OBJECT, "1", 1, NULL, &err), -EINVAL, "all of them");
    check_ok(journal_object(journal, JOURNAL_EVERY_OBJECT, NULL, 0, NULL, &err));
    check_ok(journal_object(journal, "b", "2", 1, NULL, &err));
    check_ok(journal_sync(journal, -1, NULL, &err));
    check_objects(journal, model);
    check_error(journal_objects(journal, before.lsn, collect, read, &err), -EBADMSG, "");
    check_ok(journal_close(journal, &err));
    journal = open_journal(directory);
    check_objects(journal, model);
    check_ok(journal_close(journal, &err));
    check_remove_directory(directory);
}

static char *make_file(const char *directory, unsigned blocks)
{
    char *path, block[JOURNAL_BLOCK_BYTES];
    assert_true(asprintf(&path, "%s/blocks", directory) > 0);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    for (unsigned i = 0; i < blocks; i++) {
        memset(block, (int)(i % 251), sizeof block);
        assert_int_equal(write(fd, block, sizeof block), sizeof block);
    }
    close(fd);
    return path;
}

static void assert_blocks(struct segment_window *w, uint32_t block, uint32_t count)
{
    static char data[SEGMENT_WINDOW_MAX_BLOCKS * JOURNAL_BLOCK_BYTES];
    assert_int_equal(segment_window_read(w, block, count, data), 0);
    for (uint32_t i = 0; i < count; i++)
        for (size_t k = 0; k < JOURNAL_BLOCK_BYTES; k += 511)
            assert_int_equal((unsigned char)data[i * JOURNAL_BLOCK_BYTES + k], (block + i) % 251);
}

static void a_window_gives_what_the_file_has(void **unused)
{
    (void)unused;
    uint64_t seed = check_seed();
    char *directory = check_make_directory();
    const unsigned blocks = 2000;
    _cleanup_free_ char *path = make_file(directory, blocks);
    struct segment_window w = {.is_open = true, .file = {.fd = open(path, O_RDONLY | O_CLOEXEC)}};
    assert_true(w.file.fd >= 0);
    uint32_t at = blocks;
    for (unsigned i = 0; i < 3000; i++) {
        uint32_t count = 1 + (uint32_t)(check_random(&seed) % (i % 50 == 0 ? SEGMENT_WINDOW_MAX_BLOCKS : 5));
        bool jumps = check_random(&seed) % 20 == 0;
        at = jumps || at <= count ? count + (uint32_t)(check_random(&seed) % (blocks - count)) + 1 : at;
        at = at > blocks ? blocks : at;
        assert_blocks(&w, at - count, count);
        assert_true(w.first + w.count >= at); /* W1 */
        at -= count;
    }
    static char data[2 * JOURNAL_BLOCK_BYTES];
    assert_int_equal(segment_window_read(&w, blocks - 1, 2, data), -ENODATA);
    assert_blocks(&w, blocks - 1, 1);
    segment_window_release(&w);
    check_remove_directory(directory);
}

static void w2_a_piece_beside_a_bad_one_is_read(void **unused)
{
    (void)unused;
    char *directory = check_make_directory();
    _cleanup_free_ char *path = make_file(directory, 100);
    struct segment_window w = {.is_open = true, .file = {.fd = open(path, O_RDONLY | O_CLOEXEC)}};
    assert_true(w.file.fd >= 0);
    atomic_store(&only_small, true);
    for (uint32_t at = 99; at > 0; at--)
        assert_blocks(&w, at, 1);
    atomic_store(&only_small, false);
    segment_window_release(&w);
    check_remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thousands_are_read_in_few_reads_and_are_what_was_written),
        cmocka_unit_test(what_is_journaled_after_a_deletion_of_all_is_known_whatever_is_damaged_before_it),
        cmocka_unit_test(a_window_gives_what_the_file_has),
        cmocka_unit_test(w2_a_piece_beside_a_bad_one_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
