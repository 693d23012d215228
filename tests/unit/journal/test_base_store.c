/* SPDX-License-Identifier: Apache-2.0 */
/* Readers of a base beside who changes it: S1 to S3 of base_store.c. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "journal/base_store.h"

#define VOLUME 1u
#define SIZE_BYTES (1u << 20)
#define WAIT_MS 120000 /* hangs */

static struct error err;
static char *directory;
static struct base_store *store; /* the writer's */

/* The thread's write number `stall_at` (from 1) begins once it may go on. */
static _Thread_local unsigned stall_at, writes;
static struct {
    sem_t stalled, may_go_on;
} *writer;

/* How often somebody asked who changes a block, and was told that somebody does. */
static _Atomic unsigned asked, waited;

ssize_t __real_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset)
{
    if (stall_at && ++writes == stall_at) {
        sem_post(&writer->stalled);
        while (sem_wait(&writer->may_go_on) < 0)
            ;
    }
    return __real_pwritev64(fd, v, count, offset);
}

int __real_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...)
{
    va_list ap;
    va_start(ap, command);
    void *argument = va_arg(ap, void *);
    va_end(ap);
    int r = __real_fcntl64(fd, command, argument);
    if (command == F_OFD_GETLK && r == 0) {
        asked++;
        waited += ((const struct flock *)argument)->l_type != F_UNLCK;
    }
    return r;
}

static void open_store(bool writable, struct base_store **ret)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/base", directory);
    check_ok(base_store_open(path, writable, ret, &err));
}

