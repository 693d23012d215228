/* SPDX-License-Identifier: Apache-2.0 */
/* J1, J3, J4, J5, J8: random histories on three volumes with tiny segments against an array model; every LSN is compared.
 *
 *   test_history [--histories N] [--seed S] [--seconds T] [--thin] [--adopt] [--verbose]
 *
 * Volumes grow now and then: each point has the sizes of its time, and a rewind keeps the size with zeroes behind.
 *
 * With --adopt two volumes hold something before the journal sees them. Until that is seeded no point can be opened, afterwards
 * every one since then; after a loss of power, or of a before-image, in between those are refused that are not known exactly.
 *
 * With --thin, time goes by between the steps, old history is thinned and dropped by its age, and killed in each step of
 * thinning: what is kept must be what it was, the rest must be refused, and each calendar interval must have its point.
 *
 * Some histories are compressed, at once or after a while, and killed in each step of that too.
 *
 * Each history prints its seed when it fails; --seed S --histories 1 replays it. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "check_key.h"
#include "journal/journal.h"
#include "view/image.h"
#include "volume/group.h"
#include "journal/verify.h"

#define VOLUMES 3
#define MAX_POINTS 600
#define MAX_OBJECTS 4

#define GROWTH (160 * 1024) /* at most */

static uint64_t sizes[VOLUMES] = {192 * 1024 + GROWTH, 64 * 1024 + 4096 + GROWTH, (3 << 20) + GROWTH}; /* room for them */

struct point_model {
    uint64_t lsn;
    char *data; /* all volumes one after the other */
    int objects[MAX_OBJECTS]; /* 0: absent, else version */
    uint64_t time_ns;
    uint64_t sizes[VOLUMES];
};

struct history {
    uint64_t seed, random;
    char directory[64], ring[64];
    struct journal *journal;
    struct group *group;
    struct point_model points[MAX_POINTS];
    size_t point_count;
    char *live;
    int objects[MAX_OBJECTS], next_version;
    uint64_t total, last_rewind; /* last_rewind: LSN of the newest REWIND, 0 none */
    uint64_t base;
    enum group_ack ack;
    uint32_t records, blocks, fanout;
    int step;
    const char *doing;
    struct clock clock;
    _Atomic uint64_t now_ns;
    _Atomic unsigned fault; /* step of thinning in which it is killed; 0: none */
    _Atomic bool killed;
    uint64_t refused, thinned, compressed, history_ns, quota_bytes;
    bool compress;
    uint64_t compress_after_ns;
    uint64_t sizes[VOLUMES]; /* now */
    uint64_t seed_speed, exact_from; /* exact_from: points before it were lost to the history while a volume was being seeded */
    _Atomic bool lose_image, lose_manifest;
    unsigned growths;
    struct image *view; /* open for a while; NULL: none */
    size_t view_point;
};

static bool verbose, thin, adopt;
static const struct journal_thinning thinning[] = {{20 * NS_PER_SECOND, 2}, {60 * NS_PER_SECOND, 10}, {300 * NS_PER_SECOND, 60}};
#define THINNING_STEPS (sizeof thinning / sizeof *thinning)
#define START_NS (1700000000ull * NS_PER_SECOND)
static struct error err;

