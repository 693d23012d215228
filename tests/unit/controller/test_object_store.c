/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "controller/object_store.h"

#include "../spoil.h"

static const uint8_t key[SEALING_KEY_BYTES] = "0123456789abcdef0123456789abcdef";
static struct sealing sealing;
#define JOURNALS 2u /* that are open at most: opening one takes its time */

static json_t *config_map(const char *value)
{
    return json_pack("{s:s, s:s, s:{s:s, s:s}, s:{s:s}}", "apiVersion", "v1", "kind", "ConfigMap", "metadata",
                     "name", "a", "namespace", "shop", "data", "value", value);
}

static void put(struct object_store *store, const char *application, const char *name, const char *value,
                uint64_t version)
{
    struct error err = ERROR_INIT;
    json_t *object = value ? config_map(value) : NULL;
    check_ok(object_store_put(store, "shop", application, name, object, version, &err));
    json_decref(object);
}

/* The value of the object at the point, "" when it is not there. */
static const char *value_at(struct object_store *store, const char *application, const char *name,
                            const struct point *point, char *text)
{
    struct error err = ERROR_INIT;
    json_t *set;
    check_ok(object_store_read(store, "shop", application, point, &set, NULL, &err));
    const char *value =
        json_string_value(json_object_get(json_object_get(json_object_get(set, name), "data"), "value"));
    snprintf(text, 64, "%s", value ? value : "");
    json_decref(set);
    return text;
}

static const struct point latest = {.kind = POINT_LATEST};

static void test_records_are_made_of_changes_only_and_old_versions_never_follow_new_ones(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct object_store *store;
    struct journal_point first, second;
    char *directory = check_make_directory(), text[64];
    bool resumed;
    json_t *set;
    const char *name = "core/v1/ConfigMap/shop/a";
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    check_ok(object_store_keep(store, "shop", "shop", &resumed, &err));
    assert_false(resumed);
    put(store, "shop", name, "1", 10);
    check_ok(object_store_read(store, "shop", "shop", &latest, &set, &first, &err));
    json_decref(set);
    put(store, "shop", name, "1", 11); /* S1 */
    put(store, "shop", name, NULL, 9); /* S3 */
    check_ok(object_store_read(store, "shop", "shop", &latest, &set, &second, &err));
    json_decref(set);
    assert_int_equal(first.lsn.n, second.lsn.n);
    put(store, "shop", name, "2", 12);
    put(store, "shop", name, "1", 11); /* S3 */
    assert_string_equal(value_at(store, "shop", name, &latest, text), "2");
    assert_string_equal(
        value_at(store, "shop", name, &(struct point){.kind = POINT_LSN, .lsn = first.lsn}, text), "1");
    put(store, "shop", name, NULL, 13);
    assert_string_equal(value_at(store, "shop", name, &latest, text), "");
    check_error(object_store_put(store, "shop", "other", name, NULL, 0, &err), -ENOENT, "not protected");
    /* What is asked for may come from anybody: no name leads to another's journal. */
    json_t *nothing = NULL;
    check_error(object_store_read(store, "other", "../shop/shop", &latest, &nothing, NULL, &err), -EINVAL, "no application");
    check_error(object_store_read(store, "..", "objects", &latest, &nothing, NULL, &err), -EINVAL, "no application");
    object_store_free(store);
    check_remove_directory(directory);
}

