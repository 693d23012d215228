/* SPDX-License-Identifier: Apache-2.0 */
/* Status of a cluster: what is protected and what not and why, what is under way, what nothing protects, and
 * what is wrong with the installation. What the user may not see is left out, and said. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/units.h"
#include "cli/kubectl_internal.h"

#define STATUS_WATCH_S 2
#define CSI_DRIVER "csi.tidemark.io"
#define LEASE_STALE_S 30u     /* the leader renews it every 2 s */
#define UNPROTECTED_SHOWN 20u /* in the table */
#define RECOVERIES_SHOWN 10u  /* of one application */

static const struct kube_resource csi_drivers = {"storage.k8s.io", "v1", "csidrivers", "CSIDriver", false, 0};

static const struct kube_resource webhooks = {
    "admissionregistration.k8s.io", "v1",  "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration", false, 0};

struct look {
    struct kubectl *k;
    const char *namespace; /* NULL: all */
    json_t *answer, *problems, *notes;
};

static void add_problem(struct look *l, const char *what, const char *remedy)
{
    json_array_append_new(l->problems, json_pack("{s:s, s:s}", "problem", what, "remedy", remedy));
}

/* A list that may be forbidden: then it is empty, and a note says so. */
static json_t *list_or_note(struct look *l, const struct kube_resource *resource, const char *what)
{
    struct error err = ERROR_INIT;
    json_t *items = NULL;
    char note[CLI_TEXT_BYTES];
    if (kubectl_list(l->k, resource, l->namespace, &items, &err) == 0)
        return items;
    snprintf(note, sizeof note, "%s cannot be listed: %s", what,
             err.code == -EACCES ? "forbidden" : err.message);
    json_array_append_new(l->notes, json_string(note));
    return NULL;
}

/* ---- applications ---- */

/* The first stream that is not well; NULL when all are. */
static const json_t *bad_stream(const json_t *papp)
{
    size_t i;
    json_t *stream;
    json_array_foreach(kubectl_at(papp, "status", "streams"), i, stream)
        if (strcmp(cli_field_text(stream, "state", "protected"), "protected") != 0)
            return stream;
    return NULL;
}

static const char *state_of(const json_t *papp, const json_t **ret_why)
{
    const json_t *ready = kubectl_condition(papp, "Ready"),
                 *objects = kubectl_condition(papp, "ObjectsCaptured"),
                 *volumes = kubectl_condition(papp, "Protected");
    *ret_why = NULL;
    if (!ready)
        return "starting";
    if (kubectl_is(objects, "False") && strcmp(cli_field_text(objects, "reason", ""), "Paused") == 0) {
        *ret_why = objects;
        return "paused";
    }
    if (kubectl_is(ready, "False")) {
        *ret_why = ready;
        return "problem";
    }
    if (kubectl_is(objects, "False")) {
        *ret_why = objects;
        return "problem";
    }
    if (kubectl_is(volumes, "False")) {
        *ret_why = volumes;
        return strcmp(cli_field_text(volumes, "reason", ""), "JournalingSuspended") == 0 ? "suspended" : "partly";
    }
    *ret_why = bad_stream(papp);
    return *ret_why ? cli_field_text(*ret_why, "state", "?") : "protected";
}

static bool under_way(const char *state)
{
    return strcmp(state, "starting") == 0 || strcmp(state, "seeding") == 0 || strcmp(state, "resyncing") == 0;
}

static json_t *describe(const json_t *papp)
{
    static const char *const fields[] = {
        "volumes", "volumesTotal", "volumesCaptured", "objects",    "findings",
        "streams", "rpoMs",        "oldestTime",      "conditions", "checkpoints", NULL};
    const json_t *why, *status = json_object_get(papp, "status");
    const char *state = state_of(papp, &why);
    json_t *one =
        json_pack("{s:s, s:s, s:s, s:s*, s:s*, s:s*}", "namespace", kube_object_namespace(papp), "name",
                  kube_object_name(papp), "state", state, "policy",
                  cli_field_text(kubectl_at(papp, "spec", "policyRef"), "name", NULL), "reason",
                  cli_field_text(why, "reason", NULL), "message", cli_field_text(why, "message", NULL));
    for (const char *const *f = fields; *f; f++)
        if (json_object_get(status, *f))
            json_object_set(one, *f, json_object_get(status, *f));
    return one;
}

