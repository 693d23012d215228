/* SPDX-License-Identifier: Apache-2.0 */
/* An end in the middle of a step that changes several files (J3, J4, J8): each step is run in a process of its own, which ends, as by kill -9, before and
 * after each call that changes a file (disks.h), one after the other; and a start after that ends so too.
 *
 *   test_kill [STEP...] [--histories N] [--seed S] [--stride N] [--at N]
 *
 * Then the journal is opened, after a kill (shared memory is still there) or as after a loss of power with everything synced before, and:
 *   K1 it opens, and tells of no loss;
 *   K2 the volumes hold what was acknowledged, of a change under way any part, of a rewind all or nothing;
 *   K3 each point that was promised reads right, unless the step itself ended it; so does a pin that was answered;
 *   K4 once all is settled image(latest) is what the volumes hold, `verify` finds no damage, and after an end in order there is no file that nothing
 *      names, and nothing to be compared;
 *   K5 a kill alone, but during a start or while journaling is suspended, has no point refused: nothing is compared.
 *
 * STEP: as in `steps` below; all without any. --stride: only each Nth call, from a random one on. --at: only this call. $TIDEMARK_SEED replays, but for the
 * order of threads; $TIDEMARK_LOG shows what the engine logs; with $TIDEMARK_ENCRYPTED the journals are encrypted. */
#include "stand.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "check_key.h"
#include "disks.h"
#include "journal/losses.h"

#define MAX_POINTS 40u
#define LIMIT_S 120 /* of a process */
#define DAMAGED_SUFFIX ".damaged-1"
#define START_NS (1700000000ull * NS_PER_SECOND)
#define VIEW_PIN PIN_VIEW_PREFIX "1"

enum end { DONE, FAILED, KILLED = 77 };
enum pinned { NOT_PINNED, PINNED, MAYBE_PINNED };

struct kept {
    uint64_t lsn;
    char data[MODEL_BYTES];
};
/* Shared with the processes, and put back before each. */
static struct world {
    struct stand stand;       /* its model: with the change that is under way */
    char acked[MODEL_BYTES];  /* without */
    bool whole;               /* that change is there, or is not */
    char synced[MODEL_BYTES]; /* what is in the segments for certain */
    uint8_t since[SECTORS];   /* acknowledged changes of a sector since then */
    enum pinned pinned;
    char pin[MODEL_BYTES];
    uint64_t dropped;         /* points below may be gone */
    _Atomic uint64_t now_ns;  /* with thinning */
    atomic_int broken;        /* the journal's disk fails */
    bool again, once_more, calm; /* calm: what was ended is not done again by the next start, which ends in order */
    atomic_ulong calls;
    unsigned long kill_at[2]; /* of the step, of what comes after; 0: to the end */
    char where[2][160];
    bool power[2];
    size_t point_count;
    struct kept points[MAX_POINTS];
} *w, *saved;
struct stand *stand;
static struct error err;
static uint64_t choices; /* of the driver */

struct step {
    const char *name;
    void (*prepare)(void); /* NULL: nothing is there */
    void (*run)(void);
    bool adopt, fill, slowly, thin, aside, power;
    bool exact; /* K5 */
};
static const struct step *now;

void stand_broken(const char *format, ...)
{
    va_list args;
    fprintf(stderr, "FAILED: TIDEMARK_SEED=%llu, %s (ack %s)", (unsigned long long)stand->seed, now->name, stand->ack == GROUP_ACK_FLUSH ? "flush" : "write");
    for (int i = 0; i < 2; i++)
        if (w->kill_at[i])
            fprintf(stderr, ", %s call %lu (%s)%s", i ? "then at" : "killed at", w->kill_at[i], w->where[i][0] ? w->where[i] : "not reached",
                    w->power[i] ? " without power" : "");
    fprintf(stderr, ": ");
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nthe state is in %s\n", stand->base);
    _exit(FAILED);
}

/* ---- the process that is ended ---- */

