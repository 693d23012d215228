/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "base/thread.h"
#include "control/control_internal.h"
#include "export/fuse_probe.h"

#define API_THREADS 12u
#define LOCK_WAIT_MS 5000
#define LOCK_POLL_MS 10
#define LOOK_INTERVAL_MS 1000 /* for what is started again after a while */
#define WATCHED_MAX (CONTROL_APPLICATIONS_MAX + CONTROL_VIEWS_MAX + 2u)

void control_wake(struct control *control)
{
    uint64_t one = 1;
    write(control->wake_fd, &one, sizeof one);
}

static bool is_taken(struct control *control, const char *id)
{
    MUTEX_GUARD(guard, &control->mutex);
    for (const struct view *v = control->views; v; v = v->next)
        if (strcmp(v->id, id) == 0)
            return true;
    for (const struct operation *o = control->operations; o; o = o->next)
        if (strcmp(o->id, id) == 0)
            return true;
    return false;
}

int control_new_id(struct control *control, const char *prefix, char ret[CONTROL_ID_BYTES], struct error *err)
{
    uint32_t random;
    do {
        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
            return error_errno(err, -EIO, "cannot get random bytes");
        snprintf(ret, CONTROL_ID_BYTES, "%s%06x", prefix, random & 0xffffff);
    } while (is_taken(control, ret));
    return 0;
}

int control_work(struct control *control, void *(*main)(void *), void *context, struct error *err)
{
    pthread_t thread;
    atomic_fetch_add(&control->workers, 1);
    int r = thread_start(&thread, "operation", main, context, err);
    if (r < 0)
        control_work_ended(control);
    else
        pthread_detach(thread);
    return r;
}

void control_work_ended(struct control *control)
{
    MUTEX_GUARD(guard, &control->mutex);
    atomic_fetch_sub(&control->workers, 1);
    pthread_cond_broadcast(&control->changed);
    control_wake(control);
}

/* ---- start ---- */

static int check_socket_path(const char *state, const char *socket_path, struct error *err)
{
    size_t length = socket_path ? strlen(socket_path) : strlen(state) + 1 + strlen(CONTROL_SOCKET_NAME);
    if (length <= CONTROL_SOCKET_PATH_MAX)
        return 0;
    return error_set(err, -ENAMETOOLONG,
                     "the socket's path %s%s%s is longer than %u bytes: choose another with --socket",
                     socket_path ? socket_path : state, socket_path ? "" : "/",
                     socket_path ? "" : CONTROL_SOCKET_NAME, CONTROL_SOCKET_PATH_MAX);
}

static int set_paths(struct control *control, const struct control_options *options, struct error *err)
{
    const char *state = options->state_directory ? options->state_directory : CONTROL_STATE_DIRECTORY_DEFAULT;
    char path[PATH_MAX];
    int r = check_socket_path(state, options->socket_path, err); /* before anything is made */
    if (r == 0)
        r = io_mkdirs(state, 0700, err);
    if (r == 0 && !realpath(state, control->state_directory))
        r = error_errno(err, -errno, "cannot use the state directory %s", state);
    static const char *const below[] = {"apps", "policies"};
    for (size_t i = 0; i < 2 && r == 0; i++) {
        if (snprintf(path, sizeof path, "%s/%s", control->state_directory, below[i]) >= (int)sizeof path)
            return error_set(err, -ENAMETOOLONG, "%s: path too long", state);
        r = io_mkdirs(path, 0700, err);
    }
    if (r < 0)
        return r;
    int n = options->socket_path ? snprintf(control->socket_path, PATH_MAX, "%s", options->socket_path)
                                 : snprintf(control->socket_path, PATH_MAX, "%.*s/%s", PATH_MAX - 32,
                                            control->state_directory, CONTROL_SOCKET_NAME);
    if (n > (int)CONTROL_SOCKET_PATH_MAX) /* the state directory was named by a link */
        return check_socket_path(control->state_directory, options->socket_path, err);
    return 0;
}

/* Whether the process that wrote its number into the lock file is gone. */
static bool holder_is_gone(int fd, char holder[32])
{
    ssize_t n = pread(fd, holder, 31, 0);
    holder[n > 0 ? n : 0] = '\0';
    holder[strcspn(holder, "\n")] = '\0';
    long pid = strtol(holder, NULL, 10);
    return pid > 0 && kill((pid_t)pid, 0) < 0 && errno == ESRCH;
}