/* ---- recoveries ---- */

static json_t *describe_recovery(const json_t *recovery)
{
    const json_t *spec = json_object_get(recovery, "spec"), *status = json_object_get(recovery, "status");
    return json_pack(
        "{s:s, s:s, s:s*, s:s*, s:s*, s:s, s:s*, s:s*, s:s*}", "namespace", kube_object_namespace(recovery),
        "name", kube_object_name(recovery), "application", cli_field_text(spec, "application", NULL), "mode",
        cli_field_text(spec, "mode", NULL), "point", cli_field_text(spec, "point", NULL), "phase",
        cli_field_text(status, "phase", "not taken up"), "step",
        cli_field_text(json_object_get(status, "step"), "name", NULL), "startTime",
        cli_field_text(status, "startTime", NULL), "message", cli_field_text(status, "message", NULL));
}

static json_t *recoveries_under_way(struct look *l)
{
    _cleanup_json_ json_t *items = list_or_note(l, &kubectl_recoveries, "recoveries");
    json_t *found = json_array(), *item;
    size_t i;
    json_array_foreach(items, i, item)
    {
        const json_t *diverged = kubectl_condition(item, "GitDiverged");
        if (!kubectl_recovery_has_ended(item))
            json_array_append_new(found, describe_recovery(item));
        if (kubectl_is(diverged, "True"))
            json_array_append_new(l->notes, json_sprintf("rewind %s/%s: %s", kube_object_namespace(item), kube_object_name(item),
                                                         cli_field_text(diverged, "message", "?")));
    }
    return found;
}

/* ---- what nothing protects ---- */

/* Whether the application says something of the claim: "captured", or why not; NULL when the claim is not
 * its. */
static const char *said_of(const json_t *papp, const json_t *claim)
{
    size_t i;
    json_t *volume;
    json_array_foreach(kubectl_at(papp, "status", "volumes"), i, volume)
    {
        if (strcmp(cli_field_text(volume, "claim", ""), kube_object_name(claim)) == 0)
            return json_is_true(json_object_get(volume, "captured"))
                       ? "captured"
                       : cli_field_text(volume, "message", "not captured");
    }
    /* The status has no more than 100, those that are not captured first: the rest are. */
    bool whole = !kubectl_at(papp, "spec", "selector");
    return whole && json_array_size(kubectl_at(papp, "status", "volumes")) >= 100 ? "captured" : NULL;
}

static void look_at_claim(const json_t *claim, const json_t *papps, const char *system, json_t *found)
{
    const char *namespace = kube_object_namespace(claim), *why = NULL, *remedy = NULL, *said;
    char text[CLI_TEXT_BYTES + 64];
    bool in_application = false;
    size_t i;
    json_t *papp;
    if (strcmp(namespace, system) == 0) /* the history itself */
        return;
    json_array_foreach(papps, i, papp)
    {
        if (strcmp(kube_object_namespace(papp), namespace) != 0)
            continue;
        in_application = true;
        if (!kubectl_condition(papp, "Ready")) /* nobody has looked yet; its state says so */
            return;
        said = said_of(papp, claim);
        if (said && strcmp(said, "captured") == 0)
            return;
        why = said ? said : why;
    }
    if (!why && in_application)
        why = "no application of its namespace has it";
    if (!in_application) {
        why = "no application";
        snprintf(text, sizeof text, "kubectl annotate namespace %.63s tidemark.io/policy=POLICY", namespace);
        remedy = text;
    }
    json_array_append_new(
        found, json_pack("{s:s, s:s, s:s*, s:s*, s:s, s:s*}", "namespace", namespace, "claim",
                         kube_object_name(claim), "storageClass",
                         cli_field_text(json_object_get(claim, "spec"), "storageClassName", NULL), "size",
                         cli_field_text(kubectl_at(json_object_get(claim, "spec"), "resources", "requests"),
                                        "storage", NULL),
                         "reason", why, "remedy", remedy));
}

