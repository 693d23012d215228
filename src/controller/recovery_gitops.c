/* SPDX-License-Identifier: Apache-2.0 */
/* Those who would put the newer state back after a rewind: named in the plan, suspended before anything is
 * changed, and left so (app/reconcilers.h). status.reconcilers has each with its `state`:
 *
 *   Ignored        it puts nothing back by itself, or nothing of its objects changes
 *   Stopped        somebody suspended it before
 *   CannotSuspend  `message` says why; refused without force
 *   ToSuspend -> Suspended -> Resumed
 *
 * The condition GitDiverged says what has to be reverted in Git; `kubectl tidemark resume` ends it. */
#include "app/objects.h"
#include "app/reconcilers.h"
#include "controller/recovery_internal.h"

#define SHOWN_MAX 20u
#define CHANGES_SHOWN 10u

static json_t *reconcilers_of(const struct recovery_run *run)
{
    return json_object_get(json_object_get(run->recovery, "status"), "reconcilers");
}

static bool has_state(const json_t *entry, const char *state)
{
    return strcmp(json_text(entry, "state"), state) == 0;
}

static void set_state(json_t *entry, const char *state, const char *message)
{
    json_object_set_new(entry, "state", json_string(state));
    if (message)
        json_object_set_new(entry, "message", json_sprintf("%.500s", message));
}

/* ---- who rules what ---- */

/* The entry of status.reconcilers, made when missing. */
static json_t *entry_of(json_t *found, const struct reconciler *r)
{
    char key[RECONCILER_TEXT_BYTES];
    reconciler_text(r, key);
    json_t *entry = json_object_get(found, key);
    if (!entry) {
        entry = json_pack("{s:s, s:s, s:s, s:i, s:i, s:b, s:s, s:s, s:[]}", "reconciler", r->kind->reconciler,
                          "name", r->name, "namespace", r->namespace, "objects", 0, "changed", 0, "reverts",
                          (int)r->kind->reverts, "remedy", r->kind->remedy, "state", "Ignored", "changes");
        json_object_set_new(found, key, entry);
    }
    return entry;
}

static void count(json_t *entry, const char *key)
{
    json_object_set_new(entry, key, json_integer(json_integer_value(json_object_get(entry, key)) + 1));
}

static int look_at_entry(struct recovery_run *run, struct recovery_entry *e, json_t *found, struct error *err)
{
    struct object_id id;
    struct reconciler who;
    char text[RECONCILER_TEXT_BYTES];
    const json_t *live = json_object_get(run->live, e->name), *wanted = json_object_get(run->wanted, e->name);
    int r = object_id_parse(e->name, &id, err);
    if (r < 0)
        return r;
    bool changes = e->action != ACTION_SAME && e->action != ACTION_SKIP;
    if ((live && reconciler_of(live, &id, &who)) || (wanted && reconciler_of(wanted, &id, &who))) {
        json_t *entry = entry_of(found, &who);
        reconciler_text(&who, text);
        e->by = strdup(text);
        count(entry, "objects");
        if (changes)
            count(entry, "changed");
        if (changes && json_array_size(json_object_get(entry, "changes")) < CHANGES_SHOWN)
            json_array_append_new(json_object_get(entry, "changes"), json_string(e->name));
    }
    if (reconciler_autoscaler(&id, &who))
        count(entry_of(found, &who), "objects");
    return 0;
}

/* ---- what can be done about it ---- */

/* The reconciler's own object, with the rights of whoever asked. -ENOENT, -EACCES. */
static int find_object(struct recovery_run *run, const struct reconciler_kind *kind, const char *name,
                       const char *namespace, char journal_name[OBJECT_NAME_BYTES], json_t **ret,
                       struct error *err)
{
    const char *const places[] = {namespace, kind->way == RECONCILER_ARGO ? "argocd" : run->target_namespace,
                                  run->target_namespace};
    int r = -ENOENT;
    for (size_t v = 0; v < sizeof kind->versions / sizeof *kind->versions && kind->versions[v]; v++) {
        bool known = false;
        r = run->c->cluster->knows(run->c->cluster_context, kind->group, kind->versions[v], kind->kind,
                                   &known, err);
        if (r < 0)
            return r;
        for (size_t p = namespace[0] ? 0 : 1;
             known && p < (namespace[0] ? 1 : sizeof places / sizeof *places); p++) {
            struct object_id id = {.group = kind->group,
                                   .version = kind->versions[v],
                                   .kind = kind->kind,
                                   .namespace = places[p],
                                   .name = name};
            r = object_journal_name(&id, journal_name, err);
            if (r == 0)
                r = run->c->cluster->get(run->c->cluster_context, journal_name, ret, err);
            if (r != -ENOENT)
                return r;
        }
        if (known)
            break;
    }
    return error_set(err, -ENOENT, "there is no %s '%s' of %s that could be suspended", kind->kind, name,
                     kind->group);
}

