/* SPDX-License-Identifier: Apache-2.0 */
/* What was begun and did not end in order: a start that fails or is killed, a rewind that fails or whose image cannot be
 * opened, a comparison that cannot begin. What is live stays image(latest) (J4), and nothing is answered that it does not hold. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "journal/journal_internal.h"
#include "journal/pin.h"
#include "journal/ring.h"
#include "journal/verify.h"
#include "volume/group_internal.h"

#define SIZE_BYTES (16u * GROUP_GRAIN_BYTES)
#define GRAIN GROUP_GRAIN_BYTES
#define MAX_PINS JOURNAL_MAX_PINS

static struct stand {
    char directory[64], ring[96], path[96];
    struct journal *journal;
    struct group *group;
    struct block *block;
    _Atomic(const char *) fault; /* the step that fails */
} x;
static struct error err;

static int inject(void *context, const char *step)
{
    const char *fault = x.fault;
    (void)context;
    return fault && strcmp(step, fault) == 0 ? -EIO : 0;
}

static void open_journal(void)
{
    struct journal_options o = {.directory = x.directory,
                                .segment_blocks = 256,
                                .segment_records = 64,
                                .fanout = 2,
                                .ring_path = x.ring,
                                .owner = "test_unclean",
                                .fault = inject};
    check_ok(journal_open(&o, &x.journal, &err));
}

static void add_volume(enum group_ack ack)
{
    check_ok(group_new(x.journal, ack, NULL, &x.group, &err));
    check_ok(group_add_volume(x.group, "v", SIZE_BYTES, x.path, &err));
    x.block = group_volume_block(x.group, 0);
}

static void open_all(void)
{
    open_journal();
    add_volume(GROUP_ACK_WRITE);
    check_ok(group_start(x.group, &err));
}

static void kill_all(void)
{
    group_abandon(x.group);
    journal_abandon(x.journal);
    x.fault = NULL;
}

static int set_up(void **state)
{
    (void)state;
    x = (struct stand){.fault = NULL};
    snprintf(x.directory, sizeof x.directory, "/dev/shm/tidemark-unclean-XXXXXX");
    assert_non_null(mkdtemp(x.directory));
    snprintf(x.ring, sizeof x.ring, "%s.ring", x.directory);
    snprintf(x.path, sizeof x.path, "%s.img", x.directory);
    open_all();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    group_abandon(x.group);
    journal_abandon(x.journal);
    check_ok(io_remove_tree(x.directory, &err));
    unlink(x.ring);
    for (const char **kind = (const char *[]){"stale", "seed", NULL}; *kind; kind++) {
        char live[128];
        snprintf(live, sizeof live, "%s.%s-1", x.ring, *kind);
        unlink(live);
    }
    unlink(x.path);
    return 0;
}

/* ---- content: bytes of one value ---- */

static void put(uint64_t offset, size_t length, char value)
{
    static char data[SIZE_BYTES] __attribute__((aligned(4096)));
    memset(data, value, length);
    check_ok(block_pwrite(x.block, data, length, offset, 0, &err));
}

static void check_bytes(const char *what, const char *data, size_t length, char value)
{
    for (size_t i = 0; i < length; i++)
        if (data[i] != value)
            fail_msg("%s: byte %zu is '%c', not '%c'", what, i, data[i], value);
}

static void check_live(const char *what, uint64_t offset, size_t length, char value)
{
    static char data[SIZE_BYTES] __attribute__((aligned(4096)));
    check_ok(block_pread(x.block, data, length, offset, &err));
    check_bytes(what, data, length, value);
}

static struct lsn latest(void)
{
    struct journal_status s;
    check_ok(journal_sync(x.journal, -1, NULL, &err));
    journal_status(x.journal, &s);
    return s.latest;
}

/* J4. 0, or -ERANGE when the point is refused. */
static int check_latest(const char *what)
{
    static char live[SIZE_BYTES] __attribute__((aligned(4096))), data[SIZE_BYTES] __attribute__((aligned(4096)));
    struct image *image;
    struct lsn lsn = latest();
    struct journal_point found;
    int r = journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = lsn}, &found, &err);
    if (r == -ERANGE)
        return r;
    check_ok(r);
    check_ok(journal_pin(x.journal, "engine-look", lsn, true, &err));
    check_ok(image_open(x.directory, "engine-look", &image, &err));
    check_ok(image_read(image, x.group->volumes[0].id, 0, SIZE_BYTES / 512, data, &err));
    image_free(image);
    check_ok(journal_unpin(x.journal, "engine-look", &err));
    check_ok(block_pread(x.block, live, SIZE_BYTES, 0, &err));
    for (size_t i = 0; i < SIZE_BYTES; i++)
        if (live[i] != data[i])
            fail_msg("%s: J4: byte %zu is '%c', in image(latest) '%c'", what, i, live[i], data[i]);
    return 0;
}

/* Somebody other than the engine: as what a loss of power, or a write cut off by a kill, leaves. */
static void change_backing(uint64_t offset, size_t length, char value)
{
    static char data[SIZE_BYTES] __attribute__((aligned(4096)));
    memset(data, value, length);
    check_ok(block_pwrite(x.group->volumes[0].backing, data, length, offset, 0, &err));
}

/* ---- rewinds ---- */

static struct lsn begin_rewind(void)
{
    struct group_change change;
    put(0, 8 * GRAIN, 'a');
    struct lsn before = latest();
    put(0, 8 * GRAIN, 'b');
    grains_stop(x.group); /* nothing is copied back */
    check_ok(group_rewind(x.group, before, false, &change, &err));
    free(change.volumes);
    check_live("rewound", 0, 8 * GRAIN, 'a');
    return before;
}

/* J8: what was written since the first rewind must not be lost with the second one. */
static void a_rewind_that_fails_changes_nothing_while_another_is_copied_back(void **state)
{
    (void)state;
    struct group_change change;
    struct lsn before = begin_rewind();
    put(2 * GRAIN, GRAIN, 'c');
    put(3 * GRAIN, 4096, 'd');
    x.fault = "write"; /* of the REWIND record */
    assert_true(group_rewind(x.group, before, false, &change, &err) < 0);
    check_live("not copied back", 0, 2 * GRAIN, 'a');
    check_live("written since", 2 * GRAIN, GRAIN, 'c');
    check_live("written since in part", 3 * GRAIN, 4096, 'd');
    check_live("beside it", 3 * GRAIN + 4096, GRAIN - 4096, 'a');
    put(5 * GRAIN, GRAIN, 'e'); /* goes on unjournaled */
    check_ok(block_flush(x.block, &err));
    kill_all();
    open_all(); /* the record may be on the disk: it is void */
    group_settle(x.group);
    check_live("written since, after a kill", 2 * GRAIN, GRAIN, 'c');
    check_live("written since in part, after a kill", 3 * GRAIN, 4096, 'd');
    check_live("not copied back, after a kill", 4 * GRAIN, GRAIN, 'a');
    check_live("unjournaled, after a kill", 5 * GRAIN, GRAIN, 'e');
    assert_int_equal(check_latest("after a rewind that failed"), 0);
}

