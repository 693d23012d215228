/* SPDX-License-Identifier: Apache-2.0 */
/* Cron's times, time zones, and what a schedule makes and keeps. Invariants T1..T4: controller/schedule.h. */
#include "../../check.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "controller/schedule.h"
#include "controller/time_zone_format.h"
#include "lib/json.h"

static int64_t at(const char *text)
{
    struct error err = ERROR_INIT;
    uint64_t ns = 0;
    check_ok(clock_parse_rfc3339(text, &ns, &err));
    return (int64_t)(ns / NS_PER_SECOND);
}

static const char *text_of(int64_t s)
{
    static char text[32];
    schedule_time(s, text);
    return text;
}

/* ---- cron ---- */

static void next_times_are_those_of_cron(void **unused)
{
    static const char *const cases[][3] = {
        {"*/15 * * * *", "2026-11-21T15:00:00Z", "2026-11-21T15:15:00Z"},
        {"*/15 * * * *", "2026-11-21T15:14:59Z", "2026-11-21T15:15:00Z"},
        {"0 * * * *", "2026-12-31T23:00:01Z", "2027-01-01T00:00:00Z"},
        {"@daily", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"},
        {"30 2 * * MON-FRI", "2026-11-20T12:00:00Z", "2026-11-23T02:30:00Z"}, /* a Friday */
        {"0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"},
        {"0 0 1 jan,JUL *", "2026-02-01T00:00:00Z", "2026-07-01T00:00:00Z"},
        {"0 0 13 * 5", "2026-11-14T00:00:00Z", "2026-11-20T00:00:00Z"}, /* either day */
        {"0 0 */2 * 5", "2026-11-14T00:00:00Z",
         "2026-11-27T00:00:00Z"}, /* both, as one begins with an asterisk */
        {"0 12 * * 7", "2026-11-21T00:00:00Z", "2026-11-22T12:00:00Z"},
        {"5-10/5 1 * * *", "2026-11-21T01:05:00Z", "2026-11-21T01:10:00Z"},
        {"50/4 1 * * *", "2026-11-21T01:50:00Z", "2026-11-21T01:54:00Z"},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        struct cron cron;
        check_ok(cron_parse(cases[i][0], &cron, &err));
        assert_string_equal(text_of(cron_next(&cron, NULL, at(cases[i][1]))), cases[i][2]);
    }
}

static void what_is_no_schedule_is_refused_with_the_field(void **unused)
{
    static const char *const cases[][2] = {
        {"* * * *", "needs five fields"},  {"* * * * * *", "needs five fields"},
        {"60 * * * *", "the minute '60'"}, {"* 24 * * *", "the hour '24'"},
        {"* * 0 * *", "day of the month"}, {"* * * foo *", "the month 'foo'"},
        {"* * * * 8", "day of the week"},  {"*/0 * * * *", "step '0'"},
        {"5-1 * * * *", "backwards"},      {"0 0 30 2 *", "never comes"},
        {", * * * *", "empty item"},       {"", "needs five fields"},
        {"-5 * * * *", "minute"},          {"@often", "the minute '@often'"}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        struct cron cron;
        assert_int_equal(cron_parse(cases[i][0], &cron, &err), -EINVAL);
        assert_non_null(strstr(err.message, cases[i][1]));
    }
}

/* ---- time zones ---- */

static void put32(FILE *f, uint32_t value)
{
    const uint8_t bytes[] = {(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8),
                             (uint8_t)value};
    assert_int_equal(fwrite(bytes, 1, 4, f), 4);
}

static void put_header(FILE *f, unsigned times, unsigned types)
{
    const uint8_t head[20] = {'T', 'Z', 'i', 'f', '2'};
    assert_int_equal(fwrite(head, 1, sizeof head, f), sizeof head);
    put32(f, 0), put32(f, 0), put32(f, 0), put32(f, times), put32(f, types), put32(f, 4);
}

/* A zone that was two hours ahead until 2001, and has had the rule since. */
static void make_zone(const char *path, const char *rule)
{
    _cleanup_fclose_ FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int block = 0; block < 2; block++) {
        put_header(f, block, 2);
        if (block)
            put32(f, 0), put32(f, 978307200), fputc(1, f); /* 2001-01-01 */
        put32(f, 7200), fputc(0, f), fputc(0, f);
        put32(f, 3600), fputc(0, f), fputc(0, f);
        assert_int_equal(fwrite("AAA", 1, 4, f), 4);
    }
    fprintf(f, "\n%s\n", rule);
}

