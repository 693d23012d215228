/* SPDX-License-Identifier: Apache-2.0 */
/* Lets those go on that a rewind suspended (app/reconcilers.h), once Git does not have any more what was
 * rewound away. It is done with the user's own rights; the annotation on the Recovery tells the controller.
 */
#include <errno.h>
#include <string.h>

#include "app/reconcilers.h"
#include "base/clock.h"
#include "cli/kubectl_internal.h"
#include "controller/recovery.h"
#include "kube/discovery.h"

#define CONFLICTS_MAX 8u

struct resume {
    struct kubectl *k;
    const char *what;
    struct kube_kinds kinds;
    json_t *found; /* [{"entry": of status.reconcilers, "object"}] */
};

/* The object with a journal's name. -ENOENT. */
static int get_object(struct resume *s, const struct object_id *id, json_t **ret, struct error *err)
{
    char version[320];
    snprintf(version, sizeof version, "%s/%s", id->group, id->version);
    const struct kube_resource *resource = kube_kinds_find(&s->kinds, version, id->kind);
    if (!resource)
        return error_set(err, -ENOENT, "the cluster does not know the kind %s of %s", id->kind, version);
    const struct kube_target target = {.resource = resource, .namespace = id->namespace, .name = id->name};
    return kube_get(s->k->client, &target, ret, err);
}

static int get_entry(struct resume *s, const json_t *entry, json_t **ret, struct error *err)
{
    struct object_id id;
    int r = object_id_parse(cli_field_text(entry, "object", ""), &id, err);
    return r == 0 ? get_object(s, &id, ret, err) : r;
}

static bool is_known(const struct resume *s, const json_t *entry)
{
    size_t i;
    json_t *one;
    json_array_foreach(s->found, i, one)
    {
        if (json_equal(json_object_get(json_object_get(one, "entry"), "object"),
                       json_object_get(entry, "object")))
            return true;
    }
    return false;
}

static bool is_diverged(const json_t *recovery)
{
    return kubectl_is(kubectl_condition(recovery, "GitDiverged"), "True");
}

/* What is suspended; the newest recovery's word counts. */
static enum cli_exit collect(struct resume *s, const json_t *recoveries)
{
    size_t i, k;
    json_t *recovery, *entry;
    json_array_foreach(recoveries, i, recovery)
    {
        json_array_foreach(kubectl_at(recovery, "status", "reconcilers"), k, entry)
        {
            struct error err = ERROR_INIT;
            _cleanup_json_ json_t *object = NULL;
            if (!is_diverged(recovery) || strcmp(cli_field_text(entry, "state", ""), "Suspended") != 0 ||
                is_known(s, entry) || !reconciler_named(cli_field_text(entry, "reconciler", "")))
                continue;
            int r = get_entry(s, entry, &object, &err);
            if (r < 0 && r != -ENOENT)
                return kubectl_fail(s->k, s->what, &err);
            json_array_append_new(s->found, json_pack("{s:O, s:O?}", "entry", entry, "object", object));
        }
    }
    return CLI_EXIT_OK;
}

/* ---- whether Git differs ---- */

static int get_source(struct resume *s, const struct reconciler_kind *kind, const json_t *object,
                      json_t **ret, struct error *err)
{
    struct object_id id;
    const char *const *versions;
    int r = -ENOENT;
    if (!reconciler_source(kind, object, &id, &versions))
        return 0;
    for (; *versions && r == -ENOENT; versions++) {
        id.version = *versions;
        r = get_object(s, &id, ret, err);
    }
    return r == -ENOENT ? 0 : r;
}

static enum cli_exit check(struct resume *s)
{
    char text[2 * CLI_TEXT_BYTES + 2 * RECONCILER_TEXT_BYTES] = "";
    size_t i, length = 0;
    json_t *one;
    json_array_foreach(s->found, i, one)
    {
        const json_t *entry = json_object_get(one, "entry"), *object = json_object_get(one, "object");
        const struct reconciler_kind *kind = reconciler_named(cli_field_text(entry, "reconciler", ""));
        _cleanup_json_ json_t *source = NULL;
        struct error err = ERROR_INIT;
        char why[RECONCILER_TEXT_BYTES];
        if (json_is_null(object))
            continue;
        if (get_source(s, kind, object, &source, &err) < 0)
            return kubectl_fail(s->k, s->what, &err);
        if (reconciler_differs(kind, object, source, cli_field_text(entry, "revision", ""),
                               cli_field_text(entry, "specHash", ""), why) &&
            length < sizeof text)
            length += (size_t)snprintf(text + length, sizeof text - length, "%s%s %s: %s", length ? "; " : "",
                                       kind->reconciler, cli_field_text(entry, "name", "?"), why);
    }
    if (!length || cli_options_flag(s->k->cli, "force"))
        return CLI_EXIT_OK;
    return cli_output_fail(s->k->cli, CLI_EXIT_REFUSED, "--force lets it put that back all the same",
                           "%s: %s", s->what, text);
}

/* ---- letting go ---- */

