/* SPDX-License-Identifier: Apache-2.0 */
/* Loop devices, file systems and mounts of an application's volumes. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "control/control_internal.h"
#include "control/mounts.h"
#include "export/fuse_mount.h"
#include "export/ublk.h"

#define ENGINE_END_TIMEOUT_MS 5000
#define CLAIM_WAIT_MS 1000u /* of probes by others, udev's say */
#define CLAIM_POLL_MS 20u

static int fuse_file(const struct application *application, size_t i, char ret[PATH_MAX], struct error *err)
{
    return application_path(application, ret, err, "fuse/%s/vol", application->spec->volumes[i].name);
}

static int ublk_link(const struct application *application, size_t i, char ret[PATH_MAX], struct error *err)
{
    return application_path(application, ret, err, "ublk/%s", application->spec->volumes[i].name);
}

static void set_device(struct application *application, size_t i, const char *device)
{
    MUTEX_GUARD(guard, &application->mutex);
    snprintf(application->volumes[i].device, LOOP_DEVICE_BYTES, "%s", device);
}

static void set_mounted(struct application *application, size_t i, bool mounted)
{
    MUTEX_GUARD(guard, &application->mutex);
    application->volumes[i].mounted = mounted;
}

static void set_fs_type(struct application *application, size_t i, const char *type)
{
    MUTEX_GUARD(guard, &application->mutex);
    snprintf(application->volumes[i].fs_type, sizeof application->volumes[i].fs_type, "%s", type);
}

static void unmount_dead(struct application *application, const char *device)
{
    struct error err = ERROR_INIT;
    char target[PATH_MAX];
    while (mounts_target(device, target, sizeof target) == 0 && mounts_unmount(target, true, &err) == 0)
        log_warning(application->control->log, "%s: detached %s, whose device was dead", application->name, target);
}

/* Whoever uses several of them lets go of all: none is waited for after `deadline_ns` (boottime). */
static void clear_fuse(struct application *application, size_t i, uint64_t deadline_ns)
{
    struct error err = ERROR_INIT;
    char path[PATH_MAX], device[LOOP_DEVICE_BYTES];
    if (fuse_file(application, i, path, &err) < 0)
        return;
    if (loop_find(path, device, &err) == 0) {
        uint64_t now_ns = clock_boottime_ns(clock_system());
        unmount_dead(application, device);
        if (loop_detach(device, now_ns < deadline_ns ? (unsigned)((deadline_ns - now_ns) / NS_PER_MS) : 0, true, &err) < 0)
            log_warning(application->control->log, "%s: %s", application->name, err.message);
    }
    *strrchr(path, '/') = '\0';
    struct stat st;
    if ((stat(path, &st) == 0 || errno == ENOTCONN) && fuse_mount_remove(path, &err) < 0)
        log_warning(application->control->log, "%s: %s", application->name, err.message);
}

static void clear_ublk(struct application *application, size_t i)
{
    struct error err = ERROR_INIT;
    char path[PATH_MAX], device[UBLK_DEVICE_BYTES];
    if (ublk_link(application, i, path, &err) < 0)
        return;
    bool found = ublk_find(path, device) == 0;
    int r = ublk_stop(path, &err); /* else an unmount waits for a server that does not come */
    if (r == 0 && found)
        unmount_dead(application, device);
    if (r < 0 || ublk_remove(path, &err) < 0)
        log_warning(application->control->log, "%s: %s", application->name, err.message);
    if (application_path(application, path, &err, "ublk/" UBLK_SERVED) == 0)
        unlink(path);
}

void application_clear_remains(struct application *application)
{
    struct error err = ERROR_INIT;
    struct process engine = PROCESS_NONE;
    char path[PATH_MAX], word[PATH_MAX];
    /* An engine whose holder is gone holds the journal's lock. */
    if (application_path(application, path, &err, "engine.sock.pid") == 0 &&
        application_path(application, word, &err, "engine.json") == 0 &&
        process_adopt(path, word, &engine) == 0)
        process_stop(&engine, ENGINE_END_TIMEOUT_MS);
    const uint64_t deadline_ns = clock_boottime_ns(clock_system()) + LOOP_DETACH_TIMEOUT_MS * NS_PER_MS;
    for (size_t n = application->spec->volume_count; n-- > 0;) {
        if (application->spec->export == APP_EXPORT_NBD)
            continue;
        if (application->spec->export == APP_EXPORT_UBLK)
            clear_ublk(application, n);
        else
            clear_fuse(application, n, deadline_ns);
        set_device(application, n, "");
        set_mounted(application, n, false);
    }
}

