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
#include "stand.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "disks.h"

/* States of a moment. A sanitizer looks at what code does, of which more states show no more; the plain build looks at the states. */
#ifdef __SANITIZE_ADDRESS__
#define LIMIT 40u
#define ADOPT_LIMIT 2u
#else
#define LIMIT 200u
#define ADOPT_LIMIT 6u
#endif
#define MAX_STEPS 64 /* of a history */
#define MAX_POINTS 512
#define MAX_MOMENTS 65536

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
    struct stand stand;
    int generation;
    struct step steps[MAX_STEPS + 1];
    size_t step_count;
    struct kept points[MAX_POINTS];
    size_t point_count, states, refused;
    atomic_int broken; /* the journal's disk fails; 2: for the bitmap too */
    bool pins;         /* a point is pinned at: */
    uint64_t pinned_at; /* 0: not yet */
    char pinned[MODEL_BYTES];
    const char *what;
    uint64_t moment;
    struct disks_choice choice;
} x;
struct stand *stand = &x.stand;
static struct error err;

void stand_broken(const char *format, ...)
{
    va_list args;
    fprintf(stderr,
            "FAILED: TIDEMARK_SEED=%llu, %s, generation %d, moment %llu (writes %llx, changes %zu %zu, "
            "random %llx, torn %d): ",
            (unsigned long long)stand->seed, x.what, x.generation, (unsigned long long)x.moment,
            (unsigned long long)x.choice.writes, x.choice.changes[0], x.choice.changes[1],
            (unsigned long long)x.choice.random, x.choice.torn);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nthe state is in %s\n", stand->root);
    exit(1);
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
    stand->options.fault = fault;
    stand->options.compress = stand->seed & 1;
    stand_forget_backings(); /* the states are other files; the disk that lost its power is the same */
    stand_open();
}

static void kill_all(void)
{
    group_abandon(stand->group);
    journal_abandon(stand->journal);
}

/* ---- checks ---- */

/* It was there when the power was lost. */
static void check_kept_pin(uint64_t moment)
{
    struct journal_status s;
    if (!x.pinned_at || x.pinned_at > moment)
        return;
    stand_check_pin(STAND_PIN, 0, x.pinned);
    OK(journal_seal(stand->journal, &err));
    journal_status(stand->journal, &s);
    OK(journal_drop(stand->journal, s.latest, &err));
    stand_check_pin(STAND_PIN, 0, x.pinned);
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
            stand_broken("sector %zu of the model has nothing that was there since step %zu (%s) of %zu%s",
                           sector, floors[sector],
                           floors[sector] ? x.steps[floors[sector]].name : "the start", last,
                           tell_older(sector, live));
    }
    uint64_t found = journal_recovery(stand->journal)->last.n;
    if (found < lsn)
        stand_broken("J3: the history ends at LSN %llu, but a flush covered LSN %llu",
                       (unsigned long long)found, (unsigned long long)lsn);
}

static void check_points(uint64_t moment, uint64_t last)
{
    struct journal_point found;
    for (size_t i = 0; i < x.point_count; i++) {
        const struct kept *p = &x.points[i];
        if (p->moment > moment || (x.point_count - i > 4 && below(x.point_count) > 6))
            continue; /* not yet; of many points the last ones and some others */
        if (stand->adopt && p->lsn <= last) /* what the volume held then may be lost */
            x.refused += stand_try_image(p->lsn, p->data, &err) < 0;
        else if (p->lsn <= last)
            stand_check_image(p->lsn, p->data);
        else if (journal_resolve(stand->journal, &(struct point){.kind = POINT_LSN, .lsn = {p->lsn}}, &found,
                                 &err) != -ERANGE)
            stand_broken("LSN %llu is not refused although the history ended at LSN %llu",
                           (unsigned long long)p->lsn, (unsigned long long)last);
    }
}

/* After the power came back: opens, compares with what was promised, and leaves it open. `live`: what the
 * volumes hold. */
