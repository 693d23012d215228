/* SPDX-License-Identifier: Apache-2.0 */
/* J6: any flipped bit, cut or missing file is detected, never returned. A small journal with every kind of record and file is
 * made once; each case damages a copy of it. Then opening refuses with a message, or every point reads the right bytes or
 * an error; journal_verify reports what it covers. In the tail that was not sealed, damage (a later frame says that it was
 * durable) is told apart from a torn end. */
#include "check.h"
#include "check_key.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "journal/frame.h"
#include "journal/journal.h"
#include "journal/pin.h"
#include "journal/sealed_segment.h"
#include "journal/verify.h"
#include "view/image.h"
#include "volume/group.h"

#define VOLUMES 2
#define SIZE_BYTES (192u * 1024)
#define MAX_POINTS 40
#define MAX_FILES 128
#define FILE_LIMIT (64u << 20)
#ifdef TIDEMARK_SANITIZED
#define STRIDE 7u /* of the bytes that are tried */
#else
#define STRIDE 1u
#endif

struct file {
    char name[64];
    char *data;
    size_t size;
};
struct moment {
    uint64_t lsn;
    char pin[24];
    char *data; /* all volumes */
    int object;
};
static struct fixture {
    char directory[64], ring[96];
    struct file files[MAX_FILES];
    size_t file_count;
    struct moment points[MAX_POINTS];
    size_t point_count;
    char live[VOLUMES * SIZE_BYTES];
    int object;
    struct journal *journal;
    struct group *group;
    int log_fd;
    struct log log;
    uint64_t random;
} x;
static struct error err;

/* ---- the journal that is damaged ---- */

static struct journal_options options(void)
{
    return (struct journal_options){.directory = x.directory, .key_file = check_key_file(), .segment_blocks = 160, .segment_records = 24, .fanout = 2,
                                    .ring_path = x.ring, .owner = "test_damage", .log = &x.log};
}

static void open_all(void)
{
    struct journal_options o = options();
    check_ok(journal_open(&o, &x.journal, &err));
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, &x.log, &x.group, &err));
    for (int i = 0; i < VOLUMES; i++) {
        char name[8], path[96];
        snprintf(name, sizeof name, "v%d", i);
        snprintf(path, sizeof path, "%s.v%d.img", x.directory, i);
        check_ok(group_add_volume(x.group, name, SIZE_BYTES, path, &err));
    }
    check_ok(group_start(x.group, &err));
}

static void remember(void)
{
    struct journal_status s;
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    if (x.point_count == MAX_POINTS)
        return;
    struct moment *p = &x.points[x.point_count++];
    p->lsn = s.latest.n;
    p->object = x.object;
    p->data = malloc(sizeof x.live);
    memcpy(p->data, x.live, sizeof x.live);
}

static void fill(char *to, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = check_random(&x.random);
        memcpy(to + i, &word, 8);
    }
}

static void change(int steps)
{
    for (int i = 0; i < steps; i++) {
        int volume = (int)(check_random(&x.random) % VOLUMES);
        uint64_t sectors = SIZE_BYTES / 512, lba = check_random(&x.random) % sectors, length = 1 + check_random(&x.random) % 40;
        if (lba + length > sectors)
            length = sectors - lba;
        char *model = x.live + (size_t)volume * SIZE_BYTES + lba * 512;
        struct block *b = group_volume_block(x.group, (size_t)volume);
        if (i % 5 == 3) {
            memset(model, 0, length * 512);
            check_ok(block_zero(b, length * 512, lba * 512, 0, &err));
        } else if (i % 5 == 4) {
            memset(model, 0, length * 512);
            check_ok(block_discard(b, length * 512, lba * 512, 0, &err));
        } else {
            fill(model, length * 512);
            check_ok(block_pwrite(b, model, length * 512, lba * 512, 0, &err));
        }
    }
}

static void append(const struct journal_record *record)
{
    struct lsn lsn;
    check_ok(journal_append_durable(x.journal, record, &lsn, &err));
}

/* One of each kind that carries no data of a volume, and a RESYNC that says what is there. */
static void events(int number)
{
    char name[16], content[16];
    struct journal_point point;
    snprintf(name, sizeof name, "tag-%d", number);
    check_ok(journal_tag(x.journal, name, "{\"a\":\"b\"}", &point, &err));
    snprintf(content, sizeof content, "%d", x.object = number);
    check_ok(journal_object(x.journal, "object", content, strlen(content), &point, &err));
    append(&(struct journal_record){.op = OP_RESYNC_BEGIN, .flags = RECORD_LAST});
    append(&(struct journal_record){.op = OP_RESYNC, .flags = RECORD_LAST, .volume = 1, .lba = 8, .length = 16,
                                    .payload = x.live + 8 * 512, .payload_bytes = 16 * 512});
    append(&(struct journal_record){.op = OP_RESYNC_END, .flags = RECORD_LAST});
    append(&(struct journal_record){.op = OP_GAP, .flags = RECORD_LAST});
}

static void rewind_to(const struct moment *p)
{
    struct group_change c;
    check_ok(group_rewind(x.group, (struct lsn){p->lsn}, false, &c, &err));
    free(c.volumes);
    memcpy(x.live, p->data, sizeof x.live);
    x.object = p->object;
    group_settle(x.group);
    remember();
}

/* Reads all files of the journal's directory (three levels) into memory. */
static void collect(const char *below)
{
    char path[192];
    snprintf(path, sizeof path, "%s/%s", x.directory, below);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d));) {
        char name[64];
        struct stat st;
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s%s%s", below, *below ? "/" : "", entry->d_name);
        snprintf(path, sizeof path, "%s/%s", x.directory, name);
        assert_int_equal(stat(path, &st), 0);
        if (S_ISDIR(st.st_mode)) {
            collect(name);
            continue;
        }
        assert_true(x.file_count < MAX_FILES);
        struct file *f = &x.files[x.file_count++];
        snprintf(f->name, sizeof f->name, "%s", name);
        check_ok(io_read_file(path, FILE_LIMIT, &f->data, &f->size, &err));
    }
    closedir(d);
}

static void restore_file(const struct file *f)
{
    char path[192];
    snprintf(path, sizeof path, "%s/%s", x.directory, f->name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_pwrite_full(fd, f->data, f->size, 0), 0);
    close(fd);
}

static void restore_all(void)
{
    char path[192];
    check_ok(io_remove_tree(x.directory, &err));
    for (const char **below = (const char *[]){"", "/pins", "/base", NULL}; *below; below++) {
        snprintf(path, sizeof path, "%s%s", x.directory, *below);
        check_ok(io_mkdirs(path, 0700, &err));
    }
    for (size_t i = 0; i < x.file_count; i++) {
        snprintf(path, sizeof path, "%s/%s", x.directory, x.files[i].name);
        *strrchr(path, '/') = '\0';
        check_ok(io_mkdirs(path, 0700, &err));
        restore_file(&x.files[i]);
    }
    unlink(x.ring);
}