static int set_up(void **unused)
{
    (void)unused;
    err = ERROR_INIT;
    directory = check_make_directory();
    writer = mmap(NULL, sizeof *writer, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sem_init(&writer->stalled, 1, 0);
    sem_init(&writer->may_go_on, 1, 0);
    open_store(true, &store);
    check_ok(base_store_prepare(store, VOLUME, SIZE_BYTES, &err));
    char data[8 * 512];
    memset(data, 'a', sizeof data);
    for (uint64_t lba = 0; lba < 64; lba += 8)
        check_ok(base_store_write(store, VOLUME, lba, 8, data, false, &err));
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    base_store_free(store);
    munmap(writer, sizeof *writer);
    check_remove_directory(directory);
    return 0;
}

struct change {
    uint64_t lba;
    uint32_t length;
    bool clear;
    unsigned stall_at;
};

static int make_change(const struct change *c, struct error *why)
{
    char data[16 * 512];
    memset(data, 'b', sizeof data);
    stall_at = c->stall_at;
    writes = 0;
    int r = c->clear ? base_store_clear(store, VOLUME, c->lba, c->length, false, why)
                     : base_store_write(store, VOLUME, c->lba, c->length, data, false, why);
    stall_at = 0;
    return r;
}

static void *change_main(void *context)
{
    struct error why = ERROR_INIT;
    return make_change(context, &why) < 0 ? context : NULL;
}

static void begin(pthread_t *thread, struct change *change)
{
    assert_int_equal(pthread_create(thread, NULL, change_main, change), 0);
    sem_wait(&writer->stalled);
}

static void end(pthread_t thread)
{
    void *failed;
    sem_post(&writer->may_go_on);
    pthread_join(thread, &failed);
    assert_null(failed);
}

struct reading {
    uint64_t lba;
    char data[512];
    struct error err;
    int r;
    _Atomic bool done;
};

/* One sector, as another process would. */
static void *read_main(void *context)
{
    struct reading *reading = context;
    struct base_store *reader;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/base", directory);
    reading->r = base_store_open(path, false, &reader, &reading->err);
    if (reading->r == 0) {
        reading->r = base_store_read(reader, VOLUME, reading->lba, 1, reading->data, &reading->err);
        base_store_free(reader);
    }
    reading->done = true;
    return NULL;
}

/* Whoever changes something meanwhile does not go on before this returns: nobody is waited for. */
static int read_at_once(uint64_t lba, char data[512])
{
    struct reading reading = {.lba = lba};
    asked = waited = 0;
    read_main(&reading);
    assert_int_equal(waited, 0);
    assert_true(asked <= 1);
    memcpy(data, reading.data, sizeof reading.data);
    err = reading.err;
    return reading.r;
}

/* Of a block that `thread` is in the middle of: it is waited for, and goes on only when that was seen. */
static void read_after(pthread_t thread, uint64_t lba, char data[512])
{
    struct reading reading = {.lba = lba};
    pthread_t reader;
    asked = waited = 0;
    assert_int_equal(pthread_create(&reader, NULL, read_main, &reading), 0);
    for (unsigned ms = 0; ms < WAIT_MS && waited < 3 && !reading.done; ms++)
        usleep(1000);
    bool early = reading.done;
    end(thread);
    pthread_join(reader, NULL);
    err = reading.err;
    check_ok(reading.r);
    assert_true(!early && waited >= 3);
    memcpy(data, reading.data, sizeof reading.data);
}

static void damage(const char *suffix, off_t offset)
{
    char path[PATH_MAX], byte = 0;
    snprintf(path, sizeof path, "%s/base/%u.%s", directory, VOLUME, suffix);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && pread(fd, &byte, 1, offset) == 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

/* The sectors beside those that are changed, at each point of the change and for as long as it takes. */
static void a_writer_that_stalls_is_no_damage_S1(void **unused)
{
    (void)unused;
    struct change changes[] = {
        {.lba = 2, .length = 3, .stall_at = 1}, /* before the data */
        {.lba = 10, .length = 3, .stall_at = 2}, /* between data and entry */
        {.lba = 18, .length = 3, .clear = true, .stall_at = 2},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char data[512];
        pthread_t thread;
        begin(&thread, &changes[i]);
        if (changes[i].stall_at == 1) {
            check_ok(read_at_once(changes[i].lba - 1, data));
            end(thread);
        } else {
            read_after(thread, changes[i].lba - 1, data);
        }
        assert_true(data[0] == 'a' && data[511] == 'a');
        check_ok(read_at_once(changes[i].lba, data));
        assert_int_equal(data[0], changes[i].clear ? 0 : 'b');
    }
}

/* Whole blocks, as a verification reads them. */
static void whole_blocks_S1(void **unused)
{
    (void)unused;
    struct change change = {.lba = 8, .length = 16, .stall_at = 2};
    char data[512];
    pthread_t thread;
    begin(&thread, &change);
    read_after(thread, 17, data);
    assert_int_equal(data[0], 'b');
}

/* Also while others are being changed. */
static void damage_is_told_at_once_S2(void **unused)
{
    (void)unused;
    struct change change = {.lba = 8, .length = 8, .stall_at = 2};
    char data[512];
    damage("img", 16 * 512 + 5);
    check_error(read_at_once(16, data), -EBADMSG, "wrong checksum");
    pthread_t thread;
    begin(&thread, &change);
    check_error(read_at_once(16, data), -EBADMSG, "wrong checksum");
    end(thread);
    damage("crc", 4096 + 3 * 8); /* the entry of another one */
    check_error(read_at_once(24, data), -EBADMSG, "is damaged");
    check_ok(base_store_lose(store, VOLUME, 32, 8, &err));
    check_error(read_at_once(32, data), -EBADMSG, "damaged journal");
}

/* Each block that the sectors touch, more of them than go into one write of entries; no other. */
static void a_range_is_lost_whole(void **unused)
{
    (void)unused;
    char data[512];
    check_ok(base_store_prepare(store, VOLUME, 4 * SIZE_BYTES, &err));
    check_ok(base_store_lose(store, VOLUME, 8 * 3 + 5, 8 * 600, &err)); /* blocks 3 to 603 */
    for (uint64_t block = 0; block < 4 * SIZE_BYTES / 4096; block++)
        if (block >= 3 && block <= 603)
            check_error(base_store_read(store, VOLUME, 8 * block + 7, 1, data, &err), -EBADMSG, "damaged journal");
        else
            check_ok(base_store_read(store, VOLUME, 8 * block, 1, data, &err));
}

/* Nobody changes it any more: whoever repeats the change mends it. */
static void a_killed_writer_is_not_waited_for_S3(void **unused)
{
    (void)unused;
    struct change change = {.lba = 10, .length = 3, .stall_at = 2};
    pid_t child = fork();
    if (child == 0) {
        struct error why = ERROR_INIT;
        base_store_free(store);
        open_store(true, &store);
        _exit(make_change(&change, &why) < 0);
    }
    sem_wait(&writer->stalled);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    char data[512];
    check_error(read_at_once(9, data), -EBADMSG, "wrong checksum");
    char again[3 * 512];
    memset(again, 'b', sizeof again);
    check_ok(base_store_write(store, VOLUME, 10, 3, again, true, &err));
    check_ok(read_at_once(9, data));
    assert_int_equal(data[0], 'a');
}

/* Entries that were lost as a whole (zeroes, a hole) say the same as those of blocks that were never written: the image tells them apart. */
static void lost_entries_are_damage(void **unused)
{
    (void)unused;
    struct base_store *reader;
    bool present;
    uint64_t stretch;
    char path[PATH_MAX], data[2 * 8 * 512];
    memset(data, 'a', sizeof data);
    for (uint64_t lba = 0; lba < SIZE_BYTES / 512; lba += 16)
        check_ok(base_store_write(store, VOLUME, lba, 16, data, false, &err));
    check_ok(base_store_clear(store, VOLUME, 8 * 8, 8 * 8, false, &err)); /* blocks 8 to 15 */
    check_ok(base_store_clear(store, VOLUME, 16 * 8 + 1, 2, false, &err));
    open_store(false, &reader);
    base_store_expect_holes(reader);
    check_ok(base_store_extent(reader, VOLUME, 8 * 8, SIZE_BYTES / 512 - 8 * 8, &present, &stretch, &err));
    assert_false(present);
    assert_int_equal(stretch, 8 * 8);
    check_ok(base_store_read(reader, VOLUME, 7 * 8, 16, data, &err));
    assert_int_equal(data[0], 'a');
    assert_int_equal(data[8 * 512], 0);
    snprintf(path, sizeof path, "%s/base/%u.crc", directory, VOLUME);
    int fd = open(path, O_WRONLY);
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 64 * 8), 0); /* blocks 0 to 63 */
    close(fd);
    check_ok(base_store_extent(reader, VOLUME, 0, SIZE_BYTES / 512, &present, &stretch, &err));
    assert_true(present);
    assert_int_equal(stretch, 8 * 8);
    check_error(base_store_read(reader, VOLUME, 7 * 8, 8, data, &err), -EBADMSG, "is damaged at 28672");
    check_ok(base_store_read(reader, VOLUME, 8 * 8, 16, data, &err));
    assert_int_equal(data[0], 0);
    check_error(base_store_read(reader, VOLUME, 16 * 8 + 4, 1, data, &err), -EBADMSG, "wrong checksum");
    check_ok(base_store_read(reader, VOLUME, 64 * 8, 8, data, &err));
    assert_int_equal(data[0], 'a');
    base_store_free(reader);
}