static json_t *unprotected(struct look *l, const json_t *papps)
{
    _cleanup_json_ json_t *claims = list_or_note(l, &kube_claims, "claims");
    const char *system = cli_options_value(l->k->cli, "system-namespace", KUBECTL_SYSTEM_NAMESPACE);
    json_t *found = json_array(), *claim;
    size_t i;
    json_array_foreach(claims, i, claim) look_at_claim(claim, papps, system, found);
    return found;
}

/* ---- the installation ---- */

static void check_leader(struct look *l, const char *system)
{
    _cleanup_json_ json_t *lease = NULL;
    struct error err = ERROR_INIT;
    uint64_t renewed_ns, now_ns = clock_realtime_ns(clock_system());
    const struct kube_target target = {
        .resource = &kube_leases, .namespace = system, .name = "tidemark-controller"};
    int r = kube_get(l->k->client, &target, &lease, &err);
    if (r == -ENOENT) {
        add_problem(l, "no controller runs, or ever did: the Lease tidemark-controller is not there",
                    "kubectl -n tidemark-system get pods; in another namespace: --system-namespace");
        return;
    }
    if (r < 0) { /* whoever looks after one namespace sees by its applications whether it runs */
        json_array_append_new(l->notes, json_string("whether the controller runs cannot be seen: forbidden"));
        return;
    }
    if (clock_parse_rfc3339(cli_field_text(json_object_get(lease, "spec"), "renewTime", ""), &renewed_ns,
                            &err) < 0 ||
        now_ns > renewed_ns + LEASE_STALE_S * NS_PER_SECOND)
        add_problem(
            l, "the controller does not run: its Lease tidemark-controller has not been renewed for 30 s",
            "kubectl -n tidemark-system get pods, and the log of the controller's pod; or this machine's "
            "clock is "
            "wrong");
}

static void check_driver(struct look *l)
{
    _cleanup_json_ json_t *driver = NULL, *classes = NULL;
    struct error err = ERROR_INIT;
    const struct kube_target target = {.resource = &csi_drivers, .name = CSI_DRIVER};
    size_t i;
    json_t *class;
    bool found = false;
    if (kube_get(l->k->client, &target, &driver, &err) == -ENOENT)
        add_problem(l, "the CSIDriver " CSI_DRIVER " is not registered: no volume can be captured",
                    "helm upgrade --install tidemark packaging/helm/tidemark -n tidemark-system");
    if (kubectl_list(l->k, &kube_storage_classes, NULL, &classes, &err) < 0)
        return;
    json_array_foreach(classes, i, class) found =
        found || strcmp(cli_field_text(class, "provisioner", ""), CSI_DRIVER) == 0;
    if (!found)
        add_problem(l, "no StorageClass has the provisioner " CSI_DRIVER ": new volumes are not captured",
                    "the chart's value storageClass makes one");
}

/* Without it no Recovery is taken: nobody vouches for who asked. */
static void check_webhook(struct look *l)
{
    _cleanup_json_ json_t *webhook = NULL;
    struct error ignored = ERROR_INIT;
    const struct kube_target target = {.resource = &webhooks, .name = "tidemark"};
    if (kube_get(l->k->client, &target, &webhook, &ignored) == -ENOENT)
        add_problem(l,
                    "the admission webhook is not registered: no recovery can be made, since nobody vouches "
                    "for who asks",
                    "the chart's value webhook.enabled makes it");
}

