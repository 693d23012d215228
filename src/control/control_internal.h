/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this module share.
 *
 * Threads: the main thread (control_up) watches processes and signals; the HTTP server's threads answer; each
 * long operation and each manifests directory has a thread of its own. Lock order: control.mutex, then
 * application.mutex. None is held over a call to an engine, a mount or a wait. Whoever changes what an
 * application or a view is (starts, stops, mounts) has it busy first (application_begin): so the fields
 * marked "busy" have one writer, which takes the mutex for the change, and is free to read them without. */
#ifndef TIDEMARK_CONTROL_CONTROL_INTERNAL_H
#define TIDEMARK_CONTROL_CONTROL_INTERNAL_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "app/spec.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "control/control.h"
#include "control/process.h"
#include "export/holder_ends.h"
#include "export/loop.h"
#include "lib/http_server.h"
#include "lib/json.h"

#define CONTROL_ID_BYTES 24
#define CONTROL_STEPS_MAX 16u
#define CONTROL_PLANNED_ENDS 64u
#define CONTROL_OPERATIONS_KEPT 64u
#define CONTROL_VIEWS_MAX 64u
#define CONTROL_APPLICATIONS_MAX 256u
#define CONTROL_SOCKET_PATH_MAX 107u    /* sun_path without its NUL */
#define CONTROL_START_TIMEOUT_MS 120000 /* an engine that recovers a large journal */
#define CONTROL_STOP_TIMEOUT_MS 30000
#define CONTROL_CALL_TIMEOUT_MS 30000u /* one call to an engine */
#define CONTROL_REWIND_TIMEOUT_MS 600000u
#define CONTROL_STATUS_TIMEOUT_MS 2000u
#define CONTROL_LIFECYCLE_TIMEOUT_MS 600000
#define CONTROL_PROBE_TIMEOUT_MS 60000
#define CONTROL_SYNC_TIMEOUT_MS 5000
#define CONTROL_QUOTA_DEFAULT_BYTES (8ull << 30)
#define CONTROL_ENGINE_MEMORY_MIB 96u /* the budget of an engine (J7) */
#define CONTROL_ENGINE_MEMORY_VOLUMES 4u /* with so many volumes; the buffers for requests of each further one: */
#define CONTROL_VOLUME_MEMORY_MIB 8u

struct control;
struct manifests;

/* ---- programs.c: where the other programs are ---- */
struct programs {
    char engine[PATH_MAX];
    char holder[PATH_MAX];
};
/* Fills what is found; missing ones are "". */
void programs_find(struct programs *ret);
/* -ENOENT with the places that were looked at, -ENOSYS without /dev/fuse. */
int programs_check_export(const struct programs *programs, enum app_export export,
                          struct error *err) MUST_CHECK;

/* ---- operation.c: long operations as the API shows them. Thread-safe. ---- */
enum step_state { STEP_PENDING, STEP_RUNNING, STEP_DONE, STEP_FAILED, STEP_SKIPPED };
struct step {
    const char *name; /* static */
    enum step_state state;
    uint64_t started_ns, duration_ns;
    char detail[256];
};
struct operation {
    struct operation *next;
    struct control *control;
    char id[CONTROL_ID_BYTES];
    const char *kind; /* static */
    char application[APP_NAME_LENGTH_MAX + 1];
    uint64_t started_realtime_ns, started_ns, duration_ns, version;
    size_t step_count;
    struct step steps[CONTROL_STEPS_MAX];
    uint64_t progress_done, progress_total;
    const char *progress_unit; /* static; NULL: none */
    bool running;
    json_t *result; /* set once, when it ends */
    struct error error;
};
/* Registers a running operation with the named steps (NULL-terminated). NULL when out of memory. */
struct operation *operation_new(struct control *control, const char *kind, const char *application,
                                const char *const *steps);
void operation_step_begin(struct operation *operation, size_t step);
/* `detail` may be NULL. Returns the step's duration in ms. */
double operation_step_end(struct operation *operation, size_t step, enum step_state state,
                          const char *detail);
void operation_progress(struct operation *operation, uint64_t done, uint64_t total, const char *unit);
/* Ends it: takes `result` when r is 0, else copies err; the running step fails. Old ended ones are dropped.
 */
void operation_end(struct operation *operation, int r, json_t *result, const struct error *err);
json_t *operation_to_json(struct control *control, const char *id, uint64_t version, unsigned wait_ms,
                          struct error *err);