static void watch(const char *call, const char *path, bool after)
{
    if (path[0] && strncmp(path, stand->base, strlen(stand->base)) != 0)
        return;
    if (atomic_fetch_add(&w->calls, 1) + 1 != w->kill_at[w->again])
        return;
    snprintf(w->where[w->again], sizeof w->where[0], "%s %s %.120s", after ? "after" : "before", call, path[0] ? path + strlen(stand->base) + 1 : "");
    _exit(KILLED);
}

/* From here on. */
static void arm(void)
{
    disks_watch(watch);
}

static enum end run_process(void (*what)(void))
{
    int status;
    fflush(NULL);
    w->calls = 0;
    pid_t pid = fork();
    if (pid == 0) {
        alarm(LIMIT_S);
        what();
        _exit(DONE);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        stand_broken("cannot run a process: %s", strerror(errno));
    if (WIFSIGNALED(status))
        stand_broken("the process ended by signal %d", WTERMSIG(status));
    if (WEXITSTATUS(status) != DONE && WEXITSTATUS(status) != KILLED)
        exit(1);
    return (enum end)WEXITSTATUS(status);
}

/* ---- what steps are made of ---- */

static bool lost_power(void)
{
    return now->power || w->power[0] || w->power[1];
}

/* After a loss of power what a rewind has not copied back is read through the history, and that may lack what was acknowledged and neither synced nor
 * flushed; what a clone lacks is read from its source, and which that is may not be saved. */
static bool may_be_older(size_t sector, const char *found)
{
    return lost_power() && (stand->ack == GROUP_ACK_FLUSH || now->fill) && w->since[sector] &&
           (w->since[sector] > 1 || memcmp(found, w->synced + sector * 512, 512) == 0);
}

static void check_live(const char *found)
{
    bool old = memcmp(found, w->acked, MODEL_BYTES) == 0, new = memcmp(found, stand->live, MODEL_BYTES) == 0;
    if (w->whole && !old && !new && !lost_power())
        stand_broken("K2: a rewind is there in part");
    for (size_t sector = 0; sector < SECTORS; sector++) {
        const char *is = found + sector * 512;
        if (memcmp(is, w->acked + sector * 512, 512) != 0 && memcmp(is, stand->live + sector * 512, 512) != 0 && !may_be_older(sector, is))
            stand_broken("K2: sector %zu of the model is not what was written", sector);
    }
}

/* Volumes of it held something before. */
static bool is_seeded(void)
{
    return now->adopt || now->aside;
}

static bool may_be_gone(const struct kept *p)
{
    return p->lsn < w->dropped || now->thin || (is_seeded() && lost_power());
}

static uint64_t test_time(void *context)
{
    (void)context;
    return w->now_ns;
}

static int fault(void *context, const char *step)
{
    (void)context;
    int broken = atomic_load(&w->broken);
    return broken && (broken > 1 || strcmp(step, "intent") != 0) ? -EIO : 0;
}

static void acknowledge(void)
{
    for (size_t sector = 0; sector < SECTORS; sector++)
        if (memcmp(w->acked + sector * 512, stand->live + sector * 512, 512) != 0 && w->since[sector] < UINT8_MAX)
            w->since[sector]++;
    memcpy(w->acked, stand->live, MODEL_BYTES);
    w->whole = false;
}

/* Of a clone what it lacks is saved with a flush only. */
static void note_synced(bool flushed)
{
    if (now->fill && !flushed)
        return;
    memset(w->since, 0, sizeof w->since);
    memcpy(w->synced, w->acked, MODEL_BYTES);
}

static void change(unsigned count)
{
    while (count-- > 0) {
        struct change c = stand_choose_change();
        stand_make_change(&c);
        acknowledge();
        w->now_ns += below(2 * NS_PER_SECOND);
    }
}

static void flush(void)
{
    for (size_t i = 0; i < VOLUMES; i++)
        OK(block_flush(group_volume_block(stand->group, i), &err));
    if (!journal_is_suspended(stand->journal))
        note_synced(true);
}

/* The latest point is promised. */
static void remember(void)
{
    struct journal_status s;
    if (w->point_count == MAX_POINTS || !stand_is_protected())
        return;
    int r = journal_sync(stand->journal, -1, NULL, &err);
    if (r == -ESHUTDOWN && w->broken)
        return;
    OK(r);
    note_synced(false);
    journal_status(stand->journal, &s);
    if (w->point_count && w->points[w->point_count - 1].lsn >= s.latest.n)
        return;
    w->points[w->point_count].lsn = s.latest.n;
    memcpy(w->points[w->point_count].data, stand->live, MODEL_BYTES);
    w->point_count++;
}

static void rewind_to(const struct kept *p)
{
    struct group_change c = {.volumes = NULL};
    memcpy(stand->live, p->data, MODEL_BYTES);
    w->whole = true;
    int r = group_rewind(stand->group, (struct lsn){p->lsn}, false, &c, &err);
    if (r == -ERANGE && may_be_gone(p))
        memcpy(stand->live, w->acked, MODEL_BYTES);
    else
        OK(r);
    free(c.volumes);
    acknowledge();
    note_synced(false);
}

static const struct kept *some_point(void)
{
    size_t first = 0;
    while (first + 1 < w->point_count && w->points[first].lsn < w->dropped)
        first++;
    return &w->points[first + below(w->point_count - first)];
}

static void live_on(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        change(1 + (unsigned)below(2));
        remember();
        uint64_t dice = below(12);
        if (dice == 0)
            flush();
        else if (dice < 4)
            OK(journal_seal(stand->journal, &err));
        else if (dice == 4 && !stand->adopt && w->point_count)
            rewind_to(some_point());
        else if (dice == 5)
            for (int k = 0; k < 4; k++)
                group_clear_intents(stand->group);
    }
}