static void note_object(json_t *entry, const struct reconciler_kind *kind, const char *name,
                        const json_t *object)
{
    char hash[9];
    reconciler_spec_hash(object, hash);
    json_object_set_new(entry, "object", json_string(name));
    json_object_set_new(entry, "revision", json_sprintf("%.200s", reconciler_revision(kind, object)));
    json_object_set_new(entry, "specHash", json_string(hash));
}

/* Its state to begin with. An error only when it cannot be asked. */
static int judge(struct recovery_run *run, json_t *entry, struct error *err)
{
    const struct reconciler_kind *kind = reconciler_named(json_text(entry, "reconciler"));
    char name[OBJECT_NAME_BYTES], message[700];
    _cleanup_json_ json_t *object = NULL;
    bool by_us = false, keda = kind->way == RECONCILER_KEDA;
    struct error why = ERROR_INIT;
    if (!keda && (!kind->reverts || json_integer_value(json_object_get(entry, "changed")) == 0))
        return 0;
    if (kind->way == RECONCILER_CANNOT || !json_text(entry, "name")[0]) {
        set_state(entry, "CannotSuspend",
                  kind->way == RECONCILER_CANNOT ? "Tidemark cannot suspend it"
                                                 : "which one it is, its objects do not say");
        return 0;
    }
    int r =
        find_object(run, kind, json_text(entry, "name"), json_text(entry, "namespace"), name, &object, &why);
    if (r == -ENOENT || r == -EACCES || r == -EINVAL) {
        snprintf(message, sizeof message, "%.600s", why.message);
        set_state(entry, keda ? "Ignored" : "CannotSuspend", message);
        return 0;
    }
    if (r < 0) {
        *err = why;
        return r;
    }
    note_object(entry, kind, name, object);
    bool suspended = reconciler_is_suspended(kind, object, &by_us);
    set_state(entry, suspended && by_us ? "Suspended" : suspended ? "Stopped" : "ToSuspend", NULL);
    return 0;
}

/* Those that would revert something come first: the list is cut. */
static json_t *sorted(json_t *found)
{
    json_t *list = json_array(), *entry;
    const char *key;
    for (int round = 0; round < 2; round++)
        json_object_foreach(found, key, entry)
        {
            bool first = json_is_true(json_object_get(entry, "reverts")) &&
                         json_integer_value(json_object_get(entry, "changed")) > 0;
            if (first == (round == 0) && json_array_size(list) < SHOWN_MAX)
                json_array_append(list, entry);
        }
    return list;
}

