/* SPDX-License-Identifier: Apache-2.0 */
/* Standalone mode: `tidemark up` as a library function. It supervises one engine an application, attaches and
 * mounts volumes, journals manifests, opens views, rewinds, and serves the API on a Unix socket.
 *
 * Invariants:
 *   U1  a kill of `up` at any moment ends no engine, no view and no mount; the next `up` takes them over as
 * they are U2  a step that changes something durable is written to the application's operation log before it
 * is taken; the next `up` carries an unfinished rewind or undo on to its end U3  a failed apply or open
 * leaves nothing behind that was not there before it U4  mkfs runs only on a volume without any signature
 *
 * The API (HTTP/1.1, JSON; api/openapi.yaml has every field). An error is a status >= 400 with
 * {"error":{"code":"ENOENT","message":"..."}}. Fields ending in _time are RFC 3339, _bytes bytes, _ms
 * milliseconds. {app} is a name of an application, POINT the grammar latest | -90s | RFC 3339 | lsn:N |
 * tag:NAME.
 *
 *   GET    /v1/version            {"version","api_version","pid","state_directory","started_time"}
 *   GET    /v1/status[?app=NAME]  {"version","pid","state_directory","warnings":[TEXT],"applications":[APPLICATION]}
 *   POST   /v1/apply[?directory=/ABS&file=NAME&dry_run=true]   body: YAML, any number of documents.
 * `directory`: where relative paths start (without it they are refused); `file`: what messages call the text
 * (default "request"). Answers when all is mounted (may take seconds):
 *          {"results":[{"kind","name","result":"created|configured|unchanged","message":null|TEXT}]}
 *   DELETE /v1/applications/{app}[?purge=true]
 *          {"name","purged","journal":PATH|null,"volumes":[{"name","backing":PATH|null}]}
 *   GET    /v1/applications/{app}/points[?since=POINT&limit=N]   {"points":[POINT RECORD of
 * docs/internals.md]} POST   /v1/applications/{app}/tag     {"name","labels":{}}          ->
 * {"name","lsn","time"} POST   /v1/applications/{app}/diff    {"from":POINT,"to":POINT}     -> as the
 * engine's (docs/internals.md) POST   /v1/applications/{app}/open
 * {"point","volume"?,"mount"?:DIR,"nbd"?:SOCKET,"salvage"?:BOOL}  -> 202 {"operation":OPERATION} its result: {"view":VIEW}
 *   POST   /v1/applications/{app}/rewind  {"to":POINT,"dry_run":false}  -> 202 {"operation":OPERATION}
 *          its result: REWIND; with dry_run 200 {"plan":PLAN}
 *   POST   /v1/applications/{app}/undo    {"dry_run":false}             -> the same
 *   POST   /v1/applications/{app}/verify  {}                            -> 202 {"operation":OPERATION}
 *          its result: VERIFY
 *   POST   /v1/applications/{app}/upgrade-engine  {"disconnect":false}  -> 202 {"operation":OPERATION}
 *          its result: {"application","from_version","to_version","from_pid","to_pid","pause_ms","disconnected"}
 *   POST   /v1/applications/{app}/store {"device":PATH}   -> {"application","device","open":true}
 *   DELETE /v1/applications/{app}/store                   -> {"application","open":false}
 *   GET    /v1/views              {"views":[VIEW]}
 *   GET    /v1/views/{id}         {"view":VIEW}
 *   DELETE /v1/views/{id}         {"id"}
 *   GET    /v1/operations         {"operations":[OPERATION]} newest first
 *   GET    /v1/operations/{id}[?wait_ms=N&version=V]   {"operation":OPERATION}: answers once its version is
 * above V (default: once it has ended), at the latest after N ms (default 0, at most 5000) GET    /metrics
 * Prometheus text
 *
 *   APPLICATION
 * {"name","state","message":null|TEXT,"lsn","durable_lsn","oldest_lsn","oldest_time","latest_time","rpo_ms",
 *          "journal_bytes","quota_bytes","base_bytes","ack","export","policy","manifests","engine_pid","restarts",
 *          "alarms":[TEXT],"rewind","resync",
 *          "history":null|{"limit_seconds","quota_seconds","spans":[{"from","to","granularity_seconds"}]},"operation":null|ID,"views":[ID],
 *          "volumes":[{"name","size_bytes","device","mount","nbd_uri","written_bytes","fs_type"}]}
 *          null where not applicable or not known. state: protected | resyncing | suspended (from the
 * engine), starting, stopped, failed (message says why) OPERATION
 * {"id","kind":"open|rewind|undo|verify|upgrade-engine","application","state":"running|succeeded|failed","version",
 *          "started_time","duration_ms","steps":[{"name","state":"pending|running|done|failed|skipped","duration_ms","detail":null|TEXT}],
 *          "progress":null|{"done","total","unit"},"result":null|{...},"error":null|{"code","message"}}
 *   VIEW
 * {"id","application","lsn","time","note","open_ms","created_time","state":"open|dead","overlay_bytes",
 *          "salvage":null|{"complete","damaged_bytes","truncated","findings":[TEXT],
 *                          "damage":[{"volume","offset_bytes","length_bytes","reason"}]},
 *          "volumes":[{"name","size_bytes","device","mount","nbd_uri","note"}]}
 *   PLAN {"to","lsn","target_lsn","target_time","note","changed_bytes","volumes":[{"name","changed_bytes"}],
 *          "manifests":[{"name","change":"write|create|delete"}],"lifecycle":{"stop":[[ARGV]],"start":[...],"probe":[...]}}
 *   REWIND {"to","lsn","target_lsn","target_time","changed_bytes","volumes":[{"name","changed_bytes"}],
 *          "manifests":[{"name","change"}],"stop_ms","unmount_ms","engine_ms","mount_ms","manifests_ms","start_ms","probe_ms","rewind_ms",
 *          "total_ms","rpo_ms"}; rewind_ms: all but the workload's own stop, start and probe; rpo_ms: time
 * between the last record at or before the point and the point asked for (null for a point that is not a
 * time) VERIFY {"ok":true,"pin_lsn",...the last line of tidemark-engine verify}
 */