static void recover(uint64_t moment, bool settle, char *live)
{
    static char settled[MODEL_BYTES];
    struct journal_status s;
    open_all();
    stand_read(live);
    check_live(moment, live);
    if (!journal_recovery(stand->journal)->created && !stand->adopt)
        check_points(moment, journal_recovery(stand->journal)->last.n);
    x.states++;
    if (!settle)
        return;
    group_settle(stand->group);
    stand_read(settled);
    if (memcmp(settled, live, sizeof settled) != 0)
        stand_broken("J4: the comparison changed the live volume");
    OK(journal_sync(stand->journal, -1, NULL, &err));
    journal_status(stand->journal, &s);
    stand_check_image(s.latest.n, live);
    if (stand->adopt && !journal_recovery(stand->journal)->created) /* before it was seeded none could be opened */
        check_points(moment, journal_recovery(stand->journal)->last.n);
    check_kept_pin(moment);
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
    s->promised_lsn = journal_is_suspended(stand->journal) ? 0 : lsn;
}

static void end_step(struct step *s)
{
    memcpy(s->live, stand->live, MODEL_BYTES);
    s->acked = disks_now();
}

static void remember(void)
{
    struct kept *last = x.point_count ? &x.points[x.point_count - 1] : NULL;
    if (x.point_count == MAX_POINTS || !stand_is_protected() || (last && last->lsn >= stand_latest()))
        return;
    x.points[x.point_count++] = (struct kept){stand_latest(), disks_now(), malloc(MODEL_BYTES)};
    memcpy(x.points[x.point_count - 1].data, stand->live, MODEL_BYTES);
}

static void change(void)
{
    struct step *s = begin_step(NULL);
    struct change c = stand_choose_change();
    s->name = c.name;
    stand_make_change(&c);
    if (c.flags & BLOCK_FUA)
        promise(s, stand_latest(), c.at, c.at + c.length);
    end_step(s);
}

static void flush(void)
{
    static const size_t ends[VOLUMES + 1] = {0, 2 * SPOT_BYTES / 512, SECTORS};
    size_t volume = below(VOLUMES);
    uint64_t lsn = stand_latest();
    struct step *s = begin_step("flush");
    OK(block_flush(group_volume_block(stand->group, volume), &err));
    promise(s, lsn, ends[volume], ends[volume + 1]);
    end_step(s);
}

static void rewind_somewhere(void)
{
    struct group_change c;
    if (!x.point_count || x.broken || !stand_is_protected())
        return;
    const struct kept *p = &x.points[below(x.point_count)];
    struct step *s = begin_step("rewind");
    memcpy(stand->live, p->data, MODEL_BYTES);
    OK(group_rewind(stand->group, (struct lsn){p->lsn}, false, &c, &err));
    free(c.volumes);
    promise(s, stand_latest(), 0, SECTORS);
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
        int r = journal_resolve(stand->journal, &(struct point){.kind = POINT_LSN, .lsn = {p->lsn}}, &found, &err);
        if (r == -ERANGE && p->lsn <= promised)
            stand_broken("LSN %llu is refused: %s", (unsigned long long)p->lsn, err.message);
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
            group_settle(stand->group);
        while (!stand_is_protected());
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
        group_free(stand->group);
        OK(journal_close(stand->journal, &err));
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
            group_clear_intents(stand->group);
    else if (dice < 86)
        rewind_somewhere();
    else if (dice < 89)
        trouble();
    else if (dice < 92 && !x.broken)
        OK(journal_seal(stand->journal, &err));
    else if (dice < 94 && !x.broken)
        OK(journal_maintain(stand->journal, &err));
    else if (dice < 97)
        reopen();
    else if (!x.broken)
        group_settle(stand->group);
    remember();
}

/* ---- histories ---- */

static void remove_root(void)
{
    OK(io_remove_tree(stand->root, &err));
}

static void begin_history(uint64_t seed)
{
    memset(stand->live, 0, sizeof stand->live);
    stand->seed = stand->random = seed;
    stand->ack = below(2) ? GROUP_ACK_FLUSH : GROUP_ACK_WRITE;
    x.generation = 0;
    x.point_count = 0;
    stand_make("power", "0");
}

/* What is there is the first step of a generation. */
static void forget_steps(void)
{
    for (size_t i = 0; i <= x.step_count; i++)
        free(x.steps[i].live);
    x.step_count = 0;
    x.steps[0] = (struct step){.live = malloc(MODEL_BYTES)};
    memcpy(x.steps[0].live, stand->live, MODEL_BYTES);
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
    OK(io_remove_tree(stand->base, &err));
}

