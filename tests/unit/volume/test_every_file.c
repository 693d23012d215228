/* SPDX-License-Identifier: Apache-2.0 */
/* Every file of a journal's directory, one after the other: missing, cut, emptied, zeroed, one bit flipped.
 * The volumes can be used all the same, at once and after another start; each block of them and of each point
 * is right or an error (J6), of the volumes an error only where a rewind had not been copied back; and what
 * was damaged is told. Three scenes: one that ended in order, one that lost power while a rewind was copied
 * back, one that lost power while an adopted volume was seeded.
 *
 * Where both copies of the manifest are lost the history is, and the volumes are not: it is set aside. */
#include "check.h"
#include "check_key.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "journal/pin.h"
#include "journal/set_aside.h"
#include "journal/verify.h"
#include "view/image.h"
#include "volume/group_internal.h"

#define VOLUMES 2u
#define SIZE_BYTES (4u * GROUP_GRAIN_BYTES)
#define BLOCKS (SIZE_BYTES / 4096u)
#define MAX_POINTS 24u
#define MAX_FILES 160u
#define FILE_LIMIT (64u << 20)

struct file {
    char name[64];
    char *data;
    size_t size;
};
struct moment {
    uint64_t lsn;
    char *data;
};
enum damage { MISSING, CUT, EMPTIED, ZEROED, FLIPPED, DAMAGES };

static struct stand {
    char top[64], directory[80], ring[96];
    struct file files[MAX_FILES];
    size_t file_count, point_count;
    struct moment points[MAX_POINTS];
    char live[VOLUMES * SIZE_BYTES],
        held[VOLUMES * SIZE_BYTES]; /* of the volumes; of their backings at the time of the scene */
    bool adopt;
    struct journal *journal;
    struct group *group;
    int log_fd;
    struct log log;
    uint64_t random;
} x;
static struct error err;

/* ---- opening and closing ---- */

static void image_path(unsigned i, char path[96])
{
    snprintf(path, 96, "%s/v%u.img", x.top, i);
}

static struct journal_options options(void)
{
    return (struct journal_options){.directory = x.directory,
                                    .key_file = check_key_file(),
                                    .segment_blocks = 160,
                                    .segment_records = 24,
                                    .fanout = 2,
                                    .ring_path = x.ring,
                                    .owner = "test_every_file",
                                    .log = &x.log};
}

static int open_group(void)
{
    int r = group_new(x.journal, GROUP_ACK_WRITE, &x.log, &x.group, &err);
    group_set_seed_speed(x.group, x.adopt ? 1 : 0);
    for (unsigned i = 0; i < VOLUMES && r == 0; i++) {
        char name[8], path[96];
        snprintf(name, sizeof name, "v%u", i);
        image_path(i, path);
        r = (x.adopt ? group_adopt_volume : group_add_volume)(x.group, name, SIZE_BYTES, path, &err);
    }
    return r < 0 ? r : group_start(x.group, &err);
}

static void begin(bool adopt)
{
    memset(&x, 0, sizeof x);
    x.random = check_seed();
    x.adopt = adopt;
    snprintf(x.top, sizeof x.top, "/dev/shm/tidemark-every-XXXXXX");
    assert_non_null(mkdtemp(x.top));
    snprintf(x.directory, sizeof x.directory, "%s/journal", x.top);
    snprintf(x.ring, sizeof x.ring, "%s/ring", x.top);
    x.log_fd = memfd_create("log", MFD_CLOEXEC);
    x.log = (struct log){x.log_fd, LOG_LEVEL_INFO, "test"};
    for (unsigned i = 0; i < VOLUMES && adopt; i++) {
        char path[96];
        for (size_t k = 0; k < SIZE_BYTES; k++)
            x.live[i * SIZE_BYTES + k] = (char)check_random(&x.random);
        image_path(i, path);
        check_ok(io_replace_file(path, x.live + i * SIZE_BYTES, SIZE_BYTES, 0600, &err));
    }
    struct journal_options o = options();
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(open_group());
}