/* The REWIND record is durable: the rewind has happened, whatever becomes of the image that serves it. */
static void a_rewind_whose_image_cannot_be_opened_has_happened(void **state)
{
    (void)state;
    struct group_change change;
    char name[24];
    put(0, 8 * GRAIN, 'a');
    struct lsn before = latest();
    put(0, 8 * GRAIN, 'b');
    for (unsigned i = 0; i < MAX_PINS - 2; i++) { /* two are left: for target and latest */
        snprintf(name, sizeof name, "engine-x%u", i);
        check_ok(journal_pin(x.journal, name, before, true, &err));
    }
    check_ok(group_rewind(x.group, before, false, &change, &err));
    free(change.volumes);
    static char data[GRAIN] __attribute__((aligned(4096)));
    int r = block_pread(x.block, data, sizeof data, 0, &err);
    if (r == 0) /* or an error: never what was there before */
        check_bytes("after the rewind", data, sizeof data, 'a');
    for (unsigned i = 0; i < MAX_PINS - 2; i++) {
        snprintf(name, sizeof name, "engine-x%u", i);
        check_ok(journal_unpin(x.journal, name, &err));
    }
    grains_wake(x.group);
    group_settle(x.group);
    check_live("after the rewind", 0, 8 * GRAIN, 'a');
    assert_int_equal(check_latest("after the rewind"), 0);
}

/* Who asks would take the backing for what the volume holds. */
static void a_rewind_whose_image_cannot_be_opened_is_told(void **state)
{
    (void)state;
    struct group_change change;
    struct group_status s;
    char name[24];
    put(0, 8 * GRAIN, 'a');
    struct lsn before = latest();
    put(0, 8 * GRAIN, 'b');
    grains_stop(x.group); /* nobody tries again */
    for (unsigned i = 0; i < MAX_PINS - 2; i++) { /* two are left: for target and latest */
        snprintf(name, sizeof name, "engine-x%u", i);
        check_ok(journal_pin(x.journal, name, before, true, &err));
    }
    check_ok(group_rewind(x.group, before, false, &change, &err));
    free(change.volumes);
    group_status(x.group, &s);
    assert_int_equal(s.stale_bytes, 8 * GRAIN);
    assert_true(s.rewinding);
}

struct racer {
    _Atomic bool stop;
    _Atomic int failures;
};

/* Between the REWIND record and the manifest's entry, again and again: whoever opens the newest point sees it rewound, or not yet,
 * but as its LSN says. */
static void *look_at_latest(void *context)
{
    struct racer *racer = context;
    static char data[4096] __attribute__((aligned(4096)));
    while (!racer->stop) {
        struct error e = ERROR_INIT;
        struct journal_status s;
        struct image *image;
        struct manifest m;
        journal_status(x.journal, &s);
        if (journal_pin(x.journal, "engine-race", s.latest, true, &e) < 0)
            continue;
        if (image_open(x.directory, "engine-race", &image, &e) == 0 &&
            image_read(image, x.group->volumes[0].id, 0, 8, data, &e) == 0 && journal_manifest(x.journal, &m, &e) == 0) {
            bool rewound = m.rewind_count && m.rewinds[m.rewind_count - 1].lsn.n == s.latest.n;
            manifest_release(&m);
            if (rewound && data[0] != 'a')
                atomic_fetch_add(&racer->failures, 1);
            image_free(image);
        }
        if (journal_unpin(x.journal, "engine-race", &e) < 0)
            break;
    }
    return NULL;
}

static void a_pin_at_a_rewind_has_the_rewind(void **state)
{
    (void)state;
    struct racer racer = {0};
    pthread_t thread;
    put(0, 4096, 'a');
    struct lsn before = latest();
    assert_int_equal(pthread_create(&thread, NULL, look_at_latest, &racer), 0);
    for (int i = 0; i < 40; i++) {
        struct group_change change;
        put(0, 4096, 'b');
        check_ok(group_rewind(x.group, before, false, &change, &err));
        free(change.volumes);
    }
    racer.stop = true;
    pthread_join(thread, NULL);
    assert_int_equal(racer.failures, 0);
}

/* ---- starts ---- */

/* Writes that the backing has and the journal has not: what a loss of power may leave. */
static void lose_power(void)
{
    put(0, 4096, 'a');
    check_ok(block_flush(x.block, &err));
    change_backing(0, 4096, 'z');
    kill_all();
    unlink(x.ring);
}

/* The comparison is owed until it has begun, whatever ends the start before. */
static void a_comparison_is_owed_after_a_start_that_failed(void **state)
{
    (void)state;
    lose_power();
    open_journal();
    assert_true(journal_recovery(x.journal)->compare);
    add_volume(GROUP_ACK_WRITE);
    group_free(x.group); /* as when another volume cannot be opened */
    (void)!journal_close(x.journal, &err);
    open_all();
    group_settle(x.group);
    check_live("what the disk has", 0, 4096, 'z');
    assert_int_equal(check_latest("after a start that failed"), 0);
}

static void a_comparison_is_owed_after_a_start_that_was_killed(void **state)
{
    (void)state;
    lose_power();
    open_journal();
    add_volume(GROUP_ACK_WRITE);
    kill_all();
    open_all();
    group_settle(x.group);
    assert_int_equal(check_latest("after a start that was killed"), 0);
}