/* One state, in a directory of its own; removed again. */
static void try_state(uint64_t moment, const struct disks_choice *choice, uint64_t every)
{
    static char live[MODEL_BYTES];
    char root[sizeof stand->root];
    memcpy(root, stand->root, sizeof root);
    x.moment = moment;
    x.choice = *choice;
    stand_new_boot();
    snprintf(stand->root, sizeof stand->root, "%s/state", stand->base);
    disks_build(moment, choice, stand->root);
    recover(moment, true, live);
    if (every % 16 == 0)
        stand_verify();
    kill_all();
    remove_root();
    memcpy(stand->root, root, sizeof root);
}

/* The states that a moment adds to those of the moments before. */
static void try_moment(uint64_t moment)
{
    struct disks_open open;
    struct disks_choice c = {0};
    uint64_t tried = 0, limit = stand->adopt || x.pins ? ADOPT_LIMIT : LIMIT;
    disks_open(moment, &open);
    bool few =
        open.writes < 8 && (1ull << open.writes) * (open.changes[0] + 1) * (open.changes[1] + 1) <= limit;
    if (!few) {
        for (; tried < (stand->adopt || x.pins ? 2 : LIMIT / 20); tried++) {
            c.random = 1 + check_random(&stand->random) % (UINT64_MAX - 1);
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
    OK(journal_pin(stand->journal, STAND_PIN, (struct lsn){stand_latest()}, false, &err));
    memcpy(x.pinned, stand->live, MODEL_BYTES);
    x.pinned_at = disks_now();
}

static void run_exhaustive(uint64_t seed, unsigned steps)
{
    static uint64_t moments[MAX_MOMENTS];
    begin_history(seed);
    x.pinned_at = 0;
    x.what = x.pins ? "pin" : stand->fill ? "fill" : stand->adopt ? "adopt" : "exhaustive";
    stand->queue = seed & 1;
    stand->slowly = seed & 4;
    if (stand->adopt)
        stand->fill ? stand_make_clone() : stand_fill_backing();
    disks_begin(stand->root);
    forget_steps();
    open_all();
    remember();
    for (unsigned i = 0; i < steps; i++) {
        step(false);
        if (x.pins && i == 2)
            pin_here();
        if (stand->adopt && below(8) == 0)
            group_settle(stand->group);
    }
    atomic_store(&x.broken, 0);
    if (seed & 2) {
        group_free(stand->group);
        OK(journal_close(stand->journal, &err));
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
    char root[sizeof stand->root];
    bool clean = below(6) == 0 && !x.broken && !journal_is_suspended(stand->journal);
    if (clean) {
        group_free(stand->group);
        OK(journal_close(stand->journal, &err));
    }
    uint64_t now = disks_now();
    disks_end();
    atomic_store(&x.broken, 0);
    if (!clean)
        kill_all();
    x.moment = below(3) ? now - below(now < 40 ? now : 40) : 1 + below(now);
    x.choice = (struct disks_choice){.random = 1 + below(UINT64_MAX - 1)};
    memcpy(root, stand->root, sizeof root);
    snprintf(stand->root, sizeof stand->root, "%s/%d", stand->base, ++x.generation);
    disks_build(x.moment, &x.choice, stand->root);
    OK(io_remove_tree(root, &err));
    stand_new_boot();
}

static void run_random(uint64_t seed)
{
    begin_history(seed);
    x.what = "random";
    stand->queue = below(2);
    int generations = 2 + (int)below(4);
    disks_begin(stand->root);
    open_all();
    for (;;) {
        forget_steps();
        remember();
        for (unsigned i = 0, steps = (unsigned)below(MAX_STEPS); i < steps; i++)
            step(true);
        lose_power();
        disks_begin(stand->root);
        recover(x.moment, x.generation == generations || below(2), stand->live);
        if (x.generation == generations)
            break;
        forget_points(journal_recovery(stand->journal)->last.n);
    }
    stand_verify();
    disks_end();
    kill_all();
    end_history();
}

int main(int argc, char **argv)
{
    stand->fill = argc > 1 && strcmp(argv[1], "fill") == 0;
    stand->adopt = stand->fill || (argc > 1 && strcmp(argv[1], "adopt") == 0);
    x.pins = argc > 1 && strcmp(argv[1], "pin") == 0;
    bool exhaustive = stand->adopt || x.pins || (argc > 1 && strcmp(argv[1], "exhaustive") == 0);
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
            run_exhaustive(seed + i, stand->adopt ? 4 : 5);
        else
            run_random(seed + i);
    }
    printf("%lu histories, %zu states, %zu points refused\n", histories, x.states, x.refused);
    return 0;
}
