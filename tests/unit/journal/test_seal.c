/* SPDX-License-Identifier: Apache-2.0 */
/* Encryption at rest. No content, name or tag stands in any file of the journal (SE2); what was forged so
 * that its checksum still holds is found (J6); salts differ (SE1); with the wrong key nothing is written
 * (SE3); a rotation writes no data again. */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/crc32c.h"
#include "journal/frame.h"
#include "journal/journal.h"
#include "journal/sealed_segment.h"
#include "journal/verify.h"
#include "view/image.h"
#include "volume/group.h"

#define SIZE_BYTES (256u * 1024)
#define CONTENT "recognisable-content"
#define VOLUME "secret-volume"
#define OBJECT "secret-object"
#define TAG "secret-tag"

static struct fixture {
    char root[64], directory[96], ring[96], backing[96], key[96], other[96];
    struct journal *journal;
    struct group *group;
} x;
static struct error err;

static struct journal_options options(const char *key)
{
    return (struct journal_options){.directory = x.directory,
                                    .key_file = key,
                                    .segment_blocks = 128,
                                    .segment_records = 24,
                                    .fanout = 2,
                                    .ring_path = x.ring,
                                    .owner = "test_seal"};
}

static void begin(void)
{
    char template[] = "/dev/shm/tidemark-seal-XXXXXX";
    struct seal_user_key key;
    assert_non_null(mkdtemp(template));
    snprintf(x.root, sizeof x.root, "%s", template);
    snprintf(x.directory, sizeof x.directory, "%s/journal", template);
    snprintf(x.ring, sizeof x.ring, "%s/ring", template);
    snprintf(x.backing, sizeof x.backing, "%s/v.img", template);
    snprintf(x.key, sizeof x.key, "%s/one.key", template);
    snprintf(x.other, sizeof x.other, "%s/two.key", template);
    check_ok(seal_key_generate(x.key, &key, &err));
    check_ok(seal_key_generate(x.other, &key, &err));
}

static void end(void)
{
    check_ok(io_remove_tree(x.root, &err));
}

static void open_all(const char *key)
{
    struct journal_options o = options(key);
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
    check_ok(group_add_volume(x.group, VOLUME, SIZE_BYTES, x.backing, &err));
    check_ok(group_start(x.group, &err));
}

static void close_all(void)
{
    group_free(x.group);
    check_ok(journal_close(x.journal, &err));
}

static void write_content(int number, uint64_t offset, size_t bytes)
{
    char *data = malloc(bytes);
    for (size_t i = 0; i + 32 <= bytes; i += 32)
        snprintf(data + i, 32, CONTENT "%08d", number);
    check_ok(block_pwrite(group_volume_block(x.group, 0), data, bytes, offset, 0, &err));
    free(data);
}

/* Segments, runs, a rewind with its rescue store, dropped history in the base, pins, objects, tags. */
static void fill_journal(void)
{
    struct journal_point point;
    struct journal_status s;
    struct group_change change;
    check_ok(journal_tag(x.journal, TAG, "{\"k\": \"secret-label\"}", &point, &err));
    uint64_t target = 0;
    for (int i = 0; i < 60; i++) {
        write_content(i, (uint64_t)(i * 7 % 60) * 4096, i % 3 ? 4096 : 12288);
        if (i % 20 == 0) {
            check_ok(journal_object(x.journal, OBJECT, "secret-manifest " CONTENT, 36, &point, &err));
            check_ok(journal_seal(x.journal, &err));
        }
        journal_status(x.journal, &s);
        if (i == 30)
            target = s.latest.n;
    }
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    check_ok(group_rewind(x.group, (struct lsn){target}, false, &change, &err));
    free(change.volumes);
    group_settle(x.group);
    write_content(100, 4096 + 512, 512);
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_maintain(x.journal, &err));
    check_ok(journal_drop(x.journal, (struct lsn){target - 5}, &err));
    write_content(101, 8192, 4096);
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    check_ok(journal_pin(x.journal, "engine-1", s.latest, true, &err));
}

typedef void (*file_visit)(void *context, const char *path, const char *data, size_t size);

