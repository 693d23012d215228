/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints with containers that exist in memory only, and the scripts in a real shell. Invariants C1..C4:
 * controller/checkpoint.h. */
#include "../../check.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "controller/checkpoint.h"
#include "controller/hooks.h"
#include "lib/json.h"

#define PODS 3u

/* A container is held from its pre to its post, or until its timer. */
struct world {
    json_t *stored; /* the status that the server has */
    json_t *targets;
    bool held[PODS];
    uint64_t timer_ns[PODS]; /* 0: none */
    unsigned pres, posts, tags;
    unsigned calls, kill_at; /* the call at which the controller dies, having done it or not */
    bool done_before;        /* ... having done it */
    int pre_status[PODS], post_status[PODS];
    bool unreachable[PODS];
    int tag_error;
    uint64_t now_ns, run_ns;
    bool all_held_at_tag;
};

static uint64_t now(void *context)
{
    return ((struct world *)context)->now_ns;
}

static void pass(struct world *w, uint64_t ns)
{
    w->now_ns += ns;
    for (unsigned i = 0; i < PODS; i++)
        if (w->timer_ns[i] && w->now_ns >= w->timer_ns[i]) {
            w->held[i] = false;
            w->timer_ns[i] = 0;
        }
}

/* Whether the controller dies here; *ret_do: whether it has done what it was about to. */
static bool dies(struct world *w, bool *ret_do)
{
    bool dead = w->kill_at && ++w->calls >= w->kill_at;
    *ret_do = !dead || (w->calls == w->kill_at && w->done_before);
    return dead;
}
#define CALL(w)                                                                                              \
    bool carried_out, dead = dies((w), &carried_out);                                                        \
    if (!carried_out)                                                                                        \
        return error_set(err, -ECANCELED, "killed");
#define ANSWER(r) return dead ? error_set(err, -ECANCELED, "killed") : (r)

static int write_status(void *context, const json_t *checkpoint, struct error *err)
{
    struct world *w = context;
    CALL(w);
    json_decref(w->stored);
    w->stored = json_deep_copy(json_object_get(checkpoint, "status"));
    ANSWER(0);
}

static int targets(void *context, const json_t *checkpoint, json_t **ret, struct error *err)
{
    struct world *w = context;
    (void)checkpoint;
    CALL(w);
    if (dead)
        return error_set(err, -ECANCELED, "killed");
    *ret = json_incref(w->targets);
    return 0;
}

static unsigned index_of(const json_t *target)
{
    return (unsigned)(json_string_value(json_object_get(target, "pod"))[1] - '0');
}

static int run(void *context, const json_t *checkpoint, const json_t *target, const char *script,
               unsigned timeout_ms, int *ret_status, char **ret_output, struct error *err)
{
    struct world *w = context;
    unsigned i = index_of(target), seconds = 0;
    const char *timer = strstr(script, "\nn=");
    (void)checkpoint, (void)timeout_ms;
    CALL(w);
    pass(w, w->run_ns);
    if (w->unreachable[i])
        return error_set(err, -ECONNREFUSED, "nobody there");
    if (timer) { /* pre */
        assert_int_equal(sscanf(timer, "\nn=%u", &seconds), 1);
        /* C1: the server knows of it. */
        assert_int_equal(json_array_size(json_object_get(w->stored, "hooks")), json_array_size(w->targets));
        w->pres++;
        w->timer_ns[i] = w->now_ns + seconds * NS_PER_SECOND;
        *ret_status = w->pre_status[i];
        w->held[i] = true; /* also when it fails: in the middle */
    } else {
        w->posts++;
        *ret_status = w->held[i] ? w->post_status[i] : CHECKPOINT_NOT_HELD;
        w->held[i] = false;
        w->timer_ns[i] = 0;
    }
    *ret_output = dead ? NULL : strdup("what it said");
    ANSWER(0);
}

static int tag(void *context, const json_t *checkpoint, json_t **ret, struct error *err)
{
    struct world *w = context;
    (void)checkpoint;
    CALL(w);
    if (w->tag_error)
        return error_set(err, w->tag_error, "no tag");
    w->tags++;
    w->all_held_at_tag = true;
    for (size_t i = 0; i < json_array_size(w->targets); i++)
        w->all_held_at_tag &= w->held[i];
    if (!dead)
        *ret = json_pack("{s:s, s:i}", "time", "2026-11-21T15:00:00Z", "objectsLsn", 7);
    ANSWER(0);
}

static const struct checkpoint_ops ops = {write_status, targets, run, tag};