static void reopen(void)
{
    base_store_free(store);
    open_store(true, &store);
}

/* A byte of the block, as a reader finds it that knows of holes; -EBADMSG. */
static int look(uint64_t block)
{
    struct base_store *reader;
    char data[8 * 512];
    open_store(false, &reader);
    base_store_expect_holes(reader);
    int r = base_store_read(reader, VOLUME, block * 8, 8, data, &err);
    base_store_free(reader);
    return r < 0 ? r : data[0];
}

/* J6: nothing of it has to be written for that, and it does not end before the block is written whole or cleared. */
static void what_is_made_anew_is_lost(void **unused)
{
    bool present;
    uint64_t stretch;
    char data[8 * 512];
    (void)unused;
    memset(data, 'b', sizeof data);
    reopen();
    check_ok(base_store_renew(store, VOLUME, SIZE_BYTES, 100 * 4096 - 512, &err));
    check_ok(base_store_extent(store, VOLUME, 8, SIZE_BYTES / 512 - 8, &present, &stretch, &err));
    assert_true(present && stretch == 99 * 8);
    check_ok(base_store_extent(store, VOLUME, 100 * 8, SIZE_BYTES / 512 - 100 * 8, &present, &stretch, &err));
    assert_true(!present && stretch == SIZE_BYTES / 512 - 100 * 8);
    check_ok(base_store_write(store, VOLUME, 8, 8, data, true, &err));
    check_ok(base_store_write(store, VOLUME, 2 * 8 + 1, 3, data, true, &err)); /* a part of one */
    check_ok(base_store_clear(store, VOLUME, 4 * 8 + 1, 2, true, &err));
    check_ok(base_store_clear(store, VOLUME, 6 * 8, 3 * 8, true, &err));
    check_ok(base_store_clear(store, VOLUME, 99 * 8, 2 * 8, true, &err));
    check_ok(base_store_write(store, VOLUME, 9 * 8, 8, data, true, &err));
    check_ok(base_store_clear(store, VOLUME, 9 * 8, 4, true, &err)); /* in halves */
    check_ok(base_store_clear(store, VOLUME, 9 * 8 + 4, 4, true, &err));
    check_ok(base_store_prepare(store, VOLUME, 2 * SIZE_BYTES, &err));
    reopen();
    const int expected[] = {-EBADMSG, 'b', -EBADMSG, -EBADMSG, -EBADMSG, -EBADMSG, 0, 0, 0, 0, -EBADMSG};
    for (uint64_t block = 0; block < sizeof expected / sizeof *expected; block++)
        assert_int_equal(look(block), expected[block]);
    assert_int_equal(look(98), -EBADMSG);
    assert_int_equal(look(99), 0);
    assert_int_equal(look(100), 0);
    assert_int_equal(look(SIZE_BYTES / 4096 + 5), 0);
    check_ok(base_store_extent(store, VOLUME, 6 * 8, 94 * 8, &present, &stretch, &err));
    assert_true(!present && stretch == 4 * 8);
    check_ok(base_store_extent(store, VOLUME, 10 * 8, 90 * 8, &present, &stretch, &err));
    assert_true(present && stretch == 89 * 8);
    check_ok(base_store_write(store, VOLUME, 6 * 8 + 2, 1, data, false, &err)); /* the rest is known */
    assert_int_equal(look(6), 0);
    damage("crc", 4096 + 7 * 8);
    assert_int_equal(look(7), -EBADMSG);
}

/* In the page of the header: what says how much is lost, too. */
static void a_damaged_header_is_told(void **unused)
{
    (void)unused;
    reopen();
    check_ok(base_store_renew(store, VOLUME, SIZE_BYTES, SIZE_BYTES, &err));
    for (off_t at = 0; at < 40; at++) {
        damage("crc", at);
        reopen();
        check_error(base_store_check(store, VOLUME, &err), -EBADMSG, "its header");
        damage("crc", at);
    }
    reopen();
    check_ok(base_store_check(store, VOLUME, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_writer_that_stalls_is_no_damage_S1, set_up, tear_down),
        cmocka_unit_test_setup_teardown(whole_blocks_S1, set_up, tear_down),
        cmocka_unit_test_setup_teardown(damage_is_told_at_once_S2, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_range_is_lost_whole, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_killed_writer_is_not_waited_for_S3, set_up, tear_down),
        cmocka_unit_test_setup_teardown(lost_entries_are_damage, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_made_anew_is_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_header_is_told, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
