/* SPDX-License-Identifier: Apache-2.0 */
/* J5: which points, segments and records thinning keeps. TIDEMARK_SEED replays a run. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "journal/frame.h"
#include "journal/thin_internal.h"

static struct error err;
static uint64_t seed, state;

static uint64_t rnd(uint64_t below)
{
    return check_random(&state) % below;
}

static void give(struct thin_chooser *c, uint64_t lsn, double seconds, bool forced)
{
    assert_int_equal(thin_choose(c, (struct lsn){lsn}, (uint64_t)(seconds * 1e9), forced, &err), 0);
}

static void expect_cuts(struct thin_chooser *c, const uint64_t *lsns, size_t count)
{
    assert_int_equal(thin_choose_last(c, &err), 0);
    assert_int_equal(c->count, count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(c->cuts[i].n, lsns[i]);
    thin_chooser_release(c);
}

/* The last of each interval of the calendar, and what is forced. */
static void the_last_of_each_interval(void **unused)
{
    (void)unused;
    struct thin_chooser c;
    thin_chooser_init(&c, 60);
    give(&c, 1, 10, false);
    give(&c, 2, 59.9, false); /* kept */
    give(&c, 3, 60, false);
    give(&c, 5, 61, true); /* a tag */
    give(&c, 6, 119, false); /* kept */
    give(&c, 9, 600, false); /* the end */
    assert_int_equal(thin_interval(&c, (struct lsn){2}), 0);
    assert_int_equal(thin_interval(&c, (struct lsn){3}), 1);
    assert_true(thin_is_cut(&c, (struct lsn){5}));
    assert_false(thin_is_cut(&c, (struct lsn){3}));
    expect_cuts(&c, (const uint64_t[]){2, 5, 6, 9}, 4);
    /* The clock was set back: another interval, although it was there before. */
    thin_chooser_init(&c, 60);
    give(&c, 1, 100, false);
    give(&c, 2, 50, false);
    give(&c, 3, 110, false);
    expect_cuts(&c, (const uint64_t[]){1, 2, 3}, 3);
    /* Before a rewind; nothing twice. */
    thin_chooser_init(&c, 3600);
    give(&c, 1, 1, false);
    give(&c, 2, 2, false);
    assert_int_equal(thin_choose_last(&c, &err), 0);
    give(&c, 3, 3, true);
    assert_int_equal(thin_choose_last(&c, &err), 0);
    expect_cuts(&c, (const uint64_t[]){2, 3}, 2);
    thin_chooser_init(&c, 1);
    expect_cuts(&c, NULL, 0);
}

static const struct journal_thinning steps[] = {{7200 * NS_PER_SECOND, 1}, {86400 * NS_PER_SECOND, 60}, {604800 * NS_PER_SECOND, 3600}};
#define NOW (100 * 86400 * NS_PER_SECOND)
#define HOUR (3600 * NS_PER_SECOND)

/* By the wall clock alone, as after a boot. */
static struct age_clock at(uint64_t realtime_ns)
{
    return (struct age_clock){.boot = {{9}}, .realtime_ns = realtime_ns, .first_boottime_ns = UINT64_MAX};
}

static void steps_by_age(void **unused)
{
    (void)unused;
    assert_int_equal(thin_wanted(steps, 3, 0), 0);
    assert_int_equal(thin_wanted(steps, 3, 2 * HOUR - 1), 0);
    assert_int_equal(thin_wanted(steps, 3, 2 * HOUR), 1);
    assert_int_equal(thin_wanted(steps, 3, 24 * HOUR), 60);
    assert_int_equal(thin_wanted(steps, 3, 24 * 7 * HOUR), 3600);
    assert_int_equal(thin_wanted(steps, 0, NOW), 0);
}

static uint64_t read_first(void *times)
{
    return ((const uint64_t *)times)[0];
}
static uint64_t read_second(void *times)
{
    return ((const uint64_t *)times)[1];
}

