/* SPDX-License-Identifier: Apache-2.0 */
/* Power loss: J3, J4, W1 to W3. Histories on two disks that are recorded (disks.h); then states that they may
 * have after a loss of power, and recovery from each.
 *
 *   test_power exhaustive [--histories N]
 *
 * short histories: at each moment each subset of what was not flushed, and all of it torn; where there are more
 * than LIMIT states, some at random;
 *
 *   test_power random [--histories N]
 *
 * long ones, with rewinds, trouble with the journal's disk, kills and clean ends; the power is lost again and
 * again, during recovery too.
 *
 *   test_power adopt [--histories N]
 *
 * as exhaustive, with a volume that held something before: points that lack a before-image are refused, or right.
 *
 *   test_power fill [--histories N]
 *
 * as adopt, with a clone's volume that is used before it is copied, in place of the adopted one.
 *
 *   test_power pin [--histories N]
 *
 * as exhaustive, with a point that is pinned for a clone on the way: it stays, and is read as it was, also after all else was dropped.
 *
 * After each recovery: the live volume has in each sector what was there at the last acknowledged flush or was
 * written later; the recovered history is a prefix that has all that an acknowledged flush covered (J3), and
 * each of its points reads right; later points are refused; once the comparison is done image(latest) is the
 * live volume (J4) and `verify` finds no damage.
 *
 * $TIDEMARK_SEED replays, but for the order of threads; $TIDEMARK_LOG shows what the engine logs. */
#include "check.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/uuid.h"
#include "block/queue.h"
#include "disks.h"
#include "journal/journal.h"
#include "journal/pin.h"
#include "journal/verify.h"
#include "view/image.h"
#include "volume/fill.h"
#include "volume/group.h"

#define LIMIT 200u   /* states of a moment */
#define ADOPT_LIMIT 6u
#define MAX_STEPS 64 /* of a history */
#define MAX_POINTS 512
#define MAX_MOMENTS 65536
#define SPOT_BYTES 32768u /* what is used of a region of 4 MiB */
#define REGION_BYTES (4u << 20)
#define VOLUMES 2
#define MODEL_BYTES (5 * SPOT_BYTES)
#define SECTORS (MODEL_BYTES / 512)
#define FILL_PIN PIN_KEPT_PREFIX "1"

static const uint64_t sizes[VOLUMES] = {2 * SPOT_BYTES, 2 * REGION_BYTES + SPOT_BYTES};
/* Where each spot of the model lies. */
static const struct {
    int volume;
    uint64_t offset;
} spots[] = {{0, 0}, {0, SPOT_BYTES}, {1, 0}, {1, REGION_BYTES}, {1, 2 * REGION_BYTES}};
#define SPOTS (sizeof spots / sizeof *spots)

struct step {
    uint64_t begun, acked;             /* moments */
    uint64_t promised_lsn;             /* what the history must have once it is acknowledged; 0: no promise */
    size_t promised_from, promised_to; /* sectors of the model that must not be older */
    char *live;                        /* after it */
    const char *name;
};
struct kept {
    uint64_t lsn, moment; /* when it was there; 0: before this generation */
    char *data;
};
static struct {
    char base[64], root[96], ring[96];
    int generation;
    enum group_ack ack;
    struct journal *journal;
    struct group *group;
    char live[MODEL_BYTES];
    struct step steps[MAX_STEPS + 1];
    size_t step_count;
    struct kept points[MAX_POINTS];
    size_t point_count, states, refused;
    uint64_t random, seed;
    atomic_int broken; /* the journal's disk fails; 2: for the bitmap too */
    struct uuid boot;
    bool queue; /* writes go by block/queue.h where they can */
    bool pins;          /* a point is pinned at: */
    uint64_t pinned_at; /* 0: not yet */
    char pinned[MODEL_BYTES];
    bool fill;          /* the second volume is a clone's, which is copied only when it has to be */
    bool adopt, slowly; /* the second volume held something before; it is seeded only when it has to be */
    const char *what;
    uint64_t moment;
    struct disks_choice choice;
} x;
static struct error err;