/* The in-flight table: the backing of a record whose write was cut off is read again, also if the first start did not come so far. */
static void in_flight(bool killed)
{
    struct journal_record record = {.op = OP_WRITE, .flags = RECORD_LAST, .volume = x.group->volumes[0].id, .length = 8};
    struct journal_ticket ticket;
    static char data[4096] __attribute__((aligned(4096)));
    put(0, 4096, 'a');
    memset(data, 'b', sizeof data);
    record.payload = data;
    record.payload_bytes = sizeof data;
    check_ok(journal_append(x.journal, &record, &ticket, &err));
    check_ok(journal_wait(x.journal, &ticket, &err)); /* journaled, and the backing has still what was there before */
    kill_all();
    open_journal();
    assert_int_equal(journal_recovery(x.journal)->in_flight_count, 1);
    add_volume(GROUP_ACK_WRITE);
    if (killed) {
        kill_all();
    } else {
        group_free(x.group);
        (void)!journal_close(x.journal, &err);
    }
    open_all();
    group_settle(x.group);
    assert_int_equal(check_latest("with a write in flight"), 0);
}
static void in_flight_writes_are_remembered_after_a_start_that_failed(void **state)
{
    (void)state;
    in_flight(false);
}
static void in_flight_writes_are_remembered_after_a_start_that_was_killed(void **state)
{
    (void)state;
    in_flight(true);
}

/* Mode flush: what was acknowledged is in the ring alone; and a kill that refuses no point goes on refusing none. */
static void kills_in_a_row_lose_nothing_and_refuse_nothing(void **state)
{
    (void)state;
    for (char c = 'a'; c < 'g'; c++) {
        kill_all();
        open_journal();
        assert_false(journal_recovery(x.journal)->compare);
        add_volume(GROUP_ACK_FLUSH);
        check_ok(group_start(x.group, &err));
        put((uint64_t)(c - 'a') * 4096, 4096, c);
    }
    kill_all();
    open_all();
    group_settle(x.group);
    for (char c = 'a'; c < 'g'; c++)
        check_live("after kills in a row", (uint64_t)(c - 'a') * 4096, 4096, c);
    assert_int_equal(check_latest("after kills in a row"), 0);
    struct manifest m;
    check_ok(journal_manifest(x.journal, &m, &err));
    assert_int_equal(m.refused_count, 0);
    manifest_release(&m);
}

/* A killed process is gone before the writes that the kernel has of it are. They keep its open files, and the locks of those. */
struct kernel {
    int fds[4];
    size_t count;
    _Atomic bool ended;
};

static void *end_writes(void *context)
{
    struct kernel *k = context;
    usleep(200000);
    k->ended = true;
    for (size_t i = 0; i < k->count; i++)
        close(k->fds[i]);
    return NULL;
}

static void late_writes(bool of_backing)
{
    struct kernel k = {.count = 0};
    pthread_t thread;
    put(0, 4096, 'a');
    if (of_backing) {
        k.fds[k.count++] = dup(block_file_fd(x.group->volumes[0].backing));
    } else { /* of the segments */
        char target[256], link[64];
        pthread_mutex_lock(&x.journal->mutex);
        while (x.journal->ready_fd < 0) /* no other thread opens files then */
            pthread_cond_wait(&x.journal->sealed, &x.journal->mutex);
        pthread_mutex_unlock(&x.journal->mutex);
        for (int fd = 3; fd < 256 && k.count < 4; fd++) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            ssize_t n = readlink(link, target, sizeof target - 1);
            target[n > 0 ? n : 0] = '\0';
            if (strstr(target, x.directory) && strstr(target, "/segment-"))
                k.fds[k.count++] = dup(fd);
        }
    }
    assert_true(k.count > 0);
    kill_all();
    assert_int_equal(pthread_create(&thread, NULL, end_writes, &k), 0);
    open_all();
    assert_true(k.ended);
    pthread_join(thread, NULL);
    assert_int_equal(check_latest("after a kill"), 0);
}
static void a_start_waits_for_the_last_writes_to_a_backing(void **state)
{
    (void)state;
    late_writes(true);
}
static void a_start_waits_for_the_last_writes_to_a_segment(void **state)
{
    (void)state;
    late_writes(false);
}

/* A backing that is gone is no new volume. */
static void a_missing_backing_is_not_made_anew(void **state)
{
    (void)state;
    put(0, 4096, 'a');
    group_free(x.group);
    check_ok(journal_close(x.journal, &err));
    assert_int_equal(unlink(x.path), 0);
    open_journal();
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
    check_error(group_add_volume(x.group, "v", SIZE_BYTES, x.path, &err), -ENOENT, "is gone");
    assert_int_not_equal(access(x.path, F_OK), 0);
}

/* One that was put in its place by hand is compared: what is live is image(latest), what was is in the history. */
static void another_backing_is_compared(void **state)
{
    static char data[4096];
    (void)state;
    put(0, 4096, 'a');
    put(GRAIN, 4096, 'b');
    struct lsn then = latest();
    for (int round = 0; round < 2; round++) {
        bool replaced = round == 1;
        group_free(x.group);
        check_ok(journal_close(x.journal, &err));
        if (replaced) {
            char kept[112];
            snprintf(kept, sizeof kept, "%s.old", x.path); /* so that its inode is not used again */
            assert_int_equal(rename(x.path, kept), 0);
            FILE *f = fopen(x.path, "w");
            assert_true(f && ftruncate(fileno(f), SIZE_BYTES) == 0 && fclose(f) == 0);
            unlink(kept);
        }
        open_all();
        struct group_status s;
        group_status(x.group, &s);
        assert_int_equal(s.resync_total_bytes != 0, replaced);
        group_settle(x.group);
        check_live(replaced ? "another backing" : "the same backing", 0, 4096, replaced ? '\0' : 'a');
        assert_int_equal(check_latest("after a start"), 0);
    }
    struct image *image;
    check_ok(journal_pin(x.journal, "engine-then", then, true, &err));
    check_ok(image_open(x.directory, "engine-then", &image, &err));
    check_ok(image_read(image, x.group->volumes[0].id, GRAIN / 512, 8, data, &err));
    check_bytes("what was there", data, sizeof data, 'b');
    image_free(image);
    check_ok(journal_unpin(x.journal, "engine-then", &err));
}