static void test_a_list_finds_what_is_gone_and_a_deletion_beside_it_wins(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct object_store *store;
    char *directory = check_make_directory(), text[64];
    bool resumed;
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    check_ok(object_store_keep(store, "shop", "shop", &resumed, &err));
    put(store, "shop", "core/v1/ConfigMap/shop/a", "1", 1);
    put(store, "shop", "core/v1/ConfigMap/shop/b", "1", 1);
    put(store, "shop", "core/v1/ConfigMap/shop/c", "1", 1);
    put(store, "shop", "apps/v1/Deployment/shop/d", "1", 1);
    check_ok(object_store_flush(store, "shop", "shop", &err));
    object_store_free(store); /* nobody looks: b goes */
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    check_ok(object_store_keep(store, "shop", "shop", &resumed, &err));
    assert_true(resumed);
    object_store_list(store, "shop", "shop", true);
    put(store, "shop", "core/v1/ConfigMap/shop/c", NULL, 30); /* the watch: after the list was made */
    put(store, "shop", "core/v1/ConfigMap/shop/a", "1", 20);
    put(store, "shop", "core/v1/ConfigMap/shop/c", "1", 20); /* the list */
    check_ok(object_store_sweep(store, "shop", "shop", "", "ConfigMap", 25, &err));
    object_store_list(store, "shop", "shop", false);
    assert_string_equal(value_at(store, "shop", "core/v1/ConfigMap/shop/a", &latest, text), "1");
    assert_string_equal(value_at(store, "shop", "core/v1/ConfigMap/shop/b", &latest, text), "");
    assert_string_equal(value_at(store, "shop", "core/v1/ConfigMap/shop/c", &latest, text), "");
    assert_string_equal(value_at(store, "shop", "apps/v1/Deployment/shop/d", &latest, text),
                        "1"); /* another kind */
    object_store_free(store);
    check_remove_directory(directory);
}

static void test_s7_what_goes_with_a_namespace_is_no_history(void **state)
{
    (void)state;
    static const char a[] = "core/v1/ConfigMap/shop/a", b[] = "core/v1/ConfigMap/shop/b", c[] = "core/v1/ConfigMap/shop/c";
    struct error err = ERROR_INIT;
    struct object_store *store;
    char *directory = check_make_directory(), text[64];
    bool resumed;
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    for (int i = 0; i < 2; i++)
        check_ok(object_store_keep(store, "shop", i ? "part" : "shop", &resumed, &err));
    put(store, "shop", a, "1", 1);
    put(store, "shop", b, "1", 2);
    put(store, "part", b, "1", 2);
    check_ok(object_store_end(store, "other", 10, "gone", &err));
    assert_false(object_store_has_ended(store, "shop", "shop"));
    check_ok(object_store_end(store, "shop", 10, "gone", &err));
    check_ok(object_store_end(store, "shop", 20, "gone", &err)); /* it ends once */
    assert_true(object_store_has_ended(store, "shop", "shop") && object_store_has_ended(store, "shop", "part"));
    put(store, "shop", b, "2", 9); /* from before, in another watch */
    put(store, "shop", a, NULL, 11);
    put(store, "part", b, NULL, 0);
    put(store, "shop", c, "1", 12);
    check_ok(object_store_sweep(store, "shop", "shop", "", "ConfigMap", 0, &err));
    object_store_list_kind(store, "", "ConfigMap");
    check_ok(object_store_sweep_kind(store, "", "ConfigMap", &err));
    assert_string_equal(value_at(store, "shop", a, &latest, text), "1");
    assert_string_equal(value_at(store, "shop", b, &latest, text), "2");
    assert_string_equal(value_at(store, "shop", c, &latest, text), "");
    assert_string_equal(value_at(store, "part", b, &latest, text), "1");
    object_store_drop(store, "shop", "shop");
    check_ok(object_store_keep(store, "shop", "shop", &resumed, &err)); /* another namespace of its name */
    assert_true(resumed);
    object_store_list(store, "shop", "shop", true);
    put(store, "shop", b, "3", 30);
    check_ok(object_store_sweep(store, "shop", "shop", "", "ConfigMap", 31, &err));
    object_store_list(store, "shop", "shop", false);
    assert_string_equal(value_at(store, "shop", a, &latest, text), "");
    assert_string_equal(value_at(store, "shop", b, &latest, text), "3");
    object_store_free(store);
    check_remove_directory(directory);
}