/* One that was killed may have left a child that has not begun its program yet, and holds its descriptors until then: waited for. */
static int lock_state(int fd, char holder[32])
{
    for (unsigned waited_ms = 0;; waited_ms += LOCK_POLL_MS) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return 0;
        int r = -errno;
        if (r != -EWOULDBLOCK || !holder_is_gone(fd, holder) || waited_ms >= LOCK_WAIT_MS)
            return r;
        nanosleep(&(struct timespec){.tv_nsec = LOCK_POLL_MS * 1000000L}, NULL);
    }
}

static int take_lock(struct control *control, struct error *err)
{
    char path[PATH_MAX], holder[32] = "";
    if (snprintf(path, sizeof path, "%s/%s", control->state_directory, CONTROL_LOCK_NAME) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", control->state_directory);
    control->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (control->lock_fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    int r = lock_state(control->lock_fd, holder);
    if (r == -EWOULDBLOCK)
        return error_set(err, -EALREADY, "the state directory %s is in use by another `tidemark up` (pid %s)",
                         control->state_directory, holder[0] ? holder : "unknown");
    if (r < 0)
        return error_errno(err, r, "cannot lock %s", path);
    int n = snprintf(holder, sizeof holder, "%d\n", (int)getpid());
    if (ftruncate(control->lock_fd, 0) < 0 || pwrite(control->lock_fd, holder, (size_t)n, 0) != n)
        return error_errno(err, -errno, "cannot write %s", path);
    return 0;
}

/* Without FUSE there is nothing to warn of. */
static void probe_kernel(struct control *control)
{
    char directory[PATH_MAX + 16];
    bool resend = false;
    struct error err = ERROR_INIT;
    if (access("/dev/fuse", R_OK | W_OK) < 0)
        return;
    snprintf(directory, sizeof directory, "%s/probe", control->state_directory);
    if (fuse_probe_resend(directory, &resend, &err) < 0) {
        log_info(control->log, "cannot tell whether this kernel can send FUSE requests again: %s", err.message);
        return;
    }
    control->resend = resend ? CONTROL_RESEND_YES : CONTROL_RESEND_NO;
    if (!resend)
        log_warning(control->log, "%s", CONTROL_WARNING_RESEND);
}

static int init(struct control *control, const struct control_options *options, struct error *err)
{
    control->log = options->log;
    control->wait_for_users = options->wait_for_users;
    control->lock_fd = -1;
    control->started_realtime_ns = clock_realtime_ns(clock_system());
    pthread_mutex_init(&control->mutex, NULL);
    pthread_mutex_init(&control->apply_mutex, NULL);
    pthread_mutex_init(&control->store_mutex, NULL);
    thread_cond_init(&control->changed);
    control->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (control->wake_fd < 0)
        return error_errno(err, -errno, "cannot start");
    if (geteuid() != 0)
        return error_set(err, -EPERM,
                         "`tidemark up` must be run as root: it attaches and mounts volumes (you are uid %d)",
                         (int)geteuid());
    programs_find(&control->programs);
    int r = set_paths(control, options, err);
    if (r == 0)
        r = take_lock(control, err);
    if (r == 0)
        probe_kernel(control);
    return r;
}

static void release(struct control *control)
{
    operations_free(control);
    views_free(control);
    while (control->applications)
        application_unlist(control->applications);
    if (control->lock_fd >= 0)
        close(control->lock_fd);
    json_decref(control->left_out);
    if (control->wake_fd >= 0)
        close(control->wake_fd);
    pthread_cond_destroy(&control->changed);
    pthread_mutex_destroy(&control->mutex);
    pthread_mutex_destroy(&control->apply_mutex);
    pthread_mutex_destroy(&control->store_mutex);
    free(control);
}

/* The applications in the list; references are the caller's. Main thread. */
static size_t snapshot(struct control *control, struct application *list[CONTROL_APPLICATIONS_MAX])
{
    size_t count = 0;
    MUTEX_GUARD(guard, &control->mutex);
    for (struct application *a = control->applications; a && count < CONTROL_APPLICATIONS_MAX; a = a->next) {
        a->refs++;
        list[count++] = a;
    }
    return count;
}

/* With application_begin; ends it. */
static void bring_up(struct application *a)
{
    struct error err = ERROR_INIT;
    int r = application_start(a, &err);
    if (r < 0) {
        log_error(a->control->log, "%s", err.message);
        MUTEX_GUARD(guard, &a->mutex);
        a->failures = 1;
        a->retry_ns = clock_boottime_ns(clock_system()) + NS_PER_SECOND;
    } else
        log_info(a->control->log, "%s: protected", a->name);
    views_adopt(a);
    application_end(a);
    rewind_continue(a);
}

void application_bring_up(struct application *a)
{
    struct error err = ERROR_INIT;
    if (application_begin(a, "start", 0, &err) == 0)
        bring_up(a);
}

/* After `ready`: a unit that is ordered after ours (`systemctl start shop`) waits for that. */
static void start_workload(struct application *a)
{
    struct error err = ERROR_INIT;
    if (a->state != APPLICATION_RUNNING || application_begin(a, "start", 0, &err) < 0)
        return;
    if (!rewind_is_unfinished(a)) /* which starts it itself */
        lifecycle_start_marked(a);
    application_end(a);
}

static void for_all(struct control *control, void (*act)(struct application *a))
{
    struct application **list = calloc(CONTROL_APPLICATIONS_MAX, sizeof *list);
    size_t count = list ? snapshot(control, list) : 0;
    for (size_t i = 0; i < count; i++) {
        act(list[i]);
        application_unref(list[i]);
    }
    free(list);
}

/* ---- watch ---- */

static void look_at_views(struct control *control)
{
    MUTEX_GUARD(guard, &control->mutex);
    for (struct view *v = control->views; v; v = v->next) {
        if (v->closing || v->dead || !process_exists(&v->process) || !process_wait(&v->process, 0, NULL))
            continue;
        v->dead = true;
        log_warning(
            control->log,
            "%s: the process of the view %s has ended (%s/view.log); close it with `tidemark close %s`",
            v->application, v->id, v->directory, v->id);
    }
}

/* Fills descriptors of what may end. Views and applications that are being changed are left out. */
static nfds_t collect(struct control *control, struct pollfd *polled, nfds_t count)
{
    MUTEX_GUARD(guard, &control->mutex);
    for (struct application *a = control->applications; a && count < WATCHED_MAX; a = a->next) {
        MUTEX_GUARD(inner, &a->mutex);
        if (!a->busy[0] && process_exists(&a->process))
            polled[count++] = (struct pollfd){.fd = a->process.fd, .events = POLLIN};
    }
    for (struct view *v = control->views; v && count < WATCHED_MAX; v = v->next)
        if (!v->closing && !v->dead && process_exists(&v->process))
            polled[count++] = (struct pollfd){.fd = v->process.fd, .events = POLLIN};
    return count;
}

static void watch(struct control *control, int signal_fd)
{
    struct pollfd *polled = calloc(WATCHED_MAX, sizeof *polled);
    struct application **list = calloc(CONTROL_APPLICATIONS_MAX, sizeof *list);
    while (polled && list) {
        polled[0] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
        polled[1] = (struct pollfd){.fd = control->wake_fd, .events = POLLIN};
        poll(polled, collect(control, polled, 2), LOOK_INTERVAL_MS);
        struct signalfd_siginfo info;
        uint64_t count;
        if (read(control->wake_fd, &count, sizeof count) < 0 && errno != EAGAIN)
            break;
        if (read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
            log_info(control->log, "%s: stopping; once more forces it", strsignal((int)info.ssi_signo));
            break;
        }
        look_at_views(control);
        size_t applications = snapshot(control, list);
        for (size_t i = 0; i < applications; i++) {
            application_look_after(list[i]);
            application_unref(list[i]);
        }
    }
    free(polled);
    free(list);
}

/* ---- stop ---- */

static bool second_signal(int signal_fd)
{
    struct signalfd_siginfo info;
    return read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info;
}

static bool wait_for_workers(struct control *control, int signal_fd)
{
    uint64_t told_ns = 0;
    while (atomic_load(&control->workers)) {
        uint64_t now_ns = clock_boottime_ns(clock_system());
        if (second_signal(signal_fd))
            return true;
        if (now_ns - told_ns > 5 * NS_PER_SECOND)
            log_info(control->log, "waiting for what is under way");
        told_ns = now_ns - told_ns > 5 * NS_PER_SECOND ? now_ns : told_ns;
        struct pollfd polled[2] = {{.fd = signal_fd, .events = POLLIN},
                                   {.fd = control->wake_fd, .events = POLLIN}};
        poll(polled, 2, LOOK_INTERVAL_MS);
        uint64_t count;
        read(control->wake_fd, &count, sizeof count);
    }
    return false;
}

/* Volumes that are in use: the workload is stopped by its own commands, and started again with the next `up`.
 */
static int stop_workload(struct application *a, struct error *err)
{
    log_info(a->control->log, "%s: %s; running lifecycle.stop", a->name, err->message);
    *err = ERROR_INIT;
    lifecycle_mark_stopped(a);
    return lifecycle_run(a, "stop", &a->spec->stop, err);
}

static int stop_one(struct application *a, bool force, struct error *err)
{
    int r = application_begin(a, "stop", force ? 0 : CONTROL_STOP_TIMEOUT_MS, err);
    if (r < 0 && !force)
        return r;
    r = application_stop(a, force, err);
    if (r == -EBUSY && !force && a->spec->stop.count) {
        r = stop_workload(a, err);
        if (r == 0)
            r = application_stop(a, false, err);
    }
    if (r == 0)
        log_info(a->control->log, "%s: stopped", a->name);
    application_end(a);
    return r;
}

/* Somebody uses a volume: looks again after a while. True: forced. */
static bool wait_a_moment(const struct application *a, int signal_fd, struct error *err)
{
    struct pollfd polled = {.fd = signal_fd, .events = POLLIN};
    log_info(a->control->log, "%s: in use, waiting: %s", a->name, err->message);
    *err = ERROR_INIT;
    poll(&polled, 1, LOOK_INTERVAL_MS);
    return second_signal(signal_fd);
}

static int stop_all(struct control *control, int signal_fd, struct error *err)
{
    bool force = wait_for_workers(control, signal_fd);
    int result = 0;
    struct application **list = calloc(CONTROL_APPLICATIONS_MAX, sizeof *list);
    size_t count = list ? snapshot(control, list) : 0;
    for (size_t i = 0; i < count; i++) {
        struct error one = ERROR_INIT;
        force |= second_signal(signal_fd);
        int r = views_close_all(control, list[i]->name, force, &one);
        if (r == 0)
            r = stop_one(list[i], force, &one);
        while (r == -EBUSY && !force && control->wait_for_users && !(force = wait_a_moment(list[i], signal_fd, &one)))
            r = stop_one(list[i], false, &one);
        if (r < 0 && (force |= second_signal(signal_fd))) {
            one = ERROR_INIT;
            r = views_close_all(control, list[i]->name, true, &one);
            r = r < 0 ? r : stop_one(list[i], true, &one);
        }
        if (r < 0) {
            log_error(control->log, "%s: left running, the next `tidemark up` takes it over: %s",
                      list[i]->name, one.message);
            *err = one;
            result = r;
        }
        application_unref(list[i]);
    }
    free(list);
    return result;
}

static int block_signals(struct error *err)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &stop, NULL);
    int fd = signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? error_errno(err, -errno, "cannot watch signals") : fd;
}