int __wrap_uuid_boot(struct uuid *ret, struct error *e);
int __wrap_uuid_boot(struct uuid *ret, struct error *e)
{
    (void)e;
    *ret = x.boot;
    return 0;
}

static void __attribute__((noreturn, format(printf, 1, 2))) broken_promise(const char *format, ...)
{
    va_list args;
    fprintf(stderr,
            "FAILED: TIDEMARK_SEED=%llu, %s, generation %d, moment %llu (writes %llx, changes %zu %zu, "
            "random %llx, torn %d): ",
            (unsigned long long)x.seed, x.what, x.generation, (unsigned long long)x.moment,
            (unsigned long long)x.choice.writes, x.choice.changes[0], x.choice.changes[1],
            (unsigned long long)x.choice.random, x.choice.torn);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nthe state is in %s\n", x.root);
    exit(1);
}
#define OK(call)                                                                                             \
    do {                                                                                                     \
        if ((call) < 0)                                                                                      \
            broken_promise("%s: %s", #call, err.message);                                                    \
    } while (0)

static uint64_t below(uint64_t n)
{
    return check_random(&x.random) % n;
}

/* ---- the program under test ---- */

static int fault(void *context, const char *step)
{
    (void)context;
    int broken = atomic_load(&x.broken);
    return broken == 2 || (broken && strcmp(step, "intent") != 0) ? -EIO : 0;
}

static void open_all(void)
{
    static const struct log told = {STDERR_FILENO, LOG_LEVEL_INFO, "test"};
    char path[160];
    snprintf(path, sizeof path, "%s/journal", x.root);
    struct journal_options o = {.directory = path,
                                .segment_blocks = 64,
                                .segment_records = 24,
                                .fanout = 2,
                                .ring_path = x.ring,
                                .owner = "test_power",
                                .fault = fault,
                                .compress = x.seed & 1,
                                .log = getenv("TIDEMARK_LOG") ? &told : NULL};
    for (unsigned id = 1; id <= GROUP_MAX_VOLUMES; id++) { /* the states are other files; the disk that lost its power is the same */
        char known[200];
        snprintf(known, sizeof known, "%s/backing-%u.id", o.directory, id);
        unlink(known);
    }
    OK(journal_open(&o, &x.journal, &err));
    OK(group_new(x.journal, x.ack, o.log, &x.group, &err));
    for (int i = 0; i < VOLUMES; i++) {
        char name[8];
        snprintf(name, sizeof name, "v%d", i);
        snprintf(path, sizeof path, "%s/backing/v%d.img", x.root, i);
        OK((x.adopt && i == 1 ? group_adopt_volume : group_add_volume)(x.group, name, sizes[i], path, &err));
    }
    snprintf(path, sizeof path, "%s/source", x.base);
    if (x.fill)
        OK(group_set_source(x.group, path, FILL_PIN, &err));
    group_set_seed_speed(x.group, x.slowly ? 1 : 0);
    OK(group_start(x.group, &err));
}

static void kill_all(void)
{
    group_abandon(x.group);
    journal_abandon(x.journal);
}

static void new_boot(void)
{
    uint64_t id = check_random(&x.random);
    memcpy(x.boot.bytes, &id, sizeof id);
    unlink(x.ring);
}

static void read_live(char *data)
{
    for (size_t i = 0; i < SPOTS; i++)
        OK(block_pread(group_volume_block(x.group, (size_t)spots[i].volume), data + i * SPOT_BYTES,
                       SPOT_BYTES, spots[i].offset, &err));
}

static bool is_protected(void)
{
    struct group_status g;
    struct journal_status s;
    group_status(x.group, &g);
    journal_status(x.journal, &s);
    return !g.resyncing && !s.suspended;
}

/* ---- checks ---- */

static void check_pin(const char *pin, uint64_t lsn, const char *model)
{
    static char data[SPOT_BYTES] __attribute__((aligned(4096)));
    struct image *image;
    char path[160];
    snprintf(path, sizeof path, "%s/journal", x.root);
    OK(image_open(path, pin, &image, &err));
    for (size_t i = 0; i < SPOTS; i++) {
        OK(image_read(image, (uint32_t)spots[i].volume + 1, spots[i].offset / 512, SPOT_BYTES / 512, data,
                      &err));
        for (size_t at = 0; at < SPOT_BYTES; at += 512)
            if (memcmp(data + at, model + i * SPOT_BYTES + at, 512) != 0)
                broken_promise("image(%llu) is wrong at byte %zu of spot %zu", (unsigned long long)lsn, at,
                               i);
    }
    image_free(image);
}

static void check_image(uint64_t lsn, const char *model)
{
    struct journal_point found;
    OK(journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = {lsn}}, &found, &err));
    OK(journal_pin(x.journal, "engine-look", (struct lsn){lsn}, true, &err));
    check_pin("engine-look", lsn, model);
    OK(journal_unpin(x.journal, "engine-look", &err));
}

