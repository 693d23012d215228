/* SPDX-License-Identifier: Apache-2.0 */
/* The canonical form: fields in one order, texts quoted as JSON does (which is YAML), sizes in the largest
 * unit that has no remainder. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app/spec.h"
#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/units.h"

#define CHECKSUM_MARK "# crc32c of what follows: "

/* The first code point of valid UTF-8 (RFC 3629), as libyaml gives it. */
static uint32_t code_point(const char *text, unsigned *ret_length_bytes)
{
    const unsigned char *u = (const unsigned char *)text;
    unsigned length = u[0] < 0x80 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    uint32_t code = length == 1 ? u[0] : u[0] & (0x7fu >> length);
    for (unsigned i = 1; i < length && u[i]; i++)
        code = code << 6 | (u[i] & 0x3f);
    *ret_length_bytes = length;
    return code;
}

/* Not printable in YAML, or a line break (YAML 1.1, 5.1 and 5.4). */
static bool must_escape(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 || code == 0x2029 ||
           code == 0xfeff || code == 0xfffe || code == 0xffff;
}

/* A JSON text is a YAML double-quoted scalar; plain where nothing needs quotes. */
static void put_text(FILE *out, const char *text)
{
    static const char *const words[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "~"};
    size_t length = strlen(text);
    bool letter = (text[0] >= 'a' && text[0] <= 'z') || text[0] == '/';
    bool plain = letter &&
                 strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == length;
    for (size_t i = 0; plain && i < sizeof words / sizeof *words; i++)
        plain = strcmp(text, words[i]) != 0;
    if (plain) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (const char *at = text; *at;) {
        unsigned length_bytes;
        uint32_t code = code_point(at, &length_bytes);
        if (code == '"' || code == '\\')
            fprintf(out, "\\%c", (int)code);
        else if (must_escape(code))
            fprintf(out, code < 0x100 ? "\\x%02x" : "\\u%04x", code);
        else
            fwrite(at, 1, length_bytes, out);
        at += length_bytes;
    }
    fputc('"', out);
}

static void put_size(FILE *out, uint64_t bytes)
{
    static const char *const units[] = {"", "Ki", "Mi", "Gi", "Ti"};
    size_t unit = 0;
    while (bytes && bytes % 1024 == 0 && unit + 1 < sizeof units / sizeof *units) {
        bytes /= 1024;
        unit++;
    }
    fprintf(out, "%llu%s", (unsigned long long)bytes, units[unit]);
}

static void put_duration(FILE *out, uint64_t ns)
{
    char text[UNITS_TEXT_BYTES];
    fputs(units_format_exact_duration(ns, text), out);
}

static void put_commands(FILE *out, const char *name, const struct app_commands *commands)
{
    if (!commands->count)
        return;
    fprintf(out, "    %s:", name);
    if (commands->count == 1 && commands->items[0].shell) {
        fputc(' ', out);
        put_text(out, commands->items[0].argv[2]);
        fputc('\n', out);
        return;
    }
    fputc('\n', out);
    for (size_t i = 0; i < commands->count; i++) {
        fputs("    - [", out);
        for (size_t j = 0; j < commands->items[i].count; j++) {
            if (j)
                fputs(", ", out);
            put_text(out, commands->items[i].argv[j]);
        }
        fputs("]\n", out);
    }
}

