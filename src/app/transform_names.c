/* SPDX-License-Identifier: Apache-2.0 */
/* New names for namespaces, objects and hosts, wherever others know them by the old ones. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>

#include "app/references.h"
#include "app/transform_internal.h"

static bool of_name(char c)
{
    return isalnum((unsigned char)c) || c == '-' || c == '_';
}

static bool stands_alone(const char *text, const char *at, size_t length, bool tail)
{
    char after = at[length];
    if (at > text && (of_name(at[-1]) || at[-1] == '.'))
        return false;
    if (of_name(after))
        return false;
    return tail || after != '.' || !of_name(at[length + 1]);
}

long transform_replace_name(const char *text, const char *from, const char *to, bool tail, char **ret)
{
    size_t length = strlen(from), size;
    long count = 0;
    FILE *out = NULL;
    *ret = NULL;
    if (!length)
        return 0;
    const char *done = text;
    for (const char *at = strstr(text, from); at; at = strstr(at + 1, from)) {
        if (at < done || !stands_alone(text, at, length, tail))
            continue;
        if (!out)
            out = open_memstream(ret, &size);
        if (!out)
            return -ENOMEM;
        fprintf(out, "%.*s%s", (int)(at - done), done, to);
        done = at + length;
        count++;
    }
    if (out) {
        fputs(done, out);
        if (fclose(out) != 0) {
            free(*ret);
            *ret = NULL;
            return -ENOMEM;
        }
    }
    return count;
}

/* Names to be replaced in every text of an object. */
struct rewriting {
    const char *from, *to;
    bool tail;                   /* a '.' may follow */
    const char *services_of;     /* of a namespace: NAME.from, too, for these services */
    const json_t *service_names; /* {name: true} */
    bool secret;
    long count;
};

/* The key of the array that the leaf stands in: "matchNames" of "spec.selector.matchNames[0]". */
static void key_of_array(const struct objects_leaf *leaf, char *key, size_t size)
{
    char path[OBJECT_PATH_BYTES];
    snprintf(path, sizeof path, "%s", leaf->path);
    char *bracket = strrchr(path, '['), *dot;
    if (bracket)
        *bracket = '\0';
    dot = strrchr(path, '.');
    snprintf(key, size, "%s", dot ? dot + 1 : path);
}

static bool ends_with(const char *text, const char *suffix)
{
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcasecmp(text + n - m, suffix) == 0;
}

/* "--namespace", "--leader-election-namespace", and the short one of most programs. */
static bool is_namespace_option(const char *text)
{
    return strcmp(text, "-n") == 0 || (text[0] == '-' && ends_with(text, "namespace"));
}

/* Whether the leaf, which is the namespace's name and nothing else, stands where names of namespaces do. */
static bool names_namespace(const struct objects_leaf *leaf)
{
    char key[OBJECT_PATH_BYTES];
    if (leaf->key) /* of the environment: WATCH_NAMESPACE */
        return ends_with(leaf->key, "namespace") || strcmp(leaf->key, "kubernetes.io/metadata.name") == 0 ||
               (strcmp(leaf->key, "value") == 0 && ends_with(objects_text(leaf->holder, "name"), "namespace"));
    key_of_array(leaf, key, sizeof key);
    if (strcmp(key, "args") == 0 || strcmp(key, "command") == 0) {
        const char *before = leaf->index ? json_string_value(json_array_get(leaf->holder, leaf->index - 1)) : NULL;
        return before && is_namespace_option(before);
    }
    return strcmp(key, "matchNames") == 0 || ends_with(key, "namespaces");
}

/* "--namespace=shop" */
static bool is_namespace_argument(const struct objects_leaf *leaf, const char *namespace)
{
    const char *equals = leaf->key ? NULL : strchr(leaf->text, '=');
    char option[64];
    if (!equals || strcmp(equals + 1, namespace) != 0 || equals - leaf->text >= (long)sizeof option)
        return false;
    snprintf(option, sizeof option, "%.*s", (int)(equals - leaf->text), leaf->text);
    return is_namespace_option(option);
}

