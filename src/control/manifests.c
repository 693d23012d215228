/* SPDX-License-Identifier: Apache-2.0 */
/* Journals a directory of manifests: a change to a file becomes an object of the journal at once (inotify).
 *
 *   M1  at the start, after an overflow, a pause, or a change of directories, everything is compared with the
 * journal; what was made and was not closed by a writer (link(2)) is read once nothing has happened for a second M2  watches are set before the files are read: no change falls between M3  only regular files
 * *.yaml, *.yml, *.json of at most 1 MiB UTF-8 without hidden components; links are not followed
 *
 * What cannot be posted because the engine is away is tried again each second. */
#include "control/manifests_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "base/thread.h"
#include "control/control_internal.h"
#include "journal/journal.h"
#include "lib/http_client.h"

#define RETRY_MS 1000
#define WATCHED                                                                                              \
    (IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_CREATE | IN_ONLYDIR | IN_EXCL_UNLINK)
#define WATCHED_ROOT (IN_DELETE_SELF | IN_MOVE_SELF)

struct manifests {
    const struct control *control;
    char directory[APP_PATH_LENGTH_MAX + 1];
    char socket[PATH_MAX];
    pthread_t thread;
    int wake_fd;
    pthread_mutex_t mutex; /* guards what follows up to `problem` */
    pthread_cond_t idle_changed;
    bool stop, paused, idle;
    char problem[256];
    int inotify_fd;  /* the thread's from here on */
    json_t *watches; /* "wd" -> directory relative to ours */
    json_t *known;   /* name -> content as the journal has it */
    json_t *made;    /* set of names: they were made, and nobody has closed them yet */
    bool stale;      /* compare everything */
};

static void set_problem(struct manifests *m, const char *text)
{
    MUTEX_GUARD(guard, &m->mutex);
    if (text[0] && strcmp(text, m->problem) != 0)
        log_warning(m->control->log, "manifests %s: %s", m->directory, text);
    snprintf(m->problem, sizeof m->problem, "%s", text);
}

void manifests_alarm(struct manifests *m, char *text, size_t size)
{
    text[0] = '\0';
    if (!m)
        return;
    MUTEX_GUARD(guard, &m->mutex);
    if (m->problem[0])
        snprintf(text, size, "manifests %s: %s", m->directory, m->problem);
}

/* Refused for good, so that trying again is of no use. */
static bool is_refusal(int code)
{
    return code == -EINVAL || code == -ENAMETOOLONG || code == -EFBIG || code == -E2BIG;
}

/* One object; `content` NULL: deleted. 0 or a negative errno that is worth another try. */
static int post(struct manifests *m, const char *name, const json_t *content, char *problem,
                size_t problem_size)
{
    struct error err = ERROR_INIT;
    if (content ? json_equal(json_object_get(m->known, name), content) : !json_object_get(m->known, name))
        return 0;
    _cleanup_json_ json_t *body = json_pack("{s:s, s:o}", "name", name, "content",
                                            content ? json_copy((json_t *)(uintptr_t)content) : json_null());
    int r = http_client_call(m->socket, "POST", "/v1/object", body, CONTROL_CALL_TIMEOUT_MS, NULL, &err);
    if (r < 0) {
        snprintf(problem, problem_size, "cannot journal %.80s: %.120s", name, err.message);
        return is_refusal(r) ? 0 : r;
    }
    if (content)
        json_object_set(m->known, name, (json_t *)(uintptr_t)content);
    else
        json_object_del(m->known, name);
    return 0;
}

/* What the journal had of them is damaged: they are journaled once more, all of them, so that later points have them. */
static int begin_anew(struct manifests *m, struct error *err)
{
    _cleanup_json_ json_t *body = json_pack("{s:s, s:n}", "name", JOURNAL_EVERY_OBJECT, "content");
    log_error(m->control->log, "manifests %s: %s; all of them are journaled again", m->directory, err->message);
    return http_client_call(m->socket, "POST", "/v1/object", body, CONTROL_CALL_TIMEOUT_MS, NULL, err);
}

