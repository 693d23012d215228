/* SPDX-License-Identifier: Apache-2.0 */
/* Lists in chunks, begun again when the server has forgotten the list in the middle (410). */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "kube/list_internal.h"
#include "lib/json.h"

#define LIST_RESTARTS 5u
#define LIST_FITTED 8u /* pages, before larger ones are asked for again */

int kube_list_query(const char *label_selector, const char *field_selector, unsigned limit, const char *next,
                    char **ret, struct error *err)
{
    _cleanup_free_ char *labels = kube_escape(label_selector ? label_selector : "");
    _cleanup_free_ char *fields = kube_escape(field_selector ? field_selector : "");
    _cleanup_free_ char *token = kube_escape(next ? next : "");
    if (!labels || !fields || !token ||
        asprintf(ret, "limit=%u%s%s%s%s%s%s", limit, *labels ? "&labelSelector=" : "", labels,
                 *fields ? "&fieldSelector=" : "", fields, *token ? "&continue=" : "", token) < 0)
        return error_errno(err, -ENOMEM, "list");
    return 0;
}

int kube_list_page(json_t *page, const struct kube_resource *resource, json_t **ret_items,
                   const char **ret_continue, const char **ret_version, struct error *err)
{
    json_t *metadata, *items = NULL;
    const char *next = NULL, *version = NULL;
    char api_version[256];
    int r = json_get_object(page, "metadata", &metadata, err);
    if (r < 0 || (r = json_get_optional_array(page, "items", &items, err)) < 0 ||
        (r = json_get_optional_string(metadata, "continue", &next, err)) < 0 ||
        (r = json_get_string(metadata, "resourceVersion", &version, err)) < 0)
        return error_context(err, "list of %s", resource->plural);
    if (!items) { /* null is a list without items */
        items = json_array();
        if (!items || json_object_set_new(page, "items", items) < 0)
            return error_errno(err, -ENOMEM, "list of %s", resource->plural);
    }
    snprintf(api_version, sizeof api_version, "%s%s%s", resource->group, *resource->group ? "/" : "",
             resource->version);
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item)
    {
        if (json_is_object(item) && !json_object_get(item, "kind") &&
            (json_object_set_new(item, "kind", json_string(resource->kind)) < 0 ||
             json_object_set_new(item, "apiVersion", json_string(api_version)) < 0))
            return error_errno(err, -ENOMEM, "list of %s", resource->plural);
    }
    *ret_items = items;
    *ret_continue = next && *next ? next : NULL;
    *ret_version = version;
    return 0;
}

int kube_list(struct kube_client *client, const struct kube_target *target,
              const struct kube_list_options *options, kube_list_visit visit, void *context,
              char **ret_version, struct error *err)
{
    static const struct kube_list_options defaults = {0};
    const struct kube_list_options *o = options ? options : &defaults;
    _cleanup_free_ char *path = NULL, *next = NULL;
    bool first = true;
    const unsigned most = o->limit ? o->limit : KUBE_LIST_LIMIT;
    unsigned restarts = 0, limit = most, fitted = 0;
    int r = kube_path(target->resource, target->namespace, NULL, NULL, &path, err);
    while (r == 0) {
        _cleanup_free_ char *query = NULL;
        _cleanup_json_ json_t *page = NULL;
        json_t *items;
        const char *after, *version;
        if ((r = kube_list_query(o->label_selector, o->field_selector, limit, next, &query, err)) < 0)
            return r;
        const struct kube_request request = {.method = "GET",
                                             .path = path,
                                             .query = query,
                                             .as = target->as,
                                             .timeout_ms = o->timeout_ms,
                                             .limit_bytes = limit > 1 ? KUBE_LIST_PAGE_BYTES : 0,
                                             .cuts = true,
                                             .status = target->status};
        r = kube_call(client, &request, &page, err);
        if (r == -ESTALE && next && restarts++ < LIST_RESTARTS) {
            free(take_ptr(next));
            first = true;
            r = 0;
            continue;
        }
        if (r == -EFBIG && limit > 1) { /* large objects: fewer of them at a time */
            limit /= 2;
            fitted = 0;
            *err = ERROR_INIT;
            r = 0;
            continue;
        }
        if (r < 0 || (r = kube_list_page(page, target->resource, &items, &after, &version, err)) < 0 ||
            (r = visit(context, items, first, err)) != 0)
            return r;
        first = false;
        if (limit < most && ++fitted == LIST_FITTED) { /* the large ones may have been few */
            limit = 2 * limit < most ? 2 * limit : most;
            fitted = 0;
        }
        char *copy = after ? strdup(after) : NULL;
        if ((after && !copy) || (!after && ret_version && !(*ret_version = strdup(version))))
            return error_errno(err, -ENOMEM, "list of %s", target->resource->plural);
        free(next);
        next = copy;
        if (!next)
            return 0;
    }
    return r;
}

static int collect(void *context, json_t *items, bool first, struct error *err)
{
    json_t *all = context;
    if (first)
        json_array_clear(all);
    return json_array_extend(all, items) < 0 ? error_errno(err, -ENOMEM, "list") : 0;
}

int kube_list_all(struct kube_client *client, const struct kube_target *target,
                  const struct kube_list_options *options, json_t **ret_items, struct error *err)
{
    _cleanup_json_ json_t *all = json_array();
    if (!all)
        return error_errno(err, -ENOMEM, "list");
    int r = kube_list(client, target, options, collect, all, NULL, err);
    if (r == 0)
        *ret_items = take_ptr(all);
    return r;
}
