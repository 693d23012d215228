/* SPDX-License-Identifier: Apache-2.0 */
/* Identity and sets of objects, and ways through their trees (O1..O3 in objects.h). */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"

static const char *const builtin_groups[] = {"",
                                             "admissionregistration.k8s.io",
                                             "apiextensions.k8s.io",
                                             "apiregistration.k8s.io",
                                             "apps",
                                             "authentication.k8s.io",
                                             "authorization.k8s.io",
                                             "autoscaling",
                                             "batch",
                                             "certificates.k8s.io",
                                             "coordination.k8s.io",
                                             "discovery.k8s.io",
                                             "events.k8s.io",
                                             "extensions",
                                             "flowcontrol.apiserver.k8s.io",
                                             "internal.apiserver.k8s.io",
                                             "networking.k8s.io",
                                             "node.k8s.io",
                                             "policy",
                                             "rbac.authorization.k8s.io",
                                             "resource.k8s.io",
                                             "scheduling.k8s.io",
                                             "storage.k8s.io",
                                             "storagemigration.k8s.io"};

/* Of kinds with a namespace and without one, only the latter are listed: they are few. */
static const char *const cluster_kinds[] = {"/Namespace",
                                            "/Node",
                                            "/PersistentVolume",
                                            "admissionregistration.k8s.io/",
                                            "apiextensions.k8s.io/CustomResourceDefinition",
                                            "apiregistration.k8s.io/APIService",
                                            "certificates.k8s.io/",
                                            "flowcontrol.apiserver.k8s.io/",
                                            "gateway.networking.k8s.io/GatewayClass",
                                            "networking.k8s.io/IngressClass",
                                            "node.k8s.io/RuntimeClass",
                                            "rbac.authorization.k8s.io/ClusterRole",
                                            "rbac.authorization.k8s.io/ClusterRoleBinding",
                                            "scheduling.k8s.io/PriorityClass",
                                            "snapshot.storage.k8s.io/VolumeSnapshotClass",
                                            "snapshot.storage.k8s.io/VolumeSnapshotContent",
                                            "storage.k8s.io/StorageClass",
                                            "storage.k8s.io/CSIDriver",
                                            "storage.k8s.io/CSINode",
                                            "storage.k8s.io/VolumeAttachment",
                                            "storage.k8s.io/VolumeAttributesClass",
                                            "tidemark.io/ProtectionPolicy",
                                            "tidemark.io/Vault",
                                            "cert-manager.io/ClusterIssuer",
                                            "external-secrets.io/ClusterSecretStore"};

bool objects_has_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