/* A rewind whose list of grains is damaged is copied back whole, and told; nothing of it is forgotten. */
static void a_damaged_list_of_grains_is_made_up_for(void **state)
{
    (void)state;
    char path[160], kept[176];
    struct group_change change;
    struct group_status s;
    snprintf(path, sizeof path, "%s/rewind.pending", x.directory);
    snprintf(kept, sizeof kept, "%s.damaged", path);
    put(0, 4 * GRAIN, 'a');
    put(6 * GRAIN, GRAIN, 'x');
    struct lsn then = latest();
    put(0, 4 * GRAIN, 'b');
    latest();
    uint32_t slot = range_lock_take(&x.group->ranges, x.group->volumes[0].id, 0, GROUP_GRAIN_SECTORS); /* nothing is copied back */
    check_ok(group_rewind(x.group, then, false, &change, &err));
    free(change.volumes);
    range_lock_drop(&x.group->ranges, slot);
    group_abandon(x.group); /* some of it may have been */
    journal_abandon(x.journal);
    for (int copy = 0; copy < 2; copy++) {
        char name[176];
        snprintf(name, sizeof name, "%s%s", path, copy ? ".copy" : "");
        FILE *f = fopen(name, "r+");
        if (!f) { /* all of it was: a kill had left the list of before */
            f = fopen(name, "w");
            assert_non_null(f);
        }
        assert_true(fseek(f, 20, SEEK_SET) == 0 && fputs("damage", f) >= 0 && fclose(f) == 0);
    }
    open_all();
    check_live("while it is copied back", 0, 4 * GRAIN, 'a');
    check_live("what was not touched", 6 * GRAIN, GRAIN, 'x');
    assert_int_equal(access(kept, F_OK), 0);
    group_settle(x.group);
    group_status(x.group, &s);
    assert_int_equal(s.stale_bytes, 0);
    check_live("afterwards", 0, 4 * GRAIN, 'a');
    assert_int_equal(check_latest("afterwards"), 0);
    assert_int_not_equal(access(path, F_OK), 0);
    unlink(kept);
}

/* Where the backings may hold what the journal lacks neither is taken for the other: it says how to go on. */
static void a_damaged_list_is_not_made_up_for_after_a_gap(void **state)
{
    (void)state;
    char path[160];
    snprintf(path, sizeof path, "%s/rewind.pending", x.directory);
    put(0, 4096, 'a');
    journal_suspend(x.journal, "a test", false);
    kill_all();
    FILE *f = fopen(path, "w");
    assert_true(f && fputs("damage", f) >= 0 && fclose(f) == 0);
    open_journal();
    add_volume(GROUP_ACK_WRITE);
    check_error(group_start(x.group, &err), -EBADMSG, "move the file away");
    assert_int_equal(access(path, F_OK), 0);
    kill_all();
    assert_int_equal(unlink(path), 0);
    open_all();
    group_settle(x.group);
    check_live("what went on unjournaled", 0, 4096, 'a');
}

static void count_damage(void *context, const struct verify_damage *damage)
{
    (void)damage;
    *(unsigned *)context += 1;
}
static void no_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)context;
    (void)done_bytes;
    (void)total_bytes;
}
static unsigned damages(void)
{
    unsigned count = 0;
    struct verify_summary summary;
    const struct verify_report report = {count_damage, no_progress, &count};
    (void)!journal_verify(x.directory, &report, &summary, &err);
    return count;
}

static void spoil(const char *path, int how)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    if (how == 0) {
        assert_int_equal(unlink(path), 0);
        return;
    }
    off_t at = how == 1 ? 20 : st.st_size - 4000; /* in the header; in the last page */
    char byte = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && pread(fd, &byte, 1, at) == 1);
    byte ^= 1;
    assert_true(pwrite(fd, &byte, 1, at) == 1 && (how != 3 || ftruncate(fd, st.st_size / 2) == 0));
    close(fd);
}

/* Which blocks a rewind has changed is there twice: either is enough, and the next start makes both whole. */
static void a_rewind_is_known_by_either_of_two_files(void **state)
{
    (void)state;
    struct manifest m;
    char name[JOURNAL_FILE_BYTES], paths[2][160];
    begin_rewind();
    check_ok(journal_manifest(x.journal, &m, &err));
    assert_int_equal(m.rewind_count, 1);
    snprintf(paths[0], sizeof paths[0], "%s/%s", x.directory, journal_rewind_file(m.rewinds[0].lsn, name));
    snprintf(paths[1], sizeof paths[1], "%s/%s", x.directory, journal_rewind_copy_file(m.rewinds[0].lsn, name));
    manifest_release(&m);
    for (int i = 0; i < 8; i++) {
        kill_all();
        spoil(paths[i % 2], i / 2);
        if (i / 2 || i % 2 == 0) /* a copy that is missing is made without a word */
            assert_true(damages() > 0);
        open_all();
        assert_int_equal(damages(), 0);
        check_live("rewound", 0, 8 * GRAIN, 'a');
        assert_int_equal(check_latest("with one of the two"), 0);
    }
    kill_all();
    spoil(paths[0], 2);
    spoil(paths[1], 2);
    open_all();
    assert_int_equal(damages(), 2);
}

/* A copy that could not be made is made by the next start; with the rewind it goes. */
static void a_rewind_without_a_copy_gets_one(void **state)
{
    (void)state;
    struct manifest m;
    char name[JOURNAL_FILE_BYTES], path[160];
    x.fault = "copy rewind";
    begin_rewind();
    x.fault = NULL;
    check_ok(journal_manifest(x.journal, &m, &err));
    snprintf(path, sizeof path, "%s/%s", x.directory, journal_rewind_copy_file(m.rewinds[0].lsn, name));
    manifest_release(&m);
    assert_int_not_equal(access(path, F_OK), 0);
    kill_all();
    open_all();
    assert_int_equal(access(path, F_OK), 0);
    group_settle(x.group);
    check_ok(journal_seal(x.journal, &err));
    struct lsn last = latest();
    put(0, 4096, 'c');
    check_ok(journal_seal(x.journal, &err));
    check_ok(journal_drop(x.journal, last, &err));
    assert_int_not_equal(access(path, F_OK), 0);
}

/* A volume grows once, whatever fails in between: what could not be saved is not taken for done. */
static void a_growth_that_was_not_saved_is_done_again(void **state)
{
    (void)state;
    struct manifest m;
    x.fault = "save";
    assert_int_equal(journal_resize(x.journal, x.group->volumes[0].id, 2 * SIZE_BYTES, &err), -EIO);
    x.fault = NULL;
    check_ok(journal_manifest(x.journal, &m, &err));
    assert_int_equal(m.volumes[0].size_bytes, SIZE_BYTES);
    assert_int_equal(m.resize_count, 0);
    manifest_release(&m);
    check_ok(journal_resize(x.journal, x.group->volumes[0].id, 2 * SIZE_BYTES, &err));
    check_ok(journal_resize(x.journal, x.group->volumes[0].id, 2 * SIZE_BYTES, &err)); /* nothing is left to do */
    check_ok(journal_manifest(x.journal, &m, &err));
    assert_int_equal(m.volumes[0].size_bytes, 2 * SIZE_BYTES);
    assert_int_equal(m.resize_count, 1);
    manifest_release(&m);
}