static void test_more_applications_than_journals_are_open(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct object_store *store;
    char *directory = check_make_directory(), text[64], application[32], value[32];
    bool resumed;
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < 2 * JOURNALS + 1; i++) {
            snprintf(application, sizeof application, "app%u", i);
            snprintf(value, sizeof value, "%u.%u", round, i);
            check_ok(object_store_keep(store, "shop", application, &resumed, &err));
            put(store, application, "core/v1/ConfigMap/shop/a", value, round + 1);
        }
    for (unsigned i = 0; i < 2 * JOURNALS + 1; i++) {
        snprintf(application, sizeof application, "app%u", i);
        snprintf(value, sizeof value, "1.%u", i);
        assert_string_equal(value_at(store, application, "core/v1/ConfigMap/shop/a", &latest, text), value);
    }
    object_store_free(store);
    check_remove_directory(directory);
}

struct busy {
    struct object_store *store;
    atomic_bool began, stop;
};
static void *change_all_the_time(void *context)
{
    struct busy *busy = context;
    char value[32];
    struct error err = ERROR_INIT;
    struct object_store_status status = {0};
    for (unsigned i = 0; !atomic_load(&busy->stop); i++) {
        snprintf(value, sizeof value, "%u", i);
        put(busy->store, "busy", "core/v1/ConfigMap/shop/a", value, 0);
        atomic_store(&busy->began, true);
        do /* something waits always, and never much */
            check_ok(object_store_status(busy->store, "shop", "busy", &status, &err));
        while (status.pending > 20 && !atomic_load(&busy->stop) && sched_yield() == 0);
    }
    return NULL;
}

static void test_an_application_that_changes_all_the_time_keeps_no_other_waiting(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct busy busy = {0};
    pthread_t thread;
    char *directory = check_make_directory(), text[64], value[32];
    bool resumed;
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &busy.store, &err));
    check_ok(object_store_keep(busy.store, "shop", "busy", &resumed, &err));
    check_ok(object_store_keep(busy.store, "shop", "quiet", &resumed, &err));
    assert_int_equal(pthread_create(&thread, NULL, change_all_the_time, &busy), 0);
    while (!atomic_load(&busy.began))
        sched_yield();
    for (unsigned i = 0; i < 5; i++) { /* S5: each would wait forever */
        snprintf(value, sizeof value, "%u", i);
        put(busy.store, "quiet", "core/v1/ConfigMap/shop/a", value, 0);
        assert_string_equal(value_at(busy.store, "quiet", "core/v1/ConfigMap/shop/a", &latest, text), value);
        assert_true(*value_at(busy.store, "busy", "core/v1/ConfigMap/shop/a", &latest, text));
    }
    atomic_store(&busy.stop, true);
    pthread_join(thread, NULL);
    object_store_free(busy.store);
    check_remove_directory(directory);
}

static void test_a_list_that_is_damaged_is_journaled_again(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct object_store *store;
    char *directory = check_make_directory(), text[64];
    const char *a = "core/v1/ConfigMap/shop/spoiled-one", *b = "core/v1/ConfigMap/shop/b";
    bool resumed;
    json_t *set;
    for (unsigned i = 0; i < 2; i++) { /* the second time seals what the first wrote */
        check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
        check_ok(object_store_keep(store, "shop", "shop", &resumed, &err));
        put(store, "shop", a, "1", 10);
        put(store, "shop", b, "2", 11);
        check_ok(object_store_flush(store, "shop", "shop", &err));
        object_store_free(store);
    }
    spoil(directory, "spoiled-one");
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    check_error(object_store_read(store, "shop", "shop", &latest, &set, NULL, &err), -EBADMSG, "");
    check_ok(object_store_keep(store, "shop", "shop", &resumed, &err));
    assert_true(resumed);
    put(store, "shop", b, "2", 12); /* as a list gives it; the other was deleted meanwhile */
    check_ok(object_store_flush(store, "shop", "shop", &err));
    assert_string_equal(value_at(store, "shop", b, &latest, text), "2");
    assert_string_equal(value_at(store, "shop", a, &latest, text), "");
    object_store_free(store);
    check_remove_directory(directory);
}

