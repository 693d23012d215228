/* SPDX-License-Identifier: Apache-2.0 */
/* Which kinds a server has. */
#include "kube/discovery.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "kube/kube_internal.h"
#include "lib/json.h"

#define AGGREGATED                                                                                           \
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,"                                  \
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
#define DISCOVERY_MAX_KINDS 5000u

struct collect {
    struct kube_kinds *kinds;
    size_t capacity, other_capacity;
};

static uint32_t verbs_of(const json_t *verbs)
{
    static const struct {
        const char *name;
        uint32_t verb;
    } known[] = {{"get", KUBE_VERB_GET},       {"list", KUBE_VERB_LIST},     {"watch", KUBE_VERB_WATCH},
                 {"create", KUBE_VERB_CREATE}, {"update", KUBE_VERB_UPDATE}, {"patch", KUBE_VERB_PATCH},
                 {"delete", KUBE_VERB_DELETE}};
    uint32_t bits = 0;
    size_t i;
    json_t *verb;
    json_array_foreach(verbs, i, verb) for (size_t k = 0; k < sizeof known / sizeof *known;
                                            k++) if (json_is_string(verb) &&
                                                     strcmp(json_string_value(verb), known[k].name) == 0)
        bits |= known[k].verb;
    return bits;
}

static int append(struct kube_resource **list, size_t *count, size_t *capacity, const struct kube_resource *kind,
                  struct error *err)
{
    if (*count == DISCOVERY_MAX_KINDS)
        return error_set(err, -E2BIG, "the API server has more than %u kinds", DISCOVERY_MAX_KINDS);
    if (*count == *capacity) {
        size_t more = *capacity ? *capacity * 2 : 64;
        struct kube_resource *larger = reallocarray(*list, more, sizeof *larger);
        if (!larger)
            return error_errno(err, -ENOMEM, "discovery");
        *list = larger;
        *capacity = more;
    }
    (*list)[(*count)++] = *kind;
    return 0;
}

/* Of a kind that was found in an earlier (preferred) version of its group this is another one. The texts belong to the owner.
 */
static int add_kind(struct collect *c, const struct kube_resource *kind, struct error *err)
{
    struct kube_kinds *k = c->kinds;
    if (!kind->plural || !kind->kind || !kind->version || strchr(kind->plural, '/'))
        return 0;
    for (size_t i = 0; i < k->count; i++)
        if (strcmp(k->resources[i].group, kind->group) == 0 &&
            strcmp(k->resources[i].plural, kind->plural) == 0)
            return append(&k->others, &k->other_count, &c->other_capacity, kind, err);
    return append(&k->resources, &k->count, &c->capacity, kind, err);
}

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* {"items":[{"metadata":{"name":"apps"},"versions":[{"version":"v1","freshness":"Current","resources":[...]}]}]}
 */
static int add_aggregated(struct collect *c, const json_t *list, struct error *err)
{
    size_t i, j, k;
    json_t *group, *version, *resource;
    int r = 0;
    json_array_foreach(json_object_get(list, "items"), i, group)
    {
        const char *name = kube_object_name(group);
        json_array_foreach(json_object_get(group, "versions"), j, version)
        {
            const char *freshness = text_of(version, "freshness");
            if (freshness && strcmp(freshness, "Stale") == 0)
                c->kinds->failed_groups++;
            json_array_foreach(json_object_get(version, "resources"), k, resource)
            {
                const char *scope = text_of(resource, "scope");
                const struct kube_resource kind = {
                    .group = name ? name : "",
                    .version = text_of(version, "version"),
                    .plural = text_of(resource, "resource"),
                    .kind = text_of(json_object_get(resource, "responseKind"), "kind"),
                    .namespaced = scope && strcmp(scope, "Namespaced") == 0,
                    .verbs = verbs_of(json_object_get(resource, "verbs"))};
                if ((r = add_kind(c, &kind, err)) < 0)
                    return r;
            }
        }
    }
    return r;
}

static int fetch(struct kube_client *client, struct collect *c, const char *path, json_t **ret,
                 struct error *err)
{
    const struct kube_request request = {.method = "GET", .path = path, .accept = AGGREGATED};
    json_t *body = NULL;
    int r = kube_call(client, &request, &body, err);
    if (r < 0)
        return r;
    if (json_array_append_new(c->kinds->owner, body) < 0) /* releases it when it fails */
        return error_errno(err, -ENOMEM, "discovery");
    *ret = body;
    return 0;
}

/* An APIResourceList of one group and version. */
static int add_classic(struct kube_client *client, struct collect *c, const char *group, const char *version,
                       struct error *err)
{
    _cleanup_free_ char *path = NULL;
    json_t *list = NULL, *resource;
    size_t i;
    if (asprintf(&path, "/%s%s%s/%s", *group ? "apis" : "api", *group ? "/" : "", group, version) < 0)
        return error_errno(err, -ENOMEM, "discovery");
    int r = fetch(client, c, path, &list, err);
    if (r == -EAGAIN || r == -EIO ||
        r == -ENOENT) { /* an aggregated API whose server is away must not hide the others */
        c->kinds->failed_groups++;
        return 0;
    }
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(list, "resources"), i, resource)
    {
        const struct kube_resource kind = {.group = group,
                                           .version = version,
                                           .plural = text_of(resource, "name"),
                                           .kind = text_of(resource, "kind"),
                                           .namespaced =
                                               json_is_true(json_object_get(resource, "namespaced")),
                                           .verbs = verbs_of(json_object_get(resource, "verbs"))};
        if ((r = add_kind(c, &kind, err)) < 0)
            return r;
    }
    return 0;
}