static void begin(void)
{
    char template[] = "/dev/shm/tidemark-damage-XXXXXX";
    memset(&x, 0, sizeof x);
    x.random = check_seed();
    assert_non_null(mkdtemp(template));
    snprintf(x.directory, sizeof x.directory, "%s", template);
    snprintf(x.ring, sizeof x.ring, "%s.ring", template);
    x.log_fd = memfd_create("log", MFD_CLOEXEC);
    x.log = (struct log){x.log_fd, LOG_LEVEL_INFO, "test"};
    open_all();
}

static void end(void)
{
    for (size_t i = 0; i < x.file_count; i++)
        free(x.files[i].data);
    for (size_t i = 0; i < x.point_count; i++)
        free(x.points[i].data);
    for (int i = 0; i < VOLUMES; i++) {
        char path[96];
        snprintf(path, sizeof path, "%s.v%d.img", x.directory, i);
        unlink(path);
    }
    unlink(x.ring);
    close(x.log_fd);
    check_ok(io_remove_tree(x.directory, &err));
}

static void pin_points(void)
{
    struct journal_status s;
    journal_status(x.journal, &s);
    size_t kept = 0;
    for (size_t i = 0; i < x.point_count; i++) {
        if (x.points[i].lsn < s.oldest.n) {
            free(x.points[i].data);
            continue;
        }
        x.points[kept] = x.points[i];
        snprintf(x.points[kept].pin, sizeof x.points[kept].pin, "engine-%zu", kept);
        check_ok(journal_pin(x.journal, x.points[kept].pin, (struct lsn){x.points[kept].lsn}, true, &err));
        kept++;
    }
    x.point_count = kept;
    assert_true(kept >= 8);
}

/* Segments, indexes, runs, a base, two rewinds with rescue stores, pins, the manifest. */
static void make_sealed(void)
{
    begin();
    change(12);
    remember();
    events(1);
    change(20);
    remember();
    check_ok(journal_seal(x.journal, &err));
    change(20);
    remember();
    rewind_to(&x.points[0]);
    change(10);
    rewind_to(&x.points[1]);
    change(8);
    events(2);
    remember();
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_drop(x.journal, (struct lsn){x.points[2].lsn}, &err));
    for (int i = 0; i < 6; i++) {
        change(14);
        if (i == 3)
            events(3);
        remember();
    }
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_maintain(x.journal, &err));
    change(3);
    remember();
    pin_points();
    group_free(x.group);
    check_ok(journal_close(x.journal, &err));
    collect("");
}

/* ---- looking at it ---- */

static bool is_refusal(int r)
{
    return r == -EBADMSG || r == -EIO || r == -ENOENT || r == -EPROTONOSUPPORT || r == -ENOTSUP || r == -EINVAL;
}

/* All of a pin's image: right, or an error. Returns whether there was one. */
static bool check_image(const struct moment *p, const char *what)
{
    struct image *image;
    char *data = io_alloc_pages(SIZE_BYTES);
    bool refused = false;
    int r = image_open(x.directory, p->pin, &image, &err);
    if (r < 0) {
        if (!is_refusal(r) || !err.message[0])
            fail_msg("%s: opening LSN %llu: %d, '%s'", what, (unsigned long long)p->lsn, r, err.message);
        io_free_pages(data, SIZE_BYTES);
        return true;
    }
    for (uint32_t v = 0; v < VOLUMES; v++)
        for (uint32_t at = 0; at < SIZE_BYTES; at += 32768) {
            r = image_read(image, v + 1, at / 512, 64, data, &err);
            if (r < 0) {
                refused = true;
                if (!is_refusal(r) || !err.message[0])
                    fail_msg("%s: reading LSN %llu: %d, '%s'", what, (unsigned long long)p->lsn, r, err.message);
            } else if (memcmp(data, p->data + v * SIZE_BYTES + at, 32768) != 0) {
                fail_msg("J6: %s: wrong bytes of LSN %llu, volume %u, near %u", what, (unsigned long long)p->lsn, v + 1, at);
            }
        }
    image_free(image);
    io_free_pages(data, SIZE_BYTES);
    return refused;
}

/* Every `step`th point, another one first each time. */
static bool check_images(const char *what, size_t step)
{
    static size_t turn;
    bool refused = false;
    for (size_t i = turn++ % step; i < x.point_count; i += step)
        if (x.points[i].pin[0])
            refused |= check_image(&x.points[i], what);
    return refused;
}

static void on_damage(void *context, const struct verify_damage *damage)
{
    (void)context;
    assert_non_null(damage->file);
    assert_true(damage->what[0] != '\0');
}
static void on_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)context, (void)done_bytes, (void)total_bytes;
}

/* Whether verification reports damage. */
static bool verify_finds(void)
{
    const struct verify_report report = {on_damage, on_progress, NULL};
    struct verify_summary summary;
    struct error e = ERROR_INIT;
    int r = journal_verify(x.directory, &report, &summary, &e);
    assert_true(r == 0 || is_refusal(r));
    assert_true((r == -EBADMSG) >= (summary.damages > 0));
    return r < 0;
}

static const struct file *find_file(const char *name)
{
    for (size_t i = 0; i < x.file_count; i++)
        if (strcmp(x.files[i].name, name) == 0)
            return &x.files[i];
    return NULL;
}

