/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <pthread.h>

#include "base/cleanup.h"
#include "lib/http_server.h"
#include "lib/json.h"

static json_t *parse(const char *text)
{
    struct error err = ERROR_INIT;
    json_t *json = NULL;
    check_ok(json_parse("t", text, strlen(text), &json, &err));
    return json;
}

static void positions(void **unused)
{
    struct error err = ERROR_INIT;
    json_t *json = NULL;
    (void)unused;
    check_error(json_parse("c.json", "{\n \"a\": x}", 10, &json, &err), -EINVAL, "c.json:2:");
    check_error(json_parse("c.json", "{\"a\":1,\"a\":2}", 13, &json, &err), -EINVAL, "duplicate");
    check_error(json_parse("c.json", "{} x", 4, &json, &err), -EINVAL, "c.json:1:");
    check_error(json_parse("c.json", "", 0, &json, &err), -EINVAL, "c.json:1:1");
    check_error(json_parse("c.json", "9223372036854775808", 19, &json, &err), -EINVAL, "big");
    check_error(json_parse_file("/nonexistent.json", &json, &err), -ENOENT, "/nonexistent.json");
    assert_null(json);
}

static char *nested(unsigned depth, const char *open, const char *close)
{
    size_t open_bytes = strlen(open), close_bytes = strlen(close);
    char *text = calloc(1, depth * (open_bytes + close_bytes) + 2), *at = text;
    assert_non_null(text);
    for (unsigned i = 0; i < depth; i++, at += open_bytes)
        memcpy(at, open, open_bytes);
    *at++ = '1';
    for (unsigned i = 0; i < depth; i++, at += close_bytes)
        memcpy(at, close, close_bytes);
    return text;
}

/* One part that is nested too deeply does not keep the others out. */
static void what_is_too_deep_is_cut_off(void **unused)
{
    static const char *const brackets[][2] = {{"[", "]"}, {"{\"a\\\"]\":[\"[\",", "]}"}};
    (void)unused;
    for (size_t i = 0; i < 2; i++) {
        for (unsigned more = 0; more < 4; more++) {
            struct error err = ERROR_INIT;
            _cleanup_json_ json_t *json = NULL;
            _cleanup_free_ char *deep = nested(JSON_DEPTH_MAX / (i ? 2 : 1) - 1 + more, brackets[i][0], brackets[i][1]), *text = NULL;
            assert_true(asprintf(&text, "{\"before\":[1,{}],\"deep\":%s,\"after\":\"]\\\"{\"}", deep) > 0);
            check_ok(json_parse_foreign_cut("deep", text, strlen(text), &json, &err));
            assert_int_equal(json_array_size(json_object_get(json, "before")), 2);
            assert_string_equal(json_string_value(json_object_get(json, "after")), "]\"{");
            _cleanup_free_ char *written = json_to_text(json);
            if (strlen(deep) < 1000 * (i + 1) && more == 0)
                assert_non_null(strstr(written, deep)); /* all of it */
            _cleanup_json_ json_t *again = NULL;
            check_ok(json_parse("cut", written, strlen(written), &again, &err));
        }
    }
    struct error err = ERROR_INIT;
    json_t *json = NULL;
    _cleanup_free_ char *broken = nested(JSON_DEPTH_MAX + 9, "[", "");
    check_error(json_parse_foreign_cut("deep", broken, strlen(broken), &json, &err), -EINVAL, "deep:1:");
    assert_null(json);
}

static void *copy_and_write(void *context)
{
    const char *text = context;
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *json = NULL, *copy = NULL;
    if (json_parse("deep", text, strlen(text), &json, &err) < 0)
        return NULL;
    copy = json_deep_copy(json);
    return json_to_text(copy);
}