static struct world make(unsigned pods)
{
    struct world w = {.now_ns = 1795000000 * NS_PER_SECOND, .run_ns = NS_PER_SECOND, .targets = json_array()};
    for (unsigned i = 0; i < pods; i++) {
        char name[8];
        snprintf(name, sizeof name, "p%u", i);
        json_array_append_new(w.targets, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i}", "hook", "h", "pod",
                                                   name, "container", "c", "pre", "true", "post", "true",
                                                   "mounts", "", "timeoutMs", 30000));
    }
    return w;
}

static void end(struct world *w)
{
    json_decref(w->stored);
    json_decref(w->targets);
}

/* As a controller that finds it as the server has it. */
static int advance(struct world *w, bool consistent)
{
    const struct clock clock = {.realtime_ns = now, .boottime_ns = now, .context = w};
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *checkpoint =
        json_pack("{s:{s:s, s:s, s:i}, s:{s:b, s:s}}", "metadata", "name", "c", "uid", "u-1", "generation", 1,
                  "spec", "consistent", (int)consistent, "point", "latest");
    if (w->stored)
        json_object_set_new(checkpoint, "status", json_deep_copy(w->stored));
    return checkpoint_advance(&ops, w, &clock, checkpoint, &err);
}

static const char *phase(const struct world *w)
{
    const char *text = json_string_value(json_object_get(w->stored, "phase"));
    return text ? text : "";
}

static void check_condition(const struct world *w, const char *type, const char *status, const char *reason)
{
    size_t i;
    json_t *condition;
    json_array_foreach(json_object_get(w->stored, "conditions"), i, condition)
    {
        if (strcmp(json_string_value(json_object_get(condition, "type")), type) != 0)
            continue;
        assert_string_equal(json_string_value(json_object_get(condition, "status")), status);
        assert_string_equal(json_string_value(json_object_get(condition, "reason")), reason);
        return;
    }
    fail_msg("there is no condition %s", type);
}

static bool any_held(const struct world *w)
{
    return w->held[0] || w->held[1] || w->held[2];
}

static void c3_all_is_held_at_the_tag_and_thawed_after_it(void **state)
{
    (void)state;
    struct world w = make(3);
    assert_int_equal(advance(&w, true), 0);
    assert_string_equal(phase(&w), "Ready");
    check_condition(&w, "ApplicationConsistent", "True", "HooksDone");
    assert_true(w.all_held_at_tag && !any_held(&w));
    assert_int_equal(w.tags, 1);
    assert_int_equal(advance(&w, true), 0);
    assert_int_equal(w.tags, 1); /* ended */
    end(&w);
    struct world plain = make(3);
    assert_int_equal(advance(&plain, false), 0);
    assert_string_equal(phase(&plain), "Ready");
    assert_int_equal(plain.pres + plain.posts, 0);
    end(&plain);
}

static void c4_a_failure_thaws_what_was_held_and_is_no_consistent_point(void **state)
{
    (void)state;
    struct world w = make(3);
    w.pre_status[1] = 1;
    assert_int_equal(advance(&w, true), 0);
    assert_string_equal(phase(&w), "Failed");
    check_condition(&w, "ApplicationConsistent", "False", "HookFailed");
    assert_false(any_held(&w));
    assert_int_equal(w.pres, 2);
    assert_int_equal(w.tags, 0);
    end(&w);
    w = make(2);
    w.tag_error = -EEXIST;
    assert_int_equal(advance(&w, true), 0);
    check_condition(&w, "Ready", "False", "TagFailed");
    assert_false(any_held(&w));
    end(&w);
    w = make(2);
    w.post_status[0] = 9;
    assert_int_equal(advance(&w, true), 0);
    check_condition(&w, "Ready", "False", "ThawFailed");
    end(&w);
}

static void c3_a_timer_that_was_quicker_makes_it_inconsistent(void **state)
{
    (void)state;
    struct world w = make(2);
    w.run_ns = 90 * NS_PER_SECOND; /* each command takes longer than all of them have */
    assert_int_equal(advance(&w, true), 0);
    assert_string_equal(phase(&w), "Failed");
    check_condition(&w, "ApplicationConsistent", "False", "ThawedEarly");
    end(&w);
}

static void c1_c2_c4_a_controller_that_dies_anywhere_leaves_nothing_held(void **state)
{
    (void)state;
    for (unsigned at = 1; at < 40; at++) {
        for (int done = 0; done < 2; done++) {
            struct world w = make(3);
            w.kill_at = at;
            w.done_before = done;
            int r = advance(&w, true);
            bool survived = w.calls < at;
            if (survived)
                assert_string_equal(phase(&w), "Ready");
            w.kill_at = 0;
            if (at % 2 && !survived) { /* nobody comes: timers (C2) */
                pass(&w, 400 * NS_PER_SECOND);
                assert_false(any_held(&w));
            }
            r = advance(&w, true);
            assert_int_equal(r, 0);
            assert_false(any_held(&w));
            assert_true(strcmp(phase(&w), "Ready") == 0 || strcmp(phase(&w), "Failed") == 0);
            /* It is Ready only when one controller did all of it. */
            if (strcmp(phase(&w), "Ready") == 0)
                assert_true(w.all_held_at_tag);
            end(&w);
            if (survived)
                return;
        }
    }
    fail_msg("it never survived");
}