json_t *operations_to_json(struct control *control);
/* The running one of the application, or "". */
void operation_running_id(struct control *control, const char *application, char ret_id[CONTROL_ID_BYTES]);
void operations_free(struct control *control);

/* ---- application.c, application_export.c, application_mount.c ---- */
enum application_state { APPLICATION_STARTING, APPLICATION_RUNNING, APPLICATION_STOPPED, APPLICATION_FAILED };
struct attached {
    char device[LOOP_DEVICE_BYTES]; /* "" when not attached */
    bool mounted;
    char fs_type[32]; /* what is mounted; "" when that is not known */
};
/* A clone that is used before it is copied. */
struct filling {
    char source[APP_NAME_LENGTH_MAX + 1]; /* what it is copied from; "": nothing */
    char pin[CONTROL_ID_BYTES];           /* in that one's history */
    char key_file[PATH_MAX];              /* that opens it; "": none */
};
struct application {
    struct application *next;
    struct control *control;
    unsigned refs; /* control.mutex */
    bool removed;  /* busy: no longer in the list */
    char name[APP_NAME_LENGTH_MAX + 1];
    char directory[PATH_MAX]; /* <state>/apps/<name> */
    char socket[PATH_MAX];    /* the engine's */
    pthread_mutex_t mutex;    /* guards what follows */
    char busy[64];            /* what changes it now; "" when nobody does */
    struct app_spec *spec;    /* busy */
    struct attached *volumes; /* busy; spec->volume_count of them */
    enum application_state state;
    char message[512];
    struct process process; /* busy, main: holder, or an engine without one */
    bool orphaned;          /* process is the engine: its holder is gone */
    unsigned restarts;
    uint64_t retry_ns;           /* boottime when a failed one is started again; 0: not */
    uint64_t rewind_retry_ns;    /* boottime before which an interrupted rewind is not carried on */
    unsigned failures;           /* in a row */
    struct holder_ends ends;     /* of an engine without a holder */
    _Atomic unsigned planned_ends[CONTROL_PLANNED_ENDS]; /* the numbers of those that upgrades were, the newest of them; 0: none. One operation writes at a time */
    struct cgroup_memory memory; /* when that was started */
    uint64_t started_ns;         /* boottime of that */
    struct manifests *manifests; /* busy */
    char policy_lost[ERROR_MESSAGE_BYTES]; /* why its policy cannot be used, while it goes on with the settings that it had; else "" */
    char copied_from[APP_NAME_LENGTH_MAX + 1]; /* while it is being made as a clone; else "". control.mutex */
    struct filling filling;                    /* control.mutex */
    uint64_t filling_told_ns;                  /* the thread's of filling.c: when it last said why it does not end */
};

/* A reference, or NULL with -ENOENT and the names there are. */
struct application *application_find(struct control *control, const char *name, struct error *err);
void application_ref(struct application *application);
void application_unref(struct application *application);
static inline void cleanup_application(struct application **application)
{
    if (*application)
        application_unref(*application);
}
#define _cleanup_application_ __attribute__((cleanup(cleanup_application)))
/* Takes the right to change it; -EBUSY says who has it. `what`: "rewind" ... Waits up to wait_ms for it. -ENOENT: whoever had it
 * took it from the list. */
int application_begin(struct application *application, const char *what, unsigned wait_ms,
                      struct error *err) MUST_CHECK;
void application_end(struct application *application);
void application_set_state(struct application *application, enum application_state state,
                           const char *message);
/* Takes `spec`. Not in the list yet. */
struct application *application_new(struct control *control, struct app_spec *spec, struct error *err);
void application_list(struct application *application);
void application_unlist(struct application *application);
/* "<directory>/<format>"; -ENAMETOOLONG. */
int application_path(const struct application *application, char ret[PATH_MAX], struct error *err,
                     const char *format, ...) MUST_CHECK __attribute__((format(printf, 4, 5)));
/* application.yaml in the application's directory. */
int application_save(const struct application *application, struct error *err) MUST_CHECK;

/* Of the file system that holds its directory, or will. */
struct statvfs;
int application_statvfs(const struct application *application, struct statvfs *ret, struct error *err) MUST_CHECK;
/* All of these: busy. Starts or takes over the export, attaches and mounts, watches manifests. What was begun
 * is taken back on failure. */
int application_start(struct application *application, struct error *err) MUST_CHECK;
/* Unmounts, detaches, ends the export. `force`: whoever uses a volume loses it. Without it -EBUSY leaves all
 * running. */
