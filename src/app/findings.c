/* SPDX-License-Identifier: Apache-2.0 */
#include "app/findings.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"

enum { HOST_BYTES = 256, VALUE_BYTES_MAX = 256 << 10 };

struct finder {
    json_t *findings, *seen, *services; /* names of services of the set */
    size_t count;
    const char *object; /* journal name */
    const char *namespace;
};

static const struct {
    const char *scheme, *type;
} schemes[] = {{"s3", "object storage"},
               {"gs", "object storage"},
               {"wasb", "object storage"},
               {"abfs", "object storage"},
               {"postgres", "database"},
               {"postgresql", "database"},
               {"mysql", "database"},
               {"mariadb", "database"},
               {"sqlserver", "database"},
               {"mongodb", "database"},
               {"mongodb+srv", "database"},
               {"cassandra", "database"},
               {"clickhouse", "database"},
               {"cockroachdb", "database"},
               {"oracle", "database"},
               {"redis", "cache"},
               {"rediss", "cache"},
               {"memcached", "cache"},
               {"amqp", "queue"},
               {"amqps", "queue"},
               {"kafka", "queue"},
               {"nats", "queue"},
               {"mqtt", "queue"},
               {"mqtts", "queue"},
               {"pulsar", "queue"},
               {"elasticsearch", "search"},
               {"nfs", "file share"},
               {"smb", "file share"},
               {"http", NULL},
               {"https", NULL},
               {"tcp", NULL},
               {"sftp", "file share"},
               {"ftp", "file share"}};

static const struct {
    int port;
    const char *type;
} ports[] = {{5432, "database"},  {3306, "database"}, {1433, "database"},   {1521, "database"},
             {27017, "database"}, {9042, "database"}, {6379, "cache"},      {11211, "cache"},
             {5672, "queue"},     {5671, "queue"},    {9092, "queue"},      {4222, "queue"},
             {1883, "queue"},     {9200, "search"},   {2049, "file share"}, {445, "file share"}};

/* What the host or the field's name says about an address whose scheme says nothing. */
static const char *type_by_words(const char *host, const char *field, int port)
{
    static const struct {
        const char *word, *type;
    } words[] = {{"s3", "object storage"},
                 {"minio", "object storage"},
                 {"blob.core", "object storage"},
                 {"storage.googleapis", "object storage"},
                 {"bucket", "object storage"},
                 {"rds.amazonaws", "database"},
                 {"postgres", "database"},
                 {"mysql", "database"},
                 {"mongo", "database"},
                 {"database", "database"},
                 {"db_", "database"},
                 {"redis", "cache"},
                 {"memcache", "cache"},
                 {"kafka", "queue"},
                 {"amqp", "queue"},
                 {"rabbit", "queue"},
                 {"sqs.", "queue"},
                 {"broker", "queue"},
                 {"nats", "queue"},
                 {"elastic", "search"},
                 {"opensearch", "search"}};
    for (size_t i = 0; i < sizeof ports / sizeof *ports; i++) {
        if (ports[i].port == port)
            return ports[i].type;
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcasestr(host, words[i].word) || strcasestr(field, words[i].word))
            return words[i].type;
    }
    return "service";
}

static bool is_host_char(char c)
{
    return isalnum((unsigned char)c) || c == '-' || c == '.' || c == '_';
}

/* Reads "host[:port]" or "[v6]:port" at `text`. Returns its length, 0 when there is none. */
static size_t read_host(const char *text, char host[HOST_BYTES], int *ret_port)
{
    size_t n = 0, length;
    *ret_port = 0;
    if (text[0] == '[') {
        n = strcspn(text + 1, "]");
        if (text[n + 1] != ']' || n == 0 || n >= HOST_BYTES ||
            strspn(text + 1, "0123456789abcdefABCDEF:.") < n)
            return 0;
        snprintf(host, HOST_BYTES, "%.*s", (int)n, text + 1);
        length = n + 2;
    } else {
        while (is_host_char(text[n]))
            n++;
        if (n == 0 || n >= HOST_BYTES)
            return 0;
        snprintf(host, HOST_BYTES, "%.*s", (int)n, text);
        length = n;
    }
    if (text[length] == ':' && isdigit((unsigned char)text[length + 1])) {
        size_t digits = strspn(text + length + 1, "0123456789");
        if (digits <= 5) {
            for (size_t i = 0; i < digits; i++)
                *ret_port = *ret_port * 10 + (text[length + 1 + i] - '0');
            length += 1 + digits;
        }
    }
    return length;
}

