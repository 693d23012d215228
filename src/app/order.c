/* SPDX-License-Identifier: Apache-2.0 */
#include "app/order.h"

#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"
#include "app/references.h"

enum rank {
    RANK_NAMESPACE,
    RANK_DEFINITION,
    RANK_CLASS,
    RANK_ACCOUNT, /* service accounts and roles */
    RANK_BINDING,
    RANK_CONFIG,
    RANK_VOLUME,
    RANK_CLAIM,
    RANK_SERVICE,
    RANK_POD,      /* of nobody */
    RANK_LIMIT,    /* what may refuse pods, claims and any number of things, or change them: those that are older it never saw */
    RANK_WORKLOAD, /* and custom resources: their pods are made later, and get what the limits say */
    RANK_USER,     /* what points at workloads and services */
    RANK_WEBHOOK,
    RANK_GUARDED,
};
enum { LEVELS_PER_RANK = 32768 }; /* more than OBJECTS_MAX: a chain inside a rank stays there */

struct edge {
    size_t to; /* what it needs */
    bool hard; /* cannot be made without it */
    bool dropped;
};

struct node {
    const char *name;
    json_t *object;
    struct object_id id;
    enum rank rank;
    struct edge *edges;
    size_t edge_count, edge_capacity;
    long level;
    bool done;
    bool serves_webhook; /* a webhook's server, or something it needs */
};

struct graph {
    struct node *nodes; /* by rank, then name */
    size_t count;
    json_t *index;    /* references_index */
    json_t *position; /* journal name -> index of nodes */
    json_t *cycles;
    struct node *from; /* whose references are read */
};

static enum rank rank_of(const struct object_id *id)
{
    static const struct {
        const char *kind;
        enum rank rank;
    } known[] = {
        {"/Namespace", RANK_NAMESPACE},
        {"apiextensions.k8s.io/CustomResourceDefinition", RANK_DEFINITION},
        {"/LimitRange", RANK_LIMIT},
        {"/ResourceQuota", RANK_LIMIT},
        {"/Pod", RANK_POD},
        {"/ServiceAccount", RANK_ACCOUNT},
        {"rbac.authorization.k8s.io/Role", RANK_ACCOUNT},
        {"rbac.authorization.k8s.io/ClusterRole", RANK_ACCOUNT},
        {"rbac.authorization.k8s.io/RoleBinding", RANK_BINDING},
        {"rbac.authorization.k8s.io/ClusterRoleBinding", RANK_BINDING},
        {"/ConfigMap", RANK_CONFIG},
        {"/Secret", RANK_CONFIG},
        {"networking.k8s.io/NetworkPolicy", RANK_CONFIG}, /* before there is anything that it isolates */
        {"/PersistentVolume", RANK_VOLUME},
        {"/PersistentVolumeClaim", RANK_CLAIM},
        {"/Service", RANK_SERVICE},
        {"/Endpoints", RANK_SERVICE},
        {"discovery.k8s.io/EndpointSlice", RANK_SERVICE},
        {"networking.k8s.io/Ingress", RANK_USER},
        {"autoscaling/HorizontalPodAutoscaler", RANK_USER},
        {"policy/PodDisruptionBudget", RANK_USER},
        {"apiregistration.k8s.io/APIService", RANK_WEBHOOK},
        {"admissionregistration.k8s.io/ValidatingWebhookConfiguration", RANK_WEBHOOK},
        {"admissionregistration.k8s.io/MutatingWebhookConfiguration", RANK_WEBHOOK},
        {"keda.sh/ScaledObject", RANK_USER},
    };
    char text[OBJECT_PATH_BYTES];
    snprintf(text, sizeof text, "%s/%s", id->group, id->kind);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(text, known[i].kind) == 0)
            return known[i].rank;
    }
    if (objects_has_suffix(id->kind, "Class") && !id->namespace[0])
        return RANK_CLASS;
    if (strcmp(id->group, "admissionregistration.k8s.io") == 0)
        return RANK_WEBHOOK;
    return RANK_WORKLOAD;
}

static struct node *node_of(const struct graph *g, const char *name)
{
    const json_t *position = json_object_get(g->position, name);
    return position ? &g->nodes[json_integer_value(position)] : NULL;
}