#ifndef TIDEMARK_CONTROL_CONTROL_H
#define TIDEMARK_CONTROL_CONTROL_H

#include <stdbool.h>

#include "base/error.h"
#include "base/log.h"

#define CONTROL_STATE_DIRECTORY_DEFAULT "/var/lib/tidemark"
#define CONTROL_SOCKET_NAME "tidemark.sock" /* in the state directory */
#define CONTROL_LOCK_NAME "tidemark.lock"
#define CONTROL_OPERATION_WAIT_MS_MAX 5000u

struct control_options {
    const char *state_directory; /* NULL: CONTROL_STATE_DIRECTORY_DEFAULT; created when missing */
    const char *socket_path;     /* NULL: <state_directory>/tidemark.sock */
    const char *metrics_address; /* "host:port" that serves GET /metrics; NULL: none */
    /* The first signal waits until nobody uses a volume, however long that takes; a second one forces. For volumes that
     * others mount: `tidemark data`. */
    bool wait_for_users;
    const struct log *log; /* borrowed; may be NULL */
    /* Called once when everything is attached and the API answers (may be NULL), on control_up's thread. */
    void (*ready)(void *context, const char *socket_path);
    void *context;
};

/* Runs until SIGTERM or SIGINT, which it takes over (blocked in all threads, SIGPIPE ignored): then it closes
 * views, unmounts, detaches and stops the engines, each within 30 s; a second signal forces. 0 after a clean
 * stop. -EPERM without root; -EALREADY when another `up` holds the state directory (the message names its pid);
 * -EBUSY when something is in use and was left running; -ENOENT when a program is missing; other negative errno when it could not start or stop something. One call
 * a process; blocks. */
int control_up(const struct control_options *options, struct error *err) MUST_CHECK;

#endif
