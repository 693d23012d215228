/* SPDX-License-Identifier: Apache-2.0 */
#include <openssl/evp.h>

#include "controller/recovery_internal.h"

enum { NOTES_MAX = 20 };                   /* as the definition says */
#define PLAN_STATUS_BYTES_MAX (768u << 10) /* some 4,000 objects; of 1.5 MiB that the API server stores of one, with what recovery_replaced.c notes */

json_t *recovery_status(struct recovery_run *run)
{
    json_t *status = json_object_get(run->recovery, "status");
    if (!json_is_object(status)) {
        status = json_object();
        if (json_object_set_new(run->recovery, "status", status) < 0)
            return NULL;
    }
    return status;
}

void recovery_now(const struct recovery_run *run, char text[CLOCK_TEXT_BYTES])
{
    clock_format_rfc3339(clock_realtime_ns(run->clock), text);
}

int recovery_condition(struct recovery_run *run, const char *type, bool holds, const char *reason,
                       const char *message)
{
    json_t *status = recovery_status(run), *conditions = json_object_get(status, "conditions"), *condition,
           *found = NULL;
    char now[CLOCK_TEXT_BYTES];
    size_t i;
    if (!json_is_array(conditions)) {
        conditions = json_array();
        if (json_object_set_new(status, "conditions", conditions) < 0)
            return -ENOMEM;
    }
    json_array_foreach(conditions, i, condition)
    {
        if (strcmp(json_text(condition, "type"), type) == 0)
            found = condition;
    }
    recovery_now(run, now);
    if (!found) {
        found = json_pack("{s:s, s:s}", "type", type, "lastTransitionTime", now);
        if (json_array_append_new(conditions, found) < 0)
            return -ENOMEM;
    }
    if (strcmp(json_text(found, "status"), holds ? "True" : "False") != 0)
        json_object_set_new(found, "lastTransitionTime", json_string(now));
    json_t *generation = json_object_get(json_object_get(run->recovery, "metadata"), "generation");
    if (generation)
        json_object_set(found, "observedGeneration", generation);
    json_object_set_new(found, "status", json_string(holds ? "True" : "False"));
    json_object_set_new(found, "reason", json_string(reason));
    return json_object_set_new(found, "message", json_string_lossy(message));
}

/* ---- an end that waits ---- */

#define ENDING "Ending"

const char *recovery_ending(const struct recovery_run *run, const char *field)
{
    return recovery_condition_text(run->recovery, ENDING, field);
}

int recovery_begin_ending(struct recovery_run *run, const char *reason, const char *why)
{
    return recovery_ending(run, "reason")[0] ? 0 : recovery_condition(run, ENDING, true, reason, why);
}

static void drop_ending(json_t *conditions)
{
    for (size_t i = json_array_size(conditions); i-- > 0;)
        if (strcmp(json_text(json_array_get(conditions, i), "type"), ENDING) == 0)
            json_array_remove(conditions, i);
}

bool recovery_ends_late(const struct recovery_run *run)
{
    uint64_t since_ns;
    struct error unused = ERROR_INIT;
    return clock_parse_rfc3339(recovery_ending(run, "lastTransitionTime"), &since_ns, &unused) == 0 &&
           clock_realtime_ns(run->clock) >= since_ns + RECOVERY_END_MS * NS_PER_MS;
}

void recovery_remember(struct recovery_run *run)
{
    json_decref(run->last_step);
    run->last_step = json_deep_copy(json_object_get(json_object_get(run->recovery, "status"), "step"));
    if (!run->spec)
        run->spec = json_deep_copy(json_object_get(run->recovery, "spec"));
}

int recovery_write(struct recovery_run *run, struct error *err)
{
    json_t *generation = json_object_get(json_object_get(run->recovery, "metadata"), "generation");
    if (generation)
        json_object_set(recovery_status(run), "observedGeneration", generation);
    for (unsigned tries = 0;; tries++) {
        json_t *written = NULL;
        int r = run->c->store->write_status(run->c->store_context, run->recovery, &written, err);
        if (r == 0) {
            json_decref(run->recovery);
            run->recovery = written;
            recovery_remember(run);
            return 0;
        }
        if (r != -EBUSY || tries == RECOVERY_CONFLICTS_MAX)
            return r;
        /* An annotation may have been added; a status that moved is somebody else's work. */
        _cleanup_json_ json_t *now = NULL;
        r = run->c->store->read(run->c->store_context, run->namespace, run->name, &now, err);
        if (r < 0)
            return r;
        const json_t *step = json_object_get(json_object_get(now, "status"), "step");
        const json_t *last = run->last_step;
        if ((step || last) && (!step || !last || !json_equal(step, last)))
            return error_set(err, -ESTALE, "another controller carries recovery %s/%s on", run->namespace,
                             run->name);
        json_object_set(run->recovery, "metadata", json_object_get(now, "metadata"));
    }
}

