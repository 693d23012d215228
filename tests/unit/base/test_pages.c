/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that was given back and is somebody else's now, mapped past the thread sanitizer as liburing does, is no race with who had it before. */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/io.h"

static _Atomic uintptr_t given_back;
static _Atomic bool taken;

static void *have_it_before(void *unused)
{
    void *pages = io_alloc_pages(40);
    io_free_pages(pages, 40);
    atomic_store_explicit(&given_back, (uintptr_t)pages, memory_order_relaxed); /* orders nothing: what is looked for is a race */
    while (!atomic_load_explicit(&taken, memory_order_relaxed)) /* what a thread's end maps would take the place */
        ;
    return unused;
}

static void what_was_given_back_is_forgotten(void **unused)
{
    (void)unused;
    pthread_t thread;
    uintptr_t address;
    assert_int_equal(pthread_create(&thread, NULL, have_it_before, NULL), 0);
    while ((address = atomic_load_explicit(&given_back, memory_order_relaxed)) == 0)
        ;
    long mapped = syscall(SYS_mmap, address, 4096ul, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0l);
    atomic_store_explicit(&taken, true, memory_order_relaxed);
    assert_int_equal(mapped, address);
    *(volatile int *)address = 1;
    assert_int_equal(syscall(SYS_munmap, address, 4096ul), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_was_given_back_is_forgotten)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
