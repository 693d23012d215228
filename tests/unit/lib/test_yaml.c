/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "base/cleanup.h"
#include "lib/yaml.h"

static struct yaml_stream *parse(const char *text)
{
    struct error err = ERROR_INIT;
    struct yaml_stream *stream = NULL;
    check_ok(yaml_parse("f.yaml", text, strlen(text), &stream, &err));
    return stream;
}
static void refuse(const char *text, int code, const char *message)
{
    struct error err = ERROR_INIT;
    struct yaml_stream *stream = NULL;
    check_error(yaml_parse("f.yaml", text, strlen(text), &stream, &err), code, message);
    assert_null(stream);
}

static void tree(void **unused)
{
    _cleanup_yaml_stream_ struct yaml_stream *s =
        parse("# c\nkind: App\nmetadata:\n  name: \"shop\"\nspec:\n"
              "  volumes:\n  - name: data\n    size: 8Gi\n  - {name: wal}\n"
              "  none: ~\n  many: [1, 'two', 3.5]\n");
    const struct yaml_node *root = s->documents[0].root;
    (void)unused;
    assert_int_equal(s->count, 1);
    assert_string_equal(yaml_text(yaml_lookup(root, "kind")), "App");
    const struct yaml_node *name = yaml_lookup_path(root, "metadata.name");
    assert_string_equal(yaml_text(name), "shop");
    assert_false(name->plain);
    assert_int_equal(name->line, 4);
    assert_int_equal(name->column, 9);
    assert_int_equal(name->end_bytes - name->start_bytes, 6);
    assert_memory_equal(s->text + name->start_bytes, "\"shop\"", 6);
    const struct yaml_node *volumes = yaml_lookup_path(root, "spec.volumes");
    assert_int_equal(volumes->kind, YAML_SEQUENCE);
    assert_int_equal(volumes->count, 2);
    assert_string_equal(yaml_text(yaml_lookup(volumes->items[1], "name")), "wal");
    assert_true(yaml_lookup(volumes->items[0], "size")->plain);
    assert_true(yaml_is_null(yaml_lookup_path(root, "spec.none")));
    assert_null(yaml_lookup_path(root, "spec.volumes.name"));
    assert_null(yaml_lookup_path(root, "nothing.at.all"));
    assert_null(yaml_lookup(NULL, "x"));
    assert_null(yaml_text(volumes));
    assert_int_equal(yaml_lookup_path(root, "spec.many")->count, 3);
    assert_string_equal(root->pairs[2].key->scalar, "spec"); /* in order */
}

static void byte_order_mark(void **unused)
{
    _cleanup_yaml_stream_ struct yaml_stream *s = parse("\xef\xbb\xbf" "a: 1\nb: 2\n");
    (void)unused;
    assert_string_equal(yaml_text(yaml_lookup(s->documents[0].root, "b")), "2");
}

static void documents(void **unused)
{
    _cleanup_yaml_stream_ struct yaml_stream *s =
        parse("# one \xc3\xa9\na: 1\n---\n---\nb: \xf0\x9f\x98\x80\n--- c\n...\n");
    (void)unused;
    assert_int_equal(s->count, 3);
    assert_string_equal(yaml_text(yaml_lookup(s->documents[1].root, "b")), "\xf0\x9f\x98\x80");
    assert_string_equal(yaml_text(s->documents[2].root), "c");
    size_t length = s->documents[0].end_bytes - s->documents[0].start_bytes;
    assert_int_equal(length, strlen("# one \xc3\xa9\na: 1\n"));
    assert_memory_equal(s->text + s->documents[0].start_bytes, "# one \xc3\xa9\na: 1\n", length);
    length = s->documents[1].end_bytes - s->documents[1].start_bytes;
    assert_int_equal(length, strlen("\nb: \xf0\x9f\x98\x80\n"));
    _cleanup_yaml_stream_ struct yaml_stream *empty = parse("# nothing\n");
    assert_int_equal(empty->count, 0);
}

static void refused(void **unused)
{
    (void)unused;
    refuse("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", -EINVAL,
           "f.yaml:5:3: key 'c' is there twice: first on line 3, again on line 5");
    refuse("a: &x 1\n", -EINVAL, "f.yaml:1:4: anchors");
    refuse("a: *x\n", -EINVAL, "f.yaml:1:4: anchors");
    refuse("a: 1\n b: 2\n", -EINVAL, "f.yaml:2:");
    refuse("a: [1\n", -EINVAL, "f.yaml:2:1");
    refuse("a: \"x\n", -EINVAL, "f.yaml:");
    refuse("? [a]\n: b\n", -EINVAL, "f.yaml:1:3: a key must be a text");
    refuse("a: \"\\0\"\n", -EINVAL, "f.yaml:1:4: a text must not contain NUL");
    refuse("a: 1\nb: \xff\n", -EINVAL, "f.yaml:2:");
    refuse("a:\n\t- b\n", -EINVAL, "f.yaml:2:");
}

