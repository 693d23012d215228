/* SPDX-License-Identifier: Apache-2.0 */
/* Strict reading of the kinds. Each reader gets the node and the path of its field, for the message. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app/spec.h"
#include "base/cleanup.h"
#include "base/units.h"
#include "lib/yaml.h"

enum { PATH_BYTES = 128, FOUND_BYTES = 100 };

/* What stands at the node, for "found ...". */
static const char *found(const struct yaml_node *node, char text[FOUND_BYTES])
{
    if (node->kind == YAML_SCALAR && !yaml_is_null(node))
        snprintf(text, FOUND_BYTES, "'%.80s'", node->scalar);
    else if (node->kind == YAML_SEQUENCE && node->count == 0)
        snprintf(text, FOUND_BYTES, "an empty list");
    else
        snprintf(text, FOUND_BYTES, "%s", yaml_is_null(node) ? "nothing" : yaml_kind_name(node));
    return text;
}

/* `path` is "" for the document itself. */
static int refuse(struct error *err, const struct yaml_node *node, const char *path, const char *expected)
{
    char text[FOUND_BYTES];
    return yaml_error(err, node, -EINVAL, "%s%sfound %s; expected %s", path, path[0] ? ": " : "",
                      found(node, text), expected);
}

static struct app_place place_of(const struct yaml_node *node)
{
    return (struct app_place){node->line, node->column};
}

/* Optimal string alignment up to 2, over short words. */
static unsigned edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 24 };
    size_t m = strlen(a), n = strlen(b);
    if (m > LONGEST || n > LONGEST)
        return LONGEST;
    unsigned row[LONGEST + 1];
    for (size_t j = 0; j <= n; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= m; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= n; j++) {
            unsigned change = diagonal + ((a[i - 1] | 32) != (b[j - 1] | 32));
            unsigned other = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < other ? change : other;
        }
    }
    return row[n];
}

/* A mapping with no other fields than those in the list that ends with NULL. */
static int check_mapping(const struct yaml_node *node, const char *path, const char *const *fields,
                         struct error *err)
{
    if (node->kind != YAML_MAPPING)
        return refuse(err, node, path, "a mapping");
    for (size_t i = 0; i < node->count; i++) {
        const struct yaml_node *key = node->pairs[i].key;
        const char *nearest = NULL;
        unsigned distance = 3;
        bool known = false;
        char list[256] = "";
        for (const char *const *field = fields; *field && !known; field++) {
            known = strcmp(*field, key->scalar) == 0;
            unsigned d = edit_distance(key->scalar, *field);
            if (d < distance) {
                distance = d;
                nearest = *field;
            }
            size_t used = strlen(list);
            snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", *field);
        }
        if (known)
            continue;
        const char *dot = path[0] ? "." : "";
        if (nearest)
            return yaml_error(err, key, -EINVAL,
                              "%s%s%.60s: unknown field; did you mean '%s'? (expected one of: %s)", path, dot,
                              key->scalar, nearest, list);
        return yaml_error(err, key, -EINVAL, "%s%s%.60s: unknown field; expected one of: %s", path, dot,
                          key->scalar, list);
    }
    return 0;
}

#define CHECK_MAPPING(node, path, err, ...)                                                                  \
    check_mapping((node), (path), (const char *const[]){__VA_ARGS__, NULL}, (err))

/* The value of a required field; NULL with err set when it is missing or null. */
static const struct yaml_node *need(const struct yaml_node *mapping, const char *path, const char *key,
                                    const char *expected, struct error *err)
{
    const struct yaml_node *value = yaml_lookup(mapping, key);
    if (value && !yaml_is_null(value))
        return value;
    yaml_error(err, value ? value : mapping, -EINVAL, "%s%s%s: %s; expected %s", path, path[0] ? "." : "",
               key, value ? "found nothing" : "missing", expected);
    return NULL;
}

static const struct yaml_node *optional(const struct yaml_node *mapping, const char *key)
{
    const struct yaml_node *value = yaml_lookup(mapping, key);
    return value && yaml_is_null(value) ? NULL : value;
}