int application_attach(struct application *application, struct error *err)
{
    char path[PATH_MAX], device[LOOP_DEVICE_BYTES];
    if (application->spec->export == APP_EXPORT_NBD)
        return 0;
    for (size_t i = 0; i < application->spec->volume_count; i++) {
        struct error ignored = ERROR_INIT;
        bool ublk = application->spec->export == APP_EXPORT_UBLK;
        int r = (ublk ? ublk_link : fuse_file)(application, i, path, err);
        if (r == 0 && ublk && (r = ublk_find(path, device)) < 0)
            error_set(err, r, "volume %s has no ublk device (%s)", application->spec->volumes[i].name, path);
        /* One that was there may have been left in the middle of a detachment. */
        if (r == 0 && !ublk && (loop_find(path, device, &ignored) < 0 || loop_keep(device, &ignored) == -ENXIO))
            r = loop_attach_blocks(path, false,
                                   app_volume_is_adopted(&application->spec->volumes[i]) ? LOOP_BLOCK_BYTES_ADOPTED
                                                                                         : LOOP_BLOCK_BYTES,
                                   device, err);
        if (r < 0)
            return r;
        set_device(application, i, device);
    }
    return 0;
}

/* Whether somebody has a claim on the device: what is mounted from it, in any mount namespace. */
static bool is_claimed(const char *device)
{
    _cleanup_close_ int fd = open(device, O_RDONLY | O_EXCL | O_CLOEXEC);
    return fd < 0 && errno == EBUSY;
}

int application_check_unclaimed(const struct application *application, struct error *err)
{
    for (size_t i = 0; i < application->spec->volume_count; i++) {
        const char *device = application->volumes[i].device;
        for (unsigned waited_ms = 0; *device && is_claimed(device); waited_ms += CLAIM_POLL_MS) {
            if (waited_ms >= CLAIM_WAIT_MS)
                return error_set(err, -EBUSY, "volume %s (%s) is mounted by somebody else (findmnt %s, also in other mount "
                                 "namespaces); unmount it first",
                                 application->spec->volumes[i].name, device, device);
            nanosleep(&(struct timespec){.tv_nsec = CLAIM_POLL_MS * 1000000L}, NULL);
        }
    }
    return 0;
}

int application_detach(struct application *application, bool force, struct error *err)
{
    /* Before anything is changed: other volumes would be detached already. */
    int claimed = force ? 0 : application_check_unclaimed(application, err);
    if (claimed < 0)
        return claimed;
    for (size_t n = application->spec->volume_count; n-- > 0;) {
        const char *device = application->volumes[n].device;
        if (!device[0])
            continue;
        bool ublk = application->spec->export == APP_EXPORT_UBLK; /* the engine removes it */
        int r = ublk ? 0 : loop_detach(device, force ? 1000 : LOOP_DETACH_TIMEOUT_MS, force, err);
        if (r < 0 && !force)
            return r;
        set_device(application, n, "");
    }
    return 0;
}

int application_backing(const struct application *application, size_t i, char ret[PATH_MAX],
                        struct error *err)
{
    const struct app_volume *v = &application->spec->volumes[i];
    if (!v->source)
        return application_path(application, ret, err, "backing/%s.img", v->name);
    snprintf(ret, PATH_MAX, "%s", v->source);
    return 0;
}

/* Whether nothing was ever written to the volume: its sparse backing file has no blocks. */
static bool is_untouched(const struct application *application, size_t i)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    struct stat st;
    return application_backing(application, i, path, &ignored) == 0 && stat(path, &st) == 0 &&
           S_ISREG(st.st_mode) && st.st_blocks == 0;
}

/* U4: a file system is made only where there is no signature of anything, and never on what was adopted. */
static int make_file_system(struct application *application, size_t i, char found[MOUNTS_TYPE_BYTES],
                            struct error *err)
{
    const struct app_volume *volume = &application->spec->volumes[i];
    const char *device = application->volumes[i].device, *type = app_fs_type_name(volume->fs_type);
    int r = mounts_probe(device, found, err);
    if (r < 0 || strcmp(found, type) == 0 || (found[0] && volume->fs_type == APP_FS_FOUND))
        return r;
    if (app_volume_is_adopted(volume) && !found[0])
        return error_set(
            err, -EINVAL,
            "volume %s holds no file system that can be recognized; it was not made new, so none is made on it: "
            "leave out mountPath",
            volume->name);
    if (found[0])
        return error_set(err, -EEXIST,
                         "volume %s holds %s, but fsType is %s: nothing was changed; set fsType to what is "
                         "there, or leave out "
                         "mountPath and empty the volume (wipefs) if nobody needs it",
                         volume->name, found, type);
    log_info(application->control->log, "%s: making %s on volume %s (%s)", application->name, type,
             volume->name, device);
    snprintf(found, MOUNTS_TYPE_BYTES, "%s", type);
    return mounts_make(device, type, is_untouched(application, i), err);
}