/* A frame ring that others could write is not believed. */
static void a_ring_of_somebody_else_is_refused(void **state)
{
    (void)state;
    struct ring ring;
    struct uuid id = {{1}};
    char path[128];
    snprintf(path, sizeof path, "%s.other", x.ring);
    check_ok(ring_open(&ring, path, &id, &err));
    ring_release(&ring, false);
    assert_int_equal(chmod(path, 0620), 0);
    check_error(ring_open(&ring, path, &id, &err), -EPERM, "somebody else");
    assert_int_equal(chmod(path, 0600), 0);
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 65534, 65534), 0);
        check_error(ring_open(&ring, path, &id, &err), -EPERM, "user 65534");
        assert_int_equal(chown(path, 0, 0), 0);
    }
    check_ok(ring_open(&ring, path, &id, &err));
    ring_release(&ring, true);
}

/* ---- pins ---- */

static void pin_file(const char *file, char path[160])
{
    snprintf(path, 160, "%s/pins/%s", x.directory, file);
}
static bool has_pin_file(const char *file)
{
    char path[160];
    pin_file(file, path);
    return access(path, F_OK) == 0;
}
static int make_pin_file(const char *file)
{
    char path[160];
    pin_file(file, path);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

/* Of pins that were being made or removed when the engine was killed. Those that are there keep all they have, and who is about to ask for
 * one keeps its lock. */
static void what_is_left_of_a_pin_goes_with_the_next_start(void **state)
{
    static const char *const left[] = {"copy-2.7.idx", "copy-2.7.idx.tmp", "copy-2.tmp", "copy-11.7.idx", "v-9.3.idx", "v-1.3.idx", "v-9.revoked", "v-9.lock", "engine-5.1.idx"};
    char tail[64], name[160];
    struct journal_pin_info pins[8];
    (void)state;
    put(0, 4096, 'a');
    struct lsn lsn = latest();
    int lock = make_pin_file("v-12.lock");
    assert_int_equal(flock(lock, LOCK_EX | LOCK_NB), 0);
    check_ok(journal_pin(x.journal, "copy-1", lsn, false, &err));
    check_ok(journal_pin(x.journal, "v-12", lsn, false, &err));
    snprintf(tail, sizeof tail, "%u.idx", x.journal->tails[x.journal->active].info.number);
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        close(make_pin_file(left[i]));
    kill_all();
    open_all();
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        if (has_pin_file(left[i]))
            fail_msg("%s is left", left[i]);
    assert_int_equal(journal_pins(x.journal, pins, 8), 2);
    for (size_t i = 0; i < 2; i++) {
        struct image *image;
        assert_true(has_pin_file(pins[i].name));
        snprintf(name, sizeof name, "%s.%s", pins[i].name, tail);
        assert_true(has_pin_file(name));
        check_ok(image_open(x.directory, pins[i].name, &image, &err));
        image_free(image);
    }
    assert_true(has_pin_file("v-12.lock"));
    close(lock);
    check_ok(journal_unpin(x.journal, "copy-1", &err));
    check_ok(journal_unpin(x.journal, "v-12", &err));
}

/* ---- comparisons ---- */

/* Back to protection without a restart, although the comparison could not begin at the first attempt. */
static void a_comparison_that_cannot_begin_is_tried_again(void **state)
{
    (void)state;
    char name[24];
    struct grain_map *unverified = &x.group->volumes[0].unverified;
    put(0, 4096, 'a');
    struct lsn before = latest();
    for (unsigned i = 0; i < MAX_PINS; i++) {
        snprintf(name, sizeof name, "engine-x%u", i);
        check_ok(journal_pin(x.journal, name, before, true, &err));
    }
    for (uint64_t grain = 1; grain < 3; grain++) /* of a comparison that was not done */
        grain_map_set(unverified, grain);
    x.fault = "write";
    put(0, 4096, 'b');
    x.fault = NULL;
    put(4096, 4096, 'c');
    while (journal_is_suspended(x.journal)) {
        grains_wake(x.group);
        usleep(1000);
    }
    put(8192, 4096, 'd');
    put(GRAIN + 4096, 4096, 'e');
    assert_true(grain_map_test(unverified, 1));
    put(2 * GRAIN, GRAIN, 'f');
    assert_false(grain_map_test(unverified, 2));
    for (unsigned i = 0; i < MAX_PINS; i++) {
        snprintf(name, sizeof name, "engine-x%u", i);
        check_ok(journal_unpin(x.journal, name, &err));
    }
    group_settle(x.group);
    assert_int_equal(check_latest("after the gap"), 0);
}

/* What is journaled before the comparison has begun lacks what was not journaled: it is no point, also after a kill that comes before that
 * could be saved at first. */
static void what_is_journaled_again_is_refused_from_the_first_on(void **state)
{
    (void)state;
    struct journal_status status;
    struct journal_point found;
    grains_stop(x.group); /* it is resumed here */
    put(0, 4096, 'a');
    struct lsn before = latest();
    for (int saved = 0; saved < 2; saved++) {
        x.fault = "write";
        put(4096, 4096, 'b');
        put(8192, 4096, 'c');
        x.fault = NULL;
        check_ok(journal_resume_prepare(x.journal, &err));
        x.fault = saved ? NULL : "save";
        assert_int_equal(group_resume(x.group, &err) == 0, saved);
        put(12288, 4096, 'd');
        journal_status(x.journal, &status);
        assert_true(!saved || status.latest.n > before.n + 1);
        kill_all();
        open_all();
        group_settle(x.group);
        for (struct lsn lsn = {before.n + 1}; lsn.n <= status.latest.n; lsn.n++)
            check_error(journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = lsn}, &found, &err), -ERANGE, "");
        check_ok(journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = before}, &found, &err));
        assert_int_equal(check_latest("compared"), 0);
        before = latest();
        grains_stop(x.group);
    }
}

/* Of what a sealed segment holds. */
static void damage_block_of(char value)
{
    static char block[4096], wanted[4096];
    char name[JOURNAL_FILE_BYTES], path[160];
    memset(wanted, value, sizeof wanted);
    snprintf(path, sizeof path, "%s/%s", x.directory, journal_segment_file(1, name));
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    do
        assert_int_equal(fread(block, sizeof block, 1, f), 1);
    while (memcmp(block, wanted, sizeof block) != 0);
    assert_true(fseek(f, -1, SEEK_CUR) == 0 && fputc('?', f) == '?' && fclose(f) == 0);
}