static void prepare(void)
{
    stand_open();
    live_on(6 + (unsigned)below(6));
    if (below(4) == 0) {
        group_settle(stand->group);
        stand_close();
    } else {
        change((unsigned)below(3));
    }
}

/* ---- the steps ---- */

/* What was under way happened, or did not. */
static void look(void)
{
    static char found[MODEL_BYTES];
    stand_read(found);
    check_live(found);
    memcpy(stand->live, found, MODEL_BYTES);
    acknowledge();
    note_synced(false);
}

static void open_any(void)
{
    if (now->aside)
        stand_open_anew();
    else
        stand_open();
    look();
}

/* From here on, or from before on if it is what comes after an end. */
static void open_armed(void)
{
    if (w->again)
        arm();
    open_any();
    arm();
}

static void run_start(void)
{
    arm();
    open_any();
    group_settle(stand->group);
    change(2);
    remember();
}

static void run_close(void)
{
    open_armed();
    live_on(2);
    stand_close();
}

static void run_seal(void)
{
    open_armed();
    for (int i = 0; i < 3; i++) {
        change(2);
        remember();
        OK(journal_seal(stand->journal, &err));
    }
    OK(journal_maintain(stand->journal, &err));
    change(1);
}

static void run_drop(void)
{
    open_armed();
    OK(journal_seal(stand->journal, &err));
    for (int i = 0; i < 2 && w->point_count; i++) {
        uint64_t lsn = w->points[below(w->point_count)].lsn;
        w->dropped = lsn > w->dropped ? lsn : w->dropped;
        OK(journal_drop(stand->journal, (struct lsn){lsn}, &err));
        change(1);
    }
    OK(journal_maintain(stand->journal, &err));
}

static void run_thin(void)
{
    open_armed();
    OK(journal_seal(stand->journal, &err));
    w->now_ns += 400 * NS_PER_SECOND;
    OK(journal_maintain(stand->journal, &err));
    change(2);
    w->now_ns += 4000 * NS_PER_SECOND;
    OK(journal_maintain(stand->journal, &err));
}