static int mount_one(struct application *application, size_t i, struct error *err)
{
    const struct app_volume *volume = &application->spec->volumes[i];
    const char *device = application->volumes[i].device;
    char source[256], type[MOUNTS_TYPE_BYTES] = "";
    bool created = false;
    if (mounts_source(volume->mount_path, source, sizeof source) == 0 && strcmp(source, device) == 0) {
        struct error ignored = ERROR_INIT;
        if (mounts_probe(device, type, &ignored) == 0)
            set_fs_type(application, i, type);
        set_mounted(application, i, true); /* taken over */
        return 0;
    }
    int r = mounts_prepare(volume->mount_path, &created, err);
    if (r == 0)
        r = make_file_system(application, i, type, err);
    if (r == 0)
        r = mounts_mount(device, volume->mount_path, type, app_volume_is_adopted(volume), err);
    if (r < 0) {
        if (created)
            rmdir(volume->mount_path);
        return error_context(err, "volume %s", volume->name);
    }
    set_fs_type(application, i, type);
    set_mounted(application, i, true);
    return 0;
}

/* The volumes with a mount path so that one below another comes after it. */
static size_t mount_order(const struct app_spec *spec, size_t order[APP_VOLUMES_MAX])
{
    size_t count = 0;
    for (size_t i = 0; i < spec->volume_count; i++) {
        if (!spec->volumes[i].mount_path)
            continue;
        size_t at = count++;
        for (; at > 0 && strcmp(spec->volumes[order[at - 1]].mount_path, spec->volumes[i].mount_path) > 0;
             at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    return count;
}

int application_mount(struct application *application, struct error *err)
{
    size_t order[APP_VOLUMES_MAX], count = mount_order(application->spec, order);
    /* A loop device that somebody has detached goes away when it is unmounted, and its number may be another file's by now. */
    int r = application_attach(application, err);
    if (r < 0)
        return r;
    for (size_t k = 0; k < count; k++) {
        r = mount_one(application, order[k], err);
        if (r < 0)
            return r;
    }
    return 0;
}

int application_unmount(struct application *application, bool force, struct error *err)
{
    size_t order[APP_VOLUMES_MAX], count = mount_order(application->spec, order);
    while (count-- > 0) {
        size_t i = order[count];
        if (!application->volumes[i].mounted)
            continue;
        int r = mounts_unmount(application->spec->volumes[i].mount_path, force, err);
        if (r < 0) {
            struct error second = ERROR_INIT;
            if (application_mount(application, &second) < 0)
                log_error(application->control->log, "%s: %s", application->name, second.message);
            return r;
        }
        set_mounted(application, i, false);
    }
    return 0;
}

/* ---- growing ---- */

/* The FUSE file has the size at the next question for it, then the loop device; what is mounted follows. */
static int grow_one(struct application *application, size_t i, struct error *err)
{
    const struct app_volume *volume = &application->spec->volumes[i];
    const char *device = application->volumes[i].device;
    char path[PATH_MAX];
    bool larger = false;
    int r = fuse_file(application, i, path, err);
    if (r == 0)
        r = loop_grow(device, path, volume->size_bytes, &larger, err);
    if (r == 0 && application->volumes[i].mounted)
        r = mounts_grow(device, volume->mount_path, larger, err);
    return r < 0 ? error_context(err, "volume %s", volume->name) : 0;
}

/* A ublk device keeps the size that it was made with (before Linux 6.16); a mounted file system takes the size of a device that
 * was made anew since. */
static int grow_ublk(struct application *application, size_t i, struct error *err)
{
    const struct app_volume *volume = &application->spec->volumes[i];
    const char *device = application->volumes[i].device;
    uint64_t bytes = 0;
    _cleanup_close_ int fd = *device ? open(device, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0 && ioctl(fd, BLKGETSIZE64, &bytes) == 0 && bytes < volume->size_bytes)
        return error_set(err, -EOPNOTSUPP,
                         "volume %s has grown, but its ublk device %s keeps its size until it is made anew: stop the workload and "
                         "restart `tidemark up` at a good moment",
                         volume->name, device);
    int r = fd >= 0 && application->volumes[i].mounted ? mounts_grow(device, volume->mount_path, false, err) : 0;
    return r < 0 ? error_context(err, "volume %s", volume->name) : 0;
}

int application_grow(struct application *application, struct error *err)
{
    int first = 0;
    for (size_t i = 0; i < application->spec->volume_count; i++) {
        struct error why = ERROR_INIT;
        int r = 0;
        if (application->spec->export == APP_EXPORT_FUSE && application->volumes[i].device[0])
            r = grow_one(application, i, &why);
        else if (application->spec->export == APP_EXPORT_UBLK)
            r = grow_ublk(application, i, &why);
        if (r < 0 && first == 0) {
            first = r;
            *err = why;
        } else if (r < 0)
            log_error(application->control->log, "%s: %s", application->name, why.message);
    }
    return first;
}

int application_configure(struct application *application, struct error *err)
{
    _cleanup_json_ json_t *answer = NULL, *body = json_object();
    return application_call(application, "POST", "/v1/configure", body, CONTROL_REWIND_TIMEOUT_MS, &answer,
                            err);
}