/* It was there when the power was lost. */
static void check_kept_pin(uint64_t moment)
{
    struct journal_status s;
    if (!x.pinned_at || x.pinned_at > moment)
        return;
    check_pin(FILL_PIN, 0, x.pinned);
    OK(journal_seal(x.journal, &err));
    journal_status(x.journal, &s);
    OK(journal_drop(x.journal, s.latest, &err));
    check_pin(FILL_PIN, 0, x.pinned);
}

/* What the steps up to the moment promise of a sector, as the index of the oldest step that it may show. */
static void find_floors(uint64_t moment, size_t floors[SECTORS], size_t *ret_last, uint64_t *ret_lsn)
{
    memset(floors, 0, SECTORS * sizeof *floors);
    *ret_last = 0;
    *ret_lsn = 0;
    for (size_t k = 1; k <= x.step_count; k++) {
        const struct step *s = &x.steps[k];
        if (s->begun <= moment)
            *ret_last = k;
        if (!s->acked || s->acked > moment)
            continue;
        for (size_t sector = s->promised_from; sector < s->promised_to; sector++)
            floors[sector] = k;
        if (s->promised_lsn > *ret_lsn)
            *ret_lsn = s->promised_lsn;
    }
}

static const char *tell_older(size_t sector, const char *live)
{
    for (size_t k = 0; k <= x.step_count; k++)
        if (memcmp(x.steps[k].live + sector * 512, live + sector * 512, 512) == 0)
            return "; it has something older, or that was not there yet";
    return "; it was never there";
}

static void check_live(uint64_t moment, const char *live)
{
    static size_t floors[SECTORS];
    size_t last;
    uint64_t lsn;
    find_floors(moment, floors, &last, &lsn);
    for (size_t sector = 0; sector < SECTORS; sector++) {
        size_t k = floors[sector];
        while (k <= last && memcmp(x.steps[k].live + sector * 512, live + sector * 512, 512) != 0)
            k++;
        if (k > last)
            broken_promise("sector %zu of the model has nothing that was there since step %zu (%s) of %zu%s",
                           sector, floors[sector],
                           floors[sector] ? x.steps[floors[sector]].name : "the start", last,
                           tell_older(sector, live));
    }
    uint64_t found = journal_recovery(x.journal)->last.n;
    if (found < lsn)
        broken_promise("J3: the history ends at LSN %llu, but a flush covered LSN %llu",
                       (unsigned long long)found, (unsigned long long)lsn);
}