static void end(void)
{
    for (size_t i = 0; i < x.file_count; i++)
        free(x.files[i].data);
    for (size_t i = 0; i < x.point_count; i++)
        free(x.points[i].data);
    close(x.log_fd);
    check_ok(io_remove_tree(x.top, &err));
}

/* ---- a history ---- */

static void change(unsigned steps)
{
    for (unsigned i = 0; i < steps; i++) {
        unsigned volume = (unsigned)(check_random(&x.random) % VOLUMES),
                 length = 1 + (unsigned)(check_random(&x.random) % 40);
        uint64_t lba = check_random(&x.random) % (SIZE_BYTES / 512 - length);
        char *model = x.live + volume * SIZE_BYTES + lba * 512;
        struct block *b = group_volume_block(x.group, volume);
        for (size_t k = 0; k < length * 512u; k++)
            model[k] = i % 6 == 5 ? 0 : (char)check_random(&x.random);
        check_ok(i % 6 == 5 ? block_zero(b, length * 512u, lba * 512, 0, &err)
                            : block_pwrite(b, model, length * 512u, lba * 512, 0, &err));
    }
}

static uint64_t latest(void)
{
    struct journal_status s;
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    return s.latest.n;
}

static void remember(void)
{
    struct moment *p = &x.points[x.point_count++];
    assert_true(x.point_count <= MAX_POINTS);
    p->lsn = latest();
    p->data = malloc(sizeof x.live);
    memcpy(p->data, x.live, sizeof x.live);
}

static void rewind_to(const struct moment *p)
{
    struct group_change c;
    check_ok(group_rewind(x.group, (struct lsn){p->lsn}, false, &c, &err));
    free(c.volumes);
    memcpy(x.live, p->data, sizeof x.live);
}

static void events(unsigned number)
{
    char name[16];
    struct journal_point point;
    snprintf(name, sizeof name, "tag-%u", number);
    check_ok(journal_tag(x.journal, name, "{\"a\":\"b\"}", &point, &err));
    check_ok(journal_object(x.journal, "object", name, strlen(name), &point, &err));
}

/* ---- files ---- */

/* Of a journal that nobody has open: files come and go in one that is in use. */
static void collect(const char *below)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", x.directory, below);
    _cleanup_closedir_ DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d));) {
        char name[64];
        struct stat st;
        if (entry->d_name[0] == '.')
            continue;
        int n = snprintf(name, sizeof name, "%s%s%s", below, *below ? "/" : "", entry->d_name);
        assert_true(n < (int)sizeof name);
        snprintf(path, sizeof path, "%s/%s", x.directory, name);
        assert_int_equal(stat(path, &st), 0);
        if (strncmp(name, "free-", 5) == 0 || strcmp(name, "reserve") == 0 || strncmp(name, "pins/engine-", 12) == 0)
            continue;
        if (S_ISDIR(st.st_mode)) {
            collect(name);
            continue;
        }
        assert_true(x.file_count < MAX_FILES);
        struct file *f = &x.files[x.file_count++];
        memcpy(f->name, name, sizeof f->name);
        check_ok(io_read_file(path, FILE_LIMIT, &f->data, &f->size, &err));
    }
}

static void collect_all(void)
{
    collect("");
    for (unsigned i = 0; i < VOLUMES; i++) {
        char path[96];
        _cleanup_free_ char *data = NULL;
        size_t length;
        image_path(i, path);
        check_ok(io_read_file(path, FILE_LIMIT, &data, &length, &err));
        assert_int_equal(length, SIZE_BYTES);
        memcpy(x.held + i * SIZE_BYTES, data, SIZE_BYTES);
    }
}

static void put_file(const char *path, const void *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_pwrite_full(fd, data, size, 0), 0);
    close(fd);
}