/* Set forward for a moment, the wall clock would make all history old, and what is dropped or thinned then is gone. */
static void a_clock_that_jumps_ages_nothing(void **unused)
{
    (void)unused;
    struct manifest m = {.boot = {{2}}};
    const uint64_t year = 365 * 24 * HOUR, boot = 50 * HOUR; /* the machine has been up for so long */
    /* Of the boot before, then of this one: the last of them written while the clock was a year ahead. */
    struct segment_info old = {.number = 1, .boot = {{1}}, .first = {1}, .last = {10}, .last_realtime_ns = NOW - 60 * HOUR, .last_boottime_ns = 7};
    struct segment_info first = {.number = 2, .boot = {{2}}, .first = {11}, .last = {20}, .first_realtime_ns = NOW - 40 * HOUR,
                                 .last_realtime_ns = NOW - 30 * HOUR, .first_boottime_ns = boot - 40 * HOUR, .last_boottime_ns = boot - 30 * HOUR};
    struct segment_info ahead = {.number = 3, .boot = {{2}}, .first = {21}, .last = {30}, .last_realtime_ns = NOW + year - HOUR,
                                 .last_boottime_ns = boot - HOUR};
    assert_int_equal(manifest_add_segment(&m, &old, &err), 0);
    for (int jumped = -1; jumped <= 1; jumped++) {
        struct age_clock now;
        uint64_t times[2] = {NOW + (uint64_t)jumped * 24 * HOUR, boot};
        age_clock_read(&m, &(struct clock){read_first, read_second, times}, &now);
        assert_int_equal(age_of(&now, &old), (uint64_t)(60 + 24 * jumped) * HOUR); /* nothing else to go by */
    }
    assert_int_equal(manifest_add_segment(&m, &first, &err), 0);
    assert_int_equal(manifest_add_segment(&m, &ahead, &err), 0);
    for (int jumped = -1; jumped <= 1; jumped++) {
        struct age_clock now;
        uint64_t times[2] = {NOW + (uint64_t)jumped * 24 * HOUR, boot};
        age_clock_read(&m, &(struct clock){read_first, read_second, times}, &now);
        assert_int_equal(age_of(&now, &old), (uint64_t)(jumped < 0 ? 36 : 60) * HOUR);
        assert_int_equal(age_of(&now, &first), 30 * HOUR);
        assert_int_equal(age_of(&now, &ahead), HOUR);
    }
    manifest_release(&m);
}

/* Segments of one minute each, the newest ending `age_min` minutes ago. */
static struct manifest make(size_t count, uint64_t age_min)
{
    struct manifest m = {0};
    for (size_t i = 0; i < count; i++) {
        uint64_t end = NOW - (age_min + count - 1 - i) * 60 * NS_PER_SECOND;
        struct segment_info s = {.number = (uint32_t)i + 1, .used_blocks = 100, .first = {i * 10 + 1}, .last = {i * 10 + 10},
                                 .first_realtime_ns = end - 60 * NS_PER_SECOND, .last_realtime_ns = end};
        assert_int_equal(manifest_add_segment(&m, &s, &err), 0);
    }
    return m;
}

static void stretches(void **unused)
{
    (void)unused;
    struct thin_stretch s = {0};
    struct thin_policy p = {.steps = steps, .step_count = 3, .now = at(NOW)};
    struct manifest m = make(200, 60);
    /* Segments 1 to 81 are older than two hours: 32 at a time. */
    assert_true(thin_find(&m, &p, &s));
    assert_int_equal(s.first, 0);
    assert_int_equal(s.count, THIN_MAX_SEGMENTS);
    assert_int_equal(s.keep_s, 1);
    /* A pin in the middle: only what begins behind it. */
    p.above = (struct lsn){715};
    assert_true(thin_find(&m, &p, &s));
    assert_int_equal(s.first, 72);
    assert_int_equal(s.count, THIN_MAX_SEGMENTS);
    p.above = (struct lsn){1395};
    assert_false(thin_find(&m, &p, &s));
    p.above = LSN_NONE;
    /* Nothing twice, but again for the next step. */
    for (size_t i = 0; i < 140; i++)
        m.segments[i].keep_s = 1, m.segments[i].generation = 1;
    assert_false(thin_find(&m, &p, &s));
    p.now = at(NOW + 22 * HOUR);
    assert_true(thin_find(&m, &p, &s));
    assert_int_equal(s.first, 0);
    assert_int_equal(s.keep_s, 60);
    /* Another boot ends a stretch, and what is being compared is left alone. */
    m.segments[5].boot.bytes[0] = 1;
    assert_true(thin_find(&m, &p, &s));
    assert_int_equal(s.count, 5);
    struct refused_info refused = {.low = {25}};
    assert_int_equal(manifest_add_refused(&m, &refused, &err), 0);
    assert_false(thin_find(&m, &p, &s)); /* two segments of it are known: the comparison will end, then there are more */
    /* A part of the quota. */
    m.refused_count = 0;
    p.max_bytes = 350 * JOURNAL_BLOCK_BYTES;
    assert_true(thin_find(&m, &p, &s));
    assert_int_equal(s.count, 3);
    manifest_release(&m);
}