static void check_points(uint64_t moment, uint64_t last)
{
    struct journal_point found;
    for (size_t i = 0; i < x.point_count; i++) {
        const struct kept *p = &x.points[i];
        if (p->moment > moment || (x.point_count - i > 4 && below(x.point_count) > 6))
            continue; /* not yet; of many points the last ones and some others */
        if (x.adopt && p->lsn <= last && /* what the volume held then may be lost */
            journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = {p->lsn}}, &found, &err) == -ERANGE)
            x.refused++;
        else if (p->lsn <= last)
            check_image(p->lsn, p->data);
        else if (journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = {p->lsn}}, &found,
                                 &err) != -ERANGE)
            broken_promise("LSN %llu is not refused although the history ended at LSN %llu",
                           (unsigned long long)p->lsn, (unsigned long long)last);
    }
}

static void tell_damage(void *context, const struct verify_damage *damage)
{
    (void)context;
    broken_promise("verify: %s: %s", damage->file, damage->what);
}
static void tell_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context, (void)done, (void)total;
}

/* After the power came back: opens, compares with what was promised, and leaves it open. `live`: what the
 * volumes hold. */
static void recover(uint64_t moment, bool settle, char *live)
{
    static char settled[MODEL_BYTES];
    struct journal_status s;
    open_all();
    read_live(live);
    check_live(moment, live);
    if (!journal_recovery(x.journal)->created && !x.adopt)
        check_points(moment, journal_recovery(x.journal)->last.n);
    x.states++;
    if (!settle)
        return;
    group_settle(x.group);
    read_live(settled);
    if (memcmp(settled, live, sizeof settled) != 0)
        broken_promise("J4: the comparison changed the live volume");
    OK(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    check_image(s.latest.n, live);
    if (x.adopt && !journal_recovery(x.journal)->created) /* before it was seeded none could be opened */
        check_points(moment, journal_recovery(x.journal)->last.n);
    check_kept_pin(moment);
}

static void verify(void)
{
    char path[160];
    struct verify_report report = {tell_damage, tell_progress, NULL};
    struct verify_summary summary;
    snprintf(path, sizeof path, "%s/journal", x.root);
    OK(journal_seal(x.journal, &err));
    OK(journal_verify(path, &report, &summary, &err));
}

/* ---- steps ---- */

static struct step *begin_step(const char *name)
{
    struct step *s = &x.steps[++x.step_count];
    *s = (struct step){.live = malloc(MODEL_BYTES), .begun = disks_now(), .name = name};
    return s;
}

static void promise(struct step *s, uint64_t lsn, size_t from, size_t to)
{
    s->promised_from = from;
    s->promised_to = to;
    s->promised_lsn = journal_is_suspended(x.journal) ? 0 : lsn;
}

static void end_step(struct step *s)
{
    memcpy(s->live, x.live, MODEL_BYTES);
    s->acked = disks_now();
}

static uint64_t latest(void)
{
    return journal_next_lsn(x.journal).n - 1;
}

static void remember(void)
{
    struct kept *last = x.point_count ? &x.points[x.point_count - 1] : NULL;
    if (x.point_count == MAX_POINTS || !is_protected() || (last && last->lsn >= latest()))
        return;
    x.points[x.point_count++] = (struct kept){latest(), disks_now(), malloc(MODEL_BYTES)};
    memcpy(x.points[x.point_count - 1].data, x.live, MODEL_BYTES);
}

/* By block/queue.h; false where that cannot be done. */
static bool write_queued(struct block *b, const char *data, size_t length, uint64_t offset)
{
    static char aligned[SPOT_BYTES] __attribute__((aligned(4096)));
    struct block_queue *q;
    struct block_request r = {.op = BLOCK_OP_WRITE, .data = aligned, .length_bytes = length, .offset_bytes = offset},
                         *done = NULL;
    memcpy(aligned, data, length);
    OK(block_queue_new(b, 4, &q, &err));
    int started = block_queue_start(q, &r);
    while (started == 0 && !done)
        done = block_queue_poll(q);
    block_queue_free(q);
    if (started == 0 && r.outcome == BLOCK_STEP_BLOCKS)
        started = block_finish(b, &r, &err);
    return started == 0 && r.outcome != BLOCK_STEP_AGAIN;
}

static void change(void)
{
    size_t spot = below(SPOTS), sector = below(SPOT_BYTES / 512), length = 1 + below(12);
    if (below(2)) {
        sector = sector / 8 * 8;
        length = 8;
    }
    if (sector + length > SPOT_BYTES / 512)
        length = SPOT_BYTES / 512 - sector;
    size_t at = spot * (SPOT_BYTES / 512) + sector;
    char *model = x.live + at * 512;
    uint64_t offset = spots[spot].offset + sector * 512;
    struct block *b = group_volume_block(x.group, (size_t)spots[spot].volume);
    unsigned flags = below(12) == 0 ? BLOCK_FUA : 0, how = (unsigned)below(10);
    struct step *s = begin_step(how == 0 ? "discard" : how == 1 ? "zero" : flags ? "FUA write" : "write");
    for (size_t i = 0; i < length * 512; i += 8) {
        uint64_t word = how < 2 ? 0 : check_random(&x.random);
        memcpy(model + i, &word, 8);
    }
    if (how == 0)
        OK(block_discard(b, length * 512, offset, flags, &err));
    else if (how == 1)
        OK(block_zero(b, length * 512, offset, flags, &err));
    else if (!x.queue || flags || below(2) || !write_queued(b, model, length * 512, offset))
        OK(block_pwrite(b, model, length * 512, offset, flags, &err));
    if (flags & BLOCK_FUA)
        promise(s, latest(), at, at + length);
    end_step(s);
}

static void flush(void)
{
    static const size_t ends[VOLUMES + 1] = {0, 2 * SPOT_BYTES / 512, SECTORS};
    size_t volume = below(VOLUMES);
    uint64_t lsn = latest();
    struct step *s = begin_step("flush");
    OK(block_flush(group_volume_block(x.group, volume), &err));
    promise(s, lsn, ends[volume], ends[volume + 1]);
    end_step(s);
}

static void rewind_somewhere(void)
{
    struct group_change c;
    if (!x.point_count || x.broken || !is_protected())
        return;
    const struct kept *p = &x.points[below(x.point_count)];
    struct step *s = begin_step("rewind");
    memcpy(x.live, p->data, MODEL_BYTES);
    OK(group_rewind(x.group, (struct lsn){p->lsn}, false, &c, &err));
    free(c.volumes);
    promise(s, latest(), 0, SECTORS);
    end_step(s);
}

/* What was not flushed when the journal failed may be in a gap. */
static void forget_refused(void)
{
    struct journal_point found;
    uint64_t promised = 0;
    size_t left = 0;
    for (size_t k = 1; k <= x.step_count; k++)
        promised = x.steps[k].promised_lsn > promised ? x.steps[k].promised_lsn : promised;
    for (size_t i = 0; i < x.point_count; i++) {
        struct kept *p = &x.points[i];
        int r = journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = {p->lsn}}, &found, &err);
        if (r == -ERANGE && p->lsn <= promised)
            broken_promise("LSN %llu is refused: %s", (unsigned long long)p->lsn, err.message);
        if (r == 0)
            x.points[left++] = *p;
        else
            free(p->data);
    }
    x.point_count = left;
}