static void restore(void)
{
    char path[256], kept[PATH_MAX], why[512];
    while (journal_find_set_aside(x.directory, kept, why))
        check_ok(io_remove_tree(kept, &err));
    check_ok(io_remove_tree(x.directory, &err));
    for (size_t i = 0; i < x.file_count; i++) {
        snprintf(path, sizeof path, "%s/%s", x.directory, x.files[i].name);
        *strrchr(path, '/') = '\0';
        check_ok(io_mkdirs(path, 0700, &err));
        path[strlen(path)] = '/';
        put_file(path, x.files[i].data, x.files[i].size);
    }
    for (unsigned i = 0; i < VOLUMES; i++) {
        char image[96];
        image_path(i, image);
        put_file(image, x.held + i * SIZE_BYTES, SIZE_BYTES); /* the same inode */
    }
    unlink(x.ring);
    assert_int_equal(ftruncate(x.log_fd, 0), 0);
    assert_int_equal(lseek(x.log_fd, 0, SEEK_SET), 0);
}

static void spoil_file(const struct file *f, enum damage damage)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", x.directory, f->name);
    _cleanup_free_ char *data = malloc(f->size + 1);
    memcpy(data, f->data, f->size);
    if (damage == ZEROED)
        memset(data, 0, f->size);
    if (damage == FLIPPED && f->size)
        data[check_random(&x.random) % f->size] ^= (char)(1 << check_random(&x.random) % 8);
    if (damage == MISSING)
        assert_int_equal(unlink(path), 0);
    else
        put_file(path, data, damage == CUT ? f->size / 2 : damage == EMPTIED ? 0 : f->size);
}

static const struct file *find_file(const char *name)
{
    for (size_t i = 0; i < x.file_count; i++)
        if (strcmp(x.files[i].name, name) == 0)
            return &x.files[i];
    fail_msg("no file %s", name);
    return NULL;
}

/* ---- what is asserted ---- */

static bool is_refusal(int r)
{
    return r == -EBADMSG || r == -EIO || r == -ENOENT || r == -ERANGE || r == -EAGAIN || r == -EBUSY ||
           r == -ENOTSUP || r == -EPROTONOSUPPORT;
}

static void on_damage(void *context, const struct verify_damage *damage)
{
    (void)context;
    assert_true(damage->file && damage->what[0]);
}
static void on_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)context, (void)done_bytes, (void)total_bytes;
}

static bool verify_finds(void)
{
    const struct verify_report report = {on_damage, on_progress, NULL};
    struct verify_summary summary;
    struct error e = ERROR_INIT;
    struct journal_options o = options();
    if (seal_unlock(x.directory, o.key_file, &e) < 0)
        return true;
    return journal_verify(x.directory, &report, &summary, &e) < 0;
}