/* A stretch that would be continued soon waits until it has a good number of intervals. */
static void waiting(void **unused)
{
    (void)unused;
    struct thin_stretch s = {0};
    struct thin_policy p = {.steps = steps, .step_count = 3, .now = at(NOW)};
    struct manifest m = make(30, 24 * 60 - 10);
    for (size_t i = 0; i < m.segment_count; i++)
        m.segments[i].keep_s = 1, m.segments[i].generation = 1;
    assert_true(thin_find(&m, &p, &s)); /* 20 minutes of it are older than a day */
    assert_int_equal(s.count, 20);
    p.now = at(NOW - 5 * 60 * NS_PER_SECOND); /* 15 minutes: 16 are wanted */
    assert_false(thin_find(&m, &p, &s));
    m.segments[15].keep_s = 60; /* it cannot become longer */
    assert_true(thin_find(&m, &p, &s));
    assert_int_equal(s.count, 15);
    manifest_release(&m);
}

/* 70 % of the quota: ages count for more, the oldest history first. */
static void early_near_the_quota(void **unused)
{
    (void)unused;
    assert_int_equal(thin_haste(100, 0), 100);
    assert_int_equal(thin_haste(70, 100), 100);
    assert_int_equal(thin_haste(95, 100), 800);
    assert_int_equal(thin_haste(300, 100), 800);
    assert_true(thin_haste(80, 100) > 300 && thin_haste(80, 100) < 500);
    struct thin_stretch s = {0};
    struct thin_policy p = {.steps = steps, .step_count = 3, .now = at(NOW), .haste_percent = 100};
    struct manifest m = make(70, 10); /* up to 80 minutes old, and thinned from 2 hours on */
    assert_false(thin_find(&m, &p, &s));
    p.haste_percent = 200;
    assert_true(thin_find(&m, &p, &s));
    assert_true(s.first == 0 && s.count == 20 && s.keep_s == 1);
    p.haste_percent = 800; /* what is younger than a quarter of an hour stays */
    for (size_t i = 0; i < 64; i++)
        m.segments[i].keep_s = 1;
    assert_true(thin_find(&m, &p, &s));
    assert_true(s.first == 64 && s.count == 1);
    m.segments[64].keep_s = 1;
    assert_false(thin_find(&m, &p, &s));
    manifest_release(&m);
}

/* Half of the time is the application's, unless it does not write or the quota is near. */
static void half_of_the_time(void **unused)
{
    (void)unused;
    assert_int_equal(thin_rest(4 * NS_PER_MS, true, 100), 4 * NS_PER_MS);
    assert_int_equal(thin_rest(NS_PER_SECOND, true, 100), 20 * NS_PER_MS); /* a rewind waits for it */
    assert_int_equal(thin_rest(4 * NS_PER_MS, false, 100), 0);
    assert_int_equal(thin_rest(4 * NS_PER_MS, true, 101), 0);
}

/* Does what thinning would: half of what is read stays, in as few segments as it fits. */
static void thin_in_table(struct manifest *m, const struct thin_stretch *s, uint64_t *rewritten)
{
    struct segment_info *to = &m->segments[s->first], joined = *to, last = m->segments[s->first + s->count - 1];
    joined.keep_s = s->keep_s;
    joined.generation++;
    joined.used_blocks = joined.records = 0;
    for (size_t i = 0; i < s->count; i++) {
        bool again = to[i].keep_s == s->keep_s;
        joined.used_blocks += again ? to[i].used_blocks : (to[i].used_blocks + 1) / 2;
        joined.records += again ? to[i].records : (to[i].records + 1) / 2;
        joined.generation = to[i].generation >= joined.generation ? to[i].generation + 1 : joined.generation;
        *rewritten += to[i].used_blocks;
    }
    joined.last = last.last;
    joined.last_realtime_ns = last.last_realtime_ns;
    assert_true(joined.used_blocks <= 16384);
    *to = joined;
    memmove(to + 1, to + s->count, (m->segment_count - s->first - s->count) * sizeof *to);
    m->segment_count -= s->count - 1;
}