static bool pin_is_there(void)
{
    char path[200];
    snprintf(path, sizeof path, "%s/journal/pins/" STAND_PIN, stand->root);
    return access(path, F_OK) == 0;
}

static void unpin(void)
{
    w->pinned = MAYBE_PINNED;
    OK(journal_unpin(stand->journal, STAND_PIN, &err));
    w->pinned = NOT_PINNED;
}

static void run_pin(void)
{
    char lock[200];
    open_armed();
    if (pin_is_there())
        unpin();
    change(2);
    remember();
    memcpy(w->pin, stand->live, MODEL_BYTES);
    w->pinned = MAYBE_PINNED;
    OK(journal_pin(stand->journal, STAND_PIN, (struct lsn){stand_latest()}, false, &err));
    w->pinned = PINNED;
    snprintf(lock, sizeof lock, "%s/journal/pins/" VIEW_PIN ".lock", stand->root);
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) < 0)
        stand_broken("cannot lock %s", lock);
    OK(journal_pin(stand->journal, VIEW_PIN, (struct lsn){stand_latest()}, false, &err));
    change(2);
    OK(journal_seal(stand->journal, &err));
    OK(journal_unpin(stand->journal, VIEW_PIN, &err));
    close(fd);
    unpin();
    change(1);
}

static void run_rewind(void)
{
    open_armed();
    group_settle(stand->group);
    if (!w->point_count)
        return;
    rewind_to(some_point());
    change(2);
    remember();
    rewind_to(some_point());
    group_settle(stand->group);
    rewind_to(some_point());
    change(1);
}

static void run_resume(void)
{
    open_armed();
    change(2);
    atomic_store(&w->broken, 1 + (int)below(2));
    change(3);
    if (below(2))
        flush();
    atomic_store(&w->broken, 0);
    do /* a thread may have asked just before */
        group_settle(stand->group);
    while (!stand_is_protected());
    live_on(2);
}

static void run_resize(void)
{
    open_armed();
    OK(group_resize(stand->group, "v0", sizes[0] + 3 * GROUP_GRAIN_BYTES, &err));
    live_on(2);
}

static void prepare_adopt(void)
{
    stand->fill ? stand_make_clone() : stand_fill_backing();
    acknowledge();
    note_synced(true);
}

static void prepare_adopted(void)
{
    prepare_adopt();
    prepare();
}

static void run_adopt(void)
{
    arm();
    open_any();
    change(3);
    remember();
    flush();
    change(1);
    group_settle(stand->group);
    change(1);
    remember();
}

static void damage(const char *name)
{
    char path[200];
    snprintf(path, sizeof path, "%s/journal/%s", stand->root, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || pwrite(fd, "damaged", 7, 20) != 7)
        stand_broken("cannot damage %s", path);
    close(fd);
}

static void prepare_aside(void)
{
    stand_open();
    live_on(4);
    group_settle(stand->group);
    if (below(2))
        stand_close();
    damage("manifest");
    damage("manifest.copy");
    w->point_count = 0; /* the history is lost */
}

static const struct step steps[] = {
    {.name = "create", .run = run_start},
    {.name = "start", .prepare = prepare, .run = run_start},
    {.name = "power", .prepare = prepare, .run = run_start, .power = true},
    {.name = "close", .prepare = prepare, .run = run_close, .exact = true},
    {.name = "seal", .prepare = prepare, .run = run_seal, .exact = true},
    {.name = "drop", .prepare = prepare, .run = run_drop, .exact = true},
    {.name = "thin", .prepare = prepare, .run = run_thin, .thin = true, .exact = true},
    {.name = "pin", .prepare = prepare, .run = run_pin, .exact = true},
    {.name = "rewind", .prepare = prepare, .run = run_rewind, .exact = true},
    {.name = "resume", .prepare = prepare, .run = run_resume},
    {.name = "resize", .prepare = prepare, .run = run_resize, .exact = true},
    {.name = "adopt", .prepare = prepare_adopt, .run = run_adopt, .adopt = true, .slowly = true},
    {.name = "adopted", .prepare = prepare_adopted, .run = run_adopt, .adopt = true, .slowly = true},
    {.name = "fill", .prepare = prepare_adopt, .run = run_adopt, .adopt = true, .fill = true, .slowly = true},
    {.name = "filled", .prepare = prepare_adopted, .run = run_adopt, .adopt = true, .fill = true, .slowly = true},
    {.name = "aside", .prepare = prepare_aside, .run = run_start, .aside = true},
};
#define STEPS (sizeof steps / sizeof *steps)