/* Of a journal that nobody has open: files come and go in one that is in use. */
static void visit_files(const char *directory, file_visit visit, void *context)
{
    DIR *d = opendir(directory);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d));) {
        char path[512];
        struct stat st;
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        assert_int_equal(stat(path, &st), 0);
        if (S_ISDIR(st.st_mode)) {
            visit_files(path, visit, context);
            continue;
        }
        char *data = NULL;
        size_t size = 0;
        check_ok(io_read_file(path, 64u << 20, &data, &size, &err));
        visit(context, path, data, size);
        free(data);
    }
    closedir(d);
}

struct search {
    unsigned files, found;
    char first[256];
};

static void search_file(void *context, const char *path, const char *data, size_t size)
{
    static const char *const words[] = {CONTENT, VOLUME, OBJECT, TAG, "secret-label", "secret-manifest"};
    struct search *s = context;
    s->files++;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (memmem(data, size, words[i], strlen(words[i])) && s->found++ == 0)
            snprintf(s->first, sizeof s->first, "'%s' is in %.200s", words[i], path);
}

static void test_no_plaintext(void **state)
{
    (void)state;
    for (int sealed = 0; sealed < 2; sealed++) {
        struct search s = {0};
        begin();
        open_all(sealed ? x.key : NULL);
        fill_journal();
        close_all();
        visit_files(x.directory, search_file, &s);
        if (sealed && s.found)
            fail_msg("%s", s.first);
        if (!sealed && s.found < 10) /* the search would find it */
            fail_msg("only %u places of a plain journal were found", s.found);
        assert_true(s.files >= 12);
        end();
    }
}

/* ---- what was written comes back, after each way to open ---- */

static void check_content(const char *key)
{
    struct journal_status s;
    struct image *image = NULL;
    struct block *b = NULL;
    char data[4096];
    open_all(key);
    journal_status(x.journal, &s);
    check_ok(journal_pin(x.journal, "engine-2", s.latest, true, &err));
    check_ok(image_open(x.directory, "engine-2", &image, &err));
    check_ok(image_block(image, 1, SIZE_BYTES, &b, &err));
    check_ok(block_pread(b, data, sizeof data, 8192, &err));
    assert_string_equal(data, CONTENT "00000101");
    block_free(b);
    image_free(image);
    check_ok(journal_unpin(x.journal, "engine-2", &err));
    close_all();
}

struct sum {
    uint64_t files, sum;
    bool data_only;
};

static void sum_file(void *context, const char *path, const char *data, size_t size)
{
    struct sum *s = context;
    const char *name = strrchr(path, '/') + 1;
    if (strcmp(name, "lock") == 0 || (s->data_only && (strncmp(name, "key", 3) == 0)))
        return;
    s->files++;
    s->sum += crc32c(crc32c(0, path, strlen(path)), data, size);
}

static struct sum sum_all(bool data_only)
{
    struct sum s = {.data_only = data_only};
    visit_files(x.directory, sum_file, &s);
    return s;
}

static void refused(const char *key, int code, const char *text)
{
    struct journal_options o = options(key);
    struct journal *j = NULL;
    struct sum before = sum_all(false);
    check_error(journal_open(&o, &j, &err), code, text);
    struct sum after = sum_all(false);
    assert_true(before.sum == after.sum && before.files == after.files);
}

static void test_wrong_key(void **state)
{
    (void)state;
    char missing[128];
    begin();
    open_all(x.key);
    fill_journal();
    close_all();
    refused(x.other, -EKEYREJECTED, "is encrypted with key");
    refused(NULL, -EKEYREJECTED, "name its key file");
    snprintf(missing, sizeof missing, "%s/none.key", x.root);
    refused(missing, -ENOKEY, "none.key");
    assert_int_equal(chmod(x.key, 0644), 0);
    refused(x.key, -EKEYREJECTED, "chmod 600");
    assert_int_equal(chmod(x.key, 0600), 0);
    check_content(x.key);
    end();

    begin(); /* a plain journal with a key file */
    open_all(NULL);
    write_content(101, 8192, 4096);
    close_all();
    refused(x.key, -EINVAL, "is not encrypted");
    check_content(NULL);
    end();
}