/* 30 days of segments that were sealed long before they were full: their number stays bounded, and little is rewritten. */
static void small_segments_are_joined(void **unused)
{
    (void)unused;
    struct manifest m = {0};
    struct thin_policy p = {.steps = steps, .step_count = 3, .segment_blocks = 16384, .segment_records = 32768};
    uint64_t written = 0, rewritten = 0;
    size_t most = 0;
    for (uint64_t i = 0; i < 30 * 24 * 6; i++) { /* one every 10 minutes */
        uint64_t end = NOW + i * 600 * NS_PER_SECOND;
        struct segment_info info = {.number = (uint32_t)i + 1, .used_blocks = 50, .records = 50, .first = {i * 50 + 1}, .last = {i * 50 + 50},
                                    .first_realtime_ns = end - 600 * NS_PER_SECOND, .last_realtime_ns = end};
        struct thin_stretch s;
        assert_int_equal(manifest_add_segment(&m, &info, &err), 0);
        written += info.used_blocks;
        p.now = at(end);
        while (thin_find(&m, &p, &s))
            thin_in_table(&m, &s, &rewritten);
        most = m.segment_count > most ? m.segment_count : most;
    }
    assert_true(most < 80);
    assert_true(rewritten < 12 * written);
    p.segment_blocks = 0; /* and what is large, or pinned, or about to be thinned further, is left alone */
    struct thin_stretch s;
    assert_false(thin_find(&m, &p, &s));
    manifest_release(&m);
    m = make(8, 60);
    p = (struct thin_policy){.steps = steps, .step_count = 3, .now = at(NOW), .segment_blocks = 1000, .segment_records = 1000};
    for (size_t i = 0; i < 8; i++)
        m.segments[i].keep_s = 1;
    assert_true(thin_find(&m, &p, &s) && s.first == 0 && s.count == 8 && s.keep_s == 1);
    p.above = (struct lsn){35};
    assert_true(thin_find(&m, &p, &s) && s.first == 4 && s.count == 4);
    p.above = LSN_NONE;
    m.segments[3].used_blocks = 250;
    assert_true(thin_find(&m, &p, &s) && s.first == 4 && s.count == 4);
    m.segments[5].keep_s = 60;
    assert_false(thin_find(&m, &p, &s));
    manifest_release(&m);
}

/* ---- survivors against an array of sectors ---- */

enum { SECTORS = 60, EXTENTS = 300, VOLUMES = 2 };

static int by_key(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->volume != y->volume)
        return x->volume < y->volume ? -1 : 1;
    if (x->lba != y->lba)
        return x->lba < y->lba ? -1 : 1;
    return x->lsn.n < y->lsn.n ? -1 : x->lsn.n > y->lsn.n;
}