static void ask_for_a_comparison(void)
{
    char path[160];
    snprintf(path, sizeof path, "%s/" GROUP_COMPARE_FILE, x.directory);
    FILE *f = fopen(path, "w");
    assert_true(f && fclose(f) == 0);
}

/* What of a rewind cannot be copied back does not keep points refused. */
static void a_comparison_ends_although_a_block_cannot_be_copied_back(void **state)
{
    (void)state;
    struct group_status s;
    struct journal_point found;
    begin_rewind();
    for (int i = 0; i < 2; i++)
        put(8 * GRAIN, 8 * GRAIN, 'x'); /* what holds `a` is sealed */
    latest();
    kill_all();
    damage_block_of('a');
    ask_for_a_comparison();
    open_all();
    unsigned waited_ms = 0;
    do {
        usleep(1000);
        group_status(x.group, &s);
    } while (s.resyncing && ++waited_ms < 20000);
    assert_false(s.resyncing);
    assert_int_equal(s.stale_bytes, GRAIN);
    assert_true(strstr(s.copy_trouble, "damage") != NULL);
    check_ok(journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = latest()}, &found, &err));
}

/* Views live on when an engine is killed, and however many they are, it starts: it needs pins of its own. */
static void as_many_views_as_may_be_leave_the_engine_its_pins(void **state)
{
    (void)state;
    char name[24], file[32];
    int locks[JOURNAL_MAX_PINS + 1];
    struct group_change change;
    unsigned count = 0;
    int r = 0;
    put(0, GRAIN, 'a');
    struct lsn before = latest();
    for (; r == 0; count += r == 0) {
        snprintf(name, sizeof name, "v-%u", count);
        snprintf(file, sizeof file, "%s.lock", name);
        locks[count] = make_pin_file(file);
        assert_int_equal(flock(locks[count], LOCK_EX | LOCK_NB), 0);
        r = journal_pin(x.journal, name, before, false, &err);
    }
    close(locks[count]);
    check_error(r, -EMFILE, "more than 64 views");
    assert_int_equal(count, 64);
    put(0, GRAIN, 'b');
    grains_stop(x.group); /* nothing is copied back */
    if (group_rewind(x.group, before, false, &change, &err) == 0)
        free(change.volumes);
    kill_all();
    ask_for_a_comparison();
    open_all();
    group_settle(x.group);
    check_live("rewound", 0, GRAIN, 'a');
    assert_int_equal(check_latest("after the kill"), 0);
    for (unsigned i = 0; i < count; i++)
        close(locks[i]);
}

/* A diff of a long history takes a while. */
static struct {
    sem_t begun, may_end;
    _Atomic bool waits;
    struct lsn from, to;
} diff;

int __real_image_changes(struct image *image, struct lsn low, struct extent_stream **ret, struct error *e);
int __wrap_image_changes(struct image *image, struct lsn low, struct extent_stream **ret, struct error *e);
int __wrap_image_changes(struct image *image, struct lsn low, struct extent_stream **ret, struct error *e)
{
    if (diff.waits) {
        sem_post(&diff.begun);
        sem_wait(&diff.may_end);
    }
    return __real_image_changes(image, low, ret, e);
}

static void *diff_main(void *context)
{
    struct error why = ERROR_INIT;
    struct group_change *change = context;
    return group_diff(x.group, diff.from, diff.to, change, &why) < 0 ? context : NULL;
}

static void journaling_goes_on_while_a_diff_is_made(void **state)
{
    (void)state;
    pthread_t thread;
    struct group_change change;
    void *failed;
    diff.from = latest();
    put(0, 4096, 'a');
    diff.to = latest();
    sem_init(&diff.begun, 0, 0);
    sem_init(&diff.may_end, 0, 0);
    diff.waits = true;
    assert_int_equal(pthread_create(&thread, NULL, diff_main, &change), 0);
    sem_wait(&diff.begun);
    journal_suspend(x.journal, "a test", false);
    unsigned waited_ms = 0;
    for (; journal_is_suspended(x.journal) && waited_ms < 60000; waited_ms++) {
        grains_wake(x.group);
        usleep(1000);
    }
    diff.waits = false;
    sem_post(&diff.may_end);
    pthread_join(thread, &failed);
    assert_null(failed);
    assert_true(waited_ms < 60000);
    assert_int_equal(change.changed_bytes, 4096);
    free(change.volumes);
    group_settle(x.group);
    assert_int_equal(check_latest("afterwards"), 0);
}

/* A process kill takes no acknowledged write, also where it went unjournaled over what a rewind had not copied back. */
static void an_unjournaled_write_over_a_rewind_survives_a_kill(void **state)
{
    (void)state;
    begin_rewind();
    x.fault = "write";
    put(2 * GRAIN, GRAIN, 'c');
    put(3 * GRAIN, 4096, 'd');
    kill_all();
    open_all();
    group_settle(x.group);
    check_live("whole", 2 * GRAIN, GRAIN, 'c');
    check_live("in part", 3 * GRAIN, 4096, 'd');
    check_live("beside it", 3 * GRAIN + 4096, GRAIN - 4096, 'a');
    assert_int_equal(check_latest("after the kill"), 0);
}

/* A rewind that could not be begun for want of room is followed by writes that go unjournaled, over what the one before it has not copied back. */
static void an_unjournaled_write_after_a_rewind_that_failed_survives_a_kill(void **state)
{
    (void)state;
    struct group_change change;
    struct group_status s;
    struct lsn before = begin_rewind();
    group_status(x.group, &s);
    struct lsn first = s.rewind_lsn;
    put(2 * GRAIN, GRAIN, 'c');
    x.fault = "pending";
    assert_true(group_rewind(x.group, before, false, &change, &err) < 0);
    group_status(x.group, &s);
    struct lsn shown = s.rewind_lsn;
    x.fault = "write";
    put(6 * GRAIN, GRAIN, 'f'); /* its frame is on the disk all the same */
    put(5 * GRAIN, GRAIN, 'e');
    kill_all();
    open_all();
    group_settle(x.group);
    check_live("not copied back", 0, 2 * GRAIN, 'a');
    check_live("written since", 2 * GRAIN, GRAIN, 'c');
    check_live("unjournaled", 5 * GRAIN, GRAIN, 'e');
    assert_int_equal(check_latest("after the kill"), 0);
    assert_int_equal(shown.n, first.n);
}

