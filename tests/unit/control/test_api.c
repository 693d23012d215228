/* SPDX-License-Identifier: Apache-2.0 */
/* Every route is described in api/openapi.yaml, and every one described there exists. */
#include "check.h"

#include <string.h>

#include "control/api_internal.h"
#include "lib/yaml.h"

static const char *openapi_path;

static bool is_method(const char *key)
{
    static const char *const methods[] = {"get", "put", "post", "delete", "patch", "head", "options"};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (strcmp(methods[i], key) == 0)
            return true;
    return false;
}

static bool has_route(const char *method, const char *path)
{
    for (size_t i = 0; i < api_route_count(); i++)
        if (strcasecmp(api_route(i)->method, method) == 0 && strcmp(api_route(i)->path, path) == 0)
            return true;
    return false;
}

static void described(void **unused)
{
    struct error err = ERROR_INIT;
    _cleanup_yaml_stream_ struct yaml_stream *stream = NULL;
    (void)unused;
    check_ok(yaml_parse_file(openapi_path, &stream, &err));
    const struct yaml_node *paths = yaml_lookup(stream->documents[0].root, "paths");
    size_t count = 0;
    for (size_t i = 0; i < paths->count; i++)
        for (size_t j = 0; j < paths->pairs[i].value->count; j++) {
            const char *method = paths->pairs[i].value->pairs[j].key->scalar,
                       *path = paths->pairs[i].key->scalar;
            if (!is_method(method))
                continue;
            count++;
            if (!has_route(method, path))
                fail_msg("openapi.yaml describes %s %s, which is not served", method, path);
        }
    for (size_t i = 0; i < api_route_count(); i++) {
        char method[8] = "";
        for (size_t k = 0; api_route(i)->method[k] && k + 1 < sizeof method; k++)
            method[k] = (char)(api_route(i)->method[k] | 32);
        if (!yaml_lookup(yaml_lookup(paths, api_route(i)->path), method))
            fail_msg("%s %s is served and not described in openapi.yaml", api_route(i)->method,
                     api_route(i)->path);
    }
    assert_int_equal(count, api_route_count());
}

static void matching(void **unused)
{
    char argument[16];
    (void)unused;
    assert_true(api_match("/v1/status", "/v1/status", argument, sizeof argument));
    assert_false(api_match("/v1/status", "/v1/statu", argument, sizeof argument));
    assert_false(api_match("/v1/status", "/v1/status/", argument, sizeof argument));
    assert_true(api_match("/a/{x}/b", "/a/shop/b", argument, sizeof argument));
    assert_string_equal(argument, "shop");
    assert_false(api_match("/a/{x}/b", "/a//b", argument, sizeof argument));
    assert_false(api_match("/a/{x}", "/a/b/c", argument, sizeof argument));
    assert_false(api_match("/a/{x}", "/a/0123456789abcdef", argument, sizeof argument));
    assert_true(api_match("/a/{x}", "/a/0123456789abcde", argument, sizeof argument));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(described), cmocka_unit_test(matching)};
    if (argc != 2)
        return 2;
    openapi_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