static int load_known(struct manifests *m, struct error *err)
{
    _cleanup_json_ json_t *answer = NULL;
    int r = http_client_call(m->socket, "GET", "/v1/objects?point=latest", NULL, CONTROL_CALL_TIMEOUT_MS,
                             &answer, err);
    if (r == -EBADMSG)
        r = begin_anew(m, err);
    if (r < 0)
        return r;
    json_decref(m->known);
    m->known = json_object();
    if (!answer) /* not known any more */
        return 0;
    size_t i;
    json_t *object;
    json_array_foreach(json_object_get(answer, "objects"), i, object)
    {
        const char *name = json_string_value(json_object_get(object, "name"));
        if (name && manifests_is_name(name))
            json_object_set(m->known, name, json_object_get(object, "content"));
    }
    return 0;
}

static void watch_below(struct manifests *m, const char *relative, unsigned depth)
{
    char path[PATH_MAX], key[16];
    snprintf(path, sizeof path, "%s%s%s", m->directory, relative[0] ? "/" : "", relative);
    int wd = inotify_add_watch(m->inotify_fd, path, WATCHED | (depth ? 0 : WATCHED_ROOT));
    if (wd < 0)
        return;
    snprintf(key, sizeof key, "%d", wd);
    json_object_set_new(m->watches, key, json_string(relative));
    _cleanup_closedir_ DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && depth < MANIFESTS_DEPTH_MAX && (entry = readdir(dir));) {
        if (entry->d_name[0] == '.' || !manifests_is_directory(dir, entry))
            continue;
        char below[PATH_MAX];
        if (snprintf(below, sizeof below, "%s%s%s", relative, relative[0] ? "/" : "", entry->d_name) <
            (int)sizeof below)
            watch_below(m, below, depth + 1);
    }
}

/* M1, M2. 0, or a negative errno when it is to be tried again. */
static int compare_all(struct manifests *m)
{
    struct error err = ERROR_INIT;
    char problem[256] = "";
    _cleanup_json_ json_t *files = NULL;
    if (m->inotify_fd >= 0)
        close(m->inotify_fd);
    json_decref(m->watches);
    m->watches = json_object();
    json_object_clear(m->made);
    m->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (m->inotify_fd >= 0)
        watch_below(m, "", 0);
    int r = manifests_read(m->directory, &files, problem, sizeof problem, &err);
    if (r == 0)
        r = load_known(m, &err);
    if (r < 0) {
        set_problem(m, err.message);
        return r;
    }
    const char *name;
    json_t *content;
    void *next;
    json_object_foreach(files, name, content) if (r == 0) r = post(m, name, content, problem, sizeof problem);
    json_object_foreach_safe(m->known, next, name, content) if (r == 0 && !json_object_get(files, name)) r =
        post(m, name, NULL, problem, sizeof problem);
    set_problem(m, problem);
    return r;
}

static int file_changed(struct manifests *m, const char *name)
{
    char problem[256] = "";
    _cleanup_json_ json_t *content = NULL;
    int r = manifests_read_one(m->directory, name, &content, problem, sizeof problem);
    if (r == -ENOENT)
        r = post(m, name, NULL, problem, sizeof problem);
    else if (r == 0)
        r = post(m, name, content, problem, sizeof problem);
    else
        r = 0; /* not one of ours, or unreadable: told */
    if (problem[0])
        set_problem(m, problem);
    return r;
}

/* One event: 0, or negative when everything is to be compared. */
static int handle_event(struct manifests *m, const struct inotify_event *event)
{
    char key[16], name[PATH_MAX];
    if (event->mask & (IN_Q_OVERFLOW | IN_ISDIR | IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT))
        return -ESTALE;
    snprintf(key, sizeof key, "%d", event->wd);
    const char *relative = json_string_value(json_object_get(m->watches, key));
    if (!relative || !event->len)
        return 0;
    if (snprintf(name, sizeof name, "%s%s%s", relative, relative[0] ? "/" : "", event->name) >=
            (int)sizeof name ||
        !manifests_is_name(name))
        return 0;
    if (event->mask & IN_CREATE) /* mostly it is being written, and will be closed */
        return json_object_set_new(m->made, name, json_true()) < 0 ? -ESTALE : 0;
    json_object_del(m->made, name);
    return file_changed(m, name);
}

/* Then it will be closed. The kernel gives no lease on such a file; where there are no leases it is read as it is. */
static bool is_being_written(const struct manifests *m, const char *name)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", m->directory, name) >= (int)sizeof path)
        return false;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fcntl(fd, F_SETSIG, SIGURG) < 0) /* a signal that does nothing, should somebody want the lease back */
        return false;
    return fcntl(fd, F_SETLEASE, F_RDLCK) < 0 && errno == EAGAIN;
}