static int add_edge(struct graph *g, struct node *from, const struct node *to, bool hard)
{
    size_t index = (size_t)(to - g->nodes);
    if (from == to)
        return 0;
    for (size_t i = 0; i < from->edge_count; i++) {
        if (from->edges[i].to == index) {
            from->edges[i].hard = from->edges[i].hard || hard;
            return 0;
        }
    }
    if (from->edge_count == from->edge_capacity) {
        size_t capacity = from->edge_capacity ? from->edge_capacity * 2 : 8;
        struct edge *edges = reallocarray(from->edges, capacity, sizeof *edges);
        if (!edges)
            return -ENOMEM;
        from->edges = edges;
        from->edge_capacity = capacity;
    }
    from->edges[from->edge_count++] = (struct edge){.to = index, .hard = hard};
    return 0;
}

static const char *definition_of(const struct graph *g, const struct object_id *id)
{
    struct reference r = {.group = id->group, .kind = id->kind, .namespace = "*", .name = "*"};
    return references_find(g->index, &r);
}

/* References of what points at workloads are no reason to wait for more than the workload: they keep their
 * rank's place. */
static int read_reference(void *context, const struct reference *r)
{
    struct graph *g = context;
    bool definition = !r->name[0];
    const char *name = definition ? definition_of(g, &g->from->id) : references_find(g->index, r);
    const struct node *to = name ? node_of(g, name) : NULL;
    if (!to)
        return 0;
    /* A definition with a conversion webhook comes before its server; a volume's claimRef is no need of the
     * volume. */
    if (g->from->rank == RANK_DEFINITION || (g->from->rank == RANK_VOLUME && to->rank == RANK_CLAIM))
        return 0;
    bool hard = r->owner || definition || strcmp(r->kind, "Namespace") == 0;
    return add_edge(g, g->from, to, hard);
}

/* ---- webhooks ---- */

static void plural_of(const struct graph *g, const struct object_id *id, char *plural, size_t size)
{
    const char *definition = definition_of(g, id);
    const struct node *node = definition ? node_of(g, definition) : NULL;
    const char *known = node ? objects_text_at(node->object, "spec/names/plural") : "";
    if (known[0]) {
        snprintf(plural, size, "%s", known);
        return;
    }
    snprintf(plural, size, "%s", id->kind);
    for (char *c = plural; *c; c++)
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c | 32 : *c);
    size_t n = strlen(plural);
    if (n && plural[n - 1] == 'y' && n + 2 < size)
        memcpy(plural + n - 1, "ies", 4);
    else if (n + 2 < size)
        memcpy(plural + n, n && plural[n - 1] == 's' ? "es" : "s", n && plural[n - 1] == 's' ? 3 : 2);
}

static bool lists(const json_t *array, const char *text)
{
    size_t i;
    json_t *value;
    json_array_foreach(array, i, value)
    {
        const char *one = json_string_value(value);
        if (one && (strcmp(one, "*") == 0 || strcmp(one, "*/*") == 0 || strcmp(one, text) == 0))
            return true;
    }
    return false;
}

static bool webhook_matches(const json_t *configuration, const char *group, const char *plural)
{
    size_t i, k;
    json_t *webhook, *rule;
    json_array_foreach(json_object_get(configuration, "webhooks"), i, webhook)
    {
        json_array_foreach(json_object_get(webhook, "rules"), k, rule)
        {
            if (lists(json_object_get(rule, "apiGroups"), group) &&
                lists(json_object_get(rule, "resources"), plural))
                return true;
        }
    }
    return false;
}

/* The services of a webhook configuration, a definition's conversion or an API service. */
struct services {
    struct graph *g;
    struct node *found[16];
    size_t count;
};

static int note_service(void *context, const struct reference *r)
{
    struct services *s = context;
    const char *name = strcmp(r->kind, "Service") == 0 ? references_find(s->g->index, r) : NULL;
    struct node *node = name ? node_of(s->g, name) : NULL;
    if (node && s->count < 16)
        s->found[s->count++] = node;
    return 0;
}

