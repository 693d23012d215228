/* SPDX-License-Identifier: Apache-2.0 */
/* The input is {"objects": [...], "transforms": [...], "patch": [...]}: whatever it holds, transforms give a
 * set that is in order, can be compared and printed, or an error with a message; a patch leaves its document
 * as it was. */
#include <assert.h>
#include <stdint.h>

#include "app/findings.h"
#include "app/json_patch.h"
#include "app/objects.h"
#include "app/objects_diff.h"
#include "app/order.h"
#include "app/reconcilers.h"
#include "app/references.h"
#include "app/restore.h"
#include "base/cleanup.h"
#include "lib/json.h"
#include "transform_set.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_patch(json_t *document, const json_t *patch)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *out = NULL;
    _cleanup_free_ char *before = json_to_text(document);
    int r = json_patch_apply(document, patch, &out, &err);
    assert(r == 0 ? out != NULL : r == err.code && err.message[0] && !out);
    _cleanup_free_ char *after = json_to_text(document);
    assert(strcmp(before, after) == 0);
}

static void check_set(const json_t *set)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *order = NULL, *closure = NULL, *findings = NULL, *diff = NULL, *reconcilers = NULL,
                          *empty = json_object();
    assert(objects_order(set, &order, &err) == 0);
    assert(references_closure(set, "", &closure, &err) == 0);
    assert(findings_of_set(set, &findings, &err) == 0);
    assert(reconcilers_of_set(set, &reconcilers, &err) == 0);
    assert(objects_diff(empty, set, &diff, &err) == 0);
    size_t ordered = 0, i;
    json_t *wave;
    json_array_foreach(json_object_get(order, "waves"), i, wave) ordered +=
        json_array_size(json_object_get(wave, "objects"));
    assert(ordered == json_object_size(set));
}

static void check_restore(const json_t *set)
{
    const char *name;
    json_t *object;
    json_object_foreach((json_t *)(uintptr_t)set, name, object)
    {
        struct error err = ERROR_INIT;
        char reason[RESTORE_REASON_BYTES];
        _cleanup_json_ json_t *prepared = NULL, *merged = NULL;
        assert(restore_prepare(object, RESTORE_CLONE, false, &prepared, reason, &err) == 0 &&
               (prepared || reason[0]));
        assert(restore_merge(object, object, &merged, &err) == 0 && json_equal(object, merged));
        (void)restore_way_of(object, object, reason);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *input = NULL, *set = json_object(), *copy = NULL, *out = NULL, *diff = NULL;
    json_t *object;
    size_t i;
    if (json_parse("input", (const char *)data, size, &input, &err) < 0)
        return 0;
    check_patch(input, json_object_get(input, "patch"));
    json_array_foreach(json_object_get(input, "objects"), i, object)
    {
        struct error unused = ERROR_INIT;
        if (objects_add(set, object, NULL, &unused) < 0)
            assert(unused.message[0]);
    }
    check_set(set);
    check_restore(set);
    copy = json_deep_copy(set);
    int r = transform_set_apply(copy, json_object_get(input, "transforms"), &out, &err);
    assert(r == 0 ? out != NULL : r == err.code && err.message[0] && !out);
    if (r == 0) {
        assert(objects_diff(set, out, &diff, &err) == 0);
        _cleanup_free_ char *text = objects_diff_text(diff);
        assert(text);
    }
    return 0;
}
