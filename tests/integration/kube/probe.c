/* SPDX-License-Identifier: Apache-2.0 */
/* Drives the client for test_kube.py: a command, and one line of output for each thing that happens. */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "kube/discovery.h"
#include "kube/exec.h"
#include "kube/informer.h"
#include "kube/lease.h"
#include "lib/json.h"

static struct kube_client *client;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    putchar('\n');
    fflush(stdout);
}

static int failed(const struct error *err)
{
    say("error %d %s", -err->code, err->message);
    return 1;
}

static const struct kube_resource *find_kind(struct kube_kinds *kinds, const char *plural)
{
    for (size_t i = 0; i < kinds->count; i++)
        if (strcmp(kinds->resources[i].plural, plural) == 0)
            return &kinds->resources[i];
    return NULL;
}

/* ---- list PLURAL LIMIT [pause]: with "pause" a line of stdin is awaited after each chunk ---- */
struct listing {
    size_t objects, chunks, restarts;
    bool pause;
};
static int on_chunk(void *context, json_t *items, bool first, struct error *err)
{
    struct listing *l = context;
    (void)err;
    if (first) {
        l->restarts += l->chunks > 0;
        l->objects = 0;
    }
    l->objects += json_array_size(items);
    l->chunks++;
    const char *kind = json_string_value(json_object_get(json_array_get(items, 0), "kind"));
    say("chunk %zu %s", json_array_size(items), kind ? kind : "-");
    char line[16];
    if (l->pause && !fgets(line, sizeof line, stdin))
        l->pause = false;
    return 0;
}
static int command_list(const struct kube_resource *kind, const char *namespace, unsigned limit, bool pause)
{
    struct error err = ERROR_INIT;
    struct listing l = {.pause = pause};
    _cleanup_free_ char *version = NULL;
    const struct kube_target target = {.resource = kind, .namespace = namespace};
    if (kube_list(client, &target, &(struct kube_list_options){.limit = limit}, on_chunk, &l, &version,
                  &err) < 0)
        return failed(&err);
    say("listed %zu chunks %zu restarts %zu", l.objects, l.chunks, l.restarts);
    return 0;
}

/* ---- watch PLURAL...: until stdin ends ---- */
static void on_event(void *context, const struct kube_resource *kind, enum kube_event event,
                     const char *namespace, const char *name, uint64_t version, json_t *object)
{
    static const char *const names[] = {"added", "changed", "deleted"};
    (void)context, (void)version;
    json_t *data = json_object_get(object, "data");
    const char *value = json_string_value(json_object_get(data, "value"));
    say("%s %s %s/%s %s", names[event], kind->plural, namespace, name, value ? value : "-");
}
static void on_synced(void *context, const struct kube_resource *kind, size_t count)
{
    (void)context;
    say("synced %s %zu", kind->plural, count);
}
static void on_gap(void *context, const struct kube_resource *kind, const char *reason)
{
    (void)context;
    say("gap %s %s", kind->plural, reason);
}
static void on_failed(void *context, const struct kube_resource *kind, const struct error *error)
{
    (void)context;
    say("failed %s %s", kind->plural, error->message);
}
static int command_watch(struct kube_kinds *kinds, char **plurals, const char *namespace)
{
    struct error err = ERROR_INIT;
    struct kube_informers *set;
    char line[256];
    if (kube_informers_new(client, NULL, &set, &err) < 0)
        return failed(&err);
    for (; *plurals; plurals++) {
        const char *timeout = getenv("PROBE_WATCH_TIMEOUT"), *idle = getenv("PROBE_WATCH_IDLE");
        const struct kube_informer_options options = {
            .resource = find_kind(kinds, *plurals),
            .namespace = namespace,
            .watch_timeout_s = timeout ? (unsigned)strtoul(timeout, NULL, 10) : 0,
            .idle_s = idle ? (unsigned)strtoul(idle, NULL, 10) : 0,
            .ops = {NULL, on_event, on_synced, on_gap, on_failed, NULL}};
        struct kube_informer *i;
        if (!options.resource || kube_informers_add(set, &options, &i, &err) < 0)
            return failed(&err);
    }
    while (fgets(line, sizeof line, stdin))
        ;
    kube_informers_free(set);
    say("ended");
    return 0;
}

/* ---- lease NAMESPACE NAME IDENTITY: until stdin ends ---- */
static void on_acquired(void *context)
{
    (void)context;
    say("acquired");
}
static void on_lost(void *context)
{
    (void)context;
    say("lost");
}
static int command_lease(char **arguments)
{
    struct error err = ERROR_INIT;
    struct kube_lease *lease;
    const struct kube_lease_options options = {.namespace = arguments[0],
                                               .name = arguments[1],
                                               .identity = arguments[2],
                                               .duration_s = 4,
                                               .retry_ms = 300,
                                               .acquired = on_acquired,
                                               .lost = on_lost};
    char line[16];
    if (kube_lease_start(client, &options, &lease, &err) < 0)
        return failed(&err);
    while (fgets(line, sizeof line, stdin))
        say("held %d", kube_lease_held(lease));
    kube_lease_stop(lease);
    return 0;
}

