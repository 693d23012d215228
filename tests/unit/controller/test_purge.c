/* SPDX-License-Identifier: Apache-2.0 */
/* What is removed of deleted volumes, and when (G1..G3 of controller/purge.h). */
#include "check.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "controller/purge.h"

#define NOW_NS (1000000 * NS_PER_SECOND)
#define DAY_S 86400u

struct world {
    char log[512];       /* what was done, in order */
    const char *running; /* the Recovery that goes on */
    bool nobody_uses;    /* clones' volumes */
    int destroy_result, goes_on_result;
    unsigned kept; /* told so often that history is still there */
};

static void note(struct world *w, const char *what, const char *which)
{
    size_t used = strlen(w->log);
    snprintf(w->log + used, sizeof w->log - used, "%s%s %s", used ? ", " : "", what, which);
}

static int goes_on(void *context, const char *recovery, bool *ret, struct error *err)
{
    struct world *w = context;
    *ret = w->running && strcmp(w->running, recovery) == 0;
    return w->goes_on_result ? error_set(err, w->goes_on_result, "the API server is away") : 0;
}
static int abandoned(void *context, const struct csi_volume *v, bool *ret, struct error *err)
{
    struct world *w = context;
    (void)v, (void)err;
    *ret = w->nobody_uses;
    return 0;
}
static int destroy(void *context, const char *node, const char *stream, struct error *err)
{
    struct world *w = context;
    if (*node) /* else it is on none */
        assert_string_equal(node, "node1");
    if (w->destroy_result)
        return error_set(err, w->destroy_result, "in use");
    note(w, "destroy", stream);
    return 0;
}
static int save(void *context, const struct csi_volume *v, struct error *err)
{
    (void)err;
    assert_int_equal(v->deleted_ns, NOW_NS);
    note(context, "mark", v->handle);
    return 0;
}
static int forget(void *context, const char *handle, struct error *err)
{
    (void)err;
    note(context, "forget", handle);
    return 0;
}
static void kept(void *context, const struct csi_volume *v, const char *why)
{
    struct world *w = context;
    (void)v;
    w->kept++;
    assert_string_equal(why, "in use");
}
static const struct purge_ops ops = {goes_on, abandoned, destroy, save, forget, kept};

static struct csi_volume volume(const char *handle, const char *stream, uint64_t deleted_s_ago)
{
    struct csi_volume v = {.deleted_ns = deleted_s_ago ? NOW_NS - deleted_s_ago * NS_PER_SECOND : 0};
    snprintf(v.handle, sizeof v.handle, "%s", handle);
    snprintf(v.name, sizeof v.name, "pv-%.50s", handle);
    snprintf(v.stream, sizeof v.stream, "%s", stream);
    snprintf(v.node, sizeof v.node, "node1");
    return v;
}

static uint64_t run(struct world *w, struct csi_volume *all, size_t count)
{
    static const struct log quiet = {.fd = -1};
    uint64_t next_ns = 77;
    purge_run(&ops, w, &quiet, all, count, NOW_NS, &next_ns);
    return next_ns;
}

static void history_is_kept_for_its_time(void **unused)
{
    (void)unused;
    struct world w = {.log = ""};
    struct csi_volume kept = volume("a", "s", 7 * DAY_S - 10), over = volume("b", "t", 7 * DAY_S + 1),
                      there = volume("c", "u", 0), all[] = {kept, over, there};
    assert_int_equal(run(&w, all, 3), NOW_NS + 10 * NS_PER_SECOND);
    assert_string_equal(w.log, "destroy t, forget b");
    /* The policy's time; none: now. */
    struct world own = {.log = ""};
    struct csi_volume longer = volume("a", "s", 8 * DAY_S), at_once = volume("b", "t", 1);
    longer.keep_known = at_once.keep_known = true;
    longer.keep_s = 9 * DAY_S;
    struct csi_volume two[] = {longer, at_once};
    assert_int_equal(run(&own, two, 2), NOW_NS + DAY_S * NS_PER_SECOND);
    assert_string_equal(own.log, "destroy t, forget b");
}