int application_stop(struct application *application, bool force, struct error *err) MUST_CHECK;
/* Detaches and unmounts what a dead export has left. */
void application_clear_remains(struct application *application);
int application_export_start(struct application *application, struct error *err) MUST_CHECK;
void application_export_stop(struct application *application);
/* The running engine takes policy and sizes from its configuration. */
int application_configure(struct application *application, struct error *err) MUST_CHECK;
/* After it: loop devices and mounted file systems that are smaller than their volumes grow. */
int application_grow(struct application *application, struct error *err) MUST_CHECK;
/* Where the volume's data are. */
int application_backing(const struct application *application, size_t i, char ret[PATH_MAX], struct error *err) MUST_CHECK;
int application_attach(struct application *application, struct error *err) MUST_CHECK;
int application_detach(struct application *application, bool force, struct error *err) MUST_CHECK;
/* Attaches what is not attached, and mounts. */
int application_mount(struct application *application, struct error *err) MUST_CHECK;
/* All volumes, deepest first; on -EBUSY those already unmounted are mounted again. */
int application_unmount(struct application *application, bool force, struct error *err) MUST_CHECK;
/* crash.c: how often its engine has ended by itself. */
void crash_load(const struct application *application, struct holder_ends *ret);
/* The engine is about to be killed to be replaced: crash_load does not count that as one in a row. */
void crash_plan(struct application *application);
bool crash_is_loop(const struct holder_ends *e, uint64_t now_ns);
/* The last end was a kill for memory, not long ago; and that in words. */
bool crash_was_for_memory(const struct holder_ends *e, uint64_t now_ns);
const char *crash_describe_memory(const struct holder_ends *e, unsigned memory_mib, char *text, size_t size);
/* Why, and what to do. Returns `text`. */
const char *crash_describe(const struct holder_ends *e, unsigned memory_mib, const char *log_path, char *text, size_t size);
/* What an engine of so many volumes needs at most, in MiB. */
unsigned crash_engine_memory_mib(size_t volume_count);
/* The application's process has ended by itself. Mutex held. */
void crash_note(struct application *application, int wait_status);
/* sync.c: writes what Linux holds in memory for the mounted volumes. False: not all of it within
 * CONTROL_SYNC_TIMEOUT_MS. */
bool application_sync(struct application *application) MUST_CHECK;
/* Unless it has none, or they are watched already. */
int application_start_manifests(struct application *application, struct error *err) MUST_CHECK;
/* -EBUSY when somebody has a claim on a device: a file system that is mounted elsewhere too (a bind mount, a container), and
 * would go on with what it remembers of the volume when that is another. */
int application_check_unclaimed(const struct application *application, struct error *err) MUST_CHECK;
/* Main thread: looks after its process when that has ended or is to be started again. */
void application_look_after(struct application *application);
/* Writes engine.json and holder.json for the spec. */
int application_write_configs(struct application *application, struct error *err) MUST_CHECK;
/* One call to its engine. */
int application_call(const struct application *application, const char *method, const char *path,
                     const json_t *body, unsigned timeout_ms, json_t **ret, struct error *err) MUST_CHECK;
/* nbd+unix:///<volume>?socket=<path> */
json_t *nbd_uri_json(const char *volume, const char *socket_path);
/* argv of an engine that serves NBD itself. Points into the arguments. */
#define EXPORT_NBD_ARGUMENTS 9
void export_nbd_argv(const struct control *control, const char *role, const char *config_path, const char *socket_path,
                     const char *pid_path, const char *argv[EXPORT_NBD_ARGUMENTS]);
/* Writes a holder.json; `volumes`: array of objects with "name". */
int export_write_holder(const struct control *control, const char *directory, const char *name,
                        const char *role, const char *config_path, const json_t *volumes, enum app_export export,
                        bool restart, struct error *err) MUST_CHECK;
/* Waits until GET /v1/status answers at the socket, and somebody listens at `also_path` or that is a file (NULL: none), or the
 * process ends. */
int export_wait_ready(struct process *process, const char *socket_path, const char *also_path,
                      const char *log_path, off_t log_from, struct error *err) MUST_CHECK;