/* Selectors of namespaces by name: {key: kubernetes.io/metadata.name, operator: In, values: [shop]}. */
static int rewrite_selectors(json_t *at, const struct rewriting *w, long *count, unsigned depth)
{
    const char *key;
    json_t *value, *values = json_object_get(at, "values");
    size_t i;
    int r = depth > OBJECT_DEPTH_MAX ? -EFBIG : 0;
    bool selects = strcmp(objects_text(at, "key"), "kubernetes.io/metadata.name") == 0;
    json_array_foreach(values, i, value)
    {
        const char *text = selects && r == 0 ? json_string_value(value) : NULL;
        if (!text || strcmp(text, w->from) != 0)
            continue;
        r = json_array_set_new(values, i, json_string(w->to)) < 0 ? -ENOMEM : 0;
        ++*count;
    }
    json_object_foreach(at, key, value) r = r == 0 ? rewrite_selectors(value, w, count, depth + 1) : r;
    json_array_foreach(at, i, value) r = r == 0 ? rewrite_selectors(value, w, count, depth + 1) : r;
    return r;
}

/* ".shop.svc" behind any name -> ".test.svc". */
static long rewrite_service_domains(const struct rewriting *w, const char *text, char **ret)
{
    char from[300];
    size_t length = (size_t)snprintf(from, sizeof from, ".%s.svc", w->services_of), size;
    long count = 0;
    FILE *out = NULL;
    const char *done = text;
    for (const char *at = strstr(text, from); at; at = strstr(at + 1, from)) {
        if (at == text || !of_name(at[-1]) || of_name(at[length]))
            continue;
        if (!out && !(out = open_memstream(ret, &size)))
            return -ENOMEM;
        fprintf(out, "%.*s.%s.svc", (int)(at - done), done, w->to);
        done = at + length;
        count++;
    }
    if (out)
        fputs(done, out);
    return out && fclose(out) != 0 ? -ENOMEM : count;
}

/* And "db.shop" for each service db of the namespace. */
static long rewrite_namespace_text(const struct rewriting *w, const char *text, char **ret)
{
    const char *name;
    json_t *unused;
    _cleanup_free_ char *now = NULL;
    long count = rewrite_service_domains(w, text, &now);
    json_object_foreach((json_t *)(uintptr_t)w->service_names, name, unused)
    {
        char from[600], to[600], *next = NULL;
        snprintf(from, sizeof from, "%s.%s", name, w->services_of);
        snprintf(to, sizeof to, "%s.%s", name, w->to);
        if (count < 0 || !strstr(now ? now : text, from))
            continue;
        long n = transform_replace_name(now ? now : text, from, to, true, &next);
        if (n > 0) {
            free(now);
            now = next;
        }
        count = n < 0 ? n : count + n;
    }
    if (count > 0)
        *ret = take_ptr(now);
    return count;
}

/* Text of one value, whether it stands there plainly or in base64. */
static long rewrite_text(const struct rewriting *w, const struct objects_leaf *leaf, const char *text, char **ret)
{
    const char *key = leaf->key;
    *ret = NULL;
    if (!w->services_of)
        return transform_replace_name(text, w->from, w->to, w->tail, ret);
    size_t n = strlen(w->services_of);
    if (strcmp(text, w->services_of) == 0 && names_namespace(leaf)) {
        *ret = strdup(w->to);
        return *ret ? 1 : -ENOMEM;
    }
    if (is_namespace_argument(leaf, w->services_of))
        return asprintf(ret, "%.*s%s", (int)(strlen(text) - n), text, w->to) < 0 ? -ENOMEM : 1;
    if (key && objects_has_prefix(key, "cert-manager.io/inject-ca-from") &&
        strncmp(text, w->services_of, n) == 0 && text[n] == '/')
        return asprintf(ret, "%s%s", w->to, text + n) < 0 ? -ENOMEM : 1;
    return rewrite_namespace_text(w, text, ret);
}

static int rewrite_leaf(void *context, const struct objects_leaf *leaf)
{
    struct rewriting *w = context;
    _cleanup_free_ char *plain = NULL, *changed = NULL, *encoded = NULL;
    const char *text = leaf->text;
    size_t length;
    if (strcmp(leaf->path, "apiVersion") == 0 || strcmp(leaf->path, "kind") == 0 ||
        strcmp(leaf->path, "metadata.name") == 0 || strcmp(leaf->path, "metadata.namespace") == 0)
        return 0;
    const json_t *value = leaf->key ? json_object_get(leaf->holder, leaf->key) : json_array_get(leaf->holder, leaf->index);
    if (json_string_length(value) != strlen(text))
        return 0; /* bytes */
    bool sealed = w->secret && objects_has_prefix(leaf->path, "data.");
    if (sealed) {
        plain = objects_base64_decode(text, &length);
        if (!plain || strlen(plain) != length)
            return 0; /* bytes */
        text = plain;
    }
    long n = rewrite_text(w, leaf, text, &changed);
    if (n <= 0)
        return (int)n;
    w->count += n;
    if (sealed) {
        encoded = objects_base64_encode(changed, strlen(changed));
        return encoded ? objects_leaf_set(leaf, encoded) : -ENOMEM;
    }
    return objects_leaf_set(leaf, changed);
}

