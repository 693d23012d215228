/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/uuid.h"
#include "controller/controller_internal.h"
#include "lib/json.h"

#define NOTE_BYTES 1024 /* the API server takes no longer one */

void event_record(struct controller *c, const json_t *object, const char *type, const char *reason,
                  const char *message)
{
    char name[300], now[CLOCK_TEXT_BYTES], id[UUID_TEXT_BYTES], note[NOTE_BYTES];
    struct uuid uuid;
    struct error err = ERROR_INIT;
    const char *namespace = kube_object_namespace(object), *about = kube_object_name(object);
    if (uuid_random(&uuid, &err) < 0)
        return;
    snprintf(name, sizeof name, "%.200s.%.13s", about, uuid_format(&uuid, id));
    snprintf(note, sizeof note, "%s", message);
    clock_format_rfc3339(clock_realtime_ns(clock_system()), now);
    _cleanup_json_ json_t *event = json_pack(
        "{s:s, s:s, s:{s:s, s:s}, s:{s:O?, s:O?, s:s, s:s, s:s*}, s:s, s:s, s:o, s:s, s:s, s:s, s:s}",
        "apiVersion", "v1", "kind", "Event", "metadata", "name", name, "namespace",
        namespace ? namespace : "default", "involvedObject", "apiVersion",
        json_object_get(object, "apiVersion"), "kind", json_object_get(object, "kind"), "namespace",
        namespace ? namespace : "", "name", about, "uid", kube_object_uid(object), "type", type, "reason",
        reason, "message", json_string_lossy(note), "eventTime", now, "reportingComponent", "tidemark.io/controller",
        "reportingInstance", c->identity, "action", reason);
    const struct kube_target target = {.resource = &kube_events,
                                       .namespace = namespace ? namespace : "default",
                                       .field_manager = FIELD_MANAGER};
    if (!event || kube_create(c->client, &target, event, NULL, &err) < 0)
        log_warning(c->log, "the event %s of %s/%s could not be written: %s", reason, namespace, about,
                    err.message);
}