static void write_byte(const struct file *f, size_t at, uint8_t byte)
{
    char path[192];
    snprintf(path, sizeof path, "%s/%s", x.directory, f->name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

/* Damages a file whole, in one of four ways, and says how. */
static void spoil(const struct file *f, int how, char what[128])
{
    static const char *const names[] = {"cut", "emptied", "missing", "flipped"};
    char path[192];
    snprintf(path, sizeof path, "%s/%s", x.directory, f->name);
    snprintf(what, 128, "%s %s", f->name, names[how]);
    if (how == 0 || how == 1)
        assert_int_equal(truncate(path, how || f->size < 2 ? 0 : (off_t)(f->size / 2 - 1)), 0); /* half a segment may be all that is used */
    else if (how == 2)
        unlink(path);
    else if (f->size)
        write_byte(f, f->size / 3, (uint8_t)~f->data[f->size / 3]);
}

static bool is_zero(const struct file *f, size_t from)
{
    for (size_t at = from; at < f->size; at++)
        if (f->data[at])
            return false;
    return true;
}

static void try_flip(const struct file *f, size_t at, bool verified)
{
    char what[128];
    unsigned bit = (unsigned)(check_random(&x.random) % 8);
    snprintf(what, sizeof what, "%s, byte %zu, bit %u", f->name, at, bit);
    write_byte(f, at, (uint8_t)f->data[at] ^ (uint8_t)(1u << bit));
    bool found = verify_finds();
    if (verified && !found)
        fail_msg("verify does not find: %s", what);
    check_images(what, 5);
    write_byte(f, at, (uint8_t)f->data[at]);
}

static void try_range(const struct file *f, size_t from, size_t to, size_t step, bool verified)
{
    step *= STRIDE;
    for (size_t at = from + (step > 1 ? check_random(&x.random) % step : 0); at < to && at < f->size; at += step)
        try_flip(f, at, verified);
}

/* ---- sealed ---- */

/* A segment's frames as they were before they were encrypted, at the same places; free it. */
static char *open_segment(const struct file *f)
{
    char path[192];
    struct aead *key = NULL;
    seal_tag digest;
    char *plain = malloc(f->size);
    memcpy(plain, f->data, f->size);
    snprintf(path, sizeof path, "%s/%s", x.directory, f->name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    check_ok(sealed_segment_open(path, fd, &key, &err));
    close(fd);
    for (uint32_t at = 1; key && at < f->size / JOURNAL_BLOCK_BYTES;) {
        char *frame = plain + (size_t)at * JOURNAL_BLOCK_BYTES;
        if (sealed_open_header(key, at, frame, digest) < 0)
            break;
        uint32_t blocks = le32_get(((struct frame_header *)frame)->blocks);
        assert_int_equal(sealed_open_payload(key, at, frame, blocks, digest, NULL), 0);
        at += blocks;
    }
    aead_free(key);
    return plain;
}

/* Every byte of one frame's header and of one record of each kind; samples of the other frames and of the payloads. */
static void flip_segments(void)
{
    unsigned seen[16] = {0};
    struct manifest m;
    check_ok(manifest_load(x.directory, &m, &err));
    for (size_t i = 0; i < m.segment_count; i++) {
        char name[JOURNAL_FILE_BYTES];
        const struct file *f = find_file(journal_segment_file(m.segments[i].number, name));
        assert_non_null(f);
        try_range(f, 0, sizeof(struct segment_header) + SEAL_SALT_BYTES, i ? 9 : 1, true);
        char *plain = open_segment(f);
        for (size_t at = JOURNAL_BLOCK_BYTES, n = 0; at < (size_t)m.segments[i].used_blocks * JOURNAL_BLOCK_BYTES; n++) {
            const struct frame_header *h = (const struct frame_header *)(plain + at);
            bool first = i == 0 && n == 0;
            try_range(f, at, at + sizeof *h, first ? 1 : 40, true);
            for (uint32_t k = 0; k < le16_get(h->record_count); k++) {
                const struct frame_record *r = &frame_records(h)[k];
                size_t place = (size_t)((const char *)r - plain);
                try_range(f, place, place + sizeof *r, seen[r->op & 15]++ ? 48 : 1, true);
            }
            try_range(f, at + sizeof *h + le16_get(h->record_count) * sizeof(struct frame_record), at + JOURNAL_BLOCK_BYTES, 3000, true);
            try_range(f, at + JOURNAL_BLOCK_BYTES, at + (size_t)le32_get(h->blocks) * JOURNAL_BLOCK_BYTES, 6000, true);
            at += (size_t)le32_get(h->blocks) * JOURNAL_BLOCK_BYTES;
        }
        free(plain);
    }
    manifest_release(&m);
    static const enum journal_op all[] = {OP_WRITE, OP_ZERO, OP_DISCARD, OP_RESYNC_BEGIN, OP_RESYNC, OP_RESYNC_END,
                                          OP_GAP, OP_MARK, OP_OBJECT, OP_REWIND};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!seen[all[i]])
            fail_msg("the journal holds no record of kind %d", (int)all[i]);
}

static void flip_files(void)
{
    unsigned images = 0, rescues = 0, runs = 0, rewinds = 0, pins = 0, objects = 0, keys = 0;
    for (size_t i = 0; i < x.file_count; i++) {
        const struct file *f = &x.files[i];
        const char *suffix = strrchr(f->name, '.');
        if (strncmp(f->name, "manifest", 8) == 0) {
            try_range(f, 0, sizeof(struct manifest_header), 1, true);
            try_range(f, sizeof(struct manifest_header), f->size, 3, true);
        } else if (strncmp(f->name, "key", 3) == 0) {
            keys++;
            try_range(f, 0, f->size, 1, true);
        } else if (suffix && strcmp(suffix, ".tag") == 0) {
            for (size_t at = 0; at < f->size; at++)
                if (f->data[at]) /* of a block that is there */
                    try_range(f, at, at + 1, 3, true);
        } else if (strncmp(f->name, "pins/", 5) == 0 && !suffix) {
            pins++;
            try_range(f, 0, 64, i % 4 ? 16 : 1, true);
            try_range(f, 64, f->size, 17, true);
        } else if (suffix && strcmp(suffix, ".json") == 0) {
            objects++;
            try_range(f, 0, f->size, 3, true);
        } else if (suffix && (strcmp(suffix, ".idx") == 0 || strncmp(f->name, "rewind-", 7) == 0)) { /* a rewind's is there twice */
            runs += strncmp(f->name, "run-", 4) == 0;
            rewinds += strncmp(f->name, "rewind-", 7) == 0;
            try_range(f, 0, 176, 5, true);
            for (size_t page = 4096; page < f->size; page += 4096) {
                try_range(f, page, page + 96, 11, true);
                try_range(f, page + 96, page + 4096, 800, true);
            }
        } else if (suffix && strcmp(suffix, ".crc") == 0) {
            images += strncmp(f->name, "base/", 5) == 0;
            rescues += strncmp(f->name, "rescue-", 7) == 0;
            try_range(f, 0, 32, 3, true);
            for (size_t at = 4096; at < f->size; at++)
                if (f->data[at / 8 * 8 + 4]) /* of a block that is there */
                    try_range(f, at, at + 1, 2, true);
        } else if (suffix && strcmp(suffix, ".img") == 0) {
            char name[64];
            snprintf(name, sizeof name, "%.*s.crc", (int)(suffix - f->name), f->name);
            const struct file *crc = find_file(name);
            assert_non_null(crc);
            for (size_t block = 0; 4096 + block * 8 < crc->size; block++)
                if (crc->data[4096 + block * 8 + 4])
                    try_range(f, block * 4096, block * 4096 + 4096, 2500, true);
        }
    }
    assert_true(images > 0 && rescues > 0 && runs > 0 && rewinds > 0 && pins > 0 && objects > 1);
    assert_int_equal(keys, check_key_file() ? 2 : 0);
}

/* Opened by the engine: refused with a message, or what it then says of each point is right or an error. */
static void open_damaged(const char *what)
{
    struct journal_options o = options();
    struct journal *j;
    int r = journal_open(&o, &j, &err);
    if (r < 0) {
        if (!is_refusal(r) || !err.message[0])
            fail_msg("%s: opening gave %d, '%s'", what, r, err.message);
        unlink(x.ring);
        return;
    }
    for (size_t i = 0; i < x.point_count; i++) {
        struct moment p = x.points[i];
        snprintf(p.pin, sizeof p.pin, "engine-again");
        struct journal_status s;
        journal_status(j, &s);
        if (p.lsn > s.latest.n)
            continue;
        r = journal_pin(j, p.pin, (struct lsn){p.lsn}, true, &err);
        if (r < 0) {
            assert_true(is_refusal(r) || r == -ERANGE);
            continue;
        }
        check_image(&p, what);
        check_ok(journal_unpin(j, p.pin, &err));
    }
    journal_abandon(j);
    unlink(x.ring);
}

static void test_sealed(void **state)
{
    (void)state;
    make_sealed();
    restore_all();
    if (verify_finds() || check_images("nothing", 1))
        fail_msg("what was not damaged is reported: %s", err.message);
    flip_segments();
    flip_files();
    assert_false(verify_finds() || check_images("nothing", 1));

    for (size_t i = 0; i < x.file_count; i++) { /* cut, emptied, missing; opened by an engine too */
        const struct file *f = &x.files[i];
        char what[128];
        bool pin = strncmp(f->name, "pins/", 5) == 0 && !strrchr(f->name, '.'); /* nothing names one that is missing */
        bool covered = strcmp(f->name, "lock") != 0 && strcmp(f->name, "reserve") != 0 && strcmp(f->name, "losses.json") != 0 &&
                       strncmp(f->name, "free-", 5) != 0 &&  /* a segment that waits to be used again holds no history */
                       strncmp(f->name, "backing-", 8) != 0 && /* nor does a note of which file the backing is */
                       strncmp(f->name, "intent-", 7) != 0; /* nor a bitmap: damaged, they mean: compare everything */
        const char *suffix = strrchr(f->name, '.');
        bool tags = suffix && strcmp(suffix, ".tag") == 0; /* those of blocks that hold nothing are zero */
        pin |= strstr(f->name, ".idx.copy") != NULL;           /* and the second copy of a rewind's may be missing */
        for (int how = 0; how < 4; how++) {
            spoil(f, how, what);
            bool found = verify_finds();
            if (covered && how < (pin ? 2 : 3) && !(tags && is_zero(f, how ? 0 : f->size / 2)) && !found)
                fail_msg("verify does not find: %s", what);
            check_images(what, 1);
            if ((i + (size_t)how) % (4 * STRIDE) == 0) {
                open_damaged(what);
                restore_all();
            } else {
                restore_file(f);
            }
        }
    }
    end();
}

static int see_object(void *context, const char *name, const char *content, size_t bytes, struct lsn lsn, struct error *e)
{
    char text[16];
    (void)name, (void)lsn, (void)e;
    snprintf(text, sizeof text, "%.*s", (int)bytes, content);
    *(int *)context = (int)strtol(text, NULL, 10);
    return 0;
}

/* What is known of objects below the base is in a file of its own. */
static void test_objects(void **state)
{
    (void)state;
    make_sealed();
    for (size_t i = 0; i < x.file_count; i++) {
        const struct file *f = &x.files[i];
        if (!strstr(f->name, "objects.json"))
            continue;
        for (size_t at = 0; at < f->size; at += 3 * STRIDE) {
            struct journal_options o = options();
            struct journal *j;
            restore_all();
            write_byte(f, at, (uint8_t)f->data[at] ^ 1);
            int r = journal_open(&o, &j, &err);
            if (r < 0)
                continue;
            for (size_t k = 0; k < x.point_count; k++) {
                int object = 0;
                r = journal_objects(j, (struct lsn){x.points[k].lsn}, see_object, &object, &err);
                if (r == 0 && object != x.points[k].object)
                    fail_msg("J6: %s byte %zu: object %d instead of %d at LSN %llu", f->name, at, object, x.points[k].object,
                             (unsigned long long)x.points[k].lsn);
            }
            journal_abandon(j);
        }
    }
    end();
}

/* ---- the tail ---- */

static bool log_has(const char *text)
{
    static char log[65536];
    ssize_t n = pread(x.log_fd, log, sizeof log - 1, 0);
    log[n > 0 ? n : 0] = '\0';
    return strstr(log, text) != NULL;
}

struct frame_place {
    size_t at;
    uint64_t first, durable;
    uint32_t count, blocks;
};

/* Damages one byte of the tail and opens: *ret_latest is what is left of the history; whether it was told. */
static bool open_tail(const struct file *f, size_t at, uint64_t *ret_latest, bool *ret_compare)
{
    struct journal_options o = options();
    struct journal_status s;
    struct journal *j;
    restore_all();
    if (at < f->size)
        write_byte(f, at, (uint8_t)f->data[at] ^ 0x10);
    assert_int_equal(ftruncate(x.log_fd, 0), 0);
    assert_true(lseek(x.log_fd, 0, SEEK_SET) == 0);
    check_ok(journal_open(&o, &j, &err));
    journal_status(j, &s);
    *ret_latest = s.latest.n;
    *ret_compare = journal_recovery(j)->compare;
    for (size_t i = 0; i < x.point_count; i++) {
        struct moment p = x.points[i];
        if (p.lsn > s.latest.n)
            continue;
        snprintf(p.pin, sizeof p.pin, "engine-again");
        check_ok(journal_pin(j, p.pin, (struct lsn){p.lsn}, true, &err));
        check_image(&p, "the tail");
        check_ok(journal_unpin(j, p.pin, &err));
    }
    assert_true(journal_next_lsn(j).n > x.points[x.point_count - 1].lsn); /* no LSN is used twice */
    journal_abandon(j);
    unlink(x.ring);
    return log_has("error");
}

/* What an opening has recovered from is told by a verification afterwards, and by the one after the next opening. */
static void stays_known(bool damage)
{
    struct journal_options o = options();
    struct journal *j;
    if (verify_finds() != damage)
        fail_msg("after the opening: %s", damage ? "the damage is not known any more" : "damage is told that was none");
    check_ok(journal_open(&o, &j, &err));
    check_ok(journal_close(j, &err));
    if (verify_finds() != damage)
        fail_msg("after the second opening: %s", damage ? "the damage is not known any more" : "damage is told that was none");
    unlink(x.ring);
}

static void test_tail(void **state)
{
    struct manifest m;
    struct frame_place frames[64];
    size_t count = 0;
    uint64_t latest;
    bool compare;
    char name[JOURNAL_FILE_BYTES];
    (void)state;
    begin();
    change(8);
    check_ok(journal_seal(x.journal, &err));
    for (int i = 0; i < 7; i++) {
        change(2);
        remember();
    }
    group_abandon(x.group);
    journal_abandon(x.journal);
    unlink(x.ring); /* as after a loss of power */
    collect("");
    check_ok(manifest_load(x.directory, &m, &err));
    const struct file *f = find_file(journal_segment_file(m.next_segment, name));
    assert_non_null(f);
    char *plain = open_segment(f);
    for (size_t at = JOURNAL_BLOCK_BYTES; at < f->size && frame_is_intact(plain + at, &m.journal_id, m.epoch);) {
        const struct frame_header *h = (const struct frame_header *)(plain + at);
        frames[count++] = (struct frame_place){at, le64_get(h->first_lsn), le64_get(h->durable_lsn), le16_get(h->record_count),
                                               le32_get(h->blocks)};
        at += (size_t)le32_get(h->blocks) * JOURNAL_BLOCK_BYTES;
    }
    free(plain);
    assert_true(count >= 7);
    manifest_release(&m);
    uint64_t all = frames[count - 1].first + frames[count - 1].count - 1;
    assert_false(open_tail(f, SIZE_MAX, &latest, &compare));
    assert_int_equal(latest, all);

    for (size_t i = 0; i < count; i++) {
        const struct frame_place *p = &frames[i];
        bool covered = false; /* does a later frame say that this one's first record was durable? */
        for (size_t k = i + 1; k < count; k++)
            covered |= frames[k].durable >= p->first;
        for (size_t byte = 0; byte < sizeof(struct frame_header) + sizeof(struct frame_record); byte += (i == 2 ? 3 : 61) * STRIDE) {
            bool told = open_tail(f, p->at + byte, &latest, &compare);
            if (latest != p->first - 1 || told != covered || (covered && !compare))
                fail_msg("frame %zu of %zu, byte %zu: latest %llu instead of %llu, %s, %s", i, count, byte, (unsigned long long)latest,
                         (unsigned long long)p->first - 1, told ? "told" : "not told", covered ? "damage" : "torn");
            stays_known(covered);
        }
        if (p->blocks > 1) {
            bool told = open_tail(f, p->at + JOURNAL_BLOCK_BYTES + 100, &latest, &compare);
            if (told != covered || latest != (covered ? all : p->first - 1))
                fail_msg("payload of frame %zu: latest %llu, %s", i, (unsigned long long)latest, told ? "told" : "not told");
            stays_known(covered);
        }
    }
    for (size_t byte = 0; byte < sizeof(struct segment_header); byte += 7) { /* the segment's own header */
        bool told = open_tail(f, byte, &latest, &compare);
        if (!told || !compare)
            fail_msg("segment header, byte %zu: latest %llu, %s", byte, (unsigned long long)latest, told ? "told" : "not told");
        stays_known(true);
    }
    end();
}

/* ---- salvage ---- */

struct damage_map {
    bool damaged[VOLUMES * SIZE_BYTES / 4096];
    uint64_t end; /* of the last range */
    size_t base;
};

static int on_range(void *context, uint64_t offset_bytes, uint64_t length_bytes, const char *reason, struct error *e)
{
    struct damage_map *m = context;
    (void)e;
    assert_true(reason[0] && length_bytes && offset_bytes % 4096 == 0 && offset_bytes >= m->end);
    assert_true(offset_bytes + length_bytes <= SIZE_BYTES);
    m->end = offset_bytes + length_bytes;
    for (uint64_t at = offset_bytes; at < m->end; at += 4096)
        m->damaged[m->base + at / 4096] = true;
    return 0;
}

/* Opens the point although the journal is damaged. Each block reads right, or is an error and in the map. Returns the number
 * of blocks that cannot be read, -1 when it cannot be opened: without its pin nothing can. */
static int salvage(const struct moment *p, const char *what)
{
    char scratch[96];
    struct image *image;
    struct damage_map map = {0};
    _Atomic uint64_t done = 0;
    _Atomic bool stop = false;
    int damaged = 0;
    char data[4096] __attribute__((aligned(4096)));
    snprintf(scratch, sizeof scratch, "%s.salvage", x.directory);
    int r = image_open_salvage(x.directory, p->pin, scratch, &image, &err);
    if (r < 0) {
        assert_true(is_refusal(r) && err.message[0]);
        check_ok(io_remove_tree(scratch, &err));
        return -1;
    }
    for (uint32_t v = 0; v < VOLUMES; v++) {
        map.base = v * SIZE_BYTES / 4096;
        map.end = 0;
        check_ok(image_map_damage(image, v + 1, SIZE_BYTES, on_range, &map, &done, &stop, &err));
        for (uint32_t at = 0; at < SIZE_BYTES; at += 4096) {
            r = image_read(image, v + 1, at / 512, 8, data, &err);
            if (r == 0 && memcmp(data, p->data + v * SIZE_BYTES + at, 4096) != 0)
                fail_msg("J6: %s: salvage of LSN %llu gives wrong bytes of volume %u at %u", what, (unsigned long long)p->lsn, v + 1, at);
            if ((r < 0) != map.damaged[map.base + at / 4096])
                fail_msg("%s: LSN %llu, volume %u at %u: reading gives %d, the map says %d", what, (unsigned long long)p->lsn, v + 1,
                         at, r, map.damaged[map.base + at / 4096]);
            damaged += r < 0;
        }
    }
    assert_int_equal(done, VOLUMES * SIZE_BYTES);
    if (damaged == 0 && strcmp(what, "nothing") == 0)
        assert_null(image_finding(image, 0));
    image_free(image);
    check_ok(io_remove_tree(scratch, &err));
    return damaged;
}

/* The most blocks of any point that cannot be read; of every `step`th point. */
static int salvage_points(const char *what, size_t step)
{
    static size_t turn;
    int most = -1;
    for (size_t i = turn++ % step; i < x.point_count; i += step) {
        int damaged = salvage(&x.points[i], what);
        most = damaged > most ? damaged : most;
    }
    return most;
}

static void remove_file(const char *name)
{
    char path[192];
    snprintf(path, sizeof path, "%s/%s", x.directory, name);
    assert_int_equal(unlink(path), 0);
}

/* Each has an index of its own; merging and dropping history take them all at once. */
static void test_many_rewinds(void **state)
{
    struct group_change c;
    struct journal_status s;
    (void)state;
    begin();
    change(12);
    remember();
    for (int i = 0; i < 300; i++) {
        check_ok(group_rewind(x.group, (struct lsn){x.points[0].lsn}, false, &c, &err));
        free(c.volumes);
    }
    memcpy(x.live, x.points[0].data, sizeof x.live);
    group_settle(x.group);
    change(60);
    remember();
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_maintain(x.journal, &err));
    journal_status(x.journal, &s);
    assert_true(s.runs > 0);
    check_ok(journal_drop(x.journal, (struct lsn){x.points[1].lsn}, &err));
    journal_status(x.journal, &s);
    assert_int_equal(s.oldest.n, x.points[1].lsn);
    group_free(x.group);
    check_ok(journal_close(x.journal, &err));
    x.points[1].pin[0] = '\0';
    end();
}

/* A new journal in its place would remove the history as strays. */
static void test_no_manifest(void **state)
{
    (void)state;
    struct journal *j;
    make_sealed();
    restore_all();
    struct journal_options o = options();
    remove_file("manifest");
    if (check_images("manifest missing", 1))
        fail_msg("its copy does not stand in for the manifest: %s", err.message);
    remove_file("manifest.copy");
    check_error(journal_open(&o, &j, &err), -EBADMSG, "manifest is missing, and there is history beside it; put back a copy");
    for (size_t i = 0; i < x.file_count; i++)
        if (strcmp(x.files[i].name, "manifest") == 0)
            restore_file(&x.files[i]);
    if (check_images("manifest put back", 1))
        fail_msg("the history is there no more");
    end();
}

/* One file at a time: what can be made again is, and costs nothing. */
static void test_salvage_files(void **state)
{
    (void)state;
    make_sealed();
    restore_all();
    assert_int_equal(salvage_points("nothing", 1), 0);
    unsigned free_of_cost = 0;
    for (size_t i = 0; i < x.file_count; i++) {
        const struct file *f = &x.files[i];
        char what[128];
        bool derived = strncmp(f->name, "l0-", 3) == 0 || strncmp(f->name, "run-", 4) == 0 || strncmp(f->name, "manifest", 8) == 0;
        bool all = strncmp(f->name, "pins/", 5) == 0;
        for (int how = 0; how < 4; how++) {
            spoil(f, how, what);
            int damaged = salvage_points(what, 3);
            if (derived && damaged != 0)
                fail_msg("%s: %d blocks are lost that the segments have", what, damaged);
            if (!all && damaged < 0)
                fail_msg("%s: no point can be opened", what);
            if (how == 2 && strncmp(f->name, "segment-", 8) == 0 && find_file("manifest")) {
                struct moment *last = &x.points[x.point_count - 1];
                if (image_check_files(x.directory, last->pin, NULL, 0, &err) != -EBADMSG || !strstr(err.message, f->name))
                    fail_msg("%s: opening the last point without salvage does not name it", what);
            }
            free_of_cost += derived;
            restore_file(f);
        }
    }
    assert_true(free_of_cost > 20);
    end();
}

/* Segment and index gone: only what later segments hold can be read. Its frames damaged one by one: only they are lost. */
static void test_salvage_segments(void **state)
{
    struct manifest m;
    char segment[JOURNAL_FILE_BYTES], l0[JOURNAL_FILE_BYTES], run[JOURNAL_FILE_BYTES], what[160];
    unsigned partly = 0, lost = 0;
    (void)state;
    make_sealed();
    restore_all();
    check_ok(manifest_load(x.directory, &m, &err));
    for (size_t i = 0; i < m.segment_count; i++) {
        const struct segment_info *s = &m.segments[i];
        const struct file *f = find_file(journal_segment_file(s->number, segment));
        journal_l0_file(s->number, l0);
        for (size_t k = 0; k < m.run_count; k++) /* else a run stands for the index */
            if (m.runs[k].first_segment <= s->number && s->number <= m.runs[k].last_segment)
                remove_file(journal_run_file(m.runs[k].level, m.runs[k].first_segment, run));
        remove_file(l0);
        for (size_t at = JOURNAL_BLOCK_BYTES; at < (size_t)s->used_blocks * JOURNAL_BLOCK_BYTES;) {
            const struct frame_header *h = (const struct frame_header *)(f->data + at);
            for (size_t byte = 0; byte < 2; byte++) { /* of the header; of the first block behind it */
                size_t place = at + (byte ? JOURNAL_BLOCK_BYTES : 40) + 3;
                snprintf(what, sizeof what, "%s missing, %s flipped at %zu", l0, segment, place);
                write_byte(f, place, (uint8_t)~f->data[place]);
                int damaged = salvage_points(what, 2);
                assert_true(damaged >= 0);
                partly += damaged > 0 && damaged < VOLUMES * (int)SIZE_BYTES / 4096;
                write_byte(f, place, (uint8_t)f->data[place]);
            }
            at += (size_t)le32_get(h->blocks) * JOURNAL_BLOCK_BYTES;
        }
        remove_file(segment);
        snprintf(what, sizeof what, "%s and %s missing", l0, segment);
        int damaged = salvage(&x.points[x.point_count - 1], what), blocks = VOLUMES * (int)SIZE_BYTES / 4096;
        if (damaged < 0 || (i + 2 < m.segment_count && damaged == blocks))
            fail_msg("%s: %d of %d blocks of the last point cannot be read", what, damaged, blocks);
        lost += damaged > 0; /* of one that later ones have wholly written over, nothing is */
        salvage_points(what, 2);
        restore_all();
    }
    manifest_release(&m);
    assert_true(partly > 5);
    assert_true(lost > 1);
    end();
}

/* Points are found without the index of their segment, and without the segment the last one before it is taken, with a note. */
static void test_salvage_points(void **state)
{
    struct manifest m;
    unsigned refused = 0, noted = 0;
    (void)state;
    make_sealed();
    restore_all();
    check_ok(manifest_load(x.directory, &m, &err));
    for (size_t i = 0; i < 2 * m.segment_count; i++) {
        const struct segment_info *s = &m.segments[i / 2];
        struct journal_options o = options();
        struct journal *j;
        char name[JOURNAL_FILE_BYTES];
        bool gone = i % 2;
        restore_all();
        remove_file(journal_l0_file(s->number, name));
        if (gone)
            remove_file(journal_segment_file(s->number, name));
        check_ok(journal_open(&o, &j, &err));
        for (size_t k = 0; k < x.point_count; k++) {
            struct point point = {.kind = POINT_LSN, .lsn = {x.points[k].lsn}};
            struct journal_point found = {0};
            bool inside = point.lsn.n >= s->first.n && point.lsn.n <= s->last.n;
            int r = journal_resolve(j, &point, &found, &err);
            bool mended = inside && !gone && r == 0; /* a merge that came first made the index again */
            assert_true(inside && !mended ? r == -EBADMSG : r == 0 && found.lsn.n == point.lsn.n);
            refused += inside && !mended;
            found = (struct journal_point){0};
            check_ok(journal_resolve_salvage(j, &point, &found, &err));
            if (inside && gone) {
                assert_true(found.lsn.n < s->first.n && found.note[0]);
                noted++;
            } else {
                assert_true(found.lsn.n == point.lsn.n && !found.note[0]);
            }
        }
        struct point tag = {.kind = POINT_TAG};
        struct journal_point found = {0};
        snprintf(tag.tag, sizeof tag.tag, "tag-3");
        int r = journal_resolve_salvage(j, &tag, &found, &err);
        assert_true(gone ? r == 0 || r == -ENOENT : r == 0);
        journal_abandon(j);
        unlink(x.ring);
    }
    manifest_release(&m);
    assert_true(refused > 0 && noted > 0);
    end();
}

/* ---- history moves on over what is damaged ---- */

/* Every point from the oldest one on reads right, or an error; *ret_refused: of how many there was one. What objects there were, too. */
static void check_points(struct journal *j, const char *what, unsigned *ret_refused)
{
    struct journal_status s;
    journal_status(j, &s);
    *ret_refused = 0;
    for (size_t i = 0; i < x.point_count; i++) {
        struct moment p = x.points[i];
        int object = 0;
        if (p.lsn < s.oldest.n)
            continue;
        snprintf(p.pin, sizeof p.pin, "engine-again");
        int r = journal_pin(j, p.pin, (struct lsn){p.lsn}, true, &err);
        if (r < 0 && !is_refusal(r))
            fail_msg("%s: LSN %llu cannot be pinned: %s", what, (unsigned long long)p.lsn, err.message);
        *ret_refused += r < 0 || check_image(&p, what);
        if (r == 0)
            check_ok(journal_unpin(j, p.pin, &err));
        r = journal_objects(j, (struct lsn){p.lsn}, see_object, &object, &err);
        if (r < 0 ? !is_refusal(r) : object != p.object)
            fail_msg("J6: %s: object %d instead of %d at LSN %llu: %d", what, object, p.object, (unsigned long long)p.lsn, r);
    }
}

/* It takes a write and a tag, and what comes later is sealed, merged and dropped. */
static void goes_on(struct journal *j, const char *what)
{
    struct journal_status s;
    struct journal_point point;
    struct manifest m;
    char block[8 * 512] __attribute__((aligned(64)));
    struct moment p = x.points[x.point_count - 1];
    p.data = malloc(sizeof x.live);
    memcpy(p.data, x.points[x.point_count - 1].data, sizeof x.live);
    for (int i = 0; i < 60; i++) {
        struct lsn lsn;
        fill(block, sizeof block);
        memcpy(p.data + (size_t)i % 20 * sizeof block, block, sizeof block);
        check_ok(journal_append_durable(j, &(struct journal_record){.op = OP_WRITE, .flags = RECORD_LAST, .volume = 1, .lba = (uint64_t)i % 20 * 8, .length = 8,
                                                                    .payload = block, .payload_bytes = sizeof block}, &lsn, &err));
        p.lsn = lsn.n;
    }
    if (journal_tag(j, "later", NULL, &point, &err) < 0)
        fail_msg("%s: no tag: %s", what, err.message);
    check_ok(journal_seal(j, &err));
    if (journal_maintain(j, &err) < 0)
        fail_msg("%s: no merge: %s", what, err.message);
    snprintf(p.pin, sizeof p.pin, "engine-again");
    if (journal_pin(j, p.pin, (struct lsn){p.lsn}, true, &err) == 0) {
        check_image(&p, what);
        check_ok(journal_unpin(j, p.pin, &err));
    }
    check_ok(journal_manifest(j, &m, &err));
    struct lsn last = m.segments[m.segment_count - 2].last;
    manifest_release(&m);
    if (journal_drop(j, last, &err) < 0)
        fail_msg("%s: no later drop: %s", what, err.message);
    journal_status(j, &s);
    assert_true(s.oldest.n == last.n && !s.suspended);
    if (journal_pin(j, p.pin, (struct lsn){p.lsn}, true, &err) == 0) {
        check_image(&p, what);
        check_ok(journal_unpin(j, p.pin, &err));
    }
    free(p.data);
}

static const char *gone_later; /* NULL, or a file that is removed once the journal is open; no file can be copied then */

static int no_copies(void *context, const char *step)
{
    (void)context;
    return gone_later && strcmp(step, "copy rewind") == 0 ? -ENOSPC : 0;
}

/* The journal as it was damaged just now: drops its oldest segments, up to the one with `until`. Returns how many points could not be read. */
static unsigned drop_damaged(const char *what, struct lsn until)
{
    struct journal_options o = options();
    struct journal_status s;
    struct journal *j;
    unsigned refused;
    o.fault = no_copies;
    check_ok(journal_open(&o, &j, &err));
    if (gone_later)
        remove_file(gone_later);
    for (size_t i = 0; i < x.point_count; i++)
        check_ok(journal_unpin(j, x.points[i].pin, &err));
    if (journal_tag(j, "at-once", NULL, &(struct journal_point){0}, &err) < 0)
        fail_msg("%s: no tag: %s", what, err.message);
    if (journal_drop(j, until, &err) < 0)
        fail_msg("%s: no drop: %s", what, err.message);
    journal_status(j, &s);
    if (s.oldest.n != until.n)
        fail_msg("%s: the base is at LSN %llu instead of %llu", what, (unsigned long long)s.oldest.n, (unsigned long long)until.n);
    check_points(j, what, &refused);
    goes_on(j, what);
    journal_abandon(j);
    unlink(x.ring);
    restore_all();
    return refused;
}

/* Where a record of that kind has its payload in a segment; 0: there is none. */
static size_t find_payload(const struct file *f, const struct segment_info *s, enum journal_op op, size_t *ret_header)
{
    char *plain = open_segment(f);
    size_t found = 0;
    for (size_t at = JOURNAL_BLOCK_BYTES; at < (size_t)s->used_blocks * JOURNAL_BLOCK_BYTES && !found;) {
        const struct frame_header *h = (const struct frame_header *)(plain + at);
        for (uint32_t k = 0; k < le16_get(h->record_count) && !found; k++)
            if (frame_records(h)[k].op == op) {
                found = at + (size_t)le16_get(frame_records(h)[k].payload_block) * JOURNAL_BLOCK_BYTES + 1;
                *ret_header = at + 40;
            }
        at += (size_t)le32_get(h->blocks) * JOURNAL_BLOCK_BYTES;
    }
    free(plain);
    return found;
}

static void flip(const struct file *f, size_t at)
{
    write_byte(f, at, (uint8_t)~f->data[at]);
}

/* J5, J6: of a segment that goes, of what is dropped with it, and of the base, one file after the other. */
static void test_drop_goes_on(void **state)
{
    struct manifest m;
    char name[JOURNAL_FILE_BYTES], what[128];
    unsigned events = 0;
    (void)state;
    make_sealed();
    restore_all();
    check_ok(manifest_load(x.directory, &m, &err));
    const struct lsn first = m.segments[0].last;
    assert_int_equal(drop_damaged("nothing", first), 0);
    const struct file *segment = find_file(journal_segment_file(m.segments[0].number, name));
    const struct file *l0 = find_file(journal_l0_file(m.segments[0].number, name)), *objects = find_file("base/objects.json");
    assert_true(segment && l0 && objects);
    for (int how = 0; how < 4; how++) { /* of an index that can be made again nothing is lost */
        spoil(l0, how, what);
        assert_int_equal(drop_damaged(what, first), 0);
        spoil(objects, how, what);
        assert_int_equal(drop_damaged(what, first), 0);
        spoil(segment, how, what);
        drop_damaged(what, first);
    }
    for (size_t i = 0; i + 1 < m.segment_count; i++) {
        const struct file *f = find_file(journal_segment_file(m.segments[i].number, name));
        for (const enum journal_op *op = (const enum journal_op[]){OP_OBJECT, OP_MARK, OP_WRITE, 0}; *op; op++) {
            size_t header = 0, payload = find_payload(f, &m.segments[i], *op, &header);
            for (int k = 0; k < 3 && payload; k++) { /* the payload; the header; the header without an index */
                snprintf(what, sizeof what, "%s, kind %d, damage %d", f->name, (int)*op, k);
                flip(f, k ? header : payload);
                if (k == 2)
                    remove_file(journal_l0_file(m.segments[i].number, name));
                drop_damaged(what, m.segments[i].last);
                events += *op != OP_WRITE;
            }
        }
    }
    assert_true(events > 6);
    remove_file(segment->name);
    remove_file(l0->name);
    assert_true(drop_damaged("segment and index missing", first) > 0);
    manifest_release(&m);
    end();
}

/* A run still has the references of a rewind whose own index is gone, and what they refer to in the base is about to change. */
static void test_drop_goes_on_over_references(void **state)
{
    (void)state;
    struct manifest m;
    char name[JOURNAL_FILE_BYTES];
    unsigned refused;
    begin();
    change(30);
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_drop(x.journal, LSN_MAX, &err));
    change(1);
    remember();
    change(30);
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_manifest(x.journal, &m, &err));
    struct lsn until = m.segments[m.segment_count - 1].last;
    manifest_release(&m);
    rewind_to(&x.points[0]);
    for (int i = 0; i < 6; i++) {
        change(4);
        remember();
        check_ok(journal_seal(x.journal, &err));
    }
    check_ok(journal_maintain(x.journal, &err));
    check_ok(journal_manifest(x.journal, &m, &err));
    assert_true(m.rewind_count == 1 && m.run_count > 0);
    remove_file(journal_rewind_file(m.rewinds[0].lsn, name));
    remove_file(journal_rewind_copy_file(m.rewinds[0].lsn, name));
    manifest_release(&m);
    check_ok(journal_drop(x.journal, until, &err));
    check_points(x.journal, "references", &refused);
    assert_true(refused > 0);
    group_free(x.group);
    check_ok(journal_close(x.journal, &err));
    end();
}

