/* SPDX-License-Identifier: Apache-2.0 */
/* Whether what a recovery makes fits into the ResourceQuotas and LimitRanges of the namespace that it goes
 * to: what it adds (made, and changed to more) less what it takes away, against what the quotas leave. Quotas
 * with scopes are left to the API server: which pods they count is not known before there are pods. */
#include "app/objects.h"
#include "controller/recovery_internal.h"

#define LACKS_SHOWN 5u
#define LIMITS_MESSAGE_BYTES 400

/* As people write it: bytes in the largest binary unit that leaves no rest, else a number. */
static void format(const char *resource, long double amount, char text[48])
{
    static const char *const units[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi"};
    bool bytes = strstr(resource, "storage") || strstr(resource, "memory");
    unsigned unit = 0;
    while (bytes && unit < 5 && amount >= 1024 &&
           (long double)(unsigned long long)(amount / 1024) * 1024 == amount) {
        amount /= 1024;
        unit++;
    }
    snprintf(text, 48, "%.6Lg%s", amount, units[unit]);
}

/* ---- what an object takes ---- */

static void add(json_t *demand, const char *resource, long double amount)
{
    const json_t *before = json_object_get(demand, resource);
    json_object_set_new(demand, resource, json_real((double)(amount + (long double)json_real_value(before))));
}

static const json_t *pod_spec(const json_t *object, const char *kind)
{
    const json_t *spec = json_object_get(object, "spec");
    return strcmp(kind, "Pod") == 0 ? spec : json_object_get(json_object_get(spec, "template"), "spec");
}

/* How many pods it has; 0 of what has none, or an unknown number (DaemonSets, Jobs that end). */
static long double pods_of(const json_t *object, const char *kind)
{
    const json_t *replicas = json_object_get(json_object_get(object, "spec"), "replicas");
    if (strcmp(kind, "Pod") == 0)
        return 1;
    if (strcmp(kind, "Deployment") != 0 && strcmp(kind, "StatefulSet") != 0 &&
        strcmp(kind, "ReplicaSet") != 0 && strcmp(kind, "ReplicationController") != 0)
        return 0;
    return json_is_integer(replicas) ? (long double)json_integer_value(replicas) : 1;
}

/* Of a container: what it asks for, else what limits it, else the namespace's default. */
static long double of_container(const json_t *container, const char *what, const char *resource,
                                const json_t *defaults)
{
    const json_t *resources = json_object_get(container, "resources");
    long double amount = object_quantity(json_object_get(json_object_get(resources, what), resource));
    if (amount < 0 && strcmp(what, "requests") == 0)
        amount = object_quantity(json_object_get(json_object_get(resources, "limits"), resource));
    if (amount < 0)
        amount = object_quantity(json_object_get(json_object_get(defaults, what), resource));
    return amount < 0 ? 0 : amount;
}

static void add_pods(json_t *demand, const json_t *spec, long double pods, const json_t *defaults)
{
    static const char *const whats[] = {"requests", "limits"}, *const resources[] = {"cpu", "memory",
                                                                                     "ephemeral-storage"};
    size_t i;
    json_t *container;
    char key[64];
    for (int w = 0; w < 2; w++)
        for (int k = 0; k < 3; k++) {
            long double sum = 0, first = 0;
            json_array_foreach(json_object_get(spec, "containers"), i, container) sum +=
                of_container(container, whats[w], resources[k], defaults);
            json_array_foreach(json_object_get(spec, "initContainers"), i, container)
            {
                long double one = of_container(container, whats[w], resources[k], defaults);
                first = one > first ? one : first;
            }
            sum = first > sum ? first : sum;
            snprintf(key, sizeof key, "%s.%s", whats[w], resources[k]);
            add(demand, key, sum * pods);
            if (w == 0) /* the short name of the same */
                add(demand, resources[k], sum * pods);
        }
    add(demand, "pods", pods);
}

static void add_claim(json_t *demand, const json_t *object)
{
    const json_t *spec = json_object_get(object, "spec");
    long double size =
        object_quantity(json_object_get(json_object_get(json_object_get(spec, "resources"), "requests"), "storage"));
    const char *class = json_text(spec, "storageClassName");
    char key[400];
    size = size < 0 ? 0 : size;
    add(demand, "requests.storage", size);
    if (!*class)
        return;
    snprintf(key, sizeof key, "%.253s.storageclass.storage.k8s.io/requests.storage", class);
    add(demand, key, size);
    snprintf(key, sizeof key, "%.253s.storageclass.storage.k8s.io/persistentvolumeclaims", class);
    add(demand, key, 1);
}

static void add_service(json_t *demand, const json_t *object)
{
    const json_t *spec = json_object_get(object, "spec");
    const char *type = json_text(spec, "type");
    bool balancer = strcmp(type, "LoadBalancer") == 0;
    if (balancer)
        add(demand, "services.loadbalancers", 1);
    if (balancer || strcmp(type, "NodePort") == 0)
        add(demand, "services.nodeports", (long double)json_array_size(json_object_get(spec, "ports")));
}

/* "configmaps", "ingresses", "networkpolicies": by the rules of English, which built-in kinds keep. */
static void plural(const char *kind, char text[80])
{
    size_t length = (size_t)snprintf(text, 76, "%.70s", kind);
    for (char *c = text; *c; c++)
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c + 32 : *c);
    if (length > 1 && text[length - 1] == 'y' && !strchr("aeiou", text[length - 2]))
        snprintf(text + length - 1, 4, "ies");
    else
        snprintf(text + length, 3, "%s", length && text[length - 1] == 's' ? "es" : "s");
}