static void check_daemons(struct look *l, const char *system)
{
    _cleanup_json_ json_t *sets = NULL;
    struct error ignored = ERROR_INIT;
    char text[CLI_TEXT_BYTES];
    size_t i;
    json_t *set;
    if (kubectl_list(l->k, &kube_daemonsets, system, &sets, &ignored) < 0)
        return;
    json_array_foreach(sets, i, set)
    {
        const json_t *status = json_object_get(set, "status");
        uint64_t wanted = cli_field_u64(status, "desiredNumberScheduled"),
                 ready = cli_field_u64(status, "numberReady");
        if (strncmp(kube_object_name(set), "tidemark-", 9) != 0 || ready >= wanted)
            continue;
        snprintf(text, sizeof text, "DaemonSet %s is ready on %llu of %llu nodes", kube_object_name(set),
                 (unsigned long long)ready, (unsigned long long)wanted);
        add_problem(l, text,
                    "kubectl -n tidemark-system get pods -o wide, and the log of the pod that is not ready");
    }
}

/* ---- all of it ---- */

static enum cli_exit collect(struct look *l, const struct kubectl_member *member)
{
    struct error err = ERROR_INIT;
    const char *system = cli_options_value(l->k->cli, "system-namespace", KUBECTL_SYSTEM_NAMESPACE);
    _cleanup_json_ json_t *papps = NULL;
    json_t *applications = json_array(), *papp;
    size_t i;
    int r = kubectl_list(l->k, &kubectl_applications, l->namespace, &papps, &err);
    if (r == -EACCES && !l->namespace) { /* whoever has one namespace sees that */
        l->namespace = l->k->namespace;
        json_array_append_new(
            l->notes, json_sprintf("you may not look at all namespaces: only %s is shown", l->namespace));
        r = kubectl_list(l->k, &kubectl_applications, l->namespace, &papps, &err);
    }
    if (r < 0) {
        json_decref(applications);
        return kubectl_fail(l->k, "status", &err);
    }
    json_array_foreach(papps, i, papp)
    {
        if (!member || (strcmp(kube_object_name(papp), member->name) == 0))
            json_array_append_new(applications, describe(papp));
    }
    json_object_set_new(l->answer, "applications", applications);
    json_object_set_new(l->answer, "recoveries", recoveries_under_way(l));
    if (!member)
        json_object_set_new(l->answer, "unprotected", unprotected(l, papps));
    _cleanup_json_ json_t *kept = NULL;
    struct error ignored = ERROR_INIT; /* whoever may not see the records has nothing to decide about them */
    if (!member && kubectl_kept(l->k, &kept, &ignored) == 0)
        json_object_set(l->answer, "kept", kept);
    check_leader(l, system);
    check_driver(l);
    check_webhook(l);
    check_daemons(l, system);
    json_object_set(l->answer, "problems", l->problems);
    json_object_set(l->answer, "notes", l->notes);
    return CLI_EXIT_OK;
}

static void put_line(const char *text)
{
    for (const char *p = text; *p; p++)
        putchar((unsigned char)*p < 0x20 || *p == 0x7f ? '?' : *p);
}

/* The first line says at once whether anything is wrong, and what. */
static void print_summary(const struct cli *cli, const json_t *answer)
{
    const json_t *applications = json_object_get(answer, "applications"),
                 *problems = json_object_get(answer, "problems");
    size_t bad = 0, busy = 0, i, total = json_array_size(applications),
           claims = json_array_size(json_object_get(answer, "unprotected"));
    json_t *application;
    json_array_foreach(applications, i, application)
    {
        const char *state = cli_field_text(application, "state", "?");
        busy += under_way(state);
        bad += !under_way(state) && strcmp(state, "protected") != 0;
    }
    size_t faults = json_array_size(problems);
    bool wrong = bad || faults;
    enum cli_colour colour = wrong ? CLI_COLOUR_RED : busy || claims ? CLI_COLOUR_YELLOW : CLI_COLOUR_GREEN;
    fputs(cli_output_colour(cli->colour_out, colour), stdout);
    if (wrong)
        printf("PROBLEM: ");
    if (bad)
        printf("%zu of %zu applications are not fully protected%s", bad, total, faults ? ", " : "");
    if (faults)
        printf("%zu problem%s of the installation", faults, faults == 1 ? "" : "s");
    if (!wrong && total == 0)
        printf("No application is protected: `kubectl annotate namespace NAMESPACE "
               "tidemark.io/policy=POLICY` protects one");
    else if (!wrong && busy)
        printf("UNDER WAY: %zu of %zu applications", busy, total);
    else if (!wrong)
        printf("OK: %zu application%s, all protected", total, total == 1 ? "" : "s");
    if (claims)
        printf("; %zu claim%s that nothing protects", claims, claims == 1 ? "" : "s");
    printf("%s\n", cli_output_colour(cli->colour_out, CLI_COLOUR_NONE));
}