static int add_groups(struct kube_client *client, struct collect *c, const json_t *groups, struct error *err)
{
    size_t i, j;
    json_t *group, *version;
    int r = 0;
    json_array_foreach(json_object_get(groups, "groups"), i, group)
    {
        const char *name = text_of(group, "name"),
                   *preferred = text_of(json_object_get(group, "preferredVersion"), "version");
        if (name && preferred && (r = add_classic(client, c, name, preferred, err)) < 0)
            return r;
        json_array_foreach(json_object_get(group, "versions"), j, version)
        {
            const char *other = text_of(version, "version");
            if (name && other && (!preferred || strcmp(other, preferred) != 0) &&
                (r = add_classic(client, c, name, other, err)) < 0)
                return r;
        }
    }
    return 0;
}

int kube_discover(struct kube_client *client, struct kube_kinds *ret, struct error *err)
{
    struct kube_kinds kinds = {.owner = json_array()};
    struct collect c = {.kinds = &kinds};
    json_t *answer = NULL;
    int r = kinds.owner ? 0 : error_errno(err, -ENOMEM, "discovery");
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        if ((r = fetch(client, &c, i == 0 ? "/api" : "/apis", &answer, err)) < 0)
            break;
        const char *form = text_of(answer, "kind");
        if (form && strcmp(form, "APIGroupDiscoveryList") == 0)
            r = add_aggregated(&c, answer, err);
        else if (i == 0)
            r = add_classic(client, &c, "", "v1", err);
        else
            r = add_groups(client, &c, answer, err);
    }
    if (r < 0) {
        kube_kinds_release(&kinds);
        return error_context(err, "discovery of the API server's kinds");
    }
    *ret = kinds;
    return 0;
}

void kube_kinds_release(struct kube_kinds *kinds)
{
    free(kinds->resources);
    free(kinds->others);
    json_decref(kinds->owner);
    *kinds = (struct kube_kinds){0};
}

static const struct kube_resource *find(const struct kube_resource *list, size_t count, const char *api_version,
                                        const char *version, const char *kind)
{
    const char *slash = strchr(api_version, '/');
    size_t length = slash ? (size_t)(slash - api_version) : 0;
    for (size_t i = 0; i < count; i++) {
        const struct kube_resource *r = &list[i];
        if (strcmp(r->kind, kind) == 0 && strlen(r->group) == length && strncmp(r->group, api_version, length) == 0 &&
            (!version || strcmp(r->version, version) == 0))
            return r;
    }
    return NULL;
}

const struct kube_resource *kube_kinds_find(const struct kube_kinds *kinds, const char *api_version,
                                            const char *kind)
{
    const char *slash = strchr(api_version, '/'), *version = slash ? slash + 1 : api_version;
    const struct kube_resource *found = find(kinds->resources, kinds->count, api_version, version, kind);
    if (!found)
        found = find(kinds->others, kinds->other_count, api_version, version, kind);
    return found ? found : find(kinds->resources, kinds->count, api_version, NULL, kind);
}

/* ---- the server's release ---- */

/* "28", or "28+" of those who put something of their own on top. */
static int read_number(const json_t *version, const char *key, unsigned *ret, struct error *err)
{
    const char *text = json_text(version, key);
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    if (end == text || number > 10000)
        return error_set(err, -EPROTO, "the API server's version has the %s '%.40s'", key, text);
    *ret = (unsigned)number;
    return 0;
}

int kube_get_release(struct kube_client *client, unsigned timeout_ms, struct kube_release *ret, struct error *err)
{
    const struct kube_request request = {.method = "GET", .path = "/version", .timeout_ms = timeout_ms};
    struct kube_release release = {0};
    _cleanup_json_ json_t *version = NULL;
    int r = kube_call(client, &request, &version, err);
    if (r < 0 || (r = read_number(version, "major", &release.major, err)) < 0 ||
        (r = read_number(version, "minor", &release.minor, err)) < 0)
        return r;
    snprintf(release.text, sizeof release.text, "%s", json_text(version, "gitVersion"));
    *ret = release;
    return 0;
}

int kube_check_release(const struct kube_client *client, const struct kube_release *release, struct error *err)
{
    if (release->major > 1 || (release->major == 1 && release->minor >= KUBE_OLDEST_MINOR))
        return 0;
    return error_set(err, -EPROTONOSUPPORT,
                     "the API server at %s is Kubernetes %u.%u (%s), and Tidemark needs 1.%u or later: upgrade the cluster",
                     kube_server(client), release->major, release->minor, release->text, KUBE_OLDEST_MINOR);
}