/* What cannot be merged, and what can after its index was made again, keeps nothing from being merged that is newer. */
static void test_merge_goes_on(void **state)
{
    (void)state;
    for (int lost = 0; lost < 2; lost++) {
        struct manifest m;
        char name[JOURNAL_FILE_BYTES], path[192];
        bool first = false;
        begin();
        journal_hold(x.journal);
        for (int i = 0; i < 6; i++) {
            change(12);
            remember();
            check_ok(journal_seal(x.journal, &err));
        }
        check_ok(journal_manifest(x.journal, &m, &err));
        assert_int_equal(m.run_count, 0);
        snprintf(path, sizeof path, "%s/%s", x.directory, journal_l0_file(m.segments[0].number, name));
        assert_int_equal(truncate(path, 5000), 0);
        snprintf(path, sizeof path, "%s/%s", x.directory, journal_segment_file(m.segments[0].number, name));
        if (lost)
            assert_int_equal(unlink(path), 0);
        const uint32_t number = m.segments[0].number;
        manifest_release(&m);
        journal_unhold(x.journal);
        check_ok(journal_maintain(x.journal, &err));
        check_ok(journal_manifest(x.journal, &m, &err));
        for (size_t i = 0; i < m.run_count; i++)
            first |= m.runs[i].first_segment <= number && m.runs[i].last_segment >= number;
        assert_true(m.run_count > 0 && first == !lost);
        manifest_release(&m);
        for (size_t i = 0; i < x.point_count && !lost; i++) {
            snprintf(x.points[i].pin, sizeof x.points[i].pin, "engine-%zu", i);
            check_ok(journal_pin(x.journal, x.points[i].pin, (struct lsn){x.points[i].lsn}, true, &err));
            assert_false(check_image(&x.points[i], "merged"));
        }
        group_free(x.group);
        check_ok(journal_close(x.journal, &err));
        end();
    }
}