static void g1_a_stream_goes_with_the_last_of_its_volumes(void **unused)
{
    (void)unused;
    struct csi_volume there[] = {volume("a", "s", 9 * DAY_S), volume("b", "s", 0)};
    struct csi_volume younger[] = {volume("a", "s", 9 * DAY_S), volume("b", "s", 5 * DAY_S)};
    struct csi_volume both[] = {volume("a", "s", 9 * DAY_S), volume("b", "s", 8 * DAY_S)};
    struct csi_volume used[] = {volume("a", "s", 9 * DAY_S)};
    snprintf(used[0].published_node, sizeof used[0].published_node, "node1");
    struct world w = {.log = ""};
    assert_int_equal(run(&w, there, 2), 0);
    assert_int_equal(run(&w, younger, 2), NOW_NS + 2 * DAY_S * NS_PER_SECOND);
    assert_int_equal(run(&w, used, 1), 0);
    assert_string_equal(w.log, "");
    assert_int_equal(run(&w, both, 2), 0);
    assert_string_equal(w.log, "destroy s, forget a, forget b");
}

static void g2_records_stay_until_the_stream_is_destroyed(void **unused)
{
    (void)unused;
    struct world w = {.log = "", .destroy_result = -EBUSY};
    struct csi_volume all[] = {volume("a", "s", 9 * DAY_S)};
    assert_int_equal(run(&w, all, 1), NOW_NS); /* again */
    assert_string_equal(w.log, "");
    assert_int_equal(w.kept, 1); /* and why not is told */
    struct csi_volume of_two[] = {volume("a", "s", 9 * DAY_S), volume("b", "s", 8 * DAY_S), volume("c", "t", 1)};
    run(&w, of_two, 3);
    assert_int_equal(w.kept, 3);
    w.destroy_result = -ECANCELED; /* the Lease had lapsed: no reason of the history's */
    assert_int_equal(run(&w, of_two, 3), NOW_NS);
    assert_int_equal(w.kept, 3);
    /* Of backing class, and attached nowhere: it goes with its records, unless somebody has it. */
    struct world held = {.log = "", .destroy_result = -EBUSY}, free = {.log = ""};
    struct csi_volume nowhere[] = {volume("a", "s", 9 * DAY_S)};
    nowhere[0].node[0] = '\0';
    run(&held, nowhere, 1);
    assert_string_equal(held.log, "");
    run(&free, nowhere, 1);
    assert_string_equal(free.log, "destroy s, forget a");
    /* One that was never attached has no stream. */
    struct csi_volume never[] = {volume("a", "", 9 * DAY_S), volume("b", "", 0)};
    run(&w, never, 2);
    assert_string_equal(w.log, "forget a");
}

static void g3_a_clone_is_removed_when_nobody_works_on_it(void **unused)
{
    (void)unused;
    struct csi_volume made = volume("a", "s", 0), begun = volume("b", "s", 1);
    snprintf(made.recovery, sizeof made.recovery, "n/r");
    snprintf(begun.recovery, sizeof begun.recovery, "n/r");
    struct world running = {.log = "", .running = "n/r", .nobody_uses = true};
    struct csi_volume all[] = {made, begun};
    run(&running, all, 2);
    assert_string_equal(running.log, "");
    struct world unknown = {.log = "", .goes_on_result = -EAGAIN, .nobody_uses = true};
    run(&unknown, all, 2);
    assert_string_equal(unknown.log, "");
    /* It has ended, and its volume is used: nothing of the stream goes. */
    struct world used = {.log = ""};
    run(&used, all, 2);
    assert_string_equal(used.log, "");
    /* It ended before its claims were there; or was thrown away: no time is kept. */
    struct world over = {.log = "", .nobody_uses = true};
    run(&over, all, 2);
    assert_string_equal(over.log, "mark a, destroy s, forget a, forget b");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(history_is_kept_for_its_time),
        cmocka_unit_test(g1_a_stream_goes_with_the_last_of_its_volumes),
        cmocka_unit_test(g2_records_stay_until_the_stream_is_destroyed),
        cmocka_unit_test(g3_a_clone_is_removed_when_nobody_works_on_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