static json_t *demand_of(const json_t *object, const char *name, const json_t *defaults)
{
    json_t *demand = json_object();
    struct object_id id;
    struct error unused = ERROR_INIT;
    char many[80], key[400];
    if (!object || object_id_parse(name, &id, &unused) < 0 || !id.namespace[0])
        return demand;
    plural(id.kind, many);
    if (!id.group[0])
        add(demand, many, strcmp(id.kind, "Pod") == 0 ? 0 : 1);
    snprintf(key, sizeof key, "count/%s%s%.253s", many, id.group[0] ? "." : "", id.group);
    add(demand, key, 1);
    if (!id.group[0] && strcmp(id.kind, "PersistentVolumeClaim") == 0)
        add_claim(demand, object);
    if (!id.group[0] && strcmp(id.kind, "Service") == 0)
        add_service(demand, object);
    bool workload = !id.group[0] || strcmp(id.group, "apps") == 0;
    long double pods = workload ? pods_of(object, id.kind) : 0;
    if (pods > 0)
        add_pods(demand, pod_spec(object, id.kind), pods, defaults);
    return demand;
}

/* ---- limits of single objects ---- */

static bool is_kind(const char *name, const char *kind)
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    return object_id_parse(name, &id, &unused) == 0 && strcmp(id.kind, kind) == 0 && id.namespace[0];
}

/* Defaults of containers, of all LimitRanges: {"requests": {}, "limits": {}}. */
static json_t *defaults_of(const json_t *live)
{
    json_t *defaults = json_pack("{s:{}, s:{}}", "requests", "limits"), *object, *limit;
    const char *name;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)live, name, object)
    {
        if (!is_kind(name, "LimitRange"))
            continue;
        json_array_foreach(json_object_get(json_object_get(object, "spec"), "limits"), i, limit)
        {
            if (strcmp(json_text(limit, "type"), "Container") != 0)
                continue;
            json_t *requests = json_object_get(limit, "defaultRequest"),
                   *limits = json_object_get(limit, "default");
            if (limits) {
                json_object_update(json_object_get(defaults, "limits"), limits);
                json_object_update(json_object_get(defaults, "requests"), limits);
            }
            if (requests)
                json_object_update(json_object_get(defaults, "requests"), requests);
        }
    }
    return defaults;
}