static int read_text(const struct yaml_node *node, const char *path, char **ret, struct error *err)
{
    if (node->kind != YAML_SCALAR || yaml_is_null(node))
        return refuse(err, node, path, "a text");
    char *copy = strdup(node->scalar);
    if (!copy)
        return error_set(err, -ENOMEM, "out of memory");
    free(*ret);
    *ret = copy;
    return 0;
}

static int read_name(const struct yaml_node *node, const char *path, char **ret, struct error *err)
{
    struct error unused = ERROR_INIT;
    if (node->kind != YAML_SCALAR || app_check_name(node->scalar, &unused) < 0)
        return refuse(
            err, node, path,
            "a DNS label (1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit)");
    return read_text(node, path, ret, err);
}

static int read_size(const struct yaml_node *node, const char *path, uint64_t min, uint64_t max,
                     uint64_t *ret, struct error *err)
{
    struct error unused = ERROR_INIT;
    uint64_t bytes;
    if (node->kind != YAML_SCALAR || units_parse_bytes(node->scalar, &bytes, &unused) < 0)
        return refuse(err, node, path, "a size such as 8Gi or 512Mi");
    char expected[PATH_BYTES], text[UNITS_TEXT_BYTES];
    if (bytes < min) {
        snprintf(expected, sizeof expected, "at least %s", units_format_bytes(min, text));
        return refuse(err, node, path, expected);
    }
    if (bytes > max) {
        snprintf(expected, sizeof expected, "at most %s", units_format_bytes(max, text));
        return refuse(err, node, path, expected);
    }
    if (bytes % APP_VOLUME_SIZE_UNIT_BYTES)
        return refuse(err, node, path, "a multiple of 4096 bytes");
    *ret = bytes;
    return 0;
}

/* Joins and normalizes: no empty components, no ".", ".." resolved. NULL when out of memory. */
static char *normalize_path(const char *directory, const char *path)
{
    size_t room = (path[0] == '/' ? 0 : strlen(directory)) + strlen(path) + 3;
    char *joined = malloc(room), *out = malloc(room);
    if (!joined || !out) {
        free(joined);
        free(out);
        return NULL;
    }
    snprintf(joined, room, "%s%s%s", path[0] == '/' ? "" : directory, path[0] == '/' ? "" : "/", path);
    size_t length = 0;
    for (const char *at = joined; *at;) {
        at += strspn(at, "/");
        size_t part = strcspn(at, "/");
        if (part == 2 && at[0] == '.' && at[1] == '.') {
            while (length && out[--length] != '/')
                ;
        } else if (part && !(part == 1 && at[0] == '.')) {
            out[length++] = '/';
            memcpy(out + length, at, part);
            length += part;
        }
        at += part;
    }
    if (!length)
        out[length++] = '/';
    out[length] = '\0';
    free(joined);
    return out;
}

static bool has_controls(const char *text)
{
    for (const char *at = text; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            return true;
    return false;
}

static int read_path(const struct yaml_node *node, const char *path, const char *directory, bool absolute,
                     char **ret, struct error *err)
{
    if (node->kind != YAML_SCALAR || yaml_is_null(node) || !node->scalar[0])
        return refuse(err, node, path, absolute ? "an absolute path" : "a path");
    const char *text = node->scalar;
    if (strlen(text) > APP_PATH_LENGTH_MAX || has_controls(text))
        return refuse(err, node, path, "a path of at most 1024 bytes without control characters");
    if (text[0] != '/' && absolute)
        return refuse(err, node, path, "an absolute path (beginning with /)");
    if (text[0] != '/' && !directory)
        return refuse(err, node, path,
                      "an absolute path, because it is not known where a relative one starts");
    char *normal = normalize_path(directory ? directory : "", text);
    if (!normal)
        return error_set(err, -ENOMEM, "out of memory");
    if (strcmp(normal, "/") == 0) {
        free(normal);
        return refuse(err, node, path, "a directory other than /");
    }
    free(*ret);
    *ret = normal;
    return 0;
}

/* One word of a command; the first may be a program relative to the file. */
static int read_word(const struct app_parse_options *options, const struct yaml_node *node, const char *path,
                     bool program, char **ret, struct error *err)
{
    if (node->kind != YAML_SCALAR || (node->plain && yaml_is_null(node)))
        return refuse(err, node, path, "a word (put quotes around an empty one)");
    if (program && !node->scalar[0])
        return refuse(err, node, path, "a program");
    if (program && (strncmp(node->scalar, "./", 2) == 0 || strncmp(node->scalar, "../", 3) == 0))
        return read_path(node, path, options->directory, false, ret, err);
    return read_text(node, path, ret, err);
}

static int read_words(const struct app_parse_options *options, const struct yaml_node *node, const char *path,
                      struct app_command *command, struct error *err)
{
    if (node->kind != YAML_SEQUENCE || node->count == 0 || node->count > APP_COMMAND_WORDS_MAX)
        return refuse(err, node, path,
                      "a command as a list of 1 to 256 words, such as [systemctl, stop, shop]");
    command->argv = calloc(node->count + 1, sizeof *command->argv);
    if (!command->argv)
        return error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < node->count; i++) {
        char item[PATH_BYTES];
        snprintf(item, sizeof item, "%s[%zu]", path, i);
        int r = read_word(options, node->items[i], item, i == 0, &command->argv[i], err);
        if (r < 0)
            return r;
        command->count++;
    }
    return 0;
}

