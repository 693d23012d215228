/* SPDX-License-Identifier: Apache-2.0 */
/* J5: what the manifest on disk names stays what it is until another manifest is saved, and what a pin names stays. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "check.h"
#include "check_key.h"
#include "journal/journal.h"
#include "journal/payload.h"
#include "journal/pin.h"
#include "view/image.h"

#define BLOCKS 12 /* that are written again and again, one of 4 KiB each */
#define WRITES 128
#define START_NS (1700000000ull * NS_PER_SECOND)

static struct error err;
static char directory[64], ring[80];
static _Atomic uint64_t now_ns;
static _Atomic bool saving_fails;
static _Atomic int saves_before; /* so many go well first */
static struct journal *journal;
static uint32_t volume, segment_records;
static struct {
    uint64_t lsn, time_ns;
    unsigned char content[BLOCKS]; /* the byte that fills each block */
} points[WRITES];

static uint64_t time_now(void *context)
{
    (void)context;
    return now_ns;
}

static int fault(void *context, const char *step)
{
    (void)context;
    return saving_fails && strcmp(step, "save") == 0 && atomic_fetch_sub(&saves_before, 1) <= 0 ? -EIO : 0;
}

static void open_journal(bool thin)
{
    static const struct clock clock = {time_now, time_now, NULL};
    struct journal_options options = {.directory = directory, .key_file = check_key_file(), .ring_path = ring, .owner = "test",
                                      .segment_blocks = 300, .segment_records = segment_records, .fanout = 2, .clock = &clock, .fault = fault};
    struct volume_info v;
    if (thin) {
        options.thinning[0] = (struct journal_thinning){60 * NS_PER_SECOND, 1};
        options.thinning_count = 1;
    }
    check_ok(journal_open(&options, &journal, &err));
    check_ok(journal_volume(journal, "v", BLOCKS * 4096, false, &v, &err));
    volume = v.id;
}

/* One write each `step_ns`, in segments of `each`, merged. */
static void write_history(uint64_t step_ns, int each, bool maintain)
{
    static char data[4096];
    for (int i = 0; i < WRITES; i++) {
        struct journal_ticket ticket;
        int block = i / 3 % BLOCKS;
        memset(data, i + 1, sizeof data);
        struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = volume, .lba = (uint64_t)block * 8, .length = 8,
                                        .payload = data, .payload_bytes = sizeof data};
        check_ok(journal_append(journal, &record, &ticket, &err));
        journal_backed(journal, &ticket);
        check_ok(journal_wait(journal, &ticket, &err));
        if (i)
            points[i] = points[i - 1];
        points[i].lsn = ticket.lsn.n;
        points[i].time_ns = now_ns;
        points[i].content[block] = (unsigned char)(i + 1);
        now_ns += step_ns;
        if (i % each == each - 1)
            check_ok(journal_seal(journal, &err));
        if (maintain)
            check_ok(journal_maintain(journal, &err));
    }
    check_ok(journal_seal(journal, &err));
    check_ok(journal_maintain(journal, &err));
}

static void check_image(const char *pin, size_t point)
{
    struct image *image;
    char data[4096], expected[4096];
    check_ok(image_open(directory, pin, &image, &err));
    for (uint64_t block = 0; block < BLOCKS; block++) {
        check_ok(image_read(image, volume, block * 8, 8, data, &err));
        memset(expected, points[point].content[block], sizeof expected);
        if (memcmp(data, expected, sizeof data) != 0)
            fail_msg("block %d of the image at point %zu is not what was written", (int)block, point);
    }
    image_free(image);
}

static size_t check_all_points(void)
{
    size_t kept = 0;
    for (size_t i = 0; i < WRITES; i++) {
        int r = journal_pin(journal, "engine-test", (struct lsn){points[i].lsn}, true, &err);
        if (r == -ERANGE)
            continue;
        check_ok(r);
        check_image("engine-test", i);
        check_ok(journal_unpin(journal, "engine-test", &err));
        kept++;
    }
    return kept;
}

/* A manifest that cannot be saved, and a kill: the runs of the manifest on disk must not have been made again of segments that
 * it does not know. */