static void lose_shared_memory(void)
{
    char live[120];
    unlink(x.ring);
    snprintf(live, sizeof live, "%s.stale-1", x.ring);
    unlink(live);
}

/* `c` went over the third grain, while the rewind was being copied back. */
static void flush_and_lose_power(void)
{
    check_ok(block_flush(x.block, &err));
    kill_all();
    lose_shared_memory();
    open_all();
    group_settle(x.group);
    check_live("flushed", 2 * GRAIN, GRAIN, 'c');
    check_live("not copied back", 3 * GRAIN, GRAIN, 'a');
    assert_int_equal(check_latest("after the loss of power"), 0);
}

/* `c` goes unjournaled over what a rewind has not copied back. */
static struct lsn put_unjournaled(void)
{
    struct lsn before = begin_rewind();
    x.fault = "write";
    put(6 * GRAIN, GRAIN, 'f'); /* its frame is on the disk all the same */
    put(2 * GRAIN, GRAIN, 'c');
    return before;
}

/* The journal's disk may be full, which is why they go unjournaled: no reason for a flush to fail. */
static void a_flush_needs_no_room_beside_the_journal(void **state)
{
    (void)state;
    char name[120];
    put_unjournaled();
    snprintf(name, sizeof name, "%s/rewind.pending.tmp", x.directory); /* nothing can be made there */
    assert_return_code(mkdir(name, 0700), errno);
    flush_and_lose_power();
}

/* That is flushed, on a journal's disk that fails altogether. */
static struct lsn flush_beside(char rewinding[112])
{
    struct lsn before = put_unjournaled();
    snprintf(rewinding, 112, "%s.rewinding", x.path);
    x.fault = "pending";
    check_ok(block_flush(x.block, &err));
    assert_int_equal(access(rewinding, F_OK), 0);
    return before;
}

/* The journal's disk may fail altogether, which is no reason for a flush to fail, nor to lose what it covered. */
static void a_flush_needs_nothing_of_the_journal(void **state)
{
    (void)state;
    char rewinding[112];
    flush_beside(rewinding);
    put(4 * GRAIN, GRAIN, 'd'); /* more of it later */
    check_ok(block_flush(x.block, &err));
    kill_all();
    lose_shared_memory();
    open_all();
    group_settle(x.group);
    check_live("flushed", 2 * GRAIN, GRAIN, 'c');
    check_live("not copied back", 3 * GRAIN, GRAIN, 'a');
    check_live("flushed later", 4 * GRAIN, GRAIN, 'd');
    assert_int_equal(check_latest("after the loss of power"), 0);
    assert_int_not_equal(access(rewinding, F_OK), 0);
}

/* What was copied back of one rewind says nothing of the next one. */
static void what_is_kept_beside_a_backing_counts_for_its_rewind_alone(void **state)
{
    (void)state;
    char rewinding[112], kept[128];
    struct group_change change;
    struct lsn before = flush_beside(rewinding);
    snprintf(kept, sizeof kept, "%s.kept", rewinding);
    assert_return_code(rename(rewinding, kept), errno);
    kill_all();
    open_all();
    group_settle(x.group);
    put(0, 8 * GRAIN, 'g');
    latest();
    grains_stop(x.group); /* nothing is copied back */
    check_ok(group_rewind(x.group, before, false, &change, &err));
    free(change.volumes);
    assert_return_code(rename(kept, rewinding), errno);
    kill_all();
    lose_shared_memory();
    open_all();
    check_live("rewound", 0, 8 * GRAIN, 'a');
    group_settle(x.group);
    check_live("copied back", 0, 8 * GRAIN, 'a');
    assert_int_not_equal(access(rewinding, F_OK), 0);
}

/* It says what was flushed: not passed over in silence. */
static void a_damaged_list_beside_a_backing_is_told(void **state)
{
    (void)state;
    char rewinding[112];
    flush_beside(rewinding);
    kill_all();
    lose_shared_memory();
    FILE *f = fopen(rewinding, "r+");
    assert_true(f && fseek(f, 20, SEEK_SET) == 0 && fputs("damage", f) >= 0 && fclose(f) == 0);
    open_journal();
    add_volume(GROUP_ACK_WRITE);
    check_error(group_start(x.group, &err), -EBADMSG, "move the file away");
    kill_all();
    assert_return_code(unlink(rewinding), errno);
    open_all();
    check_live("what the journal says", 2 * GRAIN, GRAIN, 'a');
}

/* What a flush that the journal has answered has made durable, a loss of power leaves: also what went unjournaled before, until it is compared. */
static void an_unjournaled_write_over_a_rewind_survives_a_loss_of_power_once_journaling_goes_on(void **state)
{
    (void)state;
    put_unjournaled();
    x.fault = NULL;
    check_ok(group_resume(x.group, &err));
    flush_and_lose_power();
}

/* ---- adopted volumes ---- */

/* A before-image that could not be kept is not forgotten by a kill: the points that lack it are refused. */
static void a_lost_before_image_is_remembered_after_a_kill(void **state)
{
    (void)state;
    static char old[4096] __attribute__((aligned(4096)));
    struct journal_point found;
    put(0, SIZE_BYTES / 2, 'o'); /* what the image holds that is adopted */
    put(SIZE_BYTES / 2, SIZE_BYTES / 2, 'o');
    kill_all();
    unlink(x.ring);
    check_ok(io_remove_tree(x.directory, &err));
    check_ok(io_mkdirs(x.directory, 0700, &err));
    for (int round = 0; round < 3; round++) {
        open_journal();
        check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
        group_set_seed_speed(x.group, 1); /* grain 0 and no more */
        check_ok(group_adopt_volume(x.group, "v", SIZE_BYTES, x.path, &err));
        x.block = group_volume_block(x.group, 0);
        if (round == 1) { /* a start that is killed before it has refused them */
            kill_all();
            continue;
        }
        check_ok(group_start(x.group, &err));
        if (round == 2)
            break;
        put(GRAIN, 4096, 'a');
        found.lsn = latest();
        x.fault = "seed";
        put(5 * GRAIN, 4096, 'b');
        kill_all();
    }
    group_settle(x.group);
    check_live("written without its before-image", 5 * GRAIN, 4096, 'b');
    assert_int_equal(check_latest("seeded"), 0);
    struct journal_point asked;
    int r = journal_resolve(x.journal, &(struct point){.kind = POINT_LSN, .lsn = found.lsn}, &asked, &err);
    if (r == 0) { /* then it has to be right */
        struct image *image;
        check_ok(journal_pin(x.journal, "engine-look", found.lsn, true, &err));
        check_ok(image_open(x.directory, "engine-look", &image, &err));
        check_ok(image_read(image, x.group->volumes[0].id, 5 * GRAIN / 512, 8, old, &err));
        check_bytes("before the lost before-image", old, 4096, 'o');
        image_free(image);
        check_ok(journal_unpin(x.journal, "engine-look", &err));
    } else {
        assert_int_equal(r, -ERANGE);
    }
}

