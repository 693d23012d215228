/* SPDX-License-Identifier: Apache-2.0 */
/* The reviews' form; and Recoveries, for which everything is strict. The other kinds: admission_kinds.c. */
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "app/transform.h"
#include "base/cleanup.h"
#include "controller/admission_internal.h"
#include "controller/recovery.h"
#include "journal/point.h"
#include "lib/json.h"

#define ESCAPED_ANNOTATION "/metadata/annotations/tidemark.io~1requested-by"
#define WARNINGS_MAX 8u
#define WARNING_BYTES 250u /* longer ones are cut by some clients */

const char *admission_text(const json_t *object, const char *a, const char *b)
{
    return json_string_value(json_object_get(json_object_get(object, a), b));
}

void admission_warn(struct admission_request *q, const char *format, ...)
{
    char text[WARNING_BYTES];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (json_array_size(q->warnings) < WARNINGS_MAX)
        json_array_append_new(q->warnings, json_string_lossy(text));
}

/* ---- rights ---- */

size_t admission_rights(const json_t *recovery, struct admission_right ret[ADMISSION_RIGHTS_MAX])
{
    const char *own = kube_object_namespace(recovery);
    const char *source = admission_text(recovery, "spec", "sourceNamespace"),
               *target = admission_text(recovery, "spec", "targetNamespace"),
               *mode = admission_text(recovery, "spec", "mode");
    size_t count = 0;
    own = own ? own : "";
    source = source ? source : own;
    target = target ? target : source;
    bool foreign = strcmp(source, own) != 0, elsewhere = strcmp(target, own) != 0;
    if (foreign || strcmp(target, source) != 0)
        ret[count++] = (struct admission_right){source, "", "secrets", "get"};
    /* A clone's volumes are bound to claims of the target, which may be there already, before those are applied. */
    if (elsewhere && mode && strcmp(mode, "clone") == 0 &&
        !json_is_true(json_object_get(json_object_get(recovery, "spec"), "objectsOnly")))
        ret[count++] = (struct admission_right){target, "", "persistentvolumeclaims", "create"};
    /* What is put back there changes volumes that are there, which is done with the controller's own rights. */
    if (elsewhere && (!mode || strcmp(mode, "clone") != 0))
        ret[count++] = (struct admission_right){target, "tidemark.io", "recoveries", "create"};
    return count;
}

int admission_check_rights(const struct admission *a, const json_t *recovery, const json_t *user,
                           struct error *err)
{
    struct admission_right rights[ADMISSION_RIGHTS_MAX];
    size_t count = admission_rights(recovery, rights);
    for (size_t i = 0; i < count; i++) {
        bool may = false;
        int r = a->ops->may(a->context, user, &rights[i], &may, err);
        if (r < 0)
            return r;
        if (!may)
            return error_set(err, -EACCES,
                             "%s may not %s %s in the namespace %s, which this recovery needs: ask whoever "
                             "administers %s for that right, or to make the recovery",
                             json_string_value(json_object_get(user, "username")), rights[i].verb,
                             rights[i].resource, rights[i].namespace, rights[i].namespace);
    }
    return 0;
}

/* ---- Recoveries ---- */

/* What the API server says about whoever asks, in the annotation's form. */
static json_t *requester(const struct admission_request *q)
{
    static const char *const keys[] = {"username", "uid", "groups", "extra"};
    const json_t *user = json_object_get(q->request, "userInfo");
    json_t *ret = json_object();
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *value = json_object_get(user, keys[i]);
        if (value)
            json_object_set(ret, keys[i], value);
    }
    return ret;
}

static int check_requester(const json_t *user, struct error *err)
{
    const char *key;
    json_t *values;
    size_t extra = 0;
    json_object_foreach(json_object_get(user, "extra"), key, values) extra += json_array_size(values);
    if (!json_is_string(json_object_get(user, "username")))
        return error_set(err, -EINVAL, "the API server does not say who asks");
    if (json_array_size(json_object_get(user, "groups")) > KUBE_MAX_GROUPS || extra > KUBE_MAX_EXTRA)
        return error_set(
            err, -EINVAL,
            "you are in more than %u groups, or have more than %u extra fields, and so nobody can "
            "act in your name: make the recovery as another user or service account",
            KUBE_MAX_GROUPS, KUBE_MAX_EXTRA);
    return 0;
}