static int read_shell(const struct yaml_node *node, const char *path, struct app_command *command,
                      struct error *err)
{
    if (!node->scalar[0])
        return refuse(err, node, path, "a command");
    command->argv = calloc(4, sizeof *command->argv);
    if (!command->argv)
        return error_set(err, -ENOMEM, "out of memory");
    command->shell = true;
    const char *const words[] = {"/bin/sh", "-c", node->scalar};
    for (size_t i = 0; i < 3; i++) {
        command->argv[i] = strdup(words[i]);
        if (!command->argv[i])
            return error_set(err, -ENOMEM, "out of memory");
        command->count++;
    }
    return 0;
}

static int read_commands(const struct app_parse_options *options, const struct yaml_node *lifecycle,
                         const char *key, struct app_commands *commands, struct error *err)
{
    const struct yaml_node *node = optional(lifecycle, key);
    if (!node)
        return 0;
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "spec.lifecycle.%s", key);
    if (node->kind == YAML_MAPPING)
        return refuse(err, node, path, "a list of words, a list of such lists, or a text for /bin/sh");
    if (node->kind == YAML_SEQUENCE && node->count == 0)
        return 0;
    bool several = node->kind == YAML_SEQUENCE && node->items[0]->kind == YAML_SEQUENCE;
    size_t count = several ? node->count : 1;
    if (count > APP_COMMANDS_MAX)
        return refuse(err, node, path, "at most 32 commands");
    commands->items = calloc(count, sizeof *commands->items);
    if (!commands->items)
        return error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        char item[PATH_BYTES];
        snprintf(item, sizeof item, several ? "%s[%zu]" : "%s", path, i);
        commands->count++; /* before: what is half filled is released too */
        int r = node->kind == YAML_SCALAR
                    ? read_shell(node, path, &commands->items[i], err)
                    : read_words(options, several ? node->items[i] : node, item, &commands->items[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Size and source: one of them is needed, since a source has a size. */
static int read_extent(const struct app_parse_options *options, const struct yaml_node *node, const char *path,
                       struct app_volume *volume, struct error *err)
{
    char field[PATH_BYTES + 16];
    const struct yaml_node *source = optional(node, "source");
    const struct yaml_node *size =
        source ? optional(node, "size") : need(node, path, "size", "a size such as 8Gi", err);
    if (!size && !source)
        return err->code;
    snprintf(field, sizeof field, "%s.source", path);
    int r = source ? read_path(source, field, options->directory, false, &volume->source, err) : 0;
    const struct yaml_node *from = optional(node, "from");
    snprintf(field, sizeof field, "%s.from", path);
    if (r == 0 && from && (source || !yaml_text(from) || strlen(from->scalar) > APP_FROM_LENGTH_MAX || has_controls(from->scalar)))
        r = refuse(err, from, field, "what a clone wrote there, without source");
    else if (r == 0 && from && !(volume->from = strdup(from->scalar)))
        r = error_set(err, -ENOMEM, "out of memory");
    snprintf(field, sizeof field, "%s.size", path);
    if (r == 0 && size)
        r = read_size(size, field, APP_VOLUME_SIZE_BYTES_MIN, APP_VOLUME_SIZE_BYTES_MAX, &volume->size_bytes, err);
    return r;
}

static int read_fs_type(const struct yaml_node *node, const char *path, struct app_volume *volume, struct error *err)
{
    char field[PATH_BYTES + 16];
    const struct yaml_node *fs_type = optional(node, "fsType"), *size = optional(node, "size");
    const char *text = fs_type && yaml_text(fs_type) ? fs_type->scalar : "";
    volume->fs_type = volume->source ? APP_FS_FOUND : APP_FS_EXT4;
    snprintf(field, sizeof field, "%s.fsType", path);
    if (strcmp(text, "xfs") == 0)
        volume->fs_type = APP_FS_XFS;
    else if (strcmp(text, "btrfs") == 0)
        volume->fs_type = APP_FS_BTRFS;
    else if (strcmp(text, "ext4") == 0)
        volume->fs_type = APP_FS_EXT4;
    else if (fs_type)
        return refuse(err, fs_type, field, volume->source ? "ext4, xfs or btrfs, or no such field for what is there" : "ext4, xfs or btrfs");
    /* mkfs.xfs 6 refuses less than 300 MB, mkfs.btrfs less than 109 MiB. */
    bool xfs = volume->fs_type == APP_FS_XFS, btrfs = volume->fs_type == APP_FS_BTRFS;
    if (!volume->source && ((xfs && volume->size_bytes < (300ull << 20)) || (btrfs && volume->size_bytes < (128ull << 20)))) {
        snprintf(field, sizeof field, "%s.size", path);
        return refuse(err, size, field, xfs ? "at least 300Mi, which xfs needs" : "at least 128Mi, which btrfs needs");
    }
    return 0;
}

static int read_volume(const struct app_parse_options *options, const struct yaml_node *node, size_t index,
                       struct app_spec *spec, struct error *err)
{
    struct app_volume *volume = &spec->volumes[index];
    char path[PATH_BYTES], field[PATH_BYTES + 16];
    snprintf(path, sizeof path, "spec.volumes[%zu]", index);
    int r = CHECK_MAPPING(node, path, err, "name", "source", "from", "size", "mountPath", "fsType");
    if (r < 0)
        return r;
    const struct yaml_node *name = need(node, path, "name", "a DNS label such as data", err);
    if (!name)
        return err->code;
    snprintf(field, sizeof field, "%s.name", path);
    r = read_name(name, field, &volume->name, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < index; i++)
        if (strcmp(spec->volumes[i].name, volume->name) == 0)
            return refuse(err, name, field, "a name that no other volume of the application has");
    r = read_extent(options, node, path, volume, err);
    if (r < 0)
        return r;
    const struct yaml_node *mount = optional(node, "mountPath"), *fs_type = optional(node, "fsType");
    if (spec->export == APP_EXPORT_NBD && (mount || fs_type))
        return yaml_error(
            err, mount ? mount : fs_type, -EINVAL,
            "%s.%s: not allowed with export nbd; expected export: fuse or ublk, or no such field (the volume is used "
            "by its NBD URI)",
            path, mount ? "mountPath" : "fsType");
    if (fs_type && !mount)
        return yaml_error(err, fs_type, -EINVAL,
                          "%s.fsType: found without mountPath; expected mountPath beside it", path);
    r = read_fs_type(node, path, volume, err);
    if (r < 0 || !mount)
        return r;
    snprintf(field, sizeof field, "%s.mountPath", path);
    r = read_path(mount, field, NULL, true, &volume->mount_path, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < index; i++)
        if (spec->volumes[i].mount_path && strcmp(spec->volumes[i].mount_path, volume->mount_path) == 0)
            return refuse(err, mount, field, "a directory that no other volume is mounted on");
    return 0;
}

static int read_export(const struct yaml_node *body, struct app_spec *spec, struct error *err)
{
    const struct yaml_node *export = optional(body, "export");
    if (!export)
        return 0;
    for (enum app_export e = APP_EXPORT_FUSE; yaml_text(export) && e <= APP_EXPORT_UBLK; e++)
        if (strcmp(export->scalar, app_export_name(e)) == 0) {
            spec->export = e;
            return 0;
        }
    return refuse(err, export, "spec.export", "fuse, ublk or nbd");
}

static int read_volumes(const struct app_parse_options *options, const struct yaml_node *body, struct app_spec *spec, struct error *err)
{
    const struct yaml_node *volumes = need(body, "spec", "volumes", "a list of at least one volume", err);
    if (!volumes)
        return err->code;
    if (volumes->kind == YAML_SEQUENCE && volumes->count > APP_VOLUMES_MAX)
        return yaml_error(err, volumes, -EINVAL,
                          "spec.volumes: found %zu volumes; expected at most %u: split the application, or "
                          "use fewer, larger volumes",
                          volumes->count, APP_VOLUMES_MAX);
    if (volumes->kind != YAML_SEQUENCE || volumes->count == 0)
        return refuse(err, volumes, "spec.volumes", "a list of 1 to 32 volumes");
    spec->volumes = calloc(volumes->count, sizeof *spec->volumes);
    if (!spec->volumes)
        return error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < volumes->count; i++) {
        spec->volume_count = i + 1; /* before: what is half filled is released too */
        int r = read_volume(options, volumes->items[i], i, spec, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_policy_ref(const struct yaml_node *body, struct app_spec *spec, struct error *err)
{
    spec->policy = strdup(APP_POLICY_DEFAULT);
    if (!spec->policy)
        return error_set(err, -ENOMEM, "out of memory");
    const struct yaml_node *reference = optional(body, "policyRef");
    if (!reference)
        return 0;
    int r = CHECK_MAPPING(reference, "spec.policyRef", err, "name");
    if (r < 0)
        return r;
    const struct yaml_node *name =
        need(reference, "spec.policyRef", "name", "the name of a ProtectionPolicy", err);
    if (!name)
        return err->code;
    spec->policy_at = place_of(name);
    return read_name(name, "spec.policyRef.name", &spec->policy, err);
}

/* Whether it lies in one of the application's volumes. */
static bool is_on_volume(const struct app_spec *spec, const char *path)
{
    for (size_t i = 0; i < spec->volume_count; i++) {
        const char *mount = spec->volumes[i].mount_path;
        size_t length = mount ? strlen(mount) : 0;
        if (length && strncmp(path, mount, length) == 0 && (path[length] == '/' || !path[length]))
            return true;
    }
    return false;
}

static int read_encryption(const struct app_parse_options *options, const struct yaml_node *journal, struct app_spec *spec,
                           struct error *err)
{
    int r = CHECK_MAPPING(journal, "spec.journal", err, "encryption");
    const struct yaml_node *encryption = r < 0 ? NULL : optional(journal, "encryption");
    if (!encryption)
        return r;
    r = CHECK_MAPPING(encryption, "spec.journal.encryption", err, "keyFile");
    if (r < 0)
        return r;
    const struct yaml_node *file = need(encryption, "spec.journal.encryption", "keyFile", "the path of a key file", err);
    if (!file)
        return err->code;
    spec->key_file_at = place_of(file);
    r = read_path(file, "spec.journal.encryption.keyFile", options->directory, false, &spec->key_file, err);
    if (r == 0 && is_on_volume(spec, spec->key_file))
        return refuse(err, file, "spec.journal.encryption.keyFile",
                      "a file outside the application's volumes (they are served only once it was read)");
    return r;
}

static int read_application(const struct app_parse_options *options, const struct yaml_node *body,
                            struct app_spec *spec, struct error *err)
{
    int r = CHECK_MAPPING(body, "spec", err, "policyRef", "export", "volumes", "manifests", "journal", "lifecycle");
    if (r >= 0)
        r = read_policy_ref(body, spec, err);
    if (r >= 0)
        r = read_export(body, spec, err);
    if (r >= 0)
        r = read_volumes(options, body, spec, err);
    if (r < 0)
        return r;
    const struct yaml_node *manifests = optional(body, "manifests");
    if (manifests)
        spec->manifests_at = place_of(manifests);
    if (manifests)
        r = read_path(manifests, "spec.manifests", options->directory, false, &spec->manifests, err);
    if (r < 0)
        return r;
    if (manifests && is_on_volume(spec, spec->manifests))
        return refuse(err, manifests, "spec.manifests",
                      "a directory outside the application's volumes (they rewind by themselves)");
    const struct yaml_node *journal = optional(body, "journal");
    if (journal)
        r = read_encryption(options, journal, spec, err);
    if (r < 0)
        return r;
    const struct yaml_node *lifecycle = optional(body, "lifecycle");
    if (!lifecycle)
        return 0;
    r = CHECK_MAPPING(lifecycle, "spec.lifecycle", err, "stop", "start", "probe");
    if (r >= 0)
        r = read_commands(options, lifecycle, "stop", &spec->stop, err);
    if (r >= 0)
        r = read_commands(options, lifecycle, "start", &spec->start, err);
    if (r >= 0)
        r = read_commands(options, lifecycle, "probe", &spec->probe, err);
    return r;
}

static int read_duration(const struct yaml_node *node, const char *path, uint64_t min_ns, uint64_t *ret_ns, struct error *err)
{
    struct error ignored = ERROR_INIT;
    uint64_t ns;
    char expected[96], least[UNITS_TEXT_BYTES];
    if (!yaml_text(node) || units_parse_duration(node->scalar, &ns, &ignored) < 0)
        return refuse(err, node, path, "a duration such as 90s, 24h or 30d");
    snprintf(expected, sizeof expected, "at least %s", units_format_duration(min_ns, least));
    if (ns < min_ns)
        return refuse(err, node, path, expected);
    if (ns > APP_HISTORY_NS_MAX)
        return refuse(err, node, path, "at most 36500d");
    *ret_ns = ns;
    return 0;
}

/* One step, against the one before it. */
static int read_thinning_step(const struct yaml_node *node, size_t index, struct app_policy *policy, struct error *err)
{
    static const uint64_t second_ns = 1000000000u;
    struct app_thinning *step = &policy->thinning[index];
    char path[PATH_BYTES], field[PATH_BYTES + 16];
    uint64_t keep_ns;
    snprintf(path, sizeof path, "spec.journal.thinning[%zu]", index);
    int r = CHECK_MAPPING(node, path, err, "after", "keep");
    if (r < 0)
        return r;
    const struct yaml_node *after = need(node, path, "after", "a duration such as 24h", err);
    const struct yaml_node *keep = after ? need(node, path, "keep", "a duration such as 1m", err) : NULL;
    if (!keep)
        return err->code;
    snprintf(field, sizeof field, "%s.after", path);
    r = read_duration(after, field, APP_HISTORY_NS_MIN, &step->after_ns, err);
    if (r == 0 && index && step->after_ns <= step[-1].after_ns)
        r = refuse(err, after, field, "more than in the step before");
    if (r < 0)
        return r;
    snprintf(field, sizeof field, "%s.keep", path);
    r = read_duration(keep, field, second_ns, &keep_ns, err);
    if (r == 0 && keep_ns % second_ns)
        r = refuse(err, keep, field, "whole seconds");
    if (r == 0 && keep_ns > step->after_ns)
        r = refuse(err, keep, field, "not more than `after`");
    if (r < 0)
        return r;
    step->keep_s = (uint32_t)(keep_ns / second_ns);
    if (index && (step->keep_s <= step[-1].keep_s || step->keep_s % step[-1].keep_s)) /* else its points may be gone already */
        return refuse(err, keep, field, "a multiple of `keep` in the step before, and more than it");
    policy->thinning_count = index + 1;
    return 0;
}

static int read_thinning(const struct yaml_node *node, struct app_policy *policy, struct error *err)
{
    if (node->kind != YAML_SEQUENCE)
        return refuse(err, node, "spec.journal.thinning", "a list of steps such as {after: 24h, keep: 1m}");
    if (node->count > APP_THINNING_MAX)
        return refuse(err, node, "spec.journal.thinning", "at most 8 steps");
    policy->thinning_count = 0;
    for (size_t i = 0; i < node->count; i++) {
        int r = read_thinning_step(node->items[i], i, policy, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_compress(const struct yaml_node *node, struct app_policy *policy, struct error *err)
{
    static const char path[] = "spec.journal.compressAfter";
    struct error ignored = ERROR_INIT;
    uint64_t ns;
    if (!node)
        return 0;
    if (yaml_text(node) && strcmp(node->scalar, "never") == 0) {
        policy->compress_after_ns = APP_COMPRESS_NEVER;
        return 0;
    }
    if (!yaml_text(node) || units_parse_duration(node->scalar, &ns, &ignored) < 0)
        return refuse(err, node, path, "a duration such as 10m, or never");
    return read_duration(node, path, APP_HISTORY_NS_MIN, &policy->compress_after_ns, err);
}

static int read_journal(const struct yaml_node *journal, struct app_policy *policy, struct error *err)
{
    int r = CHECK_MAPPING(journal, "spec.journal", err, "compressAfter", "history", "quota", "seedRate", "thinning");
    if (r < 0)
        return r;
    const struct yaml_node *quota = optional(journal, "quota"), *history = optional(journal, "history");
    const struct yaml_node *thinning = optional(journal, "thinning"), *seed_rate = optional(journal, "seedRate");
    if (seed_rate)
        r = read_size(seed_rate, "spec.journal.seedRate", 1u << 20, APP_VOLUME_SIZE_BYTES_MAX, &policy->seed_bytes_per_second, err);
    if (r == 0 && quota)
        r = read_size(quota, "spec.journal.quota", APP_QUOTA_BYTES_MIN, APP_VOLUME_SIZE_BYTES_MAX, &policy->quota_bytes, err);
    if (r == 0 && history)
        r = read_duration(history, "spec.journal.history", APP_HISTORY_NS_MIN, &policy->history_ns, err);
    if (r == 0 && thinning)
        r = read_thinning(thinning, policy, err);
    if (r == 0)
        r = read_compress(optional(journal, "compressAfter"), policy, err);
    /* Of the default steps those that begin after the history ends: what is written out is read again. */
    while (r == 0 && !thinning && policy->history_ns && policy->thinning_count &&
           policy->thinning[policy->thinning_count - 1].after_ns >= policy->history_ns)
        policy->thinning_count--;
    size_t last = policy->thinning_count - 1;
    if (r == 0 && thinning && policy->thinning_count && policy->history_ns &&
        policy->thinning[last].after_ns >= policy->history_ns)
        r = refuse(err, history, "spec.journal.history", "more than `after` of the last step of thinning");
    return r;
}

static int read_policy(const struct yaml_node *body, struct app_policy *policy, struct error *err)
{
    app_policy_default_thinning(policy);
    if (!body)
        return 0;
    int r = CHECK_MAPPING(body, "spec", err, "journal", "ackMode", "failureMode");
    if (r < 0)
        return r;
    const struct yaml_node *ack = optional(body, "ackMode"), *journal = optional(body, "journal");
    if (ack && yaml_text(ack) && strcmp(ack->scalar, "flush") == 0)
        policy->ack_mode = APP_ACK_FLUSH;
    else if (ack && !(yaml_text(ack) && strcmp(ack->scalar, "write") == 0))
        return refuse(err, ack, "spec.ackMode", "write or flush");
    const struct yaml_node *failure = optional(body, "failureMode");
    if (failure && yaml_text(failure) && strcmp(failure->scalar, "protection") == 0)
        policy->failure_mode = APP_FAILURE_PROTECTION;
    else if (failure && !(yaml_text(failure) && strcmp(failure->scalar, "availability") == 0))
        return refuse(err, failure, "spec.failureMode", "availability or protection");
    return journal ? read_journal(journal, policy, err) : 0;
}

static int read_kind(const struct yaml_node *root, enum app_kind *ret, struct error *err)
{
    int r = CHECK_MAPPING(root, "", err, "apiVersion", "kind", "metadata", "spec");
    if (r < 0)
        return r;
    const struct yaml_node *version = need(root, "", "apiVersion", APP_API_VERSION, err);
    if (!version)
        return err->code;
    if (!yaml_text(version) || strcmp(version->scalar, APP_API_VERSION) != 0)
        return refuse(err, version, "apiVersion", APP_API_VERSION);
    const struct yaml_node *kind = need(root, "", "kind", "ProtectedApplication or ProtectionPolicy", err);
    if (!kind)
        return err->code;
    if (yaml_text(kind) && strcmp(kind->scalar, "ProtectedApplication") == 0)
        *ret = APP_KIND_APPLICATION;
    else if (yaml_text(kind) && strcmp(kind->scalar, "ProtectionPolicy") == 0)
        *ret = APP_KIND_POLICY;
    else
        return refuse(err, kind, "kind", "ProtectedApplication or ProtectionPolicy");
    return 0;
}

static int read_document(const struct app_parse_options *options, const struct yaml_node *root,
                         struct app_document *document, struct error *err)
{
    int r = read_kind(root, &document->kind, err);
    if (r < 0)
        return r;
    const struct yaml_node *metadata = need(root, "", "metadata", "a mapping with name", err);
    if (!metadata)
        return err->code;
    r = CHECK_MAPPING(metadata, "metadata", err, "name");
    if (r < 0)
        return r;
    const struct yaml_node *name = need(metadata, "metadata", "name", "a DNS label such as shop", err);
    if (!name)
        return err->code;
    const struct yaml_node *body = optional(root, "spec");
    if (document->kind == APP_KIND_POLICY) {
        document->policy = calloc(1, sizeof *document->policy);
        if (!document->policy)
            return error_set(err, -ENOMEM, "out of memory");
        r = read_name(name, "metadata.name", &document->policy->name, err);
        return r < 0 ? r : read_policy(body, document->policy, err);
    }
    document->spec = calloc(1, sizeof *document->spec);
    if (!document->spec)
        return error_set(err, -ENOMEM, "out of memory");
    r = read_name(name, "metadata.name", &document->spec->name, err);
    if (r < 0)
        return r;
    body = need(root, "", "spec", "a mapping with volumes", err);
    return body ? read_application(options, body, document->spec, err) : err->code;
}

static const char *document_name(const struct app_document *document)
{
    return document->policy ? document->policy->name : document->spec ? document->spec->name : "";
}

int app_documents_parse(const struct app_parse_options *options, const char *text, size_t length_bytes,
                        struct app_documents **ret_documents, struct error *err)
{
    _cleanup_yaml_stream_ struct yaml_stream *stream = NULL;
    int r = yaml_parse(options->file, text, length_bytes, &stream, err);
    if (r < 0)
        return r;
    if (stream->count == 0)
        return error_set(err, -EINVAL,
                         "%s: no document found; expected a ProtectedApplication or a ProtectionPolicy",
                         options->file);
    if (stream->count > APP_DOCUMENTS_MAX)
        return error_set(err, -EFBIG, "%s: found %zu documents; expected at most %u", options->file,
                         stream->count, APP_DOCUMENTS_MAX);
    _cleanup_app_documents_ struct app_documents *documents = calloc(1, sizeof *documents);
    if (!documents)
        return error_set(err, -ENOMEM, "out of memory");
    documents->items = calloc(stream->count, sizeof *documents->items);
    if (!documents->items)
        return error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < stream->count; i++) {
        struct app_document *document = &documents->items[i];
        documents->count = i + 1; /* before: what is half filled is released too */
        r = read_document(options, stream->documents[i].root, document, err);
        if (r < 0)
            return r;
        for (size_t j = 0; j < i; j++)
            if (documents->items[j].kind == document->kind &&
                strcmp(document_name(&documents->items[j]), document_name(document)) == 0)
                return yaml_error(err, yaml_lookup_path(stream->documents[i].root, "metadata.name"), -EINVAL,
                                  "metadata.name: found %s %s a second time; expected each once",
                                  app_kind_name(document->kind), document_name(document));
    }
    *ret_documents = take_ptr(documents);
    return 0;
}