static void trouble(void)
{
    if (x.broken) {
        atomic_store(&x.broken, 0);
        do /* a thread may have asked just before */
            group_settle(x.group);
        while (!is_protected());
        forget_refused();
    } else {
        atomic_store(&x.broken, 1 + (int)below(2));
    }
}

static void reopen(void)
{
    if (x.broken)
        trouble();
    if (below(2)) {
        kill_all();
    } else {
        group_free(x.group);
        OK(journal_close(x.journal, &err));
    }
    open_all();
}

static void step(bool all)
{
    uint64_t dice = below(100);
    if (dice < 62 || !all)
        dice < 72 ? change() : flush();
    else if (dice < 76)
        flush();
    else if (dice < 82)
        for (int i = 0; i < 4; i++)
            group_clear_intents(x.group);
    else if (dice < 86)
        rewind_somewhere();
    else if (dice < 89)
        trouble();
    else if (dice < 92 && !x.broken)
        OK(journal_seal(x.journal, &err));
    else if (dice < 94 && !x.broken)
        OK(journal_maintain(x.journal, &err));
    else if (dice < 97)
        reopen();
    else if (!x.broken)
        group_settle(x.group);
    remember();
}

/* ---- histories ---- */

static void remove_root(void)
{
    OK(io_remove_tree(x.root, &err));
}