static void killed_with_an_older_manifest(void **unused)
{
    (void)unused;
    open_journal(true);
    write_history(NS_PER_SECOND / 4, 7, false);
    saving_fails = true;
    now_ns += 120 * NS_PER_SECOND; /* all of it is to be thinned */
    bool failed = false;
    for (int i = 0; i < 40; i++) /* each attempt does a step */
        failed |= journal_maintain(journal, &err) < 0;
    assert_true(failed);
    journal_abandon(journal);
    saving_fails = false;
    open_journal(false);
    assert_int_equal(check_all_points(), WRITES);
    check_ok(journal_close(journal, &err));
}

/* Once it can be saved again, the history is thinned after all. */
static void caught_up(void **unused)
{
    (void)unused;
    open_journal(true);
    write_history(NS_PER_SECOND / 4, 7, false);
    saving_fails = true;
    now_ns += 120 * NS_PER_SECOND;
    assert_int_equal(journal_maintain(journal, &err), -EIO);
    saving_fails = false;
    check_ok(journal_maintain(journal, &err));
    size_t kept = check_all_points();
    assert_true(kept >= WRITES / 4 && kept < WRITES / 2);
    journal_abandon(journal);
    open_journal(false);
    assert_int_equal(check_all_points(), kept);
    check_ok(journal_close(journal, &err));
}

static struct lsn listed_last;

static int check_listed(void *context, const struct journal_event *event, struct error *unused)
{
    (void)unused;
    if (event->lsn.n > listed_last.n)
        fail_msg("LSN %llu is listed after %llu: not the newest first", (unsigned long long)event->lsn.n, (unsigned long long)listed_last.n);
    listed_last = event->lsn;
    for (size_t i = 0; i < WRITES && event->op == OP_WRITE; i++)
        if (points[i].lsn == event->lsn.n) {
            if (event->realtime_ns != points[i].time_ns)
                fail_msg("LSN %llu is listed with a time %.3f s before its own", (unsigned long long)event->lsn.n,
                         ((double)points[i].time_ns - (double)event->realtime_ns) / 1e9);
            ++*(size_t *)context;
        }
    return 0;
}

/* A frame of thinned history may hold records of many seconds. */
static void thinned_points_are_listed_with_their_own_time(void **unused)
{
    (void)unused;
    size_t listed = 0;
    struct journal_point tagged;
    segment_records = 256;
    open_journal(true);
    write_history(NS_PER_SECOND / 4, WRITES, false);
    check_ok(journal_tag(journal, "middle", NULL, &tagged, &err));
    write_history(NS_PER_SECOND / 4, WRITES, false);
    now_ns += 120 * NS_PER_SECOND;
    check_ok(journal_maintain(journal, &err));
    listed_last = LSN_MAX;
    check_ok(journal_events(journal, (struct lsn){0}, LSN_MAX, true, check_listed, &listed, NULL, &err));
    assert_in_range(listed, 2, WRITES / 4 + 1);
    check_ok(journal_close(journal, &err));
}

/* Closed in order, and nothing written since: the newest moment is what it was, and the spans of the history are in order. */
static void the_newest_time_is_known_after_an_end_in_order(void **unused)
{
    (void)unused;
    struct journal_status status;
    struct journal_span spans[JOURNAL_MAX_SPANS];
    open_journal(true);
    write_history(NS_PER_SECOND / 4, 7, false);
    check_ok(journal_close(journal, &err));
    open_journal(true);
    journal_status(journal, &status);
    assert_int_equal(status.latest.n, points[WRITES - 1].lsn);
    assert_int_equal(status.latest_realtime_ns, points[WRITES - 1].time_ns);
    size_t count = journal_spans(journal, spans, JOURNAL_MAX_SPANS);
    for (size_t i = 0; i < count; i++)
        assert_true(spans[i].from_ns <= spans[i].to_ns);
    check_ok(journal_close(journal, &err));
}