static void print_lists(const json_t *answer)
{
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(answer, "problems"), i, item)
    {
        printf("problem: ");
        put_line(cli_field_text(item, "problem", "?"));
        printf("\n  ");
        put_line(cli_field_text(item, "remedy", ""));
        putchar('\n');
    }
    json_array_foreach(json_object_get(answer, "notes"), i, item)
    {
        printf("note: ");
        put_line(json_string_value(item) ? json_string_value(item) : "?");
        putchar('\n');
    }
}

static enum cli_exit print_applications(const struct cli *cli, const json_t *answer)
{
    static const char *const columns[] = {"APPLICATION",   "STATE",  ">VOLUMES", ">OBJECTS", ">RPO",
                                          "HISTORY SINCE", "POLICY", "WHY",      NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char duration[UNITS_TEXT_BYTES], age[CLI_TEXT_BYTES];
    size_t i;
    json_t *a;
    json_array_foreach(json_object_get(answer, "applications"), i, a)
    {
        const char *state = cli_field_text(a, "state", "?");
        if (!table)
            break;
        cli_table_row(table);
        cli_table_cell(table, CLI_COLOUR_NONE, "%s/%s", cli_field_text(a, "namespace", "?"),
                       cli_field_text(a, "name", "?"));
        cli_table_cell(table,
                       strcmp(state, "protected") == 0 ? CLI_COLOUR_GREEN
                       : under_way(state)              ? CLI_COLOUR_YELLOW
                                                       : CLI_COLOUR_RED,
                       "%s", state);
        cli_table_cell(table, CLI_COLOUR_NONE, "%llu/%llu",
                       (unsigned long long)cli_field_u64(a, "volumesCaptured"),
                       (unsigned long long)cli_field_u64(a, "volumesTotal"));
        cli_table_field(table, json_object_get(a, "objects"), "count");
        if (json_is_number(json_object_get(a, "rpoMs")))
            cli_table_cell(table, CLI_COLOUR_NONE, "%s",
                           units_format_duration(
                               (uint64_t)(json_number_value(json_object_get(a, "rpoMs")) * 1e6), duration));
        else
            cli_table_cell(table, CLI_COLOUR_NONE, "-");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_age(a, "oldestTime", age));
        cli_table_field(table, a, "policy");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_text(a, "message", ""));
    }
    return json_array_size(json_object_get(answer, "applications")) ? cli_table_print(cli, table)
                                                                    : CLI_EXIT_OK;
}

static enum cli_exit print_recoveries(const struct cli *cli, const json_t *recoveries, const char *title)
{
    static const char *const columns[] = {"RECOVERY", "APPLICATION", "MODE",    "POINT", "PHASE",
                                          "STEP",     "SINCE",       "MESSAGE", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char age[CLI_TEXT_BYTES];
    size_t i;
    json_t *r;
    if (json_array_size(recoveries) == 0)
        return CLI_EXIT_OK;
    printf("\n%s:\n", title);
    json_array_foreach(recoveries, i, r)
    {
        if (!table)
            break;
        cli_table_row(table);
        cli_table_cell(table, CLI_COLOUR_NONE, "%s/%s", cli_field_text(r, "namespace", "?"),
                       cli_field_text(r, "name", "?"));
        cli_table_field(table, r, "application");
        cli_table_field(table, r, "mode");
        cli_table_field(table, r, "point");
        cli_table_field(table, r, "phase");
        cli_table_field(table, r, "step");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_age(r, "startTime", age));
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_text(r, "message", ""));
    }
    return cli_table_print(cli, table);
}