/* What engine.json has of the application's policy; where that is damaged or lost, what it had of it the last time. */
int export_find_policy(struct application *application, json_t **ret, struct error *err) MUST_CHECK;
/* engine.json as the application's spec and its policy are now. */
int export_write_engine_config(struct application *application, struct error *err) MUST_CHECK;
/* Takes another key file for the journal. *ret: what the API answers. */
int key_rotate(struct application *application, const char *key_file, json_t **ret, struct error *err) MUST_CHECK;
/* Key file and key id, or null without encryption. */
json_t *key_to_json(const struct application *application);
int write_json_file(const char *path, const json_t *json, struct error *err) MUST_CHECK;

/* ---- lifecycle.c ---- */
/* Runs the commands in turn, output to lifecycle.log. 0 when all ended with status 0. */
int lifecycle_run(const struct application *application, const char *which,
                  const struct app_commands *commands, struct error *err) MUST_CHECK;
/* Runs probe until it succeeds, at most CONTROL_PROBE_TIMEOUT_MS. */
int lifecycle_probe(const struct application *application, const struct app_commands *commands,
                    struct error *err) MUST_CHECK;

/* The workload was stopped by us, and is started by us when the volumes are there again. */
void lifecycle_mark_stopped(struct application *application);
void lifecycle_start_marked(struct application *application);

/* ---- manifests.c ---- */
/* Watches the directory in a thread; what differs from the journal is posted. */
int manifests_start(const struct control *control, const char *directory, const char *engine_socket,
                    struct manifests **ret, struct error *err) MUST_CHECK;
void manifests_stop(struct manifests *manifests); /* NULL allowed */
/* Nothing is posted until manifests_resume, which compares everything anew. NULL allowed. */
void manifests_pause(struct manifests *manifests);
void manifests_resume(struct manifests *manifests);
/* What is wrong now, "" if nothing. */
void manifests_alarm(struct manifests *manifests, char *text, size_t size);
/* Whether `name` (relative) is one that is journaled. */
bool manifests_is_name(const char *name);
/* Reads the directory: object name -> content. -ENOENT when it is not there; unreadable ones are told in
 * `problem`. */
int manifests_read(const char *directory, json_t **ret_files, char *problem, size_t problem_size,
                   struct error *err) MUST_CHECK;
/* Makes the directory hold exactly `objects` ([{name, content}]); *ret_changes: [{name, change}]. dry_run:
 * only tells. */
int manifests_restore(const char *directory, const json_t *objects, bool dry_run, json_t **ret_changes,
                      struct error *err) MUST_CHECK;

/* ---- views.c ---- */
struct view {
    struct view *next;
    char id[CONTROL_ID_BYTES];
    char application[APP_NAME_LENGTH_MAX + 1];
    char directory[PATH_MAX];
    bool closing;           /* control.mutex */
    json_t *state;          /* VIEW without state and overlay_bytes; fixed once listed */
    struct process process; /* main */
    bool dead;
};
int view_open(struct application *application, struct operation *operation, const json_t *request,
              json_t **ret_view, struct error *err) MUST_CHECK;
/* -ENOENT for an unknown id; -EBUSY when it is mounted and used. */
int view_close(struct control *control, const char *id, bool force, struct error *err) MUST_CHECK;
int views_close_all(struct control *control, const char *application, bool force,
                    struct error *err) MUST_CHECK;
/* Takes over the views of an application that still run, cleans up the others. */
void views_adopt(struct application *application);
json_t *views_to_json(struct control *control, const char *application);
/* One view; NULL with -ENOENT. */
json_t *view_to_json(struct control *control, const char *id, struct error *err);
json_t *views_ids_to_json(struct control *control, const char *application);
void views_free(struct control *control);

/* ---- rewind.c ---- */
/* The plan of a rewind ("to" POINT) or, with to NULL, an undo. */
int rewind_plan(struct application *application, const char *to, json_t **ret, struct error *err) MUST_CHECK;
/* Carries it out; busy. `log`: the operation log of an interrupted one, or NULL. */
int rewind_run(struct application *application, struct operation *operation, const char *to, json_t *log,
               json_t **ret, struct error *err) MUST_CHECK;
/* The operation log of an interrupted one, or NULL. One that cannot be read is told and removed. */
json_t *rewind_unfinished(const struct application *application);
/* Whether there is one; and whether it may have rewound the volumes or not, so that they must not be mounted
 * yet. */
bool rewind_is_unfinished(const struct application *application);
bool rewind_holds_volumes(const struct application *application);
extern const char *const rewind_steps[];
/* Starts a thread that carries on what was interrupted, if something was and nobody is busy with the
 * application. */
void rewind_continue(struct application *application);