static void fail(struct history *h, const char *format, ...)
{
    va_list args;
    fprintf(stderr, "FAILED: seed %llu step %d (%s): ", (unsigned long long)h->seed, h->step, h->doing);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nreplay: test_history --histories 1%s%s --seed %llu\n", thin ? " --thin" : "", adopt ? " --adopt" : "",
            (unsigned long long)h->seed);
    exit(1);
}
#define OK(h, call)                                                                                                    \
    do {                                                                                                               \
        if ((call) < 0)                                                                                                \
            fail(h, "%s: %s", #call, err.message);                                                                     \
    } while (0)

static uint64_t next_random(struct history *h)
{
    h->random ^= h->random << 13;
    h->random ^= h->random >> 7;
    h->random ^= h->random << 17;
    return h->random;
}
static uint64_t below(struct history *h, uint64_t n)
{
    return next_random(h) % n;
}

static uint64_t volume_at(int volume)
{
    uint64_t at = 0;
    for (int i = 0; i < volume; i++)
        at += sizes[i];
    return at;
}

static uint64_t latest(struct history *h)
{
    struct journal_status s;
    journal_status(h->journal, &s);
    return s.latest.n;
}

/* Remembers what everything is as of the latest LSN. */
static void remember(struct history *h)
{
    uint64_t lsn = latest(h);
    if (h->point_count && h->points[h->point_count - 1].lsn == lsn)
        return;
    if (h->point_count == MAX_POINTS)
        return;
    struct point_model *p = &h->points[h->point_count++];
    p->lsn = lsn;
    p->data = malloc(h->total);
    memcpy(p->data, h->live, h->total);
    memcpy(p->objects, h->objects, sizeof p->objects);
    p->time_ns = h->now_ns;
    memcpy(p->sizes, h->sizes, sizeof p->sizes);
}

static uint64_t test_time(void *context)
{
    return ((struct history *)context)->now_ns;
}

static bool test_fault(void *context, unsigned step)
{
    struct history *h = context;
    if (h->fault != step)
        return false;
    h->fault = 0;
    h->killed = true;
    return true;
}

/* Of a before-image, or of the manifest. */
static int test_io_fault(void *context, const char *step)
{
    struct history *h = context;
    if (h->lose_image && strcmp(step, "seed") == 0)
        return -ENOSPC;
    return h->lose_manifest && strcmp(step, "save") == 0 ? -EIO : 0;
}

static bool is_adopted(int volume)
{
    return adopt && volume > 0;
}

/* What adopted volumes hold before. */
static void fill_backings(struct history *h)
{
    for (int i = 0; i < VOLUMES; i++) {
        char path[96], *at = h->live + volume_at(i);
        if (!is_adopted(i))
            continue;
        for (uint64_t page = 0; page < h->sizes[i]; page += 4096)
            for (uint64_t k = 0; below(h, 3) && k < 4096; k += 8) {
                uint64_t word = next_random(h);
                memcpy(at + page + k, &word, 8);
            }
        snprintf(path, sizeof path, "%s/v%d.img", h->directory, i);
        FILE *f = fopen(path, "w");
        if (!f || fwrite(at, 1, h->sizes[i], f) != h->sizes[i] || fclose(f) != 0)
            fail(h, "cannot write %s", path);
    }
}

static void open_volumes(struct history *h)
{
    struct journal_options options = {.directory = h->directory, .key_file = check_key_file(),
                                      .segment_blocks = h->blocks,
                                      .segment_records = h->records,
                                      .fanout = h->fanout,
                                      .ring_path = h->ring,
                                      .owner = "test"};
    options.compress = h->compress;
    options.compress_after_ns = h->compress_after_ns;
    options.fault = test_io_fault;
    options.fault_context = h;
    if (thin) {
        h->clock = (struct clock){test_time, test_time, h};
        options.clock = &h->clock;
        options.thin_fault = test_fault;
        options.thin_fault_context = h;
        options.history_ns = h->history_ns;
        options.quota_bytes = h->quota_bytes;
        memcpy(options.thinning, thinning, sizeof thinning);
        options.thinning_count = THINNING_STEPS;
    }
    OK(h, journal_open(&options, &h->journal, &err));
    OK(h, group_new(h->journal, h->ack, NULL, &h->group, &err));
    for (int i = 0; i < VOLUMES; i++) {
        char name[16], path[96];
        snprintf(name, sizeof name, "v%d", i);
        snprintf(path, sizeof path, "%s/v%d.img", h->directory, i);
        OK(h, (is_adopted(i) ? group_adopt_volume : group_add_volume)(h->group, name, h->sizes[i], path, &err));
    }
    group_set_seed_speed(h->group, h->seed_speed);
}

static void open_all(struct history *h)
{
    open_volumes(h);
    OK(h, group_start(h->group, &err));
}

/* A start that comes to nothing: killed, or ended in order since something else was missing. What recovery asks for is owed to the
 * next one. */
static void start_in_vain(struct history *h)
{
    open_volumes(h);
    if (below(h, 2)) {
        group_abandon(h->group);
        journal_abandon(h->journal);
    } else {
        group_free(h->group);
        OK(h, journal_close(h->journal, &err));
    }
}

static void check_live(struct history *h)
{
    char *data = malloc(sizes[2]);
    for (int i = 0; i < VOLUMES; i++) {
        OK(h, block_pread(group_volume_block(h->group, (size_t)i), data, h->sizes[i], 0, &err));
        if (memcmp(data, h->live + volume_at(i), h->sizes[i]) != 0)
            fail(h, "J4: the live volume v%d is not what was written", i);
    }
    free(data);
}

static int see_object(void *context, const char *name, const char *content, size_t bytes, struct lsn lsn, struct error *e)
{
    int *seen = context;
    char text[16];
    (void)lsn, (void)e;
    snprintf(text, sizeof text, "%.*s", (int)bytes, content);
    seen[name[0] - 'a'] = (int)strtol(text, NULL, 10);
    return 0;
}

/* With --thin: the calendar interval of a point that is gone has another one that is not older. */
static void check_interval(struct history *h, const struct point_model *p)
{
    uint64_t keep_ns = 0, now = h->now_ns;
    for (size_t i = 0; i < THINNING_STEPS; i++)
        if ((now - p->time_ns) * (h->quota_bytes ? 8 : 1) >= thinning[i].after_ns) /* near the quota it is thinned early */
            keep_ns = thinning[i].keep_s * NS_PER_SECOND;
    if (!keep_ns)
        fail(h, "J5: LSN %llu is refused, but too young: %s", (unsigned long long)p->lsn, err.message);
    uint64_t end = (p->time_ns / keep_ns + 1) * keep_ns;
    struct point point = {.kind = POINT_TIME, .realtime_ns = end - 1};
    struct journal_point found;
    if (end > now)
        return;
    int r = journal_resolve(h->journal, &point, &found, &err);
    if (r < 0 && strstr(err.message, "gap"))
        return;
    struct journal_status s;
    journal_status(h->journal, &s);
    if (r == -ERANGE && p->lsn < s.oldest.n)
        return; /* the janitor dropped it since it was asked for */
    OK(h, r);
    if (found.lsn.n < p->lsn)
        fail(h, "J5: of the %llu s from LSN %llu on nothing is kept: LSN %llu is the last before their end",
             (unsigned long long)(keep_ns / NS_PER_SECOND), (unsigned long long)p->lsn, (unsigned long long)found.lsn.n);
}

static bool is_seeding(struct history *h)
{
    struct group_status s;
    group_status(h->group, &s);
    return s.seeding;
}

/* With --adopt: what is not known exactly is refused, and only that. */
static bool is_exact(struct history *h, const struct point_model *p)
{
    struct journal_point found;
    struct point point = {.kind = POINT_LSN, .lsn = {p->lsn}};
    bool seeding = is_seeding(h);
    int r = group_check_seeded(h->group, (struct lsn){p->lsn}, &err);
    if (r != 0) {
        if (r != -EBUSY || !seeding)
            fail(h, "LSN %llu: %s", (unsigned long long)p->lsn, err.message);
        return false;
    }
    if (p->lsn >= h->exact_from)
        return true;
    r = journal_resolve(h->journal, &point, &found, &err);
    if (r != -ERANGE)
        fail(h, "J6: LSN %llu can be opened, but what v1 and v2 held then is lost", (unsigned long long)p->lsn);
    return false;
}

/* Whether a point of the model can be opened. */
static bool is_kept(struct history *h, const struct point_model *p)
{
    struct journal_status s;
    struct journal_point found;
    struct point point = {.kind = POINT_LSN, .lsn = {p->lsn}};
    if (adopt && !is_exact(h, p))
        return false;
    if (!thin)
        return p->lsn >= h->base;
    journal_status(h->journal, &s);
    h->base = s.oldest.n;
    if (p->lsn < h->base)
        return false;
    int r = journal_resolve(h->journal, &point, &found, &err);
    if (r == 0 && found.lsn.n != p->lsn)
        fail(h, "J5: LSN %llu opens as LSN %llu", (unsigned long long)p->lsn, (unsigned long long)found.lsn.n);
    if (r == 0)
        return true;
    if (r != -ERANGE)
        fail(h, "LSN %llu: %s", (unsigned long long)p->lsn, err.message);
    if (strstr(err.message, "thinned")) {
        h->refused++;
        if (journal_pin(h->journal, "engine-refused", (struct lsn){p->lsn}, true, &err) != -ERANGE)
            fail(h, "J5: LSN %llu was thinned away, but can be pinned", (unsigned long long)p->lsn);
        check_interval(h, p);
    } else if (!strstr(err.message, "outside")) {
        fail(h, "LSN %llu: %s", (unsigned long long)p->lsn, err.message);
    }
    return false;
}

static void compare_image(struct history *h, struct image *image, const struct point_model *p)
{
    char *data = malloc(sizes[2]);
    struct manifest m;
    OK(h, journal_manifest(h->journal, &m, &err));
    for (size_t i = 0; i < m.volume_count; i++)
        if (manifest_size_at(&m, &m.volumes[i], (struct lsn){p->lsn}) != p->sizes[i])
            fail(h, "J1: at LSN %llu v%zu has another size than it had", (unsigned long long)p->lsn, i);
    manifest_release(&m);
    for (int i = 0; i < VOLUMES; i++) {
        for (uint64_t at = 0; at < sizes[i];) { /* in uneven pieces */
            uint64_t part = 512 * (1 + below(h, 300));
            if (part > sizes[i] - at)
                part = sizes[i] - at;
            OK(h, image_read(image, (uint32_t)i + 1, at / 512, (uint32_t)(part / 512), data, &err));
            const char *expected = p->data + volume_at(i) + at;
            for (uint64_t k = 0; memcmp(data, expected, part) != 0 && k < part; k++)
                if (data[k] != expected[k])
                    fail(h, "J1: image(%llu) of v%d differs at byte %llu: %02x instead of %02x", (unsigned long long)p->lsn, i,
                         (unsigned long long)(at + k), (unsigned char)data[k], (unsigned char)expected[k]);
            at += part;
        }
    }
    free(data);
}

static void check_point(struct history *h, const struct point_model *p)
{
    struct image *image;
    int r = journal_pin(h->journal, "engine-test", (struct lsn){p->lsn}, true, &err);
    if (thin && r == -ERANGE)
        return; /* the janitor was faster */
    OK(h, r);
    OK(h, image_open(h->directory, "engine-test", &image, &err));
    compare_image(h, image, p);
    image_free(image);
    int seen[MAX_OBJECTS] = {0};
    OK(h, journal_objects(h->journal, (struct lsn){p->lsn}, see_object, seen, &err));
    if (memcmp(seen, p->objects, sizeof seen) != 0)
        fail(h, "the objects as of LSN %llu are not what they were", (unsigned long long)p->lsn);
    OK(h, journal_unpin(h->journal, "engine-test", &err));
}

/* ---- with --thin ---- */

static void close_view(struct history *h)
{
    if (!h->view)
        return;
    compare_image(h, h->view, &h->points[h->view_point]);
    image_free(h->view);
    h->view = NULL;
    OK(h, journal_unpin(h->journal, "engine-view", &err));
}

/* A view that is open for a while sees what it saw, whatever is thinned meanwhile. */
static void open_or_close_view(struct history *h)
{
    h->doing = "view";
    if (h->view || !h->point_count) {
        close_view(h);
        return;
    }
    h->view_point = below(h, h->point_count);
    const struct point_model *p = &h->points[h->view_point];
    if (!is_kept(h, p) || journal_pin(h->journal, "engine-view", (struct lsn){p->lsn}, true, &err) == -ERANGE)
        return;
    OK(h, image_open(h->directory, "engine-view", &h->view, &err));
}

static void tell_damage(void *context, const struct verify_damage *d)
{
    fail(context, "J6: %s: %s", d->file, d->what);
}

static void tell_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context, (void)done, (void)total;
}