/* What may come after any of them, and is ended too. */
static void (*const afterwards[])(void) = {run_start, run_start, run_start, run_close, run_seal, run_rewind, run_drop, run_resume, run_pin};
static void (*after)(void);

/* ---- checks ---- */

static void see_loss(void *context, const struct loss *loss)
{
    (void)context;
    stand_broken("K1: a loss after LSN %llu: %s", (unsigned long long)loss->low.n, loss->what);
}

static void check_losses(void)
{
    char path[160];
    snprintf(path, sizeof path, "%s/journal", stand->root);
    OK(losses_visit(path, see_loss, NULL, &err));
}

static void check_points(void)
{
    for (size_t i = 0; i < w->point_count; i++) {
        const struct kept *p = &w->points[i];
        int r = stand_try_image(p->lsn, p->data, &err);
        if (r < 0 && !may_be_gone(p))
            stand_broken("K3: LSN %llu cannot be opened any more: %s", (unsigned long long)p->lsn, err.message);
    }
}

static void check_pin(void)
{
    if (w->pinned == PINNED || (w->pinned == MAYBE_PINNED && pin_is_there()))
        stand_check_pin(STAND_PIN, 0, w->pin);
    else if (pin_is_there())
        stand_broken("K3: a pin is there that was removed");
}

/* ---- K4: names ---- */

static bool is_one_of(const char *name, const char *const *list)
{
    while (*list && strcmp(name, *list) != 0)
        list++;
    return *list;
}

/* Of a base or rescue store, beside objects.json. */
static bool is_store_file(const struct manifest *m, const char *name)
{
    unsigned id;
    int end = 0;
    if (sscanf(name, "%u%n", &id, &end) != 1)
        return strcmp(name, "objects.json") == 0;
    return manifest_find_volume(m, id) && is_one_of(name + end, (const char *const[]){".img", ".crc", ".tag", NULL});
}

static bool is_segment_file(const struct manifest *m, const char *name)
{
    char text[JOURNAL_FILE_BYTES];
    for (size_t i = 0; i < m->segment_count; i++) {
        const struct segment_info *s = &m->segments[i];
        const char *file = (s->cold_kib ? journal_cold_file_of : journal_segment_file_of)(s->number, s->generation, text);
        if (strcmp(name, file) == 0 || strcmp(name, journal_l0_file_of(s->number, s->generation, text)) == 0)
            return true;
    }
    for (size_t i = 0; i < m->run_count; i++)
        if (strcmp(name, journal_run_file(m->runs[i].level, m->runs[i].first_segment, text)) == 0)
            return true;
    return false;
}

static bool is_rewind_file(const struct manifest *m, const char *name)
{
    char text[JOURNAL_FILE_BYTES];
    unsigned long long lsn;
    for (size_t i = 0; i < m->rewind_count; i++)
        if (strcmp(name, journal_rewind_file(m->rewinds[i].lsn, text)) == 0 ||
            strcmp(name, journal_rewind_copy_file(m->rewinds[i].lsn, text)) == 0 || (sscanf(name, "rescue-%llu", &lsn) == 1 && lsn == m->rewinds[i].lsn.n))
            return true;
    return false;
}