static void check_survivors(void)
{
    struct extent extents[EXTENTS], parts[3][EXTENTS];
    size_t count = 1 + rnd(EXTENTS), part_count[3] = {0};
    struct thin_chooser c;
    thin_chooser_init(&c, 1);
    for (size_t i = 0; i < count; i++) {
        uint64_t lba = rnd(SECTORS), length = 1 + rnd(rnd(2) ? 4 : 30);
        extents[i] = (struct extent){.volume = 1 + (uint32_t)rnd(VOLUMES), .lba = lba, .lsn = {i + 1}, .kind = EXTENT_ZERO,
                                     .length = (uint32_t)(lba + length > SECTORS ? SECTORS - lba : length)};
        if (rnd(10) == 0)
            give(&c, i + 1, 1, true);
    }
    bool expected[EXTENTS] = {false};
    for (size_t cut = 0; cut <= c.count; cut++) { /* the newest of each sector as of each cut, if it came after the last cut */
        uint64_t low = cut ? c.cuts[cut - 1].n : 0, high = cut < c.count ? c.cuts[cut].n : count;
        size_t newest[VOLUMES][SECTORS] = {{0}};
        for (size_t i = (size_t)low; i < high; i++)
            for (uint32_t k = 0; k < extents[i].length; k++)
                newest[extents[i].volume - 1][extents[i].lba + k] = i + 1;
        for (size_t v = 0; v < VOLUMES; v++)
            for (size_t k = 0; k < SECTORS; k++)
                if (newest[v][k])
                    expected[newest[v][k] - 1] = true;
    }
    struct extent_stream *streams[3];
    for (size_t i = 0; i < count; i++) { /* as segments: consecutive LSNs */
        size_t part = i * 3 / count;
        parts[part][part_count[part]++] = extents[i];
    }
    for (size_t i = 0; i < 3; i++) {
        qsort(parts[i], part_count[i], sizeof *parts[i], by_key);
        assert_int_equal(extent_stream_array(parts[i], part_count[i], LSN_NONE, LSN_MAX, &streams[i], &err), 0);
    }
    struct thin_survivors s;
    assert_int_equal(thin_survivors_init(&s, LSN_NONE, (struct lsn){count}, &err), 0);
    assert_int_equal(thin_find_survivors(&s, &c, streams, 3, &err), 0);
    for (size_t i = 0; i < count; i++)
        if (thin_survives(&s, (struct lsn){i + 1}) != expected[i])
            fail_msg("seed %llu: record %zu of %zu is %s", (unsigned long long)seed, i + 1, count,
                     expected[i] ? "missing" : "kept for nothing");
    for (size_t i = 0; i < 3; i++)
        extent_stream_free(streams[i]);
    thin_survivors_release(&s);
    thin_chooser_release(&c);
}

static void survivors(void **unused)
{
    (void)unused;
    state = seed;
    for (int i = 0; i < 500; i++)
        check_survivors();
}

/* ---- the points by the index's list of frames, against all records given one by one ---- */

enum { FRAMES = 60, SEGMENTS = 3 };

struct made_segment {
    struct tail_frame frames[FRAMES];
    struct tail_event events[FRAMES];
    char blocks[FRAMES][JOURNAL_BLOCK_BYTES];
    uint32_t frame_count, event_count;
    uint32_t reads;
};

static int made_header(void *context, uint32_t i, const struct frame_header **ret, struct error *unused)
{
    struct made_segment *s = context;
    (void)unused;
    assert_true(i < s->frame_count);
    s->reads++;
    *ret = (const struct frame_header *)s->blocks[i];
    return 0;
}

/* Frames of up to 4 records. `odd`: one in so many records is no write, one in two such is no point; 0: all are writes. */
static void make_frames(struct made_segment *s, uint64_t *lsn, uint64_t *now_ns, uint64_t step_ns, uint64_t odd)
{
    static const uint8_t ops[] = {OP_MARK, OP_REWIND, OP_GAP, OP_RESYNC_BEGIN, OP_RESYNC_END, OP_OBJECT, OP_VOID, OP_BASE};
    memset(s, 0, sizeof *s);
    s->frame_count = 1 + (uint32_t)rnd(FRAMES);
    for (uint32_t i = 0; i < s->frame_count; i++) {
        struct frame_header *h = (struct frame_header *)s->blocks[i];
        struct frame_record *records = (struct frame_record *)(h + 1);
        uint64_t begin_ns = *now_ns;
        *h = (struct frame_header){.record_count = le16_of((uint16_t)(1 + rnd(4))), .first_lsn = le64_of(*lsn + 1), .realtime_ns = le64_of(begin_ns)};
        for (uint32_t k = 0; k < le16_get(h->record_count); k++) {
            *now_ns += k ? rnd(step_ns) / 1000 * 1000 : 0;
            bool event = odd && rnd(odd) == 0;
            uint8_t op = event ? ops[rnd(sizeof ops)] : OP_WRITE;
            records[k] = (struct frame_record){.op = op, .flags = odd && rnd(odd) < 2 ? 0 : RECORD_LAST,
                                               .delta_us = le32_of((uint32_t)((*now_ns - begin_ns) / 1000))};
            ++*lsn;
            if (event && op != OP_VOID && op != OP_BASE && s->event_count < FRAMES)
                s->events[s->event_count++] = (struct tail_event){.lsn = le64_of(*lsn), .op = op};
            else if (event)
                records[k].op = OP_VOID;
        }
        s->frames[i] = (struct tail_frame){.first_lsn = h->first_lsn, .realtime_ns = h->realtime_ns, .records = h->record_count};
        *now_ns += rnd(step_ns);
    }
}