static void verify(struct history *h)
{
    struct verify_report report = {tell_damage, tell_progress, h};
    struct verify_summary summary;
    h->doing = "verify";
    OK(h, journal_verify(h->directory, &report, &summary, &err));
}

/* With nothing left to do: what is too old is gone. */
static void check_segments(struct history *h)
{
    struct manifest m;
    OK(h, journal_manifest(h->journal, &m, &err));
    for (size_t i = 0; i < m.segment_count; i++) {
        const struct segment_info *s = &m.segments[i];
        h->thinned += s->generation > 0;
        h->compressed += s->cold_kib > 0;
        if (h->compress && !s->cold_kib && !s->dense && s->used_blocks > 1 && h->now_ns - s->last_realtime_ns > h->compress_after_ns)
            fail(h, "segment %u is not compressed", s->number);
        if (h->history_ns && !h->view && !s->open_end && h->now_ns - s->last_realtime_ns > h->history_ns)
            fail(h, "segment %u is older than the history that is wanted", s->number);
    }
    manifest_release(&m);
}

static void kill_and_reopen(struct history *h)
{
    remember(h);
    close_view(h);
    h->killed = false;
    group_abandon(h->group);
    journal_abandon(h->journal);
    open_all(h);
    check_live(h);
}

static void thin_now(struct history *h)
{
    h->doing = "thin";
    if (below(h, 2))
        OK(h, journal_seal(h->journal, &err));
    if (below(h, 6) == 0) { /* and the manifest cannot be saved */
        h->doing = "kill while thinning without a manifest";
        remember(h);
        close_view(h);
        h->lose_manifest = true;
        for (int i = 0; i < 5; i++) /* each attempt may do a step */
            if (journal_maintain(h->journal, &err) == 0)
                break;
        group_abandon(h->group);
        journal_abandon(h->journal);
        h->lose_manifest = false;
        open_all(h);
        check_live(h);
        group_settle(h->group); /* as in grow() */
        return;
    }
    h->fault = below(h, 2) ? 1 + (unsigned)below(h, 9) : 0;
    OK(h, journal_maintain(h->journal, &err));
    h->fault = 0;
    if (h->killed) {
        h->doing = "kill while thinning";
        kill_and_reopen(h);
    }
}