static bool is_journal_file(const struct manifest *m, const char *name)
{
    unsigned n;
    int end = 0;
    const char *known[] = {"lock", "reserve", "manifest", "manifest.copy", "base", "pins", now->thin ? "rescuing" : "lock", stand->options.key_file ? "key" : "lock",
                           stand->options.key_file ? "key.copy" : "lock", NULL};
    if (is_one_of(name, known) || is_segment_file(m, name) || is_rewind_file(m, name))
        return true;
    if (sscanf(name, "free-%u.tmj%n", &n, &end) == 1 && end && !name[end])
        return n < 8;
    if ((sscanf(name, "intent-%u%n", &n, &end) == 1 || sscanf(name, "backing-%u.id%n", &n, &end) == 1) && end && !name[end])
        return manifest_find_volume(m, n);
    return false;
}

static bool is_pin_file(const struct manifest *m, const char *name)
{
    (void)m;
    return pin_is_there() && strncmp(name, STAND_PIN, sizeof STAND_PIN - 1) == 0 &&
           (!name[sizeof STAND_PIN - 1] || strcmp(name + strlen(name) - 4, ".idx") == 0);
}

static bool is_backing(const struct manifest *m, const char *name)
{
    (void)m;
    return is_one_of(name, (const char *const[]){"v0.img", "v1.img", NULL});
}

static bool is_root_file(const struct manifest *m, const char *name)
{
    (void)m;
    return is_one_of(name, (const char *const[]){"journal", "backing", now->aside ? "journal" DAMAGED_SUFFIX : "journal", NULL});
}

static bool is_base_file(const struct manifest *m, const char *name)
{
    (void)m;
    return is_one_of(name, (const char *const[]){"root", now->fill ? "source" : "root", now->fill ? "source.img" : "root", NULL});
}

static void check_names_in(const char *directory, const struct manifest *m, bool (*is_named)(const struct manifest *m, const char *name))
{
    DIR *d = opendir(directory);
    if (!d)
        stand_broken("cannot read %s", directory);
    for (const struct dirent *entry; (entry = readdir(d));)
        if (entry->d_name[0] != '.' && !is_named(m, entry->d_name))
            stand_broken("K4: nothing names %s/%s", directory, entry->d_name);
    closedir(d);
}

/* After an end in order. */
static void check_names(void)
{
    char path[200];
    struct manifest m;
    snprintf(path, sizeof path, "%s/journal", stand->root);
    OK(manifest_load(path, &m, &err));
    check_names_in(stand->base, &m, is_base_file);
    check_names_in(stand->root, &m, is_root_file);
    check_names_in(path, &m, is_journal_file);
    snprintf(path, sizeof path, "%s/journal/pins", stand->root);
    check_names_in(path, &m, is_pin_file);
    snprintf(path, sizeof path, "%s/journal/base", stand->root);
    check_names_in(path, &m, is_store_file);
    for (size_t i = 0; i < m.rewind_count; i++) {
        snprintf(path, sizeof path, "%s/journal/rescue-%llu", stand->root, (unsigned long long)m.rewinds[i].lsn.n);
        check_names_in(path, &m, is_store_file);
    }
    snprintf(path, sizeof path, "%s/backing", stand->root);
    check_names_in(path, &m, is_backing);
    snprintf(path, sizeof path, "%s/journal" DAMAGED_SUFFIX, stand->root);
    if (now->aside && access(path, F_OK) < 0)
        stand_broken("the journal was not set aside");
    manifest_release(&m);
}

static void check_settled(void)
{
    static char settled[MODEL_BYTES];
    do
        group_settle(stand->group);
    while (!stand_is_protected());
    stand_read(settled);
    if (memcmp(settled, stand->live, MODEL_BYTES) != 0)
        stand_broken("J4: settling changed the volumes");
    OK(journal_sync(stand->journal, -1, NULL, &err));
    struct journal_status s;
    journal_status(stand->journal, &s);
    stand_check_image(s.latest.n, stand->live);
}

static void start_calmly(void)
{
    uint32_t count = stand->options.thinning_count;
    stand->options.thinning_count = 0;
    open_any();
    group_settle(stand->group);
    stand_close();
    stand->options.thinning_count = count;
}