static void put_spec(FILE *out, const struct app_spec *spec)
{
    fprintf(out, "apiVersion: %s\nkind: ProtectedApplication\nmetadata:\n  name: ", APP_API_VERSION);
    put_text(out, spec->name);
    fputs("\nspec:\n  policyRef:\n    name: ", out);
    put_text(out, spec->policy);
    fprintf(out, "\n  export: %s\n  volumes:\n", app_export_name(spec->export));
    for (size_t i = 0; i < spec->volume_count; i++) {
        const struct app_volume *volume = &spec->volumes[i];
        fputs("  - name: ", out);
        put_text(out, volume->name);
        if (volume->source) {
            fputs("\n    source: ", out);
            put_text(out, volume->source);
        }
        if (volume->from) {
            fputs("\n    from: ", out);
            put_text(out, volume->from);
        }
        if (volume->size_bytes) {
            fputs("\n    size: ", out);
            put_size(out, volume->size_bytes);
        }
        if (volume->mount_path) {
            fputs("\n    mountPath: ", out);
            put_text(out, volume->mount_path);
            if (volume->fs_type != APP_FS_FOUND)
                fprintf(out, "\n    fsType: %s", app_fs_type_name(volume->fs_type));
        }
        fputc('\n', out);
    }
    if (spec->manifests) {
        fputs("  manifests: ", out);
        put_text(out, spec->manifests);
        fputc('\n', out);
    }
    if (spec->key_file) {
        fputs("  journal:\n    encryption:\n      keyFile: ", out);
        put_text(out, spec->key_file);
        fputc('\n', out);
    }
    if (spec->stop.count || spec->start.count || spec->probe.count)
        fputs("  lifecycle:\n", out);
    put_commands(out, "stop", &spec->stop);
    put_commands(out, "start", &spec->start);
    put_commands(out, "probe", &spec->probe);
}

char *app_text_with_checksum(const char *text)
{
    char *whole = NULL;
    return asprintf(&whole, CHECKSUM_MARK "%08x\n%s", crc32c(0, text, strlen(text)), text) < 0 ? NULL : whole;
}

int app_text_check(const char *file, const char *text, size_t length_bytes, struct error *err)
{
    const size_t head_bytes = strlen(CHECKSUM_MARK) + 9;
    char expected[16];
    if (length_bytes < head_bytes || strncmp(text, CHECKSUM_MARK, strlen(CHECKSUM_MARK)) != 0)
        return 0; /* written before there were any */
    snprintf(expected, sizeof expected, "%08x\n", crc32c(0, text + head_bytes, length_bytes - head_bytes));
    if (strncmp(text + strlen(CHECKSUM_MARK), expected, 9) == 0)
        return 0;
    return error_set(err, -EBADMSG, "%s is damaged, or was changed by hand: its checksum, in the first line, is another", file);
}

char *app_spec_to_yaml(const struct app_spec *spec)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return NULL;
    put_spec(out, spec);
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}

char *app_policy_to_yaml(const struct app_policy *policy)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return NULL;
    fprintf(out, "apiVersion: %s\nkind: ProtectionPolicy\nmetadata:\n  name: ", APP_API_VERSION);
    put_text(out, policy->name);
    fputs("\nspec:\n", out);
    fputs("  journal:\n", out);
    if (policy->history_ns) {
        fputs("    history: ", out);
        put_duration(out, policy->history_ns);
        fputc('\n', out);
    }
    if (policy->quota_bytes) {
        fputs("    quota: ", out);
        put_size(out, policy->quota_bytes);
        fputc('\n', out);
    }
    if (policy->seed_bytes_per_second) {
        fputs("    seedRate: ", out);
        put_size(out, policy->seed_bytes_per_second);
        fputc('\n', out);
    }
    fprintf(out, "    thinning:%s\n", policy->thinning_count ? "" : " []");
    for (size_t i = 0; i < policy->thinning_count; i++) {
        fputs("    - after: ", out);
        put_duration(out, policy->thinning[i].after_ns);
        fputs("\n      keep: ", out);
        put_duration(out, policy->thinning[i].keep_s * 1000000000ull);
        fputc('\n', out);
    }
    fputs("    compressAfter: ", out);
    if (policy->compress_after_ns == APP_COMPRESS_NEVER)
        fputs("never", out);
    else
        put_duration(out, policy->compress_after_ns);
    fputc('\n', out);
    fprintf(out, "  ackMode: %s\n", app_ack_mode_name(policy->ack_mode));
    fprintf(out, "  failureMode: %s\n", app_failure_mode_name(policy->failure_mode));
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}