/* What the ransomware signal remembers is an LSN: once it was thinned away, the last point before it is what is asked for. So it is of a time. */
static void the_last_point_before_an_lsn_that_was_thinned_away(void **unused)
{
    (void)unused;
    struct journal_point found = {0};
    open_journal(true);
    write_history(NS_PER_SECOND / 4, 7, false);
    for (size_t i = 0; i < WRITES; i++) {
        check_ok(journal_resolve_before(journal, (struct lsn){points[i].lsn}, &found, &err));
        assert_int_equal(found.lsn.n, points[i].lsn);
        assert_string_equal(found.note, "");
    }
    now_ns += 120 * NS_PER_SECOND;
    check_ok(journal_maintain(journal, &err));
    size_t thinned = 0;
    for (size_t i = 8; i < WRITES; i++) {
        check_ok(journal_resolve_before(journal, (struct lsn){points[i].lsn}, &found, &err));
        assert_in_range(found.lsn.n, points[i].lsn - 8, points[i].lsn);
        thinned += found.lsn.n != points[i].lsn;
        struct point point = {.kind = POINT_LSN, .lsn = found.lsn};
        assert_int_equal(found.note[0] != '\0', found.lsn.n != points[i].lsn);
        check_ok(journal_resolve(journal, &point, &found, &err)); /* it can be opened */
        point = (struct point){.kind = POINT_TIME, .realtime_ns = points[i].time_ns};
        check_ok(journal_resolve(journal, &point, &found, &err));
        if (found.lsn.n == points[i].lsn)
            assert_string_equal(found.note, "");
        else /* who asks for this time is told that it is not what is opened */
            assert_non_null(strstr(found.note, "thinned"));
    }
    assert_true(thinned > WRITES / 2);
    check_ok(journal_drop(journal, (struct lsn){points[WRITES - 1].lsn}, &err));
    assert_int_equal(journal_resolve_before(journal, (struct lsn){points[1].lsn}, &found, &err), -ERANGE);
    assert_non_null(strstr(err.message, "outside of the history"));
    check_ok(journal_close(journal, &err));
}

/* Segments that are sealed with little in them, thinned one after the other: they do not stay that many, nor the indexes that a
 * view opens, and nothing of them changes. */
static void small_segments_are_joined(void **unused)
{
    (void)unused;
    struct manifest m;
    struct pin pin;
    segment_records = 64;
    open_journal(true);
    write_history(10 * NS_PER_SECOND, 4, true); /* 32 of them, with every point kept */
    now_ns += 120 * NS_PER_SECOND;
    check_ok(journal_maintain(journal, &err));
    check_ok(journal_manifest(journal, &m, &err));
    assert_true(m.segment_count <= 12);
    uint32_t generation = 0;
    for (size_t i = 0; i < m.segment_count; i++)
        generation = m.segments[i].generation > generation ? m.segments[i].generation : generation;
    assert_true(generation > 1); /* joined, not only thinned */
    assert_int_equal(check_all_points(), WRITES);
    size_t sources = 0, count = m.segment_count; /* runs are found although the last number that they cover is gone */
    for (size_t i = 0; i < count; i++) {
        check_ok(journal_pin(journal, "engine-test", m.segments[i].last, true, &err));
        check_ok(pin_load(directory, "engine-test", &pin, &err));
        check_ok(journal_unpin(journal, "engine-test", &err));
        sources += pin.source_count;
        pin_release(&pin);
    }
    assert_true(3 * sources < count * (count + 1));
    manifest_release(&m);
    journal_abandon(journal);
    open_journal(true);
    assert_int_equal(check_all_points(), WRITES);
    check_ok(journal_close(journal, &err));
}

/* A segment whose sealing failed at the manifest alone is in it once, after journaling went on. */
static void a_segment_is_sealed_once(void **unused)
{
    (void)unused;
    struct manifest m;
    open_journal(false);
    write_history(NS_PER_SECOND / 4, 7, false);
    saving_fails = true;
    struct journal_record record = {.op = OP_DISCARD, .flags = RECORD_LAST, .volume = volume, .lba = 1024, .length = 8};
    struct lsn lsn;
    check_ok(journal_append_durable(journal, &record, &lsn, &err));
    assert_true(journal_seal(journal, &err) < 0);
    assert_true(journal_is_suspended(journal));
    saving_fails = false;
    check_ok(journal_resume_prepare(journal, &err));
    check_ok(journal_resume(journal, &err));
    check_ok(journal_append_durable(journal, &record, &lsn, &err));
    check_ok(journal_seal(journal, &err));
    check_ok(journal_manifest(journal, &m, &err));
    for (size_t i = 1; i < m.segment_count; i++)
        if (m.segments[i].number <= m.segments[i - 1].number || m.segments[i].first.n <= m.segments[i - 1].last.n)
            fail_msg("segment %u (from LSN %llu) stands behind segment %u (to LSN %llu)", m.segments[i].number,
                     (unsigned long long)m.segments[i].first.n, m.segments[i - 1].number, (unsigned long long)m.segments[i - 1].last.n);
    manifest_release(&m);
    assert_int_equal(check_all_points(), WRITES);
    journal_abandon(journal);
    open_journal(false);
    assert_int_equal(check_all_points(), WRITES);
    check_ok(journal_close(journal, &err));
}