static void check_all(void)
{
    if (w->calm)
        start_calmly();
    open_any();
    check_losses();
    if (now->exact && !w->calm && !w->again && !lost_power() && journal_recovery(stand->journal)->compare)
        stand_broken("K5: the volumes are compared");
    if (!is_seeded())
        check_points(); /* while it is compared, too */
    check_settled();
    check_points();
    check_pin();
    stand_verify();
    change(2);
    OK(journal_maintain(stand->journal, &err));
    check_settled();
    check_points();
    check_pin();
    stand_close();
    check_losses();
    check_names();
    if (w->once_more) {
        open_any();
        if (!journal_recovery(stand->journal)->clean || journal_recovery(stand->journal)->compare)
            stand_broken("K4: the end was not in order");
        check_settled();
        stand_close();
    }
}

/* ---- trees ---- */

static void copy_file(const char *from, const char *to, const struct stat *st)
{
    static char data[1 << 16];
    static const char zeroes[4096];
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, st->st_mode & 0777);
    if (in < 0 || out < 0 || ftruncate(out, st->st_size) < 0)
        stand_broken("cannot copy %s: %s", from, strerror(errno));
    for (off_t at = lseek(in, 0, SEEK_DATA); at >= 0;) {
        ssize_t n = pread(in, data, sizeof data, at);
        for (ssize_t k = 0; k < n; k += 4096) {
            size_t part = n - k < 4096 ? (size_t)(n - k) : 4096;
            if (memcmp(data + k, zeroes, part) != 0 && pwrite(out, data + k, part, at + k) != (ssize_t)part)
                stand_broken("cannot write %s: %s", to, strerror(errno));
        }
        at = n > 0 ? lseek(in, at + n, SEEK_DATA) : -1;
    }
    close(in);
    close(out);
}

static void copy_tree(const char *from, const char *to)
{
    char source[PATH_MAX], target[PATH_MAX];
    struct stat st;
    DIR *d = opendir(from);
    if (!d || mkdir(to, 0700) < 0)
        stand_broken("cannot copy %s: %s", from, strerror(errno));
    for (const struct dirent *entry; (entry = readdir(d));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(source, sizeof source, "%s/%s", from, entry->d_name);
        snprintf(target, sizeof target, "%s/%s", to, entry->d_name);
        if (lstat(source, &st) < 0)
            stand_broken("cannot look at %s", source);
        S_ISDIR(st.st_mode) ? copy_tree(source, target) : copy_file(source, target, &st);
    }
    closedir(d);
}

/* ---- the driver ---- */

static struct {
    unsigned long stride, at, kills, processes;
    bool deep; /* all calls of a start after one kill, too */
} driver = {.stride = 1};

static uint64_t choose(uint64_t n)
{
    return check_random(&choices) % n;
}

static void copy_path(unsigned which, char path[96])
{
    snprintf(path, 96, "%s.%u", stand->base, which);
}

/* The state as it is, and what is promised of it; there are two. */
static void keep_state(unsigned which)
{
    char path[96];
    copy_path(which, path);
    if (access(path, F_OK) == 0)
        OK(io_remove_tree(path, &err));
    copy_tree(stand->base, path);
    memcpy(&saved[which], w, sizeof *w);
}

static void put_back(unsigned which)
{
    char path[96];
    copy_path(which, path);
    OK(io_remove_tree(stand->base, &err));
    copy_tree(path, stand->base);
    memcpy(w, &saved[which], sizeof *w);
    stand_forget_backings();
}

/* Between two processes. */
static void lose_power(unsigned which)
{
    w->power[which] = true;
    stand_new_boot();
}

static void check_state(bool power)
{
    w->broken = 0;
    w->once_more = choose(4) == 0;
    w->calm = now->thin && choose(2);
    if (power)
        lose_power(w->again);
    driver.processes++;
    run_process(check_all);
}

