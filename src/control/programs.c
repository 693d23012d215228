/* SPDX-License-Identifier: Apache-2.0 */
/* Finds the engine and the holder: $TIDEMARK_LIBEXEC (directories with ':' between),
 * beside the running binary, ../libexec/tidemark, ../lib/tidemark and ../lib/<triplet>/tidemark of it, and in
 * a build tree. */
#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/control_internal.h"
#include "export/ublk.h"

static void try_directory(struct programs *p, const char *directory)
{
    const struct {
        char *path;
        const char *name;
        int mode;
    } all[] = {{p->engine, "tidemark-engine", X_OK},
               {p->holder, "tidemark-holder", X_OK}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char path[PATH_MAX];
        if (!all[i].path[0] &&
            snprintf(path, sizeof path, "%s/%s", directory, all[i].name) < (int)sizeof path &&
            access(path, all[i].mode) == 0 && !realpath(path, all[i].path))
            all[i].path[0] = '\0';
    }
}

static void try_pattern(struct programs *p, const char *binary_directory, const char *relative)
{
    char pattern[PATH_MAX];
    glob_t found;
    if (snprintf(pattern, sizeof pattern, "%s/%s", binary_directory, relative) >= (int)sizeof pattern ||
        glob(pattern, 0, NULL, &found) != 0)
        return;
    for (size_t i = 0; i < found.gl_pathc; i++)
        try_directory(p, found.gl_pathv[i]);
    globfree(&found);
}

void programs_find(struct programs *ret)
{
    *ret = (struct programs){0};
    const char *list = getenv("TIDEMARK_LIBEXEC");
    while (list && *list) {
        char directory[PATH_MAX];
        size_t length = strcspn(list, ":");
        if (length &&
            snprintf(directory, sizeof directory, "%.*s", (int)length, list) < (int)sizeof directory)
            try_directory(ret, directory);
        list += length + (list[length] == ':');
    }
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return;
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    if (!slash)
        return;
    *slash = '\0';
    static const char *const places[] = {
        ".", "../libexec/tidemark", "../lib/tidemark", "../lib/*/tidemark", "../engine", "../export"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        try_pattern(ret, self, places[i]);
}

static int missing(const char *name, struct error *err)
{
    return error_set(
        err, -ENOSYS,
        "%s was not found beside tidemark, in ../libexec/tidemark or ../lib/tidemark of it, nor in "
        "$TIDEMARK_LIBEXEC: install Tidemark as a whole (make install), or set TIDEMARK_LIBEXEC",
        name);
}

int programs_check_export(const struct programs *programs, enum app_export export, struct error *err)
{
    if (!programs->engine[0])
        return missing("tidemark-engine", err);
    if (export == APP_EXPORT_NBD)
        return 0;
    if (export == APP_EXPORT_UBLK) {
        int r = ublk_probe(err);
        return r < 0 || programs->holder[0] ? r : missing("tidemark-holder", err);
    }
    if (access("/dev/fuse", R_OK | W_OK) < 0)
        return error_set(
            err, -ENOSYS,
            "export fuse needs /dev/fuse, which cannot be opened: load the module (modprobe fuse), give the "
            "container that device, or use export: nbd");
    if (access("/dev/loop-control", R_OK | W_OK) < 0)
        return error_set(err, -ENOSYS,
                         "export fuse needs /dev/loop-control, which cannot be opened: load the module "
                         "(modprobe loop), give "
                         "the container that device, or use export: nbd");
    return programs->holder[0] ? 0 : missing("tidemark-holder", err);
}