static int serve(struct control *control, const struct control_options *options, int signal_fd,
                 struct error *err)
{
    const struct http_server_options server = {.socket_path = control->socket_path,
                                               .tcp_address = options->metrics_address,
                                               .threads = API_THREADS,
                                               .thread_per_connection = true,
                                               .log = control->log,
                                               .handler = api_handle,
                                               .context = control};
    stores_mount(control);
    int r = applications_load(control, err);
    struct application **loaded = calloc(CONTROL_APPLICATIONS_MAX, sizeof *loaded);
    if (r == 0 && !loaded)
        r = error_set(err, -ENOMEM, "out of memory");
    /* Before anybody can ask: what is not known to be attached and mounted yet is neither changed nor deleted. */
    size_t count = r == 0 ? snapshot(control, loaded) : 0;
    for (size_t i = 0; i < count && r == 0; i++)
        r = application_begin(loaded[i], "start", 0, err);
    if (r == 0)
        r = http_server_start(&server, &control->server, err);
    for (size_t i = 0; i < count; i++) {
        if (r == 0)
            bring_up(loaded[i]);
        application_unref(loaded[i]);
    }
    free(loaded);
    if (r < 0)
        return r;
    r = filling_start(control, err);
    if (r < 0)
        return r;
    if (options->ready)
        options->ready(options->context, control->socket_path);
    for_all(control, start_workload);
    log_info(control->log, "up: the API answers on %s", control->socket_path);
    watch(control, signal_fd);
    atomic_store(&control->stopping, true);
    pthread_mutex_lock(&control->mutex);
    pthread_cond_broadcast(&control->changed);
    pthread_mutex_unlock(&control->mutex);
    r = stop_all(control, signal_fd, err);
    http_server_stop(control->server);
    stores_unmount(control);
    return r;
}

int control_up(const struct control_options *options, struct error *err)
{
    struct control *control = calloc(1, sizeof *control);
    if (!control)
        return error_set(err, -ENOMEM, "out of memory");
    _cleanup_close_ int signal_fd = -1;
    int r = init(control, options, err);
    if (r == 0) {
        signal_fd = block_signals(err);
        r = signal_fd < 0 ? signal_fd : serve(control, options, signal_fd, err);
    }
    if (atomic_load(&control->workers)) /* forced: their threads still use it, the process ends anyway */
        return r;
    release(control);
    return r;
}