bool objects_has_suffix(const char *text, const char *suffix)
{
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

bool object_group_is_builtin(const char *group)
{
    for (size_t i = 0; i < sizeof builtin_groups / sizeof *builtin_groups; i++) {
        if (strcmp(group, builtin_groups[i]) == 0)
            return true;
    }
    return false;
}

bool object_kind_is_cluster_scoped(const char *group, const char *kind)
{
    char text[OBJECT_PATH_BYTES];
    snprintf(text, sizeof text, "%s/%s", group, kind);
    for (size_t i = 0; i < sizeof cluster_kinds / sizeof *cluster_kinds; i++) {
        const char *known = cluster_kinds[i];
        if (objects_has_suffix(known, "/") ? objects_has_prefix(text, known) : strcmp(text, known) == 0)
            return true;
    }
    /* By custom, kinds of others that begin so have a namespaced twin without the prefix. */
    return !object_group_is_builtin(group) && objects_has_prefix(kind, "Cluster") &&
           isupper((unsigned char)kind[7]) && strcmp(kind, "Cluster") != 0;
}

const char *object_group_of(const char *api_version, char *buffer, size_t size)
{
    const char *slash = strchr(api_version, '/');
    snprintf(buffer, size, "%.*s", slash ? (int)(slash - api_version) : 0, api_version);
    return buffer;
}

int object_identify(const json_t *object, struct object_id *ret, struct error *err)
{
    const char *api_version = objects_text(object, "apiVersion");
    const json_t *metadata = json_object_get(object, "metadata");
    const char *slash = strchr(api_version, '/');
    struct object_id id = {.version = slash ? slash + 1 : api_version,
                           .kind = objects_text(object, "kind"),
                           .namespace = objects_text(metadata, "namespace"),
                           .name = objects_text(metadata, "name")};
    if (!json_is_object(object))
        return error_set(err, -EINVAL, "not an object");
    if (!id.version[0] || strchr(id.version, '/'))
        return error_set(err, -EINVAL, "object without a valid apiVersion (found '%.100s')", api_version);
    if (!id.kind[0] || strchr(id.kind, '/'))
        return error_set(err, -EINVAL, "object of %.100s without a valid kind", api_version);
    if (!id.name[0])
        return error_set(err, -EINVAL, "%.100s %.100s without metadata.name", api_version, id.kind);
    if (strchr(id.name, '/') || strchr(id.namespace, '/') || strcmp(id.namespace, "_") == 0)
        return error_set(err, -EINVAL, "%.100s '%.200s': not a name of an object", id.kind, id.name);
    if (strlen(api_version) >= sizeof id.text)
        return error_set(err, -ENAMETOOLONG, "apiVersion is too long");
    *ret = id;
    object_group_of(api_version, ret->text, sizeof ret->text);
    ret->group = ret->text;
    char name[OBJECT_NAME_BYTES]; /* so that what was identified has a name, too */
    return object_journal_name(ret, name, err);
}

int object_id_parse(const char *journal_name, struct object_id *ret, struct error *err)
{
    size_t length = strlen(journal_name);
    if (length >= sizeof ret->text)
        return error_set(err, -EINVAL, "name of an object is too long: '%.60s...'", journal_name);
    memcpy(ret->text, journal_name, length + 1);
    char *parts[5], *at = ret->text;
    for (size_t i = 0; i < 5; i++) {
        parts[i] = at;
        at = i < 4 ? strchr(at, '/') : at + strlen(at);
        if (!at || at == parts[i] || (i == 4 && strchr(parts[i], '/')))
            return error_set(err, -EINVAL, "'%.200s' is not GROUP/VERSION/KIND/NAMESPACE/NAME", journal_name);
        if (i < 4)
            *at++ = '\0';
    }
    ret->group = strcmp(parts[0], "core") == 0 ? "" : parts[0];
    ret->version = parts[1];
    ret->kind = parts[2];
    ret->namespace = strcmp(parts[3], "_") == 0 ? "" : parts[3];
    ret->name = parts[4];
    return 0;
}

int object_journal_name(const struct object_id *id, char name[OBJECT_NAME_BYTES], struct error *err)
{
    int n = snprintf(name, OBJECT_NAME_BYTES, "%s/%s/%s/%s/%s", id->group[0] ? id->group : "core",
                     id->version, id->kind, id->namespace[0] ? id->namespace : "_", id->name);
    if (n < 0 || n >= (int)OBJECT_NAME_BYTES)
        return error_set(err, -ENAMETOOLONG, "%.100s %.200s: its names are too long", id->kind, id->name);
    return 0;
}

const char *object_uid(const json_t *object)
{
    return objects_text_at(object, "metadata/uid");
}

char *object_canonical(const json_t *normalized)
{
    return json_dumps(normalized, JSON_SORT_KEYS | JSON_COMPACT | JSON_ENCODE_ANY);
}

bool object_is_secret(const json_t *object)
{
    return strcmp(objects_text(object, "kind"), "Secret") == 0 &&
           strcmp(objects_text(object, "apiVersion"), "v1") == 0;
}

long double object_quantity(const json_t *value)
{
    static const struct {
        const char *suffix;
        long double factor;
    } suffixes[] = {{"", 1},         {"n", 1e-9L},    {"u", 1e-6L},    {"m", 1e-3L},
                    {"k", 1e3L},     {"M", 1e6L},     {"G", 1e9L},     {"T", 1e12L},
                    {"P", 1e15L},    {"E", 1e18L},    {"Ki", 1024.0L}, {"Mi", 1048576.0L},
                    {"Gi", 0x1p30L}, {"Ti", 0x1p40L}, {"Pi", 0x1p50L}, {"Ei", 0x1p60L}};
    if (json_is_number(value))
        return (long double)json_number_value(value);
    const char *text = json_string_value(value);
    char *end = NULL;
    long double number = text && *text ? strtold(text, &end) : -1;
    for (size_t i = 0; end && i < sizeof suffixes / sizeof *suffixes; i++)
        if (strcmp(end, suffixes[i].suffix) == 0)
            return number * suffixes[i].factor;
    return -1;
}

int objects_add(json_t *set, const json_t *object, bool *ret_kept, struct error *err)
{
    struct object_id id;
    char name[OBJECT_NAME_BYTES];
    int r = object_identify(object, &id, err);
    if (r < 0)
        return r;
    bool noise = object_noise(object) != NULL;
    if (ret_kept)
        *ret_kept = !noise;
    if (noise)
        return 0;
    _cleanup_json_ json_t *normalized = NULL;
    r = object_journal_name(&id, name, err);
    if (r == 0)
        r = object_normalize(object, &normalized, err);
    if (r < 0)
        return r;
    if (json_object_size(set) >= OBJECTS_MAX && !json_object_get(set, name))
        return error_set(err, -E2BIG, "more than %u objects in one application; divide it", OBJECTS_MAX);
    return json_object_set(set, name, normalized) < 0 ? objects_no_memory(err) : 0;
}

/* ---- ways through trees ---- */

/* The next key of a path; *path goes behind its slash. */
static size_t next_key(const char **path, char *key, size_t size)
{
    const char *slash = strchr(*path, '/');
    size_t length = slash ? (size_t)(slash - *path) : strlen(*path);
    snprintf(key, size, "%.*s", (int)length, *path);
    *path += length + (slash ? 1 : 0);
    return length;
}

json_t *objects_at(const json_t *root, const char *path)
{
    const json_t *at = root;
    char key[128];
    while (at && *path) {
        next_key(&path, key, sizeof key);
        at = json_object_get(at, key);
    }
    return (json_t *)(uintptr_t)at;
}

const char *objects_text_at(const json_t *root, const char *path)
{
    const char *text = json_string_value(objects_at(root, path));
    return text ? text : "";
}

void objects_delete_at(json_t *root, const char *path)
{
    const char *last = strrchr(path, '/');
    char parent[256];
    snprintf(parent, sizeof parent, "%.*s", last ? (int)(last - path) : 0, path);
    json_object_del(objects_at(root, parent), last ? last + 1 : path);
}

/* "path.key" or "path[name]", cut to the buffer. */
static void extend(char *path, size_t length, const char *format, const char *text)
{
    snprintf(path + length, OBJECT_PATH_BYTES - length, format, text);
}

static void extend_index(char *path, size_t length, const json_t *element, size_t index)
{
    char number[24];
    const char *name = objects_text(element, "name");
    snprintf(number, sizeof number, "%zu", index);
    extend(path, length, "[%s]", name[0] ? name : number);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

json_t *objects_sorted_names(const json_t *object)
{
    size_t count = json_object_size(object), n = 0;
    _cleanup_free_ const char **names = calloc(count + 1, sizeof *names);
    _cleanup_json_ json_t *array = json_array();
    const char *key;
    json_t *value;
    if (!names || !array)
        return NULL;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) names[n++] = key;
    qsort(names, n, sizeof *names, compare_names);
    for (size_t i = 0; i < n; i++) {
        if (json_array_append_new(array, json_string(names[i])) < 0)
            return NULL;
    }
    return take_ptr(array);
}

static int walk(json_t *at, const char *rest, char *path, objects_visit visit, void *context)
{
    if (!at)
        return 0;
    if (!*rest)
        return visit(context, at, path);
    char key[128];
    size_t length = strlen(path), n = next_key(&rest, key, sizeof key);
    int r = 0;
    if (strcmp(key, "*") == 0) {
        const char *name;
        json_t *value;
        void *next;
        json_object_foreach_safe(at, next, name, value)
        {
            extend(path, length, length ? ".%s" : "%s", name);
            if (r == 0)
                r = walk(value, rest, path, visit, context);
        }
    } else if (n > 2 && n < sizeof key && strcmp(key + n - 2, "[]") == 0) {
        key[n - 2] = '\0';
        extend(path, length, length ? ".%s" : "%s", key);
        size_t with_key = strlen(path), i;
        json_t *value;
        json_array_foreach(json_object_get(at, key), i, value)
        {
            extend_index(path, with_key, value, i);
            if (r == 0)
                r = walk(value, rest, path, visit, context);
        }
    } else {
        extend(path, length, length ? ".%s" : "%s", key);
        r = walk(json_object_get(at, key), rest, path, visit, context);
    }
    path[length] = '\0';
    return r;
}

int objects_walk(json_t *root, const char *path, objects_visit visit, void *context)
{
    char text[OBJECT_PATH_BYTES] = "";
    return walk(root, path, text, visit, context);
}

static int leaves(json_t *at, char *path, unsigned depth, objects_leaf_visit visit, void *context);

static int leaf_or_below(const struct objects_leaf *leaf, json_t *value, char *path, unsigned depth,
                         objects_leaf_visit visit, void *context)
{
    if (!json_is_string(value))
        return leaves(value, path, depth + 1, visit, context);
    /* The text may be replaced by visit: it stays until it has returned. */
    _cleanup_json_ json_t *kept = json_incref(value);
    struct objects_leaf full = *leaf;
    full.text = json_string_value(kept);
    full.path = path;
    return visit(context, &full);
}

static int leaves(json_t *at, char *path, unsigned depth, objects_leaf_visit visit, void *context)
{
    size_t length = strlen(path), i;
    json_t *value;
    const char *key;
    void *next;
    int r = 0;
    if (depth > OBJECT_DEPTH_MAX)
        return -EFBIG;
    json_object_foreach_safe(at, next, key, value)
    {
        struct objects_leaf leaf = {.holder = at, .key = key};
        extend(path, length, length ? ".%s" : "%s", key);
        if (r == 0)
            r = leaf_or_below(&leaf, value, path, depth, visit, context);
    }
    json_array_foreach(at, i, value)
    {
        struct objects_leaf leaf = {.holder = at, .index = i};
        extend_index(path, length, value, i);
        if (r == 0)
            r = leaf_or_below(&leaf, value, path, depth, visit, context);
    }
    path[length] = '\0';
    return r;
}

int objects_leaves(json_t *root, objects_leaf_visit visit, void *context)
{
    char path[OBJECT_PATH_BYTES] = "";
    return leaves(root, path, 0, visit, context);
}

int objects_leaf_set(const struct objects_leaf *leaf, const char *text)
{
    json_t *value = json_string(text);
    int r = leaf->key ? json_object_set_new(leaf->holder, leaf->key, value)
                      : json_array_set_new(leaf->holder, leaf->index, value);
    return r < 0 ? -ENOMEM : 0;
}

const char *objects_pod_spec_path(const char *group, const char *kind)
{
    static const char *const templated[] = {"apps/Deployment", "apps/StatefulSet", "apps/DaemonSet",
                                            "apps/ReplicaSet", "batch/Job",        "/ReplicationController"};
    char text[OBJECT_PATH_BYTES];
    snprintf(text, sizeof text, "%s/%s", group, kind);
    if (strcmp(text, "/Pod") == 0)
        return "spec";
    if (strcmp(text, "batch/CronJob") == 0)
        return "spec/jobTemplate/spec/template/spec";
    for (size_t i = 0; i < sizeof templated / sizeof *templated; i++) {
        if (strcmp(text, templated[i]) == 0)
            return "spec/template/spec";
    }
    return NULL;
}

json_t *objects_pod_spec(const json_t *object)
{
    char group[128];
    const char *path =
        objects_pod_spec_path(object_group_of(objects_text(object, "apiVersion"), group, sizeof group),
                              objects_text(object, "kind"));
    return path ? objects_at(object, path) : NULL;
}

bool objects_key_is_sensitive(const char *key)
{
    static const char *const words[] = {"password",   "passwd",     "passphrase",  "secret",
                                        "token",      "apikey",     "api_key",     "api-key",
                                        "credential", "privatekey", "private_key", "private-key",
                                        "accesskey",  "access_key", "access-key"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcasestr(key, words[i]))
            return true;
    }
    return false;
}