static void begin_history(uint64_t seed)
{
    char path[160];
    memset(&x.live, 0, sizeof x.live);
    x.seed = x.random = seed;
    x.ack = below(2) ? GROUP_ACK_FLUSH : GROUP_ACK_WRITE;
    x.generation = 0;
    x.point_count = 0;
    snprintf(x.base, sizeof x.base, "/dev/shm/tidemark-power-XXXXXX");
    if (!mkdtemp(x.base))
        broken_promise("cannot make %s", x.base);
    snprintf(x.ring, sizeof x.ring, "%s/ring", x.base);
    snprintf(x.root, sizeof x.root, "%s/0", x.base);
    snprintf(path, sizeof path, "%s/backing", x.root);
    OK(io_mkdirs(path, 0700, &err));
    snprintf(path, sizeof path, "%s/journal", x.root);
    OK(io_mkdirs(path, 0700, &err));
    new_boot();
}

/* What the adopted volume holds. */
static void fill_backing(void)
{
    char path[160];
    snprintf(path, sizeof path, "%s/backing/v1.img", x.root);
    FILE *f = fopen(path, "w");
    assert_true(f && ftruncate(fileno(f), (off_t)sizes[1]) == 0);
    for (size_t i = 0; i < SPOTS; i++) {
        if (spots[i].volume != 1)
            continue;
        for (size_t k = 0; k < SPOT_BYTES; k += 8) {
            uint64_t word = check_random(&x.random);
            memcpy(x.live + i * SPOT_BYTES + k, &word, 8);
        }
        assert_true(fseek(f, (long)spots[i].offset, SEEK_SET) == 0 &&
                    fwrite(x.live + i * SPOT_BYTES, 1, SPOT_BYTES, f) == SPOT_BYTES);
    }
    assert_int_equal(fclose(f), 0);
}

/* The same, by a clone of a journal beside. */
static void make_clone(void)
{
    char path[160], backing[160];
    struct group *group;
    struct journal *journal;
    struct journal_status s;
    struct journal_options o = {.directory = path, .segment_blocks = 64, .segment_records = 24, .fanout = 2, .ring_path = x.ring, .owner = "test_power"};
    uint64_t words[(2 * REGION_BYTES + SPOT_BYTES) / GROUP_GRAIN_BYTES / 64 + 1] = {0};
    snprintf(path, sizeof path, "%s/source", x.base);
    snprintf(backing, sizeof backing, "%s/source.img", x.base);
    OK(journal_open(&o, &journal, &err));
    OK(group_new(journal, GROUP_ACK_WRITE, NULL, &group, &err));
    OK(group_add_volume(group, "v", sizes[1], backing, &err));
    OK(group_start(group, &err));
    for (size_t i = 0; i < SPOTS; i++) {
        if (spots[i].volume != 1)
            continue;
        for (size_t k = 0; k < SPOT_BYTES; k += 8) {
            uint64_t word = check_random(&x.random);
            memcpy(x.live + i * SPOT_BYTES + k, &word, 8);
        }
        uint64_t grain = spots[i].offset / GROUP_GRAIN_BYTES;
        words[grain / 64] |= 1ull << grain % 64;
        OK(block_pwrite(group_volume_block(group, 0), x.live + i * SPOT_BYTES, SPOT_BYTES, spots[i].offset, 0, &err));
    }
    OK(journal_sync(journal, -1, NULL, &err)); /* the latest is what was written */
    journal_status(journal, &s);
    OK(journal_pin(journal, FILL_PIN, s.latest, false, &err));
    group_free(group);
    OK(journal_close(journal, &err));
    snprintf(backing, sizeof backing, "%s/backing/v1.img", x.root);
    OK(fill_create(backing, 1, sizes[1], words, &err));
    new_boot();
}