int recovery_step(struct recovery_run *run, const char *step, int wave, struct error *err)
{
    char now[CLOCK_TEXT_BYTES];
    json_t *status = recovery_status(run), *entry;
    recovery_now(run, now);
    json_object_del(status, "message"); /* what the step before has waited for */
    entry = json_pack("{s:s, s:i, s:s}", "name", step, "wave", wave, "time", now);
    if (json_object_set_new(status, "step", entry) < 0 ||
        json_object_set_new(status, "phase", json_string("Running")) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    if (!json_object_get(status, "startTime"))
        json_object_set_new(status, "startTime", json_string(now));
    if (recovery_condition(run, "Ready", false, "Running", step) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    return recovery_write(run, err);
}

int recovery_end(struct recovery_run *run, const char *phase, const char *reason, const char *message,
                 struct error *err)
{
    char now[CLOCK_TEXT_BYTES];
    json_t *status = recovery_status(run);
    bool good = strcmp(phase, "Completed") == 0 || strcmp(phase, "Planned") == 0;
    struct error unused = ERROR_INIT;
    uint64_t start_ns;
    recovery_now(run, now);
    json_object_set_new(status, "phase", json_string(phase));
    json_object_set_new(status, "message", json_string_lossy(message));
    json_object_set_new(status, "completionTime", json_string(now));
    if (clock_parse_rfc3339(json_text(status, "startTime"), &start_ns, &unused) == 0)
        json_object_set_new(
            status, "rtoMs",
            json_integer((json_int_t)((clock_realtime_ns(run->clock) - start_ns) / NS_PER_MS)));
    drop_ending(json_object_get(status, "conditions"));
    if (recovery_condition(run, "Ready", good, reason, message) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    log_info(run->c->log, "recovery %s/%s: %s: %s", run->namespace, run->name, phase, message);
    return recovery_write(run, err);
}

int recovery_is_cancelled(struct recovery_run *run, bool *ret, struct error *err)
{
    _cleanup_json_ json_t *now = NULL;
    int r = run->c->store->read(run->c->store_context, run->namespace, run->name, &now, err);
    if (r < 0)
        return r;
    const json_t *metadata = json_object_get(now, "metadata"), *annotations = json_object_get(metadata, "annotations");
    *ret = strcmp(json_text(annotations, RECOVERY_CANCEL_ANNOTATION), "true") == 0 ||
           json_object_get(metadata, "deletionTimestamp");
    return 0;
}

void recovery_note(struct recovery_run *run, json_t *text)
{
    json_t *plan = json_object_get(recovery_status(run), "plan"), *notes = json_object_get(plan, "notes");
    if (!notes) {
        notes = json_array();
        json_object_set_new(plan, "notes", notes);
    }
    bool told = false;
    size_t i;
    json_t *known;
    json_array_foreach(notes, i, known) told |= json_equal(known, text);
    if (!told && json_array_size(notes) < NOTES_MAX)
        json_array_append(notes, text);
    json_decref(text);
}

/* ---- counts ---- */

int recovery_count(struct recovery_run *run, struct error *err)
{
    size_t counts[VERDICTS] = {0};
    json_t *status = recovery_status(run), *verdicts = json_object(), *failures = json_array();
    for (size_t i = 0; i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        if (e->verdict < 0)
            continue;
        counts[e->verdict]++;
        if (e->verdict == VERDICT_FAILED && counts[VERDICT_FAILED] <= RECOVERY_FAILURES_MAX)
            json_array_append_new(failures, json_pack("{s:s, s:o}", "object", e->name, "reason",
                                                      json_string_lossy(e->reason ? e->reason : "unknown")));
    }
    for (int v = 0; v < VERDICTS; v++)
        json_object_set_new(verdicts, verdict_name((enum verdict)v), json_integer((json_int_t)counts[v]));
    if (json_object_set_new(status, "verdicts", verdicts) < 0 ||
        json_object_set_new(status, "failures", failures) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    return 0;
}

/* ---- the plan ---- */

static char *plan_line(const struct recovery_entry *e)
{
    _cleanup_json_ json_t *line = json_pack("{s:i, s:s, s:s}", "w", e->wave, "a", recovery_action_name(e->action), "o", e->name);
    if (e->reason)
        json_object_set_new(line, "r", json_string_lossy(e->reason));
    if (e->uid)
        json_object_set_new(line, "u", json_string(e->uid));
    if (e->by)
        json_object_set_new(line, "by", json_string(e->by));
    if (e->verdict >= 0)
        json_object_set_new(line, "v", json_string(verdict_name((enum verdict)e->verdict)));
    return line ? json_to_text(line) : NULL;
}

static char *plan_text(const struct recovery_run *run, size_t first)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    for (size_t i = first; out && i < run->entry_count && i < first + RECOVERY_PLAN_CHUNK; i++) {
        _cleanup_free_ char *one = plan_line(&run->entries[i]);
        fprintf(out, "%s\n", one ? one : "{}");
    }
    if (!out || fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

static bool chunk_has_wave(const struct recovery_run *run, size_t first, int wave)
{
    for (size_t i = first; i < run->entry_count && i < first + RECOVERY_PLAN_CHUNK; i++) {
        if (run->entries[i].wave == wave)
            return true;
    }
    return false;
}

/* Of what is to be done, as a text: verdicts aside. The ConfigMaps lie where the application is, and whoever may change them
 * there must not get done what she may not do herself: in status, which nobody but the controller writes, stands what
 * was planned. NULL: out of memory. */
static json_t *plan_digest(const struct recovery_run *run)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    char text[65];
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    bool ok = md && EVP_DigestInit_ex(md, EVP_sha256(), NULL);
    for (size_t i = 0; ok && i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        _cleanup_free_ char *line = NULL;
        int length = asprintf(&line, "%d %s %s %s\n", e->wave, recovery_action_name(e->action), e->name,
                              e->uid ? e->uid : "");
        ok = length > 0 && EVP_DigestUpdate(md, line, (size_t)length);
    }
    ok = ok && EVP_DigestFinal_ex(md, digest, NULL);
    EVP_MD_CTX_free(md);
    for (size_t i = 0; ok && i < 32; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    return ok ? json_string(text) : NULL;
}

static int note_digest(struct recovery_run *run, struct error *err)
{
    json_t *plan = json_object_get(recovery_status(run), "plan");
    return plan && json_object_set_new(plan, "digest", plan_digest(run)) < 0
               ? error_set(err, -ENOMEM, "out of memory")
               : 0;
}

static int check_digest(struct recovery_run *run, struct error *err)
{
    const char *noted = json_text(json_object_get(recovery_status(run), "plan"), "digest");
    _cleanup_json_ json_t *is = plan_digest(run);
    if (!is)
        return error_set(err, -ENOMEM, "out of memory");
    if (*noted && strcmp(noted, json_string_value(is)) != 0)
        return error_set(err, -EPERM,
                         "the plan in the ConfigMap tidemark-recovery-%s was changed by somebody: nothing more is done; "
                         "make the recovery again",
                         run->name);
    return 0;
}

/* How many entries were planned; SIZE_MAX: that is not known. */
static size_t planned_entries(struct recovery_run *run)
{
    const json_t *plan = json_object_get(recovery_status(run), "plan");
    size_t count = 0;
    for (int a = 0; a < RECOVERY_ACTIONS; a++) {
        const json_t *one = json_object_get(plan, recovery_action_name((enum recovery_action)a));
        if (!json_is_integer(one))
            return SIZE_MAX;
        count += (size_t)json_integer_value(one);
    }
    return count;
}

static int save_in_maps(struct recovery_run *run, int wave, struct error *err)
{
    size_t first = 0;
    int r = 0;
    do {
        if (wave < 0 || chunk_has_wave(run, first, wave)) {
            _cleanup_free_ char *text = plan_text(run, first);
            r = text ? run->c->store->write_plan(run->c->store_context, run->recovery,
                                                 first / RECOVERY_PLAN_CHUNK, text, err)
                     : error_set(err, -ENOMEM, "out of memory");
        }
        first += RECOVERY_PLAN_CHUNK;
    } while (r == 0 && first < run->entry_count);
    return r;
}

static json_t *plan_in_status(struct recovery_run *run)
{
    return json_object_get(json_object_get(recovery_status(run), "plan"), "objects");
}

static int save_in_status(struct recovery_run *run, struct error *err)
{
    json_t *plan = json_object_get(recovery_status(run), "plan"), *lines = json_array();
    size_t bytes = 0;
    for (size_t i = 0; i < run->entry_count; i++) {
        _cleanup_free_ char *line = plan_line(&run->entries[i]);
        if (!line || json_array_append_new(lines, json_string(line)) < 0) {
            json_decref(lines);
            return error_set(err, -ENOMEM, "out of memory");
        }
        bytes += strlen(line);
    }
    if (bytes > PLAN_STATUS_BYTES_MAX) {
        json_decref(lines);
        return error_set(err, -EFBIG, "and the Recovery's status has no room for so many objects");
    }
    json_object_del(plan, "configMap");
    if (json_object_set_new(plan, "objects", lines) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    int r = recovery_write(run, err);
    return r < 0 || plan_in_status(run) ? r : error_set(err, -EOPNOTSUPP, "and the CustomResourceDefinition of recoveries is of an older release: kubectl apply --server-side -f packaging/crds");
}

/* What stands at the door of the namespace: a webhook that is down, a policy, a quota. */
static bool is_refused(int code)
{
    return code == -EACCES || code == -EINVAL || code == -EIO || code == -EFBIG;
}

int recovery_save_plan(struct recovery_run *run, int wave, struct error *err)
{
    struct error why = ERROR_INIT, failed = ERROR_INIT;
    int r = wave < 0 ? note_digest(run, err) : 0;
    if (r < 0)
        return r;
    bool in_status = plan_in_status(run);
    r = in_status ? 0 : save_in_maps(run, wave, &why);
    if (r == 0 && !in_status)
        return 0;
    if (r < 0 && !is_refused(r)) {
        *err = why;
        return r;
    }
    if (r < 0)
        log_warning(run->c->log, "recovery %s/%s: its plan is kept in its status, since no ConfigMap takes it: %s", run->namespace, run->name, why.message);
    r = save_in_status(run, &failed);
    if (r == -EFBIG || r == -EOPNOTSUPP)
        return error_set(err, why.code ? why.code : r, "the plan can be kept nowhere: %.800s; %.400s", why.message, failed.message);
    if (r < 0)
        *err = failed;
    return r;
}

static int load_line(struct recovery_run *run, const char *line, size_t length, struct error *err)
{
    _cleanup_json_ json_t *json = NULL;
    int r = json_parse("plan", line, length, &json, err), action = 0, verdict = 0;
    if (r < 0)
        return r;
    while (action < RECOVERY_ACTIONS &&
           strcmp(json_text(json, "a"), recovery_action_name((enum recovery_action)action)) != 0)
        action++;
    while (verdict < VERDICTS && strcmp(json_text(json, "v"), verdict_name((enum verdict)verdict)) != 0)
        verdict++;
    if (action == RECOVERY_ACTIONS || !json_text(json, "o")[0])
        return error_set(err, -EINVAL, "the plan of recovery %s/%s has been changed: %.*s", run->namespace,
                         run->name, (int)length, line);
    const char *reason = json_text(json, "r"), *uid = json_text(json, "u");
    r = recovery_add_entry(run, (enum recovery_action)action,
                           (int)json_integer_value(json_object_get(json, "w")), json_text(json, "o"),
                           reason[0] ? reason : NULL, uid[0] ? uid : NULL, err);
    if (r == 0 && json_text(json, "by")[0])
        run->entries[run->entry_count - 1].by = strdup(json_text(json, "by"));
    if (r == 0)
        run->entries[run->entry_count - 1].verdict = verdict < VERDICTS ? verdict : -1;
    return r;
}

int recovery_load_plan(struct recovery_run *run, struct error *err)
{
    recovery_free_entries(run);
    const size_t planned = planned_entries(run);
    const json_t *lines = plan_in_status(run);
    size_t i;
    json_t *one;
    json_array_foreach(lines, i, one)
    {
        int r = load_line(run, json_string_value(one), json_string_length(one), err);
        if (r < 0)
            return r;
    }
    if (lines)
        return check_digest(run, err);
    for (size_t number = 0;; number++) {
        _cleanup_free_ char *text = NULL;
        int r = run->c->store->read_plan(run->c->store_context, run->recovery, number, &text, err);
        if (r == -ENOENT && number > 0)
            return check_digest(run, err);
        for (const char *line = text; r == 0 && *line;) {
            size_t length = strcspn(line, "\n");
            r = load_line(run, line, length, err);
            line += length + (line[length] == '\n');
        }
        if (r < 0)
            return r;
        /* Another part may be there of a plan that was made before. */
        if (run->entry_count < (number + 1) * RECOVERY_PLAN_CHUNK || run->entry_count >= planned)
            return check_digest(run, err);
    }
}