static void read_made(struct manifests *m)
{
    const char *name;
    json_t *ignored;
    json_object_foreach(m->made, name, ignored)
        m->stale |= !is_being_written(m, name) && file_changed(m, name) < 0;
    json_object_clear(m->made);
}

static void handle_events(struct manifests *m)
{
    char buffer[16384] __attribute__((aligned(__alignof__(struct inotify_event))));
    ssize_t n;
    while (!m->stale && (n = read(m->inotify_fd, buffer, sizeof buffer)) > 0)
        for (char *at = buffer; at < buffer + n && !m->stale;) {
            const struct inotify_event *event = (const struct inotify_event *)(const void *)at;
            m->stale = handle_event(m, event) < 0;
            at += sizeof *event + event->len;
        }
}

/* Waits while paused. False when it is to end. */
static bool may_work(struct manifests *m)
{
    MUTEX_GUARD(guard, &m->mutex);
    while (m->paused && !m->stop) {
        m->idle = true;
        m->stale = true;
        pthread_cond_broadcast(&m->idle_changed);
        pthread_cond_wait(&m->idle_changed, &m->mutex);
    }
    m->idle = false;
    return !m->stop;
}

static void *run(void *context)
{
    struct manifests *m = context;
    while (may_work(m)) {
        bool retry = m->stale && compare_all(m) < 0;
        m->stale = retry;
        struct pollfd polled[2] = {{.fd = m->wake_fd, .events = POLLIN},
                                   {.fd = retry ? -1 : m->inotify_fd, .events = POLLIN}};
        int ready = poll(polled, 2, retry || m->inotify_fd < 0 || json_object_size(m->made) ? RETRY_MS : -1);
        uint64_t count;
        if (ready == 0)
            read_made(m);
        if (polled[0].revents)
            read(m->wake_fd, &count, sizeof count);
        else if (polled[1].revents)
            handle_events(m);
        if (m->inotify_fd < 0)
            m->stale = true;
    }
    return NULL;
}

static void wake(struct manifests *m)
{
    uint64_t one = 1;
    write(m->wake_fd, &one, sizeof one);
}

static void release(struct manifests *m)
{
    if (m->inotify_fd >= 0)
        close(m->inotify_fd);
    if (m->wake_fd >= 0)
        close(m->wake_fd);
    json_decref(m->watches);
    json_decref(m->known);
    json_decref(m->made);
    pthread_cond_destroy(&m->idle_changed);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

int manifests_start(const struct control *control, const char *directory, const char *engine_socket,
                    struct manifests **ret, struct error *err)
{
    struct manifests *m = calloc(1, sizeof *m);
    if (!m)
        return error_set(err, -ENOMEM, "out of memory");
    m->control = control;
    m->inotify_fd = -1;
    m->stale = true;
    snprintf(m->directory, sizeof m->directory, "%s", directory);
    snprintf(m->socket, sizeof m->socket, "%s", engine_socket);
    pthread_mutex_init(&m->mutex, NULL);
    pthread_cond_init(&m->idle_changed, NULL);
    m->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    m->known = json_object();
    m->made = json_object();
    int r = m->wake_fd < 0 ? error_errno(err, -errno, "cannot watch %s", directory)
                           : thread_start(&m->thread, "manifests", run, m, err);
    if (r < 0) {
        release(m);
        return r;
    }
    *ret = m;
    return 0;
}

void manifests_stop(struct manifests *m)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->mutex);
    m->stop = true;
    pthread_cond_broadcast(&m->idle_changed);
    pthread_mutex_unlock(&m->mutex);
    wake(m);
    pthread_join(m->thread, NULL);
    release(m);
}

void manifests_pause(struct manifests *m)
{
    if (!m)
        return;
    MUTEX_GUARD(guard, &m->mutex);
    m->paused = true;
    wake(m);
    while (!m->idle)
        pthread_cond_wait(&m->idle_changed, &m->mutex);
}

void manifests_resume(struct manifests *m)
{
    if (!m)
        return;
    MUTEX_GUARD(guard, &m->mutex);
    m->paused = false;
    pthread_cond_broadcast(&m->idle_changed);
}