/* Beside the ring anybody can make files: a link there leads nowhere, and a map that others can write is not believed. */
static void a_seed_map_of_somebody_else_is_refused(void **state)
{
    (void)state;
    char map[160], victim[160];
    struct stat st;
    kill_all();
    unlink(x.ring);
    check_ok(io_remove_tree(x.directory, &err));
    check_ok(io_mkdirs(x.directory, 0700, &err));
    snprintf(map, sizeof map, "%s.seed-1", x.ring);
    snprintf(victim, sizeof victim, "%s.victim", x.ring);
    check_ok(io_replace_file(victim, "x", 1, 0600, &err));
    assert_int_equal(symlink(victim, map), 0);
    open_journal();
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
    check_ok(group_adopt_volume(x.group, "v", SIZE_BYTES, x.path, &err));
    check_error(group_start(x.group, &err), -ELOOP, map);
    err = ERROR_INIT;
    assert_int_equal(stat(victim, &st), 0);
    assert_int_equal(st.st_size, 1);
    unlink(map);
    unlink(victim);
    kill_all();
    open_journal();
    check_ok(group_new(x.journal, GROUP_ACK_WRITE, NULL, &x.group, &err));
    check_ok(group_adopt_volume(x.group, "v", SIZE_BYTES, x.path, &err));
    x.block = group_volume_block(x.group, 0);
    check_ok(group_start(x.group, &err));
    group_settle(x.group);
    check_live("adopted", 0, 4096, 0);
}

/* ---- the newest point ---- */

static void *write_on(void *context)
{
    struct racer *racer = context;
    static char data[65536] __attribute__((aligned(4096)));
    while (!racer->stop) {
        struct error e = ERROR_INIT;
        if (block_pwrite(x.block, data, sizeof data, GRAIN, 0, &e) < 0)
            atomic_fetch_add(&racer->failures, 1);
    }
    return NULL;
}

/* Frames that are on their way to the disk are no part of the history yet. */
static void the_newest_point_is_found_while_others_write(void **state)
{
    (void)state;
    struct racer racer = {0};
    pthread_t threads[2];
    put(0, 4096, 'a');
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_on, &racer), 0);
    for (int i = 0; i < 300; i++) {
        struct journal_point found;
        check_ok(journal_resolve(x.journal, &(struct point){.kind = POINT_LATEST}, &found, &err));
    }
    racer.stop = true;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(racer.failures, 0);
}

static void the_newest_point_of_a_suspended_journal_is_what_was_written(void **state)
{
    (void)state;
    struct journal_point found;
    put(0, 4096, 'a');
    struct lsn before = latest();
    grains_stop(x.group); /* it is not resumed */
    x.fault = "write";
    put(4096, 4096, 'b');
    assert_true(journal_is_suspended(x.journal));
    check_ok(journal_resolve(x.journal, &(struct point){.kind = POINT_LATEST}, &found, &err));
    assert_int_equal(found.lsn.n, before.n);
}

int main(int argc, char **argv)
{
#define UNCLEAN(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        UNCLEAN(a_rewind_that_fails_changes_nothing_while_another_is_copied_back),
        UNCLEAN(a_rewind_whose_image_cannot_be_opened_has_happened),
        UNCLEAN(a_rewind_whose_image_cannot_be_opened_is_told),
        UNCLEAN(a_pin_at_a_rewind_has_the_rewind),
        UNCLEAN(a_comparison_is_owed_after_a_start_that_failed),
        UNCLEAN(a_comparison_is_owed_after_a_start_that_was_killed),
        UNCLEAN(in_flight_writes_are_remembered_after_a_start_that_failed),
        UNCLEAN(in_flight_writes_are_remembered_after_a_start_that_was_killed),
        UNCLEAN(kills_in_a_row_lose_nothing_and_refuse_nothing),
        UNCLEAN(a_start_waits_for_the_last_writes_to_a_backing),
        UNCLEAN(a_start_waits_for_the_last_writes_to_a_segment),
        UNCLEAN(a_missing_backing_is_not_made_anew),
        UNCLEAN(another_backing_is_compared),
        UNCLEAN(a_damaged_list_of_grains_is_made_up_for),
        UNCLEAN(a_damaged_list_is_not_made_up_for_after_a_gap),
        UNCLEAN(a_rewind_is_known_by_either_of_two_files),
        UNCLEAN(a_rewind_without_a_copy_gets_one),
        UNCLEAN(a_growth_that_was_not_saved_is_done_again),
        UNCLEAN(a_ring_of_somebody_else_is_refused),
        UNCLEAN(what_is_left_of_a_pin_goes_with_the_next_start),
        UNCLEAN(a_comparison_that_cannot_begin_is_tried_again),
        UNCLEAN(what_is_journaled_again_is_refused_from_the_first_on),
        UNCLEAN(a_comparison_ends_although_a_block_cannot_be_copied_back),
        UNCLEAN(as_many_views_as_may_be_leave_the_engine_its_pins),
        UNCLEAN(journaling_goes_on_while_a_diff_is_made),
        UNCLEAN(an_unjournaled_write_over_a_rewind_survives_a_kill),
        UNCLEAN(an_unjournaled_write_after_a_rewind_that_failed_survives_a_kill),
        UNCLEAN(a_flush_needs_no_room_beside_the_journal),
        UNCLEAN(a_flush_needs_nothing_of_the_journal),
        UNCLEAN(what_is_kept_beside_a_backing_counts_for_its_rewind_alone),
        UNCLEAN(a_damaged_list_beside_a_backing_is_told),
        UNCLEAN(an_unjournaled_write_over_a_rewind_survives_a_loss_of_power_once_journaling_goes_on),
        UNCLEAN(a_lost_before_image_is_remembered_after_a_kill),
        UNCLEAN(a_seed_map_of_somebody_else_is_refused),
        UNCLEAN(the_newest_point_is_found_while_others_write),
        UNCLEAN(the_newest_point_of_a_suspended_journal_is_what_was_written),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