static void test_sealing_hides_binds_and_detects(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    json_t *secret =
        json_pack("{s:s, s:s, s:{s:s, s:s}, s:{s:s}}", "apiVersion", "v1", "kind", "Secret", "metadata",
                  "name", "s", "namespace", "shop", "data", "password", "aHVudGVyMg==");
    json_t *sealed, *again, *opened;
    check_ok(sealing_seal(&sealing, "core/v1/Secret/shop/s", secret, &sealed, &err));
    check_ok(sealing_seal(&sealing, "core/v1/Secret/shop/s", secret, &again, &err));
    char *text = json_dumps(sealed, 0);
    assert_null(strstr(text, "aHVudGVyMg"));
    free(text);
    assert_false(json_equal(sealed, again)); /* another nonce each time */
    check_ok(sealing_open(&sealing, "core/v1/Secret/shop/s", sealed, &opened, &err));
    assert_true(json_equal(opened, secret));
    json_decref(opened);
    check_error(sealing_open(&sealing, "core/v1/Secret/shop/t", sealed, &opened, &err), -EBADMSG,
                "moved from another name");
    struct sealing other;
    uint8_t other_key[SEALING_KEY_BYTES] = {1};
    check_ok(sealing_init(&other, other_key, &err));
    check_error(sealing_open(&other, "core/v1/Secret/shop/s", sealed, &opened, &err), -EKEYREJECTED,
                sealing.id);
    json_t *box = json_object_get(sealed, "sealed");
    char *data = strdup(json_string_value(json_object_get(box, "data")));
    data[5] = data[5] == 'A' ? 'B' : 'A';
    json_object_set_new(box, "data", json_string(data));
    free(data);
    check_error(sealing_open(&sealing, "core/v1/Secret/shop/s", sealed, &opened, &err), -EBADMSG, "damaged");
    json_decref(sealed);
    json_decref(again);
    json_decref(secret);
}

/* A definition that serves another version, or that went away and came again: what was deleted meanwhile is not there, and nothing
 * is there twice. */
static void test_a_kind_that_is_listed_anew_leaves_nothing_of_before(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct object_store *store;
    char *directory = check_make_directory(), text[64];
    bool resumed;
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    check_ok(object_store_keep(store, "shop", "shop", &resumed, &err));
    check_ok(object_store_keep(store, "shop", "listed", &resumed, &err));
    object_store_list(store, "shop", "shop", true);
    put(store, "shop", "example.com/v1alpha1/Thing/shop/a", "old", 1);
    put(store, "shop", "example.com/v1alpha1/Thing/shop/gone", "1", 1);
    put(store, "shop", "example.com/v1alpha1/Thingy/shop/a", "1", 1);
    put(store, "shop", "other.com/v1alpha1/Thing/shop/a", "1", 1);
    object_store_list(store, "shop", "shop", false);
    check_ok(object_store_sweep_kind(store, "example.com", "Thing", &err)); /* all were put */
    assert_string_equal(value_at(store, "shop", "example.com/v1alpha1/Thing/shop/a", &latest, text), "old");
    put(store, "listed", "example.com/v1alpha1/Thing/shop/a", "1", 1);
    object_store_list(store, "shop", "listed", true); /* beside it: that list says what is there */
    object_store_list_kind(store, "example.com", "Thing");
    put(store, "shop", "example.com/v1/Thing/shop/a", "new", 2);
    check_ok(object_store_sweep_kind(store, "example.com", "Thing", &err));
    assert_string_equal(value_at(store, "shop", "example.com/v1alpha1/Thing/shop/a", &latest, text), "");
    assert_string_equal(value_at(store, "shop", "example.com/v1alpha1/Thing/shop/gone", &latest, text), "");
    assert_string_equal(value_at(store, "shop", "example.com/v1/Thing/shop/a", &latest, text), "new");
    assert_string_equal(value_at(store, "shop", "example.com/v1alpha1/Thingy/shop/a", &latest, text), "1");
    assert_string_equal(value_at(store, "shop", "other.com/v1alpha1/Thing/shop/a", &latest, text), "1");
    assert_string_equal(value_at(store, "listed", "example.com/v1alpha1/Thing/shop/a", &latest, text), "1");
    object_store_free(store);
    check_remove_directory(directory);
}

