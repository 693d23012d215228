/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <sys/random.h>

#include "base/thread.h"
#include "control/control_internal.h"

static struct control control;
static const char *const steps[] = {"one", "two", "three", NULL};

static const uint32_t *next_random; /* NULL: as the kernel gives them */

ssize_t __real_getrandom(void *data, size_t length, unsigned flags);
ssize_t __wrap_getrandom(void *data, size_t length, unsigned flags);
ssize_t __wrap_getrandom(void *data, size_t length, unsigned flags)
{
    if (!next_random || length != sizeof *next_random)
        return __real_getrandom(data, length, flags);
    memcpy(data, next_random++, length);
    return (ssize_t)length;
}

static json_t *get(const char *id, uint64_t version, unsigned wait_ms)
{
    struct error err = ERROR_INIT;
    json_t *json = operation_to_json(&control, id, version, wait_ms, &err);
    if (!json)
        fail_msg("%s", err.message);
    return json;
}

static const char *text(const json_t *json, const char *key)
{
    return json_string_value(json_object_get(json, key));
}

static void life(void **unused)
{
    struct error err = ERROR_INIT, why = ERROR_INIT;
    char id[CONTROL_ID_BYTES];
    (void)unused;
    struct operation *o = operation_new(&control, "rewind", "shop", steps);
    operation_step_begin(o, 0);
    assert_true(operation_step_end(o, 0, STEP_DONE, "fine") >= 0);
    operation_step_begin(o, 1);
    operation_progress(o, 3, 10, "bytes");
    operation_running_id(&control, "shop", id);
    assert_string_equal(id, o->id);
    operation_running_id(&control, "other", id);
    assert_string_equal(id, "");
    _cleanup_json_ json_t *running = get(o->id, 0, 0);
    assert_string_equal(text(running, "state"), "running");
    json_t *list = json_object_get(running, "steps");
    assert_string_equal(text(json_array_get(list, 0), "state"), "done");
    assert_string_equal(text(json_array_get(list, 0), "detail"), "fine");
    assert_string_equal(text(json_array_get(list, 1), "state"), "running");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(running, "progress"), "done")), 3);
    error_set(&why, -EBUSY, "in use");
    operation_end(o, -EBUSY, NULL, &why);
    _cleanup_json_ json_t *ended = get(o->id, UINT64_MAX, 5000); /* has ended: answers at once */
    assert_string_equal(text(ended, "state"), "failed");
    assert_string_equal(text(json_object_get(ended, "error"), "code"), "EBUSY");
    list = json_object_get(ended, "steps");
    assert_string_equal(text(json_array_get(list, 1), "state"), "failed");
    assert_string_equal(text(json_array_get(list, 2), "state"), "skipped");
    assert_null(operation_to_json(&control, "op-none", 0, 0, &err));
    assert_int_equal(err.code, -ENOENT);
}

static void *end_it(void *context)
{
    struct operation *o = context;
    operation_step_begin(o, 0);
    operation_end(o, 0, json_pack("{s:i}", "answer", 42), NULL);
    return NULL;
}

static void waiting(void **unused)
{
    struct error err = ERROR_INIT;
    pthread_t thread;
    (void)unused;
    struct operation *o = operation_new(&control, "open", "shop", steps);
    _cleanup_json_ json_t *late = get(o->id, o->version, 20);
    assert_string_equal(text(late, "state"), "running");
    check_ok(thread_start(&thread, "end", end_it, o, &err));
    _cleanup_json_ json_t *ended = get(o->id, UINT64_MAX, 5000);
    pthread_join(thread, NULL);
    assert_string_equal(text(ended, "state"), "succeeded");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(ended, "result"), "answer")), 42);
}

