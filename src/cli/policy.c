/* SPDX-License-Identifier: Apache-2.0 */
/* `policy lint` reads files as `apply` does, without a server, and says in words what each policy keeps. */
#include <string.h>

#include "app/spec.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/units.h"
#include "cli/cli_internal.h"
#include "lib/yaml.h"

#define NS_PER_S 1000000000ull

static void say_policy(const struct cli *cli, const char *file, const struct app_policy *p)
{
    char text[1024], one[UNITS_TEXT_BYTES], two[UNITS_TEXT_BYTES];
    size_t used = (size_t)snprintf(text, sizeof text, "every write is kept");
    for (size_t i = 0; i < p->thinning_count && used < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s %s, then a point each %s", i ? " until" : " for",
                                 units_format_exact_duration(p->thinning[i].after_ns, one),
                                 units_format_exact_duration(p->thinning[i].keep_s * NS_PER_S, two));
    if (p->history_ns && used < sizeof text)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s %s", p->thinning_count ? " until" : " for",
                                 units_format_exact_duration(p->history_ns, one));
    if (p->compress_after_ns != APP_COMPRESS_NEVER && used < sizeof text)
        used += (size_t)snprintf(text + used, sizeof text - used, "; what is older than %s is compressed",
                                 units_format_exact_duration(p->compress_after_ns, one));
    if (used < sizeof text)
        snprintf(text + used, sizeof text - used, "; the oldest goes when the journal reaches %s",
                 p->quota_bytes ? units_format_bytes(p->quota_bytes, one) : "a quota chosen by the disk");
    cli_output_say(cli, "%s: ProtectionPolicy/%s: %s", file, p->name, text);
}

static int lint(const struct cli *cli, const char *file, struct error *err)
{
    char directory[CLI_PATH_BYTES];
    size_t length_bytes = 0;
    _cleanup_free_ char *text = NULL;
    _cleanup_app_documents_ struct app_documents *documents = NULL;
    int r = cli_options_absolute(file, directory, err);
    if (r == 0)
        r = io_read_file(file, YAML_TEXT_LIMIT_BYTES, &text, &length_bytes, err);
    if (r < 0)
        return r;
    char *slash = strrchr(directory, '/');
    slash[slash == directory] = '\0';
    struct app_parse_options options = {.file = file, .directory = directory};
    r = app_documents_parse(&options, text, length_bytes, &documents, err);
    for (size_t i = 0; r == 0 && i < documents->count; i++) {
        const struct app_document *d = &documents->items[i];
        if (d->kind == APP_KIND_POLICY)
            say_policy(cli, file, d->policy);
        else
            cli_output_say(cli, "%s: ProtectedApplication/%s: policy %s", file, d->spec->name, d->spec->policy);
    }
    return r;
}

static enum cli_exit run(struct cli *cli)
{
    enum cli_exit code = CLI_EXIT_OK;
    if (strcmp(cli->operands[0], "lint") != 0)
        return cli_output_fail(cli, CLI_EXIT_USAGE, "`tidemark help policy` explains it", "policy: '%.100s': expected lint",
                               cli->operands[0]);
    for (size_t i = 1; i < cli->operand_count; i++) {
        struct error err = ERROR_INIT;
        if (lint(cli, cli->operands[i], &err) < 0)
            code = cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "policy lint: %s", err.message);
    }
    return code;
}

const struct cli_command cli_policy = {
    .name = "policy",
    .summary = "check policies before they are applied",
    .description = "lint reads YAML files as `apply` does, without changing anything and without a\n"
                   "running `tidemark up`. It tells the first mistake of each file with its place, and\n"
                   "in words what each policy keeps.",
    .operands = (const struct cli_operand[]){{"lint", .kind = CLI_KIND_TEXT},
                                             {"FILE", .kind = CLI_KIND_FILE, .repeat = true},
                                             {0}},
    .examples = (const char *const[]){"tidemark policy lint policies.yaml", NULL},
    .run = run,
};
