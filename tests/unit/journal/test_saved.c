/* SPDX-License-Identifier: Apache-2.0 */
/* What is written can be read again: whatever is too large for that is refused before anything is replaced. */
#include "check.h"

#include <errno.h>
#include <string.h>

#include "journal/saved.h"
#include "lib/json.h"

#define PIECE_BYTES (1u << 20)

static struct error err;
static char *directory, path[512];

static int set_up(void **unused)
{
    (void)unused;
    directory = check_make_directory();
    snprintf(path, sizeof path, "%s/objects.json", directory);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    check_remove_directory(directory);
    return 0;
}

static json_t *list_of(size_t pieces)
{
    static char piece[PIECE_BYTES + 1];
    memset(piece, 'x', PIECE_BYTES);
    json_t *list = json_array(), *one = json_string(piece);
    for (size_t i = 0; i < pieces; i++)
        json_array_append(list, one);
    json_decref(one);
    return list;
}

/* The objects of a large namespace are more than what json_parse takes of others. */
static void what_is_large_is_read(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *list = list_of(JSON_TEXT_LIMIT_BYTES / PIECE_BYTES + 1), *read = NULL;
    check_ok(saved_write(path, list, &err));
    check_ok(saved_read(path, &read, &err));
    assert_int_equal(json_array_size(read), json_array_size(list));
}

static void what_is_too_large_replaces_nothing(void **unused)
{
    (void)unused;
    _cleanup_json_ json_t *small = list_of(1), *large = list_of(256), *read = NULL;
    check_ok(saved_write(path, small, &err));
    check_error(saved_write(path, large, &err), -EFBIG, "objects.json");
    check_ok(saved_read(path, &read, &err));
    assert_int_equal(json_array_size(read), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_large_is_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_too_large_replaces_nothing, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