/* ---- base64 ---- */

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *objects_base64_decode(const char *text, size_t *ret_length)
{
    size_t length = strlen(text), n = 0;
    char *out = length % 4 == 0 ? malloc(length / 4 * 3 + 1) : NULL;
    for (size_t i = 0; out && i < length; i += 4) {
        unsigned value = 0, given = 0;
        for (size_t k = 0; k < 4; k++) {
            char c = text[i + k];
            const char *at = c ? strchr(alphabet, c) : NULL;
            bool padding = c == '=' && i + 4 == length && k >= 2 && (k == 3 || text[i + 3] == '=');
            if (!at && !padding) {
                free(out);
                return NULL;
            }
            given += at != NULL;
            value = value << 6 | (at ? (unsigned)(at - alphabet) : 0);
        }
        for (size_t k = 0; k + 1 < given; k++)
            out[n++] = (char)(value >> (16 - 8 * k));
    }
    if (out) {
        out[n] = '\0';
        *ret_length = n;
    }
    return out;
}

char *objects_base64_encode(const char *data, size_t length)
{
    const unsigned char *in = (const unsigned char *)data;
    char *out = malloc((length + 2) / 3 * 4 + 1), *at = out;
    for (size_t i = 0; out && i < length; i += 3) {
        size_t left = length - i;
        unsigned value = in[i] << 16 | (left > 1 ? in[i + 1] : 0) << 8 | (left > 2 ? in[i + 2] : 0);
        *at++ = alphabet[value >> 18 & 63];
        *at++ = alphabet[value >> 12 & 63];
        *at++ = left > 1 ? alphabet[value >> 6 & 63] : '=';
        *at++ = left > 2 ? alphabet[value & 63] : '=';
    }
    if (out)
        *at = '\0';
    return out;
}