/* What is taken can be handled by the threads that get requests: they have little stack. */
static void deep_nesting_is_refused_before_it_takes_the_stack(void **unused)
{
    static const char *const brackets[][2] = {{"[", "]"}, {"{\"a\":", "}"}};
    (void)unused;
    for (size_t i = 0; i < 2; i++) {
        struct error err = ERROR_INIT;
        json_t *json = NULL;
        pthread_attr_t attributes;
        pthread_t thread;
        void *written = NULL;
        _cleanup_free_ char *most = nested(JSON_DEPTH_MAX, brackets[i][0], brackets[i][1]),
                            *more = nested(JSON_DEPTH_MAX + 1, brackets[i][0], brackets[i][1]);
        check_error(json_parse("deep", more, strlen(more), &json, &err), -EINVAL,
                    "deep:1:1: JSON nested more than 256 deep");
        pthread_attr_init(&attributes);
#ifndef TIDEMARK_SANITIZED
        assert_int_equal(pthread_attr_setstacksize(&attributes, HTTP_SERVER_STACK_BYTES / 2),
                         0); /* handlers have frames too */
#endif
        assert_int_equal(pthread_create(&thread, &attributes, copy_and_write, most), 0);
        pthread_attr_destroy(&attributes);
        pthread_join(thread, &written);
        assert_non_null(written);
        assert_string_equal(written, most);
        free(written);
    }
    _cleanup_free_ char *brackets_in_a_text = nested(2000, "[", "{"), *text = NULL;
    assert_true(asprintf(&text, "[\"\\\\\\\"%s\\\\\", [], {}]", brackets_in_a_text) > 0);
    _cleanup_json_ json_t *json = parse(text);
    assert_int_equal(json_array_size(json), 3);
}

static void readers(void **unused)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *o = parse("{\"s\":\"x\",\"n\":9223372036854775807,\"neg\":-1,\"b\":true,\"o\":{},"
                                     "\"a\":[],\"z\":null,\"r\":1.5}");
    const char *s = NULL;
    uint64_t n = 7;
    bool b = false;
    json_t *j = NULL;
    (void)unused;
    check_ok(json_get_string(o, "s", &s, &err));
    assert_string_equal(s, "x");
    check_ok(json_get_u64(o, "n", &n, &err));
    assert_true(n == INT64_MAX);
    check_ok(json_get_bool(o, "b", &b, &err));
    assert_true(b);
    check_ok(json_get_object(o, "o", &j, &err));
    check_ok(json_get_array(o, "a", &j, &err));
    n = 7;
    check_error(json_get_u64(o, "missing", &n, &err), -EINVAL, "'missing' is missing");
    check_error(json_get_u64(o, "z", &n, &err), -EINVAL, "'z' is missing");
    check_error(json_get_u64(o, "neg", &n, &err), -EINVAL, "'neg'");
    check_error(json_get_u64(o, "r", &n, &err), -EINVAL, "a number with a fraction");
    check_error(json_get_u64(o, "s", &n, &err), -EINVAL, "found a string");
    assert_int_equal(n, 7); /* L1 */
    check_error(json_get_string(o, "n", &s, &err), -EINVAL, "expected a string");
    check_error(json_get_bool(o, "s", &b, &err), -EINVAL, "expected true or false");
    check_error(json_get_object(o, "a", &j, &err), -EINVAL, "expected an object, found an array");
    check_error(json_get_array(o, "o", &j, &err), -EINVAL, "expected an array, found an object");
    check_error(json_get_string(NULL, "n", &s, &err), -EINVAL, "found nothing");
    check_ok(json_get_optional_u64(o, "missing", &n, &err));
    check_ok(json_get_optional_u64(o, "z", &n, &err));
    assert_int_equal(n, 7);
    check_error(json_get_optional_string(o, "n", &s, &err), -EINVAL, "'n'");
}

static json_t *parse_foreign(const char *text)
{
    struct error err = ERROR_INIT;
    json_t *json = NULL;
    check_ok(json_parse_foreign("t", text, strlen(text), &json, &err));
    return json;
}

/* What Go writes and this library would refuse: a text with NUL, and numbers of 64 bits without a sign. */
static void foreign_texts(void **unused)
{
    struct error err = ERROR_INIT;
    json_t *none = NULL;
    (void)unused;
    _cleanup_json_ json_t *nul = parse_foreign("{\"data\":\"a\\u0000b\"}");
    assert_int_equal(json_string_length(json_object_get(nul, "data")), 3);
    _cleanup_free_ char *back = json_to_text(nul);
    assert_string_equal(back, "{\"data\":\"a\\u0000b\"}");
    _cleanup_json_ json_t *big = parse_foreign(
        "{\"s\":\"18446744073709551615 \\\" 99999999999999999999\",\"u\":18446744073709552000,\"a\":[-9223372036854775808,"
        "-9223372036854775809,9223372036854775807,100000000000000000000],\"f\":12345678901234567890.5,\"e\":1e30}");
    const json_t *a = json_object_get(big, "a");
    assert_string_equal(json_text(big, "s"), "18446744073709551615 \" 99999999999999999999");
    assert_true(json_real_value(json_object_get(big, "u")) == 18446744073709552000.0);
    assert_true(json_integer_value(json_array_get(a, 0)) == INT64_MIN);
    assert_true(json_real_value(json_array_get(a, 1)) == -9223372036854775808.0);
    assert_true(json_integer_value(json_array_get(a, 2)) == INT64_MAX);
    assert_true(json_real_value(json_array_get(a, 3)) == 1e20);
    assert_true(json_real_value(json_object_get(big, "f")) == 12345678901234567890.5);
    _cleanup_json_ json_t *twice = parse_foreign("{\"a\":1,\"a\":2}");
    assert_int_equal(json_integer_value(json_object_get(twice, "a")), 2);
    /* Nothing but numbers, as long as they can be: the copy has room. */
    _cleanup_json_ json_t *dense = parse_foreign("[9999999999999999999,9999999999999999999,9999999999999999999]");
    assert_int_equal(json_array_size(dense), 3);
    _cleanup_json_ json_t *bare = parse_foreign("9999999999999999999");
    assert_true(json_is_real(bare));
    check_error(json_parse_foreign("c", "{\"n\":99999999999999999999,x}", 28, &none, &err), -EINVAL, "c:1:");
    assert_null(none);
}