static int rewrite(json_t *object, struct rewriting *w)
{
    w->secret = object_is_secret(object);
    return objects_leaves(object, rewrite_leaf, w);
}

long transform_host(json_t *object, const char *from, const char *to)
{
    struct rewriting w = {.from = from, .to = to};
    int r = rewrite(object, &w);
    return r < 0 ? r : w.count;
}

/* ---- references ---- */

struct renaming {
    const char *group, *kind, *namespace; /* NULL kind: a namespace is renamed */
    const char *from, *to;
    long count;
};

static int rename_reference(void *context, const struct reference *r)
{
    struct renaming *n = context;
    const char *key = NULL;
    if (!r->key || !r->holder)
        return 0;
    if (!n->kind) { /* a namespace */
        if (r->namespace_key && strcmp(r->namespace, n->from) == 0)
            key = r->namespace_key;
        else if (strcmp(r->kind, "Namespace") == 0 && strcmp(r->name, n->from) == 0)
            key = r->key;
    } else if (strcmp(r->kind, n->kind) == 0 && strcmp(r->group, n->group) == 0 &&
               strcmp(r->name, n->from) == 0 &&
               (!n->namespace[0] || strcmp(r->namespace, n->namespace) == 0)) {
        key = r->key;
    }
    if (!key)
        return 0;
    n->count++;
    return json_object_set_new(r->holder, key, json_string(n->to)) < 0 ? -ENOMEM : 0;
}

json_t *transform_services(const json_t *outlines, const char *namespace)
{
    _cleanup_json_ json_t *names = json_object();
    const char *name;
    json_t *object;
    json_object_foreach((json_t *)(uintptr_t)outlines, name, object)
    {
        if (strcmp(objects_text(object, "kind"), "Service") != 0 ||
            strcmp(objects_text(object, "apiVersion"), "v1") != 0 ||
            strcmp(objects_text_at(object, "metadata/namespace"), namespace) != 0)
            continue;
        if (json_object_set_new(names, objects_text_at(object, "metadata/name"), json_true()) < 0)
            return NULL;
    }
    return take_ptr(names);
}

static int rename_namespace_of(json_t *object, const char *from, const char *to, long *count)
{
    json_t *metadata = json_object_get(object, "metadata");
    const char *key = NULL;
    if (strcmp(objects_text(metadata, "namespace"), from) == 0)
        key = "namespace";
    else if (strcmp(objects_text(object, "kind"), "Namespace") == 0 &&
             strcmp(objects_text(metadata, "name"), from) == 0)
        key = "name";
    if (!key)
        return 0;
    (*count)++;
    return json_object_set_new(metadata, key, json_string(to)) < 0 ? -ENOMEM : 0;
}

long transform_namespace(json_t *object, const char *from, const char *to, const json_t *services)
{
    struct renaming n = {.from = from, .to = to};
    struct rewriting w = {.from = from, .to = to, .services_of = from, .service_names = services};
    long count = 0;
    int r = references_visit(object, rename_reference, &n);
    if (r == 0)
        r = rewrite(object, &w);
    if (r == 0)
        r = rewrite_selectors(object, &w, &count, 0);
    if (r == 0)
        r = rename_namespace_of(object, from, to, &count);
    return r < 0 ? r : count + n.count + w.count;
}

static int plan_one(json_t *renames, const char *group, const char *kind, const char *namespace,
                    const char *from, const char *to)
{
    return json_array_append_new(renames, json_pack("{s:s, s:s, s:s, s:s, s:s}", "group", group, "kind", kind,
                                                    "namespace", namespace, "from", from, "to", to)) < 0
               ? -ENOMEM
               : 0;
}

