/* SPDX-License-Identifier: Apache-2.0 */
/* Pins: the lock file is created and locked before the engine is asked, so that it finds it held. */
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control/control_internal.h"

/* An engine that starts removes locks that nobody holds: also one that was opened here and is not held yet. */
static int take_lock(const char *path, int *ret_fd)
{
    for (;;) {
        struct stat locked, there;
        _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || flock(fd, LOCK_EX) < 0 || fstat(fd, &locked) < 0)
            return -errno;
        if (stat(path, &there) == 0 && there.st_ino == locked.st_ino) {
            *ret_fd = take_fd(fd);
            return 0;
        }
    }
}

#define TRIES 3 /* of pins whose engine dies over them */

static int try_to_take(struct application *application, const char *id, const char *point, const char *how, int *ret_fd,
                       json_t **ret_answer, struct error *err)
{
    char path[PATH_MAX];
    int r = application_path(application, path, err, "journal/pins/%s.lock", id);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = -1;
    r = take_lock(path, &fd);
    if (r < 0)
        return error_errno(err, r, "cannot lock %s", path);
    _cleanup_json_ json_t *body = json_pack("{s:s, s:s}", "pin", id, "point", point);
    if (how) /* an engine from before it was there refuses the field */
        json_object_set_new(body, how, json_true());
    r = application_call(application, "POST", "/v1/pin", body, CONTROL_CALL_TIMEOUT_MS, ret_answer, err);
    if (r < 0) {
        unlink(path);
        return r;
    }
    *ret_fd = take_fd(fd);
    return 0;
}

int pin_take(struct application *application, const char *id, const char *point, const char *how, int *ret_fd,
             json_t **ret_answer, struct error *err)
{
    for (int tries = 1;; tries++) {
        int r = try_to_take(application, id, point, how, ret_fd, ret_answer, err);
        if (r != -ECONNRESET || tries == TRIES)
            return r;
        log_warning(application->control->log, "%s: %s; asking the next engine", application->name, err->message);
        pin_drop(application, id); /* it may have been made, without an answer */
        *err = ERROR_INIT;
    }
}

void pin_drop(struct application *application, const char *id)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *body = json_pack("{s:s}", "pin", id);
    /* An engine that is away drops pins without a lock when it starts. */
    if (application_call(application, "POST", "/v1/unpin", body, CONTROL_CALL_TIMEOUT_MS, NULL, &ignored) < 0)
        log_warning(application->control->log, "%s: cannot drop the pin %s: %s", application->name, id,
                    ignored.message);
    if (application_path(application, path, &ignored, "journal/pins/%s.lock", id) == 0)
        unlink(path);
}