static bool is_inside(const struct finder *f, const char *host)
{
    char key[HOST_BYTES * 2];
    size_t dots = 0, labels = 1;
    for (const char *c = host; *c; c++)
        dots += *c == '.';
    labels += dots;
    if (strcasecmp(host, "localhost") == 0 || objects_has_prefix(host, "127.") ||
        strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::1") == 0)
        return true;
    if (objects_has_suffix(host, ".svc") || strstr(host, ".svc.") ||
        objects_has_suffix(host, ".cluster.local"))
        return true;
    if (labels == 1) /* a name of the own namespace, or of the pod's own hosts file */
        return true;
    const char *dot = strchr(host, '.');
    snprintf(key, sizeof key, "%s", dot + 1);
    /* "db.shop": service and namespace; "pg-0.pg": pod and headless service; "pg-0.pg.shop" */
    const char *second = strchr(dot + 1, '.');
    if (labels == 2) {
        char service[HOST_BYTES * 2];
        snprintf(service, sizeof service, "%.*s.%s", (int)(dot - host), host, dot + 1);
        if (json_object_get(f->services, service))
            return true;
        snprintf(service, sizeof service, "%s.%s", dot + 1, f->namespace);
        return json_object_get(f->services, service) != NULL;
    }
    return second && labels == 3 && json_object_get(f->services, key);
}

static int note(struct finder *f, const char *field, const char *type, const char *host, int port)
{
    char key[OBJECT_NAME_BYTES + HOST_BYTES + OBJECT_PATH_BYTES + 16];
    snprintf(key, sizeof key, "%s|%s|%s|%d", f->object, field, host, port);
    if (is_inside(f, host) || json_object_get(f->seen, key))
        return 0;
    if (json_object_set_new(f->seen, key, json_true()) < 0)
        return -ENOMEM;
    if (f->count++ >= FINDINGS_MAX)
        return 0;
    json_t *finding = json_pack("{s:s, s:s, s:s, s:s}", "object", f->object, "field", field, "type",
                                type ? type : type_by_words(host, field, port), "host", host);
    int r = port && json_object_set_new(finding, "port", json_integer(port)) < 0 ? -ENOMEM : 0;
    return json_array_append_new(f->findings, finding) < 0 || r < 0 ? -ENOMEM : 0;
}

/* A URL whose scheme ends at `colon` ("://"). Returns where to read on. */
static const char *scan_url(struct finder *f, const char *field, const char *text, const char *colon,
                            int *ret)
{
    const char *begin = colon, *at = colon + 3, *type = NULL;
    char scheme[24], host[HOST_BYTES];
    bool known = false;
    int port;
    while (begin > text && (isalnum((unsigned char)begin[-1]) || begin[-1] == '+'))
        begin--;
    snprintf(scheme, sizeof scheme, "%.*s", (int)(colon - begin), begin);
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        if (strcasecmp(scheme, schemes[i].scheme) == 0) {
            known = true;
            type = schemes[i].type;
        }
    }
    if (!known)
        return at;
    /* What stands before the last @ of the authority is user and password: never told. A password may hold
     * '/' or '?' where it ought to be escaped, and ',' and ';' as they are; an @ behind them is then still its end. But not
     * one of the next URL, of several. */
    size_t authority = strcspn(at, " \t\r\n\"'<>`");
    const char *next = strstr(at, "://");
    if (next && (size_t)(next - at) < authority)
        authority = (size_t)(next - at);
    for (size_t i = authority; i-- > 0;) {
        if (at[i] == '@') {
            at += i + 1;
            break;
        }
    }
    /* Several hosts: mongodb://a:1,b:2/x */
    for (;;) {
        size_t n = read_host(at, host, &port);
        if (n == 0 || !strpbrk(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
            return at;
        /* A bucket is a name of its own, without dots: s3://bucket/x */
        if (type && strcmp(type, "object storage") == 0 && !strchr(host, '.')) {
            char bucket[HOST_BYTES + 16];
            snprintf(bucket, sizeof bucket, "%s.%s", host, scheme);
            *ret = note(f, field, type, bucket, 0);
        } else {
            *ret = note(f, field, type, host, port);
        }
        at += n;
        if (*ret < 0 || *at != ',')
            return at;
        at++;
    }
}

static bool key_says_host(const char *key)
{
    static const char *const ends[] = {"host",
                                       "hostname",
                                       "endpoint",
                                       "endpoints",
                                       "server",
                                       "servers",
                                       "broker",
                                       "brokers",
                                       "addr",
                                       "address",
                                       "addresses",
                                       "bootstrap_servers",
                                       "bootstrap.servers"};
    if (objects_key_is_sensitive(key))
        return false;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t n = strlen(key), m = strlen(ends[i]);
        if (n >= m && strcasecmp(key + n - m, ends[i]) == 0 &&
            (n == m || !isalnum((unsigned char)key[n - m - 1])))
            return true;
        /* dbHost */
        if (n > m && strcasecmp(key + n - m, ends[i]) == 0 && isupper((unsigned char)key[n - m]))
            return true;
    }
    return false;
}

/* A list of hosts, the whole value: "a.example.com:9092,b.example.com:9092". */
static int scan_hosts(struct finder *f, const char *field, const char *value)
{
    char host[HOST_BYTES];
    int r = 0, port;
    for (const char *at = value; r == 0 && *at;) {
        at += strspn(at, " ,\t\n");
        size_t n = read_host(at, host, &port);
        if (n == 0 || !strchr(" ,\t\n", at[n]))
            return r;
        if (strchr(host, '.') || strchr(host, ':'))
            r = note(f, field, NULL, host, port);
        at += n;
    }
    return r;
}

/* Lines "key: value" and "key=value" of a file in a config map. */
static int scan_lines(struct finder *f, const char *field, const char *text)
{
    int r = 0;
    for (const char *line = text; r == 0 && *line;) {
        size_t length = strcspn(line, "\n"), split = strcspn(line, ":=\n");
        char key[64], value[512];
        if (split < length && length - split < sizeof value) {
            const char *begin = line + strspn(line, " \t-\"'");
            size_t n = begin < line + split ? (size_t)(line + split - begin) : 0;
            while (n > 0 && strchr(" \t\"'", begin[n - 1]))
                n--;
            snprintf(key, sizeof key, "%.*s", (int)n, begin);
            const char *from = line + split + 1 + strspn(line + split + 1, " \t\"'");
            size_t m = from < line + length ? (size_t)(line + length - from) : 0;
            while (m > 0 && strchr(" \t\r\"'", from[m - 1]))
                m--;
            snprintf(value, sizeof value, "%.*s", (int)m, from);
            if (key_says_host(key))
                r = scan_hosts(f, field, value);
        }
        line += length + (line[length] == '\n');
    }
    return r;
}

static int scan_value(struct finder *f, const char *key, const char *field, const char *value)
{
    int r = 0;
    if (strlen(value) > VALUE_BYTES_MAX)
        return 0;
    for (const char *at = value; r == 0 && (at = strstr(at, "://"));)
        at = scan_url(f, field, value, at, &r);
    if (r == 0 && !strstr(value, "://") && key_says_host(key))
        r = scan_hosts(f, field, value);
    if (r == 0 && strchr(value, '\n'))
        r = scan_lines(f, field, value);
    return r;
}

static int scan_environment(void *context, json_t *variable, const char *path)
{
    const char *name = objects_text(variable, "name"), *value = objects_text(variable, "value");
    return value[0] ? scan_value(context, name, path, value) : 0;
}

static int scan_argument(void *context, json_t *argument, const char *path)
{
    const char *text = json_string_value(argument), *split = text ? strchr(text, '=') : NULL;
    char key[64] = "";
    if (!text)
        return 0;
    if (split)
        snprintf(key, sizeof key, "%.*s", (int)(split - text), text);
    return scan_value(context, key, path, split ? split + 1 : text);
}

static int scan_data(struct finder *f, json_t *data, const char *where, bool encoded)
{
    const char *key;
    json_t *value;
    int r = 0;
    json_object_foreach(data, key, value)
    {
        char field[OBJECT_PATH_BYTES];
        size_t length = 0;
        const char *text = json_string_value(value);
        _cleanup_free_ char *plain = encoded && text ? objects_base64_decode(text, &length) : NULL;
        if (encoded && plain && strlen(plain) != length)
            continue; /* bytes */
        snprintf(field, sizeof field, "%s.%s", where, key);
        if (encoded ? plain != NULL : text != NULL)
            r = scan_value(f, key, field, encoded ? plain : text);
        if (r < 0)
            break;
    }
    return r;
}

static int scan_service(struct finder *f, const json_t *spec)
{
    const char *name = objects_text(spec, "externalName");
    return strcmp(objects_text(spec, "type"), "ExternalName") == 0 && name[0]
               ? note(f, "spec.externalName", NULL, name, 0)
               : 0;
}

/* Addresses that a person wrote down for a service without a selector. */
static int scan_address(void *context, json_t *address, const char *path)
{
    const char *ip = json_is_string(address) ? json_string_value(address) : objects_text(address, "ip");
    return ip[0] ? note(context, path, NULL, ip, 0) : 0;
}

static int scan_volume(void *context, json_t *volume, const char *path)
{
    const char *server = objects_text_at(volume, "nfs/server");
    return server[0] ? note(context, path, "file share", server, 0) : 0;
}

static int scan_object(struct finder *f, json_t *object, const struct object_id *id)
{
    static const char *const lists[] = {"containers[]", "initContainers[]"};
    json_t *pod = objects_pod_spec(object);
    char path[64];
    int r = 0;
    for (size_t i = 0; pod && i < 2 && r == 0; i++) {
        snprintf(path, sizeof path, "%s/env[]", lists[i]);
        r = objects_walk(pod, path, scan_environment, f);
        snprintf(path, sizeof path, "%s/args[]", lists[i]);
        if (r == 0)
            r = objects_walk(pod, path, scan_argument, f);
        snprintf(path, sizeof path, "%s/command[]", lists[i]);
        if (r == 0)
            r = objects_walk(pod, path, scan_argument, f);
    }
    if (pod && r == 0)
        r = objects_walk(pod, "volumes[]", scan_volume, f);
    if (r < 0 || id->group[0])
        return r == 0 && strcmp(id->kind, "EndpointSlice") == 0
                   ? objects_walk(object, "endpoints[]/addresses[]", scan_address, f)
                   : r;
    if (strcmp(id->kind, "ConfigMap") == 0)
        r = scan_data(f, json_object_get(object, "data"), "data", false);
    else if (strcmp(id->kind, "Secret") == 0)
        r = scan_data(f, json_object_get(object, "data"), "data", true);
    else if (strcmp(id->kind, "Service") == 0)
        r = scan_service(f, json_object_get(object, "spec"));
    else if (strcmp(id->kind, "Endpoints") == 0)
        r = objects_walk(object, "subsets[]/addresses[]", scan_address, f);
    return r;
}

static int load_from_set(void *context, const char *name, json_t **ret, struct error *err)
{
    (void)err;
    *ret = json_incref(json_object_get(context, name));
    return 0;
}

int findings_of_set(const json_t *set, json_t **ret, struct error *err)
{
    return findings_of(set, load_from_set, (json_t *)(uintptr_t)set, ret, err);
}

int findings_of(const json_t *set, findings_load load, void *context, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *findings = json_array(), *seen = json_object(), *services = json_object(),
                          *names = objects_sorted_names(set);
    struct finder f = {.findings = findings, .seen = seen, .services = services};
    int r = findings && seen && services && names ? 0 : -ENOMEM;
    size_t i;
    json_t *name;
    struct object_id id;
    struct error unused = ERROR_INIT;
    json_array_foreach(names, i, name)
    {
        char key[OBJECT_NAME_BYTES];
        if (object_id_parse(json_string_value(name), &id, &unused) < 0 || strcmp(id.kind, "Service") != 0 ||
            id.group[0])
            continue;
        snprintf(key, sizeof key, "%s.%s", id.name, id.namespace);
        if (json_object_set_new(services, key, json_true()) < 0)
            r = -ENOMEM;
    }
    json_array_foreach(names, i, name)
    {
        f.object = json_string_value(name);
        if (r < 0 || object_id_parse(f.object, &id, &unused) < 0)
            continue;
        f.namespace = id.namespace;
        _cleanup_json_ json_t *object = NULL;
        int loaded = load(context, f.object, &object, err);
        if (loaded < 0)
            return loaded;
        r = scan_object(&f, object, &id);
    }
    *ret = r == 0 ? json_pack("{s:O, s:I}", "findings", findings, "count", (json_int_t)f.count) : NULL;
    return *ret ? 0 : objects_no_memory(err);
}