json_t *app_commands_to_json(const struct app_commands *commands)
{
    json_t *list = json_array();
    for (size_t i = 0; i < commands->count; i++) {
        json_t *words = json_array();
        for (size_t j = 0; j < commands->items[i].count; j++)
            json_array_append_new(words, json_string_nocheck(commands->items[i].argv[j]));
        json_array_append_new(list, words);
    }
    return list;
}

static json_t *volumes_to_json(const struct app_spec *spec)
{
    json_t *list = json_array();
    for (size_t i = 0; i < spec->volume_count; i++) {
        const struct app_volume *volume = &spec->volumes[i];
        json_t *one =
            json_pack("{s:s, s:I}", "name", volume->name, "sizeBytes", (json_int_t)volume->size_bytes);
        if (volume->source)
            json_object_set_new(one, "source", json_string_nocheck(volume->source));
        if (volume->from)
            json_object_set_new(one, "from", json_string_nocheck(volume->from));
        if (volume->mount_path) {
            json_object_set_new(one, "mountPath", json_string_nocheck(volume->mount_path));
            json_object_set_new(one, "fsType", json_string(app_fs_type_name(volume->fs_type)));
        }
        json_array_append_new(list, one);
    }
    return list;
}

json_t *app_spec_to_json(const struct app_spec *spec)
{
    json_t *body = json_pack("{s:{s:s}, s:s, s:o}", "policyRef", "name", spec->policy, "export",
                             app_export_name(spec->export), "volumes", volumes_to_json(spec));
    if (body && spec->manifests)
        json_object_set_new(body, "manifests", json_string_nocheck(spec->manifests));
    if (body && spec->key_file)
        json_object_set_new(body, "journal", json_pack("{s:{s:s}}", "encryption", "keyFile", spec->key_file));
    json_t *lifecycle = json_object();
    if (spec->stop.count)
        json_object_set_new(lifecycle, "stop", app_commands_to_json(&spec->stop));
    if (spec->start.count)
        json_object_set_new(lifecycle, "start", app_commands_to_json(&spec->start));
    if (spec->probe.count)
        json_object_set_new(lifecycle, "probe", app_commands_to_json(&spec->probe));
    if (body && json_object_size(lifecycle))
        json_object_set(body, "lifecycle", lifecycle);
    json_decref(lifecycle);
    return json_pack("{s:s, s:s, s:{s:s}, s:o}", "apiVersion", APP_API_VERSION, "kind",
                     "ProtectedApplication", "metadata", "name", spec->name, "spec", body);
}

json_t *app_policy_to_json(const struct app_policy *policy)
{
    json_t *body = json_object(), *journal = json_object(), *thinning = json_array();
    if (policy->history_ns)
        json_object_set_new(journal, "historySeconds", json_real((double)policy->history_ns / 1e9));
    if (policy->quota_bytes)
        json_object_set_new(journal, "quotaBytes", json_integer((json_int_t)policy->quota_bytes));
    if (policy->seed_bytes_per_second)
        json_object_set_new(journal, "seedBytesPerSecond", json_integer((json_int_t)policy->seed_bytes_per_second));
    for (size_t i = 0; i < policy->thinning_count; i++)
        json_array_append_new(thinning, json_pack("{s:f, s:I}", "afterSeconds", (double)policy->thinning[i].after_ns / 1e9,
                                                  "keepSeconds", (json_int_t)policy->thinning[i].keep_s));
    json_object_set_new(journal, "thinning", thinning);
    json_object_set_new(journal, "compressAfterSeconds",
                        policy->compress_after_ns == APP_COMPRESS_NEVER ? json_null()
                                                                        : json_real((double)policy->compress_after_ns / 1e9));
    json_object_set_new(body, "journal", journal);
    json_object_set_new(body, "ackMode", json_string(app_ack_mode_name(policy->ack_mode)));
    json_object_set_new(body, "failureMode", json_string(app_failure_mode_name(policy->failure_mode)));
    return json_pack("{s:s, s:s, s:{s:s}, s:o}", "apiVersion", APP_API_VERSION, "kind", "ProtectionPolicy",
                     "metadata", "name", policy->name, "spec", body);
}
