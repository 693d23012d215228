/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

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
        cmocka_unit_test(positions), cmocka_unit_test(readers), cmocka_unit_test(unknown_fields),
        cmocka_unit_test(errors),    cmocka_unit_test(texts),   cmocka_unit_test(lossy_strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