/* The text that the annotation has to have; NULL: none. The caller frees it. */
static int wanted_annotation(const struct admission_request *q, char **ret, struct error *err)
{
    *ret = NULL;
    if (q->old) { /* A1: it stays */
        const char *before = kube_object_annotation(q->old, RECOVERY_REQUESTER_ANNOTATION);
        *ret = before ? strdup(before) : NULL;
        return before && !*ret ? error_set(err, -ENOMEM, "out of memory") : 0;
    }
    _cleanup_json_ json_t *user = requester(q);
    int r = check_requester(user, err);
    if (r == 0 && !(*ret = json_to_text(user)))
        r = error_set(err, -ENOMEM, "out of memory");
    return r;
}

static int mutate_recovery(const struct admission_request *q, json_t *patch, struct error *err)
{
    const char *is = kube_object_annotation(q->object, RECOVERY_REQUESTER_ANNOTATION);
    _cleanup_free_ char *wanted = NULL;
    int r = wanted_annotation(q, &wanted, err);
    if (r < 0 || (is && wanted && strcmp(is, wanted) == 0) || (!is && !wanted))
        return r;
    const json_t *metadata = json_object_get(q->object, "metadata");
    int failed = 0;
    if (!wanted)
        return json_array_append_new(patch,
                                     json_pack("{s:s, s:s}", "op", "remove", "path", ESCAPED_ANNOTATION)) < 0
                   ? error_set(err, -ENOMEM, "out of memory")
                   : 0;
    if (!json_is_object(json_object_get(metadata, "annotations")))
        failed |= json_array_append_new(
            patch, json_pack("{s:s, s:s, s:{}}", "op", "add", "path", "/metadata/annotations", "value"));
    failed |= json_array_append_new(
        patch, json_pack("{s:s, s:s, s:s}", "op", "add", "path", ESCAPED_ANNOTATION, "value", wanted));
    return failed ? error_set(err, -ENOMEM, "out of memory") : 0;
}

static int check_point(const char *text, struct error *err)
{
    struct point point;
    if (text && strncmp(text, "before:", 7) == 0 && text[7]) /* of another Recovery */
        return 0;
    int r = text ? point_parse(text, &point, err) : error_set(err, -EINVAL, "it is missing");
    return r < 0 ? error_context(err, "point") : 0;
}

/* Where it goes, and from where. */
static int check_places(const struct admission_request *q, const char *source, const char *mode,
                        struct error *err)
{
    const char *target = admission_text(q->object, "spec", "targetNamespace"),
               *application = admission_text(q->object, "spec", "application");
    _cleanup_json_ json_t *papp = NULL;
    if (target && strcmp(target, source) != 0 && strncmp(target, "kube-", 5) == 0)
        return error_set(err, -EINVAL,
                         "targetNamespace: %s is the cluster's own: what an application has (network "
                         "policies, quotas, objects of the same names) may break "
                         "the cluster there; name another one",
                         target);
    if (target && q->a->home && strcmp(target, source) != 0 && strcmp(target, q->a->home) == 0)
        return error_set(err, -EINVAL,
                         "targetNamespace: %s is Tidemark's own: what an application has may break Tidemark "
                         "there, and everybody's protection with it; name another one",
                         target);
    if (strcmp(mode, "clone") == 0 && target && strcmp(target, source) == 0)
        return error_set(err, -EINVAL,
                         "targetNamespace: a clone goes beside the application, not into its own namespace "
                         "%s: name another one, or use mode rewind",
                         source);
    if (strcmp(mode, "rewind") != 0) /* the history may be all that is left */
        return 0;
    int r = q->a->ops->get(q->a->context, &controller_applications, source, application, &papp, err);
    if (r == -ENOENT)
        return error_set(
            err, r,
            "there is no ProtectedApplication %s in the namespace %s: kubectl -n %s get papp lists "
            "those there are; if it was deleted, use mode restore",
            application, source, source);
    return r;
}