int recovery_plan_reconcilers(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    _cleanup_json_ json_t *found = json_object(), *list = NULL;
    size_t i;
    json_t *one;
    int r = found ? 0 : error_set(err, -ENOMEM, "out of memory");
    for (i = 0; i < run->entry_count && r == 0; i++)
        r = look_at_entry(run, &run->entries[i], found, err);
    if (r < 0)
        return r;
    list = sorted(found);
    if (json_object_set(recovery_status(run), "reconcilers", list) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    if (run->mode != RESTORE_REWIND)
        return 0;
    json_array_foreach(list, i, one)
    {
        if (r == 0)
            r = judge(run, one, err);
    }
    if (r == 0)
        r = recovery_keep_suspended(run, err);
    if (r < 0 || json_is_true(json_object_get(run->spec, "force")) ||
        json_is_true(json_object_get(run->spec, "dryRun")))
        return r;
    json_array_foreach(list, i, one)
    {
        if (!has_state(one, "CannotSuspend"))
            continue;
        *ret_reason = "ReconcilerWouldRevert";
        return error_set(
            err, -EPERM,
            "%s '%s' would put the newer state back (%lld objects), and it is not suspended: %.300s. %s; or "
            "make the recovery with force: true",
            json_text(one, "reconciler"), json_text(one, "name"),
            (long long)json_integer_value(json_object_get(one, "changed")), json_text(one, "message"),
            json_text(one, "remedy"));
    }
    return 0;
}

/* ---- suspending, and letting go ---- */

bool recovery_has_reconcilers(const struct recovery_run *run)
{
    size_t i;
    json_t *one;
    json_array_foreach(reconcilers_of(run), i, one)
    {
        if (has_state(one, "ToSuspend") || has_state(one, "Suspended"))
            return true;
    }
    return false;
}

static void name_of_run(const struct recovery_run *run, char text[400])
{
    snprintf(text, 400, "%s/%s", run->namespace, run->name);
}

static bool is_ours(const json_t *object, const char *by)
{
    const json_t *annotations = json_object_get(json_object_get(object, "metadata"), "annotations");
    const char *text = json_text(annotations, RECONCILER_ANNOTATION);
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *memory = NULL;
    return *text && json_parse(RECONCILER_ANNOTATION, text, strlen(text), &memory, &ignored) == 0 &&
           strcmp(json_text(memory, "by"), by) == 0;
}

/* Changes the reconciler's object; repeated when others change it, too. 1: another recovery suspended it, and
 * it stays so. */
static int change(struct recovery_run *run, const json_t *entry, bool suspend, struct error *err)
{
    const struct reconciler_kind *kind = reconciler_named(json_text(entry, "reconciler"));
    char by[400];
    int r = -EBUSY;
    name_of_run(run, by);
    for (unsigned tries = 0; r == -EBUSY && tries < RECOVERY_CONFLICTS_MAX; tries++) {
        _cleanup_json_ json_t *object = NULL;
        r = run->c->cluster->get(run->c->cluster_context, json_text(entry, "object"), &object, err);
        if (r == -ENOENT && !suspend)
            return 0;
        if (r < 0)
            return r;
        if (!suspend && !is_ours(object, by))
            return 1;
        r = suspend ? reconciler_suspend(kind, object, by) : reconciler_resume(kind, object);
        if (r == 0)
            r = run->c->cluster->replace(run->c->cluster_context, object, err);
        else
            r = r > 0 ? 0 : error_set(err, -ENOMEM, "out of memory");
    }
    return r;
}

/* What is to be done, once the recovery is over. */
static void say_diverged(struct recovery_run *run)
{
    char message[2000];
    size_t length = 0, i, k;
    json_t *one, *object;
    json_array_foreach(reconcilers_of(run), i, one)
    {
        if (!has_state(one, "Suspended") || !json_is_true(json_object_get(one, "reverts")) || length > 1200)
            continue;
        length += (size_t)snprintf(
            message + length, sizeof message - length,
            "%s%s %.63s%s%.100s is suspended%s%.80s; it would change ", length ? ". " : "",
            json_text(one, "reconciler"), json_text(one, "namespace"),
            json_text(one, "namespace")[0] ? "/" : "", json_text(one, "name"),
            json_text(one, "revision")[0] ? " at the revision " : "", json_text(one, "revision"));
        json_array_foreach(json_object_get(one, "changes"), k, object)
        {
            if (k < 3)
                length += (size_t)snprintf(message + length, sizeof message - length, "%s%.100s",
                                           k ? ", " : "", json_string_value(object));
        }
        json_int_t changed = json_integer_value(json_object_get(one, "changed"));
        if (changed > 3)
            length += (size_t)snprintf(message + length, sizeof message - length, " and %lld more",
                                       (long long)changed - 3);
    }
    if (length == 0)
        return;
    snprintf(message + length, sizeof message - length,
             ". Revert that in Git; then `kubectl tidemark resume %.63s/%.200s` lets it go on",
             run->source_namespace, run->application);
    recovery_condition(run, "GitDiverged", true, "Suspended", message);
}

int recovery_suspend(struct recovery_run *run, struct error *err)
{
    bool force = json_is_true(json_object_get(run->spec, "force"));
    size_t i;
    json_t *one;
    json_array_foreach(reconcilers_of(run), i, one)
    {
        if (!has_state(one, "ToSuspend"))
            continue;
        struct error why = ERROR_INIT;
        int r = change(run, one, true, &why);
        bool refused = r == -EACCES || r == -EPERM || r == -EINVAL || r == -ENOENT;
        if (refused && (force || !json_is_true(json_object_get(one, "reverts")))) {
            set_state(one, "CannotSuspend", why.message);
            continue;
        }
        if (refused)
            return error_set(
                err, -EPERM,
                "%s '%s' would put the newer state back, and it cannot be suspended: %.400s. Have it "
                "suspended by somebody who may, or make the recovery with force: true",
                json_text(one, "reconciler"), json_text(one, "name"), why.message);
        if (r < 0) {
            *err = why;
            return r;
        }
        set_state(one, "Suspended", NULL);
    }
    say_diverged(run);
    return 0;
}

static int keep_suspended(struct recovery_run *run, const json_t *one, const char *name, const char *by,
                          struct error *err)
{
    _cleanup_json_ json_t *wanted = NULL;
    int r = recovery_get_wanted(run, name, &wanted, err);
    if (r < 0)
        return r;
    (void)reconciler_suspend(reconciler_named(json_text(one, "reconciler")), wanted, by);
    return recovery_put_wanted(run, name, wanted, err);
}

int recovery_keep_suspended(struct recovery_run *run, struct error *err)
{
    size_t i;
    json_t *one, *unused_outline;
    const char *name;
    char by[400];
    name_of_run(run, by);
    json_array_foreach(reconcilers_of(run), i, one)
    {
        struct object_id id, its;
        struct error unused = ERROR_INIT;
        if ((!has_state(one, "ToSuspend") && !has_state(one, "Suspended")) ||
            object_id_parse(json_text(one, "object"), &id, &unused) < 0)
            continue;
        json_object_foreach(run->wanted, name, unused_outline)
        {
            bool is_it = object_id_parse(name, &its, &unused) == 0 && strcmp(its.group, id.group) == 0 &&
                         strcmp(its.kind, id.kind) == 0 && strcmp(its.namespace, id.namespace) == 0 &&
                         strcmp(its.name, id.name) == 0;
            int r = is_it ? keep_suspended(run, one, name, by, err) : 0;
            if (r < 0)
                return r;
        }
    }
    return 0;
}

int recovery_let_go(struct recovery_run *run, bool all, struct error *err)
{
    size_t i;
    json_t *one;
    bool some = false;
    int result = 0;
    json_array_foreach(reconcilers_of(run), i, one)
    {
        struct error failure = ERROR_INIT;
        bool keda = !json_is_true(json_object_get(one, "reverts"));
        /* One that is to be suspended may be so already: whoever did it died before it was written down. */
        if ((!has_state(one, "Suspended") && !has_state(one, "ToSuspend")) || !(all || keda) ||
            json_is_true(json_object_get(run->spec, "dryRun")))
            continue;
        int r = change(run, one, false, &failure);
        if (r > 0)
            continue;
        if (r < 0) { /* that one cannot go on keeps none of the others; all are named */
            char before[ERROR_MESSAGE_BYTES];
            snprintf(before, sizeof before, "%.600s", result < 0 ? err->message : "");
            if (result == 0 || recovery_is_refusal(result))
                result = r; /* a refusal is the last word where nothing else is to be waited for */
            error_set(err, result, "%s%s%s '%s' stays suspended: %.300s", before, *before ? "; " : "", json_text(one, "reconciler"), json_text(one, "name"),
                      failure.message);
            continue;
        }
        set_state(one, "Resumed", NULL);
        some = some || !keda;
    }
    if (some)
        recovery_condition(run, "GitDiverged", false, "Resumed",
                           "nothing was changed, and what was suspended goes on");
    return result;
}

bool recovery_note_resumed(json_t *recovery, const struct clock *clock)
{
    struct recovery_run run = {.clock = clock, .recovery = recovery};
    const json_t *annotations = json_object_get(json_object_get(recovery, "metadata"), "annotations");
    json_t *status = json_object_get(recovery, "status"), *one;
    bool diverged = false;
    size_t i;
    if (!json_text(annotations, RECOVERY_RESUMED_ANNOTATION)[0])
        return false;
    json_array_foreach(json_object_get(status, "conditions"), i, one)
    {
        if (strcmp(json_text(one, "type"), "GitDiverged") == 0)
            diverged = strcmp(json_text(one, "status"), "True") == 0;
    }
    if (!diverged)
        return false;
    json_array_foreach(reconcilers_of(&run), i, one)
    {
        if (has_state(one, "Suspended"))
            set_state(one, "Resumed", NULL);
    }
    return recovery_condition(&run, "GitDiverged", false, "Resumed",
                              "what was suspended goes on (kubectl tidemark resume)") == 0;
}