static void unknown_fields(void **unused)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *o = parse("{\"a\":1,\"b\":2}");
    _cleanup_json_ json_t *array = parse("[]");
    (void)unused;
    check_ok(json_reject_unknown(o, &err, "b", "a", "c", NULL));
    check_error(json_reject_unknown(o, &err, "a", NULL), -EINVAL, "unknown field 'b'");
    check_error(json_reject_unknown(array, &err, "a", NULL), -EINVAL, "found an array");
}

static void errors(void **unused)
{
    struct error err = ERROR_INIT, back = ERROR_INIT;
    (void)unused;
    error_set(&err, -ENOENT, "no such \"thing\"");
    json_t *body = json_of_error(&err);
    char *text = json_to_text(body);
    assert_string_equal(text, "{\"error\":{\"code\":\"ENOENT\",\"message\":\"no such \\\"thing\\\"\"}}");
    assert_int_equal(json_to_error(body, -EIO, "fallback", &back), -ENOENT);
    assert_string_equal(back.message, err.message);
    free(text);
    json_decref(body);
    assert_int_equal(json_to_error(NULL, -EIO, "fallback", &back), -EIO);
    assert_string_equal(back.message, "fallback");
    error_set(&err, -EIO, "bad name \xff\xfe");
    body = json_of_error(&err);
    assert_non_null(body);
    assert_int_equal(json_to_error(body, 0, "", &back), -EIO);
    assert_string_equal(back.message, "bad name ??");
    json_decref(body);
    for (int code = 1; code < 134; code++)
        if (strerrorname_np(code) && code != EWOULDBLOCK)
            assert_int_equal(json_errno_of_name(json_errno_name(-code)), -code);
    assert_int_equal(json_errno_of_name("ENONSENSE"), 0);
    assert_string_equal(json_errno_name(-4000), "EIO");
}

static void lossy_strings(void **unused)
{
    static const char *const cases[][2] = {
        {"", ""},         {"plain", "plain"},    {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"}, {"gr\xc3", "gr"}, {"\xe4\xbd", ""},
        {"a\xe4\xbd", "a"}, {"\xf0\x9f\x98", ""}, {"a\xff" "b", "a?b"},          {"\xc3\xbc\xff", "\xc3\xbc"},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        _cleanup_json_ json_t *string = json_string_lossy(cases[i][0]);
        assert_string_equal(json_string_value(string), cases[i][1]);
    }
    assert_null(json_string_lossy(NULL));
    _cleanup_json_ json_t *cut = json_sprintf_lossy("%d: %.3s", 7, "gr\xc3\xbc\xc3\x9f");
    assert_string_equal(json_string_value(cut), "7: gr");
}

static void texts(void **unused)
{
    _cleanup_json_ json_t *o = json_pack("{s:o, s:[i]}", "z", json_u64(UINT64_MAX), "a", 1);
    char *text = json_to_text(o), *pretty = json_to_pretty_text(o);
    (void)unused;
    assert_string_equal(text, "{\"z\":9223372036854775807,\"a\":[1]}");
    assert_int_equal(pretty[strlen(pretty) - 1], '\n');
    free(text);
    free(pretty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deep_nesting_is_refused_before_it_takes_the_stack), cmocka_unit_test(what_is_too_deep_is_cut_off), cmocka_unit_test(foreign_texts),
        cmocka_unit_test(positions), cmocka_unit_test(readers), cmocka_unit_test(unknown_fields),
        cmocka_unit_test(errors),    cmocka_unit_test(texts),   cmocka_unit_test(lossy_strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
