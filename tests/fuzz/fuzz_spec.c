/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever the text: documents whose canonical YAML reads back as the same, or an error with a message. */
#include <assert.h>
#include <stdint.h>

#include "app/spec.h"
#include "base/cleanup.h"
#include "lib/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *to_yaml(const struct app_document *document)
{
    return document->kind == APP_KIND_POLICY ? app_policy_to_yaml(document->policy)
                                             : app_spec_to_yaml(document->spec);
}

static void check_spec(const struct app_spec *spec)
{
    struct error err = ERROR_INIT;
    assert(app_check_name(spec->name, &err) == 0 && app_check_name(spec->policy, &err) == 0);
    assert(spec->volume_count >= 1 && spec->volume_count <= APP_VOLUMES_MAX);
    for (size_t i = 0; i < spec->volume_count; i++) {
        const struct app_volume *v = &spec->volumes[i];
        assert(v->size_bytes >= APP_VOLUME_SIZE_BYTES_MIN && v->size_bytes % APP_VOLUME_SIZE_UNIT_BYTES == 0);
        assert(!v->mount_path || (v->mount_path[0] == '/' && v->mount_path[1]));
        assert(spec->export != APP_EXPORT_NBD || !v->mount_path);
    }
    assert(!spec->manifests || spec->manifests[0] == '/');
}

/* Canonical: the second time it is the same text. */
static void round_trip(const struct app_document *document)
{
    struct error err = ERROR_INIT;
    struct app_parse_options options = {.file = "canonical.yaml"};
    _cleanup_app_documents_ struct app_documents *again = NULL;
    _cleanup_free_ char *first = to_yaml(document), *second = NULL;
    assert(first);
    int r = app_documents_parse(&options, first, strlen(first), &again, &err);
    assert(r == 0 && again->count == 1);
    second = to_yaml(&again->items[0]);
    assert(second && strcmp(first, second) == 0);
    _cleanup_json_ json_t *json = document->kind == APP_KIND_POLICY ? app_policy_to_json(document->policy)
                                                                    : app_spec_to_json(document->spec);
    assert(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    struct app_parse_options options = {.file = "fuzz.yaml", .directory = "/directory"};
    _cleanup_app_documents_ struct app_documents *documents = NULL;
    if (app_documents_parse(&options, (const char *)data, size, &documents, &err) < 0) {
        assert(err.code < 0 && err.message[0] && !documents);
        return 0;
    }
    for (size_t i = 0; i < documents->count; i++) {
        if (documents->items[i].kind == APP_KIND_APPLICATION)
            check_spec(documents->items[i].spec);
        round_trip(&documents->items[i]);
    }
    return 0;
}
