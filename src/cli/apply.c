/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/units.h"
#include "cli/cli_internal.h"
#include "lib/http_client.h"
#include "lib/json.h"
#include "lib/yaml.h"

#define APPLY_FILES_MAX 32

struct source {
    const char *name; /* as given */
    char *text;
    char *whole; /* for a dry run: the text and, behind it, the policies of the other files. NULL: the text does */
    struct yaml_stream *stream; /* NULL: it is not YAML, which the server says better */
    char directory[CLI_PATH_BYTES]; /* where relative paths in it start */
};

static void release_sources(struct source (*sources)[APPLY_FILES_MAX])
{
    for (size_t i = 0; i < APPLY_FILES_MAX; i++) {
        free((*sources)[i].text);
        free((*sources)[i].whole);
        yaml_stream_free((*sources)[i].stream);
    }
}

static int read_stdin(char **ret_text, struct error *err)
{
    _cleanup_free_ char *text = malloc(YAML_TEXT_LIMIT_BYTES + 2);
    if (!text)
        return error_errno(err, -ENOMEM, "cannot read stdin");
    size_t n = fread(text, 1, YAML_TEXT_LIMIT_BYTES + 1, stdin);
    if (ferror(stdin))
        return error_errno(err, -EIO, "cannot read stdin");
    if (n > YAML_TEXT_LIMIT_BYTES)
        return error_set(err, -EFBIG, "stdin is larger than %u bytes", YAML_TEXT_LIMIT_BYTES);
    text[n] = '\0';
    if (strlen(text) != n)
        return error_set(err, -EINVAL, "stdin holds a NUL: expected YAML");
    *ret_text = take_ptr(text);
    return 0;
}

static int read_source(const char *name, struct source *ret, struct error *err)
{
    size_t length_bytes = 0;
    bool is_stdin = strcmp(name, "-") == 0;
    ret->name = is_stdin ? "stdin" : name;
    int r = cli_options_absolute(is_stdin ? "." : name, ret->directory, err);
    if (r < 0)
        return r;
    char *slash = strrchr(ret->directory, '/');
    slash[slash == ret->directory] = '\0';
    r = is_stdin ? read_stdin(&ret->text, err) : io_read_file(name, YAML_TEXT_LIMIT_BYTES, &ret->text, &length_bytes, err);
    if (r < 0)
        return r;
    if (!is_stdin && strlen(ret->text) != length_bytes)
        return error_set(err, -EINVAL, "%s holds a NUL: expected YAML", name);
    struct error ignored = ERROR_INIT;
    if (yaml_parse(ret->name, ret->text, strlen(ret->text), &ret->stream, &ignored) < 0)
        ret->stream = NULL;
    return 0;
}

static const char *policy_name(const struct yaml_node *root)
{
    const char *kind = yaml_text(yaml_lookup(root, "kind"));
    return kind && strcmp(kind, "ProtectionPolicy") == 0 ? yaml_text(yaml_lookup_path(root, "metadata.name")) : NULL;
}

/* With `name`: whether it has that policy; without: whether it has any. */
static bool has_policy(const struct source *source, const char *name)
{
    for (size_t i = 0; source->stream && i < source->stream->count; i++) {
        const char *one = policy_name(source->stream->documents[i].root);
        if (one && (!name || strcmp(one, name) == 0))
            return true;
    }
    return false;
}

/* Applications may refer to the policies of other files. */
static int make_whole(struct source *sources, size_t count, size_t which, struct error *err)
{
    size_t text_bytes;
    FILE *f = open_memstream(&sources[which].whole, &text_bytes);
    if (!f)
        return error_errno(err, -ENOMEM, "cannot read %s", sources[which].name);
    fputs(sources[which].text, f);
    for (size_t i = 0; i < count; i++)
        for (size_t d = 0; i != which && sources[i].stream && d < sources[i].stream->count; d++) {
            const struct yaml_document *document = &sources[i].stream->documents[d];
            const char *name = policy_name(document->root);
            bool there = !name || has_policy(&sources[which], name);
            for (size_t k = 0; k < i && !there; k++)
                there = has_policy(&sources[k], name);
            if (!there)
                fprintf(f, "\n---\n%.*s", (int)(document->end_bytes - document->start_bytes),
                        sources[i].stream->text + document->start_bytes);
        }
    bool failed = ferror(f);
    return fclose(f) != 0 || failed ? error_errno(err, -ENOMEM, "cannot read %s", sources[which].name) : 0;
}

static enum cli_exit send_source(const struct cli *cli, const struct source *source, bool dry_run,
                                 json_t *results)
{
    _cleanup_free_ char *directory = http_client_encode(source->directory);
    _cleanup_free_ char *file = http_client_encode(source->name);
    _cleanup_free_ char *path = NULL;
    _cleanup_json_ json_t *answer = NULL;
    char what[CLI_TEXT_BYTES];
    if (!directory || !file ||
        asprintf(&path, "/v1/apply?directory=%s&file=%s%s", directory, file, dry_run ? "&dry_run=true" : "") <
            0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "apply: out of memory");
    snprintf(what, sizeof what, "apply");
    enum cli_exit code = cli_api_send(cli, what, path, dry_run && source->whole ? source->whole : source->text, &answer);
    size_t i;
    json_t *result;
    json_array_foreach(json_object_get(answer, "results"), i, result)
    {
        bool policy = strcmp(cli_field_text(result, "kind", ""), "ProtectionPolicy") == 0;
        if (code == CLI_EXIT_OK && results && (!policy || has_policy(source, cli_field_text(result, "name", ""))))
            json_array_append(results, result);
    }
    return code;
}