static int validate_recovery(struct admission_request *q, struct error *err)
{
    const char *is = kube_object_annotation(q->object, RECOVERY_REQUESTER_ANNOTATION);
    _cleanup_free_ char *wanted = NULL;
    int r = wanted_annotation(q, &wanted, err);
    if (r < 0)
        return r;
    if ((is && (!wanted || strcmp(is, wanted) != 0)) || (!is && wanted)) /* another webhook changed it */
        return error_set(err, -EACCES,
                         "the annotation " RECOVERY_REQUESTER_ANNOTATION
                         " is written by the admission webhook alone and was changed after it");
    if (q->old) /* what was checked stays; API servers of before 1.25 do not look at the definition's own rule */
        return json_equal(json_object_get(q->old, "spec"), json_object_get(q->object, "spec"))
                   ? 0
                   : error_set(err, -EINVAL, "the spec of a recovery cannot be changed; make another recovery");
    const char *mode = admission_text(q->object, "spec", "mode"),
               *source = admission_text(q->object, "spec", "sourceNamespace");
    const json_t *transforms = json_object_get(json_object_get(q->object, "spec"), "transforms");
    _cleanup_json_ json_t *user = requester(q);
    if (!mode || !admission_text(q->object, "spec", "application"))
        return error_set(err, -EINVAL, "spec: application and mode are missing");
    if ((r = check_point(admission_text(q->object, "spec", "point"), err)) < 0 ||
        (transforms && (r = transforms_check(transforms, err)) < 0) ||
        (r = check_places(q, source ? source : q->namespace, mode, err)) < 0)
        return r;
    return admission_check_rights(q->a, q->object, user, err);
}

/* ---- HistoryReviews ---- */

/* Which namespace it is about. Another one than its own is asked about by who could read all of it there: RoleBindings of a
 * namespace that is gone are gone, too. */
static int source_of(const struct admission_request *q, const char **ret, struct error *err)
{
    const char *source = admission_text(q->object, "spec", "sourceNamespace");
    const json_t *user = json_object_get(q->request, "userInfo");
    *ret = source ? source : q->namespace;
    if (!source || strcmp(source, q->namespace) == 0)
        return 0;
    const struct admission_right right = {source, "", "secrets", "get"};
    bool may = false;
    int r = q->a->ops->may(q->a->context, user, &right, &may, err);
    return r < 0 || may ? r
                        : error_set(err, -EACCES,
                                    "%s may not get secrets in the namespace %s, which a question about its history from "
                                    "another namespace needs: ask whoever administers the cluster",
                                    json_text(user, "username"), source);
}

/* The answer is the object's status, which the API server gives back and nobody keeps. */
static int mutate_history(const struct admission_request *q, json_t *patch, struct error *err)
{
    json_t *status = NULL;
    if (!json_is_true(json_object_get(q->request, "dryRun")))
        return error_set(err, -EINVAL,
                         "a " HISTORY_KIND
                         " is answered and not stored: create it with dryRun=All (kubectl create "
                         "--dry-run=server -o yaml)");
    if (!q->a->history)
        return error_set(err, -EINVAL, "this controller has no history to ask");
    if (q->a->untrusted) { /* or the API server has not seen the newest configuration yet: it comes again */
        status = json_pack("{s:s, s:{s:s, s:s}}", "phase", "Elsewhere", "error", "code", "EAGAIN", "message",
                           "the webhook's configuration is not up to date: ask again");
        return status && json_array_append_new(patch, json_pack("{s:s, s:s, s:o}", "op", "add", "path", "/status",
                                                                "value", status)) == 0
                   ? 0
                   : error_set(err, -ENOMEM, "out of memory");
    }
    const char *namespace;
    int r = source_of(q, &namespace, err);
    if (r < 0)
        return r;
    r = history_answer(q->a->history, namespace, q->object, json_object_get(q->request, "userInfo"),
                           &status, err);
    if (r < 0)
        return r;
    return json_array_append_new(
               patch, json_pack("{s:s, s:s, s:o}", "op", "add", "path", "/status", "value", status)) < 0
               ? error_set(err, -ENOMEM, "out of memory")
               : 0;
}

