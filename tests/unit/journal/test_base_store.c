/* SPDX-License-Identifier: Apache-2.0 */
/* Readers of a base beside who changes it: S1 to S3 of base_store.c. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "journal/base_store.h"

#define VOLUME 1u
#define SIZE_BYTES (1u << 20)
#define STALL_NS (400 * NS_PER_MS)  /* of the writer, in the middle of a change */
#define AT_ONCE_NS (100 * NS_PER_MS) /* nobody was waited for */

static struct error err;
static char *directory;
static struct base_store *store; /* the writer's */

/* The thread's write number `stall_at` (from 1) begins after STALL_NS, or not at all. */
static _Thread_local unsigned stall_at, writes;
static _Thread_local bool stall_for_ever;
static sem_t *stalled;

ssize_t __real_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int count, off_t offset)
{
    if (stall_at && ++writes == stall_at) {
        struct timespec pause = {.tv_nsec = STALL_NS};
        sem_post(stalled);
        while (stall_for_ever)
            sleep(1);
        nanosleep(&pause, NULL);
    }
    return __real_pwritev64(fd, v, count, offset);
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
    stalled = mmap(NULL, sizeof *stalled, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sem_init(stalled, 1, 0);
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
    munmap(stalled, sizeof *stalled);
    check_remove_directory(directory);
    return 0;
}

struct change {
    uint64_t lba;
    uint32_t length;
    bool clear, for_ever;
    unsigned stall_at;
};

static int make_change(const struct change *c, struct error *why)
{
    char data[16 * 512];
    memset(data, 'b', sizeof data);
    stall_at = c->stall_at;
    stall_for_ever = c->for_ever;
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
    sem_wait(stalled);
}

static void end(pthread_t thread)
{
    void *failed;
    pthread_join(thread, &failed);
    assert_null(failed);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* One sector, as another process would. */
static int read_sector(uint64_t lba, char data[512], uint64_t *ret_ns)
{
    struct base_store *reader;
    open_store(false, &reader);
    uint64_t since = now_ns();
    int r = base_store_read(reader, VOLUME, lba, 1, data, &err);
    *ret_ns = now_ns() - since;
    base_store_free(reader);
    return r;
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
        uint64_t ns;
        pthread_t thread;
        begin(&thread, &changes[i]);
        check_ok(read_sector(changes[i].lba - 1, data, &ns));
        assert_true(data[0] == 'a' && data[511] == 'a');
        assert_true(changes[i].stall_at == 1 ? ns < AT_ONCE_NS : ns > STALL_NS / 2);
        end(thread);
        check_ok(read_sector(changes[i].lba, data, &ns));
        assert_int_equal(data[0], changes[i].clear ? 0 : 'b');
    }
}

/* Whole blocks, as a verification reads them. */
static void whole_blocks_S1(void **unused)
{
    (void)unused;
    struct change change = {.lba = 8, .length = 16, .stall_at = 2};
    char data[512];
    uint64_t ns;
    pthread_t thread;
    begin(&thread, &change);
    check_ok(read_sector(17, data, &ns));
    assert_true(data[0] == 'b' && ns > STALL_NS / 2);
    end(thread);
}

/* Also while others are being changed. */
static void damage_is_told_at_once_S2(void **unused)
{
    (void)unused;
    struct change change = {.lba = 8, .length = 8, .stall_at = 2};
    char data[512];
    uint64_t ns;
    damage("img", 16 * 512 + 5);
    check_error(read_sector(16, data, &ns), -EBADMSG, "wrong checksum");
    assert_true(ns < AT_ONCE_NS);
    pthread_t thread;
    begin(&thread, &change);
    check_error(read_sector(16, data, &ns), -EBADMSG, "wrong checksum");
    assert_true(ns < AT_ONCE_NS);
    end(thread);
    damage("crc", 4096 + 3 * 8); /* the entry of another one */
    check_error(read_sector(24, data, &ns), -EBADMSG, "is damaged");
    assert_true(ns < AT_ONCE_NS);
    check_ok(base_store_lose(store, VOLUME, 32, 8, &err));
    check_error(read_sector(32, data, &ns), -EBADMSG, "damaged journal");
    assert_true(ns < AT_ONCE_NS);
}

/* Nobody changes it any more: whoever repeats the change mends it. */
static void a_killed_writer_is_not_waited_for_S3(void **unused)
{
    (void)unused;
    struct change change = {.lba = 10, .length = 3, .stall_at = 2, .for_ever = true};
    pid_t child = fork();
    if (child == 0) {
        struct error why = ERROR_INIT;
        base_store_free(store);
        open_store(true, &store);
        _exit(make_change(&change, &why) < 0);
    }
    sem_wait(stalled);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    char data[512];
    uint64_t ns;
    check_error(read_sector(9, data, &ns), -EBADMSG, "wrong checksum");
    assert_true(ns < AT_ONCE_NS);
    char again[3 * 512];
    memset(again, 'b', sizeof again);
    check_ok(base_store_write(store, VOLUME, 10, 3, again, true, &err));
    check_ok(read_sector(9, data, &ns));
    assert_int_equal(data[0], 'a');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_writer_that_stalls_is_no_damage_S1, set_up, tear_down),
        cmocka_unit_test_setup_teardown(whole_blocks_S1, set_up, tear_down),
        cmocka_unit_test_setup_teardown(damage_is_told_at_once_S2, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_killed_writer_is_not_waited_for_S3, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