static void services_of(struct graph *g, const struct node *node, struct services *ret)
{
    *ret = (struct services){.g = g};
    (void)references_visit(node->object, note_service, ret);
}

static bool selects(const json_t *selector, const json_t *labels)
{
    const char *key;
    json_t *value;
    if (json_object_size(selector) == 0)
        return false;
    json_object_foreach((json_t *)(uintptr_t)selector, key, value)
    {
        if (!json_equal(value, json_object_get(labels, key)))
            return false;
    }
    return true;
}

static const json_t *pod_labels(const struct node *node)
{
    if (strcmp(node->id.kind, "Pod") == 0)
        return objects_at(node->object, "metadata/labels");
    return objects_at(node->object, "spec/template/metadata/labels");
}

/* Marks the node and all that it needs: such things cannot wait for the webhook that they serve. */
static int mark_server(struct graph *g, struct node *first)
{
    _cleanup_free_ size_t *stack = malloc((g->count + 1) * sizeof *stack);
    size_t depth = 0;
    if (!stack)
        return -ENOMEM;
    if (!first->serves_webhook)
        stack[depth++] = (size_t)(first - g->nodes);
    first->serves_webhook = true;
    while (depth > 0) {
        const struct node *node = &g->nodes[stack[--depth]];
        for (size_t i = 0; i < node->edge_count; i++) {
            struct node *to = &g->nodes[node->edges[i].to];
            if (!to->serves_webhook)
                stack[depth++] = node->edges[i].to;
            to->serves_webhook = true;
        }
    }
    return 0;
}

/* The configuration comes after the workloads behind its services. */
static int connect_servers(struct graph *g, struct node *hook, const struct services *services)
{
    int r = 0;
    for (size_t s = 0; s < services->count && r == 0; s++) {
        const struct node *service = services->found[s];
        const json_t *selector = objects_at(service->object, "spec/selector");
        r = mark_server(g, services->found[s]);
        for (size_t i = 0; i < g->count && r == 0; i++) {
            struct node *node = &g->nodes[i];
            if (strcmp(node->id.namespace, service->id.namespace) != 0 || !objects_pod_spec(node->object) ||
                !selects(selector, pod_labels(node)))
                continue;
            r = mark_server(g, node);
            if (r == 0 && hook->rank == RANK_WEBHOOK)
                r = add_edge(g, hook, node, false);
        }
    }
    return r;
}

static int connect_guarded(struct graph *g)
{
    int r = 0;
    for (size_t h = 0; h < g->count && r == 0; h++) {
        struct services services;
        struct node *hook = &g->nodes[h];
        if (hook->rank != RANK_WEBHOOK &&
            !json_object_get(json_object_get(hook->object, "spec"), "conversion"))
            continue;
        services_of(g, hook, &services);
        r = connect_servers(g, hook, &services);
    }
    for (size_t h = 0; h < g->count && r == 0; h++) {
        struct node *hook = &g->nodes[h];
        if (!json_object_get(hook->object, "webhooks"))
            continue;
        for (size_t i = 0; i < g->count && r == 0; i++) {
            struct node *node = &g->nodes[i];
            char plural[256];
            if (node->serves_webhook || node->rank < RANK_CONFIG || node->rank == RANK_LIMIT || node->rank == RANK_WEBHOOK)
                continue;
            plural_of(g, &node->id, plural, sizeof plural);
            if (webhook_matches(hook->object, node->id.group, plural)) {
                /* Only what other people's controllers check waits: what the server's own kind needs is made
                 * before. */
                if (!object_group_is_builtin(node->id.group))
                    node->rank = RANK_GUARDED;
                if (node->rank > RANK_SERVICE)
                    r = add_edge(g, node, hook, false);
            }
        }
    }
    return r;
}

/* ---- levels ---- */

static bool blocked(const struct graph *g, const struct node *node, bool hard_only)
{
    for (size_t i = 0; i < node->edge_count; i++) {
        const struct edge *e = &node->edges[i];
        if (!e->dropped && !g->nodes[e->to].done && (e->hard || !hard_only))
            return true;
    }
    return false;
}