static void what_cannot_be_reached_is_tried_until_its_timer_is_over(void **state)
{
    (void)state;
    struct world w = make(1);
    w.kill_at = 3; /* after its pre */
    w.done_before = true;
    assert_int_equal(advance(&w, true), -ECANCELED);
    w.kill_at = 0;
    w.unreachable[0] = true;
    assert_int_equal(advance(&w, true), -ECONNREFUSED);
    assert_string_equal(phase(&w), "Freezing");
    pass(&w, 400 * NS_PER_SECOND);
    assert_int_equal(advance(&w, true), 0);
    assert_string_equal(phase(&w), "Failed");
    end(&w);
}

/* ---- the scripts ---- */

static int shell(const char *script)
{
    int status = system(script);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

struct scripts {
    char directory[64], id[80], frozen[96], pre[128], post[256];
};

/* pre makes the file `frozen`, post removes it and adds a line to `posts`. */
static struct scripts make_scripts(void)
{
    struct scripts s;
    snprintf(s.directory, sizeof s.directory, "/tmp/tidemark-hooks-XXXXXX");
    assert_non_null(mkdtemp(s.directory));
    snprintf(s.id, sizeof s.id, "test-%d-%s", getpid(), s.directory + strlen(s.directory) - 6);
    snprintf(s.frozen, sizeof s.frozen, "%s/frozen", s.directory);
    snprintf(s.pre, sizeof s.pre, "[ -e \"$TIDEMARK_HOLD\" ] && touch %s", s.frozen);
    snprintf(s.post, sizeof s.post, "rm -f %s; echo x >>%s/posts", s.frozen, s.directory);
    return s;
}

static void remove_scripts(const struct scripts *s)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", s->directory);
    assert_int_equal(shell(command), 0);
}

static void until(const char *path, bool there)
{
    for (unsigned i = 0; i < 12000 && exists(path) != there; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_int_equal(exists(path), there);
}

static void c2_the_timer_thaws_when_nobody_does(void **state)
{
    (void)state;
    struct scripts s = make_scripts();
    char posts[96];
    snprintf(posts, sizeof posts, "%s/posts", s.directory);
    _cleanup_free_ char *pre = checkpoint_pre_script(s.id, "", s.pre, s.post, 4), /* seconds: a busy machine takes one for the command */
                        *post = checkpoint_post_script(s.id, "", s.post);
    assert_int_equal(shell(pre), 0);
    until(s.frozen, false);
    until(posts, true); /* the timer's command has come to its end: nothing is made in the directory any more */
    assert_int_equal(shell(post), CHECKPOINT_NOT_HELD);
    remove_scripts(&s);
}

static void a_thaw_before_the_timer_ends_it(void **state)
{
    (void)state;
    struct scripts s = make_scripts();
    _cleanup_free_ char *pre = checkpoint_pre_script(s.id, "/srv /data", s.pre, s.post, 600),
                        *post = checkpoint_post_script(s.id, "/srv /data", s.post);
    assert_int_equal(shell(pre), 0);
    assert_true(exists(s.frozen));
    assert_int_equal(shell(post), 0);
    assert_false(exists(s.frozen));
    assert_int_equal(shell(post), CHECKPOINT_NOT_HELD);
    remove_scripts(&s);
}

static void the_commands_own_statuses_are_told(void **state)
{
    (void)state;
    struct scripts s = make_scripts();
    _cleanup_free_ char *pre = checkpoint_pre_script(s.id, "", "exit 7", s.post, 600),
                        *post = checkpoint_post_script(s.id, "", "exit 3");
    assert_int_equal(shell(pre), 7);
    assert_int_equal(shell(post), 3);
    remove_scripts(&s);
}

static void a_pre_that_is_thawed_before_it_ends_leaves_nothing_held(void **state)
{
    (void)state;
    struct scripts s = make_scripts();
    char slow[400];
    /* It removes the hold itself, as a post that came meanwhile does, and then freezes. */
    snprintf(slow, sizeof slow, "rm \"$TIDEMARK_HOLD\"; touch %s", s.frozen);
    _cleanup_free_ char *pre = checkpoint_pre_script(s.id, "", slow, s.post, 600);
    assert_int_equal(shell(pre), CHECKPOINT_NOT_HELD);
    assert_false(exists(s.frozen));
    remove_scripts(&s);
}

/* ---- where they run ---- */

#define POD(name, image, more)                                                                               \
    "{\"metadata\": {\"name\": \"" name "\", \"namespace\": \"n\", \"labels\": {\"app\": \"" name            \
    "\"}}, \"spec\": {\"containers\": "                                                                      \
    "[{\"name\": \"side\", \"image\": \"proxy:1\"}, {\"name\": \"main\", \"image\": \"" image                \
    "\", \"volumeMounts\": [{\"name\": \"d\", "                                                              \
    "\"mountPath\": \"/data\"}, {\"name\": \"t\", \"mountPath\": \"/tmp\"}]}], \"volumes\": [{\"name\": "    \
    "\"d\", "                                                                                                \
    "\"persistentVolumeClaim\": {\"claimName\": \"d\"}}, {\"name\": \"t\", \"emptyDir\": {}}]}, "            \
    "\"status\": {\"phase\": \"Running\"}" more "}"

static json_t *parse(const char *text)
{
    json_t *ret = NULL;
    struct error err = ERROR_INIT;
    if (json_parse("test", text, strlen(text), &ret, &err) < 0)
        fail_msg("%s", err.message);
    return ret;
}

/* "pod/container pod/container", or the error. */
static void check_targets(const char *hooks_text, const char *wanted)
{
    _cleanup_json_ json_t *hooks = parse(hooks_text), *ret = NULL;
    _cleanup_json_ json_t *blueprints =
        parse("[{\"metadata\": {\"name\": \"x\", \"labels\": {\"tidemark.io/blueprint\": \"pg\"}}, \"data\": "
              "{\"images\": \"postgres pgvector\", "
              "\"pre\": \"a\", \"post\": \"b\"}}]");
    _cleanup_json_ json_t *pods =
        parse("[" POD("db", "reg.example.com:5000/library/postgres:15@sha256:ab", "") ", " POD(
            "exporter", "prom/postgres-exporter:1",
            "") ", " POD("old", "postgres", ", \"x\": 1") ", " POD("vec", "pgvector/pgvector:pg16", "") "]");
    json_object_set_new(json_object_get(json_array_get(pods, 2), "status"), "phase",
                        json_string("Succeeded"));
    struct error err = ERROR_INIT;
    char text[400] = "";
    size_t i, length = 0;
    json_t *target;
    int r = hooks_targets("gold", hooks, blueprints, pods, NULL, &ret, &err);
    if (r < 0) {
        if (!strstr(err.message, wanted))
            fail_msg("%s, not %s", err.message, wanted);
        assert_int_equal(r, -EINVAL);
        return;
    }
    json_array_foreach(ret, i, target)
    {
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%s/%s:%s", i ? " " : "",
                                   json_string_value(json_object_get(target, "pod")),
                                   json_string_value(json_object_get(target, "container")),
                                   json_string_value(json_object_get(target, "mounts")));
    }
    assert_string_equal(text, wanted);
}