static size_t count_segment_files(void)
{
    size_t count = 0;
    DIR *d = opendir(directory);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        count += strncmp(e->d_name, "segment-", 8) == 0;
    closedir(d);
    return count;
}

/* J7: history that is dropped while the manifest cannot be saved is dropped later, with its files. */
static void a_drop_that_cannot_be_saved_leaves_nothing_behind(void **unused)
{
    (void)unused;
    struct manifest m;
    open_journal(false);
    write_history(NS_PER_SECOND / 4, 7, false);
    struct lsn target = {points[WRITES / 2].lsn};
    saves_before = 1; /* the new base's target is saved, the manifest without the segments is not */
    saving_fails = true;
    assert_true(journal_drop(journal, target, &err) < 0);
    saving_fails = false;
    check_ok(journal_maintain(journal, &err));
    check_ok(journal_manifest(journal, &m, &err));
    assert_true(m.base.n > points[WRITES / 4].lsn);
    assert_in_range(count_segment_files(), m.segment_count, m.segment_count + 2); /* the active and the next one */
    manifest_release(&m);
    size_t kept = check_all_points();
    assert_true(kept >= WRITES / 2 - 1 && kept < WRITES);
    check_ok(journal_close(journal, &err));
}

struct reading {
    struct payload_reader *reader;
    _Atomic uint32_t next, errors;
};

static void *read_segments(void *context)
{
    struct reading *x = context;
    static _Thread_local char data[4096];
    for (int i = 0; i < 300; i++) {
        struct error e = ERROR_INIT;
        uint32_t segment = atomic_fetch_add(&x->next, 1) % 8 + 2; /* after the one with the volume's creation */
        if (payload_read_blocks(x->reader, segment, 0, 2, data, sizeof data, &e) < 0)
            atomic_fetch_add(&x->errors, 1);
    }
    return NULL;
}

/* More threads than a reader keeps segments open: they wait for each other, and none fails. */
static void many_threads_read_few_segments(void **unused)
{
    (void)unused;
    struct index_cache *cache;
    struct reading x = {.next = 0};
    pthread_t threads[6];
    open_journal(false);
    write_history(NS_PER_SECOND / 4, 7, false);
    check_ok(index_cache_new(1 << 20, &cache, &err));
    check_ok(payload_reader_new(directory, cache, 2, &x.reader, &err));
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_segments, &x), 0);
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(x.errors, 0);
    payload_reader_free(x.reader);
    index_cache_free(cache);
    check_ok(journal_close(journal, &err));
}

static int begin(void **unused)
{
    char template[] = "/dev/shm/tidemark-publish-XXXXXX";
    (void)unused;
    if (!mkdtemp(template))
        return -1;
    memcpy(directory, template, sizeof template);
    snprintf(ring, sizeof ring, "%s.ring", directory);
    now_ns = START_NS;
    segment_records = 8;
    saving_fails = false;
    saves_before = 0;
    memset(points, 0, sizeof points);
    return 0;
}

static int end(void **unused)
{
    (void)unused;
    unlink(ring);
    return io_remove_tree(directory, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(killed_with_an_older_manifest, begin, end),
        cmocka_unit_test_setup_teardown(caught_up, begin, end),
        cmocka_unit_test_setup_teardown(many_threads_read_few_segments, begin, end),
        cmocka_unit_test_setup_teardown(a_segment_is_sealed_once, begin, end),
        cmocka_unit_test_setup_teardown(a_drop_that_cannot_be_saved_leaves_nothing_behind, begin, end),
        cmocka_unit_test_setup_teardown(small_segments_are_joined, begin, end),
        cmocka_unit_test_setup_teardown(the_newest_time_is_known_after_an_end_in_order, begin, end),
        cmocka_unit_test_setup_teardown(thinned_points_are_listed_with_their_own_time, begin, end),
        cmocka_unit_test_setup_teardown(the_last_point_before_an_lsn_that_was_thinned_away, begin, end),
    };
    return cmocka_run_group_tests_name("journal-publish", tests, NULL, NULL);
}