static void settle(struct graph *g, struct node *node)
{
    long level = (long)node->rank * LEVELS_PER_RANK;
    for (size_t i = 0; i < node->edge_count; i++) {
        const struct edge *e = &node->edges[i];
        if (!e->dropped && g->nodes[e->to].level >= level)
            level = g->nodes[e->to].level + 1;
    }
    node->level = level;
    node->done = true;
}

/* Whether the node needs itself, over nodes that are not done. Notes the nodes on the way in `trail` (for the
 * message). */
static bool on_cycle(const struct graph *g, size_t start, bool hard_only, size_t *stack, bool *seen)
{
    size_t depth = 0;
    memset(seen, 0, g->count * sizeof *seen);
    stack[depth++] = start;
    while (depth > 0) {
        const struct node *node = &g->nodes[stack[--depth]];
        for (size_t i = 0; i < node->edge_count; i++) {
            const struct edge *e = &node->edges[i];
            if (e->dropped || g->nodes[e->to].done || (hard_only && !e->hard))
                continue;
            if (e->to == start)
                return true;
            if (!seen[e->to]) {
                seen[e->to] = true;
                stack[depth++] = e->to;
            }
        }
    }
    return false;
}

/* Opens one cycle: at the first node whose hard needs are met, by passing over its others; else at the first
 * of all. */
static int open_cycle(struct graph *g)
{
    _cleanup_free_ size_t *stack = malloc((g->count + 1) * sizeof *stack);
    _cleanup_free_ bool *seen = malloc(g->count + 1);
    size_t at = g->count;
    if (!stack || !seen)
        return -ENOMEM;
    for (int hard = 0; hard < 2 && at == g->count; hard++) {
        for (size_t i = 0; i < g->count && at == g->count; i++) {
            struct node *node = &g->nodes[i];
            if (!node->done && (hard || !blocked(g, node, true)) && on_cycle(g, i, false, stack, seen))
                at = i;
        }
    }
    if (at == g->count)
        return -ELOOP; /* cannot be: what is not done and not on a cycle waits for one */
    struct node *node = &g->nodes[at];
    json_t *cycle = json_array();
    json_array_append_new(cycle, json_string(node->name));
    for (size_t i = 0; i < node->edge_count; i++) {
        struct edge *e = &node->edges[i];
        if (!e->dropped && !g->nodes[e->to].done) {
            e->dropped = true;
            json_array_append_new(cycle, json_string(g->nodes[e->to].name));
        }
    }
    return json_array_append_new(g->cycles, cycle) < 0 ? -ENOMEM : 0;
}