static void print_effect(const struct cli *cli, const json_t *effect)
{
    const char *name = cli_field_text(effect, "application", "?");
    char one[UNITS_TEXT_BYTES], two[UNITS_TEXT_BYTES];
    size_t i;
    json_t *step;
    if (json_is_string(json_object_get(effect, "message"))) {
        cli_output_say(cli, "  %s: not known: %s", name, cli_field_text(effect, "message", "?"));
        return;
    }
    uint64_t dropped = cli_field_u64(effect, "dropped_bytes");
    if (dropped)
        cli_output_say(cli, "  %s: the history begins at %s instead of %s: %llu points go, %s are freed", name,
                       cli_field_text(effect, "oldest_time_after", "?"), cli_field_text(effect, "oldest_time", "?"),
                       (unsigned long long)cli_field_u64(effect, "dropped_points"), units_format_bytes(dropped, one));
    json_array_foreach(json_object_get(effect, "thinned"), i, step)
        cli_output_say(cli, "  %s: from %s to %s a point each %s: about %llu points instead of %llu; of %s a part is freed", name,
                       cli_field_text(step, "from", "?"), cli_field_text(step, "to", "?"),
                       units_format_exact_duration(cli_field_u64(step, "granularity_seconds") * 1000000000ull, one),
                       (unsigned long long)cli_field_u64(step, "points_after"), (unsigned long long)cli_field_u64(step, "points"),
                       units_format_bytes(cli_field_u64(step, "bytes"), two));
    if (!dropped && json_array_size(json_object_get(effect, "thinned")) == 0)
        cli_output_say(cli, "  %s: its history stays as it is", name);
}

static void print_effects(const struct cli *cli, const json_t *effects)
{
    size_t i;
    json_t *effect;
    json_array_foreach(effects, i, effect)
        print_effect(cli, effect);
}

static enum cli_exit print(const struct cli *cli, json_t *results, bool dry_run)
{
    if (cli->format != CLI_FORMAT_TABLE) {
        _cleanup_json_ json_t *all = json_pack("{s:O}", "results", results);
        return all ? cli_output_value(cli, all) : CLI_EXIT_FAILED;
    }
    size_t i;
    json_t *result;
    json_array_foreach(results, i, result)
    {
        const char *message = cli_field_text(result, "message", NULL);
        cli_output_say(cli, "%s/%s %s%s%s%s%s", cli_field_text(result, "kind", "?"),
                       cli_field_text(result, "name", "?"), cli_field_text(result, "result", "?"),
                       dry_run ? " (dry run)" : "", message ? " (" : "", message ? message : "",
                       message ? ")" : "");
        print_effects(cli, json_object_get(result, "effects"));
    }
    return CLI_EXIT_OK;
}

static enum cli_exit run(struct cli *cli)
{
    struct source sources[APPLY_FILES_MAX] __attribute__((cleanup(release_sources))) = {0};
    _cleanup_json_ json_t *results = json_array();
    struct error err = ERROR_INIT;
    bool dry_run = cli_options_flag(cli, "dry-run");
    size_t count = 0;
    const char *name;
    int r = 0;
    while (r == 0 && count < APPLY_FILES_MAX && (name = cli_options_nth(cli, "file", count)))
        r = read_source(name, &sources[count++], &err);
    for (size_t i = 0; i < count && count > 1 && r == 0; i++)
        r = make_whole(sources, count, i, &err);
    if (r < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "apply: %s", err.message);
    enum cli_exit code = CLI_EXIT_OK;
    /* Several files: all are checked before the first one changes anything. */
    for (size_t i = 0; i < count && count > 1 && !dry_run && code == CLI_EXIT_OK; i++)
        code = send_source(cli, &sources[i], true, NULL);
    if (code != CLI_EXIT_OK)
        return code;
    for (int policies = 1; policies >= 0; policies--) /* those that others refer to come first */
        for (size_t i = 0; i < count && code == CLI_EXIT_OK; i++)
            if (has_policy(&sources[i], NULL) == policies)
                code = send_source(cli, &sources[i], dry_run, results);
    enum cli_exit printed = print(cli, results, dry_run);
    return code != CLI_EXIT_OK ? code : printed;
}

const struct cli_command cli_apply = {
    .name = "apply",
    .summary = "create or change applications and policies from YAML",
    .description = "Applies the documents of one or more YAML files: kinds ProtectedApplication and\n"
                   "ProtectionPolicy of tidemark.io/v1alpha1. A new application's volumes are made,\n"
                   "attached and mounted before it answers; applying the same file again changes\n"
                   "nothing. Relative paths in a file start at its directory, those from stdin (-)\n"
                   "here. With several files all are checked before the first one is applied.",
    .options =
        (const struct cli_option[]){
            {"file", 'f', CLI_KIND_FILE, "FILE", .help = "YAML to apply; - reads stdin", .repeat = true,
             .required = true},
            {"dry-run", 0, CLI_KIND_NONE, NULL, .help = "check and tell what would change, in history too; change nothing"},
            {0},
        },
    .formats = true,
    .examples =
        (const char *const[]){"tidemark apply -f shop.yaml", "tidemark apply -f policies.yaml -f shop.yaml",
                              "kustomize build . | tidemark apply -f - --dry-run", NULL},
    .run = run,
};
