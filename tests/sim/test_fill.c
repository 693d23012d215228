/* SPDX-License-Identifier: Apache-2.0 */
/* A volume that is used before it is copied (src/volume/fill.c), against a model: random changes of the source and of the clone, both killed and
 * closed at random, the source's history dropped as far as the pin allows, its quota
 * used up by that, the clone copied fast, slowly or hardly at all. Every read of the clone is what the point held and what was written over that
 * since; once it is copied the source is removed.
 *
 *   test_fill [--histories N]    $TIDEMARK_SEED replays, but for the order of threads */
#include "check.h"
#include "check_key.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal/journal.h"
#include "journal/pin.h"
#include "journal/seal.h"
#include "queued.h"
#include "view/image.h"
#include "volume/fill.h"
#include "volume/group.h"

#define GRAINS 37u
#define SIZE_BYTES (GRAINS * GROUP_GRAIN_BYTES + 20480u) /* the last one is a part */
#define STEPS 120
#define QUOTA_BYTES (2u << 20)
#define PIN PIN_KEPT_PREFIX "1"

struct side {
    const char *name;
    char directory[96], ring[96], backing[96];
    struct journal *journal;
    struct group *group;
    char live[SIZE_BYTES];
};
static struct {
    char base[64];
    struct side source, clone;
    char point[SIZE_BYTES];
    struct lsn pinned;
    uint64_t random, seed, speed, quota_bytes; /* of the source */
    enum group_ack ack;
    const char *doing;
    unsigned filled, killed, suspended;
} x;
static struct error err;