static void limits(void **unused)
{
    struct error err = ERROR_INIT;
    struct yaml_stream *stream = NULL;
    char deep[200];
    (void)unused;
    memset(deep, '[', 65);
    deep[65] = '\0';
    refuse(deep, -EFBIG, "f.yaml:1:65: nested more than 64 deep");
    memset(deep, '[', 64);
    memset(deep + 64, ']', 64);
    deep[128] = '\0';
    yaml_stream_free(parse(deep));
    _cleanup_free_ char *big = malloc(YAML_TEXT_LIMIT_BYTES + 1);
    memset(big, ' ', YAML_TEXT_LIMIT_BYTES + 1);
    check_error(yaml_parse("f", big, YAML_TEXT_LIMIT_BYTES + 1, &stream, &err), -EFBIG, "4194304");
    for (size_t i = 0; i + 1 < 300000; i += 2)
        memcpy(big + i, "0,", 2);
    memcpy(big, "[ ", 2);
    check_error(yaml_parse("f", big, 300000, &stream, &err), -EFBIG, "100000");
    /* 49,000 keys in one mapping: the search for duplicates must not take long */
    char *at = big;
    for (int i = 0; i < 49000; i++)
        at += snprintf(at, 32, "key%d: v\n", i);
    check_ok(yaml_parse("f", big, (size_t)(at - big), &stream, &err));
    assert_int_equal(stream->documents[0].root->count, 49000);
    yaml_stream_free(stream);
}

static void readers(void **unused)
{
    struct error err = ERROR_INIT;
    _cleanup_yaml_stream_ struct yaml_stream *s =
        parse("text: x\nmap: {}\nlist: []\nnull1:\nyes: true\nq: \"true\"\nn: 42\nqn: \"42\"\n");
    const struct yaml_node *root = s->documents[0].root, *node = NULL;
    const char *text = "default";
    bool flag = false;
    uint64_t n = 7;
    (void)unused;
    check_ok(yaml_get_optional_string(root, "missing", &text, &err));
    check_ok(yaml_get_optional_string(root, "null1", &text, &err));
    assert_string_equal(text, "default");
    check_ok(yaml_get_string(root, "text", &text, &err));
    assert_string_equal(text, "x");
    check_error(yaml_get_string(root, "missing", &text, &err), -EINVAL, "f.yaml:1:1: 'missing' is missing");
    check_error(yaml_get_string(root, "null1", &text, &err), -EINVAL, "'null1' has no value");
    check_error(yaml_get_string(root, "map", &text, &err), -EINVAL,
                "f.yaml:2:6: 'map': expected a text, found a mapping");
    check_ok(yaml_get_mapping(root, "map", &node, &err));
    check_ok(yaml_get_sequence(root, "list", &node, &err));
    check_error(yaml_get_mapping(root, "list", &node, &err), -EINVAL, "expected a mapping, found a list");
    check_error(yaml_get_sequence(root, "text", &node, &err), -EINVAL, "expected a list, found a text");
    check_ok(yaml_get_optional_bool(root, "yes", &flag, &err));
    assert_true(flag);
    check_error(yaml_get_optional_bool(root, "q", &flag, &err), -EINVAL,
                "f.yaml:6:4: 'q': expected true or false");
    check_ok(yaml_get_optional_u64(root, "n", &n, &err));
    assert_int_equal(n, 42);
    check_error(yaml_get_optional_u64(root, "text", &n, &err), -EINVAL, "f.yaml:1:7: 'text'");
    check_error(yaml_get_optional_u64(root, "qn", &n, &err), -EINVAL, "quoted");
    check_error(yaml_get_string(yaml_lookup(root, "list"), "x", &text, &err), -EINVAL, "expected a mapping");
}

static void unknown_fields(void **unused)
{
    struct error err = ERROR_INIT;
    _cleanup_yaml_stream_ struct yaml_stream *s = parse("volume: 1\nother: 2\n");
    const struct yaml_node *root = s->documents[0].root;
    (void)unused;
    check_ok(yaml_reject_unknown(root, &err, "volume", "other", NULL));
    check_error(yaml_reject_unknown(root, &err, "volumes", "other", NULL), -EINVAL,
                "f.yaml:1:1: unknown field 'volume' (did you mean 'volumes'?)");
    check_error(yaml_reject_unknown(root, &err, "volume", NULL), -EINVAL,
                "f.yaml:2:1: unknown field 'other'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tree),   cmocka_unit_test(byte_order_mark), cmocka_unit_test(documents), cmocka_unit_test(refused),
        cmocka_unit_test(limits), cmocka_unit_test(readers),   cmocka_unit_test(unknown_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