static enum cli_exit print_unprotected(const struct cli *cli, const json_t *claims)
{
    static const char *const columns[] = {"CLAIM", "CLASS", ">SIZE", "WHY", "REMEDY", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    size_t i, total = json_array_size(claims);
    json_t *c;
    if (total == 0)
        return CLI_EXIT_OK;
    printf("\nNothing protects:\n");
    json_array_foreach(claims, i, c)
    {
        if (!table || i == UNPROTECTED_SHOWN)
            break;
        cli_table_row(table);
        cli_table_cell(table, CLI_COLOUR_NONE, "%s/%s", cli_field_text(c, "namespace", "?"),
                       cli_field_text(c, "claim", "?"));
        cli_table_field(table, c, "storageClass");
        cli_table_field(table, c, "size");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_text(c, "reason", ""));
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_text(c, "remedy", ""));
    }
    enum cli_exit code = cli_table_print(cli, table);
    if (total > UNPROTECTED_SHOWN)
        printf("and %zu more; -o json has them all\n", total - UNPROTECTED_SHOWN);
    return code;
}

/* The Checkpoints that its policy makes. */
static void print_schedule(const json_t *checkpoints)
{
    if (!cli_field_text(checkpoints, "nextTime", NULL)) /* why not: the condition says */
        return;
    printf("checkpoints: ");
    put_line(cli_field_text(checkpoints, "schedule", "?"));
    printf(", the next one at %s", cli_field_text(checkpoints, "nextTime", "?"));
    if (cli_field_text(checkpoints, "lastCheckpoint", NULL))
        printf(", the last one %s", cli_field_text(checkpoints, "lastCheckpoint", "?"));
    putchar('\n');
}

/* What only the page of one application has room for. */
static enum cli_exit print_details(struct kubectl *k, const struct kubectl_member *member,
                                   const json_t *application)
{
    static const char *const columns[] = {"VOLUME", "CLASS", "CAPTURED", "STREAM", "NODE", "WHY", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    _cleanup_json_ json_t *recoveries = NULL, *shown = json_array();
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(application, "volumes"), i, item)
    {
        bool captured = json_is_true(json_object_get(item, "captured"));
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, item, "claim");
        cli_table_field(table, item, "storageClass");
        cli_table_cell(table, captured ? CLI_COLOUR_GREEN : CLI_COLOUR_RED, captured ? "yes" : "no");
        cli_table_field(table, item, "stream");
        cli_table_field(table, item, "node");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", captured ? "" : cli_field_text(item, "message", ""));
    }
    putchar('\n');
    enum cli_exit code = i ? cli_table_print(k->cli, table) : CLI_EXIT_OK;
    json_array_foreach(json_object_get(application, "conditions"), i, item)
    {
        if (!kubectl_is(item, "False"))
            continue;
        printf("%s: ", cli_field_text(item, "type", "?"));
        put_line(cli_field_text(item, "message", "?"));
        putchar('\n');
    }
    print_schedule(json_object_get(application, "checkpoints"));
    json_array_foreach(json_object_get(application, "findings"), i, item)
    {
        const char *message = cli_field_text(item, "message", "");
        if (*message) { /* nothing that is outside */
            printf("%s: ", cli_field_text(item, "type", "?"));
            put_line(cli_field_text(item, "object", "?"));
            printf(": ");
            put_line(message);
            putchar('\n');
            continue;
        }
        printf("outside: ");
        put_line(cli_field_text(item, "type", "?"));
        putchar(' ');
        put_line(cli_field_text(item, "host", ""));
        printf(", a rewind does not reach it (found in ");
        put_line(cli_field_text(item, "object", "?"));
        printf(")\n");
    }
    if (code == CLI_EXIT_OK)
        code = kubectl_recoveries_of(k, "status", member, true, &recoveries);
    json_array_foreach(recoveries, i, item)
    {
        if (i < RECOVERIES_SHOWN)
            json_array_append_new(shown, describe_recovery(item));
    }
    return code == CLI_EXIT_OK ? print_recoveries(k->cli, shown, "Recoveries, the newest first") : code;
}