static struct time_zone *zone_of(const char *rule)
{
    char directory[] = "/tmp/tidemark-zone-XXXXXX", path[64];
    struct error err = ERROR_INIT;
    struct time_zone *zone = NULL;
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/Zone", directory);
    make_zone(path, rule);
    check_ok(time_zone_load(directory, "Zone", &zone, &err));
    unlink(path);
    rmdir(directory);
    return zone;
}

static void zones_follow_their_transitions_and_then_their_rule(void **unused)
{
    (void)unused;
    struct time_zone *berlin = zone_of("CET-1CEST,M3.5.0,M10.5.0/3"),
                     *sydney = zone_of("AEST-10AEDT,M10.1.0,M4.1.0/3"), *plain = zone_of("<+0530>-5:30"),
                     *julian = zone_of("XXX3YYY,J60/0,300/0");
    assert_int_equal(time_zone_offset(berlin, at("2000-07-01T00:00:00Z")), 7200);
    assert_int_equal(time_zone_offset(berlin, at("2026-03-29T00:59:59Z")), 3600);
    assert_int_equal(time_zone_offset(berlin, at("2026-03-29T01:00:00Z")), 7200);
    assert_int_equal(time_zone_offset(berlin, at("2026-10-25T00:59:59Z")), 7200);
    assert_int_equal(time_zone_offset(berlin, at("2026-10-25T01:00:00Z")), 3600);
    assert_int_equal(time_zone_offset(sydney, at("2026-01-15T00:00:00Z")), 39600);
    assert_int_equal(time_zone_offset(sydney, at("2026-07-15T00:00:00Z")), 36000);
    assert_int_equal(time_zone_offset(sydney, at("2026-10-03T15:59:59Z")), 36000);
    assert_int_equal(time_zone_offset(sydney, at("2026-10-03T16:00:00Z")), 39600);
    assert_int_equal(time_zone_offset(plain, at("2026-07-15T00:00:00Z")), 19800);
    assert_int_equal(time_zone_offset(julian, at("2028-03-01T02:59:59Z")),
                     -10800); /* J60 is 1 March, whatever year */
    assert_int_equal(time_zone_offset(julian, at("2028-03-01T03:00:00Z")), -7200);
    time_zone_free(berlin), time_zone_free(sydney), time_zone_free(plain), time_zone_free(julian);
}

static void a_clock_that_changes_leaves_out_and_counts_once(void **unused)
{
    (void)unused;
    struct time_zone *zone = zone_of("CET-1CEST,M3.5.0,M10.5.0/3");
    struct error err = ERROR_INIT;
    struct cron daily, hourly, half;
    check_ok(cron_parse("30 2 * * *", &daily, &err));
    check_ok(cron_parse("0 * * * *", &hourly, &err));
    check_ok(cron_parse("30 */2 * * *", &half, &err));
    /* 29 March 2026: from 2:00 to 3:00. */
    assert_string_equal(text_of(cron_next(&daily, zone, at("2026-03-28T12:00:00Z"))), "2026-03-30T00:30:00Z");
    assert_string_equal(text_of(cron_next(&hourly, zone, at("2026-03-29T00:00:00Z"))),
                        "2026-03-29T01:00:00Z");
    /* 25 October 2026: 2:30 comes at 0:30 and at 1:30 of UTC. */
    assert_string_equal(text_of(cron_next(&daily, zone, at("2026-10-24T12:00:00Z"))), "2026-10-25T00:30:00Z");
    assert_string_equal(text_of(cron_next(&daily, zone, at("2026-10-25T00:30:00Z"))), "2026-10-26T01:30:00Z");
    assert_string_equal(text_of(cron_next(&half, zone, at("2026-10-25T00:30:00Z"))), "2026-10-25T01:30:00Z");
    assert_string_equal(text_of(cron_next(&hourly, zone, at("2026-10-25T00:00:00Z"))),
                        "2026-10-25T01:00:00Z");
    time_zone_free(zone);
}