/* ---- operations ---- */

static void change(struct history *h)
{
    int volume = (int)below(h, VOLUMES);
    uint64_t sectors = h->sizes[volume] / 512, lba = below(h, sectors), length = 1 + below(h, 24);
    if (below(h, 3)) { /* mostly aligned */
        lba = lba / 8 * 8;
        length = (length + 7) / 8 * 8;
    }
    if (volume == 2 && below(h, 12) == 0) { /* a request that is split */
        lba = below(h, 1000);
        length = 2049 + below(h, 2200);
    }
    if (lba + length > sectors)
        length = sectors - lba;
    char *model = h->live + volume_at(volume) + lba * 512;
    struct block *b = group_volume_block(h->group, (size_t)volume);
    unsigned flags = below(h, 10) == 0 ? BLOCK_FUA : 0;
    switch (below(h, 8)) {
    case 0:
        h->doing = "discard";
        memset(model, 0, length * 512);
        OK(h, block_discard(b, length * 512, lba * 512, flags, &err));
        break;
    case 1:
        h->doing = "zero";
        memset(model, 0, length * 512);
        OK(h, block_zero(b, length * 512, lba * 512, flags, &err));
        break;
    default:
        h->doing = "write";
        uint64_t word = next_random(h), same = below(h, 3) ? 0 : ~7ull; /* most of it can be compressed */
        for (uint64_t i = 0; i < length * 512; i += 8) {
            word = i & same ? next_random(h) : word + (i % 512 == 0);
            memcpy(model + i, &word, 8);
        }
        OK(h, block_pwrite(b, model, length * 512, lba * 512, flags, &err));
    }
}