static void *fill(void *context)
{
    struct error err = ERROR_INIT;
    char name[64], *value = malloc(64 << 10);
    memset(value, 'x', (64 << 10) - 1);
    value[(64 << 10) - 1] = '\0';
    json_t *object = config_map(value);
    int r = 0;
    for (unsigned i = 0; r == 0; i++) {
        snprintf(name, sizeof name, "core/v1/ConfigMap/shop/c%u", i);
        r = object_store_put(context, "shop", "shop", name, object, 1, &err);
    }
    json_decref(object);
    free(value);
    return (void *)(intptr_t)r;
}

/* The end of a term joins the threads that put: it must not wait for a disk that takes nothing more. */
static void test_what_waits_for_room_is_interrupted(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct object_store *store;
    char *directory = check_make_directory(), path[300], aside[300];
    struct object_store_status status = {0};
    pthread_t thread;
    void *result;
    bool resumed;
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    for (unsigned i = 0; i < JOURNALS + 1; i++) { /* the first is closed again */
        snprintf(path, sizeof path, "other%u", i);
        check_ok(object_store_keep(store, "shop", i ? path : "shop", &resumed, &err));
    }
    snprintf(path, sizeof path, "%s/shop/shop", directory);
    snprintf(aside, sizeof aside, "%s/shop/aside", directory);
    assert_int_equal(rename(path, aside), 0);
    FILE *file = fopen(path, "w"); /* no directory: nothing can be written there */
    fclose(file);
    assert_int_equal(pthread_create(&thread, NULL, fill, store), 0);
    while (status.pending < OBJECT_STORE_PENDING_BYTES / (64 << 10) || !*status.error) { /* full, and tried */
        check_ok(object_store_status(store, "shop", "shop", &status, &err));
        sched_yield();
    }
    object_store_interrupt(store);
    pthread_join(thread, &result);
    assert_int_equal((intptr_t)result, -ECANCELED);
    check_error(object_store_flush(store, "shop", "shop", &err), -EIO, "cannot be journaled");
    object_store_free(store);
    check_remove_directory(directory);
}

static int find_gap(void *context, const struct journal_event *e, struct error *err)
{
    (void)err;
    if (e->op == OP_GAP)
        snprintf(context, 300, "%s", e->payload);
    return 0;
}

/* An object that no record can hold is left out, and said to be; what comes after it is journaled. */
static void test_an_object_that_is_too_large_keeps_no_other_out(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct object_store *store;
    struct object_store_status status;
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t bytes = 2u << 20;
    char *directory = check_make_directory(), text[64], gap[300] = "", *large = malloc(bytes);
    uint64_t random = 88172645463325252u; /* what cannot be compressed below 1 MiB */
    bool resumed;
    for (size_t i = 0; i + 1 < bytes; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        large[i] = digits[random % 64];
    }
    large[bytes - 1] = '\0';
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    check_ok(object_store_keep(store, "shop", "shop", &resumed, &err));
    put(store, "shop", "core/v1/ConfigMap/shop/before", "1", 1);
    put(store, "shop", "core/v1/ConfigMap/shop/large", large, 2);
    put(store, "shop", "core/v1/ConfigMap/shop/after", "2", 3);
    assert_string_equal(value_at(store, "shop", "core/v1/ConfigMap/shop/before", &latest, text), "1");
    assert_string_equal(value_at(store, "shop", "core/v1/ConfigMap/shop/after", &latest, text), "2");
    assert_string_equal(value_at(store, "shop", "core/v1/ConfigMap/shop/large", &latest, text), "");
    check_ok(object_store_status(store, "shop", "shop", &status, &err));
    assert_string_equal(status.error, "");
    check_ok(object_store_events(store, "shop", "shop", find_gap, gap, NULL, &err));
    assert_non_null(strstr(gap, "ConfigMap/shop/large is too large"));
    object_store_free(store);
    free(large);
    check_remove_directory(directory);
}

