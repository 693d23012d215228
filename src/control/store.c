/* SPDX-License-Identifier: Apache-2.0 */
/* Stores: an application's directory (journal, base, configuration) as the root of a file system of its own,
 * on a block device that can be opened on another machine next. Opening mounts it, in this process' mount
 * namespace alone, and starts the application that it holds; closing stops that and unmounts.
 *
 * Invariants:
 *   S1  mkfs runs only on a device without any signature; what is mounted as a store carries the mark of this
 * application S2  a store is mounted on one machine at a time: the file system has multi-mount protection, so
 * that after a crash the next mount waits until nobody else writes to it, and is refused when somebody does
 *   S3  once closing has returned the engine has closed its journal and nothing of the store is mounted
 *
 * What is open is written down before it is mounted (<state>/stores/NAME.json), and mounted again by the next
 * process if the device node is still there: device nodes go with a reboot, and then whoever attaches devices
 * has to open it again. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "control/apply_internal.h"
#include "control/mounts.h"

#define MAKE_TIMEOUT_MS 300000
#define MARK_NAME ".tidemark-store" /* holds the application's name */
#define CLOSE_WAIT_MS 30000u
#define SUFFIX ".json"

struct store {
    char name[APP_NAME_LENGTH_MAX + 1];
    char record[PATH_MAX], directory[PATH_MAX]; /* <state>/stores/NAME.json, <state>/apps/NAME */
    char device[PATH_MAX];
};