static void change_object(struct history *h)
{
    int i = (int)below(h, MAX_OBJECTS);
    char name[2] = {(char)('a' + i), 0}, content[16];
    struct journal_point point;
    h->doing = "object";
    h->objects[i] = below(h, 4) ? ++h->next_version : 0;
    snprintf(content, sizeof content, "%d", h->objects[i]);
    OK(h, journal_object(h->journal, name, h->objects[i] ? content : NULL, strlen(content), &point, &err));
}

static void rewind_random(struct history *h)
{
    struct group_change c;
    if (!h->point_count)
        return;
    const struct point_model *p = &h->points[below(h, h->point_count)];
    if (!is_kept(h, p))
        return;
    h->doing = "rewind";
    if (h->last_rewind > h->base && below(h, 4) == 0) { /* undo */
        for (size_t i = 0; i < h->point_count; i++)
            if (h->points[i].lsn <= h->last_rewind - 1)
                p = &h->points[i];
        h->doing = "undo";
        if (!is_kept(h, p))
            return;
    }
    int r = group_rewind(h->group, (struct lsn){p->lsn}, false, &c, &err);
    if (thin && r == -ERANGE)
        return; /* the janitor was faster */
    OK(h, r);
    free(c.volumes);
    h->last_rewind = c.lsn.n;
    memcpy(h->live, p->data, h->total);
    memcpy(h->objects, p->objects, sizeof h->objects);
    if (below(h, 2))
        check_live(h); /* J8, before the copy-back is through */
    if (below(h, 3) == 0)
        group_settle(h->group);
}