/* What is there is the first step of a generation. */
static void forget_steps(void)
{
    for (size_t i = 0; i <= x.step_count; i++)
        free(x.steps[i].live);
    x.step_count = 0;
    x.steps[0] = (struct step){.live = malloc(MODEL_BYTES)};
    memcpy(x.steps[0].live, x.live, MODEL_BYTES);
}

/* Of the history that was lost. */
static void forget_points(uint64_t last)
{
    while (x.point_count &&
           (x.points[x.point_count - 1].lsn > last || x.points[x.point_count - 1].moment > x.moment))
        free(x.points[--x.point_count].data);
    for (size_t i = 0; i < x.point_count; i++)
        x.points[i].moment = 0;
}

static void end_history(void)
{
    for (size_t i = 0; i < x.point_count; i++)
        free(x.points[i].data);
    x.point_count = 0;
    OK(io_remove_tree(x.base, &err));
}

/* One state, in a directory of its own; removed again. */
static void try_state(uint64_t moment, const struct disks_choice *choice, uint64_t every)
{
    static char live[MODEL_BYTES];
    char root[sizeof x.root];
    memcpy(root, x.root, sizeof root);
    x.moment = moment;
    x.choice = *choice;
    new_boot();
    snprintf(x.root, sizeof x.root, "%s/state", x.base);
    disks_build(moment, choice, x.root);
    recover(moment, true, live);
    if (every % 16 == 0)
        verify();
    kill_all();
    remove_root();
    memcpy(x.root, root, sizeof root);
}

/* The states that a moment adds to those of the moments before. */
static void try_moment(uint64_t moment)
{
    struct disks_open open;
    struct disks_choice c = {0};
    uint64_t tried = 0, limit = x.adopt || x.pins ? ADOPT_LIMIT : LIMIT;
    disks_open(moment, &open);
    bool few =
        open.writes < 8 && (1ull << open.writes) * (open.changes[0] + 1) * (open.changes[1] + 1) <= limit;
    if (!few) {
        for (; tried < (x.adopt || x.pins ? 2 : LIMIT / 20); tried++) {
            c.random = 1 + check_random(&x.random) % (UINT64_MAX - 1);
            try_state(moment, &c, tried);
        }
        return;
    }
    for (c.writes = 0; c.writes < 1ull << open.writes; c.writes++)
        for (c.changes[0] = 0; c.changes[0] <= open.changes[0]; c.changes[0]++)
            for (c.changes[1] = 0; c.changes[1] <= open.changes[1]; c.changes[1]++) {
                c.torn = false;
                try_state(moment, &c, tried++);
            }
    c.torn = open.writes > 0;
    c.writes = (1ull << open.writes) - 1;
    c.changes[0] = open.changes[0];
    c.changes[1] = open.changes[1];
    if (c.torn)
        try_state(moment, &c, tried);
}

static void pin_here(void)
{
    OK(journal_pin(x.journal, FILL_PIN, (struct lsn){latest()}, false, &err));
    memcpy(x.pinned, x.live, MODEL_BYTES);
    x.pinned_at = disks_now();
}