static void hooks_run_in_running_pods_that_their_blueprint_knows(void **state)
{
    (void)state;
    check_targets("[{\"name\": \"h\", \"blueprint\": \"pg\"}]", "db/main:/data vec/main:/data");
    check_targets(
        "[{\"name\": \"h\", \"blueprint\": \"pg\", \"selector\": {\"matchLabels\": {\"app\": \"vec\"}}}]",
        "vec/main:/data");
    check_targets("[{\"name\": \"h\", \"blueprint\": \"pg\", \"container\": \"side\", \"selector\": "
                  "{\"matchLabels\": {\"app\": \"db\"}}}]",
                  "db/side:");
    check_targets("[{\"name\": \"h\", \"blueprint\": \"nosuch\"}]", "there is no blueprint nosuch");
    check_targets(
        "[{\"name\": \"h\", \"blueprint\": \"pg\", \"selector\": {\"matchLabels\": {\"app\": \"old\"}}}]",
        "no running pod");
    check_targets("[{\"name\": \"h\", \"blueprint\": \"pg\", \"timeout\": \"20m\"}]", "at most 10m");
    check_targets("[]", "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(c3_all_is_held_at_the_tag_and_thawed_after_it),
        cmocka_unit_test(c4_a_failure_thaws_what_was_held_and_is_no_consistent_point),
        cmocka_unit_test(c3_a_timer_that_was_quicker_makes_it_inconsistent),
        cmocka_unit_test(c1_c2_c4_a_controller_that_dies_anywhere_leaves_nothing_held),
        cmocka_unit_test(what_cannot_be_reached_is_tried_until_its_timer_is_over),
        cmocka_unit_test(c2_the_timer_thaws_when_nobody_does),
        cmocka_unit_test(a_thaw_before_the_timer_ends_it),
        cmocka_unit_test(the_commands_own_statuses_are_told),
        cmocka_unit_test(a_pre_that_is_thawed_before_it_ends_leaves_nothing_held),
        cmocka_unit_test(hooks_run_in_running_pods_that_their_blueprint_knows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
