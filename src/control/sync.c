/* SPDX-License-Identifier: Apache-2.0 */
/* What was written to the volumes, mounted by us or by others, before a tag shall be in it: Linux keeps it in
 * memory for half a minute otherwise. The file systems are synchronized by a thread of their own, for which
 * nobody waits longer than CONTROL_SYNC_TIMEOUT_MS: a volume whose writes wait must not keep a tag from being
 * given. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/thread.h"
#include "control/control_internal.h"
#include "control/mounts.h"

struct sync {
    pthread_mutex_t mutex; /* guards what follows up to `count` */
    pthread_cond_t changed;
    unsigned refs;
    bool done;
    size_t count;
    struct {
        char device[LOOP_DEVICE_BYTES], mount_path[APP_PATH_LENGTH_MAX + 1]; /* "": not mounted by us */
    } volumes[APP_VOLUMES_MAX];
};

static void unref(struct sync *s)
{
    pthread_mutex_lock(&s->mutex);
    bool last = --s->refs == 0;
    pthread_mutex_unlock(&s->mutex);
    if (!last)
        return;
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

/* A device that we did not mount may be mounted by its user, or be written through its own cache. */
static void sync_one(const char *device, const char *mount_path)
{
    char source[256], found[PATH_MAX];
    if (!mount_path[0]) {
        _cleanup_close_ int block = open(device, O_RDONLY | O_CLOEXEC);
        if (mounts_target(device, found, sizeof found) == 0)
            mount_path = found;
        else if (block >= 0)
            fsync(block);
    }
    _cleanup_close_ int fd = open(mount_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Not what lies below the mount point, should it have been unmounted meanwhile. */
    if (fd >= 0 && mounts_source(mount_path, source, sizeof source) == 0 && strcmp(source, device) == 0)
        syncfs(fd);
}

static void *run(void *context)
{
    struct sync *s = context;
    for (size_t i = 0; i < s->count; i++)
        sync_one(s->volumes[i].device, s->volumes[i].mount_path);
    pthread_mutex_lock(&s->mutex);
    s->done = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    unref(s);
    return NULL;
}

static struct sync *new_sync(struct application *a)
{
    struct sync *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    pthread_mutex_init(&s->mutex, NULL);
    thread_cond_init(&s->changed);
    s->refs = 1;
    MUTEX_GUARD(guard, &a->mutex);
    for (size_t i = 0; i < a->spec->volume_count; i++) {
        if (!a->volumes[i].device[0])
            continue;
        snprintf(s->volumes[s->count].device, LOOP_DEVICE_BYTES, "%s", a->volumes[i].device);
        snprintf(s->volumes[s->count++].mount_path, APP_PATH_LENGTH_MAX + 1, "%s",
                 a->volumes[i].mounted ? a->spec->volumes[i].mount_path : "");
    }
    return s;
}

bool application_sync(struct application *application)
{
    struct error ignored = ERROR_INIT;
    struct timespec until;
    pthread_t thread;
    int r = 0;
    struct sync *s = new_sync(application);
    if (!s)
        return false;
    if (!s->count) {
        unref(s);
        return true;
    }
    s->refs = 2;
    if (thread_start(&thread, "sync", run, s, &ignored) < 0) {
        s->refs = 1;
        unref(s);
        return false;
    }
    pthread_detach(thread);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CONTROL_SYNC_TIMEOUT_MS / 1000;
    pthread_mutex_lock(&s->mutex);
    while (!s->done && r == 0)
        r = pthread_cond_timedwait(&s->changed, &s->mutex, &until);
    bool done = s->done;
    pthread_mutex_unlock(&s->mutex);
    unref(s);
    return done;
}