static void names_and_files_of_no_zone_are_refused(void **unused)
{
    (void)unused;
    static const char *const names[] = {"", "/etc/passwd", "../../etc/passwd", "Europe/Nowhere At All",
                                        "no such"};
    struct time_zone *zone;
    struct error err = ERROR_INIT;
    char directory[] = "/tmp/tidemark-zone-XXXXXX", path[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(time_zone_load("/tmp", names[i], &zone, &err), -EINVAL);
    assert_int_equal(time_zone_load("/tmp", "No/Such-Zone", &zone, &err), -ENOENT);
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/Zone", directory);
    make_zone(path, "CET-1CEST,M3.5.0,M10.5.0/3");
    struct stat whole;
    assert_int_equal(stat(path, &whole), 0);
    for (off_t size = whole.st_size - 1; size >= 0; size--) { /* cut anywhere */
        make_zone(path, "CET-1CEST,M3.5.0,M10.5.0/3");
        assert_int_equal(truncate(path, size), 0);
        assert_int_equal(time_zone_load(directory, "Zone", &zone, &err), -EBADMSG);
    }
    make_zone(path, "CET-1CEST,M13.5.0,M10.5.0/3");
    assert_int_equal(time_zone_load(directory, "Zone", &zone, &err), -EBADMSG);
    unlink(path);
    rmdir(directory);
}

/* ---- schedules ---- */

static struct schedule parse(const char *text)
{
    struct error err = ERROR_INIT;
    struct schedule s;
    _cleanup_json_ json_t *spec = json_loads(text, 0, NULL);
    assert_non_null(spec);
    check_ok(schedule_parse(spec, NULL, &s, &err));
    return s;
}

static void a_new_schedule_begins_with_its_next_time(void **unused)
{
    (void)unused;
    struct schedule s = parse("{\"schedule\": \"0 * * * *\"}"), every = parse("{\"interval\": \"6h\"}");
    struct schedule_decision d;
    int64_t now = at("2026-11-21T15:10:00Z");
    schedule_decide(&s, NULL, now, &d); /* T3 */
    assert_int_equal(d.due_s, 0);
    assert_string_equal(text_of(d.next_s), "2026-11-21T16:00:00Z");
    _cleanup_json_ json_t *other =
        json_pack("{s:s, s:s}", "schedule", "0 3 * * * UTC", "nextTime", "2026-11-21T03:00:00Z");
    schedule_decide(&s, other, now, &d);
    assert_int_equal(d.due_s, 0);
    schedule_decide(&every, NULL, now, &d);
    assert_string_equal(text_of(d.next_s), "2026-11-21T21:10:00Z");
    schedule_release(&s), schedule_release(&every);
}

static void missed_times_are_one_and_are_counted(void **unused)
{
    (void)unused;
    struct schedule s = parse("{\"schedule\": \"0 * * * *\"}"), every = parse("{\"interval\": \"6h\"}");
    struct schedule_decision d;
    _cleanup_json_ json_t *status =
        json_pack("{s:s, s:s}", "schedule", s.text, "nextTime", "2026-11-21T03:00:00Z");
    _cleanup_json_ json_t *of_every =
        json_pack("{s:s, s:s}", "schedule", every.text, "nextTime", "2026-11-20T03:00:00Z");
    schedule_decide(&s, status, at("2026-11-21T02:59:59Z"), &d);
    assert_int_equal(d.due_s, 0);
    assert_string_equal(text_of(d.next_s), "2026-11-21T03:00:00Z");
    schedule_decide(&s, status, at("2026-11-21T03:00:00Z"), &d);
    assert_string_equal(text_of(d.due_s), "2026-11-21T03:00:00Z");
    assert_int_equal(d.missed, 0);
    schedule_decide(&s, status, at("2026-11-21T15:10:00Z"), &d); /* T2 */
    assert_string_equal(text_of(d.due_s), "2026-11-21T15:00:00Z");
    assert_int_equal(d.missed, 12);
    assert_string_equal(text_of(d.next_s), "2026-11-21T16:00:00Z");
    schedule_decide(&every, of_every, at("2026-11-21T15:10:00Z"), &d);
    assert_string_equal(text_of(d.due_s), "2026-11-21T15:00:00Z");
    assert_int_equal(d.missed, 6);
    assert_string_equal(text_of(d.next_s), "2026-11-21T21:00:00Z");
    _cleanup_json_ json_t *years =
        json_pack("{s:s, s:s}", "schedule", s.text, "nextTime", "2020-01-01T00:00:00Z");
    schedule_decide(&s, years, at("2026-11-21T15:10:00Z"), &d); /* more than are counted */
    assert_string_equal(text_of(d.due_s), "2026-11-21T15:00:00Z");
    assert_int_equal(d.missed, SCHEDULE_STEPS_MAX);
    schedule_release(&s), schedule_release(&every);
}

static void a_time_has_one_name(void **unused)
{
    (void)unused;
    char one[SCHEDULE_NAME_BYTES], two[SCHEDULE_NAME_BYTES];
    schedule_name("shop", at("2026-11-21T15:00:00Z"), one); /* T1 */
    assert_string_equal(one, "shop-20261121-150000");
    schedule_name("shop", at("2026-11-21T15:01:00Z"), two);
    assert_string_not_equal(one, two);
}

static void add_checkpoint(json_t *all, const char *name, const char *application, bool scheduled,
                           const char *phase, const char *created)
{
    json_array_append_new(all, json_pack("{s:{s:s, s:s, s:{s:s}}, s:{s:s}, s:{s:s}}", "metadata", "name",
                                         name, "creationTimestamp", created, "labels", SCHEDULE_LABEL,
                                         scheduled ? "true" : "false", "spec", "application", application,
                                         "status", "phase", phase));
}

static void only_ended_ones_that_it_made_are_removed(void **unused)
{
    (void)unused;
    struct schedule count = parse("{\"schedule\": \"0 * * * *\", \"keep\": {\"count\": 2}}"),
                    both = parse(
                        "{\"schedule\": \"0 * * * *\", \"keep\": {\"count\": 3, \"duration\": \"2h\"}}"),
                    plain = parse("{\"schedule\": \"0 * * * *\"}");
    _cleanup_json_ json_t *all = json_array(), *gone = NULL, *old = NULL, *none = NULL;
    struct error err = ERROR_INIT;
    int64_t now = at("2026-11-21T15:10:00Z"), next;
    add_checkpoint(all, "a", "shop", true, "Ready", "2026-11-21T12:00:00Z");
    add_checkpoint(all, "b", "shop", true, "Ready", "2026-11-21T13:00:00Z");
    add_checkpoint(all, "f", "shop", true, "Failed", "2026-11-21T13:30:00Z");
    add_checkpoint(all, "c", "shop", true, "Ready", "2026-11-21T14:00:00Z");
    add_checkpoint(all, "d", "shop", true, "Freezing", "2026-11-21T15:00:00Z");
    add_checkpoint(all, "mine", "shop", false, "Ready", "2026-11-01T00:00:00Z");
    add_checkpoint(all, "other", "blog", true, "Ready", "2026-11-01T00:00:00Z");
    check_ok(schedule_expired(&count, all, "shop", now, &gone, &next, &err));
    assert_int_equal(json_array_size(gone), 1); /* T4 */
    assert_string_equal(json_text(json_object_get(json_array_get(gone, 0), "metadata"), "name"), "a");
    assert_int_equal(next, 0);
    check_ok(schedule_expired(&both, all, "shop", now, &old, &next, &err));
    assert_int_equal(json_array_size(old), 2); /* a and b */
    assert_string_equal(text_of(next), "2026-11-21T15:30:00Z");
    check_ok(schedule_expired(&plain, all, "shop", now, &none, &next, &err));
    assert_int_equal(json_array_size(none), 0);
    assert_string_equal(json_text(json_object_get(schedule_running(all, "shop"), "metadata"), "name"), "d");
    assert_null(schedule_running(all, "blog"));
    assert_string_equal(json_text(json_object_get(schedule_latest(all, "shop"), "metadata"), "name"), "c");
    schedule_release(&count), schedule_release(&both), schedule_release(&plain);
}

static void what_a_policy_must_not_say_is_refused(void **unused)
{
    static const char *const cases[][2] = {
        {"{}", "one of schedule and interval"},
        {"{\"schedule\": \"0 * * * *\", \"interval\": \"1h\"}", "not both"},
        {"{\"interval\": \"30s\"}", "at least 1m"},
        {"{\"interval\": \"1h\", \"timeZone\": \"UTC\"}", "goes with schedule"},
        {"{\"schedule\": \"0 * * * *\", \"timeZone\": \"Mars/Olympus\"}",
         "there is no time zone 'Mars/Olympus'"},
        {"{\"schedule\": \"0 99 * * *\"}", "the hour '99'"},
        {"{\"schedule\": \"0 * * * *\", \"keep\": {\"duration\": \"soon\"}}", "keep.duration"}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        struct schedule s;
        _cleanup_json_ json_t *spec = json_loads(cases[i][0], 0, NULL);
        assert_int_equal(schedule_parse(spec, NULL, &s, &err), -EINVAL);
        assert_non_null(strstr(err.message, cases[i][1]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(next_times_are_those_of_cron),
        cmocka_unit_test(what_is_no_schedule_is_refused_with_the_field),
        cmocka_unit_test(zones_follow_their_transitions_and_then_their_rule),
        cmocka_unit_test(a_clock_that_changes_leaves_out_and_counts_once),
        cmocka_unit_test(names_and_files_of_no_zone_are_refused),
        cmocka_unit_test(a_new_schedule_begins_with_its_next_time),
        cmocka_unit_test(missed_times_are_one_and_are_counted),
        cmocka_unit_test(a_time_has_one_name),
        cmocka_unit_test(only_ended_ones_that_it_made_are_removed),
        cmocka_unit_test(what_a_policy_must_not_say_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