/* As if killed after a write was journaled and before the backing had it: what the backing holds counts. */
static void leave_in_flight(struct history *h)
{
    static char data[16 * 512];
    struct group_status g;
    struct journal_ticket ticket;
    group_status(h->group, &g);
    if (g.rewinding || g.resyncing)
        return;
    for (size_t i = 0; i < sizeof data; i += 8) {
        uint64_t word = next_random(h);
        memcpy(data + i, &word, 8);
    }
    int volume = (int)below(h, VOLUMES);
    struct block *b = group_volume_block(h->group, (size_t)volume);
    OK(h, block_pwrite(b, h->live + volume_at(volume), h->sizes[volume], 0, 0, &err)); /* a write marks its region first */
    struct journal_record record = {.op = OP_WRITE, .volume = (uint32_t)volume + 1, .lba = below(h, h->sizes[volume] / 512 - 16),
                                    .length = 16, .payload = data, .payload_bytes = sizeof data};
    OK(h, journal_append(h->journal, &record, &ticket, &err));
    if (below(h, 2))
        OK(h, journal_wait(h->journal, &ticket, &err));
}

static void grow(struct history *h)
{
    int volume = (int)below(h, VOLUMES);
    char name[16];
    uint64_t room = (sizes[volume] - h->sizes[volume]) / 4096;
    h->doing = "grow";
    if (room == 0 || (adopt && is_seeding(h)))
        return;
    h->sizes[volume] += 4096 * (1 + below(h, room));
    h->growths++;
    snprintf(name, sizeof name, "v%d", volume);
    if (below(h, 3)) {
        OK(h, group_resize(h->group, name, h->sizes[volume], &err));
        return;
    }
    h->doing = "kill while growing"; /* journaled, and not in the manifest */
    remember(h);
    close_view(h);
    h->lose_manifest = true;
    if (group_resize(h->group, name, h->sizes[volume], &err) >= 0)
        fail(h, "the volume has grown without a manifest");
    group_abandon(h->group);
    journal_abandon(h->journal);
    h->lose_manifest = false;
    open_all(h);
    check_live(h);
    group_settle(h->group); /* the sealer may have failed to save it as well: then the volumes are compared */
}

static void grow_closed(struct history *h)
{
    int volume = (int)below(h, VOLUMES);
    uint64_t room = (sizes[volume] - h->sizes[volume]) / 4096;
    h->doing = "grow at opening";
    if (room)
        h->sizes[volume] += 4096 * (1 + below(h, room));
}

/* Whether the journal was still to seed a volume when it was abandoned: the seeding may have ended since anybody asked. */
static bool was_seeding(struct history *h)
{
    struct manifest m;
    bool seeding = false;
    OK(h, manifest_load(h->directory, &m, &err));
    for (size_t i = 0; i < m.volume_count; i++)
        seeding |= m.volumes[i].seeding;
    manifest_release(&m);
    return seeding;
}

/* What was seeded since the map was saved cannot be told from what was not, and may be written over. */
static void note_loss(struct history *h)
{
    struct journal_status s;
    char path[96];
    for (int i = 1; i <= VOLUMES; i++) {
        snprintf(path, sizeof path, "%s.seed-%d", h->ring, i);
        unlink(path);
    }
    if (!was_seeding(h))
        return;
    open_all(h);
    check_live(h);
    group_settle(h->group);
    OK(h, journal_sync(h->journal, -1, NULL, &err));
    journal_status(h->journal, &s);
    h->exact_from = s.latest.n;
    group_free(h->group);
    OK(h, journal_close(h->journal, &err));
}