static void run_exhaustive(uint64_t seed, unsigned steps)
{
    static uint64_t moments[MAX_MOMENTS];
    begin_history(seed);
    x.pinned_at = 0;
    x.what = x.pins ? "pin" : x.fill ? "fill" : x.adopt ? "adopt" : "exhaustive";
    x.queue = seed & 1;
    x.slowly = seed & 4;
    if (x.adopt)
        x.fill ? make_clone() : fill_backing();
    disks_begin(x.root);
    forget_steps();
    open_all();
    remember();
    for (unsigned i = 0; i < steps; i++) {
        step(false);
        if (x.pins && i == 2)
            pin_here();
        if (x.adopt && below(8) == 0)
            group_settle(x.group);
    }
    atomic_store(&x.broken, 0);
    if (seed & 2) {
        group_free(x.group);
        OK(journal_close(x.journal, &err));
        disks_end();
    } else {
        disks_end();
        kill_all();
    }
    size_t count = disks_moments(moments, MAX_MOMENTS);
    for (size_t i = 0; i < count; i++)
        if (i == 0 || moments[i] != moments[i - 1])
            try_moment(moments[i]);
    end_history();
}

/* The power is lost again and again: the last steps, the moment, the state, and what was found in it. */
static void lose_power(void)
{
    char root[sizeof x.root];
    bool clean = below(6) == 0 && !x.broken && !journal_is_suspended(x.journal);
    if (clean) {
        group_free(x.group);
        OK(journal_close(x.journal, &err));
    }
    uint64_t now = disks_now();
    disks_end();
    atomic_store(&x.broken, 0);
    if (!clean)
        kill_all();
    x.moment = below(3) ? now - below(now < 40 ? now : 40) : 1 + below(now);
    x.choice = (struct disks_choice){.random = 1 + below(UINT64_MAX - 1)};
    memcpy(root, x.root, sizeof root);
    snprintf(x.root, sizeof x.root, "%s/%d", x.base, ++x.generation);
    disks_build(x.moment, &x.choice, x.root);
    OK(io_remove_tree(root, &err));
    new_boot();
}

static void run_random(uint64_t seed)
{
    begin_history(seed);
    x.what = "random";
    x.queue = below(2);
    int generations = 2 + (int)below(4);
    disks_begin(x.root);
    open_all();
    for (;;) {
        forget_steps();
        remember();
        for (unsigned i = 0, steps = (unsigned)below(MAX_STEPS); i < steps; i++)
            step(true);
        lose_power();
        disks_begin(x.root);
        recover(x.moment, x.generation == generations || below(2), x.live);
        if (x.generation == generations)
            break;
        forget_points(journal_recovery(x.journal)->last.n);
    }
    verify();
    disks_end();
    kill_all();
    end_history();
}

int main(int argc, char **argv)
{
    x.fill = argc > 1 && strcmp(argv[1], "fill") == 0;
    x.adopt = x.fill || (argc > 1 && strcmp(argv[1], "adopt") == 0);
    x.pins = argc > 1 && strcmp(argv[1], "pin") == 0;
    bool exhaustive = x.adopt || x.pins || (argc > 1 && strcmp(argv[1], "exhaustive") == 0);
    unsigned long histories = argc > 3 && strcmp(argv[2], "--histories") == 0 ? strtoul(argv[3], NULL, 10)
                              : exhaustive                                    ? 1
                                                                              : 20;
    if (argc < 2 || (!exhaustive && strcmp(argv[1], "random") != 0))
        return 2;
    uint64_t seed = check_seed();
    for (unsigned long i = 0; i < histories; i++) {
        if (getenv("TIDEMARK_LOG"))
            fprintf(stderr, "seed %llu\n", (unsigned long long)(seed + i));
        if (exhaustive)
            run_exhaustive(seed + i, x.adopt ? 4 : 5);
        else
            run_random(seed + i);
    }
    printf("%lu histories, %zu states, %zu points refused\n", histories, x.states, x.refused);
    return 0;
}
