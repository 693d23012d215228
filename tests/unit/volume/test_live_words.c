/* SPDX-License-Identifier: Apache-2.0 */
/* A map that was closed, in whose place something is now that was mapped past the thread sanitizer, as liburing does, is no race with who had
 * it before. */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "volume/live_words.h"

#define GRAINS 100u

static char path[512];
static _Atomic uintptr_t given_back; /* 1: it was not to be had */
static _Atomic bool taken;

static void *have_it_before(void *unused)
{
    static const uint8_t id[16];
    struct live_words w;
    struct error why = ERROR_INIT;
    bool valid;
    if (live_words_open(&w, path, GRAINS, id, &valid, &why) < 0) {
        given_back = 1;
        return path;
    }
    uintptr_t address = (uintptr_t)w.words;
    atomic_fetch_or(&w.words[0], 1);
    live_words_close(&w);
    atomic_store_explicit(&given_back, address, memory_order_relaxed); /* orders nothing: what is looked for is a race */
    while (!atomic_load_explicit(&taken, memory_order_relaxed)) /* what a thread's end maps would take the place */
        ;
    return unused;
}

static void what_was_closed_is_forgotten(void **unused)
{
    (void)unused;
    pthread_t thread;
    uintptr_t address;
    void *failed;
    char *directory = check_make_directory();
    snprintf(path, sizeof path, "%s/live", directory);
    assert_int_equal(pthread_create(&thread, NULL, have_it_before, NULL), 0);
    while ((address = atomic_load_explicit(&given_back, memory_order_relaxed)) == 0)
        ;
    long mapped = syscall(SYS_mmap, address, 4096ul, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0l);
    atomic_store_explicit(&taken, true, memory_order_relaxed);
    assert_int_equal(mapped, address);
    *(volatile int *)address = 1;
    assert_int_equal(syscall(SYS_munmap, address, 4096ul), 0);
    assert_int_equal(pthread_join(thread, &failed), 0);
    assert_null(failed);
    check_remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_was_closed_is_forgotten)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