/* The same of what a rewind refers to, in both copies: dropped with it, and while it stays. */
static void test_drop_goes_on_over_rewinds(void **state)
{
    struct manifest m;
    char name[JOURNAL_FILE_BYTES], what[128];
    (void)state;
    make_sealed();
    restore_all();
    check_ok(manifest_load(x.directory, &m, &err));
    assert_true(m.rewind_count > 0);
    for (size_t i = 0; i < m.rewind_count; i++)
        for (size_t k = 0; k + 1 < m.segment_count; k++) {
            snprintf(what, sizeof what, "the rewind of LSN %llu missing, dropped to LSN %llu", (unsigned long long)m.rewinds[i].lsn.n,
                     (unsigned long long)m.segments[k].last.n);
            remove_file(journal_rewind_file(m.rewinds[i].lsn, name));
            remove_file(journal_rewind_copy_file(m.rewinds[i].lsn, name));
            drop_damaged(what, m.segments[k].last);
            gone_later = journal_rewind_file(m.rewinds[i].lsn, name);
            assert_int_equal(drop_damaged("its copy takes its place", m.segments[k].last), 0);
            gone_later = NULL;
        }
    manifest_release(&m);
    end();
}

/* ---- what a rewind has not copied back ---- */

static void test_pending(void **state)
{
    (void)state;
    char path[96];
    struct {
        struct pending_header header;
        struct pending_volume volume;
        struct le64 words[2];
    } file = {{le64_of(PENDING_MAGIC), le32_of(0), le32_of(1), le64_of(9), le64_of(5)}, {le32_of(1), le32_of(0), le64_of(100)}, {{0}}};
    begin();
    change(3);
    group_free(x.group);
    check_ok(journal_close(x.journal, &err));
    snprintf(path, sizeof path, "%s/rewind.pending", x.directory);
    file.words[0] = le64_of(0x55);
    file.header.crc = le32_of(crc32c(0, &file, sizeof file));
    check_ok(sealed_replace_file(path, &file, sizeof file, 0600, &err));
    assert_false(verify_finds());
    collect("");
    const struct file *f = find_file("rewind.pending");
    for (size_t at = 0; at < f->size; at++) {
        write_byte(f, at, (uint8_t)f->data[at] ^ 4);
        if (!verify_finds())
            fail_msg("verify does not find: rewind.pending, byte %zu", at);
        write_byte(f, at, (uint8_t)f->data[at]);
    }
    for (size_t size = 0; size < f->size; size += 5) {
        assert_int_equal(truncate(path, (off_t)size), 0);
        assert_true(verify_finds());
        restore_file(f);
    }
    assert_false(verify_finds());
    end();
}

