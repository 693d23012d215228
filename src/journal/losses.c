/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/losses.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "journal/saved.h"

static int read_loss(const json_t *object, struct loss *ret, struct error *err)
{
    uint64_t segment = 0;
    int r = json_get_u64(object, "low_lsn", &ret->low.n, err);
    if (r == 0)
        r = json_get_u64(object, "high_lsn", &ret->high.n, err);
    if (r == 0)
        r = json_get_u64(object, "segment", &segment, err);
    if (r == 0)
        r = json_get_u64(object, "found_realtime_ns", &ret->found_realtime_ns, err);
    if (r == 0)
        r = json_get_string(object, "what", &ret->what, err);
    ret->segment = (uint32_t)segment;
    return r;
}

int losses_visit(const char *directory, void (*visit)(void *context, const struct loss *loss), void *context, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *list = NULL;
    json_t *object;
    size_t i;
    snprintf(path, sizeof path, "%s/" LOSSES_FILE, directory);
    int r = saved_read(path, &list, err);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return r;
    json_array_foreach(list, i, object) {
        struct loss loss;
        r = read_loss(object, &loss, err);
        if (r < 0)
            return error_set(err, -EBADMSG, "%s: %s", path, "an entry is not understood");
        visit(context, &loss);
    }
    return 0;
}

struct keeping {
    json_t *list;
    struct lsn base;
    const struct loss *added;
    bool known;
};

static json_t *loss_json(const struct loss *loss)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:s}", "low_lsn", (json_int_t)loss->low.n, "high_lsn", (json_int_t)loss->high.n,
                     "segment", (json_int_t)loss->segment, "found_realtime_ns", (json_int_t)loss->found_realtime_ns, "what",
                     loss->what);
}

static void keep(void *context, const struct loss *loss)
{
    struct keeping *k = context;
    k->known |= loss->low.n == k->added->low.n; /* the opening that found it was cut short, and found it again */
    if (loss->high.n > k->base.n)
        json_array_append_new(k->list, loss_json(loss));
}

int losses_add(const char *directory, const struct loss *loss, struct lsn base, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *list = json_array();
    struct keeping k = {list, base, loss, false};
    struct error ignored = ERROR_INIT; /* a damaged list begins anew: what is found now must not be lost with it */
    int r = losses_visit(directory, keep, &k, &ignored);
    if (r == 0 && k.known)
        return 0;
    struct loss earlier = {.low = base, .high = loss->low, .segment = loss->segment, .found_realtime_ns = loss->found_realtime_ns,
                           .what = "what was lost earlier is not known: " LOSSES_FILE " was damaged"};
    if (r < 0 && earlier.low.n < earlier.high.n)
        json_array_append_new(list, loss_json(&earlier));
    if (json_array_append_new(list, loss_json(loss)) < 0)
        return error_errno(err, -ENOMEM, "cannot note what was lost");
    while (json_array_size(list) > LOSSES_MAX)
        json_array_remove(list, 0);
    snprintf(path, sizeof path, "%s/" LOSSES_FILE, directory);
    return saved_write(path, list, err);
}