static void test_rotation(void **state)
{
    (void)state;
    begin();
    open_all(x.key);
    fill_journal();
    close_all();
    struct sum before = sum_all(true);
    check_ok(seal_add_key(x.directory, x.key, x.other, &err));
    assert_true(sum_all(true).sum == before.sum);
    uint8_t one[AEAD_KEY_BYTES], two[AEAD_KEY_BYTES];
    check_ok(seal_read_data_key(x.directory, x.key, one, &err)); /* both do, until it is ended */
    check_ok(seal_read_data_key(x.directory, x.other, two, &err));
    assert_memory_equal(one, two, sizeof one);
    check_ok(seal_add_key(x.directory, x.key, x.other, &err)); /* begun again */
    check_ok(seal_keep_key(x.directory, x.other, &err));
    assert_true(sum_all(true).sum == before.sum);
    assert_int_equal(unlink(x.key), 0);
    check_content(x.other);
    struct seal_user_key again;
    check_ok(seal_key_generate(x.key, &again, &err));
    refused(x.key, -EKEYREJECTED, "is encrypted with key");
    end();
}

/* One of the two copies is enough; verify tells of the other. */
static void count_damage(void *context, const struct verify_damage *damage)
{
    unsigned *count = context;
    *count += strcmp(damage->file, "key") == 0;
}
static void no_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)context, (void)done_bytes, (void)total_bytes;
}

static void test_damaged_key(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        char path[160];
        unsigned damages = 0;
        struct verify_report report = {count_damage, no_progress, &damages};
        struct verify_summary summary;
        begin();
        open_all(x.key);
        fill_journal();
        close_all();
        snprintf(path, sizeof path, "%s/%s", x.directory, i ? "key.copy" : "key");
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_int_equal(io_pwrite_full(fd, "\x55\xaa", 2, 90), 0);
        close(fd);
        assert_int_equal(journal_verify(x.directory, &report, &summary, &err), -EBADMSG);
        assert_int_equal(damages, 1);
        check_content(x.key);
        end();
    }
}

/* ---- forged so that every CRC32C still holds ---- */

static uint32_t plain_crc(const char *data)
{
    return crc32c(0, data, JOURNAL_BLOCK_BYTES);
}

/* A change of a block that leaves its CRC32C as it is: the polynomial itself, bit for bit (the CRC is linear,
 * and the cipher a key stream). */
static void forge(char *block)
{
    uint64_t polynomial = (0x82f63b78ull << 1 | 1) << 3; /* reflected, with its x^32 */
    for (int i = 0; i < 8; i++)
        block[100 + i] ^= (char)(polynomial >> 8 * i);
}

static void test_forgery(void **state)
{
    (void)state;
    char check[JOURNAL_BLOCK_BYTES], path[256], name[JOURNAL_FILE_BYTES], block[JOURNAL_BLOCK_BYTES];
    for (size_t i = 0; i < sizeof check; i++)
        check[i] = (char)(i * 31);
    uint32_t before = plain_crc(check);
    forge(check);
    assert_int_equal(plain_crc(check), before); /* no checksum sees it */
    begin();
    open_all(x.key);
    write_content(1, 0, 4096);
    check_ok(journal_seal(x.journal, &err));
    struct manifest m;
    check_ok(journal_manifest(x.journal, &m, &err));
    struct journal_status s;
    journal_status(x.journal, &s);
    snprintf(path, sizeof path, "%s/%s", x.directory, journal_segment_file(m.segments[0].number, name));
    uint32_t last = m.segments[0].used_blocks - 1; /* the payload of the last frame */
    manifest_release(&m);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(io_pread_full(fd, block, sizeof block, (uint64_t)last * sizeof block), 0);
    forge(block);
    assert_int_equal(io_pwrite_full(fd, block, sizeof block, (uint64_t)last * sizeof block), 0);
    close(fd);
    struct image *image = NULL;
    struct block *b = NULL;
    check_ok(journal_pin(x.journal, "engine-3", s.latest, true, &err));
    check_ok(image_open(x.directory, "engine-3", &image, &err));
    check_ok(image_block(image, 1, SIZE_BYTES, &b, &err));
    check_error(block_pread(b, block, sizeof block, 0, &err), -EIO, "not authentic");
    block_free(b);
    image_free(image);
    unsigned damages = 0;
    struct verify_report report = {count_damage, no_progress, &damages};
    struct verify_summary summary;
    assert_int_equal(journal_verify(x.directory, &report, &summary, &err), -EBADMSG);
    close_all();
    end();
}

/* ---- SE1: each segment file, recycled ones too, has a salt of its own ---- */

struct salts {
    uint8_t list[64][SEAL_SALT_BYTES];
    size_t count;
};