/* A before-image cannot be kept, and the write goes on (availability). */
static void lose_before_image(struct history *h)
{
    struct journal_status s;
    struct group_status g;
    group_status(h->group, &g);
    if (!g.seeding || g.resyncing)
        return;
    h->doing = "lose a before-image";
    h->lose_image = true;
    change(h);
    h->lose_image = false;
    group_settle(h->group);
    OK(h, journal_sync(h->journal, -1, NULL, &err));
    if (journal_is_suspended(h->journal))
        fail(h, "journaling does not go on");
    journal_status(h->journal, &s);
    size_t i = 0; /* the oldest point that was exact */
    while (i < h->point_count && (h->points[i].lsn < h->exact_from || h->points[i].lsn <= h->base))
        i++;
    if (i == h->point_count)
        return;
    struct point point = {.kind = POINT_LSN, .lsn = {h->points[i].lsn}};
    struct journal_point found;
    if (journal_resolve(h->journal, &point, &found, &err) == -ERANGE && strstr(err.message, "gap")) /* else a grain that was seeded */
        h->exact_from = s.latest.n;
}

static void reopen(struct history *h)
{
    bool kill = below(h, 2), seeding = adopt && is_seeding(h), in_vain = below(h, 4) == 0;
    h->doing = kill ? "kill and reopen" : "close and reopen";
    remember(h);
    close_view(h);
    if (kill) {
        if (h->ack == GROUP_ACK_FLUSH && (in_vain || below(h, 2))) /* a second kill may lose what is in the ring alone: it is read back then */
            OK(h, block_flush(group_volume_block(h->group, 0), &err));
        if (below(h, 2))
            leave_in_flight(h);
        group_abandon(h->group);
        journal_abandon(h->journal);
        if (below(h, 3) == 0) { /* as after a power loss: shared memory is gone, everything is compared */
            h->doing = "power loss and reopen";
            unlink(h->ring);
            if (in_vain)
                start_in_vain(h);
            note_loss(h);
            open_all(h);
            check_live(h);
            group_settle(h->group);
            return;
        }
    } else {
        group_free(h->group);
        OK(h, journal_close(h->journal, &err));
    }
    if (in_vain)
        start_in_vain(h);
    if (below(h, 4) == 0 && !seeding)
        grow_closed(h);
    open_all(h);
    check_live(h);
    if (in_vain)
        group_settle(h->group); /* compared, if anything was in flight */
}

static void drop(struct history *h)
{
    struct journal_status s;
    h->doing = "drop";
    if (!h->point_count)
        return;
    OK(h, journal_drop(h->journal, (struct lsn){h->points[below(h, h->point_count)].lsn}, &err));
    journal_status(h->journal, &s);
    h->base = s.oldest.n;
}

static void step(struct history *h)
{
    uint64_t dice = below(h, 100);
    if (thin) {
        uint64_t most_s = below(h, 3) ? 1 : below(h, 8) ? 5 : 90;
        h->now_ns += below(h, most_s * NS_PER_SECOND);
        uint64_t event = below(h, 20);
        if (event < 2)
            thin_now(h);
        else if (event == 2)
            open_or_close_view(h);
        else if (event == 3)
            verify(h);
    }
    if (dice < 2)
        grow(h);
    else if (adopt && dice == 3 && below(h, 8) == 0)
        lose_before_image(h);
    else if (adopt && dice == 4 && below(h, 4) == 0)
        group_settle(h->group);
    else if (dice < 70)
        change(h);
    else if (dice < 76)
        change_object(h);
    else if (dice < 80)
        OK(h, block_flush(group_volume_block(h->group, below(h, VOLUMES)), &err));
    else if (dice < 85)
        rewind_random(h);
    else if (dice < 88)
        OK(h, journal_seal(h->journal, &err));
    else if (dice < 91)
        OK(h, journal_maintain(h->journal, &err));
    else if (dice < 93)
        drop(h);
    else if (dice < 95)
        reopen(h);
    else if (dice < 96)
        for (int i = 0; i < 4; i++) /* nothing is marked then, but what the ring knows of */
            group_clear_intents(h->group);
    else if (h->point_count) {
        h->doing = "look back";
        size_t i = below(h, h->point_count);
        if (is_kept(h, &h->points[i]))
            check_point(h, &h->points[i]);
    }
    OK(h, journal_sync(h->journal, -1, NULL, &err)); /* `latest` counts written records */
    remember(h);
}