/* `amount` against the limit's min and max of the resource. */
static bool breaks(const json_t *limit, const char *resource, long double low, long double high,
                   char why[LIMITS_MESSAGE_BYTES])
{
    long double min = object_quantity(json_object_get(json_object_get(limit, "min"), resource)),
                max = object_quantity(json_object_get(json_object_get(limit, "max"), resource));
    char is[48], bound[48];
    bool less = low > 0 && min >= 0 && low < min, more = max >= 0 && high > max;
    if (!less && !more)
        return false;
    format(resource, less ? low : high, is);
    format(resource, less ? min : max, bound);
    snprintf(why, LIMITS_MESSAGE_BYTES, "%s of %s, and %s %s is allowed", is, resource,
             less ? "at least" : "at most", bound);
    return true;
}

static bool breaks_limit(const json_t *limit, const json_t *object, const char *name, const json_t *defaults,
                         char why[LIMITS_MESSAGE_BYTES])
{
    static const char *const resources[] = {"cpu", "memory"};
    const char *type = json_text(limit, "type");
    struct object_id id;
    struct error unused = ERROR_INIT;
    size_t i;
    json_t *container;
    if (object_id_parse(name, &id, &unused) < 0)
        return false;
    if (strcmp(type, "PersistentVolumeClaim") == 0 && strcmp(id.kind, type) == 0) {
        const json_t *requests =
            json_object_get(json_object_get(json_object_get(object, "spec"), "resources"), "requests");
        long double size = object_quantity(json_object_get(requests, "storage"));
        return size >= 0 && breaks(limit, "storage", size, size, why);
    }
    if (strcmp(type, "Container") != 0 || pods_of(object, id.kind) <= 0)
        return false;
    json_array_foreach(json_object_get(pod_spec(object, id.kind), "containers"), i,
                       container) for (int k = 0; k < 2; k++)
    {
        if (breaks(limit, resources[k], of_container(container, "requests", resources[k], defaults),
                   of_container(container, "limits", resources[k], defaults), why))
            return true;
    }
    return false;
}

static int check_limits(struct recovery_run *run, const json_t *range, const json_t *defaults,
                        struct error *err)
{
    const json_t *limits = json_object_get(json_object_get(range, "spec"), "limits");
    size_t k;
    json_t *limit;
    for (size_t i = 0; i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        char why[LIMITS_MESSAGE_BYTES];
        if (e->action != ACTION_CREATE && e->action != ACTION_RECREATE)
            continue;
        json_array_foreach(limits, k, limit)
        {
            if (breaks_limit(limit, json_object_get(run->wanted, e->name), e->name, defaults, why))
                return error_set(err, -EDQUOT,
                                 "the LimitRange %s of the namespace %s would refuse %s: it has %s. Change "
                                 "the LimitRange, "
                                 "or take another namespace",
                                 json_text(json_object_get(range, "metadata"), "name"), run->target_namespace,
                                 e->name, why);
        }
    }
    return 0;
}

/* ---- quotas ---- */