struct side {
    struct object_store *store;
    unsigned number;
};
static void *change_two(void *context)
{
    struct side *side = context;
    char application[32], value[32];
    for (unsigned i = 0; i < 40; i++) {
        snprintf(application, sizeof application, "app%u", 2 * side->number + i % 2);
        snprintf(value, sizeof value, "%u", i);
        put(side->store, application, "core/v1/ConfigMap/shop/a", value, i + 1);
    }
    return NULL;
}

struct order {
    uint64_t above;
    unsigned records;
};
static int check_order(void *context, const struct journal_event *e, struct error *err)
{
    struct order *order = context;
    (void)err;
    if (e->op != OP_OBJECT)
        return 0;
    assert_true(e->lsn.n < order->above); /* newest first */
    order->above = e->lsn.n;
    order->records++;
    return 0;
}

/* S2: more applications than writers and open journals, from several threads: each has all of its records, in
 * order. */
static void test_applications_are_written_side_by_side(void **state)
{
    (void)state;
    enum { SIDES = 4 };
    struct error err = ERROR_INIT;
    struct object_store *store;
    struct side sides[SIDES];
    pthread_t threads[SIDES];
    char *directory = check_make_directory(), application[32], text[64];
    bool resumed;
    check_ok(object_store_new(directory, &sealing, NULL, JOURNALS, &store, &err));
    for (unsigned i = 0; i < 2 * SIDES; i++) {
        snprintf(application, sizeof application, "app%u", i);
        check_ok(object_store_keep(store, "shop", application, &resumed, &err));
    }
    for (unsigned i = 0; i < SIDES; i++) {
        sides[i] = (struct side){store, i};
        assert_int_equal(pthread_create(&threads[i], NULL, change_two, &sides[i]), 0);
    }
    for (unsigned i = 0; i < SIDES; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < 2 * SIDES; i++) {
        struct order order = {UINT64_MAX, 0};
        snprintf(application, sizeof application, "app%u", i);
        assert_string_equal(value_at(store, application, "core/v1/ConfigMap/shop/a", &latest, text),
                            i % 2 ? "39" : "38");
        check_ok(object_store_events(store, "shop", application, check_order, &order, NULL, &err));
        assert_int_equal(order.records, 20);
    }
    object_store_free(store);
    check_remove_directory(directory);
}

static int setup(void **state)
{
    struct error err = ERROR_INIT;
    (void)state;
    return sealing_init(&sealing, key, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records_are_made_of_changes_only_and_old_versions_never_follow_new_ones),
        cmocka_unit_test(test_a_list_finds_what_is_gone_and_a_deletion_beside_it_wins),
        cmocka_unit_test(test_s7_what_goes_with_a_namespace_is_no_history),
        cmocka_unit_test(test_more_applications_than_journals_are_open),
        cmocka_unit_test(test_an_application_that_changes_all_the_time_keeps_no_other_waiting),
        cmocka_unit_test(test_a_list_that_is_damaged_is_journaled_again),
        cmocka_unit_test(test_sealing_hides_binds_and_detects),
        cmocka_unit_test(test_a_kind_that_is_listed_anew_leaves_nothing_of_before),
        cmocka_unit_test(test_what_waits_for_room_is_interrupted),
        cmocka_unit_test(test_an_object_that_is_too_large_keeps_no_other_out),
        cmocka_unit_test(test_applications_are_written_side_by_side),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