static void run(uint64_t seed, uint64_t *checked, uint64_t *thinned, uint64_t *refused, uint64_t *compressed)
{
    struct history *h = calloc(1, sizeof *h);
    char template[] = "/dev/shm/tidemark-history-XXXXXX";
    h->seed = seed;
    h->random = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < 8; i++)
        next_random(h);
    snprintf(h->directory, sizeof h->directory, "%s", mkdtemp(template));
    snprintf(h->ring, sizeof h->ring, "%s.ring", h->directory);
    h->ack = below(h, 2) ? GROUP_ACK_FLUSH : GROUP_ACK_WRITE;
    h->records = 8 + (uint32_t)below(h, 24);
    h->blocks = 300 + (uint32_t)below(h, 100);
    h->fanout = 2 + (uint32_t)below(h, 2);
    h->total = volume_at(VOLUMES);
    for (int i = 0; i < VOLUMES; i++)
        h->sizes[i] = sizes[i] - GROWTH;
    h->seed_speed = below(h, 2) ? 0 : 1 << (18 + below(h, 6)); /* 256 KiB to 8 MiB a second */
    h->live = calloc(1, h->total);
    h->doing = "open";
    h->now_ns = START_NS;
    h->history_ns = thin && below(h, 3) == 0 ? 400 * NS_PER_SECOND : 0;
    h->quota_bytes = thin && below(h, 3) == 0 ? (4 + below(h, 6)) * h->blocks * 4096 : 0;
    h->compress = below(h, 3) > 0;
    h->compress_after_ns = below(h, 2) ? 0 : 10 * NS_PER_SECOND;
    fill_backings(h);
    open_all(h);
    OK(h, journal_sync(h->journal, -1, NULL, &err));
    remember(h);
    uint64_t steps = thin ? 60 + below(h, 140) : 20 + below(h, 60);
    for (h->step = 0; h->step < (int)steps; h->step++)
        step(h);
    h->doing = "final check";
    if (adopt || below(h, 2))
        group_settle(h->group);
    bool settled = thin || !h->compress_after_ns;
    if (below(h, 2) || settled) /* else the sealer might add a segment after the maintenance */
        OK(h, journal_seal(h->journal, &err));
    OK(h, journal_maintain(h->journal, &err));
    check_live(h);
    if (settled)
        check_segments(h);
    verify(h);
    for (size_t i = 0; i < h->point_count; i++)
        if (is_kept(h, &h->points[i])) {
            check_point(h, &h->points[i]);
            ++*checked;
        }
    close_view(h);
    *thinned += h->thinned;
    *compressed += h->compressed;
    *refused += h->refused;
    group_free(h->group);
    OK(h, journal_close(h->journal, &err));
    OK(h, io_remove_tree(h->directory, &err));
    for (size_t i = 0; i < h->point_count; i++)
        free(h->points[i].data);
    free(h->live);
    free(h);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"histories", required_argument, NULL, 'n'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"seconds", required_argument, NULL, 't'},
                                            {"thin", no_argument, NULL, 'T'},
                                            {"adopt", no_argument, NULL, 'A'},
                                            {"verbose", no_argument, NULL, 'v'},
                                            {0}};
    uint64_t histories = 200, seconds = 0, checked = 0, thinned = 0, refused = 0, compressed = 0, seed;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    seed = (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'n')
            histories = strtoull(optarg, NULL, 10);
        else if (option == 's')
            seed = strtoull(optarg, NULL, 10);
        else if (option == 't')
            seconds = strtoull(optarg, NULL, 10);
        else if (option == 'T')
            thin = true;
        else if (option == 'A')
            adopt = true;
        else if (option == 'v')
            verbose = true;
        else
            return 2;
    }
    if (thin)
        sizes[2] = (3 << 19) + GROWTH; /* longer histories, smaller copies of them */
    time_t start = now.tv_sec;
    uint64_t done = 0;
    /* The models of the points, megabytes each, are kept for the next history: else the kernel clears their pages most of the time. */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    printf("first seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    for (; seconds ? (uint64_t)(time(NULL) - start) < seconds : done < histories; done++) {
        if (verbose)
            printf("seed %llu\n", (unsigned long long)(seed + done));
        run(seed + done, &checked, &thinned, &refused, &compressed);
    }
    printf("%llu histories, %llu points compared, %llu compressed segments\n", (unsigned long long)done, (unsigned long long)checked,
           (unsigned long long)compressed);
    if (thin)
        printf("%llu thinned segments, %llu points refused\n", (unsigned long long)thinned, (unsigned long long)refused);
    return 0;
}