/* ---- files that come and go in good order ---- */

#define AWAY_LONG_NS 30000u /* what is away for longer may be told: verification looks some times, one after the other; several times this here */

static struct {
    char path[128], away[136];
    atomic_bool stop;
    atomic_uint rounds;
    _Atomic uint64_t longest_ns; /* that the file was away */
} swap;

static void *take_away_and_bring_back(void *unused)
{
    while (!atomic_load(&swap.stop)) {
        uint64_t since = clock_boottime_ns(clock_system());
        assert_int_equal(rename(swap.path, swap.away), 0);
        assert_int_equal(rename(swap.away, swap.path), 0);
        uint64_t ns = clock_boottime_ns(clock_system()) - since;
        if (ns > atomic_load(&swap.longest_ns))
            atomic_store(&swap.longest_ns, ns);
        atomic_fetch_add(&swap.rounds, 1);
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    return unused;
}

/* A run whose segments are thinned is removed, and made anew under the same name, while verification goes on. */
static void test_a_run_that_is_made_anew_is_not_missing(void **state)
{
    (void)state;
    pthread_t thread;
    unsigned met = 0;
    make_sealed();
    const struct file *run = NULL;
    for (size_t i = 0; i < x.file_count && !run; i++)
        run = strncmp(x.files[i].name, "run-", 4) == 0 ? &x.files[i] : NULL;
    assert_non_null(run);
    snprintf(swap.path, sizeof swap.path, "%s/%s", x.directory, run->name);
    snprintf(swap.away, sizeof swap.away, "%s.away", x.directory);
    assert_int_equal(pthread_create(&thread, NULL, take_away_and_bring_back, NULL), 0);
    for (int i = 0; i < 400; i++) {
        atomic_store(&swap.longest_ns, 0);
        bool found = verify_finds();
        unsigned seen = atomic_load(&swap.rounds);
        while (atomic_load(&swap.rounds) < seen + 2) /* what has begun meanwhile has ended */
            sched_yield();
        assert_true(!found || atomic_load(&swap.longest_ns) > AWAY_LONG_NS);
        met += !found;
    }
    atomic_store(&swap.stop, true);
    pthread_join(thread, NULL);
    assert_true(met > 0);
    assert_int_equal(unlink(swap.path), 0);
    assert_true(verify_finds());
    end();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sealed), cmocka_unit_test(test_objects), cmocka_unit_test(test_tail),
                                       cmocka_unit_test(test_pending), cmocka_unit_test(test_no_manifest), cmocka_unit_test(test_many_rewinds), cmocka_unit_test(test_salvage_files),
                                       cmocka_unit_test(test_salvage_segments), cmocka_unit_test(test_salvage_points), cmocka_unit_test(test_drop_goes_on), cmocka_unit_test(test_drop_goes_on_over_rewinds), cmocka_unit_test(test_drop_goes_on_over_references), cmocka_unit_test(test_merge_goes_on),
                                       cmocka_unit_test(test_a_run_that_is_made_anew_is_not_missing)};
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