static void note_salt(void *context, const char *path, const char *data, size_t size)
{
    struct salts *s = context;
    const char *name = strrchr(path, '/') + 1;
    if (strncmp(name, "segment-", 8) != 0 || size < JOURNAL_BLOCK_BYTES || s->count == 64)
        return;
    sealed_segment_get_salt(data, s->list[s->count]);
    for (size_t i = 0; i < s->count; i++)
        assert_memory_not_equal(s->list[i], s->list[s->count], SEAL_SALT_BYTES);
    s->count++;
}

static void test_salts(void **state)
{
    (void)state;
    struct salts s = {0};
    begin();
    for (int round = 0; round < 3; round++) {
        struct journal_status status;
        open_all(x.key);
        journal_status(x.journal, &status);
        check_ok(journal_drop(x.journal, status.latest, &err)); /* the segments of the round before are used again */
        for (int i = 0; i < 40; i++)
            write_content(i, (uint64_t)i * 4096, 4096);
        check_ok(journal_seal(x.journal, &err));
        close_all();
        visit_files(x.directory, note_salt, &s);
    }
    assert_true(s.count >= 6);
    end();
}

static const char *watched, *replaces; /* when `watched` is looked at, `replaces` takes its place */

int __real_stat64(const char *path, struct stat *ret);
int __wrap_stat64(const char *path, struct stat *ret);
int __wrap_stat64(const char *path, struct stat *ret)
{
    int r = __real_stat64(path, ret);
    if (watched && strcmp(path, watched) == 0 && rename(replaces, watched) < 0)
        fail_msg("%s", strerror(errno));
    return r;
}

/* What is checked is the file that is read, not another one that had the name a moment before. */
static void test_key_file_that_changes(void **state)
{
    struct seal_user_key key;
    struct stat st;
    char open_to_all[128];
    (void)state;
    begin();
    snprintf(open_to_all, sizeof open_to_all, "%s/open.key", x.root);
    check_ok(seal_key_generate(open_to_all, &key, &err));
    assert_int_equal(chmod(open_to_all, 0644), 0);
    watched = x.key;
    replaces = open_to_all;
    int r = seal_key_load(x.key, &key, &err);
    watched = NULL;
    assert_int_equal(stat(x.key, &st), 0);
    assert_true(r < 0 || (st.st_mode & 077) == 0);
    end();
}

static int load_text(const char *text)
{
    struct seal_user_key key;
    char path[128];
    snprintf(path, sizeof path, "%s/text.key", x.root);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fchmod(fileno(f), 0600) == 0 && fclose(f) == 0);
    int r = seal_key_load(path, &key, &err);
    unlink(path);
    return r;
}

/* A key file is its format or refused: half a key must not become another one. */
static void test_key_files(void **state)
{
    (void)state;
#define HEX64 "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
    static const char *const good[] = {"tidemark-key-1:" HEX64, "tidemark-key-1:" HEX64 "\n", "tidemark-key-1:" HEX64 "\n\n\n",
                                       "# one\n#\n\n# two\ntidemark-key-1:" HEX64 "\n"};
    static const char *const bad[] = {"", "\n", "# only a comment", "# only a comment\n", HEX64, "tidemark-key-1:", "tidemark-key-2:" HEX64,
                                      "tidemark-key-1:" HEX64 "0", "tidemark-key-1:" HEX64 " ", "tidemark-key-1:" HEX64 "\r\n",
                                      "tidemark-key-1: " HEX64, " tidemark-key-1:" HEX64, "tidemark-key-1:" HEX64 "\nmore",
                                      "tidemark-key-1:" HEX64 "\ntidemark-key-1:" HEX64 "\n",
                                      "tidemark-key-1:00112233445566778899AABBCCDDEEFF00112233445566778899AABBCCDDEEFF",
                                      "tidemark-key-1:00112233445566778899aabbccddeeff00112233445566778899aabbccddeef",
                                      "tidemark-key-1:00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff"};
    begin();
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        check_ok(load_text(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_error(load_text(bad[i]), -EINVAL, "is not a key file");
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_plaintext), cmocka_unit_test(test_wrong_key),
        cmocka_unit_test(test_rotation),     cmocka_unit_test(test_damaged_key),
        cmocka_unit_test(test_forgery),      cmocka_unit_test(test_salts),
        cmocka_unit_test(test_key_files), cmocka_unit_test(test_key_file_that_changes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