static void check_points(uint64_t odd)
{
    static struct made_segment segments[SEGMENTS];
    struct thin_chooser all, few;
    struct manifest m = {0};
    uint64_t lsn = rnd(100), now_ns = 1000 * NS_PER_SECOND + rnd(NS_PER_SECOND), step_ns = 1 + rnd(rnd(2) ? 5 : 300) * NS_PER_MS;
    uint64_t first = lsn;
    thin_chooser_init(&all, 1);
    thin_chooser_init(&few, 1);
    if (rnd(4) == 0) {
        struct refused_info refused = {{first + rnd(100)}, {rnd(3) ? first + 100 + rnd(100) : 0}};
        assert_int_equal(manifest_add_refused(&m, &refused, &err), 0);
    }
    for (size_t i = 0; i < SEGMENTS; i++) {
        struct made_segment *s = &segments[i];
        struct thin_points p = {.m = &m, .low = {lsn}, .frames = s->frames, .events = s->events, .header = made_header, .context = s};
        make_frames(s, &lsn, &now_ns, step_ns, odd);
        p.high.n = lsn;
        p.frame_count = s->frame_count;
        p.event_count = s->event_count;
        bool any;
        for (uint32_t k = 0; k < s->frame_count; k++)
            assert_int_equal(thin_choose_frame(&all, &m, (const struct frame_header *)s->blocks[k], &any, &err), 0);
        assert_int_equal(thin_choose_points(&few, &p, &err), 0);
        if (few.candidate.n != all.candidate.n)
            fail_msg("seed %llu: segment %zu ends with point %llu instead of %llu", (unsigned long long)seed, i,
                     (unsigned long long)few.candidate.n, (unsigned long long)all.candidate.n);
    }
    assert_int_equal(thin_choose_last(&all, &err), 0);
    assert_int_equal(thin_choose_last(&few, &err), 0);
    bool same = few.count == all.count && (all.count == 0 || memcmp(few.cuts, all.cuts, all.count * sizeof *all.cuts) == 0);
    if (!same)
        fail_msg("seed %llu: %zu points are kept instead of %zu, or others", (unsigned long long)seed, few.count, all.count);
    thin_chooser_release(&all);
    thin_chooser_release(&few);
    manifest_release(&m);
}

static void points_by_frames(void **unused)
{
    (void)unused;
    state = seed;
    for (int i = 0; i < 3000; i++)
        check_points(i % 3 ? 2 + rnd(20) : 0);
}

/* Of 60 frames within a second, only the last and the one before it. */
static void few_headers_are_read(void **unused)
{
    (void)unused;
    static struct made_segment s;
    struct manifest m = {0};
    struct thin_chooser c;
    uint64_t lsn = 0, now_ns = 1000 * NS_PER_SECOND;
    state = seed;
    do
        make_frames(&s, &lsn, &now_ns, 1, 0);
    while (s.frame_count < 10);
    thin_chooser_init(&c, 1);
    struct thin_points p = {.m = &m, .high = {lsn}, .frames = s.frames, .frame_count = s.frame_count, .header = made_header, .context = &s};
    assert_int_equal(thin_choose_points(&c, &p, &err), 0);
    assert_int_equal(s.reads, 2);
    assert_int_equal(c.candidate.n, lsn);
    thin_chooser_release(&c);
}

int main(void)
{
    seed = check_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_of_each_interval), cmocka_unit_test(steps_by_age), cmocka_unit_test(a_clock_that_jumps_ages_nothing), cmocka_unit_test(stretches),
        cmocka_unit_test(waiting), cmocka_unit_test(early_near_the_quota), cmocka_unit_test(small_segments_are_joined), cmocka_unit_test(half_of_the_time), cmocka_unit_test(survivors),
        cmocka_unit_test(points_by_frames), cmocka_unit_test(few_headers_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