/* Pods' claims of a StatefulSet are called TEMPLATE-SET-ORDINAL: they follow its name. */
static int plan_claims(const json_t *outlines, const json_t *set, const char *from, const char *to,
                       json_t *renames)
{
    const char *namespace = objects_text_at(set, "metadata/namespace");
    const char *name;
    json_t *claim, *template;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)outlines, name, claim)
    {
        if (strcmp(objects_text(claim, "kind"), "PersistentVolumeClaim") != 0 ||
            strcmp(objects_text_at(claim, "metadata/namespace"), namespace) != 0)
            continue;
        const char *claim_name = objects_text_at(claim, "metadata/name");
        json_array_foreach(objects_at(set, "spec/volumeClaimTemplates"), i, template)
        {
            char prefix[512], fresh[512];
            snprintf(prefix, sizeof prefix, "%s-%s-", objects_text_at(template, "metadata/name"), from);
            const char *ordinal = claim_name + strlen(prefix);
            if (!objects_has_prefix(claim_name, prefix) || !*ordinal ||
                strspn(ordinal, "0123456789") != strlen(ordinal))
                continue;
            snprintf(fresh, sizeof fresh, "%s-%s-%s", objects_text_at(template, "metadata/name"), to,
                     ordinal);
            if (plan_one(renames, "", "PersistentVolumeClaim", namespace, claim_name, fresh) < 0)
                return -ENOMEM;
            break;
        }
    }
    return 0;
}

int transform_plan_rename(const json_t *outlines, const json_t *outline, const char *to, json_t *renames)
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    int r = object_identify(outline, &id, &unused);
    if (r == 0)
        r = plan_one(renames, id.group, id.kind, id.namespace, id.name, to);
    return r == 0 && strcmp(id.kind, "StatefulSet") == 0
               ? plan_claims(outlines, outline, id.name, to, renames)
               : r;
}

/* Names by which a renamed service is spoken to: NAME.NS... anywhere, and the short one behind "://" or as
 * the whole value. */
static long rename_service_texts(json_t *object, const char *namespace, const char *from, const char *to)
{
    /* stands_alone looks at what is before ':', which is a letter of the scheme: replace by the longer text
     */
    static const char *const schemes[] = {"http",  "https", "tcp",     "redis", "postgres", "postgresql",
                                          "mysql", "amqp",  "mongodb", "nats",  "grpc"};
    char text_from[600], text_to[600];
    snprintf(text_from, sizeof text_from, "%s.%s", from, namespace);
    snprintf(text_to, sizeof text_to, "%s.%s", to, namespace);
    struct rewriting w = {.from = text_from, .to = text_to, .tail = true};
    int r = rewrite(object, &w);
    if (strcmp(objects_text_at(object, "metadata/namespace"), namespace) != 0)
        return r < 0 ? r : w.count;
    w.tail = false;
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes && r == 0; i++) {
        snprintf(text_from, sizeof text_from, "%s://%s", schemes[i], from);
        snprintf(text_to, sizeof text_to, "%s://%s", schemes[i], to);
        r = rewrite(object, &w);
    }
    return r < 0 ? r : w.count;
}

/* Whether the object is the one that is renamed. */
static bool is_renamed(const json_t *object, const struct renaming *n)
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    return object_identify(object, &id, &unused) == 0 && strcmp(id.group, n->group) == 0 &&
           strcmp(id.kind, n->kind) == 0 && strcmp(id.name, n->from) == 0 &&
           (!n->namespace[0] || strcmp(id.namespace, n->namespace) == 0);
}

static long rename_one(json_t *object, const json_t *rename)
{
    struct renaming n = {.group = objects_text(rename, "group"),
                         .kind = objects_text(rename, "kind"),
                         .namespace = objects_text(rename, "namespace"),
                         .from = objects_text(rename, "from"),
                         .to = objects_text(rename, "to")};
    long count = references_visit(object, rename_reference, &n);
    if (count == 0 && strcmp(n.kind, "Service") == 0 && !n.group[0])
        count = rename_service_texts(object, n.namespace, n.from, n.to);
    if (count < 0)
        return count;
    if (is_renamed(object, &n)) {
        if (json_object_set_new(json_object_get(object, "metadata"), "name", json_string(n.to)) < 0)
            return -ENOMEM;
        count++;
    }
    return count + n.count;
}

long transform_rename(json_t *object, const json_t *renames)
{
    const json_t *rename;
    long count = 0;
    size_t i;
    json_array_foreach(renames, i, rename)
    {
        long n = rename_one(object, rename);
        if (n < 0)
            return n;
        count += n;
    }
    return count;
}