static bool log_tells(void)
{
    static char text[65536];
    ssize_t n = pread(x.log_fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    return strstr(text, "error") || strstr(text, "warning");
}

/* Each block of the volumes is right, or an error; returns how many are errors. */
static unsigned check_live(const char *what)
{
    static char data[4096] __attribute__((aligned(4096)));
    unsigned errors = 0;
    for (unsigned i = 0; i < VOLUMES; i++)
        for (unsigned at = 0; at < SIZE_BYTES; at += 4096) {
            int r = block_pread(group_volume_block(x.group, i), data, sizeof data, at, &err);
            errors += r < 0;
            if (r == 0 && memcmp(data, x.live + i * SIZE_BYTES + at, sizeof data) != 0)
                fail_msg("%s: volume %u has wrong bytes at %u", what, i, at);
        }
    return errors;
}

static void check_image(const char *what, uint64_t lsn, const char *model)
{
    static char data[4096] __attribute__((aligned(4096)));
    struct image *image;
    struct point point = {.kind = POINT_LSN, .lsn = {lsn}};
    struct journal_point found = {0};
    int r = journal_resolve(x.journal, &point, &found, &err);
    if (r < 0 || found.lsn.n != lsn) /* refused: history was lost there */
        return;
    r = group_check_seeded(x.group, (struct lsn){lsn}, &err);
    if (r == 0)
        r = journal_pin(x.journal, "engine-look", (struct lsn){lsn}, true, &err);
    if (r == 0)
        r = image_open(x.directory, "engine-look", &image, &err);
    if (r < 0) {
        if (!is_refusal(r) || !err.message[0])
            fail_msg("%s: opening LSN %llu: %d, '%s'", what, (unsigned long long)lsn, r, err.message);
        int ignored = journal_unpin(x.journal, "engine-look", &err);
        (void)ignored;
        return;
    }
    for (unsigned i = 0; i < VOLUMES; i++)
        for (unsigned at = 0; at < SIZE_BYTES; at += 4096) {
            r = image_read(image, i + 1, at / 512, 8, data, &err);
            if (r < 0 && !is_refusal(r))
                fail_msg("%s: reading LSN %llu: %d, '%s'", what, (unsigned long long)lsn, r, err.message);
            if (r == 0 && memcmp(data, model + i * SIZE_BYTES + at, sizeof data) != 0)
                fail_msg("J6: %s: LSN %llu has wrong bytes of volume %u at %u", what, (unsigned long long)lsn,
                         i, at);
        }
    image_free(image);
    check_ok(journal_unpin(x.journal, "engine-look", &err));
}

/* As the engine does it. Whether the history was set aside. */
static bool open_all(const char *what)
{
    char kept[PATH_MAX];
    struct journal_options o = options();
    bool aside = false;
    int r = journal_open(&o, &x.journal, &err);
    if (r == -EBADMSG) {
        struct error lost = err;
        aside = true;
        check_ok(journal_set_aside(x.directory, lost.message, kept, &err));
        r = journal_open(&o, &x.journal, &err);
    }
    if (r < 0)
        fail_msg("%s: the journal cannot be opened: %s", what, err.message);
    if (open_group() < 0)
        fail_msg("%s: the volumes cannot be opened: %s", what, err.message);
    return aside;
}

static void close_all(void)
{
    group_free(x.group);
    if (journal_close(x.journal, &err) < 0 && !x.adopt)
        fail_msg("the journal cannot be closed: %s", err.message);
}

/* A part of a grain that is lost cannot be written; all of it can, and is there again. */
static void write_somewhere(const char *what, bool lost)
{
    static char data[GROUP_GRAIN_BYTES] __attribute__((aligned(4096)));
    for (unsigned i = 0; i < VOLUMES; i++) {
        struct block *b = group_volume_block(x.group, i);
        memset(data, 'a' + (int)i, sizeof data);
        int r = block_pwrite(b, data, 4096, 8192, 0, &err);
        if (r == 0) {
            memcpy(x.live + i * SIZE_BYTES + 8192, data, 4096);
            continue;
        }
        if (!lost || !is_refusal(r))
            fail_msg("%s: volume %u cannot be written: %s", what, i, err.message);
        check_ok(block_pwrite(b, data, sizeof data, 0, 0, &err));
        memcpy(x.live + i * SIZE_BYTES, data, sizeof data);
    }
}

/* Unless journaling is suspended, since what an adopted volume held cannot be kept: that is an alarm, and the
 * volumes go on. */
static void check_latest(const char *what)
{
    if (journal_is_suspended(x.journal))
        assert_true(x.adopt);
    else
        check_image(what, latest(), x.live);
}

/* Opens what is in the directory, uses it, and opens it again. Returns the blocks of the volumes that cannot
 * be read. */
static unsigned use(const char *what, bool *ret_aside)
{
    static char live[sizeof x.live];
    memcpy(live, x.live, sizeof live);
    bool aside = open_all(what);
    unsigned errors = check_live(what);
    for (size_t i = 0; i < x.point_count && !aside; i++) {
        struct journal_status s;
        journal_status(x.journal, &s);
        if (x.points[i].lsn >= s.oldest.n && x.points[i].lsn <= s.latest.n)
            check_image(what, x.points[i].lsn, x.points[i].data);
    }
    write_somewhere(what, errors > 0);
    check_live(what);
    check_latest(what);
    close_all();
    bool again = open_all(what);
    if (again)
        fail_msg("%s: the history is lost at the second start", what);
    check_live(what);
    group_set_seed_speed(x.group, 0);
    if (check_live(what) == 0 && !x.adopt) /* what is lost is not copied back */
        group_settle(x.group);
    check_latest(what);
    close_all();
    memcpy(x.live, live, sizeof live);
    *ret_aside = aside;
    return errors;
}

static bool is_zero(const struct file *f, size_t from)
{
    for (size_t at = from; at < f->size; at++)
        if (f->data[at])
            return false;
    return true;
}

/* Whether a loss of it is one: nothing is in the others, or they are made again without a word. */
static bool is_told(const struct file *f, enum damage damage)
{
    static const char *const quiet[] = {"lock",  "losses.json",         "backing-", "intent-", "compare",
                                        "pins/", "rewind.pending.copy", NULL};
    for (size_t i = 0; quiet[i]; i++)
        if (strncmp(f->name, quiet[i], strlen(quiet[i])) == 0)
            return false;
    if (damage == MISSING && strstr(f->name, ".idx.copy")) /* a program of before made none */
        return false;
    if (damage == FLIPPED || f->size == 0 || is_zero(f, damage == CUT ? f->size / 2 : 0))
        return false;
    return true;
}

static void each_file(bool pending)
{
    static const char *const names[] = {"missing", "cut", "emptied", "zeroed", "flipped"};
    unsigned told = 0;
    bool aside;
    restore();
    if (use("nothing", &aside) || aside)
        fail_msg("nothing was damaged: %s", err.message);
    for (size_t i = 0; i < x.file_count; i++)
        for (enum damage damage = 0; damage < DAMAGES; damage++) {
            const struct file *f = &x.files[i];
            char what[128];
            snprintf(what, sizeof what, "%s %s", f->name, names[damage]);
            if (getenv("TIDEMARK_VERBOSE"))
                fprintf(stderr, "%s\n", what);
            restore();
            spoil_file(f, damage);
            bool found = verify_finds();
            unsigned errors = use(what, &aside);
            if (aside)
                fail_msg("%s: one damaged file takes the history", what);
            if (errors && !pending)
                fail_msg("%s: %u blocks of the volumes cannot be read", what, errors);
            if (is_told(f, damage) && !found && !log_tells())
                fail_msg("%s: nobody tells", what);
            told += found;
        }
    assert_true(told > 20);
}

/* ---- the scenes ---- */

static void make_history(void)
{
    begin(false);
    for (unsigned i = 0; i < 4; i++) {
        change(12);
        remember();
        events(i);
    }
    check_ok(journal_seal(x.journal, &err));
    rewind_to(&x.points[1]);
    group_settle(x.group);
    remember();
    change(20);
    remember();
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_drop(x.journal, (struct lsn){x.points[0].lsn}, &err));
    for (unsigned i = 4; i < 8; i++) {
        change(20);
        remember();
        events(i);
    }
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_maintain(x.journal, &err));
    change(5);
    remember();
}