static enum cli_exit print(struct kubectl *k, const struct kubectl_member *member, const json_t *answer)
{
    if (k->cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(k->cli, answer);
    print_summary(k->cli, answer);
    print_lists(answer);
    if (json_array_size(json_object_get(answer, "applications")))
        putchar('\n');
    enum cli_exit code = print_applications(k->cli, answer);
    if (code == CLI_EXIT_OK && member)
        return print_details(k, member, json_array_get(json_object_get(answer, "applications"), 0));
    if (code == CLI_EXIT_OK)
        code = print_recoveries(k->cli, json_object_get(answer, "recoveries"), "Recoveries under way");
    if (code == CLI_EXIT_OK)
        code = print_unprotected(k->cli, json_object_get(answer, "unprotected"));
    size_t kept = json_array_size(json_object_get(answer, "kept"));
    if (kept)
        printf("\n%zu deleted volume%s, with a history that is kept for a while: `kubectl tidemark purge` lists %s\n", kept,
               kept == 1 ? "" : "s", kept == 1 ? "it" : "them");
    return code;
}

static enum cli_exit look_once(struct kubectl *k, const struct kubectl_member *member)
{
    _cleanup_json_ json_t *answer = json_object(), *problems = json_array(), *notes = json_array(),
                          *papp = NULL;
    struct look look = {.k = k,
                        .namespace =
                            member ? member->namespace : cli_options_value(k->cli, "namespace", NULL),
                        .answer = answer,
                        .problems = problems,
                        .notes = notes};
    enum cli_exit code = member ? kubectl_find(k, "status", member, &papp) : CLI_EXIT_OK;
    if (code == CLI_EXIT_OK)
        code = collect(&look, member);
    return code == CLI_EXIT_OK ? print(k, member, answer) : code;
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    struct kubectl_member member;
    bool watch = cli_options_flag(cli, "watch"), terminal = isatty(STDOUT_FILENO);
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->operand_count)
        kubectl_member_of(&k, cli->operands[0], &member);
    for (;;) {
        if (watch && cli->format == CLI_FORMAT_TABLE && terminal)
            fputs("\033[H\033[2J", stdout);
        if (watch && cli->format == CLI_FORMAT_YAML)
            fputs("---\n", stdout);
        code = look_once(&k, cli->operand_count ? &member : NULL);
        if (code != CLI_EXIT_OK || !watch)
            return code;
        if (fflush(stdout) != 0)
            return CLI_EXIT_FAILED;
        sleep(STATUS_WATCH_S);
    }
}

const struct cli_command kubectl_status = {
    .name = "status",
    .summary = "the first thing to look at: what is protected, what not, and why",
    .description = "Shows all applications that you may see, or those of a namespace (-n), or one in more\n"
                   "detail; recoveries under way; claims that nothing protects; and what is wrong with the\n"
                   "installation. The first line says at once whether anything is wrong. Exit status 0\n"
                   "whatever the state is: the answer tells.\n"
                   "States: protected; partly (some volumes are not captured); paused; problem; starting,\n"
                   "seeding and resyncing (under way); suspended (writes go on, unjournaled); failed.\n"
                   "RPO is what a loss of power would cost now.",
    .operands =
        (const struct cli_operand[]){{"NAMESPACE/NAME", .kind = CLI_KIND_MEMBER, .optional = true}, {0}},
    .options =
        (const struct cli_option[]){
            {"watch", 'w', CLI_KIND_NONE, NULL, .help = "show it again every 2 s until interrupted"},
            {"system-namespace", 0, CLI_KIND_NAMESPACE, "NAMESPACE",
             .help = "where Tidemark runs (default tidemark-system)"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark status", "kubectl tidemark status shop/shop -o yaml",
                                      "kubectl tidemark status -o json | jq '.unprotected[].claim'", NULL},
    .run = run,
};
