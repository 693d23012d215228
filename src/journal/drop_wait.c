/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/drop_wait.h"

#include <time.h>

#include "journal/manifest.h"

#define POLL_NS 50000000u

static bool is_open(const char *directory)
{
    struct manifest m;
    struct error ignored = ERROR_INIT;
    if (manifest_load(directory, &m, &ignored) < 0)
        return false;
    bool open = m.base_target.n > m.base.n;
    manifest_release(&m);
    return open;
}

/* Takes the time of one poll; false: there is none left. */
static bool spend(struct drop_patience *patience)
{
    uint64_t left = atomic_load(&patience->left_ns);
    while (left && !atomic_compare_exchange_weak(&patience->left_ns, &left, left > POLL_NS ? left - POLL_NS : 0))
        ;
    return left > 0;
}

bool drop_wait_again(struct drop_patience *patience, struct drop_look *look)
{
    const struct timespec pause = {.tv_nsec = POLL_NS};
    if (!patience->directory || (look->done && (!look->open || !spend(patience))))
        return false;
    if (look->done)
        nanosleep(&pause, NULL);
    *look = (struct drop_look){.done = true, .open = is_open(patience->directory)};
    if (!look->open)
        atomic_store(&patience->left_ns, DROP_WAIT_NS);
    return true;
}