static void __attribute__((noreturn, format(printf, 1, 2))) broken(const char *format, ...)
{
    va_list args;
    fprintf(stderr, "FAILED: TIDEMARK_SEED=%llu (%s): ", (unsigned long long)x.seed, x.doing);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nthe files are in %s\n", x.base);
    exit(1);
}
#define OK(call)                                                                                                                                   \
    do {                                                                                                                                           \
        if ((call) < 0)                                                                                                                            \
            broken("%s: %s", #call, err.message);                                                                                                  \
    } while (0)

static uint64_t below(uint64_t n)
{
    return check_random(&x.random) % n;
}

/* ---- both sides ---- */

static int open_side(struct side *s)
{
    bool clone = s == &x.clone;
    static const struct log told = {STDERR_FILENO, LOG_LEVEL_INFO, "test"};
    struct journal_options o = {.directory = s->directory, .segment_blocks = 96, .segment_records = 24, .fanout = 2, .ring_path = s->ring,
                                .owner = "test_fill", .quota_bytes = clone ? 0 : x.quota_bytes, .key_file = check_key_file(), .log = getenv("TIDEMARK_LOG") ? &told : NULL};
    OK(journal_open(&o, &s->journal, &err));
    OK(group_new(s->journal, x.ack, o.log, &s->group, &err));
    int r = clone ? group_set_source(s->group, x.source.directory, PIN, &err) : 0;
    if (r == 0)
        r = (clone ? group_adopt_volume : group_add_volume)(s->group, s->name, SIZE_BYTES, s->backing, &err);
    group_set_seed_speed(s->group, x.speed);
    return r == 0 ? group_start(s->group, &err) : r;
}

static void kill_side(struct side *s)
{
    group_abandon(s->group);
    journal_abandon(s->journal);
    x.killed++;
}

static void close_side(struct side *s)
{
    group_free(s->group);
    int r = journal_close(s->journal, &err);
    if (r != -ESHUTDOWN) /* suspended: the next opening compares */
        OK(r);
}

static void reopen(struct side *s)
{
    below(3) ? kill_side(s) : close_side(s);
    OK(open_side(s));
}

static struct block *block_of(struct side *s)
{
    return group_volume_block(s->group, 0);
}

static void change(struct side *s)
{
    uint64_t sectors = SIZE_BYTES / 512, lba = below(sectors), length = 1 + below(below(4) ? 40 : 500), how = below(12);
    if (below(3) == 0) { /* whole grains */
        lba = lba / 128 * 128;
        length = 128 * (1 + below(3));
    }
    if (lba + length > sectors)
        length = sectors - lba;
    char *model = s->live + lba * 512;
    struct block *b = block_of(s);
    unsigned flags = below(10) == 0 ? BLOCK_FUA : 0;
    int written = 0;
    x.doing = how == 0 ? "discard" : how == 1 ? "zero" : "write";
    for (size_t i = 0; i < length * 512; i += 8) {
        uint64_t word = how < 2 ? 0 : check_random(&x.random);
        memcpy(model + i, &word, 8);
    }
    if (how == 0)
        OK(block_discard(b, length * 512, lba * 512, flags, &err));
    else if (how == 1)
        OK(block_zero(b, length * 512, lba * 512, flags, &err));
    else if (below(2) == 0)
        OK(written = queued_write(b, model, length * 512, lba * 512, flags, &err));
    if (how > 1 && !written)
        OK(block_pwrite(b, model, length * 512, lba * 512, flags, &err));
}

static void check_live(struct side *s)
{
    static char data[SIZE_BYTES];
    x.doing = "read";
    for (uint64_t at = 0; at < SIZE_BYTES;) {
        uint64_t length = 512 * (1 + below(1000));
        length = length < SIZE_BYTES - at ? length : SIZE_BYTES - at;
        OK(block_pread(block_of(s), data + at, length, at, &err));
        at += length;
    }
    for (size_t at = 0; at < SIZE_BYTES; at += 512)
        if (memcmp(data + at, s->live + at, 512) != 0)
            broken("%s: sector %zu is not what it should be%s", s->name, at / 512,
                   memcmp(data + at, x.source.live + at, 512) == 0 ? "; it is the source's now"
                   : memcmp(data + at, x.point + at, 512) == 0     ? "; it is the point's"
                                                                   : "");
}

/* What is told to be a hole reads as zeroes. */
static void check_extents(struct side *s)
{
    struct block_extent e[8];
    for (uint64_t at = 0; at < SIZE_BYTES;) {
        size_t count = 0;
        OK(block_extents(block_of(s), SIZE_BYTES - at, at, e, 8, &count, &err));
        for (size_t i = 0; i < count; i++) {
            for (uint64_t k = 0; e[i].hole && k < e[i].length_bytes; k++)
                if (s->live[at + k])
                    broken("%s: byte %llu is told to be a hole", s->name, (unsigned long long)(at + k));
            at += e[i].length_bytes;
        }
    }
}

static void check_latest(struct side *s)
{
    static char data[SIZE_BYTES] __attribute__((aligned(4096)));
    struct journal_status status;
    struct image *image;
    x.doing = "image(latest)";
    int r = journal_sync(s->journal, -1, NULL, &err);
    for (; r == -ESHUTDOWN; r = journal_sync(s->journal, -1, NULL, &err)) /* it has only just found out that it may drop history */
        group_settle(s->group);
    OK(r);
    journal_status(s->journal, &status);
    OK(journal_pin(s->journal, "engine-look", status.latest, true, &err));
    OK(image_open(s->directory, "engine-look", &image, &err));
    OK(image_read(image, 1, 0, SIZE_BYTES / 512, data, &err));
    if (memcmp(data, s->live, SIZE_BYTES) != 0)
        broken("%s: J4: the image is not the volume", s->name);
    image_free(image);
    OK(journal_unpin(s->journal, "engine-look", &err));
}

static bool is_filling(void)
{
    struct group_status s;
    group_status(x.clone.group, &s);
    if (s.fill_done_bytes > s.fill_total_bytes)
        broken("%llu of %llu bytes are copied", (unsigned long long)s.fill_done_bytes, (unsigned long long)s.fill_total_bytes);
    return s.filling;
}

/* ---- making the clone, as tidemark-engine copy does ---- */

static void make_clone(void)
{
    static uint64_t words[GRAINS / 64 + 1];
    struct image *image;
    struct block *from;
    struct block_extent e[8];
    memset(words, 0, sizeof words);
    OK(image_open(x.source.directory, PIN, &image, &err));
    OK(image_block(image, 1, SIZE_BYTES, &from, &err));
    for (uint64_t at = 0; at < SIZE_BYTES;) {
        size_t count = 0;
        OK(block_extents(from, SIZE_BYTES - at, at, e, 8, &count, &err));
        for (size_t i = 0; i < count; at += e[i++].length_bytes)
            for (uint64_t grain = at / GROUP_GRAIN_BYTES; !e[i].hole && grain <= (at + e[i].length_bytes - 1) / GROUP_GRAIN_BYTES; grain++)
                words[grain / 64] |= 1ull << grain % 64;
    }
    block_free(from);
    image_free(image);
    OK(fill_create(x.clone.backing, 1, SIZE_BYTES, words, &err));
    memcpy(x.clone.live, x.point, SIZE_BYTES);
    OK(open_side(&x.clone));
}

/* The quota is used up by what the pin keeps: the source goes on unjournaled. */
static bool is_suspended(void)
{
    return journal_is_suspended(x.source.journal);
}

/* The source's history goes as far as it may. */
static void drop_source(void)
{
    struct journal_status s;
    x.doing = "drop";
    int sealed = is_suspended() ? -ESHUTDOWN : journal_seal(x.source.journal, &err);
    if (sealed == -ESHUTDOWN)
        return;
    OK(sealed);
    journal_status(x.source.journal, &s);
    OK(journal_drop(x.source.journal, s.latest, &err));
    OK(journal_maintain(x.source.journal, &err));
}

/* Nothing is pinned. */
static void resume_source(void)
{
    do /* a thread may have asked just before */
        group_settle(x.source.group);
    while (is_suspended());
}

static void rewind_source(void)
{
    struct group_change c;
    x.doing = "rewind";
    if (is_suspended())
        return;
    int r = group_rewind(x.source.group, x.pinned, false, &c, &err);
    if (r == -EBUSY || r == -ESHUTDOWN) /* it is compared after a gap, or there is a new one */
        return;
    OK(r);
    free(c.volumes);
    memcpy(x.source.live, x.point, SIZE_BYTES);
}

static void begin_history(uint64_t seed)
{
    struct journal_status s;
    struct side *const sides[] = {&x.source, &x.clone};
    memset(&x.source, 0, sizeof x.source);
    memset(&x.clone, 0, sizeof x.clone);
    x.seed = x.random = seed;
    x.ack = below(2) ? GROUP_ACK_FLUSH : GROUP_ACK_WRITE;
    x.quota_bytes = below(3) ? 0 : QUOTA_BYTES;
    x.speed = below(3) == 0 ? 0 : below(2) ? 1 : 4 << 20;
    snprintf(x.base, sizeof x.base, "/dev/shm/tidemark-fill-XXXXXX");
    if (!mkdtemp(x.base))
        broken("cannot make %s", x.base);
    x.source.name = "source";
    x.clone.name = "clone";
    for (int i = 0; i < 2; i++) {
        snprintf(sides[i]->directory, sizeof sides[i]->directory, "%s/%s", x.base, sides[i]->name);
        snprintf(sides[i]->ring, sizeof sides[i]->ring, "%s/%s.ring", x.base, sides[i]->name);
        snprintf(sides[i]->backing, sizeof sides[i]->backing, "%s/%s.img", x.base, sides[i]->name);
    }
    OK(open_side(&x.source));
    for (uint64_t i = 0, n = below(60); i < n; i++) {
        change(&x.source);
        if (below(20) == 0)
            drop_source();
    }
    resume_source();
    OK(journal_sync(x.source.journal, -1, NULL, &err)); /* the latest is what was written */
    journal_status(x.source.journal, &s);
    x.pinned = s.latest;
    OK(journal_pin(x.source.journal, PIN, s.latest, false, &err));
    memcpy(x.point, x.source.live, SIZE_BYTES);
    for (uint64_t i = 0, n = below(20); i < n; i++)
        change(&x.source);
    make_clone();
}

static void step(void)
{
    uint64_t dice = below(100);
    if (dice < 40)
        change(&x.clone);
    else if (dice < 60)
        change(&x.source);
    else if (dice < 66)
        OK(block_flush(block_of(&x.clone), &err));
    else if (dice < 76)
        check_live(&x.clone);
    else if (dice < 79)
        check_extents(&x.clone);
    else if (dice < 83)
        drop_source();
    else if (dice < 84)
        rewind_source();
    else if (dice < 86)
        group_clear_intents(x.clone.group);
    else if (dice < 90)
        reopen(&x.source);
    else if (dice < 98)
        reopen(&x.clone);
    else {
        reopen(&x.source);
        reopen(&x.clone);
    }
}

/* It depends on nothing any more. */
static void end_history(void)
{
    char map[128];
    snprintf(map, sizeof map, "%s" FILL_SUFFIX, x.clone.backing);
    check_live(&x.clone);
    x.doing = "settle";
    group_settle(x.clone.group);
    if (is_filling() || access(map, F_OK) == 0)
        broken("it is settled, and not copied");
    check_latest(&x.clone);
    OK(journal_unpin(x.source.journal, PIN, &err));
    check_live(&x.source);
    x.suspended += is_suspended();
    resume_source();
    drop_source();
    check_latest(&x.source);
    close_side(&x.source);
    OK(io_remove_tree(x.source.directory, &err));
    reopen(&x.clone);
    check_live(&x.clone);
    change(&x.clone);
    check_latest(&x.clone);
    close_side(&x.clone);
    OK(io_remove_tree(x.base, &err));
    x.filled++;
}

static void run_history(uint64_t seed)
{
    begin_history(seed);
    for (int i = 0; i < STEPS; i++)
        step();
    end_history();
}

/* ---- what must not be served ---- */

/* With a clone that is not copied by itself. */
static void begin_uncopied(uint64_t seed, const char *doing)
{
    begin_history(seed);
    x.doing = doing;
    close_side(&x.clone);
    x.speed = 1;
    OK(open_side(&x.clone));
}

static void check_lost_pin(uint64_t seed)
{
    static char data[GROUP_GRAIN_BYTES];
    begin_uncopied(seed, "lost pin");
    for (uint64_t grain = 0; grain < GRAINS; grain += 2) /* so that something is copied, and something is not */
        OK(block_pwrite(block_of(&x.clone), x.source.live, 512, grain * GROUP_GRAIN_BYTES, 0, &err));
    for (uint64_t grain = 0; grain < GRAINS; grain += 2)
        memcpy(x.clone.live + grain * GROUP_GRAIN_BYTES, x.source.live, 512);
    OK(journal_unpin(x.source.journal, PIN, &err));
    for (int i = 0; i < 30; i++)
        change(&x.source);
    drop_source();
    unsigned failed = 0;
    for (uint64_t grain = 0; grain < GRAINS; grain++) {
        uint64_t offset = grain * GROUP_GRAIN_BYTES;
        int r = block_pread(block_of(&x.clone), data, sizeof data, offset, &err);
        failed += r < 0;
        if (r == 0 && memcmp(data, x.clone.live + offset, sizeof data) != 0)
            broken("grain %llu is wrong once the pin is gone", (unsigned long long)grain);
        if (r < 0 && (r != -EIO || grain % 2 == 0))
            broken("grain %llu: %d, %s", (unsigned long long)grain, r, err.message);
    }
    kill_side(&x.clone);
    int r = open_side(&x.clone);
    if (failed && r == 0)
        broken("it starts although %u grains are lost", failed);
    if (r < 0 && !strstr(err.message, "copied from"))
        broken("it does not start: %s", err.message);
    group_free(x.clone.group);
    OK(journal_close(x.clone.journal, &err));
    close_side(&x.source);
    OK(io_remove_tree(x.base, &err));
}

/* F2: what a flush covers is not read from the source again, were the power lost: then nothing but the files is left. */
static void check_lost_power(uint64_t seed)
{
    char map[128];
    begin_uncopied(seed, "lost power");
    for (uint64_t grain = 0; grain < GRAINS; grain += 2) {
        char *live = x.clone.live + grain * GROUP_GRAIN_BYTES;
        memset(live, (int)(1 + below(255)), 512);
        OK(block_pwrite(block_of(&x.clone), live, 512, grain * GROUP_GRAIN_BYTES, 0, &err));
    }
    OK(block_flush(block_of(&x.clone), &err));
    kill_side(&x.clone);
    snprintf(map, sizeof map, "%s.fill-1", x.clone.ring);
    if (unlink(x.clone.ring) < 0 || (unlink(map) < 0 && errno != ENOENT))
        broken("cannot remove what is in memory");
    OK(open_side(&x.clone));
    check_live(&x.clone);
    close_side(&x.clone);
    close_side(&x.source);
    OK(io_remove_tree(x.base, &err));
}

static void check_damaged_map(uint64_t seed)
{
    char map[128];
    begin_uncopied(seed, "damaged map");
    bool filling = is_filling();
    kill_side(&x.clone);
    snprintf(map, sizeof map, "%s" FILL_SUFFIX, x.clone.backing);
    FILE *f = filling ? fopen(map, "r+") : NULL;
    if (f) {
        struct stat st;
        if (fstat(fileno(f), &st) < 0 || fseek(f, (long)below((uint64_t)st.st_size), SEEK_SET) < 0 || fputc(0xa5, f) == EOF || fclose(f) == EOF)
            broken("cannot damage %s", map);
        int r = open_side(&x.clone);
        if (r != -EBADMSG && r != 0)
            broken("a damaged map: %d, %s", r, err.message);
        if (r == 0) /* it was that byte */
            check_live(&x.clone);
        group_free(x.clone.group);
        OK(journal_close(x.clone.journal, &err));
    }
    close_side(&x.source);
    OK(io_remove_tree(x.base, &err));
}

int main(int argc, char **argv)
{
    unsigned long histories = argc > 2 && strcmp(argv[1], "--histories") == 0 ? strtoul(argv[2], NULL, 10) : 20;
    uint64_t seed = check_seed();
    for (unsigned long i = 0; i < histories; i++)
        run_history(seed + i);
    for (unsigned long i = 0; i < histories / 4 + 1; i++) {
        check_lost_pin(seed + i);
        check_lost_power(seed + i);
        check_damaged_map(seed + i);
    }
    printf("%u clones copied, %u kills, %u sources suspended by the quota\n", x.filled, x.killed, x.suspended);
    return 0;
}