/* Another end, in what comes after the first one. */
static enum end run_again(unsigned long at)
{
    w->again = true;
    w->kill_at[1] = at;
    w->broken = 0;
    driver.processes++;
    return run_process(after);
}

static enum end run_step(unsigned long at)
{
    put_back(0);
    w->kill_at[0] = at;
    driver.processes++;
    driver.kills++;
    return run_process(now->run);
}

/* All calls of a start after an end that was kept. */
static void try_starts(void)
{
    bool power = choose(2);
    after = run_start;
    for (unsigned long at = 1 + choose(driver.stride), r = KILLED; r == KILLED; at += driver.stride) {
        put_back(1);
        if (power)
            lose_power(0);
        r = run_again(at);
        check_state(choose(3) == 0);
    }
}

static void run_history(const struct step *step, uint64_t seed)
{
    char path[96];
    now = step;
    memset(w, 0, offsetof(struct world, points));
    w->now_ns = START_NS;
    stand->seed = stand->random = seed;
    choices = seed * 31;
    stand->ack = below(2) ? GROUP_ACK_FLUSH : GROUP_ACK_WRITE;
    stand->queue = below(2);
    stand->adopt = step->adopt;
    stand->fill = step->fill;
    stand->slowly = step->slowly;
    static const struct clock test_clock = {test_time, test_time, NULL};
    stand->options = (struct journal_options){.fault = fault, .compress = below(2), .key_file = check_key_file()};
    if (step->thin) {
        stand->options.clock = &test_clock;
        stand->options.thinning[0] = (struct journal_thinning){20 * NS_PER_SECOND, 4};
        stand->options.thinning[1] = (struct journal_thinning){1000 * NS_PER_SECOND, 20};
        stand->options.thinning_count = 2;
    }
    stand_make("kill", "root");
    if (step->prepare)
        run_process(step->prepare);
    if (step->power)
        stand_new_boot();
    keep_state(0);
    unsigned long last = 0;
    for (unsigned long at = driver.at ? driver.at : 1 + choose(driver.stride), r = KILLED; r == KILLED; at += driver.stride) {
        r = run_step(at);
        last = at;
        if (choose(4) == 0) {
            after = afterwards[choose(is_seeded() ? 4 : sizeof afterwards / sizeof *afterwards)];
            if (choose(3) == 0)
                lose_power(0);
            run_again(1 + choose(100));
        }
        check_state(choose(3) == 0);
        if (driver.at)
            break;
    }
    if (!driver.at && driver.deep) {
        run_step(1 + choose(last));
        keep_state(1);
        try_starts();
    }
    for (unsigned i = 0; i < 2; i++) {
        copy_path(i, path);
        if (access(path, F_OK) == 0)
            OK(io_remove_tree(path, &err));
    }
    OK(io_remove_tree(stand->base, &err));
}

static void *share(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    return memory;
}

int main(int argc, char **argv)
{
    unsigned long histories = 1;
    bool wanted[STEPS] = {false}, any = false;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        size_t k = 0;
        while (k < STEPS && strcmp(argv[i], steps[k].name) != 0)
            k++;
        if (k < STEPS) {
            any = wanted[k] = true;
            continue;
        }
        if (strcmp(argv[i], "--histories") == 0)
            histories = strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0)
            setenv("TIDEMARK_SEED", value, 1);
        else if (strcmp(argv[i], "--stride") == 0)
            driver.stride = strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--at") == 0)
            driver.at = strtoul(value, NULL, 10);
        else
            return 2;
        i++;
    }
    w = share(sizeof *w);
    stand = &w->stand;
    saved = share(2 * sizeof *saved);
    uint64_t seed = check_seed();
    (void)crc32c(0, "", 0); /* its tables are made once, not in each process */
    for (unsigned long i = 0; i < histories; i++)
        for (size_t k = 0; k < STEPS; k++)
            if (!any || wanted[k]) {
                driver.deep = true;
                run_history(&steps[k], seed + i);
            }
    printf("%lu ends, %lu processes\n", driver.kills, driver.processes);
    return 0;
}