/* ---- apply.c ---- */
int apply_documents(struct control *control, const char *text, size_t length_bytes, const char *file,
                    const char *directory, bool dry_run, json_t **ret, struct error *err) MUST_CHECK;
int apply_delete(struct control *control, const char *name, bool purge, json_t **ret,
                 struct error *err) MUST_CHECK;
/* Ends the protection and the history; the volumes' data stay as plain images, whose paths are told. */
int apply_detach(struct control *control, const char *name, json_t **ret, struct error *err) MUST_CHECK;
/* The named policy, or the default one. -ENOENT. Free with app_policy_free. */
int policy_load(const struct control *control, const char *name, struct app_policy **ret,
                struct error *err) MUST_CHECK;
/* Puts the application of apps/<name>/application.yaml into the list, stopped; nothing to do without that file. */
int application_load(struct control *control, const char *name, struct error *err) MUST_CHECK;
/* Loads apps/<name>/application.yaml of all. */
int applications_load(struct control *control, struct error *err) MUST_CHECK;

/* ---- store.c: applications whose directory is a file system of its own, on a block device ---- */
/* Mounts the device (a file system is made on one without any signature, but not `again`: -ENODATA) and starts what it holds. What is open
 * stays so. -EBUSY: open on another machine; -EEXIST: it holds something else, or the application has its files on this machine. */
int store_open(struct control *control, const char *name, const char *device, bool again, json_t **ret, struct error *err) MUST_CHECK;
/* Stops the application and unmounts. -ENOENT: none is open; -EBUSY: a volume or view is used. */
int store_close(struct control *control, const char *name, json_t **ret, struct error *err) MUST_CHECK;
bool store_is_open(const struct control *control, const char *name);
/* -EBUSY when it lives in a store, which cannot be `what` ("deleted here"). */
int store_refuse(const struct control *control, const char *name, const char *what, struct error *err) MUST_CHECK;
/* A copy of the policy goes along with a store. */
int store_keep_policy(const struct application *application, const struct app_policy *policy, struct error *err) MUST_CHECK;
/* At the start of the process, before applications_load; at its end, when the engines have ended. */
void stores_mount(struct control *control);
void stores_unmount(struct control *control);

/* ---- upgrade.c ---- */
/* Replaces its engine by the installed program; busy. */
int upgrade_run(struct application *application, struct operation *operation, const json_t *request, json_t **ret,
                struct error *err) MUST_CHECK;

/* ---- engine_job.c ---- */
struct engine_job {
    struct control *control;
    const char *what; /* "the copy", for messages */
    const char *const *argv;
    const char *log_path;
    int lock_fd;     /* of the pin, becomes its descriptor 3 */
    int good_status; /* an exit status that is no failure, beside 0 */
    struct operation *operation;               /* progress; may be NULL */
    void (*take)(void *context, json_t *line); /* each line but progress, error and summary; may be NULL */
    void *context;
};
/* Runs it to its end, and ends it (-EBUSY) when the control stops. *ret_summary is the caller's. -ENOSPC, -EDQUOT, -EFBIG are its own,
 * any other failure is -EIO, with what it said last. */
int engine_job_run(const struct engine_job *job, json_t **ret_summary, struct error *err) MUST_CHECK;

/* ---- verify.c ---- */
int verify_run(struct application *application, struct operation *operation, json_t **ret,
               struct error *err) MUST_CHECK;

/* ---- clone.c ---- */
extern const char *const clone_steps[];
/* The request {"name", "point", "volumes": {OLD: NEW}, "at_once"} (the last two optional), checked. */
int clone_check_request(const json_t *request, struct error *err) MUST_CHECK;
/* What it would copy; -ENOSPC when that does not fit. */
int clone_plan(struct application *source, const json_t *request, json_t **ret, struct error *err) MUST_CHECK;
/* Makes the new application's place: in the list, starting, busy (the caller's, whose reference it is). -EEXIST; -EBUSY
 * when it is being made already. */
int clone_prepare(struct application *source, const json_t *request, struct application **ret, struct error *err) MUST_CHECK;
/* Fills it and starts it; busy. On failure nothing is left of it. */
int clone_run(struct application *application, struct operation *operation, const json_t *request, json_t **ret,
              struct error *err) MUST_CHECK;
/* Takes away what clone_prepare made. */
void clone_abandon(struct application *application);
/* -EBUSY while something is copied from the application of that name. */
int clone_check_unused(struct control *control, const char *name, struct error *err) MUST_CHECK;
/* At the start: what was left by a clone that was interrupted is removed. */
void clone_tidy(struct control *control, const char *name);