static int check_quota(struct recovery_run *run, const json_t *quota, const json_t *demand, struct error *err)
{
    const json_t *spec = json_object_get(quota, "spec"), *status = json_object_get(quota, "status");
    const char *resource;
    json_t *hard;
    char message[700] = "", needs[48], leaves[48], whole[48];
    size_t length = 0, lacks = 0;
    if (json_array_size(json_object_get(spec, "scopes")) || json_object_get(spec, "scopeSelector"))
        return 0;
    json_object_foreach(json_object_get(spec, "hard"), resource, hard)
    {
        long double need = (long double)json_real_value(json_object_get(demand, resource)),
                    most = object_quantity(hard),
                    used = object_quantity(json_object_get(json_object_get(status, "used"), resource));
        long double left = most - (used < 0 ? 0 : used);
        if (need <= 0 || most < 0 || need <= left * (1 + 1e-12L) + 1e-9L)
            continue;
        if (++lacks > LACKS_SHOWN)
            continue;
        format(resource, need, needs);
        format(resource, left < 0 ? 0 : left, leaves);
        format(resource, most, whole);
        length += (size_t)snprintf(message + length, sizeof message - length,
                                   "%s%s more of %.100s are needed, and %s of %s are left",
                                   lacks > 1 ? "; " : "", needs, resource, leaves, whole);
        length = length < sizeof message ? length : sizeof message - 1;
    }
    if (lacks == 0)
        return 0;
    return error_set(err, -EDQUOT,
                     "the ResourceQuota %s of the namespace %s is too small: %s. Raise it (kubectl -n %s "
                     "edit resourcequota "
                     "%s), make room, or take another namespace",
                     json_text(json_object_get(quota, "metadata"), "name"), run->target_namespace, message,
                     run->target_namespace, json_text(json_object_get(quota, "metadata"), "name"));
}

static void add_all(json_t *sum, json_t *demand, int sign)
{
    const char *resource;
    json_t *amount;
    json_object_foreach(demand, resource, amount)
        add(sum, resource, sign * (long double)json_real_value(amount));
    json_decref(demand);
}

/* Many may not touch limits and quotas: these stay then. */
static bool may(const struct recovery_run *run, const char *verb, const char *name)
{
    struct error unused = ERROR_INIT;
    bool yes = true;
    if (run->c->cluster->may && run->c->cluster->may(run->c->cluster_context, verb, name, &yes, &unused) < 0)
        return false;
    return yes;
}

/* What there will be of a limit or quota when objects are made: NULL when it goes before, what it was when it is put back before. What it
 * counts (status) is that of now. */
static json_t *limit_then(const struct recovery_run *run, const char *name, json_t *live)
{
    for (size_t i = 0; i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        if (strcmp(e->name, name) != 0)
            continue;
        if (e->action == ACTION_DELETE && may(run, "delete", name))
            return NULL;
        if (e->action != ACTION_CHANGE || !may(run, "update", name))
            break;
        json_t *then = json_copy(live);
        json_object_set(then, "spec", json_object_get(json_object_get(run->wanted, name), "spec"));
        return then;
    }
    return json_incref(live);
}

/* Those of the namespace, as they will be: {journal name: object}. */
static json_t *limits_then(const struct recovery_run *run)
{
    json_t *limits = json_object(), *live;
    const char *name;
    json_object_foreach(run->live, name, live)
    {
        _cleanup_json_ json_t *then = recovery_is_limit(name) ? limit_then(run, name, live) : NULL;
        if (then && json_object_set(limits, name, then) < 0) {
            json_decref(limits);
            return NULL;
        }
    }
    return limits;
}

int recovery_check_quota(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    _cleanup_json_ json_t *demand = json_object(), *limits = limits_then(run), *defaults = defaults_of(limits);
    const char *name;
    json_t *object;
    int r = 0;
    if (!demand || !limits || !defaults)
        return error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        bool comes = e->action == ACTION_CREATE || e->action == ACTION_CHANGE || e->action == ACTION_RECREATE;
        if (comes)
            add_all(demand, demand_of(json_object_get(run->wanted, e->name), e->name, defaults), 1);
        if ((comes && e->action != ACTION_CREATE) || e->action == ACTION_DELETE)
            add_all(demand, demand_of(json_object_get(run->live, e->name), e->name, defaults), -1);
    }
    json_object_foreach(limits, name, object)
    {
        if (r == 0 && is_kind(name, "ResourceQuota"))
            r = check_quota(run, object, demand, err);
        if (r == 0 && is_kind(name, "LimitRange"))
            r = check_limits(run, object, defaults, err);
    }
    if (r == -EDQUOT)
        *ret_reason = "QuotaExceeded";
    return r;
}