static int store_paths(const struct control *control, const char *name, struct store *ret, struct error *err)
{
    int r = app_check_name(name, err);
    if (r < 0)
        return r;
    snprintf(ret->name, sizeof ret->name, "%s", name);
    if (snprintf(ret->record, PATH_MAX, "%s/stores/%s" SUFFIX, control->state_directory, name) >= PATH_MAX ||
        snprintf(ret->directory, PATH_MAX, "%s/apps/%s", control->state_directory, name) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", control->state_directory);
    return 0;
}

bool store_is_open(const struct control *control, const char *name)
{
    struct store s;
    struct error ignored = ERROR_INIT;
    return store_paths(control, name, &s, &ignored) == 0 && access(s.record, F_OK) == 0;
}

int store_refuse(const struct control *control, const char *name, const char *what, struct error *err)
{
    return store_is_open(control, name) ? error_set(err, -EBUSY,
                                                    "%s cannot be %s: it lives on a device of its own (a "
                                                    "volume with backing class); detach it from this node, "
                                                    "by deleting the pods that use it",
                                                    name, what)
                                        : 0;
}

/* ---- the file system ---- */

static int make(const struct control *control, const struct store *s, struct error *err)
{
    /* Few inodes, nothing reserved: it holds segments. The machine that has it writes a number to it every
     * few seconds. */
    const char *const argv[] = {"mkfs.ext4",
                                "-q",
                                "-F",
                                "-O",
                                "mmp",
                                "-m",
                                "0",
                                "-T",
                                "largefile",
                                "-L",
                                "tidemark",
                                "-E",
                                "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
                                s->device,
                                NULL};
    const struct process_options options = {.argv = argv, .inherit_fd = -1};
    struct process_result result;
    char text[PROCESS_TAIL_BYTES + 64];
    log_info(control->log, "%s: making the journal's file system on %s", s->name, s->device);
    int r = process_run(&options, MAKE_TIMEOUT_MS, &result, err);
    if (r == 0 && result.exit_status != 0)
        r = error_set(err, -EIO, "mkfs.ext4: %s", process_describe(&result, text, sizeof text));
    return r < 0 ? error_context(err, "cannot make the journal's file system on %s", s->device) : 0;
}

/* S1. */
static int check_mark(const struct store *s, bool may_mark, struct error *err)
{
    char path[PATH_MAX];
    size_t length = 0;
    _cleanup_free_ char *text = NULL;
    if (snprintf(path, sizeof path, "%s/" MARK_NAME, s->directory) >= (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", s->directory);
    if (access(path, F_OK) == 0) {
        int r = io_read_file(path, APP_NAME_LENGTH_MAX + 1, &text, &length, err);
        if (r == 0 && strcmp(text, s->name) != 0)
            r = error_set(err, -EEXIST, "%s holds the journal of %.100s, not of %s: nothing was changed",
                          s->device, text, s->name);
        return r;
    }
    _cleanup_closedir_ DIR *dir = opendir(s->directory);
    if (!dir)
        return error_errno(err, -errno, "cannot read %s", s->directory);
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strcmp(entry->d_name, "lost+found") != 0)
            return error_set(
                err, -EEXIST,
                "%s holds files of somebody else (%s): nothing was changed; give %s another device",
                s->device, entry->d_name, s->name);
    if (!may_mark)
        return error_set(err, -ENODATA, "%s holds no journal of %s", s->device, s->name);
    return io_replace_file(path, s->name, strlen(s->name), 0600, err);
}

/* S2. */
static int mount_it(const struct store *s, struct error *err)
{
    if (mount(s->device, s->directory, "ext4", MS_NOATIME | MS_NOSUID | MS_NODEV | MS_NOEXEC,
              "errors=remount-ro") == 0)
        return 0;
    int r = -errno;
    if (r == -EBUSY)
        return error_set(err, -EBUSY,
                         "the journal of %s (%s) is open on another node, or was until just now: it is not "
                         "opened here before that "
                         "node has let go of it",
                         s->name, s->device);
    return error_errno(
        err, r,
        "cannot mount the journal of %s (%s): the kernel's log tells more; `fsck.ext4 -n %s` checks it",
        s->name, s->device, s->device);
}

/* 1: this very device is mounted there; 0: nothing is; -EBUSY: another. */
static int look(const struct store *s, struct error *err)
{
    char source[256];
    struct stat mounted, device;
    if (mounts_source(s->directory, source, sizeof source) < 0)
        return 0;
    if (stat(s->directory, &mounted) == 0 && stat(s->device, &device) == 0 && S_ISBLK(device.st_mode) &&
        mounted.st_dev == device.st_rdev)
        return 1;
    return error_set(err, -EBUSY, "another device (%s) is mounted as the store of %s", source, s->name);
}

static int save_record(const struct store *s, struct error *err)
{
    char directory[PATH_MAX];
    _cleanup_json_ json_t *record = json_pack("{s:s}", "device", s->device);
    snprintf(directory, sizeof directory, "%s", s->record);
    *strrchr(directory, '/') = '\0';
    int r = io_mkdirs(directory, 0700, err);
    return r == 0 ? write_json_file(s->record, record, err) : r;
}

static int check_device(const struct store *s, struct error *err)
{
    struct stat st;
    if (s->device[0] != '/' || strstr(s->device, "/../"))
        return error_set(err, -EINVAL, "device '%.100s' is no absolute path", s->device);
    if (stat(s->device, &st) < 0)
        return error_errno(err, -errno, "cannot open the store of %s: %s", s->name, s->device);
    return S_ISBLK(st.st_mode) ? 0 : error_set(err, -EINVAL, "%s is no block device", s->device);
}

/* `may_make`: on a device without any signature. */
static int mount_store(const struct control *control, const struct store *s, bool may_make, struct error *err)
{
    char found[MOUNTS_TYPE_BYTES];
    int r = mounts_probe(s->device, found, err);
    if (r == 0 && *found && strcmp(found, "ext4") != 0)
        r = error_set(err, -EEXIST, "%s holds %s, which is no store of Tidemark: nothing was changed",
                      s->device, found);
    if (r == 0 && !*found && !may_make)
        r = error_set(err, -ENODATA, "%s holds nothing any more", s->device);
    if (r == 0)
        r = mounts_prepare(s->directory, NULL, err);
    if (r == 0 && !*found)
        r = make(control, s, err);
    if (r == 0)
        r = mount_it(s, err);
    if (r < 0)
        return r;
    r = check_mark(s, may_make, err);
    if (r < 0) {
        umount2(s->directory, UMOUNT_NOFOLLOW);
        return r;
    }
    struct error grown = ERROR_INIT;
    if (mounts_grow(s->device, s->directory, false, &grown) < 0)
        log_error(control->log, "%s: %s", s->name, grown.message);
    return chmod(s->directory, 0700) < 0 ? error_errno(err, -errno, "cannot change %s", s->directory) : 0;
}

/* ---- the policy that goes along ---- */

#define POLICY_NAME "policy.yaml"
#define POLICY_FILE_BYTES_MAX (64u << 10)

int store_keep_policy(const struct application *application, const struct app_policy *policy,
                      struct error *err)
{
    char path[PATH_MAX];
    if (!store_is_open(application->control, application->name))
        return 0;
    _cleanup_free_ char *text = app_policy_to_yaml(policy);
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    int r = application_path(application, path, err, POLICY_NAME);
    return r == 0 ? io_replace_file(path, text, strlen(text), 0600, err) : r;
}

/* The policy as the last machine had it: one of the application's own name is taken, another only if there is
 * none here. */
static int take_policy(struct control *control, const struct store *s, struct error *err)
{
    char path[PATH_MAX];
    struct error unknown = ERROR_INIT;
    struct app_policy *here = NULL;
    enum apply_result ignored;
    const char *message = NULL;
    size_t length = 0;
    _cleanup_free_ char *text = NULL;
    _cleanup_app_documents_ struct app_documents *documents = NULL;
    if (snprintf(path, sizeof path, "%s/" POLICY_NAME, s->directory) >= (int)sizeof path ||
        access(path, F_OK) < 0)
        return 0;
    const struct app_parse_options options = {.file = path};
    int r = io_read_file(path, POLICY_FILE_BYTES_MAX, &text, &length, err);
    if (r == 0)
        r = app_documents_parse(&options, text, length, &documents, err);
    if (r < 0 || !documents)
        return r;
    if (documents->count != 1 || documents->items[0].kind != APP_KIND_POLICY)
        return error_set(err, -EINVAL, "%s does not hold one ProtectionPolicy", path);
    const struct app_policy *policy = documents->items[0].policy;
    bool exists = policy_load(control, policy->name, &here, &unknown) == 0;
    if (exists)
        app_policy_free(here);
    return exists && strcmp(policy->name, s->name) != 0
               ? 0
               : policy_apply(control, policy, false, &ignored, &message, err);
}

/* ---- open ---- */

/* The application that it holds, if it holds one, comes into the list. */
static int load(struct control *control, const struct store *s, struct error *err)
{
    struct error ignored = ERROR_INIT;
    MUTEX_GUARD(guard, &control->apply_mutex);
    _cleanup_application_ struct application *there = application_find(control, s->name, &ignored);
    if (there)
        return 0;
    int r = take_policy(control, s, err);
    return r == 0 ? application_load(control, s->name, err) : r;
}

/* Starts it if it does not run; a journal that has to be recovered takes its time. */
static void start(struct control *control, const char *name)
{
    struct error ignored = ERROR_INIT;
    _cleanup_application_ struct application *a = application_find(control, name, &ignored);
    if (a && a->state == APPLICATION_STOPPED)
        application_bring_up(a);
}

static int close_it(struct control *control, const struct store *s, struct error *err);

static int open_it(struct control *control, const struct store *s, bool may_make, struct error *err)
{
    struct error ignored = ERROR_INIT;
    int r = check_device(s, err);
    if (r < 0)
        return r;
    bool known = access(s->record, F_OK) == 0;
    _cleanup_application_ struct application *a = application_find(control, s->name, &ignored);
    if (a && !known)
        return error_set(err, -EEXIST,
                         "%s has its files on this node already (backing host): nothing was changed",
                         s->name);
    r = look(s, err);
    if (r == -EBUSY && known) { /* left from an earlier attachment */
        *err = ERROR_INIT;
        r = close_it(control, s, err);
        known = false;
    }
    bool mounted = r > 0;
    if (r >= 0) {
        r = save_record(s, err);
        if (r == 0 && !mounted)
            r = mount_store(control, s, may_make, err);
        if (r < 0 && !known)
            unlink(s->record);
    }
    return r < 0 ? r : load(control, s, err);
}

int store_open(struct control *control, const char *name, const char *device, bool again, json_t **ret, struct error *err)
{
    struct store s;
    int r = store_paths(control, name, &s, err);
    if (r == 0 && snprintf(s.device, sizeof s.device, "%s", device) >= (int)sizeof s.device)
        r = error_set(err, -ENAMETOOLONG, "device: path too long");
    if (r < 0)
        return r;
    {
        MUTEX_GUARD(guard, &control->store_mutex);
        r = open_it(control, &s, !again, err);
    }
    if (r < 0)
        return r;
    start(control, name);
    *ret = json_pack("{s:s, s:s, s:b}", "application", s.name, "device", s.device, "open", 1);
    return 0;
}

/* ---- close ---- */

static int stop(struct control *control, const char *name, struct error *err)
{
    struct error ignored = ERROR_INIT;
    MUTEX_GUARD(guard, &control->apply_mutex);
    _cleanup_application_ struct application *a = application_find(control, name, &ignored);
    if (!a)
        return 0;
    int r = clone_check_unused(control, name, err);
    if (r == 0)
        r = application_begin(a, "close", CLOSE_WAIT_MS, err);
    if (r < 0)
        return r;
    r = views_close_all(control, name, false, err);
    if (r == 0)
        r = application_stop(a, false, err);
    if (r == 0)
        application_unlist(a);
    application_end(a);
    return r;
}

/* S3. */
static int close_it(struct control *control, const struct store *s, struct error *err)
{
    int r = stop(control, s->name, err);
    if (r == 0)
        r = mounts_unmount(s->directory, false, err);
    if (r == 0 && unlink(s->record) < 0 && errno != ENOENT)
        r = error_errno(err, -errno, "cannot remove %s", s->record);
    if (r == 0) {
        rmdir(s->directory);
        log_info(control->log, "%s: closed, its journal is unmounted", s->name);
    }
    return r;
}

int store_close(struct control *control, const char *name, json_t **ret, struct error *err)
{
    struct store s;
    int r = store_paths(control, name, &s, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &control->store_mutex);
    if (access(s.record, F_OK) < 0)
        return error_set(err, -ENOENT, "no store of %s is open here", name);
    r = close_it(control, &s, err);
    if (r == 0)
        *ret = json_pack("{s:s, s:b}", "application", s.name, "open", 0);
    return r;
}

/* ---- start and end of the process ---- */

static void for_each(struct control *control, void (*what)(struct control *control, struct store *s))
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/stores", control->state_directory) >= (int)sizeof path)
        return;
    _cleanup_closedir_ DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        char name[APP_NAME_LENGTH_MAX + 1];
        struct store s = {0};
        struct error err = ERROR_INIT;
        size_t length = strlen(entry->d_name), suffix = strlen(SUFFIX);
        if (entry->d_name[0] == '.' || length <= suffix || length - suffix >= sizeof name ||
            strcmp(entry->d_name + length - suffix, SUFFIX) != 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(length - suffix), entry->d_name);
        if (store_paths(control, name, &s, &err) == 0)
            what(control, &s);
    }
}

static void mount_again(struct control *control, struct store *s)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *record = NULL;
    const char *device = "";
    int r = json_parse_file(s->record, &record, &err);
    if (r == 0)
        r = json_get_string(record, "device", &device, &err);
    if (r == 0)
        snprintf(s->device, sizeof s->device, "%s", device);
    if (r == 0)
        r = check_device(s, &err);
    if (r == 0)
        r = look(s, &err);
    if (r == 0)
        r = mount_store(control, s, false, &err);
    if (r < 0) /* whoever attaches it opens it again */
        log_warning(control->log, "%s: its store is not opened: %s", s->name, err.message);
}

static void unmount(struct control *control, struct store *s)
{
    struct error err = ERROR_INIT;
    if (mounts_unmount(s->directory, false, &err) < 0)
        log_warning(control->log, "%s: %s", s->name, err.message);
}

void stores_mount(struct control *control)
{
    for_each(control, mount_again);
}

void stores_unmount(struct control *control)
{
    for_each(control, unmount);
}