static void every_file_of_a_journal_that_was_closed(void **state)
{
    (void)state;
    make_history();
    close_all();
    collect_all();
    find_file("manifest.copy");
    each_file(false);
    end();
}

static void every_file_after_a_loss_of_power_in_a_rewind(void **state)
{
    (void)state;
    make_history();
    for (unsigned i = 0; i < VOLUMES; i++) { /* something to copy back */
        memset(x.live + i * SIZE_BYTES, 'p', 4096);
        check_ok(block_pwrite(group_volume_block(x.group, i), x.live + i * SIZE_BYTES, 4096, 0, 0, &err));
    }
    grains_stop(x.group); /* nothing is copied back */
    rewind_to(&x.points[4]);
    group_abandon(x.group);
    journal_abandon(x.journal);
    collect_all();
    find_file("rewind.pending");
    find_file("rewind.pending.copy");
    assert_memory_not_equal(x.live, x.held, 4096);
    each_file(true);
    end();
}

static void every_file_after_a_loss_of_power_while_seeding(void **state)
{
    (void)state;
    begin(true);
    change(12);
    check_ok(journal_seal(x.journal, &err));
    change(12);
    latest();
    group_abandon(x.group);
    journal_abandon(x.journal);
    collect_all();
    each_file(false);
    end();
}