/* A view is closed, and an operation asked for, by its id alone. */
static void an_id_is_given_once(void **unused)
{
    static const uint32_t numbers[] = {0x5a000007, 0x07, 0xff000008, 0x09};
    struct error err = ERROR_INIT;
    struct view view = {.id = "v-000008"};
    char id[CONTROL_ID_BYTES];
    (void)unused;
    next_random = numbers;
    struct operation *first = operation_new(&control, "open", "shop", steps);
    struct operation *second = operation_new(&control, "open", "bank", steps); /* 7 again, then 8 */
    assert_string_equal(first->id, "op-000007");
    assert_string_equal(second->id, "op-000008");
    control.views = &view;
    next_random = numbers + 2;
    check_ok(control_new_id(&control, "v-", id, &err));
    control.views = NULL;
    next_random = NULL;
    assert_string_equal(id, "v-000009");
    operation_end(first, 0, json_object(), NULL);
    operation_end(second, 0, json_object(), NULL);
}

/* Whoever fails removes its pin by the name: that of another clone must not go with it, nor that of one whose application could not be
 * loaded. What cannot be read names nothing here. */
static void a_pin_of_a_clone_is_named_once(void **unused)
{
    static const uint32_t numbers[] = {0x07, 0x08, 0x09};
    struct error err = ERROR_INIT;
    struct application clone = {.filling = {.source = "shop", .pin = "copy-000007"}};
    char id[CONTROL_ID_BYTES], path[PATH_MAX + 64];
    (void)unused;
    char *directory = check_make_directory();
    snprintf(control.state_directory, sizeof control.state_directory, "%s", directory);
    for (const char **one = (const char *[]){"lost", "{\"source\": \"shop\", \"pin\": \"copy-000008\"}\n", "broken", "{\n", NULL}; *one; one += 2) {
        snprintf(path, sizeof path, "%s/apps/%s", directory, one[0]);
        check_ok(io_mkdirs(path, 0700, &err));
        snprintf(path, sizeof path, "%s/apps/%s/filling.json", directory, one[0]);
        check_ok(io_replace_file(path, one[1], strlen(one[1]), 0600, &err));
    }
    control.applications = &clone;
    next_random = numbers;
    check_ok(filling_new_pin(&control, id, &err));
    next_random = NULL;
    control.applications = NULL;
    check_remove_directory(directory);
    assert_string_equal(id, "copy-000009");
}

/* The message of an error ends at some length, perhaps in the middle of a character. */
static void a_message_that_was_cut_is_told(void **unused)
{
    struct error why = ERROR_INIT;
    (void)unused;
    struct operation *o = operation_new(&control, "open", "shop", steps);
    operation_step_begin(o, 0);
    assert_true(operation_step_end(o, 0, STEP_FAILED, "in /srv/gr\xc3") >= 0);
    error_set(&why, -EBUSY, "in use: /srv/gr\xc3");
    operation_end(o, -EBUSY, NULL, &why);
    _cleanup_json_ json_t *ended = get(o->id, UINT64_MAX, 5000);
    assert_string_equal(text(json_object_get(ended, "error"), "code"), "EBUSY");
    assert_string_equal(text(json_object_get(ended, "error"), "message"), "in use: /srv/gr");
    assert_string_equal(text(json_array_get(json_object_get(ended, "steps"), 0), "detail"), "in /srv/gr");
}

static void bounded(void **unused)
{
    (void)unused;
    for (unsigned i = 0; i < 3 * CONTROL_OPERATIONS_KEPT; i++)
        operation_end(operation_new(&control, "open", "shop", steps), 0, json_object(), NULL);
    _cleanup_json_ json_t *all = operations_to_json(&control);
    assert_int_equal(json_array_size(json_object_get(all, "operations")), CONTROL_OPERATIONS_KEPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(life), cmocka_unit_test(waiting),
                                       cmocka_unit_test(an_id_is_given_once), cmocka_unit_test(a_pin_of_a_clone_is_named_once),
                                       cmocka_unit_test(a_message_that_was_cut_is_told),
                                       cmocka_unit_test(bounded)};
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&control.changed, &attributes);
    pthread_mutex_init(&control.mutex, NULL);
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    operations_free(&control);
    return r;
}