/* ---- filling.c: clones that are used before they are copied ---- */
/* From and to filling.json: when the application is loaded, or made. */
int filling_load(struct application *application, struct error *err) MUST_CHECK;
int filling_save(const struct application *application, struct error *err) MUST_CHECK;
/* False: it is copied, or was no such clone. */
bool filling_get(const struct application *application, struct filling *ret);
void filling_set(struct application *application, const struct filling *filling); /* NULL: none */
/* "source" of engine.json, or NULL. */
json_t *filling_engine_source(const struct application *application);
/* -EBUSY while it is copied: it cannot be `what` ("detached"), or lose volumes that `spec` lacks. */
int filling_refuse(const struct application *application, const char *what, struct error *err) MUST_CHECK;
int filling_check_volumes(const struct application *application, const struct app_spec *spec, struct error *err) MUST_CHECK;
/* A name for a pin that no clone has: whoever fails removes the pin by its name, and another's must not go with it. */
int filling_new_pin(struct control *control, char ret[CONTROL_ID_BYTES], struct error *err) MUST_CHECK;
/* Pins a point until filling_unpin, whoever ends. Name it in a listed application (filling_set) before. */
int filling_pin(struct application *source, const char *pin, const char *point, json_t **ret, struct error *err) MUST_CHECK;
/* What is not possible now is done later. */
void filling_unpin(struct control *control, const struct filling *filling);
/* The thread that looks when they are copied. */
int filling_start(struct control *control, struct error *err) MUST_CHECK;

/* ---- pins: pin.c ---- */
/* Creates and locks pins/<id>.lock, then pins the point. *ret_fd holds the lock. `how`: NULL, "salvage" or "whole" (docs/internals.md). */
int pin_take(struct application *application, const char *id, const char *point, const char *how, int *ret_fd,
             json_t **ret_answer, struct error *err) MUST_CHECK;
void pin_drop(struct application *application, const char *id);

/* ---- status.c, metrics.c ---- */
int status_to_json(struct control *control, const char *application, json_t **ret,
                   struct error *err) MUST_CHECK;
char *metrics_text(struct control *control);

/* ---- api.c ---- */
int api_handle(void *context, const struct http_request *request, struct http_response *response,
               struct error *err);

/* ---- up.c ---- */
#define CONTROL_WARNING_RESEND                                                                               \
    "this kernel cannot send FUSE requests again (FUSE_NOTIFY_RESEND, Linux 6.9): after a crash of an engine I/O that was " \
    "under way hangs until the volume is unmounted, and upgrade-engine is refused"
struct control {
    const struct log *log;
    char state_directory[PATH_MAX];
    char socket_path[PATH_MAX];
    struct programs programs;
    enum control_resend { CONTROL_RESEND_UNKNOWN, CONTROL_RESEND_NO, CONTROL_RESEND_YES } resend; /* of the kernel's FUSE */
    int lock_fd, wake_fd; /* eventfd: the main thread looks again */
    uint64_t started_realtime_ns;
    bool wait_for_users; /* control_options */
    struct http_server *server;
    atomic_bool stopping;
    atomic_bool sweep_due;       /* pins may be left of clones that are gone */
    atomic_uint workers;         /* operation threads */
    pthread_mutex_t store_mutex; /* one store is opened or closed at a time; before all others */
    pthread_mutex_t apply_mutex; /* one apply or delete at a time; before those below */
    pthread_mutex_t mutex;       /* guards the lists */
    pthread_cond_t changed;      /* an operation's version, or a worker's end */
    struct application *applications;
    json_t *left_out; /* names of those that could not be loaded and were not applied since, each with the
                         reason; by mutex */
    struct view *views;
    struct operation *operations;
};
void control_wake(struct control *control);
/* Starts one that was loaded, and carries on a rewind that was interrupted; what fails is told and tried again. */
void application_bring_up(struct application *application);
/* Runs `main` in a thread that control_up waits for. */
int control_work(struct control *control, void *(*main)(void *), void *context, struct error *err) MUST_CHECK;
void control_work_ended(struct control *control);
/* "<prefix><6 hex digits>", which no view and no operation has: they are named by it alone, whatever their application. Mutex not held. */
int control_new_id(struct control *control, const char *prefix, char ret[CONTROL_ID_BYTES], struct error *err) MUST_CHECK;

#endif
