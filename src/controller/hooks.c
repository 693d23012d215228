/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/hooks.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/units.h"
#include "controller/checkpoint.h"
#include "controller/controller_internal.h"
#include "lib/json.h"

static const json_t *find_blueprint(const json_t *blueprints, const char *name)
{
    size_t i;
    json_t *blueprint;
    json_array_foreach(blueprints, i, blueprint)
    {
        const char *label = kube_object_label(blueprint, HOOKS_BLUEPRINT_LABEL);
        if (label && strcmp(label, name) == 0)
            return json_object_get(blueprint, "data");
    }
    return NULL;
}

/* "registry:5000/library/postgres:15@sha256:..." is known by the word "postgres". */
static bool knows_image(const char *words, const char *image)
{
    const char *slash = strrchr(image, '/'), *at = strchr(image, '@');
    if (at && slash && slash > at)
        for (slash = at; slash > image && *slash != '/'; slash--)
            ;
    const char *name = slash && *slash == '/' ? slash + 1 : image;
    size_t length = strcspn(name, ":@");
    for (const char *word = words; *word;) {
        size_t word_length = strcspn(word, " \t\n,");
        if (word_length == length && length && strncmp(word, name, length) == 0)
            return true;
        word += word_length;
        word += strspn(word, " \t\n,");
    }
    return false;
}

/* The container that is named, or the first one that the blueprint knows; NULL: none. */
static const json_t *find_container(const json_t *pod, const char *name, const char *images)
{
    size_t i;
    json_t *container;
    json_array_foreach(json_object_get(json_object_get(pod, "spec"), "containers"), i, container)
    {
        if (*name ? strcmp(json_text(container, "name"), name) == 0
                  : knows_image(images, json_text(container, "image")))
            return container;
    }
    return NULL;
}

static bool has_labels(const json_t *pod, const json_t *wanted)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)wanted, key, value)
    {
        const char *is = kube_object_label(pod, key);
        if (!is || strcmp(is, json_string_value(value) ? json_string_value(value) : "") != 0)
            return false;
    }
    return true;
}

static bool runs(const json_t *pod)
{
    return strcmp(json_text(json_object_get(pod, "status"), "phase"), "Running") == 0 &&
           !json_object_get(json_object_get(pod, "metadata"), "deletionTimestamp");
}

/* Mount points of claims, with blanks between. One that has a quote or a blank in it is left out: a shell
 * reads them. */
static void list_mounts(const json_t *pod, const json_t *container, char *text, size_t size)
{
    size_t i, k, length = 0;
    json_t *mount, *volume;
    text[0] = '\0';
    json_array_foreach(json_object_get(container, "volumeMounts"), i, mount)
    {
        const char *path = json_text(mount, "mountPath");
        json_array_foreach(json_object_get(json_object_get(pod, "spec"), "volumes"), k, volume)
        {
            bool claim =
                json_object_get(volume, "persistentVolumeClaim") || json_object_get(volume, "ephemeral");
            if (claim && strcmp(json_text(volume, "name"), json_text(mount, "name")) == 0 &&
                !strpbrk(path, "' \t\n\\") && length + strlen(path) + 2 < size)
                length += (size_t)snprintf(text + length, size - length, "%s%s", length ? " " : "", path);
        }
    }
}

static int timeout_of(const json_t *hook, uint64_t *ret_ms, struct error *err)
{
    const char *text = json_text(hook, "timeout");
    uint64_t ns = HOOKS_TIMEOUT_MS * NS_PER_MS;
    int r = *text ? units_parse_duration(text, &ns, err) : 0;
    *ret_ms = ns / NS_PER_MS;
    if (r == 0 && (*ret_ms == 0 || *ret_ms > HOOKS_TIMEOUT_MAX_MS))
        return error_set(err, -EINVAL, "timeout %s: at least 1ms and at most 10m", text);
    return r;
}

static int add_hook(const json_t *hook, const json_t *blueprint, const json_t *pods, const char *group,
                    json_t *targets, struct error *err)
{
    const json_t *labels = json_object_get(json_object_get(hook, "selector"), "matchLabels");
    const char *wanted = json_text(hook, "container");
    size_t i, before = json_array_size(targets);
    uint64_t timeout_ms;
    json_t *pod;
    int r = timeout_of(hook, &timeout_ms, err);
    if (r < 0)
        return r;
    json_array_foreach(pods, i, pod)
    {
        char mounts[2048];
        const json_t *container = find_container(pod, wanted, json_text(blueprint, "images"));
        if (!container || !runs(pod) || !has_labels(pod, labels) || !volumes_pod_belongs(pod, group))
            continue;
        if (json_array_size(targets) == CHECKPOINT_TARGETS_MAX)
            return error_set(err, -EINVAL, "it would run in more than %u containers: narrow it by selector",
                             CHECKPOINT_TARGETS_MAX);
        list_mounts(pod, container, mounts, sizeof mounts);
        json_array_append_new(targets,
                              json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I}", "hook", json_text(hook, "name"),
                                        "pod", kube_object_name(pod), "container", json_text(container, "name"),
                                        "pre", json_text(blueprint, "pre"), "post", json_text(blueprint, "post"),
                                        "mounts", mounts, "timeoutMs", (json_int_t)timeout_ms));
    }
    if (json_array_size(targets) == before && (json_object_size(labels) > 0 || *wanted))
        return error_set(err, -EINVAL, "no running pod of the application has the labels of its selector%s%s",
                         *wanted ? " and a container " : "", wanted);
    return 0;
}

int hooks_targets(const char *policy, const json_t *hooks, const json_t *blueprints, const json_t *pods,
                  const char *group, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *targets = json_array();
    size_t i;
    json_t *hook;
    if (!targets)
        return error_set(err, -ENOMEM, "out of memory");
    json_array_foreach(hooks, i, hook)
    {
        const char *name = json_text(hook, "blueprint");
        const json_t *blueprint = find_blueprint(blueprints, name);
        if (!blueprint)
            return error_set(err, -EINVAL,
                             "hook %s of the policy %s: there is no blueprint %s; kubectl -n tidemark-system "
                             "get configmaps -L " HOOKS_BLUEPRINT_LABEL " lists those there are",
                             json_text(hook, "name"), policy, name);
        int r = add_hook(hook, blueprint, pods, group, targets, err);
        if (r < 0)
            return error_context(err, "hook %s of the policy %s", json_text(hook, "name"), policy);
    }
    *ret = take_ptr(targets);
    return 0;
}