/* ---- when both copies are lost ---- */

static void without_any_manifest_the_volumes_go_on(void **state)
{
    (void)state;
    char kept[PATH_MAX], why[512], path[PATH_MAX + 64];
    bool aside;
    make_history();
    close_all();
    collect_all();
    const struct file *both[] = {find_file("manifest"), find_file("manifest.copy")};
    for (enum damage first = 0; first < DAMAGES; first++)
        for (enum damage second = first; second < DAMAGES; second += DAMAGES - 1) {
            char what[64];
            snprintf(what, sizeof what, "both manifests, %d and %d", (int)first, (int)second);
            restore();
            spoil_file(both[0], first);
            spoil_file(both[1], second);
            assert_int_equal(use(what, &aside), 0);
            assert_true(aside && journal_find_set_aside(x.directory, kept, why));
            assert_non_null(strstr(why, "manifest"));
        }
    /* The file is found after all, and the history put back: what was written meanwhile is in it. */
    snprintf(path, sizeof path, "%s/manifest", kept);
    put_file(path, both[0]->data, both[0]->size);
    check_ok(io_remove_tree(x.directory, &err));
    assert_int_equal(rename(kept, x.directory), 0);
    for (unsigned i = 0; i < VOLUMES; i++)
        memset(x.live + i * SIZE_BYTES + 8192, 'a' + (int)i, 4096);
    assert_false(open_all("put back"));
    group_settle(x.group);
    assert_int_equal(check_live("put back"), 0);
    check_image("put back", latest(), x.live);
    check_image("put back", x.points[5].lsn, x.points[5].data);
    close_all();
    end();
}

/* What is not copied back is nowhere else. */
static void a_journal_that_is_needed_is_not_set_aside(void **state)
{
    (void)state;
    char path[128], kept[PATH_MAX];
    make_history();
    close_all();
    snprintf(path, sizeof path, "%s/rewind.pending.copy", x.directory);
    put_file(path, "x", 1);
    check_error(journal_set_aside(x.directory, "a test", kept, &err), -EBUSY, "rewind.pending.copy");
    assert_int_equal(access(x.directory, F_OK), 0);
    unlink(path);
    for (unsigned i = 0; i < SET_ASIDE_MAX; i++) {
        check_ok(journal_set_aside(x.directory, "a test", kept, &err));
        check_ok(io_mkdirs(x.directory, 0700, &err));
    }
    check_error(journal_set_aside(x.directory, "a test", kept, &err), -ENOSPC,
                "remove those that are not needed");
    end();
}

/* A program that makes no copy had the journal open: what the copy says is not what is there. */
static void an_outdated_copy_is_not_taken(void **state)
{
    (void)state;
    struct journal_options o = options();
    make_history();
    close_all();
    collect_all();
    const struct file *copy = find_file("manifest.copy");
    char path[128];
    restore();
    o = options();
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(open_group());
    change(10);
    latest();
    group_abandon(x.group);
    journal_abandon(x.journal);
    snprintf(path, sizeof path, "%s/manifest.copy", x.directory);
    put_file(path, copy->data, copy->size);
    snprintf(path, sizeof path, "%s/manifest", x.directory);
    put_file(path, "", 0);
    check_error(journal_open(&o, &x.journal, &err), -EBADMSG, "older than the history");
    end();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_file_of_a_journal_that_was_closed),
                                       cmocka_unit_test(every_file_after_a_loss_of_power_in_a_rewind),
                                       cmocka_unit_test(every_file_after_a_loss_of_power_while_seeding),
                                       cmocka_unit_test(without_any_manifest_the_volumes_go_on),
                                       cmocka_unit_test(a_journal_that_is_needed_is_not_set_aside),
                                       cmocka_unit_test(an_outdated_copy_is_not_taken)};
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