static int find_levels(struct graph *g)
{
    for (size_t done = 0; done < g->count;) {
        bool progress = false;
        for (size_t i = 0; i < g->count; i++) {
            struct node *node = &g->nodes[i];
            if (!node->done && !blocked(g, node, false)) {
                settle(g, node);
                done++;
                progress = true;
            }
        }
        int r = progress ? 0 : open_cycle(g);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- the result ---- */

static int add_await(json_t *awaits, const char *condition, const char *object)
{
    json_t *entry = json_pack("{s:s, s:s}", "condition", condition, "object", object);
    size_t i;
    json_t *value;
    json_array_foreach(awaits, i, value)
    {
        if (json_equal(value, entry)) {
            json_decref(entry);
            return 0;
        }
    }
    return json_array_append_new(awaits, entry) < 0 ? -ENOMEM : 0;
}

static int add_endpoints(struct graph *g, const struct node *node, json_t *awaits)
{
    struct services services;
    int r = 0;
    services_of(g, node, &services);
    for (size_t i = 0; i < services.count && r == 0; i++)
        r = add_await(awaits, "Endpoints", services.found[i]->name);
    return r;
}

static int add_awaits(struct graph *g, const struct node *node, json_t *awaits)
{
    const char *definition = object_group_is_builtin(node->id.group) ? NULL : definition_of(g, &node->id);
    const struct node *defined = definition ? node_of(g, definition) : NULL;
    int r = 0;
    if (defined) {
        r = add_await(awaits, "Established", defined->name);
        if (r == 0 && !node->serves_webhook)
            r = add_endpoints(g, defined, awaits);
    }
    if (r == 0 && node->rank == RANK_WEBHOOK)
        r = add_endpoints(g, node, awaits);
    for (size_t i = 0; i < node->edge_count && r == 0; i++) {
        const struct node *to = &g->nodes[node->edges[i].to];
        if (to->rank == RANK_WEBHOOK && !node->edges[i].dropped)
            r = add_endpoints(g, to, awaits);
    }
    return r;
}

static int compare_levels(const void *a, const void *b)
{
    const struct node *m = *(const struct node *const *)a, *n = *(const struct node *const *)b;
    if (m->level != n->level)
        return m->level < n->level ? -1 : 1;
    return strcmp(m->name, n->name);
}

static int make_waves(struct graph *g, json_t **ret)
{
    _cleanup_free_ const struct node **order = calloc(g->count + 1, sizeof *order);
    _cleanup_json_ json_t *waves = json_array();
    json_t *objects = NULL, *awaits = NULL;
    int r = order && waves ? 0 : -ENOMEM;
    for (size_t i = 0; i < g->count && r == 0; i++)
        order[i] = &g->nodes[i];
    if (r == 0)
        qsort(order, g->count, sizeof *order, compare_levels);
    for (size_t i = 0; i < g->count && r == 0; i++) {
        if (i == 0 || order[i]->level != order[i - 1]->level) {
            objects = json_array();
            awaits = json_array();
            if (json_array_append_new(waves, json_pack("{s:o, s:o}", "objects", objects, "awaits", awaits)) <
                0)
                return -ENOMEM;
        }
        r = json_array_append_new(objects, json_string(order[i]->name)) < 0 ? -ENOMEM : 0;
        if (r == 0)
            r = add_awaits(g, order[i], awaits);
    }
    if (r == 0)
        *ret = json_pack("{s:O, s:O}", "waves", waves, "cycles", g->cycles);
    return r < 0 || !*ret ? -ENOMEM : 0;
}

static int compare_ranks(const void *a, const void *b)
{
    const struct node *m = a, *n = b;
    return m->rank != n->rank ? (m->rank < n->rank ? -1 : 1) : strcmp(m->name, n->name);
}

static int read_nodes(struct graph *g, const json_t *set, struct error *err)
{
    const char *name;
    json_t *object;
    json_object_foreach((json_t *)(uintptr_t)set, name, object)
    {
        struct node *node = &g->nodes[g->count];
        int r = object_id_parse(name, &node->id, err);
        if (r < 0)
            return r;
        *node = (struct node){.name = name, .object = object, .rank = rank_of(&node->id)};
        g->count++;
    }
    qsort(g->nodes, g->count, sizeof *g->nodes, compare_ranks);
    for (size_t i = 0; i < g->count; i++) {
        /* Only now: the id points into the node. */
        int r = object_id_parse(g->nodes[i].name, &g->nodes[i].id, err);
        if (r < 0)
            return r;
        if (json_object_set_new(g->position, g->nodes[i].name, json_integer((json_int_t)i)) < 0)
            return objects_no_memory(err);
    }
    return 0;
}

int objects_order(const json_t *set, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *index = references_index(set), *position = json_object(), *cycles = json_array();
    _cleanup_free_ struct node *nodes = NULL;
    if (json_object_size(set) > OBJECTS_MAX)
        return error_set(err, -E2BIG, "more than %u objects to put in order", OBJECTS_MAX);
    nodes = calloc(json_object_size(set) + 1, sizeof *nodes);
    if (!index || !position || !cycles || !nodes)
        return objects_no_memory(err);
    struct graph g = {.nodes = nodes, .index = index, .position = position, .cycles = cycles};
    int r = read_nodes(&g, set, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < g.count && r == 0; i++) {
        g.from = &nodes[i];
        r = references_visit(nodes[i].object, read_reference, &g);
    }
    if (r == 0)
        r = connect_guarded(&g);
    if (r == 0)
        r = find_levels(&g);
    if (r == 0)
        r = make_waves(&g, ret);
    for (size_t i = 0; i < g.count; i++)
        free(nodes[i].edges);
    return r < 0 ? error_set(err, r, "cannot put the objects in order: %s", strerror(-r)) : 0;
}