static int let_go(struct resume *s, const json_t *entry, struct error *err)
{
    const struct reconciler_kind *kind = reconciler_named(cli_field_text(entry, "reconciler", ""));
    struct object_id id;
    int r = object_id_parse(cli_field_text(entry, "object", ""), &id, err);
    if (r < 0)
        return r;
    r = -EBUSY;
    for (unsigned tries = 0; r == -EBUSY && tries < CONFLICTS_MAX; tries++) {
        _cleanup_json_ json_t *object = NULL;
        char version[320];
        snprintf(version, sizeof version, "%s/%s", id.group, id.version);
        if ((r = get_object(s, &id, &object, err)) < 0)
            return r == -ENOENT ? 1 : r;
        if ((r = reconciler_resume(kind, object)) != 0)
            return r < 0 ? error_set(err, r, "out of memory") : 1;
        const struct kube_target target = {.resource = kube_kinds_find(&s->kinds, version, id.kind),
                                           .namespace = id.namespace,
                                           .name = id.name};
        r = kube_update(s->k->client, &target, object, NULL, err);
    }
    return r;
}

static enum cli_exit tell(struct resume *s, const json_t *recovery)
{
    struct error err = ERROR_INIT;
    char now[CLOCK_TEXT_BYTES];
    clock_format_rfc3339(clock_realtime_ns(clock_system()), now);
    _cleanup_json_ json_t *patch =
        json_pack("{s:{s:{s:s}}}", "metadata", "annotations", RECOVERY_RESUMED_ANNOTATION, now);
    const struct kube_target target = {.resource = &kubectl_recoveries,
                                       .namespace = kube_object_namespace(recovery),
                                       .name = kube_object_name(recovery)};
    int r =
        is_diverged(recovery) ? kube_patch(s->k->client, &target, KUBE_PATCH_MERGE, patch, NULL, &err) : 0;
    return r == 0 || r == -ENOENT ? CLI_EXIT_OK : kubectl_fail(s->k, s->what, &err);
}

static enum cli_exit resume_all(struct resume *s, json_t *answers)
{
    size_t i;
    json_t *one;
    json_array_foreach(s->found, i, one)
    {
        const json_t *entry = json_object_get(one, "entry");
        struct error err = ERROR_INIT;
        char text[CLI_TEXT_BYTES];
        int r = let_go(s, entry, &err);
        if (r < 0)
            return kubectl_fail(s->k, s->what, &err);
        snprintf(text, sizeof text, "%s %s%s%s", cli_field_text(entry, "reconciler", "?"),
                 cli_field_text(entry, "namespace", ""), *cli_field_text(entry, "namespace", "") ? "/" : "",
                 cli_field_text(entry, "name", "?"));
        json_array_append_new(answers, json_pack("{s:s, s:s, s:b}", "reconciler", text, "object",
                                                 cli_field_text(entry, "object", ""), "resumed", r == 0));
        if (s->k->cli->format == CLI_FORMAT_TABLE)
            cli_output_say(s->k->cli, r == 0 ? "%s goes on" : "%s was not suspended any more, or is gone",
                           text);
    }
    return CLI_EXIT_OK;
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *recoveries = NULL, *answers = json_array(), *found = json_array();
    struct kubectl_member member;
    struct error err = ERROR_INIT;
    char what[3 * CLI_TEXT_BYTES];
    size_t i;
    json_t *recovery;
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &member);
    snprintf(what, sizeof what, "resume %s/%s", member.namespace, member.name);
    struct resume s = {.k = &k, .what = what, .found = found};
    code = kubectl_recoveries_of(&k, what, &member, true, &recoveries);
    if (code == CLI_EXIT_OK && kube_discover(k.client, &s.kinds, &err) < 0)
        code = kubectl_fail(&k, what, &err);
    if (code == CLI_EXIT_OK)
        code = collect(&s, recoveries);
    if (code == CLI_EXIT_OK && json_array_size(found) == 0 && cli->format == CLI_FORMAT_TABLE)
        cli_output_say(cli, "%s/%s: no recovery suspended anything that still is", member.namespace,
                       member.name);
    if (code == CLI_EXIT_OK)
        code = check(&s);
    if (code == CLI_EXIT_OK)
        code = resume_all(&s, answers);
    json_array_foreach(recoveries, i, recovery)
    {
        if (code == CLI_EXIT_OK)
            code = tell(&s, recovery);
    }
    kube_kinds_release(&s.kinds);
    return code == CLI_EXIT_OK && cli->format != CLI_FORMAT_TABLE ? cli_output_value(cli, answers) : code;
}

const struct cli_command kubectl_resume = {
    .name = "resume",
    .summary = "let Argo CD or Flux go on, which a rewind suspended",
    .description =
        "A rewind suspends those who would put the newer state back from Git (Flux, Argo CD), and\n"
        "they stay so. This lets them go on, as they were before. It is refused while Git still has\n"
        "what was rewound away: the error names the revision to revert. Flux: as long as the source\n"
        "has the revision that was applied last; Argo CD: as long as the Application is not Synced.",
    .operands = (const struct cli_operand[]){{"NAMESPACE/NAME", .kind = CLI_KIND_MEMBER}, {0}},
    .options =
        (const struct cli_option[]){
            {"force", 0, CLI_KIND_NONE, NULL, .help = "although Git has it: it is put back at once"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark resume shop/shop", NULL},
    .run = run,
};