/* ---- the review ---- */

static const char *reason_of(int code)
{
    return code == -EACCES ? "Forbidden" : code == -ENOENT ? "NotFound" : "Invalid";
}

static int add_patch(json_t *response, const json_t *patch, struct error *err)
{
    _cleanup_free_ char *text = json_to_text(patch);
    size_t length = text ? strlen(text) : 0;
    _cleanup_free_ char *encoded = malloc(length / 3 * 4 + 8);
    if (!text || !encoded)
        return error_set(err, -ENOMEM, "out of memory");
    EVP_EncodeBlock((unsigned char *)encoded, (const unsigned char *)text, (int)length);
    return json_object_set_new(response, "patchType", json_string("JSONPatch")) < 0 ||
                   json_object_set_new(response, "patch", json_string(encoded)) < 0
               ? error_set(err, -ENOMEM, "out of memory")
               : 0;
}

/* What the request itself does not answer for: the server could not be asked. */
static bool is_lookup_failure(int code)
{
    return code != -EINVAL && code != -EACCES && code != -ENOENT && code != -EEXIST && code != -EBUSY;
}

static int judge(struct admission_request *q, enum admission_phase phase, json_t *patch, struct error *err)
{
    bool recovery = strcmp(q->kind, "Recovery") == 0;
    if (strcmp(q->kind, HISTORY_KIND) == 0)
        return phase == ADMISSION_MUTATE && q->object ? mutate_history(q, patch, err) : 0;
    if (phase == ADMISSION_MUTATE)
        return recovery && q->object ? mutate_recovery(q, patch, err) : 0;
    if (recovery)
        return q->object ? validate_recovery(q, err) : 0;
    int r = admission_validate_kind(q, err);
    if (r < 0 && is_lookup_failure(r)) { /* A2 */
        admission_warn(q, "not checked by Tidemark: %s", err->message);
        r = 0;
    }
    return r;
}

int admission_review(const struct admission *a, enum admission_phase phase, const json_t *review,
                     json_t **ret, struct error *err)
{
    json_t *request = json_object_get(review, "request");
    const char *uid = json_string_value(json_object_get(request, "uid"));
    _cleanup_json_ json_t *warnings = json_array(), *patch = json_array();
    struct error why = ERROR_INIT;
    if (!uid || !json_is_object(request))
        return error_set(err, -EINVAL, "this is no AdmissionReview with a request");
    json_t *object = json_object_get(request, "object"), *old = json_object_get(request, "oldObject");
    struct admission_request q = {.a = a,
                                  .request = request,
                                  .object = json_is_object(object) ? object : NULL,
                                  .old = json_is_object(old) ? old : NULL,
                                  .kind = admission_text(request, "kind", "kind"),
                                  .namespace = json_string_value(json_object_get(request, "namespace")),
                                  .name = json_string_value(json_object_get(request, "name")),
                                  .warnings = warnings};
    q.kind = q.kind ? q.kind : "";
    q.namespace = q.namespace ? q.namespace : "";
    int r = judge(&q, phase, patch, &why);
    _cleanup_json_ json_t *response = json_pack("{s:s, s:b}", "uid", uid, "allowed", (int)(r == 0));
    if (!response || !warnings || !patch)
        return error_set(err, -ENOMEM, "out of memory");
    if (r < 0)
        json_object_set_new(response, "status",
                            json_pack("{s:s, s:s, s:s, s:i}", "status", "Failure", "message", why.message,
                                      "reason", is_lookup_failure(r) ? "InternalError" : reason_of(r), "code",
                                      is_lookup_failure(r) ? 500
                                      : r == -EACCES       ? 403
                                                           : 422));
    if (json_array_size(warnings) > 0)
        json_object_set(response, "warnings", warnings);
    if (r == 0 && json_array_size(patch) > 0 && (r = add_patch(response, patch, err)) < 0)
        return r;
    *ret = json_pack("{s:s, s:s, s:O}", "apiVersion", "admission.k8s.io/v1", "kind", "AdmissionReview",
                     "response", response);
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}
