/* SPDX-License-Identifier: Apache-2.0 */
/* What was handed over is done, whatever ends meanwhile. */
#include "check.h"

#include <dirent.h>
#include <stdatomic.h>
#include <time.h>

#include "base/clock.h"
#include "export/workers.h"

#define JOBS 4u

static struct workers *workers;
static atomic_uint jobs_done;
static atomic_bool finishing;

static unsigned threads_now(void)
{
    unsigned count = 0;
    DIR *d = opendir("/proc/self/task");
    assert_non_null(d);
    for (const struct dirent *entry; (entry = readdir(d));)
        count += entry->d_name[0] != '.';
    closedir(d);
    return count;
}

static bool job(void *context, struct work *w)
{
    (void)context;
    (void)w;
    atomic_fetch_add(&jobs_done, 1);
    return true;
}

/* Takes long enough for threads without work to end beside it, if they do. */
static bool finish_slowly(void *context, struct work *w)
{
    const unsigned *all = context;
    atomic_store(&finishing, true);
    for (unsigned i = 0; i < 100 && threads_now() >= *all; i++)
        nanosleep(&(struct timespec){0, 2 * (long)NS_PER_MS}, NULL);
    workers_job(workers, w);
    return false;
}

static void what_is_given_on_at_the_end_is_done(void **unused)
{
    (void)unused;
    struct error err = ERROR_INIT;
    struct work w = {NULL};
    unsigned all = threads_now() + JOBS + 1;
    struct workers_options o = {.name = "test", .threads = JOBS, .job = job, .finish = finish_slowly, .context = &all};
    assert_int_equal(workers_start(&o, &workers, &err), 0);
    workers_finish(workers, &w);
    while (!atomic_load(&finishing))
        nanosleep(&(struct timespec){0, (long)NS_PER_MS}, NULL);
    workers_free(workers);
    assert_int_equal(atomic_load(&jobs_done), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_given_on_at_the_end_is_done)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