/* ---- calls: "get|create|update|merge|apply|force|delete PLURAL NAMESPACE NAME SUBRESOURCE JSON", - for none
 * ---- */
static int command_call(struct kube_kinds *kinds, char **a)
{
    struct error err = ERROR_INIT;
    struct kube_status status = {0};
    _cleanup_json_ json_t *body = NULL, *answer = NULL;
    const char *as = getenv("PROBE_AS");
    const struct kube_user user = {.name = as};
    struct kube_target t = {.resource = find_kind(kinds, a[1]),
                            .namespace = strcmp(a[2], "-") ? a[2] : NULL,
                            .name = strcmp(a[3], "-") ? a[3] : NULL,
                            .subresource = strcmp(a[4], "-") ? a[4] : NULL,
                            .as = as ? &user : NULL,
                            .field_manager = getenv("PROBE_MANAGER"),
                            .status = &status};
    int r;
    if (!t.resource ||
        (strcmp(a[5], "-") != 0 && json_parse("argument", a[5], strlen(a[5]), &body, &err) < 0))
        return failed(&err);
    if (strcmp(a[0], "get") == 0)
        r = kube_get(client, &t, &answer, &err);
    else if (strcmp(a[0], "create") == 0)
        r = kube_create(client, &t, body, &answer, &err);
    else if (strcmp(a[0], "update") == 0)
        r = kube_update(client, &t, body, &answer, &err);
    else if (strcmp(a[0], "merge") == 0)
        r = kube_patch(client, &t, KUBE_PATCH_MERGE, body, &answer, &err);
    else if (strcmp(a[0], "json") == 0)
        r = kube_patch(client, &t, KUBE_PATCH_JSON, body, &answer, &err);
    else if (strcmp(a[0], "strategic") == 0)
        r = kube_patch(client, &t, KUBE_PATCH_STRATEGIC, body, &answer, &err);
    else if (strcmp(a[0], "apply") == 0 || strcmp(a[0], "force") == 0)
        r = kube_apply(client, &t, body, a[0][0] == 'f', &answer, &err);
    else
        r = kube_delete(client, &t,
                        &(struct kube_delete_options){.uid = json_string_value(json_object_get(body, "uid")),
                                                      .propagation = "Background"},
                        &err);
    say("status %ld %s", status.code, *status.reason ? status.reason : "-");
    json_decref(status.details);
    if (r < 0)
        return failed(&err);
    _cleanup_free_ char *text = answer ? json_to_text(answer) : NULL;
    say("answer %s", text ? text : "-");
    return 0;
}

static int command_exec(char **a)
{
    struct error err = ERROR_INIT;
    _cleanup_free_ char *output = NULL;
    const char *input = getenv("PROBE_INPUT");
    int status = -1;
    const struct kube_exec exec = {.namespace = a[0],
                                   .pod = a[1],
                                   .argv = (const char *const *)(a + 2),
                                   .input = input,
                                   .input_bytes = input ? strlen(input) : 0,
                                   .timeout_ms = 10000};
    if (kube_exec_collect(client, &exec, &status, &output, &err) < 0)
        return failed(&err);
    say("exit %d output %s", status, output);
    return 0;
}

int main(int argc, char **argv)
{
    struct error err = ERROR_INIT;
    struct kube_kinds kinds = {0};
    if (argc < 2 || kube_open(&(struct kube_options){.kubeconfig = getenv("PROBE_KUBECONFIG"),
                                                     .context = getenv("PROBE_CONTEXT")},
                              &client, &err) < 0)
        return failed(&err);
    int r = 2;
    bool needs_kinds = strcmp(argv[1], "lease") != 0 && strcmp(argv[1], "exec") != 0;
    if (needs_kinds && kube_discover(client, &kinds, &err) < 0)
        return failed(&err);
    if (strcmp(argv[1], "kinds") == 0) {
        for (size_t i = 0; i < kinds.count; i++)
            say("%s/%s %s %s %d %x", kinds.resources[i].group, kinds.resources[i].version,
                kinds.resources[i].plural, kinds.resources[i].kind, kinds.resources[i].namespaced,
                kinds.resources[i].verbs);
        r = 0;
    } else if (strcmp(argv[1], "list") == 0 && argc >= 5) {
        r = command_list(find_kind(&kinds, argv[2]), strcmp(argv[3], "-") ? argv[3] : NULL,
                         (unsigned)strtoul(argv[4], NULL, 10), argc > 5);
    } else if (strcmp(argv[1], "watch") == 0) {
        r = command_watch(&kinds, argv + 3, strcmp(argv[2], "-") ? argv[2] : NULL);
    } else if (strcmp(argv[1], "lease") == 0 && argc == 5) {
        r = command_lease(argv + 2);
    } else if (strcmp(argv[1], "exec") == 0 && argc >= 5) {
        r = command_exec(argv + 2);
    } else if (argc == 7) {
        r = command_call(&kinds, argv + 1);
    }
    kube_kinds_release(&kinds);
    kube_close(client);
    return r;
}
